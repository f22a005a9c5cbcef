//! Failures of calls to Redis, classified by how a worker reacts.

pub use balance_sync_engine::failure::RedisClass as ErrorClass;
use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Bytes of a server's message that are kept: some quote whole keys.
const MESSAGE_LIMIT: usize = 300;

/// Before the missing rights in a message.
const MISSING: &str = "; missing: ";

/// An error of a call to Redis. Its text holds no password and no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("redis: {operation} failed ({}): {message}", class.as_str())]
pub struct ScheduleError {
    /// The failed operation, e.g. `claim`.
    pub operation: &'static str,
    /// The kind of failure.
    pub class: ErrorClass,
    /// The message of the server or the client, truncated.
    pub message: String,
}

impl ScheduleError {
    pub(crate) fn new(operation: &'static str, error: &RedisError) -> Self {
        Self { operation, class: classify(error), message: cut(error.to_string()) }
    }

    /// A refusal that a script reports in its result.
    pub(crate) fn refused(operation: &'static str, text: &str) -> Self {
        let (code, detail) = text.split_once(' ').unwrap_or((text, ""));
        let class = class_of(Some(code), detail).unwrap_or(ErrorClass::Unexpected);
        Self { operation, class, message: cut(text.to_owned()) }
    }

    pub(crate) fn unexpected(operation: &'static str, what: impl Into<String>) -> Self {
        Self { operation, class: ErrorClass::Unexpected, message: what.into() }
    }

    /// Whether the user has no right to one of the call's keys, as opposed to the command.
    pub(crate) fn is_denied_key(&self) -> bool {
        // "No permissions to access a key"; before Redis 7 "… to access one of the keys used as arguments".
        let refusal = self.refusal();
        // Names of users and commands may hold any word.
        self.class == ErrorClass::Permission && refusal.contains("key") && !refusal.contains(" run ")
    }

    /// The same error, which names these rights as missing.
    pub(crate) fn missing(mut self, rights: &str) -> Self {
        self.message = format!("{}{MISSING}{rights}", self.message);
        self
    }

    /// The message of the server, without the rights that are missing.
    pub(crate) fn refusal(&self) -> &str {
        self.message.split_once(MISSING).map_or(&self.message, |(refusal, _)| refusal)
    }

    /// Whether the failure may end without an operator.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.class.is_transient()
    }
}

fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_LIMIT {
        let cut = (0..=MESSAGE_LIMIT).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(cut);
        message.push('…');
    }
    message
}

fn classify(error: &RedisError) -> ErrorClass {
    if let Some(class) = class_of(error.code(), error.detail().unwrap_or_default()) {
        return class;
    }
    match error.kind() {
        ErrorKind::Io
        | ErrorKind::ClusterConnectionNotFound
        | ErrorKind::MasterNameNotFoundBySentinel
        | ErrorKind::NoValidReplicasFoundBySentinel => ErrorClass::Unavailable,
        ErrorKind::AuthenticationFailed => ErrorClass::Credentials,
        ErrorKind::Server(ServerErrorKind::NoPerm) => ErrorClass::Permission,
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

/// The class of a server's error: by its code, which is the first word, or by its text if the code is only `ERR`.
fn class_of(code: Option<&str>, detail: &str) -> Option<ErrorClass> {
    if let Some(class) = code.and_then(class_of_code) {
        return Some(class);
    }
    // The error of a command within a script has the code ERR. Before Redis 7 the command's own code is inside the text:
    // "Error running script (…): @user_script:1: WRONGTYPE Operation …", or "… @user_script: 1: -OOM command not allowed …".
    let words = [
        // To clients without a password Redis refuses long commands before parsing them.
        ("unauthenticated", ErrorClass::Credentials),
        ("The user executing the script", ErrorClass::Permission),
        // From Redis 7.2 on.
        ("ACL failure in script", ErrorClass::Permission),
        ("non local key", ErrorClass::Cluster),
        ("slot not served", ErrorClass::Cluster),
        ("while the cluster is down", ErrorClass::Cluster),
        ("do not hash to the same slot", ErrorClass::Cluster),
        ("undeclared key", ErrorClass::UndeclaredKeys),
    ];
    words.iter().find(|(words, _)| detail.contains(words)).map(|(_, class)| *class).or_else(|| {
        // A script that passes such an error on makes the place its code.
        let text = format!("{} {detail}", code.unwrap_or_default());
        let (_, place) = text.rsplit_once("user_script:")?;
        let (_, text) = place.split_once(": ")?;
        class_of_code(text.split_whitespace().next()?.trim_start_matches('-'))
    })
}

fn class_of_code(code: &str) -> Option<ErrorClass> {
    Some(match code {
        "OOM" => ErrorClass::OutOfMemory,
        "LOADING" => ErrorClass::Loading,
        "BUSY" => ErrorClass::Busy,
        "READONLY" | "MASTERDOWN" => ErrorClass::ReadOnly,
        "MISCONF" => ErrorClass::Misconf,
        "NOREPLICAS" => ErrorClass::NoReplicas,
        "MOVED" | "ASK" | "CLUSTERDOWN" | "TRYAGAIN" | "CROSSSLOT" => ErrorClass::Cluster,
        "NOAUTH" | "WRONGPASS" => ErrorClass::Credentials,
        "NOPERM" => ErrorClass::Permission,
        "WRONGTYPE" => ErrorClass::WrongType,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_errors_are_classified() {
        for (text, class) in [
            ("NOPERM No permissions to access a key", ErrorClass::Permission),
            (
                "ERR The user executing the script can't run this command or subcommand",
                ErrorClass::Permission,
            ),
            ("MOVED 15891 127.0.0.1:7001", ErrorClass::Cluster),
            ("ASK 15891 127.0.0.1:7001", ErrorClass::Cluster),
            ("TRYAGAIN Multiple keys request during rehashing of slot", ErrorClass::Cluster),
            (
                "ERR Script attempted to access a non local key in a cluster node script: 2d77",
                ErrorClass::Cluster,
            ),
            ("ERR script tried accessing undeclared key", ErrorClass::UndeclaredKeys),
            (
                "ERR Error running script (call to f_1): script tried accessing undeclared key",
                ErrorClass::UndeclaredKeys,
            ),
            ("NOREPLICAS Not enough good replicas to write.", ErrorClass::NoReplicas),
            ("MISCONF Redis is configured to save RDB snapshots", ErrorClass::Misconf),
            ("OOM command not allowed when used memory > 'maxmemory'.", ErrorClass::OutOfMemory),
            ("BUSY Redis is busy running a script.", ErrorClass::Busy),
            // Redis 6.
            (
                "ERR Error running script (call to f_1): @user_script:9: @user_script: 9: -MISCONF Redis is configured",
                ErrorClass::Misconf,
            ),
            (
                "ERR Error running script (call to f_1): @user_script:248: WRONGTYPE Operation against a key",
                ErrorClass::WrongType,
            ),
            ("@user_script: 275: -OOM command not allowed", ErrorClass::OutOfMemory),
            // From Redis 7.2 on, and Valkey.
            ("ERR ACL failure in script: No permissions to access a key", ErrorClass::Permission),
            (
                "ERR ACL failure in script: User a has no permissions to run the 'zadd' command script: 61, on @user_script:3.",
                ErrorClass::Permission,
            ),
            ("ERR Script attempted to access a slot not served script: 61", ErrorClass::Cluster),
            (
                "ERR Script attempted to execute a write command while the cluster is down and readonly",
                ErrorClass::Cluster,
            ),
            ("ERR something else", ErrorClass::Unexpected),
            ("ERR a -READONLY word of a key", ErrorClass::Unexpected),
            ("WRONGTYPE Operation against a key", ErrorClass::WrongType),
        ] {
            assert_eq!(ScheduleError::refused("test", text).class, class, "{text}");
        }
    }
}
