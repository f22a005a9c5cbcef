//! What really happened to the balances of a tenant, which only the world knows.

use std::collections::VecDeque;

use crate::values::Shape;

/// One mutation, by its mark.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mutation {
    pub(crate) balance: usize,
    pub(crate) version: u64,
    /// Whether its value can be read.
    pub(crate) good: bool,
}

/// Why a mutation need not reach Postgres any more although no loss of it is listed: only an audit can notice it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unseen {
    /// Redis lost the mutation as a whole, with its last writes or with everything.
    RedisTail,
    /// Redis evicted the schedule.
    Schedule,
    /// Postgres lost a write that it had acknowledged.
    PostgresTail,
    /// The ledger's own worker removed it unwritten.
    Pod,
    /// Its value was lost, and before a worker looked the ledger went on from an older row.
    Fork,
}

impl Unseen {
    /// Names for counters, in the order of the variants.
    pub const NAMES: [&str; 5] = [
        "lost with Redis's last writes",
        "evicted with the schedule",
        "lost with Postgres's last writes",
        "removed unwritten by the ledger's worker",
        "forked before a worker looked",
    ];
}

/// What really happened to a balance.
#[derive(Debug, Clone)]
pub(crate) struct Truth {
    /// The newest version in what Redis has kept.
    pub(crate) newest: u64,
    /// The highest version there has ever been.
    pub(crate) highest: u64,
    /// How the newest is written.
    pub(crate) shape: Shape,
    pub(crate) score: f64,
    /// How long its value lives, in microseconds.
    pub(crate) life: u64,
    pub(crate) changed_at: u64,
    /// Versions that are not in Postgres, and since when they wait.
    pub(crate) unwritten: VecDeque<(u64, u64)>,
    /// Redis has lost the value of the newest version, unwritten, at this moment.
    pub(crate) gone: Option<u64>,
    /// When the value last vanished, written or not.
    pub(crate) vanished_at: u64,
    /// Versions up to this one need not be in Postgres; see [`Unseen`].
    pub(crate) excused: u64,
    /// Postgres has lost the operations up to this version.
    pub(crate) untraced: u64,
    /// The loss of this balance has been listed.
    pub(crate) listed: bool,
    /// The ledger has deleted it.
    pub(crate) deleted: bool,
    /// Another session has its row locked until then, or (mode `lock`) had the balance locked.
    pub(crate) locked_until: u64,
    /// Mode `lock`: for how long the ledger's own worker has had it locked unwritten while ours were well.
    pub(crate) locked_for: u64,
}

impl Default for Truth {
    fn default() -> Self {
        Self {
            newest: 0,
            highest: 0,
            shape: Shape::Upper,
            score: 0.0,
            life: 0,
            changed_at: 0,
            unwritten: VecDeque::new(),
            gone: None,
            vanished_at: 0,
            excused: 0,
            untraced: 0,
            listed: false,
            deleted: false,
            locked_until: 0,
            locked_for: 0,
        }
    }
}

impl Truth {
    /// Whether the newest version can be read.
    pub(crate) fn is_good(&self) -> bool {
        !self.shape.is_poison() && !self.shape.waits()
    }

    /// Whether the newest version is still to be written to a row of this version.
    pub(crate) fn is_owed(&self, row: u64) -> bool {
        self.newest > row && self.newest > self.excused
    }

    /// The newest version waits for being written from now on.
    pub(crate) fn waits_since(&mut self, now: u64) {
        if self.is_good() {
            self.unwritten.push_back((self.newest, now));
        } else {
            self.unwritten.clear();
        }
    }

    /// The row has this version now.
    pub(crate) fn written(&mut self, version: u64) {
        while self.unwritten.front().is_some_and(|(waits, _)| *waits <= version) {
            self.unwritten.pop_front();
        }
    }

    /// What is not written up to now need not be.
    pub(crate) fn excuse(&mut self, now: u64) {
        self.excused = self.newest;
        self.changed_at = now;
        self.gone = None;
        self.unwritten.clear();
    }
}
