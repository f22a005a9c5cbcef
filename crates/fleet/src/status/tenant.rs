//! What is known of one tenant: state, counters, lag. Written by its collector and by the supervisor, read by metrics and
//! the operators' view.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use balance_sync_domain::LedgerQueue;
use balance_sync_engine::{
    collector::Trigger,
    neighbour::Neighbour,
    outcome::{Outcome, Outcomes},
    queues::QueueReport,
    reason::Reason,
    shadow::ShadowReport,
    state::TenantState,
};
use balance_sync_tenants::Tenant;
use tokio::time::Instant;

use super::{
    exposure::Exposure,
    histogram::Histogram,
    ledgers::Ledgers,
    quiet::Quiet,
    recent::{FlushNote, Recent, Totals},
    requests::Requests,
    rest::Rest,
    values_gone::ValuesGone,
    vanished::Vanished,
};
use crate::clock::{wall_clock, wall_clock_ms};

/// A wait for a connection is shown from this on.
const CONNECTION_WAIT_SHOWN: Duration = Duration::from_secs(1);

/// A state with its reason and its beginning.
#[derive(Debug, Clone)]
pub struct StateInfo {
    /// The state.
    pub state: TenantState,
    /// Why, when degraded.
    pub reason: Option<Reason>,
    /// Why, in words; no secrets.
    pub detail: Option<String>,
    /// Whether only some of the tenant's balances are concerned, and the others are written.
    pub partial: bool,
    /// Wall-clock time of the change, in seconds since 1970. For people; nothing is decided by it.
    pub since: f64,
}

/// A problem of some of a tenant's balances while the others are written.
#[derive(Debug)]
struct Notice {
    reason: Reason,
    detail: String,
    /// By the wall clock.
    since: f64,
    until: Instant,
}

/// One tenant's state and counters.
#[derive(Debug)]
pub struct TenantStatus {
    tenant: Tenant,
    /// Itself, and where it is kept whether it is at rest; nothing of one that no worker serves.
    registered: Option<(Weak<Self>, Arc<Rest>)>,
    /// 0 = it isn't at rest; otherwise in which of the states of [`super::rest`], counted from 1.
    resting: AtomicU8,
    /// How often it has been roused from rest.
    rouses: AtomicU32,
    forgotten: AtomicBool,
    state: Mutex<StateInfo>,
    /// One per reason at most.
    notices: Mutex<Vec<Notice>>,
    vanished: Mutex<Option<Box<Vanished>>>,
    /// Values of scheduled balances that are gone, and nothing is decided of them yet.
    pub values_gone: ValuesGone,
    /// The ledger's own queues, those that hold something; `None` = this worker doesn't look at them.
    queues: Mutex<Option<Vec<QueueReport>>>,
    /// What a shadow has found; `None` = this worker is none.
    shadow: Mutex<Option<Box<ShadowReport>>>,
    /// What is known of the ledger's own worker; nothing before the first look.
    neighbour: Mutex<Option<Box<Neighbour>>>,
    /// Claims take the locks of the ledger's own worker.
    pub takes_locks: AtomicBool,
    /// The ledger's own worker was seen here lately, at the last pass over what is known of it.
    pub neighbour_active: AtomicBool,
    /// It removes balances unwritten that writers of later releases have scheduled.
    pub neighbour_dropping: AtomicBool,
    /// The queue of the ledger that is in Postgres.
    ledger_quarantine: Mutex<LedgerQuarantine>,
    /// An operator has acknowledged what is open.
    acknowledged: AtomicBool,
    /// It has been looked at whether Redis has lost data of it, since this worker serves it: its schedules are counted, and what is
    /// open of it in Redis is known.
    pub watched: AtomicBool,
    /// Balances by what became of them.
    pub outcomes: Outcomes<AtomicU64>,
    /// Members that this worker has removed from the schedules, for whatever reason; those of calls without an answer among
    /// them.
    pub removed: AtomicU64,
    /// Balances that were scheduled again because another Postgres server lacked them.
    pub rescheduled: AtomicU64,
    /// Flushes that failed.
    pub batch_failures: AtomicU64,
    /// Settle calls that failed after the commit.
    pub cleanup_failures: AtomicU64,
    /// Times the tenant was passed over because its database could not be had.
    pub skips: AtomicU64,
    /// What is counted for each of its ledgers.
    pub ledgers: Ledgers,
    /// Since when this counts, in milliseconds since 1970.
    pub counts_since_ms: u64,
    /// Members in the schedule, due or not, when it was last claimed from or sampled.
    pub scheduled: AtomicU64,
    /// Whether Redis announces what is written to its schedules, which are empty.
    pub quiet: Quiet,
    /// Members passed over at the last claim because another worker holds their lock.
    pub foreign_locked: AtomicU64,
    /// Smallest remaining life of a scheduled value, in milliseconds, as far as lives have been looked at
    /// (`balance_sync_view::sampler`); `u64::MAX` = nothing is scheduled, no value has an end, or not known.
    pub shortest_life_ms: AtomicU64,
    /// How far ahead of Redis's clock a member is scheduled, in milliseconds, where that is further than a lease or delay
    /// explains; 0 = none is.
    pub ahead_ms: AtomicU64,
    /// Members whose time had come when the schedule was last sampled.
    pub due: AtomicU64,
    /// Members that a worker held, or that were put off, when the schedule was last sampled.
    pub leased: AtomicU64,
    /// How long the oldest due member had been due when the schedule was last sampled, in milliseconds.
    pub oldest_due_age_ms: AtomicU64,
    /// What is claimed and not settled.
    pub exposure: Exposure,
    permit_since: Mutex<Option<Instant>>,
    /// Entries in the tenant's quarantine, losses among them, when it was last sampled; `u64::MAX` = not known.
    pub quarantine_entries: AtomicU64,
    /// Balances whose last mutations are lost, when they were last counted; `u64::MAX` = not known.
    pub losses: AtomicU64,
    /// Both as they were known last, and when that was, by the wall clock in milliseconds since 1970 (0 = never).
    pub last_sample: LastSample,
    /// Members put off because the quarantine is full.
    pub quarantine_full: AtomicU64,
    /// Members found in a schedule of the key form that is not configured (protocol §1).
    pub other_form: AtomicU64,
    /// Set before the collector is stopped because its tenant was removed: it empties the schedule first.
    pub leaving: AtomicBool,
    /// An operator paused this tenant: nothing is claimed, and what waits is kept alive.
    pub paused: AtomicBool,
    /// It is not in the rollout, or that isn't known yet: nothing is claimed, and nothing of it is changed.
    pub withheld: AtomicBool,
    /// Another worker comes first: this one claims only when no other does.
    pub standby: AtomicBool,
    /// Since when this worker comes first, in milliseconds since 1970.
    first_since_ms: AtomicU64,
    /// Requests to its collector outside its loop.
    pub requests: Requests,
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

/// What the ledger has given up replaying of a tenant. Most have none, and take no memory.
#[derive(Debug, Default)]
enum LedgerQuarantine {
    /// Not looked at by this worker.
    #[default]
    Unknown,
    Empty,
    Holds(Box<QueueReport>),
}

/// What was known of a tenant's entries when its schedules could last be read.
#[derive(Debug, Default)]
pub struct LastSample {
    /// When, in milliseconds since 1970; 0 = never.
    pub at_ms: AtomicU64,
    /// Entries in quarantine, losses among them.
    pub quarantine_entries: AtomicU64,
    /// Losses.
    pub losses: AtomicU64,
}

impl TenantStatus {
    /// A tenant that is starting.
    #[must_use]
    pub fn new(tenant: Tenant) -> Self {
        Self {
            tenant,
            registered: None,
            resting: AtomicU8::new(0),
            rouses: AtomicU32::new(0),
            forgotten: AtomicBool::new(false),
            state: Mutex::new(StateInfo {
                state: TenantState::Starting,
                reason: None,
                detail: None,
                partial: false,
                since: wall_clock(),
            }),
            notices: Mutex::default(),
            vanished: Mutex::default(),
            values_gone: ValuesGone::default(),
            queues: Mutex::default(),
            shadow: Mutex::default(),
            neighbour: Mutex::default(),
            takes_locks: AtomicBool::new(false),
            neighbour_active: AtomicBool::new(false),
            neighbour_dropping: AtomicBool::new(false),
            ledger_quarantine: Mutex::default(),
            acknowledged: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            outcomes: Outcomes::default(),
            removed: AtomicU64::new(0),
            rescheduled: AtomicU64::new(0),
            batch_failures: AtomicU64::new(0),
            cleanup_failures: AtomicU64::new(0),
            skips: AtomicU64::new(0),
            ledgers: Ledgers::default(),
            counts_since_ms: wall_clock_ms(),
            scheduled: AtomicU64::new(0),
            quiet: Quiet::default(),
            foreign_locked: AtomicU64::new(0),
            shortest_life_ms: AtomicU64::new(u64::MAX),
            ahead_ms: AtomicU64::new(0),
            due: AtomicU64::new(0),
            leased: AtomicU64::new(0),
            oldest_due_age_ms: AtomicU64::new(0),
            exposure: Exposure::default(),
            permit_since: Mutex::default(),
            quarantine_entries: AtomicU64::new(u64::MAX),
            losses: AtomicU64::new(u64::MAX),
            last_sample: LastSample::default(),
            quarantine_full: AtomicU64::new(0),
            other_form: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            withheld: AtomicBool::new(false),
            standby: AtomicBool::new(false),
            first_since_ms: AtomicU64::new(wall_clock_ms()),
            requests: Requests::default(),
            starts: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            lag: Histogram::default(),
            batches: Default::default(),
            recent: Mutex::default(),
        }
    }

    /// A tenant that is starting, which this worker serves.
    pub(super) fn registered(tenant: Tenant, rest: &Arc<Rest>) -> Arc<Self> {
        let status = Arc::new_cyclic(|itself| Self {
            registered: Some((Weak::clone(itself), Arc::clone(rest))),
            ..Self::new(tenant)
        });
        status.rouse();
        status
    }

    /// Whether nothing has happened on it for a while, and nothing is shown of it but that it is idle or stood by for.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.resting.load(Relaxed) != 0
    }

    /// How often something has happened on it after a rest.
    #[must_use]
    pub fn rouses(&self) -> u32 {
        self.rouses.load(Relaxed)
    }

    /// Something of it has changed, or may have.
    pub fn rouse(&self) {
        if let Some((itself, rest)) = &self.registered
            && let Some(itself) = itself.upgrade()
        {
            rest.rouse(&itself);
        }
    }

    /// Notes in which of the states it is at rest; returns in which it was.
    pub(super) fn rests(&self, state: Option<usize>) -> Option<usize> {
        let number = state.and_then(|at| u8::try_from(at + 1).ok()).unwrap_or_default();
        let before = usize::from(self.resting.swap(number, Relaxed)).checked_sub(1);
        if before.is_some() {
            self.rouses.fetch_add(1, Relaxed);
        }
        before
    }

    pub(super) fn forgotten(&self) {
        self.forgotten.store(true, Relaxed);
    }

    pub(super) fn is_forgotten(&self) -> bool {
        self.forgotten.load(Relaxed)
    }

    /// Whether there is nothing to be shown of it: its schedules are known to be empty, and all else has been looked at and is empty.
    pub(super) fn is_calm(&self) -> bool {
        let is_nothing = |count: &AtomicU64| count.load(Relaxed) == 0;
        self.quiet.is_quiet()
            && [&self.scheduled, &self.due, &self.leased, &self.oldest_due_age_ms, &self.ahead_ms]
                .into_iter()
                .all(is_nothing)
            && [&self.quarantine_entries, &self.losses].into_iter().all(is_nothing)
            && (self.watched.load(Relaxed) || self.standby.load(Relaxed))
            && !self.neighbour_active.load(Relaxed)
            && !self.neighbour_dropping.load(Relaxed)
            && is_none(&self.vanished)
            && self.values_gone.now().is_none()
            && is_none(&self.shadow)
            && self.exposure.is_none()
            && self.shows_no_notice()
            && self.queues.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_none_or(Vec::is_empty)
            && self.recent(Recent::is_silent).unwrap_or(true)
    }

    /// Whether all notices are over. They are removed by the next one.
    fn shows_no_notice(&self) -> bool {
        let now = Instant::now();
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.iter().all(|notice| notice.until <= now)
    }

    /// This one of its schedules isn't empty any more, or that isn't known.
    pub(crate) fn quiet_ends(&self, schedule: usize) {
        self.quiet.end(schedule);
        self.rouse();
    }

    /// Entries in its quarantine, losses among them, and losses; `None` = not known.
    pub fn show_entries(&self, known: Option<(u64, u64)>) {
        let (entries, losses) = known.unwrap_or((u64::MAX, u64::MAX));
        let before = (self.quarantine_entries.swap(entries, Relaxed), self.losses.swap(losses, Relaxed));
        if before != (entries, losses) {
            self.rouse();
        }
    }

    /// Whether it is known if Redis has lost data of it.
    pub fn show_watched(&self, watched: bool) {
        if self.watched.swap(watched, Relaxed) != watched {
            self.rouse();
        }
    }

    /// Whether the ledger's own worker is active, and whether it removes balances unwritten.
    pub(crate) fn show_neighbour(&self, active: bool, dropping: bool) {
        let before =
            (self.neighbour_active.swap(active, Relaxed), self.neighbour_dropping.swap(dropping, Relaxed));
        if before != (active, dropping) {
            self.rouse();
        }
    }

    /// Whose status it is.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The state now. A tenant whose collector works is `degraded` all the same while a problem of some of its balances is
    /// noticed, and while it is open what Redis has lost.
    #[must_use]
    pub fn state(&self) -> StateInfo {
        let info = self.collector_state();
        if !info.state.is_working() {
            return info;
        }
        if let Some(vanished) = self.vanished().filter(|vanished| !vanished.is_notice()) {
            return StateInfo {
                state: TenantState::Degraded,
                reason: Some(vanished.reason),
                detail: Some(format!("{}; {}", vanished.detail, vanished.phase)),
                partial: true,
                since: vanished.since,
            };
        }
        let now = Instant::now();
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.iter().find(|notice| notice.until > now).map_or(info, |notice| StateInfo {
            state: TenantState::Degraded,
            reason: Some(notice.reason),
            detail: Some(notice.detail.clone()),
            partial: true,
            since: notice.since,
        })
    }

    /// What its collector does, whatever is noticed of single balances.
    #[must_use]
    pub fn collector_state(&self) -> StateInfo {
        self.lock().clone()
    }

    /// Notes a problem of some of the balances, to be shown for so long; gives whether it is a new one.
    pub fn notice(&self, reason: Reason, detail: String, lasts: Duration) -> bool {
        let now = Instant::now();
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.retain(|notice| notice.until > now);
        let until = now + lasts;
        if let Some(known) = notices.iter_mut().find(|notice| notice.reason == reason) {
            (known.detail, known.until) = (detail, until);
            return false;
        }
        self.record_error(reason, &detail);
        notices.push(Notice { reason, detail, since: wall_clock(), until });
        drop(notices);
        self.rouse();
        true
    }

    /// Ends a notice before its time.
    pub fn end_notice(&self, reason: Reason) {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.retain(|notice| notice.reason != reason);
    }

    /// What is open because Redis has lost data.
    #[must_use]
    pub fn vanished(&self) -> Option<Vanished> {
        self.vanished.lock().unwrap_or_else(PoisonError::into_inner).as_deref().cloned()
    }

    /// Shows what is open; `None` = nothing.
    pub fn show_vanished(&self, open: Option<Vanished>) {
        if open.is_none() {
            self.acknowledged.store(false, Relaxed);
        }
        let is_open = open.is_some();
        let before = std::mem::replace(
            &mut *self.vanished.lock().unwrap_or_else(PoisonError::into_inner),
            open.map(Box::new),
        );
        if is_open || before.is_some() {
            self.rouse();
        }
    }

    /// The ledger's own queues: those that hold something, or can't be read. `None` = not known.
    #[must_use]
    pub fn queues(&self) -> Option<Vec<QueueReport>> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        match &*self.ledger_quarantine.lock().unwrap_or_else(PoisonError::into_inner) {
            LedgerQuarantine::Unknown => queues.push(QueueReport::unknown(LedgerQueue::Quarantine, None)),
            LedgerQuarantine::Empty => {}
            LedgerQuarantine::Holds(report) => queues.push(QueueReport::clone(report)),
        }
        Some(queues)
    }

    /// Shows the ledger's own queues; `None` = not known.
    pub fn show_queues(&self, queues: Option<Vec<QueueReport>>) {
        let changed = {
            let mut known = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = *known != queues;
            *known = queues;
            changed
        };
        if changed {
            self.rouse();
        }
    }

    /// What a shadow has found; `None` = this worker is none.
    #[must_use]
    pub fn shadow(&self) -> Option<ShadowReport> {
        self.shadow.lock().unwrap_or_else(PoisonError::into_inner).as_deref().cloned()
    }

    /// Shows what a shadow has found.
    pub fn show_shadow(&self, report: Option<ShadowReport>) {
        *self.shadow.lock().unwrap_or_else(PoisonError::into_inner) = report.map(Box::new);
        self.rouse();
    }

    /// What is known of the ledger's own worker.
    #[must_use]
    pub fn neighbour(&self) -> Option<Neighbour> {
        self.neighbour.lock().unwrap_or_else(PoisonError::into_inner).as_deref().cloned()
    }

    /// Whether anything is known of the ledger's own worker.
    pub(crate) fn knows_neighbour(&self) -> bool {
        !is_none(&self.neighbour)
    }

    /// Changes what is known of the ledger's own worker, and returns what `change` does.
    pub fn update_neighbour<T>(&self, change: impl FnOnce(&mut Neighbour) -> T) -> T {
        change(self.neighbour.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
    }

    /// Shows what the ledger has given up replaying; `None` = not looked at.
    pub fn show_ledger_quarantine(&self, report: Option<QueueReport>) {
        *self.ledger_quarantine.lock().unwrap_or_else(PoisonError::into_inner) = match report {
            None => LedgerQuarantine::Unknown,
            Some(report) if report.is_empty() => LedgerQuarantine::Empty,
            Some(report) => LedgerQuarantine::Holds(Box::new(report)),
        };
    }

    /// Has what is open closed; returns what that is.
    pub fn acknowledge(&self) -> Option<Vanished> {
        let open = self.vanished()?;
        self.acknowledged.store(true, Relaxed);
        Some(open)
    }

    /// Whether an operator has acknowledged what is open.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.acknowledged.load(Relaxed)
    }

    /// Since when its collector waits for a permit; `None` = it doesn't.
    pub(crate) fn show_permit_since(&self, since: Option<Instant>) {
        *self.permit_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// For how long its collector has waited for a connection to write on, where that is longer than opening one takes.
    #[must_use]
    pub fn connection_wait(&self) -> Option<Duration> {
        let since = *self.permit_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed()).filter(|wait| *wait >= CONNECTION_WAIT_SHOWN)
    }

    /// For how long the oldest balance has waited whose last mutation only Redis has: one that was due at the last look, that is being
    /// written, or that was put off.
    #[must_use]
    pub fn exposure_age(&self) -> Duration {
        self.exposure.age().max(Duration::from_millis(self.oldest_due_age_ms.load(Relaxed)))
    }

    /// Samples the exposure, once a second; `at` counts from any fixed moment. Returns it, if it counts: a tenant that an operator
    /// has paused is meant to be exposed, and the one that stands by for another worker is sampled there.
    pub fn sample_exposure(&self, at: Duration) -> Option<Duration> {
        let counts = !self.paused.load(Relaxed) && !self.standby.load(Relaxed);
        let age = if counts { self.exposure_age() } else { Duration::ZERO };
        self.exposure.sample(at, age);
        counts.then_some(age)
    }

    /// What the exposure exceeded in 36 seconds of the last hour in which this worker served the tenant.
    #[must_use]
    pub fn exposure_p99(&self) -> Duration {
        self.exposure.p99()
    }

    /// Sets whether another worker comes first; returns whether that is new.
    pub fn stand_by(&self, standby: bool) -> bool {
        let is_new = self.standby.swap(standby, Relaxed) != standby;
        if is_new && !standby {
            self.first_since_ms.store(wall_clock_ms(), Relaxed);
        }
        is_new
    }

    /// For how long this worker has come first.
    #[must_use]
    pub fn first_for(&self) -> Duration {
        Duration::from_millis(wall_clock_ms().saturating_sub(self.first_since_ms.load(Relaxed)))
    }

    /// Whether this worker has known the tenant for so long.
    #[must_use]
    pub fn is_served_for(&self, time: Duration) -> bool {
        let since = Duration::from_millis(wall_clock_ms().saturating_sub(self.counts_since_ms));
        since >= time && !self.standby.load(Relaxed)
    }

    /// Enters a state without a reason; gives whether it is another one than before.
    pub fn enter(&self, state: TenantState) -> bool {
        {
            let mut info = self.lock();
            if info.state == state {
                return false;
            }
            *info = StateInfo { state, reason: None, detail: None, partial: false, since: wall_clock() };
        }
        self.rouse();
        true
    }

    /// Enters `degraded`; gives whether state or reason are others than before. `since` stays while it stays degraded.
    pub fn degrade(&self, reason: Reason, detail: String) -> bool {
        let mut info = self.lock();
        let changed = info.state != TenantState::Degraded || info.reason != Some(reason);
        if info.state != TenantState::Degraded {
            info.since = wall_clock();
        }
        info.state = TenantState::Degraded;
        info.reason = Some(reason);
        self.record_error(reason, &detail);
        info.detail = Some(detail);
        drop(info);
        self.rouse();
        changed
    }

    /// Notes a flush that has ended.
    pub fn note_flush(&self, note: FlushNote) {
        self.recent_lock().get_or_insert_default().flushed(note);
        self.rouse();
    }

    /// Notes a failure, for people to look at.
    pub fn note_error(&self, reason: Reason, detail: &str) {
        self.record_error(reason, detail);
        self.rouse();
    }

    /// The same for callers that hold one of its locks: those are taken under that of [`Rest`], so none may be held when it is roused.
    fn record_error(&self, reason: Reason, detail: &str) {
        self.recent_lock().get_or_insert_default().failed(reason, detail, wall_clock());
    }

    /// Looks at what happened lately; `None` where nothing has.
    pub fn recent<T>(&self, look: impl FnOnce(&Recent) -> T) -> Option<T> {
        self.recent_lock().as_deref().map(look)
    }

    /// Takes the counters into what happened lately, `took` after the last time; gives what was added since.
    pub fn tick(&self, took: Duration, at: f64) -> Option<Totals> {
        let mut recent = self.recent_lock();
        let recent = recent.as_mut()?;
        let totals = Totals {
            updated: self.outcomes[Outcome::Updated].load(Relaxed),
            failures: self.batch_failures.load(Relaxed),
            lags: self.lag.counts(),
        };
        Some(recent.tick(took, totals, self.due.load(Relaxed), at))
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

fn is_none<T>(known: &Mutex<Option<T>>) -> bool {
    known.lock().unwrap_or_else(PoisonError::into_inner).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn degraded_keeps_its_beginning_and_tells_changes_of_reason() {
        let status = TenantStatus::new(Tenant::Single);
        assert!(status.degrade(Reason::PostgresConnection, "refused".to_owned()));
        let since = status.state().since;
        assert!(!status.degrade(Reason::PostgresConnection, "refused again".to_owned()));
        assert!(status.degrade(Reason::PostgresCredentials, "no".to_owned()));
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
        assert!(status.notice(Reason::RedisPermission, "one".to_owned(), minute));
        assert!(!status.notice(Reason::RedisPermission, "two".to_owned(), minute));
        let shown = status.state();
        assert_eq!((shown.state, shown.reason), (TenantState::Degraded, Some(Reason::RedisPermission)));
        assert_eq!(shown.detail.as_deref(), Some("two"));
        assert!(shown.partial);
        assert_eq!(status.collector_state().state, TenantState::Syncing);
        // What stops the tenant altogether goes before.
        status.degrade(Reason::PostgresConnection, "refused".to_owned());
        let shown = status.state();
        assert_eq!((shown.reason, shown.partial), (Some(Reason::PostgresConnection), false));
        status.enter(TenantState::Idle);
        assert_eq!(status.state().reason, Some(Reason::RedisPermission));
        tokio::time::advance(minute).await;
        assert_eq!((status.state().state, status.state().reason), (TenantState::Idle, None));
        assert!(status.notice(Reason::RedisPermission, "three".to_owned(), minute), "it is a new one");
    }

    #[tokio::test(start_paused = true)]
    async fn the_exposure_of_a_paused_tenant_or_of_one_that_stands_by_is_not_sampled() {
        let status = TenantStatus::new(Tenant::Single);
        status.oldest_due_age_ms.store(3_000, Relaxed);
        for second in 0..36 {
            status.sample_exposure(Duration::from_secs(second));
        }
        assert_eq!(status.exposure_p99(), Duration::ZERO, "one in a hundred of an hour is allowed");
        for flag in [&status.paused, &status.standby] {
            flag.store(true, Relaxed);
            assert_eq!(status.sample_exposure(Duration::from_secs(40)), None);
            flag.store(false, Relaxed);
        }
        assert_eq!(status.exposure_p99(), Duration::ZERO);
        assert_eq!(status.sample_exposure(Duration::from_secs(41)), Some(Duration::from_secs(3)));
        assert_eq!(status.exposure_p99(), Duration::from_secs(3));
        status.oldest_due_age_ms.store(0, Relaxed);
        status.sample_exposure(Duration::from_secs(3_700));
        assert!(status.exposure.keeps_no_hour(), "its room is given back");
    }
}
