//! An ill tenant service changes nothing about what is served.

use std::time::Duration;

use anyhow::{Context, Result};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{ServiceFault, ServiceRoute, eventually};
use balance_sync_tests::ledger::{comes_in_step, scores};
use balance_sync_tests::{SOON, Worker, WorkerBuilder};
use serde_json::json;

const FAILURES: &str = "balance_sync_tenant_list_failures_total";

/// A worker that asks often, so that every fault is met by the list and by the settings.
fn asking_often(sandbox: &balance_sync_sandbox::Sandbox) -> WorkerBuilder {
    Worker::of(sandbox)
        .set("tenants.poll_interval", "300ms")
        .set("tenants.service.request_timeout", "500ms")
        .set("tenants.service.connect_timeout", "500ms")
        .set("tenants.service.retries", "0")
        .set("tenants.service.breaker_threshold", "3")
        .set("tenants.service.breaker_timeout", "300ms")
        .set("tenants.service.settings_ttl", "200ms")
        .set("collector.idle_backoff_max", "100ms")
}

#[tokio::test]
async fn an_ill_service_changes_nothing() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 10).await?;
    let mut worker = asking_often(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let faults = [
        ServiceFault::Status(500),
        ServiceFault::Status(503),
        ServiceFault::Garbage,
        ServiceFault::EmptyBody,
        ServiceFault::HugeBody(11_000_000),
        ServiceFault::Hang,
    ];
    for fault in faults {
        let failures = worker.metric(FAILURES, &[]).await?;
        sandbox.service().set_faults(fault.clone());
        worker.reaches(FAILURES, &[], failures + 2.0).await.with_context(|| format!("{fault:?}"))?;
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(&sandbox, &producer).await.with_context(|| format!("{fault:?}"))?;
        assert_eq!(worker.get("/readyz").await?.0, 200, "{fault:?}");
    }
    // Slow, but within the time that a request may take: no failure.
    sandbox.service().set_faults(ServiceFault::Slow(Duration::from_millis(250)));
    let calls = sandbox.service().calls(ServiceRoute::List);
    eventually(SOON, "slow answers", || async { sandbox.service().calls(ServiceRoute::List) >= calls + 3 })
        .await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;

    // Well again: a tenant that comes now is found.
    sandbox.service().set_faults(ServiceFault::None);
    sandbox.add_tenant("after", balance_sync_sandbox::TenantIsolation::Database).await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let metrics = worker.metrics().await?;
    let lives = [
        metrics.sum("balance_sync_collector_starts_total", &[]),
        metrics.sum("balance_sync_collector_stops_total", &[]),
        metrics.sum("balance_sync_collector_reaped_total", &[]),
    ];
    assert_eq!(lives, [4.0, 0.0, 0.0], "no collector was stopped or started again");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn an_empty_list_after_a_full_one_must_repeat_itself() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(4, 10).await?;
    let mut worker = asking_often(&sandbox)
        .set("tenants.poll_interval", "700ms")
        .set("tenants.confirm_polls", "4")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    let calls = || sandbox.service().calls(ServiceRoute::List);

    let before = calls();
    sandbox.service().set_fault(ServiceRoute::List, ServiceFault::EmptyList);
    worker.reaches("balance_sync_removals_held", &[], 4.0).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    worker.reaches("balance_sync_collector_stops_total", &[], 4.0).await?;
    assert!(calls() - before >= 4, "stopped after {} empty lists", calls() - before);
    assert_eq!(worker.metric("balance_sync_tenants", &[]).await?, 0.0);

    // No tenant is served now, and nothing is lost.
    producer.mutate_each(DEFAULT_TTL).await?;
    let polls = calls();
    eventually(SOON, "two more polls", || async { calls() >= polls + 2 }).await?;
    for tenant in sandbox.tenants() {
        assert_eq!(scores(&sandbox, &tenant.keys.schedule()).await?.len(), 10);
    }
    sandbox.service().set_faults(ServiceFault::None);
    comes_in_step(&sandbox, &producer).await?;

    // A service that stammers is not believed: an empty list once, then an error, and so on.
    let stops = worker.metric("balance_sync_collector_stops_total", &[]).await?;
    for fault in [ServiceFault::EmptyList, ServiceFault::Status(500)].into_iter().cycle().take(8) {
        let polls = calls();
        sandbox.service().set_fault(ServiceRoute::List, fault);
        eventually(SOON, "one more poll", || async { calls() > polls }).await?;
    }
    sandbox.service().set_faults(ServiceFault::None);
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(worker.metric("balance_sync_collector_stops_total", &[]).await?, stops);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn ids_that_are_not_valid_are_refused_one_by_one() -> Result<()> {
    const REFUSED: &str = "listed tenant refused, it is not served";
    let sandbox = balance_sync_tests::sandbox(3, 10).await?;
    let long = "x".repeat(257);
    let bad = ["", "../etc", "a:b", "-leading", "with blank", "jo\u{e3}o", &long];
    let mut listed: Vec<_> = bad.iter().map(|id| json!({"id": id, "status": "active"})).collect();
    for (position, tenant) in sandbox.tenants().iter().enumerate() {
        listed.insert(2 * position, json!({"id": tenant.id, "name": "good", "status": "active"}));
    }
    sandbox.service().set_list_raw(Some(&json!(listed).to_string()));
    let mut worker = asking_often(&sandbox).expect_error(REFUSED).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(worker.metric("balance_sync_tenants", &[]).await?, 3.0);
    assert_eq!(worker.metric("balance_sync_tenants_refused", &[]).await?, bad.len() as f64);
    let polls = sandbox.service().calls(ServiceRoute::List);
    eventually(SOON, "two more polls", || async { sandbox.service().calls(ServiceRoute::List) >= polls + 2 })
        .await?;
    let refusals: Vec<_> = worker.log().lines().into_iter().filter(|line| line.message == REFUSED).collect();
    assert_eq!(refusals.len(), bad.len(), "each once, not at every poll");
    for refusal in &refusals {
        assert!(refusal.level == "ERROR" && refusal.fields["reason"].as_str().is_some(), "{}", refusal.raw);
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
