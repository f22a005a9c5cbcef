//! What a failover of Postgres lost is written again.
//!
//! A replica that is promoted, or a server that is restored, may lack what the former primary had acknowledged and what has been
//! removed from the schedule since. Redis still holds the values for as long as they live. So, once per change of a tenant's
//! server, its values are compared with its rows, and what is behind is scheduled again; the collector does the rest.
//!
//! Who notices: each tenant's sink reports the server that its connections lead to ([`Reports`]), and each address that tenants
//! were written at is asked now and then, for tenants that are not written at present. What has been compared is kept in Redis
//! ([`Origins`]), so that it is also noticed by a worker that starts after the failover, and not forgotten by one that ends in the
//! middle.
//!
//! The cost: one read of Redis per tenant when its first connection is opened, one connection per server and [`ASK_EVERY`], and
//! nothing per balance while the server stays. A comparison walks over the keys of Redis once for all tenants concerned, in pages
//! with pauses between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::Addr;
use balance_sync_domain::{BalanceRef, BalanceValue, KeySpace};
use balance_sync_schedule::{
    BalanceKeys, Link, Origins, ScheduleError, ScheduleOptions, Schedules, Written, read_values,
};
use balance_sync_store::{Origin, Row};
use balance_sync_tenants::{KeyForm, Tenant};
use balance_sync_trace::Span;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::tenant_manager::{GetPool, TenantManager, TenantPool};
use crate::{
    pipeline::SinkError,
    status::{FleetStatus, TenantState},
    tasks::{Progress, jittered},
};

/// How often the task shows that it lives.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
/// Balances compared in one call to Redis and one to Postgres.
const PAGE: usize = 500;
/// Pause after each page of keys, and after each page of balances: at most some 100,000 keys and 10,000 balances per second.
const PAUSE: Duration = Duration::from_millis(20);
/// Pause after a page of balances.
const COMPARE_PAUSE: Duration = Duration::from_millis(50);
/// How often an address is asked which server answers there. A check of a failover of tenants that are not written waits so long.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How often it is read from Redis at which addresses tenants were written.
const READ_EVERY: Duration = Duration::from_secs(60);
/// Pause before what failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What sinks report: to which server each tenant's connections lead. A report stays until it has been dealt with, also through a
/// panic of the task.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Arc<Board>);

#[derive(Debug, Default)]
struct Board {
    servers: Mutex<BTreeMap<Tenant, Written>>,
    wake: Notify,
}

impl Reports {
    /// A tenant's connections lead to this server from now on.
    pub(crate) fn report(&self, tenant: &Tenant, origin: &Origin, address: String) {
        let server = Written { origin: origin.as_str().to_owned(), address };
        lock(&self.0.servers).insert(tenant.clone(), server);
        self.0.wake.notify_one();
    }

    fn open(&self) -> BTreeMap<Tenant, Written> {
        lock(&self.0.servers).clone()
    }

    /// A report has been dealt with. A newer one of the same tenant stays.
    fn close(&self, tenant: &Tenant, server: &Written) {
        let mut servers = lock(&self.0.servers);
        if servers.get(tenant) == Some(server) {
            servers.remove(tenant);
        }
    }
}

/// What a comparison needs.
#[derive(Clone)]
pub(crate) struct FailoverCheck {
    pub(crate) link: Link,
    pub(crate) manager: Addr<TenantManager>,
    pub(crate) fleet: Arc<FleetStatus>,
    pub(crate) key_form: KeyForm,
    pub(crate) schedule: Arc<ScheduleOptions>,
}

/// Where tenants were written.
#[derive(Default)]
struct Addresses {
    servers: Vec<(String, Written)>,
    read: Option<Instant>,
    asked: Option<Instant>,
}

/// Why a tenant could not be compared.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Redis(#[from] ScheduleError),
    #[error(transparent)]
    Postgres(#[from] SinkError),
}

/// What a comparison found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Found {
    compared: u64,
    /// Their rows are behind.
    behind: u64,
    /// Of these, those that were not scheduled.
    rescheduled: u64,
    /// They have no row.
    missing: u64,
}

/// A tenant under comparison.
struct Subject {
    tenant: Tenant,
    server: Written,
    schedules: Schedules,
    /// Keys found and not compared yet.
    keys: Vec<Vec<u8>>,
    found: Result<Found, Failure>,
}

impl FailoverCheck {
    /// Compares tenants whose server has changed, until it is stopped.
    pub(crate) async fn run(self, reports: Reports, stop: CancellationToken, progress: Progress) {
        let mut announced = BTreeSet::new();
        let mut pause = INTERVAL;
        let mut written = Addresses::default();
        loop {
            progress.beat();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.ask(&reports, &mut written) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = reports.0.wake.notified() => {}
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            let open = reports.open();
            if open.is_empty() {
                continue;
            }
            let checking = async {
                let pending = self.sort_out(&reports, open, &mut announced).await?;
                self.compare(&reports, pending, &progress).await
            };
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = checking => result,
            };
            if let Err(error) = &result {
                tracing::warn!(%error, "the check after a change of postgres servers is put off");
            }
            let open = reports.open();
            announced.retain(|tenant| open.contains_key(tenant));
            pause = if open.is_empty() { INTERVAL } else { RETRY_AFTER };
        }
    }

    /// Asks the addresses that this worker's tenants were written at which server answers there, if it is time.
    async fn ask(&self, reports: &Reports, known: &mut Addresses) {
        if known.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return;
        }
        known.asked = Some(Instant::now());
        if known.read.is_none_or(|read| read.elapsed() >= READ_EVERY) {
            match Origins::new(self.link.clone()).all().await {
                Ok(all) => (known.servers, known.read) = (all, Some(Instant::now())),
                Err(error) => {
                    tracing::debug!(%error, "former postgres servers not known");
                    return;
                }
            }
        }
        // The tenants at each address that this worker writes.
        let mut addresses: BTreeMap<&str, Vec<(Tenant, &str)>> = BTreeMap::new();
        for (label, Written { origin, address }) in &known.servers {
            let Some(status) = self.fleet.find_by_label(label) else { continue };
            if matches!(status.collector_state().state, TenantState::Idle | TenantState::Syncing) {
                let tenants = addresses.entry(address.as_str()).or_default();
                tenants.push((status.tenant().clone(), origin.as_str()));
            }
        }
        for (address, tenants) in addresses {
            let asked = async {
                let pool = self.pool(&tenants[0].0).await?;
                Ok::<_, SinkError>((pool.database.find_origin().await?, pool.database.address()))
            };
            // An error is the collectors' to report.
            let Ok((Some(origin), found_at)) = asked.instrument(span(&tenants[0].0)).await else { continue };
            // Its settings may have changed.
            if found_at != address {
                continue;
            }
            for (tenant, former) in tenants {
                if former != origin.as_str() {
                    reports.report(&tenant, &origin, found_at.clone());
                    known.read = None;
                }
            }
        }
    }

    async fn pool(&self, tenant: &Tenant) -> Result<TenantPool, SinkError> {
        let ask = GetPool { tenant: tenant.clone(), last: false, span: Span::root("failover check") };
        self.manager.send(ask).await.unwrap_or(Err(SinkError::ManagerGone))
    }

    /// Which of these tenants were written to another server before. Servers that are seen for the first time are stored.
    async fn sort_out(
        &self,
        reports: &Reports,
        open: BTreeMap<Tenant, Written>,
        announced: &mut BTreeSet<Tenant>,
    ) -> Result<Vec<(Tenant, Written)>, ScheduleError> {
        let origins = Origins::new(self.link.clone());
        let labels: Vec<&str> = open.keys().map(Tenant::label).collect();
        let stored = origins.get(&labels).await?;
        // The same server at another address is stored without a comparison too.
        let same = |stored: &Option<Written>, server: &Written| {
            stored.as_ref().is_none_or(|stored| stored.origin == server.origin && stored != server)
        };
        let known: Vec<(&str, &Written)> = open
            .iter()
            .zip(&stored)
            .filter(|((_, server), stored)| same(stored, server))
            .map(|((tenant, server), _)| (tenant.label(), server))
            .collect();
        origins.set(&known).await?;
        let mut changed = Vec::new();
        for ((tenant, server), stored) in open.into_iter().zip(stored) {
            // Another worker serves the others now, and notices by itself.
            let is_served = self.fleet.find(&tenant).is_some();
            match stored {
                Some(stored) if is_served && stored.origin != server.origin => {
                    if announced.insert(tenant.clone()) {
                        tracing::warn!(
                            tenant_id = %tenant, former = stored.origin, now = server.origin,
                            "the tenant's postgres server has changed: its rows are compared with redis"
                        );
                    }
                    changed.push((tenant, server));
                }
                _ => reports.close(&tenant, &server),
            }
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
        let mut subjects: Vec<Subject> = pending
            .into_iter()
            .map(|(tenant, server)| Subject {
                schedules: Schedules::new(&self.link, tenant.key_spaces(self.key_form), &self.schedule),
                keys: Vec::new(),
                found: Ok(Found::default()),
                tenant,
                server,
            })
            .collect();
        let (owners, spaces): (Vec<usize>, Vec<KeySpace>) = subjects
            .iter()
            .enumerate()
            .flat_map(|(n, subject)| subject.schedules.iter().map(move |one| (n, one.space().clone())))
            .unzip();
        let mut keys = BalanceKeys::new(self.link.clone(), spaces);
        while let Some(page) = keys.next().await? {
            for (space, key) in page {
                let subject = &mut subjects[owners[space]];
                subject.keys.push(key);
                if subject.keys.len() == PAGE {
                    self.compare_page(subject).await;
                    progress.beat();
                }
            }
            progress.beat();
            tokio::time::sleep(PAUSE).await;
        }
        for subject in &mut subjects {
            self.compare_page(subject).await;
            progress.beat();
        }
        let mut done = Vec::new();
        for Subject { tenant, server, found, .. } in &subjects {
            match found {
                Ok(found) => {
                    done.push((tenant.label(), server));
                    self.report(tenant, *found);
                }
                Err(error) => {
                    tracing::warn!(tenant_id = %tenant, %error, "rows could not be compared after a change of the postgres server");
                }
            }
        }
        Origins::new(self.link.clone()).set(&done).await?;
        for Subject { tenant, server, .. } in subjects.iter().filter(|subject| subject.found.is_ok()) {
            reports.close(tenant, server);
        }
        Ok(())
    }

    fn report(&self, tenant: &Tenant, found: Found) {
        let Found { compared, behind, rescheduled, missing } = found;
        self.fleet.failover_checks.fetch_add(1, Relaxed);
        self.fleet.failover_behind.fetch_add(behind, Relaxed);
        if behind + missing > 0 {
            tracing::warn!(
                tenant_id = %tenant, compared, behind, rescheduled, missing,
                "the new postgres server lacked what the former one had: scheduled again"
            );
        } else {
            tracing::info!(tenant_id = %tenant, compared, "the new postgres server lacks nothing that redis holds");
        }
    }

    /// Compares the keys that were found, and schedules again what is behind.
    async fn compare_page(&self, subject: &mut Subject) {
        let keys = std::mem::take(&mut subject.keys);
        let Ok(found) = &mut subject.found else { return };
        if keys.is_empty() {
            return;
        }
        let looking = self.look(&subject.tenant, &subject.schedules, &keys);
        match looking.instrument(span(&subject.tenant)).await {
            Ok(page) => {
                found.compared += page.compared;
                found.behind += page.behind;
                found.rescheduled += page.rescheduled;
                found.missing += page.missing;
            }
            Err(error) => subject.found = Err(error),
        }
        tokio::time::sleep(COMPARE_PAUSE).await;
    }

    async fn look(&self, tenant: &Tenant, schedules: &Schedules, keys: &[Vec<u8>]) -> Result<Found, Failure> {
        // The values first: a row that is written meanwhile is not taken for one that is behind.
        let values = read_values(&self.link, keys).await?;
        let mut found = Found::default();
        let balances: Vec<(&[u8], BalanceRef<'_>, BalanceValue)> = keys
            .iter()
            .zip(&values)
            .filter_map(|(key, value)| {
                // What can't be read is the collector's to report.
                let balance = BalanceRef::parse(schedules.of_member(key).space(), key).ok()?;
                let value = BalanceValue::decode(value.as_ref()?).ok()?;
                Some((key.as_slice(), balance, value))
            })
            .collect();
        let rows: Vec<Row<'_>> = balances
            .iter()
            .map(|(_, balance, value)| Row {
                id: value.id,
                organization: balance.organization,
                ledger: balance.ledger,
                available: value.available.as_str(),
                on_hold: value.on_hold.as_str(),
                overdraft_used: value.overdraft_used.as_str(),
                version: value.version,
            })
            .collect();
        let pool = self.pool(tenant).await?;
        let stored = pool.database.versions(&pool.table, &rows).await.map_err(SinkError::from)?;
        let mut behind: Vec<&[u8]> = Vec::new();
        for ((key, _, value), stored) in balances.iter().zip(stored) {
            found.compared += 1;
            match stored {
                None => found.missing += 1,
                Some(version) if version < value.version => behind.push(key),
                Some(_) => {}
            }
        }
        found.behind = behind.len() as u64;
        found.rescheduled = schedules.schedule_again(&behind).await?;
        Ok(found)
    }
}

fn span(tenant: &Tenant) -> tracing::Span {
    tracing::info_span!("tenant", tenant_id = %tenant)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call on the map.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
