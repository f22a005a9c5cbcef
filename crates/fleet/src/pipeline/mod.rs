//! One tenant's pipeline: its collector, and the way of a batch from the claim to the settling. Knows Redis and Postgres by
//! the traits in `ports` only.
//!
//! Reading order: `collector_actor` (the shell) · `collector` (the driver of the state machine) · `flush` (one batch) ·
//! `gone` (members whose values are gone) · `counting` (what is counted for each ledger) ·
//! `failure` (what a failure leads to) · `ports` (what is needed of the outside).

mod collector;
mod collector_actor;
mod counting;
mod failure;
mod flush;
mod forks;
mod gone;
mod ports;

pub use collector::{Collector, CollectorOptions, Drained, Profile};
pub use collector_actor::{CollectorActor, CollectorEnded, CollectorStarted, Incarnation};
pub use failure::{Pace, Reaction, SinkError, reaction, redis_reaction};
pub use flush::{Batch, FlushEnd, flush, release};
pub use ports::{Queue, Sink, Survey, Sweep};
