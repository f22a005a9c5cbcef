//! One probe for many idle tenants.
//!
//! A claim for nothing costs Redis and the worker some twenty microseconds; ten thousand idle tenants asking once a
//! second would keep both busy. Collectors that have been idle for a while wait here instead: one task per thread asks
//! for all of them with one read-only script call per few hundred schedules, and wakes those with a due member.
//!
//! A schedule is looked at the less often the longer it has been idle: each pause is an eighth longer than the one
//! before, so that a mutation waits for about an eighth of the time since the one before it, and for the interval at most.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use balance_sync_schedule::{Link, ScheduleError, probe::probe};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::tasks::{Inbox, Progress, TaskName, Tasks};

/// Schedules in one call: some 100 µs of Redis, so that no other call waits long behind it.
const PAGE: usize = 250;
/// Each pause between two looks at a schedule is longer than the one before by this part of it. Looks are brought forward
/// by at most the same part, to share a call.
const PART: u32 = 8;

/// The schedules of one tenant: at least one; the first stands for it.
type Keys = Arc<[Arc<str>]>;

/// A waiter learns which of its schedules has a due member.
type Wake = oneshot::Sender<usize>;

#[derive(Debug)]
struct Waiting {
    keys: Keys,
    /// Until the first look.
    pause: Duration,
    wake: Wake,
}

/// When a tenant's schedules are looked at next, and how long the pause before that is.
type Turn = Reverse<(Instant, Duration, Keys)>;

/// What one call asks for.
#[derive(Default)]
struct Page {
    schedules: Vec<Arc<str>>,
    /// Whose they are, in the same order, each with the pause before this look.
    tenants: Vec<(Keys, Duration)>,
}

/// A handle on a thread's probe.
#[derive(Debug, Clone)]
pub struct Prober(Inbox<Waiting>);

impl Prober {
    /// Starts the probe on the current thread, whose number is given; each waiting schedule is looked at once per
    /// `interval` at the least.
    #[must_use]
    pub fn start(
        link: Link,
        interval: Duration,
        tasks: &Tasks,
        thread: usize,
        stop: CancellationToken,
    ) -> Self {
        let probe = async move |page: &[Arc<str>]| probe(&link, page).await;
        Self::start_with(probe, interval, tasks, thread, stop)
    }

    fn start_with(
        probe: impl AsyncFn(&[Arc<str>]) -> Result<Vec<usize>, ScheduleError> + 'static,
        interval: Duration,
        tasks: &Tasks,
        thread: usize,
        stop: CancellationToken,
    ) -> Self {
        let (inbox, probe) = (Inbox::new(), Rc::new(probe));
        tasks.keep(TaskName::Prober, Some(thread), interval, stop.clone(), {
            let inbox = inbox.clone();
            move |progress| {
                let (probe, arrivals, stop) = (Rc::clone(&probe), inbox.open(), stop.clone());
                async move {
                    let rounds = Round::new(interval).run(&*probe, arrivals, &progress);
                    stop.run_until_cancelled(rounds).await;
                }
            }
        });
        Self(inbox)
    }

    /// Waits until one of a tenant's schedules has a due member, and returns which; the first look comes after this pause. Also
    /// ends when Redis can't be asked: the claim that follows then says what is wrong. While there is no probe it ends after
    /// the pause.
    pub async fn wait(&self, keys: &Arc<[Arc<str>]>, pause: Duration) -> usize {
        let (wake, woken) = oneshot::channel();
        if self.0.send(Waiting { keys: Arc::clone(keys), pause, wake }) {
            // An error means that the probe has panicked: claiming is the answer to that as well.
            woken.await.unwrap_or_default()
        } else {
            tokio::time::sleep(pause).await;
            0
        }
    }
}

/// Who waits, and when each is looked at.
struct Round {
    interval: Duration,
    begun: Instant,
    /// By the tenant's first schedule. More than one waits for the same only for a moment, when a collector was replaced.
    waiting: HashMap<Arc<str>, Vec<Wake>>,
    /// Each waiting tenant once, the next first.
    turns: BinaryHeap<Turn>,
}

impl Round {
    fn new(interval: Duration) -> Self {
        Self { interval, begun: Instant::now(), waiting: HashMap::new(), turns: BinaryHeap::new() }
    }

    async fn run(
        mut self,
        probe: &impl AsyncFn(&[Arc<str>]) -> Result<Vec<usize>, ScheduleError>,
        mut arrivals: mpsc::UnboundedReceiver<Waiting>,
        progress: &Progress,
    ) {
        loop {
            progress.beat();
            let next = self.turns.peek().map_or_else(Instant::now, |Reverse((at, ..))| *at);
            tokio::select! {
                biased;
                new = progress.waiting(arrivals.recv()) => match new {
                    Some(new) => self.enter(new),
                    None => return,
                },
                () = tokio::time::sleep_until(next), if !self.turns.is_empty() => {
                    let page = self.page();
                    if page.schedules.is_empty() {
                        continue;
                    }
                    match probe(&page.schedules).await {
                        Ok(due) => self.looked_at(&page, &due),
                        Err(error) => {
                            tracing::debug!(%error, "probe failed");
                            page.tenants.iter().for_each(|(keys, _)| self.wake(keys, 0));
                        }
                    }
                }
            }
        }
    }

    /// It has just looked by itself, so the first look is a pause away.
    fn enter(&mut self, Waiting { keys, pause, wake }: Waiting) {
        let Some(first) = keys.first() else { return };
        // Of the exact size: there is one for each of thousands of tenants.
        let waiting = self.waiting.entry(Arc::clone(first)).or_insert_with(|| Vec::with_capacity(1));
        waiting.push(wake);
        if waiting.len() == 1 {
            self.look_after(pause, keys);
        }
    }

    /// Looks come at whole parts of their pause, so that tenants with equal pauses meet in one call.
    fn look_after(&mut self, pause: Duration, keys: Keys) {
        let pause = pause.clamp(Duration::from_millis(1), self.interval.max(Duration::from_millis(1)));
        let (at, part) = (self.begun.elapsed() + pause, pause / PART);
        let early = at.as_nanos() % part.as_nanos();
        let at = at.saturating_sub(Duration::from_nanos(u64::try_from(early).unwrap_or(0)));
        self.turns.push(Reverse((self.begun + at, pause, keys)));
    }

    /// Takes the tenants whose turn it is, without those whose waiters have given up.
    fn page(&mut self) -> Page {
        let now = Instant::now();
        let mut page = Page::default();
        while page.schedules.len() < PAGE
            && self.turns.peek().is_some_and(|Reverse((at, ..))| *at <= now)
            && let Some(Reverse((_, pause, keys))) = self.turns.pop()
        {
            let Some(waiting) = self.waiting.get_mut(&keys[0]) else { continue };
            waiting.retain(|wake| !wake.is_closed());
            if waiting.is_empty() {
                self.waiting.remove(&keys[0]);
            } else {
                page.schedules.extend(keys.iter().cloned());
                page.tenants.push((keys, pause));
            }
        }
        page
    }

    fn looked_at(&mut self, page: &Page, due: &[usize]) {
        let mut begin = 0;
        for (keys, pause) in &page.tenants {
            let own = begin..begin + keys.len();
            match due.iter().find(|at| own.contains(*at)) {
                Some(at) => self.wake(keys, at - begin),
                None => self.look_after(*pause + *pause / PART, Arc::clone(keys)),
            }
            begin = own.end;
        }
    }

    fn wake(&mut self, keys: &Keys, due: usize) {
        for wake in self.waiting.remove(&keys[0]).unwrap_or_default() {
            // The waiter may have been stopped.
            let _ = wake.send(due);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{cell::RefCell, collections::HashSet};

    use balance_sync_schedule::ErrorClass;
    use tokio::task::LocalSet;

    use super::*;
    use crate::tasks::{Faults, Moment};

    const INTERVAL: Duration = Duration::from_secs(1);

    /// A Redis that knows what is due, and how often it was asked for how many.
    #[derive(Default)]
    struct Fake {
        due: RefCell<HashSet<String>>,
        down: RefCell<bool>,
        asked: RefCell<Vec<usize>>,
    }

    fn start(fake: &Rc<Fake>) -> Prober {
        start_owned(fake, &Tasks::default())
    }

    fn start_owned(fake: &Rc<Fake>, tasks: &Tasks) -> Prober {
        let fake = Rc::clone(fake);
        Prober::start_with(
            async move |page: &[Arc<str>]| {
                fake.asked.borrow_mut().push(page.len());
                if *fake.down.borrow() {
                    let message = "down".to_owned();
                    return Err(ScheduleError {
                        operation: "probe",
                        class: ErrorClass::Unavailable,
                        message,
                    });
                }
                let due = fake.due.borrow();
                Ok((0..page.len()).filter(|at| due.contains(&*page[*at])).collect())
            },
            INTERVAL,
            tasks,
            0,
            CancellationToken::new(),
        )
    }

    fn keys(keys: &[&str]) -> Keys {
        keys.iter().map(|key| Arc::from(*key)).collect()
    }

    fn wait(prober: &Prober, key: &str) -> tokio::task::JoinHandle<usize> {
        let (prober, keys) = (prober.clone(), keys(&[key]));
        tokio::task::spawn_local(async move { prober.wait(&keys, INTERVAL).await })
    }

    #[tokio::test(start_paused = true)]
    async fn each_waiter_is_looked_at_within_the_interval_however_many_there_are() {
        LocalSet::new()
            .run_until(async {
                let fake = Rc::new(Fake::default());
                let prober = start(&fake);
                let mut waits = Vec::new();
                for n in 0..1000 {
                    waits.push(wait(&prober, &format!("k{n}")));
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let before = fake.asked.borrow().len();
                tokio::time::sleep(10 * INTERVAL).await;
                let calls = fake.asked.borrow().len() - before;
                assert!(calls <= 10 * 20, "{calls} calls in ten intervals for a thousand schedules");
                assert!(waits.iter().all(|wait| !wait.is_finished()), "nothing is due");

                let begun = Instant::now();
                fake.due.borrow_mut().insert("k500".to_owned());
                waits.swap_remove(500).await.unwrap();
                assert!(begun.elapsed() <= INTERVAL + Duration::from_millis(5), "{:?}", begun.elapsed());
                assert!(waits.iter().all(|wait| !wait.is_finished()), "the others are left asleep");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_busy_a_moment_ago_is_looked_at_sooner_and_then_less_and_less_often() {
        LocalSet::new()
            .run_until(async {
                let fake = Rc::new(Fake::default());
                let prober = start(&fake);
                let wait = |pause| {
                    let prober = prober.clone();
                    tokio::task::spawn_local(async move { prober.wait(&keys(&["busy"]), pause).await })
                };
                let first = wait(INTERVAL / 10);
                tokio::time::sleep(INTERVAL / 20).await;
                fake.due.borrow_mut().insert("busy".to_owned());
                let begun = Instant::now();
                first.await.unwrap();
                assert!(begun.elapsed() <= INTERVAL / 10, "{:?}", begun.elapsed());

                fake.due.borrow_mut().clear();
                let before = fake.asked.borrow().len();
                let second = wait(INTERVAL / 10);
                tokio::time::sleep(10 * INTERVAL).await;
                let growing = fake.asked.borrow().len() - before;
                assert!((15..=30).contains(&growing), "{growing} looks while the pauses grow");
                tokio::time::sleep(10 * INTERVAL).await;
                let grown = fake.asked.borrow().len() - before - growing;
                assert!((9..=12).contains(&grown), "{grown} looks in ten intervals");
                assert!(!second.is_finished());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_woken_when_redis_is_away_and_then_nothing_is_asked() {
        LocalSet::new()
            .run_until(async {
                let fake = Rc::new(Fake::default());
                fake.down.replace(true);
                let prober = start(&fake);
                let tenants: Vec<Keys> = (0..600).map(|n| keys(&[&format!("k{n}")])).collect();
                let waits = tenants.iter().map(|keys| prober.wait(keys, INTERVAL));
                tokio::time::timeout(10 * INTERVAL, futures::future::join_all(waits)).await.unwrap();
                let calls = fake.asked.borrow().len();
                tokio::time::sleep(10 * INTERVAL).await;
                assert_eq!((calls, fake.asked.borrow().len()), (3, 3));
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_panics_leaves_no_waiter_and_no_hot_loop_and_starts_again() {
        LocalSet::new()
            .run_until(async {
                let (fake, tasks, faults) = (Rc::new(Fake::default()), Tasks::default(), Faults::default());
                tasks.inject(faults.clone());
                let prober = start_owned(&fake, &tasks);
                let waits: Vec<_> = (0..10).map(|n| wait(&prober, &format!("k{n}"))).collect();
                tokio::time::sleep(INTERVAL / 2).await;
                faults.panic(TaskName::Prober, Moment::Beat, 1);
                faults.panic(TaskName::Prober, Moment::Start, 5);
                // Each starts a claim, and waits again, before the probe is back.
                for wait in waits {
                    tokio::time::timeout(2 * INTERVAL, wait).await.unwrap().unwrap();
                }
                let begun = Instant::now();
                let mut asks = 0;
                while tasks.panics(TaskName::Prober) < 6 || !tasks.reports()[0].running {
                    prober.wait(&keys(&["k0"]), INTERVAL).await;
                    asks += 1;
                    assert!(asks < 100, "it must not be asked over and over");
                }
                assert!(
                    asks > 0 && begun.elapsed() >= INTERVAL * (asks - 1),
                    "it must not be asked over and over"
                );
                let asked = fake.asked.borrow().len();
                let again = wait(&prober, "k1");
                tokio::time::sleep(2 * INTERVAL).await;
                assert!(fake.asked.borrow().len() > asked && !again.is_finished(), "it is looked at again");
                fake.due.borrow_mut().insert("k1".to_owned());
                again.await.unwrap();
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_with_two_schedules_waits_once_and_learns_which_is_due() {
        LocalSet::new()
            .run_until(async {
                let fake = Rc::new(Fake::default());
                let prober = start(&fake);
                let waits: Vec<_> = (0..3)
                    .map(|n| {
                        let (prober, keys) = (prober.clone(), keys(&[&format!("a{n}"), &format!("b{n}")]));
                        tokio::task::spawn_local(async move { prober.wait(&keys, INTERVAL).await })
                    })
                    .collect();
                tokio::time::sleep(2 * INTERVAL).await;
                assert!(fake.asked.borrow().iter().all(|schedules| *schedules == 6), "all in one call");
                fake.due.borrow_mut().extend(["b0".to_owned(), "a2".to_owned()]);
                let mut waits = waits.into_iter();
                assert_eq!(waits.next().unwrap().await.unwrap(), 1);
                let still = waits.next().unwrap();
                assert_eq!(waits.next().unwrap().await.unwrap(), 0);
                tokio::time::sleep(2 * INTERVAL).await;
                assert!(!still.is_finished(), "nothing of its is due");
                assert_eq!(fake.asked.borrow().last(), Some(&2), "only who waits is asked for");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_dropped_is_forgotten_and_who_waits_twice_is_woken_twice() {
        LocalSet::new()
            .run_until(async {
                let fake = Rc::new(Fake::default());
                let prober = start(&fake);
                let gone = tokio::time::timeout(INTERVAL / 2, prober.wait(&keys(&["gone"]), INTERVAL)).await;
                assert!(gone.is_err());
                tokio::time::sleep(10 * INTERVAL).await;
                assert!(fake.asked.borrow().is_empty(), "its waiters have given up");

                let (first, second) = (wait(&prober, "twice"), wait(&prober, "twice"));
                tokio::time::sleep(5 * INTERVAL).await;
                assert!(!first.is_finished() && !second.is_finished(), "one must not push the other out");
                assert!(fake.asked.borrow().iter().all(|schedules| *schedules == 1));
                fake.due.borrow_mut().insert("twice".to_owned());
                first.await.unwrap();
                second.await.unwrap();
            })
            .await;
    }
}
