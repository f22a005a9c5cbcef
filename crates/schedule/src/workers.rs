//! Which workers are alive: each registers with a lease of its own and learns of the others in the same call.
//!
//! Redis's clock decides what has lapsed. Nothing of this guards balances: it is there to share work out.

use std::{collections::BTreeSet, time::Duration};

use crate::{error::ScheduleError, link::Link, scripts};

/// What the key begins with; the hash tag is that of all other keys. The number grows with every change in how tenants
/// are shared out: workers that would come to different results must not count each other.
const KEY_PREFIX: &str = "{transactions}:balance-sync:workers-1:";

/// What a worker learns when it registers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registered {
    /// Whether its lease still held. Otherwise the leases of others may have lapsed for the same reason, an outage of
    /// Redis, so that not all who are alive are among `live` yet.
    pub held: bool,
    /// The names of all whose lease holds.
    pub live: BTreeSet<String>,
}

/// The registered workers of one group.
#[derive(Debug, Clone)]
pub struct Workers {
    link: Link,
    key: String,
}

impl Workers {
    /// The workers of this group; those of another are never seen.
    #[must_use]
    pub fn new(link: Link, group: &str) -> Self {
        Self { link, key: format!("{KEY_PREFIX}{group}") }
    }

    /// Registers a worker for the time of the lease, or renews that, and tells who is alive, itself included.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn register(&self, name: &str, lease: Duration) -> Result<Registered, ScheduleError> {
        // Zero would mean that it leaves.
        let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).max(1);
        self.call(name, lease).await
    }

    /// Takes a worker off at once, and tells who stays.
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
