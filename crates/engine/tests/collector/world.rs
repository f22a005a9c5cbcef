//! A driver of one collector on virtual time. It answers nothing by itself, and checks every command against what is
//! under way.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use balance_sync_engine::{
    collector::{
        Claimed, Collector, Command, Controls, Event, FlightEnd, FlightId, Locked, Options, Profile, Report,
        Role, Service, Task, Trigger, Upkeep, UpkeepEnd,
    },
    failure::{Failure, NextTry, Obstacle, Pace, Reaction, Reason, Settings, Side},
    state::TenantState,
};

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn options() -> Options {
    Options {
        batch_size: 10,
        pipeline_depth: 3,
        poll_interval: ms(10),
        idle_backoff_max: ms(160),
        flush_deadline: secs(5),
        drain_deadline: secs(2),
        leave_deadline: secs(20),
        protect_after: secs(1),
        protect_floor: secs(30),
        profile: Profile::Frugal,
        ..Options::default()
    }
}

pub(crate) fn failure(side: Side, pace: Pace, ping: bool) -> Failure {
    Failure { side, reaction: reaction(pace, ping, false), detail: "injected".to_owned() }
}

/// One of this pace, whatever its reason.
pub(crate) fn reaction(pace: Pace, ping: bool, skip: bool) -> Reaction {
    Reaction {
        reason: match pace {
            Pace::Short => Reason::PostgresConnection,
            Pace::Long => Reason::PostgresPermission,
        },
        settings: Settings::Keep,
        next_try: if ping { NextTry::Ping } else { NextTry::Claim },
        obstacle: if skip { Obstacle::Skipped } else { Obstacle::Failure },
    }
}

/// Postgres is away, which a ping shows.
pub(crate) fn away() -> Failure {
    failure(Side::Sink, Pace::Short, true)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Idle,
    Watch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    None,
    Requested,
    Held,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Flush(Trigger),
    Release,
}

/// When the next claim may come at the earliest while the tenant is degraded.
#[derive(Debug, Clone, Copy)]
struct Held {
    until: Instant,
    ping: bool,
    skip: bool,
    /// What fails lets be written what is held.
    writes: bool,
}

pub(crate) struct World {
    pub begun: Instant,
    pub now: Instant,
    pub options: Arc<Options>,
    pub machine: Collector<u32>,
    controls: Controls,
    stopping: bool,

    pub claim: Option<usize>,
    pub wait: Option<Wait>,
    /// How long the last wait of an idle collector may take.
    pub idle: Duration,
    pub permit: Permit,
    pub probe: bool,
    pub upkeep: Option<Upkeep>,
    pub flights: BTreeMap<FlightId, (Kind, Vec<u32>)>,
    pub abandoned: Option<Vec<u32>>,

    next_member: u32,
    /// Members in the machine's buffer, and since when.
    buffered: BTreeMap<u32, Instant>,
    /// How long the last flush may take.
    pub deadline: Duration,
    pub written: usize,
    /// Given back, left to lapse, or lost with a claim that was cancelled.
    pub unwritten: usize,

    pub state: TenantState,
    degraded: Option<Held>,
    /// The side of the last failure.
    failing: Side,
    taken_over_until: Option<Instant>,
    pub reports: Vec<Report>,
    pub claims: usize,
    pub upkeeps: Vec<(Duration, Upkeep)>,
    silent_ticks: u32,
    pub ticks: u32,
}

impl World {
    pub(crate) fn new(options: Options) -> Self {
        let now = Instant::now();
        let options = Arc::new(options);
        Self {
            begun: now,
            now,
            machine: Collector::new(Arc::clone(&options), 1, now),
            options,
            controls: Controls { service: Service::Unknown, role: Role::First },
            stopping: false,
            claim: None,
            wait: None,
            idle: Duration::ZERO,
            permit: Permit::None,
            probe: false,
            upkeep: None,
            flights: BTreeMap::new(),
            abandoned: None,
            next_member: 0,
            buffered: BTreeMap::new(),
            deadline: Duration::ZERO,
            written: 0,
            unwritten: 0,
            state: TenantState::Starting,
            degraded: None,
            failing: Side::Queue,
            taken_over_until: None,
            reports: Vec::new(),
            claims: 0,
            upkeeps: Vec::new(),
            silent_ticks: 0,
            ticks: 0,
        }
    }

    /// One that has claimed for the first time, and whose survey is done.
    pub(crate) fn started(options: Options) -> Self {
        let mut world = Self::new(options);
        world.control(Service::Active, Role::First);
        assert_eq!(
            (world.claim, world.upkeep),
            (Some(10.min(world.options.batch_size)), Some(Upkeep::Survey))
        );
        world.end_upkeep(UpkeepEnd::Surveyed { adopted: 0 });
        world
    }

    /// Members that claims have brought so far.
    pub(crate) fn members(&self) -> usize {
        self.next_member as usize
    }

    pub(crate) fn at(&self) -> Duration {
        self.now - self.begun
    }

    pub(crate) fn control(&mut self, service: Service, role: Role) {
        if self.controls.service == Service::Paused && service != Service::Paused {
            self.end_backoff();
        }
        self.controls = Controls { service, role };
        self.handle(Event::ControlsChanged(self.controls));
    }

    pub(crate) fn request_flush(&mut self) {
        if self.controls.service != Service::Paused {
            self.end_backoff();
            self.taken_over_until = Some(self.now + secs(60));
        }
        self.handle(Event::FlushRequested);
    }

    fn end_backoff(&mut self) {
        if let Some(held) = &mut self.degraded {
            held.until = self.now;
        }
    }

    pub(crate) fn stop(&mut self) {
        self.stopping = true;
        self.handle(Event::Stop);
    }

    pub(crate) fn leave(&mut self) {
        // A database that must no longer be served is used all the same.
        self.degraded = self.degraded.filter(|held| !held.skip || !self.machine.is_running());
        self.handle(Event::Leave);
    }

    /// The claim under way brings so many members, as far as they fit, of this many in the schedule.
    pub(crate) fn answer_claim(&mut self, found: usize, more: u64) {
        let limit = self.claim.take().expect("a claim is under way");
        let found = found.min(limit);
        let members: Vec<u32> = (0..found).map(|_| self.new_member()).collect();
        self.buffered.extend(members.iter().map(|member| (*member, self.now)));
        let scheduled = found as u64 + more;
        self.handle(Event::Claimed(Claimed { members, scheduled, head_age: Some(ms(1)), locked: None }));
    }

    /// The claim under way brings nothing: one member is due, and locked by another worker for so long.
    pub(crate) fn answer_locked(&mut self, unlock_in: Option<Duration>) {
        self.claim.take().expect("a claim is under way");
        let locked = Some(Locked { unlock_in });
        self.handle(Event::Claimed(Claimed { members: Vec::new(), scheduled: 1, head_age: None, locked }));
    }

    fn new_member(&mut self) -> u32 {
        self.next_member += 1;
        self.next_member
    }

    pub(crate) fn fail_claim(&mut self, failure: Failure) {
        self.claim.take().expect("a claim is under way");
        self.failing = failure.side;
        self.handle(Event::ClaimFailed(failure));
    }

    pub(crate) fn grant(&mut self) {
        assert_eq!(self.permit, Permit::Requested);
        self.permit = Permit::Held;
        self.handle(Event::PermitGranted);
    }

    pub(crate) fn refuse_permit(&mut self, failure: Failure) {
        assert_eq!(self.permit, Permit::Requested);
        self.permit = Permit::None;
        self.failing = failure.side;
        self.handle(Event::PermitFailed(failure));
    }

    /// The oldest flight ends well.
    pub(crate) fn land(&mut self) {
        let id = *self.flights.keys().next().expect("a flight");
        self.end_flight(id, None);
    }

    pub(crate) fn end_flight(&mut self, id: FlightId, failure: Option<Failure>) {
        let (kind, batch) = self.flights.remove(&id).expect("the flight");
        let mut end = FlightEnd::default();
        match (kind, &failure) {
            (Kind::Flush(_), None) => {
                (end.written, end.answered, end.settled) = (batch.len(), true, true);
            }
            (Kind::Flush(_), Some(failure)) if failure.side == Side::Settle => {
                (end.written, end.answered) = (batch.len(), true);
            }
            _ => end.released = batch.len(),
        }
        self.failing = failure.as_ref().map_or(self.failing, |failure| failure.side);
        end.failure = failure;
        self.written += end.written;
        self.unwritten += end.released;
        self.handle(Event::FlightEnded(id, end));
    }

    pub(crate) fn answer_probe(&mut self, answer: Result<(), Failure>) {
        assert!(std::mem::take(&mut self.probe), "a probe is under way");
        if answer.is_ok()
            && let Some(held) = &mut self.degraded
        {
            held.ping = false;
        }
        self.failing = answer.as_ref().err().map_or(self.failing, |failure| failure.side);
        self.handle(Event::Probed(answer));
    }

    pub(crate) fn end_upkeep(&mut self, end: UpkeepEnd) {
        let ran = self.upkeep.take().expect("upkeep is under way");
        self.handle(Event::UpkeepEnded(end));
        if end == UpkeepEnd::Failed {
            let same = |upkeep| std::mem::discriminant(&upkeep) == std::mem::discriminant(&ran);
            assert!(!self.upkeep.is_some_and(same), "{ran:?} is repeated at once");
        }
    }

    pub(crate) fn end_wait(&mut self) {
        match self.wait.take().expect("a wait is under way") {
            Wait::Idle => self.handle(Event::IdleOver),
            Wait::Watch => self.handle(Event::Unattended),
        }
    }

    pub(crate) fn release_abandoned(&mut self) {
        let members = self.abandoned.take().expect("flights were abandoned");
        self.unwritten += members.len();
        self.handle(Event::Abandoned { released: members.len(), orphaned: 0 });
    }

    /// Lets time pass, and wakes the machine when it wants to be woken.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(wake) = self.machine.wake_at().filter(|wake| *wake <= end) {
            self.now = wake;
            self.ticks += 1;
            self.handle(Event::Tick);
        }
        self.now = end;
    }

    pub(crate) fn handle(&mut self, event: Event<u32>) {
        let is_tick = matches!(event, Event::Tick);
        let commands = self.machine.handle(self.now, event);
        // A wake-up may change something inside only, but not over and over.
        self.silent_ticks = if is_tick && commands.is_empty() { self.silent_ticks + 1 } else { 0 };
        assert!(self.silent_ticks <= 3, "woken for nothing at {:?}", self.at());
        self.forget_failure_while_paused();
        for command in commands {
            self.execute(command);
            self.forget_failure_while_paused();
        }
        self.check();
    }

    /// Whether what has been held for long is claimed anew, as far as that is certain.
    fn may_claim_anew(&self) -> bool {
        self.degraded.is_none() && self.controls == (Controls { service: Service::Active, role: Role::First })
    }

    /// Whether a paused tenant can be written is found out when it is resumed.
    fn forget_failure_while_paused(&mut self) {
        if self.controls.service == Service::Paused {
            self.degraded = None;
        }
    }

    fn check(&self) {
        let wake = self.machine.wake_at();
        assert!(wake.is_none_or(|wake| wake > self.now), "it would spin");
        assert_eq!(self.machine.buffered(), self.buffered.len());
        assert!(self.buffered.len() <= self.options.batch_size, "{} buffered", self.buffered.len());
        assert_eq!(self.machine.state(), self.state);
        let flushes = self.flights.values().filter(|(kind, _)| matches!(kind, Kind::Flush(_))).count();
        // The final flushes: what was buffered, and what the last claim brought.
        let most = self.options.pipeline_depth + if self.machine.is_running() { 0 } else { 2 };
        assert!(flushes <= most, "{flushes} flushes in flight");
        let gives_back = self.flights.values().any(|(kind, _)| *kind == Kind::Release);
        if self.permit == Permit::Held {
            assert!(
                self.claim.is_some() || gives_back,
                "a permit is kept only while a claim may complete its batch"
            );
        }
        if self.permit == Permit::Requested {
            let claims_anew = self.claim.is_some() || gives_back;
            assert!(!self.buffered.is_empty() || claims_anew, "a permit for nothing");
            let oldest = self.buffered.values().map(|since| self.now - *since).max().unwrap_or_default();
            let longest = match self.may_claim_anew() {
                true => self.options.flush_deadline / 2,
                false => self.options.flush_deadline,
            };
            assert!(oldest <= longest, "held for {oldest:?} without a permit");
        }
        if let Some(held) = self.degraded
            && !held.writes
            && (self.now < held.until || held.ping)
        {
            assert!(
                self.buffered.is_empty() && self.permit == Permit::None,
                "held, though it can't be written"
            );
        }
        if self.controls.service == Service::Paused && self.machine.is_running() {
            assert!(self.wait.is_none() && !self.probe);
        }
        if self.machine.ended().is_some() {
            assert!(self.buffered.is_empty() && self.flights.is_empty() && self.claim.is_none());
            assert!(self.wait.is_none() && !self.probe && self.upkeep.is_none());
            assert_eq!((self.permit, wake), (Permit::None, None));
        } else {
            let under_way = self.claim.is_some()
                || self.wait.is_some()
                || self.permit == Permit::Requested
                || self.probe
                || self.upkeep.is_some()
                || !self.flights.is_empty()
                || self.abandoned.is_some();
            // Then it only waits to be informed.
            let is_unknown = self.controls.service == Service::Unknown;
            assert!(under_way || wake.is_some() || is_unknown, "nothing would ever happen again");
        }
    }

    fn execute(&mut self, command: Command<u32>) {
        match command {
            Command::Claim { limit } => {
                assert!(self.claim.is_none() && self.wait.is_none() && !self.probe);
                assert!(limit > 0 && limit + self.buffered.len() <= self.options.batch_size);
                assert_eq!(self.controls.service, Service::Active);
                assert!(!self.stopping);
                let others_claim = self.controls.role == Role::Standby
                    && self.machine.is_running()
                    && self.degraded.is_none()
                    && self.taken_over_until.is_none_or(|until| until <= self.now);
                assert!(!others_claim, "a standby claims");
                if let Some(held) = self.degraded {
                    assert!(self.now >= held.until, "claimed before the wait was over");
                    assert!(!held.ping, "claimed before a ping was answered");
                    assert!(
                        self.flights.is_empty() && (self.permit == Permit::None || self.buffered.is_empty()),
                        "one batch at a time"
                    );
                }
                self.claims += 1;
                self.claim = Some(limit);
            }
            Command::Idle { delay } => {
                self.idle = delay;
                self.begin_wait(Wait::Idle);
            }
            Command::Watch => {
                assert_eq!(self.controls.role, Role::Standby);
                self.begin_wait(Wait::Watch);
            }
            Command::RequestPermit { last, .. } => {
                assert_eq!((self.permit, last), (Permit::None, self.machine.is_leaving()));
                let depth = if self.degraded.is_some() { 1 } else { self.options.pipeline_depth };
                assert!(self.flights.len() < depth && !self.buffered.is_empty());
                self.permit = Permit::Requested;
            }
            Command::Flush { flight, batch, trigger, deadline, .. } => {
                assert_eq!(self.permit, Permit::Held);
                let oldest = batch.iter().map(|member| self.now - self.buffered[member]).max();
                let held = oldest.unwrap_or_default();
                assert!(
                    held + deadline <= self.options.flush_timeout + self.options.flush_deadline,
                    "its leases may end before it does: held for {held:?}, {deadline:?} left"
                );
                self.deadline = deadline;
                self.permit = Permit::None;
                self.take_off(flight, Kind::Flush(trigger), batch);
            }
            Command::FinalFlush { flight, batch, .. } => {
                self.take_off(flight, Kind::Flush(Trigger::Drain), batch);
            }
            Command::Release { flight, batch } => self.take_off(flight, Kind::Release, batch),
            Command::Probe { .. } => {
                assert!(!self.probe && self.flights.is_empty() && self.permit == Permit::None);
                assert!(self.degraded.is_some_and(|held| held.ping && self.now >= held.until));
                self.probe = true;
            }
            Command::Upkeep(upkeep) => {
                assert!(self.upkeep.is_none() && !self.stopping);
                self.upkeeps.push((self.at(), upkeep));
                self.upkeep = Some(upkeep);
            }
            Command::Cancel(task) => match task {
                Task::Claim => {
                    assert!(self.claim.take().is_some() && self.state == TenantState::Stopping);
                }
                Task::Wait => assert!(self.wait.take().is_some()),
                Task::Permit => {
                    assert_ne!(std::mem::replace(&mut self.permit, Permit::None), Permit::None);
                }
                Task::Probe => assert!(std::mem::take(&mut self.probe)),
                Task::Upkeep => assert!(self.upkeep.take().is_some()),
            },
            Command::AbandonFlights { .. } => {
                let flights = std::mem::take(&mut self.flights);
                assert!(!flights.is_empty());
                self.abandoned = Some(flights.into_values().flat_map(|(_, batch)| batch).collect());
            }
            Command::Enter(state) => {
                assert!(state != self.state && self.state != TenantState::Stopping);
                self.state = state;
            }
            Command::Degrade { reaction, delay, .. } => {
                assert!(!self.probe, "its answer would be to another failure");
                self.state = TenantState::Degraded;
                self.degraded = Some(Held {
                    until: self.now + delay,
                    ping: reaction.next_try == NextTry::Ping,
                    skip: reaction.obstacle == Obstacle::Skipped,
                    writes: self.failing.ends_with_a_claim(),
                });
            }
            Command::Report(report) => {
                if let Report::Recovered { .. } = report {
                    self.degraded = None;
                }
                if report == Report::TookOver {
                    self.taken_over_until = Some(self.now + secs(60));
                }
                self.reports.push(report);
            }
        }
    }

    fn begin_wait(&mut self, wait: Wait) {
        assert!(self.wait.is_none() && self.claim.is_none() && !self.stopping);
        self.wait = Some(wait);
    }

    fn take_off(&mut self, flight: FlightId, kind: Kind, batch: Vec<u32>) {
        assert!(!batch.is_empty() && batch.len() <= self.options.batch_size);
        for member in &batch {
            assert!(self.buffered.remove(member).is_some(), "each member goes out once");
        }
        assert!(self.flights.insert(flight, (kind, batch)).is_none());
    }
}
