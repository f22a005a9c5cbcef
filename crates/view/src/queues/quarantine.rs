//! What the ledger has given up replaying: a table of each tenant's database. It is counted and never touched.
//!
//! One tenant after the other. Those that have a connection open anyway are looked at soon, the others spread over the interval,
//! because a connection is opened for each. A tenant whose rows can't be written now isn't looked at: it would only wait for
//! the same server.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::Addr;
use balance_sync_domain::LedgerQueue;
use balance_sync_engine::queues::QueueReport;
use balance_sync_fleet::{
    backends::{GetPool, GetUsages, TenantManager},
    clock::wall_clock_ms,
    pipeline::SinkError,
    status::{FleetStatus, TenantState, TenantStatus},
    tasks::Progress,
};
use balance_sync_store::{BackupQuarantine, StoreError};
use balance_sync_tenants::Tenant;
use balance_sync_trace::Span;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// Longest look at one tenant.
pub const LONGEST_LOOK: Duration = Duration::from_secs(20);
/// Time between two steps, in each of which some tenants are looked at.
const STEP: Duration = Duration::from_secs(1);
/// Tenants with an open connection that are looked at in one step.
const AT_ONCE: usize = 10;

/// Looks at the tables of this worker's tenants.
pub struct Watch {
    fleet: Arc<FleetStatus>,
    manager: Addr<TenantManager>,
    interval: Duration,
    /// When each tenant was looked at last.
    looked: HashMap<Tenant, Instant>,
    /// Tenants without an open connection that may be looked at now.
    saved: f64,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Settings(#[from] SinkError),
    #[error(transparent)]
    Postgres(#[from] StoreError),
    #[error("no answer within {LONGEST_LOOK:?}")]
    Late,
}

impl Watch {
    /// Over the tenants of this worker, each once in `interval`.
    #[must_use]
    pub fn new(fleet: Arc<FleetStatus>, manager: Addr<TenantManager>, interval: Duration) -> Self {
        Self { fleet, manager, interval, looked: HashMap::new(), saved: 0.0 }
    }

    /// Looks until it is stopped.
    pub async fn run(mut self, stop: CancellationToken, progress: Progress) {
        let step = STEP.min(self.interval);
        let looking = async {
            loop {
                self.step(step, &progress).await;
                progress.beat();
                tokio::time::sleep(step).await;
            }
        };
        // A look holds nothing that is lost when it is dropped.
        let _ = stop.run_until_cancelled(looking).await;
    }

    /// Looks at some of those that are due.
    async fn step(&mut self, step: Duration, progress: &Progress) {
        let (own, others): (Vec<_>, Vec<_>) =
            self.fleet.tenants().into_iter().partition(|status| !status.standby.load(Relaxed));
        others.iter().for_each(|status| status.show_ledger_quarantine(None));
        let served: HashSet<&Tenant> = own.iter().map(|status| status.tenant()).collect();
        self.looked.retain(|tenant, _| served.contains(tenant));
        let share = own.len() as f64 * step.as_secs_f64() / self.interval.as_secs_f64();
        self.saved = (self.saved + share).min(share.max(1.0));

        let now = Instant::now();
        let is_due = |status: &Arc<TenantStatus>| {
            self.looked.get(status.tenant()).is_none_or(|at| now.duration_since(*at) >= self.interval)
        };
        let mut due: Vec<_> = own
            .iter()
            .filter(|status| is_due(status) && status.state().state != TenantState::Degraded)
            .cloned()
            .collect();
        if due.is_empty() {
            return;
        }
        due.sort_by_key(|status| self.looked.get(status.tenant()).copied());
        let usages = self.manager.send(GetUsages).await.unwrap_or_default();
        for status in choose(due, |status| usages.contains_key(status.tenant()), &mut self.saved) {
            self.look(&status).await;
            progress.beat();
        }
    }

    async fn look(&mut self, status: &TenantStatus) {
        let tenant = status.tenant();
        self.looked.insert(tenant.clone(), Instant::now());
        // At the highest level, so that the lines of every `log.level` name the tenant.
        let span = tracing::error_span!("tenant", tenant_id = %tenant);
        match timeout(LONGEST_LOOK, self.count(tenant)).instrument(span).await.unwrap_or(Err(Failure::Late)) {
            Ok(found) => status.show_ledger_quarantine(Some(report(found))),
            // Its state says what is wrong. What was found before stays, with its time.
            Err(error) => {
                tracing::debug!(tenant_id = %tenant, %error, "what the ledger has given up could not be counted");
            }
        }
    }

    async fn count(&self, tenant: &Tenant) -> Result<BackupQuarantine, Failure> {
        let ask = GetPool { tenant: tenant.clone(), last: false, span: Span::root("ledger_quarantine") };
        let pool = self.manager.send(ask).await.unwrap_or(Err(SinkError::ManagerGone))?;
        Ok(pool.database.backup_quarantine(&pool.table).await?)
    }
}

/// Which of those that are due are looked at now: some of those with an open connection, and of the others as many as were saved up.
fn choose<T>(due: Vec<T>, is_connected: impl Fn(&T) -> bool, saved: &mut f64) -> Vec<T> {
    let (mut chosen, idle): (Vec<T>, Vec<T>) = due.into_iter().partition(is_connected);
    chosen.truncate(AT_ONCE);
    let idle = idle.into_iter().take(*saved as usize);
    *saved -= idle.len() as f64;
    chosen.extend(idle);
    chosen
}

fn report(found: BackupQuarantine) -> QueueReport {
    let queue = LedgerQueue::Quarantine;
    match found {
        BackupQuarantine::Absent => QueueReport::empty(queue),
        BackupQuarantine::Unreadable(why) => QueueReport::unknown(queue, Some(why)),
        BackupQuarantine::Rows { rows, more, oldest_at_ms } => QueueReport {
            depth: Some(rows),
            oldest_at_ms: oldest_at_ms.filter(|_| !more),
            seen_at_ms: oldest_at_ms.filter(|_| more),
            as_of_ms: i64::try_from(wall_clock_ms()).ok(),
            error: more.then(|| format!("only {rows} rows of more are counted")),
            ..QueueReport::empty(queue)
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_opened_for_as_many_as_were_saved_up_and_no_more() {
        let is_connected = |n: &usize| *n >= 100;
        let mut saved = 0.9;
        assert_eq!(choose(vec![1, 100, 2, 101], is_connected, &mut saved), [100, 101]);
        assert_eq!(saved, 0.9);
        saved = 1.4;
        assert_eq!(choose(vec![1, 100, 2], is_connected, &mut saved), [100, 1]);
        assert!((0.3..0.5).contains(&saved), "{saved}");
        let chosen = choose((100..200).chain([1]).collect(), is_connected, &mut 5.0);
        assert_eq!((chosen.len(), chosen.last()), (AT_ONCE + 1, Some(&1)), "busy ones keep no idle one out");
    }

    #[test]
    fn what_is_not_counted_to_its_end_is_not_the_oldest_and_what_is_absent_is_empty() {
        let rows = |more| report(BackupQuarantine::Rows { rows: 3, more, oldest_at_ms: Some(7) });
        assert_eq!((rows(false).oldest_at_ms, rows(false).error), (Some(7), None));
        assert_eq!((rows(true).oldest_at_ms, rows(true).seen_at_ms), (None, Some(7)));
        assert!(rows(true).error.is_some_and(|error| error.contains("only 3 rows")));
        assert!(report(BackupQuarantine::Absent).is_empty());
        let hidden = report(BackupQuarantine::Unreadable("the grant is missing".to_owned()));
        assert!(hidden.depth.is_none() && !hidden.is_empty());
    }
}
