//! A whole worker whose background tasks panic: it goes on, each in turn, and says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use balance_sync_domain::TenantId;
use balance_sync_fleet::{
    PreparedWorker, Worker, WorkerSettings,
    backends::{ManagerOptions, ShadowOptions},
    lifecycle::{
        SupervisorOptions,
        events::EventSettings,
        partition::{OVERDUE, PartitionSettings},
    },
    pipeline::CollectorOptions,
    plan::Limits,
    tasks::{Faults, Moment, TaskName, TaskState, Tasks},
};
use balance_sync_sandbox::{
    Isolation, Sandbox, SandboxOptions, eventually,
    ledger::{Producer, stored_balances},
};
use balance_sync_schedule::{Endpoint, LinkSettings, ScheduleOptions};
use balance_sync_tenants::{KeyForm, Membership, ServiceDirectory, ServiceSettings, Tenant};
use balance_sync_view::{
    Identity, Operations, OperationsSettings,
    actions::{Action, ActionOutcome},
    queues::QueueOptions,
    reader::Objectives,
};

/// Long, so that a busy machine is no failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the balances' values.
const TTL: Duration = Duration::from_secs(3600);

/// What the fleet is judged by; nothing here depends on it.
const OBJECTIVES: Objectives = Objectives {
    freshness: Duration::from_secs(5),
    exposure: Duration::from_secs(1),
    pause: Duration::from_secs(3_600),
    queue_age: Duration::from_secs(3_600),
    rollout_time: Duration::from_secs(600),
    rollout_mutations: 1_000,
    workers: 0,
};

/// The tasks that a worker keeps, but for the sweeper of connections, which comes and goes with them.
const KEPT: [TaskName; 22] = [
    TaskName::ActionsFollower,
    TaskName::RolloutWatch,
    TaskName::Partition,
    TaskName::ThreadWatch,
    TaskName::ThreadPulse,
    TaskName::Prober,
    TaskName::Tracker,
    TaskName::Standby,
    TaskName::Sampler,
    TaskName::QueueWatch,
    TaskName::LedgerQuarantineWatch,
    TaskName::Publisher,
    TaskName::Recorder,
    TaskName::Timeline,
    TaskName::TenantEvents,
    TaskName::EvictionWatch,
    TaskName::FailoverCheck,
    TaskName::VanishWatch,
    TaskName::VanishRepair,
    TaskName::NeighbourWatch,
    TaskName::LegacyWatch,
    TaskName::RedisWatch,
];

/// Those of a shadow: nothing that claims, repairs, carries out or records.
const KEPT_BY_SHADOW: [TaskName; 11] = [
    TaskName::RolloutWatch,
    TaskName::ThreadWatch,
    TaskName::Sampler,
    TaskName::QueueWatch,
    TaskName::LedgerQuarantineWatch,
    TaskName::Publisher,
    TaskName::Timeline,
    TaskName::TenantEvents,
    TaskName::EvictionWatch,
    TaskName::RedisWatch,
    TaskName::ShadowWatch,
];

struct Bench {
    sandbox: Sandbox,
    producer: Producer,
    worker: Worker,
    operations: Operations,
    faults: Faults,
}

impl Bench {
    async fn start(faults: Faults) -> Self {
        Self::start_as(None, faults).await
    }

    async fn start_as(shadow: Option<ShadowOptions>, faults: Faults) -> Self {
        let isolation = Isolation::Database;
        let options = SandboxOptions { tenants: 1, balances: 1, isolation, ..SandboxOptions::default() };
        let sandbox = Sandbox::start(options).await.unwrap();
        let worker = PreparedWorker::new(settings(&sandbox, shadow, faults.clone())).unwrap();
        let operations = Operations::start(
            &worker,
            OperationsSettings {
                identity: Identity { name: "a".into(), group: "test".to_owned(), version: "1".to_owned() },
                sample_interval: Duration::from_millis(500),
                reach: ScheduleOptions::default().reach(),
                objectives: OBJECTIVES,
                queues: Some(QueueOptions {
                    interval: Duration::from_millis(500),
                    records_per_second: 1000,
                    quarantine_interval: Duration::from_secs(60),
                }),
                shared: BTreeMap::new(),
                routing: None,
            },
        );
        let worker = worker.start();
        let producer = sandbox.producer();
        Self { sandbox, producer, worker, operations, faults }
    }

    fn tasks(&self) -> &Tasks {
        &self.worker.handles().fleet.tasks
    }

    /// Mutates a balance and waits until its row is written.
    async fn serves(&mut self) {
        let version = self.producer.mutate(0, &[0], TTL).await.unwrap()[0];
        let tenant = self.sandbox.tenants().remove(0);
        let pool = self.sandbox.pool(&tenant);
        eventually(PATIENCE, "the row is written", || async {
            let stored = stored_balances(&pool, None).await.map_err(|error| error.to_string())?;
            let found = stored[0].version;
            if found == version { Ok(()) } else { Err(format!("version {found}, not {version}")) }
        })
        .await
        .unwrap();
        pool.close().await;
    }

    /// Waits until so many panics of a task are counted, and all of its kind run.
    async fn survives(&self, name: TaskName, panics: u64) {
        eventually(PATIENCE, "the task runs again", || async {
            let (counted, reports) = (self.tasks().panics(name), self.tasks().reports());
            let mut same = reports.iter().filter(|task| task.name == name).peekable();
            let runs = same.peek().is_some() && same.all(|task| task.running);
            if counted == panics && runs {
                Ok(())
            } else {
                Err(format!("{name}: {counted} panics, {reports:?}"))
            }
        })
        .await
        .unwrap();
    }

    async fn stop(self) {
        let report = self.operations.drain(self.worker, Duration::from_secs(5)).await;
        assert!(report.killed.is_empty() && report.orphaned.is_empty(), "{report:?}");
        self.sandbox.stop().await.unwrap();
    }
}

fn settings(sandbox: &Sandbox, shadow: Option<ShadowOptions>, faults: Faults) -> WorkerSettings {
    let endpoint = Endpoint::new(&LinkSettings::for_url(&sandbox.redis_url())).unwrap();
    let service = sandbox.service();
    let mut directory = ServiceSettings::new(service.base_url().parse().unwrap(), service.api_key().clone());
    directory.allow_plain_http = true;
    let poll_interval = Duration::from_millis(500);
    WorkerSettings {
        directory: Arc::new(ServiceDirectory::new(directory).unwrap()),
        redis: endpoint.clone(),
        schedule: ScheduleOptions::default(),
        collector: CollectorOptions {
            survey_interval: Duration::from_millis(500),
            ..CollectorOptions::default()
        },
        manager: ManagerOptions::default(),
        connections_per_server: 10,
        fleet_connections_per_server: None,
        supervisor: SupervisorOptions {
            poll_interval,
            key_form: KeyForm::AsListed,
            limits: Limits {
                start_concurrency: 4,
                stop_deadline: Duration::from_secs(45),
                crash_delay_min: Duration::from_millis(100),
                crash_delay_max: Duration::from_secs(1),
            },
        },
        membership: Membership::default(),
        threads: 1,
        tracks_schedules: true,
        events: Some(EventSettings { channel: "tenant-events:test:".to_owned(), endpoint }),
        partition: shadow.is_none().then(|| PartitionSettings {
            name: "a".into(),
            group: "test".to_owned(),
            replicas: 2,
            lease: Duration::from_secs(3),
            key_form: KeyForm::AsListed,
            overdue: OVERDUE,
        }),
        freshness_objective: Duration::from_secs(5),
        exposure_objective: Duration::from_secs(1),
        rollout: balance_sync_engine::rollout::Selection::default(),
        shadow,
        faults: Some(faults),
    }
}

#[actix::test]
async fn an_actions_follower_that_panics_before_its_first_read_does_not_keep_tenants_from_being_claimed() {
    let faults = Faults::default();
    faults.panic(TaskName::ActionsFollower, Moment::Start, 1);
    let mut bench = Bench::start(faults).await;
    bench.serves().await;
    bench.survives(TaskName::ActionsFollower, 1).await;
    bench.stop().await;
}

#[actix::test]
async fn each_task_that_panics_at_its_start_and_each_that_is_killed_later_runs_again() {
    let faults = Faults::default();
    for name in KEPT {
        faults.panic(name, Moment::Start, 1);
    }
    let mut bench = Bench::start(faults).await;
    bench.serves().await;
    for name in KEPT {
        bench.survives(name, 1).await;
    }
    for name in KEPT {
        bench.faults.panic(name, Moment::Beat, 1);
        bench.survives(name, 2).await;
        bench.serves().await;
        // And it gets on: it comes to where it reports progress.
        let before = bench.tasks().reports().iter().find(|task| task.name == name).unwrap().progress_at_ms;
        eventually(PATIENCE, "the task makes progress", || async {
            bench.tasks().reports().iter().any(|task| task.name == name && task.progress_at_ms > before)
        })
        .await
        .unwrap();
    }
    assert_eq!(bench.tasks().stalled(), None);
    // And others see it.
    let reader = bench.operations.reader(OBJECTIVES);
    let view = reader.view().await;
    let tasks = &view.workers[0].background_tasks;
    assert_eq!(tasks.len(), KEPT.len());
    assert!(
        tasks.iter().all(|task| task.state == TaskState::Running && task.restarts_total == 2),
        "{tasks:?}"
    );
    bench.stop().await;
}

#[actix::test]
async fn a_shadow_keeps_no_task_that_claims_or_writes_and_its_own_run_again() {
    let options = ShadowOptions { balances_per_second: 100, compare_interval: Duration::from_secs(1) };
    let bench = Bench::start_as(Some(options), Faults::default()).await;
    let names = || -> BTreeSet<TaskName> {
        bench
            .tasks()
            .reports()
            .iter()
            .map(|task| task.name)
            .filter(|name| *name != TaskName::ConnectionSweeper)
            .collect()
    };
    eventually(PATIENCE, "all its tasks", || async { names().len() >= KEPT_BY_SHADOW.len() }).await.unwrap();
    assert_eq!(names(), BTreeSet::from(KEPT_BY_SHADOW));
    for name in KEPT_BY_SHADOW {
        bench.faults.panic(name, Moment::Beat, 1);
        bench.survives(name, 1).await;
    }
    // And it still sees its tenant.
    let tenant = Tenant::Id(TenantId::parse(&bench.sandbox.tenants()[0].id).unwrap());
    let fleet = &bench.worker.handles().fleet;
    eventually(PATIENCE, "a whole comparison", || async {
        let compared =
            fleet.find(&tenant).and_then(|status| status.shadow()).and_then(|found| found.compared_at);
        compared.is_some()
    })
    .await
    .unwrap();
    bench.stop().await;
}

#[actix::test]
async fn an_action_given_while_the_follower_is_down_is_carried_out_when_it_is_back() {
    let mut bench = Bench::start(Faults::default()).await;
    bench.serves().await;
    let name = TaskName::ActionsFollower;
    bench.faults.panic(name, Moment::Start, u64::MAX);
    bench.faults.panic(name, Moment::Beat, 1);
    eventually(PATIENCE, "it is down", || async { bench.tasks().panics(name) > 1 }).await.unwrap();
    let operator = bench.operations.operator();
    let tenant = Tenant::Id(TenantId::parse(&bench.sandbox.tenants()[0].id).unwrap());
    let id = operator.tenant(Action::Flush, &tenant, "a test", None).await.unwrap();
    bench.faults.panic(name, Moment::Start, 0);
    let outcome = eventually(PATIENCE, "the outcome is written down", || async {
        let (_, actions) = operator.actions(None, 1, 10).await.ok()?;
        actions.into_iter().find(|action| action.id == id)?.outcomes.into_iter().next()
    })
    .await
    .unwrap();
    assert_eq!(outcome.outcome, ActionOutcome::Done, "{outcome:?}");
    bench.stop().await;
}

#[actix::test]
async fn what_runs_once_and_panics_is_counted_and_tried_again_or_reported() {
    let faults = Faults::default();
    for name in [TaskName::TenantPoll, TaskName::SettingsLookup] {
        faults.panic(name, Moment::Start, 1);
    }
    let mut bench = Bench::start(faults).await;
    bench.serves().await;
    for name in [TaskName::TenantPoll, TaskName::SettingsLookup] {
        assert_eq!(bench.tasks().panics(name), 1, "{name}");
    }

    bench.faults.panic(TaskName::Action, Moment::Start, 1);
    let operator = bench.operations.operator();
    let tenant = Tenant::Id(TenantId::parse(&bench.sandbox.tenants()[0].id).unwrap());
    let id = operator.tenant(Action::Flush, &tenant, "a test", None).await.unwrap();
    let outcome = eventually(PATIENCE, "the outcome is written down", || async {
        let (_, actions) = operator.actions(None, 1, 10).await.ok()?;
        actions.into_iter().find(|action| action.id == id)?.outcomes.into_iter().next()
    })
    .await
    .unwrap();
    assert_eq!(outcome.outcome, ActionOutcome::Failed);
    assert!(outcome.detail.as_deref().is_some_and(|detail| detail.contains("panicked")), "{outcome:?}");
    assert_eq!(bench.tasks().panics(TaskName::Action), 1);
    bench.stop().await;
}
