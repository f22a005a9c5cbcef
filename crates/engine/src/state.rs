//! What a tenant's collector is doing, under the names shown everywhere.

use serde::{Deserialize, Serialize};

/// The state of a tenant's collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantState {
    /// It was started and has not claimed yet.
    Starting,
    /// Nothing is due.
    Idle,
    /// Another worker comes first; this one watches whether it works.
    Standby,
    /// Members are on their way to Postgres.
    Syncing,
    /// It can't write at present; the reason says why.
    Degraded,
    /// An operator paused it.
    Paused,
    /// It flushes what it holds and ends.
    Stopping,
}

impl TenantState {
    /// All of them, for metrics.
    pub const ALL: [Self; 7] = [
        Self::Starting,
        Self::Idle,
        Self::Standby,
        Self::Syncing,
        Self::Degraded,
        Self::Paused,
        Self::Stopping,
    ];

    /// The name in logs, metrics and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Standby => "standby",
            Self::Syncing => "syncing",
            Self::Degraded => "degraded",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
        }
    }
}
