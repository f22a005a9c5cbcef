//! `report`: a month of the fleet, as Markdown or JSON.

use std::{fmt::Write as _, path::Path};

use anyhow::Context;
use balance_sync_fleet::clock::wall_clock;
use balance_sync_view::report::{
    Report,
    record::MonthRecord,
    summary::{ActionView, Figures},
};

use crate::{
    EXIT_OK,
    args::ReportArgs,
    terminal::{self, count, optional, span},
    wiring,
};

/// Nothing is recorded of the month.
const EXIT_UNKNOWN: u8 = 2;
/// Tenants in the table; `--json` has all.
const TENANTS: usize = 50;

/// Prints the report of a month.
///
/// # Errors
/// When the configuration is wrong, or Redis can't be read.
pub(crate) async fn report(file: Option<&Path>, args: ReportArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let fields =
        wiring::reports(&config)?.read(&args.month.to_string()).await.context("reading the record")?;
    let report = Report::new(args.month, &MonthRecord::read(args.month, &fields), wall_clock());
    let text = if args.json { format!("{}\n", serde_json::to_string(&report)?) } else { markdown(&report) };
    terminal::print(&text)?;
    Ok(if report.is_known() { EXIT_OK } else { EXIT_UNKNOWN })
}

fn markdown(report: &Report) -> String {
    let mut text = format!("# balance-sync, {}\n\n", report.month);
    let until = if report.finished { "the whole month" } else { "the month so far" };
    line(&mut text, format_args!("Of {until}, in UTC; put together at {}.\n", report.generated_at));
    recorded(&mut text, report);
    if let Some(fleet) = &report.fleet {
        summary(&mut text, report, fleet);
    }
    incidents(&mut text, report);
    actions(&mut text, "Recoveries", &report.recoveries, "No recovery is recorded.");
    actions(&mut text, "Actions of operators", &report.actions, "No other action is recorded.");
    tenants(&mut text, report);
    days(&mut text, report);
    text
}

/// What is not known comes first.
fn recorded(text: &mut String, report: &Report) {
    let recorded = &report.recorded;
    let Some((began, last)) = recorded.began_at.as_ref().zip(recorded.last_at.as_ref()) else {
        line(
            text,
            format_args!(
                "**Nothing is recorded of this month.** That doesn't mean that nothing happened: no worker recorded it, Redis has lost the \
                 record, or it is older than 13 months.\n"
            ),
        );
        return;
    };
    line(text, format_args!("Recorded: {}, from {began} to {last}.\n", span(recorded.seconds)));
    if recorded.missing_seconds > 0.0 {
        line(
            text,
            format_args!(
                "**Not recorded: {}.** What happened then is unknown and in none of these figures: no worker recorded it, or Redis has \
                 lost the record (see *Days*).\n",
                span(recorded.missing_seconds)
            ),
        );
    }
}

fn summary(text: &mut String, report: &Report, fleet: &Figures) {
    line(text, format_args!("## Fleet\n\n| | |\n|---|---|"));
    let mut row = |name: &str, value: String| line(text, format_args!("| {name} | {value} |"));
    let share = |share: f64| format!("{:.3} %", share * 100.0);
    row(
        "Freshness: mutation to row",
        format!(
            "p50 {}, p99 {}",
            optional(fleet.lag_p50_seconds, span),
            optional(fleet.lag_p99_seconds, span)
        ),
    );
    row(
        "Some tenant behind",
        format!("{}, {} of the time", span(fleet.behind_seconds), share(fleet.behind_share)),
    );
    row(
        "Exposure: in Redis only",
        format!(
            "p99 {}, longest {}",
            optional(fleet.exposure_p99_seconds, span),
            span(fleet.exposure_longest_seconds)
        ),
    );
    row(
        "Some tenant beyond objectives.exposure",
        format!("{}, {} of the time", span(fleet.exposed_seconds), share(fleet.exposed_share)),
    );
    row("Some tenant not writable", span(fleet.degraded_seconds));
    row("Rows written", count(fleet.rows));
    row("Balances listed as lost or forked", count(fleet.lost));
    row("Times a fork was found", count(fleet.forks_found));
    row("Incidents", count(report.causes.values().map(|cause| cause.incidents).sum()));
    row("Recoveries", count(report.recoveries.len() as u64));
    text.push('\n');
}

fn incidents(text: &mut String, report: &Report) {
    line(text, format_args!("## Incidents\n"));
    if report.causes.is_empty() {
        line(text, format_args!("None is recorded.\n"));
        return;
    }
    line(text, format_args!("| cause | incidents | time |\n|---|---|---|"));
    for (cause, sum) in &report.causes {
        line(text, format_args!("| {} | {} | {} |", cell(cause), count(sum.incidents), span(sum.seconds)));
    }
    line(
        text,
        format_args!(
            "\n| from | lasted | cause | tenants | longest exposure | data that Redis lost |\n|---|---|---|---|---|---|"
        ),
    );
    for incident in &report.incidents {
        let mut lasted = span(incident.seconds);
        if incident.end_unknown {
            lasted.push_str(" at least, its end is not recorded");
        } else if incident.open {
            lasted.push_str(", not over");
        }
        let from = if incident.continued { " (began before the month)" } else { "" };
        let names: Vec<String> = incident.names.iter().map(|name| cell(name)).collect();
        let lost = match (incident.rescheduled, incident.lost) {
            (0, 0) => "–".to_owned(),
            (again, lost) => format!("{} scheduled again, {} lost", count(again), count(lost)),
        };
        line(
            text,
            format_args!(
                "| {}{from} | {lasted} | {} | {}: {} | {} | {lost} |",
                incident.from,
                cell(&incident.cause),
                count(incident.tenants),
                names.join(", "),
                span(incident.exposure_longest_seconds)
            ),
        );
    }
    more(text, report.omitted.incidents, "incidents are in the sums by cause only");
}

fn actions(text: &mut String, title: &str, actions: &[ActionView], none: &str) {
    line(text, format_args!("## {title}\n"));
    if actions.is_empty() {
        return line(text, format_args!("{none}\n"));
    }
    line(
        text,
        format_args!("| when | who | what | tenant or worker | why | outcome |\n|---|---|---|---|---|---|"),
    );
    for action in actions {
        let whom: Vec<String> = action.tenant.iter().chain(&action.worker).map(|name| cell(name)).collect();
        let outcomes: Vec<String> = action
            .outcomes
            .iter()
            .map(|of| cell(&format!("{}: {} {}", of.worker, of.outcome, of.detail)))
            .collect();
        line(
            text,
            format_args!(
                "| {} | {} | {} | {} | {} | {} |",
                action.at,
                cell(&action.by),
                cell(&action.what),
                whom.join(" "),
                cell(action.note.as_deref().unwrap_or_default()),
                outcomes.join("; ")
            ),
        );
    }
    text.push('\n');
}

fn tenants(text: &mut String, report: &Report) {
    line(text, format_args!("## Tenants\n"));
    if report.tenants.is_empty() {
        line(text, format_args!("None with activity or an incident is recorded.\n"));
    } else {
        line(
            text,
            format_args!(
                "| tenant | lag p99 | behind | exposure p99 | longest | beyond the objective | not writable | rows | lost or forked | unknown |\n\
                 |---|---|---|---|---|---|---|---|---|---|"
            ),
        );
        for tenant in report.tenants.iter().take(TENANTS) {
            let figures = &tenant.figures;
            line(
                text,
                format_args!(
                    "| {} | {} | {} | {} | {} | {} ({:.3} %) | {} | {} | {} | {} |",
                    cell(&tenant.id),
                    optional(figures.lag_p99_seconds, span),
                    span(figures.behind_seconds),
                    optional(figures.exposure_p99_seconds, span),
                    span(figures.exposure_longest_seconds),
                    span(figures.exposed_seconds),
                    figures.exposed_share * 100.0,
                    span(figures.degraded_seconds),
                    count(figures.rows),
                    count(figures.lost),
                    span(tenant.unknown_seconds)
                ),
            );
        }
        text.push('\n');
        more(text, report.tenants.len().saturating_sub(TENANTS) as u64, "tenants are in `--json`");
    }
    more(
        text,
        report.omitted.troubled_tenants,
        "tenants with which something was wrong have no entry: there were too many at once",
    );
    more(text, report.omitted.other_tenants, "tenants were written and have no entry");
}

fn days(text: &mut String, report: &Report) {
    line(
        text,
        format_args!(
            "## Days\n\n| day (UTC) | recorded | not recorded | lag p99 | exposure p99 | beyond the objective | rows | lost or forked |\n\
             |---|---|---|---|---|---|---|---|"
        ),
    );
    for day in &report.days {
        let missing = if day.missing_seconds > 0.0 {
            format!("**{}**", span(day.missing_seconds))
        } else {
            "–".to_owned()
        };
        match &day.figures {
            None => line(text, format_args!("| {} | nothing | {missing} | ? | ? | ? | ? | ? |", day.day)),
            Some(figures) => line(
                text,
                format_args!(
                    "| {} | {} | {missing} | {} | {} | {} | {} | {} |",
                    day.day,
                    span(day.recorded_seconds),
                    optional(figures.lag_p99_seconds, span),
                    optional(figures.exposure_p99_seconds, span),
                    span(figures.exposed_seconds),
                    count(figures.rows),
                    count(figures.lost)
                ),
            ),
        }
    }
}

fn more(text: &mut String, number: u64, what: &str) {
    if number > 0 {
        line(text, format_args!("{} {what}.\n", count(number)));
    }
}

/// Foreign text in a cell of a table.
fn cell(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for part in text.chars() {
        match part {
            '|' | '`' | '*' | '[' | ']' | '\\' => {
                shown.push('\\');
                shown.push(part);
            }
            '<' => shown.push_str("&lt;"),
            '&' => shown.push_str("&amp;"),
            '\'' | '"' => shown.push(part),
            _ => shown.extend(part.escape_debug()),
        }
    }
    shown
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing into a String can't fail.
    let _ = writeln!(text, "{content}");
}

#[cfg(test)]
mod tests {
    use balance_sync_view::report::Month;

    use super::*;

    #[test]
    fn foreign_text_stays_in_its_cell() {
        assert_eq!(cell("a|b\n<script>&`*\u{202e}é"), "a\\|b\\n&lt;script>&amp;\\`\\*\\u{202e}é");
    }

    #[test]
    fn without_a_record_the_report_says_so_and_shows_no_figure() {
        let now = 1_795_752_000.0; // 2026-11-27T04:00:00Z
        let Some(month) = Month::parse("2026-11") else { return assert_eq!("", "2026-11") };
        let text = markdown(&Report::new(month, &MonthRecord::default(), now));
        assert!(text.contains("**Nothing is recorded of this month.**"), "{text}");
        assert!(!text.contains("## Fleet"), "{text}");
        assert!(text.contains("| 2026-11-26 | nothing | **1d00h** | ? | ? | ? | ? | ? |"), "{text}");
    }
}
