//! Writing to rows what Redis has lost and the trail has.
//!
//! A balance is looked at once more right before it is written: Redis must still hold nothing of it, the trail the same state beyond
//! doubt, and the row less. The statement is the workers' own, guarded by the version, so a row that has become as new meanwhile
//! stays as it is. The ledger may load a balance from its old row at the very moment it is written; that is looked for afterwards.

use balance_sync_domain::{BalanceRef, BalanceValue, QuarantineReason, without_numbers};
use balance_sync_engine::audit::Known;
use balance_sync_engine::names;
use balance_sync_schedule::quarantine::QuarantineEntry;
use balance_sync_store::{Outcome, Row, RowResult};
use uuid::Uuid;

use super::{
    Finding,
    finding::shown,
    look::{Seen, Subject},
    tenant::Audited,
};

/// Balances that are written by one statement.
const BATCH: usize = 500;

names! {
    /// What became of a balance that was to be restored.
    pub(crate) enum RestoreOutcome {
        /// Its row has the newest state.
        Restored = "restored",
        /// Its row was as new already.
        AsNew = "as_new",
        /// It is no longer as the plan has it.
        Moved = "moved",
        /// The ledger has begun to go on from the old row.
        GoneOn = "gone_on",
        /// Its row is deleted, or gone.
        NoRow = "no_row",
        /// Another session has locked the row.
        Locked = "locked",
        /// Postgres refuses it.
        Refused = "refused",
    }
}

impl RestoreOutcome {
    /// Whether the row has all that was lost.
    pub(crate) const fn is_good(self) -> bool {
        matches!(self, Self::Restored | Self::AsNew)
    }
}

/// What became of a balance, and why.
pub(crate) struct Restoring<'f> {
    pub finding: &'f Finding,
    pub outcome: RestoreOutcome,
    pub detail: String,
}

/// A balance that is written.
struct Writing<'f> {
    finding: &'f Finding,
    id: Uuid,
    ledger: (Uuid, Uuid),
    known: Known,
    overdraft_used: String,
}

impl Audited<'_> {
    /// Writes what is lost of these balances of this tenant, and hands out what became of each.
    ///
    /// # Errors
    /// When Redis or Postgres can't be asked or written; what was handed out before is done.
    pub(crate) async fn restore(
        &self,
        findings: &[&Finding],
        done: &mut dyn FnMut(Restoring<'_>),
    ) -> anyhow::Result<()> {
        for batch in findings.chunks(BATCH) {
            let subjects: Vec<Subject> = batch
                .iter()
                .map(|finding| Subject { members: self.forms_of(&finding.member), id: finding.id })
                .collect();
            let seen = self.look(&subjects.iter().collect::<Vec<_>>()).await?;
            let mut writing = Vec::with_capacity(batch.len());
            for (finding, seen) in batch.iter().zip(seen) {
                match Writing::of(finding, &seen) {
                    Some(balance) => writing.push(balance),
                    None => done(Restoring {
                        finding,
                        outcome: RestoreOutcome::Moved,
                        detail: "it is no longer as it was when it was found".to_owned(),
                    }),
                }
            }
            self.write(&writing, done).await?;
        }
        Ok(())
    }

    async fn write(
        &self,
        writing: &[Writing<'_>],
        done: &mut dyn FnMut(Restoring<'_>),
    ) -> anyhow::Result<()> {
        let rows: Vec<Row<'_>> = writing
            .iter()
            .map(|balance| Row {
                id: balance.id,
                organization: balance.ledger.0,
                ledger: balance.ledger.1,
                available: &balance.known.amounts.available,
                on_hold: &balance.known.amounts.on_hold,
                overdraft_used: &balance.overdraft_used,
                version: balance.known.version,
            })
            .collect();
        let results = self.database.update_isolating(&self.table, &rows).await?;
        // The ledger may load the balance under another form of the tenant's id than the one it was found under.
        let forms: Vec<Vec<Vec<u8>>> =
            writing.iter().map(|balance| self.forms_of(&balance.finding.member)).collect();
        let keys: Vec<Vec<u8>> = forms.iter().flatten().cloned().collect();
        let mut values = keys.iter().zip(self.values_of(&keys).await?);
        let mut made_good: Vec<(&[u8], i64)> = Vec::new();
        for ((balance, result), forms) in writing.iter().zip(results).zip(&forms) {
            let loaded = values.by_ref().take(forms.len()).filter_map(|(key, value)| {
                BalanceValue::of_member(key, &value?).ok().map(|value| value.version)
            });
            let (outcome, detail) = what_became(result, balance.known.version, loaded.min());
            if outcome.is_good() && balance.finding.listed {
                made_good.extend(forms.iter().map(|form| (form.as_slice(), balance.known.version)));
            }
            done(Restoring { finding: balance.finding, outcome, detail });
        }
        self.drop_losses(&made_good).await
    }

    /// Takes losses from the list that are none any more: members with the versions that were restored.
    async fn drop_losses(&self, restored: &[(&[u8], i64)]) -> anyhow::Result<()> {
        // All at once: there may be many.
        let entries = restored.iter().map(|(member, _)| self.schedules.quarantine_get(member));
        let entries = futures::future::try_join_all(entries).await?;
        let made_good: Vec<&[u8]> = restored
            .iter()
            .zip(&entries)
            .filter(|((_, version), entry)| entry.as_ref().is_some_and(|entry| is_made_good(entry, *version)))
            .map(|((member, _), _)| *member)
            .collect();
        if !made_good.is_empty() {
            self.schedules.quarantine_drop(&made_good).await?;
        }
        Ok(())
    }

    /// The key of a balance in each form of the tenant's id, the given one first.
    pub(super) fn forms_of(&self, member: &[u8]) -> Vec<Vec<u8>> {
        let mut forms = vec![member.to_vec()];
        if let Ok(name) = BalanceRef::parse(self.schedules.of_member(member).space(), member) {
            let others = self.schedules.iter().map(|schedule| {
                schedule.space().balance(name.organization, name.ledger, name.alias, name.key).into_bytes()
            });
            forms.extend(others.filter(|form| form != member));
        }
        forms
    }
}

/// What became of a balance: by what its row answered, the version that was to be written, and that of the value which Redis has now.
fn what_became(result: RowResult, restored: i64, loaded: Option<i64>) -> (RestoreOutcome, String) {
    if let Some(loaded) = loaded.filter(|loaded| *loaded < restored) {
        let detail = format!(
            "the ledger has loaded version {loaded} meanwhile: stop postings to it, and correct it by a transaction of the ledger"
        );
        return (RestoreOutcome::GoneOn, detail);
    }
    match result {
        RowResult::Ok(Outcome::Updated) => (RestoreOutcome::Restored, String::new()),
        RowResult::Ok(Outcome::Stale) | RowResult::Differs => (RestoreOutcome::AsNew, String::new()),
        RowResult::Ok(Outcome::Deleted | Outcome::Missing) => (RestoreOutcome::NoRow, String::new()),
        RowResult::UnknownLedger { message } => (RestoreOutcome::NoRow, shown(&message)),
        RowResult::Locked { message } => (RestoreOutcome::Locked, shown(&message)),
        // Postgres quotes amounts, and not all who read this may see them.
        RowResult::Refused { message, .. } => (RestoreOutcome::Refused, shown(&without_numbers(&message))),
    }
}

/// Whether an entry is of a loss that a row with this version has again. A balance that was written later without it is not, nor one of
/// which it isn't known what was lost: its operation may be on its way.
fn is_made_good(entry: &QuarantineEntry, restored: i64) -> bool {
    entry.reason == QuarantineReason::ValueLost
        && entry.loss.as_ref().is_some_and(|loss| {
            loss.later_at.is_none() && loss.version.is_some_and(|version| version <= restored)
        })
}

impl<'f> Writing<'f> {
    /// What is to be written, if it is still what was found.
    fn of(finding: &'f Finding, seen: &Seen) -> Option<Self> {
        let known = seen.witnesses.recoverable()?.clone();
        (finding.witnesses.recoverable() == Some(&known)).then_some(())?;
        Some(Self {
            finding,
            id: seen.id?,
            ledger: seen.ledger?,
            overdraft_used: known.amounts.overdraft_used.clone()?,
            known,
        })
    }
}

#[cfg(test)]
mod tests {
    use balance_sync_engine::audit::{
        Advice, Amounts, Class, Judgement, Operation, Row as KnownRow, Scheduled, Trail, Value, Witnesses,
    };
    use balance_sync_schedule::Loss;

    use super::*;

    fn known(version: i64) -> Known {
        let (available, on_hold) = (version.to_string(), "0".to_owned());
        Known { version, amounts: Amounts { available, on_hold, overdraft_used: Some("0".to_owned()) } }
    }

    fn seen(trail: i64, row: i64) -> Seen {
        Seen {
            member: b"m".to_vec(),
            id: Some(Uuid::from_u128(1)),
            ledger: Some((Uuid::from_u128(2), Uuid::from_u128(3))),
            witnesses: Witnesses {
                companion: false,
                value: Value::Absent,
                row: Some(KnownRow { known: known(row), deleted: false }),
                trail: Trail::Newest(Operation { known: known(trail), in_doubt: false, age: 100.0 }),
                record: None,
                scheduled: Scheduled::No,
            },
        }
    }

    #[test]
    fn what_is_no_longer_as_it_was_found_is_not_written() {
        let found = seen(7, 5);
        let finding = Finding {
            tenant: "t".to_owned(),
            member: found.member,
            id: found.id,
            ledger: found.ledger,
            judgement: Judgement { class: Class::LostFromRedis, advice: Advice::None, version: 7 },
            witnesses: found.witnesses,
            listed: false,
        };
        let version = |seen: &Seen| Writing::of(&finding, seen).map(|writing| writing.known.version);
        assert_eq!(version(&seen(7, 5)), Some(7));
        assert_eq!(version(&seen(7, 6)), Some(7), "a row that has moved is still behind");
        assert_eq!(version(&seen(8, 5)), None, "the ledger has gone on");
        assert_eq!(version(&seen(7, 7)), None, "it was written");
        let mut back = seen(7, 5);
        back.witnesses.value = Value::Present(known(7));
        assert_eq!(version(&back), None, "Redis has it again");
    }

    #[test]
    fn a_ledger_that_goes_on_from_the_old_row_is_reported_whatever_was_written() {
        for result in [RowResult::Ok(Outcome::Updated), RowResult::Ok(Outcome::Stale), RowResult::Differs] {
            let (outcome, detail) = what_became(result, 7, Some(5));
            assert!(outcome == RestoreOutcome::GoneOn && detail.contains("loaded version 5"), "{detail}");
        }
        for (loaded, result, outcome) in [
            (None, Outcome::Updated, RestoreOutcome::Restored),
            (Some(7), Outcome::Updated, RestoreOutcome::Restored),
            (Some(8), Outcome::Stale, RestoreOutcome::AsNew),
            (None, Outcome::Missing, RestoreOutcome::NoRow),
        ] {
            assert_eq!(what_became(RowResult::Ok(result), 7, loaded).0, outcome, "{loaded:?}");
        }
    }

    #[test]
    fn what_postgres_quotes_of_a_row_is_not_repeated() {
        let message = "Failing row contains (12345.67, 0)".to_owned();
        let (outcome, detail) = what_became(RowResult::Refused { sqlstate: String::new(), message }, 7, None);
        assert!(outcome == RestoreOutcome::Refused && !detail.contains("12345"), "{detail}");
    }

    #[test]
    fn a_loss_after_which_the_balance_was_written_stays_listed() {
        let entry = |version, later_at: Option<&str>| QuarantineEntry {
            reason: QuarantineReason::ValueLost.into(),
            detail: String::new(),
            value: None,
            truncated: false,
            first_at: "1".to_owned(),
            last_at: "1".to_owned(),
            count: 1,
            loss: Some(Loss { version, later_at: later_at.map(str::to_owned), ..Loss::default() }),
        };
        assert!(is_made_good(&entry(Some(7), None), 7));
        assert!(
            !is_made_good(&entry(None, None), 7),
            "what was lost may be newer than what the trail had by then"
        );
        assert!(!is_made_good(&entry(Some(8), None), 7), "a later one was lost");
        assert!(!is_made_good(&entry(Some(7), Some("2")), 7), "the ledger went on from an older state");
        let other = QuarantineEntry { reason: QuarantineReason::MissingRow.into(), ..entry(Some(7), None) };
        assert!(!is_made_good(&other, 7));
    }
}
