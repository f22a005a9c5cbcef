//! The Redis, tenants and databases of a configuration, for programs other than the worker.

use std::{path::Path, sync::Arc};

use balance_sync_domain::KeySpace;
use balance_sync_schedule::LinkSettings;
use balance_sync_store::{DatabaseSpec, Table};
use balance_sync_tenants::{Tenant, TenantDirectory};

use crate::{commands, config::Config, wiring};

/// What a configuration points to.
pub struct Deployment {
    config: Config,
    directory: Arc<dyn TenantDirectory>,
}

impl Deployment {
    /// Reads the configuration as all commands do: this file, or the one that `BALANCE_SYNC_CONFIG` names, and the
    /// process's environment.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let config = commands::load_config(file)?;
        let directory = wiring::directory(&config)?;
        Ok(Self { config, directory })
    }

    /// The Redis with the balances.
    pub fn redis(&self) -> &LinkSettings {
        &self.config.redis.link
    }

    /// The active tenants of these ids, or all of them if none is named; in id order.
    ///
    /// # Errors
    /// When the list can't be read or an id is not in it.
    pub async fn tenants(&self, ids: &[String]) -> anyhow::Result<Vec<Tenant>> {
        commands::chosen_tenants(self.directory.as_ref(), ids).await
    }

    /// Where a tenant's keys stand when the ledger writes them today.
    pub fn key_space(&self, tenant: &Tenant) -> KeySpace {
        tenant.key_space(self.config.tenants.key_form)
    }

    /// A tenant's database, and its table of balances there.
    ///
    /// # Errors
    /// When the tenant's settings can't be read or used.
    pub async fn database(&self, tenant: &Tenant) -> anyhow::Result<(DatabaseSpec, Table)> {
        let settings = self.directory.database(tenant).await?;
        let table = match &settings.schema {
            Some(schema) => Table::in_schema(schema)?,
            None => Table::unqualified(),
        };
        Ok((wiring::manager_options(&self.config).spec(&settings), table))
    }
}
