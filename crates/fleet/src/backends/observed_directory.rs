//! The tenant directory as its callers see it: how each call ends and how long it takes.
//!
//! Counted around the directory rather than in it: whatever is in between (repeats, the breaker, a request that others
//! share) is part of what a caller waits for. What the service itself is asked is counted there, see [`ServiceStats`].

use std::sync::{Arc, atomic::Ordering::Relaxed};

use balance_sync_tenants::{
    BoxFuture, DirectoryError, Listing, ServiceStats, Tenant, TenantDatabase, TenantDirectory,
};

use crate::{clock::wall_clock_ms, status::FleetStatus};

/// A directory whose calls are counted in [`FleetStatus::directory`].
pub struct ObservedDirectory {
    inner: Arc<dyn TenantDirectory>,
    fleet: Arc<FleetStatus>,
}

impl ObservedDirectory {
    /// Counts the calls of this directory from now on.
    #[must_use]
    pub fn new(inner: Arc<dyn TenantDirectory>, fleet: Arc<FleetStatus>) -> Self {
        fleet.directory.observe(Arc::clone(&inner));
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

    /// Answers as configured, or never.
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
