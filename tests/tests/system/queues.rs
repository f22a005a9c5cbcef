//! The ledger's own queues, from Redis to what operators see: workers with the rights of `deploy/redis/users.acl` alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::{Sandbox, SandboxTenant, WORKER_USER, balance_table, eventually};
use balance_sync_tests::{SOON, Worker, WorkerBuilder, run};
use redis::AsyncCommands as _;
use serde_json::Value;

use crate::api::json;

const QUEUE: &str = "balance_sync_ledger_queue_records";
/// How long ago the oldest records were created.
const TWO_HOURS: Duration = Duration::from_secs(7_200);

fn brisk(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    Worker::of(sandbox)
        .set("worker.name", name)
        .set("queues.interval", "200ms")
        .set("queues.quarantine_interval", "1s")
}

/// Two hours ago, in microseconds since 1970.
fn applied_at() -> Result<u128> {
    Ok((SystemTime::now() - TWO_HOURS).duration_since(UNIX_EPOCH)?.as_micros())
}

/// What the engine of a ledger writes of a transaction, with balances as a real one wrote them.
fn recover_record() -> Result<String> {
    let samples: Value = serde_json::from_str(include_str!("../../wire/value_samples.json"))?;
    let values = samples.as_array().or_else(|| samples["samples"].as_array()).context("samples")?;
    let balances: Vec<&Value> = values.iter().take(5).collect();
    let applied = u64::try_from(applied_at()?)?;
    Ok(serde_json::json!({ "record": { "result": { "appliedAtUnixMicro": applied, "final": balances } } })
        .to_string())
}

#[tokio::test]
async fn the_ledgers_queues_are_shown_per_tenant_by_the_first_worker_alone() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let tenants = sandbox.tenants();
    let (stuck, calm) = (&tenants[0], &tenants[1]);
    let mut redis = sandbox.redis().connect().await?;
    let key = |name: &str| format!("{}{name}", stuck.keys.prefix());
    let (recover, attempts) =
        (key("engine:{transactions}:recover"), key("engine:{transactions}:recover:attempts"));
    for n in 0..3 {
        redis.hset::<_, _, _, ()>(&recover, format!("t{n}"), recover_record()?).await?;
    }
    redis.hset::<_, _, _, ()>(&attempts, "t1", 4).await?;
    redis.hset::<_, _, _, ()>(key("backup_queue:{transactions}"), "t9", "\u{1b}[31m no JSON").await?;

    let mut workers = vec![brisk(&sandbox, "one").start().await?, brisk(&sandbox, "two").start().await?];
    let labels = [("tenant_id", stuck.id.as_str()), ("queue", "recovery")];
    eventually(SOON, "one worker that looks", || async {
        let mut shown = Vec::new();
        for worker in &workers {
            shown.push((
                worker.metric(QUEUE, &labels).await?,
                worker.metric(QUEUE, &[("tenant_id", &calm.id)]).await?,
            ));
        }
        let first: f64 = shown.iter().map(|(stuck, _)| stuck).sum();
        ensure!(first == 3.0 && shown.iter().all(|(_, calm)| *calm == 0.0), "{shown:?}");
        Ok(())
    })
    .await?;
    eventually(SOON, "the age", || async {
        let mut ages = Vec::new();
        for worker in &workers {
            ages.push(worker.metric("balance_sync_ledger_queue_oldest_age_seconds", &labels).await?);
        }
        let known: Vec<f64> = ages.iter().copied().filter(|age| *age > 0.0).collect();
        ensure!(known.len() == 1 && (7_200.0..8_000.0).contains(&known[0]), "{ages:?}");
        Ok(())
    })
    .await?;

    // Whichever worker is asked.
    for worker in &workers {
        let path = format!("/api/v1/tenants/{}", stuck.id);
        eventually(SOON, "the queues in the API", || async {
            let queues = json(worker, &path).await?["queues"].clone();
            let [backup, recovery] = queues.as_array().context("queues")?.as_slice() else {
                anyhow::bail!("{queues}")
            };
            ensure!(
                recovery["depth"] == 3 && recovery["most_attempts"] == 4 && recovery["retried"] == 1,
                "{queues}"
            );
            ensure!(recovery["scanned_at"].is_string() && recovery["oldest_at"].is_string(), "{queues}");
            ensure!(
                backup["depth"] == 1 && backup["unreadable"] == 1 && backup["oldest_at"].is_null(),
                "{queues}"
            );
            Ok(())
        })
        .await?;
        let overview = json(worker, "/api/v1/overview").await?;
        assert_eq!(overview["verdict"], "attention", "{overview}");
        assert_eq!(overview["queues"][1]["depth"], 3, "{overview}");
        let path = format!("/api/v1/tenants/{}", calm.id);
        eventually(SOON, "read, and empty", || async {
            let other = json(worker, &path).await?["queues"].clone();
            ensure!(other == serde_json::json!([]), "{other}");
            Ok(())
        })
        .await?;
    }

    let config = sandbox.config_path().to_str().context("a path of text")?;
    let status = run(&["status", "--config", config], &[]).await?;
    assert_eq!(status.code, Some(1), "{status:?}");
    let text = status.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.starts_with("ATTENTION"), "{text}");
    let said = "The ledger is not working off its queue recovery of 1 tenant: 3 records, the oldest since";
    assert!(text.contains(said) && text.contains("recovery 3, the oldest 2h"), "{text}");
    let shown = run(&["tenants", "show", &stuck.id, "--config", config], &[]).await?;
    let text = shown.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("backup: 1 records, 1 unreadable, scanned"), "{text}");
    assert!(text.contains("1 tried before, up to 4 times"), "{text}");
    assert!(!shown.stdout.contains("no JSON"), "what the ledger wrote is not shown");

    // The first worker of the tenant goes, and the other one looks.
    let mut first = 0;
    for (n, worker) in workers.iter().enumerate() {
        if worker.metric(QUEUE, &labels).await? > 0.0 {
            first = n;
        }
    }
    assert_eq!(workers.remove(first).stop().await?.code, Some(0));
    workers[0].reaches(QUEUE, &labels, 3.0).await?;
    assert_eq!(workers[0].stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_queue_without_a_right_is_unreadable_and_named_once() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut redis = sandbox.redis().connect().await?;
    redis
        .hset::<_, _, _, ()>(format!("{}backup_queue:{{transactions}}", tenant.keys.prefix()), "t", "{}")
        .await?;
    // As a file of users from before these rights were in it.
    let mut acl = redis::cmd("ACL");
    acl.arg("SETUSER").arg(WORKER_USER).arg("resetkeys").arg("~{transactions}:balance-sync:*");
    for part in ["balance:{transactions}:*", "schedule:{transactions}:*", "quarantine:{transactions}:*"] {
        acl.arg(format!("~tenant:*:{part}"));
    }
    acl.query_async::<()>(&mut redis).await?;
    let mut worker = brisk(&sandbox, "one").start().await?;
    let missing = format!("%R~{}backup_queue:{{transactions}}", tenant.keys.prefix());
    eventually(SOON, "the missing right", || async {
        let queues = json(&worker, &format!("/api/v1/tenants/{}", tenant.id)).await?["queues"].clone();
        let error = queues[0]["error"].as_str().unwrap_or_default();
        ensure!(error.contains(&missing) && queues[0]["depth"].is_null(), "{queues}");
        Ok(())
    })
    .await?;
    let labels = [("tenant_id", tenant.id.as_str()), ("queue", "backup")];
    worker.reaches("balance_sync_ledger_queue_unread", &labels, 1.0).await?;
    // UNKNOWN until the schedules have been read.
    eventually(SOON, "a healthy fleet with queues that can't be read", || async {
        let overview = json(&worker, "/api/v1/overview").await?;
        ensure!(overview["verdict"] == "healthy", "{overview}");
        ensure!(overview["queues"][0]["unknown_tenants"] == 2, "{overview}");
        let reasons = overview["reasons"].to_string();
        ensure!(reasons.contains("queue backup of 2 tenants can't be read"), "{overview}");
        Ok(())
    })
    .await?;
    let warned = worker.log().lines();
    let warned: Vec<_> =
        warned.iter().filter(|line| line.message == "a queue of the ledger can't be read").collect();
    assert_eq!(warned.len(), 3, "one for each queue: {warned:?}");

    let config = sandbox.config_path().to_str().context("a path of text")?;
    let check = run(&["check", "--connect", "--config", config], &[]).await?;
    let text = check.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        text.contains("no right to read") && text.contains("that queue of the ledger isn't shown"),
        "{text}"
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn what_the_ledger_has_given_up_is_counted_in_postgres() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let tenants = sandbox.tenants();
    let (poisoned, calm) = (&tenants[0], &tenants[1]);
    let postgres = sandbox.postgres();
    let table = |tenant: &SandboxTenant| {
        balance_table(tenant.schema.as_deref()).replace(".balance", ".transaction_backup_quarantine")
    };
    for tenant in [poisoned, calm] {
        let columns = "(organization_id UUID, ledger_id UUID, quarantined_at TIMESTAMPTZ)";
        postgres.execute(&tenant.database, &format!("CREATE TABLE {} {columns}", table(tenant))).await?;
    }
    let (name, role) = (table(poisoned), format!("\"{}\"", poisoned.role));
    let sql = format!(
        "GRANT SELECT (quarantined_at) ON {name} TO {role}; \
         INSERT INTO {name} (quarantined_at) VALUES (now() - interval '3 days'), (now())"
    );
    postgres.execute(&poisoned.database, &sql).await?;

    let mut worker = brisk(&sandbox, "one").start().await?;
    worker.reaches(QUEUE, &[("tenant_id", &poisoned.id), ("queue", "quarantine")], 2.0).await?;
    eventually(SOON, "the missing grant", || async {
        let queues = json(&worker, &format!("/api/v1/tenants/{}", calm.id)).await?["queues"].clone();
        let error = queues[0]["error"].as_str().unwrap_or_default();
        ensure!(queues[0]["queue"] == "quarantine" && queues[0]["depth"].is_null(), "{queues}");
        ensure!(error.contains("the grant SELECT"), "{queues}");
        Ok(())
    })
    .await?;
    let config = sandbox.config_path().to_str().context("a path of text")?;
    eventually(SOON, "what a command shows", || async {
        let shown = run(&["tenants", "show", &poisoned.id, "--config", config], &[]).await?;
        let text = shown.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(text.contains("quarantine: 2 records, the oldest 3d"), "{text}");
        Ok(())
    })
    .await?;
    // They wait for people, and may be kept for ever.
    eventually(SOON, "a healthy fleet", || async {
        let overview = json(&worker, "/api/v1/overview").await?;
        ensure!(overview["verdict"] == "healthy", "{overview}");
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
