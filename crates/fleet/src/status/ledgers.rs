//! What a tenant's collector counts for each ledger: the source of the series that have the ledger's own names and labels
//! (protocol §5).
//!
//! Organizations and ledgers come from members in Redis, which anyone may have written. So only the first [`MOST_LEDGERS`] that
//! were seen have counts of their own; all others share one sum. A ledger never moves from one to the other, so that no counter
//! falls while the tenant is served.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use balance_sync_domain::{BalanceRef, KeySpace};
use uuid::Uuid;

/// Ledgers of a tenant that have counts of their own.
pub const MOST_LEDGERS: usize = 64;

/// Whose balances were worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LedgerKey {
    /// A ledger of an organization.
    Known {
        /// The organization.
        organization: Uuid,
        /// Its ledger.
        ledger: Uuid,
    },
    /// The member names none.
    Unknown,
}

impl LedgerKey {
    /// The ledger of a balance.
    #[must_use]
    pub fn of(balance: &BalanceRef<'_>) -> Self {
        Self::Known { organization: balance.organization, ledger: balance.ledger }
    }

    /// The ledger that a member names.
    #[must_use]
    pub fn of_member(space: &KeySpace, member: &[u8]) -> Self {
        BalanceRef::parse(space, member).map_or(Self::Unknown, |balance| Self::of(&balance))
    }
}

/// What was counted for a ledger, or for several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerTotals {
    /// Rows written.
    pub synced: u64,
    /// Failed flushes with balances of it.
    pub batch_failures: u64,
    /// Failed calls of Redis, after a flush, with balances of it.
    pub cleanup_failures: u64,
    /// Members removed from the schedule without a write, because their values were gone.
    pub expired: u64,
    /// Members removed from the schedule without a write, because they name no balance.
    pub unparseable: u64,
    /// When balances of it were last written, in milliseconds since 1970; 0 = never.
    pub last_success_ms: u64,
}

impl LedgerTotals {
    /// Adds what another one has counted; of the last success the later counts.
    pub fn add(&mut self, other: &Self) {
        self.add_growth(other, &Self::default());
    }

    /// Adds by how much another one has grown.
    pub fn add_growth(&mut self, now: &Self, before: &Self) {
        let Self { synced, batch_failures, cleanup_failures, expired, unparseable, last_success_ms } = self;
        *synced += now.synced.saturating_sub(before.synced);
        *batch_failures += now.batch_failures.saturating_sub(before.batch_failures);
        *cleanup_failures += now.cleanup_failures.saturating_sub(before.cleanup_failures);
        *expired += now.expired.saturating_sub(before.expired);
        *unparseable += now.unparseable.saturating_sub(before.unparseable);
        *last_success_ms = now.last_success_ms.max(*last_success_ms);
    }
}

/// The ledgers of a tenant.
#[derive(Debug, Default)]
pub struct Ledgers(Mutex<Option<Box<Counted>>>);

#[derive(Debug, Default)]
struct Counted {
    /// In the order in which they were seen.
    own: Vec<(LedgerKey, LedgerTotals)>,
    /// All that came when `own` was full.
    rest: Option<LedgerTotals>,
}

/// The ledgers of a tenant at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerCounts {
    /// Those with counts of their own, in the order in which they were seen.
    pub own: Vec<(LedgerKey, LedgerTotals)>,
    /// All others together, if there are any.
    pub rest: Option<LedgerTotals>,
}

impl Ledgers {
    /// Counts something for a ledger.
    pub fn count(&self, key: LedgerKey, add: impl FnOnce(&mut LedgerTotals)) {
        self.lock().get_or_insert_default().count(key, add);
    }

    /// Counts the same once for each of these.
    pub fn count_each(&self, keys: &BTreeSet<LedgerKey>, add: impl Fn(&mut LedgerTotals)) {
        if keys.is_empty() {
            return;
        }
        let mut counted = self.lock();
        let counted = counted.get_or_insert_default();
        for key in keys {
            counted.count(*key, &add);
        }
    }

    /// What was counted; of more than `limit` ledgers the later ones are in the rest.
    #[must_use]
    pub fn read(&self, limit: usize) -> LedgerCounts {
        let counted = self.lock();
        let Some(counted) = counted.as_deref() else { return LedgerCounts::default() };
        let (own, more) = counted.own.split_at(limit.min(counted.own.len()));
        let mut rest = counted.rest;
        for (_, totals) in more {
            rest.get_or_insert_default().add(totals);
        }
        LedgerCounts { own: own.to_vec(), rest }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Counted>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LedgerCounts {
    /// All together.
    #[must_use]
    pub fn sum(&self) -> LedgerTotals {
        let mut sum = self.rest.unwrap_or_default();
        for (_, totals) in &self.own {
            sum.add(totals);
        }
        sum
    }
}

impl Counted {
    fn count(&mut self, key: LedgerKey, add: impl FnOnce(&mut LedgerTotals)) {
        if let Some((_, totals)) = self.own.iter_mut().find(|(known, _)| *known == key) {
            add(totals);
        } else if self.own.len() < MOST_LEDGERS {
            let mut totals = LedgerTotals::default();
            add(&mut totals);
            self.own.push((key, totals));
        } else {
            add(self.rest.get_or_insert_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> LedgerKey {
        LedgerKey::Known { organization: Uuid::from_u128(1), ledger: Uuid::from_u128(number as u128) }
    }

    #[test]
    fn a_limited_number_of_ledgers_has_counts_of_its_own_and_nothing_is_lost() {
        let ledgers = Ledgers::default();
        assert_eq!(ledgers.read(10), LedgerCounts::default());
        for _ in 0..2 {
            for number in 0..1_000 {
                ledgers.count(key(number), |totals| totals.synced += 1);
            }
        }
        let all = ledgers.read(usize::MAX);
        assert_eq!((all.own.len(), all.own[3]), (MOST_LEDGERS, (key(3), totals(2))));
        assert_eq!(all.rest, Some(totals(2 * (1_000 - MOST_LEDGERS as u64))));
        let few = ledgers.read(2);
        assert_eq!(few.own, [(key(0), totals(2)), (key(1), totals(2))]);
        assert_eq!((few.rest, few.sum(), all.sum()), (Some(totals(1_996)), totals(2_000), totals(2_000)));
    }

    #[test]
    fn a_ledger_that_is_summed_stays_so_and_the_latest_success_counts() {
        let ledgers = Ledgers::default();
        for number in 0..=MOST_LEDGERS {
            ledgers.count(key(number), |totals| totals.last_success_ms = number as u64);
        }
        let keys = BTreeSet::from([key(0), key(MOST_LEDGERS)]);
        ledgers.count_each(&keys, |totals| totals.batch_failures += 1);
        let counts = ledgers.read(MOST_LEDGERS);
        assert_eq!(counts.own[0].1.batch_failures, 1);
        assert_eq!(counts.rest.map(|rest| rest.batch_failures), Some(1));
        assert_eq!(counts.sum().last_success_ms, MOST_LEDGERS as u64);
    }

    fn totals(synced: u64) -> LedgerTotals {
        LedgerTotals { synced, ..LedgerTotals::default() }
    }
}
