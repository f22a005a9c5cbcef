//! What is known of the ledger's own worker.

use std::sync::atomic::Ordering::Relaxed;

use balance_sync_fleet::status::TenantStatus;
use prometheus::Error;

use super::{
    TENANT,
    exposition::{Family, Page},
    rows::Row,
};

/// What is known of the ledger's own worker, of a tenant or of several together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NeighbourGauges {
    active: u64,
    dropping: u64,
    with_locks: u64,
}

/// Adds what is known of a tenant.
pub(super) fn add(into: &mut NeighbourGauges, status: &TenantStatus) {
    into.active += u64::from(status.neighbour_active.load(Relaxed));
    into.dropping += u64::from(status.neighbour_dropping.load(Relaxed));
    into.with_locks += u64::from(status.takes_locks.load(Relaxed));
}

/// All of them.
pub(super) fn neighbours(page: &mut Page<'_>, rows: &[Row]) -> Result<(), Error> {
    type Read = fn(&NeighbourGauges) -> u64;
    let gauges: [(_, _, Read); 3] = [
        (
            "balance_sync_ledger_worker_active",
            "1 while the ledger's own worker was seen at the tenant lately, by its locks or by members that leave without a worker of \
             ours; for tenant_id other the number of such tenants.",
            |gauges| gauges.active,
        ),
        (
            "balance_sync_ledger_worker_dropping",
            "1 while the ledger's own worker is of a release up to 4.0 next to writers of 4.1 or later, and removes their balances \
             unwritten; for tenant_id other the number of such tenants.",
            |gauges| gauges.dropping,
        ),
        (
            "balance_sync_claims_with_locks",
            "1 while balances are claimed with the locks of the ledger's own worker (claim.mode lock, or auto while it is seen or may be \
             there); for tenant_id other the number of such tenants.",
            |gauges| gauges.with_locks,
        ),
    ];
    for (name, help, read) in gauges {
        let mut family = Family::gauge(name, help);
        for row in rows {
            family.sample(&[(TENANT, &row.label)], read(&row.neighbour) as f64);
        }
        page.write(family)?;
    }
    Ok(())
}
