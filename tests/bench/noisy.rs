//! A noisy neighbour: what fifty tenants with little to do feel of one that has a backlog, or whose Postgres is dead.
//!
//! The neighbour comes into the tenant service's list only for the second half: first the others alone, then beside it,
//! on the same worker.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Producer};
use balance_sync_sandbox::{Fault, Proxy, SandboxTenant, eventually};

use crate::Options;
use crate::figures::Figures;
use crate::load::{LOOK_EVERY, Load, Pattern};
use crate::rig::Rig;
use crate::worker::Worker;

const QUIET: usize = 50;
/// Mutations per second of each.
const TRICKLE: f64 = 20.0;
const BALANCES: usize = 100;
/// Of the tenant whose Postgres is dead.
const DEAD_BACKLOG: usize = 10_000;
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// One tenant has a backlog of half a million.
pub(crate) async fn backlog(options: &Options, figures: &mut Figures) -> Result<()> {
    measure(options, figures, "noisy_backlog", options.scaled(500_000, 5_000), false).await
}

/// One tenant's Postgres accepts connections and never answers.
pub(crate) async fn dead_postgres(options: &Options, figures: &mut Figures) -> Result<()> {
    measure(options, figures, "noisy_dead_postgres", options.scaled(DEAD_BACKLOG, 1_000), true).await
}

async fn measure(
    options: &Options,
    figures: &mut Figures,
    case: &str,
    noisy_balances: usize,
    dead: bool,
) -> Result<()> {
    let rig = Rig::start(QUIET, BALANCES).await?;
    let quiet = rig.sandbox.tenants();
    let noisy = noisy_tenant(&rig, noisy_balances).await?;
    let proxy = Proxy::start(([127, 0, 0, 1], rig.sandbox.postgres().port()).into()).await?;
    proxy.set(Fault::BlackHole).await;
    if dead {
        rig.sandbox.service().update(&noisy.id, |record| record.port = proxy.addr().port());
    }
    rig.sandbox.remove_tenant(&noisy.id)?;
    let mut producer = Producer::new(&rig.sandbox.redis().url(), vec![noisy.load()]);
    let worker = Worker::start(options, rig.sandbox.config_path(), &[])?;
    worker.ready().await?;
    let mut load = Load::new(&rig.sandbox, quiet).await?;
    let pattern = Pattern {
        rate: TRICKLE * QUIET as f64,
        seconds: options.seconds(10.0),
        hot_share: 0.0,
        sample_one_in: 2,
        tenants_one_in: 1,
        look_every: LOOK_EVERY,
    };
    for round in 0..options.repeat {
        let alone = load.run(pattern).await?;
        let total = producer.mutate_each(DEFAULT_TTL).await?;
        rig.sandbox.restore_tenant(&noisy.id)?;
        noticed(&rig, &worker, &noisy, total, dead).await?;
        let beside = load.run(pattern).await?;
        if round == 0 {
            let left = scheduled(&rig, &noisy).await?;
            eprintln!("  {left} of {total} members of the neighbour are left at the end");
        }
        rig.sandbox.remove_tenant(&noisy.id)?;
        forgotten(&worker).await?;
        let (p99_alone, p99_beside) = (alone.quantile(0.99), beside.quantile(0.99));
        eprintln!("  p99 alone {p99_alone:.0} ms, beside {p99_beside:.0} ms");
        figures.add(case, "quiet_p99_alone_ms", p99_alone);
        figures.add(case, "quiet_p99_ms", p99_beside);
        figures.add(case, "quiet_p99_ratio", p99_beside / p99_alone);
        figures.add(case, "quiet_p50_alone_ms", alone.quantile(0.5));
        figures.add(case, "quiet_p50_ms", beside.quantile(0.5));
        figures.add(case, "quiet_max_ms", beside.quantile(1.0));
    }
    worker.stop().await?;
    rig.stop().await
}

/// A tenant more, with as many balances as its backlog shall have.
async fn noisy_tenant(rig: &Rig, balances: usize) -> Result<SandboxTenant> {
    let isolation = balance_sync_sandbox::TenantIsolation::Database;
    let mut tenant = rig.sandbox.add_tenant("noisy", isolation).await?;
    let pool = rig.sandbox.pool(&tenant);
    sqlx::raw_sql("TRUNCATE balance").execute(&pool).await?;
    tenant.balances =
        balance_sync_sandbox::ledger::seed_balances(&pool, None, &tenant.id, balances).await?.into();
    sqlx::raw_sql("VACUUM ANALYZE balance").execute(&pool).await?;
    pool.close().await;
    Ok(tenant)
}

async fn scheduled(rig: &Rig, tenant: &SandboxTenant) -> Result<u64> {
    let mut redis = rig.redis.clone();
    Ok(redis::cmd("ZCARD").arg(tenant.keys.schedule()).query_async(&mut redis).await?)
}

/// Waits until the worker works for the neighbour, or fails to.
async fn noticed(rig: &Rig, worker: &Worker, noisy: &SandboxTenant, total: u64, dead: bool) -> Result<()> {
    eventually(NOTICED_WITHIN, "the neighbour's start", || async {
        if dead {
            let known = worker.metrics().await?.sum("balance_sync_tenants", &[]);
            ensure!(known as usize > QUIET, "{known} tenants are known");
        } else {
            let left = scheduled(rig, noisy).await?;
            ensure!(left < total, "nothing was written");
        }
        Ok(())
    })
    .await
    .with_context(|| worker.log())
}

/// Waits until the worker no longer works for the neighbour.
async fn forgotten(worker: &Worker) -> Result<()> {
    eventually(Duration::from_secs(120), "the neighbour's end", || async {
        let known = worker.metrics().await?.sum("balance_sync_tenants", &[]);
        ensure!(known as usize <= QUIET, "{known} tenants are known");
        Ok(())
    })
    .await
}
