//! The model of a tenant's Postgres: the version of each row, and when it can be reached.

use crate::{bugs::Bug, redis::Held};

/// One tenant's database. Times are virtual, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) rows: Vec<u64>,
    /// It refuses connections until then.
    pub(crate) down_until: u64,
    /// It takes statements, and executes them only then.
    pub(crate) hangs_until: u64,
    /// It refuses writes until then.
    pub(crate) read_only_until: u64,
    /// Rows that somebody else has locked.
    pub(crate) locked_until: Vec<u64>,
}

/// A row that a write changed: (row, version before, version after).
pub(crate) type Change = (usize, u64, u64);

impl Postgres {
    pub(crate) fn new(rows: usize) -> Self {
        Self {
            rows: vec![0; rows],
            down_until: 0,
            hangs_until: 0,
            read_only_until: 0,
            locked_until: vec![0; rows],
        }
    }

    /// When a statement that arrives now is executed; `None` = it is refused.
    pub(crate) fn executes_at(&self, now: u64, rows: &[Held]) -> Option<u64> {
        if self.down_until > now || !rows.is_empty() && self.read_only_until > now {
            return None;
        }
        let locked = rows.iter().map(|held| self.locked_until[held.balance]).max().unwrap_or(0);
        Some(now.max(self.hangs_until).max(locked))
    }

    /// The guarded update: a row changes only when the new version is higher.
    pub(crate) fn write(&mut self, rows: &[Held], bug: Option<Bug>) -> Vec<Change> {
        let mut changes = Vec::new();
        for held in rows {
            let Some(value) = held.value else { continue };
            let row = &mut self.rows[held.balance];
            if *row < value.version || bug == Some(Bug::NoVersionGuard) && *row != value.version {
                changes.push((held.balance, *row, value.version));
                *row = value.version;
            }
        }
        changes
    }
}
