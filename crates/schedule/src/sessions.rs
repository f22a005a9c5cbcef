//! Sessions of the admin interface, valid at every worker of a group.
//!
//! Redis knows a session by the SHA-256 of its id, which the browser's cookie has, and holds neither the id nor the token that
//! its user signed in with. The clock that decides about ages is Redis's.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    error::ScheduleError,
    link::Link,
    reply::{array, int, millis, seconds, text},
    scripts,
};

/// Prefix of the keys, with the hash tag of all other keys. Increase the number when the format of the records changes.
const KEY_PREFIX: &str = "{transactions}:balance-sync:sessions-1:";
/// Most sessions of one group.
pub const MOST: usize = 500;
/// Most sessions with one name among them.
pub const MOST_OF_A_NAME: usize = 50;

/// The sessions of one group of workers.
#[derive(Debug, Clone)]
pub struct Sessions {
    link: Link,
    group: String,
    idle: Duration,
    longest: Duration,
}

/// What is stored of a session when it is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Who signed in; for people only.
    pub name: String,
    /// The role when they did; for people only.
    pub role: String,
    /// Ties the session to the token that was shown; can be checked only by a process that has both the session's id and the token.
    pub fingerprint: String,
}

/// A session as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSession {
    /// SHA-256 of its id, in hex digits.
    pub key: String,
    /// What was stored when it was opened.
    pub record: SessionRecord,
    /// When it was opened, in seconds of Redis's clock since 1970.
    pub created: f64,
    /// When its last use was noted, in the same way.
    pub used: f64,
}

impl Sessions {
    /// The sessions of one group. One that hasn't been used for `idle`, or was opened `longest` ago, has lapsed.
    #[must_use]
    pub fn new(link: Link, group: &str, idle: Duration, longest: Duration) -> Self {
        Self { link, group: group.to_owned(), idle, longest }
    }

    /// How long a session lasts without use.
    #[must_use]
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// How long a session lasts at most.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// Uses closer together than this are noted as one.
    #[must_use]
    pub fn noted_every(&self) -> Duration {
        (self.idle / 10).min(Duration::from_secs(60))
    }

    fn call(&self, script: &scripts::Script) -> redis::Cmd {
        let mut cmd = script.call(2);
        cmd.arg(format!("{KEY_PREFIX}{}", self.group)).arg(format!("{KEY_PREFIX}{}:uses", self.group));
        cmd
    }

    fn call_with_limits(&self, script: &scripts::Script) -> redis::Cmd {
        let mut cmd = self.call(script);
        cmd.arg(millis(self.idle)).arg(millis(self.longest));
        cmd
    }

    /// Opens a session. Returns how many others it ended, because there are only so many.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn open(&self, key: &str, record: &SessionRecord) -> Result<u64, ScheduleError> {
        const OPERATION: &str = "open session";
        let text = serde_json::to_string(record)
            .map_err(|error| ScheduleError::unexpected(OPERATION, error.to_string()))?;
        let mut cmd = self.call_with_limits(&scripts::OPEN_SESSION);
        cmd.arg(MOST_OF_A_NAME).arg(MOST).arg(key).arg(text);
        int(OPERATION, &scripts::OPEN_SESSION.run(&self.link, &cmd).await?)
    }

    /// A session, unless it has lapsed or ended. `in_use`: this counts as a use of it.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn find(&self, key: &str, in_use: bool) -> Result<Option<StoredSession>, ScheduleError> {
        const OPERATION: &str = "use session";
        let mut cmd = self.call_with_limits(&scripts::USE_SESSION);
        cmd.arg(key);
        if in_use {
            cmd.arg(millis(self.noted_every()))
        } else {
            cmd.arg("")
        };
        let answer = scripts::USE_SESSION.run(&self.link, &cmd).await?;
        let parts = match &answer {
            redis::Value::Array(parts) if parts.is_empty() => return Ok(None),
            found => array(OPERATION, found, 3)?,
        };
        // One that can't be read is not ours.
        Ok(stored(OPERATION, key.to_owned(), parts).ok())
    }

    /// All sessions, the one unused for longest first.
    ///
    /// # Errors
    /// As Redis answers. One with a record that can't be read is left out.
    pub async fn list(&self) -> Result<Vec<StoredSession>, ScheduleError> {
        const OPERATION: &str = "list sessions";
        let mut cmd = self.call_with_limits(&scripts::LIST_SESSIONS);
        cmd.arg(MOST);
        let redis::Value::Array(parts) = scripts::LIST_SESSIONS.run(&self.link, &cmd).await? else {
            return Err(ScheduleError::unexpected(OPERATION, "a list was expected"));
        };
        let read =
            |parts: &[redis::Value]| stored(OPERATION, text(OPERATION, &parts[0])?.to_owned(), &parts[1..]);
        Ok(parts.chunks_exact(4).filter_map(|parts| read(parts).ok()).collect())
    }

    /// Ends these sessions. Returns how many of them there were.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn end(&self, keys: &[String]) -> Result<u64, ScheduleError> {
        if keys.is_empty() {
            return Ok(0);
        }
        let mut cmd = self.call(&scripts::END_SESSIONS);
        cmd.arg(keys);
        int("end sessions", &scripts::END_SESSIONS.run(&self.link, &cmd).await?)
    }
}

/// Record, creation, last use.
fn stored(
    operation: &'static str,
    key: String,
    parts: &[redis::Value],
) -> Result<StoredSession, ScheduleError> {
    let record = serde_json::from_str(text(operation, &parts[0])?)
        .map_err(|_| ScheduleError::unexpected(operation, "the record of a session can't be read"))?;
    Ok(StoredSession {
        key,
        record,
        created: seconds(operation, &parts[1])?,
        used: seconds(operation, &parts[2])?,
    })
}
