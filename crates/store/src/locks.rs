//! Rows that another session has locked: which they are, and who has locked them.
//!
//! A write waits for a lock only briefly (`DatabaseSpec::lock_wait`). After that a query with `SKIP LOCKED` finds the rows of the
//! batch that are locked, and the others are written without them. One row that is held for minutes doesn't delay the other 499
//! of its batch; without locked rows there is no extra query.

use std::fmt;

use sqlx::Row as _;

use crate::classify::StoreError;
use crate::connect::quoted;
use crate::identifier::Table;
use crate::row::Row;
use crate::session::{Answer, Operation, Session};
use crate::sql::{Sql, Unwritable};
use crate::update::{NOT_DELETED, SAME_ROW, identities, run};

/// At most this many rows are checked for the session that has locked them.
const NAMED: usize = 8;

/// The positions of the rows that another session has locked. Only those that are to be written count.
///
/// # Errors
/// Also when the whole table is locked: then it can't be looked at either.
pub(crate) async fn locked(
    session: &mut Session,
    table: &Table,
    rows: &[&Row<'_>],
) -> Result<Vec<usize>, StoreError> {
    run(session, &Locked { table, rows }).await
}

/// Describes the session that has locked these rows, or the table if no rows are given.
///
/// # Errors
/// When the session is lost. A holder that can't be found is no error.
pub(crate) async fn holder(
    session: &mut Session,
    table: &Table,
    rows: &[&Row<'_>],
) -> Result<String, StoreError> {
    let rows = &rows[..rows.len().min(NAMED)];
    let mut found = Err(None);
    // The holder of a row is found through a system column, which the role may have no right to read.
    for by_row in [true, false] {
        if by_row && rows.is_empty() {
            continue;
        }
        match run(session, &Holders { table, rows, by_row }).await {
            Ok(holder) => {
                found = Ok(holder);
                break;
            }
            Err(error) if error.session_survives() => found = Err(Some(error)),
            Err(error) => return Err(error),
        }
    }
    Ok(match found {
        Ok(Some(holder)) => format!("locked by {holder}"),
        Ok(None) | Err(None) => "locked by a session that has ended since".to_owned(),
        Err(Some(error)) => format!("locked by a session that can't be named: {error}"),
    })
}

/// Adds to an error of a lock that was not to be had who has it.
pub(crate) async fn name_holder(session: &mut Session, table: &Table, error: StoreError) -> StoreError {
    match holder(session, table, &[]).await {
        Ok(holder) => error.with_words(&format!("{} is {holder}", table.as_sql())),
        Err(_) => error,
    }
}

/// The positions of the locked among these rows, as Postgres counts them.
struct Locked<'s> {
    table: &'s Table,
    rows: &'s [&'s Row<'s>],
}

impl Operation for Locked<'_> {
    type Output = Vec<usize>;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push("WITH v AS MATERIALIZED (SELECT * FROM unnest(");
        identities(sql, self.rows);
        sql.push(", ").bigints(self.rows.iter().map(|row| row.version));
        sql.push(") WITH ORDINALITY AS v(id, organization_id, ledger_id, version, n))");
        // The lock that the update takes: it goes beside those of foreign keys.
        for (name, lock) in [(", due", ""), (", free", " FOR NO KEY UPDATE OF b SKIP LOCKED")] {
            sql.push(name).push(" AS MATERIALIZED (SELECT v.n FROM v JOIN ").balances(self.table)?;
            sql.push(" AS b ON ").push(SAME_ROW).push(" WHERE ").push(NOT_DELETED);
            sql.push(" AND coalesce(b.version, -1) < v.version").push(lock).push(")");
        }
        sql.push(" SELECT n FROM due WHERE n NOT IN (SELECT n FROM free) AND ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let position = |row: &sqlx::postgres::PgRow| {
            let n: i64 = row.try_get(0)?;
            Ok(usize::try_from(n - 1).unwrap_or(usize::MAX))
        };
        let mut positions = answer.rows.iter().map(position).collect::<Result<Vec<_>, sqlx::Error>>()?;
        positions.retain(|at| *at < self.rows.len());
        positions.sort_unstable();
        Ok(positions)
    }
}

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    /// The process; `None` = a prepared transaction.
    pid: Option<i32>,
    application: Option<String>,
    /// The beginning of its transaction, if the role may see it.
    since: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pid) = self.pid else {
            return f.write_str("a prepared transaction: see pg_prepared_xacts");
        };
        write!(f, "process {pid}, application {}", quoted(self.application.as_deref().unwrap_or_default()))?;
        match &self.since {
            Some(since) => write!(f, ", in a transaction since {since}"),
            None => f.write_str(" (the start of its transaction shows with pg_read_all_stats)"),
        }
    }
}

/// The one that most likely is in the way: who has locked one of these rows, else who has a lock on the table, the oldest
/// transaction first. No text of a query is asked for.
struct Holders<'s> {
    table: &'s Table,
    rows: &'s [&'s Row<'s>],
    by_row: bool,
}

impl Operation for Holders<'_> {
    type Output = Option<Holder>;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push("WITH h(rank, pid) AS (");
        if self.by_row {
            sql.push("SELECT 0, l.pid FROM (SELECT DISTINCT b.xmax AS xid FROM unnest(");
            identities(sql, self.rows);
            sql.push(") AS v(id, organization_id, ledger_id) JOIN ").balances(self.table)?;
            sql.push(" AS b ON ").push(SAME_ROW).push(
                ") AS x JOIN pg_catalog.pg_locks AS l ON l.transactionid = x.xid \
                 WHERE l.locktype = 'transactionid' AND l.granted UNION ALL ",
            );
        }
        // The same table of databases that were copied from one template has the same oid.
        sql.push(
            "SELECT CASE WHEN l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
             THEN 1 ELSE 2 END, l.pid FROM pg_catalog.pg_locks AS l \
             WHERE l.locktype = 'relation' AND l.granted AND l.mode <> 'AccessShareLock' \
             AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() \
             AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
             AND l.relation = ",
        );
        sql.regclass(self.table, "balance")?.push("::pg_catalog.oid");
        sql.push(
            ") SELECT h.pid, a.application_name, pg_catalog.to_char(pg_catalog.timezone('UTC', a.xact_start), \
             'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM h LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = h.pid \
             WHERE h.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() AND ",
        );
        sql.guard().push(" ORDER BY h.rank, a.xact_start NULLS LAST LIMIT 1");
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let Some(row) = answer.rows.first() else { return Ok(None) };
        Ok(Some(Holder { pid: row.try_get(0)?, application: row.try_get(1)?, since: row.try_get(2)? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_in_words() {
        let holder = Holder {
            pid: Some(7),
            application: Some("psql\n".to_owned()),
            since: Some("2026-01-02T03:04:05Z".to_owned()),
        };
        assert_eq!(
            holder.to_string(),
            r#"process 7, application "psql\n", in a transaction since 2026-01-02T03:04:05Z"#
        );
        assert!(Holder { since: None, ..holder.clone() }.to_string().contains("pg_read_all_stats"));
        assert!(Holder { pid: None, ..holder }.to_string().contains("pg_prepared_xacts"));
    }
}
