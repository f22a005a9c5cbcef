//! What is known of the ledger's own worker over all tenants, and what it means for the verdict.

use balance_sync_fleet::status::{HOW_TO_PARK, Presence};
use balance_sync_schedule::ClaimMode;
use serde::Serialize;

use super::judge::{Verdict, names, tenants};
use crate::{
    reader::FleetView,
    rows::{NeighbourView, TenantRow},
};

/// At how many tenants the ledger's own worker is seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FleetNeighbour {
    /// It was seen lately.
    pub active: usize,
    /// It was seen before, and not lately.
    pub quiet: usize,
    /// It has been quiet for long enough.
    pub parked: usize,
    /// Its release is up to 4.0 next to writers of 4.1 or later, and it removes their balances unwritten.
    pub deadly_mix: usize,
    /// Balances that were found out of the schedule, unwritten, while it was active.
    pub dropped: u64,
    /// Tenants whose balances are claimed with its locks.
    pub claimed_with_locks: usize,
}

impl FleetView {
    /// What is known of the ledger's own worker; `None` = nothing.
    pub(super) fn neighbour(&self) -> Option<FleetNeighbour> {
        let mut sum: Option<FleetNeighbour> = None;
        for (_, view) in self.neighbours() {
            let sum = sum.get_or_insert_default();
            sum.active += usize::from(view.presence == Presence::Active);
            sum.quiet += usize::from(view.presence == Presence::Quiet);
            sum.parked += usize::from(view.presence == Presence::Parked);
            sum.deadly_mix += usize::from(view.deadly_mix);
            sum.dropped += view.dropped;
            sum.claimed_with_locks += usize::from(view.claim_mode == ClaimMode::Lock);
        }
        sum
    }

    fn neighbours(&self) -> impl Iterator<Item = (&TenantRow, &NeighbourView)> {
        self.tenants.iter().filter_map(|row| Some((row, row.neighbour.as_ref()?)))
    }

    /// What the ledger's own worker adds to the verdict, in sentences.
    pub(super) fn judge_neighbours(&self) -> Vec<(Verdict, String)> {
        let rows = |wanted: fn(&NeighbourView) -> bool| -> Vec<&TenantRow> {
            self.neighbours().filter(|(_, view)| wanted(view)).map(|(row, _)| row).collect()
        };
        let mut found = Vec::new();
        let deadly = rows(|view| view.deadly_mix);
        if !deadly.is_empty() {
            let dropped: u64 =
                deadly.iter().filter_map(|row| row.neighbour.as_ref()).map(|view| view.dropped).sum();
            let text = format!(
                "The ledger's own worker of {} is of a release up to 4.0 next to writers of 4.1 or later: it removes their balances from the \
                 schedule unwritten ({dropped} were found and scheduled again). Now {HOW_TO_PARK}, or upgrade the pods that still have it: {}.",
                tenants(&deadly),
                names(&deadly)
            );
            found.push((Verdict::Attention, text));
        }
        let active = rows(|view| view.presence == Presence::Active && !view.deadly_mix);
        if !active.is_empty() {
            let without = active
                .iter()
                .filter(|row| row.neighbour.as_ref().is_some_and(|view| view.claim_mode == ClaimMode::Lease))
                .count();
            let locks = match without {
                0 => "its locks are respected",
                _ => {
                    "its locks are not respected everywhere, so balances are written twice (claim.mode = \"auto\" respects them while it is seen)"
                }
            };
            let text = format!(
                "The ledger's own worker is active on {}: {locks}. To leave the work to this fleet {HOW_TO_PARK}: {}.",
                tenants(&active),
                names(&active)
            );
            found.push((Verdict::Attention, text));
        }
        let quiet = rows(|view| view.presence == Presence::Quiet && !view.deadly_mix);
        if !quiet.is_empty() {
            let text = format!(
                "The ledger's own worker of {} was seen before and is quiet; it counts as parked when it has stayed so for claim.quiet with \
                 balances due: {}.",
                tenants(&quiet),
                names(&quiet)
            );
            found.push((Verdict::Healthy, text));
        }
        let parked = rows(|view| view.presence == Presence::Parked);
        if !parked.is_empty() {
            let text =
                format!("The ledger's own worker of {} is parked: {}.", tenants(&parked), names(&parked));
            found.push((Verdict::Healthy, text));
        }
        found
    }
}
