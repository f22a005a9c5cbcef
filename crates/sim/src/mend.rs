//! The model of the repair: compares the values that Redis still has with the rows, and rows with the trail, for tenants with
//! an open condition, and values with rows where another Postgres answers than before.

use std::time::Duration;

use balance_sync_engine::vanish::{Found, Listed, Next};

use crate::{
    bugs::Bug,
    plan::SECOND,
    redis::Loss,
    watch::{Step, Watcher},
    world::World,
};

/// How often it is looked whether something is to be done.
const LOOK_EVERY: u64 = SECOND;
/// Microseconds within which what is made due is claimed, and its value kept alive from then on.
const CLAIMED_WITHIN: u64 = 20 * 1_000_000;
/// Pause before what failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl World {
    pub(crate) fn repair(&mut self, worker: usize, watcher: &mut Watcher) {
        self.watch_later(worker, Step::Repair, LOOK_EVERY);
        for tenant in 0..self.plan.tenants {
            if self.works_on(worker, tenant) {
                self.follow_timeline(worker, tenant);
            }
        }
        for tenant in watcher.board.keys().copied().collect::<Vec<_>>() {
            let now = self.instant();
            let Some(open) = watcher.board.get_mut(&tenant).filter(|_| self.works_on(worker, tenant)) else {
                continue;
            };
            let mut next = open.episode.next(now);
            if self.bug == Some(Bug::WaitUnwatched) && next == Next::Look {
                next = Next::Wait;
            }
            if next == Next::Wait {
                continue;
            }
            if !self.reaches(worker, tenant) {
                open.episode.failed(now, RETRY_AFTER);
                continue;
            }
            match next {
                Next::Wait => {}
                Next::Values => {
                    let found = self.compare_values(worker, tenant);
                    open.episode.compared_values(now, found);
                }
                Next::Look => self.look_at_postgres(tenant, open),
                Next::Operations => {
                    let ((lost, left), unreadable) = match self.plan.granted {
                        true if self.bug == Some(Bug::OperationsNotCompared) => ((0, 0), None),
                        true => (self.compare_operations(worker, tenant), None),
                        false => ((0, 0), Some(String::new())),
                    };
                    let left = if self.bug == Some(Bug::ScheduledLossForgotten) { 0 } else { left };
                    let is_blind = unreadable.is_some();
                    if self.bug != Some(Bug::WaitUnwatched) {
                        self.look_at_postgres(tenant, open);
                    }
                    let written = watcher.written.get(&tenant).copied().unwrap_or(0);
                    let written = written.saturating_sub(open.written);
                    let listed = Listed { lost, new: lost, left, undecided: 0 };
                    let forgotten = self.forgotten(tenant, &open.members);
                    if open.episode.compared_operations(now, listed, written, forgotten, unreadable) {
                        let since = open.since;
                        watcher.done.push((tenant, since));
                        watcher.board.remove(&tenant);
                        self.note(Some(tenant), || format!("worker {worker}: nothing is left open"));
                        if is_blind {
                            self.without_witness(tenant);
                        }
                    }
                }
            }
        }
    }

    /// How many of these members are neither scheduled nor written nor listed.
    fn forgotten(&self, at: usize, members: &[(usize, u64)]) -> u64 {
        let tenant = &self.tenants[at];
        let is_forgotten = |&&(balance, version): &&(usize, u64)| {
            let entry = &tenant.redis.entries[balance];
            entry.score.is_none()
                && !tenant.postgres.tables.deleted[balance]
                && tenant.postgres.version(balance) < version
                && !entry.quarantined
                && entry.loss.is_none()
        };
        members.iter().filter(is_forgotten).count() as u64
    }

    /// Whether the repair reaches Redis and a tenant's Postgres.
    fn reaches(&mut self, worker: usize, tenant: usize) -> bool {
        let postgres = &self.tenants[tenant].postgres;
        postgres.executes_at(self.now, false) == Some(self.now) && self.redis_answers(worker)
    }

    fn look_at_postgres(&mut self, tenant: usize, open: &mut crate::watch::Open) {
        let (now, postgres) = (self.instant(), &self.tenants[tenant].postgres);
        if postgres.read_only_until > self.now {
            open.episode.failed(now, RETRY_AFTER);
        } else {
            open.episode.answered(&postgres.started.to_string(), now);
        }
    }

    /// Another Postgres server answers than before: what it lacks is scheduled again.
    fn follow_timeline(&mut self, worker: usize, tenant: usize) {
        let timeline = self.tenants[tenant].postgres.timeline;
        if self.server.kept.timelines.get(&tenant) == Some(&timeline)
            || self.bug == Some(Bug::FailoverNotCompared)
            || !self.reaches(worker, tenant)
        {
            return;
        }
        if timeline > 0 {
            self.compare_values(worker, tenant);
        }
        self.server.kept.timelines.insert(tenant, timeline);
    }

    fn compare_values(&mut self, worker: usize, tenant: usize) -> Found {
        let mut found = Found::default();
        for balance in 0..self.plan.balances {
            let Some(version) = self.readable(tenant, balance) else { continue };
            let model = &self.tenants[tenant];
            if model.postgres.tables.deleted[balance] {
                continue;
            }
            let row = model.postgres.version(balance);
            if row > version {
                found.rows_ahead += 1;
            } else if row < version {
                if self.schedule_again(tenant, balance) {
                    found.rescheduled += 1;
                } else {
                    found.scheduled += 1;
                }
            }
        }
        self.note(Some(tenant), || format!("worker {worker} compares values and rows: {found:?}"));
        found
    }

    /// Makes a balance due, also one that a worker holds. Whether it was not scheduled.
    fn schedule_again(&mut self, at: usize, balance: usize) -> bool {
        let (now, clock, rules) = (self.now, self.clock(), self.rules);
        let tenant = &mut self.tenants[at];
        let before = tenant.redis.entries[balance].score;
        tenant.redis.schedule_again(clock, &[balance], rules);
        let entry = &tenant.redis.entries[balance];
        let version = entry.value.map_or(0, |value| value.document.state.version);
        // What is about to expire may do so before a worker has claimed it.
        let lives = entry.value.is_some_and(|value| value.expires > clock + CLAIMED_WITHIN);
        let truth = &mut tenant.truth[balance];
        if let Some(score) = entry.score.filter(|_| entry.score != before) {
            truth.score = score;
        }
        if truth.newest == version && truth.excused >= version {
            truth.changed_at = now;
            // From now on it has to be written.
            if lives {
                truth.excused = 0;
                truth.waits_since(now);
            }
        }
        before.is_none()
    }

    /// Lists as lost what neither row nor Redis has; returns how much that is, and how much is scheduled with an older state.
    fn compare_operations(&mut self, worker: usize, at: usize) -> (u64, u64) {
        let (mut lost, mut left) = (Vec::new(), Vec::new());
        for balance in 0..self.plan.balances {
            let tenant = &self.tenants[at];
            let trail = tenant.postgres.tables.trail[balance];
            if tenant.postgres.tables.deleted[balance] || trail <= tenant.postgres.version(balance) {
                continue;
            }
            if self.readable(at, balance).is_some_and(|version| version >= trail) {
                self.schedule_again(at, balance);
                continue;
            }
            let tenant = &mut self.tenants[at];
            let entry = &mut tenant.redis.entries[balance];
            if entry.score.is_none() {
                let later = entry.loss.is_some_and(|loss| loss.later);
                entry.loss = Some(Loss { version: Some(trail), later, retry: false });
                tenant.truth[balance].listed = true;
                lost.push(balance);
            } else {
                left.push(balance);
            }
        }
        self.note(Some(at), || {
            format!("worker {worker} compares rows and operations, lists {lost:?}, leaves {left:?}")
        });
        self.outcome.recorded[0] += lost.len() as u64;
        (lost.len() as u64, left.len() as u64)
    }
}
