//! Circuit breaker in front of the tenant service: a pure state machine that is told the time.
//!
//! *Closed*: requests pass. After `threshold` consecutive failures *open*: none pass, for `timeout`. Then
//! *half-open*: one passes as a probe; its success closes the breaker, its failure opens it again.
//!
//! Who is to blame counts: a tenant whose own configuration makes the service fail again and again must not
//! cut off the others, so failures blamed on one tenant count once until something succeeds ([`Blame`]).

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::tenant::Tenant;

/// How soon to ask again while a probe is under way; the breaker's own timeout if that is shorter.
const PROBE_RETRY: Duration = Duration::from_secs(1);

/// What a failure says something about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blame {
    /// The service as a whole: no connection, or the list failed.
    Service,
    /// Perhaps only this tenant: the service answered, but badly, about it.
    Tenant(Tenant),
}

/// Leave to make one request; its result is reported with it. Results of a former state are known by the
/// epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    epoch: u64,
}

/// What the breaker does with requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// They pass.
    #[default]
    Closed,
    /// One passes, as a probe.
    HalfOpen,
    /// None passes until its time is over, or until somebody asks after it.
    Open,
}

impl BreakerState {
    /// All of them, for metrics.
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// Short, stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// The state machine. Not thread-safe by itself.
#[derive(Debug)]
pub struct Breaker {
    threshold: u32,
    timeout: Duration,
    epoch: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Closed { failures: u32, blamed: HashSet<Tenant> },
    Open { until: Instant },
    HalfOpen { probing: bool },
}

impl State {
    fn closed() -> Self {
        Self::Closed { failures: 0, blamed: HashSet::new() }
    }
}

impl Breaker {
    /// A closed breaker. A `threshold` of 0 switches it off: it never opens.
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
            self.turn(State::HalfOpen { probing: false });
        }
        match &mut self.state {
            State::HalfOpen { probing: true } => Err(PROBE_RETRY.min(self.timeout)),
            State::HalfOpen { probing } => {
                *probing = true;
                Ok(Admission { epoch: self.epoch })
            }
            _ => Ok(Admission { epoch: self.epoch }),
        }
    }

    /// The service answered properly.
    pub fn success(&mut self, admission: Admission) {
        if self.is_current(admission) {
            match &mut self.state {
                State::Closed { failures, blamed } => {
                    *failures = 0;
                    blamed.clear();
                }
                _ => self.turn(State::closed()),
            }
        }
    }

    /// The service failed. Returns whether this opened the breaker.
    pub fn failure(&mut self, admission: Admission, blame: Blame, now: Instant) -> bool {
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
        self.turn(State::Open { until: now + self.timeout });
        true
    }

    /// The request was given up without a result: a probe's place becomes free again.
    pub fn abandon(&mut self, admission: Admission) {
        if self.is_current(admission)
            && let State::HalfOpen { probing } = &mut self.state
        {
            *probing = false;
        }
    }

    /// Whether requests are held back (open, or waiting for a probe).
    pub fn is_open(&self) -> bool {
        self.state() != BreakerState::Closed
    }

    /// The state, without what belongs to it.
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    fn is_current(&self, admission: Admission) -> bool {
        admission.epoch == self.epoch
    }

    /// Each change of state starts an epoch, so that what was admitted before can't decide anything after.
    fn turn(&mut self, state: State) {
        self.epoch += 1;
        self.state = state;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balance_sync_domain::TenantId;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn fail(breaker: &mut Breaker, now: Instant) -> bool {
        let admission = breaker.admit(now).unwrap();
        breaker.failure(admission, Blame::Service, now)
    }

    fn tenant(id: &str) -> Blame {
        Blame::Tenant(Tenant::Id(TenantId::parse(id).unwrap()))
    }

    fn opened(now: Instant) -> Breaker {
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
}
