//! Why a tenant is degraded, and all that follows from the reason alone: how soon the tenant is tried again, and what
//! operators read about it.
//!
//! The table below is the only place that says so: commands and the dashboard show its texts, and `docs/operations.md` is
//! checked against it. Which failure has which reason is decided in [`crate::failure`].

use balance_sync_domain::Reported;

use crate::{
    controls::Action::{self, Acknowledge, Flush, RefreshCredentials},
    names,
};
use Pace::{Long, Short};

names! {
    /// How long a tenant waits between tries.
    pub enum Pace {
        /// The failure may be over at any moment (`postgres.backoff_max`).
        Short = "short",
        /// An operator has to act first (`postgres.backoff_long`).
        Long = "long",
    }
}

/// All that follows from a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    /// How soon the tenant is tried again.
    pub pace: Pace,
    /// The action that is offered first, if one helps.
    pub action: Option<Action>,
    /// What the reason means, for operators.
    pub means: &'static str,
    /// What helps, for operators.
    pub help: &'static str,
}

/// Makes [`Reason`] and its advice from one table, so that no column can be missing for a reason.
macro_rules! reasons {
    ($($Reason:ident = $name:literal {
        pace: $pace:expr, action: $action:expr,
        means: $means:literal,
        help: $help:literal,
    })+) => {
        names! {
            /// Why a tenant is degraded.
            pub enum Reason {
                $(#[doc = $means] $Reason = $name,)+
            }
        }

        impl Reason {
            /// All that follows from it.
            #[must_use]
            pub const fn advice(self) -> Advice {
                match self {
                    $(Self::$Reason => Advice {
                        pace: $pace,
                        action: $action,
                        means: $means,
                        help: $help,
                    },)+
                }
            }
        }
    };
}

reasons! {
    PostgresConnection = "postgres_connection" {
        pace: Short, action: Some(Flush),
        means: "Its Postgres refuses or resets connections.",
        help: "Look at the server. Writing goes on by itself within 2 s of its return.",
    }
    PostgresDns = "postgres_dns" {
        pace: Short, action: Some(RefreshCredentials),
        means: "No name service knows the host of its Postgres.",
        help: "Check the host in the tenant service's entry and the workers' name service.",
    }
    PostgresRowLocked = "postgres_row_locked" {
        pace: Short, action: None,
        means: "Another session has locked rows of it. The other balances are written.",
        help: "The detail names the process and its application: end its transaction, or wait. Its balances are tried every two seconds.",
    }
    PostgresTooManyConnections = "postgres_too_many_connections" {
        pace: Short, action: Some(Flush),
        means: "Server, role or database give no more connections.",
        help: "Raise their limit, or lower postgres.connections_per_server.",
    }
    PostgresConnectionBudget = "postgres_connection_budget" {
        pace: Short, action: Some(Flush),
        means: "All connections that a worker may have to its Postgres are in use. The limit is this worker's, not the server's.",
        help: "Do they hang (locks, a slow disk) or are they busy? Busy: raise postgres.connections_per_server (or fleet_connections_per_server, where it is set) or connections_per_tenant if the server has room, or add workers.",
    }
    PostgresTimeout = "postgres_timeout" {
        pace: Short, action: Some(Flush),
        means: "Its Postgres does not answer in time.",
        help: "Look at network, locks and disk of the server.",
    }
    PostgresReadOnly = "postgres_read_only" {
        pace: Short, action: Some(RefreshCredentials),
        means: "Its Postgres is a standby or was just demoted.",
        help: "Point the tenant service at the primary, then re-read credentials.",
    }
    PostgresReplaced = "postgres_replaced" {
        pace: Short, action: None,
        means: "Another Postgres server answers than before: a failover, a restart, a restore. Its rows are compared with Redis.",
        help: "Wait: what it lacks is scheduled again. The log then has the numbers.",
    }
    PostgresContention = "postgres_contention" {
        pace: Short, action: Some(Flush),
        means: "Deadlocks that repeated tries did not solve.",
        help: "Find out who else writes these rows.",
    }
    PostgresCredentials = "postgres_credentials" {
        pace: Long, action: Some(RefreshCredentials),
        means: "Postgres refuses user or password.",
        help: "Correct the tenant service's entry, then re-read credentials.",
    }
    PostgresDatabaseMissing = "postgres_database_missing" {
        pace: Long, action: Some(RefreshCredentials),
        means: "There is no such database, or it admits no connections.",
        help: "Correct the tenant service's entry, then re-read credentials.",
    }
    PostgresNotProvisioned = "postgres_not_provisioned" {
        pace: Long, action: Some(Flush),
        means: "Table, column or schema are missing.",
        help: "Has the ledger migrated this tenant? Afterwards: flush now.",
    }
    PostgresPermission = "postgres_permission" {
        pace: Long, action: Some(Flush),
        means: "The role may not use the schema or update the table.",
        help: "The detail says which: GRANT USAGE on the schema, SELECT and UPDATE on balance. Afterwards: flush now.",
    }
    PostgresRowSecurity = "postgres_row_security" {
        pace: Long, action: Some(Flush),
        means: "Row security applies to the role, so which rows it sees is unknown.",
        help: "ALTER ROLE … BYPASSRLS, or take row security off the table. Afterwards: flush now.",
    }
    PostgresNoVisibleRows = "postgres_no_visible_rows" {
        pace: Long, action: Some(RefreshCredentials),
        means: "The balance table has no row of this tenant: an empty, freshly restored or wrong database.",
        help: "Restore it, or correct the tenant service's entry and re-read credentials. Nothing leaves the schedule meanwhile.",
    }
    PostgresRefusesEveryRow = "postgres_refuses_every_row" {
        pace: Long, action: Some(Flush),
        means: "A trigger or constraint refuses every update, or the table is in no state to be updated.",
        help: "The detail has its message. Fix it; afterwards: flush now.",
    }
    PostgresResources = "postgres_resources" {
        pace: Short, action: Some(Flush),
        means: "Disk or memory of its Postgres are full.",
        help: "Free some. Afterwards: flush now.",
    }
    PostgresTls = "postgres_tls" {
        pace: Long, action: Some(RefreshCredentials),
        means: "No TLS with its Postgres: a certificate that isn't trusted, or TLS that the server doesn't offer.",
        help: "The detail says which: check sslmode, the certificate files, and the name in the server's certificate.",
    }
    PostgresConfiguration = "postgres_configuration" {
        pace: Long, action: Some(RefreshCredentials),
        means: "Its connection settings can't work.",
        help: "The detail names the setting: correct it in the tenant service's entry.",
    }
    PostgresPoolerUnsafe = "postgres_pooler_unsafe" {
        pace: Long, action: Some(RefreshCredentials),
        means: "Something between the workers and its Postgres is unreliable: session settings that have no effect, or a connection that leads to another database. Nothing was written.",
        help: "The detail says what. Check the pooler's database entries, or point the tenant service past it, then re-read credentials.",
    }
    PostgresExcess = "postgres_excess" {
        pace: Long, action: Some(RefreshCredentials),
        means: "Its Postgres sent or announced more than a connection may send, so the connection was ended.",
        help: "The detail says what: a message, a login, an answer, notices, settings or SCRAM iterations. Is it a Postgres server at all? Look at its triggers' notices, or correct the tenant service's entry.",
    }
    PostgresInternal = "postgres_internal" {
        pace: Long, action: Some(Flush),
        means: "Postgres fails in a way that has no class of its own.",
        help: "The detail and the worker's log have the SQLSTATE.",
    }
    RedisUnavailable = "redis_unavailable" {
        pace: Short, action: None,
        means: "Redis gives no answer.",
        help: "Look at Redis. Claims lapse by themselves; nothing is lost.",
    }
    RedisLoading = "redis_loading" {
        pace: Short, action: None,
        means: "Redis is starting and loads its data.",
        help: "Wait; it goes on by itself.",
    }
    RedisBusy = "redis_busy" {
        pace: Short, action: None,
        means: "A long-running script blocks Redis.",
        help: "SCRIPT KILL, and find out who runs it.",
    }
    RedisReadOnly = "redis_read_only" {
        pace: Short, action: None,
        means: "Redis is a replica or fails over.",
        help: "Wait for the failover; check which node the workers connect to.",
    }
    RedisNoReplicas = "redis_no_replicas" {
        pace: Short, action: None,
        means: "Fewer replicas are in step than min-replicas-to-write demands.",
        help: "Bring the replicas back. Nothing leaves the schedule meanwhile.",
    }
    RedisMisconf = "redis_misconf" {
        pace: Short, action: None,
        means: "The last snapshot of Redis failed, and it takes no writes.",
        help: "Look at the disk and the rights of Redis's folder (INFO persistence).",
    }
    RedisOutOfMemory = "redis_out_of_memory" {
        pace: Short, action: None,
        means: "Redis is full.",
        help: "Give it memory: values that wait must not be evicted.",
    }
    RedisCluster = "redis_cluster" {
        pace: Short, action: None,
        means: "A slot of the Redis Cluster moves or has moved, or the cluster is down.",
        help: "End the migration; nothing leaves the schedule meanwhile.",
    }
    RedisPermission = "redis_permission" {
        pace: Long, action: Some(Flush),
        means: "Redis's user may not use a command or a key.",
        help: "ACL LOG names both; grant it with ACL SETUSER. It is tried again by itself.",
    }
    RedisUndeclaredKeys = "redis_undeclared_keys" {
        pace: Long, action: Some(Flush),
        means: "This server lets scripts use only keys that they declare (Dragonfly).",
        help: "Start it with --default_lua_flags=allow-undeclared-keys, or use Redis or Valkey.",
    }
    RedisCredentials = "redis_credentials" {
        pace: Long, action: None,
        means: "Redis refuses user or password.",
        help: "Check redis.url and redis.password of the workers.",
    }
    RedisDataReplaced = "redis_data_replaced" {
        pace: Short, action: Some(Acknowledge),
        means: "Redis came back empty, with an older state or as another server: it may lack mutations that it had acknowledged.",
        help: "What is left is compared with rows and operations: what is behind is scheduled again, what is lost is listed. Acknowledge it when you have dealt with the rest.",
    }
    RedisScheduleVanished = "redis_schedule_vanished" {
        pace: Short, action: Some(Acknowledge),
        means: "Members have left the schedule and no worker has written them: its key was evicted or deleted.",
        help: "What is left is compared with rows and operations: what is behind is scheduled again, what is lost is listed. Acknowledge it when you have dealt with the rest.",
    }
    RedisEvicted = "redis_evicted" {
        pace: Short, action: Some(Acknowledge),
        means: "Redis throws keys away by itself, and balances that wait may be among them.",
        help: "Set maxmemory-policy to noeviction and give Redis memory. Values, rows and operations are compared when it has stopped.",
    }
    RedisUnmarked = "redis_unmarked" {
        pace: Short, action: Some(Acknowledge),
        means: "Redis has no mark of an earlier worker: it is new to balance-sync, or has lost all its data while no worker ran.",
        help: "Rows are compared with a day of operations; then it closes by itself, or says why not. Was Redis used before? Then run audit.",
    }
    RedisWrongType = "redis_wrong_type" {
        pace: Long, action: None,
        means: "A key of balance-sync has another type.",
        help: "Look at who else writes to this Redis.",
    }
    RedisUnexpected = "redis_unexpected" {
        pace: Long, action: None,
        means: "Redis gave an answer that the contract doesn't allow.",
        help: "Look at the worker's log.",
    }
    ValueUnknownFormat = "value_unknown_format" {
        pace: Long, action: None,
        means: "Some balances are in a format of a later release of the ledger. They stay scheduled and alive; the others are written.",
        help: "Update balance-sync. Nothing else has to be done.",
    }
    TenantNotFound = "tenant_not_found" {
        pace: Long, action: Some(RefreshCredentials),
        means: "The tenant service does not know it.",
        help: "Nothing, unless it should be there.",
    }
    TenantSuspended = "tenant_suspended" {
        pace: Long, action: Some(RefreshCredentials),
        means: "The tenant service has suspended it.",
        help: "Nothing, or reactivate it there.",
    }
    TenantPurged = "tenant_purged" {
        pace: Long, action: None,
        means: "The tenant service has purged it.",
        help: "Nothing.",
    }
    TenantForbidden = "tenant_forbidden" {
        pace: Long, action: Some(RefreshCredentials),
        means: "The tenant service says that it must not be served.",
        help: "Nothing, or reactivate it there.",
    }
    TenantConfigMalformed = "tenant_config_malformed" {
        pace: Long, action: Some(RefreshCredentials),
        means: "Its database settings can't be used.",
        help: "The detail names the field; correct it in the tenant service.",
    }
    TenantServiceUnavailable = "tenant_service_unavailable" {
        pace: Short, action: Some(RefreshCredentials),
        means: "Its settings are not known yet, and the tenant service gives no answer.",
        help: "Look at the tenant service.",
    }
    TenantServiceUnauthorized = "tenant_service_unauthorized" {
        pace: Long, action: Some(RefreshCredentials),
        means: "The tenant service refuses the API key.",
        help: "Check tenants.service.api_key.",
    }
    CollectorCrashed = "collector_crashed" {
        pace: Long, action: Some(Flush),
        means: "Its collector panicked; it starts again after a growing delay.",
        help: "Report the worker's log line.",
    }
    Stopping = "stopping" {
        pace: Short, action: None,
        means: "The worker is stopping; other workers go on with the tenant.",
        help: "Nothing.",
    }
}

impl Reason {
    /// How soon the tenant is tried again.
    #[must_use]
    pub const fn pace(self) -> Pace {
        self.advice().pace
    }
}

/// A reason that a worker reports.
pub type ReportedReason = Reported<Reason>;

/// How soon a tenant with this reason is tried again; of an unknown reason the worst is assumed.
#[must_use]
pub fn pace_of(reason: &ReportedReason) -> Pace {
    reason.known().map_or(Pace::Long, Reason::pace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_whole_sentences_and_offers_only_what_a_tenant_can_do() {
        for reason in Reason::ALL {
            let Advice { action, means, help, .. } = reason.advice();
            for text in [means, help] {
                assert!(
                    text.ends_with('.') && text.chars().next().is_some_and(char::is_uppercase),
                    "{reason}: {text}"
                );
                assert!(text.len() < 250, "{reason}: {text}");
            }
            assert!(action.is_none_or(Action::is_of_tenant), "{reason}");
        }
    }

    #[test]
    fn a_reason_of_another_release_is_the_worst() {
        assert_eq!(pace_of(&ReportedReason::from("postgres_on_the_moon")), Long);
        assert_eq!(pace_of(&Reason::RedisBusy.into()), Short);
    }
}
