//! What a tenant's collector is doing, under the names shown everywhere.

use balance_sync_domain::Reported;

use crate::names;

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
        /// This worker only looks at it, and claims and writes nothing.
        Shadow = "shadow",
    }
}

/// The state of a tenant's collector as a worker reports it.
pub type ReportedState = Reported<TenantState>;

names! {
    /// What a state means to an operator: how it is coloured and sorted. From good to bad.
    pub enum Condition {
        /// Nothing is to be done.
        Quiet = "quiet",
        /// Balances are being written.
        Working = "working",
        /// It is about to work, or to end.
        Changing = "changing",
        /// An operator wants it so.
        Paused = "paused",
        /// Balances can't be written.
        Failing = "failing",
    }
}

impl TenantState {
    /// The name in logs, metrics and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.as_str()
    }

    /// What it means to an operator.
    #[must_use]
    pub const fn condition(self) -> Condition {
        match self {
            Self::Idle | Self::Standby | Self::Shadow => Condition::Quiet,
            Self::Syncing => Condition::Working,
            Self::Starting | Self::Stopping => Condition::Changing,
            Self::Paused => Condition::Paused,
            Self::Degraded => Condition::Failing,
        }
    }

    /// What happens next, where the state alone says so.
    #[must_use]
    pub const fn next(self) -> Option<&'static str> {
        match self {
            Self::Starting => Some("Its collector asks Redis for what is due."),
            Self::Standby => Some(
                "Who stands by for it becomes its first owner, or joins in within seconds when something is due.",
            ),
            Self::Stopping => {
                Some("Its collector writes what it holds and ends; other workers go on with the rest.")
            }
            Self::Shadow => {
                Some("No worker of this fleet writes it: whoever writes today goes on, and is looked at.")
            }
            Self::Idle | Self::Syncing | Self::Degraded | Self::Paused => None,
        }
    }

    /// Whether its collector works, on all balances as far as it knows.
    #[must_use]
    pub const fn is_working(self) -> bool {
        matches!(self, Self::Starting | Self::Idle | Self::Standby | Self::Syncing)
    }
}

/// Which state is shown of a tenant with several owners: the one with the smallest number.
#[must_use]
pub fn display_priority(state: &ReportedState) -> u8 {
    match state.known() {
        Some(TenantState::Degraded) => 0,
        Some(TenantState::Paused) => 1,
        // Of another release. What it means is not known: it may be a problem.
        None => 2,
        Some(TenantState::Syncing) => 3,
        Some(TenantState::Idle) => 4,
        Some(TenantState::Starting) => 5,
        Some(TenantState::Stopping) => 6,
        // Says nothing about the tenant.
        Some(TenantState::Standby) => 7,
        Some(TenantState::Shadow) => 8,
    }
}
