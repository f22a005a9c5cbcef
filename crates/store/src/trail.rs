//! What became of balances that are known by name only, because Redis no longer holds their values: deleted, as new as the
//! ledger's trail, or lost.
//!
//! Asked rarely, for some members of a batch at a time. Three questions, each one statement for all of them:
//!
//! 1. Which rows are there? By organization, ledger and alias, for which the ledger keeps an index over rows that aren't
//!    deleted. One of these wins over a deleted one: the account was created again.
//! 2. Of the others, which are deleted? No index leads to a deleted row by its alias, so the entries of the whole ledger
//!    in the index over accounts are walked, once for all that are sought, and only deleted rows are read.
//! 3. Of those with a row, what is the newest operation? No index of the trail leads with the version. So the last
//!    500 by time are read, and the highest version of them counts: times and versions of one balance
//!    differ in order by no more than what the ledger works on at once.
//!
//! A statement that takes longer than [`LOOK_LIMIT`] is given up and the question left open: on a table without these
//! indexes each would read all of it, and a batch must not wait for that.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::classify::{ErrorClass, StoreError};
use crate::database::Database;
use crate::evidence::any_row_is_visible;
use crate::identifier::{BALANCE, Table};
use crate::session::{Answer, Operation, Session};
use crate::sql::{Sql, Unwritable};
use crate::update::{CHUNK_ROWS, place};

/// Longest time of one of the statements. What isn't known by then is not found out.
pub const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Longest wait for a lock: that of a migration says nothing about the balances, so it is a failure to be repeated.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_secs(2);

/// Characters of a message that are kept, and of an amount: they are to be shown, not to be written.
const SHOWN: usize = 400;

/// The key of an overdraft's companion balance: its operations repeat the overdraft of the primary one.
const COMPANION: &str = "overdraft";

/// A row that has never been written by the sync has at most this version, and may have no operation.
const FIRST_VERSION: i64 = 1;

/// What is read of `balance` beyond what writing needs, and what writing needs.
pub(crate) const OF_BALANCE: &[&str] =
    &["id", "organization_id", "ledger_id", "version", "deleted_at", "alias", "key", "account_id"];

/// What is read of `operation`. Older ledgers lack others, which are read where they are there.
pub(crate) const OF_OPERATION: &[&str] = &[
    "id",
    "organization_id",
    "ledger_id",
    "account_id",
    "balance_id",
    "balance_version_after",
    "available_balance_after",
    "on_hold_balance_after",
    "created_at",
    "deleted_at",
];

/// Why nothing is known of a balance that has no row.
pub const NO_ROW: &str = "no row has this alias and key, deleted or not";

/// A balance by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'a> {
    /// Its organization.
    pub organization: Uuid,
    /// Its ledger.
    pub ledger: Uuid,
    /// The alias of its account.
    pub alias: &'a str,
    /// Its key.
    pub key: &'a str,
}

/// What became of a balance whose value is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Its row is deleted, and no other has taken its place: nothing is lost.
    Deleted,
    /// Its row is as new as the newest operation, or newer: nothing that the trail knows of is lost.
    Stale {
        /// The version of the row.
        row_version: i64,
    },
    /// The trail has an operation that the row lacks.
    Lost(LastKnown),
    /// It can't be told.
    Unknown {
        /// The version of the row, where there is one; −1 if it has none.
        row_version: Option<i64>,
        /// Why, in words: which grant is missing, for example.
        why: String,
    },
}

/// The newest state of a lost balance, as the trail knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastKnown {
    /// The version of the row; −1 if it has none.
    pub row_version: i64,
    /// The version that is lost.
    pub version: i64,
    /// `available` after the operation.
    pub available: Option<String>,
    /// `on_hold` after the operation.
    pub on_hold: Option<String>,
    /// `overdraft_used` after the operation; `None` where the trail doesn't know it.
    pub overdraft_used: Option<String>,
    /// The operation repaid an overdraft: if it was a cancel, its amounts may differ from the true state.
    pub in_doubt: bool,
}

impl Database {
    /// As [`Session::fates`], on a connection of the pool.
    ///
    /// # Errors
    /// As [`Session::fates`].
    pub async fn fates(&self, table: &Table, sought: &[Named<'_>]) -> Result<Vec<Fate>, StoreError> {
        self.session().await?.fates(table, sought).await
    }
}

impl Session {
    /// What became of these balances, in their order.
    ///
    /// # Errors
    /// By class, as for [`Database::update`]: nothing is known then. What the role may not read, and what takes too long, is
    /// no error but [`Fate::Unknown`].
    pub async fn fates(&mut self, table: &Table, sought: &[Named<'_>]) -> Result<Vec<Fate>, StoreError> {
        let mut fates: Vec<(usize, Fate)> = Vec::with_capacity(sought.len());
        if sought.is_empty() {
            return Ok(Vec::new());
        }
        let (balance, operations) = self.run(&Columns { table }).await?;
        if balance.is_empty() {
            return Err(StoreError::new(ErrorClass::NotProvisioned, format!("there is no table {table}")));
        }
        if let Some(why) = balance.lacks(OF_BALANCE, "balance") {
            return Ok(vec![Fate::Unknown { row_version: None, why }; sought.len()]);
        }
        let trail = match operations.lacks(OF_OPERATION, "operation") {
            Some(why) => Err(why),
            None => Ok(operations),
        };
        // What no text in Postgres can hold has no row, and would fail the search for all the others.
        let (possible, impossible): (Vec<usize>, Vec<usize>) = (0..sought.len())
            .partition(|&n| !sought[n].alias.contains('\0') && !sought[n].key.contains('\0'));
        for chunk in possible.chunks(CHUNK_ROWS) {
            let names: Vec<Named<'_>> = chunk.iter().map(|&n| sought[n]).collect();
            let found = self.fates_of(table, &trail, &names).await?;
            fates.extend(chunk.iter().copied().zip(found));
        }
        if !fates.is_empty()
            && fates.iter().all(|(_, fate)| matches!(fate, Fate::Unknown { row_version: None, .. }))
        {
            // Of a table in which no row is visible nothing can be said of any balance.
            any_row_is_visible(self, table).await?;
        }
        fates.extend(impossible.into_iter().map(|n| {
            let why = "no row can have this alias and key: there is a NUL in it".to_owned();
            (n, Fate::Unknown { row_version: None, why })
        }));
        fates.sort_unstable_by_key(|(n, _)| *n);
        Ok(fates.into_iter().map(|(_, fate)| fate).collect())
    }

    async fn fates_of(
        &mut self,
        table: &Table,
        trail: &Result<Readable, String>,
        sought: &[Named<'_>],
    ) -> Result<Vec<Fate>, StoreError> {
        let unknown = |row_version, why: &str| Fate::Unknown { row_version, why: why.to_owned() };
        let limit = LOOK_LIMIT.min(self.statement_timeout());
        let rows = match self.look(limit, &Rows { limit, table, sought }).await? {
            Ok(rows) => rows,
            Err(why) => return Ok(vec![unknown(None, &why); sought.len()]),
        };
        let mut fates: Vec<Option<Fate>> = vec![None; sought.len()];
        let mut found = Vec::new();
        let mut gone = Vec::new();
        for (n, rows) in rows.into_iter().enumerate() {
            match rows.as_slice() {
                [] => gone.push(n),
                [row] => found.push((n, *row)),
                _ => fates[n] = Some(unknown(None, "several rows have this alias and key")),
            }
        }

        if !gone.is_empty() {
            let names: Vec<Named<'_>> = gone.iter().map(|&n| sought[n]).collect();
            let deleted = self.look(limit, &Deleted { limit, table, sought: &names }).await?;
            for (&n, name) in gone.iter().zip(&names) {
                fates[n] = Some(match &deleted {
                    Err(why) => unknown(None, why),
                    Ok(deleted) if deleted.contains(&identity(name)) => Fate::Deleted,
                    Ok(_) => unknown(None, NO_ROW),
                });
            }
        }

        if !found.is_empty() {
            let rows: Vec<FoundRow> = found.iter().map(|(_, row)| *row).collect();
            let newest = match trail {
                Ok(columns) => self.look(limit, &Newest { limit, table, columns, rows: &rows }).await,
                Err(why) => Ok(Err(why.clone())),
            };
            let newest = match newest {
                // Such as row security, which the grants don't show.
                Err(error) if matches!(error.class(), ErrorClass::Permission | ErrorClass::RowSecurity) => {
                    Err(shown(error.message()))
                }
                newest => newest?,
            };
            for (at, (n, row)) in found.into_iter().enumerate() {
                fates[n] = Some(match &newest {
                    Err(why) => unknown(Some(row.version), why),
                    Ok(newest) => compare(row, sought[n].key, newest[at].as_ref()),
                });
            }
        }
        Ok(fates.into_iter().flatten().collect())
    }

    /// Runs a query within its limits; the inner error says in words why there is no answer.
    async fn look<Q: Query>(
        &mut self,
        limit: Duration,
        query: &Q,
    ) -> Result<Result<Q::Output, String>, StoreError> {
        match self.run(query).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(error) if error.sqlstate() == Some("57014") => {
                Ok(Err(format!("the search for {} took longer than {limit:?}", Q::SUBJECT)))
            }
            Err(error) => Err(error),
        }
    }
}

/// The row against the newest operation.
fn compare(row: FoundRow, key: &str, newest: Option<&Last>) -> Fate {
    match newest {
        None if row.version <= FIRST_VERSION => Fate::Stale { row_version: row.version },
        None => Fate::Unknown {
            row_version: Some(row.version),
            why: format!(
                "operation has nothing of this balance, although its row has version {}: it is not complete",
                row.version
            ),
        },
        Some(last) if last.version <= row.version => Fate::Stale { row_version: row.version },
        Some(last) => Fate::Lost(LastKnown {
            row_version: row.version,
            version: last.version,
            available: last.available.clone(),
            on_hold: last.on_hold.clone(),
            overdraft_used: if key == COMPANION { None } else { last.overdraft_used.clone() },
            in_doubt: last.in_doubt && key != COMPANION,
        }),
    }
}

fn identity(name: &Named<'_>) -> (Uuid, Uuid, String, String) {
    (name.organization, name.ledger, name.alias.to_owned(), name.key.to_owned())
}

pub(crate) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// The columns of a table, and whether the role may read them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readable(HashMap<String, bool>);

impl Readable {
    pub(crate) fn has(&self, column: &str) -> bool {
        self.0.get(column).copied().unwrap_or(false)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
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

// -- statements --------------------------------------------------------------------------------------------------------

/// A query that runs within limits of its own.
trait Query: Operation {
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
struct FoundRow {
    organization: Uuid,
    ledger: Uuid,
    id: Uuid,
    account: Option<Uuid>,
    version: i64,
}

/// The rows with these names, at most two of each.
///
/// `LATERAL` and `LIMIT`, so that each name is looked up by itself, whatever the planner believes about the table. To a planner
/// without statistics the indexes over accounts look as good as the one over aliases, and reading through them reads the whole
/// ledger for each name. So the alias is a range, and its order is asked for: only that index gives it without sorting,
/// which [`Sql::limit`] forbids.
struct Rows<'s> {
    limit: Duration,
    table: &'s Table,
    sought: &'s [Named<'s>],
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
struct Deleted<'s> {
    limit: Duration,
    table: &'s Table,
    sought: &'s [Named<'s>],
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
struct Last {
    version: i64,
    available: Option<String>,
    on_hold: Option<String>,
    overdraft_used: Option<String>,
    in_doubt: bool,
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
    for (column, name) in [("snapshot", ", r.snapshot"), ("balance_affected", ", r.balance_affected")] {
        if columns.has(column) {
            sql.push(name);
        }
    }
    sql.push(" FROM ").table(table, "operation")?.push(
        " AS r WHERE r.organization_id = v.organization_id AND r.ledger_id = v.ledger_id \
            AND r.account_id = v.account_id AND r.balance_id = v.balance_id AND r.deleted_at IS NULL ORDER BY ",
    );
    sql.push(if columns.has("recorded_at") {
        "coalesce(r.recorded_at, r.created_at)"
    } else {
        "r.created_at"
    });
    sql.push(" DESC LIMIT ").push(window).push(") AS o WHERE o.balance_version_after IS NOT NULL");
    if columns.has("balance_affected") {
        sql.push(" AND coalesce(o.balance_affected, true)");
    }
    sql.push(" ORDER BY o.balance_version_after DESC, o.created_at DESC, o.id DESC LIMIT 1)");
    Ok(())
}

/// The newest operations of these rows. The order of the inner query is that of the ledger's index, which is another one
/// where `recorded_at` is there.
struct Newest<'s> {
    limit: Duration,
    table: &'s Table,
    columns: &'s Readable,
    rows: &'s [FoundRow],
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

    fn row(version: i64) -> FoundRow {
        let id = Uuid::nil();
        FoundRow { organization: id, ledger: id, id, account: Some(id), version }
    }

    fn last(version: i64) -> Last {
        Last {
            version,
            available: Some("1".to_owned()),
            on_hold: Some("2".to_owned()),
            overdraft_used: Some("3".to_owned()),
            in_doubt: true,
        }
    }

    #[test]
    fn the_row_against_the_trail() {
        let stale = |row_version| Fate::Stale { row_version };
        assert_eq!(compare(row(5), "default", Some(&last(5))), stale(5));
        assert_eq!(compare(row(5), "default", Some(&last(4))), stale(5));
        assert_eq!(compare(row(1), "default", None), stale(1));
        assert_eq!(compare(row(-1), "default", None), stale(-1));
        assert!(
            matches!(compare(row(2), "default", None), Fate::Unknown { row_version: Some(2), why } if why.contains("not complete"))
        );
        let Fate::Lost(lost) = compare(row(-1), "default", Some(&last(6))) else { panic!("not lost") };
        assert_eq!((lost.version, lost.row_version, lost.in_doubt), (6, -1, true));
        assert_eq!(lost.overdraft_used.as_deref(), Some("3"));
    }

    #[test]
    fn a_companions_overdraft_is_that_of_another_balance() {
        let Fate::Lost(lost) = compare(row(5), COMPANION, Some(&last(6))) else { panic!("not lost") };
        assert_eq!((lost.overdraft_used, lost.in_doubt), (None, false));
        assert_eq!(lost.available.as_deref(), Some("1"));
    }

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
