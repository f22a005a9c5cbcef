//! Redis's wall clock, the only one in the protocol, jumps back: after a failover to a server whose clock was behind, or a
//! correction by hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balance_sync_domain::{KeySpace, TenantId};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{RedisOptions, Sandbox, SandboxOptions, SandboxTenant, eventually};
use balance_sync_schedule::{Link, LinkSettings, Schedule, ScheduleOptions};
use balance_sync_tests::ledger::{all_settled, comes_in_step, rows, scores};
use balance_sync_tests::{Audit, SOON, options, run};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{BUSY, CLAIM_TTL, brisk, nothing_backwards, report};

/// A Redis whose clock can be set.
fn settable(tenants: usize, balances: usize) -> SandboxOptions {
    let wanted = options(tenants, balances);
    let redis = RedisOptions { settable_clock: true, ..wanted.redis.clone() };
    SandboxOptions { redis, ..wanted }
}

async fn redis_seconds(sandbox: &Sandbox) -> Result<u64> {
    let (seconds, _): (u64, u64) =
        ::redis::cmd("TIME").query_async(&mut sandbox.redis().connect().await?).await?;
    Ok(seconds)
}

/// Claims as a worker does that is then killed.
async fn claim(sandbox: &Sandbox, tenant: &SandboxTenant, limit: usize) -> Result<usize> {
    let id = TenantId::parse(&tenant.id)?;
    let options = ScheduleOptions { claim_ttl: CLAIM_TTL, ..ScheduleOptions::default() };
    let link = Link::new(&LinkSettings::for_url(&sandbox.redis().url()))?;
    let space = [KeySpace::tenant(&id)];
    let schedule = Schedule::new(link, space[0].clone(), Arc::new(options));
    Ok(schedule.claim(limit).await?.entries.len())
}

#[tokio::test]
async fn a_clock_that_jumps_back_delays_nothing_longer_than_the_jump_and_a_lease() -> Result<()> {
    const JUMP: Duration = Duration::from_secs(20);
    let sandbox = Sandbox::start(settable(2, 20)).await?;
    let tenants = sandbox.tenants();
    for tenant in &tenants {
        Audit::begin(&sandbox, tenant).await?;
    }
    let mut worker = brisk(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;

    // Frozen, so that there is work scheduled before the jump; some of it is held by a worker that was killed.
    worker.signal(Signal::SIGSTOP)?;
    producer.mutate_each(DEFAULT_TTL).await?;
    assert_eq!(claim(&sandbox, &tenants[0], 5).await?, 5);
    let before = redis_seconds(&sandbox).await?;
    sandbox.redis().shift_clock(-i64::try_from(JUMP.as_millis())?)?;
    let jumped = Instant::now();
    ensure!(redis_seconds(&sandbox).await? < before, "the clock has not jumped");
    worker.signal(Signal::SIGCONT)?;
    // What is mutated from now on is due at once.
    let newer: Vec<usize> = (0..10).collect();
    producer.mutate(1, &newer, DEFAULT_TTL).await?;
    eventually(SOON, "the rows mutated after the jump", || async {
        let found = rows(&sandbox, &tenants[1]).await?;
        ensure!(found.values().filter(|row| row.version == 4).count() == newer.len(), "some are behind");
        Ok(())
    })
    .await?;
    ensure!(redis_seconds(&sandbox).await? < before, "they waited for the clock to catch up");
    // The rest when the clock has caught up.
    comes_in_step(&sandbox, &producer).await?;
    let took = jumped.elapsed();
    assert!(took < JUMP + CLAIM_TTL + BUSY, "it took {took:?}");
    all_settled(&sandbox).await?;
    for tenant in &tenants {
        nothing_backwards(&sandbox, tenant).await?;
    }
    report(
        "Redis's clock jumped back by 20 s (claim TTL 4 s)",
        &format!("new mutations written at once, everything {:.1} s after the jump", took.as_secs_f64()),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn what_a_clock_that_jumped_back_left_in_the_future_is_made_due_by_repair() -> Result<()> {
    const HOUR: i64 = 3_600_000;
    let sandbox = Sandbox::start(settable(2, 30)).await?;
    let tenants = sandbox.tenants();
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let verify = async |args: &[&str]| -> Result<Value> {
        let all = [&["verify", "--config", &config, "--json"], args].concat();
        let done = run(&all, &[]).await?;
        serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))
    };
    let distant = |result: &Value| {
        let rows = result["tenants"].as_array().cloned().unwrap_or_default();
        rows.iter().filter_map(|row| row["distant"].as_u64()).sum::<u64>()
    };
    let schedules = async || {
        let mut all = Vec::new();
        for tenant in &tenants {
            all.push(scores(&sandbox, &tenant.keys.schedule()).await?);
        }
        anyhow::Ok(all)
    };
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    assert_eq!(distant(&verify(&[]).await?), 0);
    sandbox.redis().shift_clock(-HOUR)?;
    // Ten are mutated again; five of these are held by a worker.
    producer.mutate(0, &(0..10).collect::<Vec<_>>(), DEFAULT_TTL).await?;
    assert_eq!(claim(&sandbox, &tenants[0], 5).await?, 5);
    let before = schedules().await?;
    for dry in [&[][..], &["--repair"]] {
        let result = verify(dry).await?;
        assert_eq!((distant(&result), &result["repaired"]), (50, &0.into()), "{result}");
        assert_eq!(schedules().await?, before, "a dry run changes nothing");
    }
    let shown = run(&["verify", "--config", &config], &[]).await?.stdout;
    assert!(shown.contains("50 balances are scheduled further ahead"), "{shown}");
    let result = verify(&["--repair", "--apply"]).await?;
    assert_eq!(result["repaired"], 50, "{result}");
    let after = schedules().await?;
    let changed = after
        .iter()
        .zip(&before)
        .map(|(after, before)| before.iter().filter(|(member, score)| after[*member] != **score).count());
    assert_eq!(changed.collect::<Vec<_>>(), [20, 30], "what is due or held stays as it is");
    assert_eq!(distant(&verify(&[]).await?), 0);
    // An hour ahead of the clock.
    let mut worker = brisk(&sandbox, "w").start().await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn what_a_clock_that_jumped_back_left_far_ahead_is_worked_at_once() -> Result<()> {
    let sandbox = Sandbox::start(settable(2, 5)).await?;
    let mut producer = sandbox.producer();
    producer.mutate(0, &[0, 1, 2], DEFAULT_TTL).await?;
    sandbox.redis().shift_clock(-3_600_000)?;
    let mut worker = brisk(&sandbox, "w").set("supervisor.sample_interval", "1s").start().await?;
    let begun = Instant::now();
    comes_in_step(&sandbox, &producer).await?;
    let took = begun.elapsed();
    all_settled(&sandbox).await?;
    worker.reaches("balance_sync_vanished_rescheduled_total", &[], 3.0).await?;
    report(
        "Redis's clock jumped back by an hour, with a worker",
        &format!("what was far ahead is written {:.1} s after the start", took.as_secs_f64()),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_clock_that_goes_back_is_reported_with_by_how_much_and_when() -> Result<()> {
    let sandbox = Sandbox::start(settable(1, 5)).await?;
    let mut worker = brisk(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    crate::vanish::counted(&sandbox).await?;
    let (jumps, back) =
        ("balance_sync_redis_clock_jumps_total", "balance_sync_redis_clock_back_seconds_total");
    assert_eq!(worker.metric(jumps, &[]).await?, 0.0);
    sandbox.redis().shift_clock(-3_600_000)?;
    worker.reaches(jumps, &[], 1.0).await?;
    let by = worker.metric(back, &[]).await?;
    ensure!((3_599.0..3_700.0).contains(&by), "{by}");
    eventually(SOON, "a verdict that says so", || async {
        let (_, answer) = worker.get("/api/v1/overview").await?;
        ensure!(answer.contains("Redis's clock went back by 3600."), "{answer}");
        Ok(())
    })
    .await?;
    // Forwards again, and it is shown all the same.
    sandbox.redis().shift_clock(0)?;
    crate::vanish::counted(&sandbox).await?;
    assert_eq!(worker.metric(jumps, &[]).await?, 1.0);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn clocks_that_differ_are_reported_with_who_and_how_much() -> Result<()> {
    let sandbox = Sandbox::start(settable(1, 5)).await?;
    let mut worker = brisk(&sandbox, "w").start().await?;
    let mut other = brisk(&sandbox, "other").start().await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let judged = async |code: i32, verdict: &str| {
        eventually(SOON, verdict, || async {
            let done = run(&["status", "--json", "--config", &config], &[]).await?;
            let overview: Value = serde_json::from_str(&done.stdout)?;
            ensure!(done.code == Some(code) && overview["verdict"] == verdict, "{:?} {overview}", done.code);
            Ok(overview)
        })
        .await
    };
    let overview = judged(0, "healthy").await?;
    let offset = |value: &Value| value["clock_offset_seconds"].as_f64().context("no offset");
    ensure!(offset(&overview)?.abs() < 1.0, "{overview}");
    sandbox.redis().shift_clock(30_000)?;
    let overview = eventually(SOON, "Redis's clock is named", || async {
        let overview = judged(1, "attention").await?;
        let reasons = overview["reasons"].to_string();
        ensure!(reasons.contains("ahead of those of all 2 workers, which agree"), "{reasons}");
        Ok(overview)
    })
    .await?;
    // The command's own clock is as wrong, so it shows ages by Redis's.
    ensure!((-31.0..-29.0).contains(&offset(&overview)?), "{overview}");
    let shown = run(&["status", "--config", &config], &[]).await?;
    ensure!(shown.stdout.contains("behind Redis's; times here are Redis's"), "{shown:?}");
    assert_eq!(other.stop().await?.code, Some(0));
    eventually(SOON, "the worker is named", || async {
        let (_, answer) = worker.get("/api/v1/overview").await?;
        ensure!(answer.contains("that of worker w is 30.0 s behind"), "{answer}");
        ensure!(worker.metric("balance_sync_clock_offset_seconds", &[]).await? < -29.0, "the metric");
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// Postgres and the workers keep the time of this machine here, and Redis another.
#[tokio::test]
async fn a_postgres_server_with_another_clock_than_redis_is_named() -> Result<()> {
    let sandbox = Sandbox::start(settable(2, 5)).await?;
    sandbox.redis().shift_clock(20_000)?;
    let mut worker = brisk(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let reasons = async || {
        let (_, body) = worker.get("/api/v1/overview").await?;
        let overview: Value = serde_json::from_str(&body)?;
        let reasons = overview["reasons"].as_array().context("no reasons")?.clone();
        anyhow::Ok(reasons.iter().filter_map(|reason| reason.as_str().map(str::to_owned)).collect::<Vec<_>>())
    };
    eventually(SOON, "a line about the server, not one per tenant", || async {
        let reasons = reasons().await?;
        let about = reasons.iter().filter(|reason| reason.starts_with("Clocks of Postgres servers"));
        let about: Vec<_> = about.collect();
        ensure!(about.len() == 1 && about[0].matches(" behind").count() == 1, "{reasons:?}");
        let found = about[0].contains(" 20.0 s behind") || about[0].contains(" 19.9 s behind");
        ensure!(found, "{reasons:?}");
        Ok(())
    })
    .await?;
    sandbox.redis().shift_clock(0)?;
    eventually(SOON, "no such line", || async {
        let reasons = reasons().await?;
        ensure!(!reasons.iter().any(|reason| reason.contains("Postgres servers")), "{reasons:?}");
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// A jump that is shorter than the longest delay: what is ahead is told from leases by its score.
#[tokio::test]
async fn what_a_short_jump_left_ahead_is_worked_at_once_and_what_is_held_stays_held() -> Result<()> {
    let sandbox = Sandbox::start(settable(1, 40)).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    assert_eq!(claim(&sandbox, &tenant, 5).await?, 5);
    let held = scores(&sandbox, &tenant.keys.schedule()).await?;
    let before = redis_seconds(&sandbox).await?;
    sandbox.redis().shift_clock(-300_000)?;
    ensure!(redis_seconds(&sandbox).await? < before, "the clock has not jumped");
    let mut worker = brisk(&sandbox, "w").set("supervisor.sample_interval", "1s").start().await?;
    eventually(SOON, "35 rows", || async {
        let written = rows(&sandbox, &tenant).await?.values().filter(|row| row.version == 2).count();
        ensure!(written == 35, "{written} are");
        Ok(())
    })
    .await?;
    let left = scores(&sandbox, &tenant.keys.schedule()).await?;
    assert_eq!(left.len(), 5);
    assert!(left.iter().all(|(member, score)| held.get(member) == Some(score)), "{left:?}");
    worker.reaches("balance_sync_vanished_rescheduled_total", &[], 35.0).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
