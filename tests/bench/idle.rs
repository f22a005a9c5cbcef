//! Thousands of tenants with nothing to do: what they cost, with one worker and with a second one that stands by, and how
//! soon the first mutation is noticed.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
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
/// After the start, before the first span that is measured.
const CALM: Duration = Duration::from_secs(5);
/// After the start of the last worker everything has been looked at, recorded and compared, and tenants are at rest.
const STEADY: Duration = Duration::from_secs(75);
/// A first write must be there by then.
const WRITTEN_WITHIN: Duration = Duration::from_secs(30);

pub(crate) async fn run(options: &Options, figures: &mut Figures, tenants: usize) -> Result<()> {
    let case = format!("idle_{tenants}");
    let tenants = options.scaled(tenants, 2 * REAL);
    let rig = Rig::start(REAL, 10).await?;
    let config = rig.sandbox.config_path().with_file_name("idle.toml");
    std::fs::write(&config, configuration(&rig, tenants)?).context("writing the configuration")?;
    served_before(&rig).await?;
    for round in 0..i64::from(options.repeat) {
        let begun = Instant::now();
        let worker = Worker::start(options, &config, &[])?;
        worker.ready().await?;
        figures.add(&case, "ready_after_s", begun.elapsed().as_secs_f64());
        idle(&[&worker], tenants).await?;
        figures.add(&case, "all_idle_after_s", begun.elapsed().as_secs_f64());
        calm(options, &rig, figures, &case, &[&worker]).await?;
        figures.add(&case, "postgres_connections", rig.connections().await?);
        tokio::time::sleep(STEADY.saturating_sub(begun.elapsed())).await;
        steady(options, &rig, figures, &case, &[&worker]).await?;
        let mut first = Vec::new();
        for tenant in rig.sandbox.tenants() {
            first.push(first_write(&rig, &tenant, SEED_VERSION + 2 * round).await?);
        }
        // The slowest of them: a tenant's waiting time is a matter of chance.
        figures.add(&case, "first_write_ms", quantile(&first, 1.0));
        figures.add(&case, "first_write_p50_ms", quantile(&first, 0.5));
        let begun = Instant::now();
        let second = Worker::start(options, &config, &[])?;
        second.ready().await?;
        let both = [&worker, &second];
        idle(&both, tenants).await?;
        let case = format!("{case}_two_workers");
        calm(options, &rig, figures, &case, &both).await?;
        tokio::time::sleep(STEADY.saturating_sub(begun.elapsed())).await;
        steady(options, &rig, figures, &case, &both).await?;
        let mut first = Vec::new();
        for tenant in rig.sandbox.tenants() {
            first.push(first_write(&rig, &tenant, SEED_VERSION + 2 * round + 1).await?);
        }
        figures.add(&case, "first_write_ms", quantile(&first, 1.0));
        second.stop().await?;
        worker.stop().await?;
    }
    rig.stop().await
}

/// Leaves in Redis what workers leave there that have served it for a while: the mark of its data set, with the server's process. Without it
/// workers compare each tenant's values with its rows first, once, and most of these tenants have no database to compare them with.
pub(crate) async fn served_before(rig: &Rig) -> Result<()> {
    const MARK: &str = "{transactions}:balance-sync:data-set";
    let mut redis = rig.redis.clone();
    let info: redis::InfoDict = redis::cmd("INFO").query_async(&mut redis).await?;
    let run_id: String = info.get("run_id").context("INFO has no run_id")?;
    let evicted: u64 = info.get("evicted_keys").context("INFO has no evicted_keys")?;
    let () = redis::pipe()
        .set(MARK, "bench")
        .set(format!("{MARK}:process"), format!("{run_id}:{evicted}"))
        .query_async(&mut redis)
        .await?;
    Ok(())
}

/// Waits until all tenants are idle at one of the workers, and stood by for by the others.
pub(crate) async fn idle(workers: &[&Worker], tenants: usize) -> Result<()> {
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

/// What workers cost soon after the start, all of them together.
async fn calm(
    options: &Options,
    rig: &Rig,
    figures: &mut Figures,
    case: &str,
    workers: &[&Worker],
) -> Result<()> {
    tokio::time::sleep(CALM).await;
    measure(options, rig, figures, case, "", workers).await
}

/// What they cost from then on.
async fn steady(
    options: &Options,
    rig: &Rig,
    figures: &mut Figures,
    case: &str,
    workers: &[&Worker],
) -> Result<()> {
    measure(options, rig, figures, case, "steady_", workers).await
}

async fn measure(
    options: &Options,
    rig: &Rig,
    figures: &mut Figures,
    case: &str,
    prefix: &str,
    workers: &[&Worker],
) -> Result<()> {
    let pids = workers.iter().map(|worker| worker.pid()).collect::<Result<Vec<u32>>>()?;
    let meter = rig.meter(pids.clone())?;
    let (usage, commands) = (meter.read()?, rig.commands().await?);
    tokio::time::sleep(Duration::from_secs_f64(options.seconds(20.0))).await;
    let (spent, commands) = (meter.read()?.since(&usage), rig.commands().await? - commands);
    let mut memory = 0.0;
    for pid in pids {
        memory += memory_mb(pid)?.0;
    }
    let mut add = |figure: &str, value: f64| figures.add(case, &format!("{prefix}{figure}"), value);
    add("rss_mb", memory);
    add("worker_cpu_share", spent.workers / 1e6 / spent.seconds);
    add("redis_cpu_share", spent.redis / 1e6 / spent.seconds);
    add("redis_commands_per_s", commands / spent.seconds);
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

/// So many tenants of one worker, most of them idle: until the first balance of a backlog is settled, from the start of the process on.
pub(crate) async fn start(options: &Options, figures: &mut Figures, tenants: usize) -> Result<()> {
    const BUSY: usize = 100;
    let case = format!("start_{tenants}");
    let tenants = options.scaled(tenants, BUSY);
    let rig = Rig::start(BUSY, 100).await?;
    let config = rig.sandbox.config_path().with_file_name("start.toml");
    std::fs::write(&config, configuration(&rig, tenants)?).context("writing the configuration")?;
    served_before(&rig).await?;
    let mut producer = rig.sandbox.producer();
    for _ in 0..options.repeat {
        let total = producer.mutate_each(DEFAULT_TTL).await?;
        let begun = Instant::now();
        let worker = Worker::start(options, &config, &[])?;
        let left = async || -> Result<u64> {
            let mut pipe = redis::pipe();
            for key in rig.schedules() {
                pipe.zcard(key);
            }
            let left: Vec<u64> = pipe.query_async(&mut rig.redis.clone()).await?;
            Ok(left.iter().sum())
        };
        while left().await? == total {
            ensure!(begun.elapsed() < IDLE_WITHIN, "nothing is settled: {}", worker.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        figures.add(&case, "first_settled_ms", begun.elapsed().as_secs_f64() * 1e3);
        while left().await? > 0 {
            ensure!(begun.elapsed() < IDLE_WITHIN, "not all is settled: {}", worker.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        figures.add(&case, "all_settled_ms", begun.elapsed().as_secs_f64() * 1e3);
        worker.ready().await?;
        figures.add(&case, "ready_after_ms", begun.elapsed().as_secs_f64() * 1e3);
        worker.stop().await?;
        rig.settle(&producer).await?;
    }
    rig.stop().await
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
    for number in real.len()..tenants {
        let id = format!("{number:08x}-0000-4000-8000-000000000000");
        entry(&id, &url, &format!("ledger_{number:06}"), &format!("role_{number:06}"))?;
    }
    Ok(text)
}
