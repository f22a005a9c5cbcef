//! Actions of operators, shared by all workers: the paused tenants, and a log of actions that workers follow.
//!
//! With them, which entries of quarantine and losses an operator has acknowledged.
//!
//! All are in the Redis of the schedules, so they outlive every worker. The log is a stream with one entry per action, and
//! one per action and worker with the outcome. It is trimmed to about ten thousand entries.

use std::collections::HashMap;

use balance_sync_domain::KeySpace;
use redis::Value;
use serde::Deserialize;

use crate::{
    error::ScheduleError,
    link::Link,
    reply::{bulk, text},
    scripts,
};

/// Hash of paused tenants: field = schedule key of the tenant, value = who paused it, when and why.
pub(crate) const PAUSED: &str = "{transactions}:balance-sync:paused";
/// Stream of actions and outcomes.
pub(crate) const ACTIONS: &str = "{transactions}:balance-sync:actions";
/// Hash of acknowledged entries: field = schedule key of the tenant, value = [`Acknowledgement`].
pub(crate) const ACKNOWLEDGED: &str = "{transactions}:balance-sync:acknowledged-entries";
/// Hash of events that need an acknowledgement: field = schedule key, value = how many there were.
pub(crate) const EVENTS: &str = "{transactions}:balance-sync:entry-events";
/// Approximate limit of entries in the stream: it holds at least as many before the oldest are dropped.
pub const MAX_ENTRIES: usize = 10_000;
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

/// Entries of a tenant's quarantine and losses that an operator has acknowledged.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Acknowledgement {
    /// Whose; the label.
    pub tenant: String,
    /// Who acknowledged them.
    pub by: String,
    /// When, in seconds of Redis's clock since 1970.
    pub at: f64,
    /// Why.
    #[serde(default)]
    pub note: Option<String>,
    /// Entries at that moment, losses included.
    pub entries: u64,
    /// Losses among them.
    pub losses: u64,
    /// Events until that moment.
    events: u64,
    /// Events since then: new entries, and further losses of a balance.
    #[serde(skip)]
    pub since: u64,
    schedules: Vec<String>,
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
        self.record_with(order, &[]).await
    }

    /// Records that an operator has acknowledged what stands in these key spaces of a tenant at this moment, in quarantine and as
    /// lost. Returns the entry's id, and whether anything stood there.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn acknowledge(
        &self,
        order: &Order<'_>,
        spaces: &[KeySpace],
    ) -> Result<(String, bool), ScheduleError> {
        self.record_with(order, spaces).await
    }

    async fn record_with(
        &self,
        order: &Order<'_>,
        spaces: &[KeySpace],
    ) -> Result<(String, bool), ScheduleError> {
        let mut cmd = scripts::RECORD_ACTION.call(4 + 2 * spaces.len());
        cmd.arg(PAUSED).arg(ACTIONS).arg(ACKNOWLEDGED).arg(EVENTS);
        for space in spaces {
            cmd.arg(space.quarantine()).arg(space.losses());
        }
        cmd.arg(MAX_ENTRIES)
            .arg(order.what)
            .arg(order.tenant)
            .arg(order.key)
            .arg(order.worker)
            .arg(order.by)
            .arg(order.note);
        for space in spaces {
            cmd.arg(space.schedule());
        }
        let answer = scripts::RECORD_ACTION.run(&self.link, &cmd).await?;
        redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("record action", error.to_string()))
    }

    /// What operators have acknowledged last of each tenant, whatever has become of it since.
    ///
    /// # Errors
    /// As Redis answers. A record of another format is left out.
    pub async fn acknowledged(&self) -> Result<Vec<Acknowledgement>, ScheduleError> {
        const OPERATION: &str = "read acknowledged entries";
        let unexpected = |error: redis::ParsingError| ScheduleError::unexpected(OPERATION, error.to_string());
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(ACKNOWLEDGED);
        let records: HashMap<String, String> =
            redis::from_redis_value(self.link.send(OPERATION, &cmd).await?).map_err(unexpected)?;
        let mut found: Vec<Acknowledgement> =
            records.values().filter_map(|text| serde_json::from_str(text).ok()).collect();
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(EVENTS);
        found.iter().flat_map(|one| &one.schedules).for_each(|schedule| {
            cmd.arg(schedule);
        });
        if found.iter().any(|one| !one.schedules.is_empty()) {
            let counts: Vec<Option<u64>> =
                redis::from_redis_value(self.link.send(OPERATION, &cmd).await?).map_err(unexpected)?;
            let mut counts = counts.into_iter();
            for one in &mut found {
                let now: u64 = counts.by_ref().take(one.schedules.len()).flatten().sum();
                // Fewer only when Redis has lost them; what was acknowledged is then not known any more.
                one.since = if now < one.events { u64::MAX } else { now - one.events };
            }
        }
        Ok(found)
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
        self.all_after("0-0").await
    }

    /// All entries after this id, oldest first.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn all_after(&self, id: &str) -> Result<Vec<LogEntry>, ScheduleError> {
        let mut all: Vec<LogEntry> = Vec::new();
        loop {
            let from = all.last().map_or(id, |entry| entry.id.as_str()).to_owned();
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
