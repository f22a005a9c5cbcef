//! The model of Redis: one tenant's schedule and values, and the scripts of `lua/` that work on them.
//!
//! Scores are doubles, as in Redis: a producer writes whole microseconds, a lease ends half-way between two. Expiry is
//! decided when a value is looked at. Every function is one atomic script at one moment of Redis's clock, in microseconds.

use crate::{
    bugs::Bug,
    values::{Document, Shape},
};

/// Redis's clock at the origin of virtual time, so that scores have the magnitude of real ones.
const EPOCH: u64 = 1_795_380_490_000_000;

/// A claimed member, as a worker holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Held {
    /// Which balance of the tenant.
    pub(crate) balance: usize,
    pub(crate) lease: f64,
    pub(crate) former: f64,
    /// `None` = the value is gone.
    pub(crate) value: Option<Value>,
}

/// A balance's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) document: Document,
    /// Redis's clock.
    pub(crate) expires: u64,
}

/// What is known of a balance whose value is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// The version that the ledger's trail has and the row lacks; `None` = it can't be determined whether there is one.
    pub(crate) version: Option<u64>,
    /// A later mutation has been written.
    pub(crate) later: bool,
    /// An operator wants it looked at again.
    pub(crate) retry: bool,
}

/// Who holds a claim lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The ledger's own worker.
    Pod,
    /// One of our workers, by its token.
    Worker(u32),
}

/// What Redis holds of one balance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    pub(crate) score: Option<f64>,
    pub(crate) value: Option<Value>,
    /// Whether its quarantine entry exists.
    pub(crate) quarantined: bool,
    pub(crate) loss: Option<Loss>,
    /// The claim lock, and when it ends.
    pub(crate) lock: Option<(Owner, u64)>,
}

impl Entry {
    /// Who holds the claim lock.
    pub(crate) fn locked_by(&self, now: u64) -> Option<Owner> {
        self.lock.filter(|(_, until)| *until > now).map(|(owner, _)| owner)
    }
}

/// The rules of the scripts, the one that is switched off, and who calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) bug: Option<Bug>,
    /// In microseconds.
    pub(crate) claim_ttl: u64,
    pub(crate) protect_floor: u64,
    /// Mode `lock`: the caller's token.
    pub(crate) lock: Option<u32>,
    /// Mode `lock`: most members looked at in one claim.
    pub(crate) scan_limit: usize,
}

/// One tenant's part of Redis.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    pub(crate) entries: Vec<Entry>,
}

/// The answer to a claim.
#[derive(Debug, Clone)]
pub(crate) struct ClaimAnswer {
    pub(crate) members: Vec<Held>,
    pub(crate) scheduled: u64,
    /// How long the first had been due, in microseconds.
    pub(crate) head_age: Option<u64>,
    /// Mode `lock`: where the next claim goes on.
    pub(crate) resume: usize,
    /// Mode `lock`: members locked by others, and how long until the first of these locks ends, in microseconds.
    pub(crate) foreign: u64,
    pub(crate) unlock_in: Option<u64>,
}

/// What a claim in mode `lock` found.
#[derive(Debug, Default)]
struct Taken {
    members: Vec<(f64, usize)>,
    resume: usize,
    foreign: u64,
    unlock_in: Option<u64>,
}

/// Redis's clock at a moment of virtual time in nanoseconds.
pub(crate) fn clock(now: u64) -> u64 {
    EPOCH + now / 1000
}

/// The score of a whole microsecond: the double that Redis reads from six decimals.
pub(crate) fn whole(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// The score half-way to the next microsecond.
pub(crate) fn half(micros: u64) -> f64 {
    (2 * micros + 1) as f64 / 2e6
}

/// Whether a score lies half-way between two microseconds.
pub(crate) fn is_lease(score: f64) -> bool {
    (score * 2e6).round() as u64 % 2 == 1
}

impl Schedule {
    pub(crate) fn new(balances: usize) -> Self {
        Self { entries: vec![Entry::default(); balances] }
    }

    /// What the ledger's script does with one balance.
    pub(crate) fn mutate(&mut self, now: u64, balance: usize, document: Document, ttl: u64) {
        let entry = &mut self.entries[balance];
        entry.value = Some(Value { document, expires: now + ttl });
        entry.score = Some(whole(now));
    }

    /// Members that are due, oldest first.
    pub(crate) fn due(&self, now: u64) -> Vec<(f64, usize)> {
        let latest = whole(now);
        let mut due: Vec<(f64, usize)> = (self.entries.iter().enumerate())
            .filter_map(|(at, entry)| entry.score.filter(|score| *score <= latest).map(|score| (score, at)))
            .collect();
        due.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        due
    }

    /// The value, unless it has expired.
    pub(crate) fn value(&mut self, now: u64, balance: usize) -> Option<Value> {
        let entry = &mut self.entries[balance];
        entry.value = entry.value.filter(|value| value.expires > now);
        entry.value
    }

    fn raise_life(&mut self, now: u64, balance: usize, floor: u64, rules: Rules) {
        // A deletion marker has the life that the ledger gave it.
        let raised = |shape: Shape| shape != Shape::Marker || rules.bug == Some(Bug::MarkerKeptAlive);
        if rules.bug != Some(Bug::NeverProtect)
            && self.value(now, balance).is_some_and(|value| raised(value.document.shape))
            && let Some(value) = &mut self.entries[balance].value
        {
            value.expires = value.expires.max(now + floor);
        }
    }

    // -- locks ---------------------------------------------------------------------------------------------------

    /// `SET … NX`: whether no other owner holds the lock.
    pub(crate) fn lock(&mut self, now: u64, balance: usize, owner: Owner, ttl: u64) -> bool {
        let entry = &mut self.entries[balance];
        let free = entry.locked_by(now).is_none_or(|holder| holder == owner);
        if free {
            entry.lock = Some((owner, now + ttl));
        }
        free
    }

    /// `DEL`, whoever holds it: what the ledger's own worker does.
    pub(crate) fn delete_lock(&mut self, balance: usize) {
        self.entries[balance].lock = None;
    }

    fn unlock(&mut self, balance: usize, rules: Rules) {
        let Some(token) = rules.lock else { return };
        let holder = self.entries[balance].lock.map(|(owner, _)| owner);
        if holder == Some(Owner::Worker(token)) || rules.bug == Some(Bug::BlindUnlock) {
            self.delete_lock(balance);
        }
    }

    /// Whether a member is still under this lease. Where it isn't, our lock goes unless a later claim holds the member.
    fn is_ours(&mut self, now: u64, held: &Held, rules: Rules) -> bool {
        let score = self.entries[held.balance].score;
        if score == Some(held.lease) {
            return true;
        }
        if score.is_none_or(|score| score <= whole(now)) {
            self.unlock(held.balance, rules);
        }
        false
    }

    // -- scripts -------------------------------------------------------------------------------------------------

    /// `claim_balance_sync_keys.lua`.
    pub(crate) fn claim(&mut self, now: u64, limit: usize, resume: usize, rules: Rules) -> ClaimAnswer {
        let end = now + rules.claim_ttl;
        let lease = match rules.bug {
            Some(Bug::WholeMicrosecondLease) => whole(end),
            Some(Bug::EndlessLease) => half(end + 1_000_000_000_000),
            _ => half(end),
        };
        let mut due = self.due(now);
        if rules.bug == Some(Bug::LapsedLeaseNotClaimed) {
            due.retain(|(score, _)| !is_lease(*score));
        }
        let Taken { members: due, resume, foreign, unlock_in } = match rules.lock {
            None => {
                due.truncate(limit);
                Taken { members: due, ..Taken::default() }
            }
            Some(token) => self.take_locks(now, &due, token, limit, resume, rules),
        };
        let head_age = due.first().map(|(score, _)| now.saturating_sub((score * 1e6) as u64));
        let mut members = Vec::with_capacity(due.len());
        for (former, balance) in due {
            // Its values live for minutes, so none is fresh enough to be passed over.
            if rules.bug != Some(Bug::ClaimDoesNotProtect) {
                self.raise_life(now, balance, rules.protect_floor, rules);
            }
            let value = self.value(now, balance);
            if rules.bug != Some(Bug::LeaseNotMoved) {
                self.entries[balance].score = Some(lease);
            }
            members.push(Held { balance, lease, former, value });
        }
        ClaimAnswer { members, scheduled: self.scheduled(), head_age, resume, foreign, unlock_in }
    }

    /// The members whose locks are free.
    fn take_locks(
        &mut self,
        now: u64,
        due: &[(f64, usize)],
        token: u32,
        limit: usize,
        resume: usize,
        rules: Rules,
    ) -> Taken {
        /// Members in a page at most; the first pages are smaller.
        const LARGEST_PAGE: usize = 4;
        let (mut at, mut seen, mut taken) = (resume, 0, Taken::default());
        let mut next_page = 1;
        while taken.members.len() < limit {
            if seen >= rules.scan_limit.max(limit) {
                if rules.bug != Some(Bug::LocksHideTheRest) {
                    taken.resume = at - taken.members.len();
                }
                break;
            }
            // A page; the scan limit counts when it has been looked at.
            let page = due.get(at..).unwrap_or_default();
            let most = limit.min(next_page);
            next_page = (2 * next_page).min(LARGEST_PAGE);
            if page.is_empty() {
                if seen > 0 || at == 0 {
                    break;
                }
                at = 0;
                continue;
            }
            for &(score, balance) in page.iter().take(most) {
                (seen, at) = (seen + 1, at + 1);
                if rules.bug == Some(Bug::LockIgnored)
                    || self.lock(now, balance, Owner::Worker(token), rules.claim_ttl)
                {
                    taken.members.push((score, balance));
                    if taken.members.len() == limit {
                        break;
                    }
                } else {
                    taken.foreign += 1;
                    let ends = self.entries[balance].lock.map(|(_, ends)| ends - now);
                    taken.unlock_in = taken.unlock_in.into_iter().chain(ends).min();
                }
            }
        }
        taken
    }

    /// `remove_balance_sync_keys_batch.lua`; returns the removed balances. `written`: Postgres has them; otherwise there is
    /// nothing to write.
    pub(crate) fn settle(&mut self, now: u64, members: &[Held], written: bool, rules: Rules) -> Vec<usize> {
        let mut removed = Vec::new();
        for held in members {
            let score = self.entries[held.balance].score;
            let ours = match rules.bug {
                Some(Bug::BlindSettle) => score.is_some(),
                Some(Bug::SettleAnyLease) => score.is_some_and(is_lease),
                _ => self.is_ours(now, held, rules),
            };
            if !ours {
                continue;
            }
            let entry = &mut self.entries[held.balance];
            entry.score = None;
            entry.quarantined = false;
            if let Some(loss) = &mut entry.loss {
                loss.later |= written && rules.bug != Some(Bug::LaterNotMarked);
                let mended = !written && loss.retry && loss.version.is_none() && !loss.later;
                if mended || written && rules.bug == Some(Bug::LossCleared) {
                    entry.loss = None;
                }
            }
            self.unlock(held.balance, rules);
            removed.push(held.balance);
        }
        removed
    }

    /// `schedule_again.lua`; returns the balances whose new score is that of Redis's clock.
    pub(crate) fn schedule_again(&mut self, now: u64, balances: &[usize], rules: Rules) -> Vec<usize> {
        let mut by_clock = Vec::new();
        for &balance in balances {
            let score = &mut self.entries[balance].score;
            match *score {
                Some(_) if rules.bug == Some(Bug::HeldNotRescheduled) => {}
                Some(due) if due <= whole(now) && !is_lease(due) => {
                    if rules.bug != Some(Bug::LockedNotRescheduled) {
                        *score = Some(whole((due * 1e6).round() as u64 + 1));
                    }
                }
                _ => {
                    *score = Some(whole(now));
                    by_clock.push(balance);
                }
            }
        }
        by_clock
    }

    /// `release_balance_sync_keys.lua`; returns how many were released.
    pub(crate) fn release(&mut self, now: u64, members: &[Held], rules: Rules) -> usize {
        let mut released = 0;
        for held in members {
            self.raise_life(now, held.balance, rules.protect_floor, rules);
            if rules.bug == Some(Bug::BlindRelease) || self.is_ours(now, held, rules) {
                let removed = rules.bug == Some(Bug::ReleaseRemoves);
                self.entries[held.balance].score = (!removed).then_some(held.former);
                self.unlock(held.balance, rules);
                released += 1;
            }
        }
        released
    }

    /// `quarantine_balance_sync_keys.lua`; returns the quarantined balances.
    pub(crate) fn quarantine(&mut self, now: u64, members: &[Held], rules: Rules) -> Vec<usize> {
        let mut taken = Vec::new();
        for held in members {
            if rules.bug == Some(Bug::BlindQuarantine) || self.is_ours(now, held, rules) {
                let entry = &mut self.entries[held.balance];
                entry.score = None;
                entry.quarantined = true;
                self.unlock(held.balance, rules);
                taken.push(held.balance);
            }
        }
        taken
    }

    /// `postpone_balances.lua`: members, each with whether its value is kept alive; returns how many were put off, and
    /// to which score.
    pub(crate) fn postpone(
        &mut self,
        now: u64,
        members: &[(Held, bool)],
        delay: u64,
        rules: Rules,
    ) -> (usize, f64) {
        let (mut postponed, due) = (0, half(now + delay));
        for (held, keep_alive) in members {
            if rules.bug != Some(Bug::BlindPostpone) && !self.is_ours(now, held, rules) {
                continue;
            }
            self.entries[held.balance].score = Some(due);
            self.unlock(held.balance, rules);
            if *keep_alive && rules.bug != Some(Bug::PutOffExpires) {
                self.raise_life(now, held.balance, rules.protect_floor.max(3 * delay), rules);
            }
            postponed += 1;
        }
        (postponed, due)
    }

    /// `record_losses.lua`: members, each with the version that is lost, if that is certain; returns the recorded balances.
    pub(crate) fn lose(&mut self, now: u64, lost: &[(Held, Option<u64>)], rules: Rules) -> Vec<usize> {
        let mut recorded = Vec::new();
        for (held, version) in lost {
            if rules.bug != Some(Bug::BlindLoss) && !self.is_ours(now, held, rules) {
                continue;
            }
            let entry = &mut self.entries[held.balance];
            let before = entry.loss;
            let version = match version {
                None => before.and_then(|before| before.version),
                known => *known,
            };
            let later = before.is_some_and(|before| before.later);
            entry.loss = Some(Loss { version, later, retry: false });
            entry.score = None;
            self.unlock(held.balance, rules);
            recorded.push(held.balance);
        }
        recorded
    }

    /// `retry_quarantined_balances.lua`, of lost members that are not in quarantine as well: they are looked at again.
    pub(crate) fn retry_losses(&mut self, now: u64) {
        for entry in &mut self.entries {
            if let Some(loss) = &mut entry.loss
                && entry.score.is_none()
                && !entry.quarantined
            {
                entry.score = Some(half(now - 1_000_000));
                loss.retry = true;
            }
        }
    }

    /// `protect_scheduled_balances.lua` and `protect_recently_scheduled.lua`: all scheduled members from this score on.
    pub(crate) fn protect_from(&mut self, now: u64, from: f64, rules: Rules) {
        for balance in 0..self.entries.len() {
            if self.entries[balance].score.is_some_and(|score| score >= from) {
                self.raise_life(now, balance, rules.protect_floor, rules);
            }
        }
    }

    pub(crate) fn scheduled(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.score.is_some()).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::State;

    const RULES: Rules =
        Rules { bug: None, claim_ttl: 30_000_000, protect_floor: 900_000_000, lock: None, scan_limit: 5000 };

    fn mutate(schedule: &mut Schedule, now: u64, balance: usize, version: u64) {
        let document = Document { state: State { version, mark: version }, shape: Shape::Upper };
        schedule.mutate(now, balance, document, 300_000_000);
    }

    #[test]
    fn scores_are_the_doubles_that_redis_reads() {
        for micros in [clock(0), clock(0) + 1, clock(7_654_321_987)] {
            let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
            assert_eq!(format!("{seconds}.{rest:06}").parse(), Ok(whole(micros)));
            assert_eq!(format!("{seconds}.{rest:06}5").parse(), Ok(half(micros)));
            assert!(is_lease(half(micros)) && !is_lease(whole(micros)));
        }
    }

    #[test]
    fn a_newer_mutation_survives_the_settlement_of_the_one_before() {
        let mut schedule = Schedule::new(1);
        mutate(&mut schedule, clock(0), 0, 1);
        let claim = schedule.claim(clock(1000), 10, 0, RULES);
        assert_eq!(claim.members.len(), 1);
        assert!(schedule.claim(clock(2000), 10, 0, RULES).members.is_empty(), "a claimed member is hidden");
        mutate(&mut schedule, clock(3000), 0, 2);
        assert!(schedule.settle(clock(4000), &claim.members, true, RULES).is_empty());
        assert_eq!(schedule.entries[0].score, Some(whole(clock(3000))));
    }

    #[test]
    fn a_lease_lapses_and_a_released_member_is_due_at_once() {
        let mut schedule = Schedule::new(1);
        mutate(&mut schedule, clock(0), 0, 1);
        let first = schedule.claim(clock(0), 10, 0, RULES).members;
        let second = schedule.claim(clock(0) + RULES.claim_ttl + 1, 10, 0, RULES).members;
        assert_eq!(second[0].former, first[0].lease);
        assert_eq!(schedule.release(clock(0), &first, RULES), 0, "a later claim holds it");
        assert_eq!(schedule.release(clock(0), &second, RULES), 1);
        assert_eq!(schedule.due(clock(0) + RULES.claim_ttl + 1).len(), 1);
    }
}
