//! What a failover of Postgres lost is written again.
//!
//! A replica that is promoted, or a server that is restored, may lack what the former primary had acknowledged and what has been
//! removed from the schedule since. Redis still holds the values for as long as they live. So, once per change of a tenant's
//! server, its values are compared with its rows, and what is behind or has no row is scheduled again; the collector does the
//! rest: it writes what is behind, and puts what has no row in quarantine, where each balance is listed.
//!
//! Who notices: each tenant's sink reports the server that its connections lead to ([`Reports`]), and each address that tenants
//! were written at is asked now and then, for tenants that are not written at present. What has been compared is kept in Redis
//! ([`Origins`]), so that it is also noticed by a worker that starts after the failover, and not forgotten by one that ends in the
//! middle.
//!
//! The cost: one read of Redis per tenant when its first connection is opened, one connection per server and [`ASK_EVERY`] (behind a pooler, to one of its databases in turn), and
//! nothing per balance while the server stays. A comparison walks over the keys of Redis once for all tenants concerned, in pages
//! with pauses between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_engine::reason::Reason;
use balance_sync_schedule::{Origins, ScheduleError, Written};
use balance_sync_store::Origin;
use balance_sync_tenants::Tenant;
use futures::StreamExt as _;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::comparison::{Compared, Comparison, WithoutRow, span};
use crate::{
    pipeline::SinkError,
    status::{FleetStatus, TenantState},
    tasks::{Progress, jittered},
};

/// Longest time between two signs of life: a statement that the server doesn't answer is given up before.
pub(crate) const INTERVAL: Duration = Duration::from_secs(30);
/// How often it is looked whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often an address is asked which server answers there. A check of a failover of tenants that are not written waits so long.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Servers that are asked at the same time: one that gives no answer keeps no other waiting.
const ASKED_AT_ONCE: usize = 16;
/// How often it is read from Redis at which addresses tenants were written.
const READ_EVERY: Duration = Duration::from_secs(60);
/// Between the first report and the comparison: the tenants of a server reconnect one after the other.
const GATHER: Duration = Duration::from_millis(500);
/// How long it is shown that a tenant is yet to be compared, if the comparison doesn't end that.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long it stays shown after a comparison that found balances without a row: until they are in quarantine.
const QUARANTINED_WITHIN: Duration = Duration::from_secs(10);
/// Pause before what failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What sinks report: to which server each tenant's connections lead. A report stays until it has been dealt with, also through a
/// panic of the task.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Arc<Board>);

#[derive(Debug, Default)]
struct Board {
    reports: Mutex<BTreeMap<Tenant, Report>>,
    wake: Notify,
}

/// Where a tenant's connections lead.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Report {
    server: Written,
    /// They led to another server before, as this worker has seen itself.
    changed: bool,
}

impl Reports {
    /// A tenant's connections lead to this server from now on. `changed` = to another one than before.
    pub(crate) fn report(&self, tenant: &Tenant, origin: &Origin, address: String, changed: bool) {
        let server = Written { origin: origin.as_str().to_owned(), address };
        let mut reports = lock(&self.0.reports);
        let changed = changed || reports.get(tenant).is_some_and(|report| report.changed);
        reports.insert(tenant.clone(), Report { server, changed });
        drop(reports);
        self.0.wake.notify_one();
    }

    fn open(&self) -> BTreeMap<Tenant, Report> {
        lock(&self.0.reports).clone()
    }

    /// A report has been dealt with. A newer one of the same tenant stays.
    fn close(&self, tenant: &Tenant, server: &Written) {
        let mut reports = lock(&self.0.reports);
        if reports.get(tenant).is_some_and(|report| report.server == *server) {
            reports.remove(tenant);
        }
    }
}

/// The check, with what it needs.
#[derive(Clone)]
pub(crate) struct FailoverCheck {
    pub(crate) comparison: Comparison,
    pub(crate) fleet: Arc<FleetStatus>,
}

/// Where tenants were written, by address. Tenants share the few texts there are.
#[derive(Default)]
struct Addresses {
    tenants: BTreeMap<Arc<str>, Vec<(String, Arc<str>)>>,
    read: Option<Instant>,
    asked: Option<Instant>,
    /// Rounds so far: of the addresses of one server another one is asked in each.
    round: usize,
}

impl Addresses {
    fn take(&mut self, all: Vec<(String, Written)>) {
        let mut texts: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut shared = |text: String| match texts.get(text.as_str()) {
            Some(known) => Arc::clone(known),
            None => {
                let text: Arc<str> = text.into();
                texts.insert(Arc::clone(&text));
                text
            }
        };
        self.tenants.clear();
        for (label, Written { origin, address }) in all {
            self.tenants.entry(shared(address)).or_default().push((label, shared(origin)));
        }
        self.read = Some(Instant::now());
    }

    /// The addresses on each server. Where connections are direct there is one; behind a pooler each database has its own.
    fn by_server(&self) -> BTreeMap<&str, Vec<&Arc<str>>> {
        let mut servers: BTreeMap<&str, Vec<&Arc<str>>> = BTreeMap::new();
        for address in self.tenants.keys() {
            servers.entry(server_of(address)).or_default().push(address);
        }
        servers
    }
}

/// `host:port` of an address.
fn server_of(address: &str) -> &str {
    // A socket's folder has slashes too.
    match address.rsplit_once('/') {
        Some((server, _)) if server.contains(':') => server,
        _ => address,
    }
}

impl FailoverCheck {
    /// Compares tenants whose server has changed, until it is stopped.
    pub(crate) async fn run(self, reports: Reports, stop: CancellationToken, progress: Progress) {
        let mut announced = BTreeSet::new();
        let mut pause = LOOK_EVERY;
        let mut written = Addresses::default();
        loop {
            progress.beat();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.ask(&reports, &mut written, &progress) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = reports.0.wake.notified() => {}
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            if reports.open().is_empty() {
                continue;
            }
            let checking = async {
                let pending = self.sort_out(&reports, reports.open(), &mut announced).await?;
                if pending.is_empty() {
                    return Ok(());
                }
                tokio::time::sleep(GATHER).await;
                let pending = self.sort_out(&reports, reports.open(), &mut announced).await?;
                self.compare(&reports, pending, &progress).await
            };
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = checking => result,
            };
            if let Err(error) = &result {
                tracing::warn!(%error, "the check after a change of postgres servers is put off");
            }
            // What was stored is asked about from now on.
            written.read = None;
            let open = reports.open();
            announced.retain(|tenant| open.contains_key(tenant));
            pause = if open.is_empty() { LOOK_EVERY } else { RETRY_AFTER };
        }
    }

    /// Asks which server answers at the addresses that this worker's tenants were written at, if it is time: of each server one
    /// address, and all of them if that one has changed.
    async fn ask(&self, reports: &Reports, known: &mut Addresses, progress: &Progress) {
        if known.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return;
        }
        known.asked = Some(Instant::now());
        if known.read.is_none_or(|read| read.elapsed() >= READ_EVERY) {
            match Origins::new(self.comparison.link.clone()).all().await {
                Ok(all) => known.take(all),
                Err(error) => {
                    tracing::debug!(%error, "former postgres servers not known");
                    return;
                }
            }
        }
        let (round, known_now) = (known.round, &*known);
        let asking = futures::stream::iter(known.by_server()).map(|(_, addresses)| async move {
            let first = round % addresses.len();
            let mut changed = false;
            for at in (first..addresses.len()).chain(0..first) {
                let Some(found) = self.ask_one(reports, known_now, addresses[at]).await else { continue };
                progress.beat();
                changed |= found;
                if !found {
                    break;
                }
            }
            changed
        });
        let changed =
            asking.buffer_unordered(ASKED_AT_ONCE).fold(false, async |any, changed| any | changed).await;
        known.round = known.round.wrapping_add(1);
        if changed {
            known.read = None;
        }
    }

    /// Asks one address, and reports the tenants that were written to another server there, or at another address; whether there
    /// are any. `None` = this worker writes no tenant there.
    async fn ask_one(&self, reports: &Reports, known: &Addresses, address: &Arc<str>) -> Option<bool> {
        // Those that this worker writes.
        let written = known.tenants.get(address).into_iter().flatten().filter_map(|(label, origin)| {
            let status = self.fleet.find_by_label(label)?;
            let state = status.collector_state().state;
            let writes = matches!(state, TenantState::Idle | TenantState::Syncing);
            writes.then(|| (status.tenant().clone(), origin))
        });
        let mut tenants: Vec<(Tenant, &Arc<str>)> = written.collect();
        let (first, _) = tenants.first()?;
        let asked = async {
            let pool = self.comparison.pool(first).await?;
            Ok::<_, SinkError>((pool.database.find_origin().await?, pool.database.address()))
        };
        // An error is the collectors' to report.
        let Ok((Some(origin), found_at)) = asked.instrument(span(first)).await else { return Some(false) };
        let mut changed = false;
        if found_at != **address {
            // Its settings have changed, or only now it is known that nothing stands between. That says nothing of the others.
            tenants.truncate(1);
            changed = true;
        }
        for (tenant, former) in tenants {
            if changed || **former != *origin.as_str() {
                reports.report(&tenant, &origin, found_at.clone(), false);
                changed = true;
            }
        }
        Some(changed)
    }

    /// Which of these tenants were written to another server before. Servers that are seen for the first time are stored.
    async fn sort_out(
        &self,
        reports: &Reports,
        open: BTreeMap<Tenant, Report>,
        announced: &mut BTreeSet<Tenant>,
    ) -> Result<Vec<(Tenant, Written)>, ScheduleError> {
        let origins = Origins::new(self.comparison.link.clone());
        let labels: Vec<&str> = open.keys().map(Tenant::label).collect();
        let stored = origins.get(&labels).await?;
        let (mut changed, mut known) = (Vec::new(), Vec::new());
        for ((tenant, Report { server, changed: seen }), stored) in open.into_iter().zip(stored) {
            let is_other = seen || stored.as_ref().is_some_and(|stored| stored.origin != server.origin);
            // Another worker serves the others now, and notices by itself.
            match self.fleet.find(&tenant) {
                Some(status) if is_other => {
                    let former = stored.map_or_else(|| "another server".to_owned(), |stored| stored.origin);
                    // Until its rows are compared, it is not known what they lack.
                    let detail = format!("{former} answered before, and now {}", server.origin);
                    status.notice(Reason::PostgresReplaced, detail, LONGEST);
                    if announced.insert(tenant.clone()) {
                        tracing::warn!(
                            tenant_id = %tenant, former, now = server.origin,
                            "the tenant's postgres server has changed: its rows are compared with redis"
                        );
                    }
                    changed.push((tenant, server));
                }
                // The same server at another address is stored as well.
                _ if !is_other && stored.as_ref() != Some(&server) => known.push((tenant, server)),
                _ => reports.close(&tenant, &server),
            }
        }
        let first: Vec<(&str, &Written)> =
            known.iter().map(|(tenant, server)| (tenant.label(), server)).collect();
        origins.set(&first).await?;
        for (tenant, server) in &known {
            reports.close(tenant, server);
        }
        Ok(changed)
    }

    /// Compares these tenants, and closes the reports of those that are done.
    async fn compare(
        &self,
        reports: &Reports,
        pending: Vec<(Tenant, Written)>,
        progress: &Progress,
    ) -> Result<(), ScheduleError> {
        if pending.is_empty() {
            return Ok(());
        }
        let tenants = pending
            .iter()
            .map(|(tenant, server)| (tenant.clone(), server_of(&server.address).to_owned()))
            .collect();
        let found = self.comparison.walk(tenants, WithoutRow::ScheduleAgain, progress).await?;
        let mut done = Vec::new();
        for ((tenant, server), found) in pending.iter().zip(found) {
            match found {
                Ok(found) => {
                    done.push((tenant, server, found.without_row));
                    self.report(tenant, found);
                }
                Err(error) => {
                    tracing::warn!(tenant_id = %tenant, %error, "rows could not be compared after a change of the postgres server");
                }
            }
        }
        let stored: Vec<(&str, &Written)> =
            done.iter().map(|(tenant, server, _)| (tenant.label(), *server)).collect();
        Origins::new(self.comparison.link.clone()).set(&stored).await?;
        for (tenant, server, without_row) in done {
            reports.close(tenant, server);
            match self.fleet.find(tenant) {
                Some(status) if without_row > 0 => {
                    let detail =
                        format!("{without_row} balances have no row on it, and are put in quarantine");
                    status.notice(Reason::PostgresReplaced, detail, QUARANTINED_WITHIN);
                }
                Some(status) => status.end_notice(Reason::PostgresReplaced),
                None => {}
            }
        }
        Ok(())
    }

    fn report(&self, tenant: &Tenant, found: Compared) {
        let Compared { compared, behind, rescheduled, without_row, .. } = found;
        self.fleet.failover_checks.fetch_add(1, Relaxed);
        self.fleet.failover_behind.fetch_add(behind + without_row, Relaxed);
        if let Some(status) = self.fleet.find(tenant) {
            status.rescheduled.fetch_add(rescheduled, Relaxed);
        }
        if behind + without_row > 0 {
            tracing::warn!(
                tenant_id = %tenant, compared, behind, rescheduled, without_row,
                "the new postgres server lacked what the former one had: scheduled again, and without a row for quarantine"
            );
        } else {
            tracing::info!(tenant_id = %tenant, compared, "the new postgres server lacks nothing that redis holds");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call on the map.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_server() {
        for (address, server) in [
            ("db.internal:5432", "db.internal:5432"),
            ("pooler:6432/ledger_a", "pooler:6432"),
            ("fd00::7:5432/ledger", "fd00::7:5432"),
            ("/run/postgresql:5432", "/run/postgresql:5432"),
            ("/run/postgresql:5432/ledger", "/run/postgresql:5432"),
        ] {
            assert_eq!(server_of(address), server);
        }
        let written = |label: &str, address: &str| {
            (label.to_owned(), Written { origin: "1".to_owned(), address: address.to_owned() })
        };
        let mut known = Addresses::default();
        known.take(vec![
            written("a", "p:1/a"),
            written("b", "p:1/b"),
            written("c", "d:2"),
            written("e", "d:2"),
        ]);
        let servers: Vec<(&str, usize)> =
            known.by_server().into_iter().map(|(server, addresses)| (server, addresses.len())).collect();
        assert_eq!(servers, [("d:2", 1), ("p:1", 2)]);
    }
}
