//! Members whose row is newer than what was claimed, or has other amounts at the same version. Either another worker has
//! written a later mutation meanwhile, or Redis and Postgres have different histories: the balance has forked. What Redis
//! holds now tells which.

use std::{cmp::Ordering, time::Duration};

use balance_sync_domain::{Amount, BalanceRef, BalanceValue};
use balance_sync_schedule::{Claimed, Loss};
use balance_sync_store::{Row, StoredRow};
use balance_sync_trace as trace;

use super::{
    failure::{SinkError, is_only_a_wait, reaction},
    flush::{FlushEnd, release},
    gone,
    ports::{Queue, Sink},
};
use crate::status::{Outcome, TenantStatus};

/// The least that is left of a flush's deadline for looking at them.
const LEAST: Duration = Duration::from_secs(1);

/// A claimed member whose row differs.
pub(crate) struct Differing<'a> {
    /// As it was claimed.
    pub(crate) member: &'a Claimed,
    /// What it names.
    pub(crate) balance: &'a BalanceRef<'a>,
    /// The value it was claimed with.
    pub(crate) value: &'a BalanceValue,
}

/// Finds out which of these balances have forked, and records them: they leave the schedule for the list that only an operator
/// clears. Returns the others, which are settled as stale. When Redis or Postgres can't be asked all are given back.
pub(crate) async fn decide<'a, Q: Queue, S: Sink>(
    queue: &Q,
    sink: &S,
    differing: &[Differing<'a>],
    limit: Duration,
    end: &mut FlushEnd,
    status: &TenantStatus,
) -> Vec<&'a Claimed> {
    if differing.is_empty() {
        return Vec::new();
    }
    let held: Vec<&Claimed> = differing.iter().map(|one| one.member).collect();
    // The rows first: what is written between the two looks makes Redis newer, never the row.
    let rows = match rows(sink, differing, limit.max(LEAST)).await {
        Ok(rows) => rows,
        Err(failure) => {
            if !is_only_a_wait(&failure) {
                end.failure = Some(failure);
            }
            give_back(queue, &held, end, status).await;
            return Vec::new();
        }
    };
    let current = match queue.current_values(&held).await {
        Ok(current) => current,
        Err(error) => {
            tracing::warn!(members = held.len(), %error, "rows differ, and redis can't be asked whether they have forked");
            end.note(error);
            give_back(queue, &held, end, status).await;
            return Vec::new();
        }
    };
    let (mut stale, mut forked) = (Vec::new(), Vec::new());
    for ((one, row), values) in differing.iter().zip(rows).zip(current) {
        match row.and_then(|row| fork(one, &row, &values)) {
            Some(fork) => forked.push((one.member, fork)),
            None => stale.push(one.member),
        }
    }
    end.outcomes[Outcome::Forked] += forked.len() as u64;
    gone::record(queue, &forked, end, status).await;
    stale
}

async fn give_back<Q: Queue>(queue: &Q, held: &[&Claimed], end: &mut FlushEnd, status: &TenantStatus) {
    match release(queue, held, status).await {
        Some(released) => end.outcomes[Outcome::Released] += released,
        None => end.orphaned += held.len(),
    }
}

async fn rows<S: Sink>(
    sink: &S,
    differing: &[Differing<'_>],
    limit: Duration,
) -> Result<Vec<Option<StoredRow>>, SinkError> {
    let asked: Vec<Row<'_>> = differing
        .iter()
        .map(|one| Row {
            id: one.value.id,
            organization: one.balance.organization,
            ledger: one.balance.ledger,
            available: one.value.available.as_str(),
            on_hold: one.value.on_hold.as_str(),
            overdraft_used: one.value.overdraft_used.as_str(),
            version: one.value.version,
        })
        .collect();
    let span = trace::current().store_call("compare rows", "postgresql");
    span.count("rows", asked.len());
    let rows = match tokio::time::timeout(limit, span.around(sink.rows(&asked))).await {
        Ok(rows) => rows,
        Err(_) => Err(SinkError::Deadline(limit)),
    };
    if let Err(error) = &rows {
        span.fail(reaction(error).reason.as_str(), || error.to_string());
    }
    rows
}

/// The fork of this balance, if it is one: what Redis holds now is behind the row, or has other amounts at its version.
fn fork(one: &Differing<'_>, row: &StoredRow, values: &[Vec<u8>]) -> Option<Loss> {
    if row.deleted {
        return None;
    }
    let read = |value: &Vec<u8>| BalanceValue::of_member(&one.member.member, value).ok();
    let newest = values
        .iter()
        .filter_map(read)
        .filter(|value| value.id == one.value.id)
        .max_by_key(|value| value.version);
    let (redis, same_amounts) = match &newest {
        Some(value) if same_value(value, one.value) => (value, row.same_amounts),
        Some(value) => (value, row_has(row, value)),
        // What was claimed is gone, or was a copy kept for a retry. Then a newer row is what one would expect.
        None => (one.value, row.same_amounts),
    };
    let words = match redis.version.cmp(&row.version) {
        Ordering::Greater => return None,
        Ordering::Equal if same_amounts => return None,
        Ordering::Equal => "other amounts at the same version",
        Ordering::Less if newest.is_none() => return None,
        Ordering::Less => "a later version",
    };
    Some(Loss {
        confirmed: true,
        forked: true,
        detail: format!(
            "the row has {words}: version {} in Postgres, version {} in Redis; one of them lost mutations that the other was computed from",
            row.version, redis.version
        ),
        version: Some(redis.version),
        available: Some(redis.available.as_str().to_owned()),
        on_hold: Some(redis.on_hold.as_str().to_owned()),
        overdraft_used: Some(redis.overdraft_used.as_str().to_owned()),
        row_version: Some(row.version),
        row_available: row.readable.then(|| row.available.clone()),
        row_on_hold: row.readable.then(|| row.on_hold.clone()),
        row_overdraft_used: row.readable.then(|| row.overdraft_used.clone()),
        ..Loss::default()
    })
}

fn same_value(a: &BalanceValue, b: &BalanceValue) -> bool {
    (a.version, &a.available, &a.on_hold, &a.overdraft_used)
        == (b.version, &b.available, &b.on_hold, &b.overdraft_used)
}

/// Whether the row has the amounts of this value. Amounts that may not be read count as equal.
fn row_has(row: &StoredRow, value: &BalanceValue) -> bool {
    let same =
        |amount: &Amount, stored: &str| Amount::parse(stored).is_ok_and(|stored| stored.same_value(amount));
    !row.readable
        || same(&value.available, &row.available)
            && same(&value.on_hold, &row.on_hold)
            && same(&value.overdraft_used, &row.overdraft_used)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balance_sync_domain::KeySpace;

    use super::*;

    const MEMBER: &str = "balance:{transactions}:11111111-1111-4111-8111-111111111111:\
                          22222222-2222-4222-8222-222222222222:@a#default";

    fn value(version: i64, available: &str) -> Vec<u8> {
        format!(
            r#"{{"ID":"33333333-3333-4333-8333-333333333333","Available":"{available}","OnHold":"0","Version":{version},"AssetCode":"BRL"}}"#
        )
        .into_bytes()
    }

    fn row(version: i64, available: &str, same_amounts: bool) -> StoredRow {
        StoredRow {
            version,
            available: available.to_owned(),
            on_hold: "0".to_owned(),
            overdraft_used: "0.00".to_owned(),
            same_amounts,
            deleted: false,
            readable: true,
        }
    }

    /// Claimed with version 5 and 10.
    fn judged(row: &StoredRow, now: &[Vec<u8>]) -> Option<Loss> {
        let claimed = Claimed {
            member: MEMBER.as_bytes().to_vec(),
            lease: "1".into(),
            leased: 1,
            schedule: 0,
            former: "1".to_owned(),
            value: Some(value(5, "10")),
            unreadable: None,
        };
        let balance = BalanceRef::parse(&KeySpace::single(), MEMBER.as_bytes()).unwrap();
        let value = BalanceValue::of_member(MEMBER.as_bytes(), &value(5, "10")).unwrap();
        fork(&Differing { member: &claimed, balance: &balance, value: &value }, row, now)
    }

    #[test]
    fn what_is_a_fork_and_what_is_a_late_write() {
        let forked = |row: StoredRow, now: &[Vec<u8>]| judged(&row, now).is_some();
        let unchanged = [value(5, "10")];
        assert!(forked(row(6, "11", false), &unchanged), "the row is ahead");
        assert!(forked(row(5, "11", false), &unchanged), "other amounts at the same version");
        assert!(!forked(row(5, "10.0", true), &unchanged));
        assert!(
            !forked(row(4, "9", false), &unchanged),
            "not written yet, which is for the next claim to do"
        );
        // Written meanwhile by another worker.
        assert!(!forked(row(6, "11", false), &[value(6, "11.00")]));
        assert!(forked(row(6, "11", false), &[value(6, "12")]));
        assert!(!forked(row(6, "11", false), &[value(7, "12")]));
        assert!(
            !forked(row(6, "11", false), &[value(5, "10"), value(6, "11")]),
            "under the other form of the id"
        );
        // What can't be read or is of another balance tells nothing.
        assert!(!forked(row(6, "11", false), &[]));
        assert!(!forked(row(6, "11", false), &[b"{}".to_vec()]));
        assert!(forked(row(5, "11", false), &[]), "whatever became of the value since");
        let deleted = StoredRow { deleted: true, ..row(6, "11", false) };
        assert!(!forked(deleted, &unchanged));
        // Versions alone, where the role may not read amounts.
        let hidden = |version| StoredRow { readable: false, ..row(version, "", true) };
        assert!(
            forked(hidden(6), &unchanged)
                && !forked(hidden(5), &unchanged)
                && !forked(hidden(6), &[value(6, "1")])
        );
    }

    #[test]
    fn both_sides_are_kept() {
        let loss = judged(&row(6, "11", false), &[value(5, "10")]).unwrap();
        assert_eq!((loss.version, loss.available.as_deref()), (Some(5), Some("10")));
        assert_eq!((loss.row_version, loss.row_available.as_deref()), (Some(6), Some("11")));
        assert!(loss.forked && loss.confirmed && !loss.detail.contains("11"), "{loss:?}");
        let hidden = StoredRow { readable: false, ..row(6, "", true) };
        assert_eq!(judged(&hidden, &[value(5, "10")]).unwrap().row_available, None);
    }
}
