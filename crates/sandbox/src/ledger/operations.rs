//! The trail of operations in a tenant's PostgreSQL, which the ledger writes after Redis.

use anyhow::{Context, Result};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use super::balances::SeededBalance;
use crate::tenancy::operation_table;

/// Writes for each balance the operation that led to this version of it. `schema` is `None` for `public`.
///
/// # Errors
/// What PostgreSQL answers.
pub async fn write_operations(
    pool: &PgPool,
    schema: Option<&str>,
    operations: &[(&SeededBalance, i64)],
) -> Result<()> {
    write(pool, schema, operations, |balance, version| balance.amounts(version - 1).overdraft_used).await
}

/// The same of operations that repaid an overdraft: if such a one belongs to a cancelled transaction, its amounts can
/// differ from the true ones.
///
/// # Errors
/// What PostgreSQL answers.
pub async fn write_repayments(
    pool: &PgPool,
    schema: Option<&str>,
    operations: &[(&SeededBalance, i64)],
) -> Result<()> {
    // With one more digit in front it was more before.
    write(pool, schema, operations, |balance, version| {
        format!("1{}", balance.amounts(version).overdraft_used)
    })
    .await
}

async fn write(
    pool: &PgPool,
    schema: Option<&str>,
    operations: &[(&SeededBalance, i64)],
    overdraft_before: impl Fn(&SeededBalance, i64) -> String,
) -> Result<()> {
    let sql = format!(
        "INSERT INTO {} (balance_id, account_id, organization_id, ledger_id, asset_code, balance_key,
             balance_version_before, balance_version_after, available_balance_after, on_hold_balance_after, snapshot,
             created_at, recorded_at)
         SELECT id, account, organization, ledger, asset, key, version - 1, version, available::numeric, on_hold::numeric,
             jsonb_build_object('overdraftUsedBefore', before, 'overdraftUsedAfter', after), clock_timestamp(), now()
         FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::int8[], $8::text[],
             $9::text[], $10::text[], $11::text[])
           AS t (id, account, organization, ledger, asset, key, version, available, on_hold, before, after)",
        operation_table(schema)
    );
    let uuids = |get: fn(&SeededBalance) -> Uuid| operations.iter().map(|(b, _)| get(b)).collect::<Vec<_>>();
    let texts = |get: fn(&SeededBalance) -> &String| {
        operations.iter().map(|(b, _)| get(b).clone()).collect::<Vec<_>>()
    };
    let after: Vec<_> = operations.iter().map(|(balance, version)| balance.amounts(*version)).collect();
    let before = operations.iter().map(|(balance, version)| overdraft_before(balance, *version));
    sqlx::query(AssertSqlSafe(sql))
        .bind(uuids(|balance| balance.id))
        .bind(uuids(|balance| balance.account_id))
        .bind(uuids(|balance| balance.organization))
        .bind(uuids(|balance| balance.ledger))
        .bind(texts(|balance| &balance.asset))
        .bind(texts(|balance| &balance.key))
        .bind(operations.iter().map(|(_, version)| *version).collect::<Vec<_>>())
        .bind(after.iter().map(|amounts| amounts.available.clone()).collect::<Vec<_>>())
        .bind(after.iter().map(|amounts| amounts.on_hold.clone()).collect::<Vec<_>>())
        .bind(before.collect::<Vec<_>>())
        .bind(after.iter().map(|amounts| amounts.overdraft_used.clone()).collect::<Vec<_>>())
        .execute(pool)
        .await
        .with_context(|| format!("writing {} operations", operations.len()))?;
    Ok(())
}
