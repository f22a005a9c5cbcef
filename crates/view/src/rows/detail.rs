//! Everything about one tenant.

use balance_sync_domain::Reported;
use balance_sync_fleet::{
    backends::DatabaseView,
    pipeline::CollectorOptions,
    status::{
        NOTED, NOTES, Outcome, Outcomes, POINTS, Pace, Reason, ReportedReason, STEP_SECONDS, TenantState,
        Trigger, pace_of,
    },
};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

use super::{StateView, TenantRow, at};
use crate::record::{Counts, DetailRecord};

/// Everything about one tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TenantDetail {
    /// At a glance.
    #[serde(flatten)]
    pub row: TenantRow,
    /// The last flushes of all owners, newest first.
    pub flushes: Vec<FlushView>,
    /// The last failures of all owners, newest first.
    pub errors: Vec<ErrorView>,
    /// Oldest first, a point every 5 s.
    pub history: Vec<PointView>,
    /// What became of its balances since the workers' start.
    #[serde(serialize_with = "listed")]
    pub outcomes: Outcomes,
    /// Flushes by what made them.
    pub batches: BTreeMap<&'static str, u64>,
    /// Settings in force.
    pub settings: SettingsView,
    /// What happens next, in one sentence.
    pub next: String,
}

/// One flush.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlushView {
    /// When it ended.
    pub at: String,
    /// What made it.
    pub trigger: Reported<Trigger>,
    /// Members in it.
    pub claimed: u32,
    /// Its members by what became of them.
    #[serde(flatten, serialize_with = "noted")]
    pub outcomes: Outcomes<u32>,
    /// How long it took.
    pub took_ms: u32,
    /// Whose flush.
    pub worker: String,
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorView {
    /// When.
    pub at: String,
    /// Why.
    pub reason: ReportedReason,
    /// In words.
    pub detail: String,
    /// Where.
    pub worker: String,
}

/// One point of a tenant's history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PointView {
    /// When.
    pub at: String,
    /// Rows written per second.
    pub rows_per_second: f64,
    /// Lag that 99 of 100 balances stayed within.
    pub p99_seconds: Option<f64>,
    /// Members due.
    pub due: u64,
}

/// Outcomes that are listed for a tenant. Those put off are not: the tenant's state names the reason.
const LISTED: [Outcome; 8] = [
    Outcome::Updated,
    Outcome::Stale,
    Outcome::Deleted,
    Outcome::Forked,
    Outcome::Quarantined,
    Outcome::Expired,
    Outcome::Released,
    Outcome::Kept,
];

fn listed<S: Serializer>(outcomes: &Outcomes, serializer: S) -> Result<S::Ok, S::Error> {
    outcomes.serialize_only(&LISTED, serializer)
}

fn noted<S: Serializer>(outcomes: &Outcomes<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    outcomes.serialize_only(&NOTED, serializer)
}

/// Settings that a tenant is worked with. No secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingsView {
    /// Members in one flush at most.
    pub batch_size: usize,
    /// A flush is made this long after the first member came.
    pub flush_timeout_ms: u64,
    /// Wait of a busy collector that found nothing more.
    pub poll_interval_ms: u64,
    /// Longest wait of an idle collector.
    pub idle_backoff_max_ms: u64,
    /// Flushes in flight at most.
    pub pipeline_depth: usize,
    /// Longest time of one write.
    pub flush_deadline_ms: u64,
    /// First delay after a failure.
    pub backoff_min_ms: u64,
    /// Longest delay after a failure that may be over at any moment.
    pub backoff_max_ms: u64,
    /// Longest delay after a failure that an operator has to mend.
    pub backoff_long_ms: u64,
    /// Lives of values that must wait are raised to this.
    pub protect_floor_ms: u64,
    /// Where its balances are written; `None` when it hasn't been needed yet.
    pub database: Option<DatabaseView>,
}

impl SettingsView {
    fn new(options: &CollectorOptions, database: Option<DatabaseView>) -> Self {
        let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Self {
            batch_size: options.batch_size,
            flush_timeout_ms: ms(options.flush_timeout),
            poll_interval_ms: ms(options.poll_interval),
            idle_backoff_max_ms: ms(options.idle_backoff_max),
            pipeline_depth: options.pipeline_depth,
            flush_deadline_ms: ms(options.flush_deadline),
            backoff_min_ms: ms(options.backoff_min),
            backoff_max_ms: ms(options.backoff_max),
            backoff_long_ms: ms(options.backoff_long),
            protect_floor_ms: ms(options.protect_floor),
            database,
        }
    }
}

impl TenantDetail {
    /// Out of the row and what each owner says in detail.
    #[must_use]
    pub fn new(
        row: TenantRow,
        counts: &Counts,
        details: Vec<(String, DetailRecord)>,
        options: &CollectorOptions,
    ) -> Self {
        let mut flushes = Vec::new();
        let mut errors = Vec::new();
        // Points of several owners that lie in the same step are one.
        let mut history: BTreeMap<u64, (f64, f64, Option<f64>, u64)> = BTreeMap::new();
        let mut database = None;
        for (worker, detail) in details {
            flushes.extend(detail.flushes.into_iter().map(|flush| (flush, worker.clone())));
            errors.extend(detail.errors.into_iter().map(|error| (error, worker.clone())));
            for point in detail.history {
                let step = (point.at / STEP_SECONDS as f64) as u64;
                let sum = history.entry(step).or_insert((point.at, 0.0, None, 0));
                sum.1 += f64::from(point.rows_per_second);
                let lag = point.p99_seconds.map(round);
                sum.2 = match (sum.2, lag) {
                    (Some(a), Some(b)) => Some(a.max(b)),
                    (a, b) => a.or(b),
                };
                sum.3 = sum.3.max(u64::from(point.due));
            }
            database = database.or(detail.database);
        }
        flushes.sort_by(|(a, _), (b, _)| b.at.total_cmp(&a.at));
        errors.sort_by(|(a, _), (b, _)| b.at.total_cmp(&a.at));
        let surplus = history.len().saturating_sub(POINTS);
        let batches = Trigger::ALL
            .iter()
            .enumerate()
            .map(|(n, trigger)| (trigger.as_str(), counts.batches.get(n).copied().unwrap_or_default()))
            .collect();
        Self {
            next: next_of(&row, options),
            row,
            flushes: flushes
                .into_iter()
                .take(NOTES)
                .map(|(flush, worker)| FlushView {
                    at: at(flush.at),
                    trigger: flush.trigger,
                    claimed: flush.claimed,
                    outcomes: flush.outcomes,
                    took_ms: flush.took_ms,
                    worker,
                })
                .collect(),
            errors: errors
                .into_iter()
                .take(NOTES)
                .map(|(error, worker)| ErrorView {
                    at: at(error.at),
                    reason: error.reason,
                    detail: error.detail,
                    worker,
                })
                .collect(),
            history: history
                .into_values()
                .skip(surplus)
                .map(|(time, rows_per_second, p99_seconds, due)| PointView {
                    at: at(time),
                    rows_per_second,
                    p99_seconds,
                    due,
                })
                .collect(),
            outcomes: counts.outcomes,
            batches,
            settings: SettingsView::new(options, database),
        }
    }
}

/// As near as a single-precision number comes to the decimal it was made of.
fn round(lag: f32) -> f64 {
    (f64::from(lag) * 1e6).round() / 1e6
}

/// What happens next with a tenant, in one sentence.
#[must_use]
pub fn next_of(row: &TenantRow, options: &CollectorOptions) -> String {
    if let Some(paused) = &row.paused {
        return format!(
            "Nothing is written until it is resumed: {} paused it at {}; waiting values are kept alive meanwhile.",
            paused.by, paused.at
        );
    }
    let state = match &row.state {
        StateView::Is(state) => *state,
        StateView::Other(name) => {
            return format!(
                "A worker of another release serves it, and this one does not know what {name:?} means: ask a worker of that release."
            );
        }
        StateView::NotInRollout => {
            return "No worker of this fleet touches it until it is in the rollout: the ledger's own worker writes its balances."
                .to_owned();
        }
        StateView::Unserved => return "Nothing happens until a worker that serves it is up.".to_owned(),
    };
    if let Some(next) = state.next() {
        return next.to_owned();
    }
    match row.reason.as_ref().and_then(ReportedReason::known) {
        _ if state != TenantState::Degraded => {}
        Some(Reason::ValueUnknownFormat) => {
            return format!(
                "Its other balances are written; those in a format of a later release are tried again every {}, and written by a worker that knows it.",
                humantime::format_duration(options.put_off)
            );
        }
        Some(Reason::PostgresRowLocked) => {
            return "Its other balances are written; those whose rows are locked are tried again every two seconds."
                .to_owned();
        }
        _ => return next_try_of(row, options),
    }
    if let Some(wait) = row.connection_wait_seconds {
        return format!(
            "It has waited {wait:.1} s for one of its worker's connections to Postgres, in a queue that moves: all that is due is written with its turn."
        );
    }
    if row.due > 0 {
        format!("The {} due balances are claimed and written now.", row.due)
    } else if row.leased > 0 {
        format!("{} balances are held by a worker or put off, and come due again by themselves.", row.leased)
    } else {
        "Nothing is due; the next mutation is written as soon as it is scheduled.".to_owned()
    }
}

/// When a tenant that can't be written is tried again.
fn next_try_of(row: &TenantRow, options: &CollectorOptions) -> String {
    let reason = row.reason.as_ref();
    let longest = humantime::format_duration(match reason.map(pace_of) {
        Some(Pace::Long) => options.backoff_long,
        Some(Pace::Short) | None => options.backoff_max,
    });
    let due =
        if row.due > 0 { format!("{} due balances wait", row.due) } else { "nothing is due".to_owned() };
    format!(
        "It is tried again by itself, at the latest every {longest} ({}); {due}, and their values are kept alive.",
        reason.map_or("unknown", ReportedReason::as_str)
    )
}
