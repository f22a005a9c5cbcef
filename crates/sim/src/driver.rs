//! The driver: carries out what a collector commands, as messages to the models, and reports what came of them.
//!
//! A request arrives after a while, or never; its answer comes after another while, or never; the worker gives up at its
//! own deadline. What arrives is executed whether somebody still waits for the answer or not.

use std::time::Duration;

use balance_sync_engine::{
    collector::{Claimed, Collector, Command, Event, FlightId, Task, Upkeep, UpkeepEnd},
    failure::{self, Failure, PostgresClass, RedisClass, Side},
};
use rand::Rng;

use crate::{
    bugs::Bug,
    flight::{Flight, Step},
    plan::SECOND,
    redis::{self, ClaimAnswer, Held},
    world::{LATE, What, World},
};

/// How long a worker waits for Redis.
pub(crate) const REDIS_TIMEOUT: u64 = 2 * SECOND;
/// A standby looks this often …
const LOOK_EVERY: u64 = SECOND / 2;
/// … and takes over when so many looks found the same head …
const SAME_HEAD: u32 = 3;
/// … or so many found something due, and nothing claimed since the look before.
const UNCLAIMED: u32 = 21;

/// Who asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct To {
    pub(crate) worker: usize,
    incarnation: u32,
    pub(crate) tenant: usize,
    task: u64,
}

/// A request on its way.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    to: To,
    request: Request,
    /// The worker doesn't wait longer.
    expires: u64,
    /// Its answer gets lost.
    unanswered: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Request {
    Claim { limit: usize },
    Settle(Vec<Held>),
    Release(Vec<Held>),
    Quarantine(Vec<Held>),
    Protect { from: Option<f64> },
    Connect,
    Ping,
    Write(Vec<Held>),
}

impl Request {
    fn is_for_postgres(&self) -> bool {
        matches!(self, Self::Connect | Self::Ping | Self::Write(_))
    }
}

/// What a server answered.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Claimed(ClaimAnswer),
    /// So many members.
    Done(usize),
    /// The server's time, in seconds.
    Time(f64),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Refused,
    /// By a server that answers pings.
    ReadOnly,
    Timeout,
}

/// What an answer is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Slot {
    Claim,
    Idle,
    Watch,
    Permit,
    Probe,
    Upkeep(Upkeep),
    Flight(FlightId),
    Abandon,
}

/// One collector and what is under way for it.
pub(crate) struct Actor {
    machine: Collector<Held>,
    tasks: Vec<(u64, Slot)>,
    pub(crate) flights: Vec<Flight>,
    /// What [`Command::AbandonFlights`] releases.
    abandoned: usize,
    wake: Option<u64>,
    /// The last look of a standby: head, looks with this head, looks without a claim.
    watched: (Option<(f64, usize)>, u32, u32),
    /// Planted: the first version read of each balance.
    pub(crate) cache: Vec<Option<u64>>,
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

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn named(members: &[Held]) -> String {
    let mut text = String::new();
    for held in members {
        let version = held.value.map_or("none".to_owned(), |value| value.version.to_string());
        text += &format!(" {}@{version}", held.balance);
    }
    text
}

impl World {
    // -- collectors ----------------------------------------------------------------------------------------------

    pub(crate) fn start_collector(&mut self, worker: usize, tenant: usize) {
        let seed = self.rng.random();
        let machine = Collector::new(self.options.clone(), seed, self.instant());
        self.workers[worker].actors[tenant] = Some(Actor {
            machine,
            tasks: Vec::new(),
            flights: Vec::new(),
            abandoned: 0,
            wake: None,
            watched: (None, 0, 0),
            cache: vec![None; self.plan.balances],
        });
        let controls = self.controls(worker, tenant);
        self.handle(worker, tenant, Event::ControlsChanged(controls));
    }

    /// Hands the controls of a tenant to its collectors.
    pub(crate) fn apply_controls(&mut self, tenant: usize) {
        for worker in 0..self.workers.len() {
            let controls = self.controls(worker, tenant);
            self.handle(worker, tenant, Event::ControlsChanged(controls));
        }
    }

    /// Hands an event to a collector, if there is one, and carries out what it commands.
    pub(crate) fn handle(&mut self, worker: usize, tenant: usize, event: Event<Held>) {
        let now = self.instant();
        let Some(Some(actor)) = self.workers[worker].actors.get_mut(tenant) else { return };
        for command in actor.machine.handle(now, event) {
            self.execute(worker, tenant, command);
        }
        let Some(Some(actor)) = self.workers[worker].actors.get(tenant) else { return };
        if actor.machine.ended().is_some() {
            self.workers[worker].actors[tenant] = None;
            self.note(Some(tenant), || format!("worker {worker}: its collector has ended"));
            self.collector_ended(worker);
            return;
        }
        let wake = actor.machine.wake_at().map(|at| self.nanos(at));
        let incarnation = self.workers[worker].incarnation;
        if let Some(Some(actor)) = self.workers[worker].actors.get_mut(tenant)
            && actor.wake != wake
        {
            actor.wake = wake;
            if let Some(at) = wake {
                self.push(at, What::Wake { worker, incarnation, tenant });
            }
        }
    }

    pub(crate) fn wake(&mut self, worker: usize, tenant: usize) {
        let now = self.now;
        if let Some(Some(actor)) = self.workers[worker].actors.get_mut(tenant)
            && actor.wake.is_some_and(|at| at <= now)
        {
            actor.wake = None;
            self.handle(worker, tenant, Event::Tick);
        }
    }

    pub(crate) fn actor(&mut self, worker: usize, tenant: usize) -> Option<&mut Actor> {
        self.workers[worker].actors.get_mut(tenant)?.as_mut()
    }

    fn execute(&mut self, worker: usize, tenant: usize, command: Command<Held>) {
        let at = (worker, tenant);
        match command {
            Command::Claim { limit } => self.call(at, Slot::Claim, Request::Claim { limit }, REDIS_TIMEOUT),
            Command::Idle { delay } => {
                if self.bug != Some(Bug::IdleForever) {
                    // The prober may see something due earlier.
                    let part = if self.rng.random_ratio(1, 4) { self.rng.random_range(1..=100) } else { 100 };
                    self.later(at, Slot::Idle, nanos(delay) / 100 * part);
                }
            }
            Command::Watch => {
                if self.bug != Some(Bug::StandbyNeverTakesOver) {
                    if let Some(actor) = self.actor(worker, tenant) {
                        actor.watched = (None, 0, 0);
                    }
                    self.later(at, Slot::Watch, LOOK_EVERY);
                }
            }
            Command::RequestPermit { deadline, .. } => {
                self.call(at, Slot::Permit, Request::Connect, nanos(deadline));
            }
            Command::Probe { deadline } => self.call(at, Slot::Probe, Request::Ping, nanos(deadline)),
            Command::Upkeep(upkeep) => {
                let skipped = match upkeep {
                    Upkeep::Survey => true,
                    Upkeep::Sweep => matches!(self.bug, Some(Bug::NoSweep | Bug::NeverProtect)),
                    Upkeep::Recent { .. } => self.bug == Some(Bug::NoSweep),
                };
                let from = match upkeep {
                    // `None` reads the clock and protects nothing.
                    Upkeep::Recent { from: None } => Some(f64::INFINITY),
                    Upkeep::Recent { .. } if self.bug == Some(Bug::NoRecent) => Some(f64::INFINITY),
                    Upkeep::Recent { from } => from,
                    _ => None,
                };
                let from = if skipped { Some(f64::INFINITY) } else { from };
                self.call(at, Slot::Upkeep(upkeep), Request::Protect { from }, REDIS_TIMEOUT);
            }
            Command::Flush { flight, batch, deadline, .. } => {
                self.begin_flight(at, flight, batch, Step::Write, nanos(deadline));
            }
            Command::FinalFlush { flight, batch, deadline } => {
                let step = if self.bug == Some(Bug::StopDropsHeld) { Step::End } else { Step::Connect };
                self.begin_flight(at, flight, batch, step, nanos(deadline));
            }
            Command::Release { flight, batch } => {
                self.begin_flight(at, flight, batch, Step::Release, REDIS_TIMEOUT);
            }
            Command::Cancel(task) => {
                if let Some(actor) = self.actor(worker, tenant) {
                    actor.tasks.retain(|(_, slot)| match task {
                        Task::Claim => *slot != Slot::Claim,
                        Task::Wait => !matches!(slot, Slot::Idle | Slot::Watch),
                        Task::Permit => *slot != Slot::Permit,
                        Task::Probe => *slot != Slot::Probe,
                        Task::Upkeep => !matches!(slot, Slot::Upkeep(_)),
                    });
                }
            }
            Command::AbandonFlights { release_within } => {
                let Some(actor) = self.actor(worker, tenant) else { return };
                actor.tasks.retain(|(_, slot)| !matches!(slot, Slot::Flight(_)));
                let held: Vec<Held> = actor
                    .flights
                    .drain(..)
                    .flat_map(|flight| [flight.good, flight.refused].concat())
                    .collect();
                actor.abandoned = held.len();
                self.call(at, Slot::Abandon, Request::Release(held), nanos(release_within));
            }
            Command::Enter(state) => {
                self.note(Some(tenant), || format!("worker {worker}: {}", state.name()));
            }
            Command::Degrade { reaction, .. } => {
                self.note(Some(tenant), || format!("worker {worker}: degraded ({})", reaction.reason));
            }
            Command::Report(report) => {
                self.note(Some(tenant), || format!("worker {worker}: {report:?}"));
            }
        }
    }

    // -- messages ------------------------------------------------------------------------------------------------

    fn task(&mut self, (worker, tenant): (usize, usize), slot: Slot) -> To {
        self.next_task += 1;
        let task = self.next_task;
        if let Some(actor) = self.actor(worker, tenant) {
            actor.tasks.push((task, slot));
        }
        To { worker, incarnation: self.workers[worker].incarnation, tenant, task }
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
        let mut call = Call { to, request, expires: self.now + timeout, unanswered: false };
        let mut arrives = self.now + self.travel();
        if self.workers[at.0].flaky_until > self.now {
            match self.rng.random_range(0..12) {
                // It never arrives.
                0 => return self.push(call.expires, What::Answer(to, Err(Cause::Timeout))),
                // It arrives late, mostly when nobody waits for it any more.
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

    pub(crate) fn arrive(&mut self, call: Call) {
        let Call { to, ref request, expires, unanswered } = call;
        // The pool may have a connection of which nobody knows yet that it is of no use.
        let pooled = matches!(request, Request::Connect) && self.rng.random();
        if request.is_for_postgres() && !pooled {
            let rows: &[Held] = if let Request::Write(rows) = request { rows } else { &[] };
            match self.tenants[to.tenant].postgres.executes_at(self.now, rows) {
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

    /// Executes a request.
    fn serve(&mut self, to: To, request: &Request) -> Reply {
        let (clock, rules) = (redis::clock(self.now), self.rules);
        let (worker, at) = (to.worker, to.tenant);
        let redis = &mut self.tenants[at].redis;
        match request {
            Request::Claim { limit } => {
                let answer = redis.claim(clock, *limit, rules);
                if !answer.members.is_empty() {
                    self.note(Some(at), || {
                        format!("redis: worker {worker} claims{}", named(&answer.members))
                    });
                }
                Reply::Claimed(answer)
            }
            Request::Settle(members) => {
                let removed = redis.settle(members, rules);
                self.note(Some(at), || {
                    format!("redis: worker {worker} settles{}, removed: {removed:?}", named(members))
                });
                self.check_removed(at, &removed);
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
                let taken = redis.quarantine(members, rules);
                self.note(Some(at), || {
                    format!("redis: worker {worker} quarantines{}, taken: {taken:?}", named(members))
                });
                Reply::Done(taken.len())
            }
            Request::Protect { from } => {
                redis.protect_from(clock, from.unwrap_or(f64::NEG_INFINITY), rules);
                Reply::Time(redis::whole(clock))
            }
            Request::Connect | Request::Ping => Reply::Done(0),
            Request::Write(rows) => {
                let written = self.write_rows(at, rows);
                self.note(Some(at), || format!("postgres: worker {worker} writes{}", named(rows)));
                if let (Some(after), Some(held)) = (self.tenants[at].armed, rows.first()) {
                    self.tenants[at].armed = None;
                    self.change_at_lease_end(worker, at, *held, after);
                }
                Reply::Done(written)
            }
        }
    }

    // -- answers -------------------------------------------------------------------------------------------------

    pub(crate) fn answer(&mut self, to: To, answer: Result<Reply, Cause>) {
        let (worker, tenant) = (to.worker, to.tenant);
        if self.workers[worker].incarnation != to.incarnation {
            return;
        }
        let Some(actor) = self.actor(worker, tenant) else { return };
        let Some(at) = actor.tasks.iter().position(|(task, _)| *task == to.task) else { return };
        let (_, slot) = actor.tasks.swap_remove(at);
        let event = match (slot, answer) {
            (Slot::Claim, Ok(Reply::Claimed(claim))) => Event::Claimed(Claimed {
                members: claim.members,
                scheduled: claim.scheduled,
                head_age: claim.head_age.map(Duration::from_micros),
            }),
            (Slot::Claim, Err(cause)) => Event::ClaimFailed(failure(Side::Queue, cause)),
            (Slot::Idle, _) => Event::IdleOver,
            (Slot::Watch, _) => match self.watch(worker, tenant) {
                true => Event::Unattended,
                false => return self.later((worker, tenant), Slot::Watch, LOOK_EVERY),
            },
            (Slot::Permit, Ok(_)) => Event::PermitGranted,
            (Slot::Permit, Err(cause)) => Event::PermitFailed(failure(Side::Sink, cause)),
            (Slot::Probe, Ok(_)) => Event::Probed(Ok(())),
            (Slot::Probe, Err(cause)) => Event::Probed(Err(failure(Side::Sink, cause))),
            (Slot::Upkeep(Upkeep::Sweep), Ok(_)) => Event::UpkeepEnded(UpkeepEnd::Swept),
            (Slot::Upkeep(Upkeep::Survey), Ok(_)) => Event::UpkeepEnded(UpkeepEnd::Surveyed { adopted: 0 }),
            (Slot::Upkeep(_), Ok(Reply::Time(at))) => Event::UpkeepEnded(UpkeepEnd::Protected { at }),
            (Slot::Upkeep(_), _) => Event::UpkeepEnded(UpkeepEnd::Failed),
            (Slot::Flight(id), answer) => return self.flight_step((worker, tenant), id, answer),
            (Slot::Abandon, Ok(Reply::Done(released))) => {
                let orphaned = actor.abandoned.saturating_sub(released);
                Event::Abandoned { released, orphaned }
            }
            (Slot::Abandon, _) => Event::Abandoned { released: 0, orphaned: actor.abandoned },
            (Slot::Claim, Ok(_)) => unreachable!("a claim is answered by a claim"),
        };
        self.handle(worker, tenant, event);
    }

    /// One look of a standby: whether nobody seems to claim.
    fn watch(&mut self, worker: usize, tenant: usize) -> bool {
        let cut = self.redis_down_until.max(self.workers[worker].cut_until) > self.now;
        let clock = redis::clock(self.now);
        let due = if cut { Vec::new() } else { self.tenants[tenant].redis.due(clock) };
        let Some(actor) = self.actor(worker, tenant) else { return false };
        let Some(&head) = due.first() else {
            actor.watched = (None, 0, 0);
            return false;
        };
        let (last, same, unclaimed) = actor.watched;
        let waits = last.is_none_or(|(_, balance)| due.iter().any(|(_, other)| *other == balance));
        let same = if last == Some(head) { same + 1 } else { 1 };
        let unclaimed = if waits { unclaimed + 1 } else { 1 };
        actor.watched = (Some(head), same, unclaimed);
        same >= SAME_HEAD || unclaimed >= UNCLAIMED
    }

    /// Whether the collector is on its way out.
    pub(crate) fn leaves(&self, worker: usize, tenant: usize) -> bool {
        let actor = self.workers[worker].actors.get(tenant);
        matches!(actor, Some(Some(actor)) if !actor.machine.is_running())
    }

    /// Members that collectors of a worker have taken into flights; for the trace of a crash.
    pub(crate) fn in_flight(&self, worker: usize, tenant: usize) -> usize {
        let Some(Some(actor)) = self.workers[worker].actors.get(tenant) else { return 0 };
        actor.machine.buffered() + actor.flights.iter().map(|flight| flight.good.len()).sum::<usize>()
    }
}
