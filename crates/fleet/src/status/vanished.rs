//! What is open of a tenant because Redis has lost data of it.

use balance_sync_engine::{reason::Reason, vanish::Found};

/// An open condition, as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Vanished {
    /// Which.
    pub reason: Reason,
    /// Members that are missing for certain.
    pub extent: u64,
    /// Since when, in seconds since 1970.
    pub since: f64,
    /// What was noticed, in words.
    pub detail: String,
    /// What is done about it, or why it stays open, in words.
    pub phase: String,
    /// What the comparisons found so far.
    pub found: Found,
}

impl Vanished {
    /// Whether nothing is known to be lost: see [`is_notice`].
    #[must_use]
    pub fn is_notice(&self) -> bool {
        is_notice(self.reason, self.found)
    }
}

/// Whether a condition only says what is not known: Redis had no mark of an earlier worker, and no comparison has found anything
/// that it lacks. Every new installation begins like that.
#[must_use]
pub fn is_notice(reason: Reason, found: Found) -> bool {
    let Found { rescheduled, scheduled: _, lost, rows_ahead } = found;
    reason == Reason::RedisUnmarked && (rescheduled, lost, rows_ahead) == (0, 0, 0)
}
