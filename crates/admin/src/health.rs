//! `/livez` and `/readyz`: what an orchestrator and a load balancer ask, answered from the fleet's status.
//!
//! *Alive* means that the reconcile loop makes progress and no thread stands still; otherwise only a restart helps. *Ready* means that the
//! numbers of this worker can be relied on. A tenant that can't write makes neither false: others go on, and a restart
//! mends nothing.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_fleet::status::FleetStatus;

/// What is said when all is well, or why it is not.
pub(crate) type Verdict = Result<&'static str, String>;

/// Whether the worker makes progress. `uptime` is the time since the start from which
/// [`FleetStatus::last_pass_ms`] counts.
pub(crate) fn liveness(status: &FleetStatus, uptime: Duration) -> Verdict {
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
            "stuck: {still} of the threads stand still; their tenants have moved to the others"
        ));
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
pub(crate) fn readiness(status: &FleetStatus) -> Verdict {
    if status.is_ready() {
        return Ok("ready");
    }
    let reason = if status.draining.load(Relaxed) {
        "not ready: draining"
    } else {
        "not ready: no reconcile pass has known the tenants yet"
    };
    Err(reason.to_owned())
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03} s", milliseconds / 1000, milliseconds % 1000)
}

#[cfg(test)]
mod tests {
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
    fn a_thread_that_stands_still_is_a_reason_for_a_restart() {
        let status = FleetStatus::default();
        status.pass_bound_ms.store(10_000, Relaxed);
        status.still_threads.store(1, Relaxed);
        assert!(liveness(&status, Duration::ZERO).is_err_and(|reason| reason.contains("1 of the threads")));
        status.still_threads.store(0, Relaxed);
        assert_eq!(liveness(&status, Duration::ZERO), Ok("alive"));
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
