//! What operators have decided: which tenants are halted. Kept beside the schedules, for all workers, for as long as it
//! takes.

use std::collections::HashMap;

use crate::{error::ScheduleError, link::Link};

/// Field = the schedule key of a halted tenant; the value says who halted it.
const PAUSED: &str = "{transactions}:balance-sync:paused";

/// Operators' decisions.
#[derive(Debug, Clone)]
pub struct Controls {
    link: Link,
}

impl Controls {
    /// On this Redis.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    /// The halted tenants: what stands about each, by its schedule key.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn paused(&self) -> Result<HashMap<String, String>, ScheduleError> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(PAUSED);
        let answer = self.link.ask("read paused tenants", &cmd).await?;
        redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("read paused tenants", error.to_string()))
    }
}
