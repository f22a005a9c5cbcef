//! A directory that is written down: the tenants of a configuration file, or the one of single-tenant mode.

use std::collections::BTreeMap;

use balance_sync_domain::TenantId;
use futures::FutureExt;

use crate::database::TenantDatabase;
use crate::directory::{BoxFuture, DirectoryError, ListedTenant, Listing, TenantDirectory};
use crate::tenant::Tenant;

/// A tenant of a [`StaticDirectory`].
#[derive(Debug, Clone)]
pub struct StaticTenant {
    /// Its id.
    pub id: TenantId,
    /// Its name for people; the id when there is none.
    pub name: Option<String>,
    /// Where its balances are written.
    pub database: TenantDatabase,
}

/// One id stands twice: which database is meant can't be known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tenant {0} is configured twice: each id may stand once")]
pub struct DuplicateTenant(pub TenantId);

/// A fixed set of tenants. It never fails, and never changes.
#[derive(Debug, Clone)]
pub struct StaticDirectory {
    tenants: BTreeMap<Tenant, (String, TenantDatabase)>,
}

impl StaticDirectory {
    /// The tenants of a configuration file.
    ///
    /// # Errors
    /// An id that stands twice.
    pub fn new(tenants: Vec<StaticTenant>) -> Result<Self, DuplicateTenant> {
        let mut by_tenant = BTreeMap::new();
        for StaticTenant { id, name, database } in tenants {
            let name = name.unwrap_or_else(|| id.as_str().to_owned());
            if by_tenant.insert(Tenant::Id(id.clone()), (name, database)).is_some() {
                return Err(DuplicateTenant(id));
            }
        }
        Ok(Self { tenants: by_tenant })
    }

    /// Single-tenant mode: one database, keys without a prefix.
    pub fn single(database: TenantDatabase) -> Self {
        let name = Tenant::Single.label().to_owned();
        Self { tenants: BTreeMap::from([(Tenant::Single, (name, database))]) }
    }
}

impl TenantDirectory for StaticDirectory {
    fn active(&self) -> BoxFuture<'_, Result<Listing, DirectoryError>> {
        let tenants = self
            .tenants
            .iter()
            .map(|(tenant, (name, _))| ListedTenant { tenant: tenant.clone(), name: name.clone() })
            .collect();
        futures::future::ready(Ok(Listing { tenants, refused: Vec::new() })).boxed()
    }

    fn database(&self, tenant: &Tenant) -> BoxFuture<'_, Result<TenantDatabase, DirectoryError>> {
        let found = self.tenants.get(tenant).map(|(_, database)| database.clone());
        futures::future::ready(found.ok_or(DirectoryError::NotFound)).boxed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::database::ConnectionSettings;
    use balance_sync_domain::TlsMode;

    fn database(host: &str) -> TenantDatabase {
        TenantDatabase {
            host: host.into(),
            port: 5432,
            database: "ledger".into(),
            username: "u".into(),
            password: "p".into(),
            schema: None,
            tls: TlsMode::Disable,
            root_cert: None,
            cert: None,
            key: None,
            settings: ConnectionSettings::default(),
        }
    }

    fn tenant(id: &str) -> StaticTenant {
        StaticTenant { id: TenantId::parse(id).unwrap(), name: None, database: database(id) }
    }

    #[tokio::test]
    async fn each_tenant_gets_its_own_database() {
        let directory = StaticDirectory::new(vec![tenant("b"), tenant("a")]).unwrap();
        let listing = directory.active().await.unwrap();
        assert_eq!(listing.tenants.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        for listed in &listing.tenants {
            assert_eq!(directory.database(&listed.tenant).await.unwrap().host, listed.name);
        }
        let missing = directory.database(&Tenant::Single).await.unwrap_err();
        assert_eq!(missing, DirectoryError::NotFound);
    }

    #[tokio::test]
    async fn single_tenant_mode_lists_one_without_an_id() {
        let directory = StaticDirectory::single(database("h"));
        assert_eq!(directory.active().await.unwrap().set().into_iter().collect::<Vec<_>>(), [Tenant::Single]);
        assert_eq!(directory.database(&Tenant::Single).await.unwrap().host, "h");
        let id = Tenant::Id(TenantId::parse("single").unwrap());
        assert!(directory.database(&id).await.unwrap_err().must_stop());
    }

    #[test]
    fn an_id_may_stand_once() {
        let error = StaticDirectory::new(vec![tenant("a"), tenant("a")]).unwrap_err();
        assert!(error.to_string().contains("tenant a"));
    }
}
