//! One flush, step by step: write, then settle or release; quarantine what can't be read, put off what can't be read yet,
//! and find out what became of values that are gone. As `crates/fleet/src/pipeline` does it.

use std::time::Instant;

use balance_sync_engine::{
    collector::{Event, FlightEnd, FlightId},
    failure::Side,
    trail::TrailWatch,
};

use crate::{
    bugs::Bug,
    driver::{REDIS_TIMEOUT, Slot, nanos},
    plan::SECOND,
    postgres::{Fate, Row},
    redis::{Held, is_lease},
    servers::{Cause, Reply, Request, failure},
    values::Read,
    world::{CLAIM_TTL, World},
};

/// The least that is left of a flush's deadline for asking what became of values.
const ASKS_FOR: u64 = SECOND;
/// How long a balance is put off whose row is locked.
const ROW_LOCKED: u64 = 2 * SECOND;

/// In the order in which they come. Those with nothing to do are passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Connect,
    Write,
    Settle,
    /// Planted: settled, and written afterwards.
    WriteAfterSettle,
    Release,
    Quarantine,
    PutOff,
    /// Put off for a moment what has a locked row.
    WaitForRows,
    /// Ask what became of values that are gone …
    Ask,
    /// … and remove the members of which nothing is to be written, …
    Dismiss,
    /// … wait for the trail of others, …
    WaitForTrail,
    /// … and record the rest.
    Record,
    /// The write has failed: nothing is asked.
    ReleaseGone,
    /// Nothing more comes.
    End,
}

#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) id: FlightId,
    pub(crate) step: Step,
    pub(crate) deadline: u64,
    /// What can be written, and what is written of it.
    pub(crate) good: Vec<Held>,
    rows: Vec<Row>,
    refused: Vec<Held>,
    put_off: Vec<(Held, bool)>,
    gone: Vec<Held>,
    waiting: Vec<Held>,
    /// Their rows are locked.
    locked: Vec<Held>,
    /// When Postgres was asked what became of values that are gone.
    asked: Instant,
    lost: Vec<(Held, Option<u64>)>,
    end: FlightEnd,
}

impl Flight {
    /// All that it holds.
    pub(crate) fn members(self) -> Vec<Held> {
        let put_off = self.put_off.into_iter().map(|(held, _)| held);
        let lost = self.lost.into_iter().map(|(held, _)| held);
        [self.good, self.refused, self.gone, self.waiting, self.locked]
            .concat()
            .into_iter()
            .chain(put_off)
            .chain(lost)
            .collect()
    }

    /// The step that comes after one, if that has something to do.
    fn after(&self, step: Step) -> Step {
        let next = match step {
            Step::Connect => Step::Write,
            Step::Write => Step::Settle,
            Step::Settle | Step::WriteAfterSettle | Step::Release => Step::Quarantine,
            Step::Quarantine => Step::PutOff,
            Step::PutOff => Step::WaitForRows,
            Step::WaitForRows if self.end.failure.is_some() => Step::ReleaseGone,
            Step::WaitForRows => Step::Ask,
            Step::Ask => Step::Dismiss,
            Step::Dismiss => Step::WaitForTrail,
            Step::WaitForTrail => Step::Record,
            Step::Record | Step::ReleaseGone | Step::End => Step::End,
        };
        let empty = match next {
            Step::Settle => self.good.is_empty(),
            Step::Quarantine => self.refused.is_empty(),
            Step::WaitForRows => self.locked.is_empty(),
            Step::PutOff => self.put_off.is_empty(),
            Step::Ask | Step::Dismiss | Step::ReleaseGone => self.gone.is_empty(),
            Step::WaitForTrail => self.waiting.is_empty(),
            Step::Record => self.lost.is_empty(),
            _ => false,
        };
        if empty { self.after(next) } else { next }
    }

    /// Sorts out what became of values that are gone.
    fn sort(&mut self, fates: &[Fate], trail: &mut TrailWatch<usize>, bug: Option<Bug>) {
        let early = |held: &Held, trail: &TrailWatch<usize>| match bug {
            Some(Bug::NoTrailGrace) => false,
            Some(Bug::AgeIsEnough) => {
                let claimed = held.lease - CLAIM_TTL as f64 / SECOND as f64;
                !is_lease(held.former) && claimed - held.former < trail.grace().as_secs_f64()
            }
            _ => !trail.is_complete(&held.balance, held.former, self.asked),
        };
        let mut obsolete = Vec::new();
        for (held, fate) in std::mem::take(&mut self.gone).into_iter().zip(fates) {
            let wait = *fate == Fate::Stale && early(&held, trail);
            if !wait {
                trail.forget(&held.balance);
            }
            match fate {
                Fate::Deleted => obsolete.push(held),
                Fate::Stale if wait => self.waiting.push(held),
                Fate::Lost(_) | Fate::Unknown if bug == Some(Bug::LossNotListed) => obsolete.push(held),
                Fate::Stale => obsolete.push(held),
                Fate::Lost(version) => self.lost.push((held, Some(*version))),
                Fate::Unknown => self.lost.push((held, None)),
            }
        }
        self.gone = obsolete;
    }
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
        let bug = self.bug;
        let mut flight = Flight {
            id,
            step,
            deadline: self.now + timeout,
            good: Vec::new(),
            rows: Vec::new(),
            refused: Vec::new(),
            put_off: Vec::new(),
            gone: Vec::new(),
            waiting: Vec::new(),
            locked: Vec::new(),
            asked: self.instant(),
            lost: Vec::new(),
            end: FlightEnd::default(),
        };
        if step == Step::Release {
            // Everything is given back as it came.
            flight.good = batch;
        } else {
            self.decode(at, batch, &mut flight);
        }
        let poisoned = bug == Some(Bug::PoisonFailsBatch) && !flight.refused.is_empty();
        flight.step = match step {
            Step::Write if poisoned => {
                flight.good.append(&mut flight.refused);
                Step::Release
            }
            Step::Write | Step::Connect if flight.good.is_empty() => flight.after(Step::Settle),
            Step::Write if bug == Some(Bug::SettleBeforeWrite) => Step::Settle,
            step => step,
        };
        let Some(actor) = self.actor(at.0, at.1) else { return };
        actor.flights.push(flight);
        self.send_flight(at, id);
    }

    /// Reads the values of a batch.
    fn decode(&mut self, at: (usize, usize), batch: Vec<Held>, flight: &mut Flight) {
        let (bug, tenant) = (self.bug, at.1);
        let Some(actor) = self.actor(at.0, at.1) else { return };
        for held in batch {
            let Some(value) = held.value else {
                flight.gone.push(held);
                continue;
            };
            let id = (tenant as u128) << 64 | (held.balance as u128 + 1);
            match value.document.read(id, bug) {
                Read::Good(state) => {
                    let known = actor.cache[held.balance].get_or_insert(state);
                    let state = if bug == Some(Bug::CachedValue) { *known } else { state };
                    flight.good.push(held);
                    let remembered =
                        bug == Some(Bug::WritesRemembered) && actor.remembered[held.balance] >= state.version;
                    if !remembered {
                        flight.rows.push(Row { balance: held.balance, state });
                    }
                }
                Read::Refused => flight.refused.push(held),
                Read::PutOff(keep_alive) => flight.put_off.push((held, keep_alive)),
            }
        }
        if bug == Some(Bug::GoneIsForgotten) {
            flight.good.append(&mut flight.gone);
        }
    }

    /// Sends the request of a flight's step.
    fn send_flight(&mut self, at: (usize, usize), id: FlightId) {
        let (now, instant) = (self.now, self.instant());
        let (put_off, bug) = (nanos(self.options.put_off), self.bug);
        let Some(actor) = self.actor(at.0, at.1) else { return };
        let next_look = match bug {
            Some(Bug::OneLookAtTheEnd) => nanos(actor.trail.grace()),
            _ => nanos(actor.trail.delay()),
        };
        let Some(flight) = actor.flights.iter_mut().find(|flight| flight.id == id) else { return };
        let write_within = flight.deadline.saturating_sub(now);
        let (request, timeout) = match flight.step {
            Step::Connect => (Request::Connect, write_within),
            Step::Write | Step::WriteAfterSettle => (Request::Write(flight.rows.clone()), write_within),
            Step::Settle => (Request::Settle(flight.good.clone(), true), REDIS_TIMEOUT),
            Step::Release => (Request::Release(flight.good.clone()), REDIS_TIMEOUT),
            Step::Quarantine => (Request::Quarantine(flight.refused.clone()), REDIS_TIMEOUT),
            Step::PutOff => (Request::Postpone(flight.put_off.clone(), put_off), REDIS_TIMEOUT),
            Step::WaitForRows => {
                let locked = flight.locked.iter().map(|held| (*held, false)).collect();
                (Request::Postpone(locked, ROW_LOCKED), REDIS_TIMEOUT)
            }
            Step::Ask => {
                flight.asked = instant;
                let balances = flight.gone.iter().map(|held| held.balance).collect();
                (Request::Fates(balances), write_within.max(ASKS_FOR))
            }
            Step::Dismiss => (Request::Settle(flight.gone.clone(), false), REDIS_TIMEOUT),
            Step::WaitForTrail => {
                let waiting = flight.waiting.iter().map(|held| (*held, false)).collect();
                (Request::Postpone(waiting, next_look), REDIS_TIMEOUT)
            }
            Step::Record => (Request::Lose(flight.lost.clone()), REDIS_TIMEOUT),
            Step::ReleaseGone => (Request::Release(flight.gone.clone()), REDIS_TIMEOUT),
            // Reported by itself: the collector is in the middle of a step of its own.
            Step::End => return self.later(at, Slot::Flight(id), 1000),
        };
        self.call(at, Slot::Flight(id), request, timeout);
    }

    pub(crate) fn flight_step(&mut self, at: (usize, usize), id: FlightId, answer: Result<Reply, Cause>) {
        let bug = self.bug;
        let timeline = self.tenants[at.1].postgres.timeline;
        let Some(actor) = self.actor(at.0, at.1) else { return };
        let Some(index) = actor.flights.iter().position(|flight| flight.id == id) else { return };
        if actor.flights[index].step == Step::End {
            let flight = actor.flights.swap_remove(index);
            return self.handle(at.0, at.1, Event::FlightEnded(id, flight.end));
        }
        let flight = &mut actor.flights[index];
        // A connection breaks with its server.
        let answer = match answer {
            Ok(Reply::Written(then, _)) if then != timeline => Err(Cause::Refused),
            answer => answer,
        };
        let (done, due) = match answer {
            Ok(Reply::Done(count)) => (count, None),
            Ok(Reply::PutOff(count, due)) => (count, Some(due)),
            _ => (0, None),
        };
        let failed = answer.is_err();
        let settled_first = bug == Some(Bug::SettleBeforeWrite);
        let (end, mut removed) = (&mut flight.end, 0);
        let next = match (flight.step, answer) {
            (Step::Connect, Ok(_)) => Step::Write,
            (Step::Write, Ok(reply)) => {
                end.answered = true;
                let locked = if let Reply::Written(_, locked) = reply { locked } else { Vec::new() };
                flight.locked = flight.good.extract_if(.., |held| locked.contains(&held.balance)).collect();
                end.written = flight.good.len();
                for row in flight.rows.iter().filter(|row| !locked.contains(&row.balance)) {
                    let remembered = &mut actor.remembered[row.balance];
                    *remembered = row.state.version.max(*remembered);
                }
                flight.after(Step::Write)
            }
            (Step::Write, Err(Cause::Timeout)) if bug == Some(Bug::TimeoutCountsAsWritten) => Step::Settle,
            (Step::Connect | Step::Write, Err(cause)) => {
                end.failure = Some(failure(Side::Sink, cause));
                match bug {
                    Some(Bug::SettleOnFailure) => Step::Settle,
                    Some(Bug::NoReleaseAfterFailure) => flight.after(Step::Release),
                    Some(Bug::QuarantineOnOutage) => {
                        flight.refused.append(&mut flight.good);
                        Step::Quarantine
                    }
                    _ => Step::Release,
                }
            }
            (Step::Settle, _) => {
                removed = done;
                end.settled |= !failed;
                end.orphaned += if failed { flight.good.len() } else { 0 };
                if settled_first { Step::WriteAfterSettle } else { flight.after(Step::Settle) }
            }
            (Step::WriteAfterSettle, answer) => {
                end.answered = !failed;
                end.failure = answer.err().map(|cause| failure(Side::Sink, cause));
                flight.after(Step::WriteAfterSettle)
            }
            (Step::Ask, Ok(Reply::Fates(fates, _, true)))
                if fates.contains(&Fate::Stale) && bug != Some(Bug::ReadOnlyTrusted) =>
            {
                end.failure = Some(failure(Side::Sink, Cause::ReadOnly));
                Step::ReleaseGone
            }
            (Step::Ask, Ok(Reply::Fates(fates, started, _))) => {
                end.answered = true;
                // The start of the server would show half of the outages that these bugs overlook.
                let overlooks = matches!(bug, Some(Bug::OutageForgotten | Bug::OneLookAtTheEnd));
                if fates.contains(&Fate::Stale) && !overlooks {
                    actor.trail.answered(&started.to_string(), flight.asked);
                }
                flight.sort(&fates, &mut actor.trail, bug);
                flight.after(Step::Ask)
            }
            (Step::Ask, answer) => {
                let cause = answer.err().unwrap_or(Cause::Refused);
                end.failure = Some(failure(Side::Sink, cause));
                Step::ReleaseGone
            }
            (step @ (Step::Release | Step::ReleaseGone | Step::WaitForTrail | Step::WaitForRows), _) => {
                if let (Step::WaitForTrail, Some(due)) = (step, due) {
                    for held in &flight.waiting {
                        actor.trail.put_off(held.balance, held.former, due, flight.asked);
                    }
                }
                end.released += done;
                let held = match step {
                    Step::Release => flight.good.len(),
                    Step::WaitForTrail => flight.waiting.len(),
                    Step::WaitForRows => flight.locked.len(),
                    _ => flight.gone.len(),
                };
                end.orphaned += if failed { held } else { 0 };
                flight.after(step)
            }
            (step @ (Step::Quarantine | Step::Dismiss | Step::Record), _) => {
                removed = done;
                end.settled |= !failed;
                let held = match step {
                    Step::Quarantine => flight.refused.len(),
                    Step::Dismiss => flight.gone.len(),
                    _ => flight.lost.len(),
                };
                end.orphaned += if failed { held } else { 0 };
                flight.after(step)
            }
            (Step::PutOff, _) => {
                end.orphaned += if failed { flight.put_off.len() } else { 0 };
                flight.after(Step::PutOff)
            }
            (Step::End, _) => Step::End,
        };
        flight.step = next;
        if let Some(watcher) = self.workers[at.0].watcher.as_mut().filter(|_| removed > 0) {
            *watcher.removed.entry(at.1).or_default() += removed as u64;
        }
        self.send_flight(at, id);
    }
}
