//! Load: mutations at a steady rate, over many tenants, through whatever happens to Redis.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::future::join_all;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::balances::{SEED_VERSION, SeededBalance, TenantKeys};
use super::formats::Format;
use super::script::{self, DEFAULT_TTL, Mutation, Written, write_mutations};

/// Between two looks at how many mutations are due.
const TICK: Duration = Duration::from_millis(5);
/// Mutations per call of the script: some 2 ms of Redis's time.
const PER_CALL: usize = 200;
/// Calls under way at once.
const CALLS_AT_ONCE: usize = 10;
/// Keys per `MGET` when versions are read.
const PER_READ: usize = 500;
/// How long an answer may take before the connection is given up. A frozen server must be noticed, a busy
/// one must not be abandoned.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Between two attempts to connect.
const RECONNECT_EVERY: Duration = Duration::from_millis(50);
/// A producer that lags behind catches up at most this much; the rest is counted as skipped.
const CATCH_UP: Duration = Duration::from_secs(1);

/// A tenant to write for.
#[derive(Debug, Clone)]
pub struct LoadTenant {
    /// Its id, for the counters.
    pub id: String,
    /// Its keys in Redis.
    pub keys: TenantKeys,
    /// Its balances.
    pub balances: Vec<SeededBalance>,
    /// The version of each balance in PostgreSQL: where to go on from if Redis does not hold it.
    pub versions: Vec<i64>,
}

impl LoadTenant {
    /// A tenant whose rows are as they were seeded.
    pub fn seeded(id: &str, balances: Vec<SeededBalance>) -> Self {
        let versions = vec![SEED_VERSION; balances.len()];
        Self { id: id.to_owned(), keys: TenantKeys::tenant(id), balances, versions }
    }
}

/// How to write.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Mutations per second, over all tenants; above 0.
    pub rate: f64,
    /// For how long; `None` is until cancelled.
    pub duration: Option<Duration>,
    /// Which share of the mutations, 0 to 1, goes to 1 % of each tenant's balances (at least one).
    pub hot_key_share: f64,
    /// The same seed chooses the same balances.
    pub seed: u64,
    /// Time to live of the values, in whole seconds.
    pub ttl: Duration,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { rate: 1_000.0, duration: None, hot_key_share: 0.0, seed: 1, ttl: DEFAULT_TTL }
    }
}

/// What one tenant has got so far.
#[derive(Debug, Default)]
pub struct TenantProgress {
    /// Mutations written and scheduled.
    pub mutations: AtomicU64,
    /// Mutations of which it is not known whether they were written, or that could not be.
    pub errors: AtomicU64,
    /// Mutations not written because another writer had written the balance.
    pub conflicts: AtomicU64,
}

/// What a producer has done so far; to be shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// In the order of the producer's tenants.
    pub tenants: Vec<TenantProgress>,
    /// Mutations given up because the producer lagged more than a second behind.
    pub skipped: AtomicU64,
}

impl Progress {
    /// Counters for this many tenants, all zero.
    pub fn new(tenants: usize) -> Self {
        Self {
            tenants: (0..tenants).map(|_| TenantProgress::default()).collect(),
            skipped: AtomicU64::new(0),
        }
    }

    /// Mutations written, over all tenants.
    pub fn mutations(&self) -> u64 {
        self.tenants.iter().map(|tenant| tenant.mutations.load(Ordering::Relaxed)).sum()
    }

    /// Mutations that failed, over all tenants.
    pub fn errors(&self) -> u64 {
        self.tenants.iter().map(|tenant| tenant.errors.load(Ordering::Relaxed)).sum()
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// Mutations written.
    pub mutations: u64,
    /// Mutations that failed or of which nothing is known.
    pub errors: u64,
    /// Mutations given up because of lag.
    pub skipped: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Writes mutations for a set of tenants, and remembers the version of every balance.
pub struct Producer {
    url: String,
    tenants: Vec<LoadTenant>,
    format: Format,
    connection: Option<MultiplexedConnection>,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("tenants", &self.tenants.len()).finish_non_exhaustive()
    }
}

/// A balance by the number of its tenant and its own number there.
type Choice = (usize, usize);

impl Producer {
    /// A producer for these tenants; connects when it first writes.
    pub fn new(redis_url: &str, tenants: Vec<LoadTenant>) -> Self {
        Self { url: redis_url.to_owned(), tenants, format: Format::default(), connection: None }
    }

    /// The same producer, which writes values in this format.
    #[must_use]
    pub fn in_format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// The tenants it writes for, each with the versions last known to be written.
    pub fn tenants(&self) -> &[LoadTenant] {
        &self.tenants
    }

    /// Writes at a steady rate until the duration is over or it is cancelled, and counts in `progress`, which has
    /// as many tenants as this producer. Redis failures are counted and do not end it.
    ///
    /// # Errors
    /// When the options make no sense.
    pub async fn run(
        &mut self,
        options: &LoadOptions,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<LoadReport> {
        self.check(options, progress)?;
        let (mutations_before, errors_before) = (progress.mutations(), progress.errors());
        let skipped_before = progress.skipped.load(Ordering::Relaxed);
        let mut rng = SmallRng::seed_from_u64(options.seed);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // A failure only means that the first mutations may conflict.
        let _ = self.refresh_versions().await;
        let start = Instant::now();
        let catch_up = (options.rate * CATCH_UP.as_secs_f64()).ceil();
        let mut issued = 0.0;
        let mut ended = false;
        while !ended {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let elapsed = start.elapsed();
            ended = options.duration.is_some_and(|duration| elapsed >= duration);
            // From the start, not from the last tick: rounding must not add up.
            let counted = options.duration.map_or(elapsed, |duration| elapsed.min(duration));
            let mut due = (options.rate * counted.as_secs_f64()).floor() - issued;
            issued += due;
            if due > catch_up {
                progress.skipped.fetch_add((due - catch_up) as u64, Ordering::Relaxed);
                due = catch_up;
            }
            let mut left = due as usize;
            while left > 0 && !cancel.is_cancelled() {
                let now = left.min(PER_CALL * CALLS_AT_ONCE);
                let choices = self.choose(now, options.hot_key_share, &mut rng);
                self.write(&choices, options.ttl, progress).await;
                left -= now;
            }
        }
        if progress.errors() > errors_before {
            // What was written without our learning of it counts as written.
            let _ = self.refresh_versions().await;
        }
        Ok(LoadReport {
            mutations: progress.mutations() - mutations_before,
            errors: progress.errors() - errors_before,
            skipped: progress.skipped.load(Ordering::Relaxed) - skipped_before,
            elapsed: start.elapsed(),
        })
    }

    /// Writes one mutation of each of these balances of a tenant, given by their numbers, and returns their
    /// versions then. A balance may be named several times.
    ///
    /// # Errors
    /// When a mutation could not be written.
    pub async fn mutate(&mut self, tenant: usize, balances: &[usize], ttl: Duration) -> Result<Vec<i64>> {
        let choices: Vec<Choice> = balances.iter().map(|balance| (tenant, *balance)).collect();
        self.write_all(&choices, ttl).await?;
        Ok(balances.iter().map(|balance| self.tenants[tenant].versions[*balance]).collect())
    }

    /// Writes one mutation of every balance of every tenant, as fast as Redis takes them; returns how many.
    ///
    /// # Errors
    /// When a mutation could not be written.
    pub async fn mutate_each(&mut self, ttl: Duration) -> Result<u64> {
        let all = self.tenants.iter().enumerate();
        let choices: Vec<Choice> = all
            .flat_map(|(tenant, load)| (0..load.balances.len()).map(move |balance| (tenant, balance)))
            .collect();
        self.write_all(&choices, ttl).await?;
        Ok(choices.len() as u64)
    }

    /// Reads from Redis which versions stand there now; balances that are not there keep theirs.
    ///
    /// # Errors
    /// What Redis answers.
    pub async fn refresh_versions(&mut self) -> RedisResult<()> {
        let read = self.read_versions().await;
        if read.is_err() {
            // The next attempt opens another one.
            self.connection = None;
        }
        read
    }

    async fn read_versions(&mut self) -> RedisResult<()> {
        let mut connection = self.connected().await?;
        for tenant in &mut self.tenants {
            let numbers: Vec<usize> = (0..tenant.balances.len()).collect();
            for page in numbers.chunks(PER_READ) {
                let mut read = redis::cmd("MGET");
                for number in page {
                    read.arg(tenant.keys.member(&tenant.balances[*number]));
                }
                let values: Vec<Option<String>> = read.query_async(&mut connection).await?;
                for (number, value) in page.iter().zip(values) {
                    if let Some(version) = value.as_deref().and_then(version_in) {
                        tenant.versions[*number] = version;
                    }
                }
            }
        }
        Ok(())
    }

    fn check(&self, options: &LoadOptions, progress: &Progress) -> Result<()> {
        if !(options.rate.is_finite() && options.rate > 0.0) {
            bail!("rate is {}, but must be above 0", options.rate);
        }
        if !(0.0..=1.0).contains(&options.hot_key_share) {
            bail!("hot_key_share is {}, but must be from 0 to 1", options.hot_key_share);
        }
        if self.tenants.is_empty() || self.tenants.iter().any(|tenant| tenant.balances.is_empty()) {
            bail!("every tenant to write for must have a balance, and there must be one");
        }
        if progress.tenants.len() != self.tenants.len() {
            bail!(
                "progress is for {} tenants, but must be for {}",
                progress.tenants.len(),
                self.tenants.len()
            );
        }
        Ok(())
    }

    fn choose(&self, count: usize, hot_key_share: f64, rng: &mut SmallRng) -> Vec<Choice> {
        let mut choices: Vec<Choice> = (0..count)
            .map(|_| {
                let tenant = rng.random_range(0..self.tenants.len());
                let balances = self.tenants[tenant].balances.len();
                let hot = balances.div_ceil(100);
                let from = if rng.random_bool(hot_key_share) { 0..hot } else { 0..balances };
                (tenant, rng.random_range(from))
            })
            .collect();
        // Neighbours share a schedule, which is one ZADD for them all. (The sort is stable: it keeps the
        // order within a tenant.)
        choices.sort_by_key(|(tenant, _)| *tenant);
        choices
    }

    async fn write_all(&mut self, choices: &[Choice], ttl: Duration) -> Result<()> {
        for page in choices.chunks(PER_CALL * CALLS_AT_ONCE) {
            let mut open = page.to_vec();
            // A conflict has taught us the version: the second attempt starts from it.
            for _ in 0..2 {
                let progress = Progress::new(self.tenants.len());
                open = self.write(&open, ttl, &progress).await;
                if progress.errors() > 0 {
                    bail!("{} mutations could not be written to Redis", progress.errors());
                }
            }
            if !open.is_empty() {
                bail!("{} mutations were overtaken by another writer", open.len());
            }
        }
        Ok(())
    }

    /// Writes these mutations and counts what became of them; returns those that conflicted.
    async fn write(&mut self, choices: &[Choice], ttl: Duration, progress: &Progress) -> Vec<Choice> {
        let connection = match self.connected().await {
            Ok(connection) => connection,
            Err(error) => {
                self.failed(choices, progress, &error).await;
                return Vec::new();
            }
        };
        // Several mutations of one balance start each from the one before.
        let mut versions = std::collections::HashMap::<Choice, i64>::new();
        let mutations: Vec<Mutation> = choices
            .iter()
            .map(|choice| {
                let tenant = &self.tenants[choice.0];
                let balance = &tenant.balances[choice.1];
                let version = versions.entry(*choice).or_insert(tenant.versions[choice.1]);
                *version += 1;
                Mutation {
                    schedule: tenant.keys.schedule(),
                    member: tenant.keys.member(balance),
                    base_version: *version - 1,
                    json: balance.json_in(self.format, *version),
                }
            })
            .collect();
        let calls = mutations.chunks(PER_CALL).map(|page| {
            let mut connection = connection.clone();
            async move { write_mutations(&mut connection, page, ttl).await }
        });
        let answers = join_all(calls).await;
        let mut conflicts = Vec::new();
        for (number, answer) in answers.into_iter().enumerate() {
            let from = number * PER_CALL;
            let page = &choices[from..choices.len().min(from + PER_CALL)];
            match answer {
                Ok(written) => {
                    for (offset, (choice, written)) in page.iter().zip(written).enumerate() {
                        let counters = &progress.tenants[choice.0];
                        let version = &mut self.tenants[choice.0].versions[choice.1];
                        match written {
                            Written::Yes => {
                                *version = mutations[from + offset].base_version + 1;
                                counters.mutations.fetch_add(1, Ordering::Relaxed);
                            }
                            Written::Conflict(found) => {
                                *version = found;
                                counters.conflicts.fetch_add(1, Ordering::Relaxed);
                                conflicts.push(*choice);
                            }
                        }
                    }
                }
                // If they were written all the same, the next mutation conflicts and learns of it.
                Err(error) => self.failed(page, progress, &error).await,
            }
        }
        conflicts
    }

    async fn failed(&mut self, choices: &[Choice], progress: &Progress, error: &RedisError) {
        tracing::debug!(%error, mutations = choices.len(), "the producer could not write");
        for (tenant, _) in choices {
            progress.tenants[*tenant].errors.fetch_add(1, Ordering::Relaxed);
        }
        if self.connection.take().is_some() {
            tokio::time::sleep(RECONNECT_EVERY).await;
        }
    }

    async fn connected(&mut self) -> RedisResult<MultiplexedConnection> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let client = redis::Client::open(self.url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        script::load(&mut connection).await?;
        self.connection = Some(connection.clone());
        Ok(connection)
    }
}

/// The version in a value of this producer or of the ledger, without parsing all of it.
fn version_in(json: &str) -> Option<i64> {
    let (_, rest) = json.split_once("\"Version\":").or_else(|| json.split_once("\"version\":"))?;
    let end = rest.find([',', '}'])?;
    rest[..end].trim().trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::describe_balances;

    #[test]
    fn the_hot_share_goes_to_one_percent_of_the_balances() {
        let producer = Producer::new("", vec![LoadTenant::seeded("acme", describe_balances("acme", 300))]);
        let mut rng = SmallRng::seed_from_u64(1);
        let choices = producer.choose(10_000, 0.8, &mut rng);
        let hot = choices.iter().filter(|(_, balance)| *balance < 3).count();
        assert!((7_500..8_500).contains(&hot), "{hot} of 10,000");
        let mut again = SmallRng::seed_from_u64(1);
        assert_eq!(choices, producer.choose(10_000, 0.8, &mut again));
    }

    #[test]
    fn versions_are_read_from_both_spellings() {
        assert_eq!(version_in("{\"ID\":\"x\",\"Version\":17,\"A\":1}"), Some(17));
        assert_eq!(version_in("{\"id\":\"x\",\"version\": 4}"), Some(4));
        assert_eq!(version_in("{\"SchemaVersion\":2,\"version\":\"5\",\"Version\":6}"), Some(6));
        assert_eq!(version_in("{\"SchemaVersion\":2,\"version\":\"5\"}"), Some(5));
        assert_eq!(version_in("{}"), None);
    }
}
