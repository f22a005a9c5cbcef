//! One database: opened lazily, shared cheaply, closed within a deadline.

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Semaphore, watch};

use crate::budget::{CLOSE_TIMEOUT, ConnectionBudget, Open, Server, lock};
use crate::classify::{ErrorClass, StoreError};
use crate::examine::Examined;
use crate::homes::Homes;
use crate::known::Eligible;
use crate::mode::{ConnectionMode, Found};
use crate::origin::Origin;
use crate::scram::Login;
use crate::session::{Answer, Operation, Patience, Session};
use crate::spec::DatabaseSpec;
use crate::sql::{Preamble, Sql, Target, Unwritable};

/// A database of one tenant, or of several that keep their schemas in it: a small pool of connections, none of which is
/// open before it is needed. A cheap clone. When the last clone is dropped its idle connections are closed.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) id: u64,
    pub(crate) spec: DatabaseSpec,
    pub(crate) options: PgConnectOptions,
    /// Its password, for the relay; see `scram.rs`.
    pub(crate) login: Option<Arc<Login>>,
    /// The settings that each message begins with.
    pub(crate) preamble: Preamble,
    pub(crate) operation_timeout: Duration,
    pub(crate) server: Arc<Server>,
    pub(crate) phase: watch::Sender<Phase>,
    /// As many as `limit`: this database's connections can't be more.
    permits: Arc<Semaphore>,
    limit: u32,
    last_used: Mutex<Instant>,
    /// Where the `search_path` of the role finds the balance table: found out once, as later sessions may come with another.
    schema: Mutex<Option<String>>,
    /// Whether its connections need no look of their own at where they lead.
    pub(crate) eligible: Eligible,
    /// The server that its newest connection led to.
    origin: Mutex<Option<Origin>>,
    /// How its connections lead to it.
    pub(crate) mode: Found<ConnectionMode>,
    /// The database that the settings name, for errors.
    settings: String,
    /// Kept so that databases of one budget meet on one server for as long as one of them exists.
    budget: ConnectionBudget,
}

/// How far the closing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open,
    /// Nothing new begins; what is under way may end.
    Closing,
    /// What is still under way is broken off.
    Aborted,
}

/// The connections of one database at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolUsage {
    /// Connections that exist, those being opened or closed included.
    pub open: u32,
    /// Of these, the idle ones.
    pub idle: u32,
    /// Of these, those in use.
    pub in_use: u32,
    /// The most there may be: the spec's `max_connections`, or the server's budget if that is less.
    pub limit: u32,
}

impl Database {
    /// A database that is not connected yet; no call to the server is made.
    ///
    /// # Errors
    /// [`ErrorClass::Configuration`] if the spec can't work: an empty host, database or user name, no connections,
    /// a certificate without a key.
    pub fn open(spec: DatabaseSpec, budget: ConnectionBudget) -> Result<Database, StoreError> {
        spec.validate()?;
        let (server, id) = budget.register(&spec.server_key());
        let limit = spec.max_connections.min(u32::try_from(server.limit()).unwrap_or(u32::MAX));
        Ok(Database(Arc::new(Inner {
            id,
            options: spec.connect_options(),
            login: Login::new(&spec.password),
            preamble: Preamble::new(&spec),
            settings: format!("{}/{}", spec.server_key(), spec.database),
            schema: Mutex::new(None),
            eligible: Eligible::default(),
            origin: Mutex::new(None),
            mode: Found::nothing(),
            operation_timeout: spec.operation_timeout(),
            spec,
            server,
            budget,
            phase: watch::Sender::new(Phase::Open),
            permits: Arc::new(Semaphore::new(limit as usize)),
            limit,
            last_used: Mutex::new(Instant::now()),
        })))
    }

    /// The spec it was opened with.
    #[must_use]
    pub fn spec(&self) -> &DatabaseSpec {
        &self.0.spec
    }

    /// Asks the server for an answer, connecting if there is no idle connection.
    ///
    /// # Errors
    /// What keeps it from answering, by class.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.session().await?.run(&Ping).await
    }

    /// Its connections now.
    #[must_use]
    pub fn usage(&self) -> PoolUsage {
        let (open, idle) = self.0.server.count(self.0.id);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        PoolUsage {
            open: count(open),
            idle: count(idle),
            in_use: count(open.saturating_sub(idle)),
            limit: self.0.limit,
        }
    }

    /// Whether a pooler stands before it, as far as is known: `None` before the first connection, and where no connection could be
    /// spared to find out.
    #[must_use]
    pub fn mode(&self) -> Option<ConnectionMode> {
        self.0.mode.get()
    }

    /// The server that its newest connection led to: another one after a failover, a restart, or where a name has moved. `None` before
    /// the first connection to a server that takes writes.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        lock(&self.0.origin).clone()
    }

    /// What is known to be on one server: all databases at this address, or this one alone where a pooler may lead each to another.
    #[must_use]
    pub fn address(&self) -> String {
        match self.mode() {
            Some(ConnectionMode::Direct) => self.server_key().to_owned(),
            _ => self.0.settings.clone(),
        }
    }

    /// Asks which server answers, and leaves no connection behind that was not there before.
    ///
    /// # Errors
    /// What keeps it from answering, by class.
    pub async fn find_origin(&self) -> Result<Option<Origin>, StoreError> {
        let was_closed = self.usage().open == 0;
        self.ping().await?;
        if was_closed {
            let idle = self.0.server.take_idle(self.0.id);
            future::join_all(idle.into_iter().map(|open| open.close(CLOSE_TIMEOUT))).await;
        }
        Ok(self.origin())
    }

    /// Since when it hasn't been used (its opening counts as use); `None` while it is.
    #[must_use]
    pub fn idle_since(&self) -> Option<Instant> {
        (self.in_flight() == 0).then(|| *lock(&self.0.last_used))
    }

    /// Whether [`Database::close`] has been called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.0.phase.borrow() != Phase::Open
    }

    /// Closes it: nothing new begins, what is under way may end within `grace` and is broken off then (a write that is
    /// broken off may or may not have happened; repeating it is harmless). Says how many operations were broken off.
    pub async fn close(&self, grace: Duration) -> usize {
        let deadline = Instant::now() + grace;
        self.advance(Phase::Closing);
        let quiet = tokio::time::timeout(grace, self.0.permits.acquire_many(self.0.limit)).await.is_ok();
        let broken_off = if quiet { 0 } else { self.in_flight() };
        self.advance(Phase::Aborted);
        let left =
            deadline.saturating_duration_since(Instant::now()).clamp(CLOSE_TIMEOUT / 10, CLOSE_TIMEOUT);
        let idle = self.0.server.take_idle(self.0.id);
        future::join_all(idle.into_iter().map(|open| open.close(left))).await;
        broken_off
    }

    /// A session whose connection is there already, and whose turn it is to write a batch: what follows doesn't wait in the queue.
    ///
    /// # Errors
    /// What keeps it from being had, by class; [`ErrorClass::ConnectionBudget`] when none became free and the queue for them stood still
    /// for the acquire timeout.
    pub async fn connect(&self) -> Result<Session, StoreError> {
        self.connected(Patience::Long).await
    }

    /// The same for a look that can be repeated, and that something waits for: however the queue moves, it waits no longer than half as
    /// long again as the acquire timeout.
    ///
    /// # Errors
    /// As [`Database::connect`].
    pub async fn connect_for_a_look(&self) -> Result<Session, StoreError> {
        self.connected(Patience::Short).await
    }

    async fn connected(&self, patience: Patience) -> Result<Session, StoreError> {
        let mut session = self.queue(patience).await?;
        session.connect().await?;
        Ok(session)
    }

    /// A place in this database's pool. The connection is got with the first statement.
    pub(crate) async fn session(&self) -> Result<Session, StoreError> {
        self.queue(Patience::Short).await
    }

    async fn queue(&self, patience: Patience) -> Result<Session, StoreError> {
        let acquire_by = tokio::time::Instant::now() + self.0.spec.acquire_timeout;
        let waiting = self.0.server.waiting();
        let own = Arc::clone(&self.0.permits).acquire_owned();
        let mut phase = self.0.phase.subscribe();
        let permit = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Open) => return Err(StoreError::closed()),
            permit = self.patiently(acquire_by, patience, own) => {
                permit.ok_or_else(|| self.no_place(patience))?.map_err(|_| StoreError::closed())?
            }
        };
        drop(waiting);
        Ok(Session::new(self.clone(), acquire_by, patience, permit))
    }

    /// Waits until this time, and on while the queue for the server's connections moves: who gives up then goes to its end. `None` = in
    /// vain.
    pub(crate) async fn patiently<F: Future>(
        &self,
        by: tokio::time::Instant,
        patience: Patience,
        waiting: F,
    ) -> Option<F::Output> {
        let timeout = self.0.spec.acquire_timeout;
        let mut waiting = pin!(waiting);
        let mut until = by;
        loop {
            if let Ok(output) = tokio::time::timeout_at(until, waiting.as_mut()).await {
                return Some(output);
            }
            let moved = self.0.server.progressed()?;
            until = (moved + timeout).into();
            if patience == Patience::Short {
                until = until.min(by + timeout / 2);
            }
            if until <= tokio::time::Instant::now() {
                return None;
            }
        }
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(crate) fn server_key(&self) -> &str {
        self.0.server.key()
    }

    /// What statements are written for on a connection that leads there.
    ///
    /// # Errors
    /// [`ErrorClass::PoolerUnsafe`] if its `search_path` finds another table than that of earlier connections.
    pub(crate) fn target(&self, examined: &Examined) -> Result<Target, StoreError> {
        let mut known = lock(&self.0.schema);
        match (&*known, &examined.schema) {
            (Some(known), Some(found)) if known != found => {
                return Err(StoreError::new(
                    ErrorClass::PoolerUnsafe,
                    format!(
                        "the search_path leads to schema {found:?}, and did lead to {known:?}: name the schema in the \
                         tenant's settings, or restart the worker if the change is meant"
                    ),
                ));
            }
            (None, found) => known.clone_from(found),
            _ => {}
        }
        Ok(Target { database: examined.database.clone(), schema: known.clone(), started: None })
    }

    /// Notes the server that a new connection leads to. Connections to a former one are of no use any more: what is written there may
    /// be lost.
    pub(crate) fn note_origin(&self, examined: &Examined) {
        let Some(found) = &examined.origin else { return };
        let former = lock(&self.0.origin).replace(found.clone());
        if let Some(former) = former.filter(|former| former != found) {
            tracing::warn!(server = self.server_key(), database = self.0.spec.database, %former, now = %found, "another postgres server answers");
            self.drop_idle();
        }
    }

    /// Whether a connection leads to the server that the newest connection led to.
    ///
    /// # Errors
    /// [`ErrorClass::Connection`] if not.
    pub(crate) fn is_current(&self, examined: &Examined) -> Result<(), StoreError> {
        let Some(opened) = &examined.origin else { return Ok(()) };
        match lock(&self.0.origin).as_ref().filter(|now| *now != opened) {
            None => Ok(()),
            Some(now) => Err(StoreError::new(
                ErrorClass::Connection,
                format!("the connection was opened to another server ({opened}) than answers now ({now})"),
            )),
        }
    }

    /// The table is not where it was: the next statement looks for it anew.
    pub(crate) fn forget_schema(&self) {
        *lock(&self.0.schema) = None;
    }

    pub(crate) fn homes(&self) -> &Homes {
        self.0.budget.homes()
    }

    /// The database that the settings name: `host:port/database`.
    pub(crate) fn settings(&self) -> &str {
        &self.0.settings
    }

    /// The error for a place that did not become free in time.
    pub(crate) fn no_place(&self, patience: Patience) -> StoreError {
        let within = self.0.spec.acquire_timeout;
        let vain = match patience {
            Patience::Short => "",
            Patience::Long => ", nor did any other that waits for one get on",
        };
        StoreError::new(
            ErrorClass::ConnectionBudget,
            format!(
                "none of this worker's connections became free within {within:?}{vain}: it may have {} to this database \
                 (postgres.connections_per_tenant), {} to all on {} (postgres.connections_per_server{})",
                self.0.limit,
                self.0.server.usage().limit,
                self.0.server.key(),
                if self.0.server.is_shared() { ", postgres.fleet_connections_per_server" } else { "" }
            ),
        )
    }

    /// Takes back a connection that works.
    pub(crate) fn keep(&self, open: Open) {
        *lock(&self.0.last_used) = Instant::now();
        // While closing it is kept too: `close` takes it once it has all permits, and says goodbye properly.
        if *self.0.phase.borrow() != Phase::Aborted && self.is_current(&open.examined).is_ok() {
            self.0.server.keep(open, self.0.spec.idle_timeout);
            self.0.server.follow_name(&self.0.spec);
        }
    }

    /// Drops what lies idle, without a word to the server.
    pub(crate) fn drop_idle(&self) {
        drop(self.0.server.take_idle(self.0.id));
    }

    fn in_flight(&self) -> usize {
        self.0.limit as usize - self.0.permits.available_permits().min(self.0.limit as usize)
    }

    fn advance(&self, to: Phase) {
        self.0.phase.send_if_modified(|phase| {
            let later = *phase == Phase::Open || to == Phase::Aborted;
            if later {
                *phase = to;
            }
            later
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.server.take_idle(self.id));
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("spec", &self.0.spec).field("usage", &self.usage()).finish()
    }
}

struct Ping;

impl Operation for Ping {
    type Output = ();

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push("SELECT 1 WHERE ").guard();
        Ok(())
    }

    fn read(&self, _: Answer) -> Result<(), sqlx::Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn led_to(origin: Option<&str>) -> Examined {
        Examined {
            database: "d".to_owned(),
            schema: None,
            oid: 1,
            started: "1".to_owned(),
            pid: 1,
            clock_ahead_ms: 0,
            origin: origin.map(|started| Origin::new(Some("7".to_owned()), None, started)),
        }
    }

    #[tokio::test]
    async fn connections_to_a_former_server_do_not_count() {
        let spec = DatabaseSpec::new("127.0.0.1", 1, "d", "u", String::new().into());
        let database = Database::open(spec, ConnectionBudget::new(1)).unwrap();
        let (former, replica, now) = (led_to(Some("1")), led_to(None), led_to(Some("2")));
        database.note_origin(&former);
        database.is_current(&former).unwrap();
        database.note_origin(&replica);
        database.is_current(&former).unwrap();
        database.note_origin(&now);
        let error = database.is_current(&former).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Connection);
        assert!(error.message().contains("started 2"), "{error}");
        database.is_current(&now).unwrap();
        database.is_current(&replica).unwrap();
    }
}
