//! The fleets of several Redis servers, scaled down (`docs/scaling.md`). `make sim SIM_ENTRIES=34` plays more of them.

use balance_sync_sim::{
    bugs::Bug,
    plan::{Fault, Plan},
    world::World,
};

/// Fleets of each size.
const ENTRIES: u64 = 3;

#[test]
fn no_guarantee_is_broken_in_the_fleets_of_several_servers() {
    for workers in [2, 4] {
        let (mut mutations, mut faults) = (0, [0; Fault::KINDS.len()]);
        for seed in 1..=ENTRIES {
            let outcome = World::run(&Plan::entry(seed, workers), None, false);
            assert_eq!(outcome.violation, None, "again: make sim SIM_ENTRIES=1 SIM_SEED={seed}");
            mutations += outcome.mutations;
            faults.iter_mut().zip(outcome.faults).for_each(|(sum, count)| *sum += count);
        }
        assert!(mutations > 50_000, "{mutations}");
        for kind in ["crash", "stop", "remove", "redis cut", "redis failover"] {
            let at = Fault::KINDS.iter().position(|known| *known == kind).unwrap();
            assert!(faults[at] > 0, "no {kind}");
        }
    }
}

/// That these worlds show anything: with a lease that never ends, a worker that dies leaves its claims behind.
#[test]
fn a_lease_that_never_ends_is_found_in_such_a_fleet() {
    let found = (1..=ENTRIES)
        .any(|seed| World::run(&Plan::entry(seed, 2), Some(Bug::EndlessLease), false).violation.is_some());
    assert!(found);
}
