//! What is recorded of a tenant for its timeline of the last day: few entries, however often its state changes.
//!
//! [`Tracker`] turns what one worker sees of one tenant into entries. Each change has an entry of its own as long as there are not too
//! many; beyond that changes are counted in the last entry, with when the last one was and what it led to ([`PER_DAY`] bounds both). A
//! tenant on which nothing happens has no entry.
//!
//! [`Pending`] keeps entries until they can be stored, within bounds. [`Period`] is the time of which a worker has stored what it saw;
//! [`unrecorded`] is what is left, of which nothing is known. Times are milliseconds since 1970.

use std::collections::BTreeMap;

use balance_sync_domain::{Reported, printable};
use serde::{Deserialize, Serialize};

use crate::{
    names,
    reason::{Reason, ReportedReason},
    state::{ReportedState, TenantState},
};

/// A day, in milliseconds.
pub const DAY: u64 = 24 * 60 * 60 * 1000;
/// Changes in a row that have an entry of their own.
pub const BURST: u8 = 8;
/// Time after which one more change has an entry of its own.
pub const REFILL: u64 = 15 * 60 * 1000;
/// Entries of one tenant by one worker within 24 hours, at most.
pub const PER_DAY: usize = BURST as usize + (DAY / REFILL) as usize + 1;
/// Characters of a reason in words that are kept.
pub const TEXT: usize = 200;
/// Reasons that an entry for many changes names.
pub const REASONS: usize = 4;
/// Entries that wait to be stored, at most, over all tenants: twice what ten thousand tenants have when all fail and recover once …
pub const MOST_PENDING: usize = 40_000;
/// … and their bytes, as far as they vary.
pub const MOST_PENDING_BYTES: usize = 8 << 20;
/// Gaps that a period names one by one. Beyond that the last one is extended.
pub const MOST_GAPS: usize = 8;
/// A period that was stored within this time goes on.
pub const GOES_ON: u64 = 30_000;
/// Between the start of a worker and its first look.
pub const STARTS_WITHIN: u64 = 2000;
/// Gaps shorter than this are not shown: they are the time between two calls.
pub const SHORTEST_GAP: u64 = 1000;

names! {
    /// What an entry of a timeline is about.
    pub enum Kind {
        /// The state, or the reason for it, has changed.
        State = "state",
        /// A worker that stood by works the tenant.
        TookOver = "took_over",
        /// The collector had ended by itself and was started again.
        Restarted = "restarted",
        /// The worker doesn't serve the tenant any more.
        Left = "left",
    }
}

/// An entry as it stands in Redis. Short names: there are many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When it happened, or the first of several changes did. An entry is known by it: a tracker gives no two the same.
    #[serde(rename = "a")]
    pub at: u64,
    /// What it is about.
    #[serde(rename = "k")]
    pub kind: Reported<Kind>,
    /// The state after it.
    #[serde(rename = "s")]
    pub state: ReportedState,
    /// Why, when degraded.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ReportedReason>,
    /// Why, in words.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Whether only some of the balances are concerned.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Changes in this entry.
    #[serde(rename = "n", default = "one", skip_serializing_if = "is_one")]
    pub changes: u64,
    /// When the last of them was; 0 = there was one.
    #[serde(rename = "l", default, skip_serializing_if = "is_zero")]
    pub last: u64,
    /// Reasons among them, at most [`REASONS`].
    #[serde(rename = "b", default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<ReportedReason>,
}

impl Entry {
    /// When the last of its changes was.
    #[must_use]
    pub fn until(&self) -> u64 {
        self.last.max(self.at)
    }

    /// Its bytes beyond a fixed part.
    fn weight(&self) -> usize {
        self.detail.as_ref().map_or(0, String::len)
    }

    /// Counts one more change in it.
    fn fold(&mut self, change: Self, changes: u64) {
        if self.reasons.is_empty() {
            self.reasons.extend(self.reason.take());
        }
        if let Some(reason) = &change.reason
            && self.reasons.len() < REASONS
            && !self.reasons.contains(reason)
        {
            self.reasons.push(reason.clone());
        }
        *self = Self {
            at: self.at,
            kind: Kind::State.into(),
            changes: self.changes.saturating_add(changes),
            last: change.at,
            reasons: std::mem::take(&mut self.reasons),
            ..change
        };
    }
}

const fn one() -> u64 {
    1
}

fn is_one(n: &u64) -> bool {
    *n == 1
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How a tenant is, as its worker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed<'a> {
    /// Its state.
    pub state: TenantState,
    /// Why, when degraded.
    pub reason: Option<Reason>,
    /// Why, in words.
    pub detail: Option<&'a str>,
    /// Whether only some of its balances are concerned.
    pub partial: bool,
    /// How often its collector was started again after it had ended by itself.
    pub restarts: u64,
}

/// What to store.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The entry; in the place of the one with the same `at`.
    pub entry: Entry,
    /// It says something only after other entries: store it only if the tenant has any.
    pub only_if_known: bool,
}

/// What is compared to find out that something has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// `Idle` stands for `Syncing` too: a tenant goes from one to the other with every batch.
    state: TenantState,
    reason: Option<Reason>,
    partial: bool,
}

/// Follows one tenant.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    seen: Option<Seen>,
    restarts: u64,
    /// Changes that may still have an entry of their own, less than [`BURST`] = some were used.
    used: u8,
    /// When the last one was given back, or the first was used.
    refilled: u64,
    last: u64,
    /// The last entry, while further changes are counted in it.
    folding: Option<Box<Change>>,
}

impl Tracker {
    /// Takes in how the tenant is; returns what is to be stored, if anything has changed.
    pub fn observe(&mut self, now: u64, observed: &Observed<'_>) -> Option<Change> {
        let state = match observed.state {
            // Worker and collector come and go, which has entries of its own. A shadow says nothing about the tenant.
            TenantState::Starting | TenantState::Stopping | TenantState::Shadow => return None,
            TenantState::Syncing => TenantState::Idle,
            state => state,
        };
        let seen = Seen { state, reason: observed.reason, partial: observed.partial };
        let restarts = observed.restarts.saturating_sub(self.restarts);
        self.restarts = observed.restarts;
        if self.seen == Some(seen) && restarts == 0 {
            return None;
        }
        let before = self.seen.replace(seen);
        let kind = match before {
            _ if restarts > 0 => Kind::Restarted,
            Some(before) if before.state == TenantState::Standby && state == TenantState::Idle => {
                Kind::TookOver
            }
            _ => Kind::State,
        };
        let entry = Entry {
            at: now.max(self.last + 1),
            kind: kind.into(),
            state: observed.state.into(),
            reason: observed.reason.map(Into::into),
            detail: observed.detail.map(cut),
            partial: observed.partial,
            changes: restarts.max(1),
            last: 0,
            reasons: Vec::new(),
        };
        // Where it begins well, or another worker comes first again, nothing has happened, but trouble that was recorded before is over.
        let only_if_known = restarts == 0
            && match state {
                TenantState::Idle => before.is_none(),
                TenantState::Standby => before.is_none_or(|before| before.state == TenantState::Idle),
                _ => false,
            };
        Some(self.record(entry, only_if_known))
    }

    /// The worker serves the tenant no longer; returns what is to be stored.
    pub fn leave(&mut self, now: u64) -> Option<Change> {
        let seen = self.seen.take()?;
        let entry = Entry {
            at: now.max(self.last + 1),
            kind: Kind::Left.into(),
            state: seen.state.into(),
            reason: None,
            detail: None,
            partial: false,
            changes: 1,
            last: 0,
            reasons: Vec::new(),
        };
        Some(Change { entry, only_if_known: true })
    }

    fn record(&mut self, entry: Entry, only_if_known: bool) -> Change {
        let now = entry.at;
        self.last = now;
        let back = u8::try_from(now.saturating_sub(self.refilled) / REFILL).unwrap_or(u8::MAX);
        if self.used == 0 {
            self.refilled = now;
        } else if back > 0 {
            self.used = self.used.saturating_sub(back);
            // What is left over counts towards the next one.
            self.refilled += u64::from(back) * REFILL;
            self.folding = None;
        }
        if let Some(folding) = &mut self.folding {
            let changes = entry.changes;
            folding.entry.fold(entry, changes);
            folding.only_if_known &= only_if_known;
            return Change::clone(folding);
        }
        self.used += 1;
        let change = Change { entry, only_if_known };
        if self.used >= BURST {
            self.folding = Some(Box::new(change.clone()));
        }
        change
    }
}

/// The beginning of a text from outside, safe to be printed.
fn cut(text: &str) -> String {
    printable(text).chars().take(TEXT).collect()
}

/// Entries that wait to be stored, by tenant and time; a newer form of an entry takes the place of the older one.
#[derive(Debug)]
pub struct Pending<T> {
    entries: BTreeMap<(T, u64), Change>,
    bytes: usize,
    most: usize,
    /// Since when some could not be kept, and how many.
    dropped: Option<(u64, u64)>,
    /// How many since the start.
    dropped_total: u64,
}

impl<T: Ord + Clone> Default for Pending<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), bytes: 0, most: MOST_PENDING, dropped: None, dropped_total: 0 }
    }
}

impl<T: Ord + Clone> Pending<T> {
    /// Keeps an entry of a tenant. What is beyond the bounds is dropped, and known to be missing.
    pub fn add(&mut self, tenant: &T, change: Change) {
        let key = (tenant.clone(), change.entry.at);
        let weight = change.entry.weight();
        let before = self.entries.get(&key).map(|before| before.entry.weight());
        let is_full = before.is_none() && self.entries.len() >= self.most
            || self.bytes - before.unwrap_or_default() + weight > MOST_PENDING_BYTES;
        if is_full {
            let dropped = self.dropped.get_or_insert((change.entry.until(), 0));
            dropped.1 += 1;
            self.dropped_total += 1;
            return;
        }
        self.bytes = self.bytes - before.unwrap_or_default() + weight;
        self.entries.insert(key, change);
    }

    /// The first ones, at most so many.
    #[must_use]
    pub fn page(&self, most: usize) -> Vec<(T, Change)> {
        self.entries.iter().take(most).map(|((tenant, _), change)| (tenant.clone(), change.clone())).collect()
    }

    /// These have been stored. One that has changed since stays.
    pub fn stored(&mut self, page: &[(T, Change)]) {
        for (tenant, change) in page {
            let key = (tenant.clone(), change.entry.at);
            if self.entries.get(&key) == Some(change) {
                self.entries.remove(&key);
                self.bytes -= change.entry.weight();
            }
        }
    }

    /// Since when entries are missing because there was no room, and how many are; from now on there is room.
    pub fn take_dropped(&mut self) -> Option<(u64, u64)> {
        self.dropped.take()
    }

    /// How many could not be kept since the start.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped_total
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The time of which one run of a worker has stored what it saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Period {
    /// The worker.
    pub worker: String,
    /// Its version.
    pub version: String,
    /// It only looks, and nothing of its tenants' states is recorded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
    /// When the process was started.
    pub started: u64,
    /// Since when it is recorded: later than `started` if Redis has lost the record.
    pub from: u64,
    /// Until when it is.
    pub to: u64,
    /// It has stopped in an orderly way.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Between these times something is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<(u64, u64)>,
}

impl Period {
    /// Notes that something between these times could not be recorded.
    pub fn miss(&mut self, from: u64, to: u64) {
        let is_full = self.gaps.len() >= MOST_GAPS;
        match self.gaps.last_mut() {
            Some(last) if from <= last.1 || is_full => last.1 = last.1.max(to),
            _ => self.gaps.push((from, to)),
        }
    }

    /// Since when nothing is missing: the first look comes a moment after the start.
    #[must_use]
    pub fn begin(&self) -> u64 {
        if self.from <= self.started.saturating_add(STARTS_WITHIN) { self.started } else { self.from }
    }

    /// Whether the record of it was going on at that time.
    #[must_use]
    pub fn goes_on(&self, now: u64) -> bool {
        !self.ended && self.to.saturating_add(GOES_ON) >= now
    }
}

/// The parts of a time of which no worker has recorded anything.
#[must_use]
pub fn unrecorded(periods: &[Period], since: u64, now: u64) -> Vec<(u64, u64)> {
    let mut recorded: Vec<(u64, u64)> = periods
        .iter()
        .filter(|period| !period.shadow)
        .map(|period| (period.begin(), if period.goes_on(now) { now } else { period.to }))
        .collect();
    recorded.sort_unstable();
    let mut gaps = Vec::new();
    let mut known = since;
    for (from, to) in recorded.into_iter().chain([(now, now)]) {
        let from = from.min(now);
        if from > known && from - known >= SHORTEST_GAP {
            gaps.push((known, from));
        }
        known = known.max(to);
    }
    gaps
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;

    const SECOND: u64 = 1000;
    const MINUTE: u64 = 60 * SECOND;
    const BEGIN: u64 = 1_700_000_000_000;

    fn is(state: TenantState) -> Observed<'static> {
        Observed { state, reason: None, detail: None, partial: false, restarts: 0 }
    }

    fn fails(reason: Reason) -> Observed<'static> {
        Observed { reason: Some(reason), detail: Some("refused"), ..is(TenantState::Degraded) }
    }

    /// What stands in the store at the end, and how often something was written.
    #[derive(Default)]
    struct Store {
        entries: BTreeMap<u64, Entry>,
        writes: usize,
    }

    impl Store {
        fn take(&mut self, change: Option<Change>) {
            let Some(Change { entry, only_if_known }) = change else { return };
            if !only_if_known || !self.entries.is_empty() {
                self.entries.insert(entry.at, entry);
            }
            self.writes += 1;
        }

        fn texts(&self) -> Vec<String> {
            self.entries
                .values()
                .map(|entry| {
                    let reason = entry.reason.as_ref().map(|reason| format!(" {reason}")).unwrap_or_default();
                    format!("{} {}{reason}", entry.kind, entry.state)
                })
                .collect()
        }
    }

    #[test]
    fn a_tenant_on_which_nothing_happens_has_no_entry() {
        let (mut tracker, mut store) = (Tracker::default(), Store::default());
        for second in 0..3_600 {
            let state = match second % 4 {
                _ if second < 3 => TenantState::Starting,
                0 => TenantState::Syncing,
                _ => TenantState::Idle,
            };
            store.take(tracker.observe(BEGIN + second * SECOND, &is(state)));
        }
        // Another worker joins and comes first, and this one ends.
        store.take(tracker.observe(BEGIN + 3_600 * SECOND, &is(TenantState::Standby)));
        store.take(tracker.observe(BEGIN + 3_600 * SECOND, &is(TenantState::Stopping)));
        store.take(tracker.leave(BEGIN + 3_601 * SECOND));
        assert_eq!(store.texts(), Vec::<String>::new());
    }

    #[test]
    fn failure_recovery_pause_take_over_and_restart_have_an_entry_each_in_order() {
        let (mut tracker, mut store) = (Tracker::default(), Store::default());
        let steps = [
            is(TenantState::Starting),
            is(TenantState::Standby),
            is(TenantState::Syncing),
            fails(Reason::PostgresConnection),
            fails(Reason::PostgresConnection),
            fails(Reason::PostgresCredentials),
            is(TenantState::Syncing),
            is(TenantState::Paused),
            is(TenantState::Idle),
            Observed { restarts: 1, ..is(TenantState::Idle) },
        ];
        for (n, step) in steps.iter().enumerate() {
            store.take(tracker.observe(BEGIN + n as u64 * MINUTE, step));
        }
        assert_eq!(
            store.texts(),
            [
                "took_over syncing",
                "state degraded postgres_connection",
                "state degraded postgres_credentials",
                "state syncing",
                "state paused",
                "state idle",
                "restarted idle",
            ]
        );
        assert_eq!(store.writes, 8, "that it stood by at first is stored only after other entries");
        assert_eq!(store.entries[&(BEGIN + 3 * MINUTE)].detail.as_deref(), Some("refused"));
    }

    #[test]
    fn what_begins_well_ends_trouble_that_was_recorded_before_and_trouble_is_always_recorded() {
        let (mut tracker, mut store) = (Tracker::default(), Store::default());
        store.take(tracker.observe(BEGIN, &fails(Reason::PostgresConnection)));
        assert_eq!(store.texts(), ["state degraded postgres_connection"]);
        // The worker after it.
        let mut tracker = Tracker::default();
        store.take(tracker.observe(BEGIN + MINUTE, &is(TenantState::Starting)));
        store.take(tracker.observe(BEGIN + MINUTE, &is(TenantState::Idle)));
        store.take(tracker.leave(BEGIN + 2 * MINUTE));
        assert_eq!(store.texts(), ["state degraded postgres_connection", "state idle", "left idle"]);
    }

    /// Plays a day in which the tenant changes at these times; returns what is stored at the end.
    fn day(times: impl Iterator<Item = u64>) -> (Store, u64) {
        let (mut tracker, mut store) = (Tracker::default(), Store::default());
        let mut changes = 0;
        for (n, at) in times.enumerate() {
            let step = match n % 4 {
                1 => fails(Reason::PostgresConnection),
                3 => fails(Reason::PostgresTimeout),
                _ => is(TenantState::Syncing),
            };
            changes += u64::from(n > 0);
            store.take(tracker.observe(BEGIN + at, &step));
        }
        (store, changes)
    }

    #[test]
    fn a_day_of_flapping_is_bounded_and_no_change_is_missing_in_the_counts() {
        for step in [SECOND, 7 * SECOND, MINUTE, 10 * MINUTE, 20 * MINUTE] {
            let (store, changes) = day((0..DAY / step).map(|n| n * step));
            assert!(store.entries.len() <= PER_DAY, "{step}: {}", store.entries.len());
            assert_eq!(
                store.entries.values().map(|entry| entry.changes).sum::<u64>(),
                changes,
                "{step}: each is counted"
            );
            let entries: Vec<&Entry> = store.entries.values().collect();
            assert!(entries.windows(2).all(|pair| pair[0].until() < pair[1].at), "they don't overlap");
            for entry in entries.iter().filter(|entry| entry.changes > 4) {
                let names: Vec<&str> = entry.reasons.iter().map(Reported::as_str).collect();
                assert!(names.len() == 2 && names.contains(&"postgres_timeout"), "{entry:?}");
            }
        }
        let (store, _) = day((0..DAY / SECOND).map(|n| n * SECOND));
        assert!(store.entries.len() > 90, "the day stays visible: {}", store.entries.len());
        let last = store.entries.values().last().unwrap();
        assert!(last.until() >= BEGIN + DAY - 2 * SECOND, "the last change is in it");
        let bytes: usize =
            store.entries.values().map(|entry| serde_json::to_string(entry).unwrap().len()).sum();
        assert!(bytes < 30_000, "{bytes}");
    }

    #[test]
    fn after_a_quiet_time_changes_have_entries_of_their_own_again() {
        let times = (0..100).map(|n| n * SECOND).chain((0..4).map(|n| 6 * 60 * MINUTE + n * SECOND));
        let (store, _) = day(times);
        let late: Vec<&Entry> = store.entries.range(BEGIN + 60 * MINUTE..).map(|(_, entry)| entry).collect();
        assert_eq!(late.len(), 4);
        assert!(late.iter().all(|entry| entry.changes == 1), "{late:?}");
    }

    #[test]
    fn text_from_outside_is_cut_and_escaped() {
        let text = format!("\u{1b}[31m{}", "ä".repeat(1_000));
        let observed = Observed { detail: Some(&text), ..fails(Reason::PostgresConnection) };
        let detail = Tracker::default().observe(BEGIN, &observed).unwrap().entry.detail.unwrap();
        assert_eq!(detail.chars().count(), TEXT);
        assert!(!detail.contains('\u{1b}'));
    }

    #[test]
    fn an_entry_of_another_release_is_read_as_it_is() {
        let text = r#"{"a":5,"k":"teleported","s":"levitating\u001b","r":"postgres_on_the_moon","x":1}"#;
        let entry: Entry = serde_json::from_str(text).unwrap();
        assert_eq!((entry.kind.as_str(), entry.changes, entry.until()), ("teleported", 1, 5));
        assert_eq!(entry.state.as_str(), "levitating\\u{1b}");
        assert_eq!(entry.reason.unwrap().as_str(), "postgres_on_the_moon");
    }

    fn change(at: u64, text: &str) -> Change {
        let mut entry = Tracker::default().observe(at, &fails(Reason::PostgresConnection)).unwrap().entry;
        entry.detail = Some(text.to_owned());
        Change { entry, only_if_known: false }
    }

    #[test]
    fn what_waits_is_bounded_in_number_and_bytes_and_what_is_dropped_is_known() {
        let mut pending = Pending { most: 3, ..Pending::default() };
        for at in 1..=5 {
            pending.add(&"a", change(at, "one"));
        }
        assert_eq!((pending.len(), pending.take_dropped()), (3, Some((4, 2))));
        assert_eq!((pending.take_dropped(), pending.dropped_total()), (None, 2));
        // A newer form of one that is there needs no room.
        pending.add(&"a", change(2, "newer"));
        assert_eq!((pending.len(), pending.take_dropped()), (3, None));

        let long = "x".repeat(MOST_PENDING_BYTES / 10);
        let mut pending = Pending::default();
        (1..=20).for_each(|at| pending.add(&"a", change(at, &long)));
        assert_eq!((pending.len(), pending.take_dropped()), (10, Some((11, 10))));
    }

    #[test]
    fn what_is_stored_is_dropped_unless_it_has_changed_since() {
        let mut pending = Pending::default();
        (1..=3).for_each(|at| pending.add(&"a", change(at, "one")));
        let page = pending.page(2);
        assert_eq!(page.len(), 2);
        pending.add(&"a", change(2, "two"));
        pending.stored(&page);
        let left: Vec<u64> = pending.page(9).iter().map(|(_, change)| change.entry.at).collect();
        assert_eq!(left, [2, 3]);
        pending.stored(&pending.page(9));
        assert!(pending.is_empty() && pending.bytes == 0);
    }

    fn period(from: u64, to: u64, ended: bool) -> Period {
        Period { started: from, from, to, ended, ..Period::default() }
    }

    #[test]
    fn time_in_which_no_worker_recorded_is_found() {
        let now = BEGIN + DAY;
        let hour = 60 * MINUTE;
        assert_eq!(unrecorded(&[], BEGIN, now), [(BEGIN, now)]);
        let periods = [
            period(BEGIN + 5 * hour, now - 10 * SECOND, false),
            period(BEGIN - hour, BEGIN + hour, true),
            period(BEGIN + hour + 500, BEGIN + 2 * hour, false),
            Period { shadow: true, ..period(BEGIN, now, false) },
        ];
        assert_eq!(unrecorded(&periods, BEGIN, now), [(BEGIN + 2 * hour, BEGIN + 5 * hour)]);
        // Its last word is too long ago: nothing is known since.
        let silent = [period(BEGIN, now - MINUTE, false)];
        assert_eq!(unrecorded(&silent, BEGIN, now), [(now - MINUTE, now)]);
    }

    #[test]
    fn a_period_names_a_bounded_number_of_gaps_and_misses_none() {
        let mut period = period(0, 0, false);
        for n in 1..=20 {
            period.miss(n * 10, n * 10 + 5);
        }
        assert_eq!(period.gaps.len(), MOST_GAPS);
        assert_eq!(period.gaps[MOST_GAPS - 1], (80, 205));
        period.miss(203, 300);
        assert_eq!(period.gaps[MOST_GAPS - 1], (80, 300));
    }
}
