//! Whether Redis may evict balances before they are written.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use balance_sync_schedule::Link;
use tokio_util::sync::CancellationToken;

use crate::{
    status::FleetStatus,
    tasks::{Progress, jittered},
};

/// How often Redis is asked.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// Logs an error when Redis may evict balances, as soon as Redis answers, and checks again from time to time: the policy may
/// be changed at any moment, and a failover leads to a server with another one.
pub(super) async fn watch(link: Link, fleet: Arc<FleetStatus>, stop: CancellationToken, progress: Progress) {
    let mut reported: Option<String> = None;
    loop {
        match link.server_facts().await {
            Ok(facts) => {
                let policy = facts.evicting_policy().map(str::to_owned);
                *fleet.redis_server.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts);
                fleet.redis_may_evict.store(u64::from(policy.is_some()));
                if policy != reported {
                    match &policy {
                        Some(policy) => tracing::error!(
                            maxmemory_policy = policy,
                            "redis may evict balances before they are written: set maxmemory-policy to noeviction"
                        ),
                        None => tracing::info!("redis no longer evicts by itself"),
                    }
                    reported = policy;
                }
            }
            Err(error) => tracing::debug!(%error, "memory policy of redis not known"),
        }
        progress.beat();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(jittered(INTERVAL)) => {}
        }
    }
}
