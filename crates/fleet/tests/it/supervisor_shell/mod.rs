//! The supervisor and the collectors' shells as real actors, with a scripted tenant list and collectors that work on a
//! Redis and a Postgres in memory. Time is paused: nothing here has a socket.

mod drain;
mod ends;
mod list;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crate::common::{
    FakeQueue, FakeSink, Mood, Postgres, Redis,
    directory::{FakeDirectory, Reply, database},
    options, secs, tenant,
};
use actix::prelude::*;
use balance_sync_fleet::{
    ConnectionBudget,
    backends::{GetPool, GetUsage, ManagerOptions, TenantManager},
    lifecycle::{Drain, DrainReport, Poll, Spawner, Supervisor, SupervisorOptions},
    pipeline::{Collector, CollectorActor, CollectorEnded, CollectorOptions, Drained, Incarnation},
    plan::{Exit, Limits, STARTS_WITHIN},
    status::{FleetStatus, Reason, TenantState},
};
use balance_sync_schedule::ErrorClass;
use balance_sync_tenants::{DirectoryError, KeyForm, Membership, Tenant};
use balance_sync_trace::Span;
use tokio::time::Instant;

const POLL_EVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
struct World {
    redis: RefCell<BTreeMap<Tenant, Rc<Redis>>>,
    postgres: RefCell<BTreeMap<Tenant, Rc<Postgres>>>,
    /// All that were started, in order.
    born: RefCell<Vec<(Duration, Incarnation)>>,
    /// Collectors that report their start, and nothing after it.
    mute: Cell<bool>,
    /// The thread that is stalled. Collectors are said to be on thread 0 until there is one, and on thread 1 then.
    still: Cell<Option<usize>>,
}

impl World {
    fn redis(&self, tenant: &Tenant) -> Rc<Redis> {
        let new = || Rc::new(Redis::new(tenant.key_space(KeyForm::AsListed)));
        Rc::clone(self.redis.borrow_mut().entry(tenant.clone()).or_insert_with(new))
    }

    fn postgres(&self, tenant: &Tenant) -> Rc<Postgres> {
        Rc::clone(
            self.postgres.borrow_mut().entry(tenant.clone()).or_insert_with(|| Rc::new(Postgres::new())),
        )
    }
}

/// Starts real collectors around the fakes, on the test's thread.
struct FakeSpawner {
    world: Rc<World>,
    fleet: Arc<FleetStatus>,
    options: Arc<CollectorOptions>,
    begun: Instant,
}

impl Spawner for FakeSpawner {
    fn spawn(&mut self, incarnation: Incarnation) -> usize {
        self.world.born.borrow_mut().push((self.begun.elapsed(), incarnation.clone()));
        let thread = usize::from(self.world.still.get().is_some());
        if self.world.mute.get() {
            return thread;
        }
        let tenant = &incarnation.tenant;
        let collector = Collector {
            queue: FakeQueue(self.world.redis(tenant)),
            sink: FakeSink(self.world.postgres(tenant)),
            options: Arc::clone(&self.options),
            fleet: Arc::clone(&self.fleet),
            status: self.fleet.tenant(tenant),
        };
        CollectorActor::new(incarnation, collector).start();
        thread
    }

    fn is_stalled(&self, thread: usize) -> bool {
        self.world.still.get() == Some(thread)
    }
}

struct Bench {
    directory: Arc<FakeDirectory>,
    fleet: Arc<FleetStatus>,
    world: Rc<World>,
    supervisor: Addr<Supervisor>,
    manager: Addr<TenantManager>,
    begun: Instant,
}

/// A message whose handler panics.
#[derive(Message)]
#[rtype(result = "()")]
struct PanicNow;

impl Handler<PanicNow> for TenantManager {
    type Result = ();

    fn handle(&mut self, _: PanicNow, _: &mut Context<Self>) {
        panic!("a handler of the manager panics");
    }
}

fn limits() -> Limits {
    Limits {
        start_concurrency: 64,
        stop_deadline: secs(30),
        crash_delay_min: secs(1),
        crash_delay_max: secs(60),
    }
}

/// Options under which a collector with a silent Postgres needs longer to drain than it is given.
fn endless() -> CollectorOptions {
    CollectorOptions { drain_deadline: secs(3600), flush_deadline: secs(3600), ..options() }
}

impl Bench {
    fn new(tenants: &[&str]) -> Self {
        Self::with(tenants, limits(), options())
    }

    fn with(tenants: &[&str], limits: Limits, options: CollectorOptions) -> Self {
        tokio::time::pause();
        let directory = Arc::new(FakeDirectory::new());
        directory.lists(&tenants.iter().map(|id| tenant(id)).collect::<Vec<_>>());
        let fleet = Arc::new(FleetStatus::default());
        let world = Rc::new(World::default());
        let begun = Instant::now();
        let manager =
            TenantManager::new(directory.clone(), ConnectionBudget::new(10), ManagerOptions::default())
                .start();
        let spawner = FakeSpawner {
            world: Rc::clone(&world),
            fleet: Arc::clone(&fleet),
            options: Arc::new(options),
            begun,
        };
        let supervisor = Supervisor::new(
            directory.clone(),
            Some(manager.clone()),
            Box::new(spawner),
            Arc::clone(&fleet),
            Membership::new(0.5, 2),
            SupervisorOptions { poll_interval: POLL_EVERY, key_form: KeyForm::AsListed, limits },
        )
        .start();
        Self { directory, fleet, world, supervisor, manager, begun }
    }

    fn lists(&self, tenants: &[&str]) {
        self.directory.lists(&tenants.iter().map(|id| tenant(id)).collect::<Vec<_>>());
    }

    fn redis(&self, id: &str) -> Rc<Redis> {
        self.world.redis(&tenant(id))
    }

    fn postgres(&self, id: &str) -> Rc<Postgres> {
        self.world.postgres(&tenant(id))
    }

    /// Whom the fleet knows, and whether each is at work.
    fn known(&self) -> Vec<String> {
        self.fleet.tenants().iter().map(|status| status.tenant().to_string()).collect()
    }

    /// Collectors reaped, stopped, started, broken off.
    fn phases(&self) -> [u64; 4] {
        std::array::from_fn(|at| self.fleet.phases[at].load(Relaxed))
    }

    fn state(&self, id: &str) -> TenantState {
        self.fleet.tenant(&tenant(id)).state().state
    }

    fn starts(&self, id: &str) -> Vec<Duration> {
        let born = self.world.born.borrow();
        born.iter().filter(|(_, born)| born.tenant == tenant(id)).map(|(at, _)| *at).collect()
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        crate::common::directory::until(what, condition).await;
    }

    async fn all_idle(&self, tenants: &[&str]) {
        self.until("all are idle", || tenants.iter().all(|id| self.state(id) == TenantState::Idle)).await;
    }

    /// The next so many polls.
    async fn polls(&self, count: usize) {
        let polls = self.directory.polls();
        self.until("polls go on", || self.directory.polls() >= polls + count).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    async fn drain(&self) -> DrainReport {
        let draining = self.supervisor.send(Drain);
        tokio::time::timeout(secs(600), draining).await.expect("draining ends").unwrap()
    }

    /// The supervisor hears of the end of a collector, as its shell would tell it.
    async fn says_ended(&self, born: &Incarnation) {
        let ended = CollectorEnded {
            tenant: born.tenant.clone(),
            epoch: born.epoch,
            exit: Exit::Panicked,
            drained: Drained::default(),
        };
        self.supervisor.send(ended).await.unwrap();
    }
}
