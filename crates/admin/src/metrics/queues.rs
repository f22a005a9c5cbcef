//! The ledger's own queues.

use std::collections::BTreeMap;

use balance_sync_domain::LedgerQueue;
use balance_sync_fleet::{
    clock::wall_clock,
    status::{Oldest, TenantStatus},
};
use prometheus::Error;

use super::{
    TENANT,
    exposition::{Family, Page},
    rows::Row,
};

/// One queue of a tenant, or of several together. `None` = not known.
#[derive(Debug, Default, PartialEq)]
pub(super) struct QueueGauges {
    depth: Option<u64>,
    oldest_age_seconds: Option<f64>,
    most_attempts: Option<u64>,
    unreadable: Option<u64>,
    /// Tenants of which it can't be read.
    unread: u64,
}

/// Adds what is known of a tenant's queues.
pub(super) fn add(into: &mut BTreeMap<LedgerQueue, QueueGauges>, status: &TenantStatus) {
    // Another worker looks at them.
    let Some(reports) = status.queues() else { return };
    for queue in LedgerQueue::ALL {
        let gauges = into.entry(queue).or_default();
        let Some(report) = reports.iter().find(|report| report.queue == queue) else {
            gauges.depth = Some(gauges.depth.unwrap_or_default());
            continue;
        };
        gauges.unread += u64::from(report.error.is_some());
        if let Some(depth) = report.depth {
            gauges.depth = Some(gauges.depth.unwrap_or_default() + depth);
        }
        if let Oldest::At(at) = report.oldest() {
            let age = (wall_clock() - at as f64 / 1e3).max(0.0);
            gauges.oldest_age_seconds = Some(gauges.oldest_age_seconds.unwrap_or_default().max(age));
        }
        gauges.most_attempts = gauges.most_attempts.max(report.most_attempts);
        gauges.unreadable = Some(gauges.unreadable.unwrap_or_default() + report.unreadable);
    }
}

/// What waits in them.
pub(super) fn queues(page: &mut Page<'_>, rows: &[Row]) -> Result<(), Error> {
    type Read = fn(&QueueGauges) -> Option<f64>;
    let gauges: [(_, _, Read); 5] = [
        (
            "balance_sync_ledger_queue_records",
            "Records in a queue of the ledger's own at the last look: backup (transactions not in Postgres yet), recovery and \
             recovery_cleanup (of its engine), quarantine (what it has given up, in Postgres); absent while not known, and where another worker looks.",
            |gauges| gauges.depth.map(|depth| depth as f64),
        ),
        (
            "balance_sync_ledger_queue_oldest_age_seconds",
            "How long ago the oldest record of a queue of the ledger's own was created, or was to be cleaned up, in seconds by \
             this worker's clock; for tenant_id other the longest. Absent while the queue is empty and until it has been \
             scanned to its end.",
            |gauges| gauges.oldest_age_seconds,
        ),
        (
            "balance_sync_ledger_queue_most_attempts",
            "The most attempts of the ledger at one record of the queue, by the last whole scan; absent while not known.",
            |gauges| gauges.most_attempts.map(|times| times as f64),
        ),
        (
            "balance_sync_ledger_queue_unreadable_records",
            "Records of the queue that are not what the ledger writes, or are too large to be read, by the last scan; absent \
             while the queue is empty.",
            |gauges| gauges.unreadable.map(|records| records as f64),
        ),
        (
            "balance_sync_ledger_queue_unread",
            "Whether something of the queue can't be read, for want of a right or for its type (1); for tenant_id other the \
             number of such tenants. Absent otherwise.",
            |gauges| (gauges.unread > 0).then_some(gauges.unread as f64),
        ),
    ];
    for (name, help, read) in gauges {
        let mut family = Family::gauge(name, help);
        for row in rows {
            for (queue, gauges) in &row.queues {
                if let Some(value) = read(gauges) {
                    family.sample(&[(TENANT, &row.label), ("queue", queue.as_str())], value);
                }
            }
        }
        page.write(family)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use balance_sync_fleet::status::QueueReport;
    use balance_sync_tenants::Tenant;

    use super::*;

    #[test]
    fn what_is_not_known_is_absent_and_what_is_empty_is_zero() {
        let status = TenantStatus::new(Tenant::Single);
        let mut gauges = BTreeMap::new();
        add(&mut gauges, &status);
        assert!(gauges.is_empty(), "another worker looks");
        status.show_queues(Some(vec![
            QueueReport::unknown(LedgerQueue::Backup, Some("missing: +hlen".to_owned())),
            QueueReport {
                depth: Some(5),
                seen_at_ms: Some(1),
                unreadable: 2,
                ..QueueReport::empty(LedgerQueue::Recovery)
            },
        ]));
        for _ in 0..2 {
            add(&mut gauges, &status);
        }
        let unknown = &gauges[&LedgerQueue::Backup];
        assert_eq!((unknown.depth, unknown.oldest_age_seconds, unknown.unread), (None, None, 2));
        let unfinished = &gauges[&LedgerQueue::Recovery];
        assert_eq!(
            (unfinished.depth, unfinished.oldest_age_seconds, unfinished.unreadable),
            (Some(10), None, Some(4)),
            "what a scan has seen so far is not the oldest age"
        );
        let empty = &gauges[&LedgerQueue::RecoveryCleanup];
        assert_eq!(*empty, QueueGauges { depth: Some(0), ..QueueGauges::default() });
    }
}
