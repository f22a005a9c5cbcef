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

use super::{Memory, Vanish, is_served};
use crate::{
    clock::wall_clock,
    status::{Outcome, TenantStatus, Vanished},
};

/// Operations are read from the oldest mutation that waited, and so much before: clocks differ.
const MARGIN: f64 = 900.0;
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
    /// Rows that this worker had written when it was noticed.
    pub(super) updated: u64,
    /// What stands in Redis about it.
    stored: Option<String>,
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
}

/// What stands in Redis about an open condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    reason: String,
    extent: u64,
    since: f64,
    from: f64,
    is_loss: bool,
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
        oldest: Duration,
    ) {
        let (now, since) = (Instant::now().into_std(), wall_clock());
        let from = since - oldest.as_secs_f64() - self.grace.as_secs_f64() - MARGIN;
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
            }
            None => {
                if let Some(at) = REASONS.iter().position(|known| *known == reason) {
                    self.fleet.vanished[at].fetch_add(1, Relaxed);
                }
                let updated = status.outcomes[Outcome::Updated].load(Relaxed);
                board.insert(status.tenant().clone(), Open { episode, from, updated, stored: None });
            }
        }
        drop(board);
        self.show(status);
        self.board.wake();
    }

    /// Shows what is open of a tenant.
    pub(super) fn show(&self, status: &TenantStatus) {
        let board = self.board.lock();
        let open = board.get(status.tenant()).map(|Open { episode, .. }| Vanished {
            reason: episode.reason,
            extent: episode.extent,
            since: episode.since,
            detail: episode.detail.clone(),
            phase: episode.phase().describe().to_owned(),
            found: episode.found(),
        });
        self.fleet.vanished_open.store(board.len() as u64, Relaxed);
        drop(board);
        status.show_vanished(open);
    }

    /// Keeps board and Redis in step, and closes what is acknowledged. `lost` = Redis has lost data since the last look.
    pub(super) async fn keep(
        &self,
        store: &Store,
        memory: &mut Memory,
        lost: bool,
    ) -> Result<(), ScheduleError> {
        // What the repair has closed.
        let done: Vec<(Tenant, f64)> = std::mem::take(&mut *lock(&self.board.0.done));
        for (tenant, since) in done {
            memory.closed.insert(tenant.clone(), since);
            store.close(tenant.label()).await?;
        }
        let stored: BTreeMap<String, String> = store.open().await?.into_iter().collect();
        // Of others: what they had open, and this worker serves now.
        for (label, text) in &stored {
            let Some(status) = self.fleet.find_by_label(label).filter(|status| is_served(status)) else {
                continue;
            };
            let Ok(record) = serde_json::from_str::<Record>(text) else { continue };
            let Some(reason) = Reason::parse(&record.reason) else { continue };
            if memory.closed.get(status.tenant()).is_some_and(|since| *since >= record.since) {
                continue;
            }
            let mut board = self.board.lock();
            if board.contains_key(status.tenant()) {
                continue;
            }
            let now = Instant::now().into_std();
            let detail = cut(&record.detail);
            let found = Found {
                rescheduled: record.rescheduled,
                scheduled: record.scheduled,
                lost: record.lost,
                rows_ahead: record.rows_ahead,
            };
            let episode =
                Episode::new(reason, record.extent, record.is_loss, record.since, detail, now, self.grace)
                    .resumed(found);
            let updated = status.outcomes[Outcome::Updated].load(Relaxed);
            let open = Open { episode, from: record.from, updated, stored: Some(text.clone()) };
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
            let (text, former, since) = {
                let board = self.board.lock();
                let Some(open) = board.get(&tenant) else { continue };
                (record(open), open.stored.clone(), open.episode.since)
            };
            let gone = former.is_some() && !lost && !stored.contains_key(tenant.label());
            if status.is_acknowledged() || gone {
                tracing::warn!(tenant_id = %tenant, by_operator = !gone, "what redis has lost of a tenant is closed");
                self.close(store, memory, &status, since).await?;
                continue;
            }
            if former.as_ref() != Some(&text) || !stored.contains_key(tenant.label()) {
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
        lock(&self.board.0.done).push((status.tenant().clone(), since));
        let open = self.board.lock().remove(status.tenant());
        // Until they are counted again: what is listed as lost must not look healthy meanwhile.
        status.losses.fetch_max(open.map_or(0, |open| open.episode.found().lost), Relaxed);
        self.show(status);
    }
}

fn record(open: &Open) -> String {
    let Open { episode, from, .. } = open;
    let Found { rescheduled, scheduled, lost, rows_ahead } = episode.found();
    let record = Record {
        reason: episode.reason.as_str().to_owned(),
        extent: episode.extent,
        since: episode.since,
        from: *from,
        is_loss: episode.is_loss,
        detail: cut(&episode.detail),
        phase: cut(episode.phase().describe()),
        rescheduled,
        scheduled,
        lost,
        rows_ahead,
    };
    serde_json::to_string(&record).unwrap_or_default()
}

pub(super) fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(DETAIL).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
