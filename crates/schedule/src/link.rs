//! A multiplexed, reconnecting connection to Redis.
//!
//! Callers clone the link. The first call connects. A broken connection is discarded and the next call opens another;
//! concurrent callers wait for that attempt instead of making their own. A link makes at most one attempt per second, whatever
//! servers answer. Only redirections within a cluster are followed at once.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection};
use tokio::{
    sync::{Mutex, RwLock},
    time::Instant,
};

use crate::{
    cluster,
    endpoint::{Endpoint, Opened},
    error::{ErrorClass, ScheduleError},
    rights::{self, Answers},
    sentinel::Address,
    settings::LinkSettings,
    stats::LinkStats,
};

/// Shortest time between two attempts to connect: ten thousand collectors that meet the same failure must not make one each.
const CONNECT_EVERY: Duration = Duration::from_secs(1);
/// Shortest time between two attempts to replace a connection that works by one with newer credentials.
const REPLACE_EVERY: Duration = Duration::from_secs(10);
/// Redirections that are followed in one call.
const REDIRECTIONS: usize = 3;

struct Open {
    generation: u64,
    since: Instant,
    address: Arc<Address>,
    version: u64,
    connection: MultiplexedConnection,
}

enum State {
    Open(Open),
    /// With what ended the last connection or attempt.
    Closed(Option<ScheduleError>),
}

/// What paces attempts to connect. Locked while one is made.
#[derive(Default)]
struct Attempts {
    last: Option<Instant>,
    last_replacement: Option<Instant>,
    last_redirection: Option<Instant>,
}

struct Inner {
    endpoint: Endpoint,
    state: RwLock<State>,
    attempts: Mutex<Attempts>,
    generations: AtomicU64,
    stats: Arc<LinkStats>,
    rights: Answers,
}

/// Handle to the shared connection. Cheap to clone.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

/// The connection that a call uses.
struct Used {
    generation: u64,
    address: Arc<Address>,
    connection: MultiplexedConnection,
}

impl From<&Open> for Used {
    fn from(open: &Open) -> Self {
        Self {
            generation: open.generation,
            address: Arc::clone(&open.address),
            connection: open.connection.clone(),
        }
    }
}

impl Link {
    /// Creates a link with an endpoint of its own, without connecting.
    ///
    /// # Errors
    /// As [`Endpoint::new`].
    pub fn new(settings: &LinkSettings) -> Result<Self, ScheduleError> {
        Self::counted(settings, Arc::default())
    }

    /// As [`Link::new`], with counters that other links may share.
    ///
    /// # Errors
    /// As [`Endpoint::new`].
    pub fn counted(settings: &LinkSettings, stats: Arc<LinkStats>) -> Result<Self, ScheduleError> {
        Ok(Self::to(Endpoint::new(settings)?, stats))
    }

    /// Creates a link to an endpoint that other links may share, without connecting.
    #[must_use]
    pub fn to(endpoint: Endpoint, stats: Arc<LinkStats>) -> Self {
        Self(Arc::new(Inner {
            endpoint,
            state: RwLock::new(State::Closed(None)),
            attempts: Mutex::default(),
            generations: AtomicU64::new(0),
            stats,
            rights: Answers::default(),
        }))
    }

    /// Sends one command and returns its answer. An error includes the client's own, if there is one.
    pub(crate) async fn query(
        &self,
        operation: &'static str,
        cmd: &Cmd,
    ) -> Result<Value, (ScheduleError, Option<RedisError>)> {
        self.query_expecting(operation, cmd, |_| false).await
    }

    /// As [`Link::query`]. A refusal of the server that is `expected` doesn't count as a failure.
    pub(crate) async fn query_expecting(
        &self,
        operation: &'static str,
        cmd: &Cmd,
        expected: impl Fn(&ScheduleError) -> bool,
    ) -> Result<Value, (ScheduleError, Option<RedisError>)> {
        let mut redirections = 0;
        loop {
            let mut used = self.connection(operation).await.map_err(|error| {
                self.0.stats.failed(error.class);
                (error, None)
            })?;
            let cause = match used.connection.send_packed_command(cmd).await.and_then(Value::extract_error) {
                Ok(value) => return Ok(value),
                Err(cause) => cause,
            };
            if redirections < REDIRECTIONS
                && self.0.endpoint.follows_redirections()
                && let Some(to) = cluster::moved_to(&cause, &used.address)
                && Box::pin(self.follow(operation, used.generation, &to)).await
            {
                redirections += 1;
                continue;
            }
            let error = ScheduleError::new(operation, &cause);
            // `Script::run` loads the script and sends the call again.
            if cause.kind() != ErrorKind::Server(ServerErrorKind::NoScript) && !expected(&error) {
                self.0.stats.failed(error.class);
            }
            if wants_new_connection(&error, &cause) {
                self.discard(used.generation, &error).await;
            }
            return Err((error, Some(cause)));
        }
    }

    /// Sends a command that is not a script call.
    ///
    /// # Errors
    /// As Redis answers; see [`ErrorClass`]. Rights that the user lacks are named.
    pub async fn send(&self, operation: &'static str, cmd: &Cmd) -> Result<Value, ScheduleError> {
        match self.query(operation, cmd).await {
            Err((error, _)) => Err(rights::explained(self, cmd, error).await),
            Ok(answer) => Ok(answer),
        }
    }

    pub(crate) fn only_reads(&self) -> bool {
        self.0.endpoint.settings().only_reads
    }

    /// What was found out of late about the user's rights.
    pub(crate) fn rights(&self) -> &Answers {
        &self.0.rights
    }

    /// What the server says of itself that decides whether it may keep balances.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn server_facts(&self) -> Result<ServerFacts, ScheduleError> {
        const OPERATION: &str = "read what the server is";
        // One call, which every version answers: several sections in one call are known from 7.0 on.
        let text: String = redis::from_redis_value(self.send(OPERATION, &redis::cmd("INFO")).await?)
            .map_err(|error| ScheduleError::unexpected(OPERATION, error.to_string()))?;
        Ok(ServerFacts::read(&text))
    }

    async fn connection(&self, operation: &'static str) -> Result<Used, ScheduleError> {
        if let State::Open(open) = &*self.0.state.read().await {
            if open.version == self.0.endpoint.version() {
                return Ok(open.into());
            }
            // One caller replaces it, the others go on with the former one.
            match self.0.attempts.try_lock() {
                Ok(attempts) if attempts.last_replacement.is_none_or(|at| at.elapsed() >= REPLACE_EVERY) => {}
                _ => return Ok(open.into()),
            }
        }
        // Boxed: it is large, and seldom needed.
        Box::pin(self.connect(operation)).await
    }

    /// Opens a connection, unless another caller has just tried.
    async fn connect(&self, operation: &'static str) -> Result<Used, ScheduleError> {
        let mut attempts = self.0.attempts.lock().await;
        let mut former = None;
        // Another caller may have connected, or failed a moment ago, while this one waited.
        match &*self.0.state.read().await {
            State::Open(open) if open.version == self.0.endpoint.version() => return Ok(open.into()),
            State::Open(open) => {
                if attempts.last_replacement.is_some_and(|at| at.elapsed() < REPLACE_EVERY) {
                    return Ok(open.into());
                }
                former = Some(Used::from(open));
            }
            State::Closed(Some(error)) if attempts.last.is_some_and(|at| at.elapsed() < CONNECT_EVERY) => {
                return Err(ScheduleError { operation, ..error.clone() });
            }
            State::Closed(_) => {}
        }
        let now = Instant::now();
        attempts.last = Some(now);
        if former.is_some() {
            attempts.last_replacement = Some(now);
        }
        match (self.bounded(operation, self.0.endpoint.open(operation)).await, former) {
            (Ok(opened), _) => {
                attempts.last_replacement = None;
                Ok(self.take(opened).await)
            }
            (Err(error), Some(former)) => {
                tracing::warn!(%error, "no connection with the new credentials, the former one is used");
                Ok(former)
            }
            (Err(error), None) => {
                *self.0.state.write().await = State::Closed(Some(error.clone()));
                Err(error)
            }
        }
    }

    async fn bounded(
        &self,
        operation: &'static str,
        opening: impl Future<Output = Result<Opened, ScheduleError>>,
    ) -> Result<Opened, ScheduleError> {
        let bound = self.0.endpoint.bound();
        tokio::time::timeout(bound, opening).await.unwrap_or_else(|_| {
            Err(ScheduleError {
                operation,
                class: ErrorClass::Unavailable,
                message: format!("no connection within {bound:?}"),
            })
        })
    }

    async fn take(&self, opened: Opened) -> Used {
        self.0.stats.connected();
        let open = Open {
            generation: self.0.generations.fetch_add(1, Ordering::Relaxed),
            since: Instant::now(),
            address: Arc::new(opened.address),
            version: opened.version,
            connection: opened.connection,
        };
        let used = Used::from(&open);
        *self.0.state.write().await = State::Open(open);
        used
    }

    /// Connects to the node that serves the slot now. Returns whether the call can be repeated.
    async fn follow(&self, operation: &'static str, generation: u64, to: &Address) -> bool {
        let mut attempts = self.0.attempts.lock().await;
        let is_current =
            matches!(&*self.0.state.read().await, State::Open(open) if open.generation == generation);
        if !is_current {
            // Another caller has followed it.
            return true;
        }
        if attempts.last_redirection.is_some_and(|at| at.elapsed() < CONNECT_EVERY) {
            return false;
        }
        attempts.last_redirection = Some(Instant::now());
        tracing::info!(host = to.0, port = to.1, "redis has moved the slot of all keys to another node");
        let opening = self.0.endpoint.open_moved(operation, to.clone());
        match self.bounded(operation, opening).await {
            Ok(opened) => {
                self.take(opened).await;
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the node that serves the slot can't be reached");
                false
            }
        }
    }

    async fn discard(&self, generation: u64, error: &ScheduleError) {
        let mut state = self.0.state.write().await;
        let State::Open(open) = &*state else { return };
        // A sound connection to a server that is not, or no longer, the right one is used for at least this long.
        let sound = matches!(error.class, ErrorClass::ReadOnly | ErrorClass::Cluster);
        if open.generation == generation && !(sound && open.since.elapsed() < CONNECT_EVERY) {
            *state = State::Closed(Some(error.clone()));
        }
    }
}

/// Whether the next call should open a new connection. While a slot is being moved this one leads to the right node.
fn wants_new_connection(error: &ScheduleError, cause: &RedisError) -> bool {
    match error.class {
        ErrorClass::Cluster => {
            matches!(cause.kind(), ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::ClusterDown))
        }
        class => class.needs_new_connection(),
    }
}

/// What a Redis server says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// `master` or `slave`, as Redis calls them; empty if it doesn't say.
    pub role: String,
    /// `maxmemory-policy`; empty if it doesn't say.
    pub policy: String,
    /// Memory in use, bytes.
    pub used_bytes: u64,
    /// `maxmemory`, bytes; 0 = no limit.
    pub max_bytes: u64,
    /// Keys that it has evicted since its start.
    pub evicted_keys: u64,
}

impl ServerFacts {
    fn read(info: &str) -> Self {
        let of = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            // It comes from outside, and goes to screens.
            line.map(|value| value.trim().chars().take(40).collect::<String>()).unwrap_or_default()
        };
        let number = |name: &str| of(name).parse().unwrap_or_default();
        Self {
            role: of("role"),
            policy: of("maxmemory_policy"),
            used_bytes: number("used_memory"),
            max_bytes: number("maxmemory"),
            evicted_keys: number("evicted_keys"),
        }
    }

    /// The policy by which it throws keys away by itself when it is full, if it does.
    #[must_use]
    pub fn evicting_policy(&self) -> Option<&str> {
        Some(self.policy.as_str()).filter(|policy| !matches!(*policy, "" | "noeviction"))
    }
}
