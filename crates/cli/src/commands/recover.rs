//! `recover`: what Redis has lost and the ledger's trail has, written to the rows.

use std::{cell::Cell, fmt::Write as _, path::Path};

use balance_sync_domain::printable;
use balance_sync_engine::audit::Known;
use serde_json::{Value, json};

use super::{actions, audit::RECHECK};
use crate::{
    EXIT_OK,
    args::RecoverArgs,
    audit::{self, Apply, Auditor, Cursor, Finding, Options, Recovery, RecoveryOutput, Restoring},
    program::interrupted,
    terminal::{self, BAD, GOOD, WARN, count, styled},
    wiring,
};

/// Something is lost and not restored.
const EXIT_LOST: u8 = 1;
/// Not all could be determined.
const EXIT_UNKNOWN: u8 = 2;

/// Plans, or restores.
///
/// # Errors
/// When the configuration is wrong, there is no such tenant, or Redis or the tenant service can't be asked: then nothing is written.
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
    let output = Output { args: &args, printed: Cell::new(0) };
    let (operator, who) = (wiring::operator(&config)?, actions::who());
    let apply = args.apply.then_some(Apply { operator: &operator, by: &who, done_by: &who, note });
    let recovery = {
        let mut running = Box::pin(audit::recover(&auditor, &args.tenant, apply, &output));
        tokio::select! {
            recovery = &mut running => recovery?,
            signal = interrupted() => {
                signal?;
                auditor.stop();
                running.await?
            }
        }
    };
    output.end(&recovery)?;
    Ok(if !recovery.is_complete() {
        EXIT_UNKNOWN
    } else if recovery.is_whole() {
        EXIT_OK
    } else {
        EXIT_LOST
    })
}

/// Where it is said.
struct Output<'a> {
    args: &'a RecoverArgs,
    printed: Cell<u64>,
}

impl RecoveryOutput for Output<'_> {
    fn left(&self, finding: &Finding) -> anyhow::Result<()> {
        let hide = self.args.hide_amounts;
        self.balance(|| json!({ "left": finding.json(hide) }), || format!("left  {}", finding.text(hide)))
    }

    fn plan(&self, finding: &Finding) -> anyhow::Result<()> {
        let hide = self.args.hide_amounts;
        let (Some(known), Some(witness)) = (finding.witnesses.recoverable(), finding.witness()) else {
            return Ok(());
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
                    printable(&finding.tenant),
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
            || format!("{outcome}  {}  {}\n    {}\n", printable(&finding.tenant), finding.name(), printable(detail)),
        )
    }
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
            let _ = writeln!(
                text,
                "{} tenant {}: {}",
                styled(WARN, "notice"),
                printable(&remark.tenant),
                printable(&remark.text)
            );
        }
        for remark in &audit.failed {
            let _ = writeln!(
                text,
                "{} tenant {}: {}",
                styled(BAD, "failed"),
                printable(&remark.tenant),
                printable(&remark.text)
            );
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
            count(*recoverable),
            count(*left)
        );
        Ok(terminal::print(&text)?)
    }
}
