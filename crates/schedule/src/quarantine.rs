//! Quarantine entries as they lie in Redis, and what can be done with them by hand.

use serde::{Deserialize, Serialize};

use crate::{
    error::ScheduleError,
    losses::{Loss, read_loss},
    schedule::{Schedule, bulk, ints},
    scripts,
};

/// One entry, as the quarantine script writes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QuarantineEntry {
    /// Short, stable name of the reason, e.g. `missing_row`.
    pub reason: String,
    /// What was found and what is allowed.
    #[serde(default)]
    pub detail: String,
    /// The value as it was, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Whether `value` was cut short.
    #[serde(default)]
    pub truncated: bool,
    /// Redis time of the first refusal, in seconds.
    pub first_at: String,
    /// Redis time of the last refusal, in seconds.
    pub last_at: String,
    /// How often it was refused.
    pub count: u64,
    /// What is known of a mutation that is lost. Kept apart in Redis: whatever is written later, it stays until somebody
    /// drops it.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
}

impl QuarantineEntry {
    /// The same, with a loss of the same balance.
    fn with_loss(mut self, lost: Option<Self>) -> Self {
        self.loss = lost.and_then(|lost| lost.loss);
        self
    }
}

/// A member and its entry.
#[derive(Debug, Clone)]
pub struct Quarantined {
    /// The member of the schedule.
    pub member: Vec<u8>,
    /// Why, since when, how often.
    pub entry: QuarantineEntry,
}

impl Schedule {
    /// Number of members in quarantine, lost ones not among them (see [`Schedule::losses_len`]).
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_len(&self) -> Result<u64, ScheduleError> {
        let mut cmd = redis::cmd("HLEN");
        cmd.arg(self.space().quarantine());
        let value = self.link().ask("count quarantine", &cmd).await?;
        Ok(ints("count quarantine", &value, 1)?[0])
    }

    /// All entries, losses among them, page by page, in no particular order. The hash is bounded (`quarantine.max_entries`).
    ///
    /// # Errors
    /// As Redis answers. An entry that isn't ours to read is shown with the reason `unreadable_entry`.
    pub async fn quarantine_list(&self) -> Result<Vec<Quarantined>, ScheduleError> {
        let mut found = Vec::new();
        self.quarantine_each(|member, entry| found.push(Quarantined { member, entry })).await?;
        found.sort_by(|a, b| a.member.cmp(&b.member));
        Ok(found)
    }

    /// Shows each entry once, losses among them, page by page, in no particular order: all values together may be large.
    ///
    /// # Errors
    /// As [`Schedule::quarantine_list`].
    pub async fn quarantine_each(
        &self,
        mut show: impl FnMut(Vec<u8>, QuarantineEntry),
    ) -> Result<(), ScheduleError> {
        let mut losses = self.losses().await?;
        self.scan_hash("list quarantine", self.space().quarantine(), |member, raw| {
            let lost = losses.remove(&member);
            show(member, read_entry(raw).with_loss(lost));
        })
        .await?;
        for (member, entry) in losses {
            show(member, entry);
        }
        Ok(())
    }

    /// Shows each field of a hash once, page by page.
    pub(crate) async fn scan_hash(
        &self,
        operation: &'static str,
        key: &str,
        mut show: impl FnMut(Vec<u8>, &[u8]),
    ) -> Result<(), ScheduleError> {
        let mut seen = std::collections::HashSet::new();
        let mut cursor = b"0".to_vec();
        loop {
            let mut cmd = redis::cmd("HSCAN");
            cmd.arg(key).arg(&cursor).arg("COUNT").arg(500);
            let redis::Value::Array(parts) = self.link().ask(operation, &cmd).await? else {
                return Err(ScheduleError::unexpected(operation, "HSCAN gave no array"));
            };
            let [next, redis::Value::Array(pairs)] = parts.as_slice() else {
                return Err(ScheduleError::unexpected(operation, "HSCAN gave no page"));
            };
            for pair in pairs.chunks_exact(2) {
                let (member, raw) = (bulk(operation, &pair[0])?.to_vec(), bulk(operation, &pair[1])?);
                // HSCAN may repeat a field.
                if seen.insert(member.clone()) {
                    show(member, raw);
                }
            }
            cursor = bulk(operation, next)?.to_vec();
            if cursor == b"0" {
                return Ok(());
            }
        }
    }

    /// One entry; that of the loss, if there is no other.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_get(&self, member: &[u8]) -> Result<Option<QuarantineEntry>, ScheduleError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.space().quarantine()).arg(member);
        let found = self.link().ask("show quarantined", &cmd).await?;
        let lost = self.loss_get(member).await?;
        match found {
            redis::Value::Nil => Ok(lost),
            value => Ok(Some(read_entry(bulk("show quarantined", &value)?).with_loss(lost))),
        }
    }

    /// Schedules quarantined members again, as due now; entries go when a write settles them. A value that has expired
    /// since is replaced by the entry's copy, as long as no mutation has scheduled the member meanwhile. Gives how many
    /// were there.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_retry(&self, members: &[&[u8]]) -> Result<u64, ScheduleError> {
        self.by_hand("retry", members).await
    }

    /// Forgets quarantined members and losses: their last mutation is then not in Postgres. Gives how many were there.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_drop(&self, members: &[&[u8]]) -> Result<u64, ScheduleError> {
        self.by_hand("drop", members).await
    }

    async fn by_hand(&self, what: &str, members: &[&[u8]]) -> Result<u64, ScheduleError> {
        let mut done = 0;
        for page in members.chunks(500) {
            let mut cmd = scripts::RETRY.call(3);
            cmd.arg(self.space().schedule())
                .arg(self.space().quarantine())
                .arg(self.space().losses())
                .arg(what);
            for member in page {
                cmd.arg(member);
            }
            let value = scripts::RETRY.run(self.link(), &cmd).await?;
            done += ints("retry quarantined", &value, 2)?[0];
        }
        Ok(done)
    }
}

/// What stands in quarantine and among the losses about one member, as one entry.
pub(crate) fn entry_of(quarantined: Option<&[u8]>, lost: Option<&[u8]>) -> Option<QuarantineEntry> {
    let lost = lost.map(read_loss);
    match quarantined {
        Some(raw) => Some(read_entry(raw).with_loss(lost)),
        None => lost,
    }
}

pub(crate) fn read_entry(raw: &[u8]) -> QuarantineEntry {
    serde_json::from_str(&String::from_utf8_lossy(raw)).unwrap_or_else(|error| unreadable(raw, &error))
}

pub(crate) fn unreadable(raw: &[u8], error: &serde_json::Error) -> QuarantineEntry {
    QuarantineEntry {
        reason: "unreadable_entry".to_owned(),
        detail: format!("the entry in Redis is not of this worker's form: {error}"),
        value: Some(String::from_utf8_lossy(raw).into_owned()),
        truncated: false,
        first_at: "0".to_owned(),
        last_at: "0".to_owned(),
        count: 0,
        loss: None,
    }
}
