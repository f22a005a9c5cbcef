//! Tenants and workers as operators see them: what all workers say, put together into one row each.
//!
//! These types are the answers of the admin API; their field names are a contract.

mod detail;
mod neighbour;
mod queue;
mod shadow;
mod state;
mod tenant;
mod worker;

pub use detail::{ErrorView, FlushView, PointView, SettingsView, TenantDetail, next_of};
pub use neighbour::NeighbourView;
pub use queue::QueueView;
pub use shadow::{LeftBehindView, ShadowView};
pub use state::StateView;
pub use tenant::{AcknowledgedView, Merged, PausedBy, TenantRow, VanishedView};
pub use worker::{DeadWorker, ReconcileView, ServiceView, TaskView, WorkerRow};

/// Names in one sentence.
pub(crate) const NAMED: usize = 3;

/// A time as text (RFC 3339, UTC, milliseconds).
#[must_use]
pub fn at(seconds: f64) -> String {
    // Far beyond any clock that is set, and still four digits of year.
    let seconds = if seconds.is_finite() { seconds.clamp(0.0, 253_402_300_799.0) } else { 0.0 };
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_micros((seconds * 1e6).round() as u64);
    humantime::format_rfc3339_millis(time).to_string()
}

/// The first names, and how many more there are.
pub(crate) fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let named: Vec<&str> = names.take(NAMED).collect();
    if more == 0 { named.join(", ") } else { format!("{} and {more} more", named.join(", ")) }
}
