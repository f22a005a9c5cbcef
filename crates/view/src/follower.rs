//! Follows the log of operators' actions, and carries out those that concern this worker. What each action leads to is
//! decided in `balance_sync_engine::controls`.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::TenantId;
use balance_sync_engine::controls::{
    Action, ActionOutcome, End, Execution, LOOK_EVERY, Next, Observed, PauseWatch,
};
use balance_sync_fleet::{
    backends::Refetch,
    lifecycle::DrainReport,
    status::{Outcome, TenantState, TenantStatus},
    tasks::{Panicked, Progress, TaskName},
};
use balance_sync_schedule::{Controls, ScheduleError, controls::LogEntry};
use balance_sync_tenants::{KeyForm, Tenant};
use balance_sync_trace::Span;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::local_worker::LocalWorker;

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
pub(crate) fn drain_summary(report: &DrainReport) -> String {
    let orphaned: usize = report.orphaned.values().sum();
    format!(
        "drained: {} collectors stopped, {} balances written, {} given back, {orphaned} left until their claims lapse, {} collectors broken off",
        report.stopped,
        report.flushed,
        report.released,
        report.killed.len()
    )
}

/// How long a worker may take to follow another rollout: longer than its collectors may take to stop.
const ROLLOUT_WITHIN: Duration = Duration::from_secs(60);
/// Time between two looks at whether it does.
const FOLLOWED_LOOK: Duration = Duration::from_millis(100);

/// Follows the log of actions for one worker.
pub(crate) struct Follower {
    own: Arc<LocalWorker>,
    controls: Controls,
    key_form: KeyForm,
    drain: DrainRequest,
    /// The last entry that was seen; none before the first look. It outlives a follower that panics, so that the one after
    /// it misses nothing, and doesn't stumble over the same entry again.
    seen: Arc<Mutex<Option<String>>>,
    /// When the list of paused tenants is read.
    watch: PauseWatch,
}

/// Time between two looks, for the bound on a follower's progress.
pub(crate) const INTERVAL: Duration = LOOK_EVERY;

impl Follower {
    /// Prepares it. Nothing may be claimed from now on until it has read who is paused.
    #[must_use]
    pub(crate) fn new(
        own: Arc<LocalWorker>,
        controls: Controls,
        key_form: KeyForm,
        drain: DrainRequest,
    ) -> Self {
        own.fleet.paused.expect(key_form);
        Self { own, controls, key_form, drain, seen: Arc::default(), watch: PauseWatch::new(now()) }
    }

    /// The one that goes on when this one has panicked. It reads again who is paused.
    pub(crate) fn successor(&self) -> Self {
        Self {
            own: Arc::clone(&self.own),
            controls: self.controls.clone(),
            key_form: self.key_form,
            drain: self.drain.clone(),
            seen: Arc::clone(&self.seen),
            watch: PauseWatch::new(now()),
        }
    }

    /// Runs until it is stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken, progress: Progress) {
        let following = async {
            loop {
                match self.look().await {
                    Ok(()) => {
                        if self.watch.succeeded() {
                            tracing::info!("actions of operators are read again");
                        }
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
        let fleet = &self.own.fleet;
        let next = self.watch.failed(now(), fleet.paused.is_unknown(), error.is_transient());
        if next.first {
            tracing::warn!(%error, "actions of operators can't be read");
        }
        if next.degrade {
            fleet.each(|status| {
                if matches!(status.collector_state().state, TenantState::Starting | TenantState::Degraded) {
                    status.degrade(error.class.reason(), error.to_string());
                }
            });
        }
        if next.give_up {
            tracing::error!(%error, "which tenants are paused can't be read, they are all served");
            fleet.paused.give_up();
            fleet.each(|status| status.requests.recheck());
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
        let changes =
            |entry: &LogEntry| Action::parse(entry.field("what")).is_some_and(Action::changes_pause);
        if self.watch.is_due(now(), entries.iter().any(changes)) {
            let paused = self.controls.paused().await?;
            self.take_over(paused.into_keys().collect());
            self.watch.read(now());
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
            if entry.field("worker") == &*self.own.name.current() && self.drain.give(&entry.id) {
                tracing::info!(by = entry.field("by"), id = entry.id, "an operator has this worker drain");
            }
            return;
        }
        if what == Action::Rollout {
            self.report_rollout(entry);
            return;
        }
        if !what.is_of_tenant() {
            return;
        }
        let Some(status) = self.served(&entry) else { return };
        let (own, controls) = (Arc::clone(&self.own), self.controls.clone());
        // A task of its own: a collector may take its time, and the next action must not wait for that.
        let tasks = own.fleet.tasks.clone();
        let acknowledged = entry.field("entries").parse().unwrap_or_default();
        let carrying_out = tasks.once(TaskName::Action, {
            let (own, status) = (Arc::clone(&own), Arc::clone(&status));
            async move { carry_out(what, &own, &status, acknowledged).await }
        });
        tasks.once(TaskName::Action, async move {
            let (ended, detail) = match carrying_out.await {
                Ok(Ok(End { outcome, detail, .. })) => (outcome, detail),
                Ok(Err(Panicked)) | Err(_) => {
                    (ActionOutcome::Failed, "the worker panicked over it, see its log".to_owned())
                }
            };
            tracing::info!(
                tenant_id = %status.tenant(),
                action = what.as_str(),
                by = entry.field("by"),
                id = entry.id,
                outcome = ended.as_str(),
                detail,
                "action carried out"
            );
            if let Err(error) =
                controls.outcome(&entry.id, &own.name.current(), ended.as_str(), &detail).await
            {
                tracing::warn!(%error, id = entry.id, "outcome of an action could not be written down");
            }
        });
    }

    /// Reports when this worker follows another rollout.
    fn report_rollout(&self, entry: LogEntry) {
        let (own, controls) = (Arc::clone(&self.own), self.controls.clone());
        self.own.fleet.tasks.once(TaskName::Action, async move {
            let revision = entry.field("revision").parse().unwrap_or_default();
            let (ended, detail) = match tokio::time::timeout(ROLLOUT_WITHIN, followed(&own, revision)).await {
                Ok(end) => end,
                Err(_) => {
                    let problem = own.fleet.rollout.problem().unwrap_or_default();
                    (ActionOutcome::Failed, format!("not followed within {ROLLOUT_WITHIN:?} {problem}"))
                }
            };
            let name = own.name.current();
            if let Err(error) = controls.outcome(&entry.id, &name, ended.as_str(), detail.trim()).await {
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

/// Waits until this worker follows this revision of the rollout or a later one, and has left the tenants that are not in it.
async fn followed(own: &LocalWorker, revision: u64) -> (ActionOutcome, String) {
    let fleet = &own.fleet;
    loop {
        if let Some(now) = fleet.rollout.applied().filter(|now| *now >= revision) {
            let (mut left, mut served) = (0, 0);
            fleet.each(|status| match fleet.rollout.serves(status.tenant()) {
                true => served += 1,
                false => left += 1,
            });
            let owned = fleet.owned.load(Relaxed);
            // A later one is reported by its own action.
            if left == 0 && served >= owned {
                return (
                    ActionOutcome::Done,
                    format!("revision {now} in force, {owned} tenants are this worker's"),
                );
            }
        }
        tokio::time::sleep(FOLLOWED_LOOK).await;
    }
}

/// Carries out an action on a tenant's collector, as its [`Execution`] decides.
/// `acknowledged` = entries that were acknowledged when it was recorded.
async fn carry_out(what: Action, own: &LocalWorker, status: &TenantStatus, acknowledged: u64) -> End {
    let (mut execution, mut next) = match Execution::begin(what, now(), observed(status)) {
        Ok(begun) => begun,
        Err(end) => return end,
    };
    loop {
        next = match next {
            Next::Flush => {
                status.requests.flush();
                execution.observe(now(), observed(status))
            }
            Next::Refetch => {
                let end = execution.refetched(refetch(own, status).await);
                if end.flush {
                    status.requests.flush();
                }
                return end;
            }
            Next::Acknowledge => {
                let open = status.acknowledge().map(|open| format!("{}: {}", open.reason, open.detail));
                return execution.acknowledged(open, acknowledged);
            }
            Next::Observe(at) => {
                tokio::time::sleep_until(Instant::from_std(at)).await;
                execution.observe(now(), observed(status))
            }
            Next::End(end) => return end,
        };
    }
}

async fn refetch(own: &LocalWorker, status: &TenantStatus) -> Result<u64, String> {
    let ask = Refetch { tenant: status.tenant().clone(), revision: None, span: Span::root("action") };
    match own.manager.send(ask).await {
        Ok(answer) => answer.map(|pool| pool.revision).map_err(|error| error.to_string()),
        Err(_) => Err("the worker is stopping".to_owned()),
    }
}

fn observed(status: &TenantStatus) -> Observed {
    let collector = status.collector_state();
    Observed {
        state: status.state().state,
        degraded: collector.reason.filter(|_| collector.state == TenantState::Degraded),
        paused: status.paused.load(Relaxed),
        pending: status.requests.is_pending(),
        updated: status.outcomes[Outcome::Updated].load(Relaxed),
        failures: status.batch_failures.load(Relaxed),
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
