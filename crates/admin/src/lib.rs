//! What people and machines ask a running worker over HTTP: is it alive, is it ready, what are its numbers.
//!
//! - [`api`]: `/api/v1`, the fleet for programs and for the pages at `/`.
//! - [`server`]: the interface, its limits and the table of paths; `listener`: who gets a connection.
//! - `health`: `/livez` and `/readyz`, decided from the fleet's status.
//! - [`metrics`]: `/metrics` in Prometheus' text format.
//! - `ui`: the dashboard, embedded; its files are in `ui/`.
//!
//! Everything is read from [`balance_sync_fleet::status`] at the moment of the question; nothing is kept up to date
//! beside it, so that a worker that isn't queried does no work for it.

pub mod api;
mod health;
mod listener;
pub mod metrics;
pub mod server;
mod ui;

pub use api::{Access, Api, ApiParts, LONGEST_NAME, NamedToken, Role, SessionKeeper, TrustedProxies};
pub use health::{Verdict, liveness, readiness};
pub use metrics::{ConnectionSource, Exported, Metrics};
pub use server::{AdminServer, AdminSettings, start, start_with_api, start_with_connections};
