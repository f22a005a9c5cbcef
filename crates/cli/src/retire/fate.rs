//! What becomes of an entry of quarantine or losses, which the ledger's own worker doesn't know. Pure.

use balance_sync_domain::QuarantineReason;

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The row has what Redis has, or is deleted: nothing is left to be done.
    Settled,
    /// The ledger's own worker can read it and will write it: it is scheduled.
    Scheduled,
    /// Nobody would write it. It is not removed unless it is written down elsewhere; the reason in words.
    Kept(&'static str),
}

/// A row, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SeenRow {
    pub(super) version: i64,
    pub(super) deleted: bool,
    pub(super) same_amounts: bool,
}

/// What is known of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Why it is in quarantine; `None` = it isn't, or for a reason of a later release.
    pub(super) reason: Option<QuarantineReason>,
    /// A mutation is lost, or the balance has forked.
    pub(super) lost: bool,
    /// The member is a balance of this tenant.
    pub(super) is_balance: bool,
    /// The version of the value in Redis; `None` = there is none that can be read.
    pub(super) value: Option<i64>,
    /// The version of the copy in the entry; `None` = there is none that can be read as a whole.
    pub(super) copy: Option<i64>,
    /// There is one, or the entry can't be read: how new it is isn't known. Not of one whose reason is that the value can't be read.
    pub(super) copy_unknown: bool,
    /// Its row.
    pub(super) row: Option<SeenRow>,
}

/// What becomes of it.
pub(super) fn fate(seen: &Seen) -> Fate {
    use QuarantineReason::{Forked, MissingRow, RefusedByPostgres, ValueExpired, ValueLost};
    if seen.lost || matches!(seen.reason, Some(Forked | ValueLost | ValueExpired)) {
        return Fate::Kept("it is lost or forked");
    }
    if !seen.is_balance {
        return Fate::Kept("its member is no balance of this tenant");
    }
    let Some(version) = seen.value else {
        return Fate::Kept("Redis has no value of it that can be read");
    };
    if seen.copy.is_some_and(|copy| copy > version) {
        return Fate::Kept("the copy in its entry is newer than the value in Redis");
    }
    if seen.copy_unknown {
        return Fate::Kept("its copy can't be read");
    }
    let Some(row) = seen.row else {
        // The ledger's worker would take it out of the schedule and write nothing.
        return Fate::Kept("it has no row");
    };
    if row.deleted || row.version == version && row.same_amounts {
        return Fate::Settled;
    }
    if row.version >= version {
        return Fate::Kept("the row has another history");
    }
    match seen.reason {
        // One row that Postgres refuses fails the whole batch of the ledger's worker, again and again.
        Some(RefusedByPostgres) => Fate::Kept("Postgres refuses it"),
        // The row has come, or another value: whoever looks at it now writes it.
        Some(MissingRow) => Fate::Scheduled,
        Some(reason) if reason.as_str().starts_with("value_") => Fate::Scheduled,
        _ => Fate::Kept("why it is in quarantine isn't known to this release"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEHIND: SeenRow = SeenRow { version: 4, deleted: false, same_amounts: false };

    fn seen(reason: QuarantineReason) -> Seen {
        Seen {
            reason: Some(reason),
            lost: false,
            is_balance: true,
            value: Some(5),
            copy: Some(5),
            copy_unknown: false,
            row: Some(BEHIND),
        }
    }

    fn is_kept(seen: &Seen) -> bool {
        matches!(fate(seen), Fate::Kept(_))
    }

    #[test]
    fn only_what_the_ledgers_worker_would_write_is_scheduled() {
        use QuarantineReason::{
            Forked, MemberForeignTenant, MissingRow, RefusedByPostgres, UnreadableEntry, ValueFieldMissing,
            ValueLost,
        };
        assert_eq!(fate(&seen(MissingRow)), Fate::Scheduled);
        assert_eq!(fate(&seen(ValueFieldMissing)), Fate::Scheduled, "a later value is whole");
        for reason in [Forked, ValueLost, RefusedByPostgres, MemberForeignTenant, UnreadableEntry] {
            assert!(is_kept(&seen(reason)), "{reason}");
        }
        assert!(is_kept(&Seen { lost: true, ..seen(MissingRow) }));
        assert!(is_kept(&Seen { reason: None, ..seen(MissingRow) }), "of a later release");
        assert!(is_kept(&Seen { value: None, ..seen(MissingRow) }), "the ledger reads no copies");
        assert!(is_kept(&Seen { copy: Some(6), ..seen(MissingRow) }));
        assert!(is_kept(&Seen { copy: None, copy_unknown: true, ..seen(MissingRow) }));
        assert!(is_kept(&Seen { row: None, ..seen(MissingRow) }), "it would be dropped unwritten");
        assert!(is_kept(&Seen { is_balance: false, ..seen(MissingRow) }));
    }

    #[test]
    fn what_the_row_has_already_is_settled() {
        let row = |version, deleted, same_amounts| Some(SeenRow { version, deleted, same_amounts });
        let of = |row| fate(&Seen { row, ..seen(QuarantineReason::RefusedByPostgres) });
        assert_eq!(of(row(5, false, true)), Fate::Settled);
        assert_eq!(of(row(1, true, false)), Fate::Settled);
        let unknown = Seen { copy: None, copy_unknown: true, ..seen(QuarantineReason::RefusedByPostgres) };
        for row in [row(5, false, true), row(1, true, false)] {
            assert!(is_kept(&Seen { row, ..unknown }), "its copy may be newer");
        }
        assert!(matches!(of(row(5, false, false)), Fate::Kept(_)), "other amounts at the same version");
        assert!(matches!(of(row(6, false, true)), Fate::Kept(_)), "ahead of Redis");
    }
}
