//! Reading rows back, to compare them with what Redis holds.

use sqlx::Row as _;

use crate::classify::StoreError;
use crate::database::Database;
use crate::identifier::Table;
use crate::row::Row;
use crate::session::{Answer, Operation, Session};
use crate::sql::{Sql, Unwritable};
use crate::update::{CHUNK_ROWS, SAME_ROW, amounts, identities, place};

/// A row as it stands in Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// Its version; −1 if it has none.
    pub version: i64,
    /// `available`, as Postgres writes it; `NULL` if it has none. So the other amounts.
    pub available: String,
    /// `on_hold`.
    pub on_hold: String,
    /// `overdraft_used`.
    pub overdraft_used: String,
    /// Whether all three amounts are equal, as numbers, to those it was asked for with.
    pub same_amounts: bool,
    /// Whether it is deleted: nothing is written to it any more.
    pub deleted: bool,
    /// Whether the role may read the amounts. Otherwise they are empty, and count as equal.
    pub readable: bool,
}

impl Database {
    /// The stored rows of these balances, in their order; `None` where there is none under that organization and ledger.
    /// The comparison of amounts is made by Postgres, so that `1.50` and `1.5` are equal at any length.
    ///
    /// # Errors
    /// By class, as for [`Database::update`].
    pub async fn fetch(&self, table: &Table, rows: &[Row<'_>]) -> Result<Vec<Option<StoredRow>>, StoreError> {
        let mut stored = Vec::with_capacity(rows.len());
        if rows.is_empty() {
            return Ok(stored);
        }
        let mut session = self.session().await?;
        let rows: Vec<&Row<'_>> = rows.iter().collect();
        for chunk in rows.chunks(CHUNK_ROWS) {
            stored.append(&mut session.run(&Compare { table, rows: chunk }).await?);
        }
        Ok(stored)
    }
}

impl Session {
    /// As [`Database::fetch`], on this connection. Also where the role may not read amounts.
    ///
    /// # Errors
    /// By class, as for [`Database::update`].
    pub async fn fetch(
        &mut self,
        table: &Table,
        rows: &[Row<'_>],
    ) -> Result<Vec<Option<StoredRow>>, StoreError> {
        let mut stored = Vec::with_capacity(rows.len());
        let rows: Vec<&Row<'_>> = rows.iter().collect();
        for chunk in rows.chunks(CHUNK_ROWS) {
            if table.amounts_are_hidden() {
                let versions = self.run(&Versions { table, rows: chunk }).await?;
                stored.extend(versions.into_iter().map(|row| row.map(StoredRow::of_version)));
            } else {
                stored.append(&mut self.run(&Compare { table, rows: chunk }).await?);
            }
        }
        Ok(stored)
    }
}

impl StoredRow {
    fn of_version(row: StoredVersion) -> Self {
        Self {
            version: row.version,
            available: String::new(),
            on_hold: String::new(),
            overdraft_used: String::new(),
            same_amounts: true,
            deleted: row.deleted,
            readable: false,
        }
    }
}

/// The version of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredVersion {
    /// Its version; −1 if it has none.
    pub version: i64,
    /// Whether it is deleted: nothing is written to it any more.
    pub deleted: bool,
}

impl StoredVersion {
    /// Its version, unless it is deleted.
    #[must_use]
    pub fn undeleted(self) -> Option<i64> {
        (!self.deleted).then_some(self.version)
    }
}

impl Database {
    /// The stored versions of these balances, in their order; `None` where there is no row under that organization and ledger. The
    /// amounts are neither sent nor read.
    ///
    /// # Errors
    /// By class, as for [`Database::update`].
    pub async fn versions(
        &self,
        table: &Table,
        rows: &[Row<'_>],
    ) -> Result<Vec<Option<StoredVersion>>, StoreError> {
        let mut stored = Vec::with_capacity(rows.len());
        if rows.is_empty() {
            return Ok(stored);
        }
        let mut session = self.session().await?;
        let rows: Vec<&Row<'_>> = rows.iter().collect();
        for chunk in rows.chunks(CHUNK_ROWS) {
            stored.append(&mut session.run(&Versions { table, rows: chunk }).await?);
        }
        Ok(stored)
    }
}

struct Versions<'s> {
    table: &'s Table,
    rows: &'s [&'s Row<'s>],
}

impl Operation for Versions<'_> {
    type Output = Vec<Option<StoredVersion>>;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push(
            "SELECT v.n, coalesce(b.version, -1)::pg_catalog.int8, b.deleted_at IS NOT NULL FROM unnest(",
        );
        identities(sql, self.rows);
        sql.push(") WITH ORDINALITY AS v(id, organization_id, ledger_id, n) JOIN ");
        sql.balances(self.table)?.push(" AS b ON ").push(SAME_ROW);
        sql.push(" WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let mut stored = vec![None; self.rows.len()];
        for row in answer.rows {
            place(
                &mut stored,
                row.try_get(0)?,
                StoredVersion { version: row.try_get(1)?, deleted: row.try_get(2)? },
            );
        }
        Ok(stored)
    }
}

struct Compare<'s> {
    table: &'s Table,
    rows: &'s [&'s Row<'s>],
}

impl Operation for Compare<'_> {
    type Output = Vec<Option<StoredRow>>;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push(
            "SELECT v.n, coalesce(b.version, -1)::pg_catalog.int8, \
                    coalesce(b.available::pg_catalog.text, 'NULL'), coalesce(b.on_hold::pg_catalog.text, 'NULL'), \
                    coalesce(b.overdraft_used::pg_catalog.text, 'NULL'), \
                    (b.available, b.on_hold, b.overdraft_used) IS NOT DISTINCT FROM \
                    (v.available, v.on_hold, v.overdraft_used), \
                    b.deleted_at IS NOT NULL \
             FROM unnest(",
        );
        identities(sql, self.rows);
        sql.push(", ");
        amounts(sql, self.rows)?;
        sql.push(
            ") WITH ORDINALITY AS v(id, organization_id, ledger_id, available, on_hold, overdraft_used, n) JOIN ",
        );
        sql.balances(self.table)?.push(" AS b ON ").push(SAME_ROW);
        sql.push(" WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let mut stored = vec![None; self.rows.len()];
        for row in answer.rows {
            let value = StoredRow {
                version: row.try_get(1)?,
                available: row.try_get(2)?,
                on_hold: row.try_get(3)?,
                overdraft_used: row.try_get(4)?,
                same_amounts: row.try_get(5)?,
                deleted: row.try_get(6)?,
                readable: true,
            };
            place(&mut stored, row.try_get(0)?, value);
        }
        Ok(stored)
    }
}
