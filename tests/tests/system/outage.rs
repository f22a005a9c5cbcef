//! G1 through outages of Postgres and of Redis.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Progress};
use balance_sync_sandbox::{RedisOptions, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{SOON, Worker, options};
use tokio_util::sync::CancellationToken;

use crate::api::json;

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

#[tokio::test]
async fn while_postgres_is_away_the_exposure_has_the_number_and_age_of_what_only_redis_holds() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 50).await?;
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    all_settled(&sandbox).await?;
    let exposed = async |balances: u64, ages: std::ops::RangeInclusive<f64>| {
        eventually(SOON, "the exposure", || async {
            let overview = json(&worker, "/api/v1/overview").await?;
            let backlog = &overview["backlog"];
            let age = backlog["exposure_age_seconds"].as_f64().context("no age")?;
            ensure!(backlog["scheduled"] == balances && ages.contains(&age), "{backlog}");
            let metric = worker.metric("balance_sync_exposed_balances", &[]).await?;
            ensure!(metric == balances as f64, "{metric} in the metrics");
            Ok(age)
        })
        .await
    };
    exposed(0, 0.0..=0.0).await?;

    sandbox.postgres().kill()?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let age = exposed(100, 1.0..=60.0).await?;
    exposed(100, age + 3.0..=60.0).await?;

    sandbox.postgres().start_again().await?;
    comes_in_step(&sandbox, &producer).await?;
    exposed(0, 0.0..=0.0).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
