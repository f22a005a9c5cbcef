//! A worker, wired together: threads, links, tenant manager, supervisor and the background tasks beside them.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use balance_sync_engine::{connections::SESSION_IDLE, rollout::Selection};
use balance_sync_schedule::{Endpoint, Link, ScheduleError, ScheduleOptions};
use balance_sync_store::{Chore, ConnectionBudget};
use balance_sync_tenants::{KeyForm, Membership, TenantDirectory};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    connections::{self, ConnectionShares},
    events::{self, EventSettings},
    eviction_watch,
    partition::{Partition, PartitionSettings},
    redis_watch,
    rollout::{self, RolloutWatch},
    shadow::ShadowSpawner,
    supervisor::{Drain, DrainReport, Poll, Spawner, Supervisor, SupervisorOptions},
    thread_health::{self, Pulse},
    threads::{CollectorSpawner, CollectorThread},
};
use crate::{
    backends::{
        CloseAll, ManagerOptions, ObservedDirectory, ShadowOptions, TenantManager,
        comparison::Comparison,
        failover::{self, FailoverCheck, Reports},
        legacy::{self, LegacyWatch},
        neighbour::{self, NeighbourWatch},
        shadow::{self, Shadow},
        vanish::{self, Vanish},
    },
    pipeline::CollectorOptions,
    status::{FleetStatus, InForce, WorkerMode},
    tasks::{Faults, TaskName},
};

/// Longest time for background tasks to end after the drain.
const TASKS_END_WITHIN: Duration = Duration::from_secs(1);

/// Everything a worker needs to know.
pub struct WorkerSettings {
    /// Where tenants come from.
    pub directory: Arc<dyn TenantDirectory>,
    /// Redis.
    pub redis: Endpoint,
    /// How schedules are worked.
    pub schedule: ScheduleOptions,
    /// How collectors work.
    pub collector: CollectorOptions,
    /// How databases are managed.
    pub manager: ManagerOptions,
    /// Connections per Postgres server at most.
    pub connections_per_server: u32,
    /// Connections per Postgres server at most of all workers together; `None` = each worker has its own budget.
    pub fleet_connections_per_server: Option<u32>,
    /// How the fleet is supervised.
    pub supervisor: SupervisorOptions,
    /// The guard on the tenant list.
    pub membership: Membership,
    /// Threads that run collectors; 0 = one per core.
    pub threads: usize,
    /// Whether idle schedules are left to Redis, which announces changes of them.
    pub tracks_schedules: bool,
    /// Where the tenant service's events are received; `None` = nowhere.
    pub events: Option<EventSettings>,
    /// How tenants are shared out among the workers; `None` = this one serves all of them.
    pub partition: Option<PartitionSettings>,
    /// A tenant whose oldest due member is older than this counts as behind. For people; nothing is decided by it.
    pub freshness_objective: Duration,
    /// What the p99 of the exposure over an hour should stay within.
    pub exposure_objective: Duration,
    /// Which tenants are served, unless operators have set that at run time.
    pub rollout: Selection,
    /// How it looks, for a shadow: it claims, writes and removes nothing; `None` = a worker that syncs.
    pub shadow: Option<ShadowOptions>,
    /// Panics of background tasks, for tests.
    pub faults: Option<Faults>,
}

/// Handles on a worker's parts, for what runs beside its collectors.
#[derive(Clone)]
pub struct WorkerHandles {
    /// States and counters; the background tasks.
    pub fleet: Arc<FleetStatus>,
    /// Connections per Postgres server.
    pub budget: ConnectionBudget,
    /// The tenant manager.
    pub manager: Addr<TenantManager>,
    /// A link to Redis beside the collectors'.
    pub link: Link,
    /// The directory, whose calls are counted.
    pub directory: Arc<dyn TenantDirectory>,
    /// How tenant ids stand in keys.
    pub key_form: KeyForm,
    /// How schedules are worked.
    pub schedule: Arc<ScheduleOptions>,
    /// How collectors work.
    pub collector: Arc<CollectorOptions>,
    /// How often schedules are looked at that tenants seldom have.
    pub legacy_interval: Duration,
    /// How databases are managed.
    pub manager_options: Arc<ManagerOptions>,
    /// Workers per tenant; `None` = all.
    pub replicas: Option<usize>,
    /// Which tenants are served, unless operators have set that at run time.
    pub rollout: Arc<Selection>,
    /// How a shadow looks; `None` = this worker syncs.
    pub shadow: Option<ShadowOptions>,
}

/// A worker that serves no tenant yet: what must be in place before the first claim is started between
/// [`PreparedWorker::new`] and [`PreparedWorker::start`].
pub struct PreparedWorker {
    handles: WorkerHandles,
    supervisor: Supervisor,
    redis: Endpoint,
    pulses: Vec<Pulse>,
    arbiters: Vec<Arbiter>,
    threads_stop: DropGuard,
    partition: Option<PartitionSettings>,
    events: Option<EventSettings>,
    failover: Reports,
}

impl PreparedWorker {
    /// Starts threads and tenant manager on the current actix system.
    ///
    /// # Errors
    /// When a thread does not start. Redis, Postgres and tenant service need not answer yet.
    pub fn new(settings: WorkerSettings) -> Result<Self, ScheduleError> {
        let key_form = settings.supervisor.key_form;
        let fleet = Arc::new(FleetStatus::default());
        if let Some(faults) = settings.faults {
            fleet.tasks.inject(faults);
        }
        let mode = settings.shadow.map_or(WorkerMode::Sync, |_| WorkerMode::Shadow);
        let _ = fleet.in_force.set(InForce {
            mode,
            claim_mode: settings.schedule.mode,
            claim_quiet: settings.schedule.quiet,
            key_form,
            claim_ttl: settings.schedule.claim_ttl,
            protect_floor: settings.schedule.protect_floor,
            quarantine_limit: settings.schedule.quarantine_limit as u64,
            poll_interval: settings.supervisor.poll_interval,
            freshness_objective: settings.freshness_objective,
            exposure_objective: settings.exposure_objective,
        });
        let budget = match settings.fleet_connections_per_server {
            None => ConnectionBudget::new(settings.connections_per_server),
            Some(of_fleet) => {
                ConnectionBudget::shared(settings.connections_per_server, of_fleet, SESSION_IDLE)
            }
        };
        let panicked = fleet.tasks.clone();
        budget.observe_panics(move |chore| {
            panicked.count_panic(match chore {
                Chore::Sweep => TaskName::ConnectionSweeper,
                Chore::Close => TaskName::ConnectionClose,
                Chore::LookUp => TaskName::HostLookup,
            });
        });
        let directory: Arc<dyn TenantDirectory> =
            Arc::new(ObservedDirectory::new(settings.directory, Arc::clone(&fleet)));
        let manager_options = Arc::new(settings.manager.clone());
        let manager = TenantManager::new(Arc::clone(&directory), budget.clone(), settings.manager)
            .with_tasks(fleet.tasks.clone())
            .start();
        let threads_stop = CancellationToken::new();
        let (mut threads, mut arbiters) = (Vec::new(), Vec::new());
        let number = if mode == WorkerMode::Shadow { 0 } else { number_of_threads(settings.threads) };
        for thread in 0..number {
            let interval = settings.collector.idle_backoff_max;
            let (thread, arbiter) = CollectorThread::start(
                thread,
                &settings.redis,
                interval,
                settings.tracks_schedules,
                &fleet,
                &threads_stop,
            )?;
            threads.push(thread);
            arbiters.push(arbiter);
        }
        let handles = WorkerHandles {
            link: Link::to(settings.redis.clone(), Arc::clone(&fleet.redis)),
            fleet,
            budget,
            manager,
            directory,
            key_form,
            schedule: Arc::new(settings.schedule),
            legacy_interval: settings.collector.survey_interval,
            collector: Arc::new(CollectorOptions {
                survey_interval: settings.collector.survey_interval * legacy::SELDOM,
                ..settings.collector
            }),
            manager_options,
            replicas: settings.partition.as_ref().map(|partition| partition.replicas),
            rollout: Arc::new(settings.rollout),
            shadow: settings.shadow,
        };
        let pulses = threads.iter().map(|thread| thread.pulse.clone()).collect();
        let failover = Reports::default();
        let spawner: Box<dyn Spawner> = match mode {
            WorkerMode::Shadow => Box::new(ShadowSpawner { fleet: Arc::clone(&handles.fleet) }),
            WorkerMode::Sync => Box::new(CollectorSpawner {
                threads,
                next: 0,
                manager: handles.manager.clone(),
                failover: failover.clone(),
                fleet: Arc::clone(&handles.fleet),
                schedule: Arc::clone(&handles.schedule),
                collector: Arc::clone(&handles.collector),
                key_form,
            }),
        };
        let supervisor = Supervisor::new(
            Arc::clone(&handles.directory),
            Some(handles.manager.clone()),
            spawner,
            Arc::clone(&handles.fleet),
            settings.membership,
            settings.supervisor,
        );
        // A shadow looks at all tenants, and shows which of them would be served.
        let supervisor = match mode {
            WorkerMode::Shadow => supervisor,
            WorkerMode::Sync => {
                handles.fleet.rollout.expect();
                supervisor.following_rollout()
            }
        };
        Ok(Self {
            handles,
            supervisor,
            redis: settings.redis,
            pulses,
            arbiters,
            threads_stop: threads_stop.drop_guard(),
            partition: settings.partition,
            events: settings.events,
            failover,
        })
    }

    /// Handles on its parts.
    #[must_use]
    pub fn handles(&self) -> &WorkerHandles {
        &self.handles
    }

    /// Starts the supervisor, and with it the collectors.
    #[must_use]
    pub fn start(self) -> Worker {
        let Self { handles, supervisor, redis, pulses, arbiters, threads_stop, partition, events, failover } =
            self;
        let (fleet, manager, link) = (&handles.fleet, &handles.manager, &handles.link);
        let tasks = &fleet.tasks;
        let beside = CancellationToken::new();
        let mut running = Vec::new();
        let (supervisor, registration) = match partition {
            Some(settings) => {
                let listed = CancellationToken::new();
                let supervisor = supervisor.sharing(listed.clone()).start();
                let running = tasks.keep(TaskName::Partition, None, settings.lease, beside.clone(), {
                    let (link, supervisor, fleet) = (link.clone(), supervisor.clone(), Arc::clone(fleet));
                    let stop = beside.clone();
                    move |progress| {
                        let partition = Partition::new(
                            settings.clone(),
                            link.clone(),
                            supervisor.clone().recipient(),
                            supervisor.clone().recipient(),
                            Arc::clone(&fleet),
                        );
                        partition.run(listed.clone(), stop.clone(), progress)
                    }
                });
                (supervisor, Some(running))
            }
            None => (supervisor.start(), None),
        };
        // Until the connections are closed, so that what is flushed last has some.
        let shares_stop = CancellationToken::new();
        let shares = ConnectionShares::of(link.clone(), handles.budget.clone()).map(|shares| {
            let stop = shares_stop.clone();
            tasks.keep(
                TaskName::ConnectionShares,
                None,
                connections::BEATS_WITHIN,
                shares_stop.clone(),
                move |progress| shares.clone().run(stop.clone(), progress),
            )
        });
        let mut endpoints = vec![redis];
        endpoints.extend(events.as_ref().map(|events| events.endpoint.clone()));
        running.push(tasks.keep(TaskName::RedisWatch, None, redis_watch::EVERY, beside.clone(), {
            let stop = beside.clone();
            move |progress| redis_watch::watch(endpoints.clone(), stop.clone(), progress)
        }));
        if let Some(events) = events {
            running.push(tasks.keep(TaskName::TenantEvents, None, events::RETRY_MAX, beside.clone(), {
                let (supervisor, manager, stop) = (supervisor.clone(), manager.clone(), beside.clone());
                move |progress| {
                    let (poll, hint) = (supervisor.clone().recipient(), manager.clone().recipient());
                    events::listen(events.clone(), poll, hint, stop.clone(), progress)
                }
            }));
        }
        running.push(tasks.keep(TaskName::RolloutWatch, None, rollout::INTERVAL, beside.clone(), {
            let (link, configured) = (link.clone(), Arc::clone(&handles.rollout));
            let (supervisor, fleet, stop) = (supervisor.clone(), Arc::clone(fleet), beside.clone());
            move |progress| {
                let changed = supervisor.clone().recipient();
                RolloutWatch::new(link.clone(), Arc::clone(&configured), Arc::clone(&fleet), changed)
                    .run(stop.clone(), progress)
            }
        }));
        running.push(tasks.keep(TaskName::ThreadWatch, None, thread_health::EVERY, beside.clone(), {
            let (poll, fleet, stop) = (supervisor.clone(), Arc::clone(fleet), beside.clone());
            move |progress| {
                let poll = poll.clone();
                // A hint: with a full mailbox a pass is about to be made.
                let changed = move || drop(poll.try_send(Poll));
                thread_health::watch(
                    pulses.clone(),
                    thread_health::EVERY,
                    Arc::clone(&fleet),
                    changed,
                    stop.clone(),
                    progress,
                )
            }
        }));
        running.push(tasks.keep(TaskName::EvictionWatch, None, eviction_watch::INTERVAL, beside.clone(), {
            let (link, fleet, stop) = (link.clone(), Arc::clone(fleet), beside.clone());
            move |progress| eviction_watch::watch(link.clone(), Arc::clone(&fleet), stop.clone(), progress)
        }));
        let comparison = Comparison {
            link: link.clone(),
            manager: manager.clone(),
            key_form: handles.key_form,
            schedule: Arc::clone(&handles.schedule),
        };
        match handles.shadow {
            Some(options) => running.push(watch_as_shadow(&handles, comparison, options, &beside)),
            None => running.extend(keep_whole(&handles, comparison, failover, &beside)),
        }
        Worker {
            handles,
            supervisor,
            arbiters,
            beside: Some(beside.drop_guard()),
            running,
            threads_stop,
            registration,
            shares_stop: shares_stop.drop_guard(),
            shares,
        }
    }
}

/// Looks at what others write.
fn watch_as_shadow(
    handles: &WorkerHandles,
    comparison: Comparison,
    options: ShadowOptions,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let (shadow, again) = (Shadow::new(comparison, Arc::clone(&handles.fleet), options), stop.clone());
    handles.fleet.tasks.keep(TaskName::ShadowWatch, None, shadow::INTERVAL, stop.clone(), move |progress| {
        shadow.clone().run(again.clone(), progress)
    })
}

/// Notices what Postgres or Redis has lost or the ledger's own worker has dropped, and has it written again.
fn keep_whole(
    handles: &WorkerHandles,
    comparison: Comparison,
    failover: Reports,
    stop: &CancellationToken,
) -> [JoinHandle<()>; 5] {
    let (fleet, tasks) = (&handles.fleet, &handles.fleet.tasks);
    let check = FailoverCheck { comparison: comparison.clone(), fleet: Arc::clone(fleet) };
    let neighbours = NeighbourWatch { comparison: comparison.clone(), fleet: Arc::clone(fleet) };
    let vanish = Vanish::new(comparison, Arc::clone(fleet), handles.collector.trail_grace);
    let interval = handles.legacy_interval;
    let legacy = LegacyWatch {
        link: handles.link.clone(),
        fleet: Arc::clone(fleet),
        key_form: handles.key_form,
        interval,
    };
    [
        tasks.keep(TaskName::LegacyWatch, None, interval, stop.clone(), {
            let stop = stop.clone();
            move |progress| legacy.clone().run(stop.clone(), progress)
        }),
        tasks.keep(TaskName::NeighbourWatch, None, neighbour::INTERVAL, stop.clone(), {
            let stop = stop.clone();
            move |progress| neighbours.clone().run(stop.clone(), progress)
        }),
        tasks.keep(TaskName::FailoverCheck, None, failover::INTERVAL, stop.clone(), {
            let stop = stop.clone();
            move |progress| check.clone().run(failover.clone(), stop.clone(), progress)
        }),
        tasks.keep(TaskName::VanishWatch, None, vanish::INTERVAL, stop.clone(), {
            let (vanish, stop) = (vanish.clone(), stop.clone());
            move |progress| vanish.clone().watch(stop.clone(), progress)
        }),
        tasks.keep(TaskName::VanishRepair, None, vanish::INTERVAL, stop.clone(), {
            let stop = stop.clone();
            move |progress| vanish.clone().repair(stop.clone(), progress)
        }),
    ]
}

fn number_of_threads(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    }
}

/// A running worker.
pub struct Worker {
    handles: WorkerHandles,
    supervisor: Addr<Supervisor>,
    arbiters: Vec<Arbiter>,
    /// Ends what runs beside the collectors.
    beside: Option<DropGuard>,
    running: Vec<JoinHandle<()>>,
    /// Ends what runs on the collectors' threads.
    threads_stop: DropGuard,
    registration: Option<JoinHandle<()>>,
    /// Ends the worker's part of the fleet's connections.
    shares_stop: DropGuard,
    shares: Option<JoinHandle<()>>,
}

impl Worker {
    /// Handles on its parts.
    #[must_use]
    pub fn handles(&self) -> &WorkerHandles {
        &self.handles
    }

    /// Polls the tenant list now.
    pub fn poll(&self) {
        // A hint: if the mailbox is full, a poll is under way anyway.
        let _ = self.supervisor.try_send(Poll);
    }

    /// Stops claiming, flushes and releases, within the drain deadline. Returns what was left.
    pub async fn stop_collectors(&mut self) -> DrainReport {
        // First of all, so that other workers take over while this one still flushes.
        drop(self.beside.take());
        self.supervisor.send(Drain).await.unwrap_or_default()
    }

    /// Closes all connections, within the grace, and ends the threads. For a worker whose collectors are stopped.
    pub async fn close(mut self, grace: Duration) {
        drop(self.beside.take());
        if let Some(registration) = self.registration {
            // It has ended by itself or panicked: either way it is over, and the lease lapses at the latest.
            let _ = registration.await;
        }
        let _ = self.handles.manager.send(CloseAll { grace }).await;
        drop(self.shares_stop);
        if let Some(shares) = self.shares {
            // Otherwise others give this worker up.
            let _ = tokio::time::timeout(connections::FAREWELL, shares).await;
        }
        // They were stopped at the beginning; one that hangs ends with the process.
        let ended = futures::future::join_all(self.running);
        if tokio::time::timeout(TASKS_END_WITHIN, ended).await.is_err() {
            let left: Vec<_> =
                self.handles.fleet.tasks.reports().iter().map(|task| task.name.name()).collect();
            tracing::warn!(tasks = left.join(", "), "background tasks did not stop in time");
        }
        drop(self.threads_stop);
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }
}
