//! `retire`: back to the ledger's own worker.

use std::{fmt::Write as _, path::Path};

use balance_sync_domain::printable;
use serde_json::json;

use super::actions;
use crate::{
    EXIT_OK,
    args::RetireArgs,
    program::interrupted,
    retire::{Ended, Job, Objection, Plan, Refusal, Report, State},
    terminal::{self, BAD, Column, FAINT, GOOD, PLAIN, Screen, Table, WARN, count, styled},
};

/// Refused, or something is left open.
const EXIT_OPEN: u8 = 1;
/// Something could not be determined.
const EXIT_UNKNOWN: u8 = 2;
/// Lines of one kind that are shown.
const SHOWN: usize = 20;

/// The command.
///
/// # Errors
/// When the command or the configuration is wrong, or something that all tenants need can't be asked.
pub(crate) async fn retire(file: Option<&Path>, args: RetireArgs) -> anyhow::Result<u8> {
    let note = actions::note(args.note.as_deref())?;
    if args.acknowledge && note.is_none() {
        anyhow::bail!("--note: needed with --acknowledge: what is open, and why it is left so");
    }
    let config = super::load_config(file)?;
    let job = Job::new(&config, &args, note).await?;
    let ended = tokio::select! {
        ended = Box::pin(job.run()) => ended?,
        signal = interrupted() => anyhow::bail!(
            "{}: broken off; the same command goes on from there. If it had stopped claiming, the tenants are the ledger's own worker's",
            signal?
        ),
    };
    let code = match &ended {
        Ended::Planned(plan) if plan.unknown => EXIT_UNKNOWN,
        Ended::Planned(plan) if plan.objections.is_empty() => EXIT_OK,
        Ended::Planned(_) | Ended::Objected(_) | Ended::Refused(_) => EXIT_OPEN,
        Ended::Done(report) => match report.state() {
            State::Retired => EXIT_OK,
            State::Open => EXIT_OPEN,
            State::Unknown => EXIT_UNKNOWN,
        },
    };
    let text = if args.json { format!("{}\n", as_json(&ended)) } else { words(&ended, &args) };
    terminal::print(&text)?;
    Ok(code)
}

fn as_json(ended: &Ended) -> serde_json::Value {
    match ended {
        Ended::Planned(plan) => json!({ "result": "planned", "plan": plan }),
        Ended::Objected(plan) => json!({ "result": "refused", "plan": plan }),
        Ended::Refused(Refusal(why)) => json!({ "result": "refused", "why": why }),
        Ended::Done(report) => {
            let mut answer = json!({ "result": report.state(), "report": report });
            for (tenant, row) in
                report.tenants.iter().zip(answer["report"]["tenants"].as_array_mut().into_iter().flatten())
            {
                row["state"] = json!(tenant.state());
            }
            answer
        }
    }
}

fn words(ended: &Ended, args: &RetireArgs) -> String {
    let screen = Screen::of_stdout();
    match ended {
        Ended::Planned(plan) => plan_words(plan, screen),
        Ended::Objected(plan) => {
            let mut text = plan_words(plan, screen);
            let more = match plan.against(true).is_empty() && !args.acknowledge {
                true => "; --acknowledge with a --note goes on all the same",
                false => "",
            };
            let _ = writeln!(text, "{}: nothing was done{more}", styled(BAD, "refused"));
            text
        }
        Ended::Refused(Refusal(why)) => format!("{}: {}\n", styled(BAD, "refused"), printable(why)),
        Ended::Done(report) => report_words(report, screen),
    }
}

fn plan_words(plan: &Plan, screen: Screen) -> String {
    let mut table = Table::new(&[
        Column::id("TENANT"),
        Column::number("DUE"),
        Column::number("CLAIMED"),
        Column::number("TO SCHEDULE"),
        Column::number("SETTLED"),
        Column::number("TO EXPORT"),
    ]);
    for tenant in &plan.tenants {
        let entries = |number: fn(&crate::retire::Fates) -> u64| {
            (tenant.entries.as_ref().map_or_else(|| "?".to_owned(), |fates| count(number(fates))), PLAIN)
        };
        table.row([
            (tenant.tenant.clone(), PLAIN),
            (count(tenant.due), PLAIN),
            (count(tenant.leased), PLAIN),
            entries(|fates| fates.scheduled),
            entries(|fates| fates.settled),
            entries(|fates| fates.kept),
        ]);
    }
    let mut text = table.render(screen);
    let _ = writeln!(
        text,
        "\nIn this order: no worker claims them any more ({}); what is held is made due, and scheduled values live for a day; rows are compared, \
         and what is behind and not scheduled is scheduled; quarantine and losses are cleared as above; records of ours are removed; all is \
         reported.",
        match plan.workers.as_slice() {
            [] => "none is live".to_owned(),
            names => format!("{} must leave", printable(&names.join(", "))),
        }
    );
    for note in plan.notes.iter().take(SHOWN) {
        let _ = writeln!(text, "{}  {}", styled(FAINT, "note"), printable(note));
    }
    for Objection { tenant, text: why, can_be_acknowledged, .. } in plan.objections.iter().take(SHOWN) {
        let of = tenant.as_ref().map_or_else(String::new, |tenant| format!("tenant {tenant}: "));
        let style = if *can_be_acknowledged { WARN } else { BAD };
        let _ = writeln!(text, "{}  {}{}", styled(style, "against it"), printable(&of), printable(why));
    }
    if plan.objections.len() > SHOWN {
        let _ = writeln!(text, "… and {} more; --json has them all", plan.objections.len() - SHOWN);
    }
    if plan.objections.is_empty() && !plan.unknown {
        let _ = writeln!(text, "{}", styled(GOOD, "nothing speaks against it"));
    }
    text
}

fn report_words(report: &Report, screen: Screen) -> String {
    let mut table = Table::new(&[
        Column::id("TENANT"),
        Column::text("STATE"),
        Column::number("WAITING"),
        Column::number("GIVEN BACK"),
        Column::number("COMPARED"),
        Column::number("BEHIND"),
        Column::number("ENTRIES").spare(2),
        Column::number("EXPORTED"),
        Column::number("RECORDS").spare(1),
    ]);
    for tenant in &report.tenants {
        let (state, style) = match tenant.state() {
            State::Retired => ("retired", GOOD),
            State::Open => ("open", BAD),
            State::Unknown => ("unknown", WARN),
        };
        table.row([
            (tenant.tenant.clone(), PLAIN),
            (state.to_owned(), style),
            (count(tenant.scheduled), PLAIN),
            (count(tenant.given_back), PLAIN),
            (count(tenant.balances), PLAIN),
            (count(tenant.behind), PLAIN),
            (count(tenant.entries_scheduled + tenant.entries_settled), PLAIN),
            (count(tenant.entries_exported), PLAIN),
            (count(tenant.records_removed), PLAIN),
        ]);
    }
    let mut text = table.render(screen);
    text.push('\n');
    for tenant in &report.tenants {
        for (what, style, lines) in [("open", BAD, &tenant.open), ("unknown", WARN, &tenant.unknown)] {
            for line in lines {
                let _ = writeln!(
                    text,
                    "{}  tenant {}: {}",
                    styled(style, what),
                    printable(&tenant.tenant),
                    printable(line)
                );
            }
        }
    }
    for kept in &report.kept {
        let _ =
            writeln!(text, "{}  {}: {}", styled(FAINT, "stays"), printable(&kept.keys), printable(&kept.why));
    }
    let state = match report.state() {
        State::Retired => styled(GOOD, "retired"),
        State::Open => styled(BAD, "something is open"),
        State::Unknown => styled(WARN, "not all is known"),
    };
    let _ = writeln!(
        text,
        "{state} under revision {} of the rollout: {}",
        report.revision,
        crate::retire::summary(report)
    );
    text
}
