//! A small fixed set of seeds: no guarantee is broken, planted bugs are found, and a seed plays the same run each time.
//! `make sim` plays many more.

use balance_sync_sim::{
    bugs::Bug,
    plan::{Fault, Plan},
    search,
    world::World,
};

/// A few seconds in a debug build.
const SEEDS: u64 = 48;
/// The planted bugs that the first seeds find; `make sim` looks for all of them.
const SOON: &[Bug] = &[
    Bug::BlindSettle,
    Bug::SettleAnyLease,
    Bug::BlindRelease,
    Bug::ReleaseRemoves,
    Bug::BlindQuarantine,
    Bug::WholeMicrosecondLease,
    Bug::LeaseNotMoved,
    Bug::LapsedLeaseNotClaimed,
    Bug::NoVersionGuard,
    Bug::SettleBeforeWrite,
    Bug::SettleOnFailure,
    Bug::TimeoutCountsAsWritten,
    Bug::NoReleaseAfterFailure,
    Bug::QuarantineOnOutage,
    Bug::PoisonFailsBatch,
    Bug::CachedValue,
    Bug::NeverProtect,
    Bug::StandbyNeverTakesOver,
    Bug::IdleForever,
];

#[test]
fn no_guarantee_is_broken() {
    for seed in 1..=SEEDS {
        let outcome = World::run(&Plan::of(seed), None, false);
        assert_eq!(outcome.violation, None, "again: make sim SIM_SEED={seed}");
        assert!(outcome.mutations > 0 && outcome.written > 0, "seed {seed} does nothing");
    }
}

#[test]
fn planted_bugs_are_found() {
    for &bug in SOON {
        assert!(search::find(Some(bug), 1..40).is_some(), "{bug}: {}", bug.describe());
    }
}

#[test]
fn a_seed_plays_the_same_run_each_time() {
    for bug in [None, Some(Bug::SettleOnFailure)] {
        let [first, second] = [(); 2].map(|()| World::run(&Plan::small(2), bug, true));
        assert_eq!(
            (first.steps, first.violation, first.trace),
            (second.steps, second.violation, second.trace)
        );
    }
}

#[test]
fn a_failing_run_shrinks_to_what_is_needed() {
    let found = search::find(Some(Bug::SettleOnFailure), 1..40).expect("it is found");
    let (small, outcome) = search::shrink(&found.plan, Some(Bug::SettleOnFailure));
    assert!(small.faults.len() <= 2, "{:?}", small.faults);
    let violation = outcome.violation.expect("the smaller run breaks the guarantee as well");
    assert_eq!(violation.guarantee, "G4");
    let last = outcome.trace.last().expect("there is a trace");
    assert!(last.contains(&violation.what), "the trace ends with the violation: {last}");
}

#[test]
fn seeds_have_every_kind_of_fault() {
    let mut seen = [false; Fault::KINDS.len()];
    for seed in 1..=SEEDS {
        for (_, fault) in Plan::of(seed).faults {
            seen[fault.kind()] = true;
        }
    }
    assert_eq!(seen, [true; Fault::KINDS.len()]);
}
