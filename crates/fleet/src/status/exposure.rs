//! The exposure of a tenant: for how long the oldest balance has waited whose last mutation only Redis has; and its p99 over the
//! last hour.
//!
//! What is due was looked at by the sampler. What its collector holds, and what that has put off, has the score of a lease or a delay:
//! since when it waits is kept here. What a worker before this one had claimed shows by leases that are older than this one's service.
//!
//! The exposure is sampled once a second. Its p99 over an hour is what it exceeded in 36 of 3,600 seconds, so the 37 longest
//! samples of each slot are all that has to be kept: the result is exact, and the room for it bounded. The hour is made of slots of
//! five minutes, the current one among them: between 55 and 60 minutes are looked at.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use balance_sync_schedule::{Claim, Claimed};
use tokio::time::Instant;

use super::put_off::{ClaimedAt, PutOff};

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

/// What a tenant's collector, and those before it, have claimed and not settled.
#[derive(Debug, Default)]
pub struct Exposure {
    claims: Mutex<Claims>,
    /// For how long the oldest lease had run that another worker took before this one served the tenant, when the schedule was last
    /// sampled, in milliseconds.
    inherited_ms: AtomicU64,
    /// Nothing as long as nothing was exposed.
    hour: Mutex<Option<Box<ExposureHour>>>,
}

#[derive(Debug, Default)]
struct Claims {
    /// Since when the oldest member has waited that the collector holds.
    held_since: Option<Instant>,
    last: Option<ClaimedAt>,
    /// Nothing as long as nothing was put off.
    put_off: Option<Box<PutOff>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Exposure {
    /// Whether nothing waits.
    pub(super) fn is_none(&self) -> bool {
        let claims = lock(&self.claims);
        claims.held_since.is_none() && claims.put_off.is_none() && self.inherited_ms.load(Relaxed) == 0
    }

    /// For how long the oldest member has waited that is claimed or put off.
    pub(super) fn age(&self) -> Duration {
        let claims = lock(&self.claims);
        let put_off = claims.put_off.as_ref().and_then(|put_off| put_off.since());
        let since = claims.held_since.into_iter().chain(put_off).min();
        let age = since.map(|since| since.elapsed()).unwrap_or_default();
        age.max(Duration::from_millis(self.inherited_ms.load(Relaxed)))
    }

    /// Since when the oldest member has waited that the collector has claimed and not settled; `None` = it holds none.
    pub(crate) fn show_held_since(&self, since: Option<Instant>) {
        lock(&self.claims).held_since = since;
    }

    /// The collector holds what a claim brought; returns since when the oldest of it has waited.
    pub(crate) fn claimed(&self, claim: &Claim, claim_ttl: Duration) -> Option<Instant> {
        if claim.entries.is_empty() {
            return None;
        }
        let now = ClaimedAt { at: Instant::now(), redis: claim.now, claim_ttl };
        let mut claims = lock(&self.claims);
        claims.last = Some(now);
        let known = claims.put_off.as_mut().and_then(|put_off| put_off.claimed(&claim.entries));
        let scores = claim.entries.iter().filter_map(|entry| entry.waits_since(claim_ttl));
        let oldest = now.moment(scores.fold(claim.now, f64::min));
        Some(known.map_or(oldest, |known| known.min(oldest)))
    }

    /// These stay unwritten, and are due again then, by Redis's clock in seconds; `None` = when their leases lapse.
    pub(crate) fn put_off<'a>(&self, members: impl Iterator<Item = &'a Claimed>, due: Option<f64>) {
        let mut members = members.peekable();
        let mut claims = lock(&self.claims);
        if let (Some(_), Some(last)) = (members.peek(), claims.last) {
            let due = due.map_or_else(|| Instant::now() + last.claim_ttl, |due| last.moment(due));
            claims.put_off.get_or_insert_default().put_off(members, due, last);
        }
    }

    /// The collector has ended. What it still held has leases that have to lapse.
    pub(crate) fn ended(&self) {
        let mut claims = lock(&self.claims);
        claims.held_since = None;
        let claim_ttl = claims.last.map(|last| last.claim_ttl).unwrap_or_default();
        if let Some(put_off) = claims.put_off.as_mut() {
            put_off.ended(Instant::now() + claim_ttl);
        }
    }

    /// The collector holds these no longer.
    pub(crate) fn landed(&self, members: &[Claimed]) {
        self.forget(|put_off| put_off.landed(members));
    }

    fn forget(&self, some: impl FnOnce(&mut PutOff)) {
        let mut claims = lock(&self.claims);
        if let Some(put_off) = claims.put_off.as_mut() {
            some(put_off);
            claims.put_off.take_if(|put_off| put_off.is_empty());
        }
    }

    /// What a look at the schedule shows: for how long the oldest member had been due, and for how long the oldest lease had run
    /// that can't be this worker's.
    pub fn sampled(&self, oldest_due_age: Duration, inherited: Option<Duration>) {
        let inherited = inherited.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        self.inherited_ms.store(inherited, Relaxed);
        if let Some(moment) = Instant::now().checked_sub(oldest_due_age) {
            self.forget(|put_off| put_off.none_due_before(moment));
        }
    }

    /// Takes in the exposure of one second; `at` counts from any fixed moment.
    pub(super) fn sample(&self, at: Duration, age: Duration) {
        let mut hour = lock(&self.hour);
        if hour.is_some() || !age.is_zero() {
            let samples = hour.get_or_insert_default();
            samples.sample(at, age);
            if samples.is_empty() {
                *hour = None;
            }
        }
    }

    /// What it exceeded in 36 seconds of the last hour in which this worker served the tenant.
    pub(super) fn p99(&self) -> Duration {
        lock(&self.hour).as_ref().map(|hour| hour.p99()).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn keeps_no_hour(&self) -> bool {
        lock(&self.hour).is_none()
    }
}

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
