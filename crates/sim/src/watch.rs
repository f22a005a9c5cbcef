//! The model of the watch for data that vanish (`crates/fleet/src/backends/vanish`): each worker looks at the server, counts the
//! schedules of its tenants, opens conditions and keeps them in Redis. What is decided is the engine's.
//!
//! It has a stream of random numbers of its own, so that what it does leaves the rest of a world as it is.

use std::collections::{BTreeMap, BTreeSet};

use balance_sync_engine::{
    collector::Role,
    reason::Reason,
    vanish::{
        Change, Changes, Episode, Found, How, ScheduleWatch, ServerLook, ServerWatch, Trace, Verdict, judge,
    },
};
use rand::Rng;

use crate::{
    bugs::Bug,
    plan::SECOND,
    values::{Document, Read},
    world::{What, World},
};

/// As in the driver, in nanoseconds.
const LOOK_EVERY: u64 = 2 * SECOND;
const COUNT_EVERY: u64 = 4 * SECOND;
const CONFIRM_AFTER: u64 = SECOND;
const NAME_PROCESS_AFTER: u64 = 600 * SECOND;
/// Members that are remembered of a condition, and those that the next worker is told of.
const MEMBERS: usize = 64;
const HANDED_ON: usize = 16;

/// What Redis keeps for the watch, and loses with everything else.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    /// The number of each process of a worker.
    numbers: BTreeMap<(usize, u32), u64>,
    /// The mark of the data set.
    mark: Option<u64>,
    /// The process that the mark names, and what it had evicted then.
    marked: Option<(u64, u64)>,
    /// Open conditions, by tenant.
    pub(crate) open: BTreeMap<usize, Record>,
    /// The timeline of each tenant's Postgres that was seen last.
    pub(crate) timelines: BTreeMap<usize, u32>,
}

/// The server, as far as the watch looks at it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Server {
    pub(crate) kept: Kept,
    /// Which process answers.
    pub(crate) process: u64,
    pub(crate) evicted: u64,
}

impl Server {
    /// Whether a worker that starts later would see that keys were evicted.
    pub(crate) fn knows_evictions(&self) -> bool {
        self.kept.marked.is_some_and(|(process, _)| process == self.process)
    }
}

/// What stands in Redis about an open condition.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    reason: Reason,
    extent: u64,
    is_loss: bool,
    since: u64,
    found: Found,
    keeps_values: bool,
    members: Vec<(usize, u64)>,
}

/// A tenant's open condition.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) episode: Episode,
    /// When it was noticed.
    pub(crate) since: u64,
    /// Rows that the worker had written then.
    pub(crate) written: u64,
    /// Members that were scheduled before, with the versions of their values.
    pub(crate) members: Vec<(usize, u64)>,
    stored: bool,
}

impl Open {
    fn remember(&mut self, more: &[(usize, u64)]) {
        for &(balance, version) in more {
            let has_room = self.members.len() < MEMBERS;
            match self.members.iter_mut().find(|(known, _)| *known == balance) {
                Some((_, known)) => *known = version.max(*known),
                None if has_room => self.members.push((balance, version)),
                None => {}
            }
        }
    }
}

#[derive(Debug, Default)]
struct Watched {
    /// Members with the versions of their values.
    schedule: ScheduleWatch<(usize, u64)>,
    suspected: bool,
}

/// A schedule that has shrunk.
#[derive(Debug, Clone)]
pub(crate) struct Shrunk {
    tenant: usize,
    members: u64,
    removed: u64,
    witnesses: Vec<(usize, u64)>,
}

/// What the watch does next.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Look at the server.
    Look,
    /// Count the schedules.
    Count,
    /// Find out about those that have shrunk, the suspects of a first look given.
    Verify { shrunk: Vec<Shrunk>, suspects: Option<Vec<(usize, u64)>> },
    /// Keep what is open in Redis.
    Keep,
    /// Compare what is open.
    Repair,
}

/// One worker's watch.
#[derive(Debug, Default)]
pub(crate) struct Watcher {
    server: ServerWatch,
    looked: bool,
    counted: Option<u64>,
    changes: Changes<usize>,
    stored: BTreeSet<usize>,
    lost: bool,
    tenants: BTreeMap<usize, Watched>,
    pub(crate) board: BTreeMap<usize, Open>,
    closed: BTreeMap<usize, u64>,
    pub(crate) done: Vec<(usize, u64)>,
    name_process: Option<u64>,
    /// Members that this worker has removed, and rows that it has written, by tenant.
    pub(crate) removed: BTreeMap<usize, u64>,
    pub(crate) written: BTreeMap<usize, u64>,
}

impl Watcher {
    /// Whether it reports of a tenant that Redis has lost data, or may have.
    pub(crate) fn reports(&self, tenant: usize) -> bool {
        self.board.contains_key(&tenant) || self.tenants.get(&tenant).is_some_and(|one| one.suspected)
    }

    /// Whether it would notice that a tenant's schedule has shrunk.
    pub(crate) fn counts(&self, tenant: usize) -> bool {
        self.tenants.contains_key(&tenant)
    }
}

impl World {
    /// A worker begins to look.
    pub(crate) fn begin_watch(&mut self, worker: usize) {
        if self.plan.watch {
            self.workers[worker].watcher = Some(Watcher::default());
            self.watch_later(worker, Step::Look, SECOND);
            self.watch_later(worker, Step::Repair, SECOND);
        }
    }

    pub(crate) fn watch_later(&mut self, worker: usize, step: Step, delay: u64) {
        let incarnation = self.workers[worker].incarnation;
        let delay = delay + self.watch_rng.random_range(0..=delay / 10 + SECOND / 1000);
        self.push(self.now + delay, What::LookForLosses { worker, incarnation, step });
    }

    /// Whether a call of the watch to Redis comes through.
    pub(crate) fn redis_answers(&mut self, worker: usize) -> bool {
        let flaky = self.workers[worker].flaky_until > self.now && self.watch_rng.random_ratio(1, 4);
        self.redis_down_until.max(self.workers[worker].cut_until) <= self.now && !flaky
    }

    /// Whether a worker works on a tenant.
    pub(crate) fn works_on(&self, worker: usize, tenant: usize) -> bool {
        let actor = self.workers[worker].actors.get(tenant);
        matches!(actor, Some(Some(_)))
            && !self.leaves(worker, tenant)
            && self.role(worker, tenant) == Role::First
    }

    pub(crate) fn watch_step(&mut self, worker: usize, step: Step) {
        let Some(mut watcher) = self.workers[worker].watcher.take() else { return };
        match step {
            Step::Look => self.look_at_redis(worker, &mut watcher),
            Step::Count => self.count_schedules(worker, &mut watcher),
            Step::Verify { shrunk, suspects } => self.verify(worker, &mut watcher, shrunk, suspects),
            Step::Keep => self.keep_open(worker, &mut watcher),
            Step::Repair => self.repair(worker, &mut watcher),
        }
        self.workers[worker].watcher = Some(watcher);
    }

    fn look_at_redis(&mut self, worker: usize, watcher: &mut Watcher) {
        let mut number = watcher.server.next_number();
        let (key, now) = ((worker, self.workers[worker].incarnation), self.now);
        if self.redis_down_until.max(self.workers[worker].cut_until) > now {
            return self.watch_later(worker, Step::Look, LOOK_EVERY);
        }
        let kept = &mut self.server.kept;
        let former = kept.numbers.insert(key, number);
        if !self.redis_answers(worker) {
            // It was executed, and the answer got lost.
            return self.watch_later(worker, Step::Look, LOOK_EVERY);
        }
        let kept = &self.server.kept;
        if !watcher.looked {
            watcher.looked = true;
            let (process, evicted) = kept.marked.unzip();
            watcher.server = ServerWatch::of_process(process.map(|process| process.to_string()), evicted);
            number = watcher.server.next_number();
        }
        let look = ServerLook {
            former,
            data_set: kept.mark.map(|mark| mark.to_string()),
            run_id: Some(self.server.process.to_string()),
            evicted: Some(self.server.evicted),
            history: None,
        };
        let mut change = watcher.server.looked(self.instant(), number, look);
        let ignored = match &change {
            Some(Change::Replaced { how, .. }) => match how {
                How::Emptied => self.bug == Some(Bug::EmptiedNotReported),
                How::Behind => self.bug == Some(Bug::BehindNotReported),
                How::OtherProcess => self.bug == Some(Bug::RestartNotReported),
                How::OtherDataSet | How::Promoted { .. } | How::Unmarked => false,
            },
            Some(Change::Evicted(_)) => self.bug == Some(Bug::EvictionNotReported),
            None => false,
        };
        if ignored {
            change = None;
        }
        if let Some(change) = change {
            self.note(None, || format!("worker {worker}: {change:?}"));
            watcher.lost = true;
            watcher.name_process = (self.bug == Some(Bug::ProcessNamedEarly)).then_some(now);
            watcher.changes.noticed(change, self.instant());
        }
        let due = watcher.counted.is_none_or(|counted| now - counted >= COUNT_EVERY);
        if due || watcher.changes.is_pending() {
            watcher.counted = Some(now);
            self.watch_later(worker, Step::Count, SECOND / 200);
        } else {
            self.watch_later(worker, Step::Keep, SECOND / 200);
        }
    }

    /// The value of a balance, as a worker reads it.
    pub(crate) fn readable(&self, tenant: usize, balance: usize) -> Option<u64> {
        let value = self.tenants[tenant].redis.entries[balance].value?;
        if value.expires <= self.clock() {
            return None;
        }
        let Document { state, .. } = value.document;
        matches!(value.document.read(1, None), Read::Good(_)).then_some(state.version)
    }

    /// Half of the members that are remembered have the oldest scores, and half the newest.
    fn ends_of_schedule(&self, tenant: usize) -> Vec<usize> {
        let entries = &self.tenants[tenant].redis.entries;
        let mut members: Vec<(f64, usize)> =
            (0..entries.len()).filter_map(|balance| Some((entries[balance].score?, balance))).collect();
        members.sort_by(|one, other| one.0.total_cmp(&other.0));
        let half = self.plan.witnesses.div_ceil(2);
        let newest = members.len().saturating_sub(half).max(half.min(members.len()));
        let both = members.iter().take(half).chain(&members[newest..]);
        both.map(|(_, balance)| *balance).collect()
    }

    fn count_schedules(&mut self, worker: usize, watcher: &mut Watcher) {
        if !self.redis_answers(worker) {
            return self.watch_later(worker, Step::Look, LOOK_EVERY);
        }
        let instant = self.instant();
        let served: Vec<usize> =
            (0..self.plan.tenants).filter(|tenant| self.works_on(worker, *tenant)).collect();
        watcher.tenants.retain(|tenant, _| served.contains(tenant));
        let mut shrunk = Vec::new();
        for tenant in served {
            let witnesses: Vec<(usize, u64)> = self
                .ends_of_schedule(tenant)
                .into_iter()
                .filter_map(|balance| Some((balance, self.readable(tenant, balance)?)))
                .collect();
            let removed = watcher.removed.get(&tenant).copied().unwrap_or(0);
            let count =
                Shrunk { tenant, members: self.tenants[tenant].redis.scheduled(), removed, witnesses };
            let elsewhere = watcher.stored.contains(&tenant);
            let changes = match self.bug {
                Some(Bug::LateTenantForgotten) if !watcher.changes.is_pending() => Vec::new(),
                _ => watcher.changes.of(&tenant, elsewhere, instant),
            };
            let watched = watcher.tenants.entry(tenant).or_default();
            let shortfall = watched.schedule.shortfall(count.members, removed);
            let replaced = changes.iter().any(|change| matches!(change, Change::Replaced { .. }));
            for change in changes {
                let (reason, is_loss) = match change {
                    Change::Replaced { how: How::Unmarked, .. } => (Reason::RedisUnmarked, false),
                    Change::Replaced { how, .. } => (Reason::RedisDataReplaced, how.is_loss()),
                    Change::Evicted(_) => (Reason::RedisEvicted, true),
                };
                let extent = if matches!(change, Change::Replaced { .. }) { shortfall } else { 0 };
                self.open(worker, watcher, tenant, reason, extent, is_loss);
            }
            if shortfall > 0 && !replaced {
                shrunk.push(count);
            } else {
                self.remember(watcher, count);
            }
        }
        watcher.changes.counted();
        if shrunk.is_empty() {
            self.watch_later(worker, Step::Keep, SECOND / 1000);
        } else {
            self.watch_later(worker, Step::Verify { shrunk, suspects: None }, CONFIRM_AFTER);
        }
    }

    fn remember(&mut self, watcher: &mut Watcher, count: Shrunk) {
        // What was lost from the schedule alone, and not seen by this count, no count will see.
        self.not_seen_by_count(count.tenant);
        let watched = watcher.tenants.entry(count.tenant).or_default();
        watched.suspected = false;
        watched.schedule.remember(count.members, count.removed, count.witnesses);
    }

    pub(crate) fn open(
        &mut self,
        worker: usize,
        watcher: &mut Watcher,
        tenant: usize,
        reason: Reason,
        extent: u64,
        is_loss: bool,
    ) {
        let (now, grace) = (self.instant(), self.options.trail_grace);
        let episode = Episode::new(reason, extent, is_loss, 0.0, String::new(), now, grace);
        self.note(Some(tenant), || format!("worker {worker} reports {reason}, {extent} members"));
        self.noticed(tenant);
        let witnesses = watcher.tenants.get(&tenant).map_or(&[][..], |watched| watched.schedule.witnesses());
        match watcher.board.get_mut(&tenant) {
            Some(open) => {
                open.episode.merge(episode, now);
                open.remember(witnesses);
            }
            None => {
                let written = watcher.written.get(&tenant).copied().unwrap_or(0);
                let members = witnesses.to_vec();
                let open = Open { episode, since: self.now, written, members, stored: false };
                watcher.board.insert(tenant, open);
            }
        }
    }

    /// Finds out whether what is gone from schedules has been written.
    fn verify(
        &mut self,
        worker: usize,
        watcher: &mut Watcher,
        mut shrunk: Vec<Shrunk>,
        suspects: Option<Vec<(usize, u64)>>,
    ) {
        let Some(count) = shrunk.pop() else { return self.watch_later(worker, Step::Keep, SECOND / 1000) };
        let tenant = count.tenant;
        let next = |shrunk| Step::Verify { shrunk, suspects: None };
        let Some(watched) = watcher.tenants.get(&tenant).filter(|_| self.works_on(worker, tenant)) else {
            return self.watch_later(worker, next(shrunk), SECOND / 1000);
        };
        let removed = watcher.removed.get(&tenant).copied().unwrap_or(0);
        let shortfall = watched.schedule.shortfall(count.members, removed);
        if shortfall == 0 {
            self.remember(watcher, count);
            return self.watch_later(worker, next(shrunk), SECOND / 1000);
        }
        let second = suspects.is_some();
        let suspects = suspects.unwrap_or_else(|| watched.schedule.witnesses().to_vec());
        let unscheduled = |world: &Self| -> Vec<(usize, u64)> {
            let entries = &world.tenants[tenant].redis.entries;
            suspects.iter().copied().filter(|(balance, _)| entries[*balance].score.is_none()).collect()
        };
        let reaches = self.redis_answers(worker);
        let gone = unscheduled(self);
        let writes = self.tenants[tenant].postgres.executes_at(self.now, false) == Some(self.now);
        if !reaches || !gone.is_empty() && !writes {
            if watcher.board.contains_key(&tenant) {
                self.open(worker, watcher, tenant, Reason::RedisScheduleVanished, shortfall, true);
                self.remember(watcher, count);
            } else if let Some(watched) = watcher.tenants.get_mut(&tenant) {
                watched.suspected = true;
            }
            return self.watch_later(worker, next(shrunk), SECOND / 1000);
        }
        let model = &self.tenants[tenant];
        let trace = |&(balance, version): &(usize, u64)| {
            let entry = &model.redis.entries[balance];
            if model.postgres.tables.deleted[balance] || model.postgres.version(balance) >= version {
                Trace::Written
            } else if entry.quarantined || entry.loss.is_some() {
                Trace::Listed
            } else {
                Trace::Forgotten
            }
        };
        let traces: Vec<Trace> = gone.iter().map(trace).collect();
        match judge(&traces) {
            Verdict::Written => {
                if watched.schedule.witnesses().is_empty() && watcher.board.contains_key(&tenant) {
                    self.open(worker, watcher, tenant, Reason::RedisScheduleVanished, shortfall, true);
                }
                self.remember(watcher, count);
                self.watch_later(worker, next(shrunk), SECOND / 1000);
            }
            Verdict::Vanished if !second => {
                let forgotten = gone.into_iter().zip(traces).filter(|(_, trace)| *trace == Trace::Forgotten);
                let suspects = Some(forgotten.map(|(witness, _)| witness).collect());
                shrunk.push(count);
                self.watch_later(worker, Step::Verify { shrunk, suspects }, CONFIRM_AFTER);
            }
            Verdict::Vanished => {
                self.seen_by_count(tenant);
                if self.bug == Some(Bug::ShrinkageNotReported) {
                    let watched = watcher.tenants.entry(tenant).or_default();
                    watched.schedule.remember(count.members, count.removed, count.witnesses);
                } else {
                    self.open(worker, watcher, tenant, Reason::RedisScheduleVanished, shortfall, true);
                    self.remember(watcher, count);
                }
                self.watch_later(worker, next(shrunk), SECOND / 1000);
            }
        }
    }

    /// Keeps board and Redis in step.
    fn keep_open(&mut self, worker: usize, watcher: &mut Watcher) {
        self.watch_later(worker, Step::Look, LOOK_EVERY);
        if !self.redis_answers(worker) {
            return;
        }
        let (now, instant, grace) = (self.now, self.instant(), self.options.trail_grace);
        for (tenant, since) in std::mem::take(&mut watcher.done) {
            watcher.closed.insert(tenant, since);
            self.server.kept.open.remove(&tenant);
        }
        watcher.stored = self.server.kept.open.keys().copied().collect();
        for (tenant, record) in self.server.kept.open.clone() {
            let closed = watcher.closed.get(&tenant).is_some_and(|since| *since >= record.since);
            let taken = watcher.board.get(&tenant).is_some_and(|open| open.stored);
            if closed || taken || !self.works_on(worker, tenant) {
                continue;
            }
            let Record { reason, extent, is_loss, since, found, keeps_values, members } = record;
            let mut episode =
                Episode::new(reason, extent, is_loss, 0.0, String::new(), instant, grace).resumed(found);
            episode.keeps_values &= keeps_values;
            let written = watcher.written.get(&tenant).copied().unwrap_or(0);
            let mut open = Open { episode, since, written, members, stored: true };
            if let Some(new) = watcher.board.remove(&tenant) {
                open.episode.merge(new.episode, instant);
                open.remember(&new.members);
            }
            watcher.board.insert(tenant, open);
            self.note(Some(tenant), || format!("worker {worker} takes over what is open: {reason}"));
        }
        for tenant in watcher.board.keys().copied().collect::<Vec<_>>() {
            if !self.works_on(worker, tenant) {
                watcher.board.remove(&tenant);
                continue;
            }
            let stands = self.server.kept.open.contains_key(&tenant);
            let Some(open) = watcher.board.get_mut(&tenant) else { continue };
            if open.episode.is_closed_elsewhere(stands || !open.stored, watcher.lost) {
                self.note(Some(tenant), || format!("worker {worker}: closed elsewhere"));
                watcher.closed.insert(tenant, open.since);
                watcher.board.remove(&tenant);
                continue;
            }
            if !open.episode.is_missing() {
                let Episode { reason, extent, is_loss, keeps_values, .. } = open.episode;
                let (since, found) = (open.since, open.episode.found());
                let members = open.members.iter().copied().take(HANDED_ON).collect();
                let record = Record { reason, extent, is_loss, since, found, keeps_values, members };
                self.server.kept.open.insert(tenant, record);
                open.stored = true;
            }
        }
        watcher.lost = false;
        let (process, evicted) = (self.server.process, self.server.evicted);
        let kept = &mut self.server.kept;
        if kept.marked == Some((process, evicted)) {
            watcher.name_process = None;
        } else {
            watcher.name_process.get_or_insert(now + NAME_PROCESS_AFTER);
        }
        kept.mark.get_or_insert(now);
        if watcher.name_process.is_some_and(|at| at <= now) {
            kept.marked = Some((process, evicted));
        }
    }
}
