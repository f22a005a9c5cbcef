//! Finding rows by what people know of a balance. For people; nothing is changed.

use sqlx::{AssertSqlSafe, PgConnection, Row as _, SqlSafeStr, SqlStr};
use uuid::Uuid;

use crate::classify::StoreError;
use crate::database::Database;
use crate::identifier::Table;
use crate::session::Operation;

/// Rows in one answer at most.
const MOST: i64 = 50;

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
        let sql = AssertSqlSafe(sql(table.as_sql(), sought)).into_sql_str();
        let mut session = self.session().await?;
        session.run(&LookUp { sql, sought }).await
    }
}

/// With conditions on what is known only, so that an index can be used.
fn sql(table: &str, sought: &Sought<'_>) -> String {
    let known = [
        ("id", "uuid", sought.id.is_some()),
        ("organization_id", "uuid", sought.organization.is_some()),
        ("ledger_id", "uuid", sought.ledger.is_some()),
        ("alias", "text", sought.alias.is_some()),
        ("key", "text", sought.key.is_some()),
    ];
    let conditions: Vec<String> = known
        .iter()
        .enumerate()
        .map(|(n, (column, kind, known))| {
            let place = n + 1;
            // All are bound in any case: the text of the statement says which of them count.
            if *known { format!("{column} = ${place}::{kind}") } else { format!("${place}::{kind} IS NULL") }
        })
        .collect();
    format!(
        "SELECT id, organization_id, ledger_id, coalesce(alias, ''), coalesce(key, 'default'), coalesce(version, -1), \
                extract(epoch FROM updated_at)::numeric(20, 6)::text, deleted_at IS NOT NULL, \
                coalesce(available::text, 'NULL'), coalesce(on_hold::text, 'NULL'), \
                coalesce(overdraft_used::text, 'NULL') \
         FROM {table} WHERE {} ORDER BY deleted_at NULLS FIRST, id LIMIT {MOST}",
        conditions.join(" AND ")
    )
}

struct LookUp<'s> {
    sql: SqlStr,
    sought: &'s Sought<'s>,
}

impl Operation for LookUp<'_> {
    type Output = Vec<FoundRow>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, sqlx::Error> {
        let rows = sqlx::query(self.sql.clone())
            // Asked rarely, in many forms: not worth a place among the prepared ones.
            .persistent(false)
            .bind(self.sought.id)
            .bind(self.sought.organization)
            .bind(self.sought.ledger)
            .bind(self.sought.alias)
            .bind(self.sought.key)
            .fetch_all(connection)
            .await?;
        rows.into_iter()
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
