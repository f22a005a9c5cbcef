//! What is counted for the tenant, and for each of its ledgers as the ledger's own worker counts it: that one splits a batch by
//! organization and ledger, and counts a failure once for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering::Relaxed,
};

use balance_sync_schedule::Claimed;
use balance_sync_store::{Outcome, RowResult};

use super::ports::Queue;
use crate::{
    clock::wall_clock_ms,
    status::{LedgerKey, TenantStatus},
};

/// Counts the rows of a flush that were written, and the success, for each ledger.
pub(crate) fn written<'a>(
    results: impl IntoIterator<Item = (LedgerKey, &'a RowResult)>,
    status: &TenantStatus,
) {
    let mut of_ledgers: BTreeMap<LedgerKey, u64> = BTreeMap::new();
    for (key, result) in results {
        if let RowResult::Ok(outcome @ (Outcome::Updated | Outcome::Stale | Outcome::Deleted)) = result {
            *of_ledgers.entry(key).or_default() += u64::from(*outcome == Outcome::Updated);
        }
    }
    let now = wall_clock_ms();
    for (key, updated) in of_ledgers {
        status.ledgers.count(key, |totals| {
            totals.synced += updated;
            totals.last_success_ms = now;
        });
    }
}

/// Counts a flush that failed.
pub(crate) fn batch_failed<'a, Q: Queue>(
    queue: &Q,
    members: impl IntoIterator<Item = &'a Claimed>,
    status: &TenantStatus,
) {
    status.batch_failures.fetch_add(1, Relaxed);
    status.ledgers.count_each(&ledgers(queue, members), |totals| totals.batch_failures += 1);
}

/// Counts a call of Redis that failed after a flush.
pub(crate) fn cleanup_failed<'a, Q: Queue>(
    queue: &Q,
    members: impl IntoIterator<Item = &'a Claimed>,
    status: &TenantStatus,
) {
    status.cleanup_failures.fetch_add(1, Relaxed);
    status.ledgers.count_each(&ledgers(queue, members), |totals| totals.cleanup_failures += 1);
}

/// Counts members that left the schedule without a write because their values were gone.
pub(crate) fn expired<'a, Q: Queue>(
    queue: &Q,
    members: impl IntoIterator<Item = &'a Claimed>,
    status: &TenantStatus,
) {
    for member in members {
        let key = LedgerKey::of_member(queue.space_of(member), &member.member);
        status.ledgers.count(key, |totals| totals.expired += 1);
    }
}

/// Counts those of the members that left the schedule without a write because they name no balance.
pub(crate) fn unparseable<'a, Q: Queue>(
    queue: &Q,
    members: impl IntoIterator<Item = &'a Claimed>,
    status: &TenantStatus,
) {
    for member in members {
        if LedgerKey::of_member(queue.space_of(member), &member.member) == LedgerKey::Unknown {
            status.ledgers.count(LedgerKey::Unknown, |totals| totals.unparseable += 1);
        }
    }
}

fn ledgers<'a, Q: Queue>(queue: &Q, members: impl IntoIterator<Item = &'a Claimed>) -> BTreeSet<LedgerKey> {
    let key = |member: &Claimed| LedgerKey::of_member(queue.space_of(member), &member.member);
    members.into_iter().map(key).collect()
}
