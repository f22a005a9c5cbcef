//! Members whose value is gone: recording what is lost, dismissing what is not, putting off what can't be told yet.
//!
//! A loss has an entry of its own beside the quarantine, because no later write mends it
//! (`docs/decisions/0018-deleted-and-lost.md`). To people both are one list: see [`crate::quarantine`].

use std::{collections::HashMap, time::Duration};

use redis::Value;
use serde::{Deserialize, Serialize};

use crate::{
    claimed::Claimed,
    error::ScheduleError,
    quarantine::QuarantineEntry,
    schedule::{QuarantineReport, ReleaseReport, Schedule, SettleReport, bulk, ints, millis},
    scripts,
};

/// Reason of members whose last mutations are lost.
pub const REASON_LOST: &str = "value_lost";

/// What is known of a lost mutation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Loss {
    /// The ledger's trail has it, and the row lacks it. Otherwise it could not be found out.
    pub confirmed: bool,
    /// In words.
    pub detail: String,
    /// The version that is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// The version of the row when it was looked at; −1 if it had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_version: Option<i64>,
    /// `available` after the lost mutation, as the trail has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<String>,
    /// `on_hold` after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_hold: Option<String>,
    /// `overdraft_used` after it; absent where the trail doesn't know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_used: Option<String>,
    /// The amounts may differ from the true state.
    pub in_doubt: bool,
    /// Redis time at which a later mutation of the balance was written, in seconds: it was counted from a row that lacked
    /// the lost one, so the balance may have forked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub later_at: Option<String>,
}

/// An entry as the script writes it.
#[derive(Debug, Deserialize)]
struct Recorded {
    loss: String,
    first_at: String,
    last_at: String,
    #[serde(default)]
    count: u64,
    #[serde(default)]
    later_at: Option<String>,
}

impl Schedule {
    /// Takes members out of the schedule whose mutations are lost, each only under its lease, and records what is known.
    ///
    /// # Errors
    /// As Redis answers. The members then stay scheduled and are looked at again.
    pub async fn lose(&self, lost: &[(&Claimed, Loss)]) -> Result<QuarantineReport, ScheduleError> {
        let mut report = QuarantineReport::default();
        for page in lost.chunks(500) {
            let mut cmd = scripts::LOSE.call(2);
            cmd.arg(self.space().schedule())
                .arg(self.space().losses())
                .arg(self.lock_prefix())
                .arg(&self.options().lock_token)
                .arg(self.options().quarantine_limit)
                .arg(millis(self.options().quarantine_put_off));
            for (claimed, loss) in page {
                let known = serde_json::to_string(loss)
                    .map_err(|error| ScheduleError::unexpected("record losses", error.to_string()))?;
                cmd.arg(&*claimed.lease).arg(&claimed.member).arg(u8::from(loss.confirmed)).arg(known);
            }
            let counts = ints("record losses", &scripts::LOSE.run(self.link(), &cmd).await?, 3)?;
            report.quarantined += counts[0];
            report.kept += counts[1];
            report.full += counts[2];
        }
        Ok(report)
    }

    /// Removes members of which nothing is to be written, each only under its lease: their rows are deleted, or as new as all
    /// that is known.
    ///
    /// # Errors
    /// As Redis answers. The leases then lapse, and the members are looked at again.
    pub async fn dismiss(&self, obsolete: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        self.remove("nothing", obsolete).await
    }

    /// When a member was claimed, in seconds of Redis time: its lease begins then.
    #[must_use]
    pub fn claimed_at(&self, claimed: &Claimed) -> Option<f64> {
        let lease: f64 = claimed.lease.parse().ok()?;
        Some(lease - self.options().claim_ttl.as_secs_f64())
    }

    /// Puts members off that can't be worked yet, each only under its lease.
    ///
    /// # Errors
    /// As Redis answers. The leases then lapse by themselves.
    pub async fn put_off(
        &self,
        waiting: &[&Claimed],
        delay: Duration,
    ) -> Result<ReleaseReport, ScheduleError> {
        // There is no value to keep alive.
        let members: Vec<_> = waiting.iter().map(|claimed| (*claimed, false)).collect();
        let report = self.postpone_for(&members, delay).await?;
        Ok(ReleaseReport { released: report.postponed, kept: report.kept })
    }

    /// Number of lost balances.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn losses_len(&self) -> Result<u64, ScheduleError> {
        let mut cmd = redis::cmd("HLEN");
        cmd.arg(self.space().losses());
        let value = self.link().ask("count losses", &cmd).await?;
        Ok(ints("count losses", &value, 1)?[0])
    }

    /// One loss.
    pub(crate) async fn loss_get(&self, member: &[u8]) -> Result<Option<QuarantineEntry>, ScheduleError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.space().losses()).arg(member);
        match self.link().ask("show loss", &cmd).await? {
            Value::Nil => Ok(None),
            value => Ok(Some(read_loss(bulk("show loss", &value)?))),
        }
    }

    /// All losses. The hash is bounded, and an entry has some hundred bytes.
    pub(crate) async fn losses(&self) -> Result<HashMap<Vec<u8>, QuarantineEntry>, ScheduleError> {
        let mut found = HashMap::new();
        self.scan_hash("list losses", self.space().losses(), |member, raw| {
            found.insert(member, read_loss(raw));
        })
        .await?;
        Ok(found)
    }
}

/// A loss as an entry of the quarantine.
pub(crate) fn read_loss(raw: &[u8]) -> QuarantineEntry {
    let read = || {
        let recorded: Recorded = serde_json::from_slice(raw)?;
        let mut loss: Loss = serde_json::from_str(&recorded.loss)?;
        loss.later_at = recorded.later_at;
        Ok::<_, serde_json::Error>(QuarantineEntry {
            reason: REASON_LOST.to_owned(),
            detail: describe(&loss),
            value: None,
            truncated: false,
            first_at: recorded.first_at,
            last_at: recorded.last_at,
            count: recorded.count,
            loss: Some(loss),
        })
    };
    read().unwrap_or_else(|error| crate::quarantine::unreadable(raw, &error))
}

/// In words, with what has happened since.
fn describe(loss: &Loss) -> String {
    match &loss.later_at {
        Some(_) => format!(
            "{}; a later mutation of this balance has been written since, so the balance may have forked",
            loss.detail
        ),
        None => loss.detail.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_is_not_ours_is_shown_as_it_stands() {
        for raw in ["", "7", "{}", "{\"loss\":\"x\",\"first_at\":\"1\",\"last_at\":\"1\"}"] {
            assert_eq!(read_loss(raw.as_bytes()).reason, "unreadable_entry", "{raw}");
        }
        let raw = br#"{"loss":"{\"confirmed\":true,\"version\":9007199254740993}","first_at":"1","last_at":"2","count":3}"#;
        let entry = read_loss(raw);
        assert_eq!((entry.reason.as_str(), entry.count), (REASON_LOST, 3));
        assert_eq!(entry.loss.and_then(|loss| loss.version), Some(9_007_199_254_740_993));
    }
}
