//! The fleet: a supervisor that keeps one collector per tenant, the pipeline of each, and the databases behind them.
//!
//! In rooms, each of which uses those below it only:
//!
//! - [`lifecycle`]: which collectors run, on which threads, for which tenants; the worker, wired together.
//! - [`backends`]: the real Redis and Postgres behind the pipeline.
//! - [`pipeline`]: one tenant's collector, and the way of a batch.
//! - [`status`]: what is known of worker and tenants.
//! - [`tasks`]: what runs in the background, and who starts it again.
//!
//! What operators do: [`controls`] (their actions, and the task that follows them).
//! What operators see: [`record`] (what a worker publishes) · [`publish`] (when) · [`sampler`] (what waits) · [`rows`]
//! (tenants and workers, put together) · [`overview`] (the whole fleet at a glance) · [`view`] (where all that comes from) ·
//! [`inspect`] (one tenant's schedule and database, by hand) · [`why`] (one balance).

pub mod backends;
pub mod clock;
pub mod controls;
pub mod inspect;
pub mod lifecycle;
pub mod overview;
pub mod pipeline;
pub mod publish;
pub mod record;
pub mod rows;
pub mod sampler;
pub mod status;
pub mod tasks;
pub mod view;
pub mod why;

pub use balance_sync_engine::plan;
pub use balance_sync_schedule::ErrorClass;
pub use balance_sync_store::{ConnectionBudget, ServerUsage};
pub use balance_sync_tenants::BreakerState;
pub use lifecycle::{Worker, WorkerSettings};
