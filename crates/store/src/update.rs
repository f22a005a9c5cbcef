//! The batch update, and what became of each row.
//!
//! One statement per chunk, its values seven arrays.
//!
//! Postgres must walk the arrays in order and look each row up by primary key. That order is what keeps two workers from
//! deadlocking, and any other plan can be ruinous: on a table that has not been analyzed yet (a new tenant's) the planner
//! takes the index on organization and ledger for selective and reads the whole table for each row, or it reads the
//! table through a partial index and searches the arrays for each of its rows: 3 to 20 s for 1000 rows of 70,000
//! instead of 30 ms. So nothing is left to its estimates. [`SAME_ROW`] is worded so that only the primary key can serve
//! it, and the settings of our transactions (`sql.rs`) exclude the other plans on all tables of more than one row.
//!
//! The version guard makes a repeated write harmless, so whatever happens to an answer, writing again is right.

use std::time::Duration;

use rand::Rng;
use sqlx::Row as _;
use uuid::Uuid;

use crate::classify::{ErrorClass, StoreError};
use crate::database::Database;
use crate::evidence::{Visibility, updates_are_taken, visibility};
use crate::identifier::Table;
use crate::locks::{holder, locked, name_holder};
use crate::row::{Batch, Outcome, Row, RowResult};
use crate::session::{Answer, Operation, Session};
use crate::sql::{Sql, Unwritable};

/// Most rows in one statement: some 30 ms of locks on a common disk. Larger batches go in several.
pub const CHUNK_ROWS: usize = 1000;

/// The condition that a stored row `b` is the one that `v` means, deleted or not. Worded against the planner: organization
/// and ledger by `IS NOT DISTINCT FROM`, which no index serves.
pub(crate) const SAME_ROW: &str = "b.id = v.id \
     AND b.organization_id IS NOT DISTINCT FROM v.organization_id AND b.ledger_id IS NOT DISTINCT FROM v.ledger_id";

/// The condition that a stored row `b` is not deleted: in a `CASE`, from which the planner can't conclude that the partial
/// indexes cover it.
pub(crate) const NOT_DELETED: &str = "CASE WHEN b.deleted_at IS NULL THEN true ELSE false END";

/// How often a deadlock or serialization failure is answered by trying again at once.
const CONTENTION_RETRIES: u32 = 3;

/// How often a batch waits in vain for a lock whose holder can't be found: it was given up meanwhile.
const LOCK_WAITS: u32 = 3;

/// How often rows that were there and still did not change are tried again.
const UNCHANGED_RETRIES: u32 = 2;

impl Database {
    /// Writes rows; each becomes what its version allows. The outcomes are in the order of `rows`. A row that stands
    /// several times is written with its highest version, the others are [`Outcome::Stale`].
    ///
    /// Rows beyond [`CHUNK_ROWS`] go in several statements, each its own transaction, on one connection.
    ///
    /// `Updated` and `Stale` are counted as Postgres counted them. Which is which may be exchanged between rows whose
    /// stored version is exactly the one sent; both mean that Postgres has it. A row that was overtaken meanwhile is `Stale`.
    ///
    /// # Errors
    /// The first failure that is not mere contention, by class; of [`ErrorClass::Refused`] it is not known which row
    /// is the culprit (see [`Database::update_isolating`]). What was written before stays, and is stale next time.
    pub async fn update(&self, table: &Table, rows: &[Row<'_>]) -> Result<Vec<Outcome>, StoreError> {
        let batch = Batch::new(rows);
        let mut sent = Vec::with_capacity(batch.rows.len());
        if !batch.rows.is_empty() {
            let mut session = self.session().await?;
            for chunk in batch.rows.chunks(CHUNK_ROWS) {
                sent.append(&mut write(&mut session, table, chunk).await?);
            }
        }
        let outcome = |result| match result {
            RowResult::Ok(outcome) => Ok(outcome),
            RowResult::Differs => Ok(Outcome::Stale),
            RowResult::Refused { message, .. } => Err(StoreError::quoting(ErrorClass::Refused, &message)),
            RowResult::UnknownLedger { message } => Err(StoreError::new(ErrorClass::NoVisibleRows, message)),
            RowResult::Locked { message } => Err(StoreError::new(ErrorClass::Timeout, message)),
        };
        batch.spread(&sent).into_iter().map(outcome).collect()
    }

    /// As [`Database::update`], but a row that Postgres refuses doesn't keep the others from being written: a refused
    /// batch is bisected until the culprits stand alone.
    ///
    /// # Errors
    /// Any failure but a refused value and contention, by class. What was written before stays.
    pub async fn update_isolating(
        &self,
        table: &Table,
        rows: &[Row<'_>],
    ) -> Result<Vec<RowResult>, StoreError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        self.session().await?.update_isolating(table, rows).await
    }
}

impl Session {
    /// As [`Database::update_isolating`], on this connection.
    ///
    /// # Errors
    /// Any failure but a refused value and contention, by class. What was written before stays. Where the refusal is not about the
    /// rows that were sent (`evidence.rs`): [`ErrorClass::NoVisibleRows`], [`ErrorClass::RefusesEveryRow`].
    pub async fn update_isolating(
        &mut self,
        table: &Table,
        rows: &[Row<'_>],
    ) -> Result<Vec<RowResult>, StoreError> {
        let batch = Batch::new(rows);
        let mut sent: Vec<Option<RowResult>> = vec![None; batch.rows.len()];
        // Rows that were locked last time are looked at first, without waiting for them.
        let suspected = table.was_locked(batch.rows.iter().map(|row| row.id));
        let (doubtful, mut free): (Vec<usize>, Vec<usize>) =
            (0..batch.rows.len()).partition(|at| suspected[*at]);
        if !doubtful.is_empty() {
            free.extend(set_locked_aside(self, table, &batch.rows, &doubtful, &mut sent).await?);
            free.sort_unstable();
        }
        // The parts still to be written, the next one last.
        let mut parts: Vec<Vec<usize>> = free.chunks(CHUNK_ROWS).rev().map(<[usize]>::to_vec).collect();
        let mut waited = 0;
        // Postgres has taken a row in, or has been asked whether it takes any.
        let mut judged = false;
        while let Some(part) = parts.pop() {
            let rows: Vec<&Row<'_>> = part.iter().map(|at| batch.rows[*at]).collect();
            match write(self, table, &rows).await {
                Ok(results) => {
                    judged |= results.contains(&RowResult::Ok(Outcome::Updated));
                    part.iter().zip(results).for_each(|(at, result)| sent[*at] = Some(result));
                }
                Err(error) if error.is_lock_timeout() => {
                    if waited == LOCK_WAITS {
                        return Err(name_holder(self, table, error).await);
                    }
                    waited += 1;
                    let rest = set_locked_aside(self, table, &batch.rows, &part, &mut sent).await?;
                    if rest.len() < part.len() {
                        // They were not in vain.
                        waited = 0;
                    }
                    if !rest.is_empty() {
                        parts.push(rest);
                    }
                }
                Err(error) if !error.may_concern_one_row() => return Err(error),
                Err(_) if !judged => {
                    updates_are_taken(self, table, &batch.rows).await?;
                    judged = true;
                    parts.push(part);
                }
                Err(error) if part.len() == 1 => {
                    sent[part[0]] = Some(RowResult::Refused {
                        sqlstate: error.sqlstate().unwrap_or_default().to_owned(),
                        message: error.in_full().to_owned(),
                    });
                }
                Err(_) => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right.to_vec(), left.to_vec()]);
                }
            }
        }
        // A row without a result would move those of the others to the wrong rows.
        let Some(mut sent) = sent.into_iter().collect::<Option<Vec<RowResult>>>() else {
            return Err(StoreError::new(ErrorClass::Internal, "a row of the batch has no result".to_owned()));
        };
        // Rows that were left as they were without an error.
        if !judged && sent.iter().any(|result| matches!(result, RowResult::Refused { .. })) {
            updates_are_taken(self, table, &batch.rows).await?;
        }
        if !sent.is_empty()
            && sent.iter().all(|result| *result == RowResult::Ok(Outcome::Missing))
            && let Visibility::UnknownLedger(message) = visibility(self, table, &batch.rows).await?
        {
            sent.fill(RowResult::UnknownLedger { message });
        }
        Ok(batch.spread(&sent))
    }
}

/// Notes which of these rows are locked by another session, and gives the others.
async fn set_locked_aside(
    session: &mut Session,
    table: &Table,
    rows: &[&Row<'_>],
    among: &[usize],
    sent: &mut [Option<RowResult>],
) -> Result<Vec<usize>, StoreError> {
    let mut rest = Vec::with_capacity(among.len());
    for part in among.chunks(CHUNK_ROWS) {
        let asked: Vec<&Row<'_>> = part.iter().map(|at| rows[*at]).collect();
        let found = match locked(session, table, &asked).await {
            Ok(found) => found,
            Err(error) if error.is_lock_timeout() => return Err(name_holder(session, table, error).await),
            Err(error) => return Err(error),
        };
        let mut is_locked = vec![false; part.len()];
        found.iter().for_each(|at| is_locked[*at] = true);
        table.note_locked(asked.iter().map(|row| row.id).zip(is_locked.iter().copied()));
        if !found.is_empty() {
            let held: Vec<&Row<'_>> = found.iter().map(|at| asked[*at]).collect();
            let message = holder(session, table, &held).await?;
            found.iter().for_each(|at| {
                sent[part[*at]] = Some(RowResult::Locked { message: message.clone() });
            });
        }
        rest.extend(part.iter().zip(&is_locked).filter(|(_, locked)| !**locked).map(|(at, _)| *at));
    }
    Ok(rest)
}

/// Writes one chunk and finds out what became of each row. Rows are refused one by one only if Postgres left
/// them as they were without an error; an error refuses the chunk.
pub(crate) async fn write(
    session: &mut Session,
    table: &Table,
    rows: &[&Row<'_>],
) -> Result<Vec<RowResult>, StoreError> {
    let mut results: Vec<Option<RowResult>> = vec![None; rows.len()];
    let mut pending: Vec<usize> = (0..rows.len()).collect();
    for attempt in 0..=UNCHANGED_RETRIES {
        let sending: Vec<&Row<'_>> = pending.iter().map(|&i| rows[i]).collect();
        let updated = update(session, table, &sending).await?;
        if updated >= sending.len() as u64 {
            pending.iter().for_each(|&i| results[i] = Some(RowResult::Ok(Outcome::Updated)));
            break;
        }
        let amounts = !table.amounts_are_hidden();
        let stored = run(session, &Versions { table, rows: &sending, amounts }).await?;
        let outcomes = tell_apart(&sending, &stored, updated);
        let mut unchanged = Vec::new();
        for (&i, outcome) in pending.iter().zip(outcomes) {
            match outcome {
                Some(result) => results[i] = Some(result),
                // It came between our two statements (created, restored) and deserves another try.
                None if attempt < UNCHANGED_RETRIES => unchanged.push(i),
                // Or a trigger or a policy suppresses the update. To call it missing would be wrong, to report a
                // failure of the whole batch would let one row hold up all others.
                None => {
                    results[i] = Some(RowResult::Refused {
                        sqlstate: String::new(),
                        message: "the row has a lower version and still was not updated: a trigger or a policy of the \
                                  database suppresses it"
                            .to_owned(),
                    });
                }
            }
        }
        pending = unchanged;
        if pending.is_empty() {
            break;
        }
    }
    let results: Vec<RowResult> = results.into_iter().flatten().collect();
    let there = |result: &RowResult| {
        matches!(result, RowResult::Differs)
            || matches!(result, RowResult::Ok(outcome) if *outcome != Outcome::Missing)
    };
    if let Some(at) = results.iter().position(there) {
        table.note_written(rows[at].organization, rows[at].ledger);
    }
    Ok(results)
}

/// Updates these rows, and returns how many changed. That they are stored as they were sent is checked as far as the role may
/// read them.
async fn update(session: &mut Session, table: &Table, rows: &[&Row<'_>]) -> Result<u64, StoreError> {
    let amounts = !table.amounts_are_hidden();
    match run(session, &Update { table, rows, amounts }).await {
        Err(error) if error.class() == ErrorClass::Permission && amounts && !error.may_concern_one_row() => {
            // Either the role may not update, or it may not read what is needed for the check alone.
            let result = run(session, &Update { table, rows, amounts: false }).await;
            let may_write = result
                .as_ref()
                .err()
                .is_none_or(|error| error.class() != ErrorClass::Permission || error.may_concern_one_row());
            if may_write && table.note_hidden_amounts() {
                tracing::warn!(
                    table = table.as_sql(),
                    "the role may not read the amounts, so it is not checked that no trigger changes them: \
                     grant SELECT (available, on_hold, overdraft_used)"
                );
            }
            result
        }
        result => result,
    }
}

/// A row after the update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// With this version, −1 if it has none, and whether its amounts are those that were sent, as far as the role may read them.
    Version(i64, bool),
    /// It is deleted.
    Deleted,
}

/// What became of each row, from what is stored after the update and the number of rows it changed. `None`: the row is
/// there with a lower version, though the update should have changed it.
///
/// A row with a later version may be one that we wrote and another writer has overtaken since, or one whose balance has forked.
/// The number of updated rows doesn't tell which of two it is, so both differ, and what Redis has now decides.
fn tell_apart(rows: &[&Row<'_>], stored: &[Option<Stored>], updated: u64) -> Vec<Option<RowResult>> {
    let mut remaining = updated;
    let outcome = |(row, stored): (&&Row<'_>, &Option<Stored>)| match *stored {
        None => Some(RowResult::Ok(Outcome::Missing)),
        Some(Stored::Deleted) => Some(RowResult::Ok(Outcome::Deleted)),
        Some(Stored::Version(version, _)) if version < row.version => None,
        // What we have written has our version and amounts.
        Some(Stored::Version(version, same)) if version > row.version || !same => Some(RowResult::Differs),
        Some(Stored::Version(..)) if remaining > 0 => {
            remaining -= 1;
            Some(RowResult::Ok(Outcome::Updated))
        }
        Some(Stored::Version(..)) => Some(RowResult::Ok(Outcome::Stale)),
    };
    rows.iter().zip(stored).map(outcome).collect()
}

/// Runs a statement; a deadlock or a serialization failure is answered by running it again, at once, a few times.
pub(crate) async fn run<O: Operation>(session: &mut Session, operation: &O) -> Result<O::Output, StoreError> {
    let mut retries = 0;
    loop {
        match session.run(operation).await {
            Err(error) if error.class() == ErrorClass::Contention && retries < CONTENTION_RETRIES => {
                retries += 1;
                tracing::debug!(error = %error, retries, "another transaction was in the way, trying again");
                // Jitter, lest the two who met meet again.
                let pause = rand::rng().random_range(1..=10 * u64::from(retries));
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            result => return result,
        }
    }
}

/// The rows' identities as arrays: ids, organizations, ledgers.
pub(crate) fn identities<'s, 't>(sql: &'s mut Sql<'t>, rows: &[&Row<'_>]) -> &'s mut Sql<'t> {
    sql.uuids(rows.iter().map(|r| r.id)).push(", ");
    sql.uuids(rows.iter().map(|r| r.organization)).push(", ");
    sql.uuids(rows.iter().map(|r| r.ledger))
}

/// The organization and ledger of all rows, if they share one.
fn same_ledger(rows: &[&Row<'_>]) -> Option<(Uuid, Uuid)> {
    let first = rows.first().map(|row| (row.organization, row.ledger))?;
    rows.iter().all(|row| (row.organization, row.ledger) == first).then_some(first)
}

/// The rows' amounts as arrays: available, on hold, overdraft used.
pub(crate) fn amounts(sql: &mut Sql<'_>, rows: &[&Row<'_>]) -> Result<(), Unwritable> {
    sql.amounts(rows.iter().map(|r| r.available))?.push(", ");
    sql.amounts(rows.iter().map(|r| r.on_hold))?.push(", ");
    sql.amounts(rows.iter().map(|r| r.overdraft_used))?;
    Ok(())
}

/// The update of one chunk; answers the number of rows it changed. It fails if a row would not be stored as it was sent: a
/// trigger may put the old version or other amounts back, and the type of a column may round.
struct Update<'s> {
    table: &'s Table,
    rows: &'s [&'s Row<'s>],
    /// Check the amounts, which the role must be allowed to read, and not only the version.
    amounts: bool,
}

impl Operation for Update<'_> {
    type Output = u64;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push("WITH u AS (UPDATE ").balances(self.table)?.push(
            " AS b SET available = v.available, on_hold = v.on_hold, overdraft_used = v.overdraft_used, \
             version = v.version, updated_at = pg_catalog.now() FROM unnest(",
        );
        // Most batches are of one ledger: naming it once instead of with every row saves a tenth of Postgres's work.
        let one_ledger = same_ledger(self.rows);
        match one_ledger {
            Some(_) => sql.uuids(self.rows.iter().map(|r| r.id)),
            None => identities(sql, self.rows),
        };
        sql.push(", ");
        amounts(sql, self.rows)?;
        sql.push(", ").bigints(self.rows.iter().map(|r| r.version));
        sql.push(match one_ledger {
            Some(_) => ") AS v(id, available, on_hold, overdraft_used, version) WHERE ",
            None => {
                ") AS v(id, organization_id, ledger_id, available, on_hold, overdraft_used, version) WHERE "
            }
        });
        match one_ledger {
            // In a `CASE` over a column of `v`, or the planner would see conditions on `b` alone, and take the whole table for
            // the better start if it believes that they leave few rows.
            Some((organization, ledger)) => sql
                .push("b.id = v.id AND CASE WHEN v.id IS NULL THEN false ELSE b.organization_id = ")
                .uuid(organization)
                .push(" AND b.ledger_id = ")
                .uuid(ledger)
                .push(" END"),
            None => sql.push(SAME_ROW),
        };
        // `coalesce`: a row without a version has never been synced.
        sql.push(" AND ").push(NOT_DELETED);
        sql.push(" AND coalesce(b.version, -1) < v.version AND ").guard();
        sql.push(" RETURNING v.id, (b.version = v.version");
        if self.amounts {
            sql.push(
                " AND b.available = v.available AND b.on_hold = v.on_hold AND b.overdraft_used = v.overdraft_used",
            );
        }
        sql.push(") IS TRUE AS same) ").count_unless_altered();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<u64, sqlx::Error> {
        let updated: i64 = answer.rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
        u64::try_from(updated).map_err(|error| sqlx::Error::Decode(error.into()))
    }
}

/// What is stored of one chunk, in its order; `None` where there is no such row.
struct Versions<'s> {
    table: &'s Table,
    rows: &'s [&'s Row<'s>],
    /// Compare the amounts too, which the role must be allowed to read.
    amounts: bool,
}

impl Operation for Versions<'_> {
    type Output = Vec<Option<Stored>>;

    fn write(&self, sql: &mut Sql<'_>) -> Result<(), Unwritable> {
        sql.push("SELECT v.n, coalesce(b.version, -1)::pg_catalog.int8, b.deleted_at IS NOT NULL, ");
        if self.amounts {
            sql.push(
                "(b.available, b.on_hold, b.overdraft_used) IS NOT DISTINCT FROM \
                 (v.available, v.on_hold, v.overdraft_used) FROM unnest(",
            );
            identities(sql, self.rows).push(", ");
            amounts(sql, self.rows)?;
            sql.push(") WITH ORDINALITY AS v(id, organization_id, ledger_id, available, on_hold, overdraft_used, n) JOIN ");
        } else {
            sql.push("true FROM unnest(");
            identities(sql, self.rows);
            sql.push(") WITH ORDINALITY AS v(id, organization_id, ledger_id, n) JOIN ");
        }
        sql.balances(self.table)?.push(" AS b ON ").push(SAME_ROW).push(" WHERE ").guard();
        Ok(())
    }

    fn read(&self, answer: Answer) -> Result<Self::Output, sqlx::Error> {
        let mut stored = vec![None; self.rows.len()];
        for row in answer.rows {
            let value = match row.try_get(2)? {
                true => Stored::Deleted,
                false => Stored::Version(row.try_get(1)?, row.try_get(3)?),
            };
            place(&mut stored, row.try_get(0)?, value);
        }
        Ok(stored)
    }
}

/// Puts a value at a position Postgres counts from 1.
pub(crate) fn place<T>(slots: &mut [Option<T>], ordinal: i64, value: T) {
    if let Some(slot) = usize::try_from(ordinal - 1).ok().and_then(|i| slots.get_mut(i)) {
        *slot = Some(value);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// Versions sent and stored; −2 stands for a deleted row.
    fn outcomes(versions: &[(i64, Option<i64>)], updated: u64) -> Vec<Option<RowResult>> {
        let stored: Vec<_> =
            versions.iter().map(|&(_, stored)| stored.map(|version| (version, true))).collect();
        outcomes_of(versions, &stored, updated)
    }

    fn outcomes_of(
        versions: &[(i64, Option<i64>)],
        stored: &[Option<(i64, bool)>],
        updated: u64,
    ) -> Vec<Option<RowResult>> {
        let rows: Vec<Row<'_>> = versions
            .iter()
            .map(|&(version, _)| Row {
                id: Uuid::nil(),
                organization: Uuid::nil(),
                ledger: Uuid::nil(),
                available: "0",
                on_hold: "0",
                overdraft_used: "0",
                version,
            })
            .collect();
        let read = |(version, same)| match version {
            -2 => Stored::Deleted,
            version => Stored::Version(version, same),
        };
        let stored: Vec<_> = stored.iter().map(|stored| stored.map(read)).collect();
        tell_apart(&rows.iter().collect::<Vec<_>>(), &stored, updated)
    }

    #[test]
    fn what_the_stored_versions_tell() {
        let [deleted, missing, stale, updated] =
            [Outcome::Deleted, Outcome::Missing, Outcome::Stale, Outcome::Updated].map(RowResult::Ok);
        assert_eq!(
            outcomes(&[(5, Some(5)), (5, Some(9)), (5, None)], 1),
            [Some(updated.clone()), Some(RowResult::Differs), Some(missing.clone())]
        );
        assert_eq!(
            outcomes(&[(5, Some(-2)), (5, Some(5)), (0, Some(-1))], 1),
            [Some(deleted), Some(updated.clone()), None]
        );
        // Overtaken before we asked, or forked: of two updates one may be that of either row.
        assert_eq!(
            outcomes(&[(5, Some(6)), (5, Some(5)), (5, Some(9)), (5, None)], 2),
            [Some(RowResult::Differs), Some(updated.clone()), Some(RowResult::Differs), Some(missing)]
        );
        // The same version came from another worker: one of the two was ours, Postgres has both.
        assert_eq!(outcomes(&[(5, Some(5)), (5, Some(5))], 1), [Some(updated.clone()), Some(stale.clone())]);
        assert_eq!(outcomes(&[(5, Some(4)), (5, Some(5))], 1), [None, Some(updated.clone())]);
        // Other amounts at our version can't be ours, whatever was updated.
        let both = [(5, Some(5)), (5, Some(5))];
        let stored = [Some((5, false)), Some((5, true))];
        assert_eq!(outcomes_of(&both, &stored, 1), [Some(RowResult::Differs), Some(updated)]);
        assert_eq!(outcomes_of(&both, &stored, 0), [Some(RowResult::Differs), Some(stale)]);
    }
}
