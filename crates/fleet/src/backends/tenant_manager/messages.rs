//! What the tenant manager can be asked, and its answers.

use std::{collections::HashMap, time::Duration};

use actix::prelude::*;
use balance_sync_domain::{Reported, TenantId};
use balance_sync_store::{ConnectionMode, Database, PoolUsage, Table};
use balance_sync_tenants::Tenant;
use balance_sync_trace::Span;
use serde::{Deserialize, Serialize};

use crate::pipeline::SinkError;

/// A tenant's database and its table.
#[derive(Debug, Clone)]
pub struct TenantPool {
    /// The connections, perhaps shared with other tenants of the same database.
    pub database: Database,
    /// The balance table, in the tenant's schema if it has one.
    pub table: Table,
    /// Grows with each change of the tenant's settings.
    pub revision: u64,
}

/// Asks for a tenant's database.
#[derive(Message)]
#[rtype(result = "Result<TenantPool, SinkError>")]
pub struct GetPool {
    /// Whose.
    pub tenant: Tenant,
    /// For a final flush: what was last known is given even if the tenant must no longer be served.
    pub last: bool,
    /// For what it is asked: a look-up that it causes is a part of that.
    pub span: Span,
}

/// Says that the settings of this revision don't work: they are fetched afresh unless that has happened already. The
/// answer is what is in force then.
#[derive(Message)]
#[rtype(result = "Result<TenantPool, SinkError>")]
pub struct Refetch {
    /// Whose.
    pub tenant: Tenant,
    /// The revision that failed; `None` = whatever is in force.
    pub revision: Option<u64>,
    /// For what it is asked.
    pub span: Span,
}

/// Says that a tenant's Postgres fails in a way that other settings might mend: they are looked up again, unless that has happened
/// just now or happens too often because of the same server.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Doubt {
    /// Whose.
    pub tenant: Tenant,
    /// For what it is said.
    pub span: Span,
}

/// Says that a tenant's settings may have changed. They are looked up again if they are known; nothing is opened for a
/// tenant that isn't served here.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Hint(pub TenantId);

/// Says that a tenant is no longer served: its database is closed unless others share it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct TenantGone(pub Tenant);

/// Closes everything; nothing is given out afterwards.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CloseAll {
    /// How long what has begun may take.
    pub grace: Duration,
}

/// Asks how a tenant's connections are used; `None` when none is open.
#[derive(Message)]
#[rtype(result = "Option<PoolUsage>")]
pub struct GetUsage(pub Tenant);

/// Asks how the connections of all tenants that have some are used.
#[derive(Message)]
#[rtype(result = "HashMap<Tenant, PoolUsage>")]
pub struct GetUsages;

/// Asks where a tenant's balances are written, for people to look at; `None` when that isn't known here.
#[derive(Message)]
#[rtype(result = "Option<DatabaseView>")]
pub struct GetDatabaseView(pub Tenant);

/// A tenant's database settings in force, without password and keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseView {
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Database.
    pub database: String,
    /// User.
    pub username: String,
    /// Schema, if it has one of its own.
    pub schema: Option<String>,
    /// TLS.
    pub sslmode: String,
    /// Most connections to it.
    pub max_connections: u32,
    /// Whether a pooler stands before it; `None` when that isn't known.
    #[serde(default)]
    pub connection: Option<Reported<ConnectionMode>>,
}
