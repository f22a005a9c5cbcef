//! Rows to one hash, in constant memory.
//!
//! The root is that of a Merkle tree over the rows in the order of their ids, shaped as in RFC 6962. It decides whether rows are the
//! same. Beside it each row belongs to one group of two independent groupings, by the hash of its id. A row that differs changes one
//! group of each, and of a million rows about one in four million belongs to both, so the two groups name the row.

use std::collections::BTreeMap;

use balance_sync_store::AuditRow;
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a hash is of. No text of one kind can be that of another.
const LEAF: &[u8] = b"balance-sync handover 2 leaf\0";
const NODE: &[u8] = b"balance-sync handover 2 node\0";
const EMPTY: &[u8] = b"balance-sync handover 2 empty\0";
const GROUP: &[u8] = b"balance-sync handover 2 group\0";
/// Groups of a grouping; a power of two.
const GROUPS: usize = 2048;
/// Bytes of a group's hash that are kept: it only narrows what the root has detected.
const GROUP_HASH: usize = 16;

type Hash = [u8; 32];

fn hash(domain: &[u8], parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(domain);
    for part in parts {
        context.update(part);
    }
    finish(context)
}

fn finish(context: Context) -> Hash {
    let mut bytes = Hash::default();
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A number as Postgres writes it, without the zeros that change nothing.
fn canonical(amount: &str) -> &str {
    let trimmed =
        if amount.contains('.') { amount.trim_end_matches('0').trim_end_matches('.') } else { amount };
    if trimmed == "-0" { "0" } else { trimmed }
}

/// A row as canonical JSON.
fn text(row: &AuditRow) -> String {
    serde_json::json!([
        row.id,
        row.ledger.map(|(organization, _)| organization),
        row.ledger.map(|(_, ledger)| ledger),
        row.alias,
        row.key,
        row.version,
        canonical(&row.available),
        canonical(&row.on_hold),
        canonical(&row.overdraft_used),
        row.deleted,
        row.further,
    ])
    .to_string()
}

/// The groups of a balance in both groupings.
fn groups_of(id: Uuid) -> (usize, usize) {
    let bytes = digest(&SHA256, id.as_bytes());
    let pick =
        |n: usize| usize::from(u16::from_be_bytes([bytes.as_ref()[n], bytes.as_ref()[n + 1]])) % GROUPS;
    (pick(0), pick(2))
}

/// What is kept of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Digest {
    /// The columns that make the last part of a row.
    pub further: Vec<String>,
    /// How many rows there are.
    pub rows: u64,
    /// How many of them are deleted.
    pub deleted: u64,
    /// The highest version.
    pub highest_version: i64,
    /// The sum of all versions, in decimal.
    pub sum_of_versions: String,
    /// The root of the Merkle tree.
    pub merkle_root: String,
    /// Groups that are not empty, of the first grouping: rows, exclusive-or of their ids, hash.
    pub groups: BTreeMap<u16, (u64, Uuid, String)>,
    /// Groups that are not empty, of the second grouping: hash.
    pub second_groups: BTreeMap<u16, String>,
}

struct Group {
    rows: u64,
    ids: u128,
    context: Context,
}

impl Group {
    fn new() -> Self {
        let mut context = Context::new(&SHA256);
        context.update(GROUP);
        Self { rows: 0, ids: 0, context }
    }

    fn add(&mut self, id: Uuid, leaf: &Hash) {
        self.rows += 1;
        self.ids ^= id.as_u128();
        self.context.update(leaf);
    }

    fn hash(&self) -> String {
        hex(&finish(self.context.clone())[..GROUP_HASH])
    }
}

/// Takes rows in the order of their ids.
pub(crate) struct Digester {
    further: Vec<String>,
    rows: u64,
    deleted: u64,
    highest: i64,
    sum: i128,
    /// Roots of complete trees, the largest first; their sizes are the bits of `rows`.
    trees: Vec<Hash>,
    first: Vec<Group>,
    second: Vec<Group>,
}

impl Digester {
    pub(crate) fn new() -> Self {
        let groups = || (0..GROUPS).map(|_| Group::new()).collect();
        Self {
            further: Vec::new(),
            rows: 0,
            deleted: 0,
            highest: -1,
            sum: 0,
            trees: Vec::new(),
            first: groups(),
            second: groups(),
        }
    }

    /// Rows that follow have these columns in `further`.
    pub(crate) fn with_further(&mut self, columns: &[impl AsRef<str>]) {
        self.further = columns.iter().map(|column| column.as_ref().to_owned()).collect();
    }

    pub(crate) fn add(&mut self, row: &AuditRow) {
        let leaf = hash(LEAF, &[text(row).as_bytes()]);
        let (first, second) = groups_of(row.id);
        self.first[first].add(row.id, &leaf);
        self.second[second].add(row.id, &leaf);
        self.rows += 1;
        self.deleted += u64::from(row.deleted);
        self.highest = self.highest.max(row.version);
        self.sum += i128::from(row.version);
        let mut tree = leaf;
        // As many trees of equal size are joined as the number of rows ends in zero bits.
        for _ in 0..self.rows.trailing_zeros() {
            if let Some(left) = self.trees.pop() {
                tree = hash(NODE, &[&left, &tree]);
            }
        }
        self.trees.push(tree);
    }

    pub(crate) fn finish(&self) -> Digest {
        let root = self.trees.iter().rev().copied().reduce(|right, left| hash(NODE, &[&left, &right]));
        let numbered = |groups: &'_ [Group]| {
            groups
                .iter()
                .enumerate()
                .filter(|(_, group)| group.rows > 0)
                .map(|(n, group)| (n as u16, (group.rows, Uuid::from_u128(group.ids), group.hash())))
                .collect::<BTreeMap<_, _>>()
        };
        Digest {
            further: self.further.clone(),
            rows: self.rows,
            deleted: self.deleted,
            highest_version: self.highest,
            sum_of_versions: self.sum.to_string(),
            merkle_root: hex(&root.unwrap_or_else(|| hash(EMPTY, &[]))),
            groups: numbered(&self.first),
            second_groups: numbered(&self.second).into_iter().map(|(n, (_, _, hash))| (n, hash)).collect(),
        }
    }
}

/// Where two digests differ.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Groups of the first grouping: rows that were added (negative: removed), exclusive-or of the ids that did.
    first: BTreeMap<u16, (i128, Uuid)>,
    second: Vec<u16>,
}

impl Changes {
    /// From what was signed to what is there; `None` if nothing has changed.
    pub(crate) fn between(signed: &Digest, present: &Digest) -> Option<Self> {
        if signed == present {
            return None;
        }
        let none = (0, Uuid::nil(), String::new());
        let mut first = BTreeMap::new();
        for n in signed.groups.keys().chain(present.groups.keys()) {
            let (was, is) = (signed.groups.get(n).unwrap_or(&none), present.groups.get(n).unwrap_or(&none));
            if was != is {
                let ids = Uuid::from_u128(was.1.as_u128() ^ is.1.as_u128());
                first.insert(*n, (i128::from(is.0) - i128::from(was.0), ids));
            }
        }
        let keys = signed.second_groups.keys().chain(present.second_groups.keys());
        let mut second: Vec<u16> =
            keys.filter(|n| signed.second_groups.get(n) != present.second_groups.get(n)).copied().collect();
        second.sort_unstable();
        second.dedup();
        Some(Self { first, second })
    }

    /// How many groups of the first grouping have changed: about as many rows as have, while those are few.
    pub(crate) fn groups(&self) -> usize {
        self.first.len()
    }

    /// Whether the row of this id may be one that has changed or was added.
    pub(crate) fn may_be(&self, id: Uuid) -> bool {
        let (first, second) = groups_of(id);
        self.first.contains_key(&(first as u16)) && self.second.binary_search(&(second as u16)).is_ok()
    }

    /// What is known of this row.
    pub(crate) fn describe(&self, id: Uuid) -> &'static str {
        match self.first.get(&(groups_of(id).0 as u16)) {
            Some((1, added)) if *added == id => "added",
            Some((0, ids)) if ids.is_nil() => "changed",
            _ => "changed or added, or beside such a row",
        }
    }

    /// Rows that were removed, where only one of their group was.
    pub(crate) fn removed(&self) -> Vec<Uuid> {
        let single = |(group, (rows, id)): (&u16, &(i128, Uuid))| {
            (*rows == -1 && groups_of(*id).0 == usize::from(*group) && self.may_be(*id)).then_some(*id)
        };
        self.first.iter().filter_map(single).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(n: u128) -> AuditRow {
        AuditRow {
            id: Uuid::from_u128(n),
            ledger: Some((Uuid::from_u128(1), Uuid::from_u128(2))),
            alias: format!("@{n}"),
            key: "default".to_owned(),
            version: 3,
            available: "100.50".to_owned(),
            on_hold: "0".to_owned(),
            overdraft_used: "0".to_owned(),
            deleted: false,
            updated_at: None,
            further: "[\"EUR\", null]".to_owned(),
            operation: None,
        }
    }

    fn digest_of<'a>(rows: impl IntoIterator<Item = &'a AuditRow>) -> Digest {
        let mut digester = Digester::new();
        rows.into_iter().for_each(|row| digester.add(row));
        digester.finish()
    }

    /// The definition in RFC 6962, against the streamed one.
    fn tree(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => hash(EMPTY, &[]),
            [leaf] => *leaf,
            _ => {
                let left = leaves.len().next_power_of_two() / 2;
                hash(NODE, &[&tree(&leaves[..left]), &tree(&leaves[left..])])
            }
        }
    }

    #[test]
    fn the_root_is_that_of_the_documented_tree() {
        for count in 0..70 {
            let rows: Vec<AuditRow> = (1..=count).map(row).collect();
            let leaves: Vec<Hash> = rows.iter().map(|row| hash(LEAF, &[text(row).as_bytes()])).collect();
            assert_eq!(digest_of(&rows).merkle_root, hex(&tree(&leaves)), "{count} rows");
        }
    }

    #[test]
    fn a_row_has_the_documented_text() {
        assert_eq!(
            text(&row(7)),
            "[\"00000000-0000-0000-0000-000000000007\",\"00000000-0000-0000-0000-000000000001\",\
             \"00000000-0000-0000-0000-000000000002\",\"@7\",\"default\",3,\"100.5\",\"0\",\"0\",false,\"[\\\"EUR\\\", null]\"]"
        );
        for (amount, same) in
            [("10", "10"), ("10.00", "10"), ("0.10", "0.1"), ("-0.0", "0"), ("100", "100"), ("NULL", "NULL")]
        {
            assert_eq!(canonical(amount), same);
        }
    }

    #[test]
    fn each_change_of_one_row_is_found_and_named() {
        let rows: Vec<AuditRow> = (1..=20_000).map(|n| row(n * 7)).collect();
        let signed = digest_of(&rows);
        assert!(Changes::between(&signed, &digest_of(&rows)).is_none());
        let changes: [fn(&mut AuditRow); 9] = [
            |row| row.available = "100.51".to_owned(),
            |row| row.on_hold = "1".to_owned(),
            |row| row.overdraft_used = "1".to_owned(),
            |row| row.version = 4,
            |row| row.deleted = true,
            |row| row.alias.push('x'),
            |row| row.key = "other".to_owned(),
            |row| row.ledger = None,
            |row| row.further = "[\"USD\", null]".to_owned(),
        ];
        for change in changes {
            let mut present = rows.clone();
            change(&mut present[777]);
            let found = Changes::between(&signed, &digest_of(&present)).unwrap();
            let named: Vec<Uuid> = present.iter().map(|row| row.id).filter(|id| found.may_be(*id)).collect();
            assert_eq!((named, found.removed()), (vec![rows[777].id], vec![]));
            assert_eq!(found.describe(rows[777].id), "changed");
        }
        let without = digest_of(rows.iter().filter(|row| row.id != rows[555].id));
        assert_eq!(Changes::between(&signed, &without).unwrap().removed(), [rows[555].id]);
        let found = Changes::between(&without, &signed).unwrap();
        assert!(found.may_be(rows[555].id) && found.removed().is_empty());
        assert_eq!(found.describe(rows[555].id), "added");
        let other_text = rows.iter().map(|row| AuditRow { available: "100.5".to_owned(), ..row.clone() });
        assert_eq!(digest_of(&other_text.collect::<Vec<_>>()), signed, "zeros change nothing");
    }
}
