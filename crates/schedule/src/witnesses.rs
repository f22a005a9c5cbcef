//! What an audit reads of Redis beside values: scores, lists of what is settled by hand, the members of a schedule page by page, and
//! the ledger's recover records. Nothing is written, and nothing that grows with a key's size is sent in one command.

use redis::Value;

use crate::{
    error::ScheduleError,
    link::Link,
    reply::{array, bulk, seconds, seconds_of_time},
    schedule::Schedule,
    schedules::Schedules,
};

/// Members that Redis looks at in one call.
const PAGE: usize = 1000;
/// Recover records that Redis returns in one call: each has the balances of a transaction.
const RECORDS: usize = 100;

/// Redis's clock, in seconds since 1970.
///
/// # Errors
/// As Redis answers.
pub async fn server_time(link: &Link) -> Result<f64, ScheduleError> {
    const OPERATION: &str = "read the time";
    seconds_of_time(OPERATION, &link.send(OPERATION, &redis::cmd("TIME")).await?)
}

impl Schedule {
    /// The scores of these members, in order; those of the legacy schedule where they stand there alone (`None` inside: they are
    /// due whatever the score says).
    async fn scores(&self, members: &[Vec<u8>]) -> Result<Vec<Option<Score>>, ScheduleError> {
        let current = self.scores_in(self.space().schedule(), members).await?;
        let legacy = self.scores_in(self.space().legacy_schedule(), members).await?;
        let both = current.into_iter().zip(legacy);
        Ok(both.map(|(current, legacy)| current.map(Score::At).or(legacy.map(|_| Score::Legacy))).collect())
    }

    async fn scores_in(&self, key: &str, members: &[Vec<u8>]) -> Result<Vec<Option<f64>>, ScheduleError> {
        const OPERATION: &str = "look up scores";
        let mut cmd = redis::cmd("ZMSCORE");
        cmd.arg(key);
        for member in members {
            cmd.arg(member);
        }
        let value = self.link().send(OPERATION, &cmd).await?;
        let score = |score: &Value| match score {
            Value::Nil => Ok(None),
            Value::Double(score) => Ok(Some(*score)),
            score => seconds(OPERATION, score).map(Some),
        };
        array(OPERATION, &value, members.len())?.iter().map(score).collect()
    }

    async fn is_listed(&self, member: &[u8]) -> Result<bool, ScheduleError> {
        for key in [self.space().quarantine(), self.space().losses()] {
            let mut cmd = redis::cmd("HEXISTS");
            cmd.arg(key).arg(member);
            if self.link().send("look up entries", &cmd).await? == Value::Int(1) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// When a member is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Score {
    /// At this time, in seconds of Redis.
    At(f64),
    /// It waits in a legacy schedule to be moved.
    Legacy,
}

impl Schedules {
    /// The scores of these members, in order, each in its own form.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn scores(&self, members: &[Vec<u8>]) -> Result<Vec<Option<Score>>, ScheduleError> {
        let mut found = vec![None; members.len()];
        for schedule in self.iter() {
            let of_schedule = |member: &&Vec<u8>| std::ptr::eq(self.of_member(member), schedule);
            let own: Vec<usize> = (0..members.len()).filter(|n| of_schedule(&&members[*n])).collect();
            for page in own.chunks(PAGE) {
                let asked: Vec<Vec<u8>> = page.iter().map(|n| members[*n].clone()).collect();
                for (n, score) in page.iter().zip(schedule.scores(&asked).await?) {
                    found[*n] = score;
                }
            }
        }
        Ok(found)
    }

    /// Whether a member is in quarantine, or among the losses.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn is_listed(&self, member: &[u8]) -> Result<bool, ScheduleError> {
        self.of_member(member).is_listed(member).await
    }
}

/// Walks over the members of one schedule.
#[derive(Debug)]
pub struct Members {
    schedule: Schedule,
    cursor: Option<Vec<u8>>,
}

impl Members {
    /// Those of this schedule.
    #[must_use]
    pub fn of(schedule: &Schedule) -> Self {
        Self { schedule: schedule.clone(), cursor: Some(b"0".to_vec()) }
    }

    /// The next page, which may be empty; `None` after the last one. A member that is scheduled all the while is in one page at
    /// least.
    ///
    /// # Errors
    /// As Redis answers; the same page comes again.
    pub async fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>, ScheduleError> {
        const OPERATION: &str = "read members";
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let (next, parts) =
            scan(self.schedule.link(), OPERATION, "ZSCAN", self.schedule.space().schedule(), cursor, PAGE)
                .await?;
        self.cursor = next;
        let members = parts.chunks_exact(2).map(|pair| bulk(OPERATION, &pair[0]).map(<[u8]>::to_vec));
        members.collect::<Result<_, _>>().map(Some)
    }
}

/// Walks over the ledger's recover records of one key space.
#[derive(Debug)]
pub struct RecoverRecords {
    schedule: Schedule,
    cursor: Option<Vec<u8>>,
}

impl RecoverRecords {
    /// Those of this schedule's key space.
    #[must_use]
    pub fn of(schedule: &Schedule) -> Self {
        Self { schedule: schedule.clone(), cursor: Some(b"0".to_vec()) }
    }

    /// The values of the next page, which may be empty; `None` after the last one. A record may come twice.
    ///
    /// # Errors
    /// As Redis answers; the worker's user may lack the right to this key.
    pub async fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>, ScheduleError> {
        const OPERATION: &str = "read recover records";
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let key = self.schedule.space().recovery();
        let (next, parts) = scan(self.schedule.link(), OPERATION, "HSCAN", &key, cursor, RECORDS).await?;
        self.cursor = next;
        let values = parts.chunks_exact(2).map(|pair| bulk(OPERATION, &pair[1]).map(<[u8]>::to_vec));
        values.collect::<Result<_, _>>().map(Some)
    }
}

async fn scan(
    link: &Link,
    operation: &'static str,
    command: &str,
    key: &str,
    cursor: &[u8],
    page: usize,
) -> Result<(Option<Vec<u8>>, Vec<Value>), ScheduleError> {
    let mut cmd = redis::cmd(command);
    cmd.arg(key).arg(cursor).arg("COUNT").arg(page);
    // Without finding out which rights are missing: that tries others.
    let answer = link.query(operation, &cmd).await.map_err(|(error, _)| error)?;
    let parts = array(operation, &answer, 2)?;
    let next = bulk(operation, &parts[0])?;
    let next = (next != b"0").then(|| next.to_vec());
    match &parts[1] {
        Value::Array(items) => Ok((next, items.clone())),
        _ => Err(ScheduleError::unexpected(operation, "an array was expected")),
    }
}
