//! The model of Redis against the real scripts: the same random programs on a real Redis and on the model, with the same
//! answers and the same scores, values and quarantine after each step.
//!
//! The model takes the clock that the server shows. Time passes by moving all scores into the past by the same whole number of
//! seconds on both sides.

use std::sync::Arc;

use crate::bugs::Bug;
use crate::model::{self, Held, Rules};
use balance_sync_domain::{KeySpace, TenantId};
use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_schedule::{Claimed, Link, LinkSettings, Refusal, Schedule, ScheduleOptions};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use redis::{Cmd, Script, aio::MultiplexedConnection};

const BALANCES: usize = 4;
const PROGRAMS: u64 = 60;
const STEPS: usize = 60;
/// Longer than the claim TTL, and a whole number, so that scores stay exact doubles.
const LAPSE: f64 = 64.0;
/// A value lives less than this after a mutation, and longer once it is protected.
const BETWEEN_MS: u64 = 600_000;
const RULES: Rules =
    Rules { bug: None, claim_ttl: 30_000_000, protect_floor: 900_000_000, value_ttl: 300_000_000 };

/// What a worker holds, on both sides.
type Both = (Claimed, Held);

struct Pair {
    rules: Rules,
    redis: MultiplexedConnection,
    space: KeySpace,
    schedule: Schedule,
    members: Vec<String>,
    model: model::Schedule,
    held: [Vec<Both>; 2],
    versions: [u64; BALANCES],
    /// The server's clock, in microseconds.
    now: u64,
}

impl Pair {
    /// The next step of a program.
    async fn step(&mut self, rng: &mut SmallRng) -> String {
        let (worker, balance) = (rng.random_range(0..2), rng.random_range(0..BALANCES));
        match rng.random_range(0..12) {
            0..=2 => self.mutate(balance).await,
            3..=5 => self.claim(worker, rng.random_range(1..=BALANCES)).await,
            6 | 7 => self.settle(worker).await,
            8 => self.release(worker).await,
            9 => self.quarantine(worker).await,
            10 => self.lapse().await,
            _ if rng.random() => self.expire(balance).await,
            _ => self.protect(balance).await,
        }
    }

    async fn mutate(&mut self, balance: usize) -> String {
        self.versions[balance] += 1;
        let script = Script::new(
            "local t = redis.call('TIME')
redis.call('SET', KEYS[2], ARGV[1], 'EX', 300)
redis.call('ZADD', KEYS[1], string.format('%s.%06d', t[1], t[2]), KEYS[2])
return t[1] * 1000000 + t[2]",
        );
        let version = self.versions[balance];
        let key = self.space.schedule();
        let call = &mut script.key(key);
        self.now = call.key(&self.members[balance]).arg(version).invoke_async(&mut self.redis).await.unwrap();
        self.model.mutate(self.now, balance, version, false, self.rules);
        format!("mutate {balance}")
    }

    async fn claim(&mut self, worker: usize, limit: usize) -> String {
        let claim = self.schedule.claim(limit).await.unwrap();
        self.now = (claim.now * 1e6).round() as u64;
        let answer = self.model.claim(self.now, limit, self.rules);
        assert_eq!(claim.scheduled, answer.scheduled);
        assert_eq!(claim.entries.len(), answer.members.len(), "claimed");
        for (real, held) in claim.entries.into_iter().zip(answer.members) {
            assert_eq!(real.member, self.members[held.balance].as_bytes());
            assert_eq!(real.lease.parse(), Ok(held.lease));
            assert_eq!(real.former.parse(), Ok(held.former));
            let version = real.value.as_deref().map(|value| String::from_utf8_lossy(value).into_owned());
            assert_eq!(version, held.value.map(|value| value.version.to_string()));
            self.held[worker].push((real, held));
        }
        format!("worker {worker} claims {limit}")
    }

    async fn settle(&mut self, worker: usize) -> String {
        let held = std::mem::take(&mut self.held[worker]);
        let (real, model) = split(&held);
        let report = self.schedule.settle(&real).await.unwrap();
        let removed = self.model.settle(&model, self.rules);
        assert_eq!(
            (report.removed, report.kept),
            (removed.len() as u64, (held.len() - removed.len()) as u64)
        );
        format!("worker {worker} settles")
    }

    async fn release(&mut self, worker: usize) -> String {
        let held = std::mem::take(&mut self.held[worker]);
        let (real, model) = split(&held);
        let report = self.schedule.release(&real).await.unwrap();
        assert_eq!(report.released, self.model.release(self.now, &model, self.rules) as u64);
        format!("worker {worker} releases")
    }

    async fn quarantine(&mut self, worker: usize) -> String {
        let held = std::mem::take(&mut self.held[worker]);
        let (real, model) = split(&held);
        let refused: Vec<_> = real
            .iter()
            .map(|&real| (real, Refusal { reason: "missing_row", detail: String::new() }))
            .collect();
        let report = self.schedule.quarantine(&refused).await.unwrap();
        assert_eq!(report.quarantined, self.model.quarantine(&model, self.rules).len() as u64);
        format!("worker {worker} quarantines")
    }

    /// All leases end.
    async fn lapse(&mut self) -> String {
        let script = Script::new(
            "local members = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #members, 2 do
  redis.call('ZADD', KEYS[1], string.format('%.17g', tonumber(members[i + 1]) - ARGV[1]), members[i])
end",
        );
        let key = self.space.schedule();
        let () = script.key(key).arg(LAPSE).invoke_async(&mut self.redis).await.unwrap();
        for score in self.model.entries.iter_mut().filter_map(|entry| entry.score.as_mut()) {
            *score -= LAPSE;
        }
        for (real, held) in self.held.iter_mut().flatten() {
            held.lease -= LAPSE;
            held.former -= LAPSE;
            real.lease = held.lease.to_string().into();
            real.former = held.former.to_string();
        }
        "leases end".to_owned()
    }

    async fn expire(&mut self, balance: usize) -> String {
        let () =
            Cmd::new().arg("DEL").arg(&self.members[balance]).query_async(&mut self.redis).await.unwrap();
        self.model.entries[balance].value = None;
        format!("value {balance} expires")
    }

    async fn protect(&mut self, balance: usize) -> String {
        if let Some(from) = self.model.entries[balance].score {
            self.schedule.protect_since(Some(from)).await.unwrap();
            self.model.protect_from(self.now, from, self.rules);
        }
        format!("protect from the score of {balance}")
    }

    /// Both sides are equal.
    async fn compare(&mut self) {
        for (balance, member) in self.members.iter().enumerate() {
            let entry = &self.model.entries[balance];
            let (score, quarantined, life): (Option<f64>, bool, i64) = redis::pipe()
                .zscore(self.space.schedule(), member)
                .hexists(self.space.quarantine(), member)
                .pttl(member)
                .query_async(&mut self.redis)
                .await
                .unwrap();
            assert_eq!(score, entry.score, "score of {balance}");
            assert_eq!(quarantined, entry.quarantined, "quarantine of {balance}");
            let value = entry.value.map(|value| value.expires > self.now + BETWEEN_MS * 1000);
            let real = u64::try_from(life).ok().map(|life| life > BETWEEN_MS);
            assert_eq!(real, value, "remaining TTL of {balance}: {life} ms");
        }
    }
}

fn split(held: &[Both]) -> (Vec<&Claimed>, Vec<Held>) {
    (held.iter().map(|(real, _)| real).collect(), held.iter().map(|(_, model)| *model).collect())
}

/// Plays programs on both sides; panics at the first difference.
async fn play(server: Arc<RedisServer>, name: String, bug: Option<Bug>) {
    let link = Link::new(&LinkSettings::for_url(&server.url())).unwrap();
    for program in 0..PROGRAMS {
        let space = KeySpace::tenant(&TenantId::parse(&format!("{name}-{program}")).unwrap());
        let mut pair = Pair {
            rules: Rules { bug, ..RULES },
            redis: server.connect().await.unwrap(),
            schedule: Schedule::new(link.clone(), space.clone(), Arc::new(ScheduleOptions::default())),
            members: (0..BALANCES).map(|n| format!("{}o:l:{n}#default", space.balance_prefix())).collect(),
            space,
            model: model::Schedule::new(BALANCES),
            held: [Vec::new(), Vec::new()],
            versions: [0; BALANCES],
            now: 0,
        };
        let mut rng = SmallRng::seed_from_u64(program);
        for step in 0..STEPS {
            let what = pair.step(&mut rng).await;
            println!("{name}, program {program}, step {step}: {what}");
            pair.compare().await;
        }
    }
}

#[tokio::test]
async fn the_model_answers_as_the_scripts_do() {
    let server = Arc::new(RedisServer::start(RedisOptions::default()).await.unwrap());
    play(server, "programs".to_owned(), None).await;
}

/// A comparison that can't fail proves nothing: a model without one of the rules differs from the scripts.
#[tokio::test]
async fn a_model_with_a_bug_differs() {
    let server = Arc::new(RedisServer::start(RedisOptions::default()).await.unwrap());
    let bugs = [
        Bug::BlindSettle,
        Bug::SettleAnyLease,
        Bug::BlindRelease,
        Bug::ReleaseRemoves,
        Bug::BlindQuarantine,
        Bug::WholeMicrosecondLease,
        Bug::LeaseNotMoved,
        Bug::EndlessLease,
        Bug::LapsedLeaseNotClaimed,
        Bug::NeverProtect,
    ];
    for bug in bugs {
        let played = tokio::spawn(play(Arc::clone(&server), bug.to_string(), Some(bug))).await;
        assert!(played.is_err_and(|error| error.is_panic()), "{bug} makes no difference");
    }
}
