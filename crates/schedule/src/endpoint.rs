//! Where Redis is, and how connections to it are opened: direct, by Sentinel, or to the node of a cluster that serves the
//! keys. All links of a worker share one endpoint, so that what one of them learns all of them know.
//!
//! Credentials and certificates in files are read before every attempt to connect, and by [`Endpoint::refresh`]. When
//! they have changed, or Sentinel names another master, [`Endpoint::version`] grows and links replace their connections.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, TlsCertificates, aio::MultiplexedConnection,
};
use secrecy::ExposeSecret;
use tokio::sync::mpsc::error::TrySendError;

use crate::{
    cluster::{Nodes, Topology},
    credentials::Credentials,
    error::{ErrorClass, ScheduleError},
    sentinel::{self, Address, Sentinel},
    settings::LinkSettings,
};

/// Port of a server that is named without one.
const PORT: u16 = 6379;

struct Inner {
    settings: RwLock<Arc<LinkSettings>>,
    credentials: Mutex<Credentials>,
    /// What could not be read last time, so that it is logged once.
    problem: Mutex<Option<String>>,
    /// The master that Sentinel named last.
    master: Mutex<Option<Address>>,
    nodes: Mutex<Nodes>,
    version: AtomicU64,
}

/// Where Redis is. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Endpoint")
    }
}

/// Takes what a server sends by itself; never waits.
pub(crate) type Pushes = Arc<dyn Fn(PushInfo) -> Result<(), TrySendError<PushInfo>> + Send + Sync>;

/// A connection, and where it leads.
pub(crate) struct Opened {
    pub(crate) connection: MultiplexedConnection,
    pub(crate) address: Address,
    /// [`Endpoint::version`] when it was opened.
    pub(crate) version: u64,
}

impl Endpoint {
    /// Checks the settings and reads the files in them; nothing is opened yet.
    ///
    /// # Errors
    /// When URL, certificates or sentinels can't be used, or a file can't be read; the text shows no password.
    pub fn new(settings: &LinkSettings) -> Result<Self, ScheduleError> {
        const OPERATION: &str = "configure";
        // The rustls of the redis client takes the process's provider. Another part may have installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (credentials, problem) = Credentials::read(settings, &Credentials::default());
        if let Some(problem) = problem {
            return Err(ScheduleError::unexpected(OPERATION, problem));
        }
        // No network is involved, so that no failure passes by itself.
        let permanent = |error: RedisError| ScheduleError {
            class: ErrorClass::Unexpected,
            ..ScheduleError::new(OPERATION, &error)
        };
        let way = Way { settings, credentials: &credentials };
        way.client(None).map_err(permanent)?;
        way.sentinels().map_err(permanent)?;
        Ok(Self(Arc::new(Inner {
            settings: RwLock::new(Arc::new(settings.clone())),
            credentials: Mutex::new(credentials),
            problem: Mutex::default(),
            master: Mutex::default(),
            nodes: Mutex::default(),
            version: AtomicU64::new(0),
        })))
    }

    /// Grows when connections should be replaced by new ones.
    pub(crate) fn version(&self) -> u64 {
        self.0.version.load(Relaxed)
    }

    pub(crate) fn settings(&self) -> Arc<LinkSettings> {
        Arc::clone(&self.0.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long opening a connection may take.
    pub(crate) fn bound(&self) -> Duration {
        let settings = self.settings();
        let nodes = lock(&self.0.nodes);
        let attempts =
            if Self::is_cluster(&settings, &nodes) { nodes.candidates(&[]).len().max(1) } else { 1 };
        // The client's own timeout ends with the TCP connection; the handshake behind it needs a bound as well.
        settings.connect_timeout * (1 + u32::try_from(attempts).unwrap_or(u32::MAX).min(4))
    }

    /// Takes credentials, certificates and timeouts of other settings; the servers stay the same. Files are read by the next
    /// [`Endpoint::refresh`].
    ///
    /// # Errors
    /// When the settings name other servers, or can't be used; nothing is taken then.
    pub fn replace(&self, settings: &LinkSettings) -> Result<(), ScheduleError> {
        const OPERATION: &str = "reload";
        let checked = Self::new(settings)?;
        let same = {
            let before = self.settings();
            let servers = |settings: &LinkSettings| {
                let sentinel = settings.sentinel.as_ref().map(|own| (own.master.clone(), own.urls.clone()));
                let info = base(settings).ok();
                let place = info.map(|info| (info.addr().clone(), info.redis_settings().db()));
                (place, sentinel, settings.cluster_nodes.clone())
            };
            servers(&before) == servers(settings)
        };
        if !same {
            return Err(ScheduleError::unexpected(
                OPERATION,
                "other servers or another database take a restart",
            ));
        }
        let before = std::mem::replace(
            &mut *self.0.settings.write().unwrap_or_else(PoisonError::into_inner),
            Arc::new(settings.clone()),
        );
        let credentials = lock(&checked.0.credentials).clone();
        let users = |settings: &LinkSettings| {
            let user =
                base(settings).ok().and_then(|info| info.redis_settings().username().map(str::to_owned));
            let in_url =
                base(settings).ok().and_then(|info| info.redis_settings().password().map(str::to_owned));
            (user, in_url, settings.sentinel.as_ref().and_then(|own| own.username.clone()))
        };
        self.take(credentials, users(&before) != users(settings));
        Ok(())
    }

    /// Reads the files again and, with Sentinel, asks who is the master.
    pub async fn refresh(&self) {
        self.read_files().await;
        let settings = self.settings();
        if settings.sentinel.is_some() {
            match self.master("find the master", &settings).await {
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the sentinels can't be asked"),
            }
        }
    }

    async fn read_files(&self) {
        let endpoint = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let before = lock(&endpoint.0.credentials).clone();
            Credentials::read(&endpoint.settings(), &before)
        });
        let Ok((credentials, problem)) = reading.await else { return };
        let mut last = lock(&self.0.problem);
        if *last != problem {
            match &problem {
                Some(problem) => {
                    tracing::warn!(
                        problem,
                        "credentials of redis can't be read, the former ones stay in force"
                    );
                }
                None => tracing::info!("credentials of redis can be read again"),
            }
            *last = problem;
        }
        drop(last);
        self.take(credentials, false);
    }

    fn take(&self, credentials: Credentials, changed: bool) {
        let mut current = lock(&self.0.credentials);
        if changed || !current.is_same(&credentials) {
            *current = credentials;
            self.0.version.fetch_add(1, Relaxed);
            tracing::info!("credentials of redis have changed, connections are replaced");
        }
    }

    /// Opens a connection to the server that serves the keys.
    ///
    /// # Errors
    /// As servers and sentinels answer.
    pub(crate) async fn open(&self, operation: &'static str) -> Result<Opened, ScheduleError> {
        self.open_with(operation, None).await
    }

    /// As [`Endpoint::open`], for a connection over which the server sends by itself (RESP3).
    pub(crate) async fn open_pushing(
        &self,
        operation: &'static str,
        pushes: Pushes,
    ) -> Result<Opened, ScheduleError> {
        self.open_with(operation, Some(&pushes)).await
    }

    async fn open_with(
        &self,
        operation: &'static str,
        pushes: Option<&Pushes>,
    ) -> Result<Opened, ScheduleError> {
        self.read_files().await;
        let version = self.version();
        let settings = self.settings();
        let is_cluster = Self::is_cluster(&settings, &lock(&self.0.nodes));
        if settings.sentinel.is_none() && is_cluster {
            return self.open_in_cluster(operation, &settings, pushes).await;
        }
        let address = match settings.sentinel {
            Some(_) => Some(self.master(operation, &settings).await?),
            None => None,
        };
        // Asking may have grown it.
        let version = if address.is_some() { self.version() } else { version };
        self.open_at(operation, &settings, address, version, pushes).await
    }

    /// Opens a connection to the node that serves the slot from now on.
    pub(crate) async fn open_moved(
        &self,
        operation: &'static str,
        address: Address,
    ) -> Result<Opened, ScheduleError> {
        lock(&self.0.nodes).moved_to(address.clone());
        let version = self.version();
        self.open_at(operation, &self.settings(), Some(address), version, None).await
    }

    /// Whether redirections may be followed: not where Sentinel says which server it is.
    pub(crate) fn follows_redirections(&self) -> bool {
        self.settings().sentinel.is_none()
    }

    /// Clients for a connection that any of these servers can serve, the most likely first.
    pub(crate) async fn clients(&self, operation: &'static str) -> Result<Vec<Client>, ScheduleError> {
        self.read_files().await;
        let settings = self.settings();
        let addresses = if settings.sentinel.is_some() {
            vec![Some(self.master(operation, &settings).await?)]
        } else {
            let nodes = lock(&self.0.nodes);
            match Self::is_cluster(&settings, &nodes) {
                true => nodes.candidates(&configured(&settings)).into_iter().map(Some).collect(),
                false => vec![None],
            }
        };
        let credentials = lock(&self.0.credentials).clone();
        let way = Way { settings: &settings, credentials: &credentials };
        addresses
            .into_iter()
            .map(|address| way.client(address))
            .collect::<Result<_, _>>()
            .map_err(|error| ScheduleError::new(operation, &error))
    }

    fn is_cluster(settings: &LinkSettings, nodes: &Nodes) -> bool {
        !settings.cluster_nodes.is_empty() || nodes.is_cluster()
    }

    async fn open_at(
        &self,
        operation: &'static str,
        settings: &LinkSettings,
        address: Option<Address>,
        version: u64,
        pushes: Option<&Pushes>,
    ) -> Result<Opened, ScheduleError> {
        let credentials = lock(&self.0.credentials).clone();
        let opening = async {
            let way = Way { settings, credentials: &credentials };
            let client = way.client_of(address, pushes.is_some())?;
            let mut config = timeouts(settings);
            if let Some(pushes) = pushes {
                let pushes = Arc::clone(pushes);
                config = config.set_push_sender(move |push| pushes(push));
            }
            let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let address = address_of(client.get_connection_info().addr());
            Ok(Opened { connection, address, version })
        };
        opening.await.map_err(|error: RedisError| ScheduleError::new(operation, &error))
    }

    /// Asks one node after the other which of them serves the keys, and connects to that one.
    async fn open_in_cluster(
        &self,
        operation: &'static str,
        settings: &LinkSettings,
        pushes: Option<&Pushes>,
    ) -> Result<Opened, ScheduleError> {
        let version = self.version();
        let candidates = lock(&self.0.nodes).candidates(&configured(settings));
        let mut failure = None;
        for candidate in candidates {
            let opening = self.open_at(operation, settings, Some(candidate.clone()), version, None);
            let attempt = async {
                let mut opened = opening.await?;
                let mut cmd = redis::cmd("CLUSTER");
                cmd.arg("SLOTS");
                let owner = match opened.connection.send_packed_command(&cmd).await {
                    Ok(answer) => {
                        let topology = Topology::read(&answer, &candidate);
                        let owner = topology.owner.clone();
                        lock(&self.0.nodes).learn(topology);
                        owner
                    }
                    // Without the right to ask, redirections lead to the right node.
                    Err(error) if matches!(error.kind(), ErrorKind::Server(_)) => None,
                    Err(error) => return Err(ScheduleError::new(operation, &error)),
                };
                match owner {
                    Some(owner) if owner != candidate => {
                        self.open_at(operation, settings, Some(owner), version, pushes).await
                    }
                    // What the first node that was asked sends must not be taken for this one's.
                    _ if pushes.is_some() => {
                        self.open_at(operation, settings, Some(candidate.clone()), version, pushes).await
                    }
                    _ => Ok(opened),
                }
            };
            let bound = settings.connect_timeout * 2;
            let error = match tokio::time::timeout(bound, attempt).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) => error,
                Err(_) => ScheduleError {
                    operation,
                    class: ErrorClass::Unavailable,
                    message: format!("{}:{}: no connection within {bound:?}", candidate.0, candidate.1),
                },
            };
            // A refusal says more than silence.
            if failure.as_ref().is_none_or(|last: &ScheduleError| last.class == ErrorClass::Unavailable) {
                failure = Some(error);
            }
        }
        Err(failure.unwrap_or_else(|| ScheduleError::unexpected(operation, "no node is known")))
    }

    async fn master(
        &self,
        operation: &'static str,
        settings: &LinkSettings,
    ) -> Result<Address, ScheduleError> {
        let credentials = lock(&self.0.credentials).clone();
        let way = Way { settings, credentials: &credentials };
        let sentinels = way.sentinels().map_err(|error| ScheduleError::new(operation, &error))?;
        let name = settings.sentinel.as_ref().map_or("", |sentinel| sentinel.master.as_str());
        let address = sentinel::master_address(operation, sentinels, name, &timeouts(settings)).await?;
        let before = lock(&self.0.master).replace(address.clone());
        if before.as_ref().is_some_and(|before| *before != address) {
            tracing::warn!(
                host = address.0,
                port = address.1,
                "sentinel names another master, connections are replaced"
            );
            self.0.version.fetch_add(1, Relaxed);
        }
        Ok(address)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn timeouts(settings: &LinkSettings) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.connect_timeout))
        .set_response_timeout(Some(settings.response_timeout))
}

/// The URL with the database in force.
fn base(settings: &LinkSettings) -> Result<ConnectionInfo, RedisError> {
    let info = settings.url.expose_secret().into_connection_info()?;
    let redis = info.redis_settings().clone();
    Ok(match settings.db {
        Some(db) => info.set_redis_settings(redis.set_db(db)),
        None => info,
    })
}

fn address_of(addr: &ConnectionAddr) -> Address {
    match addr {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port),
        _ => (String::new(), 0),
    }
}

/// The nodes that the settings name.
fn configured(settings: &LinkSettings) -> Vec<Address> {
    if settings.cluster_nodes.is_empty() {
        return base(settings).map(|info| address_of(info.addr())).into_iter().collect();
    }
    let node = |text: &String| match text.rsplit_once(':') {
        Some((host, port)) => Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?)),
        None => Some((text.clone(), PORT)),
    };
    settings.cluster_nodes.iter().filter_map(node).collect()
}

/// Settings with the credentials in force.
struct Way<'a> {
    settings: &'a LinkSettings,
    credentials: &'a Credentials,
}

impl Way<'_> {
    /// A client for the server at this address; without one for that in the URL.
    fn client(&self, address: Option<Address>) -> Result<Client, RedisError> {
        self.client_of(address, false)
    }

    /// As [`Way::client`]; `pushed` for one to which the server may send by itself.
    fn client_of(&self, address: Option<Address>, pushed: bool) -> Result<Client, RedisError> {
        let mut info = base(self.settings)?;
        if pushed {
            let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            info = info.set_redis_settings(redis);
        }
        if let Some(password) = &self.credentials.password {
            let redis = info.redis_settings().clone().set_password(password.expose_secret());
            info = info.set_redis_settings(redis);
        }
        let tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        if let Some((host, port)) = address {
            info = info.set_addr(match tls {
                true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
                false => ConnectionAddr::Tcp(host, port),
            });
        }
        client(info, tls, self.credentials.ca.as_ref())
    }

    fn sentinels(&self) -> Result<Vec<Sentinel>, RedisError> {
        let Some(settings) = &self.settings.sentinel else { return Ok(Vec::new()) };
        let sentinel = |url: &String| {
            let mut info = url.as_str().into_connection_info()?;
            let mut own = RedisConnectionInfo::default();
            if let Some(username) = &settings.username {
                own = own.set_username(username);
            }
            if let Some(password) = &self.credentials.sentinel_password {
                own = own.set_password(password.expose_secret());
            }
            info = info.set_redis_settings(own);
            let tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
            let (host, port) = address_of(info.addr());
            let client = client(info, tls, self.credentials.sentinel_ca.as_ref())?;
            Ok(Sentinel { address: format!("{host}:{port}"), client })
        };
        settings.urls.iter().map(sentinel).collect()
    }
}

fn client(info: ConnectionInfo, tls: bool, ca: Option<&Vec<u8>>) -> Result<Client, RedisError> {
    // Without the name of the client's library: the worker's user needs no right to `CLIENT`, and the ACL log stays empty.
    let redis = info.redis_settings().clone().set_skip_set_lib_name();
    let info = info.set_redis_settings(redis);
    if tls {
        Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: ca.cloned() })
    } else {
        Client::open(info)
    }
}
