//! Recoveries that run in the background of a worker: what Redis has lost of a tenant and the ledger's trail has, shown or written.
//!
//! A worker that is asked for one takes a lease on the tenant in Redis, so there is one per tenant in the fleet, and starts it by its
//! [`RecoveryRunner`], which runs few at once. Progress and result are a record in Redis that any worker can show; so is the
//! request to stop it (`docs/decisions/0030-recoveries-beside-a-worker.md`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use balance_sync_domain::names;
use balance_sync_schedule::{Link, Recoveries, ScheduleError, server_time};
use balance_sync_tenants::Tenant;
use serde::{Deserialize, Serialize};

use crate::rows::at;

/// How long a recovery may be silent: its lease, after which another may begin.
pub const LEASE: Duration = Duration::from_secs(30);
/// How often a recovery renews its lease and its record, and sees whether it is to stop.
pub const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Balances that a record names.
pub const MOST_NAMED: usize = 200;

names! {
    /// How far a recovery is.
    pub enum RecoveryState {
        /// At work.
        Running = "running",
        /// All was looked at.
        Done = "done",
        /// It ended with an error.
        Failed = "failed",
        /// It was stopped before all was looked at.
        Stopped = "stopped",
        /// Its worker ended, or can't be reached.
        Lost = "lost",
    }
}

/// A state of a balance, as one witness has it. Amounts are `None` for those who may not see them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalanceState {
    /// Its version; −1 of a row without one.
    pub version: i64,
    /// What can be spent.
    pub available: Option<String>,
    /// What is reserved.
    pub on_hold: Option<String>,
    /// What of the overdraft is in use.
    pub overdraft_used: Option<String>,
}

/// A balance that Redis has lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostBalance {
    /// Its member.
    pub member: String,
    /// What its row has.
    pub row: Option<BalanceState>,
    /// What is written to the row; `None` if it can't be restored.
    pub to: Option<BalanceState>,
    /// Who knows that: `newest operation` or `recover record`.
    pub witness: Option<String>,
    /// What became of it, once it was to be written.
    pub outcome: Option<String>,
    /// Why, or what to do.
    pub detail: Option<String>,
}

/// A recovery. Numbers of balances where nothing else is stated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecoveryRecord {
    /// Its id.
    pub id: String,
    /// The tenant's id.
    pub tenant: String,
    /// Whether rows are written; else what would be is shown.
    pub apply: bool,
    /// How far it is.
    pub state: RecoveryState,
    /// Who wants it.
    pub by: String,
    /// Why.
    pub note: Option<String>,
    /// The worker that does it.
    pub worker: String,
    /// When it began, in seconds of Redis.
    pub started: f64,
    /// When this was written, in seconds of Redis.
    pub updated: f64,
    /// Rows looked at.
    pub rows: u64,
    /// About how many rows there are; 0 if that isn't known.
    pub rows_estimate: u64,
    /// Can be restored exactly.
    pub recoverable: u64,
    /// Are lost and can't be.
    pub left: u64,
    /// By what became of them.
    pub outcomes: BTreeMap<String, u64>,
    /// The action in the log, once something is written.
    pub action_id: Option<String>,
    /// What limits the result.
    pub notices: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The first of those that are lost.
    pub balances: Vec<LostBalance>,
}

impl RecoveryRecord {
    /// As it is written.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A recovery, as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub struct RecoveryView {
    #[serde(flatten)]
    record: RecoveryRecord,
    started_at: String,
    updated_at: String,
    /// Whether it was left out what the viewer may not see.
    amounts_hidden: bool,
}

impl RecoveryView {
    /// For those who may see amounts, or for others.
    #[must_use]
    pub fn new(mut record: RecoveryRecord, hide_amounts: bool) -> Self {
        if hide_amounts {
            for balance in &mut record.balances {
                for state in [&mut balance.row, &mut balance.to].into_iter().flatten() {
                    *state = BalanceState {
                        version: state.version,
                        available: None,
                        on_hold: None,
                        overdraft_used: None,
                    };
                }
            }
        }
        Self {
            started_at: at(record.started),
            updated_at: at(record.updated),
            amounts_hidden: hide_amounts,
            record,
        }
    }
}

/// Begins a recovery whose record has been written.
pub type Begin = Box<dyn FnOnce(RecoveryRecord) + Send>;

/// Runs recoveries in the background.
pub trait RecoveryRunner: Send + Sync {
    /// Takes a permit for one more. It is released with the closure, or at the end of the recovery that it begins.
    ///
    /// # Errors
    /// When as many are at work as may be, or none can begin.
    fn prepare(&self) -> Result<Begin, StartError>;
}

/// Why no recovery was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is one of this tenant.
    #[error("a recovery of tenant {0} is at work already: wait for its end, or stop it")]
    AtWork(String),
    /// This worker runs as many as it may.
    #[error(
        "this worker runs as many recoveries as it may: try again when one has ended, or on another worker"
    )]
    NoPermit,
    /// The configuration, which is read again for each, can't be used.
    #[error("the configuration can't be used: {0}")]
    Configuration(String),
    /// Redis can't be asked.
    #[error(transparent)]
    Redis(#[from] ScheduleError),
}

/// Starts, shows and stops recoveries.
#[derive(Clone)]
pub struct RecoveryDesk {
    link: Link,
    recoveries: Recoveries,
    runner: Arc<dyn RecoveryRunner>,
    worker: String,
}

impl RecoveryDesk {
    /// On this worker.
    #[must_use]
    pub fn new(link: Link, worker: String, runner: Arc<dyn RecoveryRunner>) -> Self {
        Self { recoveries: Recoveries::new(link.clone()), link, runner, worker }
    }

    /// Starts one of a tenant.
    ///
    /// # Errors
    /// When there is one already, this worker runs as many as it may, or Redis can't be asked.
    pub async fn start(
        &self,
        tenant: &Tenant,
        apply: bool,
        by: &str,
        note: Option<&str>,
    ) -> Result<RecoveryRecord, StartError> {
        let (id, label) = (uuid::Uuid::new_v4().simple().to_string(), tenant.label());
        let begin = self.runner.prepare()?;
        let now = server_time(&self.link).await?;
        if !self.recoveries.lease(label, &id, LEASE).await? {
            return Err(StartError::AtWork(label.to_owned()));
        }
        let record = RecoveryRecord {
            id: id.clone(),
            tenant: label.to_owned(),
            apply,
            state: RecoveryState::Running,
            by: by.to_owned(),
            note: note.map(str::to_owned),
            worker: self.worker.clone(),
            started: now,
            updated: now,
            rows: 0,
            rows_estimate: 0,
            recoverable: 0,
            left: 0,
            outcomes: BTreeMap::new(),
            action_id: None,
            notices: Vec::new(),
            error: None,
            balances: Vec::new(),
        };
        self.recoveries.write(label, &record.to_json()).await?;
        begin(record.clone());
        tracing::info!(tenant_id = %tenant, apply, by, id, "recovery started");
        Ok(record)
    }

    /// The last one of a tenant, if it is not too long ago.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn show(&self, tenant: &Tenant) -> Result<Option<RecoveryRecord>, ScheduleError> {
        let Some(text) = self.recoveries.read(tenant.label()).await? else { return Ok(None) };
        // One of another release is none that can be shown.
        let Ok(mut record) = serde_json::from_str::<RecoveryRecord>(&text) else { return Ok(None) };
        if record.state == RecoveryState::Running {
            let silent = server_time(&self.link).await? - record.updated;
            if silent > LEASE.as_secs_f64() {
                record.state = RecoveryState::Lost;
                record.error =
                    Some(format!("worker {} has reported nothing for {silent:.0} s", record.worker));
            }
        }
        Ok(Some(record))
    }

    /// Requests that the one at work stop; false if there is none.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn stop(&self, tenant: &Tenant) -> Result<bool, ScheduleError> {
        match self.show(tenant).await? {
            Some(record) if record.state == RecoveryState::Running => {
                self.recoveries.stop(tenant.label(), &record.id).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_left_out_for_those_who_may_not_see_them() {
        let state = |version| BalanceState {
            version,
            available: Some("17.25".to_owned()),
            on_hold: Some("3.75".to_owned()),
            overdraft_used: Some("5.5".to_owned()),
        };
        let balance = LostBalance {
            member: "m".to_owned(),
            row: Some(state(1)),
            to: Some(state(3)),
            witness: None,
            outcome: None,
            detail: None,
        };
        let record = RecoveryRecord {
            id: "1".to_owned(),
            tenant: "a".to_owned(),
            apply: false,
            state: RecoveryState::Done,
            by: "x".to_owned(),
            note: None,
            worker: "w".to_owned(),
            started: 0.0,
            updated: 0.0,
            rows: 1,
            rows_estimate: 1,
            recoverable: 1,
            left: 0,
            outcomes: BTreeMap::new(),
            action_id: None,
            notices: Vec::new(),
            error: None,
            balances: vec![balance],
        };
        let shown =
            |hide| serde_json::to_string(&RecoveryView::new(record.clone(), hide)).unwrap_or_default();
        for amount in ["17.25", "3.75", "5.5"] {
            assert!(shown(false).contains(amount) && !shown(true).contains(amount));
        }
        assert!(shown(true).contains("\"version\":3"));
    }
}
