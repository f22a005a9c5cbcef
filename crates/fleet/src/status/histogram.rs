//! Histograms of seconds, cheap to count into.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the histogram buckets, in seconds.
pub const BUCKETS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    120.0,
];

/// Observations in each bucket of [`BUCKETS`], and beyond the last.
pub type LagCounts = [u64; BUCKETS.len() + 1];

/// A histogram of seconds over [`BUCKETS`].
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one observation, in seconds.
    pub fn observe(&self, seconds: f64) {
        let seconds = seconds.max(0.0);
        if let Some(at) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            self.buckets[at].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.micros.fetch_add((seconds * 1e6) as u64, Relaxed);
    }

    /// Number of observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Sum of all observations, in seconds.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.micros.load(Relaxed) as f64 / 1e6
    }

    /// Observations at or below each bound of [`BUCKETS`].
    #[must_use]
    pub fn cumulative(&self) -> Vec<u64> {
        let mut total = 0;
        self.buckets
            .iter()
            .map(|bucket| {
                total += bucket.load(Relaxed);
                total
            })
            .collect()
    }

    /// Observations in each bucket, and beyond the last.
    #[must_use]
    pub fn counts(&self) -> LagCounts {
        let mut counts = [0; BUCKETS.len() + 1];
        let mut within = 0;
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Relaxed);
            within += *count;
        }
        // Read last: an observation under way is then counted beyond the last bucket for a moment, or not yet.
        counts[BUCKETS.len()] = self.count().saturating_sub(within);
        counts
    }

    /// The bound of the bucket in which the quantile (0 to 1) lies; `None` without observations, infinite beyond the
    /// last bucket.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (quantile * count as f64).ceil().max(1.0) as u64;
        let at = self.cumulative().iter().position(|seen| *seen >= rank);
        Some(at.map_or(f64::INFINITY, |at| BUCKETS[at]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_name_the_bucket() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for _ in 0..99 {
            histogram.observe(0.004);
        }
        histogram.observe(500.0);
        assert_eq!(histogram.quantile(0.5), Some(0.005));
        assert_eq!(histogram.quantile(0.99), Some(0.005));
        assert_eq!(histogram.quantile(1.0), Some(f64::INFINITY));
        assert_eq!(histogram.count(), 100);
    }
}
