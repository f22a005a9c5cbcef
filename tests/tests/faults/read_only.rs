//! A Postgres server that has become read-only and stays so, with very many tenants.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Producer};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions, ServiceRoute, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{SOON, Worker, options};

use crate::report;

const TENANTS: usize = 300;
/// Failed tries of all tenants after which the calls are counted: some two of each.
const TRIES: f64 = 600.0;
/// Look-ups per second because of one server, as `docs/reliability.md` promises.
const RATE: f64 = 2.0;
/// Those that may come at once.
const AT_ONCE: f64 = 10.0;

async fn set_read_only(sandbox: &Sandbox, change: &str) -> Result<()> {
    sandbox.postgres().execute("postgres", &format!("ALTER SYSTEM {change}")).await?;
    sandbox.postgres().execute("postgres", "SELECT pg_reload_conf()").await
}

/// So many logins take a busy machine longer than other tests wait.
async fn all_in_step(sandbox: &Sandbox, producer: &Producer) -> Result<()> {
    for _ in 0..3 {
        if comes_in_step(sandbox, producer).await.is_ok() {
            break;
        }
    }
    comes_in_step(sandbox, producer).await?;
    all_settled(sandbox).await
}

#[tokio::test]
async fn a_server_that_stays_read_only_costs_the_tenant_service_two_calls_a_second() -> Result<()> {
    let wanted = SandboxOptions { isolation: Isolation::Schema, ..options(TENANTS, 1) };
    let sandbox = Sandbox::start(wanted).await?;
    // Nothing but the failures makes the worker look settings up. So many logins at once take a busy machine longer than the
    // deadlines it has by default, and a login that isn't answered in time says nothing about the server.
    let mut worker = Worker::of(&sandbox)
        .set("tenants.service.settings_ttl", "1h")
        .set("postgres.connect_timeout", "1m")
        .set("postgres.acquire_timeout", "2m")
        .set("collector.flush_deadline", "3m")
        .set("claim.ttl", "270s")
        .set("admin.metrics_tenants", "0")
        .set("log.level", "warn,balance_sync_admin=info")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    all_in_step(&sandbox, &producer).await?;

    set_read_only(&sandbox, "SET default_transaction_read_only = on").await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    worker.reaches("balance_sync_tenant_degraded", &[], TENANTS as f64).await?;
    // Some may wait for a connection at any moment.
    let read_only = [("reason", "postgres_read_only")];
    worker.reaches("balance_sync_tenant_degraded", &read_only, 0.9 * TENANTS as f64).await?;
    let mut measured = Vec::new();
    for window in 0..3 {
        let (begun, calls) = (Instant::now(), sandbox.service().calls(ServiceRoute::Connections));
        let tries = worker.metric("balance_sync_batch_failures_total", &[]).await?;
        worker.reaches("balance_sync_batch_failures_total", &[], tries + TRIES).await?;
        let calls = (sandbox.service().calls(ServiceRoute::Connections) - calls) as f64;
        let took = begun.elapsed();
        // Those at once are used up in the first.
        let allowed = RATE * took.as_secs_f64() + if window == 0 { AT_ONCE } else { 1.0 };
        ensure!(calls <= allowed, "window {window}: {calls} calls in {took:?}");
        measured.push((calls, took));
    }
    ensure!(measured.last().is_some_and(|(calls, _)| *calls > 0.0), "none was looked up: {measured:?}");

    set_read_only(&sandbox, "RESET default_transaction_read_only").await?;
    all_in_step(&sandbox, &producer).await?;
    eventually(SOON, "no degraded tenant", || async {
        let count = worker.metric("balance_sync_tenant_degraded", &[]).await?;
        ensure!(count == 0.0, "there are {count}");
        Ok(())
    })
    .await?;
    let shown: Vec<String> = measured
        .iter()
        .map(|(calls, took): &(f64, Duration)| format!("{:.1}", calls / took.as_secs_f64()))
        .collect();
    report(
        &format!("a server read-only, {TENANTS} tenants that try again, {TRIES} tries at a time"),
        &format!("calls to the tenant service per second: {}", shown.join(", ")),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
