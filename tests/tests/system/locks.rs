//! G6: a row that another session holds in Postgres keeps no other from being written, and who holds it is shown.

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{balance_table, eventually};
use balance_sync_tests::command::run;
use balance_sync_tests::ledger::{all_settled, comes_in_step, rows};
use balance_sync_tests::{SOON, Worker, connection_mode};
use sqlx::AssertSqlSafe;

const BALANCES: usize = 500;

#[tokio::test]
async fn one_locked_row_holds_up_no_other_and_its_holder_is_shown() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, BALANCES).await?;
    let (tenant, mut producer) = (sandbox.tenants().remove(0), sandbox.producer());
    let mut worker = Worker::of(&sandbox).set("collector.batch_size", "500").start().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;

    let held = tenant.balances[7].id;
    let table = balance_table(tenant.schema.as_deref());
    let pool = sandbox.pool(&tenant);
    let mut holder = pool.begin().await?;
    sqlx::query(AssertSqlSafe(format!("SELECT FROM {table} WHERE id = '{held}' FOR UPDATE")))
        .execute(&mut *holder)
        .await?;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *holder).await?;

    // Twice: the second time the balance is put off already, or known to be locked.
    for version in [3, 4] {
        producer.mutate_each(DEFAULT_TTL).await?;
        eventually(SOON, "all rows but one", || async {
            let rows = rows(&sandbox, &tenant).await?;
            let behind: Vec<_> =
                rows.values().filter(|row| row.version < version).map(|row| row.id).collect();
            ensure!(behind == [held], "{} rows are behind", behind.len());
            Ok(())
        })
        .await?;
    }
    let labels = [("tenant_id", tenant.id.as_str()), ("reason", "postgres_row_locked")];
    worker.reaches("balance_sync_tenant_degraded", &labels, 1.0).await?;
    let config = sandbox.config_path().to_string_lossy().into_owned();
    let mode = format!("\"{}\"", connection_mode(&sandbox));
    eventually(SOON, "the holder", || async {
        let shown = run(&["tenants", "show", &tenant.id, "--json", "--config", &config], &[]).await?;
        let holder = shown.stdout.contains(&format!("locked by process {pid}"));
        ensure!(holder && shown.stdout.contains(&mode), "{shown:?}");
        Ok(())
    })
    .await?;
    let quarantined = [("outcome", "quarantined")];
    assert_eq!(worker.metric("balance_sync_balances_total", &quarantined).await?, 0.0);
    assert_eq!(worker.metric("balance_sync_batch_failures_total", &[]).await?, 0.0);

    holder.rollback().await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    eventually(SOON, "a healthy tenant", || async {
        ensure!(worker.metric("balance_sync_tenant_degraded", &labels).await? == 0.0, "still degraded");
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
