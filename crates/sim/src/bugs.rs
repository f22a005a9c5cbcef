//! Planted bugs: each switches one rule of the protocol off. A simulator that doesn't find them proves nothing.

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// One rule switched off.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Bug { $($(#[doc = $doc])+ $name,)+ }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What is wrong, in words.
            #[must_use]
            pub fn describe(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

bugs! {
    /// Settle removes members without comparing the score with the lease.
    BlindSettle,
    /// Settle removes members that hold any lease, not only this one.
    SettleAnyLease,
    /// Release restores the former score without comparing the score with the lease.
    BlindRelease,
    /// Release removes the member from the schedule.
    ReleaseRemoves,
    /// Quarantine takes members out of the schedule without comparing the score with the lease.
    BlindQuarantine,
    /// Leases end on a whole microsecond, as the scores of producers do.
    WholeMicrosecondLease,
    /// A claim doesn't move the score.
    LeaseNotMoved,
    /// A lease never ends.
    EndlessLease,
    /// A claim passes over members whose lease has lapsed.
    LapsedLeaseNotClaimed,
    /// Rows are written without the version guard.
    NoVersionGuard,
    /// Members are settled before they are written.
    SettleBeforeWrite,
    /// Members are settled although the write failed.
    SettleOnFailure,
    /// A write without an answer is taken for written.
    TimeoutCountsAsWritten,
    /// Members are not released when the write failed.
    NoReleaseAfterFailure,
    /// Members are put in quarantine when the write failed.
    QuarantineOnOutage,
    /// One value that can't be read fails its whole batch.
    PoisonFailsBatch,
    /// A worker writes the first value that it ever read of a balance.
    CachedValue,
    /// Values that wait are never protected, neither by claims nor by sweeps.
    NeverProtect,
    /// Values are protected by claims only: no sweep ever runs.
    NoSweep,
    /// What is scheduled between two sweeps is not protected.
    NoRecent,
    /// A stopped worker drops what it holds.
    StopDropsHeld,
    /// A standby never takes over.
    StandbyNeverTakesOver,
    /// An answer of the tenant service that fails counts as an empty list.
    ErrorIsEmptyList,
    /// A list from which most tenants are missing is believed at once.
    ShortListBelieved,
    /// Workers whose registration has lapsed keep their share.
    DeadWorkersStay,
    /// An idle collector never wakes.
    IdleForever,
    /// Of a value in both spellings the amounts of lowerCamel are read.
    OtherSpelling,
    /// A null in the spelling that counts is replaced by the other spelling.
    NullFallsBack,
    /// An overdraft that can't be read counts as 0.
    BadOverdraftIsZero,
    /// Amounts are put through a float.
    FloatAmounts,
    /// A value in an unknown format is read as a known one.
    UnknownFormatRead,
    /// Values in an unknown format are put in quarantine.
    PutOffIsQuarantined,
    /// Values that are put off are not kept alive.
    PutOffExpires,
    /// Deletion markers are kept alive as values are.
    MarkerKeptAlive,
    /// Members are put off without comparing the score with the lease.
    BlindPostpone,
    /// Claims don't raise the remaining TTL of values.
    ClaimDoesNotProtect,
    /// Members without a value are removed without asking what became of them.
    GoneIsForgotten,
    /// A row as new as the trail counts at once.
    NoTrailGrace,
    /// A row as new as the trail counts where the mutation is old enough, or of unknown age.
    AgeIsEnough,
    /// A row as new as the trail counts when the grace is over, also after a failure in between.
    OutageForgotten,
    /// The trail is looked at only once more, at the end of the grace.
    OneLookAtTheEnd,
    /// A row as new as the trail counts also on a server that refuses writes.
    ReadOnlyTrusted,
    /// What the trail shows to be lost is removed and not listed.
    LossNotListed,
    /// Losses are recorded without comparing the score with the lease.
    BlindLoss,
    /// A later write clears the loss of its balance.
    LossCleared,
    /// A later write of a lost balance is not marked.
    LaterNotMarked,
    /// A schedule that has shrunk unwritten is not reported.
    ShrinkageNotReported,
    /// Redis that came back empty is not reported.
    EmptiedNotReported,
    /// Redis that lacks acknowledged writes is not reported.
    BehindNotReported,
    /// Another process of Redis is not reported.
    RestartNotReported,
    /// Evicted keys are not reported.
    EvictionNotReported,
    /// A tenant that is taken over after Redis has lost data has no condition.
    LateTenantForgotten,
    /// The mark names another process as soon as one worker has noticed it.
    ProcessNamedEarly,
    /// Postgres is not looked at while the operations of the ledger are waited for.
    WaitUnwatched,
    /// Rows and operations are not compared when Redis has lost data.
    OperationsNotCompared,
    /// What is lost of a balance that is scheduled with an older state is not looked for again.
    ScheduledLossForgotten,
    /// Values and rows are not compared after a failover of Postgres.
    FailoverNotCompared,
    /// After a failover of Postgres, what a worker holds is not made due.
    HeldNotRescheduled,
    /// After a failover of Postgres, what is due keeps its score, by which the ledger's worker removes it.
    LockedNotRescheduled,
    /// One locked row holds up its whole batch.
    RowLockHoldsBatch,
    /// Mode `lock`: locks of others are ignored.
    LockIgnored,
    /// Mode `lock`: locks are deleted without looking whose they are.
    BlindUnlock,
    /// Mode `lock`: members that others have locked hide those behind them.
    LocksHideTheRest,
    /// Mode `lock`: values that stay locked by others are not kept alive.
    LockedNotProtected,
    /// Mode `lock`: the end of the locks of others is not waited for.
    LockEndMissed,
    /// What this process has written is not written again.
    WritesRemembered,
    /// A batch goes to the database of another tenant.
    WrongDatabase,
    /// All tenants of a worker share one permit to write.
    OnePermit,
}

impl std::fmt::Display for Bug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}
