//! Rows page by page, each with the newest operation of its balance: two of the witnesses of an audit.
//!
//! A page is one statement of its own, bounded in rows and in time, so no transaction stays open and none is long. Of each
//! balance the last 32 operations by time are read, where finding out about one lost balance reads 500 (`trail.rs`): a page has
//! a thousand balances, and whatever looks wrong in it is looked at once more with the larger window.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::classify::{ErrorClass, StoreError};
use crate::database::Database;
use crate::identifier::{BALANCE, Table};
use crate::session::{Answer, Operation};
use crate::sql::{Sql, Unwritable};
use crate::trail::{
    Columns, LOCK_LIMIT, OF_BALANCE, OF_OPERATION, Readable, STATE, WINDOW, newest_operation,
};
use crate::update::place;

/// Longest time of one statement.
const LIMIT: Duration = Duration::from_secs(5);
/// Operations by time that are read of each balance of a page.
const PAGE_WINDOW: &str = "32";
/// Longest text of an amount that is read of an operation.
const LONGEST: usize = 400;
/// What an audit reads of `balance` beyond what names a row.
const AMOUNTS: &[&str] = &["available", "on_hold", "overdraft_used", "updated_at"];

/// What an audit may read of a tenant's tables.
#[derive(Debug, Clone)]
pub struct AuditAccess {
    operations: Result<Readable, String>,
    /// About how many rows there are, where Postgres has counted.
    pub estimate: Option<u64>,
    /// Postgres's clock, in seconds since 1970.
    pub now: f64,
}

impl AuditAccess {
    /// Why the trail can't be read, in words; `None` if it can.
    #[must_use]
    pub fn without_trail(&self) -> Option<&str> {
        self.operations.as_ref().err().map(String::as_str)
    }

    /// The same without the trail.
    #[must_use]
    pub fn blind(&self, why: &str) -> Self {
        Self { operations: Err(why.to_owned()), ..self.clone() }
    }
}

/// Which rows make a page.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuditPage {
    /// Behind this id; `None` = from the beginning.
    pub after: Option<Uuid>,
    /// At most so many.
    pub rows: u16,
    /// Only so many of 65,536 rows, always the same ones.
    pub sample: Option<u16>,
}

/// A row, and the newest operation of its balance.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    /// Its id.
    pub id: Uuid,
    /// Its organization and ledger; `None` if it lacks one, so that no member leads to it.
    pub ledger: Option<(Uuid, Uuid)>,
    /// Its alias.
    pub alias: String,
    /// Its key.
    pub key: String,
    /// Its version; −1 if it has none.
    pub version: i64,
    /// `available`, as Postgres writes it; `NULL` if it has none. So the other amounts.
    pub available: String,
    /// `on_hold`.
    pub on_hold: String,
    /// `overdraft_used`.
    pub overdraft_used: String,
    /// Whether it is deleted.
    pub deleted: bool,
    /// When it was written last, in seconds since 1970.
    pub updated_at: Option<f64>,
    /// The newest operation, if the trail can be read and has one.
    pub operation: Option<NewestOperation>,
}

/// The newest operation of a balance.
#[derive(Debug, Clone, PartialEq)]
pub struct NewestOperation {
    /// The version it led to.
    pub version: i64,
    /// `available` after it.
    pub available: String,
    /// `on_hold` after it.
    pub on_hold: String,
    /// `overdraft_used` after it, as its snapshot has it; `None` where there is no snapshot.
    pub overdraft_used: Option<String>,
    /// Its amounts may differ from the true ones: it repaid an overdraft, or has amounts that can't be read.
    pub in_doubt: bool,
    /// When it was created, in seconds since 1970.
    pub created_at: f64,
}

impl Database {
    /// What an audit may read here.
    ///
    /// # Errors
    /// By class, as for [`Database::update`]; [`ErrorClass::Permission`] names the grants on `balance` that are missing.
    pub async fn audit_access(&self, table: &Table) -> Result<AuditAccess, StoreError> {
        let mut session = self.session().await?;
        let (balance, operations) = session.run(&Columns { table }).await?;
        if balance.is_empty() {
            return Err(StoreError::new(ErrorClass::NotProvisioned, format!("there is no table {table}")));
        }
        let needed: Vec<&str> = OF_BALANCE.iter().chain(AMOUNTS).copied().collect();
        if let Some(why) = balance.lacks(&needed, "balance") {
            return Err(StoreError::new(ErrorClass::Permission, why));
        }
        let operations = match operations.lacks(OF_OPERATION, "operation") {
            Some(why) => Err(why),
            None => Ok(operations),
        };
        let (estimate, now) = session.run(&Estimate { table }).await?;
        Ok(AuditAccess { operations, estimate, now })
    }

    /// One page of rows in the order of their ids, each with its newest operation. The page is the last one if it has fewer rows than
    /// were asked for.
    ///
    /// # Errors
    /// By class, as for [`Database::update`]. [`StoreError::is_statement_timeout`]: a shorter page may be had in time.
    pub async fn audit_page(
        &self,
        table: &Table,
        access: &AuditAccess,
        page: AuditPage,
    ) -> Result<Vec<AuditRow>, StoreError> {
        let mut session = self.session().await?;
        let limit = LIMIT.min(session.statement_timeout());
        let rows = Rows { limit, table, access, which: Which::Page(page), window: PAGE_WINDOW };
        let mut rows: Vec<AuditRow> = session.run(&rows).await?.into_iter().map(|(_, row)| row).collect();
        rows.sort_unstable_by_key(|row| row.id);
        Ok(rows)
    }

    /// The rows of these ids in their order, whatever their organization and ledger, each with its newest operation.
    ///
    /// # Errors
    /// As [`Database::audit_page`].
    pub async fn audit_rows(
        &self,
        table: &Table,
        access: &AuditAccess,
        ids: &[Uuid],
    ) -> Result<Vec<Option<AuditRow>>, StoreError> {
        let mut found = vec![None; ids.len()];
        if !ids.is_empty() {
            let mut session = self.session().await?;
            let limit = LIMIT.min(session.statement_timeout());
            let rows = Rows { limit, table, access, which: Which::Ids(ids), window: WINDOW };
            for (n, row) in session.run(&rows).await? {
                place(&mut found, n, row);
            }
        }
        Ok(found)
    }
}

/// About how many rows there are, and what time it is.
struct Estimate<'s> {
    table: &'s Table,
}

impl Operation for Estimate<'_> {
    type Output = (Option<u64>, f64);

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push("SELECT (SELECT c.reltuples::pg_catalog.int8 FROM pg_catalog.pg_class AS c WHERE c.oid = ");
        sql.regclass(self.table, BALANCE)?;
        sql.push("), extract(epoch FROM pg_catalog.clock_timestamp())::pg_catalog.float8 WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let row = answer.rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let estimate: Option<i64> = row.try_get(0)?;
        // Negative: not counted yet.
        Ok((estimate.and_then(|rows| u64::try_from(rows).ok()), row.try_get(1)?))
    }
}

#[derive(Clone, Copy)]
enum Which<'s> {
    Page(AuditPage),
    Ids(&'s [Uuid]),
}

/// Rows, each with its newest operation.
struct Rows<'s> {
    limit: Duration,
    table: &'s Table,
    access: &'s AuditAccess,
    which: Which<'s>,
    window: &'static str,
}

/// What is read of a row `r`, for the names by which [`newest_operation`] knows it.
const OF_ROW: &str = "r.id AS balance_id, r.organization_id, r.ledger_id, r.account_id, r.alias, r.key, r.version, \
    r.available, r.on_hold, r.overdraft_used, r.deleted_at, r.updated_at FROM ";

impl Operation for Rows<'_> {
    type Output = Vec<(i64, AuditRow)>;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.limit(self.limit, LOCK_LIMIT).push(
            "SELECT v.n, v.balance_id, v.organization_id, v.ledger_id, coalesce(v.alias, ''), \
                coalesce(v.key, 'default'), coalesce(v.version, -1)::pg_catalog.int8, \
                coalesce(v.available::pg_catalog.text, 'NULL'), coalesce(v.on_hold::pg_catalog.text, 'NULL'), \
                coalesce(v.overdraft_used::pg_catalog.text, 'NULL'), v.deleted_at IS NOT NULL, \
                extract(epoch FROM v.updated_at)::pg_catalog.float8",
        );
        if self.access.operations.is_ok() {
            sql.push(", ").push(STATE).push(", extract(epoch FROM o.created_at)::pg_catalog.float8");
        }
        sql.push(" FROM (SELECT ");
        match self.which {
            Which::Page(page) => {
                sql.push("0::pg_catalog.int8 AS n, ")
                    .push(OF_ROW)
                    .balances(self.table)?
                    .push(" AS r WHERE true");
                if let Some(after) = page.after {
                    sql.push(" AND r.id > ").uuid(after);
                }
                if let Some(share) = page.sample {
                    sql.push(" AND (pg_catalog.uuid_hash(r.id) & 65535) < ").number(i64::from(share));
                }
                sql.push(" ORDER BY r.id LIMIT ").number(i64::from(page.rows));
            }
            Which::Ids(ids) => {
                sql.push("u.n, ").push(OF_ROW).balances(self.table)?.push(" AS r JOIN unnest(");
                sql.uuids(ids.iter().copied()).push(") WITH ORDINALITY AS u(id, n) ON r.id = u.id");
            }
        }
        sql.push(") AS v");
        if let Ok(columns) = &self.access.operations {
            sql.push(" LEFT JOIN LATERAL ");
            newest_operation(sql, self.table, columns, self.window)?;
            sql.push(" AS o ON true");
        }
        sql.push(" WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let with_trail = self.access.operations.is_ok();
        answer.rows.into_iter().map(|row| Ok((row.try_get(0)?, read_row(&row, with_trail)?))).collect()
    }
}

fn read_row(row: &PgRow, with_trail: bool) -> Result<AuditRow, sqlx::Error> {
    let (organization, ledger): (Option<Uuid>, Option<Uuid>) = (row.try_get(2)?, row.try_get(3)?);
    Ok(AuditRow {
        id: row.try_get(1)?,
        ledger: organization.zip(ledger),
        alias: row.try_get(4)?,
        key: row.try_get(5)?,
        version: row.try_get(6)?,
        available: row.try_get(7)?,
        on_hold: row.try_get(8)?,
        overdraft_used: row.try_get(9)?,
        deleted: row.try_get(10)?,
        updated_at: row.try_get(11)?,
        operation: if with_trail { read_operation(row)? } else { None },
    })
}

fn read_operation(row: &PgRow) -> Result<Option<NewestOperation>, sqlx::Error> {
    let Some(version) = row.try_get(12)? else { return Ok(None) };
    let (available, on_hold): (Option<String>, Option<String>) = (row.try_get(13)?, row.try_get(14)?);
    let overdraft_used: Option<String> = row.try_get(15)?;
    let is_whole = |amount: &Option<String>| amount.as_ref().is_some_and(|amount| amount.len() < LONGEST);
    let unreadable = !is_whole(&available)
        || !is_whole(&on_hold)
        || overdraft_used.as_ref().is_some_and(|amount| amount.len() >= LONGEST);
    Ok(Some(NewestOperation {
        version,
        available: available.unwrap_or_default(),
        on_hold: on_hold.unwrap_or_default(),
        overdraft_used,
        in_doubt: unreadable || row.try_get(16)?,
        created_at: row.try_get::<Option<f64>, _>(17)?.unwrap_or_default(),
    }))
}
