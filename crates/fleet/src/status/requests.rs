//! Which tenants operators paused, as this worker knows it, and requests to a collector beside its own rhythm.

use std::{
    collections::HashSet,
    sync::{
        OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use balance_sync_tenants::{KeyForm, Tenant};
use tokio::sync::Notify;

/// The paused tenants.
#[derive(Debug, Default)]
pub struct PausedTenants {
    key_form: OnceLock<KeyForm>,
    /// Their schedule keys.
    keys: RwLock<HashSet<String>>,
    /// They are not known yet: nothing may be claimed.
    unknown: AtomicBool,
}

impl PausedTenants {
    /// From now on nothing is claimed until it is known which tenants are paused.
    pub fn expect(&self, key_form: KeyForm) {
        let _ = self.key_form.set(key_form);
        self.unknown.store(true, Ordering::Release);
    }

    /// Takes over which tenants are paused.
    pub fn replace(&self, keys: HashSet<String>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        self.unknown.store(false, Ordering::Release);
    }

    /// Goes on without knowing.
    pub fn give_up(&self) {
        self.unknown.store(false, Ordering::Release);
    }

    /// Whether it is not known yet which tenants are paused.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.unknown.load(Ordering::Acquire)
    }

    /// Whether a tenant is paused.
    #[must_use]
    pub fn contains(&self, tenant: &Tenant) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let form = self.key_form.get().copied().unwrap_or_default();
        !keys.is_empty() && keys.contains(tenant.key_space(form).schedule())
    }
}

/// Requests to a collector.
#[derive(Debug, Default)]
pub struct Requests {
    pending: AtomicU8,
    notify: Notify,
}

/// Write what is held and claim at once, whatever it waits for.
const FLUSH: u8 = 1;
/// Something has changed: read pause and role again.
const RECHECK: u8 = 2;
/// Look at schedules that are seldom looked at.
const SURVEY: u8 = 4;

/// Requests that were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Write what is held and claim at once.
    pub(crate) flush: bool,
    /// Look at schedules that are seldom looked at.
    pub(crate) survey: bool,
}

impl Requests {
    /// Has the collector write what it holds and claim at once, whatever it waits for.
    pub fn flush(&self) {
        self.request(FLUSH);
    }

    /// Has the collector read again whether it is paused, and its role.
    pub fn recheck(&self) {
        self.request(RECHECK);
    }

    /// Has the collector look at schedules that are seldom looked at.
    pub(crate) fn survey(&self) {
        self.request(SURVEY);
    }

    fn request(&self, request: u8) {
        self.pending.fetch_or(request, Ordering::AcqRel);
        self.notify.notify_one();
    }

    /// Whether a request has not been taken yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire) != 0
    }

    /// Takes all requests; returns whether a flush is among them.
    pub fn take_flush(&self) -> bool {
        self.take().flush
    }

    /// Takes all requests.
    pub(crate) fn take(&self) -> Taken {
        // Read first: there is nearly never one, and each collector checks at each step.
        let taken = if self.is_pending() { self.pending.swap(0, Ordering::AcqRel) } else { 0 };
        Taken { flush: taken & FLUSH != 0, survey: taken & SURVEY != 0 }
    }

    /// Waits for a request.
    pub async fn notified(&self) {
        self.notify.notified().await;
    }
}
