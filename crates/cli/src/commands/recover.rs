//! `recover`: what Redis has lost and the ledger's trail has, written to the rows.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Write as _,
    path::Path,
};

use anyhow::Context as _;
use balance_sync_engine::audit::{Class, Known};
use balance_sync_view::actions::{Action, ActionOutcome, Operator};
use serde::Serialize;
use serde_json::{Value, json};

use super::{actions, audit::RECHECK};
use crate::{
    EXIT_OK,
    args::RecoverArgs,
    audit::{Audited, Auditor, Cursor, Finding, Options, RestoreOutcome, Restoring, Summary},
    program::interrupted,
    terminal::{self, BAD, GOOD, WARN, count, styled},
    wiring,
};

/// Something is lost and not restored.
const EXIT_LOST: u8 = 1;
/// Not all could be determined.
const EXIT_UNKNOWN: u8 = 2;

/// How it ended.
#[derive(Debug, Serialize)]
struct Recovery {
    /// Balances that can be restored exactly.
    recoverable: usize,
    /// Balances that are lost and can't be: each has its advice.
    left: usize,
    /// Whether rows were written.
    applied: bool,
    /// Balances by what became of them.
    outcomes: BTreeMap<RestoreOutcome, u64>,
    /// What was written down, by tenant.
    actions: BTreeMap<String, String>,
    /// How the search ended.
    audit: Summary,
}

/// Plans, or restores.
///
/// # Errors
/// When the configuration is wrong, there is no such tenant, Redis or the tenant service can't be asked, or what is to be done
/// can't be written down: then nothing is written.
pub(crate) async fn recover(file: Option<&Path>, args: RecoverArgs) -> anyhow::Result<u8> {
    let note = actions::note(args.note.as_deref())?;
    if args.apply && note.is_none() {
        anyhow::bail!("--note is empty; --apply needs a reason for the log of actions");
    }
    let config = super::load_config(file)?;
    let options = Options {
        trail: true,
        in_flight: 10.0,
        recheck: RECHECK,
        since: None,
        sample: None,
        postgres_rate: args.postgres_rate,
        redis_rate: args.redis_rate,
    };
    let auditor = Auditor::new(&config, "recover", options, Cursor::default())?;
    let lost = RefCell::new(Vec::new());
    let report = |finding: Finding| {
        if finding.judgement.class == Class::LostFromRedis {
            lost.borrow_mut().push(finding);
        }
    };
    let tenants = auditor.tenants(&args.tenant).await?;
    let audited = {
        let mut searching = Box::pin(auditor.rows_and_members(&tenants, &report));
        tokio::select! {
            audited = &mut searching => audited?,
            signal = interrupted() => {
                signal?;
                auditor.stop();
                searching.await?
            }
        }
    };
    let lost = lost.into_inner();
    let (recoverable, left): (Vec<&Finding>, Vec<&Finding>) =
        lost.iter().partition(|finding| finding.witnesses.recoverable().is_some());
    let output = Output { args: &args, printed: Cell::new(0) };
    for finding in &left {
        output.left(finding)?;
    }
    for finding in &recoverable {
        output.plan(finding)?;
    }
    let mut outcomes: BTreeMap<RestoreOutcome, u64> = BTreeMap::new();
    let mut written_down = BTreeMap::new();
    let mut failed = None;
    if args.apply && !auditor.is_stopped() {
        let operator = wiring::operator(&config)?;
        for tenant in &audited {
            let own: Vec<&Finding> = recoverable
                .iter()
                .filter(|finding| finding.tenant == tenant.tenant().label())
                .copied()
                .collect();
            if own.is_empty() {
                continue;
            }
            let mut apply = Apply { operator: &operator, note, output: &output, outcomes: &mut outcomes };
            match apply.one(tenant, &own).await {
                Ok(action) => drop(written_down.insert(tenant.tenant().label().to_owned(), action)),
                Err(error) => {
                    failed = Some(error.context(format!("tenant {}", tenant.tenant())));
                    break;
                }
            }
        }
    }
    let recovery = Recovery {
        recoverable: recoverable.len(),
        left: left.len(),
        applied: args.apply,
        outcomes,
        actions: written_down,
        audit: auditor.end(audited).await,
    };
    output.end(&recovery)?;
    if let Some(error) = failed {
        return Err(error);
    }
    let good: u64 =
        recovery.outcomes.iter().filter(|(outcome, _)| outcome.is_good()).map(|(_, balances)| balances).sum();
    let restored = args.apply && good == recovery.recoverable as u64;
    Ok(if !recovery.audit.complete || recovery.audit.witnesses < 3 {
        EXIT_UNKNOWN
    } else if recovery.left == 0 && (recovery.recoverable == 0 || restored) {
        EXIT_OK
    } else {
        EXIT_LOST
    })
}

/// Restores the balances of one tenant after another.
struct Apply<'a> {
    operator: &'a Operator,
    note: Option<&'a str>,
    output: &'a Output<'a>,
    outcomes: &'a mut BTreeMap<RestoreOutcome, u64>,
}

impl Apply<'_> {
    /// Gives the id of the action.
    async fn one(&mut self, tenant: &Audited<'_>, findings: &[&Finding]) -> anyhow::Result<String> {
        let who = actions::who();
        // Before anything is written: should this be broken off, that is seen.
        let recording = self.operator.own(Action::Recover, Some(tenant.tenant()), &who, self.note);
        let action = recording.await.context("nothing was written, as it can't be written down")?;
        let (mut own, mut broken) = (BTreeMap::<RestoreOutcome, u64>::new(), None);
        let restored = tenant
            .restore(findings, &mut |restoring| {
                *own.entry(restoring.outcome).or_default() += 1;
                if let Err(error) = self.output.outcome(&restoring) {
                    broken.get_or_insert(error);
                }
            })
            .await;
        let mut detail: Vec<String> =
            own.iter().map(|(outcome, balances)| format!("{balances} {outcome}")).collect();
        if let Err(error) = &restored {
            detail.push(format!("broken off: {error:#}"));
        }
        let ended = if restored.is_ok() { ActionOutcome::Done } else { ActionOutcome::Failed };
        if let Err(error) = self.operator.outcome(&action, &who, ended, &detail.join(", ")).await {
            eprintln!("balance-sync: what became of it could not be written down: {error}");
        }
        for (outcome, balances) in own {
            *self.outcomes.entry(outcome).or_default() += balances;
        }
        restored?;
        broken.map_or(Ok(action), |error| Err(error).context("writing the output"))
    }
}

/// Where it is said.
struct Output<'a> {
    args: &'a RecoverArgs,
    printed: Cell<u64>,
}

impl Output<'_> {
    /// One balance: a line of JSON, or some for people.
    fn balance(&self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        if self.args.json {
            terminal::print(&format!("{}\n", json()))?;
        } else {
            if self.printed.get() < self.args.show {
                terminal::print(&text())?;
            }
            self.printed.set(self.printed.get() + 1);
        }
        Ok(())
    }

    fn left(&self, finding: &Finding) -> anyhow::Result<()> {
        let hide = self.args.hide_amounts;
        self.balance(|| json!({ "left": finding.json(hide) }), || format!("left  {}", finding.text(hide)))
    }

    fn plan(&self, finding: &Finding) -> anyhow::Result<()> {
        let hide = self.args.hide_amounts;
        let Some(known) = finding.witnesses.recoverable() else { return Ok(()) };
        let witness = if finding.witnesses.record.as_ref() == Some(known) {
            "recover record"
        } else {
            "newest operation"
        };
        self.balance(
            || {
                let to = if hide { json!({ "version": known.version }) } else { json!(known) };
                json!({ "plan": { "to": to, "witness": witness, "finding": finding.json(hide) } })
            },
            || {
                let row = finding.witnesses.row.as_ref().map(|row| &row.known);
                let words = |known: &Known| {
                    let amounts = &known.amounts;
                    if hide {
                        return format!("version {}", known.version);
                    }
                    format!(
                        "version {} (available {}, on hold {}, overdraft {})",
                        known.version,
                        amounts.available,
                        amounts.on_hold,
                        amounts.overdraft_used.as_deref().unwrap_or("?")
                    )
                };
                format!(
                    "plan  {}  {}\n    row: {}\n    to:  {}, by the {witness}\n",
                    finding.tenant,
                    finding.name(),
                    row.map(words).unwrap_or_default(),
                    words(known)
                )
            },
        )
    }

    fn outcome(&self, restoring: &Restoring<'_>) -> anyhow::Result<()> {
        let Restoring { finding, outcome, detail } = restoring;
        // What went well is said by the plan and the numbers.
        if outcome.is_good() && !self.args.json {
            return Ok(());
        }
        self.balance(
            || {
                json!({ "outcome": { "tenant": finding.tenant, "member": String::from_utf8_lossy(&finding.member),
                    "version": finding.judgement.version, "outcome": outcome, "detail": detail } })
            },
            || format!("{outcome}  {}  {}\n    {detail}\n", finding.tenant, finding.name()),
        )
    }

    fn end(&self, recovery: &Recovery) -> anyhow::Result<()> {
        let Recovery { recoverable, left, applied, outcomes, audit, .. } = recovery;
        if self.args.json {
            return Ok(terminal::print(&format!("{}\n", json!({ "summary": recovery })))?);
        }
        let mut text = String::new();
        let hidden = self.printed.get().saturating_sub(self.args.show);
        if hidden > 0 {
            let _ = writeln!(text, "… and {} more lines; --show and --json print them", count(hidden));
        }
        for remark in &audit.notices {
            let _ = writeln!(text, "{} tenant {}: {}", styled(WARN, "notice"), remark.tenant, remark.text);
        }
        for remark in &audit.failed {
            let _ = writeln!(text, "{} tenant {}: {}", styled(BAD, "failed"), remark.tenant, remark.text);
        }
        for (outcome, balances) in outcomes {
            let style = if outcome.is_good() { GOOD } else { BAD };
            let _ = writeln!(text, "{:>12}  {}", count(*balances), styled(style, outcome));
        }
        let what = match (*applied, *recoverable) {
            (true, _) | (false, 0) => String::new(),
            (false, _) => "; nothing was written: --apply --note REASON does it".to_owned(),
        };
        let _ = writeln!(
            text,
            "recover: {} lost balances can be restored, {} can't{what}",
            count(*recoverable as u64),
            count(*left as u64)
        );
        Ok(terminal::print(&text)?)
    }
}
