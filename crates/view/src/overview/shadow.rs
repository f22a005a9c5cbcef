//! What shadows have found over all tenants, and what it means for the verdict.

use serde::Serialize;

use super::judge::{Verdict, listed, names, tenants};
use crate::{
    reader::FleetView,
    record::RedisMemory,
    rows::{ShadowView, TenantRow},
};

/// What shadows have found over all tenants.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetShadow {
    /// The live shadows.
    pub workers: Vec<String>,
    /// Tenants that they look at.
    pub tenants: usize,
    /// Those among them of which all balances in Redis have been compared with their rows.
    pub compared_tenants: usize,
    /// Those among them whose rows can't be read.
    pub unread_tenants: usize,
    /// Scheduled balances whose rows are older than their values, of those that were looked at.
    pub would_write: u64,
    /// Balances that are out of the schedule while their rows are older than what Redis holds.
    pub left_behind: u64,
    /// The same, where Redis no longer holds what their rows lack.
    pub lost: u64,
    /// Of some tenant there are more than are looked at: the numbers are at least these.
    pub more: bool,
    /// The largest p99 of any tenant: how long a mutation took until its row had it.
    pub lag_p99_seconds: Option<f64>,
    /// What Redis says of its memory.
    pub redis_memory: Option<RedisMemory>,
}

impl FleetView {
    /// What shadows have found; `None` without any.
    pub(super) fn shadow(&self) -> Option<FleetShadow> {
        let (_, looked_at): (Vec<&TenantRow>, Vec<&ShadowView>) = self.looked_at().unzip();
        let first = self.shadows.first()?;
        let sum = |of: fn(&ShadowView) -> u64| looked_at.iter().map(|view| of(view)).sum();
        Some(FleetShadow {
            workers: self.shadows.iter().map(|worker| worker.name.clone()).collect(),
            tenants: looked_at.len(),
            compared_tenants: looked_at.iter().filter(|view| view.compared_at.is_some()).count(),
            unread_tenants: looked_at.iter().filter(|view| view.error.is_some()).count(),
            would_write: sum(|view| view.would_write),
            left_behind: sum(|view| view.left_behind),
            lost: sum(|view| view.lost),
            more: looked_at.iter().any(|view| view.more),
            lag_p99_seconds: looked_at.iter().filter_map(|view| view.lag_p99_seconds).reduce(f64::max),
            redis_memory: first.redis_memory.clone(),
        })
    }

    fn looked_at(&self) -> impl Iterator<Item = (&TenantRow, &ShadowView)> {
        self.tenants.iter().filter_map(|row| Some((row, row.shadow.as_ref()?)))
    }

    /// What shadows add to the verdict, in sentences. Alone they never make it HEALTHY; beside workers that write they say nothing
    /// unless they have found something.
    pub(super) fn judge_shadows(&self) -> Vec<(Verdict, String)> {
        let mut found = Vec::new();
        if self.shadows.is_empty() {
            return found;
        }
        let name = listed(self.shadows.iter().map(|worker| worker.name.as_str()));
        if self.workers.is_empty() {
            found.push((
                Verdict::Attention,
                format!(
                    "Only shadows are live ({name}): they look and write nothing, and no worker of this fleet writes balances."
                ),
            ));
        }
        let mut sentence = |of: fn(&ShadowView) -> u64, what: &str| {
            let mut some: Vec<(u64, &TenantRow)> =
                self.looked_at().map(|(row, view)| (of(view), row)).filter(|(n, _)| *n > 0).collect();
            some.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
            if some.is_empty() {
                return;
            }
            let (count, rows) = (some.iter().map(|(n, _)| n).sum::<u64>(), some.iter().map(|(_, row)| *row));
            let rows: Vec<&TenantRow> = rows.collect();
            let text = format!("{count} balances of {} {what}: {}.", tenants(&rows), names(&rows));
            found.push((Verdict::Attention, text));
        };
        sentence(
            |view| view.left_behind,
            "were left behind by whoever writes today: they are out of the schedule, and their rows are older than what Redis holds \
             until `balance-sync verify --repair --apply` schedules them again",
        );
        sentence(
            |view| view.lost,
            "were lost by whoever writes today: they are out of the schedule, their rows lack their last mutations, and Redis no \
             longer holds them (`balance-sync audit` names what the ledger's operations still know)",
        );
        let unread: Vec<(&TenantRow, &ShadowView)> =
            self.looked_at().filter(|(_, view)| view.error.is_some()).collect();
        if let Some((_, ShadowView { error: Some(error), .. })) = unread.first() {
            let rows: Vec<&TenantRow> = unread.iter().map(|(row, _)| *row).collect();
            let text = format!(
                "Shadow {name} can't read the rows of {} ({error}), so what is left behind there isn't known: {}.",
                tenants(&rows),
                names(&rows)
            );
            found.push((Verdict::Healthy, text));
        }
        let memory = self.shadows.iter().find_map(|worker| worker.redis_memory.as_ref());
        if let Some(memory) = memory.filter(|memory| memory.may_evict) {
            found.push((Verdict::Healthy, evicts(memory)));
        }
        found
    }
}

fn evicts(memory: &RedisMemory) -> String {
    let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let used = match memory.max_bytes {
        0 => format!("{:.1} MiB in use, without a limit", megabytes(memory.used_bytes)),
        most => format!("{:.1} of {:.1} MiB in use", megabytes(memory.used_bytes), megabytes(most)),
    };
    format!(
        "Redis may evict balances before they are written (maxmemory-policy {}): {used}, {} keys evicted since its start.",
        memory.policy, memory.evicted_keys
    )
}
