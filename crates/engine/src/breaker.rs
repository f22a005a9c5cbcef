//! Circuit breaker in front of the tenant service.
//!
//! *Closed*: requests pass. After `threshold` consecutive failures *open*: none pass, for `timeout`. Then
//! *half-open*: one passes as a probe; its success closes the breaker, its failure opens it again.
//!
//! Who is to blame counts: a tenant whose own configuration makes the service fail again and again must not
//! cut off the others, so failures blamed on one tenant count once until something succeeds ([`Blame`]).
//!
//! `T` is whatever names a tenant.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::names;

/// How soon to ask again while a probe is under way; the breaker's own timeout if that is shorter.
const PROBE_RETRY: Duration = Duration::from_secs(1);

/// What a failure says something about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blame<T> {
    /// The service as a whole: no connection, or the list failed.
    Service,
    /// Perhaps only this tenant: the service answered, but badly, about it.
    Tenant(T),
}

/// Leave to make one request; its result is reported with it. Results of a former state are known by the
/// epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    epoch: u64,
}

names! {
    /// What the breaker does with requests.
    #[derive(Default)]
    pub enum BreakerState {
        /// They pass.
        #[default]
        Closed = "closed",
        /// One passes, as a probe.
        HalfOpen = "half_open",
        /// None passes until its time is over.
        Open = "open",
    }
}

/// The breaker.
#[derive(Debug)]
pub struct Breaker<T> {
    threshold: u32,
    timeout: Duration,
    epoch: u64,
    state: State<T>,
}

#[derive(Debug)]
enum State<T> {
    Closed {
        failures: u32,
        blamed: BTreeSet<T>,
    },
    Open {
        until: Instant,
    },
    /// The next request is the probe.
    HalfOpen,
    /// The probe is under way.
    Probing,
}

impl<T> State<T> {
    fn closed() -> Self {
        Self::Closed { failures: 0, blamed: BTreeSet::new() }
    }
}

impl<T: Ord> Breaker<T> {
    /// A closed breaker. A `threshold` of 0 switches it off: it never opens.
    #[must_use]
    pub fn new(threshold: u32, timeout: Duration) -> Self {
        Self { threshold, timeout, epoch: 0, state: State::closed() }
    }

    /// Whether a request may be made now.
    ///
    /// # Errors
    /// The time after which it is worth asking again.
    pub fn admit(&mut self, now: Instant) -> Result<Admission, Duration> {
        if let State::Open { until } = self.state {
            let left = until.saturating_duration_since(now);
            if !left.is_zero() {
                return Err(left);
            }
            self.change(State::HalfOpen);
        }
        match self.state {
            State::Probing => return Err(PROBE_RETRY.min(self.timeout)),
            // Not another epoch: the probe is what this one is for.
            State::HalfOpen => self.state = State::Probing,
            State::Closed { .. } | State::Open { .. } => {}
        }
        Ok(Admission { epoch: self.epoch })
    }

    /// The service answered properly.
    pub fn success(&mut self, admission: Admission) {
        if self.is_current(admission) {
            match &mut self.state {
                State::Closed { failures, blamed } => {
                    *failures = 0;
                    blamed.clear();
                }
                _ => self.change(State::closed()),
            }
        }
    }

    /// The service failed. Returns whether this opened the breaker.
    pub fn failure(&mut self, admission: Admission, blame: Blame<T>, now: Instant) -> bool {
        if !self.is_current(admission) || self.threshold == 0 {
            return false;
        }
        if let State::Closed { failures, blamed } = &mut self.state {
            let counts = match blame {
                Blame::Service => true,
                Blame::Tenant(tenant) => blamed.insert(tenant),
            };
            *failures += u32::from(counts);
            if *failures < self.threshold {
                return false;
            }
        }
        self.change(State::Open { until: now + self.timeout });
        true
    }

    /// The request was given up without a result: a probe's place becomes free again.
    pub fn abandon(&mut self, admission: Admission) {
        if self.is_current(admission) && matches!(self.state, State::Probing) {
            self.state = State::HalfOpen;
        }
    }

    /// Whether requests are held back (open, or waiting for a probe).
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state() != BreakerState::Closed
    }

    /// The state, without what belongs to it.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen | State::Probing => BreakerState::HalfOpen,
        }
    }

    fn is_current(&self, admission: Admission) -> bool {
        admission.epoch == self.epoch
    }

    /// Each change of state starts an epoch, so that what was admitted before can't decide anything after.
    fn change(&mut self, state: State<T>) {
        self.epoch += 1;
        self.state = state;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn fail(breaker: &mut Breaker<&'static str>, now: Instant) -> bool {
        let admission = breaker.admit(now).unwrap();
        breaker.failure(admission, Blame::Service, now)
    }

    fn tenant(id: &'static str) -> Blame<&'static str> {
        Blame::Tenant(id)
    }

    fn opened(now: Instant) -> Breaker<&'static str> {
        let mut breaker = Breaker::new(3, TIMEOUT);
        assert!(!fail(&mut breaker, now));
        assert!(!fail(&mut breaker, now));
        assert!(fail(&mut breaker, now));
        breaker
    }

    #[test]
    fn opens_after_the_threshold_and_says_for_how_long() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.is_open());
        assert_eq!(breaker.admit(now), Err(TIMEOUT));
        assert_eq!(breaker.admit(now + Duration::from_secs(29)), Err(Duration::from_secs(1)));
    }

    #[test]
    fn only_consecutive_failures_count() {
        let now = Instant::now();
        let mut breaker = Breaker::new(3, TIMEOUT);
        for _ in 0..10 {
            assert!(!fail(&mut breaker, now));
            assert!(!fail(&mut breaker, now));
            let admission = breaker.admit(now).unwrap();
            breaker.success(admission);
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn half_open_lets_one_probe_through() {
        let start = Instant::now();
        let mut breaker = opened(start);
        let now = start + TIMEOUT;
        let probe = breaker.admit(now).unwrap();
        assert_eq!(breaker.admit(now), Err(PROBE_RETRY));
        assert_eq!(breaker.admit(now + TIMEOUT * 5), Err(PROBE_RETRY), "however long the probe takes");
        breaker.success(probe);
        assert!(!breaker.is_open());
        assert!(breaker.admit(now).is_ok() && breaker.admit(now).is_ok());
        assert!(!fail(&mut breaker, now), "the count starts afresh");
    }

    #[test]
    fn a_failed_probe_opens_it_for_another_timeout() {
        let start = Instant::now();
        let mut breaker = opened(start);
        let now = start + TIMEOUT;
        let probe = breaker.admit(now).unwrap();
        assert!(breaker.failure(probe, tenant("a"), now));
        assert_eq!(breaker.admit(now), Err(TIMEOUT));
        assert!(breaker.admit(now + TIMEOUT).is_ok());
    }

    #[test]
    fn an_abandoned_probe_frees_its_place() {
        let start = Instant::now();
        let mut breaker = opened(start);
        let now = start + TIMEOUT;
        let probe = breaker.admit(now).unwrap();
        breaker.abandon(probe);
        assert!(breaker.admit(now).is_ok());
    }

    #[test]
    fn late_results_decide_nothing() {
        let start = Instant::now();
        let mut breaker = Breaker::new(1, TIMEOUT);
        let (late_good, late_bad, late_gone) =
            (breaker.admit(start).unwrap(), breaker.admit(start).unwrap(), breaker.admit(start).unwrap());
        assert!(fail(&mut breaker, start));
        breaker.success(late_good);
        assert!(breaker.is_open(), "a success from before doesn't close it");
        assert!(!breaker.failure(late_bad, Blame::Service, start + TIMEOUT / 2));
        let _probe = breaker.admit(start + TIMEOUT).unwrap();
        breaker.abandon(late_gone);
        assert!(breaker.admit(start + TIMEOUT).is_err(), "an old request doesn't free the probe's place");
    }

    #[test]
    fn one_tenant_alone_never_opens_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new(3, TIMEOUT);
        for _ in 0..100 {
            let admission = breaker.admit(now).unwrap();
            assert!(!breaker.failure(admission, tenant("poison"), now));
        }
        let admission = breaker.admit(now).unwrap();
        assert!(!breaker.failure(admission, tenant("second"), now));
        let admission = breaker.admit(now).unwrap();
        assert!(breaker.failure(admission, tenant("third"), now), "but many tenants do");
    }

    #[test]
    fn a_threshold_of_zero_switches_it_off() {
        let now = Instant::now();
        let mut breaker = Breaker::new(0, TIMEOUT);
        assert!((0..100).all(|_| !fail(&mut breaker, now)));
        assert!(!breaker.is_open());
    }

    /// What happens to a breaker, and to the requests that it let through: by their place among those under way.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Request,
        Success(prop::sample::Index),
        Failure(prop::sample::Index, Option<u8>),
        Abandon(prop::sample::Index),
        Pass(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            4 => Just(Event::Request),
            2 => index().prop_map(Event::Success),
            4 => (index(), prop::option::of(0_u8..3)).prop_map(|(at, tenant)| Event::Failure(at, tenant)),
            1 => index().prop_map(Event::Abandon),
            2 => (0_u64..40_000).prop_map(Event::Pass),
        ]
    }

    proptest! {
        /// In any order of requests and results: while it isn't closed at most one request of the present epoch is under
        /// way, none passes before its time, and it never stays shut when the probe came to an end.
        #[test]
        fn at_most_one_probe_and_never_shut_for_ever(
            threshold in 1_u32..4, events in prop::collection::vec(event(), 1..80),
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::<u8>::new(threshold, TIMEOUT);
            let mut under_way: Vec<Admission> = Vec::new();
            let mut opened_at = now;
            for event in events {
                let before = breaker.state();
                match event {
                    Event::Request => match breaker.admit(now) {
                        Ok(admission) => {
                            if before == BreakerState::Open {
                                prop_assert!(now >= opened_at + TIMEOUT);
                            }
                            under_way.push(admission);
                        }
                        Err(retry) => {
                            prop_assert!(before != BreakerState::Closed);
                            prop_assert!(!retry.is_zero() && retry <= TIMEOUT);
                        }
                    },
                    Event::Pass(millis) => now += Duration::from_millis(millis),
                    Event::Success(_) | Event::Failure(..) | Event::Abandon(_) if under_way.is_empty() => {}
                    Event::Success(at) => breaker.success(under_way.swap_remove(at.index(under_way.len()))),
                    Event::Failure(at, tenant) => {
                        let admission = under_way.swap_remove(at.index(under_way.len()));
                        let blame = tenant.map_or(Blame::Service, Blame::Tenant);
                        if breaker.failure(admission, blame, now) {
                            prop_assert_eq!(breaker.state(), BreakerState::Open);
                            opened_at = now;
                        }
                    }
                    Event::Abandon(at) => breaker.abandon(under_way.swap_remove(at.index(under_way.len()))),
                }
                if breaker.state() != BreakerState::Closed {
                    let current = under_way.iter().filter(|admission| breaker.is_current(**admission)).count();
                    prop_assert!(current <= 1, "{current} probes");
                }
            }
            for admission in under_way {
                breaker.abandon(admission);
            }
            prop_assert!(breaker.admit(now + TIMEOUT).is_ok());
        }
    }
}
