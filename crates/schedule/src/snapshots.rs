//! What workers publish about themselves and their tenants, so that any of them can answer for the whole fleet.
//!
//! The texts are opaque here. A worker writes only what has changed, and a reader reads only what has changed since it
//! last looked: ten thousand idle tenants cost neither of them anything. All of it has a life of a few seconds, which
//! each call renews.

use std::{collections::BTreeSet, time::Duration};

use redis::Value;

use crate::{error::ScheduleError, link::Link, schedule::bulk, scripts};

/// What all keys begin with; the hash tag is that of all other keys. The number grows when what is published changes its
/// form.
const KEY_PREFIX: &str = "{transactions}:balance-sync:worker-1:";
/// Most tenants in one call of a writer: some 300 µs of Redis.
pub const PUBLISH_PAGE: usize = 250;
/// Most tenants in one answer to a reader. More than [`PUBLISH_PAGE`], so that a page always gets on.
const READ_PAGE: usize = 1000;

/// What the workers of one group publish.
#[derive(Debug, Clone)]
pub struct Snapshots {
    link: Link,
    group: String,
}

/// One call of a writer.
#[derive(Debug, Default)]
pub struct Publication<'a> {
    /// Another one for each process, and for each time that it begins anew.
    pub incarnation: &'a str,
    /// The number of this call; 1 begins anew.
    pub seq: u64,
    /// Whether readers may see the worker from now on.
    pub visible: bool,
    /// The worker itself.
    pub worker: &'a str,
    /// At most [`PUBLISH_PAGE`] tenants; `None` for one that is served no longer.
    pub tenants: &'a [(String, Option<String>)],
    /// More about some of them.
    pub details: &'a [(String, String)],
}

/// The answer to a writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Redis doesn't hold what the calls before this one wrote: nothing was done, the writer has to begin anew.
    pub accepted: bool,
    /// Tenants that somebody looks at in detail.
    pub watched: BTreeSet<String>,
}

/// How far a reader knows a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Of the worker; empty at first.
    pub incarnation: String,
    /// Up to which call.
    pub seq: u64,
}

/// What is new to a reader.
#[derive(Debug, Clone)]
pub struct Changes {
    /// Where it begins next time.
    pub position: Position,
    /// Ask again at once.
    pub more: bool,
    /// The worker itself.
    pub worker: String,
    /// Tenants that have changed; `None` for one that is served no longer.
    pub tenants: Vec<(String, Option<String>)>,
}

impl Snapshots {
    /// The workers of this group; those of another are never seen.
    #[must_use]
    pub fn new(link: Link, group: &str) -> Self {
        Self { link, group: group.to_owned() }
    }

    fn index(&self) -> String {
        format!("{KEY_PREFIX}{}", self.group)
    }

    fn watched(&self) -> String {
        format!("{KEY_PREFIX}{}|watched", self.group)
    }

    /// Names of workers have no `:` in them, nor a `|`.
    fn records(&self, name: &str) -> String {
        format!("{KEY_PREFIX}{}:{name}", self.group)
    }

    fn changes(&self, name: &str) -> String {
        format!("{KEY_PREFIX}{}:{name}|changes", self.group)
    }

    /// Writes one page.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn publish(
        &self,
        name: &str,
        life: Duration,
        page: &Publication<'_>,
    ) -> Result<Published, ScheduleError> {
        let mut cmd = scripts::PUBLISH.call(4);
        cmd.arg(self.index())
            .arg(self.records(name))
            .arg(self.changes(name))
            .arg(self.watched())
            .arg(name)
            .arg(millis(life))
            .arg(page.incarnation)
            .arg(page.seq)
            .arg(u8::from(page.visible))
            .arg(page.worker)
            .arg(page.tenants.len());
        for (tenant, record) in page.tenants {
            cmd.arg(tenant).arg(record.as_deref().unwrap_or_default());
        }
        for (tenant, detail) in page.details {
            cmd.arg(tenant).arg(detail);
        }
        let answer = scripts::PUBLISH.run(&self.link, &cmd).await?;
        redis::from_redis_value::<(bool, BTreeSet<String>)>(answer)
            .map(|(accepted, watched)| Published { accepted, watched })
            .map_err(|error| ScheduleError::unexpected("publish worker", error.to_string()))
    }

    /// Takes a worker and all it published away.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn leave(&self, name: &str) -> Result<(), ScheduleError> {
        let mut cmd = redis::cmd("ZREM");
        cmd.arg(self.index()).arg(name);
        self.link.ask("leave", &cmd).await?;
        let mut cmd = redis::cmd("UNLINK");
        cmd.arg(self.records(name)).arg(self.changes(name));
        self.link.ask("leave", &cmd).await.map(drop)
    }

    /// The names of those that have published something lately. Some may have run out since.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn names(&self) -> Result<BTreeSet<String>, ScheduleError> {
        let mut cmd = redis::cmd("ZRANGE");
        cmd.arg(self.index()).arg(0).arg(-1);
        let answer = self.link.ask("list workers", &cmd).await?;
        redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("list workers", error.to_string()))
    }

    /// A worker's own record; `None` when it has run out.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn worker(&self, name: &str) -> Result<Option<String>, ScheduleError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.records(name)).arg("worker");
        let answer = self.link.ask("read worker", &cmd).await?;
        redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("read worker", error.to_string()))
    }

    /// What a worker has published since; `None` when it has run out.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn read(&self, name: &str, since: &Position) -> Result<Option<Changes>, ScheduleError> {
        const OPERATION: &str = "read worker";
        let mut cmd = scripts::READ_WORKER.call(2);
        cmd.arg(self.records(name))
            .arg(self.changes(name))
            .arg(&since.incarnation)
            .arg(since.seq)
            .arg(READ_PAGE);
        let Value::Array(parts) = scripts::READ_WORKER.run(&self.link, &cmd).await? else {
            return Err(ScheduleError::unexpected(OPERATION, "the script gave no array"));
        };
        if parts.is_empty() {
            return Ok(None);
        }
        let unexpected = |what: &str| ScheduleError::unexpected(OPERATION, what);
        let (head, rest) = parts.split_at_checked(4).ok_or_else(|| unexpected("the head is cut"))?;
        let (Value::Int(seq), Value::Int(more)) = (&head[1], &head[2]) else {
            return Err(unexpected("a number was expected"));
        };
        let mut tenants = Vec::with_capacity(rest.len() / 2);
        for pair in rest.chunks_exact(2) {
            let record = match &pair[1] {
                Value::BulkString(record) => Some(lossy(record)),
                _ => None,
            };
            tenants.push((lossy(bulk(OPERATION, &pair[0])?), record));
        }
        Ok(Some(Changes {
            position: Position {
                incarnation: lossy(bulk(OPERATION, &head[0])?),
                seq: u64::try_from(*seq).map_err(|_| unexpected("a negative number"))?,
            },
            more: *more == 1,
            worker: lossy(bulk(OPERATION, &head[3])?),
            tenants,
        }))
    }

    /// What these workers have published about a tenant in detail, one for each; they go on doing so for a while.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn watch(
        &self,
        names: &[&str],
        tenant: &str,
        interest: Duration,
    ) -> Result<Vec<Option<String>>, ScheduleError> {
        let mut cmd = scripts::WATCH_TENANT.call(1 + names.len());
        cmd.arg(self.watched());
        for name in names {
            cmd.arg(self.records(name));
        }
        cmd.arg(tenant).arg(millis(interest));
        let answer = scripts::WATCH_TENANT.run(&self.link, &cmd).await?;
        redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("watch tenant", error.to_string()))
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}
