//! What a shadow concludes about a tenant: it looks at balances whose rows are older than their values, writes nothing, and finds
//! out what becomes of them.
//!
//! A balance that is *open* is one whose row was behind its value. It is looked at until its row has the version that was seen, which
//! is how long a mutation takes, or until it is out of the schedule and its row still behind at two looks [`CONFIRM_AFTER`] apart:
//! whoever writes has left it *behind*. If Redis no longer holds that version either, it is *lost*. Both stay open, and end when the row catches
//! up or the balance is scheduled again.
//!
//! Everything is bounded: [`MOST_OPEN`] balances and [`LAGS`] lags per tenant.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use balance_sync_domain::names;
use serde::{Deserialize, Serialize};

/// Between two looks by which a balance counts as left behind, or as waiting: what is merely being written is over before.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(2);
/// For so long after it was seen an open balance is looked at again and again.
pub const FRESH_FOR: Duration = Duration::from_secs(10);
/// After that this often.
pub const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Open balances of a tenant at most.
pub const MOST_OPEN: usize = 1000;
/// Lags that are kept of a tenant: the last ones.
pub const LAGS: usize = 256;
/// Balances that are named.
pub const EXAMPLES: usize = 10;

names! {
    /// What a worker does with its tenants.
    pub enum WorkerMode {
        /// It writes their balances.
        Sync = "sync",
        /// It only looks.
        Shadow = "shadow",
    }
}

/// What became of an open balance, as two looks at Redis and one at its row between them have found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The version of its row; `None` = there is no row, or it is deleted, so that nothing can be behind.
    pub row: Option<i64>,
    /// It was scheduled before or after the row was read.
    pub scheduled: bool,
    /// It is in quarantine, or listed as lost: operators know of it.
    pub listed: bool,
    /// The version that Redis holds, if it holds the balance.
    pub held: Option<i64>,
}

/// What was found of a balance that is left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Redis still holds what its row lacks.
    LeftBehind,
    /// Redis no longer holds it.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// It waits for whoever writes.
    Waiting,
    /// It was out of the schedule and behind for the first time then.
    Suspected(Instant),
    /// Since when, in seconds since 1970.
    Left { finding: Finding, since: f64 },
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Open {
    version: i64,
    /// When it was mutated, by Redis's clock.
    mutated_at: Option<f64>,
    seen: Instant,
    looked: Option<Instant>,
    row: i64,
    state: State,
}

/// What a shadow remembers of a tenant. `K` names a balance.
#[derive(Debug, Clone)]
pub struct ShadowWatch<K> {
    open: BTreeMap<K, Open>,
    lags: VecDeque<f32>,
    /// There was no room for some.
    full: bool,
}

impl<K> Default for ShadowWatch<K> {
    fn default() -> Self {
        Self { open: BTreeMap::new(), lags: VecDeque::new(), full: false }
    }
}

impl<K: Ord + Clone> ShadowWatch<K> {
    /// Takes in a value that may be newer than its row. One that is open already keeps its place; one that was left behind and has
    /// been mutated since begins anew.
    pub fn see(&mut self, key: K, version: i64, mutated_at: Option<f64>, now: Instant) {
        let fresh = Open { version, mutated_at, seen: now, looked: None, row: -1, state: State::Waiting };
        if let Some(open) = self.open.get_mut(&key) {
            if matches!(open.state, State::Left { .. }) && version > open.version {
                *open = fresh;
            }
            return;
        }
        if self.open.len() < MOST_OPEN {
            self.open.insert(key, fresh);
        } else {
            self.full = true;
        }
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Notes that there was no room for some.
    pub fn overflow(&mut self) {
        self.full = true;
    }

    /// Those that were seen lately: whether they are merely being written shows soon.
    pub fn fresh(&self, now: Instant) -> impl Iterator<Item = &K> {
        self.open.iter().filter(move |(_, open)| open.is_fresh(now)).map(|(key, _)| key)
    }

    /// Those that were seen before, and are due to be looked at again.
    pub fn due(&self, now: Instant) -> impl Iterator<Item = &K> {
        let is_due = move |open: &Open| {
            !open.is_fresh(now) && open.looked.is_none_or(|looked| now.duration_since(looked) >= AGAIN_AFTER)
        };
        self.open.iter().filter(move |(_, open)| is_due(open)).map(|(key, _)| key)
    }

    /// The version that a balance's row must reach.
    #[must_use]
    pub fn version(&self, key: &K) -> Option<i64> {
        self.open.get(key).map(|open| open.version)
    }

    /// Takes in a look. `redis_now` is Redis's clock, in seconds since 1970. Gives what was found for the first time.
    pub fn looked(&mut self, key: &K, look: Look, now: Instant, redis_now: f64) -> Option<Finding> {
        let open = self.open.get_mut(key)?;
        let is_written = look.row.is_none_or(|row| row >= open.version);
        if is_written || look.listed {
            // One that was out of sight for a while says nothing about how long it took.
            let in_sight = open.looked.unwrap_or(open.seen) + CONFIRM_AFTER * 2 > now;
            let lag = open.mutated_at.map(|at| redis_now - at);
            let is_left = matches!(open.state, State::Left { .. });
            if let (true, true, false, Some(lag)) = (look.row.is_some() && is_written, in_sight, is_left, lag)
            {
                self.lags.truncate(LAGS - 1);
                self.lags.push_front(lag.max(0.0) as f32);
            }
            self.open.remove(key);
            self.full &= self.open.len() + 1 >= MOST_OPEN;
            return None;
        }
        open.looked = Some(now);
        open.row = look.row.unwrap_or(-1);
        let is_held = look.held.is_some_and(|held| held >= open.version);
        let finding = if is_held { Finding::LeftBehind } else { Finding::Lost };
        match open.state {
            _ if look.scheduled => open.state = State::Waiting,
            State::Waiting => open.state = State::Suspected(now),
            State::Suspected(since) if now.duration_since(since) >= CONFIRM_AFTER => {
                open.state = State::Left { finding, since: redis_now };
                return Some(finding);
            }
            State::Suspected(_) => {}
            State::Left { finding: before, since } => {
                open.state = State::Left { finding, since };
                return (before != finding).then_some(finding);
            }
        }
        None
    }

    /// What there is to report. `name` makes a balance readable.
    #[must_use]
    pub fn report(&self, name: impl Fn(&K) -> String) -> ShadowReport {
        let mut report = ShadowReport { more: self.full, ..ShadowReport::default() };
        for (key, open) in &self.open {
            let waited = open.looked.is_some_and(|looked| looked.duration_since(open.seen) >= CONFIRM_AFTER);
            let State::Left { finding, since } = open.state else {
                report.would_write += u64::from(open.state == State::Waiting && waited);
                continue;
            };
            match finding {
                Finding::LeftBehind => report.left_behind += 1,
                Finding::Lost => report.lost += 1,
            }
            if report.examples.len() < EXAMPLES {
                report.examples.push(LeftBehind {
                    member: name(key),
                    lost: finding == Finding::Lost,
                    version: open.version,
                    row_version: open.row,
                    since: (since * 1e3).round() / 1e3,
                });
            }
        }
        let mut lags: Vec<f32> = self.lags.iter().copied().collect();
        lags.sort_by(f32::total_cmp);
        let at = |quantile: f64| {
            let rank = (quantile * lags.len() as f64).ceil() as usize;
            lags.get(rank.saturating_sub(1)).map(|lag| (f64::from(*lag) * 1e3).round() / 1e3)
        };
        (report.lag_p50_seconds, report.lag_p99_seconds) = (at(0.5), at(0.99));
        report.lag_samples = lags.len() as u64;
        report
    }
}

impl Open {
    fn is_fresh(&self, now: Instant) -> bool {
        !matches!(self.state, State::Left { .. }) && now.duration_since(self.seen) < FRESH_FOR
    }
}

/// What a shadow reports of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShadowReport {
    /// Scheduled balances whose rows are older than their values, of those that were looked at: what a worker would write now.
    pub would_write: u64,
    /// There are more open balances than are looked at: the numbers are at least these.
    pub more: bool,
    /// Balances that are out of the schedule while their rows are older than what Redis holds.
    pub left_behind: u64,
    /// The same, where Redis no longer holds what their rows lack.
    pub lost: u64,
    /// Some of both.
    pub examples: Vec<LeftBehind>,
    /// How long a mutation took until its row had it: median of the last samples.
    pub lag_p50_seconds: Option<f64>,
    /// What 99 of 100 stayed within.
    pub lag_p99_seconds: Option<f64>,
    /// How many samples there are.
    pub lag_samples: u64,
    /// Balances that Redis held at the last comparison of all of them with their rows.
    pub compared: u64,
    /// When that ended, in seconds since 1970; `None` = none has ended yet.
    pub compared_at: Option<f64>,
    /// Why rows can't be read, in words.
    pub error: Option<String>,
}

/// A balance that is left behind or lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeftBehind {
    /// Its member.
    pub member: String,
    /// Redis no longer holds what its row lacks.
    pub lost: bool,
    /// The version that its value had.
    pub version: i64,
    /// The version of its row.
    pub row_version: i64,
    /// When it was found, in seconds since 1970.
    pub since: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Look = Look { row: Some(1), scheduled: true, listed: false, held: Some(2) };
    const GONE: Look = Look { scheduled: false, ..WAITS };

    struct Bench {
        watch: ShadowWatch<&'static str>,
        begun: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let (mut watch, begun) = (ShadowWatch::default(), Instant::now());
            watch.see("a", 2, Some(100.0), begun);
            Self { watch, begun }
        }

        fn look(&mut self, millis: u64, look: Look) -> Option<Finding> {
            let at = Duration::from_millis(millis);
            self.watch.looked(&"a", look, self.begun + at, 100.0 + at.as_secs_f64())
        }

        fn report(&self) -> ShadowReport {
            self.watch.report(|key| (*key).to_owned())
        }
    }

    #[test]
    fn what_is_written_soon_is_a_lag_and_nothing_else() {
        let mut bench = Bench::new();
        bench.look(500, WAITS);
        // Out of the schedule a moment before its row could be read as written.
        assert_eq!(bench.look(1_000, GONE), None);
        assert_eq!(bench.report(), ShadowReport::default());
        bench.look(1_500, Look { row: Some(2), ..GONE });
        let report = bench.report();
        assert_eq!(
            (report.lag_p50_seconds, report.lag_p99_seconds, report.lag_samples),
            (Some(1.5), Some(1.5), 1)
        );
        assert_eq!((report.would_write, report.left_behind, report.lost), (0, 0, 0));
    }

    #[test]
    fn what_leaves_the_schedule_unwritten_is_left_behind_after_two_looks_and_ends_with_its_row() {
        let mut bench = Bench::new();
        assert_eq!(bench.look(500, GONE), None);
        assert_eq!(bench.look(2_400, GONE), None, "too soon");
        assert_eq!(bench.look(2_600, GONE), Some(Finding::LeftBehind));
        assert_eq!(bench.look(5_000, GONE), None, "reported once");
        let report = bench.report();
        assert_eq!((report.left_behind, report.lost, report.would_write), (1, 0, 0));
        let example = &report.examples[0];
        assert_eq!((example.member.as_str(), example.version, example.row_version), ("a", 2, 1));
        // Another write of the same version is no sample of a lag.
        bench.look(60_000, Look { row: Some(2), ..GONE });
        assert_eq!(bench.report(), ShadowReport::default());
    }

    #[test]
    fn what_redis_no_longer_holds_is_lost() {
        let mut bench = Bench::new();
        bench.look(500, GONE);
        bench.look(2_600, GONE);
        assert_eq!(bench.look(9_000, Look { held: None, ..GONE }), Some(Finding::Lost));
        let mut older = Bench::new();
        older.look(500, Look { held: Some(1), ..GONE });
        assert_eq!(older.look(3_000, Look { held: Some(1), ..GONE }), Some(Finding::Lost));
        assert_eq!((older.report().left_behind, older.report().lost), (0, 1));
        assert!(older.report().examples[0].lost);
    }

    #[test]
    fn what_is_scheduled_again_or_listed_or_has_no_row_is_not_left_behind() {
        for settled in [Look { listed: true, ..GONE }, Look { row: None, ..GONE }] {
            let mut bench = Bench::new();
            bench.look(500, GONE);
            assert_eq!(bench.look(3_000, settled), None);
            assert_eq!(bench.report(), ShadowReport::default(), "{settled:?}");
        }
        let mut bench = Bench::new();
        bench.look(500, GONE);
        bench.look(1_500, WAITS);
        assert_eq!(bench.look(3_000, GONE), None, "it begins anew");
        assert_eq!(bench.look(5_100, GONE), Some(Finding::LeftBehind));
        assert_eq!(bench.look(6_000, WAITS), None);
        assert_eq!((bench.report().left_behind, bench.report().would_write), (0, 1));
    }

    #[test]
    fn what_waits_is_what_would_be_written_once_it_has_waited_for_a_moment() {
        let mut bench = Bench::new();
        bench.look(1_900, WAITS);
        assert_eq!(bench.report().would_write, 0);
        bench.look(2_000, WAITS);
        assert_eq!(bench.report().would_write, 1);
    }

    #[test]
    fn a_lag_is_only_taken_of_what_was_in_sight() {
        let mut bench = Bench::new();
        bench.look(1_000, WAITS);
        bench.look(30_000, Look { row: Some(2), ..GONE });
        assert_eq!(bench.report().lag_samples, 0);
    }

    #[test]
    fn one_that_was_left_behind_begins_anew_with_its_next_mutation() {
        let mut bench = Bench::new();
        bench.look(500, GONE);
        bench.look(3_000, GONE);
        let now = bench.begun + Duration::from_secs(4);
        bench.watch.see("a", 2, None, now);
        assert_eq!(bench.report().left_behind, 1, "the same version");
        bench.watch.see("a", 3, Some(104.0), now);
        assert_eq!((bench.report().left_behind, bench.watch.version(&"a")), (0, Some(3)));
    }

    #[test]
    fn fresh_ones_are_looked_at_at_once_and_others_now_and_then() {
        let mut bench = Bench::new();
        let (begun, late) = (bench.begun, bench.begun + FRESH_FOR);
        assert_eq!((bench.watch.fresh(begun).count(), bench.watch.due(begun).count()), (1, 0));
        assert_eq!((bench.watch.fresh(late).count(), bench.watch.due(late).count()), (0, 1));
        bench.look(10_000, WAITS);
        assert_eq!(bench.watch.due(late).count(), 0);
        assert_eq!(bench.watch.due(late + AGAIN_AFTER).count(), 1);
    }

    #[test]
    fn what_has_no_room_is_said() {
        let (mut watch, now) = (ShadowWatch::default(), Instant::now());
        for n in 0..=MOST_OPEN {
            watch.see(n, 2, None, now);
        }
        assert!(watch.report(ToString::to_string).more);
        assert_eq!(watch.fresh(now).count(), MOST_OPEN);
        for n in 0..2 {
            watch.looked(&n, Look { row: Some(2), ..WAITS }, now, 0.0);
        }
        assert!(!watch.report(ToString::to_string).more);
    }
}
