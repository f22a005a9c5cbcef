//! One caller's use of a database: a place in the pool, a connection, and what happens when it breaks.
//!
//! All that is sent to Postgres goes through [`send`], as a message that relies on nothing in the session (`sql.rs`). No
//! statement is prepared: a name, or even the unnamed statement, belongs to the session, and the next message may reach
//! another one.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Either, PgConnection};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::budget::{Claim, LONGEST_TURN, Open, WriteSlot};
use crate::classify::{ErrorClass, StoreError};
use crate::connect::{connect, too_slow};
use crate::database::{Database, Phase};
use crate::examine::{Examined, examine, why_no_table};
use crate::grants::explained;
use crate::homes::Home;
use crate::known;
use crate::mode::detect;
use crate::relay::Connection;
use crate::sql::{Message, Sql, Unwritable};

/// One statement and the reading of its answer. Must be harmless to repeat: after a broken connection it is.
pub(crate) trait Operation {
    /// What it answers.
    type Output: Send;

    /// Writes the statement. It must hold [`Sql::guard`] as a condition of its only or outermost query.
    ///
    /// # Errors
    /// Why it can't be written.
    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable>;

    /// Reads the answer; its values are in text form.
    ///
    /// # Errors
    /// A column that is not as the statement asked for it.
    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error>;
}

/// How long an operation stays in a queue that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Half as long again as the acquire timeout.
    Short,
    /// As long as it moves.
    Long,
}

/// What Postgres answered to one message.
pub(crate) struct Answer {
    /// The rows of its statement.
    pub(crate) rows: Vec<PgRow>,
    /// How many rows the statement returned or changed.
    pub(crate) affected: u64,
}

/// Sends a message and reads all answers to it. An error ends its transaction, whose settings end with it.
///
/// # Errors
/// The failure, by class.
pub(crate) async fn send(connection: &mut Connection, message: Message) -> Result<Answer, StoreError> {
    let statements = message.statements;
    let (answer, answered) = match exchange(connection.driver(), message.text).await {
        Ok(answered) => answered,
        Err(error) => return Err(connection.explain(error)),
    };
    if answered != statements {
        return Err(StoreError::new(
            ErrorClass::PoolerUnsafe,
            format!(
                "{answered} answers to {statements} statements: something between here and Postgres alters them"
            ),
        ));
    }
    Ok(answer)
}

/// Has the server end a session by itself whose client is frozen, or can't be reached, and notice soon that the client of a statement
/// is gone. For sessions that are ours alone.
fn end_with_client(idle: Duration) -> String {
    let idle = idle.as_millis();
    format!("SET idle_session_timeout = {idle}; SET client_connection_check_interval = 500")
}

/// Sends the text, and reads all answers and their number.
async fn exchange(driver: &mut PgConnection, text: String) -> Result<(Answer, usize), sqlx::Error> {
    let mut answers = sqlx::raw_sql(AssertSqlSafe(text)).fetch_many(driver);
    let mut answer = Answer { rows: Vec::new(), affected: 0 };
    let mut answered = 0;
    // To the end: a commit can fail after the last statement has succeeded.
    while let Some(step) = answers.try_next().await? {
        match step {
            Either::Left(done) => {
                answered += 1;
                answer.affected = done.rows_affected();
            }
            Either::Right(row) => answer.rows.push(row),
        }
    }
    Ok((answer, answered))
}

/// A place in the pool of a database, and its connection, from the first statement on. When dropped, the connection goes
/// back to the pool if it is in a known state, and is closed otherwise (an error, or a caller who was cancelled in the
/// middle of a statement).
pub struct Session {
    database: Database,
    /// Absent before the first statement, after a failure, and while a statement runs.
    open: Option<Open>,
    /// The connection comes from the pool and has not answered yet: the server may have closed it long ago.
    unproven: bool,
    /// The first connection must be there by then.
    acquire_by: Option<Instant>,
    patience: Patience,
    /// Held for a batch until a statement of it takes too long, see `budget.rs`.
    write_slot: Option<WriteSlot>,
    // After `open`: the connection must be back before the permit is, and fields drop in this order.
    _permit: OwnedSemaphorePermit,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("database", &self.database).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(
        database: Database,
        acquire_by: Instant,
        patience: Patience,
        permit: OwnedSemaphorePermit,
    ) -> Session {
        Session {
            database,
            open: None,
            unproven: false,
            acquire_by: Some(acquire_by),
            patience,
            write_slot: None,
            _permit: permit,
        }
    }

    /// Gets the connection now instead of with the first statement, and a slot to write a batch on it.
    pub(crate) async fn connect(&mut self) -> Result<(), StoreError> {
        let by = self.acquire_by();
        self.acquire_by = Some(by);
        if self.open.is_none() {
            self.open = Some(Box::pin(self.connection(false)).await?);
        }
        let server = &self.database.inner().server;
        let _waiting = server.waiting();
        // Slots are given up soon, whatever is waited for.
        let within = self.database.inner().spec.acquire_timeout;
        let acquiring =
            tokio::time::timeout(within, server.write_slots.acquire(self.database.inner().spec.weight));
        let write_slot = self
            .unless(Phase::Closing, acquiring)
            .await?
            .map_err(|_| self.database.no_place(self.patience))?;
        self.write_slot = Some(write_slot);
        Ok(())
    }

    /// How long the server lets a statement run.
    pub(crate) fn statement_timeout(&self) -> Duration {
        self.database.inner().spec.effective_statement_timeout()
    }

    /// When waiting for the first connection must have ended.
    fn acquire_by(&mut self) -> Instant {
        let timeout = self.database.inner().spec.acquire_timeout;
        self.acquire_by.take().unwrap_or_else(|| Instant::now() + timeout)
    }

    /// Runs a statement within the operation timeout, connecting first if need be. If the connection came from the
    /// pool and turns out to be dead at its first use, once more on a fresh one.
    pub(crate) async fn run<O: Operation>(&mut self, operation: &O) -> Result<O::Output, StoreError> {
        let mut fresh = false;
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                // On the heap: it is seldom needed, and would be part of every future that runs a statement.
                None => Box::pin(self.connection(fresh)).await?,
            };
            let error = match self.attempt(&mut open, operation).await {
                Ok(output) => {
                    self.unproven = false;
                    self.open = Some(open);
                    return Ok(output);
                }
                Err(error) => error,
            };
            if error.session_survives() {
                self.unproven = false;
                self.open = Some(open);
                return Err(error);
            }
            drop(open);
            let error = self.give_up(error);
            let retry = self.unproven && !fresh && error.class() == ErrorClass::Connection;
            self.unproven = false;
            if !retry {
                return Err(error);
            }
            tracing::debug!(server = %self.database.server_key(), error = %error, "pooled connection was dead, connecting anew");
            fresh = true;
        }
    }

    /// Closes the connection because of this error.
    pub(crate) fn give_up(&mut self, error: StoreError) -> StoreError {
        self.open = None;
        if matches!(
            error.class(),
            ErrorClass::Connection | ErrorClass::Timeout | ErrorClass::ReadOnly | ErrorClass::PoolerUnsafe
        ) {
            // What befell this connection has most likely befallen those that lie idle beside it.
            self.database.drop_idle();
        }
        error
    }

    async fn connection(&mut self, fresh: bool) -> Result<Open, StoreError> {
        let by = self.acquire_by();
        let inner = self.database.inner();
        let claim = {
            let _waiting = inner.server.waiting();
            let claim = self.database.patiently(
                by,
                self.patience,
                inner.server.claim(inner.id, inner.spec.weight, fresh),
            );
            self.unless(Phase::Closing, claim).await?.ok_or_else(|| self.database.no_place(self.patience))?
        };
        let mut slot = match claim {
            Claim::Pooled(open) => {
                self.unproven = true;
                return Ok(open);
            }
            Claim::Slot(slot) => slot,
        };
        slot.begin();
        // On the heap: it is large, seldom, and would be part of every future that runs a statement.
        let connecting = Box::pin(connect(inner, !fresh));
        let connected = self.unless(Phase::Aborted, connecting).await??;
        let is_presumed = connected.is_presumed;
        self.unproven = is_presumed;
        let target = match is_presumed {
            true => known::target(&connected.examined),
            false => self.database.target(&connected.examined)?,
        };
        if !is_presumed {
            self.database.note_origin(&connected.examined);
        }
        let mut open = Open::new(connected, slot, target, inner.spec.max_age);
        if !is_presumed {
            let timeout = inner.spec.connect_timeout;
            let detecting = Box::pin(tokio::time::timeout(timeout, detect(inner, &mut open)));
            self.unless(Phase::Aborted, detecting)
                .await?
                .map_err(|_| too_slow(timeout, "looking for a pooler"))??;
        }
        if let Some(shared) = &inner.server.shared
            && inner.server.is_direct.fresh() == Some(true)
        {
            let timeout = inner.spec.connect_timeout;
            let text = end_with_client(shared.session_idle);
            let setting = tokio::time::timeout(timeout, exchange(open.connection.driver(), text));
            self.unless(Phase::Aborted, setting)
                .await?
                .map_err(|_| too_slow(timeout, "setting when the session ends"))??;
        }
        Ok(open)
    }

    async fn attempt<O: Operation>(
        &mut self,
        open: &mut Open,
        operation: &O,
    ) -> Result<O::Output, StoreError> {
        let timeout = self.database.inner().operation_timeout;
        let mut write_slot = self.write_slot.take();
        let running = async {
            let mut running = pin!(tokio::time::timeout(timeout, execute(&self.database, open, operation)));
            if write_slot.is_some() {
                tokio::select! {
                    biased;
                    result = running.as_mut() => return result,
                    // It waits for a lock, a disk or an answer, and keeps no thread busy meanwhile.
                    () = tokio::time::sleep(LONGEST_TURN) => write_slot = None,
                }
            }
            running.await
        };
        let result = self.unless(Phase::Aborted, running).await?;
        self.write_slot = write_slot;
        match result {
            Ok(result) => result,
            Err(_) => Err(StoreError::new(
                ErrorClass::Timeout,
                format!("no answer to a statement within {timeout:?}: connection given up"),
            )),
        }
    }

    /// Ends when the database's closing has come so far: no operation waits for a connection that is no longer given, and what
    /// hangs must not outlive the worker.
    async fn unless<F: Future>(&self, end: Phase, future: F) -> Result<F::Output, StoreError> {
        let mut phase = self.database.inner().phase.subscribe();
        let revoked = async {
            match &self.database.inner().server.shared {
                // What only waits for a connection waits on.
                Some(shared) if end == Phase::Aborted => shared.revoked().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            output = future => Ok(output),
            _ = phase.wait_for(|phase| *phase >= end) => Err(StoreError::closed()),
            () = revoked => Err(StoreError::new(
                ErrorClass::ConnectionBudget,
                "connection given up: this worker's part of the fleet's connections could not be renewed in Redis \
                 (postgres.fleet_connections_per_server)",
            )),
        }
    }
}

/// Writes the statement for this connection, sends it and reads the answer.
async fn execute<O: Operation>(
    database: &Database,
    open: &mut Open,
    operation: &O,
) -> Result<O::Output, StoreError> {
    let message = match write(database, open, operation) {
        Err(Unwritable::NoSchema) => {
            // The table was not there when this connection was opened.
            let examining = examine(&mut open.connection, &database.inner().preamble);
            *open.examined = Box::pin(examining).await?;
            database.inner().eligible.note_search_path();
            open.target = database.target(&open.examined)?;
            database.note_origin(&open.examined);
            write(database, open, operation)
        }
        written => written,
    };
    let message = match message {
        Ok(message) => message,
        Err(Unwritable::Value(error)) => return Err(error),
        Err(Unwritable::NoSchema) => {
            let preamble = &database.inner().preamble;
            return Err(why_no_table(&mut open.connection, preamble, &open.target.database).await);
        }
    };
    for (schema, table) in &message.tables {
        if table.schema().is_none() {
            database.inner().eligible.note_search_path();
        }
        if let Some(tenant) = table.tenant() {
            let Examined { started, oid, .. } = &*open.examined;
            let home = Home { started: started.clone(), oid: *oid, schema: schema.clone() };
            database.homes().enter(tenant, database.settings(), &home)?;
        }
    }
    match send(&mut open.connection, message).await {
        Ok(answer) => {
            if open.target.started.take().is_some() {
                // Its first answer: the server is the one that it was taken to be.
                database.note_origin(&open.examined);
            }
            // What was written to a server that has been replaced meanwhile may be lost: it is written again.
            database.is_current(&open.examined)?;
            Ok(operation.read(answer)?)
        }
        Err(error) if error.class() == ErrorClass::PoolerUnsafe && open.target.started.is_some() => {
            database.inner().server.known.forget();
            Err(StoreError::new(
                ErrorClass::Connection,
                format!("the connection leads elsewhere than those before it: {}", error.message()),
            ))
        }
        Err(error) => {
            if error.class() == ErrorClass::NotProvisioned {
                // It may have moved: the search_path is asked anew.
                database.forget_schema();
                open.target.schema = None;
            }
            if error.class() == ErrorClass::Permission
                && error.session_survives()
                && let Some(schema) = schema_of(database, open, operation)
            {
                let preamble = &database.inner().preamble;
                return Err(Box::pin(explained(&mut open.connection, preamble, &schema, error)).await);
            }
            Err(error)
        }
    }
}

/// The schema of the tables that a statement names.
fn schema_of<O: Operation>(database: &Database, open: &Open, operation: &O) -> Option<String> {
    let message = write(database, open, operation).ok()?;
    message.tables.into_iter().next().map(|(schema, _)| schema)
}

fn write<O: Operation>(database: &Database, open: &Open, operation: &O) -> Result<Message, Unwritable> {
    let mut sql = Sql::new(&database.inner().preamble, Some(&open.target));
    operation.write(&mut sql)?;
    Ok(sql.finish())
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.database.keep(open);
        }
    }
}
