//! Permits and flights: when a batch goes to Postgres, and what follows when it has.

use std::time::{Duration, Instant};

use super::{
    Backlog, Collector, Command, Flight, FlightEnd, FlightId, Health, Permit, Phase, Step, Supply, Task,
    Trigger,
};
use crate::failure::{Failure, Side};

/// A permit that took longer than this was waited for. An idle connection is there at once, and opening one takes some
/// milliseconds.
const SCARCE_AFTER: Duration = Duration::from_millis(20);
/// Flushes in flight at most while permits are scarce: one is written, and one waits for its permit.
const SCARCE_DEPTH: usize = 2;

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
        if let Permit::Held { trigger, since, waited } = self.permit {
            if self.is_completing() {
                return None;
            }
            self.flush_with_permit(step, trigger, since, waited);
        }
        if !matches!(self.permit, Permit::None) || self.flights.len() >= self.depth() {
            return None;
        }
        let Some(trigger) = self.due(step.now) else { return self.buffer.deadline() };
        self.permit = Permit::Requested { trigger, since: step.now };
        let deadline = self.options.flush_deadline;
        step.command(Command::RequestPermit { trigger, last: self.is_leaving(), deadline });
        None
    }

    /// Whether a flush is due. A prefetch from a backlog counts as a batch: the rest of it is there when it is asked for.
    fn due(&self, now: Instant) -> Option<Trigger> {
        let prefetched = self.backlog == Backlog::More && !self.buffer.is_empty() && self.room() == 0;
        self.buffer.due(now).or_else(|| prefetched.then_some(Trigger::Size))
    }

    /// Whether the batch that has its permit already is to grow: there is more, and a claim may bring it.
    fn is_completing(&self) -> bool {
        self.backlog == Backlog::More
            && self.buffer.room() > 0
            && matches!(self.health, Health::Well)
            && self.may_claim()
    }

    fn flush_with_permit(&mut self, step: &mut Step<M>, trigger: Trigger, since: Instant, waited: Duration) {
        if self.buffer.is_empty() {
            self.cancel_permit(step);
            return;
        }
        self.permit = Permit::None;
        let deadline = self.options.flush_deadline.saturating_sub(step.now.saturating_duration_since(since));
        let (flight, batch) = self.take_off(since);
        step.command(Command::Flush { flight, batch, trigger, waited, deadline });
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
        if !matches!(self.permit, Permit::None) {
            self.permit = Permit::None;
            step.command(Command::Cancel(Task::Permit));
        }
    }

    pub(super) fn permit_granted(&mut self, step: &mut Step<M>) {
        let Permit::Requested { trigger, since } = self.permit else { return };
        let waited = step.now.saturating_duration_since(since);
        self.supply = if waited > SCARCE_AFTER { Supply::Scarce } else { Supply::Ample };
        self.permit = Permit::Held { trigger, since, waited };
        if self.backlog == Backlog::More {
            self.claim_now(step.now);
        }
    }

    pub(super) fn permit_failed(&mut self, step: &mut Step<M>, failure: Failure) {
        if let Permit::Requested { .. } = self.permit {
            self.permit = Permit::None;
            self.degrade(step, failure);
        }
    }

    pub(super) fn flight_ended(&mut self, step: &mut Step<M>, id: FlightId, end: FlightEnd) {
        let Some(at) = self.flights.iter().position(|flight| flight.id == id) else { return };
        self.flights.swap_remove(at);
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
        let permit = match self.permit {
            Permit::None => None,
            Permit::Requested { since, .. } | Permit::Held { since, .. } => Some(since),
        };
        self.flights.iter().map(|flight| flight.since).chain(permit).min()
    }
}
