//! What is known of a whole worker, and the registry of its tenants. Written by supervisor and collectors, read by metrics
//! and the operators' view.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{
            AtomicBool, AtomicI64, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use balance_sync_domain::{TenantId, names};
use balance_sync_engine::{shadow::WorkerMode, vanish::REASONS};
use balance_sync_schedule::{ClaimMode, LinkStats, ServerFacts};
use balance_sync_tenants::{KeyForm, Tenant};
use dashmap::DashMap;

use super::{
    ClockBack, TrackingStatus, directory::DirectoryStatus, histogram::Histogram, requests::PausedTenants,
    rest::Rest, rollout::RolloutStatus, routing::Routing, tenant::TenantStatus,
};
use crate::{clock::wall_clock, tasks::Tasks};

/// The steps of a flush, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Asking Redis for due members.
    Claim,
    /// Decoding and aggregating.
    Gather,
    /// The statement in Postgres, with getting a connection.
    Update,
    /// Removing, quarantining and releasing in Redis.
    Settle,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Claim, Self::Gather, Self::Update, Self::Settle];

    /// Short, stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Gather => "gather",
            Self::Update => "update",
            Self::Settle => "settle",
        }
    }
}

/// The phases of a reconcile pass, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Clearing away collectors that have ended.
    Reap,
    /// Telling collectors to stop.
    Stop,
    /// Starting collectors.
    Start,
    /// Waiting for those asked to stop, which may mean to break one off.
    Wait,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Reap, Self::Stop, Self::Start, Self::Wait];

    /// Short, stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reap => "reap",
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Wait => "wait",
        }
    }
}

names! {
    /// How a push of metrics ended.
    pub enum PushOutcome {
        /// The receiver took all.
        Ok = "ok",
        /// The receiver rejected some of the samples.
        Partial = "partial",
        /// The receiver took none, or could not be reached, or was too slow to be sent all of them.
        Failed = "failed",
    }
}

/// Settings of a worker that its numbers are compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// What the worker does with its tenants.
    pub mode: WorkerMode,
    /// How members are claimed.
    pub claim_mode: ClaimMode,
    /// For how long the ledger's own worker must be quiet to count as parked.
    pub claim_quiet: Duration,
    /// How tenant ids are written in keys.
    pub key_form: KeyForm,
    /// How long a claim holds.
    pub claim_ttl: Duration,
    /// What the lives of waiting values are raised to.
    pub protect_floor: Duration,
    /// Entries in a tenant's quarantine at most.
    pub quarantine_limit: u64,
    /// Time between two polls of the tenant list.
    pub poll_interval: Duration,
    /// A tenant whose oldest due member is older than this counts as behind.
    pub freshness_objective: Duration,
    /// What the p99 of the exposure over an hour should stay within.
    pub exposure_objective: Duration,
}

/// A number that may not be known yet.
#[derive(Debug)]
pub struct Known(AtomicU64);

impl Default for Known {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Known {
    /// Learns it.
    pub fn store(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The number last learnt.
    #[must_use]
    pub fn load(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|value| *value != u64::MAX)
    }
}

/// A number that may be negative, and may not be known.
#[derive(Debug)]
pub struct KnownOffset(AtomicI64);

impl Default for KnownOffset {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MIN))
    }
}

impl KnownOffset {
    /// Learns it, or that it isn't known any more.
    pub fn store(&self, value: Option<i64>) {
        self.0.store(value.unwrap_or(i64::MIN), Relaxed);
    }

    /// The number last learnt.
    #[must_use]
    pub fn load(&self) -> Option<i64> {
        Some(self.0.load(Relaxed)).filter(|value| *value != i64::MIN)
    }
}

/// Counters of the whole worker, and the registry of its tenants.
#[derive(Debug, Default)]
pub struct FleetStatus {
    tenants: DashMap<Tenant, Arc<TenantStatus>>,
    /// Counts changes of it.
    tenants_changed: AtomicU64,
    /// Which of them are at rest.
    pub rest: Arc<Rest>,
    /// All of them in id order, as of a change of that number.
    in_order: Mutex<(u64, Tenants)>,
    /// Set by the first reconcile pass that knew the tenants.
    pub reconciled: AtomicBool,
    /// Set when the worker drains.
    pub draining: AtomicBool,
    /// Records of the ledger's own queues that were looked at.
    pub queue_records: AtomicU64,
    /// Reconcile passes finished.
    pub passes: AtomicU64,
    /// When the last pass ended, in milliseconds since the worker's start.
    pub last_pass_ms: AtomicU64,
    /// The same by the wall clock, in milliseconds since 1970; 0 = none yet. For people and alerts.
    pub last_pass_at_ms: AtomicU64,
    /// What the passes did, in the order of [`Phase::ALL`]: collectors reaped, stopped, started, broken off.
    pub phases: [AtomicU64; Phase::ALL.len()],
    /// Collectors that were asked to stop and have not ended, at the last pass.
    pub awaited: AtomicU64,
    /// The p99 over the last hour of the exposure of whichever of its tenants is exposed longest, in milliseconds.
    pub exposure_p99_ms: AtomicU64,
    /// Longest time without a pass before the worker counts as stuck, in milliseconds.
    pub pass_bound_ms: AtomicU64,
    /// Duration of reconcile passes.
    pub reconcile: Histogram,
    /// Tenant list polls that failed.
    pub poll_failures: AtomicU64,
    /// The last poll failed.
    pub poll_failing: AtomicBool,
    /// Listed ids that were refused, at the last poll.
    pub refused_ids: AtomicU64,
    /// Collectors reaped after a panic.
    pub panics: AtomicU64,
    /// Collectors that ended by themselves, panics among them.
    pub reaped: AtomicU64,
    /// Worker threads that are stalled at present.
    pub still_threads: AtomicU64,
    /// Set when the actor that opens the tenants' databases has ended, by a panic: no tenant can be written any more.
    pub manager_ended: AtomicBool,
    /// Collectors stopped.
    pub stopped: AtomicU64,
    /// Collectors started.
    pub started: AtomicU64,
    /// Those among them that followed a collector that had ended by itself.
    pub restarts: AtomicU64,
    /// Removals that the membership guard holds back at present.
    pub removals_held: AtomicU64,
    /// Durations of claims, decoding, updates and settling.
    pub stages: [Histogram; Stage::ALL.len()],
    /// Durations of whole flushes, from decoding to the end of settling.
    pub flushes: Histogram,
    /// Failures and connections of all links to Redis.
    pub redis: Arc<LinkStats>,
    /// Idle schedules that Redis watches.
    pub tracking: Arc<TrackingStatus>,
    /// Tenants compared because their Postgres server had changed.
    pub failover_checks: AtomicU64,
    /// Balances found behind on the new servers, and scheduled again.
    pub failover_behind: AtomicU64,
    /// Conditions opened because Redis has lost data, in the order of [`balance_sync_engine::vanish::REASONS`].
    pub vanished: [AtomicU64; REASONS.len()],
    /// Balances found behind because Redis had lost their members, and scheduled again.
    pub vanished_rescheduled: AtomicU64,
    /// Balances listed as lost because Redis had lost them.
    pub vanished_lost: AtomicU64,
    /// Balances that a shadow has found out of the schedule while Redis holds what their rows lack.
    pub shadow_left_behind: AtomicU64,
    /// The same, where Redis no longer holds it.
    pub shadow_lost: AtomicU64,
    /// Balances found out of the schedule, unwritten, while the ledger's own worker was active, and scheduled again.
    pub neighbour_dropped: AtomicU64,
    /// Keys that Redis has evicted while this worker looked.
    pub redis_evicted_keys: AtomicU64,
    /// Redis's clock, when it went back.
    pub redis_clock_back: ClockBack,
    /// Whether Redis may throw keys away by itself (1) or not (0); not known = `None`.
    pub redis_may_evict: Known,
    /// By how many milliseconds this host's clock is ahead of Redis's, at least.
    pub clock_offset_ms: KnownOffset,
    /// What Redis last said of itself.
    pub redis_server: Mutex<Option<ServerFacts>>,
    /// What the worker was started with.
    pub in_force: OnceLock<InForce>,
    /// Calls to the tenant directory.
    pub directory: DirectoryStatus,
    /// Live workers that share the tenants out, this one among them; 0 while that isn't known, or without partition.
    pub workers: AtomicU64,
    /// Tenants of the list in force, whichever worker serves them.
    pub wanted: AtomicU64,
    /// Those among them that are in the rollout.
    pub selected: AtomicU64,
    /// Selected tenants that are this worker's to look after.
    pub owned: AtomicU64,
    /// Times a collector that stood by joined in, because something was due and remained unclaimed.
    pub joins: AtomicU64,
    /// Entries of timelines that could not be kept until Redis took them.
    pub timeline_dropped: AtomicU64,
    /// Duration of the last reconcile pass, in microseconds.
    pub last_pass_us: AtomicU64,
    /// The tenants that the directory listed last, whichever worker serves them; `None` before the first answer.
    listed: RwLock<Option<Listed>>,
    /// Tenants that operators paused.
    pub paused: PausedTenants,
    /// Tenants that are served.
    pub rollout: RolloutStatus,
    /// Which Redis each tenant lives on; unset where there is one.
    pub routing: OnceLock<Arc<Routing>>,
    /// Pushes of metrics, in the order of [`PushOutcome::ALL`].
    pub pushes: [AtomicU64; PushOutcome::ALL.len()],
    /// The worker's background tasks.
    pub tasks: Tasks,
}

/// Tenants in id order.
pub type Tenants = Arc<[Arc<TenantStatus>]>;

/// An answer of the directory.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The tenants that are to be served.
    pub tenants: Arc<BTreeSet<Tenant>>,
    /// When it came, in seconds since 1970.
    pub at: f64,
}

impl FleetStatus {
    /// The tenant's status, made if it isn't there. It outlives restarts of the collector, so counters only grow.
    #[must_use]
    pub fn tenant(&self, tenant: &Tenant) -> Arc<TenantStatus> {
        if let Some(found) = self.tenants.get(tenant) {
            return Arc::clone(&found);
        }
        let status = Arc::clone(
            &self
                .tenants
                .entry(tenant.clone())
                .or_insert_with(|| TenantStatus::registered(tenant.clone(), &self.rest)),
        );
        self.tenants_changed.fetch_add(1, Release);
        // Looked up after it was inserted: a concurrent pause finds it, or is found here.
        if self.paused.contains(tenant) {
            status.paused.store(true, Relaxed);
        }
        if !self.rollout.serves(tenant) {
            status.withheld.store(true, Relaxed);
        }
        status
    }

    /// Forgets a tenant that is no longer served.
    pub fn forget(&self, tenant: &Tenant) {
        if let Some((_, status)) = self.tenants.remove(tenant) {
            self.rest.forget(&status);
        }
        self.tenants_changed.fetch_add(1, Release);
    }

    /// Counts changes of which tenants there are.
    #[must_use]
    pub fn tenants_changed(&self) -> u64 {
        self.tenants_changed.load(Acquire)
    }

    /// How many tenants there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tenants.len()
    }

    /// Shows each tenant, in no order.
    pub fn each(&self, mut look: impl FnMut(&TenantStatus)) {
        // Not held while looking: starting a tenant must not wait for this.
        self.tenants().iter().for_each(|status| look(status));
    }

    /// All tenants, in id order.
    #[must_use]
    pub fn tenants(&self) -> Tenants {
        // Read before the map: what is added meanwhile makes the next look sort them again.
        let changed = self.tenants_changed.load(Acquire);
        let mut in_order = self.in_order.lock().unwrap_or_else(PoisonError::into_inner);
        if in_order.0 != changed {
            let mut all: Vec<_> = self.tenants.iter().map(|entry| Arc::clone(entry.value())).collect();
            all.sort_unstable_by(|a, b| a.tenant().cmp(b.tenant()));
            *in_order = (changed, all.into());
        }
        Arc::clone(&in_order.1)
    }

    /// Notes which tenants are to be served.
    pub fn list(&self, tenants: BTreeSet<Tenant>) {
        let listed = Listed { tenants: Arc::new(tenants), at: wall_clock() };
        *self.listed.write().unwrap_or_else(PoisonError::into_inner) = Some(listed);
    }

    /// Notes that the same tenants are to be served as before.
    pub fn listed_again(&self) {
        if let Some(listed) = &mut *self.listed.write().unwrap_or_else(PoisonError::into_inner) {
            listed.at = wall_clock();
        }
    }

    /// Which tenants are to be served, as last known.
    #[must_use]
    pub fn listed(&self) -> Option<Listed> {
        self.listed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A tenant's status, if this worker has one.
    #[must_use]
    pub fn find(&self, tenant: &Tenant) -> Option<Arc<TenantStatus>> {
        self.tenants.get(tenant).map(|found| Arc::clone(&found))
    }

    /// A tenant's status by the name it is shown under.
    #[must_use]
    pub fn find_by_label(&self, label: &str) -> Option<Arc<TenantStatus>> {
        let id = TenantId::parse(label).ok().map(Tenant::Id);
        id.and_then(|tenant| self.find(&tenant))
            .or_else(|| (label == Tenant::Single.label()).then(|| self.find(&Tenant::Single)).flatten())
    }

    /// Counts a push of metrics.
    pub fn pushed(&self, outcome: PushOutcome) {
        self.pushes[outcome as usize].fetch_add(1, Relaxed);
    }

    /// Counts a stage's duration.
    pub fn observe(&self, stage: Stage, took: Duration) {
        let at = Stage::ALL.iter().position(|known| *known == stage).unwrap_or_default();
        self.stages[at].observe(took.as_secs_f64());
    }

    /// Redis's clock, in seconds since 1970, as far as it is known.
    #[must_use]
    pub fn redis_clock(&self) -> f64 {
        wall_clock() - self.clock_offset_ms.load().unwrap_or_default() as f64 / 1e3
    }

    /// For how long the ledger's own worker must be quiet to count as parked.
    #[must_use]
    pub fn claim_quiet(&self) -> Duration {
        self.in_force.get().map_or(Duration::ZERO, |in_force| in_force.claim_quiet)
    }

    /// How long a claim holds.
    #[must_use]
    pub fn claim_ttl(&self) -> Duration {
        self.in_force.get().map_or(Duration::ZERO, |in_force| in_force.claim_ttl)
    }

    /// What the worker does with its tenants.
    #[must_use]
    pub fn mode(&self) -> WorkerMode {
        self.in_force.get().map_or(WorkerMode::Sync, |in_force| in_force.mode)
    }

    /// Whether traffic and alerts may rely on this worker: it has reconciled once, doesn't drain, and all its background
    /// tasks make progress.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.reconciled.load(Relaxed) && !self.draining.load(Relaxed) && self.tasks.stalled().is_none()
    }
}
