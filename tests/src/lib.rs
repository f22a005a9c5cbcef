//! What the whole-system tests need: worker processes that end with their test, and questions about what is in Redis
//! and PostgreSQL.
//!
//! The tests know the worker only from outside: its command line, its configuration, its HTTP interface, its log, and
//! what it does to the servers of a [`balance_sync_sandbox::Sandbox`]. No crate under test is linked here.

pub mod audit;
pub mod browser;
pub mod command;
pub mod leases;
pub mod ledger;
pub mod log;
pub mod metrics;
pub mod monitor;
pub mod otlp;
pub mod probe;
pub mod prometheus;
pub mod worker;

use std::time::Duration;

use anyhow::Result;
use balance_sync_sandbox::{PoolMode, RedisOptions, Sandbox, SandboxOptions};
use uuid::Uuid;

pub use audit::Audit;
pub use balance_sync_sandbox::ledger::LedgerWorker;
pub use browser::Browser;
pub use command::{Finished, balance_sync, balance_sync_lab, run, run_measured, run_program, run_within};
pub use leases::Leases;
pub use log::{Line, Log};
pub use metrics::Metrics;
pub use monitor::Monitor;
pub use probe::{Lags, Probe};
pub use worker::{Ended, Worker, WorkerBuilder};

/// How long a condition may take that comes about in a second on a machine with nothing else to do.
pub const SOON: Duration = Duration::from_secs(90);

/// A sandbox of this many tenants (of mixed isolation) with this many balances each, whose Redis has a password: there
/// is one secret more that must not show.
pub fn options(tenants: usize, balances: usize) -> SandboxOptions {
    let redis = RedisOptions {
        password: Some(Uuid::new_v4().simple().to_string().into()),
        ..RedisOptions::default()
    };
    SandboxOptions { tenants, balances, redis, ..SandboxOptions::default() }
}

/// A running sandbox with [`options`].
///
/// # Errors
/// When it can't be started; the text says what is missing.
pub async fn sandbox(tenants: usize, balances: usize) -> Result<Sandbox> {
    Sandbox::start(options(tenants, balances)).await
}

/// How the workers of this sandbox reach PostgreSQL, in their words.
pub fn connection_mode(sandbox: &Sandbox) -> &'static str {
    match sandbox.pool_mode() {
        None => "direct",
        Some(PoolMode::Session) => "session pooler",
        Some(PoolMode::Transaction | PoolMode::Statement) => "transaction pooler",
    }
}
