//! The tenant directory as its callers see it: how each call ends and how long it takes.
//!
//! Counted around the directory rather than in it: whatever is in between (repeats, the breaker, a request that others
//! share) is part of what a caller waits for. What the service itself is asked is counted there, see [`ServiceStats`].

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use balance_sync_tenants::{
    BoxFuture, DirectoryError, Listing, ServiceStats, Tenant, TenantDatabase, TenantDirectory,
};
use tokio::time::Instant;

use crate::status::{FleetStatus, Histogram, wall_clock_ms};

/// How calls ended, in the order of [`OUTCOMES`], and how long they took.
#[derive(Debug, Default)]
pub struct Calls {
    ended: [AtomicU64; OUTCOMES.len()],
    /// Durations of all of them.
    pub duration: Histogram,
}

/// How a call may end: answered, with one of the errors of the directory, or given up by its caller.
pub const OUTCOMES: [&str; 2 + DirectoryError::KINDS.len()] = {
    let mut all = [OK; 2 + DirectoryError::KINDS.len()];
    let mut at = 0;
    while at < DirectoryError::KINDS.len() {
        all[at + 1] = DirectoryError::KINDS[at];
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
    async fn count<T>(
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

/// A directory whose calls are counted in [`FleetStatus::directory`].
pub struct ObservedDirectory {
    inner: Arc<dyn TenantDirectory>,
    fleet: Arc<FleetStatus>,
}

impl ObservedDirectory {
    /// Counts the calls of this directory from now on.
    #[must_use]
    pub fn new(inner: Arc<dyn TenantDirectory>, fleet: Arc<FleetStatus>) -> Self {
        // A worker has one directory; a second one's calls would be counted with the first one's service.
        let _ = fleet.directory.behind.set(Arc::clone(&inner));
        Self { inner, fleet }
    }
}

impl TenantDirectory for ObservedDirectory {
    fn active(&self) -> BoxFuture<'_, Result<Listing, DirectoryError>> {
        Box::pin(async {
            let status = &self.fleet.directory;
            let answer = status.list.count(self.inner.active()).await;
            if answer.is_ok() {
                status.last_list_ms.store(wall_clock_ms(), Relaxed);
                status.last_success_ms.store(wall_clock_ms(), Relaxed);
            }
            answer
        })
    }

    fn database(&self, tenant: &Tenant) -> BoxFuture<'_, Result<TenantDatabase, DirectoryError>> {
        let call = self.inner.database(tenant);
        Box::pin(async {
            let status = &self.fleet.directory;
            let answer = status.database.count(call).await;
            if answer.is_ok() {
                status.last_success_ms.store(wall_clock_ms(), Relaxed);
            }
            answer
        })
    }

    fn service_stats(&self) -> Option<ServiceStats> {
        self.inner.service_stats()
    }
}

#[cfg(test)]
mod tests {
    use balance_sync_tenants::{ServiceDirectory, ServiceSettings};
    use futures::FutureExt;

    use super::*;

    /// Answers what it is told, or never.
    struct Fake(Option<Result<Listing, DirectoryError>>);

    impl TenantDirectory for Fake {
        fn active(&self) -> BoxFuture<'_, Result<Listing, DirectoryError>> {
            match self.0.clone() {
                Some(answer) => futures::future::ready(answer).boxed(),
                None => futures::future::pending().boxed(),
            }
        }

        fn database(&self, _: &Tenant) -> BoxFuture<'_, Result<TenantDatabase, DirectoryError>> {
            futures::future::ready(Err(DirectoryError::Suspended)).boxed()
        }
    }

    fn observed(list: Option<Result<Listing, DirectoryError>>) -> (ObservedDirectory, Arc<FleetStatus>) {
        let fleet = Arc::<FleetStatus>::default();
        (ObservedDirectory::new(Arc::new(Fake(list)), Arc::clone(&fleet)), fleet)
    }

    #[tokio::test]
    async fn every_end_is_counted_once_under_its_name() {
        let (directory, fleet) = observed(Some(Ok(Listing::default())));
        assert!(directory.active().await.is_ok());
        assert!(directory.database(&Tenant::Single).await.is_err());
        let status = &fleet.directory;
        assert_eq!((status.list.ended("ok"), status.list.duration.count()), (1, 1));
        assert_eq!((status.database.ended("suspended"), status.database.duration.count()), (1, 1));
        assert!(status.last_list_ms.load(Relaxed) > 1_700_000_000_000, "a time of day");
        assert_eq!(status.service(), None);

        for error in [DirectoryError::unavailable("x"), DirectoryError::malformed("x", "y")] {
            let (directory, fleet) = observed(Some(Err(error.clone())));
            assert!(directory.active().await.is_err());
            assert_eq!(fleet.directory.list.ended(error.kind()), 1);
            assert_eq!(fleet.directory.last_list_ms.load(Relaxed), 0, "no good answer yet");
        }
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_is_counted() {
        let (directory, fleet) = observed(None);
        assert!(directory.active().now_or_never().is_none());
        assert_eq!(fleet.directory.list.ended("given_up"), 1);
        assert_eq!(fleet.directory.list.duration.count(), 1);
    }

    #[test]
    fn the_service_behind_is_found() {
        let Ok(url) = "https://127.0.0.1:1".parse() else { unreachable!("it is a URL") };
        let service = ServiceDirectory::new(ServiceSettings::new(url, "key".into()));
        let Ok(service) = service else { unreachable!("the settings are good") };
        let fleet = Arc::<FleetStatus>::default();
        let _directory = ObservedDirectory::new(Arc::new(service), Arc::clone(&fleet));
        assert_eq!(fleet.directory.service(), Some(ServiceStats::default()));
    }
}
