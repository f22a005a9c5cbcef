//! The commands, one file each.

pub(crate) mod actions;
pub(crate) mod audit;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod handover;
mod neighbour;
pub(crate) mod probe;
pub(crate) mod quarantine;
mod queues;
pub(crate) mod recover;
pub(crate) mod report;
pub(crate) mod retire;
pub(crate) mod rollout;
pub(crate) mod run;
pub(crate) mod sessions;
mod shadow;
pub(crate) mod status;
pub(crate) mod tenants;
pub(crate) mod timeline;
pub(crate) mod verify;
pub(crate) mod why;
pub(crate) mod workers;

use std::path::Path;

use anyhow::{Context, bail};
use balance_sync_tenants::{Tenant, TenantDirectory};

use crate::config::{self, Config};

/// The configuration of the file and the process's environment.
///
/// # Errors
/// Everything that is wrong with it.
pub(crate) fn load_config(file: Option<&Path>) -> anyhow::Result<Config> {
    Ok(config::load(file, std::env::vars_os())?)
}

/// The configurations of all entries of the Redis directory, by their names; of the only Redis, without a name, where there is no
/// directory.
///
/// # Errors
/// Everything that is wrong with them.
pub(crate) fn load_configs(file: Option<&Path>) -> anyhow::Result<Vec<(Option<String>, Config)>> {
    let names = config::redis_names(file, std::env::vars_os())?;
    if names.is_empty() {
        return Ok(vec![(None, load_config(file)?)]);
    }
    let of_entry = |name: String| {
        let config = config::load_for(file, std::env::vars_os(), Some(&name))?;
        Ok((Some(name), config))
    };
    names.into_iter().map(of_entry).collect()
}

/// The active tenants of these ids, or all of them if none is named; in id order.
///
/// # Errors
/// When the list can't be read or an id is not in it.
pub(crate) async fn chosen_tenants(
    directory: &dyn TenantDirectory,
    ids: &[String],
) -> anyhow::Result<Vec<Tenant>> {
    let listed = directory.active().await.context("reading the tenant list")?;
    let mut tenants: Vec<Tenant> = listed
        .tenants
        .into_iter()
        .map(|listed| listed.tenant)
        .filter(|tenant| ids.is_empty() || ids.iter().any(|id| tenant.is_called(id)))
        .collect();
    if let Some(unknown) = ids.iter().find(|id| !tenants.iter().any(|tenant| tenant.is_called(id))) {
        bail!("tenant {unknown} is not among the active ones");
    }
    tenants.sort();
    Ok(tenants)
}
