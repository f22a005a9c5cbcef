//! The events that a collector receives and the commands that it returns.

use std::time::Duration;

use smallvec::SmallVec;

use super::{Profile, Trigger};
use crate::{
    failure::{Failure, Reaction, Reason},
    state::TenantState,
};

/// How a collector works. One value for the whole worker.
#[derive(Debug, Clone)]
pub struct Options {
    /// Members in one flush at most.
    pub batch_size: usize,
    /// A flush is made this long after the first member entered the empty buffer.
    pub flush_timeout: Duration,
    /// What a flush waits for.
    pub profile: Profile,
    /// How long a collector waits that found nothing more due while it has work.
    pub poll_interval: Duration,
    /// Longest wait of an idle collector between two claims.
    pub idle_backoff_max: Duration,
    /// Flushes in flight at most.
    pub pipeline_depth: usize,
    /// Longest time the write of one flush may take, a short wait for its permit included; half of it after a longer one.
    pub flush_deadline: Duration,
    /// Longest time the final flush may take after a stop, before what is left is released.
    pub drain_deadline: Duration,
    /// Longest time a collector whose tenant is removed goes on emptying the schedule before it drains.
    pub leave_deadline: Duration,
    /// When work waits longer than this, the values that wait are protected.
    pub protect_after: Duration,
    /// TTLs are raised to this; whole sweeps come every third of it. Zero = nothing is protected.
    pub protect_floor: Duration,
    /// How often legacy schedules and the other key form are looked at.
    pub survey_interval: Duration,
    /// How long after a mutation, or after an outage, an operation may still be on its way to the ledger's trail.
    pub trail_grace: Duration,
    /// First delay after a failure.
    pub backoff_min: Duration,
    /// Longest delay after a failure that may be over at any moment.
    pub backoff_max: Duration,
    /// Longest delay after a failure that an operator has to mend.
    pub backoff_long: Duration,
    /// How long the claim script puts off a member that can't be worked at present, though others of its tenant can.
    pub put_off: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            batch_size: 500,
            flush_timeout: Duration::from_millis(50),
            profile: Profile::Balanced,
            poll_interval: Duration::from_millis(25),
            idle_backoff_max: Duration::from_secs(1),
            pipeline_depth: 3,
            flush_deadline: Duration::from_secs(20),
            drain_deadline: Duration::from_secs(8),
            leave_deadline: Duration::from_secs(36),
            protect_after: Duration::from_secs(2),
            protect_floor: Duration::from_secs(900),
            survey_interval: Duration::from_secs(60),
            trail_grace: Duration::from_secs(60),
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
    /// Members released: due at once for other workers.
    pub released: usize,
    /// Members whose claims could not be released: due again when the claim TTL ends.
    pub orphaned: usize,
}

/// Names a batch between its [`Command::Flush`], [`Command::FinalFlush`] or [`Command::Release`] and its
/// [`Event::FlightEnded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlightId(pub(super) u64);

/// What operators want of the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Not known yet, or not wanted: nothing is claimed, and nothing of it is changed.
    Unknown,
    /// It is served.
    Active,
    /// An operator paused it: nothing is claimed, what is held is written, and what waits is protected.
    Paused,
}

/// This worker's place among the tenant's owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It claims.
    First,
    /// Another worker claims; this one takes over when it doesn't.
    Standby,
}

/// What others decide about a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controls {
    /// What operators want.
    pub service: Service,
    /// What the partition wants.
    pub role: Role,
}

/// The answer to a claim.
#[derive(Debug)]
pub struct Claimed<M> {
    /// The members, not more than were asked for.
    pub members: Vec<M>,
    /// Members in the schedule, these and those that are not due among them.
    pub scheduled: u64,
    /// How long the oldest of the members had been due, if that is known.
    pub head_age: Option<Duration>,
    /// Members that are due and locked by others (mode `lock`).
    pub locked: Option<Locked>,
}

/// Due members that others have locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locked {
    /// How long until the first of these locks ends, if that is known.
    pub unlock_in: Option<Duration>,
}

/// How a flight ended. The members of its batch that are in none of these numbers were settled or quarantined.
#[derive(Debug, Default)]
pub struct FlightEnd {
    /// Members whose row is as new as they are.
    pub written: usize,
    /// Members released.
    pub released: usize,
    /// Members neither settled nor released: their claims lapse.
    pub orphaned: usize,
    /// Postgres has answered a write: it works.
    pub answered: bool,
    /// Redis has let members be settled or quarantined.
    pub settled: bool,
    /// Why the batch was not written, or not settled.
    pub failure: Option<Failure>,
}

/// How upkeep of the schedule ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum UpkeepEnd {
    /// A sweep over all values.
    Swept,
    /// A look at what was scheduled lately.
    Protected {
        /// The server's time at its beginning, in seconds.
        at: f64,
    },
    /// A survey.
    Surveyed {
        /// Members moved here from a legacy schedule.
        adopted: u64,
    },
    /// Redis failed.
    Failed,
}

/// What happened. An event of something that was cancelled meanwhile is ignored.
#[derive(Debug)]
pub enum Event<M> {
    /// Time has passed.
    Tick,
    /// The claim under way was answered.
    Claimed(Claimed<M>),
    /// The claim under way failed.
    ClaimFailed(Failure),
    /// The wait of [`Command::Idle`] is over: something may be due.
    IdleOver,
    /// The wait of [`Command::Watch`] is over: something is due that no worker claims.
    Unattended,
    /// The permit is there. The driver keeps it until a [`Command::Flush`] uses it or it is cancelled.
    PermitGranted,
    /// There is no permit.
    PermitFailed(Failure),
    /// A batch has been flushed or released.
    FlightEnded(FlightId, FlightEnd),
    /// Postgres answered a ping.
    Probed(Result<(), Failure>),
    /// Upkeep of the schedule has ended.
    UpkeepEnded(UpkeepEnd),
    /// Others decided something about this collector. The first of these lets it begin.
    ControlsChanged(Controls),
    /// An operator wants everything written at once.
    FlushRequested,
    /// There seems to be something in schedules that are seldom looked at.
    SurveyRequested,
    /// The tenant is being removed: empty its schedule, then stop.
    Leave,
    /// Stop: write what is held, and end.
    Stop,
    /// What [`Command::AbandonFlights`] left was released, as far as that could be done.
    Abandoned {
        /// Members released.
        released: usize,
        /// Members whose claims lapse.
        orphaned: usize,
    },
}

/// Upkeep of a schedule beside its claims and flushes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Upkeep {
    /// Protect all scheduled values.
    Sweep,
    /// Protect what was scheduled since this time of the server; `None` = only read the server's time.
    Recent {
        /// In seconds.
        from: Option<f64>,
    },
    /// Look after legacy schedules and the other key form.
    Survey,
}

/// Something under way that is no longer wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// [`Command::Claim`]: it did not end in time. What it may have claimed lapses.
    Claim,
    /// [`Command::Idle`] or [`Command::Watch`].
    Wait,
    /// [`Command::RequestPermit`], or the permit that it brought.
    Permit,
    /// [`Command::Probe`].
    Probe,
    /// [`Command::Upkeep`].
    Upkeep,
}

/// What to log and count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// An operator paused the tenant.
    Paused,
    /// An operator resumed it.
    Resumed,
    /// No worker claimed what was due, so this worker takes over for a while.
    TookOver,
    /// The failure is over.
    Recovered {
        /// Which it was.
        reason: Reason,
    },
}

/// What a driver does.
#[derive(Debug)]
pub enum Command<M> {
    /// Claim so many due members at most; ends with [`Event::Claimed`] or [`Event::ClaimFailed`].
    Claim {
        /// How many.
        limit: usize,
    },
    /// Wait about so long, or until something may be due; ends with [`Event::IdleOver`].
    Idle {
        /// How long.
        delay: Duration,
    },
    /// Wait until something is due that no worker claims; ends with [`Event::Unattended`].
    Watch,
    /// Ask for the right to write; ends with [`Event::PermitGranted`] or [`Event::PermitFailed`].
    RequestPermit {
        /// What the flush is for.
        trigger: Trigger,
        /// The collector is leaving: a database that may no longer be served is used as far as it still lets us.
        last: bool,
        /// Longest time it may take, apart from the wait in a queue that moves.
        deadline: Duration,
    },
    /// Write and settle a batch with the permit that was granted; ends with [`Event::FlightEnded`].
    Flush {
        /// Its name.
        flight: FlightId,
        /// The members.
        batch: Vec<M>,
        /// Why now.
        trigger: Trigger,
        /// How long the permit was waited for.
        waited: Duration,
        /// Longest time the write may take.
        deadline: Duration,
    },
    /// The same at the end, asking for the last permit as well.
    FinalFlush {
        /// Its name.
        flight: FlightId,
        /// The members.
        batch: Vec<M>,
        /// Longest time the write may take.
        deadline: Duration,
    },
    /// Give members back unwritten; ends with [`Event::FlightEnded`].
    Release {
        /// Its name.
        flight: FlightId,
        /// The members.
        batch: Vec<M>,
    },
    /// Ping Postgres; ends with [`Event::Probed`].
    Probe {
        /// How long to wait for the answer.
        deadline: Duration,
    },
    /// Upkeep of the schedule; ends with [`Event::UpkeepEnded`].
    Upkeep(Upkeep),
    /// Drop something under way.
    Cancel(Task),
    /// Drop all flights and release what they hold; ends with [`Event::Abandoned`].
    AbandonFlights {
        /// How long the release may take.
        release_within: Duration,
    },
    /// Show this state.
    Enter(TenantState),
    /// Show that the tenant is degraded. With it come the other consequences in the reaction: refetch and skip.
    Degrade {
        /// Why, and what is done about it.
        reaction: Reaction,
        /// In words.
        detail: String,
        /// Failures in a row.
        failures: u32,
        /// Nothing is tried before this has passed.
        delay: Duration,
    },
    /// Log and count this.
    Report(Report),
}

/// The commands of one step, in the order in which they are to be carried out.
pub type Commands<M> = SmallVec<[Command<M>; 4]>;
