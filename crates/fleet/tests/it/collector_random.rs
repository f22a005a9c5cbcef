//! The collector under random sequences of mutations and faults: whatever happens, every mutation arrives once the faults
//! are over, a stop leaves no claim behind, and nothing spins.

use std::{collections::BTreeMap, time::Duration};

use crate::common::*;
use balance_sync_fleet::pipeline::{CollectorOptions, SinkError};
use balance_sync_schedule::ErrorClass;
use balance_sync_tenants::DirectoryError;
use proptest::prelude::*;
use tokio::task::LocalSet;

/// Longest delay of an answer, below the drain deadline.
const SLOW: u64 = 1500;

#[derive(Debug, Clone)]
enum Step {
    /// The next version of so many balances from here on.
    Mutate(u128, u128),
    Mood(u8),
    PostgresTakes(u64),
    ClaimTakes(u64),
    /// These operations of Redis fail, all others don't.
    Faults(Vec<&'static str>),
    Lapse,
}

fn steps(faults: &'static [&'static str]) -> impl Strategy<Value = Vec<(u64, Step)>> {
    let takes = || prop_oneof![3 => Just(0), 2 => 1..100_u64, 1 => 100..SLOW];
    let step = prop_oneof![
        6 => (0..40_u128, 1..30_u128).prop_map(|(from, count)| Step::Mutate(from, count)),
        3 => (0..6_u8).prop_map(Step::Mood),
        1 => takes().prop_map(Step::PostgresTakes),
        1 => takes().prop_map(Step::ClaimTakes),
        2 => proptest::sample::subsequence(faults, 0..=faults.len()).prop_map(Step::Faults),
        1 => Just(Step::Lapse),
    ];
    proptest::collection::vec((prop_oneof![3 => 0..60_u64, 1 => 60..3000_u64], step), 0..40)
}

fn mood(number: u8) -> Mood {
    match number {
        0..=2 => Mood::Well,
        3 => Mood::Fails(SinkError::Deadline(secs(5))),
        4 => Mood::FailsUnlessLast(SinkError::Directory(DirectoryError::Suspended)),
        _ => Mood::Silent,
    }
}

/// Plays the steps; gives the newest version of each balance.
async fn play(lab: &Lab, steps: Vec<(u64, Step)>) -> BTreeMap<u128, i64> {
    let mut versions: BTreeMap<u128, i64> = BTreeMap::new();
    for (delay, step) in steps {
        tokio::time::sleep(ms(delay)).await;
        match step {
            Step::Mutate(from, count) => {
                for n in from..from + count {
                    let version = versions.entry(n).or_default();
                    *version += 1;
                    lab.redis.mutate([n], *version);
                }
            }
            Step::Mood(number) => lab.postgres.is(mood(number)),
            Step::PostgresTakes(millis) => lab.postgres.takes.set(ms(millis)),
            Step::ClaimTakes(millis) => lab.redis.delay("claim", ms(millis)),
            Step::Faults(operations) => {
                lab.redis.heal();
                lab.redis.fail(&operations, ErrorClass::Unavailable);
            }
            Step::Lapse => lab.redis.lapse(),
        }
    }
    versions
}

fn run<T>(test: impl AsyncFnOnce(Lab) -> T) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(LocalSet::new().run_until(async {
        // A write that hangs is given up soon enough for the test's bounds.
        test(Lab::with(CollectorOptions { flush_deadline: secs(3), ..options() })).await
    }))
}

/// A turn is a handful of polls, and turns come with events and once per poll interval.
fn assert_calm(lab: &Lab) {
    let (polls, seconds) = (lab.polls.get(), lab.redis.at().as_secs() + 1);
    assert!(polls < seconds * 1500 + 2000, "{polls} polls in {seconds} s");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_mutation_arrives_when_the_faults_are_over(
        steps in steps(&["claim", "settle", "release", "quarantine", "sweep", "protect", "survey"]),
    ) {
        run(async |lab| {
            let collector = lab.start();
            let versions = play(&lab, steps).await;
            lab.redis.heal();
            lab.redis.delays.borrow_mut().clear();
            lab.postgres.is(Mood::Well);
            lab.postgres.takes.set(Duration::ZERO);
            // What hung is given up, and what could be neither settled nor released lapses.
            tokio::time::sleep(secs(4)).await;
            lab.redis.lapse();
            lab.until("all is settled", |lab| lab.redis.due() + lab.redis.leased() == 0).await;
            // A tenant that an operator had to repair is tried within the long backoff.
            assert!(lab.redis.at() < secs(600));
            assert_eq!(*lab.postgres.rows.borrow(), versions);
            assert_calm(&lab);
            lab.stop.cancel();
            collector.await.unwrap();
        });
    }

    #[test]
    fn a_stop_at_any_moment_leaves_no_claim_behind(
        steps in steps(&["claim", "sweep", "protect", "survey"]),
        last in 0..400_u64,
    ) {
        run(async |lab| {
            let collector = lab.start();
            let versions = play(&lab, steps).await;
            tokio::time::sleep(ms(last)).await;
            let stopped = lab.redis.at();
            lab.stop.cancel();
            let drained = collector.await.unwrap();
            let took = lab.redis.at() - stopped;
            assert!(took <= secs(2) + ms(10), "{took:?}");
            assert_eq!((lab.redis.leased(), drained.orphaned), (0, 0), "{drained:?}");
            // Written, or due for others; nothing in between, nothing forgotten.
            let rows = lab.postgres.rows.borrow().clone();
            let missing = versions.iter().filter(|(n, version)| rows.get(n) != Some(version)).count();
            assert!(missing <= lab.redis.due(), "{missing} not written, {} due", lab.redis.due());
            assert_calm(&lab);
        });
    }
}
