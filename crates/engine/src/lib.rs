//! The decisions of a worker as pure state machines: no I/O, no async runtime, no clock and no source of randomness.
//!
//! Time and seeds are arguments. A driver (`crates/fleet`, `crates/tenants`) carries out what a machine commands and reports
//! what came of it; a simulator can drive the same code on virtual time.
//!
//! Which tenants: [`membership`] (which list of tenants is believed) · [`rollout`] (which of them this fleet serves) · [`routes`] (which Redis each lives on) ·
//! [`registration`] and [`partition`] (which of those are this worker's) · [`plan`] (which collectors run) · [`connections`] (how many connections to Postgres it may have) ·
//! [`weights`] (which tenants get more of them) · [`fair`] (in which order). One tenant: [`collector`] (its claims and flushes) · [`standby`]
//! (whether its first owner claims) · [`trail`] (its values that are gone) · [`vanish`] (what Redis has
//! lost) · [`queues`] (the ledger's own queues) · [`shadow`] (what a worker that only looks finds) · [`neighbour`] (the ledger's own
//! worker beside ours) · [`controls`] (what operators' actions do to it) ·
//! [`state`], [`reason`] and [`outcome`] (what is shown of it) · [`timeline`] (what is kept of it for a day). When something fails: [`failure`]
//! (what follows) · [`backoff`] (delays) · [`breaker`] (a service that fails again and again) · [`clock`] (two clocks that differ). A balance: [`audit`]
//! (what three witnesses say of it).

pub mod audit;
pub mod backoff;
pub mod breaker;
pub mod clock;
pub mod collector;
pub mod connections;
pub mod controls;
pub mod failure;
pub mod fair;
pub mod membership;
pub mod neighbour;
pub mod outcome;
pub mod partition;
pub mod plan;
pub mod queues;
pub mod reason;
pub mod registration;
pub mod rollout;
pub mod routes;
pub mod shadow;
pub mod standby;
pub mod state;
pub mod timeline;
pub mod trail;
pub mod vanish;
pub mod weights;

pub use balance_sync_domain::names;
