//! Two sets of keys compared without keeping either: which keys may be in one of them only.
//!
//! Keys are divided into groups by a hash, and of each group only the sum of its keys' hashes is kept. Groups with equal sums have the
//! same keys; that this is wrong has a chance of one in 2^48 for each group that differs, and keys can't be chosen for it, as the hash is
//! keyed by random numbers. A key that is added twice to one side makes its group differ, which costs a look and hides nothing.

use std::hash::{BuildHasher, RandomState};

/// Keys that share a group, about.
const PER_GROUP: u64 = 16;
const FEWEST: u64 = 64;
const MOST: u64 = 1 << 16;

/// What two sides have of a set of keys.
#[derive(Debug)]
pub(super) struct Sketch {
    hasher: RandomState,
    /// Sum of hashes on one side minus that of the other.
    groups: Vec<u64>,
}

impl Sketch {
    /// For about so many keys; takes at most half a megabyte.
    pub(super) fn new(keys: u64) -> Self {
        let groups = (keys / PER_GROUP).clamp(FEWEST, MOST).next_power_of_two();
        Self { hasher: RandomState::new(), groups: vec![0; groups as usize] }
    }

    /// A key of the one side.
    pub(super) fn add(&mut self, key: &[u8]) {
        let (group, hash) = self.place(key);
        self.groups[group] = self.groups[group].wrapping_add(hash);
    }

    /// A key of the other side.
    pub(super) fn subtract(&mut self, key: &[u8]) {
        let (group, hash) = self.place(key);
        self.groups[group] = self.groups[group].wrapping_sub(hash);
    }

    /// Whether all groups have the same keys on both sides.
    pub(super) fn is_even(&self) -> bool {
        self.groups.iter().all(|sum| *sum == 0)
    }

    /// Whether the group of this key has other keys on one side than on the other.
    pub(super) fn may_differ(&self, key: &[u8]) -> bool {
        self.groups[self.place(key).0] != 0
    }

    fn place(&self, key: &[u8]) -> (usize, u64) {
        let hash = self.hasher.hash_one(key);
        (hash as usize & (self.groups.len() - 1), hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Vec<u8> {
        format!("balance:{{transactions}}:{n}").into_bytes()
    }

    #[test]
    fn equal_sets_are_even_in_whatever_order() {
        let mut sketch = Sketch::new(100_000);
        (0..100_000).for_each(|n| sketch.add(&key(n)));
        (0..100_000).rev().for_each(|n| sketch.subtract(&key(n)));
        assert!(sketch.is_even());
        assert!((0..100_000).all(|n| !sketch.may_differ(&key(n))));
    }

    #[test]
    fn what_is_on_one_side_only_and_little_else_may_differ() {
        let mut sketch = Sketch::new(100_000);
        (0..100_000).for_each(|n| sketch.add(&key(n)));
        (50..100_050).for_each(|n| sketch.subtract(&key(n)));
        assert!(!sketch.is_even());
        assert!((0..50).chain(100_000..100_050).all(|n| sketch.may_differ(&key(n))));
        let looks = (0..100_050).filter(|n| sketch.may_differ(&key(*n))).count();
        assert!(looks < 5_000, "{looks} keys are looked at because of 100");
    }

    #[test]
    fn a_key_that_comes_twice_does_not_hide_another() {
        let mut sketch = Sketch::new(10);
        (0..10).for_each(|n| sketch.add(&key(n)));
        (0..10).chain([3, 3]).for_each(|n| sketch.subtract(&key(n)));
        assert!(sketch.may_differ(&key(3)));
    }

    #[test]
    fn its_memory_is_bounded() {
        assert_eq!(Sketch::new(u64::MAX / 2).groups.len(), 1 << 16);
        assert_eq!(Sketch::new(0).groups.len(), 64);
    }
}
