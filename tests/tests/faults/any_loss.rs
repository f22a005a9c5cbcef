//! Servers that lose what they have acknowledged: evicted keys, an empty restart, a lost tail, a clock that goes back, a replica of
//! Redis that lags, an asynchronous failover of Postgres. In a random order, over several workers, with what the ledger writes
//! before and during an outage of Postgres.
//!
//! After each loss three things must hold (G9). Ten seconds after the servers are back the verdict is not HEALTHY while a mutation
//! is neither written, nor scheduled, nor listed. In the end every mutation is written or listed. And `recover` restores exactly
//! what is listed, because the ledger writes all its operations here.
//!
//! `CHAOS_LOSSES` says how many losses (6 unless set, one of each kind), `CHAOS_SEED` which sequence. `make losses` runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{Producer, write_operations};
use balance_sync_sandbox::{RedisOptions, RedisServer, Sandbox, SandboxOptions, SandboxTenant, eventually};
use balance_sync_tests::ledger::{comes_in_step, losses_key, rows, scores};
use balance_sync_tests::{SOON, Worker, options, run};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng, SeedableRng};
use redis::AsyncCommands;
use secrecy::ExposeSecret as _;
use serde_json::Value;

use crate::brisk;

const TENANTS: usize = 3;
const BALANCES: usize = 60;
const WORKERS: usize = 2;
/// From the return of the servers to a verdict that is not HEALTHY.
const WITHIN: Duration = Duration::from_secs(10);
/// Until each mutation is written or listed.
const SETTLED: Duration = Duration::from_secs(90);
/// Longer than all the jumps of the clock together.
const TTL: Duration = Duration::from_secs(100_000);
/// A jump of the clock, in milliseconds: further than any lease or delay.
const JUMP: i64 = -3_600_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    Eviction,
    EmptyRestart,
    LostTail,
    ClockBack,
    LaggingReplica,
    PostgresFailover,
}

const LOSSES: [Loss; 6] = [
    Loss::Eviction,
    Loss::EmptyRestart,
    Loss::LostTail,
    Loss::ClockBack,
    Loss::LaggingReplica,
    Loss::PostgresFailover,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make losses"]
async fn nothing_is_lost_silently() -> Result<()> {
    let setting = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let seed = match setting("CHAOS_SEED") {
        Some(text) => text.parse().with_context(|| format!("CHAOS_SEED = {text}"))?,
        None => rand::rng().random_range(0..1_000_000),
    };
    let losses = match setting("CHAOS_LOSSES") {
        Some(text) => text.parse().with_context(|| format!("CHAOS_LOSSES = {text}"))?,
        None => LOSSES.len(),
    };
    eprintln!("losses: seed {seed}, {losses} of them (CHAOS_SEED={seed} CHAOS_LOSSES={losses} replays it)");
    let mut world = World::start(seed).await?;
    let mut kinds: Vec<Loss> = Vec::new();
    for number in 0..losses {
        if kinds.is_empty() {
            kinds = LOSSES.to_vec();
            kinds.shuffle(&mut world.rng);
        }
        let kind = kinds.pop().unwrap_or(Loss::Eviction);
        world.round(kind).await.with_context(|| format!("loss {number}, {kind:?}, with seed {seed}"))?;
    }
    for worker in &mut world.workers {
        worker.stop().await?;
    }
    let counts = world.counts.iter().fold(String::new(), |mut text, (kind, count)| {
        let _ = write!(text, "{}{kind:?} {count}", if text.is_empty() { "" } else { ", " });
        text
    });
    eprintln!(
        "losses: seed {seed}: {} mutations, {losses} losses [{counts}]: {} mutations written after all, {} listed and restored \
         exactly, 0 silent; the verdict was not healthy after {:.1} s at the latest",
        world.mutations,
        world.written,
        world.restored,
        world.noticed.as_secs_f64()
    );
    Ok(())
}

struct World {
    sandbox: Sandbox,
    tenants: Vec<SandboxTenant>,
    workers: Vec<Worker>,
    producer: Producer,
    rng: SmallRng,
    /// Balances whose newest operation the ledger has not written yet.
    unrecorded: BTreeSet<(usize, usize)>,
    counts: BTreeMap<Loss, u32>,
    mutations: u64,
    written: u64,
    restored: u64,
    noticed: Duration,
}

/// What is kept of a server before it loses what comes later.
enum Before {
    Nothing,
    Log(PathBuf, u64),
    Replica(Box<RedisServer>),
}

impl World {
    async fn start(seed: u64) -> Result<Self> {
        let wanted = options(TENANTS, BALANCES);
        let extra = [
            "appendfsync always",
            "auto-aof-rewrite-percentage 0",
            "maxmemory-policy allkeys-lru",
            "repl-diskless-sync-delay 0",
        ];
        let redis = RedisOptions {
            appendonly: true,
            settable_clock: true,
            extra: extra.map(str::to_owned).to_vec(),
            ..wanted.redis.clone()
        };
        let sandbox = Sandbox::start(SandboxOptions { redis, ..wanted }).await?;
        let mut workers = Vec::new();
        for name in ["one", "two"].into_iter().take(WORKERS) {
            let worker = brisk(&sandbox, name)
                .set("quarantine.trail_grace", "3s")
                .set("supervisor.sample_interval", "1s")
                // Losses are what this is about.
                .expect_error("")
                .start()
                .await?;
            workers.push(worker);
        }
        let (tenants, producer) = (sandbox.tenants(), sandbox.producer());
        Ok(Self {
            sandbox,
            tenants,
            workers,
            producer,
            rng: SmallRng::seed_from_u64(seed),
            unrecorded: BTreeSet::new(),
            counts: BTreeMap::new(),
            mutations: 0,
            written: 0,
            restored: 0,
            noticed: Duration::ZERO,
        })
    }

    async fn round(&mut self, kind: Loss) -> Result<()> {
        eprintln!("losses: {kind:?}");
        *self.counts.entry(kind).or_default() += 1;
        self.mutate(0.8).await?;
        comes_in_step(&self.sandbox, &self.producer).await?;
        self.record().await?;
        self.is_healthy().await?;

        let before = self.prepare(kind).await?;
        // Some of it is written, and none of it is where the former state is kept.
        self.mutate(0.5).await?;
        comes_in_step(&self.sandbox, &self.producer).await?;
        self.record().await?;
        if kind != Loss::PostgresFailover {
            self.sandbox.postgres().stop_immediate().await?;
        }
        self.mutate(0.5).await?;
        // Workers may have looked at what waits, or not.
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..6_000))).await;
        self.lose(kind, before).await?;
        if kind != Loss::PostgresFailover {
            self.sandbox.postgres().start_again().await?;
        }
        let back = Instant::now();
        self.record().await?;
        self.settles(back).await.context("after the loss")?;
        self.recover().await?;
        self.go_on(kind).await.context("after it is recovered")
    }

    /// Mutates a share of the balances, some of them several times.
    async fn mutate(&mut self, share: f64) -> Result<()> {
        for _ in 0..3 {
            for tenant in 0..TENANTS {
                let some: Vec<usize> = (0..BALANCES).filter(|_| self.rng.random_bool(share)).collect();
                self.producer.mutate(tenant, &some, TTL).await?;
                self.mutations += some.len() as u64;
                self.unrecorded.extend(some.into_iter().map(|balance| (tenant, balance)));
            }
        }
        Ok(())
    }

    /// The ledger writes its operations.
    async fn record(&mut self) -> Result<()> {
        let unrecorded = std::mem::take(&mut self.unrecorded);
        for (at, tenant) in self.tenants.iter().enumerate() {
            let versions = &self.producer.tenants()[at].versions;
            let own = unrecorded.iter().filter(|(of, _)| *of == at);
            let operations: Vec<_> =
                own.map(|(_, balance)| (&tenant.balances[*balance], versions[*balance])).collect();
            let pool = self.sandbox.pool(tenant);
            let written = write_operations(&pool, tenant.schema.as_deref(), &operations).await;
            pool.close().await;
            written?;
        }
        Ok(())
    }

    async fn prepare(&self, kind: Loss) -> Result<Before> {
        match kind {
            Loss::LostTail => {
                let file = append_only_file(self.sandbox.redis())?;
                let length = std::fs::metadata(&file)?.len();
                Ok(Before::Log(file, length))
            }
            Loss::LaggingReplica => {
                let options = &self.sandbox.options().redis;
                let extra = follow(options, self.sandbox.redis().port())?;
                let replica =
                    RedisServer::start(RedisOptions { extra, settable_clock: false, ..options.clone() })
                        .await?;
                in_sync(&replica).await?;
                // Cut off: nothing reaches it any more.
                let mut cut = redis::cmd("REPLICAOF");
                cut.arg("127.0.0.1").arg(1).query_async::<()>(&mut replica.connect().await?).await?;
                Ok(Before::Replica(Box::new(replica)))
            }
            Loss::PostgresFailover => {
                self.sandbox.postgres().copy_to_replica().await?;
                Ok(Before::Nothing)
            }
            Loss::Eviction | Loss::EmptyRestart | Loss::ClockBack => Ok(Before::Nothing),
        }
    }

    async fn lose(&mut self, kind: Loss, before: Before) -> Result<()> {
        let redis = self.sandbox.redis();
        match (kind, before) {
            (Loss::Eviction, _) => self.evict().await,
            (Loss::EmptyRestart, _) => {
                redis.kill()?;
                forget(redis)?;
                redis.start_again().await
            }
            (Loss::LostTail, Before::Log(file, length)) => {
                redis.kill()?;
                OpenOptions::new().write(true).open(file)?.set_len(length)?;
                redis.start_again().await
            }
            (Loss::ClockBack, _) => redis.shift_clock(JUMP),
            (Loss::LaggingReplica, Before::Replica(replica)) => {
                redis.kill()?;
                let mut promoted = replica.connect().await?;
                redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async::<()>(&mut promoted).await?;
                // What the promoted one has is served where the workers look.
                forget(redis)?;
                let path = redis.folder().join("redis.conf");
                let config = std::fs::read_to_string(&path)?;
                let lines = follow(&self.sandbox.options().redis, replica.port())?.join("\n");
                std::fs::write(&path, format!("{config}\n{lines}\n"))?;
                redis.start_again().await?;
                in_sync(redis).await?;
                let mut alone = redis::cmd("REPLICAOF");
                alone.arg("NO").arg("ONE").query_async::<()>(&mut redis.connect().await?).await?;
                std::fs::write(&path, config)?;
                Ok(())
            }
            (Loss::PostgresFailover, _) => self.sandbox.postgres().fail_over().await,
            (Loss::LostTail | Loss::LaggingReplica, _) => bail!("nothing was kept"),
        }
    }

    /// Fills Redis until every schedule is gone, and as many values as happen to be.
    async fn evict(&self) -> Result<()> {
        let mut redis = self.sandbox.redis().connect().await?;
        let info: redis::InfoDict = redis::cmd("INFO").arg("memory").query_async(&mut redis).await?;
        let used: u64 = info.get("used_memory").context("used_memory")?;
        let limit = async |redis: &mut redis::aio::MultiplexedConnection, bytes: u64| {
            redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).query_async::<()>(redis).await
        };
        limit(&mut redis, used + (1 << 20)).await?;
        let schedules: Vec<String> = self.tenants.iter().map(|tenant| tenant.keys.schedule()).collect();
        let junk = "x".repeat(10_000);
        let mut round = 0;
        while redis.exists::<_, u64>(&schedules).await? > 0 {
            let mut pipe = redis::pipe();
            for n in 0..50 {
                pipe.set(format!("junk:{round}:{n}"), &junk).ignore();
            }
            pipe.query_async::<()>(&mut redis).await?;
            round += 1;
            ensure!(round < 5_000, "the schedules stay");
        }
        limit(&mut redis, 0).await?;
        let junk: Vec<String> = redis.keys("junk:*").await?;
        Ok(redis.unlink(junk).await?)
    }

    async fn overview(&self) -> Result<Value> {
        let config = self.sandbox.config_path().to_str().context("a path of text")?;
        let done = run(&["status", "--config", config, "--json"], &[]).await?;
        serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))
    }

    async fn is_healthy(&self) -> Result<()> {
        eventually(SOON, "the verdict healthy", || async {
            let overview = self.overview().await?;
            // A clock that went back is shown for some minutes.
            let is_of_clock = |reason: &Value| {
                reason.as_str().is_some_and(|reason| reason.starts_with("Redis's clock went back"))
            };
            let reasons = overview["reasons"].as_array().context("reasons")?;
            let is_well =
                overview["verdict"] == "attention" && !reasons.is_empty() && reasons.iter().all(is_of_clock);
            ensure!(overview["verdict"] == "healthy" || is_well, "{overview}");
            Ok(())
        })
        .await
    }

    /// Balances whose rows lack mutations: those that are listed, those that are scheduled, and those of which nothing is known.
    async fn missing(&self) -> Result<[BTreeSet<String>; 3]> {
        let mut found = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
        let mut redis = self.sandbox.redis().connect().await?;
        for (tenant, load) in self.tenants.iter().zip(self.producer.tenants()) {
            // In this order: what leaves the schedule meanwhile is written or listed.
            let scheduled = scores(&self.sandbox, &tenant.keys.schedule()).await?;
            let listed: BTreeSet<String> = redis.hkeys(losses_key(tenant)).await?;
            let rows = rows(&self.sandbox, tenant).await?;
            for (balance, version) in load.balances.iter().zip(&load.versions) {
                let row = rows.get(&balance.id).context("a row")?;
                ensure!(row.version <= *version, "{}: version {} of {version}", balance.alias, row.version);
                ensure!(row.amounts == balance.amounts(row.version), "{}: {row:?}", balance.alias);
                let member = tenant.keys.member(balance);
                let at = match row.version == *version {
                    true => continue,
                    false if listed.contains(&member) => 0,
                    false if scheduled.contains_key(&member) => 1,
                    false => 2,
                };
                found[at].insert(member);
            }
        }
        Ok(found)
    }

    /// Waits until each mutation is written or listed, and looks meanwhile that the verdict tells of what is neither.
    async fn settles(&mut self, back: Instant) -> Result<()> {
        let [_, _, lost] = self.missing().await?;
        let mut shown = None;
        loop {
            let asked = back.elapsed();
            let [listed, scheduled, unknown] = self.missing().await?;
            let overview = self.overview().await?;
            let is_open = !listed.is_empty() || !unknown.is_empty();
            let is_green = overview["verdict"] == "healthy";
            if !is_green {
                shown.get_or_insert(back.elapsed());
            }
            let silent = is_open && is_green && asked > WITHIN;
            ensure!(!silent, "silent after {asked:?}: {unknown:?} and {listed:?} listed; {overview}");
            if scheduled.is_empty() && unknown.is_empty() && (listed.is_empty() || !is_green) {
                self.written += lost.difference(&listed).count() as u64;
                break;
            }
            ensure!(
                asked < SETTLED,
                "{} unknown, {} scheduled after {asked:?}: {overview}",
                unknown.len(),
                scheduled.len()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // What is written again at once is not shown.
        if let (false, Some(shown)) = (lost.is_empty(), shown) {
            self.noticed = self.noticed.max(shown);
        }
        Ok(())
    }

    /// What is listed is restored from the operations: exactly, and all of it.
    async fn recover(&mut self) -> Result<()> {
        let [listed, _, _] = self.missing().await?;
        if listed.is_empty() {
            return Ok(());
        }
        // An older value is taken out of Redis first, as the advice says.
        let mut redis = self.sandbox.redis().connect().await?;
        redis.del::<_, ()>(listed.iter().collect::<Vec<_>>()).await?;
        let config = self.sandbox.config_path().to_str().context("a path of text")?;
        let args = ["recover", "--config", config, "--json", "--apply", "--note", "chaos"];
        let done = run(&args, &[]).await?;
        let summary: Value = serde_json::from_str(done.stdout.lines().last().context("a summary")?)?;
        let [still, scheduled, unknown] = self.missing().await?;
        ensure!(
            still.is_empty() && scheduled.is_empty() && unknown.is_empty(),
            "{still:?}, {unknown:?} and {scheduled:?} are not restored: {summary}, {}",
            done.stderr
        );
        self.restored += listed.len() as u64;
        Ok(())
    }

    /// The ledger loads all its balances from their rows, and an operator closes what is left open.
    async fn go_on(&mut self, kind: Loss) -> Result<()> {
        let mut redis = self.sandbox.redis().connect().await?;
        let config = self.sandbox.config_path().to_str().context("a path of text")?.to_owned();
        for (at, tenant) in self.tenants.iter().enumerate() {
            let load = &self.producer.tenants()[at];
            let mut pipe = redis::pipe();
            for (balance, version) in load.balances.iter().zip(&load.versions) {
                pipe.set_ex(tenant.keys.member(balance), balance.json(*version), TTL.as_secs()).ignore();
            }
            pipe.query_async::<()>(&mut redis).await?;
            // The trail that a failover of Postgres has lost as well.
            if kind == Loss::PostgresFailover {
                self.unrecorded.extend((0..BALANCES).map(|balance| (at, balance)));
            }
            run(&["tenants", "acknowledge", &tenant.id, "--note", "a test", "--config", &config], &[])
                .await?;
        }
        self.record().await?;
        if kind == Loss::ClockBack {
            // Until it is right again, the verdict says so.
            self.sandbox.redis().shift_clock(0)?;
        }
        run(&["quarantine", "drop", "--all", "--config", &config], &[]).await?;
        // Its connection broke with the server.
        let until = Instant::now() + SOON;
        while let Err(error) = self.producer.refresh_versions().await {
            ensure!(Instant::now() < until, "the producer has no connection: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

/// The lines by which a server follows the one at this port.
fn follow(options: &RedisOptions, port: u16) -> Result<Vec<String>> {
    let password = options.password.as_ref().context("it has a password")?.expose_secret();
    Ok(vec![format!("replicaof 127.0.0.1 {port}"), format!("masterauth {password}")])
}

async fn in_sync(replica: &RedisServer) -> Result<()> {
    eventually(SOON, "a replica in sync", || async {
        let mut connection = replica.connect().await?;
        let info: String = redis::cmd("INFO").arg("replication").query_async(&mut connection).await?;
        ensure!(info.contains("master_link_status:up"), "{info}");
        Ok(())
    })
    .await
}

/// The file that commands are appended to.
fn append_only_file(redis: &RedisServer) -> Result<PathBuf> {
    let folder = redis.folder().join("appendonlydir");
    if !folder.exists() {
        // Redis before 7.0.
        return Ok(redis.folder().join("appendonly.aof"));
    }
    let mut found = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
    found.find(|path| path.to_string_lossy().ends_with(".incr.aof")).context("no append-only file")
}

/// Removes what a server that has ended would load.
fn forget(redis: &RedisServer) -> Result<()> {
    for name in ["appendonlydir", "appendonly.aof", "dump.rdb"] {
        let path = redis.folder().join(name);
        match path.is_dir() {
            true => std::fs::remove_dir_all(&path)?,
            false if path.exists() => std::fs::remove_file(&path)?,
            false => {}
        }
    }
    Ok(())
}
