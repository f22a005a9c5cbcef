//! A tenant's collector: claim, gather, flush, and what it does when that fails.
//!
//! Plain async code that knows no actors ([`crate::collector_actor`] is its shell). Three modes: *busy* (a claim came
//! back full: claim again at once, only what still fits), *draining* (some buffered, nothing more due: wait for the
//! poll interval or the flush timeout), *idle* (nothing at all: back off). Claims go on while flushes are in flight, so
//! that Redis and Postgres work at the same time. A fourth, *standing by*, is a second owner's: it claims only when the
//! first one doesn't.
//!
//! A flush begins with a *place*, the right to write now. Where many tenants want to write to one server, places are
//! waited for, and what is held meanwhile is memory of ours and leases that run. So nothing leaves the buffer before the
//! place is there; while places are scarce only a `TASTE` of a backlog is claimed ahead, and the rest of the batch when
//! the place has come.
//!
//! Here: the loop, its flushes and its claims. In the folder: `recovery` (what it does when that fails), `chores`
//! (upkeep of the schedule beside it), `standby` (when another worker comes first), `orders` (what operators want of it),
//! `drain` (its end), `traces` (what of it is told as spans).
//!
//! No future that holds claims is ever dropped half-way while the collector runs: a claim in flight and a flush in
//! flight stay pinned in the loop's state across its turns.

mod chores;
mod drain;
mod orders;
mod recovery;
mod standby;
mod traces;

use std::{
    collections::HashMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_schedule::{Claim, Claimed, ScheduleError};
use balance_sync_trace::Span;
use futures::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::chores::Chore;
use crate::{
    backoff::Backoff,
    failure::{Reaction, SinkError, reaction, redis_reaction},
    flush::{Batch, FlushEnd, flush, release},
    gather::{Gather, Trigger},
    ports::{Queue, Sink},
    status::{FleetStatus, Stage, TenantState, TenantStatus},
};

/// What is claimed ahead while places are waited for: one in so many of a batch …
const TASTE: usize = 8;
/// … but no less than this, which weighs nothing.
const TASTE_MIN: usize = 50;
/// A place that took longer than this was waited for. An idle connection is there at once, and opening one takes some
/// milliseconds.
const SCARCE: Duration = Duration::from_millis(20);

/// Flushes in flight at most while places are waited for: one is written, and one waits for its place.
const SCARCE_DEPTH: usize = 2;

/// How a collector works. One value for the whole worker.
#[derive(Debug, Clone)]
pub struct CollectorOptions {
    /// Members in one flush at most.
    pub batch_size: usize,
    /// A flush is made this long after the first member entered the empty buffer.
    pub flush_timeout: Duration,
    /// How long a collector waits that found nothing more due while it has work.
    pub poll_interval: Duration,
    /// Longest wait of an idle collector between two looks.
    pub idle_backoff_max: Duration,
    /// Flushes in flight at most.
    pub pipeline_depth: usize,
    /// Longest time the write of one flush may take.
    pub flush_deadline: Duration,
    /// Longest time the final flush may take after a stop, before what is left is released.
    pub drain_deadline: Duration,
    /// Longest time a collector whose tenant is removed goes on emptying the schedule before it drains.
    pub leave_deadline: Duration,
    /// When work waits longer than this, the values that wait are protected.
    pub protect_after: Duration,
    /// Lives are raised to this; whole sweeps come every third of it.
    pub protect_floor: Duration,
    /// How often legacy schedules and the other key form are looked at.
    pub survey_interval: Duration,
    /// First delay after a failure.
    pub backoff_min: Duration,
    /// Longest delay after a failure that may be over at any moment.
    pub backoff_max: Duration,
    /// Longest delay after a failure that somebody has to mend.
    pub backoff_long: Duration,
    /// How long a member is put off that can't be worked at present, though others of its tenant can.
    pub put_off: Duration,
}

impl Default for CollectorOptions {
    fn default() -> Self {
        Self {
            batch_size: 500,
            flush_timeout: Duration::from_millis(50),
            poll_interval: Duration::from_millis(25),
            idle_backoff_max: Duration::from_secs(1),
            pipeline_depth: 3,
            flush_deadline: Duration::from_secs(20),
            drain_deadline: Duration::from_secs(8),
            leave_deadline: Duration::from_secs(36),
            protect_after: Duration::from_secs(2),
            protect_floor: Duration::from_secs(900),
            survey_interval: Duration::from_secs(60),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(2),
            backoff_long: Duration::from_secs(30),
            put_off: Duration::from_secs(60),
        }
    }
}

/// What a stopped collector leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Members written in the final flushes.
    pub flushed: usize,
    /// Members given back: due at once for other workers.
    pub released: usize,
    /// Members whose claims could not be given back: due again when the claim TTL ends.
    pub orphaned: usize,
}

/// What the collector works with.
pub struct Collector<Q, S> {
    /// The tenant's schedule.
    pub queue: Q,
    /// The tenant's Postgres.
    pub sink: S,
    /// How it works.
    pub options: Arc<CollectorOptions>,
    /// Counters of the worker.
    pub fleet: Arc<FleetStatus>,
    /// State and counters of the tenant.
    pub status: Arc<TenantStatus>,
}

impl<Q: Queue, S: Sink> Collector<Q, S> {
    /// Works until it is told to stop, then drains within its deadline.
    pub async fn run(self, stop: CancellationToken) -> Drained {
        let mut turn = Turn::new(&self);
        while !stop.is_cancelled() {
            turn.step(&stop).await;
        }
        if self.status.leaving.load(Relaxed) {
            Box::pin(turn.empty()).await;
        }
        // Boxed, because thousands of collectors would hold the room for their last moments from the first.
        Box::pin(turn.drain()).await
    }
}

/// On which side a tenant fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Redis can't be reached: nothing can be claimed, given back or kept alive, but what is held can still be written.
    Queue,
    /// Redis answers, and refuses to let members be claimed.
    Claim,
    /// Redis lets members be claimed, and refuses to take them off the schedule once they are written.
    Settle,
    /// Postgres, or the way to it: nothing can be written.
    Sink,
}

/// Why a tenant is degraded, and how far it is on its way back.
struct Degraded {
    side: Side,
    reaction: Reaction,
    backoff: Backoff,
    /// No claim before this.
    until: Instant,
    /// The wait is over and nothing spoke against trying: one batch may go.
    trying: bool,
}

struct Flight {
    claimed: Rc<Vec<Claimed>>,
    since: Instant,
}

type Answered = (Duration, Result<Claim, ScheduleError>);

/// A flush that waits for its place.
struct Placing<'a, P> {
    trigger: Trigger,
    since: Instant,
    place: LocalBoxFuture<'a, Result<P, SinkError>>,
}

/// A place that is there, until its batch is complete.
struct Placed<P> {
    trigger: Trigger,
    since: Instant,
    waited: Duration,
    place: P,
}

/// The loop's state. Futures borrow queue and sink, which outlive it.
struct Turn<'a, Q, S: Sink> {
    queue: &'a Q,
    sink: &'a S,
    options: &'a CollectorOptions,
    fleet: &'a FleetStatus,
    status: &'a TenantStatus,

    gather: Gather,
    /// The trace of what is in the buffer: it began with the claim that brought the first, and goes on in its flush.
    batch: Span,
    placing: Option<Placing<'a, S::Place>>,
    placed: Option<Placed<S::Place>>,
    /// The last place had to be waited for, or there was none yet since the tenant was idle.
    scarce: bool,
    flights: FuturesUnordered<LocalBoxFuture<'a, (u64, FlushEnd)>>,
    in_flight: HashMap<u64, Flight>,
    next_flight: u64,

    claiming: Option<(usize, LocalBoxFuture<'a, Answered>)>,
    idling: Option<LocalBoxFuture<'a, ()>>,
    next_claim: Instant,
    idle_delay: Duration,

    degraded: Option<Degraded>,
    probing: Option<LocalBoxFuture<'a, Result<(), SinkError>>>,

    chore: Option<LocalBoxFuture<'a, Chore>>,
    next_survey: Instant,
    next_sweep: Option<Instant>,
    next_recent: Instant,
    recent_from: Option<f64>,
    /// The last claim brought as many as were asked for: there are probably more.
    more: bool,
    /// Since when the schedule's head has been older than `protect_after` at every claim.
    behind_since: Option<Instant>,
    /// There was nothing in the schedule at the last claim, neither due nor held by anybody.
    exhausted: bool,
    /// An operator halted the tenant.
    halted: bool,
    /// It stands by: what it waits for is that nobody else claims.
    watching: bool,
    /// It works until then although another worker comes first.
    joined_until: Option<Instant>,
}

impl<'a, Q: Queue, S: Sink> Turn<'a, Q, S> {
    fn new(collector: &'a Collector<Q, S>) -> Self {
        let options = &*collector.options;
        let now = Instant::now();
        Self {
            queue: &collector.queue,
            sink: &collector.sink,
            options,
            fleet: &collector.fleet,
            status: &collector.status,
            gather: Gather::new(options.batch_size, options.flush_timeout),
            batch: Span::NONE,
            placing: None,
            placed: None,
            scarce: true,
            flights: FuturesUnordered::new(),
            in_flight: HashMap::new(),
            next_flight: 0,
            claiming: None,
            idling: None,
            next_claim: now,
            idle_delay: options.poll_interval,
            degraded: None,
            probing: None,
            chore: None,
            next_survey: now,
            next_sweep: None,
            next_recent: now,
            recent_from: None,
            more: false,
            behind_since: None,
            exhausted: false,
            halted: false,
            watching: false,
            joined_until: None,
        }
    }

    /// Starts what can be started, then waits for the first thing that happens.
    async fn step(&mut self, stop: &CancellationToken) {
        let now = Instant::now();
        self.obey(now);
        self.take_post(now);
        self.start_flushes(now);
        self.start_probe(now);
        self.start_claim(now);
        self.start_chore(now);
        let wake = self.next_wake(now);
        tokio::select! {
            () = stop.cancelled() => {}
            Some((id, end)) = self.flights.next(), if !self.flights.is_empty() => self.landed(id, end),
            place = place_of(&mut self.placing), if self.placing.is_some() => self.place_came(place),
            (limit, answer) = answered(&mut self.claiming), if self.claiming.is_some() => {
                self.claiming = None;
                self.claimed(limit, answer);
            }
            result = finished(&mut self.probing), if self.probing.is_some() => {
                self.probing = None;
                self.probed(result);
            }
            end = finished(&mut self.chore), if self.chore.is_some() => {
                self.chore = None;
                self.chore_done(end);
            }
            () = finished(&mut self.idling), if self.idling.is_some() => {
                self.idling = None;
                self.next_claim = Instant::now();
                if self.watching {
                    self.unattended();
                }
            }
            () = self.status.orders.called() => {}
            () = tokio::time::sleep_until(wake) => {}
        }
    }

    // -- flush ---------------------------------------------------------------------------------------------------

    /// Flushes that may be in flight: one for a tenant that tries its way back, no more than two where places are waited
    /// for. A third would only queue for one there, with what it holds.
    fn depth(&self) -> usize {
        let depth = self.options.pipeline_depth.max(1);
        match (&self.degraded, self.scarce) {
            (Some(_), _) => 1,
            (None, true) => depth.min(SCARCE_DEPTH),
            (None, false) => depth,
        }
    }

    fn start_flushes(&mut self, now: Instant) {
        if self.placed.is_some() {
            if !self.completing() {
                self.start_placed();
            } else {
                return;
            }
        }
        if self.placing.is_none()
            && self.flights.len() < self.depth()
            && let Some(trigger) = self.due(now)
        {
            let deadline = self.options.flush_deadline;
            let place = self.sink.place(self.status.leaving.load(Relaxed));
            let span = self.batch.child("place");
            let place = async move {
                let place = span.around(tokio::time::timeout(deadline, place)).await;
                let place = place.unwrap_or(Err(SinkError::Deadline(deadline)));
                if let Err(error) = &place {
                    span.fail(reaction(error).reason, || error.to_string());
                }
                place
            };
            self.placing = Some(Placing { trigger, since: now, place: place.boxed_local() });
        }
    }

    /// Whether a flush is due. A taste of a backlog is one as well: the rest of the batch is there when it is asked for.
    fn due(&self, now: Instant) -> Option<Trigger> {
        let taste = self.more && !self.gather.is_empty() && self.room() == 0;
        self.gather.due(now).or_else(|| taste.then_some(Trigger::Size))
    }

    /// Whether the batch that has its place already is to grow: there is more, and a claim may bring it.
    fn completing(&self) -> bool {
        self.more && self.gather.room() > 0 && self.degraded.is_none() && self.may_claim()
    }

    fn place_came(&mut self, place: Result<S::Place, SinkError>) {
        let Some(Placing { trigger, since, .. }) = self.placing.take() else { return };
        let waited = since.elapsed();
        match place {
            Ok(place) => {
                self.scarce = waited > SCARCE;
                self.placed = Some(Placed { trigger, since, waited, place });
                if self.more {
                    self.next_claim = Instant::now();
                }
            }
            Err(error) => {
                self.status.batch_failures.fetch_add(1, Relaxed);
                let claimed = self.gather.len();
                let end = FlushEnd { claimed, failure: Some(error.clone()), ..FlushEnd::default() };
                self.status.note_flush(trigger, &end, waited);
                self.sink_failed(&error);
                self.give_back_buffer();
            }
        }
    }

    /// Flushes what is buffered on the place that is there.
    fn start_placed(&mut self) {
        let Some(Placed { trigger, since, waited, place }) = self.placed.take() else { return };
        if self.gather.is_empty() {
            return;
        }
        let deadline = self.options.flush_deadline.saturating_sub(since.elapsed());
        let (queue, sink, fleet, status) = (self.queue, self.sink, self.fleet, self.status);
        self.fly(since, async move |claimed, trace| {
            let span = trace.child("flush");
            let batch = Batch { claimed, trigger, waited, deadline };
            let end = span.around(flush(queue, sink, place, batch, fleet, status)).await;
            traces::tell(&span, queue.space(), trigger, &end);
            end
        });
    }

    /// Lets the buffer go: the flight holds its claims until it has landed.
    fn fly(&mut self, since: Instant, flight: impl AsyncFnOnce(&[Claimed], Span) -> FlushEnd + 'a) {
        let claimed = Rc::new(self.gather.take());
        let id = self.next_flight;
        self.next_flight += 1;
        self.in_flight.insert(id, Flight { claimed: Rc::clone(&claimed), since });
        let trace = std::mem::take(&mut self.batch);
        self.flights.push(async move { (id, flight(&claimed, trace).await) }.boxed_local());
    }

    fn landed(&mut self, id: u64, end: FlushEnd) {
        self.in_flight.remove(&id);
        match end.failure {
            None => {
                if let Some(error) = &end.refused {
                    self.degrade(Side::Settle, redis_reaction(error.class), &error.to_string());
                    self.give_back_buffer();
                // Only a claim shows that Redis is back.
                } else if end.answered && self.fails(Side::Sink) || end.settled && self.fails(Side::Settle) {
                    self.recovered();
                }
            }
            Some(error) => {
                self.sink_failed(&error);
                self.give_back_buffer();
            }
        }
    }

    /// What waits in the buffer can't be written either: others may be able to, and its lease would lapse here.
    fn give_back_buffer(&mut self) {
        self.placing = None;
        self.placed = None;
        if self.gather.is_empty() {
            return;
        }
        let (queue, status) = (self.queue, self.status);
        self.fly(Instant::now(), async move |claimed, trace| {
            let held: Vec<&Claimed> = claimed.iter().collect();
            let released = trace.around(release(queue, &held, status)).await;
            trace.set("outcome", "given_back");
            let orphaned = if released.is_none() { held.len() } else { 0 };
            let released = released.unwrap_or_default();
            FlushEnd { claimed: claimed.len(), released, orphaned, ..FlushEnd::default() }
        });
    }

    // -- claim ---------------------------------------------------------------------------------------------------

    /// How many members may be claimed now.
    fn room(&self) -> usize {
        let room = self.gather.room();
        if !self.scarce || self.placed.is_some() {
            return room;
        }
        let taste = self.options.batch_size.div_ceil(TASTE).max(TASTE_MIN);
        room.min(taste.saturating_sub(self.gather.len()))
    }

    fn start_claim(&mut self, now: Instant) {
        let room = self.room();
        if self.claiming.is_some() || self.idling.is_some() || room == 0 || now < self.next_claim {
            return;
        }
        if !self.may_claim() {
            return;
        }
        if let Some(degraded) = &self.degraded
            && (!degraded.trying || self.writing())
        {
            return;
        }
        let queue = self.queue;
        self.claiming = Some((
            room,
            async move {
                let begun = Instant::now();
                let answer = queue.claim(room).await;
                (begun.elapsed(), answer)
            }
            .boxed_local(),
        ));
    }

    /// Whether a batch is on its way to Postgres.
    fn writing(&self) -> bool {
        !self.flights.is_empty() || self.placing.is_some() || self.placed.is_some()
    }

    fn claimed(&mut self, limit: usize, (took, answer): Answered) {
        let now = Instant::now();
        self.more = false;
        let claim = match answer {
            Ok(claim) => claim,
            Err(error) => {
                let side = if error.class.is_refusal() { Side::Claim } else { Side::Queue };
                self.degrade(side, redis_reaction(error.class), &error.to_string());
                return;
            }
        };
        self.fleet.observe(Stage::Claim, took);
        self.status.scheduled.store(claim.scheduled, Relaxed);
        self.exhausted = claim.scheduled == 0;
        self.trace_claim(took, limit, &claim);
        self.status.foreign_locked.store(claim.foreign, Relaxed);
        match &self.degraded {
            Some(degraded) if matches!(degraded.side, Side::Queue | Side::Claim) => self.recovered(),
            Some(degraded) if !degraded.trying => {
                // It was under way when a flush failed: what it brought can't be written either, and an empty answer
                // says nothing about Postgres.
                self.gather.add(claim.entries, now);
                self.give_back_buffer();
                return;
            }
            _ => {}
        }
        if let Some(refused) = &claim.refused {
            self.note_refusal(refused);
        }
        let found = claim.entries.len();
        // Not simply the first: a lease that lapsed tells no time.
        let oldest = claim.entries.iter().find_map(Claimed::scheduled_at);
        self.more = found == limit;
        let behind =
            self.more && oldest.is_some_and(|at| claim.now - at > self.options.protect_after.as_secs_f64());
        self.behind_since = behind.then(|| self.behind_since.unwrap_or(now));
        self.gather.add(claim.entries, now);
        if found > 0 {
            self.idle_delay = self.options.poll_interval;
            if self.degraded.is_none() {
                self.enter(TenantState::Syncing);
            }
        }
        if self.more {
            self.next_claim = now;
        } else if found > 0 || !self.gather.is_empty() || !self.flights.is_empty() {
            // Less than asked for: nothing more is due at this moment.
            self.next_claim = now + self.options.poll_interval;
        } else {
            // A tenant on its way back has nothing to write, and nothing spoke against trying. Should it still fail, the
            // next mutation tells. Only members that could not be settled are due again when their leases have lapsed.
            if !self.fails(Side::Settle) || self.exhausted {
                self.recovered();
                self.enter(TenantState::Idle);
            }
            self.scarce = true;
            let delay = self.idle_delay;
            self.idle_delay = (delay * 2).min(self.options.idle_backoff_max).max(self.options.poll_interval);
            let queue = self.queue;
            self.idling = Some(async move { queue.idle(delay).await }.boxed_local());
        }
    }

    // -- wait ----------------------------------------------------------------------------------------------------

    fn next_wake(&self, now: Instant) -> Instant {
        let mut wake = if self.chore.is_none() { self.next_survey } else { now + Duration::from_secs(3600) };
        let mut sooner = |at: Instant| wake = wake.min(at);
        if self.flights.len() < self.depth()
            && self.placing.is_none()
            && self.placed.is_none()
            && let Some(deadline) = self.gather.deadline()
        {
            sooner(deadline);
        }
        if self.claiming.is_none() && self.idling.is_none() && self.room() > 0 && self.may_claim() {
            match &self.degraded {
                None => sooner(self.next_claim),
                Some(degraded) if degraded.trying && !self.writing() => sooner(self.next_claim),
                Some(_) => {}
            }
        }
        if let Some(degraded) = &self.degraded
            && !degraded.trying
            && self.probing.is_none()
            // What waits for its permit is on its way as well: nothing is tried behind it.
            && !self.writing()
        {
            sooner(degraded.until);
        }
        if self.chore.is_none() && !self.options.protect_floor.is_zero() {
            if self.must_protect(now) {
                sooner(self.next_recent);
                if self.recent_from.is_some() {
                    sooner(self.next_sweep.unwrap_or(now));
                }
            } else if let Some(oldest) = self.held_since() {
                sooner(oldest + self.options.protect_after + Duration::from_millis(1));
            }
        }
        // A moment in the past would spin; whatever is due is started at the next turn.
        wake.max(now + Duration::from_micros(100))
    }
}

async fn answered<'a>(slot: &mut Option<(usize, LocalBoxFuture<'a, Answered>)>) -> (usize, Answered) {
    match slot {
        Some((limit, future)) => (*limit, future.await),
        None => futures::future::pending().await,
    }
}

async fn place_of<P>(slot: &mut Option<Placing<'_, P>>) -> Result<P, SinkError> {
    match slot {
        Some(placing) => (&mut placing.place).await,
        None => futures::future::pending().await,
    }
}

async fn finished<T>(slot: &mut Option<LocalBoxFuture<'_, T>>) -> T {
    match slot {
        Some(future) => future.await,
        None => futures::future::pending().await,
    }
}
