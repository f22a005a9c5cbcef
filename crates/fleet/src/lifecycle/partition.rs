//! Which tenants are this worker's: the live workers share them out among themselves.
//!
//! Each worker registers in Redis with a lease, renews it, and so learns who else is alive. From the same list of workers
//! all come to the same owners of each tenant by rendezvous hashing, without asking each other; a worker that comes or
//! goes moves only the tenants that become or were its own. The first owner works, the others stand by
//! ([`crate::backends`]). It only saves work. Claims keep it correct when two lists
//! differ for a moment, and for what no list can know (owners that are alive and don't work) each worker keeps an eye on
//! the tenants of others: one whose balances have been due for long is served as well, whichever worker owns it
//! (`docs/decisions/0007-partition.md`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::prelude::*;
use balance_sync_schedule::{Link, Registered, Workers, schedule::probe_overdue};
use balance_sync_tenants::{KeyForm, Tenant};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    status::FleetStatus,
    tasks::{Backoff, Progress},
};

/// Balances due for longer than this look abandoned. Twice the longest time in which an idle owner looks at its schedule
/// (`collector.idle_backoff_max`, at most 1 min), and little of the hour that the ledger gives a value.
pub const OVERDUE: Duration = Duration::from_secs(120);

/// Renewals per lease at the least: two may fail before others think that the worker is gone.
const RENEWALS: u32 = 3;
/// Longest time between two looks at who is alive, each of which renews the lease as well. Who comes first for a tenant must
/// know at once that it does, when the worker before it has left: no other claims until then. Some 15 µs of Redis.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A new worker looks a second time after this before it takes its share, and everybody after a change: workers that are
/// started together find each other before they have started collectors that they must stop again.
const SETTLE: Duration = Duration::from_millis(250);
/// First delay after a registration that failed; it grows up to the time between renewals.
const RETRY: Duration = Duration::from_millis(100);
/// Looks at the tenants of others, per [`PartitionSettings::overdue`].
const WATCHES: u32 = 4;
/// A tenant found abandoned is looked after for this many times [`PartitionSettings::overdue`] after it was last so.
const ADOPTED_FOR: u32 = 2;
/// Schedules in one call: some 100 µs of Redis.
const PAGE: usize = 250;
/// Longest time for the farewell; when Redis doesn't answer, the lease lapses by itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// How tenants are shared out.
#[derive(Debug, Clone)]
pub struct PartitionSettings {
    /// This worker's name, unlike all others'.
    pub name: String,
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

/// The tenants that are this worker's, out of those that are wanted. Told to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub enum Share {
    /// All of them.
    Everything,
    /// Those that the list of workers gives it, and some more.
    Part {
        /// This worker.
        name: String,
        /// All that are alive.
        workers: BTreeSet<String>,
        /// Workers per tenant.
        replicas: usize,
        /// Tenants that seem unserved, whichever worker owns them.
        adopted: BTreeSet<Tenant>,
    },
}

impl Share {
    /// Whether a tenant is in it.
    #[must_use]
    pub fn contains(&self, tenant: &Tenant) -> bool {
        match self {
            Self::Everything => true,
            Self::Part { name, workers, replicas, adopted } => {
                ahead_of(name, tenant, workers, *replicas) < *replicas || adopted.contains(tenant)
            }
        }
    }

    /// Whether this worker comes first for a tenant in it. The others that own it stand by.
    #[must_use]
    pub fn is_first(&self, tenant: &Tenant) -> bool {
        match self {
            Self::Everything => true,
            // An unserved tenant is served by the worker that finds it.
            Self::Part { name, workers, adopted, .. } => {
                adopted.contains(tenant) || ahead_of(name, tenant, workers, 1) == 0
            }
        }
    }
}

/// Asks the supervisor which of the wanted tenants are not in this worker's share.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Vec<Tenant>")]
pub struct Unowned;

// -- who owns whom -----------------------------------------------------------------------------------------------------

/// The owners of a tenant, the first of them first: `replicas` of the workers, or all if they are no more.
#[must_use]
pub fn owners<'w>(tenant: &Tenant, workers: &'w BTreeSet<String>, replicas: usize) -> Vec<&'w str> {
    let mut ranked: Vec<_> = workers.iter().map(|worker| (weight(worker, tenant), worker.as_str())).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().take(replicas).map(|(_, worker)| worker).collect()
}

/// How many workers come before this one among the [`owners`], counted up to a bound, without putting them in order. It
/// counts itself, listed or not.
fn ahead_of(name: &str, tenant: &Tenant, workers: &BTreeSet<String>, bound: usize) -> usize {
    let own = (weight(name, tenant), name);
    workers.iter().filter(|worker| (weight(worker, tenant), worker.as_str()) > own).take(bound).count()
}

/// How much a worker is meant to have a tenant: FNV-1a over both, finished as MurmurHash3 finishes, as FNV alone leaves
/// names that differ in their last character close to each other. The same in all workers for ever; whoever changes it
/// changes the name of the key under which workers register as well (`balance_sync_schedule::workers`).
fn weight(worker: &str, tenant: &Tenant) -> u64 {
    /// Stands between the two names; no UTF-8 text has it.
    const BETWEEN: u8 = 0xff;
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in worker.bytes().chain([BETWEEN]).chain(tenant.label().bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

// -- the task ----------------------------------------------------------------------------------------------------------

/// Keeps this worker registered, and its share up to date.
pub struct Partition {
    settings: PartitionSettings,
    workers: Workers,
    link: Link,
    share: Recipient<Share>,
    unowned: Recipient<Unowned>,
    fleet: Arc<FleetStatus>,
    /// The live workers as last known; none before the first answer.
    view: Option<BTreeSet<String>>,
    /// Tenants that seem abandoned, and until when they are looked after.
    adopted: BTreeMap<Tenant, Instant>,
    told: Option<Share>,
    /// Redis could not be asked, and that was said.
    cut_off: bool,
}

impl Partition {
    /// Prepares it; nothing is registered yet.
    #[must_use]
    pub fn new(
        settings: PartitionSettings,
        link: Link,
        share: Recipient<Share>,
        unowned: Recipient<Unowned>,
        fleet: Arc<FleetStatus>,
    ) -> Self {
        Self {
            workers: Workers::new(link.clone(), &settings.group),
            settings,
            link,
            share,
            unowned,
            fleet,
            view: None,
            adopted: BTreeMap::new(),
            told: None,
            cut_off: false,
        }
    }

    /// Runs until it is stopped; then the worker is taken off the list at once. Registers when `listed` is cancelled, as
    /// the tenants are known then: a worker that can't serve anybody yet must not be counted on.
    pub async fn run(mut self, listed: CancellationToken, stop: CancellationToken, progress: Progress) {
        if stop.run_until_cancelled(progress.waiting(listed.cancelled())).await.is_none() {
            return;
        }
        stop.run_until_cancelled(self.keep_registered(&progress)).await;
        match tokio::time::timeout(FAREWELL, self.workers.deregister(&self.settings.name)).await {
            Ok(Ok(_)) => tracing::debug!("worker taken off the list"),
            Ok(Err(error)) => tracing::debug!(%error, "worker not taken off the list, its lease lapses"),
            Err(_) => tracing::debug!("worker not taken off the list in time, its lease lapses"),
        }
    }

    async fn keep_registered(&mut self, progress: &Progress) {
        let renew = self.settings.lease / RENEWALS;
        let mut retry = Backoff::new(RETRY.min(renew), renew);
        let mut watch_at = Instant::now() + self.settings.overdue;
        loop {
            let answer = self.workers.register(&self.settings.name, self.settings.lease).await;
            let delay = match answer {
                Ok(registered) => {
                    retry.reset();
                    if std::mem::take(&mut self.cut_off) {
                        tracing::info!("worker is registered again");
                    }
                    if !registered.held {
                        // After a start or an outage everything is overdue. Its owners come first.
                        watch_at = Instant::now() + self.settings.overdue;
                    }
                    if self.view.is_none() {
                        // The first look of a worker that has just come. With the second it knows who came beside it.
                        self.view = Some(BTreeSet::new());
                        tokio::time::sleep(SETTLE.min(renew)).await;
                        continue;
                    }
                    match (registered.held, self.seen(registered)) {
                        (_, true) => SETTLE.min(renew),
                        (true, false) => LOOK_EVERY.min(renew),
                        // The others are to be back before the next look; they retry within `renew`.
                        (false, false) => renew * 2,
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.cut_off, true) {
                        tracing::warn!(%error, "worker could not be registered, its share of the tenants stays as it is");
                    }
                    retry.next_delay()
                }
            };
            if watch_at <= Instant::now() {
                self.watch().await;
                watch_at = Instant::now() + self.settings.overdue / WATCHES;
            }
            self.tell().await;
            progress.beat();
            tokio::time::sleep(delay).await;
        }
    }

    /// Takes over a new view; gives whether it is another one than before.
    fn seen(&mut self, Registered { held, live }: Registered) -> bool {
        let before = self.view.get_or_insert_default();
        // After an outage of Redis everybody has lapsed, and who registers first is not alone: the last view stays for
        // as long as the others take to come back.
        if (!held && !before.is_empty()) || *before == live {
            return false;
        }
        let list = |names: Vec<&str>| names.join(", ");
        let joined = list(live.difference(before).map(String::as_str).collect());
        let left = list(before.difference(&live).map(String::as_str).collect());
        tracing::info!(workers = live.len(), joined, left, "live workers");
        self.fleet.workers.store(live.len() as u64, Relaxed);
        self.view = Some(live);
        true
    }

    /// Looks for due balances of other workers' tenants that seem unserved.
    async fn watch(&mut self) {
        let Ok(mut tenants) = self.unowned.send(Unowned).await else { return };
        tenants.extend(self.adopted.keys().cloned());
        // Balances of a halted tenant are meant to wait.
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
                    return;
                }
            }
        }
        let now = Instant::now();
        for tenant in overdue {
            if self.adopted.insert(tenant.clone(), now + self.settings.overdue * ADOPTED_FOR).is_none() {
                tracing::warn!(
                    tenant_id = %tenant,
                    overdue = ?self.settings.overdue,
                    "balances wait although other workers own the tenant, it is looked after here as well"
                );
            }
        }
        self.adopted.retain(|_, until| *until > now);
    }

    /// Tells the supervisor, if there is something new.
    async fn tell(&mut self) {
        let Some(workers) = self.view.as_ref().filter(|view| !view.is_empty()) else { return };
        let share = Share::Part {
            name: self.settings.name.clone(),
            workers: workers.clone(),
            replicas: self.settings.replicas,
            adopted: self.adopted.keys().cloned().collect(),
        };
        // Remembered only once it has arrived. An error means that the supervisor is gone, and with it the worker.
        if self.told.as_ref() != Some(&share) && self.share.send(share.clone()).await.is_ok() {
            self.told = Some(share);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use balance_sync_domain::TenantId;
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    fn tenant(id: &str) -> Tenant {
        Tenant::Id(TenantId::parse(id).unwrap())
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn workers() -> impl Strategy<Value = BTreeSet<String>> {
        btree_set("[a-z]{1,3}-[0-9]{1,2}", 1..8)
    }

    proptest! {
        #[test]
        fn each_tenant_has_as_many_distinct_owners_as_there_can_be(
            id in "[a-z0-9]{1,20}", workers in workers(), replicas in 1_usize..5,
        ) {
            let tenant = tenant(&id);
            let owners = owners(&tenant, &workers, replicas);
            prop_assert_eq!(owners.len(), replicas.min(workers.len()));
            prop_assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), owners.len());
            for worker in &workers {
                let rank = owners.iter().position(|owner| owner == worker).unwrap_or(replicas);
                prop_assert_eq!(ahead_of(worker, &tenant, &workers, replicas), rank);
            }
        }

        #[test]
        fn who_leaves_moves_only_what_it_owned_and_each_of_that_to_one_other(
            ids in btree_set("[a-z0-9]{1,20}", 1..50), workers in workers(), replicas in 1_usize..5, at in any::<prop::sample::Index>(),
        ) {
            let gone = at.get(&workers.iter().cloned().collect::<Vec<_>>()).clone();
            let mut left = workers.clone();
            left.remove(&gone);
            for tenant in ids.iter().map(|id| tenant(id)) {
                let before: BTreeSet<_> = owners(&tenant, &workers, replicas).into_iter().collect();
                let after: BTreeSet<_> = owners(&tenant, &left, replicas).into_iter().collect();
                if !before.contains(gone.as_str()) {
                    prop_assert_eq!(&before, &after);
                }
                let stayed: BTreeSet<_> = before.into_iter().filter(|owner| *owner != gone).collect();
                prop_assert!(stayed.is_subset(&after) && after.len() <= stayed.len() + 1);
            }
        }
    }

    #[test]
    fn a_thousand_tenants_spread_evenly_over_four_workers() {
        for workers in [
            names(&["sync-0", "sync-1", "sync-2", "sync-3"]),
            names(&["host-a-17", "host-a-18", "host-b-17", "10.0.0.1-1"]),
        ] {
            for replicas in [1, 2] {
                let mut owned: BTreeMap<&str, usize> = BTreeMap::new();
                let mut pairs: BTreeMap<Vec<&str>, usize> = BTreeMap::new();
                for n in 0..1000 {
                    let owners = owners(&tenant(&format!("tenant-{n:04}")), &workers, replicas);
                    owners.iter().for_each(|owner| *owned.entry(owner).or_default() += 1);
                    *pairs.entry(owners).or_default() += 1;
                }
                // Four standard deviations of a fair draw: 4 × √(1000 × ¼ × ¾) = 55.
                let fair = 250 * replicas;
                assert!(owned.len() == 4 && owned.values().all(|n| n.abs_diff(fair) <= 65), "{owned:?}");
                // The second owner doesn't follow from the first: 1000/12 per pair, ± 4 × √(1000 × 1/12 × 11/12) = 35.
                if replicas == 2 {
                    assert!(pairs.len() == 12 && pairs.values().all(|n| n.abs_diff(83) <= 40), "{pairs:?}");
                }
            }
        }
    }

    #[test]
    fn weights_never_change() {
        // A worker of another version must come to the same result.
        assert_eq!(weight("sync-0", &tenant("acme")), 0x3b7b_1e2c_d0b5_55a1);
        assert_eq!(weight("", &Tenant::Single), 0xf850_963c_cdbe_cc48);
    }

    #[test]
    fn a_share_is_what_is_owned_and_what_is_adopted_and_one_worker_comes_first() {
        let (workers, acme) = (names(&["a", "b", "c"]), tenant("acme"));
        let ranked: Vec<String> = owners(&acme, &workers, 3).into_iter().map(str::to_owned).collect();
        for replicas in 1..=3 {
            for (rank, name) in ranked.iter().enumerate() {
                let part =
                    |adopted| Share::Part { name: name.clone(), workers: workers.clone(), replicas, adopted };
                let own = part(BTreeSet::new());
                assert_eq!((own.contains(&acme), own.is_first(&acme)), (rank < replicas, rank == 0));
                let adopted = part(BTreeSet::from([acme.clone()]));
                assert!(adopted.contains(&acme) && adopted.is_first(&acme));
            }
        }
        assert!(Share::Everything.contains(&acme) && Share::Everything.is_first(&acme));
        let alone = Share::Part {
            name: "not-listed".to_owned(),
            workers: names(&["a"]),
            replicas: 2,
            adopted: BTreeSet::new(),
        };
        assert!(alone.contains(&acme));
    }
}
