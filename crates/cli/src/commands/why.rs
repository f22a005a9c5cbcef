//! `why`: why isn't this balance in Postgres, and what happens next?

use std::{fmt::Write as _, path::Path};

use balance_sync_domain::printable;
use balance_sync_view::why::{
    BalanceReport, PostgresView, Question, RedisView, RowState, Scheduled, Verdict, Why, WhyError, why,
};

use crate::{
    EXIT_OK,
    args::WhyArgs,
    terminal::{self, BAD, GOOD, PLAIN, Screen, WARN, optional, span, styled, wrap},
    wiring,
};

/// Postgres hasn't what Redis has.
const EXIT_NOT_THERE: u8 = 1;
/// Not known.
const EXIT_UNKNOWN: u8 = 2;

/// Prints everything about the balances that fit.
///
/// # Errors
/// When the configuration is wrong, there is no such tenant, Redis can't be asked, or nothing can be written.
pub(crate) async fn answer(file: Option<&Path>, args: WhyArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let (reader, inspector) = (wiring::reader(&config)?, wiring::inspector(&config)?);
    let question = match (args.member, args.tenant, args.alias) {
        (Some(member), ..) => Question::Member(member),
        (None, Some(tenant), Some(alias)) => Question::Balance {
            tenant,
            alias,
            key: args.key,
            organization: args.organization,
            ledger: args.ledger,
        },
        // The command line asks for either.
        (None, ..) => anyhow::bail!("give a member, or --tenant and --alias"),
    };
    let asked = why(&reader, &inspector, &question).await;
    let mut found = asked.map_err(|error| match error {
        WhyError::Redis(error) => anyhow::Error::new(error).context("Redis can't be asked"),
        other => other.into(),
    })?;
    if args.hide_amounts {
        found.hide_amounts();
    }
    let code = found.matches.iter().map(|report| exit_code(report.verdict)).max().unwrap_or(EXIT_UNKNOWN);
    if args.json {
        terminal::print(&format!("{}\n", serde_json::to_string(&found)?))?;
        return Ok(code);
    }
    let screen = Screen::of_stdout();
    let mut text = String::new();
    for report in &found.matches {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&render(report, screen));
    }
    text.push_str(&absence(&found, screen));
    terminal::print(&text)?;
    Ok(code)
}

/// What is said where nothing was found, or not all could be looked for.
fn absence(found: &Why, screen: Screen) -> String {
    let said = match (&found.unasked, found.matches.is_empty()) {
        (Some(error), true) => format!(
            "Redis knows no such balance, and the tenant's Postgres can't be asked whether it does: {error}"
        ),
        (Some(error), false) => {
            format!("There may be more: the tenant's Postgres can't be asked for the alias: {error}")
        }
        (None, true) => "no such balance in Redis, in the schedule or in Postgres".to_owned(),
        (None, false) => return String::new(),
    };
    let meant = found.meant.as_ref().map(|alias| format!("; there is {alias:?}")).unwrap_or_default();
    format!("{}\n", wrap(&format!("{said}{meant}"), screen.text_width(), 0))
}

fn exit_code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::InSync | Verdict::OnItsWay | Verdict::Ahead => EXIT_OK,
        Verdict::Behind | Verdict::Quarantined | Verdict::UnscheduledAndBehind => EXIT_NOT_THERE,
        Verdict::Unknown => EXIT_UNKNOWN,
    }
}

fn render(report: &BalanceReport, screen: Screen) -> String {
    let mut text = String::new();
    let mut say = |name: &str, value: &str| text.push_str(&terminal::entry(name, &printable(value), screen));
    let (word, style) = match report.verdict {
        Verdict::InSync => ("IN SYNC", GOOD),
        Verdict::OnItsWay => ("ON ITS WAY", GOOD),
        Verdict::Ahead => ("POSTGRES IS AHEAD", PLAIN),
        Verdict::Behind => ("BEHIND", WARN),
        Verdict::Quarantined => ("QUARANTINED", BAD),
        Verdict::UnscheduledAndBehind => ("BEHIND AND NOT SCHEDULED", BAD),
        Verdict::Unknown => ("UNKNOWN", WARN),
    };
    say("next", &report.next);
    say("tenant", &tenant(report));
    say("member", &report.member);
    say("schedule", &schedule(report));
    say("redis", &redis(&report.redis));
    say("postgres", &postgres(&report.postgres));
    if let Some(lock) = &report.lock {
        let whose = if lock.foreign { "of another kind of worker" } else { "of one of our workers" };
        say("lock", &format!("{whose}, for {} more", optional(lock.ttl_seconds, span)));
    }
    if let Some(entry) = &report.quarantine {
        let detail = entry.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
        say(
            "quarantine",
            &format!(
                "{}{detail}; {} times, from {} to {}",
                entry.reason, entry.count, entry.first_at, entry.last_at
            ),
        );
    }
    if let Some(error) = &report.last_error {
        say("last error", &format!("{} on {}: {}: {}", error.at, error.worker, error.reason, error.detail));
    }
    format!("{}{text}", terminal::entry("verdict", &styled(style.bold(), word), screen))
}

fn tenant(report: &BalanceReport) -> String {
    let state = &report.tenant_state;
    let mut text = format!("{}, {}", report.tenant, state.state);
    if let Some(reason) = &state.reason {
        let _ = write!(text, " ({reason})");
    }
    if let Some(since) = &state.since {
        let _ = write!(text, " since {since}");
    }
    if let Some(detail) = &state.detail {
        let _ = write!(text, ": {detail}");
    }
    if let Some(paused) = &state.paused {
        let note = paused.note.as_deref().map(|note| format!(": {note}")).unwrap_or_default();
        let _ = write!(text, "; paused by {} at {}{note}", paused.by, paused.at);
    }
    text
}

fn schedule(report: &BalanceReport) -> String {
    let schedule = &report.schedule;
    let time = |time: &Option<String>| time.clone().unwrap_or_else(|| "an unknown time".to_owned());
    match schedule.state {
        Scheduled::NotScheduled => "not in it".to_owned(),
        Scheduled::Due => format!("due since {}", time(&schedule.due_at)),
        Scheduled::Leased => format!("held or put off until {}", time(&schedule.leased_until)),
        Scheduled::Future => format!("due at {}", time(&schedule.due_at)),
    }
}

fn redis(shown: &RedisView) -> String {
    if !shown.present {
        return "no value".to_owned();
    }
    let version =
        shown.version.map_or_else(|| "unreadable".to_owned(), |version| format!("version {version}"));
    let life =
        shown.ttl_seconds.map_or_else(|| "without end".to_owned(), |ttl| format!("expires in {}", span(ttl)));
    let why = shown.unreadable.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let amounts = amounts([&shown.available, &shown.on_hold, &shown.overdraft_used]);
    format!("{version}{why}, {life}{amounts}")
}

fn postgres(shown: &PostgresView) -> String {
    let detail = shown.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
    match shown.state {
        RowState::Missing => "no row".to_owned(),
        RowState::Unreachable => format!("can't be asked{detail}"),
        RowState::Present | RowState::Deleted => {
            let deleted = if shown.state == RowState::Deleted { "deleted, " } else { "" };
            let version = shown.version.map_or_else(|| "?".to_owned(), |version| version.to_string());
            let written = shown.updated_at.as_deref().map(|at| format!(", written {at}")).unwrap_or_default();
            let amounts = amounts([&shown.available, &shown.on_hold, &shown.overdraft_used]);
            let other = shown.other_balance.as_deref().map(|other| format!("the row of {other:?}, "));
            format!("{}{deleted}version {version}{written}{amounts}", other.unwrap_or_default())
        }
    }
}

fn amounts(amounts: [&Option<String>; 3]) -> String {
    ["available", "on hold", "overdraft"]
        .into_iter()
        .zip(amounts)
        .filter_map(|(name, amount)| amount.as_ref().map(|amount| format!("; {name} {amount}")))
        .collect()
}
