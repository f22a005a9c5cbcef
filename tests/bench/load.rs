//! A steady load whose lag is measured exactly: when a mutation was written in Redis, and when its row was committed.
//!
//! Both times are of this machine's clock. Of a sample of the balances every mutation's time is kept; their rows are read
//! again and again, each with the time of its commit as Postgres keeps it (`track_commit_timestamp`). A mutation has
//! arrived with the first row that has its version or a later one.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Mutation, SeededBalance, Written, write_mutations};
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table};
use futures::future::{join, try_join_all};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redis::aio::MultiplexedConnection;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::figures::quantile;

/// Between two bursts of mutations.
const TICK: Duration = Duration::from_millis(5);
/// Mutations per call: their time is that of the call, some 2 ms of Redis's time.
const PER_CALL: usize = 200;
/// [`Pattern::look_every`] where few tenants are watched.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same for hot balances, which every flush writes.
const LOOK_EVERY_HOT: Duration = Duration::from_millis(20);
/// The first mutations are not counted: connections are opened and statements prepared.
const WARM_UP_US: f64 = 1e6;
/// A mutation that has not arrived by then counts as lost.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);

/// How to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pattern {
    /// Mutations per second over all tenants.
    pub(crate) rate: f64,
    /// For how long, in seconds.
    pub(crate) seconds: f64,
    /// The share of the mutations that goes to one in a hundred balances.
    pub(crate) hot_share: f64,
    /// Of this many balances one is watched, hot or not.
    pub(crate) sample_one_in: usize,
    /// Of this many tenants the balances of one are watched.
    pub(crate) tenants_one_in: usize,
    /// Between two looks at the sampled rows, which are rarely written: no write is overlooked.
    pub(crate) look_every: Duration,
}

struct Target {
    tenant: SandboxTenant,
    schedule: String,
    members: Vec<String>,
    balances: std::sync::Arc<[SeededBalance]>,
    versions: Vec<i64>,
    pool: PgPool,
}

/// The tenants that are written for.
pub(crate) struct Load {
    redis: MultiplexedConnection,
    targets: Vec<Target>,
    rng: SmallRng,
}

/// What was found.
#[derive(Debug, Clone)]
pub(crate) struct Lag {
    /// Mutations written.
    pub(crate) mutations: f64,
    /// Of these, per second.
    pub(crate) rate: f64,
    /// Milliseconds of each watched mutation.
    pub(crate) millis: Vec<f64>,
}

impl Lag {
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        quantile(&self.millis, part)
    }
}

/// A watched mutation: balance, version, and when, in microseconds since 1970.
struct Sent {
    target: usize,
    balance: usize,
    version: i64,
    at: f64,
}

/// Versions of a balance as they were seen, with the time of their commit.
type Seen = HashMap<Uuid, Vec<(i64, f64)>>;

impl Load {
    /// A load for these tenants of the sandbox, for which no other process writes.
    pub(crate) async fn new(sandbox: &Sandbox, tenants: Vec<SandboxTenant>) -> Result<Self> {
        let targets = tenants.into_iter().map(|tenant| Target {
            schedule: tenant.keys.schedule(),
            members: tenant.balances.iter().map(|balance| tenant.keys.member(balance)).collect(),
            balances: std::sync::Arc::clone(&tenant.balances),
            versions: vec![balance_sync_sandbox::ledger::SEED_VERSION; tenant.balances.len()],
            pool: sandbox.pool(&tenant),
            tenant,
        });
        let targets = targets.collect();
        Ok(Self { redis: sandbox.redis().connect().await?, targets, rng: SmallRng::seed_from_u64(1) })
    }

    /// Writes, waits until everything has arrived, and says how long it took.
    pub(crate) async fn run(&mut self, pattern: Pattern) -> Result<Lag> {
        let (stop, stopped) = watch::channel(false);
        let looking: Vec<_> = self
            .targets
            .iter()
            .step_by(pattern.tenants_one_in)
            .flat_map(|target| {
                let hot = hot_balances(target.balances.len());
                let sampled = (0..target.balances.len()).filter(|number| number % pattern.sample_one_in == 0);
                let (hot, cold): (Vec<usize>, Vec<usize>) =
                    sampled.partition(|number| pattern.hot_share > 0.0 && *number < hot);
                let ids = |numbers: Vec<usize>| -> Vec<Uuid> {
                    numbers.into_iter().map(|number| target.balances[number].id).collect()
                };
                let table = balance_table(target.tenant.schema.as_deref());
                [(ids(hot), LOOK_EVERY_HOT), (ids(cold), pattern.look_every)]
                    .into_iter()
                    .filter(|(ids, _)| !ids.is_empty())
                    .map(|(ids, every)| {
                        tokio::spawn(look(target.pool.clone(), table.clone(), ids, every, stopped.clone()))
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        let begun = Instant::now();
        let (mutations, sent) = self.write(pattern).await?;
        let rate = mutations / begun.elapsed().as_secs_f64();
        let arrived = self.all_arrive(pattern.look_every).await;
        let _ = stop.send(true);
        let mut seen = Seen::new();
        for part in try_join_all(looking).await? {
            seen.extend(part?);
        }
        arrived?;
        let first = sent.first().map_or(0.0, |sent| sent.at);
        let mut millis = Vec::with_capacity(sent.len());
        for sent in sent.iter().filter(|sent| sent.at >= first + WARM_UP_US) {
            let balance = &self.targets[sent.target].balances[sent.balance];
            let versions = seen.get(&balance.id).map_or(&[] as &[_], Vec::as_slice);
            let arrived = versions.iter().find(|(version, _)| *version >= sent.version);
            let (_, at) = arrived.with_context(|| {
                format!("version {} of balance {} never arrived", sent.version, balance.id)
            })?;
            millis.push((at - sent.at) / 1000.0);
        }
        ensure!(!millis.is_empty(), "no mutation was watched");
        Ok(Lag { mutations, rate, millis })
    }

    async fn write(&mut self, pattern: Pattern) -> Result<(f64, Vec<Sent>)> {
        let begun = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut issued, mut sent) = (0.0, Vec::new());
        while begun.elapsed().as_secs_f64() < pattern.seconds {
            ticks.tick().await;
            let due = (pattern.rate * begun.elapsed().as_secs_f64().min(pattern.seconds)).floor() - issued;
            issued += due;
            let mut choices: Vec<(usize, usize)> = (0..due as usize).map(|_| self.choose(pattern)).collect();
            // Neighbours of one schedule are one command.
            choices.sort_unstable();
            for page in choices.chunks(PER_CALL) {
                self.write_page(page, pattern, &mut sent).await?;
            }
        }
        Ok((issued, sent))
    }

    fn choose(&mut self, pattern: Pattern) -> (usize, usize) {
        let target = self.rng.random_range(0..self.targets.len());
        let balances = self.targets[target].balances.len();
        let hot = pattern.hot_share > 0.0 && self.rng.random_bool(pattern.hot_share);
        (target, self.rng.random_range(0..if hot { hot_balances(balances) } else { balances }))
    }

    async fn write_page(
        &mut self,
        page: &[(usize, usize)],
        pattern: Pattern,
        sent: &mut Vec<Sent>,
    ) -> Result<()> {
        let mut mutations = Vec::with_capacity(page.len());
        let watched_from = sent.len();
        for (target, balance) in page {
            let tenant = &mut self.targets[*target];
            let version = &mut tenant.versions[*balance];
            *version += 1;
            mutations.push(Mutation {
                schedule: tenant.schedule.clone(),
                member: tenant.members[*balance].clone(),
                base_version: *version - 1,
                json: tenant.balances[*balance].json(*version),
            });
            if target % pattern.tenants_one_in == 0 && balance % pattern.sample_one_in == 0 {
                sent.push(Sent { target: *target, balance: *balance, version: *version, at: 0.0 });
            }
        }
        // On one connection and in this order: the clock is read right before the script.
        let (mut clock, mut writer) = (self.redis.clone(), self.redis.clone());
        let time = redis::cmd("TIME");
        let (time, written) = join(
            time.query_async::<(f64, f64)>(&mut clock),
            write_mutations(&mut writer, &mutations, DEFAULT_TTL),
        )
        .await;
        let (seconds, micros) = time?;
        ensure!(
            written?.iter().all(|written| *written == Written::Yes),
            "another process writes these balances"
        );
        sent[watched_from..].iter_mut().for_each(|sent| sent.at = seconds * 1e6 + micros);
        Ok(())
    }

    /// Waits for empty schedules, and for one more look at the rows.
    async fn all_arrive(&self, look_every: Duration) -> Result<()> {
        let mut redis = self.redis.clone();
        let begun = Instant::now();
        loop {
            let mut pipe = redis::pipe();
            self.targets.iter().for_each(|target| {
                pipe.zcard(&target.schedule);
            });
            let left: Vec<u64> = pipe.query_async(&mut redis).await?;
            let left: u64 = left.iter().sum();
            if left == 0 {
                tokio::time::sleep(2 * look_every).await;
                return Ok(());
            }
            ensure!(
                begun.elapsed() < ARRIVES_WITHIN,
                "{left} members are still scheduled after {ARRIVES_WITHIN:?}"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Of this many balances, how many are hot: the first ones.
fn hot_balances(balances: usize) -> usize {
    balances.div_ceil(100)
}

/// Reads these rows again and again, and once more after the end.
async fn look(
    pool: PgPool,
    table: String,
    ids: Vec<Uuid>,
    every: Duration,
    stopped: watch::Receiver<bool>,
) -> Result<Seen> {
    let sql = format!(
        "SELECT id, version, (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1e6)::float8 FROM {table}
         WHERE id = ANY($1)"
    );
    let mut seen = Seen::new();
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let last = *stopped.borrow();
        let rows: Vec<(Uuid, i64, Option<f64>)> =
            sqlx::query_as(AssertSqlSafe(sql.clone())).bind(&ids).fetch_all(&pool).await?;
        for (id, version, committed) in rows {
            let versions = seen.entry(id).or_default();
            if let Some(committed) = committed
                && versions.last().is_none_or(|(known, _)| *known < version)
            {
                versions.push((version, committed));
            }
        }
        if last {
            return Ok(seen);
        }
        ticks.tick().await;
    }
}
