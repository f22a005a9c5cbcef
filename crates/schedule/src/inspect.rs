//! One balance, as Redis knows it, and finding a balance's members by what people know of it. For people; nothing is
//! changed.

use std::time::Duration;

use redis::Value;

use crate::{
    error::ScheduleError,
    quarantine::{QuarantineEntry, entry_of},
    schedule::{Schedule, array, bulk, seconds},
    scripts,
};

/// Members looked at in one call of a search.
const PAGE: usize = 1000;
/// Calls of a search at most: what isn't found among so many is not found.
const PAGES: usize = 1000;

/// Everything that Redis knows about a member.
#[derive(Debug, Clone, Default)]
pub struct Inspected {
    /// Redis time, in seconds.
    pub now: f64,
    /// Its score in the schedule.
    pub score: Option<f64>,
    /// The balance's value.
    pub value: Option<Vec<u8>>,
    /// Why it can't be read although its key is there.
    pub unreadable: Option<String>,
    /// Remaining life of the value; `None` = without end, or there is none.
    pub life: Option<Duration>,
    /// What stands in the claim lock.
    pub lock: Option<String>,
    /// Remaining life of the lock.
    pub lock_life: Option<Duration>,
    /// Its entry in quarantine, or that of a loss.
    pub quarantine: Option<QuarantineEntry>,
}

/// Whether a score is the end of a lease, and not the time of a mutation: leases lie half-way between two microseconds.
#[must_use]
pub fn is_lease(score: f64) -> bool {
    let micros = score * 1e6;
    (micros - micros.round()).abs() >= 0.25
}

impl Schedule {
    /// Everything that Redis knows about a member.
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
        let life = |at: usize| match &parts[at] {
            Value::Int(millis) => u64::try_from(*millis).ok().map(Duration::from_millis),
            _ => None,
        };
        Ok(Inspected {
            now: seconds(OPERATION, &parts[0])?,
            score: bytes(1).map(|_| seconds(OPERATION, &parts[1])).transpose()?,
            value: bytes(2),
            unreadable: bytes(7).map(|why| String::from_utf8_lossy(&why).into_owned()),
            life: life(3),
            lock: bytes(4).map(|lock| String::from_utf8_lossy(&lock).into_owned()),
            lock_life: life(5),
            quarantine: entry_of(bytes(6).as_deref(), bytes(8).as_deref()),
        })
    }

    /// The members of schedule and quarantine with this text in them, some at most. A search over everything, page by page.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn find_members(&self, part: &str, most: usize) -> Result<Vec<Vec<u8>>, ScheduleError> {
        let pattern = format!("*{}*", escaped(part));
        let mut found = std::collections::BTreeSet::new();
        let space = self.space();
        let keys = [("ZSCAN", space.schedule()), ("HSCAN", space.quarantine()), ("HSCAN", space.losses())];
        for (command, key) in keys {
            let mut cursor = b"0".to_vec();
            for _ in 0..PAGES {
                let mut cmd = redis::cmd(command);
                cmd.arg(key).arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(PAGE);
                let answer = self.link().ask("find members", &cmd).await?;
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

/// Text that a glob pattern takes literally.
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
