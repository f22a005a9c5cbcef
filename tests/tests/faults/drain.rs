//! SIGTERM with a hundred tenants, one of whose databases says nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Producer, Progress, put_raw, stored_balances};
use balance_sync_sandbox::{Fault, Isolation, Proxy, Sandbox, SandboxOptions, SandboxTenant, eventually};
use balance_sync_tests::ledger::{all_settled, claimed, comes_in_step, scores};
use balance_sync_tests::{SOON, Worker, options};
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use crate::report;

/// Tenants, in schemas of one database.
const TENANTS: usize = 100;
/// Which of them has the silent database.
const SILENT: usize = 17;
/// How long a drain may take: 10 s are promised, the rest is for a busy machine.
const BOUND: Duration = Duration::from_secs(25);

/// Waits until the rows of all tenants have the versions of the producer. They share a database, and so one connection:
/// with one each, looking would take longer than what is looked for.
async fn all_written(sandbox: &Sandbox, producer: &Producer) -> Result<()> {
    let pool = sandbox.pool(&sandbox.tenants()[0]);
    eventually(SOON, "all versions in Postgres", || async {
        for (tenant, load) in sandbox.tenants().iter().zip(producer.tenants()) {
            let stored = stored_balances(&pool, tenant.schema.as_deref()).await?;
            let stored: BTreeMap<_, _> = stored.into_iter().map(|row| (row.id, row.version)).collect();
            for (balance, version) in load.balances.iter().zip(&load.versions) {
                let found = stored.get(&balance.id);
                ensure!(found == Some(version), "tenant {}: {found:?}, not {version}", tenant.id);
            }
        }
        Ok(())
    })
    .await?;
    pool.close().await;
    Ok(())
}

#[tokio::test]
async fn a_hundred_tenants_drain_in_time_although_one_database_is_silent() -> Result<()> {
    let wanted = SandboxOptions { isolation: Isolation::Schema, ..options(TENANTS, 20) };
    let sandbox = Sandbox::start(wanted).await?;
    let tenants = sandbox.tenants();
    let silent = &tenants[SILENT];
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], sandbox.postgres().port()))).await?;
    assert!(sandbox.service().update(&silent.id, |record| record.port = proxy.addr().port()));
    // A hundred sessions are opened in turn: on a busy machine forty at once would outlast their time to connect.
    let mut worker = Worker::of(&sandbox).set("postgres.connections_per_server", "8").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    all_written(&sandbox, &producer).await?;

    // The silent one gets nothing more after this, so that nothing overtakes the claims on it.
    proxy.set(Fault::BlackHole).await;
    producer.mutate(SILENT, &(0..20).collect::<Vec<_>>(), DEFAULT_TTL).await?;
    let others = tenants.iter().filter(|tenant| tenant.id != silent.id).map(SandboxTenant::load).collect();
    let mut others = Producer::new(&sandbox.redis().url(), others);
    others.refresh_versions().await?;
    let (cancel, progress) = (CancellationToken::new(), Progress::new(TENANTS - 1));
    let load = LoadOptions { rate: 2_000.0, ..LoadOptions::default() };
    let stop = async {
        let ended = async {
            eventually(SOON, "claims on the silent one", || async {
                let held = claimed(&sandbox, silent).await?;
                ensure!(held == 20, "{held}");
                Ok(())
            })
            .await?;
            worker.stop().await
        };
        let ended = ended.await;
        cancel.cancel();
        ended
    };
    let (loaded, ended) = tokio::join!(others.run(&load, &progress, &cancel), stop);
    let (ended, loaded) = (ended?, loaded?);
    assert_eq!((ended.code, loaded.errors), (Some(0), 0));
    assert!(ended.took <= BOUND, "took {:?}", ended.took);
    let mut left = 0;
    for tenant in &tenants {
        left += claimed(&sandbox, tenant).await?;
    }
    assert_eq!(left, 0, "claims stay behind");
    let drained = ended.log.find("drained").map(|line| line.fields).unwrap_or_default();
    assert_eq!((&drained["collectors"], &drained["orphaned"]), (&TENANTS.into(), &0.into()), "{drained}");
    assert!(drained["released"].as_u64() >= Some(20), "the silent one's were given back: {drained}");
    let due = scores(&sandbox, &silent.keys.schedule()).await?;
    assert_eq!(due.len(), 20, "and are due for whoever comes next");
    report(
        &format!("SIGTERM with {TENANTS} tenants, one database black-holed"),
        &format!(
            "ended after {:.2} s, {} flushed meanwhile, {} given back, 0 claims left",
            ended.took.as_secs_f64(),
            drained["flushed"],
            drained["released"]
        ),
    );

    proxy.set(Fault::Pass).await;
    producer.refresh_versions().await?;
    let mut successor = Worker::of(&sandbox).start().await?;
    all_written(&sandbox, &producer).await?;
    assert_eq!(successor.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn what_could_not_be_released_is_logged() -> Result<()> {
    let sandbox = Sandbox::start(SandboxOptions { proxied: true, ..options(2, 30) }).await?;
    let tenant = sandbox.tenants().remove(0);
    // So patient that its claims are still held when it is stopped, however slowly this test gets there.
    let mut worker = crate::brisk(&sandbox, "w")
        .set("claim.ttl", "18s")
        .set("collector.flush_deadline", "12s")
        .set("postgres.acquire_timeout", "6s")
        .set("postgres.connect_timeout", "6s")
        .set("postgres.statement_timeout", "6s")
        .set("collector.drain_deadline", "2s")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;

    // Neither can anything be written nor given back.
    let (redis, postgres) = (sandbox.redis_proxy(), sandbox.postgres_proxy());
    let (redis, postgres) = (redis.expect("it was asked for"), postgres.expect("it was asked for"));
    postgres.set(Fault::BlackHole).await;
    let mut direct = sandbox.redis().connect().await?;
    let gathered = ("balance_sync_stage_duration_seconds_count", [("stage", "gather")]);
    let before = worker.metric(gathered.0, &gathered.1).await?;
    // Frozen meanwhile, so that one claim takes them all: of a second one the answer might be cut off below.
    worker.signal(Signal::SIGSTOP)?;
    for balance in tenant.balances.iter() {
        let (member, value) = (tenant.keys.member(balance), balance.json(3));
        put_raw(&mut direct, &tenant.keys.schedule(), member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL))
            .await?;
    }
    worker.signal(Signal::SIGCONT)?;
    eventually(SOON, "claimed balances", || async {
        let held = claimed(&sandbox, &tenant).await?;
        ensure!(held == 30, "{held}");
        Ok(())
    })
    .await?;
    worker.reaches(gathered.0, &gathered.1, before + 1.0).await?;
    redis.set(Fault::BlackHole).await;
    let ended = worker.stop().await?;
    assert_eq!(ended.code, Some(1), "something was left behind");
    assert!(ended.took <= BOUND, "took {:?}", ended.took);
    let logged = ended.log.find("claims left behind, they come due again when the claim TTL ends");
    let logged = logged.map(|line| (line.tenant_id, line.fields["members"].clone()));
    assert_eq!(logged, Some((Some(tenant.id.clone()), 30.into())));
    report(
        "SIGTERM with Postgres and Redis black-holed",
        &format!(
            "ended after {:.2} s, 30 orphaned claims logged with their tenant, exit code 1",
            ended.took.as_secs_f64()
        ),
    );

    redis.set(Fault::Pass).await;
    postgres.set(Fault::Pass).await;
    let mut successor = crate::brisk(&sandbox, "w2").start().await?;
    producer.refresh_versions().await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(successor.stop().await?.code, Some(0));
    Ok(())
}
