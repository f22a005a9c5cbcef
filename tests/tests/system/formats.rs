//! Values that can't be read and are no fault: a format of a later release, and a deletion marker in the place of a balance.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::eventually;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, TenantKeys, put_raw};
use balance_sync_tests::ledger::{all_settled, comes_in_step, row, scores};
use balance_sync_tests::{SOON, Worker};
use nix::sys::signal::Signal;
use redis::AsyncCommands;
use serde_json::Value;

const WORDS: &str = "a format that this release doesn't know";

async fn verdict(worker: &Worker, wanted: &str) -> Result<()> {
    eventually(SOON, &format!("the verdict {wanted}"), || async {
        let overview: Value = serde_json::from_str(&worker.get("/api/v1/overview").await?.1)?;
        ensure!(overview["verdict"] == wanted, "{}: {}", overview["verdict"], overview["reasons"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_unknown_format_waits_scheduled_and_alive_for_a_worker_that_knows_it() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 20).await?;
    let tenant = sandbox.tenants().swap_remove(0);
    let mut worker = Worker::of(&sandbox).set("claim.put_off", "1s").expect_error(WORDS).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    verdict(&worker, "healthy").await?;

    // A ledger of a later release writes a balance.
    worker.freeze(sandbox.redis()).await?;
    producer.mutate(0, &[0], DEFAULT_TTL).await?;
    let schedule = producer.tenants()[0].keys.schedule();
    let (member, _) = scores(&sandbox, &schedule).await?.pop_first().context("a scheduled member")?;
    let mut redis = sandbox.redis().connect().await?;
    let known: String = redis.get(&member).await?;
    redis.set_ex::<_, _, ()>(&member, r#"{"SchemaVersion":3,"balance":{}}"#, 60).await?;
    worker.signal(Signal::SIGCONT)?;

    let id = ("tenant_id", tenant.id.as_str());
    worker.reaches("balance_sync_tenant_degraded", &[id, ("reason", "value_unknown_format")], 1.0).await?;
    // It is tried again and again, reported once, alive, scheduled, and not in quarantine.
    worker.reaches("balance_sync_balances_total", &[id, ("outcome", "unknown_format")], 3.0).await?;
    assert!(scores(&sandbox, &schedule).await?.contains_key(&member));
    let life: i64 = redis.ttl(&member).await?;
    assert!(life > 600, "its value lives {life} s");
    let lines = worker.log().lines().into_iter().filter(|line| line.message.contains(WORDS)).count();
    assert_eq!(lines, 1);
    assert_eq!(worker.metric("balance_sync_balances_total", &[("outcome", "quarantined")]).await?, 0.0);
    verdict(&worker, "degraded").await?;
    let overview: Value = serde_json::from_str(&worker.get("/api/v1/overview").await?.1)?;
    let said = overview["reasons"].to_string();
    assert!(said.contains("Some balances of 1 tenant can't be written (value_unknown_format)"), "{said}");

    // The others of the tenant are written meanwhile.
    let others: Vec<usize> = (1..20).collect();
    producer.mutate(0, &others, DEFAULT_TTL).await?;
    eventually(SOON, "the others' rows", || async {
        for at in &others {
            let version = row(&sandbox, &tenant, *at).await?.version;
            ensure!(version == producer.tenants()[0].versions[*at], "balance {at} is at {version}");
        }
        Ok(())
    })
    .await?;

    // A worker that knows the format is as good as a value that this one knows. It is not scheduled again.
    redis.set_ex::<_, _, ()>(&member, known, 600).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    verdict(&worker, "healthy").await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_deletion_marker_in_the_place_of_a_balance_is_waited_for_quietly() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 3).await?;
    let tenant = sandbox.tenants().swap_remove(0);
    let mut worker = Worker::of(&sandbox).set("claim.put_off", "1s").start().await?;
    let keys = TenantKeys::tenant(&tenant.id);
    let (organization, ledger) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let member = format!("{}balance:{{transactions}}:{organization}:{ledger}:@a#key:deleted", keys.prefix());
    let mut redis = sandbox.redis().connect().await?;
    put_raw(&mut redis, &keys.schedule(), member.as_bytes(), b"0190b5f2-token", Some(DEFAULT_TTL)).await?;
    let id = ("tenant_id", tenant.id.as_str());
    worker.reaches("balance_sync_balances_total", &[id, ("outcome", "deletion_marker")], 2.0).await?;
    assert!(scores(&sandbox, &keys.schedule()).await?.contains_key(&member));
    assert_eq!(worker.metric("balance_sync_balances_total", &[("outcome", "quarantined")]).await?, 0.0);
    assert_eq!(worker.metric("balance_sync_tenant_degraded", &[]).await?, 0.0);
    verdict(&worker, "healthy").await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
