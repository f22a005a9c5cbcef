//! G9: losses that leave next to no trace, each of which once closed as if nothing had been lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_sandbox::{
    RedisOptions, RedisServer, Sandbox, SandboxTenant, balance_table, eventually, operation_table,
};
use balance_sync_tests::ledger::{comes_in_step, losses_key, scores};
use balance_sync_tests::{SOON, run};
use redis::AsyncCommands;
use serde_json::Value;

use crate::report;
use crate::vanish::{counted, fill, in_sync, nothing_open, of_redis, operations, overview, shown, worker};

/// No worker of this release can read them, so no row proves that they were written.
#[tokio::test]
async fn a_schedule_of_values_of_a_later_format_that_vanishes_is_scheduled_again() -> Result<()> {
    const BALANCES: usize = 20;
    let sandbox = Sandbox::start(of_redis(1, BALANCES, &[])).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker =
        worker(&sandbox, "w").expect_error("a format that this release doesn't know").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let schedule = tenant.keys.schedule();
    let mut redis = sandbox.redis().connect().await?;
    for balance in tenant.balances.iter() {
        let value = format!(r#"{{"SchemaVersion":3,"id":"{}","version":"9"}}"#, balance.id);
        let member = tenant.keys.member(balance);
        put_raw(&mut redis, &schedule, member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL)).await?;
    }
    worker.reaches("balance_sync_balances_total", &[("outcome", "unknown_format")], BALANCES as f64).await?;
    counted(&sandbox).await?;
    redis.del::<_, ()>(&schedule).await?;
    let open = shown(&sandbox, &tenant, "redis_schedule_vanished").await?;
    assert_eq!(open["extent"], BALANCES, "{open}");
    eventually(SOON, "all of them scheduled again", || async {
        let scheduled = scores(&sandbox, &schedule).await?.len();
        ensure!(scheduled == BALANCES, "{scheduled} are");
        Ok(())
    })
    .await?;
    nothing_open(&sandbox).await?;
    // They are put off again, and shown as before.
    let reason = [("tenant_id", tenant.id.as_str()), ("reason", "value_unknown_format")];
    worker.reaches("balance_sync_tenant_degraded", &reason, 1.0).await?;
    report(
        "a schedule of 20 values in the format of a later release is deleted",
        "shown with its extent; all 20 are scheduled again",
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// Values go first and the schedule after them, as in a Redis that evicts: then no member that is remembered can prove anything.
#[tokio::test]
async fn members_whose_values_were_gone_before_their_schedule_count_as_missing() -> Result<()> {
    const BALANCES: usize = 20;
    let sandbox = Sandbox::start(of_redis(1, BALANCES, &["maxmemory-policy allkeys-lru"])).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    sandbox.postgres().stop_immediate().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let mut redis = sandbox.redis().connect().await?;
    for balance in tenant.balances.iter() {
        redis.del::<_, ()>(tenant.keys.member(balance)).await?;
    }
    counted(&sandbox).await?;
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("12mb").query_async::<()>(&mut redis).await?;
    for round in 0.. {
        fill(&sandbox, round).await?;
        let stats: String = redis::cmd("INFO").arg("stats").query_async(&mut redis).await?;
        if !stats.contains("evicted_keys:0\r") {
            break;
        }
        ensure!(round < 20_000, "nothing is evicted");
    }
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("0").query_async::<()>(&mut redis).await?;
    eventually(SOON, "a condition", || async {
        let overview = overview(&sandbox).await?;
        ensure!(overview["reasons"].to_string().contains("Redis has lost data of"), "{overview}");
        Ok(())
    })
    .await?;
    redis.del::<_, ()>(tenant.keys.schedule()).await?;
    let open = eventually(SOON, "its extent", || async {
        let open = shown(&sandbox, &tenant, "redis_schedule_vanished").await?;
        ensure!(open["extent"] == BALANCES, "{open}");
        Ok(open)
    })
    .await?;
    // The ledger writes their operations later, and all is listed.
    ensure!(open["detail"].as_str().is_some_and(|detail| detail.contains("gone before")), "{open}");
    sandbox.postgres().start_again().await?;
    operations(&sandbox, &tenant, producer.tenants()[0].versions[0]).await?;
    nothing_open(&sandbox).await?;
    assert_eq!(redis.hlen::<_, usize>(losses_key(&tenant)).await?, BALANCES);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

async fn sql(sandbox: &Sandbox, tenant: &SandboxTenant, text: String) -> Result<()> {
    let pool = sandbox.pool(tenant);
    sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&pool).await?;
    pool.close().await;
    Ok(())
}

async fn empty(sandbox: &Sandbox) -> Result<()> {
    counted(sandbox).await?;
    sandbox.redis().kill()?;
    sandbox.redis().start_again().await
}

/// The row is behind the trail, and which of two rows it is can't be told.
#[tokio::test]
async fn a_loss_that_can_not_be_determined_is_listed_and_not_dropped() -> Result<()> {
    let sandbox = Sandbox::start(of_redis(1, 10, &[])).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    operations(&sandbox, &tenant, producer.tenants()[0].versions[0]).await?;
    let (table, lost) = (balance_table(tenant.schema.as_deref()), &tenant.balances[3]);
    sql(
        &sandbox,
        &tenant,
        format!(
            "UPDATE {table} SET version = version - 1 WHERE id = '{id}'; \
             INSERT INTO {table} (id, organization_id, ledger_id, account_id, alias, key, asset_code, version) \
             SELECT gen_random_uuid(), organization_id, ledger_id, gen_random_uuid(), alias, key, asset_code, 1 \
             FROM {table} WHERE id = '{id}'",
            id = lost.id
        ),
    )
    .await?;
    // Nothing waited, so that nothing is missing in a schedule.
    empty(&sandbox).await?;
    let open = shown(&sandbox, &tenant, "redis_data_replaced").await?;
    assert_eq!(open["extent"], 0, "{open}");
    nothing_open(&sandbox).await?;
    let mut redis = sandbox.redis().connect().await?;
    let entry: Option<String> = redis.hget(losses_key(&tenant), tenant.keys.member(lost)).await?;
    let entry = entry.context("it is not listed")?;
    ensure!(entry.contains(r#""confirmed":false"#) && entry.contains("several rows"), "{entry}");
    let verdict = overview(&sandbox).await?;
    assert_eq!(verdict["verdict"], "degraded", "{verdict}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// Redis falls back, the ledger counts on from the older value, and is past the row's version before anybody compares.
#[tokio::test]
async fn a_history_that_was_overtaken_is_listed_as_forked_while_its_balance_is_mutated() -> Result<()> {
    let sandbox = Sandbox::start(of_redis(1, 10, &[])).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let version = producer.tenants()[0].versions[0];
    operations(&sandbox, &tenant, version).await?;
    let (hot, operation) = (&tenant.balances[4], operation_table(tenant.schema.as_deref()));
    let member = tenant.keys.member(hot);
    let value: Vec<u8> = sandbox.redis().connect().await?.get(&member).await?;
    empty(&sandbox).await?;
    // The other history leads to the same version with other amounts.
    let mut redis = sandbox.redis().connect().await?;
    redis.set_ex::<_, _, ()>(&member, value, DEFAULT_TTL.as_secs()).await?;
    operations(&sandbox, &tenant, version + 1).await?;
    // Its connection ended with Redis: the first call notices, the next one opens another.
    drop(producer.refresh_versions().await);
    sql(
        &sandbox,
        &tenant,
        format!(
            "UPDATE {operation} SET balance_version_after = {version} \
             WHERE balance_id = '{}' AND balance_version_after = {version} + 1; \
             DELETE FROM {operation} WHERE balance_version_after = {version} + 1",
            hot.id
        ),
    )
    .await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let listed = eventually(SOON, "a fork in the list", || async {
        let listed =
            run(&["quarantine", "list", "--reason", "forked", "--json", "--config", &config], &[]).await?;
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap_or_default();
        ensure!(listed.as_array().is_some_and(|entries| !entries.is_empty()), "{listed}");
        Ok(listed)
    });
    let mut listed = std::pin::pin!(listed);
    let listed = loop {
        // So it is always scheduled.
        producer.mutate(0, &[4], DEFAULT_TTL).await?;
        tokio::select! {
            listed = &mut listed => break listed?,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    };
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    let entry = &listed[0];
    let said = format!("two operations led to version {version}:");
    ensure!(entry["detail"].as_str().is_some_and(|detail| detail.starts_with(&said)), "{entry}");
    let loss = &entry["loss"];
    ensure!(loss["forked"] == true && loss["version"] == version, "{entry}");
    ensure!(loss["available"].is_string() && loss["available"] != loss["row_available"], "{entry}");
    worker.reaches("balance_sync_balances_total", &[("outcome", "forked")], 1.0).await?;
    comes_in_step(&sandbox, &producer).await?;
    nothing_open(&sandbox).await?;
    let verdict = overview(&sandbox).await?;
    assert_eq!((&verdict["verdict"], &verdict["losses"]), (&"degraded".into(), &1.into()), "{verdict}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// The process stays, and so does the worker's number: a replica had all of it. Only the history shows that other data are there.
#[tokio::test]
async fn a_server_that_has_followed_another_one_is_noticed_by_its_replication_history() -> Result<()> {
    let sandbox = Sandbox::start(of_redis(1, 10, &["repl-diskless-sync-delay 0"])).await?;
    let tenant = sandbox.tenants().remove(0);
    let password = sandbox.options().redis.password.clone().context("it has one")?;
    let password = secrecy::ExposeSecret::expose_secret(&password).to_owned();
    let extra =
        vec![format!("replicaof 127.0.0.1 {}", sandbox.redis().port()), format!("masterauth {password}")];
    let other = RedisServer::start(RedisOptions { extra, ..sandbox.options().redis.clone() }).await?;
    in_sync(&other).await?;
    let mut worker = worker(&sandbox, "w").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    counted(&sandbox).await?;
    let follow = async |server: &RedisServer, master: Option<u16>| -> Result<()> {
        let mut redis = server.connect().await?;
        let mut cmd = redis::cmd("REPLICAOF");
        match master {
            Some(port) => cmd.arg("127.0.0.1").arg(port),
            None => cmd.arg("NO").arg("ONE"),
        };
        Ok(cmd.query_async(&mut redis).await?)
    };
    let mut redis = sandbox.redis().connect().await?;
    redis::cmd("CONFIG").arg("SET").arg("masterauth").arg(&password).query_async::<()>(&mut redis).await?;
    follow(&other, None).await?;
    follow(sandbox.redis(), Some(other.port())).await?;
    in_sync(sandbox.redis()).await?;
    follow(sandbox.redis(), None).await?;
    let open = shown(&sandbox, &tenant, "redis_data_replaced").await?;
    ensure!(
        open["detail"].as_str().is_some_and(|detail| detail.starts_with("a replica of Redis has taken over")),
        "{open}"
    );
    nothing_open(&sandbox).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
