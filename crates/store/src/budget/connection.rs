//! An open connection, the slot it occupies, and how long it is left to its database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng as _;
use tokio::runtime::Handle;

use super::chores::Chore;
use super::server::Server;
use crate::connect::Connected;
use crate::examine::Examined;
use crate::names::Addresses;
use crate::relay::Connection;
use crate::sql::Target;

/// The ages at which connections are closed lie between this part of their greatest age and the whole, lest those that were opened
/// together are opened anew together.
const YOUNGEST: f64 = 0.8;

/// How long connections are left to their databases although others wait for one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tenure {
    /// So long in any case.
    least: Duration,
    /// After that, until it has been idle for so long.
    spare: Duration,
    /// After so long it is taken away between two statements.
    longest: Duration,
}

impl Tenure {
    const ALONE: Tenure = Tenure {
        least: Duration::from_millis(500),
        spare: Duration::from_millis(20),
        longest: Duration::from_secs(2),
    };

    /// The tenures of a queue, one after the other over all connections, take no longer than this: many more databases at work than
    /// connections, each with a role of its own, would otherwise wait for pauses in which nothing is done. What bounds
    /// them then is how fast the server takes logins.
    const ROUND: Duration = Duration::from_secs(2);

    /// With so many in the queue for so many connections.
    pub(super) fn of(queued: usize, connections: usize) -> Tenure {
        let fair = Self::ROUND.as_secs_f64() * connections as f64 / queued.max(1) as f64;
        let part = (fair / Self::ALONE.least.as_secs_f64()).min(1.0);
        let Tenure { least, spare, longest } = Self::ALONE;
        Tenure { least: least.mul_f64(part), spare: spare.mul_f64(part), longest: longest.mul_f64(part) }
    }

    fn is_over(self, age: Duration, idle: Duration) -> bool {
        age >= self.longest || (age >= self.least && idle >= self.spare)
    }
}

/// How long a session may last on a server after its socket was closed without a goodbye: as often as it looks at whether the client
/// of a statement is still there, and the end of its transaction.
const LINGER: Duration = Duration::from_millis(1_000);

/// How long a polite goodbye may take before the socket is simply closed.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// An open connection that is not in use.
pub(super) struct Idle {
    pub(super) open: Open,
    pub(super) since: Instant,
    pub(super) timeout: Duration,
}

/// An open connection with the slot it occupies. Dropping it closes the socket without a word.
pub(crate) struct Open {
    pub(crate) connection: Connection,
    /// What was found when it was opened.
    pub(crate) examined: Box<Examined>,
    /// What statements on it are written for.
    pub(crate) target: Target,
    pub(super) slot: Slot,
    opened: Instant,
    /// When it has reached its greatest age.
    ends: Instant,
    /// The addresses of its server's name when it was opened.
    addresses: Addresses,
}

impl Open {
    pub(crate) fn new(connected: Connected, slot: Slot, target: Target, max_age: Duration) -> Open {
        let Connected { connection, examined, is_presumed: _, addresses } = connected;
        let opened = Instant::now();
        let ends = opened + max_age.mul_f64(rand::rng().random_range(YOUNGEST..=1.0));
        Open { connection, examined: Box::new(examined), target, slot, opened, ends, addresses }
    }

    /// Whether it is to be closed: it is old, or its server's name leads elsewhere now.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.ends || self.slot.server.names.has_left(&self.addresses)
    }

    /// Says goodbye to the server, within `limit`; the slot is free afterwards in any case.
    pub(crate) async fn close(self, limit: Duration) {
        drop(self.close_keeping_slot(limit).await);
    }

    pub(super) async fn close_keeping_slot(self, limit: Duration) -> Slot {
        let Open { connection, mut slot, .. } = self;
        // An error or a timeout changes nothing: the socket is closed either way.
        if !slot.server.is_shared() {
            let _ = tokio::time::timeout(limit, connection.close()).await;
        } else if let Ok(Ok(())) = tokio::time::timeout(limit, connection.close_and_wait()).await {
            slot.lingers = false;
        }
        slot
    }
}

impl Idle {
    pub(super) fn may_be_taken(&self, tenure: Tenure) -> bool {
        tenure.is_over(self.open.opened.elapsed(), self.since.elapsed())
    }
}

/// The right to have one connection open on a server. Free again when dropped.
pub(crate) struct Slot {
    pub(super) server: Arc<Server>,
    pub(super) database: u64,
    /// The server may count a session for it that we have closed: others of the fleet get the right to open one later.
    pub(super) lingers: bool,
}

impl Slot {
    pub(super) fn new(server: &Arc<Server>, database: u64) -> Slot {
        Slot { server: Arc::clone(server), database, lingers: false }
    }

    /// A connection is about to be opened.
    pub(crate) fn begin(&mut self) {
        self.lingers = self.server.is_shared();
    }

    /// The connection was closed, and the server has taken notice.
    pub(crate) fn end(&mut self) {
        self.lingers = false;
    }

    /// Waits until the server can't count a session any more that was closed without its taking notice.
    pub(super) async fn linger(&mut self) {
        if std::mem::take(&mut self.lingers) {
            tokio::time::sleep(LINGER).await;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.lingers
            && let Ok(runtime) = Handle::try_current()
        {
            let mut slot = Slot { server: Arc::clone(&self.server), database: self.database, lingers: true };
            let lingering = async move { slot.linger().await };
            self.server.chores.once(Chore::Close, &runtime, lingering);
            return;
        }
        let mut state = self.server.state();
        state.open -= 1;
        state.leave(self.database);
        self.server.serve(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_queue_no_longer_than_four_times_the_connections_leaves_them_their_tenure() {
        for (queued, connections) in [(0, 64), (1, 1), (4, 1), (256, 64)] {
            assert_eq!(Tenure::of(queued, connections), Tenure::ALONE, "{queued} for {connections}");
        }
        assert!(!Tenure::ALONE.is_over(499 * MS, 499 * MS));
        assert!(!Tenure::ALONE.is_over(1999 * MS, 19 * MS));
        assert!(Tenure::ALONE.is_over(500 * MS, 20 * MS));
        assert!(Tenure::ALONE.is_over(2000 * MS, Duration::ZERO));
    }

    #[test]
    fn a_long_queue_gets_its_turns_within_a_round() {
        for (queued, connections) in [(257_u32, 64_u32), (2_000, 64), (100, 1), (50_000, 16)] {
            let tenure = Tenure::of(queued as usize, connections as usize);
            let round = tenure.least * queued / connections;
            assert!((1.99..2.01).contains(&round.as_secs_f64()), "{queued}: {round:?}");
            // A backlog doesn't keep its connection much longer than those that have little to write.
            assert!(tenure.longest <= 5 * tenure.least && tenure.spare < tenure.least, "{tenure:?}");
        }
    }
}
