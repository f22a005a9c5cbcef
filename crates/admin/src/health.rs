//! `/livez` and `/readyz`: what an orchestrator and a load balancer ask, answered from the fleet's status.
//!
//! *Alive* means that the reconcile loop and the essential background tasks make progress, the tenant manager runs, and no
//! thread is stalled; otherwise only a restart helps. *Ready* means that the numbers of this worker can be relied on: all background tasks make
//! progress. A tenant that can't write makes neither false: others go on, and a restart
//! mends nothing.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_fleet::status::FleetStatus;

/// What is said when all is well, or why it is not.
pub type Verdict = Result<&'static str, String>;

/// Whether the worker makes progress. `uptime` is the time since the start from which
/// [`FleetStatus::last_pass_ms`] counts.
///
/// # Errors
/// Why it doesn't, as `/livez` answers.
pub fn liveness(status: &FleetStatus, uptime: Duration) -> Verdict {
    if status.draining.load(Relaxed) {
        // No passes are made any more, and the drain has a bound of its own. A restart now would cut it short.
        return Ok("alive: draining");
    }
    let bound = status.pass_bound_ms.load(Relaxed);
    if bound == 0 {
        return Ok("alive: starting");
    }
    let still = status.still_threads.load(Relaxed);
    if still > 0 {
        return Err(format!(
            "stuck: {still} of the threads are stalled; their tenants have moved to the others"
        ));
    }
    if status.manager_ended.load(Relaxed) {
        return Err("stuck: the actor that opens the tenants' databases has ended".to_owned());
    }
    if let Some(task) = status.tasks.stalled().filter(|task| task.name.is_essential()) {
        return Err(format!("stuck: {task}"));
    }
    let uptime = u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX);
    // Before the first pass this is 0, so that a worker that never makes one counts as stuck too.
    let age = uptime.saturating_sub(status.last_pass_ms.load(Relaxed));
    if age <= bound {
        return Ok("alive");
    }
    Err(format!("stuck: the last reconcile pass ended {} ago, the bound is {}", seconds(age), seconds(bound)))
}

/// Whether the worker can be relied on.
///
/// # Errors
/// Why not, as `/readyz` answers.
pub fn readiness(status: &FleetStatus) -> Verdict {
    if status.draining.load(Relaxed) {
        return Err("not ready: draining".to_owned());
    }
    if !status.reconciled.load(Relaxed) {
        return Err("not ready: no reconcile pass has known the tenants yet".to_owned());
    }
    if status.manager_ended.load(Relaxed) {
        return Err("not ready: the actor that opens the tenants' databases has ended".to_owned());
    }
    match status.tasks.stalled() {
        Some(task) => Err(format!("not ready: {task}")),
        None => Ok("ready"),
    }
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03} s", milliseconds / 1000, milliseconds % 1000)
}

#[cfg(test)]
mod tests {
    use balance_sync_fleet::tasks::{Faults, Moment, TaskName};
    use tokio_util::sync::CancellationToken;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn alive_while_the_last_pass_is_young_enough() {
        let status = FleetStatus::default();
        status.pass_bound_ms.store(10_000, Relaxed);
        status.last_pass_ms.store(50_000, Relaxed);
        assert_eq!(liveness(&status, MINUTE), Ok("alive"));

        let late = liveness(&status, MINUTE + Duration::from_millis(1));
        let reason = late.expect_err("one millisecond beyond the bound");
        assert_eq!(reason, "stuck: the last reconcile pass ended 10.001 s ago, the bound is 10.000 s");

        // The pass may have ended after the uptime was taken.
        assert_eq!(liveness(&status, Duration::from_secs(49)), Ok("alive"));
    }

    #[test]
    fn a_worker_without_any_pass_is_stuck_once_the_bound_has_passed_since_its_start() {
        let status = FleetStatus::default();
        assert_eq!(liveness(&status, MINUTE), Ok("alive: starting"), "the bound is not known yet");
        status.pass_bound_ms.store(10_000, Relaxed);
        assert_eq!(liveness(&status, Duration::from_secs(9)), Ok("alive"));
        assert!(liveness(&status, Duration::from_secs(11)).is_err());
    }

    #[test]
    fn a_stalled_thread_is_a_reason_for_a_restart() {
        let status = FleetStatus::default();
        status.pass_bound_ms.store(10_000, Relaxed);
        status.still_threads.store(1, Relaxed);
        assert!(liveness(&status, Duration::ZERO).is_err_and(|reason| reason.contains("1 of the threads")));
        status.still_threads.store(0, Relaxed);
        assert_eq!(liveness(&status, Duration::ZERO), Ok("alive"));
    }

    #[test]
    fn a_manager_that_has_ended_is_a_reason_for_a_restart() {
        let status = FleetStatus::default();
        status.pass_bound_ms.store(10_000, Relaxed);
        status.reconciled.store(true, Relaxed);
        assert_eq!((liveness(&status, Duration::ZERO), readiness(&status)), (Ok("alive"), Ok("ready")));
        status.manager_ended.store(true, Relaxed);
        for verdict in [liveness(&status, Duration::ZERO), readiness(&status)] {
            assert!(verdict.is_err_and(|reason| reason.contains("databases has ended")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_makes_no_progress_is_a_reason_not_to_rely_on_the_worker_and_an_essential_one_to_restart_it()
     {
        tokio::task::LocalSet::new()
            .run_until(async {
                let (status, stop) = (FleetStatus::default(), CancellationToken::new());
                status.pass_bound_ms.store(10_000, Relaxed);
                status.reconciled.store(true, Relaxed);
                let hang = |name| {
                    let second = Duration::from_secs(1);
                    status.tasks.keep(name, None, second, stop.clone(), |_| std::future::pending())
                };
                let _sampler = hang(TaskName::Sampler);
                assert_eq!(readiness(&status), Ok("ready"));
                tokio::time::sleep(2 * MINUTE).await;
                assert!(readiness(&status).is_err_and(|reason| reason.contains("sampler made no progress")));
                assert_eq!(liveness(&status, Duration::ZERO), Ok("alive"), "a restart is not worth it");

                let faults = Faults::default();
                faults.panic(TaskName::ActionsFollower, Moment::Start, u64::MAX);
                status.tasks.inject(faults);
                let _follower = hang(TaskName::ActionsFollower);
                tokio::time::sleep(2 * MINUTE).await;
                let reason = liveness(&status, Duration::ZERO).err().unwrap_or_default();
                assert!(
                    reason.contains("actions_follower made no progress for 120 s, the bound is 63 s"),
                    "{reason}"
                );
                assert!(reason.contains("last because it panicked: a test made"), "{reason}");
                status.draining.store(true, Relaxed);
                assert!(liveness(&status, Duration::ZERO).is_ok());
            })
            .await;
    }

    #[test]
    fn a_drain_is_no_reason_for_a_restart() {
        let status = FleetStatus::default();
        status.pass_bound_ms.store(1, Relaxed);
        assert!(liveness(&status, MINUTE).is_err());
        status.draining.store(true, Relaxed);
        assert!(liveness(&status, MINUTE).is_ok());
    }

    #[test]
    fn ready_between_the_first_pass_and_the_drain() {
        let status = FleetStatus::default();
        assert!(readiness(&status).is_err_and(|reason| reason.contains("no reconcile pass")));
        status.reconciled.store(true, Relaxed);
        assert_eq!(readiness(&status), Ok("ready"));
        status.draining.store(true, Relaxed);
        assert!(readiness(&status).is_err_and(|reason| reason.contains("draining")));
    }
}
