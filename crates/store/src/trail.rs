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

mod doubled;
mod statements;

use std::time::Duration;

use uuid::Uuid;

use crate::classify::{ErrorClass, StoreError};
use crate::database::Database;
use crate::evidence::any_row_is_visible;
use crate::identifier::Table;
use crate::session::Session;
use crate::update::CHUNK_ROWS;
pub use doubled::{Doubled, DoubledPage, Side};
pub(crate) use statements::{Columns, Readable, STATE, WINDOW, newest_operation};
use statements::{Deleted, FoundRow, Last, Newest, Query, Rows};

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

/// What the reason says of a search that was given up.
const GIVEN_UP: &str = " took longer than ";

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
    /// It can't be determined.
    Unknown {
        /// The version of the row, where there is one; −1 if it has none.
        row_version: Option<i64>,
        /// Why, in words: which grant is missing, for example.
        why: String,
    },
}

impl Fate {
    /// Whether it can't be determined because a search took too long: of fewer balances at once it may be found out.
    #[must_use]
    pub fn was_given_up(&self) -> bool {
        matches!(self, Self::Unknown { why, .. } if why.contains(GIVEN_UP))
    }
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
                Ok(Err(format!("the search for {}{GIVEN_UP}{limit:?}", Q::SUBJECT)))
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
}
