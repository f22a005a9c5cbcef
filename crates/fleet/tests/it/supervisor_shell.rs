//! The supervisor and the collectors' shells as real actors, with a scripted tenant list and collectors that work on a
//! Redis and a Postgres in memory. Time is paused: nothing here has a socket.

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
    /// The thread that stands still. Collectors are said to be on thread 0 until there is one, and on thread 1 then.
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

fn limits() -> Limits {
    Limits {
        start_concurrency: 64,
        stop_deadline: secs(30),
        crash_delay_min: secs(1),
        crash_delay_max: secs(60),
    }
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

// -- the list ----------------------------------------------------------------------------------------------------

#[actix::test]
async fn the_listed_start_the_added_join_and_the_removed_are_flushed_and_forgotten() {
    let bench = Bench::new(&["a", "b"]);
    assert!(!bench.fleet.is_ready());
    bench.all_idle(&["a", "b"]).await;
    assert!(bench.fleet.is_ready());
    assert_eq!(bench.begun.elapsed().as_millis() / 100, 0, "the first poll is made at once");

    bench.lists(&["a", "b", "c"]);
    bench.all_idle(&["a", "b", "c"]).await;
    assert!(bench.begun.elapsed() <= POLL_EVERY.mul_f64(1.1) + secs(1));

    // The manager knows a database of the one that goes.
    bench.directory.knows(&tenant("a"), database("a", "p"));
    let pool = bench
        .manager
        .send(GetPool { tenant: tenant("a"), last: false, span: Span::NONE })
        .await
        .unwrap()
        .unwrap();
    bench.redis("a").mutate(0..3, 1);
    bench.until("some are claimed", || bench.redis("a").leased() == 3).await;
    bench.lists(&["b", "c"]);
    bench.supervisor.do_send(Poll);
    bench.until("a has gone", || bench.known() == ["b", "c"]).await;
    assert_eq!(bench.redis("a").settled.borrow().len(), 3, "flushed before it went");
    bench.until("its database is closed", || pool.database.is_closed()).await;
    assert!(bench.manager.send(GetUsage(tenant("a"))).await.unwrap().is_none());
    assert_eq!((bench.fleet.started.load(Relaxed), bench.fleet.stopped.load(Relaxed)), (3, 1));
    assert_eq!(bench.phases(), [1, 1, 3, 0]);
    assert_eq!((bench.fleet.wanted.load(Relaxed), bench.fleet.restarts.load(Relaxed)), (2, 0));
    assert_eq!(bench.starts("b").len() + bench.starts("c").len(), 2, "the others were left alone");
}

#[actix::test]
async fn what_a_removed_tenant_still_has_scheduled_is_written_before_it_goes() {
    let bench = Bench::new(&["a", "b"]);
    bench.all_idle(&["a", "b"]).await;
    bench.postgres("a").takes.set(secs(1));
    bench.redis("a").mutate(0..95, 1);
    bench.lists(&["b"]);
    bench.supervisor.do_send(Poll);
    bench.until("a has gone", || bench.known() == ["b"]).await;
    assert_eq!(bench.redis("a").settled.borrow().len(), 95);
}

#[actix::test]
async fn collectors_on_a_thread_that_stands_still_are_given_up_and_start_on_another() {
    let bench = Bench::new(&["a", "b"]);
    bench.all_idle(&["a", "b"]).await;
    let former: Vec<Incarnation> = bench.world.born.borrow().iter().map(|(_, born)| born.clone()).collect();
    assert!(former.iter().all(|born| !born.stop.is_cancelled()));

    bench.world.still.set(Some(0));
    bench.fleet.still_threads.store(1, Relaxed);
    bench.supervisor.do_send(Poll);
    bench.until("both start again", || bench.starts("a").len() == 2 && bench.starts("b").len() == 2).await;
    assert!(
        former.iter().all(|born| born.stop.is_cancelled() && born.kill.is_cancelled()),
        "whoever moves again finds that it is to stop"
    );
    bench.all_idle(&["a", "b"]).await;
    assert_eq!(bench.fleet.reaped.load(Relaxed), 2);
    // A former one has moved again and reports its end.
    bench.says_ended(&former[0]).await;
    bench.polls(3).await;
    assert_eq!(
        (bench.starts("a").len(), bench.starts("b").len()),
        (2, 2),
        "those on other threads are left alone"
    );
}

#[actix::test]
async fn a_collector_that_never_comes_to_work_is_started_again() {
    let bench = Bench::new(&[]);
    bench.polls(1).await;
    bench.world.mute.set(true);
    bench.lists(&["a"]);
    bench.supervisor.do_send(Poll);
    bench.until("it was started", || bench.starts("a").len() == 1).await;
    bench.polls(3).await;
    assert_eq!((bench.starts("a").len(), bench.state("a")), (1, TenantState::Starting));
    bench.world.mute.set(false);
    bench.all_idle(&["a"]).await;
    let starts = bench.starts("a");
    assert_eq!(starts.len(), 2);
    assert!(
        starts[1] - starts[0] >= STARTS_WITHIN && starts[1] - starts[0] < 2 * STARTS_WITHIN,
        "{starts:?}"
    );
}

#[actix::test]
async fn an_error_is_not_an_empty_list() {
    let bench = Bench::new(&["a", "b"]);
    bench.all_idle(&["a", "b"]).await;
    for reply in [Reply::Answer(Err(DirectoryError::unavailable("500"))), Reply::Panic] {
        let failures = bench.fleet.poll_failures.load(Relaxed);
        bench.directory.list_is(reply);
        bench.polls(20).await;
        assert!(bench.fleet.poll_failures.load(Relaxed) >= failures + 19);
        assert_eq!((bench.known().len(), bench.fleet.started.load(Relaxed)), (2, 2));
        assert_eq!(bench.state("a"), TenantState::Idle);
    }
    // And they work: the supervisor has survived it.
    bench.lists(&["a", "b", "c"]);
    bench.all_idle(&["c"]).await;
}

#[actix::test]
async fn before_the_first_good_list_nobody_is_ready() {
    let bench = Bench::new(&["a"]);
    bench.directory.list_is(Reply::Answer(Err(DirectoryError::Unauthorized)));
    bench.polls(5).await;
    assert!(!bench.fleet.is_ready());
    assert!(bench.fleet.passes.load(Relaxed) >= 4, "it is alive");
    bench.lists(&[]);
    bench.polls(2).await;
    assert!(bench.fleet.is_ready(), "nobody is a good answer too");
}

#[actix::test]
async fn an_empty_list_after_a_full_one_must_repeat_itself_before_anybody_is_stopped() {
    let bench = Bench::new(&["a", "b", "c"]);
    bench.all_idle(&["a", "b", "c"]).await;
    bench.lists(&[]);
    bench.polls(1).await;
    assert_eq!(bench.fleet.removals_held.load(Relaxed), 3);
    // Hints do not make the same wrong list count more often.
    for _ in 0..50 {
        bench.supervisor.send(Poll).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((bench.known().len(), bench.fleet.removals_held.load(Relaxed)), (3, 3));
    bench.polls(1).await;
    assert_eq!(bench.known().len(), 3, "the second time");
    // It contradicts itself: from the beginning.
    bench.lists(&["a", "b", "c"]);
    bench.polls(1).await;
    assert_eq!(bench.fleet.removals_held.load(Relaxed), 0);
    bench.lists(&[]);
    bench.polls(2).await;
    assert_eq!(bench.known().len(), 3);
    bench.polls(1).await;
    bench.until("all have gone", || bench.known().is_empty()).await;
    assert_eq!(bench.fleet.started.load(Relaxed), 3, "nobody was restarted meanwhile");
}

#[actix::test]
async fn refused_ids_are_counted_and_refuse_nobody_else() {
    let bench = Bench::new(&["a"]);
    bench.directory.also_lists_refused(&["../x", "", ""]);
    bench.all_idle(&["a"]).await;
    assert_eq!(bench.fleet.refused_ids.load(Relaxed), 3);
    bench.lists(&["a"]);
    bench.polls(1).await;
    assert_eq!(bench.fleet.refused_ids.load(Relaxed), 0);
}

#[actix::test]
async fn hints_poll_at_once_but_a_stream_of_them_is_no_stream_of_polls() {
    let bench = Bench::new(&["a"]);
    bench.all_idle(&["a"]).await;
    let (polls, at) = (bench.directory.polls(), bench.begun.elapsed());
    bench.lists(&["a", "b"]);
    bench.supervisor.do_send(Poll);
    bench.all_idle(&["b"]).await;
    assert!(bench.begun.elapsed() - at < secs(1));
    assert_eq!(bench.directory.polls(), polls + 1);

    // A slow service under hints.
    bench.directory.shut();
    for _ in 0..20 {
        bench.supervisor.send(Poll).await.unwrap();
    }
    bench.directory.open();
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(bench.directory.polls(), polls + 2, "not on the heels of the one that was under way");
    tokio::time::sleep(secs(4)).await;
    assert_eq!(bench.directory.polls(), polls + 3, "one for all hints meanwhile");
}

#[actix::test]
async fn a_poll_without_an_answer_blocks_nothing_and_is_given_up() {
    let bench = Bench::new(&["a", "b"]);
    bench.all_idle(&["a", "b"]).await;
    bench.directory.shut();
    bench.polls(1).await;
    let passes = bench.fleet.passes.load(Relaxed);
    bench.postgres("a").is(Mood::Panics);
    bench.redis("a").mutate(0..10, 1);
    bench.until("the panic is reaped", || bench.fleet.panics.load(Relaxed) == 1).await;
    bench.postgres("a").is(Mood::Well);
    bench.redis("a").mutate(0..10, 2);
    bench.until("it works again", || bench.redis("a").settled.borrow().len() == 10).await;
    assert!(bench.fleet.passes.load(Relaxed) > passes);
    assert_eq!(bench.fleet.poll_failures.load(Relaxed), 0, "the poll is still out");
    bench.until("it is given up", || bench.fleet.poll_failures.load(Relaxed) == 1).await;
    bench.directory.open();
    bench.lists(&["a", "b", "c"]);
    bench.all_idle(&["c"]).await;
}

// -- ends --------------------------------------------------------------------------------------------------------

#[actix::test]
async fn a_panicking_collector_is_reaped_and_started_with_growing_delay_while_others_go_on() {
    let bench = Bench::new(&["bad", "good"]);
    bench.all_idle(&["bad", "good"]).await;
    bench.postgres("bad").is(Mood::Panics);
    // More than are ever claimed before the end: each incarnation finds ten and dies of them.
    bench.redis("bad").mutate(0..200, 1);
    bench
        .until("it was started six times", || {
            if bench.redis("good").due() + bench.redis("good").leased() == 0 {
                bench.redis("good").mutate([1], bench.begun.elapsed().as_millis() as i64 + 1);
            }
            bench.starts("bad").len() == 6
        })
        .await;
    let starts = bench.starts("bad");
    let delays: Vec<_> = starts.windows(2).skip(1).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(delays, [2, 4, 8, 16], "{starts:?}");
    assert!(bench.fleet.panics.load(Relaxed) >= 5);
    assert_eq!(bench.fleet.panics.load(Relaxed), bench.fleet.reaped.load(Relaxed));
    assert_eq!(bench.starts("good").len(), 1);
    assert!(
        bench.redis("good").settled.borrow().len() > 200,
        "{}",
        bench.redis("good").settled.borrow().len()
    );

    let epochs: Vec<_> = bench.world.born.borrow().iter().map(|(_, born)| born.epoch).collect();
    assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "{epochs:?}");
    let (bad, good) = (bench.fleet.tenant(&tenant("bad")), bench.fleet.tenant(&tenant("good")));
    assert_eq!((bad.starts.load(Relaxed), bad.restarts.load(Relaxed)), (6, 5));
    assert_eq!((good.starts.load(Relaxed), good.restarts.load(Relaxed)), (1, 0));
    assert_eq!(bench.fleet.restarts.load(Relaxed), 5);
}

#[actix::test]
async fn while_it_waits_for_its_next_start_a_crashed_tenant_says_so_and_can_be_removed() {
    let bench = Bench::new(&["a", "b", "c"]);
    bench.all_idle(&["a", "b", "c"]).await;
    bench.postgres("a").is(Mood::Panics);
    bench.redis("a").mutate(0..500, 1);
    bench.until("it has crashed thrice", || bench.fleet.panics.load(Relaxed) == 3).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let info = bench.fleet.tenant(&tenant("a")).state();
    assert_eq!((info.state, info.reason), (TenantState::Degraded, Some(Reason::CollectorCrashed)));
    bench.lists(&["b", "c"]);
    bench.supervisor.do_send(Poll);
    bench.until("it has gone", || bench.known() == ["b", "c"]).await;
    let starts = bench.starts("a").len();
    tokio::time::sleep(secs(60)).await;
    assert_eq!(bench.starts("a").len(), starts, "its delay is void");
}

#[actix::test]
async fn the_late_end_of_a_former_incarnation_is_ignored() {
    let bench = Bench::new(&["a"]);
    bench.all_idle(&["a"]).await;
    bench.postgres("a").is(Mood::Panics);
    bench.redis("a").mutate(0..10, 1);
    bench.until("it crashed and is back", || bench.starts("a").len() == 2).await;
    bench.postgres("a").is(Mood::Well);
    bench.all_idle(&["a"]).await;
    let former = bench.world.born.borrow()[0].1.clone();
    bench.says_ended(&former).await;
    tokio::time::sleep(secs(60)).await;
    assert_eq!((bench.starts("a").len(), bench.fleet.panics.load(Relaxed)), (2, 1));
    assert_eq!(bench.state("a"), TenantState::Idle);
}

#[actix::test]
async fn a_tenant_that_returns_while_it_stops_starts_again_only_after_its_end() {
    let bench = Bench::new(&["a", "b", "c"]);
    bench.all_idle(&["a", "b", "c"]).await;
    bench.postgres("a").takes.set(Duration::from_millis(1500));
    bench.redis("a").mutate(0..3, 1);
    bench.until("they are claimed", || bench.redis("a").leased() == 3).await;
    bench.lists(&["b", "c"]);
    bench.supervisor.send(Poll).await.unwrap();
    bench.until("it stops", || bench.state("a") == TenantState::Stopping).await;
    bench.lists(&["a", "b", "c"]);
    bench.supervisor.send(Poll).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.starts("a").len(), 1);
    bench.until("it is back", || bench.starts("a").len() == 2).await;
    assert_eq!(bench.redis("a").settled.borrow().len(), 3, "the first one has ended its work");
    assert_eq!(bench.postgres("a").in_flight.get(), 0);
    bench.postgres("a").takes.set(Duration::ZERO);
    bench.redis("a").mutate([9], 1);
    bench.until("it works", || bench.redis("a").settled.borrow().len() == 4).await;
    assert!(bench.known().contains(&"a".to_owned()));
}

/// Options under which a collector with a silent Postgres needs longer to drain than it is given.
fn endless() -> CollectorOptions {
    CollectorOptions { drain_deadline: secs(3600), flush_deadline: secs(3600), ..options() }
}

#[actix::test]
async fn who_does_not_stop_in_time_is_broken_off_and_nobody_waits_for_it() {
    let bench = Bench::with(&["a", "b", "c"], limits(), endless());
    bench.all_idle(&["a", "b", "c"]).await;
    bench.postgres("a").is(Mood::Silent);
    bench.redis("a").mutate(0..3, 1);
    bench.until("its flush hangs", || bench.postgres("a").in_flight.get() == 1).await;
    bench.lists(&["b", "c", "new"]);
    let begun = bench.begun.elapsed();
    bench.supervisor.do_send(Poll);
    bench.all_idle(&["new"]).await;
    assert!(bench.begun.elapsed() - begun < secs(1), "a slow stop delays no start");
    assert_eq!(bench.state("a"), TenantState::Stopping);
    assert_eq!(bench.fleet.awaited.load(Relaxed), 1);

    bench.until("it has gone", || !bench.known().contains(&"a".to_owned())).await;
    let took = bench.begun.elapsed() - begun;
    assert!((secs(30)..secs(31)).contains(&took), "{took:?}");
    assert_eq!(bench.postgres("a").in_flight.get(), 0, "broken off for good");
    assert_eq!((bench.fleet.reaped.load(Relaxed), bench.fleet.panics.load(Relaxed)), (1, 0));
    assert_eq!((bench.phases(), bench.fleet.awaited.load(Relaxed)), ([1, 1, 4, 1], 0));
    assert_eq!(bench.redis("a").leased(), 3, "its claims lapse");
}

#[actix::test]
async fn only_so_many_start_at_once() {
    let limits = Limits { start_concurrency: 3, ..limits() };
    let ids: Vec<String> = (0..20).map(|n| format!("t{n:02}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let bench = Bench::with(&ids, limits, options());
    bench.world.mute.set(true);
    tokio::time::sleep(secs(5)).await;
    assert_eq!(bench.world.born.borrow().len(), 3, "they have not said that they are at work");
    bench.world.mute.set(false);
    let stuck: Vec<_> = bench.world.born.borrow().iter().map(|(_, born)| born.clone()).collect();
    for born in &stuck {
        bench.says_ended(born).await;
    }
    bench.all_idle(&ids).await;
    assert_eq!(bench.world.born.borrow().len(), 23);
}

// -- drain -------------------------------------------------------------------------------------------------------

#[actix::test]
async fn draining_flushes_releases_and_reports() {
    let bench = Bench::new(&["fine", "down", "cut", "idle"]);
    bench.all_idle(&["fine", "down", "cut", "idle"]).await;
    for id in ["fine", "down", "cut"] {
        bench.redis(id).mutate(0..3, 1);
    }
    bench
        .until("all are claimed", || ["fine", "down", "cut"].iter().all(|id| bench.redis(id).leased() == 3))
        .await;
    bench.postgres("down").is(Mood::Silent);
    bench.postgres("cut").is(Mood::Silent);
    bench.redis("cut").fail(&["release"], ErrorClass::Unavailable);
    let begun = Instant::now();
    let report = bench.drain().await;
    assert!(begun.elapsed() < secs(3), "the drain deadline of a collector, not more: {:?}", begun.elapsed());
    assert_eq!((report.stopped, report.flushed, report.released), (4, 3, 3));
    assert_eq!(report.orphaned, BTreeMap::from([(tenant("cut"), 3)]));
    assert!(report.killed.is_empty());
    assert!(!bench.fleet.is_ready());
    assert_eq!((bench.redis("fine").settled.borrow().len(), bench.redis("down").due()), (3, 3));

    // There is no way back: neither list nor hints start anybody.
    let polls = bench.directory.polls();
    bench.lists(&["fine", "another"]);
    bench.supervisor.do_send(Poll);
    tokio::time::sleep(secs(60)).await;
    assert_eq!((bench.world.born.borrow().len(), bench.directory.polls()), (4, polls));
}

#[actix::test]
async fn draining_breaks_off_who_does_not_end_and_says_whom() {
    let bench = Bench::with(&["a", "b", "c"], limits(), endless());
    bench.all_idle(&["a", "b", "c"]).await;
    bench.postgres("b").is(Mood::Silent);
    bench.redis("b").mutate(0..3, 1);
    bench.until("its flush hangs", || bench.postgres("b").in_flight.get() == 1).await;
    let begun = Instant::now();
    let (report, second) = tokio::join!(bench.drain(), bench.drain());
    assert!((secs(30)..secs(31)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!((report.stopped, report.killed.clone()), (2, vec![tenant("b")]));
    assert_eq!(second.killed, report.killed);
    tokio::time::sleep(secs(1)).await;
    assert_eq!(bench.postgres("b").in_flight.get(), 0);
    assert_eq!(bench.drain().await.killed, [tenant("b")], "whoever asks later hears the same");
}

#[actix::test]
async fn draining_hurries_who_empties_a_removed_tenant_s_schedule() {
    let bench = Bench::new(&["a", "b", "c"]);
    bench.all_idle(&["a", "b", "c"]).await;
    // Never empty: what is written can't be settled.
    bench.redis("a").fail(&["settle"], ErrorClass::Unavailable);
    bench.redis("a").mutate([1], 1);
    bench.lists(&["b", "c"]);
    bench.supervisor.do_send(Poll);
    bench.until("it stops", || bench.state("a") == TenantState::Stopping).await;
    tokio::time::sleep(secs(3)).await;
    assert_eq!(bench.state("a"), TenantState::Stopping);
    let begun = Instant::now();
    let report = bench.drain().await;
    assert!(begun.elapsed() < secs(1), "{:?}", begun.elapsed());
    assert_eq!(report.stopped, 3);
}

#[actix::test]
async fn draining_while_a_poll_is_out_or_a_crash_is_waited_for_ends_at_once() {
    let bench = Bench::new(&["a", "b"]);
    bench.all_idle(&["a", "b"]).await;
    bench.postgres("a").is(Mood::Panics);
    bench.redis("a").mutate(0..500, 1);
    bench.until("it has crashed thrice", || bench.fleet.panics.load(Relaxed) == 3).await;
    bench.directory.shut();
    bench.supervisor.send(Poll).await.unwrap();
    let begun = Instant::now();
    let report = bench.drain().await;
    assert!(begun.elapsed() < secs(1), "{:?}", begun.elapsed());
    assert_eq!((report.stopped, report.killed.len()), (1, 0));
    bench.lists(&["a", "b", "c"]);
    bench.directory.open();
    tokio::time::sleep(secs(60)).await;
    assert!(bench.starts("c").is_empty(), "the answer to the poll comes too late");
}

#[actix::test]
async fn draining_before_anything_was_listed_ends_at_once() {
    let bench = Bench::new(&["a"]);
    bench.directory.shut();
    let report = bench.drain().await;
    assert_eq!((report.stopped, report.killed.len()), (0, 0));
    bench.directory.open();
    tokio::time::sleep(secs(60)).await;
    assert!(bench.world.born.borrow().is_empty());
}
