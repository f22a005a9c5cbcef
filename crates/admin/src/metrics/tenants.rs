//! The metrics of each tenant that has a row of its own, and of the others together.

use balance_sync_fleet::status::{Outcome, Trigger};
use prometheus::Error;

use super::{
    TENANT,
    exposition::{Family, Page},
    rows::{Counter, Row},
};

/// What was done for each tenant, under the names of the ledger's own worker.
pub(super) fn as_the_ledger(page: &mut Page<'_>, rows: &[Row]) -> Result<(), Error> {
    let synced = Family::counter(
        "balance_synced",
        "Rows written to Postgres; the same as balance_sync_balances_total with outcome updated.",
    );
    page.write(each(synced, rows, |row| Some(row.totals.outcomes[Outcome::Updated] as f64)))?;
    let counters = [
        (
            "balance_sync_batch_failures_total",
            "Flushes that failed; their members stay scheduled and are tried again.",
            Counter::BatchFailures,
        ),
        (
            "balance_sync_cleanup_failures_total",
            "Flushes that were written to Postgres and could not be removed from the schedule in Redis.",
            Counter::CleanupFailures,
        ),
        (
            "balance_sync_tenant_skip_total",
            "Times a tenant was passed over because its database could not be had.",
            Counter::Skips,
        ),
    ];
    for (name, help, counter) in counters {
        page.write(each(Family::counter(name, help), rows, |row| Some(row.totals.get(counter) as f64)))?;
    }
    Ok(())
}

/// What was done for each tenant.
pub(super) fn work(page: &mut Page<'_>, rows: &[Row]) -> Result<(), Error> {
    let mut failures = Family::counter(
        "balance_sync_tenant_failures_total",
        "What failed, by step: batch (a flush; its members are tried again), cleanup (a call of Redis after a flush was written) or \
         skip (the tenant was passed over because its database could not be had).",
    );
    for row in rows {
        for (step, counter) in [
            ("batch", Counter::BatchFailures),
            ("cleanup", Counter::CleanupFailures),
            ("skip", Counter::Skips),
        ] {
            failures.sample(&[(TENANT, &row.label), ("step", step)], row.totals.get(counter) as f64);
        }
    }
    page.write(failures)?;
    let counters = [
        (
            "balance_sync_tenant_collector_restarts_total",
            "Starts of a tenant's collector after it had ended by itself: it crashes.",
            Counter::Restarts,
        ),
        (
            "balance_sync_quarantine_full_total",
            "Members put off because their tenant's quarantine is full.",
            Counter::QuarantineFull,
        ),
    ];
    for (name, help, counter) in counters {
        page.write(each(Family::counter(name, help), rows, |row| Some(row.totals.get(counter) as f64)))?;
    }

    let mut outcomes = Family::counter(
        "balance_sync_balances_total",
        "Balances by what they came to: updated (row written), stale (row as new or newer), deleted (row \
         deleted by the ledger), forked (row ahead of Redis, or other amounts at the same version), unknown_format (put off: the value is in the format of a later release), unknown_ledger (put off: \
         the database knows no row of its ledger), deletion_marker (put \
         off: a marker stands in its place), quarantined, expired (value gone before it was read), released (given back unwritten), kept (written, still scheduled because a \
         newer mutation came).",
    );
    let mut batches = Family::counter(
        "balance_sync_batches_total",
        "Flushes by what triggered them: size, timeout, drain or calm.",
    );
    let mut lag = Family::histogram(
        "balance_sync_lag_seconds",
        "Time from a balance's mutation in Redis to its row in Postgres, in seconds by Redis's clock.",
    );
    for row in rows {
        let tenant = row.label.as_str();
        for (outcome, count) in row.totals.outcomes.iter() {
            outcomes.sample(&[(TENANT, tenant), ("outcome", outcome.as_str())], *count as f64);
        }
        for (trigger, count) in Trigger::ALL.iter().zip(row.totals.batches) {
            batches.sample(&[(TENANT, tenant), ("trigger", trigger.as_str())], count as f64);
        }
        lag.distribution(&[(TENANT, tenant)], &row.totals.lag);
    }
    for family in [outcomes, batches, lag] {
        page.write(family)?;
    }
    Ok(())
}

/// What each tenant is like now.
pub(super) fn condition(page: &mut Page<'_>, rows: &[Row]) -> Result<(), Error> {
    let mut degraded = Family::gauge(
        "balance_sync_tenant_degraded",
        "1 for a tenant that can't write at present, with the reason; for tenant_id other the number of such tenants.",
    );
    let mut backlog = Family::gauge(
        "balance_sync_backlog_members",
        "Members in the tenant's schedule at the last look, by state: due (their time has come) or leased (a worker \
         holds them, or they are put off).",
    );
    for row in rows {
        let tenant = row.label.as_str();
        for (reason, count) in &row.degraded {
            degraded.sample(&[(TENANT, tenant), ("reason", reason)], *count as f64);
        }
        backlog.sample(&[(TENANT, tenant), ("state", "due")], row.gauges.due as f64);
        backlog.sample(&[(TENANT, tenant), ("state", "leased")], row.gauges.leased as f64);
    }
    page.write(degraded)?;
    page.write(backlog)?;

    type Read = fn(&Row) -> Option<f64>;
    let gauges: [(_, _, Read); 12] = [
        (
            "balance_sync_tenant_paused",
            "Whether an operator paused the tenant (1 or 0); for tenant_id other the number of such tenants.",
            |row| Some(row.gauges.paused as f64),
        ),
        (
            "balance_sync_oldest_due_age_seconds",
            "How long the oldest due member of the tenant's schedule had been due at the last look, in seconds by \
             Redis's clock; for tenant_id other the longest of those not paused.",
            |row| Some(row.gauges.oldest_due_age_ms as f64 / 1e3),
        ),
        (
            "balance_sync_exposed_balances",
            "Balances that would be missing from the rows if Redis lost its data now: all in the tenant's schedule at the \
             last look, claimed or not.",
            |row| Some(row.gauges.exposed as f64),
        ),
        (
            "balance_sync_exposure_age_seconds",
            "How long the oldest of these balances has waited since it was due, in seconds; that of a write under way, too. \
             For tenant_id other the longest.",
            |row| Some(row.gauges.exposure_age_ms as f64 / 1e3),
        ),
        (
            "balance_sync_exposure_p99_seconds",
            "What balance_sync_exposure_age_seconds exceeded in 36 seconds of the last hour, in seconds; not counting those in \
             which the tenant was paused or another worker came first. For tenant_id other the longest.",
            |row| Some(row.gauges.exposure_p99_ms as f64 / 1e3),
        ),
        (
            "balance_sync_shortest_life_seconds",
            "Smallest remaining life of a scheduled value, in seconds by Redis, as far as lives have been looked at (of \
             some thousand values all at every look, of a million in some minutes); absent while nothing is scheduled.",
            |row| Some(row.gauges.shortest_life_ms? as f64 / 1e3),
        ),
        (
            "balance_sync_quarantine_entries",
            "Entries in the tenant's quarantine at the last look, losses among them; absent while not known.",
            |row| Some(row.gauges.quarantine_entries? as f64),
        ),
        (
            "balance_sync_loss_entries",
            "Balances whose last mutations are lost, or may be, at the last look: listed until an operator drops them; absent \
             while not known.",
            |row| Some(row.gauges.losses? as f64),
        ),
        (
            "balance_sync_vanished_open",
            "Whether it is open what Redis has lost of the tenant (1 or 0); for tenant_id other the number of such tenants.",
            |row| Some(row.gauges.vanished as f64),
        ),
        (
            "balance_sync_vanished_members",
            "Members that are missing in the tenant's schedule for certain, while it is open what Redis has lost of it.",
            |row| Some(row.gauges.vanished_members as f64),
        ),
        (
            "balance_sync_values_gone",
            "Values of scheduled balances that are gone from Redis before their TTL, while it is not known yet whether a mutation is \
             lost with them.",
            |row| Some(row.gauges.values_gone as f64),
        ),
        (
            "balance_sync_other_key_form_members",
            "Members in a schedule of the key form of the tenant id that is not configured; no worker collects them.",
            |row| Some(row.gauges.other_form as f64),
        ),
    ];
    for (name, help, read) in gauges {
        page.write(each(Family::gauge(name, help), rows, read))?;
    }
    Ok(())
}

/// One sample per row that has the value.
fn each(mut family: Family, rows: &[Row], value: impl Fn(&Row) -> Option<f64>) -> Family {
    for row in rows {
        if let Some(value) = value(row) {
            family.sample(&[(TENANT, &row.label)], value);
        }
    }
    family
}
