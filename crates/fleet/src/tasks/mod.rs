//! Background tasks: one place starts them, observes how they end, starts them again, and knows when each last made
//! progress.
//!
//! There are two kinds. A *kept* task runs for as long as the worker does: [`Tasks::keep`] starts it again, after a growing
//! delay, whenever it panics or returns before it was asked to stop. It reports [`Progress`] in its loop; one that has made
//! none for longer than its bound counts as stalled, whether it hangs or panics over and over. A task that runs *once*
//! ([`Tasks::once`]) ends by itself: a panic is counted, and reported to the caller that waits for its result.
//!
//! The text and the backtrace of a panic are logged where it happens, by the hook in [`panics`].

use std::{
    collections::HashMap,
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use balance_sync_domain::names;
use tokio::{
    task::{JoinError, JoinHandle},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::clock::wall_clock_ms;

mod backoff;
mod faults;
mod inbox;
mod name;
pub mod panics;

pub use backoff::{Backoff, jittered};
pub use faults::{Faults, Moment};
pub(crate) use inbox::Inbox;
pub use name::TaskName;

/// First delay before a task starts again …
const RESTART_MIN: Duration = Duration::from_millis(100);
/// … and the longest.
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A task that ran for this long starts again after the first delay.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// What any task may take beyond its own intervals before it counts as stalled: several calls that each run into their
/// time limit.
const ALLOWANCE: Duration = Duration::from_secs(60);
/// Time between two beats of a task that waits for something that may never come.
const WAITING_BEAT: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// The task that runs, for the panic hook.
    static CURRENT: TaskName;
}

/// The background tasks of one worker. A cheap handle.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    kept: Mutex<Vec<Arc<Kept>>>,
    panics: Mutex<HashMap<TaskName, u64>>,
    faults: Mutex<Option<Faults>>,
}

/// What is known of a kept task.
#[derive(Debug)]
struct Kept {
    name: TaskName,
    /// The thread it belongs to, where each has one.
    thread: Option<usize>,
    /// Longest time without progress before it counts as stalled.
    bound: Duration,
    running: AtomicBool,
    restarts: AtomicU64,
    progress: Mutex<Instant>,
    progress_at_ms: AtomicU64,
    /// How the last run ended that ended early.
    last_end: Mutex<Option<String>>,
}

/// A kept task as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskReport {
    /// Which.
    pub name: TaskName,
    /// The thread it belongs to, where each has one.
    pub thread: Option<usize>,
    /// Whether it runs; it doesn't while it waits to be started again.
    pub running: bool,
    /// Times it was started again.
    pub restarts: u64,
    /// Since it last made progress, or was started for the first time.
    pub idle_for: Duration,
    /// When that was, in milliseconds since 1970. For people and alerts.
    pub progress_at_ms: u64,
    /// Longest time without progress before it counts as stalled.
    pub bound: Duration,
    /// How the last run ended that ended early.
    pub last_end: Option<String>,
}

names! {
    /// How a kept task does, under the names shown everywhere.
    pub enum TaskState {
        /// It runs and makes progress.
        Running = "running",
        /// It ended early and waits to be started again.
        Restarting = "restarting",
        /// It has made no progress for too long.
        Stalled = "stalled",
    }
}

impl TaskReport {
    /// How it does.
    #[must_use]
    pub fn state(&self) -> TaskState {
        match (self.is_stalled(), self.running) {
            (true, _) => TaskState::Stalled,
            (false, true) => TaskState::Running,
            (false, false) => TaskState::Restarting,
        }
    }

    /// Whether it has made no progress for too long.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.idle_for > self.bound
    }
}

impl fmt::Display for TaskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(thread) = self.thread {
            write!(f, " of thread {thread}")?;
        }
        write!(
            f,
            " made no progress for {} s, the bound is {} s",
            self.idle_for.as_secs(),
            self.bound.as_secs()
        )?;
        if let Some(end) = &self.last_end {
            write!(f, "; restarted {} times, last because it {end}", self.restarts)?;
        }
        Ok(())
    }
}

/// A task that ran once has panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panicked;

impl Tasks {
    /// Runs a task until it is asked to stop, and starts it again whenever it ends earlier. `start` makes each run. `interval`
    /// is the longest time that the task means to let pass between two beats.
    ///
    /// Must be called inside an actix system or arbiter; the task stays on that thread.
    pub fn keep<F>(
        &self,
        name: TaskName,
        thread: Option<usize>,
        interval: Duration,
        stop: CancellationToken,
        mut start: impl FnMut(Progress) -> F + 'static,
    ) -> JoinHandle<()>
    where
        F: Future<Output = ()> + 'static,
    {
        let progress = self.register(name, thread, interval);
        let tasks = self.clone();
        actix_rt::spawn(async move {
            let kept = &progress.kept;
            let mut backoff = Backoff::new(RESTART_MIN, RESTART_MAX);
            loop {
                let begun = Instant::now();
                kept.running.store(true, Relaxed);
                // The owner must outlive a panic in `start` as well.
                let run = std::panic::catch_unwind(AssertUnwindSafe(|| start(progress.clone())));
                let ended = match run {
                    Ok(run) => {
                        let fault = progress.clone();
                        let run = async move {
                            fault.fault(Moment::Start);
                            run.await;
                        };
                        actix_rt::spawn(CURRENT.scope(name, run)).await.map_err(End::of)
                    }
                    Err(payload) => Err(Some(End(text_of(&*payload)))),
                };
                kept.running.store(false, Relaxed);
                let end = match ended {
                    _ if stop.is_cancelled() => {
                        if let Err(Some(_)) = ended {
                            tasks.count_panic(name);
                        }
                        break;
                    }
                    // The runtime ends.
                    Err(None) => break,
                    Err(Some(End(text))) => {
                        tasks.count_panic(name);
                        format!("panicked: {text}")
                    }
                    Ok(()) => "returned early".to_owned(),
                };
                if begun.elapsed() >= HEALTHY_AFTER {
                    backoff.reset();
                }
                let delay = backoff.next_delay();
                tracing::warn!(
                    task = name.name(),
                    thread,
                    end,
                    delay_ms = delay.as_millis() as u64,
                    "background task ended, it starts again"
                );
                *lock(&kept.last_end) = Some(end);
                if stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                    break;
                }
                kept.restarts.fetch_add(1, Relaxed);
            }
            tasks.remove(&progress.kept);
        })
    }

    /// Runs something beside that ends by itself. Its panic is counted, whether a caller waits for the result or not.
    ///
    /// Must be called inside an actix system or arbiter; it stays on that thread.
    pub fn once<T: 'static>(
        &self,
        name: TaskName,
        work: impl Future<Output = T> + 'static,
    ) -> JoinHandle<Result<T, Panicked>> {
        let tasks = self.clone();
        let faults = self.faults();
        let running = actix_rt::spawn(CURRENT.scope(name, async move {
            if let Some(faults) = faults {
                faults.strike(name, Moment::Start);
            }
            work.await
        }));
        actix_rt::spawn(async move { running.await.map_err(|error| tasks.observe(name, &error)) })
    }

    /// Counts the end of a task that was run elsewhere, if it was a panic.
    pub(crate) fn observe(&self, name: TaskName, error: &JoinError) -> Panicked {
        if error.is_panic() {
            self.count_panic(name);
        }
        Panicked
    }

    /// All kept tasks, in the order in which they were started.
    #[must_use]
    pub fn reports(&self) -> Vec<TaskReport> {
        lock(&self.0.kept).iter().map(|kept| kept.report()).collect()
    }

    /// A kept task that has made no progress for too long: an essential one, if there is any.
    #[must_use]
    pub fn stalled(&self) -> Option<TaskReport> {
        let mut stalled: Vec<_> = self.reports().into_iter().filter(TaskReport::is_stalled).collect();
        stalled.sort_by_key(|report| !report.name.is_essential());
        stalled.into_iter().next()
    }

    /// Panics of tasks with this name.
    #[must_use]
    pub fn panics(&self, name: TaskName) -> u64 {
        lock(&self.0.panics).get(&name).copied().unwrap_or_default()
    }

    /// Makes tasks panic, for tests.
    pub fn inject(&self, faults: Faults) {
        *lock(&self.0.faults) = Some(faults);
    }

    fn faults(&self) -> Option<Faults> {
        lock(&self.0.faults).clone()
    }

    fn register(&self, name: TaskName, thread: Option<usize>, interval: Duration) -> Progress {
        let kept = Arc::new(Kept::new(name, thread, interval * 3 + ALLOWANCE));
        lock(&self.0.kept).push(Arc::clone(&kept));
        Progress { kept, faults: self.faults() }
    }

    fn remove(&self, ended: &Arc<Kept>) {
        lock(&self.0.kept).retain(|kept| !Arc::ptr_eq(kept, ended));
    }

    /// Counts a panic of a task that was run elsewhere.
    pub(crate) fn count_panic(&self, name: TaskName) {
        *lock(&self.0.panics).entry(name).or_default() += 1;
    }
}

/// Runs a future under the name of a task that is owned elsewhere, so that the panic hook knows it.
pub(crate) fn named<T>(name: TaskName, work: impl Future<Output = T>) -> impl Future<Output = T> {
    CURRENT.scope(name, work)
}

impl Kept {
    fn new(name: TaskName, thread: Option<usize>, bound: Duration) -> Self {
        Self {
            name,
            thread,
            bound,
            running: AtomicBool::new(true),
            restarts: AtomicU64::new(0),
            progress: Mutex::new(Instant::now()),
            progress_at_ms: AtomicU64::new(wall_clock_ms()),
            last_end: Mutex::new(None),
        }
    }

    fn report(&self) -> TaskReport {
        TaskReport {
            name: self.name,
            thread: self.thread,
            running: self.running.load(Relaxed),
            restarts: self.restarts.load(Relaxed),
            idle_for: lock(&self.progress).elapsed(),
            progress_at_ms: self.progress_at_ms.load(Relaxed),
            bound: self.bound,
            last_end: lock(&self.last_end).clone(),
        }
    }
}

/// By which a kept task shows that it gets on.
#[derive(Debug, Clone)]
pub struct Progress {
    kept: Arc<Kept>,
    faults: Option<Faults>,
}

impl Progress {
    /// Of a task without an owner: one of a test.
    #[must_use]
    pub fn unobserved(name: TaskName) -> Self {
        Self { kept: Arc::new(Kept::new(name, None, Duration::MAX)), faults: None }
    }

    /// The task has been once around its loop, with success or without.
    pub fn beat(&self) {
        self.fault(Moment::Beat);
        *lock(&self.kept.progress) = Instant::now();
        self.kept.progress_at_ms.store(wall_clock_ms(), Relaxed);
    }

    /// Waits for something that may never come, which is no lack of progress.
    pub async fn waiting<T>(&self, what: impl Future<Output = T>) -> T {
        let mut what = std::pin::pin!(what);
        loop {
            match tokio::time::timeout(WAITING_BEAT, &mut what).await {
                Ok(done) => return done,
                Err(_) => self.beat(),
            }
        }
    }

    fn fault(&self, moment: Moment) {
        if let Some(faults) = &self.faults {
            faults.strike(self.kept.name, moment);
        }
    }
}

// -- ends --------------------------------------------------------------------------------------------------------------

/// The text of a panic.
struct End(String);

impl End {
    /// `None` when the runtime ended the task.
    fn of(error: JoinError) -> Option<Self> {
        error.try_into_panic().ok().map(|payload| Self(text_of(&*payload)))
    }
}

/// The text of the panic that ended a task.
pub(crate) fn text_of_end(error: JoinError) -> String {
    End::of(error).map_or_else(|| "the runtime ends".to_owned(), |End(text)| text)
}

/// Longest text of a panic that is kept, in characters.
const LONGEST_TEXT: usize = 300;

fn text_of(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    excerpt(text, LONGEST_TEXT)
}

/// What may have come from outside in one line of bounded length.
fn excerpt(text: &str, longest: usize) -> String {
    let mut short: String = text.chars().take(longest).flat_map(char::escape_debug).collect();
    if text.chars().nth(longest).is_some() {
        short.push('…');
    }
    short
}

/// Nothing under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
