//! The longest-due member of many schedules in one read-only call: standby workers see from it whether anyone claims.

use std::sync::Arc;

use redis::Value;

use crate::{
    error::ScheduleError,
    link::Link,
    schedule::{array, bulk, int, text},
    scripts,
};

const OPERATION: &str = "read heads";

/// The member that has been due longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The member.
    pub member: Vec<u8>,
    /// Its score as Redis prints it; changes with each mutation of the balance.
    pub score: String,
}

/// The state of a schedule in which something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadState {
    /// The member that has been due longest.
    pub head: Head,
    /// The head of the previous call is still due, so no worker has claimed it since.
    pub unclaimed: bool,
}

/// Reads the heads of schedules, each given with its head at the previous call. Returns one state per schedule, in order;
/// `None` if nothing is due.
///
/// # Errors
/// As Redis answers.
pub async fn read_heads<'a>(
    link: &Link,
    schedules: impl ExactSizeIterator<Item = (&'a Arc<str>, Option<&'a Head>)> + Clone,
) -> Result<Vec<Option<HeadState>>, ScheduleError> {
    let count = schedules.len();
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut cmd = scripts::HEADS.call(count);
    for (key, _) in schedules.clone() {
        cmd.arg(&**key);
    }
    for (_, head) in schedules {
        cmd.arg(head.map_or(&[][..], |head| &head.member));
    }
    let answer = scripts::HEADS.run(link, &cmd).await?;
    array(OPERATION, &answer, count)?
        .iter()
        .map(|part| match part {
            Value::Nil => Ok(None),
            part => {
                let [member, score, unclaimed] = array(OPERATION, part, 3)? else { return Ok(None) };
                let (member, score) = (bulk(OPERATION, member)?.to_vec(), text(OPERATION, score)?.to_owned());
                let unclaimed = int(OPERATION, unclaimed)? == 1;
                Ok(Some(HeadState { head: Head { member, score }, unclaimed }))
            }
        })
        .collect()
}
