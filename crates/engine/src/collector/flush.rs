//! Permits and flights: when a batch goes to Postgres, and what follows when it has.

use std::time::{Duration, Instant};

use super::{
    Backlog, Collector, Command, Flight, FlightEnd, FlightId, Health, Intake, Options, Permit, Phase, Step,
    Supply, Task, Trigger,
};
use crate::failure::{Failure, Side};

/// A permit that took longer than this was waited for. An idle connection is there at once, and opening one takes some
/// milliseconds.
const SCARCE_AFTER: Duration = Duration::from_millis(20);
/// Flushes in flight at most while permits are scarce: one is written, and one waits for its permit.
const SCARCE_DEPTH: usize = 2;
/// While a permit is waited for, members are held for this part of the flush deadline at most. A lease is longer than the deadline.
const HOLD: u32 = 2;

impl<M> Collector<M> {
    /// Flushes that may be in flight: one for a tenant that tries its way back, no more than two where permits are scarce.
    /// A third would only queue for one there, with what it holds.
    fn depth(&self) -> usize {
        let depth = self.options.pipeline_depth.max(1);
        match (&self.health, self.supply) {
            (Health::Degraded(_), _) => 1,
            (Health::Well, Supply::Scarce) => depth.min(SCARCE_DEPTH),
            (Health::Well, Supply::Ample) => depth,
        }
    }

    /// Uses the permit that is there, and asks for the next one when a flush is due.
    pub(super) fn start_flush(&mut self, step: &mut Step<M>) -> Option<Instant> {
        match self.permit {
            Permit::Held { trigger, waited } => {
                if self.is_renewing() {
                    return None;
                }
                if self.is_completing() {
                    // A claim that hangs must not use up the time that is left for the write.
                    let until = self.buffer.first_at().map(|first| first + self.hold());
                    if until.is_none_or(|until| until > step.now) {
                        return until;
                    }
                }
                self.flush_with_permit(step, trigger, waited);
            }
            Permit::Requested { .. } => return self.renew_buffer(step),
            Permit::None => {}
        }
        if !matches!(self.permit, Permit::None) || self.flights.len() >= self.depth() {
            return None;
        }
        let Some(trigger) = self.due(step.now) else {
            return self.calm_at(step.now).into_iter().chain(self.buffer.deadline()).min();
        };
        self.permit = Permit::Requested { trigger, since: step.now };
        let deadline = self.options.flush_deadline;
        step.command(Command::RequestPermit { trigger, last: self.is_leaving(), deadline });
        // What has waited behind other flushes may be old already.
        self.renew_buffer(step)
    }

    /// How long members may be in the buffer while a permit is waited for. Where they could be claimed anew, as long again is left for
    /// the write.
    fn hold(&self) -> Duration {
        if self.may_renew() { self.options.flush_deadline / HOLD } else { self.options.flush_deadline }
    }

    /// Gives members back whose leases have become old while the permit is waited for, so that they are claimed anew. The permit
    /// stays requested: it keeps its place in the queue. Returns when to look again.
    fn renew_buffer(&mut self, step: &mut Step<M>) -> Option<Instant> {
        let Some(first) = self.buffer.first_at() else {
            // What was given back can't be claimed any more, or was not there.
            if !self.is_renewing() {
                self.cancel_permit(step);
            }
            return None;
        };
        let until = first + self.hold();
        if until > step.now {
            return Some(until);
        }
        if !self.may_renew() {
            self.release_buffer(step);
            return None;
        }
        let (flight, batch) = self.take_off(step.now);
        step.command(Command::Release { flight, batch });
        self.renewal = Some(flight);
        self.claim_now(step.now);
        None
    }

    /// Whether the buffer is about to be claimed anew for a permit.
    fn is_renewing(&self) -> bool {
        self.renewal.is_some() && self.buffer.is_empty() && self.may_renew()
    }

    fn may_renew(&self) -> bool {
        self.may_claim()
            && !matches!(self.intake, Intake::Watching)
            && (matches!(self.health, Health::Well) || self.is_trying())
    }

    /// Whether what is claimed anew is still being given back.
    pub(super) fn is_giving_back(&self) -> bool {
        self.renewal.is_some_and(|id| self.flights.iter().any(|flight| flight.id == id))
    }

    /// Whether the permit has been waited for longer than an idle connection takes. Then many wait, and what is due may be claimed
    /// when it has come.
    pub(super) fn is_queued(&self, now: Instant) -> bool {
        let Permit::Requested { since, .. } = self.permit else { return false };
        now.saturating_duration_since(since) > SCARCE_AFTER
    }

    /// Whether a flush is due. A prefetch from a backlog counts as a batch: the rest of it is there when it is asked for.
    fn due(&self, now: Instant) -> Option<Trigger> {
        let prefetched = self.backlog == Backlog::More && !self.buffer.is_empty() && self.room() == 0;
        let is_calm = self.calm_at(now).is_some_and(|at| at <= now);
        self.buffer
            .due(now)
            .or_else(|| prefetched.then_some(Trigger::Size))
            .or_else(|| is_calm.then_some(Trigger::Calm))
    }

    /// From when on what waits may be written without waiting for more; `None` = it waits for size and time.
    fn calm_at(&self, now: Instant) -> Option<Instant> {
        let waits = !self.buffer.is_empty() && self.flights.is_empty() && self.backlog != Backlog::More;
        self.pace.next(now).filter(|_| waits && matches!(self.health, Health::Well))
    }

    /// When a calm tenant's schedule is looked at again: as its next flush may begin.
    pub(super) fn look_at(&self, now: Instant) -> Instant {
        let poll = now + self.options.poll_interval;
        match self.pace.next(now) {
            Some(next) if next > now && matches!(self.health, Health::Well) => next.min(poll),
            _ => poll,
        }
    }

    /// Whether the batch that has its permit already is to grow: there is more, and a claim may bring it.
    fn is_completing(&self) -> bool {
        self.backlog == Backlog::More
            && self.buffer.room() > 0
            && matches!(self.health, Health::Well)
            && !matches!(self.intake, Intake::Watching)
            && self.may_claim()
    }

    fn flush_with_permit(&mut self, step: &mut Step<M>, trigger: Trigger, waited: Duration) {
        if self.buffer.is_empty() {
            self.cancel_permit(step);
            return;
        }
        self.permit = Permit::None;
        self.renewal = None;
        let Options { flush_timeout, flush_deadline, .. } = *self.options;
        // The leases began with the first claim.
        let held = self.buffer.first_at().map(|first| step.now.saturating_duration_since(first));
        let left = (flush_timeout + flush_deadline).saturating_sub(held.unwrap_or_default());
        let deadline = left.min(flush_deadline);
        self.pace.begun(step.now, self.buffer.len());
        let (flight, batch) = self.take_off(step.now);
        step.command(Command::Flush { flight, batch, trigger, waited, deadline });
        if self.backlog != Backlog::More
            && let Some(next) = self.pace.next(step.now)
            && let Intake::Ready { at } = &mut self.intake
            && *at > step.now
        {
            // Not before the next flush may begin: what it finds is written at once.
            *at = next;
        }
    }

    /// Lets the buffer go.
    pub(super) fn take_off(&mut self, since: Instant) -> (FlightId, Vec<M>) {
        let id = FlightId(self.next_flight);
        self.next_flight += 1;
        self.flights.push(Flight { id, since });
        (id, self.buffer.take())
    }

    /// What waits in the buffer can't be written either: others may be able to, and its leases would lapse here.
    pub(super) fn release_buffer(&mut self, step: &mut Step<M>) {
        self.cancel_permit(step);
        if !self.buffer.is_empty() {
            let (flight, batch) = self.take_off(step.now);
            step.command(Command::Release { flight, batch });
        }
    }

    pub(super) fn cancel_permit(&mut self, step: &mut Step<M>) {
        self.renewal = None;
        if !matches!(self.permit, Permit::None) {
            self.permit = Permit::None;
            step.command(Command::Cancel(Task::Permit));
        }
    }

    pub(super) fn permit_granted(&mut self, step: &mut Step<M>) {
        let Permit::Requested { trigger, since } = self.permit else { return };
        let waited = step.now.saturating_duration_since(since);
        self.supply = if waited > SCARCE_AFTER { Supply::Scarce } else { Supply::Ample };
        self.permit = Permit::Held { trigger, waited };
        if self.supply == Supply::Scarce && self.backlog == Backlog::Done {
            // It was looked at seldom meanwhile.
            self.backlog = Backlog::More;
        }
        if self.backlog == Backlog::More || self.renewal.is_some() {
            self.claim_now(step.now);
        }
    }

    pub(super) fn permit_failed(&mut self, step: &mut Step<M>, failure: Failure) {
        if let Permit::Requested { .. } = self.permit {
            self.permit = Permit::None;
            self.renewal = None;
            self.degrade(step, failure);
        }
    }

    pub(super) fn flight_ended(&mut self, step: &mut Step<M>, id: FlightId, end: FlightEnd) {
        let Some(at) = self.flights.iter().position(|flight| flight.id == id) else { return };
        let flight = self.flights.swap_remove(at);
        if end.answered {
            self.pace.ended(step.now.saturating_duration_since(flight.since));
        }
        if self.renewal == Some(id) {
            self.claim_now(step.now);
        }
        if let Phase::Draining { drained, .. } = &mut self.phase {
            drained.flushed += end.written;
            drained.released += end.released;
            drained.orphaned += end.orphaned;
            return;
        }
        match end.failure {
            Some(failure) => self.degrade(step, failure),
            None => {
                // Only a claim shows that Redis is back.
                let over = match self.fails() {
                    Some(Side::Sink) => end.answered,
                    Some(Side::Settle) => end.settled,
                    Some(Side::Queue | Side::Claim) | None => false,
                };
                if over {
                    self.recovered(step);
                }
            }
        }
    }

    /// Since when the oldest batch is on its way to Postgres.
    pub(super) fn writing_since(&self) -> Option<Instant> {
        self.flights.iter().map(|flight| flight.since).min()
    }

    /// Since when a permit is waited for.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        match self.permit {
            Permit::Requested { since, .. } => Some(since),
            Permit::None | Permit::Held { .. } => None,
        }
    }
}
