//! A recovery: each balance that is found lost is planned, or restored, while the search goes on. So its memory doesn't grow with what
//! is lost, and what is written was looked at a moment before.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use balance_sync_engine::audit::Class;
use balance_sync_view::actions::{Action, ActionOutcome, Operator};
use serde::Serialize;

use super::{Audited, Auditor, Finding, Findings, RestoreOutcome, Restoring, Summary};

/// Receives what becomes of each balance.
pub(crate) trait RecoveryOutput {
    /// Lost, and nothing beyond doubt is known of it.
    ///
    /// # Errors
    /// End the recovery, as for the others.
    fn left(&self, finding: &Finding) -> anyhow::Result<()>;

    /// To be restored.
    ///
    /// # Errors
    /// As above.
    fn plan(&self, finding: &Finding) -> anyhow::Result<()>;

    /// What became of one that was to be restored.
    ///
    /// # Errors
    /// As above.
    fn outcome(&self, restoring: &Restoring<'_>) -> anyhow::Result<()>;
}

/// For writing: who, and why.
pub(crate) struct Apply<'a> {
    /// Writes the action down.
    pub operator: &'a Operator,
    /// Who wants it.
    pub by: &'a str,
    /// Who does it.
    pub done_by: &'a str,
    /// Why.
    pub note: Option<&'a str>,
}

/// How it ended.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Recovery {
    /// Balances that can be restored exactly.
    pub recoverable: u64,
    /// Balances that are lost and can't be: each has its advice.
    pub left: u64,
    /// Whether rows were to be written.
    pub applied: bool,
    /// Balances by what became of them.
    pub outcomes: BTreeMap<RestoreOutcome, u64>,
    /// The actions in the log, by tenant.
    pub actions: BTreeMap<String, String>,
    /// Seconds of writing, the looks right before it included; the search is the rest of `audit.seconds`.
    pub writing_seconds: f64,
    /// How the search ended.
    pub audit: Summary,
}

impl Recovery {
    /// Whether all was looked at, by three witnesses.
    pub(crate) fn is_complete(&self) -> bool {
        self.audit.complete && self.audit.witnesses == 3
    }

    /// Whether nothing is lost that is not restored.
    pub(crate) fn is_whole(&self) -> bool {
        let good: u64 = self.outcomes.iter().filter(|(outcome, _)| outcome.is_good()).map(|(_, n)| n).sum();
        self.left == 0 && (self.recoverable == 0 || (self.applied && good == self.recoverable))
    }
}

/// Plans, or restores, what is lost of the tenants of these ids, or of all active ones.
///
/// # Errors
/// As [`Auditor::run`]. What can't be done for one tenant is in the summary.
pub(crate) async fn recover(
    auditor: &Auditor,
    only: &[String],
    apply: Option<Apply<'_>>,
    output: &impl RecoveryOutput,
) -> anyhow::Result<Recovery> {
    let tenants = auditor.tenants(only).await?;
    let recovering = Recovering { auditor, apply, output, state: RefCell::default() };
    let audited = auditor.rows_and_members(&tenants, &recovering).await?;
    let audit = auditor.end(audited).await;
    let Recovering { apply, state, .. } = recovering;
    let State { recoverable, left, outcomes, written, writing } = state.into_inner();
    Ok(Recovery {
        recoverable,
        left,
        applied: apply.is_some(),
        outcomes,
        actions: written.into_iter().map(|(tenant, written)| (tenant, written.action)).collect(),
        writing_seconds: writing.as_secs_f64(),
        audit,
    })
}

/// What was written of a tenant.
struct Written {
    action: String,
    outcomes: BTreeMap<RestoreOutcome, u64>,
}

#[derive(Default)]
struct State {
    recoverable: u64,
    left: u64,
    outcomes: BTreeMap<RestoreOutcome, u64>,
    written: BTreeMap<String, Written>,
    writing: Duration,
}

struct Recovering<'a, O> {
    auditor: &'a Auditor,
    apply: Option<Apply<'a>>,
    output: &'a O,
    state: RefCell<State>,
}

impl<O: RecoveryOutput> Findings for Recovering<'_, O> {
    async fn take(&self, tenant: &Audited<'_>, findings: Vec<Finding>) -> anyhow::Result<()> {
        let lost = findings.iter().filter(|finding| finding.judgement.class == Class::LostFromRedis);
        let (recoverable, left): (Vec<&Finding>, Vec<&Finding>) =
            lost.partition(|finding| finding.witnesses.recoverable().is_some());
        {
            let mut state = self.state.borrow_mut();
            state.left += left.len() as u64;
            state.recoverable += recoverable.len() as u64;
        }
        left.into_iter().try_for_each(|finding| self.output.left(finding))?;
        recoverable.iter().try_for_each(|finding| self.output.plan(finding))?;
        match &self.apply {
            Some(apply) if !recoverable.is_empty() && !self.auditor.is_stopped() => {
                let begun = Instant::now();
                let written = self.write(apply, tenant, &recoverable).await;
                self.state.borrow_mut().writing += begun.elapsed();
                written
            }
            _ => Ok(()),
        }
    }

    async fn ended(&self, tenant: &Audited<'_>, error: Option<&anyhow::Error>) {
        let Some(apply) = &self.apply else { return };
        let (action, mut detail) = {
            let state = self.state.borrow();
            let Some(written) = state.written.get(tenant.tenant().label()) else { return };
            let outcomes = written.outcomes.iter().map(|(outcome, balances)| format!("{balances} {outcome}"));
            (written.action.clone(), outcomes.collect::<Vec<_>>())
        };
        let mut ended = ActionOutcome::Done;
        if let Some(error) = error {
            ended = ActionOutcome::Failed;
            detail.push(format!("broken off: {error:#}"));
        } else if self.auditor.is_stopped() {
            ended = ActionOutcome::Failed;
            detail.push("stopped before all was looked at".to_owned());
        }
        let detail = detail.join(", ");
        if let Err(error) = apply.operator.outcome(&action, apply.done_by, ended, &detail).await {
            let text = format!("what became of action {action} could not be written down: {error}");
            self.auditor.notice(tenant.tenant(), text);
        }
    }
}

impl<O: RecoveryOutput> Recovering<'_, O> {
    async fn write(
        &self,
        apply: &Apply<'_>,
        tenant: &Audited<'_>,
        findings: &[&Finding],
    ) -> anyhow::Result<()> {
        let label = tenant.tenant().label();
        let recorded = self.state.borrow().written.contains_key(label);
        if !recorded {
            // Before anything is written: should this be broken off, that is seen.
            let recording = apply.operator.own(Action::Recover, Some(tenant.tenant()), apply.by, apply.note);
            let action = recording.await.context("nothing was written, as it can't be written down")?;
            let written = Written { action, outcomes: BTreeMap::new() };
            self.state.borrow_mut().written.insert(label.to_owned(), written);
        }
        let mut broken = None;
        let restored = tenant
            .restore(findings, &mut |restoring| {
                let mut state = self.state.borrow_mut();
                *state.outcomes.entry(restoring.outcome).or_default() += 1;
                if let Some(written) = state.written.get_mut(label) {
                    *written.outcomes.entry(restoring.outcome).or_default() += 1;
                }
                if let Err(error) = self.output.outcome(&restoring) {
                    broken.get_or_insert(error);
                }
            })
            .await;
        restored?;
        broken.map_or(Ok(()), Err)
    }
}
