//! Which tenants this fleet serves, and what that means for the verdict.

use balance_sync_fleet::status::WorkerMode;

use super::judge::{Verdict, listed};
use crate::{
    reader::FleetView,
    rows::{WorkerRow, at},
};

/// How long workers may take to follow a change, and to report that they do, in seconds.
const FOLLOWED_WITHIN: f64 = 15.0;

impl FleetView {
    /// What the rollout adds to the verdict, in sentences. That tenants are left to another worker is said whenever it is so.
    pub(super) fn judge_rollout(&self) -> Vec<(Verdict, String)> {
        let mut found = Vec::new();
        let writers: Vec<&WorkerRow> =
            self.workers.iter().filter(|worker| worker.live && worker.mode != WorkerMode::Shadow).collect();
        found.extend(self.unfollowed(&writers));
        let Some(rollout) = self.rollout.as_deref().filter(|rollout| !rollout.selection.is_everything())
        else {
            return found;
        };
        let unaware = self.unaware_of_rollout();
        if !unaware.is_empty() {
            let text = format!(
                "Workers of an earlier release know no rollout, and serve tenants that are not in it as well: {}.",
                listed(unaware.into_iter())
            );
            found.push((Verdict::Attention, text));
        }
        let (Some(selected), total) = (self.selected(), self.tenants.len()) else { return found };
        if total == 0 || writers.is_empty() {
            return found;
        }
        let who = match &rollout.stored {
            Some(stored) if !rollout.is_configured() => {
                let note = if stored.note.is_empty() { String::new() } else { format!(" ({})", stored.note) };
                format!("as {} has set it at {}{note}", stored.by, at(stored.at))
            }
            _ => "as it is configured".to_owned(),
        };
        let selection = &rollout.selection;
        if selected == 0 {
            let text = format!(
                "None of the {total} tenants is in the rollout ({selection}), {who}: this fleet writes no balances."
            );
            found.push((Verdict::Attention, text));
            return found;
        }
        let waits = match self.fleet_rollout().outside_oldest_due_age_seconds {
            Some(oldest) if oldest > self.objective_seconds => {
                format!("; the oldest of their due balances has waited {oldest:.1} s")
            }
            _ => String::new(),
        };
        let others = match total - selected {
            0 => "all of those that there are".to_owned(),
            1 => format!("1 is left to the ledger's own worker{waits}"),
            others => format!("{others} are left to the ledger's own worker{waits}"),
        };
        let text =
            format!("{selected} of {total} tenants are in the rollout ({selection}), {who}: {others}.");
        found.push((Verdict::Healthy, text));
        found
    }

    /// Which workers don't follow what is stored.
    fn unfollowed(&self, writers: &[&WorkerRow]) -> Vec<(Verdict, String)> {
        let mut found = Vec::new();
        let known =
            |worker: &&&WorkerRow| worker.rollout.as_ref().is_some_and(|rollout| rollout.revision.is_some());
        let mut problems: Vec<(&str, &str)> = Vec::new();
        for worker in writers {
            if let Some(problem) = worker.rollout.as_ref().and_then(|rollout| rollout.problem.as_deref()) {
                problems.push((&worker.name, problem));
            }
        }
        if let (Some(problem), true) = (&self.rollout_problem, problems.is_empty()) {
            let text = format!(
                "It isn't known which tenants are in the rollout: {}.",
                problem.trim_end_matches('.')
            );
            found.push((Verdict::Attention, text));
        }
        let problem = problems.first().map(|(_, problem)| *problem);
        if let Some(problem) = problem {
            let idle: Vec<&str> = writers
                .iter()
                .filter(|worker| worker.rollout.is_some() && !known(worker))
                .map(|worker| worker.name.as_str())
                .collect();
            let what = match idle.is_empty() {
                true => "the last one that was known stays in force".to_owned(),
                false => format!("{} serve no tenant until it can", listed(idle.iter().copied())),
            };
            let level = if idle.is_empty() { Verdict::Attention } else { Verdict::Degraded };
            let text = format!(
                "The rollout that is stored can't be followed: {}; {what}. `balance-sync rollout all`, `none` or `reset` replaces it.",
                problem.trim_end_matches('.')
            );
            found.push((level, text));
        }
        let Some(rollout) = self.rollout.as_deref() else { return found };
        let since = rollout.stored.as_ref().map_or(0.0, |stored| stored.at);
        let late: Vec<&str> = writers
            .iter()
            .filter(known)
            .filter(|worker| {
                worker.rollout.as_ref().and_then(|follows| follows.revision) != Some(rollout.revision())
            })
            .map(|worker| worker.name.as_str())
            .collect();
        if problem.is_none() && !late.is_empty() && self.at - since > FOLLOWED_WITHIN {
            let text = format!(
                "Workers don't follow revision {} of the rollout, which is stored since {}: {}.",
                rollout.revision(),
                at(since),
                listed(late.into_iter())
            );
            found.push((Verdict::Attention, text));
        }
        found
    }
}
