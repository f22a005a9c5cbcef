//! The standby watch: whether any worker claims what is due in the schedules of tenants that another worker owns first.
//!
//! The head of a schedule counts as unclaimed when it has stayed there, unchanged, for as long as an idle owner may take to
//! look. A balance that is mutated all the time is never unchanged: its score is that of the last mutation. There the member
//! seen last decides: it must have been claimed, held or gone at some look. If it never was, for many looks, no worker claims. A
//! standby woken in error finds nothing to claim, or shares the work for a while: claims keep that correct.
//!
//! [`Watch`] looks for each of its standbys once per round, a page at a time, evenly spread. `P` identifies a standby, `H` is
//! what tells two heads of a schedule apart.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Looks at a schedule in the time within which an idle owner looks at it (`collector.idle_backoff_max`).
const LOOKS: u32 = 2;
/// After this many looks in a row at the same head no worker claims: the first look, and those of one such time.
const UNCHANGED: u32 = 1 + LOOKS;
/// After this many looks in a row between which nothing was claimed, although something was due, no worker claims: ten such times.
const UNCLAIMED: u32 = 1 + 10 * LOOKS;
/// Schedules in one page: some 200 µs of Redis, so that no other client waits long behind it.
const PAGE: usize = 250;

/// What a look at a schedule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen<H> {
    /// What is due, and has been for longest.
    pub head: H,
    /// What became of the head of the look before.
    pub last: LastHead,
}

/// What became of the member that was at the head at the look before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastHead {
    /// It is due: no worker has claimed it since.
    Waits,
    /// It is held, put off or gone; or there was none.
    Claimed,
}

/// One standby of a schedule, with what was seen so far.
#[derive(Debug, Clone)]
pub struct Standby<P, H> {
    /// Who it is.
    pub who: P,
    /// What was at its head at the last look, if anything was due.
    head: Option<H>,
    /// Looks in a row that found this head.
    unchanged: u32,
    /// Looks in a row that found something due, and nothing claimed since the one before.
    unclaimed: u32,
    /// A look that finds nothing due ends the watch.
    until_quiet: bool,
}

/// Why a standby is no longer watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Something is due that no worker claims: it takes over.
    Unclaimed,
    /// Nothing is due; see [`Watch::add_until_quiet`].
    Quiet,
}

/// What a look says about a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing is due, or a worker claims.
    Claimed,
    /// It ends the watch.
    Ends(Woken),
}

impl<P, H: Eq> Standby<P, H> {
    fn new(who: P) -> Self {
        Self { who, head: None, unchanged: 0, unclaimed: 0, until_quiet: false }
    }

    /// What was at the head of its schedule at the last look, if anything was due.
    #[must_use]
    pub fn head(&self) -> Option<&H> {
        self.head.as_ref()
    }

    fn take_in(&mut self, seen: Option<Seen<H>>) -> Verdict {
        let Some(Seen { head, last: became }) = seen else {
            self.forget();
            return if self.until_quiet { Verdict::Ends(Woken::Quiet) } else { Verdict::Claimed };
        };
        let last = self.head.replace(head);
        self.unchanged = if last == self.head { self.unchanged + 1 } else { 1 };
        let unclaimed = last.is_none() || became == LastHead::Waits;
        self.unclaimed = if unclaimed { self.unclaimed + 1 } else { 1 };
        if self.unchanged >= UNCHANGED || self.unclaimed >= UNCLAIMED {
            Verdict::Ends(Woken::Unclaimed)
        } else {
            Verdict::Claimed
        }
    }

    fn forget(&mut self) {
        self.head = None;
        self.unchanged = 0;
        self.unclaimed = 0;
    }
}

/// All standbys of one thread.
#[derive(Debug)]
pub struct Watch<P, H> {
    standbys: VecDeque<Standby<P, H>>,
    round: Duration,
    next: Instant,
}

impl<P, H: Eq> Watch<P, H> {
    /// A watch without standbys. `idle` is the time within which an idle owner looks at its schedule.
    #[must_use]
    pub fn new(idle: Duration, now: Instant) -> Self {
        Self { standbys: VecDeque::new(), round: round(idle), next: now }
    }

    /// Adds a standby.
    pub fn add(&mut self, who: P, now: Instant) {
        self.push(Standby::new(who), now);
    }

    /// Adds a standby that is watched only for as long as something is due: without that there is a cheaper way.
    pub fn add_until_quiet(&mut self, who: P, now: Instant) {
        self.push(Standby { until_quiet: true, ..Standby::new(who) }, now);
    }

    fn push(&mut self, standby: Standby<P, H>, now: Instant) {
        if self.standbys.is_empty() {
            self.next = self.next.max(now);
        }
        self.standbys.push_back(standby);
    }

    /// When [`Watch::page`] has something to look at.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        (!self.standbys.is_empty()).then_some(self.next)
    }

    /// Takes off the next page of standbys to look for, without those that have left; ends with [`Watch::looked`]. Empty before
    /// its time.
    #[must_use]
    pub fn page(&mut self, now: Instant, has_left: impl Fn(&P) -> bool) -> Vec<Standby<P, H>> {
        if self.wake_at().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let all = self.standbys.len();
        let mut page: Vec<_> = self.standbys.drain(..PAGE.min(all)).collect();
        self.next = now + self.round.mul_f64(page.len() as f64 / all as f64);
        page.retain(|standby| !has_left(&standby.who));
        page
    }

    /// A page has been looked at, with one answer per standby: `None` where nothing is due. Returns the standbys that are no
    /// longer watched, and why.
    #[must_use]
    pub fn looked(&mut self, page: Vec<Standby<P, H>>, seen: Vec<Option<Seen<H>>>) -> Vec<(P, Woken)> {
        debug_assert_eq!(page.len(), seen.len(), "one answer per standby");
        let mut woken = Vec::new();
        let mut seen = seen.into_iter();
        for mut standby in page {
            match standby.take_in(seen.next().flatten()) {
                Verdict::Claimed => self.standbys.push_back(standby),
                Verdict::Ends(why) => woken.push((standby.who, why)),
            }
        }
        woken
    }

    /// A page could not be looked at. No worker can claim then, and owners need their time afterwards: what was seen before is
    /// forgotten.
    pub fn failed(&mut self, mut page: Vec<Standby<P, H>>) {
        page.iter_mut().for_each(Standby::forget);
        self.standbys.extend(page);
    }
}

/// The time in which each standby's schedule is looked at once.
#[must_use]
pub fn round(idle: Duration) -> Duration {
    (idle / LOOKS).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const IDLE: Duration = Duration::from_secs(1);

    /// Due members of one schedule, each with its score.
    type Schedule = BTreeMap<u8, u32>;

    fn look(schedule: &Schedule, last: Option<&(u8, u32)>) -> Option<Seen<(u8, u32)>> {
        let head =
            schedule.iter().map(|(member, score)| (*member, *score)).min_by_key(|(_, score)| *score)?;
        let waits = last.is_some_and(|(member, _)| schedule.contains_key(member));
        Some(Seen { head, last: if waits { LastHead::Waits } else { LastHead::Claimed } })
    }

    /// One standby of a schedule that a test changes between the looks.
    struct Bench {
        watch: Watch<(), (u8, u32)>,
        now: Instant,
        schedule: Schedule,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            let mut watch = Watch::new(IDLE, now);
            watch.add((), now);
            Self { watch, now, schedule: Schedule::new() }
        }

        /// Goes to the next look; returns whether it wakes who stands by.
        fn wakes(&mut self) -> bool {
            self.now = self.now.max(self.watch.wake_at().expect("it stands by"));
            let page = self.watch.page(self.now, |()| false);
            let seen = page.iter().map(|standby| look(&self.schedule, standby.head())).collect();
            !self.watch.looked(page, seen).is_empty()
        }

        fn fails(&mut self) {
            self.now = self.now.max(self.watch.wake_at().expect("it stands by"));
            let page = self.watch.page(self.now, |()| false);
            self.watch.failed(page);
        }
    }

    #[test]
    fn the_same_head_for_as_long_as_an_idle_owner_sleeps_wakes() {
        let mut bench = Bench::new();
        for _ in 0..100 {
            assert!(!bench.wakes(), "nothing is due");
        }
        bench.schedule.insert(1, 1);
        assert!(!bench.wakes());
        let first_seen = bench.now;
        assert!(!bench.wakes());
        assert!(bench.wakes());
        assert_eq!(bench.now - first_seen, IDLE);
        assert_eq!(bench.watch.wake_at(), None, "it no longer stands by");
    }

    #[test]
    fn a_backlog_that_is_worked_wakes_no_standby() {
        let mut bench = Bench::new();
        bench.schedule = (0..200).map(|n| (n, u32::from(n))).collect();
        for n in 0..200 {
            assert!(!bench.wakes());
            bench.schedule.remove(&n);
        }
    }

    #[test]
    fn a_head_that_only_mutations_move_is_noticed_after_ten_times_as_long() {
        let mut bench = Bench::new();
        let mut wakes_at = None;
        for n in 0..100 {
            bench.schedule.insert(1, n);
            if bench.wakes() {
                wakes_at = Some(n);
                break;
            }
        }
        assert_eq!(wakes_at, Some(10 * LOOKS));
        // Claimed now and then, it never wakes.
        let mut bench = Bench::new();
        for n in 0..400 {
            bench.schedule.insert(1, n);
            if n % 15 == 0 {
                bench.schedule.clear();
            }
            assert!(!bench.wakes(), "{n}");
        }
    }

    #[test]
    fn a_look_that_fails_begins_anew() {
        let mut bench = Bench::new();
        bench.schedule.insert(1, 1);
        for _ in 0..20 {
            assert!(!bench.wakes());
            assert!(!bench.wakes());
            bench.fails();
        }
        assert!(!bench.wakes() && !bench.wakes() && bench.wakes());
    }

    #[test]
    fn where_there_is_a_cheaper_way_a_quiet_schedule_is_watched_no_longer() {
        let (mut now, mut watch) = (Instant::now(), Watch::<u8, ()>::new(IDLE, Instant::now()));
        watch.add_until_quiet(1, now);
        watch.add(2, now);
        let mut looks = |watch: &mut Watch<u8, ()>, due: bool| {
            now = now.max(watch.wake_at().expect("one stands by"));
            let page = watch.page(now, |_| false);
            let seen =
                page.iter().map(|_| due.then_some(Seen { head: (), last: LastHead::Claimed })).collect();
            watch.looked(page, seen)
        };
        assert_eq!(looks(&mut watch, true), []);
        assert_eq!(looks(&mut watch, false), [(1, Woken::Quiet)]);
        assert!((0..20).all(|_| looks(&mut watch, false).is_empty()), "the other one is watched for ever");
    }

    #[test]
    fn a_thousand_standbys_are_looked_at_once_per_round_in_full_pages() {
        let mut now = Instant::now();
        let begun = now;
        let mut watch = Watch::<u16, ()>::new(IDLE, now);
        (0..1000).for_each(|who| watch.add(who, now));
        let (mut looks, mut calls) = (0, 0);
        while now - begun < 10 * IDLE {
            let page = watch.page(now, |who| *who == 500);
            assert!(page.iter().all(|standby| standby.who != 500));
            (looks, calls) = (looks + page.len(), calls + 1);
            let nothing = page.iter().map(|_| None).collect();
            assert!(watch.looked(page, nothing).is_empty());
            now = watch.wake_at().expect("they stand by");
        }
        assert!((19_970..=20_500).contains(&looks), "{looks} looks");
        assert!(calls <= 101, "{calls} calls");
    }

    proptest! {
        /// Whatever happens between the looks: only the same head at three looks wakes, or something due at many looks; and
        /// a head that stays wakes within its bound.
        #[test]
        fn only_what_may_be_unclaimed_wakes_and_what_is_always_does(
            steps in prop::collection::vec((0_u8..4, prop::bool::weighted(0.3), prop::bool::weighted(0.2)), 1..60),
        ) {
            let mut bench = Bench::new();
            let mut heads = Vec::new();
            let last = |heads: &[Option<(u8, u32)>], n: usize| heads.len().checked_sub(n).map(|from| heads[from..].to_vec());
            for (n, (member, mutated, claimed)) in steps.into_iter().enumerate() {
                if mutated {
                    bench.schedule.insert(member, u32::try_from(n).unwrap_or_default());
                }
                if claimed && let Some(seen) = look(&bench.schedule, None) {
                    bench.schedule.remove(&seen.head.0);
                }
                heads.push(look(&bench.schedule, None).map(|seen| seen.head));
                if bench.wakes() {
                    let unchanged = last(&heads, UNCHANGED as usize)
                        .is_some_and(|heads| heads.iter().all(|head| head.is_some() && *head == heads[0]));
                    let unclaimed = last(&heads, UNCLAIMED as usize).is_some_and(|heads| heads.iter().all(Option::is_some));
                    prop_assert!(unchanged || unclaimed, "{heads:?}");
                    return Ok(());
                }
            }
            bench.schedule.clear();
            bench.schedule.insert(9, 0);
            let mut looks = 0;
            while !bench.wakes() {
                looks += 1;
                prop_assert!(looks < UNCHANGED, "no worker claims it");
            }
        }
    }
}
