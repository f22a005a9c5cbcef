//! `workers`: who is alive, and how each is; and the end of one.

use std::{fmt::Write as _, path::Path};

use balance_sync_fleet::{status::WorkerMode, tasks::TaskState};
use balance_sync_view::{overview::CLOCK_TOLERANCE_SECONDS, reader::FleetView, rows::WorkerRow};
use serde_json::json;

use crate::{
    EXIT_OK,
    args::{WorkersArgs, WorkersCommand},
    terminal::{self, BAD, Column, PLAIN, Screen, Table, WARN, ago, bytes, count, rate, span, styled},
    wiring,
};

/// Some worker isn't well.
const EXIT_NOT_WELL: u8 = 1;
/// Not known.
const EXIT_UNKNOWN: u8 = 2;

/// The command.
///
/// # Errors
/// When the configuration is wrong, the worker that is named isn't there, or nothing can be written.
pub(crate) async fn workers(file: Option<&Path>, args: WorkersArgs) -> anyhow::Result<u8> {
    if let Some(WorkersCommand::Drain { worker, action }) = args.command {
        return super::actions::drain(file, &worker, &action).await;
    }
    let config = super::load_config(file)?;
    let view = wiring::reader(&config)?.view().await;
    let code = match &view.redis_error {
        Some(_) => EXIT_UNKNOWN,
        None if view.writes_refused.is_some() => EXIT_NOT_WELL,
        None if view.workers.is_empty() && view.shadows.is_empty() => EXIT_UNKNOWN,
        None if view.workers.iter().chain(&view.shadows).all(is_well) && view.dead_workers.is_empty() => {
            EXIT_OK
        }
        None => EXIT_NOT_WELL,
    };
    if args.json {
        terminal::print(&format!(
            "{}\n",
            json!({ "workers": view.workers, "shadows": view.shadows, "dead": view.dead_workers })
        ))?;
        return Ok(code);
    }
    let mut text = table(&all(&view), view.at, Screen::of_stdout());
    let note = match (&view.redis_error, &view.writes_refused) {
        (Some(error), _) => Some(format!("Redis can't be asked: {error}.")),
        (None, Some(error)) => Some(format!("Redis refuses writes: {}.", error.message)),
        (None, None) if view.workers.is_empty() && view.shadows.is_empty() => {
            Some("No live worker has reported.".to_owned())
        }
        (None, None) => None,
    };
    for dead in &view.dead_workers {
        let heirs = match dead.taken_over_by.as_slice() {
            [] => "no live worker".to_owned(),
            heirs => heirs.join(", "),
        };
        let (name, seen) = (&dead.name, &dead.last_seen_at);
        let of = count(dead.tenants as u64);
        let _ = writeln!(
            text,
            "{}",
            styled(
                WARN,
                format_args!("{name} has died: last seen {seen}, its {of} tenants taken over by {heirs}.")
            )
        );
    }
    if let Some(note) = note {
        let _ = writeln!(text, "{}", styled(WARN, note));
    }
    terminal::print(&text)?;
    Ok(code)
}

fn is_off(offset: f64) -> bool {
    offset.abs() > CLOCK_TOLERANCE_SECONDS
}

fn is_well(row: &WorkerRow) -> bool {
    row.redis == "ok"
        && matches!(row.tenant_service.state.as_str(), "ok" | "static")
        && row.background_tasks.iter().all(|task| task.state != TaskState::Stalled)
}

/// All live workers, those that only look last.
pub(super) fn all(view: &FleetView) -> Vec<&WorkerRow> {
    view.workers.iter().chain(&view.shadows).collect()
}

/// A line per worker; with their versions where these differ.
pub(super) fn table(rows: &[&WorkerRow], now: f64, screen: Screen) -> String {
    let differ = rows.iter().any(|row| row.version != rows[0].version);
    let mut columns = vec![
        Column::id("WORKER"),
        Column::text("STATE"),
        Column::number("UP"),
        Column::number("SEEN"),
        Column::number("TENANTS"),
        Column::number("ROWS/S").spare(1),
        Column::number("MEMORY").spare(2),
        Column::number("CLOCK").spare(0),
        Column::long("TENANT SERVICE"),
    ];
    if differ {
        columns.insert(1, Column::text("VERSION").spare(3));
    }
    let mut table = Table::new(&columns);
    for row in rows {
        let (state, style) = match row.redis.as_str() {
            _ if !row.live => ("can't report", BAD),
            _ if row.draining => ("draining", WARN),
            "ok" if row.background_tasks.iter().any(|task| task.is_missed()) => ("task stalled", BAD),
            "ok" if row.background_tasks.iter().any(|task| task.state == TaskState::Stalled) => {
                ("task stalled", WARN)
            }
            "ok" if row.mode == WorkerMode::Shadow => ("shadow", PLAIN),
            "ok" => ("ok", PLAIN),
            _ => ("no redis", BAD),
        };
        let service = match row.tenant_service.state.as_str() {
            "ok" | "static" => PLAIN,
            _ => WARN,
        };
        let mut cells = vec![
            match &row.configured_name {
                None => (row.name.clone(), PLAIN),
                Some(configured) => (format!("{} (configured: {configured})", row.name), WARN),
            },
            (state.to_owned(), style),
            (span(row.uptime_seconds), PLAIN),
            (ago(&row.seen_at, now), PLAIN),
            (count(row.tenants_owned), PLAIN),
            (rate(row.rows_per_second), PLAIN),
            (bytes(row.rss_bytes), PLAIN),
            match row.clock_offset_seconds {
                // By how much it is ahead of Redis's, without the sign of what is rounded to nothing.
                Some(offset) => (
                    format!("{:+.2} s", (offset * 100.0).round() / 100.0 + 0.0),
                    if is_off(offset) { WARN } else { PLAIN },
                ),
                None => ("-".to_owned(), PLAIN),
            },
            (row.tenant_service.state.clone(), service),
        ];
        if differ {
            cells.insert(1, (row.version.clone(), WARN));
        }
        table.row(cells);
    }
    table.render(screen)
}
