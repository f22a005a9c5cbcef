//! `timeline` and `history`: what happened to a tenant, and how the fleet was, within the last day.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anstyle::Style;
use anyhow::{Context, bail};
use balance_sync_domain::{TenantId, printable};
use balance_sync_engine::state::{Condition, TenantState};
use balance_sync_tenants::Tenant;
use balance_sync_view::{
    actions::ActionOutcome,
    timeline::{HistoryMinute, HistoryView, TimelineEntry, TimelineKind, TimelineView},
};

use crate::{
    EXIT_OK,
    args::{HistoryArgs, TimelineArgs},
    terminal::{
        self, BAD, Column, FAINT, GOOD, PLAIN, Screen, Table, WARN, count, optional, rate, span, styled, wrap,
    },
    wiring,
};

/// Nothing is recorded of the time.
const EXIT_UNKNOWN: u8 = 2;
/// Columns of a time without milliseconds, and a gap.
const TIME: usize = 22;

/// Prints what happened to a tenant.
///
/// # Errors
/// When the configuration is wrong, there is no such tenant, or Redis can't be read.
pub(crate) async fn timeline(file: Option<&Path>, args: TimelineArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let view = wiring::reader(&config)?.view().await;
    // One that is not listed any more may have a timeline all the same.
    let listed = view.tenant(&args.tenant);
    let is_listed = listed.is_some();
    let Some(tenant) = listed.or_else(|| TenantId::parse(&args.tenant).ok().map(Tenant::Id)) else {
        bail!("{}: this is not the id of a tenant", printable(&args.tenant));
    };
    let reader = wiring::timelines(&config)?;
    let timeline = reader.tenant(&tenant, args.since).await.context("reading the timeline")?;
    if !is_listed && !timeline.entries.iter().any(TimelineEntry::is_of_tenant) {
        match &view.redis_error {
            Some(error) => bail!("{}: not known, as Redis can't be asked: {error}", printable(&args.tenant)),
            None => bail!("{}: no such tenant is listed, and nothing is recorded", printable(&args.tenant)),
        }
    }
    let text = match args.json {
        true => format!("{}\n", serde_json::to_string(&timeline)?),
        false => lines(&timeline, Screen::of_stdout()),
    };
    terminal::print(&text)?;
    Ok(EXIT_OK)
}

/// A time without its milliseconds.
fn second(time: &str) -> String {
    format!("{}Z", time.get(..19).unwrap_or(time))
}

fn lines(timeline: &TimelineView, screen: Screen) -> String {
    let mut text = format!(
        "{}: from {} to {}\n",
        printable(&timeline.tenant),
        second(&timeline.since),
        second(&timeline.until)
    );
    for entry in &timeline.entries {
        let (style, words) = words(entry);
        push_line(&mut text, &entry.at, style, &words, screen);
    }
    if timeline.entries.is_empty() {
        text.push_str("Recorded without a gap, and nothing has happened.\n");
    }
    text
}

/// An entry in words.
fn words(entry: &TimelineEntry) -> (Style, String) {
    let worker = entry.worker.as_deref().unwrap_or("a worker");
    let until = entry.until.as_deref().map(second).unwrap_or_default();
    let detail = entry.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
    let state = state(entry);
    match entry.kind.known() {
        _ if entry.changes > 1 && entry.kind != TimelineKind::Restarted => {
            let reasons: Vec<&str> = entry.reasons.iter().map(|reason| reason.as_str()).collect();
            let reasons =
                if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
            let changes = count(entry.changes);
            (WARN, format!("{changes} changes until {until}{reasons}, then {state}{detail} [{worker}]"))
        }
        Some(TimelineKind::State) => (state_style(entry), format!("{state}{detail} [{worker}]")),
        Some(TimelineKind::TookOver) => (state_style(entry), format!("{worker} took over: {state}{detail}")),
        Some(TimelineKind::Restarted) => {
            let times =
                if entry.changes == 1 { "once".to_owned() } else { format!("{} times", entry.changes) };
            (
                BAD,
                format!(
                    "collector ended by itself and was started again, {times}; {state}{detail} [{worker}]"
                ),
            )
        }
        Some(TimelineKind::Left) => (PLAIN, format!("{worker} doesn't serve it any more")),
        Some(TimelineKind::Action) => action(entry),
        Some(TimelineKind::WorkerStarted) => {
            let version = entry.version.as_deref().unwrap_or("unknown");
            (PLAIN, format!("worker {worker} started, version {version}{detail}"))
        }
        Some(TimelineKind::WorkerEnded) => (PLAIN, format!("worker {worker} ended in an orderly way")),
        Some(TimelineKind::WorkerLost) => (BAD, format!("worker {worker} was heard of last{detail}")),
        Some(TimelineKind::NotRecorded) => {
            let of = entry.worker.as_deref().map(|worker| format!(" by {worker}")).unwrap_or_default();
            (WARN, format!("not recorded{of} until {until}{detail}"))
        }
        Some(TimelineKind::Omitted) => (WARN, format!("left out until {until}{detail}")),
        None => (WARN, format!("{} {state}{detail} [{worker}]", entry.kind)),
    }
}

fn state(entry: &TimelineEntry) -> String {
    let name = entry.state.as_ref().map_or("", |state| state.as_str());
    let reason = entry.reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
    let partial = if entry.partial { ", some balances only" } else { "" };
    format!("{name}{reason}{partial}")
}

fn state_style(entry: &TimelineEntry) -> Style {
    match entry.state.as_ref().and_then(|state| state.known()).map(TenantState::condition) {
        Some(Condition::Failing) | None => BAD,
        Some(Condition::Paused | Condition::Changing) => WARN,
        Some(Condition::Working | Condition::Quiet) => GOOD,
    }
}

fn action(entry: &TimelineEntry) -> (Style, String) {
    let what = entry.action.as_deref().unwrap_or("an action");
    let by = entry.by.as_deref().unwrap_or("unknown");
    let note = entry.note.as_deref().map(|note| format!(" ({note})")).unwrap_or_default();
    let outcomes: Vec<String> =
        entry.outcomes.iter().map(|outcome| format!("{} {}", outcome.worker, outcome.outcome)).collect();
    let all_done = entry.outcomes.iter().all(|outcome| outcome.outcome == ActionOutcome::Done);
    let ended = if outcomes.is_empty() { "no outcome yet".to_owned() } else { outcomes.join(", ") };
    (if all_done { PLAIN } else { BAD }, format!("{what} by {by}{note}: {ended}"))
}

/// Prints how the fleet was.
///
/// # Errors
/// When the configuration is wrong, or Redis can't be read.
pub(crate) async fn history(file: Option<&Path>, args: HistoryArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let history =
        wiring::timelines(&config)?.history(args.since).await.context("reading the fleet's history")?;
    let text = match args.json {
        true => format!("{}\n", serde_json::to_string(&history)?),
        false => table(&history, args.step, Screen::of_stdout()),
    };
    terminal::print(&text)?;
    Ok(if history.minutes.is_empty() { EXIT_UNKNOWN } else { EXIT_OK })
}

fn table(history: &HistoryView, step: u64, screen: Screen) -> String {
    let minute = |time: &str| {
        let time = humantime::parse_rfc3339(time).ok()?;
        Some(time.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs() / 60)
    };
    let mut rows: BTreeMap<u64, (Vec<&HistoryMinute>, u64)> = BTreeMap::new();
    for seen in &history.minutes {
        let at = minute(&seen.at).unwrap_or_default();
        rows.entry(at / step).or_default().0.push(seen);
    }
    for gap in &history.not_recorded {
        let (from, to) = (minute(&gap.from).unwrap_or_default(), minute(&gap.to).unwrap_or_default());
        (from..to).for_each(|at| rows.entry(at / step).or_default().1 += 1);
    }
    let mut table = Table::new(&[
        Column::text("FROM"),
        Column::text("WORST"),
        Column::number("ROWS/S"),
        Column::number("P99").spare(3),
        Column::number("DUE").spare(2),
        Column::number("OLDEST"),
        Column::number("LIVE").spare(1),
        Column::number("UNKNOWN"),
    ]);
    let mut causes: Vec<(String, String)> = Vec::new();
    for (at, (seen, missing)) in rows {
        let from = humantime::format_rfc3339_seconds(
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(at * step * 60),
        );
        let unknown = if missing == 0 { "-".to_owned() } else { span(missing as f64 * 60.0) };
        let worst = seen.iter().max_by_key(|seen| seen.severity());
        let style = match worst.map(|worst| worst.verdict.as_str()) {
            Some("healthy") => GOOD,
            Some("degraded") => BAD,
            _ => WARN,
        };
        if let Some((worst, why)) = worst.and_then(|worst| Some((worst, worst.why.as_deref()?)))
            && worst.severity() > 0
        {
            causes.push((worst.at.clone(), format!("{}: {why}", worst.verdict)));
        }
        let most =
            |of: fn(&HistoryMinute) -> Option<f64>| seen.iter().filter_map(|seen| of(seen)).reduce(f64::max);
        let rows = (!seen.is_empty())
            .then(|| seen.iter().map(|seen| seen.rows_per_second).sum::<f64>() / seen.len() as f64);
        let workers = seen.iter().map(|seen| seen.workers).min();
        table.row([
            (from.to_string(), FAINT),
            (worst.map_or("not recorded", |worst| &worst.verdict).to_owned(), style),
            (optional(rows, rate), PLAIN),
            (optional(most(|seen| seen.lag_p99_seconds), span), PLAIN),
            (
                most(|seen| seen.due.map(|due| due as f64)).map_or("-".to_owned(), |due| count(due as u64)),
                PLAIN,
            ),
            (optional(most(|seen| seen.oldest_due_age_seconds), span), PLAIN),
            (workers.map_or("-".to_owned(), count), PLAIN),
            (unknown, if missing == 0 { PLAIN } else { WARN }),
        ]);
    }
    let mut text = table.render(screen);
    if !causes.is_empty() {
        text.push('\n');
    }
    for (time, cause) in causes {
        push_line(&mut text, &time, PLAIN, &cause, screen);
    }
    text
}

/// A time, and beside it what was then.
fn push_line(text: &mut String, time: &str, style: Style, words: &str, screen: Screen) {
    let shown = wrap(&printable(words), screen.text_width(), TIME);
    let mut parts = shown.lines();
    let time = styled(FAINT, second(time));
    let _ = writeln!(text, "{time}  {}", styled(style, parts.next().unwrap_or_default()));
    for part in parts {
        let _ = writeln!(text, "{}{}", " ".repeat(TIME), styled(style, part.trim_start()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use balance_sync_domain::Reported;

    use super::*;

    const NARROW: Screen = Screen { width: Some(80), height: None };

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn entry(kind: &str) -> TimelineEntry {
        TimelineEntry {
            at: "2026-11-28T10:00:00.123Z".to_owned(),
            until: None,
            kind: Reported::from(kind),
            worker: Some("w1".to_owned()),
            state: Some("degraded".into()),
            reason: Some("postgres_connection".into()),
            detail: Some("connection refused ".repeat(10)),
            partial: false,
            changes: 1,
            reasons: Vec::new(),
            version: None,
            by: None,
            action: None,
            note: None,
            outcomes: Vec::new(),
        }
    }

    #[test]
    fn lines_stay_within_the_screen_and_nothing_from_outside_acts_on_it() {
        let kinds = TimelineKind::NAMES.into_iter().chain(["teleported\u{1b}"]);
        let entries = kinds
            .map(|kind| TimelineEntry {
                by: Some("ann\u{1b}[31m".to_owned()),
                note: Some("why not ".repeat(30)),
                ..entry(kind)
            })
            .collect();
        let (since, until) = ("2026-11-27T10:00:00.000Z".to_owned(), "2026-11-28T10:00:00.000Z".to_owned());
        let timeline = TimelineView { tenant: "t".to_owned(), since, until, entries };
        let text = plain(&lines(&timeline, NARROW));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(text.starts_with("t: from 2026-11-27T10:00:00Z to 2026-11-28T10:00:00Z\n"), "{text}");
        assert!(text.contains("2026-11-28T10:00:00Z  degraded, postgres_connection: connection"), "{text}");
    }

    #[test]
    fn many_changes_are_one_line_with_their_number_and_reasons() {
        let many = TimelineEntry {
            changes: 1_800,
            until: Some("2026-11-28T10:15:00.000Z".to_owned()),
            reasons: vec!["postgres_connection".into(), "postgres_timeout".into()],
            detail: None,
            ..entry("state")
        };
        assert_eq!(
            words(&many).1,
            "1,800 changes until 2026-11-28T10:15:00Z (postgres_connection, postgres_timeout), then degraded, \
             postgres_connection [w1]"
        );
    }

    #[test]
    fn the_history_has_a_row_per_step_with_the_worst_and_what_is_unknown() {
        let minute = |at: &str, verdict: &str, due| HistoryMinute {
            at: at.to_owned(),
            verdict: verdict.to_owned(),
            why: Some("t0 can't be written".to_owned()),
            rows_per_second: 10.0,
            lag_p99_seconds: Some(0.2),
            due: Some(due),
            oldest_due_age_seconds: Some(0.0),
            workers: 2,
            by_state: BTreeMap::new(),
            unserved: 0,
        };
        let history = HistoryView {
            since: "2026-11-28T10:00:00.000Z".to_owned(),
            until: "2026-11-28T11:00:00.000Z".to_owned(),
            minutes: vec![
                minute("2026-11-28T10:00:00.000Z", "healthy", 5),
                minute("2026-11-28T10:01:00.000Z", "degraded", 7_000),
            ],
            not_recorded: vec![balance_sync_view::timeline::Gap {
                from: "2026-11-28T10:28:00.000Z".to_owned(),
                to: "2026-11-28T10:31:00.000Z".to_owned(),
            }],
        };
        let text = plain(&table(&history, 30, NARROW));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        assert!(lines[1].starts_with("2026-11-28T10:00:00Z  degraded"), "{text}");
        assert!(lines[1].contains("7,000") && lines[1].ends_with("2m00s"), "{text}");
        assert!(lines[2].starts_with("2026-11-28T10:30:00Z  not recorded"), "{text}");
        assert_eq!(lines[4], "2026-11-28T10:01:00Z  degraded: t0 can't be written");
    }
}
