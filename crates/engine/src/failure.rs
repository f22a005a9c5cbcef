//! The failure table: what a tenant does about each kind of failure (`docs/reliability.md`).
//!
//! The adapters of Redis, Postgres and the tenant service sort what they meet into the classes below; [`reaction`] decides
//! what each leads to. Both are here, so that a class without a reaction doesn't compile, and neither the adapters nor the
//! simulator can have other classes than the table.
//!
//! In every case the claims are given back, or lapse when Redis itself fails ([`Side`]); the table says how the tenant goes
//! on.

use crate::names;
pub use crate::reason::{Pace, Reason};

names! {
    /// A failure of Postgres, as far as the reaction to it differs.
    pub enum PostgresClass {
        /// Not connected, or no longer: refused, reset, shutting down, starting up.
        Connection = "connection",
        /// No name service knows the host.
        Dns = "dns",
        /// The server, the role or the database has no connection to give.
        TooManyConnections = "too_many_connections",
        /// All connections that this worker may have are in use.
        ConnectionBudget = "connection_budget",
        /// No answer in time: statement timeout, lock timeout, or a connection that has gone silent.
        Timeout = "timeout",
        /// The server takes no writes: a standby, or a primary just demoted.
        ReadOnly = "read_only",
        /// Another transaction was in the way; the same statement may succeed at once.
        Contention = "contention",
        /// Wrong user or password.
        Credentials = "credentials",
        /// There is no such database, or it admits no connections.
        DatabaseMissing = "database_missing",
        /// A table, schema or column that the statement needs is not there or has another type.
        NotProvisioned = "not_provisioned",
        /// The role may not do this.
        Permission = "permission",
        /// Row security would decide which rows the role sees: they can't be determined from missing ones.
        RowSecurity = "row_security",
        /// The table has no row that the role can see, or none of the tenant's organizations: an empty or wrong database.
        NoVisibleRows = "no_visible_rows",
        /// The table refuses every update, whatever it writes: a trigger or a constraint.
        RefusesEveryRow = "refuses_every_row",
        /// A value that Postgres refuses.
        Refused = "refused",
        /// The server is out of disk, memory or another resource.
        Resources = "resources",
        /// No TLS with this server: a certificate that can't be read or trusted, or TLS that the server doesn't offer.
        Tls = "tls",
        /// The settings can't work.
        Configuration = "configuration",
        /// What is between here and Postgres can't be relied upon: settings that have no effect, a connection that leads to
        /// another database than before or to another tenant's, an unknown prepared statement. Nothing was written.
        PoolerUnsafe = "pooler_unsafe",
        /// The server sent or announced more than a connection may, and was cut off.
        Excess = "excess",
        /// This handle on the database has been closed. Its successor, if there is one, may be used at once.
        Closed = "closed",
        /// Anything else: a fault in the server or in this program.
        Internal = "internal",
    }
}

impl PostgresClass {
    /// Whether the same write may succeed later without a change of settings, schema or data.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        // Resources may be freed by the server itself.
        matches!(reaction(Cause::Postgres(self)).reason.pace(), Pace::Short)
    }
}

names! {
    /// A failure of Redis, named after what the operator has to check. The names are those of the reasons.
    pub enum RedisClass {
        /// No connection, a broken connection, or no answer in time.
        Unavailable = "redis_unavailable",
        /// Redis is loading its data set after a start (`LOADING`).
        Loading = "redis_loading",
        /// The server is a replica (`READONLY`, `MASTERDOWN`): a failover.
        ReadOnly = "redis_read_only",
        /// Redis is out of memory (`OOM`) and refuses commands that might need more.
        OutOfMemory = "redis_out_of_memory",
        /// The cluster moved the slot, is moving it, or is down (`MOVED`, `ASK`, `CLUSTERDOWN`, `TRYAGAIN`, `CROSSSLOT`,
        /// "non local key").
        Cluster = "redis_cluster",
        /// User name or password are refused (`NOAUTH`, `WRONGPASS`).
        Credentials = "redis_credentials",
        /// A key of ours is of another type (`WRONGTYPE`).
        WrongType = "redis_wrong_type",
        /// The answer violates the script's contract.
        Unexpected = "redis_unexpected",
        /// A long-running script blocks Redis (`BUSY`).
        Busy = "redis_busy",
        /// The user may not use a command or a key (`NOPERM`).
        Permission = "redis_permission",
        /// Fewer replicas are in sync than `min-replicas-to-write` demands (`NOREPLICAS`).
        NoReplicas = "redis_no_replicas",
        /// The last snapshot failed, and Redis takes no writes until one succeeds (`MISCONF`).
        Misconf = "redis_misconf",
        /// The server lets scripts use only keys that they declare (Dragonfly).
        UndeclaredKeys = "redis_undeclared_keys",
    }
}

impl RedisClass {
    /// The reason of a tenant that meets it.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Unavailable => Reason::RedisUnavailable,
            Self::Loading => Reason::RedisLoading,
            Self::ReadOnly => Reason::RedisReadOnly,
            Self::OutOfMemory => Reason::RedisOutOfMemory,
            Self::Cluster => Reason::RedisCluster,
            Self::Credentials => Reason::RedisCredentials,
            Self::WrongType => Reason::RedisWrongType,
            Self::Unexpected => Reason::RedisUnexpected,
            Self::Busy => Reason::RedisBusy,
            Self::Permission => Reason::RedisPermission,
            Self::NoReplicas => Reason::RedisNoReplicas,
            Self::Misconf => Reason::RedisMisconf,
            Self::UndeclaredKeys => Reason::RedisUndeclaredKeys,
        }
    }

    /// Whether the failure may end without an operator. Credentials, rights, undeclared keys and a key of the wrong type need
    /// one. Workers retry these too, with a long delay, because they can be fixed at any time.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self.reason().pace(), Pace::Short)
    }

    /// Whether Redis refused the call, and will refuse it again until the server is reconfigured or fails over.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        match self {
            Self::ReadOnly
            | Self::OutOfMemory
            | Self::Cluster
            | Self::Credentials
            | Self::Permission
            | Self::NoReplicas
            | Self::Misconf
            | Self::UndeclaredKeys => true,
            Self::Unavailable | Self::Loading | Self::Busy | Self::WrongType | Self::Unexpected => false,
        }
    }

    /// Whether Redis answers reads and takes no writes, from any client.
    #[must_use]
    pub const fn refuses_writes(self) -> bool {
        match self {
            Self::ReadOnly | Self::NoReplicas | Self::Misconf | Self::OutOfMemory => true,
            Self::Unavailable
            | Self::Loading
            | Self::Cluster
            | Self::Credentials
            | Self::WrongType
            | Self::Unexpected
            | Self::Busy
            | Self::Permission
            | Self::UndeclaredKeys => false,
        }
    }

    /// Whether the next call should open a new connection. Includes the answers of a replica: after a failover the master
    /// is another server.
    #[must_use]
    pub const fn needs_new_connection(self) -> bool {
        match self {
            Self::Unavailable | Self::ReadOnly | Self::Cluster | Self::Credentials => true,
            Self::Loading
            | Self::OutOfMemory
            | Self::WrongType
            | Self::Unexpected
            | Self::Busy
            | Self::Permission
            | Self::NoReplicas
            | Self::Misconf
            | Self::UndeclaredKeys => false,
        }
    }
}

names! {
    /// Why the tenant directory gives no answer.
    pub enum DirectoryClass {
        /// There is no such tenant, or it doesn't use this service.
        NotFound = "not_found",
        /// The tenant is suspended.
        Suspended = "suspended",
        /// The tenant is purged.
        Purged = "purged",
        /// Refused for a reason that neither says "stop" nor "try again".
        Forbidden = "forbidden",
        /// The API key isn't accepted.
        Unauthorized = "unauthorized",
        /// No answer, or one that only an ill service (or something in front of it) gives.
        Unavailable = "unavailable",
        /// The service failed so often that it isn't asked for a while.
        BreakerOpen = "breaker_open",
        /// An answer that can't be used.
        Malformed = "malformed",
    }
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Postgres.
    Postgres(PostgresClass),
    /// The flush took longer than its deadline; whether it was written is unknown, and doesn't matter.
    FlushDeadline,
    /// The directory gives no database.
    Directory(DirectoryClass),
    /// The schema name can't be used.
    Schema,
    /// The worker is stopping, and gives no more permits.
    WorkerStopping,
    /// Redis.
    Redis(RedisClass),
}

/// Whether the settings in force are doubted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settings {
    /// They stay in force.
    Keep,
    /// They are fetched afresh: the answer in force may be out of date.
    Refetch,
}

/// How the next try begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NextTry {
    /// Postgres must answer a ping before anything is claimed.
    Ping,
    /// One batch is claimed and tried: a ping proves nothing (a missing table answers pings).
    Claim,
}

/// What kind of obstacle it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Obstacle {
    /// A call failed.
    Failure,
    /// The tenant is passed over: its database can't be had.
    Skipped,
}

/// What the tenant does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reaction {
    /// The reason in its state; it says how long the tenant waits.
    pub reason: Reason,
    /// What becomes of its settings.
    pub settings: Settings,
    /// How it tries its way back.
    pub next_try: NextTry,
    /// What kind of obstacle it is.
    pub obstacle: Obstacle,
}

impl Reaction {
    const fn new(reason: Reason) -> Self {
        Self { reason, settings: Settings::Keep, next_try: NextTry::Claim, obstacle: Obstacle::Failure }
    }

    const fn pinging(self) -> Self {
        Self { next_try: NextTry::Ping, ..self }
    }

    const fn refetching(self) -> Self {
        Self { settings: Settings::Refetch, ..self }
    }

    const fn skipped(reason: Reason) -> Self {
        Self { obstacle: Obstacle::Skipped, ..Self::new(reason).refetching().pinging() }
    }

    /// How long the tenant waits between tries.
    #[must_use]
    pub const fn pace(&self) -> Pace {
        self.reason.pace()
    }
}

/// The table.
#[must_use]
pub const fn reaction(cause: Cause) -> Reaction {
    match cause {
        Cause::Postgres(class) => match class {
            PostgresClass::Connection => Reaction::new(Reason::PostgresConnection).pinging(),
            // Who can't be found may be somewhere else.
            PostgresClass::Dns => Reaction::new(Reason::PostgresDns).refetching().pinging(),
            PostgresClass::TooManyConnections => Reaction::new(Reason::PostgresTooManyConnections).pinging(),
            // A ping would wait in the same queue, and less patiently than a batch.
            PostgresClass::ConnectionBudget => Reaction::new(Reason::PostgresConnectionBudget),
            PostgresClass::Timeout => Reaction::new(Reason::PostgresTimeout).pinging(),
            PostgresClass::ReadOnly => Reaction::new(Reason::PostgresReadOnly).refetching(),
            // The store has retried these at once already.
            PostgresClass::Contention => Reaction::new(Reason::PostgresContention),
            PostgresClass::Credentials => Reaction::new(Reason::PostgresCredentials).refetching().pinging(),
            PostgresClass::DatabaseMissing => {
                Reaction::new(Reason::PostgresDatabaseMissing).refetching().pinging()
            }
            PostgresClass::NotProvisioned => Reaction::new(Reason::PostgresNotProvisioned).refetching(),
            PostgresClass::Permission => Reaction::new(Reason::PostgresPermission).refetching(),
            PostgresClass::RowSecurity => Reaction::new(Reason::PostgresRowSecurity).refetching(),
            PostgresClass::NoVisibleRows => Reaction::new(Reason::PostgresNoVisibleRows).refetching(),
            PostgresClass::RefusesEveryRow => Reaction::new(Reason::PostgresRefusesEveryRow),
            PostgresClass::Resources => Reaction::new(Reason::PostgresResources),
            PostgresClass::Tls => Reaction::new(Reason::PostgresTls).refetching().pinging(),
            PostgresClass::Configuration => {
                Reaction::new(Reason::PostgresConfiguration).refetching().pinging()
            }
            PostgresClass::PoolerUnsafe => Reaction::new(Reason::PostgresPoolerUnsafe).refetching(),
            PostgresClass::Excess => Reaction::new(Reason::PostgresExcess).refetching(),
            // Its successor may be used at once.
            PostgresClass::Closed => Reaction::new(Reason::PostgresConnection),
            // The store bisects batches with refused values; one that comes here is a fault of ours, as any other.
            PostgresClass::Refused | PostgresClass::Internal => Reaction::new(Reason::PostgresInternal),
        },
        Cause::FlushDeadline => Reaction::new(Reason::PostgresTimeout).pinging(),
        Cause::Directory(class) => Reaction::skipped(match class {
            DirectoryClass::NotFound => Reason::TenantNotFound,
            DirectoryClass::Suspended => Reason::TenantSuspended,
            DirectoryClass::Purged => Reason::TenantPurged,
            DirectoryClass::Forbidden => Reason::TenantForbidden,
            DirectoryClass::Malformed => Reason::TenantConfigMalformed,
            DirectoryClass::Unauthorized => Reason::TenantServiceUnauthorized,
            DirectoryClass::Unavailable | DirectoryClass::BreakerOpen => Reason::TenantServiceUnavailable,
        }),
        Cause::Schema => Reaction::skipped(Reason::TenantConfigMalformed),
        Cause::WorkerStopping => Reaction::skipped(Reason::Stopping),
        // A claim that is refused claims nothing; what is held can't be given back then, and lapses by itself.
        Cause::Redis(class) => Reaction::new(class.reason()),
    }
}

/// Which part of the work fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Redis can't be reached: nothing can be claimed, released or protected, but what is held can still be written.
    Queue,
    /// Redis answers, and refuses to let members be claimed.
    Claim,
    /// Redis lets members be claimed, and refuses to take them off the schedule once they are written.
    Settle,
    /// Postgres, or the way to it: nothing can be written.
    Sink,
}

/// What becomes of the claims that are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claims {
    /// They are given back, so that another worker can go on at once.
    Released,
    /// They can't be given back and lapse by themselves; what is held is written as long as Postgres takes it.
    Lapse,
}

impl Side {
    /// The side of a claim that failed.
    #[must_use]
    pub const fn of_claim(class: RedisClass) -> Self {
        if class.is_refusal() { Self::Claim } else { Self::Queue }
    }

    /// Whether the answer to a claim shows that the failure is over.
    #[must_use]
    pub const fn ends_with_a_claim(self) -> bool {
        matches!(self, Self::Queue | Self::Claim)
    }

    /// What becomes of the claims that are held.
    #[must_use]
    pub const fn claims(self) -> Claims {
        match self {
            Self::Sink | Self::Settle => Claims::Released,
            Self::Queue | Self::Claim => Claims::Lapse,
        }
    }
}

/// A failure, as far as decisions depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What fails.
    pub side: Side,
    /// What is done about it.
    pub reaction: Reaction,
    /// In words, for people; no secrets.
    pub detail: String,
}

impl Failure {
    /// The failure of this side with this cause.
    #[must_use]
    pub fn new(side: Side, cause: Cause, detail: impl Into<String>) -> Self {
        Self { side, reaction: reaction(cause), detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row, in words: reason, pace, and what is set of `refetch`, `ping` and `skip`.
    type Row = (&'static str, Pace, &'static str);

    fn row(cause: Cause) -> Row {
        let found = reaction(cause);
        let flags = match (found.settings, found.next_try, found.obstacle) {
            (Settings::Keep, NextTry::Claim, Obstacle::Failure) => "",
            (Settings::Keep, NextTry::Ping, Obstacle::Failure) => "ping",
            (Settings::Refetch, NextTry::Claim, Obstacle::Failure) => "refetch",
            (Settings::Refetch, NextTry::Ping, Obstacle::Failure) => "refetch ping",
            (Settings::Refetch, NextTry::Ping, Obstacle::Skipped) => "refetch ping skip",
            other => panic!("not in the table: {other:?}"),
        };
        (found.reason.as_str(), found.pace(), flags)
    }

    #[test]
    fn every_class_of_postgres_has_its_row() {
        use Pace::{Long, Short};
        let expected = |class| match class {
            PostgresClass::Connection => ("postgres_connection", Short, "ping"),
            PostgresClass::Dns => ("postgres_dns", Short, "refetch ping"),
            PostgresClass::TooManyConnections => ("postgres_too_many_connections", Short, "ping"),
            PostgresClass::ConnectionBudget => ("postgres_connection_budget", Short, ""),
            PostgresClass::Timeout => ("postgres_timeout", Short, "ping"),
            PostgresClass::ReadOnly => ("postgres_read_only", Short, "refetch"),
            PostgresClass::Contention => ("postgres_contention", Short, ""),
            PostgresClass::Credentials => ("postgres_credentials", Long, "refetch ping"),
            PostgresClass::DatabaseMissing => ("postgres_database_missing", Long, "refetch ping"),
            PostgresClass::NotProvisioned => ("postgres_not_provisioned", Long, "refetch"),
            PostgresClass::Permission => ("postgres_permission", Long, "refetch"),
            PostgresClass::RowSecurity => ("postgres_row_security", Long, "refetch"),
            PostgresClass::NoVisibleRows => ("postgres_no_visible_rows", Long, "refetch"),
            PostgresClass::RefusesEveryRow => ("postgres_refuses_every_row", Long, ""),
            PostgresClass::Resources => ("postgres_resources", Short, ""),
            PostgresClass::Tls => ("postgres_tls", Long, "refetch ping"),
            PostgresClass::Configuration => ("postgres_configuration", Long, "refetch ping"),
            PostgresClass::PoolerUnsafe => ("postgres_pooler_unsafe", Long, "refetch"),
            PostgresClass::Excess => ("postgres_excess", Long, "refetch"),
            PostgresClass::Closed => ("postgres_connection", Short, ""),
            PostgresClass::Refused | PostgresClass::Internal => ("postgres_internal", Long, ""),
        };
        for class in PostgresClass::ALL {
            assert_eq!(row(Cause::Postgres(class)), expected(class));
        }
        assert_eq!(row(Cause::FlushDeadline), ("postgres_timeout", Short, "ping"));
    }

    #[test]
    fn every_class_of_redis_has_its_row_under_its_own_name() {
        for class in RedisClass::ALL {
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
            assert_eq!(row(Cause::Redis(class)), (class.as_str(), pace, ""));
            assert_eq!(class.is_transient(), pace == Pace::Short);
            let side = Side::of_claim(class);
            assert_eq!(side == Side::Claim, class.is_refusal());
            assert_eq!(side.claims(), Claims::Lapse, "Redis takes nothing back that it refuses to give");
        }
    }

    #[test]
    fn what_the_directory_refuses_passes_the_tenant_over() {
        use Pace::{Long, Short};
        let all = "refetch ping skip";
        let rows = [
            (DirectoryClass::NotFound, "tenant_not_found", Long),
            (DirectoryClass::Suspended, "tenant_suspended", Long),
            (DirectoryClass::Purged, "tenant_purged", Long),
            (DirectoryClass::Forbidden, "tenant_forbidden", Long),
            (DirectoryClass::Malformed, "tenant_config_malformed", Long),
            (DirectoryClass::Unauthorized, "tenant_service_unauthorized", Long),
            (DirectoryClass::Unavailable, "tenant_service_unavailable", Short),
            (DirectoryClass::BreakerOpen, "tenant_service_unavailable", Short),
        ];
        assert_eq!(rows.len(), DirectoryClass::ALL.len());
        for (class, reason, pace) in rows {
            assert_eq!(row(Cause::Directory(class)), (reason, pace, all));
        }
        assert_eq!(row(Cause::Schema), ("tenant_config_malformed", Long, all));
        assert_eq!(row(Cause::WorkerStopping), ("stopping", Short, all));
    }

    #[test]
    fn a_ping_proves_nothing_where_the_server_answers_and_refuses() {
        for class in PostgresClass::ALL {
            let refuses = matches!(
                class,
                PostgresClass::ReadOnly
                    | PostgresClass::NotProvisioned
                    | PostgresClass::Permission
                    | PostgresClass::RowSecurity
                    | PostgresClass::NoVisibleRows
                    | PostgresClass::RefusesEveryRow
                    | PostgresClass::Resources
                    | PostgresClass::PoolerUnsafe
                    | PostgresClass::Excess
            );
            if refuses {
                assert_eq!(reaction(Cause::Postgres(class)).next_try, NextTry::Claim, "{class}");
            }
        }
    }
}
