//! What is known of Redis' announcements of changes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Whether Redis announces changes of idle schedules, and of how many.
#[derive(Debug, Default)]
pub struct TrackingStatus {
    threads: AtomicU64,
    schedules: AtomicU64,
    wakes: AtomicU64,
    /// That it doesn't is in the log.
    pub(crate) is_said: AtomicBool,
}

impl TrackingStatus {
    /// Threads to which Redis announces changes.
    #[must_use]
    pub fn threads(&self) -> u64 {
        self.threads.load(Relaxed)
    }

    /// Schedules of which changes are announced.
    #[must_use]
    pub fn schedules(&self) -> u64 {
        self.schedules.load(Relaxed)
    }

    /// Idle schedules in which something was found after Redis had announced it.
    #[must_use]
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Relaxed)
    }

    pub(crate) fn count_wake(&self) {
        self.wakes.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_thread(&self, tracks: bool) {
        if tracks {
            self.threads.fetch_add(1, Relaxed);
        } else {
            self.threads.fetch_sub(1, Relaxed);
        }
    }

    pub(crate) fn count_schedules(&self, before: usize, now: usize) {
        self.schedules.fetch_add(now as u64, Relaxed);
        self.schedules.fetch_sub(before as u64, Relaxed);
    }
}
