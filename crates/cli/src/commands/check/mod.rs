//! `check`: is the configuration good, and what is in force? With `--connect`, is all of it there and usable?

mod findings;
mod postgres;
mod redis;
mod values;

use std::{path::Path, time::Duration};

use balance_sync_schedule::{Link, Subscription};
use balance_sync_tenants::{KeyForm, Tenant, other_key_space};
use futures::StreamExt as _;

use self::findings::{Findings, Level};
use crate::{
    EXIT_OK,
    args::{CheckArgs, seconds},
    config::{self, Config},
    terminal::Screen,
    wiring,
};

/// Something keeps the worker from its work.
const EXIT_FAILS: u8 = 1;
/// Tenants whose keys are counted at the same time; the calls share one connection.
const COUNTED_AT_ONCE: usize = 64;

/// The command.
///
/// # Errors
/// Everything that is wrong with the configuration.
pub(crate) async fn check(file: Option<&Path>, args: CheckArgs) -> anyhow::Result<u8> {
    let mut findings = Findings::default();
    for (name, config) in super::load_configs(file)? {
        // What is only noticed when the parts are put together belongs to the check as well.
        let endpoints = wiring::Endpoints::new(&config)?;
        wiring::worker_settings(&config, &endpoints, &config.worker.name.as_str().into(), None)?;
        if !args.connect {
            // Of several Redis servers that of `redis.name`, or the first.
            let config = if name.is_some() { super::load_config(file).unwrap_or(config) } else { config };
            crate::terminal::print(&config::print(&config))?;
            for note in &config.notes {
                eprintln!("note: {note}");
            }
            return Ok(EXIT_OK);
        }
        if let Some(name) = name {
            findings.ok("directory", format!("what follows is of redis {name}"));
        }
        look(&config, &endpoints, &args, &mut findings).await?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&findings.report())?);
    } else {
        crate::terminal::print(&findings.render(Screen::of_stdout()))?;
    }
    Ok(if findings.worst() == Level::Fail { EXIT_FAILS } else { EXIT_OK })
}

/// Whether everything that a worker of this configuration needs is there and usable.
async fn look(
    config: &Config,
    endpoints: &wiring::Endpoints,
    args: &CheckArgs,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    for note in &config.notes {
        findings.warn("configuration", note.to_string(), "");
    }
    let by = tokio::time::Instant::now() + seconds(args.timeout);
    let link = Link::to(endpoints.redis.clone(), std::sync::Arc::default());
    let tenants = list(config, &args.tenant, findings).await;
    let redis_answers = redis::look(&link, config, &tenants, findings).await;
    if redis_answers {
        events(endpoints, config, findings).await;
        if tokio::time::timeout_at(by, schedules(&link, &tenants, config.tenants.key_form, findings))
            .await
            .is_err()
        {
            findings.warn("redis", "not all schedules were counted in time", "give it longer: --timeout");
        }
        if tokio::time::timeout_at(by, values::look(&link, config, &tenants, findings)).await.is_err() {
            findings.warn("values", "not looked at in time", "give it longer: --timeout");
        }
    }
    postgres::look(config, &tenants, args.at_once, by, findings).await
}

/// The tenants, in id order.
async fn list(config: &Config, only: &[String], findings: &mut Findings) -> Vec<Tenant> {
    const AREA: &str = "tenants";
    let directory = match wiring::directory(config) {
        Ok(directory) => directory,
        Err(error) => {
            findings.fail(AREA, format!("{error:#}"), "correct the setting");
            return Vec::new();
        }
    };
    let mut listing = match directory.active().await {
        Ok(listing) => listing,
        Err(error) => {
            let help =
                "address, API key and network of the tenant service: nothing is served without its list";
            findings.fail(AREA, error.to_string(), help);
            return Vec::new();
        }
    };
    listing.refuse_shared_keys(config.tenants.key_form);
    for refused in &listing.refused {
        findings.warn(
            AREA,
            format!("entry {:?} of the list is not served: {}", refused.id, refused.reason),
            "correct it in the tenant service",
        );
    }
    let mut tenants: Vec<Tenant> = listing.tenants.into_iter().map(|listed| listed.tenant).collect();
    findings.ok(AREA, format!("{} active", tenants.len()));
    if !only.is_empty() {
        for unknown in only.iter().filter(|id| !tenants.iter().any(|tenant| tenant.is_called(id))) {
            findings.fail(AREA, format!("{unknown} is not among the active ones"), "a name of the list");
        }
        tenants.retain(|tenant| only.iter().any(|id| tenant.is_called(id)));
    }
    tenants.sort();
    tenants
}

/// Whether events of the tenant service can be received.
async fn events(endpoints: &wiring::Endpoints, config: &Config, findings: &mut Findings) {
    let Some(events) = &config.tenants.events else { return };
    let Some(endpoint) = &endpoints.events else { return };
    match Subscription::open(endpoint, &events.channel).await {
        Ok(_) => findings.ok("events", format!("channel {} can be received", events.channel)),
        Err(error) => findings.warn(
            "events",
            format!("channel {}: {error}", events.channel),
            "the right to the channel (&tenant-events:*); without it changes are noticed a poll later",
        ),
    }
}

/// Members that no collector would see: in legacy schedules, which are moved, and under a key form that is not configured.
async fn schedules(link: &Link, tenants: &[Tenant], form: KeyForm, findings: &mut Findings) {
    let count = async |key: String| {
        let mut cmd = ::redis::cmd("ZCARD");
        cmd.arg(key);
        match link.send("count schedule", &cmd).await {
            Ok(::redis::Value::Int(n)) => u64::try_from(n).unwrap_or_default(),
            _ => 0,
        }
    };
    let counted: Vec<(&Tenant, u64, u64, u64)> = futures::stream::iter(tenants)
        .map(async |tenant| {
            let (mut due, mut legacy) = (0, 0);
            for space in tenant.key_spaces(form) {
                due += count(space.schedule().to_owned()).await;
                legacy += count(space.legacy_schedule().to_owned()).await;
            }
            let other = match other_key_space(tenant, form) {
                Some(space) => count(space.schedule().to_owned()).await,
                None => 0,
            };
            (tenant, due, legacy, other)
        })
        .buffer_unordered(COUNTED_AT_ONCE)
        .collect()
        .await;
    let sum = |of: fn(&(&Tenant, u64, u64, u64)) -> u64| counted.iter().map(of).sum::<u64>();
    findings.ok("schedules", format!("{} members in those of {} tenants", sum(|c| c.1), tenants.len()));
    let named = |of: fn(&(&Tenant, u64, u64, u64)) -> u64| {
        let with: Vec<&str> = counted.iter().filter(|c| of(c) > 0).map(|c| c.0.label()).collect();
        findings::names(&with)
    };
    if sum(|c| c.2) > 0 {
        findings.warn(
            "schedules",
            format!("{} members in legacy schedules of {}", sum(|c| c.2), named(|c| c.2)),
            "nothing: workers move them; a ledger before 3.6.2 writes there",
        );
    }
    if sum(|c| c.3) > 0 {
        findings.fail(
            "schedules",
            format!("{} members under the other form of the tenant id: {}", sum(|c| c.3), named(|c| c.3)),
            "tenants.key_form = \"auto\" serves both forms",
        );
    }
}

/// How long one thing may take.
const STEP: Duration = Duration::from_secs(15);
