//! Keeps this worker registered in Redis among the others, and hands its share of the tenants to the supervisor.
//!
//! What to do when, which list of workers is believed and which tenants are adopted is decided by
//! [`balance_sync_engine::registration`], who owns whom by [`balance_sync_engine::partition`]; here are the calls. It only saves
//! work: claims keep it correct when two lists differ for a moment (`docs/decisions/0007-partition.md`).

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::prelude::*;
pub use balance_sync_engine::partition::owners;
use balance_sync_engine::{
    backoff::Jitter,
    registration::{Lease, Next, Options, Registration, Report},
};
use balance_sync_schedule::{Link, Workers, probe::probe_overdue};
use balance_sync_tenants::{KeyForm, Tenant};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{lifecycle::name::WorkerName, status::FleetStatus, tasks::Progress};

/// Balances due for longer than this look abandoned. Twice the longest time in which an idle owner looks at its schedule
/// (`collector.idle_backoff_max`, at most 1 min), and little of the hour that the ledger gives a value.
pub const OVERDUE: Duration = Duration::from_secs(120);

/// Schedules in one call: some 100 µs of Redis.
const PAGE: usize = 250;
/// Longest time for the farewell; when Redis doesn't answer, the lease lapses by itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// How tenants are shared out.
#[derive(Debug, Clone)]
pub struct PartitionSettings {
    /// This worker's name, unlike all others'.
    pub name: WorkerName,
    /// The workers among which tenants are shared out: those with the same tenants. Others are never counted.
    pub group: String,
    /// Workers that look after each tenant.
    pub replicas: usize,
    /// A worker silent for this long is gone.
    pub lease: Duration,
    /// How tenant ids stand in keys.
    pub key_form: KeyForm,
    /// Balances due for longer than this look abandoned; see [`OVERDUE`].
    pub overdue: Duration,
}

/// The tenants that are a worker's, out of those that are wanted.
pub type Share = balance_sync_engine::partition::Share<Tenant>;

/// Gives the supervisor this worker's share.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct TakeShare(pub Share);

/// Asks the supervisor which of the wanted tenants are not in this worker's share.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Vec<Tenant>")]
pub struct Unowned;

/// Keeps this worker registered, and its share up to date.
pub struct Partition {
    settings: PartitionSettings,
    workers: Workers,
    link: Link,
    share: Recipient<TakeShare>,
    unowned: Recipient<Unowned>,
    fleet: Arc<FleetStatus>,
}

impl Partition {
    /// Prepares it; nothing is registered yet.
    #[must_use]
    pub fn new(
        settings: PartitionSettings,
        link: Link,
        share: Recipient<TakeShare>,
        unowned: Recipient<Unowned>,
        fleet: Arc<FleetStatus>,
    ) -> Self {
        Self { workers: Workers::new(link.clone(), &settings.group), settings, link, share, unowned, fleet }
    }

    fn options(&self, name: &str) -> Options {
        Options {
            name: name.to_owned(),
            replicas: self.settings.replicas,
            lease: self.settings.lease,
            overdue: self.settings.overdue,
        }
    }

    /// Runs until it is stopped; then the worker is taken off the list at once. Registers when `listed` is cancelled, as
    /// the tenants are known then: a worker that can't serve any tenant yet must not be counted on.
    pub async fn run(self, listed: CancellationToken, stop: CancellationToken, progress: Progress) {
        if stop.run_until_cancelled(progress.waiting(listed.cancelled())).await.is_none() {
            return;
        }
        let name = loop {
            let name = self.settings.name.current();
            tokio::select! {
                biased;
                () = stop.cancelled() => break name,
                // The former one is another worker's.
                () = self.settings.name.changed_from(&name) => {}
                () = self.keep_registered(&name, &progress) => {}
            }
        };
        match tokio::time::timeout(FAREWELL, self.workers.deregister(&name)).await {
            Ok(Ok(_)) => tracing::debug!("worker taken off the list"),
            Ok(Err(error)) => tracing::debug!(%error, "worker not taken off the list, its lease lapses"),
            Err(_) => tracing::debug!("worker not taken off the list in time, its lease lapses"),
        }
    }

    async fn keep_registered(&self, name: &str, progress: &Progress) {
        let mut registration = Registration::new(self.options(name), now());
        let mut jitter = Jitter::new(rand::random());
        loop {
            match registration.next(now()) {
                Next::Register => self.register(name, &mut registration, &mut jitter).await,
                Next::Watch { adopted } => {
                    let overdue = self.overdue(adopted).await;
                    for tenant in registration.watched(now(), overdue) {
                        self.report_adopted(&tenant);
                    }
                }
                Next::Announce(share) => match self.share.send(TakeShare(share.clone())).await {
                    Ok(()) => registration.announced(now(), share),
                    // The supervisor is gone, and with it the worker.
                    Err(_) => registration.not_announced(now()),
                },
                Next::Wait(until) => {
                    progress.beat();
                    tokio::time::sleep_until(until.into()).await;
                }
            }
        }
    }

    async fn register(&self, name: &str, registration: &mut Registration<Tenant>, jitter: &mut Jitter) {
        match self.workers.register(name, self.settings.lease).await {
            Ok(registered) => {
                let lease = if registered.held { Lease::Held } else { Lease::Lapsed };
                for report in registration.registered(now(), lease, registered.live) {
                    self.report(&report);
                }
            }
            Err(error) => {
                if registration.failed(jitter) == Some(Report::CutOff) {
                    tracing::warn!(%error, "worker could not be registered, its share of the tenants stays as it is");
                }
            }
        }
    }

    fn report(&self, report: &Report) {
        match report {
            Report::View { live, joined, left } => {
                let (joined, left) = (joined.join(", "), left.join(", "));
                tracing::info!(workers = live, joined, left, "live workers");
                self.fleet.workers.store(*live as u64, Relaxed);
            }
            Report::Back => tracing::info!("worker is registered again"),
            // Logged with its error.
            Report::CutOff => {}
        }
    }

    fn report_adopted(&self, tenant: &Tenant) {
        tracing::warn!(
            tenant_id = %tenant,
            overdue = ?self.settings.overdue,
            "balances wait although other workers own the tenant, it is looked after here as well"
        );
    }

    /// The tenants of others, and the adopted ones, that have overdue balances; `None` if they can't be looked at.
    async fn overdue(&self, adopted: BTreeSet<Tenant>) -> Option<Vec<Tenant>> {
        let mut tenants = self.unowned.send(Unowned).await.ok()?;
        tenants.extend(adopted);
        // Balances of a paused tenant are meant to wait.
        tenants.retain(|tenant| !self.fleet.paused.contains(tenant));
        let mut overdue = Vec::new();
        for page in tenants.chunks(PAGE) {
            let spaces = page.iter().flat_map(|tenant| {
                tenant.key_spaces(self.settings.key_form).into_iter().map(move |space| (tenant, space))
            });
            let (owners, keys): (Vec<&Tenant>, Vec<Arc<str>>) =
                spaces.map(|(tenant, space)| (tenant, Arc::from(space.schedule()))).unzip();
            match probe_overdue(&self.link, &keys, self.settings.overdue).await {
                Ok(found) => {
                    overdue.extend(found.into_iter().filter_map(|at| owners.get(at).copied()).cloned());
                }
                Err(error) => {
                    tracing::debug!(%error, "tenants of other workers could not be looked at");
                    return None;
                }
            }
        }
        Some(overdue)
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
