//! Whether schedules have due members: one call for many idle tenants.

use std::{sync::Arc, time::Duration};

use redis::Value;

use crate::{access::Parts, error::ScheduleError, link::Link, reply::int, scripts};

/// Positions in `keys` of the schedules that have a due member, and of those without access: their claim will report it. One
/// call for many idle tenants.
///
/// # Errors
/// As Redis answers.
pub async fn probe(link: &Link, keys: &[Arc<str>]) -> Result<Vec<usize>, ScheduleError> {
    probe_overdue(link, keys, Duration::ZERO).await
}

/// As [`probe`], but only schedules with a member that has been due for longer than `by`: no worker seems to sync them.
///
/// # Errors
/// As Redis answers.
pub async fn probe_overdue(
    link: &Link,
    keys: &[Arc<str>],
    by: Duration,
) -> Result<Vec<usize>, ScheduleError> {
    let (mut due, mut first) = (Vec::new(), 0);
    let mut parts = Parts::of(keys);
    while let Some(part) = parts.next() {
        match probe_part(link, part, by).await {
            Ok(found) => due.extend(found.into_iter().map(|at| first + at)),
            Err(error) => {
                if !parts.is_denied(part, error)? {
                    continue;
                }
                due.push(first);
            }
        }
        first += part.len();
    }
    Ok(due)
}

async fn probe_part(link: &Link, keys: &[Arc<str>], by: Duration) -> Result<Vec<usize>, ScheduleError> {
    const OPERATION: &str = "probe";
    let mut cmd = scripts::PROBE.call(keys.len());
    for key in keys {
        cmd.arg(&**key);
    }
    cmd.arg(by.as_secs_f64());
    let Value::Array(parts) = scripts::PROBE.run(link, &cmd).await? else {
        return Err(ScheduleError::unexpected(OPERATION, "the script returned no array"));
    };
    parts.iter().map(|part| int(OPERATION, part).map(|at| (at as usize).saturating_sub(1))).collect()
}
