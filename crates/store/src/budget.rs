//! How many connections this worker may have open on each server, and who has them.
//!
//! Thousands of tenants keep their databases on one server, and a Postgres connection belongs to one database. So the
//! bound that matters is per server, and connections must move between databases.
//!
//! Why not a pool per database from the driver: it retries a refused connection until its own deadline and then says
//! "timed out" whatever the server said, so that the class of the error is lost; and two pools cannot pass a place
//! from one to the other without the sum exceeding the bound for a moment.
//!
//! How it stays within the bound. A *slot* is held by each open connection, from before it is opened until after it is
//! closed. A slot is given only while fewer than the budget exist, or taken over from a connection that is closed for it.
//!
//! Who gets one. A database's own idle connection first. Who needs a new one queues; the queue is served in order, each
//! time a slot becomes free, a connection idle, or an idle one old enough to be taken away:
//!
//! - A database that has a connection takes none away from another: it waits for its own, or for a free slot.
//! - A connection is left to its database for [`TENURE`], and then as long as its pauses are shorter than [`SPARE`]. Moving
//!   one costs both sides some milliseconds of work; without this bound, more active databases than slots would do little else.
//! - After [`LONGEST`] it goes to the next in the queue as soon as its statement has ended: a backlog must not keep a
//!   neighbour waiting until it is empty.
//!
//! Of the connections at most [`AT_WORK`] write a batch at the same time; those who have one take turns, in order. More
//! don't make a server faster, and each holds a batch in memory. A turn ends with its batch, or when a statement takes longer
//! than [`LONGEST_TURN`].
//!
//! While a database waits its batch grows, so the fewer turns carry more. Slots are per server: one that does not answer
//! holds up nobody else. Within a server one database uses at most its own `max_connections`, each for at most the
//! connect timeout or the operation timeout.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::{FutureExt, future};
use rand::Rng as _;
use sqlx::{Connection, PgConnection};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::{JoinError, JoinHandle};

use crate::connect::Connected;
use crate::examine::Examined;
use crate::homes::Homes;
use crate::mode::Found;
use crate::names::{Addresses, Names, look_up};
use crate::spec::DatabaseSpec;
use crate::sql::Target;

/// The ages at which connections are closed lie between this part of their greatest age and the whole, lest those that were opened
/// together are opened anew together.
const YOUNGEST: f64 = 0.8;

/// How often idle connections are looked at, at the least.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The same while somebody waits for one of them.
const WAITED_FOR_INTERVAL: Duration = Duration::from_millis(20);

/// How long a connection is left to its database although others wait for one.
const TENURE: Duration = Duration::from_millis(500);

/// After its tenure, one that has been idle for so long is taken away when others wait.
const SPARE: Duration = Duration::from_millis(20);

/// After so long it is taken away between two statements when others wait.
const LONGEST: Duration = Duration::from_secs(2);

/// Batches that are written at once to one server at most: several times the cores of a common one. A commit that waits for
/// a disk or a replica leaves room for the others, and whoever waits for its turn gathers meanwhile.
const AT_WORK: usize = 16;

/// A statement that takes longer gives its turn up: it waits for a lock or an answer, which is no work, and a few tenants with
/// locked tables must not hold up all others of their server. A batch takes some ten milliseconds.
pub(crate) const LONGEST_TURN: Duration = Duration::from_millis(200);

/// How long a polite goodbye may take before the socket is simply closed.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The bound on open connections per server, for all databases of a worker. A cheap clone of one shared state.
#[derive(Clone)]
pub struct ConnectionBudget(Arc<Inner>);

struct Inner {
    per_server: usize,
    next_database: AtomicU64,
    servers: Mutex<HashMap<String, Weak<Server>>>,
    homes: Homes,
    chores: Arc<Chores>,
}

/// What is done beside for a server's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chore {
    /// Looking at the idle connections over and over.
    Sweep,
    /// Closing some.
    Close,
    /// Looking up the address of the server.
    LookUp,
}

/// Runs chores, and hears of those that panic.
#[derive(Default)]
struct Chores {
    panicked: OnceLock<Box<dyn Fn(Chore) + Send + Sync>>,
    /// Sweeps that are to panic, for tests.
    #[cfg(test)]
    faults: AtomicUsize,
}

impl Chores {
    /// Runs something once.
    fn once(
        self: &Arc<Self>,
        chore: Chore,
        runtime: &Handle,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let (chores, running) = (Arc::clone(self), runtime.spawn(work));
        runtime.spawn(async move {
            if let Err(error) = running.await {
                chores.ended(chore, &error);
            }
        });
    }

    /// Runs the sweeper of a server until it isn't needed any more; again, if it panics.
    fn sweep(
        self: &Arc<Self>,
        runtime: &Handle,
        server: Weak<Server>,
        queued: Arc<Notify>,
    ) -> JoinHandle<()> {
        let chores = Arc::clone(self);
        runtime.spawn(async move {
            while let Err(error) = tokio::spawn(sweep(Weak::clone(&server), Arc::clone(&queued))).await {
                if !chores.ended(Chore::Sweep, &error) {
                    return;
                }
                tokio::time::sleep(SWEEP_INTERVAL).await;
            }
        })
    }

    /// Gives whether it was a panic; otherwise the runtime ends.
    fn ended(&self, chore: Chore, error: &JoinError) -> bool {
        if let Some(panicked) = self.panicked.get().filter(|_| error.is_panic()) {
            panicked(chore);
        }
        error.is_panic()
    }
}

/// The connections of this worker on one server, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUsage {
    /// The server, `host:port`.
    pub server: String,
    /// Connections that exist, those being opened or closed included. Never above `limit`.
    pub open: usize,
    /// Connections nobody works with.
    pub idle: usize,
    /// Connections that somebody works with, those being opened or closed included.
    pub in_use: usize,
    /// Operations that wait for a connection.
    pub waiting: usize,
    /// The budget.
    pub limit: usize,
    /// Connections opened so far, attempts included. Growing fast, it shows that too many active databases share too few.
    pub opened: u64,
}

impl ConnectionBudget {
    /// A budget of so many open connections per server; 0 is taken for 1, as no work is possible without any.
    #[must_use]
    pub fn new(per_server: u32) -> ConnectionBudget {
        ConnectionBudget(Arc::new(Inner {
            per_server: per_server.max(1) as usize,
            next_database: AtomicU64::new(0),
            servers: Mutex::new(HashMap::new()),
            homes: Homes::default(),
            chores: Arc::default(),
        }))
    }

    /// Has each panic of what is done beside reported, to the first who asks for it.
    pub fn observe_panics(&self, panicked: impl Fn(Chore) + Send + Sync + 'static) {
        // Only the first counts.
        let _ = self.0.chores.panicked.set(Box::new(panicked));
    }

    /// The tenants of this worker and the tables they write.
    pub(crate) fn homes(&self) -> &Homes {
        &self.0.homes
    }

    /// Forgets a tenant that is no longer served: another may be given its database.
    pub fn forget_tenant(&self, tenant: &str) {
        self.0.homes.leave(tenant);
    }

    /// The bound per server.
    #[must_use]
    pub fn per_server(&self) -> usize {
        self.0.per_server
    }

    /// The servers that have databases, in order of name.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerUsage> {
        let servers: Vec<Arc<Server>> = lock(&self.0.servers).values().filter_map(Weak::upgrade).collect();
        let mut usage: Vec<ServerUsage> = servers.iter().map(|server| server.usage()).collect();
        usage.sort_by(|a, b| a.server.cmp(&b.server));
        usage
    }

    /// The server of that key, and a number for one more database on it.
    pub(crate) fn register(&self, server_key: &str) -> (Arc<Server>, u64) {
        let database = self.0.next_database.fetch_add(1, Ordering::Relaxed);
        let mut servers = lock(&self.0.servers);
        if let Some(server) = servers.get(server_key).and_then(Weak::upgrade) {
            return (server, database);
        }
        servers.retain(|_, server| server.strong_count() > 0);
        let server =
            Arc::new(Server::new(server_key.to_owned(), self.0.per_server, Arc::clone(&self.0.chores)));
        servers.insert(server_key.to_owned(), Arc::downgrade(&server));
        (server, database)
    }
}

impl fmt::Debug for ConnectionBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionBudget").field("per_server", &self.0.per_server).finish_non_exhaustive()
    }
}

/// One server: its slots, its idle connections, and who waits for them.
pub(crate) struct Server {
    key: String,
    limit: usize,
    /// Batches that may be written at once.
    pub(crate) turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Whether nothing stands between here and the server.
    pub(crate) is_direct: Found<bool>,
    /// Where its name leads.
    pub(crate) names: Names,
    /// Somebody has queued: the sweeper is to look sooner.
    queued: Arc<Notify>,
    state: Mutex<State>,
    chores: Arc<Chores>,
}

#[derive(Default)]
struct State {
    /// Slots given out.
    open: usize,
    /// Slots given to databases so far.
    opened: u64,
    open_by: HashMap<u64, usize>,
    /// The longest idle first.
    idle: VecDeque<Idle>,
    /// The longest waiting first.
    queue: VecDeque<Queued>,
    sweeper: Option<JoinHandle<()>>,
}

struct Queued {
    database: u64,
    fresh: bool,
    grant: oneshot::Sender<Grant>,
}

struct Idle {
    open: Open,
    since: Instant,
    timeout: Duration,
}

/// An open connection with the slot it occupies. Dropping it closes the socket without a word.
pub(crate) struct Open {
    pub(crate) connection: PgConnection,
    /// What was found when it was opened.
    pub(crate) examined: Box<Examined>,
    /// What statements on it are written for.
    pub(crate) target: Target,
    slot: Slot,
    opened: Instant,
    /// When it has reached its greatest age.
    ends: Instant,
    /// The addresses of its server's name when it was opened.
    addresses: Addresses,
}

impl Open {
    pub(crate) fn new(connected: Connected, slot: Slot, target: Target, max_age: Duration) -> Open {
        let Connected { connection, examined, addresses } = connected;
        let opened = Instant::now();
        let ends = opened + max_age.mul_f64(rand::rng().random_range(YOUNGEST..=1.0));
        Open { connection, examined: Box::new(examined), target, slot, opened, ends, addresses }
    }

    /// Whether it is to be closed: it is old, or its server's name leads elsewhere now.
    fn is_over(&self) -> bool {
        Instant::now() >= self.ends || self.slot.server.names.has_left(&self.addresses)
    }

    /// Says goodbye to the server, within `limit`; the slot is free afterwards in any case.
    pub(crate) async fn close(self, limit: Duration) {
        drop(self.close_keeping_slot(limit).await);
    }

    async fn close_keeping_slot(self, limit: Duration) -> Slot {
        // An error or a timeout changes nothing: the socket is closed either way.
        let _ = tokio::time::timeout(limit, self.connection.close()).await;
        self.slot
    }
}

/// The right to have one connection open on a server. Free again when dropped.
pub(crate) struct Slot {
    server: Arc<Server>,
    database: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.server.state();
        state.open -= 1;
        state.leave(self.database);
        self.server.serve(state);
    }
}

/// What somebody gets who needs a connection.
pub(crate) enum Claim {
    /// A connection of its own database that was idle.
    Pooled(Open),
    /// The right to open one.
    Slot(Slot),
}

enum Grant {
    Claim(Claim),
    /// A connection of another database, to be closed for its slot.
    TakeOver(Open),
}

impl Idle {
    fn may_be_taken(&self) -> bool {
        let age = self.open.opened.elapsed();
        age >= LONGEST || (age >= TENURE && self.since.elapsed() >= SPARE)
    }
}

impl State {
    /// The most recently used idle connection of a database.
    fn take_own(&mut self, database: u64) -> Option<Open> {
        let own = self.idle.iter().rposition(|idle| idle.open.slot.database == database)?;
        self.idle.remove(own).map(|idle| idle.open)
    }

    fn enter(&mut self, database: u64) {
        self.opened += 1;
        *self.open_by.entry(database).or_default() += 1;
    }

    fn leave(&mut self, database: u64) {
        if let Some(count) = self.open_by.get_mut(&database) {
            *count -= 1;
            if *count == 0 {
                self.open_by.remove(&database);
            }
        }
    }
}

impl Server {
    fn new(key: String, limit: usize, chores: Arc<Chores>) -> Server {
        Server {
            key,
            limit,
            turns: Arc::new(Semaphore::new(AT_WORK)),
            waiting: AtomicUsize::new(0),
            is_direct: Found::nothing(),
            names: Names::default(),
            queued: Arc::default(),
            state: Mutex::new(State::default()),
            chores,
        }
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Counts the caller among the waiting until the guard is dropped.
    pub(crate) fn waiting(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// A connection or the right to open one. With `fresh`, never a pooled one. Dropping the future leaves the queue.
    pub(crate) async fn claim(self: &Arc<Server>, database: u64, fresh: bool) -> Claim {
        loop {
            let granted = match self.grant_or_queue(database, fresh) {
                Ok(grant) => Ok(grant),
                Err(queued) => queued.await,
            };
            match granted {
                Ok(Grant::Claim(claim)) => return claim,
                Ok(Grant::TakeOver(open)) => {
                    tracing::debug!(server = %self.key, "connection of another database closed for this one");
                    let mut slot = open.close_keeping_slot(CLOSE_TIMEOUT).await;
                    self.rededicate(&mut slot, database);
                    return Claim::Slot(slot);
                }
                // The queue lives as long as the server, which is borrowed here.
                Err(_) => {}
            }
        }
    }

    fn grant_or_queue(
        self: &Arc<Server>,
        database: u64,
        fresh: bool,
    ) -> Result<Grant, oneshot::Receiver<Grant>> {
        let mut state = self.state();
        // Whoever has an idle connection passes by those who wait for one. The others queue behind them.
        if !fresh && let Some(open) = state.take_own(database) {
            return Ok(Grant::Claim(Claim::Pooled(open)));
        }
        if state.queue.is_empty()
            && let Some(grant) = self.find(&mut state, database, fresh)
        {
            return Ok(grant);
        }
        let (grant, granted) = oneshot::channel();
        state.queue.push_back(Queued { database, fresh, grant });
        self.keep_sweeping(&mut state);
        self.serve(state);
        self.queued.notify_one();
        Err(granted)
    }

    /// The right to open one more connection, if nobody waits for it.
    pub(crate) fn spare(self: &Arc<Server>, database: u64) -> Option<Slot> {
        let mut state = self.state();
        if state.open >= self.limit || !state.queue.is_empty() {
            return None;
        }
        state.open += 1;
        state.enter(database);
        Some(Slot { server: Arc::clone(self), database })
    }

    /// What this database may have now.
    fn find(self: &Arc<Server>, state: &mut State, database: u64, fresh: bool) -> Option<Grant> {
        if !fresh && let Some(open) = state.take_own(database) {
            return Some(Grant::Claim(Claim::Pooled(open)));
        }
        if state.open < self.limit {
            state.open += 1;
            state.enter(database);
            return Some(Grant::Claim(Claim::Slot(Slot { server: Arc::clone(self), database })));
        }
        if !fresh && state.open_by.contains_key(&database) {
            return None;
        }
        let spare = state.idle.iter().position(Idle::may_be_taken)?;
        state.idle.remove(spare).map(|idle| Grant::TakeOver(idle.open))
    }

    /// Gives the waiting what they may have, the longest waiting first.
    fn serve(self: &Arc<Server>, mut state: MutexGuard<'_, State>) {
        let mut undelivered = Vec::new();
        let mut at = 0;
        while let Some(Queued { database, fresh, grant }) = state.queue.get(at) {
            let (database, fresh, gone) = (*database, *fresh, grant.is_closed());
            let found = if gone { None } else { self.find(&mut state, database, fresh) };
            match found {
                None if !gone => at += 1,
                found => {
                    let queued = state.queue.remove(at);
                    if let (Some(queued), Some(found)) = (queued, found)
                        && let Err(back) = queued.grant.send(found)
                    {
                        undelivered.push(back);
                    }
                }
            }
        }
        // A slot must not be dropped under the lock. Its drop serves the next.
        drop(state);
        drop(undelivered);
    }

    /// Hands a slot from the database it was used for to another.
    fn rededicate(&self, slot: &mut Slot, database: u64) {
        let mut state = self.state();
        state.leave(slot.database);
        state.enter(database);
        slot.database = database;
    }

    /// Keeps a connection that works for the next one who needs it, or closes it if it is too old.
    pub(crate) fn keep(self: &Arc<Server>, open: Open, timeout: Duration) {
        // Without a runtime nobody would ever close it: this is a program on its way out.
        let Ok(runtime) = Handle::try_current() else { return };
        if open.is_over() {
            self.chores.once(Chore::Close, &runtime, open.close(CLOSE_TIMEOUT));
            return;
        }
        let mut state = self.state();
        state.idle.push_back(Idle { open, since: Instant::now(), timeout });
        self.keep_sweeping(&mut state);
        self.serve(state);
    }

    /// Looks up the server's name once in a while: what is connected to addresses that it has left is closed.
    pub(crate) fn follow_name(self: &Arc<Server>, spec: &DatabaseSpec) {
        if spec.is_local() || !self.names.is_due() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let (server, host, port) = (Arc::clone(self), spec.host.clone(), spec.port);
        self.chores.once(Chore::LookUp, &runtime, async move {
            // An error is no news: whoever connects anew reports it.
            if let Ok(addresses) = look_up(&host, port).await
                && server.names.note(&addresses)
            {
                tracing::info!(server = %server.key, "the name of the server leads elsewhere now, its connections are replaced");
            }
        });
    }

    /// Starts the sweeper unless it runs.
    fn keep_sweeping(self: &Arc<Server>, state: &mut State) {
        // Its runtime may have ended before us: actors' threads come and go.
        if state.sweeper.as_ref().is_none_or(JoinHandle::is_finished)
            && let Ok(runtime) = Handle::try_current()
        {
            let (server, queued) = (Arc::downgrade(self), Arc::clone(&self.queued));
            state.sweeper = Some(self.chores.sweep(&runtime, server, queued));
        }
    }

    /// Takes away all idle connections of a database.
    pub(crate) fn take_idle(&self, database: u64) -> Vec<Open> {
        let mut state = self.state();
        let (taken, kept): (Vec<_>, Vec<_>) =
            state.idle.drain(..).partition(|idle| idle.open.slot.database == database);
        state.idle = kept.into();
        taken.into_iter().map(|idle| idle.open).collect()
    }

    /// Open and idle connections of a database.
    pub(crate) fn count(&self, database: u64) -> (usize, usize) {
        let state = self.state();
        let idle = state.idle.iter().filter(|idle| idle.open.slot.database == database).count();
        (state.open_by.get(&database).copied().unwrap_or(0), idle)
    }

    fn usage(&self) -> ServerUsage {
        let state = self.state();
        ServerUsage {
            server: self.key.clone(),
            open: state.open,
            idle: state.idle.len(),
            in_use: state.open - state.idle.len(),
            waiting: self.waiting.load(Ordering::Relaxed),
            limit: self.limit,
            opened: state.opened,
        }
    }

    /// Takes what has been idle or open for too long, serves the waiting, and says when to look again; `None` = not needed.
    fn tend(self: &Arc<Server>) -> (Vec<Open>, Option<Duration>) {
        #[cfg(test)]
        self.chores.fault();
        let mut state = self.state();
        let (expired, kept): (Vec<_>, Vec<_>) = state
            .idle
            .drain(..)
            .partition(|idle| idle.since.elapsed() >= idle.timeout || idle.open.is_over());
        state.idle = kept.into();
        let again = match (state.queue.is_empty(), state.idle.is_empty()) {
            (false, _) => Some(WAITED_FOR_INTERVAL),
            (true, false) => Some(SWEEP_INTERVAL),
            (true, true) => None,
        };
        if again.is_none() {
            // Under the lock, so that the next who needs one sees it and starts another.
            state.sweeper = None;
        }
        self.serve(state);
        (expired.into_iter().map(|idle| idle.open).collect(), again)
    }

    /// The lock on the state. A connection or a slot must not be dropped under it: a slot's drop takes it too.
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// See [`Server::waiting`].
pub(crate) struct Waiting<'s>(&'s Server);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes idle connections when their time has come, and hands them on when others wait, as long as there are any.
async fn sweep(server: Weak<Server>, queued: Arc<Notify>) {
    let mut pause = WAITED_FOR_INTERVAL;
    loop {
        let _ = tokio::time::timeout(pause, queued.notified()).await;
        let Some(server) = server.upgrade() else { return };
        let (expired, again) = server.tend();
        if !expired.is_empty() {
            tracing::debug!(server = %server.key, connections = expired.len(), "idle connections closed");
            // Beside, because the waiting must not wait for goodbyes.
            let closing = future::join_all(expired.into_iter().map(|open| open.close(CLOSE_TIMEOUT)));
            server.chores.once(Chore::Close, &Handle::current(), closing.map(drop));
        }
        let Some(again) = again else { return };
        pause = again;
    }
}

/// Locks even after a panic elsewhere: all changes under these locks are complete at every point that can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn slot(claim: Claim) -> Slot {
        match claim {
            Claim::Slot(slot) => slot,
            Claim::Pooled(_) => panic!("nothing was pooled"),
        }
    }

    #[tokio::test]
    async fn slots_are_bounded_per_server_and_come_back() {
        let budget = ConnectionBudget::new(2);
        let (server, a) = budget.register("one:5432");
        let (same, b) = budget.register("one:5432");
        let (other, c) = budget.register("two:5432");
        assert!(Arc::ptr_eq(&server, &same));
        assert!(!Arc::ptr_eq(&server, &other));

        let first = slot(server.claim(a, false).await);
        let second = slot(server.claim(b, false).await);
        assert_eq!((server.count(a), server.count(b)), ((1, 0), (1, 0)));

        let mut third = std::pin::pin!(server.claim(b, false));
        assert!(third.as_mut().now_or_never().is_none(), "a third slot on a server with a budget of two");
        let _elsewhere = slot(other.claim(c, false).await);

        drop(first);
        let _third = slot(third.await);
        assert_eq!((server.count(a), server.count(b)), ((0, 0), (2, 0)));
        assert_eq!(budget.servers().iter().map(|s| (s.open, s.limit)).collect::<Vec<_>>(), [(2, 2), (1, 2)]);
        drop(second);
    }

    impl Chores {
        pub(super) fn fault(&self) {
            let taken =
                self.faults.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            assert!(taken.is_err(), "a test made the sweeper panic");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweeper_that_panics_is_reported_and_starts_again() {
        let budget = ConnectionBudget::new(1);
        let panics = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&panics);
        budget.observe_panics(move |chore| {
            assert_eq!(chore, Chore::Sweep);
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let (server, a) = budget.register("one:5432");
        let _first = slot(server.claim(a, false).await);
        budget.0.chores.faults.store(3, Ordering::Relaxed);
        // Who waits keeps the sweeper going.
        let waits = server.claim(a, false);
        assert!(tokio::time::timeout(Duration::from_secs(10), waits).await.is_err());
        assert_eq!(panics.load(Ordering::Relaxed), 3);
        assert_eq!(budget.0.chores.faults.load(Ordering::Relaxed), 0);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(server.state().sweeper.is_none(), "nothing is left to sweep, and it has looked");
    }

    #[tokio::test]
    async fn a_server_without_databases_is_forgotten() {
        let budget = ConnectionBudget::new(1);
        drop(budget.register("gone:5432"));
        assert!(budget.servers().is_empty());
    }

    #[test]
    fn a_budget_of_nothing_is_one() {
        assert_eq!(ConnectionBudget::new(0).per_server(), 1);
    }
}
