//! The whole fleet, as any worker or command can tell it: what all workers have published, what this one knows itself, and
//! what the directory lists.
//!
//! It is built on demand, at most once per second, and then only
//! what has changed is read. With Redis away a worker still tells what it serves itself.

mod beside;
mod query;
mod selected;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::TenantId;
use balance_sync_engine::rollout::Selection;
use balance_sync_fleet::{
    clock::wall_clock,
    pipeline::CollectorOptions,
    status::{Rates, Rollout, TenantState, WorkerMode},
};
use balance_sync_schedule::{
    Controls, Link, Rollouts, ScheduleError, ServerFacts, Snapshots, controls::Acknowledgement,
    snapshots::Position,
};
use balance_sync_tenants::{KeyForm, Tenant, TenantDirectory};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    actions::PausedRecord,
    facts::{self, Fact},
    local_worker::{LocalWorker, clock_offset_ms},
    record::{Counts, DetailRecord, FleetPoint, TenantRecord, WorkerRecord},
    routing::{RoutingLooker, RoutingView},
    rows::{
        AcknowledgedView, DeadWorker, PausedBy, ShadowView, StateView, TenantDetail, TenantRow, WorkerRow,
    },
    unserved::{self, Waiting},
};
pub use beside::ForeignWorker;
use beside::{Dead, Foreign, dead_workers, foreign_workers};
pub use query::{StateFilter, TenantQuery, TenantSort};
pub use selected::FleetRollout;

/// Requests within this time get the same answer.
const FRESH: Duration = Duration::from_millis(900);
/// Longest time for what Redis is asked in one look; beyond it counts as away.
const REDIS_BOUND: Duration = Duration::from_secs(3);
/// How long workers go on publishing the detail of a tenant after it was viewed.
const INTEREST: Duration = Duration::from_secs(15);
/// A command without a worker asks the directory this often at most.
const LIST_EVERY: Duration = Duration::from_secs(10);
/// The schedules of tenants that are not in the rollout are read this often at most: there may be thousands.
const OUTSIDE_EVERY: Duration = Duration::from_secs(10);
/// Longest time for the directory to answer a command.
const LIST_BOUND: Duration = Duration::from_secs(10);

/// The fleet at one moment.
#[derive(Debug, Clone)]
pub struct FleetView {
    /// When it was put together, in seconds since 1970.
    pub at: f64,
    /// Why Redis can't be read.
    pub redis_error: Option<String>,
    /// Why Redis takes no writes. No worker can publish then: others are shown as they were last reported.
    pub writes_refused: Option<ScheduleError>,
    /// Whether it is known which tenants there are.
    pub listed: bool,
    /// The tenant service doesn't answer this command, and the tenants are those that live workers report: so many more are not in the
    /// rollout, and not among them. `None` = the list is its own.
    pub listed_by_workers: Option<u64>,
    /// All live workers that write, by name.
    pub workers: Vec<WorkerRow>,
    /// Live workers whose reports can't be read, by name: they may be of a later release. What they serve isn't known.
    pub unreadable_workers: Vec<String>,
    /// Live workers that only look, by name. They are not among the workers, and no tenant is theirs.
    pub shadows: Vec<WorkerRow>,
    /// Those that died lately, the last first.
    pub dead_workers: Vec<DeadWorker>,
    /// Which tenants are served; `None` = that isn't known.
    pub rollout: Option<Arc<Rollout>>,
    /// Why what is stored of the rollout isn't in force.
    pub rollout_problem: Option<String>,
    /// The Redis servers that there are; `None` where there is one.
    pub routing: Option<RoutingView>,
    /// Workers with another list of tenants or another form of keys that serve some of these tenants as well.
    pub foreign_workers: Vec<ForeignWorker>,
    /// The last seconds, over all workers.
    pub rates: Rates,
    /// All tenants, by id.
    pub tenants: Vec<TenantRow>,
    /// Those that are listed and of which nothing is known: Redis can't be read.
    pub unknown_tenants: usize,
    /// Their counters, in the same order.
    pub counts: Vec<Counts>,
    /// Their lags over the last seconds by bucket, in the same order; empty without any.
    pub lags: Vec<Vec<u64>>,
    /// The fleet's history, as this worker has seen it.
    pub history: Vec<FleetPoint>,
    /// In how many seconds nothing will be due any more, as live workers have seen it; for commands, which have no history.
    pub published_eta_seconds: Option<f64>,
    /// What the fleet is made of; while Redis is away, as it was known before.
    pub facts: Vec<Fact>,
    /// A tenant whose oldest due balance is older counts as behind.
    pub objective_seconds: f64,
    /// What it is judged by.
    pub objectives: Objectives,
    /// By how much the clock of this process is ahead of Redis's, at least; `None` = not known.
    pub clock_offset_seconds: Option<f64>,
    /// It is a ledger without tenants.
    pub single: bool,
}

impl FleetView {
    /// One tenant.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<(&TenantRow, &Counts)> {
        let at = self.tenants.binary_search_by(|row| row.id.as_str().cmp(id)).ok()?;
        Some((&self.tenants[at], &self.counts[at]))
    }

    /// The row of the tenant that is shown under this name, or under the other form of this UUID.
    #[must_use]
    pub fn find_called(&self, id: &str) -> Option<(&TenantRow, &Counts)> {
        self.find(id).or_else(|| self.find(self.tenant(id)?.label()))
    }

    /// The tenant that is shown under this name, or under the other form of this UUID.
    #[must_use]
    pub fn tenant(&self, id: &str) -> Option<Tenant> {
        let of = |row: &TenantRow| match self.single {
            true => Some(Tenant::Single),
            false => TenantId::parse(&row.id).ok().map(Tenant::Id),
        };
        match self.find(id) {
            Some((row, _)) => of(row),
            None => self.tenants.iter().filter_map(of).find(|tenant| tenant.is_called(id)),
        }
    }
}

/// What is known of another worker.
struct Known {
    /// Silent only while Redis refuses writes.
    live: bool,
    position: Position,
    worker: WorkerRecord,
    tenants: HashMap<String, TenantRecord>,
}

/// Where the list of tenants comes from.
enum Source {
    /// The worker in this process, which polls it anyway.
    LocalWorker(Arc<LocalWorker>),
    /// A command: the directory is asked.
    Directory { directory: Arc<dyn TenantDirectory>, listed: Option<(Instant, Vec<Tenant>)> },
}

/// What was read beside the workers.
#[derive(Default, Clone)]
struct Read {
    paused: HashMap<String, PausedBy>,
    acknowledged: HashMap<String, Acknowledgement>,
    writes_refused: Option<ScheduleError>,
    clock_offset_ms: Option<i64>,
    rollout: Option<Arc<Rollout>>,
    rollout_problem: Option<String>,
    /// Live workers whose records can't be read, by name.
    unreadable: Vec<String>,
    /// What Redis says of itself.
    server: Option<ServerFacts>,
    /// When facts changed, in the order of their names.
    recorded_facts: Vec<Option<String>>,
}

struct State {
    /// What waited in the schedules of tenants that are not in the rollout.
    outside: Option<(Instant, HashMap<String, Waiting>)>,
    source: Source,
    known: BTreeMap<String, Known>,
    dead: BTreeMap<String, Dead>,
    /// By group and name.
    foreign: BTreeMap<(String, String), Foreign>,
    /// What was read last beside the workers.
    read: Read,
    facts: Vec<Fact>,
    last: Option<(Instant, Arc<FleetView>)>,
}

/// What the fleet is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Objectives {
    /// What the p99 of a tenant's exposure over an hour should stay within.
    pub exposure: Duration,
    /// A tenant whose oldest due balance is older counts as behind.
    pub freshness: Duration,
    /// A tenant that has been paused for longer needs attention.
    pub pause: Duration,
    /// For how long a stage of the rollout has to be watched before the next one.
    pub rollout_time: Duration,
    /// How many mutations it has to have written.
    pub rollout_mutations: u64,
    /// A record that waits in one of the ledger's own queues for longer needs attention.
    pub queue_age: Duration,
    /// Workers that should be alive; 0 = any number will do.
    pub workers: usize,
}

/// Reads the fleet.
pub struct FleetReader {
    own: Option<Arc<LocalWorker>>,
    snapshots: Snapshots,
    controls: Controls,
    rollouts: Rollouts,
    /// Which tenants are served, unless operators have set that at run time.
    rollout: Arc<Selection>,
    /// To read the schedules of tenants that no live worker serves.
    link: Link,
    key_form: KeyForm,
    objectives: Objectives,
    options: Arc<CollectorOptions>,
    /// Looks at the other Redis servers for a command.
    looker: Option<RoutingLooker>,
    state: Mutex<State>,
}

impl FleetReader {
    /// For a worker, which knows its own part without a query.
    #[must_use]
    pub fn of_worker(
        own: Arc<LocalWorker>,
        snapshots: Snapshots,
        link: Link,
        key_form: KeyForm,
        objectives: Objectives,
        rollout: Arc<Selection>,
        options: Arc<CollectorOptions>,
    ) -> Self {
        let source = Source::LocalWorker(Arc::clone(&own));
        Self::new(Some(own), source, snapshots, link, key_form, objectives, rollout, options)
    }

    /// For a command, without a worker in its process. `directory` says which tenants there are.
    #[must_use]
    pub fn for_command(
        directory: Arc<dyn TenantDirectory>,
        snapshots: Snapshots,
        link: Link,
        key_form: KeyForm,
        objectives: Objectives,
        rollout: Arc<Selection>,
        options: Arc<CollectorOptions>,
    ) -> Self {
        let source = Source::Directory { directory, listed: None };
        Self::new(None, source, snapshots, link, key_form, objectives, rollout, options)
    }

    #[allow(clippy::too_many_arguments)] // the parts of both constructors above
    fn new(
        own: Option<Arc<LocalWorker>>,
        source: Source,
        snapshots: Snapshots,
        link: Link,
        key_form: KeyForm,
        objectives: Objectives,
        rollout: Arc<Selection>,
        options: Arc<CollectorOptions>,
    ) -> Self {
        let rollouts = Rollouts::new(link.clone());
        let controls = Controls::new(link.clone());
        let state = Mutex::new(State {
            outside: None,
            source,
            known: BTreeMap::new(),
            dead: BTreeMap::new(),
            foreign: BTreeMap::new(),
            read: Read::default(),
            facts: Vec::new(),
            last: None,
        });
        Self {
            own,
            snapshots,
            controls,
            rollouts,
            rollout,
            link,
            key_form,
            objectives,
            options,
            looker: None,
            state,
        }
    }

    /// Makes a command look at the other Redis servers as well.
    #[must_use]
    pub fn looking_at_others(mut self, looker: Option<RoutingLooker>) -> Self {
        self.looker = looker;
        self
    }

    /// The fleet now, or as it was a moment ago. Never fails: what can't be asked is said in the answer.
    pub async fn view(&self) -> Arc<FleetView> {
        let mut state = self.state.lock().await;
        if let Some((at, view)) = &state.last
            && at.elapsed() < FRESH
        {
            return Arc::clone(view);
        }
        let view = Arc::new(self.look(&mut state).await);
        state.last = Some((Instant::now(), Arc::clone(&view)));
        view
    }

    /// Whether this process serves all tenants that are to be served, or stands by for them, and all are at rest.
    pub(crate) fn rests(&self) -> bool {
        self.own.as_ref().is_some_and(|own| {
            let fleet = &own.fleet;
            let is_all = fleet.count() as u64 == fleet.wanted.load(Relaxed);
            is_all && fleet.workers.load(Relaxed) <= 2 && fleet.rest.active().is_empty()
        })
    }

    /// The fleet now, which isn't kept for others who ask.
    pub(crate) async fn view_once(&self) -> FleetView {
        self.look(&mut *self.state.lock().await).await
    }

    /// The tenant that is shown under this name.
    pub async fn tenant(&self, id: &str) -> Option<Tenant> {
        self.view().await.tenant(id)
    }

    /// The tenants that may have something in quarantine: those where something was seen, and those of which it isn't known.
    pub async fn with_quarantine(&self) -> Vec<Tenant> {
        let view = self.view().await;
        let rows = view.tenants.iter().filter(|row| row.quarantined > 0 || row.owners.is_empty());
        rows.filter_map(|row| view.tenant(&row.id)).collect()
    }

    /// Whether this process serves the tenant itself.
    #[must_use]
    pub fn serves(&self, tenant: &Tenant) -> bool {
        self.own.as_ref().is_some_and(|own| own.fleet.find(tenant).is_some())
    }

    /// Everything about one tenant; `None` when there is no such tenant.
    pub async fn detail(&self, id: &str) -> Option<TenantDetail> {
        let view = self.view().await;
        let (row, counts) = view.find_called(id)?;
        let id = row.id.as_str();
        let own_name = self.own.as_ref().map(|own| own.name.current());
        let others: Vec<&str> =
            row.owners.iter().map(String::as_str).filter(|name| Some(*name) != own_name.as_deref()).collect();
        let mut details: Vec<(String, DetailRecord)> = Vec::new();
        let published = self.bounded(self.snapshots.watch(&others, id, INTEREST)).await;
        for (name, detail) in others.iter().zip(published.unwrap_or_default()) {
            // None yet from one that has only just begun to serve it.
            if let Some(detail) = detail.and_then(|detail| serde_json::from_str(&detail).ok()) {
                details.push(((*name).to_owned(), detail));
            }
        }
        if let Some(own) = &self.own
            && let Some(status) = own.fleet.find_by_label(id)
        {
            details.push((own.name.current().to_string(), own.detail_record(&status, true).await));
        }
        Some(TenantDetail::new(row.clone(), counts, details, &self.options))
    }

    async fn look(&self, state: &mut State) -> FleetView {
        let read = self.bounded(self.read_others(&mut state.known, &mut state.dead)).await;
        let (redis_error, read) = match read {
            Ok(read) => {
                state.read = read.clone();
                (None, read)
            }
            Err(error) => {
                // Shown as they were last reported, with their age.
                state.known.values_mut().for_each(|other| other.live = false);
                state.dead.clear();
                let read = Read { writes_refused: None, clock_offset_ms: None, ..state.read.clone() };
                (Some(error.to_string()), read)
            }
        };
        if redis_error.is_some() {
            state.foreign.clear();
        } else if let Err(error) = self.bounded(self.read_foreign(&mut state.foreign)).await {
            tracing::debug!(%error, "the workers of other groups can't be read");
            state.foreign.clear();
        }
        let listed: Option<Vec<Tenant>> = match &mut state.source {
            Source::LocalWorker(own) => {
                own.fleet.listed().map(|listed| listed.tenants.iter().cloned().collect())
            }
            Source::Directory { directory, listed } => list(directory, listed).await,
        };
        let (listed, listed_by_workers) = match listed {
            Some(listed) => (Some(listed), None),
            None if self.own.is_none() && redis_error.is_none() => listed_by(&state.known).unzip(),
            None => (None, None),
        };
        let waiting = match redis_error {
            None => {
                let State { known, outside, .. } = &mut *state;
                let rollout = read.rollout.as_deref();
                self.read_unserved(known, outside, rollout, listed.as_deref().unwrap_or_default()).await
            }
            Some(_) => HashMap::new(),
        };
        let (server, recorded) = (read.server.clone(), read.recorded_facts.clone());
        let mut view = self.put_together(&state.known, redis_error, read, listed.as_deref(), &waiting);
        view.listed_by_workers = listed_by_workers;
        view.dead_workers = dead_workers(&state.dead, &view);
        view.foreign_workers = foreign_workers(&state.foreign, &view);
        view.routing = self.routing().await;
        if view.redis_error.is_none() {
            state.facts = facts_of(&view, server.as_ref(), &recorded);
        }
        view.facts.clone_from(&state.facts);
        view
    }

    /// Records which facts have changed. One worker of the fleet does so, at this time in seconds since 1970.
    pub(crate) async fn record_facts(&self, view: &FleetView, now: f64) -> Result<(), ScheduleError> {
        let changed: Vec<_> = view.facts.iter().filter_map(|fact| fact.unrecorded(now)).collect();
        self.snapshots.record_facts(&changed).await
    }

    /// The Redis servers that there are: as this worker knows them, or after a look.
    async fn routing(&self) -> Option<RoutingView> {
        if let Some(own) = &self.own {
            return own.fleet.routing.get().map(|routing| RoutingView::of(routing));
        }
        let looker = self.looker.as_ref()?;
        looker.look(|| {}).await;
        Some(RoutingView::of(looker.routing()))
    }

    /// What waits in the schedules of the tenants that no worker reports on. Empty if it can't be read: it is unknown then.
    async fn read_unserved(
        &self,
        known: &BTreeMap<String, Known>,
        outside: &mut Option<(Instant, HashMap<String, Waiting>)>,
        rollout: Option<&Rollout>,
        listed: &[Tenant],
    ) -> HashMap<String, Waiting> {
        let served = |tenant: &Tenant| {
            self.serves(tenant) || known.values().any(|other| other.tenants.contains_key(tenant.label()))
        };
        let is_selected =
            |tenant: &Tenant| rollout.is_none_or(|rollout| rollout.selection.selects(tenant.label()));
        let (missed, left): (Vec<&Tenant>, Vec<&Tenant>) =
            listed.iter().filter(|tenant| !served(tenant)).partition(|tenant| is_selected(tenant));
        let is_new =
            |tenant: &&Tenant| !outside.as_ref().is_some_and(|(_, read)| read.contains_key(tenant.label()));
        if left.is_empty() {
            *outside = None;
        } else if outside.as_ref().is_none_or(|(at, _)| at.elapsed() > OUTSIDE_EVERY)
            || left.iter().take(unserved::MOST).any(is_new)
        {
            *outside = self.read_schedules(&left).await.map(|read| (Instant::now(), read));
        }
        let mut waiting = self.read_schedules(&missed).await.unwrap_or_default();
        let left: Vec<_> = left.iter().map(|tenant| tenant.label()).collect();
        if let Some((_, read)) = outside {
            let known = left.into_iter().filter_map(|id| Some((id.to_owned(), *read.get(id)?)));
            waiting.extend(known);
        }
        waiting
    }

    async fn read_schedules(&self, tenants: &[&Tenant]) -> Option<HashMap<String, Waiting>> {
        if tenants.is_empty() {
            return None;
        }
        match self.bounded(unserved::read(&self.link, self.key_form, tenants)).await {
            Ok(read) => Some(read),
            Err(error) => {
                tracing::debug!(%error, "the schedules of tenants without a worker can't be read");
                None
            }
        }
    }

    /// Which tenants are served: as this worker knows it, or as it is stored.
    async fn read_rollout(
        &self,
        known: &BTreeMap<String, Known>,
    ) -> Result<(Option<Arc<Rollout>>, Option<String>), ScheduleError> {
        if let Some(own) = &self.own {
            return Ok((own.fleet.rollout.current(), own.fleet.rollout.problem()));
        }
        let writers = known.values().filter(|other| other.live && !other.worker.is_shadow());
        let configured = writers.filter_map(|other| Some(other.worker.rollout.as_ref()?.configured.as_str()));
        let configured = selected::agreed(configured, &self.rollout);
        let in_force = match self.rollouts.read().await? {
            Some(stored) if !matches!(stored.selection, Ok(None)) => {
                Rollout::in_force(Some(stored), &self.rollout)
            }
            stored => configured.and_then(|configured| Rollout::in_force(stored, &configured)),
        };
        Ok(match in_force {
            Ok(rollout) => (Some(Arc::new(rollout)), None),
            Err(problem) => (None, Some(problem)),
        })
    }

    async fn bounded<T>(
        &self,
        asking: impl Future<Output = Result<T, ScheduleError>>,
    ) -> Result<T, ScheduleError> {
        tokio::time::timeout(REDIS_BOUND, asking).await.unwrap_or_else(|_| {
            Err(ScheduleError {
                operation: "read fleet",
                class: balance_sync_schedule::ErrorClass::Unavailable,
                message: format!("no answer within {REDIS_BOUND:?}"),
            })
        })
    }

    /// Brings what is known of other workers up to date; returns what else was read.
    async fn read_others(
        &self,
        known: &mut BTreeMap<String, Known>,
        dead: &mut BTreeMap<String, Dead>,
    ) -> Result<Read, ScheduleError> {
        let own = self.own.as_ref().map(|own| own.name.current());
        let writes_refused = self.snapshots.write_refusal().await?;
        let publishers = self.snapshots.publishers().await?;
        let live = |name: &str| publishers.live.contains(name);
        // A silent worker is gone, unless it can't publish.
        let silent = publishers.silent.iter().filter(|_| writes_refused.is_some());
        let mut died: BTreeMap<String, Option<f64>> =
            self.snapshots.dead().await?.into_iter().map(|(name, until)| (name, Some(until))).collect();
        if writes_refused.is_none() {
            // Until another worker publishes; there may be none.
            died.extend(publishers.silent.iter().map(|name| (name.clone(), None)));
        }
        died.retain(|name, _| !live(name) && Some(name.as_str()) != own.as_deref());
        self.read_dead(died, dead).await?;
        let names: BTreeSet<&String> = publishers.live.iter().chain(silent).collect();
        known.retain(|name, _| names.contains(name));
        let mut unreadable = Vec::new();
        for name in names.into_iter().filter(|name| Some(name.as_str()) != own.as_deref()) {
            let mut more = true;
            while more {
                let since = known.get(name).map(|known| known.position.clone()).unwrap_or_default();
                let Some(changes) = self.snapshots.read(name, &since).await? else {
                    known.remove(name);
                    break;
                };
                more = changes.more;
                let Ok(worker) = serde_json::from_str(&changes.worker) else {
                    tracing::debug!(worker = name, "what another worker publishes can't be read");
                    known.remove(name);
                    unreadable.push(name.clone());
                    break;
                };
                if since.incarnation != changes.position.incarnation {
                    known.remove(name);
                }
                let entry = known.entry(name.clone()).or_insert_with(|| Known {
                    live: true,
                    position: Position::default(),
                    worker,
                    tenants: HashMap::new(),
                });
                entry.live = live(name);
                entry.position = changes.position;
                if let Ok(worker) = serde_json::from_str(&changes.worker) {
                    entry.worker = worker;
                }
                for (tenant, record) in changes.tenants {
                    match record.and_then(|record| serde_json::from_str(&record).ok()) {
                        Some(record) => entry.tenants.insert(tenant, record),
                        None => entry.tenants.remove(&tenant),
                    };
                }
            }
        }
        let paused = self.controls.paused().await?;
        let paused = paused
            .into_values()
            .filter_map(|text| serde_json::from_str::<PausedRecord>(&text).ok())
            .map(|PausedRecord { tenant, by, at: when, note }| (tenant, PausedBy::new(by, when, note)))
            .collect();
        let acknowledged = self.controls.acknowledged().await?;
        let acknowledged = acknowledged.into_iter().map(|record| (record.tenant.clone(), record)).collect();
        let clock_offset_ms = match &self.own {
            Some(own) => own.fleet.clock_offset_ms.load(),
            None => clock_offset_ms(&self.snapshots).await,
        };
        let (rollout, rollout_problem) = self.read_rollout(known).await?;
        let server = match &self.own {
            Some(own) => own.fleet.redis_server.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            // A user without the right to ask learns the rest all the same.
            None => self.link.server_facts().await.ok(),
        };
        Ok(Read {
            paused,
            acknowledged,
            writes_refused,
            clock_offset_ms,
            rollout,
            rollout_problem,
            unreadable,
            server,
            recorded_facts: self.snapshots.facts(&facts::NAMES).await?,
        })
    }

    fn put_together(
        &self,
        known: &BTreeMap<String, Known>,
        redis_error: Option<String>,
        read: Read,
        listed: Option<&[Tenant]>,
        waiting: &HashMap<String, Waiting>,
    ) -> FleetView {
        let Read {
            paused,
            acknowledged,
            writes_refused,
            clock_offset_ms,
            rollout,
            rollout_problem,
            unreadable,
            ..
        } = read;
        let cause = |id: &str| rollout.as_ref().map(|rollout| rollout.selection.cause(id));
        let clock_offset_seconds = clock_offset_ms.map(|millis| millis as f64 / 1e3);
        // A command may run on a host whose clock is wrong, and what it shows was reported by others.
        let ahead = clock_offset_seconds.filter(|_| self.own.is_none()).unwrap_or_default();
        let at = wall_clock() - ahead;
        let own_records: Vec<(String, TenantRecord)> = self.own.as_ref().map_or_else(Vec::new, |own| {
            let statuses = own.fleet.tenants();
            statuses
                .iter()
                .map(|status| (status.tenant().label().to_owned(), own.tenant_record(status)))
                .collect()
        });
        let mut owners: BTreeMap<&str, Vec<(&str, &TenantRecord)>> = BTreeMap::new();
        let mut shadows: BTreeMap<&str, Vec<(&str, &TenantRecord)>> = BTreeMap::new();
        let own_name = self.own.as_ref().map(|own| own.name.current());
        let own_name = own_name.as_deref().unwrap_or_default();
        let is_shadow = self.own.as_ref().is_some_and(|own| own.fleet.mode() == WorkerMode::Shadow);
        for (tenant, record) in &own_records {
            let of_kind = if is_shadow { &mut shadows } else { &mut owners };
            of_kind.entry(tenant).or_default().push((own_name, record));
        }
        let silent: Vec<(&str, &str, TenantRecord)> = known
            .iter()
            .filter(|(_, other)| !other.live && !other.worker.is_shadow())
            .flat_map(|(name, other)| {
                let (refused, away) = (writes_refused.as_ref(), redis_error.is_some());
                other.tenants.iter().map(move |(tenant, record)| {
                    let shown = match away {
                        true => outdated(record, &other.worker),
                        false => unwritable(record, &other.worker, refused),
                    };
                    (name.as_str(), tenant.as_str(), shown)
                })
            })
            .collect();
        for (name, tenant, record) in &silent {
            owners.entry(tenant).or_default().push((name, record));
        }
        for (name, other) in known.iter().filter(|(_, other)| other.live) {
            for (tenant, record) in &other.tenants {
                let of_kind = if other.worker.is_shadow() { &mut shadows } else { &mut owners };
                of_kind.entry(tenant).or_default().push((name, record));
            }
        }
        for tenant in shadows.keys() {
            owners.entry(tenant).or_default();
        }
        // Without Redis others may well serve those that this worker doesn't.
        for tenant in listed.filter(|_| redis_error.is_none()).unwrap_or_default() {
            owners.entry(tenant.label()).or_default();
        }
        let mut tenants = Vec::with_capacity(owners.len());
        let mut counts = Vec::with_capacity(owners.len());
        let mut lags = Vec::with_capacity(owners.len());
        let shown = |tenant: &&Tenant| owners.contains_key(tenant.label());
        let unknown_tenants = listed.map_or(0, |all| all.len() - all.iter().filter(shown).count());
        for (id, mut records) in owners {
            records.sort_by_key(|(name, _)| *name);
            let paused = paused.get(id).cloned().map(|by| by.seen_at(at));
            let looked_at: &[_] = shadows.get(id).map_or(&[], Vec::as_slice);
            let merged = TenantRow::merged(id, &records, paused.clone(), at)
                .or_else(|| TenantRow::only_looked_at(id, looked_at, paused.clone(), at));
            match merged {
                Some((mut row, merged)) => {
                    row.shadow = ShadowView::of(looked_at);
                    row.rollout = cause(id);
                    tenants.push(row);
                    counts.push(merged.counts);
                    lags.push(merged.rates.lags);
                }
                None => {
                    let mut row = match cause(id) {
                        Some(cause) if !cause.is_selected() => TenantRow::not_in_rollout(id, paused, cause),
                        cause => TenantRow { rollout: cause, ..TenantRow::unserved(id, paused) },
                    };
                    if let Some(waiting) = waiting.get(id) {
                        waiting.fill(&mut row);
                    }
                    if let Some(error) = writes_refused.as_ref().filter(|_| row.state == StateView::Unserved)
                    {
                        row.detail = Some(format!("no worker can report, as Redis refuses writes: {error}"));
                    } else if row.state == StateView::Unserved && !unreadable.is_empty() {
                        let names = crate::rows::listed(unreadable.iter().map(String::as_str));
                        row.detail = Some(format!("unless by a worker whose reports can't be read: {names}"));
                    }
                    tenants.push(row);
                    counts.push(Counts::default());
                    lags.push(Vec::new());
                }
            }
        }
        for row in tenants.iter_mut().filter(|row| row.quarantined > 0) {
            let record = acknowledged.get(&row.id);
            row.acknowledged = record.map(|record| AcknowledgedView::new(record, row.quarantined, at));
        }
        let mut workers: Vec<WorkerRow> = Vec::with_capacity(known.len() + 1);
        let mut live_shadows: Vec<WorkerRow> = Vec::new();
        let mut rates = Rates::default();
        for other in known.values() {
            if other.worker.is_shadow() {
                live_shadows.extend(other.live.then(|| WorkerRow::new(&other.worker, false)));
                continue;
            }
            let mut row = WorkerRow::new(&other.worker, false);
            if other.live {
                rates.add(&other.worker.rates);
            } else {
                row.live = false;
                let error = writes_refused.as_ref().map(ToString::to_string).or_else(|| redis_error.clone());
                row.redis = error.unwrap_or_default();
            }
            workers.push(row);
        }
        if let Some(own) = &self.own {
            let mut record = own.worker_record();
            if let Some(error) = &redis_error {
                record.redis.clone_from(error);
            }
            if record.is_shadow() {
                live_shadows.push(WorkerRow::new(&record, true));
            } else {
                rates.add(&record.rates);
                workers.push(WorkerRow::new(&record, true));
            }
        }
        let writers = known.values().filter(|other| other.live && !other.worker.is_shadow());
        let published_eta_seconds = writers.filter_map(|other| other.worker.eta_seconds).reduce(f64::max);
        workers.sort_by(|a, b| a.name.cmp(&b.name));
        live_shadows.sort_by(|a, b| a.name.cmp(&b.name));
        let mut view = FleetView {
            at,
            redis_error,
            writes_refused,
            listed: listed.is_some(),
            listed_by_workers: None,
            workers,
            unreadable_workers: unreadable,
            shadows: live_shadows,
            dead_workers: Vec::new(),
            rollout,
            rollout_problem,
            routing: None,
            foreign_workers: Vec::new(),
            rates,
            tenants,
            counts,
            lags,
            history: self.own.as_ref().map(|own| own.history()).unwrap_or_default(),
            published_eta_seconds: published_eta_seconds.filter(|_| self.own.is_none()),
            facts: Vec::new(),
            objective_seconds: self.objectives.freshness.as_secs_f64(),
            objectives: self.objectives,
            clock_offset_seconds,
            unknown_tenants,
            single: listed.is_some_and(|tenants| tenants.contains(&Tenant::Single)),
        };
        view.judge_tenants();
        view
    }
}

/// What the fleet is made of. While Redis refuses writes, silent workers are taken for live, as they can't report.
fn facts_of(view: &FleetView, server: Option<&ServerFacts>, recorded: &[Option<String>]) -> Vec<Fact> {
    let is_refused = view.writes_refused.is_some();
    let workers: Vec<&WorkerRow> = view.workers.iter().filter(|worker| worker.live || is_refused).collect();
    let unreadable = view.unreadable_workers.len();
    let mut found =
        facts::found(&workers, unreadable, view.objectives.workers, server, view.routing.as_ref());
    facts::date(&mut found, recorded, view.at);
    found
}

/// The record of a tenant whose worker can't publish: it can't be written either.
fn unwritable(record: &TenantRecord, worker: &WorkerRecord, refused: Option<&ScheduleError>) -> TenantRecord {
    let mut record = record.clone();
    if let Some(error) = refused
        && record.state != TenantState::Degraded
    {
        record.state = TenantState::Degraded.into();
        record.reason = Some(error.class.reason().into());
        record.detail = Some(error.to_string());
        record.partial = false;
        record.since = worker.seen_at;
    }
    record.rates = Rates::default();
    record
}

/// The record of a tenant as another worker reported it last, while Redis can't be read.
fn outdated(record: &TenantRecord, worker: &WorkerRecord) -> TenantRecord {
    let mut record = record.clone();
    record.sampled_at = record.sampled_at.or((!record.unsampled).then_some(worker.seen_at));
    record.unsampled = true;
    record.rates = Rates::default();
    record
}

/// The tenants that live workers serve, and how many more they have on their lists that are not in the rollout. `None` unless some
/// worker has a list, and all tenants of it that are in the rollout are among them: who is missing isn't known then.
fn listed_by(known: &BTreeMap<String, Known>) -> Option<(Vec<Tenant>, u64)> {
    let live = || known.values().filter(|other| other.live && !other.worker.is_shadow());
    // While they differ, whichever lists the most.
    let listing = live().filter_map(|other| other.worker.listing).max_by_key(|listing| listing.selected)?;
    let served: BTreeSet<&String> = live().flat_map(|other| other.tenants.keys()).collect();
    let tenants: Vec<Tenant> =
        served.into_iter().filter_map(|id| TenantId::parse(id).ok().map(Tenant::Id)).collect();
    let count = tenants.len() as u64;
    (count >= listing.selected).then(|| (tenants, listing.total.saturating_sub(count)))
}

/// The directory's list, a few seconds old at most; `None` when it can't be had.
async fn list(
    directory: &Arc<dyn TenantDirectory>,
    listed: &mut Option<(Instant, Vec<Tenant>)>,
) -> Option<Vec<Tenant>> {
    if listed.as_ref().is_none_or(|(at, _)| at.elapsed() > LIST_EVERY) {
        match tokio::time::timeout(LIST_BOUND, directory.active()).await {
            Ok(Ok(listing)) => *listed = Some((Instant::now(), listing.set().into_iter().collect())),
            Ok(Err(error)) => tracing::debug!(%error, "the list of tenants can't be had"),
            Err(_) => tracing::debug!("the list of tenants can't be had in time"),
        }
    }
    listed.as_ref().map(|(_, tenants)| tenants.clone())
}
