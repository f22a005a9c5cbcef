//! Several Redis servers: what a worker of one of them sees of the others, and what is left in its own of tenants that live
//! elsewhere. It only reads.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use balance_sync_engine::routes::Routes;
use balance_sync_fleet::{
    clock::wall_clock,
    status::{EntryLook, LeftOver, Routing, RoutingLook, Split},
    tasks::Progress,
};
use balance_sync_schedule::{Link, QueueReader, ScheduleError, Snapshots, sample::sample};
use balance_sync_tenants::{KeyForm, Tenant};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::record::WorkerRecord;

/// Between two looks at the other servers, and at what is known to be left here. The directory is read as often.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at what all tenants that live elsewhere have left here: there may be a hundred thousand.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// For so long a tenant that has left is looked at each time.
const GONE_FOR: Duration = Duration::from_secs(600);
/// Longest time for another server to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Workers of another server that are counted one by one; behind them all count as writing.
const COUNTED: usize = 64;
/// Tenants in one command: some 750 keys.
const PAGE: usize = 125;
/// Between two pages, so that no other call of Redis waits for all of them.
const PAUSE: Duration = Duration::from_millis(10);
/// Tenants with something left that are named.
pub(crate) const MOST_LEFT: usize = 100;

/// A Redis of the directory other than the own one.
#[derive(Debug, Clone)]
pub struct OtherRedis {
    /// Its name.
    pub name: String,
    /// What its workers publish.
    pub snapshots: Snapshots,
}

/// What is known of the Redis directory.
#[derive(Debug, Clone)]
pub struct RoutingView {
    /// The entry whose fleet this is.
    pub own: String,
    /// Tells the directory in force apart from others.
    pub digest: String,
    /// How the list of tenants was taken apart.
    pub split: Arc<Split>,
    /// What the last look found.
    pub look: Arc<RoutingLook>,
    /// Why what stands in the directory isn't in force.
    pub problem: Option<String>,
}

impl RoutingView {
    pub(crate) fn of(routing: &Routing) -> Self {
        Self {
            own: routing.own().to_owned(),
            digest: routing.in_force().digest(),
            split: routing.split(),
            look: routing.look(),
            problem: routing.problem(),
        }
    }
}

/// A directory that was read.
pub struct Reading {
    /// Which tenants live where.
    pub routes: Arc<Routes>,
    /// The other servers.
    pub others: Vec<OtherRedis>,
}

/// Reads the directory when it has changed. It may block.
pub trait DirectorySource: Send + Sync + 'static {
    /// What stands there now; `None` = what stood there before.
    ///
    /// # Errors
    /// Why it can't be used.
    fn read(&self, force: bool) -> Result<Option<Reading>, String>;
}

/// Looks at the other servers, and at what is left in the own one.
pub struct RoutingLooker {
    routing: Arc<Routing>,
    link: Link,
    key_form: KeyForm,
    others: Mutex<Arc<Vec<OtherRedis>>>,
    swept: Mutex<Option<(Instant, Arc<Vec<Tenant>>)>>,
    /// Tenants that have left, and when: a ledger that still writes here does so now.
    gone: Mutex<Vec<(Instant, Tenant)>>,
    force: AtomicBool,
}

impl RoutingLooker {
    /// Over a link to the own Redis.
    #[must_use]
    pub fn new(routing: Arc<Routing>, link: Link, key_form: KeyForm, others: Vec<OtherRedis>) -> Self {
        let others = Mutex::new(Arc::new(others));
        Self {
            routing,
            link,
            key_form,
            others,
            swept: Mutex::default(),
            gone: Mutex::default(),
            force: AtomicBool::new(false),
        }
    }

    /// Which tenants live where.
    #[must_use]
    pub fn routing(&self) -> &Arc<Routing> {
        &self.routing
    }

    /// Has the directory read again, whether it has changed or not.
    pub fn read_again(&self) {
        self.force.store(true, Relaxed);
    }

    /// Reads the directory and looks until it is stopped.
    pub(crate) async fn run(
        self: Arc<Self>,
        source: Arc<dyn DirectorySource>,
        stop: CancellationToken,
        progress: Progress,
    ) {
        let looking = async {
            loop {
                self.read(&source).await;
                self.look(|| progress.beat()).await;
                progress.beat();
                tokio::time::sleep(INTERVAL).await;
            }
        };
        stop.run_until_cancelled(looking).await;
    }

    async fn read(&self, source: &Arc<dyn DirectorySource>) {
        let (source, force) = (Arc::clone(source), self.force.swap(false, Relaxed));
        let read = tokio::task::spawn_blocking(move || source.read(force)).await;
        match read.unwrap_or_else(|_| Err("reading it panicked".to_owned())) {
            Ok(None) => {}
            Ok(Some(Reading { routes, others })) => {
                self.routing.offer(routes);
                *self.others.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(others);
            }
            Err(problem) => {
                if self.routing.problem().as_deref() != Some(&problem) {
                    tracing::error!(problem, "the Redis directory can't be read, the one in force stays so");
                }
                self.routing.report(Some(problem));
            }
        }
    }

    /// Looks once.
    pub async fn look(&self, beat: impl Fn()) {
        let others = Arc::clone(&self.others.lock().unwrap_or_else(PoisonError::into_inner));
        let entries = futures::future::join_all(others.iter().map(look_at)).await;
        beat();
        let before = self.routing.look();
        let elsewhere = Arc::clone(&self.routing.split().elsewhere);
        let departing = self.routing.departing();
        let is_due = {
            let swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            swept.as_ref().is_none_or(|(at, of)| at.elapsed() >= SWEEP_EVERY || *of != elsewhere)
        };
        let gone: BTreeSet<Tenant> = {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            gone.retain(|(at, _)| at.elapsed() < GONE_FOR);
            gone.iter().map(|(_, tenant)| tenant.clone()).collect()
        };
        let known: BTreeSet<&str> = before
            .left
            .iter()
            .map(|left| left.tenant.as_str())
            .chain(gone.iter().map(Tenant::label))
            .collect();
        let chosen: Vec<&Tenant> = elsewhere
            .iter()
            .filter(|tenant| is_due || departing.contains(*tenant) || known.contains(tenant.label()))
            .collect();
        let mut look = RoutingLook { at: wall_clock(), entries, ..RoutingLook::default() };
        let mut emptied = Vec::new();
        match self.left(&chosen, &departing, &beat).await {
            Ok(mut left) => {
                let still: BTreeSet<&str> =
                    left.iter().filter(|one| one.scheduled > 0).map(|one| one.tenant.as_str()).collect();
                emptied.extend(departing.into_iter().filter(|tenant| !still.contains(tenant.label())));
                if is_due {
                    look.left_tenants = left.len() as u64;
                    let swept = Some((Instant::now(), elsewhere));
                    *self.swept.lock().unwrap_or_else(PoisonError::into_inner) = swept;
                } else {
                    // Of those that are not named nothing new is known until the next sweep.
                    let unnamed = before.left_tenants.saturating_sub(before.left.len() as u64);
                    look.left_tenants = left.len() as u64 + unnamed;
                }
                left.sort_by_key(|one| std::cmp::Reverse(one.scheduled));
                left.truncate(MOST_LEFT);
                look.left = left;
            }
            Err(error) => {
                look.left_unknown = Some(error.to_string());
                look.left.clone_from(&before.left);
                look.left_tenants = before.left_tenants;
            }
        }
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.extend(emptied.iter().map(|tenant| (Instant::now(), tenant.clone())));
        drop(gone);
        self.routing.looked(look, &emptied);
    }

    /// What these tenants have left here.
    async fn left(
        &self,
        tenants: &[&Tenant],
        departing: &BTreeSet<Tenant>,
        beat: &impl Fn(),
    ) -> Result<Vec<LeftOver>, ScheduleError> {
        let reader = QueueReader::new(self.link.clone());
        let routes = self.routing.in_force();
        let mut found = Vec::new();
        for (at, page) in tenants.chunks(PAGE).enumerate() {
            if at > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            beat();
            let spaces: Vec<_> = page.iter().map(|tenant| tenant.key_spaces(self.key_form)).collect();
            let keys: Vec<String> = spaces
                .iter()
                .flatten()
                .flat_map(|space| [space.schedule().to_owned(), space.quarantine(), space.losses()])
                .collect();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            // Where that may not be asked, the samples say it.
            if matches!(reader.existing(&keys).await, Ok(0)) {
                continue;
            }
            let all: Vec<_> = spaces.iter().flatten().collect();
            let mut samples = sample(&self.link, &all).await?.into_iter();
            for (tenant, spaces) in page.iter().zip(&spaces) {
                let (mut scheduled, mut aside) = (0, 0);
                for sample in samples.by_ref().take(spaces.len()) {
                    scheduled += sample.scheduled.unwrap_or_default();
                    aside += sample.quarantined.unwrap_or_default() + sample.lost.unwrap_or_default();
                }
                if scheduled + aside > 0 {
                    found.push(LeftOver {
                        tenant: tenant.label().to_owned(),
                        lives_on: routes.route(tenant.label()).unwrap_or_default().to_owned(),
                        scheduled,
                        aside,
                        departing: departing.contains(*tenant),
                    });
                }
            }
        }
        Ok(found)
    }
}

/// Who is alive at another server.
async fn look_at(other: &OtherRedis) -> EntryLook {
    let counting = async {
        let live = other.snapshots.publishers().await?.live;
        let mut workers = live.len().saturating_sub(COUNTED) as u64;
        for name in live.iter().take(COUNTED) {
            let record = other.snapshots.worker(name).await?;
            // One that only looks serves no tenant; what can't be read may be of a later release.
            let record = record.map(|record| serde_json::from_str::<WorkerRecord>(&record));
            workers += u64::from(!matches!(record, Some(Ok(record)) if record.is_shadow()));
        }
        Ok::<_, ScheduleError>(workers)
    };
    let name = other.name.clone();
    match tokio::time::timeout(ANSWER_WITHIN, counting).await {
        Ok(Ok(workers)) => EntryLook { name, workers: Some(workers), error: None },
        Ok(Err(error)) => EntryLook { name, workers: None, error: Some(error.to_string()) },
        Err(_) => {
            EntryLook { name, workers: None, error: Some(format!("no answer within {ANSWER_WITHIN:?}")) }
        }
    }
}
