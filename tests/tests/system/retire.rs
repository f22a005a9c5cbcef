//! Going back to the ledger's own worker, at any moment and under load, and forward again. Whether a mutation is lost is judged by the
//! producer's own record.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Producer, Progress, put_raw, write_operations};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions, SandboxTenant, balance_table, eventually};
use balance_sync_tests::command::prepare;
use balance_sync_tests::ledger::{
    all_settled, claimed, comes_in_step, is_settled, losses_key, quarantine_key, row, rows, scores,
    slow_updates,
};
use balance_sync_tests::{Audit, Finished, LedgerWorker, SOON, Worker, WorkerBuilder, options, run};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use redis::AsyncCommands as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::api::json;

/// What stays of ours in Redis after all.
const KEPT: [&str; 5] = ["actions", "data-set", "data-set:process", "rollout", "rollout-history"];
/// Hashes of the fleet with fields that are of one tenant, by its schedule's key or its id.
const HASHES: [&str; 6] =
    ["paused", "acknowledged-entries", "entry-events", "vanished", "neighbours", "postgres-servers"];

async fn sandbox(tenants: usize, balances: usize) -> Result<Sandbox> {
    Sandbox::start(SandboxOptions { isolation: Isolation::Schema, ..options(tenants, balances) }).await
}

fn worker(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    Worker::of(sandbox)
        .set("worker.name", name)
        .set("worker.lease", "2s")
        .set("claim.mode", "auto")
        .set("tenants.poll_interval", "1s")
}

async fn ledger_worker(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<LedgerWorker> {
    let mut ledger = LedgerWorker::new(tenant, sandbox.redis().connect().await?, sandbox.pool(tenant));
    // Ten minutes of such a test, and no shorter than a flush takes here.
    ledger.lock_life = Duration::from_secs(5);
    Ok(ledger)
}

/// Runs a command of `balance-sync` with this sandbox's configuration.
async fn command(sandbox: &Sandbox, words: &[&str]) -> Result<Finished> {
    let config = sandbox.config_path().display().to_string();
    run(&[words, &["--config", &config]].concat(), &[]).await
}

/// Runs `retire`, which has to come to its end; gives its report.
async fn retire(sandbox: &Sandbox, words: &[&str]) -> Result<Value> {
    let all = [&["retire", "--json", "--note", "a test"], words].concat();
    let done = command(sandbox, &all).await?;
    ensure!(done.code == Some(0), "{all:?}: {:?} {} {}", done.code, done.stdout, done.stderr);
    let answer: Value = serde_json::from_str(&done.stdout)?;
    ensure!(answer["result"] == "retired", "{answer}");
    Ok(answer["report"].clone())
}

/// Runs `retire`, which has to refuse or to leave something open; gives what it says.
async fn refused(sandbox: &Sandbox, words: &[&str]) -> Result<Value> {
    let all = [&["retire", "--json", "--note", "a test"], words].concat();
    let done = command(sandbox, &all).await?;
    ensure!(done.code == Some(1), "{all:?}: {:?} {} {}", done.code, done.stdout, done.stderr);
    Ok(serde_json::from_str(&done.stdout)?)
}

/// All keys in Redis.
async fn keys(sandbox: &Sandbox) -> Result<BTreeSet<String>> {
    let mut redis = sandbox.redis().connect().await?;
    Ok(redis::cmd("KEYS").arg("*").query_async(&mut redis).await?)
}

/// Whether nothing of ours is left of a tenant: no key, no field, no lock, no lease.
async fn is_gone(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<()> {
    let mut redis = sandbox.redis().connect().await?;
    let prefix = tenant.keys.prefix();
    for key in keys(sandbox).await? {
        let own = key.strip_prefix(prefix);
        if own.is_some_and(|own| own.starts_with("lock:")) {
            let holder: Option<String> = redis.get(&key).await?;
            ensure!(holder.as_deref().is_none_or(|holder| holder == "1"), "{key}: {holder:?}");
        } else if let Some(own) = own {
            let is_ledgers = ["balance:", "schedule:"].iter().any(|kind| own.starts_with(kind));
            ensure!(is_ledgers, "{key} is left");
        } else {
            ensure!(!key.ends_with(&format!(":{}", tenant.id)), "{key} is left");
        }
    }
    for hash in HASHES {
        let key = format!("{{transactions}}:balance-sync:{hash}");
        for field in [tenant.id.clone(), tenant.keys.schedule()] {
            ensure!(!redis.hexists::<_, _, bool>(&key, &field).await?, "{key} has {field}");
        }
    }
    let leased: Vec<_> = scores(sandbox, &tenant.keys.schedule())
        .await?
        .into_iter()
        .filter(|(_, score)| !is_written_by_the_ledger(*score))
        .collect();
    ensure!(leased.is_empty(), "still claimed: {leased:?}");
    Ok(())
}

/// Whether a score is one that the producer could have written, and not that of a lease.
fn is_written_by_the_ledger(score: f64) -> bool {
    (score * 1e6 - (score * 1e6).round()).abs() < 0.25
}

/// Waits until the commands see so many workers.
async fn seen(sandbox: &Sandbox, workers: u64) -> Result<()> {
    eventually(SOON, &format!("{workers} workers seen"), || async {
        let done = command(sandbox, &["status", "--json"]).await?;
        let overview: Value = serde_json::from_str(&done.stdout)?;
        ensure!(overview["workers"]["live"].as_u64() == Some(workers), "{overview}");
        Ok(())
    })
    .await
}

/// Takes tenants into the rollout again.
async fn forward(sandbox: &Sandbox, words: &[&str]) -> Result<()> {
    let done = command(sandbox, &[&["rollout"], words, &["--wait", "60"]].concat()).await?;
    ensure!(done.code == Some(0), "{done:?}");
    Ok(())
}

/// The sum of the versions of a tenant's rows.
async fn stored(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<i64> {
    Ok(rows(sandbox, tenant).await?.values().map(|row| row.version).sum())
}

/// Waits until rows of the tenant move.
async fn moves(sandbox: &Sandbox, tenant: &SandboxTenant, by: &str) -> Result<()> {
    let before = stored(sandbox, tenant).await?;
    eventually(SOON, &format!("rows that are written by {by}"), || async {
        ensure!(stored(sandbox, tenant).await? > before);
        Ok(())
    })
    .await
}

/// Plays a test while mutations go on, and ends them.
async fn under_load<T>(
    producer: &mut Producer,
    rate: f64,
    test: impl Future<Output = Result<T>>,
) -> Result<T> {
    let (progress, over) = (Progress::new(producer.tenants().len()), CancellationToken::new());
    let options = LoadOptions { rate, duration: None, hot_key_share: 0.3, ..LoadOptions::default() };
    let played = async {
        let played = test.await;
        over.cancel();
        played
    };
    let (report, played) = tokio::join!(producer.run(&options, &progress, &over), played);
    let played = played?;
    ensure!(report?.errors == 0, "the load failed");
    Ok(played)
}

/// Plays a test while the ledger's own worker runs, and ends that, at once or as SIGTERM does.
async fn beside<T>(
    ledger: &mut LedgerWorker,
    kills: bool,
    test: impl Future<Output = Result<T>>,
) -> Result<T> {
    let over = CancellationToken::new();
    let running = ledger.run(&over);
    tokio::pin!(running, test);
    let played = tokio::select! {
        played = &mut test => played,
        _ = &mut running => anyhow::bail!("it ended"),
    };
    if !kills {
        over.cancel();
        running.await;
    }
    played
}

/// Nothing that a worker of ours says looks like lost data.
async fn no_alarm(worker: &Worker) -> Result<()> {
    eventually(SOON, "a verdict without lost data", || async {
        let overview = json(worker, "/api/v1/overview").await?;
        let reasons = overview["reasons"].to_string();
        for word in ["lost", "evicted", "no mark", "restarted"] {
            ensure!(!reasons.contains(word), "{reasons}");
        }
        Ok(())
    })
    .await?;
    for alarm in [
        "redis has lost data of a tenant",
        "Redis has no mark of an earlier worker: it is new, or has lost all its data while no worker ran: what it holds is compared with rows \
         and operations",
    ] {
        ensure!(worker.log().find(alarm).is_none(), "{alarm}");
    }
    ensure!(worker.metric("balance_sync_balances_total", &[("outcome", "expired")]).await? == 0.0);
    Ok(())
}

/// So many times back and forward at random moments; with `kills`, workers of ours and pods of the ledger are killed meanwhile.
async fn back_and_forward(seed: u64, rounds: u32, kills: bool) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let sandbox = sandbox(2, 120).await?;
    let tenants = sandbox.tenants();
    let going = &tenants[0];
    for tenant in &tenants {
        Audit::begin(&sandbox, tenant).await?;
    }
    let names = ["one", "two"];
    let ours = |name| worker(&sandbox, name);
    let mut workers = [ours(names[0]).start().await?, ours(names[1]).start().await?];
    seen(&sandbox, 2).await?;
    let mut producer = sandbox.producer();
    let played = async {
        for round in 0..rounds {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
            let mut ledger = ledger_worker(&sandbox, going).await?;
            let (all, is_early) = (rng.random_bool(0.3), rng.random_bool(0.5));
            let words: Vec<&str> = if all { vec!["--all"] } else { vec!["--tenant", &going.id] };
            // Killed with what it holds, shortly before or during it.
            let killed = (kills && rng.random_bool(0.6)).then(|| rng.random_range(0..2));
            let delay = Duration::from_millis(rng.random_range(0..1200));
            let back = async {
                let dying = async {
                    if let Some(at) = killed {
                        tokio::time::sleep(delay).await;
                        workers[at].kill().await?;
                    }
                    anyhow::Ok(())
                };
                let (report, died) = tokio::join!(retire(&sandbox, &words), dying);
                died?;
                report.with_context(|| format!("round {round}"))
            };
            let handed = async {
                is_gone(&sandbox, going).await.with_context(|| format!("round {round}"))?;
                moves(&sandbox, going, "the ledger's own worker").await
            };
            // Its pods run before we go, or come afterwards.
            if is_early {
                let both = Box::pin(async {
                    back.await?;
                    handed.await
                });
                beside(&mut ledger, kills && rng.random_bool(0.5), both).await?;
            } else {
                back.await?;
                beside(&mut ledger, kills && rng.random_bool(0.5), Box::pin(handed)).await?;
            }
            if let Some(at) = killed {
                workers[at] = ours(names[at]).start().await?;
                seen(&sandbox, 2).await?;
            }
            let version = stored(&sandbox, going).await?;
            if all {
                forward(&sandbox, &["all"]).await?;
            }
            // `all` keeps exclusions.
            let done = command(&sandbox, &["rollout", "remove", &going.id, "--wait", "60"]).await?;
            ensure!(done.code == Some(0) || all, "{done:?}");
            eventually(SOON, "it is written by us again", || async {
                ensure!(stored(&sandbox, going).await? > version);
                Ok(())
            })
            .await?;
        }
        Ok(())
    };
    under_load(&mut producer, 300.0, Box::pin(played)).await.with_context(|| format!("seed {seed}"))?;
    comes_in_step(&sandbox, &producer).await.with_context(|| format!("seed {seed}"))?;
    all_settled(&sandbox).await?;
    for tenant in &tenants {
        let pool = sandbox.pool(tenant);
        let audit = Audit::read(&pool, tenant).await?;
        pool.close().await;
        ensure!(audit.not_forward == 0, "seed {seed}: {audit:?}");
    }
    for worker in &mut workers {
        no_alarm(worker).await.with_context(|| format!("seed {seed}"))?;
        worker.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_goes_back_under_load_and_forward_again_at_random_moments() -> Result<()> {
    back_and_forward(11, 3, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make retire"]
#[allow(clippy::print_stderr)] // the seed, and what came of it
async fn back_and_forward_many_times_with_workers_killed_meanwhile() -> Result<()> {
    let setting = std::env::var("CHAOS_SEED").ok().filter(|text| !text.is_empty());
    let seed: u64 = match setting {
        Some(text) => text.parse().with_context(|| format!("CHAOS_SEED = {text}"))?,
        None => rand::rng().random_range(0..1_000_000),
    };
    let rounds = std::env::var("RETIRE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    eprintln!("retire: seed {seed} (CHAOS_SEED={seed} replays its choices)");
    back_and_forward(seed, rounds, true).await?;
    eprintln!("retire: seed {seed}: {rounds} times back and forward, 0 lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_killed_worker_all_goes_back_at_once_and_nothing_but_the_record_is_left() -> Result<()> {
    let sandbox = sandbox(2, 40).await?;
    let tenants = sandbox.tenants();
    let tenant = &tenants[0];
    let mut producer = sandbox.producer();
    // With locks, and claims that nobody else could take for ten minutes.
    let mut ours = worker(&sandbox, "one")
        .set("claim.mode", "lock")
        .set("claim.ttl", "10m")
        .set("claim.protect_floor", "40m")
        .start()
        .await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    slow_updates(&sandbox, tenant, Duration::from_secs(3)).await?;
    producer.mutate_each(Duration::from_secs(600)).await?;
    eventually(SOON, "claims", || async {
        ensure!(claimed(&sandbox, tenant).await? > 10);
        Ok(())
    })
    .await?;
    ours.kill().await?;
    slow_updates(&sandbox, tenant, Duration::ZERO).await?;
    ensure!(claimed(&sandbox, tenant).await? > 10, "all are claimed");
    // A lock whose member is not scheduled any more, and the traces of operators.
    let mut redis = sandbox.redis().connect().await?;
    let stray = tenant.keys.lock("gone");
    redis.set::<_, _, ()>(&stray, "one:0123").await?;
    let theirs = tenant.keys.lock("theirs");
    redis.set::<_, _, ()>(&theirs, "1").await?;

    let report = retire(&sandbox, &["--all"]).await?;
    let of = &report["tenants"][0];
    ensure!(of["given_back"].as_u64() > Some(10) && of["unlocked"].as_u64() > Some(10), "{report}");
    ensure!(
        of["scheduled"].as_u64() >= of["given_back"].as_u64() && of["behind"] == of["scheduled"],
        "{report}"
    );
    ensure!(of["kept_alive"].as_u64() > Some(10), "{report}");
    let ttl: i64 = redis.ttl(tenant.keys.member(&tenant.balances[0])).await?;
    ensure!(ttl > 80_000, "the value lives for {ttl} s");
    ensure!(redis.exists::<_, bool>(&theirs).await?, "the ledger's lock is gone");
    redis.del::<_, ()>(&theirs).await?;
    for tenant in &tenants {
        is_gone(&sandbox, tenant).await?;
    }
    let ours_left: BTreeSet<String> = keys(&sandbox)
        .await?
        .into_iter()
        .filter_map(|key| key.strip_prefix("{transactions}:balance-sync:").map(str::to_owned))
        .collect();
    ensure!(ours_left == KEPT.map(str::to_owned).into(), "{ours_left:?}");
    // The log says who and why.
    let log = command(&sandbox, &["actions", "--json"]).await?;
    let log: Value = serde_json::from_str(&log.stdout)?;
    let action = &log["actions"].as_array().into_iter().flatten().find(|one| one["what"] == "retire");
    let action = action.context("no action")?;
    ensure!(action["note"] == "a test" && action["outcomes"][0]["outcome"] == "done", "{action}");

    // Twice does no harm.
    let again = retire(&sandbox, &["--all"]).await?;
    ensure!(again["tenants"][0]["given_back"] == 0 && again["fleet_keys_removed"] == 0, "{again}");
    ensure!(again["revision"] == report["revision"], "{again}");

    // A worker that starts then serves no tenant.
    let before = scores(&sandbox, &tenant.keys.schedule()).await?;
    let mut next = worker(&sandbox, "two").start().await?;
    eventually(SOON, "it serves no tenant", || async {
        let overview = json(&next, "/api/v1/overview").await?;
        ensure!(overview["tenants"]["not_in_rollout"] == 2, "{overview}");
        Ok(())
    })
    .await?;
    ensure!(scores(&sandbox, &tenant.keys.schedule()).await? == before);

    // The ledger's own worker takes them over, and the fleet takes them back.
    for tenant in &tenants {
        let mut ledger = ledger_worker(&sandbox, tenant).await?;
        beside(&mut ledger, false, eventually(SOON, "an empty schedule", || is_settled(&sandbox, tenant)))
            .await?;
    }
    comes_in_step(&sandbox, &producer).await?;
    seen(&sandbox, 1).await?;
    forward(&sandbox, &["all"]).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    eventually(SOON, "a healthy fleet", || async {
        let overview = json(&next, "/api/v1/overview").await?;
        ensure!(overview["verdict"] == "healthy" || overview["verdict"] == "attention", "{overview}");
        no_alarm(&next).await
    })
    .await?;
    assert_eq!(next.stop().await?.code, Some(0));
    Ok(())
}

/// Starts the command and kills it when it has begun this step.
async fn broken_off(sandbox: &Sandbox, tenant: &SandboxTenant, step: u32) -> Result<()> {
    let config = sandbox.config_path().display().to_string();
    let args = ["retire", "--tenant", &tenant.id, "--note", "a test", "--config", &config];
    let mut command = prepare(&args, &BTreeMap::new())?;
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn()?;
        let errors = BufReader::new(child.stderr.take().context("standard error")?);
        for line in errors.lines() {
            if line?.starts_with(&format!("retire: {step} of 6")) {
                break;
            }
        }
        child.kill()?;
        child.wait()?;
        anyhow::Ok(())
    })
    .await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_killed_at_any_step_goes_on_from_there() -> Result<()> {
    let sandbox = sandbox(1, 100).await?;
    let tenant = &sandbox.tenants()[0];
    let mut ours = worker(&sandbox, "one").start().await?;
    seen(&sandbox, 1).await?;
    let mut producer = sandbox.producer();
    let played = async {
        for step in 1..=6 {
            moves(&sandbox, tenant, "us").await?;
            broken_off(&sandbox, tenant, step).await?;
            retire(&sandbox, &["--tenant", &tenant.id]).await.with_context(|| format!("step {step}"))?;
            is_gone(&sandbox, tenant).await.with_context(|| format!("step {step}"))?;
            let mut ledger = ledger_worker(&sandbox, tenant).await?;
            beside(&mut ledger, false, moves(&sandbox, tenant, "the ledger's own worker")).await?;
            forward(&sandbox, &["remove", &tenant.id]).await?;
        }
        Ok(())
    };
    under_load(&mut producer, 200.0, Box::pin(played)).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    no_alarm(&ours).await?;
    assert_eq!(ours.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_leave_in_time_is_named_and_nothing_is_removed() -> Result<()> {
    let sandbox = sandbox(1, 10).await?;
    let tenant = &sandbox.tenants()[0];
    let mut producer = sandbox.producer();
    let mut ours = worker(&sandbox, "one").start().await?;
    seen(&sandbox, 1).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    slow_updates(&sandbox, tenant, Duration::from_millis(600)).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    eventually(SOON, "claims", || async {
        ensure!(claimed(&sandbox, tenant).await? > 0);
        Ok(())
    })
    .await?;
    let said = refused(&sandbox, &["--tenant", &tenant.id, "--drain", "1"]).await?;
    let why = said["why"].as_str().context("no reason")?;
    ensure!(why.contains("these workers have not left within 1 s: one"), "{why}");
    ensure!(claimed(&sandbox, tenant).await? > 0, "what it holds is left to it");
    slow_updates(&sandbox, tenant, Duration::ZERO).await?;
    retire(&sandbox, &["--tenant", &tenant.id]).await?;
    is_gone(&sandbox, tenant).await?;
    let mut ledger = ledger_worker(&sandbox, tenant).await?;
    beside(&mut ledger, false, comes_in_step(&sandbox, &producer)).await?;
    assert_eq!(ours.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balances_whose_values_are_gone_are_not_handed_over_silently() -> Result<()> {
    let sandbox = sandbox(1, 4).await?;
    let tenant = &sandbox.tenants()[0];
    let mut redis = sandbox.redis().connect().await?;
    // The workers are dead for longer than values live.
    let (schedule, member) = (tenant.keys.schedule(), |n: usize| tenant.keys.member(&tenant.balances[n]));
    put_raw(
        &mut redis,
        &schedule,
        member(0).as_bytes(),
        tenant.balances[0].json(7).as_bytes(),
        Some(DEFAULT_TTL),
    )
    .await?;
    redis.zadd::<_, _, _, ()>(&schedule, member(1), 1_700_000_000).await?;
    for words in [&["--tenant", &tenant.id, "--plan"][..], &["--tenant", &tenant.id][..]] {
        let said = refused(&sandbox, words).await?;
        let against = &said["plan"]["objections"][0];
        ensure!(against["what"] == "valueless" && against["can_be_acknowledged"] == true, "{said}");
    }
    // Put off before the clock of Redis was set back by decades.
    let value = tenant.balances[3].json(5);
    put_raw(&mut redis, &schedule, member(3).as_bytes(), value.as_bytes(), Some(DEFAULT_TTL)).await?;
    redis.zadd::<_, _, _, ()>(&schedule, member(3), 9_999_999_999_u64).await?;
    // Behind and not scheduled, and its value won't live long.
    redis.set_ex::<_, _, ()>(member(2), tenant.balances[2].json(9), 600).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("entries.jsonl").display().to_string();
    let report = retire(&sandbox, &["--tenant", &tenant.id, "--acknowledge", "--export", &file]).await?;
    let of = &report["tenants"][0];
    ensure!(of["without_value"] == 1 && of["made_due"] == 1 && of["ahead"] == 0, "{report}");
    let text = std::fs::read_to_string(&file)?;
    let line: Value = serde_json::from_str(&text)?;
    ensure!(line["member"] == member(1) && line["value"].is_null(), "{text}");
    ensure!(scores(&sandbox, &schedule).await?.len() == 4, "no member is removed");
    let ttl: i64 = redis.ttl(member(2)).await?;
    ensure!(ttl > 80_000, "what was scheduled last lives for {ttl} s");
    // What is open of a tenant that is not listed stays when all the others go.
    let open = "{transactions}:balance-sync:vanished";
    redis.hset::<_, _, _, ()>(open, "elsewhere", "{}").await?;
    let report = retire(&sandbox, &["--all", "--acknowledge"]).await?;
    let kept = report["kept"].to_string();
    ensure!(redis.hexists::<_, _, bool>(open, "elsewhere").await? && kept.contains(open), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgres_entries_speak_against_it_and_not_all_is_known() -> Result<()> {
    let sandbox = sandbox(1, 2).await?;
    let tenant = &sandbox.tenants()[0];
    let mut redis = sandbox.redis().connect().await?;
    let member = tenant.keys.member(&tenant.balances[0]);
    redis.set::<_, _, ()>(&member, tenant.balances[0].json(5)).await?;
    redis.hset::<_, _, _, ()>(quarantine_key(tenant), &member, "{}").await?;
    sandbox.postgres().stop_immediate().await?;
    let words = ["retire", "--json", "--tenant", &tenant.id, "--plan"];
    let done = command(&sandbox, &words).await?;
    ensure!(done.code == Some(2), "{done:?}");
    let said: Value = serde_json::from_str(&done.stdout)?;
    let plan = &said["plan"];
    ensure!(plan["objections"][0]["what"] == "entries" && plan["unknown"] == true, "{said}");
    let said = refused(&sandbox, &["--tenant", &tenant.id]).await?;
    ensure!(said["result"] == "refused", "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_is_refused_until_it_is_acknowledged_and_no_entry_is_lost_silently() -> Result<()> {
    let sandbox = sandbox(1, 6).await?;
    let tenant = &sandbox.tenants()[0];
    let mut redis = sandbox.redis().connect().await?;
    let mut ours = worker(&sandbox, "one").expect_error("lost").start().await?;
    seen(&sandbox, 1).await?;
    let (schedule, member) = (tenant.keys.schedule(), |n: usize| tenant.keys.member(&tenant.balances[n]));
    let pool = sandbox.pool(tenant);
    let table = balance_table(tenant.schema.as_deref());
    let execute = async |sql: String| sandbox.postgres().execute(&tenant.database, &sql).await;
    // 0: unreadable. 1: its row is missing, and comes back. 2: its row is missing for good. 3: lost, as the trail says.
    put_raw(&mut redis, &schedule, member(0).as_bytes(), b"{}", Some(DEFAULT_TTL)).await?;
    for n in [1, 2] {
        let id = tenant.balances[n].id;
        execute(format!("CREATE TABLE kept_{n} AS SELECT * FROM {table} WHERE id = '{id}'")).await?;
        execute(format!("DELETE FROM {table} WHERE id = '{id}'")).await?;
        put_raw(
            &mut redis,
            &schedule,
            member(n).as_bytes(),
            tenant.balances[n].json(7).as_bytes(),
            Some(DEFAULT_TTL),
        )
        .await?;
    }
    write_operations(&pool, tenant.schema.as_deref(), &[(&tenant.balances[3], 5)]).await?;
    redis.zadd::<_, _, _, ()>(&schedule, member(3), 1_700_000_000).await?;
    eventually(SOON, "three in quarantine and one lost", || async {
        let mut redis = sandbox.redis().connect().await?;
        let counts: (u64, u64) =
            (redis.hlen(quarantine_key(tenant)).await?, redis.hlen(losses_key(tenant)).await?);
        ensure!(counts == (3, 1), "{counts:?}");
        Ok(())
    })
    .await?;
    execute(format!("INSERT INTO {table} SELECT * FROM kept_1")).await?;
    pool.close().await;

    // Refused, and nothing changes: not the rollout either.
    let before = keys(&sandbox).await?;
    let plan = refused(&sandbox, &["--tenant", &tenant.id, "--plan"]).await?;
    ensure!(plan["result"] == "planned", "{plan}");
    let planned = &plan["plan"]["tenants"][0]["entries"];
    ensure!(planned["scheduled"] == 1 && planned["settled"] == 0 && planned["kept"] == 3, "{plan}");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("entries.jsonl");
    let path = file.display().to_string();
    let without_export = ["--tenant", &tenant.id, "--acknowledge"];
    let without_word = ["--tenant", &tenant.id, "--export", &path];
    for words in [&without_export[..], &without_word[..], &["--all"][..]] {
        let said = refused(&sandbox, words).await?;
        ensure!(
            said["result"] == "refused" && said["plan"]["objections"].to_string().contains("entries"),
            "{said}"
        );
    }
    let note = command(&sandbox, &["retire", "--tenant", &tenant.id, "--acknowledge"]).await?;
    ensure!(note.code == Some(2) && note.stderr.contains("--note"), "{note:?}");
    let words = command(&sandbox, &["retire", "--tenant", &tenant.id]).await?;
    ensure!(
        words.stdout.contains("--export FILE") && words.stdout.contains("refused: nothing was done"),
        "{words:?}"
    );
    ensure!(
        !keys(&sandbox).await?.contains("{transactions}:balance-sync:rollout"),
        "the rollout was changed"
    );
    let hashes = |all: &BTreeSet<String>| all.iter().filter(|key| key.contains("quarantine:")).count();
    ensure!(hashes(&keys(&sandbox).await?) == hashes(&before) && !file.exists());

    // Acknowledged and exported.
    let report = retire(&sandbox, &["--tenant", &tenant.id, "--acknowledge", "--export", &path]).await?;
    let of = &report["tenants"][0];
    ensure!(of["entries_scheduled"] == 1 && of["entries_exported"] == 3, "{report}");
    is_gone(&sandbox, tenant).await?;
    let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let text = std::fs::read_to_string(&file)?;
    let lines: BTreeMap<String, Value> = text
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line)?;
            Ok((line["member"].as_str().context("a member")?.to_owned(), line))
        })
        .collect::<Result<_>>()?;
    ensure!(lines.len() == 4, "{text}");
    ensure!(
        lines[&member(0)]["value"] == "{}" && lines[&member(0)]["quarantine"]["reason"].is_string(),
        "{text}"
    );
    ensure!(lines[&member(2)]["value"] == tenant.balances[2].json(7), "{text}");
    ensure!(
        lines[&member(3)]["loss"]["loss"].as_str().is_some_and(|loss| loss.contains("\"version\":5")),
        "{text}"
    );
    // Only what the ledger's own worker writes is scheduled: not what would fail its batch, nor what it would drop.
    let scheduled: Vec<String> = scores(&sandbox, &schedule).await?.into_keys().collect();
    ensure!(scheduled == [member(1)], "{scheduled:?}");
    ledger_worker(&sandbox, tenant).await?.round().await?;
    ensure!(row(&sandbox, tenant, 1).await?.version == 7);
    // The values are the ledger's, and stay.
    ensure!(redis.exists::<_, bool>(member(2)).await?);
    assert_eq!(ours.stop().await?.code, Some(0));
    Ok(())
}
