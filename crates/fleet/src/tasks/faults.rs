//! Panics of background tasks, for tests.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::{TaskName, lock};

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Before the task has done anything.
    Start,
    /// Where it reports progress.
    Beat,
}

/// Panics for tests of how they are survived. A worker outside tests has none.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<HashMap<(TaskName, Moment), u64>>>);

impl Faults {
    /// Makes the task panic the next `times` times that it comes to this moment.
    pub fn panic(&self, name: TaskName, moment: Moment, times: u64) {
        lock(&self.0).insert((name, moment), times);
    }

    /// Panics that are still to come.
    #[must_use]
    pub fn left(&self, name: TaskName, moment: Moment) -> u64 {
        lock(&self.0).get(&(name, moment)).copied().unwrap_or_default()
    }

    pub(super) fn strike(&self, name: TaskName, moment: Moment) {
        let strikes = match lock(&self.0).get_mut(&(name, moment)) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        };
        // Not under the lock.
        assert!(!strikes, "a test made the task {name} panic");
    }
}
