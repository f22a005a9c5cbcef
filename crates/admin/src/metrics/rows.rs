//! Which tenants get a label of their own, and how the rest is summed.
//!
//! A time series per tenant is what an operator wants and what Prometheus can't bear without bound. The tenants with
//! the largest backlogs get rows of their own, the others share the row [`OTHER`]. Two things make that harder than it
//! looks:
//!
//! - **Counters must not fall.** Summing those who are in `other` at the moment would make it fall when a tenant leaves
//!   it, and Prometheus takes every fall for a restart and counts the whole value anew. So `other` grows by what its
//!   tenants have counted since the last scrape, and keeps that when they leave.
//! - **Rows must not change hands for nothing.** Each tenant that was in the table once costs Prometheus a set of time
//!   series, and small backlogs change all the time. So a tenant that has a row yields it only to a clearly larger
//!   backlog.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    mem,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use balance_sync_domain::LedgerQueue;
use balance_sync_fleet::status::{
    BUCKETS, Histogram, LedgerCounts, LedgerTotals, Outcome, Outcomes, Reason, TenantState, TenantStatus,
    Trigger,
};

use super::neighbour::{self, NeighbourGauges};
use super::queues::{self, QueueGauges};
use super::shadow::{self, ShadowGauges};

/// Label of the row that the remaining tenants share.
pub(super) const OTHER: &str = "other";
/// A tenant with a row is ranked as if its backlog were this many times larger …
const KEEP_FACTOR: u64 = 2;
/// … and this many members more.
const KEEP_SLACK: u64 = 100;

/// The counters of a tenant beside those of outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counter {
    BatchFailures,
    CleanupFailures,
    Skips,
    QuarantineFull,
    Restarts,
}

impl Counter {
    const ALL: [Self; 5] =
        [Self::BatchFailures, Self::CleanupFailures, Self::Skips, Self::QuarantineFull, Self::Restarts];

    fn of(self, status: &TenantStatus) -> &AtomicU64 {
        match self {
            Self::BatchFailures => &status.batch_failures,
            Self::CleanupFailures => &status.cleanup_failures,
            Self::Skips => &status.skips,
            Self::QuarantineFull => &status.quarantine_full,
            Self::Restarts => &status.restarts,
        }
    }
}

/// A histogram at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Distribution {
    cumulative: [u64; BUCKETS.len()],
    /// Number of observations.
    pub(super) count: u64,
    micros: u64,
}

impl Distribution {
    pub(super) fn read(histogram: &Histogram) -> Self {
        let mut cumulative = [0; BUCKETS.len()];
        for (into, value) in cumulative.iter_mut().zip(histogram.cumulative()) {
            *into = value;
        }
        // Bucket and count are two atomics: the count may lag behind, and a bucket above it would be refused.
        let count = histogram.count().max(cumulative[BUCKETS.len() - 1]);
        Self { cumulative, count, micros: (histogram.sum() * 1e6).round() as u64 }
    }

    /// Upper bounds, in seconds, with the number of observations at or below each.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        BUCKETS.into_iter().zip(self.cumulative)
    }

    /// Sum of the observations, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.micros as f64 / 1e6
    }

    fn add_growth(&mut self, now: &Self, before: &Self) {
        for (at, into) in self.cumulative.iter_mut().enumerate() {
            *into += now.cumulative[at].saturating_sub(before.cumulative[at]);
        }
        self.count += now.count.saturating_sub(before.count);
        // The observation that `before` had in its count only is in the growth of the buckets only.
        self.count = self.count.max(self.cumulative[BUCKETS.len() - 1]);
        self.micros += now.micros.saturating_sub(before.micros);
    }
}

/// What a tenant, or several together, have counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Balances by what became of them.
    pub(super) outcomes: Outcomes,
    counters: [u64; Counter::ALL.len()],
    /// Flushes, in the order of [`Trigger::ALL`].
    pub(super) batches: [u64; Trigger::ALL.len()],
    /// Mutation to row.
    pub(super) lag: Distribution,
    /// All its ledgers together, as the ledger's own worker counts.
    pub(super) ledgers: LedgerTotals,
}

impl Totals {
    fn read(status: &TenantStatus, ledgers: &LedgerCounts) -> Self {
        let mut totals = Self {
            ledgers: ledgers.sum(),
            outcomes: status.outcomes.map(|count| count.load(Relaxed)),
            lag: Distribution::read(&status.lag),
            ..Self::default()
        };
        for counter in Counter::ALL {
            totals.counters[counter as usize] = counter.of(status).load(Relaxed);
        }
        for (into, from) in totals.batches.iter_mut().zip(&status.batches) {
            *into = from.load(Relaxed);
        }
        totals
    }

    pub(super) fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    fn add_growth(&mut self, now: &Self, before: &Self) {
        for outcome in Outcome::ALL {
            self.outcomes[outcome] += now.outcomes[outcome].saturating_sub(before.outcomes[outcome]);
        }
        for (at, into) in self.counters.iter_mut().enumerate() {
            *into += now.counters[at].saturating_sub(before.counters[at]);
        }
        for (at, into) in self.batches.iter_mut().enumerate() {
            *into += now.batches[at].saturating_sub(before.batches[at]);
        }
        self.lag.add_growth(&now.lag, &before.lag);
        self.ledgers.add_growth(&now.ledgers, &before.ledgers);
    }
}

/// What a tenant, or several together, are like now.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    /// Members whose time had come.
    pub(super) due: u64,
    /// Members that are held or put off.
    pub(super) leased: u64,
    /// How long the oldest due member had been due, in milliseconds.
    pub(super) oldest_due_age_ms: u64,
    /// Members in the schedule, claimed or not.
    pub(super) exposed: u64,
    /// How long the oldest of them has waited, in milliseconds.
    pub(super) exposure_age_ms: u64,
    /// The p99 of that over the last hour.
    pub(super) exposure_p99_ms: u64,
    /// Entries in quarantine; `None` = not known.
    pub(super) quarantine_entries: Option<u64>,
    /// Lost balances among them; `None` = not known.
    pub(super) losses: Option<u64>,
    /// Tenants that an operator paused.
    pub(super) paused: u64,
    /// Members in a schedule of the key form that isn't configured.
    pub(super) other_form: u64,
    /// Smallest remaining life of a value that waits, in milliseconds; `None` = not known.
    pub(super) shortest_life_ms: Option<u64>,
    /// Tenants of which Redis has lost data, those aside of which nothing is known to be lost.
    pub(super) vanished: u64,
    /// Members that are missing there for certain.
    pub(super) vanished_members: u64,
    /// Values of scheduled balances that are gone.
    pub(super) values_gone: u64,
}

impl Gauges {
    /// Adds a tenant. `alone` = no other tenant is in this row.
    fn add(&mut self, status: &TenantStatus, alone: bool) {
        let paused = status.paused.load(Relaxed);
        self.paused += u64::from(paused);
        self.due += status.due.load(Relaxed);
        self.leased += status.leased.load(Relaxed);
        let exposed = status.due.load(Relaxed) + status.leased.load(Relaxed);
        self.exposed += exposed.max(status.scheduled.load(Relaxed));
        // Also a paused tenant's: it is the worst case that counts here.
        let age = u64::try_from(status.exposure_age().as_millis()).unwrap_or(u64::MAX);
        self.exposure_age_ms = self.exposure_age_ms.max(age);
        let p99 = u64::try_from(status.exposure_p99().as_millis()).unwrap_or(u64::MAX);
        self.exposure_p99_ms = self.exposure_p99_ms.max(p99);
        if alone || !paused {
            // A paused tenant is meant to fall behind: where it has no row of its own it must not hide the others.
            self.oldest_due_age_ms = self.oldest_due_age_ms.max(status.oldest_due_age_ms.load(Relaxed));
        }
        if let Some(entries) = known(&status.quarantine_entries) {
            *self.quarantine_entries.get_or_insert_default() += entries;
        }
        if let Some(losses) = known(&status.losses) {
            *self.losses.get_or_insert_default() += losses;
        }
        self.other_form += status.other_form.load(Relaxed);
        if let Some(open) = status.vanished().filter(|open| !open.is_notice()) {
            self.vanished += 1;
            self.vanished_members += open.extent;
        }
        self.values_gone += status.values_gone.now().map_or(0, |gone| gone.count);
        let life = known(&status.shortest_life_ms);
        self.shortest_life_ms = self.shortest_life_ms.into_iter().chain(life).min();
    }
}

fn known(value: &AtomicU64) -> Option<u64> {
    Some(value.load(Relaxed)).filter(|value| *value != u64::MAX)
}

/// The samples of one value of the label `tenant_id`.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) label: String,
    /// Since when they count, in milliseconds since 1970; `None` = since the worker's start.
    pub(super) since_ms: Option<u64>,
    pub(super) totals: Totals,
    /// The tenant's ledgers, where they have series of their own.
    pub(super) ledgers: LedgerCounts,
    pub(super) gauges: Gauges,
    /// Degraded tenants by reason; at most one in the row of a single tenant.
    pub(super) degraded: BTreeMap<&'static str, u64>,
    /// The ledger's own queues, where this worker looks at them.
    pub(super) queues: BTreeMap<LedgerQueue, QueueGauges>,
    /// What is known of the ledger's own worker.
    pub(super) neighbour: NeighbourGauges,
    /// What a shadow has found; `None` = this worker is none.
    pub(super) shadow: Option<ShadowGauges>,
}

impl Row {
    fn add_now(&mut self, status: &TenantStatus, degraded: Option<&'static str>) {
        self.gauges.add(status, self.label != OTHER);
        queues::add(&mut self.queues, status);
        neighbour::add(&mut self.neighbour, status);
        shadow::add(&mut self.shadow, status);
        if let Some(reason) = degraded {
            *self.degraded.entry(reason).or_default() += 1;
        }
    }
}

/// All tenants at one moment.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// Rows in order of tenant id, [`OTHER`] last.
    pub(super) rows: Vec<Row>,
    /// Tenants by state, in the order of [`TenantState::ALL`].
    pub(super) states: [u64; TenantState::ALL.len()],
    /// Members locked by other workers, all tenants together.
    pub(super) foreign_locked: u64,
    /// Tenants that wait for a connection, and the longest of these waits in seconds.
    pub(super) connection_waits: (u64, f64),
}

/// What was there at the last scrape.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// By the address of the status: a tenant that went and came back has a new one, whose counters begin at 0.
    seen: HashMap<usize, Seen>,
    /// Sum of the tenants without a row; `None` as long as there was none.
    other: Option<Totals>,
}

#[derive(Debug)]
struct Seen {
    /// Keeps the address from being given to another status.
    _status: Weak<TenantStatus>,
    /// `None` = nothing was counted: of thousands of tenants most are idle, and the totals are large.
    totals: Option<Box<Totals>>,
    has_row: bool,
}

impl Memory {
    /// Reads all tenants, given in order of id, and gives at most `limit` of them a row, with at most `ledgers` of their ledgers.
    pub(super) fn snapshot(
        &mut self,
        tenants: &[Arc<TenantStatus>],
        limit: usize,
        ledgers: usize,
    ) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut before = mem::take(&mut self.seen);
        let has_row = self.choose(&before, tenants, limit);
        let mut other = Row { label: OTHER.to_owned(), ..Row::default() };
        let nothing = Totals::default();

        for (status, has_row) in tenants.iter().zip(has_row) {
            let address = Arc::as_ptr(status).addr();
            let counts = status.ledgers.read(ledgers);
            let now = Totals::read(status, &counts);
            let last = before.remove(&address).and_then(|seen| seen.totals);

            let state = status.state();
            let at = TenantState::ALL.iter().position(|known| *known == state.state).unwrap_or_default();
            snapshot.states[at] += 1;
            let degraded = (state.state == TenantState::Degraded)
                .then(|| state.reason.map_or("unknown", Reason::as_str));

            snapshot.foreign_locked += status.foreign_locked.load(Relaxed);
            if let Some(wait) = status.connection_wait() {
                let (tenants, longest) = snapshot.connection_waits;
                snapshot.connection_waits = (tenants + 1, longest.max(wait.as_secs_f64()));
            }

            if has_row {
                let mut row = Row {
                    label: status.tenant().label().to_owned(),
                    since_ms: Some(status.counts_since_ms),
                    totals: now.clone(),
                    ledgers: counts,
                    ..Row::default()
                };
                row.add_now(status, degraded);
                snapshot.rows.push(row);
            } else {
                self.other.get_or_insert_default().add_growth(&now, last.as_deref().unwrap_or(&nothing));
                other.add_now(status, degraded);
            }
            let totals = (now != nothing).then(|| match last {
                Some(mut room) => {
                    *room = now;
                    room
                }
                None => Box::new(now),
            });
            self.seen.insert(address, Seen { _status: Arc::downgrade(status), totals, has_row });
        }

        if let Some(totals) = &self.other {
            // It stays once it was there, so that its counters don't come and go.
            snapshot.rows.push(Row { totals: totals.clone(), ..other });
        }
        snapshot
    }

    /// Which of the tenants get a row.
    fn choose(
        &self,
        before: &HashMap<usize, Seen>,
        tenants: &[Arc<TenantStatus>],
        limit: usize,
    ) -> Vec<bool> {
        // A tenant that is really called `other` must not have a second row of that label.
        let (eligible, candidates): (Vec<usize>, Vec<Candidate>) = tenants
            .iter()
            .enumerate()
            .filter(|(_, status)| status.tenant().label() != OTHER)
            .map(|(at, status)| {
                let has_row = before.get(&Arc::as_ptr(status).addr()).is_some_and(|seen| seen.has_row);
                (at, Candidate { backlog: status.scheduled.load(Relaxed), has_row })
            })
            .unzip();
        let mut has_row = vec![false; tenants.len()];
        for at in choose(&candidates, limit) {
            has_row[eligible[at]] = true;
        }
        has_row
    }
}

/// A tenant that may get a row.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    backlog: u64,
    /// It had one at the last scrape.
    has_row: bool,
}

impl Candidate {
    fn rank(&self) -> u64 {
        if self.has_row {
            self.backlog.saturating_mul(KEEP_FACTOR).saturating_add(KEEP_SLACK)
        } else {
            self.backlog
        }
    }
}

/// The indices of those who get a row: by rank, then by place, which is the order of ids.
fn choose(candidates: &[Candidate], limit: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    if candidates.len() > limit {
        order.sort_by_key(|at| (Reverse(candidates[*at].rank()), *at));
        order.truncate(limit);
    }
    order
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use balance_sync_domain::TenantId;
    use balance_sync_fleet::status::FleetStatus;
    use balance_sync_tenants::Tenant;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn add(fleet: &FleetStatus, id: &str, scheduled: u64, updated: u64) -> Arc<TenantStatus> {
        let status = fleet.tenant(&Tenant::Id(TenantId::parse(id).unwrap()));
        status.scheduled.store(scheduled, Relaxed);
        status.outcomes[Outcome::Updated].store(updated, Relaxed);
        status
    }

    fn updated(snapshot: &Snapshot) -> Vec<(&str, u64)> {
        snapshot.rows.iter().map(|row| (row.label.as_str(), row.totals.outcomes[Outcome::Updated])).collect()
    }

    #[test]
    fn an_idle_tenant_costs_next_to_nothing_between_scrapes() {
        let fleet = FleetStatus::default();
        let mut memory = Memory::default();
        add(&fleet, "idle", 0, 0);
        add(&fleet, "busy", 0, 1);
        memory.snapshot(&fleet.tenants(), 9, 8);
        let kept = memory.seen.values().filter(|seen| seen.totals.is_some()).count();
        assert_eq!(kept, 1, "totals are kept for who has counted something");
        assert!(size_of::<Seen>() <= 32, "{} bytes", size_of::<Seen>());
    }

    #[test]
    fn the_largest_backlogs_get_rows_the_rest_is_summed() {
        let fleet = FleetStatus::default();
        let mut memory = Memory::default();
        for (id, scheduled, count) in [("a", 5, 1), ("b", 900, 10), ("c", 5, 100), ("d", 7, 1000)] {
            add(&fleet, id, scheduled, count);
        }
        assert_eq!(
            updated(&memory.snapshot(&fleet.tenants(), 9, 8)),
            [("a", 1), ("b", 10), ("c", 100), ("d", 1000)],
            "nothing is summed below the limit"
        );

        let mut memory = Memory::default();
        let snapshot = memory.snapshot(&fleet.tenants(), 3, 8);
        assert_eq!(updated(&snapshot), [("a", 1), ("b", 10), ("d", 1000), (OTHER, 100)], "a before c by id");
    }

    #[test]
    fn other_keeps_what_its_tenants_counted_when_they_leave_it() {
        let fleet = FleetStatus::default();
        let mut memory = Memory::default();
        add(&fleet, "a", 1000, 1);
        let b = add(&fleet, "b", 0, 50);
        let c = add(&fleet, "c", 0, 7);
        assert_eq!(updated(&memory.snapshot(&fleet.tenants(), 1, 8)), [("a", 1), (OTHER, 57)]);

        // b gets the row: its own count is whole, other loses nothing, and a's growth from now on is other's.
        b.scheduled.store(1_000_000, Relaxed);
        b.outcomes[Outcome::Updated].store(60, Relaxed);
        assert_eq!(updated(&memory.snapshot(&fleet.tenants(), 1, 8)), [("b", 60), (OTHER, 57)]);
        add(&fleet, "a", 1000, 4);
        assert_eq!(updated(&memory.snapshot(&fleet.tenants(), 1, 8)), [("b", 60), (OTHER, 60)]);

        // Tenants that are forgotten take nothing away either, and one that comes back begins anew.
        fleet.forget(c.tenant());
        assert_eq!(updated(&memory.snapshot(&fleet.tenants(), 1, 8)), [("b", 60), (OTHER, 60)]);
        add(&fleet, "c", 0, 9);
        assert_eq!(updated(&memory.snapshot(&fleet.tenants(), 1, 8)), [("b", 60), (OTHER, 69)]);
    }

    #[test]
    fn a_row_is_yielded_to_a_clearly_larger_backlog_only() {
        let fleet = FleetStatus::default();
        let mut memory = Memory::default();
        add(&fleet, "a", 10, 0);
        let b = add(&fleet, "b", 0, 0);
        let first = |snapshot: Snapshot| snapshot.rows[0].label.clone();
        assert_eq!(first(memory.snapshot(&fleet.tenants(), 1, 8)), "a");
        b.scheduled.store(120, Relaxed);
        assert_eq!(first(memory.snapshot(&fleet.tenants(), 1, 8)), "a");
        b.scheduled.store(121, Relaxed);
        assert_eq!(first(memory.snapshot(&fleet.tenants(), 1, 8)), "b");
    }

    #[test]
    fn a_tenant_called_other_shares_the_row_of_that_name() {
        let fleet = FleetStatus::default();
        let mut memory = Memory::default();
        add(&fleet, "other", 99, 5);
        add(&fleet, "z", 0, 6);
        assert_eq!(updated(&memory.snapshot(&fleet.tenants(), 9, 8)), [("z", 6), (OTHER, 5)]);
    }

    #[test]
    fn a_paused_tenant_hides_no_other_and_what_is_not_known_counts_for_nothing() {
        let fleet = FleetStatus::default();
        for (id, age, entries) in [("a", 90_000, u64::MAX), ("b", 200, 3), ("c", 700, 4)] {
            let status = add(&fleet, id, 0, 0);
            status.oldest_due_age_ms.store(age, Relaxed);
            status.quarantine_entries.store(entries, Relaxed);
            status.due.store(2, Relaxed);
            status.paused.store(id == "a", Relaxed);
        }
        let shared = &Memory::default().snapshot(&fleet.tenants(), 0, 8).rows[0].gauges;
        assert_eq!((shared.oldest_due_age_ms, shared.paused, shared.due), (700, 1, 6));
        assert_eq!(shared.quarantine_entries, Some(7));
        let own = &Memory::default().snapshot(&fleet.tenants(), 9, 8).rows[0].gauges;
        assert_eq!((own.oldest_due_age_ms, own.paused, own.quarantine_entries), (90_000, 1, None));
    }

    #[test]
    fn the_shared_row_has_the_smallest_life_and_counts_the_degraded() {
        let fleet = FleetStatus::default();
        for (id, life) in [("a", 9000), ("b", u64::MAX), ("c", 4000)] {
            add(&fleet, id, 0, 0).shortest_life_ms.store(life, Relaxed);
        }
        add(&fleet, "a", 0, 0).degrade(Reason::RedisBusy, String::new());
        add(&fleet, "b", 0, 0).degrade(Reason::RedisBusy, String::new());
        let snapshot = Memory::default().snapshot(&fleet.tenants(), 0, 8);
        assert_eq!(snapshot.rows.len(), 1);
        assert_eq!(snapshot.rows[0].gauges.shortest_life_ms, Some(4000));
        assert_eq!(snapshot.rows[0].degraded, BTreeMap::from([("redis_busy", 2)]));
        assert_eq!(snapshot.states.iter().sum::<u64>(), 3);
    }

    #[test]
    fn a_histogram_is_whole_even_if_the_count_lags_behind() {
        let before = Distribution { cumulative: [9; BUCKETS.len()], count: 10, micros: 0 };
        let now = Distribution { cumulative: [10; BUCKETS.len()], count: 10, micros: 5 };
        let mut sum = Distribution::default();
        sum.add_growth(&now, &before);
        assert_eq!((sum.cumulative[BUCKETS.len() - 1], sum.count, sum.micros), (1, 1, 5));
    }

    #[test]
    fn reading_while_others_count_never_gives_a_bucket_above_the_count() {
        let histogram = Histogram::default();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    histogram.observe(0.004);
                }
            });
            for _ in 0..10_000 {
                let read = Distribution::read(&histogram);
                assert!(read.cumulative.is_sorted() && read.count >= read.cumulative[BUCKETS.len() - 1]);
            }
            stop.store(true, Relaxed);
        });
    }

    proptest! {
        #[test]
        fn as_many_as_allowed_are_chosen_and_choosing_again_changes_nothing(
            tenants in vec((0_u64..500, any::<bool>()), 0..60),
            limit in 0_usize..70,
        ) {
            let candidates: Vec<_> =
                tenants.iter().map(|(backlog, has_row)| Candidate { backlog: *backlog, has_row: *has_row }).collect();
            let chosen = choose(&candidates, limit);
            prop_assert_eq!(chosen.len(), limit.min(candidates.len()));

            let mut again = candidates;
            for (at, candidate) in again.iter_mut().enumerate() {
                candidate.has_row = chosen.contains(&at);
            }
            let mut second = choose(&again, limit);
            let mut first = chosen;
            first.sort_unstable();
            second.sort_unstable();
            prop_assert_eq!(first, second);
        }

        #[test]
        fn counters_never_fall(
            steps in vec(vec((0_u64..1000, 0_u64..50), 6), 1..12),
            limit in 0_usize..7,
        ) {
            let fleet = FleetStatus::default();
            let mut memory = Memory::default();
            let tenants: Vec<_> = (0..6).map(|n| add(&fleet, &format!("t{n}"), 0, 0)).collect();
            let mut last: HashMap<String, u64> = HashMap::new();
            for step in steps {
                for (status, (scheduled, growth)) in tenants.iter().zip(step) {
                    status.scheduled.store(scheduled, Relaxed);
                    status.outcomes[Outcome::Updated].fetch_add(growth, Relaxed);
                }
                let snapshot = memory.snapshot(&fleet.tenants(), limit, 8);
                for (label, count) in updated(&snapshot) {
                    prop_assert!(count >= last.insert(label.to_owned(), count).unwrap_or(0), "{} fell", label);
                }
            }
        }
    }
}
