//! The schedule in Redis: claim, settle, release, protect, quarantine.
//!
//! A claim is a lease in the schedule itself (`docs/decisions/0001-lease-in-the-schedule.md`): the script moves the
//! member's score to the end of the lease, and whoever removes or releases must show that score. The Lua scripts
//! live in `lua/` at the top of the repository, one file each, and are embedded here; this crate gives each of
//! them one typed wrapper, and knows neither Postgres nor actors.
//!
//! Reading order: [`link`] (the connection, counted in [`stats`]) · [`scripts`] (the embedded Lua) · [`claimed`] (what a
//! claim holds) · [`schedule`] (the wrappers) · [`schedules`] (a tenant's) · `siblings` (one balance under two forms) · [`quarantine`] (entries, by hand) ·
//! [`losses`] (of values that are gone) · [`mod@sample`] (what waits, for the
//! eye) · [`workers`] (who else is there) · [`snapshots`] (what they know) · [`controls`] (what operators decided) ·
//! [`heads`] (whether anybody claims) · [`inspect`] (one balance) · [`subscription`] (messages) · [`error`].

pub mod claimed;
pub mod controls;
pub mod error;
pub mod heads;
pub mod inspect;
pub mod link;
pub mod losses;
pub mod quarantine;
pub mod sample;
pub mod schedule;
pub mod schedules;
pub mod scripts;
mod siblings;
pub mod snapshots;
pub mod stats;
pub mod subscription;
pub mod workers;

pub use claimed::{Claim, Claimed, Refusal, Refused};
pub use controls::Controls;
pub use error::{ErrorClass, ScheduleError};
pub use heads::{Head, Seen, look_at_heads};
pub use link::{Link, LinkSettings};
pub use losses::{Loss, REASON_LOST};
pub use quarantine::{QuarantineEntry, Quarantined};
pub use sample::{Look, PageEnd, Sample, sample};
pub use schedule::{
    Backlog, ClaimMode, PostponeReport, ProtectPage, QuarantineReport, RecentFrom, RecentPage, ReleaseReport,
    Schedule, ScheduleOptions, SettleReport,
};
pub use schedules::Schedules;
pub use snapshots::Snapshots;
pub use stats::LinkStats;
pub use subscription::Subscription;
pub use workers::{Registered, Workers};
