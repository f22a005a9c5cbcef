//! What shadows have found of a tenant.

use balance_sync_fleet::status::{LeftBehind, ShadowReport};
use serde::Serialize;

use super::at;
use crate::record::TenantRecord;

/// What shadows have found of a tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShadowView {
    /// The shadows that look at it.
    pub by: Vec<String>,
    /// Scheduled balances whose rows are older than their values, of those that were looked at: what a worker would write now.
    pub would_write: u64,
    /// There are more such balances than are looked at: the numbers are at least these.
    pub more: bool,
    /// Balances that are out of the schedule while their rows are older than what Redis holds.
    pub left_behind: u64,
    /// The same, where Redis no longer holds what their rows lack.
    pub lost: u64,
    /// Some of both.
    pub examples: Vec<LeftBehindView>,
    /// How long a mutation took until its row had it: median of the last samples.
    pub lag_p50_seconds: Option<f64>,
    /// What 99 of 100 stayed within.
    pub lag_p99_seconds: Option<f64>,
    /// How many samples there are.
    pub lag_samples: u64,
    /// Balances that Redis held at the last comparison of all of them with their rows.
    pub compared: u64,
    /// When that ended; `None` = none has ended yet.
    pub compared_at: Option<String>,
    /// Why rows can't be read, in words.
    pub error: Option<String>,
}

/// A balance that is left behind or lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftBehindView {
    /// Its member.
    pub member: String,
    /// Redis no longer holds what its row lacks.
    pub lost: bool,
    /// The version that its value had.
    pub version: i64,
    /// The version of its row.
    pub row_version: i64,
    /// When it was found.
    pub since: String,
}

impl From<&LeftBehind> for LeftBehindView {
    fn from(one: &LeftBehind) -> Self {
        let LeftBehind { member, lost, version, row_version, since } = one.clone();
        Self { member, lost, version, row_version, since: at(since) }
    }
}

impl ShadowView {
    /// What these shadows report. All look at the same: of several the one that has found most counts.
    pub(crate) fn of(shadows: &[(&str, &TenantRecord)]) -> Option<Self> {
        let found = |report: &&ShadowReport| {
            (report.lost + report.left_behind, report.would_write, report.lag_samples)
        };
        let report = shadows.iter().filter_map(|(_, record)| record.shadow.as_ref()).max_by_key(found)?;
        Some(Self {
            by: shadows.iter().map(|(name, _)| (*name).to_owned()).collect(),
            would_write: report.would_write,
            more: report.more,
            left_behind: report.left_behind,
            lost: report.lost,
            examples: report.examples.iter().map(LeftBehindView::from).collect(),
            lag_p50_seconds: report.lag_p50_seconds,
            lag_p99_seconds: report.lag_p99_seconds,
            lag_samples: report.lag_samples,
            compared: report.compared,
            compared_at: report.compared_at.map(at),
            error: report.error.clone(),
        })
    }

    /// Whether whoever writes today has lost something or left it behind.
    #[must_use]
    pub fn has_found(&self) -> bool {
        self.left_behind + self.lost > 0
    }
}
