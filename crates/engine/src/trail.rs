//! When the ledger's trail of operations counts as complete for a balance whose value is gone.
//!
//! The ledger writes an operation after its mutation, and later still when Postgres was away. So a row that is as new as the
//! newest operation proves nothing at first. It does when it has been found so again and again for as long as the grace: the
//! mutation is older than the first look, and no failure has kept the ledger from writing in between. A worker notices a
//! failure only when it asks, so it asks a few times within the grace; an outage that falls between two looks is short. Looks that are
//! further apart, as when a connection had to be waited for, prove nothing together: it begins anew. A restart
//! between two looks shows by the start of the server. One that refuses writes is a failure, although it answers.
//!
//! The age of a mutation by its score would not do. It is not known once a claim has lapsed, and after a long outage an old
//! mutation may still wait for its operation.
//!
//! A member is put off between two looks. The score under which it is has no other origin, so it shows at the next look
//! that nothing has happened to the member since. What one worker has put off, another looks at anew. So two workers that share
//! a tenant need some 30 looks until one of them has looked five times in a row, unless the trail shows a loss before.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Looks at a member within the grace, after the first.
const LOOKS: u32 = 4;
/// Two looks are so many times the planned distance apart at most.
const APART: u32 = 2;
/// Most members that are remembered. Others are put off until there is room.
const REMEMBERED: usize = 10_000;
/// Members are forgotten when they have not been looked at again within so many times the grace.
const FORGOTTEN_AFTER: u32 = 8;

/// What is known of a member.
#[derive(Debug, Clone, Copy)]
struct Looks {
    /// When Postgres was asked first, of the looks that count.
    first: Instant,
    /// When it was asked last.
    last: Instant,
    /// The score under which the member was put off then.
    due: f64,
}

/// What a tenant's collector remembers of members whose values are gone. `K` names a member.
#[derive(Debug)]
pub struct TrailWatch<K> {
    grace: Duration,
    apart: Duration,
    looks: HashMap<K, Looks>,
    failed_at: Option<Instant>,
    /// When the server was started that answered last, by its own account.
    server: Option<String>,
}

impl<K: Hash + Eq> TrailWatch<K> {
    /// `grace`: how long after a mutation, or after an outage, its operation may still be on its way. Zero = no wait.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, apart: APART * grace / LOOKS, looks: HashMap::new(), failed_at: None, server: None }
    }

    /// The same, but looks prove something together however far apart they are. The simulator shows what the bound is for.
    #[must_use]
    pub fn without_bound(grace: Duration) -> Self {
        Self { apart: Duration::MAX, ..Self::new(grace) }
    }

    /// How long the trail must have been as it is.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// For how long a member is put off for its next look.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.grace / LOOKS
    }

    /// The tenant can't be synced: its Postgres may be away for the ledger as well.
    pub fn failed(&mut self, now: Instant) {
        self.failed_at = self.failed_at.max(Some(now));
    }

    /// A server answered that was started then. If it is not the one of the last look, the ledger could not write in between.
    pub fn answered(&mut self, started: &str, asked: Instant) {
        if self.server.as_deref() == Some(started) {
            return;
        }
        if self.server.replace(started.to_owned()).is_some() {
            self.failed(asked);
        }
    }

    /// Whether a row as new as the trail settles this member, claimed with this former score. Postgres was asked at `asked`.
    pub fn is_complete<Q>(&self, member: &Q, former: f64, asked: Instant) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        // Redis measured the delays: its clock may run faster by a little.
        let enough = self.grace - self.grace / 16;
        let first = self.unchanged_since(member, former, asked);
        self.grace.is_zero() || first.is_some_and(|first| asked.saturating_duration_since(first) >= enough)
    }

    /// A member claimed with this former score was put off and is due at this one. Postgres was asked at `asked`.
    pub fn put_off(&mut self, member: K, former: f64, due: f64, asked: Instant) {
        if self.looks.len() >= REMEMBERED {
            let oldest = FORGOTTEN_AFTER * self.grace;
            self.looks.retain(|_, looks| asked.saturating_duration_since(looks.last) < oldest);
        }
        if self.looks.len() < REMEMBERED || self.looks.contains_key(&member) {
            let first = self.unchanged_since(&member, former, asked).unwrap_or(asked);
            self.looks.insert(member, Looks { first, last: asked, due });
        }
    }

    /// How many members wait for their operations at this moment, and for how long that holds without another look at them; `None` =
    /// none does. One that has not been looked at again within the grace doesn't wait any more: others have settled or removed it.
    #[must_use]
    pub fn waiting(&self, now: Instant) -> Option<(u64, Duration)> {
        let left = |looks: &Looks| self.grace.checked_sub(now.saturating_duration_since(looks.last));
        let left = self.looks.values().filter_map(left).filter(|left| !left.is_zero());
        left.map(|left| (1, left)).reduce(|(count, longest), (one, left)| (count + one, left.max(longest)))
    }

    /// Whether nothing is remembered of any member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.looks.is_empty()
    }

    /// A member is decided, or has a value.
    pub fn forget<Q>(&mut self, member: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.looks.remove(member);
    }

    /// The first of the looks since which nothing has happened to a member, and nothing failed.
    fn unchanged_since<Q>(&self, member: &Q, former: f64, asked: Instant) -> Option<Instant>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let looks = self.looks.get(member).filter(|looks| looks.due == former)?;
        if asked.saturating_duration_since(looks.last) > self.apart {
            return None;
        }
        self.failed_at.is_none_or(|failed| failed < looks.last).then_some(looks.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Looks at member 1, which was put off with this score at `from`, as often as planned until before `to`; returns its score then.
    fn looked(trail: &mut TrailWatch<i32>, due: f64, from: Instant, to: Instant) -> f64 {
        let (mut due, mut asked) = (due, from + trail.delay());
        while asked < to {
            assert!(!trail.is_complete(&1, due, asked), "too soon");
            trail.put_off(1, due, due + 15.0, asked);
            (due, asked) = (due + 15.0, asked + trail.delay());
        }
        due
    }

    #[test]
    fn a_member_is_looked_at_until_the_grace_is_over() {
        let (mut trail, begun) = (TrailWatch::new(GRACE), Instant::now());
        assert!(!trail.is_complete(&1, 5.5, begun));
        trail.put_off(1, 5.5, 15.5, begun);
        for look in 1..4 {
            let asked = begun + look * trail.delay();
            let due = 0.5 + 15.0 * f64::from(look);
            assert!(!trail.is_complete(&1, due, asked), "look {look}");
            trail.put_off(1, due, due + 15.0, asked);
        }
        assert!(trail.is_complete(&1, 60.5, begun + GRACE));
        assert!(!trail.is_complete(&1, 60.5, begun + secs(50)), "Redis's clock has jumped");
        assert!(
            !trail.is_complete(&1, 70.0, begun + GRACE),
            "mutated again, or claimed by a worker meanwhile"
        );
        assert!(!trail.is_complete(&2, 60.5, begun + GRACE));
        trail.forget(&1);
        assert!(!trail.is_complete(&1, 60.5, begun + GRACE));
    }

    #[test]
    fn a_mutation_between_two_looks_makes_the_former_ones_worthless() {
        let (mut trail, begun) = (TrailWatch::new(GRACE), Instant::now());
        trail.put_off(1, 5.5, 15.5, begun);
        trail.put_off(1, 12.25, 30.5, begun + secs(15));
        let due = looked(&mut trail, 30.5, begun + secs(15), begun + secs(75));
        assert!(!trail.is_complete(&1, due, begun + GRACE));
        assert!(trail.is_complete(&1, due, begun + secs(75)));
    }

    #[test]
    fn looks_that_are_far_apart_prove_nothing_together() {
        let (mut trail, begun) = (TrailWatch::new(GRACE), Instant::now());
        trail.put_off(1, 5.5, 15.5, begun);
        // An outage of half a minute may have passed unnoticed meanwhile.
        assert!(!trail.is_complete(&1, 15.5, begun + GRACE));
        trail.put_off(1, 15.5, 75.5, begun + secs(31));
        let due = looked(&mut trail, 75.5, begun + secs(31), begun + secs(91));
        assert!(trail.is_complete(&1, due, begun + secs(91)));
        assert!(!trail.is_complete(&1, due, begun + secs(86)), "counted from the later look");
    }

    #[test]
    fn a_failure_between_two_looks_makes_the_former_ones_worthless() {
        let (mut trail, begun) = (TrailWatch::new(GRACE), Instant::now());
        trail.failed(begun);
        trail.put_off(1, 5.5, 15.5, begun + secs(1));
        let due = looked(&mut trail, 15.5, begun + secs(1), begun + secs(61));
        assert!(trail.is_complete(&1, due, begun + secs(61)));
        trail.failed(begun + secs(50));
        assert!(!trail.is_complete(&1, due, begun + secs(61)));
        trail.put_off(1, due, 76.5, begun + secs(61));
        let due = looked(&mut trail, 76.5, begun + secs(61), begun + secs(121));
        assert!(trail.is_complete(&1, due, begun + secs(121)), "counted from the look after the failure");
    }

    #[test]
    fn a_restart_between_two_looks_makes_the_former_ones_worthless() {
        let (mut trail, begun) = (TrailWatch::new(GRACE), Instant::now());
        trail.answered("noon", begun);
        trail.put_off(1, 5.5, 15.5, begun);
        let due = looked(&mut trail, 15.5, begun, begun + GRACE);
        trail.answered("noon", begun + GRACE);
        assert!(trail.is_complete(&1, due, begun + GRACE));
        trail.answered("one", begun + GRACE);
        assert!(!trail.is_complete(&1, due, begun + GRACE));
        trail.put_off(1, due, 75.5, begun + secs(61));
        let due = looked(&mut trail, 75.5, begun + secs(61), begun + secs(121));
        trail.answered("one", begun + secs(121));
        assert!(trail.is_complete(&1, due, begun + secs(121)));
    }

    #[test]
    fn a_member_waits_from_its_first_look_until_it_is_decided_or_others_have_settled_it() {
        let (mut trail, begun) = (TrailWatch::new(GRACE), Instant::now());
        assert_eq!(trail.waiting(begun), None);
        trail.put_off(1, 5.5, 15.5, begun);
        trail.put_off(2, 5.5, 15.5, begun);
        trail.put_off(1, 15.5, 30.5, begun + secs(15));
        assert_eq!(trail.waiting(begun + secs(15)), Some((2, GRACE)));
        assert_eq!(
            trail.waiting(begun + secs(60)),
            Some((1, secs(15))),
            "nobody looked at the other one again"
        );
        trail.forget(&1);
        assert_eq!(trail.waiting(begun + secs(15)), Some((1, secs(45))));
        assert_eq!(trail.waiting(begun + secs(75)), None);
    }

    #[test]
    fn without_a_grace_one_look_is_enough() {
        let trail = TrailWatch::<u32>::new(Duration::ZERO);
        assert!(trail.is_complete(&1, 5.5, Instant::now()));
    }

    #[test]
    fn it_remembers_so_many_and_has_room_again_for_those_that_come_later() {
        let (mut trail, begun) = (TrailWatch::new(GRACE), Instant::now());
        for member in 0..=REMEMBERED {
            trail.put_off(member, 5.5, 65.5, begun);
        }
        assert!(trail.looks.contains_key(&0) && !trail.looks.contains_key(&REMEMBERED), "there was no room");
        trail.forget(&0);
        trail.put_off(REMEMBERED, 65.5, 125.5, begun + GRACE);
        assert!(trail.looks.contains_key(&REMEMBERED));
        trail.put_off(0, 5.5, 545.5, begun + 8 * GRACE);
        assert_eq!(trail.looks.len(), 2, "those that were not looked at again are forgotten");
    }
}
