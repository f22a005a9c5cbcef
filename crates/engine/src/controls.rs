//! What operators do, and how a worker carries it out: which command each action becomes, when it counts as done, and what
//! is reported of it.
//!
//! Each worker follows the log of actions. An [`Execution`] carries out one action on one tenant's collector; a
//! [`PauseWatch`] decides when the list of paused tenants is read, and what happens while it can't be. What a collector does
//! once it is paused or asked to flush is in `collector/controls.rs`.

use std::time::{Duration, Instant};

use crate::{names, reason::Reason, state::TenantState};

names! {
    /// What an operator can do.
    pub enum Action {
        /// Pause a tenant.
        Pause = "pause",
        /// Resume it.
        Resume = "resume",
        /// Claim and write at once, whatever its collector waits for.
        Flush = "flush",
        /// Fetch its settings from the directory afresh.
        RefreshCredentials = "refresh_credentials",
        /// Accept what stands in quarantine or as lost, and close what is open because Redis has lost data of it.
        Acknowledge = "acknowledge",
        /// End a worker, as SIGTERM does.
        Drain = "drain",
        /// Schedule quarantined balances again.
        QuarantineRetry = "quarantine_retry",
        /// Remove quarantined balances from the list.
        QuarantineDrop = "quarantine_drop",
        /// Write to rows what Redis has lost and the ledger's trail has.
        Recover = "recover",
        /// Serve other tenants.
        Rollout = "rollout",
        /// Give a tenant, or all, back to the ledger's own worker.
        Retire = "retire",
    }
}

impl Action {
    /// Whether it is carried out by a tenant's collectors.
    #[must_use]
    pub const fn is_of_tenant(self) -> bool {
        matches!(
            self,
            Self::Pause | Self::Resume | Self::Flush | Self::RefreshCredentials | Self::Acknowledge
        )
    }

    /// Whether the operator has to say why.
    #[must_use]
    pub const fn needs_note(self) -> bool {
        matches!(self, Self::Acknowledge)
    }

    /// Whether it changes which tenants are paused.
    #[must_use]
    pub const fn changes_pause(self) -> bool {
        matches!(self, Self::Pause | Self::Resume)
    }
}

names! {
    /// How an action ended.
    pub enum ActionOutcome {
        /// Carried out.
        Done = "done",
        /// Tried.
        Failed = "failed",
        /// Not tried.
        Refused = "refused",
    }
}

/// Time between two looks at the log, and at a collector whose flush is under way.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time between two looks at a collector that is to change its state.
const OBSERVE_EVERY: Duration = Duration::from_millis(20);
/// How long a collector may take to follow: longer than its flushes may.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(40);
/// The list of paused tenants is read again after this, whatever the log says.
const READ_EVERY: Duration = Duration::from_secs(10);
/// Failures after which a worker claims without knowing which tenants are paused, when waiting doesn't help.
const PATIENCE: u32 = 20;

/// A collector, as far as the progress of an action shows in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// The state that is shown.
    pub state: TenantState,
    /// Why its collector is degraded, if it is; whatever is noticed of single balances.
    pub degraded: Option<Reason>,
    /// Whether the tenant is paused.
    pub paused: bool,
    /// Whether a request to its collector has not been taken yet.
    pub pending: bool,
    /// Rows written since the worker's start.
    pub updated: u64,
    /// Flushes failed since the worker's start.
    pub failures: u64,
}

/// What is to be done next for an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Have the collector flush, then call [`Execution::observe`].
    Flush,
    /// Fetch the tenant's settings afresh, then call [`Execution::refetched`].
    Refetch,
    /// Close the tenant's open conditions, then call [`Execution::acknowledged`].
    Acknowledge,
    /// Call [`Execution::observe`] at this time.
    Observe(Instant),
    /// The action has ended.
    End(End),
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// How.
    pub outcome: ActionOutcome,
    /// In words.
    pub detail: String,
    /// Whether the collector is to flush all the same: new settings are tried at once.
    pub flush: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The collector is to enter the state `paused`, or to leave it.
    Following,
    /// The collector has not taken the request to flush yet.
    Requested,
    /// It has; what comes of it shows at this time.
    Flushing { until: Instant },
    /// The settings are being fetched.
    Refetching,
    /// The conditions are being closed.
    Acknowledging,
}

/// One action on one tenant's collector.
#[derive(Debug, Clone)]
pub struct Execution {
    action: Action,
    begun: Instant,
    before: Observed,
    phase: Phase,
}

impl Execution {
    /// Begins to carry out an action.
    ///
    /// # Errors
    /// When nothing is to be done: how the action has ended.
    pub fn begin(action: Action, now: Instant, before: Observed) -> Result<(Self, Next), End> {
        let (phase, next) = match action {
            // The list of paused tenants has been read already; it shows when the collector follows.
            Action::Pause | Action::Resume => (Phase::Following, Next::Observe(now)),
            Action::Flush if before.paused => {
                return Err(End::new(ActionOutcome::Refused, "the tenant is paused: resume it first"));
            }
            Action::Flush => (Phase::Requested, Next::Flush),
            Action::RefreshCredentials => (Phase::Refetching, Next::Refetch),
            Action::Acknowledge => (Phase::Acknowledging, Next::Acknowledge),
            Action::Drain
            | Action::QuarantineRetry
            | Action::QuarantineDrop
            | Action::Recover
            | Action::Rollout
            | Action::Retire => {
                return Err(End::new(ActionOutcome::Refused, "not an action on a collector"));
            }
        };
        Ok((Self { action, begun: now, before, phase }, next))
    }

    /// The collector, as it is now.
    pub fn observe(&mut self, now: Instant, seen: Observed) -> Next {
        let took = format!("after {} ms", now.saturating_duration_since(self.begun).as_millis());
        let late = now.saturating_duration_since(self.begun) >= FOLLOWS_WITHIN;
        match self.phase {
            Phase::Following => {
                let is_paused = seen.state == TenantState::Paused;
                match (self.action == Action::Pause, is_paused) {
                    (true, true) => End::new(ActionOutcome::Done, format!("paused {took}")).into(),
                    (false, false) => End::new(ActionOutcome::Done, format!("resumed {took}")).into(),
                    _ if !late => Next::Observe(now + OBSERVE_EVERY),
                    (true, false) => {
                        End::new(ActionOutcome::Failed, format!("not paused {took}: {}", seen.state)).into()
                    }
                    (false, true) => End::new(ActionOutcome::Failed, format!("still paused {took}")).into(),
                }
            }
            Phase::Requested if !seen.pending => {
                // The report says what shows at once; the rest is in the tenant's flushes.
                let until = now + LOOK_EVERY;
                self.phase = Phase::Flushing { until };
                Next::Observe(until)
            }
            Phase::Requested if late => {
                End::new(ActionOutcome::Failed, format!("the collector did not take the request {took}"))
                    .into()
            }
            Phase::Requested => Next::Observe(now + OBSERVE_EVERY),
            Phase::Flushing { until } if now < until => Next::Observe(until),
            Phase::Flushing { .. } => self.flushed(seen).into(),
            // Only the answer goes on from here.
            Phase::Refetching | Phase::Acknowledging => Next::Observe(now + OBSERVE_EVERY),
        }
    }

    fn flushed(&self, seen: Observed) -> End {
        let failed = seen.failures.saturating_sub(self.before.failures);
        let written = seen.updated.saturating_sub(self.before.updated);
        match seen.degraded {
            Some(reason) => {
                End::new(ActionOutcome::Failed, format!("tried, and it is still degraded: {reason}"))
            }
            None if failed > 0 => End::new(ActionOutcome::Failed, format!("{failed} flushes failed")),
            None => End::new(ActionOutcome::Done, format!("claimed at once; {written} rows written since")),
        }
    }

    /// The conditions were closed; what was open, in words. `entries` = those in quarantine and among the losses that were
    /// acknowledged when the action was recorded.
    #[must_use]
    pub fn acknowledged(self, open: Option<String>, entries: u64) -> End {
        match (open, entries) {
            (Some(open), 0) => End::new(ActionOutcome::Done, format!("closed: {open}")),
            (Some(open), entries) => {
                End::new(ActionOutcome::Done, format!("{entries} entries acknowledged; closed: {open}"))
            }
            (None, 0) => End::new(ActionOutcome::Refused, "nothing is open that could be acknowledged"),
            (None, entries) => End::new(ActionOutcome::Done, format!("{entries} entries acknowledged")),
        }
    }

    /// The settings were fetched, with this revision, or could not be, for this reason.
    #[must_use]
    pub fn refetched(self, answer: Result<u64, String>) -> End {
        match answer {
            Ok(revision) => End {
                flush: true,
                ..End::new(ActionOutcome::Done, format!("settings fetched, revision {revision}"))
            },
            Err(detail) => End::new(ActionOutcome::Failed, detail),
        }
    }
}

impl End {
    fn new(outcome: ActionOutcome, detail: impl Into<String>) -> Self {
        Self { outcome, detail: detail.into(), flush: false }
    }
}

impl From<End> for Next {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

/// What follows when the log of actions can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable {
    /// It is the first failure in a row: worth a warning.
    pub first: bool,
    /// The worker's tenants show the failure as their reason: nothing was claimed yet, so nothing else shows it.
    pub degrade: bool,
    /// All tenants are served from now on, paused or not.
    pub give_up: bool,
}

/// When a worker reads which tenants are paused, and how long it waits for it.
#[derive(Debug, Clone)]
pub struct PauseWatch {
    read_at: Instant,
    failures: u32,
}

impl PauseWatch {
    /// One that reads the list first of all.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { read_at: now, failures: 0 }
    }

    /// Whether the list is read now. `changed` = an action in the log changes it.
    #[must_use]
    pub fn is_due(&self, now: Instant, changed: bool) -> bool {
        changed || self.read_at <= now
    }

    /// The list was read.
    pub fn read(&mut self, now: Instant) {
        self.read_at = now + READ_EVERY;
    }

    /// The log was read; returns whether it had failed before.
    pub fn succeeded(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }

    /// The log could not be read. `unknown` = the list of paused tenants has never been read; `transient` = the failure may
    /// end by itself.
    pub fn failed(&mut self, now: Instant, unknown: bool, transient: bool) -> Unreadable {
        self.failures = self.failures.saturating_add(1);
        // Whatever happened meanwhile.
        self.read_at = now;
        Unreadable {
            first: self.failures == 1,
            degrade: unknown,
            give_up: unknown && !transient && self.failures >= PATIENCE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Observed = Observed {
        state: TenantState::Idle,
        degraded: None,
        paused: false,
        pending: false,
        updated: 100,
        failures: 3,
    };

    fn begin(action: Action, before: Observed) -> (Instant, Execution, Next) {
        let now = Instant::now();
        let (execution, next) = Execution::begin(action, now, before).expect("it is carried out");
        (now, execution, next)
    }

    #[track_caller]
    fn ended(next: Next, outcome: ActionOutcome, detail: &str) {
        let Next::End(end) = next else { panic!("{next:?}") };
        assert_eq!((end.outcome, end.detail.as_str(), end.flush), (outcome, detail, false));
    }

    #[test]
    fn pause_and_resume_end_when_the_state_shows_them() {
        let paused = Observed { state: TenantState::Paused, paused: true, ..IDLE };
        let (now, mut pause, next) = begin(Action::Pause, IDLE);
        assert_eq!(next, Next::Observe(now));
        // The collector finishes its flush first.
        let syncing = Observed { state: TenantState::Syncing, paused: true, ..IDLE };
        assert_eq!(pause.observe(now, syncing), Next::Observe(now + OBSERVE_EVERY));
        let later = now + Duration::from_millis(40);
        ended(pause.observe(later, paused), ActionOutcome::Done, "paused after 40 ms");

        let (now, mut resume, _) = begin(Action::Resume, paused);
        assert_eq!(resume.observe(now, paused), Next::Observe(now + OBSERVE_EVERY));
        ended(resume.observe(now + OBSERVE_EVERY, IDLE), ActionOutcome::Done, "resumed after 20 ms");
    }

    #[test]
    fn a_collector_that_does_not_follow_fails_the_action() {
        let (now, mut pause, _) = begin(Action::Pause, IDLE);
        let syncing = Observed { state: TenantState::Syncing, paused: true, ..IDLE };
        let last = now + FOLLOWS_WITHIN - Duration::from_millis(1);
        assert!(matches!(pause.observe(last, syncing), Next::Observe(_)));
        ended(
            pause.observe(now + FOLLOWS_WITHIN, syncing),
            ActionOutcome::Failed,
            "not paused after 40000 ms: syncing",
        );

        let paused = Observed { state: TenantState::Paused, ..IDLE };
        let (now, mut resume, _) = begin(Action::Resume, paused);
        ended(
            resume.observe(now + FOLLOWS_WITHIN, paused),
            ActionOutcome::Failed,
            "still paused after 40000 ms",
        );

        let pending = Observed { pending: true, ..IDLE };
        let (now, mut flush, next) = begin(Action::Flush, IDLE);
        assert_eq!(next, Next::Flush);
        assert_eq!(flush.observe(now, pending), Next::Observe(now + OBSERVE_EVERY));
        ended(
            flush.observe(now + FOLLOWS_WITHIN, pending),
            ActionOutcome::Failed,
            "the collector did not take the request after 40000 ms",
        );
    }

    #[test]
    fn a_flush_reports_what_shows_at_once() {
        let cases = [
            (Observed { updated: 107, ..IDLE }, ActionOutcome::Done, "claimed at once; 7 rows written since"),
            (Observed { failures: 5, ..IDLE }, ActionOutcome::Failed, "2 flushes failed"),
            (
                Observed { degraded: Some(Reason::PostgresPermission), failures: 5, ..IDLE },
                ActionOutcome::Failed,
                "tried, and it is still degraded: postgres_permission",
            ),
        ];
        for (after, outcome, detail) in cases {
            let (now, mut flush, _) = begin(Action::Flush, IDLE);
            let until = now + LOOK_EVERY;
            assert_eq!(flush.observe(now, IDLE), Next::Observe(until), "taken");
            assert_eq!(flush.observe(now + OBSERVE_EVERY, after), Next::Observe(until), "not too early");
            ended(flush.observe(until, after), outcome, detail);
        }
    }

    #[test]
    fn a_paused_tenant_is_not_flushed_and_a_collector_is_not_asked_for_what_it_cannot_do() {
        let paused = Observed { paused: true, ..IDLE };
        let refused = |action, before| Execution::begin(action, Instant::now(), before).expect_err("refused");
        assert_eq!(
            refused(Action::Flush, paused),
            End::new(ActionOutcome::Refused, "the tenant is paused: resume it first")
        );
        for action in Action::ALL {
            let begun = Execution::begin(action, Instant::now(), IDLE);
            assert_eq!(begun.is_ok(), action.is_of_tenant(), "{action}");
        }
    }

    #[test]
    fn an_acknowledgement_names_the_entries_and_the_condition_and_is_refused_without_either() {
        let cases = [
            (None, 0, ActionOutcome::Refused, "nothing is open that could be acknowledged"),
            (None, 3, ActionOutcome::Done, "3 entries acknowledged"),
            (Some("gone"), 0, ActionOutcome::Done, "closed: gone"),
            (Some("gone"), 3, ActionOutcome::Done, "3 entries acknowledged; closed: gone"),
        ];
        for (open, entries, outcome, detail) in cases {
            let (_, acknowledge, next) = begin(Action::Acknowledge, IDLE);
            assert_eq!(next, Next::Acknowledge);
            let end = acknowledge.acknowledged(open.map(str::to_owned), entries);
            ended(end.into(), outcome, detail);
        }
    }

    #[test]
    fn fetched_settings_are_tried_at_once() {
        let (_, refresh, next) = begin(Action::RefreshCredentials, IDLE);
        assert_eq!(next, Next::Refetch);
        let end = refresh.clone().refetched(Ok(7));
        assert_eq!((end.outcome, end.flush), (ActionOutcome::Done, true));
        assert_eq!(end.detail, "settings fetched, revision 7");
        ended(refresh.refetched(Err("no answer".to_owned())).into(), ActionOutcome::Failed, "no answer");
    }

    #[test]
    fn the_list_of_paused_tenants_is_read_at_changes_at_intervals_and_after_failures() {
        let now = Instant::now();
        let mut watch = PauseWatch::new(now);
        assert!(watch.is_due(now, false), "first of all");
        watch.read(now);
        let soon = now + LOOK_EVERY;
        assert!(!watch.is_due(soon, false) && watch.is_due(soon, true));
        assert!(watch.is_due(now + READ_EVERY, false));
        watch.failed(soon, false, true);
        assert!(watch.is_due(soon, false), "something may have changed during the failure");
    }

    #[test]
    fn nothing_is_claimed_before_the_list_is_known_unless_waiting_does_not_help() {
        let now = Instant::now();
        let mut watch = PauseWatch::new(now);
        assert_eq!(watch.failed(now, true, true), Unreadable { first: true, degrade: true, give_up: false });
        for _ in 0..10 * PATIENCE {
            let next = watch.failed(now, true, true);
            assert_eq!(
                next,
                Unreadable { first: false, degrade: true, give_up: false },
                "it may end by itself"
            );
        }
        assert!(watch.succeeded() && !watch.succeeded());
        for failure in 1..PATIENCE {
            assert!(!watch.failed(now, true, false).give_up, "{failure}");
        }
        assert!(watch.failed(now, true, false).give_up);
        // A worker that knows the list keeps it, and its collectors show what is wrong.
        let known = watch.failed(now, false, false);
        assert_eq!(known, Unreadable { first: false, degrade: false, give_up: false });
    }
}
