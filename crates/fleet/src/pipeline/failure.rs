//! The failures that drivers meet, as causes of the failure table (`balance_sync_engine::failure`).

use balance_sync_engine::failure::{self, Cause, Failure, Side};
pub use balance_sync_engine::failure::{Pace, Reaction};
use balance_sync_schedule::{ErrorClass as RedisClass, ScheduleError};
use balance_sync_store::{ErrorClass as StoreClass, InvalidIdentifier, StoreError};
use balance_sync_tenants::DirectoryError;

/// Why a batch could not be written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SinkError {
    /// The tenant's database could not be had: the tenant service gave no answer, or says it must not be served.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The schema name can't be used.
    #[error(transparent)]
    Schema(#[from] InvalidIdentifier),
    /// Postgres failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The flush took longer than its deadline; whether it was written is unknown, and doesn't matter.
    #[error("postgres: no answer within the flush deadline of {0:?}")]
    Deadline(std::time::Duration),
    /// The tenant manager has ended: the worker is stopping.
    #[error("tenant manager has ended")]
    ManagerGone,
}

impl From<&SinkError> for Cause {
    fn from(error: &SinkError) -> Self {
        match error {
            SinkError::Store(error) => Self::Postgres(error.class()),
            SinkError::Deadline(_) => Self::FlushDeadline,
            SinkError::Directory(error) => Self::Directory(error.class()),
            SinkError::Schema(_) => Self::Schema,
            SinkError::ManagerGone => Self::WorkerStopping,
        }
    }
}

impl From<&SinkError> for Failure {
    fn from(error: &SinkError) -> Self {
        Self::new(Side::Sink, error.into(), error.to_string())
    }
}

/// Whether a look at rows has only waited in vain for a connection while others get theirs: no failure of the tenant, as little as the
/// wait of a batch. The look is repeated with the next claim.
pub(crate) fn is_only_a_wait(error: &SinkError) -> bool {
    matches!(error, SinkError::Store(error) if error.class() == StoreClass::ConnectionBudget)
}

/// The reaction to a failed write.
#[must_use]
pub fn reaction(error: &SinkError) -> Reaction {
    failure::reaction(error.into())
}

/// A call to Redis that failed, as the failure of this side.
pub(crate) fn redis_failure(side: Side, error: &ScheduleError) -> Failure {
    Failure::new(side, Cause::Redis(error.class), error.to_string())
}

/// The reaction to a failed call to Redis.
#[must_use]
pub fn redis_reaction(class: RedisClass) -> Reaction {
    failure::reaction(Cause::Redis(class))
}
