//! Quarantine entries as they lie in Redis, and what can be done with them by hand.

use serde::{Deserialize, Serialize};

use crate::{
    error::ScheduleError,
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
    /// Number of members in quarantine.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_len(&self) -> Result<u64, ScheduleError> {
        let mut cmd = redis::cmd("HLEN");
        cmd.arg(self.space().quarantine());
        let value = self.link().ask("count quarantine", &cmd).await?;
        Ok(ints("count quarantine", &value, 1)?[0])
    }

    /// All entries, page by page, in no particular order. The hash is bounded (`quarantine.max_entries`).
    ///
    /// # Errors
    /// As Redis answers. An entry that isn't ours to read is shown with the reason `unreadable_entry`.
    pub async fn quarantine_list(&self) -> Result<Vec<Quarantined>, ScheduleError> {
        let mut found = Vec::new();
        self.quarantine_each(|member, entry| found.push(Quarantined { member, entry })).await?;
        found.sort_by(|a, b| a.member.cmp(&b.member));
        Ok(found)
    }

    /// Shows each entry once, page by page, in no particular order: all values together may be large.
    ///
    /// # Errors
    /// As [`Schedule::quarantine_list`].
    pub async fn quarantine_each(
        &self,
        mut show: impl FnMut(Vec<u8>, QuarantineEntry),
    ) -> Result<(), ScheduleError> {
        const OPERATION: &str = "list quarantine";
        let mut seen = std::collections::HashSet::new();
        let mut cursor = b"0".to_vec();
        loop {
            let mut cmd = redis::cmd("HSCAN");
            cmd.arg(self.space().quarantine()).arg(&cursor).arg("COUNT").arg(500);
            let redis::Value::Array(parts) = self.link().ask(OPERATION, &cmd).await? else {
                return Err(ScheduleError::unexpected(OPERATION, "HSCAN gave no array"));
            };
            let [next, redis::Value::Array(pairs)] = parts.as_slice() else {
                return Err(ScheduleError::unexpected(OPERATION, "HSCAN gave no page"));
            };
            for pair in pairs.chunks_exact(2) {
                let (member, raw) = (bulk(OPERATION, &pair[0])?.to_vec(), bulk(OPERATION, &pair[1])?);
                // HSCAN may repeat a field.
                if seen.insert(member.clone()) {
                    show(member, read_entry(raw));
                }
            }
            cursor = bulk(OPERATION, next)?.to_vec();
            if cursor == b"0" {
                return Ok(());
            }
        }
    }

    /// One entry.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_get(&self, member: &[u8]) -> Result<Option<QuarantineEntry>, ScheduleError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.space().quarantine()).arg(member);
        match self.link().ask("show quarantined", &cmd).await? {
            redis::Value::Nil => Ok(None),
            value => Ok(Some(read_entry(bulk("show quarantined", &value)?))),
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

    /// Forgets quarantined members: their last mutation is then not in Postgres. Gives how many were there.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_drop(&self, members: &[&[u8]]) -> Result<u64, ScheduleError> {
        self.by_hand("drop", members).await
    }

    async fn by_hand(&self, what: &str, members: &[&[u8]]) -> Result<u64, ScheduleError> {
        let mut done = 0;
        for page in members.chunks(500) {
            let mut cmd = scripts::RETRY.call(2);
            cmd.arg(self.space().schedule()).arg(self.space().quarantine()).arg(what);
            for member in page {
                cmd.arg(member);
            }
            let value = scripts::RETRY.run(self.link(), &cmd).await?;
            done += ints("retry quarantined", &value, 2)?[0];
        }
        Ok(done)
    }
}

pub(crate) fn read_entry(raw: &[u8]) -> QuarantineEntry {
    let text = String::from_utf8_lossy(raw);
    serde_json::from_str(&text).unwrap_or_else(|error| QuarantineEntry {
        reason: "unreadable_entry".to_owned(),
        detail: format!("the entry in Redis is not of this worker's form: {error}"),
        value: Some(text.into_owned()),
        truncated: false,
        first_at: "0".to_owned(),
        last_at: "0".to_owned(),
        count: 0,
    })
}
