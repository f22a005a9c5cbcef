//! Delays after failures: growing, capped, with jitter, so that a thousand tenants of one dead server don't come
//! back in the same millisecond.

use std::time::Duration;

/// A stream of pseudo-random numbers that is fixed by its seed (SplitMix64). Good enough to spread delays, and no more.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A delay between half of this one and the whole.
    pub fn spread(&mut self, delay: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // 53 bits are what a double holds exactly.
        let unit = (mixed >> 11) as f64 / (1_u64 << 53) as f64;
        delay.mul_f64(0.5 + 0.5 * unit)
    }
}

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

    /// Counts a failure and returns the delay before the next try: between half of the step and the whole.
    pub fn next_delay(&mut self, jitter: &mut Jitter) -> Duration {
        let step = self
            .min
            .saturating_mul(1_u32.checked_shl(self.failures.min(20)).unwrap_or(u32::MAX))
            .min(self.max);
        self.failures = self.failures.saturating_add(1);
        jitter.spread(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_stay_within_jitter_and_under_the_cap() {
        let mut jitter = Jitter::new(1);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        for step in [100, 200, 400, 800, 1600, 2000, 2000] {
            let delay = backoff.next_delay(&mut jitter);
            assert!(delay >= Duration::from_millis(step / 2), "{delay:?} below half of {step} ms");
            assert!(delay <= Duration::from_millis(step), "{delay:?} above {step} ms");
        }
        backoff.reset();
        assert!(backoff.next_delay(&mut jitter) <= Duration::from_millis(100));
    }

    #[test]
    fn many_failures_do_not_overflow() {
        let mut jitter = Jitter::new(2);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for _ in 0..100 {
            assert!(backoff.next_delay(&mut jitter) <= Duration::from_secs(60));
        }
    }

    #[test]
    fn jitter_covers_the_whole_range_and_repeats_with_its_seed() {
        let second = Duration::from_secs(1);
        let stream = |seed| {
            let mut jitter = Jitter::new(seed);
            (0..1000).map(move |_| jitter.spread(second)).collect::<Vec<_>>()
        };
        let delays = stream(7);
        let in_range = |from: u64, to: u64| {
            let range = Duration::from_millis(from)..=Duration::from_millis(to);
            delays.iter().filter(|delay| range.contains(*delay)).count()
        };
        assert_eq!(in_range(500, 1000), 1000);
        for from in (500..1000).step_by(100) {
            assert!(
                in_range(from, from + 100) > 150,
                "{} between {from} and {} ms",
                in_range(from, from + 100),
                from + 100
            );
        }
        assert_eq!(delays, stream(7));
        assert_ne!(delays, stream(8));
    }
}
