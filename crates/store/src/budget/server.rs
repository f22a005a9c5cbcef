//! One server: who gets a connection, in which order, and from whom.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use balance_sync_engine::fair::{FairQueue, Weight};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::chores::{Chore, Chores};
use super::connection::{CLOSE_TIMEOUT, Idle, Open, Slot, Tenure};
use super::fleet::{FleetDemand, FleetLimit, FleetUsage, Shared};
use super::logins::Logins;
use super::write_slots::WriteSlots;
use super::{ServerUsage, lock};
use crate::known::Known;
use crate::mode::Found;
use crate::names::{Names, look_up};
use crate::spec::DatabaseSpec;

/// How often idle connections are looked at, at the least.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The same while an operation waits for one of them.
pub(super) const WAITED_FOR_INTERVAL: Duration = Duration::from_millis(20);

/// Batches that are written at once to one server at most: several times the cores of a common one. A commit that waits for
/// a disk or a replica leaves room for the others, and an operation that waits for its turn gathers meanwhile.
const AT_WORK: usize = 16;

/// A statement that takes longer gives its turn up: it waits for a lock or an answer, which is no work, and a few tenants with
/// locked tables must not hold up all others of their server. A batch takes some ten milliseconds.
pub(crate) const LONGEST_TURN: Duration = Duration::from_millis(200);

/// One server: its slots, its idle connections, and who waits for them.
pub(crate) struct Server {
    pub(super) key: String,
    limit: usize,
    /// Batches that may be written at once.
    pub(crate) write_slots: Arc<WriteSlots>,
    waiting: AtomicUsize,
    /// Whether nothing stands between here and the server.
    pub(crate) is_direct: Found<bool>,
    /// Logins that may be made at once.
    pub(crate) logins: Logins,
    /// Where its name leads.
    pub(crate) names: Names,
    /// What was found on its newest connections.
    pub(crate) known: Known,
    /// An operation has queued: the sweeper is to look sooner.
    queued: Arc<Notify>,
    /// The fleet has one budget for this server.
    pub(crate) shared: Option<Arc<Shared>>,
    state: Mutex<State>,
    pub(super) chores: Arc<Chores>,
}

#[derive(Default)]
pub(super) struct State {
    /// Slots given out.
    pub(super) open: usize,
    /// Slots given to databases so far.
    opened: u64,
    /// By how many milliseconds this host's clock was ahead of the server's when a connection was last opened, at least.
    clock_ahead_ms: Option<i64>,
    open_by: HashMap<u64, usize>,
    /// The longest idle first.
    idle: VecDeque<Idle>,
    /// The longest waiting first, by the weights of tenants.
    queue: FairQueue<Queued>,
    /// When an operation was last done with a connection that works, or got a new one.
    progressed: Option<Instant>,
    /// Of a budget that the fleet shares, this worker's part.
    allowed: usize,
    /// Of `open`, those that are closed because there are too many.
    closing: usize,
    /// The most that could be used since it was last asked for.
    peak: usize,
    /// What was last asked for of a budget that the fleet shares.
    wanted: usize,
    /// Since when less than that has been had.
    pub(super) short_since: Option<Instant>,
    fleet: FleetUsage,
    pub(super) sweeper: Option<JoinHandle<()>>,
}

struct Queued {
    database: u64,
    fresh: bool,
    grant: oneshot::Sender<Grant>,
}

/// What an operation gets that needs a connection.
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

/// What there is to give to those that wait. Thousands may: they are looked at only when it may suit them.
enum Offer {
    /// A free slot, or a connection that may be closed.
    ToAll,
    /// Idle connections of these databases.
    ToThese(Vec<u64>),
}

impl Offer {
    fn may_suit(&self, database: u64) -> bool {
        match self {
            Self::ToAll => true,
            Self::ToThese(databases) => databases.contains(&database),
        }
    }
}

impl State {
    /// The most recently used idle connection of a database.
    fn take_own(&mut self, database: u64) -> Option<Open> {
        let own = self.idle.iter().rposition(|idle| idle.open.slot.database == database)?;
        self.idle.remove(own).map(|idle| idle.open)
    }

    fn note_demand(&mut self) {
        self.peak = self.peak.max(self.open - self.closing.min(self.open) + self.queue.len());
    }

    fn enter(&mut self, database: u64) {
        self.opened += 1;
        *self.open_by.entry(database).or_default() += 1;
    }

    pub(super) fn leave(&mut self, database: u64) {
        if let Some(count) = self.open_by.get_mut(&database) {
            *count -= 1;
            if *count == 0 {
                self.open_by.remove(&database);
            }
        }
    }
}

impl Server {
    pub(super) fn new(key: String, limit: usize, shared: Option<Arc<Shared>>, chores: Arc<Chores>) -> Server {
        Server {
            key,
            limit,
            write_slots: WriteSlots::new(AT_WORK),
            waiting: AtomicUsize::new(0),
            is_direct: Found::nothing(),
            logins: Logins::new(),
            names: Names::default(),
            known: Known::default(),
            queued: Arc::default(),
            shared,
            state: Mutex::new(State::default()),
            chores,
        }
    }

    /// Notes by how much this host's clock is ahead of the server's.
    pub(crate) fn note_clock(&self, ahead_ms: i64) {
        self.state().clock_ahead_ms = Some(ahead_ms);
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether the fleet has one budget for this server.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// How many connections may be open now.
    fn allowed(&self, state: &State) -> usize {
        match &self.shared {
            None => self.limit,
            Some(shared) if shared.is_held() => state.allowed.min(self.limit),
            Some(_) => 0,
        }
    }

    /// Whether one more could be opened now.
    pub(crate) fn has_spare(&self) -> bool {
        let state = self.state();
        state.open < self.allowed(&state) && state.queue.is_empty()
    }

    /// Counts the caller among the waiting until the guard is dropped.
    pub(crate) fn waiting(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// A connection or the right to open one. With `fresh`, never a pooled one. Dropping the future leaves the queue.
    pub(crate) async fn claim(self: &Arc<Server>, database: u64, weight: Weight, fresh: bool) -> Claim {
        loop {
            let granted = match self.grant_or_queue(database, weight, fresh) {
                Ok(grant) => Ok(grant),
                Err(queued) => queued.await,
            };
            match granted {
                Ok(Grant::Claim(claim)) => return claim,
                Ok(Grant::TakeOver(open)) => {
                    tracing::debug!(server = %self.key, "connection of another database closed for this one");
                    let mut slot = open.close_keeping_slot(CLOSE_TIMEOUT).await;
                    slot.linger().await;
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
        weight: Weight,
        fresh: bool,
    ) -> Result<Grant, oneshot::Receiver<Grant>> {
        let mut state = self.state();
        // An operation with an idle connection passes those that wait for one. The others queue behind them.
        if !fresh
            && self.is_held()
            && let Some(open) = state.take_own(database)
        {
            return Ok(Grant::Claim(Claim::Pooled(open)));
        }
        if state.queue.is_empty()
            && let Some(grant) = self.find(&mut state, database, fresh)
        {
            return Ok(grant);
        }
        let (grant, granted) = oneshot::channel();
        state.queue.push(weight, Queued { database, fresh, grant });
        state.note_demand();
        if let Some(shared) = &self.shared
            && state.open >= self.allowed(&state)
            && self.allowed(&state) < self.limit
        {
            shared.wanted.notify_one();
        }
        self.keep_sweeping(&mut state);
        self.serve(state);
        self.queued.notify_one();
        Err(granted)
    }

    /// The right to open one more connection, if no operation waits for it.
    pub(crate) fn spare(self: &Arc<Server>, database: u64) -> Option<Slot> {
        let mut state = self.state();
        if state.open >= self.allowed(&state) || !state.queue.is_empty() {
            return None;
        }
        state.open += 1;
        state.enter(database);
        Some(Slot::new(self, database))
    }

    /// What this database may have now.
    fn find(self: &Arc<Server>, state: &mut State, database: u64, fresh: bool) -> Option<Grant> {
        if !self.is_held() {
            return None;
        }
        if !fresh && let Some(open) = state.take_own(database) {
            return Some(Grant::Claim(Claim::Pooled(open)));
        }
        let allowed = self.allowed(state);
        if state.open < allowed {
            state.open += 1;
            state.enter(database);
            state.note_demand();
            return Some(Grant::Claim(Claim::Slot(Slot::new(self, database))));
        }
        if state.open - state.closing.min(state.open) > allowed {
            return None;
        }
        if !fresh && state.open_by.contains_key(&database) {
            return None;
        }
        let spare = self.takeable(state)?;
        state.idle.remove(spare).map(|idle| Grant::TakeOver(idle.open))
    }

    /// Which idle connection may be closed for one of another database.
    fn takeable(&self, state: &State) -> Option<usize> {
        let tenure = Tenure::of(state.queue.len(), self.allowed(state));
        state.idle.iter().position(|idle| idle.may_be_taken(tenure))
    }

    /// Gives the waiting what they may have, in the order of the queue.
    pub(super) fn serve(self: &Arc<Server>, mut state: MutexGuard<'_, State>) {
        let mut undelivered = Vec::new();
        let mut at = 0;
        let mut offer = self.offer(&state);
        while let Some(Queued { database, fresh, grant }) = state.queue.get(at) {
            let (database, fresh, gone) = (*database, *fresh, grant.is_closed());
            if !gone && !offer.may_suit(database) {
                at += 1;
                continue;
            }
            let found = if gone { None } else { self.find(&mut state, database, fresh) };
            match found {
                None if gone => drop(state.queue.leave(at)),
                None => at += 1,
                Some(found) => {
                    if let Some(queued) = state.queue.serve(at) {
                        match queued.grant.send(found) {
                            Ok(()) => {}
                            Err(back) => undelivered.push(back),
                        }
                        offer = self.offer(&state);
                    }
                }
            }
        }
        // A slot must not be dropped under the lock. Its drop serves the next.
        drop(state);
        drop(undelivered);
    }

    /// What there is to give.
    fn offer(&self, state: &State) -> Offer {
        if state.open < self.allowed(state) || self.takeable(state).is_some() {
            return Offer::ToAll;
        }
        Offer::ToThese(state.idle.iter().map(|idle| idle.open.slot.database).collect())
    }

    /// When the queue last moved: an operation was done with a connection that works. A slot that goes from one vain attempt to connect
    /// to the next is no progress, and a login after which no statement is answered is none.
    pub(crate) fn progressed(&self) -> Option<Instant> {
        self.state().progressed
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
        // Without a runtime it would never be closed: this is a program on its way out.
        let Ok(runtime) = Handle::try_current() else { return };
        self.state().progressed = Some(Instant::now());
        if open.is_over() {
            self.chores.once(Chore::Close, &runtime, open.close(CLOSE_TIMEOUT));
            return;
        }
        let timeout = self.shared.as_ref().map_or(timeout, |shared| shared.idle_timeout(timeout));
        let mut state = self.state();
        if state.open - state.closing.min(state.open) > self.allowed(&state) {
            self.close_beside(&mut state, &runtime, open);
            return;
        }
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
            // The error isn't reported here: the next connection reports it.
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

    pub(crate) fn usage(&self) -> ServerUsage {
        let state = self.state();
        ServerUsage {
            fleet: self.shared.as_ref().map(|_| FleetUsage {
                short_seconds: state.short_since.map_or(0, |since| since.elapsed().as_secs()),
                ..state.fleet
            }),
            server: self.key.clone(),
            open: state.open as u64,
            idle: state.idle.len() as u64,
            in_use: (state.open - state.idle.len()) as u64,
            waiting: self.waiting.load(Ordering::Relaxed) as u64,
            limit: self.allowed(&state) as u64,
            clock_ahead_ms: state.clock_ahead_ms,
            opened: state.opened,
        }
    }

    /// Takes what has been idle or open for too long, serves the waiting, and says when to look again; `None` = not needed.
    pub(super) fn tend(self: &Arc<Server>) -> (Vec<Open>, Option<Duration>) {
        #[cfg(test)]
        self.chores.fault();
        let mut state = self.state();
        let (expired, kept): (Vec<_>, Vec<_>) = state
            .idle
            .drain(..)
            .partition(|idle| idle.since.elapsed() >= idle.timeout || idle.open.is_over());
        state.idle = kept.into();
        self.trim(&mut state);
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

    /// Whether connections may be open at all.
    fn is_held(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.is_held())
    }

    /// What is needed of a budget that the fleet shares.
    pub(super) fn demand(&self) -> FleetDemand {
        let mut state = self.state();
        state.note_demand();
        let wanted = std::mem::take(&mut state.peak).clamp(1, self.limit);
        state.wanted = wanted;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        FleetDemand {
            server: self.key.clone(),
            kept: count(self.allowed(&state).max(state.open)),
            wanted: count(wanted),
        }
    }

    /// Keeps to another part of the budget from now on.
    pub(super) fn restrict(self: &Arc<Server>, to: &FleetLimit) {
        let mut state = self.state();
        state.allowed = to.limit as usize;
        state.fleet = to.usage;
        let is_short = state.wanted > state.allowed;
        state.short_since = is_short.then(|| state.short_since.unwrap_or_else(Instant::now));
        self.trim(&mut state);
        self.serve(state);
    }

    /// May have none from now on.
    pub(super) fn lapse(self: &Arc<Server>) {
        let mut state = self.state();
        state.allowed = 0;
        state.fleet.held = 0;
        self.trim(&mut state);
    }

    /// Closes idle connections as long as there are too many, the longest idle first.
    fn trim(self: &Arc<Server>, state: &mut State) {
        // Without a runtime they stay until there is one: this is a program on its way out.
        let Ok(runtime) = Handle::try_current() else { return };
        while state.open - state.closing.min(state.open) > self.allowed(state)
            && let Some(idle) = state.idle.pop_front()
        {
            self.close_beside(state, &runtime, idle.open);
        }
    }

    /// Closes a connection of too many.
    fn close_beside(self: &Arc<Server>, state: &mut State, runtime: &Handle, open: Open) {
        state.closing += 1;
        let counted = Closing(Arc::clone(self));
        self.chores.once(Chore::Close, runtime, async move {
            let mut slot = open.close_keeping_slot(CLOSE_TIMEOUT).await;
            slot.linger().await;
            drop(counted);
            drop(slot);
        });
    }

    /// The lock on the state. A connection or a slot must not be dropped under it: a slot's drop takes it too.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// One of the connections that are closed because there are too many.
struct Closing(Arc<Server>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.state().closing -= 1;
    }
}

/// See [`Server::waiting`].
pub(crate) struct Waiting<'s>(&'s Server);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
