//! What starts a flush: size, or time since the first balance.

use std::time::{Duration, Instant};

use anyhow::Result;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Producer};
use balance_sync_sandbox::{Sandbox, SandboxTenant};
use balance_sync_tests::Worker;
use balance_sync_tests::ledger::{all_settled, comes_in_step, row};

async fn batches(worker: &Worker, trigger: &str) -> Result<f64> {
    worker.metric("balance_sync_batches_total", &[("trigger", trigger)]).await
}

async fn a_tenant() -> Result<(Sandbox, SandboxTenant, Producer)> {
    let sandbox = balance_sync_tests::sandbox(1, 100).await?;
    let (tenant, producer) = (sandbox.tenants().remove(0), sandbox.producer());
    Ok((sandbox, tenant, producer))
}

#[tokio::test]
async fn a_full_batch_is_flushed_at_once_and_a_part_of_one_after_its_time() -> Result<()> {
    let (sandbox, tenant, mut producer) = a_tenant().await?;
    let mut worker = Worker::of(&sandbox)
        .set("collector.profile", "frugal")
        .set("collector.batch_size", "10")
        .set("collector.flush_timeout", "5s")
        .set("collector.idle_backoff_max", "100ms")
        .start()
        .await?;
    let ten: Vec<usize> = (0..10).collect();
    producer.mutate(0, &ten, DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!((batches(&worker, "size").await?, batches(&worker, "timeout").await?), (1.0, 0.0));

    // 25: two full batches, and the rest when its time has come.
    let more: Vec<usize> = (10..35).collect();
    let begun = Instant::now();
    producer.mutate(0, &more, DEFAULT_TTL).await?;
    worker.reaches("balance_sync_batches_total", &[("trigger", "size")], 3.0).await?;
    let written = worker.metric("balance_synced", &[]).await?;
    // On a machine so slow that the time was over meanwhile this tells nothing.
    if begun.elapsed() < Duration::from_secs(5) {
        assert_eq!(written, 30.0, "the rest waits for company");
    }
    comes_in_step(&sandbox, &producer).await?;
    assert!(begun.elapsed() >= Duration::from_secs(5), "the rest did not wait: {:?}", begun.elapsed());
    all_settled(&sandbox).await?;
    assert_eq!((batches(&worker, "size").await?, batches(&worker, "timeout").await?), (3.0, 1.0));
    assert_eq!(row(&sandbox, &tenant, 34).await?.version, 2);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_few_mutations_are_written_at_once_unless_the_profile_saves_commits() -> Result<()> {
    let (sandbox, _, mut producer) = a_tenant().await?;
    // So long that the test would fail if it were waited for.
    let patient = || Worker::of(&sandbox).set("collector.flush_timeout", "5s");
    for (profile, at_once) in [("balanced", true), ("fresh", true), ("frugal", false)] {
        let mut worker = patient().set("collector.profile", profile).start().await?;
        producer.mutate(0, &[1, 2, 3], DEFAULT_TTL).await?;
        comes_in_step(&sandbox, &producer).await?;
        all_settled(&sandbox).await?;
        let (calm, timeout) = (batches(&worker, "calm").await?, batches(&worker, "timeout").await?);
        assert_eq!((calm > 0.0, timeout > 0.0), (at_once, !at_once), "{profile}: {calm} {timeout}");
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}

#[tokio::test]
async fn a_steady_trickle_does_not_postpone_the_flush() -> Result<()> {
    let (sandbox, tenant, mut producer) = a_tenant().await?;
    let mut worker = Worker::of(&sandbox)
        .set("collector.profile", "frugal")
        .set("collector.batch_size", "1000")
        .set("collector.flush_timeout", "400ms")
        .set("collector.idle_backoff_max", "100ms")
        .start()
        .await?;
    // One mutation every 50 ms, until the first of them has arrived. Were each to begin the time anew, none ever would.
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let begun = Instant::now();
    let mut sent = 0;
    while row(&sandbox, &tenant, 0).await?.version == 1 {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{sent} mutations, and not even the first arrived"
        );
        ticks.tick().await;
        producer.mutate(0, &[sent % 100], DEFAULT_TTL).await?;
        sent += 1;
    }
    assert!(sent > 2, "the trickle went on while the first waited");
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(batches(&worker, "size").await?, 0.0);
    assert!(batches(&worker, "timeout").await? >= 1.0);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
