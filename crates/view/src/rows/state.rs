//! The state of a tenant as operators see it: that of its collectors, or that it has none.

use balance_sync_domain::Reported;
use balance_sync_fleet::status::{Condition, ReportedState, TenantState};
use serde::{Serialize, Serializer};

/// The state of a tenant over all its workers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateView {
    /// What its collector does; with several owners the state that matters most.
    Is(TenantState),
    /// The same, of a worker whose release knows more states than this one.
    Other(String),
    /// No live worker serves it.
    Unserved,
    /// It is not in the rollout: no worker of this fleet is to serve it, and none does.
    NotInRollout,
}

impl StateView {
    /// All of them that have names here, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        TenantState::ALL.into_iter().map(Self::Is).chain([Self::Unserved, Self::NotInRollout])
    }

    /// The name in answers.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Is(state) => state.as_str(),
            Self::Other(name) => name,
            Self::Unserved => "unserved",
            Self::NotInRollout => "not_in_rollout",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::all().find(|state| state.as_str() == name)
    }

    /// What it means to an operator. What a state of another release means is not known: it is shown as one to look at.
    #[must_use]
    pub const fn condition(&self) -> Condition {
        match self {
            Self::Is(state) => state.condition(),
            Self::Other(_) => Condition::Changing,
            Self::Unserved => Condition::Failing,
            Self::NotInRollout => Condition::Quiet,
        }
    }
}

impl From<TenantState> for StateView {
    fn from(state: TenantState) -> Self {
        Self::Is(state)
    }
}

impl From<&ReportedState> for StateView {
    fn from(state: &ReportedState) -> Self {
        match state {
            Reported::Known(state) => Self::Is(*state),
            Reported::Other(name) => Self::Other(name.clone()),
        }
    }
}

impl std::fmt::Display for StateView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for StateView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
