//! The monthly report: what a fleet records of an outage, and what it shows of time in which nothing was recorded.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{Sandbox, eventually};
use balance_sync_tests::command::Finished;
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{SOON, Worker, run};
use serde_json::Value;

use crate::{
    api::{json, sharing},
    rights::acl,
};

/// The month in which the test runs, or another one.
async fn command(sandbox: &Sandbox, args: &[&str]) -> Result<Finished> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    run(&[args, &["--config", config]].concat(), &[]).await
}

async fn month(sandbox: &Sandbox) -> Result<String> {
    // As the fleet's own clock has it.
    let status = command(sandbox, &["status", "--json"]).await?;
    let overview: Value = serde_json::from_str(&status.stdout)?;
    Ok(overview["generated_at"].as_str().context("no time")?[..7].to_owned())
}

async fn report(sandbox: &Sandbox) -> Result<Value> {
    let done = command(sandbox, &["report", "--json", "--month", &month(sandbox).await?]).await?;
    serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))
}

/// Waits until the report satisfies this.
async fn reports(sandbox: &Sandbox, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(SOON * 2, what, || async {
        let report = report(sandbox).await?;
        if holds(&report) { Ok(report) } else { bail!("{report}") }
    })
    .await
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

async fn synced(workers: &[&Worker]) -> Result<f64> {
    let mut sum = 0.0;
    for worker in workers {
        sum += worker.metric("balance_synced", &[]).await?;
    }
    Ok(sum)
}

#[tokio::test]
async fn an_outage_is_reported_once_with_cause_duration_and_exposure_and_a_restart_keeps_it() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 50).await?;
    let begin = Instant::now();
    let mut one = sharing(&sandbox, "one").start().await?;
    let mut two = sharing(&sandbox, "two").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    all_settled(&sandbox).await?;
    let known = reports(&sandbox, "a record", |report| number(&report["recorded"]["seconds"]) > 0.0).await?;
    assert_eq!(known["incidents"].as_array().map(Vec::len), Some(0), "{known}");

    // What both workers write is counted once.
    let (rows, before) = (number(&known["fleet"]["rows"]), synced(&[&one, &two]).await?);
    producer.mutate_each(DEFAULT_TTL).await?;
    all_settled(&sandbox).await?;
    let written = synced(&[&one, &two]).await? - before;
    assert_eq!(written, 100.0);
    let exact = |report: &Value| number(&report["fleet"]["rows"]) >= rows + written;
    let counted = reports(&sandbox, "the rows", exact).await?;
    assert_eq!(number(&counted["fleet"]["rows"]), rows + written, "{counted}");
    assert!(number(&counted["recorded"]["seconds"]) <= begin.elapsed().as_secs_f64(), "{counted}");
    assert!(number(&counted["fleet"]["lag_p99_seconds"]) > 0.0, "{counted}");

    // Longer than the 36 seconds of an hour that the objective for the exposure allows.
    sandbox.postgres().kill()?;
    let outage = Instant::now();
    producer.mutate_each(DEFAULT_TTL).await?;
    eventually(SOON * 2, "the objective is missed", || async {
        let overview = json(&one, "/api/v1/overview").await?;
        let p99 = number(&overview["backlog"]["exposure_p99_seconds"]);
        ensure!(p99 > 1.0, "{overview}");
        let reasons = overview["reasons"].to_string();
        ensure!(reasons.contains("objectives.exposure 1 s"), "{reasons}");
        Ok(())
    })
    .await?;
    let metric = one.metric("balance_sync_worker_exposure_p99_seconds", &[]).await?
        + two.metric("balance_sync_worker_exposure_p99_seconds", &[]).await?;
    assert!(metric > 1.0, "{metric}");
    sandbox.postgres().start_again().await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let lasted = outage.elapsed().as_secs_f64();
    let note = "the disk | was full";
    let tenant = sandbox.tenants().remove(0).id;
    let flush = command(&sandbox, &["tenants", "flush", &tenant, "--note", note]).await?;
    assert_eq!(flush.code, Some(0), "{flush:?}");
    let over = |report: &Value| {
        let incidents = report["incidents"].as_array();
        let closed =
            incidents.is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["open"] == false));
        closed && report["actions"][0]["outcomes"].as_array().is_some_and(|outcomes| !outcomes.is_empty())
    };
    let report = reports(&sandbox, "the incident is over", over).await?;
    let incidents = report["incidents"].as_array().context("no incidents")?;
    let seconds: f64 = incidents.iter().map(|one| number(&one["seconds"])).fold(0.0, f64::max);
    let outage = incidents.iter().find(|one| number(&one["seconds"]) == seconds).context("no incident")?;
    assert!(outage["cause"].as_str().is_some_and(|cause| cause.starts_with("postgres_")), "{report}");
    assert_eq!(number(&outage["tenants"]), 2.0, "{report}");
    // Its end is seen at the next look.
    assert!((30.0..=lasted + 25.0).contains(&seconds), "{seconds} s of {lasted}: {report}");
    assert!(number(&outage["exposure_longest_seconds"]) >= 20.0, "{report}");
    assert!(number(&report["fleet"]["exposure_p99_seconds"]) > 1.0, "{report}");
    let exposed = number(&report["fleet"]["exposed_seconds"]);
    assert!((20.0..=lasted + 25.0).contains(&exposed), "{report}");
    assert_eq!(report["tenants"].as_array().map(Vec::len), Some(2), "{report}");
    assert!(number(&report["tenants"][0]["figures"]["exposure_p99_seconds"]) > 1.0, "{report}");
    assert_eq!(report["actions"][0]["what"], "flush", "{report}");
    let text = command(&sandbox, &["report", "--month", &month(&sandbox).await?]).await?;
    assert_eq!(text.code, Some(0));
    assert!(text.stdout.contains("the disk \\| was full"), "{}", text.stdout);
    assert!(text.stdout.contains(outage["cause"].as_str().unwrap_or("?")), "{}", text.stdout);

    // One goes on where the others stopped, and counts nothing again.
    assert_eq!(one.stop().await?.code, Some(0));
    two.kill().await?;
    let mut three = sharing(&sandbox, "three").start().await?;
    let recorded = number(&report["recorded"]["seconds"]);
    let later =
        reports(&sandbox, "it goes on", |report| number(&report["recorded"]["seconds"]) > recorded + 20.0)
            .await?;
    assert_eq!(later["incidents"], report["incidents"]);
    assert_eq!(later["fleet"]["rows"], report["fleet"]["rows"]);
    let ids = |report: &Value| {
        report["actions"].as_array().map(|all| all.iter().map(|one| one["id"].clone()).collect::<Vec<_>>())
    };
    assert_eq!(ids(&later), ids(&report));
    assert_eq!(later["recorded"]["began_at"], known["recorded"]["began_at"]);
    assert!(number(&later["recorded"]["seconds"]) <= begin.elapsed().as_secs_f64(), "{later}");
    assert_eq!(three.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn what_redis_has_lost_of_the_record_is_reported_as_unknown() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 20).await?;
    let month = month(&sandbox).await?;
    let nothing = command(&sandbox, &["report", "--month", &month]).await?;
    assert_eq!(nothing.code, Some(2), "{nothing:?}");
    assert!(nothing.stdout.contains("**Nothing is recorded of this month.**"), "{nothing:?}");
    assert!(!nothing.stdout.contains("## Fleet"), "{nothing:?}");
    let wrong = command(&sandbox, &["report", "--month", "2026-13"]).await?;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("2026-11"), "{wrong:?}");

    let mut worker = Worker::of(&sandbox).expect_error("Redis has lost all").start().await?;
    sandbox.producer().mutate_each(DEFAULT_TTL).await?;
    let report = reports(&sandbox, "a record", |report| number(&report["recorded"]["seconds"]) > 0.0).await?;
    let began = report["recorded"]["began_at"].as_str().context("no beginning")?.to_owned();
    let () = redis::cmd("FLUSHALL").query_async(&mut sandbox.redis().connect().await?).await?;
    let anew = |report: &Value| {
        report["recorded"]["began_at"].as_str().is_some_and(|again| *again > *began)
            && number(&report["recorded"]["seconds"]) > 0.0
    };
    let report = reports(&sandbox, "a record that begins anew", anew).await?;
    assert!(number(&report["recorded"]["missing_seconds"]) > 0.0, "{report}");
    let text = command(&sandbox, &["report", "--month", &month]).await?;
    assert!(text.stdout.contains("**Not recorded: "), "{}", text.stdout);
    worker.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_missing_right_to_the_record_is_logged_once() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let mut worker = Worker::of(&sandbox).start().await?;
    let known = reports(&sandbox, "a record", |report| number(&report["recorded"]["seconds"]) > 0.0).await?;
    acl(&sandbox, &["-pexpireat"]).await?;
    let line = worker.logs("the fleet can't be recorded for the report").await?;
    let error = line.fields["error"].as_str().unwrap_or_default();
    ensure!(line.level == "WARN" && error.contains("pexpireat"), "{} {error}", line.level);
    worker.logs("the fleet still can't be recorded for the report").await?;
    let warnings = worker.log().lines().iter().filter(|other| other.message == line.message).count();
    assert_eq!(warnings, 1);
    acl(&sandbox, &["+pexpireat"]).await?;
    let seconds = number(&known["recorded"]["seconds"]);
    reports(&sandbox, "it is recorded again", |report| {
        number(&report["recorded"]["seconds"]) > seconds + 15.0
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
