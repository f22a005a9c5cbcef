//! Waiting until all workers have left the tenants: what they had claimed is written or given back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use balance_sync_fleet::status::WorkerMode;
use balance_sync_view::{actions::ActionOutcome, reader::FleetView};

/// A worker that has published for so long that it serves none of the tenants has left them: it publishes every two seconds.
const SETTLED: Duration = Duration::from_secs(5);

/// What is known of who has left.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Since when each worker has published that it serves none of them.
    since: BTreeMap<String, Instant>,
}

impl Leaving {
    /// The live workers that have not left the tenants yet, as far as that is known. `done`: those that have reported that they follow
    /// the rollout of this revision, or a later one.
    pub(super) fn staying(
        &mut self,
        now: Instant,
        view: &FleetView,
        revision: u64,
        tenants: &BTreeSet<&str>,
        done: &BTreeSet<String>,
    ) -> Vec<String> {
        let mut serving: BTreeSet<&str> = BTreeSet::new();
        for row in view.tenants.iter().filter(|row| tenants.contains(row.id.as_str())) {
            serving.extend(row.owners.iter().map(String::as_str));
        }
        let writers = view.workers.iter().filter(|worker| worker.mode != WorkerMode::Shadow);
        let mut present = BTreeSet::new();
        let mut staying = Vec::new();
        for worker in writers {
            present.insert(worker.name.clone());
            let follows = worker.rollout.as_ref().and_then(|rollout| rollout.revision) >= Some(revision);
            let is_out = worker.live && follows && !serving.contains(worker.name.as_str());
            if !self.has_settled(now, &worker.name, is_out) && !done.contains(&worker.name) {
                staying.push(worker.name.clone());
            }
        }
        for worker in &view.foreign_workers {
            present.insert(worker.name.clone());
            let is_out = !worker.serves.iter().any(|id| tenants.contains(id.as_str()));
            if !self.has_settled(now, &worker.name, is_out) {
                staying.push(worker.name.clone());
            }
        }
        // What these serve isn't known.
        staying.extend(view.unreadable_workers.iter().cloned());
        self.since.retain(|name, _| present.contains(name));
        staying
    }

    fn has_settled(&mut self, now: Instant, name: &str, is_out: bool) -> bool {
        if !is_out {
            self.since.remove(name);
            return false;
        }
        let since = *self.since.entry(name.to_owned()).or_insert(now);
        now.duration_since(since) >= SETTLED
    }
}

/// The workers that have reported an action as done.
pub(super) fn done_by(outcomes: &[balance_sync_view::actions::OutcomeView]) -> BTreeSet<String> {
    let done = outcomes.iter().filter(|outcome| outcome.outcome == ActionOutcome::Done);
    done.map(|outcome| outcome.worker.clone()).collect()
}
