//! A Redis that is a node of a cluster: without slots, and when a failover has moved them to another node for good.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Producer};
use balance_sync_sandbox::{
    RedisOptions, RedisServer, Sandbox, SandboxOptions, SandboxTenant, eventually, free_port,
};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{Audit, SOON, options};
use nix::sys::signal::Signal;

use crate::redis::{degraded, nobody_degraded};
use crate::{brisk, nothing_backwards, report};

const TENANTS: usize = 2;
const SLOTS: u16 = 16_384;

/// A node that talks to others on this port.
fn node(bus: u16) -> RedisOptions {
    let extra = [
        "cluster-enabled yes".to_owned(),
        format!("cluster-port {bus}"),
        "cluster-node-timeout 2000".to_owned(),
        "repl-diskless-sync-delay 0".to_owned(),
    ];
    RedisOptions { extra: extra.to_vec(), ..RedisOptions::default() }
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
    // Both must know how things stand, or the other goes on as a master.
    says(master, &["CLUSTER", "NODES"], " slave ").await?;
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
    let wanted = SandboxOptions { redis: node(free_port()?), ..options(TENANTS, 40) };
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
    nobody_degraded(&worker).await?;

    let bus = free_port()?;
    let second = RedisServer::start(node(bus)).await?;
    let meet =
        ["CLUSTER", "MEET", "127.0.0.1", &second.port().to_string(), &bus.to_string()].map(str::to_owned);
    ask::<()>(first, &meet.each_ref().map(String::as_str)).await?;
    let id: String = ask(first, &["CLUSTER", "MYID"]).await?;
    says(&second, &["CLUSTER", "NODES"], &id).await?;
    eventually(SOON, "a replica", || async { ask::<()>(&second, &["CLUSTER", "REPLICATE", &id]).await })
        .await?;

    // Frozen for a moment, so that there is work left when the slots have moved.
    worker.signal(Signal::SIGSTOP)?;
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
    nobody_degraded(&worker).await?;

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
    nobody_degraded(&worker).await?;
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
