//! Scaled-down days next to the ledger's own worker: unparked, of two releases, killed with its locks left behind, parked, unparked
//! again; with workers of ours killed meanwhile. Nothing is lost by us, and what it drops is found, named and written.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{Format, LoadOptions, Progress, Round};
use balance_sync_sandbox::{Sandbox, SandboxTenant};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{Audit, LedgerWorker, Worker};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio_util::sync::CancellationToken;

/// An hour of the day.
const HOUR: Duration = Duration::from_millis(1200);

/// What the ledger's pods do for some hours.
#[derive(Debug, Clone, Copy)]
enum Pods {
    /// One of the latest release, with its worker unparked.
    New,
    /// One of 4.0 next to writers of 4.1.
    Old,
    /// Both.
    Both,
    /// Both, with the environment that parks their workers.
    Parked,
}

const DAY: [(Pods, u32); 7] = [
    (Pods::New, 5),
    (Pods::Both, 4),
    (Pods::Parked, 3),
    (Pods::Old, 4),
    (Pods::Parked, 2),
    (Pods::Both, 3),
    (Pods::Parked, 3),
];

async fn ledger_worker(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<LedgerWorker> {
    let mut ledger = LedgerWorker::new(tenant, sandbox.redis().connect().await?, sandbox.pool(tenant));
    // Ten minutes of such a day, and no shorter than a flush takes here.
    ledger.lock_life = Duration::from_secs(3);
    Ok(ledger)
}

/// The workers of the pods at a tenant.
async fn pods(sandbox: &Sandbox, tenant: &SandboxTenant, kind: Pods) -> Result<Vec<LedgerWorker>> {
    let (new, old) = (ledger_worker(sandbox, tenant).await?, ledger_worker(sandbox, tenant).await?.old());
    Ok(match kind {
        Pods::New => vec![new],
        Pods::Old => vec![old],
        Pods::Both => vec![new, old],
        Pods::Parked => vec![new.parked(), old.parked()],
    })
}

fn ours(sandbox: &Sandbox, name: &str) -> balance_sync_tests::WorkerBuilder {
    Worker::of(sandbox)
        .set("worker.name", name)
        .set("claim.mode", "auto")
        .set("claim.quiet", "3s")
        .set("claim.ttl", "3s")
        .set("postgres.connect_timeout", "1s")
        .set("postgres.acquire_timeout", "1s")
        .set("postgres.statement_timeout", "1s")
        .set("collector.flush_deadline", "2s")
        .set("claim.protect_floor", "30s")
        .expect_error("redis has lost data of a tenant")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: make days"]
async fn a_day_next_to_the_ledgers_own_worker_loses_nothing() -> Result<()> {
    let setting = std::env::var("CHAOS_SEED").ok().filter(|text| !text.is_empty());
    let seed: u64 = match setting {
        Some(text) => text.parse().with_context(|| format!("CHAOS_SEED = {text}"))?,
        None => rand::rng().random_range(0..1_000_000),
    };
    eprintln!("days: seed {seed} (CHAOS_SEED={seed} replays its choices)");
    let mut rng = SmallRng::seed_from_u64(seed);
    let sandbox = balance_sync_tests::sandbox(2, 150).await?;
    let tenants = sandbox.tenants();
    for tenant in &tenants {
        Audit::begin(&sandbox, tenant).await?;
    }
    let mut workers = [ours(&sandbox, "one").start().await?, ours(&sandbox, "two").start().await?];
    let mut producer = sandbox.producer().in_format(Format::Mixed);
    let (progress, over) = (Progress::new(2), CancellationToken::new());
    let load = LoadOptions { rate: 240.0, duration: None, hot_key_share: 0.3, ..LoadOptions::default() };
    let mut by_ledger = Round::default();
    let day = async {
        let played = async {
            for (kind, hours) in DAY {
                let stop = CancellationToken::new();
                let mut all = Vec::new();
                for tenant in &tenants {
                    all.extend(pods(&sandbox, tenant, kind).await?);
                }
                let running = futures::future::join_all(all.iter_mut().map(|pod| pod.run(&stop)));
                let (killed, at) = (rng.random_range(0..hours), rng.random_range(0..workers.len()));
                // Half of the pods are killed, with their locks and what they hold.
                let is_killed = rng.random_bool(0.5);
                let passing = async {
                    for hour in 0..hours {
                        tokio::time::sleep(HOUR).await;
                        // One of ours is killed in some hour of each part of the day.
                        if hour == killed {
                            workers[at].kill().await?;
                            workers[at] = ours(&sandbox, ["one", "two"][at]).start().await?;
                        }
                    }
                    anyhow::Ok(())
                };
                tokio::pin!(running);
                tokio::select! {
                    rounds = &mut running => rounds.into_iter().for_each(|round| by_ledger += round),
                    passed = passing => {
                        passed?;
                        if !is_killed {
                            stop.cancel();
                            (&mut running).await.into_iter().for_each(|round| by_ledger += round);
                        }
                    }
                }
            }
            anyhow::Ok(())
        };
        let played = played.await;
        over.cancel();
        played
    };
    let (report, day) = tokio::join!(producer.run(&load, &progress, &over), day);
    day?;
    let report = report?;
    ensure!(report.errors == 0, "{report:?}");
    comes_in_step(&sandbox, &producer).await?;
    // What is open about members that it has removed is closed by itself; nothing is in quarantine, and nothing listed as lost.
    all_settled(&sandbox).await?;
    let mut found = 0.0;
    for worker in &workers {
        found += worker.metric("balance_sync_ledger_worker_dropped_total", &[]).await?;
    }
    for tenant in &tenants {
        let pool = sandbox.pool(tenant);
        let audit = Audit::read(&pool, tenant).await?;
        pool.close().await;
        ensure!(audit.not_forward == 0, "{audit:?}");
    }
    eprintln!(
        "days: seed {seed}: {} mutations, 0 lost; the ledger's own workers wrote {} rows and removed {} balances unwritten; {found} of \
         them were found since the workers' last start and scheduled again, the others were mutated again or claimed before",
        report.mutations, by_ledger.written, by_ledger.removed_unwritten
    );
    for worker in &mut workers {
        worker.stop().await?;
    }
    Ok(())
}
