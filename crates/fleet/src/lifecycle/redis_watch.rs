//! Notices what changes around Redis while connections are sound: files with credentials that were rotated, and another master
//! named by Sentinel while the former one still answers.

use std::time::Duration;

use balance_sync_schedule::Endpoint;
use tokio_util::sync::CancellationToken;

use crate::tasks::{Progress, jittered};

/// How often.
pub(crate) const EVERY: Duration = Duration::from_secs(5);

/// Refreshes the endpoints until it is stopped.
pub(crate) async fn watch(endpoints: Vec<Endpoint>, stop: CancellationToken, progress: Progress) {
    let watching = async {
        loop {
            tokio::time::sleep(jittered(EVERY)).await;
            for endpoint in &endpoints {
                progress.waiting(endpoint.refresh()).await;
            }
            progress.beat();
        }
    };
    stop.run_until_cancelled(watching).await;
}
