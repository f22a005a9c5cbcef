//! What operators do from a terminal: written down in Redis, done by the workers, and the log of all of it.

use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::bail;
use balance_sync_domain::printable;
use balance_sync_view::{
    actions::{Action, ActionOutcome, ActionView, LONGEST_NOTE, Operator, OutcomeView},
    reader::FleetReader,
};
use serde::Serialize;
use serde_json::json;

use crate::{
    EXIT_OK,
    args::{ActionArgs, ActionsArgs, TenantActionArgs},
    config::Config,
    terminal::{self, BAD, Column, FAINT, PLAIN, Screen, Table, WARN, styled},
    wiring,
};

/// Not every worker that it concerns has done it, or not yet.
const EXIT_NOT_DONE: u8 = 1;
/// How often what became of an action is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Actions among which the own one is looked for.
const LATEST: usize = 200;

/// As `GET /api/v1/actions` answers.
#[derive(Serialize)]
struct Page {
    total: usize,
    page: usize,
    per_page: usize,
    actions: Vec<ActionView>,
}

/// How the log names a user at a terminal.
pub(crate) fn who() -> String {
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty()).or_else(|| {
        let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten()?;
        Some(user.name)
    });
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
    format!("cli:{}@{}", user.as_deref().unwrap_or("unknown"), host.as_deref().unwrap_or("unknown"))
}

/// A note that can stand in a log.
///
/// # Errors
/// When it can't.
pub(super) fn note(note: Option<&str>) -> anyhow::Result<Option<&str>> {
    let Some(text) = note.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    if text.chars().count() > LONGEST_NOTE || text.chars().any(char::is_control) {
        bail!("--note: allowed: at most {LONGEST_NOTE} characters, no control characters");
    }
    Ok(Some(text))
}

/// Has something done with a tenant by all workers that serve it, and waits for what they say.
///
/// # Errors
/// When the configuration is wrong, there is no such tenant, or it could not be written down.
pub(super) async fn on_tenant(
    file: Option<&Path>,
    what: Action,
    args: &TenantActionArgs,
) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let note = note(args.action.note.as_deref())?;
    if what.needs_note() && note.is_none() {
        bail!("--note: needed for {what}: what has been found and decided");
    }
    let (reader, operator) = (wiring::reader(&config)?, wiring::operator(&config)?);
    let view = reader.view().await;
    let Some(tenant) = view.tenant(&args.tenant) else {
        match &view.redis_error {
            Some(error) => bail!("{}: not known, as Redis can't be asked: {error}", printable(&args.tenant)),
            None => bail!("{}: no such tenant is listed or served", printable(&args.tenant)),
        }
    };
    let owners = view.find_called(&args.tenant).map(|(row, _)| row.owners.clone()).unwrap_or_default();
    let id = operator.tenant(what, &tenant, &who(), note).await?;
    let outcomes = outcomes(&operator, &id, &owners, args.action.wait).await?;
    tell(&id, what, tenant.label(), &owners, &outcomes, &args.action)
}

/// Has a worker drain, and waits until it says that it does.
///
/// # Errors
/// When the configuration is wrong, there is no such worker, or it could not be written down.
pub(super) async fn drain(file: Option<&Path>, worker: &str, args: &ActionArgs) -> anyhow::Result<u8> {
    let config: Config = super::load_config(file)?;
    let note = note(args.note.as_deref())?;
    let (reader, operator): (FleetReader, Operator) = (wiring::reader(&config)?, wiring::operator(&config)?);
    let view = reader.view().await;
    if !view.workers.iter().any(|row| row.name == worker) {
        match &view.redis_error {
            Some(error) => bail!("{}: not known, as Redis can't be asked: {error}", printable(worker)),
            None => bail!("{}: no live worker has this name", printable(worker)),
        }
    }
    let id = operator.drain(worker, &who(), note).await?;
    let owners = [worker.to_owned()];
    let outcomes = outcomes(&operator, &id, &owners, args.wait).await?;
    tell(&id, Action::Drain, worker, &owners, &outcomes, args)
}

/// What became of an action, once all that it concerns have said so or their time is over.
pub(super) async fn outcomes(
    operator: &Operator,
    id: &str,
    owners: &[String],
    wait: f64,
) -> anyhow::Result<Vec<OutcomeView>> {
    let until = Instant::now() + crate::args::seconds(wait);
    loop {
        let (_, latest) = operator.actions(None, 1, LATEST).await?;
        let outcomes = latest.into_iter().find(|action| action.id == id).map(|action| action.outcomes);
        let outcomes = outcomes.unwrap_or_default();
        let reported = |name: &String| outcomes.iter().any(|outcome| outcome.worker == *name);
        if owners.iter().all(reported) || Instant::now() >= until {
            return Ok(outcomes);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn tell(
    id: &str,
    what: Action,
    subject: &str,
    owners: &[String],
    outcomes: &[OutcomeView],
    args: &ActionArgs,
) -> anyhow::Result<u8> {
    let silent: Vec<&String> =
        owners.iter().filter(|name| !outcomes.iter().any(|outcome| outcome.worker == **name)).collect();
    let all_done = outcomes.iter().all(|outcome| outcome.outcome == ActionOutcome::Done);
    let code = if all_done && silent.is_empty() && !owners.is_empty() { EXIT_OK } else { EXIT_NOT_DONE };
    if args.json {
        let answer = json!({
            "action_id": id, "what": what.as_str(), "of": subject, "outcomes": outcomes, "silent": silent,
        });
        terminal::print(&format!("{answer}\n"))?;
        return Ok(code);
    }
    let mut text = format!("{} {}: action {id} is written down\n", what.as_str(), printable(subject));
    for outcome in outcomes {
        let detail = outcome.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "  {}  {}{}",
            printable(&outcome.worker),
            ended(outcome.outcome),
            printable(&detail)
        );
    }
    for name in silent {
        let _ = writeln!(text, "  {}  {}", printable(name), styled(WARN, "has said nothing yet"));
    }
    if owners.is_empty() {
        let _ =
            writeln!(text, "  {}", styled(WARN, "no live worker serves it: whichever does later follows"));
    }
    terminal::print(&text)?;
    Ok(code)
}

pub(super) fn ended(outcome: ActionOutcome) -> String {
    match outcome {
        ActionOutcome::Done => "done".to_owned(),
        ActionOutcome::Failed => styled(BAD, "failed"),
        ActionOutcome::Refused => styled(WARN, "refused"),
    }
}

/// Prints what operators have done, the last first.
///
/// # Errors
/// When the configuration is wrong, Redis can't be asked, or nothing can be written.
pub(crate) async fn actions(file: Option<&Path>, args: ActionsArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let operator = wiring::operator(&config)?;
    let (total, actions) = operator.actions(args.tenant.as_deref(), 1, args.limit).await?;
    if args.json {
        let page = Page { total, page: 1, per_page: args.limit, actions };
        terminal::print(&format!("{}\n", serde_json::to_string(&page)?))?;
        return Ok(EXIT_OK);
    }
    let mut table = Table::new(&[
        Column::text("AT"),
        Column::text("WHAT"),
        Column::text("OF"),
        Column::long("BY"),
        Column::long("OUTCOME"),
        Column::long("NOTE"),
    ]);
    for action in &actions {
        let of = action.tenant.as_deref().or(action.worker.as_deref()).or(action.change.as_deref());
        let of = of.unwrap_or("several tenants");
        let outcomes: Vec<String> = action
            .outcomes
            .iter()
            .map(|outcome| match (&outcome.detail, outcome.outcome) {
                (Some(detail), _) => format!("{}: {detail}", outcome.worker),
                (None, ActionOutcome::Done) => format!("{}: done", outcome.worker),
                (None, ActionOutcome::Failed) => format!("{}: failed", outcome.worker),
                (None, ActionOutcome::Refused) => format!("{}: refused", outcome.worker),
            })
            .collect();
        let style = match action.outcomes.iter().find(|outcome| outcome.outcome != ActionOutcome::Done) {
            _ if action.outcomes.is_empty() => WARN,
            Some(_) => BAD,
            None => PLAIN,
        };
        let outcomes = if outcomes.is_empty() { "none yet".to_owned() } else { outcomes.join("; ") };
        table.row([
            (action.at.clone(), FAINT),
            (action.what.clone(), PLAIN),
            (of.to_owned(), PLAIN),
            (action.by.clone(), PLAIN),
            (outcomes, style),
            (action.note.clone().unwrap_or_default(), PLAIN),
        ]);
    }
    let mut text = table.render(Screen::of_stdout());
    let _ = writeln!(text, "{total} actions");
    terminal::print(&text)?;
    Ok(EXIT_OK)
}
