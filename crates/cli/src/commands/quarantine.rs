//! `quarantine`: what could not be synced, why, and what to do about it.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use anyhow::bail;
use balance_sync_domain::{QuarantineReason, printable};
use balance_sync_schedule::{Link, Loss, Quarantined, Retried, Schedule, ScheduleError};
use balance_sync_tenants::Tenant;
use balance_sync_view::{
    actions::{Action, ActionOutcome},
    rows::at,
};
use serde_json::{Value, json};

use super::actions;
use crate::{
    EXIT_OK,
    args::{QuarantineChange, QuarantineCommand, QuarantineFilter},
    terminal::{self, Cell, csv},
    wiring,
};

/// There are entries, or some of those named are not there.
const EXIT_SOME: u8 = 1;

/// The command.
///
/// # Errors
/// When tenants or Redis can't be asked.
pub(crate) async fn quarantine(file: Option<&Path>, command: QuarantineCommand) -> anyhow::Result<u8> {
    match command {
        QuarantineCommand::List { filter, csv } => {
            let found = find(file, &filter).await?;
            match (csv, filter.json) {
                (true, _) => terminal::print_csv(&as_csv(&found))?,
                (false, as_json) => list(&found, as_json)?,
            }
            Ok(if found.is_empty() { EXIT_OK } else { EXIT_SOME })
        }
        QuarantineCommand::Show { member, filter } => {
            let found = find(file, &filter).await?;
            let Some(found) = found.iter().find(|found| found.is_named(&member)) else {
                bail!("{}: not in quarantine", printable(&member));
            };
            if filter.json {
                println!("{}", found.json(true));
            } else {
                found.print();
            }
            Ok(EXIT_OK)
        }
        QuarantineCommand::Retry(change) => apply(file, &change, Action::QuarantineRetry).await,
        QuarantineCommand::Drop(change) => apply(file, &change, Action::QuarantineDrop).await,
    }
}

struct Found {
    tenant: Tenant,
    schedule: Schedule,
    quarantined: Quarantined,
}

impl Found {
    fn name(&self) -> String {
        String::from_utf8_lossy(&self.quarantined.member).into_owned()
    }

    /// Whether a command names it, as it is or as `list` shows it.
    fn is_named(&self, given: &str) -> bool {
        let name = self.name();
        name == given || printable(&name) == given
    }

    fn json(&self, with_value: bool) -> Value {
        let entry = &self.quarantined.entry;
        let mut json = json!({
            "tenant": self.tenant.label(), "member": self.name(), "reason": entry.reason, "detail": entry.detail,
            "first_at": entry.first_at, "last_at": entry.last_at, "count": entry.count,
        });
        if let Some(loss) = &entry.loss {
            json["loss"] = json!(loss);
        }
        if with_value {
            json["value"] = json!(entry.value);
            json["truncated"] = json!(entry.truncated);
        }
        json
    }

    fn print(&self) {
        let entry = &self.quarantined.entry;
        let line = |name: &str, text: &str| println!("{name}{}", printable(text));
        line("tenant     ", self.tenant.label());
        line("member     ", &self.name());
        line("reason     ", entry.reason.as_str());
        line("detail     ", &entry.detail);
        line("first at   ", &format!("{} (Redis time, seconds)", entry.first_at));
        line("last at    ", &entry.last_at);
        println!("count      {}", entry.count);
        match &entry.value {
            Some(value) => line(if entry.truncated { "value (cut)     " } else { "value     " }, value),
            None => println!("value      none, it had expired"),
        }
        if let Some(loss) = &entry.loss {
            print_loss(loss);
        }
    }
}

/// An amount as it is shown.
fn known(amount: Option<&str>) -> String {
    amount.map_or_else(|| "not known".to_owned(), |amount| printable(amount).into_owned())
}

fn print_loss(loss: &Loss) {
    let text = |value: &Option<String>| known(value.as_deref());
    let number = |value: Option<i64>| value.map_or_else(|| "not known".to_owned(), |n| n.to_string());
    if loss.forked {
        return print_fork(loss);
    }
    println!("loss       {}", if loss.confirmed { "confirmed" } else { "unconfirmed" });
    println!("  version  {}, the row had {}", number(loss.version), number(loss.row_version));
    if loss.version.is_some() {
        let doubt = if loss.in_doubt { " (in doubt)" } else { "" };
        println!("  available {}{doubt}", text(&loss.available));
        println!("  on hold   {}{doubt}", text(&loss.on_hold));
        println!("  overdraft {}{doubt}", text(&loss.overdraft_used));
    }
    if let Some(at) = &loss.later_at {
        println!(
            "  a later mutation was written at {} (Redis time): the balance may have forked",
            printable(at)
        );
    }
}

fn print_fork(loss: &Loss) {
    let number = |value: Option<i64>| value.map_or_else(|| "not known".to_owned(), |n| n.to_string());
    println!("fork       in Redis, and in the row");
    println!("  version  {}, {}", number(loss.version), number(loss.row_version));
    for (name, redis, row) in [
        ("available", &loss.available, &loss.row_available),
        ("on hold  ", &loss.on_hold, &loss.row_on_hold),
        ("overdraft", &loss.overdraft_used, &loss.row_overdraft_used),
    ] {
        println!("  {name} {}, {}", known(redis.as_deref()), known(row.as_deref()));
    }
    if let Some(at) = &loss.later_at {
        println!("  a later mutation was written at {} (Redis time)", printable(at));
    }
}

async fn find(file: Option<&Path>, filter: &QuarantineFilter) -> anyhow::Result<Vec<Found>> {
    let config = super::load_config(file)?;
    let directory = wiring::directory(&config)?;
    let link = Link::new(&config.redis.link)?;
    let options = Arc::new(wiring::schedule_options(&config));
    let mut found = Vec::new();
    let mut others = BTreeSet::new();
    for tenant in super::chosen_tenants(directory.as_ref(), &filter.tenant).await? {
        for space in tenant.key_spaces(config.tenants.key_form) {
            let schedule = Schedule::new(link.clone(), space, Arc::clone(&options));
            for quarantined in schedule.quarantine_list().await? {
                let reason = &quarantined.entry.reason;
                if reason.known().is_none() {
                    others.insert(reason.to_string());
                }
                if filter.reason.as_ref().is_none_or(|wanted| wanted == reason) {
                    found.push(Found { tenant: tenant.clone(), schedule: schedule.clone(), quarantined });
                }
            }
        }
    }
    // One of a later release is right where an entry has it.
    if let Some(reason) = &filter.reason
        && reason.known().is_none()
        && !others.contains(reason.as_str())
    {
        let known = QuarantineReason::NAMES.into_iter().chain(others.iter().map(String::as_str));
        let known = known.collect::<Vec<_>>().join(", ");
        bail!("--reason {}: must be one of {known}", printable(reason.as_str()));
    }
    Ok(found)
}

fn list(found: &[Found], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let entries: Vec<Value> = found.iter().map(|found| found.json(false)).collect();
        println!("{}", serde_json::to_string(&entries)?);
        return Ok(());
    }
    for entry in found {
        let Quarantined { entry: listed, .. } = &entry.quarantined;
        println!(
            "{}  {}  {} times since {}  {}\n    {}",
            printable(entry.tenant.label()),
            printable(listed.reason.as_str()),
            listed.count,
            time(&listed.first_at),
            printable(&entry.name()),
            printable(&listed.detail)
        );
    }
    println!("quarantine: {} balances", found.len());
    Ok(())
}

/// A time of an entry, which is in seconds.
fn time(seconds: &str) -> String {
    seconds.parse().map_or_else(|_| printable(seconds).into_owned(), at)
}

fn as_csv(found: &[Found]) -> String {
    let titles = [
        "tenant",
        "member",
        "reason",
        "detail",
        "first_at",
        "last_at",
        "count",
        "loss",
        "version",
        "row_version",
    ];
    let texts: Vec<(String, (String, String))> = found
        .iter()
        .map(|found| {
            let entry = &found.quarantined.entry;
            (found.name(), (time(&entry.first_at), time(&entry.last_at)))
        })
        .collect();
    let rows = found.iter().zip(&texts).map(|(found, (name, times))| -> [Cell<'_>; 10] {
        let entry = &found.quarantined.entry;
        let loss = entry.loss.as_ref();
        let number =
            |version: Option<i64>| version.map_or(Cell::Empty, |version| Cell::Own(version.to_string()));
        [
            found.tenant.label().into(),
            name.as_str().into(),
            entry.reason.as_str().into(),
            entry.detail.as_str().into(),
            times.0.as_str().into(),
            times.1.as_str().into(),
            entry.count.into(),
            loss.map(|loss| match (loss.forked, loss.confirmed) {
                (true, _) => "forked",
                (false, true) => "confirmed",
                (false, false) => "unconfirmed",
            })
            .into(),
            number(loss.and_then(|loss| loss.version)),
            number(loss.and_then(|loss| loss.row_version)),
        ]
    });
    csv(titles, rows)
}

async fn apply(file: Option<&Path>, change: &QuarantineChange, what: Action) -> anyhow::Result<u8> {
    let note = actions::note(change.note.as_deref())?;
    let found = find(file, &change.filter).await?;
    let chosen: Vec<&Found> = found
        .iter()
        .filter(|found| change.all || change.member.iter().any(|member| found.is_named(member)))
        .collect();
    let absent = if change.all { 0 } else { change.member.len().saturating_sub(chosen.len()) };
    // What is asked for is written down before it is done: should this be broken off, that is seen.
    let operator = wiring::operator(&super::load_config(file)?)?;
    let one = chosen.first().map(|found| &found.tenant);
    let one = one.filter(|tenant| chosen.iter().all(|found| found.tenant == **tenant));
    let action = match chosen.is_empty() {
        true => None,
        false => Some(operator.own(what, one, &actions::who(), note).await?),
    };
    let done = carry_out(&chosen, what).await;
    if let Some(action) = action {
        let (ended, detail) = match &done {
            Ok(report) => (ActionOutcome::Done, summary(*report, absent)),
            Err(error) => (ActionOutcome::Failed, error.to_string()),
        };
        if let Err(error) = operator.outcome(&action, &actions::who(), ended, &detail).await {
            eprintln!("balance-sync: what became of it could not be written down: {error}");
        }
    }
    let (report, command) = (done?, if what == Action::QuarantineRetry { "retry" } else { "drop" });
    if change.filter.json {
        println!(
            "{}",
            json!({"command": command, "done": report.done, "listed": report.listed, "absent": absent})
        );
    } else {
        println!("quarantine {command}: {}", summary(report, absent));
    }
    Ok(if absent == 0 { EXIT_OK } else { EXIT_SOME })
}

fn summary(report: Retried, absent: usize) -> String {
    let listed = match report.listed {
        0 => String::new(),
        listed => format!(" ({listed} of them stay listed as lost until they are dropped)"),
    };
    format!("{} done{listed}, {absent} not in quarantine", report.done)
}

async fn carry_out(chosen: &[&Found], what: Action) -> Result<Retried, ScheduleError> {
    let mut done = Retried::default();
    for found in chosen {
        let member = [found.quarantined.member.as_slice()];
        done += match what {
            Action::QuarantineRetry => found.schedule.quarantine_retry(&member).await?,
            _ => Retried { done: found.schedule.quarantine_drop(&member).await?, listed: 0 },
        };
    }
    Ok(done)
}
