//! The statements that look for rows, deleted rows and the newest operations.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{LOCK_LIMIT, Named};
use crate::identifier::{BALANCE, Table};
use crate::session::{Answer, Operation};
use crate::sql::{Sql, Unwritable};
use crate::update::place;

/// The columns of a table, and whether the role may read them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readable(HashMap<String, bool>);

impl FromIterator<(String, bool)> for Readable {
    fn from_iter<T: IntoIterator<Item = (String, bool)>>(columns: T) -> Self {
        Self(columns.into_iter().collect())
    }
}

impl Readable {
    pub(crate) fn has(&self, column: &str) -> bool {
        self.0.get(column).copied().unwrap_or(false)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the table has the column.
    pub(crate) fn knows(&self, column: &str) -> bool {
        self.0.contains_key(column)
    }

    /// What is missing for reading these columns, in words.
    pub(crate) fn lacks(&self, columns: &[&str], table: &str) -> Option<String> {
        if self.0.is_empty() {
            return Some(format!("there is no table {table}"));
        }
        let absent: Vec<&str> = columns.iter().copied().filter(|c| !self.0.contains_key(*c)).collect();
        if !absent.is_empty() {
            return Some(format!("table {table} has no column {}", absent.join(", ")));
        }
        let hidden: Vec<&str> = columns.iter().copied().filter(|c| !self.has(c)).collect();
        if hidden.len() == columns.len() {
            return Some(format!("the grant SELECT on {table} is missing"));
        }
        (!hidden.is_empty())
            .then(|| format!("the grant SELECT ({}) on {table} is missing", hidden.join(", ")))
    }
}

/// A query that runs within limits of its own.
pub(super) trait Query: Operation {
    /// What is sought, in words.
    const SUBJECT: &'static str;
}

/// The columns of both tables.
pub(crate) struct Columns<'s> {
    pub(crate) table: &'s Table,
}

impl Operation for Columns<'_> {
    type Output = (Readable, Readable);

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push(
            "SELECT t.n, a.attname::pg_catalog.text, \
                    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT') FROM (VALUES (1, ",
        );
        sql.regclass(self.table, BALANCE)?.push("), (2, ").regclass(self.table, "operation")?.push(
            ")) AS t(n, oid) JOIN pg_catalog.pg_attribute AS a ON a.attrelid = t.oid \
             WHERE a.attnum > 0 AND NOT a.attisdropped AND ",
        );
        sql.guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let (mut balance, mut operation) = (Readable::default(), Readable::default());
        for row in answer.rows {
            let table = if row.try_get::<i32, _>(0)? == 1 { &mut balance } else { &mut operation };
            table.0.insert(row.try_get(1)?, row.try_get(2)?);
        }
        Ok((balance, operation))
    }
}

/// A row that isn't deleted.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundRow {
    pub(super) organization: Uuid,
    pub(super) ledger: Uuid,
    pub(super) id: Uuid,
    pub(super) account: Option<Uuid>,
    pub(super) version: i64,
}

/// The rows with these names, at most two of each.
///
/// `LATERAL` and `LIMIT`, so that each name is looked up by itself, whatever the planner believes about the table. To a planner
/// without statistics the indexes over accounts look as good as the one over aliases, and reading through them reads the whole
/// ledger for each name. So the alias is a range, and its order is asked for: only that index gives it without sorting,
/// which [`Sql::limit`] forbids.
pub(super) struct Rows<'s> {
    pub(super) limit: Duration,
    pub(super) table: &'s Table,
    pub(super) sought: &'s [Named<'s>],
}

impl Query for Rows<'_> {
    const SUBJECT: &'static str = "the row by its alias";
}

impl Operation for Rows<'_> {
    type Output = Vec<Vec<FoundRow>>;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.limit(self.limit, LOCK_LIMIT).push(
            "SELECT v.n, b.organization_id, b.ledger_id, b.id, b.account_id, \
                    coalesce(b.version, -1)::pg_catalog.int8 FROM unnest(",
        );
        sql.uuids(self.sought.iter().map(|name| name.organization)).push(", ");
        sql.uuids(self.sought.iter().map(|name| name.ledger)).push(", ");
        sql.texts(self.sought.iter().map(|name| name.alias)).push(", ");
        sql.texts(self.sought.iter().map(|name| name.key)).push(
            ") WITH ORDINALITY AS v(organization_id, ledger_id, alias, key, n) CROSS JOIN LATERAL ( \
                SELECT r.organization_id, r.ledger_id, r.id, r.account_id, r.version FROM ",
        );
        sql.balances(self.table)?.push(
            " AS r WHERE r.organization_id = v.organization_id AND r.ledger_id = v.ledger_id \
                AND r.alias >= v.alias AND r.alias <= v.alias AND coalesce(r.key, 'default') = v.key \
                AND r.deleted_at IS NULL ORDER BY r.organization_id, r.ledger_id, r.alias LIMIT 2) AS b WHERE ",
        );
        sql.guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let mut found = vec![Vec::new(); self.sought.len()];
        for row in answer.rows {
            let ordinal: i64 = row.try_get(0)?;
            if let Some(slot) = usize::try_from(ordinal - 1).ok().and_then(|n| found.get_mut(n)) {
                slot.push(FoundRow {
                    organization: row.try_get(1)?,
                    ledger: row.try_get(2)?,
                    id: row.try_get(3)?,
                    account: row.try_get(4)?,
                    version: row.try_get(5)?,
                });
            }
        }
        Ok(found)
    }
}

/// Those of these names that deleted rows have.
pub(super) struct Deleted<'s> {
    pub(super) limit: Duration,
    pub(super) table: &'s Table,
    pub(super) sought: &'s [Named<'s>],
}

impl Query for Deleted<'_> {
    const SUBJECT: &'static str = "a deleted row";
}

impl Operation for Deleted<'_> {
    type Output = HashSet<(Uuid, Uuid, String, String)>;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        let ledgers: HashSet<(Uuid, Uuid)> =
            self.sought.iter().map(|name| (name.organization, name.ledger)).collect();
        let aliases: HashSet<&str> = self.sought.iter().map(|name| name.alias).collect();
        let (organizations, ledgers): (Vec<Uuid>, Vec<Uuid>) = ledgers.into_iter().unzip();
        sql.limit(self.limit, LOCK_LIMIT)
            .push("SELECT b.organization_id, b.ledger_id, b.alias, b.key FROM unnest(");
        sql.uuids(organizations.into_iter()).push(", ").uuids(ledgers.into_iter()).push(
            ") AS v(organization_id, ledger_id) CROSS JOIN LATERAL ( \
                SELECT r.organization_id, r.ledger_id, r.alias, coalesce(r.key, 'default') AS key FROM ",
        );
        sql.balances(self.table)?.push(
            " AS r WHERE r.organization_id = v.organization_id AND r.ledger_id = v.ledger_id \
                AND r.deleted_at IS NOT NULL AND (r.alias IN (SELECT t.alias FROM unnest(",
        );
        // As a condition that is not joined: its subquery runs once and is hashed. A ledger may have a million deleted rows.
        sql.texts(aliases.into_iter()).push(") AS t(alias))) IS TRUE OFFSET 0) AS b WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let read = |row: PgRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
        answer.rows.into_iter().map(read).collect()
    }
}

/// The newest operation of a balance.
#[derive(Debug, Clone)]
pub(super) struct Last {
    pub(super) version: i64,
    pub(super) available: Option<String>,
    pub(super) on_hold: Option<String>,
    pub(super) overdraft_used: Option<String>,
    pub(super) in_doubt: bool,
}

/// Operations by time among which the newest version is looked for.
pub(crate) const WINDOW: &str = "500";

/// What is read of `o`, the result of [`newest_operation`]: version, amounts, and whether they are in doubt. What is no plain
/// number counts as in doubt, and is never cast.
pub(crate) const STATE: &str = "o.version, o.available, o.on_hold, pg_catalog.left(o.after, 400), \
    CASE WHEN coalesce(o.before, '0') ~ '^[0-9]{1,200}([.][0-9]{1,200})?$' \
          AND coalesce(o.after, '0') ~ '^[0-9]{1,200}([.][0-9]{1,200})?$' \
         THEN coalesce(o.before, '0')::pg_catalog.numeric > coalesce(o.after, '0')::pg_catalog.numeric \
         ELSE true END";

/// Writes the subquery for the newest operation of a balance `v`, which has `organization_id`, `ledger_id`, `account_id` and
/// `balance_id`.
pub(crate) fn newest_operation(
    sql: &mut Sql<'_>,
    table: &Table,
    columns: &Readable,
    window: &'static str,
) -> Result<(), Unwritable> {
    sql.push(
        "( SELECT o.balance_version_after::pg_catalog.int8 AS version, \
                pg_catalog.left(o.available_balance_after::pg_catalog.text, 400) AS available, \
                pg_catalog.left(o.on_hold_balance_after::pg_catalog.text, 400) AS on_hold, o.created_at, ",
    );
    sql.push(if columns.has("snapshot") {
        "CASE WHEN pg_catalog.jsonb_typeof(o.snapshot) = 'object' THEN o.snapshot->>'overdraftUsedBefore' END \
            AS before, \
         CASE WHEN pg_catalog.jsonb_typeof(o.snapshot) = 'object' \
            THEN coalesce(o.snapshot->>'overdraftUsedAfter', '0') END AS after"
    } else {
        "NULL::pg_catalog.text AS before, NULL::pg_catalog.text AS after"
    });
    // By name: the role may be allowed these columns only.
    sql.push(
        " FROM (SELECT r.id, r.created_at, r.balance_version_after, r.available_balance_after, \
            r.on_hold_balance_after",
    );
    if columns.has("snapshot") {
        sql.push(", r.snapshot");
    }
    sql.push(" FROM ").table(table, "operation")?.push(
        " AS r WHERE r.organization_id = v.organization_id AND r.ledger_id = v.ledger_id \
            AND r.account_id = v.account_id AND r.balance_id = v.balance_id AND r.deleted_at IS NULL \
            AND r.balance_version_after IS NOT NULL",
    );
    // Here, so that annotations take none of the places in the window: there may be any number of them.
    if columns.has("balance_affected") {
        sql.push(" AND coalesce(r.balance_affected, true)");
    }
    sql.push(" ORDER BY ");
    sql.push(if columns.has("recorded_at") {
        "coalesce(r.recorded_at, r.created_at)"
    } else {
        "r.created_at"
    });
    sql.push(" DESC LIMIT ").push(window);
    sql.push(") AS o ORDER BY o.balance_version_after DESC, o.created_at DESC, o.id DESC LIMIT 1)");
    Ok(())
}

/// The newest operations of these rows. The order of the inner query is that of the ledger's index, which is another one
/// where `recorded_at` is there.
pub(super) struct Newest<'s> {
    pub(super) limit: Duration,
    pub(super) table: &'s Table,
    pub(super) columns: &'s Readable,
    pub(super) rows: &'s [FoundRow],
}

impl Query for Newest<'_> {
    const SUBJECT: &'static str = "the newest operation";
}

impl Operation for Newest<'_> {
    type Output = Vec<Option<Last>>;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.limit(self.limit, LOCK_LIMIT).push("SELECT v.n, ").push(STATE).push(" FROM unnest(");
        sql.uuids(self.rows.iter().map(|row| row.organization)).push(", ");
        sql.uuids(self.rows.iter().map(|row| row.ledger)).push(", ");
        // A row without an account has no operation that could be found.
        sql.uuids(self.rows.iter().map(|row| row.account.unwrap_or_default())).push(", ");
        sql.uuids(self.rows.iter().map(|row| row.id)).push(
            ") WITH ORDINALITY AS v(organization_id, ledger_id, account_id, balance_id, n) CROSS JOIN LATERAL ",
        );
        newest_operation(sql, self.table, self.columns, WINDOW)?;
        sql.push(" AS o WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let mut newest = vec![None; self.rows.len()];
        for row in answer.rows {
            let last = Last {
                version: row.try_get(1)?,
                available: row.try_get(2)?,
                on_hold: row.try_get(3)?,
                overdraft_used: row.try_get(4)?,
                in_doubt: row.try_get(5)?,
            };
            place(&mut newest, row.try_get(0)?, last);
        }
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let columns = |columns: &[(&str, bool)]| {
            Readable(columns.iter().map(|(name, may)| ((*name).to_owned(), *may)).collect())
        };
        let lacks = |readable: &Readable| readable.lacks(&["a", "b"], "t");
        assert_eq!(lacks(&columns(&[])).as_deref(), Some("there is no table t"));
        assert_eq!(lacks(&columns(&[("a", true)])).as_deref(), Some("table t has no column b"));
        let none = columns(&[("a", false), ("b", false)]);
        assert_eq!(lacks(&none).as_deref(), Some("the grant SELECT on t is missing"));
        let one = columns(&[("a", true), ("b", false)]);
        assert_eq!(lacks(&one).as_deref(), Some("the grant SELECT (b) on t is missing"));
        assert_eq!(lacks(&columns(&[("a", true), ("b", true)])), None);
    }
}
