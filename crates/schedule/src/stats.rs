//! Counters of the connections to Redis: failed calls by class, and opened connections.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::ErrorClass;

/// Counters of one or more links; atomics, so counting is nearly free.
#[derive(Debug, Default)]
pub struct LinkStats {
    errors: [AtomicU64; ErrorClass::ALL.len()],
    connects: AtomicU64,
}

impl LinkStats {
    /// Calls that failed with this class. A script missing on the server is not a failure: the call loads it.
    #[must_use]
    pub fn errors(&self, class: ErrorClass) -> u64 {
        self.errors[class as usize].load(Relaxed)
    }

    /// All failed calls.
    #[must_use]
    pub fn errors_total(&self) -> u64 {
        ErrorClass::ALL.iter().map(|class| self.errors(*class)).sum()
    }

    /// Opened connections: one per link, and one for each that was replaced.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.connects.load(Relaxed)
    }

    /// Counts a failed call.
    pub fn failed(&self, class: ErrorClass) {
        self.errors[class as usize].fetch_add(1, Relaxed);
    }

    /// Counts an opened connection.
    pub fn connected(&self) {
        self.connects.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_a_counter_of_its_own() {
        let stats = LinkStats::default();
        for (n, class) in ErrorClass::ALL.iter().enumerate() {
            assert_eq!(*class as usize, n, "ALL is in the order of the enum");
            for _ in 0..=n {
                stats.failed(*class);
            }
        }
        let counted: Vec<u64> = ErrorClass::ALL.iter().map(|class| stats.errors(*class)).collect();
        let expected: Vec<u64> = (1..=ErrorClass::ALL.len() as u64).collect();
        assert_eq!(counted, expected);
        assert_eq!(stats.errors_total(), expected.iter().sum::<u64>());
    }
}
