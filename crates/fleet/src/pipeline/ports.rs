//! What a collector needs of the outside, as traits: Redis on one side, Postgres on the other.
//!
//! The collector's loop is generic over them, so that its timing is tested on paused time with fakes in memory. The
//! real ones are [`crate::backends`]'s.

use std::{future::Future, time::Duration};

use balance_sync_domain::KeySpace;
use balance_sync_schedule::{
    Claim, Claimed, Loss, PostponeReport, QuarantineReport, Refusal, ReleaseReport, ScheduleError,
    SettleReport,
};
use balance_sync_store::{Fates, Named, Row, RowResult, StoredRow};

use super::failure::SinkError;

/// What a survey of a tenant's keys found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Survey {
    /// Members moved here from a legacy schedule.
    pub adopted: u64,
    /// Members in the schedule of the key form that is not configured: no worker serves them.
    pub other_form: u64,
}

/// What a sweep over all scheduled values found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Values whose life was raised.
    pub raised: u64,
    /// Members without a value.
    pub absent: u64,
    /// Smallest remaining life after raising.
    pub shortest: Option<Duration>,
}

/// A tenant's schedule.
pub trait Queue {
    /// The keys that stand for the tenant.
    fn space(&self) -> &KeySpace;
    /// The keys among which a member was claimed: a tenant whose id is a UUID has those of two forms.
    fn space_of(&self, _claimed: &Claimed) -> &KeySpace {
        self.space()
    }
    /// Claims up to `limit` due members.
    fn claim(&self, limit: usize) -> impl Future<Output = Result<Claim, ScheduleError>>;
    /// Removes written members.
    fn settle(&self, written: &[&Claimed]) -> impl Future<Output = Result<SettleReport, ScheduleError>>;
    /// Gives members back.
    fn release(&self, held: &[&Claimed]) -> impl Future<Output = Result<ReleaseReport, ScheduleError>>;
    /// Puts members off that can't be worked at present; `true` = and keeps their values alive.
    fn postpone(
        &self,
        members: &[(&Claimed, bool)],
    ) -> impl Future<Output = Result<PostponeReport, ScheduleError>>;
    /// Removes members of which nothing is to be written.
    fn dismiss(&self, obsolete: &[&Claimed]) -> impl Future<Output = Result<SettleReport, ScheduleError>>;
    /// Puts members off that can't be worked yet; returns one report for each of their schedules.
    fn put_off(
        &self,
        waiting: &[&Claimed],
        delay: Duration,
    ) -> impl Future<Output = Result<Vec<(usize, PostponeReport)>, ScheduleError>>;
    /// What Redis holds of these members now, under every form of the tenant's id.
    fn current_values(
        &self,
        members: &[&Claimed],
    ) -> impl Future<Output = Result<Vec<Vec<Vec<u8>>>, ScheduleError>>;
    /// Records members whose mutations are lost, or whose balances have forked.
    fn record_losses(
        &self,
        lost: &[(&Claimed, Loss)],
    ) -> impl Future<Output = Result<QuarantineReport, ScheduleError>>;
    /// Isolates members that can't be synced.
    fn quarantine(
        &self,
        refused: &[(&Claimed, Refusal)],
    ) -> impl Future<Output = Result<QuarantineReport, ScheduleError>>;
    /// Keeps all scheduled values alive.
    fn sweep(&self) -> impl Future<Output = Result<Sweep, ScheduleError>>;
    /// Keeps alive what was scheduled since; see `Schedule::protect_since`.
    fn protect_since(&self, from: Option<f64>) -> impl Future<Output = Result<(f64, u64), ScheduleError>>;
    /// Looks after legacy schedules and key forms.
    fn survey(&self) -> impl Future<Output = Result<Survey, ScheduleError>>;
    /// Waits about so long, or until something may be due.
    fn idle(&self, delay: Duration) -> impl Future<Output = ()>;
    /// Waits until something is due that no worker claims.
    fn stand_by(&self) -> impl Future<Output = ()>;
}

/// A tenant's Postgres.
pub trait Sink {
    /// The right to write now: a connection that no other operation uses. Dropping it gives it back.
    type Permit;
    /// Waits for a permit. `last` = the collector is stopping: a database that may no longer be served is used as far as it
    /// still lets us. It takes no longer than `limit`, apart from the wait in a queue that moves: a tenant that gives that up goes to its end.
    fn permit(&self, last: bool, limit: Duration) -> impl Future<Output = Result<Self::Permit, SinkError>>;
    /// Writes rows; one result per row, in order.
    fn update(
        &self,
        permit: Self::Permit,
        rows: &[Row<'_>],
    ) -> impl Future<Output = Result<Vec<RowResult>, SinkError>>;
    /// The rows of these balances as they stand, in order.
    fn rows(&self, rows: &[Row<'_>]) -> impl Future<Output = Result<Vec<Option<StoredRow>>, SinkError>>;
    /// What became of balances whose values are gone; fails where that depends on a trail that can't be written to. `last` as for
    /// [`Sink::permit`].
    fn fates(&self, gone: &[Named<'_>], last: bool) -> impl Future<Output = Result<Fates, SinkError>>;
    /// Asks for a sign of life.
    fn ping(&self) -> impl Future<Output = Result<(), SinkError>>;
    /// The tenant's configuration may be out of date.
    fn refetch(&self);
}
