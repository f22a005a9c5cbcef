//! The model of the ledger's own worker: lock, read, write, remove, each a step of its own. It runs beside our workers.

use rand::Rng;

use crate::{
    plan::SECOND,
    redis::{self, Held},
    world::{What, World},
};

/// Due members that it looks at.
const BATCH: usize = 50;
/// How long its claim locks live, in microseconds.
const LOCK_TTL: u64 = 600 * SECOND / 1000;

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
}

impl Pod {
    /// It forgets what it holds; its locks stay.
    pub(crate) fn crash(&mut self) {
        self.held.clear();
    }
}

impl World {
    pub(crate) fn ledger_step(&mut self, at: usize, stage: Stage) {
        let clock = redis::clock(self.now);
        let away = self.redis_down_until > self.now;
        let tenant = &mut self.tenants[at];
        let mut next = Stage::Claim;
        match stage {
            Stage::Claim if away => {}
            Stage::Claim => {
                tenant.pod.held.clear();
                for (score, balance) in tenant.redis.due(clock).into_iter().take(BATCH) {
                    let entry = &mut tenant.redis.entries[balance];
                    if entry.locked_until <= clock {
                        entry.locked_until = clock + LOCK_TTL;
                        tenant.pod.held.push(Held { balance, lease: score, former: score, value: None });
                    }
                }
                if !tenant.pod.held.is_empty() {
                    next = Stage::Read;
                }
            }
            Stage::Read if away => tenant.pod.held.clear(),
            Stage::Read => {
                for held in &mut tenant.pod.held {
                    held.value = tenant.redis.value(clock, held.balance);
                }
                // One value that it can't read fails the whole batch.
                if tenant.pod.held.iter().all(|held| held.value.is_none_or(|value| !value.poison)) {
                    next = Stage::Write;
                }
            }
            Stage::Write => {
                let rows: Vec<Held> = tenant.pod.held.clone();
                if tenant.postgres.executes_at(self.now, &rows) == Some(self.now) {
                    self.note(Some(at), || {
                        format!("postgres: the ledger's worker writes {} rows", rows.len())
                    });
                    self.write_rows(at, &rows);
                    next = Stage::Remove;
                }
            }
            Stage::Remove if away => {}
            Stage::Remove => {
                let mut removed = Vec::new();
                for held in std::mem::take(&mut tenant.pod.held) {
                    let entry = &mut tenant.redis.entries[held.balance];
                    entry.locked_until = 0;
                    if entry.score == Some(held.lease) {
                        entry.score = None;
                        removed.push(held.balance);
                    }
                }
                self.note(Some(at), || format!("redis: the ledger's worker removes {removed:?}"));
            }
        }
        self.check(at);
        let pause = match next {
            Stage::Claim => self.rng.random_range(SECOND / 20..2 * SECOND),
            // Now and then it is slow enough for a lease to end meanwhile.
            _ if self.rng.random_ratio(1, 20) => self.rng.random_range(0..60 * SECOND),
            _ => self.rng.random_range(100_000..SECOND / 20),
        };
        self.push(self.now + pause, What::Ledger { tenant: at, stage: next });
    }
}
