//! The rollout: which tenants a fleet serves beside the ledger's own worker, changed at run time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Progress, write_operations};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions, SandboxTenant, eventually};
use balance_sync_schedule::{Link, LinkSettings, Snapshots, snapshots::Publication};
use balance_sync_tests::ledger::{comes_in_step, is_settled, scores};
use balance_sync_tests::{Finished, Monitor, SOON, Worker, WorkerBuilder, options, run};
use redis::AsyncCommands;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::{ask, json, post, texts};
use crate::openapi::Description;

/// Where the rollout is stored.
const STORED: &str = "{transactions}:balance-sync:rollout";

async fn sandbox(tenants: usize, balances: usize) -> Result<Sandbox> {
    Sandbox::start(SandboxOptions { isolation: Isolation::Schema, ..options(tenants, balances) }).await
}

fn worker(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    Worker::of(sandbox).set("worker.name", name).set("worker.lease", "2s").set("tenants.poll_interval", "1s")
}

/// Runs `balance-sync rollout …`.
async fn command(sandbox: &Sandbox, words: &[&str]) -> Result<Finished> {
    let config = sandbox.config_path().to_string_lossy().into_owned();
    let args: Vec<&str> = ["rollout"].iter().chain(words).copied().chain(["--config", &config]).collect();
    run(&args, &[]).await
}

/// What a command of `balance-sync` prints.
async fn command_json(sandbox: &Sandbox, words: &[&str]) -> Result<Value> {
    let config = sandbox.config_path().to_string_lossy().into_owned();
    let args: Vec<&str> = words.iter().copied().chain(["--config", &config]).collect();
    let done = run(&args, &[]).await?;
    serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))
}

/// Waits until so many workers have reported: who isn't seen is not waited for.
async fn seen(sandbox: &Sandbox, workers: u64) -> Result<()> {
    eventually(SOON, &format!("{workers} workers seen"), || async {
        let overview = command_json(sandbox, &["status", "--json"]).await?;
        ensure!(overview["workers"]["live"].as_u64() >= Some(workers), "{overview}");
        Ok(())
    })
    .await
}

/// A change of the rollout that all workers are to follow.
async fn change(sandbox: &Sandbox, words: &[&str]) -> Result<String> {
    seen(sandbox, 1).await?;
    let words: Vec<&str> = words.iter().copied().chain(["--wait", "60"]).collect();
    let done = command(sandbox, &words).await?;
    ensure!(done.code == Some(0), "{words:?}: {:?} {} {}", done.code, done.stdout, done.stderr);
    Ok(done.stdout)
}

async fn report(sandbox: &Sandbox) -> Result<Value> {
    let done = command(sandbox, &["status", "--json"]).await?;
    serde_json::from_str(&done.stdout).with_context(|| format!("{} {}", done.stdout, done.stderr))
}

/// The tenants in the rollout and the others, as a worker tells.
async fn halves(worker: &Worker) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let page = json(worker, "/api/v1/tenants?per_page=200").await?;
    let rows = page["tenants"].as_array().context("no tenants")?;
    let (mut inside, mut outside) = (BTreeSet::new(), BTreeSet::new());
    for row in rows {
        let id = row["id"].as_str().context("no id")?.to_owned();
        match row["rollout"].as_str().context("not known")? {
            "included" | "in_share" => inside.insert(id),
            _ => outside.insert(id),
        };
    }
    Ok((inside, outside))
}

/// The schedules of all tenants.
async fn schedules(sandbox: &Sandbox) -> Result<BTreeMap<String, BTreeMap<String, f64>>> {
    let mut all = BTreeMap::new();
    for tenant in sandbox.tenants() {
        all.insert(tenant.id.clone(), scores(sandbox, &tenant.keys.schedule()).await?);
    }
    Ok(all)
}

/// Whether a score is one that the producer wrote, and not that of a lease.
fn is_written_by_the_ledger(score: f64) -> bool {
    (score * 1e6 - (score * 1e6).round()).abs() < 0.25
}

/// Waits until all balances of these tenants are written.
async fn written(sandbox: &Sandbox, ids: &BTreeSet<String>) -> Result<()> {
    for id in ids {
        let tenant = sandbox.tenant(id)?;
        eventually(SOON, "an empty schedule", || is_settled(sandbox, &tenant)).await?;
    }
    Ok(())
}

/// Waits until both workers tell the same of the fleet, and that.
async fn tells(worker: &Worker, inside: usize, total: usize) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    eventually(SOON, &format!("{inside} of {total} in the rollout"), || async {
        let (served, left) = halves(worker).await?;
        ensure!(served.len() == inside && served.len() + left.len() == total, "{served:?} {left:?}");
        let overview = json(worker, "/api/v1/overview").await?;
        ensure!(overview["tenants"]["not_in_rollout"] == total - inside, "{}", overview["tenants"]);
        ensure!(overview["tenants"]["unserved"] == 0, "{}", overview["tenants"]);
        Ok((served, left))
    })
    .await
}

/// Commands that a Redis executed on keys of these tenants, of those that change something.
async fn changes_of(
    monitor: &Monitor,
    sandbox: &Sandbox,
    tenants: &BTreeSet<String>,
) -> Result<Vec<Vec<String>>> {
    let writing = ["ZADD", "ZREM", "SET", "DEL", "UNLINK", "EXPIRE", "PEXPIRE", "PERSIST", "HSET", "HDEL"];
    let of = |word: &String| tenants.iter().any(|id| word.starts_with(&format!("tenant:{id}:")));
    let executed = monitor.executed(sandbox.redis()).await?;
    let words = executed.into_iter().map(|one| one.words);
    Ok(words.filter(|words| writing.contains(&words[0].as_str()) && words[1..].iter().any(of)).collect())
}

#[tokio::test]
async fn a_fleet_takes_tenants_over_step_by_step_and_touches_no_other() -> Result<()> {
    let sandbox = sandbox(20, 5).await?;
    let start = |name| worker(&sandbox, name).set("tenants.share", "0%").start();
    let mut workers = vec![start("one").await?, start("two").await?];
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    let before = schedules(&sandbox).await?;
    // What the producer does from here on isn't between this and the end of the record.
    let monitor = Monitor::begin(sandbox.redis()).await?;

    // Nothing, as it is configured; and that is no HEALTHY fleet.
    tells(&workers[0], 0, 20).await?;
    let overview = json(&workers[0], "/api/v1/overview").await?;
    ensure!(overview["verdict"] == "attention" && overview["rollout"]["is_configured"] == true, "{overview}");
    let reasons = overview["reasons"].to_string();
    ensure!(reasons.contains("None of the 20 tenants is in the rollout"), "{reasons}");
    let first = report(&sandbox).await?;
    ensure!(first["advice"] == "widen" && first["selected"] == 0 && first["revision"] == 0, "{first}");

    // A fifth of them.
    seen(&sandbox, 2).await?;
    let said = change(&sandbox, &["set", "20%", "--note", "first stage"]).await?;
    ensure!(
        said.contains("revision 1 is stored") && said.contains("one  done") && said.contains("two  done"),
        "{said}"
    );
    let (small, _) = eventually(SOON, "some in the rollout", || async {
        let (inside, outside) = halves(&workers[1]).await?;
        ensure!(!inside.is_empty() && !outside.is_empty(), "{inside:?}");
        Ok((inside, outside))
    })
    .await?;
    written(&sandbox, &small).await?;

    // And one by its name, whatever the share.
    let named = sandbox.tenants().into_iter().map(|tenant| tenant.id).find(|id| !small.contains(id));
    let named = named.context("all are in it")?;
    change(&sandbox, &["add", &named, "--note", "they asked for it"]).await?;
    let (inside, outside) = tells(&workers[0], small.len() + 1, 20).await?;
    ensure!(inside.contains(&named) && small.is_subset(&inside), "{inside:?}");
    written(&sandbox, &inside).await?;
    let now = schedules(&sandbox).await?;
    for id in &outside {
        ensure!(now[id] == before[id] && now[id].len() == 5, "{id} was touched: {:?}", now[id]);
    }
    let changed = changes_of(&monitor, &sandbox, &outside).await?;
    ensure!(changed.is_empty(), "{changed:?}");
    let shown = json(&workers[0], &format!("/api/v1/tenants/{}", outside.first().context("none")?)).await?;
    ensure!(
        shown["state"] == "not_in_rollout" && shown["due"] == 5 && shown["owners"] == json!([]),
        "{shown}"
    );
    eventually(SOON, "a healthy fleet", || async {
        let overview = json(&workers[0], "/api/v1/overview").await?;
        let reasons = overview["reasons"].to_string();
        ensure!(reasons.contains(&format!("{} of 20 tenants are in the rollout", inside.len())), "{reasons}");
        ensure!(reasons.contains("they asked for it") && overview["verdict"] == "healthy", "{overview}");
        Ok(())
    })
    .await?;
    let config = sandbox.config_path().to_string_lossy().into_owned();
    let text = run(&["status", "--config", &config], &[]).await?.stdout;
    ensure!(text.contains(&format!("{} of 20 tenants", inside.len())), "{text}");

    // All, and a worker that starts knows it.
    drop(monitor);
    change(&sandbox, &["all"]).await?;
    comes_in_step(&sandbox, &producer).await?;
    workers.push(start("three").await?);
    tells(&workers[2], 20, 20).await?;
    let last = report(&sandbox).await?;
    ensure!(last["advice"] != "stop" && last["selected"] == 20, "{last}");

    // None, and that outlives all workers.
    change(&sandbox, &["none", "--note", "back"]).await?;
    for worker in &mut workers {
        ensure!(worker.stop().await?.code == Some(0));
    }
    producer.mutate_each(DEFAULT_TTL).await?;
    let waiting = schedules(&sandbox).await?;
    let again = [worker(&sandbox, "four").start().await?, worker(&sandbox, "five").start().await?];
    tells(&again[0], 0, 20).await?;
    ensure!(schedules(&sandbox).await? == waiting, "some were claimed");

    // Who did it, and why.
    let log: Value = serde_json::from_str(&command(&sandbox, &["history", "--json"]).await?.stdout)?;
    ensure!(texts(&log["changes"], "change") == ["none", "all", &format!("add {named}"), "set 20%"], "{log}");
    ensure!(log["changes"][0]["note"] == "back" && log["changes"][0]["revision"] == 4, "{log}");
    let actions = json(&again[0], "/api/v1/actions").await?;
    let ours = &actions["actions"][0];
    ensure!(ours["what"] == "rollout" && ours["change"] == "none" && ours["note"] == "back", "{actions}");
    ensure!(ours["by"].as_str().is_some_and(|by| by.starts_with("cli:")), "{ours}");

    // Back to what is configured, which is all of them for these workers.
    change(&sandbox, &["reset"]).await?;
    comes_in_step(&sandbox, &producer).await?;
    Ok(())
}

#[tokio::test]
async fn a_tenant_that_leaves_under_load_is_drained_and_nothing_is_lost_when_it_returns() -> Result<()> {
    let sandbox = sandbox(3, 40).await?;
    let tenants = sandbox.tenants();
    let workers = [worker(&sandbox, "one").start().await?, worker(&sandbox, "two").start().await?];
    let mut producer = sandbox.producer();
    let (progress, over) = (Progress::new(3), CancellationToken::new());
    let load = LoadOptions { rate: 900.0, hot_key_share: 0.3, ..LoadOptions::default() };
    let leaving = &tenants[1];
    seen(&sandbox, 2).await?;
    let drive = async {
        workers[0].reaches("balance_sync_balances_total", &[("outcome", "updated")], 1.0).await.ok();
        for round in 0..3 {
            change(&sandbox, &["exclude", &leaving.id, "--note", &format!("round {round}")]).await?;
            // Once the workers say that they have left it, nothing of it is claimed, however much comes.
            for _ in 0..10 {
                let held = scores(&sandbox, &leaving.keys.schedule()).await?;
                let leased: Vec<_> =
                    held.iter().filter(|(_, score)| !is_written_by_the_ledger(**score)).collect();
                ensure!(leased.is_empty(), "left behind: {leased:?}");
            }
            let version = stored(&sandbox, leaving).await?;
            eventually(SOON, "mutations that wait", || async {
                let waiting = scores(&sandbox, &leaving.keys.schedule()).await?;
                ensure!(waiting.len() > 20, "{} wait", waiting.len());
                Ok(())
            })
            .await?;
            ensure!(stored(&sandbox, leaving).await? == version, "it was written");
            change(&sandbox, &["add", &leaving.id]).await?;
            eventually(SOON, "it is written again", || async {
                ensure!(stored(&sandbox, leaving).await? > version);
                Ok(())
            })
            .await?;
        }
        Ok(())
    };
    let driven = async {
        let driven = drive.await;
        over.cancel();
        driven
    };
    let (load, driven) = tokio::join!(producer.run(&load, &progress, &over), driven);
    driven?;
    ensure!(load?.errors == 0);
    comes_in_step(&sandbox, &producer).await?;
    for worker in workers {
        for reason in ["expired", "missing", "forked"] {
            ensure!(
                worker.metric("balance_sync_balances_total", &[("outcome", reason)]).await? == 0.0,
                "{reason}"
            );
        }
        drop(worker);
    }
    Ok(())
}

/// The sum of the versions of a tenant's rows.
async fn stored(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<i64> {
    let rows = balance_sync_tests::ledger::rows(sandbox, tenant).await?;
    Ok(rows.values().map(|row| row.version).sum())
}

#[tokio::test]
async fn a_worker_that_starts_without_redis_claims_nothing_of_a_tenant_that_is_not_in_the_rollout()
-> Result<()> {
    let sandbox = sandbox(4, 10).await?;
    let tenants = sandbox.tenants();
    let stored = command(&sandbox, &["exclude", "*", "--note", "not yet"]).await?;
    ensure!(stored.code == Some(1) && stored.stdout.contains("no live worker follows it"), "{stored:?}");
    let stored = command(&sandbox, &["remove", "*"]).await?;
    ensure!(stored.code == Some(1), "{stored:?}");
    let stored = command(&sandbox, &["none"]).await?;
    ensure!(stored.code == Some(1), "{stored:?}");
    let stored = command(&sandbox, &["add", &tenants[0].id]).await?;
    ensure!(stored.code == Some(1), "{stored:?}");
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    let before = schedules(&sandbox).await?;
    // What an earlier ledger left is not adopted either.
    let legacy = tenants[1].keys.schedule().trim_end_matches("-v2").to_owned();
    let mut redis = sandbox.redis().connect().await?;
    let _: () = redis.zadd(&legacy, tenants[1].keys.member(&tenants[1].balances[0]), 1_700_000_000).await?;
    let monitor = Monitor::begin(sandbox.redis()).await?;
    sandbox.redis().pause()?;
    let worker = worker(&sandbox, "one").set("redis.response_timeout", "300ms").start_unready().await?;
    eventually(SOON, "it shows why it serves no tenant", || async {
        let page = json(&worker, "/api/v1/tenants").await?;
        let states = texts(&page["tenants"], "state");
        ensure!(states.len() == 4 && states.iter().all(|state| *state == "degraded"), "{page}");
        Ok(())
    })
    .await?;
    sandbox.redis().resume()?;
    written(&sandbox, &BTreeSet::from([tenants[0].id.clone()])).await?;
    tells(&worker, 1, 4).await?;
    let others: BTreeSet<String> = tenants[1..].iter().map(|tenant| tenant.id.clone()).collect();
    let now = schedules(&sandbox).await?;
    for id in &others {
        ensure!(now[id] == before[id], "{id}: {:?}", now[id]);
    }
    let changed = changes_of(&monitor, &sandbox, &others).await?;
    ensure!(changed.is_empty(), "{changed:?}");
    ensure!(redis.zcard::<_, u64>(&legacy).await? == 1, "it was adopted");
    Ok(())
}

#[tokio::test]
async fn the_api_changes_the_rollout_as_the_command_does() -> Result<()> {
    let sandbox = sandbox(4, 3).await?;
    let tenants = sandbox.tenants();
    let worker = worker(&sandbox, "one").start().await?;
    let description = Description::of(&worker).await?;
    let path = "/api/v1/rollout";
    let ordered = async |body: Value| {
        let answer = post(&worker, path, &body).await?;
        description.fits("POST", path, &answer)?;
        anyhow::Ok(answer)
    };
    let answer = ordered(json!({"action": "none", "note": "by the API"})).await?;
    ensure!(answer.status == 202 && answer.body["revision"] == 1, "{}", answer.text);
    tells(&worker, 0, 4).await?;
    let answer = ordered(json!({"action": "add", "tenants": [tenants[2].id]})).await?;
    ensure!(
        answer.status == 202 && answer.body["change"] == format!("add {}", tenants[2].id),
        "{}",
        answer.text
    );
    let (inside, _) = tells(&worker, 1, 4).await?;
    ensure!(inside.contains(&tenants[2].id), "{inside:?}");
    let shown = ask(&worker, "GET", path, &[], None).await?;
    description.fits("GET", path, &shown)?;
    ensure!(shown.body["stages"][0]["revision"] == 2 && shown.body["advice"] == "wait", "{}", shown.text);
    for read in ["/api/v1/overview", "/api/v1/tenants", "/api/v1/workers", "/api/v1/actions"] {
        description.fits("GET", read, &ask(&worker, "GET", read, &[], None).await?)?;
    }
    let detail = ask(&worker, "GET", &format!("/api/v1/tenants/{}", tenants[0].id), &[], None).await?;
    description.fits("GET", "/api/v1/tenants/{id}", &detail)?;
    ensure!(detail.body["rollout"] == "outside_share" && detail.body["next"].is_string(), "{}", detail.text);
    for (wrong, status) in [
        (json!({"action": "set"}), 400),
        (json!({"action": "set", "share": "5"}), 400),
        (json!({"action": "set", "share": "5%", "tenants": ["acme"]}), 400),
        (json!({"action": "widen"}), 400),
        (json!({"action": "add", "tenants": ["a:b"]}), 400),
        (json!({"action": "add", "tenants": []}), 400),
        (json!({"action": "all", "until": "tomorrow"}), 400),
        (json!({"action": "remove", "tenants": ["nobody"]}), 409),
    ] {
        let answer = ordered(wrong.clone()).await?;
        ensure!(answer.status == status, "{wrong}: {}", answer.text);
    }
    ensure!(worker.metric("balance_sync_rollout_selected_tenants", &[]).await? == 1.0);
    ensure!(worker.metric("balance_sync_rollout_revision", &[]).await? == 2.0);
    Ok(())
}

#[tokio::test]
async fn what_is_stored_and_not_understood_changes_nothing_and_is_reported() -> Result<()> {
    let sandbox = sandbox(3, 5).await?;
    let tenants = sandbox.tenants();
    let mut first = worker(&sandbox, "one").start().await?;
    change(&sandbox, &["exclude", &tenants[2].id]).await?;
    let mut redis = sandbox.redis().connect().await?;
    let mut producer = sandbox.producer();
    for hostile in [
        "{".to_owned(),
        r#"{"include":[],"exclude":[],"share":10000,"only_after":"2027-01-01"}"#.to_owned(),
        "[".repeat(500_000),
        "x".repeat(2 << 20),
        "{\"include\":[\"\u{1b}[31m\"],\"exclude\":[],\"share\":1}".to_owned(),
    ] {
        let _: () = redis.hset(STORED, "selection", &hostile).await?;
        eventually(SOON, "it is reported", || async {
            let overview = json(&first, "/api/v1/overview").await?;
            let reasons = overview["reasons"].to_string();
            let known = "the last one that was known stays in force";
            ensure!(reasons.contains("can't be followed") && reasons.contains(known), "{reasons}");
            ensure!(overview["verdict"] == "attention" && !reasons.contains('\u{1b}'), "{overview}");
            Ok(())
        })
        .await?;
        producer.mutate_each(DEFAULT_TTL).await?;
        written(&sandbox, &tenants[..2].iter().map(|tenant| tenant.id.clone()).collect()).await?;
        ensure!(scores(&sandbox, &tenants[2].keys.schedule()).await?.len() == 5, "it was claimed");
        let refused = command(&sandbox, &["set", "5%"]).await?;
        ensure!(refused.code == Some(2) && refused.stderr.contains("replace it"), "{refused:?}");
        let shown = command(&sandbox, &["status"]).await?;
        ensure!(shown.code == Some(2) && shown.stdout.starts_with("Wait: "), "{shown:?}");
        ensure!(!shown.stdout.contains('\u{1b}'), "{shown:?}");
    }
    // One that starts now knows nothing, and serves no tenant.
    ensure!(first.stop().await?.code == Some(0));
    producer.mutate_each(DEFAULT_TTL).await?;
    let legacy = tenants[0].keys.schedule().trim_end_matches("-v2").to_owned();
    let _: () = redis.zadd(&legacy, tenants[0].keys.member(&tenants[0].balances[0]), 1_700_000_000).await?;
    // Ready: its collectors are there, and show why they claim nothing.
    let second = worker(&sandbox, "two").start().await?;
    second.reaches("balance_sync_collector_starts_total", &[], 3.0).await?;
    let seen = std::cell::RefCell::new(BTreeSet::new());
    eventually(SOON, "three reports of what they do", || async {
        let list = json(&second, "/api/v1/workers").await?;
        let at = list["workers"][0]["seen_at"].as_str().context("no worker")?.to_owned();
        seen.borrow_mut().insert(at);
        ensure!(seen.borrow().len() > 3, "{:?}", seen.borrow());
        Ok(())
    })
    .await?;
    eventually(SOON, "it says so", || async {
        let overview = json(&second, "/api/v1/overview").await?;
        let reasons = overview["reasons"].to_string();
        // Nor is it known how they are.
        ensure!(["degraded", "unknown"].iter().any(|verdict| overview["verdict"] == *verdict), "{overview}");
        ensure!(reasons.contains("two serve no tenant until it can"), "{reasons}");
        Ok(())
    })
    .await?;
    for tenant in &tenants {
        let waiting = scores(&sandbox, &tenant.keys.schedule()).await?;
        let untouched = waiting.values().all(|score| is_written_by_the_ledger(*score));
        ensure!(waiting.len() == 5 && untouched, "{} was claimed: {waiting:?}", tenant.id);
    }
    ensure!(redis.zcard::<_, u64>(&legacy).await? == 1, "it was adopted");
    change(&sandbox, &["all"]).await?;
    comes_in_step(&sandbox, &producer).await?;
    Ok(())
}

#[tokio::test]
async fn differing_configurations_are_shown_and_what_is_stored_wins_over_them() -> Result<()> {
    let sandbox = sandbox(4, 3).await?;
    let tenants = sandbox.tenants();
    let one = worker(&sandbox, "one").set("tenants.share", "0%").set("tenants.include", &tenants[0].id);
    let one = one.start().await?;
    let two = worker(&sandbox, "two").set("tenants.exclude", "tenant-*").start().await?;
    eventually(SOON, "that they differ", || async {
        let reasons = json(&one, "/api/v1/overview").await?["reasons"].to_string();
        ensure!(reasons.contains("Workers differ in tenants.include, exclude and share"), "{reasons}");
        Ok(())
    })
    .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    // What a change would build on isn't known.
    seen(&sandbox, 2).await?;
    let refused = command(&sandbox, &["set", "50%"]).await?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("begin with `none` or `all`"), "{refused:?}");
    change(&sandbox, &["none"]).await?;
    // Exclusion wins over all else.
    let glob = format!("{}*", &tenants[3].id);
    change(&sandbox, &["exclude", &glob]).await?;
    let refused = command(&sandbox, &["add", &tenants[3].id]).await?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("would stay excluded"), "{refused:?}");
    change(&sandbox, &["all"]).await?;
    let (inside, outside) = tells(&two, 3, 4).await?;
    ensure!(outside.contains(&tenants[3].id), "{outside:?}");
    written(&sandbox, &inside).await?;
    ensure!(scores(&sandbox, &tenants[3].keys.schedule()).await?.len() == 3, "it was claimed");
    for wrong in [&["set", "101%"][..], &["set", "5"], &["add", "a:b"], &["remove", "nobody"]] {
        let refused = command(&sandbox, wrong).await?;
        ensure!(refused.code == Some(2) && !refused.stderr.is_empty(), "{wrong:?}: {refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stage_is_judged_by_what_was_written_and_lost_in_it() -> Result<()> {
    let sandbox = sandbox(3, 20).await?;
    let tenants = sandbox.tenants();
    let settings =
        |builder: WorkerBuilder| builder.set("tenants.share", "0%").set("admin.freshness_objective", "1m");
    let worker = settings(worker(&sandbox, "one")).start().await?;
    change(&sandbox, &["add", &tenants[0].id, "--note", "the first"]).await?;
    let early = report(&sandbox).await?;
    ensure!(early["advice"] == "wait", "{early}");
    let mut producer = sandbox.producer();
    let (progress, over) = (Progress::new(3), CancellationToken::new());
    let load = LoadOptions { rate: 300.0, ..LoadOptions::default() };
    let judged = async {
        let config = sandbox.config_path().to_string_lossy().into_owned();
        let env = [
            ("BALANCE_SYNC__OBJECTIVES__ROLLOUT_TIME", "10s"),
            ("BALANCE_SYNC__OBJECTIVES__ROLLOUT_MUTATIONS", "200"),
            ("BALANCE_SYNC__ADMIN__FRESHNESS_OBJECTIVE", "1m"),
        ];
        let judged = eventually(SOON, "enough of the stage", || async {
            let done = run(&["rollout", "status", "--json", "--config", &config], &env).await?;
            let report: Value = serde_json::from_str(&done.stdout)?;
            ensure!(report["advice"] == "widen" && done.code == Some(0), "{report}");
            Ok(report)
        })
        .await;
        over.cancel();
        judged
    };
    let (load, judged) = tokio::join!(producer.run(&load, &progress, &over), judged);
    ensure!(load?.errors == 0);
    let stage = &judged?["stages"][0];
    ensure!(stage["revision"] == 1 && stage["tenants"] == 1 && stage["note"] == "the first", "{stage}");
    ensure!(
        stage["written"].as_u64() >= Some(200) && stage["observed_seconds"].as_f64() >= Some(10.0),
        "{stage}"
    );
    ensure!(stage["lag_p99_seconds"].is_f64() && stage["losses"] == 0 && stage["forks"] == 0, "{stage}");
    // A value that is gone before it is written is a loss of this stage.
    let mut redis = sandbox.redis().connect().await?;
    let (tenant, balance) = (&tenants[0], &tenants[0].balances[0]);
    let (pool, member) = (sandbox.pool(tenant), tenant.keys.member(balance));
    write_operations(&pool, tenant.schema.as_deref(), &[(balance, 1_000_000)]).await?;
    pool.close().await;
    let _: () = redis.del(&member).await?;
    let _: () = redis.zadd(tenant.keys.schedule(), &member, 1_700_000_000).await?;
    eventually(SOON, "a loss stops it", || async {
        let report = report(&sandbox).await?;
        ensure!(report["advice"] == "stop", "{report}");
        ensure!(report["sentence"].as_str().is_some_and(|text| text.starts_with("Stop: ")), "{report}");
        Ok(())
    })
    .await?;
    drop(worker);
    Ok(())
}

#[tokio::test]
async fn a_shadow_shows_what_the_rollout_would_select() -> Result<()> {
    let sandbox = sandbox(4, 3).await?;
    let tenants = sandbox.tenants();
    let shadow = worker(&sandbox, "onlooker").set("worker.mode", "shadow").start().await?;
    for words in [&["none"][..], &["add", &tenants[1].id]] {
        ensure!(command(&sandbox, words).await?.code == Some(1), "a shadow serves no tenant");
    }
    eventually(SOON, "what would be selected", || async {
        let (inside, outside) = halves(&shadow).await?;
        ensure!(
            inside == BTreeSet::from([tenants[1].id.clone()]) && outside.len() == 3,
            "{inside:?} {outside:?}"
        );
        let page = json(&shadow, "/api/v1/tenants").await?;
        ensure!(texts(&page["tenants"], "state").iter().all(|state| *state == "shadow"), "{page}");
        Ok(())
    })
    .await?;
    tokio::time::timeout(Duration::from_secs(60), async { drop(shadow) }).await?;
    Ok(())
}

#[tokio::test]
async fn beside_a_worker_of_an_earlier_release_no_tenant_can_be_left_out() -> Result<()> {
    /// Longer than the test.
    const LIFE: Duration = Duration::from_secs(600);
    /// Prefix of the list of workers that publish.
    const INDEX: &str = "{transactions}:balance-sync:worker-1:";
    let sandbox = sandbox(3, 2).await?;
    let tenants = sandbox.tenants();
    let follows = worker(&sandbox, "later").start().await?;
    seen(&sandbox, 1).await?;

    // The record of the worker, as a release without rollouts would publish it.
    let mut redis = sandbox.redis().connect().await?;
    let records: String = redis.keys::<_, Vec<String>>(format!("{INDEX}*:later")).await?.remove(0);
    let group =
        records.strip_prefix(INDEX).and_then(|rest| rest.strip_suffix(":later")).context("a group")?;
    let own: String = redis.hget(&records, "worker").await?;
    let mut own: Value = serde_json::from_str(&own)?;
    own["name"] = json!("earlier");
    own.as_object_mut().context("an object")?.remove("rollout").context("it follows one")?;
    let snapshots = Snapshots::new(Link::new(&LinkSettings::for_url(&sandbox.redis().url()))?, group);
    let record = own.to_string();
    let publication = Publication {
        incarnation: "earlier",
        seq: 1,
        visible: true,
        worker: &record,
        tenants: &[],
        details: &[],
    };
    snapshots.publish("earlier", LIFE, &publication).await?;
    seen(&sandbox, 2).await?;

    for words in [&["set", "50%"][..], &["none"], &["exclude", &tenants[0].id]] {
        let refused = command(&sandbox, words).await?;
        let text = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(refused.code == Some(2), "{words:?}: {refused:?}");
        ensure!(text.contains("know no rollout") && text.contains("as well: earlier. Upgrade"), "{text}");
    }
    eventually(SOON, "two workers in the worker's own view", || async {
        let overview = json(&follows, "/api/v1/overview").await?;
        ensure!(overview["workers"]["live"] == 2, "{}", overview["workers"]);
        Ok(())
    })
    .await?;
    let refused = post(&follows, "/api/v1/rollout", &json!({"action": "none"})).await?;
    ensure!(refused.status == 409 && refused.text.contains("earlier"), "{}", refused.text);
    ensure!(redis.exists::<_, u64>(STORED).await? == 0, "it was stored");
    // All of them leaves none out.
    let all = command(&sandbox, &["all", "--wait", "60"]).await?;
    ensure!(all.code == Some(0) && all.stdout.contains("later  done"), "{all:?}");
    // Stored before it was there: the verdict names it, and the advice is to stop.
    let _: () = redis.hset(STORED, "selection", r#"{"include":[],"exclude":[],"share":0}"#).await?;
    eventually(SOON, "it in verdict and advice", || async {
        let reasons = json(&follows, "/api/v1/overview").await?["reasons"].to_string();
        let report = report(&sandbox).await?;
        let sentence =
            "Stop: workers of an earlier release serve tenants that are not in it as well: earlier.";
        ensure!(reasons.contains("know no rollout") && report["sentence"] == sentence, "{reasons} {report}");
        Ok(())
    })
    .await?;
    Ok(())
}
