//! What the state machine commands, carried out.

use std::{rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_engine::{
    collector::{Command, Event, FlightId, Report, Task, Trigger, Upkeep},
    failure::{Obstacle, Reaction, Settings},
};
use balance_sync_schedule::Claimed;
use balance_sync_trace::Span;
use futures::{FutureExt, stream::FuturesUnordered};
use tokio::time::{Instant, timeout};

use super::{Driver, Landing, PermitSlot, UpkeepAnswer, traces};
use crate::pipeline::{
    counting::batch_failed,
    failure::{SinkError, reaction},
    flush::{Batch, FlushEnd, flush, release},
    ports::{Queue, Sink},
};
use crate::status::{Outcome, TenantStatus};

impl<'a, Q: Queue, S: Sink> Driver<'a, Q, S> {
    pub(super) fn execute(&mut self, command: Command<Claimed>) {
        let (queue, sink) = (self.queue, self.sink);
        match command {
            Command::Claim { limit } => {
                let claim = async move {
                    let begun = Instant::now();
                    let answer = queue.claim(limit).await;
                    (begun.elapsed(), answer)
                };
                self.claim = Some((limit, claim.boxed_local()));
            }
            Command::Idle { delay } => {
                let idle = async move {
                    queue.idle(delay).await;
                    Event::IdleOver
                };
                self.wait = Some(idle.boxed_local());
            }
            Command::Watch => {
                let watch = async move {
                    queue.stand_by().await;
                    Event::Unattended
                };
                self.wait = Some(watch.boxed_local());
            }
            Command::RequestPermit { trigger, last, deadline } => {
                self.request_permit(trigger, last, deadline)
            }
            Command::Flush { flight, batch, trigger, waited, deadline } => {
                let PermitSlot::Held(permit) = std::mem::replace(&mut self.permit, PermitSlot::None) else {
                    // The state machine flushes with the permit that it was granted.
                    tracing::error!("a flush has no permit, its members are released");
                    return self.release(flight, batch);
                };
                let (fleet, status, trail) = (self.fleet, self.status, Rc::clone(&self.trail));
                self.take_off(flight, batch, async move |claimed, trace| {
                    let span = trace.child("flush");
                    let batch = Batch { claimed, trigger, waited, deadline, trail: &trail };
                    let end = span.around(flush(queue, sink, permit, batch, fleet, status)).await;
                    traces::tell(&span, queue.space(), trigger, &end);
                    end
                });
            }
            Command::FinalFlush { flight, batch, deadline } => self.final_flush(flight, batch, deadline),
            Command::Release { flight, batch } => self.release(flight, batch),
            Command::Probe { deadline } => {
                let probe = async move {
                    timeout(deadline, sink.ping()).await.unwrap_or(Err(SinkError::Deadline(deadline)))
                };
                self.probe = Some(probe.boxed_local());
            }
            Command::Upkeep(upkeep) => {
                let upkeep = async move {
                    match upkeep {
                        Upkeep::Sweep => UpkeepAnswer::Sweep(queue.sweep().await),
                        Upkeep::Recent { from } => UpkeepAnswer::Recent(queue.protect_since(from).await),
                        Upkeep::Survey => UpkeepAnswer::Survey(queue.survey().await),
                    }
                };
                self.upkeep = Some(upkeep.boxed_local());
            }
            Command::Cancel(task) => self.cancel(task),
            Command::AbandonFlights { release_within } => self.abandon_flights(release_within),
            Command::Enter(state) => {
                if self.status.enter(state) {
                    tracing::debug!(state = state.name(), "state");
                }
            }
            Command::Degrade { reaction, detail, failures, delay } => {
                self.trail.borrow_mut().failed(Instant::now().into_std());
                self.degrade(reaction, &detail, failures, delay);
            }
            Command::Report(report) => self.report(&report),
        }
    }

    fn request_permit(&mut self, trigger: Trigger, last: bool, deadline: Duration) {
        let permit = self.sink.permit(last, deadline);
        let span = self.batch.child("place");
        let request = async move {
            let permit = span.around(permit).await;
            if let Err(error) = &permit {
                span.fail(reaction(error).reason.as_str(), || error.to_string());
            }
            permit
        };
        let since = Instant::now();
        self.status.show_permit_since(Some(since));
        self.permit = PermitSlot::Requested { trigger, since, request: request.boxed_local() };
    }

    /// Starts a flight, which holds its claims until it has ended.
    fn take_off(
        &mut self,
        id: FlightId,
        batch: Vec<Claimed>,
        flight: impl AsyncFnOnce(&[Claimed], Span) -> FlushEnd + 'a,
    ) {
        let claimed = Rc::new(batch);
        self.held.took_off(id, Rc::clone(&claimed));
        let trace = std::mem::take(&mut self.batch);
        self.flights
            .push(async move { Landing::Ended(id, Box::new(flight(&claimed, trace).await)) }.boxed_local());
    }

    fn release(&mut self, id: FlightId, batch: Vec<Claimed>) {
        let (queue, status) = (self.queue, self.status);
        self.take_off(id, batch, async move |claimed, trace| {
            let end = trace.around(unwritten(queue, claimed, status)).await;
            trace.set("outcome", "given_back");
            end
        });
    }

    fn final_flush(&mut self, id: FlightId, batch: Vec<Claimed>, deadline: Duration) {
        let (queue, sink, fleet, status) = (self.queue, self.sink, self.fleet, self.status);
        let trail = Rc::clone(&self.trail);
        self.take_off(id, batch, async move |claimed, trace| {
            let trigger = Trigger::Drain;
            let since = Instant::now();
            let span = trace.child("flush");
            let flushing = async {
                match span.child("place").around(sink.permit(true, deadline)).await {
                    Ok(permit) => {
                        let waited = since.elapsed();
                        let batch = Batch { claimed, trigger, waited, deadline, trail: &trail };
                        flush(queue, sink, permit, batch, fleet, status).await
                    }
                    Err(failure) => {
                        batch_failed(queue, claimed, status);
                        FlushEnd { failure: Some(failure), ..unwritten(queue, claimed, status).await }
                    }
                }
            };
            let end = span.around(flushing).await;
            traces::tell(&span, queue.space(), trigger, &end);
            end
        });
    }

    fn cancel(&mut self, task: Task) {
        match task {
            Task::Claim => {
                self.claim = None;
                tracing::warn!(
                    "last claim was not answered in time, what it may have claimed lapses by itself"
                );
            }
            Task::Wait => self.wait = None,
            Task::Permit => {
                self.permit = PermitSlot::None;
                self.status.show_permit_since(None);
            }
            Task::Probe => self.probe = None,
            Task::Upkeep => self.upkeep = None,
        }
    }

    fn abandon_flights(&mut self, release_within: Duration) {
        self.flights = FuturesUnordered::new();
        let batches = self.held.abandon();
        let (queue, status) = (self.queue, self.status);
        let abandoned = async move {
            let members: Vec<&Claimed> = batches.iter().flat_map(|batch| batch.iter()).collect();
            // Those that were not ours any more need no release.
            let (released, orphaned) = match timeout(release_within, release(queue, &members, status)).await {
                Ok(Some(released)) => (usize::try_from(released).unwrap_or(usize::MAX), 0),
                Ok(None) | Err(_) => (0, members.len()),
            };
            tracing::warn!(
                released,
                orphaned,
                "flush did not end within the drain deadline, its claims are released"
            );
            Landing::Abandoned { released, orphaned }
        };
        self.flights.push(abandoned.boxed_local());
    }

    fn degrade(&self, reaction: Reaction, detail: &str, failures: u32, delay: Duration) {
        if reaction.settings == Settings::Refetch {
            self.sink.refetch();
        }
        if reaction.obstacle == Obstacle::Skipped {
            self.status.skips.fetch_add(1, Relaxed);
        }
        let reason = reaction.reason.as_str();
        if self.status.degrade(reaction.reason, detail.to_owned()) {
            tracing::warn!(reason, error = detail, "tenant degraded");
        } else {
            tracing::debug!(reason, error = detail, failures, ?delay, "tenant still degraded");
        }
    }

    fn report(&self, report: &Report) {
        match report {
            Report::Paused => {
                tracing::info!("tenant paused by an operator: nothing is claimed, what waits is kept alive");
            }
            Report::Resumed => tracing::info!("tenant resumed by an operator"),
            Report::TookOver => {
                self.fleet.joins.fetch_add(1, Relaxed);
                tracing::info!("no worker claims due balances, this worker takes over");
            }
            Report::Recovered { reason } => tracing::info!(reason = reason.as_str(), "tenant recovered"),
        }
    }
}

/// Gives a batch back that was not written.
async fn unwritten<Q: Queue>(queue: &Q, claimed: &[Claimed], status: &TenantStatus) -> FlushEnd {
    let members: Vec<&Claimed> = claimed.iter().collect();
    let released = release(queue, &members, status).await;
    let mut end = FlushEnd { claimed: claimed.len(), ..FlushEnd::default() };
    match released {
        Some(released) => end.outcomes[Outcome::Released] = released,
        None => end.orphaned = members.len(),
    }
    end
}
