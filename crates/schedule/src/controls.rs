//! Actions of operators, shared by all workers: the paused tenants, and a log of actions that workers follow.
//!
//! Both are in the Redis of the schedules, so they outlive every worker. The log is a stream with one entry per action, and
//! one per action and worker with the outcome. It is trimmed to about ten thousand entries.

use std::collections::HashMap;

use redis::Value;

use crate::{
    error::ScheduleError,
    link::Link,
    reply::{bulk, text},
    scripts,
};

/// Hash of paused tenants: field = schedule key of the tenant, value = who paused it, when and why.
const PAUSED: &str = "{transactions}:balance-sync:paused";
/// Stream of actions and outcomes.
const ACTIONS: &str = "{transactions}:balance-sync:actions";
/// Approximate limit of entries in the stream.
const MAX_ENTRIES: usize = 10_000;
/// Most entries in one answer.
const PAGE: usize = 1000;

/// The paused tenants and the log of actions.
#[derive(Debug, Clone)]
pub struct Controls {
    link: Link,
}

/// An action of an operator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Order<'a> {
    /// Name of the action; see `lua/record_action.lua`.
    pub what: &'a str,
    /// The tenant's id as displayed; empty = none.
    pub tenant: &'a str,
    /// The key of its schedule; empty = none.
    pub key: &'a str,
    /// The worker; empty = all that serve the tenant.
    pub worker: &'a str,
    /// The operator.
    pub by: &'a str,
    /// The operator's reason; empty = none given.
    pub note: &'a str,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Position in the log; increases.
    pub id: String,
    /// Its fields.
    pub fields: HashMap<String, String>,
}

impl LogEntry {
    /// A field; empty if absent.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// When it was written, in seconds of Redis's clock.
    #[must_use]
    pub fn at(&self) -> f64 {
        let millis = self.id.split('-').next().and_then(|millis| millis.parse::<f64>().ok());
        millis.unwrap_or_default() / 1e3
    }
}

impl Controls {
    /// The controls stored in this Redis.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    /// The paused tenants: the JSON record of each by its schedule key.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn paused(&self) -> Result<HashMap<String, String>, ScheduleError> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(PAUSED);
        let answer = self.link.send("read paused tenants", &cmd).await?;
        redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("read paused tenants", error.to_string()))
    }

    /// Records an action, and pauses or resumes the tenant if that is the action. Returns the entry's id, and whether the
    /// tenant was paused or resumed by this call.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn record(&self, order: &Order<'_>) -> Result<(String, bool), ScheduleError> {
        let mut cmd = scripts::RECORD_ACTION.call(2);
        cmd.arg(PAUSED)
            .arg(ACTIONS)
            .arg(MAX_ENTRIES)
            .arg(order.what)
            .arg(order.tenant)
            .arg(order.key)
            .arg(order.worker)
            .arg(order.by)
            .arg(order.note);
        let answer = scripts::RECORD_ACTION.run(&self.link, &cmd).await?;
        redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("record action", error.to_string()))
    }

    /// Records the outcome of an action on one worker.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn outcome(
        &self,
        action: &str,
        worker: &str,
        outcome: &str,
        detail: &str,
    ) -> Result<(), ScheduleError> {
        let mut cmd = redis::cmd("XADD");
        cmd.arg(ACTIONS).arg("MAXLEN").arg("~").arg(MAX_ENTRIES).arg("*");
        for (name, value) in [
            ("kind", "outcome"),
            ("of", action),
            ("worker", worker),
            ("outcome", outcome),
            ("detail", detail),
        ] {
            cmd.arg(name).arg(value);
        }
        self.link.send("record outcome", &cmd).await.map(drop)
    }

    /// The id of the newest entry; `0-0` if the log is empty.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn newest(&self) -> Result<String, ScheduleError> {
        let mut cmd = redis::cmd("XREVRANGE");
        cmd.arg(ACTIONS).arg("+").arg("-").arg("COUNT").arg(1);
        let entries = self.entries(&cmd).await?;
        Ok(entries.into_iter().next().map_or_else(|| "0-0".to_owned(), |entry| entry.id))
    }

    /// The entries after this id, oldest first; at most a thousand.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn after(&self, id: &str) -> Result<Vec<LogEntry>, ScheduleError> {
        let mut cmd = redis::cmd("XRANGE");
        cmd.arg(ACTIONS).arg(format!("({id}")).arg("+").arg("COUNT").arg(PAGE);
        self.entries(&cmd).await
    }

    /// The whole log, oldest first.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn log(&self) -> Result<Vec<LogEntry>, ScheduleError> {
        let mut all: Vec<LogEntry> = Vec::new();
        loop {
            let from = all.last().map_or("0-0", |entry| entry.id.as_str()).to_owned();
            let page = self.after(&from).await?;
            let full = page.len() == PAGE;
            all.extend(page);
            if !full {
                return Ok(all);
            }
        }
    }

    async fn entries(&self, cmd: &redis::Cmd) -> Result<Vec<LogEntry>, ScheduleError> {
        const OPERATION: &str = "read actions";
        let Value::Array(entries) = self.link.send(OPERATION, cmd).await? else {
            return Err(ScheduleError::unexpected(OPERATION, "a list was expected"));
        };
        entries
            .iter()
            .map(|entry| match entry {
                Value::Array(parts) => match parts.as_slice() {
                    [id, Value::Array(fields)] => {
                        let mut read = HashMap::with_capacity(fields.len() / 2);
                        for pair in fields.chunks_exact(2) {
                            let value = String::from_utf8_lossy(bulk(OPERATION, &pair[1])?).into_owned();
                            read.insert(text(OPERATION, &pair[0])?.to_owned(), value);
                        }
                        Ok(LogEntry { id: text(OPERATION, id)?.to_owned(), fields: read })
                    }
                    _ => Err(ScheduleError::unexpected(OPERATION, "an entry was expected")),
                },
                _ => Err(ScheduleError::unexpected(OPERATION, "an entry was expected")),
            })
            .collect()
    }
}
