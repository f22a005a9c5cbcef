//! The ledger chart's Redis, from the first eviction to the last restored balance: `allkeys-lru`, little memory, nothing on disk.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, write_operations};
use balance_sync_sandbox::{Sandbox, eventually};
use balance_sync_tests::ledger::{comes_in_step, losses_key, rows};
use balance_sync_tests::{SOON, run};
use redis::AsyncCommands;
use serde_json::Value;

use crate::report;
use crate::vanish::{WITHIN, counted, fill, of_redis, operations, overview, shown, worker};

/// During an outage of Postgres the schedule is evicted, and with it every value. Nothing of it is in Redis when Postgres returns:
/// the verdict says so all the time, and a recovery restores each balance whose operation the ledger has written, exactly.
#[tokio::test]
async fn what_is_evicted_during_an_outage_is_reported_until_it_is_recovered() -> Result<()> {
    const BALANCES: usize = 2_000;
    /// The ledger has lost the operations of so many with its own memory.
    const WITHOUT: usize = 50;
    let memory = ["maxmemory-policy allkeys-lru", "maxmemory 12mb"];
    let sandbox = Sandbox::start(of_redis(1, BALANCES, &memory)).await?;
    let tenant = sandbox.tenants().remove(0);
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let before = producer.tenants()[0].versions[0];
    operations(&sandbox, &tenant, before).await?;

    sandbox.postgres().stop_immediate().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let version = before + 1;
    counted(&sandbox).await?;
    let mut redis = sandbox.redis().connect().await?;
    let mut keys: Vec<String> = tenant.balances.iter().map(|balance| tenant.keys.member(balance)).collect();
    keys.push(tenant.keys.schedule());
    let mut round = 0;
    while redis.exists::<_, u64>(&keys).await? > 0 {
        fill(&sandbox, round).await?;
        round += 1;
        ensure!(round < 2_000, "some stay");
    }
    let evicted = Instant::now();
    let open = shown(&sandbox, &tenant, "redis_schedule_vanished").await?;
    let noticed = evicted.elapsed();
    ensure!(noticed < WITHIN, "noticed after {noticed:?}");
    assert_eq!(open["extent"], BALANCES, "{open}");

    sandbox.postgres().start_again().await?;
    let returned = Instant::now();
    let known = &tenant.balances[WITHOUT..];
    let pool = sandbox.pool(&tenant);
    let written: Vec<_> = known.iter().map(|balance| (balance, version)).collect();
    write_operations(&pool, tenant.schema.as_deref(), &written).await?;
    pool.close().await;
    // What `status` says from here on, at any moment, and until when.
    let held = eventually(SOON, "every loss listed", || async {
        let overview = overview(&sandbox).await?;
        ensure_not_green(&overview)?;
        let row = &overview["worst"][0]["vanished"];
        ensure!(row["lost"] == known.len(), "{row}");
        Ok(row.clone())
    })
    .await?;
    let listed = returned.elapsed();
    eventually(SOON, "what is not accounted for", || async {
        let phase = overview(&sandbox).await?["worst"][0]["vanished"]["phase"].clone();
        let wanted = format!("{WITHOUT} are not accounted for");
        ensure!(phase.as_str().is_some_and(|phase| phase.contains(&wanted)), "{phase}, after {held}");
        Ok(())
    })
    .await?;
    let mut listed_members: Vec<String> = redis.hkeys(losses_key(&tenant)).await?;
    let mut members: Vec<String> = known.iter().map(|balance| tenant.keys.member(balance)).collect();
    listed_members.sort_unstable();
    members.sort_unstable();
    ensure!(listed_members == members, "{} listed", listed_members.len());

    let begun = Instant::now();
    let args = ["recover", "--config", &config, "--json", "--apply", "--note", "redis has evicted them"];
    let recovered = run(&args, &[]).await?;
    let took = begun.elapsed();
    let summary: Value = serde_json::from_str(recovered.stdout.lines().last().context("a summary")?)?;
    let summary = &summary["summary"];
    assert_eq!(summary["outcomes"], serde_json::json!({ "restored": known.len() }), "{summary}");
    assert_eq!((recovered.code, &summary["left"]), (Some(0), &0.into()), "{summary}");
    let found = rows(&sandbox, &tenant).await?;
    for (number, balance) in tenant.balances.iter().enumerate() {
        let row = found.get(&balance.id).context("a row")?;
        let version = if number < WITHOUT { before } else { version };
        assert_eq!((row.version, &row.amounts), (version, &balance.amounts(version)), "{}", balance.alias);
    }
    // Nothing more is listed; that 50 are not accounted for stays until an operator has read it.
    assert_eq!(redis.hlen::<_, u64>(losses_key(&tenant)).await?, 0);
    ensure_not_green(&overview(&sandbox).await?)?;
    let done =
        run(&["tenants", "acknowledge", &tenant.id, "--note", "a test", "--config", &config], &[]).await?;
    ensure!(done.code == Some(0), "{done:?}");
    // Nothing presses any more, so that nothing more is evicted.
    let junk: Vec<String> = redis.keys("junk:*").await?;
    redis.unlink::<_, ()>(junk).await?;
    eventually(SOON, "a green verdict with a warning", || async {
        let overview = overview(&sandbox).await?;
        ensure!(overview["worst"][0]["vanished"].is_null() && overview["losses"] == 0, "{overview}");
        Ok(())
    })
    .await?;
    report(
        "Redis with 12 MB and allkeys-lru evicts the schedule and the values of 2,000 balances during an outage of Postgres",
        &format!(
            "shown after {:.1} s; {} listed {:.1} s after the return, restored exactly in {:.1} s; {WITHOUT} without operations \
             open until acknowledged",
            noticed.as_secs_f64(),
            known.len(),
            listed.as_secs_f64(),
            took.as_secs_f64()
        ),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

fn ensure_not_green(overview: &Value) -> Result<()> {
    ensure!(overview["verdict"] == "degraded", "not degraded: {overview}");
    Ok(())
}
