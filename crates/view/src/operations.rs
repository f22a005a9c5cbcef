//! The operators' side of a worker: it publishes what the worker knows, samples its schedules, and carries out actions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use balance_sync_fleet::{
    PreparedWorker, Worker,
    lifecycle::{DrainReport, WorkerHandles, name::WorkerName},
    tasks::TaskName,
};
use balance_sync_schedule::{Controls, Names, Reports, Rollouts, Snapshots, Timelines};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    actions::{ActionOutcome, Operator},
    follower::{self, DrainRequest, Follower, drain_summary},
    heartbeat::Heartbeat,
    inspector::Inspector,
    local_worker::{LocalWorker, LocalWorkerParts},
    publisher::{self, Publisher},
    queues::{self, QueueOptions, quarantine},
    reader::{FleetReader, Objectives},
    report::recorder::{self, Recorder},
    rollout::RolloutDesk,
    routing::{self, DirectorySource, RoutingLooker},
    sampler,
    timeline::{self, TimelineReader},
};

/// Longest time to log in the log of actions how a drain ended. When Redis doesn't answer within it, that is left out.
const LOG_WITHIN: Duration = Duration::from_secs(2);
/// Longest time for the tasks to end after the drain.
const TASKS_END_WITHIN: Duration = Duration::from_secs(1);

/// Who a worker is among the others.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name, unlike all others'.
    pub name: WorkerName,
    /// The workers that know of each other: those with the same tenants.
    pub group: String,
    /// Its version.
    pub version: String,
}

/// How operators see and reach a worker.
pub struct OperationsSettings {
    /// Under which name.
    pub identity: Identity,
    /// How often what waits in the schedules is sampled.
    pub sample_interval: Duration,
    /// The furthest that workers schedule a member ahead.
    pub reach: Duration,
    /// What the fleet is judged by.
    pub objectives: Objectives,
    /// How the ledger's own queues are looked at; `None` = not at all.
    pub queues: Option<QueueOptions>,
    /// Settings that should be the same on all workers, by their names; those of the worker itself aside.
    pub shared: BTreeMap<String, String>,
    /// The other Redis servers, and where the directory is read that names them; `None` where there is one.
    pub routing: Option<(Arc<RoutingLooker>, Arc<dyn DirectorySource>)>,
}

/// The operators' side of a worker.
pub struct Operations {
    handles: WorkerHandles,
    reports: Reports,
    local: Arc<LocalWorker>,
    snapshots: Snapshots,
    controls: Controls,
    timelines: Timelines,
    inspector: Inspector,
    drain_request: DrainRequest,
    /// Follower, sampler and recorder, and what ends them.
    tasks: (DropGuard, Vec<JoinHandle<()>>),
    /// The publisher and the recorder of timelines, and what ends them. They outlive the collectors so that a drain can be watched.
    watchers: (DropGuard, Vec<JoinHandle<()>>),
}

impl Operations {
    /// Starts it beside a worker that serves no tenant yet: none may be claimed before it is known which are paused.
    #[must_use]
    pub fn start(worker: &PreparedWorker, settings: OperationsSettings) -> Self {
        let handles = worker.handles().clone();
        let OperationsSettings {
            identity: Identity { name, group, version },
            sample_interval,
            reach,
            objectives,
            queues,
            shared,
            routing,
        } = settings;
        let local = Arc::new(LocalWorker::new(LocalWorkerParts {
            name,
            version,
            replicas: handles.replicas.map(|replicas| replicas as u64),
            fleet: Arc::clone(&handles.fleet),
            budget: handles.budget.clone(),
            manager: handles.manager.clone(),
            settings: shared,
            rollout: Arc::clone(&handles.rollout),
        }));
        let (link, key_form, tasks) = (&handles.link, handles.key_form, &handles.fleet.tasks);
        let snapshots = Snapshots::new(link.clone(), &group);
        let names = Names::new(link.clone(), &group);
        let controls = Controls::new(link.clone());
        let timelines = Timelines::new(link.clone(), &group);
        let drain_request = DrainRequest::default();
        let stop = CancellationToken::new();
        let sampling = tasks.keep(TaskName::Sampler, None, sample_interval, stop.clone(), {
            let (link, fleet, stop) = (link.clone(), Arc::clone(&handles.fleet), stop.clone());
            move |progress| {
                sampler::run(
                    link.clone(),
                    Arc::clone(&fleet),
                    key_form,
                    sample_interval,
                    reach,
                    stop.clone(),
                    progress,
                )
            }
        });
        let reports = Reports::new(link.clone(), &group);
        let recorded = reports.clone();
        let make_reader: recorder::MakeReader = {
            let (local, snapshots, handles) = (Arc::clone(&local), snapshots.clone(), handles.clone());
            Arc::new(move || {
                FleetReader::of_worker(
                    Arc::clone(&local),
                    snapshots.clone(),
                    handles.link.clone(),
                    handles.key_form,
                    objectives,
                    Arc::clone(&handles.rollout),
                    Arc::clone(&handles.collector),
                )
            })
        };
        let mut kept = vec![sampling];
        // What a shadow carries out or records would be written.
        if handles.shadow.is_none() {
            let follower =
                Follower::new(Arc::clone(&local), controls.clone(), key_form, drain_request.clone());
            kept.push(tasks.keep(TaskName::ActionsFollower, None, follower::INTERVAL, stop.clone(), {
                let stop = stop.clone();
                move |progress| follower.successor().run(stop.clone(), progress)
            }));
            kept.push(tasks.keep(TaskName::Recorder, None, recorder::LOOK_EVERY, stop.clone(), {
                let (controls, timelines, stop) = (controls.clone(), timelines.clone(), stop.clone());
                move |progress| {
                    Recorder::new(
                        reports.clone(),
                        controls.clone(),
                        timelines.clone(),
                        Arc::clone(&make_reader),
                    )
                    .run(stop.clone(), progress)
                }
            }));
        }
        if let Some((looker, source)) = routing {
            let _ = handles.fleet.routing.set(Arc::clone(looker.routing()));
            let (interval, stop) = (routing::INTERVAL, stop.clone());
            kept.push(tasks.keep(TaskName::RedisDirectory, None, interval, stop.clone(), move |progress| {
                Arc::clone(&looker).run(Arc::clone(&source), stop.clone(), progress)
            }));
        }
        if let Some(options) = queues {
            let (fleet, manager) = (Arc::clone(&handles.fleet), handles.manager.clone());
            let stop_looking = stop.clone();
            let name = TaskName::LedgerQuarantineWatch;
            kept.push(tasks.keep(name, None, quarantine::LONGEST_LOOK, stop.clone(), move |progress| {
                let watch =
                    quarantine::Watch::new(Arc::clone(&fleet), manager.clone(), options.quarantine_interval);
                watch.run(stop_looking.clone(), progress)
            }));
            let (link, fleet, stop) = (link.clone(), Arc::clone(&handles.fleet), stop.clone());
            kept.push(tasks.keep(TaskName::QueueWatch, None, queues::STEP, stop.clone(), move |progress| {
                queues::run(link.clone(), Arc::clone(&fleet), key_form, options, stop.clone(), progress)
            }));
        }
        let publish_stop = CancellationToken::new();
        let publishing = tasks.keep(TaskName::Publisher, None, publisher::TICK, publish_stop.clone(), {
            let (local, snapshots, stop) = (Arc::clone(&local), snapshots.clone(), publish_stop.clone());
            move |progress| {
                Publisher::new(Arc::clone(&local), snapshots.clone(), names.clone())
                    .run(stop.clone(), progress)
            }
        });
        let name = TaskName::Timeline;
        let recording = tasks.keep(name, None, timeline::recorder::OBSERVE_EVERY, publish_stop.clone(), {
            let (local, timelines, stop) = (Arc::clone(&local), timelines.clone(), publish_stop.clone());
            move |progress| {
                timeline::recorder::Recorder::new(Arc::clone(&local), timelines.clone())
                    .run(stop.clone(), progress)
            }
        });
        let inspector = Inspector::of_worker(&handles);
        Self {
            handles,
            reports: recorded,
            local,
            snapshots,
            controls,
            timelines,
            inspector,
            drain_request,
            tasks: (stop.drop_guard(), kept),
            watchers: (publish_stop.drop_guard(), vec![publishing, recording]),
        }
    }

    /// Reads the whole fleet, and judges it by these objectives.
    #[must_use]
    pub fn reader(&self, objectives: Objectives) -> FleetReader {
        FleetReader::of_worker(
            Arc::clone(&self.local),
            self.snapshots.clone(),
            self.handles.link.clone(),
            self.handles.key_form,
            objectives,
            Arc::clone(&self.handles.rollout),
            Arc::clone(&self.handles.collector),
        )
    }

    /// Looks into one tenant.
    #[must_use]
    pub fn inspector(&self) -> Inspector {
        self.inspector.clone()
    }

    /// Acts for operators, and reads the log of their actions.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator::new(self.controls.clone(), self.handles.key_form)
    }

    /// Reads what is kept of the last day.
    #[must_use]
    pub fn timelines(&self) -> TimelineReader {
        TimelineReader::new(self.timelines.clone(), self.operator())
    }

    /// Changes which tenants are served, and reports on it.
    #[must_use]
    pub fn rollout_desk(&self) -> RolloutDesk {
        let rollouts = Rollouts::new(self.handles.link.clone());
        RolloutDesk::new(rollouts, self.reports.clone(), Arc::clone(&self.handles.rollout))
    }

    /// The line with this worker's numbers that its log has once a minute.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat::new(Arc::clone(&self.local))
    }

    /// An operator's request that this worker drain.
    #[must_use]
    pub fn drain_request(&self) -> DrainRequest {
        self.drain_request.clone()
    }

    /// Drains the worker, logs how that ended where an operator asked for it, and ends both; each step within its bound.
    /// Returns what was left.
    pub async fn drain(self, mut worker: Worker, close_grace: Duration) -> DrainReport {
        let operator = self.operator();
        let (stop, tasks) = self.tasks;
        drop(stop);
        let report = worker.stop_collectors().await;
        if let Some(action) = self.drain_request.action() {
            let outcome = if report.killed.is_empty() { ActionOutcome::Done } else { ActionOutcome::Failed };
            let detail = drain_summary(&report);
            let name = self.local.name.current();
            let logging = operator.outcome(&action, &name, outcome, &detail);
            match tokio::time::timeout(LOG_WITHIN, logging).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the end of the drain could not be written to the log of actions");
                }
                Err(_) => {
                    tracing::warn!("the end of the drain could not be written to the log of actions in time");
                }
            }
        }
        worker.close(close_grace).await;
        let (stop, watchers) = self.watchers;
        drop(stop);
        // Both end within a bound of their own.
        futures::future::join_all(watchers).await;
        // They were stopped at the beginning; one that hangs ends with the process.
        if tokio::time::timeout(TASKS_END_WITHIN, futures::future::join_all(tasks)).await.is_err() {
            tracing::warn!("follower, sampler or recorder did not stop in time");
        }
        report
    }
}
