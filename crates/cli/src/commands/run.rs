//! `run`: a worker, from start to drain.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::Context;
use balance_sync_admin::{Access, AdminServer, Api, ApiParts, Metrics, SessionKeeper, liveness, readiness};
use balance_sync_fleet::{
    PreparedWorker,
    lifecycle::{DrainReport, WorkerHandles, name::WorkerName},
    status::{FleetStatus, WorkerMode},
    tasks::panics,
};
use balance_sync_view::{Operations, recovery::RecoveryRunner, routing::DirectorySource};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    EXIT_OK,
    config::Config,
    notify::{Health, Notifier},
    recoveries::Runner,
    routes_file::RoutesFile,
    telemetry::{self, MetricsPush, Telemetry},
    wiring::{self, Endpoints, objectives},
};

/// Some work could not be finished or given back while draining.
const EXIT_LEFT_BEHIND: u8 = 1;
/// Time between two summaries of lines that the log left out.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// Runs until a signal comes.
///
/// # Errors
/// When the configuration is wrong or the admin address can't be listened on. Redis, Postgres and tenant service need not
/// answer: the worker waits for them.
pub(crate) async fn run(file: Option<&Path>) -> anyhow::Result<u8> {
    let mut config = super::load_config(file)?;
    let Telemetry { log, traces } = telemetry::init(&config)?;
    let endpoints = Endpoints::new(&config)?;
    let name = wiring::claim_name(&config, &endpoints).await;
    config.worker.name = name.current().to_string();
    log.identify(name.clone());
    panics::log_all();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        commit = crate::version::COMMIT,
        mode = config.worker.mode.as_str(),
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
    let routing = wiring::routing(&config);
    let settings = wiring::worker_settings(&config, &endpoints, &name, routing.as_ref())?;
    let worker = PreparedWorker::new(settings)?;
    let looker =
        wiring::routing_looker(&config, routing.as_ref(), worker.handles().link.clone())?.map(Arc::new);
    let source = config.redis.directory.as_ref().map(|directory| RoutesFile::new(file, directory));
    let routing = looker.clone().zip(source.map(|source| source as Arc<dyn DirectorySource>));
    let operations = Operations::start(&worker, wiring::operations_settings(&config, name.clone(), routing));
    let worker = worker.start();
    let recoveries = Arc::new(Runner::new(file.map(Path::to_owned), &config));
    let metrics = Arc::new(metrics(&config, worker.handles()));
    // Before the page is there, so that no series is on it that is pushed.
    let push = start_push(&config, name, &worker.handles().fleet, &metrics);
    let access = access(&config, worker.handles());
    let admin =
        start_admin(&config, worker.handles(), &operations, &recoveries, access.clone(), started, &metrics)?;
    let close_grace = config.collector.drain_deadline;
    let mut heartbeat = operations.heartbeat();
    let (mut beats, mut summaries) = (every(config.log.heartbeat), every(SUMMARY_EVERY));
    // With thousands of tenants in it, it is larger than all that looks after them.
    drop(config);

    let mut manager = Notifier::from_env();
    manager.started();
    let fleet = Arc::clone(&worker.handles().fleet);
    let health = || health(&fleet, started.elapsed());
    let drain_request = operations.drain_request();
    let signalled = async {
        let mut interrupted = std::pin::pin!(crate::interrupted());
        loop {
            tokio::select! {
                signal = &mut interrupted => return signal.context("listening to signals"),
                () = drain_request.wanted() => return Ok("an operator's action"),
                Some(()) = hangups.recv() => {
                    if let Some(looker) = &looker {
                        looker.read_again();
                    }
                    reload(file, &endpoints, &access).await;
                }
                _ = beats.tick() => heartbeat.log(),
                _ = summaries.tick() => log.limit.summarise(),
            }
        }
    };
    let signal = manager.while_running(health, signalled).await?;
    manager.stopping();
    tracing::info!(signal, "draining: no more claims, what is held is flushed or given back");
    // Informed before the supervisor is, so that no balancer sends anything to a worker that is on its way out.
    worker.handles().fleet.draining.store(true, Relaxed);
    let drain_started = Instant::now();
    recoveries.stop();
    let drained = async {
        let report = operations.drain(worker, close_grace).await;
        recoveries.stopped().await;
        report
    };
    let report = manager.while_running(health, drained).await;
    log.limit.summarise();
    let code = tell(&report, drain_started);
    if let Some(admin) = admin {
        admin.stop().await;
    }
    if let Some(push) = push {
        push.finish().await;
    }
    if let Some(traces) = traces {
        traces.finish().await;
    }
    Ok(code)
}

/// Ticks this often, for the first time when the interval is over.
fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    ticks
}

/// As `/livez` and `/readyz` answer, for the service manager.
fn health(fleet: &FleetStatus, uptime: Duration) -> Health {
    let (alive, ready) = (liveness(fleet, uptime), readiness(fleet));
    let text = alive.clone().and(ready.map(str::to_owned));
    Health { alive: alive.is_ok(), text: text.unwrap_or_else(|reason| reason) }
}

/// Reads the configuration again, as SIGHUP asks for, and takes from it what needs no restart.
async fn reload(file: Option<&Path>, endpoints: &Endpoints, access: &Access) {
    tracing::info!("SIGHUP: the configuration is read again");
    let config = match super::load_config(file) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the former configuration stays in force");
            return;
        }
    };
    let redis = endpoints.reload(&config).await;
    if let Err(error) = &redis {
        tracing::error!(%error, "the former credentials of redis stay in force");
    }
    let admin = config.admin;
    let tokens = access.replace_tokens(admin.read_token, admin.operator_token, admin.tokens);
    match &tokens {
        Ok(true) => tracing::info!("the tokens of the admin interface have changed: sessions of others end"),
        Ok(false) => {}
        Err(reason) => tracing::error!(reason, "the former tokens of the admin interface stay in force"),
    }
    if redis.is_ok() && tokens.is_ok() {
        tracing::info!(
            "credentials and certificates of redis and the tokens of the admin interface are in force, other changes take \
             a restart"
        );
    }
}

/// The worker's metrics, for the page and for the push.
fn metrics(config: &Config, worker: &WorkerHandles) -> Metrics {
    let budget = worker.budget.clone();
    let connections = Box::new(move || budget.servers());
    Metrics::new(Arc::clone(&worker.fleet), config.admin.metrics_tenants, Some(connections))
}

/// Starts the push of metrics, if they are pushed. Where that can't be done, a warning says so and the worker goes on without:
/// balances matter more.
fn start_push(
    config: &Config,
    name: WorkerName,
    fleet: &Arc<FleetStatus>,
    metrics: &Arc<Metrics>,
) -> Option<MetricsPush> {
    let settings = config.metrics.as_ref()?;
    MetricsPush::start(settings, name, fleet, Arc::clone(metrics))
        .inspect_err(|error| {
            let error = format!("{error:#}");
            tracing::warn!(error, "metrics can't be pushed, the worker goes on without that");
        })
        .ok()
}

/// Who may do what, by the tokens and by sessions that were opened with them.
fn access(config: &Config, worker: &WorkerHandles) -> Access {
    Access::new(
        config.admin.read_token.clone(),
        config.admin.operator_token.clone(),
        config.admin.tokens.iter().cloned(),
    )
    .behind(config.admin.proxies.clone())
    .only_looking(config.worker.mode == WorkerMode::Shadow)
    .with_sessions(SessionKeeper::new(wiring::sessions_over(worker.link.clone(), config)))
}

fn start_admin(
    config: &Config,
    worker: &WorkerHandles,
    operations: &Operations,
    recoveries: &Arc<Runner>,
    access: Access,
    started: Instant,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Option<AdminServer>> {
    if !config.admin.enabled {
        return Ok(None);
    }
    let api = ApiParts {
        reader: operations.reader(objectives(config)),
        operator: operations.operator(),
        inspector: operations.inspector(),
        timelines: operations.timelines(),
        recoveries: operations
            .inspector()
            .recoveries(config.worker.name.clone(), Arc::clone(recoveries) as Arc<dyn RecoveryRunner>),
        rollout: operations.rollout_desk(),
        access,
        worker: config.worker.name.clone(),
    };
    let server = balance_sync_admin::start_with_api(
        config.admin.listen,
        Arc::clone(&worker.fleet),
        started,
        Arc::clone(metrics),
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
