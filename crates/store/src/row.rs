//! What is written, what became of it, and the order in which rows go to Postgres.

use std::cmp::Reverse;

use uuid::Uuid;

/// One balance, ready to be written. Amounts are decimal text the domain has validated: they are cast to `numeric`
/// inside the statement, so no digit passes through anything narrower than Postgres's own type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Primary key of the row.
    pub id: Uuid,
    /// The organization the row must belong to.
    pub organization: Uuid,
    /// The ledger the row must belong to.
    pub ledger: Uuid,
    /// New `available`.
    pub available: &'a str,
    /// New `on_hold`.
    pub on_hold: &'a str,
    /// New `overdraft_used`.
    pub overdraft_used: &'a str,
    /// New version: the row changes only if its own is lower.
    pub version: i64,
}

/// What became of a row that Postgres did not refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The row now has the values that were sent.
    Updated,
    /// The row was as new or newer, and was left alone. Postgres has this mutation, or a later one.
    Stale,
    /// The row is deleted: the ledger has closed the balance, and nothing of it is written any more.
    Deleted,
    /// There is no such row: unknown id, or another organization or ledger.
    Missing,
}

/// What became of a row in [`crate::Database::update_isolating`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowResult {
    /// Postgres took it.
    Ok(Outcome),
    /// The row is newer than what was sent, or has other amounts at the same version, and was left alone. Harmless if another
    /// worker has written a later mutation meanwhile, a fork of the balance otherwise: what Redis holds now tells which.
    Differs,
    /// There is no such row, the table knows no other of its organization and ledger, and nothing shows that the table is the
    /// tenant's. Perhaps the database is a wrong one: to be tried again later, not to be taken for missing.
    UnknownLedger {
        /// What was found, in words.
        message: String,
    },
    /// Another session has locked the row for longer than a batch should wait. To be tried again soon.
    Locked {
        /// Who, in words.
        message: String,
    },
    /// Postgres refuses this row whatever it is sent with: it belongs in quarantine.
    Refused {
        /// The SQLSTATE; empty when Postgres gave no error and still left the row as it was.
        sqlstate: String,
        /// What Postgres said, without the rest of the row. May quote amounts.
        message: String,
    },
}

/// The rows of one call in the order in which they are sent, each balance once.
///
/// Sorted by id, because two workers that lock the same rows in the same order can't deadlock. Each (id, organization,
/// ledger) once with its highest version, because `UPDATE … FROM` picks at random among several matches. The identity
/// includes organization and ledger so that a row under a wrong one never hides the right one.
pub(crate) struct Batch<'a, 'r> {
    /// The rows to send.
    pub(crate) rows: Vec<&'r Row<'a>>,
    /// For each input row, where in `rows` it or its newest duplicate stands.
    position: Vec<usize>,
    /// For each row of `rows`, the input row it is.
    source: Vec<usize>,
}

impl<'a, 'r> Batch<'a, 'r> {
    pub(crate) fn new(input: &'r [Row<'a>]) -> Batch<'a, 'r> {
        let identity = |i: usize| (input[i].id, input[i].organization, input[i].ledger);
        let mut order: Vec<usize> = (0..input.len()).collect();
        order.sort_unstable_by_key(|&i| (identity(i), Reverse(input[i].version), i));
        let mut batch = Batch {
            rows: Vec::with_capacity(input.len()),
            position: vec![0; input.len()],
            source: Vec::new(),
        };
        for i in order {
            if batch.source.last().is_none_or(|&last| identity(last) != identity(i)) {
                batch.rows.push(&input[i]);
                batch.source.push(i);
            }
            batch.position[i] = batch.rows.len() - 1;
        }
        batch
    }

    /// Spreads the results of the rows that were sent over the rows of the input, in its order. A duplicate shares the
    /// fate of the newest one, except that what was updated was not updated by it.
    pub(crate) fn spread(&self, sent: &[RowResult]) -> Vec<RowResult> {
        self.position
            .iter()
            .enumerate()
            .map(|(input, &position)| match &sent[position] {
                RowResult::Ok(Outcome::Updated) if self.source[position] != input => {
                    RowResult::Ok(Outcome::Stale)
                }
                result => result.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u128, organization: u128, version: i64) -> Row<'static> {
        Row {
            id: Uuid::from_u128(id),
            organization: Uuid::from_u128(organization),
            ledger: Uuid::nil(),
            available: "1",
            on_hold: "0",
            overdraft_used: "0",
            version,
        }
    }

    #[test]
    fn sorted_by_id_and_each_balance_once_with_its_newest_version() {
        let input = [row(3, 1, 1), row(1, 1, 5), row(2, 1, 1), row(1, 1, 7), row(1, 1, 7), row(1, 1, 6)];
        let batch = Batch::new(&input);
        let sent: Vec<_> = batch.rows.iter().map(|r| (r.id.as_u128(), r.version)).collect();
        assert_eq!(sent, [(1, 7), (2, 1), (3, 1)]);

        let updated = RowResult::Ok(Outcome::Updated);
        let stale = RowResult::Ok(Outcome::Stale);
        let missing = RowResult::Ok(Outcome::Missing);
        assert_eq!(
            batch.spread(&[updated.clone(), missing.clone(), stale.clone()]),
            [stale.clone(), stale.clone(), missing.clone(), updated, stale.clone(), stale]
        );
        assert_eq!(batch.spread(&[missing.clone(), missing.clone(), missing.clone()]), vec![missing; 6]);
    }

    #[test]
    fn another_organization_is_another_balance() {
        let input = [row(1, 1, 5), row(1, 2, 9)];
        assert_eq!(
            Batch::new(&input).rows.len(),
            2,
            "the newer row of a wrong organization must not hide this one"
        );
    }

    #[test]
    fn an_empty_batch_is_empty() {
        let batch = Batch::new(&[]);
        assert!(batch.rows.is_empty());
        assert!(batch.spread(&[]).is_empty());
    }
}
