//! Which tenants operators halted, as this worker knows it, and what a collector is told to do out of turn.

use std::{
    collections::HashSet,
    sync::{
        OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use balance_sync_tenants::{KeyForm, Tenant};
use tokio::sync::Notify;

/// The halted tenants.
#[derive(Debug, Default)]
pub struct Halts {
    key_form: OnceLock<KeyForm>,
    /// Their schedule keys.
    keys: RwLock<HashSet<String>>,
    /// They are not known yet: nothing may be claimed.
    awaited: AtomicBool,
}

impl Halts {
    /// From now on nothing is claimed until it is known who is halted.
    pub fn expect(&self, key_form: KeyForm) {
        let _ = self.key_form.set(key_form);
        self.awaited.store(true, Ordering::Release);
    }

    /// Takes over who is halted.
    pub fn know(&self, keys: HashSet<String>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        self.awaited.store(false, Ordering::Release);
    }

    /// Goes on without knowing.
    pub fn give_up(&self) {
        self.awaited.store(false, Ordering::Release);
    }

    /// Whether it is not known yet who is halted.
    #[must_use]
    pub fn awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire)
    }

    /// Whether a tenant is halted.
    #[must_use]
    pub fn contains(&self, tenant: &Tenant) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let form = self.key_form.get().copied().unwrap_or_default();
        !keys.is_empty() && keys.contains(tenant.key_space(form).schedule())
    }
}

/// What a collector is told out of turn.
#[derive(Debug, Default)]
pub struct Orders {
    given: AtomicU8,
    call: Notify,
}

/// Write what is held and claim at once, whatever it waits for.
const FLUSH: u8 = 1;
/// Something is otherwise than it was: look again.
const LOOK: u8 = 2;

impl Orders {
    /// Tells the collector to write what it holds and to claim at once, whatever it waits for.
    pub fn flush(&self) {
        self.give(FLUSH);
    }

    /// Tells the collector to look whether it is halted.
    pub fn look(&self) {
        self.give(LOOK);
    }

    fn give(&self, order: u8) {
        self.given.fetch_or(order, Ordering::AcqRel);
        self.call.notify_one();
    }

    /// Whether an order waits to be carried out.
    #[must_use]
    pub fn waiting(&self) -> bool {
        self.given.load(Ordering::Acquire) != 0
    }

    /// Takes all orders; gives whether a flush is among them.
    pub fn take(&self) -> bool {
        // Read first: there is nearly never one, and this is asked at each step of each collector.
        self.waiting() && self.given.swap(0, Ordering::AcqRel) & FLUSH != 0
    }

    /// Waits for an order.
    pub async fn called(&self) {
        self.call.notified().await;
    }
}
