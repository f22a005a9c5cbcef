//! The longest-due member of many schedules in one read-only call: standby workers see from it whether anyone claims.

use std::sync::Arc;

use redis::Value;

use crate::{
    access::Parts,
    error::ScheduleError,
    link::Link,
    reply::{array, bulk, int, text},
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
/// `None` if nothing is due, or if the schedule can't be accessed.
///
/// # Errors
/// As Redis answers.
pub async fn read_heads<'a>(
    link: &Link,
    schedules: impl Iterator<Item = (&'a Arc<str>, Option<&'a Head>)>,
) -> Result<Vec<Option<HeadState>>, ScheduleError> {
    let schedules: Vec<_> = schedules.collect();
    let mut heads = Vec::with_capacity(schedules.len());
    let mut parts = Parts::of(&schedules);
    while let Some(part) = parts.next() {
        match read_part(link, part).await {
            Ok(mut found) => heads.append(&mut found),
            Err(error) => {
                if parts.is_denied(part, error)? {
                    heads.push(None);
                }
            }
        }
    }
    Ok(heads)
}

async fn read_part(
    link: &Link,
    schedules: &[(&Arc<str>, Option<&Head>)],
) -> Result<Vec<Option<HeadState>>, ScheduleError> {
    let count = schedules.len();
    let mut cmd = scripts::HEADS.call(count);
    for (key, _) in schedules {
        cmd.arg(&***key);
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
