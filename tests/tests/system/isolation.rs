//! G5 and G7: what can't be synced is set aside and holds no other up, and no tenant's worker touches another's data.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw, seed_balances, write_operations};
use balance_sync_sandbox::{SandboxTenant, eventually};
use balance_sync_tests::ledger::{comes_in_step, losses_key, quarantine_key, row, rows, scores};
use balance_sync_tests::{SOON, Worker};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::Value;

/// Shorter than the life to which a worker raises what it claims.
const SHORT: Duration = Duration::from_secs(100);

/// Waits until a tenant's quarantine has this many entries, and reads them.
async fn quarantined(
    redis: &MultiplexedConnection,
    tenant: &SandboxTenant,
    count: usize,
) -> Result<Vec<(String, Value)>> {
    eventually(SOON, "members in quarantine", || {
        let mut redis = redis.clone();
        async move {
            let entries: Vec<(String, String)> = redis.hgetall(quarantine_key(tenant)).await?;
            anyhow::ensure!(entries.len() == count, "there are {}", entries.len());
            entries
                .into_iter()
                .map(|(member, entry)| Ok((member, serde_json::from_str(&entry)?)))
                .collect::<Result<_>>()
        }
    })
    .await
}

#[tokio::test]
async fn a_member_of_another_tenant_is_set_aside_and_nothing_of_it_touched() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(4, 20).await?;
    let tenants = sandbox.tenants();
    let mut redis = sandbox.redis().connect().await?;
    // Into the schedule of the first: members of a database of its own, of a UUID for an id, and of a shared database;
    // into that of a tenant with a schema: its neighbour's.
    let strays = [(0, 1), (0, 2), (1, 0), (2, 3)];
    let mut stray_members = Vec::new();
    for (into, of) in strays {
        let (into, of) = (&tenants[into], &tenants[of]);
        let balance = &of.balances[5];
        // The same row in both databases: nothing but the prefix says whose it is.
        let pool = sandbox.pool(into);
        if rows(&sandbox, into).await?.keys().all(|id| *id != balance.id) {
            seed_balances(&pool, into.schema.as_deref(), &of.id, 20).await?;
        }
        pool.close().await;
        let member = of.keys.member(balance);
        let value = balance.json(50);
        put_raw(&mut redis, &into.keys.schedule(), member.as_bytes(), value.as_bytes(), Some(SHORT)).await?;
        stray_members.push((member, value));
    }
    let mut worker = Worker::of(&sandbox).start().await?;
    // All the others of each tenant, in the same batch or behind.
    let mut producer = sandbox.producer();
    for tenant in 0..4 {
        producer.mutate(tenant, &[0, 1, 2], DEFAULT_TTL).await?;
    }
    for (into, count) in [(0, 2), (1, 1), (2, 1)] {
        for (member, entry) in quarantined(&redis, &tenants[into], count).await? {
            assert_eq!(entry["reason"], "member_foreign_tenant", "{member}: {entry}");
        }
        let left = scores(&sandbox, &tenants[into].keys.schedule()).await?;
        assert!(stray_members.iter().all(|(member, _)| !left.contains_key(member)), "{left:?}");
    }
    comes_in_step(&sandbox, &producer).await?;
    for ((into, of), (member, value)) in strays.into_iter().zip(stray_members) {
        let id = tenants[of].balances[5].id;
        for tenant in [&tenants[into], &tenants[of]] {
            assert_eq!(rows(&sandbox, tenant).await?[&id].version, 1, "{member} in {}", tenant.database);
        }
        assert_eq!(redis.get::<_, String>(&member).await?, value);
        let life: i64 = redis.ttl(&member).await?;
        assert!((1..=100).contains(&life), "{member} lives for {life} s");
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn poison_is_set_aside_with_its_reason_and_holds_no_other_up() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 40).await?;
    let tenant = sandbox.tenants().remove(0);
    let schedule = tenant.keys.schedule();
    let mut redis = sandbox.redis().connect().await?;
    let member = |balance: usize| tenant.keys.member(&tenant.balances[balance]);
    let good = tenant.balances[3].json(2);
    let poison: [(Vec<u8>, Vec<u8>); 6] = [
        (member(0).into(), b"no json".to_vec()),
        (member(1).into(), tenant.balances[1].json(2).replace("\"Version\":2", "\"Version\":-2").into()),
        (
            member(2).into(),
            tenant.balances[2].json(2).replace("\"Available\":\"", "\"Available\":\"x").into(),
        ),
        // A value that PostgreSQL refuses: the debt must not be negative.
        (member(3).into(), good.replace("\"OverdraftUsed\":\"", "\"OverdraftUsed\":\"-1").into()),
        // A balance without a row.
        (member(4).replace('#', "-other#").into(), {
            let id = tenant.balances[4].id.to_string();
            tenant.balances[4].json(2).replace(&id, "00000000-0000-4000-8000-000000000001").into()
        }),
        (format!("{}balance:{{transactions}}:nonsense", tenant.keys.prefix()).into(), b"{}".to_vec()),
    ];
    for (member, value) in &poison {
        put_raw(&mut redis, &schedule, member, value, Some(DEFAULT_TTL)).await?;
    }
    // One whose value is gone: it is among the losses.
    let pool = sandbox.pool(&tenant);
    write_operations(&pool, tenant.schema.as_deref(), &[(&tenant.balances[5], 2)]).await?;
    pool.close().await;
    redis.zadd::<_, _, _, ()>(&schedule, member(5), 1.5).await?;
    let mut worker = Worker::of(&sandbox).set("collector.batch_size", "4").start().await?;
    let mut producer = sandbox.producer();
    let others: Vec<usize> = (6..40).collect();
    producer.mutate(0, &others, DEFAULT_TTL).await?;
    let entries = quarantined(&redis, &tenant, 6).await?;
    for (member, entry) in &entries {
        let reason = entry["reason"].as_str().context("an entry without a reason")?;
        assert!(!reason.is_empty() && entry["detail"].as_str().is_some(), "{member}: {entry}");
    }
    let reason_of = |wanted: &str| {
        entries.iter().find(|(member, _)| member == wanted).map(|(_, entry)| entry["reason"].clone())
    };
    assert_eq!(reason_of(&member(3)), Some("refused_by_postgres".into()));
    assert_eq!(reason_of(&member(4).replace('#', "-other#")), Some("missing_row".into()));
    comes_in_step(&sandbox, &producer).await?;
    let reader = redis.clone();
    let losses = || async { anyhow::Ok(reader.clone().hkeys::<_, Vec<String>>(losses_key(&tenant)).await?) };
    eventually(SOON, "the loss", || async {
        ensure!(losses().await? == [member(5)]);
        Ok(())
    })
    .await?;
    assert!(worker.log().find("value expired in redis before it was written, its last mutation is lost unless the ledger still has it").is_some());

    // A later good mutation clears what is in quarantine, but no loss.
    for balance in 0..6 {
        let value = tenant.balances[balance].json(7);
        put_raw(&mut redis, &schedule, member(balance).as_bytes(), value.as_bytes(), Some(DEFAULT_TTL))
            .await?;
    }
    let left = quarantined(&redis, &tenant, 2).await?;
    assert!(left.iter().all(|(left, _)| (0..6).all(|balance| *left != member(balance))), "{left:?}");
    assert_eq!(losses().await?, [member(5)]);
    for balance in 0..6 {
        eventually(SOON, "the later mutation", || async {
            ensure!(row(&sandbox, &tenant, balance).await?.version == 7);
            Ok(())
        })
        .await?;
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
