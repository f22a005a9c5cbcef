//! A Redis that is a node of a cluster: without slots, when a failover has moved them to another node for good, and while the
//! slot of all keys is being migrated.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Producer};
use balance_sync_sandbox::{RedisOptions, RedisServer, Sandbox, SandboxOptions, SandboxTenant, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step, rows};
use balance_sync_tests::{Audit, SOON, options};
use nix::sys::signal::Signal;

use crate::redis::{degraded, none_degraded};
use crate::{brisk, nothing_backwards, report};

const TENANTS: usize = 2;
const SLOTS: u16 = 16_384;
/// As the line of a node that has them all shows them.
const ALL_SLOTS: &str = " 0-16383";

/// A node without slots.
fn node() -> RedisOptions {
    let extra = ["cluster-node-timeout 2000", "repl-diskless-sync-delay 0"].map(str::to_owned);
    let worker_password = Some("of-the-worker-on-each-node".into());
    RedisOptions { cluster: true, extra: extra.to_vec(), worker_password, ..RedisOptions::default() }
}

async fn ask<T: ::redis::FromRedisValue>(server: &RedisServer, command: &[&str]) -> Result<T> {
    let mut asked = ::redis::cmd(command[0]);
    asked.arg(&command[1..]);
    Ok(asked.query_async(&mut server.connect().await?).await?)
}

/// Waits until the answer to `command` holds this text.
async fn says(server: &RedisServer, command: &[&str], text: &str) -> Result<()> {
    eventually(SOON, &format!("{text:?} in the answer to {command:?}"), || async {
        let answer: String = ask(server, command).await?;
        if answer.contains(text) { Ok(()) } else { bail!("it is {answer}") }
    })
    .await
}

/// Makes this replica the master, and waits until the other knows.
async fn take_over(replica: &RedisServer, master: &RedisServer) -> Result<()> {
    // Both must know how things stand, or the other goes on as a master: a replica takes over those slots only of which it
    // knows that they are the master's.
    says(master, &["CLUSTER", "NODES"], " slave ").await?;
    says(replica, &["CLUSTER", "NODES"], ALL_SLOTS).await?;
    says(replica, &["INFO", "replication"], "master_link_status:up").await?;
    let offset = |text: &str| -> Option<u64> {
        text.lines()
            .find_map(|line| line.strip_prefix("master_repl_offset:"))
            .and_then(|n| n.trim().parse().ok())
    };
    eventually(SOON, "a replica that has caught up", || async {
        let theirs: String = ask(master, &["INFO", "replication"]).await?;
        let ours: String = ask(replica, &["INFO", "replication"]).await?;
        ensure!(offset(&theirs).is_some() && offset(&theirs) <= offset(&ours), "{theirs} {ours}");
        Ok(())
    })
    .await?;
    ask::<()>(replica, &["CLUSTER", "FAILOVER", "TAKEOVER"]).await?;
    says(replica, &["INFO", "replication"], "role:master").await?;
    says(master, &["INFO", "replication"], "role:slave").await
}

/// What a node answers that does not have the tenants' slot.
async fn refusal(server: &RedisServer, tenant: &SandboxTenant) -> Result<String> {
    let mut redis = server.connect().await?;
    let answer = ::redis::cmd("ZCARD").arg(tenant.keys.schedule()).query_async::<u64>(&mut redis).await;
    let error = answer.err().context("it was answered")?;
    Ok(error.code().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn slots_that_are_not_there_are_waited_for_and_those_that_have_moved_followed() -> Result<()> {
    let wanted = SandboxOptions { redis: node(), ..options(TENANTS, 40) };
    let sandbox = Sandbox::start(wanted).await?;
    let tenants = sandbox.tenants();
    for tenant in &tenants {
        Audit::begin(&sandbox, tenant).await?;
    }
    let first = sandbox.redis();
    let mut worker = brisk(&sandbox, "w").start().await?;

    assert_eq!(refusal(first, &tenants[0]).await?, "CLUSTERDOWN");
    degraded(&worker, "redis_cluster", TENANTS).await?;
    let slots: Vec<String> = (0..SLOTS).map(|slot| slot.to_string()).collect();
    let mut all = vec!["CLUSTER", "ADDSLOTS"];
    all.extend(slots.iter().map(String::as_str));
    ask::<()>(first, &all).await?;
    says(first, &["CLUSTER", "INFO"], "cluster_state:ok").await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    none_degraded(&worker).await?;

    let second = RedisServer::start(node()).await?;
    ask::<()>(first, &["CLUSTER", "MEET", "127.0.0.1", &second.port().to_string()]).await?;
    let id: String = ask(first, &["CLUSTER", "MYID"]).await?;
    says(&second, &["CLUSTER", "NODES"], &id).await?;
    eventually(SOON, "a replica", || async { ask::<()>(&second, &["CLUSTER", "REPLICATE", &id]).await })
        .await?;

    // Frozen for a moment, so that there is work left when the slots have moved.
    worker.freeze(sandbox.redis()).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    take_over(&second, first).await?;
    assert_eq!(refusal(first, &tenants[0]).await?, "MOVED");
    let moved = Instant::now();
    worker.signal(Signal::SIGCONT)?;
    // The ledger goes on where the slots are, and so does the worker.
    let loads = tenants.iter().map(SandboxTenant::load).collect();
    let mut elsewhere = Producer::new(&second.url(), loads);
    elsewhere.refresh_versions().await?;
    elsewhere.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &elsewhere).await?;
    let took = moved.elapsed();
    none_degraded(&worker).await?;

    // The node that the worker's configuration names is gone for good.
    first.kill()?;
    elsewhere.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &elsewhere).await?;
    for tenant in &tenants {
        eventually(SOON, "an empty schedule", || async {
            let left: u64 = ask(&second, &["ZCARD", &tenant.keys.schedule()]).await?;
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await?;
    }
    none_degraded(&worker).await?;
    for tenant in &tenants {
        nothing_backwards(&sandbox, tenant).await?;
    }
    report(
        "slots of a cluster moved away for good",
        &format!("all written {:.2} s after the worker could notice", took.as_secs_f64()),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// The slot of `{transactions}`.
const SLOT: &str = "12305";

/// Moves keys of the slot from one node to the other.
async fn migrate(from: &RedisServer, to: &RedisServer, keys: &[String]) -> Result<()> {
    let port = to.port().to_string();
    let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "10000", "KEYS"];
    command.extend(keys.iter().map(String::as_str));
    let moved: String = ask(from, &command).await?;
    ensure!(moved == "OK", "{moved}");
    Ok(())
}

#[tokio::test]
async fn a_migration_of_the_slot_stops_a_tenant_no_longer_than_it_lasts() -> Result<()> {
    const BALANCES: usize = 40;
    let wanted = SandboxOptions { redis: node(), ..options(TENANTS, BALANCES) };
    let sandbox = Sandbox::start(wanted).await?;
    let tenants = sandbox.tenants();
    for tenant in &tenants {
        Audit::begin(&sandbox, tenant).await?;
    }
    let old = sandbox.redis();
    let slots: Vec<String> = (0..SLOTS).map(|slot| slot.to_string()).collect();
    let mut all = vec!["CLUSTER", "ADDSLOTS"];
    all.extend(slots.iter().map(String::as_str));
    ask::<()>(old, &all).await?;
    says(old, &["CLUSTER", "INFO"], "cluster_state:ok").await?;
    let new = RedisServer::start(node()).await?;
    ask::<()>(old, &["CLUSTER", "MEET", "127.0.0.1", &new.port().to_string()]).await?;
    let (old_id, new_id): (String, String) =
        (ask(old, &["CLUSTER", "MYID"]).await?, ask(&new, &["CLUSTER", "MYID"]).await?);
    says(&new, &["CLUSTER", "NODES"], &old_id).await?;
    says(&new, &["CLUSTER", "INFO"], "cluster_state:ok").await?;

    // Were the refusal taken for one that needs an operator, nothing would be tried again in the time of the test.
    let mut worker = brisk(&sandbox, "w").set("postgres.backoff_long", "10m").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;

    // Frozen, so that both tenants have work when the migration begins.
    worker.freeze(sandbox.redis()).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    ask::<()>(&new, &["CLUSTER", "SETSLOT", SLOT, "IMPORTING", &old_id]).await?;
    ask::<()>(old, &["CLUSTER", "SETSLOT", SLOT, "MIGRATING", &new_id]).await?;
    // Of the second tenant the schedule and half of the balances have moved, nothing of the first.
    let torn = &tenants[1];
    let mut part = vec![torn.keys.schedule()];
    part.extend(torn.balances[..BALANCES / 2].iter().map(|balance| torn.keys.member(balance)));
    migrate(old, &new, &part).await?;
    worker.signal(Signal::SIGCONT)?;
    eventually(SOON, "the rows of the tenant that has not moved", || async {
        let found = rows(&sandbox, &tenants[0]).await?;
        ensure!(found.values().all(|row| row.version == 3), "some are behind");
        Ok(())
    })
    .await?;
    worker.reaches("balance_sync_tenant_degraded", &[("reason", "redis_cluster")], 1.0).await?;
    let found = rows(&sandbox, torn).await?;
    assert!(found.values().all(|row| row.version == 2), "nothing is read at two nodes");

    let rest: Vec<String> = ask(old, &["CLUSTER", "GETKEYSINSLOT", SLOT, "10000"]).await?;
    for page in rest.chunks(100) {
        migrate(old, &new, page).await?;
    }
    for server in [&new, old] {
        ask::<()>(server, &["CLUSTER", "SETSLOT", SLOT, "NODE", &new_id]).await?;
    }
    let ended = Instant::now();
    comes_in_step(&sandbox, &producer).await?;
    let took = ended.elapsed();
    let loads = tenants.iter().map(SandboxTenant::load).collect();
    let mut elsewhere = Producer::new(&new.url(), loads);
    elsewhere.refresh_versions().await?;
    elsewhere.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &elsewhere).await?;
    none_degraded(&worker).await?;
    for tenant in &tenants {
        nothing_backwards(&sandbox, tenant).await?;
    }
    let aside: Vec<String> = ask(&new, &["KEYS", "*quarantine*"]).await?;
    let lost: Vec<String> = ask(&new, &["KEYS", "*loss*"]).await?;
    assert_eq!((aside.as_slice(), lost.as_slice()), (&[][..], &[][..]), "no balance was taken for lost");
    report(
        "the slot migrated, one tenant torn between the nodes",
        &format!("the other written meanwhile, all written {:.2} s after its end", took.as_secs_f64()),
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
