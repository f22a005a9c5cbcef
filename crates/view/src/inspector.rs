//! Looking into one tenant by hand: its schedule and its database, without disturbing the worker that serves it.

use std::sync::Arc;

use actix::Addr;
use balance_sync_fleet::{
    backends::{GetPool, ManagerOptions, TenantManager},
    lifecycle::WorkerHandles,
    pipeline::SinkError,
};
use balance_sync_schedule::{Link, ScheduleError, ScheduleOptions, Schedules, quarantine::QuarantineEntry};
use balance_sync_store::{ConnectionBudget, Database, DatabaseSpec, Table};
use balance_sync_tenants::{KeyForm, Tenant, TenantDirectory};
use balance_sync_trace::Span;

use crate::recovery::{RecoveryDesk, RecoveryRunner};

/// How a tenant's database is reached.
#[derive(Clone)]
enum Databases {
    /// By the worker's manager, for tenants that it serves; by the directory for others.
    Worker { manager: Addr<TenantManager>, outside: Outside },
    /// By the directory.
    Outside(Outside),
}

/// What is needed to open a tenant's database for a moment.
#[derive(Clone)]
struct Outside {
    directory: Arc<dyn TenantDirectory>,
    options: Arc<ManagerOptions>,
}

/// Looks into tenants.
#[derive(Clone)]
pub struct Inspector {
    link: Link,
    key_form: KeyForm,
    options: Arc<ScheduleOptions>,
    databases: Databases,
}

/// A tenant's database, opened for one look.
pub struct Opened {
    /// The database.
    pub database: Database,
    /// The balance table.
    pub table: Table,
    /// It is used here only, and is to be closed.
    own: bool,
}

impl Opened {
    /// Closes it, if it was opened for this look.
    pub async fn close(self) {
        if self.own {
            self.database.close(std::time::Duration::from_secs(1)).await;
        }
    }
}

impl Inspector {
    /// For a worker.
    #[must_use]
    pub fn of_worker(handles: &WorkerHandles) -> Self {
        let outside = Outside {
            directory: Arc::clone(&handles.directory),
            options: Arc::clone(&handles.manager_options),
        };
        Self {
            link: handles.link.clone(),
            key_form: handles.key_form,
            options: Arc::clone(&handles.schedule),
            databases: Databases::Worker { manager: handles.manager.clone(), outside },
        }
    }

    /// For a command, without a worker in its process.
    #[must_use]
    pub fn for_command(
        link: Link,
        key_form: KeyForm,
        options: Arc<ScheduleOptions>,
        directory: Arc<dyn TenantDirectory>,
        manager_options: Arc<ManagerOptions>,
    ) -> Self {
        let outside = Outside { directory, options: manager_options };
        Self { link, key_form, options, databases: Databases::Outside(outside) }
    }

    /// Starts recoveries by `runner`, for the worker of this name.
    #[must_use]
    pub fn recoveries(&self, worker: String, runner: Arc<dyn RecoveryRunner>) -> RecoveryDesk {
        RecoveryDesk::new(self.link.clone(), worker, runner)
    }

    /// Redis.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// How ids stand in keys.
    #[must_use]
    pub fn key_form(&self) -> KeyForm {
        self.key_form
    }

    /// A tenant's schedules.
    #[must_use]
    pub fn schedules(&self, tenant: &Tenant) -> Schedules {
        Schedules::new(&self.link, tenant.key_spaces(self.key_form), &self.options)
    }

    /// A tenant's database. `served` = this worker serves it, and has it open anyway.
    ///
    /// # Errors
    /// When the directory won't tell, or what it tells can't be used.
    pub async fn database(&self, tenant: &Tenant, served: bool) -> Result<Opened, SinkError> {
        let outside = match &self.databases {
            Databases::Worker { manager, .. } if served => {
                let ask = GetPool { tenant: tenant.clone(), last: false, span: Span::root("inspect") };
                let pool = manager.send(ask).await.unwrap_or(Err(SinkError::ManagerGone))?;
                return Ok(Opened { database: pool.database, table: pool.table, own: false });
            }
            Databases::Worker { outside, .. } | Databases::Outside(outside) => outside,
        };
        let settings = outside.directory.database(tenant).await?;
        outside.options.allows(&settings)?;
        let table = match &settings.schema {
            Some(schema) => Table::in_schema(schema)?,
            None => Table::unqualified(),
        };
        let spec = DatabaseSpec { max_connections: 1, ..outside.options.spec(&settings) };
        let database = Database::open(spec, ConnectionBudget::new(1))?;
        Ok(Opened { database, table, own: true })
    }
}

// -- quarantine --------------------------------------------------------------------------------------------------------

/// A quarantined balance, without its value.
#[derive(Debug, Clone)]
pub struct Quarantined {
    /// Whose.
    pub tenant: Tenant,
    /// The member of the schedule.
    pub member: Vec<u8>,
    /// Why; `value` is left out.
    pub entry: QuarantineEntry,
    /// Whether there is a value.
    pub has_value: bool,
}

impl Inspector {
    /// The quarantined balances of these tenants, without their values, which together may be large.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantined(&self, tenants: &[Tenant]) -> Result<Vec<Quarantined>, ScheduleError> {
        let mut found = Vec::new();
        for tenant in tenants {
            self.schedules(tenant)
                .quarantine_each(|member, mut entry| {
                    let has_value = entry.value.take().is_some();
                    found.push(Quarantined { tenant: tenant.clone(), member, entry, has_value });
                })
                .await?;
        }
        Ok(found)
    }
}
