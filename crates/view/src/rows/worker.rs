//! A worker at a glance.

use balance_sync_domain::Reported;
use balance_sync_fleet::{
    status::{ClockJump, ReportedState, WorkerMode},
    tasks::{TaskName, TaskState},
};
use balance_sync_store::ServerUsage;
use serde::Serialize;
use std::collections::BTreeMap;

use super::at;
use crate::record::{RedisMemory, RolloutRecord, TaskRecord, WorkerRecord};

/// A worker at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerRow {
    /// Its name.
    pub name: String,
    /// Its configured name, where another worker had that.
    pub configured_name: Option<String>,
    /// What it does with its tenants: `sync`, or `shadow` (it only looks).
    pub mode: Reported<WorkerMode>,
    /// Its version.
    pub version: String,
    /// When it was started.
    pub started_at: String,
    /// When it last reported.
    pub seen_at: String,
    /// How long it has been running.
    pub uptime_seconds: f64,
    /// It is on its way out.
    pub draining: bool,
    /// Tenants it looks after.
    pub tenants_owned: u64,
    /// Those by state.
    pub tenants_by_state: BTreeMap<ReportedState, u64>,
    /// Rows written per second, over the last seconds.
    pub rows_per_second: f64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// `ok`, or what is wrong with its Redis.
    pub redis: String,
    /// The tenant service, as it knows it.
    pub tenant_service: ServiceView,
    /// Its reconcile passes.
    pub reconcile: ReconcileView,
    /// Collectors that it started again.
    pub collector_restarts_total: u64,
    /// Its background tasks.
    pub background_tasks: Vec<TaskView>,
    /// The p99 over the last hour of the exposure of whichever of its tenants is exposed longest.
    #[serde(skip)]
    pub exposure_p99_seconds: f64,
    /// Its connections per Postgres server.
    pub postgres: Vec<ServerUsage>,
    /// Settings in force that should be the same on all workers, by their names.
    pub settings: BTreeMap<String, String>,
    /// By how much its clock is ahead of Redis's, at least; negative = behind.
    pub clock_offset_seconds: Option<f64>,
    /// Redis's clock went back lately, as it has noticed.
    #[serde(skip)]
    pub clock_jump: Option<ClockJump>,
    /// Which tenants it serves; `None` = it is of an earlier release, and serves all.
    pub rollout: Option<RolloutRecord>,
    /// What Redis says of its memory, as a shadow has asked it.
    pub redis_memory: Option<RedisMemory>,
    /// Whether it has reported within the last seconds. False only while Redis refuses writes, so that no worker can report: it
    /// is shown as it was last reported.
    pub live: bool,
    /// Whether it is the one that answers.
    #[serde(rename = "self")]
    pub is_self: bool,
}

/// A background task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskView {
    /// Its name.
    pub name: String,
    /// The thread it belongs to, where each has one.
    pub thread: Option<usize>,
    /// How it does.
    pub state: Reported<TaskState>,
    /// Times it was started again.
    pub restarts_total: u64,
    /// When it last made progress.
    pub last_progress_at: String,
    /// How the last run ended that ended early.
    pub last_end: Option<String>,
}

impl TaskView {
    /// Whether it makes no progress, and tenants are not served as they should be without it.
    #[must_use]
    pub fn is_missed(&self) -> bool {
        self.state == TaskState::Stalled && TaskName::parse(&self.name).is_some_and(TaskName::is_essential)
    }
}

impl From<&TaskRecord> for TaskView {
    fn from(task: &TaskRecord) -> Self {
        Self {
            name: task.name.clone(),
            thread: task.thread,
            state: task.state.clone(),
            restarts_total: task.restarts,
            last_progress_at: at(task.progress_at),
            last_end: task.last_end.clone(),
        }
    }
}

/// The tenant service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceView {
    /// `ok`, `failing`, `breaker_open` or `static`.
    pub state: String,
    /// When it answered last.
    pub last_success_at: Option<String>,
    /// Requests that failed.
    pub failures_total: u64,
}

/// Reconcile passes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReconcileView {
    /// How many.
    pub passes_total: u64,
    /// When the last one ended.
    pub last_at: Option<String>,
    /// How long it took.
    pub last_duration_seconds: f64,
}

impl WorkerRow {
    /// A worker's row out of its record.
    #[must_use]
    pub fn new(record: &WorkerRecord, is_self: bool) -> Self {
        Self {
            name: record.name.clone(),
            configured_name: record.configured_name.clone(),
            mode: record.mode.clone(),
            version: record.version.clone(),
            started_at: at(record.started_at),
            seen_at: at(record.seen_at),
            uptime_seconds: ((record.seen_at - record.started_at) * 1e3).round().max(0.0) / 1e3,
            draining: record.draining,
            tenants_owned: record.owned,
            tenants_by_state: record.by_state.clone(),
            rows_per_second: record.rates.rows_per_second,
            rss_bytes: record.rss_bytes,
            redis: record.redis.clone(),
            tenant_service: ServiceView {
                state: record.tenant_service.state.clone(),
                last_success_at: record.tenant_service.last_success_at.map(at),
                failures_total: record.tenant_service.failures,
            },
            reconcile: ReconcileView {
                passes_total: record.reconcile.passes,
                last_at: record.reconcile.last_at.map(at),
                last_duration_seconds: record.reconcile.last_duration_seconds,
            },
            collector_restarts_total: record.restarts,
            background_tasks: record.tasks.iter().map(TaskView::from).collect(),
            exposure_p99_seconds: record.exposure_p99_ms as f64 / 1e3,
            postgres: record.postgres.clone(),
            settings: record.settings.clone(),
            clock_offset_seconds: record.clock_offset_ms.map(|millis| millis as f64 / 1e3),
            clock_jump: record.clock_jump,
            rollout: record.rollout.clone(),
            redis_memory: record.redis_memory.clone(),
            live: true,
            is_self,
        }
    }
}

/// A worker that stopped reporting without having been drained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeadWorker {
    /// Its name.
    pub name: String,
    /// When it last reported.
    pub last_seen_at: String,
    /// How long ago.
    pub age_seconds: f64,
    /// Tenants that it looked after.
    pub tenants: usize,
    /// Those that no worker serves now.
    pub unserved: usize,
    /// The workers that serve the others.
    pub taken_over_by: Vec<String>,
}
