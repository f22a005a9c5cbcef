//! Backlog and smallest remaining TTL of many tenants' schedules in one read-only call.
//!
//! Counts are exact. TTLs are sampled, because a schedule may hold a million members: each call reads those of the members
//! with the oldest scores (a TTL begins when its member is scheduled, so these usually expire first) and of one page of the
//! others. The next call continues after that page.

use std::time::Duration;

use balance_sync_domain::KeySpace;
use redis::Value;

use crate::{
    access::Parts,
    error::ScheduleError,
    link::Link,
    reply::{array, bulk, int},
    scripts,
};

/// Schedules in one call: less than a millisecond of Redis when they are empty, so that other clients hardly wait.
pub const SCHEDULES_PER_CALL: usize = 250;
/// Most TTLs read in one call: about 2 ms of Redis.
pub const TTLS_PER_CALL: usize = 2_000;

const OPERATION: &str = "sample";

/// Which TTLs to read in one schedule.
#[derive(Debug, Clone, Copy)]
pub struct SampleRequest<'a> {
    /// The tenant's keys.
    pub space: &'a KeySpace,
    /// Number of members with the oldest scores.
    pub head: usize,
    /// Approximate number of other members, from `from` on.
    pub page: usize,
    /// Cursor at which the page begins; `None` = at the beginning.
    pub from: Option<&'a [u8]>,
    /// A member to read again if it is still scheduled.
    pub again: Option<&'a [u8]>,
}

impl<'a> SampleRequest<'a> {
    /// Reads the head and the first page: all TTLs of a schedule with about a hundred members.
    #[must_use]
    pub fn first_page(space: &'a KeySpace) -> Self {
        Self { space, head: 10, page: 100, from: None, again: None }
    }
}

/// Where the page of a sample ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PageEnd {
    /// No page was requested, or the budget of the call was spent on other schedules.
    #[default]
    NotRead,
    /// The next page begins at this cursor.
    Next(Vec<u8>),
    /// It was the last one.
    Last,
}

/// The state of one schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Members in it, due or not; `None` = the key is of another type.
    pub scheduled: Option<u64>,
    /// Members that are due.
    pub due: u64,
    /// Members that a worker has claimed, or that are postponed.
    pub leased: u64,
    /// For how long the oldest due member has been due.
    pub oldest_due_age: Duration,
    /// How far ahead the last member is scheduled.
    pub ahead: Duration,
    /// How far ahead a member is scheduled that has the score of a mutation, which is never ahead unless Redis's clock has jumped
    /// back: of a few that are looked at.
    pub unexplained: Duration,
    /// Entries in the tenant's quarantine without losses; `None` = the key is of another type.
    pub quarantined: Option<u64>,
    /// Lost balances; `None` = the key is of another type.
    pub lost: Option<u64>,
    /// The smallest remaining TTL that was read, and its member. `None` = no value that was read has a TTL.
    pub shortest: Option<(Duration, Vec<u8>)>,
    /// Members of the head, and the one read again, whose values do not exist.
    pub gone: u64,
    /// Members of the page whose values do not exist; those of the head may be among them.
    pub gone_in_page: u64,
    /// When the first lease or delay ends; `None` = there is none.
    pub lease_ends_in: Option<Duration>,
    /// Where the page ended.
    pub page: PageEnd,
}

/// Samples the schedules of any number of tenants: one [`Sample`] per key space, in order.
///
/// # Errors
/// As Redis answers.
pub async fn sample(link: &Link, spaces: &[&KeySpace]) -> Result<Vec<Sample>, ScheduleError> {
    let requests: Vec<_> = spaces.iter().map(|space| SampleRequest::first_page(space)).collect();
    sample_with(link, &requests).await
}

/// As [`sample`], with control over which TTLs are read. The sample of a key space without access is the default one.
///
/// # Errors
/// As Redis answers.
pub async fn sample_with(link: &Link, requests: &[SampleRequest<'_>]) -> Result<Vec<Sample>, ScheduleError> {
    let mut samples = Vec::with_capacity(requests.len());
    for page in requests.chunks(SCHEDULES_PER_CALL) {
        let mut parts = Parts::of(page);
        while let Some(part) = parts.next() {
            match sample_part(link, part).await {
                Ok(mut found) => samples.append(&mut found),
                Err(error) => {
                    if parts.is_denied(part, error)? {
                        samples.push(Sample::default());
                    }
                }
            }
        }
    }
    Ok(samples)
}

async fn sample_part(link: &Link, page: &[SampleRequest<'_>]) -> Result<Vec<Sample>, ScheduleError> {
    let mut cmd = scripts::SAMPLE.call(3 * page.len());
    for request in page {
        cmd.arg(request.space.schedule()).arg(request.space.quarantine()).arg(request.space.losses());
    }
    cmd.arg(TTLS_PER_CALL);
    for request in page {
        cmd.arg(request.space.prefix())
            .arg(request.head)
            .arg(request.page)
            .arg(request.from.unwrap_or(b"0"))
            .arg(request.again.unwrap_or_default());
    }
    let answer = scripts::SAMPLE.run(link, &cmd).await?;
    array(OPERATION, &answer, page.len())?.iter().map(read).collect()
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
    if let [due, oldest, cursor, ttl, member, ahead, unexplained, gone, further, lease] = rest {
        sample.due = int(OPERATION, due)?;
        sample.leased = sample.scheduled.unwrap_or_default().saturating_sub(sample.due);
        sample.oldest_due_age = Duration::from_millis(int(OPERATION, oldest)?);
        sample.ahead = Duration::from_millis(int(OPERATION, ahead)?);
        sample.unexplained = Duration::from_millis(int(OPERATION, unexplained)?);
        sample.gone = int(OPERATION, gone)?;
        sample.gone_in_page = int(OPERATION, further)?;
        sample.lease_ends_in = count(lease).filter(|left| *left > 0).map(Duration::from_millis);
        sample.page = match bulk(OPERATION, cursor)? {
            b"" => PageEnd::NotRead,
            b"0" => PageEnd::Last,
            next => PageEnd::Next(next.to_vec()),
        };
        if let Some(ttl) = count(ttl) {
            sample.shortest = Some((Duration::from_millis(ttl), bulk(OPERATION, member)?.to_vec()));
        }
    } else if !rest.is_empty() {
        return Err(ScheduleError::unexpected(
            OPERATION,
            format!("a part of the answer has {} parts", parts.len()),
        ));
    }
    Ok(sample)
}

/// A count; -1 means `None`.
fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Int(count) => u64::try_from(*count).ok(),
        _ => None,
    }
}
