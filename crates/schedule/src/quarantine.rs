//! Quarantine entries as stored in Redis, and what operators do with them.

use balance_sync_domain::{QuarantineReason, Reported};
use serde::{Deserialize, Serialize};

use crate::{
    error::ScheduleError,
    losses::{Loss, read_loss},
    reply::{bulk, ints},
    schedule::Schedule,
    scripts,
};

/// An entry as the quarantine script writes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QuarantineEntry {
    /// The reason; another release may know others.
    pub reason: Reported<QuarantineReason>,
    /// What was found and what is allowed.
    #[serde(default)]
    pub detail: String,
    /// The value, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Whether `value` is truncated.
    #[serde(default)]
    pub truncated: bool,
    /// Redis time of the first refusal, in seconds.
    pub first_at: String,
    /// Redis time of the last refusal, in seconds.
    pub last_at: String,
    /// Number of refusals.
    pub count: u64,
    /// What is known about a lost mutation of the balance. Stored in its own hash, where it stays until an operator drops it,
    /// whatever is written later.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
}

impl QuarantineEntry {
    /// This entry with the loss of the same balance.
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
    /// Its entry.
    pub entry: QuarantineEntry,
}

/// What a retry came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retried {
    /// Entries found, and scheduled unless they were scheduled already.
    pub done: u64,
    /// Of these, entries that stay listed whatever the retry finds, and that only a drop removes: losses that are confirmed or
    /// that a later mutation followed, and members that were too long.
    pub listed: u64,
}

impl std::ops::AddAssign for Retried {
    fn add_assign(&mut self, other: Self) {
        self.done += other.done;
        self.listed += other.listed;
    }
}

impl Schedule {
    /// Number of members in quarantine without losses (see [`Schedule::losses_len`]).
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_len(&self) -> Result<u64, ScheduleError> {
        let mut cmd = redis::cmd("HLEN");
        cmd.arg(self.space().quarantine());
        let value = self.link().send("count quarantine", &cmd).await?;
        Ok(ints("count quarantine", &value, 1)?[0])
    }

    /// All entries including losses, sorted by member. The hash is bounded (`quarantine.max_entries`).
    ///
    /// # Errors
    /// As Redis answers. An entry of another format is returned with the reason `unreadable_entry`.
    pub async fn quarantine_list(&self) -> Result<Vec<Quarantined>, ScheduleError> {
        let mut found = Vec::new();
        self.quarantine_each(|member, entry| found.push(Quarantined { member, entry })).await?;
        found.sort_by(|a, b| a.member.cmp(&b.member));
        Ok(found)
    }

    /// Passes each entry once to `visit`, losses included, unsorted. Reads page by page, because all values together may be
    /// large.
    ///
    /// # Errors
    /// As [`Schedule::quarantine_list`].
    pub async fn quarantine_each(
        &self,
        mut visit: impl FnMut(Vec<u8>, QuarantineEntry),
    ) -> Result<(), ScheduleError> {
        let mut losses = self.losses().await?;
        self.scan_hash("list quarantine", &self.space().quarantine(), |member, raw| {
            let lost = losses.remove(&member);
            visit(member, read_entry(raw).with_loss(lost));
        })
        .await?;
        for (member, entry) in losses {
            visit(member, entry);
        }
        Ok(())
    }

    /// Passes each field of a hash once to `visit`, reading page by page.
    pub(crate) async fn scan_hash(
        &self,
        operation: &'static str,
        key: &str,
        mut visit: impl FnMut(Vec<u8>, &[u8]),
    ) -> Result<(), ScheduleError> {
        let mut seen = std::collections::HashSet::new();
        let mut cursor = b"0".to_vec();
        loop {
            let mut cmd = redis::cmd("HSCAN");
            cmd.arg(key).arg(&cursor).arg("COUNT").arg(500);
            let redis::Value::Array(parts) = self.link().send(operation, &cmd).await? else {
                return Err(ScheduleError::unexpected(operation, "HSCAN gave no array"));
            };
            let [next, redis::Value::Array(pairs)] = parts.as_slice() else {
                return Err(ScheduleError::unexpected(operation, "HSCAN gave no page"));
            };
            for pair in pairs.chunks_exact(2) {
                let (member, raw) = (bulk(operation, &pair[0])?.to_vec(), bulk(operation, &pair[1])?);
                // HSCAN may repeat a field.
                if seen.insert(member.clone()) {
                    visit(member, raw);
                }
            }
            cursor = bulk(operation, next)?.to_vec();
            if cursor == b"0" {
                return Ok(());
            }
        }
    }

    /// The entry of a member; that of its loss if it isn't in quarantine.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_get(&self, member: &[u8]) -> Result<Option<QuarantineEntry>, ScheduleError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.space().quarantine()).arg(member);
        let found = self.link().send("show quarantined", &cmd).await?;
        let lost = self.loss_get(member).await?;
        match found {
            redis::Value::Nil => Ok(lost),
            value => Ok(Some(read_entry(bulk("show quarantined", &value)?).with_loss(lost))),
        }
    }

    /// Schedules quarantined members as due now. Their entries are removed when a write settles them. If a value has expired,
    /// the entry's copy is written, unless a newer mutation schedules the member before.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_retry(&self, members: &[&[u8]]) -> Result<Retried, ScheduleError> {
        self.retry_or_drop("retry", members).await
    }

    /// Deletes the entries of quarantined members and losses; their last mutation is then not in Postgres. Returns the number
    /// of entries found.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_drop(&self, members: &[&[u8]]) -> Result<u64, ScheduleError> {
        Ok(self.retry_or_drop("drop", members).await?.done)
    }

    async fn retry_or_drop(&self, action: &str, members: &[&[u8]]) -> Result<Retried, ScheduleError> {
        let mut report = Retried::default();
        for page in members.chunks(500) {
            let mut cmd = scripts::RETRY.call(3);
            cmd.arg(self.space().schedule())
                .arg(self.space().quarantine())
                .arg(self.space().losses())
                .arg(action);
            for member in page {
                cmd.arg(member);
            }
            let value = scripts::RETRY.run(self.link(), &cmd).await?;
            let counts = ints("retry quarantined", &value, 3)?;
            report += Retried { done: counts[0], listed: counts[2] };
        }
        Ok(report)
    }
}

/// Merges the entries of one member in quarantine and among the losses.
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
        reason: QuarantineReason::UnreadableEntry.into(),
        detail: format!("the entry in Redis has another format: {error}"),
        value: Some(String::from_utf8_lossy(raw).into_owned()),
        truncated: false,
        first_at: "0".to_owned(),
        last_at: "0".to_owned(),
        count: 0,
        loss: None,
    }
}
