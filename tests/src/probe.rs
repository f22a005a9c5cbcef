//! How long a mutation takes until its row is written, measured from outside: past the workers and their own numbers.
//!
//! One balance of each tenant, its last, is mutated again and again; a trigger notes when its row got which version. Both times
//! are of this machine's clock. The last balance must not be written by another producer: [`Probe::others`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{
    DEFAULT_TTL, Format, LoadTenant, Mutation, Producer, SEED_VERSION, SeededBalance, Written,
    write_mutations,
};
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table};
use futures::future::join;
use redis::aio::MultiplexedConnection;
use sqlx::AssertSqlSafe;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::ledger::redis_time;

/// Between two mutations of a tenant's balance.
const EVERY: Duration = Duration::from_millis(100);

struct Target {
    tenant: SandboxTenant,
    balance: SeededBalance,
    version: i64,
}

struct Sent {
    target: usize,
    version: i64,
    at: f64,
}

/// Measures the lag of all tenants of a sandbox.
pub struct Probe {
    redis: MultiplexedConnection,
    format: Format,
    targets: Vec<Target>,
    sent: Vec<Sent>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("sent", &self.sent.len()).finish_non_exhaustive()
    }
}

/// What was measured: when each mutation was written to Redis, in seconds since 1970, and how long its row took.
#[derive(Debug, Clone, Default)]
pub struct Lags {
    seconds: Vec<(f64, f64)>,
    /// Mutations whose version, or a later one, never came to their row.
    pub lost: usize,
}

impl Lags {
    /// How many were written to Redis in this time.
    pub fn count(&self, from: f64, until: f64) -> usize {
        self.between(from, until).len()
    }

    /// What this part of those stayed within, in seconds, that were written to Redis in this time; 0 without any.
    pub fn quantile(&self, part: f64, from: f64, until: f64) -> f64 {
        let mut chosen = self.between(from, until);
        chosen.sort_by(f64::total_cmp);
        let at = (part * chosen.len() as f64).ceil().max(1.0) as usize - 1;
        chosen.get(at.min(chosen.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    fn between(&self, from: f64, until: f64) -> Vec<f64> {
        self.seconds.iter().filter(|(at, _)| (from..until).contains(at)).map(|(_, lag)| *lag).collect()
    }
}

impl Probe {
    /// Prepares the last balance of each tenant.
    ///
    /// # Errors
    /// What PostgreSQL or Redis answers.
    pub async fn begin(sandbox: &Sandbox, format: Format) -> Result<Self> {
        let mut targets = Vec::new();
        for tenant in sandbox.tenants() {
            let balance = tenant.balances.last().context("a tenant without balances")?.clone();
            let schema = tenant.schema.as_deref().unwrap_or("public");
            let table = balance_table(tenant.schema.as_deref());
            let sql = format!(
                "CREATE TABLE \"{schema}\".probe (version BIGINT, at FLOAT8);
                 CREATE FUNCTION \"{schema}\".note_probe() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
                 BEGIN
                   INSERT INTO \"{schema}\".probe VALUES (NEW.version, extract(epoch FROM clock_timestamp()));
                   RETURN NULL;
                 END $$;
                 CREATE TRIGGER note_probe AFTER UPDATE ON {table} FOR EACH ROW WHEN (NEW.id = '{}')
                   EXECUTE FUNCTION \"{schema}\".note_probe();",
                balance.id
            );
            sandbox.postgres().execute(&tenant.database, &sql).await.context("preparing a probe")?;
            targets.push(Target { tenant, balance, version: SEED_VERSION });
        }
        Ok(Self { redis: sandbox.redis().connect().await?, format, targets, sent: Vec::new() })
    }

    /// A producer for all balances that are not this probe's.
    pub fn others(sandbox: &Sandbox, tenants: &[SandboxTenant]) -> Producer {
        let loads = tenants.iter().map(|tenant| {
            let balances = &tenant.balances[..tenant.balances.len() - 1];
            LoadTenant::seeded(&tenant.id, balances.to_vec())
        });
        Producer::new(&sandbox.redis().url(), loads.collect())
    }

    /// The balances that it mutates, with the versions written last.
    pub fn loads(&self) -> Vec<LoadTenant> {
        let loads = self.targets.iter().map(|target| LoadTenant {
            versions: vec![target.version],
            ..LoadTenant::seeded(&target.tenant.id, vec![target.balance.clone()])
        });
        loads.collect()
    }

    /// Redis's clock, for the times of [`Lags`].
    ///
    /// # Errors
    /// What Redis answers.
    pub async fn now(sandbox: &Sandbox) -> Result<f64> {
        redis_time(&mut sandbox.redis().connect().await?).await
    }

    /// Mutates until it is stopped.
    ///
    /// # Errors
    /// What Redis answers, or when somebody else writes these balances.
    pub async fn run(&mut self, over: &CancellationToken) -> Result<()> {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                () = over.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            let mut mutations = Vec::with_capacity(self.targets.len());
            for target in &mut self.targets {
                target.version += 1;
                mutations.push(Mutation {
                    schedule: target.tenant.keys.schedule(),
                    member: target.tenant.keys.member(&target.balance),
                    base_version: target.version - 1,
                    json: target.balance.json_in(self.format, target.version),
                });
            }
            // On one connection and in this order: the clock is read right before the script.
            let (mut clock, mut writer) = (self.redis.clone(), self.redis.clone());
            let (at, written) =
                join(redis_time(&mut clock), write_mutations(&mut writer, &mutations, DEFAULT_TTL)).await;
            ensure!(
                written?.iter().all(|one| *one == Written::Yes),
                "somebody else writes the probe's balances"
            );
            let at = at?;
            self.sent.extend(self.targets.iter().enumerate().map(|(target, it)| Sent {
                target,
                version: it.version,
                at,
            }));
        }
    }

    /// What was measured, once everything has been written.
    ///
    /// # Errors
    /// What PostgreSQL answers.
    pub async fn read(&self, sandbox: &Sandbox) -> Result<Lags> {
        let mut lags = Lags::default();
        for (number, target) in self.targets.iter().enumerate() {
            let schema = target.tenant.schema.as_deref().unwrap_or("public");
            let pool = sandbox.pool(&target.tenant);
            let sql = format!("SELECT version, at FROM \"{schema}\".probe ORDER BY version");
            let seen = sqlx::query_as::<_, (i64, f64)>(AssertSqlSafe(sql)).fetch_all(&pool).await;
            pool.close().await;
            let seen = seen?;
            for sent in self.sent.iter().filter(|sent| sent.target == number) {
                let first = seen.partition_point(|(version, _)| *version < sent.version);
                match seen.get(first) {
                    Some((_, at)) => lags.seconds.push((sent.at, at - sent.at)),
                    None => lags.lost += 1,
                }
            }
        }
        Ok(lags)
    }
}
