//! `run`: a worker, from start to drain.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use anyhow::Context;
use balance_sync_admin::{Access, AdminServer, AdminSettings, Api, ApiParts};
use balance_sync_fleet::{
    PreparedWorker,
    lifecycle::{DrainReport, WorkerHandles},
    tasks::panics,
};
use balance_sync_view::{Operations, recovery::RecoveryRunner};

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    EXIT_OK,
    config::Config,
    recoveries::Runner,
    telemetry,
    wiring::{self, Endpoints, objectives},
};

/// Some work could not be finished or given back while draining.
const EXIT_LEFT_BEHIND: u8 = 1;

/// Runs until a signal comes.
///
/// # Errors
/// When the configuration is wrong or the admin address can't be listened on. Redis, Postgres and tenant service need not
/// answer: the worker waits for them.
pub(crate) async fn run(file: Option<&Path>) -> anyhow::Result<u8> {
    let mut config = super::load_config(file)?;
    let traces = telemetry::init(&config)?;
    let endpoints = Endpoints::new(&config)?;
    let name = wiring::claim_name(&config, &endpoints).await;
    config.worker.name = name.current().to_string();
    panics::log_all(&config.worker.name);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        worker = config.worker.name,
        claim_mode = config.claim.mode.as_str(),
        batch_size = config.collector.batch_size,
        "balance-sync starts"
    );
    for note in &config.notes {
        tracing::warn!(%note, "configuration");
    }
    let started = Instant::now();
    // Before anything is started: until then the signal would end the process.
    let mut hangups = signal(SignalKind::hangup()).context("listening to signals")?;
    let worker = PreparedWorker::new(wiring::worker_settings(&config, &endpoints, &name)?)?;
    let operations = Operations::start(&worker, wiring::operations_settings(&config, name));
    let worker = worker.start();
    let recoveries = Arc::new(Runner::new(file.map(Path::to_owned), &config));
    let admin = start_admin(&config, worker.handles(), &operations, &recoveries, started)?;
    let close_grace = config.collector.drain_deadline;
    // With thousands of tenants in it, it is larger than all that looks after them.
    drop(config);

    let drain_request = operations.drain_request();
    let mut interrupted = std::pin::pin!(crate::interrupted());
    let signal = loop {
        tokio::select! {
            signal = &mut interrupted => break signal.context("listening to signals")?,
            () = drain_request.wanted() => break "an operator's action",
            Some(()) = hangups.recv() => reload(file, &endpoints).await,
        }
    };
    tracing::info!(signal, "draining: no more claims, what is held is flushed or given back");
    // Informed before the supervisor is, so that no balancer sends anything to a worker that is on its way out.
    worker.handles().fleet.draining.store(true, Relaxed);
    let drain_started = Instant::now();
    recoveries.stop();
    let report = operations.drain(worker, close_grace).await;
    recoveries.stopped().await;
    let code = tell(&report, drain_started);
    if let Some(admin) = admin {
        admin.stop().await;
    }
    if let Some(traces) = traces {
        traces.finish().await;
    }
    Ok(code)
}

/// Reads the configuration again, as SIGHUP asks for, and takes from it what needs no restart.
async fn reload(file: Option<&Path>, endpoints: &Endpoints) {
    tracing::info!("SIGHUP: the configuration is read again");
    let config = match super::load_config(file) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the former configuration stays in force");
            return;
        }
    };
    match endpoints.reload(&config).await {
        Ok(()) => {
            tracing::info!("credentials and certificates of redis are in force, other changes take a restart")
        }
        Err(error) => tracing::error!(%error, "the former credentials of redis stay in force"),
    }
}

fn start_admin(
    config: &Config,
    worker: &WorkerHandles,
    operations: &Operations,
    recoveries: &Arc<Runner>,
    started: Instant,
) -> anyhow::Result<Option<AdminServer>> {
    if !config.admin.enabled {
        return Ok(None);
    }
    let settings =
        AdminSettings { listen: config.admin.listen, metrics_tenants: config.admin.metrics_tenants };
    let budget = worker.budget.clone();
    let connections = Box::new(move || budget.servers());
    let api = ApiParts {
        reader: operations.reader(objectives(config)),
        operator: operations.operator(),
        inspector: operations.inspector(),
        recoveries: operations
            .inspector()
            .recoveries(config.worker.name.clone(), Arc::clone(recoveries) as Arc<dyn RecoveryRunner>),
        access: Access::new(config.admin.read_token.clone(), config.admin.operator_token.clone()),
        worker: config.worker.name.clone(),
    };
    let server = balance_sync_admin::start_with_api(
        settings,
        Arc::clone(&worker.fleet),
        started,
        connections,
        Api::new(api),
    )
    .with_context(|| format!("admin.listen = {}: can't listen there", config.admin.listen))?;
    Ok(Some(server))
}

fn tell(report: &DrainReport, started: Instant) -> u8 {
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    for (tenant, members) in &report.orphaned {
        tracing::warn!(tenant_id = %tenant, members, "claims left behind, they come due again when the claim TTL ends");
    }
    for tenant in &report.killed {
        tracing::error!(tenant_id = %tenant, "collector broken off, its claims come due again when the claim TTL ends");
    }
    let orphaned: usize = report.orphaned.values().sum();
    tracing::info!(
        collectors = report.stopped,
        flushed = report.flushed,
        released = report.released,
        orphaned,
        killed = report.killed.len(),
        took_ms,
        "drained"
    );
    if orphaned == 0 && report.killed.is_empty() { EXIT_OK } else { EXIT_LEFT_BEHIND }
}
