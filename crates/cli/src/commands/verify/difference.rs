//! How a row differs from the value in Redis, look by look.

use balance_sync_store::StoredRow;
use uuid::Uuid;

/// How a row differs from its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference {
    /// There is no row.
    Missing,
    /// It has this version.
    Behind(i64),
    /// It has version `row`, and Redis version `redis`.
    Ahead { row: i64, redis: i64 },
    /// Other amounts at the same version.
    Other,
}

impl Difference {
    pub(super) fn words(self, reached: i64) -> String {
        match self {
            Self::Missing => format!("missing in Postgres, version {reached} in Redis"),
            Self::Behind(row) => format!("behind: version {row} in Postgres, {reached} in Redis"),
            Self::Ahead { row, redis } => format!("ahead: version {row} in Postgres, {redis} in Redis"),
            Self::Other => format!("other amounts at the same version {reached}"),
        }
    }
}

/// A balance that is not settled yet.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) member: Vec<u8>,
    /// The version that its row must have reached: what Redis held at the first look. Negative before that.
    pub(super) reached: i64,
    /// How it differed at the last look.
    pub(super) found: Difference,
    /// The id in its value, to look at its row also when the value has gone.
    pub(super) id: Option<Uuid>,
}

impl Open {
    pub(super) fn new(member: Vec<u8>) -> Self {
        Self { member, reached: -1, found: Difference::Missing, id: None }
    }

    /// The same when its value has gone: the row has what was seen, or it hasn't.
    pub(super) fn compare_without_value(&self, row: Option<&StoredRow>) -> Option<Difference> {
        match row {
            None => Some(Difference::Missing),
            Some(row) if row.version < self.reached => Some(Difference::Behind(row.version)),
            Some(_) => None,
        }
    }

    /// How the row differs from what it must have reached; `version` is what Redis holds now, read before the row.
    pub(super) fn compare(&mut self, version: i64, row: Option<&StoredRow>) -> Option<Difference> {
        if self.reached < 0 {
            self.reached = version;
        }
        let Some(row) = row else { return Some(Difference::Missing) };
        if row.version < self.reached {
            return Some(Difference::Behind(row.version));
        }
        // What was written between the reading of value and row is in Redis by now.
        if let Difference::Ahead { row: ahead, .. } = self.found
            && version >= ahead
        {
            return None;
        }
        match row.version.cmp(&version) {
            std::cmp::Ordering::Greater => Some(Difference::Ahead { row: row.version, redis: version }),
            std::cmp::Ordering::Equal if !row.same_amounts => Some(Difference::Other),
            std::cmp::Ordering::Equal | std::cmp::Ordering::Less => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(version: i64, same_amounts: bool) -> StoredRow {
        let amount = || "0".to_owned();
        StoredRow {
            version,
            available: amount(),
            on_hold: amount(),
            overdraft_used: amount(),
            same_amounts,
            deleted: false,
            readable: true,
        }
    }

    /// Looks at a balance again and again; `None` at the end if it is settled.
    fn looks(looks: &[(i64, Option<StoredRow>)]) -> Option<Difference> {
        let mut open = Open::new(Vec::new());
        for (version, row) in looks {
            open.found = open.compare(*version, row.as_ref())?;
        }
        Some(open.found)
    }

    #[test]
    fn a_row_must_reach_what_redis_held_at_the_first_look() {
        use Difference::{Ahead, Behind, Missing, Other};
        assert_eq!(looks(&[(5, Some(row(5, true)))]), None);
        assert_eq!(looks(&[(5, Some(row(4, false)))]), Some(Behind(4)));
        assert_eq!(looks(&[(5, None)]), Some(Missing));
        // Redis has gone on, and the row after it.
        assert_eq!(looks(&[(5, Some(row(4, false))), (9, Some(row(5, false)))]), None);
        assert_eq!(looks(&[(5, Some(row(4, false))), (9, Some(row(4, false)))]), Some(Behind(4)));
        assert_eq!(looks(&[(5, Some(row(5, false)))]), Some(Other));
        assert_eq!(looks(&[(5, Some(row(5, false))), (5, Some(row(5, false)))]), Some(Other));
        // Written between the reading of value and row; or Redis has gone back.
        let ahead = (5, Some(row(6, false)));
        assert_eq!(looks(std::slice::from_ref(&ahead)), Some(Ahead { row: 6, redis: 5 }));
        assert_eq!(looks(&[ahead.clone(), (7, Some(row(8, false)))]), None);
        assert_eq!(looks(&[ahead.clone(), ahead]), Some(Ahead { row: 6, redis: 5 }));
    }
}
