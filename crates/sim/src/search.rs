//! Many seeds, and from a run that breaks a guarantee to a short one that does.

use std::ops::Range;

use crate::{
    bugs::Bug,
    plan::{Plan, SECOND},
    world::{Outcome, World},
};

/// Bugs that almost no small world shows, each with a seed of any size that does.
const KNOWN: &[(Bug, u64)] = &[
    (Bug::ReadOnlyTrusted, 7_001_615),
    (Bug::LateTenantForgotten, 16),
    (Bug::ScheduledLossForgotten, 16),
    (Bug::WaitUnwatched, 96),
    (Bug::LockedNotRescheduled, 20_269_674),
];
/// Runs that shrinking may take.
const SHRINK_RUNS: u32 = 400;

/// Where a bug was found.
#[derive(Debug)]
pub struct Found {
    /// The run, as its seed gives it.
    pub plan: Plan,
    /// What it came to.
    pub outcome: Outcome,
    /// Runs until then, this one among them.
    pub runs: u64,
    /// Steps in all of them.
    pub steps: u64,
}

/// The first small world among these seeds in which a guarantee is broken; a world that is known for its bug comes before them.
/// With a bug, a world in which that happens without it too doesn't count: it shows nothing of the bug.
#[must_use]
pub fn find(bug: Option<Bug>, seeds: Range<u64>) -> Option<Found> {
    let (mut runs, mut steps) = (0, 0);
    let known = KNOWN.iter().filter(|(known, _)| Some(*known) == bug).map(|(_, seed)| Plan::of(*seed));
    for plan in known.chain(seeds.map(Plan::small)) {
        let outcome = World::run(&plan, bug, false);
        runs += 1;
        steps += outcome.steps;
        let found = outcome.violation.is_some();
        if found && (bug.is_none() || World::run(&plan, None, false).violation.is_none()) {
            return Some(Found { plan, outcome, runs, steps });
        }
    }
    None
}

/// A smaller run that breaks the same guarantee: fewer faults, a shorter time, nothing beside it that isn't needed.
#[must_use]
pub fn shrink(plan: &Plan, bug: Option<Bug>) -> (Plan, Outcome) {
    let mut best = plan.clone();
    let mut outcome = World::run(&best, bug, false);
    let Some(guarantee) = outcome.violation.as_ref().map(|violation| violation.guarantee) else {
        return (best, outcome);
    };
    let mut runs = 0;
    let mut attempt = |best: &mut Plan, outcome: &mut Outcome, plan: Plan| {
        runs += 1;
        let smaller = (runs <= SHRINK_RUNS).then(|| World::run(&plan, bug, false));
        match smaller {
            Some(run) if run.violation.as_ref().is_some_and(|found| found.guarantee == guarantee) => {
                (*best, *outcome) = (plan, run);
                true
            }
            _ => false,
        }
    };

    let seen = outcome.violation.as_ref().map_or(0, |violation| violation.at);
    let mut shorter = best.clone();
    shorter.faults.retain(|(at, _)| *at <= seen);
    attempt(&mut best, &mut outcome, shorter);
    let alone = Plan { ledger: false, ..best.clone() };
    attempt(&mut best, &mut outcome, alone);
    let readable = Plan { poison: 0, ..best.clone() };
    attempt(&mut best, &mut outcome, readable);
    // Halves, quarters, and so on, down to single faults.
    let mut size = best.faults.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < best.faults.len() {
            let mut fewer = best.clone();
            fewer.faults.drain(from..(from + size).min(best.faults.len()));
            if !attempt(&mut best, &mut outcome, fewer) {
                from += size;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    for (tenants, workers) in [(1, best.workers), (best.tenants, 2), (best.tenants, 1)] {
        let fits = |fault: &(u64, crate::plan::Fault)| fault.1.fits(workers, tenants);
        if best.faults.iter().all(fits) {
            let fewer = Plan { tenants, workers, ..best.clone() };
            attempt(&mut best, &mut outcome, fewer);
        }
    }
    let seconds = outcome.violation.as_ref().map_or(best.seconds, |violation| violation.at / SECOND + 1);
    if seconds < best.seconds {
        let shorter = Plan { seconds, ..best.clone() };
        attempt(&mut best, &mut outcome, shorter);
    }
    let traced = World::run(&best, bug, true);
    (best, traced)
}
