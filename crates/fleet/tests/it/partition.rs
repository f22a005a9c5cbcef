//! Workers that share tenants out, on a real Redis: the list of the living, and supervisors that follow it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::prelude::*;
use balance_sync_domain::TenantId;
use balance_sync_fleet::{
    lifecycle::{
        Spawner, Supervisor, SupervisorOptions,
        partition::{Partition, PartitionSettings, owners},
    },
    pipeline::{CollectorEnded, CollectorStarted, Drained, Incarnation},
    plan::{Exit, Limits},
    status::FleetStatus,
    tasks::{Progress, TaskName},
};
use balance_sync_sandbox::{RedisOptions, RedisServer, eventually, free_port};
use balance_sync_schedule::{Link, LinkSettings, Workers};
use balance_sync_tenants::{
    BoxFuture, DirectoryError, KeyForm, ListedTenant, Listing, Membership, Tenant, TenantDatabase,
    TenantDirectory,
};
use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for what takes a moment on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);
const GROUP: &str = "test";

async fn redis() -> RedisServer {
    RedisServer::start(RedisOptions::default()).await.unwrap()
}

fn link(url: &str) -> Link {
    Link::new(&LinkSettings::for_url(url)).unwrap()
}

fn workers(server: &RedisServer) -> Workers {
    Workers::new(link(&server.url()), GROUP)
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn tenants() -> BTreeSet<Tenant> {
    (0..40).map(|n| Tenant::Id(TenantId::parse(&format!("tenant-{n:02}")).unwrap())).collect()
}

/// The tenants that are this worker's with one owner per tenant.
fn part(name: &str, live: &[&str]) -> BTreeSet<Tenant> {
    let live = names(live);
    tenants().into_iter().filter(|tenant| owners(tenant.label(), &live, 1) == [name]).collect()
}

struct Directory {
    ill: AtomicBool,
}

impl TenantDirectory for Directory {
    fn active(&self) -> BoxFuture<'_, Result<Listing, DirectoryError>> {
        let listed = tenants()
            .into_iter()
            .map(|tenant| ListedTenant { name: tenant.label().to_owned(), tenant })
            .collect();
        let answer = if self.ill.load(Relaxed) {
            Err(DirectoryError::unavailable("ill"))
        } else {
            Ok(Listing { tenants: listed, refused: Vec::new() })
        };
        futures::future::ready(answer).boxed()
    }

    fn database(&self, _: &Tenant) -> BoxFuture<'_, Result<TenantDatabase, DirectoryError>> {
        futures::future::ready(Err(DirectoryError::NotFound)).boxed()
    }
}

/// Collectors that do nothing until they are stopped.
#[derive(Clone, Default)]
struct Collectors {
    running: Arc<Mutex<BTreeSet<Tenant>>>,
    starts: Arc<AtomicUsize>,
}

impl Spawner for Collectors {
    fn spawn(&mut self, incarnation: Incarnation) -> usize {
        let Incarnation { tenant, epoch, stop, started, ended, .. } = incarnation;
        assert!(self.running.lock().unwrap().insert(tenant.clone()), "{tenant} runs twice");
        self.starts.fetch_add(1, Relaxed);
        let running = Arc::clone(&self.running);
        started.upgrade().unwrap().do_send(CollectorStarted { tenant: tenant.clone(), epoch });
        actix_rt::spawn(async move {
            stop.cancelled().await;
            running.lock().unwrap().remove(&tenant);
            if let Some(ended) = ended.upgrade() {
                ended.do_send(CollectorEnded {
                    tenant,
                    epoch,
                    exit: Exit::Stopped,
                    drained: Drained::default(),
                });
            }
        });
        0
    }
}

/// A worker without Redis and Postgres behind its collectors.
struct Worker {
    collectors: Collectors,
    fleet: Arc<FleetStatus>,
    directory: Arc<Directory>,
    stop: CancellationToken,
    registration: JoinHandle<()>,
    _supervisor: Addr<Supervisor>,
}

impl Worker {
    fn start(name: &str, url: &str, lease: Duration, overdue: Duration) -> Self {
        Self::with(name, url, lease, overdue, false, 1)
    }

    fn with(name: &str, url: &str, lease: Duration, overdue: Duration, ill: bool, replicas: usize) -> Self {
        let (collectors, fleet) = (Collectors::default(), Arc::<FleetStatus>::default());
        let directory = Arc::new(Directory { ill: AtomicBool::new(ill) });
        let listed = CancellationToken::new();
        let supervisor = Supervisor::new(
            Arc::clone(&directory) as Arc<dyn TenantDirectory>,
            None,
            Box::new(collectors.clone()),
            Arc::clone(&fleet),
            Membership::new(0.5, 2),
            SupervisorOptions {
                // With two owners nothing but the share itself must tell who works.
                poll_interval: if replicas == 1 { Duration::from_millis(50) } else { LONG },
                key_form: KeyForm::AsListed,
                limits: Limits {
                    start_concurrency: 64,
                    stop_deadline: SOON,
                    crash_delay_min: SOON,
                    crash_delay_max: SOON,
                },
            },
        )
        .sharing(listed.clone())
        .start();
        let settings = PartitionSettings {
            name: name.into(),
            group: GROUP.to_owned(),
            replicas,
            lease,
            key_form: KeyForm::AsListed,
            overdue,
        };
        let partition = Partition::new(
            settings,
            link(url),
            supervisor.clone().recipient(),
            supervisor.clone().recipient(),
            Arc::clone(&fleet),
        );
        let stop = CancellationToken::new();
        let registration =
            actix_rt::spawn(partition.run(listed, stop.clone(), Progress::unobserved(TaskName::Partition)));
        Self { collectors, fleet, directory, stop, registration, _supervisor: supervisor }
    }

    fn running(&self) -> BTreeSet<Tenant> {
        self.collectors.running.lock().unwrap().clone()
    }

    async fn runs(&self, wanted: &BTreeSet<Tenant>) {
        let look = || async {
            let running = self.running();
            if running == *wanted { Ok(()) } else { Err(format!("{} run: {running:?}", running.len())) }
        };
        eventually(SOON, &format!("{} collectors", wanted.len()), look).await.unwrap();
        eventually(SOON, "the gauge", || async { self.fleet.owned.load(Relaxed) == wanted.len() as u64 })
            .await
            .unwrap();
    }
}

#[actix_rt::test]
async fn workers_see_each_other_and_who_leaves_is_gone_at_once() {
    let server = redis().await;
    let workers = workers(&server);
    let first = workers.register("a", LONG).await.unwrap();
    assert_eq!((first.held, first.live), (false, names(&["a"])));
    assert_eq!(workers.register("b", LONG).await.unwrap().live, names(&["a", "b"]));
    let again = workers.register("a", LONG).await.unwrap();
    assert_eq!((again.held, again.live), (true, names(&["a", "b"])));
    let others = Workers::new(link(&server.url()), "other");
    assert_eq!(others.register("c", LONG).await.unwrap().live, names(&["c"]));
    let left = workers.deregister("b").await.unwrap();
    assert_eq!((left.held, left.live), (true, names(&["a"])));
    // A script that was lost is loaded again, and nothing stays for ever.
    let mut connection = server.connect().await.unwrap();
    redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut connection).await.unwrap();
    assert_eq!(workers.deregister("a").await.unwrap().live, names(&[]));
    others.register("c", Duration::from_millis(300)).await.unwrap();
    let mut gone = connection.clone();
    let keys = async || redis::cmd("DBSIZE").query_async::<usize>(&mut gone.clone()).await.unwrap();
    eventually(SOON, "an empty Redis", || async { keys().await == 0 }).await.unwrap();
    redis::cmd("PING").query_async::<()>(&mut gone).await.unwrap();
}

#[actix_rt::test]
async fn who_stops_renewing_disappears_after_its_lease() {
    let server = redis().await;
    let workers = workers(&server);
    workers.register("a", Duration::from_millis(400)).await.unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(workers.register("b", LONG).await.unwrap().live, names(&["a", "b"]));
    let alone = || async { workers.register("b", LONG).await.unwrap().live == names(&["b"]) };
    eventually(SOON, "the end of the lease", alone).await.unwrap();
    assert!(begun.elapsed() > Duration::from_millis(300), "after {:?}", begun.elapsed());
    assert!(!workers.register("a", LONG).await.unwrap().held, "its lease had lapsed");
}

#[actix_rt::test]
async fn tenants_move_when_workers_come_leave_and_die() {
    let server = redis().await;
    let lease = Duration::from_secs(2);
    let start = |name| Worker::start(name, &server.url(), lease, LONG);
    let a = start("a");
    a.runs(&tenants()).await;
    let (b, c) = (start("b"), start("c"));
    let all = ["a", "b", "c"];
    for (name, worker) in all.iter().zip([&a, &b, &c]) {
        worker.runs(&part(name, &all)).await;
        assert_eq!(worker.fleet.workers.load(Relaxed), 3);
    }
    let shown: BTreeSet<_> = a.fleet.tenants().iter().map(|status| status.tenant().clone()).collect();
    assert_eq!(shown, part("a", &all), "tenants that moved away are not shown as stopping for ever");
    // One that is asked to stop takes itself off the list; one that is killed does not.
    c.stop.cancel();
    c.registration.await.unwrap();
    assert_eq!(workers(&server).register("b", lease).await.unwrap().live, names(&["a", "b"]));
    a.runs(&part("a", &["a", "b"])).await;
    b.runs(&part("b", &["a", "b"])).await;
    b.registration.abort();
    a.runs(&tenants()).await;
}

#[actix_rt::test]
async fn of_two_owners_one_works_and_the_other_is_notified_when_it_comes_first() {
    let server = redis().await;
    let start = |name| Worker::with(name, &server.url(), LONG, LONG, false, 2);
    let (a, b) = (start("a"), start("b"));
    let works = |worker: &Worker| -> BTreeSet<Tenant> {
        let all = worker.fleet.tenants();
        all.iter().filter(|s| !s.standby.load(Relaxed)).map(|s| s.tenant().clone()).collect()
    };
    for (name, worker) in [("a", &a), ("b", &b)] {
        worker.runs(&tenants()).await;
        let own = part(name, &["a", "b"]);
        eventually(SOON, "its own to work", || async { works(worker) == own }).await.unwrap();
    }
    for status in a.fleet.tenants().iter() {
        status.requests.take_flush();
    }
    // The lease has long to go, and each looks again and again all the same.
    let mut connection = server.connect().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*workers*").query_async(&mut connection).await.unwrap();
    let looks = std::cell::RefCell::new(BTreeSet::new());
    eventually(SOON, "ten looks", || async {
        let mut connection = connection.clone();
        let mut ask = redis::cmd("ZSCORE");
        let end = ask.arg(&keys[0]).arg("a").query_async::<String>(&mut connection).await.unwrap();
        looks.borrow_mut().insert(end);
        looks.borrow().len() >= 10
    })
    .await
    .unwrap();
    let left = std::time::Instant::now();
    b.stop.cancel();
    b.registration.await.unwrap();
    eventually(SOON, "all of them to work", || async { works(&a) == tenants() }).await.unwrap();
    assert!(left.elapsed() < LONG / 10, "at the next look: {:?}", left.elapsed());
    let notified = a.fleet.tenants().iter().filter(|status| status.requests.is_pending()).count();
    assert_eq!(notified, part("b", &["a", "b"]).len(), "their collectors are notified, and only those");
    assert_eq!(a.collectors.starts.load(Relaxed), tenants().len(), "none was started anew");
}

#[actix_rt::test]
async fn workers_that_start_together_start_only_what_is_theirs() {
    let server = redis().await;
    let all = ["a", "b", "c", "d"];
    let started: Vec<_> = all.iter().map(|name| Worker::start(name, &server.url(), LONG, LONG)).collect();
    for (name, worker) in all.iter().zip(&started) {
        worker.runs(&part(name, &all)).await;
        assert_eq!(
            worker.collectors.starts.load(Relaxed),
            part(name, &all).len(),
            "{name} started others' too"
        );
    }
}

#[actix_rt::test]
async fn the_last_view_stays_in_force_through_an_outage_of_redis() {
    let server = redis().await;
    let lease = Duration::from_secs(2);
    let (a, b) =
        (Worker::start("a", &server.url(), lease, LONG), Worker::start("b", &server.url(), lease, LONG));
    a.runs(&part("a", &["a", "b"])).await;
    b.runs(&part("b", &["a", "b"])).await;
    let starts = || (a.collectors.starts.load(Relaxed), b.collectors.starts.load(Relaxed));
    let before = starts();
    // It comes back without its data: no worker is registered then, and the first to come back must not think it is alone.
    server.kill().unwrap();
    server.start_again().await.unwrap();
    let mut connection = server.connect().await.unwrap();
    let registered = || {
        let mut connection = connection.clone();
        async move {
            let key = redis::cmd("KEYS")
                .arg("*workers*")
                .query_async::<Vec<String>>(&mut connection)
                .await
                .unwrap();
            let key = key.first()?;
            redis::cmd("ZRANGE")
                .arg(key)
                .arg(0)
                .arg(-1)
                .arg("WITHSCORES")
                .query_async::<Vec<(String, f64)>>(&mut connection)
                .await
                .ok()
        }
    };
    let both = || async { registered().await.filter(|found| found.len() == 2) };
    let back = eventually(SOON, "both registered again", both).await.unwrap();
    // Each has renewed twice since.
    for _ in 0..2 {
        let last = registered().await.unwrap_or_else(|| back.clone());
        let renewed = || async {
            let now = registered().await?;
            last.iter()
                .all(|(name, at)| now.iter().any(|(other, later)| other == name && later > at))
                .then_some(())
        };
        eventually(SOON, "a renewal of both", renewed).await.unwrap();
    }
    assert_eq!(starts(), before, "nothing moved");
    redis::cmd("PING").query_async::<()>(&mut connection).await.unwrap();
}

#[actix_rt::test]
async fn without_any_view_a_worker_looks_after_everything() {
    let closed = format!("redis://127.0.0.1:{}/0", free_port().unwrap());
    let worker = Worker::start("a", &closed, LONG, LONG);
    worker.runs(&tenants()).await;
    assert!(worker.fleet.is_ready());
    assert_eq!(worker.fleet.workers.load(Relaxed), 0);
}

#[actix_rt::test]
async fn a_worker_that_knows_no_tenants_is_not_counted_on() {
    let server = redis().await;
    let worker = Worker::with("a", &server.url(), LONG, LONG, true, 1);
    eventually(SOON, "polls", || async { worker.fleet.poll_failures.load(Relaxed) >= 3 }).await.unwrap();
    assert_eq!(workers(&server).register("b", LONG).await.unwrap().live, names(&["b"]));
    worker.directory.ill.store(false, Relaxed);
    worker.runs(&part("a", &["a", "b"])).await;
}

#[actix_rt::test]
async fn a_tenant_that_its_owners_leave_alone_is_looked_after() {
    let server = redis().await;
    // Alive, as far as anybody can tell, and does nothing.
    workers(&server).register("ghost", LONG).await.unwrap();
    let worker = Worker::start("a", &server.url(), Duration::from_millis(600), Duration::from_secs(1));
    let own = part("a", &["a", "ghost"]);
    worker.runs(&own).await;
    let abandoned = part("ghost", &["a", "ghost"]).into_iter().next().unwrap();
    let schedule = abandoned.key_space(KeyForm::AsListed).schedule().to_owned();
    let mut connection = server.connect().await.unwrap();
    redis::cmd("ZADD").arg(&schedule).arg(1).arg("member").query_async::<()>(&mut connection).await.unwrap();
    let with: BTreeSet<_> = own.iter().cloned().chain([abandoned]).collect();
    worker.runs(&with).await;
    // And left to its owners again when nothing waits.
    redis::cmd("DEL").arg(&schedule).query_async::<()>(&mut connection).await.unwrap();
    worker.runs(&own).await;
}
