//! Follows which tenants this fleet serves, as operators have set it at run time (`docs/decisions/0036-rollout.md`).
//!
//! What is stored in Redis wins over the configuration. What can't be read leaves in force what was known; a worker that
//! knows nothing yet serves no tenant until it has read it.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::prelude::*;
use balance_sync_engine::rollout::Selection;
use balance_sync_schedule::{Link, Rollouts};
use tokio_util::sync::CancellationToken;

use crate::{
    status::{FleetStatus, Rollout, TenantState},
    tasks::Progress,
};

/// Time between two looks.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// Tells the supervisor that other tenants may be selected.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct RolloutChanged;

/// Follows what is stored.
pub(crate) struct RolloutWatch {
    rollouts: Rollouts,
    configured: Arc<Selection>,
    fleet: Arc<FleetStatus>,
    changed: Recipient<RolloutChanged>,
}

impl RolloutWatch {
    pub(crate) fn new(
        link: Link,
        configured: Arc<Selection>,
        fleet: Arc<FleetStatus>,
        changed: Recipient<RolloutChanged>,
    ) -> Self {
        Self { rollouts: Rollouts::new(link), configured, fleet, changed }
    }

    /// Runs until it is stopped.
    pub(crate) async fn run(self, stop: CancellationToken, progress: Progress) {
        let following = async {
            // One that goes on after a panic may have told nobody.
            let mut told = false;
            loop {
                told &= !self.look().await;
                if !told && let Some(now) = self.fleet.rollout.current() {
                    self.apply();
                    told = self.changed.send(RolloutChanged).await.is_ok();
                    if told {
                        self.fleet.rollout.apply(now.revision());
                    }
                }
                progress.beat();
                tokio::time::sleep(INTERVAL).await;
            }
        };
        stop.run_until_cancelled(following).await;
    }

    /// Reads what is stored; returns whether another rollout is in force now.
    async fn look(&self) -> bool {
        let rollout = &self.fleet.rollout;
        match self.rollouts.read().await {
            Ok(stored) => match Rollout::in_force(stored, &self.configured) {
                Ok(next) => {
                    let changed = rollout.replace(next);
                    if changed && let Some(now) = rollout.current() {
                        let (revision, selection) = (now.revision(), &now.selection);
                        let by = now.stored.as_ref().map(|stored| stored.by.as_str());
                        tracing::info!(revision, by, %selection, configured = now.is_configured(), "rollout in force");
                    }
                    changed
                }
                Err(problem) => {
                    self.report(&problem);
                    false
                }
            },
            Err(error) => {
                if error.is_transient() {
                    tracing::debug!(%error, "the rollout can't be read");
                } else {
                    self.report(&error.to_string());
                }
                if rollout.is_unknown() {
                    self.fleet.each(|status| {
                        let state = status.collector_state().state;
                        if matches!(state, TenantState::Starting | TenantState::Degraded) {
                            status.degrade(error.class.reason(), error.to_string());
                        }
                    });
                }
                false
            }
        }
    }

    fn report(&self, problem: &str) {
        let rollout = &self.fleet.rollout;
        if rollout.problem().as_deref() != Some(problem) {
            match rollout.current() {
                Some(known) => tracing::warn!(
                    problem,
                    revision = known.revision(),
                    "the stored rollout can't be followed, the last known one stays in force"
                ),
                None => {
                    tracing::warn!(
                        problem,
                        "the stored rollout can't be followed, no tenant is served until it can"
                    );
                }
            }
        }
        rollout.report(Some(problem.to_owned()));
    }

    /// Has the collectors claim or not.
    fn apply(&self) {
        self.fleet.each(|status| {
            let withheld = !self.fleet.rollout.serves(status.tenant());
            if status.withheld.swap(withheld, Relaxed) != withheld {
                status.requests.recheck();
            }
        });
    }
}
