//! How Redis is reached: addresses, credentials, certificates, timeouts.

use std::{fmt, path::PathBuf, time::Duration};

use secrecy::SecretString;

/// A password: as configured, or in a file that is read again.
#[derive(Clone)]
pub enum Secret {
    /// As configured.
    Text(SecretString),
    /// In this file; one line break at its end does not belong to it.
    File(PathBuf),
}

/// Certificate authorities to trust, as PEM: as configured, or in a file that is read again.
#[derive(Clone, PartialEq, Eq)]
pub enum Authority {
    /// As configured.
    Pem(Vec<u8>),
    /// In this file.
    File(PathBuf),
}

/// The sentinels, and the master they are asked for. `Debug` shows no password.
#[derive(Clone)]
pub struct SentinelSettings {
    /// Name of the master.
    pub master: String,
    /// `redis://host[:port]` or, for TLS, `rediss://host[:port]` of each sentinel.
    pub urls: Vec<String>,
    /// User of the sentinels' own access lists.
    pub username: Option<String>,
    /// Password of the sentinels. That of Redis is never sent to them.
    pub password: Option<Secret>,
    /// Authority that signed the sentinels' certificates; the system's are trusted otherwise.
    pub ca: Option<Authority>,
}

/// How Redis is reached. `Debug` shows no password.
#[derive(Clone)]
pub struct LinkSettings {
    /// `redis://[user[:password]@]host[:port][/db]`, or `rediss://` for TLS.
    pub url: SecretString,
    /// Password; takes precedence over the one in the URL.
    pub password: Option<Secret>,
    /// Database number; takes precedence over the one in the URL.
    pub db: Option<i64>,
    /// Authority that signed the server's certificate; the system's are trusted otherwise.
    pub ca: Option<Authority>,
    /// With Sentinel: where to ask for the server (`url` then only gives user, database and TLS).
    pub sentinel: Option<SentinelSettings>,
    /// Cluster: `host:port` of nodes that are asked for the others, beside the one in `url`.
    pub cluster_nodes: Vec<String>,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long an answer may take.
    pub response_timeout: Duration,
    /// The user needs to write the fleet's own keys alone: it is that of a shadow.
    pub only_reads: bool,
}

impl fmt::Debug for SentinelSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentinelSettings")
            .field("master", &self.master)
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for LinkSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkSettings")
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("sentinel", &self.sentinel.is_some())
            .finish_non_exhaustive()
    }
}

impl LinkSettings {
    /// Settings for a URL, with the timeouts that the worker uses by default (2 s and 5 s).
    #[must_use]
    pub fn for_url(url: &str) -> Self {
        Self {
            url: SecretString::from(url.to_owned()),
            password: None,
            db: None,
            ca: None,
            sentinel: None,
            cluster_nodes: Vec::new(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(5),
            only_reads: false,
        }
    }
}
