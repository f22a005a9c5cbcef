//! What can go wrong with Redis, by what a worker does about it.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Longest part of a server's message that is kept, in bytes: some quote whole keys.
const MESSAGE_LIMIT: usize = 300;

/// Kinds of failure, named after what the operator has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// No connection, a connection that broke, or no answer in time.
    Unavailable,
    /// Redis is reading its data set after a start (`LOADING`), or a script holds it (`BUSY`).
    Loading,
    /// The server is a replica or refuses writes (`READONLY`, `MISCONF`, `NOREPLICAS`, `MASTERDOWN`): a failover.
    ReadOnly,
    /// Redis is out of memory (`OOM`) and refuses commands that might need more.
    OutOfMemory,
    /// A cluster that moved the slot or is down (`MOVED`, `ASK`, `CLUSTERDOWN`, `TRYAGAIN`, `CROSSSLOT`).
    Cluster,
    /// User name, password or rights are refused (`NOAUTH`, `WRONGPASS`, `NOPERM`).
    Credentials,
    /// A key of ours holds something else (`WRONGTYPE`).
    WrongType,
    /// Redis answered something that the script's contract doesn't allow.
    Unexpected,
}

impl ErrorClass {
    /// All of them, in order, for metrics.
    pub const ALL: [Self; 8] = [
        Self::Unavailable,
        Self::Loading,
        Self::ReadOnly,
        Self::OutOfMemory,
        Self::Cluster,
        Self::Credentials,
        Self::WrongType,
        Self::Unexpected,
    ];

    /// Short, stable name: the reason in tenant states, logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "redis_unavailable",
            Self::Loading => "redis_loading",
            Self::ReadOnly => "redis_read_only",
            Self::OutOfMemory => "redis_out_of_memory",
            Self::Cluster => "redis_cluster",
            Self::Credentials => "redis_credentials",
            Self::WrongType => "redis_wrong_type",
            Self::Unexpected => "redis_unexpected",
        }
    }

    /// Whether the connection itself is suspect, so that the next call should open another one. A failover moves
    /// the master elsewhere, so an answer of a replica counts too.
    #[must_use]
    pub fn needs_new_connection(self) -> bool {
        matches!(self, Self::Unavailable | Self::ReadOnly | Self::Cluster | Self::Credentials)
    }
}

/// An error of a call to Redis. Its text holds no password and no value.
#[derive(Debug, Clone, thiserror::Error)]
#[error("redis: {operation} failed ({}): {message}", class.name())]
pub struct ScheduleError {
    /// What was asked of Redis, e.g. `claim`.
    pub operation: &'static str,
    /// What kind of failure it is.
    pub class: ErrorClass,
    /// The server's or the client's words, cut to a bounded length.
    pub message: String,
}

impl ScheduleError {
    pub(crate) fn new(operation: &'static str, error: &RedisError) -> Self {
        let mut message = error.to_string();
        if message.len() > MESSAGE_LIMIT {
            let cut = (0..=MESSAGE_LIMIT).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(cut);
            message.push('…');
        }
        Self { operation, class: classify(error), message }
    }

    pub(crate) fn unexpected(operation: &'static str, what: impl Into<String>) -> Self {
        Self { operation, class: ErrorClass::Unexpected, message: what.into() }
    }

    /// Whether waiting may mend it. Credentials and a key of the wrong type need a human, but both may be mended
    /// from outside at any time, so a worker keeps trying with a long delay.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        !matches!(self.class, ErrorClass::Credentials | ErrorClass::WrongType | ErrorClass::Unexpected)
    }
}

fn classify(error: &RedisError) -> ErrorClass {
    // The code is the first word of the server's answer; the client's own kinds cover only some of them.
    match error.code() {
        Some("OOM") => return ErrorClass::OutOfMemory,
        Some("LOADING" | "BUSY") => return ErrorClass::Loading,
        Some("READONLY" | "MISCONF" | "NOREPLICAS" | "MASTERDOWN") => return ErrorClass::ReadOnly,
        Some("MOVED" | "ASK" | "CLUSTERDOWN" | "TRYAGAIN" | "CROSSSLOT") => return ErrorClass::Cluster,
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => return ErrorClass::Credentials,
        Some("WRONGTYPE") => return ErrorClass::WrongType,
        _ => {}
    }
    // Without a password Redis refuses long commands before it looks at them, and has no code for that.
    if error.detail().is_some_and(|detail| detail.contains("unauthenticated")) {
        return ErrorClass::Credentials;
    }
    match error.kind() {
        ErrorKind::Io
        | ErrorKind::ClusterConnectionNotFound
        | ErrorKind::MasterNameNotFoundBySentinel
        | ErrorKind::NoValidReplicasFoundBySentinel => ErrorClass::Unavailable,
        ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => {
            ErrorClass::Credentials
        }
        ErrorKind::Server(ServerErrorKind::BusyLoading) => ErrorClass::Loading,
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => ErrorClass::ReadOnly,
        ErrorKind::Server(
            ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::CrossSlot,
        ) => ErrorClass::Cluster,
        _ if error.is_connection_dropped() || error.is_timeout() => ErrorClass::Unavailable,
        _ => ErrorClass::Unexpected,
    }
}
