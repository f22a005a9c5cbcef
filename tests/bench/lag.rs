//! Lag: from the mutation in Redis to the committed row, under a steady load.

use anyhow::Result;

use crate::Options;
use crate::figures::Figures;
use crate::load::{LOOK_EVERY, Lag, Load, Pattern};
use crate::rig::Rig;
use crate::worker::Worker;

/// Mutations per second.
const RATES: [usize; 3] = [2_000, 10_000, 30_000];
const TENANTS: usize = 10;
const BALANCES: usize = 2_000;
/// Rows a worker has written, by its own count.
const ROWS: &str = "balance_synced";
/// Flushes, whatever their trigger.
const FLUSHES: &str = "balance_sync_batches_total";

/// Profiles (`collector.profile`), and what the cases of each are called.
const PROFILES: [(&str, &str); 3] = [("balanced", ""), ("fresh", "_fresh"), ("frugal", "_frugal")];

pub(crate) async fn run(options: &Options, figures: &mut Figures) -> Result<()> {
    for (profile, suffix) in PROFILES {
        run_profile(options, figures, profile, suffix).await?;
    }
    Ok(())
}

async fn run_profile(options: &Options, figures: &mut Figures, profile: &str, suffix: &str) -> Result<()> {
    let rig = Rig::start(TENANTS, BALANCES).await?;
    let worker = Worker::start(options, rig.sandbox.config_path(), &[("collector.profile", profile)])?;
    worker.ready().await?;
    let mut load = Load::new(&rig.sandbox, rig.sandbox.tenants()).await?;
    let measured = measure(options, figures, &rig, &worker, &mut load, suffix).await;
    if measured.is_err() {
        eprintln!("{}", worker.log());
    }
    worker.stop().await?;
    rig.stop().await?;
    measured
}

async fn measure(
    options: &Options,
    figures: &mut Figures,
    rig: &Rig,
    worker: &Worker,
    load: &mut Load,
    profile: &str,
) -> Result<()> {
    for _ in 0..options.repeat {
        for rate in RATES {
            for (suffix, hot_share) in [("", 0.0), ("_hot", 0.8)] {
                let case = format!("lag_{rate}{suffix}{profile}");
                let pattern = Pattern {
                    rate: rate as f64,
                    seconds: options.seconds(10.0),
                    hot_share,
                    sample_one_in: 20,
                    tenants_one_in: 1,
                    look_every: LOOK_EVERY,
                };
                let meter = rig.meter(vec![worker.pid()?])?;
                let before = worker.metrics().await?;
                let usage = meter.read()?;
                let lag = load.run(pattern).await?;
                let spent = meter.read()?.since(&usage);
                let after = worker.metrics().await?;
                let since = |name: &str| after.sum(name, &[]) - before.sum(name, &[]);
                let rows = since(ROWS);
                record(figures, &case, &lag);
                figures.add(&case, "rows_per_mutation", rows / lag.mutations);
                figures.add(&case, "flushes_per_s", since(FLUSHES) / spent.seconds);
                for (name, micros) in [
                    ("worker_cpu_share", spent.workers),
                    ("redis_cpu_share", spent.redis),
                    ("postgres_cpu_share", spent.postgres),
                ] {
                    figures.add(&case, name, micros / 1e6 / spent.seconds);
                }
            }
        }
    }
    Ok(())
}

fn record(figures: &mut Figures, case: &str, lag: &Lag) {
    eprintln!(
        "  {case}: {:.0}/s, p50 {:.0} ms, p99 {:.0} ms ({} watched)",
        lag.rate,
        lag.quantile(0.5),
        lag.quantile(0.99),
        lag.millis.len()
    );
    for (name, part) in [("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99), ("max_ms", 1.0)] {
        figures.add(case, name, lag.quantile(part));
    }
    figures.add(case, "mutations_per_s", lag.rate);
}
