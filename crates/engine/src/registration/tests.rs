use proptest::prelude::*;

use super::*;

const LEASE: Duration = Duration::from_secs(15);
const OVERDUE: Duration = Duration::from_secs(120);
const RENEW: Duration = Duration::from_secs(5);

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn options() -> Options {
    Options { name: "a".to_owned(), replicas: 1, lease: LEASE, overdue: OVERDUE }
}

/// A worker `a`, and what its driver does with answers that a test gives.
struct Bench {
    machine: Registration<&'static str>,
    jitter: Jitter,
    now: Instant,
    /// The share last handed out, as the live workers and what is adopted.
    share: Option<(BTreeSet<String>, BTreeSet<&'static str>)>,
    announcements: usize,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            machine: Registration::new(options(), now),
            jitter: Jitter::new(1),
            now,
            share: None,
            announcements: 0,
        }
    }

    /// One that has its first share, with these.
    fn among(live: &[&str]) -> Self {
        let mut bench = Self::new();
        bench.registers(Lease::Lapsed, live);
        bench.registers(Lease::Held, live);
        assert_eq!(bench.workers(), Some(set(live)));
        bench
    }

    fn workers(&self) -> Option<BTreeSet<String>> {
        self.share.as_ref().map(|(workers, _)| workers.clone())
    }

    /// Goes to the next registration, and past it to the next wait; returns how long that is and what was reported.
    fn registers(&mut self, lease: Lease, live: &[&str]) -> (Duration, Vec<Report>) {
        self.until_register();
        let reports = self.machine.registered(self.now, lease, set(live));
        (self.until_wait(None), reports)
    }

    fn fails(&mut self) -> (Duration, Option<Report>) {
        self.until_register();
        let report = self.machine.failed(&mut self.jitter);
        (self.until_wait(None), report)
    }

    fn until_register(&mut self) {
        while let Next::Wait(until) = self.machine.next(self.now) {
            self.now = until;
        }
        assert_eq!(self.machine.next(self.now), Next::Register);
    }

    fn until_wait(&mut self, overdue: Option<&[&'static str]>) -> Duration {
        loop {
            match self.machine.next(self.now) {
                Next::Register => panic!("it has just registered"),
                Next::Watch { .. } => {
                    self.machine.watched(self.now, overdue.map(<[_]>::to_vec));
                }
                Next::Announce(share) => {
                    let Share::Part { workers, adopted, .. } = &share else { panic!("{share:?}") };
                    self.share = Some((workers.clone(), adopted.clone()));
                    self.announcements += 1;
                    self.machine.announced(self.now, share);
                }
                Next::Wait(until) => return until - self.now,
            }
        }
    }

    /// Registers for as long, again and again, and answers looks at the tenants of others.
    fn passes(&mut self, time: Duration, live: &[&str], overdue: &[&'static str]) {
        let end = self.now + time;
        while self.now < end {
            self.until_register();
            self.machine.registered(self.now, Lease::Held, set(live));
            self.until_wait(Some(overdue));
        }
    }
}

#[test]
fn no_share_is_taken_before_the_second_look() {
    let mut bench = Bench::new();
    let (delay, _) = bench.registers(Lease::Lapsed, &["a"]);
    assert_eq!((delay, bench.workers()), (FIRST_SETTLE, None), "who else starts now isn't listed yet");
    let (delay, reports) = bench.registers(Lease::Held, &["a", "b"]);
    assert_eq!(bench.workers(), Some(set(&["a", "b"])));
    assert_eq!(
        reports,
        [Report::View { live: 2, joined: vec!["a".to_owned(), "b".to_owned()], left: Vec::new() }]
    );
    assert_eq!(delay, SETTLE, "after a change it looks again soon");
    assert_eq!(bench.registers(Lease::Held, &["a", "b"]), (LOOK_EVERY, Vec::new()));
    assert_eq!(bench.announcements, 1, "the same share is handed out once");
}

#[test]
fn who_comes_or_goes_changes_the_share_at_once() {
    let mut bench = Bench::among(&["a", "b"]);
    let (_, reports) = bench.registers(Lease::Held, &["a", "c"]);
    assert_eq!(bench.workers(), Some(set(&["a", "c"])));
    assert_eq!(reports, [Report::View { live: 2, joined: vec!["c".to_owned()], left: vec!["b".to_owned()] }]);
}

#[test]
fn after_a_lapse_the_last_view_stays_until_the_others_may_be_back() {
    let mut bench = Bench::among(&["a", "b"]);
    // Redis came back empty: everybody's lease has lapsed, and this worker is the first to register.
    let (delay, reports) = bench.registers(Lease::Lapsed, &["a"]);
    assert_eq!((delay, reports), (2 * RENEW, Vec::new()));
    assert_eq!(bench.workers(), Some(set(&["a", "b"])));
    // With its lease held, the next look counts.
    bench.registers(Lease::Held, &["a"]);
    assert_eq!(bench.workers(), Some(set(&["a"])));
}

#[test]
fn while_redis_is_away_the_share_stays_and_tries_grow_apart() {
    let mut bench = Bench::among(&["a", "b"]);
    let before = bench.announcements;
    let (first, report) = bench.fails();
    assert_eq!(report, Some(Report::CutOff));
    assert!(first <= RETRY, "{first:?}");
    for _ in 0..30 {
        let (delay, report) = bench.fails();
        assert!(report.is_none() && delay <= RENEW, "{delay:?}");
    }
    assert!(bench.fails().0 >= RENEW / 2);
    assert_eq!(bench.announcements, before);
    let (_, reports) = bench.registers(Lease::Held, &["a", "b"]);
    assert_eq!(reports, [Report::Back]);
    assert!(bench.fails().0 <= RETRY, "the delay starts afresh");
}

#[test]
fn an_empty_list_is_not_believed() {
    let mut bench = Bench::among(&["a", "b"]);
    bench.registers(Lease::Held, &[]);
    assert_eq!(bench.workers(), Some(set(&["a", "b"])));
}

#[test]
fn a_share_that_did_not_arrive_is_handed_out_again() {
    let mut bench = Bench::new();
    bench.registers(Lease::Lapsed, &["a"]);
    bench.until_register();
    bench.machine.registered(bench.now, Lease::Held, set(&["a"]));
    let Next::Announce(first) = bench.machine.next(bench.now) else { panic!("a share is due") };
    bench.machine.not_announced(bench.now);
    bench.until_register();
    bench.machine.registered(bench.now, Lease::Held, set(&["a"]));
    assert_eq!(bench.machine.next(bench.now), Next::Announce(first));
}

#[test]
fn what_is_overdue_is_adopted_for_a_while_and_not_before_its_owners_had_their_time() {
    let mut bench = Bench::among(&["a", "b"]);
    let adopted =
        |bench: &Bench| bench.share.as_ref().map(|(_, adopted)| adopted.clone()).unwrap_or_default();
    bench.passes(OVERDUE - Duration::from_secs(1), &["a", "b"], &["x"]);
    assert!(adopted(&bench).is_empty(), "after a start everything is overdue");
    bench.passes(OVERDUE / 2, &["a", "b"], &["x"]);
    assert_eq!(adopted(&bench), BTreeSet::from(["x"]));
    // Its owner works again: it is left to it after a while.
    bench.passes(OVERDUE, &["a", "b"], &[]);
    assert_eq!(adopted(&bench), BTreeSet::from(["x"]));
    bench.passes(OVERDUE * 2, &["a", "b"], &[]);
    assert!(adopted(&bench).is_empty());
    // A lapse gives the owners their time again.
    bench.registers(Lease::Lapsed, &["a"]);
    bench.passes(OVERDUE - 3 * RENEW, &["a", "b"], &["x"]);
    assert!(adopted(&bench).is_empty());
}

#[test]
fn what_can_not_be_looked_at_stays_adopted() {
    let mut bench = Bench::among(&["a", "b"]);
    bench.passes(OVERDUE * 2, &["a", "b"], &["x"]);
    for _ in 0..10_000 {
        bench.until_register();
        bench.machine.registered(bench.now, Lease::Held, set(&["a", "b"]));
        bench.until_wait(None);
    }
    let (_, adopted) = bench.share.clone().expect("a share");
    assert_eq!(adopted, BTreeSet::from(["x"]));
}

#[derive(Debug, Clone)]
enum Answer {
    Held(u8),
    Lapsed(u8),
    Failed,
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        5 => any::<u8>().prop_map(Answer::Held),
        1 => any::<u8>().prop_map(Answer::Lapsed),
        1 => Just(Answer::Failed),
    ]
}

proptest! {
    /// Whatever Redis answers: the worker registers often enough to keep its lease while it is answered, never busily; no
    /// share comes before the second answer, none without itself in it, and a share is the last view that was not doubted.
    #[test]
    fn it_renews_in_time_and_believes_only_what_is_not_in_doubt(
        answers in prop::collection::vec(answer(), 1..60),
    ) {
        const OTHERS: [&str; 8] = ["b", "c", "d", "e", "f", "g", "h", "i"];
        let mut bench = Bench::new();
        let (mut answered, mut believed) = (0, None);
        for answer in answers {
            let live = |bits: u8| {
                let others = OTHERS.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1).map(|(_, name)| *name);
                others.chain(["a"]).collect::<Vec<_>>()
            };
            let delay = match answer {
                Answer::Failed => bench.fails().0,
                Answer::Held(bits) => {
                    answered += 1;
                    if answered >= 2 {
                        believed = Some(set(&live(bits)));
                    }
                    bench.registers(Lease::Held, &live(bits)).0
                }
                Answer::Lapsed(bits) => {
                    answered += 1;
                    if answered >= 2 && believed.is_none() {
                        believed = Some(set(&live(bits)));
                    }
                    bench.registers(Lease::Lapsed, &live(bits)).0
                }
            };
            prop_assert!(delay < LEASE, "{delay:?}");
            prop_assert!(delay >= FIRST_SETTLE, "{delay:?}");
            prop_assert_eq!(bench.workers(), believed.clone());
        }
    }
}
