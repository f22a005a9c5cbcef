//! `sessions`: who is signed in to the dashboard, and the end of it.

use std::path::Path;

use anyhow::bail;
use balance_sync_schedule::StoredSession;
use balance_sync_view::rows::at;
use serde::Serialize;
use serde_json::json;

use crate::{
    EXIT_OK,
    args::{EndSessionsArgs, SessionsCommand},
    terminal::{self, Column, PLAIN, Screen, Table, count},
    wiring,
};

/// Digits of a session's id that are shown, and by which it is named.
const ID_DIGITS: usize = 16;
/// No session was ended.
const EXIT_NONE: u8 = 1;

/// As `GET /api/v1/sessions` answers.
#[derive(Serialize)]
struct Row {
    id: String,
    name: String,
    role: String,
    created_at: String,
    last_used_at: String,
    ends_at: String,
    current: bool,
}

/// The command.
///
/// # Errors
/// When the configuration is wrong, Redis can't be asked, or nothing can be written.
pub(crate) async fn sessions(file: Option<&Path>, command: SessionsCommand) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let sessions = wiring::sessions(&config)?;
    let mut all = sessions.list().await?;
    match command {
        SessionsCommand::End(args) => {
            let meant = meant(&all, &args)?;
            let ended = sessions.end(&meant).await?;
            terminal::print(&format!("{} sessions ended.\n", count(ended)))?;
            Ok(if ended > 0 { EXIT_OK } else { EXIT_NONE })
        }
        SessionsCommand::List { json } => {
            all.reverse();
            let (idle, longest) = (sessions.idle().as_secs_f64(), sessions.longest().as_secs_f64());
            let rows: Vec<Row> = all.into_iter().map(|stored| row(stored, idle, longest)).collect();
            let text = if json { format!("{}\n", json!({ "sessions": rows })) } else { table(&rows) };
            terminal::print(&text)?;
            Ok(EXIT_OK)
        }
    }
}

fn row(stored: StoredSession, idle: f64, longest: f64) -> Row {
    Row {
        id: stored.key.chars().take(ID_DIGITS).collect(),
        name: stored.record.name,
        role: stored.record.role,
        created_at: at(stored.created),
        last_used_at: at(stored.used),
        ends_at: at((stored.used + idle).min(stored.created + longest)),
        current: false,
    }
}

fn meant(all: &[StoredSession], args: &EndSessionsArgs) -> anyhow::Result<Vec<String>> {
    if args.id.as_ref().is_some_and(|id| id.len() != ID_DIGITS) {
        bail!("ID: allowed: the {ID_DIGITS} digits that `sessions list` shows");
    }
    let is_meant = |stored: &&StoredSession| match (&args.id, &args.name) {
        (Some(id), _) => stored.key.starts_with(id.as_str()),
        (None, Some(name)) => stored.record.name == *name,
        (None, None) => args.all,
    };
    Ok(all.iter().filter(is_meant).map(|stored| stored.key.clone()).collect())
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "Nobody is signed in.\n".to_owned();
    }
    let mut table = Table::new(&[
        Column::id("SESSION"),
        Column::long("NAME"),
        Column::text("ROLE"),
        Column::text("SIGNED IN").spare(1),
        Column::text("LAST USED"),
        Column::text("ENDS").spare(2),
    ]);
    for row in rows {
        let cells = [&row.id, &row.name, &row.role, &row.created_at, &row.last_used_at, &row.ends_at];
        table.row(cells.map(|cell| (cell.clone(), PLAIN)));
    }
    table.render(Screen::of_stdout())
}
