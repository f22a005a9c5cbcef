//! The ledger's own queues of a tenant.

use balance_sync_domain::{LedgerQueue, Reported};
use balance_sync_fleet::status::{Oldest, QueueReport};
use serde::Serialize;

use super::at;

/// One of the ledger's own queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QueueView {
    /// Which.
    pub queue: Reported<LedgerQueue>,
    /// Records in it; `None` = not known.
    pub depth: Option<u64>,
    /// When its oldest record was created, or was to be cleaned up; `None` = not known, or there is none.
    pub oldest_at: Option<String>,
    /// Where that isn't known: the oldest record seen so far was created then. There may be older ones.
    pub oldest_seen_at: Option<String>,
    /// When the last whole scan ended: ages and attempts are as of then.
    pub scanned_at: Option<String>,
    /// Records that the running scan has looked at, or that the last one has.
    pub looked_at: u64,
    /// Records that don't say when they were created.
    pub undated: u64,
    /// Records that are not what the ledger writes, or are too large.
    pub unreadable: u64,
    /// Records that the ledger has tried before; `None` = not known, or not counted.
    pub retried: Option<u64>,
    /// The most attempts at one of them; `None` = not known, or not counted.
    pub most_attempts: Option<u64>,
    /// Why something of it isn't known, in words.
    pub error: Option<String>,
    /// How old the oldest record is.
    #[serde(skip)]
    pub oldest: Oldest,
}

impl From<&QueueReport> for QueueView {
    fn from(report: &QueueReport) -> Self {
        let time = |ms: Option<i64>| ms.map(|ms| at(ms as f64 / 1e3));
        let oldest = report.oldest();
        let (oldest_at, oldest_seen_at) = match oldest {
            Oldest::Empty => (None, None),
            Oldest::At(at) => (Some(at), None),
            Oldest::Unknown(seen) => (None, seen),
        };
        Self {
            queue: report.queue.clone(),
            depth: report.depth,
            oldest_at: time(oldest_at),
            oldest_seen_at: time(oldest_seen_at),
            scanned_at: time(report.as_of_ms),
            looked_at: report.looked_at,
            undated: report.undated,
            unreadable: report.unreadable,
            retried: report.retried,
            most_attempts: report.most_attempts,
            error: report.error.clone(),
            oldest,
        }
    }
}

impl QueueView {
    /// How old its oldest record is for certain, in seconds: where the scan is not whole, the oldest one seen so far.
    #[must_use]
    pub fn age_at_least(&self, now: f64) -> Option<f64> {
        match self.oldest {
            Oldest::At(at) | Oldest::Unknown(Some(at)) => Some((now - at as f64 / 1e3).max(0.0)),
            Oldest::Empty | Oldest::Unknown(None) => None,
        }
    }
}
