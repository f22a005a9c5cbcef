//! The protocol as a stateful property: random interleavings of the ledger, two lease workers, a lock-mode worker and
//! the ledger's own worker drive the real scripts on a real Redis, beside a small model.
//!
//! `Postgres` is a map with the version guard. After each step, of every balance:
//! - neither scheduled nor in quarantine means that Postgres has its newest version (G1, G4);
//! - Postgres never has a version that was never written to Redis (G2).
//!
//! At the end everything lapses and one worker drains what is left; then both sides are equal. The one exception is a
//! value that expired, or was replaced by something else, before anybody read it: it must have been listed in quarantine
//! first, never passed over, and each claim tells the one from the other.
//!
//! Time passes by rewriting Redis: a lapse moves all scores, and what the workers hold, into the past by the same
//! whole number of seconds. So a case is the same however slow the machine is, and can be replayed from its steps.
//! Cases: 500, or `PROPTEST_CASES`.
mod world;

use balance_sync_schedule::{Link, LinkSettings};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};
use redis::aio::MultiplexedConnection;
use tokio::runtime::Runtime;

use self::world::{Scripts, World};
use crate::common;

/// Two let one stand behind the other; more only make collisions rare.
const BALANCES: usize = 2;
const STEPS: usize = 40;
const CASES: u32 = 500;
/// Longer than the claim TTL, and a whole number, so that scores stay exact doubles.
const LAPSE_SECONDS: u32 = 64;
/// Workers 0 and 1 claim by lease, worker 2 by lock.
const WORKERS: usize = 3;
const LOCK_WORKER: usize = 2;

/// One step. Numbers are taken modulo what there is; a step without an object does nothing.
#[derive(Debug, Clone)]
enum Step {
    /// The ledger mutates.
    Mutate {
        balance: usize,
    },
    /// The ledger mutates in the microsecond in which a lease ends, or in the one of its former score. Ours tell
    /// such mutations apart; the ledger's own worker can't, so nothing is done while it holds that very score.
    MutateAt {
        worker: usize,
        held: usize,
        former: bool,
    },
    Claim {
        worker: usize,
        limit: usize,
    },
    /// Postgres takes it; a value that is gone or can't be read goes to quarantine, as in the collector.
    Write {
        worker: usize,
        held: usize,
    },
    Settle {
        worker: usize,
        held: usize,
    },
    Release {
        worker: usize,
        held: usize,
    },
    /// Postgres refuses it.
    Quarantine {
        worker: usize,
        held: usize,
    },
    /// The worker is killed, or loses the answer: it forgets what it holds.
    Crash {
        worker: usize,
    },
    GoClaim {
        limit: usize,
    },
    GoRead {
        held: usize,
    },
    GoWrite {
        held: usize,
    },
    GoFinish {
        held: usize,
    },
    GoCrash,
    /// All leases end.
    Lapse,
    LockExpires {
        balance: usize,
    },
    ValueExpires {
        balance: usize,
    },
    /// Another program writes a key of another type in its place.
    ValueReplaced {
        balance: usize,
    },
    /// By hand.
    Retry {
        balance: usize,
    },
    Drop {
        balance: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (worker, held, limit, balance) = (|| 0..WORKERS, || 0_usize..8, || 1_usize..4, || 0..BALANCES);
    prop_oneof![
        8 => balance().prop_map(|balance| Step::Mutate { balance }),
        3 => (worker(), held(), any::<bool>())
            .prop_map(|(worker, held, former)| Step::MutateAt { worker, held, former }),
        8 => (worker(), limit()).prop_map(|(worker, limit)| Step::Claim { worker, limit }),
        8 => (worker(), held()).prop_map(|(worker, held)| Step::Write { worker, held }),
        7 => (worker(), held()).prop_map(|(worker, held)| Step::Settle { worker, held }),
        4 => (worker(), held()).prop_map(|(worker, held)| Step::Release { worker, held }),
        3 => (worker(), held()).prop_map(|(worker, held)| Step::Quarantine { worker, held }),
        1 => worker().prop_map(|worker| Step::Crash { worker }),
        4 => limit().prop_map(|limit| Step::GoClaim { limit }),
        4 => held().prop_map(|held| Step::GoRead { held }),
        4 => held().prop_map(|held| Step::GoWrite { held }),
        4 => held().prop_map(|held| Step::GoFinish { held }),
        1 => Just(Step::GoCrash),
        4 => Just(Step::Lapse),
        3 => balance().prop_map(|balance| Step::LockExpires { balance }),
        2 => balance().prop_map(|balance| Step::ValueExpires { balance }),
        1 => balance().prop_map(|balance| Step::ValueReplaced { balance }),
        3 => balance().prop_map(|balance| Step::Retry { balance }),
        1 => balance().prop_map(|balance| Step::Drop { balance }),
    ]
}

/// What a case changes for the worse, to see that the property notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    No,
    /// Settling removes members whatever their score.
    BlindSettle,
    /// Releasing puts the former score back whatever stands there.
    BlindRelease,
    /// Leases end in a whole microsecond, as a producer's scores do.
    WholeMicroseconds,
    /// Members are settled that were not written.
    SettleUnwritten,
}

/// The server, and what a case needs to talk to it.
struct Stage {
    runtime: Runtime,
    redis: MultiplexedConnection,
    link: Link,
    scripts: Scripts,
}

impl Stage {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let (redis, link) = runtime.block_on(async {
            let server = common::server().await;
            (server.connect().await.unwrap(), Link::new(&LinkSettings::for_url(&server.url())).unwrap())
        });
        Self { runtime, redis, link, scripts: Scripts::new() }
    }

    /// Plays the steps in a world of their own, with all checks.
    fn play(&self, steps: &[Step], sabotage: Sabotage) -> Result<(), String> {
        let mut world = World::new(&self.scripts, self.redis.clone(), &self.link, sabotage);
        self.runtime.block_on(async {
            for step in steps {
                world.take(step).await;
                world.check().await?;
            }
            world.finish().await
        })
    }
}

/// Runs random cases; gives the smallest failing one, if there is one.
fn falsify(cases: u32, sabotage: Sabotage) -> Result<(), String> {
    let stage = Stage::new();
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(step(), 1..=STEPS), |steps| {
        stage.play(&steps, sabotage).map_err(TestCaseError::fail)
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(reason, steps)) => {
            let steps: Vec<String> = steps.iter().map(|step| format!("    {step:?},")).collect();
            Err(format!("{reason}\n{}", steps.join("\n")))
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

#[test]
fn nothing_is_lost_in_any_interleaving() {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { CASES };
    if let Err(counterexample) = falsify(cases, Sabotage::No) {
        panic!("{counterexample}");
    }
}

/// A property that can't fail proves nothing: each of these breaks one rule of the protocol, and is caught. Some
/// are found at random within a few cases; the rarer ones are played as they were once found.
mod the_property_notices {
    use super::{Sabotage, Sabotage::*, Stage, Step, Step::*, falsify};

    #[test]
    fn settling_without_comparing_scores() {
        caught(BlindSettle);
        noticed(
            BlindSettle,
            &[
                Mutate { balance: 0 },
                Claim { worker: 0, limit: 1 },
                Write { worker: 0, held: 0 },
                Mutate { balance: 0 },
                Settle { worker: 0, held: 0 },
            ],
        );
    }

    #[test]
    fn settling_what_was_not_written() {
        caught(SettleUnwritten);
        noticed(
            SettleUnwritten,
            &[Mutate { balance: 0 }, Claim { worker: 2, limit: 1 }, Settle { worker: 2, held: 0 }],
        );
    }

    #[test]
    fn leases_that_a_producer_can_write() {
        noticed(
            WholeMicroseconds,
            &[
                Mutate { balance: 0 },
                Claim { worker: 0, limit: 1 },
                Write { worker: 0, held: 0 },
                Lapse,
                MutateAt { worker: 0, held: 0, former: false },
                Settle { worker: 0, held: 0 },
            ],
        );
    }

    #[test]
    fn releasing_without_comparing_scores() {
        // The second worker puts the first one's lease back over a mutation; the first wakes up and settles.
        noticed(
            BlindRelease,
            &[
                Mutate { balance: 0 },
                Claim { worker: 0, limit: 1 },
                Write { worker: 0, held: 0 },
                Lapse,
                Claim { worker: 1, limit: 1 },
                Mutate { balance: 0 },
                Release { worker: 1, held: 0 },
                Settle { worker: 0, held: 0 },
            ],
        );
    }

    /// Random search finds it within far fewer cases than this.
    fn caught(sabotage: Sabotage) {
        let counterexample = falsify(5_000, sabotage).expect_err("the sabotage went unnoticed");
        assert!(counterexample.contains("is lost"), "{counterexample}");
    }

    /// These steps lose a mutation with the sabotage, and none without it.
    fn noticed(sabotage: Sabotage, steps: &[Step]) {
        let stage = Stage::new();
        let error = stage.play(steps, sabotage).expect_err("the sabotage went unnoticed");
        assert!(error.contains("is lost"), "{error}");
        assert_eq!(stage.play(steps, No), Ok(()));
    }
}

/// What was wrong once, as random search finds it.
mod found_once {
    use super::{Sabotage, Stage, Step::*};

    #[test]
    fn a_kept_copy_replaced_a_newer_value_that_had_expired() {
        let steps = [
            Mutate { balance: 0 },
            Claim { worker: 0, limit: 1 },
            Quarantine { worker: 0, held: 0 },
            Mutate { balance: 0 },
            ValueExpires { balance: 0 },
            Claim { worker: 0, limit: 1 },
            Write { worker: 0, held: 0 },
            Settle { worker: 0, held: 0 },
        ];
        assert_eq!(Stage::new().play(&steps, Sabotage::No), Ok(()));
    }
}
