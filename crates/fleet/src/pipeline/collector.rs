//! A tenant's collector: the driver of [`balance_sync_engine::collector`], which decides.
//!
//! Plain async code that knows no actors (`collector_actor` is its shell). It carries out the commands of the state
//! machine against the ports, each in a slot of its own, waits for the first thing that happens, and reports it back.
//!
//! Here: the loop and its slots. In the folder: `execute` (commands), `events` (what came of them), `traces` (span
//! attributes).
//!
//! No future that holds claims is dropped half-way while the collector runs: claims and flights stay in their slots across
//! steps, and only the state machine has them dropped, at the drain deadline.

mod events;
mod execute;
mod held;
mod traces;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

pub use balance_sync_engine::collector::{Drained, Options as CollectorOptions, Profile};
use balance_sync_engine::{
    collector::{Collector as Machine, Controls, Event, FlightId, Role, Service, Trigger},
    trail::TrailWatch,
};
use balance_sync_schedule::{Claim, Claimed, ScheduleError};
use balance_sync_trace::Span;
use futures::{StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::held::Held;
use super::{
    failure::SinkError,
    flush::FlushEnd,
    ports::{Queue, Sink, Survey, Sweep},
};
use crate::status::{FleetStatus, TenantStatus};

/// How often a collector that empties the schedule of a removed tenant looks up whether it still may.
const LEAVE_LOOK_EVERY: Duration = Duration::from_millis(250);

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
    /// Works until it is stopped, then drains within its deadline. Boxed: whatever moves a collector into its future would
    /// otherwise keep its room as well, and there are thousands.
    pub async fn run(self: Box<Self>, stop: CancellationToken) -> Drained {
        let mut driver = Driver::new(&self);
        driver.apply_controls(&stop, true);
        loop {
            if let Some(drained) = driver.machine.ended() {
                return drained;
            }
            driver.step(&stop).await;
        }
    }
}

/// What is under way. Futures borrow queue and sink, which outlive it.
struct Driver<'a, Q, S: Sink> {
    queue: &'a Q,
    sink: &'a S,
    options: &'a CollectorOptions,
    fleet: &'a FleetStatus,
    status: &'a TenantStatus,

    machine: Machine<Claimed>,
    trail: Rc<RefCell<TrailWatch<Vec<u8>>>>,
    /// The trace of what is in the machine's buffer: it began with the claim that brought the first, and goes on in its
    /// flush.
    batch: Span,
    claim: Option<(usize, LocalBoxFuture<'a, ClaimAnswer>)>,
    wait: Option<LocalBoxFuture<'a, Event<Claimed>>>,
    permit: PermitSlot<'a, S::Permit>,
    probe: Option<LocalBoxFuture<'a, Result<(), SinkError>>>,
    upkeep: Option<LocalBoxFuture<'a, UpkeepAnswer>>,
    flights: FuturesUnordered<LocalBoxFuture<'a, Landing>>,
    /// The members of the flights, for when they have to be abandoned, and since when they wait.
    held: Held<'a>,
}

type ClaimAnswer = (Duration, Result<Claim, ScheduleError>);

/// The permit of the next flush.
enum PermitSlot<'a, P> {
    None,
    Requested { trigger: Trigger, since: Instant, request: LocalBoxFuture<'a, Result<P, SinkError>> },
    Held(P),
}

enum UpkeepAnswer {
    Sweep(Result<Sweep, ScheduleError>),
    Recent(Result<(f64, u64), ScheduleError>),
    Survey(Result<Survey, ScheduleError>),
}

enum Landing {
    Ended(FlightId, Box<FlushEnd>),
    Abandoned { released: usize, orphaned: usize },
}

/// What a step waited for.
enum Happened<P> {
    Landed(Landing),
    Permit(Result<P, SinkError>),
    Claim(usize, ClaimAnswer),
    Probe(Result<(), SinkError>),
    Upkeep(UpkeepAnswer),
    WaitOver(Event<Claimed>),
    /// Time has passed, or there is something else to look at.
    Called,
}

impl<'a, Q: Queue, S: Sink> Driver<'a, Q, S> {
    fn new(collector: &'a Collector<Q, S>) -> Self {
        let options = Arc::clone(&collector.options);
        Self {
            queue: &collector.queue,
            sink: &collector.sink,
            options: &collector.options,
            fleet: &collector.fleet,
            status: &collector.status,
            machine: Machine::new(options, rand::random(), Instant::now().into_std()),
            trail: Rc::new(RefCell::new(TrailWatch::new(collector.options.trail_grace))),
            batch: Span::NONE,
            claim: None,
            wait: None,
            permit: PermitSlot::None,
            probe: None,
            upkeep: None,
            flights: FuturesUnordered::new(),
            held: Held::new(&collector.status, collector.fleet.claim_ttl()),
        }
    }

    /// Waits for the first thing that happens, and does what follows from it.
    async fn step(&mut self, stop: &CancellationToken) {
        let happened = self.happens(stop).await;
        // First: what happened must not start anything that others no longer want.
        self.apply_controls(stop, false);
        let event = self.event(happened);
        self.handle(event);
    }

    async fn happens(&mut self, stop: &CancellationToken) -> Happened<S::Permit> {
        let mut wake = self.machine.wake_at().map(Instant::from_std);
        if self.machine.is_leaving() {
            let look = Instant::now() + LEAVE_LOOK_EVERY;
            wake = Some(wake.map_or(look, |wake| wake.min(look)));
        }
        // Results before time: one that is there together with its deadline counts.
        tokio::select! {
            biased;
            Some(landing) = self.flights.next(), if !self.flights.is_empty() => Happened::Landed(landing),
            permit = requested(&mut self.permit) => Happened::Permit(permit),
            (limit, answer) = answered(&mut self.claim), if self.claim.is_some() => {
                self.claim = None;
                Happened::Claim(limit, answer)
            }
            answer = finished(&mut self.probe), if self.probe.is_some() => {
                self.probe = None;
                Happened::Probe(answer)
            }
            answer = finished(&mut self.upkeep), if self.upkeep.is_some() => {
                self.upkeep = None;
                Happened::Upkeep(answer)
            }
            event = finished(&mut self.wait), if self.wait.is_some() => {
                self.wait = None;
                Happened::WaitOver(event)
            }
            () = self.status.requests.notified() => Happened::Called,
            () = stop.cancelled(), if self.machine.is_running() => Happened::Called,
            () = sleep_until(wake) => Happened::Called,
        }
    }

    /// Hands what others want of this collector to the state machine, as far as it has changed.
    fn apply_controls(&mut self, stop: &CancellationToken, first: bool) {
        let stopped = self.machine.is_running() && stop.is_cancelled();
        let leaving = self.status.leaving.load(Relaxed);
        if stopped && !leaving {
            self.handle(Event::Stop);
        }
        let withheld = self.status.withheld.load(Relaxed);
        let service = if withheld && self.fleet.rollout.is_unknown() {
            Service::Unknown
        } else if self.status.paused.load(Relaxed) {
            Service::Paused
        } else if withheld || self.fleet.paused.is_unknown() {
            Service::Unknown
        } else {
            Service::Active
        };
        let role = if self.status.standby.load(Relaxed) { Role::Standby } else { Role::First };
        let controls = Controls { service, role };
        if first || controls != self.machine.controls() {
            self.handle(Event::ControlsChanged(controls));
        }
        if stopped && leaving {
            self.handle(Event::Leave);
        } else if self.machine.is_leaving() && !leaving {
            // A worker that drains has no time to empty schedules.
            self.handle(Event::Stop);
        }
        let requests = self.status.requests.take();
        if requests.flush {
            self.handle(Event::FlushRequested);
        }
        if requests.survey {
            self.handle(Event::SurveyRequested);
        }
    }

    fn handle(&mut self, event: Event<Claimed>) {
        for command in self.machine.handle(Instant::now().into_std(), event) {
            self.execute(command);
        }
    }
}

async fn answered(slot: &mut Option<(usize, LocalBoxFuture<'_, ClaimAnswer>)>) -> (usize, ClaimAnswer) {
    match slot {
        Some((limit, answer)) => (*limit, answer.await),
        None => futures::future::pending().await,
    }
}

async fn requested<P>(slot: &mut PermitSlot<'_, P>) -> Result<P, SinkError> {
    match slot {
        PermitSlot::Requested { request, .. } => request.await,
        PermitSlot::None | PermitSlot::Held(_) => futures::future::pending().await,
    }
}

async fn finished<T>(slot: &mut Option<LocalBoxFuture<'_, T>>) -> T {
    match slot {
        Some(future) => future.await,
        None => futures::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => futures::future::pending().await,
    }
}
