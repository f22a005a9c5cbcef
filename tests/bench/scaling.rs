//! More workers, and longer backlogs.

use anyhow::Result;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadTenant, Producer};

use crate::Options;
use crate::drain::{self, by_workers};
use crate::figures::Figures;
use crate::rig::Rig;
use crate::worker::Worker;

/// Processes that work at the same time.
const WORKERS: [usize; 3] = [1, 2, 4];
/// Members of a schedule, with the names they have in the report.
const BACKLOGS: [(usize, &str); 3] =
    [(10_000, "backlog_10k"), (100_000, "backlog_100k"), (1_000_000, "backlog_1m")];

/// One, two and four workers on one tenant and on a hundred.
pub(crate) async fn workers(options: &Options, figures: &mut Figures) -> Result<()> {
    for (tenants, balances, name) in [(1, 200_000, "drain_1"), (100, 2_000, "drain_100")] {
        let rig = Rig::start(tenants, options.scaled(balances, 20)).await?;
        let mut producer = rig.sandbox.producer();
        by_workers(options, &rig, &mut producer, 1, &[]).await?;
        for _ in 0..options.repeat {
            let mut alone = 0.0;
            for workers in WORKERS {
                let drained = by_workers(options, &rig, &mut producer, workers, &[]).await?;
                if workers == 1 {
                    alone = drained.per_second();
                }
                let case = format!("workers_{workers}");
                eprintln!("  {name}, {workers} workers: {:.0}/s", drained.per_second());
                figures.add(&case, &format!("{name}_balances_per_s"), drained.per_second());
                figures.add(&case, &format!("{name}_speedup"), drained.per_second() / alone);
                figures.add(&case, &format!("{name}_cost_us"), drained.cost());
            }
        }
        rig.stop().await?;
    }
    Ok(())
}

/// Backlogs of growing length over one table: what a balance costs must not depend on how many wait.
pub(crate) async fn backlog(options: &Options, figures: &mut Figures) -> Result<()> {
    let largest = options.scaled(BACKLOGS[2].0, 10_000);
    let rig = Rig::start(1, largest).await?;
    let tenant = rig.sandbox.tenants().remove(0);
    let mut everything = rig.sandbox.producer();
    let mut cost_10k = f64::NAN;
    // The table has a million rows whatever the backlog is: only the backlog differs.
    for (size, case) in BACKLOGS {
        let size = options.scaled(size, 1_000);
        // A small one is over in no time, and measured more often.
        let repeat = if size >= largest { options.repeat.min(2) } else { options.repeat };
        for _ in 0..repeat {
            let versions = everything.tenants()[0].versions[..size].to_vec();
            let part =
                LoadTenant { versions, ..LoadTenant::seeded(&tenant.id, tenant.balances[..size].to_vec()) };
            let mut producer = Producer::new(&rig.sandbox.redis().url(), vec![part]);
            let total = producer.mutate_each(DEFAULT_TTL).await?;
            let worker = Worker::start(options, rig.sandbox.config_path(), &[])?;
            let drained = drain::watch(&rig, &rig.meter(vec![worker.pid()?])?, total).await?;
            worker.stop().await?;
            everything.refresh_versions().await?;
            rig.settle(&everything).await?;
            eprintln!("  {case}: {:.0}/s, {:.1} µs", drained.per_second(), drained.cost());
            drained.record(figures, case);
            figures.add(case, "cost_us", drained.cost());
        }
        let cost = figures.median(&format!("{case}.cost_us")).unwrap_or(f64::NAN);
        if size == options.scaled(BACKLOGS[0].0, 1_000) {
            cost_10k = cost;
        }
        figures.add(case, "cost_ratio_to_10k", cost / cost_10k);
    }
    rig.stop().await
}
