//! Which collectors run, where, and for how long.
//!
//! `supervisor` (one collector per wanted tenant) · [`partition`] (which tenants are this worker's) · [`name`] (which name it has) · [`events`] (the tenant
//! service's events, as hints) · [`thread_health`] (whether the threads move) · `threads` (where collectors
//! run) · `shadow` (in their place, for a worker that only looks) · `rollout` (which tenants are served) · `eviction_watch` (whether Redis may evict) · `worker` (a worker, wired together).

mod connections;
pub mod events;
mod eviction_watch;
pub mod name;
pub mod partition;
mod redis_watch;
pub(crate) mod rollout;
mod shadow;
mod supervisor;
pub mod thread_health;
mod threads;
mod worker;

pub use supervisor::{Drain, DrainReport, Poll, Spawner, Supervisor, SupervisorOptions};
pub use worker::{PreparedWorker, Worker, WorkerHandles, WorkerSettings};
