//! The Redis keys of one tenant, or of a ledger without tenants.
//!
//! Every key the worker touches is built here and nowhere else: a key made of a [`KeySpace`] can't belong to
//! another tenant. `{transactions}` is literal, the hash tag that puts all keys into one Redis Cluster slot.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::tenant::TenantId;

/// What the keys of any tenant start with; the id and a `:` follow.
pub(crate) const TENANT_MARK: &str = "tenant:";

/// The schedule of ledgers before v3.6.2, whose name the later one continues.
const LEGACY_SCHEDULE: &str = "schedule:{transactions}:balance-sync";
const VERSION: &str = "-v2";
const LOCK: &str = "lock:{transactions}:balance-sync:";
const BALANCE: &str = "balance:{transactions}:";
/// Ours alone: the ledger knows no such key.
const QUARANTINE: &str = "quarantine:{transactions}:balance-sync";
const LOSSES: &str = "quarantine:{transactions}:balance-sync:losses";

/// The ledger's other queues. They are read and never written.
const BACKUP: &str = "backup_queue:{transactions}";
const BACKUP_ATTEMPTS: &str = "backup_queue:{transactions}:attempts";
const RECOVERY: &str = "engine:{transactions}:recover";
const RECOVERY_ATTEMPTS: &str = "engine:{transactions}:recover:attempts";
const RECOVERY_CLEANUP: &str = "engine:{transactions}:recovery-cleanup";

/// The keys of one tenant ([`KeySpace::tenant`]) or of a single-tenant ledger ([`KeySpace::single`]). Cheap to clone.
///
/// Of the keys only the schedule's is kept, which holds those that are needed often: there are two key spaces for each of
/// thousands of idle tenants.
#[derive(Clone)]
pub struct KeySpace(Arc<Keys>);

struct Keys {
    tenant: Option<TenantId>,
    schedule: Arc<str>,
    /// Bytes of the prefix, with which the schedule's key begins.
    prefix: usize,
}

impl KeySpace {
    /// The keys of `tenant`, all of them under `tenant:<id>:`.
    #[must_use]
    pub fn tenant(tenant: &TenantId) -> Self {
        Self::build(Some(tenant.clone()), &format!("{TENANT_MARK}{tenant}:"))
    }

    /// The keys of a ledger that knows no tenants: no prefix.
    #[must_use]
    pub fn single() -> Self {
        Self::build(None, "")
    }

    fn build(tenant: Option<TenantId>, prefix: &str) -> Self {
        let schedule = Arc::from(format!("{prefix}{LEGACY_SCHEDULE}{VERSION}"));
        Self(Arc::new(Keys { tenant, schedule, prefix: prefix.len() }))
    }

    /// Whose keys these are; `None` for a single-tenant ledger.
    #[must_use]
    pub fn tenant_id(&self) -> Option<&TenantId> {
        self.0.tenant.as_ref()
    }

    /// `tenant:<id>:`, or empty for a single-tenant ledger.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.0.schedule[..self.0.prefix]
    }

    /// The sorted set of balances that wait to be synced.
    #[must_use]
    pub fn schedule(&self) -> &str {
        &self.0.schedule
    }

    /// The same, shared.
    #[must_use]
    pub fn shared_schedule(&self) -> Arc<str> {
        Arc::clone(&self.0.schedule)
    }

    /// The schedule that ledgers before v3.6.2 wrote.
    #[must_use]
    pub fn legacy_schedule(&self) -> &str {
        self.0.schedule.strip_suffix(VERSION).unwrap_or_default()
    }

    /// The hash of members that can't be synced, with their reasons.
    #[must_use]
    pub fn quarantine(&self) -> String {
        self.key(QUARANTINE)
    }

    /// The hash of members whose last mutations are lost.
    #[must_use]
    pub fn losses(&self) -> String {
        self.key(LOSSES)
    }

    /// The hash of transactions that the ledger has not written to Postgres yet.
    #[must_use]
    pub fn backup_queue(&self) -> String {
        self.key(BACKUP)
    }

    /// The hash that counts the ledger's attempts at them.
    #[must_use]
    pub fn backup_attempts(&self) -> String {
        self.key(BACKUP_ATTEMPTS)
    }

    /// The hash of transactions that the ledger's engine has to recover.
    #[must_use]
    pub fn recovery(&self) -> String {
        self.key(RECOVERY)
    }

    /// The hash that counts the engine's attempts at them.
    #[must_use]
    pub fn recovery_attempts(&self) -> String {
        self.key(RECOVERY_ATTEMPTS)
    }

    /// The sorted set of recovered transactions to be cleaned up; the score is when, in milliseconds.
    #[must_use]
    pub fn recovery_cleanup(&self) -> String {
        self.key(RECOVERY_CLEANUP)
    }

    /// What the claim locks of this space start with; the whole member follows.
    #[must_use]
    pub fn lock_prefix(&self) -> String {
        self.key(LOCK)
    }

    /// What the balance keys of this space start with; organization, ledger and alias follow.
    #[must_use]
    pub fn balance_prefix(&self) -> String {
        self.key(BALANCE)
    }

    /// The claim lock that the ledger's own worker uses for `member`: the lock prefix and the *whole* member,
    /// whose own tenant prefix therefore stands in it too. Bytes, because members need not be UTF-8.
    #[must_use]
    pub fn lock(&self, member: &[u8]) -> Vec<u8> {
        [self.lock_prefix().as_bytes(), member].concat()
    }

    /// The Redis key of a balance, which is also its member in the schedule.
    #[must_use]
    pub fn balance(&self, organization: Uuid, ledger: Uuid, alias: &str, key: &str) -> String {
        format!("{}{BALANCE}{organization}:{ledger}:{alias}#{key}", self.prefix())
    }

    fn key(&self, name: &str) -> String {
        [self.prefix(), name].concat()
    }
}

impl PartialEq for KeySpace {
    fn eq(&self, other: &Self) -> bool {
        // The prefix names the tenant, and all else is made of it.
        self.prefix() == other.prefix()
    }
}

impl Eq for KeySpace {}

impl fmt::Debug for KeySpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySpace").field("prefix", &self.prefix()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_keys_of_a_tenant() {
        let id = TenantId::parse("acme-prod_01").unwrap();
        let keys = KeySpace::tenant(&id);
        assert_eq!(keys.tenant_id(), Some(&id));
        assert_eq!(keys.prefix(), "tenant:acme-prod_01:");
        assert_eq!(keys.schedule(), "tenant:acme-prod_01:schedule:{transactions}:balance-sync-v2");
        assert_eq!(keys.legacy_schedule(), "tenant:acme-prod_01:schedule:{transactions}:balance-sync");
        assert_eq!(keys.quarantine(), "tenant:acme-prod_01:quarantine:{transactions}:balance-sync");
        assert_eq!(keys.lock_prefix(), "tenant:acme-prod_01:lock:{transactions}:balance-sync:");
        assert_eq!(keys.balance_prefix(), "tenant:acme-prod_01:balance:{transactions}:");
        assert_eq!(
            keys.lock(b"tenant:acme-prod_01:balance:\xff"),
            b"tenant:acme-prod_01:lock:{transactions}:balance-sync:tenant:acme-prod_01:balance:\xff"
        );
        assert_eq!(
            keys.balance(Uuid::nil(), Uuid::max(), "@a", "default"),
            "tenant:acme-prod_01:balance:{transactions}:00000000-0000-0000-0000-000000000000:\
             ffffffff-ffff-ffff-ffff-ffffffffffff:@a#default"
        );
    }

    #[test]
    fn the_keys_of_a_single_tenant_ledger_have_no_prefix() {
        let keys = KeySpace::single();
        assert_eq!(keys.tenant_id(), None);
        assert_eq!(keys.prefix(), "");
        assert_eq!(keys.schedule(), "schedule:{transactions}:balance-sync-v2");
        assert_eq!(keys.legacy_schedule(), "schedule:{transactions}:balance-sync");
        assert_eq!(keys.quarantine(), "quarantine:{transactions}:balance-sync");
        assert_eq!(keys.losses(), "quarantine:{transactions}:balance-sync:losses");
        assert_eq!(keys.lock(b"m"), b"lock:{transactions}:balance-sync:m");
        assert_eq!(keys.balance_prefix(), "balance:{transactions}:");
    }

    #[test]
    fn the_ledgers_queues_of_a_tenant() {
        let queues = |keys: &KeySpace| {
            [
                keys.backup_queue(),
                keys.backup_attempts(),
                keys.recovery(),
                keys.recovery_attempts(),
                keys.recovery_cleanup(),
            ]
        };
        let single = [
            "backup_queue:{transactions}",
            "backup_queue:{transactions}:attempts",
            "engine:{transactions}:recover",
            "engine:{transactions}:recover:attempts",
            "engine:{transactions}:recovery-cleanup",
        ];
        assert_eq!(queues(&KeySpace::single()), single);
        let acme = KeySpace::tenant(&TenantId::parse("acme").unwrap());
        assert_eq!(queues(&acme), single.map(|key| format!("tenant:acme:{key}")));
    }

    #[test]
    fn spaces_are_equal_when_they_are_of_the_same_tenant() {
        let space = |id| KeySpace::tenant(&TenantId::parse(id).unwrap());
        assert_eq!(space("a"), space("a"));
        assert_ne!(space("a"), space("b"));
        assert_ne!(space("a"), KeySpace::single());
    }
}
