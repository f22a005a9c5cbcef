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
//! Who gets one. A database's own idle connection first. Who needs a new one queues; the queue is served in order, tenants of more
//! weight more often (`balance_sync_engine::fair`), each time a slot becomes free, a connection idle, or an idle one old enough to be taken away:
//!
//! - A database that has a connection takes none away from another: it waits for its own, or for a free slot.
//! - A connection is left to its database for half a second, and then as long as its pauses are shorter than 20 ms. Moving
//!   one costs both sides some milliseconds of work; without this bound, more active databases than slots would do little else.
//! - After two seconds it goes to the next in the queue as soon as its statement has ended: a backlog must not keep a
//!   neighbour waiting until it is empty.
//! - With more than four in the queue for each connection these times become shorter, so that all have had one after two seconds
//!   and what the server takes for the logins (`Tenure`).
//!
//! Of the connections at most `AT_WORK` write a batch at the same time; those who have one take turns, in order. More
//! don't make a server faster, and each holds a batch in memory. A turn ends with its batch, or when a statement takes longer
//! than `LONGEST_TURN`.
//!
//! While a database waits its batch grows, so the fewer turns carry more. Slots are per server: one that does not answer
//! holds up no other operation. Within a server one database uses at most its own `max_connections`, each for at most the
//! connect timeout or the operation timeout.

mod chores;
mod connection;
mod fleet;
mod logins;
mod server;
mod write_slots;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use chores::Chores;
use fleet::Shared;
use serde::{Deserialize, Serialize};

use crate::homes::Homes;

pub use chores::Chore;
pub(crate) use connection::{CLOSE_TIMEOUT, Open};
pub use fleet::{FleetDemand, FleetLimit, FleetUsage};
pub(crate) use server::{Claim, LONGEST_TURN, Server};
pub(crate) use write_slots::WriteSlot;

/// The bound on open connections per server, for all databases of a worker. A cheap clone of one shared state.
#[derive(Clone)]
pub struct ConnectionBudget(Arc<Inner>);

struct Inner {
    per_server: usize,
    shared: Option<Arc<Shared>>,
    next_database: AtomicU64,
    servers: Mutex<HashMap<String, Weak<Server>>>,
    homes: Homes,
    chores: Arc<Chores>,
}

/// The connections of this worker on one server, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerUsage {
    /// The server, `host:port`.
    pub server: String,
    /// Connections that exist, those being opened or closed included. Never above `limit`.
    pub open: u64,
    /// Idle connections.
    pub idle: u64,
    /// Connections in use, those being opened or closed included.
    pub in_use: u64,
    /// Operations that wait for a connection.
    pub waiting: u64,
    /// The budget: `postgres.connections_per_server`, or what this worker holds of the fleet's, if that is less. `open` exceeds it
    /// only while some are being closed.
    pub limit: u64,
    /// The fleet's connections, where it has one budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetUsage>,
    /// By how many milliseconds the clock of this worker's host is ahead of the server's, at least: measured whenever a connection is
    /// opened. None = not yet, or the worker doesn't know how.
    #[serde(default)]
    pub clock_ahead_ms: Option<i64>,
    /// Connections opened so far, attempts included. Growing fast, it shows that too many active databases share too few.
    /// Known in its own process only.
    #[serde(skip)]
    pub opened: u64,
}

impl ConnectionBudget {
    /// A budget of so many open connections per server; 0 is taken for 1, as no work is possible without any.
    #[must_use]
    pub fn new(per_server: u32) -> ConnectionBudget {
        ConnectionBudget::build(per_server, None)
    }

    /// A part of a budget that the whole fleet shares: none, until the other workers have been asked
    /// ([`ConnectionBudget::restrict`]). Where the session is ours, the server ends it when it is not used for `session_idle`.
    #[must_use]
    pub fn shared(per_server: u32, of_fleet: u32, session_idle: Duration) -> ConnectionBudget {
        ConnectionBudget::build(per_server, Some(Arc::new(Shared::new(of_fleet.max(1), session_idle))))
    }

    fn build(per_server: u32, shared: Option<Arc<Shared>>) -> ConnectionBudget {
        ConnectionBudget(Arc::new(Inner {
            per_server: per_server.max(1) as usize,
            shared,
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

    /// What stands between here and each server is found out again, with the next connection.
    pub fn check_ways_again(&self) {
        for server in lock(&self.0.servers).values().filter_map(Weak::upgrade) {
            server.is_direct.wear_out();
        }
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

    /// What all workers of the fleet together may have on a server, if they share a budget.
    #[must_use]
    pub fn of_fleet(&self) -> Option<u32> {
        self.0.shared.as_ref().map(|shared| shared.budget)
    }

    /// What this worker needs on each server of a budget that the fleet shares. Until the next call of
    /// [`ConnectionBudget::restrict`] it has no more than is kept.
    #[must_use]
    pub fn demands(&self) -> Vec<FleetDemand> {
        self.each().iter().map(|server| server.demand()).collect()
    }

    /// Keeps to these parts of the fleet's budget until this moment.
    pub fn restrict(&self, until: Instant, limits: &[FleetLimit]) {
        let Some(shared) = &self.0.shared else { return };
        shared.hold_until(Some(until));
        for server in self.each() {
            if let Some(limit) = limits.iter().find(|limit| limit.server == server.key()) {
                server.restrict(limit);
            }
        }
    }

    /// Closes all connections at once, and opens none before the next call of [`ConnectionBudget::restrict`].
    pub fn lapse(&self) {
        let Some(shared) = &self.0.shared else { return };
        shared.hold_until(None);
        for server in self.each() {
            server.lapse();
        }
        shared.revoke();
    }

    /// Waits until more connections are needed on some server than this worker may have.
    pub async fn more_wanted(&self) {
        match &self.0.shared {
            Some(shared) => shared.wanted.notified().await,
            None => std::future::pending().await,
        }
    }

    fn each(&self) -> Vec<Arc<Server>> {
        lock(&self.0.servers).values().filter_map(Weak::upgrade).collect()
    }

    /// The servers that have databases, in order of name.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerUsage> {
        let mut usage: Vec<ServerUsage> = self.each().iter().map(|server| server.usage()).collect();
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
        let server = Arc::new(Server::new(
            server_key.to_owned(),
            self.0.per_server,
            self.0.shared.clone(),
            Arc::clone(&self.0.chores),
        ));
        servers.insert(server_key.to_owned(), Arc::downgrade(&server));
        (server, database)
    }
}

impl fmt::Debug for ConnectionBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionBudget").field("per_server", &self.0.per_server).finish_non_exhaustive()
    }
}

/// Locks even after a panic elsewhere: all changes under these locks are complete at every point that can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::AtomicUsize;

    use balance_sync_engine::fair::Weight;
    use futures::FutureExt;

    use super::connection::Slot;
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

        let first = slot(server.claim(a, Weight::ONE, false).await);
        let second = slot(server.claim(b, Weight::ONE, false).await);
        assert_eq!((server.count(a), server.count(b)), ((1, 0), (1, 0)));

        let mut third = std::pin::pin!(server.claim(b, Weight::ONE, false));
        assert!(third.as_mut().now_or_never().is_none(), "a third slot on a server with a budget of two");
        let _elsewhere = slot(other.claim(c, Weight::ONE, false).await);

        drop(first);
        let _third = slot(third.await);
        assert_eq!((server.count(a), server.count(b)), ((0, 0), (2, 0)));
        assert_eq!(budget.servers().iter().map(|s| (s.open, s.limit)).collect::<Vec<_>>(), [(2, 2), (1, 2)]);
        drop(second);
    }

    #[tokio::test]
    async fn a_tenant_of_more_weight_gets_slots_more_often() {
        let budget = ConnectionBudget::new(1);
        let (server, _) = budget.register("one:5432");
        let weights = [3, 1, 1].map(|weight| Weight::new(weight).unwrap());
        let databases = weights.map(|weight| (budget.register("one:5432").1, weight));
        let claim = |(database, weight): (u64, Weight)| {
            let server = Arc::clone(&server);
            Box::pin(async move { server.claim(database, weight, false).await })
        };
        let mut held = Some(slot(claim(databases[1]).await));
        let mut waiting = databases.map(claim);
        assert!(waiting.iter_mut().all(|waits| waits.as_mut().now_or_never().is_none()));
        let mut served = Vec::new();
        for _ in 0..5 * 12 {
            drop(held.take());
            for (who, waits) in waiting.iter_mut().enumerate() {
                if let Some(claimed) = waits.as_mut().now_or_never() {
                    (held, *waits) = (Some(slot(claimed)), claim(databases[who]));
                    assert!(waits.as_mut().now_or_never().is_none());
                    served.push(who);
                }
            }
        }
        let of = |who: usize| served[10..].iter().filter(|served| **served == who).count();
        assert_eq!((of(0), of(1), of(2)), (30, 10, 10), "{served:?}");
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
        let _first = slot(server.claim(a, Weight::ONE, false).await);
        budget.0.chores.faults.store(3, Ordering::Relaxed);
        // Who waits keeps the sweeper going.
        let waits = server.claim(a, Weight::ONE, false);
        assert!(tokio::time::timeout(Duration::from_secs(10), waits).await.is_err());
        assert_eq!(panics.load(Ordering::Relaxed), 3);
        assert_eq!(budget.0.chores.faults.load(Ordering::Relaxed), 0);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(server.state().sweeper.is_none(), "nothing is left to sweep, and it has looked");
    }

    #[tokio::test]
    async fn a_worker_is_short_as_long_as_it_could_use_more_than_it_may_have() {
        let budget = ConnectionBudget::shared(8, 10, Duration::from_secs(6));
        let (server, a) = budget.register("one:5432");
        let until = Instant::now() + Duration::from_secs(60);
        let allow = |limit: u32| {
            assert_eq!(budget.demands().len(), 1);
            let usage = FleetUsage { budget: 10, ..FleetUsage::default() };
            budget.restrict(until, &[FleetLimit { server: "one:5432".to_owned(), limit, usage }]);
            server.state().short_since
        };
        assert_eq!(allow(1), None, "one is what it wants before anything is needed");
        let _first = slot(server.claim(a, Weight::ONE, false).await);
        let mut second = Box::pin(server.claim(a, Weight::ONE, false));
        assert!(second.as_mut().now_or_never().is_none());
        let since = allow(1).unwrap();
        assert_eq!(allow(1), Some(since), "it goes on");
        server.state().short_since = since.checked_sub(Duration::from_secs(90));
        assert!(budget.servers()[0].fleet.unwrap().short_seconds >= 90);
        assert_eq!(allow(2), None);
        let _second = slot(second.await);
        assert_eq!(budget.servers()[0].fleet.unwrap().short_seconds, 0);
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
