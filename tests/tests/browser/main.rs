//! The dashboard in a real Chromium, on real workers: what an operator sees and does, with its effect in Redis and
//! PostgreSQL.
//!
//! Everything is done as a person does it, by clicks and keys at what is visible. An error on the browser's console, or a
//! request to anything but the worker, fails every test. Where Chromium can't be installed the tests say so and pass by.

mod accessible;
mod actions;
mod connection;
mod day;
mod facts;
mod keyboard;
mod many;
mod migration;
mod pages;
mod prefix;
mod quarantine;
mod recovery;
mod sign_in;
mod why;

use anyhow::Result;
use balance_sync_sandbox::{Sandbox, SandboxTenant};
use balance_sync_tests::ledger::row;
use balance_sync_tests::{Worker, WorkerBuilder};
use redis::AsyncCommands;

/// The browser; the end of the test where there is none.
macro_rules! browser {
    () => {
        match balance_sync_tests::Browser::start().await? {
            Some(browser) => browser,
            None => return Ok(()),
        }
    };
}
pub(crate) use browser;

/// A worker of this name. What drivers say about their calls is of no use here, and much.
fn worker(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    Worker::of(sandbox).set("worker.name", name).set("log.level", "info")
}

/// The fields of the hash of paused tenants.
async fn paused_tenants(sandbox: &Sandbox) -> Result<Vec<(String, String)>> {
    let mut redis = sandbox.redis().connect().await?;
    Ok(redis.hgetall("{transactions}:balance-sync:paused").await?)
}

/// The version of a row.
async fn version(sandbox: &Sandbox, tenant: &SandboxTenant, balance: usize) -> Result<i64> {
    Ok(row(sandbox, tenant, balance).await?.version)
}

/// Breaks a tenant's access: its role gets another password, which the tenant service doesn't know, and its sessions end.
async fn break_password(sandbox: &Sandbox, tenant: &SandboxTenant, password: &str) -> Result<()> {
    let sql = format!("ALTER ROLE \"{}\" PASSWORD '{password}'", tenant.role);
    sandbox.postgres().execute("postgres", &sql).await?;
    // Only now: a session begun before the change is committed would be one with the old password, and stay.
    sandbox.postgres().end_sessions(Some(&tenant.role)).await.map(drop)
}
