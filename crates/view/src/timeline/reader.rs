//! Reads what is kept of the last day.

use std::{sync::Arc, time::Duration};

use balance_sync_schedule::{ErrorClass, ScheduleError, Timelines};
use balance_sync_tenants::Tenant;
use tokio::{sync::Mutex, time::Instant};

use super::{
    HistoryView, LONGEST, TimelineView,
    tenant::{Sources, put_together},
};
use crate::actions::Operator;

/// Requests within this time are answered from the same minutes: they are many, and only the last one changes.
const FRESH: Duration = Duration::from_secs(5);
/// Longest time for what Redis is asked.
const REDIS_BOUND: Duration = Duration::from_secs(5);

/// Reads timelines and history.
#[derive(Debug, Clone)]
pub struct TimelineReader {
    timelines: Timelines,
    operator: Operator,
    minutes: Arc<Mutex<Option<(Instant, Minutes)>>>,
}

/// By minute since 1970, as text.
type Minutes = Arc<[(u64, String)]>;

impl TimelineReader {
    /// Reads these timelines, and actions from that log.
    #[must_use]
    pub fn new(timelines: Timelines, operator: Operator) -> Self {
        Self { timelines, operator, minutes: Arc::default() }
    }

    /// What happened to a tenant within this time, 24 hours at most.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn tenant(&self, tenant: &Tenant, within: Duration) -> Result<TimelineView, ScheduleError> {
        bounded(async {
            let (since, now) = self.span(within).await?;
            let label = tenant.label();
            let entries = self.timelines.entries(label, since).await?;
            let (actions, actions_from) = self.operator.actions_since(label, since).await?;
            let sources = Sources {
                since,
                now,
                entries: entries.into_iter().map(|entry| entry.text).collect(),
                actions,
                actions_from,
                periods: self.timelines.periods().await?,
            };
            Ok(put_together(label, sources))
        })
        .await
    }

    /// How the fleet was within this time, 24 hours at most.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn history(&self, within: Duration) -> Result<HistoryView, ScheduleError> {
        bounded(async {
            let (since, now) = self.span(within).await?;
            Ok(HistoryView::new(&self.minutes().await?, since, now))
        })
        .await
    }

    async fn minutes(&self) -> Result<Minutes, ScheduleError> {
        let mut known = self.minutes.lock().await;
        if let Some((at, minutes)) = &*known
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(minutes));
        }
        let minutes: Minutes = self.timelines.minutes().await?.into();
        *known = Some((Instant::now(), Arc::clone(&minutes)));
        Ok(minutes)
    }

    /// By Redis's clock, in milliseconds since 1970: that of the host may be wrong.
    async fn span(&self, within: Duration) -> Result<(u64, u64), ScheduleError> {
        let now = (self.timelines.time().await? * 1e3) as u64;
        let within = within.min(LONGEST).as_millis();
        Ok((now.saturating_sub(u64::try_from(within).unwrap_or(u64::MAX)), now))
    }
}

async fn bounded<T>(asking: impl Future<Output = Result<T, ScheduleError>>) -> Result<T, ScheduleError> {
    tokio::time::timeout(REDIS_BOUND, asking).await.unwrap_or_else(|_| {
        Err(ScheduleError {
            operation: "read timeline",
            class: ErrorClass::Unavailable,
            message: format!("no answer within {REDIS_BOUND:?}"),
        })
    })
}
