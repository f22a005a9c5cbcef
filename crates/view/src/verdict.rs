//! How a tenant or the whole fleet is, in one word.

use serde::Serialize;

/// Clocks that differ by more need attention.
pub const CLOCK_TOLERANCE_SECONDS: f64 = 1.0;

/// How a tenant or the fleet is, in one word; the worse, the later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every tenant is served and up to date, by the workers that there should be.
    Healthy,
    /// Every balance that can be written is on time, and an operator has to look at something.
    Attention,
    /// Balances of some tenant are late.
    Behind,
    /// Some tenant can't be written, or no worker serves it.
    Degraded,
    /// It can't be determined.
    Unknown,
}

impl Verdict {
    /// The name in answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Attention => "attention",
            Self::Behind => "behind",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
        }
    }
}
