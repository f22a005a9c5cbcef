//! What is wrong with a balance, from what three witnesses know of it: its value in Redis, its row, and the newest operation of the
//! ledger's trail (or, where there is one, the ledger's own recover record).
//!
//! [`judge`] looks at one moment. The witnesses are read one after the other on a ledger that works, so a single look may see
//! the past of one and the present of another. What counts is a judgement that is [still](Judgement::is_still) there later, while
//! the version that is lacking has not moved.
//!
//! Two traps of the trail: the operations of an overdraft's companion repeat the overdraft of the *primary* balance, so of a
//! companion ([`COMPANION`]) it isn't compared. And after a repayment of an overdraft the state that the operation names can
//! differ from the true one (`in_doubt`): its version counts, its amounts don't.

mod advice;
#[cfg(test)]
mod tests;

pub use advice::Advice;
use balance_sync_domain::Amount;
use serde::Serialize;

use crate::names;

/// The key of an overdraft's companion balance.
pub const COMPANION: &str = "overdraft";
/// A row that has never been written by the sync has at most this version, and may have no operation.
const FIRST_VERSION: i64 = 1;

names! {
    /// What is found of a balance.
    pub enum Class {
        /// The row has what the newest witness has.
        InSync = "in_sync",
        /// It is being written.
        InFlight = "in_flight",
        /// Redis is newer, and a worker will write it when it can.
        BehindScheduled = "behind_scheduled",
        /// Redis is newer, and no worker will write it.
        BehindUnscheduled = "behind_unscheduled",
        /// The trail is newer than Redis and the row.
        LostFromRedis = "lost_from_redis",
        /// Two witnesses hold different amounts at the same version.
        Forked = "forked",
        /// The row is newer than Redis.
        RowAhead = "row_ahead",
        /// A value without a row.
        MissingRow = "missing_row",
        /// The row is deleted.
        Deleted = "deleted",
        /// A member or value that leads to no balance.
        Orphaned = "orphaned",
    }
}

/// The amounts of one witness, as it writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Amounts {
    /// What can be spent.
    pub available: String,
    /// What is reserved.
    pub on_hold: String,
    /// What of the overdraft is in use; `None` where the witness doesn't know it.
    pub overdraft_used: Option<String>,
}

impl Amounts {
    /// Whether both are the same numbers, as far as both are known.
    #[must_use]
    pub fn agree(&self, other: &Self) -> bool {
        let overdraft = match (&self.overdraft_used, &other.overdraft_used) {
            (Some(a), Some(b)) => same(a, b),
            _ => true,
        };
        overdraft && same(&self.available, &other.available) && same(&self.on_hold, &other.on_hold)
    }

    fn is_zero(&self) -> bool {
        let zero = |text: &str| same(text, "0");
        zero(&self.available) && zero(&self.on_hold) && self.overdraft_used.as_deref().is_none_or(zero)
    }
}

/// Whether two texts are the same number.
fn same(a: &str, b: &str) -> bool {
    a == b || matches!((Amount::parse(a), Amount::parse(b)), (Ok(a), Ok(b)) if a.same_value(&b))
}

/// A state that a witness knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Known {
    /// Its version; −1 of a row without one.
    pub version: i64,
    /// Its amounts.
    #[serde(flatten)]
    pub amounts: Amounts,
}

/// What Redis holds under the balance's key, the newer of both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    Absent,
    /// What can't be read, and why.
    Unreadable(String),
    /// A value.
    Present(Known),
}

/// The row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What it holds.
    pub known: Known,
    /// Whether it is deleted.
    pub deleted: bool,
}

/// The newest operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// The state it led to.
    pub known: Known,
    /// Whether it repaid an overdraft, so that its amounts may differ from the true ones.
    pub in_doubt: bool,
    /// Seconds since it was created.
    pub age: f64,
}

/// What the trail knows.
#[derive(Debug, Clone, PartialEq)]
pub enum Trail {
    /// It can't be read.
    Unread,
    /// It has no operation of this balance.
    Nothing,
    /// Its newest operation.
    Newest(Operation),
}

/// Whether a worker will come by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scheduled {
    /// It is in no schedule of the tenant.
    No,
    /// Since so many seconds; negative for one that is leased or put off.
    Due(f64),
    /// Further ahead than any lease or delay reaches.
    Distant,
}

/// All that is known of one balance.
#[derive(Debug, Clone, PartialEq)]
pub struct Witnesses {
    /// Whether its key is that of a companion.
    pub companion: bool,
    /// Redis.
    pub value: Value,
    /// The row, if there is one.
    pub row: Option<Row>,
    /// The trail.
    pub trail: Trail,
    /// What a recover record of the ledger has of it.
    pub record: Option<Known>,
    /// The schedules.
    pub scheduled: Scheduled,
}

/// What is found of a balance at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// What.
    pub class: Class,
    /// What to do.
    pub advice: Advice,
    /// The version it is about, which a later look must find again; −1 where there is none.
    pub version: i64,
}

impl Judgement {
    const fn new(class: Class, advice: Advice, version: i64) -> Self {
        Self { class, advice, version }
    }

    /// Whether something is wrong.
    #[must_use]
    pub const fn is_finding(&self) -> bool {
        !matches!(self.advice, Advice::None)
    }

    /// What to do, if it may stand in the list of quarantined and lost balances already. No repair touches what is quarantined, but
    /// a loss is mended in the same way.
    #[must_use]
    pub const fn advice(&self, listed: bool) -> Advice {
        match self.class {
            Class::BehindScheduled | Class::BehindUnscheduled | Class::MissingRow | Class::Orphaned
                if listed =>
            {
                Advice::SetAside
            }
            _ => self.advice,
        }
    }

    /// Whether a later look has found the same: what moves is being written.
    #[must_use]
    pub fn is_still(&self, later: &Self) -> bool {
        self.is_finding() && self.class == later.class && self.version == later.version && later.is_finding()
    }
}

/// The newest state beside Redis and the row.
struct Last<'w> {
    known: &'w Known,
    in_doubt: bool,
    age: f64,
    complete: bool,
}

impl Witnesses {
    /// The newer of operation and recover record. A record is complete, so it wins at the same version.
    fn last(&self) -> Option<Last<'_>> {
        let operation = match &self.trail {
            Trail::Newest(operation) => Some(Last {
                known: &operation.known,
                in_doubt: operation.in_doubt,
                age: operation.age,
                complete: operation.known.amounts.overdraft_used.is_some() && !self.companion,
            }),
            Trail::Unread | Trail::Nothing => None,
        };
        let record =
            self.record.as_ref().map(|known| Last { known, in_doubt: false, age: 0.0, complete: true });
        match (operation, record) {
            (Some(operation), Some(record)) if operation.known.version > record.known.version => {
                Some(operation)
            }
            (operation, None) => operation,
            (_, record) => record,
        }
    }

    /// Whether the newest state has other amounts than this one of the same version.
    fn contradicts(&self, last: Option<&Last<'_>>, known: &Known) -> bool {
        last.is_some_and(|last| {
            if last.in_doubt || last.known.version != known.version {
                return false;
            }
            let mut amounts = last.known.amounts.clone();
            if !last.complete {
                amounts.overdraft_used = None;
            }
            !amounts.agree(&known.amounts)
        })
    }

    /// What may be written to the row: the state of the newest witness, if it is beyond doubt and Redis holds nothing.
    #[must_use]
    pub fn recoverable(&self) -> Option<&Known> {
        let row = self.row.as_ref().filter(|row| !row.deleted)?;
        let last = self.last().filter(|last| last.known.version > row.known.version)?;
        (self.value == Value::Absent && last.complete && !last.in_doubt).then_some(last.known)
    }
}

/// What is wrong with a balance. Scheduled for no more than `in_flight` seconds is in time.
#[must_use]
pub fn judge(witnesses: &Witnesses, in_flight: f64) -> Judgement {
    use Class::{BehindScheduled, BehindUnscheduled, Deleted, Forked, InFlight, InSync, LostFromRedis};
    use Class::{MissingRow, Orphaned, RowAhead};
    let scheduled = witnesses.scheduled;
    let Some(row) = &witnesses.row else {
        return match &witnesses.value {
            Value::Present(known) => Judgement::new(MissingRow, Advice::RestoreRow, known.version),
            Value::Unreadable(_) => Judgement::new(Orphaned, Advice::MendValue, -1),
            Value::Absent if scheduled == Scheduled::No => Judgement::new(InSync, Advice::None, -1),
            Value::Absent => Judgement::new(Orphaned, Advice::FindOwner, -1),
        };
    };
    let stored = &row.known;
    if row.deleted {
        let newer = match &witnesses.value {
            Value::Present(known) if known.version > stored.version && !known.amounts.is_zero() => {
                known.version
            }
            _ => return Judgement::new(Deleted, Advice::None, stored.version),
        };
        return Judgement::new(Deleted, Advice::SettleClosed, newer);
    }
    let last = witnesses.last();
    let beyond = |version: i64| {
        last.as_ref().filter(|last| last.known.version > version && last.known.version > stored.version)
    };
    match &witnesses.value {
        Value::Unreadable(_) => Judgement::new(Orphaned, Advice::MendValue, stored.version),
        Value::Present(value) => {
            if let Some(last) = beyond(value.version) {
                return Judgement::new(LostFromRedis, Advice::StopAndReload, last.known.version);
            }
            if witnesses.contradicts(last.as_ref(), value) {
                return Judgement::new(Forked, Advice::ForkOfTrail, value.version);
            }
            match value.version.cmp(&stored.version) {
                std::cmp::Ordering::Greater => {
                    let known_for = last.as_ref().filter(|last| last.known.version == value.version);
                    let operation_age = known_for.map_or(0.0, |last| last.age);
                    match scheduled {
                        Scheduled::No => {
                            Judgement::new(BehindUnscheduled, Advice::ScheduleAgain, value.version)
                        }
                        Scheduled::Distant => Judgement::new(BehindScheduled, Advice::MakeDue, value.version),
                        Scheduled::Due(since) if since.max(operation_age) > in_flight => {
                            Judgement::new(BehindScheduled, Advice::AskWhy, value.version)
                        }
                        Scheduled::Due(_) => Judgement::new(InFlight, Advice::None, value.version),
                    }
                }
                std::cmp::Ordering::Less => {
                    let confirmed = last.as_ref().is_some_and(|last| last.known.version == stored.version);
                    let advice = match confirmed {
                        true if witnesses.contradicts(last.as_ref(), stored) => Advice::Fork,
                        true => Advice::ReloadFromRow,
                        false => Advice::FindWriter,
                    };
                    Judgement::new(RowAhead, advice, stored.version)
                }
                std::cmp::Ordering::Equal if !value.amounts.agree(&stored.amounts) => {
                    Judgement::new(Forked, Advice::Fork, stored.version)
                }
                std::cmp::Ordering::Equal => Judgement::new(InSync, Advice::None, stored.version),
            }
        }
        Value::Absent => {
            if let Some(last) = beyond(stored.version) {
                let advice = match witnesses.recoverable() {
                    Some(_) => Advice::Recover,
                    None => Advice::AskLedger,
                };
                return Judgement::new(LostFromRedis, advice, last.known.version);
            }
            if witnesses.contradicts(last.as_ref(), stored) {
                return Judgement::new(Forked, Advice::ForkOfTrail, stored.version);
            }
            // Nothing proves that the row has what the member was scheduled for.
            let unproven = match &witnesses.trail {
                _ if last.is_some() => false,
                Trail::Unread => true,
                Trail::Nothing | Trail::Newest(_) => stored.version > FIRST_VERSION,
            };
            match scheduled {
                Scheduled::No => Judgement::new(InSync, Advice::None, stored.version),
                Scheduled::Due(since) if since <= in_flight || !unproven => {
                    Judgement::new(InFlight, Advice::None, stored.version)
                }
                Scheduled::Due(_) | Scheduled::Distant if unproven => {
                    Judgement::new(LostFromRedis, Advice::CompleteTrail, stored.version)
                }
                Scheduled::Due(_) | Scheduled::Distant => {
                    Judgement::new(InFlight, Advice::None, stored.version)
                }
            }
        }
    }
}
