//! The ledger's own queues, as `status` and `tenants show` print them.

use balance_sync_view::{
    overview::FleetQueue,
    rows::{QueueView, TenantRow},
};

use crate::terminal::{ago, count};

/// All of them in one line.
pub(super) fn of_fleet(queues: &[FleetQueue], now: f64) -> String {
    let parts = queues.iter().map(|queue| {
        let mut text = format!("{} {}", queue.queue, count(queue.depth));
        if let Some(at) = &queue.oldest_at {
            text.push_str(&format!(", the oldest {} old", ago(at, now)));
        } else if let Some(at) = &queue.oldest_seen_at {
            text.push_str(&format!(", the oldest at least {} old", ago(at, now)));
        }
        if let Some(times) = queue.most_attempts.filter(|times| *times > 0) {
            text.push_str(&format!(", up to {} attempts", count(times)));
        }
        if queue.unknown_tenants > 0 {
            text.push_str(&format!(", unknown of {} tenants", count(queue.unknown_tenants as u64)));
        }
        text
    });
    format!("queues: {}", parts.collect::<Vec<_>>().join("; "))
}

/// Those of a tenant that hold something, or can't be read.
pub(super) fn of_tenant(row: &TenantRow, now: f64) -> Vec<(&'static str, String)> {
    const NAME: &str = "ledger queue";
    match &row.queues {
        None => vec![(NAME, "unknown: no worker has looked yet, or queues.enabled is false".to_owned())],
        Some(queues) if queues.is_empty() => {
            vec![(NAME, "nothing waits in the ledger's own queues".to_owned())]
        }
        Some(queues) => queues.iter().map(|queue| (NAME, of_queue(queue, now))).collect(),
    }
}

fn of_queue(queue: &QueueView, now: f64) -> String {
    let mut parts = Vec::new();
    match queue.depth {
        Some(depth) => parts.push(format!("{} records", count(depth))),
        None => parts.push("unknown depth".to_owned()),
    }
    match (&queue.oldest_at, &queue.oldest_seen_at) {
        (Some(at), _) => parts.push(format!("the oldest {} old", ago(at, now))),
        (None, Some(at)) => parts.push(format!("the oldest at least {} old", ago(at, now))),
        (None, None) => {}
    }
    if let Some(retried) = queue.retried.filter(|retried| *retried > 0) {
        let most = queue.most_attempts.map_or_else(|| "?".to_owned(), count);
        parts.push(format!("{} tried before, up to {most} times", count(retried)));
    }
    if queue.undated > 0 {
        parts.push(format!("{} without a time", count(queue.undated)));
    }
    if queue.unreadable > 0 {
        parts.push(format!("{} unreadable", count(queue.unreadable)));
    }
    match (&queue.scanned_at, queue.depth) {
        (Some(at), _) => parts.push(format!("scanned {} ago", ago(at, now))),
        (None, Some(depth)) if depth > 0 && queue.looked_at > 0 => {
            parts.push(format!("{} of them scanned so far", count(queue.looked_at)));
        }
        (None, _) => {}
    }
    if let Some(error) = &queue.error {
        parts.push(format!("can't be read: {error}"));
    }
    format!("{}: {}", queue.queue, parts.join(", "))
}
