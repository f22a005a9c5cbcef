//! What waits in schedules, and how close it is to expiry: read for many tenants in one call, without touching anything.
//!
//! Counts are exact. Lives are looked at in part: a schedule may hold a million members, so each look takes the members
//! with the oldest scores (a value's life begins when its member is scheduled, so those end first, as a rule) and one
//! page of the others, behind which the next look goes on.

use std::time::Duration;

use balance_sync_domain::KeySpace;
use redis::Value;

use crate::{
    error::ScheduleError,
    link::Link,
    schedule::{array, bulk, int},
    scripts,
};

/// Schedules in one call: less than a millisecond of Redis when they are empty, so that nobody waits long behind it.
pub const SCHEDULES_PER_CALL: usize = 250;
/// Values whose life is looked at in one call at most: some 2 ms of Redis.
pub const LIVES_PER_CALL: usize = 2_000;

const OPERATION: &str = "sample";

/// What to look at in one schedule.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// Whose keys.
    pub space: &'a KeySpace,
    /// How many of the members with the oldest scores.
    pub head: usize,
    /// About how many others, from `from` on.
    pub page: usize,
    /// Where the page begins; `None` = at the beginning.
    pub from: Option<&'a [u8]>,
    /// A member to look at again, if it is still scheduled.
    pub again: Option<&'a [u8]>,
}

impl<'a> Look<'a> {
    /// A look at the counts, the head, and the beginning of the rest: of a schedule of some hundred members at all.
    #[must_use]
    pub fn at(space: &'a KeySpace) -> Self {
        Self { space, head: 10, page: 100, from: None, again: None }
    }
}

/// Where the page of a look ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PageEnd {
    /// None was asked for, or the call had seen enough in other schedules.
    #[default]
    NotLooked,
    /// The next page begins here.
    Next(Vec<u8>),
    /// It was the last one.
    Last,
}

/// What was found in one schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Members in it, due or not; `None` = the key holds something else.
    pub scheduled: Option<u64>,
    /// Members whose time has come.
    pub due: u64,
    /// Members that a worker holds, or that are put off.
    pub leased: u64,
    /// How long the first of them has been due.
    pub oldest_due_age: Duration,
    /// Entries in the tenant's quarantine, losses not among them; `None` = the key holds something else.
    pub quarantined: Option<u64>,
    /// Lost balances; `None` = the key holds something else.
    pub lost: Option<u64>,
    /// The smallest remaining life among the values looked at, and the member whose it is. `None` = no member was looked
    /// at whose value has an end.
    pub shortest: Option<(Duration, Vec<u8>)>,
    /// Where the page ended.
    pub page: PageEnd,
}

/// Samples schedules of any number of tenants: one [`Sample`] per key space, in order.
///
/// # Errors
/// As Redis answers.
pub async fn sample(link: &Link, spaces: &[&KeySpace]) -> Result<Vec<Sample>, ScheduleError> {
    let looks: Vec<Look<'_>> = spaces.iter().map(|space| Look::at(space)).collect();
    look(link, &looks).await
}

/// As [`sample`], with a say in what is looked at.
///
/// # Errors
/// As Redis answers.
pub async fn look(link: &Link, looks: &[Look<'_>]) -> Result<Vec<Sample>, ScheduleError> {
    let mut samples = Vec::with_capacity(looks.len());
    for page in looks.chunks(SCHEDULES_PER_CALL) {
        let mut cmd = scripts::SAMPLE.call(3 * page.len());
        for look in page {
            cmd.arg(look.space.schedule()).arg(look.space.quarantine()).arg(look.space.losses());
        }
        cmd.arg(LIVES_PER_CALL);
        for look in page {
            cmd.arg(look.space.prefix())
                .arg(look.head)
                .arg(look.page)
                .arg(look.from.unwrap_or(b"0"))
                .arg(look.again.unwrap_or_default());
        }
        let answer = scripts::SAMPLE.run(link, &cmd).await?;
        for part in array(OPERATION, &answer, page.len())? {
            samples.push(read(part)?);
        }
    }
    Ok(samples)
}

fn read(part: &Value) -> Result<Sample, ScheduleError> {
    let Value::Array(parts) = part else {
        return Err(ScheduleError::unexpected(OPERATION, "a part of the answer is no array"));
    };
    let mut sample = Sample::default();
    let (counts, rest) = parts.split_at(parts.len().min(3));
    let [scheduled, quarantined, lost] = counts else {
        return Err(ScheduleError::unexpected(OPERATION, "a part of the answer has no counts"));
    };
    sample.scheduled = count(scheduled);
    sample.quarantined = count(quarantined);
    sample.lost = count(lost);
    if let [due, oldest, cursor, life, member] = rest {
        sample.due = int(OPERATION, due)?;
        sample.leased = sample.scheduled.unwrap_or_default().saturating_sub(sample.due);
        sample.oldest_due_age = Duration::from_millis(int(OPERATION, oldest)?);
        sample.page = match bulk(OPERATION, cursor)? {
            b"" => PageEnd::NotLooked,
            b"0" => PageEnd::Last,
            next => PageEnd::Next(next.to_vec()),
        };
        if let Some(life) = count(life) {
            sample.shortest = Some((Duration::from_millis(life), bulk(OPERATION, member)?.to_vec()));
        }
    } else if !rest.is_empty() {
        return Err(ScheduleError::unexpected(
            OPERATION,
            format!("a part of the answer has {} parts", parts.len()),
        ));
    }
    Ok(sample)
}

/// A count, where -1 stands for none.
fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Int(count) => u64::try_from(*count).ok(),
        _ => None,
    }
}
