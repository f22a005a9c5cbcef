//! Which tenants this fleet serves, as this worker knows it.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use balance_sync_engine::rollout::Selection;
use balance_sync_schedule::rollout::StoredRollout;
use balance_sync_tenants::Tenant;

/// A rollout in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Which tenants.
    pub selection: Selection,
    /// What is stored in Redis; `None` = nothing.
    pub stored: Option<StoredRollout>,
}

impl Rollout {
    /// What follows from what is stored.
    ///
    /// # Errors
    /// Why it can't be followed.
    pub fn in_force(stored: Option<StoredRollout>, configured: &Selection) -> Result<Self, String> {
        let Some(stored) = stored else { return Ok(Self { selection: configured.clone(), stored: None }) };
        match &stored.selection {
            Ok(selection) => {
                let selection = selection.clone().unwrap_or_else(|| configured.clone());
                Ok(Self { selection, stored: Some(stored) })
            }
            Err(why) => Err(format!("what revision {:?} selects can't be read: {why}", stored.revision)),
        }
    }

    /// The revision that is stored; 0 = none.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.stored.as_ref().map_or(0, StoredRollout::number)
    }

    /// Whether the selection is that of the configuration.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.stored.as_ref().is_none_or(|stored| matches!(stored.selection, Ok(None)))
    }
}

/// What this worker follows.
#[derive(Debug, Default)]
pub struct RolloutStatus {
    /// Tenants are served as the rollout selects them; not by a worker that only looks.
    applies: AtomicBool,
    /// It is read from Redis, and has been.
    known: RwLock<Option<Arc<Rollout>>>,
    /// The revision by which collectors were started and stopped last, plus one; 0 = none yet.
    applied: AtomicU64,
    /// Why what is stored is not in force.
    problem: RwLock<Option<String>>,
}

impl RolloutStatus {
    /// From now on no tenant is served until it is known which are selected.
    pub fn expect(&self) {
        self.applies.store(true, Ordering::Release);
    }

    /// What is in force; `None` = not known yet.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Rollout>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what was read; returns whether another rollout is in force now.
    pub fn replace(&self, rollout: Rollout) -> bool {
        self.report(None);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() == Some(&rollout) {
            return false;
        }
        *known = Some(Arc::new(rollout));
        true
    }

    /// Notes why what is stored isn't in force; what was known stays so.
    pub fn report(&self, problem: Option<String>) {
        *self.problem.write().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Why what is stored isn't in force.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.problem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that collectors are started and stopped by this revision.
    pub fn apply(&self, revision: u64) {
        self.applied.store(revision.saturating_add(1), Ordering::Release);
    }

    /// The revision by which collectors were started and stopped last.
    #[must_use]
    pub fn applied(&self) -> Option<u64> {
        self.applied.load(Ordering::Acquire).checked_sub(1)
    }

    /// Whether it isn't known yet which tenants are served.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.applies.load(Ordering::Acquire) && self.current().is_none()
    }

    /// Whether a tenant may be served: it is selected, as far as that matters to this worker.
    #[must_use]
    pub fn serves(&self, tenant: &Tenant) -> bool {
        if !self.applies.load(Ordering::Acquire) {
            return true;
        }
        self.current().is_some_and(|rollout| rollout.selection.selects(tenant.label()))
    }
}
