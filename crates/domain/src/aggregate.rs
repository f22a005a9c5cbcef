//! The newest version of each balance in a batch.
//!
//! A balance can be in a batch more than once, under several spellings of its member (`@a`, `@a#` and
//! `@a#default` are one balance). Only its newest version is written; the others need no write of their own,
//! and share the outcome of the one that won.

use std::cmp::Ordering;

use uuid::Uuid;

/// One entry of a batch: which balance, and which version of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The organization, from the member.
    pub organization: Uuid,
    /// The ledger, from the member.
    pub ledger: Uuid,
    /// The account's alias, from the member.
    pub alias: &'a str,
    /// The asset's code, from the value.
    pub asset: &'a str,
    /// The balance key; see [`effective_key`](crate::effective_key).
    pub key: &'a str,
    /// The version, from the value.
    pub version: i64,
}

/// Which entries of a batch are to be written. All numbers are indexes into the entries given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aggregation {
    /// One entry for each balance, ordered by organization, ledger, alias, asset and key.
    pub winners: Vec<usize>,
    /// For each entry the one of the same balance that is written: itself, or a version as new or newer.
    pub winner_of: Vec<usize>,
}

/// Picks the highest version of each (organization, ledger, alias, asset, key); of equal versions the first.
#[must_use]
pub fn aggregate(candidates: &[Candidate<'_>]) -> Aggregation {
    // Sorting brings the versions of a balance together and gives the order of the winners at once, which a
    // hash map would still have to sort.
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_unstable_by(|&a, &b| {
        let (one, other) = (&candidates[a], &candidates[b]);
        compare_balances(one, other).then(other.version.cmp(&one.version)).then(a.cmp(&b))
    });

    let mut winners: Vec<usize> = Vec::with_capacity(candidates.len());
    let mut winner_of = vec![0; candidates.len()];
    for index in order {
        let winner = match winners.last() {
            Some(&last) if compare_balances(&candidates[last], &candidates[index]).is_eq() => last,
            _ => {
                winners.push(index);
                index
            }
        };
        winner_of[index] = winner;
    }
    Aggregation { winners, winner_of }
}

fn compare_balances(a: &Candidate<'_>, b: &Candidate<'_>) -> Ordering {
    a.organization
        .cmp(&b.organization)
        .then_with(|| a.ledger.cmp(&b.ledger))
        .then_with(|| a.alias.cmp(b.alias))
        .then_with(|| a.asset.cmp(b.asset))
        .then_with(|| a.key.cmp(b.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(alias: &str, version: i64) -> Candidate<'_> {
        Candidate {
            organization: Uuid::nil(),
            ledger: Uuid::nil(),
            alias,
            asset: "BRL",
            key: "default",
            version,
        }
    }

    #[test]
    fn nothing_gives_nothing() {
        assert_eq!(aggregate(&[]), Aggregation::default());
    }

    #[test]
    fn the_highest_version_wins_and_the_first_of_equals() {
        let batch = [
            candidate("b", 1),
            candidate("a", 5),
            candidate("b", 3),
            candidate("a", 5),
            candidate("b", 3),
            candidate("a", 4),
        ];
        let Aggregation { winners, winner_of } = aggregate(&batch);
        assert_eq!(winners, [1, 2]);
        assert_eq!(winner_of, [2, 1, 2, 1, 2, 1]);
    }

    #[test]
    fn each_part_of_the_key_tells_balances_apart() {
        let base = candidate("a", 1);
        let batch = [
            base,
            Candidate { key: "x", ..base },
            Candidate { asset: "USD", ..base },
            Candidate { alias: "b", ..base },
            Candidate { ledger: Uuid::max(), ..base },
            Candidate { organization: Uuid::max(), ..base },
        ];
        let Aggregation { winners, winner_of } = aggregate(&batch);
        assert_eq!(winners, [0, 1, 2, 3, 4, 5], "ordered by organization, ledger, alias, asset, key");
        assert_eq!(winner_of, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let base = candidate("a", 1);
        let batch =
            [Candidate { alias: "ab", asset: "c", ..base }, Candidate { alias: "a", asset: "bc", ..base }];
        assert_eq!(aggregate(&batch).winners, [1, 0]);
    }
}
