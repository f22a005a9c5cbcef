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
//! What operators see and do is above all this, in `balance_sync_view`.

pub mod backends;
pub mod clock;
pub mod lifecycle;
pub mod pipeline;
pub mod status;
pub mod tasks;

pub use balance_sync_engine::plan;
pub use balance_sync_schedule::ErrorClass;
pub use balance_sync_store::{ConnectionBudget, FleetUsage, ServerUsage};
pub use balance_sync_tenants::BreakerState;
pub use lifecycle::{PreparedWorker, Worker, WorkerSettings};
