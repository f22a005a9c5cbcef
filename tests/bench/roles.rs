//! Many more tenants at work than connections, each with a role of its own: 2,000 schemas, 1,000 mutations per second.
//!
//! A connection belongs to its role, so nearly every write needs a login of its own. What is measured is whether the worker gets
//! its rows written all the same, late at most by a few rounds of logins, and whether it calls a tenant degraded because of it.

use std::time::{Duration, Instant};

use anyhow::Result;
use balance_sync_sandbox::Isolation;
use tokio::sync::watch;

use crate::Options;
use crate::figures::Figures;
use crate::load::{Load, Pattern};
use crate::rig::Rig;
use crate::worker::Worker;

const CASE: &str = "roles_2000";
const TENANTS: usize = 2_000;
const BALANCES: usize = 5;
const RATE: f64 = 1_000.0;
/// Rows a worker has written, by its own count.
const ROWS: &str = "balance_synced";
/// Each tenant's rows are read by a connection of their own: some are enough.
const WATCHED_ONE_IN: usize = 50;
/// A balance is written every ten seconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(options: &Options, figures: &mut Figures) -> Result<()> {
    let tenants = options.scaled(TENANTS, 100);
    let rig = Rig::isolated(tenants, BALANCES, Isolation::Schema).await?;
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
    let pattern = Pattern {
        rate: RATE * options.scale.min(1.0),
        seconds: options.seconds(60.0),
        hot_share: 0.0,
        sample_one_in: 1,
        tenants_one_in: WATCHED_ONE_IN,
        look_every: LOOK_EVERY,
    };
    for _ in 0..options.repeat {
        let meter = rig.meter(vec![worker.pid()?])?;
        let usage = meter.read()?;
        let (stop, stopped) = watch::channel(false);
        let (lag, seen) = tokio::join!(
            async {
                let lag = load.run(pattern).await;
                let _ = stop.send(true);
                lag
            },
            watch_worker(rig, worker, pattern.seconds, stopped)
        );
        let (lag, seen) = (lag?, seen?);
        let spent = meter.read()?.since(&usage);
        eprintln!(
            "  {:.0} mutations/s, {:.0} rows/s, p50 {:.0} ms, p99 {:.0} ms ({} watched), at most {:.0} degraded, {:.0} logins/s",
            lag.rate,
            seen.rows_per_s,
            lag.quantile(0.5),
            lag.quantile(0.99),
            lag.millis.len(),
            seen.degraded,
            seen.logins_per_s
        );
        for (name, value) in [
            ("mutations_per_s", lag.rate),
            ("rows_per_s", seen.rows_per_s),
            ("p50_ms", lag.quantile(0.5)),
            ("p99_ms", lag.quantile(0.99)),
            ("max_ms", lag.quantile(1.0)),
            ("most_degraded", seen.degraded),
            ("logins_per_s", seen.logins_per_s),
            ("worker_cpu_share", spent.workers / 1e6 / spent.seconds),
            ("postgres_cpu_share", spent.postgres / 1e6 / spent.seconds),
        ] {
            figures.add(CASE, name, value);
        }
    }
    Ok(())
}

/// What the worker reported during the load.
struct Seen {
    rows_per_s: f64,
    logins_per_s: f64,
    /// The most tenants that were degraded at once.
    degraded: f64,
}

/// Looks at the worker once per second; rows and logins are counted as long as the load lasts, degraded tenants to the end.
async fn watch_worker(
    rig: &Rig,
    worker: &Worker,
    seconds: f64,
    stopped: watch::Receiver<bool>,
) -> Result<Seen> {
    let begun = Instant::now();
    let (rows, logins) = (worker.metrics().await?.sum(ROWS, &[]), rig.sessions().await?);
    let (mut degraded, mut during) = (0.0_f64, None);
    loop {
        let now = worker.metrics().await?;
        degraded = degraded.max(now.sum("balance_sync_tenants", &[("state", "degraded")]));
        let passed = begun.elapsed().as_secs_f64();
        let ended = *stopped.borrow();
        if during.is_none() && (passed >= seconds || ended) {
            let rows_per_s = (now.sum(ROWS, &[]) - rows) / passed;
            during = Some((rows_per_s, (rig.sessions().await? - logins) / passed));
        }
        if let (Some((rows_per_s, logins_per_s)), true) = (during, ended) {
            return Ok(Seen { rows_per_s, logins_per_s, degraded });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
