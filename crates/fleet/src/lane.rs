//! A tenant's lane: the real queue and the real sink of a collector.

use std::{sync::Arc, time::Duration};

use actix::Addr;
use balance_sync_domain::KeySpace;
use balance_sync_schedule::{
    Claim, Claimed, Loss, PostponeReport, QuarantineReport, Refusal, ReleaseReport, ScheduleError, Schedules,
    SettleReport,
};
use balance_sync_store::{ErrorClass, Fate, Named, Row, RowResult, Session};
use balance_sync_tenants::Tenant;
use balance_sync_trace as trace;

use crate::{
    failure::SinkError,
    ports::{Queue, Sink, Survey, Sweep},
    prober::Prober,
    standby::Lookout,
    tenant_manager::{GetPool, Refetch, TenantManager, TenantPool},
};

/// Members adopted from a legacy schedule in one call.
const ADOPT_PAGE: usize = 500;
/// Waits longer than this are left to the prober.
const SHORT_WAIT: Duration = Duration::from_millis(60);

/// The tenant's schedules in Redis.
#[derive(Debug)]
pub struct RedisQueue {
    schedules: Schedules,
    /// The key space of the id form that is not served, for tenants that have another.
    other: Option<KeySpace>,
    prober: Prober,
    lookout: Lookout,
    keys: Vec<Arc<str>>,
}

impl RedisQueue {
    /// The queue of one tenant.
    #[must_use]
    pub fn new(schedules: Schedules, other: Option<KeySpace>, prober: Prober, lookout: Lookout) -> Self {
        let keys = schedules.iter().map(|schedule| Arc::from(schedule.space().schedule())).collect();
        Self { schedules, other, prober, lookout, keys }
    }
}

impl Queue for RedisQueue {
    fn space(&self) -> &KeySpace {
        self.schedules.first().space()
    }

    fn space_of(&self, claimed: &Claimed) -> &KeySpace {
        self.schedules.of(claimed).space()
    }

    async fn claim(&self, limit: usize) -> Result<Claim, ScheduleError> {
        self.schedules.claim(limit).await
    }

    async fn settle(&self, written: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        self.schedules.settle(written).await
    }

    async fn release(&self, held: &[&Claimed]) -> Result<ReleaseReport, ScheduleError> {
        self.schedules.release(held).await
    }

    async fn postpone(&self, members: &[(&Claimed, bool)]) -> Result<PostponeReport, ScheduleError> {
        self.schedules.postpone(members).await
    }

    async fn quarantine(&self, refused: &[(&Claimed, Refusal)]) -> Result<QuarantineReport, ScheduleError> {
        self.schedules.quarantine(refused).await
    }

    fn claimed_at(&self, claimed: &Claimed) -> Option<f64> {
        self.schedules.claimed_at(claimed)
    }

    async fn dismiss(&self, obsolete: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        self.schedules.dismiss(obsolete).await
    }

    async fn put_off(&self, waiting: &[&Claimed], delay: Duration) -> Result<ReleaseReport, ScheduleError> {
        self.schedules.put_off(waiting, delay).await
    }

    async fn lose(&self, lost: &[(&Claimed, Loss)]) -> Result<QuarantineReport, ScheduleError> {
        self.schedules.lose(lost).await
    }

    async fn sweep(&self) -> Result<Sweep, ScheduleError> {
        let mut sweep = Sweep::default();
        for schedule in self.schedules.iter() {
            let mut from: Option<Vec<u8>> = None;
            loop {
                let page = schedule.protect_page(from.as_deref()).await?;
                sweep.raised += page.raised;
                sweep.absent += page.absent;
                sweep.shortest = match (sweep.shortest, page.shortest) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                match page.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
        }
        Ok(sweep)
    }

    async fn protect_since(&self, from: Option<f64>) -> Result<(f64, u64), ScheduleError> {
        self.schedules.protect_since(from).await
    }

    async fn survey(&self) -> Result<Survey, ScheduleError> {
        let mut survey = Survey::default();
        loop {
            let (adopted, left) = self.schedules.adopt_legacy(ADOPT_PAGE).await?;
            survey.adopted += adopted;
            if left == 0 || adopted == 0 {
                break;
            }
        }
        if let Some(other) = &self.other {
            let schedule = self.schedules.first();
            survey.other_form = schedule.scheduled_in(other.schedule()).await?
                + schedule.scheduled_in(other.legacy_schedule()).await?;
        }
        Ok(survey)
    }

    async fn idle(&self, delay: Duration) {
        if delay <= SHORT_WAIT {
            tokio::time::sleep(delay).await;
        } else {
            let key = first_of(&self.keys, |key| self.prober.wait(key, delay)).await;
            self.schedules.wake(&key);
        }
    }

    async fn stand_by(&self) {
        let key = first_of(&self.keys, |key| self.lookout.wait(key)).await;
        self.schedules.wake(&key);
    }
}

/// Waits for all of them, and gives the first that is there.
async fn first_of<F: Future<Output = ()>>(keys: &[Arc<str>], wait: impl Fn(Arc<str>) -> F) -> Arc<str> {
    match keys {
        [only] => {
            wait(Arc::clone(only)).await;
            Arc::clone(only)
        }
        keys => {
            let waits = keys.iter().map(|key| Box::pin(wait(Arc::clone(key))));
            let ((), at, _) = futures::future::select_all(waits).await;
            Arc::clone(&keys[at])
        }
    }
}

/// The tenant's Postgres, by way of the tenant manager.
#[derive(Debug)]
pub struct PostgresSink {
    manager: Addr<TenantManager>,
    tenant: Tenant,
}

impl PostgresSink {
    /// The sink of one tenant.
    #[must_use]
    pub fn new(manager: Addr<TenantManager>, tenant: Tenant) -> Self {
        Self { manager, tenant }
    }

    async fn pool(&self, last: bool) -> Result<TenantPool, SinkError> {
        let ask = GetPool { tenant: self.tenant.clone(), last, span: trace::current() };
        self.manager.send(ask).await.unwrap_or(Err(SinkError::ManagerGone))
    }

    /// Settings that may be out of date are fetched afresh once, so that a rotated password costs no failed flush.
    async fn newer(&self, pool: &TenantPool, error: SinkError) -> Result<TenantPool, SinkError> {
        let SinkError::Store(store) = &error else { return Err(error) };
        if !matches!(
            store.class(),
            ErrorClass::Credentials | ErrorClass::DatabaseMissing | ErrorClass::Closed
        ) {
            return Err(error);
        }
        let ask =
            Refetch { tenant: self.tenant.clone(), revision: Some(pool.revision), span: trace::current() };
        match self.manager.send(ask).await.unwrap_or(Err(SinkError::ManagerGone)) {
            Ok(newer) if newer.revision != pool.revision => Ok(newer),
            _ => Err(error),
        }
    }
}

/// A connection of the tenant's database.
#[derive(Debug)]
pub struct PostgresPermit {
    pool: TenantPool,
    session: Session,
}

impl PostgresPermit {
    async fn of(pool: TenantPool) -> Result<Self, (TenantPool, SinkError)> {
        match pool.database.connect().await {
            Ok(session) => Ok(Self { pool, session }),
            Err(error) => Err((pool, error.into())),
        }
    }
}

impl Sink for PostgresSink {
    type Permit = PostgresPermit;

    async fn permit(&self, last: bool) -> Result<PostgresPermit, SinkError> {
        match PostgresPermit::of(self.pool(last).await?).await {
            Ok(permit) => Ok(permit),
            Err((pool, error)) => {
                let newer = self.newer(&pool, error).await?;
                PostgresPermit::of(newer).await.map_err(|(_, error)| error)
            }
        }
    }

    async fn update(
        &self,
        mut permit: PostgresPermit,
        rows: &[Row<'_>],
    ) -> Result<Vec<RowResult>, SinkError> {
        match permit.session.update_isolating(&permit.pool.table, rows).await {
            Ok(results) => Ok(results),
            Err(error) => {
                let newer = self.newer(&permit.pool, error.into()).await?;
                // The old permit goes first: the new one may need it.
                drop(permit);
                let mut permit = PostgresPermit::of(newer).await.map_err(|(_, error)| error)?;
                Ok(permit.session.update_isolating(&permit.pool.table, rows).await?)
            }
        }
    }

    async fn fates(&self, gone: &[Named<'_>], last: bool) -> Result<Vec<Fate>, SinkError> {
        let mut permit = self.permit(last).await?;
        Ok(permit.session.fates(&permit.pool.table, gone).await?)
    }

    async fn ping(&self) -> Result<(), SinkError> {
        let pool = self.pool(false).await?;
        match pool.database.ping().await {
            Ok(()) => Ok(()),
            Err(error) => {
                let newer = self.newer(&pool, error.into()).await?;
                Ok(newer.database.ping().await?)
            }
        }
    }

    fn refetch(&self) {
        // A hint: the next flush asks for the pool anyway, and a full mailbox means that many others do too.
        let ask = Refetch { tenant: self.tenant.clone(), revision: None, span: trace::current() };
        let _ = self.manager.try_send(ask);
    }
}
