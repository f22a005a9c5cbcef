//! Mode `lock`: beside the ledger's own worker, each respects the other's claims.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Progress};
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step, row, scores};
use balance_sync_tests::{Audit, SOON, Worker};
use redis::AsyncCommands;
use redis::Script;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How often the ledger's worker polls by default.
const LEDGER_POLL: Duration = Duration::from_millis(50);
/// The ledger's own worker claims: due members, each by its lock.
const CLAIM: &str = "
    local now = redis.call('TIME')
    local claimed = {}
    local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now[1] .. '.' .. string.format('%06d', now[2]), 'WITHSCORES', 'LIMIT', 0, 25)
    for i = 1, #due, 2 do
      if redis.call('SET', ARGV[1] .. due[i], '1', 'NX', 'EX', 600) then
        claimed[#claimed + 1] = due[i]
        claimed[#claimed + 1] = due[i + 1]
      end
    end
    return claimed";
/// And when the row is written: the lock goes, whosever it is; the member goes if its score is still the claimed one.
const CONCLUDE: &str = "
    redis.call('DEL', ARGV[1] .. ARGV[2])
    local score = redis.call('ZSCORE', KEYS[1], ARGV[2])
    if score and tonumber(score) == tonumber(ARGV[3]) then return redis.call('ZREM', KEYS[1], ARGV[2]) end
    return 0";

fn lock_prefix(tenant: &SandboxTenant) -> String {
    tenant.keys.lock("")
}

async fn locks(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<Vec<String>> {
    let mut redis = sandbox.redis().connect().await?;
    let mut found = Vec::new();
    // Braces mean nothing to MATCH.
    let mut keys = redis.scan_match::<_, String>(format!("{}*", lock_prefix(tenant))).await?;
    while let Some(key) = keys.next_item().await {
        found.push(key?);
    }
    Ok(found)
}

#[tokio::test]
async fn a_foreign_lock_is_respected_and_holds_up_nobody_behind_it() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 30).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut redis = sandbox.redis().connect().await?;
    // The first three of the schedule are locked, and a batch has room for two.
    let locked: Vec<String> =
        (0..3).map(|balance| tenant.keys.lock(&tenant.keys.member(&tenant.balances[balance]))).collect();
    for lock in &locked {
        let () = redis.set_ex(lock, "1", 600).await?;
    }
    let mut producer = sandbox.producer();
    producer.mutate(0, &[0, 1, 2], DEFAULT_TTL).await?;
    let others: Vec<usize> = (3..30).collect();
    producer.mutate(0, &others, DEFAULT_TTL).await?;
    let mut worker = Worker::of(&sandbox)
        .set("claim.mode", "lock")
        .set("collector.batch_size", "2")
        .set("collector.idle_backoff_max", "100ms")
        .start()
        .await?;
    eventually(SOON, "all but the locked ones written", || async {
        let left = scores(&sandbox, &tenant.keys.schedule()).await?.len();
        ensure!(left == 3, "{left} scheduled");
        anyhow::Ok(())
    })
    .await?;
    worker.reaches("balance_sync_foreign_locked_members", &[], 3.0).await?;
    for balance in 0..30 {
        let expected = if balance < 3 { 1 } else { 2 };
        assert_eq!(row(&sandbox, &tenant, balance).await?.version, expected, "balance {balance}");
    }
    for lock in &locked {
        let (value, life): (String, i64) = (redis.get(lock).await?, redis.ttl(lock).await?);
        assert!(value == "1" && life > 400, "{lock} = {value} for {life} s");
    }
    assert_eq!(locks(&sandbox, &tenant).await?.len(), 3, "its own locks are gone");

    let () = redis.del(&locked).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert!(locks(&sandbox, &tenant).await?.is_empty());
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// One round of the ledger's own worker; how many rows it wrote.
async fn go_worker_round(sandbox: &Sandbox, tenant: &SandboxTenant, pool: &sqlx::PgPool) -> Result<u64> {
    let mut redis = sandbox.redis().connect().await?;
    let (schedule, prefix) = (tenant.keys.schedule(), lock_prefix(tenant));
    let claimed: Vec<(String, String)> =
        Script::new(CLAIM).key(&schedule).arg(&prefix).invoke_async(&mut redis).await?;
    let mut written = 0;
    for (member, score) in claimed {
        let value: Option<String> = redis.get(&member).await?;
        let value: Value = serde_json::from_str(&value.context("an expired value")?)?;
        let sql = format!(
            "UPDATE {} SET version = $2, available = $3::numeric, on_hold = $4::numeric,
                 overdraft_used = $5::numeric, updated_at = now() WHERE id = $1::uuid AND version < $2",
            balance_table(tenant.schema.as_deref())
        );
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(text("ID"))
            .bind(value["Version"].as_i64())
            .bind(text("Available"))
            .bind(text("OnHold"))
            .bind(text("OverdraftUsed"))
            .execute(pool)
            .await?;
        written += done.rows_affected();
        let () = Script::new(CONCLUDE)
            .key(&schedule)
            .arg(&prefix)
            .arg(&member)
            .arg(&score)
            .invoke_async(&mut redis)
            .await?;
    }
    Ok(written)
}

#[tokio::test]
async fn beside_the_ledgers_own_worker_nothing_is_lost_and_nothing_goes_back() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 150).await?;
    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    Audit::begin(&sandbox, &tenant).await?;
    let mut worker =
        Worker::of(&sandbox).set("claim.mode", "lock").set("collector.batch_size", "25").start().await?;
    let mut producer = sandbox.producer();
    let progress = Progress::new(1);
    let load = LoadOptions {
        rate: 600.0,
        duration: Some(Duration::from_secs(4)),
        hot_key_share: 0.3,
        ..LoadOptions::default()
    };
    let over = CancellationToken::new();
    let beside = async {
        let mut written = 0;
        // Without a pause between its rounds it would take every balance before our worker looks.
        let mut poll = tokio::time::interval(LEDGER_POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !over.is_cancelled() {
            poll.tick().await;
            written += go_worker_round(&sandbox, &tenant, &pool).await?;
        }
        anyhow::Ok(written)
    };
    let produce = async {
        let never = CancellationToken::new();
        let report = producer.run(&load, &progress, &never).await;
        over.cancel();
        report
    };
    let (report, by_other) = tokio::join!(produce, beside);
    assert_eq!(report?.errors, 0);
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let (by_other, by_us) = (by_other?, worker.metric("balance_synced", &[]).await?);
    assert!(by_other > 0 && by_us > 0.0, "both took part: {by_other} and {by_us}");
    let audit = Audit::read(&pool, &tenant).await?;
    assert_eq!((audit.not_forward, audit.updates), (0, audit.distinct), "{audit:?}");
    assert_eq!(audit.updates as f64, by_other as f64 + by_us);
    assert!(locks(&sandbox, &tenant).await?.is_empty(), "no lock is left");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
