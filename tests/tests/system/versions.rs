//! G2 and G4: a row never goes back, and a newer mutation is never lost to a flush of an older one.

use anyhow::Result;
use balance_sync_sandbox::balance_table;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_tests::ledger::{all_settled, comes_in_step, flush_hangs, hold_row, row, scores};
use balance_sync_tests::{Audit, Worker};
use sqlx::AssertSqlSafe;

#[tokio::test]
async fn a_mutation_during_a_flush_stays_scheduled() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    Audit::begin(&sandbox, &tenant).await?;
    for (depth, rounds) in [("1", 3), ("2", 3)] {
        let mut worker = Worker::of(&sandbox).set("collector.pipeline_depth", depth).start().await?;
        let mut producer = sandbox.producer();
        producer.refresh_versions().await?;
        for round in 1..=rounds {
            let held = hold_row(&pool, &tenant, 3).await?;
            let older = producer.mutate(0, &[3, 4], DEFAULT_TTL).await?;
            flush_hangs(&sandbox, &tenant).await?;
            let newer = producer.mutate(0, &[3], DEFAULT_TTL).await?;
            assert_eq!(newer[0], older[0] + 1);
            assert_eq!(row(&sandbox, &tenant, 3).await?.version, older[0] - 1, "the flush hangs");
            held.rollback().await?;
            comes_in_step(&sandbox, &producer).await?;
            all_settled(&sandbox).await?;
            // Depending on who was first the older one was kept scheduled, or came second and was stale, or had been released
            // because its row was locked for longer than a flush waits.
            let mut seen = 0.0;
            for outcome in ["kept", "stale", "released"] {
                seen += worker.metric("balance_sync_balances_total", &[("outcome", outcome)]).await?;
            }
            assert!(seen >= f64::from(round), "{seen}, round {round}");
        }
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    let audit = Audit::read(&pool, &tenant).await?;
    assert_eq!((audit.not_forward, audit.updates), (0, audit.distinct), "{audit:?}");
    Ok(())
}

#[tokio::test]
async fn an_older_version_never_overwrites_a_newer_one() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    let table = balance_table(None);
    // Balances 0 to 4: PostgreSQL is far ahead. 5 and 6: as far as Redis, with other amounts.
    for (balance, version) in [(0, 9), (1, 9), (2, 9), (3, 9), (4, 9), (5, 5), (6, 5)] {
        let sql = format!("UPDATE {table} SET version = $2, available = -0.07 WHERE id = $1");
        let id = tenant.balances[balance].id;
        sqlx::query(AssertSqlSafe(sql)).bind(id).bind(version).execute(&pool).await?;
    }
    let everything = || async {
        let sql = format!("SELECT b::text FROM {table} b ORDER BY id");
        anyhow::Ok(sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).fetch_all(&pool).await?)
    };
    let before = everything().await?;
    let mut redis = sandbox.redis().connect().await?;
    for balance in &tenant.balances[..7] {
        let member = tenant.keys.member(balance);
        let value = balance.json(5);
        put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL))
            .await?;
    }
    assert_eq!(scores(&sandbox, &tenant.keys.schedule()).await?.len(), 7);
    let mut worker = Worker::of(&sandbox).start().await?;
    // Not written, and not taken for late writes either: Redis and the rows have different histories.
    worker.reaches("balance_sync_balances_total", &[("outcome", "forked")], 7.0).await?;
    assert!(scores(&sandbox, &tenant.keys.schedule()).await?.is_empty());
    assert_eq!(worker.metric("balance_sync_balances_total", &[("outcome", "stale")]).await?, 0.0);
    assert_eq!(everything().await?, before, "no column of any row has changed");
    assert_eq!(worker.metric("balance_synced", &[]).await?, 0.0);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
