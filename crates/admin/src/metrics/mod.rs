//! `/metrics`: the fleet's atomics as Prometheus text, made on demand.
//!
//! - `worker`, `tenants`, `queues`, `outside`: which metrics there are, with names, units and sources. `docs/metrics.md` lists
//!   them; a test compares the two.
//! - `rows`: which tenants get a label of their own, and totals that never fall.
//! - `exposition`: the text format.
//!
//! Base units throughout (seconds). All names begin with `balance_sync_`, but for the ledger's `balance_synced`, whose
//! name is kept because dashboards are built on it, and for `process_…`, which are named as in every other program.

mod exposition;
mod outside;
mod queues;
mod rows;
mod tenants;
mod worker;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use balance_sync_fleet::{ServerUsage, status::FleetStatus};

use self::{exposition::Page, rows::Memory};

/// So many Postgres servers get a label of their own at least, however few tenants do.
const SERVERS: usize = 20;

/// Content type of the text, as Prometheus expects it.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Asked at each scrape for the connections on each server. Must not block.
pub type ConnectionSource = Box<dyn Fn() -> Vec<ServerUsage> + Send + Sync>;

/// The metrics of one worker.
pub struct Metrics {
    status: Arc<FleetStatus>,
    connections: Option<ConnectionSource>,
    /// How many tenants get a label of their own.
    limit: usize,
    memory: Mutex<Memory>,
    /// Length of the last page.
    length: AtomicUsize,
}

impl Metrics {
    /// Metrics of that fleet, with at most `limit` values of the label `tenant_id` besides `other`.
    #[must_use]
    pub fn new(status: Arc<FleetStatus>, limit: usize, connections: Option<ConnectionSource>) -> Self {
        Self { status, connections, limit, memory: Mutex::default(), length: AtomicUsize::new(0) }
    }

    /// The text of a scrape. Takes tens of milliseconds for thousands of tenants: not for a thread that others wait
    /// for.
    ///
    /// # Errors
    ///
    /// When a metric can't be written in the text format, which would be a mistake in its definition.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let snapshot = {
            // What a panic leaves behind is at worst a count that is missing from `other`.
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.snapshot(&self.status.tenants(), self.limit)
        };
        // Megabytes with thousands of tenants: a text that grows would be there twice for a moment.
        let last = self.length.load(Relaxed);
        let mut page = Page::with_capacity(last + last / 8);
        worker::identity(&mut page, &self.status)?;
        worker::fleet(&mut page, &self.status, &snapshot)?;
        worker::tasks(&mut page, &self.status)?;
        worker::reconcile(&mut page, &self.status)?;
        worker::flushes(&mut page, &self.status)?;
        tenants::work(&mut page, &snapshot.rows)?;
        tenants::condition(&mut page, &snapshot.rows)?;
        queues::queues(&mut page, &snapshot.rows)?;
        outside::redis(&mut page, &self.status)?;
        outside::tenant_service(&mut page, &self.status)?;
        if let Some(connections) = &self.connections {
            outside::connections(&mut page, connections(), self.limit.max(SERVERS))?;
        }
        page.process()?;
        let text = page.into_text();
        self.length.store(text.len(), Relaxed);
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("limit", &self.limit).finish_non_exhaustive()
    }
}
