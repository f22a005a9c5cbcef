//! Standing by: a second owner claims nothing for as long as somebody else does.
//!
//! Two workers that claim from one schedule share its work, and cost its Postgres twice the connections; where many
//! tenants are busy that makes both slower than one. So of a tenant's owners the first works, and the others only look:
//! one task per thread asks for the heads of all schedules that its collectors stand by for, some hundred in one
//! read-only call, and wakes a collector when what is due is claimed by nobody. The list of workers
//! ([`crate::lifecycle::partition`]) tells who is first and who has gone; this is for what no list can tell in time.
//!
//! What is at the head counts as unclaimed when it has stood there, unchanged, for as long as an idle owner may take to
//! look. A balance that is mutated all the time never stands still: its time is that of the last mutation. There the member
//! seen last decides. It must have been claimed at some look, held or gone; where it never was, for many looks, nobody
//! works. Whoever is woken in error finds nothing to claim, or shares the work for a while: claims keep that correct.

use std::{collections::VecDeque, rc::Rc, sync::Arc, time::Duration};

use balance_sync_schedule::{Head, HeadState, Link, ScheduleError, read_heads};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::tasks::{Inbox, Progress, TaskName, Tasks};

/// Looks at a schedule in the time within which an idle owner looks at it (`collector.idle_backoff_max`).
const LOOKS: u32 = 2;
/// So many looks in a row at the same head, and nobody works the schedule: the first, and those of one such time.
const STILL: u32 = 1 + LOOKS;
/// So many looks in a row between which nothing was claimed, although something was due: ten such times.
const UNCLAIMED: u32 = 1 + 10 * LOOKS;
/// Schedules in one call: some 200 µs of Redis, so that nobody waits long behind it.
const PAGE: usize = 250;
/// Times that a collector finds the lookout gone before it works itself.
const TRIES: u32 = 3;

/// A schedule that a collector stands by for.
#[derive(Debug)]
struct Post {
    key: Arc<str>,
    wake: oneshot::Sender<()>,
    /// What was at its head at the last look, if anything was due.
    head: Option<Head>,
    /// Looks in a row that found this head.
    still: u32,
    /// Looks in a row that found something due, and nothing claimed since the one before.
    unclaimed: u32,
}

impl Post {
    fn new(key: Arc<str>, wake: oneshot::Sender<()>) -> Self {
        Self { key, wake, head: None, still: 0, unclaimed: 0 }
    }

    /// Takes a look in; gives whether nobody seems to work the schedule.
    fn take(&mut self, seen: Option<HeadState>) -> bool {
        let Some(HeadState { head, unclaimed }) = seen else {
            self.forget();
            return false;
        };
        let last = self.head.replace(head);
        self.still = if last == self.head { self.still + 1 } else { 1 };
        self.unclaimed = if last.is_none() || unclaimed { self.unclaimed + 1 } else { 1 };
        self.still >= STILL || self.unclaimed >= UNCLAIMED
    }

    fn forget(&mut self) {
        self.head = None;
        self.still = 0;
        self.unclaimed = 0;
    }
}

/// A handle on a thread's lookout.
#[derive(Debug, Clone)]
pub struct Lookout {
    inbox: Inbox<Post>,
    idle: Duration,
}

impl Lookout {
    /// Starts it on the current thread, whose number is given. `idle` is the time within which an idle owner looks at its
    /// schedule.
    #[must_use]
    pub fn start(link: Link, idle: Duration, tasks: &Tasks, thread: usize, stop: CancellationToken) -> Self {
        let look = async move |posts: &[Post]| {
            read_heads(&link, posts.iter().map(|post| (&post.key, post.head.as_ref()))).await
        };
        Self::start_with(look, idle, tasks, thread, stop)
    }

    fn start_with(
        look: impl AsyncFn(&[Post]) -> Result<Vec<Option<HeadState>>, ScheduleError> + 'static,
        idle: Duration,
        tasks: &Tasks,
        thread: usize,
        stop: CancellationToken,
    ) -> Self {
        let (inbox, look) = (Inbox::new(), Rc::new(look));
        let round = (idle / LOOKS).max(Duration::from_millis(1));
        tasks.keep(TaskName::Standby, Some(thread), round, stop.clone(), {
            let inbox = inbox.clone();
            move |progress| {
                let (look, arrivals, stop) = (Rc::clone(&look), inbox.open(), stop.clone());
                async move {
                    stop.run_until_cancelled(keep_watch(&*look, arrivals, round, &progress)).await;
                }
            }
        });
        Self { inbox, idle }
    }

    /// Waits until something is due in the schedule that nobody claims, or the lookout is gone for good: then this
    /// collector takes over.
    pub async fn wait(&self, key: Arc<str>) {
        for _ in 0..TRIES {
            let (wake, woken) = oneshot::channel();
            if self.inbox.send(Post::new(Arc::clone(&key), wake)) && woken.await.is_ok() {
                return;
            }
            // It has panicked, and is about to start again.
            tokio::time::sleep(self.idle).await;
        }
    }
}

/// Looks at each post once in `round`, a page at a time.
async fn keep_watch(
    look: &impl AsyncFn(&[Post]) -> Result<Vec<Option<HeadState>>, ScheduleError>,
    mut arrivals: mpsc::UnboundedReceiver<Post>,
    round: Duration,
    progress: &Progress,
) {
    let mut posts = VecDeque::new();
    let mut next = Instant::now();
    loop {
        progress.beat();
        tokio::select! {
            biased;
            new = progress.waiting(arrivals.recv()) => match new {
                Some(new) => {
                    if posts.is_empty() {
                        next = next.max(Instant::now());
                    }
                    posts.push_back(new);
                }
                None => return,
            },
            () = tokio::time::sleep_until(next), if !posts.is_empty() => {
                let all = posts.len();
                let mut page: Vec<Post> = posts.drain(..PAGE.min(all)).collect();
                next = Instant::now() + round.mul_f64(page.len() as f64 / all as f64);
                page.retain(|post| !post.wake.is_closed());
                match look(&page).await {
                    Ok(seen) => {
                        for (mut post, seen) in page.into_iter().zip(seen) {
                            if post.take(seen) {
                                // Whoever stood by may have been stopped meanwhile.
                                let _ = post.wake.send(());
                            } else {
                                posts.push_back(post);
                            }
                        }
                    }
                    Err(error) => {
                        // Nobody can claim now, and that will have been so for a while when it is over.
                        tracing::debug!(%error, "schedules that are stood by for can't be looked at");
                        page.iter_mut().for_each(Post::forget);
                        posts.extend(page);
                    }
                }
            }
        }
    }
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

        /// Somebody claims the head.
        fn claim(&self, key: &str) {
            let mut due = self.due.borrow_mut();
            let members = due.get_mut(key).unwrap();
            let head = members.iter().min_by_key(|(_, score)| **score).map(|(member, _)| member.clone());
            members.remove(&head.unwrap());
        }

        fn look(&self, posts: &[Post]) -> Result<Vec<Option<HeadState>>, ScheduleError> {
            self.asked.borrow_mut().push(posts.len());
            if self.down.get() {
                let message = "down".to_owned();
                return Err(ScheduleError { operation: "look", class: ErrorClass::Unavailable, message });
            }
            let due = self.due.borrow();
            let none = BTreeMap::new();
            Ok(posts
                .iter()
                .map(|post| {
                    let members = due.get(&*post.key).unwrap_or(&none);
                    let (member, score) = members.iter().min_by_key(|(_, score)| **score)?;
                    let head = Head { member: member.clone().into_bytes(), score: score.to_string() };
                    let last = post.head.as_ref().map(|last| String::from_utf8_lossy(&last.member));
                    Some(HeadState { head, unclaimed: last.is_some_and(|last| members.contains_key(&*last)) })
                })
                .collect())
        }
    }

    struct Watch {
        fake: Rc<Fake>,
        lookout: Lookout,
    }

    impl Watch {
        fn new() -> Self {
            Self::owned_by(&Tasks::default())
        }

        fn owned_by(tasks: &Tasks) -> Self {
            let fake = Rc::<Fake>::default();
            let asked = Rc::clone(&fake);
            let look = async move |posts: &[Post]| asked.look(posts);
            Self { fake, lookout: Lookout::start_with(look, IDLE, tasks, 0, CancellationToken::new()) }
        }

        fn wait(&self, key: &str) -> JoinHandle<Duration> {
            let (lookout, key) = (self.lookout.clone(), Arc::from(key));
            tokio::task::spawn_local(async move {
                let begun = Instant::now();
                lookout.wait(key).await;
                begun.elapsed()
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookout_that_panics_once_is_waited_for_and_one_that_is_gone_is_done_without() {
        LocalSet::new()
            .run_until(async {
                let (tasks, faults) = (Tasks::default(), Faults::default());
                tasks.inject(faults.clone());
                let watch = Watch::owned_by(&tasks);
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

    async fn local(test: impl AsyncFnOnce(Watch)) {
        LocalSet::new().run_until(async { test(Watch::new()).await }).await;
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
    async fn nobody_is_woken_while_the_head_is_claimed_again_and_again() {
        local(async |watch| {
            let wait = watch.wait("k");
            for n in 0..200 {
                watch.fake.mutate("k", &format!("member-{n}"), n);
            }
            for _ in 0..100 {
                tokio::time::sleep(IDLE * 3 / 4).await;
                watch.fake.claim("k");
            }
            assert!(!wait.is_finished(), "a long backlog, and somebody works it");
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
    async fn with_redis_away_nobody_is_woken_and_what_was_seen_before_is_forgotten() {
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
