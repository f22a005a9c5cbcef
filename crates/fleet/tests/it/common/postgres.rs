//! A Postgres in memory behind the collector's port, with faults on demand.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
    time::Duration,
};

use balance_sync_fleet::pipeline::{Sink, SinkError};
use balance_sync_store::{Fate, Fates, Named, Outcome, Row, RowResult, StoredRow};
use tokio::time::Instant;

use super::{IDS, ORGANIZATION};

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
    /// How long the queue for permits is, which moves.
    pub permit_queue: Cell<Duration>,
    pub permit_fails: RefCell<Option<SinkError>>,
    pub rows: RefCell<BTreeMap<u128, i64>>,
    /// What becomes of these balances, whatever is sent.
    pub verdicts: RefCell<HashMap<u128, RowResult>>,
    /// What became of balances without a value, by alias; of the others it can't be determined.
    pub fates: RefCell<HashMap<String, Fate>>,
    /// When the server was started.
    pub started: RefCell<String>,
    /// How often that was asked.
    pub looked_up: Cell<usize>,
    /// Why it can't be looked at rows.
    pub looks_fail: RefCell<Option<SinkError>>,
    pub updates: RefCell<Vec<Update>>,
    pub pings: RefCell<Vec<Duration>>,
    pub refetches: Cell<usize>,
    pub in_flight: Cell<usize>,
    pub most_in_flight: Cell<usize>,
    /// Writes in which a row of another organization than [`ORGANIZATION`] stood.
    pub strays: Cell<usize>,
}

impl Postgres {
    fn look(&self) -> Result<(), SinkError> {
        self.looks_fail.borrow().clone().map_or(Ok(()), Err)
    }

    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            mood: RefCell::new(Mood::Well),
            takes: Cell::default(),
            permits: Cell::default(),
            permit_takes: Cell::default(),
            permit_queue: Cell::default(),
            permit_fails: RefCell::default(),
            rows: RefCell::default(),
            verdicts: RefCell::default(),
            fates: RefCell::default(),
            started: RefCell::new("noon".to_owned()),
            looked_up: Cell::default(),
            looks_fail: RefCell::default(),
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

    async fn permit(&self, last: bool, limit: Duration) -> Result<bool, SinkError> {
        let postgres = &self.0;
        postgres.permits.set(postgres.permits.get() + 1);
        let queue = postgres.permit_queue.get();
        if !queue.is_zero() {
            tokio::time::sleep(queue).await;
        }
        let wait = postgres.permit_takes.get();
        if !wait.is_zero() && tokio::time::timeout(limit, tokio::time::sleep(wait)).await.is_err() {
            return Err(SinkError::Deadline(limit));
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
        self.0.look()?;
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
        postgres.look()?;
        let mood = postgres.mood.borrow().clone();
        match mood {
            Mood::FailsUnlessLast(_) if last => {}
            Mood::Well | Mood::FailsWrites(_) => {}
            Mood::Fails(error) | Mood::FailsUnlessLast(error) => return Err(error),
            Mood::Silent => std::future::pending().await,
            Mood::Panics => panic!("injected panic"),
        }
        let unknown = || Fate::Unknown { row_version: None, why: "not known".to_owned() };
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
