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

pub(crate) async fn run(options: &Options, figures: &mut Figures) -> Result<()> {
    let rig = Rig::start(TENANTS, BALANCES).await?;
    let worker = Worker::start(options, rig.sandbox.config_path(), &[])?;
    worker.ready().await?;
    let mut load = Load::new(&rig.sandbox, rig.sandbox.tenants()).await?;
    let measured = measure(options, figures, &rig, &worker, &mut load).await;
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
) -> Result<()> {
    for _ in 0..options.repeat {
        for rate in RATES {
            for (suffix, hot_share) in [("", 0.0), ("_hot", 0.8)] {
                let case = format!("lag_{rate}{suffix}");
                let pattern = Pattern {
                    rate: rate as f64,
                    seconds: options.seconds(10.0),
                    hot_share,
                    sample_one_in: 20,
                    tenants_one_in: 1,
                    look_every: LOOK_EVERY,
                };
                let meter = rig.meter(vec![worker.pid()?])?;
                let (rows, usage) = (worker.metrics().await?.sum(ROWS, &[]), meter.read()?);
                let lag = load.run(pattern).await?;
                let spent = meter.read()?.since(&usage);
                let rows = worker.metrics().await?.sum(ROWS, &[]) - rows;
                record(figures, &case, &lag);
                figures.add(&case, "rows_per_mutation", rows / lag.mutations);
                figures.add(&case, "worker_cpu_share", spent.workers / 1e6 / spent.seconds);
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
