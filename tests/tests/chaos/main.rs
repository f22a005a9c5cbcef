//! Chaos: several workers, producers, and a seeded sequence of faults over real servers; then the invariants.
//!
//! `CHAOS_SECONDS` says for how long (20 unless set), `CHAOS_SEED` which sequence; the seed is printed and replays the same
//! faults in the same order. `CHAOS_RATE` says how many mutations come per second (1500). `make chaos` runs it for longer.

#![allow(clippy::print_stderr)] // seed and outcome must be seen

mod faults;
mod invariants;
mod leases;
mod quiet;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Format, LoadOptions, Progress};
use balance_sync_sandbox::{RedisOptions, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::leases::{Leases, Scripts};
use balance_sync_tests::ledger::in_step;
use balance_sync_tests::options;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use faults::World;
use invariants::Watch;
use quiet::{Concerns, Quiet};

/// Tenants: own databases, two that share one, one with a UUID for its id.
const TENANTS: usize = 6;
/// Balances of each.
const BALANCES: usize = 150;
/// Mutations per second over all tenants.
const RATE: f64 = 1500.0;
/// Workers at any time.
const WORKERS: usize = 3;
/// How long after the last fault everything must have arrived: the claim TTL of killed workers (4 s), the longest backoff,
/// and room for a busy machine.
const CALM: Duration = Duration::from_secs(60);

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} = {text}: must be a whole number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_goes_backwards() -> Result<()> {
    let seed = setting("CHAOS_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let seconds = setting("CHAOS_SECONDS").unwrap_or(20);
    eprintln!("chaos: seed {seed}, {seconds} s (CHAOS_SEED={seed} CHAOS_SECONDS={seconds} replays it)");
    chaos(seed, Duration::from_secs(seconds)).await.with_context(|| format!("chaos with seed {seed}"))
}

async fn chaos(seed: u64, length: Duration) -> Result<()> {
    let wanted = options(TENANTS, BALANCES);
    // What Redis has acknowledged survives its kill here; what a Redis that may forget does is another test's matter.
    let redis = RedisOptions {
        appendonly: true,
        extra: vec!["appendfsync always".to_owned()],
        ..wanted.redis.clone()
    };
    let sandbox = Arc::new(Sandbox::start(SandboxOptions { redis, proxied: true, ..wanted }).await?);
    invariants::prepare(&sandbox).await?;

    let concerns = Concerns::default();
    let quiet = Quiet::start(Arc::clone(&sandbox), concerns.clone()).await?;
    let mut schedules = vec![Quiet::schedule()];
    schedules.extend(sandbox.tenants().iter().map(|tenant| tenant.keys.schedule()));
    let password = sandbox.options().redis.password.clone();
    let leases = Leases::watch(sandbox.redis().port(), password, schedules, &Scripts::default()).await?;

    let mut world = World::new(Arc::clone(&sandbox), SmallRng::seed_from_u64(seed), concerns);
    for _ in 0..WORKERS {
        world.start_worker().await?;
    }
    let watch = Watch::start(Arc::clone(&sandbox));

    let mut producer = sandbox.producer().in_format(Format::Mixed);
    let (cancel, progress) = (CancellationToken::new(), Arc::new(Progress::new(TENANTS)));
    let rate = setting("CHAOS_RATE").map_or(RATE, |rate| rate as f64);
    let load = LoadOptions { rate, hot_key_share: 0.2, seed, ..LoadOptions::default() };
    let producing = {
        let (cancel, progress) = (cancel.clone(), Arc::clone(&progress));
        tokio::spawn(async move {
            let report = producer.run(&load, &progress, &cancel).await;
            (producer, report)
        })
    };

    let end = Instant::now() + length;
    while Instant::now() < end && !leases.has_ended() {
        world.fault().await?;
    }
    cancel.cancel();
    let (mut producer, report) = producing.await?;
    let report = report?;
    world.heal().await?;

    // One mutation of each balance more: whatever was left half-way by a fault is overtaken or caught up with.
    producer.refresh_versions().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let calm = Instant::now();
    let arrived =
        eventually(CALM, "everything in Postgres as in Redis", || in_step(&sandbox, &producer)).await;
    let caught_up = calm.elapsed();
    // First, as it says why something is lost.
    let leases = leases.stop().await?;
    arrived?;
    ensure!(leases.claimed > 0 && leases.removed > 0, "the record of leases saw nothing: {leases:?}");

    let seen = watch.stop().await?;
    let served = quiet.stop().await?;
    invariants::check(&sandbox, &world).await?;
    world.stop_workers().await?;
    ensure!(seen.samples > 0, "the watch saw nothing");
    eprintln!(
        "chaos: seed {seed}: {} mutations ({} errors), {} faults [{}], {} samples, caught up in {:.1} s, \
         0 lost, 0 backwards, 0 across tenants, at most {} connections of a worker",
        report.mutations + (TENANTS * BALANCES) as u64,
        report.errors,
        world.faults.values().sum::<u32>(),
        world.summary(),
        seen.samples,
        caught_up.as_secs_f64(),
        seen.connections,
    );
    eprintln!(
        "chaos: seed {seed}: {} leases given, {} members removed and {} given back, each by the holder of its lease \
         ({} of a lease from before a restart of Redis, {} restarts)",
        leases.claimed, leases.removed, leases.released, leases.unattributed, leases.gaps,
    );
    eprintln!(
        "chaos: seed {seed}: the quiet tenant: {} mutations undisturbed, the slowest took {:.2} s; {} disturbed, the \
         slowest arrived {:.2} s after the last fault that concerned it",
        served.undisturbed,
        served.undisturbed_worst.as_secs_f64(),
        served.disturbed,
        served.disturbed_worst.as_secs_f64(),
    );
    Ok(())
}
