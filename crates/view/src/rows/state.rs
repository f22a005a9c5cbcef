//! The state of a tenant as operators see it: that of its collectors, or that it has none.

use balance_sync_fleet::status::{Condition, TenantState};
use serde::{Serialize, Serializer};

/// The state of a tenant over all its workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateView {
    /// What its collector does; with several owners the state that matters most.
    Is(TenantState),
    /// No live worker serves it.
    Unserved,
}

impl StateView {
    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        TenantState::ALL.into_iter().map(Self::Is).chain([Self::Unserved])
    }

    /// The name in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Is(state) => state.as_str(),
            Self::Unserved => "unserved",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::all().find(|state| state.as_str() == name)
    }

    /// What it means to whoever looks.
    #[must_use]
    pub const fn condition(self) -> Condition {
        match self {
            Self::Is(state) => state.condition(),
            Self::Unserved => Condition::Failing,
        }
    }
}

impl From<TenantState> for StateView {
    fn from(state: TenantState) -> Self {
        Self::Is(state)
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
