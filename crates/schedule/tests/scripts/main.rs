//! Each script through its wrapper, on a real Redis; then the connection under faults. The tests share one server,
//! each as a tenant of its own; those that break their server start another.
#![allow(clippy::unwrap_used)]

mod common;

mod adopt_and_probe;
mod claim;
mod cluster;
mod connections;
mod controls;
mod finish;
mod forms;
mod heads;
mod hostile;
mod link;
mod locks;
mod losses;
mod model;
mod protect;
mod quarantine;
mod queues;
mod refusals;
mod reports;
mod retire;
mod rights;
mod rollout;
mod rotation;
mod sample;
mod sentinel;
mod sessions;
mod snapshots;
mod timelines;
mod tls;
mod tracking;
mod vanished;
mod whole_claims;

use std::{sync::Arc, time::Duration};

use balance_sync_domain::{KeySpace, QuarantineReason};
use balance_sync_sandbox::{RedisServer, eventually};
use balance_sync_schedule::{ClaimMode, Claimed, Link, LinkSettings, Refusal, Schedule, ScheduleOptions};
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, aio::MultiplexedConnection};

/// For conditions that come about by themselves.
const SOON: Duration = Duration::from_secs(60);

/// Sends any command to the tenant's Redis: `ask!(tenant, "ZADD", key, 1, "m")`.
macro_rules! ask {
    ($tenant:expr, $name:literal $(, $arg:expr)* $(,)?) => {{
        #[allow(unused_mut)]
        let mut cmd = redis::cmd($name);
        $(cmd.arg($arg);)*
        $tenant.run(&cmd).await
    }};
}
pub(crate) use ask;

/// The same when the answer doesn't matter.
macro_rules! tell {
    ($($arg:tt)*) => {{
        let _: redis::Value = crate::ask!($($arg)*);
    }};
}
pub(crate) use tell;

/// A mutation as the ledger does it (protocol §1). KEYS value, schedule; ARGV json, seconds to live.
const MUTATE: &str = r"
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local time = redis.call('TIME')
local score = string.format('%s.%06d', time[1], time[2])
redis.call('ZADD', KEYS[2], score, KEYS[1])
return score
";

/// One tenant's keys, with a raw connection beside the link under test.
struct Tenant {
    space: KeySpace,
    link: Link,
    redis: MultiplexedConnection,
}

impl Tenant {
    async fn new(id: &str) -> Self {
        Self::on(common::space_of(id), common::server().await.url().as_str()).await
    }

    async fn on(space: KeySpace, url: &str) -> Self {
        // The client's own patience, half a second, is too short for a machine under load.
        let patient =
            AsyncConnectionConfig::new().set_connection_timeout(Some(SOON)).set_response_timeout(Some(SOON));
        let client = redis::Client::open(url).unwrap();
        let redis = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        Self { space, link: Link::new(&LinkSettings::for_url(url)).unwrap(), redis }
    }

    /// The schedule under test with the default options, changed by `change`.
    fn with(&self, change: impl FnOnce(&mut ScheduleOptions)) -> Schedule {
        let mut options = ScheduleOptions::default();
        change(&mut options);
        Schedule::new(self.link.clone(), self.space.clone(), Arc::new(options))
    }

    fn lease_mode(&self) -> Schedule {
        self.with(|_| {})
    }

    fn lock_mode(&self, token: &str) -> Schedule {
        self.with(|options| {
            options.mode = ClaimMode::Lock;
            options.lock_token = token.to_owned();
        })
    }

    async fn run<T: FromRedisValue>(&self, cmd: &Cmd) -> T {
        cmd.query_async(&mut self.redis.clone()).await.unwrap()
    }

    /// A balance key of this tenant.
    fn member(&self, name: &str) -> String {
        format!("{}o:l:{name}#default", self.space.balance_prefix())
    }

    /// Mutates as the ledger does; gives member and score.
    async fn mutate(&self, name: &str, value: &str) -> (String, String) {
        let member = self.member(name);
        let score = ask!(self, "EVAL", MUTATE, 2, &member, self.space.schedule(), value, 3600);
        (member, score)
    }

    /// Schedules with a score of the test's own; no value.
    async fn schedule(&self, member: &str, score: &str) {
        tell!(self, "ZADD", self.space.schedule(), score, member);
    }

    /// Schedules `count` members `m00000…` with ascending scores, long due; gives them in that order.
    async fn schedule_many(&self, count: usize) -> Vec<String> {
        let members: Vec<String> = (0..count).map(|n| self.member(&format!("m{n:05}"))).collect();
        let mut cmd = redis::cmd("ZADD");
        cmd.arg(self.space.schedule());
        for (at, member) in members.iter().enumerate() {
            cmd.arg(format!("{}.000001", 1_700_000_000 + at)).arg(member);
        }
        self.run::<()>(&cmd).await;
        members
    }

    /// The score as Redis prints it.
    async fn score(&self, member: &str) -> Option<String> {
        ask!(self, "ZSCORE", self.space.schedule(), member)
    }

    /// Remaining TTL in milliseconds; -1 = no TTL, -2 = no key.
    async fn ttl(&self, key: &str) -> i64 {
        ask!(self, "PTTL", key)
    }

    /// Who holds the lock of a member.
    async fn lock_of(&self, member: &str) -> Option<String> {
        ask!(self, "GET", self.space.lock(member.as_bytes()))
    }

    /// Makes a snapshot fail, upon which Redis refuses writes (`MISCONF`) unless its settings forbid that.
    async fn fail_a_snapshot(&self, server: &RedisServer) {
        // A folder stands where the snapshot goes.
        std::fs::create_dir_all(server.folder().join("dump.rdb").join("inside")).unwrap();
        tell!(self, "BGSAVE");
        eventually(SOON, "a failed snapshot", async || {
            let info: String = ask!(self, "INFO", "persistence");
            info.contains("rdb_last_bgsave_status:err")
        })
        .await
        .unwrap();
        // Only now: with it Redis saves by itself, and refuses BGSAVE meanwhile.
        tell!(self, "CONFIG", "SET", "save", "1 1");
    }

    /// Mutates, claims and quarantines; the member is then in quarantine alone.
    async fn quarantined(&self, name: &str, value: &str) -> String {
        let (member, _) = self.mutate(name, value).await;
        let claim = self.lease_mode().claim(1).await.unwrap();
        assert_eq!(names(&claim.entries), [member.as_str()]);
        let report = self
            .lease_mode()
            .quarantine(&[(&claim.entries[0], refusal(QuarantineReason::ValueFieldMissing))])
            .await
            .unwrap();
        assert_eq!(report.quarantined, 1);
        member
    }
}

fn names(entries: &[Claimed]) -> Vec<&str> {
    entries.iter().map(|claimed| std::str::from_utf8(&claimed.member).unwrap()).collect()
}

fn all(entries: &[Claimed]) -> Vec<&Claimed> {
    entries.iter().collect()
}

fn refusal(reason: QuarantineReason) -> Refusal {
    Refusal { reason, detail: format!("because of {reason}") }
}

fn number(score: &str) -> f64 {
    score.parse().unwrap()
}
