//! One tenant's open condition.
//!
//! It is compared twice: the values that Redis still has with the rows at once, and the rows with the ledger's operations when
//! these must have arrived. The ledger writes an operation after its mutation, so the second comparison waits for a grace in
//! which nothing has failed and nothing more has vanished. Whether something fails is looked at a few times within that grace: a
//! tenant with nothing to write wouldn't notice an outage. A Redis that never stops evicting delays it by a few times the grace;
//! then rows and operations are compared while it goes on, over and over, and the condition stays open.

use std::time::{Duration, Instant};

use crate::reason::Reason;

/// Looks at Postgres within the grace.
const LOOKS: u32 = 4;
/// Evictions that go on delay the second comparison by so many times the grace at most.
const PATIENCE: u32 = 4;

/// What comparisons found so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Values that were newer than their rows and not scheduled: scheduled again.
    pub rescheduled: u64,
    /// Values that were newer than their rows and scheduled already.
    pub scheduled: u64,
    /// Balances listed as lost.
    pub lost: u64,
    /// Rows that are newer than the value that Redis holds.
    pub rows_ahead: u64,
}

impl Found {
    /// Adds what another comparison found. Rows ahead are counted by each anew.
    #[must_use]
    pub fn and(self, more: Self) -> Self {
        Self {
            rescheduled: self.rescheduled + more.rescheduled,
            scheduled: self.scheduled.max(more.scheduled),
            lost: self.lost + more.lost,
            rows_ahead: more.rows_ahead,
        }
    }
}

/// What a comparison of rows and operations listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listed {
    /// Balances that lack operations and are listed as lost.
    pub lost: u64,
    /// Those among them that were listed since the condition is open, by whichever worker, and not before, for another reason.
    pub new: u64,
    /// Balances that lack operations and are scheduled with an older state, so that what is lost of them shows only when that is
    /// written.
    pub left: u64,
    /// Balances that lack operations, of which Postgres could not say in time what is lost.
    pub undecided: u64,
}

/// What is done about it at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Values and rows are being compared, or are yet to be.
    Values,
    /// The ledger's operations may still be on their way.
    Waiting,
    /// Rows and operations are being compared, or are yet to be.
    Operations,
    /// All is done that can be done; why it stays open.
    Held(String),
}

impl Phase {
    /// In words.
    #[must_use]
    pub fn describe(&self) -> &str {
        match self {
            Self::Values => "values and rows are being compared",
            Self::Waiting => "waiting for the ledger's operations",
            Self::Operations => "rows and operations are being compared",
            Self::Held(why) => why,
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing at present.
    Wait,
    /// Compare values and rows.
    Values,
    /// See whether the tenant's Postgres accepts writes, and whether it was restarted.
    Look,
    /// Compare rows and operations.
    Operations,
}

/// One tenant's open condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Episode {
    /// Which.
    pub reason: Reason,
    /// Members that are missing for certain.
    pub extent: u64,
    /// Since when, by the wall clock, in seconds since 1970. For people, and to bound which operations are read.
    pub since: f64,
    /// In words.
    pub detail: String,
    /// Whether data are missing for certain, and not only perhaps.
    pub is_loss: bool,
    /// Whether nothing but members of the schedule has vanished: Redis still has their values, so that the comparison of values
    /// meets each of them, scheduled or written.
    pub keeps_values: bool,
    found: Found,
    phase: Phase,
    not_before: Instant,
    grace: Duration,
    /// More has vanished since the values were compared.
    again: bool,
    /// When Postgres is looked at next.
    look_at: Instant,
    /// When the server was started that answered last, by its own account.
    server: Option<String>,
    /// Since when the operations are waited for.
    waits_since: Option<Instant>,
    /// Its entry was missing in Redis at the last look.
    missing: bool,
}

impl Episode {
    /// One that was noticed now. `grace`: how long after a mutation, or an outage, its operation may still be on its way.
    #[must_use]
    pub fn new(
        reason: Reason,
        extent: u64,
        is_loss: bool,
        since: f64,
        detail: String,
        now: Instant,
        grace: Duration,
    ) -> Self {
        Self {
            reason,
            extent,
            since,
            detail,
            is_loss,
            keeps_values: reason == Reason::RedisScheduleVanished,
            found: Found::default(),
            phase: Phase::Values,
            not_before: now,
            grace,
            again: false,
            look_at: now,
            server: None,
            waits_since: None,
            missing: false,
        }
    }

    /// One that another worker has begun with: what it had found.
    #[must_use]
    pub fn resumed(mut self, found: Found) -> Self {
        self.found = found;
        self
    }

    /// What the comparisons found.
    #[must_use]
    pub const fn found(&self) -> Found {
        self.found
    }

    /// What is done about it at present.
    #[must_use]
    pub const fn phase(&self) -> &Phase {
        &self.phase
    }

    /// More has vanished while it is open.
    pub fn merge(&mut self, more: Self, now: Instant) {
        self.extent += more.extent;
        // Keys that Redis throws away are what most often lies behind the others; these say more.
        if matches!(self.reason, Reason::RedisEvicted | Reason::RedisUnmarked)
            || more.reason == Reason::RedisDataReplaced
        {
            (self.reason, self.detail) = (more.reason, more.detail);
        }
        self.is_loss |= more.is_loss;
        self.keeps_values &= more.keeps_values;
        if more.reason == Reason::RedisEvicted && more.extent == 0 && self.phase == Phase::Waiting {
            // As long as Redis goes on, the values are not compared over and over.
            let patience = self.waits_since.unwrap_or(now) + PATIENCE * self.grace;
            self.not_before = (now + self.grace).min(patience).max(self.not_before);
            self.again = true;
        } else {
            (self.phase, self.not_before) = (Phase::Values, now);
        }
    }

    /// What is to be done now.
    pub fn next(&mut self, now: Instant) -> Next {
        if now < self.not_before {
            let looks = self.phase == Phase::Waiting && now >= self.look_at;
            if looks {
                self.look_at = now + self.grace / LOOKS;
            }
            return if looks { Next::Look } else { Next::Wait };
        }
        if self.phase == Phase::Waiting {
            let patient = self.waits_since.is_none_or(|since| now < since + PATIENCE * self.grace);
            self.phase = if self.again && patient { Phase::Values } else { Phase::Operations };
            self.again &= !patient;
        }
        match self.phase {
            Phase::Values => Next::Values,
            Phase::Operations => Next::Operations,
            Phase::Waiting | Phase::Held(_) => Next::Wait,
        }
    }

    /// The tenant's Postgres is away: for the ledger as well, perhaps, so its operations come later.
    pub fn failed(&mut self, now: Instant, pause: Duration) {
        match self.phase {
            Phase::Values => self.not_before = now + pause,
            Phase::Waiting | Phase::Operations => self.wait(now),
            Phase::Held(_) => {}
        }
    }

    /// The tenant's Postgres accepts writes; it was started then. Returns whether it is the server of the last look: if not, the
    /// ledger could not write in between, and its operations come later.
    pub fn answered(&mut self, started: &str, now: Instant) -> bool {
        let known = self.server.as_deref().is_none_or(|server| server == started);
        self.server = Some(started.to_owned());
        if !known {
            self.failed(now, Duration::ZERO);
        }
        known
    }

    fn wait(&mut self, now: Instant) {
        (self.phase, self.not_before) = (Phase::Waiting, now + self.grace);
        self.look_at = now + self.grace / LOOKS;
        self.waits_since.get_or_insert(now);
    }

    /// Values and rows are compared.
    pub fn compared_values(&mut self, now: Instant, found: Found) {
        self.found = self.found.and(found);
        if self.phase == Phase::Values {
            self.wait(now);
        }
    }

    /// The comparison with another Postgres server has scheduled so many again meanwhile.
    pub fn rescheduled_elsewhere(&mut self, balances: u64) {
        self.found.rescheduled += balances;
    }

    /// Whether another worker has closed it, or an operator: its entry is missing in Redis at two looks in a row. `stands`: it is
    /// there. `lost`: Redis has lost data since the last look, the entry among them, perhaps; what was lost just now shows at the
    /// next look.
    pub fn is_closed_elsewhere(&mut self, stands: bool, lost: bool) -> bool {
        let missing = !stands && !lost;
        std::mem::replace(&mut self.missing, missing) && missing
    }

    /// Whether its entry was missing at the last look, and it is not known yet why.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        self.missing
    }

    /// Rows and operations are compared, and `written` rows were written since the condition was noticed. `unreadable` = why
    /// operations can't be read. Returns whether it is over.
    ///
    /// Each balance counts once, however often it is compared and listed: what counts twice would account for one of which nothing
    /// is known, and close the condition over it. Rows that were written may be those of other balances: they account for members
    /// only while Redis has their values, so that none of these can be lost. And some members were remembered before they vanished,
    /// of which `forgotten` are neither scheduled nor written nor listed.
    pub fn compared_operations(
        &mut self,
        now: Instant,
        listed: Listed,
        written: u64,
        forgotten: u64,
        unreadable: Option<String>,
    ) -> bool {
        let Listed { lost, new, left, undecided } = listed;
        // Redis may have lost the list as well, so that all of it is new.
        self.found.lost = (self.found.lost + new).min(self.found.lost.max(lost));
        if self.phase != Phase::Operations {
            return false;
        }
        self.waits_since = None;
        // Or Redis goes on evicting, or Postgres was too slow.
        if left > 0 || undecided > 0 || self.again {
            self.wait(now);
            return false;
        }
        let Found { rescheduled, scheduled, lost, rows_ahead } = self.found;
        let written_since = if self.keeps_values { written } else { 0 };
        let explained = (rescheduled + scheduled).max(written_since) + lost;
        let why = if rows_ahead > 0 {
            format!(
                "{rows_ahead} rows are newer than what Redis holds: the ledger counts on from older values"
            )
        } else if explained < self.extent {
            let others = match written {
                0 => String::new(),
                _ if self.keeps_values => String::new(),
                rows => format!("; {rows} rows were written since, which may be those of other balances"),
            };
            format!(
                "of {} members that vanished, {} are not accounted for{others}",
                self.extent,
                self.extent - explained
            )
        } else if forgotten > 0 {
            format!(
                "{forgotten} of the members that were remembered before are neither scheduled nor written nor listed"
            )
        } else {
            match unreadable {
                Some(why) if self.is_loss || self.reason == Reason::RedisUnmarked => {
                    format!("whether mutations are lost can't be determined: {why}")
                }
                _ => return true,
            }
        };
        self.phase = Phase::Held(why);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    fn episode(reason: Reason, extent: u64, now: Instant) -> Episode {
        Episode::new(reason, extent, true, 0.0, "gone".to_owned(), now, GRACE)
    }

    #[test]
    fn rows_that_were_written_do_not_account_for_members_that_are_remembered() {
        let now = Instant::now();
        for (forgotten, over) in [(1, false), (0, true)] {
            let mut open = episode(Reason::RedisScheduleVanished, 20, now);
            open.compared_values(now, Found::default());
            assert_eq!(open.next(now + GRACE), Next::Operations);
            // Many balances are mutated and written meanwhile.
            assert_eq!(open.compared_operations(now + GRACE, lost(0, 0), 5_000, forgotten, None), over);
            let phase = open.phase().describe();
            assert!(over || phase.starts_with("1 of the members that were remembered"), "{phase}");
        }
    }

    #[test]
    fn rows_that_were_written_account_for_nothing_once_values_may_be_gone() {
        let now = Instant::now();
        for reason in [Reason::RedisDataReplaced, Reason::RedisEvicted] {
            // The 16 members that were remembered are mutated again or listed, and 5,000 other rows are written.
            let mut open = episode(reason, 0, now);
            open.merge(episode(Reason::RedisScheduleVanished, 2_000, now), now);
            open.compared_values(now, rescheduled(4));
            open.next(now + GRACE);
            assert!(!open.compared_operations(now + GRACE, lost(6, 0), 5_000, 0, None), "{reason}");
            assert_eq!(
                open.phase().describe(),
                "of 2000 members that vanished, 1990 are not accounted for; 5000 rows were written since, which may be \
                 those of other balances"
            );
        }
        // What another comparison has scheduled again is accounted for.
        let mut open = episode(Reason::RedisDataReplaced, 10, now);
        open.compared_values(now, rescheduled(2));
        open.rescheduled_elsewhere(8);
        open.next(now + GRACE);
        assert!(open.compared_operations(now + GRACE, lost(0, 0), 0, 0, None));
    }

    #[test]
    fn what_postgres_could_not_say_in_time_is_compared_again() {
        let now = Instant::now();
        // Nothing has vanished from the schedule, so nothing else would keep it open.
        let mut open = episode(Reason::RedisDataReplaced, 0, now);
        open.compared_values(now, Found::default());
        open.next(now + GRACE);
        let slow = Listed { undecided: 7, ..lost(0, 0) };
        assert!(!open.compared_operations(now + GRACE, slow, 0, 0, None));
        assert_ne!(open.next(now + 2 * GRACE - SECOND), Next::Operations);
        assert_eq!(open.next(now + 2 * GRACE), Next::Operations);
        assert!(open.compared_operations(now + 2 * GRACE, lost(7, 0), 0, 0, None));
        assert_eq!(open.found().lost, 7);
    }

    fn rescheduled(rescheduled: u64) -> Found {
        Found { rescheduled, ..Found::default() }
    }

    fn lost(lost: u64, left: u64) -> Listed {
        Listed { lost, new: lost, left, undecided: 0 }
    }

    #[test]
    fn what_is_listed_again_accounts_for_nothing_more() {
        let now = Instant::now();
        let mut open = episode(Reason::RedisScheduleVanished, 2_000, now);
        open.compared_values(now, Found::default());
        // The server was restarted meanwhile; another worker goes on; and Redis loses the list too.
        for (again, new) in [1_950, 0, 1_950].into_iter().enumerate() {
            let now = now + u32::try_from(again).unwrap_or_default() * 10 * GRACE;
            open.next(now + GRACE);
            assert!(!open.compared_operations(now, Listed { new, ..lost(1_950, 0) }, 0, 0, None));
            assert_eq!(open.phase().describe(), "of 2000 members that vanished, 50 are not accounted for");
            open.merge(episode(Reason::RedisDataReplaced, 0, now), now);
            open.compared_values(now, Found::default());
        }
        open.next(now + 40 * GRACE);
        assert!(open.compared_operations(now, Listed { new: 50, ..lost(2_000, 0) }, 0, 0, None));
        // Losses that were open before account for none of it.
        let mut open = episode(Reason::RedisScheduleVanished, 10, now);
        open.compared_values(now, Found::default());
        open.next(now + GRACE);
        assert!(!open.compared_operations(now, Listed { new: 0, ..lost(10, 0) }, 0, 0, None));
    }

    #[test]
    fn it_is_over_when_all_that_vanished_is_written_or_listed() {
        let now = Instant::now();
        let mut open = episode(Reason::RedisScheduleVanished, 2_000, now);
        assert_eq!(open.next(now), Next::Values);
        open.compared_values(now, rescheduled(9));
        assert_ne!(open.next(now + GRACE - SECOND), Next::Operations);
        assert_eq!(open.next(now + GRACE), Next::Operations);
        assert!(open.compared_operations(now, lost(1_991, 0), 9, 0, None));
    }

    #[test]
    fn what_is_not_accounted_for_keeps_it_open() {
        let now = Instant::now();
        let mut open = episode(Reason::RedisScheduleVanished, 2_000, now);
        open.compared_values(now, rescheduled(9));
        assert_eq!(open.next(now + GRACE), Next::Operations);
        assert!(!open.compared_operations(now, lost(0, 0), 9, 0, None));
        assert_eq!(open.phase().describe(), "of 2000 members that vanished, 1991 are not accounted for");
        assert_eq!(open.next(now + 10 * GRACE), Next::Wait);
        // Until more vanishes.
        open.merge(episode(Reason::RedisScheduleVanished, 1, now), now);
        assert_eq!((open.next(now), open.extent), (Next::Values, 2_001));
    }

    #[test]
    fn rows_ahead_and_operations_that_can_not_be_read_keep_it_open() {
        let now = Instant::now();
        let mut open = episode(Reason::RedisDataReplaced, 0, now);
        open.compared_values(now, Found { rows_ahead: 729, ..Found::default() });
        open.next(now + GRACE);
        assert!(!open.compared_operations(now, lost(0, 0), 0, 0, None));
        assert!(open.phase().describe().starts_with("729 rows"), "{:?}", open.phase());
        for (is_loss, over) in [(true, false), (false, true)] {
            let mut open = Episode { is_loss, ..episode(Reason::RedisDataReplaced, 0, now) };
            open.compared_values(now, Found::default());
            open.next(now + GRACE);
            assert_eq!(open.compared_operations(now, lost(0, 0), 0, 0, Some("no grant".to_owned())), over);
        }
    }

    #[test]
    fn an_outage_lets_operations_come_later() {
        let now = Instant::now();
        let mut open = episode(Reason::RedisScheduleVanished, 1, now);
        open.failed(now, SECOND);
        assert_eq!(open.next(now), Next::Wait);
        assert_eq!(open.next(now + SECOND), Next::Values);
        open.compared_values(now, rescheduled(1));
        open.failed(now + 50 * SECOND, SECOND);
        assert_eq!(open.next(now + GRACE), Next::Wait);
        assert_eq!(open.next(now + 50 * SECOND + GRACE), Next::Operations);
    }

    #[test]
    fn a_redis_that_goes_on_evicting_is_compared_once_it_has_stopped() {
        let now = Instant::now();
        let mut open = episode(Reason::RedisEvicted, 0, now);
        open.compared_values(now, Found::default());
        for n in 1..100 {
            open.merge(episode(Reason::RedisEvicted, 0, now), now + n * SECOND);
            assert!(matches!(open.next(now + n * SECOND), Next::Wait | Next::Look));
        }
        let calm = now + 99 * SECOND + GRACE;
        assert_eq!(open.next(calm), Next::Values, "what was evicted meanwhile");
        open.compared_values(calm, Found::default());
        assert_eq!(open.next(calm + GRACE), Next::Operations);
        assert!(open.compared_operations(now, lost(0, 0), 0, 0, None));
        // A schedule that vanishes is worked at once.
        let mut open = episode(Reason::RedisEvicted, 0, now);
        open.compared_values(now, Found::default());
        open.merge(episode(Reason::RedisScheduleVanished, 5, now), now);
        assert_eq!((open.next(now), open.reason), (Next::Values, Reason::RedisScheduleVanished));
    }

    #[test]
    fn a_redis_that_never_stops_evicting_is_compared_all_the_same() {
        let begun = Instant::now();
        let mut open = episode(Reason::RedisEvicted, 0, begun);
        open.compared_values(begun, Found::default());
        let (mut compared, mut now) = (0, begun);
        while now < begun + 20 * GRACE {
            now += 2 * SECOND;
            open.merge(episode(Reason::RedisEvicted, 0, now), now);
            match open.next(now) {
                Next::Operations => {
                    compared += 1;
                    let listed = Listed { new: 1, ..lost(compared, 0) };
                    assert!(!open.compared_operations(now, listed, 0, 0, None), "open while it goes on");
                }
                next => assert!(matches!(next, Next::Wait | Next::Look), "{next:?}"),
            }
        }
        assert_eq!((compared, open.found().lost), (5, 5), "each four times the grace");
        // It stops.
        assert_eq!(open.next(now + GRACE), Next::Values);
        now += GRACE;
        open.compared_values(now, Found::default());
        assert_eq!(open.next(now + GRACE), Next::Operations);
        assert!(open.compared_operations(now, lost(0, 0), 0, 0, None));
    }

    #[test]
    fn while_operations_are_waited_for_postgres_is_looked_at() {
        let now = Instant::now();
        let mut open = episode(Reason::RedisDataReplaced, 0, now);
        open.compared_values(now, Found::default());
        let looks: Vec<u32> =
            (1..60).filter(|second| open.next(now + *second * SECOND) == Next::Look).collect();
        assert_eq!(looks, [15, 30, 45]);
        assert!(open.answered("then", now + 45 * SECOND), "the first answer");
        assert!(open.answered("then", now + 50 * SECOND));
        assert!(!open.answered("later", now + 55 * SECOND), "it was restarted");
        assert_ne!(open.next(now + GRACE), Next::Operations);
        assert_eq!(open.next(now + 55 * SECOND + GRACE), Next::Operations);
        // Also at the very end.
        assert!(!open.answered("later still", now + 2 * GRACE));
        assert!(!open.compared_operations(now + 2 * GRACE, lost(0, 0), 0, 0, None));
        assert_ne!(open.next(now + 3 * GRACE - SECOND), Next::Operations);
    }

    #[test]
    fn an_entry_that_redis_has_lost_too_was_closed_by_no_other_worker() {
        let mut open = episode(Reason::RedisDataReplaced, 0, Instant::now());
        let looks = [
            // Gone, and that Redis has lost more shows at the next look.
            ((false, false), false),
            ((false, true), false),
            ((true, false), false),
            ((false, false), false),
            ((false, false), true),
        ];
        for ((stands, lost), closed) in looks {
            assert_eq!(open.is_closed_elsewhere(stands, lost), closed);
        }
    }

    #[test]
    fn a_redis_without_a_mark_stays_open_only_if_something_is_wrong() {
        let now = Instant::now();
        for (unreadable, over) in [(None, true), (Some("no grant".to_owned()), false)] {
            let mut open = Episode { is_loss: false, ..episode(Reason::RedisUnmarked, 0, now) };
            open.compared_values(now, Found::default());
            open.next(now + GRACE);
            assert_eq!(open.compared_operations(now + GRACE, lost(0, 0), 0, 0, unreadable), over);
        }
        let mut open = episode(Reason::RedisUnmarked, 0, now);
        open.merge(episode(Reason::RedisScheduleVanished, 5, now), now);
        assert_eq!(open.reason, Reason::RedisScheduleVanished, "what is known for certain");
    }

    #[test]
    fn what_is_scheduled_with_an_older_state_is_compared_again() {
        let now = Instant::now();
        let mut open = episode(Reason::RedisDataReplaced, 0, now);
        open.compared_values(now, Found::default());
        open.next(now + GRACE);
        assert!(!open.compared_operations(now + GRACE, lost(3, 1), 0, 0, None));
        assert_ne!(open.next(now + 2 * GRACE - SECOND), Next::Operations);
        assert_eq!(open.next(now + 2 * GRACE), Next::Operations);
        assert!(open.compared_operations(now + 2 * GRACE, Listed { new: 1, ..lost(4, 0) }, 0, 0, None));
        assert_eq!(open.found().lost, 4);
    }
}
