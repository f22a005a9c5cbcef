//! What is known of one of the ledger's own queues: how deep it is, how old its oldest record, how often records were tried.
//!
//! The depth is read as a whole. Ages and attempts are known from scans in pages, over many looks. Only a scan that has
//! reached the end says how old the oldest record is; the oldest records that it found are followed from then on, so the age
//! stays true for as long as one of them is there: what is added later is younger.

use balance_sync_domain::{LedgerQueue, Reported};
use serde::{Deserialize, Serialize};

/// The oldest records that are followed after a scan.
pub const FOLLOWED: usize = 8;
/// Longest name of a record that is followed, in bytes: others are only counted.
const LONGEST_FIELD: usize = 1024;

/// What a scan has read of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Created at this time, in milliseconds since 1970.
    CreatedAt(i64),
    /// It doesn't say when it was created.
    Undated,
    /// It has been tried so often.
    Attempts(u64),
    /// It is not what the ledger writes, or too large to be read.
    Unreadable,
}

/// How old a queue's oldest record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oldest {
    /// There is none.
    Empty,
    /// Created at this time, in milliseconds since 1970.
    At(i64),
    /// Not known. The oldest one of those seen so far was created at this time: the age is at least this one's.
    Unknown(Option<i64>),
}

impl Oldest {
    /// Of two queues together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let known = |oldest| match oldest {
            Self::Empty => None,
            Self::At(at) => Some(at),
            Self::Unknown(seen) => seen,
        };
        let first = known(self).into_iter().chain(known(other)).min();
        match (self, other) {
            (Self::Empty, one) | (one, Self::Empty) => one,
            (Self::Unknown(_), _) | (_, Self::Unknown(_)) => Self::Unknown(first),
            (Self::At(a), Self::At(b)) => Self::At(a.min(b)),
        }
    }
}

/// What a scan has found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    looked_at: u64,
    undated: u64,
    unreadable: u64,
    most_attempts: u64,
    /// The oldest, in order of time.
    oldest: Vec<(i64, Vec<u8>)>,
    first: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pass {
    cursor: Vec<u8>,
    found: Found,
}

/// Scans of one hash, again and again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    running: Option<Pass>,
    /// The last scan that reached the end, and when it did, in milliseconds since 1970.
    last: Option<(i64, Found)>,
}

impl Scan {
    /// Begins a scan, unless one is running. Returns whether it did.
    pub fn begin(&mut self) -> bool {
        if self.running.is_some() {
            return false;
        }
        self.running = Some(Pass { cursor: b"0".to_vec(), found: Found::default() });
        true
    }

    /// Where the next page begins; `None` while no scan is running.
    #[must_use]
    pub fn cursor(&self) -> Option<&[u8]> {
        self.running.as_ref().map(|pass| pass.cursor.as_slice())
    }

    /// Gives up the running scan. What the one before found stays.
    pub fn abandon(&mut self) {
        self.running = None;
    }

    /// Forgets everything: the hash is gone, or can't be read.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes in a page. `next` is the cursor of the following one, `None` after the last.
    pub fn page(
        &mut self,
        records: impl IntoIterator<Item = (Vec<u8>, Seen)>,
        next: Option<Vec<u8>>,
        now_ms: i64,
    ) {
        let Some(mut pass) = self.running.take() else { return };
        for (field, seen) in records {
            pass.found.take(field, seen);
        }
        match next {
            Some(cursor) => {
                pass.cursor = cursor;
                self.running = Some(pass);
            }
            None => self.last = Some((now_ms, pass.found)),
        }
    }

    /// The oldest records of the last whole scan, which are followed.
    #[must_use]
    pub fn followed(&self) -> Vec<&[u8]> {
        let found = self.last.iter().flat_map(|(_, found)| &found.oldest);
        found.map(|(_, field)| field.as_slice()).collect()
    }

    /// Which of the followed records are still there, in the order of [`Scan::followed`].
    pub fn still_there(&mut self, there: &[bool]) {
        if let Some((_, found)) = &mut self.last {
            let mut there = there.iter();
            found.oldest.retain(|_| there.next().copied().unwrap_or(true));
        }
    }

    /// How old the oldest record is, if the hash isn't empty.
    #[must_use]
    pub fn oldest(&self) -> Oldest {
        let followed = self.last.as_ref().and_then(|(_, found)| found.oldest.first());
        match followed {
            Some((at, _)) => Oldest::At(*at),
            None => Oldest::Unknown(self.running.as_ref().and_then(|pass| pass.found.first)),
        }
    }

    /// Records that the running scan has looked at, or that the last one has.
    #[must_use]
    pub fn looked_at(&self) -> u64 {
        self.newest().map_or(0, |found| found.looked_at)
    }

    /// When the last whole scan ended, in milliseconds since 1970.
    #[must_use]
    pub fn as_of_ms(&self) -> Option<i64> {
        self.last.as_ref().map(|(at, _)| *at)
    }

    /// The most attempts at one record, by the last whole scan.
    #[must_use]
    pub fn most_attempts(&self) -> Option<u64> {
        self.last.as_ref().map(|(_, found)| found.most_attempts)
    }

    /// Records without a time, and records that could not be read: by the last whole scan, or by the first one so far.
    #[must_use]
    pub fn doubtful(&self) -> (u64, u64) {
        let found = self.last.as_ref().map(|(_, found)| found);
        let found = found.or(self.running.as_ref().map(|pass| &pass.found));
        found.map_or((0, 0), |found| (found.undated, found.unreadable))
    }

    fn newest(&self) -> Option<&Found> {
        let running = self.running.as_ref().map(|pass| &pass.found);
        running.or(self.last.as_ref().map(|(_, found)| found))
    }
}

impl Found {
    fn take(&mut self, field: Vec<u8>, seen: Seen) {
        self.looked_at += 1;
        match seen {
            Seen::Undated => self.undated += 1,
            Seen::Unreadable => self.unreadable += 1,
            Seen::Attempts(times) => self.most_attempts = self.most_attempts.max(times),
            Seen::CreatedAt(at) => {
                self.first = Some(self.first.map_or(at, |first| first.min(at)));
                // While a hash is resized a page may hold a record that was in an earlier one.
                let known = self.oldest.iter().any(|(_, other)| *other == field);
                if field.len() > LONGEST_FIELD || known {
                    return;
                }
                let before = self.oldest.partition_point(|(other, _)| *other <= at);
                if before < FOLLOWED {
                    self.oldest.insert(before, (at, field));
                    self.oldest.truncate(FOLLOWED);
                }
            }
        }
    }
}

/// One of the ledger's queues of a tenant, as it was last looked at. Times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReport {
    /// Which.
    pub queue: Reported<LedgerQueue>,
    /// Records in it; `None` = not known.
    pub depth: Option<u64>,
    /// When its oldest record was created, or was to be cleaned up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_at_ms: Option<i64>,
    /// Where that isn't known: when the oldest one seen so far was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at_ms: Option<i64>,
    /// Records that the running scan has looked at, or that the last one has.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub looked_at: u64,
    /// When the last whole scan ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of_ms: Option<i64>,
    /// Records that don't say when they were created.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub undated: u64,
    /// Records that are not what the ledger writes, or are too large.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreadable: u64,
    /// Records that the ledger has tried before; `None` = not known, or not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retried: Option<u64>,
    /// The most attempts at one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_attempts: Option<u64>,
    /// Why something of it isn't known, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl QueueReport {
    /// A queue in which there is nothing.
    #[must_use]
    pub fn empty(queue: LedgerQueue) -> Self {
        Self {
            queue: queue.into(),
            depth: Some(0),
            oldest_at_ms: None,
            seen_at_ms: None,
            looked_at: 0,
            as_of_ms: None,
            undated: 0,
            unreadable: 0,
            retried: None,
            most_attempts: None,
            error: None,
        }
    }

    /// A queue that can't be read, and why.
    #[must_use]
    pub fn unknown(queue: LedgerQueue, error: Option<String>) -> Self {
        Self { depth: None, error, ..Self::empty(queue) }
    }

    /// Whether there is nothing in it, and nothing in doubt.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.depth == Some(0) && self.error.is_none()
    }

    /// How old its oldest record is.
    #[must_use]
    pub fn oldest(&self) -> Oldest {
        match (self.depth, self.oldest_at_ms) {
            (Some(0), _) => Oldest::Empty,
            (_, Some(at)) => Oldest::At(at),
            (_, None) => Oldest::Unknown(self.seen_at_ms),
        }
    }

    /// The same queue in both key spaces of a tenant as one. What isn't known of one of them isn't known of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let oldest = self.oldest().and(other.oldest());
        let both = |a: Option<u64>, b: Option<u64>| a.zip(b);
        let (oldest_at_ms, seen_at_ms) = match oldest {
            Oldest::Empty => (None, None),
            Oldest::At(at) => (Some(at), None),
            Oldest::Unknown(seen) => (None, seen),
        };
        // An empty key space is not scanned, and says nothing of attempts.
        let one = |a: &Self| a.is_empty() && a.as_of_ms.is_none();
        let as_of_ms = match (one(&self), one(&other)) {
            (true, _) => other.as_of_ms,
            (_, true) => self.as_of_ms,
            _ => self.as_of_ms.zip(other.as_of_ms).map(|(a, b)| a.min(b)),
        };
        let attempts =
            |of: fn(&Self) -> Option<u64>, fold: fn(u64, u64) -> u64| match (one(&self), one(&other)) {
                (true, _) => of(&other),
                (_, true) => of(&self),
                _ => both(of(&self), of(&other)).map(|(a, b)| fold(a, b)),
            };
        Self {
            depth: both(self.depth, other.depth).map(|(a, b)| a + b),
            oldest_at_ms,
            seen_at_ms,
            looked_at: self.looked_at + other.looked_at,
            as_of_ms,
            undated: self.undated + other.undated,
            unreadable: self.unreadable + other.unreadable,
            retried: attempts(|a| a.retried, |a, b| a + b),
            most_attempts: attempts(|a| a.most_attempts, u64::max),
            error: self.error.or(other.error),
            queue: self.queue,
        }
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn records(times: &[i64]) -> Vec<(Vec<u8>, Seen)> {
        times.iter().map(|at| (format!("t{at}").into_bytes(), Seen::CreatedAt(*at))).collect()
    }

    /// A scan that has ended, over one page.
    fn scanned(times: &[i64]) -> Scan {
        let mut scan = Scan::default();
        scan.begin();
        scan.page(records(times), None, 1_000);
        scan
    }

    #[test]
    fn an_unfinished_scan_says_at_least_how_old_the_oldest_is() {
        let mut scan = Scan::default();
        assert_eq!(scan.oldest(), Oldest::Unknown(None));
        assert!(scan.begin());
        assert!(!scan.begin(), "one at a time");
        assert_eq!(scan.cursor(), Some(&b"0"[..]));
        scan.page(records(&[50, 40]), Some(b"17".to_vec()), 900);
        assert_eq!((scan.oldest(), scan.as_of_ms(), scan.looked_at()), (Oldest::Unknown(Some(40)), None, 2));
        assert_eq!(scan.cursor(), Some(&b"17"[..]));
        scan.page(records(&[60, 30]), None, 1_000);
        assert_eq!((scan.oldest(), scan.as_of_ms(), scan.looked_at()), (Oldest::At(30), Some(1_000), 4));
        // What the next one has not seen yet takes nothing away from what is known.
        scan.begin();
        scan.page(records(&[60]), Some(b"3".to_vec()), 1_100);
        assert_eq!((scan.oldest(), scan.as_of_ms(), scan.looked_at()), (Oldest::At(30), Some(1_000), 1));
        scan.abandon();
        assert_eq!((scan.cursor(), scan.oldest()), (None, Oldest::At(30)));
    }

    #[test]
    fn the_oldest_records_are_followed_until_they_are_gone() {
        let mut scan = scanned(&[9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 11]);
        assert_eq!(scan.followed().len(), FOLLOWED);
        assert_eq!(scan.followed()[0], b"t1");
        scan.still_there(&[false, false, true]);
        assert_eq!(scan.oldest(), Oldest::At(3));
        scan.still_there(&[false; FOLLOWED]);
        assert_eq!(scan.oldest(), Oldest::Unknown(None), "the next scan finds it");
        // A record that a page repeats is followed once.
        let mut scan = Scan::default();
        scan.begin();
        scan.page(records(&[5, 5, 4]), None, 1);
        assert_eq!(scan.followed(), [&b"t4"[..], b"t5"]);
    }

    #[test]
    fn doubtful_records_are_counted_and_never_the_oldest() {
        let mut scan = Scan::default();
        scan.begin();
        let long = (vec![b'x'; LONGEST_FIELD + 1], Seen::CreatedAt(1));
        let page = [(b"a".to_vec(), Seen::Undated), (b"b".to_vec(), Seen::Unreadable), long];
        scan.page(page, None, 1_000);
        assert_eq!((scan.oldest(), scan.doubtful()), (Oldest::Unknown(None), (1, 1)));
        scan.forget();
        assert_eq!(scan, Scan::default());
    }

    #[test]
    fn attempts_are_known_from_whole_scans() {
        let mut scan = Scan::default();
        scan.begin();
        scan.page([(b"a".to_vec(), Seen::Attempts(2))], Some(b"1".to_vec()), 1);
        assert_eq!(scan.most_attempts(), None);
        scan.page([(b"b".to_vec(), Seen::Attempts(7)), (b"c".to_vec(), Seen::Unreadable)], None, 2);
        assert_eq!((scan.most_attempts(), scan.doubtful()), (Some(7), (0, 1)));
    }

    #[test]
    fn two_key_spaces_are_one_queue() {
        let deep = |depth, at| QueueReport {
            depth: Some(depth),
            oldest_at_ms: Some(at),
            as_of_ms: Some(at + 100),
            retried: Some(1),
            most_attempts: Some(at as u64),
            ..QueueReport::empty(LedgerQueue::Backup)
        };
        let empty = || QueueReport::empty(LedgerQueue::Backup);
        let both = deep(2, 5).and(deep(3, 4));
        assert_eq!((both.depth, both.oldest_at_ms, both.as_of_ms), (Some(5), Some(4), Some(104)));
        assert_eq!((both.retried, both.most_attempts), (Some(2), Some(5)));
        assert_eq!(deep(2, 5).and(empty()), deep(2, 5));
        assert_eq!(empty().and(deep(2, 5)), deep(2, 5));
        assert!(empty().and(empty()).is_empty());
        // One of them is not scanned yet.
        let unscanned = QueueReport { oldest_at_ms: None, as_of_ms: None, seen_at_ms: Some(9), ..deep(1, 0) };
        let both = deep(2, 5).and(unscanned);
        assert_eq!((both.oldest(), both.as_of_ms), (Oldest::Unknown(Some(5)), None));
        // One of them can't be read.
        let both = deep(2, 5).and(QueueReport::unknown(LedgerQueue::Backup, Some("no right".to_owned())));
        assert_eq!(
            (both.depth, both.oldest(), both.error.as_deref()),
            (None, Oldest::Unknown(Some(5)), Some("no right"))
        );
        assert_eq!((both.retried, both.most_attempts), (None, None));
        let text = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<QueueReport>(&text).unwrap(), both);
    }
}
