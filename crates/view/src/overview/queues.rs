//! The ledger's own queues over all tenants, and what they mean for the verdict.

use std::collections::BTreeMap;

use balance_sync_domain::LedgerQueue;
use balance_sync_fleet::status::Oldest;
use serde::Serialize;

use super::judge::{Verdict, names, tenants};
use crate::{
    reader::FleetView,
    rows::{QueueView, TenantRow, at},
};

/// One of the ledger's own queues over all tenants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FleetQueue {
    /// Which.
    pub queue: LedgerQueue,
    /// Records in it, of the tenants of which that is known.
    pub depth: u64,
    /// Tenants in whose queue there is something.
    pub tenants: usize,
    /// Tenants of which the depth is not known: they are not in these numbers.
    pub unknown_tenants: usize,
    /// When the oldest record was created, or was to be cleaned up; `None` = there is none, or it isn't known of some tenant.
    pub oldest_at: Option<String>,
    /// Where that isn't known of some tenant: the oldest record seen so far was created then.
    pub oldest_seen_at: Option<String>,
    /// The most attempts at one record, as far as they are known.
    pub most_attempts: Option<u64>,
    /// Records that are not what the ledger writes, or are too large.
    pub unreadable: u64,
}

impl FleetView {
    /// The ledger's own queues.
    pub(super) fn queues(&self) -> Vec<FleetQueue> {
        LedgerQueue::ALL.into_iter().map(|queue| self.queue(queue)).collect()
    }

    fn queue(&self, queue: LedgerQueue) -> FleetQueue {
        let mut sum = FleetQueue {
            queue,
            depth: 0,
            tenants: 0,
            unknown_tenants: 0,
            oldest_at: None,
            oldest_seen_at: None,
            most_attempts: None,
            unreadable: 0,
        };
        let mut oldest = Oldest::Empty;
        for row in &self.tenants {
            let Some(queues) = &row.queues else {
                sum.unknown_tenants += 1;
                oldest = oldest.and(Oldest::Unknown(None));
                continue;
            };
            // One that isn't listed is empty.
            let Some(view) = queues.iter().find(|view| view.queue == queue) else { continue };
            match view.depth {
                Some(depth) => {
                    sum.depth += depth;
                    sum.tenants += usize::from(depth > 0);
                }
                None => sum.unknown_tenants += 1,
            }
            oldest = oldest.and(view.oldest);
            sum.most_attempts = sum.most_attempts.max(view.most_attempts);
            sum.unreadable += view.unreadable;
        }
        let time = |ms: i64| at(ms as f64 / 1e3);
        match oldest {
            Oldest::Empty => {}
            Oldest::At(at) => sum.oldest_at = Some(time(at)),
            Oldest::Unknown(seen) => sum.oldest_seen_at = seen.map(time),
        }
        sum
    }

    /// The queues of a tenant whose oldest record has waited for longer than it may.
    pub(super) fn stuck_queues<'a>(&self, row: &'a TenantRow) -> impl Iterator<Item = &'a QueueView> {
        let (now, most) = (self.at, self.objectives.queue_age.as_secs_f64());
        let queues = row.queues.iter().flatten();
        // What the ledger has given up waits for people, and may be kept for ever.
        let queues = queues.filter(|queue| queue.queue != LedgerQueue::Quarantine);
        queues.filter(move |queue| queue.age_at_least(now).is_some_and(|age| age > most))
    }

    /// What the ledger's queues add to the verdict, in sentences.
    pub(super) fn judge_queues(&self) -> Vec<(Verdict, String)> {
        let mut found = Vec::new();
        let mut stuck: BTreeMap<&str, Vec<(f64, &QueueView, &TenantRow)>> = BTreeMap::new();
        let mut unread: BTreeMap<&str, Vec<(&str, &TenantRow)>> = BTreeMap::new();
        for row in &self.tenants {
            for queue in self.stuck_queues(row) {
                let age = queue.age_at_least(self.at).unwrap_or_default();
                stuck.entry(queue.queue.as_str()).or_default().push((age, queue, row));
            }
            for queue in row.queues.iter().flatten() {
                if let Some(error) = &queue.error {
                    unread.entry(queue.queue.as_str()).or_default().push((error, row));
                }
            }
        }
        for (name, mut queues) in stuck {
            queues.sort_by(|a, b| b.0.total_cmp(&a.0));
            let rows: Vec<&TenantRow> = queues.iter().map(|(_, _, row)| *row).collect();
            let (_, first, _) = queues[0];
            let known = queues.iter().filter_map(|(_, queue, _)| queue.depth).sum::<u64>();
            let since = first.oldest_at.as_ref().or(first.oldest_seen_at.as_ref());
            found.push((
                Verdict::Attention,
                format!(
                    "The ledger is not working off its queue {name} of {}: {known} records, the oldest since {}, which is longer \
                     than {} (queues.oldest): {}.",
                    tenants(&rows),
                    since.map_or("unknown", String::as_str),
                    humantime::format_duration(self.objectives.queue_age),
                    names(&rows)
                ),
            ));
        }
        // That they can't be seen is no trouble of theirs.
        for (name, errors) in unread {
            let rows: Vec<&TenantRow> = errors.iter().map(|(_, row)| *row).collect();
            let (error, _) = errors[0];
            found.push((
                Verdict::Healthy,
                format!(
                    "The ledger's queue {name} of {} can't be read ({error}): {}.",
                    tenants(&rows),
                    names(&rows)
                ),
            ));
        }
        found
    }
}
