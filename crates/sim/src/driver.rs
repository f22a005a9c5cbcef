//! The driver: carries out what a collector commands, as messages to the models, and reports what came of them.

use std::time::Duration;

use balance_sync_engine::{
    collector::{Claimed, Collector, Command, Event, FlightId, Locked, Task, Upkeep, UpkeepEnd},
    failure::Side,
    plan::Exit,
    standby::{LastHead, Seen, Standby, Watch},
    trail::TrailWatch,
};
use rand::Rng;

use crate::{
    bugs::Bug,
    flight::{Flight, Step},
    plan::SECOND,
    redis::Held,
    servers::{Cause, Reply, Request, failure},
    values::State,
    world::{What, World},
};

/// How long a worker waits for Redis.
pub(crate) const REDIS_TIMEOUT: u64 = 2 * SECOND;

/// The longest wait for a permit in a queue that moves: two leases.
const LONGEST_QUEUE: u64 = 60 * SECOND;

/// Who asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct To {
    pub(crate) worker: usize,
    pub(crate) incarnation: u32,
    pub(crate) tenant: usize,
    pub(crate) task: u64,
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
    pub(crate) trail: TrailWatch<usize>,
    pub(crate) tasks: Vec<(u64, Slot)>,
    pub(crate) flights: Vec<Flight>,
    /// What [`Command::AbandonFlights`] releases.
    abandoned: usize,
    wake: Option<u64>,
    /// Mode `lock`: where the next claim goes on.
    pub(crate) resume: usize,
    /// Planted: the first version read of each balance, and the last one written.
    pub(crate) cache: Vec<Option<State>>,
    pub(crate) remembered: Vec<u64>,
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl World {
    // -- collectors ----------------------------------------------------------------------------------------------

    pub(crate) fn start_collector(&mut self, worker: usize, tenant: usize) {
        let seed = self.rng.random();
        let machine = Collector::new(self.options.clone(), seed, self.instant());
        self.workers[worker].actors[tenant] = Some(Actor {
            machine,
            trail: match self.bug {
                // The bound would hide them: no look succeeds during an outage.
                Some(Bug::OneLookAtTheEnd | Bug::OutageForgotten) => {
                    TrailWatch::without_bound(self.options.trail_grace)
                }
                _ => TrailWatch::new(self.options.trail_grace),
            },
            tasks: Vec::new(),
            flights: Vec::new(),
            abandoned: 0,
            wake: None,
            resume: 0,
            cache: vec![None; self.plan.balances],
            remembered: vec![0; self.plan.balances],
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
            self.collector_over(worker, tenant, Exit::Stopped);
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
            Command::Claim { limit } => {
                let resume = self.actor(worker, tenant).map_or(0, |actor| actor.resume);
                self.call(at, Slot::Claim, Request::Claim { limit, resume }, REDIS_TIMEOUT);
            }
            Command::Idle { delay } => {
                if self.bug != Some(Bug::IdleForever) {
                    // The prober may see something due earlier.
                    let part = if self.rng.random_ratio(1, 4) { self.rng.random_range(1..=100) } else { 100 };
                    self.later(at, Slot::Idle, nanos(delay) / 100 * part);
                }
            }
            Command::Watch => {
                if self.bug != Some(Bug::StandbyNeverTakesOver) {
                    let (task, now) = (self.task(at, Slot::Watch).task, self.instant());
                    self.workers[worker].watch(now).add((tenant, task), now);
                    self.plan_watch(worker);
                }
            }
            Command::RequestPermit { deadline, .. } => {
                if let Some(free) = self.permit_of_another(worker, tenant) {
                    return self.later(at, Slot::Permit, free.saturating_sub(self.now));
                }
                if let Some(wait) = self.queued(worker, tenant) {
                    self.excuse(Some(tenant), self.now + wait);
                    return self.later(at, Slot::Permit, wait);
                }
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
                let held: Vec<Held> = actor.flights.drain(..).flat_map(Flight::members).collect();
                actor.abandoned = held.len();
                self.call(at, Slot::Abandon, Request::Release(held), nanos(release_within));
            }
            Command::Enter(state) => {
                self.note(Some(tenant), || format!("worker {worker}: {}", state.name()));
            }
            Command::Degrade { reaction, .. } => {
                let now = self.instant();
                if self.bug != Some(Bug::OutageForgotten)
                    && let Some(actor) = self.actor(worker, tenant)
                {
                    actor.trail.failed(now);
                }
                self.note(Some(tenant), || format!("worker {worker}: degraded ({})", reaction.reason));
            }
            Command::Report(report) => {
                self.note(Some(tenant), || format!("worker {worker}: {report:?}"));
            }
        }
    }

    // -- answers -------------------------------------------------------------------------------------------------

    pub(crate) fn answer(&mut self, to: To, answer: Result<Reply, Cause>) {
        let (worker, tenant, bug) = (to.worker, to.tenant, self.bug);
        if self.workers[worker].incarnation != to.incarnation {
            return;
        }
        let Some(actor) = self.actor(worker, tenant) else { return };
        let Some(at) = actor.tasks.iter().position(|(task, _)| *task == to.task) else { return };
        let (_, slot) = actor.tasks.swap_remove(at);
        let event = match (slot, answer) {
            (Slot::Claim, Ok(Reply::Claimed(claim))) => {
                actor.resume = claim.resume;
                let unlock_in = claim.unlock_in.filter(|_| bug != Some(Bug::LockEndMissed));
                let locked = (claim.foreign > 0 && bug != Some(Bug::LockedNotProtected))
                    .then_some(Locked { unlock_in: unlock_in.map(Duration::from_micros) });
                Event::Claimed(Claimed {
                    members: claim.members,
                    scheduled: claim.scheduled,
                    head_age: claim.head_age.map(Duration::from_micros),
                    locked,
                })
            }
            (Slot::Claim, Err(cause)) => Event::ClaimFailed(failure(Side::Queue, cause)),
            (Slot::Idle, _) => Event::IdleOver,
            (Slot::Watch, _) => Event::Unattended,
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

    /// Wakes the watch of a worker in time.
    fn plan_watch(&mut self, worker: usize) {
        let incarnation = self.workers[worker].incarnation;
        let Some(at) = self.workers[worker].watch.as_ref().and_then(Watch::wake_at) else { return };
        let at = self.nanos(at);
        if self.workers[worker].watch_at.is_none_or(|planned| planned > at || planned < self.now) {
            self.workers[worker].watch_at = Some(at);
            self.push(at, What::Watch { worker, incarnation });
        }
    }

    /// The standbys of a worker look at the schedules of their tenants.
    pub(crate) fn look_for_standbys(&mut self, worker: usize) {
        let (now, clock) = (self.instant(), self.clock());
        let cut = self.redis_down_until.max(self.workers[worker].cut_until) > self.now;
        self.workers[worker].watch_at = None;
        let Some(mut watch) = self.workers[worker].watch.take() else { return };
        let waits = |world: &Self, (tenant, task): (usize, u64)| {
            let actor = world.workers[worker].actors.get(tenant).and_then(Option::as_ref);
            actor.is_some_and(|actor| actor.tasks.iter().any(|(waiting, _)| *waiting == task))
        };
        let page = watch.page(now, |&who| !waits(self, who));
        let mut woken = Vec::new();
        if cut {
            watch.failed(page);
        } else {
            let look = |standby: &Standby<(usize, u64), (u64, usize)>| {
                let due = self.tenants[standby.who.0].redis.due(clock);
                let last = standby.head().is_some_and(|(_, last)| due.iter().any(|(_, other)| other == last));
                let last = if last { LastHead::Waits } else { LastHead::Claimed };
                due.first().map(|&(score, balance)| Seen { head: (score.to_bits(), balance), last })
            };
            let seen = page.iter().map(look).collect();
            woken = watch.looked(page, seen);
        }
        self.workers[worker].watch = Some(watch);
        let incarnation = self.workers[worker].incarnation;
        for ((tenant, task), _) in woken {
            self.answer(To { worker, incarnation, tenant, task }, Ok(Reply::Done(0)));
        }
        self.plan_watch(worker);
    }

    /// Whether the collector is on its way out.
    pub(crate) fn leaves(&self, worker: usize, tenant: usize) -> bool {
        let actor = self.workers[worker].actors.get(tenant);
        matches!(actor, Some(Some(actor)) if !actor.machine.is_running())
    }

    /// Planted: when the only permit of a worker is free again.
    fn permit_of_another(&self, worker: usize, tenant: usize) -> Option<u64> {
        if self.bug != Some(Bug::OnePermit) {
            return None;
        }
        let others = (0..self.plan.tenants).filter(|other| *other != tenant);
        let writing =
            others.flat_map(|other| self.flights(worker, other)).filter(|flight| flight.step == Step::Write);
        writing.map(|flight| flight.deadline).min()
    }

    /// How long a permit is waited for in a queue that moves; not drawn, and not with a planted bug, so that their seeds stay.
    fn queued(&self, worker: usize, tenant: usize) -> Option<u64> {
        // In the end everything is healed.
        let left = (self.plan.seconds * SECOND).saturating_sub(self.now);
        if !self.plan.queues || self.bug.is_some() {
            return None;
        }
        let mut mixed = self.plan.seed ^ self.now ^ ((worker as u64) << 56) ^ ((tenant as u64) << 48);
        for factor in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
            mixed = (mixed ^ (mixed >> 33)).wrapping_mul(factor);
        }
        mixed ^= mixed >> 33;
        mixed.is_multiple_of(4).then_some((mixed >> 8) % LONGEST_QUEUE).filter(|wait| *wait < left)
    }

    /// The flights of a collector.
    pub(crate) fn flights(&self, worker: usize, tenant: usize) -> &[Flight] {
        match self.workers[worker].actors.get(tenant) {
            Some(Some(actor)) => &actor.flights,
            _ => &[],
        }
    }

    /// Members that collectors of a worker have taken into flights; for the trace of a crash.
    pub(crate) fn in_flight(&self, worker: usize, tenant: usize) -> usize {
        let Some(Some(actor)) = self.workers[worker].actors.get(tenant) else { return 0 };
        actor.machine.buffered() + actor.flights.iter().map(|flight| flight.good.len()).sum::<usize>()
    }
}
