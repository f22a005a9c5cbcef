//! The worker in this process, as a source of records.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::Addr;
use balance_sync_engine::rollout::Selection;
use balance_sync_fleet::{
    ConnectionBudget,
    backends::{GetDatabaseView, GetUsages, TenantManager},
    clock::{self, wall_clock},
    lifecycle::name::WorkerName,
    status::{
        ExposureHour, FleetStatus, NOTES, Rates, Recent, ReportedState, STEP_SECONDS, SWEEP_EVERY,
        TenantState, TenantStatus, Totals, Window, WorkerMode, lag_quantile,
    },
};
use balance_sync_schedule::{Snapshots, rollout as stored};
use balance_sync_store::PoolUsage;
use balance_sync_tenants::{BreakerState, Tenant};
use tokio::time::Instant;

use crate::record::{
    Counts, DetailRecord, FleetPoint, ListingRecord, NeighbourRecord, ReconcileRecord, RedisMemory,
    RolloutRecord, ServiceRecord, TaskRecord, TenantRecord, WorkerRecord,
};

/// Points of a fleet's history: an hour.
const FLEET_POINTS: usize = 720;
/// Flushes and errors in the detail of a tenant that isn't being viewed.
const NOTES_UNWATCHED: usize = 10;

/// Longest selection of a configuration that is published, in bytes.
const LONGEST_SELECTION: usize = 16 * 1024;

/// This worker, as a source of records.
pub struct LocalWorker {
    /// Its name.
    pub name: WorkerName,
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
    /// Further settings that should be the same on all workers, by their names.
    settings: BTreeMap<String, String>,
    /// Which tenants its configuration selects, as it is published.
    configured: String,
    ticks: AtomicU64,
    window: Mutex<Window>,
    /// Of whichever tenant is exposed longest, each second.
    exposure: Mutex<ExposureHour>,
    started: Instant,
    pools: Mutex<HashMap<Tenant, PoolUsage>>,
    history: Mutex<VecDeque<FleetPoint>>,
    /// What is wrong with Redis.
    redis: Mutex<Option<String>>,
}

/// What [`LocalWorker`] is made of.
pub struct LocalWorkerParts {
    /// Its name.
    pub name: WorkerName,
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
    /// Further settings that should be the same on all workers, by their names.
    pub settings: BTreeMap<String, String>,
    /// Which tenants its configuration selects.
    pub rollout: Arc<Selection>,
}

impl LocalWorker {
    /// A worker that has just been started.
    #[must_use]
    pub fn new(parts: LocalWorkerParts) -> Self {
        let LocalWorkerParts { name, version, replicas, fleet, budget, manager, settings, rollout } = parts;
        let configured =
            Some(stored::encode(&rollout)).filter(|text| text.len() <= LONGEST_SELECTION).unwrap_or_default();
        Self {
            name,
            version,
            started_at: wall_clock(),
            replicas,
            fleet,
            budget,
            manager,
            settings,
            configured,
            ticks: AtomicU64::new(0),
            window: Mutex::default(),
            exposure: Mutex::default(),
            started: Instant::now(),
            pools: Mutex::default(),
            history: Mutex::default(),
            redis: Mutex::default(),
        }
    }

    /// Takes all counters in, `took` after the last time.
    pub fn tick(&self, took: Duration) {
        let at = wall_clock();
        let since_start = self.started.elapsed();
        let mut exposed = Duration::ZERO;
        let mut total = Totals::default();
        self.fleet.rest.settle();
        let mut take_in = |status: &TenantStatus| {
            exposed = exposed.max(status.sample_exposure(since_start).unwrap_or_default());
            if let Some(added) = status.tick(took, at) {
                total.add(&added);
            }
        };
        // Nothing of those at rest is exposed or counted; but what has been leaves the last hour.
        if self.ticks.fetch_add(1, Relaxed).is_multiple_of(SWEEP_EVERY.as_secs()) {
            self.fleet.each(take_in);
        } else {
            self.fleet.rest.active().iter().for_each(|status| take_in(status));
        }
        lock(&self.window).push(took, total);
        let mut exposure = lock(&self.exposure);
        exposure.sample(since_start, exposed);
        self.fleet.exposure_p99_ms.store(millis(exposure.p99()), Relaxed);
    }

    /// Asks how the tenants' connections are used.
    pub async fn look_at_pools(&self) {
        // A manager that is gone leaves no connections.
        let usages = self.manager.send(GetUsages).await.unwrap_or_default();
        *lock(&self.pools) = usages;
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
        let entries = known(status.quarantine_entries.load(Relaxed)).zip(known(status.losses.load(Relaxed)));
        let last = &status.last_sample;
        let last_at = seconds(last.at_ms.load(Relaxed)).filter(|_| entries.is_none());
        let (quarantine_entries, losses) =
            entries.unwrap_or_else(|| (last.quarantine_entries.load(Relaxed), last.losses.load(Relaxed)));
        let batches: Vec<u64> = status.batches.iter().map(|count| count.load(Relaxed)).collect();
        let values_gone = status.values_gone.now();
        TenantRecord {
            state: info.state.into(),
            reason: info.reason.map(Into::into),
            detail: info.detail,
            partial: info.partial,
            since: (info.since * 1e3).round() / 1e3,
            unsampled: entries.is_none(),
            unwatched: !status.watched.load(Relaxed),
            sampled_at: last_at,
            scheduled: status.scheduled.load(Relaxed),
            due: status.due.load(Relaxed),
            leased: status.leased.load(Relaxed),
            oldest_due_age_ms: status.oldest_due_age_ms.load(Relaxed),
            exposure_age_ms: millis(status.exposure_age()),
            exposure_p99_ms: millis(status.exposure_p99()),
            connection_wait_ms: millis(status.connection_wait().unwrap_or_default()),
            ahead_ms: status.ahead_ms.load(Relaxed),
            shortest_life_ms: known(status.shortest_life_ms.load(Relaxed)),
            quarantine_entries,
            losses,
            vanished: status.vanished().map(Into::into),
            values_gone: values_gone.map_or(0, |gone| gone.count),
            values_gone_since: values_gone.map(|gone| (gone.since * 1e3).round() / 1e3),
            queues: status.queues(),
            shadow: status.shadow(),
            neighbour: NeighbourRecord::of(&self.fleet, status),
            rates: status.recent(Recent::rates).unwrap_or_default(),
            counts: Counts {
                outcomes: status.outcomes.map(|count| count.load(Relaxed)),
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
        let database = self.manager.send(GetDatabaseView(status.tenant().clone())).await.ok().flatten();
        DetailRecord { flushes, errors, history, database }
    }

    /// The worker itself.
    #[must_use]
    pub fn worker_record(&self) -> WorkerRecord {
        let fleet = &self.fleet;
        let mut by_state: BTreeMap<ReportedState, u64> =
            TenantState::ALL.into_iter().map(|state| (state.into(), 0)).collect();
        let (mut due, mut oldest) = (0, 0);
        // In this order: one that is roused meanwhile is counted twice, not left out.
        for (state, count) in fleet.rest.resting() {
            *by_state.entry(state.into()).or_default() += count;
        }
        for status in fleet.rest.active() {
            *by_state.entry(status.state().state.into()).or_default() += 1;
            due += status.due.load(Relaxed);
            oldest = oldest.max(status.oldest_due_age_ms.load(Relaxed));
        }
        let passes = fleet.passes.load(Relaxed);
        let is_shadow = fleet.mode() == WorkerMode::Shadow;
        let redis_server = lock(&fleet.redis_server);
        WorkerRecord {
            name: self.name.current().to_string(),
            configured_name: self.name.configured_if_taken().map(str::to_owned),
            mode: fleet.mode().into(),
            version: self.version.clone(),
            started_at: self.started_at,
            seen_at: wall_clock(),
            draining: fleet.draining.load(Relaxed),
            // It looks at all of them, and none is its own.
            owned: if is_shadow { 0 } else { fleet.owned.load(Relaxed) },
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
            postgres: self.budget.servers(),
            due,
            oldest_due_age_ms: oldest,
            exposure_p99_ms: fleet.exposure_p99_ms.load(Relaxed),
            replicas: self.replicas,
            settings: self.settings(),
            clock_offset_ms: fleet.clock_offset_ms.load(),
            clock_jump: fleet.redis_clock_back.lately(),
            tasks: fleet.tasks.reports().into_iter().map(TaskRecord::from).collect(),
            eta_seconds: crate::backlog::eta(lock(&self.history).make_contiguous()),
            listing: fleet.listed().map(|_| ListingRecord {
                total: fleet.wanted.load(Relaxed),
                selected: fleet.selected.load(Relaxed),
            }),
            rollout: Some(RolloutRecord {
                revision: fleet.rollout.current().map(|rollout| rollout.revision()),
                configured: self.configured.clone(),
                problem: fleet.rollout.problem(),
            }),
            redis_memory: redis_server.as_ref().filter(|_| is_shadow).map(RedisMemory::from),
        }
    }

    /// What should be the same on all workers.
    fn settings(&self) -> BTreeMap<String, String> {
        let Some(in_force) = self.fleet.in_force.get() else { return BTreeMap::new() };
        let directory = if self.fleet.directory.service().is_some() { "service" } else { "static" };
        let replicas = self.replicas.map_or_else(|| "all".to_owned(), |replicas| replicas.to_string());
        let mut settings = self.settings.clone();
        if self.fleet.mode() == WorkerMode::Shadow {
            settings.insert("worker.mode".to_owned(), WorkerMode::Shadow.to_string());
        }
        if let Some(routing) = self.fleet.routing.get() {
            settings.insert("redis.directory".to_owned(), routing.in_force().digest());
        }
        let others = [
            ("claim.mode", in_force.claim_mode.to_string()),
            ("tenants.key_form", in_force.key_form.to_string()),
            ("tenants.source", directory.to_owned()),
            ("worker.replicas", replicas),
        ];
        settings.extend(others.map(|(name, value)| (name.to_owned(), value)));
        settings
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

/// By how many milliseconds this host's clock is ahead of Redis's, at least; `None` if Redis doesn't answer.
pub(crate) async fn clock_offset_ms(snapshots: &Snapshots) -> Option<i64> {
    let (begun, asked) = (wall_clock(), Instant::now());
    let read = snapshots.time().await.ok()?;
    Some(clock::clock_offset_ms(begun, asked.elapsed(), read))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing here is left half-written by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
