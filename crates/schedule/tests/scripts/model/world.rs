//! The world that the steps act on: the real Redis, the workers, and the model beside it.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicU32, Ordering},
};

use balance_sync_domain::{BalanceValue, KeySpace, QuarantineReason};
use balance_sync_sandbox::ledger::{Format, SeededBalance, describe_balances};
use balance_sync_schedule::{ClaimMode, Claimed, Link, Refusal, Schedule, ScheduleOptions, Unreadable};
use redis::{Cmd, Script, aio::MultiplexedConnection};

use super::{BALANCES, LAPSE_SECONDS, LOCK_WORKER, Sabotage, Step, WORKERS};
use crate::common;

/// What the balances of the model hold; their members are made up by each case.
static LEDGER: LazyLock<Vec<SeededBalance>> = LazyLock::new(|| describe_balances("model", BALANCES));

/// What is done to Redis beside the scripts under test.
pub(super) struct Scripts {
    mutate: Script,
    lapse: Script,
    go_claim: Script,
    go_finish: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            // KEYS schedule, balance; ARGV json, score ('' = now). Protocol §1.
            mutate: Script::new(
                r"
redis.call('SET', KEYS[2], ARGV[1], 'EX', 3600)
local time = redis.call('TIME')
local score = string.format('%s.%06d', time[1], time[2])
if ARGV[2] ~= '' then score = ARGV[2] end
redis.call('ZADD', KEYS[1], score, KEYS[2])",
            ),
            // KEYS schedule, quarantine; ARGV seconds. Every score in Redis moves, wherever it is kept.
            lapse: Script::new(
                r"
local members = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #members, 2 do
  redis.call('ZADD', KEYS[1], string.format('%.17g', tonumber(members[i + 1]) - ARGV[1]), members[i])
end
local entries = redis.call('HGETALL', KEYS[2])
for i = 1, #entries, 2 do
  local entry = cjson.decode(entries[i + 1])
  if entry.retry then
    for n = 1, 2 do entry.retry[n] = string.format('%.17g', tonumber(entry.retry[n]) - ARGV[1]) end
    redis.call('HSET', KEYS[2], entries[i], cjson.encode(entry))
  end
end",
            ),
            // KEYS schedule; ARGV limit, lock prefix. Protocol §2.
            go_claim: Script::new(
                r"
local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], time[2])
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, ARGV[1])
local mine = {}
for i = 1, #due, 2 do
  if redis.call('SET', ARGV[2] .. due[i], 1, 'NX', 'EX', 600) then
    mine[#mine + 1] = due[i]
    mine[#mine + 1] = due[i + 1]
  end
end
return mine",
            ),
            // KEYS schedule, lock; ARGV member, score. The lock goes unconditionally.
            go_finish: Script::new(
                r"
redis.call('DEL', KEYS[2])
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and tonumber(score) == tonumber(ARGV[2]) then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0",
            ),
        }
    }
}

/// What one of our workers holds.
struct Held {
    claimed: Claimed,
    written: bool,
}

/// What the ledger's worker holds.
struct GoHeld {
    member: String,
    score: String,
    /// `None` before it has read; then what it read.
    read: Option<Option<u64>>,
    written: bool,
}

/// The model of one balance, in versions; zero is none.
#[derive(Default, Clone, Copy)]
struct Balance {
    newest: u64,
    postgres: u64,
    /// Newest version when it went to quarantine last.
    quarantined: u64,
    /// Up to here versions may be missing: their loss was listed, or they were dropped by hand.
    excused: u64,
}

pub(super) struct World<'a> {
    scripts: &'a Scripts,
    redis: MultiplexedConnection,
    space: KeySpace,
    workers: Vec<Schedule>,
    members: Vec<String>,
    balances: [Balance; BALANCES],
    held: [Vec<Held>; WORKERS],
    go: Vec<GoHeld>,
    sabotage: Sabotage,
}

impl<'a> World<'a> {
    pub(super) fn new(
        scripts: &'a Scripts,
        redis: MultiplexedConnection,
        link: &Link,
        sabotage: Sabotage,
    ) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let space = common::space_of(&format!("case-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let worker = |n| {
            let options = ScheduleOptions {
                mode: if n == LOCK_WORKER { ClaimMode::Lock } else { ClaimMode::Lease },
                lock_token: format!("worker-{n}"),
                lock_scan_limit: 1,
                ..ScheduleOptions::default()
            };
            Schedule::new(link.clone(), space.clone(), Arc::new(options))
        };
        Self {
            scripts,
            redis,
            workers: (0..WORKERS).map(worker).collect(),
            members: (0..BALANCES).map(|n| format!("{}o:l:{n}#default", space.balance_prefix())).collect(),
            space,
            balances: [Balance::default(); BALANCES],
            held: [Vec::new(), Vec::new(), Vec::new()],
            go: Vec::new(),
            sabotage,
        }
    }

    pub(super) async fn take(&mut self, step: &Step) {
        match *step {
            Step::Mutate { balance } => self.mutate(balance, "").await,
            Step::MutateAt { worker, held, former } => self.mutate_at(worker, held, former).await,
            Step::Claim { worker, limit } => {
                self.claim(worker, limit).await;
            }
            Step::Write { worker, held } => self.write(worker, held).await,
            Step::Settle { worker, held } => {
                let Some(at) = pick(&self.held[worker], held) else { return };
                if self.held[worker][at].written || self.sabotage == Sabotage::SettleUnwritten {
                    let done = self.held[worker].remove(at);
                    self.settle(worker, &done.claimed).await;
                }
            }
            Step::Release { worker, held } => {
                let Some(at) = pick(&self.held[worker], held) else { return };
                let back = self.held[worker].remove(at);
                self.release(worker, &back.claimed).await;
            }
            Step::Quarantine { worker, held } => {
                let Some(at) = pick(&self.held[worker], held) else { return };
                let refused = self.held[worker].remove(at);
                self.quarantine(worker, &refused.claimed, QuarantineReason::RefusedByPostgres).await;
            }
            Step::Crash { worker } => self.held[worker].clear(),
            Step::GoClaim { limit } => self.go_claim(limit).await,
            Step::GoRead { held } => self.go_read(held).await,
            Step::GoWrite { held } => {
                let Some(at) = pick(&self.go, held) else { return };
                if let Some(Some(version)) = self.go[at].read {
                    self.go[at].written = true;
                    let balance = self.index_of(self.go[at].member.as_bytes());
                    self.store(balance, version);
                }
            }
            Step::GoFinish { held } => self.go_finish(held).await,
            Step::GoCrash => self.go.clear(),
            Step::Lapse => self.lapse().await,
            Step::LockExpires { balance } => {
                let lock = self.space.lock(self.members[balance].as_bytes());
                self.run(redis::cmd("DEL").arg(lock)).await;
            }
            Step::ValueExpires { balance } => {
                let mut cmd = redis::cmd("DEL");
                cmd.arg(&self.members[balance]);
                self.run(&cmd).await;
            }
            Step::ValueReplaced { balance } => {
                self.run(redis::cmd("DEL").arg(&self.members[balance])).await;
                self.run(redis::cmd("RPUSH").arg(&self.members[balance]).arg("element")).await;
            }
            Step::Retry { balance } => {
                self.workers[0].quarantine_retry(&[self.members[balance].as_bytes()]).await.unwrap();
            }
            Step::Drop { balance } => {
                let member = self.members[balance].as_bytes();
                if self.workers[0].quarantine_drop(&[member]).await.unwrap() == 1 {
                    let balance = &mut self.balances[balance];
                    balance.excused = balance.excused.max(balance.quarantined);
                }
            }
        }
    }

    /// What must hold after every step.
    pub(super) async fn check(&mut self) -> Result<(), String> {
        for (n, (scheduled, quarantined)) in self.look().await.into_iter().enumerate() {
            let Balance { newest, postgres, excused, .. } = self.balances[n];
            if postgres > newest {
                return Err(format!("balance {n}: postgres at {postgres} is ahead of redis at {newest}"));
            }
            if !scheduled && !quarantined && postgres < newest && newest > excused {
                return Err(format!("balance {n} is lost: postgres at {postgres}, redis at {newest}"));
            }
        }
        Ok(())
    }

    /// All workers die, everything lapses, and one worker writes what is left; then everything must be equal.
    pub(super) async fn finish(&mut self) -> Result<(), String> {
        self.held.iter_mut().for_each(Vec::clear);
        self.go.clear();
        for balance in 0..BALANCES {
            self.take(&Step::LockExpires { balance }).await;
        }
        // Once as it is, once with what a human takes out of quarantine.
        for round in 0..2 {
            self.lapse().await;
            while self.claim(LOCK_WORKER, 2).await > 0 {
                while !self.held[LOCK_WORKER].is_empty() {
                    // A value that is gone leaves by this; the other is settled.
                    self.take(&Step::Write { worker: LOCK_WORKER, held: 0 }).await;
                    if self.held[LOCK_WORKER].first().is_some_and(|held| held.written) {
                        self.take(&Step::Settle { worker: LOCK_WORKER, held: 0 }).await;
                    }
                }
            }
            self.check().await?;
            for (balance, (scheduled, quarantined)) in self.look().await.into_iter().enumerate() {
                if scheduled {
                    return Err(format!("balance {balance} is still scheduled after a drain"));
                }
                if quarantined && round == 0 {
                    self.take(&Step::Retry { balance }).await;
                }
            }
        }
        for (n, (_, quarantined)) in self.look().await.into_iter().enumerate() {
            let Balance { newest, postgres, excused, .. } = self.balances[n];
            if postgres != newest && newest > excused {
                return Err(format!(
                    "balance {n} is lost: postgres at {postgres}, redis at {newest}, at the end"
                ));
            }
            if quarantined && newest > excused {
                return Err(format!("balance {n} was written and is still in quarantine"));
            }
        }
        Ok(())
    }

    async fn run(&mut self, cmd: &Cmd) {
        cmd.query_async::<()>(&mut self.redis).await.unwrap();
    }

    /// Whether each balance is scheduled, and whether it is in quarantine.
    async fn look(&mut self) -> Vec<(bool, bool)> {
        let mut pipe = redis::pipe();
        for member in &self.members {
            pipe.cmd("ZSCORE").arg(self.space.schedule()).arg(member);
            pipe.cmd("HGET").arg(self.space.quarantine()).arg(member);
        }
        let found: Vec<Option<String>> = pipe.query_async(&mut self.redis).await.unwrap();
        found.chunks_exact(2).map(|pair| (pair[0].is_some(), pair[1].is_some())).collect()
    }

    fn index_of(&self, member: &[u8]) -> usize {
        self.members.iter().position(|other| other.as_bytes() == member).unwrap()
    }

    /// The version in a value, which must be one of this balance, with the money that goes with it.
    fn version(balance: usize, value: &[u8]) -> u64 {
        let (value, balance) = (BalanceValue::decode(value).unwrap(), &LEDGER[balance]);
        assert_eq!(value.id, balance.id, "a value of another balance");
        assert_eq!(
            value.available.as_str(),
            balance.amounts(value.version).available,
            "money of another version"
        );
        value.version.try_into().unwrap()
    }

    /// Postgres, with the version guard.
    fn store(&mut self, balance: usize, version: u64) {
        let stored = &mut self.balances[balance].postgres;
        *stored = version.max(*stored);
    }

    async fn mutate(&mut self, balance: usize, score: &str) {
        let version = self.balances[balance].newest + 1;
        // Two releases of the ledger write at once.
        let value = LEDGER[balance].json_in(Format::Mixed, version.try_into().unwrap());
        let mut call = self.scripts.mutate.key(self.space.schedule());
        call.key(&self.members[balance]).arg(value).arg(score);
        call.invoke_async::<()>(&mut self.redis).await.unwrap();
        self.balances[balance].newest = version;
    }

    async fn mutate_at(&mut self, worker: usize, held: usize, former: bool) {
        let Some(at) = pick(&self.held[worker], held) else { return };
        let claimed = &self.held[worker][at].claimed;
        let score = number(if former { &claimed.former } else { &claimed.lease });
        // A producer writes whole microseconds.
        let score = format!("{:.6}", (score * 1e6).floor() / 1e6);
        let balance = self.index_of(&claimed.member);
        let same = |go: &GoHeld| go.member == self.members[balance] && number(&go.score) == number(&score);
        if !self.go.iter().any(same) {
            self.mutate(balance, &score).await;
        }
    }

    async fn claim(&mut self, worker: usize, limit: usize) -> usize {
        let mut claim = self.workers[worker].claim(limit).await.unwrap();
        if self.sabotage == Sabotage::WholeMicroseconds {
            for claimed in &mut claim.entries {
                let whole = claimed.lease[..claimed.lease.len() - 1].to_owned();
                let mut cmd = redis::cmd("ZADD");
                cmd.arg(self.space.schedule()).arg("XX").arg(&whole).arg(&claimed.member);
                self.run(&cmd).await;
                claimed.lease = Arc::from(whole);
            }
        }
        for claimed in &claim.entries {
            self.check_answer(claimed).await;
        }
        let count = claim.entries.len();
        self.held[worker].extend(claim.entries.into_iter().map(|claimed| Held { claimed, written: false }));
        count
    }

    /// What a claim says of a value, right after it: there, gone, or something else. A kept value may stand in for the
    /// last two.
    async fn check_answer(&mut self, claimed: &Claimed) {
        let mut cmd = redis::cmd("TYPE");
        cmd.arg(&claimed.member);
        let kind: String = cmd.query_async(&mut self.redis).await.unwrap();
        let answer = (claimed.value.is_some(), claimed.unreadable.clone());
        let fits = match kind.as_str() {
            "string" => answer == (true, None),
            "none" => answer.1.is_none(),
            _ => {
                let list = Unreadable::Refused("its key is of type list".to_owned());
                answer == (true, None) || answer == (false, Some(list))
            }
        };
        assert!(fits, "a {kind}, answered as {answer:?}");
    }

    async fn write(&mut self, worker: usize, held: usize) {
        let Some(at) = pick(&self.held[worker], held) else { return };
        let claimed = &self.held[worker][at].claimed;
        let balance = self.index_of(&claimed.member);
        if let Some(value) = &claimed.value {
            let version = Self::version(balance, value);
            self.store(balance, version);
            self.held[worker][at].written = true;
        } else {
            let gone = self.held[worker].remove(at);
            let reason = if gone.claimed.unreadable.is_some() {
                QuarantineReason::ValueUnreadable
            } else {
                QuarantineReason::ValueExpired
            };
            self.quarantine(worker, &gone.claimed, reason).await;
        }
    }

    async fn settle(&mut self, worker: usize, claimed: &Claimed) {
        if self.sabotage == Sabotage::BlindSettle {
            for (command, key) in
                [("ZREM", self.space.schedule()), ("HDEL", self.space.quarantine().as_str())]
            {
                let mut cmd = redis::cmd(command);
                cmd.arg(key).arg(&claimed.member);
                cmd.query_async::<()>(&mut self.redis).await.unwrap();
            }
        } else {
            self.workers[worker].settle(&[claimed]).await.unwrap();
        }
    }

    async fn release(&mut self, worker: usize, claimed: &Claimed) {
        if self.sabotage == Sabotage::BlindRelease {
            let mut cmd = redis::cmd("ZADD");
            cmd.arg(self.space.schedule()).arg("XX").arg(&claimed.former).arg(&claimed.member);
            self.run(&cmd).await;
        } else {
            self.workers[worker].release(&[claimed]).await.unwrap();
        }
    }

    async fn quarantine(&mut self, worker: usize, claimed: &Claimed, reason: QuarantineReason) {
        let refusal = Refusal { reason, detail: String::new() };
        let report = self.workers[worker].quarantine(&[(claimed, refusal)]).await.unwrap();
        if report.quarantined == 1 {
            // It was under the lease, so no mutation has come since the claim.
            let balance = self.index_of(&claimed.member);
            let balance = &mut self.balances[balance];
            balance.quarantined = balance.newest;
            if claimed.value.is_none() {
                balance.excused = balance.newest;
            }
        }
    }

    async fn go_claim(&mut self, limit: usize) {
        let mut call = self.scripts.go_claim.key(self.space.schedule());
        call.arg(limit).arg(self.space.lock_prefix());
        let mine: Vec<String> = call.invoke_async(&mut self.redis).await.unwrap();
        for pair in mine.chunks_exact(2) {
            let (member, score) = (pair[0].clone(), pair[1].clone());
            self.go.push(GoHeld { member, score, read: None, written: false });
        }
    }

    async fn go_read(&mut self, held: usize) {
        let Some(at) = pick(&self.go, held) else { return };
        if self.go[at].read.is_some() {
            return;
        }
        let mut cmd = redis::cmd("GET");
        cmd.arg(&self.go[at].member);
        // What is of another type that worker can't read either: it fails, and claims anew after its lock.
        let Ok(value) = cmd.query_async::<Option<Vec<u8>>>(&mut self.redis).await else { return };
        let balance = self.index_of(self.go[at].member.as_bytes());
        self.go[at].read = Some(value.map(|value| Self::version(balance, &value)));
    }

    async fn go_finish(&mut self, held: usize) {
        let Some(at) = pick(&self.go, held) else { return };
        let expired = self.go[at].read == Some(None);
        if !self.go[at].written && !expired {
            return;
        }
        let done = self.go.remove(at);
        let mut call = self.scripts.go_finish.key(self.space.schedule());
        call.key(self.space.lock(done.member.as_bytes())).arg(&done.member).arg(&done.score);
        let removed: u64 = call.invoke_async(&mut self.redis).await.unwrap();
        if removed == 1 && expired {
            // That worker drops what has expired without a word; ours can't help it.
            let balance = self.index_of(done.member.as_bytes());
            self.balances[balance].excused = self.balances[balance].newest;
        }
    }

    async fn lapse(&mut self) {
        let mut call = self.scripts.lapse.key(self.space.schedule());
        call.key(self.space.quarantine()).arg(LAPSE_SECONDS);
        call.invoke_async::<()>(&mut self.redis).await.unwrap();
        for held in self.held.iter_mut().flatten() {
            held.claimed.lease = Arc::from(earlier(&held.claimed.lease));
            held.claimed.former = earlier(&held.claimed.former);
        }
        for held in &mut self.go {
            held.score = earlier(&held.score);
        }
    }
}

/// The position that a step's number means.
fn pick<T>(held: &[T], number: usize) -> Option<usize> {
    (!held.is_empty()).then(|| number % held.len())
}

/// The same moment after a lapse. The script subtracts the same whole number, so both are the same double.
fn earlier(score: &str) -> String {
    format!("{}", number(score) - f64::from(LAPSE_SECONDS))
}

fn number(score: &str) -> f64 {
    score.parse().unwrap()
}
