//! A whole worker: threads, links, manager and supervisor, wired together.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use balance_sync_schedule::{
    Controls, Link, LinkSettings, ScheduleError, ScheduleOptions, Schedules, Snapshots,
};
use balance_sync_store::{Chore, ConnectionBudget};
use balance_sync_tenants::{KeyForm, Membership, TenantDirectory, other_key_space};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    events::{self, EventSettings},
    partition::{Partition, PartitionSettings},
    supervisor::{Drain, DrainReport, Poll, Spawner, Supervisor, SupervisorOptions},
    thread_health::{self, Pulse},
};
use crate::{
    backends::{
        CloseAll, Lookout, ManagerOptions, ObservedDirectory, PostgresSink, Prober, RedisQueue, TenantManager,
    },
    controls::{self, DrainOrder, Ended, Follower, Operator, told},
    inspect::Inspector,
    pipeline::{Collector, CollectorActor, CollectorOptions, Incarnation},
    publish::{self, Publisher},
    record::{Own, OwnParts},
    sampler,
    status::{FleetStatus, InForce},
    tasks::{Faults, Progress, TaskName, jittered},
    view::FleetReader,
};

/// Longest time to tell in the log of actions how a drain ended; when Redis doesn't answer, it stays untold.
const TELL_WITHIN: Duration = Duration::from_secs(2);
/// How often Redis is asked whether it may evict.
const EVICTION_LOOK_EVERY: Duration = Duration::from_secs(10);

/// Longest time for background tasks to end after the drain.
const TASKS_END_WITHIN: Duration = Duration::from_secs(1);

/// Everything a worker needs to know.
pub struct WorkerSettings {
    /// Where tenants come from.
    pub directory: Arc<dyn TenantDirectory>,
    /// Redis.
    pub redis: LinkSettings,
    /// How schedules are worked.
    pub schedule: ScheduleOptions,
    /// How collectors work.
    pub collector: CollectorOptions,
    /// How databases are managed.
    pub manager: ManagerOptions,
    /// Connections per Postgres server at most.
    pub connections_per_server: u32,
    /// How the fleet is supervised.
    pub supervisor: SupervisorOptions,
    /// The guard on the tenant list.
    pub membership: Membership,
    /// Threads that run collectors; 0 = one per core.
    pub threads: usize,
    /// How often what waits in the schedules is looked at.
    pub sample_interval: Duration,
    /// Where the tenant service's events are heard; `None` = nowhere.
    pub events: Option<EventSettings>,
    /// How tenants are shared out among the workers; `None` = this one looks after all of them.
    pub partition: Option<PartitionSettings>,
    /// Under which name others know it.
    pub identity: Identity,
    /// A tenant whose oldest due member is older than this counts as behind; for the eye.
    pub freshness_objective: Duration,
    /// Panics of background tasks, for tests.
    pub faults: Option<Faults>,
}

/// Who a worker is among the others.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name, unlike all others'.
    pub name: String,
    /// The workers that know of each other: those with the same tenants.
    pub group: String,
    /// Its version.
    pub version: String,
}

/// A running worker.
pub struct Worker {
    supervisor: Addr<Supervisor>,
    manager: Addr<TenantManager>,
    fleet: Arc<FleetStatus>,
    budget: ConnectionBudget,
    link: Link,
    arbiters: Vec<Arbiter>,
    /// Ends what runs beside the collectors.
    beside: DropGuard,
    running: Vec<JoinHandle<()>>,
    /// Ends what runs on the collectors' threads.
    lanes_stop: DropGuard,
    registration: Option<JoinHandle<()>>,
    own: Arc<Own>,
    snapshots: Snapshots,
    collector: Arc<CollectorOptions>,
    controls: Controls,
    inspector: Inspector,
    key_form: KeyForm,
    drain_order: DrainOrder,
    /// Ends the publisher, which outlives the collectors so that a drain can be watched.
    publishing: (DropGuard, JoinHandle<()>),
}

impl Worker {
    /// Starts a worker on the current actix system.
    ///
    /// # Errors
    /// When the Redis settings can't be used. Redis, Postgres and tenant service need not answer yet.
    pub fn start(settings: WorkerSettings) -> Result<Self, ScheduleError> {
        let threads = match settings.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        let key_form = settings.supervisor.key_form;
        let fleet = Arc::new(FleetStatus::default());
        let tasks = fleet.tasks.clone();
        if let Some(faults) = settings.faults {
            tasks.inject(faults);
        }
        let _ = fleet.in_force.set(InForce {
            claim_mode: settings.schedule.mode.name(),
            key_form: key_form.as_str(),
            claim_ttl: settings.schedule.claim_ttl,
            protect_floor: settings.schedule.protect_floor,
            quarantine_limit: settings.schedule.quarantine_limit as u64,
            poll_interval: settings.supervisor.poll_interval,
            freshness_objective: settings.freshness_objective,
        });
        let budget = ConnectionBudget::new(settings.connections_per_server);
        let panicked = tasks.clone();
        budget.observe_panics(move |chore| {
            panicked.count_panic(match chore {
                Chore::Sweep => TaskName::ConnectionSweeper,
                Chore::Close => TaskName::ConnectionClose,
            });
        });
        let directory: Arc<dyn TenantDirectory> =
            Arc::new(ObservedDirectory::new(settings.directory, Arc::clone(&fleet)));
        let manager_options = Arc::new(settings.manager.clone());
        let manager = TenantManager::new(Arc::clone(&directory), budget.clone(), settings.manager)
            .with_tasks(tasks.clone())
            .start();
        let link = Link::counted(&settings.redis, Arc::clone(&fleet.redis))?;
        let mut lanes = Vec::with_capacity(threads);
        let mut arbiters = Vec::with_capacity(threads);
        let mut pulses = Vec::with_capacity(threads);
        let lanes_stop = CancellationToken::new();
        for thread in 0..threads {
            let arbiter = Arbiter::new();
            let link = Link::counted(&settings.redis, Arc::clone(&fleet.redis))?;
            // The probe runs on the thread whose collectors it wakes.
            let (sender, receiver) = std::sync::mpsc::sync_channel(1);
            let (probe_link, interval) = (link.clone(), settings.collector.idle_backoff_max);
            let pulse = Pulse::default();
            let (beating, tasks, stop) = (pulse.clone(), tasks.clone(), lanes_stop.clone());
            arbiter.spawn_fn(move || {
                let prober = Prober::start(probe_link.clone(), interval, &tasks, thread, stop.clone());
                let lookout = Lookout::start(probe_link, interval, &tasks, thread, stop.clone());
                let _ = sender.send((prober, lookout));
                let beat = move |progress| beating.clone().beat(thread_health::EVERY, progress);
                tasks.keep(TaskName::ThreadPulse, Some(thread), thread_health::EVERY, stop, beat);
            });
            pulses.push(pulse.clone());
            let Ok((prober, lookout)) = receiver.recv_timeout(Duration::from_secs(10)) else {
                return Err(ScheduleError {
                    operation: "start",
                    class: balance_sync_schedule::ErrorClass::Unexpected,
                    message: "a worker thread did not start".to_owned(),
                });
            };
            lanes.push(LaneThread { arbiter: arbiter.handle(), link, prober, lookout, pulse });
            arbiters.push(arbiter);
        }
        let collector = Arc::new(settings.collector);
        let Identity { name, group, version } = settings.identity;
        let own = Arc::new(Own::new(OwnParts {
            name,
            version,
            replicas: settings.partition.as_ref().map(|partition| partition.replicas as u64),
            fleet: Arc::clone(&fleet),
            budget: budget.clone(),
            manager: manager.clone(),
        }));
        let snapshots = Snapshots::new(link.clone(), &group);
        let controls = Controls::new(link.clone());
        let drain_order = DrainOrder::default();
        // Before the first collector is started: none may claim until it is known who is halted.
        let follower = Follower::new(Arc::clone(&own), controls.clone(), key_form, drain_order.clone());
        let publishing = CancellationToken::new();
        let publisher = tasks.keep(TaskName::Publisher, None, publish::TICK, publishing.clone(), {
            let (own, snapshots, stop) = (Arc::clone(&own), snapshots.clone(), publishing.clone());
            move |progress| Publisher::new(Arc::clone(&own), snapshots.clone()).run(stop.clone(), progress)
        });
        let schedule = Arc::new(settings.schedule);
        let inspector = Inspector::of_worker(
            link.clone(),
            key_form,
            Arc::clone(&schedule),
            manager.clone(),
            Arc::clone(&directory),
            manager_options,
        );
        let spawner = LaneSpawner {
            threads: lanes,
            next: 0,
            manager: manager.clone(),
            fleet: Arc::clone(&fleet),
            schedule,
            collector: Arc::clone(&collector),
            key_form,
        };
        let supervisor = Supervisor::new(
            directory,
            Some(manager.clone()),
            Box::new(spawner),
            Arc::clone(&fleet),
            settings.membership,
            settings.supervisor,
        );
        let beside = CancellationToken::new();
        let mut running = Vec::new();
        running.push(tasks.keep(
            TaskName::ActionsFollower,
            None,
            controls::FOLLOWER_INTERVAL,
            beside.clone(),
            {
                let stop = beside.clone();
                move |progress| follower.successor().run(stop.clone(), progress)
            },
        ));
        let every = settings.sample_interval;
        running.push(tasks.keep(TaskName::Sampler, None, every, beside.clone(), {
            let (link, fleet, stop) = (link.clone(), Arc::clone(&fleet), beside.clone());
            move |progress| {
                sampler::run(link.clone(), Arc::clone(&fleet), key_form, every, stop.clone(), progress)
            }
        }));
        let (supervisor, registration) = match settings.partition {
            Some(partition) => {
                let listed = CancellationToken::new();
                let supervisor = supervisor.sharing(listed.clone()).start();
                let running = tasks.keep(TaskName::Partition, None, partition.lease, beside.clone(), {
                    let (link, supervisor, fleet) = (link.clone(), supervisor.clone(), Arc::clone(&fleet));
                    let stop = beside.clone();
                    move |progress| {
                        let partition = Partition::new(
                            partition.clone(),
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
        if let Some(events) = settings.events {
            running.push(tasks.keep(TaskName::TenantEvents, None, events::RETRY_MAX, beside.clone(), {
                let (supervisor, manager, stop) = (supervisor.clone(), manager.clone(), beside.clone());
                move |progress| {
                    let (poll, hint) = (supervisor.clone().recipient(), manager.clone().recipient());
                    events::listen(events.clone(), poll, hint, stop.clone(), progress)
                }
            }));
        }
        running.push(tasks.keep(TaskName::ThreadWatch, None, thread_health::EVERY, beside.clone(), {
            let (poll, fleet, stop) = (supervisor.clone(), Arc::clone(&fleet), beside.clone());
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
        running.push(tasks.keep(TaskName::EvictionWatch, None, EVICTION_LOOK_EVERY, beside.clone(), {
            let (link, fleet, stop) = (link.clone(), Arc::clone(&fleet), beside.clone());
            move |progress| watch_eviction(link.clone(), Arc::clone(&fleet), stop.clone(), progress)
        }));
        Ok(Self {
            supervisor,
            manager,
            fleet,
            budget,
            link,
            arbiters,
            beside: beside.drop_guard(),
            lanes_stop: lanes_stop.drop_guard(),
            running,
            registration,
            own,
            snapshots,
            collector,
            controls,
            inspector,
            key_form,
            drain_order,
            publishing: (publishing.drop_guard(), publisher),
        })
    }

    /// States and counters.
    #[must_use]
    pub fn fleet(&self) -> &Arc<FleetStatus> {
        &self.fleet
    }

    /// Connections per Postgres server.
    #[must_use]
    pub fn budget(&self) -> &ConnectionBudget {
        &self.budget
    }

    /// The tenant manager.
    #[must_use]
    pub fn manager(&self) -> &Addr<TenantManager> {
        &self.manager
    }

    /// A link to Redis for questions beside the collectors'.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// What is known of the whole fleet. A tenant whose oldest due balance is older than the objective counts as behind.
    #[must_use]
    pub fn reader(&self, objective: Duration) -> FleetReader {
        FleetReader::of_worker(
            Arc::clone(&self.own),
            self.snapshots.clone(),
            self.controls.clone(),
            objective,
            Arc::clone(&self.collector),
        )
    }

    /// Looks into one tenant.
    #[must_use]
    pub fn inspector(&self) -> Inspector {
        self.inspector.clone()
    }

    /// Acts for operators, and reads the log of what they did.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator::new(self.controls.clone(), self.key_form)
    }

    /// That an operator wants this worker to drain.
    #[must_use]
    pub fn drain_order(&self) -> DrainOrder {
        self.drain_order.clone()
    }

    /// Polls the tenant list now.
    pub fn poll(&self) {
        // A hint: if the mailbox is full, a poll is under way anyway.
        let _ = self.supervisor.try_send(Poll);
    }

    /// Stops claiming, flushes, releases, closes connections; each within its bound. Reports what was left.
    pub async fn drain(self, close_grace: Duration) -> DrainReport {
        let operator = self.operator();
        // First of all, so that other workers take over while this one still flushes.
        drop(self.beside);
        let report = self.supervisor.send(Drain).await.unwrap_or_default();
        if let Some(action) = self.drain_order.action() {
            let ended = if report.killed.is_empty() { Ended::Done } else { Ended::Failed };
            let detail = told(&report);
            let telling = operator.outcome(&action, &self.own.name, ended, &detail);
            match tokio::time::timeout(TELL_WITHIN, telling).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the drain could not be told in the log of actions"),
                Err(_) => tracing::warn!("the drain could not be told in the log of actions in time"),
            }
        }
        if let Some(registration) = self.registration {
            // It has ended by itself or panicked: either way it is over, and the lease lapses at the latest.
            let _ = registration.await;
        }
        let _ = self.manager.send(CloseAll { grace: close_grace }).await;
        let (publishing, publisher) = self.publishing;
        drop(publishing);
        let _ = publisher.await;
        // They were stopped at the beginning; one that hangs ends with the process.
        let ended = futures::future::join_all(self.running);
        if tokio::time::timeout(TASKS_END_WITHIN, ended).await.is_err() {
            let left: Vec<_> = self.fleet.tasks.reports().iter().map(|task| task.name.name()).collect();
            tracing::warn!(tasks = left.join(", "), "background tasks did not stop in time");
        }
        drop(self.lanes_stop);
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
        report
    }
}

struct LaneThread {
    arbiter: ArbiterHandle,
    link: Link,
    prober: Prober,
    lookout: Lookout,
    pulse: Pulse,
}

/// Starts real collectors, spread over the worker's threads.
pub struct LaneSpawner {
    threads: Vec<LaneThread>,
    next: usize,
    manager: Addr<TenantManager>,
    fleet: Arc<FleetStatus>,
    schedule: Arc<ScheduleOptions>,
    collector: Arc<CollectorOptions>,
    key_form: KeyForm,
}

impl Spawner for LaneSpawner {
    fn spawn(&mut self, incarnation: Incarnation) -> usize {
        // One that moves, if there is any.
        let turn = (self.next..self.next + self.threads.len()).map(|turn| turn % self.threads.len());
        let at = turn.clone().find(|at| !self.is_still(*at)).unwrap_or(self.next % self.threads.len());
        self.next = at + 1;
        let thread = &self.threads[at];
        let tenant = incarnation.tenant.clone();
        let schedules = Schedules::new(&thread.link, tenant.key_spaces(self.key_form), &self.schedule);
        let other = other_key_space(&tenant, self.key_form);
        let queue = RedisQueue::new(schedules, other, thread.prober.clone(), thread.lookout.clone());
        let collector = Collector {
            queue,
            sink: PostgresSink::new(self.manager.clone(), tenant.clone()),
            options: Arc::clone(&self.collector),
            fleet: Arc::clone(&self.fleet),
            status: self.fleet.tenant(&tenant),
        };
        CollectorActor::start_in_arbiter(&thread.arbiter, move |_| {
            CollectorActor::new(incarnation, collector)
        });
        at
    }

    fn is_still(&self, thread: usize) -> bool {
        self.threads.get(thread).is_some_and(|thread| thread.pulse.is_still())
    }
}

/// Says loudly that Redis may throw balances away, as soon as Redis can be asked, and looks again from time to time: the
/// policy may be changed at any moment, and a failover leads to a server with another one.
async fn watch_eviction(link: Link, fleet: Arc<FleetStatus>, stop: CancellationToken, progress: Progress) {
    let mut said: Option<String> = None;
    loop {
        match link.eviction_policy().await {
            Ok(policy) => {
                fleet.redis_may_evict.store(u64::from(policy.is_some()));
                if policy != said {
                    match &policy {
                        Some(policy) => tracing::error!(
                            maxmemory_policy = policy,
                            "redis may evict balances before they are written: set maxmemory-policy to noeviction"
                        ),
                        None => tracing::info!("redis no longer evicts by itself"),
                    }
                    said = policy;
                }
            }
            Err(error) => tracing::debug!(%error, "memory policy of redis not known"),
        }
        progress.beat();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(jittered(EVICTION_LOOK_EVERY)) => {}
        }
    }
}
