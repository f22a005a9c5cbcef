//! Live workers: each registers with a lease and gets the others in the same call.
//!
//! Leases expire by Redis's clock. They only divide the work; claims don't depend on them. There are two lists of the same
//! form, for different purposes (`docs/decisions/0025-two-lists-of-workers.md`): the members among which tenants are
//! shared out ([`Workers`]), and those that publish what they know ([`crate::snapshots::Snapshots`]).

use std::{collections::BTreeSet, time::Duration};

use crate::{error::ScheduleError, link::Link, scripts};

/// Prefix of the key, with the hash tag of all other keys. Increase the number with every change of the partition: workers
/// that compute different results must not share a membership.
const KEY_PREFIX: &str = "{transactions}:balance-sync:workers-1:";

/// The result of registering.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registered {
    /// Whether this worker's lease was still valid. If not, an outage of Redis may have let other leases expire too, so
    /// `live` may be incomplete.
    pub held: bool,
    /// The workers with a valid lease.
    pub live: BTreeSet<String>,
}

/// The workers of a list, by whether their time on it has passed by Redis's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Those that count as live.
    pub live: BTreeSet<String>,
    /// Those that don't any more.
    pub silent: BTreeSet<String>,
}

impl Listed {
    /// Reads a list without changing it: readers may have no right to write.
    pub(crate) async fn read(link: &Link, key: &str) -> Result<Self, ScheduleError> {
        const OPERATION: &str = "list workers";
        let unexpected = |error: redis::ParsingError| ScheduleError::unexpected(OPERATION, error.to_string());
        let answer = link.send(OPERATION, &redis::cmd("TIME")).await?;
        let (seconds, micros): (f64, f64) = redis::from_redis_value(answer).map_err(unexpected)?;
        let now = seconds + micros / 1e6;
        let mut cmd = redis::cmd("ZRANGE");
        cmd.arg(key).arg(0).arg(-1).arg("WITHSCORES");
        let answer = link.send(OPERATION, &cmd).await?;
        let all: Vec<(String, f64)> = redis::from_redis_value(answer).map_err(unexpected)?;
        let (live, silent): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, until)| *until > now);
        let names = |workers: Vec<(String, f64)>| workers.into_iter().map(|(name, _)| name).collect();
        Ok(Self { live: names(live), silent: names(silent) })
    }
}

/// The registered workers of one group.
#[derive(Debug, Clone)]
pub struct Workers {
    link: Link,
    key: String,
}

impl Workers {
    /// The workers of one group; groups don't see each other.
    #[must_use]
    pub fn new(link: Link, group: &str) -> Self {
        Self { link, key: format!("{KEY_PREFIX}{group}") }
    }

    /// Registers a worker or renews its lease. Returns the live workers, this one included.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn register(&self, name: &str, lease: Duration) -> Result<Registered, ScheduleError> {
        // Zero would deregister.
        let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).max(1);
        self.call(name, lease).await
    }

    /// Removes a worker and returns the remaining ones.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn deregister(&self, name: &str) -> Result<Registered, ScheduleError> {
        self.call(name, 0).await
    }

    async fn call(&self, name: &str, lease_ms: u64) -> Result<Registered, ScheduleError> {
        let mut cmd = scripts::REGISTER.call(1);
        cmd.arg(&self.key).arg(name).arg(lease_ms);
        let answer = scripts::REGISTER.run(&self.link, &cmd).await?;
        redis::from_redis_value::<(bool, BTreeSet<String>)>(answer)
            .map(|(held, live)| Registered { held, live })
            .map_err(|error| ScheduleError::unexpected("register worker", error.to_string()))
    }
}
