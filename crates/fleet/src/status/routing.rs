//! Which Redis each tenant lives on, as this worker knows it, where there are several (`docs/decisions/0045-redis-directory.md`).
//!
//! What is read from the directory waits until a list of tenants has been taken apart by it. A directory that would leave a
//! listed tenant on no Redis, which is on one now, is not taken: the one in force stays so, and the reason is shown.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use balance_sync_engine::routes::{Routes, Unrouted};
use balance_sync_tenants::{ListedTenant, Listing, RefusedTenant, Tenant};

/// Tenants that are named in the reason why a directory is not taken.
const NAMED: usize = 3;

/// A list of tenants, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// How many tenants live on each Redis, by its name; each entry is there.
    pub tenants: BTreeMap<String, u64>,
    /// Those that live on another Redis.
    pub elsewhere: Arc<Vec<Tenant>>,
    /// Those that live on none, by the name they are shown under, and why.
    pub unrouted: Vec<(String, Unrouted)>,
}

/// What a worker knows of one Redis of the directory.
#[derive(Debug, Clone, PartialEq)]
pub struct EntryLook {
    /// Its name.
    pub name: String,
    /// Live workers that write there; `None` = it can't be asked.
    pub workers: Option<u64>,
    /// Why it can't be asked.
    pub error: Option<String>,
}

/// What a tenant that lives elsewhere has left in this Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOver {
    /// The tenant, by the name it is shown under.
    pub tenant: String,
    /// The Redis that it lives on.
    pub lives_on: String,
    /// Balances in its schedules here.
    pub scheduled: u64,
    /// Entries of its quarantine here, losses among them.
    pub aside: u64,
    /// It was served here until the directory moved it, and still is, until its schedules are empty.
    pub departing: bool,
}

/// What a look found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoutingLook {
    /// When, in seconds since 1970; 0 = not yet.
    pub at: f64,
    /// The other entries of the directory.
    pub entries: Vec<EntryLook>,
    /// What is left here; of more tenants than these, only [`RoutingLook::left_tenants`] says how many.
    pub left: Vec<LeftOver>,
    /// Tenants that have left something here.
    pub left_tenants: u64,
    /// Why it isn't known what is left here.
    pub left_unknown: Option<String>,
}

#[derive(Debug)]
struct Inner {
    in_force: Arc<Routes>,
    /// Read since, and not taken yet.
    next: Option<Arc<Routes>>,
    /// The tenants that live on this worker's Redis.
    own: BTreeSet<Tenant>,
    /// Those that did before, and are served until nothing is scheduled here.
    departing: BTreeSet<Tenant>,
    split: Arc<Split>,
    look: Arc<RoutingLook>,
    /// Why what stands in the file is not in force.
    unreadable: Option<String>,
    /// Why what was read is not in force.
    not_taken: Option<String>,
}

/// Which Redis each tenant lives on.
#[derive(Debug)]
pub struct Routing {
    own: Arc<str>,
    inner: Mutex<Inner>,
}

impl Routing {
    /// For a worker, or a command, of this entry.
    #[must_use]
    pub fn new(own: &str, routes: Arc<Routes>) -> Self {
        let inner = Inner {
            in_force: routes,
            next: None,
            own: BTreeSet::new(),
            departing: BTreeSet::new(),
            split: Arc::default(),
            look: Arc::default(),
            unreadable: None,
            not_taken: None,
        };
        Self { own: own.into(), inner: Mutex::new(inner) }
    }

    /// The entry that is this worker's.
    #[must_use]
    pub fn own(&self) -> &str {
        &self.own
    }

    /// The directory in force.
    #[must_use]
    pub fn in_force(&self) -> Arc<Routes> {
        Arc::clone(&self.lock().in_force)
    }

    /// How the last list of tenants was taken apart.
    #[must_use]
    pub fn split(&self) -> Arc<Split> {
        Arc::clone(&self.lock().split)
    }

    /// What the last look found.
    #[must_use]
    pub fn look(&self) -> Arc<RoutingLook> {
        Arc::clone(&self.lock().look)
    }

    /// Why what stands in the directory is not in force.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let inner = self.lock();
        inner.unreadable.clone().or_else(|| inner.not_taken.clone())
    }

    /// Tenants that are served here until nothing is scheduled any more.
    #[must_use]
    pub fn departing(&self) -> BTreeSet<Tenant> {
        self.lock().departing.clone()
    }

    /// Takes a directory that was read; it is in force with the next list of tenants.
    pub fn offer(&self, routes: Arc<Routes>) {
        let mut inner = self.lock();
        inner.unreadable = None;
        inner.not_taken = None;
        inner.next = (*routes != *inner.in_force).then_some(routes);
    }

    /// Notes why the directory can't be read, or that it can be again.
    pub fn report(&self, problem: Option<String>) {
        self.lock().unreadable = problem;
    }

    /// Notes what was seen, and lets those go that have nothing left here.
    pub fn looked(&self, look: RoutingLook, emptied: &[Tenant]) {
        let mut inner = self.lock();
        for tenant in emptied {
            inner.departing.remove(tenant);
        }
        inner.look = Arc::new(look);
    }

    /// Leaves in a list the tenants that are served here. Those that live on no Redis are refused, with the reason.
    #[must_use]
    pub fn take_apart(&self, listing: Listing) -> Listing {
        let mut inner = self.lock();
        if let Some(next) = inner.next.take() {
            match lost(&inner.in_force, &next, &listing) {
                None => {
                    inner.in_force = next;
                    tracing::info!(digest = inner.in_force.digest(), "Redis directory in force");
                }
                Some(problem) => {
                    tracing::error!(
                        problem,
                        "the Redis directory that was read is not taken, the one in force stays so"
                    );
                    inner.not_taken = Some(problem);
                }
            }
        }
        let before = std::mem::take(&mut inner.own);
        let mut tenants = Vec::new();
        let mut refused = listing.refused;
        let mut split = Split::default();
        split.tenants.extend(inner.in_force.names().iter().map(|name| (name.clone(), 0)));
        let mut elsewhere = Vec::new();
        let mut departing = BTreeSet::new();
        for listed in listing.tenants {
            match inner.in_force.route(listed.tenant.label()) {
                Ok(name) => {
                    if let Some(count) = split.tenants.get_mut(name) {
                        *count += 1;
                    }
                    if name == &*self.own {
                        inner.own.insert(listed.tenant.clone());
                        tenants.push(listed);
                        continue;
                    }
                    elsewhere.push(listed.tenant.clone());
                    if before.contains(&listed.tenant) {
                        tracing::info!(
                            tenant_id = %listed.tenant,
                            lives_on = name,
                            "tenant lives on another Redis now, what is scheduled here is written first"
                        );
                    }
                    if before.contains(&listed.tenant) || inner.departing.contains(&listed.tenant) {
                        departing.insert(listed.tenant.clone());
                        tenants.push(listed);
                    }
                }
                Err(why) => {
                    let ListedTenant { tenant, .. } = listed;
                    refused.push(RefusedTenant { id: tenant.label().to_owned(), reason: why.to_string() });
                    split.unrouted.push((tenant.label().to_owned(), why));
                }
            }
        }
        inner.departing = departing;
        split.elsewhere = Arc::new(elsewhere);
        inner.split = Arc::new(split);
        Listing { tenants, refused }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which listed tenants would lose the Redis that they live on; `None` = each keeps one.
fn lost(now: &Routes, next: &Routes, listing: &Listing) -> Option<String> {
    let losing: Vec<(&str, Unrouted)> = listing
        .tenants
        .iter()
        .map(|listed| listed.tenant.label())
        .filter(|id| now.route(id).is_ok())
        .filter_map(|id| Some((id, next.route(id).err()?)))
        .collect();
    let (_, why) = losing.first()?;
    let named: Vec<&str> = losing.iter().take(NAMED).map(|(id, _)| *id).collect();
    let more = match losing.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("it would leave tenants without a Redis: {}{more} ({why})", named.join(", ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balance_sync_domain::TenantId;
    use balance_sync_engine::{rollout::Pattern, routes::Entry};

    use super::*;

    fn routes(entries: &[(&str, &[&str], bool)]) -> Arc<Routes> {
        let entry = |(name, tenants, default): &(&str, &[&str], bool)| Entry {
            name: (*name).to_owned(),
            tenants: tenants.iter().map(|text| Pattern::parse(text).unwrap()).collect(),
            default: *default,
        };
        Arc::new(Routes::new(entries.iter().map(entry).collect()).unwrap())
    }

    fn tenant(id: &str) -> Tenant {
        Tenant::Id(TenantId::parse(id).unwrap())
    }

    fn listing(ids: &[&str]) -> Listing {
        let listed = |id: &&str| ListedTenant { tenant: tenant(id), name: (*id).to_owned() };
        Listing { tenants: ids.iter().map(listed).collect(), refused: Vec::new() }
    }

    fn served(routing: &Routing, ids: &[&str]) -> Vec<String> {
        let listing = routing.take_apart(listing(ids));
        listing.tenants.iter().map(|listed| listed.tenant.label().to_owned()).collect()
    }

    #[test]
    fn a_worker_serves_what_lives_on_its_redis_and_refuses_what_lives_nowhere() {
        let routing = Routing::new("a", routes(&[("a", &["x", "y"], false), ("b", &["z"], false)]));
        let taken = routing.take_apart(listing(&["x", "z", "w"]));
        assert_eq!(taken.tenants.len(), 1);
        assert_eq!(taken.refused[0].id, "w");
        assert!(taken.refused[0].reason.contains("no entry"), "{:?}", taken.refused);
        let split = routing.split();
        assert_eq!(split.tenants, BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]));
        assert_eq!(*split.elsewhere, [tenant("z")]);
        assert_eq!(split.unrouted, [("w".to_owned(), Unrouted::Nowhere)]);
    }

    #[test]
    fn a_moved_tenant_is_served_until_nothing_is_left_and_not_again() {
        let before = routes(&[("a", &["x", "y"], false), ("b", &[], true)]);
        let routing = Routing::new("a", before.clone());
        assert_eq!(served(&routing, &["x", "y", "z"]), ["x", "y"]);
        routing.offer(routes(&[("a", &["y"], false), ("b", &[], true)]));
        for _ in 0..2 {
            assert_eq!(served(&routing, &["x", "y", "z"]), ["x", "y"]);
            assert_eq!(routing.departing(), BTreeSet::from([tenant("x")]));
        }
        assert_eq!(routing.split().tenants["b"], 2);
        routing.looked(RoutingLook::default(), &[tenant("x")]);
        assert_eq!(served(&routing, &["x", "y", "z"]), ["y"]);
        // Back again, and gone from the list while it departs.
        routing.offer(before);
        assert_eq!(served(&routing, &["x", "y", "z"]), ["x", "y"]);
        assert!(routing.departing().is_empty());
        routing.offer(routes(&[("a", &["y"], false), ("b", &[], true)]));
        assert_eq!(served(&routing, &["y", "z"]), ["y"]);
        assert!(routing.departing().is_empty());
    }

    #[test]
    fn a_directory_that_would_leave_a_tenant_nowhere_is_not_taken() {
        let routing = Routing::new("a", routes(&[("a", &["x"], false), ("b", &["y"], false)]));
        assert_eq!(served(&routing, &["x", "y", "w"]), ["x"]);
        routing.offer(routes(&[("a", &["x"], false), ("b", &["w"], false)]));
        assert_eq!(served(&routing, &["x", "y", "w"]), ["x"]);
        let problem = routing.problem().unwrap();
        assert!(problem.contains("without a Redis: y (no entry"), "{problem}");
        assert_eq!(routing.split().unrouted.len(), 1, "the former directory is in force");
        routing.offer(routes(&[("a", &["x"], false), ("b", &["w", "y"], false)]));
        assert_eq!(routing.problem(), None);
        assert_eq!(served(&routing, &["x", "y", "w"]), ["x"]);
        assert!(routing.split().unrouted.is_empty());
        routing.report(Some("is not TOML".to_owned()));
        assert_eq!(routing.problem().as_deref(), Some("is not TOML"));
    }
}
