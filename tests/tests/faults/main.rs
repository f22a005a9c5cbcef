//! What happens under each fault that `docs/reliability.md` lists: injected for real, on servers and processes of its own.
//!
//! The table there is made of the lines these tests print (`cargo test --test faults -- --nocapture`). The chaos test mixes
//! faults at random; here each stands alone, so that its own promise can be measured.

#![allow(clippy::print_stderr)] // what was measured must be seen

mod any_loss;
mod clock;
mod cluster;
mod days;
mod drain;
mod eviction;
mod failover;
mod forks;
mod losses;
mod moved;
mod poison;
mod postgres;
mod read_only;
mod recovery;
mod redis;
mod rehearsal;
mod repair;
mod silent;
mod states;
mod upgrade;
mod vanish;

use std::time::Duration;

use anyhow::{Result, ensure};
use balance_sync_sandbox::{Sandbox, SandboxTenant};
use balance_sync_tests::{Audit, Worker, WorkerBuilder};

/// Claims of [`brisk`] workers; with the deadlines below they can't be shorter.
const CLAIM_TTL: Duration = Duration::from_secs(4);
/// What a condition may take longer than its promise where both cores do something else as well. What is guarded against
/// takes longer still: a lease of 30 s, or for ever.
const BUSY: Duration = Duration::from_secs(15);

/// A worker with short deadlines, so that a test needn't wait for long ones. What is shortened has no part in what is
/// promised, or is the bound in the promise.
fn brisk(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    Worker::of(sandbox)
        .set("worker.name", name)
        .set("claim.ttl", "4s")
        .set("collector.flush_deadline", "3s")
        .set("collector.idle_backoff_max", "100ms")
        .set("postgres.acquire_timeout", "1s")
        .set("postgres.connect_timeout", "1s")
        .set("postgres.statement_timeout", "2s")
        .set("postgres.backoff_long", "2s")
        .set("redis.response_timeout", "1s")
        .set("tenants.service.settings_ttl", "500ms")
}

/// Says what was measured, in one line.
fn report(fault: &str, measured: &str) {
    eprintln!("measured: {fault}: {measured}");
}

/// Whether no row of this tenant went backwards, or was written without a change (G2).
async fn nothing_backwards(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<Audit> {
    let pool = sandbox.pool(tenant);
    let audit = Audit::read(&pool, tenant).await;
    pool.close().await;
    let audit = audit?;
    ensure!(audit.not_forward == 0 && audit.updates == audit.distinct, "tenant {}: {audit:?}", tenant.id);
    Ok(audit)
}
