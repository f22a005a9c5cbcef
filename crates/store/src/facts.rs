//! What a database is like for this role, for people who set a fleet up. Nothing is changed.

use sqlx::Row as _;

use crate::classify::StoreError;
use crate::database::Database;
use crate::identifier::{BALANCE, Table};
use crate::mode::ConnectionMode;
use crate::session::{Answer, Operation};
use crate::sql::{Sql, Unwritable};

/// What a database is like for this role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The server's version, such as `15.4`.
    pub server_version: String,
    /// Whether it is a replica, which takes no writes.
    pub is_replica: bool,
    /// Whether the session is encrypted, as the server sees it; behind a pooler it is the pooler's session.
    pub tls: bool,
    /// Whether row security hides rows from the role.
    pub row_security: bool,
    /// Whether the role sees any row; `None` where it lacks a right for that.
    pub has_rows: Option<bool>,
    /// Rights on the balance table without which nothing is written, such as `UPDATE (version)`.
    pub missing: Vec<String>,
    /// Rights without which less is checked, shown or found out.
    pub lacking: Vec<String>,
    /// Connections that the server takes from all its clients, superusers among them.
    pub max_connections: Option<u32>,
    /// How connections lead to it, if that is known.
    pub mode: Option<ConnectionMode>,
}

/// Columns of the balance table and what the worker does with them: `w` = it writes none without, `l` = it does less without.
const RIGHTS: &str = "(VALUES ('w', 'UPDATE', 'available'), ('w', 'UPDATE', 'on_hold'), ('w', 'UPDATE', 'overdraft_used'), \
     ('w', 'UPDATE', 'version'), ('w', 'UPDATE', 'updated_at'), ('w', 'SELECT', 'id'), ('w', 'SELECT', 'organization_id'), \
     ('w', 'SELECT', 'ledger_id'), ('w', 'SELECT', 'version'), ('w', 'SELECT', 'deleted_at'), ('l', 'SELECT', 'available'), \
     ('l', 'SELECT', 'on_hold'), ('l', 'SELECT', 'overdraft_used'), ('l', 'SELECT', 'alias'), ('l', 'SELECT', 'key'), \
     ('l', 'SELECT', 'updated_at')) AS r(need, privilege, col)";

impl Database {
    /// Looks at the server, the role's rights and the table.
    ///
    /// # Errors
    /// What keeps it from being asked, by class: no connection, no such table, a column that is missing.
    pub async fn facts(&self, table: &Table) -> Result<Facts, StoreError> {
        let mut session = self.session().await?;
        let mut facts = session.run(&Ask { table }).await?;
        if !facts.missing.iter().any(|right| right.starts_with("SELECT")) && !facts.row_security {
            facts.has_rows = Some(session.run(&AnyRow { table }).await?);
        }
        facts.mode = self.mode();
        Ok(facts)
    }
}

struct Ask<'s> {
    table: &'s Table,
}

impl Operation for Ask<'_> {
    type Output = Facts;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push(
            "SELECT pg_catalog.current_setting('server_version'), pg_catalog.pg_is_in_recovery(), \
             coalesce((SELECT s.ssl FROM pg_catalog.pg_stat_ssl AS s WHERE s.pid = pg_catalog.pg_backend_pid()), false), \
             pg_catalog.row_security_active(t.balance), \
             coalesce((SELECT pg_catalog.string_agg(r.need || r.privilege || ' (' || r.col || ')', ',') FROM ",
        );
        sql.push(RIGHTS).push(
            " WHERE NOT pg_catalog.has_column_privilege(t.balance, r.col, r.privilege)), ''), \
             t.operation IS NOT NULL AND NOT pg_catalog.has_table_privilege(t.operation, 'SELECT'), \
             pg_catalog.current_setting('max_connections') \
             FROM (SELECT ",
        );
        sql.regclass(self.table, BALANCE)?.push("::pg_catalog.oid, ").regclass(self.table, "operation")?;
        sql.push("::pg_catalog.oid) AS t(balance, operation) WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Facts, sqlx::Error> {
        let row = answer.rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let rights: String = row.try_get(4)?;
        let of = |need: &str| -> Vec<String> {
            rights.split(',').filter_map(|right| right.strip_prefix(need)).map(str::to_owned).collect()
        };
        let mut lacking = of("l");
        if row.try_get(5)? {
            lacking.push("SELECT on the table operation".to_owned());
        }
        Ok(Facts {
            server_version: row.try_get(0)?,
            is_replica: row.try_get(1)?,
            tls: row.try_get(2)?,
            row_security: row.try_get(3)?,
            has_rows: None,
            missing: of("w"),
            lacking,
            max_connections: row.try_get::<String, _>(6)?.parse().ok(),
            mode: None,
        })
    }
}

struct AnyRow<'s> {
    table: &'s Table,
}

impl Operation for AnyRow<'_> {
    type Output = bool;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push("SELECT EXISTS (SELECT b.id FROM ");
        sql.balances(self.table)?.push(" AS b) WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<bool, sqlx::Error> {
        answer.rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
    }
}
