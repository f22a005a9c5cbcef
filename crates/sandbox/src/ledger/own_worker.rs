//! A stand-in for the ledger's own worker (protocol §2): what it claims, writes and removes, what it drops, and how it is parked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use redis::Script;
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{SandboxTenant, balance_table};

/// Of the members that are due it looks at the first ones only, and locks those that nobody has locked.
const CLAIM: &str = "
    local now = redis.call('TIME')
    local claimed = {}
    local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now[1] .. '.' .. string.format('%06d', now[2]), 'WITHSCORES', 'LIMIT', 0, ARGV[2])
    for i = 1, #due, 2 do
      if redis.call('SET', ARGV[1] .. due[i], '1', 'NX', 'EX', ARGV[3]) then
        claimed[#claimed + 1] = due[i]
        claimed[#claimed + 1] = due[i + 1]
      end
    end
    return claimed";
/// When it has done with members: the lock goes, whosever it is; the member goes if its score is still the claimed one.
const CONCLUDE: &str = "
    local removed = 0
    for i = 2, #ARGV, 2 do
      redis.call('DEL', ARGV[1] .. ARGV[i])
      local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
      if score and tonumber(score) == tonumber(ARGV[i + 1]) then removed = removed + redis.call('ZREM', KEYS[1], ARGV[i]) end
    end
    return removed";

/// What it has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Rows written.
    pub written: u64,
    /// Members that it took for orphans, and concluded without a write.
    pub dropped: u64,
    /// Those among them that left the schedule by it: they had no newer mutation and no claim of another worker.
    pub removed_unwritten: u64,
}

impl std::ops::AddAssign for Round {
    fn add_assign(&mut self, other: Self) {
        self.written += other.written;
        self.dropped += other.dropped;
        self.removed_unwritten += other.removed_unwritten;
    }
}

/// A claimed member.
#[derive(Debug)]
struct Held {
    member: String,
    score: String,
    value: Value,
}

/// The ledger's own worker, for one tenant.
#[derive(Debug)]
pub struct LedgerWorker {
    redis: MultiplexedConnection,
    pool: PgPool,
    schedule: String,
    locks: String,
    table: String,
    /// `BALANCE_SYNC_BATCH_SIZE`.
    pub batch: usize,
    /// `BALANCE_SYNC_FLUSH_TIMEOUT_MS`.
    pub flush_timeout: Duration,
    /// `BALANCE_SYNC_POLL_INTERVAL_MS`.
    pub poll: Duration,
    /// How long a claim locks a member.
    pub lock_life: Duration,
    /// Releases up to 4.0 take a value with `SchemaVersion` for an orphan, and drop it.
    pub reads_dual: bool,
    /// The members that left the schedule by it, unwritten.
    pub removed_unwritten: BTreeSet<String>,
}

impl LedgerWorker {
    /// With its defaults; it reads every format.
    #[must_use]
    pub fn new(tenant: &SandboxTenant, redis: MultiplexedConnection, pool: PgPool) -> Self {
        Self {
            redis,
            pool,
            schedule: tenant.keys.schedule(),
            locks: tenant.keys.lock(""),
            table: balance_table(tenant.schema.as_deref()),
            batch: 50,
            flush_timeout: Duration::from_millis(500),
            poll: Duration::from_millis(50),
            lock_life: Duration::from_secs(600),
            reads_dual: true,
            removed_unwritten: BTreeSet::new(),
        }
    }

    /// Of a release up to 4.0.
    #[must_use]
    pub fn old(self) -> Self {
        Self { reads_dual: false, ..self }
    }

    /// With the environment that parks it.
    #[must_use]
    pub fn parked(self) -> Self {
        Self { batch: 1, flush_timeout: Duration::from_millis(2_147_483_647), ..self }
    }

    /// One claim and one flush of what it brought.
    ///
    /// # Errors
    /// What Redis or PostgreSQL answers.
    pub async fn round(&mut self) -> Result<Round> {
        let (mut held, mut round) = self.claim(self.batch).await?;
        round.written += self.flush(&mut held).await?;
        Ok(round)
    }

    /// Runs until it is stopped: gathers members until the batch is full or the first of them has waited for the flush timeout; then
    /// one last flush. What an answer of Redis or PostgreSQL fails, it drops from memory, with its locks left behind.
    pub async fn run(&mut self, over: &CancellationToken) -> Round {
        let mut sum = Round::default();
        let mut buffer: Vec<Held> = Vec::new();
        let mut first = Instant::now();
        while !over.is_cancelled() {
            let room = self.batch.saturating_sub(buffer.len());
            let claimed = self.claim(room).await;
            let mut fetched = 0;
            match claimed {
                Ok((held, round)) => {
                    if buffer.is_empty() {
                        first = Instant::now();
                    }
                    fetched = held.len() + usize::try_from(round.dropped).unwrap_or(usize::MAX);
                    buffer.extend(held);
                    sum += round;
                }
                Err(_) if buffer.is_empty() => {
                    let _ = over.run_until_cancelled(tokio::time::sleep(self.poll)).await;
                    continue;
                }
                Err(_) => {}
            }
            let left = self.flush_timeout.saturating_sub(first.elapsed());
            if buffer.len() >= self.batch || !buffer.is_empty() && left.is_zero() {
                sum.written += self.flush(&mut buffer).await.unwrap_or_default();
                continue;
            }
            let pause = match (fetched, buffer.is_empty()) {
                (1.., _) => continue,
                (0, false) => self.poll.min(left),
                (0, true) => (2 * self.flush_timeout).max(Duration::from_secs(1)),
            };
            let _ = over.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
        sum.written += self.flush(&mut buffer).await.unwrap_or_default();
        sum
    }

    /// Claims up to so many members and reads their values; what it takes for an orphan is removed from the schedule.
    async fn claim(&mut self, most: usize) -> Result<(Vec<Held>, Round)> {
        let claimed: Vec<(String, String)> = Script::new(CLAIM)
            .key(&self.schedule)
            .arg(&self.locks)
            .arg(most)
            .arg(self.lock_life.as_secs())
            .invoke_async(&mut self.redis)
            .await?;
        if claimed.is_empty() {
            return Ok((Vec::new(), Round::default()));
        }
        let mut read = redis::cmd("MGET");
        for (member, _) in &claimed {
            read.arg(member);
        }
        let values: Vec<Option<String>> = read.query_async(&mut self.redis).await?;
        let (mut held, mut round) = (Vec::new(), Round::default());
        for ((member, score), value) in claimed.into_iter().zip(values) {
            let value: Option<Value> = value.and_then(|value| serde_json::from_str(&value).ok());
            match value.filter(|value| self.reads_dual || value["SchemaVersion"].is_null()) {
                Some(value) => held.push(Held { member, score, value }),
                None => {
                    round.dropped += 1;
                    if self.conclude(&[(member.as_str(), score.as_str())]).await? > 0 {
                        round.removed_unwritten += 1;
                        self.removed_unwritten.insert(member);
                    }
                }
            }
        }
        Ok((held, round))
    }

    /// Writes what it holds, one statement for each organization and ledger, and removes it from the schedule, also where the row
    /// was newer or is missing. What fails is forgotten.
    async fn flush(&mut self, buffer: &mut Vec<Held>) -> Result<u64> {
        let mut groups: BTreeMap<(Uuid, Uuid), Vec<Held>> = BTreeMap::new();
        for held in std::mem::take(buffer) {
            let own = held.member.split_once("balance:{transactions}:").map_or("", |(_, own)| own);
            let mut parts = own.split(':').map(|part| Uuid::parse_str(part).unwrap_or_default());
            let key = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            groups.entry(key).or_default().push(held);
        }
        let mut written = 0;
        for ((organization, ledger), group) in groups {
            written += self.write(organization, ledger, &group).await?;
            let done: Vec<(&str, &str)> =
                group.iter().map(|held| (held.member.as_str(), held.score.as_str())).collect();
            self.conclude(&done).await?;
        }
        Ok(written)
    }

    async fn conclude(&mut self, members: &[(&str, &str)]) -> Result<u64> {
        let script = Script::new(CONCLUDE);
        let mut call = script.key(&self.schedule);
        call.arg(&self.locks);
        for (member, score) in members {
            call.arg(*member).arg(*score);
        }
        Ok(call.invoke_async(&mut self.redis).await?)
    }

    async fn write(&self, organization: Uuid, ledger: Uuid, group: &[Held]) -> Result<u64> {
        let sql = format!(
            "UPDATE {} AS b SET version = v.version, available = v.available::numeric, on_hold = v.on_hold::numeric,
                 overdraft_used = v.overdraft_used::numeric, updated_at = now()
             FROM UNNEST($3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[])
                 AS v (id, version, available, on_hold, overdraft_used)
             WHERE b.id = v.id::uuid AND b.organization_id = $1 AND b.ledger_id = $2 AND b.deleted_at IS NULL
                 AND coalesce(b.version, -1) < v.version",
            self.table
        );
        let text = |held: &Held, name: &str| held.value[name].as_str().unwrap_or("0").to_owned();
        let version = |held: &Held| held.value["Version"].as_i64().unwrap_or_default();
        // Of a balance the highest version.
        let mut newest: BTreeMap<String, &Held> = BTreeMap::new();
        for held in group {
            let known = newest.entry(text(held, "ID")).or_insert(held);
            if version(known) < version(held) {
                *known = held;
            }
        }
        let column = |name: &str| newest.values().map(|held| text(held, name)).collect::<Vec<_>>();
        let mut transaction = self.pool.begin().await?;
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(organization)
            .bind(ledger)
            .bind(newest.keys().cloned().collect::<Vec<_>>())
            .bind(newest.values().map(|held| version(held)).collect::<Vec<_>>())
            .bind(column("Available"))
            .bind(column("OnHold"))
            .bind(column("OverdraftUsed"))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(done.rows_affected())
    }
}
