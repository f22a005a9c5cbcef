//! SIGTERM: what is held is written, or given back at once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Progress, put_raw};
use balance_sync_sandbox::{Fault, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::ledger::{all_settled, claimed, comes_in_step, in_step, scores};
use balance_sync_tests::{SOON, Worker, options};
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn what_is_gathered_is_written_before_the_end() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 20).await?;
    // A buffer that would wait for long.
    let mut worker = Worker::of(&sandbox)
        .set("collector.profile", "frugal")
        .set("collector.flush_timeout", "5s")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    eventually(SOON, "claimed balances", || async {
        let mut held = 0;
        for tenant in sandbox.tenants() {
            held += claimed(&sandbox, &tenant).await?;
        }
        anyhow::ensure!(held == 40, "{held}");
        anyhow::Ok(())
    })
    .await?;
    // As SIGTERM does.
    worker.signal(Signal::SIGQUIT)?;
    let ended = worker.wait().await?;
    assert_eq!(ended.code, Some(0));
    in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let drained = ended.log.find("drained").map(|line| line.fields);
    let drained = drained.unwrap_or_default();
    assert_eq!((&drained["flushed"], &drained["orphaned"]), (&40.into(), &0.into()), "{drained}");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_ends_under_load_leaves_no_claim_behind() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 400).await?;
    let mut worker = Worker::of(&sandbox).set("collector.batch_size", "50").start().await?;
    let mut producer = sandbox.producer();
    let (cancel, progress) = (CancellationToken::new(), Progress::new(3));
    let load = LoadOptions { rate: 3_000.0, ..LoadOptions::default() };
    let stop = async {
        let ended = async {
            worker.reaches("balance_synced", &[], 2_000.0).await?;
            worker.stop().await
        };
        let ended = ended.await;
        cancel.cancel();
        ended
    };
    let (report, ended) = tokio::join!(producer.run(&load, &progress, &cancel), stop);
    assert_eq!((ended?.code, report?.errors), (Some(0), 0));
    for tenant in sandbox.tenants() {
        assert_eq!(claimed(&sandbox, &tenant).await?, 0, "{} still holds claims", tenant.id);
    }
    let mut successor = Worker::of(&sandbox).start().await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(successor.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn with_postgres_gone_silent_it_gives_back_what_it_holds() -> Result<()> {
    let sandbox = Sandbox::start(SandboxOptions { proxied: true, ..options(2, 30) }).await?;
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;

    let postgres = sandbox.postgres_proxy().expect("it was asked for");
    postgres.set(Fault::BlackHole).await;
    let mut redis = sandbox.redis().connect().await?;
    let mut former: Vec<BTreeMap<String, f64>> = Vec::new();
    for tenant in sandbox.tenants() {
        let mut scheduled = BTreeMap::new();
        for balance in tenant.balances.iter() {
            let (member, value) = (tenant.keys.member(balance), balance.json(9));
            let schedule = tenant.keys.schedule();
            let score =
                put_raw(&mut redis, &schedule, member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL))
                    .await?;
            scheduled.insert(member, score.parse()?);
        }
        former.push(scheduled);
    }
    for tenant in sandbox.tenants() {
        eventually(SOON, "claimed balances", || async {
            let held = claimed(&sandbox, &tenant).await?;
            anyhow::ensure!(held == 30, "{held}");
            anyhow::Ok(())
        })
        .await?;
    }
    let ended = worker.stop().await?;
    assert!(ended.took < Duration::from_secs(27), "took {:?}", ended.took);
    assert_eq!(ended.code, Some(0), "nothing was left behind");
    for (tenant, former) in sandbox.tenants().iter().zip(&former) {
        assert_eq!(&scores(&sandbox, &tenant.keys.schedule()).await?, former, "due as if never claimed");
    }

    postgres.set(Fault::Pass).await;
    let mut successor = Worker::of(&sandbox).start().await?;
    producer.refresh_versions().await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(successor.stop().await?.code, Some(0));
    Ok(())
}
