//! What the ledger has given up replaying: a table of each tenant's database. It is counted and never touched.
//!
//! One tenant after the other. Those that have a connection open anyway are looked at soon, the others spread over the interval,
//! because a connection is opened for each. A tenant whose rows can't be written now isn't looked at: it would only wait for
//! the same server. The ledger writes there what it could not replay from its queues, so a tenant that has been at rest since the last look
//! waits `AT_REST` times as long for the next one, and after the start of a worker those at rest come last.

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
    status::{FleetStatus, SWEEP_EVERY, TenantState, TenantStatus},
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

/// A tenant at rest is looked at after so many intervals.
const AT_REST: u32 = 4;

/// Looks at the tables of this worker's tenants.
pub struct Watch {
    fleet: Arc<FleetStatus>,
    manager: Addr<TenantManager>,
    interval: Duration,
    looked: HashMap<Tenant, Looked>,
    /// When it was planned last who is looked at, and which tenants there were then.
    planned: Option<(Instant, u64)>,
    /// Tenants that are due and have no connection open, the next one last.
    idle: Vec<Arc<TenantStatus>>,
    /// Whether any was due.
    any_due: bool,
    /// Tenants without an open connection that may be looked at in one step.
    share: f64,
    /// Tenants without an open connection that may be looked at now.
    saved: f64,
}

/// The last look at a tenant.
#[derive(Debug, Clone, Copy)]
struct Looked {
    at: Instant,
    /// How often it had been roused by then.
    rouses: u32,
}

impl Looked {
    /// Whether it is time for the next look.
    fn is_old(self, status: &TenantStatus, interval: Duration, now: Instant) -> bool {
        let rests = status.is_at_rest() && status.rouses() == self.rouses;
        now.duration_since(self.at) >= if rests { interval * AT_REST } else { interval }
    }
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
        Self {
            fleet,
            manager,
            interval,
            looked: HashMap::new(),
            planned: None,
            idle: Vec::new(),
            any_due: false,
            share: 0.0,
            saved: 0.0,
        }
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
        let now = Instant::now();
        let changed = self.fleet.tenants_changed();
        if self.planned.is_none_or(|(at, then)| then != changed || now.duration_since(at) >= SWEEP_EVERY) {
            self.plan(step, now);
            self.planned = Some((now, changed));
        }
        self.saved = (self.saved + self.share).min(self.share.max(1.0));
        if self.idle.is_empty() && !self.any_due {
            return;
        }
        let usages = self.manager.send(GetUsages).await.unwrap_or_default();
        let is_open = |status: &Arc<TenantStatus>| usages.contains_key(status.tenant());
        let connected = usages.keys().filter_map(|tenant| self.fleet.find(tenant));
        let mut connected: Vec<_> = connected.filter(|status| self.is_due(status, now)).collect();
        connected.sort_by_key(|status| self.looked.get(status.tenant()).map(|looked| looked.at));
        let mut queue = std::mem::take(&mut self.idle);
        let idle =
            std::iter::from_fn(|| queue.pop()).filter(|status| !is_open(status) && self.is_due(status, now));
        let mut saved = self.saved;
        let chosen = choose(connected, idle, &mut saved);
        (self.idle, self.saved) = (queue, saved);
        for status in chosen {
            self.look(&status).await;
            progress.beat();
        }
    }

    /// Lines up those that are due, the last first in line.
    fn plan(&mut self, step: Duration, now: Instant) {
        let (own, others): (Vec<_>, Vec<_>) =
            self.fleet.tenants().iter().cloned().partition(|status| !status.standby.load(Relaxed));
        others.iter().for_each(|status| status.show_ledger_quarantine(None));
        let served: HashSet<&Tenant> = own.iter().map(|status| status.tenant()).collect();
        self.looked.retain(|tenant, _| served.contains(tenant));
        let at_rest = own.iter().filter(|status| status.is_at_rest()).count();
        let rate = (own.len() - at_rest) as f64 + at_rest as f64 / f64::from(AT_REST);
        self.share = rate * step.as_secs_f64() / self.interval.as_secs_f64();
        let due = own.into_iter().filter(|status| self.is_due(status, now));
        let mut due: Vec<_> = due
            .map(|status| {
                let looked = self.looked.get(status.tenant()).map(|looked| looked.at);
                ((status.is_at_rest(), looked), status)
            })
            .collect();
        self.any_due = !due.is_empty();
        due.sort_by(|(a, _), (b, _)| b.cmp(a));
        self.idle = due.into_iter().map(|(_, status)| status).collect();
    }

    /// Whether a tenant is to be looked at: one on which nothing has happened since the last look seldom is.
    fn is_due(&self, status: &TenantStatus, now: Instant) -> bool {
        let looked = self.looked.get(status.tenant());
        looked.is_none_or(|looked| looked.is_old(status, self.interval, now))
            && !status.standby.load(Relaxed)
            && status.state().state != TenantState::Degraded
    }

    async fn look(&mut self, status: &TenantStatus) {
        let tenant = status.tenant();
        let looked = Looked { at: Instant::now(), rouses: status.rouses() };
        self.looked.insert(tenant.clone(), looked);
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
fn choose<T>(mut connected: Vec<T>, idle: impl Iterator<Item = T>, saved: &mut f64) -> Vec<T> {
    connected.truncate(AT_ONCE);
    let before = connected.len();
    connected.extend(idle.take(*saved as usize));
    *saved -= (connected.len() - before) as f64;
    connected
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
    use balance_sync_fleet::status::CALM_FOR;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_has_been_at_rest_since_the_last_look_waits_longer_for_the_next() {
        let (fleet, interval) = (FleetStatus::default(), Duration::from_secs(1800));
        let status = fleet.tenant(&Tenant::Single);
        let rests = async || {
            status.quiet.of(1);
            status.quiet.begin(0);
            status.enter(TenantState::Idle);
            status.show_entries(Some((0, 0)));
            status.show_watched(true);
            fleet.rest.settle();
            tokio::time::advance(CALM_FOR).await;
            fleet.rest.settle();
            assert!(status.is_at_rest());
        };
        rests().await;
        let looked = Looked { at: Instant::now(), rouses: status.rouses() };
        let is_old = |after| looked.is_old(&status, interval, looked.at + after);
        assert!(!is_old(interval * (AT_REST - 1)) && is_old(interval * AT_REST));
        status.rouse();
        assert!(is_old(interval), "it is active");
        rests().await;
        assert!(is_old(interval), "it has been");
    }

    #[test]
    fn connections_are_opened_for_as_many_as_were_saved_up_and_no_more() {
        let mut saved = 0.9;
        assert_eq!(choose(vec![100, 101], [1, 2].into_iter(), &mut saved), [100, 101]);
        assert_eq!(saved, 0.9);
        saved = 1.4;
        assert_eq!(choose(vec![100], [1, 2].into_iter(), &mut saved), [100, 1]);
        assert!((0.3..0.5).contains(&saved), "{saved}");
        let chosen = choose((100..200).collect(), [1].into_iter(), &mut 5.0);
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
