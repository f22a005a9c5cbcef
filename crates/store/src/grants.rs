//! Naming the grants that a role lacks.
//!
//! Where a role may use some columns and not others, Postgres refuses a statement as "permission denied for table", without
//! the column. So after such a refusal the role's rights are read from the catalogs, and the error ends with the `GRANT` that
//! helps. `deploy/postgres/grants.sql` has all of them, with the reasons.

use sqlx::Row as _;

use crate::classify::{ErrorClass, StoreError};
use crate::identifier::{BALANCE, quote};
use crate::relay::Connection;
use crate::session::send;
use crate::sql::{Preamble, Sql};

/// What writing needs.
const WRITING: [(&str, &[&str]); 2] = [
    ("UPDATE", &["available", "on_hold", "overdraft_used", "version", "updated_at"]),
    ("SELECT", &["id", "organization_id", "ledger_id", "version", "deleted_at"]),
];

/// What else is read, by operations that a role without these columns may do without.
const READING: [(&str, &[&str]); 1] =
    [("SELECT", &["available", "on_hold", "overdraft_used", "alias", "key", "account_id", "updated_at"])];

/// Adds to the refusal of a statement on the balance table of this schema the grants that are missing. Of what only reading
/// needs, these are named only if nothing is missing for writing.
pub(crate) async fn explained(
    connection: &mut Connection,
    preamble: &Preamble,
    schema: &str,
    error: StoreError,
) -> StoreError {
    if error.class() != ErrorClass::Permission || error.in_function() {
        return error;
    }
    match missing(connection, preamble, schema).await {
        Ok(Some(grant)) => error.with_words(&format!("missing {grant}")),
        Ok(None) | Err(_) => error,
    }
}

/// One `GRANT` with what the role lacks.
async fn missing(
    connection: &mut Connection,
    preamble: &Preamble,
    schema: &str,
) -> Result<Option<String>, StoreError> {
    let mut sql = Sql::new(preamble, None);
    sql.push(
        "SELECT current_user::pg_catalog.text, pg_catalog.has_schema_privilege(s.oid, 'USAGE'), a.attname::pg_catalog.text, \
         pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'), \
         pg_catalog.has_column_privilege(c.oid, a.attnum, 'UPDATE') FROM pg_catalog.pg_namespace AS s \
         JOIN pg_catalog.pg_class AS c ON c.relnamespace = s.oid AND c.relname = 'balance' \
         JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         WHERE s.nspname = ",
    );
    sql.text(schema);
    let rows = send(connection, sql.finish()).await?.rows;
    let Some(first) = rows.first() else { return Ok(None) };
    let (role, usage): (String, bool) = (first.try_get(0)?, first.try_get(1)?);
    let mut columns: Vec<Column> = Vec::with_capacity(rows.len());
    for row in &rows {
        columns.push(Column { name: row.try_get(2)?, select: row.try_get(3)?, update: row.try_get(4)? });
    }
    Ok(grant(schema, &role, usage, &columns))
}

/// A column of the table, and what the role may do with it.
struct Column {
    name: String,
    select: bool,
    update: bool,
}

fn grant(schema: &str, role: &str, usage: bool, columns: &[Column]) -> Option<String> {
    let quoted = |name: &str| {
        let mut text = String::new();
        quote(name, &mut text);
        text
    };
    if !usage {
        return Some(format!("GRANT USAGE ON SCHEMA {} TO {}", quoted(schema), quoted(role)));
    }
    let lacking = |needed: &[(&str, &[&str])]| {
        let lists = needed.iter().filter_map(|(right, names)| {
            let lacks = |name: &&str| {
                let column = columns.iter().find(|column| column.name == **name);
                column.is_some_and(|column| !(if *right == "UPDATE" { column.update } else { column.select }))
            };
            let names: Vec<&str> = names.iter().copied().filter(lacks).collect();
            (!names.is_empty()).then(|| format!("{right} ({})", names.join(", ")))
        });
        lists.collect::<Vec<_>>()
    };
    let mut rights = lacking(&WRITING);
    if rights.is_empty() {
        rights = lacking(&READING);
    }
    (!rights.is_empty())
        .then(|| format!("GRANT {} ON {}.{} TO {}", rights.join(", "), quoted(schema), BALANCE, quoted(role)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(without_select: &[&str], without_update: &[&str]) -> Vec<Column> {
        let all = WRITING.iter().chain(&READING).flat_map(|(_, names)| names.iter());
        all.map(|name| Column {
            name: (*name).to_owned(),
            select: !without_select.contains(name),
            update: !without_update.contains(name),
        })
        .collect()
    }

    #[test]
    fn what_is_missing_is_named_by_column() {
        let missing = |usage, without_select: &[&str], without_update: &[&str]| {
            grant("a\"b", "Role", usage, &columns(without_select, without_update))
        };
        assert_eq!(missing(true, &[], &["id", "alias"]), None);
        assert_eq!(
            missing(true, &["alias", "deleted_at"], &["version", "on_hold"]).as_deref(),
            Some("GRANT UPDATE (on_hold, version), SELECT (deleted_at) ON \"a\"\"b\".balance TO \"Role\"")
        );
        assert_eq!(
            missing(true, &["alias", "key"], &[]).as_deref(),
            Some("GRANT SELECT (alias, key) ON \"a\"\"b\".balance TO \"Role\"")
        );
        assert_eq!(
            missing(false, &["id"], &[]).as_deref(),
            Some("GRANT USAGE ON SCHEMA \"a\"\"b\" TO \"Role\"")
        );
        // A column that isn't there is not a matter of rights.
        assert_eq!(grant("s", "r", true, &[]), None);
    }
}
