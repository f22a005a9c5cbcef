//! The model of the ledger's own worker: lock, read, write, remove, each a step of its own. It runs beside our workers.

use rand::Rng;

use crate::{
    plan::SECOND,
    postgres::Row,
    redis::{Held, Owner},
    truth::Unseen,
    values::Shape,
    world::{What, World},
};

/// Due members that it looks at.
const BATCH: usize = 50;
/// How long its claim locks live, in microseconds: 600 s, scaled as the lives of values are. Longer than its slowest flush
/// mostly takes.
const LOCK_TTL: u64 = 100 * SECOND / 1000;

/// What it does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Claim,
    Read,
    Write,
    Remove,
}

/// The worker in a ledger pod, for one tenant.
#[derive(Debug, Default)]
pub(crate) struct Pod {
    held: Vec<Held>,
    /// What is held is written.
    written: bool,
}

impl Pod {
    /// It forgets what it holds; its locks stay.
    pub(crate) fn crash(&mut self) {
        self.held.clear();
    }

    /// Whether it has written a balance that it has not removed yet.
    pub(crate) fn has_written(&self, balance: usize) -> bool {
        self.written && self.held.iter().any(|held| held.balance == balance)
    }
}

/// What it reads. One of a release up to 4.0 knows UpperCamel alone, without a format.
fn read(held: &Held, old: bool) -> Option<Row> {
    let document = held.value?.document;
    let known = match document.shape {
        Shape::Upper => true,
        Shape::Oldest | Shape::Dual { .. } | Shape::New => !old,
        _ => false,
    };
    known.then_some(Row { balance: held.balance, state: document.state })
}

impl World {
    pub(crate) fn ledger_step(&mut self, at: usize, stage: Stage) {
        let clock = self.clock();
        let away = self.redis_down_until > self.now;
        let old = self.plan.old_pod;
        let tenant = &mut self.tenants[at];
        let mut next = Stage::Claim;
        match stage {
            Stage::Claim if away => {}
            Stage::Claim => {
                tenant.pod.held.clear();
                tenant.pod.written = false;
                for (score, balance) in tenant.redis.due(clock).into_iter().take(BATCH) {
                    // `SET … NX`, by whichever pod: one that holds it already doesn't get it again.
                    if tenant.redis.entries[balance].locked_by(clock).is_none() {
                        tenant.redis.lock(clock, balance, Owner::Pod, LOCK_TTL);
                        tenant.pod.held.push(Held { balance, lease: score, former: score, value: None });
                    }
                }
                if !tenant.pod.held.is_empty() {
                    next = Stage::Read;
                    let held: Vec<usize> = tenant.pod.held.iter().map(|held| held.balance).collect();
                    self.note(Some(at), || format!("redis: the ledger's worker locks {held:?}"));
                }
            }
            Stage::Read if away => tenant.pod.held.clear(),
            Stage::Read => {
                for held in &mut tenant.pod.held {
                    held.value = tenant.redis.value(clock, held.balance);
                }
                // From 4.1 on one value that it can't read fails its whole batch.
                let readable = |held: &Held| held.value.is_none() || read(held, old).is_some();
                if old || tenant.pod.held.iter().all(readable) {
                    next = Stage::Write;
                }
            }
            Stage::Write => {
                let rows: Vec<Row> = tenant.pod.held.iter().filter_map(|held| read(held, old)).collect();
                next = Stage::Remove;
                let locked = tenant.postgres.unlocked_at(&rows) > self.now;
                if !locked && tenant.postgres.executes_at(self.now, !rows.is_empty()) == Some(self.now) {
                    tenant.pod.written = true;
                    self.note(Some(at), || {
                        format!("postgres: the ledger's worker writes {} rows", rows.len())
                    });
                    self.write_rows(at, &rows);
                } else {
                    // What has no value is removed all the same; the others stay, with their locks.
                    tenant.pod.held.retain(|held| read(held, old).is_none());
                }
            }
            Stage::Remove if away => {}
            Stage::Remove => {
                let (mut removed, mut forgotten) = (Vec::new(), Vec::new());
                for held in std::mem::take(&mut tenant.pod.held) {
                    let balance = held.balance;
                    tenant.redis.delete_lock(balance);
                    let entry = &mut tenant.redis.entries[balance];
                    if entry.score != Some(held.lease) {
                        continue;
                    }
                    entry.score = None;
                    removed.push(balance);
                    if read(&held, old).is_none()
                        && tenant.truth[balance].is_owed(tenant.postgres.version(balance))
                    {
                        tenant.truth[balance].excuse(self.now);
                        self.outcome.unseen[Unseen::Pod as usize] += 1;
                        forgotten.push(balance);
                    }
                }
                for balance in forgotten {
                    self.removed_by_pod(at, balance);
                }
                self.note(Some(at), || format!("redis: the ledger's worker removes {removed:?}"));
            }
        }
        self.check(at);
        let pause = match next {
            Stage::Claim if self.plan.pods => self.rng.random_range(SECOND / 50..SECOND / 4),
            Stage::Claim => self.rng.random_range(SECOND / 20..2 * SECOND),
            // Now and then it is slow enough for a lease to end meanwhile.
            _ if self.rng.random_ratio(1, 20) => self.rng.random_range(0..60 * SECOND),
            _ => self.rng.random_range(100_000..SECOND / 20),
        };
        self.push(self.now + pause, What::Ledger { tenant: at, stage: next });
    }
}
