//! What is known of the worker and of each of its tenants: states, counters, lag, what happened lately; and what is wanted
//! of a collector out of turn. Written by the rooms above, read by metrics and the operators' view.

mod clock_back;
mod directory;
mod exposure;
mod fleet;
mod histogram;
mod ledgers;
mod put_off;
mod quiet;
mod recent;
mod requests;
mod rest;
mod rollout;
mod routing;
mod tenant;
mod tracking;
mod values_gone;
mod vanished;

pub use balance_sync_engine::{
    collector::Trigger,
    neighbour::{HOW_TO_PARK, Neighbour, Presence, Sign},
    outcome::{Outcome, Outcomes},
    queues::{Oldest, QueueReport},
    reason::{Pace, Reason, ReportedReason, pace_of},
    shadow::{LeftBehind, ShadowReport, WorkerMode},
    state::{Condition, ReportedState, TenantState, display_priority},
};

pub use clock_back::{ClockBack, ClockJump};
pub use directory::{Calls, DirectoryStatus, OUTCOMES};
pub use exposure::{Exposure, ExposureHour};
pub use fleet::{FleetStatus, InForce, Known, KnownOffset, Listed, Phase, PushOutcome, Stage, Tenants};
pub use histogram::{BUCKETS, Histogram, LagCounts};
pub use ledgers::{LedgerCounts, LedgerKey, LedgerTotals, Ledgers, MOST_LEDGERS};
pub use quiet::Quiet;
pub use recent::{
    ErrorNote, FlushNote, NOTED, NOTES, POINTS, Point, Rates, Recent, STEP_SECONDS, Totals, Window,
    lag_quantile,
};
pub use requests::{PausedTenants, Requests};
pub use rest::{CALM_FOR, Rest, SWEEP_EVERY};
pub use rollout::{Rollout, RolloutStatus};
pub use routing::{EntryLook, LeftOver, Routing, RoutingLook, Split};
pub use tenant::{LastSample, StateInfo, TenantStatus};
pub use tracking::TrackingStatus;
pub use values_gone::{Gone, ValuesGone};
pub use vanished::{Vanished, is_notice};
