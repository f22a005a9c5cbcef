//! The metrics: names, help texts (unit, source) and where each value comes from.

use std::{cmp::Reverse, sync::atomic::Ordering::Relaxed};

use balance_sync_fleet::{
    gather::Trigger,
    status::{FleetStatus, Stage, TenantState},
};
use prometheus::Error;

use super::{
    ServerConnections,
    exposition::{Family, Page},
    rows::{Counter, Distribution, OTHER, Row, Snapshot},
};

/// Label of the tenant: its id, `single` without multi-tenancy, or `other` for all beyond the configured number.
const TENANT: &str = "tenant_id";

/// What the members of a batch came to, with the label value of each.
const OUTCOMES: [(&str, Counter); 6] = [
    ("updated", Counter::Updated),
    ("stale", Counter::Stale),
    ("quarantined", Counter::Quarantined),
    ("expired", Counter::Expired),
    ("released", Counter::Released),
    ("kept", Counter::Kept),
];

/// The worker as a whole.
pub(super) fn worker(page: &mut Page, status: &FleetStatus, snapshot: &Snapshot) -> Result<(), Error> {
    page.write(
        Family::gauge(
            "balance_sync_build_info",
            "Always 1; the label has the version of the running binary.",
        )
        .with(&[("version", env!("CARGO_PKG_VERSION"))], 1.0),
    )?;
    page.write(
        Family::gauge(
            "balance_sync_ready",
            "Whether the worker has reconciled once and does not drain (1 or 0), as /readyz says.",
        )
        .with(&[], f64::from(u8::from(status.is_ready()))),
    )?;

    let mut tenants =
        Family::gauge("balance_sync_tenants", "Tenants this worker knows, by state of their collector.");
    for (state, count) in TenantState::ALL.iter().zip(snapshot.states) {
        tenants.sample(&[("state", state.name())], count as f64);
    }
    page.write(tenants)?;

    let mut stages = Family::histogram(
        "balance_sync_stage_duration_seconds",
        "Duration of the steps of a flush, in seconds: claim (Redis), gather (decoding), update (Postgres, with \
         getting a connection), settle (Redis).",
    );
    for (stage, histogram) in Stage::ALL.iter().zip(&status.stages) {
        stages.distribution(&[("stage", stage.name())], &Distribution::read(histogram));
    }
    page.write(stages)?;

    let mut reconcile = Family::histogram(
        "balance_sync_reconcile_duration_seconds",
        "Duration of the supervisor's reconcile passes, in seconds.",
    );
    reconcile.distribution(&[], &Distribution::read(&status.reconcile));
    page.write(reconcile)?;

    let counters = [
        ("balance_sync_reconcile_passes_total", "Reconcile passes finished.", &status.passes),
        ("balance_sync_collector_starts_total", "Collectors started.", &status.started),
        ("balance_sync_collector_stops_total", "Collectors stopped by the supervisor.", &status.stopped),
        (
            "balance_sync_collector_reaped_total",
            "Collectors that ended by themselves, panics among them.",
            &status.reaped,
        ),
        ("balance_sync_collector_panics_total", "Collectors that ended by a panic.", &status.panics),
        (
            "balance_sync_tenant_list_failures_total",
            "Polls of the tenant list that failed; the last good list stays in force.",
            &status.poll_failures,
        ),
        ("balance_sync_redis_errors_total", "Calls to Redis that failed.", &status.redis_errors),
    ];
    for (name, help, value) in counters {
        page.write(Family::counter(name, help).with(&[], value.load(Relaxed) as f64))?;
    }
    page.write(
        Family::counter(
            "balance_sync_quarantine_full_total",
            "Members put off because their tenant's quarantine is full.",
        )
        .with(&[], snapshot.quarantine_full as f64),
    )?;

    let gauges = [
        (
            "balance_sync_tenants_refused",
            "Ids in the tenant list that were refused as invalid, at the last poll.",
            status.refused_ids.load(Relaxed),
        ),
        (
            "balance_sync_removals_held",
            "Tenants missing in the list whose collectors go on until the list has repeated itself.",
            status.removals_held.load(Relaxed),
        ),
        (
            "balance_sync_workers",
            "Live workers that share the tenants out, this one among them, as it sees them in Redis; 0 while it knows of \
             none, or without worker.partition.",
            status.workers.load(Relaxed),
        ),
        (
            "balance_sync_tenants_owned",
            "Tenants that are this worker's to look after; without worker.partition all of them.",
            status.owned.load(Relaxed),
        ),
        (
            "balance_sync_foreign_locked",
            "Members passed over at each tenant's last claim because another worker holds their lock.",
            snapshot.foreign_locked,
        ),
    ];
    for (name, help, value) in gauges {
        page.write(Family::gauge(name, help).with(&[], value as f64))?;
    }
    Ok(())
}

/// Each tenant.
pub(super) fn tenants(page: &mut Page, snapshot: &Snapshot) -> Result<(), Error> {
    let rows = &snapshot.rows;
    let counters = [
        (
            "balance_synced",
            "Rows written to Postgres; the same as balance_sync_balances_total with outcome updated.",
            Counter::Updated,
        ),
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
        (
            "balance_sync_tenant_collector_starts_total",
            "Starts of a tenant's collector; more than one or two in a row mean that it crashes.",
            Counter::Starts,
        ),
    ];
    for (name, help, counter) in counters {
        page.write(each(Family::counter(name, help), rows, |row| row.totals.get(counter) as f64))?;
    }

    let mut outcomes = Family::counter(
        "balance_sync_balances_total",
        "Balances by what they came to: updated (row written), stale (row as new or newer), quarantined, expired \
         (value gone before it was read), released (given back unwritten), kept (written, still scheduled because a \
         newer mutation came).",
    );
    let mut batches = Family::counter(
        "balance_sync_batches_total",
        "Flushes by what triggered them: size, timeout or drain.",
    );
    let mut lag = Family::histogram(
        "balance_sync_lag_seconds",
        "Time from a balance's mutation in Redis to its row in Postgres, in seconds by Redis's clock.",
    );
    let mut degraded = Family::gauge(
        "balance_sync_tenant_degraded",
        "1 for a tenant that can't write at present, with the reason; for tenant_id other the number of such tenants.",
    );
    let mut life = Family::gauge(
        "balance_sync_smallest_remaining_life_seconds",
        "Smallest remaining life of a scheduled value, in seconds by Redis, as far as lives have been looked at (of \
         some thousand values all at every sample, of a million in some minutes); absent while nothing is scheduled.",
    );
    for row in rows {
        let tenant = row.label.as_str();
        for (outcome, counter) in OUTCOMES {
            outcomes.sample(&[(TENANT, tenant), ("outcome", outcome)], row.totals.get(counter) as f64);
        }
        for (trigger, count) in Trigger::ALL.iter().zip(row.totals.batches) {
            batches.sample(&[(TENANT, tenant), ("trigger", trigger.name())], count as f64);
        }
        lag.distribution(&[(TENANT, tenant)], &row.totals.lag);
        for (reason, count) in &row.degraded {
            degraded.sample(&[(TENANT, tenant), ("reason", reason)], *count as f64);
        }
        if let Some(milliseconds) = row.gauges.shortest_life_ms {
            life.sample(&[(TENANT, tenant)], milliseconds as f64 / 1e3);
        }
    }
    for family in [outcomes, batches, lag, degraded, life] {
        page.write(family)?;
    }

    page.write(each(
        Family::gauge(
            "balance_sync_scheduled",
            "Members in the tenant's schedule, due or not, when it was last claimed from or sampled.",
        ),
        rows,
        |row| row.gauges.scheduled as f64,
    ))?;
    page.write(each(
        Family::gauge(
            "balance_sync_other_key_form",
            "Members in a schedule of the key form of the tenant id that is not configured; nobody collects them.",
        ),
        rows,
        |row| row.gauges.other_form as f64,
    ))
}

/// The connections on each Postgres server: the `limit` busiest servers, the rest as `other`.
pub(super) fn connections(
    page: &mut Page,
    mut servers: Vec<ServerConnections>,
    limit: usize,
) -> Result<(), Error> {
    servers.sort_by(|a, b| Reverse(a.in_use).cmp(&Reverse(b.in_use)).then_with(|| a.server.cmp(&b.server)));
    let mut rows: Vec<ServerConnections> = Vec::new();
    let mut other: Option<ServerConnections> = None;
    for server in servers {
        // No label twice, whatever the source says: the whole scrape would be refused.
        if rows.len() < limit && server.server != OTHER && rows.iter().all(|row| row.server != server.server)
        {
            rows.push(server);
            continue;
        }
        match &mut other {
            Some(sum) => {
                sum.open += server.open;
                sum.idle += server.idle;
                sum.in_use += server.in_use;
                sum.waiting += server.waiting;
                sum.limit += server.limit;
            }
            None => other = Some(ServerConnections { server: OTHER.to_owned(), ..server }),
        }
    }
    rows.extend(other);

    type Read = fn(&ServerConnections) -> u64;
    let gauges: [(_, _, Read); 5] = [
        (
            "balance_sync_postgres_connections_open",
            "Connections of this worker that exist on a Postgres server.",
            |of| of.open,
        ),
        (
            "balance_sync_postgres_connections_idle",
            "Connections of this worker on a Postgres server that nobody works with.",
            |of| of.idle,
        ),
        (
            "balance_sync_postgres_connections_in_use",
            "Operations under way that hold a place in the budget of a Postgres server.",
            |of| of.in_use,
        ),
        (
            "balance_sync_postgres_connections_waiting",
            "Operations that wait for a place in the budget of a Postgres server.",
            |of| of.waiting,
        ),
        (
            "balance_sync_postgres_connections_limit",
            "Most connections this worker may have on a Postgres server.",
            |of| of.limit,
        ),
    ];
    for (name, help, read) in gauges {
        let mut family = Family::gauge(name, help);
        for row in &rows {
            family.sample(&[("server", &row.server)], read(row) as f64);
        }
        page.write(family)?;
    }
    Ok(())
}

fn each(mut family: Family, rows: &[Row], value: impl Fn(&Row) -> f64) -> Family {
    for row in rows {
        family.sample(&[(TENANT, &row.label)], value(row));
    }
    family
}
