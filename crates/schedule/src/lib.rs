//! The schedule in Redis: claim, settle, release, protect, quarantine.
//!
//! A claim is a lease in the schedule itself (`docs/decisions/0001-lease-in-the-schedule.md`): the script moves the
//! member's score to the end of the lease, and a member is removed or released only by a caller that presents that score.
//! The Lua scripts are in `lua/` at the top of the repository, one file each, and are embedded here. This crate has one
//! typed wrapper per script, and depends on neither Postgres nor actors.
//!
//! Reading order: `settings` · `endpoint` (where Redis is: `sentinel`, `cluster`, `credentials`) ·
//! [`link`] (the connection, counted in [`stats`]) · [`scripts`] (the embedded Lua) · `claim_mode` (with or without
//! locks) · [`claimed`] (claimed members) · `whole_claims` (settled without names) · [`schedule`] (the wrappers; their results are read in `reply`) · `protect` (TTLs) · [`probe`] (which of many are
//! due) · [`schedules`] (all schedules of a tenant) · `siblings` (one balance under two key forms) · [`quarantine`] (entries) ·
//! [`losses`] (vanished values) · [`mod@sample`] (backlog and TTLs of many tenants) · [`workers`] (live workers) · [`names`]
//! (which process holds a name) · [`connections`] (what workers hold of the
//! fleet's connections to Postgres) · [`snapshots`] (published state) · [`controls`] (operators' actions) · [`rollout`] (which tenants are
//! served) · [`retire`] (the end of our service) · [`reports`] (what the monthly report is made of) · [`timelines`] (what is kept for a day) · [`sessions`] (of the admin
//! interface) · [`heads`] (unclaimed
//! members, for standby) · `rights` (naming those that are missing) · [`inspect`] (one balance) · [`balances`] (all of them) ·
//! [`witnesses`] (what an audit reads) · [`origins`] (Postgres servers) · [`neighbours`] (what is known of the ledger's own
//! worker) · [`vanished`] (lost data) · [`queues`] (the ledger's
//! own queues) · [`subscription`] (messages) ·
//! [`tracking`] (changes of schedules) · [`error`].

mod access;
pub mod balances;
mod claim_mode;
pub mod claimed;
mod cluster;
pub mod connections;
pub mod controls;
mod credentials;
mod endpoint;
pub mod error;
pub mod heads;
pub mod inspect;
pub mod link;
pub mod losses;
pub mod names;
pub mod neighbours;
pub mod origins;
pub mod probe;
mod protect;
pub mod quarantine;
pub mod queues;
pub mod recoveries;
mod reply;
pub mod reports;
pub mod retire;
mod rights;
pub mod rollout;
pub mod sample;
pub mod schedule;
pub mod schedules;
pub mod scripts;
mod sentinel;
pub mod sessions;
mod settings;
mod siblings;
pub mod snapshots;
pub mod stats;
pub mod subscription;
pub mod timelines;
pub mod tracking;
pub mod vanished;
mod whole_claims;
pub mod witnesses;
pub mod workers;

pub use balances::{BalanceKeys, read_values};
pub use claimed::{Claim, Claimed, LedgerLock, Refusal, Refused, Unreadable};
pub use connections::Connections;
pub use controls::Controls;
pub use credentials::{certificates_in, password_in};
pub use endpoint::Endpoint;
pub use error::{ErrorClass, ScheduleError};
pub use heads::{Head, HeadState, read_heads};
pub use link::{Link, ServerFacts};
pub use losses::{ForkReport, Loss};
pub use names::{NameClaim, Names};
pub use neighbours::Neighbours;
pub use origins::{Origins, Written};
pub use protect::{ProtectPage, RecentFrom, RecentPage};
pub use quarantine::{QuarantineEntry, Quarantined, Retried};
pub use queues::{Page, QueueError, QueueReader};
pub use recoveries::Recoveries;
pub use reports::Reports;
pub use retire::Retirement;
pub use rights::MissingRights;
pub use rollout::Rollouts;
pub use sample::{PageEnd, Sample, SampleRequest, sample};
pub use schedule::{
    Backlog, ClaimMode, PostponeReport, QuarantineReport, ReleaseReport, Schedule, ScheduleOptions,
    SettleReport, Unsettled,
};
pub use schedules::Schedules;
pub use sessions::{Sessions, StoredSession};
pub use settings::{Authority, LinkSettings, Secret, SentinelSettings};
pub use snapshots::Snapshots;
pub use stats::LinkStats;
pub use subscription::Subscription;
pub use timelines::Timelines;
pub use vanished::{Counted, Scheduled, ServerState, Vanished};
pub use witnesses::{Members, RecoverRecords, Score, server_time};
pub use workers::{Listed, Registered, Workers};
