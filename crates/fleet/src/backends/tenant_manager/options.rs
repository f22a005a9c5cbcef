//! Limits of the tenants' databases, and what a tenant's settings become within them.

use std::time::Duration;

use balance_sync_domain::link_local;
use balance_sync_engine::weights::Weights;
use balance_sync_store::DatabaseSpec;
use balance_sync_tenants::{DirectoryError, TenantDatabase};

/// Limits and intervals, from the worker's configuration.
#[derive(Debug, Clone)]
pub struct ManagerOptions {
    /// How long a tenant's settings count as fresh.
    pub settings_ttl: Duration,
    /// Most connections per database; what the tenant's own settings ask for is clamped to it.
    pub connections_per_tenant: u32,
    /// Statement timeout where the tenant's settings name none.
    pub statement_timeout: Duration,
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Longest wait for a connection.
    pub acquire_timeout: Duration,
    /// Connections that weren't used for this long are closed: the database of an idle tenant holds none.
    pub idle_timeout: Duration,
    /// Connections are closed at this age at the latest.
    pub connection_max_age: Duration,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Settings under which a connection might be made without TLS are refused.
    pub require_tls: bool,
    /// Whether a database's host may be a link-local address, as those of clouds' metadata services are.
    pub allow_link_local: bool,
    /// Which tenants get more of a server's connections when they are short.
    pub weights: Weights,
}

impl Default for ManagerOptions {
    fn default() -> Self {
        Self {
            settings_ttl: Duration::from_secs(60),
            connections_per_tenant: 2,
            statement_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            connection_max_age: Duration::from_secs(300),
            application_name: "balance-sync".to_owned(),
            require_tls: false,
            allow_link_local: false,
            weights: Weights::default(),
        }
    }
}

impl ManagerOptions {
    /// Whether settings may be used at all.
    ///
    /// # Errors
    /// Those of a database that might be connected to without TLS where TLS is required, or that is at an address where
    /// machines find their credentials.
    pub fn allows(&self, settings: &TenantDatabase) -> Result<(), DirectoryError> {
        if self.require_tls && !settings.tls.is_always_encrypted() {
            return Err(DirectoryError::malformed(
                "sslmode",
                format!(
                    "is {}, and worker.require_tls is set; allowed: require, verify-ca or verify-full",
                    settings.tls.as_str()
                ),
            ));
        }
        let address = settings.host.parse().ok().filter(|_| !self.allow_link_local);
        if let Some(what) = address.and_then(link_local) {
            return Err(DirectoryError::malformed(
                "host",
                format!(
                    "is {} ({what}); allowed: other addresses, and these with postgres.allow_link_local",
                    settings.host
                ),
            ));
        }
        Ok(())
    }

    /// What the store needs to know to open a tenant's database: its settings within these limits.
    #[must_use]
    pub fn spec(&self, settings: &TenantDatabase) -> DatabaseSpec {
        let asked = settings.settings;
        let limit = self.connections_per_tenant.max(1);
        let TenantDatabase { host, port, database, username, password, .. } = settings;
        DatabaseSpec {
            tls: settings.tls,
            root_cert: settings.root_cert.clone(),
            cert: settings.cert.clone(),
            key: settings.key.clone(),
            max_connections: asked.max_open_conns.unwrap_or(limit).clamp(1, limit),
            statement_timeout: Some(
                asked
                    .statement_timeout
                    .map_or(self.statement_timeout, |asked| asked.min(self.statement_timeout)),
            ),
            connect_timeout: self.connect_timeout,
            acquire_timeout: self.acquire_timeout,
            idle_timeout: self.idle_timeout,
            max_age: self.connection_max_age,
            application_name: self.application_name.clone(),
            allow_link_local: self.allow_link_local,
            ..DatabaseSpec::new(host, *port, database, username, password.clone())
        }
    }
}
