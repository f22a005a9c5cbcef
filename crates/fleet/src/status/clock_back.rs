//! Redis's clock, when it has gone back.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::wall_clock;

/// For how long a jump is shown.
const SHOWN_FOR: Duration = Duration::from_secs(600);

/// A jump.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClockJump {
    /// By how much the clock went back, in seconds.
    pub seconds: f64,
    /// When the worker noticed it, by its own clock, in seconds since 1970.
    pub at: f64,
}

/// What one worker has seen of it.
#[derive(Debug, Default)]
pub struct ClockBack(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    jumps: u64,
    back: Duration,
    last: Option<(ClockJump, Instant)>,
}

impl ClockBack {
    /// It went back by so much.
    pub fn went_back(&self, by: Duration) {
        let mut seen = self.lock();
        seen.jumps += 1;
        seen.back += by;
        seen.last = Some((ClockJump { seconds: by.as_secs_f64(), at: wall_clock() }, Instant::now()));
    }

    /// How often it went back, and by how much altogether.
    #[must_use]
    pub fn totals(&self) -> (u64, Duration) {
        let seen = self.lock();
        (seen.jumps, seen.back)
    }

    /// The last jump, for some minutes.
    #[must_use]
    pub fn lately(&self) -> Option<ClockJump> {
        self.lock().last.filter(|(_, at)| at.elapsed() < SHOWN_FOR).map(|(jump, _)| jump)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // At worst a sum is outdated after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_jump_is_shown_for_some_minutes_and_counted_for_ever() {
        let clock = ClockBack::default();
        assert_eq!((clock.totals(), clock.lately()), ((0, Duration::ZERO), None));
        clock.went_back(Duration::from_secs(3_600));
        clock.went_back(Duration::from_secs(5));
        assert_eq!(clock.lately().map(|jump| jump.seconds), Some(5.0));
        tokio::time::advance(SHOWN_FOR).await;
        assert_eq!((clock.totals(), clock.lately()), ((2, Duration::from_secs(3_605)), None));
    }
}
