//! Mode `lock`: beside the ledger's own worker, each respects the other's claims.

use std::time::Duration;

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Progress};
use balance_sync_sandbox::{Sandbox, SandboxTenant, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step, row, scores};
use balance_sync_tests::{Audit, LedgerWorker, SOON, Worker};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

fn lock_prefix(tenant: &SandboxTenant) -> String {
    tenant.keys.lock("")
}

async fn locks(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<Vec<String>> {
    let mut redis = sandbox.redis().connect().await?;
    let mut found = Vec::new();
    // Braces mean nothing to MATCH.
    let mut keys = redis.scan_match::<_, String>(format!("{}*", lock_prefix(tenant))).await?;
    while let Some(key) = keys.next_item().await {
        found.push(key?);
    }
    Ok(found)
}

#[tokio::test]
async fn a_foreign_lock_is_respected_and_holds_up_nothing_behind_it() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 30).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut redis = sandbox.redis().connect().await?;
    // The first three of the schedule are locked, and a batch has room for two.
    let locked: Vec<String> =
        (0..3).map(|balance| tenant.keys.lock(&tenant.keys.member(&tenant.balances[balance]))).collect();
    for lock in &locked {
        let () = redis.set_ex(lock, "1", 600).await?;
    }
    let mut producer = sandbox.producer();
    producer.mutate(0, &[0, 1, 2], DEFAULT_TTL).await?;
    let others: Vec<usize> = (3..30).collect();
    producer.mutate(0, &others, DEFAULT_TTL).await?;
    let mut worker = Worker::of(&sandbox)
        .set("claim.mode", "lock")
        .set("collector.batch_size", "2")
        .set("collector.idle_backoff_max", "100ms")
        .start()
        .await?;
    eventually(SOON, "all but the locked ones written", || async {
        let left = scores(&sandbox, &tenant.keys.schedule()).await?.len();
        ensure!(left == 3, "{left} scheduled");
        anyhow::Ok(())
    })
    .await?;
    worker.reaches("balance_sync_foreign_locked_members", &[], 3.0).await?;
    for balance in 0..30 {
        let expected = if balance < 3 { 1 } else { 2 };
        assert_eq!(row(&sandbox, &tenant, balance).await?.version, expected, "balance {balance}");
    }
    for lock in &locked {
        let (value, life): (String, i64) = (redis.get(lock).await?, redis.ttl(lock).await?);
        assert!(value == "1" && life > 400, "{lock} = {value} for {life} s");
    }
    assert_eq!(locks(&sandbox, &tenant).await?.len(), 3, "its own locks are gone");

    let () = redis.del(&locked).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert!(locks(&sandbox, &tenant).await?.is_empty());
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn beside_the_ledgers_own_worker_nothing_is_lost_and_nothing_goes_back() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 150).await?;
    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    Audit::begin(&sandbox, &tenant).await?;
    let mut worker =
        Worker::of(&sandbox).set("claim.mode", "lock").set("collector.batch_size", "25").start().await?;
    let mut producer = sandbox.producer();
    let progress = Progress::new(1);
    let load = LoadOptions {
        rate: 600.0,
        duration: Some(Duration::from_secs(4)),
        hot_key_share: 0.3,
        ..LoadOptions::default()
    };
    let over = CancellationToken::new();
    let mut other = LedgerWorker::new(&tenant, sandbox.redis().connect().await?, pool.clone());
    other.batch = 25;
    let produce = async {
        let never = CancellationToken::new();
        let report = producer.run(&load, &progress, &never).await;
        over.cancel();
        report
    };
    let (report, by_other) = tokio::join!(produce, other.run(&over));
    assert_eq!(report?.errors, 0);
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let (by_other, by_us) = (by_other.written, worker.metric("balance_synced", &[]).await?);
    assert!(by_other > 0 && by_us > 0.0, "both took part: {by_other} and {by_us}");
    let audit = Audit::read(&pool, &tenant).await?;
    assert_eq!((audit.not_forward, audit.updates), (0, audit.distinct), "{audit:?}");
    assert_eq!(audit.updates as f64, by_other as f64 + by_us);
    assert!(locks(&sandbox, &tenant).await?.is_empty(), "no lock is left");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
