//! Thousands of tenants with nothing to do: what they cost, with one worker and with a second one that stands by, and how
//! soon the first mutation is noticed.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Mutation, SEED_VERSION, write_mutations};
use balance_sync_sandbox::{SandboxTenant, balance_table, eventually};
use sqlx::AssertSqlSafe;

use crate::Options;
use crate::figures::{Figures, quantile};
use crate::meter::memory_mb;
use crate::rig::Rig;
use crate::worker::Worker;

/// Tenants with a database; no worker connects to the databases of the others, as nothing is written for them.
const REAL: usize = 5;
/// All tenants must be idle by then.
const IDLE_WITHIN: Duration = Duration::from_secs(120);
/// After the start, until the tenants are looked at as rarely as they will be.
const CALM: Duration = Duration::from_secs(5);
/// A first write must be there by then.
const WRITTEN_WITHIN: Duration = Duration::from_secs(30);

pub(crate) async fn run(options: &Options, figures: &mut Figures, tenants: usize) -> Result<()> {
    let case = format!("idle_{tenants}");
    let tenants = options.scaled(tenants, 2 * REAL);
    let rig = Rig::start(REAL, 10).await?;
    let config = rig.sandbox.config_path().with_file_name("idle.toml");
    std::fs::write(&config, configuration(&rig, tenants)?).context("writing the configuration")?;
    for round in 0..i64::from(options.repeat) {
        let begun = Instant::now();
        let worker = Worker::start(options, &config, &[])?;
        worker.ready().await?;
        idle(&[&worker], tenants).await?;
        figures.add(&case, "all_idle_after_s", begun.elapsed().as_secs_f64());
        calm(options, &rig, figures, &case, &[&worker]).await?;
        figures.add(&case, "postgres_connections", rig.connections().await?);
        let mut first = Vec::new();
        for tenant in rig.sandbox.tenants() {
            first.push(first_write(&rig, &tenant, SEED_VERSION + round).await?);
        }
        // The slowest of them: a tenant's waiting time is a matter of chance.
        figures.add(&case, "first_write_ms", quantile(&first, 1.0));
        figures.add(&case, "first_write_p50_ms", quantile(&first, 0.5));
        let second = Worker::start(options, &config, &[])?;
        second.ready().await?;
        let both = [&worker, &second];
        idle(&both, tenants).await?;
        calm(options, &rig, figures, &format!("{case}_two_workers"), &both).await?;
        second.stop().await?;
        worker.stop().await?;
    }
    rig.stop().await
}

/// Waits until all tenants are idle at one of the workers, and stood by for by the others.
async fn idle(workers: &[&Worker], tenants: usize) -> Result<()> {
    eventually(IDLE_WITHIN, "idle tenants", || async {
        let (mut idle, mut standby) = (0.0, 0.0);
        for worker in workers {
            let page = worker.metrics().await?;
            idle += page.sum("balance_sync_tenants", &[("state", "idle")]);
            standby += page.sum("balance_sync_tenants", &[("state", "standby")]);
        }
        let wanted = (tenants, tenants * (workers.len() - 1));
        if (idle as usize, standby as usize) == wanted {
            Ok(())
        } else {
            bail!("{idle} are idle, {standby} stood by for; wanted {wanted:?}")
        }
    })
    .await
}

/// What workers cost while nothing happens, all of them together.
async fn calm(
    options: &Options,
    rig: &Rig,
    figures: &mut Figures,
    case: &str,
    workers: &[&Worker],
) -> Result<()> {
    tokio::time::sleep(CALM).await;
    let pids = workers.iter().map(|worker| worker.pid()).collect::<Result<Vec<u32>>>()?;
    let meter = rig.meter(pids.clone())?;
    let (usage, commands) = (meter.read()?, rig.commands().await?);
    tokio::time::sleep(Duration::from_secs_f64(options.seconds(20.0))).await;
    let (spent, commands) = (meter.read()?.since(&usage), rig.commands().await? - commands);
    let mut memory = 0.0;
    for pid in pids {
        memory += memory_mb(pid)?.0;
    }
    figures.add(case, "rss_mb", memory);
    figures.add(case, "worker_cpu_share", spent.workers / 1e6 / spent.seconds);
    figures.add(case, "redis_cpu_share", spent.redis / 1e6 / spent.seconds);
    figures.add(case, "redis_commands_per_s", commands / spent.seconds);
    Ok(())
}

/// Mutates one balance of a tenant, and gives the milliseconds until its row was committed.
async fn first_write(rig: &Rig, tenant: &SandboxTenant, base_version: i64) -> Result<f64> {
    let balance = &tenant.balances[0];
    let mutation = Mutation {
        schedule: tenant.keys.schedule(),
        member: tenant.keys.member(balance),
        base_version,
        json: balance.json(base_version + 1),
    };
    let mut redis = rig.redis.clone();
    let (seconds, micros): (f64, f64) = redis::cmd("TIME").query_async(&mut redis).await?;
    write_mutations(&mut redis, &[mutation], DEFAULT_TTL).await?;
    let pool = rig.sandbox.pool(tenant);
    let sql = format!(
        "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1e6)::float8 FROM {}
         WHERE id = $1 AND version > $2",
        balance_table(tenant.schema.as_deref())
    );
    let committed: f64 = eventually(WRITTEN_WITHIN, "a first write", || async {
        let found: Result<Option<f64>, _> = sqlx::query_scalar(AssertSqlSafe(sql.clone()))
            .bind(balance.id)
            .bind(base_version)
            .fetch_optional(&pool)
            .await;
        found.ok().flatten()
    })
    .await?;
    pool.close().await;
    Ok((committed - seconds * 1e6 - micros) / 1000.0)
}

/// A static list of tenants, so that no directory shows in the figures.
fn configuration(rig: &Rig, tenants: usize) -> Result<String> {
    let mut text = format!(
        "[redis]\nurl = \"{}\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n\n[tenants]\nsource = \"static\"\n",
        rig.sandbox.redis_url()
    );
    let mut entry = |id: &str, url: &str, database: &str, role: &str| -> Result<()> {
        let url = url::Url::parse(url)?;
        let (port, password) = (url.port().unwrap_or_default(), url.password().unwrap_or_default());
        write!(
            text,
            "\n[[tenants.list]]\nid = \"{id}\"\nhost = \"127.0.0.1\"\nport = {port}\ndatabase = \"{database}\"\n\
             username = \"{role}\"\npassword = \"{password}\"\nsslmode = \"disable\"\n"
        )?;
        Ok(())
    };
    let real = rig.sandbox.tenants();
    for tenant in &real {
        entry(&tenant.id, tenant.database_url(), &tenant.database, &tenant.role)?;
    }
    let url = real.first().map(|tenant| tenant.database_url().to_owned()).unwrap_or_default();
    // UUIDs, as the ids of real tenants are: each is served in both key forms, so it has twice the schedules.
    for number in REAL..tenants {
        let id = format!("{number:08x}-0000-4000-8000-000000000000");
        entry(&id, &url, &format!("ledger_{number:06}"), &format!("role_{number:06}"))?;
    }
    Ok(text)
}
