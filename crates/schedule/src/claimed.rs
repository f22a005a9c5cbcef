//! What a claim holds.

use std::sync::Arc;

use crate::error::ScheduleError;

/// One claimed member. Dropping it gives nothing back: the lease then lapses by itself.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The member of the schedule, as it stands there. Arbitrary bytes: what can't be parsed is still a member.
    pub member: Vec<u8>,
    /// Our lease: the score under which this member may be settled or released.
    pub lease: Arc<str>,
    /// Which of the tenant's schedules it came from, see [`crate::Schedules`].
    pub schedule: usize,
    /// The score before the claim, as Redis printed it.
    pub former: String,
    /// The balance's JSON; `None` when the value has expired or can't be read, or the member is another tenant's.
    pub value: Option<Vec<u8>>,
    /// Why the value can't be read although its key is there, or may be: it is of another type, or outside the tenant's slot.
    pub unreadable: Option<String>,
}

impl Claimed {
    /// When the mutation was scheduled, in seconds of Redis time. `None` when the former score was a lease that
    /// lapsed: when the mutation itself came is then no longer known.
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
}

/// The answer to one claim.
#[derive(Debug, Default)]
pub struct Claim {
    /// The members that are ours until the lease ends, in the order of their scores.
    pub entries: Vec<Claimed>,
    /// Members in the schedule, due or not, when the claim was made.
    pub scheduled: u64,
    /// Redis time of the claim in seconds.
    pub now: f64,
    /// Members passed over because another worker holds their lock (mode `lock` only).
    pub foreign: u64,
    /// What Redis refused beside what it gave.
    pub refused: Option<Refused>,
}

/// What Redis refused in a claim that brought other members.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Members whose values it did not give: still scheduled, put off. 0 = it gave all, and refuses to keep them alive.
    pub put_off: u64,
    /// Why.
    pub error: ScheduleError,
}

/// Why a claimed member goes to quarantine.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Short, stable name, e.g. `missing_row`.
    pub reason: &'static str,
    /// What was found and what is allowed, for a human.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(former: &str) -> Claimed {
        Claimed {
            member: b"m".to_vec(),
            lease: Arc::from("0"),
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
    fn a_lapsed_lease_tells_no_time() {
        assert_eq!(claimed("1795380490.4661686").scheduled_at(), None);
        assert_eq!(claimed("1795380490.0000005").scheduled_at(), None);
        assert_eq!(claimed("0").scheduled_at(), None);
        assert_eq!(claimed("inf").scheduled_at(), None);
    }
}
