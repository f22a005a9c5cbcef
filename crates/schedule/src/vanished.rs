//! What shows that Redis has lost data, and what is kept about it: the mark of the data set, each worker's number, the counts of
//! schedules, and the open conditions of tenants (`docs/decisions/0023-data-that-vanishes.md`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use balance_sync_domain::KeySpace;
use redis::Value;

use crate::{
    access::Parts,
    claimed::Claimed,
    error::ScheduleError,
    link::Link,
    losses::Loss,
    reply::{array, bulk, int, seconds},
    schedule::Schedule,
    scripts,
};

/// The mark of the data set.
pub(crate) const MARK: &str = "{transactions}:balance-sync:data-set";
/// The process that had it last: its `run_id`, and how many keys it had evicted.
pub(crate) const PROCESS: &str = "{transactions}:balance-sync:data-set:process";
/// A worker's number; the worker's mark follows.
const NUMBER: &str = "{transactions}:balance-sync:acknowledged:";
/// A hash: tenant → open condition.
pub(crate) const OPEN: &str = "{transactions}:balance-sync:vanished";
/// How long the number of a worker that has ended stays.
const NUMBER_LIVES: Duration = Duration::from_secs(3600);
/// Schedules in one call.
const SCHEDULES_PER_CALL: usize = 250;
/// Members remembered of each schedule.
const WITNESSES: usize = 16;
/// Longest value that is returned with a remembered member.
const VALUE_LIMIT: usize = 16 * 1024;
/// Lease of a member that is scheduled only to be listed as lost.
const LISTING: f64 = 30.0;

/// What one look at the server found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerState {
    /// The number that the worker's key had before.
    pub former: Option<u64>,
    /// The mark of the data set.
    pub data_set: Option<String>,
    /// The process that the mark names.
    pub marked_process: Option<String>,
    /// The process that answers.
    pub run_id: Option<String>,
    /// Keys that it has evicted.
    pub evicted: Option<u64>,
    /// The ID of its replication history.
    pub replication: Option<String>,
    /// The history that it followed before it was promoted.
    pub former_replication: Option<String>,
    /// Bytes written in its history.
    pub offset: u64,
    /// The offset of the former history at which it was promoted.
    pub promoted_at: u64,
    /// Its time, in seconds since 1970, and when that was asked for and the answer had come.
    pub time: Option<(f64, Instant, Instant)>,
}

/// A scheduled member with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduled {
    /// The member.
    pub member: Vec<u8>,
    /// When it is due, by Redis's clock, in seconds since 1970.
    pub score: f64,
    /// Its value.
    pub value: Vec<u8>,
}

/// One schedule, counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counted {
    /// Members; `None` = the key is of another type, or the user has no right to it.
    pub members: Option<u64>,
    /// Some of them.
    pub some: Vec<Scheduled>,
}

/// Looks for data that vanish.
#[derive(Debug, Clone)]
pub struct Vanished {
    link: Link,
    number: String,
}

impl Vanished {
    /// In this Redis, for the worker with this mark, which no other process has.
    #[must_use]
    pub fn new(link: Link, worker: &str) -> Self {
        Self { link, number: format!("{NUMBER}{worker}") }
    }

    /// Sets the worker's number, and reads what there is to be read about the server.
    ///
    /// # Errors
    /// As Redis answers; whether the number was set is then unknown.
    pub async fn look(&self, number: u64) -> Result<ServerState, ScheduleError> {
        const OPERATION: &str = "look for lost data";
        let mut set = redis::cmd("SET");
        set.arg(&self.number).arg(number).arg("EX").arg(NUMBER_LIVES.as_secs()).arg("GET");
        let former = match self.link.send(OPERATION, &set).await? {
            Value::BulkString(text) => std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        let mut get = redis::cmd("MGET");
        get.arg(MARK).arg(PROCESS);
        let mark = self.link.send(OPERATION, &get).await?;
        let [data_set, marked_process] = match array(OPERATION, &mark, 2)? {
            [id, process] => [text_of(id), text_of(process)],
            _ => [None, None],
        };
        let mut state = ServerState { former, data_set, marked_process, ..ServerState::default() };
        let begun = Instant::now();
        let time = self.link.send(OPERATION, &redis::cmd("TIME")).await?;
        state.time = Some((time_of(OPERATION, &time)?, begun, Instant::now()));
        for section in ["server", "stats", "replication"] {
            let mut info = redis::cmd("INFO");
            info.arg(section);
            let Some(info) = text_of(&self.link.send(OPERATION, &info).await?) else { continue };
            for line in info.lines() {
                if let Some(id) = line.strip_prefix("run_id:") {
                    state.run_id = Some(id.trim().to_owned());
                } else if let Some(keys) = line.strip_prefix("evicted_keys:") {
                    state.evicted = keys.trim().parse().ok();
                } else if let Some(id) = line.strip_prefix("master_replid:") {
                    state.replication = Some(id.trim().to_owned());
                } else if let Some(id) = line.strip_prefix("master_replid2:") {
                    state.former_replication =
                        Some(id.trim().to_owned()).filter(|id| id.bytes().any(|byte| byte != b'0'));
                } else if let Some(bytes) = line.strip_prefix("master_repl_offset:") {
                    state.offset = bytes.trim().parse().unwrap_or_default();
                } else if let Some(bytes) = line.strip_prefix("second_repl_offset:") {
                    // −1 = it was never promoted.
                    state.promoted_at = bytes.trim().parse().unwrap_or_default();
                }
            }
        }
        Ok(state)
    }

    /// Marks the data set with this id, unless another worker has marked it; and names the process that has it.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn mark(&self, id: &str, process: Option<&str>) -> Result<(), ScheduleError> {
        const OPERATION: &str = "mark the data set";
        let mut set = redis::cmd("SET");
        set.arg(MARK).arg(id).arg("NX");
        self.link.send(OPERATION, &set).await?;
        if let Some(process) = process {
            let mut set = redis::cmd("SET");
            set.arg(PROCESS).arg(process);
            self.link.send(OPERATION, &set).await?;
        }
        Ok(())
    }

    /// Counts these schedules, in order.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn count(&self, spaces: &[&KeySpace]) -> Result<Vec<Counted>, ScheduleError> {
        let mut counted = Vec::with_capacity(spaces.len());
        for page in spaces.chunks(SCHEDULES_PER_CALL) {
            let mut parts = Parts::of(page);
            while let Some(part) = parts.next() {
                match self.count_part(part).await {
                    Ok(mut found) => counted.append(&mut found),
                    Err(error) => {
                        if parts.is_denied(part, error)? {
                            counted.push(Counted::default());
                        }
                    }
                }
            }
        }
        Ok(counted)
    }

    async fn count_part(&self, spaces: &[&KeySpace]) -> Result<Vec<Counted>, ScheduleError> {
        const OPERATION: &str = "count schedules";
        let mut cmd = scripts::COUNT.call(spaces.len());
        for space in spaces {
            cmd.arg(space.schedule());
        }
        cmd.arg(WITNESSES).arg(VALUE_LIMIT);
        for space in spaces {
            cmd.arg(space.prefix());
        }
        let answer = scripts::COUNT.run(&self.link, &cmd).await?;
        let read = |part: &Value| {
            let Value::Array(parts) = part else { return Ok(Counted::default()) };
            let Some((members, some)) = parts.split_first() else { return Ok(Counted::default()) };
            let some = some.chunks_exact(3).map(|part| {
                Ok(Scheduled {
                    member: bulk(OPERATION, &part[0])?.to_vec(),
                    score: seconds(OPERATION, &part[1])?,
                    value: bulk(OPERATION, &part[2])?.to_vec(),
                })
            });
            Ok(Counted {
                members: Some(int(OPERATION, members)?),
                some: some.collect::<Result<_, ScheduleError>>()?,
            })
        };
        array(OPERATION, &answer, spaces.len())?.iter().map(read).collect()
    }

    /// The open conditions, by tenant.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn open(&self) -> Result<Vec<(String, String)>, ScheduleError> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(OPEN);
        let answer = self.link.send("read open conditions", &cmd).await?;
        let pairs: Vec<(String, String)> = match answer {
            Value::Map(pairs) => {
                pairs.iter().filter_map(|(tenant, entry)| Some((text_of(tenant)?, text_of(entry)?))).collect()
            }
            Value::Array(parts) => parts
                .chunks_exact(2)
                .filter_map(|pair| Some((text_of(&pair[0])?, text_of(&pair[1])?)))
                .collect(),
            _ => Vec::new(),
        };
        Ok(pairs)
    }

    /// Stores a tenant's open condition.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn store(&self, tenant: &str, entry: &str) -> Result<(), ScheduleError> {
        let mut cmd = redis::cmd("HSET");
        cmd.arg(OPEN).arg(tenant).arg(entry);
        self.link.send("store an open condition", &cmd).await.map(drop)
    }

    /// Removes a tenant's condition.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn close(&self, tenant: &str) -> Result<(), ScheduleError> {
        let mut cmd = redis::cmd("HDEL");
        cmd.arg(OPEN).arg(tenant);
        self.link.send("close a condition", &cmd).await.map(drop)
    }
}

impl Schedule {
    /// Since when each of these members has an entry in quarantine or is listed as lost, by Redis's clock, in seconds since 1970;
    /// of an entry that can't be read 0.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn listed(&self, members: &[&[u8]]) -> Result<Vec<Option<f64>>, ScheduleError> {
        const OPERATION: &str = "look up entries";
        let mut listed: Vec<Option<f64>> = vec![None; members.len()];
        if members.is_empty() {
            return Ok(listed);
        }
        for key in [self.space().quarantine(), self.space().losses()] {
            let mut cmd = redis::cmd("HMGET");
            cmd.arg(key).arg(members);
            let answer = self.link().send(OPERATION, &cmd).await?;
            for (listed, entry) in listed.iter_mut().zip(array(OPERATION, &answer, members.len())?) {
                if *entry != Value::Nil {
                    let since = text_of(entry).map_or(0.0, |entry| first_at(&entry));
                    *listed = Some(listed.map_or(since, |before| before.min(since)));
                }
            }
        }
        Ok(listed)
    }

    /// Lists balances as lost that are not scheduled. Those that are scheduled are left to their mutation. Returns how many.
    ///
    /// # Errors
    /// As Redis answers. Some are then scheduled, and are examined when they are claimed.
    pub async fn list_losses(&self, lost: Vec<(Vec<u8>, Loss)>) -> Result<u64, ScheduleError> {
        const OPERATION: &str = "list losses";
        if lost.is_empty() {
            return Ok(0);
        }
        let now = time_of(OPERATION, &self.link().send(OPERATION, &redis::cmd("TIME")).await?)?;
        // A lease, so that `record_losses` finds them under it.
        let lease: Arc<str> = format!("{:.6}5", now + LISTING).into();
        let mut cmd = redis::cmd("ZADD");
        cmd.arg(self.space().schedule()).arg("NX");
        for (member, _) in &lost {
            cmd.arg(&*lease).arg(member);
        }
        self.link().send(OPERATION, &cmd).await?;
        let claimed: Vec<(Claimed, Loss)> = lost
            .into_iter()
            .map(|(member, loss)| {
                let lease = Arc::clone(&lease);
                let claimed = Claimed {
                    member,
                    former: lease.to_string(),
                    lease,
                    leased: 0,
                    schedule: 0,
                    value: None,
                    unreadable: None,
                };
                (claimed, loss)
            })
            .collect();
        let claimed: Vec<(&Claimed, Loss)> = claimed.iter().map(|(one, loss)| (one, loss.clone())).collect();
        Ok(self.record_losses(&claimed).await?.quarantined)
    }
}

/// The answer of `TIME`, in seconds since 1970.
fn time_of(operation: &'static str, time: &Value) -> Result<f64, ScheduleError> {
    match array(operation, time, 2)? {
        [whole, micros] => Ok(seconds(operation, whole)? + seconds(operation, micros)? / 1e6),
        _ => Ok(0.0),
    }
}

/// Since when an entry of the quarantine or of the losses stands there.
fn first_at(entry: &str) -> f64 {
    #[derive(serde::Deserialize)]
    struct Entry {
        first_at: String,
    }
    let entry: Option<Entry> = serde_json::from_str(entry).ok();
    entry.and_then(|entry| entry.first_at.parse().ok()).filter(|at: &f64| at.is_finite()).unwrap_or(0.0)
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::VerbatimString { text, .. } => Some(text.clone()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}
