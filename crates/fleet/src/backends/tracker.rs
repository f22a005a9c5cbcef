//! Idle schedules that Redis itself watches: it announces when something is written to one (`CLIENT TRACKING`).
//!
//! A schedule of an idle tenant is empty. One task per thread looks at it once, from a connection of its own, and Redis then tells
//! when it has changed; until then nobody asks. What isn't empty, and everything where Redis can't be used in that way, is left to
//! the [prober](super::prober) and the [standby watch](super::standby).
//!
//! An announcement is not relied on: the connection is tried out before it is used and asked for a sign of life all the time, and all
//! schedules are looked at again every half minute. Redis that has let a change pass in silence, or announces changes that are none, is
//! not used for a while.

use std::{cell::Cell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use balance_sync_schedule::{
    Endpoint, ErrorClass, ScheduleError,
    tracking::{Change, Tracking},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    status::{TenantStatus, TrackingStatus},
    tasks::{Inbox, Progress, TaskName, Tasks},
};

/// Schedules in one call: some 100 µs of Redis.
const PAGE: usize = 250;
/// All schedules are looked at again this often.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Between two pages of that, so that no other call of the thread or of Redis waits long.
const PAGE_EVERY: Duration = Duration::from_millis(20);
/// From a connection that broke to the next one; twice as long each time, up to [`RETRY_AT_MOST`].
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_AT_MOST: Duration = Duration::from_secs(30);
/// After so many that can't be opened in a row the log says so.
const FAILED_OPENS: u32 = 5;
/// As long where Redis doesn't do it, or not truly; twice as long each time, up to [`RETRY_REFUSED_AT_MOST`] …
const RETRY_REFUSED_AFTER: Duration = Duration::from_secs(600);
const RETRY_REFUSED_AT_MOST: Duration = Duration::from_secs(24 * 3600);
/// … unless it did for so long.
const TRUE_AFTER: Duration = Duration::from_secs(3600);
/// More than this many changes of schedules that are still empty, in each of [`FALSE_SECONDS`] in a row, aren't true: Redis
/// forgets what it is to track. Fewer, or for a moment, come from another worker that was faster.
const MOST_FALSE: u32 = 1000;
const FALSE_WITHIN: Duration = Duration::from_secs(1);
const FALSE_SECONDS: u32 = 10;
/// The server is asked for a sign of life once in the time that is given, but neither more nor less often than this.
const ASK_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// The schedules of one tenant: at least one.
type Keys = Arc<[Arc<str>]>;

/// What became of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiet {
    /// They were empty, and something has been written to this one of them.
    Written(usize),
    /// They aren't empty: whether something is due has to be asked.
    NotEmpty,
    /// Redis doesn't announce anything at present.
    Untracked,
}

/// Changes as Redis announces them.
trait Source: Sized {
    async fn are_empty(&mut self, keys: &[Arc<str>]) -> Result<Vec<Option<bool>>, ScheduleError>;
    async fn next(&mut self) -> Result<Change, ScheduleError>;
    fn ready(&mut self) -> Result<Option<Change>, ScheduleError>;
    async fn ping(&mut self) -> Result<(), ScheduleError>;
}

impl Source for Tracking {
    async fn are_empty(&mut self, keys: &[Arc<str>]) -> Result<Vec<Option<bool>>, ScheduleError> {
        self.are_empty(keys).await
    }

    async fn next(&mut self) -> Result<Change, ScheduleError> {
        self.next().await
    }

    fn ready(&mut self) -> Result<Option<Change>, ScheduleError> {
        self.ready()
    }

    async fn ping(&mut self) -> Result<(), ScheduleError> {
        self.ping().await
    }
}

#[derive(Debug)]
struct Arrival {
    keys: Keys,
    /// The number of the first of them among all of the tenant's.
    first: usize,
    /// Where it is shown that they are empty and announced.
    status: Arc<TenantStatus>,
    answer: oneshot::Sender<Quiet>,
}

/// A handle on a thread's tracker.
#[derive(Debug, Clone)]
pub struct Tracker {
    inbox: Inbox<Arrival>,
    tracks: watch::Receiver<bool>,
}

impl Tracker {
    /// Starts it on the current thread, whose number is given. The connection is asked for a sign of life each `interval`.
    #[must_use]
    pub fn start(
        endpoint: Endpoint,
        interval: Duration,
        status: Arc<TrackingStatus>,
        tasks: &Tasks,
        thread: usize,
        stop: CancellationToken,
    ) -> Self {
        let open = async move || Tracking::open(&endpoint).await;
        Self::start_with(open, interval, status, tasks, thread, stop)
    }

    /// One that never tracks anything.
    #[must_use]
    pub fn off() -> Self {
        let (tracks, _) = watch::channel(false);
        let inbox = Inbox::new();
        drop(inbox.open());
        Self { inbox, tracks: tracks.subscribe() }
    }

    fn start_with<S: Source>(
        open: impl AsyncFn() -> Result<S, ScheduleError> + 'static,
        interval: Duration,
        status: Arc<TrackingStatus>,
        tasks: &Tasks,
        thread: usize,
        stop: CancellationToken,
    ) -> Self {
        let interval = interval.clamp(ASK_EVERY.0, ASK_EVERY.1);
        let (inbox, open) = (Inbox::new(), Rc::new(open));
        let (known, tracks) = watch::channel(false);
        let known = Rc::new(known);
        tasks.keep(TaskName::Tracker, Some(thread), interval, stop.clone(), {
            let inbox = inbox.clone();
            move |progress| {
                let (open, arrivals, stop) = (Rc::clone(&open), inbox.open(), stop.clone());
                let shown = Shown { tracks: Rc::clone(&known), status: Arc::clone(&status), counted: 0 };
                async move {
                    let run = Run::new(interval, shown).run(&*open, arrivals, &progress);
                    stop.run_until_cancelled(run).await;
                }
            }
        });
        Self { inbox, tracks }
    }

    /// Waits until something is written to one of these schedules, all of which are empty; they are a tenant's from the `first` on.
    /// While no answer can be had they count as untracked.
    pub async fn wait(&self, keys: &Keys, first: usize, status: &Arc<TenantStatus>) -> Quiet {
        let (answer, answered) = oneshot::channel();
        let arrival = Arrival { keys: Arc::clone(keys), first, status: Arc::clone(status), answer };
        if *self.tracks.borrow() && self.inbox.send(arrival) {
            answered.await.unwrap_or(Quiet::Untracked)
        } else {
            Quiet::Untracked
        }
    }

    /// Waits until Redis announces changes.
    pub async fn is_back(&self) {
        if self.tracks.clone().wait_for(|tracks| *tracks).await.is_err() {
            std::future::pending().await
        }
    }
}

/// What others see of it.
struct Shown {
    tracks: Rc<watch::Sender<bool>>,
    status: Arc<TrackingStatus>,
    /// Schedules that are counted as tracked.
    counted: usize,
}

impl Shown {
    fn tracks(&self, tracks: bool) {
        self.tracks.send_if_modified(|known| {
            let changed = *known != tracks;
            *known = tracks;
            if changed {
                self.status.count_thread(tracks);
            }
            changed
        });
    }

    fn schedules(&mut self, now: usize) {
        self.status.count_schedules(self.counted, now);
        self.counted = now;
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.schedules(0);
        self.tracks(false);
    }
}

/// One that waits, under each of its schedules.
struct Waiting {
    keys: Keys,
    first: usize,
    status: Arc<TenantStatus>,
    answer: Cell<Option<oneshot::Sender<Quiet>>>,
}

impl Waiting {
    /// That this schedule is empty and announced is known.
    fn is_empty(&self, key: &Arc<str>) {
        if let Some(at) = self.keys.iter().position(|own| own == key) {
            self.status.quiet.begin(self.first + at);
        }
    }

    fn answer(&self, quiet: Quiet) {
        self.end();
        if let Some(answer) = self.answer.take() {
            // It may have been stopped.
            let _ = answer.send(quiet);
        }
    }

    fn end(&self) {
        (0..self.keys.len()).for_each(|at| self.status.quiet_ends(self.first + at));
    }

    fn has_left(&self) -> bool {
        let answer = self.answer.take();
        let has_left = answer.as_ref().is_none_or(oneshot::Sender::is_closed);
        self.answer.set(answer);
        has_left
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // The task has panicked, or its tenant has left.
        self.end();
    }
}

/// Why a schedule is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Its tenant has just become idle.
    New,
    /// Redis has announced a change.
    Changed,
    /// Redis has forgotten what it was to track.
    Forgotten,
    /// It is time to.
    Sweep,
}

/// Why a connection is given up.
enum End {
    Broken(ScheduleError),
    /// With what Redis did.
    Untrue(&'static str),
}

impl From<ScheduleError> for End {
    fn from(error: ScheduleError) -> Self {
        Self::Broken(error)
    }
}

struct Run {
    interval: Duration,
    shown: Shown,
    by_key: HashMap<Arc<str>, Rc<Waiting>>,
    to_look_at: Vec<(Arc<str>, Why)>,
    /// What is left of the present sweep.
    to_sweep: Vec<Arc<str>>,
    next_sweep: Instant,
    /// Changes that were none, since when they are counted, and for how many seconds in a row there were too many before that.
    false_changes: (u32, Instant, u32),
}

impl Run {
    fn new(interval: Duration, shown: Shown) -> Self {
        Self {
            interval,
            shown,
            by_key: HashMap::new(),
            to_look_at: Vec::new(),
            to_sweep: Vec::new(),
            next_sweep: Instant::now(),
            false_changes: (0, Instant::now(), 0),
        }
    }

    async fn run<S: Source>(
        mut self,
        open: &impl AsyncFn() -> Result<S, ScheduleError>,
        mut arrivals: mpsc::UnboundedReceiver<Arrival>,
        progress: &Progress,
    ) {
        let (mut retry, mut retry_refused, mut failed) = (RETRY_AFTER, RETRY_REFUSED_AFTER, 0);
        loop {
            progress.beat();
            let end = match open().await {
                Ok(source) => {
                    let opened = Instant::now();
                    failed = 0;
                    self.shown.tracks(true);
                    if self.shown.status.is_said.swap(false, std::sync::atomic::Ordering::Relaxed) {
                        tracing::info!("redis announces changes of idle schedules again");
                    }
                    let Some(end) = self.follow(source, &mut arrivals, progress).await else { return };
                    if opened.elapsed() > RETRY_AT_MOST {
                        retry = RETRY_AFTER;
                    }
                    if opened.elapsed() > TRUE_AFTER {
                        retry_refused = RETRY_REFUSED_AFTER;
                    }
                    end
                }
                Err(error) => {
                    failed += 1;
                    End::Broken(error)
                }
            };
            self.shown.tracks(false);
            self.leave(&mut arrivals);
            let pause = match &end {
                End::Broken(error) if is_refusal(error.class) => {
                    self.say(&error);
                    RETRY_REFUSED_AFTER
                }
                End::Broken(error) => {
                    if failed >= FAILED_OPENS {
                        self.say(&error);
                    }
                    tracing::debug!(%error, "changes of schedules are not announced");
                    let pause = retry;
                    retry = (retry * 2).min(RETRY_AT_MOST);
                    pause
                }
                End::Untrue(what) => {
                    self.say(&what);
                    let pause = retry_refused;
                    retry_refused = (retry_refused * 2).min(RETRY_REFUSED_AT_MOST);
                    pause
                }
            };
            let until = Instant::now() + pause;
            while Instant::now() < until {
                progress.beat();
                tokio::select! {
                    new = arrivals.recv() => match new {
                        Some(new) => drop(new.answer.send(Quiet::Untracked)),
                        None => return,
                    },
                    () = tokio::time::sleep_until(until.min(Instant::now() + self.interval)) => {}
                }
            }
        }
    }

    /// Once for each worker, not for each thread.
    fn say(&self, reason: &dyn std::fmt::Display) {
        if !self.shown.status.is_said.swap(true, std::sync::atomic::Ordering::Relaxed) {
            tracing::info!(
                reason = %reason,
                "redis doesn't announce changes of idle schedules, they are looked at once in a while"
            );
        }
    }

    /// Everyone is told that nothing is announced.
    fn leave(&mut self, arrivals: &mut mpsc::UnboundedReceiver<Arrival>) {
        for (_, waiting) in self.by_key.drain() {
            waiting.answer(Quiet::Untracked);
        }
        self.to_look_at.clear();
        self.to_sweep.clear();
        self.shown.schedules(0);
        while let Ok(new) = arrivals.try_recv() {
            let _ = new.answer.send(Quiet::Untracked);
        }
    }

    /// Follows the announcements of one connection until it is of no use any more; `None` when there is nothing left to do.
    async fn follow<S: Source>(
        &mut self,
        mut source: S,
        arrivals: &mut mpsc::UnboundedReceiver<Arrival>,
        progress: &Progress,
    ) -> Option<End> {
        self.next_sweep = Instant::now() + SWEEP_EVERY;
        let (mut next_ping, mut next_page) = (Instant::now() + self.interval, Instant::now());
        loop {
            progress.beat();
            let next_sweep = if self.to_sweep.is_empty() { self.next_sweep } else { next_page };
            let (mut closed, mut ping, mut sweep) = (false, false, false);
            let changed = tokio::select! {
                biased;
                // Seldom, and must not wait for an end of what is announced.
                () = tokio::time::sleep_until(next_ping) => { ping = true; None },
                () = tokio::time::sleep_until(next_sweep) => { sweep = true; None },
                change = source.next() => Some(change),
                new = progress.waiting(arrivals.recv()) => {
                    match new {
                        Some(new) => self.enter(new),
                        None => closed = true,
                    }
                    None
                },
            };
            if closed {
                return None;
            }
            let step = async {
                if let Some(change) = changed {
                    self.changed(&change?);
                }
                while self.to_look_at.len() < PAGE
                    && let Some(change) = source.ready()?
                {
                    self.changed(&change);
                }
                while self.to_look_at.len() < PAGE
                    && let Ok(new) = arrivals.try_recv()
                {
                    self.enter(new);
                }
                while !self.to_look_at.is_empty() {
                    self.look(&mut source).await?;
                    progress.beat();
                }
                if ping {
                    source.ping().await?;
                    next_ping = Instant::now() + self.interval;
                }
                if sweep {
                    self.sweep();
                    next_page = Instant::now() + PAGE_EVERY;
                    // With what is announced meanwhile.
                    while !self.to_look_at.is_empty() {
                        self.look(&mut source).await?;
                        progress.beat();
                    }
                }
                self.shown.schedules(self.by_key.len());
                Ok(())
            };
            if let Err(end) = step.await {
                return Some(end);
            }
        }
    }

    fn enter(&mut self, Arrival { keys, first, status, answer }: Arrival) {
        let waiting = Rc::new(Waiting { keys, first, status, answer: Cell::new(Some(answer)) });
        for key in waiting.keys.iter() {
            // One that waited for it before, of a collector that was replaced, is left to the prober for its last moment.
            if let Some(former) = self.by_key.insert(Arc::clone(key), Rc::clone(&waiting)) {
                self.release(&former, Quiet::NotEmpty);
            }
            self.to_look_at.push((Arc::clone(key), Why::New));
        }
    }

    /// Takes one out, with its answer.
    fn release(&mut self, waiting: &Rc<Waiting>, quiet: Quiet) {
        for key in waiting.keys.iter() {
            if self.by_key.get(key).is_some_and(|at| Rc::ptr_eq(at, waiting)) {
                self.by_key.remove(key);
            }
        }
        waiting.answer(quiet);
    }

    fn changed(&mut self, change: &Change) {
        match change {
            Change::Of(key) => {
                let known = std::str::from_utf8(key).ok().and_then(|key| self.by_key.get_key_value(key));
                // Most often its tenant is at work by now.
                if let Some((key, _)) = known {
                    self.to_look_at.push((Arc::clone(key), Why::Changed));
                }
            }
            // The server was emptied, or has forgotten what it tracks.
            Change::OfAll => {
                self.to_look_at.clear();
                self.to_look_at.extend(self.by_key.keys().map(|key| (Arc::clone(key), Why::Forgotten)));
            }
        }
    }

    /// Puts together the next page of a sweep, without those that have left.
    fn sweep(&mut self) {
        if self.to_sweep.is_empty() {
            self.by_key.retain(|_, waiting| !waiting.has_left());
            self.by_key.shrink_to(self.by_key.len() * 2);
            self.to_sweep.extend(self.by_key.keys().cloned());
            self.next_sweep = Instant::now() + SWEEP_EVERY;
        }
        let page = self.to_sweep.split_off(self.to_sweep.len().saturating_sub(PAGE));
        self.to_look_at.extend(page.into_iter().map(|key| (key, Why::Sweep)));
    }

    /// Looks at one page, and answers those whose schedules aren't empty.
    async fn look(&mut self, source: &mut impl Source) -> Result<(), End> {
        let page = self.to_look_at.split_off(self.to_look_at.len().saturating_sub(PAGE));
        let page: Vec<_> = page.into_iter().filter(|(key, _)| self.by_key.contains_key(key)).collect();
        if page.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = page.iter().map(|(key, _)| Arc::clone(key)).collect();
        let empty = source.are_empty(&keys).await?;
        for ((key, why), empty) in page.iter().zip(&empty) {
            let Some(waiting) = self.by_key.get(key).filter(|_| *empty == Some(true)) else { continue };
            // This answer has made Redis announce what comes.
            waiting.is_empty(key);
            if matches!(why, Why::Changed | Why::Forgotten) {
                // Another worker was faster.
                waiting.status.rouse();
            }
        }
        let others = page.iter().zip(&empty).filter(|(_, empty)| **empty != Some(true));
        let filled = others.map(|((key, why), empty)| (key, *why, empty.is_some()));
        // What was announced before that answer is in by now: none of them was changed in silence.
        let mut announced = Vec::new();
        if filled.clone().any(|(_, why, is_known)| why == Why::Sweep && is_known) {
            while let Some(change) = source.ready()? {
                announced.push(change);
            }
        }
        let mut silent = false;
        for (key, why, is_known) in filled {
            let Some(waiting) = self.by_key.get(key).cloned() else { continue };
            let at = waiting.keys.iter().position(|own| own == key).unwrap_or_default();
            let was_announced = || {
                announced.iter().any(|change| match change {
                    Change::Of(changed) => *changed == key.as_bytes(),
                    Change::OfAll => true,
                })
            };
            silent |= why == Why::Sweep && is_known && !was_announced();
            if why == Why::Changed {
                self.shown.status.count_wake();
            }
            let quiet = if why == Why::New || !is_known { Quiet::NotEmpty } else { Quiet::Written(at) };
            self.release(&waiting, quiet);
        }
        announced.iter().for_each(|change| self.changed(change));
        if silent {
            return Err(End::Untrue("a schedule was written to and nothing was announced"));
        }
        let changed = page.iter().zip(&empty).filter(|((_, why), _)| *why == Why::Changed);
        let none = changed.filter(|(_, empty)| **empty == Some(true)).count();
        let (count, since, before) = &mut self.false_changes;
        if since.elapsed() >= FALSE_WITHIN {
            // From a second long ago nothing follows.
            let follows = *count > MOST_FALSE && since.elapsed() < 2 * FALSE_WITHIN;
            (*count, *since, *before) = (0, Instant::now(), if follows { *before + 1 } else { 0 });
        }
        *count = count.saturating_add(u32::try_from(none).unwrap_or(u32::MAX));
        if *count > MOST_FALSE && *before + 1 >= FALSE_SECONDS {
            return Err(End::Untrue(
                "over a thousand changes a second were announced that are none; tracking-table-max-keys may be too small",
            ));
        }
        Ok(())
    }
}

/// Whether it is no use to try again soon.
fn is_refusal(class: ErrorClass) -> bool {
    matches!(class, ErrorClass::Permission | ErrorClass::Unexpected | ErrorClass::WrongType)
}

#[cfg(test)]
mod tests;
