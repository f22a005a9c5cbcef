//! The metrics of what a worker depends on: Redis, the tenant service, and the connections to Postgres.

use std::{cmp::Reverse, sync::atomic::Ordering::Relaxed};

use balance_sync_fleet::{
    BreakerState, ErrorClass, ServerUsage,
    status::{FleetStatus, OUTCOMES},
};
use prometheus::Error;

use super::{
    exposition::{Family, Page},
    rows::{Distribution, OTHER},
    worker::timestamp,
};

/// Redis.
pub(super) fn redis(page: &mut Page<'_>, status: &FleetStatus) -> Result<(), Error> {
    let mut errors = Family::counter(
        "balance_sync_redis_errors_total",
        "Calls to Redis that failed, by class; the classes are the reasons of degraded tenants.",
    );
    for class in ErrorClass::ALL {
        errors.sample(&[("class", class.as_str())], status.redis.errors(class) as f64);
    }
    page.write(errors)?;
    page.write(
        Family::counter(
            "balance_sync_redis_connections_opened_total",
            "Connections opened to Redis; after the first ones (one per thread and one more) each took the place of \
             one that broke. Those over which changes are announced don't count.",
        )
        .with(&[], status.redis.connects() as f64),
    )?;
    page.write(
        Family::gauge(
            "balance_sync_redis_tracking_threads",
            "Threads of the worker to which Redis announces what is written to empty schedules; 0: idle schedules are looked at \
             once in a while, as before Redis 6.",
        )
        .with(&[], status.tracking.threads() as f64),
    )?;
    page.write(
        Family::gauge(
            "balance_sync_redis_tracked_schedules",
            "Empty schedules of idle tenants that Redis watches for the worker.",
        )
        .with(&[], status.tracking.schedules() as f64),
    )?;
    page.write(
        Family::counter(
            "balance_sync_redis_wakes_total",
            "Empty schedules in which something was found because Redis had announced it.",
        )
        .with(&[], status.tracking.wakes() as f64),
    )?;
    let mut may_evict = Family::gauge(
        "balance_sync_redis_may_evict",
        "Whether Redis may throw balances away by itself (1 or 0): its maxmemory-policy is not noeviction; absent while \
         not known.",
    );
    if let Some(value) = status.redis_may_evict.load() {
        may_evict.sample(&[], value as f64);
    }
    page.write(may_evict)?;
    let mut offset = Family::gauge(
        "balance_sync_clock_offset_seconds",
        "By how much this worker's clock is ahead of Redis's, in seconds; negative: behind. At least: what the way to Redis and \
         back explains counts as none.",
    );
    if let Some(millis) = status.clock_offset_ms.load() {
        offset.sample(&[], millis as f64 / 1e3);
    }
    page.write(offset)?;
    let (jumps, back) = status.redis_clock_back.totals();
    page.write(
        Family::counter(
            "balance_sync_redis_clock_jumps_total",
            "Times Redis's clock went back by more than a second while this worker looked.",
        )
        .with(&[], jumps as f64),
    )?;
    page.write(
        Family::counter(
            "balance_sync_redis_clock_back_seconds_total",
            "By how much Redis's clock went back while this worker looked, in seconds, all jumps together.",
        )
        .with(&[], back.as_secs_f64()),
    )
}

/// The Redis servers of the directory, where there are several.
pub(super) fn redis_directory(page: &mut Page<'_>, status: &FleetStatus) -> Result<(), Error> {
    let Some(routing) = status.routing.get() else { return Ok(()) };
    let (split, look) = (routing.split(), routing.look());
    let mut up = Family::gauge(
        "balance_sync_redis_directory_up",
        "Whether another Redis of the directory answers this worker (1 or 0), by its entry; absent before the first look.",
    );
    let mut workers = Family::gauge(
        "balance_sync_redis_directory_workers",
        "Live workers that write on another Redis of the directory, by its entry; absent while that isn't known.",
    );
    for entry in &look.entries {
        let labels = [("entry", entry.name.as_str())];
        up.sample(&labels, f64::from(u8::from(entry.workers.is_some())));
        if let Some(count) = entry.workers {
            workers.sample(&labels, count as f64);
        }
    }
    page.write(up)?;
    page.write(workers)?;
    let mut tenants = Family::gauge(
        "balance_sync_redis_directory_tenants",
        "Listed tenants that live on a Redis of the directory, by its entry, as this worker knows the directory.",
    );
    for (name, count) in &split.tenants {
        tenants.sample(&[("entry", name)], *count as f64);
    }
    page.write(tenants)?;
    page.write(
        Family::gauge(
            "balance_sync_redis_directory_left_tenants",
            "Tenants that live on another Redis of the directory and have something on this worker's: scheduled balances, or entries in \
             quarantine.",
        )
        .with(&[], look.left_tenants as f64),
    )
}

/// The tenant list, and the service it comes from, if it comes from one.
pub(super) fn tenant_service(page: &mut Page<'_>, status: &FleetStatus) -> Result<(), Error> {
    page.write(timestamp(
        "balance_sync_tenant_list_timestamp_seconds",
        "When the tenant list was last read with success, in seconds since 1970.",
        &status.directory.last_list_ms,
    ))?;
    page.write(
        Family::counter(
            "balance_sync_tenant_list_failures_total",
            "Polls of the tenant list that failed; the last good list stays in force.",
        )
        .with(&[], status.poll_failures.load(Relaxed) as f64),
    )?;
    let Some(service) = status.directory.service() else { return Ok(()) };

    let calls = [("list", &status.directory.list), ("database", &status.directory.database)];
    let mut ended = Family::counter(
        "balance_sync_tenant_service_calls_total",
        "Calls to the tenant service as their callers see them, repeats and breaker included, by what they asked for \
         (list or database) and how they ended: ok, an error, or given_up.",
    );
    let mut duration = Family::histogram(
        "balance_sync_tenant_service_call_duration_seconds",
        "Duration of these calls, in seconds.",
    );
    for (call, counted) in calls {
        for outcome in OUTCOMES {
            ended.sample(&[("call", call), ("outcome", outcome)], counted.ended(outcome) as f64);
        }
        duration.distribution(&[("call", call)], &Distribution::read(&counted.duration));
    }
    page.write(ended)?;
    page.write(duration)?;

    let counters = [
        (
            "balance_sync_tenant_service_requests_total",
            "HTTP requests sent to the tenant service, each attempt counted.",
            service.requests,
        ),
        (
            "balance_sync_tenant_service_request_failures_total",
            "Those among them that say that the service is ill.",
            service.failures,
        ),
        (
            "balance_sync_tenant_service_breaker_opened_total",
            "Times the circuit breaker before the tenant service opened.",
            service.breaker_opened,
        ),
    ];
    for (name, help, value) in counters {
        page.write(Family::counter(name, help).with(&[], value as f64))?;
    }
    let mut breaker = Family::gauge(
        "balance_sync_tenant_service_breaker",
        "1 for the state the circuit breaker before the tenant service is in (closed, half_open or open), 0 for the \
         others.",
    );
    for state in BreakerState::ALL {
        breaker.sample(&[("state", state.as_str())], f64::from(u8::from(state == service.breaker)));
    }
    page.write(breaker)?;
    page.write(timestamp(
        "balance_sync_tenant_service_success_timestamp_seconds",
        "When the tenant service last gave a good answer to any call, in seconds since 1970.",
        &status.directory.last_success_ms,
    ))
}

/// The connections on each Postgres server: the `limit` busiest servers, the rest as `other`.
pub(super) fn connections(
    page: &mut Page<'_>,
    mut servers: Vec<ServerUsage>,
    limit: usize,
) -> Result<(), Error> {
    servers.sort_by(|a, b| Reverse(a.in_use).cmp(&Reverse(b.in_use)).then_with(|| a.server.cmp(&b.server)));
    let mut rows: Vec<ServerUsage> = Vec::new();
    let mut other: Option<ServerUsage> = None;
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
                if let Some(of) = server.fleet {
                    let sum = sum.fleet.get_or_insert_default();
                    sum.budget += of.budget;
                    sum.held += of.held;
                    sum.all += of.all;
                    sum.workers = sum.workers.max(of.workers);
                    sum.short_seconds = sum.short_seconds.max(of.short_seconds);
                }
            }
            None => other = Some(ServerUsage { server: OTHER.to_owned(), ..server }),
        }
    }
    rows.extend(other);

    type Read = fn(&ServerUsage) -> u64;
    let gauges: [(_, _, Read); 9] = [
        (
            "balance_sync_postgres_connections_open",
            "Connections of this worker that exist on a Postgres server.",
            |of| of.open,
        ),
        (
            "balance_sync_postgres_connections_idle",
            "Connections of this worker on a Postgres server that are idle.",
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
            "Connections this worker may have on a Postgres server: setting postgres.connections_per_server, or its part of the \
             fleet's, if that is less.",
            |of| of.limit,
        ),
        (
            "balance_sync_postgres_fleet_connections_limit",
            "Setting postgres.fleet_connections_per_server: connections all workers together may have on a Postgres server; 0 \
             where there is no such limit.",
            |of| of.fleet.map_or(0, |of| of.budget),
        ),
        (
            "balance_sync_postgres_fleet_connections_held",
            "What this worker holds of the connections that all workers together may have on a Postgres server.",
            |of| of.fleet.map_or(0, |of| of.held),
        ),
        (
            "balance_sync_postgres_fleet_connections_held_by_all",
            "What all workers hold of the connections that they together may have on a Postgres server, as this worker was last told.",
            |of| of.fleet.map_or(0, |of| of.all),
        ),
        (
            "balance_sync_postgres_fleet_connections_short_seconds",
            "For how long this worker could have used more connections to a Postgres server than it may have of the fleet's, without a \
             break, in seconds; 0 = it has what it needs, or there is no such limit.",
            |of| of.fleet.map_or(0, |of| of.short_seconds),
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
