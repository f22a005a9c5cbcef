//! What happened in a stage of the rollout: counted between two looks at the fleet, by the one worker that records for the
//! report, and kept in Redis beside that.
//!
//! Only tenants in the rollout count. What lies between two workers' looks is in no sum, and no time of it counts as watched.

use std::collections::HashMap;

use balance_sync_engine::outcome::Outcome;
use balance_sync_fleet::status::BUCKETS;
use serde::{Deserialize, Serialize};

use crate::reader::FleetView;

/// The record in which stages stand, beside those of the months.
pub(crate) const RECORD: &str = "rollout";
/// Stages that are kept; one field each.
const KEPT: u64 = 64;
/// How long workers may take to begin with new tenants, and to write what another worker has left there, in seconds: how late that is
/// says nothing of them.
pub(super) const CAUGHT_UP: f64 = 30.0;
/// Time between two looks beyond which nothing is known of what was between them, in seconds.
const GAP: f64 = 30.0;

/// A stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Stage {
    /// Of which revision.
    pub revision: u64,
    /// When it was first looked at, in seconds since 1970.
    pub began: f64,
    /// For how long it was watched, in seconds.
    pub seconds: f64,
    /// Mutations written.
    pub written: u64,
    /// Balances newly listed as lost.
    pub lost: u64,
    /// Times a fork was found.
    pub forked: u64,
    /// Balances that came into quarantine, lost ones aside.
    pub quarantined: u64,
    /// For how long some tenant was behind, in seconds.
    pub late: f64,
    /// From mutation to row, by bucket.
    pub lags: Vec<u64>,
}

impl Stage {
    /// What is recorded of a revision; `None` = nothing.
    pub(crate) fn read(recorded: &HashMap<String, String>, revision: u64) -> Option<Self> {
        let mut stage: Self = serde_json::from_str(recorded.get(&field(revision))?).ok()?;
        stage.lags.truncate(BUCKETS.len() + 1);
        let is_sound = stage.seconds.is_finite() && stage.late.is_finite() && stage.began.is_finite();
        Some(stage).filter(|stage| stage.revision == revision && is_sound)
    }

    /// As it is recorded.
    pub(crate) fn write(&self) -> (String, String) {
        // Numbers only: there is nothing that can't be written.
        (field(self.revision), serde_json::to_string(self).unwrap_or_default())
    }
}

fn field(revision: u64) -> String {
    format!("s:{}", revision % KEPT)
}

/// Counters of a tenant at the last look.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    updated: u64,
    forked: u64,
    losses: u64,
    aside: u64,
}

/// Counts, as long as this worker records.
#[derive(Debug, Default)]
pub(crate) struct StageBook {
    recorded: HashMap<String, String>,
    stage: Option<Stage>,
    last: Option<f64>,
    seen: HashMap<String, Seen>,
}

impl StageBook {
    /// Goes on with what is recorded.
    pub(crate) fn open(recorded: HashMap<String, String>) -> Self {
        Self { recorded, ..Self::default() }
    }

    /// Takes in a look at the fleet; returns the present stage.
    pub(crate) fn look(&mut self, now: f64, view: &FleetView) -> Option<Stage> {
        let at = now;
        let rollout = view.rollout.as_ref()?;
        let revision = rollout.revision();
        let is_other = self.stage.as_ref().is_none_or(|stage| stage.revision != revision);
        if is_other {
            let known = Stage::read(&self.recorded, revision);
            self.stage = Some(known.unwrap_or_else(|| Stage { revision, began: now, ..Stage::default() }));
        }
        let stage = self.stage.as_mut()?;
        let span = self.last.map(|last| now - last).filter(|span| (0.0..=GAP).contains(span));
        self.last = Some(now);
        // What was before the change belongs to the stage before.
        if !is_other {
            stage.seconds += span.unwrap_or_default();
        }
        let mut is_late = false;
        for ((row, counts), lags) in view.tenants.iter().zip(&view.counts).zip(&view.lags) {
            let now = Seen {
                updated: counts.outcomes[Outcome::Updated],
                forked: counts.outcomes[Outcome::Forked],
                losses: row.losses,
                aside: row.quarantined.saturating_sub(row.losses),
            };
            let before = self.seen.get(&row.id).copied();
            // Not known is not none.
            let known = match before {
                Some(before) if !row.sampled => Seen { losses: before.losses, aside: before.aside, ..now },
                None if !row.sampled => continue,
                _ => now,
            };
            self.seen.insert(row.id.clone(), known);
            let Some(before) = before.filter(|_| rollout.selection.selects(&row.id)) else { continue };
            is_late |= row.is_behind(view.objective_seconds);
            stage.written += known.updated.saturating_sub(before.updated);
            stage.forked += known.forked.saturating_sub(before.forked);
            stage.lost += known.losses.saturating_sub(before.losses);
            stage.quarantined += known.aside.saturating_sub(before.aside);
            if span.is_some() && at - stage.began > CAUGHT_UP {
                if stage.lags.len() < lags.len() {
                    stage.lags.resize(lags.len().min(BUCKETS.len() + 1), 0);
                }
                for (sum, more) in stage.lags.iter_mut().zip(lags) {
                    *sum = sum.saturating_add(*more);
                }
            }
        }
        self.seen.retain(|id, _| view.find(id).is_some());
        if is_late && !is_other {
            stage.late += span.unwrap_or_default();
        }
        self.stage.clone()
    }
}
