//! Names of workers. Each is held by one process, with a lease by Redis's clock.

use std::time::Duration;

use crate::{error::ScheduleError, link::Link, scripts};

/// Prefix of the keys, with the hash tag of all other keys.
pub(crate) const KEY_PREFIX: &str = "{transactions}:balance-sync:name-1:";

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameClaim {
    /// Which of the names is held now; `None` if others hold all of them.
    pub held: Option<usize>,
    /// What is stored for the first name. Changes with each renewal of its lease.
    pub holder: String,
}

/// The names of one group's workers.
#[derive(Debug, Clone)]
pub struct Names {
    link: Link,
    group: String,
}

impl Names {
    /// The names of one group; groups may have the same names.
    #[must_use]
    pub fn new(link: Link, group: &str) -> Self {
        Self { link, group: group.to_owned() }
    }

    /// Claims the first of these names that is free, or renews the lease of the one held by this incarnation.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn claim(
        &self,
        names: &[String],
        incarnation: &str,
        lease: Duration,
    ) -> Result<NameClaim, ScheduleError> {
        // Zero would give it up.
        self.call(names, incarnation, u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).max(1)).await
    }

    /// Gives a name up, if this incarnation holds it.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn release(&self, name: &str, incarnation: &str) -> Result<(), ScheduleError> {
        self.call(&[name.to_owned()], incarnation, 0).await.map(drop)
    }

    async fn call(
        &self,
        names: &[String],
        incarnation: &str,
        lease_ms: u64,
    ) -> Result<NameClaim, ScheduleError> {
        let mut cmd = scripts::CLAIM_NAME.call(names.len());
        for name in names {
            cmd.arg(format!("{KEY_PREFIX}{}:{name}", self.group));
        }
        cmd.arg(incarnation).arg(lease_ms);
        let answer = scripts::CLAIM_NAME.run(&self.link, &cmd).await?;
        let (held, holder): (usize, String) = redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("claim name", error.to_string()))?;
        Ok(NameClaim { held: held.checked_sub(1), holder })
    }
}
