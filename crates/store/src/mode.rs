//! What stands between here and a server: nothing, or a pooler that gives us a session for as long as a connection or a
//! transaction lasts. For people to look at: what is written is safe in every mode (`docs/decisions/0015-no-session-state.md`).
//!
//! Poolers don't announce themselves. Two things give them away. A setting among the start-up options is in force in the
//! session of a direct connection; poolers refuse or drop what they don't know. And two connections that are open at the same time are
//! two sessions, each the same from one message to the next, unless sessions belong to transactions.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use sqlx::Row as _;
use sqlx::postgres::PgConnectOptions;

use crate::budget::{CLOSE_TIMEOUT, Open, lock};
use crate::classify::StoreError;
use crate::connect::resolve;
use crate::database::Inner;
use crate::files::Files;
use crate::relay::{Connection, Failed};
use crate::session::send;
use crate::sql::Sql;

/// How long a result counts, and how soon a check that gave none is repeated.
const VALID: Duration = Duration::from_secs(10 * 60);

/// The longest that a second connection may take: a pooler without a free session lets it wait.
const WITHIN: Duration = Duration::from_millis(500);

/// A setting of ours that no server knows and every server takes, with a value that no other client gives it.
const MARK: &str = "balance_sync.mark";

balance_sync_domain::names! {
    /// What stands between here and a server.
    pub enum ConnectionMode {
        /// Nothing that shares sessions out.
        Direct = "direct",
        /// A pooler whose sessions belong to one connection at a time.
        SessionPooler = "session pooler",
        /// A pooler that gives out a session for each transaction or statement.
        TransactionPooler = "transaction pooler",
    }
}

/// A fact that is checked again after [`VALID`].
pub(crate) struct Found<T>(Mutex<(Option<T>, Option<Instant>)>);

impl<T: Copy> Found<T> {
    pub(crate) const fn nothing() -> Found<T> {
        Found(Mutex::new((None, None)))
    }

    /// The last result, however old.
    pub(crate) fn get(&self) -> Option<T> {
        lock(&self.0).0
    }

    /// The last result, unless it is older than [`VALID`].
    pub(crate) fn fresh(&self) -> Option<T> {
        let (found, at) = *lock(&self.0);
        found.filter(|_| at.is_some_and(|at| at.elapsed() < VALID))
    }

    /// Whether a check is due. The caller that gets `true` makes it; the others don't wait.
    fn is_due(&self) -> bool {
        let mut state = lock(&self.0);
        let due = state.1.is_none_or(|at| at.elapsed() >= VALID);
        if due {
            state.1 = Some(Instant::now());
        }
        due
    }

    /// The last result counts no longer as fresh.
    pub(crate) fn wear_out(&self) {
        lock(&self.0).1 = None;
    }

    pub(crate) fn set(&self, value: T) {
        *lock(&self.0) = (Some(value), Some(Instant::now()));
    }
}

/// Detects the connection mode of a database with a second connection beside one that has just been opened; at most once per
/// [`VALID`], and only if the server's budget has a connection to spare.
///
/// # Errors
/// When the connection that was there fails. That the second one can't be had is no error.
pub(crate) async fn detect(inner: &Inner, held: &mut Open) -> Result<(), StoreError> {
    // What the fleet lets this worker have grows from little: a check that can't be made now is made soon.
    let is_short = inner.server.is_shared() && !inner.server.has_spare();
    if inner.mode.fresh().is_some() || is_short || !inner.mode.is_due() {
        return Ok(());
    }
    if inner.server.is_direct.fresh() == Some(true) {
        inner.mode.set(ConnectionMode::Direct);
        return Ok(());
    }
    // Held until the second connection has been closed.
    let Some(mut slot) = inner.server.spare(inner.id) else { return Ok(()) };
    slot.begin();
    let Ok(Some(mut second)) = tokio::time::timeout(WITHIN, Second::open(inner)).await else { return Ok(()) };
    inner.server.is_direct.set(second.is_direct);
    let mode = if second.is_direct {
        Some(ConnectionMode::Direct)
    } else {
        compare(inner, held, &mut second).await?
    };
    if let Some(mode) = mode {
        if inner.mode.get() != Some(mode) {
            let (server, database) = (inner.server.key(), &inner.spec.database);
            tracing::debug!(server, database, mode = mode.as_str(), "way to postgres found out");
        }
        inner.mode.set(mode);
    }
    if let Some(connection) = second.connection {
        // An error changes nothing: the socket is closed either way.
        if !inner.server.is_shared() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close()).await;
        } else if let Ok(Ok(())) = tokio::time::timeout(CLOSE_TIMEOUT, connection.close_and_wait()).await {
            slot.end();
        }
    }
    Ok(())
}

/// A setting among the start-up options of one connection, by which is seen whether they reach the server.
pub(crate) struct Mark(String);

impl Mark {
    fn new() -> Mark {
        Mark(format!("{:08x}", rand::random::<u32>()))
    }

    /// For a server that was reached directly and is to be asked again. A second connection tells as well, but there is no place for
    /// it while others wait; and without an answer each of their connections would be examined. And for one of a budget that the fleet
    /// shares: of a few connections none can be spared.
    pub(crate) fn due(inner: &Inner) -> Option<Mark> {
        let (server, known) = (&inner.server, &inner.server.is_direct);
        ((server.is_shared() || known.get() == Some(true)) && known.fresh().is_none()).then(Mark::new)
    }

    pub(crate) fn among(&self, options: PgConnectOptions) -> PgConnectOptions {
        options.options([(MARK, &self.0)])
    }

    /// Looks whether the session of the connection has it.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn look_for(self, inner: &Inner, connection: &mut Connection) -> Result<(), StoreError> {
        let (_, found) = ask(inner, connection).await?;
        inner.server.is_direct.set(found == self.0);
        Ok(())
    }
}

/// A connection beside the first.
struct Second {
    /// Absent when it took another without the mark to connect, and that failed.
    connection: Option<Connection>,
    /// The mark among its start-up options is in force.
    is_direct: bool,
    /// Its session.
    pid: Option<i32>,
}

impl Second {
    /// `None` = the attempt decides nothing.
    async fn open(inner: &Inner) -> Option<Second> {
        let options = Files::read(&inner.spec).await.ok()?.within(inner.options.clone());
        let addresses = resolve(&inner.spec).await.ok()?;
        let open = |options| Connection::open(&inner.spec, options, &addresses, inner.login.as_ref());
        if inner.server.is_direct.fresh().is_none() {
            let mark = Mark::new();
            match open(mark.among(options.clone())).await {
                Ok(mut connection) => {
                    let (pid, found) = ask(inner, &mut connection).await.ok()?;
                    let is_direct = found == mark.0;
                    return Some(Second { connection: Some(connection), is_direct, pid: Some(pid) });
                }
                Err(failed) if failed.is_about_options() => {}
                Err(_) => return None,
            }
        }
        let mut second = Second { connection: None, is_direct: false, pid: None };
        if let Ok(mut connection) = open(options).await {
            second.pid = ask(inner, &mut connection).await.ok().map(|(pid, _)| pid);
            second.connection = Some(connection);
        }
        Some(second)
    }
}

impl Failed {
    /// Whether a connection with options may have been refused for them: by poolers as a violation of the protocol, by RDS Proxy as
    /// a feature that it lacks. A server takes any setting with a point in its name.
    pub(crate) fn is_about_options(&self) -> bool {
        let sqlx::Error::Database(error) = &self.error else { return false };
        matches!(error.code().as_deref(), Some("08P01" | "0A000"))
    }
}

/// Compares the sessions of two connections through a pooler. `None` = the answers don't decide it.
async fn compare(
    inner: &Inner,
    held: &mut Open,
    second: &mut Second,
) -> Result<Option<ConnectionMode>, StoreError> {
    let Some(pid) = second.pid else { return Ok(None) };
    let own = held.examined.pid;
    if pid == own {
        return Ok(Some(ConnectionMode::TransactionPooler));
    }
    // Twice in a row, because a pooler with two sessions may use them in turns.
    for _ in 0..2 {
        if ask(inner, &mut held.connection).await?.0 != own {
            return Ok(Some(ConnectionMode::TransactionPooler));
        }
    }
    let Some(connection) = &mut second.connection else { return Ok(None) };
    Ok(match tokio::time::timeout(WITHIN, ask(inner, connection)).await {
        Ok(Ok((again, _))) if again == pid => Some(ConnectionMode::SessionPooler),
        Ok(Ok(_)) => Some(ConnectionMode::TransactionPooler),
        _ => None,
    })
}

/// The session's process and the mark it has.
async fn ask(inner: &Inner, connection: &mut Connection) -> Result<(i32, String), StoreError> {
    let mut sql = Sql::new(&inner.preamble, None);
    sql.push(
        "SELECT pg_catalog.pg_backend_pid(), coalesce(pg_catalog.current_setting('balance_sync.mark', true), '')",
    );
    let answer = send(connection, sql.finish()).await?;
    let row = answer.rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
