//! What operators do: pause and resume, flush, read credentials afresh, drain, retry and drop quarantined balances.

use serde::{Deserialize, Serialize};

/// What stands in Redis about a halted tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PausedRecord {
    /// Whose; the label.
    pub tenant: String,
    /// Who halted it.
    pub by: String,
    /// When, in seconds since 1970.
    pub at: f64,
    /// Why, if that was said.
    #[serde(default)]
    pub note: Option<String>,
}
