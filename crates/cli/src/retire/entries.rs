//! Entries of quarantine and losses, judged: what Redis and the row hold, and what becomes of them.

use anyhow::Context as _;
use balance_sync_domain::{BalanceRef, BalanceValue, KeySpace};
use balance_sync_schedule::{
    Link, Schedules, read_values,
    retire::{RawEntry, entries},
};
use balance_sync_store::Row;
use balance_sync_tenants::Tenant;

use super::fate::{Fate, Seen, SeenRow, fate};
use crate::commands::verify::{Verifier, row_of};

/// Entries judged at once.
const PAGE: usize = 100;
/// Larger values are not read: no ledger writes them.
const LONGEST_VALUE: u64 = 1024 * 1024;
/// How long connections may take to end.
const CLOSE: std::time::Duration = std::time::Duration::from_secs(1);

/// An entry and what becomes of it.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) entry: RawEntry,
    pub(super) fate: Fate,
    /// What Redis holds, unless that is too large.
    pub(super) value: Option<Vec<u8>>,
    /// Its size; `None` = there is none.
    pub(super) bytes: Option<u64>,
}

/// The entries of a tenant by key space.
pub(super) type OfTenant = Vec<(KeySpace, Vec<Judged>)>;

/// All entries of a tenant. Its Postgres is asked only if there are any.
///
/// # Errors
/// When Redis or the tenant's Postgres can't be asked.
pub(super) async fn judge_all(
    verifier: &Verifier,
    link: &Link,
    schedules: &Schedules,
    tenant: &Tenant,
) -> anyhow::Result<OfTenant> {
    let mut all = Vec::new();
    for schedule in schedules.iter() {
        let raw = entries(schedule).await?;
        if !raw.is_empty() {
            all.push((schedule.space().clone(), raw));
        }
    }
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let side = verifier.open(tenant).await.context("its entries can't be judged")?;
    let mut judged: OfTenant = Vec::new();
    let asked = async {
        for (space, raw) in all {
            let mut of_space = Vec::with_capacity(raw.len());
            let mut rest = raw;
            while !rest.is_empty() {
                let page = rest.split_off(rest.len().saturating_sub(PAGE));
                let mut looks = Vec::with_capacity(page.len());
                for entry in page {
                    looks.push(look(link, entry).await?);
                }
                let parsed: Vec<Option<(BalanceRef<'_>, &BalanceValue)>> = looks
                    .iter()
                    .map(|look| {
                        Some((BalanceRef::parse(&space, &look.entry.member).ok()?, look.read.as_ref()?))
                    })
                    .collect();
                let rows: Vec<Row<'_>> =
                    parsed.iter().flatten().map(|(balance, value)| row_of(balance, value)).collect();
                let mut stored = side.database.fetch(&side.table, &rows).await?.into_iter();
                let fates: Vec<Fate> = looks
                    .iter()
                    .zip(&parsed)
                    .map(|(look, parsed)| {
                        let row = parsed.as_ref().and_then(|_| stored.next().flatten());
                        fate(&look.seen(
                            BalanceRef::parse(&space, &look.entry.member).is_ok(),
                            row.map(|row| SeenRow {
                                version: row.version,
                                deleted: row.deleted,
                                same_amounts: row.same_amounts,
                            }),
                        ))
                    })
                    .collect();
                drop(parsed);
                of_space.extend(looks.into_iter().zip(fates).map(|(look, fate)| Judged {
                    entry: look.entry,
                    fate,
                    value: look.value,
                    bytes: look.bytes,
                }));
            }
            judged.push((space, of_space));
        }
        anyhow::Ok(())
    };
    let asked = asked.await;
    side.database.close(CLOSE).await;
    asked.context("its entries can't be judged")?;
    Ok(judged)
}

/// An entry and its value.
struct Look {
    entry: RawEntry,
    value: Option<Vec<u8>>,
    bytes: Option<u64>,
    read: Option<BalanceValue>,
}

impl Look {
    fn seen(&self, is_balance: bool, row: Option<SeenRow>) -> Seen {
        let entry = self.entry.read();
        let quarantined = entry.as_ref().filter(|_| self.entry.quarantined.is_some());
        let copy = quarantined.filter(|entry| !entry.truncated).and_then(|entry| entry.value.as_ref());
        let copy =
            copy.and_then(|copy| BalanceValue::decode(copy.as_bytes()).ok()).map(|value| value.version);
        let reason = quarantined.and_then(|entry| entry.reason.known());
        let copy_unknown = match quarantined {
            None => self.entry.quarantined.is_some(),
            // The copy is the value that could not be read; Redis has another one by now.
            Some(_) if reason.is_some_and(|reason| reason.as_str().starts_with("value_")) => false,
            Some(entry) => copy.is_none() && entry.value.is_some(),
        };
        Seen {
            reason,
            lost: self.entry.lost.is_some(),
            is_balance,
            value: self.read.as_ref().map(|value| value.version),
            copy,
            copy_unknown,
            row,
        }
    }
}

/// Reads the value of an entry's member. Its size is looked at before.
async fn look(link: &Link, entry: RawEntry) -> anyhow::Result<Look> {
    let mut size = redis::cmd("STRLEN");
    size.arg(&entry.member);
    // Of another type, or without a right: there is no value that the ledger's worker could read either.
    let bytes = match link.send("read the size of a value", &size).await {
        Ok(redis::Value::Int(bytes)) => u64::try_from(bytes).ok().filter(|bytes| *bytes > 0),
        Ok(_) => None,
        Err(error) if error.is_transient() => return Err(error.into()),
        Err(_) => None,
    };
    let value = match bytes {
        Some(1..=LONGEST_VALUE) => read_values(link, &[&entry.member]).await?.swap_remove(0),
        _ => None,
    };
    let read = value.as_deref().and_then(|value| BalanceValue::of_member(&entry.member, value).ok());
    Ok(Look { entry, value, bytes, read })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_copy_that_can_not_be_read_is_known_as_such() {
        let is_unknown = |raw: Vec<u8>| {
            let entry = RawEntry { member: b"m".to_vec(), quarantined: Some(raw), lost: None };
            Look { entry, value: None, bytes: None, read: None }.seen(true, None).copy_unknown
        };
        let of = |reason: &str, value: Option<&str>, truncated: bool| {
            let entry = json!({
                "reason": reason, "value": value, "truncated": truncated, "first_at": "1", "last_at": "1", "count": 1,
            });
            is_unknown(entry.to_string().into_bytes())
        };
        assert!(is_unknown(b"no entry".to_vec()));
        assert!(of("refused_by_postgres", Some("{}"), false));
        assert!(of("refused_by_postgres", Some("{\"a\":"), true));
        assert!(!of("missing_row", None, false), "there is none");
        assert!(!of("value_field_missing", Some("{}"), false), "that is why it is in quarantine");
    }
}
