//! Messages between workers and servers, and what the servers do with them.
//!
//! A request arrives after a while, or never; its answer comes after another while, or never; the worker gives up at its
//! own deadline. What arrives is executed whether its caller still waits for the answer or not.

use balance_sync_engine::failure::{self, Failure, PostgresClass, RedisClass, Side};
use rand::Rng;

use crate::{
    bugs::Bug,
    driver::{Slot, To},
    flight::Flight,
    plan::SECOND,
    postgres::{Fate, Row},
    redis::{self, ClaimAnswer, Held, Owner, Rules},
    world::{LATE, What, World},
};

/// A request on its way.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    to: To,
    request: Request,
    /// The worker doesn't wait longer.
    expires: u64,
    /// Its answer gets lost.
    unanswered: bool,
    /// It has waited for locked rows.
    waited: bool,
}

/// A write waits so long for locked rows. After that the others are written.
const LOCK_WAIT: u64 = SECOND / 2;

#[derive(Debug, Clone)]
pub(crate) enum Request {
    Claim {
        limit: usize,
        resume: usize,
    },
    /// Members, and whether they are written.
    Settle(Vec<Held>, bool),
    Release(Vec<Held>),
    Quarantine(Vec<Held>),
    /// Members, each with whether its value is kept alive; and for how long.
    Postpone(Vec<(Held, bool)>, u64),
    /// Members, each with the version that is lost.
    Lose(Vec<(Held, Option<u64>)>),
    Protect {
        from: Option<f64>,
    },
    Connect,
    Ping,
    Write(Vec<Row>),
    /// What became of balances.
    Fates(Vec<usize>),
}

impl Request {
    fn is_for_postgres(&self) -> bool {
        matches!(self, Self::Connect | Self::Ping | Self::Write(_) | Self::Fates(_))
    }
}

/// What a server answered.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Claimed(ClaimAnswer),
    /// So many members.
    Done(usize),
    /// So many members, and the score that they have now.
    PutOff(usize, f64),
    /// The server's time, in seconds.
    Time(f64),
    /// Rows are written, on this timeline; but for these, which are locked.
    Written(u32, Vec<usize>),
    /// What became of balances, when the server was started, and whether it refuses writes.
    Fates(Vec<Fate>, u64, bool),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Refused,
    /// By a server that answers pings.
    ReadOnly,
    Timeout,
}

pub(crate) fn failure(side: Side, cause: Cause) -> Failure {
    let cause = match (side, cause) {
        (Side::Sink, Cause::Refused) => failure::Cause::Postgres(PostgresClass::Connection),
        (Side::Sink, Cause::ReadOnly) => failure::Cause::Postgres(PostgresClass::ReadOnly),
        (Side::Sink, Cause::Timeout) => failure::Cause::Postgres(PostgresClass::Timeout),
        _ => failure::Cause::Redis(RedisClass::Unavailable),
    };
    Failure::new(side, cause, "")
}

fn named(members: &[Held]) -> String {
    let mut text = String::new();
    for held in members {
        let version = held.value.map_or("none".to_owned(), |value| value.document.state.version.to_string());
        text += &format!(" {}@{version}", held.balance);
    }
    text
}

impl World {
    pub(crate) fn task(&mut self, (worker, tenant): (usize, usize), slot: Slot) -> To {
        self.next_task += 1;
        let task = self.next_task;
        if let Some(actor) = self.actor(worker, tenant) {
            actor.tasks.push((task, slot));
        }
        To { worker, incarnation: self.workers[worker].incarnation, tenant, task }
    }

    /// The flight that waits for an answer.
    fn task_flight(&self, to: To) -> Option<&Flight> {
        let actor = self.workers[to.worker].actors.get(to.tenant)?.as_ref()?;
        let (_, slot) = actor.tasks.iter().find(|(task, _)| *task == to.task)?;
        let Slot::Flight(id) = slot else { return None };
        actor.flights.iter().find(|flight| flight.id == *id)
    }

    /// Something that ends by itself.
    pub(crate) fn later(&mut self, at: (usize, usize), slot: Slot, delay: u64) {
        let to = self.task(at, slot);
        self.push(self.now + delay, What::Answer(to, Ok(Reply::Done(0))));
    }

    fn travel(&mut self) -> u64 {
        let micros = if self.rng.random_ratio(1, 50) { 2_000..50_000 } else { 50..1_500 };
        self.rng.random_range(micros) * 1000 + self.rng.random_range(0..1000)
    }

    pub(crate) fn call(&mut self, at: (usize, usize), slot: Slot, request: Request, timeout: u64) {
        let to = self.task(at, slot);
        let mut call = Call { to, request, expires: self.now + timeout, unanswered: false, waited: false };
        let mut arrives = self.now + self.travel();
        if self.workers[at.0].flaky_until > self.now {
            match self.rng.random_range(0..12) {
                // It never arrives.
                0 => return self.push(call.expires, What::Answer(to, Err(Cause::Timeout))),
                // It arrives late, mostly when its caller has given up.
                1 | 2 => {
                    arrives = self.now + self.rng.random_range(0..LATE);
                    self.push(call.expires, What::Answer(to, Err(Cause::Timeout)));
                }
                // It is executed, and its answer gets lost.
                3 | 4 => call.unanswered = true,
                // It arrives twice.
                5 => {
                    let again = self.now + self.rng.random_range(0..LATE);
                    self.push(again, What::Arrive(call.clone()));
                }
                _ => {}
            }
        }
        self.push(arrives, What::Arrive(call));
    }

    pub(crate) fn arrive(&mut self, mut call: Call) {
        let Call { to, ref request, expires, unanswered, waited } = call;
        // The pool may have a connection that is broken and not yet known to be.
        let pooled = matches!(request, Request::Connect) && self.rng.random();
        if request.is_for_postgres() && !pooled {
            let rows: &[Row] = if let Request::Write(rows) = request { rows } else { &[] };
            let postgres = &self.tenants[to.tenant].postgres;
            let unlocked = postgres.unlocked_at(rows);
            let executes = match postgres.executes_at(self.now, !rows.is_empty()) {
                // Row locks are met when it is executed.
                Some(at) if at == self.now && self.bug == Some(Bug::RowLockHoldsBatch) => {
                    Some(at.max(unlocked))
                }
                Some(at) if at == self.now && unlocked > self.now && !waited => {
                    call.waited = true;
                    Some(unlocked.min(at + LOCK_WAIT))
                }
                at => at,
            };
            match executes {
                None => {
                    let back = self.now + self.travel();
                    let down = self.tenants[to.tenant].postgres.down_until > self.now;
                    let cause = if down { Cause::Refused } else { Cause::ReadOnly };
                    return self.push(back, What::Answer(to, Err(cause)));
                }
                Some(at) if at > self.now => {
                    if at >= expires {
                        self.push(expires, What::Answer(to, Err(Cause::Timeout)));
                    }
                    return self.push(at, What::Arrive(call));
                }
                Some(_) => {}
            }
        } else if !request.is_for_postgres()
            && self.redis_down_until.max(self.workers[to.worker].cut_until) > self.now
        {
            let back = self.now + self.travel();
            return self.push(back, What::Answer(to, Err(Cause::Refused)));
        }
        let reply = self.serve(to, request);
        self.check(to.tenant);
        if unanswered {
            self.note(Some(to.tenant), || format!("the answer to worker {} gets lost", to.worker));
            return self.push(expires, What::Answer(to, Err(Cause::Timeout)));
        }
        let back = self.now + self.travel();
        if back > expires {
            return self.push(expires, What::Answer(to, Err(Cause::Timeout)));
        }
        self.push(back, What::Answer(to, Ok(reply)));
    }

    /// The rules, with the token of the process that calls. In mode `auto` a claim takes locks or not; calls that end claims always
    /// look for locks.
    fn rules_for(&self, to: To, request: &Request) -> Rules {
        let token = to.worker as u32 + 64 * to.incarnation;
        let is_claim = matches!(request, Request::Claim { .. });
        let without = self.plan.auto && is_claim && !self.takes_locks(to);
        Rules { lock: (self.plan.lock && !without).then_some(token), ..self.rules }
    }

    /// Mode `auto`: whether a worker's claims take locks now. Some seconds each, at other moments for each worker and tenant: worse
    /// than what [`balance_sync_engine::neighbour`] decides, because any worker may be in any mode at any time.
    fn takes_locks(&self, to: To) -> bool {
        let phase = self.now / SECOND + 5 * to.worker as u64 + 3 * to.tenant as u64;
        phase % 11 < 6
    }

    /// Executes a request.
    fn serve(&mut self, to: To, request: &Request) -> Reply {
        if request.is_for_postgres() {
            return self.serve_postgres(to, request);
        }
        let rules = self.rules_for(to, request);
        let Some(token) = rules.lock else { return self.serve_redis(to, request, rules) };
        let (own, clock) = (Owner::Worker(token), self.clock());
        let holders = |world: &Self| -> Vec<Option<Owner>> {
            world.tenants[to.tenant].redis.entries.iter().map(|entry| entry.locked_by(clock)).collect()
        };
        let before = holders(self);
        let reply = self.serve_redis(to, request, rules);
        let after = holders(self);
        for (balance, holder) in before.into_iter().enumerate() {
            let foreign = holder.is_some_and(|holder| holder != own);
            let claimed = match &reply {
                Reply::Claimed(answer) => answer.members.iter().any(|held| held.balance == balance),
                _ => false,
            };
            if foreign && (claimed || after[balance] != holder) {
                let what = format!("worker {} took balance {balance} from {holder:?}", to.worker);
                self.violate("protocol §2", to.tenant, what);
            }
        }
        reply
    }

    fn serve_redis(&mut self, to: To, request: &Request, rules: Rules) -> Reply {
        let clock = self.clock();
        let (worker, at) = (to.worker, to.tenant);
        let redis = &mut self.tenants[at].redis;
        match request {
            Request::Claim { limit, resume } => {
                let answer = redis.claim(clock, *limit, *resume, rules);
                if !answer.members.is_empty() {
                    self.note(Some(at), || {
                        format!("redis: worker {worker} claims{}", named(&answer.members))
                    });
                } else if answer.foreign > 0 {
                    self.note(Some(at), || {
                        format!(
                            "redis: worker {worker} claims nothing, {} are locked by others",
                            answer.foreign
                        )
                    });
                }
                Reply::Claimed(answer)
            }
            Request::Settle(members, written) => {
                let removed = redis.settle(clock, members, *written, rules);
                self.note(Some(at), || {
                    let how = if *written { "settles" } else { "dismisses" };
                    format!("redis: worker {worker} {how}{}, removed: {removed:?}", named(members))
                });
                self.check_removed(at, &removed, *written);
                Reply::Done(removed.len())
            }
            Request::Release(members) => {
                let released = redis.release(clock, members, rules);
                self.note(Some(at), || {
                    format!("redis: worker {worker} releases{}, {released} of them", named(members))
                });
                Reply::Done(released)
            }
            Request::Quarantine(members) => {
                let taken = redis.quarantine(clock, members, rules);
                self.note(Some(at), || {
                    format!("redis: worker {worker} quarantines{}, taken: {taken:?}", named(members))
                });
                Reply::Done(taken.len())
            }
            Request::Postpone(members, delay) => {
                let (postponed, due) = redis.postpone(clock, members, delay / 1000, rules);
                self.note(Some(at), || {
                    let held: Vec<Held> = members.iter().map(|(held, _)| *held).collect();
                    format!("redis: worker {worker} puts off{}, {postponed} of them", named(&held))
                });
                Reply::PutOff(postponed, due)
            }
            Request::Lose(lost) => {
                let recorded = redis.lose(clock, lost, rules);
                self.note(Some(at), || {
                    format!("redis: worker {worker} records losses {lost:?}, recorded: {recorded:?}")
                });
                self.check_recorded(at, &recorded);
                Reply::Done(recorded.len())
            }
            Request::Protect { from } => {
                redis.protect_from(clock, from.unwrap_or(f64::NEG_INFINITY), rules);
                Reply::Time(redis::whole(clock))
            }
            Request::Connect | Request::Ping | Request::Write(_) | Request::Fates(_) => {
                unreachable!("it is for Postgres")
            }
        }
    }

    fn serve_postgres(&mut self, to: To, request: &Request) -> Reply {
        let (worker, at) = (to.worker, to.tenant);
        match request {
            Request::Write(rows) => {
                let mut to_tenant = at;
                if self.bug == Some(Bug::WrongDatabase) && self.rng.random_ratio(1, 50) {
                    to_tenant = (at + 1) % self.plan.tenants;
                }
                let locked_until = &self.tenants[at].postgres.locked_until;
                let (locked, free): (Vec<Row>, Vec<Row>) =
                    rows.iter().partition(|row| locked_until[row.balance] > self.now);
                let locked: Vec<usize> = locked.iter().map(|row| row.balance).collect();
                let written = self.write_rows(to_tenant, &free);
                if let Some(watcher) = &mut self.workers[worker].watcher {
                    *watcher.written.entry(at).or_default() += written as u64;
                }
                self.note(Some(at), || {
                    let rows: Vec<String> =
                        free.iter().map(|row| format!(" {}@{}", row.balance, row.state.version)).collect();
                    let but = if locked.is_empty() { String::new() } else { format!(", locked: {locked:?}") };
                    format!("postgres: worker {worker} writes{}{but}", rows.concat())
                });
                let first = self.task_flight(to).and_then(|flight| flight.good.first().copied());
                if let (Some(after), Some(held)) = (self.tenants[at].armed, first) {
                    self.tenants[at].armed = None;
                    self.change_at_lease_end(worker, at, held, after);
                }
                Reply::Written(self.tenants[at].postgres.timeline, locked)
            }
            Request::Fates(balances) => {
                let (postgres, granted) = (&self.tenants[at].postgres, self.plan.granted);
                let (started, read_only) = (postgres.started, postgres.read_only_until > self.now);
                let fates: Vec<Fate> =
                    balances.iter().map(|&balance| postgres.fate(balance, granted)).collect();
                self.note(Some(at), || format!("postgres: of balances {balances:?}: {fates:?}"));
                Reply::Fates(fates, started, read_only)
            }
            _ => Reply::Done(0),
        }
    }
}
