//! The whole fleet in one look: is any tenant behind, which, and why.

use std::collections::BTreeMap;

use balance_sync_domain::Reported;
use balance_sync_fleet::status::{ReportedState, TenantState, lag_quantile};
use serde::Serialize;

use crate::{
    facts::Fact,
    reader::{FleetRollout, FleetView},
    record::FleetPoint,
    rows::{DeadWorker, StateView, TenantRow, at},
};

mod judge;
mod neighbour;
mod queues;
mod redundancy;
mod rollout;
mod routing;
mod shadow;
#[cfg(test)]
mod tests;
mod to_do;

pub use crate::verdict::{CLOCK_TOLERANCE_SECONDS, Verdict};
pub use neighbour::FleetNeighbour;
pub use queues::FleetQueue;
pub use routing::{FleetRouting, RoutingEntry, RoutingLeft};
pub use shadow::FleetShadow;

/// Tenants shown as the worst.
const WORST: usize = 8;

/// The fleet at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// When this was put together.
    pub generated_at: String,
    /// `ok`, `unavailable` or `refuses_writes`.
    pub redis: &'static str,
    /// What is wrong with Redis.
    pub detail: Option<String>,
    /// In one word.
    pub verdict: Verdict,
    /// Why, in sentences, the worst first.
    pub reasons: Vec<String>,
    /// What helps, the most urgent first.
    pub to_do: Vec<String>,
    /// Workers.
    pub workers: WorkerCount,
    /// Workers that died within the last quarter of an hour, the last first.
    pub dead_workers: Vec<DeadWorker>,
    /// Tenants.
    pub tenants: TenantCount,
    /// Which of them are served.
    pub rollout: FleetRollout,
    /// The Redis servers that there are; `None` where there is one.
    pub redis_directory: Option<FleetRouting>,
    /// What waits.
    pub backlog: BacklogView,
    /// Entries in quarantine; `None` = nothing is known of any tenant.
    pub quarantined: Option<u64>,
    /// Lost balances among them.
    pub losses: Option<u64>,
    /// Entries that an operator has acknowledged, lost ones included.
    pub acknowledged: u64,
    /// The ledger's own queues.
    pub queues: Vec<FleetQueue>,
    /// What is known of the ledger's own worker; `None` = it was seen at no tenant.
    pub neighbour: Option<FleetNeighbour>,
    /// What shadows have found; `None` without any.
    pub shadow: Option<FleetShadow>,
    /// Values that had expired before they were claimed, since the workers' start.
    pub expired_total: u64,
    /// Smallest remaining life of a scheduled value in Redis.
    pub shortest_life_seconds: Option<f64>,
    /// The last seconds.
    pub rates: RatesView,
    /// From a mutation to its row, over the last seconds.
    pub lag: LagView,
    /// Oldest first, a point every 5 s.
    pub history: Vec<FleetPointView>,
    /// What the fleet is made of; while Redis is away, as it was known before.
    pub facts: Vec<FactView>,
    /// Those behind or degraded first.
    pub worst: Vec<TenantRow>,
    /// Collectors that were started again.
    pub restarts_total: u64,
    /// By how much the clock of the host that answers is ahead of Redis's, at least; `None` = not known.
    pub clock_offset_seconds: Option<f64>,
    /// What it is measured by.
    pub settings: OverviewSettings,
}

/// Workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WorkerCount {
    /// It has reported within the last seconds.
    pub live: usize,
    /// Shown as they were before Redis began to refuse writes.
    pub last_known: usize,
}

/// Tenants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantCount {
    /// All.
    pub total: usize,
    /// Those that no live worker serves.
    pub unserved: usize,
    /// Those that are not in the rollout: no worker of this fleet is to serve them.
    pub not_in_rollout: usize,
    /// Those of which nothing is known, as Redis can't be read.
    pub unknown: usize,
    /// The others by state.
    pub by_state: BTreeMap<ReportedState, usize>,
}

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BacklogView {
    /// Members in all schedules; `None`, as all that follow, when nothing is known of any tenant.
    pub scheduled: Option<u64>,
    /// Those whose time has come.
    pub due: Option<u64>,
    /// Those that a worker holds.
    pub leased: Option<u64>,
    /// How long the oldest due one has been due.
    pub oldest_due_age_seconds: Option<f64>,
    /// For how long the oldest balance has waited whose last mutation only Redis has, claimed or not: the scheduled ones would be
    /// missing from the rows if Redis lost its data now.
    pub exposure_age_seconds: Option<f64>,
    /// What that exceeded in 36 seconds of the last hour: the age of the oldest such balance of any tenant. `None` = not known.
    pub exposure_p99_seconds: Option<f64>,
    /// Tenants of which it is not known what waits: they are not in these numbers.
    pub unknown_tenants: usize,
    /// When nothing will be due any more, if it goes on as in the last minute; for commands, as live workers have seen it. `None` where
    /// the backlog doesn't shrink.
    pub eta_seconds: Option<f64>,
    /// How old the oldest of these numbers is, where schedules could be read before and can't be now.
    pub age_seconds: Option<f64>,
}

/// The last seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RatesView {
    /// Rows written per second.
    pub rows_per_second: f64,
    /// Flushes that failed, per second.
    pub failures_per_second: f64,
}

/// From a mutation to its row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LagView {
    /// Median.
    pub p50_seconds: Option<f64>,
    /// What 99 of 100 stayed within.
    pub p99_seconds: Option<f64>,
}

/// One point of the fleet's history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetPointView {
    /// When.
    pub at: String,
    /// Rows written per second.
    pub rows_per_second: f64,
    /// Median lag.
    pub p50_seconds: Option<f64>,
    /// Lag that 99 of 100 stayed within.
    pub p99_seconds: Option<f64>,
    /// Members due.
    pub due: u64,
    /// The oldest of them.
    pub oldest_due_age_seconds: f64,
}

impl From<&FleetPoint> for FleetPointView {
    fn from(point: &FleetPoint) -> Self {
        Self {
            at: at(point.at),
            rows_per_second: point.rows_per_second,
            p50_seconds: point.p50_seconds,
            p99_seconds: point.p99_seconds,
            due: point.due,
            oldest_due_age_seconds: point.oldest_due_age_seconds,
        }
    }
}

/// One fact about the fleet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FactView {
    /// What it is about.
    pub name: &'static str,
    /// What is so.
    pub value: String,
    /// Whether that is as it should be.
    pub well: bool,
    /// Since when it is so; a measurement, since it passed its bound. `None` = not recorded yet.
    pub since: Option<String>,
}

impl From<&Fact> for FactView {
    fn from(fact: &Fact) -> Self {
        Self { name: fact.name, value: fact.value.clone(), well: fact.well, since: fact.since.map(at) }
    }
}

/// What the fleet is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OverviewSettings {
    /// A tenant whose oldest due balance is older counts as behind.
    pub freshness_objective_seconds: f64,
    /// What the p99 of the exposure over an hour should stay within.
    pub exposure_objective_seconds: f64,
}

/// What waits, of the tenants of which it is known.
#[derive(Default)]
struct Waits {
    scheduled: u64,
    due: u64,
    leased: u64,
    oldest_due_age_seconds: f64,
    exposure_age_seconds: f64,
}

impl FleetView {
    /// Whether the numbers of any tenant are known, or there are none.
    fn is_anything_known(&self) -> bool {
        let is_whole = self.tenants.is_empty() && self.unknown_tenants == 0 && self.listed;
        (is_whole && self.redis_error.is_none()) || self.tenants.iter().any(TenantRow::has_numbers)
    }

    /// The largest that any worker has seen. At a given second each knows its own tenants only, so that the fleet's own p99 may be
    /// larger where tenants of several workers were exposed at different times.
    fn exposure_p99_seconds(&self) -> Option<f64> {
        let workers =
            self.workers.iter().filter(|worker| worker.live).map(|worker| worker.exposure_p99_seconds);
        workers.chain(self.tenants.iter().filter_map(|row| row.exposure_p99_seconds)).reduce(f64::max)
    }

    /// The fleet at a glance.
    #[must_use]
    pub fn overview(&self) -> Overview {
        let objective = self.objective_seconds;
        let mut by_state: BTreeMap<ReportedState, usize> =
            TenantState::ALL.into_iter().map(|state| (state.into(), 0)).collect();
        let mut waits = Waits::default();
        let mut unknown_tenants = self.unknown_tenants;
        let (mut unserved, mut outside) = (0, 0);
        let (mut quarantined, mut losses, mut expired) = (0, 0, 0);
        let (mut acknowledged, mut age): (u64, Option<f64>) = (0, None);
        let mut shortest: Option<f64> = None;
        for row in &self.tenants {
            match &row.state {
                StateView::Is(state) => *by_state.entry((*state).into()).or_default() += 1,
                StateView::Other(name) => *by_state.entry(Reported::Other(name.clone())).or_default() += 1,
                StateView::Unserved => unserved += 1,
                StateView::NotInRollout => outside += 1,
            }
            unknown_tenants += usize::from(!row.has_numbers());
            if let Some(seconds) = row.numbers_age_seconds {
                age = Some(age.unwrap_or_default().max(seconds));
            }
            quarantined += row.quarantined;
            losses += row.losses;
            acknowledged += row.quarantined - row.unacknowledged();
            if row.state == StateView::NotInRollout {
                // What waits there is another worker's to write.
                continue;
            }
            waits.scheduled += row.scheduled;
            waits.due += row.due;
            waits.leased += row.leased;
            waits.oldest_due_age_seconds = waits.oldest_due_age_seconds.max(row.oldest_due_age_seconds);
            waits.exposure_age_seconds = waits.exposure_age_seconds.max(row.exposure_age_seconds);
            expired += row.expired_total;
            shortest = match (shortest, row.shortest_life_seconds) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        let is_known = self.is_anything_known();
        let backlog = BacklogView {
            scheduled: is_known.then_some(waits.scheduled),
            due: is_known.then_some(waits.due),
            leased: is_known.then_some(waits.leased),
            oldest_due_age_seconds: is_known.then_some(waits.oldest_due_age_seconds),
            exposure_age_seconds: is_known.then_some(waits.exposure_age_seconds),
            exposure_p99_seconds: self.exposure_p99_seconds(),
            unknown_tenants,
            // Of numbers that are read no more nothing follows.
            eta_seconds: if age.is_none() {
                crate::backlog::eta(&self.history).or(self.published_eta_seconds)
            } else {
                None
            },
            age_seconds: age,
        };
        let (verdict, reasons) = self.judge();
        let mut worst: Vec<&TenantRow> = self.tenants.iter().collect();
        let order = |row: &TenantRow| (self.severity(row), row.oldest_due_age_seconds, row.due as f64);
        // Only the worst are wanted, and there may be thousands.
        let by_severity = |a: &&TenantRow, b: &&TenantRow| {
            let ((ta, oa, da), (tb, ob, db)) = (order(a), order(b));
            tb.cmp(&ta).then(ob.total_cmp(&oa)).then(db.total_cmp(&da)).then(a.id.cmp(&b.id))
        };
        if worst.len() > WORST {
            worst.select_nth_unstable_by(WORST - 1, by_severity);
            worst.truncate(WORST);
        }
        worst.sort_by(by_severity);
        Overview {
            generated_at: at(self.at),
            redis: match (&self.redis_error, &self.writes_refused) {
                (Some(_), _) => "unavailable",
                (None, Some(_)) => "refuses_writes",
                (None, None) => "ok",
            },
            detail: self
                .redis_error
                .clone()
                .or_else(|| self.writes_refused.as_ref().map(|error| error.message.clone())),
            verdict,
            reasons,
            to_do: self.to_do(),
            workers: WorkerCount {
                live: self.workers.iter().filter(|worker| worker.live).count(),
                last_known: self.workers.iter().filter(|worker| !worker.live).count(),
            },
            dead_workers: self.dead_workers.clone(),
            tenants: TenantCount {
                total: self.tenants.len() + self.unknown_tenants,
                unserved,
                not_in_rollout: outside,
                unknown: self.unknown_tenants,
                by_state,
            },
            rollout: self.fleet_rollout(),
            redis_directory: self.fleet_routing(),
            backlog,
            quarantined: is_known.then_some(quarantined),
            losses: is_known.then_some(losses),
            acknowledged,
            queues: self.queues(),
            neighbour: self.neighbour(),
            shadow: self.shadow(),
            expired_total: expired,
            shortest_life_seconds: shortest,
            rates: RatesView {
                rows_per_second: self.rates.rows_per_second,
                failures_per_second: self.rates.failures_per_second,
            },
            lag: LagView {
                p50_seconds: lag_quantile(&self.rates.lags, 0.5),
                p99_seconds: lag_quantile(&self.rates.lags, 0.99),
            },
            history: self.history.iter().map(FleetPointView::from).collect(),
            facts: self.facts.iter().map(FactView::from).collect(),
            worst: worst.into_iter().cloned().collect(),
            restarts_total: self.workers.iter().map(|worker| worker.collector_restarts_total).sum(),
            clock_offset_seconds: self.clock_offset_seconds,
            settings: OverviewSettings {
                freshness_objective_seconds: objective,
                exposure_objective_seconds: self.objectives.exposure.as_secs_f64(),
            },
        }
    }
}
