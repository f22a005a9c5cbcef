//! Since when members have waited that were claimed and stay unwritten: put off, or held by a lease that has to lapse.
//!
//! Their scores are those of leases and delays, so Redis no longer has the time of the mutation. Without this their age would begin
//! anew each time they are put off.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use balance_sync_schedule::Claimed;
use tokio::time::Instant;

/// Members remembered one by one; the others as if they were one.
const REMEMBERED: usize = 4096;
/// What is known of the schedule may be so old: a claim may have taken a member meanwhile, and its answer be on its way.
const SAMPLE_MARGIN: Duration = Duration::from_secs(10);

/// What the last claim tells of the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClaimedAt {
    pub(super) at: Instant,
    /// By Redis's clock, in seconds since 1970.
    pub(super) redis: f64,
    /// How long a claim holds.
    pub(super) claim_ttl: Duration,
}

impl ClaimedAt {
    /// The local moment at which Redis's clock shows this time.
    pub(super) fn moment(self, redis: f64) -> Instant {
        match Duration::try_from_secs_f64(redis - self.redis) {
            Ok(ahead) => self.at + ahead,
            Err(_) => {
                let ago = Duration::try_from_secs_f64(self.redis - redis).unwrap_or_default();
                self.at.checked_sub(ago).unwrap_or(self.at)
            }
        }
    }

    /// Since when a member has waited, as far as its score tells.
    pub(super) fn since(self, member: &Claimed) -> Instant {
        self.moment(member.waits_since(self.claim_ttl).map_or(self.redis, |since| since.min(self.redis)))
    }
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    since: Instant,
    /// When it is due again, if it is still scheduled.
    due: Instant,
    /// The collector has claimed it, and accounts for it.
    claimed: bool,
}

/// Members that are not written and not due.
#[derive(Debug, Default)]
pub(super) struct PutOff {
    members: HashMap<u64, Waiting>,
    /// Those beyond [`REMEMBERED`]: since when the oldest has waited, when the last is due.
    others: Option<Waiting>,
}

impl PutOff {
    /// These have been claimed. Returns since when the oldest of those has waited that were put off before.
    pub(super) fn claimed(&mut self, members: &[Claimed]) -> Option<Instant> {
        let mut oldest: Option<Instant> = None;
        for member in members {
            if let Some(waiting) = self.members.get_mut(&hash(member)) {
                waiting.claimed = true;
                oldest = Some(oldest.map_or(waiting.since, |oldest| oldest.min(waiting.since)));
            }
        }
        oldest
    }

    /// These stay unwritten, and are due again then.
    pub(super) fn put_off<'a>(
        &mut self,
        members: impl Iterator<Item = &'a Claimed>,
        due: Instant,
        clock: ClaimedAt,
    ) {
        for member in members {
            let since = clock.since(member);
            let waiting = Waiting { since, due, claimed: false };
            let key = hash(member);
            if let Some(known) = self.members.get_mut(&key) {
                *known = Waiting { since: known.since.min(since), ..waiting };
            } else if self.members.len() < REMEMBERED {
                self.members.insert(key, waiting);
            } else {
                let others = self.others.get_or_insert(waiting);
                (others.since, others.due) = (others.since.min(since), others.due.max(due));
            }
        }
    }

    /// The collector holds these no longer: those that were not put off again have been settled.
    pub(super) fn landed(&mut self, members: &[Claimed]) {
        for member in members {
            let key = hash(member);
            if self.members.get(&key).is_some_and(|waiting| waiting.claimed) {
                self.members.remove(&key);
            }
        }
    }

    /// What the collector held is due again then.
    pub(super) fn ended(&mut self, due: Instant) {
        for waiting in self.members.values_mut().filter(|waiting| waiting.claimed) {
            (waiting.claimed, waiting.due) = (false, due);
        }
    }

    /// Whatever was due in the schedule has been so since this moment at the earliest: what should have been before has left it.
    pub(super) fn none_due_before(&mut self, moment: Instant) {
        self.members.retain(|_, waiting| waiting.claimed || waiting.due + SAMPLE_MARGIN >= moment);
        self.others = self.others.filter(|others| others.due + SAMPLE_MARGIN >= moment);
    }

    /// Since when the oldest has waited that the collector doesn't hold.
    pub(super) fn since(&self) -> Option<Instant> {
        let members = self.members.values().filter(|waiting| !waiting.claimed);
        members.chain(&self.others).map(|waiting| waiting.since).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.others.is_none()
    }
}

fn hash(member: &Claimed) -> u64 {
    let mut hasher = DefaultHasher::new();
    (member.schedule, &member.member).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn claimed(n: usize, former: &str) -> Claimed {
        Claimed {
            member: format!("member {n}").into_bytes(),
            lease: "1.5".into(),
            leased: 0,
            schedule: 0,
            former: former.to_owned(),
            value: None,
            unreadable: None,
        }
    }

    /// Of a schedule that is at 1,000 s by Redis's clock.
    fn begin() -> (ClaimedAt, PutOff) {
        (ClaimedAt { at: Instant::now(), redis: 1_000.0, claim_ttl: 30 * SECOND }, PutOff::default())
    }

    fn ago(clock: ClaimedAt, waiting: &PutOff) -> Option<u64> {
        waiting.since().map(|since| (clock.at - since).as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_waits_since_its_mutation_however_often_it_is_put_off() {
        let (clock, mut waiting) = begin();
        let later = clock.at + 60 * SECOND;
        waiting.put_off([claimed(1, "900"), claimed(2, "950")].iter(), later, clock);
        assert_eq!(ago(clock, &waiting), Some(100));
        let again = [claimed(1, "1060.0000005"), claimed(2, "1060.0000005")];
        assert_eq!(waiting.claimed(&again).map(|since| (clock.at - since).as_secs()), Some(100));
        assert_eq!(ago(clock, &waiting), None, "the collector accounts for them");
        waiting.put_off([claimed(1, "1060.0000005")].iter(), later, clock);
        waiting.landed(&again);
        assert_eq!(ago(clock, &waiting), Some(100));
        waiting.claimed(&again);
        waiting.landed(&again);
        assert!(waiting.is_empty(), "both are settled");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_lapsed_tells_when_it_began() {
        let (clock, mut waiting) = begin();
        waiting.put_off([claimed(1, "990.0000005")].iter(), clock.at, clock);
        assert_eq!(ago(clock, &waiting), Some(39));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_collector_held_when_it_ended_waits_until_its_leases_have_lapsed() {
        let (clock, mut waiting) = begin();
        let member = [claimed(1, "940")];
        waiting.put_off(member.iter(), clock.at, clock);
        waiting.claimed(&member);
        waiting.ended(clock.at + 30 * SECOND);
        waiting.none_due_before(clock.at + 35 * SECOND);
        assert_eq!(ago(clock, &waiting), Some(60));
        waiting.none_due_before(clock.at + 60 * SECOND);
        assert!(waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_due_when_it_should_be_has_left_the_schedule() {
        let (clock, mut waiting) = begin();
        let due = clock.moment(1_060.0);
        waiting.put_off([claimed(1, "990")].iter(), due, clock);
        waiting.none_due_before(due + SAMPLE_MARGIN);
        assert_eq!(ago(clock, &waiting), Some(10));
        waiting.none_due_before(due + SAMPLE_MARGIN + SECOND);
        assert!(waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn more_members_than_are_remembered_count_as_one() {
        let (clock, mut waiting) = begin();
        let due = clock.at + 60 * SECOND;
        let many: Vec<_> = (0..REMEMBERED).map(|n| claimed(n, "999")).collect();
        waiting.put_off(many.iter(), due, clock);
        waiting.put_off([claimed(REMEMBERED, "500")].iter(), due, clock);
        waiting.put_off([claimed(REMEMBERED + 1, "998")].iter(), due + 60 * SECOND, clock);
        assert_eq!((waiting.members.len(), ago(clock, &waiting)), (REMEMBERED, Some(500)));
        waiting.claimed(&many);
        waiting.landed(&many);
        waiting.none_due_before(due + 30 * SECOND);
        assert_eq!(ago(clock, &waiting), Some(500), "the last of the others is not due yet");
        waiting.none_due_before(due + 120 * SECOND);
        assert!(waiting.is_empty());
    }
}
