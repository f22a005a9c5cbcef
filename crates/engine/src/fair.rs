//! A weighted queue (`docs/decisions/0046-weights-of-tenants.md`).
//!
//! Time is virtual: each grant moves it on by 1 / (the weights that wait), so that it grows by 1 while the queue is served once. An
//! entry is due at its arrival plus 1 / its weight, and entries are served in the order in which they are due. So equal weights are
//! served in the order of arrival; an owner that queues again at once with weight 4 is served four times as often as one with
//! weight 1; and an entry is passed only by entries that arrived within one unit of that time after it.

use std::collections::VecDeque;
use std::num::NonZeroU32;

/// The unit of virtual time, far above any sum of weights, so that rounding doesn't matter.
const UNIT: u128 = 1 << 64;

/// How often an owner of entries is served, compared with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(NonZeroU32);

impl Weight {
    /// The default.
    pub const ONE: Weight = Weight(NonZeroU32::MIN);
    /// The largest.
    pub const MOST: u32 = 100;

    /// A weight from 1 to [`Weight::MOST`].
    #[must_use]
    pub fn new(weight: u32) -> Option<Weight> {
        NonZeroU32::new(weight).filter(|weight| weight.get() <= Self::MOST).map(Weight)
    }

    /// As a number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

/// Waiting entries, in the order in which they are served.
#[derive(Debug)]
pub struct FairQueue<T> {
    entries: VecDeque<Entry<T>>,
    now: u128,
    /// The weights of all entries.
    waiting: u128,
}

#[derive(Debug)]
struct Entry<T> {
    due: u128,
    weight: Weight,
    item: T,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), now: 0, waiting: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry at this position, from 0.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&T> {
        self.entries.get(at).map(|entry| &entry.item)
    }

    /// Adds an entry.
    pub fn push(&mut self, weight: Weight, item: T) {
        let due = self.now + UNIT / u128::from(weight.get());
        let at = self.entries.partition_point(|entry| entry.due <= due);
        self.waiting += u128::from(weight.get());
        self.entries.insert(at, Entry { due, weight, item });
    }

    /// Removes an entry that is served, which moves virtual time on.
    pub fn serve(&mut self, at: usize) -> Option<T> {
        if at < self.entries.len() {
            self.now += UNIT / self.waiting.max(1);
        }
        self.leave(at)
    }

    /// Removes an entry that no longer waits.
    pub fn leave(&mut self, at: usize) -> Option<T> {
        let entry = self.entries.remove(at)?;
        self.waiting -= u128::from(entry.weight.get());
        Some(entry.item)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Serves owners with these weights, each of which queues again at once. Returns the order of grants.
    fn contended(weights: &[u32], grants: usize) -> Vec<usize> {
        let mut queue = FairQueue::default();
        let weight = |number: usize| Weight::new(weights[number]).unwrap();
        (0..weights.len()).for_each(|number| queue.push(weight(number), number));
        let grant = |queue: &mut FairQueue<usize>| {
            let served = queue.serve(0).unwrap();
            queue.push(weight(served), served);
            served
        };
        (0..grants).map(|_| grant(&mut queue)).collect()
    }

    #[test]
    fn grants_are_in_proportion_to_the_weights() {
        let cases: [&[u32]; 5] = [
            &[4, 1, 1, 1, 1],
            &[4, 2, 1, 1, 1, 1, 1, 1, 1, 1],
            &[100, 1, 1],
            &[100, 100, 1],
            &[8, 4, 2, 1, 1],
        ];
        for weights in cases {
            let round: u32 = weights.iter().sum();
            // All arrive at once, which orders the first rounds differently.
            let warm = 3 * round as usize;
            let served = contended(weights, warm + 10 * round as usize);
            for (number, weight) in weights.iter().enumerate() {
                let grants = served[warm..].iter().filter(|served| **served == number).count();
                assert_eq!(grants, 10 * *weight as usize, "number {number} of {weights:?}");
            }
        }
    }

    #[test]
    fn no_weight_is_starved() {
        for weights in [vec![100, 100, 100, 1], vec![50; 30], [vec![100; 40], vec![1]].concat()] {
            let round: u32 = weights.iter().sum();
            let (last, round) = (weights.len() - 1, round as usize);
            let served = contended(&weights, 6 * round);
            let at: Vec<usize> = (0..served.len()).filter(|grant| served[*grant] == last).collect();
            assert!(at[0] <= 2 * round, "{weights:?}: first served as number {}", at[0]);
            assert!(at.windows(2).all(|pair| pair[1] - pair[0] <= 2 * round), "{weights:?}: {at:?}");
        }
    }

    #[test]
    fn equal_weights_are_served_in_the_order_of_arrival() {
        for weight in [1, 7] {
            let (mut queue, mut expected) = (FairQueue::default(), VecDeque::new());
            // Arrivals and grants in an order without a pattern, by a generator of the simplest kind.
            let mut random = 12_345_u32;
            for number in 0..5_000 {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if random >> 30 != 0 {
                    queue.push(Weight::new(weight).unwrap(), number);
                    expected.push_back(number);
                } else if !expected.is_empty() {
                    // Some are passed because what there is doesn't suit them, and some leave.
                    let at = (random >> 8) as usize % expected.len().min(3);
                    let gone = if random >> 29 & 1 == 0 { queue.serve(at) } else { queue.leave(at) };
                    assert_eq!(gone, expected.remove(at));
                }
            }
            assert!(queue.len() > 100);
            while let Some(number) = queue.serve(0) {
                assert_eq!(Some(number), expected.pop_front());
            }
            assert!(expected.is_empty() && queue.is_empty());
        }
    }

    #[test]
    fn an_entry_that_left_counts_no_longer() {
        let mut queue = FairQueue::default();
        queue.push(Weight::new(100).unwrap(), "gone");
        queue.push(Weight::ONE, "first");
        assert_eq!(queue.leave(0), Some("gone"));
        assert_eq!((queue.leave(1), queue.serve(1)), (None, None));
        // One grant to the only one who waits is a whole unit of time: what comes then is due a unit later.
        queue.push(Weight::ONE, "second");
        assert_eq!(queue.serve(0), Some("first"));
        queue.push(Weight::new(2).unwrap(), "third");
        assert_eq!((queue.get(0), queue.get(1)), (Some(&"second"), Some(&"third")));
    }

    #[test]
    fn weights_have_bounds() {
        assert_eq!(Weight::new(0), None);
        assert_eq!(Weight::new(101), None);
        assert_eq!(Weight::new(100).map(Weight::get), Some(100));
        assert_eq!(Weight::default().get(), 1);
    }
}
