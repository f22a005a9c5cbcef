//! Delays after failures, with seeds of their own for [`balance_sync_engine::backoff`].

use std::time::Duration;

use balance_sync_engine::backoff::{Backoff as Growing, Jitter};

/// A growing delay. Each step doubles the last one up to the cap.
#[derive(Debug)]
pub struct Backoff {
    growing: Growing,
    jitter: Jitter,
}

impl Backoff {
    /// Delays from `min` to `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { growing: Growing::new(min, max), jitter: jitter() }
    }

    /// Forgets past failures.
    pub fn reset(&mut self) {
        self.growing.reset();
    }

    /// Counts a failure and returns the delay before the next try: between half of the step and the whole.
    pub fn next_delay(&mut self) -> Duration {
        self.growing.next_delay(&mut self.jitter)
    }
}

/// A delay between half of this one and the whole.
#[must_use]
pub fn jittered(delay: Duration) -> Duration {
    jitter().spread(delay)
}

fn jitter() -> Jitter {
    Jitter::new(rand::random())
}
