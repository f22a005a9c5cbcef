//! An open connection, the slot it occupies, and how long it is left to its database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng as _;

use super::server::Server;
use crate::connect::Connected;
use crate::examine::Examined;
use crate::names::Addresses;
use crate::relay::Connection;
use crate::sql::Target;

/// The ages at which connections are closed lie between this part of their greatest age and the whole, lest those that were opened
/// together are opened anew together.
const YOUNGEST: f64 = 0.8;

/// How long a connection is left to its database although others wait for one.
const TENURE: Duration = Duration::from_millis(500);

/// After its tenure, one that has been idle for so long is taken away when others wait.
const SPARE: Duration = Duration::from_millis(20);

/// After so long it is taken away between two statements when others wait.
const LONGEST: Duration = Duration::from_secs(2);

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
        let Connected { connection, examined, addresses } = connected;
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
        // An error or a timeout changes nothing: the socket is closed either way.
        let _ = tokio::time::timeout(limit, self.connection.close()).await;
        self.slot
    }
}

impl Idle {
    pub(super) fn may_be_taken(&self) -> bool {
        let age = self.open.opened.elapsed();
        age >= LONGEST || (age >= TENURE && self.since.elapsed() >= SPARE)
    }
}

/// The right to have one connection open on a server. Free again when dropped.
pub(crate) struct Slot {
    pub(super) server: Arc<Server>,
    pub(super) database: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.server.state();
        state.open -= 1;
        state.leave(self.database);
        self.server.serve(state);
    }
}
