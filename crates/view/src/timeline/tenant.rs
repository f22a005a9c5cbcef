//! A tenant's timeline: entries of its workers, actions of operators, starts and ends of workers, and what is not recorded.

use std::collections::{BTreeMap, HashMap};

use balance_sync_domain::{Reported, names};
use balance_sync_engine::timeline::{Entry, Period, STARTS_WITHIN, unrecorded};
use balance_sync_fleet::status::{ReportedReason, ReportedState};
use balance_sync_schedule::timelines::MOST_ENTRIES;
use serde::{Deserialize, Serialize};

use super::{at_ms, foreign};
use crate::actions::{ActionView, OutcomeView};

/// Actions that are shown of a tenant, the last ones.
pub(super) const MOST_ACTIONS: usize = 200;

names! {
    /// What an entry is about.
    pub enum TimelineKind {
        /// The state, or the reason for it, has changed.
        State = "state",
        /// A worker that stood by works the tenant.
        TookOver = "took_over",
        /// The collector had ended by itself and was started again.
        Restarted = "restarted",
        /// The worker doesn't serve the tenant any more.
        Left = "left",
        /// An operator did something.
        Action = "action",
        /// A worker was started, with this version.
        WorkerStarted = "worker_started",
        /// A worker has stopped in an orderly way.
        WorkerEnded = "worker_ended",
        /// A worker was heard of for the last time: killed, or cut off from Redis.
        WorkerLost = "worker_lost",
        /// What happened until the end of this time is not recorded.
        NotRecorded = "not_recorded",
        /// There were more entries until the end of this time than are kept.
        Omitted = "omitted",
    }
}

/// An entry as it stands in Redis.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "w")]
    pub worker: &'a str,
    #[serde(flatten)]
    pub entry: &'a Entry,
}

/// The same, read.
#[derive(Deserialize)]
struct ReadLine {
    #[serde(rename = "w", default)]
    worker: String,
    #[serde(flatten)]
    entry: Entry,
}

/// The timeline of a tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimelineView {
    /// Whose.
    pub tenant: String,
    /// Since when.
    pub since: String,
    /// Until when.
    pub until: String,
    /// Oldest first.
    pub entries: Vec<TimelineEntry>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimelineEntry {
    /// When, or when the first of several changes was.
    pub at: String,
    /// When the last of several changes was, or until when nothing is known.
    pub until: Option<String>,
    /// What it is about; another release may know further kinds.
    pub kind: Reported<TimelineKind>,
    /// The worker that saw it, or that it is about.
    pub worker: Option<String>,
    /// The state after it.
    pub state: Option<ReportedState>,
    /// Why, when degraded.
    pub reason: Option<ReportedReason>,
    /// In words.
    pub detail: Option<String>,
    /// Only some of the balances are concerned.
    pub partial: bool,
    /// Changes in this entry: more than one where they were too many to be kept one by one.
    pub changes: u64,
    /// Reasons among several changes.
    pub reasons: Vec<ReportedReason>,
    /// Version of a worker that was started.
    pub version: Option<String>,
    /// Who, of an action.
    pub by: Option<String>,
    /// What was done.
    pub action: Option<String>,
    /// Why it was done.
    pub note: Option<String>,
    /// What became of it.
    pub outcomes: Vec<OutcomeView>,
}

impl TimelineEntry {
    /// Whether it is about the tenant, and not about all that its worker serves.
    #[must_use]
    pub fn is_of_tenant(&self) -> bool {
        use TimelineKind::{NotRecorded, Omitted, WorkerEnded, WorkerLost, WorkerStarted};
        let of_all = [NotRecorded, Omitted, WorkerEnded, WorkerLost, WorkerStarted];
        !self.kind.known().is_some_and(|kind| of_all.contains(&kind))
    }

    fn new(at: u64, kind: impl Into<Reported<TimelineKind>>) -> Self {
        Self {
            at: at_ms(at),
            until: None,
            kind: kind.into(),
            worker: None,
            state: None,
            reason: None,
            detail: None,
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

    fn recorded(line: ReadLine) -> Self {
        let ReadLine { worker, entry } = line;
        let until = entry.until();
        let kind = match entry.kind {
            Reported::Known(kind) => Reported::from(kind.as_str()),
            // It is escaped already.
            Reported::Other(name) => Reported::Other(name),
        };
        Self {
            until: (until > entry.at).then(|| at_ms(until)),
            worker: Some(foreign(&worker)),
            state: Some(entry.state),
            reason: entry.reason,
            detail: entry.detail.as_deref().map(foreign),
            partial: entry.partial,
            changes: entry.changes,
            reasons: entry.reasons,
            ..Self::new(entry.at, kind)
        }
    }

    fn action(at: u64, action: ActionView) -> Self {
        Self {
            worker: action.worker,
            by: Some(action.by),
            action: Some(action.what),
            note: action.note,
            outcomes: action.outcomes,
            ..Self::new(at, TimelineKind::Action)
        }
    }

    /// Of a worker.
    fn of_worker(at: u64, kind: TimelineKind, worker: &str) -> Self {
        Self { worker: Some(foreign(worker)), ..Self::new(at, kind) }
    }

    fn missing(from: u64, to: u64, worker: Option<&str>, detail: &str) -> Self {
        Self {
            until: Some(at_ms(to)),
            worker: worker.map(foreign),
            detail: Some(detail.to_owned()),
            ..Self::new(from, TimelineKind::NotRecorded)
        }
    }
}

/// What a timeline is put together from. Times are milliseconds since 1970.
pub(super) struct Sources {
    pub since: u64,
    pub now: u64,
    /// The tenant's entries, as text.
    pub entries: Vec<String>,
    /// Actions on the tenant.
    pub actions: Vec<(u64, ActionView)>,
    /// Before this time actions may be missing.
    pub actions_from: Option<u64>,
    /// By run, as text.
    pub periods: HashMap<String, String>,
}

/// Puts a timeline together; entries are in order of time.
pub(super) fn put_together(tenant: &str, sources: Sources) -> TimelineView {
    let Sources { since, now, entries, actions, actions_from, periods } = sources;
    let mut all: Vec<(u64, TimelineEntry)> = Vec::new();
    let is_full = entries.len() >= MOST_ENTRIES;
    let mut first = None;
    for line in entries.iter().filter_map(|text| serde_json::from_str::<ReadLine>(text).ok()) {
        let at = line.entry.at;
        first = Some(first.map_or(at, |first: u64| first.min(at)));
        all.push((at, TimelineEntry::recorded(line)));
    }
    if let Some(first) = first.filter(|first| is_full && *first > since) {
        let omitted = TimelineEntry {
            until: Some(at_ms(first)),
            detail: Some("there were more entries than are kept".to_owned()),
            ..TimelineEntry::new(since, TimelineKind::Omitted)
        };
        all.push((since, omitted));
    }
    if let Some(from) = actions_from.filter(|from| *from > since) {
        let detail = "actions of operators: the log holds the last ten thousand entries";
        all.push((since, TimelineEntry::missing(since, from, None, detail)));
    }
    let skipped = actions.len().saturating_sub(MOST_ACTIONS);
    if let Some((at, _)) = actions.get(skipped).filter(|_| skipped > 0) {
        let omitted = TimelineEntry {
            until: Some(at_ms(*at)),
            detail: Some(format!("{skipped} actions of operators, see the log of actions")),
            ..TimelineEntry::new(since, TimelineKind::Omitted)
        };
        all.push((since, omitted));
    }
    all.extend(actions.into_iter().skip(skipped).map(|(at, action)| (at, TimelineEntry::action(at, action))));
    let periods: Vec<Period> = periods.values().filter_map(|text| serde_json::from_str(text).ok()).collect();
    let gaps = unrecorded(&periods, since, now);
    for (from, to) in gaps.iter().copied() {
        let detail = "no worker has recorded what happened";
        all.push((from, TimelineEntry::missing(from, to, None, detail)));
    }
    of_workers(&periods, since, now, &gaps, &mut all);
    // Those at one time: as they were added, what is recorded first.
    all.sort_by_key(|(at, _)| *at);
    TimelineView {
        tenant: tenant.to_owned(),
        since: at_ms(since),
        until: at_ms(now),
        entries: all.into_iter().map(|(_, entry)| entry).collect(),
    }
}

/// Adds starts and ends of workers, and what is missing of what each has seen.
fn of_workers(
    periods: &[Period],
    since: u64,
    now: u64,
    gaps: &[(u64, u64)],
    all: &mut Vec<(u64, TimelineEntry)>,
) {
    // What no worker has recorded is said already.
    let is_said = |from: u64, to: u64| gaps.iter().any(|gap| gap.0 <= from && to <= gap.1);
    let mut processes: BTreeMap<(&str, u64), Vec<&Period>> = BTreeMap::new();
    for period in periods {
        processes.entry((&period.worker, period.started)).or_default().push(period);
    }
    for ((worker, started), mut runs) in processes {
        runs.sort_by_key(|run| run.from);
        let Some(last) = runs.iter().max_by_key(|run| run.to) else { continue };
        if started >= since {
            let detail = last.shadow.then(|| "a shadow: it only looks".to_owned());
            let version = Some(foreign(&last.version));
            let entry = TimelineEntry::of_worker(started, TimelineKind::WorkerStarted, worker);
            all.push((started, TimelineEntry { version, detail, ..entry }));
        }
        if last.to >= since && last.ended {
            all.push((last.to, TimelineEntry::of_worker(last.to, TimelineKind::WorkerEnded, worker)));
        } else if last.to >= since && !last.goes_on(now) {
            let detail =
                Some("killed, or cut off from Redis: what it saw after that is not known".to_owned());
            let entry = TimelineEntry::of_worker(last.to, TimelineKind::WorkerLost, worker);
            all.push((last.to, TimelineEntry { detail, ..entry }));
        }
        if last.shadow {
            continue;
        }
        let mut known = started;
        for run in runs {
            let from = known.max(since);
            if run.from > from + STARTS_WITHIN && !is_said(from, run.from) {
                let detail = "what this worker had recorded is lost, or it did not record";
                all.push((from, TimelineEntry::missing(from, run.from, Some(worker), detail)));
            }
            known = known.max(run.to);
            for (from, to) in run.gaps.iter().copied().filter(|(_, to)| *to > since) {
                let from = from.max(since);
                if is_said(from, to) {
                    continue;
                }
                let detail = "more entries waited for Redis than are kept";
                all.push((from, TimelineEntry::missing(from, to, Some(worker), detail)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const HOUR: u64 = 3_600_000;
    const NOW: u64 = 1_700_000_000_000;

    fn sources(entries: &[&str], periods: &[Period]) -> Sources {
        Sources {
            since: NOW - 24 * HOUR,
            now: NOW,
            entries: entries.iter().map(|text| (*text).to_owned()).collect(),
            actions: Vec::new(),
            actions_from: None,
            periods: periods
                .iter()
                .enumerate()
                .map(|(n, period)| (n.to_string(), serde_json::to_string(period).unwrap()))
                .collect(),
        }
    }

    fn period(worker: &str, started: u64, from: u64, to: u64) -> Period {
        Period { worker: worker.to_owned(), version: "9".to_owned(), started, from, to, ..Period::default() }
    }

    fn shown(sources: Sources) -> Vec<String> {
        let view = put_together("t", sources);
        assert!(view.entries.windows(2).all(|pair| pair[0].at <= pair[1].at), "in order");
        let text = |entry: &TimelineEntry| {
            let worker = entry.worker.as_deref().unwrap_or("-");
            let until = entry.until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
            format!("{} {} {worker}{until}", &entry.at[..19], entry.kind)
        };
        view.entries.iter().map(text).collect()
    }

    #[test]
    fn what_no_worker_has_recorded_is_an_entry_and_a_killed_worker_is_one() {
        let long = period("a", NOW - 30 * HOUR, NOW - 30 * HOUR, NOW - 5 * HOUR);
        let next = period("b", NOW - 4 * HOUR, NOW - 4 * HOUR, NOW - 5_000);
        assert_eq!(
            shown(sources(&[], &[long.clone(), next.clone()])),
            [
                "2023-11-14T17:13:20 not_recorded - until 2023-11-14T18:13:20.000Z",
                "2023-11-14T17:13:20 worker_lost a",
                "2023-11-14T18:13:20 worker_started b",
            ]
        );
        // In an orderly way, and at once.
        let long = Period { ended: true, ..long };
        let next = Period { started: NOW - 5 * HOUR, from: NOW - 5 * HOUR, ..next };
        assert_eq!(
            shown(sources(&[], &[long, next])),
            ["2023-11-14T17:13:20 worker_ended a", "2023-11-14T17:13:20 worker_started b"]
        );
        assert_eq!(
            shown(sources(&[], &[])),
            ["2023-11-13T22:13:20 not_recorded - until 2023-11-14T22:13:20.000Z"]
        );
    }

    #[test]
    fn what_a_worker_has_missed_is_shown_although_others_have_recorded() {
        let whole = period("a", NOW - 30 * HOUR, NOW - 30 * HOUR, NOW);
        let mut other = period("b", NOW - 30 * HOUR, NOW - 30 * HOUR, NOW);
        other.miss(NOW - 3 * HOUR, NOW - 2 * HOUR);
        let missed = "2023-11-14T19:13:20 not_recorded b until 2023-11-14T20:13:20.000Z";
        assert_eq!(shown(sources(&[], &[whole.clone(), other])), [missed]);
        // Redis had lost what it had recorded.
        let lost = period("b", NOW - 3 * HOUR, NOW - 2 * HOUR, NOW);
        assert_eq!(shown(sources(&[], &[whole, lost])), ["2023-11-14T19:13:20 worker_started b", missed]);
    }

    #[test]
    fn entries_of_other_releases_are_shown_as_they_are_and_what_is_no_entry_is_not() {
        let whole = period("a", NOW - 30 * HOUR, NOW - 30 * HOUR, NOW);
        let at = NOW - HOUR;
        let foreign = format!(
            r#"{{"w":"b\u001b[31m","a":{at},"k":"teleported\u0007","s":"levitating","d":"\u202eevil","z":[1]}}"#
        );
        let entries = [foreign.as_str(), "{}", "no json"];
        let view = put_together("t", sources(&entries, &[whole]));
        let [entry] = view.entries.as_slice() else { panic!("{view:?}") };
        assert_eq!(entry.kind.as_str(), "teleported\\u{7}");
        assert_eq!(entry.state.as_ref().unwrap().as_str(), "levitating");
        let text = serde_json::to_string(&view).unwrap();
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
    }

    #[test]
    fn that_there_was_more_than_is_kept_is_an_entry() {
        let whole = period("a", NOW - 30 * HOUR, NOW - 30 * HOUR, NOW);
        let texts: Vec<String> = (0..MOST_ENTRIES as u64)
            .map(|n| format!(r#"{{"a":{},"k":"state","s":"idle"}}"#, NOW - HOUR + n))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let view = put_together("t", sources(&texts, std::slice::from_ref(&whole)));
        assert_eq!(view.entries[0].kind, TimelineKind::Omitted);
        assert_eq!(view.entries[0].until.as_deref(), Some("2023-11-14T21:13:20.000Z"));
        let view = put_together("t", sources(&texts[1..], &[whole]));
        assert_eq!(view.entries[0].kind, TimelineKind::State);
    }
}
