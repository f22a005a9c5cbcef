//! Looking for a seed that shows a planted bug, when a change of the model has moved what the known ones show.

use std::ops::Range;

use balance_sync_sim::{bugs::Bug, plan::Plan, world::World};

/// `HUNT=LocksHideTheRest HUNT_FROM=1 HUNT_TO=20000 HUNT_PLAN=small cargo test -p balance-sync-sim --test it hunt -- --ignored --nocapture`
#[test]
#[ignore = "a search for those who change the model"]
#[allow(clippy::print_stdout, reason = "printing is what it is for")]
fn hunt() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let bug =
        Bug::ALL.iter().copied().find(|bug| bug.to_string() == variable("HUNT")).expect("HUNT names a bug");
    let number = |name: &str, other: u64| variable(name).parse().unwrap_or(other);
    let seeds: Range<u64> = number("HUNT_FROM", 1)..number("HUNT_TO", 20_000);
    let plan = if variable("HUNT_PLAN") == "small" { Plan::small } else { Plan::of };
    for seed in seeds {
        let plan = plan(seed);
        if World::run(&plan, Some(bug), false).violation.is_some()
            && World::run(&plan, None, false).violation.is_none()
        {
            println!("{bug}: seed {seed}");
            return;
        }
    }
    panic!("none of these seeds shows {bug}");
}
