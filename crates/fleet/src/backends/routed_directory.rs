//! The tenant directory as a worker of one Redis of several sees it: the tenants that live on that Redis.

use std::sync::Arc;

use balance_sync_tenants::{
    BoxFuture, DirectoryError, Listing, ServiceStats, Tenant, TenantDatabase, TenantDirectory,
};

use crate::status::Routing;

/// A directory without the tenants of other Redis servers.
pub struct RoutedDirectory {
    inner: Arc<dyn TenantDirectory>,
    routing: Arc<Routing>,
}

impl RoutedDirectory {
    /// Takes the lists of this directory apart.
    #[must_use]
    pub fn new(inner: Arc<dyn TenantDirectory>, routing: Arc<Routing>) -> Self {
        Self { inner, routing }
    }
}

impl TenantDirectory for RoutedDirectory {
    fn active(&self) -> BoxFuture<'_, Result<Listing, DirectoryError>> {
        Box::pin(async { Ok(self.routing.take_apart(self.inner.active().await?)) })
    }

    fn database(&self, tenant: &Tenant) -> BoxFuture<'_, Result<TenantDatabase, DirectoryError>> {
        self.inner.database(tenant)
    }

    fn service_stats(&self) -> Option<ServiceStats> {
        self.inner.service_stats()
    }
}
