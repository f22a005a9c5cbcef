//! Read-only queries for operators: everything that Redis holds about one balance, and a search for members by a part of
//! their names.

use std::time::Duration;

use redis::Value;

use crate::{
    error::ScheduleError,
    quarantine::{QuarantineEntry, entry_of},
    reply::{array, bulk, seconds},
    schedule::Schedule,
    scripts,
};

/// Members examined in one call of a search.
const PAGE: usize = 1000;
/// Most calls per key of a search; members beyond are not found.
const MAX_PAGES: usize = 1000;

/// Everything that Redis holds about a member.
#[derive(Debug, Clone, Default)]
pub struct Inspected {
    /// Redis time, in seconds.
    pub now: f64,
    /// Its score in the schedule.
    pub score: Option<f64>,
    /// The balance's value.
    pub value: Option<Vec<u8>>,
    /// Why the value can't be read although its key exists.
    pub unreadable: Option<String>,
    /// Remaining TTL of the value; `None` = no TTL, or no value.
    pub ttl: Option<Duration>,
    /// The token in the claim lock.
    pub lock: Option<String>,
    /// Remaining TTL of the lock.
    pub lock_ttl: Option<Duration>,
    /// Its entry in quarantine or among the losses.
    pub quarantine: Option<QuarantineEntry>,
}

/// Whether a score is the end of a lease, and not the time of a mutation: leases lie half-way between two microseconds.
#[must_use]
pub fn is_lease(score: f64) -> bool {
    let micros = score * 1e6;
    (micros - micros.round()).abs() >= 0.25
}

impl Schedule {
    /// Reads everything that Redis holds about a member, at one moment.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn inspect(&self, member: &[u8]) -> Result<Inspected, ScheduleError> {
        const OPERATION: &str = "inspect balance";
        let mut cmd = scripts::INSPECT.call(5);
        cmd.arg(self.space().schedule())
            .arg(self.space().quarantine())
            .arg(member)
            .arg(self.space().lock(member))
            .arg(self.space().losses());
        let answer = scripts::INSPECT.run(self.link(), &cmd).await?;
        let parts = array(OPERATION, &answer, 9)?;
        let bytes = |at: usize| match &parts[at] {
            Value::BulkString(bytes) => Some(bytes.clone()),
            _ => None,
        };
        let ttl = |at: usize| match &parts[at] {
            Value::Int(millis) => u64::try_from(*millis).ok().map(Duration::from_millis),
            _ => None,
        };
        Ok(Inspected {
            now: seconds(OPERATION, &parts[0])?,
            score: bytes(1).map(|_| seconds(OPERATION, &parts[1])).transpose()?,
            value: bytes(2),
            unreadable: bytes(7).map(|why| String::from_utf8_lossy(&why).into_owned()),
            ttl: ttl(3),
            lock: bytes(4).map(|lock| String::from_utf8_lossy(&lock).into_owned()),
            lock_ttl: ttl(5),
            quarantine: entry_of(bytes(6).as_deref(), bytes(8).as_deref()),
        })
    }

    /// Up to `most` members of schedule, quarantine and losses that contain this text. Scans these keys page by page.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn find_members(&self, part: &str, most: usize) -> Result<Vec<Vec<u8>>, ScheduleError> {
        let pattern = format!("*{}*", escaped(part));
        let mut found = std::collections::BTreeSet::new();
        let space = self.space();
        let keys = [("ZSCAN", space.schedule()), ("HSCAN", &space.quarantine()), ("HSCAN", &space.losses())];
        for (command, key) in keys {
            let mut cursor = b"0".to_vec();
            for _ in 0..MAX_PAGES {
                let mut cmd = redis::cmd(command);
                cmd.arg(key).arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(PAGE);
                let answer = self.link().send("find members", &cmd).await?;
                let parts = array("find members", &answer, 2)?;
                if let Value::Array(pairs) = &parts[1] {
                    for pair in pairs.chunks_exact(2) {
                        found.insert(bulk("find members", &pair[0])?.to_vec());
                    }
                }
                cursor = bulk("find members", &parts[0])?.to_vec();
                if cursor == b"0" || found.len() >= most {
                    break;
                }
            }
        }
        Ok(found.into_iter().take(most).collect())
    }
}

/// Escapes text so that a glob pattern matches it literally.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
