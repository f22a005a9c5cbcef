//! G8, G2 and G4: workers that are killed, frozen, or never learn that they were done.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{Fault, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::ledger::{
    all_settled, claimed, comes_in_step, flush_hangs, hold_row, in_step, row, scores,
};
use balance_sync_tests::{Audit, SOON, Worker, options};
use nix::sys::signal::Signal;

use crate::{BUSY, CLAIM_TTL, brisk, nothing_backwards, report};

/// Within this, beyond the claim TTL, a killed worker's claims are in Postgres.
const TAKEOVER: Duration = BUSY;

#[tokio::test]
async fn a_killed_workers_claims_are_taken_over_by_a_worker_that_did_not_own_them() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 200).await?;
    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    Audit::begin(&sandbox, &tenant).await?;
    // One owner only: the other worker has to notice first that the tenant is its own now.
    let one = |name: &str| brisk(&sandbox, name).set("worker.replicas", "1").set("worker.lease", "3s");
    let mut workers = [one("left").start().await?, one("right").start().await?];
    for worker in &workers {
        worker.reaches("balance_sync_workers", &[], 2.0).await?;
    }
    let mut producer = sandbox.producer();
    let held = hold_row(&pool, &tenant, 7).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    flush_hangs(&sandbox, &tenant).await?;
    assert_eq!(claimed(&sandbox, &tenant).await?, 200);
    if workers[1].metric("balance_sync_tenants_owned", &[]).await? > 0.0 {
        workers.reverse();
    }
    let [mut victim, mut heir] = workers;
    victim.kill().await?;
    let killed_at = Instant::now();
    // Its session outlives it and would write all the same.
    sandbox.postgres().end_sessions(Some(&tenant.role)).await?;
    held.rollback().await?;
    assert_eq!(row(&sandbox, &tenant, 7).await?.version, 1, "nothing is written yet");
    comes_in_step(&sandbox, &producer).await?;
    let took = killed_at.elapsed();
    assert!(took <= CLAIM_TTL + TAKEOVER, "taken over after {took:?}");
    all_settled(&sandbox).await?;
    let audit = nothing_backwards(&sandbox, &tenant).await?;
    assert_eq!(audit.updates, 200);
    report(
        "SIGKILL of the only owner with 200 claims (claim TTL 4 s)",
        &format!("all written {:.2} s later", took.as_secs_f64()),
    );
    assert_eq!(heir.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_worker_frozen_beyond_its_lease_does_no_harm() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 60).await?;
    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    Audit::begin(&sandbox, &tenant).await?;
    let mut sleeper = brisk(&sandbox, "sleeper").start().await?;
    let mut producer = sandbox.producer();
    let held = hold_row(&pool, &tenant, 11).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    flush_hangs(&sandbox, &tenant).await?;
    let leases = scores(&sandbox, &tenant.keys.schedule()).await?;
    sleeper.signal(Signal::SIGSTOP)?;
    let frozen_at = Instant::now();

    // While it sleeps another one takes over, newer mutations come, and are claimed: its leases are not its own any more.
    let mut other = brisk(&sandbox, "other").start().await?;
    let some: Vec<usize> = (0..30).collect();
    producer.mutate(0, &some, DEFAULT_TTL).await?;
    eventually(SOON, "other leases", || async {
        let now = scores(&sandbox, &tenant.keys.schedule()).await?;
        ensure!(now.iter().all(|(member, score)| leases[member] != *score), "some are as they were");
        Ok(())
    })
    .await?;
    held.rollback().await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let taken_over = frozen_at.elapsed();

    // Newer ones again, held up in the other's flush while the sleeper wakes.
    let held = hold_row(&pool, &tenant, 11).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    flush_hangs(&sandbox, &tenant).await?;
    sleeper.signal(Signal::SIGCONT)?;
    // Its statement was ended by Postgres meanwhile: it tries to give back what it believes to hold.
    sleeper.logs("flushed").await?;
    let gave_back = sleeper.metric("balance_sync_balances_total", &[("outcome", "released")]).await?;
    assert_eq!(gave_back, 0.0, "it released what another worker held");
    held.rollback().await?;
    comes_in_step(&sandbox, &producer).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let audit = nothing_backwards(&sandbox, &tenant).await?;
    report(
        "SIGSTOP beyond the lease, then SIGCONT",
        &format!(
            "taken over {:.2} s after the stop, {} updates, each once, 0 backwards, 0 foreign claims given back",
            taken_over.as_secs_f64(),
            audit.updates
        ),
    );
    for worker in [&mut sleeper, &mut other] {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_harmless() -> Result<()> {
    let sandbox = Sandbox::start(SandboxOptions { proxied: true, ..options(1, 80) }).await?;
    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    Audit::begin(&sandbox, &tenant).await?;
    // Time enough to set the fault while the statement waits.
    let mut worker = brisk(&sandbox, "w")
        .set("postgres.statement_timeout", "4s")
        .set("collector.flush_deadline", "5s")
        .set("claim.ttl", "8s")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    // The statement is with Postgres and waits; from here on nothing that Postgres says gets through.
    let held = hold_row(&pool, &tenant, 5).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    flush_hangs(&sandbox, &tenant).await?;
    let proxy = sandbox.postgres_proxy().expect("it was asked for");
    proxy.set(Fault::DropResponses).await;
    held.rollback().await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(worker.metric("balance_synced", &[]).await?, 0.0, "the worker knows nothing of it");
    assert_eq!(scores(&sandbox, &tenant.keys.schedule()).await?.len(), 80);
    worker.reaches("balance_sync_tenant_degraded", &[("reason", "postgres_timeout")], 1.0).await?;
    proxy.set(Fault::Pass).await;
    let healed = Instant::now();
    all_settled(&sandbox).await?;
    let took = healed.elapsed();
    assert!(took <= Duration::from_secs(2) + BUSY, "settled after {took:?}");
    in_step(&sandbox, &producer).await?;
    let page = worker.metrics().await?;
    assert_eq!(page.sum("balance_sync_balances_total", &[("outcome", "stale")]), 80.0);
    assert_eq!(page.sum("balance_synced", &[]), 0.0, "written before, so nothing was left to write");
    let audit = nothing_backwards(&sandbox, &tenant).await?;
    assert_eq!(audit.updates, 80);
    report(
        "commit whose answer was lost",
        &format!(
            "80 rows written once, repeated as stale, settled {:.2} s after the network healed",
            took.as_secs_f64()
        ),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_mutation_during_a_flush_is_not_removed_by_it() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    // One balance in flight and one in the buffer: the worker claims nothing more, so that the newer mutation of the first
    // stands in the schedule alone, in no worker's memory. (`system` has the same with a worker that claims it.)
    let mut worker = Worker::of(&sandbox)
        .set("collector.batch_size", "1")
        .set("collector.pipeline_depth", "1")
        .set("collector.idle_backoff_max", "100ms")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    let held = hold_row(&pool, &tenant, 3).await?;
    producer.mutate(0, &[3], DEFAULT_TTL).await?;
    flush_hangs(&sandbox, &tenant).await?;
    producer.mutate(0, &[4], DEFAULT_TTL).await?;
    eventually(SOON, "both claimed", || async {
        let held = claimed(&sandbox, &tenant).await?;
        ensure!(held == 2, "{held}");
        Ok(())
    })
    .await?;
    producer.mutate(0, &[3], DEFAULT_TTL).await?;
    assert_eq!(claimed(&sandbox, &tenant).await?, 1, "the newer one is due and claimed by no worker");
    held.rollback().await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(row(&sandbox, &tenant, 3).await?.version, 3);
    assert_eq!(worker.metric("balance_sync_balances_total", &[("outcome", "kept")]).await?, 1.0);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
