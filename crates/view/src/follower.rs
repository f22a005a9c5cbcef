//! Follows the log of operators' actions, and carries out those that concern this worker.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::TenantId;
use balance_sync_fleet::{
    backends::Refetch,
    lifecycle::DrainReport,
    status::{TenantState, TenantStatus},
    tasks::{Panicked, Progress, TaskName},
};
use balance_sync_schedule::{Controls, ScheduleError, controls::LogEntry};
use balance_sync_tenants::{KeyForm, Tenant};
use balance_sync_trace::Span;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    actions::{Action, Outcome},
    local_worker::LocalWorker,
};

/// Time between two looks at the log.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Who is halted is read again after this, whatever the log says.
const READ_AGAIN: Duration = Duration::from_secs(10);
/// Failures at which a worker no longer waits for knowing who is halted, when waiting does not mend them.
const PATIENCE: u32 = 20;
/// How long a collector may take to follow: longer than its flushes may.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(40);

/// That a worker is to drain, and by which action.
#[derive(Debug, Clone, Default)]
pub struct DrainRequest {
    token: CancellationToken,
    action: Arc<Mutex<Option<String>>>,
}

impl DrainRequest {
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
pub fn drain_summary(report: &DrainReport) -> String {
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
    own: Arc<LocalWorker>,
    controls: Controls,
    key_form: KeyForm,
    drain: DrainRequest,
    /// The last entry that was seen; none before the first look. It outlives a follower that panics, so that the one after
    /// it misses nothing, and doesn't stumble over the same entry again.
    seen: Arc<Mutex<Option<String>>>,
    /// When who is halted is read again.
    read_at: Instant,
    failures: u32,
}

/// Time between two looks, for the bound on a follower's progress.
pub(crate) const INTERVAL: Duration = LOOK_EVERY;

impl Follower {
    /// Prepares it. Nothing may be claimed from now on until it has read who is halted.
    #[must_use]
    pub fn new(own: Arc<LocalWorker>, controls: Controls, key_form: KeyForm, drain: DrainRequest) -> Self {
        own.fleet.paused.expect(key_form);
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
        if !self.own.fleet.paused.is_unknown() {
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
            self.own.fleet.paused.give_up();
            self.own.fleet.each(|status| status.requests.recheck());
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
        let first = fleet.paused.is_unknown();
        fleet.paused.replace(keys);
        fleet.each(|status| {
            let paused = fleet.paused.contains(status.tenant());
            if status.paused.swap(paused, Relaxed) != paused || first {
                status.requests.recheck();
            }
        });
    }

    /// Begins to carry out an action, as far as it concerns this worker.
    fn follow(&self, entry: LogEntry) {
        let Some(what) = Action::parse(entry.field("what")) else {
            tracing::debug!(what = entry.field("what"), "an action of another version is left to others");
            return;
        };
        if what == Action::Drain {
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
                    (Outcome::Failed, "the worker panicked over it, see its log".to_owned())
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

async fn carry_out(what: Action, own: &LocalWorker, status: &TenantStatus) -> (Outcome, String) {
    let begun = Instant::now();
    let took = || format!("after {} ms", begun.elapsed().as_millis());
    match what {
        Action::Pause => {
            if follows(|| status.state().state == TenantState::Paused).await {
                (Outcome::Done, format!("paused {}", took()))
            } else {
                (Outcome::Failed, format!("not paused {}: {}", took(), status.state().state.name()))
            }
        }
        Action::Resume => {
            if follows(|| status.state().state != TenantState::Paused).await {
                (Outcome::Done, format!("resumed {}", took()))
            } else {
                (Outcome::Failed, format!("still paused {}", took()))
            }
        }
        Action::Flush if status.paused.load(Relaxed) => {
            (Outcome::Refused, "the tenant is paused: resume it first".to_owned())
        }
        Action::Flush => {
            let (updated, failures) = (status.updated.load(Relaxed), status.batch_failures.load(Relaxed));
            status.requests.flush();
            if !follows(|| !status.requests.is_pending()).await {
                return (Outcome::Failed, format!("the collector did not hear of it {}", took()));
            }
            // What it makes of it is told as far as it shows at once; the rest is in the tenant's flushes.
            tokio::time::sleep(LOOK_EVERY).await;
            let failed = status.batch_failures.load(Relaxed) - failures;
            let written = status.updated.load(Relaxed) - updated;
            let info = status.collector_state();
            match info.reason {
                Some(reason) if info.state == TenantState::Degraded => {
                    (Outcome::Failed, format!("tried, and it is still degraded: {reason}"))
                }
                _ if failed > 0 => (Outcome::Failed, format!("{failed} flushes failed")),
                _ => (Outcome::Done, format!("claimed at once; {written} rows written since")),
            }
        }
        Action::RefreshCredentials => {
            let ask = Refetch { tenant: status.tenant().clone(), revision: None, span: Span::root("action") };
            match own.manager.send(ask).await {
                Ok(Ok(pool)) => {
                    status.requests.flush();
                    (Outcome::Done, format!("settings fetched, revision {}", pool.revision))
                }
                Ok(Err(error)) => (Outcome::Failed, error.to_string()),
                Err(_) => (Outcome::Failed, "the worker is stopping".to_owned()),
            }
        }
        Action::Drain | Action::QuarantineRetry | Action::QuarantineDrop => {
            (Outcome::Refused, "not an action on a collector".to_owned())
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
