//! Balances as rows of a tenant's PostgreSQL.

use anyhow::{Context, Result};
use sqlx::{AssertSqlSafe, PgPool, Row};
use uuid::Uuid;

use super::amounts::Amounts;
use super::balances::{SEED_VERSION, SeededBalance, describe_balances};
use crate::tenancy::balance_table;

/// How many rows go in one statement: a message to PostgreSQL must stay well below 1 GB.
const ROWS_PER_STATEMENT: usize = 50_000;

/// What a row of the `balance` table holds of what the sync writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBalance {
    /// Primary key.
    pub id: Uuid,
    /// Its version.
    pub version: i64,
    /// Its amounts, as PostgreSQL prints them.
    pub amounts: Amounts,
}

/// Inserts the first `count` balances of this tenant at [`SEED_VERSION`], and returns them. `schema` is `None` for
/// `public`.
///
/// # Errors
/// What PostgreSQL answers, e.g. that they are there already.
pub async fn seed_balances(
    pool: &PgPool,
    schema: Option<&str>,
    tenant: &str,
    count: usize,
) -> Result<Vec<SeededBalance>> {
    let balances = describe_balances(tenant, count);
    let sql = format!(
        "INSERT INTO {} (id, organization_id, ledger_id, account_id, alias, key, asset_code, available, on_hold,
             overdraft_used, version, account_type, allow_sending, allow_receiving, created_at)
         SELECT id, organization_id, ledger_id, account_id, alias, key, asset_code, available::numeric,
             on_hold::numeric, overdraft_used::numeric, $12, account_type, true, true, now()
         FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[],
             $9::text[], $10::text[], $11::text[])
           AS t (id, organization_id, ledger_id, account_id, alias, key, asset_code, available, on_hold,
             overdraft_used, account_type)",
        balance_table(schema)
    );
    for page in balances.chunks(ROWS_PER_STATEMENT) {
        let uuids = |get: fn(&SeededBalance) -> Uuid| page.iter().map(get).collect::<Vec<Uuid>>();
        let amounts: Vec<Amounts> = page.iter().map(|balance| balance.amounts(SEED_VERSION)).collect();
        let decimals =
            |get: fn(&Amounts) -> &String| amounts.iter().map(|a| get(a).clone()).collect::<Vec<_>>();
        sqlx::query(AssertSqlSafe(sql.clone()))
            .bind(uuids(|balance| balance.id))
            .bind(uuids(|balance| balance.organization))
            .bind(uuids(|balance| balance.ledger))
            .bind(uuids(|balance| balance.account_id))
            .bind(page.iter().map(|balance| balance.alias.clone()).collect::<Vec<_>>())
            .bind(page.iter().map(|balance| balance.key.clone()).collect::<Vec<_>>())
            .bind(page.iter().map(|balance| balance.asset.clone()).collect::<Vec<_>>())
            .bind(decimals(|amounts| &amounts.available))
            .bind(decimals(|amounts| &amounts.on_hold))
            .bind(decimals(|amounts| &amounts.overdraft_used))
            .bind(page.iter().map(|balance| balance.account_type().to_owned()).collect::<Vec<_>>())
            .bind(SEED_VERSION)
            .execute(pool)
            .await
            .with_context(|| format!("seeding {count} balances of tenant {tenant}"))?;
    }
    Ok(balances)
}

/// All rows of the `balance` table, in order of their ids.
///
/// # Errors
/// What PostgreSQL answers.
pub async fn stored_balances(pool: &PgPool, schema: Option<&str>) -> Result<Vec<StoredBalance>> {
    let sql = format!(
        "SELECT id, version, available::text, on_hold::text, overdraft_used::text FROM {} ORDER BY id",
        balance_table(schema)
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(pool).await.context("reading the balances")?;
    rows.iter()
        .map(|row| {
            Ok(StoredBalance {
                id: row.try_get(0)?,
                version: row.try_get(1)?,
                amounts: Amounts {
                    available: row.try_get(2)?,
                    on_hold: row.try_get(3)?,
                    overdraft_used: row.try_get(4)?,
                },
            })
        })
        .collect()
}
