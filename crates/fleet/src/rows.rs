//! Tenants and workers as operators see them: what all workers say, put together into one row each.
//!
//! These types are the answers of the admin API; their field names are a contract.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    backends::DatabaseShown,
    pipeline::CollectorOptions,
    record::{Counts, DetailRecord, Pool, ServerRecord, TaskRecord, TenantRecord, WorkerRecord},
    status::{NOTES, POINTS, Rates, TenantState, Trigger, lag_quantile},
    tasks::{TaskName, TaskState},
};

/// The state of a tenant that no live worker serves.
pub const UNSERVED: &str = "unserved";

/// A time as text (RFC 3339, UTC, milliseconds).
#[must_use]
pub fn at(seconds: f64) -> String {
    // Far beyond any clock that is set, and still four digits of year.
    let seconds = if seconds.is_finite() { seconds.clamp(0.0, 253_402_300_799.0) } else { 0.0 };
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_micros((seconds * 1e6).round() as u64);
    humantime::format_rfc3339_millis(time).to_string()
}

/// Who halted a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PausedBy {
    /// Who.
    pub by: String,
    /// When.
    pub at: String,
    /// Why, if that was said.
    pub note: Option<String>,
}

/// A tenant at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TenantRow {
    /// Its id; `single` for a ledger without tenants.
    pub id: String,
    /// What its collector does, or `unserved`. With several owners the one that matters most.
    pub state: &'static str,
    /// Why, when degraded: a short, stable name.
    pub reason: Option<String>,
    /// Why, in words.
    pub detail: Option<String>,
    /// Since when it is in this state; `None` when nobody serves it.
    pub since: Option<String>,
    /// Who halted it.
    pub paused: Option<PausedBy>,
    /// Members in the schedule.
    pub scheduled: u64,
    /// Those whose time has come.
    pub due: u64,
    /// Those that a worker holds, or that are put off.
    pub leased: u64,
    /// How long the oldest due one has been due.
    pub oldest_due_age_seconds: f64,
    /// Smallest remaining life of a scheduled value in Redis.
    pub shortest_life_seconds: Option<f64>,
    /// Median lag over the last seconds.
    pub lag_p50_seconds: Option<f64>,
    /// Lag that 99 of 100 balances stayed within.
    pub lag_p99_seconds: Option<f64>,
    /// Rows written per second, over the last seconds.
    pub rows_per_second: f64,
    /// Rows written since the workers' start.
    pub updated_total: u64,
    /// Entries in quarantine.
    pub quarantined: u64,
    /// Lost balances among them.
    pub losses: u64,
    /// Values that had expired before anybody looked.
    pub expired_total: u64,
    /// Flushes that failed.
    pub batch_failures_total: u64,
    /// Its connections, over all workers.
    pub pool: Option<Pool>,
    /// The workers that serve it.
    pub owners: Vec<String>,
    /// Those among them that stand by: they claim only when nobody else does.
    pub standby: Vec<String>,
    /// Starts of its collectors after the first.
    pub restarts_total: u64,
}

impl TenantRow {
    /// Whether its balances are late: the oldest due one has waited longer than the objective, and not because an
    /// operator halted it.
    #[must_use]
    pub fn is_behind(&self, objective_seconds: f64) -> bool {
        self.paused.is_none()
            && self.state != TenantState::Paused.name()
            && self.oldest_due_age_seconds > objective_seconds
    }

    /// A tenant that no live worker serves.
    #[must_use]
    pub fn unserved(id: &str, paused: Option<PausedBy>) -> Self {
        Self {
            id: id.to_owned(),
            state: UNSERVED,
            reason: None,
            detail: Some("no live worker serves this tenant".to_owned()),
            since: None,
            paused,
            scheduled: 0,
            due: 0,
            leased: 0,
            oldest_due_age_seconds: 0.0,
            shortest_life_seconds: None,
            lag_p50_seconds: None,
            lag_p99_seconds: None,
            rows_per_second: 0.0,
            updated_total: 0,
            quarantined: 0,
            losses: 0,
            expired_total: 0,
            batch_failures_total: 0,
            pool: None,
            owners: Vec::new(),
            standby: Vec::new(),
            restarts_total: 0,
        }
    }

    /// What its owners say, put together. `None` without any.
    #[must_use]
    pub fn merged(
        id: &str,
        owners: &[(&str, &TenantRecord)],
        paused: Option<PausedBy>,
    ) -> Option<(Self, Merged)> {
        // The state that matters most, and where several are in it, the one that is in it longest.
        let (_, main) = owners.iter().min_by(|(_, a), (_, b)| {
            let by_state = a.state.display_priority().cmp(&b.state.display_priority());
            by_state.then(a.since.total_cmp(&b.since))
        })?;
        let mut merged = Merged::default();
        let mut pool: Option<Pool> = None;
        for (_, record) in owners {
            merged.rates.add(&record.rates);
            merged.counts.add(&record.counts);
            if let Some(more) = record.pool {
                let sum = pool.get_or_insert_default();
                sum.open += more.open;
                sum.in_use += more.in_use;
                sum.idle += more.idle;
                sum.limit += more.limit;
            }
        }
        // All owners look at the same schedule, each at its own moments.
        let most = |of: fn(&TenantRecord) -> u64| owners.iter().map(|(_, r)| of(r)).max().unwrap_or_default();
        let row = Self {
            id: id.to_owned(),
            state: main.state.name(),
            reason: main.reason.clone(),
            detail: main.detail.clone(),
            since: Some(at(main.since)),
            paused,
            scheduled: most(|r| r.scheduled.max(r.due + r.leased)),
            due: most(|r| r.due),
            leased: most(|r| r.leased),
            oldest_due_age_seconds: most(|r| r.oldest_due_age_ms) as f64 / 1e3,
            shortest_life_seconds: owners
                .iter()
                .filter_map(|(_, r)| r.shortest_life_ms)
                .min()
                .map(|life| life as f64 / 1e3),
            lag_p50_seconds: lag_quantile(&merged.rates.lags, 0.5),
            lag_p99_seconds: lag_quantile(&merged.rates.lags, 0.99),
            rows_per_second: merged.rates.rows_per_second,
            updated_total: merged.counts.updated,
            quarantined: most(|r| r.quarantine_entries),
            losses: most(|r| r.losses),
            expired_total: merged.counts.expired,
            batch_failures_total: merged.counts.failures,
            pool,
            owners: owners.iter().map(|(name, _)| (*name).to_owned()).collect(),
            standby: owners
                .iter()
                .filter(|(_, record)| record.state == TenantState::Standby)
                .map(|(name, _)| (*name).to_owned())
                .collect(),
            restarts_total: merged.counts.restarts,
        };
        Some((row, merged))
    }
}

/// What a row is made of and doesn't show.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Merged {
    /// Rates over all owners.
    pub rates: Rates,
    /// Counters over all owners.
    pub counts: Counts,
}

// -- one tenant in detail ----------------------------------------------------------------------------------------------

/// Everything about one tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TenantDetail {
    /// At a glance.
    #[serde(flatten)]
    pub row: TenantRow,
    /// The last flushes of all owners, newest first.
    pub flushes: Vec<FlushShown>,
    /// The last failures of all owners, newest first.
    pub errors: Vec<ErrorShown>,
    /// Oldest first, a point every 5 s.
    pub history: Vec<PointShown>,
    /// What became of its balances.
    pub outcomes: Outcomes,
    /// Flushes by what made them.
    pub batches: BTreeMap<&'static str, u64>,
    /// Settings in force.
    pub settings: SettingsShown,
    /// What happens next, in one sentence.
    pub next: String,
}

/// One flush.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlushShown {
    /// When it ended.
    pub at: String,
    /// What made it.
    pub trigger: Trigger,
    /// Members in it.
    pub claimed: u32,
    /// Rows written.
    pub updated: u32,
    /// Members whose row was as new or newer.
    pub stale: u32,
    /// Members whose row is deleted.
    pub deleted: u32,
    /// Members put in quarantine.
    pub quarantined: u32,
    /// Members given back.
    pub released: u32,
    /// How long it took.
    pub took_ms: u32,
    /// Whose flush.
    pub worker: String,
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorShown {
    /// When.
    pub at: String,
    /// Short, stable name.
    pub reason: String,
    /// In words.
    pub detail: String,
    /// Where.
    pub worker: String,
}

/// One point of a tenant's history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PointShown {
    /// When.
    pub at: String,
    /// Rows written per second.
    pub rows_per_second: f64,
    /// Lag that 99 of 100 balances stayed within.
    pub p99_seconds: Option<f64>,
    /// Members due.
    pub due: u64,
}

/// What became of a tenant's balances since the workers' start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outcomes {
    /// Rows written.
    pub updated: u64,
    /// The row was as new or newer.
    pub stale: u64,
    /// The row is deleted.
    pub deleted: u64,
    /// Put in quarantine.
    pub quarantined: u64,
    /// The value had expired.
    pub expired: u64,
    /// Given back unwritten.
    pub released: u64,
    /// Stayed scheduled, because a newer mutation came.
    pub kept: u64,
}

impl From<&Counts> for Outcomes {
    fn from(counts: &Counts) -> Self {
        Self {
            updated: counts.updated,
            stale: counts.stale,
            deleted: counts.deleted,
            quarantined: counts.quarantined,
            expired: counts.expired,
            released: counts.released,
            kept: counts.kept,
        }
    }
}

/// Settings that a tenant is worked with. No secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingsShown {
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
    /// Longest delay after a failure that somebody has to mend.
    pub backoff_long_ms: u64,
    /// Lives of values that must wait are raised to this.
    pub protect_floor_ms: u64,
    /// Where its balances are written; `None` when nobody has needed it yet.
    pub database: Option<DatabaseShown>,
}

impl SettingsShown {
    fn new(options: &CollectorOptions, database: Option<DatabaseShown>) -> Self {
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
                let step = (point.at / crate::status::STEP_SECONDS as f64) as u64;
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
            .map(|(n, trigger)| (trigger.name(), counts.batches.get(n).copied().unwrap_or_default()))
            .collect();
        Self {
            next: next_of(&row, options),
            row,
            flushes: flushes
                .into_iter()
                .take(NOTES)
                .map(|(flush, worker)| FlushShown {
                    at: at(flush.at),
                    trigger: flush.trigger,
                    claimed: flush.claimed,
                    updated: flush.updated,
                    stale: flush.stale,
                    deleted: flush.deleted,
                    quarantined: flush.quarantined,
                    released: flush.released,
                    took_ms: flush.took_ms,
                    worker,
                })
                .collect(),
            errors: errors
                .into_iter()
                .take(NOTES)
                .map(|(error, worker)| ErrorShown {
                    at: at(error.at),
                    reason: error.reason,
                    detail: error.detail,
                    worker,
                })
                .collect(),
            history: history
                .into_values()
                .skip(surplus)
                .map(|(time, rows_per_second, p99_seconds, due)| PointShown {
                    at: at(time),
                    rows_per_second,
                    p99_seconds,
                    due,
                })
                .collect(),
            outcomes: Outcomes::from(counts),
            batches,
            settings: SettingsShown::new(options, database),
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
    match row.state {
        UNSERVED => "Nothing happens until a worker that serves it is up.".to_owned(),
        "degraded" if row.reason.as_deref() == Some(crate::pipeline::UNKNOWN_FORMAT) => format!(
            "Its other balances are written; those in a format of a later release are tried again every {}, and written by a worker that knows it.",
            humantime::format_duration(options.put_off)
        ),
        "degraded" => {
            let longest = humantime::format_duration(match row.reason.as_deref() {
                Some(reason) if crate::pipeline::waits_long(reason) => options.backoff_long,
                _ => options.backoff_max,
            });
            let due = if row.due > 0 {
                format!("{} due balances wait", row.due)
            } else {
                "nothing is due".to_owned()
            };
            format!(
                "It is tried again by itself, at the latest every {longest} ({}); {due}, and their values are kept alive.",
                row.reason.as_deref().unwrap_or("unknown")
            )
        }
        "stopping" => {
            "Its collector writes what it holds and ends; other workers go on with the rest.".to_owned()
        }
        "starting" => "Its collector asks Redis for what is due.".to_owned(),
        "standby" => {
            "Who stands by for it becomes its first owner, or joins in within seconds when something is due."
                .to_owned()
        }
        _ if row.due > 0 => format!("The {} due balances are claimed and written now.", row.due),
        _ if row.leased > 0 => {
            format!(
                "{} balances are held by a worker or put off, and come due again by themselves.",
                row.leased
            )
        }
        _ => "Nothing is due; the next mutation is written as soon as it is scheduled.".to_owned(),
    }
}

// -- workers -----------------------------------------------------------------------------------------------------------

/// A worker at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerRow {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// When it was started.
    pub started_at: String,
    /// When it was last heard of.
    pub seen_at: String,
    /// How long it has been running.
    pub uptime_seconds: f64,
    /// It is on its way out.
    pub draining: bool,
    /// Tenants it looks after.
    pub tenants_owned: u64,
    /// Those by state.
    pub tenants_by_state: BTreeMap<&'static str, u64>,
    /// Rows written per second, over the last seconds.
    pub rows_per_second: f64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// `ok`, or what is wrong with its Redis.
    pub redis: String,
    /// The tenant service, as it knows it.
    pub tenant_service: ServiceShown,
    /// Its reconcile passes.
    pub reconcile: ReconcileShown,
    /// Collectors that it started again.
    pub collector_restarts_total: u64,
    /// Its background tasks.
    pub background_tasks: Vec<TaskShown>,
    /// Its connections per Postgres server.
    pub postgres: Vec<ServerRecord>,
    /// Whether it is the one that answers.
    #[serde(rename = "self")]
    pub is_self: bool,
}

/// A background task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskShown {
    /// Its name.
    pub name: String,
    /// The thread it belongs to, where each has one.
    pub thread: Option<usize>,
    /// How it does.
    pub state: TaskState,
    /// Times it was started again.
    pub restarts_total: u64,
    /// When it last made progress.
    pub last_progress_at: String,
    /// How the last run ended that ended early.
    pub last_end: Option<String>,
}

impl TaskShown {
    /// Whether it makes no progress, and tenants are not served as they should be without it.
    #[must_use]
    pub fn is_missed(&self) -> bool {
        self.state == TaskState::Stalled && TaskName::parse(&self.name).is_some_and(TaskName::is_essential)
    }
}

impl From<&TaskRecord> for TaskShown {
    fn from(task: &TaskRecord) -> Self {
        Self {
            name: task.name.clone(),
            thread: task.thread,
            state: task.state,
            restarts_total: task.restarts,
            last_progress_at: at(task.progress_at),
            last_end: task.last_end.clone(),
        }
    }
}

/// The tenant service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceShown {
    /// `ok`, `failing`, `breaker_open` or `static`.
    pub state: String,
    /// When it answered last.
    pub last_success_at: Option<String>,
    /// Requests that failed.
    pub failures_total: u64,
}

/// Reconcile passes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReconcileShown {
    /// How many.
    pub passes_total: u64,
    /// When the last one ended.
    pub last_at: Option<String>,
    /// How long it took.
    pub last_duration_seconds: f64,
}

impl WorkerRow {
    /// A worker's row out of its record.
    #[must_use]
    pub fn new(record: &WorkerRecord, is_self: bool) -> Self {
        Self {
            name: record.name.clone(),
            version: record.version.clone(),
            started_at: at(record.started_at),
            seen_at: at(record.seen_at),
            uptime_seconds: ((record.seen_at - record.started_at) * 1e3).round().max(0.0) / 1e3,
            draining: record.draining,
            tenants_owned: record.owned,
            tenants_by_state: record.by_state.iter().map(|(state, n)| (state.name(), *n)).collect(),
            rows_per_second: record.rates.rows_per_second,
            rss_bytes: record.rss_bytes,
            redis: record.redis.clone(),
            tenant_service: ServiceShown {
                state: record.tenant_service.state.clone(),
                last_success_at: record.tenant_service.last_success_at.map(at),
                failures_total: record.tenant_service.failures,
            },
            reconcile: ReconcileShown {
                passes_total: record.reconcile.passes,
                last_at: record.reconcile.last_at.map(at),
                last_duration_seconds: record.reconcile.last_duration_seconds,
            },
            collector_restarts_total: record.restarts,
            background_tasks: record.tasks.iter().map(TaskShown::from).collect(),
            postgres: record.postgres.clone(),
            is_self,
        }
    }
}
