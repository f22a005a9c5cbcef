//! Pace: how soon the next flush of a calm tenant may follow the last one.
//!
//! Few mutations come to a calm tenant, and waiting for more of them only makes those that are there late. So they are written as
//! soon as no other flush is under way, and a while after the last one began: a multiple of what a flush takes, so that a tenant
//! keeps a connection busy for a small share of its time, and writes seldomer where the server is slow or shared by many. Where many
//! mutations come, waiting for them makes each cheaper and joins those of one balance: there size and time decide alone.

use std::time::{Duration, Instant};

use crate::names;

/// A tenant with more members than these in the shortest time between two flushes is not calm.
const CALM: f64 = 16.0;
/// Of what a flush takes, each new one counts for one part in so many.
const SMOOTHING: u32 = 4;

names! {
    /// What a flush waits for (`collector.profile`).
    pub enum Profile {
        /// As little as possible: for few tenants, on servers with room.
        Fresh = "fresh",
        /// A calm tenant's mutations wait for some milliseconds.
        Balanced = "balanced",
        /// Size and time alone: the fewest commits.
        Frugal = "frugal",
    }
}

impl Profile {
    /// The shortest time between the beginnings of two flushes, and how many times what a flush takes it is at least.
    fn spacing(self) -> Option<(Duration, u32)> {
        match self {
            Self::Fresh => Some((Duration::from_millis(5), 2)),
            Self::Balanced => Some((Duration::from_millis(15), 4)),
            Self::Frugal => None,
        }
    }
}

/// When flushes began, and what they took.
#[derive(Debug)]
pub(super) struct Pace {
    profile: Profile,
    /// No pace is slower than this.
    flush_timeout: Duration,
    last: Option<Instant>,
    took: Duration,
    is_calm: bool,
}

impl Pace {
    pub(super) fn new(profile: Profile, flush_timeout: Duration) -> Self {
        Self { profile, flush_timeout, last: None, took: Duration::ZERO, is_calm: true }
    }

    /// From when on a calm tenant's members may be written; `None` = they wait for size and time.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let (shortest, times) = self.profile.spacing().filter(|_| self.is_calm)?;
        let Some(last) = self.last else { return Some(now) };
        Some(last + (self.took * times).max(shortest).min(self.flush_timeout))
    }

    /// A flush of so many members begins.
    pub(super) fn begun(&mut self, now: Instant, members: usize) {
        let Some((shortest, _)) = self.profile.spacing() else { return };
        // After a pause all may have come in the last moment.
        let since = self.last.map_or(self.flush_timeout, |last| now.saturating_duration_since(last));
        let since = since.min(self.flush_timeout).max(shortest.min(self.flush_timeout));
        let expected = members as f64 * shortest.as_secs_f64() / since.as_secs_f64().max(f64::MIN_POSITIVE);
        self.is_calm = expected <= CALM;
        self.last = Some(now);
    }

    /// A flush has ended.
    pub(super) fn ended(&mut self, took: Duration) {
        // One that hung says nothing about the next, and could not count for more.
        let took = took.min(self.flush_timeout);
        self.took = if self.took.is_zero() { took } else { (self.took * (SMOOTHING - 1) + took) / SMOOTHING };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(50);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_first_members_are_written_at_once_and_the_next_ones_a_while_later() {
        let now = Instant::now();
        let mut pace = Pace::new(Profile::Balanced, TIMEOUT);
        assert_eq!(pace.next(now), Some(now));
        pace.begun(now, 1);
        assert_eq!(pace.next(now), Some(now + ms(15)));
        let mut pace = Pace::new(Profile::Fresh, TIMEOUT);
        pace.begun(now, 1);
        assert_eq!(pace.next(now), Some(now + ms(5)));
    }

    #[test]
    fn where_flushes_take_long_they_are_seldomer_down_to_the_flush_timeout() {
        let now = Instant::now();
        let mut pace = Pace::new(Profile::Balanced, TIMEOUT);
        pace.begun(now, 1);
        pace.ended(ms(8));
        assert_eq!(pace.next(now), Some(now + ms(32)));
        for _ in 0..20 {
            pace.ended(Duration::from_secs(10));
        }
        assert_eq!(pace.next(now), Some(now + TIMEOUT));
        for _ in 0..20 {
            pace.ended(ms(2));
        }
        assert_eq!(pace.next(now), Some(now + ms(15)));
    }

    #[test]
    fn where_many_come_size_and_time_decide() {
        let start = Instant::now();
        let mut pace = Pace::new(Profile::Balanced, TIMEOUT);
        pace.begun(start, 1);
        // 16 in 15 ms are calm, whatever the time between two flushes; 17 are not.
        pace.begun(start + ms(15), 16);
        assert!(pace.next(start).is_some());
        pace.begun(start + ms(45), 34);
        assert_eq!(pace.next(start), None);
        pace.begun(start + ms(75), 32);
        assert!(pace.next(start).is_some());
        // After a pause a burst may have come in a moment.
        pace.begun(start + Duration::from_secs(60), 54);
        assert_eq!(pace.next(start), None);
    }

    #[test]
    fn the_frugal_profile_waits_for_size_and_time() {
        let now = Instant::now();
        let mut pace = Pace::new(Profile::Frugal, TIMEOUT);
        assert_eq!(pace.next(now), None);
        pace.begun(now, 1);
        assert_eq!(pace.next(now), None);
    }
}
