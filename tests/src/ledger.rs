//! Questions about what is in Redis and PostgreSQL, asked as the ledger would: past the worker's own code.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{Amounts, Producer, StoredBalance, stored_balances, write_operations};
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table, eventually};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Transaction};
use uuid::Uuid;

use crate::SOON;

/// The rows of a tenant, by id.
///
/// # Errors
/// What PostgreSQL answers.
pub async fn rows(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<BTreeMap<Uuid, StoredBalance>> {
    let pool = sandbox.pool(tenant);
    let rows = stored_balances(&pool, tenant.schema.as_deref()).await;
    pool.close().await;
    Ok(rows?.into_iter().map(|row| (row.id, row)).collect())
}

/// Gives each balance of a tenant its value, at the version of its row, and the operation that led to it: many at a time.
///
/// # Errors
/// What Redis or PostgreSQL answers.
pub async fn fill(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<()> {
    const OPERATIONS: usize = 20_000;
    const VALUES: usize = 1_000;
    let (pool, mut redis) = (sandbox.pool(tenant), sandbox.redis().connect().await?);
    for page in tenant.balances.chunks(OPERATIONS) {
        let versions: Vec<_> = page.iter().map(|balance| (balance, 1)).collect();
        write_operations(&pool, tenant.schema.as_deref(), &versions).await?;
        for page in page.chunks(VALUES) {
            let values: Vec<_> =
                page.iter().map(|balance| (tenant.keys.member(balance), balance.json(1))).collect();
            redis.mset::<_, _, ()>(&values).await?;
        }
    }
    pool.close().await;
    Ok(())
}

/// One row of a tenant, by the number of its balance.
///
/// # Errors
/// When there is no such row.
pub async fn row(sandbox: &Sandbox, tenant: &SandboxTenant, balance: usize) -> Result<StoredBalance> {
    let id = tenant.balances[balance].id;
    rows(sandbox, tenant).await?.remove(&id).with_context(|| format!("no row {id}"))
}

/// Whether every row holds exactly the version that the producer wrote last: the same text, digit for digit, and the
/// same number as PostgreSQL compares numbers.
///
/// # Errors
/// What differs first.
pub async fn in_step(sandbox: &Sandbox, producer: &Producer) -> Result<()> {
    for load in producer.tenants() {
        let tenant = sandbox.tenant(&load.id)?;
        let found = rows(sandbox, &tenant).await?;
        let mut expected = Vec::with_capacity(load.balances.len());
        for (balance, version) in load.balances.iter().zip(&load.versions) {
            let row = found.get(&balance.id).with_context(|| format!("no row {}", balance.id))?;
            ensure!(
                row.version == *version,
                "tenant {}, balance {}: version {} in PostgreSQL, {version} in Redis",
                load.id,
                balance.alias,
                row.version
            );
            let amounts = balance.amounts(*version);
            ensure!(
                row.amounts == amounts,
                "tenant {}, balance {}, version {version}: {:?} in PostgreSQL, {amounts:?} in Redis",
                load.id,
                balance.alias,
                row.amounts
            );
            expected.push((balance.id, amounts));
        }
        let pool = sandbox.pool(&tenant);
        let differing = numerically_different(&pool, tenant.schema.as_deref(), &expected).await;
        pool.close().await;
        ensure!(differing? == 0, "tenant {}: other numbers by the same digits", load.id);
    }
    Ok(())
}

/// Waits until [`in_step`] holds.
///
/// # Errors
/// When it doesn't in time: what differs.
pub async fn comes_in_step(sandbox: &Sandbox, producer: &Producer) -> Result<()> {
    eventually(SOON, "the same balances in PostgreSQL as in Redis", || in_step(sandbox, producer)).await
}

/// How many of these rows don't equal these amounts as numbers.
///
/// # Errors
/// What PostgreSQL answers.
pub async fn numerically_different(
    pool: &PgPool,
    schema: Option<&str>,
    expected: &[(Uuid, Amounts)],
) -> Result<i64> {
    let sql = format!(
        "SELECT count(*) FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[]) AS e (id, a, h, o)
         LEFT JOIN {} b ON b.id = e.id AND b.available = e.a::numeric AND b.on_hold = e.h::numeric
             AND b.overdraft_used = e.o::numeric
         WHERE b.id IS NULL",
        balance_table(schema)
    );
    let texts =
        |get: fn(&Amounts) -> &String| expected.iter().map(|(_, a)| get(a).clone()).collect::<Vec<_>>();
    Ok(sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(expected.iter().map(|(id, _)| *id).collect::<Vec<_>>())
        .bind(texts(|amounts| &amounts.available))
        .bind(texts(|amounts| &amounts.on_hold))
        .bind(texts(|amounts| &amounts.overdraft_used))
        .fetch_one(pool)
        .await?)
}

/// Locks a row until the transaction ends: whoever updates it waits.
///
/// # Errors
/// What PostgreSQL answers, e.g. that there is no such row.
pub async fn hold_row(
    pool: &PgPool,
    tenant: &SandboxTenant,
    balance: usize,
) -> Result<Transaction<'static, Postgres>> {
    let mut transaction = pool.begin().await?;
    let sql =
        format!("SELECT version FROM {} WHERE id = $1 FOR UPDATE", balance_table(tenant.schema.as_deref()));
    sqlx::query(AssertSqlSafe(sql)).bind(tenant.balances[balance].id).fetch_one(&mut *transaction).await?;
    Ok(transaction)
}

/// Makes PostgreSQL take this long over each update of a tenant's row, until it is asked for no time again. Locks of the
/// table aren't needed for the second call, so that it waits for no session.
///
/// # Errors
/// What PostgreSQL answers.
pub async fn slow_updates(sandbox: &Sandbox, tenant: &SandboxTenant, pause: Duration) -> Result<()> {
    let schema = tenant.schema.as_deref().unwrap_or("public");
    let sql = format!(
        "CREATE OR REPLACE FUNCTION \"{schema}\".slow_update() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
           PERFORM pg_catalog.pg_sleep({});
           RETURN NEW;
         END $$;",
        pause.as_secs_f64()
    );
    sandbox.postgres().execute(&tenant.database, &sql).await.context("slowing updates")?;
    if pause.is_zero() {
        return Ok(());
    }
    let sql = format!(
        "CREATE TRIGGER slow_update BEFORE UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION \"{schema}\".slow_update();",
        balance_table(tenant.schema.as_deref())
    );
    sandbox.postgres().execute(&tenant.database, &sql).await.context("slowing updates")
}

/// Sessions of a tenant's role, and how many of them wait for a lock.
///
/// # Errors
/// What PostgreSQL answers.
pub async fn sessions(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<(i64, i64)> {
    let pool = sandbox.postgres().pool("postgres");
    let counted = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE wait_event_type = 'Lock') FROM pg_stat_activity WHERE usename = $1",
    )
    .bind(&tenant.role)
    .fetch_one(&pool)
    .await;
    pool.close().await;
    Ok(counted?)
}

/// Waits until an update of this tenant waits for a lock.
///
/// # Errors
/// When none does in time.
pub async fn flush_hangs(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<()> {
    eventually(SOON, "a flush that waits for a row", || async {
        match sessions(sandbox, tenant).await? {
            (_, 1..) => Ok(()),
            (open, _) => bail!("none of {open} sessions waits"),
        }
    })
    .await
}

/// The members of a schedule with their scores.
///
/// # Errors
/// What Redis answers.
pub async fn scores(sandbox: &Sandbox, key: &str) -> Result<BTreeMap<String, f64>> {
    let mut redis = sandbox.redis().connect().await?;
    let pairs: Vec<(String, f64)> = redis.zrange_withscores(key, 0, -1).await?;
    Ok(pairs.into_iter().collect())
}

/// Redis's clock, in seconds.
///
/// # Errors
/// What Redis answers.
pub async fn redis_time(redis: &mut MultiplexedConnection) -> Result<f64> {
    let (seconds, micros): (f64, f64) = redis::cmd("TIME").query_async(redis).await?;
    Ok(seconds + micros / 1e6)
}

/// How many members of a tenant's schedule are claimed: their time lies in the future.
///
/// # Errors
/// What Redis answers.
pub async fn claimed(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<usize> {
    let scores = scores(sandbox, &tenant.keys.schedule()).await?;
    let now = redis_time(&mut sandbox.redis().connect().await?).await?;
    Ok(scores.values().filter(|score| **score > now).count())
}

/// The key of a tenant's quarantine.
pub fn quarantine_key(tenant: &SandboxTenant) -> String {
    format!("{}quarantine:{{transactions}}:balance-sync", tenant.keys.prefix())
}

/// Hash of the tenant's losses.
pub fn losses_key(tenant: &SandboxTenant) -> String {
    format!("{}quarantine:{{transactions}}:balance-sync:losses", tenant.keys.prefix())
}

/// Whether nothing is scheduled, nothing quarantined and nothing lost for this tenant.
///
/// # Errors
/// What is.
pub async fn is_settled(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<()> {
    let scheduled = scores(sandbox, &tenant.keys.schedule()).await?;
    if !scheduled.is_empty() {
        bail!("tenant {}: {} members are scheduled: {scheduled:?}", tenant.id, scheduled.len());
    }
    let mut redis = sandbox.redis().connect().await?;
    let quarantined: Vec<String> = redis.hkeys(quarantine_key(tenant)).await?;
    ensure!(quarantined.is_empty(), "tenant {}: in quarantine: {quarantined:?}", tenant.id);
    let lost: Vec<String> = redis.hkeys(losses_key(tenant)).await?;
    ensure!(lost.is_empty(), "tenant {}: lost: {lost:?}", tenant.id);
    Ok(())
}

/// Waits until nothing is scheduled for any tenant, with nothing in quarantine.
///
/// # Errors
/// When something is left.
pub async fn all_settled(sandbox: &Sandbox) -> Result<()> {
    for tenant in sandbox.tenants() {
        eventually(SOON, "an empty schedule", || is_settled(sandbox, &tenant)).await?;
    }
    Ok(())
}
