//! The end of a collector: emptying the schedule of a removed tenant, and the drain of a stopped one.

use std::{rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_schedule::Claimed;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Drained, Side, Turn, answered, traces};
use crate::{
    failure::SinkError,
    flush::{Batch, FlushEnd, flush, release},
    gather::Trigger,
    ports::{Queue, Sink},
    status::{TenantState, TenantStatus},
};

/// How long giving back what a final flush left may take. Redis answers in milliseconds or is away, and then the claims
/// lapse by themselves.
const RELEASE_DEADLINE: Duration = Duration::from_secs(2);

/// How often a collector that empties the schedule of a removed tenant looks up whether it still may.
const LEAVE_LOOK_EVERY: Duration = Duration::from_millis(250);

impl<Q: Queue, S: Sink> Turn<'_, Q, S> {
    // -- leave ---------------------------------------------------------------------------------------------------

    /// The tenant is being removed: nobody will come back for what is left in its schedule, so work goes on until that is
    /// empty, as far as its database lets us. What a killed worker holds comes due within the claim TTL.
    pub(super) async fn empty(&mut self) {
        self.enter(TenantState::Stopping);
        let deadline = Instant::now() + self.options.leave_deadline;
        let never = CancellationToken::new();
        self.exhausted = false;
        self.idling = None;
        self.next_claim = Instant::now();
        // From now on a database that must no longer be served is used all the same.
        if self.degraded.as_ref().is_some_and(|degraded| degraded.reaction.skip) {
            self.degraded = None;
            self.probing = None;
        }
        // Until Postgres fails; Redis may come back. A worker that drains has no time for this.
        // What an operator halted stays as it is.
        while !self.fails(Side::Sink)
            && self.status.leaving.load(Relaxed)
            && !self.status.paused.load(Relaxed)
            && Instant::now() < deadline
        {
            let calm = self.gather.is_empty() && !self.writing() && self.claiming.is_none();
            if calm && self.exhausted {
                return;
            }
            // A step holds nothing that is lost when it is dropped: futures that hold claims stay in the loop's state.
            let look_up = deadline.min(Instant::now() + LEAVE_LOOK_EVERY);
            let _ = tokio::time::timeout_at(look_up, self.step(&never)).await;
        }
    }

    // -- drain ---------------------------------------------------------------------------------------------------

    pub(super) async fn drain(mut self) -> Drained {
        self.enter(TenantState::Stopping);
        let deadline = Instant::now() + self.options.drain_deadline;
        let mut drained = Drained::default();
        self.idling = None;
        self.probing = None;
        self.chore = None;
        self.placing = None;
        self.placed = None;
        self.last_flush();
        // A claim in flight may bring members: waiting for it is the only way to give them back. Flushes go on meanwhile.
        while !self.flights.is_empty() || self.claiming.is_some() {
            tokio::select! {
                biased;
                Some((id, end)) = self.flights.next(), if !self.flights.is_empty() => {
                    self.in_flight.remove(&id);
                    drained.flushed += end.updated + end.stale + end.deleted;
                    drained.released += end.released;
                    drained.orphaned += end.orphaned;
                    if let Some(error) = end.failure {
                        tracing::warn!(%error, released = end.released, "final flush failed");
                    }
                }
                (_, (_, answer)) = answered(&mut self.claiming), if self.claiming.is_some() => {
                    self.claiming = None;
                    match answer {
                        Ok(claim) => self.gather.add(claim.entries, Instant::now()),
                        Err(error) => tracing::debug!(%error, "last claim failed"),
                    }
                    self.last_flush();
                }
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        if self.claiming.take().is_some() {
            tracing::warn!("last claim was not answered in time, what it may have claimed lapses by itself");
        }
        // Dropping a flush here is safe: whether its write commits or not, the version guard and the lease decide.
        self.flights = FuturesUnordered::new();
        let left: Vec<Rc<Vec<Claimed>>> = self.in_flight.drain().map(|(_, flight)| flight.claimed).collect();
        let held: Vec<&Claimed> = left.iter().flat_map(|claimed| claimed.iter()).collect();
        if !held.is_empty() {
            let releasing = tokio::time::timeout(RELEASE_DEADLINE, release(self.queue, &held, self.status));
            // Those that were not ours any more need nobody to give them back.
            let (released, orphaned) = match releasing.await {
                Ok(Some(released)) => (released, 0),
                Ok(None) | Err(_) => (0, held.len()),
            };
            drained.released += released;
            drained.orphaned += orphaned;
            tracing::warn!(
                released,
                orphaned,
                "flush did not end within the drain deadline, its claims are given back"
            );
        }
        drained
    }

    /// Writes what is buffered, or gives it back where Postgres is known to be away. A tenant that must no longer be
    /// served is tried all the same: a last flush gets the database that was known.
    fn last_flush(&mut self) {
        if self.gather.is_empty() {
            return;
        }
        match &self.degraded {
            Some(degraded) if degraded.side == Side::Sink && !degraded.reaction.skip => {
                self.give_back_buffer()
            }
            _ => {
                // The drain's own deadline comes first, and gives everything back at once.
                let deadline = 2 * self.options.drain_deadline;
                let (queue, sink, fleet, status) = (self.queue, self.sink, self.fleet, self.status);
                let since = Instant::now();
                self.fly(since, async move |claimed, trace| {
                    let span = trace.child("flush");
                    let end = span.around(async {
                        match span.child("place").around(sink.place(true)).await {
                            Ok(place) => {
                                let waited = since.elapsed();
                                let batch = Batch { claimed, trigger: Trigger::Drain, waited, deadline };
                                flush(queue, sink, place, batch, fleet, status).await
                            }
                            Err(failure) => without_place(queue, claimed, failure, status).await,
                        }
                    });
                    let end = end.await;
                    traces::tell(&span, queue.space(), Trigger::Drain, &end);
                    end
                });
            }
        }
    }
}

/// The last flush has no place to write: it is given back.
async fn without_place<Q: Queue>(
    queue: &Q,
    claimed: &[Claimed],
    failure: SinkError,
    status: &TenantStatus,
) -> FlushEnd {
    status.batch_failures.fetch_add(1, Relaxed);
    let held: Vec<&Claimed> = claimed.iter().collect();
    let released = release(queue, &held, status).await;
    let orphaned = if released.is_none() { held.len() } else { 0 };
    FlushEnd {
        claimed: claimed.len(),
        released: released.unwrap_or_default(),
        orphaned,
        failure: Some(failure),
        ..FlushEnd::default()
    }
}
