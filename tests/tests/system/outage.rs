//! G1 through outages of Postgres and of Redis.

use anyhow::Result;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Progress};
use balance_sync_sandbox::{RedisOptions, Sandbox, SandboxOptions};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{Worker, options};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn nothing_is_lost_while_postgres_or_redis_is_away() -> Result<()> {
    let wanted = options(2, 200);
    let redis = RedisOptions {
        appendonly: true,
        extra: vec!["appendfsync always".to_owned()],
        ..wanted.redis.clone()
    };
    let sandbox = Sandbox::start(SandboxOptions { redis, ..wanted }).await?;
    let mut worker = Worker::of(&sandbox).set("claim.ttl", "26s").start().await?;
    let mut producer = sandbox.producer();
    let (cancel, progress) = (CancellationToken::new(), Progress::new(2));
    let load = LoadOptions { rate: 500.0, ..LoadOptions::default() };
    let written = || worker.metric("balance_synced", &[]);
    let outages = async {
        let through = async {
            worker.reaches("balance_synced", &[], 200.0).await?;
            sandbox.postgres().kill()?;
            worker.reaches("balance_sync_tenant_degraded", &[], 2.0).await?;
            sandbox.postgres().start_again().await?;
            let at = written().await?;
            worker.reaches("balance_synced", &[], at + 200.0).await?;
            sandbox.redis().kill()?;
            worker.reaches("balance_sync_redis_errors_total", &[], 1.0).await?;
            sandbox.redis().start_again().await?;
            let at = written().await?;
            worker.reaches("balance_synced", &[], at + 200.0).await
        };
        let through = through.await;
        cancel.cancel();
        through
    };
    let (report, through) = tokio::join!(producer.run(&load, &progress, &cancel), outages);
    through?;
    report?;
    // Whatever the killed Redis did not answer may have been written.
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(worker.get("/livez").await?.0, 200);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
