//! What a worker holds, or has postponed, when a failover of Postgres loses its rows.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use balance_sync_sandbox::{Fault, Proxy, Sandbox, balance_table, eventually};
use balance_sync_tests::ledger::{all_settled, claimed, comes_in_step, redis_time};
use balance_sync_tests::{SOON, Worker, WorkerBuilder};

use crate::poison::quarantine;
use crate::postgres::rows_from;
use crate::{brisk, report};

const BALANCES: usize = 20;
const TTL: Duration = Duration::from_secs(7_200);
/// Longer than the test: only the comparison makes anything due that is leased or postponed.
const LEASE: Duration = Duration::from_secs(1_200);

/// A worker whose leases don't end within the test, and whose statements wait for a frozen server.
fn patient(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    Worker::of(sandbox)
        .set("worker.name", name)
        .set("worker.lease", "1s")
        .set("claim.ttl", "20m")
        .set("claim.protect_floor", "61m")
        .set("collector.flush_deadline", "2m")
        .set("collector.idle_backoff_max", "100ms")
        .set("postgres.acquire_timeout", "1m")
        .set("postgres.statement_timeout", "1m")
        .set("redis.response_timeout", "1s")
}

/// A worker writes, and its settling doesn't reach Redis: the members keep its lease. Then a standby without these rows is promoted. Another
/// worker compares and writes them; the settling, which arrives after that, removes nothing unwritten.
#[tokio::test]
async fn what_is_held_or_postponed_at_a_failover_is_made_due_again() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, BALANCES).await?;
    let tenants = sandbox.tenants();
    let mut producer = sandbox.producer();
    let mut worker = patient(&sandbox, "before").start().await?;
    producer.mutate_each(TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    sandbox.postgres().copy_to_replica().await?;

    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], sandbox.redis().port()))).await?;
    let url = sandbox.redis().worker_url_on(proxy.addr().port());
    let mut holder = patient(&sandbox, "holder").set("redis.url", &url).start().await?;
    // The last balance of each tenant is written and settled, and then postponed as one is whose row is locked.
    let (last, rest): (usize, Vec<usize>) = (BALANCES - 1, (0..BALANCES - 1).collect());
    for tenant in 0..tenants.len() {
        producer.mutate(tenant, &[last], TTL).await?;
    }
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let mut redis = sandbox.redis().connect().await?;
    let later = redis_time(&mut redis).await?.floor() + LEASE.as_secs_f64();
    for tenant in &tenants {
        let member = tenant.keys.member(&tenant.balances[last]);
        let mut postpone = ::redis::cmd("ZADD");
        // Half-way between two microseconds.
        postpone.arg(tenant.keys.schedule()).arg(format!("{later}.0000005")).arg(member);
        postpone.query_async::<()>(&mut redis).await?;
    }
    // The others are claimed, and their write waits. Before it is executed the way to Redis is closed.
    sandbox.postgres().pause()?;
    for tenant in 0..tenants.len() {
        producer.mutate(tenant, &rest, TTL).await?;
    }
    for tenant in &tenants {
        eventually(SOON, "claims", || async {
            let held = claimed(&sandbox, tenant).await?;
            ensure!(held == BALANCES, "{held}");
            Ok(())
        })
        .await?;
    }
    proxy.set(Fault::BlackHole).await;
    sandbox.postgres().resume()?;
    comes_in_step(&sandbox, &producer).await?;
    let version = producer.tenants()[0].versions[0];

    sandbox.postgres().fail_over().await?;
    for tenant in &tenants {
        assert_eq!(rows_from(&sandbox, tenant, version).await?, 0, "the replica lags");
        assert_eq!(claimed(&sandbox, tenant).await?, BALANCES, "none of them is due");
    }
    let mut worker = patient(&sandbox, "after").start().await?;
    comes_in_step(&sandbox, &producer).await?;
    // Counted after they have been scheduled again, and so perhaps after they were written.
    let behind = (tenants.len() * BALANCES) as f64;
    eventually(SOON, "all to be counted as behind", || async {
        let counted = worker.metrics().await?.sum("balance_sync_failover_behind_total", &[]);
        ensure!(counted == behind, "{counted}");
        Ok(())
    })
    .await?;

    // What the former holder has sent is executed now.
    proxy.set(Fault::Pass).await;
    all_settled(&sandbox).await?;
    comes_in_step(&sandbox, &producer).await?;
    report(
        &format!("a failover while a worker held {} balances and {} were postponed", 2 * rest.len(), 2),
        "all of them due at once, and written",
    );
    assert_eq!(holder.stop().await?.code, Some(0));
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// Rows that a standby never had: created after its last copy, or restored from a backup without them. A row that is deleted is no loss,
/// although Redis still holds its value.
#[tokio::test]
async fn balances_whose_rows_a_failover_lost_altogether_are_listed() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, BALANCES).await?;
    let tenant = sandbox.tenants().remove(0);
    let table = balance_table(tenant.schema.as_deref());
    let id = |at: usize| tenant.balances[at].id;
    let mut producer = sandbox.producer();
    let mut worker = brisk(&sandbox, "w").start().await?;
    producer.mutate_each(TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;

    let (lost, closed) = ([0, 1], 2);
    let execute = async |sql: String| sandbox.postgres().execute(&tenant.database, &sql).await;
    let ids = format!("'{}', '{}'", id(lost[0]), id(lost[1]));
    execute(format!("CREATE TABLE kept AS SELECT * FROM {table} WHERE id IN ({ids})")).await?;
    execute(format!("DELETE FROM {table} WHERE id IN ({ids})")).await?;
    execute(format!("UPDATE {table} SET deleted_at = now() WHERE id = '{}'", id(closed))).await?;
    sandbox.postgres().copy_to_replica().await?;
    execute(format!("INSERT INTO {table} SELECT * FROM kept")).await?;
    let rest: Vec<usize> = (0..BALANCES).filter(|at| *at != closed).collect();
    producer.mutate(0, &rest, TTL).await?;
    let version = producer.tenants()[0].versions[0];
    eventually(SOON, "the rows", || async {
        let written = rows_from(&sandbox, &tenant, version).await?;
        ensure!(written == rest.len(), "{written}");
        Ok(())
    })
    .await?;
    all_settled(&sandbox).await?;
    assert_eq!(quarantine(&sandbox, &["list"]).await?.0, Some(0), "nothing is missing yet");

    sandbox.postgres().fail_over().await?;
    let mut expected: Vec<String> = lost.iter().map(|&at| tenant.keys.member(&tenant.balances[at])).collect();
    expected.sort();
    eventually(SOON, "the balances without a row in quarantine", || async {
        let entries = quarantine(&sandbox, &["list", "--reason", "missing_row"]).await?.1;
        let entries = entries.as_array().into_iter().flatten();
        let mut members: Vec<&str> = entries.filter_map(|entry| entry["member"].as_str()).collect();
        members.sort_unstable();
        ensure!(members == expected, "{members:?}");
        Ok(())
    })
    .await?;
    eventually(SOON, "all other rows", || async {
        let written = rows_from(&sandbox, &tenant, version).await?;
        ensure!(written == rest.len() - lost.len(), "{written}");
        Ok(())
    })
    .await?;
    eventually(SOON, "an end of the comparison, with the verdict attention", || async {
        let overview: serde_json::Value = serde_json::from_str(&worker.get("/api/v1/overview").await?.1)?;
        let reasons = overview["reasons"].to_string();
        ensure!(overview["verdict"] == "attention", "{reasons}");
        ensure!(reasons.contains("2 balances are in quarantine"), "{reasons}");
        Ok(())
    })
    .await?;
    assert_eq!(
        quarantine(&sandbox, &["list"]).await?.1.as_array().map(Vec::len),
        Some(lost.len()),
        "the deleted one is none of them"
    );
    report("a failover that loses the rows of 2 balances altogether", "both in quarantine as missing_row");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
