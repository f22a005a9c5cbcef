//! Databases and tenants as a configuration file gives them: raw shapes for serde, then the same checks as
//! for the tenant service's answers.

use std::path::PathBuf;

use balance_sync_domain::{TenantId, TlsMode};
use secrecy::SecretString;
use serde::Deserialize;

use crate::database::{ConnectionSettings, InvalidDatabase, TenantDatabase, parse_statement_timeout};
use crate::static_directory::StaticTenant;

/// Postgres's own port.
const DEFAULT_PORT: u16 = 5432;

/// A database in a configuration file. The names of the `ssl…` fields are libpq's.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// Host name, address or socket directory.
    pub host: String,
    /// TCP port; 5432 unless given.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Name of the database.
    pub database: String,
    /// Role to log in with.
    pub username: String,
    /// Its password; empty unless given.
    #[serde(default)]
    pub password: SecretString,
    /// A schema of its own in a shared database; none unless given.
    #[serde(default)]
    pub schema: Option<String>,
    /// Encryption; `prefer` unless given.
    #[serde(default)]
    pub sslmode: TlsMode,
    /// PEM file with the authorities to trust.
    #[serde(default)]
    pub sslrootcert: Option<PathBuf>,
    /// PEM file with the client certificate.
    #[serde(default)]
    pub sslcert: Option<PathBuf>,
    /// PEM file with the client certificate's key.
    #[serde(default)]
    pub sslkey: Option<PathBuf>,
    /// Most connections open at once; 0 says nothing.
    #[serde(default)]
    pub max_open_conns: u32,
    /// Most connections kept while idle; 0 says nothing.
    #[serde(default)]
    pub max_idle_conns: u32,
    /// A Postgres interval, as [`parse_statement_timeout`] reads it.
    #[serde(default)]
    pub statement_timeout: Option<String>,
}

fn default_port() -> u16 {
    DEFAULT_PORT
}

impl TryFrom<DatabaseConfig> for TenantDatabase {
    type Error = InvalidDatabase;

    fn try_from(raw: DatabaseConfig) -> Result<Self, Self::Error> {
        let some = |count: u32| (count > 0).then_some(count);
        let statement_timeout =
            raw.statement_timeout.as_deref().map(parse_statement_timeout).transpose()?.flatten();
        let database = Self {
            host: raw.host,
            port: raw.port,
            database: raw.database,
            username: raw.username,
            password: raw.password,
            schema: raw.schema,
            tls: raw.sslmode,
            root_cert: raw.sslrootcert,
            cert: raw.sslcert,
            key: raw.sslkey,
            settings: ConnectionSettings {
                max_open_conns: some(raw.max_open_conns),
                max_idle_conns: some(raw.max_idle_conns),
                statement_timeout,
            },
        };
        database.validate()?;
        Ok(database)
    }
}

/// A tenant in a configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticTenantConfig {
    /// Its id.
    pub id: TenantId,
    /// Its name for people; the id unless given.
    #[serde(default)]
    pub name: Option<String>,
    /// Where its balances are written.
    pub database: DatabaseConfig,
}

impl TryFrom<StaticTenantConfig> for StaticTenant {
    type Error = InvalidDatabase;

    fn try_from(raw: StaticTenantConfig) -> Result<Self, Self::Error> {
        Ok(Self { id: raw.id, name: raw.name, database: raw.database.try_into()? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_short_entry_is_enough() {
        let raw: StaticTenantConfig = serde_json::from_str(
            r#"{"id": "acme",
                "database": {"host": "db", "database": "ledger", "username": "u", "password": "hunter2"}}"#,
        )
        .unwrap();
        assert!(!format!("{raw:?}").contains("hunter2"));
        let tenant = StaticTenant::try_from(raw).unwrap();
        assert_eq!(tenant.database.port, 5432);
        assert_eq!(tenant.database.tls, TlsMode::Prefer);
        assert_eq!(tenant.database.settings, ConnectionSettings::default());
    }

    #[test]
    fn values_are_checked_and_unknown_fields_refused() {
        let read = |extra: &str| {
            let text = format!(r#"{{"host": "db", "database": "ledger", "username": "u", {extra}}}"#);
            serde_json::from_str::<DatabaseConfig>(&text)
                .map_err(|e| e.to_string())
                .and_then(|raw| TenantDatabase::try_from(raw).map_err(|e| e.to_string()))
        };
        assert!(read(r#""passwort": "x""#).unwrap_err().contains("passwort"));
        assert!(read(r#""sslmode": "on""#).unwrap_err().contains("verify-full"));
        assert!(read(r#""statement_timeout": "soon""#).unwrap_err().contains("statementTimeout"));
        assert!(read(r#""port": 0"#).unwrap_err().contains("65535"));
        let good = read(r#""statement_timeout": "2s", "max_open_conns": 4, "schema": "t1""#).unwrap();
        assert_eq!(good.settings.statement_timeout, Some(Duration::from_secs(2)));
        assert_eq!((good.settings.max_open_conns, good.settings.max_idle_conns), (Some(4), None));
    }
}
