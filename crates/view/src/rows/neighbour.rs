//! What is known of the ledger's own worker, of a tenant.

use balance_sync_domain::Reported;
use balance_sync_fleet::status::{Presence, Sign};
use balance_sync_schedule::ClaimMode;
use serde::Serialize;

use super::at;
use crate::record::{NeighbourRecord, TenantRecord};

/// What is known of the ledger's own worker, of a tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NeighbourView {
    /// Whether it works on the tenant.
    pub presence: Reported<Presence>,
    /// Since when it has been active, as far as it is, or was last.
    pub active_since: Option<String>,
    /// When it was seen last.
    pub seen_at: Option<String>,
    /// By what.
    pub sign: Option<Reported<Sign>>,
    /// How balances are claimed now: with or without its locks.
    pub claim_mode: Reported<ClaimMode>,
    /// Values in a format of ledgers from 4.1 on were seen.
    pub newer_formats: bool,
    /// It is of a release up to 4.0 next to writers of 4.1 or later, and removes their balances unwritten.
    pub deadly_mix: bool,
    /// Balances that were found out of the schedule, unwritten, while it was active.
    pub dropped: u64,
    /// When the last of them was found.
    pub dropped_at: Option<String>,
    /// Some of the last ones.
    pub examples: Vec<String>,
}

impl From<&NeighbourRecord> for NeighbourView {
    fn from(record: &NeighbourRecord) -> Self {
        let time = |seconds: f64| (seconds > 0.0).then(|| at(seconds));
        Self {
            presence: record.presence.clone(),
            active_since: time(record.active_from),
            seen_at: time(record.seen_at),
            sign: record.sign.clone(),
            claim_mode: record.claim_mode.clone(),
            newer_formats: record.newer_formats,
            deadly_mix: record.deadly_mix,
            dropped: record.dropped,
            dropped_at: time(record.dropped_at),
            examples: record.examples.clone(),
        }
    }
}

impl NeighbourView {
    /// What its workers report. Of several the one that has seen it last counts.
    pub(crate) fn of(owners: &[(&str, &TenantRecord)]) -> Option<Self> {
        let records = owners.iter().filter_map(|(_, record)| record.neighbour.as_ref());
        records.max_by(|a, b| a.seen_at.total_cmp(&b.seen_at)).map(Self::from)
    }

    /// Whether an operator should do something about it.
    #[must_use]
    pub fn needs_attention(&self) -> bool {
        self.deadly_mix || self.presence == Presence::Active
    }
}
