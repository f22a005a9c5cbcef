//! The name of the `balance` table, quoted.
//!
//! The schema of a tenant comes from the tenant service, so it is data: it is checked and quoted here, and nowhere else is
//! a name from outside put into SQL.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use uuid::Uuid;

use crate::budget::lock;

/// The longest identifier Postgres keeps without cutting it (`NAMEDATALEN - 1`). A longer schema name is refused:
/// cut, it might name another tenant's schema.
pub const MAX_IDENTIFIER_BYTES: usize = 63;

/// The table the ledger keeps its balances in.
pub(crate) const BALANCE: &str = "balance";

/// Locked rows that are remembered; more are found anew each time.
const MOST_LOCKED: usize = 10_000;

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

/// The `balance` table of one tenant, and the other tables of the ledger beside it. A cheap clone.
#[derive(Clone)]
pub struct Table(Arc<Inner>);

struct Inner {
    schema: Option<String>,
    name: String,
    tenant: Option<String>,
    /// An organization and ledger of which a row has been written here.
    written: OnceLock<(Uuid, Uuid)>,
    /// The role may not read the amounts.
    amounts_hidden: AtomicBool,
    /// Rows that were locked when they were last to be written.
    locked: Mutex<BTreeSet<Uuid>>,
}

impl Table {
    fn new(schema: Option<String>, name: String, tenant: Option<String>) -> Table {
        let (written, amounts_hidden) = (OnceLock::new(), AtomicBool::new(false));
        Table(Arc::new(Inner { schema, name, tenant, written, amounts_hidden, locked: Mutex::default() }))
    }

    /// The table as the `search_path` of the role finds it: for a tenant with a database of its own. Which schema that is is
    /// found out once per database, and named in all statements.
    #[must_use]
    pub fn unqualified() -> Table {
        Table::new(None, BALANCE.to_owned(), None)
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
        let mut name = String::new();
        quote(schema, &mut name);
        name.push('.');
        quote(BALANCE, &mut name);
        Ok(Table::new(Some(schema.to_owned()), name, None))
    }

    /// The same table as the one of this tenant. No two tenants of one worker are written into the same table by way of
    /// databases that their settings name differently: see `homes.rs`.
    #[must_use]
    pub fn of_tenant(&self, tenant: &str) -> Table {
        let Inner { schema, name, .. } = &*self.0;
        let tenant = Some(tenant.to_owned());
        Table::new(schema.clone(), name.clone(), tenant)
    }

    /// An organization and ledger of which a row has been written to this table before: where it is still there, the table is
    /// the tenant's.
    pub(crate) fn written(&self) -> Option<(Uuid, Uuid)> {
        self.0.written.get().copied()
    }

    /// Remembers that a row of this organization and ledger has been written.
    pub(crate) fn note_written(&self, organization: Uuid, ledger: Uuid) {
        self.0.written.get_or_init(|| (organization, ledger));
    }

    /// Whether the role may not read the amounts, as far as is known.
    pub(crate) fn amounts_are_hidden(&self) -> bool {
        self.0.amounts_hidden.load(Relaxed)
    }

    /// Remembers that the role may not read the amounts; whether that is new.
    pub(crate) fn note_hidden_amounts(&self) -> bool {
        !self.0.amounts_hidden.swap(true, Relaxed)
    }

    /// Whether a row was locked when it was last to be written.
    pub(crate) fn was_locked(&self, ids: impl Iterator<Item = Uuid>) -> Vec<bool> {
        let locked = lock(&self.0.locked);
        ids.map(|id| locked.contains(&id)).collect()
    }

    /// Remembers which rows of a batch are locked.
    pub(crate) fn note_locked(&self, rows: impl Iterator<Item = (Uuid, bool)>) {
        let mut locked = lock(&self.0.locked);
        for (id, is_locked) in rows {
            if !is_locked {
                locked.remove(&id);
            } else if locked.len() < MOST_LOCKED {
                locked.insert(id);
            }
        }
    }

    pub(crate) fn tenant(&self) -> Option<&str> {
        self.0.tenant.as_deref()
    }

    /// The name as it stands in SQL: `balance`, or `"schema"."balance"`.
    #[must_use]
    pub fn as_sql(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn schema(&self) -> Option<&str> {
        self.0.schema.as_deref()
    }
}

/// Appends a name in quotes, in ASCII whatever it contains, so that it means the same in every `client_encoding`.
pub(crate) fn quote(name: &str, into: &mut String) {
    if name.is_ascii() {
        into.push('"');
        into.push_str(&name.replace('"', "\"\""));
    } else {
        into.push_str("U&\"");
        for c in name.chars() {
            match c {
                '"' => into.push_str("\"\""),
                '\\' => into.push_str("\\\\"),
                c if c.is_ascii() => into.push(c),
                c => {
                    let _ = write!(into, "\\+{:06X}", u32::from(c));
                }
            }
        }
    }
    into.push('"');
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
    }

    #[test]
    fn quotes_cannot_end_the_name() {
        let table = Table::in_schema(r#"a"; DROP TABLE balance; --"#).unwrap();
        assert_eq!(table.as_sql(), r#""a""; DROP TABLE balance; --"."balance""#);
    }

    #[test]
    fn a_quoted_name_is_ascii() {
        let table = Table::in_schema("Ünit\\\"").unwrap();
        assert_eq!(table.as_sql(), r#"U&"\+0000DCnit\\"""."balance""#);
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
