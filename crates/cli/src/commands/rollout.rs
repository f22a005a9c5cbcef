//! `rollout`: which tenants this fleet serves, and whether to take more.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, bail};
use balance_sync_domain::printable;
use balance_sync_engine::rollout::Advice;
use balance_sync_fleet::status::WorkerMode;
use balance_sync_view::{
    actions::ActionOutcome,
    reader::FleetRollout,
    rollout::{RolloutReport, StageView, Wanted},
};
use serde_json::json;

use super::actions;
use crate::{
    EXIT_OK,
    args::{ActionArgs, RolloutCommand, RolloutTenants},
    terminal::{
        self, BAD, Column, FAINT, GOOD, HEAD, PLAIN, Screen, Table, WARN, count, optional, span, styled, wrap,
    },
    wiring,
};

/// Not followed by all workers yet; or something is wrong.
const EXIT_NOT_DONE: u8 = 1;
/// It is too early, or can't be told.
const EXIT_WAIT: u8 = 2;

/// Shows or changes the rollout.
///
/// # Errors
/// When the configuration is wrong, nothing was changed, or nothing can be written.
pub(crate) async fn rollout(file: Option<&Path>, command: RolloutCommand) -> anyhow::Result<u8> {
    let named = |what: &'static str, tenants: RolloutTenants| (what, None, tenants.tenant, tenants.action);
    let (what, share, tenants, action) = match command {
        RolloutCommand::Status { json } => return status(file, json).await,
        RolloutCommand::History { json } => return history(file, json).await,
        RolloutCommand::Set { share, action } => ("set", Some(share), Vec::new(), action),
        RolloutCommand::Add(tenants) => named("add", tenants),
        RolloutCommand::Remove(tenants) => named("remove", tenants),
        RolloutCommand::Exclude(tenants) => named("exclude", tenants),
        RolloutCommand::All(action) => ("all", None, Vec::new(), action),
        RolloutCommand::None(action) => ("none", None, Vec::new(), action),
        RolloutCommand::Reset(action) => ("reset", None, Vec::new(), action),
    };
    let wanted = Wanted::parse(what, share.as_deref(), &tenants)
        .map_err(|wrong| anyhow::anyhow!("rollout {what}: {wrong}"))?;
    change(file, &wanted, &action).await
}

async fn change(file: Option<&Path>, wanted: &Wanted, args: &ActionArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let note = actions::note(args.note.as_deref())?;
    let (reader, operator, desk) =
        (wiring::reader(&config)?, wiring::operator(&config)?, wiring::rollout_desk(&config)?);
    let view = reader.view().await;
    if let Some(error) = &view.redis_error {
        bail!("nothing was changed, as Redis can't be asked: {error}");
    }
    let done =
        desk.change(&view, wanted, &actions::who(), note).await.context("the rollout was not changed")?;
    let follows = |worker: &&balance_sync_view::rows::WorkerRow| {
        worker.live && !worker.draining && worker.mode != WorkerMode::Shadow && worker.rollout.is_some()
    };
    let workers: Vec<String> =
        view.workers.iter().filter(follows).map(|worker| worker.name.clone()).collect();
    let outcomes = actions::outcomes(&operator, &done.action_id, &workers, args.wait).await?;
    let silent: Vec<&String> =
        workers.iter().filter(|name| !outcomes.iter().any(|outcome| outcome.worker == **name)).collect();
    let all_done = outcomes.iter().all(|outcome| outcome.outcome == ActionOutcome::Done);
    let code = if all_done && silent.is_empty() && !workers.is_empty() { EXIT_OK } else { EXIT_NOT_DONE };
    if args.json {
        let answer = json!({
            "action_id": done.action_id, "change": done.change, "revision": done.revision,
            "selection": done.selection, "outcomes": outcomes, "silent": silent,
        });
        terminal::print(&format!("{answer}\n"))?;
        return Ok(code);
    }
    let mut text = format!(
        "rollout {}: revision {} is stored: {}\n",
        printable(&done.change),
        done.revision,
        printable(&done.selection)
    );
    for outcome in &outcomes {
        let detail = outcome.detail.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "  {}  {}: {}",
            printable(&outcome.worker),
            actions::ended(outcome.outcome),
            printable(detail)
        );
    }
    for name in silent {
        let _ = writeln!(text, "  {}  {}", printable(name), styled(WARN, "has said nothing yet"));
    }
    if workers.is_empty() {
        let _ =
            writeln!(text, "  {}", styled(WARN, "no live worker follows it: whichever starts later does"));
    }
    terminal::print(&text)?;
    Ok(code)
}

async fn status(file: Option<&Path>, json: bool) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let (reader, desk) = (wiring::reader(&config)?, wiring::rollout_desk(&config)?);
    let view = reader.view().await;
    let report = desk.report(&view).await?;
    let code = match report.advice {
        Advice::Widen | Advice::Complete => EXIT_OK,
        Advice::Stop => EXIT_NOT_DONE,
        Advice::Wait => EXIT_WAIT,
    };
    let text = if json {
        format!("{}\n", serde_json::to_string(&report)?)
    } else {
        render(&report, Screen::of_stdout())
    };
    terminal::print(&text)?;
    Ok(code)
}

/// What is in force, in a few words.
pub(super) fn in_force(now: &FleetRollout) -> String {
    let Some((share, selected)) = now.share.as_ref().zip(now.selected) else {
        return "not known".to_owned();
    };
    let list = |what: &str, list: &[String]| match list {
        [] => String::new(),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            format!(", {what}: {first}{more}")
        }
    };
    let since = match (&now.by, &now.at) {
        (Some(by), Some(at)) => {
            let note = now.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
            format!("; revision {} by {by} at {at}{note}", now.revision.unwrap_or_default())
        }
        _ => "; as configured".to_owned(),
    };
    format!(
        "{} of {} tenants: {share} of those on no list{}{}{since}",
        count(selected as u64),
        count(now.total as u64),
        list("included", &now.include),
        list("excluded", &now.exclude)
    )
}

fn render(report: &RolloutReport, screen: Screen) -> String {
    let style = match report.advice {
        Advice::Widen | Advice::Complete => GOOD,
        Advice::Wait => WARN,
        Advice::Stop => BAD,
    };
    let mut text = format!("{}\n", styled(style, wrap(&printable(&report.sentence), screen.text_width(), 0)));
    let now = wrap(&printable(&in_force(&report.now)), screen.text_width(), 12);
    let _ = writeln!(text, "{}  {now}", styled(HEAD, format_args!("{:<10}", "rollout")));
    if let Some(problem) = &report.now.problem {
        let problem = wrap(&printable(problem), screen.text_width(), 12);
        let _ =
            writeln!(text, "{}  {}", styled(HEAD, format_args!("{:<10}", "problem")), styled(BAD, problem));
    }
    let mut table = Table::new(&[
        Column::number("STAGE"),
        Column::long("CHANGE"),
        Column::number("TENANTS"),
        Column::text("SINCE"),
        Column::number("WATCHED"),
        Column::number("WRITTEN"),
        Column::number("LAG P50").spare(1),
        Column::number("LAG P99"),
        Column::number("DRIFT"),
        Column::number("LOST"),
        Column::number("FORKS"),
        Column::number("QUARANTINED"),
        Column::long("BY").spare(2),
    ]);
    for stage in &report.stages {
        table.row(cells(stage));
    }
    let _ = write!(text, "\n{}", table.render(screen));
    text
}

fn cells(stage: &StageView) -> [(String, anstyle::Style); 13] {
    let known = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), count);
    // What should be none.
    let none = |number: Option<u64>| {
        let style = if number.is_some_and(|number| number > 0) { BAD } else { PLAIN };
        (known(number), style)
    };
    let drift = match stage.drift {
        Some(_) => none(stage.drift),
        None => ("-".to_owned(), FAINT),
    };
    [
        (stage.revision.to_string(), PLAIN),
        (stage.change.clone().unwrap_or_else(|| "configured".to_owned()), PLAIN),
        (known(stage.tenants.map(|tenants| tenants as u64)), PLAIN),
        (stage.at.clone().unwrap_or_else(|| "?".to_owned()), FAINT),
        (optional(stage.observed_seconds, span), PLAIN),
        (known(stage.written), PLAIN),
        (optional(stage.lag_p50_seconds, span), PLAIN),
        (optional(stage.lag_p99_seconds, span), PLAIN),
        drift,
        none(stage.losses),
        none(stage.forks),
        none(stage.quarantined),
        (stage.by.clone().unwrap_or_default(), FAINT),
    ]
}

async fn history(file: Option<&Path>, json: bool) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let changes = wiring::rollout_desk(&config)?.history().await?;
    if json {
        terminal::print(&format!("{}\n", json!({ "changes": changes })))?;
        return Ok(EXIT_OK);
    }
    let mut table = Table::new(&[
        Column::number("REVISION"),
        Column::text("AT"),
        Column::long("CHANGE"),
        Column::long("SELECTS"),
        Column::long("BY"),
        Column::long("NOTE"),
    ]);
    for change in &changes {
        table.row([
            (change.revision.to_string(), PLAIN),
            (change.at.clone().unwrap_or_else(|| "?".to_owned()), FAINT),
            (change.change.clone().unwrap_or_default(), PLAIN),
            (change.selection.clone(), PLAIN),
            (change.by.clone().unwrap_or_default(), PLAIN),
            (change.note.clone().unwrap_or_default(), PLAIN),
        ]);
    }
    let mut text = table.render(Screen::of_stdout());
    let _ = writeln!(text, "{} changes", changes.len());
    terminal::print(&text)?;
    Ok(EXIT_OK)
}
