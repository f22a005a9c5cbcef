//! Members whose value has vanished: recording losses, removing members that need no write, postponing undecided ones.
//!
//! Losses have a hash of their own beside the quarantine, because no later write repairs them
//! (`docs/decisions/0018-deleted-and-lost.md`). Operators see both as one list: see [`crate::quarantine`].

use std::{collections::HashMap, time::Duration};

use balance_sync_domain::QuarantineReason;
use redis::Value;
use serde::{Deserialize, Serialize};

use crate::{
    claimed::Claimed,
    controls::EVENTS,
    error::ScheduleError,
    quarantine::QuarantineEntry,
    reply::{bulk, ints, millis},
    schedule::{PostponeReport, QuarantineReport, Schedule, SettleReport},
    scripts,
};

/// What is known about a lost mutation, or about a fork: then the amounts are those in Redis.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Loss {
    /// Whether the ledger's operation trail has the mutation and the row lacks it. Otherwise it is unknown what was lost.
    pub confirmed: bool,
    /// Description for operators.
    pub detail: String,
    /// The lost version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// The version of the row when it was read; −1 if it had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_version: Option<i64>,
    /// `available` after the lost mutation, according to the trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<String>,
    /// `on_hold` after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_hold: Option<String>,
    /// `overdraft_used` after it; absent if the trail doesn't have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_used: Option<String>,
    /// The amounts may differ from the true state.
    pub in_doubt: bool,
    /// Nothing is gone, but the row is ahead of Redis, or has other amounts at the same version.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forked: bool,
    /// `available` of the row, where it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_available: Option<String>,
    /// `on_hold` of the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_on_hold: Option<String>,
    /// `overdraft_used` of the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_overdraft_used: Option<String>,
    /// Redis time in seconds at which a later mutation of the balance was written. It was computed from a row without the lost
    /// mutation, so the balance may have forked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub later_at: Option<String>,
}

/// What became of balances that were to be listed as forked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForkReport {
    /// Listed now.
    pub listed: u64,
    /// They had an entry before, which stays.
    pub known: u64,
    /// There was no room for them.
    pub full: u64,
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
    /// Removes members with lost mutations from the schedule, each only under its lease, and records what is known.
    ///
    /// # Errors
    /// As Redis answers. The members then stay scheduled and are examined again.
    pub async fn record_losses(&self, lost: &[(&Claimed, Loss)]) -> Result<QuarantineReport, ScheduleError> {
        let mut report = QuarantineReport::default();
        for page in lost.chunks(500) {
            let mut cmd = scripts::RECORD_LOSSES.call(3);
            cmd.arg(self.space().schedule())
                .arg(self.space().losses())
                .arg(EVENTS)
                .arg(self.lock_prefix())
                .arg(&self.options().lock_token)
                .arg(self.options().quarantine_limit)
                .arg(millis(self.options().quarantine_put_off));
            for (claimed, loss) in page {
                let known = serde_json::to_string(loss)
                    .map_err(|error| ScheduleError::unexpected("record losses", error.to_string()))?;
                cmd.arg(&*claimed.lease).arg(&claimed.member).arg(u8::from(loss.confirmed)).arg(known);
            }
            let counts = ints("record losses", &scripts::RECORD_LOSSES.run(self.link(), &cmd).await?, 3)?;
            report.quarantined += counts[0];
            report.kept += counts[1];
            report.full += counts[2];
        }
        Ok(report)
    }

    /// Lists balances as forked, whether they are scheduled or not. An entry that is there stays.
    ///
    /// # Errors
    /// As Redis answers; some may have been listed then.
    pub async fn list_forks(&self, forks: &[(Vec<u8>, Loss)]) -> Result<ForkReport, ScheduleError> {
        const OPERATION: &str = "list forks";
        let mut report = ForkReport::default();
        for page in forks.chunks(500) {
            let mut cmd = scripts::LIST_FORKS.call(3);
            cmd.arg(self.space().schedule()).arg(self.space().losses()).arg(EVENTS);
            cmd.arg(self.options().quarantine_limit);
            for (member, fork) in page {
                let known = serde_json::to_string(fork)
                    .map_err(|error| ScheduleError::unexpected(OPERATION, error.to_string()))?;
                cmd.arg(member).arg(known);
            }
            let counts = ints(OPERATION, &scripts::LIST_FORKS.run(self.link(), &cmd).await?, 3)?;
            report.listed += counts[0];
            report.known += counts[1];
            report.full += counts[2];
        }
        Ok(report)
    }

    /// Removes members that need no write, each only under its lease: their rows are deleted, or as new as the newest known
    /// mutation.
    ///
    /// # Errors
    /// As Redis answers. The leases then expire, and the members are examined again.
    pub async fn dismiss(&self, obsolete: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        self.remove("nothing", obsolete).await
    }

    /// Makes members without a value due again after the delay, each only under its lease.
    ///
    /// # Errors
    /// As Redis answers. The leases then expire.
    pub async fn put_off(
        &self,
        absent: &[&Claimed],
        delay: Duration,
    ) -> Result<PostponeReport, ScheduleError> {
        let members: Vec<_> = absent.iter().map(|claimed| (*claimed, false)).collect();
        self.postpone_for(&members, delay).await
    }

    /// Number of lost balances.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn losses_len(&self) -> Result<u64, ScheduleError> {
        let mut cmd = redis::cmd("HLEN");
        cmd.arg(self.space().losses());
        let value = self.link().send("count losses", &cmd).await?;
        Ok(ints("count losses", &value, 1)?[0])
    }

    /// The loss of a member.
    pub(crate) async fn loss_get(&self, member: &[u8]) -> Result<Option<QuarantineEntry>, ScheduleError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.space().losses()).arg(member);
        match self.link().send("show loss", &cmd).await? {
            Value::Nil => Ok(None),
            value => Ok(Some(read_loss(bulk("show loss", &value)?))),
        }
    }

    /// All losses. The hash is bounded, and an entry has some hundred bytes.
    pub(crate) async fn losses(&self) -> Result<HashMap<Vec<u8>, QuarantineEntry>, ScheduleError> {
        let mut found = HashMap::new();
        self.scan_hash("list losses", &self.space().losses(), |member, raw| {
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
            reason: if loss.forked { QuarantineReason::Forked } else { QuarantineReason::ValueLost }.into(),
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

/// The description of a loss, with the mark of a later mutation.
fn describe(loss: &Loss) -> String {
    match &loss.later_at {
        Some(_) if loss.forked => {
            format!("{}; a later mutation of this balance has been written since", loss.detail)
        }
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
    fn an_entry_of_another_format_is_reported_as_unreadable() {
        for raw in ["", "7", "{}", "{\"loss\":\"x\",\"first_at\":\"1\",\"last_at\":\"1\"}"] {
            assert_eq!(read_loss(raw.as_bytes()).reason, QuarantineReason::UnreadableEntry, "{raw}");
        }
        let raw = br#"{"loss":"{\"confirmed\":true,\"version\":9007199254740993}","first_at":"1","last_at":"2","count":3}"#;
        let entry = read_loss(raw);
        assert_eq!((entry.reason.as_str(), entry.count), ("value_lost", 3));
        assert_eq!(entry.loss.and_then(|loss| loss.version), Some(9_007_199_254_740_993));
        let raw =
            br#"{"loss":"{\"confirmed\":true,\"forked\":true}","first_at":"1","last_at":"2","count":3}"#;
        assert_eq!(read_loss(raw).reason, QuarantineReason::Forked);
    }
}
