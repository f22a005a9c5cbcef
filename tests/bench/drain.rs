//! Emptying a backlog: how fast, at what cost, and how near to what the servers can take.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Format, Producer};

use crate::figures::Figures;
use crate::meter::{Meter, Spent, memory_mb};
use crate::rig::Rig;
use crate::worker::Worker;
use crate::{Options, limit};

/// A drain that has not ended by then never will.
const ENDS_WITHIN: Duration = Duration::from_secs(300);
/// Between two looks at the schedules: fine enough for a drain of a second, and no load.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// Between two looks at the connections.
const COUNT_EVERY: Duration = Duration::from_millis(100);
/// Numbers of parallel lanes of which the limit's best is taken.
const LANES: [usize; 4] = [1, 2, 3, 4];

/// What a drain has shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drained {
    /// Balances, from the first one seen settled to the empty schedule.
    pub(crate) balances: f64,
    /// Time and CPU time in that span.
    pub(crate) spent: Spent,
    /// Most connections seen.
    pub(crate) connections: f64,
    /// Most resident memory of the first worker, in MB; 0 without a worker.
    pub(crate) rss_mb: f64,
}

impl Drained {
    pub(crate) fn per_second(&self) -> f64 {
        self.balances / self.spent.seconds
    }

    /// CPU time of everybody, in microseconds per balance.
    pub(crate) fn cost(&self) -> f64 {
        (self.spent.workers + self.spent.postgres + self.spent.redis) / self.balances
    }

    pub(crate) fn record(&self, figures: &mut Figures, case: &str) {
        figures.add(case, "balances_per_s", self.per_second());
        figures.add(case, "worker_cpu_us", self.spent.workers / self.balances);
        figures.add(case, "postgres_cpu_us", self.spent.postgres / self.balances);
        figures.add(case, "redis_cpu_us", self.spent.redis / self.balances);
        figures.add(case, "rss_mb", self.rss_mb);
        figures.add(case, "postgres_connections", self.connections);
    }
}

/// Watches the schedules, which hold this many members, until they are empty. The span begins when the first members
/// have gone: starting up is not part of it, a first batch is.
pub(crate) async fn watch(rig: &Rig, meter: &Meter, total: u64) -> Result<Drained> {
    let mut keys = rig.schedules();
    let mut redis = rig.redis.clone();
    let begun = Instant::now();
    let mut first = None;
    let (mut connections, mut counted) = (0.0_f64, begun);
    loop {
        let mut pipe = redis::pipe();
        for key in &keys {
            pipe.zcard(key);
        }
        let left: Vec<u64> = pipe.query_async(&mut redis).await?;
        let sum: u64 = left.iter().sum();
        if first.is_none() && sum < total {
            first = Some((meter.read()?, sum));
        }
        if sum == 0
            && let Some((since, balances)) = first
        {
            let spent = meter.read()?.since(&since);
            let rss_mb =
                meter.workers.first().map_or(Ok(0.0), |pid| memory_mb(*pid).map(|(_, most)| most))?;
            connections = connections.max(rig.connections().await?);
            return Ok(Drained { balances: balances as f64, spent, connections, rss_mb });
        }
        // What is empty stays empty.
        let mut left = left.iter();
        keys.retain(|_| left.next().is_some_and(|members| *members > 0));
        if counted.elapsed() >= COUNT_EVERY {
            connections = connections.max(rig.connections().await?);
            counted = Instant::now();
        }
        ensure!(
            begun.elapsed() < ENDS_WITHIN,
            "{sum} of {total} members are still scheduled after {ENDS_WITHIN:?}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Prepares a backlog of every balance, starts this many workers, and watches them empty it.
pub(crate) async fn by_workers(
    options: &Options,
    rig: &Rig,
    producer: &mut Producer,
    workers: usize,
    settings: &[(&str, &str)],
) -> Result<Drained> {
    let total = producer.mutate_each(DEFAULT_TTL).await?;
    let started = (0..workers)
        .map(|_| Worker::start(options, rig.sandbox.config_path(), settings))
        .collect::<Result<Vec<_>>>()?;
    let pids = started.iter().map(Worker::pid).collect::<Result<Vec<_>>>()?;
    let drained = watch(rig, &rig.meter(pids)?, total).await;
    if drained.is_err() {
        eprintln!("{}", started.first().map(Worker::log).unwrap_or_default());
    }
    for worker in started {
        worker.stop().await?;
    }
    rig.settle(producer).await?;
    drained
}

/// The same backlog, and no worker: scripts and statement alone.
async fn without_worker(rig: &Rig, producer: &mut Producer, lanes: usize, batch: usize) -> Result<Drained> {
    let total = producer.mutate_each(DEFAULT_TTL).await?;
    let prepared = limit::prepare(rig, producer)?;
    let meter = rig.meter(Vec::new())?;
    let running = limit::start(&prepared, lanes, batch);
    let drained = watch(rig, &meter, total).await?;
    running.await?;
    rig.settle(producer).await?;
    Ok(drained)
}

async fn against_limit(options: &Options, figures: &mut Figures, case: &str, rig: &Rig) -> Result<()> {
    let mut producer = rig.sandbox.producer();
    let batch = batch_size(options)?;
    // Not counted: the first update of every row finds a table without free space.
    by_workers(options, rig, &mut producer, 1, &[]).await?;
    let mut best = (0, 0.0);
    for lanes in LANES {
        let speed = without_worker(rig, &mut producer, lanes, batch).await?.per_second();
        eprintln!("  limit, {lanes} lanes: {speed:.0}/s");
        if speed > best.1 {
            best = (lanes, speed);
        }
    }
    figures.note(&format!("{case}.limit_lanes"), best.0);
    for _ in 0..options.repeat {
        let limit = without_worker(rig, &mut producer, best.0, batch).await?;
        let drained = by_workers(options, rig, &mut producer, 1, &[]).await?;
        eprintln!("  limit {:.0}/s, worker {:.0}/s", limit.per_second(), drained.per_second());
        drained.record(figures, case);
        figures.add(case, "ratio_to_limit", drained.per_second() / limit.per_second());
        figures.add(case, "worker_to_postgres_cpu", drained.spent.workers / drained.spent.postgres);
        figures.add(case, "limit_balances_per_s", limit.per_second());
        figures.add(case, "limit_postgres_cpu_us", limit.spent.postgres / limit.balances);
        figures.add(case, "limit_redis_cpu_us", limit.spent.redis / limit.balances);
    }
    Ok(())
}

/// What a batch of the workers holds.
fn batch_size(options: &Options) -> Result<usize> {
    const DEFAULT: usize = 500;
    let set = options.set.iter().find_map(|setting| setting.strip_prefix("collector.batch_size="));
    Ok(set.map_or(Ok(DEFAULT), str::parse)?)
}

/// A backlog of one tenant; with lease and with lock.
pub(crate) async fn one_tenant(options: &Options, figures: &mut Figures) -> Result<()> {
    let rig = Rig::start(1, options.scaled(200_000, 2_000)).await?;
    against_limit(options, figures, "drain_1", &rig).await?;
    let mut producer = rig.sandbox.producer();
    producer.refresh_versions().await?;
    for _ in 0..options.repeat {
        let lease = by_workers(options, &rig, &mut producer, 1, &[]).await?;
        let lock = by_workers(options, &rig, &mut producer, 1, &[("claim.mode", "lock")]).await?;
        eprintln!("  lease {:.0}/s, lock {:.0}/s", lease.per_second(), lock.per_second());
        figures.add("lock", "drain_1_balances_per_s", lock.per_second());
        figures.add("lock", "drain_1_ratio_to_lease", lock.per_second() / lease.per_second());
        figures.add("lock", "redis_cpu_us", lock.spent.redis / lock.balances);
    }
    rig.stop().await
}

/// The same number of balances over a hundred tenants.
pub(crate) async fn hundred_tenants(options: &Options, figures: &mut Figures) -> Result<()> {
    let rig = Rig::start(100, options.scaled(2_000, 20)).await?;
    against_limit(options, figures, "drain_100", &rig).await?;
    rig.stop().await
}

/// A backlog of one tenant in each format of the values, one after the other, so that they share the machine's mood.
pub(crate) async fn formats(options: &Options, figures: &mut Figures) -> Result<()> {
    let rig = Rig::start(1, options.scaled(200_000, 2_000)).await?;
    let mut producer = rig.sandbox.producer();
    // Not counted, as in the drains.
    by_workers(options, &rig, &mut producer, 1, &[]).await?;
    for _ in 0..options.repeat {
        let mut upper = None;
        for format in [Format::Upper, Format::Dual, Format::NewOnly, Format::Mixed] {
            producer = producer.in_format(format);
            let drained = by_workers(options, &rig, &mut producer, 1, &[]).await?;
            eprintln!("  {format} {:.0}/s", drained.per_second());
            drained.record(figures, &format!("drain_1_{format}"));
            let upper = *upper.get_or_insert(drained.per_second());
            figures.add("formats", &format!("drain_1_{format}_ratio_to_upper"), drained.per_second() / upper);
        }
    }
    rig.stop().await
}
