//! State that workers publish about themselves and their tenants, so that each of them can report on the whole fleet.
//!
//! The records are opaque here. A worker writes only changed records, and a reader reads only those changed since its last
//! call: ten thousand idle tenants cost neither anything. A worker counts as live for a few seconds after each call. Its records
//! outlive it by an hour: while Redis refuses writes no worker can publish, and readers show what was published last.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use redis::Value;

use crate::{
    error::{ErrorClass, ScheduleError},
    link::Link,
    reply::{bulk, seconds_of_time},
    scripts,
    workers::Listed,
};

/// Prefix of the keys, with the hash tag of all other keys. Increase the number when the format of the records changes.
const KEY_PREFIX: &str = "{transactions}:balance-sync:worker-1:";
/// Groups with live workers. No group has an empty name.
const GROUPS: &str = "{transactions}:balance-sync:worker-1:";
/// For how long facts are kept when no worker records any more.
const FACTS_KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Longest record of a fact that is read, in bytes; those of this release are shorter.
const LONGEST_FACT: usize = 1024;
/// Most tenants in one call of a writer: about 300 µs of Redis.
pub const PUBLISH_PAGE: usize = 250;
/// Most tenants in one answer to a reader. More than [`PUBLISH_PAGE`], so that each page makes progress.
const READ_PAGE: usize = 1000;

/// The published state of one group's workers.
#[derive(Debug, Clone)]
pub struct Snapshots {
    link: Link,
    group: String,
}

/// One call of a writer.
#[derive(Debug, Default)]
pub struct Publication<'a> {
    /// New for each process, and whenever it starts over.
    pub incarnation: &'a str,
    /// The number of this call; 1 starts over.
    pub seq: u64,
    /// Whether readers see the worker from now on.
    pub visible: bool,
    /// The worker's own record.
    pub worker: &'a str,
    /// At most [`PUBLISH_PAGE`] tenants' records; `None` = the tenant is no longer served.
    pub tenants: &'a [(String, Option<String>)],
    /// Details of watched tenants.
    pub details: &'a [(String, String)],
}

/// The answer to a writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Whether the call was applied. If not, Redis lacks what the preceding calls wrote, and the writer has to start over.
    pub accepted: bool,
    /// Tenants watched in detail.
    pub watched: BTreeSet<String>,
}

/// How far a reader has read a worker's records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// The worker's incarnation; empty at first.
    pub incarnation: String,
    /// The last call of the worker that was read.
    pub seq: u64,
}

/// Records that changed since a reader's position.
#[derive(Debug, Clone)]
pub struct Changes {
    /// Position for the next call.
    pub position: Position,
    /// There is more: read again at once.
    pub more: bool,
    /// The worker's own record.
    pub worker: String,
    /// Tenants whose records changed; `None` = the tenant is no longer served.
    pub tenants: Vec<(String, Option<String>)>,
}

impl Snapshots {
    /// The workers of one group; groups don't see each other.
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

    fn dead_index(&self) -> String {
        format!("{KEY_PREFIX}{}|dead", self.group)
    }

    fn facts_key(&self) -> String {
        format!("{KEY_PREFIX}{}|facts", self.group)
    }

    /// Workers' names contain neither `:` nor `|`.
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
        let mut cmd = scripts::PUBLISH.call(6);
        cmd.arg(self.index())
            .arg(self.records(name))
            .arg(self.changes(name))
            .arg(self.watched())
            .arg(self.dead_index())
            .arg(GROUPS)
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

    /// Removes a worker and everything it published.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn leave(&self, name: &str) -> Result<(), ScheduleError> {
        let mut cmd = redis::cmd("ZREM");
        cmd.arg(self.index()).arg(name);
        self.link.send("leave", &cmd).await?;
        let mut cmd = redis::cmd("UNLINK");
        cmd.arg(self.records(name)).arg(self.changes(name));
        self.link.send("leave", &cmd).await.map(drop)
    }

    /// The workers that publish. Those that have been silent since are forgotten as soon as another worker publishes.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn publishers(&self) -> Result<Listed, ScheduleError> {
        Listed::read(&self.link, &self.index()).await
    }

    /// The workers that stopped publishing within the last quarter of an hour without taking leave, and until when each counted as
    /// live, by Redis's clock. Another worker's publication makes a silent one dead.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn dead(&self) -> Result<BTreeMap<String, f64>, ScheduleError> {
        const OPERATION: &str = "list dead workers";
        let mut cmd = redis::cmd("ZRANGE");
        cmd.arg(self.dead_index()).arg(0).arg(-1).arg("WITHSCORES");
        let listed: Vec<(String, f64)> = redis::from_redis_value(self.link.send(OPERATION, &cmd).await?)
            .map_err(|error| ScheduleError::unexpected(OPERATION, error.to_string()))?;
        Ok(listed.into_iter().collect())
    }

    /// What is recorded of these facts about the fleet, in their order; `None` = nothing, or nothing that this release could have written.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn facts(&self, names: &[&str]) -> Result<Vec<Option<String>>, ScheduleError> {
        const OPERATION: &str = "read facts";
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.facts_key()).arg(names);
        let read: Vec<Option<Vec<u8>>> = redis::from_redis_value(self.link.send(OPERATION, &cmd).await?)
            .map_err(|error| ScheduleError::unexpected(OPERATION, error.to_string()))?;
        Ok(read
            .into_iter()
            .map(|text| Some(lossy(&text.filter(|text| text.len() <= LONGEST_FACT)?)))
            .collect())
    }

    /// Records these facts, and keeps all that are recorded for another while.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn record_facts(&self, changed: &[(&str, String)]) -> Result<(), ScheduleError> {
        const OPERATION: &str = "record facts";
        if !changed.is_empty() {
            let mut cmd = redis::cmd("HSET");
            cmd.arg(self.facts_key());
            for (name, text) in changed {
                cmd.arg(name).arg(text);
            }
            self.link.send(OPERATION, &cmd).await?;
        }
        let mut cmd = redis::cmd("EXPIRE");
        cmd.arg(self.facts_key()).arg(FACTS_KEPT.as_secs());
        self.link.send(OPERATION, &cmd).await.map(drop)
    }

    /// The other groups that publish in this Redis: workers with another list of tenants, or another form of keys.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn other_groups(&self) -> Result<Vec<Self>, ScheduleError> {
        const OPERATION: &str = "list groups";
        let mut cmd = redis::cmd("ZRANGE");
        cmd.arg(GROUPS).arg(0).arg(-1);
        let listed: Vec<String> = redis::from_redis_value(self.link.send(OPERATION, &cmd).await?)
            .map_err(|error| ScheduleError::unexpected(OPERATION, error.to_string()))?;
        let groups = listed.iter().filter_map(|key| key.strip_prefix(KEY_PREFIX));
        let others = groups.filter(|group| *group != self.group);
        Ok(others.map(|group| Self { link: self.link.clone(), group: group.to_owned() }).collect())
    }

    /// Which workers these are of.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Redis's clock, in seconds since 1970.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn time(&self) -> Result<f64, ScheduleError> {
        seconds_of_time("read time", &self.link.send("read time", &redis::cmd("TIME")).await?)
    }

    /// Why Redis refuses writes; `None` if it takes them, or if this user may not write.
    ///
    /// # Errors
    /// As Redis answers anything but such a refusal.
    pub async fn write_refusal(&self) -> Result<Option<ScheduleError>, ScheduleError> {
        // Changes nothing: with XX only a member that exists is changed, and no worker has an empty name.
        let mut cmd = redis::cmd("ZADD");
        cmd.arg(self.index()).arg("XX").arg(0).arg("");
        match self.link.send("write", &cmd).await {
            Ok(_) => Ok(None),
            Err(error) if error.class == ErrorClass::Permission => Ok(None),
            Err(error) if error.class.refuses_writes() => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    /// A worker's own record; `None` if it has expired.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn worker(&self, name: &str) -> Result<Option<String>, ScheduleError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.records(name)).arg("worker");
        let answer = self.link.send("read worker", &cmd).await?;
        redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("read worker", error.to_string()))
    }

    /// The records that a worker has changed since; `None` if they have expired.
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

    /// The details that these workers have published about a tenant, one per worker; `interest` keeps them publishing.
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
