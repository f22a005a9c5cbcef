//! Which tenants a worker serves: the tenant service and the list in force, the registration among the other workers, the
//! share that follows from it, and the collectors that start and stop. As `crates/fleet/src/lifecycle` does it, with the state
//! machines of the engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use balance_sync_engine::{
    backoff::Jitter,
    collector::{Event, Role},
    membership::Membership,
    partition::Share,
    plan::{Exit, Limits, Slot, apply, plan},
    registration::{Lease, Next, Options, Registration, Report},
};
use rand::Rng;

use crate::{
    bugs::Bug,
    driver::nanos,
    faults::NOTICED,
    world::{Tenant, What, World},
};

const POLL: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(10);
/// Balances due for longer look abandoned.
const OVERDUE: Duration = Duration::from_secs(120);
const REPLICAS: usize = 2;
const LIMITS: Limits = Limits {
    start_concurrency: 64,
    stop_deadline: Duration::from_secs(45),
    crash_delay_min: Duration::from_secs(1),
    crash_delay_max: Duration::from_secs(60),
};

/// A tenant as the service lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    at: usize,
    id: String,
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.id
    }
}

fn name(at: usize) -> Name {
    Name { at, id: format!("tenant-{at}") }
}

/// What a worker knows of tenants and of other workers.
pub(crate) struct Supervisor {
    name: String,
    membership: Membership<Name>,
    registration: Registration<Name>,
    share: Option<Share<Name>>,
    slots: BTreeMap<Name, Slot>,
    jitter: Jitter,
}

impl Supervisor {
    fn mine(&self) -> BTreeSet<Name> {
        let Some(share) = &self.share else { return BTreeSet::new() };
        self.membership.wanted().iter().filter(|tenant| share.contains(tenant)).cloned().collect()
    }
}

/// The workers that are registered in Redis: until when, by its clock.
pub(crate) type Registry = BTreeMap<String, u64>;

impl World {
    /// A worker begins to find out which tenants are its.
    pub(crate) fn supervise(&mut self, worker: usize) {
        let incarnation = self.workers[worker].incarnation;
        // As pods: each process has a name of its own.
        let own = format!("worker-{worker}-{incarnation}");
        let options = Options { name: own.clone(), replicas: REPLICAS, lease: LEASE, overdue: OVERDUE };
        let membership = match self.bug {
            Some(Bug::ShortListBelieved) => Membership::new(1.0, 0),
            _ => Membership::default(),
        };
        let registration = Registration::new(options, self.instant());
        let jitter = Jitter::new(self.rng.random());
        let slots = BTreeMap::new();
        self.workers[worker].supervisor =
            Some(Supervisor { name: own, membership, registration, share: None, slots, jitter });
        self.push(self.now, What::Poll { worker, incarnation });
    }

    /// The role that a worker has for a tenant.
    pub(crate) fn role(&self, worker: usize, tenant: usize) -> Role {
        let Some(supervisor) = &self.workers[worker].supervisor else {
            return self.tenants[tenant].roles[worker];
        };
        match &supervisor.share {
            Some(share) if share.is_first(&name(tenant)) => Role::First,
            _ => Role::Standby,
        }
    }

    /// A worker asks the tenant service which tenants there are.
    pub(crate) fn poll(&mut self, worker: usize) {
        let (now, incarnation) = (self.now, self.workers[worker].incarnation);
        let lost = self.workers[worker].flaky_until > now && self.rng.random_ratio(1, 3);
        let empty = self.service_empty_until > now;
        let listed =
            (0..self.tenants.len()).filter(|&at| self.tenants[at].present && !empty).map(name).collect();
        let answer = match self.service_ill_until > now || lost {
            true if self.bug == Some(Bug::ErrorIsEmptyList) => Ok(BTreeSet::new()),
            true => Err(()),
            false => Ok(listed),
        };
        let Some(supervisor) = &mut self.workers[worker].supervisor else { return };
        let known = supervisor.membership.is_known();
        let _ = supervisor.membership.observe(answer);
        let next = now + nanos(supervisor.jitter.spread(POLL));
        if !known {
            self.unknown_until = self.unknown_until.max(self.service_ill_until).max(self.service_empty_until);
        }
        if !known && supervisor.membership.is_known() {
            // One that can't serve anybody must not be counted on.
            self.push(now, What::Register { worker, incarnation });
        }
        self.push(next, What::Poll { worker, incarnation });
        self.reconcile(worker);
    }

    /// A tenant that has just come back isn't known before the service answers well again. Nor is one that came back earlier,
    /// if the service has not answered well for long enough since.
    pub(crate) fn service_fails(&mut self) {
        let news = |tenant: &Tenant| tenant.returned_at > 0 && tenant.returned_at + NOTICED > self.now;
        let still = self.unknown_until > 0 && self.unknown_until + NOTICED > self.now;
        if still || self.tenants.iter().any(news) {
            self.unknown_until = self.unknown_until.max(self.service_ill_until).max(self.service_empty_until);
        }
    }

    /// A worker stays registered, and follows who else is.
    pub(crate) fn register(&mut self, worker: usize) {
        let incarnation = self.workers[worker].incarnation;
        let (instant, clock) = (self.instant(), self.clock());
        let cut = self.redis_down_until.max(self.workers[worker].cut_until) > self.now;
        let lasts = u64::try_from(LEASE.as_micros()).unwrap_or(u64::MAX);
        loop {
            let Some(supervisor) = &mut self.workers[worker].supervisor else { return };
            match supervisor.registration.next(instant) {
                Next::Register if cut => {
                    supervisor.registration.failed(&mut supervisor.jitter);
                }
                Next::Register => {
                    if self.bug != Some(Bug::DeadWorkersStay) {
                        self.registry.retain(|_, ends| *ends > clock);
                    }
                    let before = self.registry.insert(supervisor.name.clone(), clock + lasts);
                    let lease = if before.is_some() { Lease::Held } else { Lease::Lapsed };
                    let live = self.registry.keys().cloned().collect();
                    for report in supervisor.registration.registered(instant, lease, live) {
                        if let Report::View { live, .. } = report {
                            self.note(None, || format!("worker {worker} sees {live} workers"));
                        }
                    }
                }
                Next::Watch { adopted } => {
                    let mine = supervisor.mine();
                    let foreign = supervisor.membership.wanted().difference(&mine);
                    let mut tenants: BTreeSet<Name> = foreign.chain(&adopted).cloned().collect();
                    tenants.retain(|Name { at, .. }| {
                        let tenant = &self.tenants[*at];
                        let head = tenant.redis.due(clock).first().map(|(score, _)| (score * 1e6) as u64);
                        let overdue = head.is_some_and(|due| u128::from(clock - due) > OVERDUE.as_micros());
                        overdue && !tenant.paused
                    });
                    let overdue = (!cut).then(|| tenants.into_iter().collect());
                    supervisor.registration.watched(instant, overdue);
                }
                Next::Announce(share) => {
                    supervisor.registration.announced(instant, share.clone());
                    supervisor.share = Some(share);
                    self.reconcile(worker);
                    for tenant in 0..self.tenants.len() {
                        let controls = self.controls(worker, tenant);
                        self.handle(worker, tenant, Event::ControlsChanged(controls));
                    }
                }
                Next::Wait(until) => {
                    let until = self.nanos(until);
                    return self.push(until, What::Register { worker, incarnation });
                }
            }
        }
    }

    /// Starts and stops collectors.
    pub(crate) fn reconcile(&mut self, worker: usize) {
        let (instant, incarnation) = (self.instant(), self.workers[worker].incarnation);
        if self.workers[worker].stopping {
            return;
        }
        let Some(supervisor) = &mut self.workers[worker].supervisor else { return };
        let steps = plan(&supervisor.mine(), &supervisor.slots, instant, &LIMITS);
        apply(&steps, &mut supervisor.slots, instant);
        let mut stop = Vec::new();
        for (tenant, _) in &steps.stop {
            let removed = !supervisor.membership.wanted().contains(tenant);
            stop.push((tenant.at, if removed { Event::Leave } else { Event::Stop }));
        }
        for (tenant, failures) in &steps.start {
            let slot = Slot::Running { since: instant, failures: *failures };
            supervisor.slots.insert(tenant.clone(), slot);
        }
        for (tenant, event) in stop {
            self.note(Some(tenant), || format!("worker {worker}: its collector stops"));
            self.handle(worker, tenant, event);
        }
        for tenant in &steps.kill {
            self.workers[worker].actors[tenant.at] = None;
            self.collector_over(worker, tenant.at, Exit::Killed);
        }
        for (tenant, _) in &steps.start {
            self.note(Some(tenant.at), || format!("worker {worker}: a collector starts"));
            self.start_collector(worker, tenant.at);
        }
        if let Some(next) = steps.next {
            let next = self.nanos(next);
            self.push(next, What::Reconcile { worker, incarnation });
        }
    }

    /// A collector has ended: the next pass clears its slot away.
    pub(crate) fn collector_over(&mut self, worker: usize, tenant: usize, exit: Exit) {
        let incarnation = self.workers[worker].incarnation;
        let Some(supervisor) = &mut self.workers[worker].supervisor else { return };
        let slot = Slot::Ended { exit, worked: Duration::ZERO, failures: 0 };
        supervisor.slots.insert(name(tenant), slot);
        self.push(self.now, What::Reconcile { worker, incarnation });
    }

    /// A worker that stops takes itself off the list.
    pub(crate) fn deregister(&mut self, worker: usize) {
        if let Some(supervisor) = &self.workers[worker].supervisor {
            self.registry.remove(&supervisor.name);
        }
    }

    /// Workers lose their registrations, but not those with a set bit.
    pub(crate) fn lapse(&mut self, kept: u8) {
        for worker in 0..self.workers.len() {
            if kept >> worker & 1 == 0 {
                self.deregister(worker);
            }
        }
    }

    /// Whether some worker serves a tenant, and whether one that comes first for it does.
    pub(crate) fn served(&self, tenant: usize) -> (bool, bool) {
        let serves = |at: usize| {
            let worker = &self.workers[at];
            let runs = self.workers[at].supervisor.is_none()
                || worker.actors.get(tenant).is_some_and(Option::is_some);
            worker.up && !worker.stopping && runs
        };
        let serving: Vec<usize> = (0..self.workers.len()).filter(|at| serves(*at)).collect();
        (!serving.is_empty(), serving.iter().any(|at| self.role(*at, tenant) == Role::First))
    }
}
