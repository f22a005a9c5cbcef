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
    /// An idle collector never wakes.
    IdleForever,
}

impl std::fmt::Display for Bug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}
