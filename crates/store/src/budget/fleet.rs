//! A worker's part of a budget that the whole fleet shares (`docs/decisions/0044-one-budget-for-the-fleet.md`).
//!
//! Who decides how large it is, and asks the other workers, is outside: here it is kept to.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::lock;

/// What holds for all servers of a worker.
pub(crate) struct Shared {
    /// What all workers together may have on a server.
    pub(super) budget: u32,
    /// After so long without use the server ends a session by itself: that of a process that is frozen.
    pub(crate) session_idle: Duration,
    /// Connections may be open until then.
    until: Mutex<Option<Instant>>,
    /// Goes up when all connections are to be closed at once.
    revoked: watch::Sender<u64>,
    /// More are needed somewhere than the worker may have.
    pub(super) wanted: Notify,
}

/// The fleet's connections to a server, as one worker knows them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetUsage {
    /// What all workers together may have: setting `postgres.fleet_connections_per_server`.
    pub budget: u64,
    /// What this worker holds of it.
    pub held: u64,
    /// What all hold.
    pub all: u64,
    /// Workers that need connections there.
    pub workers: u64,
    /// For how long this worker could have used more than it may have, in seconds, without a break; 0 = it has what it needs.
    #[serde(default)]
    pub short_seconds: u64,
}

/// What a worker needs on one server of a budget that the fleet shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetDemand {
    /// The server, `host:port`.
    pub server: String,
    /// What it is restricted to from now on, or has open, if that is more.
    pub kept: u32,
    /// The most that it could have used since this was last asked.
    pub wanted: u32,
}

/// What a worker may have on one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetLimit {
    /// The server.
    pub server: String,
    /// So many connections.
    pub limit: u32,
    /// To be shown.
    pub usage: FleetUsage,
}

impl Shared {
    pub(super) fn new(budget: u32, session_idle: Duration) -> Shared {
        Shared {
            budget,
            session_idle,
            until: Mutex::new(None),
            revoked: watch::Sender::new(0),
            wanted: Notify::new(),
        }
    }

    /// Whether connections may be open at all.
    pub(super) fn is_held(&self) -> bool {
        lock(&self.until).is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn hold_until(&self, until: Option<Instant>) {
        *lock(&self.until) = until;
    }

    /// Breaks off what uses a connection.
    pub(super) fn revoke(&self) {
        self.revoked.send_modify(|revoked| *revoked += 1);
    }

    /// Waits until connections are to be closed at once.
    pub(crate) async fn revoked(&self) {
        let mut revoked = self.revoked.subscribe();
        if self.is_held() {
            // The sender lives as long as this.
            let _ = revoked.changed().await;
        }
    }

    /// A connection that isn't used is closed before the server does it.
    pub(super) fn idle_timeout(&self, configured: Duration) -> Duration {
        configured.min(self.session_idle.mul_f64(0.6))
    }
}
