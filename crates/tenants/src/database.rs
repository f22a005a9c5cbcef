//! Where a tenant's balances are written: a validated Postgres address with credentials and limits.
//!
//! Both the tenant service's answer and the configuration file end up here, through the same checks
//! ([`TenantDatabase::validate`], [`TlsMode`], [`parse_statement_timeout`]).

use std::path::{Path, PathBuf};
use std::time::Duration;

use balance_sync_domain::{TlsMode, UnknownTlsMode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// Longest name Postgres keeps (NAMEDATALEN − 1); it cuts longer ones silently, so they are refused.
pub const MAX_NAME_BYTES: usize = 63;
/// Longest host name in DNS text form; a longer value is no host, and a socket directory is shorter still.
const MAX_HOST_BYTES: usize = 253;
/// Largest `statement_timeout` that Postgres takes (a 32-bit count of milliseconds).
const MAX_STATEMENT_TIMEOUT_MS: u128 = i32::MAX as u128;

/// How tenants are kept apart in Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A database of its own.
    Database,
    /// A schema of its own in a shared database.
    Schema,
}

/// Limits the tenant's configuration asks for; `None` where it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ConnectionSettings {
    /// Most connections open at once, 1 or more.
    pub max_open_conns: Option<u32>,
    /// Most connections kept open while idle, 1 or more.
    pub max_idle_conns: Option<u32>,
    /// `statement_timeout` of the session, in whole milliseconds, 1 ms or more.
    pub statement_timeout: Option<Duration>,
}

/// A tenant's database. `Debug` doesn't show the password.
#[derive(Debug, Clone)]
pub struct TenantDatabase {
    /// Host name, address, or the directory of a Unix socket.
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
    /// Name of the database.
    pub database: String,
    /// Role to log in with.
    pub username: String,
    /// Its password; empty where the server asks for none.
    pub password: SecretString,
    /// The schema, with [`Isolation::Schema`] only.
    pub schema: Option<String>,
    /// Encryption of the connection.
    pub tls: TlsMode,
    /// PEM file with the authorities to trust.
    pub root_cert: Option<PathBuf>,
    /// PEM file with the client certificate; stands together with `key`.
    pub cert: Option<PathBuf>,
    /// PEM file with the client certificate's key.
    pub key: Option<PathBuf>,
    /// Limits of the pool.
    pub settings: ConnectionSettings,
}

impl TenantDatabase {
    /// How this tenant is kept apart: it has a schema, or a database.
    pub fn isolation(&self) -> Isolation {
        if self.schema.is_some() { Isolation::Schema } else { Isolation::Database }
    }

    /// Whether nothing has changed, the password and the limits included: a pool opened with one serves the
    /// other.
    pub fn same_as(&self, other: &Self) -> bool {
        // Taken apart so that a new field can't be forgotten here.
        let Self { host, port, database, username, password, schema, tls, root_cert, cert, key, settings } =
            self;
        *host == other.host
            && *port == other.port
            && *database == other.database
            && *username == other.username
            && password.expose_secret() == other.password.expose_secret()
            && *schema == other.schema
            && *tls == other.tls
            && *root_cert == other.root_cert
            && *cert == other.cert
            && *key == other.key
            && *settings == other.settings
    }

    /// Checks every field by itself and against the others.
    ///
    /// # Errors
    /// The first field that Postgres or the system would not take as it stands.
    pub fn validate(&self) -> Result<(), InvalidDatabase> {
        check_text("host", &self.host, MAX_HOST_BYTES)?;
        if self.host.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(InvalidDatabase::new(
                "host",
                format!("{} contains white space", excerpt(&self.host)),
            ));
        }
        if let Some(wrong) = host_fault(&self.host) {
            return Err(InvalidDatabase::new("host", format!("{} {wrong}", excerpt(&self.host))));
        }
        if self.port == 0 {
            return Err(InvalidDatabase::new("port", "0 is not a port: allowed is 1 to 65535"));
        }
        check_text("database", &self.database, MAX_NAME_BYTES)?;
        check_text("username", &self.username, MAX_NAME_BYTES)?;
        if self.password.expose_secret().contains('\0') {
            return Err(InvalidDatabase::new("password", "contains a NUL character"));
        }
        if let Some(schema) = &self.schema {
            check_text("schema", schema, MAX_NAME_BYTES)?;
        }
        check_path("sslrootcert", self.root_cert.as_deref())?;
        check_path("sslcert", self.cert.as_deref())?;
        check_path("sslkey", self.key.as_deref())?;
        match (self.tls, &self.cert, &self.key) {
            (TlsMode::Disable, _, _) | (_, None, None) | (_, Some(_), Some(_)) => Ok(()),
            (_, Some(_), None) => {
                Err(InvalidDatabase::new("sslkey", "is missing: sslcert is of no use without it"))
            }
            (_, None, Some(_)) => {
                Err(InvalidDatabase::new("sslcert", "is missing: sslkey is of no use without it"))
            }
        }
    }
}

/// What is wrong with the form of a host: it is one name, one address without brackets, or the folder of a socket. `None` =
/// nothing.
#[must_use]
pub fn host_fault(host: &str) -> Option<&'static str> {
    if host.starts_with('/') || host.parse::<std::net::Ipv6Addr>().is_ok() {
        return None;
    }
    if host.contains(['"', '\'', '`']) {
        return Some("contains quotes: the name stands without them");
    }
    if host.contains(['[', ']']) {
        return Some(
            "contains brackets: an IPv6 address stands without them, and the port in a field of its own",
        );
    }
    if host.contains(',') {
        return Some("contains a comma: one host is allowed");
    }
    if host.contains("://") {
        return Some("is a URL: allowed is the host alone");
    }
    if host.contains(':') {
        return Some("contains a port: it stands in a field of its own");
    }
    None
}

/// A field of a database's description that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidDatabase {
    /// The field, by the name it has in the tenant service's JSON.
    pub field: &'static str,
    /// What is wrong, with the value unless it is a secret, and what is allowed.
    pub reason: String,
}

impl InvalidDatabase {
    pub(crate) fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

impl From<UnknownTlsMode> for InvalidDatabase {
    fn from(error: UnknownTlsMode) -> Self {
        Self::new("sslmode", error.to_string())
    }
}

/// Reads a Postgres interval for `statement_timeout`: digits and an optional unit (`us ms s min h d`, lower
/// case as in Postgres; none means milliseconds), white space between and around.
///
/// `0` means no limit and gives `None`. Postgres counts whole milliseconds; we round up, because `0` would
/// lift the limit altogether.
///
/// # Errors
/// Anything else, and what is above Postgres's own maximum of 2147483647 ms.
pub fn parse_statement_timeout(text: &str) -> Result<Option<Duration>, InvalidDatabase> {
    let invalid = |what: &str| {
        InvalidDatabase::new(
            "statementTimeout",
            format!(
                "{} {what}: allowed are digits with an optional unit us, ms, s, min, h or d, up to 2147483647 ms",
                excerpt(text)
            ),
        )
    };
    let trimmed = text.trim();
    let unit_at = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(unit_at);
    if digits.is_empty() {
        return Err(invalid("is not an interval"));
    }
    let micros_per_unit: u128 = match unit.trim_start() {
        "us" => 1,
        "" | "ms" => 1_000,
        "s" => 1_000_000,
        "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err(invalid("is not an interval")),
    };
    let millis = digits
        .parse::<u128>()
        .ok()
        .and_then(|count| count.checked_mul(micros_per_unit))
        .map(|micros| micros.div_ceil(1_000))
        .filter(|millis| *millis <= MAX_STATEMENT_TIMEOUT_MS)
        .and_then(|millis| u64::try_from(millis).ok())
        .ok_or_else(|| invalid("is too long"))?;
    Ok((millis > 0).then(|| Duration::from_millis(millis)))
}

/// A value from outside as it may stand in an error: quoted, escaped and shortened.
pub(crate) fn excerpt(text: &str) -> String {
    const MAX_CHARS: usize = 64;
    let short: String = text.chars().take(MAX_CHARS).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}

fn check_text(field: &'static str, text: &str, max_bytes: usize) -> Result<(), InvalidDatabase> {
    if text.is_empty() {
        return Err(InvalidDatabase::new(field, format!("is empty: allowed are 1 to {max_bytes} bytes")));
    }
    if text.len() > max_bytes {
        let reason = format!("{} has {} bytes: allowed are 1 to {max_bytes}", excerpt(text), text.len());
        return Err(InvalidDatabase::new(field, reason));
    }
    if text.contains('\0') {
        return Err(InvalidDatabase::new(field, "contains a NUL character"));
    }
    Ok(())
}

fn check_path(field: &'static str, path: Option<&Path>) -> Result<(), InvalidDatabase> {
    match path.map(|path| path.as_os_str().as_encoded_bytes()) {
        Some([]) => Err(InvalidDatabase::new(field, "is empty: leave it out, or name a file")),
        Some(bytes) if bytes.contains(&0) => Err(InvalidDatabase::new(field, "contains a NUL character")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWORD: &str = "hunter2-very-secret";

    fn database() -> TenantDatabase {
        TenantDatabase {
            host: "db.internal".into(),
            port: 5432,
            database: "ledger".into(),
            username: "midaz".into(),
            password: PASSWORD.into(),
            schema: None,
            tls: TlsMode::Prefer,
            root_cert: None,
            cert: None,
            key: None,
            settings: ConnectionSettings::default(),
        }
    }

    fn changed(change: impl FnOnce(&mut TenantDatabase)) -> TenantDatabase {
        let mut changed = database();
        change(&mut changed);
        changed
    }

    #[test]
    fn a_host_is_one_name_or_one_address() {
        for good in ["db.internal", "10.0.0.7", "::1", "fe80::1", "/var/run/postgresql", "db_1"] {
            changed(|database| database.host = good.into()).validate().unwrap();
        }
        for (bad, why) in [
            ("db.internal:5432", "contains a port"),
            ("a.internal,b.internal", "contains a comma"),
            ("[::1]", "contains brackets"),
            ("[::1]:5432", "contains brackets"),
            ("\"db.internal\"", "contains quotes"),
            ("postgres://db.internal", "is a URL"),
            ("db.internal\n", "white space"),
        ] {
            let error = changed(|database| database.host = bad.into()).validate().unwrap_err();
            assert!(error.field == "host" && error.reason.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn debug_hides_the_password() {
        let shown = format!("{:?} {:#?}", database(), database());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("db.internal"));
    }

    #[test]
    fn any_change_is_noticed() {
        assert!(database().same_as(&database()));
        let changes: [TenantDatabase; 12] = [
            changed(|d| d.host = "other".into()),
            changed(|d| d.port = 1),
            changed(|d| d.database = "x".into()),
            changed(|d| d.username = "x".into()),
            changed(|d| d.password = "rotated".into()),
            changed(|d| d.schema = Some("s".into())),
            changed(|d| d.tls = TlsMode::Require),
            changed(|d| d.root_cert = Some("a".into())),
            changed(|d| d.cert = Some("a".into())),
            changed(|d| d.key = Some("a".into())),
            changed(|d| d.settings.max_open_conns = Some(1)),
            changed(|d| d.settings.statement_timeout = Some(Duration::from_secs(1))),
        ];
        for other in changes {
            assert!(!database().same_as(&other), "{other:?}");
        }
    }

    #[test]
    fn validation_names_the_field() {
        let cases = [
            ("host", changed(|d| d.host = String::new())),
            ("host", changed(|d| d.host = "a b".into())),
            ("port", changed(|d| d.port = 0)),
            ("database", changed(|d| d.database = "a\0b".into())),
            ("username", changed(|d| d.username = "u".repeat(64))),
            ("password", changed(|d| d.password = format!("{PASSWORD}\0").into())),
            ("schema", changed(|d| d.schema = Some(String::new()))),
            ("schema", changed(|d| d.schema = Some("ä".repeat(32)))),
            ("sslrootcert", changed(|d| d.root_cert = Some(PathBuf::new()))),
            ("sslkey", changed(|d| d.cert = Some("c.pem".into()))),
            ("sslcert", changed(|d| d.key = Some("k.pem".into()))),
        ];
        for (field, broken) in cases {
            let error = broken.validate().unwrap_err();
            assert_eq!(error.field, field, "{error}");
            assert!(!error.to_string().contains("hunter2"));
        }
        database().validate().unwrap();
        changed(|d| d.schema = Some("s".repeat(63))).validate().unwrap();
        changed(|d| d.host = "/var/run/postgresql".into()).validate().unwrap();
        assert_eq!(changed(|d| d.schema = Some("s".into())).isolation(), Isolation::Schema);
    }

    #[test]
    fn intervals() {
        let ms = |n| Ok(Some(Duration::from_millis(n)));
        for (text, expected) in [
            ("30s", ms(30_000)),
            ("250", ms(250)),
            (" 250 ms ", ms(250)),
            ("5min", ms(300_000)),
            ("2 h", ms(7_200_000)),
            ("1d", ms(86_400_000)),
            ("1us", ms(1)),
            ("1001us", ms(2)),
            ("0", Ok(None)),
            ("0 s", Ok(None)),
            ("2147483647", ms(2_147_483_647)),
        ] {
            assert_eq!(parse_statement_timeout(text), expected, "{text:?}");
        }
        for text in
            ["", "s", "-1", "+1s", "1.5s", "1m", "1S", "1m30s", "1s 2", "2147483648", "99d", "९s", "1 s x"]
        {
            let error = parse_statement_timeout(text).unwrap_err();
            assert_eq!(error.field, "statementTimeout", "{text:?}");
        }
        let huge = "9".repeat(10_000);
        assert!(parse_statement_timeout(&huge).unwrap_err().to_string().len() < 300);
    }
}
