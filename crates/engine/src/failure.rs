//! What a tenant does about a failure. Which failure leads to which reaction is decided where the failures are known
//! (`balance_sync_fleet::failure`).

/// How long the tenant waits between tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// The failure may be over at any moment (`postgres.backoff_max`).
    Short,
    /// Somebody has to do something first (`postgres.backoff_long`).
    Long,
}

/// What the tenant does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaction {
    /// The reason in its state: short and stable.
    pub reason: &'static str,
    /// How long it waits.
    pub pace: Pace,
    /// Whether its configuration is fetched afresh: the answer in force may be out of date.
    pub refetch: bool,
    /// Whether it pings Postgres before it claims again. Where a ping proves nothing (a missing table answers pings), it
    /// claims one batch and tries.
    pub ping: bool,
    /// Whether this is a tenant passed over, rather than a write that failed.
    pub skip: bool,
}

/// Which part of the work fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Redis can't be reached: nothing can be claimed, released or protected, but what is held can still be written.
    Queue,
    /// Redis answers, and refuses to let members be claimed.
    Claim,
    /// Redis lets members be claimed, and refuses to take them off the schedule once they are written.
    Settle,
    /// Postgres, or the way to it: nothing can be written.
    Sink,
}

impl Side {
    /// Whether the answer to a claim shows that the failure is over.
    #[must_use]
    pub fn ends_with_a_claim(self) -> bool {
        matches!(self, Self::Queue | Self::Claim)
    }
}

/// A failure, as far as decisions depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What fails.
    pub side: Side,
    /// What is done about it.
    pub reaction: Reaction,
    /// In words, for people; no secrets.
    pub detail: String,
}
