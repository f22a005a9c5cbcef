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
        /// Redis is newer, and nobody will write it.
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

/// Which advice fits; one sentence each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Nothing is wrong.
    None,
    /// Late.
    AskWhy,
    /// Beyond any lease.
    MakeDue,
    /// Not scheduled.
    ScheduleAgain,
    /// The trail knows all of it.
    Recover,
    /// The trail knows the version only.
    AskLedger,
    /// Redis has started again from an old row.
    StopAndReload,
    /// It can't be said whether something is lost.
    CompleteTrail,
    /// Redis against the row.
    Fork,
    /// The trail against the row.
    ForkOfTrail,
    /// The trail confirms the row.
    ReloadFromRow,
    /// The row alone is so new.
    FindWriter,
    /// No row.
    RestoreRow,
    /// Money beside a deleted row.
    SettleClosed,
    /// Nothing belongs to it.
    FindOwner,
    /// It can't be read.
    MendValue,
    /// It stands in the quarantine, or among the losses.
    SetAside,
}

impl Advice {
    /// What to do, in one sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::None => "",
            Self::AskWhy => {
                "A worker writes it as soon as it can; `balance-sync why MEMBER` names what holds it up."
            }
            Self::MakeDue => {
                "It is scheduled further ahead than any lease reaches: `balance-sync verify --repair --apply` makes it due."
            }
            Self::ScheduleAgain => {
                "No worker will write it: `balance-sync verify --repair --apply` schedules it again."
            }
            Self::Recover => {
                "`balance-sync recover` shows the newest operation's state, and with --apply writes it to the row."
            }
            Self::AskLedger => {
                "The trail proves the loss and not the amounts: rebuild them from the balance's operations, and correct it by a \
                 transaction of the ledger."
            }
            Self::StopAndReload => {
                "The ledger goes on from an older state: stop postings to this balance, and correct it by a transaction of the \
                 ledger before more follow."
            }
            Self::CompleteTrail => {
                "Whether something is lost can't be told without its operations: make the trail readable and complete, and run \
                 the audit again."
            }
            Self::Fork => {
                "Redis and the row hold different amounts at one version: compare both with the balance's operations, and correct \
                 it by a transaction of the ledger."
            }
            Self::ForkOfTrail => {
                "The trail holds other amounts at the version of the row: rebuild the balance from its operations, and correct it \
                 by a transaction of the ledger."
            }
            Self::ReloadFromRow => {
                "Redis has gone back and the row is right: while nothing is posted to this balance, delete its value, so that the \
                 ledger starts from the row."
            }
            Self::FindWriter => {
                "Neither Redis nor the trail knows the version of the row: find out whether Redis was restored to an older state, \
                 or who else writes this table."
            }
            Self::RestoreRow => {
                "Restore the row, or find the database that has it; then `balance-sync verify --repair --apply` schedules it again."
            }
            Self::SettleClosed => {
                "Redis holds newer amounts for a deleted row: settle them by a transaction of the ledger, as no worker will write \
                 them."
            }
            Self::FindOwner => {
                "Neither a row nor a readable value belongs to it: find out who wrote it; `balance-sync why MEMBER` shows the rest."
            }
            Self::SetAside => {
                "It is set aside already: `balance-sync quarantine show MEMBER` says why, and `quarantine retry` tries it again once \
                 that is mended."
            }
            Self::MendValue => {
                "The value can't be read: compare it with the row, and have the ledger write it anew before it expires."
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const IN_FLIGHT: f64 = 10.0;

    fn known(version: i64, available: &str, overdraft_used: Option<&str>) -> Known {
        Known {
            version,
            amounts: Amounts {
                available: available.to_owned(),
                on_hold: "0".to_owned(),
                overdraft_used: overdraft_used.map(str::to_owned),
            },
        }
    }

    /// A balance whose amount is ten times its version, unless it is said otherwise.
    fn at(version: i64) -> Known {
        known(version, &(version * 10).to_string(), Some("0"))
    }

    fn value(version: i64) -> Value {
        Value::Present(at(version))
    }

    fn operation(known: Known) -> Operation {
        Operation { known, in_doubt: false, age: 0.0 }
    }

    fn trail(version: i64) -> Trail {
        Trail::Newest(operation(at(version)))
    }

    fn witnesses(value: Value, row: Option<i64>, trail: Trail, scheduled: Scheduled) -> Witnesses {
        let row = row.map(|version| Row { known: at(version), deleted: false });
        Witnesses { companion: false, value, row, trail, record: None, scheduled }
    }

    fn found(witnesses: &Witnesses) -> (Class, Advice, i64) {
        let Judgement { class, advice, version } = judge(witnesses, IN_FLIGHT);
        (class, advice, version)
    }

    #[test]
    fn every_class_has_its_case() {
        use Advice as A;
        use Class::{BehindScheduled, BehindUnscheduled, Forked, InFlight, InSync, LostFromRedis};
        use Class::{MissingRow, Orphaned, RowAhead};
        use Scheduled::{Distant, Due, No};
        use Trail::{Nothing, Unread};
        use Value::Absent;
        let unreadable = || Value::Unreadable("no JSON".to_owned());
        let table = [
            (value(5), Some(5), trail(5), No, InSync, A::None, 5),
            // The trail is written after Redis.
            (value(5), Some(5), trail(4), No, InSync, A::None, 5),
            (value(5), Some(5), Nothing, No, InSync, A::None, 5),
            (value(5), Some(5), Unread, Due(1.0), InSync, A::None, 5),
            (value(6), Some(5), trail(6), Due(1.0), InFlight, A::None, 6),
            (value(6), Some(5), trail(5), Due(-30.0), InFlight, A::None, 6),
            (value(6), Some(5), trail(6), Due(11.0), BehindScheduled, A::AskWhy, 6),
            (value(6), Some(5), trail(6), Distant, BehindScheduled, A::MakeDue, 6),
            (value(6), Some(-1), trail(5), No, BehindUnscheduled, A::ScheduleAgain, 6),
            (Absent, Some(5), trail(6), No, LostFromRedis, A::Recover, 6),
            (Absent, Some(5), trail(6), Due(-5.0), LostFromRedis, A::Recover, 6),
            // Redis has started again from the row.
            (value(5), Some(5), trail(7), No, LostFromRedis, A::StopAndReload, 7),
            (value(6), Some(5), trail(7), Due(0.1), LostFromRedis, A::StopAndReload, 7),
            (Absent, Some(5), trail(5), No, InSync, A::None, 5),
            (Absent, Some(5), trail(5), Due(99.0), InFlight, A::None, 5),
            (Absent, Some(5), trail(5), Distant, InFlight, A::None, 5),
            (Absent, Some(5), trail(4), No, InSync, A::None, 5),
            (Absent, Some(1), Nothing, Due(99.0), InFlight, A::None, 1),
            (Absent, Some(2), Nothing, Due(99.0), LostFromRedis, A::CompleteTrail, 2),
            (Absent, Some(2), Nothing, Due(9.0), InFlight, A::None, 2),
            (Absent, Some(2), Nothing, No, InSync, A::None, 2),
            (Absent, Some(1), Unread, Due(99.0), LostFromRedis, A::CompleteTrail, 1),
            (Absent, Some(9), Unread, No, InSync, A::None, 9),
            (value(4), Some(5), trail(5), No, RowAhead, A::ReloadFromRow, 5),
            (value(4), Some(5), trail(4), No, RowAhead, A::FindWriter, 5),
            (value(4), Some(5), Unread, Due(99.0), RowAhead, A::FindWriter, 5),
            (value(5), None, Unread, Due(99.0), MissingRow, A::RestoreRow, 5),
            (unreadable(), None, Unread, No, Orphaned, A::MendValue, -1),
            (unreadable(), Some(5), trail(5), No, Orphaned, A::MendValue, 5),
            (Absent, None, Unread, Due(0.0), Orphaned, A::FindOwner, -1),
            (Absent, None, Unread, No, InSync, A::None, -1),
        ];
        for (value, row, trail, scheduled, class, advice, version) in table {
            let case = witnesses(value, row, trail, scheduled);
            assert_eq!(found(&case), (class, advice, version), "{case:?}");
        }
        let differing = [
            (value(5), known(5, "51", Some("0")), Unread, Forked, A::Fork),
            (value(5), known(5, "50.00", Some("0.0")), Unread, InSync, A::None),
            (value(5), known(5, "50", Some("1")), trail(4), Forked, A::Fork),
            (value(5), known(5, "NULL", Some("0")), Unread, Forked, A::Fork),
            // The trail against both, or against the row alone.
            (value(5), at(5), Trail::Newest(operation(known(5, "51", Some("0")))), Forked, A::ForkOfTrail),
            (Absent, at(5), Trail::Newest(operation(known(5, "51", Some("0")))), Forked, A::ForkOfTrail),
            (Absent, at(5), Trail::Newest(operation(known(5, "50", Some("3")))), Forked, A::ForkOfTrail),
            (value(6), at(5), Trail::Newest(operation(known(6, "61", Some("0")))), Forked, A::ForkOfTrail),
            (value(4), at(5), Trail::Newest(operation(known(5, "51", Some("0")))), RowAhead, A::Fork),
        ];
        for (value, row, trail, class, advice) in differing {
            let mut case = witnesses(value, None, trail, No);
            case.row = Some(Row { known: row, deleted: false });
            let (found_class, found_advice, _) = found(&case);
            assert_eq!((found_class, found_advice), (class, advice), "{case:?}");
        }
    }

    /// The first trap: the overdraft in a companion's operation is that of another balance.
    #[test]
    fn a_companions_overdraft_is_not_compared_nor_written() {
        let of_primary = Trail::Newest(operation(known(5, "50", Some("700"))));
        let mut same = witnesses(Value::Absent, Some(5), of_primary.clone(), Scheduled::No);
        assert_eq!(found(&same), (Class::Forked, Advice::ForkOfTrail, 5), "of a primary balance it counts");
        same.companion = true;
        assert_eq!(found(&same), (Class::InSync, Advice::None, 5));
        same.value = value(5);
        assert_eq!(found(&same), (Class::InSync, Advice::None, 5));
        // Its own amounts count.
        same.trail = Trail::Newest(operation(known(5, "51", Some("700"))));
        assert_eq!(found(&same), (Class::Forked, Advice::ForkOfTrail, 5));
        let mut lost = witnesses(Value::Absent, Some(4), of_primary, Scheduled::No);
        lost.companion = true;
        assert_eq!(found(&lost), (Class::LostFromRedis, Advice::AskLedger, 5));
        assert_eq!(lost.recoverable(), None);
        // A recover record has the companion's own.
        lost.record = Some(at(5));
        assert_eq!(found(&lost), (Class::LostFromRedis, Advice::Recover, 5));
        assert_eq!(lost.recoverable(), Some(&at(5)));
    }

    /// The second trap: after a repayment only the version of an operation is sure.
    #[test]
    fn what_is_in_doubt_proves_a_loss_and_no_fork() {
        let in_doubt = |version, available| {
            Trail::Newest(Operation { known: known(version, available, Some("0")), in_doubt: true, age: 0.0 })
        };
        for value in [value(5), Value::Absent] {
            let case = witnesses(value, Some(5), in_doubt(5, "51"), Scheduled::No);
            assert_eq!(found(&case), (Class::InSync, Advice::None, 5));
        }
        let lost = witnesses(Value::Absent, Some(5), in_doubt(6, "60"), Scheduled::No);
        assert_eq!(found(&lost), (Class::LostFromRedis, Advice::AskLedger, 6));
        assert_eq!(lost.recoverable(), None);
    }

    #[test]
    fn the_newer_of_operation_and_record_counts() {
        let mut case = witnesses(Value::Absent, Some(5), trail(6), Scheduled::No);
        case.record = Some(at(7));
        assert_eq!((found(&case).2, case.recoverable()), (7, Some(&at(7))));
        case.record = Some(at(5));
        assert_eq!((found(&case).2, case.recoverable()), (6, Some(&at(6))));
        // Complete amounts win at the same version.
        case.trail = Trail::Newest(Operation { in_doubt: true, ..operation(known(6, "61", None)) });
        case.record = Some(at(6));
        assert_eq!(case.recoverable(), Some(&at(6)));
    }

    #[test]
    fn only_what_redis_lacks_is_recoverable() {
        let of = |value, row| witnesses(value, row, trail(6), Scheduled::No).recoverable().cloned();
        assert_eq!(of(Value::Absent, Some(5)), Some(at(6)));
        assert_eq!(of(Value::Absent, Some(6)), None, "never over a row as new");
        assert_eq!(of(Value::Absent, Some(7)), None, "never over a newer row");
        assert_eq!(of(Value::Absent, None), None);
        assert_eq!(of(value(5), Some(5)), None, "the ledger goes on from there");
        assert_eq!(of(Value::Unreadable(String::new()), Some(5)), None);
        let mut deleted = witnesses(Value::Absent, Some(5), trail(6), Scheduled::No);
        deleted.row = Some(Row { known: at(5), deleted: true });
        assert_eq!(deleted.recoverable(), None);
        let unknown =
            witnesses(Value::Absent, Some(5), Trail::Newest(operation(known(6, "60", None))), Scheduled::No);
        assert_eq!((found(&unknown).1, unknown.recoverable()), (Advice::AskLedger, None));
    }

    #[test]
    fn a_deleted_row_is_a_finding_only_beside_newer_money() {
        let of = |value| {
            let mut case = witnesses(value, None, trail(9), Scheduled::Due(99.0));
            case.row = Some(Row { known: known(5, "0", Some("0")), deleted: true });
            found(&case)
        };
        assert_eq!(of(Value::Absent), (Class::Deleted, Advice::None, 5));
        assert_eq!(of(value(5)), (Class::Deleted, Advice::None, 5));
        assert_eq!(of(Value::Present(known(6, "0.00", Some("0")))), (Class::Deleted, Advice::None, 5));
        assert_eq!(of(value(6)), (Class::Deleted, Advice::SettleClosed, 6));
    }

    /// Leased again and again its score says nothing; the trail does.
    #[test]
    fn an_old_operation_tells_the_age_of_what_is_leased() {
        let mut case = witnesses(value(6), Some(5), trail(6), Scheduled::Due(-20.0));
        assert_eq!(found(&case).0, Class::InFlight);
        case.trail = Trail::Newest(Operation { age: 60.0, ..operation(at(6)) });
        assert_eq!(found(&case), (Class::BehindScheduled, Advice::AskWhy, 6));
        case.trail = Trail::Newest(Operation { age: 60.0, ..operation(at(5)) });
        assert_eq!(found(&case).0, Class::InFlight, "that of an older version");
    }

    #[test]
    fn what_moves_is_not_still_there() {
        let behind = |version| judge(&witnesses(value(version), Some(5), trail(5), Scheduled::No), IN_FLIGHT);
        assert!(behind(6).is_still(&behind(6)));
        assert!(!behind(6).is_still(&behind(7)));
        let clean = judge(&witnesses(value(6), Some(6), trail(6), Scheduled::No), IN_FLIGHT);
        assert!(!behind(6).is_still(&clean) && !clean.is_still(&clean));
    }

    #[test]
    fn what_is_set_aside_is_not_scheduled_again_by_a_repair() {
        let behind = judge(&witnesses(value(6), Some(5), trail(5), Scheduled::No), IN_FLIGHT);
        assert_eq!((behind.advice(false), behind.advice(true)), (Advice::ScheduleAgain, Advice::SetAside));
        let lost = judge(&witnesses(Value::Absent, Some(5), trail(6), Scheduled::No), IN_FLIGHT);
        assert_eq!(lost.advice(true), Advice::Recover);
    }

    #[test]
    fn each_advice_is_one_sentence() {
        for advice in [
            Advice::AskWhy,
            Advice::MakeDue,
            Advice::ScheduleAgain,
            Advice::Recover,
            Advice::AskLedger,
            Advice::StopAndReload,
            Advice::CompleteTrail,
            Advice::Fork,
            Advice::ForkOfTrail,
            Advice::ReloadFromRow,
            Advice::FindWriter,
            Advice::RestoreRow,
            Advice::SettleClosed,
            Advice::FindOwner,
            Advice::MendValue,
            Advice::SetAside,
        ] {
            let text = advice.sentence();
            assert!(text.ends_with('.') && !text.contains(". "), "{text}");
        }
    }
}
