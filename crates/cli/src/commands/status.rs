//! `status`: is any tenant behind, since when, and why?

use std::{fmt::Write as _, path::Path, time::Duration};

use balance_sync_domain::printable;
use balance_sync_view::{
    facts::{fleet_connections, in_one_line},
    overview::{CLOCK_TOLERANCE_SECONDS, FactView, Overview, Verdict},
    reader::{FleetReader, FleetView},
    routing::RoutingView,
    rows::{StateView, TenantRow},
};
use serde::Serialize;
use tokio::time::Instant;

use super::{neighbour, queues, rollout, shadow, tenants, workers};
use crate::{
    EXIT_OK,
    args::{StatusArgs, seconds},
    terminal::{
        self, BAD, Column, FAINT, HEAD, PLAIN, Screen, Table, WARN, ago, count, optional, rate, span, styled,
        wrap,
    },
    wiring,
};

/// Something is late or can't be written.
const EXIT_NOT_WELL: u8 = 1;
/// Not known.
const EXIT_UNKNOWN: u8 = 2;
/// Between two looks with `--wait`.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Workers that are shown.
const WORKERS: usize = 8;

/// What a verdict means to who called.
pub(super) fn exit_code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Healthy => EXIT_OK,
        Verdict::Attention | Verdict::Behind | Verdict::Degraded => EXIT_NOT_WELL,
        Verdict::Unknown => EXIT_UNKNOWN,
    }
}

/// Prints the fleet at a glance: once, again and again, or once its verdict is accepted.
///
/// # Errors
/// When the configuration is wrong or nothing can be written. What can't be asked is part of the answer.
pub(crate) async fn status(file: Option<&Path>, args: StatusArgs) -> anyhow::Result<u8> {
    let mut readers = Vec::new();
    for (name, config) in super::load_configs(file)? {
        readers.push((name, wiring::reader_of_one(&config)?));
    }
    let picture = async |screen: Screen, every: Option<Duration>| match &*readers {
        [(None, reader)] => picture(reader, args.json, screen, every).await,
        all => picture_of_all(all, args.json, screen, every).await,
    };
    let code = |verdict| if verdict <= args.accept { EXIT_OK } else { exit_code(verdict) };
    let Some(interval) = args.watch else {
        let until = Instant::now() + seconds(args.wait.unwrap_or_default());
        let (text, verdict) = loop {
            let (text, verdict) = picture(Screen::of_stdout(), None).await?;
            if verdict <= args.accept || Instant::now() + LOOK_EVERY > until {
                break (text, verdict);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        terminal::print(&text)?;
        return Ok(code(verdict));
    };
    let interval = seconds(interval);
    let last = terminal::watch(interval, async |screen| picture(screen, Some(interval)).await);
    Ok(last.await?.map_or(EXIT_UNKNOWN, code))
}

/// The fleet of one Redis of several.
#[derive(Serialize)]
struct OfEntry<'a> {
    name: &'a str,
    verdict: Verdict,
    overview: Overview,
}

/// All fleets.
#[derive(Serialize)]
struct OfAll<'a> {
    /// The worst of theirs.
    verdict: Verdict,
    redis: Vec<OfEntry<'a>>,
}

/// A line for the fleet of each Redis, and the picture of those that aren't well.
async fn picture_of_all(
    readers: &[(Option<String>, FleetReader)],
    json: bool,
    screen: Screen,
    every: Option<Duration>,
) -> anyhow::Result<(String, Verdict)> {
    let views = futures::future::join_all(readers.iter().map(|(_, reader)| reader.view())).await;
    let redis: Vec<OfEntry<'_>> = readers
        .iter()
        .zip(&views)
        .map(|((name, _), view)| {
            let overview = view.overview();
            // A Redis on which no tenant lives needs no workers.
            let unused = view.listed && overview.tenants.total == 0 && view.redis_error.is_none();
            let unused = unused && view.workers.is_empty() && view.routing.as_ref().is_some_and(is_empty);
            let verdict = if unused { Verdict::Healthy } else { overview.verdict };
            OfEntry { name: name.as_deref().unwrap_or_default(), verdict, overview }
        })
        .collect();
    let verdict = redis.iter().map(|entry| entry.verdict).max().unwrap_or(Verdict::Unknown);
    let all = OfAll { verdict, redis };
    if json {
        return Ok((format!("{}\n", serde_json::to_string(&all)?), verdict));
    }
    let mut text = String::new();
    let when = all.redis.iter().map(|entry| entry.overview.generated_at.as_str()).max().unwrap_or_default();
    let when = match every {
        Some(every) => format!("{when}, every {}", span(every.as_secs_f64())),
        None => when.to_owned(),
    };
    let style = terminal::verdict_style(verdict).bold();
    let shown = styled(style, verdict.name().to_uppercase());
    line(&mut text, format_args!("{shown}  {}", styled(FAINT, when)));
    let longest = all.redis.iter().map(|entry| entry.name.len()).max().unwrap_or_default();
    for entry in &all.redis {
        let style = terminal::verdict_style(entry.verdict);
        let overview = &entry.overview;
        let reason = overview.reasons.first().filter(|_| entry.verdict != Verdict::Healthy);
        let reason = reason.map_or_else(String::new, |reason| format!("; {}", printable(reason)));
        let tenants = count(overview.tenants.total as u64);
        let workers = match overview.workers.live {
            1 => "1 worker".to_owned(),
            workers => format!("{workers} workers"),
        };
        let name = entry.name;
        let said = format!("{tenants} tenants, {workers}{reason}");
        let head = format!(
            "{}  {name:<longest$}  {:<9}",
            styled(HEAD, "redis"),
            entry.verdict.name().to_uppercase()
        );
        line(&mut text, format_args!("{}  {}", styled(style, head), wrap(&said, screen.text_width(), 9)));
    }
    for (entry, view) in all.redis.iter().zip(&views).filter(|(entry, _)| entry.verdict != Verdict::Healthy) {
        line(&mut text, format_args!("\n{} {}", styled(HEAD, "redis"), entry.name));
        text.push_str(&render(view, &entry.overview, screen, every));
    }
    Ok((text, verdict))
}

/// Whether tenants that live elsewhere have left nothing, and each tenant lives somewhere.
fn is_empty(routing: &RoutingView) -> bool {
    routing.look.left_tenants == 0 && routing.look.left_unknown.is_none() && routing.split.unrouted.is_empty()
}

async fn picture(
    reader: &FleetReader,
    json: bool,
    screen: Screen,
    every: Option<Duration>,
) -> anyhow::Result<(String, Verdict)> {
    let view = reader.view().await;
    let overview = view.overview();
    let text = if json {
        format!("{}\n", serde_json::to_string(&overview)?)
    } else {
        render(&view, &overview, screen, every)
    };
    Ok((text, overview.verdict))
}

fn render(view: &FleetView, overview: &Overview, screen: Screen, every: Option<Duration>) -> String {
    let mut text = String::new();
    head(&mut text, overview, every);
    reasons(&mut text, overview, screen);
    if let Some(offset) = overview.clock_offset_seconds.filter(|by| by.abs() > CLOCK_TOLERANCE_SECONDS) {
        let way = if offset > 0.0 { "ahead of" } else { "behind" };
        let said =
            format!("This host's clock is {} {way} Redis's; times here are Redis's.", span(offset.abs()));
        line(&mut text, format_args!("{}", styled(WARN, said)));
    }
    figures(&mut text, view, overview, screen);
    let troubled: Vec<&TenantRow> =
        overview.worst.iter().filter(|row| tenants::is_of_note(row, view)).collect();
    if !troubled.is_empty() {
        line(&mut text, format_args!("\n{}", tenants::table(&troubled, view, screen).trim_end()));
    }
    let all = workers::all(view);
    if !all.is_empty() {
        let shown = &all[..all.len().min(WORKERS)];
        line(&mut text, format_args!("\n{}", workers::table(shown, view.at, screen).trim_end()));
        if all.len() > WORKERS {
            line(&mut text, format_args!("and {} more", all.len() - WORKERS));
        }
    }
    if !overview.facts.is_empty() {
        line(&mut text, format_args!("\n{}", facts(&overview.facts, view.at, screen).trim_end()));
    }
    text
}

/// What the fleet is made of, and since when.
fn facts(facts: &[FactView], now: f64, screen: Screen) -> String {
    let mut table = Table::new(&[Column::text("FLEET"), Column::long("IS"), Column::number("SINCE")]);
    for fact in facts {
        let style = if fact.well { PLAIN } else { WARN };
        let since = fact.since.as_ref().map_or_else(|| "-".to_owned(), |since| ago(since, now));
        table.row([(fact.name.to_owned(), PLAIN), (fact.value.clone(), style), (since, PLAIN)]);
    }
    table.render(screen)
}

fn head(text: &mut String, overview: &Overview, every: Option<Duration>) {
    let style = terminal::verdict_style(overview.verdict).bold();
    let verdict = styled(style, overview.verdict.name().to_uppercase());
    let when = match every {
        Some(every) => format!("{}, every {}", overview.generated_at, span(every.as_secs_f64())),
        None => overview.generated_at.clone(),
    };
    line(text, format_args!("{verdict}  {}", styled(FAINT, when)));
}

fn reasons(text: &mut String, overview: &Overview, screen: Screen) {
    let style = match overview.verdict {
        Verdict::Healthy => PLAIN,
        Verdict::Degraded => BAD,
        Verdict::Attention | Verdict::Behind | Verdict::Unknown => WARN,
    };
    for (at, reason) in overview.reasons.iter().enumerate() {
        // The worst comes first; what follows may be worth knowing and no more.
        let style = if at == 0 { style } else { PLAIN };
        line(
            text,
            format_args!("{} {}", styled(style, "-"), wrap(&printable(reason), screen.text_width(), 2)),
        );
    }
    for action in &overview.to_do {
        line(
            text,
            format_args!("{} {}", styled(HEAD, ">"), wrap(&printable(action), screen.text_width(), 2)),
        );
    }
}

fn figures(text: &mut String, view: &FleetView, overview: &Overview, screen: Screen) {
    let states: Vec<String> = overview
        .tenants
        .by_state
        .iter()
        .map(|(state, tenants)| (StateView::from(state), *tenants))
        .chain([
            (StateView::Unserved, overview.tenants.unserved),
            (StateView::NotInRollout, overview.tenants.not_in_rollout),
        ])
        .filter(|(_, tenants)| *tenants > 0)
        .map(|(state, tenants)| {
            styled(terminal::state_style(&state), format_args!("{} {state}", count(tenants as u64)))
        })
        .collect();
    let unknown = match overview.tenants.unknown {
        0 => None,
        tenants => Some(styled(WARN, format_args!("{} unknown", count(tenants as u64)))),
    };
    let states: Vec<String> = states.into_iter().chain(unknown).collect();
    let lag = |seconds| optional(seconds, span);
    let backlog = &overview.backlog;
    let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), count);
    let seconds = |seconds: Option<f64>| seconds.map_or_else(|| "?".to_owned(), span);
    let as_of = backlog.age_seconds.map(|age| format!(", as of {} ago", span(age))).unwrap_or_default();
    let eta = backlog.eta_seconds.map(|eta| format!(", gone in about {}", span(eta))).unwrap_or_default();
    let mut row = |name: &str, value: std::fmt::Arguments<'_>| {
        // What another program reads stays in one line.
        let width = screen.width.unwrap_or(usize::MAX);
        let value = wrap(&value.to_string(), width, 12);
        line(text, format_args!("{}  {value}", styled(HEAD, format_args!("{name:<10}"))));
    };
    if overview.tenants.total == 0 && !view.listed {
        row("tenants", format_args!("unknown"));
    } else {
        row("tenants", format_args!("{}: {}", count(overview.tenants.total as u64), states.join(", ")));
    }
    if !overview.rollout.is_configured
        || overview.tenants.not_in_rollout > 0
        || overview.rollout.problem.is_some()
    {
        row("rollout", format_args!("{}", printable(&rollout::in_force(&overview.rollout))));
    }
    row(
        "backlog",
        format_args!(
            "{} due, the oldest for {}; {} held, {} scheduled in all{as_of}{eta}{}",
            number(backlog.due),
            seconds(backlog.oldest_due_age_seconds),
            number(backlog.leased),
            number(backlog.scheduled),
            match backlog.unknown_tenants {
                0 => String::new(),
                tenants => format!("; unknown of {} tenants", count(tenants as u64)),
            }
        ),
    );
    row(
        "exposed",
        format_args!(
            "{} balances are in Redis only, the oldest for {}{as_of}",
            number(backlog.scheduled),
            seconds(backlog.exposure_age_seconds),
        ),
    );
    row(
        "exposure",
        format_args!(
            "p99 of the last hour {}, objective {}",
            optional(backlog.exposure_p99_seconds, span),
            span(overview.settings.exposure_objective_seconds),
        ),
    );
    row(
        "written",
        format_args!(
            "{} rows/s; lag p50 {}, p99 {}",
            rate(overview.rates.rows_per_second),
            lag(overview.lag.p50_seconds),
            lag(overview.lag.p99_seconds)
        ),
    );
    row(
        "aside",
        format_args!(
            "{} in quarantine{}, {} expired; shortest life {}{as_of}",
            number(overview.quarantined),
            match overview.acknowledged {
                0 => String::new(),
                entries => format!(" ({} acknowledged)", count(entries)),
            },
            count(overview.expired_total),
            optional(overview.shortest_life_seconds, span)
        ),
    );
    row("ledger", format_args!("{}", queues::of_fleet(&overview.queues, view.at)));
    if let Some(found) = &overview.neighbour {
        row("neighbour", format_args!("{}", neighbour::of_fleet(found)));
    }
    if let Some(found) = &overview.shadow {
        for (name, text) in shadow::of_fleet(found) {
            row(name, format_args!("{text}"));
        }
    }
    let redis = match overview.redis {
        "ok" => "redis ok".to_owned(),
        "refuses_writes" => styled(BAD, "redis refuses writes"),
        other => styled(BAD, format_args!("redis {other}")),
    };
    row(
        "workers",
        format_args!(
            "{} live{}{}, {} collector restarts; {redis}",
            overview.workers.live,
            match view.shadows.len() {
                0 => String::new(),
                shadows => format!(" and {shadows} that only look"),
            },
            match overview.workers.last_known {
                0 => String::new(),
                silent => format!(", {silent} as last reported"),
            },
            count(overview.restarts_total)
        ),
    );
    let live = view.workers.iter().filter(|worker| worker.live);
    if let Some(said) = in_one_line(&fleet_connections(live.flat_map(|worker| &worker.postgres))) {
        row("postgres", format_args!("{}", printable(&said)));
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing into a String can't fail.
    let _ = writeln!(text, "{content}");
}
