//! What operators do: pause and resume, flush, read credentials afresh, drain, retry and drop quarantined balances.
//!
//! [`Operator`] writes an action down in Redis, for the whole fleet; it is also how commands and the admin API do it. The
//! follower of each worker reads it there, carries out what concerns its own tenants, and writes down what became
//! of it. One stream is both: nothing can have been done that isn't in the log
//! (`docs/decisions/0009-controls-and-view-in-redis.md`).

use std::collections::HashMap;

pub use balance_sync_engine::controls::{Action, ActionOutcome};
use balance_sync_schedule::{
    Controls, ScheduleError,
    controls::{LogEntry, MAX_ENTRIES, Order},
};
use balance_sync_tenants::{KeyForm, Tenant};
use serde::{Deserialize, Serialize};

use crate::rows::at;

/// Longest note, in characters.
pub const LONGEST_NOTE: usize = 500;

/// What stands in Redis about a paused tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PausedRecord {
    /// Whose; the label.
    pub tenant: String,
    /// Who paused it.
    pub by: String,
    /// When, in seconds since 1970.
    pub at: f64,
    /// Why, if that was said.
    #[serde(default)]
    pub note: Option<String>,
}

/// Writes actions down, and reads what became of them.
#[derive(Debug, Clone)]
pub struct Operator {
    controls: Controls,
    key_form: KeyForm,
}

impl Operator {
    /// On these controls; tenant ids stand in keys in this form.
    #[must_use]
    pub fn new(controls: Controls, key_form: KeyForm) -> Self {
        Self { controls, key_form }
    }

    /// Has something done with a tenant, by all workers that serve it; gives the id of the action.
    ///
    /// # Errors
    /// As Redis answers: whether it was written down is then unknown.
    pub async fn tenant(
        &self,
        what: Action,
        tenant: &Tenant,
        by: &str,
        note: Option<&str>,
    ) -> Result<String, ScheduleError> {
        let space = tenant.key_space(self.key_form);
        let order = Order {
            what: what.as_str(),
            tenant: tenant.label(),
            key: space.schedule(),
            by,
            note: note.unwrap_or_default(),
            ..Order::default()
        };
        let (id, changed) = match what {
            Action::Acknowledge => {
                self.controls.acknowledge(&order, &tenant.key_spaces(self.key_form)).await?
            }
            _ => self.controls.record(&order).await?,
        };
        tracing::info!(tenant_id = %tenant, action = what.as_str(), by, id, changed, "action of an operator");
        Ok(id)
    }

    /// Has a worker drain and end; gives the id of the action.
    ///
    /// # Errors
    /// As [`Operator::tenant`].
    pub async fn drain(&self, worker: &str, by: &str, note: Option<&str>) -> Result<String, ScheduleError> {
        let note = note.unwrap_or_default();
        let order = Order { what: Action::Drain.as_str(), worker, by, note, ..Order::default() };
        let (id, _) = self.controls.record(&order).await?;
        tracing::info!(of_worker = worker, action = Action::Drain.as_str(), by, id, "action of an operator");
        Ok(id)
    }

    /// Writes down what the caller does at once; `tenant` empty = several.
    ///
    /// # Errors
    /// As [`Operator::tenant`].
    pub async fn own(
        &self,
        what: Action,
        tenant: Option<&Tenant>,
        by: &str,
        note: Option<&str>,
    ) -> Result<String, ScheduleError> {
        let space = tenant.map(|tenant| tenant.key_space(self.key_form));
        let order = Order {
            what: what.as_str(),
            tenant: tenant.map_or("", Tenant::label),
            key: space.as_ref().map_or("", |space| space.schedule()),
            by,
            note: note.unwrap_or_default(),
            ..Order::default()
        };
        Ok(self.controls.record(&order).await?.0)
    }

    /// Writes down what became of an action.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn outcome(
        &self,
        action: &str,
        worker: &str,
        ended: ActionOutcome,
        detail: &str,
    ) -> Result<(), ScheduleError> {
        self.controls.outcome(action, worker, ended.as_str(), detail).await
    }

    /// The actions, newest first, one page of them; those of one tenant only, if it is named. Gives how many there are.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn actions(
        &self,
        tenant: Option<&str>,
        page: usize,
        per_page: usize,
    ) -> Result<(usize, Vec<ActionView>), ScheduleError> {
        let mut actions = put_together(self.controls.log().await?);
        if let Some(tenant) = tenant {
            actions.retain(|action| action.tenant.as_deref() == Some(tenant));
        }
        let total = actions.len();
        let from = page.saturating_sub(1).saturating_mul(per_page);
        Ok((total, actions.into_iter().rev().skip(from).take(per_page).collect()))
    }

    /// The actions on a tenant since this time in milliseconds since 1970, oldest first, each with its time; and before which time
    /// actions may be missing, if the log may have been longer.
    ///
    /// # Errors
    /// As Redis answers.
    pub(crate) async fn actions_since(
        &self,
        tenant: &str,
        since: u64,
    ) -> Result<(Vec<(u64, ActionView)>, Option<u64>), ScheduleError> {
        let log = self.controls.all_after(&format!("{}-0", since.saturating_sub(1))).await?;
        let millis =
            |id: &str| id.split('-').next().and_then(|millis| millis.parse().ok()).unwrap_or_default();
        let from = log.first().filter(|_| log.len() >= MAX_ENTRIES).map(|entry| millis(&entry.id));
        let of_tenant =
            put_together(log).into_iter().filter(|action| action.tenant.as_deref() == Some(tenant));
        Ok((of_tenant.map(|action| (millis(&action.id), action)).collect(), from))
    }

    /// The id of the newest entry of the log.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn newest(&self) -> Result<String, ScheduleError> {
        self.controls.newest().await
    }

    /// The ids of actions that came, or of which something became, after this entry of the log; and the newest entry.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn news(&self, after: &str) -> Result<(Vec<String>, String), ScheduleError> {
        let mut ids = Vec::new();
        let mut newest = after.to_owned();
        for entry in self.controls.after(after).await? {
            let id = if entry.field("kind") == "outcome" { entry.field("of") } else { &entry.id };
            if !ids.iter().any(|known| known == id) {
                ids.push(id.to_owned());
            }
            newest.clone_from(&entry.id);
        }
        Ok((ids, newest))
    }
}

/// An action with what became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ActionView {
    /// Its id; grows.
    pub id: String,
    /// When.
    pub at: String,
    /// Who.
    pub by: String,
    /// What.
    pub what: String,
    /// What was changed, of an action that changes a setting of the fleet.
    pub change: Option<String>,
    /// With which tenant.
    pub tenant: Option<String>,
    /// With which worker.
    pub worker: Option<String>,
    /// Why, if that was said.
    pub note: Option<String>,
    /// What became of it, by worker.
    pub outcomes: Vec<OutcomeView>,
}

/// What a worker made of an action.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutcomeView {
    /// Which worker.
    pub worker: String,
    /// When.
    pub at: String,
    /// How it ended.
    pub outcome: ActionOutcome,
    /// In words.
    pub detail: Option<String>,
}

fn put_together(log: Vec<LogEntry>) -> Vec<ActionView> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut actions: Vec<ActionView> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for entry in log {
        if entry.field("kind") == "outcome" {
            // Of an action that has been trimmed, nothing is left to show.
            if let Some(place) = places.get(entry.field("of")) {
                actions[*place].outcomes.push(OutcomeView {
                    worker: entry.field("worker").to_owned(),
                    at: at(entry.at()),
                    outcome: ActionOutcome::parse(entry.field("outcome")).unwrap_or(ActionOutcome::Failed),
                    detail: some(entry.field("detail")),
                });
            }
            continue;
        }
        places.insert(entry.id.clone(), actions.len());
        actions.push(ActionView {
            at: at(entry.at()),
            by: entry.field("by").to_owned(),
            what: entry.field("what").to_owned(),
            change: some(entry.field("change")),
            tenant: some(entry.field("tenant")),
            worker: some(entry.field("worker")),
            note: some(entry.field("note")),
            outcomes: Vec::new(),
            id: entry.id,
        });
    }
    actions
}
