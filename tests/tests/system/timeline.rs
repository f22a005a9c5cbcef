//! The last day of a tenant and of the fleet: what is kept through restarts, and what is shown of time in which nothing was recorded.

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{RedisOptions, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::command::Finished;
use balance_sync_tests::ledger::{all_settled, comes_in_step, redis_time};
use balance_sync_tests::{SOON, Worker, options, run};
use serde_json::Value;

use crate::{
    api::{json, sharing},
    openapi::Description,
};

async fn command(sandbox: &Sandbox, args: &[&str]) -> Result<Finished> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    run(&[args, &["--config", config]].concat(), &[]).await
}

async fn timeline(sandbox: &Sandbox, tenant: &str) -> Result<Value> {
    let done = command(sandbox, &["timeline", tenant, "--json"]).await?;
    serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))
}

/// Waits until the timeline satisfies this.
async fn shows(sandbox: &Sandbox, tenant: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(SOON * 2, what, || async {
        let timeline = timeline(sandbox, tenant).await?;
        if holds(&timeline) { Ok(timeline) } else { bail!("{timeline:#}") }
    })
    .await
}

fn entries(timeline: &Value) -> Vec<&Value> {
    timeline["entries"].as_array().into_iter().flatten().collect()
}

/// Entries in short: kind, and what was in that place of its state, action or worker.
fn steps(timeline: &Value) -> Vec<String> {
    let text = |entry: &Value| {
        let kind = entry["kind"].as_str().unwrap_or_default();
        let what = ["action", "state", "worker"].iter().find_map(|field| entry[*field].as_str());
        // A tenant that works is seen in one of two states.
        format!("{kind} {}", what.unwrap_or("-").replace("syncing", "idle"))
    };
    entries(timeline).into_iter().map(text).collect()
}

/// Whether these steps are there in this order, others between them or not.
fn in_order(timeline: &Value, wanted: &[&str]) -> Result<()> {
    let all = steps(timeline);
    let mut left = all.iter();
    for step in wanted {
        ensure!(left.any(|one| one == step), "{step} is missing, or not in order: {all:#?}");
    }
    Ok(())
}

fn has(timeline: &Value, step: &str) -> bool {
    steps(timeline).iter().any(|one| one == step)
}

#[tokio::test]
async fn states_failures_actions_and_deployments_are_read_after_all_workers_were_restarted() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let tenant = sandbox.tenants().remove(0).id;
    let mut one = sharing(&sandbox, "one").start().await?;
    let mut two = sharing(&sandbox, "two").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    all_settled(&sandbox).await?;

    sandbox.postgres().kill()?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let degraded = |timeline: &Value| has(timeline, "state degraded");
    shows(&sandbox, &tenant, "the failure", degraded).await?;
    // One worker looks at the fleet every 10 s.
    eventually(SOON, "it is in the history", || async {
        let history = json(&one, "/api/v1/history?minutes=60").await?;
        let minutes = history["minutes"].as_array().context("no minutes")?;
        ensure!(minutes.iter().any(|minute| minute["verdict"] == "degraded"), "{history}");
        Ok(())
    })
    .await?;
    sandbox.postgres().start_again().await?;
    comes_in_step(&sandbox, &producer).await?;
    shows(&sandbox, &tenant, "the recovery", |timeline| has(timeline, "state idle")).await?;
    let note = "the disk is full";
    let pause = command(&sandbox, &["tenants", "pause", &tenant, "--note", note]).await?;
    assert_eq!(pause.code, Some(0), "{pause:?}");
    shows(&sandbox, &tenant, "the pause", |timeline| has(timeline, "state paused")).await?;
    let resume = command(&sandbox, &["tenants", "resume", &tenant]).await?;
    assert_eq!(resume.code, Some(0), "{resume:?}");
    let resumed = ["state paused", "action resume", "state idle"];
    shows(&sandbox, &tenant, "the end of the pause", |timeline| in_order(timeline, &resumed).is_ok()).await?;

    assert_eq!(one.stop().await?.code, Some(0));
    assert_eq!(two.stop().await?.code, Some(0));
    let mut three = sharing(&sandbox, "three").start().await?;
    let mut four = sharing(&sandbox, "four").start().await?;
    let wanted = [
        "worker_started one",
        "worker_started two",
        "state degraded",
        "state idle",
        "action pause",
        "state paused",
        "action resume",
        "state idle",
        "worker_ended one",
        "worker_ended two",
        "worker_started three",
        "worker_started four",
    ];
    let read = shows(&sandbox, &tenant, "both new workers", |timeline| {
        // What was recorded before doesn't leave open how it is now.
        let is_new = |entry: &&Value| {
            entry["kind"] == "state"
                && ["three", "four"].contains(&entry["worker"].as_str().unwrap_or_default())
        };
        let both = has(timeline, "worker_started four") && has(timeline, "worker_started three");
        both && entries(timeline).iter().any(is_new)
    })
    .await?;
    in_order(&read, &wanted)?;
    let times: Vec<&str> = entries(&read).iter().filter_map(|entry| entry["at"].as_str()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let find = |kind: &str, field: &str, value: &str| {
        let found = entries(&read).into_iter().find(|entry| entry["kind"] == kind && entry[field] == value);
        found.cloned().with_context(|| format!("{kind} {value}: {read:#}"))
    };
    let failure = find("state", "state", "degraded")?;
    assert!(failure["reason"].as_str().is_some_and(|reason| reason.starts_with("postgres_")), "{failure}");
    assert!(failure["detail"].is_string() && failure["worker"].is_string(), "{failure}");
    let pause = find("action", "action", "pause")?;
    assert!(pause["by"].as_str().is_some_and(|by| by.starts_with("cli:")), "{pause}");
    assert_eq!((&pause["note"], &pause["outcomes"][0]["outcome"]), (&note.into(), &"done".into()));
    let started = find("worker_started", "worker", "three")?;
    assert_eq!(started["version"], env!("CARGO_PKG_VERSION"), "{started}");
    // While no worker ran, nothing was recorded.
    assert!(has(&read, "not_recorded -"), "{read:#}");

    // The same by the API of any worker, and in words.
    let description = Description::of(&three).await?;
    let path = format!("/api/v1/tenants/{tenant}/timeline");
    for (described, path) in [
        ("/api/v1/tenants/{id}/timeline", path.as_str()),
        ("/api/v1/tenants/{id}/timeline", "/api/v1/tenants/nobody/timeline"),
        ("/api/v1/tenants/{id}/timeline", "/api/v1/tenants/nobody/timeline?minutes=0"),
        ("/api/v1/history", "/api/v1/history?minutes=60"),
        ("/api/v1/history", "/api/v1/history?minutes=1441"),
    ] {
        let answer = crate::api::ask(&four, "GET", path, &[], None).await?;
        description.fits("GET", described, &answer)?;
    }
    let answer = json(&three, &path).await?;
    in_order(&answer, &wanted)?;
    let since = json(&three, &format!("{path}?minutes=1440")).await?;
    assert_eq!(steps(&since), steps(&answer));
    let text = command(&sandbox, &["timeline", &tenant]).await?;
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.lines().all(|line| line.chars().count() <= 80), "{}", text.stdout);
    for words in ["degraded, postgres_", "pause by cli:", note, "worker three started, version"] {
        assert!(text.stdout.contains(words), "{words}: {}", text.stdout);
    }
    let nobody = command(&sandbox, &["timeline", "nobody"]).await?;
    assert!(nobody.code == Some(2) && nobody.stderr.contains("no such tenant"), "{nobody:?}");

    // How the fleet was: the worst of each minute, and since when nothing is known.
    let history = command(&sandbox, &["history", "--json"]).await?;
    let history: Value = serde_json::from_str(&history.stdout)?;
    let minutes = history["minutes"].as_array().context("no minutes")?;
    assert!(minutes.iter().any(|minute| minute["verdict"] == "degraded"), "{history:#}");
    assert!(history["not_recorded"].as_array().is_some_and(|gaps| !gaps.is_empty()), "{history:#}");
    let text = command(&sandbox, &["history", "--since", "1h", "--step", "1"]).await?;
    assert!(text.code == Some(0) && text.stdout.contains("degraded"), "{text:?}");
    assert!(text.stdout.lines().all(|line| line.chars().count() <= 80), "{}", text.stdout);
    assert_eq!(three.stop().await?.code, Some(0));
    assert_eq!(four.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn what_happens_without_redis_is_recorded_later_and_what_is_lost_with_a_worker_is_a_gap() -> Result<()>
{
    let wanted = options(1, 10);
    let extra = vec!["appendfsync always".to_owned()];
    let redis = RedisOptions { appendonly: true, extra, ..wanted.redis.clone() };
    let sandbox = Sandbox::start(SandboxOptions { redis, ..wanted }).await?;
    let tenant = sandbox.tenants().remove(0).id;
    let mut one = Worker::of(&sandbox).set("worker.name", "one").start().await?;
    shows(&sandbox, &tenant, "the start", |timeline| has(timeline, "worker_started one")).await?;

    sandbox.redis().kill()?;
    one.reaches("balance_sync_tenant_degraded", &[], 1.0).await?;
    // It is seen at the next look at the states, and tries to store it in vain.
    let progress = "balance_sync_background_task_progress_timestamp_seconds";
    let known = one.metric(progress, &[("task", "timeline")]).await?;
    one.reaches(progress, &[("task", "timeline")], known + 4.0).await?;
    sandbox.redis().start_again().await?;
    let back = command(&sandbox, &["status", "--json"]).await?;
    let back: Value = serde_json::from_str(&back.stdout).with_context(|| format!("{back:?}"))?;
    let back = back["generated_at"].as_str().context("no time")?.to_owned();
    let read = shows(&sandbox, &tenant, "the outage", |timeline| {
        has(timeline, "state degraded") && has(timeline, "state idle")
    })
    .await?;
    let outage =
        entries(&read).into_iter().find(|entry| entry["state"] == "degraded").context("no outage")?;
    assert!(
        outage["at"].as_str() < Some(back.as_str()),
        "recorded with its own time, before {back}: {read:#}"
    );
    assert!(outage["reason"].as_str().is_some_and(|reason| reason.starts_with("redis_")), "{outage}");
    let gap = |timeline: &Value| has(timeline, "not_recorded -");
    let start = entries(&read)
        .into_iter()
        .find(|entry| entry["kind"] == "worker_started")
        .and_then(|entry| entry["at"].as_str())
        .context("no start")?
        .to_owned();
    let since_start = |timeline: &Value| -> Vec<String> {
        let late = entries(timeline).into_iter().filter(|entry| entry["at"].as_str() > Some(start.as_str()));
        late.map(|entry| entry["kind"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert!(gap(&read), "before it, nothing was recorded: {read:#}");
    assert!(!since_start(&read).contains(&"not_recorded".to_owned()), "{read:#}");

    // It dies with what it has seen.
    sandbox.redis().kill()?;
    one.reaches("balance_sync_tenant_degraded", &[], 1.0).await?;
    let known = one.metric(progress, &[("task", "timeline")]).await?;
    one.reaches(progress, &[("task", "timeline")], known + 4.0).await?;
    one.kill().await?;
    sandbox.redis().start_again().await?;
    let mut two = Worker::of(&sandbox).set("worker.name", "two").start().await?;
    let read = shows(&sandbox, &tenant, "the gap", |timeline| has(timeline, "worker_lost one")).await?;
    let kinds = since_start(&read);
    assert!(kinds.contains(&"not_recorded".to_owned()), "{read:#}");
    in_order(&read, &["worker_started one", "not_recorded -", "worker_started two"])?;
    let text = command(&sandbox, &["timeline", &tenant]).await?;
    assert!(text.stdout.contains("worker one was heard of last"), "{}", text.stdout);
    assert_eq!(two.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_record_that_redis_has_lost_is_not_taken_for_a_quiet_day() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0).id;
    let mut one =
        Worker::of(&sandbox).set("worker.name", "one").expect_error("Redis has lost all").start().await?;
    sandbox.producer().mutate_each(DEFAULT_TTL).await?;
    let read = shows(&sandbox, &tenant, "the start", |timeline| has(timeline, "worker_started one")).await?;
    let start = |timeline: &Value| {
        let entry = entries(timeline).into_iter().find(|entry| entry["kind"] == "worker_started").cloned();
        entry.and_then(|entry| Some(entry["at"].as_str()?.to_owned()))
    };
    let started = start(&read);
    let gap_after = |timeline: &Value| {
        entries(timeline).into_iter().any(|entry| {
            entry["kind"] == "not_recorded" && entry["until"].as_str().map(str::to_owned) > started
        })
    };
    assert!(!gap_after(&read), "{read:#}");
    // More than there is between the start of a worker and its first look.
    let mut redis = sandbox.redis().connect().await?;
    let now = redis_time(&mut redis).await?;
    eventually(SOON, "three seconds of its life", || async {
        let passed = redis_time(&mut sandbox.redis().connect().await?).await? - now;
        ensure!(passed > 3.0, "{passed} s");
        Ok(())
    })
    .await?;
    let () = redis::cmd("FLUSHALL").query_async(&mut redis).await?;
    let again = |timeline: &Value| has(timeline, "worker_started one") && gap_after(timeline);
    let read = shows(&sandbox, &tenant, "a record that begins anew", again).await?;
    assert_eq!(start(&read), started, "it is the same process");
    one.stop().await?;
    Ok(())
}
