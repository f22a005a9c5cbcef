//! In place of collectors, for a worker that only looks: each tenant that is wanted is shown as such, and nothing is claimed.

use std::sync::Arc;

use super::supervisor::Spawner;
use crate::{
    pipeline::{CollectorEnded, CollectorStarted, Drained, Incarnation},
    plan::Exit,
    status::{FleetStatus, TenantState},
    tasks::TaskName,
};

/// Starts what stands in for collectors.
pub(super) struct ShadowSpawner {
    pub(super) fleet: Arc<FleetStatus>,
}

impl Spawner for ShadowSpawner {
    fn spawn(&mut self, incarnation: Incarnation) -> usize {
        let Incarnation { tenant, epoch, stop, kill, started, ended } = incarnation;
        let status = self.fleet.tenant(&tenant);
        let standing = async move {
            if let Some(supervisor) = started.upgrade() {
                supervisor.do_send(CollectorStarted { tenant: tenant.clone(), epoch });
            }
            status.enter(TenantState::Shadow);
            let exit = tokio::select! {
                () = stop.cancelled() => Exit::Stopped,
                () = kill.cancelled() => Exit::Killed,
            };
            if let Some(supervisor) = ended.upgrade() {
                supervisor.do_send(CollectorEnded { tenant, epoch, exit, drained: Drained::default() });
            }
        };
        // It ends with its token, and does nothing that could fail before.
        drop(self.fleet.tasks.once(TaskName::Collector, standing));
        0
    }
}
