//! A Redis and a Postgres in memory, behind the collector's ports, with faults on demand.
//!
//! Time is tokio's, so tests that pause it run hours in milliseconds. What a call does is done when it is sent, and its
//! answer comes later: the worst case for whoever gives up waiting.

pub(crate) mod directory;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, VecDeque},
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use balance_sync_domain::{KeySpace, TenantId, Uuid};
use balance_sync_fleet::{
    pipeline::{Collector, CollectorOptions, Drained, Queue, Sink, SinkError, Survey, Sweep},
    status::{FleetStatus, Reason, StateInfo, TenantState, TenantStatus},
};
use balance_sync_schedule::{
    Claim, Claimed, ErrorClass, Loss, PostponeReport, QuarantineReport, Refusal, Refused, ReleaseReport,
    ScheduleError, SettleReport,
};
use balance_sync_store::{Fate, Fates, Named, Outcome, Row, RowResult, StoredRow};
use balance_sync_tenants::{KeyForm, Tenant};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

pub(crate) const ORGANIZATION: &str = "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d50";
pub(crate) const LEDGER: &str = "0190b5f3-11aa-7c02-8f2e-5b7d9c0a4e61";

/// Redis time at the beginning of a test, in seconds.
const EPOCH: f64 = 1_795_380_490.0;

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn tenant(id: &str) -> Tenant {
    Tenant::Id(TenantId::parse(id).unwrap())
}

/// The member of the n-th balance of a key space.
pub(crate) fn member(space: &KeySpace, n: u128) -> Vec<u8> {
    format!("{}{ORGANIZATION}:{LEDGER}:@account{n}#default", space.balance_prefix()).into_bytes()
}

/// The id of the first balance: a nil one would be refused.
const IDS: u128 = 1 << 64;

/// The value of the n-th balance.
pub(crate) fn value(n: u128, version: i64) -> Vec<u8> {
    format!(
        r#"{{"ID":"{}","Available":"{version}.5","OnHold":"0","Version":{version},"AssetCode":"BRL","Key":"default"}}"#,
        Uuid::from_u128(IDS + n)
    )
    .into_bytes()
}

// -- Redis -------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
struct Waiting {
    member: Vec<u8>,
    former: String,
    value: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClaimCall {
    pub at: Duration,
    pub limit: usize,
    pub found: usize,
}

/// The lease, and what was claimed under it.
type Held = (Arc<str>, Waiting);

/// What a call to Redis meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused.
    Error(ErrorClass),
    /// It is never answered, though it takes effect.
    Silence,
}

pub(crate) struct Redis {
    pub space: KeySpace,
    begun: Instant,
    due: RefCell<VecDeque<Waiting>>,
    leased: RefCell<HashMap<Vec<u8>, Held>>,
    leases: Cell<u64>,
    /// By operation.
    pub faults: RefCell<HashMap<&'static str, Fault>>,
    /// By operation: how long the answer takes.
    pub delays: RefCell<HashMap<&'static str, Duration>>,
    /// What claims report as refused beside what they bring.
    pub refused: RefCell<Option<Refused>>,
    pub claims: RefCell<Vec<ClaimCall>>,
    pub settled: RefCell<Vec<Vec<u8>>>,
    pub released: RefCell<Vec<Vec<u8>>>,
    pub postponed: RefCell<Vec<Vec<u8>>>,
    /// Of these, those whose values are to be kept alive.
    pub kept_alive: RefCell<Vec<Vec<u8>>>,
    pub quarantined: RefCell<Vec<(Vec<u8>, &'static str)>>,
    pub dismissed: RefCell<Vec<Vec<u8>>>,
    /// For the time being, and for how long.
    pub put_off: RefCell<Vec<(Vec<u8>, Duration)>>,
    pub lost: RefCell<Vec<(Vec<u8>, Loss)>>,
    /// What Redis holds of a member by now, where that is no longer what was claimed.
    pub current: RefCell<HashMap<Vec<u8>, Vec<Vec<u8>>>>,
    /// The words of each refusal, in the order in which they came.
    pub details: RefCell<Vec<String>>,
    pub idles: RefCell<Vec<Duration>>,
    pub sweeps: RefCell<Vec<Duration>>,
    pub recents: RefCell<Vec<(Duration, Option<f64>)>>,
    pub surveys: RefCell<Vec<Duration>>,
    pub survey: Cell<Survey>,
    /// Ends the wait of who stands by.
    pub unattended: Notify,
    pub standbys: Cell<usize>,
}

impl Redis {
    pub(crate) fn new(space: KeySpace) -> Self {
        Self {
            space,
            begun: Instant::now(),
            due: RefCell::default(),
            leased: RefCell::default(),
            leases: Cell::new(0),
            faults: RefCell::default(),
            delays: RefCell::default(),
            refused: RefCell::default(),
            claims: RefCell::default(),
            settled: RefCell::default(),
            released: RefCell::default(),
            postponed: RefCell::default(),
            kept_alive: RefCell::default(),
            quarantined: RefCell::default(),
            dismissed: RefCell::default(),
            put_off: RefCell::default(),
            lost: RefCell::default(),
            current: RefCell::default(),
            details: RefCell::default(),
            idles: RefCell::default(),
            sweeps: RefCell::default(),
            recents: RefCell::default(),
            surveys: RefCell::default(),
            survey: Cell::default(),
            unattended: Notify::new(),
            standbys: Cell::default(),
        }
    }

    /// Time since the test began.
    pub(crate) fn at(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(crate) fn now(&self) -> f64 {
        EPOCH + self.at().as_secs_f64()
    }

    /// A mutation: schedules these balances, due now, with their version.
    pub(crate) fn mutate(&self, balances: impl IntoIterator<Item = u128>, version: i64) {
        for n in balances {
            self.schedule(member(&self.space, n), Some(value(n, version)), 0.0);
        }
    }

    /// Schedules any member with any value, due for so many seconds.
    pub(crate) fn schedule(&self, member: Vec<u8>, value: Option<Vec<u8>>, age: f64) {
        self.schedule_at(member, value, &format!("{:.6}", self.now() - age));
    }

    /// The same with any score.
    pub(crate) fn schedule_at(&self, member: Vec<u8>, value: Option<Vec<u8>>, score: &str) {
        self.leased.borrow_mut().remove(&member);
        self.due.borrow_mut().retain(|waiting| waiting.member != member);
        self.due.borrow_mut().push_back(Waiting { member, former: score.to_owned(), value });
    }

    pub(crate) fn due(&self) -> usize {
        self.due.borrow().len()
    }

    pub(crate) fn leased(&self) -> usize {
        self.leased.borrow().len()
    }

    /// All leases lapse, as they do by themselves after the claim TTL.
    pub(crate) fn lapse(&self) {
        let lapsed = std::mem::take(&mut *self.leased.borrow_mut());
        self.due.borrow_mut().extend(lapsed.into_values().map(|(_, waiting)| waiting));
    }

    pub(crate) fn claimed(&self) -> usize {
        self.claims.borrow().iter().map(|call| call.found).sum()
    }

    pub(crate) fn fail(&self, operations: &[&'static str], class: ErrorClass) {
        self.faults.borrow_mut().extend(operations.iter().map(|name| (*name, Fault::Error(class))));
    }

    pub(crate) fn heal(&self) {
        self.faults.borrow_mut().clear();
    }

    pub(crate) fn delay(&self, operation: &'static str, delay: Duration) {
        self.delays.borrow_mut().insert(operation, delay);
    }

    fn refuse(&self, operation: &'static str) -> Result<(), ScheduleError> {
        match self.faults.borrow().get(operation) {
            Some(Fault::Error(class)) => {
                Err(ScheduleError { operation, class: *class, message: "injected".to_owned() })
            }
            _ => Ok(()),
        }
    }

    async fn answer(&self, operation: &'static str) {
        if self.faults.borrow().get(operation) == Some(&Fault::Silence) {
            std::future::pending::<()>().await;
        }
        let delay = self.delays.borrow().get(operation).copied();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }

    /// Takes the members out whose lease is still the one that is shown.
    fn take_leased<'a>(&self, held: impl IntoIterator<Item = &'a Claimed>) -> (Vec<Waiting>, u64) {
        let (mut taken, mut kept) = (Vec::new(), 0);
        let mut leased = self.leased.borrow_mut();
        for claimed in held {
            match leased.get(&claimed.member) {
                Some((lease, _)) if *lease == claimed.lease => {
                    taken.extend(leased.remove(&claimed.member).map(|(_, waiting)| waiting));
                }
                _ => kept += 1,
            }
        }
        (taken, kept)
    }
}

#[derive(Clone)]
pub(crate) struct FakeQueue(pub Rc<Redis>);

impl Queue for FakeQueue {
    fn space(&self) -> &KeySpace {
        &self.0.space
    }

    async fn claim(&self, limit: usize) -> Result<Claim, ScheduleError> {
        let redis = &self.0;
        let at = redis.at();
        if let Err(error) = redis.refuse("claim") {
            redis.claims.borrow_mut().push(ClaimCall { at, limit, found: 0 });
            redis.answer("claim").await;
            return Err(error);
        }
        redis.leases.set(redis.leases.get() + 1);
        let lease: Arc<str> = Arc::from(redis.leases.get().to_string());
        let scheduled = (redis.due() + redis.leased()) as u64;
        let mut entries = Vec::new();
        while entries.len() < limit
            && let Some(waiting) = redis.due.borrow_mut().pop_front()
        {
            let Waiting { member, former, value } = waiting.clone();
            redis.leased.borrow_mut().insert(member.clone(), (Arc::clone(&lease), waiting));
            entries.push(Claimed {
                member,
                lease: Arc::clone(&lease),
                schedule: 0,
                former,
                value,
                unreadable: None,
            });
        }
        redis.claims.borrow_mut().push(ClaimCall { at, limit, found: entries.len() });
        let now = redis.now();
        redis.answer("claim").await;
        let refused = redis.refused.borrow().clone();
        Ok(Claim { entries, scheduled, now, foreign: 0, unlock_in: None, refused })
    }

    async fn settle(&self, written: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        self.0.refuse("settle")?;
        let (removed, kept) = self.0.take_leased(written.iter().copied());
        let report = SettleReport { now: self.0.now(), removed: removed.len() as u64, kept };
        self.0.settled.borrow_mut().extend(removed.into_iter().map(|waiting| waiting.member));
        self.0.answer("settle").await;
        Ok(report)
    }

    async fn release(&self, held: &[&Claimed]) -> Result<ReleaseReport, ScheduleError> {
        self.0.refuse("release")?;
        let (back, kept) = self.0.take_leased(held.iter().copied());
        let report = ReleaseReport { released: back.len() as u64, kept };
        self.0.released.borrow_mut().extend(back.iter().map(|waiting| waiting.member.clone()));
        self.0.due.borrow_mut().extend(back);
        self.0.answer("release").await;
        Ok(report)
    }

    async fn postpone(&self, members: &[(&Claimed, bool)]) -> Result<PostponeReport, ScheduleError> {
        self.0.refuse("postpone")?;
        let alive = members.iter().filter(|(_, alive)| *alive).map(|(claimed, _)| claimed.member.clone());
        self.0.kept_alive.borrow_mut().extend(alive);
        let (taken, kept) = self.0.take_leased(members.iter().map(|(claimed, _)| *claimed));
        let report = PostponeReport { postponed: taken.len() as u64, kept, due: 0.0 };
        self.0.postponed.borrow_mut().extend(taken.into_iter().map(|waiting| waiting.member));
        self.0.answer("postpone").await;
        Ok(report)
    }

    async fn quarantine(&self, refused: &[(&Claimed, Refusal)]) -> Result<QuarantineReport, ScheduleError> {
        self.0.refuse("quarantine")?;
        let mut report = QuarantineReport::default();
        for (claimed, refusal) in refused {
            let (taken, kept) = self.0.take_leased([*claimed]);
            report.kept += kept;
            report.quarantined += taken.len() as u64;
            self.0.details.borrow_mut().push(refusal.detail.clone());
            self.0
                .quarantined
                .borrow_mut()
                .extend(taken.into_iter().map(|waiting| (waiting.member, refusal.reason.as_str())));
        }
        self.0.answer("quarantine").await;
        Ok(report)
    }

    async fn dismiss(&self, obsolete: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        self.0.refuse("dismiss")?;
        let (removed, kept) = self.0.take_leased(obsolete.iter().copied());
        let report = SettleReport { now: self.0.now(), removed: removed.len() as u64, kept };
        self.0.dismissed.borrow_mut().extend(removed.into_iter().map(|waiting| waiting.member));
        self.0.answer("dismiss").await;
        Ok(report)
    }

    async fn put_off(
        &self,
        waiting: &[&Claimed],
        delay: Duration,
    ) -> Result<Vec<(usize, PostponeReport)>, ScheduleError> {
        self.0.refuse("put off")?;
        let (moved, kept) = self.0.take_leased(waiting.iter().copied());
        let due = self.0.now() + delay.as_secs_f64();
        let report = PostponeReport { postponed: moved.len() as u64, kept, due };
        self.0.put_off.borrow_mut().extend(moved.into_iter().map(|waiting| (waiting.member, delay)));
        self.0.answer("put off").await;
        Ok(vec![(0, report)])
    }

    async fn current_values(&self, members: &[&Claimed]) -> Result<Vec<Vec<Vec<u8>>>, ScheduleError> {
        self.0.refuse("current")?;
        let current = self.0.current.borrow();
        let of = |claimed: &&Claimed| {
            current.get(&claimed.member).cloned().unwrap_or_else(|| claimed.value.iter().cloned().collect())
        };
        Ok(members.iter().map(of).collect())
    }

    async fn record_losses(&self, lost: &[(&Claimed, Loss)]) -> Result<QuarantineReport, ScheduleError> {
        self.0.refuse("lose")?;
        let mut report = QuarantineReport::default();
        for (claimed, loss) in lost {
            let (taken, kept) = self.0.take_leased([*claimed]);
            report.kept += kept;
            report.quarantined += taken.len() as u64;
            self.0.lost.borrow_mut().extend(taken.into_iter().map(|waiting| (waiting.member, loss.clone())));
        }
        self.0.answer("lose").await;
        Ok(report)
    }

    async fn sweep(&self) -> Result<Sweep, ScheduleError> {
        self.0.sweeps.borrow_mut().push(self.0.at());
        self.0.refuse("sweep")?;
        self.0.answer("sweep").await;
        Ok(Sweep { raised: 0, absent: 0, shortest: Some(secs(900)) })
    }

    async fn protect_since(&self, from: Option<f64>) -> Result<(f64, u64), ScheduleError> {
        self.0.recents.borrow_mut().push((self.0.at(), from));
        self.0.refuse("protect")?;
        let now = self.0.now();
        self.0.answer("protect").await;
        Ok((now, 0))
    }

    async fn survey(&self) -> Result<Survey, ScheduleError> {
        self.0.surveys.borrow_mut().push(self.0.at());
        self.0.refuse("survey")?;
        self.0.answer("survey").await;
        Ok(self.0.survey.get())
    }

    async fn idle(&self, delay: Duration) {
        self.0.idles.borrow_mut().push(delay);
        tokio::time::sleep(delay).await;
    }

    async fn stand_by(&self) {
        self.0.standbys.set(self.0.standbys.get() + 1);
        self.0.unattended.notified().await;
    }
}

// -- Postgres ----------------------------------------------------------------------------------------------------

/// How Postgres behaves.
#[derive(Debug, Clone)]
pub(crate) enum Mood {
    Well,
    /// Fails at once, pings too.
    Fails(SinkError),
    /// Answers pings and fails writes.
    FailsWrites(SinkError),
    /// Fails all but last writes.
    FailsUnlessLast(SinkError),
    /// Never answers.
    Silent,
    Panics,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Update {
    pub at: Duration,
    pub ids: Vec<u128>,
    pub last: bool,
}

pub(crate) struct Postgres {
    begun: Instant,
    pub mood: RefCell<Mood>,
    /// How long a write takes.
    pub takes: Cell<Duration>,
    /// How often a permit was asked for, how long it is waited for, and why there is none.
    pub permits: Cell<usize>,
    pub permit_takes: Cell<Duration>,
    pub permit_fails: RefCell<Option<SinkError>>,
    pub rows: RefCell<BTreeMap<u128, i64>>,
    /// What becomes of these balances, whatever is sent.
    pub verdicts: RefCell<HashMap<u128, RowResult>>,
    /// What became of balances without a value, by alias; of the others it can't be told.
    pub fates: RefCell<HashMap<String, Fate>>,
    /// When the server was started.
    pub started: RefCell<String>,
    /// How often that was asked.
    pub looked_up: Cell<usize>,
    pub updates: RefCell<Vec<Update>>,
    pub pings: RefCell<Vec<Duration>>,
    pub refetches: Cell<usize>,
    pub in_flight: Cell<usize>,
    pub most_in_flight: Cell<usize>,
    /// Writes in which a row of another organization than [`ORGANIZATION`] stood.
    pub strays: Cell<usize>,
}

impl Postgres {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            mood: RefCell::new(Mood::Well),
            takes: Cell::default(),
            permits: Cell::default(),
            permit_takes: Cell::default(),
            permit_fails: RefCell::default(),
            rows: RefCell::default(),
            verdicts: RefCell::default(),
            fates: RefCell::default(),
            started: RefCell::new("noon".to_owned()),
            looked_up: Cell::default(),
            updates: RefCell::default(),
            pings: RefCell::default(),
            refetches: Cell::default(),
            in_flight: Cell::default(),
            most_in_flight: Cell::default(),
            strays: Cell::default(),
        }
    }

    pub(crate) fn is(&self, mood: Mood) {
        self.mood.replace(mood);
    }

    fn write(&self, rows: &[Row<'_>]) -> Vec<RowResult> {
        let result = |row: &Row<'_>| {
            let n = row.id.as_u128() - IDS;
            if let Some(verdict) = self.verdicts.borrow().get(&n) {
                return verdict.clone();
            }
            let mut stored = self.rows.borrow_mut();
            let newer = stored.get(&n).is_none_or(|version| *version < row.version);
            if newer {
                stored.insert(n, row.version);
            }
            RowResult::Ok(if newer { Outcome::Updated } else { Outcome::Stale })
        };
        rows.iter().map(result).collect()
    }
}

/// Counts a write in flight, also when it is dropped.
struct InFlight<'a>(&'a Postgres);

impl<'a> InFlight<'a> {
    fn new(postgres: &'a Postgres) -> Self {
        postgres.in_flight.set(postgres.in_flight.get() + 1);
        postgres.most_in_flight.set(postgres.most_in_flight.get().max(postgres.in_flight.get()));
        Self(postgres)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

#[derive(Clone)]
pub(crate) struct FakeSink(pub Rc<Postgres>);

impl Sink for FakeSink {
    /// Whether it was asked for as the last one.
    type Permit = bool;

    async fn permit(&self, last: bool) -> Result<bool, SinkError> {
        let postgres = &self.0;
        postgres.permits.set(postgres.permits.get() + 1);
        let wait = postgres.permit_takes.get();
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let refused = postgres.permit_fails.borrow().clone();
        refused.map_or(Ok(last), Err)
    }

    async fn update(&self, last: bool, rows: &[Row<'_>]) -> Result<Vec<RowResult>, SinkError> {
        let postgres = &self.0;
        let _guard = InFlight::new(postgres);
        let ids = rows.iter().map(|row| row.id.as_u128() - IDS).collect();
        postgres.updates.borrow_mut().push(Update { at: postgres.begun.elapsed(), ids, last });
        if rows.iter().any(|row| row.organization.to_string() != ORGANIZATION) {
            postgres.strays.set(postgres.strays.get() + 1);
        }
        if !postgres.takes.get().is_zero() {
            tokio::time::sleep(postgres.takes.get()).await;
        }
        let mood = postgres.mood.borrow().clone();
        match mood {
            Mood::FailsUnlessLast(_) if last => Ok(postgres.write(rows)),
            Mood::Well => Ok(postgres.write(rows)),
            Mood::Fails(error) | Mood::FailsWrites(error) | Mood::FailsUnlessLast(error) => Err(error),
            Mood::Silent => std::future::pending().await,
            Mood::Panics => panic!("injected panic"),
        }
    }

    async fn rows(&self, rows: &[Row<'_>]) -> Result<Vec<Option<StoredRow>>, SinkError> {
        let stored = self.0.rows.borrow();
        let row = |row: &Row<'_>| {
            stored.get(&(row.id.as_u128() - IDS)).map(|version| StoredRow {
                version: *version,
                available: row.available.to_owned(),
                on_hold: row.on_hold.to_owned(),
                overdraft_used: row.overdraft_used.to_owned(),
                same_amounts: true,
                deleted: false,
                readable: true,
            })
        };
        Ok(rows.iter().map(row).collect())
    }

    async fn fates(&self, gone: &[Named<'_>], last: bool) -> Result<Fates, SinkError> {
        let postgres = &self.0;
        postgres.looked_up.set(postgres.looked_up.get() + 1);
        let mood = postgres.mood.borrow().clone();
        match mood {
            Mood::FailsUnlessLast(_) if last => {}
            Mood::Well | Mood::FailsWrites(_) => {}
            Mood::Fails(error) | Mood::FailsUnlessLast(error) => return Err(error),
            Mood::Silent => std::future::pending().await,
            Mood::Panics => panic!("injected panic"),
        }
        let unknown = || Fate::Unknown { row_version: None, why: "nobody knows".to_owned() };
        let fates = postgres.fates.borrow();
        let fates = gone.iter().map(|name| fates.get(name.alias).cloned().unwrap_or_else(unknown)).collect();
        Ok(Fates { fates, started: Some(postgres.started.borrow().clone()) })
    }

    async fn ping(&self) -> Result<(), SinkError> {
        self.0.pings.borrow_mut().push(self.0.begun.elapsed());
        let mood = self.0.mood.borrow().clone();
        match mood {
            Mood::Well | Mood::FailsWrites(_) | Mood::Panics => Ok(()),
            Mood::Fails(error) | Mood::FailsUnlessLast(error) => Err(error),
            Mood::Silent => std::future::pending().await,
        }
    }

    fn refetch(&self) {
        self.0.refetches.set(self.0.refetches.get() + 1);
    }
}

// -- collector ---------------------------------------------------------------------------------------------------

/// Round numbers, small enough to count by hand.
pub(crate) fn options() -> CollectorOptions {
    CollectorOptions {
        batch_size: 10,
        flush_timeout: ms(50),
        poll_interval: ms(10),
        idle_backoff_max: ms(160),
        pipeline_depth: 2,
        flush_deadline: secs(5),
        drain_deadline: secs(2),
        leave_deadline: secs(20),
        protect_after: secs(1),
        protect_floor: secs(30),
        survey_interval: secs(60),
        trail_grace: secs(60),
        backoff_min: ms(100),
        backoff_max: secs(2),
        backoff_long: secs(30),
        put_off: secs(60),
    }
}

/// Counts how often a future is polled: a loop that spins shows here.
struct Counted<F> {
    inner: Pin<Box<F>>,
    polls: Rc<Cell<u64>>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.set(self.polls.get() + 1);
        self.inner.as_mut().poll(context)
    }
}

/// A collector with its surroundings. Needs a `LocalSet`.
pub(crate) struct Lab {
    pub redis: Rc<Redis>,
    pub postgres: Rc<Postgres>,
    pub fleet: Arc<FleetStatus>,
    pub status: Arc<TenantStatus>,
    pub options: CollectorOptions,
    pub stop: CancellationToken,
    pub polls: Rc<Cell<u64>>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(options())
    }

    pub(crate) fn with(options: CollectorOptions) -> Self {
        let tenant = tenant("acme");
        let space = tenant.key_space(KeyForm::AsListed);
        let fleet = Arc::new(FleetStatus::default());
        Self {
            redis: Rc::new(Redis::new(space)),
            postgres: Rc::new(Postgres::new()),
            status: fleet.tenant(&tenant),
            fleet,
            options,
            stop: CancellationToken::new(),
            polls: Rc::default(),
        }
    }

    pub(crate) fn start(&self) -> JoinHandle<Drained> {
        let collector = Collector {
            queue: FakeQueue(Rc::clone(&self.redis)),
            sink: FakeSink(Rc::clone(&self.postgres)),
            options: Arc::new(self.options.clone()),
            fleet: Arc::clone(&self.fleet),
            status: Arc::clone(&self.status),
        };
        let inner = Box::pin(Box::new(collector).run(self.stop.clone()));
        tokio::task::spawn_local(Counted { inner, polls: Rc::clone(&self.polls) })
    }

    pub(crate) fn state(&self) -> StateInfo {
        self.status.state()
    }

    pub(crate) fn reason(&self) -> Option<&'static str> {
        let info = self.state();
        info.reason.filter(|_| info.state == TenantState::Degraded).map(Reason::as_str)
    }

    /// Waits until it is so, for at most a minute.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            assert!(begun.elapsed() < secs(60), "not within a minute: {what}; state {:?}", self.state());
            tokio::time::sleep(ms(1)).await;
        }
    }
}
