//! The end of a collector: emptying the schedule of a removed tenant, and the drain of a stopped one.

use std::time::{Duration, Instant};

use super::{Backlog, Collector, Command, Drained, Health, Intake, Phase, Service, Step, Task};
use crate::{failure::Side, state::TenantState};

/// How long releasing what a final flush left may take. Redis answers in milliseconds or is away, and then the claims
/// lapse by themselves.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);

impl<M> Collector<M> {
    // -- leave ---------------------------------------------------------------------------------------------------

    /// The tenant is being removed: no worker will come back for what is left in its schedule, so work goes on until that is
    /// empty, as far as its database lets us. What a killed worker holds comes due within the claim TTL.
    pub(super) fn leave(&mut self, step: &mut Step<M>) {
        if !self.is_running() {
            return;
        }
        self.enter(step, TenantState::Stopping);
        self.phase = Phase::Leaving { deadline: step.now + self.options.leave_deadline };
        if self.backlog == Backlog::Empty {
            self.backlog = Backlog::Unknown;
        }
        self.end_wait(step);
        self.claim_now(step.now);
        // From now on a database that must no longer be served is used all the same.
        if self.is_skipped() {
            self.cancel_probe(step);
            self.health = Health::Well;
        }
    }

    /// Whether there is nothing left to empty, or no way to do it. Redis may come back; and what an operator paused stays
    /// as it is.
    pub(super) fn has_left(&self, now: Instant) -> bool {
        let Phase::Leaving { deadline } = self.phase else { return false };
        let calm =
            self.buffer.is_empty() && !self.is_writing() && !matches!(self.intake, Intake::Claiming { .. });
        deadline <= now
            || self.fails() == Some(Side::Sink)
            || self.controls.service == Service::Paused
            || calm && self.backlog == Backlog::Empty
    }

    pub(super) fn leave_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Leaving { deadline } => Some(deadline),
            _ => None,
        }
    }

    // -- drain ---------------------------------------------------------------------------------------------------

    /// Claims nothing more, and brings to an end what it has begun.
    pub(super) fn stop(&mut self, step: &mut Step<M>) {
        if self.is_stopping() {
            return;
        }
        self.enter(step, TenantState::Stopping);
        self.phase =
            Phase::Draining { deadline: step.now + self.options.drain_deadline, drained: Drained::default() };
        self.end_wait(step);
        self.cancel_probe(step);
        self.cancel_upkeep(step);
        self.cancel_permit(step);
    }

    /// A claim under way may bring members: waiting for it is the only way to release them. Flushes go on meanwhile.
    pub(super) fn drain(&mut self, step: &mut Step<M>, deadline: Instant) -> Option<Instant> {
        self.last_flush(step);
        let claiming = matches!(self.intake, Intake::Claiming { .. });
        if (claiming || !self.flights.is_empty()) && step.now < deadline {
            return Some(deadline);
        }
        if claiming {
            self.intake = Intake::Ready { at: step.now };
            step.command(Command::Cancel(Task::Claim));
        }
        let Phase::Draining { drained, .. } = self.phase else { return None };
        if self.flights.is_empty() {
            self.phase = Phase::Ended(drained);
        } else {
            // Dropping a flush is safe: whether its write commits or not, the version guard and the lease decide.
            self.flights.clear();
            self.phase = Phase::Abandoning { drained };
            step.command(Command::AbandonFlights { release_within: RELEASE_WITHIN });
        }
        None
    }

    /// Writes what is buffered, or releases it where Postgres is known to be away. A tenant that must no longer be served
    /// is tried all the same: a last flush gets the database that was known.
    fn last_flush(&mut self, step: &mut Step<M>) {
        if self.buffer.is_empty() {
            return;
        }
        if self.fails() == Some(Side::Sink) && !self.is_skipped() {
            self.release_buffer(step);
        } else {
            // The drain's own deadline comes first, and releases everything at once.
            let deadline = 2 * self.options.drain_deadline;
            let (flight, batch) = self.take_off(step.now);
            step.command(Command::FinalFlush { flight, batch, deadline });
        }
    }

    pub(super) fn abandoned(&mut self, released: usize, orphaned: usize) {
        if let Phase::Abandoning { mut drained } = self.phase {
            drained.released += released;
            drained.orphaned += orphaned;
            self.phase = Phase::Ended(drained);
        }
    }
}
