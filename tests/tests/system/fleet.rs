//! Two workers on the same tenants: nothing is claimed twice, one of two owners stands by, and what a killed one held is
//! taken over (G8).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::eventually;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Progress};
use balance_sync_tests::ledger::{all_settled, claimed, comes_in_step, flush_hangs, hold_row, row};
use balance_sync_tests::{Audit, SOON, Worker};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::api::json;

/// The shortest claims that the bounds of a flush leave room for.
const CLAIM_TTL: Duration = Duration::from_secs(3);
/// Claims so long that waiting for one to lapse can't be mistaken for a busy machine.
const LEASE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn two_workers_write_nothing_twice_and_one_goes_on_when_the_other_is_killed() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 600).await?;
    let tenants = sandbox.tenants();
    for tenant in &tenants {
        Audit::begin(&sandbox, tenant).await?;
    }
    // Small batches: each worker has to claim many times. Neither stands back for the other.
    let small = || {
        Worker::of(&sandbox)
            .set("collector.batch_size", "20")
            .set("worker.partition", "false")
            .set("claim.ttl", "2m")
    };
    let mut first = small().start().await?;
    let mut second = small().start().await?;
    let mut producer = sandbox.producer();

    // One mutation of each balance at a time, and the next only when all are written: whatever is written twice now
    // was claimed twice, and shows as stale.
    let mut mutations = 0;
    for round in 1.. {
        mutations += i64::try_from(producer.mutate_each(DEFAULT_TTL).await?)?;
        comes_in_step(&sandbox, &producer).await?;
        all_settled(&sandbox).await?;
        let by_each =
            [first.metric("balance_synced", &[]).await?, second.metric("balance_synced", &[]).await?];
        assert_eq!(by_each.iter().sum::<f64>(), mutations as f64, "rows written by both");
        if by_each.iter().all(|written| *written > 0.0) {
            break;
        }
        assert!(round < 10, "one of two workers does everything: {by_each:?}");
    }
    for worker in [&first, &second] {
        for outcome in ["stale", "quarantined", "expired", "released", "kept"] {
            let count = worker.metric("balance_sync_balances_total", &[("outcome", outcome)]).await?;
            assert_eq!(count, 0.0, "{outcome} in worker {}", worker.pid());
        }
    }
    let updates = |tenants: Vec<_>| async {
        let mut updates = 0;
        for tenant in tenants {
            let pool = sandbox.pool(&tenant);
            let audit = Audit::read(&pool, &tenant).await?;
            pool.close().await;
            ensure!(audit.updates == audit.distinct && audit.not_forward == 0, "{}: {audit:?}", tenant.id);
            updates += audit.updates;
        }
        anyhow::Ok(updates)
    };
    assert_eq!(updates(tenants.clone()).await?, mutations);

    // Under a load that overtakes itself, one is killed.
    let cancel = CancellationToken::new();
    let progress = Progress::new(tenants.len());
    let load = LoadOptions { rate: 1_500.0, hot_key_share: 0.5, ..LoadOptions::default() };
    let watch = async {
        let ended = async {
            first.reaches("balance_synced", &[], mutations as f64 / 2.0 + 300.0).await?;
            first.kill().await?;
            // What is mutated from here on doesn't wait for the killed one's claims.
            let killed_at = Instant::now();
            let from = second.metric("balance_synced", &[]).await?;
            second.reaches("balance_synced", &[], from + 1_500.0).await?;
            ensure!(killed_at.elapsed() < LEASE / 2, "{:?}", killed_at.elapsed());
            Ok(())
        };
        let ended = ended.await;
        cancel.cancel();
        ended
    };
    let (report, watched) = tokio::join!(producer.run(&load, &progress, &cancel), watch);
    watched?;
    assert_eq!(report?.errors, 0);
    drop(first);
    // The killed one's claims lapse in two minutes, unless a newer mutation takes their place.
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    updates(tenants).await?;
    assert_eq!(second.stop().await?.code, Some(0));
    Ok(())
}

fn names<'a>(row: &'a Value, field: &str) -> Vec<&'a str> {
    row[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn a_second_owner_stands_by_until_the_first_has_left_or_does_nothing() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(6, 20).await?;
    // A lease that doesn't run out during the test: the list says of a frozen worker that it is alive.
    let named = |name: &str| Worker::of(&sandbox).set("worker.name", name).set("worker.lease", "10m");
    let mut left = named("left").start().await?;
    let mut right = named("right").start().await?;
    // Which tenants each works, as both tell it.
    let firsts = async |worker: &Worker| {
        eventually(SOON, "one first and one second owner of each", || async {
            let rows = json(worker, "/api/v1/tenants").await?;
            let mut firsts = BTreeMap::new();
            for row in rows["tenants"].as_array().context("no tenants")? {
                ensure!(names(row, "owners") == ["left", "right"], "{row}");
                let [second] = names(row, "standby")[..] else { bail!("{row}") };
                let first = if second == "left" { "right" } else { "left" };
                firsts.insert(row["id"].as_str().unwrap_or_default().to_owned(), first);
            }
            ensure!(firsts.len() == 6, "{firsts:?}");
            Ok(firsts)
        })
        .await
    };
    let expected = firsts(&left).await?;
    assert_eq!(firsts(&right).await?, expected, "both say the same");

    let mut producer = sandbox.producer();
    for _ in 0..5 {
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(&sandbox, &producer).await?;
    }
    all_settled(&sandbox).await?;
    let joins = "balance_sync_standby_joins_total";
    for (worker, name) in [(&left, "left"), (&right, "right")] {
        for (tenant, first) in &expected {
            let written = worker.metrics().await?.sum("balance_synced", &[("tenant_id", tenant)]);
            assert_eq!(written, if *first == name { 100.0 } else { 0.0 }, "{tenant} by {name}");
        }
        assert_eq!(worker.metric(joins, &[]).await?, 0.0);
    }

    // Frozen, and still on the list: what is due stays unclaimed, and the other one notices.
    left.signal(Signal::SIGSTOP)?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let of_left = expected.values().filter(|first| **first == "left").count();
    assert_eq!(right.metric(joins, &[]).await?, of_left as f64);
    left.signal(Signal::SIGCONT)?;

    // Stopped, it takes itself off the list, and the other one is first at once: it doesn't have to notice anything.
    let mut late = named("late").start().await?;
    assert_eq!(left.stop().await?.code, Some(0));
    assert_eq!(right.stop().await?.code, Some(0));
    late.reaches("balance_sync_tenants_owned", &[], 6.0).await?;
    eventually(SOON, "no worker to stand back for", || async {
        let standby = late.metric("balance_sync_tenants", &[("state", "standby")]).await?;
        ensure!(standby == 0.0, "{standby} tenants");
        Ok(())
    })
    .await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(late.metric(joins, &[]).await?, 0.0);
    assert_eq!(late.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_killed_workers_claims_are_taken_over_within_the_claim_ttl() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 40).await?;
    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    let short = |name: &str| {
        Worker::of(&sandbox)
            .set("worker.name", name)
            .set("claim.ttl", "3s")
            .set("postgres.connect_timeout", "500ms")
            .set("postgres.acquire_timeout", "500ms")
            .set("postgres.statement_timeout", "1800ms")
            .set("collector.flush_deadline", "2300ms")
            .set("collector.idle_backoff_max", "100ms")
    };
    let mut workers = [short("left").start().await?, short("right").start().await?];
    let mut producer = sandbox.producer();
    let held = hold_row(&pool, &tenant, 7).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    flush_hangs(&sandbox, &tenant).await?;
    assert_eq!(claimed(&sandbox, &tenant).await?, 40, "all of them are in the flush that hangs");
    let name: String = sqlx::query_scalar(
        "SELECT application_name FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'",
    )
    .bind(&tenant.role)
    .fetch_one(&pool)
    .await?;
    if name.contains("right") {
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
    // Far above the promise of two more seconds, for a busy machine, and far below the default claim TTL.
    assert!(took <= CLAIM_TTL + Duration::from_secs(15), "taken over after {took:?}");
    all_settled(&sandbox).await?;
    assert_eq!(heir.metric("balance_synced", &[]).await?, 40.0);
    assert_eq!(heir.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_worker_that_died_is_named_with_its_heir_and_a_drained_one_is_not() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 5).await?;
    let named = |name: &str| Worker::of(&sandbox).set("worker.name", name).set("worker.replicas", "1");
    let mut heir = named("heir").start().await?;
    let mut victim = named("victim").start().await?;
    let mut drained = named("drained").start().await?;
    let overview = async |what: &str, fits: &dyn Fn(&Value) -> bool| {
        eventually(SOON, what, || async {
            let overview = json(&heir, "/api/v1/overview").await?;
            ensure!(fits(&overview), "{overview}");
            Ok(overview)
        })
        .await
    };
    overview("three workers", &|overview| overview["workers"]["live"] == 3).await?;
    assert_eq!(drained.stop().await?.code, Some(0));
    let two = |overview: &Value| overview["workers"]["live"] == 2 && overview["verdict"] == "healthy";
    overview("two workers", &two).await?;

    victim.kill().await?;
    let overview_after = overview("a dead worker", &|overview| {
        let dead = overview["dead_workers"].as_array().map_or(&[][..], Vec::as_slice);
        dead.len() == 1 && dead[0]["unserved"] == 0 && overview["verdict"] == "attention"
    })
    .await?;
    let dead = &overview_after["dead_workers"][0];
    ensure!(dead["name"] == "victim" && names(dead, "taken_over_by") == ["heir"], "{dead}");
    let last_seen = dead["last_seen_at"].as_str().context("no last sign of life")?;
    ensure!(overview_after["generated_at"].as_str() > Some(last_seen), "{overview_after}");
    let of = match dead["tenants"].as_u64() {
        Some(1) => "its 1 tenant was".to_owned(),
        tenants => format!("its {} tenants were", tenants.context("no tenants")?),
    };
    let end = format!(" ago; {of} taken over by heir.");
    let sentence = format!("Worker victim has died: last sign of life {last_seen}, ");
    let is_said = |text: &str| text.split_once(&sentence).is_some_and(|(_, rest)| rest.contains(&end));
    let helps = "Look at log and host of victim; start it again if no other worker took its place.";
    ensure!(
        overview_after["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str).any(is_said),
        "{overview_after}"
    );
    ensure!(names(&overview_after, "to_do") == [helps], "{overview_after}");
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let said = format!("victim has died: last seen {last_seen}, ");
    for command in ["workers", "status"] {
        // UNKNOWN until the heir has looked at the tenants that it has just taken over.
        eventually(SOON, command, || async {
            let done = balance_sync_tests::run(&[command, "--config", &config], &[]).await?;
            // As one line: sentences are wrapped.
            let text = done.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            let is_whole = match command {
                "status" => text.starts_with("ATTENTION ") && is_said(&text) && text.contains(helps),
                _ => text.contains(&said) && text.contains("taken over by heir."),
            };
            ensure!(done.code == Some(1) && is_whole, "{done:?}");
            Ok(())
        })
        .await?;
    }

    // One that comes back is no longer missed.
    let mut again = named("victim").start().await?;
    overview("two workers again", &two).await?;
    assert_eq!(again.stop().await?.code, Some(0));
    overview("one worker", &|overview| overview["workers"]["live"] == 1 && overview["verdict"] == "healthy")
        .await?;
    assert_eq!(heir.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn workers_that_differ_in_their_settings_are_named_with_what_each_has() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let named = |name: &str| Worker::of(&sandbox).set("worker.name", name);
    let mut one = named("one").start().await?;
    let mut two = named("two").set("postgres.connections_per_server", "7").set("objectives.pause", "2h");
    two = two.set("worker.expected", "2");
    let mut two = two.start().await?;
    // It doesn't see the others, nor they it: another form of keys makes another group.
    let mut three = named("three").set("tenants.key_form", "simple_uuid").start().await?;
    eventually(SOON, "all differences", || async {
        let overview = json(&one, "/api/v1/overview").await?;
        ensure!(overview["verdict"] == "attention" && overview["workers"]["live"] == 2, "{overview}");
        let reasons = overview["reasons"].to_string();
        for said in [
            "Workers differ in postgres.connections_per_server: ",
            "7 on two",
            "Workers differ in objectives.pause: ",
            "2h on two",
            "Workers differ in worker.expected: ",
            "Worker three serves 2 of these tenants with other settings, and neither counts on the other: ",
            "tenants.key_form simple_uuid there, auto here",
        ] {
            ensure!(reasons.contains(said), "{said}: {reasons}");
        }
        Ok(())
    })
    .await?;
    for worker in [&mut two, &mut three] {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    eventually(SOON, "no difference", || async {
        let overview = json(&one, "/api/v1/overview").await?;
        ensure!(overview["verdict"] == "healthy", "{overview}");
        Ok(())
    })
    .await?;
    assert_eq!(one.stop().await?.code, Some(0));
    Ok(())
}
