//! Why a tenant is degraded, and what follows from a reason's name alone: how soon the tenant is tried again.

use crate::name::names;

/// How long a tenant waits between tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pace {
    /// The failure may be over at any moment (`postgres.backoff_max`).
    Short,
    /// Somebody has to do something first (`postgres.backoff_long`).
    Long,
}

names! {
    /// Why a tenant is degraded.
    pub enum Reason {
        /// Not connected to Postgres, or no longer.
        PostgresConnection = "postgres_connection",
        /// No name service knows the host of Postgres.
        PostgresDns = "postgres_dns",
        /// Another session has locked some of the tenant's rows; the others are written.
        PostgresRowLocked = "postgres_row_locked",
        /// Postgres, or our own budget, has no connection to give.
        PostgresTooManyConnections = "postgres_too_many_connections",
        /// No answer of Postgres in time.
        PostgresTimeout = "postgres_timeout",
        /// Postgres takes no writes.
        PostgresReadOnly = "postgres_read_only",
        /// Other transactions were in the way again and again.
        PostgresContention = "postgres_contention",
        /// Wrong user or password.
        PostgresCredentials = "postgres_credentials",
        /// There is no such database.
        PostgresDatabaseMissing = "postgres_database_missing",
        /// Table, column or schema missing.
        PostgresNotProvisioned = "postgres_not_provisioned",
        /// The role may not do what is needed.
        PostgresPermission = "postgres_permission",
        /// Row security applies to the role.
        PostgresRowSecurity = "postgres_row_security",
        /// No row of this tenant can be seen.
        PostgresNoVisibleRows = "postgres_no_visible_rows",
        /// Every update is refused, whatever it writes.
        PostgresRefusesEveryRow = "postgres_refuses_every_row",
        /// Out of disk, memory or the like.
        PostgresResources = "postgres_resources",
        /// No TLS with Postgres.
        PostgresTls = "postgres_tls",
        /// Settings that can't work.
        PostgresConfiguration = "postgres_configuration",
        /// What stands between the worker and Postgres can't be relied upon.
        PostgresPoolerUnsafe = "postgres_pooler_unsafe",
        /// Any other failure of Postgres.
        PostgresInternal = "postgres_internal",
        /// No connection to Redis, or no answer in time.
        RedisUnavailable = "redis_unavailable",
        /// Redis reads its data after a start.
        RedisLoading = "redis_loading",
        /// A script holds Redis.
        RedisBusy = "redis_busy",
        /// A replica answers.
        RedisReadOnly = "redis_read_only",
        /// Too few replicas are in step.
        RedisNoReplicas = "redis_no_replicas",
        /// The last snapshot failed.
        RedisMisconf = "redis_misconf",
        /// Redis is full.
        RedisOutOfMemory = "redis_out_of_memory",
        /// A cluster that moves its slot, or is down.
        RedisCluster = "redis_cluster",
        /// The user may not use a command or a key.
        RedisPermission = "redis_permission",
        /// Scripts may use only the keys that they declare.
        RedisUndeclaredKeys = "redis_undeclared_keys",
        /// User or password refused.
        RedisCredentials = "redis_credentials",
        /// A key of ours holds something else.
        RedisWrongType = "redis_wrong_type",
        /// An answer that the contract doesn't allow.
        RedisUnexpected = "redis_unexpected",
        /// Some values are in a format of a later release.
        ValueUnknownFormat = "value_unknown_format",
        /// The tenant service doesn't know the tenant.
        TenantNotFound = "tenant_not_found",
        /// The tenant service has suspended it.
        TenantSuspended = "tenant_suspended",
        /// The tenant service has purged it.
        TenantPurged = "tenant_purged",
        /// The tenant service refuses it without saying why.
        TenantForbidden = "tenant_forbidden",
        /// Its settings can't be used.
        TenantConfigMalformed = "tenant_config_malformed",
        /// Its settings are not known, and the tenant service gives no answer.
        TenantServiceUnavailable = "tenant_service_unavailable",
        /// The tenant service refuses the API key.
        TenantServiceUnauthorized = "tenant_service_unauthorized",
        /// Its collector panicked.
        CollectorCrashed = "collector_crashed",
        /// The worker is stopping.
        Stopping = "stopping",
    }
}

impl Reason {
    /// How soon the tenant is tried again.
    #[must_use]
    pub const fn pace(self) -> Pace {
        match self {
            Self::PostgresConnection
            | Self::PostgresDns
            | Self::PostgresRowLocked
            | Self::PostgresTooManyConnections
            | Self::PostgresTimeout
            | Self::PostgresReadOnly
            | Self::PostgresContention
            | Self::PostgresResources
            | Self::RedisUnavailable
            | Self::RedisLoading
            | Self::RedisBusy
            | Self::RedisReadOnly
            | Self::RedisNoReplicas
            | Self::RedisMisconf
            | Self::RedisOutOfMemory
            | Self::RedisCluster
            | Self::TenantServiceUnavailable
            | Self::Stopping => Pace::Short,
            Self::PostgresCredentials
            | Self::PostgresDatabaseMissing
            | Self::PostgresNotProvisioned
            | Self::PostgresPermission
            | Self::PostgresRowSecurity
            | Self::PostgresNoVisibleRows
            | Self::PostgresRefusesEveryRow
            | Self::PostgresTls
            | Self::PostgresConfiguration
            | Self::PostgresPoolerUnsafe
            | Self::PostgresInternal
            | Self::RedisPermission
            | Self::RedisUndeclaredKeys
            | Self::RedisCredentials
            | Self::RedisWrongType
            | Self::RedisUnexpected
            | Self::ValueUnknownFormat
            | Self::TenantNotFound
            | Self::TenantSuspended
            | Self::TenantPurged
            | Self::TenantForbidden
            | Self::TenantConfigMalformed
            | Self::TenantServiceUnauthorized
            | Self::CollectorCrashed => Pace::Long,
        }
    }
}
