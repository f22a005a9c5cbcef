//! By how much two clocks differ, as far as a question and its answer can show it.

use std::time::Duration;

/// By how much this host's clock is ahead of another one, in milliseconds; negative = behind. `read` is what the other one showed
/// at some moment between `begun`, by this host's clock, and `took` later. As little as is compatible with that: what can be due to
/// the way there and back counts as none.
#[must_use]
pub fn clock_offset_ms(begun: f64, took: Duration, read: f64) -> i64 {
    let half = took.as_secs_f64() / 2.0;
    let offset = begun + half - read;
    (offset.signum() * (offset.abs() - half).max(0.0) * 1e3).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_the_way_of_the_question_explains_is_none() {
        let took = Duration::from_millis(400);
        for (read, offset) in
            [(100.2, 0), (100.0, 0), (100.4, 0), (102.4, -2_000), (98.0, 2_000), (103.9, -3_500)]
        {
            assert_eq!(clock_offset_ms(100.0, took, read), offset, "{read}");
        }
    }
}
