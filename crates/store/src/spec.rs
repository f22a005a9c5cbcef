//! Where a database is and how to get in.

use balance_sync_domain::TlsMode;
use balance_sync_engine::fair::Weight;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::classify::{ErrorClass, StoreError};

/// Statement timeout when the tenant's settings name none, or name 0 (which for Postgres means "for ever"). A batch takes
/// some 30 ms; 30 s is what the tenant service sets by default.
const DEFAULT_STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Another worker's batch commits within some tens of milliseconds.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// How much longer than the server's own statement timeout we wait for an answer, at least and at most: the time for the
/// server's "canceled due to statement timeout" to arrive, which is the better error to have. In between it is as long
/// as the timeout itself: who allows little there has a fast network.
const ANSWER_MARGIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Everything that is needed to connect to one database.
#[derive(Clone)]
pub struct DatabaseSpec {
    /// Host name, address, or the directory of a Unix socket if it starts with `/`.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Name of the database.
    pub database: String,
    /// Role to connect as.
    pub username: String,
    /// Its password.
    pub password: SecretString,
    /// Use of TLS.
    pub tls: TlsMode,
    /// PEM file with the authorities to trust, beside the system's.
    pub root_cert: Option<PathBuf>,
    /// PEM file with our own certificate; needs `key`.
    pub cert: Option<PathBuf>,
    /// PEM file with the key of `cert`.
    pub key: Option<PathBuf>,
    /// Most connections to this database, at least 1. The budget of the server may allow fewer.
    pub max_connections: u32,
    /// How often it gets a connection to the server, or a slot to write, when they are short.
    pub weight: Weight,
    /// The server cancels a statement after this. `None` or zero: 30 s.
    pub statement_timeout: Option<Duration>,
    /// Longest wait for a locked row before the others of its batch are written without it; never more than half of the
    /// statement timeout.
    pub lock_wait: Duration,
    /// Longest time to connect and authenticate. Keep it small: it is how long a database that can't be reached holds a
    /// place in its server's budget.
    pub connect_timeout: Duration,
    /// Longest wait for a place in the database's pool and in its server's budget.
    pub acquire_timeout: Duration,
    /// A connection that wasn't used for this long is closed.
    pub idle_timeout: Duration,
    /// A connection is closed at this age at the latest, between two batches: its server's name may lead elsewhere, servers and the
    /// boxes between leak, and a role's changed settings apply to new sessions only.
    pub max_age: Duration,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Whether the host may lead to a link-local address.
    pub allow_link_local: bool,
}

impl DatabaseSpec {
    /// A spec with defaults: TLS preferred, 4 connections, 5 s to connect, 5 s to wait for a place, closed after 60 s idle.
    pub fn new(
        host: impl Into<String>,
        port: u16,
        database: impl Into<String>,
        username: impl Into<String>,
        password: SecretString,
    ) -> DatabaseSpec {
        DatabaseSpec {
            host: host.into(),
            port,
            database: database.into(),
            username: username.into(),
            password,
            tls: TlsMode::default(),
            root_cert: None,
            cert: None,
            key: None,
            max_connections: 4,
            weight: Weight::ONE,
            statement_timeout: None,
            lock_wait: LOCK_WAIT,
            connect_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            max_age: Duration::from_secs(5 * 60),
            application_name: "balance-sync".to_owned(),
            allow_link_local: false,
        }
    }

    /// The server, as `host:port`: what a connection budget counts by.
    #[must_use]
    pub fn server_key(&self) -> String {
        format!("{}:{}", self.host.to_ascii_lowercase(), self.port)
    }

    /// What two specs must have in common to share connections: the server, the database, the role *with its
    /// password*, and TLS. The password is part of it so that a tenant with a wrong one is not served through
    /// the connections of a tenant with the right one.
    #[must_use]
    pub fn pool_key(&self) -> PoolKey {
        PoolKey {
            server: self.server_key(),
            database: self.database.clone(),
            username: self.username.clone(),
            password: self.password.clone(),
            tls: self.tls,
            root_cert: self.root_cert.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
        }
    }

    /// Whether nothing at all has changed, the password and the limits included.
    #[must_use]
    pub fn same_as(&self, other: &DatabaseSpec) -> bool {
        self.pool_key() == other.pool_key()
            && self.max_connections == other.max_connections
            && self.weight == other.weight
            && self.statement_timeout == other.statement_timeout
            && self.lock_wait == other.lock_wait
            && self.connect_timeout == other.connect_timeout
            && self.acquire_timeout == other.acquire_timeout
            && self.idle_timeout == other.idle_timeout
            && self.max_age == other.max_age
            && self.application_name == other.application_name
    }

    /// How long the server lets a statement run.
    #[must_use]
    pub fn effective_statement_timeout(&self) -> Duration {
        // Postgres counts in milliseconds, and takes 0 for "no limit".
        self.statement_timeout.filter(|t| t.as_millis() > 0).unwrap_or(DEFAULT_STATEMENT_TIMEOUT)
    }

    /// How long the server lets a statement wait for a lock. The statement timeout must not come first: it ends the whole batch.
    #[must_use]
    pub fn effective_lock_wait(&self) -> Duration {
        self.lock_wait.min(self.effective_statement_timeout() / 2).max(Duration::from_millis(1))
    }

    /// How long we wait for the answer to one statement before the connection is given up: the statement timeout and 1 to
    /// 5 s more.
    #[must_use]
    pub fn operation_timeout(&self) -> Duration {
        let timeout = self.effective_statement_timeout();
        timeout + timeout.clamp(ANSWER_MARGIN.0, ANSWER_MARGIN.1)
    }

    /// Whether no name service is asked: a Unix socket or an address.
    pub(crate) fn is_local(&self) -> bool {
        self.host.starts_with('/') || self.host.parse::<std::net::IpAddr>().is_ok()
    }

    pub(crate) fn validate(&self) -> Result<(), StoreError> {
        let refuse = |what: &'static str| Err(StoreError::new(ErrorClass::Configuration, what));
        if self.host.is_empty() {
            return refuse("host is empty");
        }
        if self.database.is_empty() {
            return refuse("database is empty");
        }
        if self.username.is_empty() {
            return refuse("username is empty");
        }
        if [&self.host, &self.database, &self.username, &self.application_name]
            .iter()
            .any(|s| s.contains('\0'))
        {
            return refuse("host, database, username and application_name must not contain a NUL byte");
        }
        if self.max_connections == 0 {
            return refuse("max_connections is 0: it must be at least 1");
        }
        if self.cert.is_some() != self.key.is_some() {
            return refuse("cert and key must be given together");
        }
        Ok(())
    }

    /// The same for the driver. For callers that need a connection of their own beside the pool. No settings are sent at the
    /// start of a session: poolers refuse or ignore them, see `sql.rs`.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        let mode = match self.tls {
            TlsMode::Disable => PgSslMode::Disable,
            TlsMode::Prefer => PgSslMode::Prefer,
            // As libpq does: an authority that is named is also asked for.
            TlsMode::Require if self.root_cert.is_some() => PgSslMode::VerifyCa,
            TlsMode::Require => PgSslMode::Require,
            TlsMode::VerifyCa => PgSslMode::VerifyCa,
            TlsMode::VerifyFull => PgSslMode::VerifyFull,
        };
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .database(&self.database)
            .username(&self.username)
            .password(self.password.expose_secret())
            .ssl_mode(mode)
            .application_name(&self.application_name)
            // Sent by default, and refused by poolers that don't know it. No float is ever read.
            .extra_float_digits(None)
            .disable_statement_logging();
        if let Some(path) = &self.root_cert {
            options = options.ssl_root_cert(path);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            options = options.ssl_client_cert(cert).ssl_client_key(key);
        }
        options
    }
}

impl fmt::Debug for DatabaseSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseSpec")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("database", &self.database)
            .field("username", &self.username)
            .field("password", &"[hidden]")
            .field("tls", &self.tls)
            .field("root_cert", &self.root_cert)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("max_connections", &self.max_connections)
            .field("weight", &self.weight)
            .field("statement_timeout", &self.statement_timeout)
            .field("lock_wait", &self.lock_wait)
            .field("connect_timeout", &self.connect_timeout)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("max_age", &self.max_age)
            .field("application_name", &self.application_name)
            .finish()
    }
}

/// Identifies connections that may be shared; see [`DatabaseSpec::pool_key`].
#[derive(Clone)]
pub struct PoolKey {
    server: String,
    database: String,
    username: String,
    password: SecretString,
    tls: TlsMode,
    root_cert: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl PoolKey {
    /// All fields, for comparison and hashing.
    #[allow(clippy::type_complexity)] // a tuple to compare by, used in this file only
    fn parts(&self) -> (&str, &str, &str, &str, TlsMode, [&Option<PathBuf>; 3]) {
        let files = [&self.root_cert, &self.cert, &self.key];
        (&self.server, &self.database, &self.username, self.password.expose_secret(), self.tls, files)
    }
}

impl PartialEq for PoolKey {
    fn eq(&self, other: &PoolKey) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for PoolKey {}

impl Hash for PoolKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl fmt::Debug for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolKey({}@{}/{} tls={:?})", self.username, self.server, self.database, self.tls)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec() -> DatabaseSpec {
        DatabaseSpec::new("DB.example", 5432, "ledger", "worker", SecretString::from("hunter2"))
    }

    #[test]
    fn the_password_shows_nowhere() {
        let text = format!("{:?} {:?}", spec(), spec().pool_key());
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("ledger"));
    }

    #[test]
    fn what_may_be_shared_and_what_is_the_same() {
        let base = spec();
        assert_eq!(base.server_key(), "db.example:5432");
        assert!(base.same_as(&base.clone()));

        let rotated = DatabaseSpec { password: SecretString::from("other"), ..spec() };
        assert!(!base.same_as(&rotated));
        assert_ne!(base.pool_key(), rotated.pool_key());

        let wider = DatabaseSpec { max_connections: 9, ..spec() };
        assert!(!base.same_as(&wider));
        assert!(!base.same_as(&DatabaseSpec { weight: Weight::new(2).unwrap(), ..spec() }));
        assert_eq!(base.pool_key(), wider.pool_key());
    }

    #[test]
    fn a_timeout_of_zero_is_not_for_ever() {
        let none = DatabaseSpec { statement_timeout: Some(Duration::ZERO), ..spec() };
        assert_eq!(none.effective_statement_timeout(), Duration::from_secs(30));
        let short = DatabaseSpec { statement_timeout: Some(Duration::from_millis(200)), ..spec() };
        assert_eq!(short.operation_timeout(), Duration::from_millis(1200));
        assert_eq!(none.operation_timeout(), Duration::from_secs(35));
        assert_eq!(none.effective_lock_wait(), Duration::from_millis(500));
        assert_eq!(short.effective_lock_wait(), Duration::from_millis(100));
    }

    #[test]
    fn impossible_specs_are_refused() {
        for (bad, names) in [
            (DatabaseSpec { host: String::new(), ..spec() }, "host"),
            (DatabaseSpec { database: String::new(), ..spec() }, "database"),
            (DatabaseSpec { username: String::new(), ..spec() }, "username"),
            (DatabaseSpec { username: "a\0b".to_owned(), ..spec() }, "NUL"),
            (DatabaseSpec { max_connections: 0, ..spec() }, "max_connections"),
            (DatabaseSpec { cert: Some(PathBuf::from("c.pem")), ..spec() }, "key"),
        ] {
            let error = bad.validate().unwrap_err();
            assert_eq!(error.class(), ErrorClass::Configuration);
            assert!(error.message().contains(names), "{error}");
        }
        assert!(spec().validate().is_ok());
    }
}
