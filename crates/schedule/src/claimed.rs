//! Claimed members and the answer to a claim.

use std::{sync::Arc, time::Duration};

use balance_sync_domain::QuarantineReason;

use crate::error::ScheduleError;

/// Bytes of a value that is read. The same number stands in `lua/prelude.lua`.
const LONGEST_VALUE: u64 = 1024 * 1024;

/// One claimed member. Dropping it doesn't release it: its lease then expires.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The member of the schedule. Arbitrary bytes, because a member that can't be parsed must be handled too.
    pub member: Vec<u8>,
    /// Our lease: the score under which this member may be settled or released.
    pub lease: Arc<str>,
    /// How many members the claim gave this lease; 0 = not known.
    pub leased: usize,
    /// Which of the tenant's schedules it came from, see [`crate::Schedules`].
    pub schedule: usize,
    /// The score before the claim, as Redis printed it.
    pub former: String,
    /// The balance's JSON. `None` if the value has expired or can't be read, or if the member is another tenant's.
    pub value: Option<Vec<u8>>,
    /// Why the value was not read although its key exists or may exist.
    pub unreadable: Option<Unreadable>,
}

/// Why a value was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is larger than what a claim reads; its size in bytes.
    #[error("the value has {0} bytes; allowed: at most {longest}", longest = LONGEST_VALUE)]
    TooLarge(u64),
    /// Wrong type, or outside the tenant's slot.
    #[error("the value can't be read: {0}; allowed: a string")]
    Refused(String),
}

impl Unreadable {
    /// The status reply of the claim script.
    pub(crate) fn of_status(status: String) -> Self {
        let size = status.strip_prefix("TOOLARGE ").and_then(|size| size.parse().ok());
        size.map_or(Self::Refused(status), Self::TooLarge)
    }

    /// The reason with which the balance is quarantined.
    #[must_use]
    pub fn reason(&self) -> QuarantineReason {
        match self {
            Self::TooLarge(_) => QuarantineReason::ValueTooLarge,
            Self::Refused(_) => QuarantineReason::ValueUnreadable,
        }
    }
}

impl Claimed {
    /// When the mutation was scheduled, in seconds of Redis time. `None` if the former score was an expired lease: the
    /// time of the mutation itself is then unknown.
    #[must_use]
    pub fn scheduled_at(&self) -> Option<f64> {
        let score: f64 = self.former.parse().ok()?;
        if !score.is_finite() || score <= 0.0 {
            return None;
        }
        // Leases lie half-way between two microseconds; a double has a quarter of a microsecond's room there.
        let micros = score * 1e6;
        ((micros - micros.round()).abs() < 0.25).then_some(score)
    }

    /// Since when the member has waited for its write, in seconds of Redis time, as far as its former score tells: that is the end of
    /// a lease where an earlier claim has lapsed, which began `claim_ttl` before. `None` if the score is no time.
    ///
    /// After a delay shorter than `claim_ttl` this is up to that much too early.
    #[must_use]
    pub fn waits_since(&self, claim_ttl: Duration) -> Option<f64> {
        self.scheduled_at().or_else(|| {
            let score: f64 = self.former.parse().ok()?;
            (score.is_finite() && score > 0.0).then_some(score - claim_ttl.as_secs_f64())
        })
    }
}

/// Whether the ledger's own worker has locked members that a claim has looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub enum LedgerLock {
    /// None was looked at.
    #[default]
    NotLooked,
    /// It holds none of their locks.
    Free,
    /// It took the newest of its locks at this Redis time, in seconds.
    TakenAt(f64),
}

/// The answer to one claim.
#[derive(Debug, Default)]
pub struct Claim {
    /// The claimed members in the order of their scores.
    pub entries: Vec<Claimed>,
    /// Members in the schedule, due or not, when the claim was made.
    pub scheduled: u64,
    /// Redis time of the claim in seconds.
    pub now: f64,
    /// Members skipped because another worker holds their lock (mode `lock` only).
    pub foreign: u64,
    /// How long until the first of these locks ends, if that is known.
    pub unlock_in: Option<Duration>,
    /// What Redis refused, if it refused a part.
    pub refused: Option<Refused>,
    /// Members that were too long to be claimed, and were moved to quarantine.
    pub isolated: u64,
    /// Such members that were postponed, because the quarantine is full or can't be written.
    pub unlisted: u64,
    /// Whether the ledger's own worker has locked members that were due.
    pub ledger_lock: LedgerLock,
}

/// A refusal of Redis that concerns a part of a claim.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Members whose values Redis did not return; they stay scheduled and are due later. 0 = all values were returned, but
    /// Redis refused to raise their TTLs.
    pub put_off: u64,
    /// The refusal.
    pub error: ScheduleError,
}

/// Why a claimed member goes to quarantine.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The reason.
    pub reason: QuarantineReason,
    /// What was found and what is allowed, for operators.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(former: &str) -> Claimed {
        Claimed {
            member: b"m".to_vec(),
            lease: Arc::from("0"),
            leased: 1,
            schedule: 0,
            former: former.to_owned(),
            value: None,
            unreadable: None,
        }
    }

    #[test]
    fn a_producers_score_is_the_time_of_the_mutation() {
        assert_eq!(claimed("1795380490.466168").scheduled_at(), Some(1_795_380_490.466_168));
        assert_eq!(claimed("1795380490").scheduled_at(), Some(1_795_380_490.0));
        assert_eq!(claimed("1795380490.47273").scheduled_at(), Some(1_795_380_490.472_73));
    }

    #[test]
    fn an_expired_lease_has_no_mutation_time() {
        assert_eq!(claimed("1795380490.4661686").scheduled_at(), None);
        assert_eq!(claimed("1795380490.0000005").scheduled_at(), None);
        assert_eq!(claimed("0").scheduled_at(), None);
        assert_eq!(claimed("inf").scheduled_at(), None);
    }

    #[test]
    fn an_expired_lease_began_a_claim_ttl_before_its_end() {
        let ttl = Duration::from_secs(30);
        assert_eq!(claimed("1795380490.466168").waits_since(ttl), Some(1_795_380_490.466_168));
        assert_eq!(claimed("1795380490.0000005").waits_since(ttl), Some(1_795_380_460.000_000_5));
        assert_eq!(claimed("0").waits_since(ttl), None);
        assert_eq!(claimed("inf").waits_since(ttl), None);
    }
}
