//! The script that writes mutations, and its typed wrapper.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result};
use redis::aio::ConnectionLike;
use redis::{RedisResult, Script};

static MUTATE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("mutate.lua")));

/// Writes any value under any member, scheduled now. KEYS: schedule, member. ARGV: value, time to live in
/// seconds, or 0 for none. Result: the score.
static PUT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME')
         local score = string.format('%s.%06d', time[1], tonumber(time[2]))
         if ARGV[2] == '0' then
           redis.call('SET', KEYS[2], ARGV[1])
         else
           redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
         end
         redis.call('ZADD', KEYS[1], score, KEYS[2])
         return score",
    )
});

/// How long the ledger's values live.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// One mutation to write.
#[derive(Debug, Clone)]
pub struct Mutation {
    /// The tenant's schedule. Mutations of one schedule should be neighbours.
    pub schedule: String,
    /// Key of the balance.
    pub member: String,
    /// The version it starts from; ignored when the key is not in Redis.
    pub base_version: i64,
    /// The new value, with version `base_version + 1`.
    pub json: String,
}

/// Makes the script known to the server, so that calls need not send it.
pub(crate) async fn load(connection: &mut impl ConnectionLike) -> RedisResult<()> {
    MUTATE.load_async(connection).await.map(|_sha| ())
}

/// What became of a mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Written and scheduled.
    Yes,
    /// Not written: this version stands there, another one than the mutation started from.
    Conflict(i64),
}

/// Writes mutations in one atomic call. `ttl` has whole seconds, at least 1.
///
/// # Errors
/// What Redis answers; then it is unknown whether they were written.
pub async fn write_mutations(
    connection: &mut (impl ConnectionLike + Clone),
    mutations: &[Mutation],
    ttl: Duration,
) -> RedisResult<Vec<Written>> {
    if mutations.is_empty() {
        return Ok(Vec::new());
    }
    let mut call = MUTATE.prepare_invoke();
    let mut schedules: Vec<&str> = mutations.iter().map(|mutation| mutation.schedule.as_str()).collect();
    schedules.dedup();
    for schedule in &schedules {
        call.key(*schedule);
    }
    call.arg(ttl.as_secs().max(1)).arg(schedules.len());
    let mut number = 1;
    for mutation in mutations {
        if mutation.schedule != schedules[number - 1] {
            number += 1;
        }
        call.key(&mutation.member).arg(number).arg(mutation.base_version).arg(&mutation.json);
    }
    let found: Vec<i64> = call.invoke_async(connection).await?;
    let written = |found| if found == -1 { Written::Yes } else { Written::Conflict(found) };
    Ok(found.into_iter().map(written).collect())
}

/// Writes any bytes under any member and schedules it now, as a faulty or unusual producer would. Returns
/// the score. `ttl` `None` never expires.
///
/// # Errors
/// What Redis answers.
pub async fn put_raw(
    connection: &mut (impl ConnectionLike + Clone),
    schedule: &str,
    member: &[u8],
    value: &[u8],
    ttl: Option<Duration>,
) -> Result<String> {
    let seconds = ttl.map_or(0, |ttl| ttl.as_secs().max(1));
    PUT.key(schedule)
        .key(member)
        .arg(value)
        .arg(seconds)
        .invoke_async(connection)
        .await
        .context("writing a raw value")
}
