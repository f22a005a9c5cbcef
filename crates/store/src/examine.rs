//! What a new connection leads to, and whether settings can be made there.
//!
//! One round trip when a connection is new. It says nothing for later: behind a pooler each transaction may get another
//! session. Therefore each statement checks for itself what it relies on (`sql.rs`); here it is found out what there is to
//! check, and a session that takes no settings is named as such before anything is claimed for it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use balance_sync_engine::clock::clock_offset_ms;
use sqlx::Row as _;

use crate::classify::{ErrorClass, StoreError};
use crate::origin::Origin;
use crate::relay::Connection;
use crate::session::send;
use crate::sql::{Preamble, Sql};

/// What a connection leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Examined {
    /// The database, by the server's own account.
    pub(crate) database: String,
    /// The first schema of the role's `search_path` that has a balance table. Temporary tables, which another client of a
    /// pooler may have left, don't count.
    pub(crate) schema: Option<String>,
    /// The database's number.
    pub(crate) oid: i64,
    /// When the server was started.
    pub(crate) started: String,
    /// The process of the session.
    pub(crate) pid: i32,
    /// By how many milliseconds this host's clock is ahead of the server's, at least.
    pub(crate) clock_ahead_ms: i64,
    /// The server, if it takes writes.
    pub(crate) origin: Option<Origin>,
}

const EXAMINE: &str = "SELECT pg_catalog.current_database()::pg_catalog.text, \
     (SELECT s.name::pg_catalog.text \
      FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS s(name, n) \
      JOIN pg_catalog.pg_namespace AS ns ON ns.nspname = s.name \
      JOIN pg_catalog.pg_class AS c ON c.relnamespace = ns.oid AND c.relname = 'balance' \
      WHERE c.relkind IN ('r', 'p', 'v', 'f') AND NOT pg_catalog.starts_with(s.name::pg_catalog.text, 'pg_temp') \
      ORDER BY s.n LIMIT 1), \
     (SELECT d.oid::pg_catalog.int8 FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()), \
     pg_catalog.pg_postmaster_start_time()::pg_catalog.text, \
     pg_catalog.pg_backend_pid(), \
     pg_catalog.pg_is_in_recovery(), \
     pg_catalog.current_setting('synchronous_commit'), \
     pg_catalog.current_setting('row_security'), \
     pg_catalog.current_setting('transaction_isolation'), \
     extract(epoch FROM pg_catalog.clock_timestamp())::pg_catalog.float8";

/// A schema of the role's `search_path` that has a balance table and that the role may not use. `current_schemas` leaves it out.
const HIDDEN: &str = "SELECT s.nspname::pg_catalog.text, current_user::pg_catalog.text FROM pg_catalog.pg_namespace AS s \
     JOIN pg_catalog.pg_class AS c ON c.relnamespace = s.oid AND c.relname = 'balance' \
     WHERE c.relkind IN ('r', 'p', 'v', 'f') AND NOT pg_catalog.has_schema_privilege(s.oid, 'USAGE') \
     AND s.nspname = ANY (pg_catalog.string_to_array(pg_catalog.replace(pg_catalog.replace( \
     pg_catalog.current_setting('search_path'), '\"$user\"', current_user), '\"', ''), ', ')) ORDER BY s.nspname LIMIT 1";

/// The settings whose values it asks for, and what they must be.
const SETTINGS: [(&str, &str); 3] =
    [("synchronous_commit", "on"), ("row_security", "off"), ("transaction_isolation", "read committed")];

/// Why no schema of the role's `search_path` has a balance table.
pub(crate) async fn why_no_table(
    connection: &mut Connection,
    preamble: &Preamble,
    database: &str,
) -> StoreError {
    let mut sql = Sql::new(preamble, None);
    sql.push(HIDDEN);
    let hidden = async {
        let answer = send(connection, sql.finish()).await?;
        let Some(row) = answer.rows.first() else { return Ok::<_, StoreError>(None) };
        let (schema, role): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        Ok(Some((schema, role)))
    };
    match hidden.await {
        Ok(Some((schema, role))) => StoreError::new(
            ErrorClass::Permission,
            format!(
                "the role may not use the schema {schema:?}, in which the table \"balance\" is: \
                 GRANT USAGE ON SCHEMA {schema:?} TO {role:?}"
            ),
        )
        .with_sqlstate("42501")
        .keeping_session(),
        Ok(None) => StoreError::new(
            ErrorClass::NotProvisioned,
            format!("no schema of the role's search_path in database {database:?} has a table \"balance\""),
        )
        .with_sqlstate("42P01")
        .keeping_session(),
        Err(error) => error,
    }
}

/// Looks where a connection leads.
///
/// # Errors
/// [`ErrorClass::PoolerUnsafe`] if settings are refused or have no effect; else why there was no answer.
pub(crate) async fn examine(
    connection: &mut Connection,
    preamble: &Preamble,
) -> Result<Examined, StoreError> {
    let mut sql = Sql::new(preamble, None);
    sql.push(EXAMINE);
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let asked = Instant::now();
    let answer = send(connection, sql.finish()).await.map_err(|error| match error.class() {
        // Nothing of ours is in it but settings and catalogs every server has.
        ErrorClass::NotProvisioned | ErrorClass::Refused | ErrorClass::Internal => StoreError::new(
            ErrorClass::PoolerUnsafe,
            format!(
                "session settings are refused: {}; let the worker's connections pass the proxy, or one that takes SET LOCAL",
                error.message()
            ),
        ),
        _ => error,
    })?;
    let took = asked.elapsed();
    let row = answer.rows.first().ok_or_else(|| {
        StoreError::new(ErrorClass::PoolerUnsafe, "no answer to a query that always has one")
    })?;
    for (n, (name, wanted)) in SETTINGS.iter().enumerate() {
        let value: String = row.try_get(6 + n)?;
        if value != *wanted {
            return Err(StoreError::new(
                ErrorClass::PoolerUnsafe,
                format!(
                    "session settings are not in force: {name} is {value:?} after it was set to {wanted:?}; let the worker's \
                     connections pass the proxy that takes them out"
                ),
            ));
        }
    }
    let (started, is_replica): (String, bool) = (row.try_get(3)?, row.try_get(5)?);
    let origin = match is_replica {
        true => None,
        false => Some(Origin::ask(connection, preamble, &started).await?),
    };
    Ok(Examined {
        database: row.try_get(0)?,
        schema: row.try_get(1)?,
        oid: row.try_get(2)?,
        started,
        pid: row.try_get(4)?,
        clock_ahead_ms: clock_offset_ms(begun, took, row.try_get(6 + SETTINGS.len())?),
        origin,
    })
}
