//! The fleet's history by the minute: what the worker that records has seen, and how it is shown.

use std::collections::BTreeMap;

use balance_sync_fleet::status::{ReportedState, lag_quantile};
use serde::{Deserialize, Serialize};

use super::{Gap, at_ms, foreign};
use crate::{overview::Verdict, reader::FleetView};

/// Characters of a sentence that are kept.
const TEXT: usize = 160;

/// A minute as it stands in Redis: the worst that was seen in it. Short names: there are many.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Minute {
    /// Looks at the fleet.
    #[serde(rename = "n")]
    looks: u64,
    #[serde(rename = "v")]
    verdict: String,
    /// Why, the first sentence.
    #[serde(rename = "w", skip_serializing_if = "String::is_empty")]
    why: String,
    /// Rows written per second, over all looks.
    #[serde(rename = "r")]
    rows: f64,
    /// In milliseconds.
    #[serde(rename = "l", skip_serializing_if = "Option::is_none")]
    lag_p99: Option<u64>,
    #[serde(rename = "d", skip_serializing_if = "Option::is_none")]
    due: Option<u64>,
    /// In milliseconds.
    #[serde(rename = "o", skip_serializing_if = "Option::is_none")]
    oldest: Option<u64>,
    /// Live workers, at least.
    #[serde(rename = "k")]
    workers: u64,
    /// Tenants by state, at most.
    #[serde(rename = "s")]
    states: BTreeMap<ReportedState, u64>,
    /// Tenants that no live worker serves, at most.
    #[serde(rename = "u", skip_serializing_if = "is_zero")]
    unserved: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Minute {
    fn of(view: &FleetView) -> Self {
        let overview = view.overview();
        let millis = |seconds: f64| (seconds * 1e3).round() as u64;
        let states = overview.tenants.by_state.iter().filter(|(_, count)| **count > 0);
        Self {
            looks: 1,
            verdict: overview.verdict.name().to_owned(),
            why: overview.reasons.first().map(|why| why.chars().take(TEXT).collect()).unwrap_or_default(),
            rows: (overview.rates.rows_per_second * 10.0).round() / 10.0,
            lag_p99: lag_quantile(&view.rates.lags, 0.99).map(millis),
            due: overview.backlog.due,
            oldest: overview.backlog.oldest_due_age_seconds.map(millis),
            workers: overview.workers.live as u64,
            states: states.map(|(state, count)| (state.clone(), *count as u64)).collect(),
            unserved: overview.tenants.unserved as u64,
        }
    }

    /// Takes in another look at the fleet in the same minute.
    fn add(&mut self, other: Self) {
        if self.looks == 0 {
            *self = other;
            return;
        }
        let looks = self.looks.saturating_add(other.looks).max(1);
        let sum = self.rows * self.looks as f64 + other.rows * other.looks as f64;
        self.rows = (sum / looks as f64 * 10.0).round() / 10.0;
        self.looks = looks;
        if severity(&other.verdict) > severity(&self.verdict) {
            (self.verdict, self.why) = (other.verdict, other.why);
        }
        self.lag_p99 = self.lag_p99.max(other.lag_p99);
        self.due = self.due.max(other.due);
        self.oldest = self.oldest.max(other.oldest);
        self.workers = self.workers.min(other.workers);
        self.unserved = self.unserved.max(other.unserved);
        for (state, count) in other.states {
            let most = self.states.entry(state).or_default();
            *most = count.max(*most);
        }
    }
}

/// From good to bad: a failure counts more than a moment of which nothing was known, or a restart would hide it. What another release
/// says counts as the worst, as it is not known what it means.
fn severity(verdict: &str) -> usize {
    const KNOWN: [Verdict; 5] =
        [Verdict::Healthy, Verdict::Attention, Verdict::Behind, Verdict::Unknown, Verdict::Degraded];
    KNOWN.iter().position(|known| known.name() == verdict).unwrap_or(KNOWN.len())
}

/// The current minute, as the worker that records sees it.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    looks: u64,
    minute: u64,
    seen: Minute,
}

impl Keeper {
    /// Takes in a look at the fleet at this time in seconds since 1970; returns the minute and what is to be recorded of it.
    pub(crate) fn look(&mut self, now: f64, view: &FleetView) -> Option<(u64, String)> {
        self.add(now, Minute::of(view))
    }

    fn add(&mut self, now: f64, seen: Minute) -> Option<(u64, String)> {
        self.looks += 1;
        // While a fleet starts, or is replaced, no worker serves its tenants for a moment.
        if self.looks == 1 && seen.unserved > 0 {
            return None;
        }
        let minute = (now / 60.0) as u64;
        if minute != self.minute {
            (self.minute, self.seen) = (minute, Minute::default());
        }
        self.seen.add(seen);
        Some((minute, serde_json::to_string(&self.seen).unwrap_or_default()))
    }
}

/// The fleet's history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HistoryView {
    /// Since when.
    pub since: String,
    /// Until when.
    pub until: String,
    /// Oldest first; a minute of which nothing is known is missing.
    pub minutes: Vec<HistoryMinute>,
    /// Times of which nothing is known.
    pub not_recorded: Vec<Gap>,
}

/// How the fleet was in a minute: the worst that was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HistoryMinute {
    /// When it began.
    pub at: String,
    /// In one word; another release may know further ones.
    pub verdict: String,
    /// Why, the first sentence.
    pub why: Option<String>,
    /// Rows written per second.
    pub rows_per_second: f64,
    /// From a mutation to its row, what 99 of 100 stayed within.
    pub lag_p99_seconds: Option<f64>,
    /// Members due; `None` = not known.
    pub due: Option<u64>,
    /// The oldest of them.
    pub oldest_due_age_seconds: Option<f64>,
    /// Live workers, at least.
    pub workers: u64,
    /// Tenants by state, at most; the sum may be larger than the number of tenants.
    pub by_state: BTreeMap<ReportedState, u64>,
    /// Tenants that no live worker served, at most.
    pub unserved: u64,
}

impl HistoryMinute {
    fn new(minute: u64, seen: Minute) -> Self {
        let seconds = |millis: u64| millis as f64 / 1e3;
        Self {
            at: at_ms(minute * 60_000),
            verdict: foreign(&seen.verdict),
            why: Some(foreign(&seen.why)).filter(|why| !why.is_empty()),
            rows_per_second: seen.rows,
            lag_p99_seconds: seen.lag_p99.map(seconds),
            due: seen.due,
            oldest_due_age_seconds: seen.oldest.map(seconds),
            workers: seen.workers,
            by_state: seen.states,
            unserved: seen.unserved,
        }
    }

    /// How bad it is, from 0 = healthy; by its verdict.
    #[must_use]
    pub fn severity(&self) -> usize {
        severity(&self.verdict)
    }
}

impl HistoryView {
    /// Out of what is recorded by minute. Times are milliseconds since 1970.
    pub(super) fn new(recorded: &[(u64, String)], since: u64, now: u64) -> Self {
        let (first, current) = (since.div_ceil(60_000), now / 60_000);
        let mut seen: BTreeMap<u64, Minute> = BTreeMap::new();
        for (minute, text) in recorded {
            if (first..=current).contains(minute)
                && let Ok(read) = serde_json::from_str::<Minute>(text)
            {
                seen.entry(*minute).or_default().add(read);
            }
        }
        let mut not_recorded = Vec::new();
        let mut known = first;
        // The current minute may not have been looked at yet.
        for minute in seen.keys().copied().chain([current]) {
            if minute > known {
                not_recorded.push(Gap { from: at_ms(known * 60_000), to: at_ms(minute * 60_000) });
            }
            known = known.max(minute + 1);
        }
        let minutes = seen.into_iter().map(|(minute, seen)| HistoryMinute::new(minute, seen)).collect();
        Self { since: at_ms(since), until: at_ms(now), minutes, not_recorded }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NOW: u64 = 28_333_333;

    fn minute(verdict: &str) -> Minute {
        Minute { looks: 1, verdict: verdict.to_owned(), workers: 2, ..Minute::default() }
    }

    fn recorded(minutes: &[(u64, Minute)]) -> Vec<(u64, String)> {
        minutes.iter().map(|(minute, seen)| (*minute, serde_json::to_string(seen).unwrap())).collect()
    }

    fn view(minutes: &[(u64, Minute)]) -> HistoryView {
        HistoryView::new(&recorded(minutes), (NOW - 10) * 60_000, NOW * 60_000 + 30_000)
    }

    #[test]
    fn of_a_minute_the_worst_is_kept_whoever_saw_it() {
        let bad = Minute {
            why: "x".to_owned(),
            rows: 30.0,
            lag_p99: Some(900),
            due: Some(7),
            workers: 1,
            states: [(ReportedState::from("degraded"), 3)].into(),
            ..minute("degraded")
        };
        let good = Minute {
            looks: 2,
            lag_p99: Some(20),
            states: [(ReportedState::from("idle"), 5), (ReportedState::from("degraded"), 1)].into(),
            ..minute("healthy")
        };
        for order in [[bad.clone(), good.clone()], [good, bad]] {
            let view = view(&order.map(|seen| (NOW - 1, seen)));
            let [seen] = view.minutes.as_slice() else { panic!("{view:?}") };
            assert_eq!((seen.verdict.as_str(), seen.why.as_deref()), ("degraded", Some("x")));
            assert_eq!((seen.rows_per_second, seen.lag_p99_seconds), (10.0, Some(0.9)));
            assert_eq!((seen.due, seen.workers), (Some(7), 1));
            assert_eq!(seen.by_state.values().copied().collect::<Vec<_>>(), [5, 3]);
        }
    }

    #[test]
    fn a_minute_is_written_on_and_a_fleet_that_only_just_starts_is_not_recorded_as_unserved() {
        let mut keeper = Keeper::default();
        let unserved = || Minute { unserved: 2, ..minute("degraded") };
        assert_eq!(keeper.add(60.0, unserved()), None);
        let read = |kept: Option<(u64, String)>| {
            let (minute, text) = kept.unwrap();
            let seen: Minute = serde_json::from_str(&text).unwrap();
            (minute, seen.looks, seen.verdict)
        };
        assert_eq!(read(keeper.add(70.0, unserved())), (1, 1, "degraded".to_owned()));
        assert_eq!(read(keeper.add(80.0, minute("healthy"))), (1, 2, "degraded".to_owned()));
        assert_eq!(read(keeper.add(120.0, minute("healthy"))), (2, 1, "healthy".to_owned()));
    }

    #[test]
    fn minutes_without_a_record_are_gaps_but_for_the_current_one() {
        let all: Vec<(u64, Minute)> = (NOW - 10..NOW).map(|at| (at, minute("healthy"))).collect();
        assert_eq!(view(&all).not_recorded, []);
        let gap = |from: u64, to: u64| Gap { from: at_ms(from * 60_000), to: at_ms(to * 60_000) };
        assert_eq!(view(&all[2..5]).not_recorded, [gap(NOW - 10, NOW - 8), gap(NOW - 5, NOW)]);
        assert_eq!(view(&[]).not_recorded, [gap(NOW - 10, NOW)]);
    }

    /// As after each start of a fleet, for some seconds.
    #[test]
    fn a_failure_is_not_hidden_by_a_moment_in_which_nothing_was_known() {
        for order in [["degraded", "unknown"], ["unknown", "degraded"]] {
            let view = view(&order.map(|verdict| (NOW - 1, minute(verdict))));
            assert_eq!(view.minutes[0].verdict, "degraded");
        }
    }

    #[test]
    fn a_verdict_of_another_release_is_shown_as_it_is_and_counts_as_the_worst() {
        let view = view(&[(NOW, minute("sublime\u{1b}")), (NOW, minute("degraded"))]);
        assert_eq!(view.minutes[0].verdict, "sublime\\u001b");
        assert!(view.minutes[0].severity() > severity("degraded"));
    }
}
