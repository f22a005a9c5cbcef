//! Workers that are configured with the same name: each has one of its own, and draining one leaves the other.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{Fault, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{SOON, Worker, WorkerBuilder, options, run};
use serde_json::Value;

const TAKEN: &str =
    "another worker runs under this worker's name, this one takes another: give each its own worker.name";

fn named(sandbox: &Sandbox) -> WorkerBuilder {
    Worker::of(sandbox).set("worker.name", "w")
}

/// The names that `workers` lists.
async fn names(sandbox: &Sandbox) -> Result<BTreeSet<String>> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let listed = run(&["workers", "--json", "--config", config], &[]).await?;
    let listed: Value = serde_json::from_str(&listed.stdout).with_context(|| format!("{listed:?}"))?;
    let rows = listed["workers"].as_array().context("no workers")?;
    Ok(rows.iter().filter_map(|row| row["name"].as_str().map(str::to_owned)).collect())
}

async fn has_names(sandbox: &Sandbox, wanted: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    eventually(SOON, &format!("workers {wanted:?}"), || async {
        let found = names(sandbox).await?;
        ensure!(found == wanted, "{found:?}");
        Ok(())
    })
    .await
}

async fn drain(sandbox: &Sandbox, name: &str) -> Result<()> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let drained = run(&["workers", "drain", name, "--config", config], &[]).await?;
    ensure!(drained.code == Some(0), "{drained:?}");
    Ok(())
}

#[tokio::test]
async fn two_workers_with_one_name_are_two_and_drain_ends_one() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 20).await?;
    let mut producer = sandbox.producer();
    let mut first = named(&sandbox).start().await?;
    let mut second = named(&sandbox).start().await?;
    let line = second.logs(TAKEN).await?;
    assert_eq!(
        (line.level.as_str(), &line.fields["configured"], &line.fields["taken"]),
        ("WARN", &"w".into(), &"w-2".into())
    );
    has_names(&sandbox, &["w", "w-2"]).await?;
    first.reaches("balance_sync_workers", &[], 2.0).await?;
    // The fleet is well, and says how it is all the same.
    let config = sandbox.config_path().to_str().context("a path of text")?;
    // Once the tenants that have moved are sampled by their new worker.
    eventually(SOON, "a healthy fleet", || async {
        let status = run(&["status", "--config", config], &[]).await?;
        ensure!(status.code == Some(0) && status.stdout.contains("w-2 is configured as w"), "{status:?}");
        Ok(())
    })
    .await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;

    drain(&sandbox, "w-2").await?;
    assert_eq!(second.wait().await?.code, Some(0));
    has_names(&sandbox, &["w"]).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;

    // The other way round: the one that keeps its suffix goes on.
    let mut third = named(&sandbox).start().await?;
    has_names(&sandbox, &["w", "w-2"]).await?;
    drain(&sandbox, "w").await?;
    assert_eq!(first.wait().await?.code, Some(0));
    has_names(&sandbox, &["w-2"]).await?;
    // What was given up is free at once.
    let mut fourth = named(&sandbox).start().await?;
    has_names(&sandbox, &["w", "w-2"]).await?;
    assert!(fourth.log().find(TAKEN).is_none());
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    for worker in [&mut third, &mut fourth] {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_crashed_gets_its_name_back() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let mut crashed = named(&sandbox).start().await?;
    has_names(&sandbox, &["w"]).await?;
    crashed.kill().await?;
    let mut again = named(&sandbox).start().await?;
    has_names(&sandbox, &["w"]).await?;
    assert!(again.log().find(TAKEN).is_none());
    assert_eq!(again.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn workers_that_start_without_redis_find_out_when_it_is_back() -> Result<()> {
    let sandbox = Sandbox::start(SandboxOptions { proxied: true, ..options(2, 20) }).await?;
    let proxy = sandbox.redis_proxy().context("it was asked for")?;
    proxy.set(Fault::Closed).await;
    let mut first = named(&sandbox).start_unready().await?;
    let mut second = named(&sandbox).start_unready().await?;
    proxy.set(Fault::Pass).await;
    has_names(&sandbox, &["w", "w-2"]).await?;
    let renamed = [&first, &second].iter().filter(|worker| worker.log().find(TAKEN).is_some()).count();
    assert_eq!(renamed, 1);
    for worker in [&first, &second] {
        worker.reaches("balance_sync_workers", &[], 2.0).await?;
    }
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    for worker in [&mut first, &mut second] {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}
