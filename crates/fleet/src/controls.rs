//! What operators do: pause and resume, flush, read credentials afresh, drain, retry and drop quarantined balances.
//!
//! [`Operator`] writes an action down in Redis, for the whole fleet; it is also how commands and the admin API do it. The
//! [`Follower`] of each worker hears of it there, carries out what concerns its own tenants, and writes down what became
//! of it. One stream is both: nobody can have done anything that isn't in the log
//! (`docs/decisions/0009-controls-and-view-in-redis.md`).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::TenantId;
use balance_sync_schedule::{
    Controls, ScheduleError,
    controls::{LogEntry, Order},
};
use balance_sync_tenants::{KeyForm, Tenant};
use balance_sync_trace::Span;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    backends::Refetch,
    lifecycle::DrainReport,
    record::Own,
    rows::at,
    status::{TenantState, TenantStatus},
    tasks::{Panicked, Progress, TaskName},
};

/// Time between two looks at the log.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Who is halted is read again after this, whatever the log says.
const READ_AGAIN: Duration = Duration::from_secs(10);
/// Failures at which a worker no longer waits for knowing who is halted, when waiting does not mend them.
const PATIENCE: u32 = 20;
/// How long a collector may take to follow: longer than its flushes may.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(40);
/// Longest note, in characters.
pub const LONGEST_NOTE: usize = 500;

/// What stands in Redis about a halted tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PausedRecord {
    /// Whose; the label.
    pub tenant: String,
    /// Who halted it.
    pub by: String,
    /// When, in seconds since 1970.
    pub at: f64,
    /// Why, if that was said.
    #[serde(default)]
    pub note: Option<String>,
}

/// What an operator can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Halt a tenant.
    Pause,
    /// Go on with it.
    Resume,
    /// Claim and write at once, whatever its collector waits for.
    Flush,
    /// Fetch its settings from the directory afresh.
    RefreshCredentials,
    /// End a worker, as SIGTERM does.
    Drain,
    /// Schedule quarantined balances again.
    QuarantineRetry,
    /// Forget quarantined balances.
    QuarantineDrop,
}

impl What {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pause,
        Self::Resume,
        Self::Flush,
        Self::RefreshCredentials,
        Self::Drain,
        Self::QuarantineRetry,
        Self::QuarantineDrop,
    ];
    /// What can be asked of a tenant, for messages.
    pub const OF_TENANT: &'static str = "pause, resume, flush, refresh_credentials";

    /// The name in the log and in answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Flush => "flush",
            Self::RefreshCredentials => "refresh_credentials",
            Self::Drain => "drain",
            Self::QuarantineRetry => "quarantine_retry",
            Self::QuarantineDrop => "quarantine_drop",
        }
    }

    /// By name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|what| what.name() == name)
    }

    /// Whether it is asked of a tenant's collectors.
    #[must_use]
    pub fn is_of_tenant(self) -> bool {
        matches!(self, Self::Pause | Self::Resume | Self::Flush | Self::RefreshCredentials)
    }
}

/// What became of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// Carried out.
    Done,
    /// Tried.
    Failed,
    /// Not tried.
    Refused,
}

impl Ended {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }

    fn parse(name: &str) -> Self {
        match name {
            "done" => Self::Done,
            "refused" => Self::Refused,
            _ => Self::Failed,
        }
    }
}

// -- acting ------------------------------------------------------------------------------------------------------------

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
        what: What,
        tenant: &Tenant,
        by: &str,
        note: Option<&str>,
    ) -> Result<String, ScheduleError> {
        let space = tenant.key_space(self.key_form);
        let order = Order {
            what: what.name(),
            tenant: tenant.label(),
            key: space.schedule(),
            by,
            note: note.unwrap_or_default(),
            ..Order::default()
        };
        let (id, changed) = self.controls.record(&order).await?;
        tracing::info!(tenant_id = %tenant, action = what.name(), by, id, changed, "action of an operator");
        Ok(id)
    }

    /// Has a worker drain and end; gives the id of the action.
    ///
    /// # Errors
    /// As [`Operator::tenant`].
    pub async fn drain(&self, worker: &str, by: &str, note: Option<&str>) -> Result<String, ScheduleError> {
        let note = note.unwrap_or_default();
        let order = Order { what: What::Drain.name(), worker, by, note, ..Order::default() };
        let (id, _) = self.controls.record(&order).await?;
        tracing::info!(worker, action = What::Drain.name(), by, id, "action of an operator");
        Ok(id)
    }

    /// Writes down what is done at once by whoever calls this; `tenant` empty = several.
    ///
    /// # Errors
    /// As [`Operator::tenant`].
    pub async fn own(
        &self,
        what: What,
        tenant: Option<&Tenant>,
        by: &str,
        note: Option<&str>,
    ) -> Result<String, ScheduleError> {
        let space = tenant.map(|tenant| tenant.key_space(self.key_form));
        let order = Order {
            what: what.name(),
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
        ended: Ended,
        detail: &str,
    ) -> Result<(), ScheduleError> {
        self.controls.outcome(action, worker, ended.name(), detail).await
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
    ) -> Result<(usize, Vec<ActionShown>), ScheduleError> {
        let mut actions = put_together(self.controls.log().await?);
        if let Some(tenant) = tenant {
            actions.retain(|action| action.tenant.as_deref() == Some(tenant));
        }
        let total = actions.len();
        let from = page.saturating_sub(1).saturating_mul(per_page);
        Ok((total, actions.into_iter().rev().skip(from).take(per_page).collect()))
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
pub struct ActionShown {
    /// Its id; grows.
    pub id: String,
    /// When.
    pub at: String,
    /// Who.
    pub by: String,
    /// What.
    pub what: String,
    /// With which tenant.
    pub tenant: Option<String>,
    /// With which worker.
    pub worker: Option<String>,
    /// Why, if that was said.
    pub note: Option<String>,
    /// What became of it, by worker.
    pub outcomes: Vec<OutcomeShown>,
}

/// What a worker made of an action.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutcomeShown {
    /// Which worker.
    pub worker: String,
    /// When.
    pub at: String,
    /// How it ended.
    pub outcome: Ended,
    /// In words.
    pub detail: Option<String>,
}

fn put_together(log: Vec<LogEntry>) -> Vec<ActionShown> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut actions: Vec<ActionShown> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for entry in log {
        if entry.field("kind") == "outcome" {
            // Of an action that has been trimmed, nothing is left to show.
            if let Some(place) = places.get(entry.field("of")) {
                actions[*place].outcomes.push(OutcomeShown {
                    worker: entry.field("worker").to_owned(),
                    at: at(entry.at()),
                    outcome: Ended::parse(entry.field("outcome")),
                    detail: some(entry.field("detail")),
                });
            }
            continue;
        }
        places.insert(entry.id.clone(), actions.len());
        actions.push(ActionShown {
            at: at(entry.at()),
            by: entry.field("by").to_owned(),
            what: entry.field("what").to_owned(),
            tenant: some(entry.field("tenant")),
            worker: some(entry.field("worker")),
            note: some(entry.field("note")),
            outcomes: Vec::new(),
            id: entry.id,
        });
    }
    actions
}

// -- following ---------------------------------------------------------------------------------------------------------

/// That a worker is to drain, and by which action.
#[derive(Debug, Clone, Default)]
pub struct DrainOrder {
    token: CancellationToken,
    action: Arc<Mutex<Option<String>>>,
}

impl DrainOrder {
    /// Waits until an operator wants it.
    pub async fn wanted(&self) {
        self.token.cancelled().await;
    }

    fn give(&self, action: &str) -> bool {
        let mut given = self.action.lock().unwrap_or_else(PoisonError::into_inner);
        let first = given.is_none();
        given.get_or_insert_with(|| action.to_owned());
        self.token.cancel();
        first
    }

    /// The action, if there was one.
    #[must_use]
    pub fn action(&self) -> Option<String> {
        self.action.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// In one sentence, for the log of actions.
#[must_use]
pub fn told(report: &DrainReport) -> String {
    let orphaned: usize = report.orphaned.values().sum();
    format!(
        "drained: {} collectors stopped, {} balances written, {} given back, {orphaned} left until their claims lapse, {} collectors broken off",
        report.stopped,
        report.flushed,
        report.released,
        report.killed.len()
    )
}

/// Follows the log of actions for one worker.
pub struct Follower {
    own: Arc<Own>,
    controls: Controls,
    key_form: KeyForm,
    drain: DrainOrder,
    /// The last entry that was seen; none before the first look. It outlives a follower that panics, so that the one after
    /// it misses nothing, and doesn't stumble over the same entry again.
    seen: Arc<Mutex<Option<String>>>,
    /// When who is halted is read again.
    read_at: Instant,
    failures: u32,
}

/// Time between two looks, for the bound on a follower's progress.
pub(crate) const FOLLOWER_INTERVAL: Duration = LOOK_EVERY;

impl Follower {
    /// Prepares it. Nothing may be claimed from now on until it has read who is halted.
    #[must_use]
    pub fn new(own: Arc<Own>, controls: Controls, key_form: KeyForm, drain: DrainOrder) -> Self {
        own.fleet.halts.expect(key_form);
        Self { own, controls, key_form, drain, seen: Arc::default(), read_at: Instant::now(), failures: 0 }
    }

    /// The one that goes on when this one has panicked. It reads again who is halted.
    pub(crate) fn successor(&self) -> Self {
        Self {
            own: Arc::clone(&self.own),
            controls: self.controls.clone(),
            key_form: self.key_form,
            drain: self.drain.clone(),
            seen: Arc::clone(&self.seen),
            read_at: Instant::now(),
            failures: 0,
        }
    }

    /// Runs until it is stopped.
    pub async fn run(mut self, stop: CancellationToken, progress: Progress) {
        let following = async {
            loop {
                match self.look().await {
                    Ok(()) => {
                        if self.failures > 0 {
                            tracing::info!("actions of operators are heard of again");
                        }
                        self.failures = 0;
                    }
                    Err(error) => self.failed(&error),
                }
                progress.beat();
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        stop.run_until_cancelled(following).await;
    }

    fn seen(&self) -> MutexGuard<'_, Option<String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&mut self, error: &ScheduleError) {
        self.failures += 1;
        // Whatever happened meanwhile.
        self.read_at = Instant::now();
        if self.failures == 1 {
            tracing::warn!(%error, "actions of operators can't be heard of");
        }
        if !self.own.fleet.halts.awaited() {
            return;
        }
        // Nobody has claimed yet, so nobody else says what is wrong.
        self.own.fleet.each(|status| {
            if matches!(status.collector_state().state, TenantState::Starting | TenantState::Degraded) {
                status.degrade(error.class.as_str(), error.to_string());
            }
        });
        if !error.is_transient() && self.failures >= PATIENCE {
            tracing::error!(%error, "which tenants are paused can't be read, they are all served");
            self.own.fleet.halts.give_up();
            self.own.fleet.each(|status| status.orders.look());
        }
    }

    async fn look(&mut self) -> Result<(), ScheduleError> {
        // In this order: what is done between the two is then in both, and not in neither.
        let known = self.seen().clone();
        let seen = match known {
            Some(seen) => seen,
            None => self.controls.newest().await?,
        };
        let entries = self.controls.after(&seen).await?;
        let halting = |entry: &LogEntry| matches!(entry.field("what"), "pause" | "resume");
        if self.read_at <= Instant::now() || entries.iter().any(halting) {
            let paused = self.controls.paused().await?;
            self.take_over(paused.into_keys().collect());
            self.read_at = Instant::now() + READ_AGAIN;
        }
        *self.seen() = Some(seen);
        for entry in entries {
            *self.seen() = Some(entry.id.clone());
            if entry.field("kind") == "action" {
                self.follow(entry);
            }
        }
        Ok(())
    }

    fn take_over(&self, keys: HashSet<String>) {
        let fleet = &self.own.fleet;
        let first = fleet.halts.awaited();
        fleet.halts.know(keys);
        fleet.each(|status| {
            let paused = fleet.halts.contains(status.tenant());
            if status.paused.swap(paused, Relaxed) != paused || first {
                status.orders.look();
            }
        });
    }

    /// Begins to carry out an action, as far as it concerns this worker.
    fn follow(&self, entry: LogEntry) {
        let Some(what) = What::parse(entry.field("what")) else {
            tracing::debug!(what = entry.field("what"), "an action of another version is left to others");
            return;
        };
        if what == What::Drain {
            if entry.field("worker") == self.own.name && self.drain.give(&entry.id) {
                tracing::info!(by = entry.field("by"), id = entry.id, "an operator has this worker drain");
            }
            return;
        }
        if !what.is_of_tenant() {
            return;
        }
        let Some(status) = self.served(&entry) else { return };
        let (own, controls) = (Arc::clone(&self.own), self.controls.clone());
        // A task of its own: a collector may take its time, and the next action must not wait for that.
        let tasks = own.fleet.tasks.clone();
        let carrying_out = tasks.once(TaskName::Action, {
            let (own, status) = (Arc::clone(&own), Arc::clone(&status));
            async move { carry_out(what, &own, &status).await }
        });
        tasks.once(TaskName::Action, async move {
            let (ended, detail) = match carrying_out.await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(Panicked)) | Err(_) => {
                    (Ended::Failed, "the worker panicked over it, see its log".to_owned())
                }
            };
            tracing::info!(
                tenant_id = %status.tenant(),
                action = what.name(),
                by = entry.field("by"),
                id = entry.id,
                outcome = ended.name(),
                detail,
                "action carried out"
            );
            if let Err(error) = controls.outcome(&entry.id, &own.name, ended.name(), &detail).await {
                tracing::warn!(%error, id = entry.id, "outcome of an action could not be written down");
            }
        });
    }

    /// The tenant of an action, if this worker serves it.
    fn served(&self, entry: &LogEntry) -> Option<Arc<TenantStatus>> {
        let label = entry.field("tenant");
        let key = entry.field("key");
        let id = TenantId::parse(label).ok().map(Tenant::Id);
        [id, Some(Tenant::Single)]
            .into_iter()
            .flatten()
            .filter(|tenant| tenant.key_space(self.key_form).schedule() == key)
            .find_map(|tenant| self.own.fleet.find(&tenant))
    }
}

async fn carry_out(what: What, own: &Own, status: &TenantStatus) -> (Ended, String) {
    let begun = Instant::now();
    let took = || format!("after {} ms", begun.elapsed().as_millis());
    match what {
        What::Pause => {
            if follows(|| status.state().state == TenantState::Paused).await {
                (Ended::Done, format!("paused {}", took()))
            } else {
                (Ended::Failed, format!("not paused {}: {}", took(), status.state().state.name()))
            }
        }
        What::Resume => {
            if follows(|| status.state().state != TenantState::Paused).await {
                (Ended::Done, format!("resumed {}", took()))
            } else {
                (Ended::Failed, format!("still paused {}", took()))
            }
        }
        What::Flush if status.paused.load(Relaxed) => {
            (Ended::Refused, "the tenant is paused: resume it first".to_owned())
        }
        What::Flush => {
            let (updated, failures) = (status.updated.load(Relaxed), status.batch_failures.load(Relaxed));
            status.orders.flush();
            if !follows(|| !status.orders.waiting()).await {
                return (Ended::Failed, format!("the collector did not hear of it {}", took()));
            }
            // What it makes of it is told as far as it shows at once; the rest is in the tenant's flushes.
            tokio::time::sleep(LOOK_EVERY).await;
            let failed = status.batch_failures.load(Relaxed) - failures;
            let written = status.updated.load(Relaxed) - updated;
            let info = status.collector_state();
            match info.reason {
                Some(reason) if info.state == TenantState::Degraded => {
                    (Ended::Failed, format!("tried, and it is still degraded: {reason}"))
                }
                _ if failed > 0 => (Ended::Failed, format!("{failed} flushes failed")),
                _ => (Ended::Done, format!("claimed at once; {written} rows written since")),
            }
        }
        What::RefreshCredentials => {
            let ask = Refetch { tenant: status.tenant().clone(), revision: None, span: Span::root("action") };
            match own.manager.send(ask).await {
                Ok(Ok(pool)) => {
                    status.orders.flush();
                    (Ended::Done, format!("settings fetched, revision {}", pool.revision))
                }
                Ok(Err(error)) => (Ended::Failed, error.to_string()),
                Err(_) => (Ended::Failed, "the worker is stopping".to_owned()),
            }
        }
        What::Drain | What::QuarantineRetry | What::QuarantineDrop => {
            (Ended::Refused, "not an action on a collector".to_owned())
        }
    }
}

/// Waits until it is so; `false` when its time is over.
async fn follows(mut so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + FOLLOWS_WITHIN;
    while !so() {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}
