//! Whether Redis announces what is written to a tenant's schedules, so that no task need look at them.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Schedules of a tenant at most: one bit for each.
const MOST: usize = 8;

/// Which schedules of a tenant were empty at the last look and have been announced since ([`crate::backends::Tracker`]).
#[derive(Debug, Default)]
pub struct Quiet {
    empty: AtomicU8,
    /// How many schedules there are; 0 = not known yet.
    schedules: AtomicU8,
}

impl Quiet {
    /// The tenant has so many schedules.
    pub fn of(&self, schedules: usize) {
        self.schedules.store(u8::try_from(schedules).unwrap_or(u8::MAX), Relaxed);
    }

    /// This one of its schedules is empty, and announced from now on.
    pub fn begin(&self, schedule: usize) {
        if schedule < MOST {
            self.empty.fetch_or(1 << schedule, Relaxed);
        }
    }

    /// It isn't any more, or that isn't known.
    pub(super) fn end(&self, schedule: usize) {
        if schedule < MOST {
            self.empty.fetch_and(!(1 << schedule), Relaxed);
        }
    }

    /// Whether all of them are empty and announced.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let (schedules, empty) = (usize::from(self.schedules.load(Relaxed)), self.empty.load(Relaxed));
        (1..=MOST).contains(&schedules) && u16::from(empty) == (1 << schedules) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_while_all_schedules_are() {
        let quiet = Quiet::default();
        assert!(!quiet.is_quiet(), "of none nothing is known");
        quiet.of(2);
        quiet.begin(0);
        assert!(!quiet.is_quiet());
        quiet.begin(1);
        assert!(quiet.is_quiet());
        quiet.end(0);
        assert!(!quiet.is_quiet());
        quiet.of(MOST);
        (0..=MOST).for_each(|schedule| quiet.begin(schedule));
        assert!(quiet.is_quiet());
        quiet.of(MOST + 1);
        assert!(!quiet.is_quiet(), "more than it knows of");
    }
}
