//! The time of day, for people and alerts. Nothing is decided by it.

use std::time::{SystemTime, UNIX_EPOCH};

pub use balance_sync_engine::clock::clock_offset_ms;

/// Seconds since 1970.
#[must_use]
pub fn wall_clock() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Milliseconds since 1970.
#[must_use]
pub fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
