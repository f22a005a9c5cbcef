//! What operators decide, for all workers: which tenants are halted, and the log of actions by which workers hear of them.
//!
//! Both are kept beside the schedules, so that they outlive every worker. The log is a stream: an entry per action, and
//! one per worker and action with its outcome. It is trimmed at some ten thousand entries.

use std::collections::HashMap;

use redis::Value;

use crate::{
    error::ScheduleError,
    link::Link,
    schedule::{bulk, text},
    scripts,
};

/// Field = the schedule key of a halted tenant; the value says who halted it.
const PAUSED: &str = "{transactions}:balance-sync:paused";
/// Actions and outcomes.
const ACTIONS: &str = "{transactions}:balance-sync:actions";
/// Entries that are kept, about.
const KEPT: usize = 10_000;
/// Entries in one answer.
const PAGE: usize = 1000;

/// Operators' decisions.
#[derive(Debug, Clone)]
pub struct Controls {
    link: Link,
}

/// What an operator wants done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Order<'a> {
    /// What; see `lua/record_action.lua`.
    pub what: &'a str,
    /// The tenant as it is shown; empty = none.
    pub tenant: &'a str,
    /// The key of its schedule; empty = none.
    pub key: &'a str,
    /// The worker; empty = all that serve the tenant.
    pub worker: &'a str,
    /// Who wants it.
    pub by: &'a str,
    /// Why; empty = not said.
    pub note: &'a str,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place in the log; grows.
    pub id: String,
    /// What stands in it.
    pub fields: HashMap<String, String>,
}

impl LogEntry {
    /// A field; empty when it isn't there.
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
    /// On this Redis.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    /// The halted tenants: what stands about each, by its schedule key.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn paused(&self) -> Result<HashMap<String, String>, ScheduleError> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(PAUSED);
        let answer = self.link.ask("read paused tenants", &cmd).await?;
        redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("read paused tenants", error.to_string()))
    }

    /// Writes an action down, and with it halts or resumes a tenant; gives its id, and whether a tenant was halted or
    /// resumed by it.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn record(&self, order: &Order<'_>) -> Result<(String, bool), ScheduleError> {
        let mut cmd = scripts::RECORD_ACTION.call(2);
        cmd.arg(PAUSED)
            .arg(ACTIONS)
            .arg(KEPT)
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

    /// Writes down what became of an action.
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
        cmd.arg(ACTIONS).arg("MAXLEN").arg("~").arg(KEPT).arg("*");
        for (name, value) in [
            ("kind", "outcome"),
            ("of", action),
            ("worker", worker),
            ("outcome", outcome),
            ("detail", detail),
        ] {
            cmd.arg(name).arg(value);
        }
        self.link.ask("record outcome", &cmd).await.map(drop)
    }

    /// The id of the newest entry; of an empty log the one before any.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn newest(&self) -> Result<String, ScheduleError> {
        let mut cmd = redis::cmd("XREVRANGE");
        cmd.arg(ACTIONS).arg("+").arg("-").arg("COUNT").arg(1);
        let entries = self.entries(&cmd).await?;
        Ok(entries.into_iter().next().map_or_else(|| "0-0".to_owned(), |entry| entry.id))
    }

    /// The entries after this one, oldest first; at most a thousand.
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
        let Value::Array(entries) = self.link.ask(OPERATION, cmd).await? else {
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
