//! Which server a database is on, so that a failover is noticed.
//!
//! A replica that is promoted may lack what its primary had acknowledged, and a server that is restored from a backup certainly does.
//! Neither tells. What shows it: another system identifier (another server altogether), another timeline (a promotion or a
//! restore to a point in time), another start (a crash of a server that does not flush its log, a snapshot of its disk).

use std::fmt;
use std::sync::Arc;

use sqlx::Row as _;

use crate::classify::StoreError;
use crate::relay::Connection;
use crate::session::send;
use crate::sql::{Preamble, Sql};

/// A server that takes writes, from its start to its end, by its own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(Arc<str>);

/// System identifier and timeline.
const ASK: &str = "SELECT (SELECT c.system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system() AS c), \
     pg_catalog.\"left\"(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8)";

impl Origin {
    /// The server that a connection leads to, which was started then.
    ///
    /// # Errors
    /// When the connection breaks. A server that gives no account of system and timeline is known by its start alone.
    pub(crate) async fn ask(
        connection: &mut Connection,
        preamble: &Preamble,
        started: &str,
    ) -> Result<Origin, StoreError> {
        let mut sql = Sql::new(preamble, None);
        sql.push(ASK);
        let (system, timeline) = match send(connection, sql.finish()).await {
            Ok(answer) => match answer.rows.first() {
                Some(row) => (row.try_get(0)?, row.try_get(1)?),
                None => (None, None),
            },
            Err(error) if error.session_survives() => (None, None),
            Err(error) => return Err(error),
        };
        Ok(Origin::new(system, timeline, started))
    }

    pub(crate) fn new(system: Option<String>, timeline: Option<String>, started: &str) -> Origin {
        let known = |part: Option<String>| part.unwrap_or_else(|| "unknown".to_owned());
        Origin(format!("system {}, timeline {}, started {started}", known(system), known(timeline)).into())
    }

    /// As text, to be stored and compared.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
