#![allow(clippy::unwrap_used)]
use std::{
    cell::RefCell,
    collections::{BTreeSet, VecDeque},
};

use tokio::{sync::Notify, task::LocalSet};

use super::*;
use crate::{
    status::{CALM_FOR, FleetStatus, TenantState},
    tasks::{Faults, Moment},
};

const INTERVAL: Duration = Duration::from_secs(1);

/// A Redis that announces changes, more or less.
#[derive(Default)]
struct Redis {
    filled: RefCell<BTreeSet<String>>,
    tracked: RefCell<BTreeSet<String>>,
    changes: RefCell<VecDeque<Option<Change>>>,
    arrived: Notify,
    looks: Cell<usize>,
    opened: Cell<usize>,
    refuses: Cell<Option<ErrorClass>>,
    is_silent: Cell<bool>,
}

impl Redis {
    fn write(&self, key: &str) {
        self.filled.borrow_mut().insert(key.to_owned());
        if self.tracked.borrow_mut().remove(key) && !self.is_silent.get() {
            self.push(Some(Change::Of(key.as_bytes().to_vec())));
        }
    }

    /// `None` closes the connection.
    fn push(&self, change: Option<Change>) {
        self.changes.borrow_mut().push_back(change);
        self.arrived.notify_one();
    }

    fn error(class: ErrorClass) -> ScheduleError {
        ScheduleError { operation: "track changes", class, message: "as the test wants it".to_owned() }
    }
}

struct Connection(Rc<Redis>);

impl Source for Connection {
    async fn are_empty(&mut self, keys: &[Arc<str>]) -> Result<Vec<Option<bool>>, ScheduleError> {
        self.0.looks.set(self.0.looks.get() + keys.len());
        self.0.tracked.borrow_mut().extend(keys.iter().map(|key| key.to_string()));
        let filled = self.0.filled.borrow();
        Ok(keys.iter().map(|key| (!key.starts_with('!')).then(|| !filled.contains(&**key))).collect())
    }

    async fn next(&mut self) -> Result<Change, ScheduleError> {
        loop {
            if let Some(change) = self.0.changes.borrow_mut().pop_front() {
                return change.ok_or_else(|| Redis::error(ErrorClass::Unavailable));
            }
            self.0.arrived.notified().await;
        }
    }

    fn ready(&mut self) -> Result<Option<Change>, ScheduleError> {
        match self.0.changes.borrow_mut().pop_front() {
            Some(change) => change.map(Some).ok_or_else(|| Redis::error(ErrorClass::Unavailable)),
            None => Ok(None),
        }
    }

    async fn ping(&mut self) -> Result<(), ScheduleError> {
        match self.0.refuses.get() {
            Some(class) => Err(Redis::error(class)),
            None => Ok(()),
        }
    }
}

struct Bench {
    redis: Rc<Redis>,
    tracker: Tracker,
    status: Arc<TrackingStatus>,
    tasks: Tasks,
    faults: Faults,
}

fn status() -> Arc<TenantStatus> {
    Arc::new(TenantStatus::new(balance_sync_tenants::Tenant::Single))
}

impl Bench {
    async fn start() -> Self {
        let (redis, status, tasks) = (Rc::<Redis>::default(), Arc::default(), Tasks::default());
        let (server, faults) = (Rc::clone(&redis), Faults::default());
        tasks.inject(faults.clone());
        let open = async move || {
            server.opened.set(server.opened.get() + 1);
            server.changes.borrow_mut().clear();
            server.tracked.borrow_mut().clear();
            match server.refuses.get() {
                Some(class) => Err(Redis::error(class)),
                None => Ok(Connection(Rc::clone(&server))),
            }
        };
        let stop = CancellationToken::new();
        let tracker = Tracker::start_with(open, INTERVAL, Arc::clone(&status), &tasks, 0, stop);
        tracker.is_back().await;
        Self { redis, tracker, status, tasks, faults }
    }

    fn wait(&self, keys: &[&str]) -> tokio::task::JoinHandle<Quiet> {
        self.wait_as(&status(), 0, keys)
    }

    fn wait_as(
        &self,
        status: &Arc<TenantStatus>,
        first: usize,
        keys: &[&str],
    ) -> tokio::task::JoinHandle<Quiet> {
        let status = Arc::clone(status);
        let keys: Keys = keys.iter().map(|key| Arc::from(*key)).collect();
        let tracker = self.tracker.clone();
        // No test waits that long; time passes at once.
        let patience = Duration::from_secs(3600);
        tokio::task::spawn_local(async move {
            tokio::time::timeout(patience, tracker.wait(&keys, first, &status))
                .await
                .expect("it is never answered")
        })
    }

    async fn settles(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn local(test: impl AsyncFnOnce(Bench)) {
    LocalSet::new().run_until(async { test(Bench::start().await).await }).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_by_the_announcement_and_redis_is_asked_no_more() {
    local(async |bench| {
        let waits: Vec<_> = (0..1000).map(|n| bench.wait(&[&format!("a{n}"), &format!("b{n}")])).collect();
        bench.settles().await;
        assert_eq!((bench.redis.looks.get(), bench.status.schedules()), (2000, 2000));
        tokio::time::sleep(SWEEP_EVERY / 2).await;
        assert_eq!(bench.redis.looks.get(), 2000, "no task asks");
        bench.redis.write("b500");
        bench.settles().await;
        assert_eq!(waits.iter().filter(|wait| wait.is_finished()).count(), 1);
        assert_eq!(waits.into_iter().nth(500).unwrap().await.unwrap(), Quiet::Written(1));
        assert_eq!((bench.redis.looks.get(), bench.status.schedules()), (2001, 1998));
        assert_eq!(bench.status.wakes(), 1);

        bench.redis.write("full");
        assert_eq!(bench.wait(&["empty", "full"]).await.unwrap(), Quiet::NotEmpty);
        assert_eq!(bench.wait(&["!refused"]).await.unwrap(), Quiet::NotEmpty);
        tokio::time::sleep(10 * SWEEP_EVERY).await;
        let looks = bench.redis.looks.get() - 2004;
        assert!((9 * 1998..=11 * 1998).contains(&looks), "{looks} looks in ten sweeps");
        assert_eq!(bench.redis.opened.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_change_in_silence_is_found_and_redis_is_not_relied_on_for_a_while() {
    local(async |bench| {
        let (one, two) = (bench.wait(&["one"]), bench.wait(&["two"]));
        bench.settles().await;
        bench.redis.is_silent.set(true);
        bench.redis.write("one");
        let begun = Instant::now();
        assert_eq!(one.await.unwrap(), Quiet::Written(0));
        assert!(begun.elapsed() <= SWEEP_EVERY + PAGE_EVERY, "{:?}", begun.elapsed());
        assert_eq!(two.await.unwrap(), Quiet::Untracked);
        assert!(!*bench.tracker.tracks.borrow());
        assert_eq!((bench.status.threads(), bench.status.schedules()), (0, 0));
        assert_eq!(bench.wait(&["three"]).await.unwrap(), Quiet::Untracked);
        let begun = Instant::now();
        bench.tracker.is_back().await;
        assert!(begun.elapsed() >= RETRY_REFUSED_AFTER - SWEEP_EVERY, "{:?}", begun.elapsed());
        assert_eq!((bench.redis.opened.get(), bench.status.threads()), (2, 1));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_announced_during_a_sweep_is_none_in_silence() {
    local(async |bench| {
        for n in 0..20 {
            let wait = bench.wait(&["one"]);
            bench.settles().await;
            // At the very moment of the sweep.
            tokio::time::sleep(SWEEP_EVERY - Duration::from_millis(1)).await;
            bench.redis.write("one");
            assert_eq!(wait.await.unwrap(), Quiet::Written(0), "{n}");
            bench.redis.filled.borrow_mut().clear();
        }
        assert_eq!(bench.redis.opened.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn changes_that_are_none_wake_nobody_and_too_many_end_it() {
    local(async |bench| {
        let keys: Vec<String> = (0..200).map(|n| format!("k{n}")).collect();
        let waits: Vec<_> = keys.iter().map(|key| bench.wait(&[key])).collect();
        bench.settles().await;
        let all = || keys.iter().for_each(|key| bench.redis.push(Some(Change::Of(key.as_bytes().to_vec()))));
        for _ in 0..20 {
            all();
            tokio::time::sleep(FALSE_WITHIN).await;
        }
        assert!(waits.iter().all(|wait| !wait.is_finished()), "a few are no reason");
        let burst = || (0..=MOST_FALSE / 200).for_each(|_| all());
        burst();
        tokio::time::sleep(2 * FALSE_WITHIN).await;
        assert!(waits.iter().all(|wait| !wait.is_finished()), "nor are many for a moment");
        for _ in 0..FALSE_SECONDS {
            burst();
            tokio::time::sleep(FALSE_WITHIN).await;
        }
        for wait in waits {
            assert_eq!(wait.await.unwrap(), Quiet::Untracked);
        }
        assert!(!*bench.tracker.tracks.borrow());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn all_are_told_when_the_connection_breaks_and_it_is_opened_again() {
    local(async |bench| {
        let wait = bench.wait(&["one"]);
        bench.settles().await;
        bench.redis.push(None);
        assert_eq!(wait.await.unwrap(), Quiet::Untracked);
        bench.tracker.is_back().await;
        // One that answers no more.
        let wait = bench.wait(&["one"]);
        bench.settles().await;
        bench.redis.refuses.set(Some(ErrorClass::Unavailable));
        let begun = Instant::now();
        assert_eq!(wait.await.unwrap(), Quiet::Untracked);
        assert!(begun.elapsed() <= INTERVAL, "{:?}", begun.elapsed());
        let opened = bench.redis.opened.get();
        tokio::time::sleep(Duration::from_secs(120)).await;
        let tries = bench.redis.opened.get() - opened;
        assert!((6..=9).contains(&tries), "{tries} attempts in two minutes");
        bench.redis.refuses.set(None);
        bench.tracker.is_back().await;
        let wait = bench.wait(&["one"]);
        bench.settles().await;
        bench.redis.write("one");
        assert_eq!(wait.await.unwrap(), Quiet::Written(0));

        // Emptied and filled at once: no single key is named.
        let wait = bench.wait(&["two"]);
        bench.settles().await;
        bench.redis.filled.borrow_mut().insert("two".to_owned());
        bench.redis.push(Some(Change::OfAll));
        let begun = Instant::now();
        assert_eq!(wait.await.unwrap(), Quiet::Written(0));
        assert!(begun.elapsed() < INTERVAL, "it is looked at before the next sweep: {:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn where_it_is_refused_it_is_seldom_tried_again() {
    local(async |bench| {
        bench.redis.refuses.set(Some(ErrorClass::Permission));
        assert_eq!(bench.wait(&["one"]).await.unwrap(), Quiet::Untracked);
        let opened = bench.redis.opened.get();
        tokio::time::sleep(RETRY_REFUSED_AFTER * 3).await;
        assert!(bench.redis.opened.get() - opened <= 3);
        let task = bench.tasks.reports().into_iter().find(|task| task.name == TaskName::Tracker);
        assert!(task.is_some_and(|task| task.running && !task.is_stalled()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_panics_leaves_no_waiter_and_one_that_is_off_tracks_nothing() {
    local(async |bench| {
        let wait = bench.wait(&["one"]);
        bench.settles().await;
        bench.faults.panic(TaskName::Tracker, Moment::Beat, 1);
        assert_eq!(wait.await.unwrap(), Quiet::Untracked);
        assert_eq!(bench.status.schedules(), 0);
        bench.tracker.is_back().await;
        let wait = bench.wait(&["one"]);
        bench.settles().await;
        bench.redis.write("one");
        assert_eq!(wait.await.unwrap(), Quiet::Written(0));

        let off = Tracker::off();
        assert!(!*off.tracks.borrow());
        assert_eq!(off.wait(&[Arc::from("one")].into(), 0, &status()).await, Quiet::Untracked);
        assert!(tokio::time::timeout(RETRY_REFUSED_AFTER, off.is_back()).await.is_err());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_left_is_forgotten_and_a_newer_one_takes_the_place_of_the_former() {
    local(async |bench| {
        let former = bench.wait(&["one"]);
        bench.settles().await;
        let newer = bench.wait(&["one"]);
        assert_eq!(former.await.unwrap(), Quiet::NotEmpty);
        let gone = bench.wait(&["gone"]);
        bench.settles().await;
        gone.abort();
        assert_eq!(bench.status.schedules(), 2);
        tokio::time::sleep(SWEEP_EVERY * 2).await;
        assert_eq!(bench.status.schedules(), 1);
        bench.redis.write("one");
        assert_eq!(newer.await.unwrap(), Quiet::Written(0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_tenant_is_quiet_only_while_all_its_schedules_are_empty_and_announced() {
    local(async |bench| {
        let fleet = FleetStatus::default();
        let tenant = fleet.tenant(&balance_sync_tenants::Tenant::Single);
        let rests = || {
            tenant.enter(TenantState::Idle);
            tenant.show_entries(Some((0, 0)));
            tenant.show_watched(true);
            async {
                for _ in 0..2 {
                    fleet.rest.settle();
                    tokio::time::sleep(CALM_FOR).await;
                }
                fleet.rest.settle();
                tenant.is_at_rest()
            }
        };
        tenant.quiet.of(2);
        let wait = bench.wait_as(&tenant, 0, &["a", "b"]);
        assert!(!tenant.quiet.is_quiet(), "they have not been looked at");
        bench.settles().await;
        assert!(tenant.quiet.is_quiet());
        assert!(rests().await, "a sweep that finds nothing doesn't rouse it");
        // Another worker was faster.
        bench.redis.push(Some(Change::Of(b"b".to_vec())));
        bench.settles().await;
        assert!(tenant.quiet.is_quiet() && !tenant.is_at_rest());
        assert!(rests().await);
        bench.redis.write("b");
        wait.await.unwrap();
        assert!(!tenant.quiet.is_quiet() && !tenant.is_at_rest());

        // One of a standby's schedules is not empty.
        let _a = bench.wait_as(&tenant, 0, &["a"]);
        assert_eq!(bench.wait_as(&tenant, 1, &["b"]).await.unwrap(), Quiet::NotEmpty);
        assert!(!tenant.quiet.is_quiet());
        bench.redis.filled.borrow_mut().clear();
        let _b = bench.wait_as(&tenant, 1, &["b"]);
        bench.settles().await;
        assert!(tenant.quiet.is_quiet());
        assert!(rests().await);

        // Nothing is announced any more.
        bench.redis.push(None);
        bench.settles().await;
        assert!(!tenant.quiet.is_quiet() && !tenant.is_at_rest());
        bench.tracker.is_back().await;
        let again = bench.wait_as(&tenant, 0, &["a", "b"]);
        bench.settles().await;
        assert!(rests().await);
        bench.faults.panic(TaskName::Tracker, Moment::Beat, 1);
        bench.redis.push(Some(Change::Of(b"other".to_vec())));
        again.await.unwrap();
        assert!(!tenant.quiet.is_quiet() && !tenant.is_at_rest());
    })
    .await;
}
