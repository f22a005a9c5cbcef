//! A stand-in for the ledger's own worker (protocol §2): what it claims, writes and removes, and what it drops.

use std::time::Duration;

use anyhow::Result;
use balance_sync_sandbox::{SandboxTenant, balance_table};
use redis::Script;
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How often it polls by default.
const POLL: Duration = Duration::from_millis(50);
/// It claims due members, each by its lock.
const CLAIM: &str = "
    local now = redis.call('TIME')
    local claimed = {}
    local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now[1] .. '.' .. string.format('%06d', now[2]), 'WITHSCORES', 'LIMIT', 0, ARGV[2])
    for i = 1, #due, 2 do
      if redis.call('SET', ARGV[1] .. due[i], '1', 'NX', 'EX', 600) then
        claimed[#claimed + 1] = due[i]
        claimed[#claimed + 1] = due[i + 1]
      end
    end
    return claimed";
/// And when the row is written: the lock goes, whosever it is; the member goes if its score is still the claimed one.
const CONCLUDE: &str = "
    redis.call('DEL', ARGV[1] .. ARGV[2])
    local score = redis.call('ZSCORE', KEYS[1], ARGV[2])
    if score and tonumber(score) == tonumber(ARGV[3]) then return redis.call('ZREM', KEYS[1], ARGV[2]) end
    return 0";

/// What a round has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Rows written.
    pub written: u64,
    /// Members that were taken out of the schedule without a write.
    pub dropped: u64,
}

/// The ledger's own worker, for one tenant.
#[derive(Debug)]
pub struct LedgerWorker {
    redis: MultiplexedConnection,
    pool: PgPool,
    schedule: String,
    locks: String,
    table: String,
    /// Members that it claims in one round.
    pub batch: usize,
    /// Releases up to 4.0 take a value with `SchemaVersion` for an orphan, and drop it.
    pub reads_dual: bool,
}

impl LedgerWorker {
    /// It reads every format.
    pub fn new(tenant: &SandboxTenant, redis: MultiplexedConnection, pool: PgPool) -> Self {
        Self {
            redis,
            pool,
            schedule: tenant.keys.schedule(),
            locks: tenant.keys.lock(""),
            table: balance_table(tenant.schema.as_deref()),
            batch: 50,
            reads_dual: true,
        }
    }

    /// One round: a claim, a write of each balance, and their removal.
    ///
    /// # Errors
    /// What Redis or PostgreSQL answers.
    pub async fn round(&mut self) -> Result<Round> {
        let claimed: Vec<(String, String)> = Script::new(CLAIM)
            .key(&self.schedule)
            .arg(&self.locks)
            .arg(self.batch)
            .invoke_async(&mut self.redis)
            .await?;
        let mut round = Round::default();
        if claimed.is_empty() {
            return Ok(round);
        }
        let mut read = redis::cmd("MGET");
        for (member, _) in &claimed {
            read.arg(member);
        }
        let values: Vec<Option<String>> = read.query_async(&mut self.redis).await?;
        for ((member, score), value) in claimed.iter().zip(values) {
            let value: Option<Value> = value.and_then(|value| serde_json::from_str(&value).ok());
            match value.filter(|value| self.reads_dual || value["SchemaVersion"].is_null()) {
                Some(value) => round.written += self.write(&value).await?,
                None => round.dropped += 1,
            }
            let () = Script::new(CONCLUDE)
                .key(&self.schedule)
                .arg(&self.locks)
                .arg(member)
                .arg(score)
                .invoke_async(&mut self.redis)
                .await?;
        }
        Ok(round)
    }

    async fn write(&self, value: &Value) -> Result<u64> {
        let sql = format!(
            "UPDATE {} SET version = $2, available = $3::numeric, on_hold = $4::numeric,
                 overdraft_used = $5::numeric, updated_at = now() WHERE id = $1::uuid AND version < $2",
            self.table
        );
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(text("ID"))
            .bind(value["Version"].as_i64())
            .bind(text("Available"))
            .bind(text("OnHold"))
            .bind(text("OverdraftUsed"))
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected())
    }

    /// Rounds at its pace, without which it would take every balance before another worker looks, until it is stopped.
    ///
    /// # Errors
    /// As [`round`](Self::round).
    pub async fn run(&mut self, over: &CancellationToken) -> Result<Round> {
        let mut sum = Round::default();
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !over.is_cancelled() {
            poll.tick().await;
            let Round { written, dropped } = self.round().await?;
            sum.written += written;
            sum.dropped += dropped;
        }
        Ok(sum)
    }
}
