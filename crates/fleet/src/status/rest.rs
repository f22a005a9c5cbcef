//! Which tenants nothing happens on: they are at rest, and tasks that go over all tenants again and again leave them out.
//!
//! A tenant comes to rest when its schedules have been empty and announced for [`CALM_FOR`], and nothing is to be shown of it but that
//! ([`TenantStatus::is_calm`]). It is roused by the first announcement, by each change of what is shown, and when Redis
//! announces nothing any more. That takes longer than any pass over the active tenants, so each pass has seen it in its last state.
//!
//! A pass over the active tenants alone must also go over all of them once in a while ([`SWEEP_EVERY`]): what changes without
//! rousing its tenant is shown that much later, and not never.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use balance_sync_engine::state::TenantState;
use balance_sync_tenants::Tenant;
use tokio::time::Instant;

use super::tenant::TenantStatus;

/// A tenant comes to rest after this long without a change. Longer than the time between two passes of a task that leaves tenants at
/// rest out.
pub const CALM_FOR: Duration = Duration::from_secs(20);
/// What is left out is looked at this often all the same.
pub const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// The tenants of a worker by whether they are at rest.
#[derive(Debug, Default)]
pub struct Rest {
    /// Locks of a tenant's status are taken under this one, never the other way round.
    active: Mutex<HashMap<Tenant, Active>>,
    /// Those at rest by their states, in the order of [`STATES`].
    resting: [AtomicU64; STATES.len()],
}

/// The states in which a tenant may be at rest.
const STATES: [TenantState; 2] = [TenantState::Idle, TenantState::Standby];

#[derive(Debug)]
struct Active {
    status: Arc<TenantStatus>,
    /// Since when nothing has changed, and is to be shown.
    calm_since: Option<Instant>,
}

impl Rest {
    /// Those that are not at rest, in no order.
    #[must_use]
    pub fn active(&self) -> Vec<Arc<TenantStatus>> {
        self.lock().values().map(|active| Arc::clone(&active.status)).collect()
    }

    /// How many are at rest, by their states.
    #[must_use]
    pub fn resting(&self) -> [(TenantState, u64); STATES.len()] {
        std::array::from_fn(|at| (STATES[at], self.resting[at].load(Relaxed)))
    }

    /// Puts those to rest that have been calm for long enough; to be called once a second.
    pub fn settle(&self) {
        let now = Instant::now();
        let mut tenants = self.lock();
        tenants.retain(|_, active| {
            let status = &active.status;
            let state = if status.is_calm() { status.collector_state().state } else { TenantState::Starting };
            let Some(at) = STATES.iter().position(|known| *known == state) else {
                active.calm_since = None;
                return true;
            };
            let since = *active.calm_since.get_or_insert(now);
            if now.duration_since(since) < CALM_FOR {
                return true;
            }
            // Under the lock, which rousing takes as well.
            status.rests(Some(at));
            self.resting[at].fetch_add(1, Relaxed);
            false
        });
        if tenants.len() * 4 < tenants.capacity() {
            tenants.shrink_to_fit();
        }
    }

    /// A tenant is there, or has changed.
    pub(super) fn rouse(&self, status: &Arc<TenantStatus>) {
        let mut tenants = self.lock();
        if let Some(at) = status.rests(None) {
            self.resting[at].fetch_sub(1, Relaxed);
        }
        if status.is_forgotten() {
            return;
        }
        match tenants.get_mut(status.tenant()) {
            Some(active) => active.calm_since = None,
            None => {
                let active = Active { status: Arc::clone(status), calm_since: None };
                tenants.insert(status.tenant().clone(), active);
            }
        }
    }

    /// A tenant is gone.
    pub(super) fn forget(&self, status: &Arc<TenantStatus>) {
        let mut tenants = self.lock();
        status.forgotten();
        if let Some(at) = status.rests(None) {
            self.resting[at].fetch_sub(1, Relaxed);
        }
        if tenants.get(status.tenant()).is_some_and(|active| Arc::ptr_eq(&active.status, status)) {
            tenants.remove(status.tenant());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Tenant, Active>> {
        // Each change of it is one call.
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use balance_sync_domain::TenantId;

    use super::*;
    use crate::status::{FleetStatus, Reason};

    fn tenant(n: usize) -> Tenant {
        TenantId::parse(&format!("t{n}")).map_or(Tenant::Single, Tenant::Id)
    }

    /// So many idle tenants, the first of them standing by.
    fn idle(count: usize) -> FleetStatus {
        let fleet = FleetStatus::default();
        for n in 0..count {
            let status = fleet.tenant(&tenant(n));
            status.enter(if n == 0 { TenantState::Standby } else { TenantState::Idle });
            status.quiet.of(1);
            status.quiet.begin(0);
            status.show_entries(Some((0, 0)));
            status.show_watched(true);
        }
        fleet
    }

    async fn calm(fleet: &FleetStatus) {
        for _ in 0..=CALM_FOR.as_secs() {
            fleet.rest.settle();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        fleet.rest.settle();
    }

    #[tokio::test(start_paused = true)]
    async fn idle_tenants_come_to_rest_and_each_change_rouses_its_tenant() {
        type Change = (&'static str, fn(&TenantStatus));
        let changes: [Change; 12] = [
            ("its schedule", |status| status.quiet_ends(0)),
            ("an announcement", TenantStatus::rouse),
            ("state", |status| assert!(status.enter(TenantState::Syncing))),
            ("degraded", |status| assert!(status.degrade(Reason::PostgresTimeout, String::new()))),
            ("notice", |status| {
                assert!(status.notice(Reason::RedisPermission, String::new(), Duration::from_secs(60)));
            }),
            ("error", |status| status.note_error(Reason::PostgresTimeout, "late")),
            ("queues", |status| status.show_queues(Some(Vec::new()))),
            ("entries", |status| status.show_entries(Some((1, 0)))),
            ("losses", |status| status.show_entries(Some((0, 1)))),
            ("not sampled", |status| status.show_entries(None)),
            ("not watched", |status| status.show_watched(false)),
            ("neighbour", |status| status.show_neighbour(true, false)),
        ];
        for (what, change) in changes {
            let fleet = idle(3);
            calm(&fleet).await;
            assert!(fleet.rest.active().is_empty(), "{what}");
            assert_eq!(fleet.rest.resting(), [(TenantState::Idle, 2), (TenantState::Standby, 1)]);
            let status = fleet.tenant(&tenant(2));
            change(&status);
            let active = fleet.rest.active();
            assert!(active.len() == 1 && Arc::ptr_eq(&active[0], &status), "{what}");
            assert_eq!(fleet.rest.resting()[0], (TenantState::Idle, 1), "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_of_which_something_is_shown_does_not_come_to_rest() {
        let fleet = idle(6);
        fleet.tenant(&tenant(1)).quiet_ends(0);
        fleet.tenant(&tenant(2)).show_entries(Some((3, 0)));
        fleet.tenant(&tenant(3)).show_entries(None);
        fleet.tenant(&tenant(4)).enter(TenantState::Paused);
        fleet.tenant(&tenant(5)).due.store(1, Relaxed);
        calm(&fleet).await;
        assert_eq!(fleet.rest.active().len(), 5);
        // Each change begins the time anew.
        let status = fleet.tenant(&tenant(5));
        status.due.store(0, Relaxed);
        fleet.rest.settle();
        tokio::time::advance(CALM_FOR / 2).await;
        status.rouse();
        fleet.rest.settle();
        tokio::time::advance(CALM_FOR / 2).await;
        fleet.rest.settle();
        assert_eq!(fleet.rest.active().len(), 5);
        tokio::time::advance(CALM_FOR / 2).await;
        fleet.rest.settle();
        assert_eq!(fleet.rest.active().len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_is_gone_is_neither_active_nor_at_rest() {
        let fleet = idle(3);
        calm(&fleet).await;
        let gone = fleet.tenant(&tenant(1));
        fleet.forget(&tenant(1));
        assert_eq!(fleet.rest.resting()[0].1, 1);
        gone.rouse();
        assert!(fleet.rest.active().is_empty(), "its collector may be ending still");
        let again = fleet.tenant(&tenant(1));
        assert!(fleet.rest.active().iter().any(|status| Arc::ptr_eq(status, &again)));
        fleet.forget(&tenant(1));
        assert!(fleet.rest.active().is_empty());
    }

    /// Noting a failure takes a lock that `settle` takes under its own.
    #[test]
    fn failures_that_are_noted_while_tenants_are_put_to_rest_hold_up_neither() {
        const ROUNDS: usize = 20_000;
        let fleet = Arc::new(idle(2));
        let (done, both) = std::sync::mpsc::channel();
        let (settling, ended) = (Arc::clone(&fleet), done.clone());
        std::thread::spawn(move || {
            (0..ROUNDS).for_each(|_| settling.rest.settle());
            let _ = ended.send(());
        });
        std::thread::spawn(move || {
            let status = fleet.tenant(&tenant(1));
            for round in 0..ROUNDS {
                status.notice(Reason::PostgresTimeout, round.to_string(), Duration::ZERO);
                status.degrade(Reason::PostgresTimeout, round.to_string());
                status.enter(TenantState::Idle);
            }
            let _ = done.send(());
        });
        // For ever, if they wait for each other.
        for _ in 0..2 {
            both.recv_timeout(Duration::from_secs(60)).expect("neither waits for the other");
        }
    }
}
