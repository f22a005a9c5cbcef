//! Standing by: a second owner claims nothing for as long as another worker does.
//!
//! Two workers that claim from one schedule share its work, and cost its Postgres twice the connections; where many
//! tenants are busy that makes both slower than one. So of a tenant's owners the first works, and the others only look:
//! one task per thread asks for the heads of all schedules that its collectors stand by for, some hundred in one
//! read-only call, and wakes a collector when no worker claims what is due. When that is the case is decided by
//! [`balance_sync_engine::standby`]. The list of workers ([`crate::lifecycle::partition`]) says who is first and who has gone;
//! this is for what no list can say in time.

use std::{rc::Rc, sync::Arc, time::Duration};

use balance_sync_engine::standby::{self, LastHead, Standby, Watch, Woken};
use balance_sync_schedule::{Head, HeadState, Link, ScheduleError, read_heads};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::tasks::{Inbox, Progress, TaskName, Tasks};

/// Times that a collector finds the watch gone before it takes over.
const TRIES: u32 = 3;

/// A collector that stands by for a schedule.
#[derive(Debug)]
struct Sleeper {
    key: Arc<str>,
    until_quiet: bool,
    wake: oneshot::Sender<Woken>,
}

type Entry = Standby<Sleeper, Head>;

/// A handle on a thread's standby watch.
#[derive(Debug, Clone)]
pub struct StandbyWatch {
    inbox: Inbox<Sleeper>,
    idle: Duration,
}

impl StandbyWatch {
    /// Starts it on the current thread, whose number is given. `idle` is the time within which an idle owner looks at its
    /// schedule.
    #[must_use]
    pub fn start(link: Link, idle: Duration, tasks: &Tasks, thread: usize, stop: CancellationToken) -> Self {
        let look = async move |page: &[Entry]| {
            read_heads(&link, page.iter().map(|entry| (&entry.who.key, entry.head()))).await
        };
        Self::start_with(look, idle, tasks, thread, stop)
    }

    fn start_with(
        look: impl AsyncFn(&[Entry]) -> Result<Vec<Option<HeadState>>, ScheduleError> + 'static,
        idle: Duration,
        tasks: &Tasks,
        thread: usize,
        stop: CancellationToken,
    ) -> Self {
        let (inbox, look) = (Inbox::new(), Rc::new(look));
        tasks.keep(TaskName::Standby, Some(thread), standby::round(idle), stop.clone(), {
            let inbox = inbox.clone();
            move |progress| {
                let (look, arrivals, stop) = (Rc::clone(&look), inbox.open(), stop.clone());
                async move {
                    stop.run_until_cancelled(keep_watch(&*look, arrivals, idle, &progress)).await;
                }
            }
        });
        Self { inbox, idle }
    }

    /// Waits until something is due in the schedule that no worker claims, or the watch is gone for good: then this collector
    /// takes over. With `until_quiet` it waits no longer than something is due.
    pub async fn wait(&self, key: Arc<str>, until_quiet: bool) -> Woken {
        for _ in 0..TRIES {
            let (wake, woken) = oneshot::channel();
            if self.inbox.send(Sleeper { key: Arc::clone(&key), until_quiet, wake })
                && let Ok(woken) = woken.await
            {
                return woken;
            }
            // It has panicked, and is about to start again.
            tokio::time::sleep(self.idle).await;
        }
        Woken::Unclaimed
    }
}

/// Looks at the schedules page by page, and wakes those whose time has come.
async fn keep_watch(
    look: &impl AsyncFn(&[Entry]) -> Result<Vec<Option<HeadState>>, ScheduleError>,
    mut arrivals: mpsc::UnboundedReceiver<Sleeper>,
    idle: Duration,
    progress: &Progress,
) {
    let mut watch = Watch::new(idle, now());
    loop {
        progress.beat();
        let next = watch.wake_at();
        tokio::select! {
            biased;
            new = progress.waiting(arrivals.recv()) => match new {
                Some(new) if new.until_quiet => watch.add_until_quiet(new, now()),
                Some(new) => watch.add(new, now()),
                None => return,
            },
            () = tokio::time::sleep_until(next.unwrap_or_else(now).into()), if next.is_some() => {
                let page = watch.page(now(), |sleeper| sleeper.wake.is_closed());
                if page.is_empty() {
                    continue;
                }
                match look(&page).await {
                    Ok(seen) => {
                        let seen = seen.into_iter().map(|seen| seen.map(observation)).collect();
                        for (sleeper, why) in watch.looked(page, seen) {
                            // Its collector may have been stopped meanwhile.
                            let _ = sleeper.wake.send(why);
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "schedules that are stood by for can't be looked at");
                        watch.failed(page);
                    }
                }
            }
        }
    }
}

fn observation(HeadState { head, unclaimed }: HeadState) -> standby::Seen<Head> {
    standby::Seen { head, last: if unclaimed { LastHead::Waits } else { LastHead::Claimed } }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        cell::{Cell, RefCell},
        collections::BTreeMap,
        rc::Rc,
    };

    use balance_sync_schedule::ErrorClass;
    use tokio::task::{JoinHandle, LocalSet};

    use super::*;
    use crate::tasks::{Faults, Moment};

    const IDLE: Duration = Duration::from_secs(1);

    /// Schedules of due members: name and score.
    #[derive(Default)]
    struct Fake {
        due: RefCell<BTreeMap<String, BTreeMap<String, u32>>>,
        down: Cell<bool>,
        asked: RefCell<Vec<usize>>,
    }

    impl Fake {
        fn mutate(&self, key: &str, member: &str, score: u32) {
            self.due.borrow_mut().entry(key.to_owned()).or_default().insert(member.to_owned(), score);
        }

        /// A worker claims the head.
        fn claim(&self, key: &str) {
            let mut due = self.due.borrow_mut();
            let members = due.get_mut(key).unwrap();
            let head = members.iter().min_by_key(|(_, score)| **score).map(|(member, _)| member.clone());
            members.remove(&head.unwrap());
        }

        fn look(&self, page: &[Entry]) -> Result<Vec<Option<HeadState>>, ScheduleError> {
            self.asked.borrow_mut().push(page.len());
            if self.down.get() {
                let message = "down".to_owned();
                return Err(ScheduleError { operation: "look", class: ErrorClass::Unavailable, message });
            }
            let due = self.due.borrow();
            let none = BTreeMap::new();
            Ok(page
                .iter()
                .map(|entry| {
                    let members = due.get(&*entry.who.key).unwrap_or(&none);
                    let (member, score) = members.iter().min_by_key(|(_, score)| **score)?;
                    let head = Head { member: member.clone().into_bytes(), score: score.to_string() };
                    let last = entry.head().map(|last| String::from_utf8_lossy(&last.member));
                    Some(HeadState { head, unclaimed: last.is_some_and(|last| members.contains_key(&*last)) })
                })
                .collect())
        }
    }

    struct Bench {
        fake: Rc<Fake>,
        standby: StandbyWatch,
    }

    impl Bench {
        fn new() -> Self {
            Self::owned_by(&Tasks::default())
        }

        fn owned_by(tasks: &Tasks) -> Self {
            let fake = Rc::<Fake>::default();
            let asked = Rc::clone(&fake);
            let look = async move |page: &[Entry]| asked.look(page);
            Self { fake, standby: StandbyWatch::start_with(look, IDLE, tasks, 0, CancellationToken::new()) }
        }

        fn wait(&self, key: &str) -> JoinHandle<Duration> {
            let (standby, key) = (self.standby.clone(), Arc::from(key));
            tokio::task::spawn_local(async move {
                let begun = Instant::now();
                assert_eq!(standby.wait(key, false).await, Woken::Unclaimed);
                begun.elapsed()
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_panics_once_is_waited_for_and_one_that_is_gone_is_done_without() {
        LocalSet::new()
            .run_until(async {
                let (tasks, faults) = (Tasks::default(), Faults::default());
                tasks.inject(faults.clone());
                let watch = Bench::owned_by(&tasks);
                let wait = watch.wait("k");
                tokio::time::sleep(10 * IDLE).await;
                faults.panic(TaskName::Standby, Moment::Beat, 1);
                watch.fake.mutate("another", "a", 1);
                tokio::time::sleep(20 * IDLE).await;
                assert_eq!(tasks.panics(TaskName::Standby), 1);
                assert!(!wait.is_finished(), "nothing is due, and it is looked at again");
                watch.fake.mutate("k", "a", 1);
                wait.await.unwrap();

                faults.panic(TaskName::Standby, Moment::Beat, u64::MAX);
                faults.panic(TaskName::Standby, Moment::Start, u64::MAX);
                let took = watch.wait("quiet").await.unwrap();
                assert!(took >= 2 * IDLE && took <= 20 * IDLE, "{took:?}");
            })
            .await;
    }

    async fn local(test: impl AsyncFnOnce(Bench)) {
        LocalSet::new().run_until(async { test(Bench::new()).await }).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_by_is_woken_when_the_same_head_stays_for_as_long_as_an_idle_owner_sleeps() {
        local(async |watch| {
            let wait = watch.wait("k");
            tokio::time::sleep(10 * IDLE).await;
            assert!(!wait.is_finished(), "nothing is due");
            let due_at = Instant::now();
            watch.fake.mutate("k", "a", 1);
            wait.await.unwrap();
            let took = due_at.elapsed();
            assert!(IDLE <= took && took <= IDLE * 3 / 2 + Duration::from_millis(5), "{took:?}");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn no_standby_is_woken_while_the_head_is_claimed_again_and_again() {
        local(async |watch| {
            let wait = watch.wait("k");
            for n in 0..200 {
                watch.fake.mutate("k", &format!("member-{n}"), n);
            }
            for _ in 0..100 {
                tokio::time::sleep(IDLE * 3 / 4).await;
                watch.fake.claim("k");
            }
            assert!(!wait.is_finished(), "a long backlog, and a worker works it");
            watch.fake.due.borrow_mut().clear();
            tokio::time::sleep(3 * IDLE).await;
            assert!(!wait.is_finished());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_only_mutations_move_is_noticed_after_a_while() {
        local(async |watch| {
            let wait = watch.wait("k");
            for n in 0..95 {
                watch.fake.mutate("k", "hot", n);
                tokio::time::sleep(IDLE / 10).await;
            }
            assert!(!wait.is_finished(), "a claim may have been missed by the looks so far");
            let wake = async {
                for n in 95..300 {
                    watch.fake.mutate("k", "hot", n);
                    tokio::time::sleep(IDLE / 10).await;
                }
            };
            let took =
                tokio::select! { took = wait => took.unwrap(), () = wake => panic!("it is never noticed") };
            assert!(took <= 11 * IDLE, "{took:?}");

            // The same, claimed now and then.
            let wait = watch.wait("k");
            for n in 0..400 {
                watch.fake.mutate("k", "hot", n);
                tokio::time::sleep(IDLE / 10).await;
                if n % 70 > 60 {
                    watch.fake.claim("k");
                    tokio::time::sleep(IDLE / 10).await;
                }
            }
            assert!(!wait.is_finished());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn with_redis_away_no_standby_is_woken_and_what_was_seen_before_is_forgotten() {
        local(async |watch| {
            let wait = watch.wait("k");
            watch.fake.mutate("k", "a", 1);
            tokio::time::sleep(IDLE * 3 / 4).await;
            watch.fake.down.set(true);
            tokio::time::sleep(20 * IDLE).await;
            assert!(!wait.is_finished());
            watch.fake.down.set(false);
            let back = Instant::now();
            wait.await.unwrap();
            assert!(back.elapsed() >= IDLE, "its owner is given its time: {:?}", back.elapsed());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn many_are_looked_at_twice_in_that_time_in_few_calls_and_who_left_is_forgotten() {
        local(async |watch| {
            let waits: Vec<_> = (0..1000).map(|n| watch.wait(&format!("k{n}"))).collect();
            tokio::time::sleep(10 * IDLE).await;
            let asked = watch.fake.asked.take();
            let looks: usize = asked.iter().sum();
            assert!((19_000..=21_500).contains(&looks), "{looks} looks at a thousand in ten times");
            assert!(asked.len() <= 90, "{} calls", asked.len());
            for (n, wait) in waits.iter().enumerate() {
                if n != 500 {
                    wait.abort();
                }
            }
            tokio::time::sleep(2 * IDLE).await;
            watch.fake.asked.take();
            tokio::time::sleep(10 * IDLE).await;
            let asked = watch.fake.asked.take();
            assert!(asked.iter().all(|posts| *posts == 1) && (19..=21).contains(&asked.len()), "{asked:?}");
            watch.fake.mutate("k500", "a", 1);
            assert!(waits.into_iter().nth(500).unwrap().await.is_ok());
        })
        .await;
    }
}
