//! The guard between "the list says" and "we stop a tenant".
//!
//! The last good list stays in force while the service gives errors. And a list that is good in form but
//! takes away many tenants at once (an empty one after a full one, say) is more often a fault in the
//! service than the wish of its operators: such removals take effect only when the following polls repeat
//! them. Stopping late costs nothing, stopping wrongly costs freshness; additions are harmless and take
//! effect at once.
//!
//! Explicit suspensions don't come through here: the service says them about one tenant, by 403, and they
//! take effect at once.
//!
//! `T` is whatever names a tenant.

use std::collections::{BTreeMap, BTreeSet};

/// The share of the list in force that one list may remove without confirmation, unless configured.
pub const DEFAULT_MAX_REMOVED_SHARE: f64 = 0.5;
/// How many further polls must repeat a larger removal, unless configured.
pub const DEFAULT_CONFIRM_POLLS: u32 = 2;

/// The list in force, and removals that wait for confirmation.
#[derive(Debug, Clone)]
pub struct Membership<T> {
    max_removed_share: f64,
    confirm_polls: u32,
    in_force: BTreeSet<T>,
    knowledge: Knowledge,
    /// Absent tenants that are still in force: in how many guarded lists each has been absent since the last
    /// contradiction or failure.
    held: BTreeMap<T, u32>,
}

/// Whether there has been a good list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    None,
    Listed,
}

/// What one poll changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change<T> {
    /// In force from now on.
    pub added: BTreeSet<T>,
    /// No longer in force.
    pub removed: BTreeSet<T>,
    /// Not in the list but still in force, until further polls confirm it. Not empty is worth a warning.
    pub held: BTreeSet<T>,
    /// How many more polls must repeat the removal until the first of `held` goes; 0 when nothing is held.
    pub polls_left: u32,
    /// What the poll was.
    pub poll: Poll,
}

/// What a poll was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// The service answered.
    Answered,
    /// It failed: what was in force stays in force.
    Failed,
}

impl<T> Default for Change<T> {
    fn default() -> Self {
        Self {
            added: BTreeSet::new(),
            removed: BTreeSet::new(),
            held: BTreeSet::new(),
            polls_left: 0,
            poll: Poll::Answered,
        }
    }
}

impl<T: Ord + Clone> Membership<T> {
    /// Nothing known yet.
    ///
    /// `max_removed_share` is a share of the list in force, from 0 (each removal must be confirmed) to 1
    /// (none); values beyond are cut to that, and no number counts as 0. `confirm_polls` is how many
    /// further polls must repeat a removal beyond it; with 0 it takes effect at once.
    #[must_use]
    pub fn new(max_removed_share: f64, confirm_polls: u32) -> Self {
        let max_removed_share =
            if max_removed_share.is_nan() { 0.0 } else { max_removed_share.clamp(0.0, 1.0) };
        Self {
            max_removed_share,
            confirm_polls,
            in_force: BTreeSet::new(),
            knowledge: Knowledge::None,
            held: BTreeMap::new(),
        }
    }

    /// Takes in the answer of one poll.
    ///
    /// An error also starts the confirmation of held removals afresh: a service that fails in between isn't
    /// one whose empty lists should be believed.
    pub fn observe<E>(&mut self, answer: Result<BTreeSet<T>, E>) -> Change<T> {
        let Ok(listed) = answer else {
            self.held.values_mut().for_each(|absences| *absences = 0);
            return self.change(BTreeSet::new(), BTreeSet::new(), Poll::Failed);
        };
        self.knowledge = Knowledge::Listed;
        let absent: BTreeSet<T> = self.in_force.difference(&listed).cloned().collect();
        let added: BTreeSet<T> = listed.difference(&self.in_force).cloned().collect();

        let removed =
            if self.is_suspicious(absent.len()) { self.confirm(absent) } else { self.accept(absent) };
        self.in_force.retain(|tenant| !removed.contains(tenant));
        self.in_force.extend(added.iter().cloned());
        self.change(added, removed, Poll::Answered)
    }

    /// The tenants in force: those to serve. Empty before the first good list, see [`Membership::is_known`].
    #[must_use]
    pub fn wanted(&self) -> &BTreeSet<T> {
        &self.in_force
    }

    /// Whether there has been a good list at all; until then "no tenants" means "unknown".
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.knowledge == Knowledge::Listed
    }

    fn is_suspicious(&self, absent: usize) -> bool {
        // Counts of tenants are far below 2^52, where f64 is exact.
        absent > 0 && absent as f64 > self.max_removed_share * self.in_force.len() as f64
    }

    /// A removal of ordinary size takes effect at once, and ends whatever was held.
    fn accept(&mut self, absent: BTreeSet<T>) -> BTreeSet<T> {
        self.held.clear();
        absent
    }

    /// A removal beyond the share: counts for each tenant, and returns those that have been absent often
    /// enough.
    fn confirm(&mut self, absent: BTreeSet<T>) -> BTreeSet<T> {
        if self.held.keys().any(|tenant| !absent.contains(tenant)) {
            // One came back, so the lists contradict each other: none of them confirms another.
            self.held.clear();
        }
        for tenant in absent {
            *self.held.entry(tenant).or_insert(0) += 1;
        }
        let removed: BTreeSet<T> = self
            .held
            .iter()
            .filter(|(_, absences)| **absences > self.confirm_polls)
            .map(|(tenant, _)| tenant.clone())
            .collect();
        self.held.retain(|tenant, _| !removed.contains(tenant));
        removed
    }

    fn change(&self, added: BTreeSet<T>, removed: BTreeSet<T>, poll: Poll) -> Change<T> {
        let most_absences = self.held.values().max();
        Change {
            added,
            removed,
            held: self.held.keys().cloned().collect(),
            polls_left: most_absences
                .map_or(0, |absences| (self.confirm_polls + 1).saturating_sub(*absences)),
            poll,
        }
    }
}

impl<T: Ord + Clone> Default for Membership<T> {
    fn default() -> Self {
        Self::new(DEFAULT_MAX_REMOVED_SHARE, DEFAULT_CONFIRM_POLLS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Set = BTreeSet<&'static str>;

    fn set(ids: &[&'static str]) -> Set {
        ids.iter().copied().collect()
    }

    fn list(ids: &[&'static str]) -> Result<Set, ()> {
        Ok(set(ids))
    }

    fn after(ids: &[&'static str]) -> Membership<&'static str> {
        let mut membership = Membership::default();
        membership.observe(list(ids));
        membership
    }

    #[test]
    fn nothing_is_known_before_the_first_list() {
        let mut membership = Membership::<&str>::default();
        let change = membership.observe::<()>(Err(()));
        assert!(change.poll == Poll::Failed && !membership.is_known() && membership.wanted().is_empty());
        membership.observe(list(&[]));
        assert!(membership.is_known());
    }

    #[test]
    fn the_first_list_and_additions_take_effect_at_once() {
        let mut membership = Membership::default();
        assert_eq!(membership.observe(list(&["a"])).added, set(&["a"]));
        let change = membership.observe(list(&["a", "b", "c"]));
        assert_eq!(change, Change { added: set(&["b", "c"]), ..Change::default() });
        assert_eq!(membership.wanted(), &set(&["a", "b", "c"]));
    }

    #[test]
    fn an_error_keeps_the_last_good_list() {
        let mut membership = after(&["a", "b"]);
        for _ in 0..100 {
            assert_eq!(membership.observe::<()>(Err(())), Change { poll: Poll::Failed, ..Change::default() });
        }
        assert_eq!(membership.wanted(), &set(&["a", "b"]));
    }

    #[test]
    fn a_removal_up_to_the_share_takes_effect_at_once() {
        let mut membership = after(&["a", "b", "c", "d"]);
        let change = membership.observe(list(&["a", "b"]));
        assert_eq!(change, Change { removed: set(&["c", "d"]), ..Change::default() });
    }

    #[test]
    fn an_empty_list_must_be_repeated() {
        let mut membership = after(&["a", "b", "c"]);
        for polls_left in [2, 1] {
            let change = membership.observe(list(&[]));
            assert_eq!(change, Change { held: set(&["a", "b", "c"]), polls_left, ..Change::default() });
            assert_eq!(membership.wanted(), &set(&["a", "b", "c"]));
        }
        assert_eq!(
            membership.observe(list(&[])),
            Change { removed: set(&["a", "b", "c"]), ..Change::default() }
        );
        assert!(membership.wanted().is_empty() && membership.is_known());
    }

    #[test]
    fn the_only_tenant_is_guarded_too() {
        let mut membership = after(&["a"]);
        assert!(membership.observe(list(&[])).removed.is_empty());
        assert!(membership.observe(list(&[])).removed.is_empty());
        assert_eq!(membership.observe(list(&[])).removed, set(&["a"]));
    }

    #[test]
    fn additions_in_a_guarded_list_take_effect_at_once() {
        let mut membership = after(&["a", "b"]);
        let change = membership.observe(list(&["new"]));
        assert_eq!((change.added, change.held), (set(&["new"]), set(&["a", "b"])));
        assert_eq!(membership.wanted(), &set(&["a", "b", "new"]));
    }

    #[test]
    fn a_tenant_that_reappears_starts_the_confirmation_afresh() {
        let mut membership = after(&["a", "b", "c", "d"]);
        membership.observe(list(&[]));
        membership.observe(list(&[]));
        let change = membership.observe(list(&["d"]));
        assert_eq!((change.held, change.polls_left), (set(&["a", "b", "c"]), 2));
        assert!(membership.observe(list(&["d"])).removed.is_empty());
        assert_eq!(membership.observe(list(&["d"])).removed, set(&["a", "b", "c"]));
    }

    #[test]
    fn a_full_list_ends_it() {
        let mut membership = after(&["a", "b"]);
        membership.observe(list(&[]));
        membership.observe(list(&[]));
        assert_eq!(membership.observe(list(&["a", "b"])), Change::default());
        assert!(membership.observe(list(&[])).removed.is_empty(), "the count starts at one again");
        assert!(membership.observe(list(&[])).removed.is_empty());
    }

    #[test]
    fn a_tenant_that_goes_missing_later_is_confirmed_by_itself() {
        let mut membership = after(&["a", "b", "c", "d"]);
        membership.observe(list(&["d"]));
        membership.observe(list(&[]));
        let change = membership.observe(list(&[]));
        assert_eq!((change.removed, change.held), (set(&["a", "b", "c"]), set(&["d"])));
        assert_eq!(change.polls_left, 1);
        assert_eq!(membership.observe(list(&[])).removed, set(&["d"]));
    }

    #[test]
    fn a_failure_in_between_starts_the_confirmation_afresh() {
        let mut membership = after(&["a"]);
        membership.observe(list(&[]));
        membership.observe(list(&[]));
        let change = membership.observe::<()>(Err(()));
        assert_eq!((change.held, change.polls_left, change.poll), (set(&["a"]), 3, Poll::Failed));
        assert!(membership.observe(list(&[])).removed.is_empty());
        assert!(membership.observe(list(&[])).removed.is_empty());
        assert_eq!(membership.observe(list(&[])).removed, set(&["a"]));
    }

    #[test]
    fn limits() {
        let mut all = Membership::new(1.0, 5);
        all.observe(list(&["a", "b"]));
        assert_eq!(all.observe(list(&[])).removed, set(&["a", "b"]), "a share of 1 guards nothing");
        let mut none = Membership::new(f64::NAN, 1);
        none.observe(list(&["a", "b", "c", "d"]));
        assert_eq!(none.observe(list(&["a", "b", "c"])).held, set(&["d"]), "no number guards everything");
        let mut at_once = Membership::new(0.0, 0);
        at_once.observe(list(&["a"]));
        assert_eq!(at_once.observe(list(&[])).removed, set(&["a"]));
    }

    proptest! {
        /// Whatever the lists: listed tenants are in force, and a mass removal was absent in each of the
        /// last polls.
        #[test]
        fn listed_is_wanted_and_mass_removal_was_repeated(
            polls in proptest::collection::vec(proptest::option::weighted(0.9, 0_u8..32), 1..40),
        ) {
            const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];
            let mut membership = Membership::default();
            for (at, poll) in polls.iter().enumerate() {
                let before = membership.wanted().clone();
                let answer = poll.ok_or(()).map(|bits| {
                    let ids: Vec<&'static str> = (0..5).filter(|i| bits & (1 << i) != 0).map(|i| IDS[i]).collect();
                    set(&ids)
                });
                let change = membership.observe(answer.clone());
                let Ok(listed) = answer else {
                    prop_assert_eq!(membership.wanted(), &before);
                    continue;
                };
                prop_assert!(listed.is_subset(membership.wanted()));
                prop_assert_eq!(&(&before - &change.removed) | &change.added, membership.wanted().clone());
                let absent = before.difference(&listed).count();
                if absent * 2 > before.len() && !change.removed.is_empty() {
                    prop_assert!(at >= 2, "three polls at least");
                    for earlier in &polls[at - 2..=at] {
                        prop_assert!(earlier.is_some(), "no failure among them");
                        let bits = earlier.unwrap_or_default();
                        let seen: Vec<&'static str> = (0..5).filter(|i| bits & (1 << i) != 0).map(|i| IDS[i]).collect();
                        prop_assert!(set(&seen).is_disjoint(&change.removed));
                    }
                }
            }
        }
    }
}
