//! The failure table: each way in which a tenant's database fails has its reason, its neighbours don't notice, and what
//! waited is written once it is mended.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step, is_settled, rows};
use balance_sync_tests::{Audit, SOON};
use secrecy::SecretString;

use crate::{brisk, nothing_backwards, report};

/// What is done to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    WrongPassword,
    DatabaseGone,
    TableGone,
    ColumnGone,
    RightsRevoked,
    ReadOnly,
    NoConnectionLeft,
    DiskFull,
    Locked,
    ServerError,
    Empty,
    RowSecurity,
    RefusesAll,
}

/// Each with the reason that must be shown. In the order of the tenants: the last before the healthy one shares its
/// database with that, and has a schema of its own.
const FAILURES: [(Failure, &str); 13] = [
    (Failure::WrongPassword, "postgres_credentials"),
    (Failure::DatabaseGone, "postgres_database_missing"),
    (Failure::TableGone, "postgres_not_provisioned"),
    (Failure::ColumnGone, "postgres_not_provisioned"),
    (Failure::ReadOnly, "postgres_read_only"),
    (Failure::NoConnectionLeft, "postgres_too_many_connections"),
    (Failure::DiskFull, "postgres_resources"),
    (Failure::Locked, "postgres_timeout"),
    (Failure::ServerError, "postgres_internal"),
    (Failure::Empty, "postgres_no_visible_rows"),
    (Failure::RowSecurity, "postgres_row_security"),
    (Failure::RefusesAll, "postgres_refuses_every_row"),
    (Failure::RightsRevoked, "postgres_permission"),
];

/// What mends a failure.
enum Mend {
    Sql(String, String),
    Password(SecretString),
    Rollback(sqlx::Transaction<'static, sqlx::Postgres>),
}

async fn inject(sandbox: &Sandbox, tenant: &SandboxTenant, failure: Failure) -> Result<Mend> {
    let table = balance_table(tenant.schema.as_deref());
    let (database, role) = (tenant.database.clone(), tenant.role.as_str());
    let own = |sql: String| (database.clone(), sql);
    let server = |sql: String| ("postgres".to_owned(), sql);
    let raising = |code: &str| {
        let sql = format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ \
             BEGIN RAISE EXCEPTION 'injected' USING ERRCODE = '{code}'; END $$; \
             CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse();"
        );
        (own(sql), own(format!("DROP TRIGGER refuse ON {table}")))
    };
    let ((place, broken), (mend_place, mended)) = match failure {
        Failure::WrongPassword => {
            // Changed in Postgres, while the tenant service goes on giving the former one.
            let changed: SecretString = uuid::Uuid::new_v4().simple().to_string().into();
            sandbox.postgres().set_password(role, &changed).await?;
            return Ok(Mend::Password(changed));
        }
        Failure::Locked => {
            let pool = sandbox.pool(tenant);
            let mut held = pool.begin().await?;
            let lock = format!("LOCK TABLE {table} IN SHARE MODE");
            sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut *held).await?;
            return Ok(Mend::Rollback(held));
        }
        // With its rows, so that they are there again afterwards.
        Failure::DatabaseGone => (
            server(format!("ALTER DATABASE \"{database}\" RENAME TO \"{database}_gone\"")),
            server(format!("ALTER DATABASE \"{database}_gone\" RENAME TO \"{database}\"")),
        ),
        Failure::TableGone => (
            own(format!("ALTER TABLE {table} RENAME TO balance_gone")),
            own("ALTER TABLE public.balance_gone RENAME TO balance".to_owned()),
        ),
        Failure::ColumnGone => (
            own(format!("ALTER TABLE {table} RENAME COLUMN overdraft_used TO gone")),
            own(format!("ALTER TABLE {table} RENAME COLUMN gone TO overdraft_used")),
        ),
        Failure::RightsRevoked => (
            own(format!("REVOKE UPDATE ON {table} FROM \"{role}\"")),
            own(format!("GRANT UPDATE ON {table} TO \"{role}\"")),
        ),
        Failure::ReadOnly => (
            server(format!("ALTER ROLE \"{role}\" SET default_transaction_read_only = on")),
            server(format!("ALTER ROLE \"{role}\" RESET default_transaction_read_only")),
        ),
        Failure::NoConnectionLeft => (
            server(format!("ALTER ROLE \"{role}\" CONNECTION LIMIT 0")),
            server(format!("ALTER ROLE \"{role}\" CONNECTION LIMIT -1")),
        ),
        Failure::DiskFull => raising("53100"),
        Failure::ServerError => raising("XX001"),
        Failure::RefusesAll => raising("P0001"),
        Failure::Empty => (
            own(format!(
                "ALTER TABLE {table} RENAME TO balance_full; \
                 CREATE TABLE {table} (LIKE public.balance_full INCLUDING ALL); \
                 GRANT SELECT, UPDATE ON {table} TO \"{role}\""
            )),
            own(format!("DROP TABLE {table}; ALTER TABLE public.balance_full RENAME TO balance")),
        ),
        Failure::RowSecurity => (
            own(format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")),
            own(format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")),
        ),
    };
    // A session that is still ending keeps its database's name.
    eventually(SOON, &format!("{failure:?}"), || async { sandbox.postgres().execute(&place, &broken).await })
        .await?;
    Ok(Mend::Sql(mend_place, mended))
}

/// The rows are at this version, all of them.
async fn stands_at(sandbox: &Sandbox, tenant: &SandboxTenant, version: i64) -> Result<()> {
    let found = rows(sandbox, tenant).await?;
    ensure!(found.values().all(|row| row.version == version), "tenant {} is not at {version}", tenant.id);
    Ok(())
}

#[tokio::test]
async fn every_failure_of_a_database_has_its_reason_and_an_end() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(FAILURES.len() + 1, 20).await?;
    let tenants = sandbox.tenants();
    let (healthy, failing) = tenants.split_last().context("tenants")?;
    assert_eq!(failing.last().map(|tenant| &tenant.database), Some(&healthy.database));
    for tenant in &tenants {
        Audit::begin(&sandbox, tenant).await?;
    }
    let mut worker = brisk(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;

    let mut mends = Vec::new();
    for (tenant, (failure, _)) in failing.iter().zip(FAILURES) {
        // What is said to new sessions must not be got around by old ones.
        if failure != Failure::Locked {
            sandbox.postgres().end_sessions(Some(&tenant.role)).await?;
        }
        let mend = inject(&sandbox, tenant, failure).await.with_context(|| format!("{failure:?}"))?;
        // A look at its rows may have opened one meanwhile.
        if failure != Failure::Locked {
            sandbox.postgres().end_sessions(Some(&tenant.role)).await?;
        }
        mends.push((failure, mend));
    }
    let asked = sandbox.service().calls(balance_sync_sandbox::ServiceRoute::Connections);
    producer.mutate_each(DEFAULT_TTL).await?;
    for (tenant, (failure, reason)) in failing.iter().zip(FAILURES) {
        let labels = [("tenant_id", tenant.id.as_str()), ("reason", reason)];
        worker
            .reaches("balance_sync_tenant_degraded", &labels, 1.0)
            .await
            .with_context(|| format!("{failure:?}"))?;
    }
    assert!(sandbox.service().calls(balance_sync_sandbox::ServiceRoute::Connections) > asked);
    // With all its neighbours down.
    let begun = Instant::now();
    eventually(SOON, "the healthy tenant's rows", || stands_at(&sandbox, healthy, 3)).await?;
    producer.mutate(FAILURES.len(), &(0..20).collect::<Vec<_>>(), DEFAULT_TTL).await?;
    eventually(SOON, "the healthy tenant's rows", || stands_at(&sandbox, healthy, 4)).await?;
    eventually(SOON, "an empty schedule", || is_settled(&sandbox, healthy)).await?;
    let healthy_took = begun.elapsed();

    for ((_, mend), tenant) in mends.into_iter().zip(failing) {
        match mend {
            Mend::Sql(place, sql) => sandbox.postgres().execute(&place, &sql).await?,
            Mend::Password(right) => {
                sandbox.service().update(&tenant.id, |record| record.password = right);
            }
            Mend::Rollback(held) => held.rollback().await?,
        }
    }
    // A role's settings count for new sessions only.
    sandbox.postgres().end_sessions(Some(&failing[4].role)).await?;
    let mended = Instant::now();
    comes_in_step(&sandbox, &producer).await?;
    let took = mended.elapsed();
    all_settled(&sandbox).await?;
    eventually(SOON, "no degraded tenant", || async {
        let count = worker.metric("balance_sync_tenant_degraded", &[]).await?;
        ensure!(count == 0.0, "there are {count}");
        Ok(())
    })
    .await?;
    for tenant in &tenants {
        nothing_backwards(&sandbox, tenant).await?;
    }
    // None of it was a balance's fault.
    let refused = worker.metric("balance_sync_balances_total", &[("outcome", "quarantined")]).await?;
    assert_eq!(refused, 0.0);
    report(
        &format!("{} ways for a database to fail, at once", FAILURES.len()),
        &format!(
            "each shown by its reason; two rounds of the healthy neighbour {:.2} s; all written {:.2} s after mending (backoff_long 2 s)",
            healthy_took.as_secs_f64(),
            took.as_secs_f64()
        ),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
