//! G9: what Redis loses is noticed within ten seconds, by tenant and extent, and worked off: written or listed.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, write_operations};
use balance_sync_sandbox::{
    RedisOptions, RedisServer, Sandbox, SandboxOptions, SandboxTenant, WORKER_USER, eventually,
};
use balance_sync_tests::ledger::{all_settled, comes_in_step, losses_key, rows, scores};
use balance_sync_tests::{Audit, SOON, Worker, WorkerBuilder, options, run};
use nix::sys::signal::Signal;
use redis::AsyncCommands;
use serde_json::Value;

use crate::{brisk, nothing_backwards, report};

/// From a loss to a verdict that is not HEALTHY.
pub(crate) const WITHIN: Duration = Duration::from_secs(10);
/// Tenant → open condition.
const OPEN: &str = "{transactions}:balance-sync:vanished";

pub(crate) fn of_redis(tenants: usize, balances: usize, extra: &[&str]) -> SandboxOptions {
    let wanted = options(tenants, balances);
    let extra = extra.iter().map(|line| (*line).to_owned()).collect();
    let redis = RedisOptions { extra, ..wanted.redis.clone() };
    SandboxOptions { redis, ..wanted }
}

pub(crate) fn worker(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    let worker =
        brisk(sandbox, name).set("quarantine.trail_grace", "3s").set("supervisor.sample_interval", "1s");
    [
        "redis has lost data",
        "Redis la",
        "Redis has lost all",
        "stays open until it is acknowledged",
        "redis may evict",
    ]
    .into_iter()
    .fold(worker, WorkerBuilder::expect_error)
}

pub(crate) async fn overview(sandbox: &Sandbox) -> Result<Value> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let done = run(&["status", "--config", config, "--json"], &[]).await?;
    serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))
}

/// Waits until it is shown of a tenant that Redis has lost data, under this reason.
pub(crate) async fn shown(sandbox: &Sandbox, tenant: &SandboxTenant, reason: &str) -> Result<Value> {
    eventually(SOON, reason, || async {
        let overview = overview(sandbox).await?;
        let row =
            overview["worst"].as_array().into_iter().flatten().find(|row| row["id"] == tenant.id.as_str());
        let vanished = row.map(|row| row["vanished"].clone()).unwrap_or_default();
        ensure!(vanished["reason"] == reason, "{overview}");
        ensure!(overview["verdict"] == "degraded", "{overview}");
        let said = overview["reasons"].to_string();
        ensure!(said.contains(reason) && said.contains("Redis has lost data of"), "{overview}");
        Ok(vanished)
    })
    .await
}

pub(crate) async fn nothing_open(sandbox: &Sandbox) -> Result<()> {
    eventually(SOON, "nothing that is open", || async {
        let overview = overview(sandbox).await?;
        let open = overview["worst"].as_array().into_iter().flatten().any(|row| !row["vanished"].is_null());
        ensure!(!open, "{overview}");
        Ok(())
    })
    .await
}

/// Waits until the worker has counted the schedules at least once more.
pub(crate) async fn counted(sandbox: &Sandbox) -> Result<()> {
    let number = async || -> Result<u64> {
        let mut redis = sandbox.redis().connect().await?;
        let keys: Vec<String> = redis.keys("{transactions}:balance-sync:acknowledged:*").await?;
        ensure!(!keys.is_empty(), "no worker has looked yet");
        let numbers: Vec<u64> = redis.mget(&keys).await?;
        Ok(numbers.into_iter().min().unwrap_or_default())
    };
    let before = eventually(SOON, "a first look", number).await?;
    eventually(SOON, "another count", || async {
        let now = number().await?;
        ensure!(now >= before + 4, "{now} after {before}");
        Ok(())
    })
    .await
}

pub(crate) async fn operations(sandbox: &Sandbox, tenant: &SandboxTenant, version: i64) -> Result<()> {
    let pool = sandbox.pool(tenant);
    let operations: Vec<_> = tenant.balances.iter().map(|balance| (balance, version)).collect();
    let written = write_operations(&pool, tenant.schema.as_deref(), &operations).await;
    pool.close().await;
    written
}

/// Of the tenant's balances those that have this version in Postgres, and those that are listed as lost.
async fn written_and_listed(
    sandbox: &Sandbox,
    tenant: &SandboxTenant,
    version: i64,
) -> Result<(usize, usize, usize)> {
    let rows = rows(sandbox, tenant).await?;
    let mut redis = sandbox.redis().connect().await?;
    let listed: Vec<String> = redis.hkeys(losses_key(tenant)).await?;
    let (mut written, mut lost, mut neither) = (0, 0, 0);
    for balance in tenant.balances.iter() {
        let is_written = rows.get(&balance.id).is_some_and(|row| row.version == version);
        match (is_written, listed.contains(&tenant.keys.member(balance))) {
            (true, _) => written += 1,
            (false, true) => lost += 1,
            (false, false) => neither += 1,
        }
    }
    Ok((written, lost, neither))
}

/// A million bytes in a hundred keys, as other users of this Redis write them.
pub(crate) async fn fill(sandbox: &Sandbox, round: usize) -> Result<()> {
    let mut redis = sandbox.redis().connect().await?;
    let mut pipe = redis::pipe();
    let junk = "x".repeat(10_000);
    for n in 0..100 {
        pipe.set(format!("junk:{round}:{n}"), &junk).ignore();
    }
    Ok(pipe.query_async(&mut redis).await?)
}

#[tokio::test]
async fn a_schedule_that_redis_evicts_during_an_outage_is_noticed_and_every_balance_written_or_listed()
-> Result<()> {
    const BALANCES: usize = 2_000;
    let sandbox = Sandbox::start(of_redis(1, BALANCES, &["maxmemory-policy allkeys-lru"])).await?;
    let tenant = sandbox.tenants().remove(0);
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
    let schedule = tenant.keys.schedule();
    let mut redis = sandbox.redis().connect().await?;
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("12mb").query_async::<()>(&mut redis).await?;
    let mut round = 0;
    while redis.exists(&schedule).await? {
        fill(&sandbox, round).await?;
        round += 1;
        ensure!(round < 20_000, "the schedule stays");
    }
    let evicted = Instant::now();
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("0").query_async::<()>(&mut redis).await?;
    let open = shown(&sandbox, &tenant, "redis_schedule_vanished").await?;
    let noticed = evicted.elapsed();
    ensure!(noticed < WITHIN, "noticed after {noticed:?}");
    let extent = open["extent"].as_u64().unwrap_or_default();
    ensure!((1..=BALANCES as u64).contains(&extent), "{open}");

    sandbox.postgres().start_again().await?;
    // The ledger catches up with its operations.
    operations(&sandbox, &tenant, version).await?;
    let (written, lost) = eventually(SOON, "2,000 balances written or listed", || async {
        let (written, lost, neither) = written_and_listed(&sandbox, &tenant, version).await?;
        ensure!(neither == 0, "{written} written, {lost} listed, {neither} neither");
        Ok((written, lost))
    })
    .await?;
    nothing_open(&sandbox).await?;
    let verdict = overview(&sandbox).await?;
    assert_eq!(verdict["verdict"] == "healthy", lost == 0, "{verdict}");
    report(
        "Redis evicts the schedule of 2,000 balances during an outage of Postgres",
        &format!(
            "shown after {:.1} s, {extent} members missing; {written} written, {lost} listed as lost",
            noticed.as_secs_f64()
        ),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_schedule_that_is_deleted_is_noticed_and_what_is_left_written() -> Result<()> {
    let sandbox = Sandbox::start(of_redis(2, 50, &[])).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    sandbox.postgres().stop_immediate().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    counted(&sandbox).await?;
    let mut redis = sandbox.redis().connect().await?;
    redis.del::<_, ()>(tenant.keys.schedule()).await?;
    let deleted = Instant::now();
    // The rows can't be read, so it is not certain.
    let open = shown(&sandbox, &tenant, "redis_schedule_vanished").await?;
    let noticed = deleted.elapsed();
    ensure!(noticed < WITHIN, "noticed after {noticed:?}");
    assert_eq!(open["extent"], 50, "{open}");
    sandbox.postgres().start_again().await?;
    comes_in_step(&sandbox, &producer).await?;
    nothing_open(&sandbox).await?;
    // Unless the comparison after the restart of Postgres was first to make them due again.
    let other = [("reason", "redis_schedule_vanished")];
    let opened = worker.metric("balance_sync_vanished_total", &other).await?;
    let rescheduled = worker.metric("balance_sync_vanished_rescheduled_total", &[]).await?;
    ensure!([(1.0, 50.0), (0.0, 0.0)].contains(&(opened, rescheduled)), "{opened}, {rescheduled}");
    report(
        "a schedule of 50 balances is deleted during an outage of Postgres",
        &format!("shown after {:.1} s; all written", noticed.as_secs_f64()),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// They may come back before the rows can be read: by the comparison after a restart of Postgres, or by the ledger.
#[tokio::test]
async fn a_suspicion_ends_when_the_members_are_back() -> Result<()> {
    let sandbox = Sandbox::start(of_redis(2, 50, &[])).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    sandbox.postgres().stop_immediate().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    counted(&sandbox).await?;
    let mut redis = sandbox.redis().connect().await?;
    let scheduled: Vec<(Vec<u8>, f64)> = redis.zrange_withscores(tenant.keys.schedule(), 0, -1).await?;
    redis.del::<_, ()>(tenant.keys.schedule()).await?;
    shown(&sandbox, &tenant, "redis_schedule_vanished").await?;
    let back: Vec<(f64, Vec<u8>)> = scheduled.into_iter().map(|(member, score)| (score, member)).collect();
    redis.zadd_multiple::<_, _, _, ()>(tenant.keys.schedule(), &back).await?;
    nothing_open(&sandbox).await?;
    sandbox.postgres().start_again().await?;
    comes_in_step(&sandbox, &producer).await?;
    let other = [("reason", "redis_schedule_vanished")];
    assert_eq!(worker.metric("balance_sync_vanished_total", &other).await?, 0.0, "nothing has vanished");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn an_empty_restart_of_redis_stays_open_until_all_is_listed_or_acknowledged() -> Result<()> {
    const BALANCES: usize = 100;
    let sandbox = Sandbox::start(of_redis(2, BALANCES, &[])).await?;
    let tenants = sandbox.tenants();
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let before = producer.tenants()[0].versions[0];
    for tenant in &tenants {
        operations(&sandbox, tenant, before).await?;
    }
    sandbox.postgres().stop_immediate().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    counted(&sandbox).await?;
    sandbox.redis().kill()?;
    sandbox.redis().start_again().await?;
    let restarted = Instant::now();
    let open = shown(&sandbox, &tenants[0], "redis_data_replaced").await?;
    let noticed = restarted.elapsed();
    ensure!(noticed < WITHIN, "noticed after {noticed:?}");
    assert_eq!(open["extent"], BALANCES, "{open}");
    ensure!(open["detail"] == "Redis has lost all its data", "{open}");

    let before_listing = eventually(SOON, "a condition that is stored", || async {
        let stored: Option<String> = sandbox.redis().connect().await?.hget(OPEN, &tenants[0].id).await?;
        stored.context("nothing is stored")
    })
    .await?;
    ensure!(before_listing.contains(r#""lost":0"#), "{before_listing}");

    sandbox.postgres().start_again().await?;
    // The operations of the first tenant arrive, those of the second are lost with Redis.
    operations(&sandbox, &tenants[0], before + 1).await?;
    eventually(SOON, "100 losses", || async {
        let (written, lost, neither) = written_and_listed(&sandbox, &tenants[0], before + 1).await?;
        ensure!((written, lost, neither) == (0, BALANCES, 0), "{written}, {lost}, {neither}");
        Ok(())
    })
    .await?;
    let held = eventually(SOON, "a condition that stays open", || async {
        let open = shown(&sandbox, &tenants[1], "redis_data_replaced").await?;
        ensure!(open["phase"].as_str().unwrap_or_default().contains("100 are not accounted for"), "{open}");
        Ok(open)
    })
    .await?;
    // Another worker goes on with it, and with one that this worker had listed and not stored when it ended.
    assert_eq!(worker.stop().await?.code, Some(0));
    let mut redis = sandbox.redis().connect().await?;
    redis.hset::<_, _, _, ()>(OPEN, &tenants[0].id, before_listing).await?;
    let mut next = self::worker(&sandbox, "w2").start().await?;
    let taken = shown(&sandbox, &tenants[1], "redis_data_replaced").await?;
    assert_eq!((&taken["extent"], &taken["since"]), (&held["extent"], &held["since"]), "{taken}");
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let acknowledge =
        ["tenants", "acknowledge", &tenants[1].id, "--note", "no operations", "--config", &config];
    let done = run(&acknowledge[..3], &[("BALANCE_SYNC_CONFIG", &config)]).await?;
    ensure!(done.code == Some(2) && format!("{done:?}").contains("--note: needed"), "{done:?}");
    let done = run(&acknowledge, &[]).await?;
    ensure!(done.code == Some(0), "{done:?}");
    nothing_open(&sandbox).await?;
    let done = run(&acknowledge, &[]).await?;
    ensure!(done.code == Some(1) && format!("{done:?}").contains("nothing is open"), "{done:?}");
    report(
        "Redis restarts empty with 200 balances waiting",
        &format!(
            "shown after {:.1} s; 100 listed as lost, 100 without operations open until acknowledged",
            noticed.as_secs_f64()
        ),
    );
    assert_eq!(next.stop().await?.code, Some(0));
    Ok(())
}

/// Rows written later may be those of other balances: what was remembered of the schedule must be accounted for itself.
#[tokio::test]
async fn members_without_a_trace_keep_a_condition_open_however_much_else_is_written() -> Result<()> {
    const BALANCES: usize = 60;
    const VANISHING: usize = 12;
    let sandbox = Sandbox::start(of_redis(1, BALANCES, &[])).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    operations(&sandbox, &tenant, producer.tenants()[0].versions[0]).await?;
    sandbox.postgres().stop_immediate().await?;
    // The ledger crashes before it has written the operations of these.
    let vanishing: Vec<usize> = (0..VANISHING).collect();
    producer.mutate(0, &vanishing, DEFAULT_TTL).await?;
    counted(&sandbox).await?;
    let mut redis = sandbox.redis().connect().await?;
    redis.del::<_, ()>(tenant.keys.schedule()).await?;
    for balance in &tenant.balances[..VANISHING] {
        redis.del::<_, ()>(tenant.keys.member(balance)).await?;
    }
    shown(&sandbox, &tenant, "redis_schedule_vanished").await?;
    sandbox.postgres().start_again().await?;
    let others: Vec<usize> = (VANISHING..BALANCES).collect();
    let open = eventually(SOON, "a condition that stays open", || async {
        let open = shown(&sandbox, &tenant, "redis_schedule_vanished").await?;
        ensure!(open["phase"].as_str().is_some_and(|phase| phase.contains("remembered before")), "{open}");
        Ok(open)
    });
    let mut open = std::pin::pin!(open);
    let open = loop {
        producer.mutate(0, &others, DEFAULT_TTL).await?;
        tokio::select! {
            open = &mut open => break open?,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    };
    let written = worker.metric("balance_sync_balances_total", &[("outcome", "updated")]).await?;
    ensure!(written > (BALANCES + VANISHING) as f64, "{written}, {open}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// The worker that starts next has nothing to compare with but the mark that is missing.
#[tokio::test]
async fn a_redis_that_was_emptied_while_no_worker_ran_is_not_healthy_before_it_is_compared() -> Result<()> {
    const BALANCES: usize = 40;
    let sandbox = Sandbox::start(of_redis(2, BALANCES, &[])).await?;
    let tenants = sandbox.tenants();
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let before = producer.tenants()[0].versions[0];
    for tenant in &tenants {
        operations(&sandbox, tenant, before).await?;
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    // Mutations of one tenant are lost, the other one has nothing to lose.
    producer.mutate(0, &(0..BALANCES).collect::<Vec<_>>(), DEFAULT_TTL).await?;
    operations(&sandbox, &tenants[0], before + 1).await?;
    sandbox.redis().kill()?;
    sandbox.redis().start_again().await?;
    let mut next = self::worker(&sandbox, "w2").start().await?;
    let begun = Instant::now();
    let first = eventually(SOON, "what is not known", || async {
        let overview = overview(&sandbox).await?;
        let text = overview["reasons"].to_string();
        ensure!(text.contains("redis_unmarked"), "{overview}");
        Ok(overview)
    })
    .await?;
    let noticed = begun.elapsed();
    ensure!(noticed < WITHIN, "noticed after {noticed:?}");
    ensure!(first["verdict"] == "attention" || first["verdict"] == "degraded", "{first}");
    eventually(SOON, "40 losses", || async {
        let (written, lost, neither) = written_and_listed(&sandbox, &tenants[0], before + 1).await?;
        ensure!((written, lost, neither) == (0, BALANCES, 0), "{written}, {lost}, {neither}");
        Ok(())
    })
    .await?;
    nothing_open(&sandbox).await?;
    let (written, lost, neither) = written_and_listed(&sandbox, &tenants[1], before).await?;
    assert_eq!((written, lost, neither), (BALANCES, 0, 0), "the other tenant");
    let last = overview(&sandbox).await?;
    assert_eq!(last["verdict"], "degraded", "{last}");
    report(
        "Redis is emptied while no worker runs, with 40 balances of one of two tenants waiting",
        &format!("shown {:.1} s after a worker has started; 40 listed as lost", noticed.as_secs_f64()),
    );
    assert_eq!(next.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_replica_that_lags_and_is_promoted_is_noticed_and_compared() -> Result<()> {
    const BALANCES: usize = 60;
    let sandbox = Sandbox::start(of_redis(1, BALANCES, &["repl-diskless-sync-delay 0"])).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let before = producer.tenants()[0].versions[0];
    operations(&sandbox, &tenant, before).await?;

    let password = sandbox.options().redis.password.clone().context("it has one")?;
    let password = secrecy::ExposeSecret::expose_secret(&password).to_owned();
    let follow = |port: u16| format!("replicaof 127.0.0.1 {port}");
    let extra = vec![follow(sandbox.redis().port()), format!("masterauth {password}")];
    let replica = RedisServer::start(RedisOptions { extra, ..sandbox.options().redis.clone() }).await?;
    in_sync(&replica).await?;
    counted(&sandbox).await?;
    // The replica is cut off; what happens now never reaches it. Half is written, half waits.
    let mut promoted = replica.connect().await?;
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query_async::<()>(&mut promoted).await?;
    let all: Vec<usize> = (0..BALANCES).collect();
    producer.mutate(0, &all[..30], DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    sandbox.postgres().stop_immediate().await?;
    producer.mutate(0, &all[30..], DEFAULT_TTL).await?;
    counted(&sandbox).await?;
    sandbox.redis().kill()?;
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async::<()>(&mut promoted).await?;
    // What the promoted one has is served where the workers look.
    let config = sandbox.redis().folder().join("redis.conf");
    let mut config = OpenOptions::new().append(true).open(config)?;
    write!(config, "\n{}\nmasterauth {password}\n", follow(replica.port()))?;
    sandbox.redis().start_again().await?;
    in_sync(sandbox.redis()).await?;
    let mut redis = sandbox.redis().connect().await?;
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async::<()>(&mut redis).await?;
    let begun = Instant::now();
    let open = shown(&sandbox, &tenant, "redis_data_replaced").await?;
    let noticed = begun.elapsed();
    ensure!(noticed < WITHIN, "noticed after {noticed:?}");
    ensure!(open["detail"].as_str().unwrap_or_default().starts_with("Redis lacks writes"), "{open}");

    sandbox.postgres().start_again().await?;
    operations(&sandbox, &tenant, before + 1).await?;
    let open = eventually(SOON, "a condition that stays open", || async {
        let open = shown(&sandbox, &tenant, "redis_data_replaced").await?;
        ensure!(open["rows_ahead"] == 30 && open["lost"] == 30, "{open}");
        ensure!(open["phase"].as_str().unwrap_or_default().starts_with("30 rows are newer"), "{open}");
        Ok(open)
    })
    .await?;
    let (written, lost, neither) = written_and_listed(&sandbox, &tenant, before + 1).await?;
    assert_eq!((written, lost, neither), (30, 30, 0), "{open}");
    report(
        "a replica of Redis that lags is promoted",
        &format!("shown after {:.1} s; 30 rows ahead of Redis, 30 listed as lost", noticed.as_secs_f64()),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// Wrong green is worse than red. A worker whose looks all fail stands for one that has not looked yet, which lasts a moment.
#[tokio::test]
async fn until_it_is_looked_at_whether_redis_has_lost_data_the_verdict_is_unknown() -> Result<()> {
    let sandbox = Sandbox::start(of_redis(2, 10, &[])).await?;
    let mut redis = sandbox.redis().connect().await?;
    let mut may_look = async |rule: &str| -> Result<()> {
        Ok(redis::cmd("ACL").arg("SETUSER").arg(WORKER_USER).arg(rule).query_async(&mut redis).await?)
    };
    may_look("-info").await?;
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let is_unknown = || async {
        let overview = overview(&sandbox).await?;
        let reasons = overview["reasons"].as_array().context("reasons")?;
        let said = reasons.iter().filter_map(Value::as_str).collect::<Vec<_>>();
        let whose = "whether Redis has lost data of 2 tenants";
        ensure!(overview["verdict"] == "unknown" && said.len() == 1 && said[0].contains(whose), "{overview}");
        Ok(())
    };
    let is_healthy = || async {
        let overview = overview(&sandbox).await?;
        ensure!(overview["verdict"] == "healthy", "{overview}");
        Ok(())
    };
    eventually(SOON, "nothing but that to be unknown", is_unknown).await?;
    may_look("+info").await?;
    eventually(SOON, "a verdict", is_healthy).await?;
    // What was seen last is not believed for ever.
    may_look("-info").await?;
    eventually(SOON, "that to be unknown again", is_unknown).await?;
    may_look("+info").await?;
    eventually(SOON, "a verdict again", is_healthy).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

pub(crate) async fn in_sync(replica: &RedisServer) -> Result<()> {
    eventually(SOON, "a replica in sync", || async {
        let info: String =
            redis::cmd("INFO").arg("replication").query_async(&mut replica.connect().await?).await?;
        ensure!(info.contains("master_link_status:up"), "{info}");
        Ok(())
    })
    .await
}

/// What one worker removes, the others have not removed.
#[tokio::test]
async fn workers_that_share_tenants_raise_no_false_alarm() -> Result<()> {
    const ROUNDS: usize = 30;
    let sandbox = Sandbox::start(of_redis(3, 400, &[])).await?;
    for tenant in sandbox.tenants() {
        Audit::begin(&sandbox, &tenant).await?;
    }
    let mut workers: Vec<Worker> = Vec::new();
    for name in ["one", "two"] {
        workers.push(worker(&sandbox, name).set("worker.partition", "false").start().await?);
    }
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    for round in 0..ROUNDS {
        // In turn they are frozen with what they hold, so that the other one writes it.
        let frozen = &mut workers[round % 2];
        frozen.signal(Signal::SIGSTOP)?;
        producer.mutate_each(DEFAULT_TTL).await?;
        frozen.signal(Signal::SIGCONT)?;
        if round % 10 == 0 {
            counted(&sandbox).await?;
        }
    }
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    for tenant in sandbox.tenants() {
        nothing_backwards(&sandbox, &tenant).await?;
        ensure!(scores(&sandbox, &tenant.keys.schedule()).await?.is_empty());
    }
    counted(&sandbox).await?;
    for worker in &mut workers {
        let metrics = worker.metrics().await?;
        assert_eq!(metrics.sum("balance_sync_vanished_total", &[]), 0.0);
        assert_eq!(metrics.sum("balance_sync_vanished_open", &[]), 0.0);
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}
