//! What is known of each tenant and of the fleet: states, counters, lag. Written by collectors and supervisor, read
//! by metrics and the admin interface.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use balance_sync_domain::TenantId;
pub use balance_sync_engine::{collector::Trigger, state::TenantState};
use balance_sync_schedule::LinkStats;
use balance_sync_tenants::Tenant;
use dashmap::DashMap;
use tokio::time::Instant;

use crate::{
    flush::FlushEnd,
    halts::{Halts, Orders},
    observed::DirectoryStatus,
    recent::{FlushNote, LagCounts, Recent, Totals},
    tasks::Tasks,
};

/// A state with its reason and its beginning.
#[derive(Debug, Clone)]
pub struct StateInfo {
    /// The state.
    pub state: TenantState,
    /// Why, when degraded: a short, stable name.
    pub reason: Option<&'static str>,
    /// Why, in words; no secrets.
    pub detail: Option<String>,
    /// Wall-clock time of the change, in seconds since 1970. For people; nothing is decided by it.
    pub since: f64,
}

/// A problem of some of a tenant's balances while the others are written.
#[derive(Debug)]
struct Notice {
    reason: &'static str,
    detail: String,
    /// By the wall clock.
    since: f64,
    until: Instant,
}

/// Upper bounds of the histogram buckets, in seconds.
pub const BUCKETS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    120.0,
];

/// A histogram of seconds over [`BUCKETS`].
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one observation, in seconds.
    pub fn observe(&self, seconds: f64) {
        let seconds = seconds.max(0.0);
        if let Some(at) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            self.buckets[at].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.micros.fetch_add((seconds * 1e6) as u64, Relaxed);
    }

    /// Number of observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Sum of all observations, in seconds.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.micros.load(Relaxed) as f64 / 1e6
    }

    /// Observations at or below each bound of [`BUCKETS`].
    #[must_use]
    pub fn cumulative(&self) -> Vec<u64> {
        let mut total = 0;
        self.buckets
            .iter()
            .map(|bucket| {
                total += bucket.load(Relaxed);
                total
            })
            .collect()
    }

    /// Observations in each bucket, and beyond the last.
    #[must_use]
    pub fn counts(&self) -> LagCounts {
        let mut counts = [0; BUCKETS.len() + 1];
        let mut within = 0;
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Relaxed);
            within += *count;
        }
        // Read last: an observation under way is then counted beyond the last bucket for a moment, or not yet.
        counts[BUCKETS.len()] = self.count().saturating_sub(within);
        counts
    }

    /// The bound of the bucket in which the quantile (0 to 1) lies; `None` without observations, infinite beyond the
    /// last bucket.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (quantile * count as f64).ceil().max(1.0) as u64;
        let at = self.cumulative().iter().position(|seen| *seen >= rank);
        Some(at.map_or(f64::INFINITY, |at| BUCKETS[at]))
    }
}

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
    /// Waiting for those told to stop, which may mean to break one off.
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

/// One tenant's state and counters.
#[derive(Debug)]
pub struct TenantStatus {
    tenant: Tenant,
    state: Mutex<StateInfo>,
    /// One per reason at most.
    notices: Mutex<Vec<Notice>>,
    /// Rows written.
    pub updated: AtomicU64,
    /// Balances whose row was as new or newer.
    pub stale: AtomicU64,
    /// Balances whose row is deleted.
    pub deleted: AtomicU64,
    /// Members put off because their value is in a format of a later release, each time that they were.
    pub unknown_format: AtomicU64,
    /// Members put off because a deletion marker stands in their place, each time that they were.
    pub deletion_markers: AtomicU64,
    /// Members put in quarantine.
    pub quarantined: AtomicU64,
    /// Members whose value had expired before anybody looked.
    pub expired: AtomicU64,
    /// Members that stayed scheduled at settling, because a newer mutation came.
    pub kept: AtomicU64,
    /// Members given back unwritten.
    pub released: AtomicU64,
    /// Flushes that failed.
    pub batch_failures: AtomicU64,
    /// Settle calls that failed after the commit.
    pub cleanup_failures: AtomicU64,
    /// Times the tenant was passed over because its database could not be had.
    pub skips: AtomicU64,
    /// Members in the schedule, due or not, when it was last claimed from or sampled.
    pub scheduled: AtomicU64,
    /// Members passed over at the last claim because another worker holds their lock.
    pub foreign_locked: AtomicU64,
    /// Smallest remaining life of a scheduled value, in milliseconds, as far as lives have been looked at
    /// ([`crate::sampler`]); `u64::MAX` = nothing is scheduled, no value has an end, or not known.
    pub shortest_life_ms: AtomicU64,
    /// Members whose time had come when the schedule was last sampled.
    pub due: AtomicU64,
    /// Members that a worker held, or that were put off, when the schedule was last sampled.
    pub leased: AtomicU64,
    /// How long the oldest due member had been due when the schedule was last sampled, in milliseconds.
    pub oldest_due_age_ms: AtomicU64,
    /// Entries in the tenant's quarantine, losses among them, when it was last sampled; `u64::MAX` = not known.
    pub quarantine_entries: AtomicU64,
    /// Balances whose last mutations are lost, when they were last counted; `u64::MAX` = not known.
    pub losses: AtomicU64,
    /// Members put off because the quarantine is full.
    pub quarantine_full: AtomicU64,
    /// Members found in a schedule of the key form that is not configured (protocol §1).
    pub other_form: AtomicU64,
    /// Set before the collector is stopped because its tenant was removed: it empties the schedule first.
    pub leaving: AtomicBool,
    /// An operator halted this tenant: nothing is claimed, and what waits is kept alive.
    pub paused: AtomicBool,
    /// Another worker comes first: this one claims only when nobody else does.
    pub standby: AtomicBool,
    /// What its collector is told out of turn.
    pub orders: Orders,
    /// Starts of this tenant's collector.
    pub starts: AtomicU64,
    /// Those among them that followed a collector that had ended by itself.
    pub restarts: AtomicU64,
    /// Time from a mutation in Redis to its row, by Redis's clock.
    pub lag: Histogram,
    /// Flushes by what triggered them.
    pub batches: [AtomicU64; Trigger::ALL.len()],
    /// What happened lately; nothing for a tenant on which nothing has happened yet.
    recent: Mutex<Option<Box<Recent>>>,
}

impl TenantStatus {
    /// A tenant that is starting.
    #[must_use]
    pub fn new(tenant: Tenant) -> Self {
        Self {
            tenant,
            state: Mutex::new(StateInfo {
                state: TenantState::Starting,
                reason: None,
                detail: None,
                since: wall_clock(),
            }),
            notices: Mutex::default(),
            updated: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            deleted: AtomicU64::new(0),
            unknown_format: AtomicU64::new(0),
            deletion_markers: AtomicU64::new(0),
            quarantined: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            released: AtomicU64::new(0),
            batch_failures: AtomicU64::new(0),
            cleanup_failures: AtomicU64::new(0),
            skips: AtomicU64::new(0),
            scheduled: AtomicU64::new(0),
            foreign_locked: AtomicU64::new(0),
            shortest_life_ms: AtomicU64::new(u64::MAX),
            due: AtomicU64::new(0),
            leased: AtomicU64::new(0),
            oldest_due_age_ms: AtomicU64::new(0),
            quarantine_entries: AtomicU64::new(u64::MAX),
            losses: AtomicU64::new(u64::MAX),
            quarantine_full: AtomicU64::new(0),
            other_form: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            standby: AtomicBool::new(false),
            orders: Orders::default(),
            starts: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            lag: Histogram::default(),
            batches: Default::default(),
            recent: Mutex::default(),
        }
    }

    /// Whose status it is.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The state now. A tenant whose collector works is `degraded` all the same while a problem of some of its balances is
    /// noticed.
    #[must_use]
    pub fn state(&self) -> StateInfo {
        let info = self.collector_state();
        let works = matches!(
            info.state,
            TenantState::Starting | TenantState::Idle | TenantState::Standby | TenantState::Syncing
        );
        if !works {
            return info;
        }
        let now = Instant::now();
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.iter().find(|notice| notice.until > now).map_or(info, |notice| StateInfo {
            state: TenantState::Degraded,
            reason: Some(notice.reason),
            detail: Some(notice.detail.clone()),
            since: notice.since,
        })
    }

    /// What its collector does, whatever is noticed of single balances.
    #[must_use]
    pub fn collector_state(&self) -> StateInfo {
        self.lock().clone()
    }

    /// Notes a problem of some of the balances, to be shown for so long; gives whether it is a new one.
    pub fn notice(&self, reason: &'static str, detail: String, lasts: Duration) -> bool {
        let now = Instant::now();
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.retain(|notice| notice.until > now);
        let until = now + lasts;
        if let Some(known) = notices.iter_mut().find(|notice| notice.reason == reason) {
            (known.detail, known.until) = (detail, until);
            return false;
        }
        self.note_error(reason, &detail);
        notices.push(Notice { reason, detail, since: wall_clock(), until });
        true
    }

    /// Enters a state without a reason; gives whether it is another one than before.
    pub fn enter(&self, state: TenantState) -> bool {
        let mut info = self.lock();
        if info.state == state {
            return false;
        }
        *info = StateInfo { state, reason: None, detail: None, since: wall_clock() };
        true
    }

    /// Enters `degraded`; gives whether state or reason are others than before. `since` stays while it stays degraded.
    pub fn degrade(&self, reason: &'static str, detail: String) -> bool {
        let mut info = self.lock();
        let changed = info.state != TenantState::Degraded || info.reason != Some(reason);
        if info.state != TenantState::Degraded {
            info.since = wall_clock();
        }
        info.state = TenantState::Degraded;
        info.reason = Some(reason);
        self.note_error(reason, &detail);
        info.detail = Some(detail);
        changed
    }

    /// Notes a flush that has ended.
    pub fn note_flush(&self, trigger: Trigger, end: &FlushEnd, took: Duration) {
        let note = FlushNote::new(trigger, end, took, wall_clock());
        self.recent_lock().get_or_insert_default().flushed(note);
    }

    /// Notes a failure, for people to look at.
    pub fn note_error(&self, reason: &str, detail: &str) {
        self.recent_lock().get_or_insert_default().failed(reason, detail, wall_clock());
    }

    /// Looks at what happened lately; `None` where nothing has.
    pub fn recent<T>(&self, look: impl FnOnce(&Recent) -> T) -> Option<T> {
        self.recent_lock().as_deref().map(look)
    }

    /// Takes the counters into what happened lately, `took` after the last time; gives what was added since.
    pub fn tick(&self, took: Duration, at: f64) -> Option<Totals> {
        let mut recent = self.recent_lock();
        let totals = Totals {
            updated: self.updated.load(Relaxed),
            failures: self.batch_failures.load(Relaxed),
            lags: self.lag.counts(),
        };
        recent.as_mut().map(|recent| recent.tick(took, totals, self.due.load(Relaxed), at))
    }

    fn recent_lock(&self) -> std::sync::MutexGuard<'_, Option<Box<Recent>>> {
        // At worst a note is missing after a panic.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StateInfo> {
        // A panic while holding it can't leave the value half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings of a worker that its numbers are compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// How members are claimed: `lease` or `lock`.
    pub claim_mode: &'static str,
    /// How tenant ids stand in keys: `as_listed` or `simple_uuid`.
    pub key_form: &'static str,
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

/// Counters of the whole worker, and the registry of its tenants.
#[derive(Debug, Default)]
pub struct FleetStatus {
    tenants: DashMap<Tenant, Arc<TenantStatus>>,
    /// Set by the first reconcile pass that knew the tenants.
    pub reconciled: AtomicBool,
    /// Set when the worker drains.
    pub draining: AtomicBool,
    /// Reconcile passes finished.
    pub passes: AtomicU64,
    /// When the last pass ended, in milliseconds since the worker's start.
    pub last_pass_ms: AtomicU64,
    /// The same by the wall clock, in milliseconds since 1970; 0 = none yet. For people and alerts.
    pub last_pass_at_ms: AtomicU64,
    /// What the passes did, in the order of [`Phase::ALL`]: collectors reaped, stopped, started, broken off.
    pub phases: [AtomicU64; Phase::ALL.len()],
    /// Collectors that were told to stop and have not ended, at the last pass.
    pub awaited: AtomicU64,
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
    /// Worker threads that stand still at present.
    pub still_threads: AtomicU64,
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
    /// Whether Redis may throw keys away by itself (1) or not (0); not known = `None`.
    pub redis_may_evict: Known,
    /// What the worker was started with.
    pub in_force: OnceLock<InForce>,
    /// Calls to the tenant directory.
    pub directory: DirectoryStatus,
    /// Live workers that share the tenants out, this one among them; 0 while that isn't known, or without partition.
    pub workers: AtomicU64,
    /// Tenants of the list in force, whoever looks after them.
    pub wanted: AtomicU64,
    /// Wanted tenants that are this worker's to look after.
    pub owned: AtomicU64,
    /// Times a collector that stood by joined in, because something was due that nobody claimed.
    pub joins: AtomicU64,
    /// Duration of the last reconcile pass, in microseconds.
    pub last_pass_us: AtomicU64,
    /// The tenants that the directory listed last, whoever looks after them; `None` before the first answer.
    listed: RwLock<Option<Listed>>,
    /// Tenants that operators halted.
    pub halts: Halts,
    /// The worker's background tasks.
    pub tasks: Tasks,
}

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
                .or_insert_with(|| Arc::new(TenantStatus::new(tenant.clone()))),
        );
        // Looked up once it can be found: whoever halts tenants meanwhile finds it, or is found here.
        if self.halts.contains(tenant) {
            status.paused.store(true, Relaxed);
        }
        status
    }

    /// Forgets a tenant that is no longer served.
    pub fn forget(&self, tenant: &Tenant) {
        self.tenants.remove(tenant);
    }

    /// Shows each tenant, in no order.
    pub fn each(&self, mut look: impl FnMut(&TenantStatus)) {
        // Not held while looking: whoever starts a tenant must not wait for this.
        let all: Vec<_> = self.tenants.iter().map(|entry| Arc::clone(entry.value())).collect();
        all.iter().for_each(|status| look(status));
    }

    /// All tenants, in id order.
    #[must_use]
    pub fn tenants(&self) -> Vec<Arc<TenantStatus>> {
        let mut all: Vec<_> = self.tenants.iter().map(|entry| Arc::clone(entry.value())).collect();
        all.sort_by(|a, b| a.tenant().cmp(b.tenant()));
        all
    }

    /// Notes which tenants are to be served.
    pub fn list(&self, tenants: BTreeSet<Tenant>) {
        let listed = Listed { tenants: Arc::new(tenants), at: wall_clock() };
        *self.listed.write().unwrap_or_else(PoisonError::into_inner) = Some(listed);
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

    /// Counts a stage's duration.
    pub fn observe(&self, stage: Stage, took: Duration) {
        let at = Stage::ALL.iter().position(|known| *known == stage).unwrap_or_default();
        self.stages[at].observe(took.as_secs_f64());
    }

    /// Whether traffic and alerts may rely on this worker: it has reconciled once, doesn't drain, and all its background
    /// tasks make progress.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.reconciled.load(Relaxed) && !self.draining.load(Relaxed) && self.tasks.stalled().is_none()
    }
}

pub(crate) fn wall_clock() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Milliseconds since 1970, for people and alerts; nothing is decided by it.
pub(crate) fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_name_the_bucket() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for _ in 0..99 {
            histogram.observe(0.004);
        }
        histogram.observe(500.0);
        assert_eq!(histogram.quantile(0.5), Some(0.005));
        assert_eq!(histogram.quantile(0.99), Some(0.005));
        assert_eq!(histogram.quantile(1.0), Some(f64::INFINITY));
        assert_eq!(histogram.count(), 100);
    }

    #[test]
    fn degraded_keeps_its_beginning_and_tells_changes_of_reason() {
        let status = TenantStatus::new(Tenant::Single);
        assert!(status.degrade("postgres_connection", "refused".to_owned()));
        let since = status.state().since;
        assert!(!status.degrade("postgres_connection", "refused again".to_owned()));
        assert!(status.degrade("postgres_credentials", "no".to_owned()));
        assert_eq!(status.state().since, since);
        assert!(status.enter(TenantState::Idle));
        assert!(!status.enter(TenantState::Idle));
        assert_eq!(status.state().reason, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_notice_is_shown_over_a_working_collector_until_it_ends() {
        let status = TenantStatus::new(Tenant::Single);
        status.enter(TenantState::Syncing);
        let minute = Duration::from_secs(60);
        assert!(status.notice("redis_permission", "one".to_owned(), minute));
        assert!(!status.notice("redis_permission", "two".to_owned(), minute));
        let shown = status.state();
        assert_eq!((shown.state, shown.reason), (TenantState::Degraded, Some("redis_permission")));
        assert_eq!(shown.detail.as_deref(), Some("two"));
        assert_eq!(status.collector_state().state, TenantState::Syncing);
        // What stops the tenant altogether goes before.
        status.degrade("postgres_connection", "refused".to_owned());
        assert_eq!(status.state().reason, Some("postgres_connection"));
        status.enter(TenantState::Idle);
        assert_eq!(status.state().reason, Some("redis_permission"));
        tokio::time::advance(minute).await;
        assert_eq!((status.state().state, status.state().reason), (TenantState::Idle, None));
        assert!(status.notice("redis_permission", "three".to_owned(), minute), "it is a new one");
    }
}
