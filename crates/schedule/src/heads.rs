//! The heads of schedules: what has waited longest in each, for workers that stand by and only want to know whether
//! anybody claims it. Many schedules in one call, and nothing is touched.

use std::sync::Arc;

use redis::Value;

use crate::{
    error::ScheduleError,
    link::Link,
    schedule::{array, bulk, int, text},
    scripts,
};

const OPERATION: &str = "look at heads";

/// The member that has been due longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The member.
    pub member: Vec<u8>,
    /// Its score, as Redis prints it: each mutation of the balance gives it another.
    pub score: String,
}

/// What a look at a schedule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What is due, and has been for longest.
    pub head: Head,
    /// The member that was at the head at the last look is due as well: nobody has claimed it since.
    pub waits: bool,
}

/// Looks at some schedules, each with the member that was at its head at the last look; gives one answer for each, `None`
/// where nothing is due.
///
/// # Errors
/// As Redis answers.
pub async fn look_at_heads<'a>(
    link: &Link,
    schedules: impl ExactSizeIterator<Item = (&'a Arc<str>, Option<&'a Head>)> + Clone,
) -> Result<Vec<Option<Seen>>, ScheduleError> {
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
                let [member, score, waits] = array(OPERATION, part, 3)? else { return Ok(None) };
                let (member, score) = (bulk(OPERATION, member)?.to_vec(), text(OPERATION, score)?.to_owned());
                Ok(Some(Seen { head: Head { member, score }, waits: int(OPERATION, waits)? == 1 }))
            }
        })
        .collect()
}
