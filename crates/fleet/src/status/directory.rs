//! Calls to the tenant directory: how they end and how long they take.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use balance_sync_engine::failure::DirectoryClass;
use balance_sync_tenants::{DirectoryError, ServiceStats, TenantDirectory};
use tokio::time::Instant;

use super::histogram::Histogram;

/// How calls ended, in the order of [`OUTCOMES`], and how long they took.
#[derive(Debug, Default)]
pub struct Calls {
    ended: [AtomicU64; OUTCOMES.len()],
    /// Durations of all of them.
    pub duration: Histogram,
}

/// How a call may end: answered, with one of the errors of the directory, or given up by its caller.
pub const OUTCOMES: [&str; 2 + DirectoryClass::ALL.len()] = {
    let mut all = [OK; 2 + DirectoryClass::ALL.len()];
    let mut at = 0;
    while at < DirectoryClass::ALL.len() {
        all[at + 1] = DirectoryClass::ALL[at].as_str();
        at += 1;
    }
    all[at + 1] = GIVEN_UP;
    all
};
const OK: &str = "ok";
const GIVEN_UP: &str = "given_up";

impl Calls {
    /// Calls that ended so; see [`OUTCOMES`].
    #[must_use]
    pub fn ended(&self, outcome: &str) -> u64 {
        OUTCOMES.iter().position(|known| *known == outcome).map_or(0, |at| self.ended[at].load(Relaxed))
    }

    /// Awaits a call and counts it, however it ends.
    pub(crate) async fn count<T>(
        &self,
        call: impl Future<Output = Result<T, DirectoryError>>,
    ) -> Result<T, DirectoryError> {
        let mut counting = Counting { calls: self, begun: Instant::now(), outcome: GIVEN_UP };
        let answer = call.await;
        counting.outcome = answer.as_ref().map_or_else(DirectoryError::kind, |_| OK);
        answer
    }
}

/// Counts when it is dropped, so that a call its caller no longer waits for is counted too.
struct Counting<'a> {
    calls: &'a Calls,
    begun: Instant,
    outcome: &'static str,
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        if let Some(at) = OUTCOMES.iter().position(|known| *known == self.outcome) {
            self.calls.ended[at].fetch_add(1, Relaxed);
        }
        self.calls.duration.observe(self.begun.elapsed().as_secs_f64());
    }
}

/// What is counted of a worker's directory.
#[derive(Default)]
pub struct DirectoryStatus {
    /// Polls of the list.
    pub list: Calls,
    /// Look-ups of a tenant's database.
    pub database: Calls,
    /// Wall-clock time of the last good answer to either, in milliseconds since 1970; 0 = none yet. For people and alerts.
    pub last_success_ms: AtomicU64,
    /// The same of the list alone.
    pub last_list_ms: AtomicU64,
    behind: OnceLock<Arc<dyn TenantDirectory>>,
}

impl DirectoryStatus {
    /// Takes what the directory counts itself from this one. A worker has one directory: a second one's calls are counted
    /// with the first one's service.
    pub(crate) fn observe(&self, directory: Arc<dyn TenantDirectory>) {
        let _ = self.behind.set(directory);
    }

    /// What is counted at the tenant service; `None` when tenants come from elsewhere.
    #[must_use]
    pub fn service(&self) -> Option<ServiceStats> {
        self.behind.get()?.service_stats()
    }
}

impl fmt::Debug for DirectoryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryStatus")
            .field("list", &self.list)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}
