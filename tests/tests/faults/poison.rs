//! G5: what can't be synced stands aside with its reason, can be looked at, retried and dropped, and holds no other up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw, write_operations};
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table, eventually};
use balance_sync_tests::ledger::{is_settled, losses_key, quarantine_key, row, rows, scores};
use balance_sync_tests::{SOON, Worker, run};
use redis::AsyncCommands;
use serde_json::Value;

use crate::{brisk, report};

/// Balances in the batch.
const BATCH: usize = 50;
/// Which of them is poison.
const CULPRIT: usize = 17;

/// The command's exit code and its JSON.
pub(crate) async fn quarantine(sandbox: &Sandbox, args: &[&str]) -> Result<(Option<i32>, Value)> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let all: Vec<&str> = [&["quarantine"], args, &["--json", "--config", config]].concat();
    let done = run(&all, &[]).await?;
    let value = serde_json::from_str(&done.stdout).with_context(|| format!("{args:?}: {done:?}"))?;
    Ok((done.code, value))
}

/// A time of an entry: text, so that no microsecond is lost on its way through a float.
fn seconds(time: &Value) -> Result<f64> {
    Ok(time.as_str().context("a time")?.parse()?)
}

/// Waits until one member is in quarantine, and gives its entry.
async fn one_quarantined(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<(String, Value)> {
    eventually(SOON, "one entry in quarantine", || async {
        let mut redis = sandbox.redis().connect().await?;
        let found: Vec<(String, String)> = redis.hgetall(quarantine_key(tenant)).await?;
        match found.as_slice() {
            [(member, entry)] => Ok((member.clone(), serde_json::from_str(entry)?)),
            more => bail!("{}", more.len()),
        }
    })
    .await
}

/// Writes a mutation of every balance but this, and this raw value in its place.
async fn mutate_with_poison(
    sandbox: &Sandbox,
    tenant: &SandboxTenant,
    version: i64,
    member: &str,
    value: &str,
) -> Result<()> {
    let mut redis = sandbox.redis().connect().await?;
    let schedule = tenant.keys.schedule();
    for (number, balance) in tenant.balances.iter().enumerate() {
        let (own, json) = (tenant.keys.member(balance), balance.json(version));
        let (member, value) = if number == CULPRIT { (member, value) } else { (own.as_str(), json.as_str()) };
        put_raw(&mut redis, &schedule, member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL)).await?;
    }
    Ok(())
}

/// One batch with one culprit; gives its member and how long it took to the last good row.
async fn one_in_fifty(
    sandbox: &Sandbox,
    worker: &Worker,
    tenant: &SandboxTenant,
    version: i64,
    reason: &str,
) -> Result<String> {
    let begun = Instant::now();
    let (member, entry) = one_quarantined(sandbox, tenant).await?;
    assert_eq!(entry["reason"], reason, "{entry}");
    let took = begun.elapsed();
    let found = rows(sandbox, tenant).await?;
    for (number, balance) in tenant.balances.iter().enumerate().filter(|(number, _)| *number != CULPRIT) {
        let stored = found.get(&balance.id).map(|row| row.version);
        assert_eq!(stored, Some(version), "balance {number}");
    }
    eventually(SOON, "an empty schedule", || async {
        ensure!(scores(sandbox, &tenant.keys.schedule()).await?.is_empty());
        Ok(())
    })
    .await?;
    let page = worker.metrics().await?;
    let counted = |outcome: &str| page.sum("balance_sync_balances_total", &[("outcome", outcome)]);
    assert_eq!((counted("updated"), counted("quarantined")), (49.0, 1.0));
    assert_eq!(counted("released"), 0.0);
    assert_eq!(page.sum("balance_sync_batches_total", &[]), 1.0, "all in the same cycle");
    report(&format!("1 poison in 50 ({reason})"), &format!("49 written in the same cycle, {took:.0?}"));
    Ok(member)
}

#[tokio::test]
async fn one_poison_in_fifty_leaves_the_others_their_cycle() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, BATCH).await?;
    let tenant = sandbox.tenants().remove(0);
    let other = sandbox.tenants().remove(1).id;
    let own = tenant.keys.member(&tenant.balances[CULPRIT]);
    let id = tenant.balances[CULPRIT].id;
    let good = |version| tenant.balances[CULPRIT].json(version);
    // One whole batch: what is scheduled before the worker starts is claimed with one call.
    let one_batch = || brisk(&sandbox, "w").set("collector.batch_size", &BATCH.to_string()).start();

    // A debt below zero: a CHECK of the table refuses the whole statement.
    let negative = good(2).replace("\"OverdraftUsed\":\"", "\"OverdraftUsed\":\"-1");
    mutate_with_poison(&sandbox, &tenant, 2, &own, &negative).await?;
    let mut worker = one_batch().await?;
    let member = one_in_fifty(&sandbox, &worker, &tenant, 2, "refused_by_postgres").await?;
    assert_eq!(member, own);

    // What an operator sees of it.
    let (code, listed) = quarantine(&sandbox, &["list"]).await?;
    assert_eq!((code, listed.as_array().map(Vec::len)), (Some(1), Some(1)), "{listed}");
    assert_eq!(
        (&listed[0]["tenant"], &listed[0]["member"]),
        (&tenant.id.as_str().into(), &own.as_str().into())
    );
    for elsewhere in [["list", "--reason", "missing_row"], ["list", "--tenant", &other]] {
        assert_eq!(quarantine(&sandbox, &elsewhere).await?, (Some(0), Value::Array(Vec::new())));
    }
    let (code, shown) = quarantine(&sandbox, &["show", &own]).await?;
    assert_eq!((code, &shown["value"], &shown["count"]), (Some(0), &negative.as_str().into(), &1.into()));
    let detail = shown["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("23514") && shown["reason"] == "refused_by_postgres", "{shown}");
    assert!(seconds(&shown["first_at"])? > 1e9 && shown["last_at"] == shown["first_at"], "{shown}");
    // Tried again, it comes back, and its entry says so.
    assert_eq!(quarantine(&sandbox, &["retry", &own]).await?.1["done"], 1);
    let again = eventually(SOON, "a second refusal", || async {
        let (_, entry) = one_quarantined(&sandbox, &tenant).await?;
        ensure!(entry["count"] == 2, "{entry}");
        Ok(entry)
    })
    .await?;
    assert!(seconds(&again["last_at"])? > seconds(&again["first_at"])?, "{again}");
    let (code, unknown) = quarantine(&sandbox, &["retry", "nobody"]).await?;
    assert_eq!((code, &unknown["done"], &unknown["absent"]), (Some(1), &0.into(), &1.into()));
    // A later good mutation clears it without anybody's help.
    let mut redis = sandbox.redis().connect().await?;
    put_raw(&mut redis, &tenant.keys.schedule(), own.as_bytes(), good(3).as_bytes(), Some(DEFAULT_TTL))
        .await?;
    eventually(SOON, "a cleared entry", || is_settled(&sandbox, &tenant)).await?;
    assert_eq!(row(&sandbox, &tenant, CULPRIT).await?.version, 3);
    assert_eq!(worker.stop().await?.code, Some(0));

    // A member that is none.
    let broken = format!("{}balance:{{transactions}}:nonsense", tenant.keys.prefix());
    mutate_with_poison(&sandbox, &tenant, 4, &broken, "{}").await?;
    let mut worker = one_batch().await?;
    let member = one_in_fifty(&sandbox, &worker, &tenant, 4, "member_without_organization").await?;
    assert_eq!(member, broken);
    assert_eq!(quarantine(&sandbox, &["drop", &broken]).await?.0, Some(0));
    assert_eq!(quarantine(&sandbox, &["list"]).await?.0, Some(0));
    assert_eq!(quarantine(&sandbox, &["drop", &broken]).await?.0, Some(1));
    assert_eq!(worker.stop().await?.code, Some(0));

    // A row that isn't there.
    let table = balance_table(None);
    let aside = format!(
        "CREATE TABLE aside AS SELECT * FROM {table} WHERE id = '{id}'; DELETE FROM {table} WHERE id = '{id}'"
    );
    sandbox.postgres().execute(&tenant.database, &aside).await?;
    mutate_with_poison(&sandbox, &tenant, 5, &own, &good(5)).await?;
    let mut worker = one_batch().await?;
    one_in_fifty(&sandbox, &worker, &tenant, 5, "missing_row").await?;
    // Mended, when the value has long expired in Redis: the entry has kept it.
    let mend = format!("INSERT INTO {table} SELECT * FROM aside");
    sandbox.postgres().execute(&tenant.database, &mend).await?;
    assert_eq!(redis.del::<_, i64>(&own).await?, 1);
    let (code, retried) = quarantine(&sandbox, &["retry", "--all", "--reason", "missing_row"]).await?;
    assert_eq!((code, &retried["done"]), (Some(0), &1.into()));
    eventually(SOON, "a cleared entry", || is_settled(&sandbox, &tenant)).await?;
    let written = row(&sandbox, &tenant, CULPRIT).await?;
    assert_eq!((written.version, written.amounts), (5, tenant.balances[CULPRIT].amounts(5)));
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn an_expired_value_is_counted_logged_and_listed() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let member = tenant.keys.member(&tenant.balances[3]);
    let pool = sandbox.pool(&tenant);
    write_operations(&pool, tenant.schema.as_deref(), &[(&tenant.balances[3], 2)]).await?;
    pool.close().await;
    let mut worker = brisk(&sandbox, "w").start().await?;
    let mut redis = sandbox.redis().connect().await?;
    redis.zadd::<_, _, _, ()>(tenant.keys.schedule(), &member, 1.5).await?;
    worker.reaches("balance_sync_balances_total", &[("outcome", "expired")], 1.0).await?;
    let lines = worker.log().lines();
    let logged = lines.iter().find(|line| line.message.starts_with("value expired in redis"));
    let logged = logged.context("no line says so")?;
    assert_eq!(
        (logged.level.as_str(), &logged.fields["member"]),
        ("WARN", &member.as_str().into()),
        "{}",
        logged.raw
    );
    let (code, listed) = quarantine(&sandbox, &["list", "--reason", "value_lost"]).await?;
    assert_eq!((code, &listed[0]["member"]), (Some(1), &member.as_str().into()));
    assert_eq!(quarantine(&sandbox, &["show", &member]).await?.1["value"], Value::Null);
    assert_eq!(worker.metric("balance_sync_balances_total", &[("outcome", "expired")]).await?, 1.0);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_full_quarantine_puts_off_and_raises_its_alarm() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 20).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = brisk(&sandbox, "w")
        .set("quarantine.max_entries", "2")
        .expect_error("quarantine is full")
        .start()
        .await?;
    let mut redis = sandbox.redis().connect().await?;
    for number in 0..5 {
        let member = format!("{}balance:{{transactions}}:nonsense-{number}", tenant.keys.prefix());
        put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), b"{}", Some(DEFAULT_TTL)).await?;
    }
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    balance_sync_tests::ledger::comes_in_step(&sandbox, &producer).await?;
    worker.reaches("balance_sync_quarantine_full_total", &[], 3.0).await?;
    let entries: Vec<String> = redis.hkeys(quarantine_key(&tenant)).await?;
    assert_eq!(entries.len(), 2);
    let lines = worker.log().lines();
    let named = lines.iter().filter(|line| line.message == "balance can't be synced, quarantined");
    let named: Vec<_> = named.filter_map(|line| line.fields["member"].as_str()).collect();
    let wrongly: Vec<_> =
        named.iter().filter(|member| !entries.iter().any(|entry| entry == *member)).collect();
    assert!(wrongly.is_empty(), "not in quarantine: {wrongly:?}");
    let left = scores(&sandbox, &tenant.keys.schedule()).await?;
    let now = balance_sync_tests::ledger::redis_time(&mut redis).await?;
    assert_eq!(left.len(), 3);
    let put_off = Duration::from_secs(500).as_secs_f64();
    assert!(left.values().all(|score| *score > now + put_off), "{left:?}, it is {now}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// A foreign key stands where the quarantine, or the losses, of the tenant belong.
#[tokio::test]
async fn a_key_in_the_place_of_the_quarantine_degrades_the_tenant_and_loses_nothing() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, BATCH).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut redis = sandbox.redis().connect().await?;
    for key in [quarantine_key(&tenant), losses_key(&tenant)] {
        let () = redis.set(&key, "somebody else's").await?;
    }
    let mut worker = brisk(&sandbox, "w").set("claim.put_off", "1s").start().await?;
    let member = tenant.keys.member(&tenant.balances[CULPRIT]);
    mutate_with_poison(&sandbox, &tenant, 2, &member, "[]").await?;
    let gone = tenant.keys.member(&tenant.balances[0]).replace('#', "-nobody#");
    let () = redis.zadd(tenant.keys.schedule(), &gone, 1_700_000_000).await?;

    let id = ("tenant_id", tenant.id.as_str());
    worker.reaches("balance_sync_tenant_degraded", &[id, ("reason", "redis_wrong_type")], 1.0).await?;
    worker.reaches("balance_sync_balances_total", &[("outcome", "updated")], (BATCH - 1) as f64).await?;
    let overview: Value = serde_json::from_str(&worker.get("/api/v1/overview").await?.1)?;
    assert_eq!(overview["verdict"], "degraded", "{}", overview["reasons"]);
    // Tried again and again.
    worker.reaches("balance_sync_cleanup_failures_total", &[id], 6.0).await?;
    let waiting: Vec<String> = scores(&sandbox, &tenant.keys.schedule()).await?.into_keys().collect();
    let mut expected = [gone.clone(), member.clone()];
    expected.sort();
    assert_eq!(waiting, expected);
    assert!(redis.ttl::<_, i64>(&member).await? > 600, "its value lives on");

    for key in [quarantine_key(&tenant), losses_key(&tenant)] {
        let () = redis.del(&key).await?;
    }
    let (listed, entry) = one_quarantined(&sandbox, &tenant).await?;
    assert_eq!((listed, entry["value"].as_str()), (member, Some("[]")));
    eventually(SOON, "the loss, and nothing scheduled", || async {
        let mut redis = sandbox.redis().connect().await?;
        ensure!(redis.hkeys::<_, Vec<String>>(losses_key(&tenant)).await? == [gone.clone()]);
        ensure!(scores(&sandbox, &tenant.keys.schedule()).await?.is_empty());
        Ok(())
    })
    .await?;
    eventually(SOON, "no such reason any more", || async {
        let shown =
            worker.metric("balance_sync_tenant_degraded", &[id, ("reason", "redis_wrong_type")]).await?;
        ensure!(shown == 0.0, "{shown}");
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// The verdict in one word, the exit code, and the reasons.
async fn status(sandbox: &Sandbox) -> Result<(Option<i32>, Value)> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let done = run(&["status", "--json", "--config", config], &[]).await?;
    Ok((done.code, serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))?))
}

#[tokio::test]
async fn acknowledged_entries_leave_the_fleet_healthy_until_one_more_comes() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = brisk(&sandbox, "w").start().await?;
    let poison = async |number: usize| -> Result<()> {
        let member = tenant.keys.member(&tenant.balances[number]);
        let mut redis = sandbox.redis().connect().await?;
        let schedule = tenant.keys.schedule();
        put_raw(&mut redis, &schedule, member.as_bytes(), b"[]", Some(DEFAULT_TTL)).await?;
        Ok(())
    };
    let judged = async |code: i32, verdict: &str| {
        eventually(SOON, verdict, || async {
            let (found, overview) = status(&sandbox).await?;
            ensure!(found == Some(code) && overview["verdict"] == verdict, "{found:?} {overview}");
            Ok(overview)
        })
        .await
    };
    poison(0).await?;
    judged(1, "attention").await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let acknowledge =
        ["tenants", "acknowledge", &tenant.id, "--note", "the ledger mends it", "--config", &config];
    let done = run(&acknowledge, &[("USER", "ann")]).await?;
    ensure!(done.code == Some(0) && done.stdout.contains("1 entries acknowledged"), "{done:?}");
    let overview = judged(0, "healthy").await?;
    assert_eq!((&overview["quarantined"], &overview["acknowledged"]), (&1.into(), &1.into()));
    let reasons = overview["reasons"].to_string();
    ensure!(reasons.contains("are acknowledged, the first by cli:ann@"), "{reasons}");
    ensure!(reasons.contains("(the ledger mends it)"), "{reasons}");
    // Wherever the tenant is shown.
    let shown = run(&["tenants", "show", &tenant.id, "--config", &config], &[]).await?;
    ensure!(shown.code == Some(0) && shown.stdout.contains("1 entries by cli:ann@"), "{shown:?}");
    let (_, answer) = worker.get(&format!("/api/v1/tenants/{}", tenant.id)).await?;
    let answer: Value = serde_json::from_str(&answer)?;
    assert_eq!(answer["acknowledged"]["holds"], true, "{answer}");
    // It outlives the worker.
    assert_eq!(worker.stop().await?.code, Some(0));
    let mut worker = brisk(&sandbox, "w2").start().await?;
    judged(0, "healthy").await?;

    // One goes and another one comes: as many as before.
    let own = tenant.keys.member(&tenant.balances[0]);
    let (code, _) = quarantine(&sandbox, &["drop", &own]).await?;
    assert_eq!(code, Some(0));
    poison(1).await?;
    let overview = judged(1, "attention").await?;
    assert_eq!((&overview["quarantined"], &overview["acknowledged"]), (&1.into(), &0.into()));
    let reasons = overview["reasons"].to_string();
    ensure!(reasons.contains("(more came since cli:ann@"), "{reasons}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
