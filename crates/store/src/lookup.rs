//! Finding rows by what people know of a balance. For people; nothing is changed.

use sqlx::Row as _;
use uuid::Uuid;

use crate::classify::StoreError;
use crate::database::Database;
use crate::identifier::Table;
use crate::session::{Answer, Operation};
use crate::sql::{Sql, Unwritable};

/// What a row is known by. What is absent may be anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sought<'a> {
    /// Its id.
    pub id: Option<Uuid>,
    /// Its organization.
    pub organization: Option<Uuid>,
    /// Its ledger.
    pub ledger: Option<Uuid>,
    /// Its alias.
    pub alias: Option<&'a str>,
    /// Its key.
    pub key: Option<&'a str>,
}

/// A row as it stands in Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRow {
    /// Its id.
    pub id: Uuid,
    /// Its organization.
    pub organization: Option<Uuid>,
    /// Its ledger.
    pub ledger: Option<Uuid>,
    /// Its alias.
    pub alias: String,
    /// Its key.
    pub key: String,
    /// Its version; −1 if it has none.
    pub version: i64,
    /// When it was written last, in seconds since 1970 with six decimals.
    pub updated_at: Option<String>,
    /// Whether it is deleted: the sync leaves it alone.
    pub deleted: bool,
    /// `available`, as Postgres writes it; `NULL` if it has none. So the other amounts.
    pub available: String,
    /// `on_hold`.
    pub on_hold: String,
    /// `overdraft_used`.
    pub overdraft_used: String,
}

impl Database {
    /// The rows that fit, those that aren't deleted first; some at most.
    ///
    /// # Errors
    /// By class, as for [`Database::update`]. Without organization and ledger there is no index for it, and the statement
    /// timeout ends it in a large table.
    pub async fn look_up(&self, table: &Table, sought: &Sought<'_>) -> Result<Vec<FoundRow>, StoreError> {
        let mut session = self.session().await?;
        session.run(&LookUp { table, sought }).await
    }
}

struct LookUp<'s> {
    table: &'s Table,
    sought: &'s Sought<'s>,
}

impl Operation for LookUp<'_> {
    type Output = Vec<FoundRow>;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push(
            "SELECT id, organization_id, ledger_id, coalesce(alias, ''), coalesce(key, 'default'), \
                    coalesce(version, -1)::pg_catalog.int8, \
                    extract(epoch FROM updated_at)::pg_catalog.numeric(20, 6)::pg_catalog.text, \
                    deleted_at IS NOT NULL, coalesce(available::pg_catalog.text, 'NULL'), \
                    coalesce(on_hold::pg_catalog.text, 'NULL'), coalesce(overdraft_used::pg_catalog.text, 'NULL') \
             FROM ",
        );
        sql.balances(self.table)?.push(" WHERE ").guard();
        // With conditions on what is known only, so that an index can be used.
        let Sought { id, organization, ledger, alias, key } = *self.sought;
        for (condition, id) in
            [(" AND id = ", id), (" AND organization_id = ", organization), (" AND ledger_id = ", ledger)]
        {
            if let Some(id) = id {
                sql.push(condition).uuid(id);
            }
        }
        for (condition, text) in [(" AND alias = ", alias), (" AND key = ", key)] {
            if let Some(text) = text {
                sql.push(condition).text(text);
            }
        }
        sql.push(" ORDER BY deleted_at NULLS FIRST, id LIMIT 50");
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        answer
            .rows
            .into_iter()
            .map(|row| {
                Ok(FoundRow {
                    id: row.try_get(0)?,
                    organization: row.try_get(1)?,
                    ledger: row.try_get(2)?,
                    alias: row.try_get(3)?,
                    key: row.try_get(4)?,
                    version: row.try_get(5)?,
                    updated_at: row.try_get(6)?,
                    deleted: row.try_get(7)?,
                    available: row.try_get(8)?,
                    on_hold: row.try_get(9)?,
                    overdraft_used: row.try_get(10)?,
                })
            })
            .collect()
    }
}
