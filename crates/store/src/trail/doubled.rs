//! Balances of which the trail has two states at one version: two histories that counted on from the same state.
//!
//! That is what a Redis that fell back leaves behind. The ledger goes on from the older value and gives the next mutations the
//! versions that the lost ones had. Once the new history has passed the row's version, row and Redis agree again, and only the
//! operations still show that one of the histories is missing in the balance.
//!
//! Pages follow the primary key. Of each balance the operations since a time are read, through the index that the ledger keeps for a
//! balance's latest operations. Annotations, operations without a version and deleted ones are no states.

use std::time::Duration;

use sqlx::Row as _;
use uuid::Uuid;

use super::{Columns, LOCK_LIMIT, LOOK_LIMIT, OF_BALANCE, OF_OPERATION, Readable, shown};
use crate::classify::{ErrorClass, StoreError};
use crate::database::Database;
use crate::identifier::Table;
use crate::session::{Answer, Operation};
use crate::sql::{Sql, Unwritable};

/// The amounts after an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// `available`.
    pub available: String,
    /// `on_hold`.
    pub on_hold: String,
}

/// A balance with two states at one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubled {
    /// Its organization.
    pub organization: Uuid,
    /// Its ledger.
    pub ledger: Uuid,
    /// The alias of its account.
    pub alias: String,
    /// Its key.
    pub key: String,
    /// The version of its row; −1 if it has none.
    pub row_version: i64,
    /// The lowest version that has two states.
    pub version: i64,
    /// What the first operation led to.
    pub first: Side,
    /// What the last operation led to.
    pub last: Side,
    /// How many versions have several states.
    pub versions: i64,
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoubledPage {
    /// Those of the page with two states at one version.
    pub doubled: Vec<Doubled>,
    /// The last balance of the page: the next one begins after it. `None` = this was the last page.
    pub last: Option<Uuid>,
}

impl Database {
    /// Of so many balances after this one those of which operations made since `since` (seconds since 1970) led to different amounts
    /// at one version. The inner error says in words why the trail can't be read.
    ///
    /// # Errors
    /// By class, as for [`Database::update`]. [`StoreError::is_statement_timeout`]: a shorter page may be had in time.
    pub async fn doubled_versions(
        &self,
        table: &Table,
        after: Option<Uuid>,
        rows: u16,
        since: f64,
    ) -> Result<Result<DoubledPage, String>, StoreError> {
        let mut session = self.session().await?;
        let (balance, operations) = session.run(&Columns { table }).await?;
        if balance.is_empty() {
            return Err(StoreError::new(ErrorClass::NotProvisioned, format!("there is no table {table}")));
        }
        if let Some(why) =
            balance.lacks(OF_BALANCE, "balance").or_else(|| operations.lacks(OF_OPERATION, "operation"))
        {
            return Ok(Err(why));
        }
        let limit = LOOK_LIMIT.min(session.statement_timeout());
        match session.run(&Page { table, columns: &operations, after, rows, since, limit }).await {
            Ok(page) => Ok(Ok(page)),
            // Such as row security, which the grants don't show.
            Err(error) if matches!(error.class(), ErrorClass::Permission | ErrorClass::RowSecurity) => {
                Ok(Err(shown(error.message())))
            }
            Err(error) => Err(error),
        }
    }
}

struct Page<'s> {
    table: &'s Table,
    columns: &'s Readable,
    after: Option<Uuid>,
    rows: u16,
    since: f64,
    limit: Duration,
}

impl Operation for Page<'_> {
    type Output = DoubledPage;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        let time = match self.columns.has("recorded_at") {
            true => "coalesce(o.recorded_at, o.created_at)",
            false => "o.created_at",
        };
        sql.limit(self.limit, LOCK_LIMIT).push(
            "SELECT p.id, p.organization_id, p.ledger_id, p.alias, coalesce(p.key, 'default'), \
                    coalesce(p.version, -1)::pg_catalog.int8, d.version, d.available, d.on_hold, \
                    d.last_available, d.last_on_hold, d.versions FROM \
               (SELECT b.id, b.organization_id, b.ledger_id, b.account_id, b.alias, b.key, b.version FROM ",
        );
        sql.balances(self.table)?.push(" AS b WHERE b.deleted_at IS NULL");
        if let Some(after) = self.after {
            sql.push(" AND b.id > ").uuid(after);
        }
        sql.push(" ORDER BY b.id LIMIT ").number(i64::from(self.rows));
        // Both sides in the order in which they were written.
        sql.push(
            ") AS p LEFT JOIN LATERAL (SELECT v.version, v.available[1] AS available, v.on_hold[1] AS on_hold, \
                v.available[v.states] AS last_available, v.on_hold[v.states] AS last_on_hold, \
                pg_catalog.count(*) OVER () AS versions FROM \
               (SELECT o.balance_version_after::pg_catalog.int8 AS version, \
                   pg_catalog.count(*)::pg_catalog.int4 AS states, \
                   pg_catalog.array_agg(pg_catalog.left(o.available_balance_after::pg_catalog.text, 400) \
                       ORDER BY o.created_at, o.id) AS available, \
                   pg_catalog.array_agg(pg_catalog.left(o.on_hold_balance_after::pg_catalog.text, 400) \
                       ORDER BY o.created_at, o.id) AS on_hold FROM ",
        );
        sql.table(self.table, "operation")?.push(
            " AS o WHERE o.organization_id = p.organization_id AND o.ledger_id = p.ledger_id \
                AND o.account_id = p.account_id AND o.balance_id = p.id AND o.deleted_at IS NULL \
                AND o.balance_version_after IS NOT NULL",
        );
        if self.columns.has("balance_affected") {
            sql.push(" AND coalesce(o.balance_affected, true)");
        }
        sql.push(" AND ").push(time).push(" >= pg_catalog.to_timestamp((");
        sql.text(&format!("{:.3}", self.since.max(0.0))).push(
            ")::pg_catalog.float8) GROUP BY o.balance_version_after \
                HAVING pg_catalog.min(o.available_balance_after) <> pg_catalog.max(o.available_balance_after) \
                    OR pg_catalog.min(o.on_hold_balance_after) <> pg_catalog.max(o.on_hold_balance_after)) AS v \
                ORDER BY v.version LIMIT 1) AS d ON true WHERE ",
        );
        sql.guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let full = answer.rows.len() >= usize::from(self.rows);
        let mut page = DoubledPage { doubled: Vec::new(), last: None };
        let mut last: Option<Uuid> = None;
        for row in answer.rows {
            last = last.max(Some(row.try_get(0)?));
            let (organization, ledger): (Option<Uuid>, Option<Uuid>) = (row.try_get(1)?, row.try_get(2)?);
            let (alias, version): (Option<String>, Option<i64>) = (row.try_get(3)?, row.try_get(6)?);
            let (Some(organization), Some(ledger), Some(alias), Some(version)) =
                (organization, ledger, alias, version)
            else {
                continue;
            };
            let amount =
                |at: usize| row.try_get::<Option<String>, _>(at).map(|amount| amount.unwrap_or_default());
            page.doubled.push(Doubled {
                organization,
                ledger,
                alias,
                key: row.try_get(4)?,
                row_version: row.try_get(5)?,
                version,
                first: Side { available: amount(7)?, on_hold: amount(8)? },
                last: Side { available: amount(9)?, on_hold: amount(10)? },
                versions: row.try_get(11)?,
            });
        }
        page.last = last.filter(|_| full);
        Ok(page)
    }
}
