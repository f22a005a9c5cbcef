//! Actions of operators: they hold for the whole fleet, survive restarts, and what became of them is in the log.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::{Sandbox, SandboxTenant, eventually, ledger::DEFAULT_TTL};
use balance_sync_tests::ledger::{comes_in_step, in_step, row, scores};
use balance_sync_tests::{SOON, Worker, WorkerBuilder};
use serde_json::{Value, json};

use crate::api::{json, post, texts};

/// Workers that all serve every tenant, and look rarely by themselves: what happens soon was ordered.
fn worker(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    Worker::of(sandbox).set("worker.name", name).set("worker.replicas", "2").set("worker.lease", "3s")
}

/// Has something done with a tenant; gives the id of the action.
async fn act(worker: &Worker, tenant: &SandboxTenant, action: &str) -> Result<String> {
    let body = json!({"action": action, "note": format!("a test of {action}")});
    let answer = post(worker, &format!("/api/v1/tenants/{}/actions", tenant.id), &body).await?;
    ensure!(answer.status == 202, "{action}: {} {}", answer.status, answer.text);
    ensure!(answer.body["tenant"] == tenant.id.as_str() && answer.body["what"] == action, "{}", answer.text);
    Ok(answer.body["action_id"].as_str().context("no id")?.to_owned())
}

/// Waits until that many workers have reported what became of an action; gives the action.
async fn outcomes_of(worker: &Worker, id: &str, workers: usize) -> Result<Value> {
    eventually(SOON, &format!("{workers} outcomes of {id}"), || async {
        let log = json(worker, "/api/v1/actions").await?;
        let actions = log["actions"].as_array().context("no actions")?;
        let action = actions.iter().find(|action| action["id"] == id).context("not in the log")?;
        ensure!(action["outcomes"].as_array().map(Vec::len) == Some(workers), "{action}");
        Ok(action.clone())
    })
    .await
}

async fn state(worker: &Worker, tenant: &SandboxTenant) -> Result<Value> {
    json(worker, &format!("/api/v1/tenants/{}", tenant.id)).await
}

#[tokio::test]
async fn a_paused_tenant_stays_paused_through_restarts_and_keeps_its_values() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 20).await?;
    let [paused, other] = [sandbox.tenants()[0].clone(), sandbox.tenants()[1].clone()];
    let mut workers = [worker(&sandbox, "one").start().await?, worker(&sandbox, "two").start().await?];
    eventually(SOON, "both serve it", || async {
        let detail = state(&workers[0], &paused).await?;
        ensure!(detail["owners"].as_array().map(Vec::len) == Some(2), "{detail}");
        Ok(())
    })
    .await?;
    let id = act(&workers[0], &paused, "pause").await?;
    let action = outcomes_of(&workers[1], &id, 2).await?;
    assert_eq!((&action["by"], &action["note"]), (&"anonymous@loopback".into(), &"a test of pause".into()));
    assert_eq!(texts(&action["outcomes"], "outcome"), ["done", "done"]);

    // Mutations whose values would be gone before the end of the pause.
    let mut producer = sandbox.producer();
    producer.mutate_each(Duration::from_secs(3)).await?;
    let begun = std::time::Instant::now();
    eventually(SOON, "the other tenant in step", || async {
        ensure!(scores(&sandbox, &other.keys.schedule()).await?.is_empty(), "some are scheduled");
        Ok(())
    })
    .await?;
    // What a worker tells of the fleet may be two seconds old.
    for worker in &workers {
        eventually(SOON, "both tell of the pause", || async {
            let detail = state(worker, &paused).await?;
            ensure!(
                detail["state"] == "paused" && detail["paused"]["by"] == "anonymous@loopback",
                "{detail}"
            );
            ensure!(
                detail["next"].as_str().is_some_and(|next| next.contains("until it is resumed")),
                "{detail}"
            );
            Ok(())
        })
        .await?;
    }
    assert_eq!(
        texts(&json(&workers[0], "/api/v1/tenants?state=paused").await?["tenants"], "id"),
        [&paused.id]
    );

    // No worker is left, and then others come.
    for worker in &mut workers {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    let mut workers = [worker(&sandbox, "three").start().await?, worker(&sandbox, "four").start().await?];
    eventually(SOON, "both paused", || async {
        for worker in &workers {
            let detail = state(worker, &paused).await?;
            ensure!(
                detail["state"] == "paused" && detail["owners"].as_array().map(Vec::len) == Some(2),
                "{detail}"
            );
        }
        Ok(())
    })
    .await?;
    let left = Duration::from_secs(5).saturating_sub(begun.elapsed());
    tokio::time::sleep(left).await; // Beyond the life that the ledger gave the values.
    let waiting = scores(&sandbox, &paused.keys.schedule()).await?;
    assert_eq!(waiting.len(), 20, "nothing was claimed, before the restart or after it");
    assert!(waiting.values().all(|score| (score * 1e6 - (score * 1e6).round()).abs() < 0.25), "{waiting:?}");
    let stored = row(&sandbox, &paused, 0).await?;
    assert_eq!(stored.version, balance_sync_sandbox::ledger::SEED_VERSION, "nothing was written");
    for member in waiting.keys() {
        let life: i64 =
            redis::cmd("PTTL").arg(member).query_async(&mut sandbox.redis().connect().await?).await?;
        assert!(life > 60_000, "the value of {member} lives for {life} ms more");
    }

    let id = act(&workers[1], &paused, "resume").await?;
    comes_in_step(&sandbox, &producer).await?;
    let action = outcomes_of(&workers[0], &id, 2).await?;
    assert_eq!(texts(&action["outcomes"], "outcome"), ["done", "done"]);
    eventually(SOON, "not paused any more", || async {
        let detail = state(&workers[0], &paused).await?;
        ensure!(detail["paused"].is_null() && detail["expired_total"] == 0, "{detail}");
        Ok(())
    })
    .await?;
    for worker in &mut workers {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}

#[tokio::test]
async fn flush_wakes_a_tenant_out_of_a_long_backoff() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let broken = sandbox.tenants()[0].clone();
    let mut worker = worker(&sandbox, "one")
        .set("postgres.backoff_long", "10m")
        .set("postgres.backoff_min", "1m")
        .set("postgres.backoff_max", "10m")
        .start()
        .await?;
    let admin = sqlx::PgPool::connect(broken.admin_database_url()).await?;
    let schema = broken.schema.as_deref().unwrap_or("public");
    sqlx::query(sqlx::AssertSqlSafe(format!("ALTER TABLE \"{schema}\".balance RENAME TO hidden")))
        .execute(&admin)
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    eventually(SOON, "a degraded tenant", || async {
        let detail = state(&worker, &broken).await?;
        ensure!(detail["state"] == "degraded" && detail["reason"] == "postgres_not_provisioned", "{detail}");
        Ok(())
    })
    .await?;
    // Still broken: that is what became of it.
    let id = act(&worker, &broken, "flush").await?;
    let action = outcomes_of(&worker, &id, 1).await?;
    assert_eq!(texts(&action["outcomes"], "outcome"), ["failed"], "{action}");
    sqlx::query(sqlx::AssertSqlSafe(format!("ALTER TABLE \"{schema}\".hidden RENAME TO balance")))
        .execute(&admin)
        .await?;
    ensure!(in_step(&sandbox, &producer).await.is_err(), "its backoff was to last");
    let id = act(&worker, &broken, "flush").await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(texts(&outcomes_of(&worker, &id, 1).await?["outcomes"], "outcome"), ["done"]);

    // A paused tenant is not flushed.
    let pause = act(&worker, &broken, "pause").await?;
    outcomes_of(&worker, &pause, 1).await?;
    let id = act(&worker, &broken, "flush").await?;
    let action = outcomes_of(&worker, &id, 1).await?;
    assert_eq!(texts(&action["outcomes"], "outcome"), ["refused"], "{action}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn changed_credentials_are_read_when_an_operator_wants_it() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let tenant = sandbox.tenants()[0].clone();
    let mut worker = worker(&sandbox, "one")
        .set("tenants.service.settings_ttl", "1h")
        .set("postgres.backoff_long", "10m")
        .set("postgres.backoff_min", "1m")
        .set("postgres.backoff_max", "10m")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    // The service tells a password that doesn't work, and the sessions end: degraded, with a long backoff.
    let right = sandbox.service().tenant(&tenant.id).context("no such tenant")?.password;
    sandbox.service().update(&tenant.id, |record| record.password = "not-it-any-more".to_owned().into());
    let id = act(&worker, &tenant, "refresh_credentials").await?;
    assert_eq!(texts(&outcomes_of(&worker, &id, 1).await?["outcomes"], "outcome"), ["done"]);
    producer.mutate_each(DEFAULT_TTL).await?;
    eventually(SOON, "a degraded tenant", || async {
        let detail = state(&worker, &tenant).await?;
        ensure!(detail["reason"] == "postgres_credentials", "{detail}");
        Ok(())
    })
    .await?;
    sandbox.service().update(&tenant.id, |record| record.password = right.clone());
    let id = act(&worker, &tenant, "refresh_credentials").await?;
    comes_in_step(&sandbox, &producer).await?;
    let action = outcomes_of(&worker, &id, 1).await?;
    assert_eq!(texts(&action["outcomes"], "outcome"), ["done"], "{action}");

    // A service that doesn't answer: said as what became of it.
    sandbox.service().set_faults(balance_sync_sandbox::ServiceFault::Status(500));
    let id = act(&worker, &tenant, "refresh_credentials").await?;
    outcomes_of(&worker, &id, 1).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_worker_drains_by_name_and_ends_cleanly() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(4, 10).await?;
    let mut one = worker(&sandbox, "one").start().await?;
    let mut two = worker(&sandbox, "two").start().await?;
    eventually(SOON, "two workers", || async {
        let overview = json(&one, "/api/v1/overview").await?;
        ensure!(overview["workers"]["live"] == 2, "{overview}");
        Ok(())
    })
    .await?;
    for (path, body, status, words) in [
        ("/api/v1/workers/nobody/actions", json!({"action": "drain"}), 404, "no live worker"),
        ("/api/v1/workers/two/actions", json!({"action": "stop"}), 400, "allowed: drain"),
        ("/api/v1/workers/two/actions", json!({"action": "drain", "x": 1}), 400, "openapi"),
        (
            "/api/v1/workers/two/actions",
            json!({"action": "drain", "note": "a\nb"}),
            400,
            "no control characters",
        ),
        ("/api/v1/tenants/nobody/actions", json!({"action": "pause"}), 404, "no tenant"),
        ("/api/v1/tenants/nobody/actions", json!({"action": "drain"}), 400, "allowed: pause, resume"),
    ] {
        let answer = post(&one, path, &body).await?;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text);
        assert!(answer.text.contains(words), "{path} {body}: {}", answer.text);
    }
    let answer =
        post(&one, "/api/v1/workers/two/actions", &json!({"action": "drain", "note": "by name"})).await?;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let ended = two.wait().await?;
    assert_eq!(ended.code, Some(0));
    let id = answer.body["action_id"].as_str().context("no id")?;
    let action = outcomes_of(&one, id, 1).await?;
    assert_eq!((&action["what"], &action["worker"]), (&"drain".into(), &"two".into()));
    assert_eq!(texts(&action["outcomes"], "outcome"), ["done"]);
    assert!(texts(&action["outcomes"], "detail")[0].contains("4 collectors stopped"), "{action}");

    // Whoever comes under that name later doesn't drain for it.
    let mut again = worker(&sandbox, "two").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    eventually(SOON, "two workers", || async {
        let overview = json(&one, "/api/v1/overview").await?;
        ensure!(overview["workers"]["live"] == 2, "{overview}");
        Ok(())
    })
    .await?;
    assert_eq!(again.stop().await?.code, Some(0));
    assert_eq!(one.stop().await?.code, Some(0));
    Ok(())
}
