//! The world: the event queue, and everything that is in it.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    sync::Arc,
    time::{Duration, Instant},
};

use balance_sync_engine::{
    collector::{Controls, Options, Role, Service},
    standby::Watch,
};
use rand::{SeedableRng, rngs::SmallRng};

use crate::{
    bugs::Bug,
    calamities::Snapshot,
    driver::{Actor, To},
    fleet::{Registry, Supervisor},
    ledger::{Pod, Stage},
    plan::{Fault, Plan, SECOND},
    postgres::Postgres,
    producers::Releases,
    redis::{self, Rules, Schedule},
    servers::{Call, Cause, Reply},
    silence::{Losses, Lost},
    truth::{Mutation, Truth, Unseen},
    watch::{self, Server, Watcher},
};

/// The claim TTL, in nanoseconds.
pub(crate) const CLAIM_TTL: u64 = 30 * SECOND;
/// A message of a flaky network comes late by this at most.
pub(crate) const LATE: u64 = 35 * SECOND;
/// How long the world goes on after the last fault and the last mutation.
const DRAIN: u64 = 360 * SECOND;

/// A guarantee that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which guarantee.
    pub guarantee: &'static str,
    /// What was seen.
    pub what: String,
    /// When, in nanoseconds.
    pub at: u64,
    /// Where.
    pub tenant: usize,
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Events that were handled.
    pub steps: u64,
    /// Virtual time that passed, in nanoseconds.
    pub simulated: u64,
    /// Mutations made by producers.
    pub mutations: u64,
    /// Rows written.
    pub written: u64,
    /// Values that Redis lost before they were written.
    pub values_lost: u64,
    /// Losses that were recorded: certain ones, and such of which it can't be determined.
    pub recorded: [u64; 2],
    /// Mutations that nothing in the schedule shows to be lost, in the order of [`Unseen`].
    pub unseen: [u64; Unseen::NAMES.len()],
    /// What became of these, where a watch looks for them.
    pub losses: Losses,
    /// Faults, in the order of [`Fault::KINDS`].
    pub faults: [u64; Fault::KINDS.len()],
    /// The first guarantee that was broken; the run ends there.
    pub violation: Option<Violation>,
    /// What happened to the tenant of the violation, if this was asked for.
    pub trace: Vec<String>,
}

/// What is to happen.
#[derive(Debug)]
pub(crate) enum What {
    Fault(usize),
    /// The next transaction of a tenant.
    Transaction(usize),
    /// One balance changes.
    Change {
        tenant: usize,
        balance: usize,
    },
    /// An operation reaches the trail.
    Operation {
        tenant: usize,
        balance: usize,
        version: u64,
    },
    /// Values with a short life may be over.
    Expiry {
        tenant: usize,
    },
    /// The state of a server is kept for this fault.
    Snapshot(usize),
    /// A request reaches its server.
    Arrive(Call),
    /// An answer, or the end of the wait for it, reaches a worker.
    Answer(To, Result<Reply, Cause>),
    Wake {
        worker: usize,
        incarnation: u32,
        tenant: usize,
    },
    /// The standbys of a worker look at their schedules.
    Watch {
        worker: usize,
        incarnation: u32,
    },
    /// A worker asks for the list of tenants.
    Poll {
        worker: usize,
        incarnation: u32,
    },
    Register {
        worker: usize,
        incarnation: u32,
    },
    Reconcile {
        worker: usize,
        incarnation: u32,
    },
    Start {
        worker: usize,
    },
    Return {
        tenant: usize,
    },
    Resume {
        tenant: usize,
    },
    Ledger {
        tenant: usize,
        stage: Stage,
    },
    /// A worker looks for data that vanish.
    LookForLosses {
        worker: usize,
        incarnation: u32,
        step: watch::Step,
    },
    /// The checks of what must happen in time.
    Look,
}

#[derive(Debug)]
struct Due {
    at: u64,
    seq: u64,
    what: What,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

pub(crate) struct Tenant {
    pub(crate) redis: Schedule,
    pub(crate) postgres: Postgres,
    pub(crate) truth: Vec<Truth>,
    pub(crate) producer: SmallRng,
    pub(crate) releases: Releases,
    /// All mutations, in the order of their marks.
    pub(crate) marks: Vec<Mutation>,
    pub(crate) short_until: u64,
    pub(crate) short_life: u64,
    /// When values with a short life are looked at next.
    pub(crate) next_expiry: u64,
    pub(crate) trail_lags_until: u64,
    pub(crate) present: bool,
    pub(crate) paused: bool,
    pub(crate) roles: Vec<Role>,
    pub(crate) pod: Pod,
    /// Lateness counts from this moment on.
    pub(crate) excused_until: u64,
    /// When it was back after it had been removed.
    pub(crate) returned_at: u64,
    /// No worker knew of it, with an excuse, until then.
    pub(crate) unserved_until: u64,
    /// For how long no worker has served it, without an excuse.
    pub(crate) unserved_for: u64,
    /// Some worker that comes first has had the time to begin from then on.
    pub(crate) calm_from: u64,
    /// What servers have lost of each balance, not found yet.
    pub(crate) lost: Vec<Option<Lost>>,
    /// For how long a loss has not been reported although a worker served the tenant undisturbed.
    pub(crate) silent_for: u64,
    /// The next write is followed by a change at the end of its lease, and this long after it the worker goes on.
    pub(crate) armed: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Worker {
    pub(crate) up: bool,
    pub(crate) stopping: bool,
    pub(crate) restarts_at: u64,
    pub(crate) incarnation: u32,
    pub(crate) frozen_until: u64,
    pub(crate) cut_until: u64,
    pub(crate) flaky_until: u64,
    pub(crate) actors: Vec<Option<Actor>>,
    /// What it knows of tenants and workers; `None` = its tenants and roles are given.
    pub(crate) supervisor: Option<Supervisor>,
    /// Its standbys, each with a tenant and the task that waits.
    pub(crate) watch: Option<Watch<(usize, u64), (u64, usize)>>,
    pub(crate) watch_at: Option<u64>,
    /// Its watch for data that vanish.
    pub(crate) watcher: Option<Watcher>,
}

impl Worker {
    /// The watch of its standbys.
    pub(crate) fn watch(&mut self, now: Instant) -> &mut Watch<(usize, u64), (u64, usize)> {
        self.watch.get_or_insert_with(|| Watch::new(Options::default().idle_backoff_max, now))
    }
}

/// A whole fleet with its surroundings.
pub struct World {
    pub(crate) now: u64,
    /// Producers and faults act until then.
    pub(crate) end: u64,
    origin: Instant,
    seq: u64,
    queue: BinaryHeap<Reverse<Due>>,
    pub(crate) plan: Plan,
    pub(crate) bug: Option<Bug>,
    pub(crate) rules: Rules,
    pub(crate) options: Arc<Options>,
    pub(crate) rng: SmallRng,
    /// Workers don't reach Redis until then …
    pub(crate) redis_down_until: u64,
    /// … nor does the ledger.
    pub(crate) redis_lost_until: u64,
    /// Some worker may not have reached Redis, or was suspended, until then.
    pub(crate) disturbed_until: u64,
    /// The tenant service fails until then …
    pub(crate) service_ill_until: u64,
    /// … or lists no tenants, since then.
    pub(crate) service_empty_from: u64,
    pub(crate) service_empty_until: u64,
    /// Some worker may not know of a tenant until then: it started, or the tenant came back, while the service failed.
    pub(crate) unknown_until: u64,
    pub(crate) registry: Registry,
    /// How far Redis's clock is off, in microseconds.
    pub(crate) skew: i64,
    /// Redis, as far as all tenants share it.
    pub(crate) server: Server,
    pub(crate) watch_rng: SmallRng,
    pub(crate) snapshots: Vec<(usize, Snapshot)>,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) next_task: u64,
    pub(crate) outcome: Outcome,
    traced: Option<Vec<(Option<usize>, String)>>,
}

impl World {
    /// Runs a plan to its end, or to the first guarantee that is broken. `traced`: keep what happens, as text.
    #[must_use]
    pub fn run(plan: &Plan, bug: Option<Bug>, traced: bool) -> Outcome {
        let mut world = Self::new(plan.clone(), bug, traced);
        world.begin();
        let last = world.end + DRAIN;
        while world.outcome.violation.is_none() {
            let Some(Reverse(due)) = world.queue.pop() else { break };
            if due.at > last {
                world.check_end();
                world.count_open();
                break;
            }
            world.now = due.at;
            world.outcome.steps += 1;
            world.step(due.what);
        }
        world.outcome.simulated = world.now;
        if let (Some(traced), Some(violation)) = (world.traced, &world.outcome.violation) {
            let of = |tenant: Option<usize>| tenant.is_none_or(|tenant| tenant == violation.tenant);
            world.outcome.trace =
                traced.into_iter().filter(|(tenant, _)| of(*tenant)).map(|(_, line)| line).collect();
        }
        world.outcome
    }

    fn new(plan: Plan, bug: Option<Bug>, traced: bool) -> Self {
        let options = Arc::new(plan.options());
        let rules = Rules {
            bug,
            claim_ttl: CLAIM_TTL / 1000,
            protect_floor: u64::try_from(options.protect_floor.as_micros()).unwrap_or(u64::MAX),
            lock: None,
            scan_limit: plan.scan_limit,
        };
        let tenants = (0..plan.tenants).map(|tenant| Tenant {
            redis: Schedule::new(plan.balances),
            postgres: Postgres::new(plan.balances),
            truth: (0..plan.balances).map(|_| Truth::default()).collect(),
            // A stream of its own: what is changed elsewhere in a plan leaves the producers as they are.
            producer: SmallRng::seed_from_u64(
                plan.seed ^ (tenant as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            ),
            releases: Releases::ALL[(plan.releases + tenant) % Releases::ALL.len()],
            marks: Vec::new(),
            short_until: 0,
            short_life: 0,
            next_expiry: 0,
            trail_lags_until: 0,
            present: true,
            paused: false,
            roles: (0..plan.workers)
                .map(|worker| if worker == tenant % plan.workers { Role::First } else { Role::Standby })
                .collect(),
            pod: Pod::default(),
            excused_until: 0,
            returned_at: 0,
            unserved_until: 0,
            unserved_for: 0,
            calm_from: 0,
            lost: vec![None; plan.balances],
            silent_for: 0,
            armed: None,
        });
        Self {
            now: 0,
            end: plan.seconds * SECOND,
            origin: Instant::now(),
            seq: 0,
            queue: BinaryHeap::new(),
            bug,
            rules,
            options,
            rng: SmallRng::seed_from_u64(plan.seed.wrapping_add(1)),
            redis_down_until: 0,
            redis_lost_until: 0,
            disturbed_until: 0,
            service_ill_until: 0,
            service_empty_from: 0,
            service_empty_until: 0,
            unknown_until: 0,
            registry: Registry::new(),
            skew: 0,
            server: Server::default(),
            watch_rng: SmallRng::seed_from_u64(plan.seed ^ 0x0013_0d1e_55ed_da7a),
            snapshots: Vec::new(),
            tenants: tenants.collect(),
            workers: (0..plan.workers).map(|_| Worker::default()).collect(),
            next_task: 0,
            outcome: Outcome::default(),
            traced: traced.then(Vec::new),
            plan,
        }
    }

    fn begin(&mut self) {
        for worker in 0..self.plan.workers {
            self.push(0, What::Start { worker });
        }
        for tenant in 0..self.plan.tenants {
            self.push(SECOND, What::Transaction(tenant));
            if self.plan.ledger {
                self.push(SECOND, What::Ledger { tenant, stage: Stage::Claim });
            }
        }
        for at in 0..self.plan.faults.len() {
            self.push(self.plan.faults[at].0, What::Fault(at));
        }
        self.plan_snapshots();
        self.push(SECOND, What::Look);
    }

    fn step(&mut self, what: What) {
        match what {
            What::Fault(at) => {
                let fault = self.plan.faults[at].1;
                self.outcome.faults[fault.kind()] += 1;
                self.fault(at, fault);
            }
            What::Transaction(tenant) => self.transaction(tenant),
            What::Change { tenant, balance } => self.change(tenant, balance),
            What::Operation { tenant, balance, version } => self.operation(tenant, balance, version),
            What::Expiry { tenant } => self.expire_soon(tenant),
            What::Snapshot(fault) => self.take_snapshot(fault),
            What::Arrive(call) => self.arrive(call),
            What::Answer(to, answer) => {
                let frozen = self.workers[to.worker].frozen_until;
                if frozen > self.now {
                    self.push(frozen, What::Answer(to, answer));
                } else {
                    self.answer(to, answer);
                }
            }
            What::Wake { worker, incarnation, tenant } => {
                let frozen = self.workers[worker].frozen_until;
                if frozen > self.now {
                    self.push(frozen, What::Wake { worker, incarnation, tenant });
                } else if self.workers[worker].incarnation == incarnation {
                    self.wake(worker, tenant);
                }
            }
            What::Watch { worker, incarnation }
            | What::Poll { worker, incarnation }
            | What::Register { worker, incarnation }
            | What::Reconcile { worker, incarnation } => {
                let at = &self.workers[worker];
                if !at.up || at.incarnation != incarnation {
                    return;
                }
                if at.frozen_until > self.now {
                    return self.push(at.frozen_until, what);
                }
                match what {
                    What::Watch { .. } => self.look_for_standbys(worker),
                    // What is left is to stop.
                    _ if at.stopping => {}
                    What::Poll { .. } => self.poll(worker),
                    What::Register { .. } => self.register(worker),
                    _ => self.reconcile(worker),
                }
            }
            What::LookForLosses { worker, incarnation, step } => {
                let at = &self.workers[worker];
                if !at.up || at.incarnation != incarnation {
                    return;
                }
                if at.frozen_until > self.now {
                    let frozen = at.frozen_until;
                    return self.push(frozen, What::LookForLosses { worker, incarnation, step });
                }
                self.watch_step(worker, step);
            }
            What::Start { worker } => self.start(worker),
            What::Return { tenant } => self.return_tenant(tenant),
            What::Resume { tenant } => {
                self.tenants[tenant].paused = false;
                self.note(Some(tenant), || "an operator resumes the tenant".to_owned());
                self.apply_controls(tenant);
            }
            What::Ledger { tenant, stage } => self.ledger_step(tenant, stage),
            What::Look => {
                self.check_lateness();
                if self.plan.watch {
                    self.check_silence();
                }
                self.push(self.now + SECOND, What::Look);
            }
        }
    }

    // -- workers -------------------------------------------------------------------------------------------------

    fn start(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        if worker.up || worker.restarts_at > self.now {
            return;
        }
        worker.up = true;
        worker.stopping = false;
        worker.incarnation += 1;
        worker.actors = (0..self.plan.tenants).map(|_| None).collect();
        (worker.watch, worker.watch_at) = (None, None);
        self.note(None, || format!("worker {at} starts"));
        self.begin_watch(at);
        if self.plan.supervised {
            return self.supervise(at);
        }
        for tenant in 0..self.plan.tenants {
            if self.tenants[tenant].present {
                self.start_collector(at, tenant);
            }
        }
    }

    /// What is decided about a collector.
    pub(crate) fn controls(&self, worker: usize, tenant: usize) -> Controls {
        let service = if self.tenants[tenant].paused { Service::Paused } else { Service::Active };
        Controls { service, role: self.role(worker, tenant) }
    }

    /// Workers, or Redis, are not there until then.
    pub(crate) fn disturb(&mut self, until: u64) {
        self.disturbed_until = self.disturbed_until.max(until);
        self.excuse(None, until);
    }

    /// Lateness of a tenant, or of all, counts from this moment on.
    pub(crate) fn excuse(&mut self, tenant: Option<usize>, until: u64) {
        for (at, excused) in self.tenants.iter_mut().enumerate() {
            if tenant.is_none_or(|tenant| tenant == at) {
                excused.excused_until = excused.excused_until.max(until);
            }
        }
    }

    // -- time and text -------------------------------------------------------------------------------------------

    pub(crate) fn push(&mut self, at: u64, what: What) {
        self.seq += 1;
        self.queue.push(Reverse(Due { at: at.max(self.now), seq: self.seq, what }));
    }

    /// What Redis's clock shows, in microseconds.
    pub(crate) fn clock(&self) -> u64 {
        redis::clock(self.now).saturating_add_signed(self.skew)
    }

    /// Virtual time, as engines take it.
    pub(crate) fn instant(&self) -> Instant {
        self.origin + Duration::from_nanos(self.now)
    }

    pub(crate) fn nanos(&self, instant: Instant) -> u64 {
        u64::try_from(instant.duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn note(&mut self, tenant: Option<usize>, text: impl FnOnce() -> String) {
        if let Some(traced) = &mut self.traced {
            let (seconds, micros) = (self.now / SECOND, self.now % SECOND / 1000);
            traced.push((tenant, format!("{seconds:4}.{micros:06}  {}", text())));
        }
    }
}
