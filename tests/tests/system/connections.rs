//! One budget of connections for the whole fleet: never exceeded on the server, whatever becomes of the workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::{LoadOptions, Progress};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::ledger::all_settled;
use balance_sync_tests::{SOON, Worker, options};
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

const TENANTS: usize = 60;
const BUDGET: u32 = 10;
const HELD: &str = "balance_sync_postgres_fleet_connections_held";
const HELD_BY_ALL: &str = "balance_sync_postgres_fleet_connections_held_by_all";

/// Counts what the server counts, over and over.
struct Sampler {
    most: Arc<AtomicI64>,
    samples: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Sampler {
    async fn start(sandbox: &Sandbox) -> Result<Self> {
        let mut connection = sandbox.postgres().connect("postgres").await?;
        let (most, samples, over) =
            (Arc::new(AtomicI64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (highest, taken, stop) = (Arc::clone(&most), Arc::clone(&samples), Arc::clone(&over));
        let task = tokio::spawn(async move {
            while !stop.load(Relaxed) {
                // All but those of the test, which is the superuser; also those that are logging in.
                let open: i64 = sqlx::query_scalar(
                    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                     AND usename IS DISTINCT FROM current_user",
                )
                .fetch_one(&mut connection)
                .await?;
                highest.fetch_max(open, Relaxed);
                taken.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            Ok(())
        });
        Ok(Self { most, samples, over, task })
    }

    async fn end(self) -> Result<(i64, u64)> {
        self.over.store(true, Relaxed);
        self.task.await??;
        Ok((self.most.load(Relaxed), self.samples.load(Relaxed)))
    }
}

/// Each of these writes.
async fn all_write(workers: &[Worker]) -> Result<()> {
    let mut before = Vec::new();
    for worker in workers {
        before.push(worker.metric("balance_synced", &[]).await?);
    }
    eventually(SOON, "all workers write", || async {
        for (worker, before) in workers.iter().zip(&before) {
            let now = worker.metric("balance_synced", &[]).await?;
            ensure!(now > *before, "worker {} has written {now}", worker.pid());
        }
        Ok(())
    })
    .await
}

/// All of the budget is held by these.
async fn all_held_by(workers: &[&Worker]) -> Result<()> {
    eventually(SOON, "all of the budget is held", || async {
        let mut held = 0.0;
        for worker in workers {
            held += worker.metric(HELD, &[]).await?;
        }
        ensure!(held >= f64::from(BUDGET), "{held} of {BUDGET}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_keeps_to_its_budget_while_workers_come_go_freeze_and_die() -> Result<()> {
    let wanted = SandboxOptions { isolation: Isolation::Schema, ..options(TENANTS, 4) };
    let sandbox = Sandbox::start(wanted).await?;
    let start = |name: usize| {
        Worker::of(&sandbox)
            .set("worker.name", &format!("worker-{name}"))
            .set("worker.lease", "3s")
            .set("postgres.fleet_connections_per_server", &BUDGET.to_string())
            .start()
    };
    let sampler = Sampler::start(&sandbox).await?;
    let mut producer = sandbox.producer();
    let (cancel, progress) = (CancellationToken::new(), Progress::new(TENANTS));
    let load = LoadOptions { rate: 300.0, ..LoadOptions::default() };
    let stages = async {
        let ended = async {
            let mut workers = vec![start(0).await?];
            all_write(&workers).await?;
            all_held_by(&[&workers[0]]).await?;

            for name in 1..4 {
                workers.push(start(name).await?);
            }
            all_write(&workers).await?;
            // One dies: what it held goes to the others.
            workers.remove(1).kill().await?;
            all_held_by(&workers.iter().collect::<Vec<_>>()).await?;

            for name in 4..9 {
                workers.push(start(name).await?);
            }
            assert_eq!(workers.len(), 8);
            all_write(&workers).await?;
            for worker in &workers {
                assert!(worker.metric(HELD, &[]).await? <= 3.0, "no more than a fair share");
                assert!(worker.metric(HELD_BY_ALL, &[]).await? <= f64::from(BUDGET));
            }
            // One is frozen until the others have what it held, and goes on.
            let mut frozen = workers.remove(2);
            frozen.signal(Signal::SIGSTOP)?;
            all_held_by(&workers.iter().collect::<Vec<_>>()).await?;
            frozen.signal(Signal::SIGCONT)?;
            workers.push(frozen);
            all_write(&workers).await?;

            while workers.len() > 2 {
                assert_eq!(workers.remove(0).stop().await?.code, Some(0));
            }
            all_write(&workers).await?;
            all_held_by(&workers.iter().collect::<Vec<_>>()).await?;
            anyhow::Ok(workers)
        }
        .await;
        cancel.cancel();
        ended
    };
    let (loaded, workers) = tokio::join!(producer.run(&load, &progress, &cancel), stages);
    let mut workers = workers?;
    assert_eq!(loaded?.errors, 0);
    all_settled(&sandbox).await?;
    for worker in &mut workers {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    let (most, samples) = sampler.end().await?;
    assert!(most <= i64::from(BUDGET), "{most} connections at once, in {samples} samples");
    assert_eq!(most, i64::from(BUDGET), "the budget is there to be used");
    assert!(samples > 500, "{samples}");
    Ok(())
}
