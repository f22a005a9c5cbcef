//! Many more tenants at work than connections, each with a role of its own: each write needs a login.

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Progress};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::ledger::all_settled;
use balance_sync_tests::{SOON, Worker, options};
use tokio_util::sync::CancellationToken;

const TENANTS: usize = 150;
/// Shorter than a round of the queue, in which a connection stays with each for a little, and long enough for a login on a busy machine.
const PATIENCE: &str = "3s";

#[tokio::test]
async fn who_waits_in_a_queue_that_moves_is_not_degraded_and_who_waits_in_one_that_stands_still_is()
-> Result<()> {
    let wanted = SandboxOptions { isolation: Isolation::Schema, ..options(TENANTS, 2) };
    let sandbox = Sandbox::start(wanted).await?;
    let mut worker = Worker::of(&sandbox)
        .set("postgres.connections_per_server", "1")
        .set("postgres.connections_per_tenant", "1")
        .set("postgres.acquire_timeout", PATIENCE)
        .set("postgres.connect_timeout", PATIENCE)
        .start()
        .await?;
    let degraded = [("state", "degraded")];
    let mut producer = sandbox.producer();
    let (cancel, progress) = (CancellationToken::new(), Progress::new(TENANTS));
    let load = LoadOptions { rate: 500.0, ..LoadOptions::default() };
    let waits = async {
        // All of them at once, over and over: some wait for a second and longer, and it shows.
        let ended = eventually(SOON, "a wait that is shown", || async {
            ensure!(worker.metric("balance_sync_connection_waiting_tenants", &[]).await? >= 1.0);
            ensure!(worker.metric("balance_sync_connection_wait_seconds", &[]).await? > 3.0);
            let (_, body) = worker.get("/api/v1/tenants?per_page=200").await?;
            let body: serde_json::Value = serde_json::from_str(&body)?;
            let rows = body["tenants"].as_array().cloned().unwrap_or_default();
            let waiting = rows.iter().find(|row| row["connection_wait_seconds"].is_number());
            ensure!(waiting.is_some_and(|row| row["state"] == "syncing"), "{waiting:?}");
            anyhow::Ok(())
        })
        .await;
        cancel.cancel();
        ended
    };
    let (loaded, waited) = tokio::join!(producer.run(&load, &progress, &cancel), waits);
    waited?;
    assert_eq!(loaded?.errors, 0);
    all_settled(&sandbox).await?;
    assert!(worker.log().find("tenant degraded").is_none(), "{}", worker.log().tail());
    assert_eq!(worker.metric("balance_sync_batch_failures_total", &[]).await?, 0.0);

    // Nothing is written any more: that is a failure, and shown as one.
    sandbox.postgres().pause()?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let all = TENANTS as f64;
    worker.reaches("balance_sync_tenants", &degraded, all).await?;
    sandbox.postgres().resume()?;
    all_settled(&sandbox).await?;
    eventually(SOON, "all well", || async {
        ensure!(worker.metric("balance_sync_tenants", &degraded).await? == 0.0);
        anyhow::Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
