//! A noisy neighbour: what fifty tenants with little to do feel of one that has a backlog, or whose Postgres is dead, alone or among
//! thousands that have nothing to do.
//!
//! The neighbour comes into the tenant service's list only for the second half: first the others alone, then beside it,
//! on the same worker.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Producer};
use balance_sync_sandbox::{Fault, Proxy, SandboxTenant, TenantRecord, eventually};

use crate::Options;
use crate::figures::Figures;
use crate::idle;
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

/// What the others have beside them.
struct Neighbour {
    case: &'static str,
    balances: usize,
    /// Its Postgres accepts connections and never answers.
    dead: bool,
    /// Tenants that have nothing to do.
    idle: usize,
    seconds: f64,
}

/// One tenant has a backlog of half a million.
pub(crate) async fn backlog(options: &Options, figures: &mut Figures) -> Result<()> {
    let balances = options.scaled(500_000, 5_000);
    let neighbour =
        Neighbour { case: "noisy_backlog", balances, dead: false, idle: 0, seconds: options.seconds(10.0) };
    measure(options, figures, &neighbour).await
}

/// One tenant's Postgres accepts connections and never answers.
pub(crate) async fn dead_postgres(options: &Options, figures: &mut Figures) -> Result<()> {
    let balances = options.scaled(DEAD_BACKLOG, 1_000);
    let neighbour = Neighbour {
        case: "noisy_dead_postgres",
        balances,
        dead: true,
        idle: 0,
        seconds: options.seconds(10.0),
    };
    measure(options, figures, &neighbour).await
}

/// Ten thousand tenants, of which one has a backlog of five million.
pub(crate) async fn fairness(options: &Options, figures: &mut Figures) -> Result<()> {
    let neighbour = Neighbour {
        case: "fairness",
        balances: options.scaled(5_000_000, 100_000),
        dead: false,
        // At any scale: they cost little.
        idle: 10_000 - QUIET - 1,
        seconds: options.seconds(30.0),
    };
    measure(options, figures, &neighbour).await
}

async fn measure(options: &Options, figures: &mut Figures, neighbour: &Neighbour) -> Result<()> {
    let Neighbour { case, balances, dead, idle, seconds } = *neighbour;
    let rig = Rig::start(QUIET, BALANCES).await?;
    let quiet = rig.sandbox.tenants();
    list_idle(&rig, idle)?;
    idle::served_before(&rig).await?;
    let noisy = noisy_tenant(&rig, balances).await?;
    let proxy = Proxy::start(([127, 0, 0, 1], rig.sandbox.postgres().port()).into()).await?;
    proxy.set(Fault::BlackHole).await;
    if dead {
        rig.sandbox.service().update(&noisy.id, |record| record.port = proxy.addr().port());
    }
    rig.sandbox.remove_tenant(&noisy.id)?;
    let mut producer = Producer::new(&rig.sandbox.redis().url(), vec![noisy.load()]);
    // A long list is read as seldom as by default.
    let poll = [("tenants.poll_interval", "10s")];
    let settings = if idle > 0 { &poll[..] } else { &[] };
    let worker = Worker::start(options, rig.sandbox.config_path(), settings)?;
    worker.ready().await?;
    idle::idle(&[&worker], QUIET + idle).await?;
    let mut load = Load::new(&rig.sandbox, quiet).await?;
    let pattern = Pattern {
        rate: TRICKLE * QUIET as f64,
        seconds,
        hot_share: 0.0,
        sample_one_in: 2,
        tenants_one_in: 1,
        look_every: LOOK_EVERY,
    };
    for round in 0..options.repeat {
        let alone = load.run(pattern).await?;
        let total = producer.mutate_each(DEFAULT_TTL).await?;
        rig.sandbox.restore_tenant(&noisy.id)?;
        noticed(&rig, &worker, &noisy, total, (QUIET + idle, dead)).await?;
        let beside = load.run(pattern).await?;
        if round == 0 {
            let left = scheduled(&rig, &noisy).await?;
            eprintln!("  {left} of {total} members of the neighbour are left at the end");
        }
        rig.sandbox.remove_tenant(&noisy.id)?;
        forgotten(&worker, QUIET + idle).await?;
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

/// Lists tenants more. No worker connects to their databases, which don't exist, as nothing is written for them.
fn list_idle(rig: &Rig, count: usize) -> Result<()> {
    let service = rig.sandbox.service();
    let first = rig.sandbox.tenants().first().and_then(|tenant| service.tenant(&tenant.id));
    let like = first.context("no tenant")?;
    for number in 0..count {
        let id = format!("{number:08x}-0000-4000-8000-000000000000");
        let names = TenantRecord { name: id.clone(), slug: id.clone(), id, ..like.clone() };
        service.set_tenant(TenantRecord { database: format!("idle_{number:06}"), ..names });
    }
    Ok(())
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
async fn noticed(
    rig: &Rig,
    worker: &Worker,
    noisy: &SandboxTenant,
    total: u64,
    (others, dead): (usize, bool),
) -> Result<()> {
    eventually(NOTICED_WITHIN, "the neighbour's start", || async {
        if dead {
            let known = worker.metrics().await?.sum("balance_sync_tenants", &[]);
            ensure!(known as usize > others, "{known} tenants are known");
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
async fn forgotten(worker: &Worker, others: usize) -> Result<()> {
    eventually(Duration::from_secs(120), "the neighbour's end", || async {
        let known = worker.metrics().await?.sum("balance_sync_tenants", &[]);
        ensure!(known as usize <= others, "{known} tenants are known");
        Ok(())
    })
    .await
}
