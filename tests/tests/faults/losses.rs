//! G9: what is deleted is not lost, and what is lost is not forgotten.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw, write_operations};
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table, eventually};
use balance_sync_tests::ledger::{comes_in_step, is_settled, losses_key, quarantine_key, row, scores};
use balance_sync_tests::{Finished, SOON, Worker, run};
use redis::AsyncCommands;
use serde_json::Value;

use crate::poison::quarantine;
use crate::{brisk, report};

async fn operations(sandbox: &Sandbox, tenant: &SandboxTenant, operations: &[(usize, i64)]) -> Result<()> {
    let pool = sandbox.pool(tenant);
    let operations: Vec<_> =
        operations.iter().map(|(balance, version)| (&tenant.balances[*balance], *version)).collect();
    let written = write_operations(&pool, tenant.schema.as_deref(), &operations).await;
    pool.close().await;
    written
}

/// Schedules a balance as long ago, without a value.
async fn vanished(sandbox: &Sandbox, tenant: &SandboxTenant, balance: usize) -> Result<String> {
    let member = tenant.keys.member(&tenant.balances[balance]);
    let mut redis = sandbox.redis().connect().await?;
    redis.del::<_, ()>(&member).await?;
    redis.zadd::<_, _, _, ()>(tenant.keys.schedule(), &member, 1_700_000_000).await?;
    Ok(member)
}

async fn outcome(worker: &Worker, outcome: &str) -> Result<f64> {
    worker.metric("balance_sync_balances_total", &[("outcome", outcome)]).await
}

/// Waits until a balance is listed as lost, and gives the entry as `quarantine show` has it.
async fn listed(sandbox: &Sandbox, tenant: &SandboxTenant, member: &str) -> Result<Value> {
    eventually(SOON, "a loss", || async {
        let mut redis = sandbox.redis().connect().await?;
        ensure!(redis.hexists::<_, _, bool>(losses_key(tenant), member).await?, "{member} is not listed");
        Ok(())
    })
    .await?;
    let (code, shown) = quarantine(sandbox, &["show", member]).await?;
    assert_eq!((code, &shown["reason"]), (Some(0), &"value_lost".into()), "{shown}");
    Ok(shown)
}

/// Waits until `status` has this verdict.
async fn verdict(sandbox: &Sandbox, wanted: &str) -> Result<Finished> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    eventually(SOON, &format!("the verdict {wanted}"), || async {
        let said = run(&["status", "--config", config], &[]).await?;
        ensure!(said.stdout.starts_with(&wanted.to_uppercase()), "{said:?}");
        Ok(said)
    })
    .await
}

async fn nothing_scheduled(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<()> {
    eventually(SOON, "an empty schedule", || async {
        ensure!(scores(sandbox, &tenant.keys.schedule()).await?.is_empty());
        Ok(())
    })
    .await
}

/// Ledgers from 4.1 on delete the value with the row, older ones leave it in place.
#[tokio::test]
async fn ten_thousand_closed_accounts_leave_the_quarantine_empty() -> Result<()> {
    const ACCOUNTS: usize = 10_000;
    let sandbox = balance_sync_tests::sandbox(1, ACCOUNTS + 100).await?;
    let tenant = sandbox.tenants().remove(0);
    let table = balance_table(tenant.schema.as_deref());
    let mut redis = sandbox.redis().connect().await?;
    let schedule = tenant.keys.schedule();
    let mut closed = redis::pipe();
    let mut ids = Vec::new();
    for (number, balance) in tenant.balances[..ACCOUNTS].iter().enumerate() {
        let member = tenant.keys.member(balance);
        if number % 2 == 0 {
            closed.set_ex(&member, balance.json(2), 3_600).ignore();
        }
        closed.zadd(&schedule, member, 1_700_000_000 + number).ignore();
        ids.push(format!("'{}'", balance.id));
    }
    let sql = format!("UPDATE {table} SET deleted_at = now() WHERE id IN ({})", ids.join(","));
    sandbox.postgres().execute(&tenant.database, &sql).await?;
    closed.query_async::<()>(&mut redis).await?;

    let begun = Instant::now();
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    let open: Vec<usize> = (ACCOUNTS..ACCOUNTS + 100).collect();
    producer.mutate(0, &open, DEFAULT_TTL).await?;
    worker.reaches("balance_sync_balances_total", &[("outcome", "deleted")], ACCOUNTS as f64).await?;
    let took = begun.elapsed();
    nothing_scheduled(&sandbox, &tenant).await?;
    is_settled(&sandbox, &tenant).await?;
    for none in ["quarantined", "expired"] {
        assert_eq!(outcome(&worker, none).await?, 0.0, "{none}");
    }
    assert_eq!(outcome(&worker, "updated").await?, 100.0, "the open accounts");
    let page = worker.metrics().await?;
    assert_eq!(page.sum("balance_sync_lag_seconds_count", &[]), 100.0, "closed accounts have no lag");
    report(
        "10,000 accounts closed, half of them with their values left",
        &format!("settled in {took:.1?}, 0 in quarantine"),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_loss_is_shown_by_the_trail_and_listed_until_an_operator_drops_it() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = brisk(&sandbox, "w").set("quarantine.trail_grace", "3s").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;

    // Version 3 has gone with its value; of balance 4 all has been written.
    operations(&sandbox, &tenant, &[(3, 2), (3, 3), (4, 1), (4, 2)]).await?;
    let lost = vanished(&sandbox, &tenant, 3).await?;
    vanished(&sandbox, &tenant, 4).await?;
    let shown = listed(&sandbox, &tenant, &lost).await?;
    let known = tenant.balances[3].amounts(3);
    let loss = &shown["loss"];
    assert_eq!(
        (&loss["confirmed"], &loss["version"], &loss["row_version"]),
        (&true.into(), &3.into(), &2.into())
    );
    for (name, amount) in [("available", &known.available), ("on_hold", &known.on_hold)] {
        assert_eq!(loss[name].as_str(), Some(amount.as_str()), "{shown}");
    }
    nothing_scheduled(&sandbox, &tenant).await?;
    worker.reaches("balance_sync_balances_total", &[("outcome", "stale")], 1.0).await?;
    assert_eq!((outcome(&worker, "expired").await?, outcome(&worker, "deleted").await?), (1.0, 0.0));
    let (code, entries) = quarantine(&sandbox, &["list", "--reason", "value_lost"]).await?;
    assert_eq!(
        (code, entries.as_array().map(Vec::len), &entries[0]["member"]),
        (Some(1), Some(1), &lost.as_str().into())
    );

    worker.reaches("balance_sync_loss_entries", &[("tenant_id", &tenant.id)], 1.0).await?;
    let said = verdict(&sandbox, "degraded").await?;
    assert_eq!(
        (said.code, said.stdout.contains("1 balances have lost mutations")),
        (Some(1), true),
        "{said:?}"
    );

    // The ledger goes on from the row: the same version with other amounts. It is written, and the loss stays.
    let mut redis = sandbox.redis().connect().await?;
    let later = tenant.balances[3].json(4);
    put_raw(&mut redis, &tenant.keys.schedule(), lost.as_bytes(), later.as_bytes(), Some(DEFAULT_TTL))
        .await?;
    eventually(SOON, "the later mutation", || async {
        ensure!(row(&sandbox, &tenant, 3).await?.version == 4);
        Ok(())
    })
    .await?;
    nothing_scheduled(&sandbox, &tenant).await?;
    let shown = listed(&sandbox, &tenant, &lost).await?;
    assert!(shown["detail"].as_str().is_some_and(|detail| detail.contains("may have forked")), "{shown}");
    assert_eq!(shown["loss"]["version"], 3);
    assert!(shown["loss"]["later_at"].is_string());

    // A worker that has just started does not show the fleet as healthy before it knows of the loss.
    assert_eq!(worker.stop().await?.code, Some(0));
    let mut worker = brisk(&sandbox, "w").set("supervisor.sample_interval", "3s").start_unready().await?;
    let verdicts = Mutex::new(Vec::new());
    eventually(SOON, "the loss in the verdict", || async {
        let overview: Value = serde_json::from_str(&worker.get("/api/v1/overview").await?.1)?;
        let shown = overview["verdict"].as_str().unwrap_or_default().to_owned();
        verdicts.lock().map_err(|error| anyhow!("{error}"))?.push(shown);
        ensure!(overview["reasons"].to_string().contains("1 balances have lost mutations"), "{overview}");
        Ok(())
    })
    .await?;
    let verdicts = verdicts.into_inner()?;
    assert!(!verdicts.contains(&"healthy".to_owned()), "{verdicts:?}");

    assert_eq!(quarantine(&sandbox, &["drop", &lost]).await?.0, Some(0));
    assert_eq!(quarantine(&sandbox, &["list"]).await?.0, Some(0));
    is_settled(&sandbox, &tenant).await?;
    assert_eq!(verdict(&sandbox, "healthy").await?.code, Some(0));
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// However old the mutation is: its operation may have had to wait for Postgres, or its age is no longer known because a
/// claim has lapsed.
#[tokio::test]
async fn an_operation_that_comes_late_is_waited_for() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 4).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = brisk(&sandbox, "w").set("quarantine.trail_grace", "5s").start().await?;
    let members: Vec<String> = (0..3).map(|at| tenant.keys.member(&tenant.balances[at])).collect();
    let mut redis = sandbox.redis().connect().await?;
    // Mutations whose values are gone before anybody looks, and whose operations are not there yet.
    operations(&sandbox, &tenant, &[(0, 1), (1, 1), (2, 1)]).await?;
    let now = balance_sync_tests::ledger::redis_time(&mut redis).await?;
    let scores = [format!("{now:.6}"), "1700000000".to_owned(), "1700000000.1234565".to_owned()];
    for (member, score) in members.iter().zip(&scores) {
        redis.zadd::<_, _, _, ()>(tenant.keys.schedule(), member, score).await?;
    }
    worker.reaches("balance_sync_balances_total", &[("outcome", "released")], 3.0).await?;
    assert_eq!(outcome(&worker, "stale").await?, 0.0, "an equal version proves nothing yet");
    operations(&sandbox, &tenant, &[(0, 2), (1, 2), (2, 2)]).await?;
    for (member, score) in members.iter().zip(&scores) {
        let shown = listed(&sandbox, &tenant, member).await?;
        let loss = &shown["loss"];
        assert_eq!((&loss["version"], &loss["confirmed"]), (&2.into(), &true.into()), "{score}");
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// How many values of a tenant's scheduled balances are shown as gone.
async fn shown_as_gone(worker: &Worker, tenant: &SandboxTenant) -> Result<u64> {
    let shown: Value = serde_json::from_str(&worker.get(&format!("/api/v1/tenants/{}", tenant.id)).await?.1)?;
    let (count, since) = (&shown["values_gone"], &shown["values_gone_since"]);
    let count = count.as_u64().with_context(|| format!("a count: {shown}"))?;
    ensure!(since.is_string() == (count > 0), "{shown}");
    Ok(count)
}

/// Until the operation of what was lost is there, an equal version proves nothing: neither a loss nor that all is well.
#[tokio::test]
async fn values_that_are_gone_at_the_claim_are_shown_until_it_is_decided() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = brisk(&sandbox, "w").set("quarantine.trail_grace", "16s").start().await?;
    sandbox.producer().mutate_each(DEFAULT_TTL).await?;
    nothing_scheduled(&sandbox, &tenant).await?;
    operations(&sandbox, &tenant, &[(3, 2), (4, 2), (5, 2)]).await?;
    verdict(&sandbox, "healthy").await?;

    let begun = Instant::now();
    let members = [3, 4].map(|at| tenant.keys.member(&tenant.balances[at]));
    let mut redis = sandbox.redis().connect().await?;
    let now = balance_sync_tests::ledger::redis_time(&mut redis).await?;
    for member in &members {
        let mut mutation = redis::pipe();
        mutation.atomic().del(member).zadd(tenant.keys.schedule(), member, format!("{now:.6}"));
        mutation.query_async::<()>(&mut redis).await?;
    }
    let said = verdict(&sandbox, "attention").await?;
    let took = begun.elapsed();
    assert!(said.stdout.contains("2 values of scheduled balances are gone from Redis, since"), "{said:?}");
    assert_eq!((said.code, shown_as_gone(&worker, &tenant).await?), (Some(1), 2));

    // The operation of one comes; of the other there is none.
    operations(&sandbox, &tenant, &[(3, 3)]).await?;
    listed(&sandbox, &tenant, &members[0]).await?;
    let said = verdict(&sandbox, "degraded").await?;
    assert!(said.stdout.contains("1 balances have lost mutations"), "{said:?}");
    nothing_scheduled(&sandbox, &tenant).await?;
    eventually(SOON, "an end of what was shown", || async {
        let gone = shown_as_gone(&worker, &tenant).await?;
        ensure!(gone == 0, "{gone} gone");
        Ok(())
    })
    .await?;
    assert_eq!(quarantine(&sandbox, &["drop", &members[0]]).await?.0, Some(0));
    verdict(&sandbox, "healthy").await?;

    // The ledger writes a value again before it is decided.
    let member = tenant.keys.member(&tenant.balances[5]);
    vanished(&sandbox, &tenant, 5).await?;
    verdict(&sandbox, "attention").await?;
    let later = tenant.balances[5].json(3);
    put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), later.as_bytes(), Some(DEFAULT_TTL))
        .await?;
    verdict(&sandbox, "healthy").await?;
    assert_eq!(row(&sandbox, &tenant, 5).await?.version, 3);
    report("two values deleted right after their mutations", &format!("in the verdict {took:.1?} later"));
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// Nothing is claimed of it, so only the schedule shows it.
#[tokio::test]
async fn values_of_a_paused_tenant_that_are_gone_are_shown() -> Result<()> {
    const BALANCES: usize = 40;
    let sandbox = balance_sync_tests::sandbox(1, BALANCES).await?;
    let tenant = sandbox.tenants().remove(0);
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let mut worker = brisk(&sandbox, "w").set("quarantine.trail_grace", "3s").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    nothing_scheduled(&sandbox, &tenant).await?;
    let paused = run(&["tenants", "pause", &tenant.id, "--config", &config, "--note", "a test"], &[]).await?;
    assert_eq!(paused.code, Some(0), "{paused:?}");
    eventually(SOON, "the pause", || async {
        let shown = worker.get(&format!("/api/v1/tenants/{}", tenant.id)).await?.1;
        ensure!(serde_json::from_str::<Value>(&shown)?["state"] == "paused", "{shown}");
        Ok(())
    })
    .await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    assert_eq!(scores(&sandbox, &tenant.keys.schedule()).await?.len(), BALANCES);
    let said = verdict(&sandbox, "healthy").await?;
    assert!(said.stdout.contains("paused by hand"), "{said:?}");

    // Some that were scheduled first and some last, and one of those is restored.
    let begun = Instant::now();
    let members = [0, 1, BALANCES - 2, BALANCES - 1].map(|at| tenant.keys.member(&tenant.balances[at]));
    let mut redis = sandbox.redis().connect().await?;
    redis.del::<_, ()>(&members[..]).await?;
    let said = verdict(&sandbox, "attention").await?;
    let took = begun.elapsed();
    assert!(said.stdout.contains("4 values of scheduled balances are gone from Redis, since"), "{said:?}");
    assert!(said.stdout.contains("tenants resume"), "{said:?}");
    let back = tenant.balances[BALANCES - 1].json(3);
    redis.set_ex::<_, _, ()>(&members[3], back, 3_600).await?;
    eventually(SOON, "one less", || async {
        let gone = shown_as_gone(&worker, &tenant).await?;
        ensure!(gone == 3, "{gone} gone");
        Ok(())
    })
    .await?;

    operations(&sandbox, &tenant, &[(0, 3), (1, 3), (BALANCES - 2, 3)]).await?;
    let resumed = run(&["tenants", "resume", &tenant.id, "--config", &config], &[]).await?;
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    for member in &members[..3] {
        listed(&sandbox, &tenant, member).await?;
    }
    nothing_scheduled(&sandbox, &tenant).await?;
    eventually(SOON, "an end of what was shown", || async {
        let gone = shown_as_gone(&worker, &tenant).await?;
        ensure!(gone == 0, "{gone} gone");
        Ok(())
    })
    .await?;
    report("four values of a paused tenant deleted", &format!("in the verdict {took:.1?} later"));
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// A standby answers all questions, and the operation of what is lost waits in the ledger until it is promoted.
#[tokio::test]
async fn on_a_standby_nothing_is_decided_by_an_equal_version() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 4).await?;
    let tenant = sandbox.tenants().remove(0);
    let grace = Duration::from_secs(2);
    let mut worker = brisk(&sandbox, "w").set("quarantine.trail_grace", "2s").start().await?;
    operations(&sandbox, &tenant, &[(0, 1), (1, 1)]).await?;
    let postgres = sandbox.postgres();
    postgres.stop_gracefully().await?;
    std::fs::write(postgres.folder().join("data/standby.signal"), "")?;
    postgres.start_again().await?;
    let lost = vanished(&sandbox, &tenant, 0).await?;
    vanished(&sandbox, &tenant, 1).await?;
    let labels = [("tenant_id", tenant.id.as_str()), ("reason", "postgres_read_only")];
    worker.reaches("balance_sync_tenant_degraded", &labels, 1.0).await?;
    let begun = Instant::now();
    eventually(SOON, "tries for longer than the grace", || async {
        assert_eq!(outcome(&worker, "stale").await?, 0.0, "the operation could not be written");
        ensure!(begun.elapsed() > 2 * grace);
        Ok(())
    })
    .await?;

    postgres.execute("postgres", "SELECT pg_promote(true, 60)").await?;
    operations(&sandbox, &tenant, &[(0, 2)]).await?;
    let shown = listed(&sandbox, &tenant, &lost).await?;
    assert_eq!((&shown["loss"]["version"], &shown["loss"]["confirmed"]), (&2.into(), &true.into()));
    worker.reaches("balance_sync_balances_total", &[("outcome", "stale")], 1.0).await?;
    nothing_scheduled(&sandbox, &tenant).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn without_the_grants_a_loss_is_unconfirmed_and_goes_when_they_prove_it_none() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 6).await?;
    let tenant = sandbox.tenants().remove(0);
    let admin = |sql: &'static str| sandbox.postgres().execute(&tenant.database, sql);
    admin("REVOKE SELECT ON operation FROM balance_sync_tenants").await?;
    operations(&sandbox, &tenant, &[(1, 1), (2, 2)]).await.ok();
    let mut worker = brisk(&sandbox, "w").set("quarantine.trail_grace", "3s").start().await?;
    let [none, lost] = [vanished(&sandbox, &tenant, 1).await?, vanished(&sandbox, &tenant, 2).await?];
    for member in [&none, &lost] {
        let shown = listed(&sandbox, &tenant, member).await?;
        assert_eq!(shown["loss"]["confirmed"], false, "{shown}");
        let detail = shown["detail"].as_str().context("a detail")?;
        assert!(detail.contains("the grant SELECT on operation is missing"), "{detail}");
    }
    assert_eq!(outcome(&worker, "expired").await?, 2.0);

    admin("GRANT SELECT ON operation TO balance_sync_tenants").await?;
    let (code, retried) = quarantine(&sandbox, &["retry", "--all", "--reason", "value_lost"]).await?;
    assert_eq!((code, &retried["done"]), (Some(0), &2.into()));
    let mut redis = sandbox.redis().connect().await?;
    eventually(SOON, "one confirmed loss", || {
        let mut redis = redis.clone();
        let (tenant, lost) = (&tenant, &lost);
        async move {
            let left: Vec<String> = redis.hkeys(losses_key(tenant)).await?;
            ensure!(left == [lost.clone()], "{left:?}");
            Ok(())
        }
    })
    .await?;
    nothing_scheduled(&sandbox, &tenant).await?;
    let shown = listed(&sandbox, &tenant, &lost).await?;
    assert_eq!(
        (&shown["loss"]["confirmed"], &shown["loss"]["version"]),
        (&true.into(), &2.into()),
        "{shown}"
    );
    assert_eq!(redis.hlen::<_, i64>(quarantine_key(&tenant)).await?, 0);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// Also one that is too large for its entry, and had a second to live.
#[tokio::test]
async fn a_quarantined_value_is_written_after_any_length_of_time() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 4).await?;
    let tenant = sandbox.tenants().remove(0);
    let table = balance_table(tenant.schema.as_deref());
    let mut redis = sandbox.redis().connect().await?;
    let members: Vec<String> = tenant.balances.iter().map(|balance| tenant.keys.member(balance)).collect();
    let sql = format!(
        "CREATE TABLE aside AS SELECT * FROM {table}; DELETE FROM {table} WHERE alias <> '{}'",
        tenant.balances[3].alias
    );
    sandbox.postgres().execute(&tenant.database, &sql).await?;
    for (number, limit) in [(0, "64"), (1, "4096")] {
        let mut worker = brisk(&sandbox, "w").set("quarantine.max_value_bytes", limit).start().await?;
        let (member, balance) = (&members[number], &tenant.balances[number]);
        put_raw(
            &mut redis,
            &tenant.keys.schedule(),
            member.as_bytes(),
            balance.json(2).as_bytes(),
            Some(DEFAULT_TTL),
        )
        .await?;
        eventually(SOON, "the entry", || async {
            ensure!(
                sandbox
                    .redis()
                    .connect()
                    .await?
                    .hexists::<_, _, bool>(quarantine_key(&tenant), member)
                    .await?
            );
            Ok(())
        })
        .await?;
        // As if its time had come: what has an end ends now.
        let kept_alive: i64 = redis.ttl(member).await?;
        assert_eq!(kept_alive == -1, limit == "64", "{kept_alive}");
        if kept_alive > 0 {
            redis.del::<_, ()>(member).await?;
        }
        let mend = format!("INSERT INTO {table} SELECT * FROM aside WHERE id = '{}'", balance.id);
        sandbox.postgres().execute(&tenant.database, &mend).await?;
        assert_eq!(quarantine(&sandbox, &["retry", member]).await?.1["done"], 1);
        eventually(SOON, "a cleared entry", || is_settled(&sandbox, &tenant)).await?;
        let written = row(&sandbox, &tenant, number).await?;
        assert_eq!((written.version, written.amounts), (2, balance.amounts(2)));
        let left: i64 = redis.ttl(member).await?;
        assert_ne!(left, -1, "nothing is kept alive for ever");
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}
