//! A multiplexed, reconnecting connection to Redis, plain or TLS, direct or through Sentinel.
//!
//! Callers clone the link. The first call connects. A broken connection is discarded and the next call opens another;
//! concurrent callers wait for that attempt instead of making their own. With Sentinel each new connection looks the master
//! up again, so failovers are followed.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, ServerErrorKind, TlsCertificates, Value,
    aio::MultiplexedConnection,
    sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::{Mutex, RwLock},
    time::Instant,
};

use crate::{
    error::{ErrorClass, ScheduleError},
    stats::LinkStats,
};

/// After a failed attempt to connect, calls fail at once for this long, so that ten thousand collectors don't all try to
/// connect to a server that is just starting.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// A working connection to the wrong server, for example a demoted master, is not replaced before this age. Otherwise
/// thousands of tenants that get the same refusal would open a connection each.
const MIN_AGE: Duration = Duration::from_secs(1);

/// Connection settings. `Debug` prints no password.
#[derive(Clone)]
pub struct LinkSettings {
    /// `redis://[user[:password]@]host[:port][/db]`, or `rediss://` for TLS.
    pub url: SecretString,
    /// Password; overrides the one in the URL.
    pub password: Option<SecretString>,
    /// Database number; overrides the one in the URL.
    pub db: Option<i64>,
    /// PEM of the certificate authority to trust for TLS; `None` = those of the system.
    pub ca_pem: Option<Vec<u8>>,
    /// With Sentinel: the name of the master and the sentinels' URLs. Of `url` only user, database and TLS are used then.
    pub sentinel: Option<(String, Vec<String>)>,
    /// Limit for connecting.
    pub connect_timeout: Duration,
    /// Limit for one answer.
    pub response_timeout: Duration,
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
    /// Settings for a URL with the worker's default timeouts (2 s and 5 s).
    #[must_use]
    pub fn for_url(url: &str) -> Self {
        Self {
            url: SecretString::from(url.to_owned()),
            password: None,
            db: None,
            ca_pem: None,
            sentinel: None,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(5),
        }
    }

    fn connection_info(&self) -> Result<ConnectionInfo, RedisError> {
        let info = self.url.expose_secret().into_connection_info()?;
        let mut redis = info.redis_settings().clone();
        if let Some(password) = &self.password {
            redis = redis.set_password(password.expose_secret());
        }
        if let Some(db) = self.db {
            redis = redis.set_db(db);
        }
        Ok(info.set_redis_settings(redis))
    }

    fn certificates(&self) -> TlsCertificates {
        TlsCertificates { client_tls: None, root_cert: self.ca_pem.clone() }
    }
}

/// Creates connections.
pub(crate) enum Source {
    Direct(Client),
    Sentinel(Mutex<SentinelClient>),
}

struct Open {
    generation: u64,
    since: Instant,
    connection: MultiplexedConnection,
}

struct Inner {
    source: Source,
    config: AsyncConnectionConfig,
    connect_timeout: Duration,
    open: RwLock<Option<Open>>,
    /// Locked while connecting; holds time and error of the last failed attempt.
    connecting: Mutex<Option<(Instant, ScheduleError)>>,
    generations: AtomicU64,
    stats: Arc<LinkStats>,
}

/// Handle to the shared connection. Cheap to clone.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

impl Link {
    /// Creates a link without connecting.
    ///
    /// # Errors
    /// If URL, certificates or sentinels are invalid; the text contains no password.
    pub fn new(settings: &LinkSettings) -> Result<Self, ScheduleError> {
        Self::counted(settings, Arc::default())
    }

    /// As [`Link::new`], with counters that other links may share.
    ///
    /// # Errors
    /// As [`Link::new`].
    pub fn counted(settings: &LinkSettings, stats: Arc<LinkStats>) -> Result<Self, ScheduleError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout));
        // No network was involved, so the error is in the settings and not transient.
        let source = Self::source(settings).map_err(|error| ScheduleError {
            class: ErrorClass::Unexpected,
            ..ScheduleError::new("configure", &error)
        })?;
        Ok(Self(Arc::new(Inner {
            source,
            config,
            connect_timeout: settings.connect_timeout,
            open: RwLock::new(None),
            connecting: Mutex::new(None),
            generations: AtomicU64::new(0),
            stats,
        })))
    }

    pub(crate) fn source(settings: &LinkSettings) -> Result<Source, RedisError> {
        // The redis client uses the process-wide provider of rustls, which may be installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let info = settings.connection_info()?;
        let tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        if let Some((master, sentinels)) = &settings.sentinel {
            let redis: RedisConnectionInfo = info.redis_settings().clone();
            let mut node = SentinelNodeConnectionInfo::default().set_redis_connection_info(redis);
            if tls {
                node = node.set_tls_mode(redis::TlsMode::Secure);
            }
            let client = if settings.ca_pem.is_some() {
                let nodes = sentinels
                    .iter()
                    .map(|url| url.as_str().into_connection_info())
                    .collect::<Result<Vec<_>, _>>()?;
                let addresses = nodes.iter().map(|node| node.addr().clone());
                let mut builder = redis::sentinel::SentinelClientBuilder::new(
                    addresses,
                    master,
                    SentinelServerType::Master,
                )?
                .set_client_to_redis_db(info.redis_settings().db())
                .set_client_to_redis_certificates(settings.certificates())
                .set_client_to_redis_tls_mode(redis::TlsMode::Secure);
                if let Some(password) = info.redis_settings().password() {
                    builder = builder.set_client_to_redis_password(password);
                }
                if let Some(user) = info.redis_settings().username() {
                    builder = builder.set_client_to_redis_username(user);
                }
                builder.build()?
            } else {
                SentinelClient::build(
                    sentinels.clone(),
                    master.clone(),
                    Some(node),
                    SentinelServerType::Master,
                )?
            };
            return Ok(Source::Sentinel(Mutex::new(client)));
        }
        let client =
            if tls { Client::build_with_tls(info, settings.certificates())? } else { Client::open(info)? };
        Ok(Source::Direct(client))
    }

    /// Sends one command and returns its answer. An error includes the client's own, if there is one.
    pub(crate) async fn query(
        &self,
        operation: &'static str,
        cmd: &Cmd,
    ) -> Result<Value, (ScheduleError, Option<RedisError>)> {
        let (generation, mut connection) = self.connection(operation).await.map_err(|error| {
            self.0.stats.failed(error.class);
            (error, None)
        })?;
        match connection.send_packed_command(cmd).await.and_then(Value::extract_error) {
            Ok(value) => Ok(value),
            Err(cause) => {
                let error = ScheduleError::new(operation, &cause);
                // `Script::run` loads the script and sends the call again.
                if cause.kind() != ErrorKind::Server(ServerErrorKind::NoScript) {
                    self.0.stats.failed(error.class);
                }
                if error.class.needs_new_connection() {
                    self.discard(generation, error.class).await;
                }
                Err((error, Some(cause)))
            }
        }
    }

    /// Sends a command that is not a script call.
    ///
    /// # Errors
    /// As Redis answers; see [`ErrorClass`].
    pub async fn send(&self, operation: &'static str, cmd: &Cmd) -> Result<Value, ScheduleError> {
        self.query(operation, cmd).await.map_err(|(error, _)| error)
    }

    /// The server's `maxmemory-policy` if it allows eviction (any but `noeviction`): balances may then be evicted before they
    /// are written. `None` if it doesn't, or if the server doesn't report it.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn eviction_policy(&self) -> Result<Option<String>, ScheduleError> {
        let mut cmd = redis::cmd("INFO");
        cmd.arg("memory");
        let text: String = redis::from_redis_value(self.send("read memory policy", &cmd).await?)
            .map_err(|error| ScheduleError::unexpected("read memory policy", error.to_string()))?;
        let policy = text.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).map(str::trim);
        Ok(policy.filter(|policy| *policy != "noeviction").map(str::to_owned))
    }

    async fn connection(
        &self,
        operation: &'static str,
    ) -> Result<(u64, MultiplexedConnection), ScheduleError> {
        if let Some(open) = &*self.0.open.read().await {
            return Ok((open.generation, open.connection.clone()));
        }
        let mut last_failure = self.0.connecting.lock().await;
        // The previous holder of the lock may have connected, or failed a moment ago.
        if let Some(open) = &*self.0.open.read().await {
            return Ok((open.generation, open.connection.clone()));
        }
        if let Some((at, error)) = &*last_failure
            && at.elapsed() < RECONNECT_PAUSE
        {
            return Err(ScheduleError { operation, ..error.clone() });
        }
        match self.connect(operation).await {
            Ok(connection) => {
                *last_failure = None;
                self.0.stats.connected();
                let generation = self.0.generations.fetch_add(1, Ordering::Relaxed);
                *self.0.open.write().await =
                    Some(Open { generation, since: Instant::now(), connection: connection.clone() });
                Ok((generation, connection))
            }
            Err(error) => {
                *last_failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn connect(&self, operation: &'static str) -> Result<MultiplexedConnection, ScheduleError> {
        let opening = async {
            match &self.0.source {
                Source::Direct(client) => {
                    client.get_multiplexed_async_connection_with_config(&self.0.config).await
                }
                Source::Sentinel(client) => {
                    client.lock().await.get_async_connection_with_config(&self.0.config).await
                }
            }
        };
        // The client's own timeout covers the TCP connection only, not the handshake.
        match tokio::time::timeout(self.0.connect_timeout * 2, opening).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(ScheduleError::new(operation, &error)),
            Err(_) => Err(ScheduleError {
                operation,
                class: ErrorClass::Unavailable,
                message: format!("no connection within {:?}", self.0.connect_timeout * 2),
            }),
        }
    }

    async fn discard(&self, generation: u64, class: ErrorClass) {
        let mut open = self.0.open.write().await;
        let suspect = |open: &Open| {
            let works = matches!(class, ErrorClass::ReadOnly | ErrorClass::Cluster);
            open.generation == generation && !(works && open.since.elapsed() < MIN_AGE)
        };
        if open.as_ref().is_some_and(suspect) {
            *open = None;
        }
    }
}
