//! Two Redis servers: a directory says which tenants live on which, and a fleet for each writes those.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, LoadTenant, Producer, Progress};
use balance_sync_sandbox::{Isolation, RedisServer, Sandbox, SandboxOptions, TenantIsolation, eventually};
use balance_sync_tests::ledger::{comes_in_step, is_settled, scores};
use balance_sync_tests::{Finished, SOON, Worker, WorkerBuilder, options, run};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::api::json;

const DIRECTORY: &str = "directory.toml";

/// A sandbox with a second Redis.
struct Two {
    sandbox: Sandbox,
    second: RedisServer,
    path: String,
}

impl Two {
    /// Three tenants: the first two on `a`, the last one on `b`.
    async fn start() -> Result<Self> {
        let isolation = Isolation::Schema;
        let sandbox = Sandbox::start(SandboxOptions { isolation, ..options(3, 20) }).await?;
        let second = RedisServer::start(sandbox.options().redis.clone()).await?;
        second.mark().await?;
        let path = second.folder().join(DIRECTORY).display().to_string();
        let two = Self { sandbox, second, path };
        two.write(&["tenant-0001", "tenant-0002"], &["tenant-0003"])?;
        Ok(two)
    }

    /// Writes the directory.
    fn write(&self, a: &[&str], b: &[&str]) -> Result<()> {
        let text = format!(
            "[redis.a]\nurl = {:?}\ntenants = {a:?}\n[redis.b]\nurl = {:?}\ntenants = {b:?}\n",
            self.sandbox.redis_url(),
            self.second.worker_url_on(self.second.port())
        );
        // At once, as operators' tools replace a file.
        let beside = format!("{}.new", self.path);
        std::fs::write(&beside, text)?;
        Ok(std::fs::rename(beside, &self.path)?)
    }

    fn worker(&self, name: &str) -> WorkerBuilder {
        Worker::of(&self.sandbox)
            .set("worker.name", &format!("worker-{name}"))
            .set("worker.lease", "2s")
            .set("redis.directory", &self.path)
            .set("redis.name", name)
    }

    /// A ledger that writes to this Redis, from these versions on.
    fn producer(redis: &RedisServer, tenants: &[LoadTenant]) -> Producer {
        Producer::new(&redis.url(), tenants.to_vec())
    }

    fn loads(&self, ids: &[&str]) -> Result<Vec<LoadTenant>> {
        ids.iter().map(|id| Ok(self.sandbox.tenant(id)?.load())).collect()
    }

    /// Runs a command of `balance-sync` with the directory.
    async fn command(&self, words: &[&str]) -> Result<Finished> {
        let config = self.sandbox.config_path().to_string_lossy().into_owned();
        let args: Vec<&str> = words.iter().copied().chain(["--config", &config]).collect();
        run(&args, &[("BALANCE_SYNC__REDIS__DIRECTORY", &self.path)]).await
    }
}

/// Waits until a worker's overview is so.
async fn shows(worker: &Worker, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(SOON, what, || async {
        let overview = json(worker, "/api/v1/overview").await?;
        ensure!(
            holds(&overview),
            "{} {} {}",
            overview["verdict"],
            overview["reasons"],
            overview["redis_directory"]
        );
        Ok(overview)
    })
    .await
}

fn says(overview: &Value, text: &str) -> bool {
    let reasons = overview["reasons"].as_array().into_iter().flatten();
    reasons.filter_map(Value::as_str).any(|reason| reason.contains(text))
}

#[tokio::test]
async fn a_tenant_moves_to_another_redis_under_load_and_nothing_is_lost() -> Result<()> {
    let two = Two::start().await?;
    let (a, b) = (two.worker("a").start().await?, two.worker("b").start().await?);
    let (sandbox, second) = (&two.sandbox, &two.second);
    let mut on_a = Two::producer(sandbox.redis(), &two.loads(&["tenant-0001"])?);
    let mut moving = Two::producer(sandbox.redis(), &two.loads(&["tenant-0002"])?);
    let mut on_b = Two::producer(second, &two.loads(&["tenant-0003"])?);
    for producer in [&mut on_a, &mut moving, &mut on_b] {
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(sandbox, producer).await?;
    }
    for (worker, tenants) in [(&a, 2), (&b, 1)] {
        shows(worker, "two fleets that are well", |overview| {
            overview["verdict"] == "healthy"
                && overview["tenants"]["total"] == tenants
                && overview["redis_directory"]["entries"]
                    .as_array()
                    .is_some_and(|entries| entries.iter().all(|entry| entry["workers"] == 1))
        })
        .await?;
    }

    // The ledger goes on writing to the old Redis for a while after the directory has changed.
    let (progress, over) = (Progress::new(1), CancellationToken::new());
    let load = LoadOptions { rate: 400.0, ..LoadOptions::default() };
    let moved = async {
        let mutated = async |least| {
            eventually(SOON, "mutations", || async {
                ensure!(progress.mutations() > least, "{} so far", progress.mutations());
                anyhow::Ok(())
            })
            .await
        };
        mutated(400).await?;
        two.write(&["tenant-0001"], &["tenant-0003", "tenant-0002"])?;
        a.logs("tenant lives on another Redis now, what is scheduled here is written first").await?;
        b.logs("Redis directory in force").await?;
        let then = progress.mutations();
        mutated(then + 800).await?;
        over.cancel();
        anyhow::Ok(())
    };
    let (report, moved) = tokio::join!(moving.run(&load, &progress, &over), moved);
    moved?;
    ensure!(report?.errors == 0, "the ledger could not write");
    comes_in_step(sandbox, &moving).await?;
    let tenant = sandbox.tenant("tenant-0002")?;
    eventually(SOON, "an empty schedule", || is_settled(sandbox, &tenant)).await?;
    shows(&a, "one tenant left", |overview| overview["tenants"]["total"] == 1).await?;
    shows(&b, "one tenant more", |overview| overview["tenants"]["total"] == 2).await?;

    // From then on it is written by the other side.
    let mut moved = Two::producer(second, moving.tenants());
    for producer in [&mut moved, &mut on_a, &mut on_b] {
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(sandbox, producer).await?;
    }

    // What a ledger writes to the old Redis after that is not touched, and not kept quiet.
    moving.mutate(0, &[3], DEFAULT_TTL).await?;
    let overview = shows(&a, "what was left", |overview| {
        says(overview, "In Redis a are 1 balances scheduled of tenants that live elsewhere")
            && says(overview, "tenant-0002 (1, lives on b)")
    })
    .await?;
    ensure!(overview["verdict"] == "attention", "{overview}");
    ensure!(overview["redis_directory"]["left"][0]["tenant"] == "tenant-0002", "{overview}");
    let left = scores(sandbox, &tenant.keys.schedule()).await?;
    ensure!(left.len() == 1, "{left:?}");
    comes_in_step(sandbox, &moved).await
}

#[tokio::test]
async fn what_no_worker_serves_is_said_by_the_worker_of_the_other_redis_and_by_status() -> Result<()> {
    let two = Two::start().await?;
    let a =
        two.worker("a").expect_error("listed tenant refused").expect_error("Redis directory").start().await?;
    let mut b =
        two.worker("b").expect_error("listed tenant refused").expect_error("Redis directory").start().await?;
    shows(&a, "a fleet that is well", |overview| overview["verdict"] == "healthy").await?;
    eventually(SOON, "two fleets that are well", || async {
        let done = two.command(&["status"]).await?;
        ensure!(
            done.code == Some(0) && done.stdout.starts_with("HEALTHY"),
            "{} {}",
            done.stdout,
            done.stderr
        );
        ensure!(done.stdout.contains("2 tenants, 1 worker") && done.stdout.contains("1 tenants, 1 worker"));
        Ok(())
    })
    .await?;

    // A tenant that the directory doesn't name.
    two.sandbox.add_tenant("stray", TenantIsolation::Schema).await?;
    let nowhere =
        "1 tenant lives on no Redis, and no worker serves it (no entry of the Redis directory names it";
    for worker in [&a, &b] {
        let overview = shows(worker, "a tenant without a Redis", |overview| says(overview, nowhere)).await?;
        ensure!(overview["verdict"] == "degraded" && says(&overview, ": stray."), "{overview}");
    }
    // One that is no directory, and one that would leave a tenant without its Redis, are not taken.
    std::fs::write(&two.path, "[redis.a]\nurl = ")?;
    shows(&a, "a broken directory", |overview| says(overview, "is not TOML: line 2, column 7")).await?;
    two.write(&["tenant-0001", "stray"], &["tenant-0003"])?;
    shows(&a, "a directory with a gap", |overview| {
        says(overview, "it would leave tenants without a Redis: tenant-0002")
            && overview["tenants"]["total"] == 2
    })
    .await?;
    two.write(&["tenant-0001", "tenant-0002", "stray"], &["tenant-0003"])?;
    shows(&a, "all tenants on a Redis", |overview| {
        overview["verdict"] == "healthy" && overview["tenants"]["total"] == 3
    })
    .await?;

    b.kill().await?;
    let none = "Redis b has no live worker: its tenant is not served. Start workers with redis.name = \"b\".";
    let overview = shows(&a, "a Redis without a worker", |overview| {
        let facts = overview["facts"].as_array().into_iter().flatten();
        let servers = facts.filter(|fact| fact["name"] == "redis servers");
        says(overview, none)
            && servers
                .map(|fact| (&fact["well"], &fact["value"]))
                .eq([(&Value::Bool(false), &"a; b: no worker".into())])
    })
    .await?;
    ensure!(overview["verdict"] == "degraded", "{overview}");
    let done = two.command(&["status", "--json"]).await?;
    let all: Value = serde_json::from_str(&done.stdout).with_context(|| done.stderr.clone())?;
    let verdicts: Vec<_> = all["redis"].as_array().into_iter().flatten().collect();
    ensure!(done.code != Some(0) && verdicts.len() == 2, "{all}");
    ensure!(verdicts[0]["name"] == "a" && verdicts[0]["verdict"] == "healthy", "{all}");
    ensure!(verdicts[1]["name"] == "b" && verdicts[1]["verdict"] != "healthy", "{all}");
    ensure!(all["verdict"] == verdicts[1]["verdict"], "{all}");

    let check = two.command(&["check", "--connect", "--json"]).await?;
    for entry in ["a", "b"] {
        ensure!(check.stdout.contains(&format!("what follows is of redis {entry}")), "{}", check.stdout);
    }
    // Other commands are for one Redis, and say so.
    let which = two.command(&["tenants"]).await?;
    ensure!(
        which.code != Some(0) && which.stderr.contains("redis.name"),
        "{} {}",
        which.stdout,
        which.stderr
    );
    ensure!(which.stderr.contains("allowed: a, b"), "{}", which.stderr);
    a.get("/livez").await?;
    two.second.stop_gracefully().await?;
    let gone = "Redis b can't be asked whether its tenant is served";
    let overview = shows(&a, "a Redis that is gone", |overview| says(overview, gone)).await?;
    ensure!(overview["verdict"] == "attention", "{overview}");
    Ok(())
}
