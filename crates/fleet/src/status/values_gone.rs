//! Values of scheduled balances that are gone from Redis, while it is not known yet whether a mutation is lost with them.
//!
//! Two look for them. The collector finds them at the claim, and waits for the ledger's operations before it decides. The sampler finds
//! them in the schedule, also where nothing is claimed: of a paused tenant, or of one that can't be written.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::clock::wall_clock;

/// How many, and since when they are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gone {
    /// Values, at least.
    pub count: u64,
    /// By the wall clock, in seconds since 1970.
    pub since: f64,
}

/// What is known of a tenant.
#[derive(Debug, Default)]
pub struct ValuesGone(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Those found at claims, and until when that holds.
    claimed: Option<(u64, Instant)>,
    sampled: u64,
    since: Option<f64>,
}

impl Known {
    /// Both find the same ones.
    fn count(&self, now: Instant) -> u64 {
        self.claimed.filter(|(_, until)| *until > now).map_or(0, |(count, _)| count).max(self.sampled)
    }

    fn changed(&mut self, before: u64, now: Instant) {
        match self.count(now) {
            0 => self.since = None,
            _ if before == 0 => self.since = Some(wall_clock()),
            _ => {}
        }
    }
}

impl ValuesGone {
    /// So many were found at claims and are not decided yet, for so long if nothing else is found.
    pub(crate) fn show_claimed(&self, found: Option<(u64, Duration)>) {
        let now = Instant::now();
        let mut known = self.lock();
        let before = known.count(now);
        known.claimed = found.map(|(count, lasts)| (count, now + lasts));
        known.changed(before, now);
    }

    /// So many were found in the schedules.
    pub fn show_sampled(&self, count: u64) {
        let now = Instant::now();
        let mut known = self.lock();
        let before = known.count(now);
        known.sampled = count;
        known.changed(before, now);
    }

    /// What is known at this moment; `None` = none is gone.
    #[must_use]
    pub fn now(&self) -> Option<Gone> {
        let known = self.lock();
        let count = known.count(Instant::now());
        known.since.filter(|_| count > 0).map(|since| Gone { count, since })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // At worst a count is outdated after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_both_find_is_counted_once_and_a_claim_s_holds_for_its_time() {
        let gone = ValuesGone::default();
        let count = || gone.now().map(|gone| gone.count);
        assert_eq!(count(), None);
        gone.show_claimed(Some((2, Duration::from_secs(60))));
        gone.show_sampled(3);
        assert_eq!(count(), Some(3));
        gone.show_sampled(0);
        assert_eq!(count(), Some(2));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(count(), None);
        gone.show_sampled(1);
        gone.show_claimed(None);
        assert_eq!(count(), Some(1));
        gone.show_sampled(0);
        assert_eq!(gone.now(), None);
    }
}
