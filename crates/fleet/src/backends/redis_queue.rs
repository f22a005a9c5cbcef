//! A tenant's queue: its schedules in Redis, and the probes that watch them while it is idle or stands by.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use balance_sync_domain::{BalanceValue, KeySpace};
use balance_sync_schedule::{
    Claim, Claimed, LedgerLock, Loss, PostponeReport, QuarantineReport, Refusal, ReleaseReport,
    ScheduleError, Schedules, SettleReport,
};

use balance_sync_engine::standby::Woken;

use super::{
    prober::Prober,
    standby::StandbyWatch,
    survey::Surveyor,
    tracker::{Quiet, Tracker},
};
use crate::{
    pipeline::{Queue, Survey, Sweep},
    status::TenantStatus,
};

/// Members adopted from a legacy schedule in one call.
const ADOPT_PAGE: usize = 500;
/// Waits longer than this are left to the prober.
const SHORT_WAIT: Duration = Duration::from_millis(60);
/// How often it is looked at the format of claimed values …
const FORMATS_EVERY: Duration = Duration::from_secs(2);
/// … of so many at most.
const FORMATS_OF: usize = 16;

/// After this, whether an idle tenant's schedules are empty by now is looked at again.
const TRACK_AGAIN: Duration = Duration::from_secs(30);

/// What watches schedules for all idle and waiting collectors of a thread.
#[derive(Debug, Clone)]
pub struct Watchers {
    /// Empty schedules.
    pub tracker: Tracker,
    /// Schedules with members that aren't due, and all where Redis doesn't track.
    pub prober: Prober,
    /// Schedules that are another worker's first.
    pub standby: StandbyWatch,
    /// Schedules that are seldom there.
    pub surveyor: Surveyor,
}

/// The tenant's schedules in Redis.
#[derive(Debug)]
pub struct RedisQueue {
    schedules: Schedules,
    /// The key space of the id form that is not served, for tenants that have another.
    other: Option<KeySpace>,
    watchers: Watchers,
    keys: Arc<[Arc<str>]>,
    /// When the formats of values are looked at again.
    next_formats: Mutex<Option<Instant>>,
    /// Counts what is removed from the schedules.
    status: Arc<TenantStatus>,
}

impl RedisQueue {
    /// The queue of one tenant.
    #[must_use]
    pub fn new(
        schedules: Schedules,
        other: Option<KeySpace>,
        watchers: Watchers,
        status: Arc<TenantStatus>,
    ) -> Self {
        let keys = schedules.iter().map(|schedule| schedule.space().shared_schedule()).collect();
        status.quiet.of(schedules.iter().len());
        let queue = Self { schedules, other, watchers, keys, next_formats: Mutex::default(), status };
        queue.show_locking();
        queue
    }

    /// Takes in what a claim shows of the ledger's own worker, and changes the mode of the next claims by it.
    fn look_for_neighbour(&self, claim: &Claim) {
        let locked_at = match claim.ledger_lock {
            LedgerLock::NotLooked => return,
            LedgerLock::Free => None,
            LedgerLock::TakenAt(at) => Some(at),
        };
        let is_newer = self.is_of_newer_ledger(&claim.entries);
        let quiet = self.schedules.first().options().quiet;
        let takes = self.status.update_neighbour(|neighbour| {
            neighbour.looked(claim.now, locked_at, quiet);
            if is_newer {
                neighbour.newer_format(claim.now);
            }
            neighbour.takes_locks(claim.now, quiet)
        });
        self.schedules.take_locks(takes);
        self.show_locking();
    }

    fn show_locking(&self) {
        self.status.takes_locks.store(self.schedules.first().takes_locks(), Relaxed);
    }

    /// Whether one of these values was written by a ledger from 4.1 on; looked at now and then.
    fn is_of_newer_ledger(&self, entries: &[Claimed]) -> bool {
        let mut next = self.next_formats.lock().unwrap_or_else(PoisonError::into_inner);
        if next.is_some_and(|next| next > Instant::now()) {
            return false;
        }
        *next = Some(Instant::now() + FORMATS_EVERY);
        let values = entries.iter().take(FORMATS_OF).filter_map(|claimed| claimed.value.as_deref());
        values.into_iter().any(BalanceValue::is_of_newer_ledger)
    }

    /// Counts the members that a call has removed; all of them where its answer did not arrive.
    fn counted<T>(
        &self,
        result: Result<T, ScheduleError>,
        removed: impl Fn(&T) -> u64,
        all: usize,
    ) -> Result<T, ScheduleError> {
        let removed = result.as_ref().map_or(all as u64, removed);
        self.status.removed.fetch_add(removed, Relaxed);
        result
    }
}

impl RedisQueue {
    /// As [`RedisQueue::counted`], where a later call may have failed alone.
    fn counted_of(
        &self,
        result: Result<SettleReport, ScheduleError>,
        members: &[&Claimed],
    ) -> Result<SettleReport, ScheduleError> {
        let unsettled = |report: &SettleReport| {
            members.iter().filter(|claimed| !report.has_settled(claimed)).count() as u64
        };
        self.counted(result, |report| report.removed + unsettled(report), members.len())
    }
}

impl Queue for RedisQueue {
    fn space(&self) -> &KeySpace {
        self.schedules.first().space()
    }

    fn space_of(&self, claimed: &Claimed) -> &KeySpace {
        self.schedules.of(claimed).space()
    }

    async fn claim(&self, limit: usize) -> Result<Claim, ScheduleError> {
        let claim = self.schedules.claim(limit).await?;
        self.status.removed.fetch_add(claim.isolated, Relaxed);
        self.look_for_neighbour(&claim);
        Ok(claim)
    }

    async fn settle(&self, written: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        let result = self.schedules.settle(written).await;
        self.counted_of(result, written)
    }

    async fn release(&self, held: &[&Claimed]) -> Result<ReleaseReport, ScheduleError> {
        self.schedules.release(held).await
    }

    async fn postpone(&self, members: &[(&Claimed, bool)]) -> Result<PostponeReport, ScheduleError> {
        self.schedules.postpone(members).await
    }

    async fn quarantine(&self, refused: &[(&Claimed, Refusal)]) -> Result<QuarantineReport, ScheduleError> {
        let result = self.schedules.quarantine(refused).await;
        self.counted(result, |report| report.quarantined, refused.len())
    }

    async fn dismiss(&self, obsolete: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        let result = self.schedules.dismiss(obsolete).await;
        self.counted_of(result, obsolete)
    }

    async fn put_off(
        &self,
        waiting: &[&Claimed],
        delay: Duration,
    ) -> Result<Vec<(usize, PostponeReport)>, ScheduleError> {
        self.schedules.put_off(waiting, delay).await
    }

    async fn current_values(&self, members: &[&Claimed]) -> Result<Vec<Vec<Vec<u8>>>, ScheduleError> {
        self.schedules.current_values(members).await
    }

    async fn record_losses(&self, lost: &[(&Claimed, Loss)]) -> Result<QuarantineReport, ScheduleError> {
        let result = self.schedules.record_losses(lost).await;
        self.counted(result, |report| report.quarantined, lost.len())
    }

    async fn sweep(&self) -> Result<Sweep, ScheduleError> {
        let mut sweep = Sweep::default();
        for schedule in self.schedules.iter() {
            let mut from: Option<Vec<u8>> = None;
            loop {
                let page = schedule.protect_page(from.as_deref()).await?;
                sweep.raised += page.raised;
                sweep.absent += page.absent;
                sweep.shortest = match (sweep.shortest, page.shortest) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                match page.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
        }
        Ok(sweep)
    }

    async fn protect_since(&self, from: Option<f64>) -> Result<(f64, u64), ScheduleError> {
        self.schedules.protect_since(from).await
    }

    async fn survey(&self) -> Result<Survey, ScheduleError> {
        let mut survey = Survey::default();
        let spaces = self.schedules.iter().map(|schedule| schedule.space());
        let mut keys: Vec<String> = spaces.map(|space| space.legacy_schedule().to_owned()).collect();
        if let Some(other) = &self.other {
            keys.extend([other.schedule(), other.legacy_schedule()].map(str::to_owned));
        }
        if self.watchers.surveyor.none_exists(keys).await {
            return Ok(survey);
        }
        loop {
            let (adopted, left) = self.schedules.adopt_legacy(ADOPT_PAGE).await?;
            survey.adopted += adopted;
            if left == 0 || adopted == 0 {
                break;
            }
        }
        if let Some(other) = &self.other {
            let schedule = self.schedules.first();
            survey.other_form = schedule.scheduled_in(other.schedule()).await?
                + schedule.scheduled_in(other.legacy_schedule()).await?;
        }
        Ok(survey)
    }

    async fn idle(&self, delay: Duration) {
        if delay <= SHORT_WAIT {
            tokio::time::sleep(delay).await;
        } else {
            let due = self.watchers.due(&self.keys, &self.status, delay).await;
            self.schedules.wake(&self.keys[due]);
        }
    }

    async fn stand_by(&self) {
        let key = first_of(&self.keys, |at, key| self.watchers.unclaimed(key, at, &self.status)).await;
        self.schedules.wake(&key);
    }
}

impl Watchers {
    /// Waits until one of these schedules may have a due member, and returns which.
    async fn due(&self, keys: &Arc<[Arc<str>]>, status: &Arc<TenantStatus>, delay: Duration) -> usize {
        loop {
            let tracked = self.tracker.wait(keys, 0, status).await;
            let again = async {
                match tracked {
                    Quiet::Untracked => self.tracker.is_back().await,
                    _ => tokio::time::sleep(TRACK_AGAIN).await,
                }
            };
            match tracked {
                Quiet::Written(which) => return which,
                Quiet::NotEmpty | Quiet::Untracked => tokio::select! {
                    due = self.prober.wait(keys, delay) => return due,
                    () = again => {}
                },
            }
        }
    }

    /// Waits until something is due in the schedule that no worker claims.
    async fn unclaimed(&self, key: Arc<str>, at: usize, status: &Arc<TenantStatus>) {
        let keys: Arc<[Arc<str>]> = [Arc::clone(&key)].into();
        loop {
            let tracks = self.tracker.wait(&keys, at, status).await != Quiet::Untracked;
            tokio::select! {
                woken = self.standby.wait(Arc::clone(&key), tracks) => {
                    if woken == Woken::Unclaimed {
                        return;
                    }
                }
                () = self.tracker.is_back(), if !tracks => {}
            }
        }
    }
}

/// Waits for all of them, and gives the first that is there.
async fn first_of<F: Future<Output = ()>>(
    keys: &[Arc<str>],
    wait: impl Fn(usize, Arc<str>) -> F,
) -> Arc<str> {
    match keys {
        [only] => {
            wait(0, Arc::clone(only)).await;
            Arc::clone(only)
        }
        keys => {
            let waits = keys.iter().enumerate().map(|(at, key)| Box::pin(wait(at, Arc::clone(key))));
            let ((), at, _) = futures::future::select_all(waits).await;
            Arc::clone(&keys[at])
        }
    }
}
