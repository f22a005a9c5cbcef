//! Every balance of every tenant, compared twice: Redis with Postgres by `balance-sync verify`, and Postgres with what the
//! producers know to have written, version and amounts digit for digit.

use std::{collections::HashMap, path::Path};

use anyhow::Context;
use balance_sync_sandbox::{
    Program, Sandbox, balance_table,
    ledger::{LoadTenant, StoredBalance, stored_balances},
};
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use uuid::Uuid;

/// Tenants read at the same time.
const AT_ONCE: usize = 4;
/// Differing balances that are named.
const SHOW: usize = 10;

/// What was found of one tenant; numbers of balances, but for the rows written.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Its id.
    pub tenant: String,
    /// Balances it has.
    pub balances: u64,
    /// Updates of its rows, counted by Postgres itself.
    pub rows_written: u64,
    /// Postgres has an older version.
    pub behind: u64,
    /// Postgres has no such row.
    pub missing: u64,
    /// A newer version than was ever written, other amounts, unreadable or in quarantine.
    pub different: u64,
}

/// All tenants.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// In id order.
    pub tenants: Vec<Found>,
    /// Some of the balances that differ, with what differs.
    pub differences: Vec<String>,
}

/// Compares. The workers must have ended and all tenants be known to the tenant service.
///
/// # Errors
/// When something can't be read.
pub(super) async fn check(
    product: &Path,
    sandbox: &Sandbox,
    written: &[&LoadTenant],
) -> anyhow::Result<Checked> {
    let verification = verify(product, sandbox.config_path()).await?;
    let mut differences = verification.differences;
    let found: Vec<(Found, Vec<String>)> = futures::stream::iter(written.iter().copied())
        .map(|tenant| async move {
            against_producer(sandbox, tenant)
                .await
                .with_context(|| format!("tenant {} could not be compared", tenant.id))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let mut tenants = Vec::with_capacity(found.len());
    for (mut found, named) in found {
        differences.extend(named);
        let other = verification.tenants.iter().find(|result| result.tenant == found.tenant);
        let other = other.with_context(|| format!("tenant {} is not listed", found.tenant))?;
        // Both comparisons find the same balances, as a rule; which one finds more is no matter here.
        found.behind = found.behind.max(other.behind);
        found.missing = found.missing.max(other.missing);
        let wrong = other.ahead + other.different + other.unreadable + other.quarantined;
        found.different = found.different.max(wrong);
        tenants.push(found);
    }
    differences.truncate(SHOW);
    Ok(Checked { tenants, differences })
}

/// What `balance-sync verify --json` prints.
#[derive(Deserialize)]
struct Verification {
    tenants: Vec<Verified>,
    differences: Vec<String>,
}

/// One of its tenants; numbers of balances.
#[derive(Deserialize)]
struct Verified {
    tenant: String,
    behind: u64,
    missing: u64,
    ahead: u64,
    different: u64,
    unreadable: u64,
    quarantined: u64,
}

/// Runs `balance-sync verify`.
async fn verify(product: &Path, config: &Path) -> anyhow::Result<Verification> {
    let show = SHOW.to_string();
    let arguments = [
        "verify".as_ref(),
        "--config".as_ref(),
        config.as_os_str(),
        "--json".as_ref(),
        "--show".as_ref(),
        show.as_ref(),
    ];
    let output = Program::output(product, &arguments).await?;
    // Differences end it with exit code 1, and are printed.
    serde_json::from_slice(&output.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("balance-sync verify ended with {} and printed no result: {}", output.status, said.trim())
    })
}

async fn against_producer(sandbox: &Sandbox, written: &LoadTenant) -> anyhow::Result<(Found, Vec<String>)> {
    let tenant = sandbox.tenant(&written.id)?;
    let pool = sandbox.pool(&tenant);
    let rows = stored_balances(&pool, tenant.schema.as_deref()).await?;
    let updates: i64 = sqlx::query_scalar("SELECT pg_stat_get_tuples_updated($1::text::regclass)")
        .bind(balance_table(tenant.schema.as_deref()))
        .fetch_one(&pool)
        .await
        .context("reading how many rows were updated")?;
    pool.close().await;
    let mut found = compare(written, &rows);
    found.0.rows_written = updates.unsigned_abs();
    Ok(found)
}

fn compare(written: &LoadTenant, rows: &[StoredBalance]) -> (Found, Vec<String>) {
    let rows: HashMap<Uuid, &StoredBalance> = rows.iter().map(|row| (row.id, row)).collect();
    let mut found =
        Found { tenant: written.id.clone(), balances: written.balances.len() as u64, ..Found::default() };
    let mut differences = Vec::new();
    for (balance, version) in written.balances.iter().zip(&written.versions) {
        let (count, what) = match rows.get(&balance.id) {
            None => (&mut found.missing, "missing in Postgres".to_owned()),
            Some(row) if row.version < *version => {
                (&mut found.behind, format!("behind: version {} in Postgres", row.version))
            }
            Some(row) if row.version > *version => {
                (&mut found.different, format!("ahead: version {} in Postgres", row.version))
            }
            Some(row) if row.amounts != balance.amounts(*version) => {
                (&mut found.different, format!("other amounts at version {}", row.version))
            }
            Some(_) => continue,
        };
        *count += 1;
        if differences.len() < SHOW {
            differences.push(format!("{}: {what}, version {version} produced", written.keys.member(balance)));
        }
    }
    (found, differences)
}

#[cfg(test)]
mod tests {
    use balance_sync_sandbox::ledger::{SEED_VERSION, describe_balances};

    use super::*;

    #[test]
    fn every_kind_of_difference_is_counted() {
        let mut written = LoadTenant::seeded("acme", describe_balances("acme", 6));
        let mut rows: Vec<StoredBalance> = written
            .balances
            .iter()
            .map(|balance| StoredBalance {
                id: balance.id,
                version: SEED_VERSION,
                amounts: balance.amounts(SEED_VERSION),
            })
            .collect();
        let counts = |written: &LoadTenant, rows: &[StoredBalance]| {
            let (found, named) = compare(written, rows);
            assert_eq!(found.balances, 6);
            (found.behind, found.missing, found.different, named.len())
        };
        assert_eq!(counts(&written, &rows), (0, 0, 0, 0));
        written.versions[0] += 1;
        assert_eq!(counts(&written, &rows), (1, 0, 0, 1));
        rows[1].amounts.available.push('1');
        assert_eq!(counts(&written, &rows), (1, 0, 1, 2));
        rows[2].version += 1;
        assert_eq!(counts(&written, &rows), (1, 0, 2, 3));
        rows.pop();
        assert_eq!(counts(&written, &rows), (1, 1, 2, 4));
        // Trailing zeros are not the same text, even if they are the same number.
        rows[3].amounts.on_hold.push_str(".0");
        assert_eq!(counts(&written, &rows), (1, 1, 3, 5));
    }
}
