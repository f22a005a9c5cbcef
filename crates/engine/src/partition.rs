//! Which tenants are a worker's: the live workers share them out by rendezvous hashing.
//!
//! From the same list of workers all come to the same owners of each tenant, without asking each other, and a worker that
//! comes or goes moves only the tenants that become or were its own. The first owner works, the others stand by
//! ([`crate::standby`]). How a worker comes by the list, and what it does while it doubts it, is [`crate::registration`]'s.
//!
//! `T` is whatever names a tenant; its text is what is hashed.

use std::collections::BTreeSet;

/// The tenants that are a worker's, out of those that are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share<T> {
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
        /// Tenants that no worker seems to serve, whichever owns them.
        adopted: BTreeSet<T>,
    },
}

/// What a worker is to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// It comes first: it works the tenant.
    First,
    /// It stands by for the first owner.
    Standby,
    /// The tenant is another worker's.
    Foreign,
}

impl<T: Ord + AsRef<str>> Share<T> {
    /// What this worker is to a tenant.
    #[must_use]
    pub fn of(&self, tenant: &T) -> Ownership {
        match self {
            Self::Everything => Ownership::First,
            // What seems abandoned is served by the worker that finds it.
            Self::Part { adopted, .. } if adopted.contains(tenant) => Ownership::First,
            Self::Part { name, workers, replicas, .. } => {
                match ahead_of(name, tenant.as_ref(), workers, *replicas) {
                    ahead if ahead >= *replicas => Ownership::Foreign,
                    0 => Ownership::First,
                    _ => Ownership::Standby,
                }
            }
        }
    }

    /// Whether a tenant is in it, as its first owner's or for a standby.
    #[must_use]
    pub fn contains(&self, tenant: &T) -> bool {
        self.of(tenant) != Ownership::Foreign
    }

    /// Whether this worker comes first for a tenant.
    #[must_use]
    pub fn is_first(&self, tenant: &T) -> bool {
        self.of(tenant) == Ownership::First
    }
}

/// The owners of a tenant, the first of them first: `replicas` of the workers, or all if they are no more.
#[must_use]
pub fn owners<'w>(tenant: &str, workers: &'w BTreeSet<String>, replicas: usize) -> Vec<&'w str> {
    let mut ranked: Vec<_> = workers.iter().map(|worker| (weight(worker, tenant), worker.as_str())).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().take(replicas).map(|(_, worker)| worker).collect()
}

/// How many workers come before this one among the [`owners`], counted up to a bound, without putting them in order. It
/// counts itself, listed or not.
fn ahead_of(name: &str, tenant: &str, workers: &BTreeSet<String>, bound: usize) -> usize {
    let own = (weight(name, tenant), name);
    workers.iter().filter(|worker| (weight(worker, tenant), worker.as_str()) > own).take(bound).count()
}

/// How strongly a worker is drawn to a tenant: FNV-1a over both, finished as MurmurHash3 finishes, as FNV alone leaves names
/// that differ in their last character close to each other. The same in all workers for ever; a change of it changes the
/// name of the key under which workers register as well (`balance_sync_schedule::workers`).
fn weight(worker: &str, tenant: &str) -> u64 {
    /// Stands between the two names; no UTF-8 text has it.
    const BETWEEN: u8 = 0xff;
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in worker.bytes().chain([BETWEEN]).chain(tenant.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn workers() -> impl Strategy<Value = BTreeSet<String>> {
        btree_set("[a-z]{1,3}-[0-9]{1,2}", 1..8)
    }

    fn part(
        name: &str,
        workers: &BTreeSet<String>,
        replicas: usize,
        adopted: &[&'static str],
    ) -> Share<&'static str> {
        let adopted = adopted.iter().copied().collect();
        Share::Part { name: name.to_owned(), workers: workers.clone(), replicas, adopted }
    }

    proptest! {
        #[test]
        fn each_tenant_has_as_many_distinct_owners_as_there_can_be(
            tenant in "[a-z0-9]{1,20}", workers in workers(), replicas in 1_usize..5,
        ) {
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
            tenants in btree_set("[a-z0-9]{1,20}", 1..50), workers in workers(), replicas in 1_usize..5,
            at in any::<prop::sample::Index>(),
        ) {
            let gone = at.get(&workers.iter().cloned().collect::<Vec<_>>()).clone();
            let mut left = workers.clone();
            left.remove(&gone);
            for tenant in &tenants {
                let before: BTreeSet<_> = owners(tenant, &workers, replicas).into_iter().collect();
                let after: BTreeSet<_> = owners(tenant, &left, replicas).into_iter().collect();
                if !before.contains(gone.as_str()) {
                    prop_assert_eq!(&before, &after);
                }
                let stayed: BTreeSet<_> = before.into_iter().filter(|owner| *owner != gone).collect();
                prop_assert!(stayed.is_subset(&after) && after.len() <= stayed.len() + 1);
            }
        }

        /// Whatever each of two workers believes about the other, one of them serves each tenant.
        #[test]
        fn no_tenant_is_left_out_while_every_worker_lists_itself(
            tenant in "[a-z0-9]{1,20}", workers in workers(), seen in prop::collection::vec(any::<u16>(), 8),
        ) {
            // Each knows itself and any part of the others.
            let all: Vec<_> = workers.iter().cloned().collect();
            let served = all.iter().zip(&seen).any(|(name, bits)| {
                let known = all.iter().enumerate().filter(|(at, other)| bits >> at & 1 == 1 || *other == name);
                let known: BTreeSet<String> = known.map(|(_, other)| other.clone()).collect();
                let share =
                    Share::Part { name: name.clone(), workers: known, replicas: 1, adopted: BTreeSet::new() };
                share.is_first(&tenant)
            });
            prop_assert!(served);
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
                    let owners = owners(&format!("tenant-{n:04}"), &workers, replicas);
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
        assert_eq!(weight("sync-0", "acme"), 0x3b7b_1e2c_d0b5_55a1);
        assert_eq!(weight("", "single"), 0xf850_963c_cdbe_cc48);
    }

    #[test]
    fn a_share_is_what_is_owned_and_what_is_adopted_and_one_worker_comes_first() {
        let workers = names(&["a", "b", "c"]);
        let ranked: Vec<String> = owners("acme", &workers, 3).into_iter().map(str::to_owned).collect();
        for replicas in 1..=3 {
            for (rank, name) in ranked.iter().enumerate() {
                let expected = match rank {
                    0 => Ownership::First,
                    _ if rank < replicas => Ownership::Standby,
                    _ => Ownership::Foreign,
                };
                assert_eq!(part(name, &workers, replicas, &[]).of(&"acme"), expected);
                assert_eq!(part(name, &workers, replicas, &["acme"]).of(&"acme"), Ownership::First);
            }
        }
        assert_eq!(Share::Everything.of(&"acme"), Ownership::First);
        assert!(part("not-listed", &names(&["a"]), 2, &[]).contains(&"acme"));
    }
}
