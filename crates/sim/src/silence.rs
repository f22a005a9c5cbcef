//! G9 for losses that leave no trace in the schedule: each is reported within ten seconds of service, and stays reported until
//! it is written, listed, or overtaken by the ledger.
//!
//! What no witness is left of is counted and no longer asked for: the names of [`Unwitnessed`] say which these are.

use crate::{plan::SECOND, truth::Unseen, world::World};

/// From a loss to its report, while a worker serves the tenant and reaches Redis.
const REPORTED_WITHIN: u64 = 10 * SECOND;

/// A mutation that a server has lost after it had acknowledged it, and that was in no row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lost {
    pub(crate) version: u64,
    pub(crate) how: Unseen,
    /// A condition of its tenant was opened since.
    pub(crate) noticed: bool,
    /// Nothing but the count of the schedule can show it.
    pub(crate) by_count: bool,
}

/// What became of losses.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    /// By kind, in the order of [`Unseen`].
    pub made: [u64; Unseen::NAMES.len()],
    /// Written after all.
    pub written: u64,
    /// Listed as lost.
    pub listed: u64,
    /// Reported, and overtaken by a mutation that goes on from the row.
    pub overtaken: u64,
    /// Reported, and open at the end.
    pub open: u64,
    /// Not asked for, in the order of [`Unwitnessed`].
    pub unwitnessed: [u64; Unwitnessed::NAMES.len()],
    /// The longest time that one was not reported, in nanoseconds.
    pub longest: u64,
}

impl Losses {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.made.iter_mut().zip(other.made) {
            *sum += count;
        }
        for (sum, count) in self.unwitnessed.iter_mut().zip(other.unwitnessed) {
            *sum += count;
        }
        self.written += other.written;
        self.listed += other.listed;
        self.overtaken += other.overtaken;
        self.open += other.open;
        self.longest = self.longest.max(other.longest);
    }
}

/// Why a loss need not be reported, or not any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwitnessed {
    /// Its members left the schedule between two counts, and others took their place; or no worker had counted them.
    NotCounted,
    /// Postgres has lost the operation as well.
    NoOperation,
    /// The trail may not be read; it was reported, and compared as far as that goes.
    NotGranted,
    /// The row was lost, and its value has expired before a worker could compare them.
    ValueExpired,
    /// The ledger has deleted the balance.
    Deleted,
    /// It was scheduled again, and the ledger's own worker removed it unwritten.
    Pod,
}

impl Unwitnessed {
    /// Names for counters, in the order of the variants.
    pub const NAMES: [&str; 6] = [
        "between two counts",
        "the operation is lost as well",
        "the trail may not be read",
        "its value has expired",
        "deleted",
        "removed unwritten by the ledger's worker",
    ];
}

impl World {
    /// A server has lost a mutation.
    pub(crate) fn lose(&mut self, at: usize, balance: usize, version: u64, how: Unseen, by_count: bool) {
        self.outcome.losses.made[how as usize] += 1;
        if !self.plan.watch {
            return;
        }
        let lost = &mut self.tenants[at].lost[balance];
        // The latest is the hardest to find.
        *lost = Some(Lost { version, how, noticed: false, by_count });
        self.note(Some(at), || {
            format!("lost: version {version} of balance {balance}, {}", Unseen::NAMES[how as usize])
        });
    }

    /// A condition of a tenant was opened.
    pub(crate) fn noticed(&mut self, at: usize) {
        for lost in self.tenants[at].lost.iter_mut().flatten() {
            lost.noticed = true;
        }
    }

    fn forget(&mut self, at: usize, why: Unwitnessed, which: impl Fn(&Lost) -> bool) {
        for balance in 0..self.plan.balances {
            let lost = &mut self.tenants[at].lost[balance];
            if lost.as_ref().is_some_and(&which) {
                *lost = None;
                self.outcome.losses.unwitnessed[why as usize] += 1;
            }
        }
    }

    /// The ledger's own worker has removed a balance unwritten.
    pub(crate) fn removed_by_pod(&mut self, at: usize, balance: usize) {
        if self.tenants[at].lost[balance].take().is_some() {
            self.outcome.losses.unwitnessed[Unwitnessed::Pod as usize] += 1;
        }
    }

    /// A count has not shown what only a count could.
    pub(crate) fn not_seen_by_count(&mut self, at: usize) {
        self.forget(at, Unwitnessed::NotCounted, |lost| lost.by_count && !lost.noticed);
    }

    /// A count has shown that a schedule has lost members.
    pub(crate) fn seen_by_count(&mut self, at: usize) {
        for lost in self.tenants[at].lost.iter_mut().flatten() {
            lost.by_count = false;
        }
    }

    /// What a tenant's condition was about was compared without the trail.
    pub(crate) fn without_witness(&mut self, at: usize) {
        self.forget(at, Unwitnessed::NotGranted, |lost| lost.noticed);
    }

    /// Whether a worker reports that data of a tenant are lost, or the next one that serves it will.
    fn is_reported(&self, at: usize) -> bool {
        let reports = |worker: &crate::world::Worker| {
            worker.up && worker.watcher.as_ref().is_some_and(|watcher| watcher.reports(at))
        };
        self.server.kept.open.contains_key(&at) || self.workers.iter().any(reports)
    }

    /// No loss is silent.
    pub(crate) fn check_silence(&mut self) {
        for at in 0..self.tenants.len() {
            if self.tenants[at].lost.iter().all(Option::is_none) {
                self.tenants[at].silent_for = 0;
                continue;
            }
            let counted = self
                .workers
                .iter()
                .any(|worker| worker.up && worker.watcher.as_ref().is_some_and(|watcher| watcher.counts(at)));
            if !counted {
                self.not_seen_by_count(at);
            }
            let mut silent = None;
            let reported = self.is_reported(at);
            for balance in 0..self.plan.balances {
                let Some(lost) = self.tenants[at].lost[balance] else { continue };
                let tenant = &self.tenants[at];
                let (entry, truth) = (&tenant.redis.entries[balance], &tenant.truth[balance]);
                let row = tenant.postgres.version(balance);
                let losses = &mut self.outcome.losses;
                let tally = if tenant.postgres.tables.deleted[balance] {
                    &mut losses.unwitnessed[Unwitnessed::Deleted as usize]
                } else if row >= lost.version {
                    &mut losses.written
                } else if entry.loss.is_some_and(|loss| loss.version >= Some(lost.version)) {
                    &mut losses.listed
                } else if lost.version <= truth.untraced && (reported || lost.noticed) {
                    &mut losses.unwitnessed[Unwitnessed::NoOperation as usize]
                } else if lost.how == Unseen::PostgresTail
                    && entry.value.is_none_or(|value| {
                        value.expires <= crate::redis::clock(self.now).saturating_add_signed(self.skew)
                            || value.document.state.version < lost.version
                    })
                {
                    &mut losses.unwitnessed[Unwitnessed::ValueExpired as usize]
                } else if truth.newest >= lost.version
                    && entry.score.is_some()
                    && truth.excused < lost.version
                {
                    // Scheduled: whether it is written is checked like everything else.
                    if lost.noticed || lost.how == Unseen::PostgresTail {
                        &mut losses.overtaken
                    } else {
                        continue;
                    }
                } else {
                    silent = silent.or((!reported).then_some((balance, lost)));
                    continue;
                };
                *tally += 1;
                self.tenants[at].lost[balance] = None;
            }
            let now = self.now;
            let served = (0..self.workers.len()).any(|at_worker| {
                let worker = &self.workers[at_worker];
                let until = worker.frozen_until.max(worker.cut_until).max(worker.flaky_until);
                worker.up && !worker.stopping && until <= now && self.works_on(at_worker, at)
            });
            let redis = self.redis_down_until <= now;
            // The comparison after a failover of Postgres needs its server.
            let postgres = self.tenants[at].postgres.executes_at(now, false) == Some(now);
            let tenant = &mut self.tenants[at];
            let Some((balance, lost)) = silent else {
                tenant.silent_for = 0;
                continue;
            };
            let well = served && redis && (postgres || lost.how != Unseen::PostgresTail);
            tenant.silent_for = if well { tenant.silent_for + SECOND } else { 0 };
            let silent_for = tenant.silent_for;
            self.outcome.losses.longest = self.outcome.losses.longest.max(silent_for);
            if silent_for > REPORTED_WITHIN {
                let what = format!(
                    "no worker reports that version {} of balance {balance} was lost ({})",
                    lost.version,
                    Unseen::NAMES[lost.how as usize]
                );
                self.violate("G9", at, what);
            }
        }
    }

    /// What is still open at the end.
    pub(crate) fn count_open(&mut self) {
        for at in 0..self.tenants.len() {
            if self.is_reported(at) {
                self.outcome.losses.open += self.tenants[at].lost.iter().flatten().count() as u64;
            }
        }
    }
}
