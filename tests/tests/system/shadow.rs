//! Shadow mode: beside whoever writes today, a worker that changes nothing and reports what it sees.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Format, LoadOptions, Progress};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions, SandboxTenant, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step, in_step, row};
use balance_sync_tests::monitor::{Executed, clients_of};
use balance_sync_tests::{LedgerWorker, Monitor, SOON, Worker, WorkerBuilder, options, run};
use redis::AsyncCommands;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::{ask, json, post};
use crate::audit::writes;
use crate::openapi::Description;

/// What every key of the fleet's own begins with; `docs/operations.md` lists those that a shadow writes.
const OWN: &str = "{transactions}:balance-sync:";
/// Where those are listed.
const DOCUMENT: &str = include_str!("../../../docs/operations.md");

fn shadow(sandbox: &Sandbox) -> WorkerBuilder {
    Worker::of(sandbox)
        .set("worker.name", "onlooker")
        .set("worker.mode", "shadow")
        .set("shadow.compare_interval", "1s")
        .set("supervisor.sample_interval", "200ms")
        .set("queues.interval", "200ms")
        .set("queues.quarantine_interval", "1s")
}

async fn two_databases(balances: usize) -> Result<Sandbox> {
    Sandbox::start(SandboxOptions { isolation: Isolation::Database, ..options(2, balances) }).await
}

/// What the shadow has found of a tenant.
async fn found(worker: &Worker, tenant: &SandboxTenant) -> Result<Value> {
    let shown = json(worker, &format!("/api/v1/tenants/{}", tenant.id)).await?;
    ensure!(shown["shadow"].is_object(), "{shown}");
    Ok(shown["shadow"].clone())
}

/// Waits until every tenant has been compared as a whole, beginning after this call.
async fn compares_again(worker: &Worker, tenants: &[SandboxTenant]) -> Result<()> {
    for tenant in tenants {
        // The one that was under way may have looked before.
        let mut seen = BTreeSet::new();
        let seen = std::cell::RefCell::new(&mut seen);
        eventually(SOON, "two more comparisons of all balances", || async {
            if let Some(at) = found(worker, tenant).await?["compared_at"].as_str() {
                seen.borrow_mut().insert(at.to_owned());
            }
            ensure!(seen.borrow().len() > 2, "seen {:?}", seen.borrow());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// The keys of the write commands among these, as they are documented: names and groups are parameters.
fn written(executed: &[Executed], writes: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let mut keys = BTreeSet::new();
    for one in executed.iter().filter(|one| writes.contains(&one.words[0])) {
        let many = matches!(one.words[0].as_str(), "DEL" | "UNLINK");
        for key in one.words[1..].iter().take(if many { usize::MAX } else { 1 }) {
            ensure!(key.starts_with(OWN), "{:?}", one.words);
            keys.insert(key.clone());
        }
    }
    Ok(keys)
}

/// The names of all commands that write, as Redis itself says.
async fn write_commands(sandbox: &Sandbox) -> Result<BTreeSet<String>> {
    let mut list = redis::cmd("COMMAND");
    list.arg("LIST").arg("FILTERBY").arg("ACLCAT").arg("write");
    let names: Vec<String> = list.query_async(&mut sandbox.redis().connect().await?).await?;
    ensure!(names.len() > 50, "{names:?}");
    Ok(names.into_iter().map(|name| name.to_uppercase()).collect())
}

#[tokio::test]
async fn a_shadow_changes_nothing_and_reports_nothing_false_while_the_ledgers_worker_writes_under_load()
-> Result<()> {
    let sandbox = two_databases(150).await?;
    let tenants = sandbox.tenants();
    let writing = write_commands(&sandbox).await?;
    let before = writes(&sandbox, &tenants).await?;
    // Nor could it write a row.
    for tenant in &tenants {
        let revoke = "REVOKE UPDATE (available, on_hold, overdraft_used, version, updated_at) ON public.balance FROM balance_sync_tenants";
        sandbox.postgres().execute(&tenant.database, revoke).await?;
        let pool = sandbox.pool(tenant);
        let may: bool = sqlx::query_scalar("SELECT has_any_column_privilege($1, 'public.balance', 'UPDATE')")
            .bind(&tenant.role)
            .fetch_one(&pool)
            .await?;
        pool.close().await;
        ensure!(!may, "{} may still write", tenant.role);
    }
    // `check` asks for no right to write either, and of a worker that writes for all.
    let config = sandbox.config_path().display().to_string();
    for (mode, code) in [("shadow", 0), ("sync", 1)] {
        let mode = [("BALANCE_SYNC__WORKER__MODE", mode)];
        let checked = run(&["check", "--connect", "--config", &config], &mode).await?;
        ensure!(checked.code == Some(code), "{mode:?}: {checked:?}");
        let said = checked.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(said.contains("UPDATE (version)") == (code == 1), "{mode:?}: {checked:?}");
    }
    let mut redis = sandbox.redis().connect().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    let mut ledgers = Vec::new();
    for tenant in &tenants {
        let pool = sandbox.pool(tenant);
        ledgers.push(LedgerWorker::new(tenant, redis.clone(), pool));
    }
    // From before its start on. All that is not of ours is of the shadow.
    let monitor = Monitor::begin(sandbox.redis()).await?;
    let ours = clients_of(sandbox.redis(), "default").await?;
    // Redis 6.2 knows no rights that hold for some keys alone.
    let has_user = sandbox.redis().version().await? >= (7, 0);
    let builder = match has_user {
        true => shadow(&sandbox).set("redis.url", &sandbox.redis().shadow_url()),
        false => shadow(&sandbox),
    };
    let mut worker = builder.start().await?;
    let (progress, over) = (Progress::new(2), CancellationToken::new());
    let load = LoadOptions {
        rate: 400.0,
        duration: Some(Duration::from_secs(8)),
        hot_key_share: 0.3,
        ..LoadOptions::default()
    };
    let produce = async {
        let report = producer.run(&load, &progress, &CancellationToken::new()).await;
        over.cancel();
        report
    };
    let [first, second] = ledgers.as_mut_slice() else { anyhow::bail!("two tenants") };
    let (report, one, two) = tokio::join!(produce, first.run(&over), second.run(&over));
    ensure!(report?.errors == 0, "the load failed");
    ensure!(one.dropped + two.dropped == 0, "{one:?} {two:?}");
    let mut rows = one.written + two.written;
    for (ledger, tenant) in ledgers.iter_mut().zip(&tenants) {
        while redis.zcard::<_, u64>(tenant.keys.schedule()).await? > 0 {
            rows += ledger.round().await?.written;
        }
    }
    in_step(&sandbox, &producer).await?;
    compares_again(&worker, &tenants).await?;
    for tenant in &tenants {
        let found = found(&worker, tenant).await?;
        ensure!(found["left_behind"] == 0 && found["lost"] == 0 && found["would_write"] == 0, "{found}");
        ensure!(found["lag_samples"].as_u64() > Some(0) && found["compared"] == 150, "{found}");
        let lag = found["lag_p99_seconds"].as_f64().context("no lag")?;
        ensure!(lag < SOON.as_secs_f64(), "{found}");
    }
    let line =
        worker.log().find("whoever writes today has taken balances out of the schedule without writing them");
    ensure!(line.is_none(), "{line:?}");
    assert_eq!(worker.metric("balance_sync_shadow_left_behind_total", &[]).await?, 0.0);
    assert_eq!(worker.stop().await?.code, Some(0));

    let executed = monitor.executed(sandbox.redis()).await?;
    let own: Vec<Executed> = executed.into_iter().filter(|one| !ours.contains(&one.client)).collect();
    let commands: BTreeSet<&str> = own.iter().map(|one| one.words[0].as_str()).collect();
    ensure!(
        commands.contains("EVALSHA") && commands.contains("MGET") && commands.contains("ZMSCORE"),
        "{commands:?}"
    );
    let keys = written(&own, &writing)?;
    ensure!(!keys.is_empty(), "it registers itself");
    let is_documented = |key: &&String| {
        let rest = key.strip_prefix(OWN).unwrap_or(key);
        DOCUMENT.contains(&format!("`{OWN}{}:…`", rest.split(':').next().unwrap_or(rest)))
    };
    let others: Vec<&String> = keys.iter().filter(|key| !is_documented(key)).collect();
    ensure!(others.is_empty(), "{others:?} are not in docs/operations.md");
    // Rows changed by the stand-in and by nobody else; `writes` ends all sessions, so that all of them are counted.
    let after = writes(&sandbox, &tenants).await?;
    assert_eq!(total(&after, 1) - total(&before, 1), rows as i64, "updates");
    assert_eq!(
        (total(&after, 0), total(&after, 2)),
        (total(&before, 0), total(&before, 2)),
        "inserts, deletes"
    );
    Ok(())
}

/// Rows inserted (0), updated (1) or deleted (2), over all tables.
fn total(counts: &[(String, i64, i64, i64)], which: usize) -> i64 {
    counts.iter().map(|(_, inserted, updated, deleted)| [inserted, updated, deleted][which]).sum()
}

#[tokio::test]
async fn what_the_ledgers_worker_drops_or_redis_loses_is_reported_and_ends_when_it_is_mended() -> Result<()> {
    let sandbox = two_databases(20).await?;
    let tenants = sandbox.tenants();
    let tenant = &tenants[0];
    let mut redis = sandbox.redis().connect().await?;
    let mut ledger = LedgerWorker::new(tenant, redis.clone(), sandbox.pool(tenant));
    // A release up to 4.0 beside writers of 4.1: it drops what it can't read, and writes the rest.
    ledger.reads_dual = false;
    let mut old = sandbox.producer();
    let mut worker = shadow(&sandbox).start().await?;
    old.mutate(0, &[0, 1, 2, 3, 4], DEFAULT_TTL).await?;
    let mut newer = sandbox.producer().in_format(Format::Dual);
    newer.mutate(0, &[5, 6, 7], DEFAULT_TTL).await?;
    let round = ledger.round().await?;
    assert_eq!((round.written, round.dropped), (5, 3));
    eventually(SOON, "three balances left behind", || async {
        let found = found(&worker, tenant).await?;
        ensure!(found["left_behind"] == 3 && found["lost"] == 0, "{found}");
        let example = &found["examples"][0];
        ensure!(example["version"] == 2 && example["row_version"] == 1, "{found}");
        Ok(())
    })
    .await?;
    let overview = json(&worker, "/api/v1/overview").await?;
    assert_eq!(overview["verdict"], "attention", "{overview}");
    assert!(
        overview["reasons"].to_string().contains("3 balances of 1 tenant were left behind"),
        "{overview}"
    );
    assert_eq!(overview["shadow"]["left_behind"], 3);
    worker.reaches("balance_sync_shadow_left_behind_balances", &[("tenant_id", &tenant.id)], 3.0).await?;
    worker.reaches("balance_sync_shadow_left_behind_total", &[], 3.0).await?;
    worker.logs("whoever writes today has taken balances out of the schedule without writing them").await?;
    let config = sandbox.config_path().display().to_string();
    let description = Description::of(&worker).await?;
    for (path, asked) in [
        ("/api/v1/overview", "/api/v1/overview".to_owned()),
        ("/api/v1/workers", "/api/v1/workers".to_owned()),
        ("/api/v1/tenants/{id}", format!("/api/v1/tenants/{}", tenant.id)),
    ] {
        description.fits("GET", path, &ask(&worker, "GET", &asked, &[], None).await?)?;
    }
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    // A command shows what was published last.
    eventually(SOON, "what the commands show", || async {
        let status = run(&["status", "--config", &config], &[]).await?.stdout;
        ensure!(words(&status).contains("3 left behind, 0 lost by whoever writes today"), "{status}");
        ensure!(status.contains("onlooker") && status.contains("eviction"), "{status}");
        let shown = run(&["tenants", "show", &tenant.id, "--config", &config], &[]).await?.stdout;
        ensure!(words(&shown).contains("version 2 in Redis, 1 in Postgres"), "{shown}");
        Ok(())
    })
    .await?;

    // One value vanishes: what its row lacks is nowhere any more.
    let member = |balance: usize| tenant.keys.member(&tenant.balances[balance]);
    let () = redis.del(member(5)).await?;
    eventually(SOON, "one of them lost", || async {
        let found = found(&worker, tenant).await?;
        ensure!(found["left_behind"] == 2 && found["lost"] == 1, "{found}");
        Ok(())
    })
    .await?;
    // Those that are scheduled again are written by one that can read them.
    for balance in [6, 7] {
        let () = redis.zadd(tenant.keys.schedule(), member(balance), 1.0).await?;
    }
    ledger.reads_dual = true;
    assert_eq!(ledger.round().await?.written, 2);
    eventually(SOON, "nothing left behind", || async {
        let found = found(&worker, tenant).await?;
        ensure!(found["left_behind"] == 0 && found["lost"] == 1, "{found}");
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn what_waits_is_reported_as_what_would_be_written_with_the_age_of_the_oldest() -> Result<()> {
    let sandbox = two_databases(20).await?;
    let tenants = sandbox.tenants();
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    let mut worker = shadow(&sandbox).start().await?;
    eventually(SOON, "20 balances that would be written", || async {
        let shown = json(&worker, &format!("/api/v1/tenants/{}", tenants[0].id)).await?;
        let waited = shown["oldest_due_age_seconds"].as_f64().unwrap_or_default();
        ensure!(shown["shadow"]["would_write"] == 20 && shown["due"] == 20 && waited > 2.0, "{shown}");
        ensure!(shown["state"] == "shadow" && shown["owners"] == json!([]), "{shown}");
        Ok(())
    })
    .await?;
    // Nobody else writes: late, and never healthy.
    eventually(SOON, "a fleet that is behind", || async {
        let overview = json(&worker, "/api/v1/overview").await?;
        ensure!(overview["verdict"] == "behind", "{overview}");
        Ok(())
    })
    .await?;
    for (at, tenant) in tenants.iter().enumerate() {
        let ledger =
            LedgerWorker::new(tenant, sandbox.redis().connect().await?, sandbox.pool(tenant)).round().await?;
        assert_eq!(ledger.written, 20, "tenant {at}");
    }
    eventually(SOON, "nothing that would be written", || async {
        let overview = json(&worker, "/api/v1/overview").await?;
        ensure!(overview["verdict"] == "attention" && overview["shadow"]["would_write"] == 0, "{overview}");
        ensure!(overview["reasons"].to_string().contains("Only shadows are live (onlooker)"), "{overview}");
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_shadow_shares_no_tenants_with_a_worker_of_its_fleet_and_nobody_misses_it() -> Result<()> {
    let sandbox = two_databases(20).await?;
    let tenants = sandbox.tenants();
    let brisk = |name: &str| {
        Worker::of(&sandbox)
            .set("worker.name", name)
            .set("worker.lease", "2s")
            .set("worker.expected", "1")
            .set("supervisor.sample_interval", "200ms")
    };
    let mut onlooker = shadow(&sandbox).set("worker.expected", "1").start().await?;
    let mut writer = brisk("writer").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    // Each sees the same: the writer owns all, the shadow none, and all is well.
    for worker in [&writer, &onlooker] {
        eventually(SOON, "a healthy fleet of one worker and one shadow", || async {
            let overview = json(worker, "/api/v1/overview").await?;
            ensure!(overview["verdict"] == "healthy" && overview["reasons"] == json!([]), "{overview}");
            ensure!(overview["workers"]["live"] == 1, "{overview}");
            ensure!(overview["shadow"]["workers"] == json!(["onlooker"]), "{overview}");
            let workers = json(worker, "/api/v1/workers").await?;
            ensure!(
                workers["workers"][0]["name"] == "writer" && workers["workers"][0]["mode"] == "sync",
                "{workers}"
            );
            ensure!(workers["shadows"][0]["mode"] == "shadow", "{workers}");
            ensure!(workers["shadows"][0]["tenants_owned"] == 0, "{workers}");
            for tenant in &tenants {
                let shown = json(worker, &format!("/api/v1/tenants/{}", tenant.id)).await?;
                ensure!(shown["owners"] == json!(["writer"]) && shown["state"] == "idle", "{shown}");
                ensure!(shown["shadow"]["by"] == json!(["onlooker"]), "{shown}");
            }
            Ok(())
        })
        .await?;
    }
    assert_eq!(writer.metric("balance_sync_workers", &[]).await?, 1.0, "not counted on");
    assert_eq!(onlooker.metric("balance_synced", &[]).await?, 0.0);
    assert_eq!(onlooker.metric("balance_sync_shadow", &[]).await?, 1.0);
    // Nothing is changed through it.
    let path = format!("/api/v1/tenants/{}/actions", tenants[0].id);
    let answer = post(&onlooker, &path, &json!({"action": "pause", "note": "a test"})).await?;
    assert_eq!(
        (answer.status, answer.body["type"].as_str()),
        (403, Some("about:blank#shadow")),
        "{}",
        answer.text
    );
    let config = sandbox.config_path().display().to_string();
    let workers = run(&["workers", "--config", &config], &[]).await?;
    assert!(workers.stdout.contains("onlooker") && workers.stdout.contains("shadow"), "{}", workers.stdout);

    onlooker.kill().await?;
    eventually(SOON, "a fleet without the shadow", || async {
        let overview = json(&writer, "/api/v1/overview").await?;
        ensure!(overview["shadow"] == Value::Null && overview["verdict"] == "healthy", "{overview}");
        ensure!(overview["dead_workers"] == json!([]), "{overview}");
        Ok(())
    })
    .await?;
    // An action on a tenant is carried out by the one that writes.
    let answer = post(&writer, &path, &json!({"action": "pause", "note": "a test"})).await?;
    assert_eq!(answer.status, 202, "{}", answer.text);
    assert_eq!(writer.stop().await?.code, Some(0));
    let before = row(&sandbox, &tenants[0], 0).await?;
    assert_eq!(before.version, 2);
    Ok(())
}
