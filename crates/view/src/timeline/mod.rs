//! The last day: what happened to each tenant, and how the fleet was by the minute.
//!
//! Each worker records what it sees of its tenants (`recorder`; which changes have an entry is decided in
//! [`balance_sync_engine::timeline`]). The worker that records for the monthly report also records the fleet's minutes ([`history`]).
//! [`TimelineReader`] puts a tenant's entries together with the actions of operators and the starts and ends of workers ([`tenant`]).
//!
//! Unknown is not well: time of which nothing is recorded is an entry of its own. Why all is kept in Redis, and how large it gets, is in
//! `docs/decisions/0034-timeline.md`.

pub mod history;
mod reader;
pub(crate) mod recorder;
pub mod tenant;

use std::time::Duration;

use serde::Serialize;

pub use history::{HistoryMinute, HistoryView};
pub use reader::TimelineReader;
pub use tenant::{TimelineEntry, TimelineKind, TimelineView};

use crate::rows::at;

/// Longest time that is shown.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// What [`parse_within`] takes.
pub const WITHIN_ALLOWED: &str = "a span of time from 1s to 24h, as 90m";

/// How far back is asked for.
#[must_use]
pub fn parse_within(text: &str) -> Option<Duration> {
    let span = humantime::parse_duration(text).ok()?;
    (Duration::from_secs(1)..=LONGEST).contains(&span).then_some(span)
}

/// A time of which nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Since when.
    pub from: String,
    /// Until when.
    pub to: String,
}

/// A time in milliseconds as text.
fn at_ms(millis: u64) -> String {
    at(millis as f64 / 1e3)
}

/// Text of another worker, safe to be shown and not too long.
fn foreign(text: &str) -> String {
    balance_sync_domain::printable(text).chars().take(balance_sync_engine::timeline::TEXT).collect()
}
