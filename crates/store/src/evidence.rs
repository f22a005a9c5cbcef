//! Whether a refusal concerns the rows that were sent, or every row of the tenant.
//!
//! A row that is missing or refused goes to quarantine. A table in which no row is visible, or that takes no update at all,
//! would send the tenant's whole backlog there. So before a batch is judged row by row, the table itself is asked:
//!
//! - No row of a batch was found: is any other row visible, does the table know the batch's organizations and ledgers, and
//!   has a row of this tenant been written to it before?
//! - The first row of a batch was refused: is an update of another row, to other amounts and the next version, refused as
//!   well? It is made and rolled back in one message, so it changes nothing, and runs all triggers and constraints, deferred
//!   ones included.

use sqlx::Row as _;
use uuid::Uuid;

use crate::classify::{ErrorClass, StoreError};
use crate::identifier::Table;
use crate::row::{Outcome, Row, RowResult};
use crate::session::{Answer, Operation, Session};
use crate::sql::{PROBE_MARK, Sql, Unwritable};
use crate::update::{run, write};

/// Rows that are tried before a table counts as one that refuses every update: at both ends of its ids, which grow with time,
/// so that a rule for old or new balances is not taken for one for all.
const PLACES: [&str; 4] = [
    " ORDER BY id LIMIT 1",
    " ORDER BY id DESC LIMIT 1",
    " ORDER BY id LIMIT 1 OFFSET 10",
    " ORDER BY id DESC LIMIT 1 OFFSET 10",
];

/// Rows of the batch that are tried on their own then.
const TRIED: usize = 3;

/// Rows of a batch under organizations and ledgers that the table doesn't know at all, from which on the database is taken
/// for a wrong one. Fewer are taken for members that are wrong.
const STRANGERS: usize = 10;

/// What a table says about rows none of which was found in it.
pub(crate) enum Visibility {
    /// It is the tenant's: the rows are missing.
    Missing,
    /// It may be another's, as the words say.
    UnknownLedger(String),
}

/// Whether rows that were not found in a table are missing in it. To be called when no row of a batch was found.
///
/// # Errors
/// [`ErrorClass::NoVisibleRows`] if the table looks like one in which this tenant's rows can't be seen, and what keeps the
/// table from being asked.
pub(crate) async fn visibility(
    session: &mut Session,
    table: &Table,
    rows: &[&Row<'_>],
) -> Result<Visibility, StoreError> {
    let mut ledgers: Vec<(Uuid, Uuid)> = rows.iter().map(|row| (row.organization, row.ledger)).collect();
    ledgers.extend(table.written());
    ledgers.sort_unstable();
    ledgers.dedup();
    let (any, known) = run(session, &Visible { table, rows, ledgers: &ledgers }).await?;
    let words = if !any {
        format!(
            "the table {} has no row that this role can see: it is empty, freshly restored, or in a wrong database",
            table.as_sql()
        )
    } else if known {
        return Ok(Visibility::Missing);
    } else if rows.len() < STRANGERS {
        // One wrong member must not hold up the others.
        return Ok(Visibility::UnknownLedger(format!(
            "the table {} has rows of other organizations and ledgers only: is this another tenant's database, or restored \
             from another environment?",
            table.as_sql()
        )));
    } else {
        format!(
            "of {} balances none has a row in {}, nor has any other balance of their organizations and ledgers: is this \
             another tenant's database, or restored from another environment?",
            rows.len(),
            table.as_sql()
        )
    };
    Err(StoreError::new(ErrorClass::NoVisibleRows, words).keeping_session())
}

/// Fails if no row of the table is visible. To be called when none was found by name.
///
/// # Errors
/// [`ErrorClass::NoVisibleRows`] then, and what keeps the table from being asked.
pub(crate) async fn any_row_is_visible(session: &mut Session, table: &Table) -> Result<(), StoreError> {
    visibility(session, table, &[]).await.map(drop)
}

/// Fails if the table refuses updates of other rows as well. To be called when a row of a batch was refused and none has been
/// written. Rows of the batch that are written on the way are stale when they are sent again.
///
/// # Errors
/// [`ErrorClass::RefusesEveryRow`] then, and any failure that is not a refusal.
pub(crate) async fn updates_are_taken(
    session: &mut Session,
    table: &Table,
    rows: &[&Row<'_>],
) -> Result<(), StoreError> {
    let mut refusal = None;
    for others in [true, false] {
        for place in PLACES {
            match probe(session, &Probe { table, rows, others, place }).await? {
                Probed::Taken => return Ok(()),
                Probed::Refused(error) => refusal = Some(error),
                Probed::NoRow => {}
            }
        }
        // The batch's own rows only where there are no others: they may be refused for their own sake.
        if refusal.is_some() {
            break;
        }
    }
    let Some(refusal) = refusal else { return Ok(()) };
    // A rule may concern many rows and not all. What the batch itself gets is better evidence.
    let step = rows.len().div_ceil(TRIED).max(1);
    for row in rows.iter().step_by(step) {
        match write(session, table, &[*row]).await {
            Ok(results) if results == [RowResult::Ok(Outcome::Updated)] => return Ok(()),
            Ok(_) => {}
            Err(error) if error.may_concern_one_row() => {}
            Err(error) => return Err(error),
        }
    }
    let words = format!("the table {} refuses every update: {refusal}", table.as_sql());
    Err(refusal.of_every_row(words))
}

enum Probed {
    Taken,
    Refused(StoreError),
    /// There is no such row, or another session has locked it.
    NoRow,
}

async fn probe(session: &mut Session, operation: &Probe<'_>) -> Result<Probed, StoreError> {
    let error = match run(session, operation).await {
        // It ends in an error of its own, whose words say what it did.
        Ok(()) => return Ok(Probed::Taken),
        Err(error) => error,
    };
    // What a trigger raises is its refusal, whatever it says.
    if !error.in_function()
        && let Some((_, found)) = error.in_full().split_once(PROBE_MARK)
    {
        let counts: Vec<u64> =
            found.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        return Ok(match counts.as_slice() {
            [0, ..] => Probed::NoRow,
            [_, 0, ..] => Probed::Refused(StoreError::new(
                ErrorClass::Refused,
                "a trigger or a rule suppresses or changes it",
            )),
            _ => Probed::Taken,
        });
    }
    if error.may_concern_one_row() { Ok(Probed::Refused(error)) } else { Err(error) }
}

/// Whether any row is visible, and whether the table knows one of these organizations and ledgers, or the id of a row.
struct Visible<'s> {
    table: &'s Table,
    rows: &'s [&'s Row<'s>],
    ledgers: &'s [(Uuid, Uuid)],
}

impl Operation for Visible<'_> {
    type Output = (bool, bool);

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push("SELECT EXISTS (SELECT 1 FROM ").balances(self.table)?;
        sql.push("), EXISTS (SELECT 1 FROM unnest(");
        sql.uuids(self.ledgers.iter().map(|(organization, _)| *organization)).push(", ");
        sql.uuids(self.ledgers.iter().map(|(_, ledger)| *ledger));
        sql.push(") AS v(organization_id, ledger_id) JOIN ").balances(self.table)?;
        sql.push(
            " AS b ON b.organization_id = v.organization_id AND b.ledger_id = v.ledger_id) \
             OR EXISTS (SELECT 1 FROM unnest(",
        );
        sql.uuids(self.rows.iter().map(|row| row.id));
        sql.push(") AS w(id) JOIN ").balances(self.table)?;
        sql.push(" AS b ON b.id = w.id) WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let row = answer.rows.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }
}

/// An update of one row to other amounts and the next version, rolled back: a trigger that freezes money lets equal amounts
/// through. What it stores is checked as that of a write. Which row: the one at that place among those that are not in the
/// batch, or that are.
struct Probe<'s> {
    table: &'s Table,
    rows: &'s [&'s Row<'s>],
    others: bool,
    place: &'static str,
}

impl Operation for Probe<'_> {
    type Output = ();

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push("WITH c AS MATERIALIZED (SELECT id, coalesce(version, 0) + 1 AS next FROM ")
            .balances(self.table)?;
        sql.push(" WHERE deleted_at IS NULL AND id ").push(if self.others { "<> ALL (" } else { "= ANY (" });
        sql.uuids(self.rows.iter().map(|row| row.id)).push(") AND ").guard();
        sql.push(self.place).push(" FOR UPDATE SKIP LOCKED), p AS (UPDATE ").balances(self.table)?;
        sql.push(
            " AS b SET available = 1.5, on_hold = 0, version = c.next, overdraft_used = 0, \
             updated_at = pg_catalog.now() FROM c WHERE b.id = c.id RETURNING (b.version = c.next",
        );
        if !self.table.amounts_are_hidden() {
            sql.push(" AND b.available = 1.5 AND b.on_hold = 0 AND b.overdraft_used = 0");
        }
        sql.push(") IS TRUE AS same) ");
        sql.report_and_roll_back("(SELECT count(*) FROM c)", "(SELECT count(*) FROM p WHERE same)");
        Ok(())
    }

    fn read(&self, _: Answer) -> Result<(), sqlx::Error> {
        Ok(())
    }
}
