//! `tenants`: which, in which state, with what backlog; one in detail; and what can be done with it.

use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::bail;
use balance_sync_domain::printable;
use balance_sync_fleet::status::{Outcome, ReportedReason};
use balance_sync_view::{
    actions::Action,
    overview::Verdict,
    reader::{FleetReader, FleetView, TenantQuery},
    rows::{AcknowledgedView, TenantDetail, TenantRow},
};
use serde::Serialize;

use super::{actions, neighbour, queues, shadow, status::exit_code};
use crate::{
    args::{TenantListArgs, TenantShowArgs, TenantsArgs, TenantsCommand},
    terminal::{
        self, BAD, Cell, Column, FAINT, PLAIN, Screen, Table, WARN, ago, count, csv, optional, rate, span,
        styled,
    },
    wiring,
};

/// Tenants that are listed at most, unless requested otherwise.
const LIMIT: usize = 100;
/// Flushes and errors of a tenant that are shown.
const SHOWN: usize = 8;
/// How long the workers of a tenant may take to tell its detail: they notice the interest with one publication and answer
/// with the next, and there is one every two seconds.
const DETAIL_WITHIN: Duration = Duration::from_secs(6);
/// How often it is looked for.
const DETAIL_EVERY: Duration = Duration::from_millis(200);

/// As `GET /api/v1/tenants` answers.
#[derive(Serialize)]
struct Page<'a> {
    total: usize,
    page: usize,
    per_page: usize,
    tenants: Vec<&'a TenantRow>,
}

/// The command.
///
/// # Errors
/// When the configuration is wrong, a tenant that is named isn't there, or nothing can be written. What can't be asked is
/// part of the answer.
pub(crate) async fn tenants(file: Option<&Path>, args: TenantsArgs) -> anyhow::Result<u8> {
    match args.command {
        None => list(file, args.list).await,
        Some(TenantsCommand::Show(args)) => show(file, args).await,
        Some(TenantsCommand::Pause(args)) => actions::on_tenant(file, Action::Pause, &args).await,
        Some(TenantsCommand::Resume(args)) => actions::on_tenant(file, Action::Resume, &args).await,
        Some(TenantsCommand::Flush(args)) => actions::on_tenant(file, Action::Flush, &args).await,
        Some(TenantsCommand::Acknowledge(args)) => actions::on_tenant(file, Action::Acknowledge, &args).await,
        Some(TenantsCommand::Refresh(args)) => {
            actions::on_tenant(file, Action::RefreshCredentials, &args).await
        }
    }
}

/// Prints the tenants that fit.
async fn list(file: Option<&Path>, args: TenantListArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let view = wiring::reader(&config)?.view().await;
    let query = TenantQuery {
        states: args.state,
        text: args.tenant.unwrap_or_default(),
        sort: args.sort,
        descending: args.reverse != descends(args.sort),
        page: 1,
        // An export has all of them unless a limit is given.
        per_page: args.limit.unwrap_or(if args.csv { usize::MAX } else { LIMIT }),
    };
    let (total, tenants) = view.page(&query);
    // What was asked for is judged, whether it is shown or not.
    let per_page = query.per_page;
    let (_, all) = view.page(&TenantQuery { per_page: usize::MAX, ..query });
    let verdict =
        all.iter().map(|row| view.verdict_of(row)).max().unwrap_or(Verdict::Healthy).max(known(&view));
    if args.json {
        let page = Page { total, page: 1, per_page, tenants };
        terminal::print(&format!("{}\n", serde_json::to_string(&page)?))?;
        return Ok(exit_code(verdict));
    }
    if args.csv {
        terminal::print_csv(&as_csv(&tenants))?;
        return Ok(exit_code(verdict));
    }
    let mut text = table(&tenants, &view, Screen::of_stdout());
    let shown = tenants.len();
    if shown < total {
        let _ = writeln!(text, "{shown} of {} tenants, see --limit", count(total as u64));
    } else {
        let _ = writeln!(text, "{} tenant{}", count(total as u64), if total == 1 { "" } else { "s" });
    }
    doubts(&mut text, &view);
    terminal::print(&text)?;
    Ok(exit_code(verdict))
}

fn as_csv(tenants: &[&TenantRow]) -> String {
    let titles = [
        "tenant",
        "state",
        "reason",
        "detail",
        "since",
        "paused_by",
        "paused_at",
        "paused_note",
        "paused_age_seconds",
        "scheduled",
        "due",
        "leased",
        "oldest_due_age_seconds",
        "exposure_age_seconds",
        "lag_p50_seconds",
        "lag_p99_seconds",
        "rows_per_second",
        "updated_total",
        "batch_failures_total",
        "quarantined",
        "losses",
    ];
    let rows = tenants.iter().map(|row| -> [Cell<'_>; 21] {
        let sampled = |number: u64| if row.sampled { number.into() } else { Cell::Empty };
        let age = |seconds: f64| Some(seconds).filter(|_| row.sampled).into();
        [
            row.id.as_str().into(),
            Cell::Own(row.state.to_string()),
            row.reason.as_ref().map(ReportedReason::as_str).into(),
            row.detail.as_deref().into(),
            row.since.as_deref().into(),
            row.paused.as_ref().map(|paused| paused.by.as_str()).into(),
            row.paused.as_ref().map(|paused| paused.at.as_str()).into(),
            row.paused.as_ref().and_then(|paused| paused.note.as_deref()).into(),
            row.paused.as_ref().map(|paused| paused.age_seconds).into(),
            sampled(row.scheduled),
            sampled(row.due),
            sampled(row.leased),
            age(row.oldest_due_age_seconds),
            age(row.exposure_age_seconds),
            row.lag_p50_seconds.into(),
            row.lag_p99_seconds.into(),
            Some(row.rows_per_second).into(),
            row.updated_total.into(),
            row.batch_failures_total.into(),
            sampled(row.quarantined),
            sampled(row.losses),
        ]
    });
    csv(titles, rows)
}

/// Prints everything about one tenant.
async fn show(file: Option<&Path>, args: TenantShowArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let reader = wiring::reader(&config)?;
    let view = reader.view().await;
    let Some(detail) = whole(&reader, &args.tenant).await else {
        match &view.redis_error {
            Some(error) => bail!("{}: not known, as Redis can't be asked: {error}", printable(&args.tenant)),
            None => bail!("{}: no such tenant is listed or served", printable(&args.tenant)),
        }
    };
    let verdict = view.verdict_of(&detail.row).max(known(&view));
    if args.json {
        terminal::print(&format!("{}\n", serde_json::to_string(&detail)?))?;
    } else {
        let mut text = render(&detail, &view, Screen::of_stdout());
        doubts(&mut text, &view);
        terminal::print(&text)?;
    }
    Ok(exit_code(verdict))
}

/// Workers publish a tenant's detail once it has been requested: requests it until it is there, or has had its time.
async fn whole(reader: &FleetReader, tenant: &str) -> Option<TenantDetail> {
    let until = Instant::now() + DETAIL_WITHIN;
    loop {
        let detail = reader.detail(tenant).await?;
        let is_there = !detail.flushes.is_empty() || !detail.errors.is_empty() || !detail.history.is_empty();
        let row = &detail.row;
        let nothing_to_tell = row.owners.is_empty() || row.updated_total + row.batch_failures_total == 0;
        if is_there || nothing_to_tell || Instant::now() >= until {
            return Some(detail);
        }
        tokio::time::sleep(DETAIL_EVERY).await;
    }
}

/// By numbers the largest come first, by names they go forwards.
fn descends(sort: balance_sync_view::reader::TenantSort) -> bool {
    use balance_sync_view::reader::TenantSort::{Id, State};
    !matches!(sort, Id | State)
}

/// Whether anything can be said at all.
fn known(view: &FleetView) -> Verdict {
    if view.writes_refused.is_some() && view.listed {
        Verdict::Degraded
    } else if view.redis_error.is_some() || !view.listed || is_empty(view) {
        Verdict::Unknown
    } else if view.workers.is_empty() {
        Verdict::Attention
    } else {
        Verdict::Healthy
    }
}

/// Whether no worker is live, not even one that only looks.
fn is_empty(view: &FleetView) -> bool {
    view.workers.is_empty() && view.shadows.is_empty()
}

/// What makes the answer doubtful, in sentences.
fn doubts(text: &mut String, view: &FleetView) {
    let mut doubt = |reason: &str| {
        let _ = writeln!(text, "{}", styled(WARN, reason));
    };
    if let Some(error) = &view.redis_error {
        doubt(&format!("Redis can't be asked: {error}."));
    } else if let Some(error) = &view.writes_refused {
        doubt(&format!("Redis refuses writes: {}.", error.message));
    } else if is_empty(view) {
        doubt("No live worker has reported.");
    } else if view.workers.is_empty() {
        doubt("Only shadows are live: no worker of this fleet writes balances.");
    }
    if view.listed_by_workers.is_some() {
        doubt("The tenant service doesn't answer: tenants are shown as live workers list them.");
    }
    if !view.listed {
        doubt("The list of tenants can't be had, so some may be missing here.");
    }
}

/// Whether a tenant belongs among those to be looked at.
pub(super) fn is_of_note(row: &TenantRow, view: &FleetView) -> bool {
    view.verdict_of(row) != Verdict::Healthy || row.paused.is_some()
}

/// A line per tenant.
pub(super) fn table(rows: &[&TenantRow], view: &FleetView, screen: Screen) -> String {
    let mut columns = vec![
        Column::id("TENANT"),
        Column::long("STATE").keeping(14),
        Column::number("SINCE"),
        Column::number("DUE"),
        Column::number("OLDEST"),
        Column::number("LAG P99").spare(2),
        Column::number("ROWS/S").spare(1),
        Column::number("QUAR").spare(3),
    ];
    // How old the numbers are, where they can't be read now.
    let dated = rows.iter().any(|row| row.numbers_age_seconds.is_some());
    if dated {
        columns.push(Column::number("AS OF"));
    }
    let mut table = Table::new(&columns);
    for row in rows {
        let state = match &row.reason {
            Some(reason) => format!("{}: {reason}", row.state),
            None => row.state.to_string(),
        };
        let style = if row.paused.is_some() { WARN } else { terminal::state_style(&row.state) };
        let late = if row.is_behind(view.objective_seconds) { BAD } else { PLAIN };
        let mut cells = vec![
            (row.id.clone(), PLAIN),
            (state, style),
            (row.since.as_deref().map_or_else(|| "-".to_owned(), |since| ago(since, view.at)), PLAIN),
            (if_sampled(row, count(row.due)), late),
            (if_sampled(row, span(row.oldest_due_age_seconds)), late),
            (optional(row.lag_p99_seconds, span), PLAIN),
            (rate(row.rows_per_second), PLAIN),
            (if_sampled(row, count(row.quarantined)), if row.unacknowledged() > 0 { WARN } else { PLAIN }),
        ];
        if dated {
            cells.push((optional(row.numbers_age_seconds, |age| format!("{} ago", span(age))), WARN));
        }
        table.row(cells);
    }
    table.render(screen)
}

/// What was read from the tenant's schedule, if it was.
fn if_sampled(row: &TenantRow, text: String) -> String {
    if row.has_numbers() { text } else { "?".to_owned() }
}

/// Who acknowledged its entries, and whether that still holds.
pub(super) fn acknowledgement(one: &AcknowledgedView) -> String {
    let note = one.note.as_deref().map(|note| format!(": {note}")).unwrap_or_default();
    let since = if one.holds { "" } else { "; more came since, which is not acknowledged" };
    format!(
        "{} entries by {} {} ago, at {}{note}{since}",
        count(one.entries),
        one.by,
        span(one.age_seconds),
        one.at
    )
}

/// The workers that serve it, those that only stand by last.
fn owners(row: &TenantRow) -> String {
    if row.owners.is_empty() {
        return match &row.shadow {
            Some(shadow) => format!("no worker; {} only looks", shadow.by.join(", ")),
            None => "no worker".to_owned(),
        };
    }
    let (second, first): (Vec<&String>, Vec<&String>) =
        row.owners.iter().partition(|name| row.standby.contains(name));
    let second = second.into_iter().map(|name| format!("{name} (standby)"));
    first.into_iter().cloned().chain(second).collect::<Vec<_>>().join(", ")
}

fn render(detail: &TenantDetail, view: &FleetView, screen: Screen) -> String {
    let row = &detail.row;
    let mut text = String::new();
    let mut entry = |name: &str, value: &str| text.push_str(&terminal::entry(name, value, screen));
    entry("tenant", &printable(&row.id));
    let since = row.since.as_deref().map(|since| format!(", since {since} ({})", ago(since, view.at)));
    let partial = if row.partial { " (some balances; the others are written)" } else { "" };
    let reason = row.reason.as_ref().map(|reason| format!(": {reason}{partial}")).unwrap_or_default();
    let state = styled(terminal::state_style(&row.state), format_args!("{}{reason}", row.state));
    entry("state", &format!("{state}{}", printable(&since.unwrap_or_default())));
    let mut say = |name: &str, value: String| entry(name, &printable(&value));
    if let Some(what) = &row.detail {
        say("detail", what.clone());
    }
    if let Some(reason) = row.reason.as_ref().and_then(ReportedReason::known) {
        let advice = reason.advice();
        say("means", advice.means.to_owned());
        say("to do", advice.help.to_owned());
    }
    if let Some(since) = &row.values_gone_since {
        let values = count(row.values_gone);
        say("values gone", format!("{values} of scheduled balances, since {since}; not decided yet"));
    }
    if let Some(open) = &row.vanished {
        let rows_ahead = match open.rows_ahead {
            0 => String::new(),
            rows => format!(", {} rows newer than what Redis holds", count(rows)),
        };
        say(
            "lost by redis",
            format!(
                "{} since {}: {}; {} members missing, {} scheduled again, {} listed as lost{rows_ahead}; {}",
                open.reason,
                open.since,
                open.detail,
                count(open.extent),
                count(open.rescheduled),
                count(open.lost),
                open.phase
            ),
        );
    }
    if let Some(paused) = &row.paused {
        let note = paused.note.as_deref().map(|note| format!(": {note}")).unwrap_or_default();
        let age = span(paused.age_seconds);
        say("paused", format!("by {} at {}{note} ({age} ago)", paused.by, paused.at));
    }
    if let Some(one) = &row.acknowledged {
        say("acknowledged", acknowledgement(one));
    }
    say("next", detail.next.clone());
    say(
        "backlog",
        match row.has_numbers() {
            true => format!(
                "{}{} due, the oldest for {}; {} held, {} scheduled in all; shortest life {}",
                row.numbers_age_seconds.map(|age| format!("as of {} ago: ", span(age))).unwrap_or_default(),
                count(row.due),
                span(row.oldest_due_age_seconds),
                count(row.leased),
                count(row.scheduled),
                optional(row.shortest_life_seconds, span)
            ),
            false => "unknown: the schedule has not been read yet, or can't be".to_owned(),
        },
    );
    say(
        "written",
        format!(
            "{} rows/s, {} since the workers' start; lag p50 {}, p99 {}",
            rate(row.rows_per_second),
            count(row.updated_total),
            optional(row.lag_p50_seconds, span),
            optional(row.lag_p99_seconds, span)
        ),
    );
    say(
        "aside",
        format!(
            "{} in quarantine, {} expired, {} failed flushes",
            if_sampled(row, count(row.quarantined)),
            count(row.expired_total),
            count(row.batch_failures_total)
        ),
    );
    let found = row.shadow.iter().flat_map(|found| shadow::of_tenant(found, view.at));
    let beside = row.neighbour.iter().flat_map(|found| neighbour::of_tenant(found, view.at));
    for (name, value) in queues::of_tenant(row, view.at).into_iter().chain(found).chain(beside) {
        say(name, value);
    }
    if let Some(database) = &detail.settings.database {
        let schema =
            database.schema.as_deref().map(|schema| format!(", schema {schema}")).unwrap_or_default();
        let way = database.connection.as_ref().map(|mode| format!(", {mode}")).unwrap_or_default();
        say(
            "database",
            format!(
                "{}:{} {} as {}{schema}, sslmode {}{way}",
                database.host, database.port, database.database, database.username, database.sslmode
            ),
        );
    }
    if let Some(pool) = &row.pool {
        say("pool", format!("{} open, {} in use, {} at most", pool.open, pool.in_use, pool.limit));
    }
    say("served by", owners(row));
    if !detail.errors.is_empty() {
        let mut table = Table::new(&[
            Column::text("ERROR AT"),
            Column::long("REASON").keeping(20),
            Column::long("WORKER").spare(1),
            Column::long("DETAIL"),
        ]);
        for error in detail.errors.iter().take(SHOWN) {
            table.row([
                (error.at.clone(), FAINT),
                (error.reason.to_string(), BAD),
                (error.worker.clone(), PLAIN),
                (error.detail.clone(), PLAIN),
            ]);
        }
        let _ = write!(text, "\n{}", table.render(screen));
    }
    if !detail.flushes.is_empty() {
        let mut table = Table::new(&[
            Column::text("FLUSH AT"),
            Column::text("BY"),
            Column::number("CLAIMED"),
            Column::number("WRITTEN"),
            Column::number("STALE").spare(2),
            Column::number("DELETED").spare(1),
            Column::number("QUAR"),
            Column::number("GIVEN BACK").spare(3),
            Column::number("TOOK"),
        ]);
        for flush in detail.flushes.iter().take(SHOWN) {
            table.row([
                (flush.at.clone(), FAINT),
                (flush.trigger.to_string(), PLAIN),
                (count(flush.claimed.into()), PLAIN),
                (count(flush.outcomes[Outcome::Updated].into()), PLAIN),
                (count(flush.outcomes[Outcome::Stale].into()), PLAIN),
                (count(flush.outcomes[Outcome::Deleted].into()), PLAIN),
                (count(flush.outcomes[Outcome::Quarantined].into()), PLAIN),
                (count(flush.outcomes[Outcome::Released].into()), PLAIN),
                (format!("{}ms", flush.took_ms), PLAIN),
            ]);
        }
        let _ = write!(text, "\n{}", table.render(screen));
    }
    text
}
