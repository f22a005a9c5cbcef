//! The name of the `balance` table, quoted, and the statements over it.
//!
//! The schema of a tenant comes from the tenant service, so it is data: it is checked and quoted here, once,
//! and nowhere else is text from outside put into SQL.

use std::fmt;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::{update, verify};

/// The longest identifier Postgres keeps without cutting it (`NAMEDATALEN - 1`). A longer schema name is refused:
/// cut, it might name another tenant's schema.
pub const MAX_IDENTIFIER_BYTES: usize = 63;

/// The table the ledger keeps its balances in.
const BALANCE: &str = "balance";

/// A schema name that Postgres would not take as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentifier {
    /// The name has no characters.
    #[error("schema name is empty: it must have 1 to {MAX_IDENTIFIER_BYTES} bytes")]
    Empty,
    /// The name is longer than [`MAX_IDENTIFIER_BYTES`].
    #[error("schema name {name:?} has {length} bytes: it must have 1 to {MAX_IDENTIFIER_BYTES}")]
    TooLong {
        /// The name as it was given.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
    /// The name contains a NUL byte, which Postgres can't store.
    #[error("schema name {name:?} contains a NUL byte")]
    Nul {
        /// The name as it was given.
        name: String,
    },
}

/// The `balance` table of one tenant. A cheap clone; it carries its statements ready made, so that a flush formats
/// no SQL and every connection sees the same text and prepares it once.
#[derive(Clone)]
pub struct Table(Arc<Inner>);

struct Inner {
    name: String,
    update: SqlStr,
    versions: SqlStr,
    compare: SqlStr,
}

impl Table {
    /// The table as the connection's own `search_path` finds it: for a tenant with a database of its own.
    #[must_use]
    pub fn unqualified() -> Table {
        Table::named(BALANCE.to_owned())
    }

    /// The table in a named schema: for a tenant that shares its database.
    ///
    /// # Errors
    /// [`InvalidIdentifier`] unless the name has 1 to [`MAX_IDENTIFIER_BYTES`] bytes, none of them NUL.
    pub fn in_schema(schema: &str) -> Result<Table, InvalidIdentifier> {
        if schema.is_empty() {
            return Err(InvalidIdentifier::Empty);
        }
        if schema.len() > MAX_IDENTIFIER_BYTES {
            return Err(InvalidIdentifier::TooLong { name: schema.to_owned(), length: schema.len() });
        }
        if schema.contains('\0') {
            return Err(InvalidIdentifier::Nul { name: schema.to_owned() });
        }
        Ok(Table::named(format!("\"{}\".\"{BALANCE}\"", schema.replace('"', "\"\""))))
    }

    fn named(name: String) -> Table {
        Table(Arc::new(Inner {
            update: AssertSqlSafe(update::update_sql(&name)).into_sql_str(),
            versions: AssertSqlSafe(update::versions_sql(&name)).into_sql_str(),
            compare: AssertSqlSafe(verify::compare_sql(&name)).into_sql_str(),
            name,
        }))
    }

    /// The name as it stands in SQL: `balance`, or `"schema"."balance"`.
    #[must_use]
    pub fn as_sql(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn update_sql(&self) -> SqlStr {
        self.0.update.clone()
    }

    pub(crate) fn versions_sql(&self) -> SqlStr {
        self.0.versions.clone()
    }

    pub(crate) fn compare_sql(&self) -> SqlStr {
        self.0.compare.clone()
    }
}

impl PartialEq for Table {
    fn eq(&self, other: &Table) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Table {}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Table").field(&self.0.name).finish()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn plain_and_qualified_names() {
        assert_eq!(Table::unqualified().as_sql(), "balance");
        assert_eq!(Table::in_schema("tenant_1").unwrap().as_sql(), "\"tenant_1\".\"balance\"");
        assert!(Table::unqualified().update_sql().as_str().starts_with("UPDATE balance AS b"));
    }

    #[test]
    fn quotes_cannot_end_the_name() {
        let table = Table::in_schema(r#"a"; DROP TABLE balance; --"#).unwrap();
        assert_eq!(table.as_sql(), r#""a""; DROP TABLE balance; --"."balance""#);
    }

    #[test]
    fn the_length_is_counted_in_bytes_as_postgres_does() {
        assert!(Table::in_schema(&"x".repeat(63)).is_ok());
        assert!(matches!(
            Table::in_schema(&"x".repeat(64)),
            Err(InvalidIdentifier::TooLong { length: 64, .. })
        ));
        assert!(matches!(
            Table::in_schema(&"é".repeat(32)),
            Err(InvalidIdentifier::TooLong { length: 64, .. })
        ));
        assert_eq!(Table::in_schema(""), Err(InvalidIdentifier::Empty));
        assert!(matches!(Table::in_schema("a\0b"), Err(InvalidIdentifier::Nul { .. })));
    }
}
