//! What is kept for a day: a timeline per tenant, until when each worker has recorded it, and the fleet's history by the minute.
//!
//! The texts are opaque here. All keys expire by themselves, so that a removed tenant leaves nothing, and their sizes are bounded where
//! they are written.

use std::collections::{BTreeMap, HashMap};

use redis::{FromRedisValue, Value};

use crate::{error::ScheduleError, link::Link, reply::seconds_of_time, scripts};

/// Prefix of the keys, with the hash tag of all other keys. Increase the number when the format of the texts changes.
pub(crate) const KEY_PREFIX: &str = "{transactions}:balance-sync:timeline-1:";
/// For how long entries and periods are kept, in milliseconds: a day, and an hour so that a day is whole.
pub const KEPT_MS: u64 = 25 * 60 * 60 * 1000;
/// Most entries of a tenant: two workers under which it flaps all day have fewer.
pub const MOST_ENTRIES: usize = 256;
/// Most periods, i.e. starts of workers.
pub const MOST_PERIODS: usize = 256;
/// Minutes of the fleet's history that are kept.
pub const MINUTES: u64 = 24 * 60 + 10;
/// Most fields of the history: more than one per minute only where the worker that records has changed.
pub const MOST_MINUTES: usize = 2 * MINUTES as usize;
/// Most entries in one call: some milliseconds of Redis.
pub const RECORD_PAGE: usize = 250;
/// Longest text of an entry that is read, in bytes; those of this release are shorter.
pub const LONGEST_TEXT: usize = 4096;

/// An entry of a tenant's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineEntry {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Of two entries at one time. No `|` in it.
    pub id: String,
    /// The entry itself.
    pub text: String,
}

/// An entry to be recorded.
#[derive(Debug, Clone, Copy)]
pub struct NewEntry<'a> {
    /// The tenant's label.
    pub tenant: &'a str,
    /// Record it only if the tenant has any entry.
    pub only_if_known: bool,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The entry itself. It names its time: no two of a run are equal.
    pub text: &'a str,
}

/// The run of a worker that records.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// New for each process, and whenever Redis has lost what was recorded. No `|` in it.
    pub id: &'a str,
    /// It has recorded before.
    pub known: bool,
    /// Until when it is recorded with this call, in milliseconds since 1970.
    pub until: u64,
    /// The period itself.
    pub period: &'a str,
}

/// The timelines of one group of workers.
#[derive(Debug, Clone)]
pub struct Timelines {
    link: Link,
    group: String,
}

impl Timelines {
    /// Those of one group; groups don't see each other.
    #[must_use]
    pub fn new(link: Link, group: &str) -> Self {
        Self { link, group: group.to_owned() }
    }

    fn periods_key(&self) -> String {
        format!("{KEY_PREFIX}{}:workers", self.group)
    }

    fn history_key(&self) -> String {
        format!("{KEY_PREFIX}{}:fleet", self.group)
    }

    /// The key of a tenant's timeline.
    #[must_use]
    pub fn key(&self, tenant: &str) -> String {
        format!("{KEY_PREFIX}{}:t:{tenant}", self.group)
    }

    /// The keys with which a user's rights are tried.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        vec![self.periods_key(), self.history_key(), self.key("rights")]
    }

    /// Redis's clock, in seconds since 1970.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn time(&self) -> Result<f64, ScheduleError> {
        seconds_of_time("read time", &self.link.send("read time", &redis::cmd("TIME")).await?)
    }

    /// Records entries (at most [`RECORD_PAGE`]) and until when this run has recorded. `false` = Redis has lost what it had recorded
    /// before, and nothing was recorded.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn record(&self, run: Run<'_>, entries: &[NewEntry<'_>]) -> Result<bool, ScheduleError> {
        let mut numbers = BTreeMap::new();
        let mut keys = vec![self.periods_key()];
        for entry in entries {
            numbers.entry(entry.tenant).or_insert_with(|| {
                keys.push(self.key(entry.tenant));
                keys.len() - 1
            });
        }
        let mut cmd = scripts::RECORD_TIMELINE.call(keys.len());
        cmd.arg(keys).arg(run.id).arg(u8::from(run.known)).arg(run.until).arg(run.period);
        cmd.arg(KEPT_MS).arg(MOST_ENTRIES).arg(MOST_PERIODS);
        for entry in entries {
            cmd.arg(numbers[entry.tenant]).arg(u8::from(entry.only_if_known)).arg(entry.at);
            cmd.arg(run.id).arg(entry.text);
        }
        let answer = scripts::RECORD_TIMELINE.run(&self.link, &cmd).await?;
        read::<u8>("record timeline", answer).map(|recorded| recorded == 1)
    }

    /// The entries of a tenant since this time, in milliseconds since 1970; in order of time.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn entries(&self, tenant: &str, since: u64) -> Result<Vec<TimelineEntry>, ScheduleError> {
        const OPERATION: &str = "read timeline";
        let mut cmd = redis::cmd("ZRANGEBYSCORE");
        cmd.arg(self.key(tenant)).arg(since).arg("+inf").arg("WITHSCORES").arg("LIMIT").arg(0);
        cmd.arg(MOST_ENTRIES);
        let read: Vec<(Vec<u8>, f64)> = read(OPERATION, self.link.send(OPERATION, &cmd).await?)?;
        let entries = read.into_iter().filter(|(member, _)| member.len() <= LONGEST_TEXT);
        Ok(entries
            .filter_map(|(member, at)| {
                let member = String::from_utf8_lossy(&member).into_owned();
                let (id, text) = member.split_once('|')?;
                Some(TimelineEntry { at: at as u64, id: id.to_owned(), text: text.to_owned() })
            })
            .collect())
    }

    /// The periods by run, without those whose text is too long.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn periods(&self) -> Result<HashMap<String, String>, ScheduleError> {
        let periods = self.hash("read workers' timelines", self.periods_key()).await?;
        Ok(periods
            .into_iter()
            .filter_map(|(run, text)| Some((run, text.split_once('|')?.1.to_owned())))
            .collect())
    }

    /// Records how the fleet was in this minute since 1970, as seen in this run.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn record_minute(&self, minute: u64, run: &str, text: &str) -> Result<(), ScheduleError> {
        let mut cmd = scripts::RECORD_HISTORY.call(1);
        cmd.arg(self.history_key()).arg(minute).arg(run).arg(text).arg(MINUTES).arg(MOST_MINUTES);
        scripts::RECORD_HISTORY.run(&self.link, &cmd).await.map(drop)
    }

    /// How the fleet was, by minute since 1970, as seen by each run that recorded it.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn minutes(&self) -> Result<Vec<(u64, String)>, ScheduleError> {
        let fields = self.hash("read history", self.history_key()).await?;
        let mut minutes: Vec<(u64, String)> = fields
            .into_iter()
            .filter_map(|(field, text)| Some((field.split_once(':')?.0.parse().ok()?, text)))
            .collect();
        minutes.sort_unstable();
        Ok(minutes)
    }

    async fn hash(
        &self,
        operation: &'static str,
        key: String,
    ) -> Result<HashMap<String, String>, ScheduleError> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(key);
        let fields: HashMap<String, Vec<u8>> = read(operation, self.link.send(operation, &cmd).await?)?;
        let fields = fields.into_iter().filter(|(_, text)| text.len() <= LONGEST_TEXT);
        Ok(fields.map(|(field, text)| (field, String::from_utf8_lossy(&text).into_owned())).collect())
    }
}

fn read<T: FromRedisValue>(operation: &'static str, answer: Value) -> Result<T, ScheduleError> {
    redis::from_redis_value(answer).map_err(|error| ScheduleError::unexpected(operation, error.to_string()))
}
