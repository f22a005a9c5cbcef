//! The failure table: what a tenant does about each kind of failure (`docs/reliability.md`).
//!
//! In every case the claims are released, or lapse when Redis itself is away; the table says how the tenant goes on.

use balance_sync_engine::failure::{Failure, Side};
pub use balance_sync_engine::failure::{Pace, Reaction};
use balance_sync_schedule::{ErrorClass as RedisClass, ScheduleError};
use balance_sync_store::{ErrorClass as StoreClass, InvalidIdentifier, StoreError};
use balance_sync_tenants::DirectoryError;

/// Why a batch could not be written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SinkError {
    /// The tenant's database could not be had: the tenant service gave no answer, or says it must not be served.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The schema name can't be used.
    #[error(transparent)]
    Schema(#[from] InvalidIdentifier),
    /// Postgres failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The flush took longer than its deadline; whether it was written is unknown, and doesn't matter.
    #[error("postgres: no answer within the flush deadline of {0:?}")]
    Deadline(std::time::Duration),
    /// The tenant manager has ended: the worker is stopping.
    #[error("tenant manager has ended")]
    ManagerGone,
}

/// The reason of a tenant whose database shows no row that could be its own.
pub const NO_VISIBLE_ROWS: &str = "postgres_no_visible_rows";
/// The reason of a tenant some of whose values are in a format of a later release; the others are written.
pub const UNKNOWN_FORMAT: &str = "value_unknown_format";

const fn row(reason: &'static str, pace: Pace, refetch: bool, ping: bool) -> Reaction {
    Reaction { reason, pace, refetch, ping, skip: false }
}

const fn skip(reason: &'static str, pace: Pace) -> Reaction {
    Reaction { reason, pace, refetch: true, ping: true, skip: true }
}

/// The reaction to a failed write.
#[must_use]
pub fn reaction(error: &SinkError) -> Reaction {
    use Pace::{Long, Short};
    match error {
        SinkError::Store(error) => match error.class() {
            StoreClass::Connection => row("postgres_connection", Short, false, true),
            StoreClass::TooManyConnections => row("postgres_too_many_connections", Short, false, true),
            StoreClass::Timeout => row("postgres_timeout", Short, false, true),
            StoreClass::ReadOnly => row("postgres_read_only", Short, true, false),
            // The store has retried these at once already.
            StoreClass::Contention => row("postgres_contention", Short, false, false),
            StoreClass::Credentials => row("postgres_credentials", Long, true, true),
            StoreClass::DatabaseMissing => row("postgres_database_missing", Long, true, true),
            StoreClass::NotProvisioned => row("postgres_not_provisioned", Long, true, false),
            StoreClass::Permission => row("postgres_permission", Long, true, false),
            StoreClass::RowSecurity => row("postgres_row_security", Long, true, false),
            StoreClass::NoVisibleRows => row(NO_VISIBLE_ROWS, Long, true, false),
            StoreClass::RefusesEveryRow => row("postgres_refuses_every_row", Long, false, false),
            StoreClass::Resources => row("postgres_resources", Short, false, false),
            StoreClass::Configuration => row("postgres_configuration", Long, true, true),
            StoreClass::PoolerUnsafe => row("postgres_pooler_unsafe", Long, true, false),
            // Its successor may be used at once.
            StoreClass::Closed => row("postgres_connection", Short, false, false),
            // The store isolates refused values; one that comes here is a fault of ours, as any other.
            StoreClass::Refused | StoreClass::Internal => row("postgres_internal", Long, false, false),
        },
        SinkError::Deadline(_) => row("postgres_timeout", Short, false, true),
        SinkError::Directory(error) => match error {
            DirectoryError::NotFound => skip("tenant_not_found", Long),
            DirectoryError::Suspended => skip("tenant_suspended", Long),
            DirectoryError::Purged => skip("tenant_purged", Long),
            DirectoryError::Forbidden { .. } => skip("tenant_forbidden", Long),
            DirectoryError::Malformed { .. } => skip("tenant_config_malformed", Long),
            DirectoryError::Unauthorized => skip("tenant_service_unauthorized", Long),
            DirectoryError::Unavailable { .. } | DirectoryError::BreakerOpen { .. } => {
                skip("tenant_service_unavailable", Short)
            }
        },
        SinkError::Schema(_) => skip("tenant_config_malformed", Long),
        SinkError::ManagerGone => skip("stopping", Short),
    }
}

impl From<&SinkError> for Failure {
    fn from(error: &SinkError) -> Self {
        Self { side: Side::Sink, reaction: reaction(error), detail: error.to_string() }
    }
}

/// A call to Redis that failed, as the failure of this side.
pub(crate) fn redis_failure(side: Side, error: &ScheduleError) -> Failure {
    Failure { side, reaction: redis_reaction(error.class), detail: error.to_string() }
}

/// The reaction to a failed call to Redis. A claim that is refused claims nothing; what is held can't be released then, and
/// lapses by itself.
#[must_use]
pub fn redis_reaction(class: RedisClass) -> Reaction {
    let pace = match class {
        RedisClass::Unavailable
        | RedisClass::Loading
        | RedisClass::Busy
        | RedisClass::ReadOnly
        | RedisClass::NoReplicas
        | RedisClass::Misconf
        | RedisClass::OutOfMemory
        | RedisClass::Cluster => Pace::Short,
        RedisClass::Credentials
        | RedisClass::Permission
        | RedisClass::UndeclaredKeys
        | RedisClass::WrongType
        | RedisClass::Unexpected => Pace::Long,
    };
    row(class.name(), pace, false, false)
}

/// Whether a reason is one that somebody has to mend, so that tries are far apart.
#[must_use]
pub fn waits_long(reason: &str) -> bool {
    !matches!(
        reason,
        "postgres_connection"
            | "postgres_too_many_connections"
            | "postgres_timeout"
            | "postgres_read_only"
            | "postgres_contention"
            | "postgres_resources"
            | "tenant_service_unavailable"
            | "stopping"
            | "redis_unavailable"
            | "redis_loading"
            | "redis_busy"
            | "redis_read_only"
            | "redis_no_replicas"
            | "redis_misconf"
            | "redis_out_of_memory"
            | "redis_cluster"
    )
}
