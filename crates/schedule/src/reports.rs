//! What the monthly report is made of: a hash per month, written by the one worker that has the duty.
//!
//! The fields are opaque here. A month's record expires by itself, so that the number of keys is bounded also when no worker runs.

use std::{collections::HashMap, time::Duration};

use crate::{error::ScheduleError, link::Link, scripts};

/// Prefix of the keys, with the hash tag of all other keys. Increase the number when the format of the fields changes.
const KEY_PREFIX: &str = "{transactions}:balance-sync:report-1:";
/// Most fields in one call: some milliseconds of Redis.
pub const WRITE_PAGE: usize = 500;

/// Who writes the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Another worker.
    Other,
    /// This one, from this call on. Nothing was written.
    Taken,
    /// This one, as before. What was given is written.
    Held,
}

/// The report's records of one group of workers.
#[derive(Debug, Clone)]
pub struct Reports {
    link: Link,
    group: String,
}

impl Reports {
    /// The records of one group; groups don't see each other.
    #[must_use]
    pub fn new(link: Link, group: &str) -> Self {
        Self { link, group: group.to_owned() }
    }

    fn month(&self, month: &str) -> String {
        format!("{KEY_PREFIX}{}:{month}", self.group)
    }

    /// The keys with which a user's rights are tried.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        vec![format!("{KEY_PREFIX}{}", self.group), self.month("rights")]
    }

    /// Takes the duty or renews its lease, and writes these fields (at most [`WRITE_PAGE`]) if this incarnation had the duty before.
    /// Returns Redis's time too, in seconds since 1970.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn record(
        &self,
        incarnation: &str,
        lease: Duration,
        month: &str,
        expires_at: Duration,
        fields: &[(String, String)],
    ) -> Result<(Duty, f64), ScheduleError> {
        let mut cmd = scripts::RECORD_REPORT.call(2);
        cmd.arg(format!("{KEY_PREFIX}{}", self.group)).arg(self.month(month)).arg(incarnation);
        cmd.arg(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        cmd.arg(u64::try_from(expires_at.as_millis()).unwrap_or(u64::MAX));
        for (field, value) in fields {
            cmd.arg(field).arg(value);
        }
        let answer = scripts::RECORD_REPORT.run(&self.link, &cmd).await?;
        let (duty, now): (u8, f64) = redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("record report", error.to_string()))?;
        let duty = match duty {
            0 => Duty::Other,
            1 => Duty::Taken,
            _ => Duty::Held,
        };
        Ok((duty, now))
    }

    /// Gives the duty up, if this incarnation has it.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn leave(&self, incarnation: &str) -> Result<(), ScheduleError> {
        self.record(incarnation, Duration::ZERO, "none", Duration::ZERO, &[]).await.map(drop)
    }

    /// All fields of a month; empty if there is no record of it.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn read(&self, month: &str) -> Result<HashMap<String, String>, ScheduleError> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(self.month(month));
        let answer = self.link.send("read report", &cmd).await?;
        redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("read report", error.to_string()))
    }
}
