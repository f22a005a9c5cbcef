//! Whether Redis's clock has gone back: between two looks less time has passed by it than by the clock of this process, which never
//! goes back.

use std::time::{Duration, Instant};

/// A clock that was set right by less is no jump: it is slewed like that, and a look may have waited for its answer.
const TOLERANCE: Duration = Duration::from_secs(1);

/// What one worker remembers of Redis's clock.
#[derive(Debug, Clone, Default)]
pub struct ClockWatch {
    /// Redis's time at the last look, in seconds since 1970, and when the answer had come.
    last: Option<(f64, Instant)>,
}

impl ClockWatch {
    /// Redis's time was asked for at `begun`, and the answer came at `answered`. Returns by how much the clock has gone back.
    pub fn looked(&mut self, begun: Instant, answered: Instant, time: f64) -> Option<Duration> {
        let (before, then) = self.last.replace((time, answered))?;
        // At least so much has passed between the two readings.
        let passed = begun.saturating_duration_since(then).as_secs_f64();
        let back = Duration::try_from_secs_f64(before + passed - time).ok()?;
        (back > TOLERANCE).then_some(back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_goes_back_is_a_jump() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let mut watch = ClockWatch::default();
        let mut looked = |at: u32, took: u32, time: f64| {
            let begun = begun + at * second;
            watch.looked(begun, begun + took * second, time).map(|back| back.as_secs_f64().round())
        };
        assert_eq!(looked(0, 0, 1_000.0), None, "nothing is known before");
        assert_eq!(looked(2, 0, 1_002.0), None);
        assert_eq!(looked(4, 0, 1_003.2), None, "slewed");
        assert_eq!(looked(6, 0, 2_005.0), None, "forwards");
        assert_eq!(looked(8, 0, 1_007.0), Some(1_000.0));
        assert_eq!(looked(10, 0, 1_009.0), None, "once");
        // Read at the beginning of a call whose answer came late, and at the end of the next one.
        assert_eq!(looked(12, 30, 1_011.0), None);
        assert_eq!(looked(44, 5, 1_048.0), None);
        assert_eq!(looked(51, 0, 1_045.0), Some(5.0));
    }
}
