//! The open conditions of a worker's tenants, in memory and in Redis.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_engine::{
    reason::Reason,
    vanish::{Episode, Found, REASONS},
};
use balance_sync_schedule::{ScheduleError, Vanished as Store};
use balance_sync_tenants::Tenant;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

use super::{Memory, Vanish, Watched, Witness, is_served};
use crate::{
    clock::wall_clock,
    status::{Outcome, TenantStatus, Vanished},
};

/// Operations are read from the oldest mutation that waited, and so much before: clocks differ.
const MARGIN: f64 = 900.0;
/// The same for a Redis without a mark: when it lost its data, if it did, is not known.
const BEFORE_THE_MARK: f64 = 86_400.0;
/// Members that are remembered of a condition to which more is added while it is open.
const MEMBERS: usize = 64;
/// Of these, those that the next worker is told of: a full entry has about 3 kB then.
const HANDED_ON: usize = 16;
/// Longest description that is stored and taken over.
const DETAIL: usize = 400;

/// The open conditions of this worker's tenants.
#[derive(Clone, Default)]
pub(super) struct Board(Arc<Shared>);

#[derive(Default)]
struct Shared {
    open: Mutex<BTreeMap<Tenant, Open>>,
    /// Closed, and not removed from Redis yet, with the time since when they were open.
    done: Mutex<Vec<(Tenant, f64)>>,
    wake: Notify,
}

/// A tenant's open condition.
pub(super) struct Open {
    pub(super) episode: Episode,
    /// Operations since this time may be missing, in seconds since 1970.
    pub(super) from: f64,
    /// Rows that this worker had written when it was noticed, or taken over.
    updated: u64,
    /// Rows that others had written since it was noticed.
    written_before: u64,
    /// Balances that comparisons with another Postgres server had scheduled again, as far as the episode knows of them.
    rescheduled: u64,
    /// Members that were scheduled before, as far as they are remembered: what becomes of them is asked before it closes.
    members: Vec<Witness>,
    /// What stands in Redis about it.
    stored: Option<String>,
}

impl Open {
    /// The members that were scheduled before.
    pub(super) fn members(&self) -> &[Witness] {
        &self.members
    }

    /// Rows that were written since it was noticed, by whichever worker.
    pub(super) fn written(&self, status: &TenantStatus) -> u64 {
        self.written_before + status.outcomes[Outcome::Updated].load(Relaxed).saturating_sub(self.updated)
    }

    /// Takes over what a comparison with another Postgres server has scheduled again since.
    pub(super) fn note_rescheduled(&mut self, status: &TenantStatus) {
        let now = status.rescheduled.load(Relaxed);
        self.episode.rescheduled_elsewhere(now.saturating_sub(self.rescheduled));
        self.rescheduled = now;
    }

    /// Remembers more members; of one that is remembered already the newest value, which Redis may have lost since.
    fn remember(&mut self, more: &[Witness]) {
        for witness in more {
            let has_room = self.members.len() < MEMBERS;
            match self.members.iter_mut().find(|known| known.member == witness.member) {
                Some(known) if known.version < witness.version => *known = witness.clone(),
                None if has_room => self.members.push(witness.clone()),
                Some(_) | None => {}
            }
        }
    }
}

impl Board {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<Tenant, Open>> {
        // Each change is one call on the map.
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn changed(&self) {
        self.0.wake.notified().await;
    }

    pub(super) fn wake(&self) {
        self.0.wake.notify_one();
    }

    fn show(&self, status: &TenantStatus) {
        let open = self.lock().get(status.tenant()).map(|Open { episode, .. }| Vanished {
            reason: episode.reason,
            extent: episode.extent,
            since: episode.since,
            detail: episode.detail.clone(),
            phase: episode.phase().describe().to_owned(),
            found: episode.found(),
        });
        status.show_vanished(open);
    }

    fn done(&self, status: &TenantStatus, since: f64) {
        lock(&self.0.done).push((status.tenant().clone(), since));
        let open = self.lock().remove(status.tenant());
        // Until they are counted again: what is listed as lost must not look healthy meanwhile.
        status.losses.fetch_max(open.map_or(0, |open| open.episode.found().lost), Relaxed);
        self.show(status);
    }
}

/// What stands in Redis about an open condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    reason: String,
    extent: u64,
    since: f64,
    from: f64,
    is_loss: bool,
    /// Of an entry of releases up to 1.0 it isn't known.
    #[serde(default)]
    keeps_values: bool,
    detail: String,
    #[serde(default)]
    phase: String,
    #[serde(default)]
    rescheduled: u64,
    #[serde(default)]
    scheduled: u64,
    #[serde(default)]
    lost: u64,
    #[serde(default)]
    rows_ahead: u64,
    /// At most `extent`: more explains nothing.
    #[serde(default)]
    written: u64,
    /// Members that were scheduled before, each with the ID of its balance and its version.
    #[serde(default)]
    members: Vec<(String, Uuid, i64)>,
}

impl Record {
    fn of(open: &Open, status: &TenantStatus) -> Self {
        let Open { episode, from, members, .. } = open;
        let Found { rescheduled, scheduled, lost, rows_ahead } = episode.found();
        let members = members.iter().take(HANDED_ON);
        Self {
            reason: episode.reason.as_str().to_owned(),
            extent: episode.extent,
            since: episode.since,
            from: *from,
            is_loss: episode.is_loss,
            keeps_values: episode.keeps_values,
            detail: cut(&episode.detail),
            phase: cut(episode.phase().describe()),
            rescheduled,
            scheduled,
            lost,
            rows_ahead,
            written: open.written(status).min(episode.extent),
            members: members
                .filter_map(|one| Some((String::from_utf8(one.member.clone()).ok()?, one.id, one.version)))
                .collect(),
        }
    }

    /// What another worker has begun with, as this one goes on with it. `text`: what was read.
    fn taken_over(self, text: &str, status: &TenantStatus, grace: Duration) -> Option<Open> {
        let reason = Reason::parse(&self.reason)?;
        let Self { rescheduled, scheduled, lost, rows_ahead, .. } = self;
        let found = Found { rescheduled, scheduled, lost, rows_ahead };
        let (now, detail) = (Instant::now().into_std(), cut(&self.detail));
        let mut episode =
            Episode::new(reason, self.extent, self.is_loss, self.since, detail, now, grace).resumed(found);
        episode.keeps_values &= self.keeps_values;
        let members = self.members.into_iter().take(MEMBERS);
        Some(Open {
            episode,
            from: self.from,
            updated: status.outcomes[Outcome::Updated].load(Relaxed),
            written_before: self.written,
            rescheduled: status.rescheduled.load(Relaxed),
            members: members
                .map(|(member, id, version)| Witness { member: member.into_bytes(), id, version })
                .collect(),
            stored: Some(text.to_owned()),
        })
    }
}

impl Vanish {
    /// Opens a condition, or adds to the one that is open.
    pub(super) fn open(
        &self,
        status: &TenantStatus,
        reason: Reason,
        extent: u64,
        is_loss: bool,
        detail: String,
        watched: &Watched,
    ) {
        let (now, since) = (Instant::now().into_std(), wall_clock());
        let margin = if reason == Reason::RedisUnmarked { BEFORE_THE_MARK } else { MARGIN };
        let from = since - watched.oldest.as_secs_f64() - self.grace.as_secs_f64() - margin;
        let episode = Episode::new(reason, extent, is_loss, since, detail, now, self.grace);
        let detail = &episode.detail;
        if extent > 0 {
            tracing::error!(
                tenant_id = %status.tenant(), condition = reason.as_str(), members = extent, detail,
                "redis has lost data of a tenant"
            );
        } else {
            tracing::info!(
                tenant_id = %status.tenant(), condition = reason.as_str(), detail,
                "whether redis has lost data of a tenant is looked at"
            );
        }
        let mut board = self.board.lock();
        match board.get_mut(status.tenant()) {
            Some(open) => {
                open.episode.merge(episode, now);
                open.from = open.from.min(from);
                open.remember(watched.schedule.witnesses());
            }
            None => {
                if let Some(at) = REASONS.iter().position(|known| *known == reason) {
                    self.fleet.vanished[at].fetch_add(1, Relaxed);
                }
                let updated = status.outcomes[Outcome::Updated].load(Relaxed);
                let members = watched.schedule.witnesses().to_vec();
                let rescheduled = watched.rescheduled;
                let open =
                    Open { episode, from, updated, written_before: 0, rescheduled, members, stored: None };
                board.insert(status.tenant().clone(), open);
            }
        }
        drop(board);
        self.show(status);
        self.board.wake();
    }

    /// Shows what is open of a tenant.
    pub(super) fn show(&self, status: &TenantStatus) {
        self.board.show(status);
    }

    /// Keeps board and Redis in step, and closes what is acknowledged.
    pub(super) async fn keep(&self, store: &Store, memory: &mut Memory) -> Result<(), ScheduleError> {
        // What the repair has closed.
        let done: Vec<(Tenant, f64)> = std::mem::take(&mut *lock(&self.board.0.done));
        for (tenant, since) in done {
            memory.closed.insert(tenant.clone(), since);
            store.close(tenant.label()).await?;
        }
        let stored: BTreeMap<String, String> = store.open().await?.into_iter().collect();
        memory.stored = stored.keys().cloned().collect();
        // Of others: what they had open, and this worker serves now.
        for (label, text) in &stored {
            let Some(status) = self.fleet.find_by_label(label).filter(|status| is_served(status)) else {
                continue;
            };
            let Ok(record) = serde_json::from_str::<Record>(text) else { continue };
            if memory.closed.get(status.tenant()).is_some_and(|since| *since >= record.since) {
                continue;
            }
            let Some(mut open) = record.taken_over(text, &status, self.grace) else { continue };
            let reason = open.episode.reason;
            let mut board = self.board.lock();
            // What this worker has opened since it has started is added to what was open before.
            if board.get(status.tenant()).is_some_and(|open| open.stored.is_some()) {
                continue;
            }
            if let Some(new) = board.remove(status.tenant()) {
                open.episode.merge(new.episode, Instant::now().into_std());
                open.remember(&new.members);
                open.rescheduled = new.rescheduled;
            }
            board.insert(status.tenant().clone(), open);
            drop(board);
            tracing::warn!(
                tenant_id = label,
                condition = reason.as_str(),
                "taken over: redis has lost data of a tenant"
            );
            self.show(&status);
            self.board.wake();
        }
        let open: Vec<Tenant> = self.board.lock().keys().cloned().collect();
        for tenant in open {
            let Some(status) = self.fleet.find(&tenant).filter(|status| is_served(status)) else {
                // The worker that serves it goes on.
                self.board.lock().remove(&tenant);
                if let Some(status) = self.fleet.find(&tenant) {
                    self.show(&status);
                }
                continue;
            };
            let stands = stored.contains_key(tenant.label());
            let (text, former, since, gone, missing) = {
                let mut board = self.board.lock();
                let Some(open) = board.get_mut(&tenant) else { continue };
                let gone = open.episode.is_closed_elsewhere(stands || open.stored.is_none(), memory.lost);
                (
                    record(open, &status),
                    open.stored.clone(),
                    open.episode.since,
                    gone,
                    open.episode.is_missing(),
                )
            };
            if status.is_acknowledged() || gone {
                tracing::warn!(tenant_id = %tenant, by_operator = !gone, "what redis has lost of a tenant is closed");
                self.close(store, memory, &status, since).await?;
                continue;
            }
            if !missing && (former.as_ref() != Some(&text) || !stands) {
                store.store(tenant.label(), &text).await?;
                if let Some(open) = self.board.lock().get_mut(&tenant) {
                    open.stored = Some(text);
                }
            }
        }
        Ok(())
    }

    async fn close(
        &self,
        store: &Store,
        memory: &mut Memory,
        status: &TenantStatus,
        since: f64,
    ) -> Result<(), ScheduleError> {
        store.close(status.tenant().label()).await?;
        memory.closed.insert(status.tenant().clone(), since);
        self.board.lock().remove(status.tenant());
        self.show(status);
        Ok(())
    }

    /// The repair has found nothing that is left to be done.
    pub(super) fn done(&self, status: &TenantStatus, since: f64) {
        self.board.done(status, since);
    }
}

fn record(open: &Open, status: &TenantStatus) -> String {
    serde_json::to_string(&Record::of(open, status)).unwrap_or_default()
}

pub(super) fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(DETAIL).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(reason: Reason, lost: u64) -> Open {
        let now = Instant::now().into_std();
        let mut episode = Episode::new(reason, 0, true, 0.0, String::new(), now, Duration::ZERO);
        episode.compared_values(now, Found { lost, ..Found::default() });
        Open {
            episode,
            from: 0.0,
            updated: 0,
            written_before: 0,
            rescheduled: 0,
            members: Vec::new(),
            stored: None,
        }
    }

    #[test]
    fn losses_are_shown_at_once_when_a_condition_closes() {
        let (board, status) = (Board::default(), TenantStatus::new(Tenant::Single));
        status.losses.store(1, Relaxed);
        board.lock().insert(Tenant::Single, open(Reason::RedisDataReplaced, 3));
        board.show(&status);
        assert!(status.vanished().is_some_and(|open| open.found.lost == 3 && !open.is_notice()));
        board.done(&status, 0.0);
        // Nothing has counted the entries since.
        assert_eq!(status.losses.load(Relaxed), 3);
        assert!(status.vanished().is_none());
    }

    fn witness(n: usize, version: i64) -> Witness {
        Witness { member: n.to_string().into_bytes(), id: Uuid::nil(), version }
    }

    #[test]
    fn the_next_worker_goes_on_with_what_was_found_written_and_remembered() {
        let status = TenantStatus::new(Tenant::Single);
        let grace = Duration::from_secs(60);
        let mut open = open(Reason::RedisScheduleVanished, 7);
        open.episode.extent = 20;
        open.remember(&(0..3).map(|n| witness(n, 5)).collect::<Vec<_>>());
        status.outcomes[Outcome::Updated].fetch_add(12, Relaxed);
        let text = record(&open, &status);
        let read = |text: &str| serde_json::from_str::<Record>(text).expect("a record");
        let mut next = read(&text).taken_over(&text, &status, grace).expect("a known reason");
        assert_eq!(next.members, open.members);
        assert_eq!((next.episode.found(), next.written(&status)), (open.episode.found(), 12));
        // More than has vanished explains nothing more, so the entry does not change with each row.
        status.outcomes[Outcome::Updated].fetch_add(100, Relaxed);
        next.remember(&(0..MEMBERS).map(|n| witness(n, 5)).collect::<Vec<_>>());
        let later = record(&next, &status);
        status.outcomes[Outcome::Updated].fetch_add(1, Relaxed);
        assert_eq!(record(&next, &status), later);
        let third = read(&later).taken_over(&later, &status, grace).expect("a known reason");
        assert_eq!((third.written(&status), third.members.len()), (20, HANDED_ON));
    }

    #[test]
    fn what_another_comparison_schedules_again_is_taken_over_once() {
        let status = TenantStatus::new(Tenant::Single);
        let mut open = open(Reason::RedisDataReplaced, 0);
        status.rescheduled.fetch_add(8, Relaxed);
        open.note_rescheduled(&status);
        open.note_rescheduled(&status);
        assert_eq!(open.episode.found().rescheduled, 8);
        let text = record(&open, &status);
        let record: Record = serde_json::from_str(&text).expect("a record");
        let mut next = record.taken_over(&text, &status, Duration::ZERO).expect("a known reason");
        next.note_rescheduled(&status);
        assert_eq!(next.episode.found().rescheduled, 8);
    }

    #[test]
    fn that_values_may_be_gone_is_handed_on() {
        let status = TenantStatus::new(Tenant::Single);
        let now = Instant::now().into_std();
        for (also, keeps_values) in [(Reason::RedisScheduleVanished, true), (Reason::RedisEvicted, false)] {
            let mut open = open(Reason::RedisScheduleVanished, 0);
            open.episode.merge(Episode::new(also, 0, true, 0.0, String::new(), now, Duration::ZERO), now);
            let text = record(&open, &status);
            let record: Record = serde_json::from_str(&text).expect("a record");
            assert_eq!(record.reason, Reason::RedisScheduleVanished.as_str());
            let next = record.taken_over(&text, &status, Duration::ZERO).expect("a known reason");
            assert_eq!(next.episode.keeps_values, keeps_values);
        }
    }

    #[test]
    fn of_a_member_the_newest_value_is_remembered_and_of_so_many_no_more() {
        let mut open = open(Reason::RedisDataReplaced, 0);
        open.remember(&[witness(0, 5), witness(1, 5)]);
        // Redis has lost a write of the first, and got one more of the second.
        open.remember(&[witness(0, 4), witness(1, 6)]);
        let versions: Vec<i64> = open.members.iter().map(|member| member.version).collect();
        assert_eq!(versions, [5, 6]);
        let many: Vec<Witness> = (0..2 * MEMBERS).map(|n| witness(n, 7)).collect();
        open.remember(&many);
        assert_eq!(open.members.len(), MEMBERS);
    }

    #[test]
    fn a_redis_without_a_mark_is_a_notice_until_something_is_found() {
        let (board, status) = (Board::default(), TenantStatus::new(Tenant::Single));
        for (lost, is_notice) in [(0, true), (1, false)] {
            board.lock().insert(Tenant::Single, open(Reason::RedisUnmarked, lost));
            board.show(&status);
            assert_eq!(status.vanished().map(|open| open.is_notice()), Some(is_notice));
        }
    }
}
