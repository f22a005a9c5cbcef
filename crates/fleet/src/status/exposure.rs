//! The p99 of the exposure over the last hour.
//!
//! The exposure is sampled once a second. Its p99 over an hour is what it exceeded in 36 of 3,600 seconds, so the 37 longest
//! samples of each slot are all that has to be kept: the result is exact, and the room for it bounded. The hour is made of slots of
//! five minutes, the current one among them: between 55 and 60 minutes are looked at.

use std::{collections::VecDeque, time::Duration};

/// Samples that may exceed the p99 of an hour: one in a hundred of 3,600.
const ALLOWED: usize = 36;
/// Samples kept of a slot, the longest.
const KEPT: usize = ALLOWED + 1;
/// Length of a slot.
const SLOT_SECONDS: u64 = 300;
/// Slots that make the hour.
const SLOTS: u64 = 12;
/// Shorter samples are not kept: they are a healthy tenant's, and no objective is as short.
const FLOOR: Duration = Duration::from_millis(10);

/// The longest samples of the last hour. At most 1.8 kB; nothing for a tenant of which nothing waits.
#[derive(Debug, Default)]
pub struct ExposureHour {
    /// By number, the oldest first; those in which nothing was exposed are missing.
    slots: VecDeque<(u64, Vec<u32>)>,
}

impl ExposureHour {
    /// Takes in the exposure of one second; `at` counts from any fixed moment.
    pub fn sample(&mut self, at: Duration, exposure: Duration) {
        let number = at.as_secs() / SLOT_SECONDS;
        while self.slots.front().is_some_and(|(slot, _)| slot + SLOTS <= number) {
            self.slots.pop_front();
        }
        if exposure < FLOOR {
            return;
        }
        let millis = u32::try_from(exposure.as_millis()).unwrap_or(u32::MAX);
        if self.slots.back().is_none_or(|(slot, _)| *slot != number) {
            self.slots.push_back((number, Vec::new()));
        }
        let Some((_, longest)) = self.slots.back_mut() else { return };
        let place = longest.partition_point(|known| *known >= millis);
        if place < KEPT {
            longest.truncate(KEPT - 1);
            longest.insert(place, millis);
        }
    }

    /// What the exposure exceeded in 36 seconds of the hour. Seconds without a sample count as not exposed.
    #[must_use]
    pub fn p99(&self) -> Duration {
        let mut all: Vec<u32> = self.slots.iter().flat_map(|(_, longest)| longest).copied().collect();
        if all.len() <= ALLOWED {
            return Duration::ZERO;
        }
        let (_, nth, _) = all.select_nth_unstable_by(ALLOWED, |a, b| b.cmp(a));
        Duration::from_millis(u64::from(*nth))
    }

    /// Whether nothing is kept any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn thirty_six_seconds_of_an_hour_are_within_the_objective_and_one_more_is_not() {
        let mut hour = ExposureHour::default();
        for second in 0..36 {
            hour.sample(secs(second * 90), secs(60));
        }
        hour.sample(secs(3_590), Duration::from_millis(40));
        assert_eq!(hour.p99(), Duration::from_millis(40));
        hour.sample(secs(3_591), secs(2));
        assert_eq!(hour.p99(), secs(2));
    }

    #[test]
    fn an_outage_leaves_the_hour_and_its_room_is_given_back() {
        let mut hour = ExposureHour::default();
        for second in 0..100 {
            hour.sample(secs(second), secs(second));
        }
        assert_eq!(hour.p99(), secs(63), "the 37th longest");
        hour.sample(secs(3_599), Duration::ZERO);
        assert_eq!(hour.p99(), secs(63));
        hour.sample(secs(3_600), Duration::ZERO);
        assert_eq!(hour.p99(), Duration::ZERO);
        assert!(hour.is_empty());
    }

    proptest! {
        #[test]
        fn the_p99_is_that_of_all_samples_whatever_is_left_out(
            samples in vec(0_u64..5_000, 0..1_500),
        ) {
            let mut hour = ExposureHour::default();
            for (second, millis) in samples.iter().enumerate() {
                hour.sample(secs(second as u64 * 2), Duration::from_millis(*millis));
            }
            let mut sorted: Vec<u64> = samples.iter().copied().filter(|millis| *millis >= 10).collect();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            let expected = sorted.get(ALLOWED).copied().unwrap_or_default();
            prop_assert_eq!(hour.p99(), Duration::from_millis(expected));
            prop_assert!(hour.slots.iter().all(|(_, longest)| longest.len() <= KEPT));
        }
    }
}
