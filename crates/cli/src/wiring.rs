//! From the configuration to the parts of a worker.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context;
use balance_sync_fleet::{
    WorkerSettings,
    backends::{ManagerOptions, RoutedDirectory, ShadowOptions},
    lifecycle::{
        SupervisorOptions,
        events::EventSettings,
        name::WorkerName,
        partition::{self, PartitionSettings},
    },
    pipeline::CollectorOptions,
    plan::Limits,
    status::{Routing, WorkerMode},
};
use balance_sync_schedule::{
    Controls, Endpoint, Link, Names, Reports, Rollouts, ScheduleError, ScheduleOptions, Sessions, Snapshots,
    Timelines,
};
use balance_sync_tenants::{Membership, ServiceDirectory, ServiceSettings, StaticDirectory, TenantDirectory};
use balance_sync_view::{
    Identity, OperationsSettings,
    actions::Operator,
    inspector::Inspector,
    queues::QueueOptions,
    reader::{FleetReader, Objectives},
    rollout::RolloutDesk,
    routing::{DirectorySource, OtherRedis, RoutingLooker},
    timeline::TimelineReader,
};

use crate::config::{Config, RedisDirectory, TenantSource, directory::RedisEntry};

/// Between the end of a removed tenant's last work and the moment its collector would be broken off.
const LEAVE_MARGIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Where tenants come from: those that live on the Redis of this worker or command.
///
/// # Errors
/// When the tenant service's settings can't be used.
pub(crate) fn directory(config: &Config) -> anyhow::Result<Arc<dyn TenantDirectory>> {
    routed_directory(config, routing(config).as_ref())
}

/// Which tenants live on which Redis; `None` where there is one.
pub(crate) fn routing(config: &Config) -> Option<Arc<Routing>> {
    let directory = config.redis.directory.as_ref()?;
    Some(Arc::new(Routing::new(&directory.own, Arc::clone(&directory.routes))))
}

/// As [`directory`], with the tenants of other Redis servers noted in `routing`.
fn routed_directory(
    config: &Config,
    routing: Option<&Arc<Routing>>,
) -> anyhow::Result<Arc<dyn TenantDirectory>> {
    let all = all_tenants(config)?;
    Ok(match routing {
        Some(routing) => Arc::new(RoutedDirectory::new(all, Arc::clone(routing))),
        None => all,
    })
}

/// Who looks at the other Redis servers; `None` where there is one.
///
/// # Errors
/// When Redis's settings can't be used.
pub(crate) fn routing_looker(
    config: &Config,
    routing: Option<&Arc<Routing>>,
    link: Link,
) -> anyhow::Result<Option<RoutingLooker>> {
    let (Some(routing), Some(directory)) = (routing, &config.redis.directory) else { return Ok(None) };
    let others = other_servers(config, directory)?;
    Ok(Some(RoutingLooker::new(Arc::clone(routing), link, config.tenants.key_form, others)))
}

/// The Redis servers of the directory but for the own one.
pub(crate) fn other_servers(
    config: &Config,
    directory: &RedisDirectory,
) -> Result<Vec<OtherRedis>, ScheduleError> {
    let others = directory.entries.iter().filter(|entry| entry.name != directory.own);
    let other = |entry: &RedisEntry| {
        let link = Link::new(&entry.link)?;
        Ok(OtherRedis {
            name: entry.name.clone(),
            snapshots: Snapshots::new(link, &group_on(config, Some(&entry.name))),
        })
    };
    others.map(other).collect()
}

/// All tenants, on whichever Redis they live.
fn all_tenants(config: &Config) -> anyhow::Result<Arc<dyn TenantDirectory>> {
    Ok(match &config.tenants.source {
        TenantSource::Service(service) => Arc::new(
            ServiceDirectory::new(ServiceSettings {
                service: service.service.clone(),
                allow_plain_http: service.allow_plain_http,
                connect_timeout: service.connect_timeout,
                request_timeout: service.request_timeout,
                max_body_bytes: service.max_body,
                retries: service.retries,
                breaker_threshold: service.breaker_threshold,
                breaker_timeout: service.breaker_timeout,
                ..ServiceSettings::new(service.url.clone(), service.api_key.clone())
            })
            .context("tenants.service")?,
        ),
        TenantSource::Static(tenants) => {
            Arc::new(StaticDirectory::new(tenants.clone()).context("tenants.list")?)
        }
        TenantSource::Single(database) => Arc::new(StaticDirectory::single(database.clone())),
    })
}

/// How schedules are worked. The lock token is the worker's name with a part of its own per start, because a lock that a
/// former process left is not ours.
pub(crate) fn schedule_options(config: &Config) -> ScheduleOptions {
    ScheduleOptions {
        mode: config.claim.mode,
        quiet: config.claim.quiet,
        claim_ttl: config.claim.ttl,
        protect_floor: config.claim.protect_floor,
        lock_scan_limit: config.claim.lock_scan_limit,
        lock_token: format!("{}:{}", config.worker.name, uuid::Uuid::new_v4().simple()),
        quarantine_limit: config.quarantine.max_entries,
        quarantine_value_limit: config.quarantine.max_value_bytes,
        put_off: config.claim.put_off,
        ..ScheduleOptions::default()
    }
}

/// How databases are managed.
pub(crate) fn manager_options(config: &Config) -> ManagerOptions {
    let settings_ttl = match &config.tenants.source {
        TenantSource::Service(service) => service.settings_ttl,
        TenantSource::Static(_) | TenantSource::Single(_) => ManagerOptions::default().settings_ttl,
    };
    ManagerOptions {
        settings_ttl,
        connections_per_tenant: config.postgres.connections_per_tenant,
        statement_timeout: config.postgres.statement_timeout,
        connect_timeout: config.postgres.connect_timeout,
        acquire_timeout: config.postgres.acquire_timeout,
        idle_timeout: config.postgres.idle_timeout,
        connection_max_age: config.postgres.connection_max_age,
        application_name: format!("balance-sync {}", config.worker.name),
        require_tls: config.worker.require_tls,
        allow_link_local: config.postgres.allow_link_local,
        weights: config.tenants.weights.clone(),
    }
}

/// How collectors work.
fn collector_options(config: &Config) -> CollectorOptions {
    CollectorOptions {
        batch_size: config.collector.batch_size,
        flush_timeout: config.collector.flush_timeout,
        profile: config.collector.profile,
        poll_interval: config.collector.poll_interval,
        idle_backoff_max: config.collector.idle_backoff_max,
        pipeline_depth: config.collector.pipeline_depth,
        flush_deadline: config.collector.flush_deadline,
        drain_deadline: config.collector.drain_deadline,
        leave_deadline: config
            .supervisor
            .stop_deadline
            .saturating_sub(config.collector.drain_deadline + LEAVE_MARGIN),
        protect_after: config.claim.protect_after,
        protect_floor: config.claim.protect_floor,
        survey_interval: config.claim.legacy_interval,
        trail_grace: config.quarantine.trail_grace,
        backoff_min: config.postgres.backoff_min,
        backoff_max: config.postgres.backoff_max,
        backoff_long: config.postgres.backoff_long,
        put_off: config.claim.put_off,
    }
}

/// What the fleet is judged by.
pub(crate) fn objectives(config: &Config) -> Objectives {
    Objectives {
        freshness: config.admin.freshness_objective,
        exposure: config.objectives.exposure,
        pause: config.objectives.pause,
        rollout_time: config.objectives.rollout_time,
        rollout_mutations: config.objectives.rollout_mutations,
        queue_age: config.queues.oldest,
        workers: config.worker.expected,
    }
}

/// The fleet as a command sees it, which runs no worker.
///
/// # Errors
/// When Redis's or the tenant service's settings can't be used.
pub(crate) fn reader(config: &Config) -> anyhow::Result<FleetReader> {
    let others = config.redis.directory.as_ref().map(|directory| other_servers(config, directory));
    reader_beside(config, others.transpose()?.unwrap_or_default())
}

/// The same without a look at other Redis servers, for a command that reads the fleet of each.
///
/// # Errors
/// When Redis's or the tenant service's settings can't be used.
pub(crate) fn reader_of_one(config: &Config) -> anyhow::Result<FleetReader> {
    reader_beside(config, Vec::new())
}

fn reader_beside(config: &Config, others: Vec<OtherRedis>) -> anyhow::Result<FleetReader> {
    let link = Link::new(&config.redis.link)?;
    let routing = routing(config);
    let looker = routing.as_ref().map(|routing| {
        RoutingLooker::new(Arc::clone(routing), link.clone(), config.tenants.key_form, others)
    });
    let reader = FleetReader::for_command(
        routed_directory(config, routing.as_ref())?,
        Snapshots::new(link.clone(), &group(config)),
        link,
        config.tenants.key_form,
        objectives(config),
        Arc::new(config.tenants.rollout.clone()),
        Arc::new(collector_options(config)),
    );
    Ok(reader.looking_at_others(looker))
}

/// What the monthly report is made of.
///
/// # Errors
/// When Redis's settings can't be used.
pub(crate) fn reports(config: &Config) -> anyhow::Result<Reports> {
    Ok(Reports::new(Link::new(&config.redis.link)?, &group(config)))
}

/// What is kept of the last day.
///
/// # Errors
/// When Redis's settings can't be used.
pub(crate) fn timelines(config: &Config) -> anyhow::Result<TimelineReader> {
    let timelines = Timelines::new(Link::new(&config.redis.link)?, &group(config));
    Ok(TimelineReader::new(timelines, operator(config)?))
}

/// Who is signed in to the dashboard.
///
/// # Errors
/// When Redis's settings can't be used.
pub(crate) fn sessions(config: &Config) -> anyhow::Result<Sessions> {
    Ok(sessions_over(Link::new(&config.redis.link)?, config))
}

/// The same over a worker's link.
pub(crate) fn sessions_over(link: Link, config: &Config) -> Sessions {
    Sessions::new(link, &group(config), config.admin.session_idle, config.admin.session_max)
}

/// Who writes operators' actions down, and reads what became of them.
///
/// # Errors
/// When Redis's settings can't be used.
pub(crate) fn operator(config: &Config) -> anyhow::Result<Operator> {
    Ok(Operator::new(Controls::new(Link::new(&config.redis.link)?), config.tenants.key_form))
}

/// Who changes which tenants are served, and reports on it.
///
/// # Errors
/// When Redis's settings can't be used.
pub(crate) fn rollout_desk(config: &Config) -> anyhow::Result<RolloutDesk> {
    let link = Link::new(&config.redis.link)?;
    let reports = Reports::new(link.clone(), &group(config));
    Ok(RolloutDesk::new(Rollouts::new(link), reports, Arc::new(config.tenants.rollout.clone())))
}

/// Who looks into one tenant for a command, which runs no worker.
///
/// # Errors
/// When Redis's or the tenant service's settings can't be used.
pub(crate) fn inspector(config: &Config) -> anyhow::Result<Inspector> {
    Ok(Inspector::for_command(
        Link::new(&config.redis.link)?,
        config.tenants.key_form,
        Arc::new(schedule_options(config)),
        directory(config)?,
        Arc::new(manager_options(config)),
    ))
}

/// The Redis servers of a worker.
pub(crate) struct Endpoints {
    pub(crate) redis: Endpoint,
    pub(crate) events: Option<Endpoint>,
}

impl Endpoints {
    /// # Errors
    /// When Redis's settings can't be used.
    pub(crate) fn new(config: &Config) -> Result<Self, ScheduleError> {
        let events = config.tenants.events.as_ref();
        Ok(Self {
            redis: Endpoint::new(&config.redis.link)?,
            events: events.map(|events| Endpoint::new(&events.link)).transpose()?,
        })
    }

    /// Takes the credentials and certificates of a configuration that was read again.
    ///
    /// # Errors
    /// When it names other servers, or can't be used.
    pub(crate) async fn reload(&self, config: &Config) -> Result<(), ScheduleError> {
        self.redis.replace(&config.redis.link)?;
        self.redis.refresh().await;
        if let (Some(endpoint), Some(events)) = (&self.events, &config.tenants.events) {
            endpoint.replace(&events.link)?;
            endpoint.refresh().await;
        }
        Ok(())
    }
}

/// A whole worker.
///
/// # Errors
/// When the tenant service's settings can't be used.
pub(crate) fn worker_settings(
    config: &Config,
    endpoints: &Endpoints,
    name: &WorkerName,
    routing: Option<&Arc<Routing>>,
) -> anyhow::Result<WorkerSettings> {
    let is_shadow = config.worker.mode == WorkerMode::Shadow;
    Ok(WorkerSettings {
        directory: routed_directory(config, routing)?,
        redis: endpoints.redis.clone(),
        schedule: schedule_options(config),
        collector: collector_options(config),
        manager: manager_options(config),
        connections_per_server: config.postgres.connections_per_server,
        fleet_connections_per_server: (config.postgres.fleet_connections_per_server > 0)
            .then_some(config.postgres.fleet_connections_per_server),
        supervisor: SupervisorOptions {
            poll_interval: config.tenants.poll_interval,
            key_form: config.tenants.key_form,
            limits: Limits {
                start_concurrency: config.supervisor.start_concurrency,
                stop_deadline: config.supervisor.stop_deadline,
                crash_delay_min: config.collector.crash_delay_min,
                crash_delay_max: config.collector.crash_delay_max,
            },
        },
        membership: Membership::new(config.tenants.max_removed_share, config.tenants.confirm_polls),
        threads: config.supervisor.threads,
        tracks_schedules: config.redis.tracking,
        events: config
            .tenants
            .events
            .as_ref()
            .zip(endpoints.events.clone())
            .map(|(events, endpoint)| EventSettings { channel: events.channel.clone(), endpoint }),
        // A shadow must not be counted on: no tenant is its own.
        partition: (config.worker.partition && !is_shadow).then(|| PartitionSettings {
            name: name.clone(),
            group: group(config),
            replicas: config.worker.replicas,
            lease: config.worker.lease,
            key_form: config.tenants.key_form,
            overdue: partition::OVERDUE,
        }),
        freshness_objective: config.admin.freshness_objective,
        exposure_objective: config.objectives.exposure,
        rollout: config.tenants.rollout.clone(),
        shadow: is_shadow.then_some(ShadowOptions {
            balances_per_second: config.shadow.balances_per_second,
            compare_interval: config.shadow.compare_interval,
        }),
        faults: None,
    })
}

/// Claims the worker's name, or another one if a live worker has it. Waits some seconds for that of a worker that has
/// crashed.
pub(crate) async fn claim_name(config: &Config, endpoints: &Endpoints) -> WorkerName {
    let name = WorkerName::from(config.worker.name.as_str());
    let link = Link::to(endpoints.redis.clone(), Arc::default());
    name.claim_first(&Names::new(link, &group(config))).await;
    name
}

/// How operators see and reach the worker.
pub(crate) fn operations_settings(
    config: &Config,
    name: WorkerName,
    routing: Option<(Arc<RoutingLooker>, Arc<dyn DirectorySource>)>,
) -> OperationsSettings {
    OperationsSettings {
        identity: Identity { name, group: group(config), version: crate::version::of_worker() },
        sample_interval: config.supervisor.sample_interval,
        reach: schedule_options(config).reach(),
        objectives: objectives(config),
        queues: config.queues.enabled.then_some(QueueOptions {
            interval: config.queues.interval,
            records_per_second: config.queues.records_per_second,
            quarantine_interval: config.queues.quarantine_interval,
        }),
        shared: shared_settings(config),
        routing,
    }
}

/// Settings that are compared between workers. No secrets: others read them.
fn shared_settings(config: &Config) -> BTreeMap<String, String> {
    let span = |duration: Duration| humantime::format_duration(duration).to_string();
    let directory = match &config.tenants.source {
        TenantSource::Service(service) => {
            let url = service.url.as_str();
            // Whatever stands before the host may be a secret.
            let shown = match (url.split_once("://"), url.split_once('@')) {
                (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
                _ => url.to_owned(),
            };
            format!("{} at {}", service.service, shown.split(['?', '#']).next().unwrap_or_default())
        }
        TenantSource::Static(tenants) => format!("a list of {}", tenants.len()),
        TenantSource::Single(_) => "single".to_owned(),
    };
    [
        ("tenants.directory", directory),
        ("postgres.connections_per_server", config.postgres.connections_per_server.to_string()),
        ("postgres.fleet_connections_per_server", config.postgres.fleet_connections_per_server.to_string()),
        ("postgres.connections_per_tenant", config.postgres.connections_per_tenant.to_string()),
        ("claim.ttl", span(config.claim.ttl)),
        ("claim.quiet", span(config.claim.quiet)),
        ("admin.freshness_objective", span(config.admin.freshness_objective)),
        ("objectives.exposure", span(config.objectives.exposure)),
        ("objectives.pause", span(config.objectives.pause)),
        ("tenants.include, exclude and share", config.tenants.rollout.to_string()),
        ("worker.expected", config.worker.expected.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The workers that serve the same tenants as this one: a worker of another fleet on the same Redis must not be counted
/// on, nor one whose configuration lists other tenants. Those that differ while a change is rolled out count each group by
/// itself, which costs work and nothing else.
pub(crate) fn group(config: &Config) -> String {
    group_on(config, config.redis.directory.as_ref().map(|directory| directory.own.as_str()))
}

/// The same for the workers of this entry of the Redis directory, which serve other tenants than those of other entries.
fn group_on(config: &Config, redis: Option<&str>) -> String {
    let (kind, tenants) = match &config.tenants.source {
        TenantSource::Service(service) => ("service", format!("{} {}", service.url, service.service)),
        TenantSource::Static(tenants) => {
            let mut ids: Vec<&str> = tenants.iter().map(|tenant| tenant.id.as_str()).collect();
            ids.sort_unstable();
            ("static", ids.join(" "))
        }
        TenantSource::Single(_) => ("single", String::new()),
    };
    // Only to make a short name of it; equal for equal text in all workers.
    let on = redis.map_or_else(String::new, |name| format!(" on {name}"));
    let text = format!("{} {tenants}{on}", config.tenants.key_form);
    format!("{kind}-{}", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, text.as_bytes()).simple())
}
