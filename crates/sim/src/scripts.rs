//! The model of Redis against the real scripts: the same random programs on a real Redis and on the model, with the same
//! answers and the same scores, values, locks, quarantine and losses after each step.
//!
//! The model takes the clock that the server shows. Time passes by moving all scores into the past by the same whole number of
//! seconds on both sides, and with them goes every lock.

use std::sync::Arc;

use balance_sync_domain::{KeySpace, QuarantineReason, TenantId};
use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_schedule::{
    ClaimMode, Claimed, Link, LinkSettings, Loss, Refusal, Schedule, ScheduleOptions,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use redis::{Cmd, Script, aio::MultiplexedConnection};

use crate::{
    bugs::Bug,
    redis::{self as model, Held, Owner, Rules},
    values::{Document, Shape, State},
};

const BALANCES: usize = 5;
/// The member of this balance ends as the key of a deletion marker does.
const MARKED: usize = 0;
const PROGRAMS: u64 = 80;
const STEPS: usize = 80;
/// Longer than the claim TTL and the delays of members that are put off, and a whole number, so that scores stay exact
/// doubles.
const LAPSE: f64 = 1024.0;
/// TTLs of values in seconds, and by how much, in microseconds, both sides may differ: the scripts have their own clock.
const VALUE_TTL: u64 = 300;
const MARKER_TTL: u64 = 600;
const APART: u64 = 100_000_000;
const PUT_OFF: u64 = 500_000_000;
const SCAN_LIMIT: usize = 3;
/// In Redis's time.
const RULES: Rules = Rules {
    bug: None,
    claim_ttl: 30_000_000,
    protect_floor: 900_000_000,
    lock: None,
    scan_limit: SCAN_LIMIT,
};

/// What a worker holds, on both sides.
type Both = (Claimed, Held);

struct Worker {
    rules: Rules,
    schedule: Schedule,
    resume: usize,
    held: Vec<Both>,
}

struct Pair {
    redis: MultiplexedConnection,
    space: KeySpace,
    members: Vec<String>,
    model: model::Schedule,
    workers: [Worker; 2],
    versions: u64,
    /// The server's clock, in microseconds.
    now: u64,
}

/// The text of a value.
fn text(document: &Document) -> String {
    document.json(1)
}

impl Pair {
    /// The next step of a program.
    async fn step(&mut self, rng: &mut SmallRng) -> String {
        self.tick().await;
        let (worker, balance) = (rng.random_range(0..2), rng.random_range(0..BALANCES));
        match rng.random_range(0..26) {
            0..=4 => self.mutate(balance).await,
            5..=9 => self.claim(worker, rng.random_range(1..=BALANCES)).await,
            10 | 11 => self.settle(worker, true).await,
            12 => self.settle(worker, false).await,
            13 | 14 => self.release(worker).await,
            15 => self.quarantine(worker).await,
            16 => self.postpone(worker, rng.random()).await,
            17 | 18 => self.lose(worker, rng.random()).await,
            19 => self.retry().await,
            20 | 21 => self.lapse().await,
            22 => self.lock_by_ledger(balance).await,
            23 if rng.random() => self.expire(balance).await,
            23 => self.mark().await,
            24 => self.schedule_again(worker, balance).await,
            _ => self.protect(worker, rng.random_bool(0.5).then_some(balance)).await,
        }
    }

    async fn tick(&mut self) {
        let (seconds, micros): (u64, u64) =
            Cmd::new().arg("TIME").query_async(&mut self.redis).await.unwrap();
        self.now = seconds * 1_000_000 + micros;
    }

    async fn mutate(&mut self, balance: usize) -> String {
        self.versions += 1;
        let state = State { version: self.versions, mark: self.versions };
        let shape = if self.versions.is_multiple_of(2) { Shape::Upper } else { Shape::Dual { lower: state } };
        let document = Document { state, shape };
        let script = Script::new(
            "local t = redis.call('TIME')
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
redis.call('ZADD', KEYS[1], string.format('%s.%06d', t[1], t[2]), KEYS[2])
return t[1] * 1000000 + t[2]",
        );
        let key = self.space.schedule();
        let call = &mut script.key(key);
        let call = call.key(&self.members[balance]).arg(text(&document)).arg(VALUE_TTL);
        self.now = call.invoke_async(&mut self.redis).await.unwrap();
        self.model.mutate(self.now, balance, document, VALUE_TTL * 1_000_000);
        format!("mutate {balance}")
    }

    async fn claim(&mut self, at: usize, limit: usize) -> String {
        let worker = &mut self.workers[at];
        let claim = worker.schedule.claim(limit).await.unwrap();
        self.now = (claim.now * 1e6).round() as u64;
        let answer = self.model.claim(self.now, limit, worker.resume, worker.rules);
        worker.resume = answer.resume;
        assert_eq!((claim.scheduled, claim.foreign), (answer.scheduled, answer.foreign));
        match (claim.unlock_in, answer.unlock_in) {
            (Some(real), Some(ours)) => {
                assert!(real.as_micros().abs_diff(ours.into()) < APART.into(), "{real:?}, {ours}")
            }
            (real, ours) => assert_eq!((real, ours), (None, None)),
        }
        assert_eq!(claim.entries.len(), answer.members.len(), "claimed");
        for (real, held) in claim.entries.into_iter().zip(answer.members) {
            assert_eq!(real.member, self.members[held.balance].as_bytes());
            assert_eq!(real.lease.parse(), Ok(held.lease));
            assert_eq!(real.former.parse(), Ok(held.former));
            let value = real.value.as_deref().map(|value| String::from_utf8_lossy(value).into_owned());
            assert_eq!(value, held.value.map(|value| text(&value.document)));
            worker.held.push((real, held));
        }
        format!("worker {at} claims {limit}")
    }

    /// Takes what a worker holds: of these, and all or none of them has a value.
    fn take(&mut self, at: usize, of: impl Fn(&Held) -> bool) -> (Vec<Claimed>, Vec<Held>) {
        let held = std::mem::take(&mut self.workers[at].held);
        let (taken, left): (Vec<Both>, Vec<Both>) = held.into_iter().partition(|(_, held)| of(held));
        self.workers[at].held = left;
        taken.into_iter().unzip()
    }

    async fn settle(&mut self, at: usize, written: bool) -> String {
        let (real, model) = self.take(at, |held| held.value.is_some() == written);
        let real: Vec<&Claimed> = real.iter().collect();
        let worker = &self.workers[at];
        let report = match written {
            true => worker.schedule.settle(&real).await.unwrap(),
            false => worker.schedule.dismiss(&real).await.unwrap(),
        };
        let removed = self.model.settle(self.now, &model, written, worker.rules).len();
        assert_eq!((report.removed, report.kept), (removed as u64, (real.len() - removed) as u64));
        format!("worker {at} {}", if written { "settles" } else { "dismisses" })
    }

    async fn release(&mut self, at: usize) -> String {
        let (real, model) = self.take(at, |_| true);
        let real: Vec<&Claimed> = real.iter().collect();
        let worker = &self.workers[at];
        let report = worker.schedule.release(&real).await.unwrap();
        assert_eq!(report.released, self.model.release(self.now, &model, worker.rules) as u64);
        format!("worker {at} releases")
    }

    async fn quarantine(&mut self, at: usize) -> String {
        let (real, model) = self.take(at, |held| held.value.is_some());
        let refused: Vec<_> = real
            .iter()
            .map(|real| (real, Refusal { reason: QuarantineReason::MissingRow, detail: String::new() }))
            .collect();
        let worker = &self.workers[at];
        let report = worker.schedule.quarantine(&refused).await.unwrap();
        assert_eq!(report.quarantined, self.model.quarantine(self.now, &model, worker.rules).len() as u64);
        format!("worker {at} quarantines")
    }

    async fn postpone(&mut self, at: usize, keep_alive: bool) -> String {
        let (real, model) = self.take(at, |_| true);
        let real: Vec<_> = real.iter().map(|real| (real, keep_alive)).collect();
        let model: Vec<_> = model.into_iter().map(|held| (held, keep_alive)).collect();
        let worker = &self.workers[at];
        let report = worker.schedule.postpone(&real).await.unwrap();
        let (postponed, due) = self.model.postpone(self.now, &model, PUT_OFF, worker.rules);
        assert_eq!(report.postponed, postponed as u64);
        assert!(real.is_empty() || (0.0..60.0).contains(&(report.due - due)), "{report:?}");
        self.take_clock().await;
        format!("worker {at} puts off, keeping alive: {keep_alive}")
    }

    /// Two balances are behind.
    async fn schedule_again(&mut self, at: usize, balance: usize) -> String {
        let worker = &self.workers[at];
        let behind = [balance, (balance + 1) % BALANCES];
        let members = behind.map(|balance| self.members[balance].as_bytes());
        let added = behind.iter().filter(|balance| self.model.entries[**balance].score.is_none()).count();
        assert_eq!(worker.schedule.schedule_again(&members).await.unwrap(), added as u64);
        for balance in self.model.schedule_again(self.now, &behind, worker.rules) {
            // The script has read a clock that it doesn't report.
            let mut score = Cmd::new();
            score.arg("ZSCORE").arg(self.space.schedule()).arg(&self.members[balance]);
            let real: f64 = score.query_async(&mut self.redis).await.unwrap();
            let ours = model::whole(self.now);
            assert!(!model::is_lease(real) && (ours..ours + 60.0).contains(&real), "{real}, {ours}");
            self.model.entries[balance].score = Some(real);
        }
        format!("{behind:?} are made due")
    }

    async fn lose(&mut self, at: usize, confirmed: bool) -> String {
        let (real, model) = self.take(at, |held| held.value.is_none());
        let lost: Vec<_> = real.iter().map(|real| (real, Loss { confirmed, ..Loss::default() })).collect();
        let model: Vec<_> = model.into_iter().map(|held| (held, confirmed.then_some(1))).collect();
        let worker = &self.workers[at];
        let report = worker.schedule.record_losses(&lost).await.unwrap();
        assert_eq!(report.quarantined, self.model.lose(self.now, &model, worker.rules).len() as u64);
        format!("worker {at} records losses, confirmed: {confirmed}")
    }

    async fn retry(&mut self) -> String {
        let lost: Vec<&[u8]> = (self.model.entries.iter().zip(&self.members))
            .filter(|(entry, _)| entry.loss.is_some() && !entry.quarantined)
            .map(|(_, member)| member.as_bytes())
            .collect();
        if !lost.is_empty() {
            self.workers[0].schedule.quarantine_retry(&lost).await.unwrap();
            self.model.retry_losses(self.now);
            self.take_clock().await;
        }
        "losses are looked at again".to_owned()
    }

    /// The last script has read a clock that it doesn't report: the scores that it made are the model's from now on, if they
    /// are what the model expects but for the time in between.
    async fn take_clock(&mut self) {
        for (balance, member) in self.members.iter().enumerate() {
            let score: Option<f64> = redis::pipe()
                .zscore(self.space.schedule(), member)
                .query_async::<(Option<f64>,)>(&mut self.redis)
                .await
                .unwrap()
                .0;
            let known = &mut self.model.entries[balance].score;
            if let (Some(real), Some(ours)) = (score, *known)
                && model::is_lease(real)
                && model::is_lease(ours)
                && (0.0..60.0).contains(&(real - ours))
            {
                *known = score;
            }
        }
    }

    /// All leases end, and all locks.
    async fn lapse(&mut self) -> String {
        let script = Script::new(
            "local members = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #members, 2 do
  redis.call('ZADD', KEYS[1], string.format('%.17g', tonumber(members[i + 1]) - ARGV[1]), members[i])
end",
        );
        let key = self.space.schedule();
        let () = script.key(key).arg(LAPSE).invoke_async(&mut self.redis).await.unwrap();
        let locks: Vec<_> = self.members.iter().map(|member| self.space.lock(member.as_bytes())).collect();
        let () = Cmd::new().arg("DEL").arg(locks).query_async(&mut self.redis).await.unwrap();
        for entry in &mut self.model.entries {
            entry.lock = None;
            entry.score = entry.score.map(|score| score - LAPSE);
        }
        for (real, held) in self.workers.iter_mut().flat_map(|worker| &mut worker.held) {
            held.lease -= LAPSE;
            held.former -= LAPSE;
            real.lease = held.lease.to_string().into();
            real.former = held.former.to_string();
        }
        "leases end".to_owned()
    }

    /// The ledger's own worker takes a lock, or lets it go.
    async fn lock_by_ledger(&mut self, balance: usize) -> String {
        let lock = self.space.lock(self.members[balance].as_bytes());
        if self.model.entries[balance].locked_by(self.now) == Some(Owner::Pod) {
            let () = Cmd::new().arg("DEL").arg(lock).query_async(&mut self.redis).await.unwrap();
            self.model.delete_lock(balance);
            return format!("the ledger's worker unlocks {balance}");
        }
        let mut set = Cmd::new();
        set.arg("SET").arg(lock).arg(1).arg("NX").arg("EX").arg(600);
        let taken: Option<String> = set.query_async(&mut self.redis).await.unwrap();
        let free = self.model.lock(self.now, balance, Owner::Pod, 600_000_000);
        assert_eq!(taken.is_some(), free);
        format!("the ledger's worker locks {balance}: {free}")
    }

    async fn expire(&mut self, balance: usize) -> String {
        let () =
            Cmd::new().arg("DEL").arg(&self.members[balance]).query_async(&mut self.redis).await.unwrap();
        self.model.entries[balance].value = None;
        format!("value {balance} expires")
    }

    /// A deletion marker stands where a value was.
    async fn mark(&mut self) -> String {
        self.versions += 1;
        let state = State { version: 0, mark: self.versions };
        let document = Document { state, shape: Shape::Marker };
        let mut set = Cmd::new();
        set.arg("SET").arg(&self.members[MARKED]).arg(text(&document)).arg("EX").arg(MARKER_TTL);
        let () = set.query_async(&mut self.redis).await.unwrap();
        let expires = self.now + MARKER_TTL * 1_000_000;
        self.model.entries[MARKED].value = Some(model::Value { document, expires });
        "a deletion marker is set".to_owned()
    }

    async fn protect(&mut self, at: usize, balance: Option<usize>) -> String {
        let worker = &self.workers[at];
        let from = match balance {
            Some(balance) => self.model.entries[balance].score,
            None => Some(f64::NEG_INFINITY),
        };
        if let Some(from) = from {
            match balance {
                Some(_) => {
                    worker.schedule.protect_since(Some(from)).await.unwrap();
                }
                None => {
                    worker.schedule.protect_page(None).await.unwrap();
                }
            }
            self.model.protect_from(self.now, from, worker.rules);
        }
        format!("protect from {balance:?}")
    }

    /// Both sides are equal.
    async fn compare(&mut self) {
        self.tick().await;
        for (balance, member) in self.members.iter().enumerate() {
            let entry = &self.model.entries[balance];
            type Real = (Option<f64>, bool, Option<String>, i64, Option<String>, Option<String>);
            let (score, quarantined, loss, ttl, value, lock): Real = redis::pipe()
                .zscore(self.space.schedule(), member)
                .hexists(self.space.quarantine(), member)
                .hget(self.space.losses(), member)
                .pttl(member)
                .get(member)
                .get(self.space.lock(member.as_bytes()))
                .query_async(&mut self.redis)
                .await
                .unwrap();
            assert_eq!(score, entry.score, "score of {balance}");
            assert_eq!(quarantined, entry.quarantined, "quarantine of {balance}");
            let loss = loss.map(|entry| {
                let has = |text: &str| entry.contains(text);
                (has("\"confirmed\":true"), has("\"later_at\""), has("\"retry\""))
            });
            let known = entry.loss.map(|loss| (loss.version.is_some(), loss.later, loss.retry));
            assert_eq!(loss, known, "loss of {balance}");
            assert_eq!(value, entry.value.map(|value| text(&value.document)), "value of {balance}");
            if let Some(value) = entry.value {
                let expires = self.now + u64::try_from(ttl).unwrap_or(0) * 1000;
                assert!(expires.abs_diff(value.expires) < APART, "TTL of {balance}: {ttl} ms, {value:?}");
            }
            let holder = lock.map(|token| match token.as_str() {
                "1" => Owner::Pod,
                token => Owner::Worker(token.trim_start_matches("worker-").parse().unwrap()),
            });
            assert_eq!(holder, entry.locked_by(self.now), "lock of {balance}");
        }
    }
}

/// Plays programs on both sides; panics at the first difference.
async fn play(server: Arc<RedisServer>, name: String, bug: Option<Bug>) {
    let link = Link::new(&LinkSettings::for_url(&server.url())).unwrap();
    for program in 0..PROGRAMS {
        let space = KeySpace::tenant(&TenantId::parse(&format!("{name}-{program}")).unwrap());
        // Every other program in mode `lock`.
        let lock = program % 2 == 1;
        let workers = [0, 1].map(|token| {
            let options = ScheduleOptions {
                mode: if lock { ClaimMode::Lock } else { ClaimMode::Lease },
                lock_token: format!("worker-{token}"),
                lock_scan_limit: SCAN_LIMIT,
                put_off: std::time::Duration::from_micros(PUT_OFF),
                ..ScheduleOptions::default()
            };
            Worker {
                rules: Rules { bug, lock: lock.then_some(token), ..RULES },
                schedule: Schedule::new(link.clone(), space.clone(), Arc::new(options)),
                resume: 0,
                held: Vec::new(),
            }
        });
        let member = |n: usize| {
            let end = if n == MARKED { ":deleted" } else { "" };
            format!("{}o:l:{n}#default{end}", space.balance_prefix())
        };
        let mut pair = Pair {
            redis: server.connect().await.unwrap(),
            members: (0..BALANCES).map(member).collect(),
            model: model::Schedule::new(BALANCES),
            space,
            workers,
            versions: 0,
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
        Bug::ClaimDoesNotProtect,
        Bug::PutOffExpires,
        Bug::MarkerKeptAlive,
        Bug::BlindPostpone,
        Bug::BlindLoss,
        Bug::LossCleared,
        Bug::LaterNotMarked,
        Bug::HeldNotRescheduled,
        Bug::LockedNotRescheduled,
        Bug::LockIgnored,
        Bug::BlindUnlock,
        Bug::LocksHideTheRest,
    ];
    for bug in bugs {
        let played = tokio::spawn(play(Arc::clone(&server), bug.to_string(), Some(bug))).await;
        assert!(played.is_err_and(|error| error.is_panic()), "{bug} makes no difference");
    }
}
