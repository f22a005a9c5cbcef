//! `/metrics`: the fleet's atomics as Prometheus text, made on demand; and the same families for whoever pushes them.
//!
//! - `worker`, `tenants`, `queues`, `neighbour`, `shadow`, `outside`: which metrics there are, with names, units and sources. `docs/metrics.md` lists
//!   them; a test compares the two.
//! - `ledgers`: the series with the ledger's own names and labels, where they are pushed.
//! - `rows`: which tenants get a label of their own, and totals that never fall.
//! - `exposition`: the text format.
//!
//! Base units throughout (seconds). All names begin with `balance_sync_`, but for the ledger's `balance_synced`, whose
//! name is kept because dashboards are built on it, and for `process_…`, which are named as in every other program.
//!
//! Four names are the ledger's own. A series of these goes out once, or a sum over both ways would count twice: at
//! `/metrics` with `tenant_id` alone, or pushed with the ledger's labels.

mod exposition;
mod ledgers;
mod neighbour;
mod outside;
mod queues;
mod rows;
mod shadow;
mod tenants;
mod worker;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use balance_sync_fleet::{ServerUsage, status::FleetStatus};
use prometheus::proto::MetricFamily;

use self::{
    exposition::Page,
    rows::{Memory, Snapshot},
};

/// So many Postgres servers get a label of their own at least, however few tenants do.
const SERVERS: usize = 20;

/// Content type of the text, as Prometheus expects it.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Asked at each scrape for the connections on each server. Must not block.
pub type ConnectionSource = Box<dyn Fn() -> Vec<ServerUsage> + Send + Sync>;

/// Label of the tenant: its id, `single` without multi-tenancy, or `other` for all beyond the configured number.
pub const TENANT: &str = "tenant_id";

/// A family as it is pushed.
#[derive(Debug, Clone, Copy)]
pub struct Exported<'a> {
    /// Name, help, type and samples.
    pub family: &'a MetricFamily,
    /// The unit, as OTLP names it; empty where the name says it.
    pub unit: &'static str,
    /// Since when the counts of a tenant began, by its label, in milliseconds since 1970.
    pub since: &'a HashMap<String, u64>,
}

/// The metrics of one worker.
pub struct Metrics {
    status: Arc<FleetStatus>,
    connections: Option<ConnectionSource>,
    /// How many tenants get a label of their own.
    limit: usize,
    /// How many ledgers of a tenant have series of their own, where the ledger's series are pushed.
    ledgers: OnceLock<usize>,
    memory: Mutex<Memory>,
    /// Length of the last page.
    length: AtomicUsize,
}

impl Metrics {
    /// Metrics of that fleet, with at most `limit` values of the label `tenant_id` besides `other`.
    #[must_use]
    pub fn new(status: Arc<FleetStatus>, limit: usize, connections: Option<ConnectionSource>) -> Self {
        Self {
            status,
            connections,
            limit,
            ledgers: OnceLock::new(),
            memory: Mutex::default(),
            length: AtomicUsize::new(0),
        }
    }

    /// From now on the series with the ledger's names are pushed, with at most so many ledgers of a tenant by themselves, and no
    /// longer at `/metrics`.
    pub fn push_ledgers(&self, limit: usize) {
        // A second call says nothing new.
        let _ = self.ledgers.set(limit);
    }

    /// The text of a scrape. Takes tens of milliseconds for thousands of tenants: not for a thread that others wait
    /// for.
    ///
    /// # Errors
    ///
    /// When a metric can't be written in the text format, which would be a mistake in its definition.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let snapshot = self.snapshot();
        // Megabytes with thousands of tenants: a text that grows would be there twice for a moment.
        let last = self.length.load(Relaxed);
        let mut page = Page::with_capacity(last + last / 8);
        let named = if self.ledgers.get().is_none() { Named::AsTheLedger } else { Named::Ours };
        self.write(&mut page, &snapshot, named)?;
        let text = page.into_text();
        self.length.store(text.len(), Relaxed);
        Ok(text)
    }

    /// Gives each family to `take`: those of [`render`](Self::render), from the same memory of what `other` stands for, with the
    /// ledger's series as the ledger pushes them, or without. Takes as long as `render`.
    ///
    /// # Errors
    ///
    /// As [`render`](Self::render).
    pub fn export(&self, take: &mut dyn FnMut(Exported<'_>)) -> Result<(), prometheus::Error> {
        let snapshot = self.snapshot();
        let since: HashMap<String, u64> =
            snapshot.rows.iter().filter_map(|row| Some((row.label.clone(), row.since_ms?))).collect();
        let mut ours =
            |family: &MetricFamily| take(Exported { family, unit: unit(family.name()), since: &since });
        self.write(&mut Page::Taken(&mut ours), &snapshot, Named::Ours)?;
        if self.ledgers.get().is_none() {
            return Ok(());
        }
        ledgers::series(&snapshot.rows, &mut |family, unit| {
            let mut with_unit = |family: &MetricFamily| take(Exported { family, unit, since: &since });
            Page::Taken(&mut with_unit).write(family)
        })
    }

    fn snapshot(&self) -> Snapshot {
        // What a panic leaves behind is at worst a count that is missing from `other`.
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.snapshot(&self.status.tenants(), self.limit, self.ledgers.get().copied().unwrap_or(0))
    }

    fn write(&self, page: &mut Page<'_>, snapshot: &Snapshot, named: Named) -> Result<(), prometheus::Error> {
        worker::identity(page, &self.status)?;
        worker::fleet(page, &self.status, snapshot)?;
        worker::pushes(page, &self.status)?;
        worker::tasks(page, &self.status)?;
        worker::reconcile(page, &self.status)?;
        worker::flushes(page, &self.status)?;
        if named == Named::AsTheLedger {
            tenants::as_the_ledger(page, &snapshot.rows)?;
        }
        tenants::work(page, &snapshot.rows)?;
        tenants::condition(page, &snapshot.rows)?;
        queues::queues(page, &snapshot.rows)?;
        neighbour::neighbours(page, &snapshot.rows)?;
        shadow::shadows(page, &snapshot.rows)?;
        outside::redis(page, &self.status)?;
        outside::redis_directory(page, &self.status)?;
        outside::tenant_service(page, &self.status)?;
        if let Some(connections) = &self.connections {
            outside::connections(page, connections(), self.limit.max(SERVERS))?;
        }
        page.process()
    }
}

/// Whether the families with the ledger's names are among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    AsTheLedger,
    Ours,
}

/// The unit of a family of ours. Where the name has none, none is given: receivers would change the name for it.
fn unit(name: &str) -> &'static str {
    let base = name.strip_suffix("_total").unwrap_or(name);
    if base.ends_with("_seconds") {
        "s"
    } else if base.ends_with("_bytes") {
        "By"
    } else {
        ""
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("limit", &self.limit).finish_non_exhaustive()
    }
}
