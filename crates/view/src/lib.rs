//! What operators see and do, over [`balance_sync_fleet`] and what its workers publish in Redis.
//!
//! What they see, in reading order: `record` (what a worker publishes of itself) · `local_worker` (where that comes from) ·
//! `publisher` (when it is written) · [`sampler`] (what waits in the schedules) · [`queues`] (what waits in the ledger's own
//! queues) · [`routing`] (other Redis servers) · [`reader`] (what all workers publish, put
//! together) · [`rows`] (tenants and workers, one row each) · [`overview`] (the whole fleet at a glance) · [`inspector`] (one
//! tenant's schedule and database) · [`why`] (one balance) · [`report`] (a month of the fleet) · [`timeline`] (the last day) · `heartbeat` (a line in a worker's log).
//!
//! What they do: [`actions`] (written down for the whole fleet) · `follower` (carried out by each worker) · [`recovery`] (what Redis has
//! lost of a tenant, planned and restored in the background) · [`rollout`] (which tenants are served, and whether to take more).
//!
//! [`Operations`] runs all of this beside a worker.

pub mod actions;
mod backlog;
pub mod facts;
mod follower;
mod heartbeat;
pub mod inspector;
mod local_worker;
mod operations;
pub mod overview;
mod publisher;
pub mod queues;
pub mod reader;
mod record;
pub mod recovery;
pub mod report;
pub mod rollout;
pub mod routing;
pub mod rows;
pub mod sampler;
pub mod timeline;
mod unserved;
mod verdict;
pub mod why;

pub use follower::DrainRequest;
pub use heartbeat::Heartbeat;
pub use operations::{Identity, Operations, OperationsSettings};
