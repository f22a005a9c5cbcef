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
/// Longest time of counting all rows.
const TOTALS_LIMIT: Duration = Duration::from_secs(60);
/// Operations by time that are read of each balance of a page.
const PAGE_WINDOW: &str = "32";
/// Longest text of an amount that is read of an operation.
const LONGEST: usize = 400;
/// What an audit reads of `balance` beyond what names a row.
const AMOUNTS: &[&str] = &["available", "on_hold", "overdraft_used", "updated_at"];

/// What a digest of rows is made of beyond what an audit reads, as far as the table has it.
pub const FURTHER: [&str; 7] =
    ["account_id", "account_type", "allow_receiving", "allow_sending", "asset_code", "direction", "settings"];

/// What an audit may read of a tenant's tables.
#[derive(Debug, Clone)]
pub struct AuditAccess {
    operations: Result<Readable, String>,
    balance: Readable,
    /// Of [`FURTHER`], those that are read.
    further: Vec<&'static str>,
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

    /// The same with these columns in [`AuditRow::further`], in this order.
    ///
    /// # Errors
    /// The first that can't be read or is none of [`FURTHER`], in words.
    pub fn with_further(&self, columns: &[impl AsRef<str>]) -> Result<Self, String> {
        let further = columns.iter().map(|column| {
            let column = column.as_ref();
            let known = FURTHER.into_iter().find(|known| *known == column);
            let known = known.ok_or_else(|| format!("column {column} can't be compared"))?;
            self.balance.lacks(&[known], "balance").map_or(Ok(known), Err)
        });
        Ok(Self { further: further.collect::<Result<_, _>>()?, ..self.clone() })
    }

    /// The columns in [`AuditRow::further`].
    #[must_use]
    pub fn reads_further(&self) -> &[&'static str] {
        &self.further
    }

    /// Of [`FURTHER`], what can be read, and what is there and can't be.
    #[must_use]
    pub fn further(&self) -> (Vec<&'static str>, Vec<&'static str>) {
        let there = FURTHER.into_iter().filter(|column| self.balance.knows(column));
        there.partition(|column| self.balance.has(column))
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
    /// The columns of [`AuditAccess::with_further`] as a JSON array of texts, as Postgres writes it; empty where there are none.
    pub further: String,
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
        Ok(AuditAccess { operations, balance, further: Vec::new(), estimate, now })
    }

    /// How many rows there are, and the sum of their versions, all at one moment.
    ///
    /// # Errors
    /// As [`Database::audit_page`].
    pub async fn audit_totals(&self, table: &Table) -> Result<(u64, i128), StoreError> {
        let mut session = self.session().await?;
        let limit = TOTALS_LIMIT.min(session.statement_timeout());
        session.run(&Totals { limit, table }).await
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

struct Totals<'s> {
    limit: Duration,
    table: &'s Table,
}

impl Operation for Totals<'_> {
    type Output = (u64, i128);

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.limit(self.limit, LOCK_LIMIT)
            .push("SELECT count(*), coalesce(sum(coalesce(r.version, -1)), 0)::pg_catalog.text FROM ")
            .balances(self.table)?
            .push(" AS r WHERE ")
            .guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let row = answer.rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let (rows, sum): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        let sum = sum.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        Ok((u64::try_from(rows).unwrap_or_default(), sum))
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

impl Rows<'_> {
    fn write_further<'q, 's>(&self, sql: &'q mut Sql<'s>) -> &'q mut Sql<'s> {
        let further = &self.access.further;
        if further.is_empty() {
            return sql.push("''::pg_catalog.text AS further, ");
        }
        sql.push("pg_catalog.jsonb_build_array(");
        for (n, column) in further.iter().enumerate() {
            sql.push(if n == 0 { "r." } else { ", r." }).push(column).push("::pg_catalog.text");
        }
        sql.push(")::pg_catalog.text AS further, ")
    }
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
                extract(epoch FROM v.updated_at)::pg_catalog.float8, v.further",
        );
        if self.access.operations.is_ok() {
            sql.push(", ").push(STATE).push(", extract(epoch FROM o.created_at)::pg_catalog.float8");
        }
        sql.push(" FROM (SELECT ");
        match self.which {
            Which::Page(page) => {
                sql.push("0::pg_catalog.int8 AS n, ");
                self.write_further(sql).push(OF_ROW).balances(self.table)?.push(" AS r WHERE true");
                if let Some(after) = page.after {
                    sql.push(" AND r.id > ").uuid(after);
                }
                if let Some(share) = page.sample {
                    sql.push(" AND (pg_catalog.uuid_hash(r.id) & 65535) < ").number(i64::from(share));
                }
                sql.push(" ORDER BY r.id LIMIT ").number(i64::from(page.rows));
            }
            Which::Ids(ids) => {
                sql.push("u.n, ");
                self.write_further(sql).push(OF_ROW).balances(self.table)?.push(" AS r JOIN unnest(");
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
        further: row.try_get(12)?,
        operation: if with_trail { read_operation(row)? } else { None },
    })
}

fn read_operation(row: &PgRow) -> Result<Option<NewestOperation>, sqlx::Error> {
    let Some(version) = row.try_get(13)? else { return Ok(None) };
    let (available, on_hold): (Option<String>, Option<String>) = (row.try_get(14)?, row.try_get(15)?);
    let overdraft_used: Option<String> = row.try_get(16)?;
    let is_whole = |amount: &Option<String>| amount.as_ref().is_some_and(|amount| amount.len() < LONGEST);
    let unreadable = !is_whole(&available)
        || !is_whole(&on_hold)
        || overdraft_used.as_ref().is_some_and(|amount| amount.len() >= LONGEST);
    Ok(Some(NewestOperation {
        version,
        available: available.unwrap_or_default(),
        on_hold: on_hold.unwrap_or_default(),
        overdraft_used,
        in_doubt: unreadable || row.try_get(17)?,
        created_at: row.try_get::<Option<f64>, _>(18)?.unwrap_or_default(),
    }))
}
