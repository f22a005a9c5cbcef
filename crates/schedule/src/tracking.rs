//! Changes of schedules, announced by Redis itself (`CLIENT TRACKING`, from Redis 6 on).
//!
//! It needs a connection of its own, which speaks RESP3. It doesn't reconnect: when it breaks, changes may be missed, and the
//! caller has to know. Each look at a key makes Redis announce its next change, and no more: after that it has to be looked at again.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use redis::{Pipeline, PushInfo, PushKind, Value};
use tokio::sync::mpsc::{
    self,
    error::{TryRecvError, TrySendError},
};
use uuid::Uuid;

use crate::{
    endpoint::{Endpoint, Opened},
    error::{ErrorClass, ScheduleError},
};

/// Announcements that wait to be read. A key is announced once for each look at it, so that more can only come from a server that
/// does something else.
const MOST_WAITING: usize = 1 << 17;
/// The rights that it takes, as `ACL SETUSER` has them.
const RIGHTS: &str = "+hello +client|tracking";
const OPERATION: &str = "track changes";

/// What Redis announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// This key has changed, or is gone; the next change of it isn't announced before it is looked at again.
    Of(Vec<u8>),
    /// Any key may have changed, and none is tracked any more.
    OfAll,
}

/// A connection over which changes are announced.
pub struct Tracking {
    endpoint: Endpoint,
    opened: Opened,
    changes: mpsc::Receiver<PushInfo>,
    /// Announcements were dropped, because too many waited.
    missed: Arc<AtomicBool>,
    /// A key of its own. It is there for a moment only.
    key: String,
}

impl std::fmt::Debug for Tracking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tracking")
    }
}

impl Tracking {
    /// Connects, and makes sure that a change is announced: something between here and Redis may take the command and pass no
    /// announcement on.
    ///
    /// # Errors
    /// As Redis answers; also when it announces nothing.
    pub async fn open(endpoint: &Endpoint) -> Result<Self, ScheduleError> {
        // Twice: another connection makes the change that must be announced.
        let bound = endpoint.bound() * 2 + endpoint.settings().response_timeout;
        let opening = tokio::time::timeout(bound, Self::try_open(endpoint));
        opening.await.unwrap_or_else(|_| Err(unavailable(format!("no connection within {bound:?}"))))
    }

    async fn try_open(endpoint: &Endpoint) -> Result<Self, ScheduleError> {
        let (sender, changes) = mpsc::channel(MOST_WAITING);
        let missed = Arc::new(AtomicBool::new(false));
        let overflow = Arc::clone(&missed);
        let pushed = move |push: PushInfo| match sender.try_send(push) {
            Err(TrySendError::Full(_)) => {
                overflow.store(true, Ordering::Relaxed);
                Ok(())
            }
            sent => sent,
        };
        let opened = endpoint.open_pushing(OPERATION, Arc::new(pushed)).await.map_err(explained)?;
        let key = format!("{{transactions}}:balance-sync:tracking:{}", Uuid::new_v4().simple());
        let mut tracking = Self { endpoint: endpoint.clone(), opened, changes, missed, key };
        let mut on = redis::cmd("CLIENT");
        on.arg("TRACKING").arg("ON");
        tracking.send(&on).await.map_err(explained)?;
        tracking.try_out().await?;
        Ok(tracking)
    }

    /// Changes a key over another connection, as the ledger does, and waits for the announcement.
    async fn try_out(&mut self) -> Result<(), ScheduleError> {
        let within = self.endpoint.settings().response_timeout;
        let (mut get, mut set) = (redis::cmd("GET"), redis::cmd("SET"));
        get.arg(&self.key);
        set.arg(&self.key).arg("1").arg("PX").arg("1000");
        self.send(&get).await?;
        let mut other = self.endpoint.open(OPERATION).await?;
        let written = other.connection.send_packed_command(&set).await.and_then(Value::extract_error);
        written.map_err(|error| ScheduleError::new(OPERATION, &error))?;
        let key = self.key.clone();
        let announced = async {
            loop {
                match self.next().await? {
                    Change::Of(changed) if changed != key.as_bytes() => {}
                    _ => return Ok(()),
                }
            }
        };
        tokio::time::timeout(within, announced).await.unwrap_or_else(|_| {
            Err(ScheduleError::unexpected(
                OPERATION,
                format!("CLIENT TRACKING was accepted, and no change was announced within {within:?}"),
            ))
        })
    }

    async fn send(&mut self, cmd: &redis::Cmd) -> Result<Value, ScheduleError> {
        let answer = self.opened.connection.send_packed_command(cmd).await.and_then(Value::extract_error);
        answer.map_err(|error| ScheduleError::new(OPERATION, &error))
    }

    /// Looks at schedules; the next change of each is announced. Returns one answer each, in order: whether it is empty; `None` for one
    /// that the user may not look at, or that is none.
    ///
    /// # Errors
    /// When the connection is of no use any more; open another one then.
    pub async fn are_empty(&mut self, keys: &[Arc<str>]) -> Result<Vec<Option<bool>>, ScheduleError> {
        let mut pipeline = Pipeline::with_capacity(keys.len());
        for key in keys {
            pipeline.cmd("ZCARD").arg(&**key);
        }
        let answers = self.opened.connection.send_packed_commands(&pipeline, 0, keys.len()).await;
        let answers = answers.map_err(|error| ScheduleError::new(OPERATION, &error))?;
        if answers.len() != keys.len() {
            return Err(ScheduleError::unexpected(OPERATION, "not one answer for each schedule"));
        }
        let is_empty = |answer: Value| match answer.extract_error() {
            Ok(value) => Ok(Some(value == Value::Int(0))),
            Err(error) => match ScheduleError::new(OPERATION, &error) {
                // Its claim will say so.
                error if matches!(error.class, ErrorClass::WrongType | ErrorClass::Permission) => Ok(None),
                error => Err(error),
            },
        };
        answers.into_iter().map(is_empty).collect()
    }

    /// Waits for the next announcement. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is broken; open another one then.
    pub async fn next(&mut self) -> Result<Change, ScheduleError> {
        loop {
            if self.missed.swap(false, Ordering::Relaxed) {
                return Ok(Change::OfAll);
            }
            let push = self.changes.recv().await.ok_or_else(closed)?;
            if let Some(change) = read(push)? {
                return Ok(change);
            }
        }
    }

    /// The next announcement, if there is one already.
    ///
    /// # Errors
    /// As [`Tracking::next`].
    pub fn ready(&mut self) -> Result<Option<Change>, ScheduleError> {
        loop {
            if self.missed.swap(false, Ordering::Relaxed) {
                return Ok(Some(Change::OfAll));
            }
            // Not by polling `recv`: tokio would have it wait after some hundred of them, and one that is there would seem not to be.
            match self.changes.try_recv() {
                Ok(push) => {
                    if let Some(change) = read(push)? {
                        return Ok(Some(change));
                    }
                }
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Disconnected) => return Err(closed()),
            }
        }
    }

    /// Makes sure that the server is there and still the one that is written to, by a command that writes, and changes nothing: a
    /// connection that was cut silently announces nothing, nor does a former master or the node that had the slot.
    ///
    /// # Errors
    /// When it isn't, or when another server or other credentials are in force by now.
    pub async fn ping(&mut self) -> Result<(), ScheduleError> {
        if self.opened.version != self.endpoint.version() {
            return Err(unavailable("another connection is to be used".to_owned()));
        }
        let mut del = redis::cmd("DEL");
        del.arg(&self.key);
        match self.send(&del).await {
            // The right server, which takes no writes at present: there is no better connection than this one.
            Err(error) if !error.class.needs_new_connection() => Ok(()),
            answer => answer.map(drop),
        }
    }
}

/// What a message says of changes.
fn read(push: PushInfo) -> Result<Option<Change>, ScheduleError> {
    match push.kind {
        PushKind::Disconnection => Err(closed()),
        PushKind::Invalidate => Ok(Some(match push.data.into_iter().next() {
            // Redis names one key at a time; of several none may be left out.
            Some(Value::Array(keys)) => match <[Value; 1]>::try_from(keys) {
                Ok([Value::BulkString(key)]) => Change::Of(key),
                _ => Change::OfAll,
            },
            _ => Change::OfAll,
        })),
        _ => Ok(None),
    }
}

fn closed() -> ScheduleError {
    unavailable("the connection was closed".to_owned())
}

fn explained(error: ScheduleError) -> ScheduleError {
    if error.class == ErrorClass::Permission { error.missing(RIGHTS) } else { error }
}

fn unavailable(message: String) -> ScheduleError {
    ScheduleError { operation: OPERATION, class: ErrorClass::Unavailable, message }
}
