//! What helps, for what the verdict says: one sentence per kind of fault, the most urgent first. Sentences of the verdict that name
//! their action themselves (clocks, the rollout, the ledger's own worker) have none here.

use std::collections::BTreeMap;

use balance_sync_fleet::status::TenantState;

use super::judge::{listed, names};
use crate::{
    reader::FleetView,
    rows::{StateView, TenantRow, VanishedView},
};

/// What the advice of some reasons ends with, for which there is a command.
const REREAD: &str = "re-read credentials";

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
        } else if self.workers.is_empty() && self.shadows.is_empty() {
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
        let gone = rows(&|row| row.values_gone > 0);
        if !gone.is_empty() {
            let paused = rows(&|row| row.values_gone > 0 && row.paused.is_some());
            let resume = match paused.first() {
                Some(first) => format!(
                    " Nothing is decided of a paused tenant: `balance-sync audit --tenant {0}`, or `balance-sync tenants resume {0}`.",
                    first.id
                ),
                None => String::new(),
            };
            to_do.push(format!(
                "Find out what removes values from Redis (INFO stats: evicted_keys, expired_keys; who else writes to it). What is lost is \
                 listed within minutes.{resume}"
            ));
        }
        let behind = rows(&|row| row.is_behind(self.objective_seconds) && !is_degraded(row));
        if let Some(first) = behind.first() {
            let servers =
                self.workers.iter().filter(|worker| worker.live).flat_map(|worker| &worker.postgres);
            let waiting: u64 = servers.clone().map(|server| server.waiting).sum();
            // The limit of all workers is used up: more workers don't help.
            let used_up = servers
                .filter(|server| server.waiting > 0)
                .filter_map(|server| Some((&server.server, server.fleet?)))
                .find(|(_, fleet)| fleet.all >= fleet.budget);
            to_do.push(if let Some((server, fleet)) = used_up {
                format!(
                    "All {} connections that the fleet may have on {server} are in use: if the server has room, raise \
                     postgres.fleet_connections_per_server; more workers don't help.",
                    fleet.budget
                )
            } else if waiting > 0 {
                let (operations, wait) = if waiting == 1 { ("operation", "waits") } else { ("operations", "wait") };
                format!(
                    "{waiting} {operations} {wait} for a connection: if the Postgres server has room, raise \
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
        let said = |(reason, (help, rows)): (&str, (&str, Vec<&TenantRow>))| {
            let command = match rows.first() {
                Some(first) if help.contains(REREAD) => {
                    format!(" By `balance-sync tenants refresh {}`.", first.id)
                }
                _ => String::new(),
            };
            format!("{reason}: {help}{command}")
        };
        all.into_iter().map(said).collect()
    }

    /// For what the verdict says of the workers.
    fn for_workers(&self) -> Vec<String> {
        let mut to_do: Vec<String> = Vec::new();
        let live: Vec<_> = self.workers.iter().filter(|worker| worker.live && !worker.draining).collect();
        let asks = self.redis_error.is_none() && self.writes_refused.is_none();
        let alive = live.len() + self.unreadable_workers.len();
        let missing = alive < self.objectives.workers && asks;
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
                "Look at the tenant service and the way to it; tenants whose settings are known are written meanwhile."
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
        if differ || !self.foreign_workers.is_empty() || !self.unreadable_workers.is_empty() {
            to_do.push("Finish the rollout, or give all workers the same settings.".to_owned());
        }
        to_do
    }
}

fn is_degraded(row: &TenantRow) -> bool {
    row.state == StateView::Is(TenantState::Degraded)
}

#[cfg(test)]
mod tests {
    use balance_sync_fleet::status::Reason;

    use super::super::tests::{served, view};
    use super::*;
    use crate::rows::{DeadWorker, PausedBy};

    /// The only action of this fleet.
    fn only(fleet: &FleetView) -> String {
        let to_do = fleet.overview().to_do;
        assert_eq!(to_do.len(), 1, "{to_do:?}");
        to_do.into_iter().next().unwrap_or_default()
    }

    fn with(tenant: TenantRow) -> FleetView {
        let mut fleet = view(Vec::new());
        fleet.tenants = vec![tenant];
        fleet
    }

    #[test]
    fn a_fleet_that_is_well_needs_nothing() {
        assert_eq!(with(served("acme")).overview().to_do, Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_fault_has_the_action_that_helps() {
        let degraded = TenantRow {
            state: TenantState::Degraded.into(),
            reason: Some(Reason::PostgresCredentials.into()),
            oldest_due_age_seconds: 60.0,
            ..served("acme")
        };
        let said = format!(
            "postgres_credentials: {} By `balance-sync tenants refresh acme`.",
            Reason::PostgresCredentials.advice().help
        );
        assert_eq!(only(&with(degraded)), said, "that it is behind follows from that");

        let mut behind = with(TenantRow { oldest_due_age_seconds: 60.0, ..served("acme") });
        assert!(only(&behind).contains("`balance-sync tenants show acme`"));
        behind.workers[0].postgres = vec![balance_sync_store::ServerUsage {
            server: "db:5432".to_owned(),
            open: 64,
            idle: 0,
            in_use: 64,
            waiting: 12,
            limit: 64,
            opened: 0,
            clock_ahead_ms: None,
            fleet: None,
        }];
        assert!(only(&behind).starts_with("12 operations wait for a connection: "));

        let fleet =
            balance_sync_store::FleetUsage { budget: 90, held: 64, all: 90, workers: 2, short_seconds: 7 };
        behind.workers[0].postgres[0].fleet = Some(fleet);
        assert!(
            only(&behind).starts_with("All 90 connections that the fleet may have on db:5432 are in use: ")
        );

        let set_aside = TenantRow { quarantined: 3, ..served("acme") };
        assert!(only(&with(set_aside)).contains("`balance-sync quarantine list` (acme)"));
        let lost = TenantRow { quarantined: 2, losses: 2, ..served("acme") };
        assert!(only(&with(lost)).contains("`balance-sync recover`"));

        let by = PausedBy { by: "ann".to_owned(), note: None, at: String::new(), age_seconds: 0.0, at_ms: 0 };
        let mut paused = with(TenantRow { paused: Some(by), ..served("acme") });
        assert_eq!(paused.overview().to_do, Vec::<String>::new(), "it was paused a moment ago");
        paused.at = 2.0 * 3_600.0;
        assert!(only(&paused).contains("`balance-sync tenants resume acme`"));
    }

    #[test]
    fn what_concerns_workers_has_its_action_as_well() {
        let mut fleet = with(served("acme"));
        fleet.objectives.workers = 2;
        assert!(only(&fleet).starts_with("Start the missing workers"));
        fleet.dead_workers = vec![DeadWorker {
            name: "w0".to_owned(),
            last_seen_at: String::new(),
            age_seconds: 10.0,
            tenants: 0,
            unserved: 0,
            taken_over_by: Vec::new(),
        }];
        assert!(only(&fleet).contains("log and host of w0"));

        let mut differing = with(served("acme"));
        let mut second = differing.workers[0].clone();
        second.version = "2".to_owned();
        differing.workers.push(second);
        assert!(only(&differing).starts_with("Finish the rollout"));

        let mut failing = with(served("acme"));
        failing.workers[0].tenant_service.state = "failing".to_owned();
        assert!(only(&failing).starts_with("Look at the tenant service"));
    }

    /// A shadow next to the ledger's own worker is as it should be.
    #[test]
    fn shadows_alone_need_no_worker() {
        let mut fleet = with(served("acme"));
        fleet.shadows = std::mem::take(&mut fleet.workers);
        assert_eq!(fleet.overview().to_do, Vec::<String>::new());
        fleet.shadows.clear();
        assert!(only(&fleet).starts_with("Start a worker"));
    }
}
