//! Recording: once a second this worker looks at the states of its tenants, of those at rest in turn only, and stores what has changed.
//!
//! Nothing waits for it. While Redis is away entries wait within bounds, and are stored later with the times at which they happened.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_engine::timeline::{Observed, Pending, Period, Tracker};
use balance_sync_fleet::{
    clock::wall_clock_ms,
    status::{SWEEP_EVERY, WorkerMode},
    tasks::Progress,
};
use balance_sync_schedule::{
    ScheduleError, Timelines,
    timelines::{NewEntry, RECORD_PAGE, Run},
};
use balance_sync_tenants::Tenant;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::local_worker::LocalWorker;

/// Time between two looks at the states.
pub(crate) const OBSERVE_EVERY: Duration = Duration::from_secs(1);
/// Time between two looks at whether something waits to be stored.
const STORE_EVERY: Duration = Duration::from_secs(2);
/// Until when this worker has recorded is stored this often, if nothing else is.
const CONFIRM_EVERY: Duration = Duration::from_secs(10);
/// Longest time to store the rest at the end.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

/// What was seen and is not stored yet.
#[derive(Default)]
struct Seen {
    trackers: HashMap<Tenant, Tracker>,
    pending: Pending<Tenant>,
    looks: u64,
    /// Which tenants there were at the last look, by the number of their changes; `None` = all are to be looked at.
    tenants: Option<u64>,
}

/// Records what one worker sees of its tenants.
pub(crate) struct Recorder {
    own: Arc<LocalWorker>,
    timelines: Timelines,
    seen: Mutex<Seen>,
}

/// What is stored of a run.
struct Stored {
    run: String,
    known: bool,
    period: Period,
    failing: bool,
}

impl Recorder {
    pub(crate) fn new(own: Arc<LocalWorker>, timelines: Timelines) -> Self {
        Self { own, timelines, seen: Mutex::default() }
    }

    /// Runs until it is stopped; then stores the rest, and that it has ended.
    pub(crate) async fn run(self, stop: CancellationToken, progress: Progress) {
        let mut stored = self.begin();
        {
            // Apart from each other: a Redis that doesn't answer must not keep it from seeing what happens meanwhile.
            let recording = async {
                tokio::join!(self.keep_observing(), self.keep_storing(&mut stored, &progress));
            };
            stop.run_until_cancelled(recording).await;
        }
        self.observe();
        stored.period.ended = true;
        match tokio::time::timeout(FINISH_WITHIN, self.store(&mut stored)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the end of the timeline was not stored"),
            Err(_) => tracing::debug!("the end of the timeline was not stored in time"),
        }
    }

    fn begin(&self) -> Stored {
        let now = self.now();
        let own = &self.own;
        let started = ((own.started_at * 1e3) as u64).min(now);
        let period = Period {
            worker: own.name.current().to_string(),
            version: own.version.clone(),
            shadow: own.fleet.mode() == WorkerMode::Shadow,
            started,
            from: now,
            to: now,
            ..Period::default()
        };
        Stored { run: run_id(), known: false, period, failing: false }
    }

    async fn keep_observing(&self) {
        let mut timer = tokio::time::interval(OBSERVE_EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            self.observe();
        }
    }

    async fn keep_storing(&self, stored: &mut Stored, progress: &Progress) {
        let mut timer = tokio::time::interval(STORE_EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut confirmed: Option<Instant> = None;
        loop {
            timer.tick().await;
            let is_due = confirmed.is_none_or(|at| at.elapsed() >= CONFIRM_EVERY);
            if is_due || !self.seen().pending.is_empty() {
                match self.store(stored).await {
                    Ok(()) => {
                        confirmed = Some(Instant::now());
                        if std::mem::take(&mut stored.failing) {
                            tracing::info!("timelines are recorded again");
                        }
                    }
                    Err(error) => {
                        let first = !std::mem::replace(&mut stored.failing, true);
                        if first && !error.is_transient() {
                            tracing::warn!(%error, "timelines can't be recorded");
                        } else {
                            tracing::debug!(%error, "timelines could not be recorded");
                        }
                    }
                }
            }
            progress.beat();
        }
    }

    /// Takes in how all tenants are now.
    fn observe(&self) {
        self.take_in();
        let dropped = self.seen().pending.dropped_total();
        self.own.fleet.timeline_dropped.store(dropped, Relaxed);
    }

    fn take_in(&self) {
        let now = self.now();
        let fleet = &self.own.fleet;
        let mut seen = self.seen();
        seen.looks += 1;
        let Seen { trackers, pending, looks, tenants } = &mut *seen;
        let changed = fleet.tenants_changed();
        let has_changed = *tenants != Some(changed);
        let looked_at = if has_changed || looks.is_multiple_of(SWEEP_EVERY.as_secs()) {
            fleet.tenants().to_vec()
        } else {
            fleet.rest.active()
        };
        for status in &looked_at {
            let info = status.state();
            let observed = Observed {
                state: info.state,
                reason: info.reason,
                detail: info.detail.as_deref(),
                partial: info.partial,
                restarts: status.restarts.load(Relaxed),
            };
            let tracker = match trackers.get_mut(status.tenant()) {
                Some(known) => known,
                None => trackers.entry(status.tenant().clone()).or_default(),
            };
            if let Some(change) = tracker.observe(now, &observed) {
                pending.add(status.tenant(), change);
            }
        }
        if fleet.draining.load(Relaxed) || !has_changed {
            // That the worker ends is recorded as such, and not for each of its tenants.
            return;
        }
        *tenants = Some(changed);
        let served: HashSet<&Tenant> = looked_at.iter().map(|status| status.tenant()).collect();
        trackers.retain(|tenant, tracker| {
            let stays = served.contains(tenant);
            if !stays && let Some(change) = tracker.leave(now) {
                pending.add(tenant, change);
            }
            stays
        });
    }

    /// Stores what waits, in pages.
    async fn store(&self, stored: &mut Stored) -> Result<(), ScheduleError> {
        loop {
            let (page, is_last, until) = {
                let mut seen = self.seen();
                let page = seen.pending.page(RECORD_PAGE);
                let is_last = page.len() == seen.pending.len();
                let until = self.now();
                if is_last && let Some((since, count)) = seen.pending.take_dropped() {
                    tracing::warn!(count, "entries of timelines are missing, as too many waited for Redis");
                    stored.period.miss(since, until);
                }
                (page, is_last, until)
            };
            let mut period = stored.period.clone();
            // It takes another one when its own is a live worker's.
            period.worker = self.own.name.current().to_string();
            if is_last {
                // Only now is nothing missing until then.
                period.to = period.to.max(until);
            }
            if !self.record(stored, &period, &page).await? {
                // Nothing can be said about what was before.
                tracing::debug!("redis has lost what was recorded of timelines");
                stored.run = run_id();
                stored.known = false;
                stored.period.from = until;
                stored.period.gaps.clear();
                self.begin_anew();
                continue;
            }
            stored.known = true;
            stored.period = period;
            self.seen().pending.stored(&page);
            if is_last {
                return Ok(());
            }
        }
    }

    async fn record(
        &self,
        stored: &Stored,
        period: &Period,
        page: &[(Tenant, balance_sync_engine::timeline::Change)],
    ) -> Result<bool, ScheduleError> {
        let texts: Vec<String> = page
            .iter()
            .map(|(_, change)| {
                let line = super::tenant::Line { worker: &period.worker, entry: &change.entry };
                serde_json::to_string(&line).unwrap_or_default()
            })
            .collect();
        let entries: Vec<NewEntry<'_>> = page
            .iter()
            .zip(&texts)
            .map(|((tenant, change), text)| NewEntry {
                tenant: tenant.label(),
                only_if_known: change.only_if_known,
                at: change.entry.at,
                text,
            })
            .collect();
        let period_text = serde_json::to_string(period).unwrap_or_default();
        let run = Run { id: &stored.run, known: stored.known, until: period.to, period: &period_text };
        self.timelines.record(run, &entries).await
    }

    /// Has the next look record all that is not well, as nothing of it is recorded any more.
    fn begin_anew(&self) {
        let mut seen = self.seen();
        seen.trackers.clear();
        seen.tenants = None;
    }

    /// Redis's time in milliseconds since 1970, as far as it is known by how much this clock differs.
    fn now(&self) -> u64 {
        let offset = self.own.fleet.clock_offset_ms.load().unwrap_or_default();
        wall_clock_ms().saturating_add_signed(-offset)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // At worst an entry is missing after a panic.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use balance_sync_domain::TenantId;
    use balance_sync_engine::timeline::{Change, MOST_PENDING, MOST_PENDING_BYTES};

    use super::*;

    /// What ten thousand tenants take in a worker's memory, as documented in decision 0034.
    #[test]
    fn the_memory_of_ten_thousand_tenants_is_bounded() {
        let mut trackers: HashMap<Tenant, Tracker> = HashMap::new();
        for n in 0..10_000 {
            let id = TenantId::parse(&format!("t{n}"));
            trackers.insert(id.map_or(Tenant::Single, Tenant::Id), Tracker::default());
        }
        let entry = size_of::<(Tenant, Tracker)>() + 1;
        // A table is filled to seven eighths at most.
        let well = trackers.capacity() * 8 / 7 * entry;
        let waiting =
            MOST_PENDING * (size_of::<(Tenant, u64)>() + size_of::<Change>()) * 2 + MOST_PENDING_BYTES;
        assert!(well < 1_500_000, "{well}");
        assert!(waiting < 40_000_000, "{waiting}");
    }
}
