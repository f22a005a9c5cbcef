//! Notices when Redis has lost data, and works off what follows. What is decided stands in [`balance_sync_engine::vanish`].
//!
//! Two tasks share a [`Board`] of open conditions. The *watch* (here, and `verify`) looks at the server and counts the schedules
//! of this worker's tenants. The *repair* (`repair`) compares the tenants of open conditions, which may take minutes.
//!
//! What is open is stored in Redis, for the worker that serves the tenant next, and stored again when Redis has lost that too. An
//! entry that is gone while Redis has lost nothing has been closed by another worker.
//!
//! The cost while nothing is lost: seven short commands per [`LOOK_EVERY`], and one call per 250 schedules and [`COUNT_EVERY`], without
//! those of quiet tenants, which are known to be empty.

mod board;
mod losses;
mod repair;
mod verify;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::{BalanceRef, BalanceValue, KeySpace};
use balance_sync_engine::{
    reason::Reason,
    vanish::{Change, Changes, ClockWatch, History, How, ScheduleWatch, ServerLook, ServerWatch},
};
use balance_sync_schedule::{ScheduleError, Scheduled, ServerState, Vanished as Store};
use balance_sync_tenants::Tenant;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::board::Board;
use super::comparison::{Comparison, Witness};
use crate::{
    status::{FleetStatus, SWEEP_EVERY, TenantState, TenantStatus},
    tasks::{Progress, jittered},
};

/// Longest time between two signs of life: a statement that the server doesn't answer is given up before.
pub(crate) const INTERVAL: Duration = Duration::from_secs(30);
/// How often the server is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often schedules are counted.
const COUNT_EVERY: Duration = Duration::from_secs(4);
/// How often it is looked before the first look whether the tenants are known.
const FIRST_LOOK_EVERY: Duration = Duration::from_millis(250);
/// Without a look for so long it is no longer known whether data are lost.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// After a schedule has shrunk: until all that this worker has removed is counted, and between two looks at rows.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);
/// Tenants at most that are looked at in one pass only because the ledger's own worker may remove members there unwritten, where it is
/// active …
const FOLLOWED: usize = 16;
/// … and where it isn't known to be there.
const FOLLOWED_UNSEEN: usize = 4;
/// How long after a change the mark keeps naming the former process, or none, so that workers that start meanwhile notice as
/// well: they may be the first to serve a tenant since.
const NAME_PROCESS_AFTER: Duration = Duration::from_secs(600);
/// What both tasks share.
#[derive(Clone)]
pub(crate) struct Vanish {
    comparison: Comparison,
    fleet: Arc<FleetStatus>,
    board: Board,
    /// How long after a mutation, or after an outage, its operation may still be on its way.
    grace: Duration,
    /// Names this process in Redis.
    mark: Arc<str>,
}

/// What is remembered of a tenant.
#[derive(Default)]
struct Watched {
    schedule: ScheduleWatch<Witness>,
    /// For how long the oldest member had been due.
    oldest: Duration,
    /// It has shrunk, and the rows could not be read yet.
    suspected: Option<(f64, u64)>,
    /// Members whose values are in the format of a later release: no row proves that they were written.
    unread: Vec<Vec<u8>>,
    /// Balances that comparisons with another Postgres server had scheduled again then.
    rescheduled: u64,
}

/// A tenant whose schedules were counted.
struct Count {
    status: Arc<TenantStatus>,
    members: u64,
    /// Removed by this worker when the call began.
    removed: u64,
    /// Scheduled again by then because another Postgres server lacked them.
    rescheduled: u64,
    witnesses: Vec<Witness>,
    unread: Vec<Vec<u8>>,
}

/// What the watch remembers between two looks.
#[derive(Default)]
struct Memory {
    server: ServerWatch,
    clock: ClockWatch,
    /// The server has been looked at before.
    looked: bool,
    counted: Option<Instant>,
    /// When the schedules of all tenants were counted, those at rest included.
    swept: Option<Instant>,
    /// Which tenants there were then, by the number of their changes.
    changes_of_tenants: Option<u64>,
    /// What has happened to the server.
    changes: Changes<Tenant>,
    /// Redis has lost data, and what is open has not been stored again since.
    lost: bool,
    /// Tenants with an open condition in Redis.
    stored: BTreeSet<String>,
    tenants: BTreeMap<Tenant, Watched>,
    /// Conditions that this worker has closed, by the time since when they were open.
    closed: BTreeMap<Tenant, f64>,
    /// When the mark is to name the process that answers.
    name_process: Option<Instant>,
    /// The tenant after which the next pass begins to follow the ledger's own worker.
    followed: [Option<Tenant>; 2],
}

impl Vanish {
    pub(crate) fn new(comparison: Comparison, fleet: Arc<FleetStatus>, grace: Duration) -> Self {
        let mark = new_mark().into();
        Self { comparison, fleet, board: Board::default(), grace, mark }
    }

    /// Looks until it is stopped.
    pub(crate) async fn watch(self, stop: CancellationToken, progress: Progress) {
        let store = Store::new(self.comparison.link.clone(), &self.mark);
        let mut memory = Memory::default();
        let watching = async {
            // Before, it is not known whose tenants are to be looked at.
            while !self.fleet.reconciled.load(Relaxed) {
                progress.beat();
                tokio::time::sleep(FIRST_LOOK_EVERY).await;
            }
            let mut known = Instant::now();
            loop {
                match self.look(&store, &mut memory, &progress).await {
                    Ok(()) => known = Instant::now(),
                    Err(error) => {
                        tracing::debug!(%error, "whether redis has lost data is not known");
                        if known.elapsed() >= KNOWN_FOR {
                            self.fleet.each(|status| status.show_watched(false));
                        }
                    }
                }
                progress.beat();
                tokio::time::sleep(jittered(LOOK_EVERY)).await;
            }
        };
        stop.run_until_cancelled(watching).await;
    }

    async fn look(
        &self,
        store: &Store,
        memory: &mut Memory,
        progress: &Progress,
    ) -> Result<(), ScheduleError> {
        let begun = Instant::now();
        let mut number = memory.server.next_number();
        let state = store.look(number).await?;
        if !memory.looked {
            memory.looked = true;
            memory.server = of_marked(state.marked_process.as_deref());
            number = memory.server.next_number();
        }
        let is_marked = state.data_set.is_some();
        let process = process(&state);
        let names_process = state.marked_process.as_ref() == Some(&process);
        let look = ServerLook {
            former: state.former,
            data_set: state.data_set,
            run_id: state.run_id,
            evicted: state.evicted,
            history: state.replication.map(|id| History {
                id,
                former: state.former_replication,
                offset: state.offset,
                promoted_at: state.promoted_at,
            }),
        };
        if let Some((time, asked, answered)) = state.time
            && let Some(back) = memory.clock.looked(asked, answered, time)
        {
            self.fleet.redis_clock_back.went_back(back);
            tracing::warn!(
                seconds = back.as_secs_f64(),
                "redis's clock has gone back: what was scheduled before would wait until it has caught up, and is made due"
            );
        }
        let change = memory.server.looked(begun.into_std(), number, look);
        match &change {
            Some(Change::Replaced { how, lacks }) => {
                let (what, lacks) = (how.describe(), lacks.map(|lacks| lacks.as_secs_f64()));
                if how.is_loss() {
                    tracing::error!(
                        lacks_seconds = lacks,
                        "{what}: what is left is compared with rows and operations"
                    );
                } else {
                    tracing::warn!("{what}: what it holds is compared with rows and operations");
                }
            }
            Some(Change::Evicted(keys)) => {
                self.fleet.redis_evicted_keys.fetch_add(*keys, Relaxed);
            }
            None => {}
        }
        let now = Instant::now();
        if let Some(change) = change {
            memory.lost = true;
            memory.name_process = None;
            memory.changes.noticed(change, now.into_std());
        }
        let counts =
            memory.counted.is_none_or(|counted| now - counted >= COUNT_EVERY) || self.waits_for_a_look();
        if counts || memory.changes.is_pending() {
            memory.counted = Some(now);
            self.count(store, memory, progress).await?;
        }
        self.keep(store, memory).await?;
        memory.lost = false;
        self.show_watched(memory);
        // Last of all: a worker that ends before leaves it to the next.
        if names_process {
            memory.name_process = None;
        } else {
            memory.name_process.get_or_insert(now + NAME_PROCESS_AFTER);
        }
        let name_now = memory.name_process.is_some_and(|at| at <= now);
        if !is_marked || name_now {
            let id = memory.server.data_set().map_or_else(new_mark, str::to_owned);
            store.mark(&id, name_now.then_some(process.as_str())).await?;
        }
        Ok(())
    }

    /// This worker's tenants, as far as it works on them, and the others: all of them, or those that are not at rest.
    fn served(&self, all: bool) -> (Vec<Arc<TenantStatus>>, Vec<Arc<TenantStatus>>) {
        let tenants = if all { self.fleet.tenants().to_vec() } else { self.fleet.rest.active() };
        tenants.into_iter().partition(|status| is_served(status))
    }

    /// Whether a tenant that could be healthy has not been looked at: its verdict is unknown until then.
    fn waits_for_a_look(&self) -> bool {
        let waits = |status: &Arc<TenantStatus>| {
            !status.watched.load(Relaxed)
                && is_served(status)
                && status.collector_state().state != TenantState::Degraded
        };
        self.fleet.rest.active().iter().any(waits)
    }

    /// What has been counted, and what is open is shown, is known. What another worker comes first of is known to that one.
    fn show_watched(&self, memory: &Memory) {
        // One that is at rest is watched, or stood by for.
        for status in self.fleet.rest.active() {
            if status.standby.load(Relaxed) {
                status.show_watched(false);
            } else if memory.tenants.contains_key(status.tenant()) {
                status.show_watched(true);
            }
        }
    }

    /// Counts the schedules, and opens conditions.
    async fn count(
        &self,
        store: &Store,
        memory: &mut Memory,
        progress: &Progress,
    ) -> Result<(), ScheduleError> {
        let changed = self.fleet.tenants_changed();
        let all = memory.changes.is_pending()
            || memory.changes_of_tenants != Some(changed)
            || memory.swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY);
        let (mut served, others) = self.served(all);
        // What others have removed meanwhile was not counted here.
        others.iter().for_each(|status| drop(memory.tenants.remove(status.tenant())));
        if served.is_empty() {
            if all {
                // What is known of tenants that are gone must not be compared with what they have when they come back.
                memory.tenants.clear();
                (memory.swept, memory.changes_of_tenants) = (Some(Instant::now()), Some(changed));
            }
            memory.changes.counted();
            return Ok(());
        }
        // Removed before the call: what is removed meanwhile counts for both looks, so that it is never missing.
        let removed: Vec<u64> = served.iter().map(|status| status.removed.load(Relaxed)).collect();
        let counts = self.counts(store, &mut served, removed).await?;
        if all {
            let present: BTreeSet<&Tenant> = counts.iter().map(|count| count.status.tenant()).collect();
            memory.tenants.retain(|tenant, _| present.contains(tenant));
            (memory.swept, memory.changes_of_tenants) = (Some(Instant::now()), Some(changed));
        }
        let followed = self.to_follow(&counts, memory);
        let (now, mut shrunk) = (Instant::now().into_std(), Vec::new());
        for count in counts {
            let tenant = count.status.tenant();
            let elsewhere = memory.stored.contains(tenant.label());
            let changes = memory.changes.of(tenant, elsewhere, now);
            let watched = memory.tenants.entry(tenant.clone()).or_default();
            let shortfall = watched.schedule.shortfall(count.members, count.status.removed.load(Relaxed));
            // What a Redis with other data lacks needs no proof; evicted keys may be of no tenant.
            let is_replaced = changes.iter().any(|change| matches!(change, Change::Replaced { .. }));
            for change in changes {
                let (reason, is_loss, detail) = describe(&change);
                let extent = if matches!(change, Change::Replaced { .. }) { shortfall } else { 0 };
                self.open(&count.status, reason, extent, is_loss, detail, watched);
            }
            // What is suspected is found out by its members, whatever has come and gone since: the comparison after a restart of
            // Postgres may have scheduled them again, and a later mutation may stand in their place.
            let is_followed = followed.contains(tenant);
            if (shortfall > 0 || watched.suspected.is_some() || is_followed) && !is_replaced {
                shrunk.push(count);
            } else {
                watched.remember(count);
            }
        }
        memory.changes.counted();
        if shrunk.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(CONFIRM_AFTER).await;
        for count in shrunk {
            let Some(watched) = memory.tenants.get_mut(count.status.tenant()) else { continue };
            let shortfall = watched.schedule.shortfall(count.members, count.status.removed.load(Relaxed));
            if shortfall == 0 && watched.suspected.is_none() && !followed.contains(count.status.tenant()) {
                watched.remember(count);
                continue;
            }
            self.verify(watched, count, shortfall).await;
            progress.beat();
        }
        Ok(())
    }

    /// The tenants whose members are followed although the counts show nothing: the ledger's own worker may be of a release that
    /// removes unwritten what writers of later ones schedule. In turn, if there are many.
    fn to_follow(&self, counts: &[Count], memory: &mut Memory) -> BTreeSet<Tenant> {
        let (now, quiet) = (self.fleet.redis_clock(), self.fleet.claim_quiet());
        let (mut active, mut unseen): (Vec<&Tenant>, Vec<&Tenant>) = (Vec::new(), Vec::new());
        for count in counts {
            let Some(known) = count.status.neighbour().filter(|known| known.writes_newer(now)) else {
                continue;
            };
            if known.may_drop(now, quiet) { &mut active } else { &mut unseen }.push(count.status.tenant());
        }
        let [after_active, after_unseen] = &mut memory.followed;
        let mut chosen = in_turn(active, FOLLOWED, after_active);
        chosen.append(&mut in_turn(unseen, FOLLOWED_UNSEEN, after_unseen));
        chosen
    }

    /// The key spaces whose schedules are to be counted. Of a quiet tenant they are known to be empty.
    fn to_count(&self, status: &TenantStatus) -> Vec<KeySpace> {
        if status.quiet.is_quiet() {
            return Vec::new();
        }
        status.tenant().key_spaces(self.comparison.key_form)
    }

    async fn counts(
        &self,
        store: &Store,
        served: &mut Vec<Arc<TenantStatus>>,
        removed: Vec<u64>,
    ) -> Result<Vec<Count>, ScheduleError> {
        // After what was removed before the call.
        let spaces: Vec<_> = served.iter().map(|status| self.to_count(status)).collect();
        let flat: Vec<_> = spaces.iter().flatten().collect();
        let mut found = store.count(&flat).await?.into_iter();
        let mut counts = Vec::with_capacity(served.len());
        for ((status, spaces), removed) in served.drain(..).zip(&spaces).zip(removed) {
            let rescheduled = status.rescheduled.load(Relaxed);
            let (witnesses, unread) = (Vec::new(), Vec::new());
            let mut count = Some(Count { status, members: 0, removed, rescheduled, witnesses, unread });
            for space in spaces {
                let Some(one) = found.next() else { break };
                // The collector says what is wrong with the key.
                let (Some(members), Some(mut sum)) = (one.members, count.take()) else { continue };
                sum.members += members;
                for Scheduled { member, value, .. } in one.some {
                    if BalanceRef::parse(space, &member).is_err() {
                        continue;
                    }
                    match BalanceValue::of_member(&member, &value) {
                        Ok(BalanceValue { id, version, .. }) => {
                            sum.witnesses.push(Witness { member, id, version });
                        }
                        Err(error) if error.is_unknown_format() => sum.unread.push(member),
                        Err(_) => {}
                    }
                }
                count = Some(sum);
            }
            counts.extend(count);
        }
        Ok(counts)
    }
}

/// The next ones of these, those behind the last one of the time before first.
fn in_turn(mut all: Vec<&Tenant>, most: usize, last: &mut Option<Tenant>) -> BTreeSet<Tenant> {
    all.sort();
    let begin = last.as_ref().map_or(0, |last| all.partition_point(|tenant| *tenant <= last));
    all.rotate_left(begin);
    all.truncate(most);
    *last = all.last().map(|last| (*last).clone());
    all.into_iter().cloned().collect()
}

impl Watched {
    fn remember(&mut self, count: Count) {
        self.oldest = Duration::from_millis(count.status.oldest_due_age_ms.load(Relaxed));
        (self.unread, self.rescheduled) = (count.unread, count.rescheduled);
        self.schedule.remember(count.members, count.removed, count.witnesses);
    }
}

/// Whether this worker works on the tenant, as far as it can be worked on.
fn is_served(status: &TenantStatus) -> bool {
    use TenantState::{Degraded, Idle, Paused, Syncing};
    !status.standby.load(Relaxed)
        && !status.withheld.load(Relaxed)
        && matches!(status.collector_state().state, Idle | Syncing | Degraded | Paused)
}

/// How the mark names the process that answers, with what it has evicted. What isn't known is empty.
fn process(state: &ServerState) -> String {
    let evicted = state.evicted.map_or_else(String::new, |keys| keys.to_string());
    format!("{}:{evicted}", state.run_id.as_deref().unwrap_or_default())
}

/// The server of the process that the mark names; releases up to 1.0 named its `run_id` alone.
fn of_marked(process: Option<&str>) -> ServerWatch {
    let parts = process.map(|process| process.split_once(':').unwrap_or((process, "")));
    ServerWatch::of_process(
        parts.map(|(run_id, _)| run_id.to_owned()),
        parts.and_then(|(_, evicted)| evicted.parse().ok()),
    )
}

fn describe(change: &Change) -> (Reason, bool, String) {
    match change {
        Change::Replaced { how: How::Unmarked, .. } => {
            (Reason::RedisUnmarked, false, How::Unmarked.describe().to_owned())
        }
        Change::Replaced { how: how @ How::Promoted { lacks_bytes }, .. } => {
            let lacks = match lacks_bytes {
                0 => ": by its replication id it had all that the workers had seen written".to_owned(),
                bytes => format!(
                    ": by its replication id and offset it lacks {bytes} bytes at least of what the former one had written"
                ),
            };
            (Reason::RedisDataReplaced, how.is_loss(), format!("{}{lacks}", how.describe()))
        }
        Change::Replaced { how, lacks } => {
            let lacks = lacks.map_or_else(String::new, |lacks| {
                format!(": those of {:.0} s at least", lacks.as_secs_f64().max(1.0))
            });
            (Reason::RedisDataReplaced, how.is_loss(), format!("{}{lacks}", how.describe()))
        }
        Change::Evicted(keys) => (Reason::RedisEvicted, true, format!("Redis has evicted {keys} keys")),
    }
}

/// For a process or a data set.
fn new_mark() -> String {
    format!("{:032x}", rand::random::<u128>())
}
