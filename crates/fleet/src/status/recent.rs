//! What happened lately: a tenant's last flushes and errors, its rates over the last seconds, and a short history.
//!
//! A tenant on which nothing has happened yet holds nothing of this, and one that has been quiet for a while little: ten
//! thousand idle tenants must not cost a hundred megabytes. Rates are differences of the counters in
//! [`crate::status`], taken once a second by the publisher of `balance_sync_view`, so that counting itself stays as cheap as it is.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize, Serializer};
use tokio::time::Instant;

use balance_sync_domain::Reported;
use balance_sync_engine::{
    collector::Trigger,
    outcome::{Outcome, Outcomes},
    reason::{Reason, ReportedReason},
};

use super::histogram::{BUCKETS, LagCounts};

/// Flushes and errors kept per tenant.
pub const NOTES: usize = 50;
/// Those kept of a tenant that has been quiet for [`QUIET_AFTER`].
const NOTES_QUIET: usize = 5;
/// Rates are those over this many seconds.
pub(super) const WINDOW_SECONDS: usize = 10;
/// Seconds from one point of a history to the next.
pub const STEP_SECONDS: u64 = 5;
/// Points of a tenant's history: ten minutes.
pub const POINTS: usize = 120;
/// Without a flush or an error for this long a tenant's history is dropped: nothing stands in it any more.
const QUIET_AFTER: Duration = Duration::from_secs(POINTS as u64 * STEP_SECONDS);
/// Longest detail that is kept with an error, in bytes.
const DETAIL_LIMIT: usize = 300;

/// One flush, as it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlushNote {
    /// When it ended, in seconds since 1970.
    pub at: f64,
    /// What made it.
    pub trigger: Reported<Trigger>,
    /// Members in it.
    pub claimed: u32,
    /// Its members by what became of them.
    #[serde(flatten, serialize_with = "noted")]
    pub outcomes: Outcomes<u32>,
    /// How long it took, in milliseconds.
    pub took_ms: u32,
}

/// Outcomes that are kept of a flush.
pub const NOTED: [Outcome; 5] =
    [Outcome::Updated, Outcome::Stale, Outcome::Deleted, Outcome::Quarantined, Outcome::Released];

/// Each is written, also if it is 0: former releases read no note without it.
fn noted<S: Serializer>(outcomes: &Outcomes<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    outcomes.serialize_only(&NOTED, serializer)
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorNote {
    /// When, in seconds since 1970.
    pub at: f64,
    /// Why.
    pub reason: ReportedReason,
    /// In words; no secrets.
    pub detail: String,
}

/// One point of a tenant's history.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// When, in seconds since 1970.
    pub at: f64,
    /// Rows written per second.
    pub rows_per_second: f32,
    /// Lag that 99 of 100 balances stayed within, in seconds.
    pub p99_seconds: Option<f32>,
    /// Members due.
    pub due: u32,
}

/// The quantile (0 to 1) of these lags in seconds, as if those of a bucket were spread evenly over it; beyond the last bucket
/// it is that bucket's bound.
#[must_use]
pub fn lag_quantile(counts: &[u64], quantile: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = (quantile * total as f64).max(1.0);
    let mut below = 0;
    for (at, count) in counts.iter().enumerate() {
        if *count > 0 && (below + count) as f64 >= rank {
            let Some(upper) = BUCKETS.get(at) else { break };
            let lower = if at == 0 { 0.0 } else { BUCKETS[at - 1] };
            let seconds = lower + (upper - lower) * (rank - below as f64) / *count as f64;
            // A tenth of a millisecond is enough.
            return Some((seconds * 1e4).round() / 1e4);
        }
        below += count;
    }
    BUCKETS.last().copied()
}

/// Counters that only grow, as they stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rows written.
    pub updated: u64,
    /// Flushes that failed.
    pub failures: u64,
    /// Lags.
    pub lags: LagCounts,
}

impl Totals {
    /// What was added since; nothing where a counter began anew.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut lags = [0; BUCKETS.len() + 1];
        for ((lag, now), before) in lags.iter_mut().zip(&self.lags).zip(&before.lags) {
            *lag = now.saturating_sub(*before);
        }
        Self {
            updated: self.updated.saturating_sub(before.updated),
            failures: self.failures.saturating_sub(before.failures),
            lags,
        }
    }

    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.updated += other.updated;
        self.failures += other.failures;
        for (lag, more) in self.lags.iter_mut().zip(&other.lags) {
            *lag += more;
        }
    }
}

/// What was added in each of the last ten seconds.
#[derive(Debug, Default)]
pub struct Window {
    /// With the time that each took.
    slots: VecDeque<(f32, Totals)>,
}

impl Window {
    /// Takes in what came in this long; the oldest goes.
    pub fn push(&mut self, took: Duration, added: Totals) {
        if self.slots.len() == WINDOW_SECONDS {
            self.slots.pop_front();
        }
        self.slots.push_back((took.as_secs_f32(), added));
    }

    /// The sum over the last `slots` slots, and the time they took.
    #[must_use]
    pub fn last(&self, slots: usize) -> (f64, Totals) {
        let mut total = Totals::default();
        let mut seconds = 0.0;
        for (took, added) in self.slots.iter().rev().take(slots) {
            seconds += f64::from(*took);
            total.add(added);
        }
        (seconds, total)
    }

    /// Rates over the whole window.
    #[must_use]
    pub fn rates(&self) -> Rates {
        let (seconds, total) = self.last(WINDOW_SECONDS);
        Rates::of(seconds, &total)
    }

    fn is_silent(&self) -> bool {
        self.slots.iter().all(|(_, added)| *added == Totals::default())
    }
}

/// What the last seconds were like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Rows written per second.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rows_per_second: f64,
    /// Failed flushes per second.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures_per_second: f64,
    /// Lags by bucket; empty when there were none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lags: Vec<u64>,
}

impl Rates {
    fn of(seconds: f64, total: &Totals) -> Self {
        if seconds <= 0.0 {
            return Self::default();
        }
        // Three decimals are enough to look at, and make for short records.
        let rate = |n: u64| (n as f64 / seconds * 1e3).round() / 1e3;
        Self {
            rows_per_second: rate(total.updated),
            failures_per_second: rate(total.failures),
            lags: if total.lags.iter().all(|n| *n == 0) { Vec::new() } else { total.lags.to_vec() },
        }
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Self) {
        self.rows_per_second += other.rows_per_second;
        self.failures_per_second += other.failures_per_second;
        if self.lags.len() < other.lags.len() {
            self.lags.resize(other.lags.len(), 0);
        }
        for (lag, more) in self.lags.iter_mut().zip(&other.lags) {
            *lag += more;
        }
    }
}

fn is_zero(rate: &f64) -> bool {
    *rate == 0.0
}

/// What happened lately to one tenant.
#[derive(Debug)]
pub struct Recent {
    flushes: VecDeque<FlushNote>,
    errors: VecDeque<ErrorNote>,
    history: VecDeque<Point>,
    window: Window,
    /// The counters at the last tick.
    before: Option<Totals>,
    ticks: u64,
    /// When something happened last.
    last: Instant,
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            flushes: VecDeque::new(),
            errors: VecDeque::new(),
            history: VecDeque::new(),
            window: Window::default(),
            before: None,
            ticks: 0,
            last: Instant::now(),
        }
    }
}

impl Recent {
    /// Notes a flush.
    pub fn flushed(&mut self, note: FlushNote) {
        self.last = Instant::now();
        push(&mut self.flushes, note);
    }

    /// Notes a failure. One that repeats the last is that one, later: in an outage of Redis every tenant fails the same way
    /// over and over, and ten thousand of them must not remember each time.
    pub fn failed(&mut self, reason: Reason, detail: &str, at: f64) {
        self.last = Instant::now();
        let detail = detail_of(detail);
        if let Some(before) = self.errors.back_mut()
            && before.reason == reason
            && (before.detail == detail || at - before.at < 1.0)
        {
            before.at = at;
            detail.clone_into(&mut before.detail);
            return;
        }
        push(&mut self.errors, ErrorNote { at, reason: reason.into(), detail: detail.to_owned() });
    }

    /// Takes in the counters as they stand now, `took` after the last time; gives what was added since.
    pub fn tick(&mut self, took: Duration, totals: Totals, due: u64, at: f64) -> Totals {
        // All that a tenant's counters show at its first tick came since it had none of this.
        let added = totals.since(&self.before.unwrap_or_default());
        self.before = Some(totals);
        self.ticks += 1;
        if self.last.elapsed() > QUIET_AFTER {
            self.settle_down();
            return added;
        }
        // One that only fails has no rates, and as long as nothing waits no history.
        if added == Totals::default() && due == 0 && self.history.is_empty() && self.window.is_silent() {
            return added;
        }
        self.window.push(took, added);
        if self.ticks.is_multiple_of(STEP_SECONDS) {
            let (seconds, total) = self.window.last(STEP_SECONDS as usize);
            if self.history.len() == POINTS {
                self.history.pop_front();
            }
            self.history.push_back(Point {
                at: (at * 10.0).round() / 10.0,
                rows_per_second: Rates::of(seconds, &total).rows_per_second as f32,
                p99_seconds: lag_quantile(&total.lags, 0.99).map(|lag| lag as f32),
                due: u32::try_from(due).unwrap_or(u32::MAX),
            });
        }
        added
    }

    fn settle_down(&mut self) {
        if self.history.capacity() == 0 && self.window.is_silent() {
            return;
        }
        self.history = VecDeque::new();
        self.window = Window::default();
        let cut = self.flushes.len().saturating_sub(NOTES_QUIET);
        self.flushes.drain(..cut);
        self.flushes.shrink_to_fit();
        let cut = self.errors.len().saturating_sub(NOTES_QUIET);
        self.errors.drain(..cut);
        self.errors.shrink_to_fit();
    }

    /// Whether nothing has happened for so long that rates are zero and no history is kept.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.history.is_empty() && self.window.is_silent()
    }

    /// Rates over the last seconds.
    #[must_use]
    pub fn rates(&self) -> Rates {
        self.window.rates()
    }

    /// The last `n` flushes, newest first.
    #[must_use]
    pub fn flushes(&self, n: usize) -> Vec<FlushNote> {
        self.flushes.iter().rev().take(n).cloned().collect()
    }

    /// The last `n` failures, newest first.
    #[must_use]
    pub fn errors(&self, n: usize) -> Vec<ErrorNote> {
        self.errors.iter().rev().take(n).cloned().collect()
    }

    /// The history, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<Point> {
        self.history.iter().copied().collect()
    }
}

fn push<T>(notes: &mut VecDeque<T>, note: T) {
    if notes.len() == NOTES {
        notes.pop_front();
    }
    notes.push_back(note);
}

fn detail_of(text: &str) -> &str {
    let cut = (0..=DETAIL_LIMIT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..cut]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn totals(updated: u64, lags_at_2: u64) -> Totals {
        let mut lags = [0; BUCKETS.len() + 1];
        lags[2] = lags_at_2;
        Totals { updated, failures: 0, lags }
    }

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        let mut lags = [0; BUCKETS.len() + 1];
        assert_eq!(lag_quantile(&lags, 0.99), None);
        // Of a thousand between 50 and 75 ms.
        lags[7] = 1_000;
        assert_eq!((lag_quantile(&lags, 0.5), lag_quantile(&lags, 0.99)), (Some(0.0625), Some(0.0748)));
        // One in a thousand took 8 s: that isn't what 99 of 100 took.
        lags[15] = 1;
        assert!(lag_quantile(&lags, 0.99).is_some_and(|p99| p99 < 0.075));
        assert_eq!(lag_quantile(&lags, 1.0), Some(10.0));
        // Beyond the last bound nothing is known but that.
        lags[BUCKETS.len()] = 100_000;
        assert_eq!(lag_quantile(&lags, 0.5), BUCKETS.last().copied());
    }

    fn flush(n: u32) -> FlushNote {
        FlushNote {
            at: f64::from(n),
            trigger: Trigger::Size.into(),
            claimed: n,
            outcomes: Outcomes::default(),
            took_ms: 1_000,
        }
    }

    #[test]
    fn a_note_is_written_and_read_as_by_former_releases() {
        let mut note = flush(7);
        note.outcomes[Outcome::Stale] = 3;
        let written = r#"{"at":7.0,"trigger":"size","claimed":7,"updated":0,"stale":3,"deleted":0,"quarantined":0,"released":0,"took_ms":1000}"#;
        assert_eq!(serde_json::to_string(&note).ok().as_deref(), Some(written));
        let read = |json: &str| serde_json::from_str::<FlushNote>(json).ok();
        assert_eq!(read(written).as_ref(), Some(&note));
        let before_deletions = written.replace(r#""deleted":0,"#, "");
        assert_eq!(read(&before_deletions), Some(note));
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_those_of_the_last_seconds_only() {
        let mut recent = Recent::default();
        for second in 1..=20_u64 {
            recent.tick(SECOND, totals(second * 100, second), 7, second as f64);
        }
        let rates = recent.rates();
        assert!((rates.rows_per_second - 100.0).abs() < 0.001, "{rates:?}");
        let p99 = lag_quantile(&rates.lags, 0.99);
        assert!(p99.is_some_and(|p99| BUCKETS[1] < p99 && p99 <= BUCKETS[2]), "{p99:?}");
        assert_eq!(rates.lags.iter().sum::<u64>(), WINDOW_SECONDS as u64);
        for second in 21..=30_u64 {
            recent.tick(SECOND, totals(2000, 20), 0, second as f64);
        }
        assert_eq!(recent.rates(), Rates::default(), "nothing came in the last ten seconds");
        let history = recent.history();
        assert_eq!(history.len(), 6);
        assert_eq!((history[0].rows_per_second, history[0].due), (100.0, 7));
        assert_eq!(history[5].p99_seconds, None);
    }

    #[tokio::test(start_paused = true)]
    async fn notes_are_bounded_and_a_quiet_tenant_keeps_few() {
        let mut recent = Recent::default();
        for n in 0..200_u32 {
            recent.flushed(flush(n));
            recent.failed(Reason::PostgresConnection, &format!("{n}{}", "é".repeat(1000)), f64::from(2 * n));
            recent.failed(Reason::PostgresConnection, "again", f64::from(2 * n) + 0.5);
        }
        assert_eq!((recent.flushes(1000).len(), recent.errors(1000).len()), (NOTES, NOTES));
        assert_eq!(recent.flushes(1)[0].claimed, 199, "newest first");
        assert_eq!(recent.errors(1)[0].detail, "again");

        recent.tick(SECOND, totals(10, 1), 0, 0.0);
        tokio::time::advance(QUIET_AFTER + SECOND).await;
        recent.tick(SECOND, totals(10, 1), 0, 0.0);
        assert_eq!((recent.flushes(1000).len(), recent.errors(1000).len()), (NOTES_QUIET, NOTES_QUIET));
        assert!(recent.history().is_empty());
        assert_eq!(recent.rates(), Rates::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_repeats_itself_is_one_with_its_last_time() {
        let mut recent = Recent::default();
        for n in 0..1000 {
            recent.failed(Reason::RedisUnavailable, "refused", f64::from(n) * 2.0);
            recent.tick(SECOND, Totals::default(), 0, f64::from(n));
        }
        let errors = recent.errors(1000);
        assert_eq!((errors.len(), errors[0].at), (1, 1998.0));
        assert!(recent.history().is_empty() && recent.window.slots.capacity() == 0, "nothing was written");
    }

    #[test]
    fn details_are_cut_at_a_character() {
        assert_eq!(detail_of(&"é".repeat(1000)).len(), DETAIL_LIMIT);
        assert_eq!(detail_of(&format!("x{}", "é".repeat(1000))).len(), DETAIL_LIMIT - 1);
    }
}
