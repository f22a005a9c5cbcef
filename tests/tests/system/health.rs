//! What an orchestrator asks: alive, ready, and the numbers it graphs.

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{ServiceFault, eventually};
use balance_sync_tests::ledger::{comes_in_step, flush_hangs, hold_row};
use balance_sync_tests::{SOON, Worker};
use nix::sys::signal::Signal;

#[tokio::test]
async fn it_is_ready_from_the_first_reconcile_to_the_drain() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    sandbox.service().set_faults(ServiceFault::Hang);
    let mut worker = Worker::of(&sandbox)
        .set("tenants.service.request_timeout", "400ms")
        .set("tenants.service.connect_timeout", "400ms")
        .set("tenants.service.breaker_timeout", "300ms")
        .start_unready()
        .await?;
    worker.reaches("balance_sync_tenant_list_failures_total", &[], 1.0).await?;
    let (status, body) = worker.get("/readyz").await?;
    assert_eq!(status, 503, "{body}");
    assert_eq!(worker.get("/livez").await?.0, 200);

    sandbox.service().set_faults(ServiceFault::None);
    eventually(SOON, "readiness", || async {
        ensure!(worker.get("/readyz").await?.0 == 200);
        anyhow::Ok(())
    })
    .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let metrics = worker.metrics().await?;
    for name in [
        "balance_synced",
        "balance_sync_batch_failures_total",
        "balance_sync_cleanup_failures_total",
        "balance_sync_tenant_skip_total",
    ] {
        assert!(metrics.has(name), "{name} is missing");
    }
    assert_eq!(metrics.sum("balance_synced", &[]), 20.0);

    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    let held = hold_row(&pool, &tenant, 0).await?;
    producer.mutate(0, &[0], DEFAULT_TTL).await?;
    flush_hangs(&sandbox, &tenant).await?;
    worker.signal(Signal::SIGTERM)?;
    eventually(SOON, "no readiness while draining", || async {
        let (status, body) = worker.get("/readyz").await?;
        ensure!(status == 503 && body.contains("draining"), "{status} {body}");
        anyhow::Ok(())
    })
    .await?;
    assert_eq!(worker.get("/livez").await?.0, 200, "a drain is no reason for a restart");
    held.rollback().await?;
    assert_eq!(worker.wait().await?.code, Some(0));
    comes_in_step(&sandbox, &producer).await?;
    Ok(())
}

#[tokio::test]
async fn no_secret_shows_at_the_finest_log_level() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let mut worker = Worker::of(&sandbox).set("log.level", "trace").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    for page in ["/metrics", "/readyz", "/livez", "/"] {
        let (_, body) = worker.get(page).await?;
        for tenant in sandbox.tenants() {
            let password = balance_sync_tests::worker::password_in(tenant.database_url());
            ensure!(password.is_some_and(|password| !body.contains(&password)), "{page}");
        }
    }
    assert!(worker.log().lines().iter().any(|line| line.level == "TRACE"));
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
