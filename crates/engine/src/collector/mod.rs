//! A tenant's collector: claim, gather, flush, and what it does when that fails.
//!
//! Three modes: *busy* (a claim came back full: claim again at once, only what still fits), *draining* (some buffered,
//! nothing more due: wait for the poll interval or the flush timeout), *idle* (nothing at all: back off). Claims go on
//! while flushes are in flight, so that Redis and Postgres work at the same time. A fourth, *standby*, is a second owner's:
//! it claims only when the first one doesn't.
//!
//! A flush begins with a *permit*, the right to write now. Where many tenants want to write to one server, permits are
//! waited for, and what is held meanwhile is memory of ours and leases that run. So nothing leaves the buffer before the
//! permit is there; while permits are scarce only a small part of a backlog is claimed ahead (the prefetch), and the rest
//! of the batch when the permit has come. That wait may be longer than a lease: the sink ends it only when its queue stands
//! still. Meanwhile the prefetch is claimed anew before its leases become old.
//!
//! [`Collector`] is a state machine: [`Collector::handle`] takes what happened and returns what to do, and
//! [`Collector::wake_at`] says when to call it with [`Event::Tick`] if nothing else happens. Every part that can start
//! something returns the moment at which it wants to be asked again, so the wake-up can't disagree with the conditions.
//!
//! In the files: `api` (events and commands) · `controls` (what operators want) · `role` (when another worker comes first)
//! · `flush` (permits and flights) · `pace` · `claim` · `recovery` (failures) · `upkeep` (of the schedule) · `stop` (its end).

mod api;
mod claim;
mod controls;
mod flush;
mod gather;
mod pace;
mod recovery;
mod role;
mod stop;
mod upkeep;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub use api::{
    Claimed, Command, Commands, Controls, Drained, Event, FlightEnd, FlightId, Locked, Options, Report, Role,
    Service, Task, Upkeep, UpkeepEnd,
};
pub use gather::{Gather, Trigger};
pub use pace::Profile;

use crate::{backoff::Jitter, state::TenantState};

/// One tenant's collector. `M` is a claimed member, of which it knows nothing but that it must not get lost: whatever comes
/// in with [`Event::Claimed`] goes out with exactly one flush or release.
#[derive(Debug)]
pub struct Collector<M> {
    options: Arc<Options>,
    jitter: Jitter,
    phase: Phase,
    /// The state that is shown.
    state: TenantState,
    controls: Controls,
    /// It works until then although another worker comes first.
    taken_over_until: Option<Instant>,

    buffer: Gather<M>,
    permit: Permit,
    /// The buffer is being claimed anew while its permit is waited for: the release under way, or the last one.
    renewal: Option<FlightId>,
    pace: pace::Pace,
    supply: Supply,
    flights: Vec<Flight>,
    next_flight: u64,

    intake: Intake,
    idle_delay: Duration,
    backlog: Backlog,
    /// Since when the schedule's head has been older than `protect_after` at every claim.
    behind_since: Option<Instant>,
    locked_out: claim::LockedOut,

    health: Health,
    upkeep: upkeep::Plan,
    wake: Option<Instant>,
}

/// How far it is in its life.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Running,
    /// Its tenant is removed: it empties the schedule.
    Leaving {
        deadline: Instant,
    },
    /// It claims nothing more and writes what it holds.
    Draining {
        deadline: Instant,
        drained: Drained,
    },
    /// What flights held that did not end in time is being released.
    Abandoning {
        drained: Drained,
    },
    Ended(Drained),
}

/// The permit of the next flush.
#[derive(Debug, Clone, Copy)]
enum Permit {
    None,
    Requested {
        trigger: Trigger,
        since: Instant,
    },
    /// It is there, and its batch is being completed.
    Held {
        trigger: Trigger,
        waited: Duration,
    },
}

/// Whether permits have to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Supply {
    Ample,
    /// The last one was waited for, or there was none yet since the tenant was idle.
    Scarce,
}

/// A batch that is being flushed or released.
#[derive(Debug, Clone, Copy)]
struct Flight {
    id: FlightId,
    /// Since when it is on its way.
    since: Instant,
}

/// What it does to get members.
#[derive(Debug, Clone, Copy)]
enum Intake {
    /// It claims from this moment on.
    Ready { at: Instant },
    /// A claim is under way.
    Claiming { limit: usize },
    /// Nothing was due: it waits until something may be.
    Idle,
    /// It waits until something is due that no worker claims.
    Watching,
}

/// What the last claim showed of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backlog {
    Unknown,
    /// There is nothing in it, neither due nor claimed by a worker.
    Empty,
    /// Nothing more was due.
    Done,
    /// The claim brought as many as were asked for: there are probably more.
    More,
}

#[derive(Debug)]
enum Health {
    Well,
    /// Boxed: most tenants are well, and a worker has thousands.
    Degraded(Box<recovery::Degraded>),
}

/// One call of [`Collector::handle`]: when it is, and what comes of it.
struct Step<M> {
    now: Instant,
    commands: Commands<M>,
}

impl<M> Step<M> {
    fn command(&mut self, command: Command<M>) {
        self.commands.push(command);
    }
}

impl<M> Collector<M> {
    /// A collector that begins with its first [`Event::ControlsChanged`]. The seed decides its jitter.
    #[must_use]
    pub fn new(options: Arc<Options>, seed: u64, now: Instant) -> Self {
        Self {
            jitter: Jitter::new(seed),
            phase: Phase::Running,
            state: TenantState::Starting,
            controls: Controls { service: Service::Unknown, role: Role::First },
            taken_over_until: None,
            buffer: Gather::new(options.batch_size, options.flush_timeout),
            permit: Permit::None,
            renewal: None,
            pace: pace::Pace::new(options.profile, options.flush_timeout),
            supply: Supply::Scarce,
            flights: Vec::new(),
            next_flight: 0,
            intake: Intake::Ready { at: now },
            idle_delay: options.poll_interval,
            backlog: Backlog::Unknown,
            behind_since: None,
            locked_out: claim::LockedOut::default(),
            health: Health::Well,
            upkeep: upkeep::Plan::new(now),
            wake: None,
            options,
        }
    }

    /// Takes in what happened; returns what to do now.
    pub fn handle(&mut self, now: Instant, event: Event<M>) -> Commands<M> {
        let mut step = Step { now, commands: Commands::new() };
        self.apply(&mut step, event);
        self.wake = self.advance(&mut step);
        debug_assert!(self.wake.is_none_or(|wake| wake > now), "what is due now has been started");
        step.commands
    }

    /// When to call [`Collector::handle`] with [`Event::Tick`] if nothing else happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.wake
    }

    /// The state that is shown.
    #[must_use]
    pub fn state(&self) -> TenantState {
        self.state
    }

    /// What others last decided about it.
    #[must_use]
    pub fn controls(&self) -> Controls {
        self.controls
    }

    /// Members in the buffer: claimed, and not yet part of a flush.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// These members.
    #[must_use]
    pub fn waiting(&self) -> &[M] {
        self.buffer.members()
    }

    /// Whether it has not been asked to stop or to leave.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// Whether it is emptying the schedule of a removed tenant.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
    }

    /// What it left, once it has ended.
    #[must_use]
    pub fn ended(&self) -> Option<Drained> {
        match self.phase {
            Phase::Ended(drained) => Some(drained),
            _ => None,
        }
    }

    fn apply(&mut self, step: &mut Step<M>, event: Event<M>) {
        match event {
            Event::Tick => {}
            Event::Claimed(claimed) => self.claimed(step, claimed),
            Event::ClaimFailed(failure) => self.claim_failed(step, failure),
            Event::IdleOver => self.idle_over(step),
            Event::Unattended => self.take_over(step),
            Event::PermitGranted => self.permit_granted(step),
            Event::PermitFailed(failure) => self.permit_failed(step, failure),
            Event::FlightEnded(id, end) => self.flight_ended(step, id, end),
            Event::Probed(result) => self.probed(step, result),
            Event::UpkeepEnded(end) => self.upkeep_ended(step, end),
            Event::ControlsChanged(controls) => self.controls_changed(step, controls),
            Event::FlushRequested => self.flush_requested(step),
            Event::SurveyRequested => self.survey_requested(step.now),
            Event::Leave => self.leave(step),
            Event::Stop => self.stop(step),
            Event::Abandoned { released, orphaned } => self.abandoned(released, orphaned),
        }
    }

    /// Starts what can be started; returns when to be asked again.
    fn advance(&mut self, step: &mut Step<M>) -> Option<Instant> {
        if self.has_left(step.now) {
            self.stop(step);
        }
        match self.phase {
            Phase::Running | Phase::Leaving { .. } => {
                // In this order: each looks at what those before it have started.
                self.apply_controls(step);
                [
                    self.update_role(step),
                    self.start_flush(step),
                    self.start_probe(step),
                    self.start_claim(step),
                    self.start_upkeep(step),
                    self.leave_deadline(),
                ]
                .into_iter()
                .flatten()
                .min()
            }
            Phase::Draining { deadline, .. } => self.drain(step, deadline),
            Phase::Abandoning { .. } | Phase::Ended(_) => None,
        }
    }

    /// Shows a state, if it is another than before. The end is shown to the end.
    fn enter(&mut self, step: &mut Step<M>, state: TenantState) {
        if self.is_running() || state == TenantState::Stopping {
            if self.state != state {
                step.command(Command::Enter(state));
            }
            self.state = state;
        }
    }

    /// Whether operators let it claim.
    fn may_claim(&self) -> bool {
        self.controls.service == Service::Active
    }

    /// Whether a batch is on its way to Postgres, or waits for its permit.
    fn is_writing(&self) -> bool {
        !self.flights.is_empty() || !matches!(self.permit, Permit::None)
    }
}
