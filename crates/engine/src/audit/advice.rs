//! What to do about a finding.

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
                "It is scheduled further ahead than a lease explains: `balance-sync verify --repair --apply` makes it due."
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
                "Whether something is lost can't be determined without its operations: make the trail readable and complete, and run \
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
