//! The model of a tenant's Postgres: the row of each balance, the ledger's trail of operations, and when it can be reached.

use crate::{bugs::Bug, values::State};

/// What is written to a balance's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) balance: usize,
    pub(crate) state: State,
}

/// What becomes of the data when a server is lost.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    pub(crate) rows: Vec<State>,
    /// Rows that the ledger has deleted.
    pub(crate) deleted: Vec<bool>,
    /// The highest version that the trail has of each balance.
    pub(crate) trail: Vec<u64>,
}

/// One tenant's database. Times are virtual, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) tables: Tables,
    /// How often a standby was promoted.
    pub(crate) timeline: u32,
    /// When it was started.
    pub(crate) started: u64,
    /// It refuses connections until then.
    pub(crate) down_until: u64,
    /// It takes statements, and executes them only then.
    pub(crate) hangs_until: u64,
    /// It refuses writes until then.
    pub(crate) read_only_until: u64,
    /// Rows that another session has locked.
    pub(crate) locked_until: Vec<u64>,
}

/// A row that a write changed: what it held before.
pub(crate) type Change = (Row, State);

/// What the trail shows of a balance whose value is gone (`balance_sync_store::Fate`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Deleted,
    /// The row is as new as the trail.
    Stale,
    /// The trail has this version, and the row doesn't.
    Lost(u64),
    /// The trail may not be read.
    Unknown,
}

impl Postgres {
    pub(crate) fn new(rows: usize) -> Self {
        Self {
            tables: Tables {
                rows: vec![State::default(); rows],
                deleted: vec![false; rows],
                trail: vec![0; rows],
            },
            timeline: 0,
            started: 0,
            down_until: 0,
            hangs_until: 0,
            read_only_until: 0,
            locked_until: vec![0; rows],
        }
    }

    /// The version of a row.
    pub(crate) fn version(&self, balance: usize) -> u64 {
        self.tables.rows[balance].version
    }

    /// When a statement that arrives now is executed, if it meets no locked row; `None` = it is refused.
    pub(crate) fn executes_at(&self, now: u64, writes: bool) -> Option<u64> {
        let refused = self.down_until > now || writes && self.read_only_until > now;
        (!refused).then_some(now.max(self.hangs_until))
    }

    /// When the last of these rows is unlocked; `now` or before = none is locked.
    pub(crate) fn unlocked_at(&self, rows: &[Row]) -> u64 {
        rows.iter().map(|row| self.locked_until[row.balance]).max().unwrap_or(0)
    }

    /// The guarded update: a row changes only when it is there and the new version is higher.
    pub(crate) fn write(&mut self, rows: &[Row], bug: Option<Bug>) -> Vec<Change> {
        let mut changes = Vec::new();
        for &new in rows {
            let row = &mut self.tables.rows[new.balance];
            let newer = row.version < new.state.version
                || bug == Some(Bug::NoVersionGuard) && row.version != new.state.version;
            if newer && !self.tables.deleted[new.balance] {
                changes.push((new, *row));
                *row = new.state;
            }
        }
        changes
    }

    /// What became of a balance whose value is gone. `granted`: the trail may be read.
    pub(crate) fn fate(&self, balance: usize, granted: bool) -> Fate {
        let trail = self.tables.trail[balance];
        if self.tables.deleted[balance] {
            Fate::Deleted
        } else if !granted {
            Fate::Unknown
        } else if trail > self.version(balance) {
            Fate::Lost(trail)
        } else {
            Fate::Stale
        }
    }
}
