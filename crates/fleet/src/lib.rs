//! The fleet: a supervisor that keeps one collector per tenant, and a tenant manager that gives them their databases.
//!
//! Reading order, along the way of a mutation: [`plan`] and [`supervisor`] (which collectors run) · [`collector_actor`]
//! (one collector's life) · [`collector`] (its loop) · [`flush`] (one batch) · [`failure`]
//! (what a failure leads to) · [`lane`] (the real Redis and Postgres behind it) · [`tenant_manager`] (databases) ·
//! [`prober`] (idle tenants) · [`pulse`] (whether threads move) · [`sampler`] (what waits, for the eye) · [`partition`]
//! (which tenants are this worker's) · [`standby`] (those that are another's first) · [`hints`] (events of the tenant
//! service) · [`observed`] (calls to the directory, counted) · [`tasks`]
//! (what runs beside all this, and who starts it again) · [`status`] (what is known of all this) · [`worker`] (all of
//! it together).
//!
//! What operators do: [`controls`] (their actions, and the task that follows them) · [`halts`] (what collectors hear of it).
//! What operators see: [`recent`] (what happened lately) · [`record`] (what a worker tells) · [`publish`] (to whom) ·
//! [`rows`] (tenants and workers, put together) · [`overview`] (the whole fleet in one look) · [`view`] (where all that
//! comes from) · [`inspect`] (one tenant's schedule and database, by hand) · [`why`] (one balance).

pub mod backoff;
pub mod collector;
pub mod collector_actor;
pub mod controls;
pub mod failure;
pub mod flush;
mod gone;
pub mod halts;
pub mod hints;
pub mod inspect;
pub mod lane;
pub mod observed;
pub mod overview;
pub mod partition;
pub use balance_sync_engine::plan;
pub mod ports;
pub mod prober;
pub mod publish;
pub mod pulse;
pub mod recent;
pub mod record;
pub mod rows;
pub mod sampler;
pub mod standby;
pub mod status;
pub mod supervisor;
pub mod tasks;
pub mod tenant_manager;
pub mod view;
pub mod why;
pub mod worker;

pub use balance_sync_schedule::ErrorClass;
pub use balance_sync_store::{ConnectionBudget, ServerUsage};
pub use balance_sync_tenants::BreakerState;
pub use worker::{Worker, WorkerSettings};
