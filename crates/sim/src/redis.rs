//! The model of Redis: one tenant's schedule and values, and the scripts of `lua/` that work on them.
//!
//! Scores are doubles, as in Redis: a producer writes whole microseconds, a lease ends half-way between two. Expiry is
//! decided when a value is looked at. Every function is one atomic script at one moment of Redis's clock, in microseconds.

use crate::bugs::Bug;

/// Redis's clock at the origin of virtual time, so that scores have the magnitude of real ones.
const EPOCH: u64 = 1_795_380_490_000_000;

/// A claimed member, as a worker holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Held {
    /// Which balance of the tenant.
    pub(crate) balance: usize,
    pub(crate) lease: f64,
    pub(crate) former: f64,
    /// `None` = the value had expired.
    pub(crate) value: Option<Value>,
}

impl Held {
    /// Whether it can be written: there is a value, and it can be read.
    pub(crate) fn is_good(&self) -> bool {
        self.value.is_some_and(|value| !value.poison)
    }
}

/// A balance's value, with a version number for its money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) version: u64,
    /// It can't be read.
    pub(crate) poison: bool,
    /// Redis's clock.
    pub(crate) expires: u64,
}

/// What Redis holds of one balance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    pub(crate) score: Option<f64>,
    pub(crate) value: Option<Value>,
    /// Whether its quarantine entry exists.
    pub(crate) quarantined: bool,
    /// The ledger's claim lock ends then.
    pub(crate) locked_until: u64,
}

/// The rules of the scripts, and the one that is switched off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) bug: Option<Bug>,
    /// In microseconds.
    pub(crate) claim_ttl: u64,
    pub(crate) protect_floor: u64,
    pub(crate) value_ttl: u64,
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
}

/// Redis's clock at a moment of virtual time in nanoseconds.
pub(crate) fn clock(now: u64) -> u64 {
    EPOCH + now / 1000
}

/// The moment of virtual time at which Redis's clock shows this.
pub(crate) fn when(micros: u64) -> u64 {
    micros.saturating_sub(EPOCH) * 1000
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
    pub(crate) fn mutate(&mut self, now: u64, balance: usize, version: u64, poison: bool, rules: Rules) {
        let entry = &mut self.entries[balance];
        entry.value = Some(Value { version, poison, expires: now + rules.value_ttl });
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

    fn protect(&mut self, now: u64, balance: usize, rules: Rules) {
        if rules.bug != Some(Bug::NeverProtect)
            && self.value(now, balance).is_some()
            && let Some(value) = &mut self.entries[balance].value
        {
            value.expires = value.expires.max(now + rules.protect_floor);
        }
    }

    /// `claim_balance_sync_keys.lua`, mode `lease`.
    pub(crate) fn claim(&mut self, now: u64, limit: usize, rules: Rules) -> ClaimAnswer {
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
        due.truncate(limit);
        let head_age = due.first().map(|(score, _)| now.saturating_sub((score * 1e6) as u64));
        let mut members = Vec::with_capacity(due.len());
        for (former, balance) in due {
            self.protect(now, balance, rules);
            let value = self.value(now, balance);
            if rules.bug != Some(Bug::LeaseNotMoved) {
                self.entries[balance].score = Some(lease);
            }
            members.push(Held { balance, lease, former, value });
        }
        ClaimAnswer { members, scheduled: self.scheduled(), head_age }
    }

    /// `remove_balance_sync_keys_batch.lua`; returns the removed balances.
    pub(crate) fn settle(&mut self, members: &[Held], rules: Rules) -> Vec<usize> {
        let mut removed = Vec::new();
        for held in members {
            let entry = &mut self.entries[held.balance];
            let ours = match rules.bug {
                Some(Bug::BlindSettle) => entry.score.is_some(),
                Some(Bug::SettleAnyLease) => entry.score.is_some_and(is_lease),
                _ => entry.score == Some(held.lease),
            };
            if ours {
                entry.score = None;
                entry.quarantined = false;
                removed.push(held.balance);
            }
        }
        removed
    }

    /// `release_balance_sync_keys.lua`; returns how many were released.
    pub(crate) fn release(&mut self, now: u64, members: &[Held], rules: Rules) -> usize {
        let mut released = 0;
        for held in members {
            self.protect(now, held.balance, rules);
            let score = &mut self.entries[held.balance].score;
            if *score == Some(held.lease) || rules.bug == Some(Bug::BlindRelease) {
                *score = if rules.bug == Some(Bug::ReleaseRemoves) { None } else { Some(held.former) };
                released += 1;
            }
        }
        released
    }

    /// `quarantine_balance_sync_keys.lua`; returns the quarantined balances.
    pub(crate) fn quarantine(&mut self, members: &[Held], rules: Rules) -> Vec<usize> {
        let mut taken = Vec::new();
        for held in members {
            let entry = &mut self.entries[held.balance];
            if entry.score == Some(held.lease) || rules.bug == Some(Bug::BlindQuarantine) {
                entry.score = None;
                entry.quarantined = true;
                taken.push(held.balance);
            }
        }
        taken
    }

    /// `protect_scheduled_balances.lua` and `protect_recently_scheduled.lua`: all scheduled members from this score on.
    pub(crate) fn protect_from(&mut self, now: u64, from: f64, rules: Rules) {
        for balance in 0..self.entries.len() {
            if self.entries[balance].score.is_some_and(|score| score >= from) {
                self.protect(now, balance, rules);
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

    const RULES: Rules =
        Rules { bug: None, claim_ttl: 30_000_000, protect_floor: 900_000_000, value_ttl: 300_000_000 };

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
        schedule.mutate(clock(0), 0, 1, false, RULES);
        let claim = schedule.claim(clock(1000), 10, RULES);
        assert_eq!(claim.members.len(), 1);
        assert!(schedule.claim(clock(2000), 10, RULES).members.is_empty(), "a claimed member is hidden");
        schedule.mutate(clock(3000), 0, 2, false, RULES);
        assert!(schedule.settle(&claim.members, RULES).is_empty());
        assert_eq!(schedule.entries[0].score, Some(whole(clock(3000))));
    }

    #[test]
    fn a_lease_lapses_and_a_released_member_is_due_at_once() {
        let mut schedule = Schedule::new(1);
        schedule.mutate(clock(0), 0, 1, false, RULES);
        let first = schedule.claim(clock(0), 10, RULES).members;
        let second = schedule.claim(clock(0) + RULES.claim_ttl + 1, 10, RULES).members;
        assert_eq!(second[0].former, first[0].lease);
        assert_eq!(schedule.release(clock(0), &first, RULES), 0, "a later claim holds it");
        assert_eq!(schedule.release(clock(0), &second, RULES), 1);
        assert_eq!(schedule.due(clock(0) + RULES.claim_ttl + 1).len(), 1);
    }
}
