//! What waits in the ledger's own queues of this worker's tenants. They are read and never written, and nothing is decided by
//! what is found.
//!
//! Depths are read on an interval, spread over it. Ages and attempts take a look at each record: a scan goes through a queue in
//! pages, as fast as `records_per_second` allows, which the live workers share. So the cost for Redis doesn't grow with the
//! queues, and with a million records a scan takes its time; [`balance_sync_engine::queues`] says what is known meanwhile.
//!
//! Of a tenant's workers only the first one looks. A tenant at rest is looked at in one of `ROUNDS_AT_REST` rounds: the ledger writes to
//! its queues when it schedules balances, and that rouses it.

pub mod quarantine;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::{KeySpace, LedgerQueue, queue};
use balance_sync_engine::queues::{QueueReport, Scan, Seen};
use balance_sync_fleet::{
    clock::wall_clock_ms,
    status::{FleetStatus, Oldest, TenantStatus},
    tasks::Progress,
};
use balance_sync_schedule::{Link, QueueError, QueueReader};
use balance_sync_tenants::{KeyForm, Tenant};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time between two steps, in each of which some tenants are looked at and some records read.
pub const STEP: Duration = Duration::from_millis(250);
/// Records in one page at most: less than a millisecond of Redis.
const PAGE: u64 = 200;
/// Fewer records are not worth a page: the budget is saved up for so many.
const SMALLEST_PAGE: u64 = 10;
/// Budget is saved up for so long.
const SAVED: f64 = 1.0;
/// Tenants that are looked at at once.
const AT_ONCE: usize = 50;
/// What was refused is tried again at every so manyth look: rights seldom change, and Redis logs each refusal.
const REFUSED_EVERY: u32 = 20;

/// One look in so many rounds is enough for a tenant on which nothing happens, whose queues were empty.
const ROUNDS_AT_REST: usize = 4;

/// How the ledger's queues are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueOptions {
    /// Time between two looks at a queue's depth, and from the beginning of one scan to that of the next at least.
    pub interval: Duration,
    /// Records that all live workers together look at, at most.
    pub records_per_second: u32,
    /// Time between two looks at what the ledger has given up replaying, in Postgres.
    pub quarantine_interval: Duration,
}

/// Looks until it is stopped.
pub async fn run(
    link: Link,
    fleet: Arc<FleetStatus>,
    key_form: KeyForm,
    options: QueueOptions,
    stop: CancellationToken,
    progress: Progress,
) {
    let watch = Watch {
        reader: QueueReader::new(link),
        fleet,
        key_form,
        options,
        tenants: HashMap::new(),
        round: Vec::new(),
        rounds: 0,
        due: VecDeque::new(),
        budget: 0.0,
        reported: BTreeSet::new(),
    };
    // A look holds nothing that is lost when it is dropped.
    let _ = stop.run_until_cancelled(watch.run(progress)).await;
}

/// The two hashes that are scanned.
const HASHES: [LedgerQueue; 2] = [LedgerQueue::Backup, LedgerQueue::Recovery];

/// A scan, by tenant, key space, queue and whether it is that of the attempts.
type Due = (Tenant, usize, usize, bool);

struct Watch {
    reader: QueueReader,
    fleet: Arc<FleetStatus>,
    key_form: KeyForm,
    options: QueueOptions,
    tenants: HashMap<Tenant, Vec<Space>>,
    /// Tenants that are still to be looked at in this round.
    round: Vec<Arc<TenantStatus>>,
    rounds: usize,
    /// Scans that are running, the next one first.
    due: VecDeque<Due>,
    /// Records that may be looked at now.
    budget: f64,
    /// What could not be read and was logged.
    reported: BTreeSet<LedgerQueue>,
}

/// The queues of a key space.
struct Space {
    keys: KeySpace,
    hashes: [Hash; 2],
    cleanup: Answer<(u64, Option<f64>)>,
    looks: u32,
}

#[derive(Default)]
struct Hash {
    depth: Answer<u64>,
    retried: Answer<u64>,
    records: Scan,
    attempts: Scan,
    /// Why the last scan could not go on.
    broken: Option<String>,
}

/// The last answer about a key.
#[derive(Clone, Default)]
enum Answer<T> {
    #[default]
    None,
    Is(T),
    /// It can't be read.
    Refused(String),
}

impl<T: Copy> Answer<T> {
    fn value(&self) -> Option<T> {
        match self {
            Self::Is(value) => Some(*value),
            Self::None | Self::Refused(_) => None,
        }
    }

    fn error(&self) -> Option<String> {
        match self {
            Self::Refused(error) => Some(error.clone()),
            Self::None | Self::Is(_) => None,
        }
    }

    fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// Takes over what was answered. An error that isn't about the key is returned.
fn answered<T>(answer: Result<T, QueueError>) -> Result<Answer<T>, QueueError> {
    match answer {
        Ok(value) => Ok(Answer::Is(value)),
        Err(error @ QueueError::Redis(_)) => Err(error),
        Err(error) => Ok(Answer::Refused(error.to_string())),
    }
}

impl Watch {
    async fn run(mut self, progress: Progress) {
        let mut round_begins = Instant::now();
        let mut group = 1;
        let mut last = Instant::now();
        loop {
            let step = STEP.min(self.options.interval);
            if self.round.is_empty() && Instant::now() >= round_begins {
                self.begin_round();
                // A worker that has just been started has no tenants yet.
                if !self.round.is_empty() {
                    round_begins = Instant::now() + self.options.interval;
                }
                let steps = (self.options.interval.as_millis() / step.as_millis().max(1)).max(1);
                group = self.round.len().div_ceil(usize::try_from(steps).unwrap_or(usize::MAX));
            }
            let now = self.round.split_off(self.round.len().saturating_sub(group));
            for tenants in now.chunks(AT_ONCE) {
                self.look_at(tenants).await;
            }
            self.save_up(last.elapsed());
            last = Instant::now();
            self.scan().await;
            progress.beat();
            tokio::time::sleep(step).await;
        }
    }

    /// Takes the tenants of this worker. Of those that are another worker's first nothing is known here.
    fn begin_round(&mut self) {
        let (own, others): (Vec<_>, Vec<_>) =
            self.fleet.tenants().iter().cloned().partition(|status| !status.standby.load(Relaxed));
        others.iter().for_each(|status| status.show_queues(None));
        let own_tenants: BTreeSet<&Tenant> = own.iter().map(|status| status.tenant()).collect();
        self.tenants.retain(|tenant, _| own_tenants.contains(tenant));
        self.due.retain(|(tenant, ..)| own_tenants.contains(tenant));
        self.rounds = self.rounds.wrapping_add(1);
        // A part of those at rest in each round.
        let is_due = |(at, status): &(usize, Arc<TenantStatus>)| {
            !status.is_at_rest() || at.wrapping_add(self.rounds).is_multiple_of(ROUNDS_AT_REST)
        };
        self.round = own.into_iter().enumerate().filter(is_due).map(|(_, status)| status).collect();
    }

    /// Reads depths, and begins scans.
    async fn look_at(&mut self, tenants: &[Arc<TenantStatus>]) {
        let key_form = self.key_form;
        let spaces = tenants.iter().map(|status| match self.tenants.remove(status.tenant()) {
            Some(known) => (known, true),
            None => (status.tenant().key_spaces(key_form).into_iter().map(Space::new).collect(), false),
        });
        let spaces: Vec<(Vec<Space>, bool)> = spaces.collect();
        let reader = &self.reader;
        // Most are empty: one command for all that were. Where it is refused, or some aren't, each is looked at by itself.
        let were_empty = spaces.iter().filter(|(_, known)| !known).flat_map(|(spaces, _)| spaces);
        let keys: Vec<String> = were_empty.flat_map(Space::all_keys).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let are_empty = !keys.is_empty() && matches!(reader.existing(&keys).await, Ok(0));
        let looks = spaces.into_iter().map(async |(mut spaces, known)| {
            let mut result = Ok(());
            for space in &mut spaces {
                if are_empty && !known {
                    space.found_empty();
                } else {
                    result = result.and(space.look(reader).await);
                }
            }
            (spaces, result)
        });
        let looks = futures::future::join_all(looks).await;
        for (status, (mut spaces, result)) in tenants.iter().zip(looks) {
            match result {
                Ok(()) => {
                    for (at, space) in spaces.iter_mut().enumerate() {
                        for (queue, attempts) in space.begin_scans() {
                            self.due.push_back((status.tenant().clone(), at, queue, attempts));
                        }
                    }
                    let reports = reports(&spaces);
                    self.log_refusals(status.tenant(), &reports);
                    status.show_queues(Some(reports));
                }
                Err(error) => {
                    tracing::debug!(tenant_id = %status.tenant(), %error, "the ledger's queues could not be read");
                    status.show_queues(None);
                }
            }
            // Of empty queues there is nothing to remember.
            if !spaces.iter().all(Space::is_empty) {
                self.tenants.insert(status.tenant().clone(), spaces);
            }
        }
    }

    /// Once for each queue: what is missing is usually missing for all tenants.
    fn log_refusals(&mut self, tenant: &Tenant, reports: &[QueueReport]) {
        for report in reports {
            let (Some(error), Some(queue)) = (&report.error, report.queue.known()) else { continue };
            if self.reported.insert(queue) {
                tracing::warn!(tenant_id = %tenant, %queue, error, "a queue of the ledger can't be read");
            }
        }
    }

    fn save_up(&mut self, elapsed: Duration) {
        let workers = self.fleet.workers.load(Relaxed).max(1) as f64;
        let rate = f64::from(self.options.records_per_second) / workers;
        // With many workers the share of one is less than the smallest page, which it may save up for all the same.
        let most = (rate * SAVED).max(SMALLEST_PAGE as f64);
        self.budget = (self.budget + rate * elapsed.as_secs_f64()).min(most);
    }

    /// Reads pages of the running scans in turn, for as long as the budget lasts.
    async fn scan(&mut self) {
        while self.budget >= SMALLEST_PAGE as f64
            && let Some(due) = self.due.pop_front()
        {
            let records = PAGE.min(self.budget as u64);
            let (tenant, at, queue, attempts) = &due;
            let Some(space) = self.tenants.get_mut(tenant).and_then(|spaces| spaces.get_mut(*at)) else {
                continue;
            };
            let cost = match space.read_page(&self.reader, *queue, *attempts, records).await {
                Ok(Some((cost, looked_at))) => {
                    self.fleet.queue_records.fetch_add(looked_at, Relaxed);
                    cost
                }
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!(tenant_id = %tenant, %error, "a queue of the ledger could not be read on");
                    records
                }
            };
            self.budget -= cost as f64;
            let ended = space.scan_of(*queue, *attempts).cursor().is_none();
            if ended {
                if let Some(status) = self.fleet.find(tenant)
                    && !status.standby.load(Relaxed)
                    && let Some(spaces) = self.tenants.get(tenant)
                {
                    status.show_queues(Some(reports(spaces)));
                }
            } else {
                self.due.push_back(due);
            }
        }
    }
}

impl Space {
    fn new(keys: KeySpace) -> Self {
        Self { keys, hashes: Default::default(), cleanup: Answer::None, looks: 0 }
    }

    fn scan_of(&mut self, queue: usize, attempts: bool) -> &mut Scan {
        let hash = &mut self.hashes[queue];
        if attempts { &mut hash.attempts } else { &mut hash.records }
    }

    fn hash_key(&self, queue: usize, attempts: bool) -> String {
        match (HASHES[queue], attempts) {
            (LedgerQueue::Backup, false) => self.keys.backup_queue(),
            (LedgerQueue::Backup, true) => self.keys.backup_attempts(),
            (_, false) => self.keys.recovery(),
            (_, true) => self.keys.recovery_attempts(),
        }
    }

    fn all_keys(&self) -> [String; 5] {
        [
            self.hash_key(0, false),
            self.hash_key(0, true),
            self.hash_key(1, false),
            self.hash_key(1, true),
            self.keys.recovery_cleanup(),
        ]
    }

    /// None of its keys exists.
    fn found_empty(&mut self) {
        self.looks = self.looks.wrapping_add(1);
        for hash in &mut self.hashes {
            *hash = Hash { depth: Answer::Is(0), retried: Answer::Is(0), ..Hash::default() };
        }
        self.cleanup = Answer::Is((0, None));
    }

    /// Reads the depths.
    async fn look(&mut self, reader: &QueueReader) -> Result<(), QueueError> {
        let refused = self.cleanup.is_refused()
            || self.hashes.iter().any(|hash| hash.depth.is_refused() || hash.retried.is_refused());
        let again = self.looks.is_multiple_of(REFUSED_EVERY);
        if !refused {
            match reader.existing(&self.all_keys().each_ref().map(String::as_str)).await {
                Ok(0) => {
                    self.found_empty();
                    return Ok(());
                }
                Err(error @ QueueError::Redis(_)) => return Err(error),
                // One of the keys, or the command, is refused: each is tried by itself.
                Ok(_) | Err(_) => {}
            }
        }
        self.looks = self.looks.wrapping_add(1);
        let tried = |is_refused: bool| !is_refused || again;
        for queue in 0..HASHES.len() {
            if tried(self.hashes[queue].depth.is_refused()) {
                let key = self.hash_key(queue, false);
                self.hashes[queue].depth = answered(reader.hash_depth(&key).await)?;
            }
            if tried(self.hashes[queue].retried.is_refused()) {
                let key = self.hash_key(queue, true);
                self.hashes[queue].retried = answered(reader.hash_depth(&key).await)?;
            }
            self.follow(reader, queue).await?;
        }
        if tried(self.cleanup.is_refused()) {
            self.cleanup = answered(reader.set_depth(&self.keys.recovery_cleanup()).await)?;
        }
        Ok(())
    }

    /// Drops those of the oldest records that are gone, and everything of a hash that is empty or can't be read.
    async fn follow(&mut self, reader: &QueueReader, queue: usize) -> Result<(), QueueError> {
        let key = self.hash_key(queue, false);
        let hash = &mut self.hashes[queue];
        let holds_some = |answer: &Answer<u64>| answer.value().is_some_and(|depth| depth > 0);
        if !holds_some(&hash.retried) {
            hash.attempts.forget();
        }
        if !holds_some(&hash.depth) {
            hash.records.forget();
            hash.broken = None;
            return Ok(());
        }
        let followed = hash.records.followed();
        if followed.is_empty() {
            return Ok(());
        }
        match reader.has(&key, &followed).await {
            Ok(there) => hash.records.still_there(&there),
            Err(error @ QueueError::Redis(_)) => return Err(error),
            Err(error) => hash.broken = Some(error.to_string()),
        }
        Ok(())
    }

    /// Begins a scan of every hash that holds something and isn't being scanned.
    fn begin_scans(&mut self) -> Vec<(usize, bool)> {
        let mut begun = Vec::new();
        for (queue, hash) in self.hashes.iter_mut().enumerate() {
            // A scan that can't be carried out is tried as seldom as a key without a right.
            if hash.broken.is_some() && !self.looks.is_multiple_of(REFUSED_EVERY) {
                continue;
            }
            let holds_some = |answer: &Answer<u64>| answer.value().is_some_and(|depth| depth > 0);
            if holds_some(&hash.depth) && hash.records.begin() {
                begun.push((queue, false));
            }
            if holds_some(&hash.retried) && hash.attempts.begin() {
                begun.push((queue, true));
            }
        }
        begun
    }

    /// Reads the next page of a scan; what it cost, and how many records it had. `None` = the scan was given up meanwhile.
    async fn read_page(
        &mut self,
        reader: &QueueReader,
        queue: usize,
        attempts: bool,
        records: u64,
    ) -> Result<Option<(u64, u64)>, QueueError> {
        let key = self.hash_key(queue, attempts);
        let Some(cursor) = self.scan_of(queue, attempts).cursor().map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        let page = match reader.page(&key, &cursor, records).await {
            Ok(page) => page,
            Err(error) => {
                self.scan_of(queue, attempts).abandon();
                if !matches!(error, QueueError::Redis(_)) {
                    self.hashes[queue].broken = Some(error.to_string());
                }
                return Err(error);
            }
        };
        self.hashes[queue].broken = None;
        let looked_at = page.records.len() as u64;
        let seen = page.records.into_iter().map(|(field, value)| {
            let seen = value.map_or(Seen::Unreadable, |value| look_into(HASHES[queue], attempts, &value));
            (field, seen)
        });
        let now_ms = i64::try_from(wall_clock_ms()).unwrap_or(i64::MAX);
        self.scan_of(queue, attempts).page(seen, page.next, now_ms);
        Ok(Some((page.cost, looked_at)))
    }

    /// Whether nothing is in it, and all of it could be read.
    fn is_empty(&self) -> bool {
        let empty = |hash: &Hash| hash.depth.value() == Some(0) && hash.retried.value() == Some(0);
        self.hashes.iter().all(empty) && self.cleanup.value().is_some_and(|(depth, _)| depth == 0)
    }

    fn report(&self, queue: LedgerQueue) -> QueueReport {
        let Some(at) = HASHES.iter().position(|hash| *hash == queue) else { return self.cleanup_report() };
        let hash = &self.hashes[at];
        let error = hash.depth.error().or_else(|| hash.broken.clone()).or_else(|| hash.retried.error());
        let (undated, unreadable) = hash.records.doubtful();
        let (oldest_at_ms, seen_at_ms) = match (hash.depth.value(), hash.records.oldest()) {
            (Some(0), _) | (_, Oldest::Empty) => (None, None),
            (_, Oldest::At(at)) => (Some(at), None),
            (_, Oldest::Unknown(seen)) => (None, seen),
        };
        QueueReport {
            queue: queue.into(),
            depth: hash.depth.value(),
            oldest_at_ms,
            seen_at_ms,
            looked_at: hash.records.looked_at(),
            as_of_ms: hash.records.as_of_ms(),
            undated,
            unreadable: unreadable + hash.attempts.doubtful().1,
            retried: hash.retried.value(),
            most_attempts: match hash.retried.value() {
                Some(0) => Some(0),
                _ => hash.attempts.most_attempts(),
            },
            error,
        }
    }

    fn cleanup_report(&self) -> QueueReport {
        let queue = LedgerQueue::RecoveryCleanup;
        match self.cleanup.value() {
            None => QueueReport::unknown(queue, self.cleanup.error()),
            Some((0, _)) => QueueReport::empty(queue),
            Some((depth, first)) => QueueReport {
                depth: Some(depth),
                oldest_at_ms: first.map(|ms| ms as i64),
                // Every look is a whole one.
                as_of_ms: None,
                unreadable: u64::from(first.is_none()),
                ..QueueReport::empty(queue)
            },
        }
    }
}

fn look_into(queue: LedgerQueue, attempts: bool, value: &[u8]) -> Seen {
    if attempts {
        return queue::attempts(value).map_or(Seen::Unreadable, Seen::Attempts);
    }
    let created = match queue {
        LedgerQueue::Backup => queue::backup_created_ms(value),
        _ => queue::recovery_applied_ms(value),
    };
    match created {
        Ok(Some(at)) => Seen::CreatedAt(at),
        Ok(None) => Seen::Undated,
        Err(_) => Seen::Unreadable,
    }
}

/// The queues of a tenant over its key spaces, without those that are empty.
fn reports(spaces: &[Space]) -> Vec<QueueReport> {
    [LedgerQueue::Backup, LedgerQueue::Recovery, LedgerQueue::RecoveryCleanup]
        .into_iter()
        .filter_map(|queue| spaces.iter().map(|space| space.report(queue)).reduce(QueueReport::and))
        .filter(|report| !report.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balance_sync_domain::TenantId;
    use balance_sync_fleet::status::{CALM_FOR, TenantState};
    use balance_sync_schedule::LinkSettings;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tenant_at_rest_is_looked_at_in_one_of_four_rounds() {
        let fleet = Arc::new(FleetStatus::default());
        let all: Vec<_> = (0..40)
            .map(|n| fleet.tenant(&Tenant::Id(TenantId::parse(&format!("t{n:02}")).unwrap())))
            .collect();
        for status in &all {
            status.quiet.of(1);
            status.quiet.begin(0);
            status.enter(TenantState::Idle);
            status.show_entries(Some((0, 0)));
            status.show_watched(true);
        }
        fleet.rest.settle();
        tokio::time::advance(CALM_FOR).await;
        fleet.rest.settle();
        all[3].rouse();
        let link = Link::new(&LinkSettings::for_url("redis://127.0.0.1:1")).unwrap();
        let mut watch = Watch {
            reader: QueueReader::new(link),
            fleet,
            key_form: KeyForm::AsListed,
            options: QueueOptions {
                interval: Duration::from_secs(15),
                records_per_second: 10,
                quarantine_interval: Duration::from_secs(1800),
            },
            tenants: HashMap::new(),
            round: Vec::new(),
            rounds: 0,
            due: VecDeque::new(),
            budget: 0.0,
            reported: BTreeSet::new(),
        };
        let mut looked: HashMap<Tenant, usize> = HashMap::new();
        for _ in 0..ROUNDS_AT_REST {
            watch.begin_round();
            for status in watch.round.drain(..) {
                *looked.entry(status.tenant().clone()).or_default() += 1;
            }
        }
        assert_eq!(looked.len(), all.len());
        assert_eq!(looked[all[3].tenant()], ROUNDS_AT_REST);
        assert_eq!(looked.values().filter(|looks| **looks == 1).count(), all.len() - 1);
    }
}
