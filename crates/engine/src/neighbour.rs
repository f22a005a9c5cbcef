//! The ledger's own worker beside ours, of one tenant: whether it is active, quiet or parked, whether it removes balances unwritten,
//! and whether claims take its locks (`claim.mode = "auto"`).
//!
//! It can't be asked. Three signs show it: a claim lock of its kind ([`Sign::Lock`]; the lock's remaining life says when it was taken);
//! members that leave the schedule, written, although no worker of ours has removed them ([`Sign::Left`]); and members that leave it
//! unwritten ([`Sign::Dropped`]), because a release up to 4.0 unlocks what it drops within a millisecond. The last two are
//! weak: another worker of the fleet may have taken over for a moment, and an operator may have removed a member. They count only if they
//! come again.
//!
//! That nothing is seen says something only while there is something to be seen. So silence is counted in *looks*: moments at which
//! members were due and their locks were looked at, at least a twentieth of the quiet time apart.
//!
//! What is known of a tenant is shared in Redis by the workers that serve it one after the other. All times are by Redis's clock, in
//! seconds since 1970; 0 = never. Records of two workers are [merged](Neighbour::merge); the order doesn't matter.

use std::time::Duration;

use balance_sync_domain::names;
use serde::{Deserialize, Serialize};

/// Members that left count as a sign from the third time on …
const LEFT_TIMES: u32 = 3;
/// … within so many seconds.
const LEFT_WITHIN: f64 = 60.0;
/// Members that were dropped count as a sign of their own from the second time on …
const DROPPED_TIMES: u32 = 2;
/// … within so many seconds.
const DROPPED_WITHIN: f64 = 600.0;
/// A value in a format of ledgers from 4.1 on says for so many seconds that such are written.
const NEWER_FOR: f64 = 600.0;
/// It counts as active for this part of the quiet time after it was seen last.
const ACTIVE_PART: f64 = 0.25;
/// Looks are counted if they are at least this part of the quiet time apart.
const LOOK_PART: f64 = 0.05;
/// Silence needs so many of them.
const LOOKS: u64 = 5;
/// When no worker has watched for so many seconds, the silence before says nothing.
const WATCH_GAP: f64 = 300.0;
/// Dropped balances that are named.
pub const EXAMPLES: usize = 10;
/// Characters of each of them.
const EXAMPLE_LENGTH: usize = 300;

/// How it is parked, for people.
pub const HOW_TO_PARK: &str = "park it: BALANCE_SYNC_BATCH_SIZE=1 and BALANCE_SYNC_FLUSH_TIMEOUT_MS=2147483647 on the ledger's pods, or as a hard \
     stop the rights in Redis of docs/operations.md, \"The ledger's own worker\"";

names! {
    /// By what the ledger's own worker was noticed.
    pub enum Sign {
        /// A claim lock of its kind.
        Lock = "lock",
        /// Members left the schedule, written, and no worker of ours has removed them.
        Left = "left",
        /// Members left the schedule, unwritten, next to writers whose values a release up to 4.0 can't read.
        Dropped = "dropped",
    }
}

names! {
    /// Whether the ledger's own worker works on a tenant.
    pub enum Presence {
        /// There was too little to be seen yet.
        Unknown = "unknown",
        /// It was never seen, although there was something to be seen.
        NotSeen = "not_seen",
        /// It was seen lately.
        Active = "active",
        /// It was seen before, and not lately.
        Quiet = "quiet",
        /// It has been quiet for long enough, although there was something to be seen.
        Parked = "parked",
    }
}

/// What is known of the ledger's own worker, of one tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Neighbour {
    /// Since when workers of ours have watched without a gap.
    pub watched_from: f64,
    /// When one did last.
    pub watched_at: f64,
    /// The last look that was counted.
    pub looked_at: f64,
    /// Looks since it was seen last, or since the watch began.
    pub looks: u64,
    /// Since when it has been active, as far as it is, or was last.
    pub active_from: f64,
    /// When it was seen last.
    pub seen_at: f64,
    /// By what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign: Option<Sign>,
    /// When a value in a format of ledgers from 4.1 on was seen last.
    pub newer_at: f64,
    /// Balances that were found out of the schedule, unwritten, while it was active.
    pub dropped: u64,
    /// When the last of them was found.
    pub dropped_at: f64,
    /// Some of the last ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
    /// How often members have left lately. Each worker's own.
    #[serde(skip)]
    left: u32,
    #[serde(skip)]
    left_at: f64,
    /// How often members were dropped lately while it was not known to be there. Each worker's own.
    #[serde(skip)]
    drops: u32,
    #[serde(skip)]
    dropped_first_at: f64,
}

impl Neighbour {
    /// A worker of ours watches.
    pub fn watched(&mut self, now: f64) {
        if self.watched_from == 0.0 || now - self.watched_at > WATCH_GAP {
            self.watched_from = now;
            self.looks = 0;
        }
        self.watched_at = self.watched_at.max(now);
    }

    /// Members were due, and their locks were looked at. `locked_at` = when the newest lock of its kind was taken, if there was any.
    pub fn looked(&mut self, now: f64, locked_at: Option<f64>, quiet: Duration) {
        self.watched(now);
        if let Some(at) = locked_at {
            self.seen(at.min(now), Sign::Lock, quiet);
        }
        if self.seen_at + quiet.as_secs_f64() * LOOK_PART <= now
            && now - self.looked_at >= quiet.as_secs_f64() * LOOK_PART
        {
            self.looked_at = now;
            self.looks += 1;
        }
    }

    /// Members have left the schedule, and their rows are written, although no worker of ours has removed them.
    pub fn left(&mut self, now: f64, quiet: Duration) {
        self.watched(now);
        self.left = if now - self.left_at <= LEFT_WITHIN { self.left + 1 } else { 1 };
        self.left_at = now;
        if self.left >= LEFT_TIMES {
            self.seen(now, Sign::Left, quiet);
        }
    }

    fn seen(&mut self, at: f64, sign: Sign, quiet: Duration) {
        if at <= self.seen_at {
            return;
        }
        if self.seen_at == 0.0 || at - self.seen_at >= quiet.as_secs_f64() * ACTIVE_PART {
            self.active_from = at;
        }
        self.seen_at = at;
        self.sign = Some(sign);
        self.looks = 0;
    }

    /// A value in a format of ledgers from 4.1 on was seen.
    pub fn newer_format(&mut self, now: f64) {
        self.newer_at = self.newer_at.max(now);
    }

    /// Balances were found out of the schedule, unwritten. Returns whether that is put down to it: it was seen before, or writers of
    /// newer releases are at work and it is not the first time.
    pub fn dropped(
        &mut self,
        now: f64,
        members: impl ExactSizeIterator<Item = String>,
        quiet: Duration,
    ) -> bool {
        if members.len() == 0 {
            return false;
        }
        // What is found a while after it fell silent is still of that time.
        let is_there = matches!(self.presence(now, quiet), Presence::Active | Presence::Quiet);
        if !is_there {
            if now - self.dropped_first_at > DROPPED_WITHIN {
                (self.drops, self.dropped_first_at) = (0, now);
            }
            self.drops += 1;
            if self.drops < DROPPED_TIMES || !self.writes_newer(now) {
                return false;
            }
        }
        if self.writes_newer(now) {
            self.seen(now, Sign::Dropped, quiet);
        }
        self.dropped += members.len() as u64;
        self.dropped_at = now;
        let mut examples: Vec<String> =
            members.take(EXAMPLES).map(|member| member.chars().take(EXAMPLE_LENGTH).collect()).collect();
        let room = EXAMPLES - examples.len();
        examples.extend(std::mem::take(&mut self.examples).into_iter().take(room));
        self.examples = examples;
        true
    }

    /// Whether it works on the tenant.
    #[must_use]
    pub fn presence(&self, now: f64, quiet: Duration) -> Presence {
        if self.seen_at == 0.0 {
            return if self.looks >= LOOKS { Presence::NotSeen } else { Presence::Unknown };
        }
        if now - self.seen_at < quiet.as_secs_f64() * ACTIVE_PART {
            Presence::Active
        } else if self.is_settled(now, quiet) {
            Presence::Parked
        } else {
            Presence::Quiet
        }
    }

    /// Whether claims of mode `auto` take its locks: until it has been quiet for so long, with something to be seen.
    #[must_use]
    pub fn takes_locks(&self, now: f64, quiet: Duration) -> bool {
        !self.is_settled(now, quiet)
    }

    fn is_settled(&self, now: f64, quiet: Duration) -> bool {
        let from = self.seen_at.max(self.watched_from);
        from > 0.0 && now - from >= quiet.as_secs_f64() && self.looks >= LOOKS
    }

    /// Whether it is of a release up to 4.0 next to writers of 4.1 and later: it removes their values unwritten.
    #[must_use]
    pub fn is_deadly_mix(&self, now: f64, quiet: Duration) -> bool {
        self.dropped > 0
            && self.newer_at > 0.0
            && matches!(self.presence(now, quiet), Presence::Active | Presence::Quiet)
    }

    /// Whether values are written that a worker of a release up to 4.0 would remove.
    #[must_use]
    pub fn writes_newer(&self, now: f64) -> bool {
        self.newer_at > 0.0 && now - self.newer_at < NEWER_FOR
    }

    /// Whether values are written that a worker of a release up to 4.0 would remove, and it is active: members that leave have to be
    /// followed.
    #[must_use]
    pub fn may_drop(&self, now: f64, quiet: Duration) -> bool {
        self.writes_newer(now) && self.presence(now, quiet) == Presence::Active
    }

    /// Takes in what another worker knows.
    pub fn merge(&mut self, other: &Self) {
        let is_continued = |before: &Self, after: &Self| {
            before.watched_from > 0.0 && after.watched_from - before.watched_at <= WATCH_GAP
        };
        let looks = match self.seen_at.total_cmp(&other.seen_at) {
            std::cmp::Ordering::Less => other.looks,
            std::cmp::Ordering::Equal => self.looks.max(other.looks),
            std::cmp::Ordering::Greater => self.looks,
        };
        if other.watched_from > 0.0 {
            let [earlier, later] = if other.watched_from < self.watched_from || self.watched_from == 0.0 {
                [other, &*self]
            } else {
                [&*self, other]
            };
            let from = match () {
                () if later.watched_from == 0.0 || is_continued(earlier, later) => earlier.watched_from,
                () => later.watched_from,
            };
            // Looks from before a gap don't count.
            self.looks = if from == earlier.watched_from { looks } else { later.looks.min(looks) };
            self.watched_from = from;
            self.watched_at = self.watched_at.max(other.watched_at);
        }
        self.looked_at = self.looked_at.max(other.looked_at);
        if other.seen_at > self.seen_at {
            let overlaps = self.seen_at > 0.0 && self.seen_at >= other.active_from;
            self.active_from =
                if overlaps { self.active_from.min(other.active_from) } else { other.active_from };
            self.seen_at = other.seen_at;
            self.sign = other.sign;
        } else if other.seen_at > 0.0 && other.seen_at >= self.active_from {
            self.active_from = self.active_from.min(other.active_from);
        }
        self.newer_at = self.newer_at.max(other.newer_at);
        self.dropped = self.dropped.max(other.dropped);
        if other.dropped_at > self.dropped_at {
            self.dropped_at = other.dropped_at;
            self.examples = other.examples.iter().take(EXAMPLES).cloned().collect();
        }
    }

    /// Whether anything is known that is worth being shown or kept although claims don't depend on it.
    #[must_use]
    pub fn was_seen(&self) -> bool {
        self.seen_at > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(1200);

    /// Watched from `from` on, with a look every ten seconds until `to`.
    fn looks(one: &mut Neighbour, from: u32, to: u32) {
        for at in (from..=to).step_by(10) {
            one.looked(f64::from(at), None, QUIET);
        }
    }

    #[test]
    fn a_lock_shows_it_at_once_and_its_age_says_when() {
        let mut one = Neighbour::default();
        assert_eq!(one.presence(1000.0, QUIET), Presence::Unknown);
        one.looked(1000.0, Some(999.5), QUIET);
        assert_eq!((one.presence(1000.0, QUIET), one.sign), (Presence::Active, Some(Sign::Lock)));
        assert_eq!((one.active_from, one.seen_at), (999.5, 999.5));
        // A lock that a pod left behind nine minutes ago is no sign of today.
        let mut old = Neighbour::default();
        old.looked(1000.0, Some(460.0), QUIET);
        assert_eq!(old.presence(1000.0, QUIET), Presence::Quiet);
        // One that claims to be from the future is from now.
        let mut ahead = Neighbour::default();
        ahead.looked(1000.0, Some(5000.0), QUIET);
        assert_eq!(ahead.seen_at, 1000.0);
    }

    #[test]
    fn members_that_left_count_when_it_happens_again_and_again() {
        let mut one = Neighbour::default();
        one.left(1000.0, QUIET);
        one.left(1004.0, QUIET);
        assert!(!one.was_seen(), "another worker of the fleet may have taken over");
        // Longer than a minute apart it begins anew.
        one.left(1100.0, QUIET);
        one.left(1104.0, QUIET);
        assert!(!one.was_seen());
        one.left(1108.0, QUIET);
        assert_eq!((one.presence(1108.0, QUIET), one.sign), (Presence::Active, Some(Sign::Left)));
    }

    #[test]
    fn active_becomes_quiet_and_then_parked_if_there_was_something_to_be_seen() {
        let mut one = Neighbour::default();
        one.looked(1000.0, Some(1000.0), QUIET);
        one.looked(1100.0, Some(1100.0), QUIET);
        assert_eq!(one.active_from, 1000.0);
        assert_eq!(one.presence(1399.0, QUIET), Presence::Active);
        assert_eq!(one.presence(1400.0, QUIET), Presence::Quiet);
        assert_eq!(one.presence(9000.0, QUIET), Presence::Quiet, "nothing was due, so nothing could be seen");
        looks(&mut one, 1110, 2290);
        assert_eq!(one.presence(2299.0, QUIET), Presence::Quiet);
        assert_eq!(one.presence(2300.0, QUIET), Presence::Parked);
        // A returning tenant starts unparked.
        one.looked(2400.0, Some(2400.0), QUIET);
        assert_eq!((one.presence(2400.0, QUIET), one.active_from), (Presence::Active, 2400.0));
    }

    #[test]
    fn auto_begins_with_locks_and_goes_without_them_after_twenty_quiet_minutes() {
        let mut one = Neighbour::default();
        assert!(one.takes_locks(1000.0, QUIET), "nothing is known");
        looks(&mut one, 1000, 2190);
        assert!(one.takes_locks(2199.0, QUIET));
        assert!(!one.takes_locks(2200.0, QUIET));
        assert_eq!(one.presence(2200.0, QUIET), Presence::NotSeen);
        one.looked(2300.0, Some(2300.0), QUIET);
        assert!(one.takes_locks(2300.0, QUIET), "at once");
        looks(&mut one, 2310, 3490);
        assert!(one.takes_locks(3499.0, QUIET));
        assert!(!one.takes_locks(3500.0, QUIET));
        // An idle tenant shows nothing.
        let mut idle = Neighbour::default();
        idle.watched(1000.0);
        for at in (1000..9000).step_by(100) {
            idle.watched(f64::from(at));
        }
        idle.looked(9000.0, None, QUIET);
        assert!(idle.takes_locks(9000.0, QUIET));
        // Nor does a burst within a minute.
        for at in 9001..9050 {
            idle.looked(f64::from(at), None, QUIET);
        }
        assert!(idle.takes_locks(9050.0, QUIET));
    }

    #[test]
    fn silence_in_which_no_worker_watched_does_not_count() {
        let mut one = Neighbour::default();
        looks(&mut one, 1000, 2100);
        one.watched(5000.0);
        assert!(one.takes_locks(5000.0, QUIET));
        assert_eq!((one.watched_from, one.looks), (5000.0, 0));
        looks(&mut one, 5000, 6200);
        assert!(!one.takes_locks(6200.0, QUIET));
    }

    #[test]
    fn the_next_worker_goes_on_with_the_silence_of_the_one_before() {
        let mut first = Neighbour::default();
        looks(&mut first, 1000, 2190);
        let mut next = Neighbour::default();
        next.watched(2195.0);
        next.looked(2195.0, None, QUIET);
        next.merge(&first);
        assert!(!next.takes_locks(2200.0, QUIET));
        assert_eq!(next.watched_from, 1000.0);
        // One that comes an hour later begins anew, whatever it has seen meanwhile.
        let mut late = Neighbour::default();
        looks(&mut late, 5000, 5100);
        late.merge(&first);
        assert!(late.takes_locks(5100.0, QUIET));
        assert_eq!(late.watched_from, 5000.0);
    }

    #[test]
    fn merging_does_not_depend_on_the_order_and_the_last_sign_counts() {
        let (mut quiet, mut seen) = (Neighbour::default(), Neighbour::default());
        looks(&mut quiet, 1000, 2300);
        seen.looked(2250.0, Some(2249.0), QUIET);
        seen.newer_format(2250.0);
        assert!(seen.dropped(2251.0, ["a".to_owned()].into_iter(), QUIET));
        assert!(!quiet.takes_locks(2300.0, QUIET) && seen.takes_locks(2300.0, QUIET));
        let (mut one, mut other) = (quiet.clone(), seen.clone());
        one.merge(&seen);
        other.merge(&quiet);
        for merged in [&one, &other] {
            assert!(merged.takes_locks(2300.0, QUIET));
            assert!(merged.is_deadly_mix(2300.0, QUIET));
            assert_eq!((merged.watched_from, merged.looks), (1000.0, 0));
            assert_eq!(merged.examples, ["a"]);
        }
        let again = one.clone();
        one.merge(&again);
        assert_eq!(one, again);
    }

    #[test]
    fn of_a_record_nothing_is_lost_on_its_way_through_redis() {
        let mut one = Neighbour::default();
        one.looked(1000.0, Some(999.5), QUIET);
        let text = serde_json::to_string(&one).unwrap_or_default();
        assert_eq!(serde_json::from_str::<Neighbour>(&text).ok(), Some(one));
        assert!(serde_json::from_str::<Neighbour>("{}").is_ok_and(|empty| empty == Neighbour::default()));
    }

    #[test]
    fn the_deadly_mix_needs_a_worker_that_drops_and_writers_of_newer_formats() {
        let mut one = Neighbour::default();
        let member = || ["m".repeat(1000)].into_iter();
        assert!(!one.dropped(1000.0, member(), QUIET), "it was not there");
        assert!(!one.dropped(1000.0, member(), QUIET), "nor are there newer writers");
        one.looked(1000.0, Some(1000.0), QUIET);
        assert!(!one.may_drop(1000.0, QUIET));
        assert!(one.dropped(1001.0, member(), QUIET));
        assert!(!one.is_deadly_mix(1001.0, QUIET), "no value of 4.1 was seen");
        one.newer_format(1002.0);
        assert!(one.may_drop(1002.0, QUIET) && one.is_deadly_mix(1002.0, QUIET));
        assert_eq!(one.examples[0].len(), EXAMPLE_LENGTH);
        for _ in 0..EXAMPLES {
            one.dropped(1003.0, ["x".to_owned(), "y".to_owned()].into_iter(), QUIET);
        }
        assert_eq!((one.dropped, one.examples.len()), (21, EXAMPLES));
        // What drops members is there, whether its locks are seen or not: from the second time on.
        let mut unseen = Neighbour::default();
        unseen.newer_format(2000.0);
        assert!(!unseen.dropped(2001.0, member(), QUIET));
        assert!(!unseen.dropped(2702.0, member(), QUIET), "long after the first time");
        unseen.newer_format(2702.0);
        assert!(unseen.dropped(2703.0, member(), QUIET));
        assert_eq!((unseen.presence(2703.0, QUIET), unseen.sign), (Presence::Active, Some(Sign::Dropped)));
        assert!(unseen.is_deadly_mix(2703.0, QUIET));
        // Parked, it removes nothing any more.
        looks(&mut one, 1010, 2300);
        assert!(!one.is_deadly_mix(2300.0, QUIET));
    }
}
