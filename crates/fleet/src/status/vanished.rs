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
