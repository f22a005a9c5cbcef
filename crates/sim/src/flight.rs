//! One flush, step by step: write, then settle or release, then quarantine what can't be read. As
//! `crates/fleet/src/pipeline/flush.rs` does it.

use balance_sync_engine::{
    collector::{Event, FlightEnd, FlightId},
    failure::Side,
};

use crate::{
    bugs::Bug,
    driver::{Cause, REDIS_TIMEOUT, Reply, Request, Slot, failure},
    redis::Held,
    world::World,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Connect,
    Write,
    Settle,
    /// Planted: settled, and written afterwards.
    WriteAfterSettle,
    Release,
    Quarantine,
    /// Nothing more comes.
    End,
}

#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) id: FlightId,
    pub(crate) step: Step,
    pub(crate) deadline: u64,
    pub(crate) good: Vec<Held>,
    pub(crate) refused: Vec<Held>,
    pub(crate) end: FlightEnd,
}

impl World {
    pub(crate) fn begin_flight(
        &mut self,
        at: (usize, usize),
        id: FlightId,
        batch: Vec<Held>,
        step: Step,
        timeout: u64,
    ) {
        let deadline = self.now + timeout;
        let bug = self.bug;
        let Some(actor) = self.actor(at.0, at.1) else { return };
        // A release gives everything back; a flush sorts out what can't be written.
        let (mut good, refused): (Vec<Held>, Vec<Held>) =
            batch.into_iter().partition(|held| step == Step::Release || held.is_good());
        if bug == Some(Bug::CachedValue) {
            for held in &mut good {
                let first = actor.cache[held.balance];
                if let Some(value) = &mut held.value {
                    actor.cache[held.balance].get_or_insert(value.version);
                    value.version = first.unwrap_or(value.version);
                }
            }
        }
        let step = match step {
            Step::Write | Step::Connect if good.is_empty() => Step::Quarantine,
            Step::Write if bug == Some(Bug::SettleBeforeWrite) => Step::Settle,
            Step::Write if bug == Some(Bug::PoisonFailsBatch) && !refused.is_empty() => Step::Release,
            step => step,
        };
        let (good, refused) = match (step, bug) {
            (Step::Release, Some(Bug::PoisonFailsBatch)) => ([good, refused].concat(), Vec::new()),
            _ => (good, refused),
        };
        actor.flights.push(Flight { id, step, deadline, good, refused, end: FlightEnd::default() });
        self.send_flight(at, id);
    }

    /// Sends the request of a flight's step; without anything left to do, it ends.
    fn send_flight(&mut self, at: (usize, usize), id: FlightId) {
        let now = self.now;
        let Some(actor) = self.actor(at.0, at.1) else { return };
        let Some(index) = actor.flights.iter().position(|flight| flight.id == id) else { return };
        let flight = &mut actor.flights[index];
        let write_within = flight.deadline.saturating_sub(now);
        if flight.step == Step::Quarantine && flight.refused.is_empty() {
            flight.step = Step::End;
        }
        let (request, timeout) = match flight.step {
            Step::Connect => (Request::Connect, write_within),
            Step::Write | Step::WriteAfterSettle => (Request::Write(flight.good.clone()), write_within),
            Step::Settle => (Request::Settle(flight.good.clone()), REDIS_TIMEOUT),
            Step::Release => (Request::Release(flight.good.clone()), REDIS_TIMEOUT),
            Step::Quarantine => (Request::Quarantine(flight.refused.clone()), REDIS_TIMEOUT),
            Step::End => {
                // Reported by itself: the collector is in the middle of a step of its own.
                return self.later(at, Slot::Flight(id), 1000);
            }
        };
        self.call(at, Slot::Flight(id), request, timeout);
    }

    pub(crate) fn flight_step(&mut self, at: (usize, usize), id: FlightId, answer: Result<Reply, Cause>) {
        let bug = self.bug;
        let Some(actor) = self.actor(at.0, at.1) else { return };
        let Some(index) = actor.flights.iter().position(|flight| flight.id == id) else { return };
        if actor.flights[index].step == Step::End {
            let flight = actor.flights.swap_remove(index);
            return self.handle(at.0, at.1, Event::FlightEnded(id, flight.end));
        }
        let flight = &mut actor.flights[index];
        let done = if let Ok(Reply::Done(count)) = answer { count } else { 0 };
        let settled_first = bug == Some(Bug::SettleBeforeWrite);
        flight.step = match (flight.step, answer) {
            (Step::Connect, Ok(_)) => Step::Write,
            (Step::Write, Ok(_)) => {
                flight.end.answered = true;
                flight.end.written = flight.good.len();
                Step::Settle
            }
            (Step::Write, Err(Cause::Timeout)) if bug == Some(Bug::TimeoutCountsAsWritten) => Step::Settle,
            (Step::Connect | Step::Write, Err(cause)) => {
                flight.end.failure = Some(failure(Side::Sink, cause));
                match bug {
                    Some(Bug::SettleOnFailure) => Step::Settle,
                    Some(Bug::NoReleaseAfterFailure) => Step::Quarantine,
                    Some(Bug::QuarantineOnOutage) => {
                        flight.refused.append(&mut flight.good);
                        Step::Quarantine
                    }
                    _ => Step::Release,
                }
            }
            (Step::Settle, Ok(_)) => {
                flight.end.settled = true;
                if settled_first { Step::WriteAfterSettle } else { Step::Quarantine }
            }
            (Step::Settle, Err(_)) => {
                flight.end.orphaned += flight.good.len();
                if settled_first { Step::WriteAfterSettle } else { Step::Quarantine }
            }
            (Step::WriteAfterSettle, answer) => {
                flight.end.answered = answer.is_ok();
                flight.end.failure = answer.err().map(|cause| failure(Side::Sink, cause));
                Step::Quarantine
            }
            (Step::Release, Ok(_)) => {
                flight.end.released = done;
                Step::Quarantine
            }
            (Step::Release, Err(_)) => {
                flight.end.orphaned += flight.good.len();
                Step::Quarantine
            }
            (Step::Quarantine, answer) => {
                flight.end.settled |= answer.is_ok();
                flight.end.orphaned += if answer.is_err() { flight.refused.len() } else { 0 };
                Step::End
            }
            (Step::End, _) => Step::End,
        };
        self.send_flight(at, id);
    }
}
