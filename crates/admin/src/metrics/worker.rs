//! The metrics of the worker itself: what it is, how its reconcile goes, how long its steps take.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use balance_sync_engine::vanish::REASONS;
use balance_sync_fleet::{
    status::{FleetStatus, Phase, PushOutcome, Stage, TenantState, WorkerMode},
    tasks::TaskName,
};
use prometheus::Error;

use super::{
    exposition::{Family, Labels, Page},
    rows::{Distribution, Snapshot},
};

/// What it is, and what it was started with.
pub(super) fn identity(page: &mut Page<'_>, status: &FleetStatus) -> Result<(), Error> {
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
            "Whether the worker has reconciled once, does not drain, and all its background tasks make progress (1 or 0), as \
             /readyz says.",
        )
        .with(&[], f64::from(u8::from(status.is_ready()))),
    )?;
    page.write(
        Family::gauge(
            "balance_sync_shadow",
            "Whether the worker only looks, claims and writes nothing (1), or syncs (0), as worker.mode says.",
        )
        .with(&[], f64::from(u8::from(status.mode() == WorkerMode::Shadow))),
    )?;
    let Some(in_force) = status.in_force.get() else { return Ok(()) };
    page.write(
        Family::gauge(
            "balance_sync_config_info",
            "Always 1; the labels have settings in force that must be the same on all workers.",
        )
        .with(&[("claim_mode", in_force.claim_mode.as_str()), ("key_form", in_force.key_form.as_str())], 1.0),
    )?;
    let gauges = [
        (
            "balance_sync_freshness_objective_seconds",
            "Setting admin.freshness_objective: a tenant whose oldest due balance is older counts as behind, in seconds.",
            in_force.freshness_objective.as_secs_f64(),
        ),
        (
            "balance_sync_exposure_objective_seconds",
            "Setting objectives.exposure: what a tenant's balance_sync_exposure_age_seconds should stay within for 99 % of the time, \
             in seconds.",
            in_force.exposure_objective.as_secs_f64(),
        ),
        (
            "balance_sync_claim_ttl_seconds",
            "Setting claim.ttl: how long a claim holds, in seconds.",
            in_force.claim_ttl.as_secs_f64(),
        ),
        (
            "balance_sync_protect_floor_seconds",
            "Setting claim.protect_floor: what the lives of waiting values are raised to, in seconds.",
            in_force.protect_floor.as_secs_f64(),
        ),
        (
            "balance_sync_quarantine_limit_entries",
            "Setting quarantine.max_entries: entries in a tenant's quarantine at most.",
            in_force.quarantine_limit as f64,
        ),
        (
            "balance_sync_tenant_list_interval_seconds",
            "Setting tenants.poll_interval: time between two polls of the tenant list, in seconds.",
            in_force.poll_interval.as_secs_f64(),
        ),
    ];
    for (name, help, value) in gauges {
        page.write(Family::gauge(name, help).with(&[], value))?;
    }
    Ok(())
}

/// Its tenants and its collectors.
pub(super) fn fleet(page: &mut Page<'_>, status: &FleetStatus, snapshot: &Snapshot) -> Result<(), Error> {
    let mut tenants =
        Family::gauge("balance_sync_tenants", "Tenants this worker knows, by state of their collector.");
    for (state, count) in TenantState::ALL.iter().zip(snapshot.states) {
        tenants.sample(&[("state", state.name())], count as f64);
    }
    page.write(tenants)?;

    let mut revision = Family::gauge(
        "balance_sync_rollout_revision",
        "Revision of the rollout that this worker follows; 0 = none is stored, the configuration holds. Absent while not known.",
    );
    let mut share = Family::gauge(
        "balance_sync_rollout_share_ratio",
        "Share of the tenants that are on no list which the rollout selects, 0 to 1; absent while not known.",
    );
    if let Some(rollout) = status.rollout.current() {
        revision.sample(&[], rollout.revision() as f64);
        share.sample(&[], rollout.selection.share().fraction());
    }
    page.write(revision)?;
    page.write(share)?;
    page.write(
        Family::gauge(
            "balance_sync_rollout_unfollowed",
            "Whether this worker can't follow the rollout that is stored (1 or 0): the last one that it knew stays in force.",
        )
        .with(&[], f64::from(u8::from(status.rollout.problem().is_some()))),
    )?;
    let gauges = [
        (
            "balance_sync_tenants_wanted",
            "Tenants of the list in force, whichever worker serves them.",
            status.wanted.load(Relaxed),
        ),
        (
            "balance_sync_rollout_selected_tenants",
            "Those among them that are in the rollout, whichever worker serves them; all of them until it is known.",
            status.selected.load(Relaxed),
        ),
        (
            "balance_sync_tenants_owned",
            "Tenants in the rollout that are this worker's to look after; without worker.partition all of them.",
            status.owned.load(Relaxed),
        ),
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
            "balance_sync_foreign_locked_members",
            "Members passed over at each tenant's last claim because another worker holds their lock.",
            snapshot.foreign_locked,
        ),
        (
            "balance_sync_connection_waiting_tenants",
            "Tenants that have waited for longer than a second for a connection to write on, in a queue that moves.",
            snapshot.connection_waits.0,
        ),
        (
            "balance_sync_threads_still",
            "Worker threads that are stalled; their collectors have moved to the others, and /livez fails.",
            status.still_threads.load(Relaxed),
        ),
        (
            "balance_sync_collectors_awaited",
            "Collectors that were asked to stop and had not ended at the last reconcile pass.",
            status.awaited.load(Relaxed),
        ),
    ];
    for (name, help, value) in gauges {
        page.write(Family::gauge(name, help).with(&[], value as f64))?;
    }
    page.write(
        Family::gauge(
            "balance_sync_connection_wait_seconds",
            "The longest that a tenant has waited for a connection to write on so far, in seconds; 0 = none waits.",
        )
        .with(&[], snapshot.connection_waits.1),
    )?;
    page.write(
        Family::gauge(
            "balance_sync_worker_exposure_p99_seconds",
            "The p99 over the last hour of the exposure of whichever of this worker's tenants was exposed longest, second by second, \
             in seconds.",
        )
        .with(&[], status.exposure_p99_ms.load(Relaxed) as f64 / 1e3),
    )?;
    let counters = [
        ("balance_sync_collector_starts_total", "Collectors started.", &status.started),
        (
            "balance_sync_collector_restarts_total",
            "Collectors started after they had ended by themselves.",
            &status.restarts,
        ),
        ("balance_sync_collector_stops_total", "Collectors stopped by the supervisor.", &status.stopped),
        (
            "balance_sync_standby_joins_total",
            "Times a collector that stood by joined in, because something was due that its first owner did not claim.",
            &status.joins,
        ),
        (
            "balance_sync_timeline_entries_dropped_total",
            "Entries of tenants' timelines that were dropped because too many waited for Redis; the time is shown as not recorded.",
            &status.timeline_dropped,
        ),
        (
            "balance_sync_failover_checks_total",
            "Tenants whose rows were compared with Redis because their Postgres server had changed.",
            &status.failover_checks,
        ),
        (
            "balance_sync_failover_behind_total",
            "Balances that were behind on a new Postgres server although the former one had acknowledged them, or had no row there; scheduled again.",
            &status.failover_behind,
        ),
        (
            "balance_sync_vanished_rescheduled_total",
            "Balances scheduled again because Redis had lost their members, or had them further ahead than a lease explains.",
            &status.vanished_rescheduled,
        ),
        (
            "balance_sync_vanished_lost_total",
            "Balances listed as lost because Redis had lost their values.",
            &status.vanished_lost,
        ),
        (
            "balance_sync_shadow_left_behind_total",
            "Balances that this worker, as a shadow, has found out of the schedule while their rows were older than what Redis held.",
            &status.shadow_left_behind,
        ),
        (
            "balance_sync_shadow_lost_total",
            "The same, where Redis no longer held what their rows lacked.",
            &status.shadow_lost,
        ),
        (
            "balance_sync_ledger_worker_dropped_total",
            "Balances found out of the schedule, unwritten, while the ledger's own worker was active, and scheduled again.",
            &status.neighbour_dropped,
        ),
        (
            "balance_sync_redis_evicted_keys_total",
            "Keys that Redis has evicted while this worker looked.",
            &status.redis_evicted_keys,
        ),
        (
            "balance_sync_ledger_queue_records_read_total",
            "Records of the ledger's own queues that this worker has looked at; queues.records_per_second bounds the sum over \
             all workers.",
            &status.queue_records,
        ),
        (
            "balance_sync_collector_reaped_total",
            "Collectors that ended by themselves or had to be broken off, panics among them.",
            &status.reaped,
        ),
        ("balance_sync_collector_panics_total", "Collectors that ended by a panic.", &status.panics),
    ];
    for (name, help, value) in counters {
        page.write(Family::counter(name, help).with(&[], value.load(Relaxed) as f64))?;
    }
    let mut vanished = Family::counter(
        "balance_sync_vanished_total",
        "Conditions opened for tenants because Redis had lost data, by the reason they have in the tenant's state.",
    );
    for (reason, count) in REASONS.iter().zip(&status.vanished) {
        vanished.sample(&[("reason", reason.as_str())], count.load(Relaxed) as f64);
    }
    page.write(vanished)
}

/// Its pushes of these metrics.
pub(super) fn pushes(page: &mut Page<'_>, status: &FleetStatus) -> Result<(), Error> {
    let mut pushes = Family::counter(
        "balance_sync_metrics_pushes_total",
        "Pushes of these metrics by OTLP, by how they ended: ok, partial (the receiver rejected some samples) or failed (it took none, \
         or could not be sent all); all 0 where they are not pushed.",
    );
    for outcome in PushOutcome::ALL {
        let count = status.pushes[outcome as usize].load(Relaxed);
        pushes.sample(&[("outcome", outcome.as_str())], count as f64);
    }
    page.write(pushes)
}

/// Its background tasks. Those of which each thread has one are reported together.
pub(super) fn tasks(page: &mut Page<'_>, status: &FleetStatus) -> Result<(), Error> {
    let mut running = Family::gauge(
        "balance_sync_background_task_running",
        "Whether the background task runs, on all threads that have one (1), or waits to be started again (0).",
    );
    let mut restarts = Family::counter(
        "balance_sync_background_task_restarts_total",
        "Times the background task was started again, because it panicked or ended before it was to.",
    );
    let mut progress = Family::gauge(
        "balance_sync_background_task_progress_timestamp_seconds",
        "When the background task last made progress, in seconds since 1970; of several the one that is behind.",
    );
    let mut bound = Family::gauge(
        "balance_sync_background_task_bound_seconds",
        "Longest time without progress before /readyz, and for essential tasks /livez, fails, in seconds.",
    );
    let mut panics = Family::counter(
        "balance_sync_background_task_panics_total",
        "Panics in background tasks, those among them that run once, as a poll or an operator's action.",
    );
    let reports = status.tasks.reports();
    for name in TaskName::ALL {
        let labels: Labels<'_> = &[("task", name.name())];
        // Collectors have metrics of their own.
        if name != TaskName::Collector {
            panics.sample(labels, status.tasks.panics(name) as f64);
        }
        let same: Vec<_> = reports.iter().filter(|task| task.name == name).collect();
        let Some(behind) = same.iter().min_by_key(|task| task.progress_at_ms) else { continue };
        running.sample(labels, f64::from(u8::from(same.iter().all(|task| task.running))));
        restarts.sample(labels, same.iter().map(|task| task.restarts).sum::<u64>() as f64);
        progress.sample(labels, behind.progress_at_ms as f64 / 1e3);
        bound.sample(labels, behind.bound.as_secs_f64());
    }
    for family in [running, restarts, progress, bound, panics] {
        page.write(family)?;
    }
    Ok(())
}

/// Its reconcile passes.
pub(super) fn reconcile(page: &mut Page<'_>, status: &FleetStatus) -> Result<(), Error> {
    page.write(
        Family::counter("balance_sync_reconcile_passes_total", "Reconcile passes finished.")
            .with(&[], status.passes.load(Relaxed) as f64),
    )?;
    let mut duration = Family::histogram(
        "balance_sync_reconcile_duration_seconds",
        "Duration of the supervisor's reconcile passes, in seconds.",
    );
    duration.distribution(&[], &Distribution::read(&status.reconcile));
    page.write(duration)?;
    let mut steps = Family::counter(
        "balance_sync_reconcile_steps_total",
        "What the passes did, by phase: reap (collectors cleared away after their end), stop (asked to stop), start, \
         wait (broken off, because they did not stop in time).",
    );
    for (phase, count) in Phase::ALL.iter().zip(&status.phases) {
        steps.sample(&[("phase", phase.name())], count.load(Relaxed) as f64);
    }
    page.write(steps)?;
    page.write(timestamp(
        "balance_sync_last_reconcile_timestamp_seconds",
        "When the last reconcile pass ended, in seconds since 1970.",
        &status.last_pass_at_ms,
    ))?;
    page.write(
        Family::gauge(
            "balance_sync_reconcile_bound_seconds",
            "Longest time without a reconcile pass before /livez says that the worker is stuck, in seconds.",
        )
        .with(&[], status.pass_bound_ms.load(Relaxed) as f64 / 1e3),
    )
}

/// Its flushes, whosever they are.
pub(super) fn flushes(page: &mut Page<'_>, status: &FleetStatus) -> Result<(), Error> {
    let mut stages = Family::histogram(
        "balance_sync_stage_duration_seconds",
        "Duration of the steps of a flush, in seconds: claim (Redis), gather (decoding), update (Postgres, with \
         getting a connection), settle (Redis).",
    );
    for (stage, histogram) in Stage::ALL.iter().zip(&status.stages) {
        stages.distribution(&[("stage", stage.name())], &Distribution::read(histogram));
    }
    page.write(stages)?;
    let mut flushes = Family::histogram(
        "balance_sync_flush_duration_seconds",
        "Duration of whole flushes, in seconds: gather, update and settle; the claim came before.",
    );
    flushes.distribution(&[], &Distribution::read(&status.flushes));
    page.write(flushes)
}

/// A moment; left out while it has not come.
pub(super) fn timestamp(name: &'static str, help: &'static str, milliseconds: &AtomicU64) -> Family {
    let family = Family::gauge(name, help);
    match milliseconds.load(Relaxed) {
        0 => family,
        at => family.with(&[], at as f64 / 1e3),
    }
}
