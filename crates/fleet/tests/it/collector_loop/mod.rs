//! The collector's loop on paused time, with Redis and Postgres in memory.

mod batches;
mod leave;
mod postgres_fails;
mod redis_fails;
mod stop;
mod upkeep;

use std::{future::Future, sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_fleet::{
    pipeline::SinkError,
    status::{TenantStatus, Trigger},
};
use balance_sync_tenants::DirectoryError;
use tokio::task::LocalSet;

use crate::common::*;

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

/// A failure of Postgres that may be over at any moment, found out by a ping.
fn away() -> Mood {
    Mood::Fails(SinkError::Deadline(secs(5)))
}

fn suspended() -> SinkError {
    SinkError::Directory(DirectoryError::Suspended)
}

fn batches(status: &TenantStatus, trigger: Trigger) -> u64 {
    let at = Trigger::ALL.iter().position(|known| *known == trigger).unwrap();
    status.batches[at].load(Relaxed)
}

fn update_times(lab: &Lab) -> Vec<Duration> {
    lab.postgres.updates.borrow().iter().map(|update| update.at).collect()
}
