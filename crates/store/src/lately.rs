//! Balances of which the ledger's trail has newer operations than their rows have versions, page by page.
//!
//! For a tenant whose Redis has lost data: what was scheduled there is not known any more, and the trail is what is left. Pages
//! follow the primary key. Of each balance only the operations since a time are read, through the index that the ledger keeps
//! for a balance's latest operations.

use std::time::Duration;

use sqlx::Row as _;
use uuid::Uuid;

use crate::{
    classify::{ErrorClass, StoreError},
    database::Database,
    identifier::Table,
    session::{Answer, Operation},
    sql::{Sql, Unwritable},
    trail::{Columns, LOCK_LIMIT, LOOK_LIMIT, OF_BALANCE, OF_OPERATION, Readable, shown},
};

/// A balance with an operation that its row lacks, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Its organization.
    pub organization: Uuid,
    /// Its ledger.
    pub ledger: Uuid,
    /// The alias of its account.
    pub alias: String,
    /// Its key.
    pub key: String,
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BehindPage {
    /// Those of the page that are behind the trail.
    pub behind: Vec<Behind>,
    /// The last balance of the page: the next one begins after it. `None` = this was the last page.
    pub last: Option<Uuid>,
}

impl Database {
    /// Of so many balances after this one those that are behind operations made since `since` (seconds since 1970). The inner error
    /// says in words why the trail can't be read.
    ///
    /// # Errors
    /// By class, as for [`Database::update`]. [`StoreError::is_statement_timeout`]: a shorter page may be had in time.
    pub async fn behind_trail(
        &self,
        table: &Table,
        after: Option<Uuid>,
        rows: u16,
        since: f64,
    ) -> Result<Result<BehindPage, String>, StoreError> {
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
        let page = BehindTrail { table, columns: &operations, after, rows, since, limit };
        match session.run(&page).await {
            Ok(page) => Ok(Ok(page)),
            // Such as row security, which the grants don't show.
            Err(error) if matches!(error.class(), ErrorClass::Permission | ErrorClass::RowSecurity) => {
                Ok(Err(shown(error.message())))
            }
            Err(error) => Err(error),
        }
    }
}

struct BehindTrail<'s> {
    table: &'s Table,
    columns: &'s Readable,
    after: Option<Uuid>,
    rows: u16,
    since: f64,
    limit: Duration,
}

impl Operation for BehindTrail<'_> {
    type Output = BehindPage;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.limit(self.limit, LOCK_LIMIT).push(
            "SELECT p.id, p.organization_id, p.ledger_id, p.alias, coalesce(p.key, 'default'), e.behind FROM \
               (SELECT b.id, b.organization_id, b.ledger_id, b.account_id, b.alias, b.key, b.version FROM ",
        );
        sql.balances(self.table)?.push(" AS b WHERE b.deleted_at IS NULL");
        if let Some(after) = self.after {
            sql.push(" AND b.id > ").uuid(after);
        }
        sql.push(" ORDER BY b.id LIMIT ").number(i64::from(self.rows));
        sql.push(") AS p CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM ");
        sql.table(self.table, "operation")?.push(
            " AS o WHERE o.organization_id = p.organization_id AND o.ledger_id = p.ledger_id \
                AND o.account_id = p.account_id AND o.balance_id = p.id AND o.deleted_at IS NULL \
                AND o.balance_version_after > coalesce(p.version, -1)",
        );
        if self.columns.has("balance_affected") {
            sql.push(" AND coalesce(o.balance_affected, true)");
        }
        sql.push(if self.columns.has("recorded_at") {
            " AND coalesce(o.recorded_at, o.created_at)"
        } else {
            " AND o.created_at"
        });
        sql.push(" >= pg_catalog.to_timestamp((").text(&format!("{:.3}", self.since.max(0.0)));
        sql.push(")::pg_catalog.float8)) AS behind) AS e WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let full = answer.rows.len() >= usize::from(self.rows);
        let mut page = BehindPage { behind: Vec::new(), last: None };
        let mut last: Option<Uuid> = None;
        for row in answer.rows {
            last = last.max(Some(row.try_get(0)?));
            if !row.try_get::<bool, _>(5)? {
                continue;
            }
            let (organization, ledger): (Option<Uuid>, Option<Uuid>) = (row.try_get(1)?, row.try_get(2)?);
            let alias: Option<String> = row.try_get(3)?;
            if let (Some(organization), Some(ledger), Some(alias)) = (organization, ledger, alias) {
                page.behind.push(Behind { organization, ledger, alias, key: row.try_get(4)? });
            }
        }
        page.last = last.filter(|_| full);
        Ok(page)
    }
}
