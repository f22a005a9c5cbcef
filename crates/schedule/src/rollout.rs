//! Which tenants the fleet serves, as operators have set it at run time: a hash in the Redis of the schedules, so that it
//! outlives every worker, and a history of the last changes.
//!
//! Nothing in it is trusted: it may be of a later release, or written by hand.

use std::collections::BTreeSet;

use balance_sync_domain::printable;
use balance_sync_engine::rollout::{Pattern, Selection, Share};
use redis::Value;
use serde::{Deserialize, Serialize};

use crate::{
    controls::{ACTIONS, MAX_ENTRIES},
    error::ScheduleError,
    link::Link,
    reply::{array, bulk, int},
    scripts,
};

/// Hash: revision, selection, who, when, why.
pub(crate) const ROLLOUT: &str = "{transactions}:balance-sync:rollout";
/// Hash of the last changes, by revision.
pub(crate) const HISTORY: &str = "{transactions}:balance-sync:rollout-history";
/// Changes that are kept.
pub const HISTORY_ENTRIES: usize = 100;
/// Most bytes of a selection: two full lists of the longest patterns.
const LONGEST_SELECTION: usize = 1024 * 1024;
/// Characters of a text that are kept.
const LONGEST_TEXT: usize = 600;

/// The stored rollout.
#[derive(Debug, Clone)]
pub struct Rollouts {
    link: Link,
}

/// A rollout as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRollout {
    /// Changes with each change.
    pub revision: String,
    /// Which tenants; `None` = those of the configuration. What can't be read says why.
    pub selection: Result<Option<Selection>, String>,
    /// When, in seconds of Redis's clock since 1970; 0 = not known.
    pub at: f64,
    /// Who changed it.
    pub by: String,
    /// Why; empty = not given.
    pub note: String,
    /// The change, in words.
    pub change: String,
}

impl StoredRollout {
    /// The revision as a number; 0 = it is none.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.revision.parse().unwrap_or_default()
    }
}

/// What is to be stored.
#[derive(Debug, Clone, Copy)]
pub struct RolloutChange<'a> {
    /// The revision that it was made of; empty = nothing was stored.
    pub expected: &'a str,
    /// Which tenants; `None` = those of the configuration.
    pub selection: Option<&'a Selection>,
    /// In words.
    pub change: &'a str,
    /// Who.
    pub by: &'a str,
    /// Why; empty = not given.
    pub note: &'a str,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It is stored.
    Stored {
        /// The action's id.
        action: String,
        /// Its revision.
        revision: String,
    },
    /// Somebody else has changed it since; this is stored.
    Overtaken(String),
}

/// A selection as it stands in Redis. Whoever adds a field changes what the others mean: a release that doesn't know it must
/// not guess.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    include: Vec<String>,
    exclude: Vec<String>,
    /// In ten-thousandths.
    share: u16,
}

/// An entry of the history.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    selection: String,
    change: String,
    by: String,
    note: String,
    at: String,
}

/// A selection as it is stored.
#[must_use]
pub fn encode(selection: &Selection) -> String {
    let texts = |list: &BTreeSet<Pattern>| list.iter().map(|pattern| pattern.as_str().to_owned()).collect();
    let wire = Wire {
        include: texts(selection.include()),
        exclude: texts(selection.exclude()),
        share: selection.share().ten_thousandths(),
    };
    // Lists of texts and a number: there is nothing that can't be written.
    serde_json::to_string(&wire).unwrap_or_default()
}

/// What was stored; `None` = the configuration holds.
///
/// # Errors
/// Why it can't be read.
pub fn decode(text: &str) -> Result<Option<Selection>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let wire: Wire = serde_json::from_str(text).map_err(|error| cut(&error.to_string()))?;
    let list = |texts: &[String]| texts.iter().map(|text| Pattern::parse(text)).collect::<Result<_, _>>();
    let share = Share::of_ten_thousand(wire.share).ok_or("the share is more than the whole")?;
    Selection::new(list(&wire.include)?, list(&wire.exclude)?, share).map(Some)
}

fn cut(text: &str) -> String {
    printable(&text.chars().take(LONGEST_TEXT).collect::<String>()).into_owned()
}

impl Rollouts {
    /// The rollout stored in this Redis.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    /// The keys with which a user's rights are tried.
    #[must_use]
    pub fn keys() -> [&'static str; 2] {
        [ROLLOUT, HISTORY]
    }

    /// What is stored; `None` = nothing.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn read(&self) -> Result<Option<StoredRollout>, ScheduleError> {
        const OPERATION: &str = "read rollout";
        let mut cmd = scripts::READ_ROLLOUT.call(1);
        cmd.arg(ROLLOUT).arg(LONGEST_SELECTION);
        let answer = scripts::READ_ROLLOUT.run(&self.link, &cmd).await?;
        if matches!(&answer, Value::Array(parts) if parts.is_empty()) {
            return Ok(None);
        }
        let parts = array(OPERATION, &answer, 7)?;
        let text = |at: usize| -> Result<String, ScheduleError> {
            Ok(String::from_utf8_lossy(bulk(OPERATION, &parts[at])?).into_owned())
        };
        let size = int(OPERATION, &parts[0])?;
        let selection = if size > LONGEST_SELECTION as u64 {
            Err(format!("it has {size} bytes, and {LONGEST_SELECTION} are allowed"))
        } else {
            decode(&text(2)?)
        };
        Ok(Some(StoredRollout {
            revision: text(1)?,
            selection,
            at: text(3)?.parse().ok().filter(|at: &f64| at.is_finite()).unwrap_or_default(),
            by: cut(&text(4)?),
            note: cut(&text(5)?),
            change: cut(&text(6)?),
        }))
    }

    /// Stores a change, with an entry in the log of actions, unless another revision is stored by now.
    ///
    /// # Errors
    /// As Redis answers: whether it was stored is then unknown.
    pub async fn change(&self, change: &RolloutChange<'_>) -> Result<Changed, ScheduleError> {
        let selection = change.selection.map(encode).unwrap_or_default();
        let mut cmd = scripts::CHANGE_ROLLOUT.call(3);
        cmd.arg(ROLLOUT).arg(ACTIONS).arg(HISTORY).arg(MAX_ENTRIES).arg(HISTORY_ENTRIES);
        cmd.arg(change.expected).arg(selection).arg(change.change).arg(change.by).arg(change.note);
        let answer = scripts::CHANGE_ROLLOUT.run(&self.link, &cmd).await?;
        let (action, revision): (String, String) = redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("change rollout", error.to_string()))?;
        Ok(match action.is_empty() {
            true => Changed::Overtaken(revision),
            false => Changed::Stored { action, revision },
        })
    }

    /// The last changes, the newest first. What can't be read is left out.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn history(&self) -> Result<Vec<StoredRollout>, ScheduleError> {
        const OPERATION: &str = "read rollout history";
        let mut found = Vec::new();
        // Field by field, so that one that was written by hand can't be larger than is read.
        let Some(stored) = self.read().await? else { return Ok(found) };
        let newest = stored.number();
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(HISTORY);
        let revisions: Vec<u64> =
            (0..HISTORY_ENTRIES as u64).filter_map(|back| newest.checked_sub(back)).collect();
        cmd.arg(&revisions);
        let entries: Vec<Option<Vec<u8>>> =
            redis::from_redis_value(self.link.send(OPERATION, &cmd).await?)
                .map_err(|error| ScheduleError::unexpected(OPERATION, error.to_string()))?;
        for (revision, bytes) in revisions.iter().zip(entries) {
            let Some(bytes) = bytes.filter(|bytes| bytes.len() <= 2 * LONGEST_SELECTION) else { continue };
            let Ok(entry) = serde_json::from_slice::<Entry>(&bytes) else { continue };
            found.push(StoredRollout {
                revision: revision.to_string(),
                selection: decode(&entry.selection),
                at: entry.at.parse().ok().filter(|at: &f64| at.is_finite()).unwrap_or_default(),
                by: cut(&entry.by),
                note: cut(&entry.note),
                change: cut(&entry.change),
            });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_read_as_it_was_written() {
        let list =
            |texts: &[&str]| texts.iter().map(|text| Pattern::parse(text).expect("a pattern")).collect();
        let share = Share::of_ten_thousand(525).expect("a share");
        let selection = Selection::new(list(&["acme", "eu-*"]), list(&["beta"]), share).expect("a selection");
        assert_eq!(decode(&encode(&selection)), Ok(Some(selection)));
        assert_eq!(decode(""), Ok(None));
    }

    #[test]
    fn what_is_not_understood_is_not_guessed() {
        for text in [
            "{",
            "[]",
            "null",
            r#"{"include":[],"exclude":[]}"#,
            r#"{"include":[],"exclude":[],"share":10001}"#,
            r#"{"include":[],"exclude":[],"share":-1}"#,
            r#"{"include":[],"exclude":[],"share":500,"after":"2027"}"#,
            r#"{"include":["a:b"],"exclude":[],"share":500}"#,
            r#"{"include":[],"exclude":["*********"],"share":500}"#,
            "{\"include\":[\"\u{1b}[2J\"],\"exclude\":[],\"share\":500}",
        ] {
            let refused = decode(text).expect_err(text);
            assert!(!refused.chars().any(char::is_control) && refused.len() < 700, "{refused}");
        }
    }
}
