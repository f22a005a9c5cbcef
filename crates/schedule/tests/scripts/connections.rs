//! The fleet's connections to Postgres servers: what one call does, and that the sum never exceeds the budget, whatever is lost,
//! doubled, late, frozen or dead.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use balance_sync_engine::connections::{
    self as engine, Demand, FleetConnections, GIVE_UP_AFTER, Granted, SESSION_IDLE, Verdict,
};
use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_schedule::{
    Connections, Link, LinkSettings,
    connections::{Answer, Ask, KEY, Renewal, State},
};
use redis::AsyncCommands;

async fn connections() -> (RedisServer, Connections) {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let link = Link::new(&LinkSettings::for_url(&server.url())).unwrap();
    (server, Connections::new(link))
}

fn ask(server: &str, kept: u32, wanted: u32) -> Ask {
    Ask { server: server.to_owned(), budget: 10, kept, wanted }
}

fn renewal(id: &str, beat: u64, asks: &[Ask]) -> Renewal {
    Renewal { id: id.to_owned(), beat, asks: asks.to_vec(), ..Renewal::default() }
}

/// Has the epoch settled at once, by a worker that says that it has seen it for long enough.
async fn settle(connections: &Connections) {
    let seen = connections.renew(&renewal("observer", 1, &[])).await.unwrap();
    assert!(!seen.settled, "what Redis may have lost is not known yet");
    let by = Renewal { settled: Some(seen.epoch), leaves: true, ..renewal("observer", 2, &[]) };
    assert!(connections.renew(&by).await.unwrap().settled);
}

fn held(answer: &Answer) -> Vec<(u32, u32)> {
    answer.shares.iter().map(|share| (share.held, share.share)).collect()
}

#[tokio::test]
async fn nothing_is_handed_out_until_the_epoch_is_settled_and_what_is_stated_is_kept() {
    let (_server, connections) = connections().await;
    let answer = connections.renew(&renewal("a", 1, &[ask("one:5432", 0, 4)])).await.unwrap();
    assert_eq!((answer.state, answer.settled, held(&answer)), (State::Renewed, false, vec![(0, 4)]));
    // It comes from before Redis lost its data.
    let answer = connections.renew(&renewal("b", 7, &[ask("one:5432", 6, 9)])).await.unwrap();
    assert_eq!((answer.state, held(&answer)), (State::Renewed, vec![(6, 6)]));
    assert_eq!(answer.workers, [("a".to_owned(), 1), ("b".to_owned(), 7)]);
    // Another epoch than the one that is in force settles nothing.
    let wrong = Renewal { settled: Some("other".to_owned()), ..renewal("a", 2, &[]) };
    assert!(!connections.renew(&wrong).await.unwrap().settled);
    let right = Renewal { settled: Some(answer.epoch), ..renewal("a", 3, &[ask("one:5432", 0, 4)]) };
    let answer = connections.renew(&right).await.unwrap();
    assert_eq!((answer.settled, held(&answer)), (true, vec![(4, 4)]));
    assert_eq!((answer.shares[0].all, answer.shares[0].workers), (10, 2));
}

#[tokio::test]
async fn shares_are_equal_and_what_some_cannot_use_goes_to_the_others() {
    let (_server, connections) = connections().await;
    settle(&connections).await;
    let answer = connections.renew(&renewal("a", 1, &[ask("one", 0, 10), ask("two", 0, 3)])).await.unwrap();
    assert_eq!(held(&answer), [(10, 10), (3, 3)], "it is alone");
    let answer = connections.renew(&renewal("b", 1, &[ask("one", 0, 10)])).await.unwrap();
    assert_eq!(held(&answer), [(0, 5)], "the other has all of it");
    let answer = connections.renew(&renewal("c", 1, &[ask("one", 0, 1)])).await.unwrap();
    assert_eq!(held(&answer), [(0, 1)]);
    // The first closes what is idle, then the rest.
    let answer = connections.renew(&renewal("a", 2, &[ask("one", 8, 10), ask("two", 0, 0)])).await.unwrap();
    assert_eq!(held(&answer), [(8, 4), (0, 0)]);
    assert_eq!((answer.shares[0].all, answer.shares[0].workers), (8, 3));
    let answer = connections.renew(&renewal("c", 2, &[ask("one", 0, 1)])).await.unwrap();
    assert_eq!(held(&answer), [(1, 1)]);
    let answer = connections.renew(&renewal("a", 3, &[ask("one", 4, 10)])).await.unwrap();
    assert_eq!(held(&answer), [(4, 4)]);
    let answer = connections.renew(&renewal("b", 2, &[ask("one", 0, 10)])).await.unwrap();
    assert_eq!(held(&answer), [(5, 5)]);
    assert_eq!(answer.shares[0].all, 10);
    // One that leaves leaves all of it.
    let leaves = Renewal { leaves: true, ..renewal("b", 3, &[]) };
    connections.renew(&leaves).await.unwrap();
    let answer = connections.renew(&renewal("a", 4, &[ask("one", 4, 10)])).await.unwrap();
    assert_eq!(held(&answer), [(9, 9)]);
}

#[tokio::test]
async fn the_least_budget_counts_and_a_lowered_one_is_come_down_to() {
    let (_server, connections) = connections().await;
    settle(&connections).await;
    let answer = connections.renew(&renewal("a", 1, &[ask("one", 0, 10)])).await.unwrap();
    assert_eq!(held(&answer), [(10, 10)]);
    let lower = Ask { budget: 6, ..ask("one", 0, 10) };
    let answer = connections.renew(&renewal("b", 1, &[lower])).await.unwrap();
    assert_eq!(held(&answer), [(0, 3)]);
    let answer = connections.renew(&renewal("a", 2, &[ask("one", 7, 10)])).await.unwrap();
    assert_eq!(held(&answer), [(7, 3)]);
}

#[tokio::test]
async fn a_late_call_changes_nothing_and_a_worker_that_was_given_up_holds_nothing() {
    let (_server, connections) = connections().await;
    settle(&connections).await;
    connections.renew(&renewal("a", 1, &[ask("one", 0, 10)])).await.unwrap();
    connections.renew(&renewal("a", 3, &[ask("one", 10, 10)])).await.unwrap();
    let late = connections.renew(&renewal("a", 2, &[ask("one", 0, 0)])).await.unwrap();
    assert_eq!(late.state, State::Overtaken);
    assert_eq!(late.shares[0].all, 10, "it gave nothing up");

    // It has called since.
    let early = Renewal { given_up: vec![("a".to_owned(), 2)], ..renewal("b", 1, &[ask("one", 0, 2)]) };
    let answer = connections.renew(&early).await.unwrap();
    assert_eq!(held(&answer), [(0, 2)]);
    let dead = Renewal { given_up: vec![("a".to_owned(), 3)], ..renewal("b", 2, &[ask("one", 0, 2)]) };
    let answer = connections.renew(&dead).await.unwrap();
    assert_eq!((held(&answer), answer.workers.len()), (vec![(2, 2)], 1));
    let back = connections.renew(&renewal("a", 4, &[ask("one", 10, 10)])).await.unwrap();
    assert_eq!(back.state, State::GivenUp);
    assert_eq!((back.shares[0].held, back.shares[0].all), (0, 2));
}

#[tokio::test]
async fn with_less_than_one_for_each_they_take_turns() {
    let (_server, connections) = connections().await;
    settle(&connections).await;
    let mut shares = Vec::new();
    for id in ["a", "b", "c"] {
        let one = Ask { budget: 2, ..ask("one", 0, 5) };
        connections.renew(&renewal(id, 1, std::slice::from_ref(&one))).await.unwrap();
        let answer = connections.renew(&renewal(id, 2, &[Ask { kept: 2, ..one }])).await.unwrap();
        shares.push(answer.shares[0].share);
    }
    assert!(shares.iter().all(|share| *share <= 2), "{shares:?}");
    let answer = connections.renew(&renewal("a", 3, &[Ask { budget: 2, ..ask("one", 0, 5) }])).await.unwrap();
    assert!(answer.shares[0].share <= 1 && answer.shares[0].all <= 2, "{answer:?}");
}

#[tokio::test]
async fn servers_that_no_worker_needs_are_forgotten() {
    let (server, connections) = connections().await;
    settle(&connections).await;
    let many: Vec<Ask> = (0..300).map(|n| ask(&format!("server-{n}:5432"), 0, 1)).collect();
    let answer = connections.renew(&renewal("a", 1, &many)).await.unwrap();
    assert!(answer.shares.iter().all(|share| share.held == 1));
    let mut client = server.connect().await.unwrap();
    let fields: usize = client.hlen(KEY).await.unwrap();
    assert!(fields > 300);
    // It died.
    let mut cursor = String::new();
    for beat in 1..200 {
        let given_up = vec![("a".to_owned(), 1)];
        let call = Renewal { given_up, cursor: cursor.clone(), ..renewal("b", beat, &[]) };
        cursor = connections.renew(&call).await.unwrap().cursor;
    }
    let fields: usize = client.hlen(KEY).await.unwrap();
    assert!(fields < 10, "{fields}");
}

/// A worker of the model: what it may have, what it has open, and what befell it.
struct Worker {
    machine: FleetConnections,
    name: u64,
    limit: u32,
    open: u32,
    until: Option<Instant>,
    wanted: u32,
    fate: Fate,
    /// A call that was sent and is still on its way, though the worker has given up waiting.
    late: Option<Renewal>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Lives,
    /// Its sockets stay open until the server ends the sessions.
    Frozen(Instant),
    Dead,
}

/// What Postgres counts of a worker.
fn counted(worker: &Worker, now: Instant) -> u32 {
    match worker.fate {
        Fate::Lives => worker.open,
        Fate::Frozen(since) if now < since + SESSION_IDLE => worker.open,
        Fate::Frozen(_) | Fate::Dead => 0,
    }
}

/// Reproducible chance (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

const BUDGET: u32 = 12;

/// Real script, real state machines, virtual time: workers come, go, freeze and die, answers are lost, calls come late, Redis loses
/// all or the latest of what it was given.
#[tokio::test]
async fn the_sum_never_exceeds_the_budget() {
    let (server, connections) = connections().await;
    let mut client = server.connect().await.unwrap();
    let (mut most, mut losses, mut freezes, mut rebalanced) = (0, 0, 0, 0);
    for seed in 0..30_u64 {
        let () = client.del(KEY).await.unwrap();
        let mut rng = Dice(seed);
        let mut now = Instant::now();
        let mut workers: Vec<Worker> = Vec::new();
        let mut names = 0;
        let mut before: Option<BTreeMap<String, String>> = None;
        for step in 0..400 {
            now += Duration::from_millis(rng.below(600));
            if workers.iter().filter(|worker| worker.fate == Fate::Lives).count() < 2 || rng.one_in(60) {
                names += 1;
                workers.push(Worker {
                    machine: FleetConnections::new(format!("{seed}-{names}")),
                    name: names,
                    limit: 0,
                    open: 0,
                    until: None,
                    wanted: 1 + rng.below(19) as u32,
                    fate: Fate::Lives,
                    late: None,
                });
            }
            // What each does by itself: it opens what it may, some close, and all is closed when the lease lapses.
            for worker in workers.iter_mut().filter(|worker| worker.fate == Fate::Lives) {
                if worker.machine.lapses(now) {
                    (worker.limit, worker.open, worker.until) = (0, 0, None);
                }
                if worker.until.is_none_or(|until| until <= now) {
                    worker.open = 0;
                } else if worker.open < worker.limit {
                    worker.open = worker.limit.min(worker.wanted.max(worker.open));
                } else if rng.one_in(2) {
                    // What is in use is closed when it is no longer.
                    worker.open = worker.open.saturating_sub(1).max(worker.limit);
                }
                if rng.one_in(40) {
                    worker.wanted = 1 + rng.below(19) as u32;
                }
            }
            let sum: u32 = workers.iter().map(|worker| counted(worker, now)).sum();
            assert!(sum <= BUDGET, "seed {seed}, step {step}: {sum} connections");
            most = most.max(sum);

            let at = rng.below(workers.len() as u64) as usize;
            let worker = &mut workers[at];
            match worker.fate {
                Fate::Lives => {}
                Fate::Frozen(_) if rng.one_in(10) => {
                    // It thaws: what it had open was ended by the server meanwhile, or is closed as its lease is over.
                    worker.fate = Fate::Lives;
                    if worker.until.is_none_or(|until| until <= now) {
                        worker.open = 0;
                    }
                    continue;
                }
                Fate::Frozen(_) | Fate::Dead => continue,
            }
            match rng.below(100) {
                0..=1 => {
                    worker.fate = Fate::Dead;
                    continue;
                }
                2..=3 => {
                    worker.fate = Fate::Frozen(now);
                    freezes += 1;
                    continue;
                }
                4 => {
                    // Redis loses everything, or goes back to what it had a while ago, on another process.
                    losses += 1;
                    let () = client.del(KEY).await.unwrap();
                    if let Some(before) = before.take() {
                        let fields: Vec<(String, String)> = before.into_iter().collect();
                        let () = client.hset_multiple(KEY, &fields).await.unwrap();
                        let () = client.hset(KEY, "run", "another").await.unwrap();
                    }
                    continue;
                }
                5 => {
                    before =
                        Some(client.hgetall(KEY).await.unwrap()).filter(|of: &BTreeMap<_, _>| !of.is_empty());
                    continue;
                }
                _ => {}
            }
            // A call that was late arrives before or after the next one.
            let late = worker.late.take();
            let is_first = rng.one_in(2);
            if let Some(late) = late.as_ref().filter(|_| is_first) {
                connections.renew(late).await.unwrap();
            }
            let sent = now;
            let demand = Demand {
                server: "one".to_owned(),
                kept: worker.limit.max(worker.open),
                wanted: worker.wanted,
            };
            let request = worker.machine.call(sent, vec![demand]);
            let renewal = Renewal {
                id: request.id,
                beat: request.beat,
                settled: request.settled,
                given_up: request.given_up,
                asks: request
                    .asks
                    .into_iter()
                    .map(|engine::Ask { server, kept, wanted }| Ask { server, budget: BUDGET, kept, wanted })
                    .collect(),
                ..Renewal::default()
            };
            if rng.one_in(12) {
                // It is on its way for longer than the worker waits.
                worker.late = Some(renewal);
                continue;
            }
            let answer = connections.renew(&renewal).await.unwrap();
            if let Some(late) = late.as_ref().filter(|_| !is_first) {
                let answer = connections.renew(late).await.unwrap();
                // The very first call of all may be taken after the second was refused: by then nobody has its id.
                assert!(answer.state != State::Renewed || late.beat == 1, "seed {seed}, step {step}");
            }
            if rng.one_in(12) {
                continue;
            }
            let took = Duration::from_millis(rng.below(2_000));
            let answer = match answer.state {
                State::GivenUp => engine::Answer::GivenUp,
                State::Overtaken | State::Full => engine::Answer::Refused,
                State::Renewed => engine::Answer::Renewed {
                    epoch: answer.epoch,
                    settled: answer.settled,
                    workers: answer.workers,
                    granted: answer
                        .shares
                        .iter()
                        .map(|of| Granted {
                            held: of.held,
                            share: of.share,
                            all: of.all,
                            workers: of.workers,
                        })
                        .collect(),
                },
            };
            let fresh = format!("{seed}-{}-{step}", worker.name);
            match worker.machine.answered(sent, now + took, answer, fresh) {
                Verdict::Limits(until, limits) => {
                    rebalanced += u32::from(limits[0].1 < worker.limit);
                    worker.limit = limits[0].1;
                    worker.until = Some(until);
                }
                Verdict::None => (worker.limit, worker.open, worker.until) = (0, 0, None),
                Verdict::Unchanged => {}
            }
        }
    }
    assert_eq!(most, BUDGET, "the budget is there to be used");
    assert!(losses > 20 && freezes > 20 && rebalanced > 20, "{losses} {freezes} {rebalanced}");
    assert!(GIVE_UP_AFTER > SESSION_IDLE);
}
