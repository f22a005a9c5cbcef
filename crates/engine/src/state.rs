//! What a tenant's collector is doing, under the names shown everywhere.

use serde::{Deserialize, Deserializer, de::Error};

use crate::name::names;

names! {
    /// The state of a tenant's collector.
    pub enum TenantState {
        /// It was started and has not claimed yet.
        Starting = "starting",
        /// Nothing is due.
        Idle = "idle",
        /// Another worker comes first; this one watches whether it works.
        Standby = "standby",
        /// Members are on their way to Postgres.
        Syncing = "syncing",
        /// It can't write at present; the reason says why.
        Degraded = "degraded",
        /// An operator paused it.
        Paused = "paused",
        /// It flushes what it holds and ends.
        Stopping = "stopping",
    }
}

impl TenantState {
    /// The name in logs, metrics and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.as_str()
    }

    /// Which state is shown of a tenant with several owners: the one with the smallest number.
    #[must_use]
    pub const fn display_priority(self) -> u8 {
        match self {
            Self::Degraded => 0,
            Self::Paused => 1,
            Self::Syncing => 2,
            Self::Idle => 3,
            Self::Starting => 4,
            Self::Stopping => 5,
            // Says nothing about the tenant.
            Self::Standby => 6,
        }
    }
}

impl<'de> Deserialize<'de> for TenantState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::parse(&name).ok_or_else(|| D::Error::custom("not a state of a tenant"))
    }
}
