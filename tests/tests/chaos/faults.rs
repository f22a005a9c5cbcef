//! The faults: each is injected, lasts a little, and is healed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_sandbox::{Fault, Sandbox, SandboxTenant, ServiceFault};
use balance_sync_tests::Worker;
use nix::sys::signal::Signal;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::quiet::Concerns;

/// The claim TTL of the workers; the relations of the configuration leave it no shorter with these deadlines.
pub(crate) const CLAIM_TTL: &str = "4s";
/// Connections that a worker may have open.
pub(crate) const BUDGET: i64 = 6;

/// What can be done to the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    KillWorker,
    FreezeWorker,
    StopWorker,
    PostgresCrash,
    PostgresSessionsEnded,
    PostgresLatency,
    PostgresBlackHole,
    PostgresAnswersLost,
    PostgresCut,
    RedisCrash,
    RedisCut,
    RedisLatency,
    RedisBlackHole,
    ScriptsFlushed,
    TenantRemoved,
    ServiceIll,
    PasswordRotated,
    Poison,
}

const KINDS: [Kind; 18] = [
    Kind::KillWorker,
    Kind::FreezeWorker,
    Kind::StopWorker,
    Kind::PostgresCrash,
    Kind::PostgresSessionsEnded,
    Kind::PostgresLatency,
    Kind::PostgresBlackHole,
    Kind::PostgresAnswersLost,
    Kind::PostgresCut,
    Kind::RedisCrash,
    Kind::RedisCut,
    Kind::RedisLatency,
    Kind::RedisBlackHole,
    Kind::ScriptsFlushed,
    Kind::TenantRemoved,
    Kind::ServiceIll,
    Kind::PasswordRotated,
    Kind::Poison,
];

impl Kind {
    /// Whether it hits something that the quiet tenant shares with the others.
    fn concerns_the_quiet_one(self) -> bool {
        matches!(
            self,
            Self::KillWorker
                | Self::FreezeWorker
                | Self::StopWorker
                | Self::RedisCrash
                | Self::RedisCut
                | Self::RedisLatency
                | Self::RedisBlackHole
                | Self::ServiceIll
        )
    }
}

/// The system under faults.
pub(crate) struct World {
    sandbox: Arc<Sandbox>,
    rng: SmallRng,
    workers: Vec<Worker>,
    concerns: Concerns,
    /// How often each fault was injected.
    pub faults: BTreeMap<Kind, u32>,
    /// Members that must be in quarantine at the end, by tenant.
    pub poisoned: Vec<(SandboxTenant, String)>,
}

impl World {
    pub(crate) fn new(sandbox: Arc<Sandbox>, rng: SmallRng, concerns: Concerns) -> Self {
        Self { sandbox, rng, workers: Vec::new(), concerns, faults: BTreeMap::new(), poisoned: Vec::new() }
    }

    /// Counts of the faults, as text.
    pub(crate) fn summary(&self) -> String {
        self.faults.iter().fold(String::new(), |mut text, (kind, count)| {
            let _ = write!(text, "{}{kind:?} {count}", if text.is_empty() { "" } else { ", " });
            text
        })
    }

    pub(crate) async fn start_worker(&mut self) -> Result<()> {
        let worker = Worker::of(&self.sandbox)
            .set("log.level", "info")
            .set("claim.ttl", CLAIM_TTL)
            .set("claim.protect_floor", "1m")
            .set("collector.batch_size", "100")
            .set("collector.flush_deadline", "3s")
            .set("collector.drain_deadline", "3s")
            .set("collector.crash_delay_min", "100ms")
            .set("postgres.acquire_timeout", "1s")
            .set("postgres.statement_timeout", "1500ms")
            .set("postgres.connect_timeout", "1s")
            .set("postgres.backoff_long", "2s")
            .set("postgres.connections_per_server", &BUDGET.to_string())
            .set("redis.response_timeout", "2s")
            .set("tenants.service.request_timeout", "1s")
            .set("tenants.service.connect_timeout", "500ms")
            .set("tenants.service.breaker_timeout", "1s")
            .set("tenants.service.settings_ttl", "2s")
            .set("tenants.poll_interval", "300ms")
            // Faults are what this is about: errors are expected, secrets and lines without a tenant are not.
            .expect_error("")
            .start_unready()
            .await?;
        self.workers.push(worker);
        Ok(())
    }

    /// Injects the next fault and heals it.
    pub(crate) async fn fault(&mut self) -> Result<()> {
        let kind = KINDS[self.rng.random_range(0..KINDS.len())];
        let length = Duration::from_millis(self.rng.random_range(100..1500));
        *self.faults.entry(kind).or_default() += 1;
        if kind.concerns_the_quiet_one() {
            self.concerns.begin();
        }
        self.inject(kind, length).await.with_context(|| format!("injecting {kind:?} for {length:?}"))?;
        if kind.concerns_the_quiet_one() {
            self.concerns.end();
        }
        // A breath between faults, of any length: some must meet the recovery from the last one.
        let pause = Duration::from_millis(self.rng.random_range(0..700));
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn inject(&mut self, kind: Kind, length: Duration) -> Result<()> {
        let sandbox = Arc::clone(&self.sandbox);
        let lasting = || tokio::time::sleep(length);
        let redis_proxy = sandbox.redis_proxy().context("no proxy before redis")?;
        let postgres_proxy = sandbox.postgres_proxy().context("no proxy before postgres")?;
        match kind {
            Kind::KillWorker => {
                let at = self.rng.random_range(0..self.workers.len());
                self.workers.swap_remove(at).kill().await?;
                self.start_worker().await?;
            }
            Kind::StopWorker => {
                let at = self.rng.random_range(0..self.workers.len());
                self.workers.swap_remove(at).stop().await?;
                self.start_worker().await?;
            }
            Kind::FreezeWorker => {
                // Half of the freezes outlast the lease: what the worker holds then belongs to others.
                let at = self.rng.random_range(0..self.workers.len());
                let frozen = if self.rng.random_bool(0.5) { Duration::from_millis(4500) } else { length };
                self.workers[at].signal(Signal::SIGSTOP)?;
                tokio::time::sleep(frozen).await;
                self.workers[at].signal(Signal::SIGCONT)?;
            }
            Kind::PostgresCrash => {
                sandbox.postgres().stop_immediate().await?;
                lasting().await;
                sandbox.postgres().start_again().await?;
            }
            Kind::PostgresSessionsEnded => {
                let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE application_name LIKE 'balance-sync %'";
                sandbox.postgres().execute("postgres", end).await?;
            }
            Kind::PostgresLatency => {
                postgres_proxy.set(Fault::Latency(Duration::from_millis(80))).await;
                lasting().await;
                postgres_proxy.set(Fault::Pass).await;
            }
            Kind::PostgresBlackHole => {
                postgres_proxy.set(Fault::BlackHole).await;
                lasting().await;
                postgres_proxy.set(Fault::Pass).await;
            }
            Kind::PostgresAnswersLost => {
                postgres_proxy.set(Fault::DropResponses).await;
                lasting().await;
                postgres_proxy.set(Fault::Pass).await;
            }
            Kind::PostgresCut => postgres_proxy.cut(),
            Kind::RedisCrash => {
                sandbox.redis().kill()?;
                lasting().await;
                sandbox.redis().start_again().await?;
            }
            Kind::RedisCut => redis_proxy.cut(),
            Kind::RedisLatency => {
                redis_proxy.set(Fault::Latency(Duration::from_millis(50))).await;
                lasting().await;
                redis_proxy.set(Fault::Pass).await;
            }
            Kind::RedisBlackHole => {
                redis_proxy.set(Fault::BlackHole).await;
                lasting().await;
                redis_proxy.set(Fault::Pass).await;
            }
            Kind::ScriptsFlushed => {
                let mut redis = sandbox.redis().connect().await?;
                redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut redis).await?;
            }
            Kind::TenantRemoved => {
                let tenant = self.any_tenant();
                sandbox.remove_tenant(&tenant.id)?;
                lasting().await;
                sandbox.restore_tenant(&tenant.id)?;
            }
            Kind::ServiceIll => {
                let faults = [
                    ServiceFault::Status(500),
                    ServiceFault::Garbage,
                    ServiceFault::EmptyBody,
                    ServiceFault::EmptyList,
                    ServiceFault::Slow(Duration::from_millis(700)),
                    ServiceFault::Hang,
                ];
                sandbox.service().set_faults(faults[self.rng.random_range(0..faults.len())].clone());
                lasting().await;
                sandbox.service().set_faults(ServiceFault::None);
            }
            Kind::PasswordRotated => {
                let tenant = self.any_tenant();
                let end_sessions = self.rng.random_bool(0.5);
                sandbox.rotate_password(&tenant.id, end_sessions).await?;
            }
            Kind::Poison => self.poison().await?,
        }
        Ok(())
    }

    fn any_tenant(&mut self) -> SandboxTenant {
        let tenants = self.sandbox.tenants();
        tenants[self.rng.random_range(0..tenants.len())].clone()
    }

    /// Schedules something that can't be synced: it must end in quarantine, and nothing else must suffer.
    async fn poison(&mut self) -> Result<()> {
        let tenant = self.any_tenant();
        let other = self.any_tenant();
        let number: u32 = self.rng.random();
        let prefix = tenant.keys.prefix();
        let first = &tenant.balances[0];
        let place = format!("{}:{}", first.organization, first.ledger);
        let (member, value) = match self.rng.random_range(0..4) {
            0 => (format!("{prefix}balance:{{transactions}}:nonsense-{number}"), "{}".to_owned()),
            1 => (
                format!("{prefix}balance:{{transactions}}:{place}:@broken-{number}#default"),
                "{\"ID\":\"not a uuid\"".to_owned(),
            ),
            2 => (
                format!("{prefix}balance:{{transactions}}:{place}:@nobody-{number}#default"),
                first
                    .json(7)
                    .replace(&first.id.to_string(), &uuid::Uuid::from_u128(u128::from(number)).to_string()),
            ),
            _ if other.id == tenant.id => {
                (format!("{prefix}balance:{{transactions}}:nonsense-{number}"), "[]".to_owned())
            }
            _ => {
                // A balance of another tenant, in whose place this tenant's database holds a decoy: only scheduled
                // here, its value is the other's.
                let member = other.keys.member(&other.balances[number as usize % other.balances.len()]);
                let mut redis = self.sandbox.redis().connect().await?;
                redis::cmd("ZADD")
                    .arg(tenant.keys.schedule())
                    .arg(1)
                    .arg(&member)
                    .query_async::<()>(&mut redis)
                    .await?;
                self.poisoned.push((tenant, member));
                return Ok(());
            }
        };
        let mut redis = self.sandbox.redis().connect().await?;
        put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL))
            .await?;
        self.poisoned.push((tenant, member));
        Ok(())
    }

    /// Makes sure that no fault is left.
    pub(crate) async fn heal(&mut self) -> Result<()> {
        if let Some(proxy) = self.sandbox.redis_proxy() {
            proxy.set(Fault::Pass).await;
        }
        if let Some(proxy) = self.sandbox.postgres_proxy() {
            proxy.set(Fault::Pass).await;
        }
        self.sandbox.service().set_faults(ServiceFault::None);
        Ok(())
    }

    /// Ends all workers, each of which must drain cleanly.
    pub(crate) async fn stop_workers(&mut self) -> Result<()> {
        for mut worker in self.workers.drain(..) {
            let ended = worker.stop().await?;
            anyhow::ensure!(
                ended.code == Some(0),
                "a worker ended with {:?}:\n{}",
                ended.code,
                ended.log.tail()
            );
        }
        Ok(())
    }
}
