//! The ledger's table of records that it has given up replaying (4.x). It is counted and never touched.

use std::time::Duration;

use sqlx::Row as _;

use crate::classify::StoreError;
use crate::database::Database;
use crate::identifier::Table;
use crate::session::{Answer, Operation};
use crate::sql::{Sql, Unwritable};
use crate::trail::{LOCK_LIMIT, Readable, shown};

/// The table.
const TABLE: &str = "transaction_backup_quarantine";
/// Rows are counted up to here.
const MOST: i64 = 100_000;
/// Longest time of the count: no index leads by time.
const LIMIT: Duration = Duration::from_secs(5);

/// What is in the ledger's table of records that it has given up replaying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupQuarantine {
    /// There is no such table: an older ledger.
    Absent,
    /// It can't be read, as the words say.
    Unreadable(String),
    /// Its rows.
    Rows {
        /// How many.
        rows: u64,
        /// There are more than that, which are not counted.
        more: bool,
        /// When the oldest of those counted was put there, in milliseconds since 1970.
        oldest_at_ms: Option<i64>,
    },
}

impl Database {
    /// Looks into the ledger's table of records that it has given up replaying.
    ///
    /// # Errors
    /// What keeps the database from being asked, by class. A table that the role can't read is no error.
    pub async fn backup_quarantine(&self, table: &Table) -> Result<BackupQuarantine, StoreError> {
        let mut session = self.session().await?;
        let columns = session.run(&Columns { table }).await?;
        if columns.is_empty() {
            return Ok(BackupQuarantine::Absent);
        }
        if let Some(why) = columns.lacks(&["quarantined_at"], TABLE) {
            return Ok(BackupQuarantine::Unreadable(why));
        }
        let limit = LIMIT.min(session.statement_timeout());
        match session.run(&Count { table, limit }).await {
            Ok(rows) => Ok(rows),
            Err(error) if error.sqlstate() == Some("57014") => {
                Ok(BackupQuarantine::Unreadable(format!("counting {TABLE} took longer than {limit:?}")))
            }
            // A migration that holds the table, row security, which the grants don't show, or another table of that name.
            Err(error)
                if error
                    .sqlstate()
                    .is_some_and(|state| state == "55P03" || ["22", "42"].contains(&&state[..2])) =>
            {
                Ok(BackupQuarantine::Unreadable(shown(error.message())))
            }
            Err(error) => Err(error),
        }
    }
}

struct Columns<'s> {
    table: &'s Table,
}

impl Operation for Columns<'_> {
    type Output = Readable;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push(
            "SELECT a.attname::pg_catalog.text, pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT') \
             FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = ",
        );
        sql.regclass(self.table, TABLE)?.push(" AND a.attnum > 0 AND NOT a.attisdropped AND ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Readable, sqlx::Error> {
        answer.rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }
}

struct Count<'s> {
    table: &'s Table,
    limit: Duration,
}

impl Operation for Count<'_> {
    type Output = BackupQuarantine;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.limit(self.limit, LOCK_LIMIT).push(
            "SELECT pg_catalog.count(*), \
                    pg_catalog.floor(extract(epoch FROM pg_catalog.min(q.quarantined_at) FILTER (WHERE pg_catalog.isfinite(q.quarantined_at))) * 1000)::pg_catalog.int8 \
             FROM (SELECT r.quarantined_at FROM ",
        );
        sql.table(self.table, TABLE)?.push(" AS r LIMIT ").number(MOST + 1).push(") AS q WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<BackupQuarantine, sqlx::Error> {
        let row = answer.rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let rows: i64 = row.try_get(0)?;
        Ok(BackupQuarantine::Rows {
            rows: rows.clamp(0, MOST).unsigned_abs(),
            more: rows > MOST,
            oldest_at_ms: row.try_get(1)?,
        })
    }
}
