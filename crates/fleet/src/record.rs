//! What a worker tells about itself and its tenants: the records that it publishes for the others, and shows itself.
//!
//! Whatever has its usual value is left out, so that the record of an idle tenant is a few dozen bytes.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::Addr;
use balance_sync_store::{ConnectionBudget, PoolUsage};
use balance_sync_tenants::{BreakerState, Tenant};
use serde::{Deserialize, Serialize};

use crate::{
    backends::{DatabaseShown, GetShown, GetUsages, TenantManager},
    clock::wall_clock,
    status::{
        ErrorNote, FleetStatus, FlushNote, NOTES, Point, Rates, STEP_SECONDS, TenantState, TenantStatus,
        Totals, Window, lag_quantile,
    },
    tasks::{TaskReport, TaskState},
};

/// Points of a fleet's history: an hour.
const FLEET_POINTS: usize = 720;
/// Flushes and errors in the detail of a tenant at which nobody looks.
const NOTES_UNWATCHED: usize = 10;

// -- records -----------------------------------------------------------------------------------------------------------

/// A tenant, as one of its workers knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantRecord {
    /// What its collector does.
    pub state: TenantState,
    /// Why, when degraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Since when, in seconds since 1970.
    pub since: f64,
    /// Members in the schedule.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub scheduled: u64,
    /// Those whose time has come.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub due: u64,
    /// Those that a worker holds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub leased: u64,
    /// How long the oldest due one has been due.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub oldest_due_age_ms: u64,
    /// Smallest remaining life of a scheduled value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortest_life_ms: Option<u64>,
    /// Entries in quarantine.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub quarantine_entries: u64,
    /// Lost balances among them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub losses: u64,
    /// The last seconds.
    #[serde(flatten)]
    pub rates: Rates,
    /// Counters since the worker's start.
    #[serde(flatten)]
    pub counts: Counts,
    /// Its connections, if any are open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
}

/// Counters of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Rows written.
    #[serde(skip_serializing_if = "is_zero")]
    pub updated: u64,
    /// Balances whose row was as new or newer.
    #[serde(skip_serializing_if = "is_zero")]
    pub stale: u64,
    /// Balances whose row is deleted.
    #[serde(skip_serializing_if = "is_zero")]
    pub deleted: u64,
    /// Members put in quarantine.
    #[serde(skip_serializing_if = "is_zero")]
    pub quarantined: u64,
    /// Members whose value had expired.
    #[serde(skip_serializing_if = "is_zero")]
    pub expired: u64,
    /// Members that stayed scheduled at settling.
    #[serde(skip_serializing_if = "is_zero")]
    pub kept: u64,
    /// Members given back.
    #[serde(skip_serializing_if = "is_zero")]
    pub released: u64,
    /// Flushes that failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u64,
    /// Starts of the collector after the first.
    #[serde(skip_serializing_if = "is_zero")]
    pub restarts: u64,
    /// Flushes by trigger, in the order of [`crate::status::Trigger::ALL`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<u64>,
}

impl Counts {
    /// Adds another worker's.
    pub fn add(&mut self, other: &Self) {
        self.updated += other.updated;
        self.stale += other.stale;
        self.deleted += other.deleted;
        self.quarantined += other.quarantined;
        self.expired += other.expired;
        self.kept += other.kept;
        self.released += other.released;
        self.failures += other.failures;
        self.restarts += other.restarts;
        if self.batches.len() < other.batches.len() {
            self.batches.resize(other.batches.len(), 0);
        }
        for (count, more) in self.batches.iter_mut().zip(&other.batches) {
            *count += more;
        }
    }
}

/// Connections of one tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Those that exist.
    pub open: u32,
    /// Those at work.
    pub in_use: u32,
    /// Those that nobody uses.
    pub idle: u32,
    /// Most that may exist.
    pub limit: u32,
}

impl From<PoolUsage> for Pool {
    fn from(usage: PoolUsage) -> Self {
        Self { open: usage.open, in_use: usage.in_use, idle: usage.idle, limit: usage.limit }
    }
}

/// More about a tenant, for whoever looks at it alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DetailRecord {
    /// Newest first.
    pub flushes: Vec<FlushNote>,
    /// Newest first.
    pub errors: Vec<ErrorNote>,
    /// Oldest first.
    pub history: Vec<Point>,
    /// Where its balances are written, if that is known.
    pub database: Option<DatabaseShown>,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Seconds since 1970.
    pub started_at: f64,
    /// When this was written, in seconds since 1970.
    pub seen_at: f64,
    /// It is on its way out.
    pub draining: bool,
    /// Tenants that it looks after.
    pub owned: u64,
    /// Those by state.
    pub by_state: BTreeMap<TenantState, u64>,
    /// The last seconds.
    pub rates: Rates,
    /// Resident memory.
    pub rss_bytes: u64,
    /// `ok`, or what is wrong with its Redis.
    pub redis: String,
    /// The tenant service.
    pub tenant_service: ServiceRecord,
    /// Reconcile passes.
    pub reconcile: ReconcileRecord,
    /// Collectors that were started again.
    pub restarts: u64,
    /// Connections per Postgres server.
    pub postgres: Vec<ServerRecord>,
    /// Members due, over its tenants.
    pub due: u64,
    /// The oldest of them.
    pub oldest_due_age_ms: u64,
    /// Workers per tenant; `None` = all.
    pub replicas: Option<u64>,
    /// Its background tasks.
    #[serde(default)]
    pub tasks: Vec<TaskRecord>,
}

/// A background task of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The name of a [`crate::tasks::TaskName`]; another version may know others.
    pub name: String,
    /// The thread it belongs to, where each has one.
    pub thread: Option<usize>,
    /// How it does.
    pub state: TaskState,
    /// Times it was started again.
    pub restarts: u64,
    /// When it last made progress, in seconds since 1970.
    pub progress_at: f64,
    /// How the last run ended that ended early.
    pub last_end: Option<String>,
}

impl From<TaskReport> for TaskRecord {
    fn from(task: TaskReport) -> Self {
        Self {
            name: task.name.name().to_owned(),
            thread: task.thread,
            state: task.state(),
            restarts: task.restarts,
            progress_at: task.progress_at_ms as f64 / 1e3,
            last_end: task.last_end,
        }
    }
}

/// What a worker knows of the tenant service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// `ok`, `failing`, `breaker_open` or `static`.
    pub state: String,
    /// When it answered last, in seconds since 1970.
    pub last_success_at: Option<f64>,
    /// Requests or polls that failed.
    pub failures: u64,
}

/// How reconciling goes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReconcileRecord {
    /// Passes.
    pub passes: u64,
    /// When the last one ended, in seconds since 1970.
    pub last_at: Option<f64>,
    /// How long it took.
    pub last_duration_seconds: f64,
}

/// Connections on one Postgres server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// `host:port`.
    pub server: String,
    /// Those that exist.
    pub open: u64,
    /// Those at work.
    pub in_use: u64,
    /// Those that nobody uses.
    pub idle: u64,
    /// Operations that wait for one.
    pub waiting: u64,
    /// Most that may exist.
    pub limit: u64,
}

/// One point of the fleet's history.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FleetPoint {
    /// In seconds since 1970.
    pub at: f64,
    /// Rows written per second.
    pub rows_per_second: f64,
    /// Median lag.
    pub p50_seconds: Option<f64>,
    /// Lag that 99 of 100 balances stayed within.
    pub p99_seconds: Option<f64>,
    /// Members due.
    pub due: u64,
    /// The oldest of them.
    pub oldest_due_age_seconds: f64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

// -- this worker -------------------------------------------------------------------------------------------------------

/// This worker, as a source of records.
pub struct Own {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// When it was started, in seconds since 1970.
    pub started_at: f64,
    /// Workers per tenant; `None` = all.
    pub replicas: Option<u64>,
    /// Its states and counters.
    pub fleet: Arc<FleetStatus>,
    /// Its connections.
    pub budget: ConnectionBudget,
    /// Who knows its databases.
    pub manager: Addr<TenantManager>,
    window: Mutex<Window>,
    pools: Mutex<HashMap<Tenant, Pool>>,
    history: Mutex<VecDeque<FleetPoint>>,
    /// What is wrong with Redis.
    redis: Mutex<Option<String>>,
}

/// What [`Own`] is made of.
pub struct OwnParts {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Workers per tenant; `None` = all.
    pub replicas: Option<u64>,
    /// Its states and counters.
    pub fleet: Arc<FleetStatus>,
    /// Its connections.
    pub budget: ConnectionBudget,
    /// Who knows its databases.
    pub manager: Addr<TenantManager>,
}

impl Own {
    /// A worker that has just been started.
    #[must_use]
    pub fn new(parts: OwnParts) -> Self {
        let OwnParts { name, version, replicas, fleet, budget, manager } = parts;
        Self {
            name,
            version,
            started_at: wall_clock(),
            replicas,
            fleet,
            budget,
            manager,
            window: Mutex::default(),
            pools: Mutex::default(),
            history: Mutex::default(),
            redis: Mutex::default(),
        }
    }

    /// Takes all counters in, `took` after the last time.
    pub fn tick(&self, took: Duration) {
        let at = wall_clock();
        let mut total = Totals::default();
        self.fleet.each(|status| {
            if let Some(added) = status.tick(took, at) {
                total.add(&added);
            }
        });
        lock(&self.window).push(took, total);
    }

    /// Asks how the tenants' connections are used.
    pub async fn look_at_pools(&self) {
        // A manager that is gone leaves no connections.
        let usages = self.manager.send(GetUsages).await.unwrap_or_default();
        *lock(&self.pools) = usages.into_iter().map(|(tenant, usage)| (tenant, usage.into())).collect();
    }

    /// Notes whether Redis answered.
    pub fn redis_answered(&self, error: Option<String>) {
        *lock(&self.redis) = error;
    }

    /// What is wrong with Redis, if anything is.
    #[must_use]
    pub fn redis_error(&self) -> Option<String> {
        lock(&self.redis).clone()
    }

    /// One of its tenants.
    #[must_use]
    pub fn tenant_record(&self, status: &TenantStatus) -> TenantRecord {
        let info = status.state();
        let known = |n: u64| (n != u64::MAX).then_some(n);
        let batches: Vec<u64> = status.batches.iter().map(|count| count.load(Relaxed)).collect();
        TenantRecord {
            state: info.state,
            reason: info.reason.map(str::to_owned),
            detail: info.detail,
            since: (info.since * 1e3).round() / 1e3,
            scheduled: status.scheduled.load(Relaxed),
            due: status.due.load(Relaxed),
            leased: status.leased.load(Relaxed),
            oldest_due_age_ms: status.oldest_due_age_ms.load(Relaxed),
            shortest_life_ms: known(status.shortest_life_ms.load(Relaxed)),
            quarantine_entries: known(status.quarantine_entries.load(Relaxed)).unwrap_or_default(),
            losses: known(status.losses.load(Relaxed)).unwrap_or_default(),
            rates: status.recent(crate::status::Recent::rates).unwrap_or_default(),
            counts: Counts {
                updated: status.updated.load(Relaxed),
                stale: status.stale.load(Relaxed),
                deleted: status.deleted.load(Relaxed),
                quarantined: status.quarantined.load(Relaxed),
                expired: status.expired.load(Relaxed),
                kept: status.kept.load(Relaxed),
                released: status.released.load(Relaxed),
                failures: status.batch_failures.load(Relaxed),
                restarts: status.restarts.load(Relaxed),
                batches: if batches.iter().all(|n| *n == 0) { Vec::new() } else { batches },
            },
            pool: lock(&self.pools).get(status.tenant()).copied(),
        }
    }

    /// More about one of its tenants; `all` = as much as there is.
    pub async fn detail_record(&self, status: &TenantStatus, all: bool) -> DetailRecord {
        let notes = if all { NOTES } else { NOTES_UNWATCHED };
        let (flushes, errors, history) = status
            .recent(|recent| {
                let history = if all { recent.history() } else { Vec::new() };
                (recent.flushes(notes), recent.errors(notes), history)
            })
            .unwrap_or_default();
        let database = self.manager.send(GetShown(status.tenant().clone())).await.ok().flatten();
        DetailRecord { flushes, errors, history, database }
    }

    /// The worker itself.
    #[must_use]
    pub fn worker_record(&self) -> WorkerRecord {
        let fleet = &self.fleet;
        let mut by_state: BTreeMap<TenantState, u64> =
            TenantState::ALL.into_iter().map(|state| (state, 0)).collect();
        let (mut due, mut oldest) = (0, 0);
        fleet.each(|status| {
            *by_state.entry(status.state().state).or_default() += 1;
            due += status.due.load(Relaxed);
            oldest = oldest.max(status.oldest_due_age_ms.load(Relaxed));
        });
        let passes = fleet.passes.load(Relaxed);
        let postgres = self
            .budget
            .servers()
            .into_iter()
            .map(|usage| ServerRecord {
                server: usage.server,
                open: usage.open as u64,
                in_use: usage.in_use as u64,
                idle: usage.idle as u64,
                waiting: usage.waiting as u64,
                limit: usage.limit as u64,
            })
            .collect();
        WorkerRecord {
            name: self.name.clone(),
            version: self.version.clone(),
            started_at: self.started_at,
            seen_at: wall_clock(),
            draining: fleet.draining.load(Relaxed),
            owned: fleet.owned.load(Relaxed),
            by_state,
            rates: lock(&self.window).rates(),
            rss_bytes: resident_bytes(),
            redis: self.redis_error().unwrap_or_else(|| "ok".to_owned()),
            tenant_service: self.service_record(),
            reconcile: ReconcileRecord {
                passes,
                last_at: seconds(fleet.last_pass_at_ms.load(Relaxed)),
                last_duration_seconds: fleet.last_pass_us.load(Relaxed) as f64 / 1e6,
            },
            restarts: fleet.restarts.load(Relaxed),
            postgres,
            due,
            oldest_due_age_ms: oldest,
            replicas: self.replicas,
            tasks: fleet.tasks.reports().into_iter().map(TaskRecord::from).collect(),
        }
    }

    fn service_record(&self) -> ServiceRecord {
        let directory = &self.fleet.directory;
        let last_success_at = seconds(directory.last_success_ms.load(Relaxed));
        let Some(stats) = directory.service() else {
            return ServiceRecord { state: "static".to_owned(), last_success_at, failures: 0 };
        };
        let state = match stats.breaker {
            BreakerState::Open => "breaker_open",
            BreakerState::Closed if !self.fleet.poll_failing.load(Relaxed) => "ok",
            BreakerState::Closed | BreakerState::HalfOpen => "failing",
        };
        ServiceRecord { state: state.to_owned(), last_success_at, failures: stats.failures }
    }

    /// Adds a point to the fleet's history, out of what all live workers say, this one among them.
    pub fn remember(&self, workers: &[WorkerRecord]) {
        let mut rates = Rates::default();
        workers.iter().for_each(|worker| rates.add(&worker.rates));
        // Each of its owners counts a tenant's members.
        let live = workers.len().max(1) as u64;
        let owners = self.replicas.map_or(live, |replicas| replicas.clamp(1, live));
        let due: u64 = workers.iter().map(|worker| worker.due).sum();
        let oldest = workers.iter().map(|worker| worker.oldest_due_age_ms).max().unwrap_or_default();
        let point = FleetPoint {
            at: (wall_clock() * 10.0).round() / 10.0,
            rows_per_second: rates.rows_per_second,
            p50_seconds: lag_quantile(&rates.lags, 0.5),
            p99_seconds: lag_quantile(&rates.lags, 0.99),
            due: due.div_ceil(owners),
            oldest_due_age_seconds: oldest as f64 / 1e3,
        };
        let mut history = lock(&self.history);
        if history.len() == FLEET_POINTS {
            history.pop_front();
        }
        history.push_back(point);
    }

    /// The fleet's history, oldest first, a point every [`STEP_SECONDS`].
    #[must_use]
    pub fn history(&self) -> Vec<FleetPoint> {
        lock(&self.history).iter().copied().collect()
    }

    /// Time from one point of the fleet's history to the next.
    #[must_use]
    pub fn step() -> Duration {
        Duration::from_secs(STEP_SECONDS)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing here is left half-written by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A time in milliseconds since 1970, if there is one.
fn seconds(millis: u64) -> Option<f64> {
    (millis > 0).then_some(millis as f64 / 1e3)
}

/// Resident memory of this process; 0 where the system doesn't tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}
