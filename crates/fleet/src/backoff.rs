//! Delays after failures: growing, capped, with jitter, so that a thousand tenants of one dead server don't come
//! back in the same millisecond.

use std::time::Duration;

use rand::Rng;

/// A growing delay. Each step doubles the last one up to the cap.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays from `min` to `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), failures: 0 }
    }

    /// Forgets past failures.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last reset.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure and gives the delay before the next try: between half of the step and the whole.
    pub fn next_delay(&mut self) -> Duration {
        let step = self
            .min
            .saturating_mul(1_u32.checked_shl(self.failures.min(20)).unwrap_or(u32::MAX))
            .min(self.max);
        self.failures = self.failures.saturating_add(1);
        jittered(step)
    }
}

/// Somewhere between half of the delay and the whole.
#[must_use]
pub fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_stay_within_jitter_and_under_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        for step in [100, 200, 400, 800, 1600, 2000, 2000] {
            let delay = backoff.next_delay();
            assert!(delay >= Duration::from_millis(step / 2), "{delay:?} below half of {step} ms");
            assert!(delay <= Duration::from_millis(step), "{delay:?} above {step} ms");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }

    #[test]
    fn many_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for _ in 0..100 {
            assert!(backoff.next_delay() <= Duration::from_secs(60));
        }
    }
}
