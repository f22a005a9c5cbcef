//! G1: an outage of Postgres, however long, and the way back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::{LoadTenant, Producer, TenantKeys};
use balance_sync_sandbox::{SandboxTenant, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step, scores};
use balance_sync_tests::{Metrics, SOON, Worker};
use futures::StreamExt as _;

use crate::{BUSY, brisk, report};

/// What the producer's values live for.
const TTL: Duration = Duration::from_secs(5);
/// To what a life is raised: shorter than the outage, so that raising it once would not be enough.
const FLOOR: &str = "13s";
/// How long Postgres is away.
const OUTAGE: Duration = Duration::from_secs(20);
/// When failed balances are tried again at the latest, once Postgres is back (`postgres.backoff_max`).
const RETRIED_WITHIN: Duration = Duration::from_secs(2);
/// Balances of each tenant: enough that none is mutated twice.
const BALANCES: usize = 160;
/// Between mutations during the outage, each of balances that are not touched again.
const TICK: Duration = Duration::from_millis(500);

fn expired(metrics: &Metrics) -> f64 {
    metrics.sum("balance_sync_balances_total", &[("outcome", "expired")])
}

#[tokio::test]
async fn an_outage_longer_than_the_values_live_loses_nothing() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, BALANCES).await?;
    let tenants = sandbox.tenants();
    let mut worker = brisk(&sandbox, "w").set("claim.protect_floor", FLOOR).start().await?;
    let mut loads: Vec<LoadTenant> = tenants.iter().map(SandboxTenant::load).collect();
    // The ledger of this one writes under the other form of its id.
    assert_eq!(tenants[1].id.len(), 36, "{} is no UUID", tenants[1].id);
    loads[1].keys = TenantKeys::tenant(&tenants[1].id.replace('-', ""));
    let keys: Vec<TenantKeys> = loads.iter().map(|load| load.keys.clone()).collect();
    let mut producer = Producer::new(&sandbox.ledger_redis_url(), loads);
    producer.mutate_each(TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;

    sandbox.postgres().stop_immediate().await?;
    let begun = Instant::now();
    // 50 balances at once, and from then on two each half second: each of them only now.
    let first: Vec<usize> = (0..50).collect();
    for tenant in 0..tenants.len() {
        producer.mutate(tenant, &first, TTL).await?;
    }
    let mut mutations = tenants.len() * first.len();
    let mut ticks = tokio::time::interval(TICK);
    let mut next = first.len();
    while begun.elapsed() < OUTAGE {
        ticks.tick().await;
        for tenant in 0..tenants.len() {
            let pair = [next, next + 1].map(|balance| balance % BALANCES);
            mutations += producer.mutate(tenant, &pair, TTL).await?.len();
        }
        next += 2;
    }
    ensure!(next <= BALANCES, "a balance was mutated twice, which would have renewed its life");
    let outage = begun.elapsed();
    worker.reaches("balance_sync_tenant_degraded", &[("reason", "postgres_connection")], 3.0).await?;
    let mut shortest = i64::MAX;
    let mut redis = sandbox.redis().connect().await?;
    for keys in &keys {
        let waiting = scores(&sandbox, &keys.schedule()).await?;
        assert_eq!(waiting.len(), next, "all of them wait");
        for member in waiting.keys() {
            let left: i64 = ::redis::cmd("PTTL").arg(member).query_async(&mut redis).await?;
            ensure!(left > 0, "{member} has expired");
            shortest = shortest.min(left);
        }
    }

    let page = worker.metrics().await?;
    let shown = page.sum("balance_sync_shortest_life_seconds", &[("tenant_id", &tenants[0].id)]);
    assert!(shown > 0.0 && shown <= 13.0, "the shortest life is shown as {shown} s");

    sandbox.postgres().start_again().await?;
    let back = Instant::now();
    comes_in_step(&sandbox, &producer).await?;
    let caught_up = back.elapsed();
    all_settled(&sandbox).await?;
    assert_eq!(expired(&worker.metrics().await?), 0.0);
    assert!(caught_up <= RETRIED_WITHIN + BUSY, "all written {caught_up:?} after Postgres was back");
    report(
        &format!("postgres away for {:.1} s, values live {TTL:?}, floor {FLOOR}", outage.as_secs_f64()),
        &format!(
            "{mutations} mutations, 0 lost, 0 expired, shortest life left {:.1} s, all written {:.2} s after the return",
            shortest as f64 / 1e3,
            caught_up.as_secs_f64()
        ),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// How often the longest backoff was met.
async fn backs_off(worker: &Worker, tenants: usize) -> Result<()> {
    eventually(SOON, "the longest backoff of every tenant", || async {
        let failed = worker.log().lines();
        let long = failed.iter().filter(|line| {
            line.message == "tenant still degraded" && line.fields["failures"].as_u64() >= Some(6)
        });
        let by: std::collections::BTreeSet<_> = long.filter_map(|line| line.tenant_id.clone()).collect();
        ensure!(by.len() == tenants, "{by:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn failed_balances_are_retried_within_two_seconds_of_the_return() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(8, 100).await?;
    // The timeouts and backoffs a worker has by default: they are what is promised.
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(Duration::from_secs(60)).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    sandbox.postgres().stop_immediate().await?;
    producer.mutate_each(Duration::from_secs(60)).await?;
    // The worst moment: when waits have become as long as they get.
    backs_off(&worker, 8).await?;
    sandbox.postgres().start_again().await?;
    let back = Instant::now();
    comes_in_step(&sandbox, &producer).await?;
    let took = back.elapsed();
    assert!(took <= RETRIED_WITHIN + BUSY, "the last of 8 tenants was written after {took:?}");
    all_settled(&sandbox).await?;
    report(
        "postgres back after an outage (8 tenants, longest backoff)",
        &format!("the last of 800 balances written {:.2} s later", took.as_secs_f64()),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// A tenant's rows at this version or later.
pub(crate) async fn rows_from(
    sandbox: &balance_sync_sandbox::Sandbox,
    tenant: &SandboxTenant,
    version: i64,
) -> Result<usize> {
    let rows = balance_sync_tests::ledger::rows(sandbox, tenant).await?;
    Ok(rows.values().filter(|row| row.version >= version).count())
}

#[tokio::test]
async fn what_a_failover_lost_is_written_again() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 200).await?;
    let tenants = sandbox.tenants();
    let mut producer = sandbox.producer();
    let mut worker = brisk(&sandbox, "w").start().await?;
    let all: Vec<usize> = (0..200).collect();
    // The third tenant is not written any more after this.
    for tenant in 0..3 {
        producer.mutate(tenant, &all, Duration::from_secs(600)).await?;
    }
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(worker.stop().await?.code, Some(0));

    // What is written from here on never reaches the replica.
    sandbox.postgres().copy_to_replica().await?;
    let mut worker = brisk(&sandbox, "w").start().await?;
    for tenant in 0..3 {
        producer.mutate(tenant, &all, Duration::from_secs(600)).await?;
    }
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let version = producer.tenants()[0].versions[0];

    sandbox.postgres().fail_over().await?;
    assert_eq!(rows_from(&sandbox, &tenants[0], version).await?, 0, "the replica lags");
    // The ledger of one tenant goes on; the others' is silent.
    producer.mutate(0, &[0], Duration::from_secs(600)).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    for tenant in &tenants {
        assert_eq!(rows_from(&sandbox, tenant, version).await?, 200, "{}", tenant.id);
    }
    for tenant in &tenants {
        let shown = worker.get(&format!("/api/v1/tenants/{}", tenant.id)).await?.1;
        ensure!(shown.contains("postgres_replaced"), "{shown}");
    }
    // Healthy again, once all of it is compared.
    eventually(SOON, "the verdict healthy", || async {
        let overview: serde_json::Value = serde_json::from_str(&worker.get("/api/v1/overview").await?.1)?;
        ensure!(overview["verdict"] == "healthy", "{}", overview["reasons"]);
        Ok(())
    })
    .await?;
    let metrics = worker.metrics().await?;
    assert_eq!(expired(&metrics), 0.0);
    // The balance that was mutated after the failover may have been written before it was compared.
    let behind = metrics.sum("balance_sync_failover_behind_total", &[]);
    assert!(behind == 600.0 || behind == 599.0, "{behind} behind");

    // Again, and the worker ends before: another one notices, although the ledgers are silent.
    sandbox.postgres().copy_to_replica().await?;
    producer.mutate(1, &all, Duration::from_secs(600)).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    sandbox.postgres().fail_over().await?;
    assert_eq!(rows_from(&sandbox, &tenants[1], version + 1).await?, 0, "the replica lags");
    let mut worker = brisk(&sandbox, "w2").start().await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(rows_from(&sandbox, &tenants[1], version + 1).await?, 200);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// So that it takes neither server from the writes, however much a failover has affected.
#[tokio::test]
async fn the_comparison_after_a_failover_pauses_after_each_page() -> Result<()> {
    const BALANCES: usize = 1_100;
    /// Balances of one page at most.
    const PAGE: usize = 500;
    /// Seconds between two pages: those of the pause, but for the precision of the server's clock.
    const APART: f64 = 0.049;
    let sandbox = balance_sync_tests::sandbox(2, BALANCES).await?;
    let mut worker = brisk(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    let all: Vec<usize> = (0..BALANCES).collect();
    for tenant in 0..2 {
        producer.mutate(tenant, &all, Duration::from_secs(600)).await?;
    }
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    // Nothing is lost, so the pages follow each other as fast as they can.
    sandbox.postgres().copy_to_replica().await?;

    let monitor = ::redis::Client::open(sandbox.redis().url())?.get_async_monitor().await?;
    let mut seen = monitor.into_on_message::<String>();
    sandbox.postgres().fail_over().await?;
    worker.reaches("balance_sync_failover_checks_total", &[], 2.0).await?;
    let mut redis = sandbox.redis().connect().await?;
    ::redis::cmd("SET").arg("the end").arg(1).query_async::<()>(&mut redis).await?;
    let mut pages: Vec<(f64, usize)> = Vec::new();
    while let Some(line) = seen.next().await.filter(|line| !line.contains("\"the end\"")) {
        let keys = line.matches(":balance:{transactions}:").count();
        if keys > 0 && line.contains("] \"MGET\" ") && !line.contains(" lua]") {
            pages.push((line.split(' ').next().unwrap_or_default().parse()?, keys));
        }
    }
    let compared: usize = pages.iter().map(|(_, keys)| keys).sum();
    ensure!(compared >= 2 * BALANCES, "{compared} balances were read: {pages:?}");
    ensure!(pages.iter().all(|(_, keys)| *keys <= PAGE), "{pages:?}");
    let gaps: Vec<f64> = pages.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    let shortest = gaps.iter().copied().fold(f64::MAX, f64::min);
    ensure!(shortest >= APART, "pages are {shortest} s apart: {pages:?}");
    report(
        &format!("a failover, {} balances of 2 tenants to be compared", 2 * BALANCES),
        &format!("{} pages of {PAGE} at most, at least {:.0} ms apart", pages.len(), shortest * 1e3),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
