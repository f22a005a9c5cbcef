//! What helps, for what the verdict says: one sentence per kind of fault, in the order of the reasons.

use std::collections::BTreeMap;

use balance_sync_fleet::status::TenantState;

use super::judge::{listed, names};
use crate::{
    reader::FleetView,
    rows::{StateView, TenantRow, VanishedView},
};

impl FleetView {
    /// The actions that help, the most urgent first; none while all is well.
    pub(super) fn to_do(&self) -> Vec<String> {
        let mut to_do: Vec<String> = Vec::new();
        if self.redis_error.is_some() {
            to_do.push(
                "Look at Redis and the way to it. Workers go on by themselves when it answers; what Redis still has then is written, \
                 and what it has lost is reported."
                    .to_owned(),
            );
        } else if let Some(error) = &self.writes_refused {
            to_do.push(format!(
                "Make Redis accept writes again ({}); workers go on by themselves.",
                error.class.as_str()
            ));
        } else if self.workers.is_empty() {
            to_do.push("Start a worker, or look at the logs of those that should run.".to_owned());
        }
        if !self.listed {
            to_do.push("Look at the tenant service: without its list no tenant is served.".to_owned());
        }
        to_do.extend(self.for_degraded());
        let rows = |of: &dyn Fn(&TenantRow) -> bool| -> Vec<&TenantRow> {
            self.tenants.iter().filter(|row| of(row)).collect()
        };
        let unserved = rows(&|row| row.state == StateView::Unserved);
        if !unserved.is_empty() && !self.workers.is_empty() && self.writes_refused.is_none() {
            to_do.push(
                "See why the unserved tenants' workers don't take them over: `balance-sync workers`, and the workers' logs."
                    .to_owned(),
            );
        }
        let lost = rows(&|row| {
            row.vanished.as_ref().is_some_and(|open| !VanishedView::is_notice(open))
                || row.unacknowledged_losses() > 0
        });
        if !lost.is_empty() {
            to_do.push(
                "See what was lost and can be restored: `balance-sync audit`, `balance-sync recover`; then acknowledge the rest."
                    .to_owned(),
            );
        }
        let behind = rows(&|row| row.is_behind(self.objective_seconds) && !is_degraded(row));
        if let Some(first) = behind.first() {
            let servers =
                self.workers.iter().filter(|worker| worker.live).flat_map(|worker| &worker.postgres);
            let waiting: u64 = servers.map(|server| server.waiting).sum();
            to_do.push(if waiting > 0 {
                format!(
                    "{waiting} operations wait for a connection: if the Postgres server has room, raise \
                     postgres.connections_per_server or add workers; else wait until the backlog is written."
                )
            } else {
                format!(
                    "Is each flush slow, or are there many? `balance-sync tenants show {}`. A slow server needs help by itself; one with \
                     room takes more connections (postgres.connections_per_tenant) or workers.",
                    first.id
                )
            });
        }
        to_do.extend(self.for_workers());
        let paused = rows(&|row| self.is_forgotten(row));
        if let Some(first) = paused.first() {
            to_do
                .push(format!("Resume what need not be paused: `balance-sync tenants resume {}`.", first.id));
        }
        let quarantined = rows(&|row| row.unacknowledged() > row.unacknowledged_losses());
        if !quarantined.is_empty() {
            to_do.push(format!(
                "Look at what is in quarantine, then retry, drop or acknowledge it: `balance-sync quarantine list` ({}).",
                names(&quarantined)
            ));
        }
        to_do
    }

    /// One sentence for each reason that tenants are degraded for.
    fn for_degraded(&self) -> Vec<String> {
        let mut by_reason: BTreeMap<&str, (&str, Vec<&TenantRow>)> = BTreeMap::new();
        for row in self.tenants.iter().filter(|row| is_degraded(row)) {
            let Some(reason) = row.reason.as_ref().and_then(|reason| reason.known()) else { continue };
            by_reason.entry(reason.as_str()).or_insert((reason.advice().help, vec![])).1.push(row);
        }
        let mut all: Vec<_> = by_reason.into_iter().collect();
        all.sort_by_key(|(_, (_, rows))| std::cmp::Reverse(rows.len()));
        all.into_iter().map(|(reason, (help, _))| format!("{reason}: {help}")).collect()
    }

    /// For what the verdict says of the workers.
    fn for_workers(&self) -> Vec<String> {
        let mut to_do = Vec::new();
        let live: Vec<_> = self.workers.iter().filter(|worker| worker.live && !worker.draining).collect();
        let asks = self.redis_error.is_none() && self.writes_refused.is_none();
        let missing = live.len() < self.objectives.workers && asks;
        if missing || !self.dead_workers.is_empty() {
            to_do.push(match self.dead_workers.first() {
                Some(_) => format!(
                    "Look at log and host of {}; start it again if no other worker took its place.",
                    listed(self.dead_workers.iter().map(|dead| dead.name.as_str()))
                ),
                None => "Start the missing workers: `balance-sync workers` lists those that live.".to_owned(),
            });
        }
        if live
            .iter()
            .any(|worker| matches!(worker.tenant_service.state.as_str(), "failing" | "breaker_open"))
        {
            to_do.push(
                "Look at the tenant service and the way to it; the tenants that it listed last are served meanwhile."
                    .to_owned(),
            );
        }
        let differ = live.windows(2).any(|pair| {
            pair[0].version != pair[1].version
                || pair[0]
                    .settings
                    .iter()
                    .any(|(name, value)| pair[1].settings.get(name).is_some_and(|other| other != value))
        });
        if differ || !self.foreign_workers.is_empty() {
            to_do.push("Finish the rollout, or give all workers the same settings.".to_owned());
        }
        to_do
    }
}

fn is_degraded(row: &TenantRow) -> bool {
    row.state == StateView::Is(TenantState::Degraded)
}
