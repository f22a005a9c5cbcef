#![allow(clippy::unwrap_used)]
use std::{cell::Cell, rc::Rc};

use tokio::task::LocalSet;

use super::*;

const NAME: TaskName = TaskName::ActionsFollower;
const EVERY: Duration = Duration::from_secs(1);

/// A task that beats once per [`EVERY`].
async fn beat(progress: Progress, stop: CancellationToken) {
    let beating = async {
        loop {
            progress.beat();
            tokio::time::sleep(EVERY).await;
        }
    };
    let _: Option<()> = stop.run_until_cancelled(beating).await;
}

fn keep(tasks: &Tasks, stop: &CancellationToken) -> JoinHandle<()> {
    let ends = stop.clone();
    tasks.keep(NAME, None, EVERY, stop.clone(), move |progress| beat(progress, ends.clone()))
}

fn only(tasks: &Tasks) -> TaskReport {
    let reports = tasks.reports();
    assert_eq!(reports.len(), 1);
    reports.into_iter().next().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_kept_task_that_panics_before_anything_else_starts_again() {
    LocalSet::new()
        .run_until(async {
            let (tasks, stop, faults) = (Tasks::default(), CancellationToken::new(), Faults::default());
            faults.panic(NAME, Moment::Start, 3);
            tasks.inject(faults.clone());
            let running = keep(&tasks, &stop);
            tokio::time::sleep(5 * EVERY).await;
            let report = only(&tasks);
            assert_eq!((faults.left(NAME, Moment::Start), tasks.panics(NAME)), (0, 3));
            assert_eq!((report.running, report.restarts), (true, 3));
            assert!(report.idle_for <= EVERY, "{report}");
            assert_eq!(tasks.stalled(), None);
            let end = report.last_end.unwrap();
            assert_eq!(end, "panicked: a test made the task actions_follower panic");

            stop.cancel();
            running.await.unwrap();
            assert_eq!(tasks.reports(), []);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_whenever_it_starts_is_stalled_after_its_bound_and_tried_less_and_less_often() {
    LocalSet::new()
        .run_until(async {
            let (tasks, stop, faults) = (Tasks::default(), CancellationToken::new(), Faults::default());
            faults.panic(NAME, Moment::Start, u64::MAX);
            tasks.inject(faults);
            let running = keep(&tasks, &stop);
            tokio::time::sleep(only(&tasks).bound).await;
            assert_eq!(tasks.stalled(), None);
            tokio::time::sleep(EVERY).await;
            let stalled = tasks.stalled().unwrap();
            assert_eq!(stalled.name, NAME);
            let before = tasks.panics(NAME);
            tokio::time::sleep(Duration::from_secs(600)).await;
            assert!((20..=42).contains(&(tasks.panics(NAME) - before)), "{}", tasks.panics(NAME) - before);
            // Also while it waits to start again.
            stop.cancel();
            running.await.unwrap();
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_hangs_is_stalled_and_one_that_waits_is_not() {
    LocalSet::new()
        .run_until(async {
            let (tasks, stop) = (Tasks::default(), CancellationToken::new());
            let _hanging = tasks.keep(TaskName::Sampler, None, EVERY, stop.clone(), async |_: Progress| {
                std::future::pending().await
            });
            let _waiting =
                tasks.keep(TaskName::Prober, Some(1), EVERY, stop.clone(), async |progress: Progress| {
                    progress.waiting(std::future::pending()).await
                });
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let stalled = tasks.stalled().unwrap();
            assert_eq!(stalled.name, TaskName::Sampler);
            assert!(tasks.reports().iter().any(|task| task.name == TaskName::Prober && !task.is_stalled()));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_essential_task_is_named_before_others() {
    LocalSet::new()
        .run_until(async {
            let (tasks, stop) = (Tasks::default(), CancellationToken::new());
            for name in [TaskName::Sampler, TaskName::Partition, TaskName::Publisher] {
                let hang = async |_: Progress| std::future::pending().await;
                drop(tasks.keep(name, None, EVERY, stop.clone(), hang));
            }
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(tasks.stalled().unwrap().name, TaskName::Partition);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_returns_early_starts_again_and_a_long_run_forgives_what_was_before() {
    LocalSet::new()
        .run_until(async {
            let (tasks, stop) = (Tasks::default(), CancellationToken::new());
            let runs = Rc::new(Cell::new(0_u32));
            let counted = Rc::clone(&runs);
            let _running = tasks.keep(NAME, None, EVERY, stop.clone(), move |_| {
                counted.set(counted.get() + 1);
                // The twentieth lasts.
                tokio::time::sleep(if counted.get() == 20 { 2 * HEALTHY_AFTER } else { Duration::ZERO })
            });
            while runs.get() < 20 {
                tokio::time::sleep(EVERY).await;
            }
            assert_eq!(only(&tasks).last_end.unwrap(), "returned early");
            tokio::time::sleep(2 * HEALTHY_AFTER + RESTART_MIN).await;
            assert!(runs.get() >= 21, "it starts again after the first delay");
            assert_eq!(tasks.panics(NAME), 0);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_what_runs_once_is_counted_whether_a_caller_waits_or_not() {
    LocalSet::new()
        .run_until(async {
            let tasks = Tasks::default();
            assert_eq!(tasks.once(TaskName::Action, async { 7 }).await.unwrap(), Ok(7));
            let ended = tasks.once(TaskName::Action, async { panic!("in here") });
            assert_eq!(ended.await.unwrap(), Err::<(), _>(Panicked));
            drop(tasks.once(TaskName::Action, async { panic!("and in here") }));
            tokio::time::sleep(EVERY).await;
            assert_eq!((tasks.panics(TaskName::Action), tasks.panics(TaskName::TenantPoll)), (2, 0));
        })
        .await;
}

#[test]
fn names_are_unlike_each_other() {
    let names: std::collections::BTreeSet<_> = TaskName::ALL.iter().map(|name| name.name()).collect();
    assert_eq!(names.len(), TaskName::ALL.len());
}
