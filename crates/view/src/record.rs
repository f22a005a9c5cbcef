//! What a worker tells about itself and its tenants: the records that it publishes for the others, and shows itself.
//!
//! Whatever has its usual value is left out, so that the record of an idle tenant is a few dozen bytes.

use balance_sync_domain::Reported;
use balance_sync_fleet::{
    backends::DatabaseView,
    status::{
        ClockJump, ErrorNote, FleetStatus, FlushNote, Outcomes, Point, Presence, QueueReport, Rates,
        ReportedReason, ReportedState, ShadowReport, Sign, TenantStatus, Vanished, WorkerMode,
    },
    tasks::{TaskReport, TaskState},
};
use balance_sync_schedule::{ClaimMode, ServerFacts};
use balance_sync_store::{PoolUsage, ServerUsage};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

/// A tenant, as one of its workers knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantRecord {
    /// What its collector does.
    pub state: ReportedState,
    /// Why, when degraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ReportedReason>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Whether only some of its balances are concerned, and the others are written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Since when, in seconds since 1970.
    pub since: f64,
    /// Its schedules have not been sampled yet, or could not be: what waits and what is lost is not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsampled: bool,
    /// It has not been looked at yet whether Redis has lost data of it, or could not be lately.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unwatched: bool,
    /// When they could last be read, in seconds since 1970, if they can't be now: the numbers are of that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled_at: Option<f64>,
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
    /// For how long the oldest balance has waited whose last mutation only Redis has, claimed or not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub exposure_age_ms: u64,
    /// The p99 of that over the last hour in which this worker served it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub exposure_p99_ms: u64,
    /// For how long its collector has waited for a connection to write on, where that is long.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub connection_wait_ms: u64,
    /// How far ahead a member is scheduled, where that is further than a lease or delay explains.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ahead_ms: u64,
    /// Smallest remaining life of a scheduled value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortest_life_ms: Option<u64>,
    /// Entries in quarantine.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub quarantine_entries: u64,
    /// Lost balances among them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub losses: u64,
    /// What is open because Redis has lost data of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vanished: Option<VanishedRecord>,
    /// Values of scheduled balances that are gone from Redis, of which nothing is decided yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub values_gone: u64,
    /// Since when there are any, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values_gone_since: Option<f64>,
    /// The ledger's own queues: those that hold something, or can't be read. `None` = this worker doesn't look at them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<Vec<QueueReport>>,
    /// What a shadow has found; `None` = the worker is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowReport>,
    /// What is known of the ledger's own worker; `None` = it was never seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<NeighbourRecord>,
    /// The last seconds.
    #[serde(flatten)]
    pub rates: Rates,
    /// Counters since the worker's start.
    #[serde(flatten)]
    pub counts: Counts,
    /// Its connections, if any are open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolUsage>,
}

/// What is known of the ledger's own worker, of a tenant. Times are seconds since 1970; 0 = never.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NeighbourRecord {
    /// Whether it works on the tenant.
    pub presence: Reported<Presence>,
    /// Since when it has been active, as far as it is, or was last.
    #[serde(default)]
    pub active_from: f64,
    /// When it was seen last.
    #[serde(default)]
    pub seen_at: f64,
    /// By what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign: Option<Reported<Sign>>,
    /// How balances are claimed now.
    pub claim_mode: Reported<ClaimMode>,
    /// Values in a format of ledgers from 4.1 on were seen.
    #[serde(default)]
    pub newer_formats: bool,
    /// It removes such values unwritten.
    #[serde(default)]
    pub deadly_mix: bool,
    /// Balances that were found out of the schedule, unwritten, while it was active.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// When the last of them was found.
    #[serde(default)]
    pub dropped_at: f64,
    /// Some of the last ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

impl NeighbourRecord {
    /// What this worker knows of a tenant, if there is anything to be shown: it was seen, or the mode of claims depends on it.
    pub(crate) fn of(fleet: &FleetStatus, status: &TenantStatus) -> Option<Self> {
        let is_auto = fleet.in_force.get().is_some_and(|in_force| in_force.claim_mode == ClaimMode::Auto);
        let known = status.neighbour().unwrap_or_default();
        if !known.was_seen() && !is_auto || fleet.mode() == WorkerMode::Shadow {
            return None;
        }
        let (now, quiet) = (fleet.redis_clock(), fleet.claim_quiet());
        let round = |seconds: f64| (seconds * 1e3).round() / 1e3;
        let mode = if status.takes_locks.load(Relaxed) { ClaimMode::Lock } else { ClaimMode::Lease };
        Some(Self {
            presence: known.presence(now, quiet).into(),
            active_from: round(known.active_from),
            seen_at: round(known.seen_at),
            sign: known.sign.map(Into::into),
            claim_mode: mode.into(),
            newer_formats: known.newer_at > 0.0,
            deadly_mix: known.is_deadly_mix(now, quiet),
            dropped: known.dropped,
            dropped_at: round(known.dropped_at),
            examples: known.examples,
        })
    }
}

/// An open condition: Redis has lost data of a tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VanishedRecord {
    /// Which.
    pub reason: ReportedReason,
    /// Members that are missing for certain.
    pub extent: u64,
    /// Since when, in seconds since 1970.
    pub since: f64,
    /// What was noticed, in words.
    pub detail: String,
    /// What is done about it, or why it stays open, in words.
    pub phase: String,
    /// Balances that were scheduled again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rescheduled: u64,
    /// Balances that were listed as lost.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// Rows that are newer than what Redis holds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rows_ahead: u64,
}

impl From<Vanished> for VanishedRecord {
    fn from(open: Vanished) -> Self {
        Self {
            reason: open.reason.into(),
            extent: open.extent,
            since: (open.since * 1e3).round() / 1e3,
            detail: open.detail,
            phase: open.phase,
            rescheduled: open.found.rescheduled,
            lost: open.found.lost,
            rows_ahead: open.found.rows_ahead,
        }
    }
}

/// Counters of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Balances by what became of them.
    #[serde(flatten)]
    pub outcomes: Outcomes,
    /// Flushes that failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u64,
    /// Starts of the collector after the first.
    #[serde(skip_serializing_if = "is_zero")]
    pub restarts: u64,
    /// Flushes by trigger, in the order of [`balance_sync_fleet::status::Trigger::ALL`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<u64>,
}

impl Counts {
    /// Adds another worker's.
    pub fn add(&mut self, other: &Self) {
        self.outcomes += &other.outcomes;
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

/// More about a tenant, for the view of it alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DetailRecord {
    /// Newest first.
    pub flushes: Vec<FlushNote>,
    /// Newest first.
    pub errors: Vec<ErrorNote>,
    /// Oldest first.
    pub history: Vec<Point>,
    /// Where its balances are written, if that is known.
    pub database: Option<DatabaseView>,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Its name.
    pub name: String,
    /// Its configured name, if another worker had that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured_name: Option<String>,
    /// What it does with its tenants. A worker of an earlier release syncs.
    #[serde(default = "syncs", skip_serializing_if = "is_sync")]
    pub mode: Reported<WorkerMode>,
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
    pub by_state: BTreeMap<ReportedState, u64>,
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
    pub postgres: Vec<ServerUsage>,
    /// Members due, over its tenants.
    pub due: u64,
    /// The oldest of them.
    pub oldest_due_age_ms: u64,
    /// The p99 over the last hour of the exposure of whichever of its tenants is exposed longest.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub exposure_p99_ms: u64,
    /// Workers per tenant; `None` = all.
    pub replicas: Option<u64>,
    /// Settings in force that should be the same on all workers, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// By how many milliseconds its clock is ahead of Redis's, at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
    /// Redis's clock went back lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_jump: Option<ClockJump>,
    /// Its background tasks.
    #[serde(default)]
    pub tasks: Vec<TaskRecord>,
    /// In how many seconds nothing will be due any more in the whole fleet, as this worker has seen it; `None` where the backlog doesn't
    /// shrink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// How many tenants it has on its list; `None` = it has none yet, or is of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<ListingRecord>,
    /// Which tenants it serves. A worker of an earlier release knows no rollout, and serves all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutRecord>,
    /// What Redis says of its memory, of a shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis_memory: Option<RedisMemory>,
}

impl WorkerRecord {
    /// Whether it only looks. What another release calls otherwise is counted among those that write.
    pub(crate) fn is_shadow(&self) -> bool {
        self.mode == WorkerMode::Shadow
    }
}

/// How many tenants the list has that a worker works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListingRecord {
    /// All of them.
    pub total: u64,
    /// Those in the rollout, whichever worker serves them.
    pub selected: u64,
}

/// Which tenants a worker serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RolloutRecord {
    /// The revision that it follows; 0 = nothing is stored. `None` = it doesn't know yet, and serves no tenant.
    pub revision: Option<u64>,
    /// What its configuration selects, as it would be stored; empty = not told, as it is too long.
    pub configured: String,
    /// Why it doesn't follow what is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How likely Redis is to throw away what has not been written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedisMemory {
    /// `maxmemory-policy`; empty if it doesn't say.
    pub policy: String,
    /// Whether it throws keys away by itself when it is full.
    pub may_evict: bool,
    /// In use, bytes.
    pub used_bytes: u64,
    /// `maxmemory`, bytes; 0 = no limit.
    pub max_bytes: u64,
    /// Keys that it has evicted since its start.
    pub evicted_keys: u64,
}

impl From<&ServerFacts> for RedisMemory {
    fn from(facts: &ServerFacts) -> Self {
        Self {
            policy: facts.policy.clone(),
            may_evict: facts.evicting_policy().is_some(),
            used_bytes: facts.used_bytes,
            max_bytes: facts.max_bytes,
            evicted_keys: facts.evicted_keys,
        }
    }
}

const fn syncs() -> Reported<WorkerMode> {
    Reported::Known(WorkerMode::Sync)
}

fn is_sync(mode: &Reported<WorkerMode>) -> bool {
    *mode == syncs()
}

/// A background task of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The name of a [`balance_sync_fleet::tasks::TaskName`]; another version may know others.
    pub name: String,
    /// The thread it belongs to, where each has one.
    pub thread: Option<usize>,
    /// How it does.
    pub state: Reported<TaskState>,
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
            state: task.state().into(),
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
