//! Whether the trail of operations can be complete: only a server that accepts writes takes the operations of the ledger.
//!
//! A row as new as the newest operation looks as if nothing were lost. On a standby, or while the server is read-only, the operation
//! of what is lost waits in the ledger, and the look proves nothing.

use sqlx::Row as _;

use crate::classify::{ErrorClass, StoreError};
use crate::database::Database;
use crate::identifier::Table;
use crate::session::{Answer, Operation, Session};
use crate::sql::{Sql, Unwritable};
use crate::trail::{Fate, Named};

/// What became of balances, by a server that accepts writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fates {
    /// Of each balance, in their order.
    pub fates: Vec<Fate>,
    /// When the server was started, by its own account; `None` = not asked, as no row is as new as the trail.
    pub started: Option<String>,
}

impl Session {
    /// As [`Session::fates`], for a caller that acts on [`Fate::Stale`].
    ///
    /// # Errors
    /// As [`Session::fates`]; [`ErrorClass::ReadOnly`] if a row is as new as the trail, and the server refuses writes. The connection
    /// is given up then, as after a refused write.
    pub async fn fates_if_writable(
        &mut self,
        table: &Table,
        sought: &[Named<'_>],
    ) -> Result<Fates, StoreError> {
        let fates = self.fates(table, sought).await?;
        if !fates.iter().any(|fate| matches!(fate, Fate::Stale { .. })) {
            return Ok(Fates { fates, started: None });
        }
        Ok(Fates { fates, started: Some(self.start_if_writable().await?) })
    }

    async fn start_if_writable(&mut self) -> Result<String, StoreError> {
        let server = self.run(&Server).await?;
        if server.refuses_writes {
            let error = StoreError::new(
                ErrorClass::ReadOnly,
                "the server refuses writes: operations of the ledger may still be missing, so nothing is decided about values that \
                 are gone",
            );
            return Err(self.give_up(error));
        }
        Ok(server.started)
    }
}

impl Database {
    /// When the server was started, by its own account, if it accepts writes.
    ///
    /// # Errors
    /// [`ErrorClass::ReadOnly`] if it doesn't; else by class, as for [`Database::update`].
    pub async fn start_if_writable(&self) -> Result<String, StoreError> {
        self.session().await?.start_if_writable().await
    }
}

struct Server;

struct Seen {
    started: String,
    refuses_writes: bool,
}

impl Operation for Server {
    type Output = Seen;

    /// A transaction is read-only in recovery as well. What database and role are set to counts from the next session on; of
    /// several settings the one for this role and this database comes first.
    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push(
            "SELECT pg_catalog.pg_postmaster_start_time()::pg_catalog.text, \
                    pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool OR coalesce(( \
                        SELECT pg_catalog.split_part(c.setting, '=', 2)::pg_catalog.bool \
                        FROM pg_catalog.pg_db_role_setting AS s \
                        CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS c(setting) \
                        WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database AS d \
                                                    WHERE d.datname = pg_catalog.current_database())) \
                          AND s.setrole IN (0, (SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolname = session_user)) \
                          AND pg_catalog.starts_with(c.setting, 'default_transaction_read_only=') \
                        ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1), false) WHERE ",
        );
        sql.guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Seen, sqlx::Error> {
        let row = answer.rows.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok(Seen { started: row.try_get(0)?, refuses_writes: row.try_get(1)? })
    }
}
