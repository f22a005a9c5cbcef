//! What Redis can do to a worker, short of telling the truth.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{Fault, RedisOptions, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step, rows};
use balance_sync_tests::{Audit, SOON, Worker, options, run};
use nix::sys::signal::Signal;
use redis::AsyncCommands as _;
use serde_json::Value;

use crate::{brisk, nothing_backwards, report};

/// Redis with a log that it writes each second, as ledgers run it.
fn lasting(tenants: usize, balances: usize, extra: &[&str]) -> SandboxOptions {
    let wanted = options(tenants, balances);
    let extra = extra.iter().map(|line| (*line).to_owned()).collect();
    let redis = RedisOptions { appendonly: true, extra, ..wanted.redis.clone() };
    SandboxOptions { redis, proxied: true, ..wanted }
}

async fn ask(sandbox: &Sandbox, command: &[&str]) -> Result<()> {
    let mut redis = sandbox.redis().connect().await?;
    let mut asked = ::redis::cmd(command[0]);
    for part in &command[1..] {
        asked.arg(*part);
    }
    asked.query_async::<()>(&mut redis).await.with_context(|| format!("{command:?}"))
}

/// Makes snapshots fail, upon which Redis refuses writes (`MISCONF`), or lets it write without them.
async fn snapshots_fail(sandbox: &Sandbox, fail: bool) -> Result<()> {
    if !fail {
        return ask(sandbox, &["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]).await;
    }
    // A folder stands where the snapshot goes.
    std::fs::create_dir_all(sandbox.redis().folder().join("dump.rdb").join("inside"))?;
    ask(sandbox, &["CONFIG", "SET", "stop-writes-on-bgsave-error", "yes"]).await?;
    ask(sandbox, &["BGSAVE"]).await?;
    eventually(SOON, "a failed snapshot", || async {
        let mut redis = sandbox.redis().connect().await?;
        let info: String = ::redis::cmd("INFO").arg("persistence").query_async(&mut redis).await?;
        ensure!(info.contains("rdb_last_bgsave_status:err"), "{info}");
        Ok(())
    })
    .await?;
    // Only now: with it Redis saves by itself, and refuses BGSAVE meanwhile.
    ask(sandbox, &["CONFIG", "SET", "save", "1 1"]).await
}

/// Waits until all tenants are degraded for this reason.
pub(crate) async fn degraded(worker: &Worker, reason: &str, tenants: usize) -> Result<Duration> {
    let begun = Instant::now();
    worker.reaches("balance_sync_tenant_degraded", &[("reason", reason)], tenants as f64).await?;
    Ok(begun.elapsed())
}

pub(crate) async fn none_degraded(worker: &Worker) -> Result<()> {
    eventually(SOON, "no degraded tenant", || async {
        let count = worker.metric("balance_sync_tenant_degraded", &[]).await?;
        ensure!(count == 0.0, "there are {count}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_redis_refuses_is_reported_and_survived() -> Result<()> {
    const TENANTS: usize = 3;
    let sandbox = Sandbox::start(lasting(TENANTS, 40, &[])).await?;
    for tenant in sandbox.tenants() {
        Audit::begin(&sandbox, &tenant).await?;
    }
    let proxy = sandbox.redis_proxy().expect("it was asked for");
    let mut worker = brisk(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;

    // The scripts are gone: nothing fails.
    ask(&sandbox, &["SCRIPT", "FLUSH"]).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(worker.metric("balance_sync_redis_errors_total", &[]).await?, 0.0);

    let black_hole: &[&str] = &[];
    for (reason, begin, end) in [
        // One byte: an empty Redis uses about 1 MB, now a little more and now a little less.
        ("redis_out_of_memory", ["CONFIG SET maxmemory 1"].as_slice(), ["CONFIG SET maxmemory 0"].as_slice()),
        ("redis_read_only", &["REPLICAOF 127.0.0.1 1"], &["REPLICAOF NO ONE"]),
        (
            "redis_no_replicas",
            &["CONFIG SET min-replicas-to-write 1"],
            &["CONFIG SET min-replicas-to-write 0"],
        ),
        (
            "redis_permission",
            &["ACL SETUSER balance-sync -get -mget"],
            &["ACL SETUSER balance-sync +get +mget"],
        ),
        ("redis_unavailable", black_hole, black_hole),
    ] {
        // Frozen for a moment, so that there is work left when the fault begins.
        worker.signal(Signal::SIGSTOP)?;
        // Twice: a claim that was on its way may take the first.
        producer.mutate_each(DEFAULT_TTL).await?;
        producer.mutate_each(DEFAULT_TTL).await?;
        for command in begin {
            ask(&sandbox, &command.split(' ').collect::<Vec<_>>()).await?;
        }
        if begin.is_empty() {
            proxy.set(Fault::BlackHole).await;
        }
        worker.signal(Signal::SIGCONT)?;
        if reason == "redis_permission" {
            // A claim that Redis answered before the fault may have taken all of a tenant.
            producer.mutate_each(DEFAULT_TTL).await?;
        }
        let noticed = degraded(&worker, reason, TENANTS).await?;
        assert_eq!(worker.get("/livez").await?.0, 200);
        for command in end {
            ask(&sandbox, &command.split(' ').collect::<Vec<_>>()).await?;
        }
        proxy.set(Fault::Pass).await;
        let healed = Instant::now();
        comes_in_step(&sandbox, &producer).await?;
        let took = healed.elapsed();
        all_settled(&sandbox).await?;
        none_degraded(&worker).await?;
        report(
            reason,
            &format!(
                "reported after {:.2} s, all written {:.2} s after its end",
                noticed.as_secs_f64(),
                took.as_secs_f64()
            ),
        );
    }
    for tenant in sandbox.tenants() {
        nothing_backwards(&sandbox, &tenant).await?;
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// No worker can publish then, and what keeps it on the list of live workers lapses.
#[tokio::test]
async fn while_redis_refuses_writes_the_status_says_so_and_shows_what_was_read_last() -> Result<()> {
    const TENANTS: usize = 3;
    let sandbox = Sandbox::start(lasting(TENANTS, 10, &[])).await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let mut workers = Vec::new();
    for name in ["one", "two"] {
        workers.push(brisk(&sandbox, name).set("worker.replicas", "1").start().await?);
    }
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let status = async || -> Result<(Option<i32>, Value)> {
        let done = run(&["status", "--config", &config, "--json"], &[]).await?;
        let overview = serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))?;
        Ok((done.code, overview))
    };
    let healthy = async || {
        eventually(SOON, "two live workers", || async {
            let (code, overview) = status().await?;
            ensure!(code == Some(0) && overview["workers"]["live"] == 2, "{overview}");
            Ok(())
        })
        .await
    };
    healthy().await?;
    let refuse = async |reason: &str, begin: bool| match (reason, begin) {
        ("redis_no_replicas", true) => ask(&sandbox, &["CONFIG", "SET", "min-replicas-to-write", "1"]).await,
        ("redis_no_replicas", false) => ask(&sandbox, &["CONFIG", "SET", "min-replicas-to-write", "0"]).await,
        ("redis_read_only", true) => ask(&sandbox, &["REPLICAOF", "127.0.0.1", "1"]).await,
        ("redis_read_only", false) => ask(&sandbox, &["REPLICAOF", "NO", "ONE"]).await,
        _ => snapshots_fail(&sandbox, begin).await,
    };
    for reason in ["redis_no_replicas", "redis_read_only", "redis_misconf"] {
        refuse(reason, true).await?;
        let said = format!("Redis refuses writes ({reason}): ");
        // At once, and still when both have been silent for too long.
        let (code, overview) = status().await?;
        assert_eq!((code, &overview["redis"]), (Some(1), &"refuses_writes".into()), "{overview}");
        eventually(SOON, "workers that can't report", || async {
            let (_, overview) = status().await?;
            ensure!(overview["workers"]["last_known"] == 2, "{overview}");
            Ok(())
        })
        .await?;
        let (code, overview) = status().await?;
        assert_eq!((code, &overview["verdict"]), (Some(1), &"degraded".into()), "{overview}");
        let first = overview["reasons"][0].as_str().unwrap_or_default();
        assert!(first.starts_with(&said) && first.contains("2 workers can't report"), "{overview}");
        assert_eq!(overview["tenants"]["by_state"]["degraded"], TENANTS, "{overview}");
        assert_eq!(overview["tenants"]["unserved"], 0, "{overview}");
        assert!(!overview.to_string().contains("no live worker"), "{overview}");
        // In a terminal.
        let done = run(&["status", "--config", &config], &[]).await?;
        let text = done.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(&said) && text.contains("redis refuses writes"), "{text}");
        assert!(!text.to_lowercase().contains("no live worker"), "{text}");
        let done = run(&["workers", "--config", &config], &[]).await?;
        assert!(done.code == Some(1) && done.stdout.contains("can't report"), "{done:?}");
        let done = run(&["tenants", "--config", &config], &[]).await?;
        assert!(done.code == Some(1) && done.stdout.contains("Redis refuses writes"), "{done:?}");
        // From a worker, which knows itself.
        let (code, body) = workers[0].get("/api/v1/overview").await?;
        let overview: Value = serde_json::from_str(&body)?;
        assert_eq!((code, &overview["redis"]), (200, &"refuses_writes".into()), "{overview}");
        assert_eq!(overview["workers"], serde_json::json!({"live": 1, "last_known": 1}), "{overview}");
        assert!(overview["reasons"][0].as_str().unwrap_or_default().starts_with(&said), "{overview}");
        assert!(!body.contains("no live worker"), "{overview}");
        refuse(reason, false).await?;
        healthy().await?;
    }
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    for worker in &mut workers {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}

/// A refusal is no fault of the connection, so another one is not opened; where it may be, once a second.
#[tokio::test]
async fn while_redis_refuses_each_link_of_a_worker_opens_one_connection_per_second_at_most() -> Result<()> {
    const TENANTS: usize = 3;
    /// Refused calls after which connections are counted.
    const REFUSALS: f64 = 60.0;
    let sandbox = Sandbox::start(lasting(TENANTS, 10, &[])).await?;
    let mut redis = sandbox.redis().connect().await?;
    let mut worker = brisk(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let mut clients = ::redis::cmd("CLIENT");
    clients.arg("LIST");
    let clients: String = clients.query_async(&mut redis).await?;
    let links = clients.lines().filter(|line| line.contains("user=balance-sync ")).count() as u64;
    ensure!(links > 0, "the worker has no connection: {clients}");
    let received = async || -> Result<u64> {
        let info: String = ::redis::cmd("INFO").arg("stats").query_async(&mut redis.clone()).await?;
        let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.and_then(|count| count.trim().parse().ok()).with_context(|| info.clone())
    };
    let refuse = async |reason: &str, begin: bool| match (reason, begin) {
        ("redis_no_replicas", true) => ask(&sandbox, &["CONFIG", "SET", "min-replicas-to-write", "1"]).await,
        ("redis_no_replicas", false) => ask(&sandbox, &["CONFIG", "SET", "min-replicas-to-write", "0"]).await,
        ("redis_read_only", true) => ask(&sandbox, &["REPLICAOF", "127.0.0.1", "1"]).await,
        ("redis_read_only", false) => ask(&sandbox, &["REPLICAOF", "NO", "ONE"]).await,
        // Narrow rights: nothing of the tenants may be touched.
        ("redis_permission", true) => {
            ask(&sandbox, &["ACL", "SETUSER", "balance-sync", "-zadd", "-zrangebyscore"]).await
        }
        ("redis_permission", false) => {
            ask(&sandbox, &["ACL", "SETUSER", "balance-sync", "+zadd", "+zrangebyscore"]).await
        }
        _ => snapshots_fail(&sandbox, begin).await,
    };
    for reason in ["redis_no_replicas", "redis_misconf", "redis_permission", "redis_read_only"] {
        worker.signal(Signal::SIGSTOP)?;
        producer.mutate_each(DEFAULT_TTL).await?;
        refuse(reason, true).await?;
        worker.signal(Signal::SIGCONT)?;
        if reason == "redis_permission" {
            // As above.
            producer.mutate_each(DEFAULT_TTL).await?;
        }
        degraded(&worker, reason, TENANTS).await?;
        let before = received().await?;
        let begun = Instant::now();
        let refused = worker.metric("balance_sync_redis_errors_total", &[("class", reason)]).await?;
        let label = [("class", reason)];
        worker.reaches("balance_sync_redis_errors_total", &label, refused + REFUSALS).await?;
        let (opened, took) = (received().await? - before, begun.elapsed());
        ensure!(opened <= links * (1 + took.as_secs()), "{reason}: {opened} by {links} links in {took:?}");
        // To the right server there is no better connection than the one there is.
        ensure!(opened == 0 || reason == "redis_read_only", "{reason}: {opened} opened");
        refuse(reason, false).await?;
        comes_in_step(&sandbox, &producer).await?;
        none_degraded(&worker).await?;
        report(
            &format!("{reason}, {REFUSALS} calls refused in {:.1} s", took.as_secs_f64()),
            &format!("{opened} connections opened by {links} links"),
        );
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_redis_that_loads_its_data_is_waited_for() -> Result<()> {
    // Half a millisecond per entry of the log: time to be seen loading.
    let sandbox = Sandbox::start(lasting(2, 40, &["key-load-delay 500"])).await?;
    let mut worker = brisk(&sandbox, "w").set("redis.response_timeout", "5s").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let mut redis = sandbox.redis().connect().await?;
    let mut fill = ::redis::pipe();
    for number in 0..8_000 {
        fill.cmd("SET").arg(format!("ballast:{number}")).arg("x").ignore();
    }
    fill.query_async::<()>(&mut redis).await?;
    drop(redis);
    sandbox.redis().kill()?;
    let (started, noticed) =
        tokio::join!(sandbox.redis().start_again(), degraded(&worker, "redis_loading", 2));
    started?;
    let noticed = noticed?;
    let mut producer = sandbox.producer();
    producer.refresh_versions().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let begun = Instant::now();
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    none_degraded(&worker).await?;
    report(
        "redis_loading",
        &format!(
            "reported after {:.2} s, all written {:.2} s after its end",
            noticed.as_secs_f64(),
            begun.elapsed().as_secs_f64()
        ),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// The file that commands are appended to.
fn append_only_file(sandbox: &Sandbox) -> Result<PathBuf> {
    let folder = sandbox.redis().folder().join("appendonlydir");
    if !folder.exists() {
        // Redis before 7.0.
        return Ok(sandbox.redis().folder().join("appendonly.aof"));
    }
    let found = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
    found
        .into_iter()
        .find(|path| path.to_string_lossy().ends_with(".incr.aof"))
        .context("no append-only file")
}

#[tokio::test]
async fn a_redis_that_lost_its_last_second_never_takes_rows_back() -> Result<()> {
    // What was answered is in the file: how much of it is kept is decided here.
    let sandbox = Sandbox::start(lasting(2, 40, &["appendfsync always"])).await?;
    for tenant in sandbox.tenants() {
        Audit::begin(&sandbox, &tenant).await?;
    }
    // Rows that are newer than their values keep the loss open until it is acknowledged; whether that is before the end is chance.
    let mut worker = brisk(&sandbox, "w")
        .expect_error("stays open until it is acknowledged")
        .expect_error("Redis has lost all")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    // The worker's mark is not in what is cut off, or all data would count as lost.
    let redis = sandbox.redis().connect().await?;
    eventually(SOON, "the mark of the data set", || {
        let mut redis = redis.clone();
        async move {
            ensure!(
                redis.exists::<_, bool>("{transactions}:balance-sync:data-set:process").await?,
                "it is missing"
            );
            anyhow::Ok(())
        }
    })
    .await?;
    let file = append_only_file(&sandbox)?;
    let kept = std::fs::metadata(&file)?.len();
    producer.mutate_each(DEFAULT_TTL).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    // The kernel keeps what a killed process wrote. What a machine that fails loses is cut off by hand.
    sandbox.redis().kill()?;
    OpenOptions::new().write(true).open(&file)?.set_len(kept)?;
    sandbox.redis().start_again().await?;

    // Postgres is ahead of Redis now, and verify says so.
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let ahead = run(&["verify", "--config", config, "--json"], &[]).await?;
    let verified: Value = serde_json::from_str(&ahead.stdout).with_context(|| format!("{ahead:?}"))?;
    assert_eq!((ahead.code, &verified["tenants"][0]["ahead"]), (Some(1), &40.into()), "{verified}");
    // The ledger goes on from what Redis has: its first mutations are older than the rows.
    let mut producer = sandbox.producer();
    producer.refresh_versions().await?;
    assert!(producer.tenants().iter().all(|load| load.versions.iter().all(|version| *version == 2)));
    producer.mutate_each(DEFAULT_TTL).await?;
    // Each is listed as forked: what the rows have and Redis has lost is not known to what the ledger computes from now on.
    eventually(SOON, "80 forks", || async {
        let listed =
            run(&["quarantine", "list", "--reason", "forked", "--config", config, "--json"], &[]).await?;
        let listed: Value = serde_json::from_str(&listed.stdout)?;
        ensure!(listed.as_array().map(Vec::len) == Some(80), "{listed}");
        anyhow::Ok(())
    })
    .await?;
    for tenant in sandbox.tenants() {
        assert!(rows(&sandbox, &tenant).await?.values().all(|row| row.version == 4), "{}", tenant.id);
    }
    producer.mutate_each(DEFAULT_TTL).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let dropped =
        run(&["quarantine", "drop", "--all", "--reason", "forked", "--config", config, "--json"], &[])
            .await?;
    ensure!(dropped.stdout.contains("\"done\":80"), "{dropped:?}");
    all_settled(&sandbox).await?;
    for tenant in sandbox.tenants() {
        nothing_backwards(&sandbox, &tenant).await?;
        // Where values were compared before the ledger went on, its rows were newer, which people have to know of.
        let args = ["tenants", "acknowledge", &tenant.id, "--note", "counted on", "--config", config];
        run(&args, &[]).await?;
    }
    none_degraded(&worker).await?;
    report(
        "redis lost two mutations of 80 balances",
        "0 rows backwards, 80 listed as forked, written again from the first newer version on",
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_is_gone_on_with() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 40).await?;
    for tenant in sandbox.tenants() {
        Audit::begin(&sandbox, &tenant).await?;
    }
    // It may look at Redis before the ledger fills it again.
    let mut worker = brisk(&sandbox, "w").expect_error("Redis has lost all").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    sandbox.redis().kill()?;
    degraded(&worker, "redis_unavailable", 3).await?;
    sandbox.redis().start_again().await?;
    let back = Instant::now();
    // Its keys are gone; the ledger fills it again and goes on.
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let took = back.elapsed();
    all_settled(&sandbox).await?;
    none_degraded(&worker).await?;
    worker.reaches("balance_sync_workers", &[], 1.0).await?;
    for tenant in sandbox.tenants() {
        nothing_backwards(&sandbox, &tenant).await?;
    }
    report(
        "redis back, empty",
        &format!("new mutations written {:.2} s after its return", took.as_secs_f64()),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn while_redis_is_away_numbers_stay_as_they_were_known_and_show_their_age() -> Result<()> {
    const BALANCES: usize = 20;
    let sandbox = balance_sync_tests::sandbox(4, BALANCES).await?;
    let named = |name: &str| brisk(&sandbox, name).set("worker.replicas", "1");
    let mut workers = [named("one").start().await?, named("two").start().await?];
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let get =
        async |path: &str| -> Result<Value> { Ok(serde_json::from_str(&workers[0].get(path).await?.1)?) };
    eventually(SOON, "both serve", || async {
        let overview = get("/api/v1/overview").await?;
        ensure!(overview["workers"]["live"] == 2 && overview["verdict"] == "healthy", "{overview}");
        Ok(())
    })
    .await?;
    // What waits stays the same.
    for tenant in sandbox.tenants() {
        let paused = run(&["tenants", "pause", &tenant.id, "--config", &config], &[]).await?;
        ensure!(paused.code == Some(0), "{paused:?}");
    }
    sandbox.producer().mutate_each(DEFAULT_TTL).await?;
    let all = 4 * BALANCES;
    eventually(SOON, "all that waits", || async {
        let overview = get("/api/v1/overview").await?;
        ensure!(
            overview["backlog"]["due"] == all && overview["backlog"]["age_seconds"].is_null(),
            "{overview}"
        );
        Ok(())
    })
    .await?;
    sandbox.redis().pause()?;
    let later = eventually(SOON, "numbers with an age", || async {
        let overview = get("/api/v1/overview").await?;
        ensure!(overview["redis"] == "unavailable", "{overview}");
        ensure!(overview["backlog"]["age_seconds"].as_f64().is_some_and(|age| age > 3.0), "{overview}");
        Ok(overview)
    })
    .await?;
    assert_eq!((&later["backlog"]["due"], &later["backlog"]["unknown_tenants"]), (&all.into(), &0.into()));
    assert_eq!(
        (&later["tenants"]["total"], &later["workers"]["last_known"]),
        (&4.into(), &1.into()),
        "{later}"
    );
    // Of each as soon as its own schedule could not be read.
    eventually(SOON, "rows with an age", || async {
        let rows = get("/api/v1/tenants").await?;
        for row in rows["tenants"].as_array().context("no tenants")? {
            ensure!(row["due"] == BALANCES && row["sampled"] == false, "{row}");
            ensure!(row["numbers_age_seconds"].as_f64().is_some(), "{row}");
        }
        Ok(())
    })
    .await?;
    sandbox.redis().resume()?;
    eventually(SOON, "fresh numbers", || async {
        let overview = get("/api/v1/overview").await?;
        ensure!(
            overview["backlog"]["due"] == all && overview["backlog"]["age_seconds"].is_null(),
            "{overview}"
        );
        Ok(())
    })
    .await?;
    for worker in &mut workers {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}
