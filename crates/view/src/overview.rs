//! The whole fleet in one look: is any tenant behind, which, and why.

use std::collections::BTreeMap;

use balance_sync_domain::Reported;
use balance_sync_engine::vanish::REASONS;
use balance_sync_fleet::{
    status::{Condition, Reason, ReportedReason, ReportedState, TenantState, lag_quantile},
    tasks::TaskState,
};
use balance_sync_schedule::ScheduleError;
use serde::Serialize;

use crate::{
    reader::FleetView,
    record::FleetPoint,
    rows::{StateView, TaskView, TenantRow, VanishedView, WorkerRow, at},
};

/// Tenants shown as the worst.
const WORST: usize = 8;
/// Tenants named in one sentence.
const NAMED: usize = 3;
/// A value with less life left than this may be lost before it is written.
const SHORT_LIFE_SECONDS: f64 = 300.0;

/// How the fleet is, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every tenant is served and up to date, by the workers that there should be.
    Healthy,
    /// Every balance that can be written is on time, and an operator has to look at something.
    Attention,
    /// Balances of some tenant are late.
    Behind,
    /// Some tenant can't be written, or nobody serves it.
    Degraded,
    /// It can't be told.
    Unknown,
}

impl Verdict {
    /// The name in answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Attention => "attention",
            Self::Behind => "behind",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
        }
    }
}

/// The fleet at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// When this was put together.
    pub generated_at: String,
    /// `ok`, `unavailable` or `refuses_writes`.
    pub redis: &'static str,
    /// What is wrong with Redis.
    pub detail: Option<String>,
    /// In one word.
    pub verdict: Verdict,
    /// Why, in sentences, the worst first.
    pub reasons: Vec<String>,
    /// Workers.
    pub workers: WorkerCount,
    /// Tenants.
    pub tenants: TenantCount,
    /// What waits.
    pub backlog: BacklogView,
    /// Entries in quarantine.
    pub quarantined: u64,
    /// Lost balances among them.
    pub losses: u64,
    /// Values that had expired before anybody looked, since the workers' start.
    pub expired_total: u64,
    /// Smallest remaining life of a scheduled value in Redis.
    pub shortest_life_seconds: Option<f64>,
    /// The last seconds.
    pub rates: RatesView,
    /// From a mutation to its row, over the last seconds.
    pub lag: LagView,
    /// Oldest first, a point every 5 s.
    pub history: Vec<FleetPointView>,
    /// Those behind or degraded first.
    pub worst: Vec<TenantRow>,
    /// Collectors that were started again.
    pub restarts_total: u64,
    /// What it is measured by.
    pub settings: OverviewSettings,
}

/// Workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WorkerCount {
    /// Heard of within the last seconds.
    pub live: usize,
    /// Shown as they were before Redis began to refuse writes.
    pub last_known: usize,
}

/// Tenants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantCount {
    /// All.
    pub total: usize,
    /// Those that no live worker serves.
    pub unserved: usize,
    /// The others by state.
    pub by_state: BTreeMap<ReportedState, usize>,
}

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BacklogView {
    /// Members in all schedules.
    pub scheduled: u64,
    /// Those whose time has come.
    pub due: u64,
    /// Those that a worker holds.
    pub leased: u64,
    /// How long the oldest due one has been due.
    pub oldest_due_age_seconds: f64,
    /// For how long the oldest balance has waited whose last mutation only Redis has, claimed or not: the scheduled ones would be
    /// missing from the rows if Redis lost its data now.
    pub exposure_age_seconds: f64,
    /// Tenants of which it is not known what waits: they are not in these numbers.
    pub unknown_tenants: usize,
}

/// The last seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RatesView {
    /// Rows written per second.
    pub rows_per_second: f64,
    /// Flushes that failed, per second.
    pub failures_per_second: f64,
}

/// From a mutation to its row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LagView {
    /// Median.
    pub p50_seconds: Option<f64>,
    /// What 99 of 100 stayed within.
    pub p99_seconds: Option<f64>,
}

/// One point of the fleet's history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetPointView {
    /// When.
    pub at: String,
    /// Rows written per second.
    pub rows_per_second: f64,
    /// Median lag.
    pub p50_seconds: Option<f64>,
    /// Lag that 99 of 100 stayed within.
    pub p99_seconds: Option<f64>,
    /// Members due.
    pub due: u64,
    /// The oldest of them.
    pub oldest_due_age_seconds: f64,
}

impl From<&FleetPoint> for FleetPointView {
    fn from(point: &FleetPoint) -> Self {
        Self {
            at: at(point.at),
            rows_per_second: point.rows_per_second,
            p50_seconds: point.p50_seconds,
            p99_seconds: point.p99_seconds,
            due: point.due,
            oldest_due_age_seconds: point.oldest_due_age_seconds,
        }
    }
}

/// What the fleet is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OverviewSettings {
    /// A tenant whose oldest due balance is older counts as behind.
    pub freshness_objective_seconds: f64,
}

impl FleetView {
    /// The fleet at a glance.
    #[must_use]
    pub fn overview(&self) -> Overview {
        let objective = self.objective_seconds;
        let mut by_state: BTreeMap<ReportedState, usize> =
            TenantState::ALL.into_iter().map(|state| (state.into(), 0)).collect();
        let mut backlog = BacklogView {
            scheduled: 0,
            due: 0,
            leased: 0,
            oldest_due_age_seconds: 0.0,
            exposure_age_seconds: 0.0,
            unknown_tenants: 0,
        };
        let (mut unserved, mut quarantined, mut losses, mut expired) = (0, 0, 0, 0);
        let mut shortest: Option<f64> = None;
        for row in &self.tenants {
            match &row.state {
                StateView::Is(state) => *by_state.entry((*state).into()).or_default() += 1,
                StateView::Other(name) => *by_state.entry(Reported::Other(name.clone())).or_default() += 1,
                StateView::Unserved => unserved += 1,
            }
            backlog.unknown_tenants += usize::from(!row.sampled);
            backlog.scheduled += row.scheduled;
            backlog.due += row.due;
            backlog.leased += row.leased;
            backlog.oldest_due_age_seconds = backlog.oldest_due_age_seconds.max(row.oldest_due_age_seconds);
            backlog.exposure_age_seconds = backlog.exposure_age_seconds.max(row.exposure_age_seconds);
            quarantined += row.quarantined;
            losses += row.losses;
            expired += row.expired_total;
            shortest = match (shortest, row.shortest_life_seconds) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        let (verdict, reasons) = self.judge();
        let mut worst: Vec<&TenantRow> = self.tenants.iter().collect();
        let order = |row: &TenantRow| (severity(row, objective), row.oldest_due_age_seconds, row.due as f64);
        // Only the worst are wanted, and there may be thousands.
        let by_severity = |a: &&TenantRow, b: &&TenantRow| {
            let ((ta, oa, da), (tb, ob, db)) = (order(a), order(b));
            tb.cmp(&ta).then(ob.total_cmp(&oa)).then(db.total_cmp(&da)).then(a.id.cmp(&b.id))
        };
        if worst.len() > WORST {
            worst.select_nth_unstable_by(WORST - 1, by_severity);
            worst.truncate(WORST);
        }
        worst.sort_by(by_severity);
        Overview {
            generated_at: at(self.at),
            redis: match (&self.redis_error, &self.writes_refused) {
                (Some(_), _) => "unavailable",
                (None, Some(_)) => "refuses_writes",
                (None, None) => "ok",
            },
            detail: self
                .redis_error
                .clone()
                .or_else(|| self.writes_refused.as_ref().map(|error| error.message.clone())),
            verdict,
            reasons,
            workers: WorkerCount {
                live: self.workers.iter().filter(|worker| worker.live).count(),
                last_known: self.workers.iter().filter(|worker| !worker.live).count(),
            },
            tenants: TenantCount { total: self.tenants.len(), unserved, by_state },
            backlog,
            quarantined,
            losses,
            expired_total: expired,
            shortest_life_seconds: shortest,
            rates: RatesView {
                rows_per_second: self.rates.rows_per_second,
                failures_per_second: self.rates.failures_per_second,
            },
            lag: LagView {
                p50_seconds: lag_quantile(&self.rates.lags, 0.5),
                p99_seconds: lag_quantile(&self.rates.lags, 0.99),
            },
            history: self.history.iter().map(FleetPointView::from).collect(),
            worst: worst.into_iter().cloned().collect(),
            restarts_total: self.workers.iter().map(|worker| worker.collector_restarts_total).sum(),
            settings: OverviewSettings { freshness_objective_seconds: objective },
        }
    }

    /// How one tenant is.
    #[must_use]
    pub fn verdict_of(&self, row: &TenantRow) -> Verdict {
        if row.state.condition() == Condition::Failing || row.vanished.is_some() || row.losses > 0 {
            Verdict::Degraded
        } else if row.is_behind(self.objective_seconds) || row.ahead_seconds.is_some() {
            Verdict::Behind
        } else if row.quarantined > 0 || self.is_forgotten(row) {
            Verdict::Attention
        } else {
            Verdict::Healthy
        }
    }

    /// Whether a tenant has been paused for longer than planned.
    fn is_forgotten(&self, row: &TenantRow) -> bool {
        row.paused.as_ref().is_some_and(|by| by.seconds(self.at) > self.objectives.pause.as_secs_f64())
    }

    /// The verdict, and why.
    fn judge(&self) -> (Verdict, Vec<String>) {
        let mut reasons = Vec::new();
        let mut verdict = Verdict::Healthy;
        let mut worse = |than: Verdict, reason: String| {
            verdict = verdict.max(than);
            reasons.push(reason);
        };
        if let Some(error) = &self.redis_error {
            let level = if self.workers.is_empty() { Verdict::Unknown } else { Verdict::Degraded };
            worse(
                level,
                format!("Redis can't be asked, only what this worker serves itself is shown: {error}."),
            );
        } else if let Some(error) = &self.writes_refused {
            worse(Verdict::Degraded, self.refusal(error));
        } else if self.workers.is_empty() {
            worse(Verdict::Unknown, "No live worker has been heard of.".to_owned());
        }
        if !self.listed {
            worse(
                Verdict::Unknown,
                "The list of tenants is not known, so nobody can tell whether all are served.".to_owned(),
            );
        }

        let mut degraded: BTreeMap<(&str, bool), Vec<&TenantRow>> = BTreeMap::new();
        let (mut unserved, mut unsampled, mut foreign) = (vec![], vec![], vec![]);
        let (mut behind, mut paused, mut short) = (vec![], vec![], vec![]);
        let (mut ahead, mut vanished) = (vec![], vec![]);
        let (mut quarantined, mut lost, mut expired) = (vec![], vec![], vec![]);
        for row in &self.tenants {
            vanished.extend(row.vanished.as_ref().map(|open| (open, row)));
            match &row.state {
                // Reported by itself, whatever the tenant's state is.
                StateView::Is(TenantState::Degraded) if row.vanished.is_some() && lost_data(row) => {}
                StateView::Is(TenantState::Degraded) => {
                    let reason = row.reason.as_ref().map_or("unknown", ReportedReason::as_str);
                    degraded.entry((reason, row.partial)).or_default().push(row);
                }
                StateView::Is(_) => {}
                StateView::Other(_) => foreign.push(row),
                StateView::Unserved => unserved.push(row),
            }
            if !row.sampled && row.state != StateView::Is(TenantState::Degraded) {
                unsampled.push(row);
            }
            if row.is_behind(self.objective_seconds) {
                behind.push(row);
            }
            if row.ahead_seconds.is_some() {
                ahead.push(row);
            }
            if row.paused.is_some() {
                paused.push(row);
            }
            if row.shortest_life_seconds.is_some_and(|life| life < SHORT_LIFE_SECONDS) {
                short.push(row);
            }
            if row.quarantined > 0 {
                quarantined.push(row);
            }
            if row.losses > 0 {
                lost.push(row);
            }
            if row.expired_total > 0 {
                expired.push(row);
            }
        }
        let mut degraded: Vec<_> = degraded.into_iter().collect();
        degraded.sort_by_key(|(_, rows)| std::cmp::Reverse(rows.len()));
        for ((reason, partial), rows) in degraded {
            let since = rows.iter().filter_map(|row| row.since.as_deref()).min().unwrap_or("unknown");
            let (whose, names) = (tenants(&rows), names(&rows));
            let said = if reason == Reason::PostgresReplaced.as_str() {
                format!(
                    "Rows of {whose} may lack what was written before ({reason}), since {since}: {names}."
                )
            } else if partial {
                format!("Some balances of {whose} can't be written ({reason}), since {since}: {names}.")
            } else {
                format!("{whose} can't be written ({reason}), since {since}: {names}.")
            };
            worse(Verdict::Degraded, said);
        }
        for reason in REASONS {
            let of_reason = vanished.iter().filter(|(open, _)| open.reason.known() == Some(reason));
            let (open, rows): (Vec<&VanishedView>, Vec<&TenantRow>) =
                of_reason.map(|(open, row)| (*open, *row)).unzip();
            if let Some(text) = lost_by_redis(reason, &open, &rows) {
                worse(Verdict::Degraded, text);
            }
        }
        if !unserved.is_empty() && !self.workers.is_empty() && self.writes_refused.is_none() {
            let text = format!("{} served by no live worker: {}.", are(&unserved), names(&unserved));
            worse(Verdict::Degraded, text);
        }
        if !unsampled.is_empty() {
            let text = format!(
                "The schedules of {} have not been read yet, or can't be, so it is unknown what waits or is lost there: {}.",
                tenants(&unsampled),
                names(&unsampled)
            );
            worse(Verdict::Unknown, text);
        }
        if let Some(first) = foreign.first() {
            let text = format!(
                "{} in a state of another release ({}), and what it means is not known here: {}.",
                are(&foreign),
                first.state,
                names(&foreign)
            );
            worse(Verdict::Unknown, text);
        }
        if !lost.is_empty() {
            lost.sort_by_key(|row| std::cmp::Reverse(row.losses));
            let losses: u64 = lost.iter().map(|row| row.losses).sum();
            let text = format!(
                "{losses} balances have lost mutations or forked, or may have, until their entries are dropped: {}.",
                names(&lost)
            );
            worse(Verdict::Degraded, text);
        }
        if !behind.is_empty() {
            behind.sort_by(|a, b| b.oldest_due_age_seconds.total_cmp(&a.oldest_due_age_seconds));
            let due: u64 = behind.iter().map(|row| row.due).sum();
            let (oldest, objective) = (behind[0].oldest_due_age_seconds, self.objective_seconds);
            worse(
                Verdict::Behind,
                format!(
                    "{} behind: {due} balances are due, the oldest for {oldest:.1} s (objective {objective} s): {}.",
                    are(&behind),
                    names(&behind)
                ),
            );
        }
        if !ahead.is_empty() {
            let furthest = ahead.iter().filter_map(|row| row.ahead_seconds).fold(0.0, f64::max);
            worse(
                Verdict::Behind,
                format!(
                    "Redis's clock has jumped back: balances of {} are scheduled up to {furthest:.0} s ahead, further than any lease \
                     reaches, until they are made due: {}.",
                    tenants(&ahead),
                    names(&ahead)
                ),
            );
        }
        if !short.is_empty() {
            let left = short.iter().filter_map(|row| row.shortest_life_seconds).fold(f64::MAX, f64::min);
            worse(
                Verdict::Behind,
                format!(
                    "Values of {} expire in {left:.0} s unless they are written before: {}.",
                    tenants(&short).to_lowercase(),
                    names(&short)
                ),
            );
        }
        for worker in &self.workers {
            let stalled = |task: &&TaskView| task.state == TaskState::Stalled;
            for task in worker.background_tasks.iter().filter(stalled) {
                let end = task.last_end.as_ref().map_or_else(String::new, |end| format!(", it {end}"));
                let reason = format!(
                    "Background task {} of worker {} has made no progress since {}{end}.",
                    task.name, worker.name, task.last_progress_at
                );
                worse(if task.is_missed() { Verdict::Degraded } else { Verdict::Healthy }, reason);
            }
        }
        let late = lag_quantile(&self.rates.lags, 0.99).filter(|lag| *lag > self.objective_seconds);
        if let Some(lag) = late {
            worse(
                Verdict::Behind,
                format!(
                    "Of the last seconds' mutations one in a hundred took {lag:.1} s or longer to its row (objective {} s).",
                    self.objective_seconds
                ),
            );
        }
        for reason in self.redundancy() {
            worse(Verdict::Attention, reason);
        }
        let (forgotten, paused): (Vec<_>, Vec<_>) =
            paused.into_iter().partition(|row| self.is_forgotten(row));
        if let Some(first) = forgotten.iter().filter_map(|row| row.paused.as_ref()).min_by_key(|by| by.at_ms)
        {
            let note = first.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
            worse(
                Verdict::Attention,
                format!(
                    "{} paused for longer than {} (objectives.pause), the first by {} since {}{note}: {}.",
                    are(&forgotten),
                    humantime::format_duration(self.objectives.pause),
                    first.by,
                    first.at,
                    names(&forgotten)
                ),
            );
        }
        if !quarantined.is_empty() {
            quarantined.sort_by_key(|row| std::cmp::Reverse(row.quarantined));
            let entries: u64 = quarantined.iter().map(|row| row.quarantined).sum();
            worse(
                Verdict::Attention,
                format!(
                    "{entries} balances are in quarantine until they are retried or dropped: {}.",
                    names(&quarantined)
                ),
            );
        }
        // What is worth knowing and needs no action.
        if !paused.is_empty() {
            reasons.push(format!("{} paused by hand: {}.", are(&paused), names(&paused)));
        }
        for worker in &self.workers {
            if let Some(configured) = &worker.configured_name {
                reasons.push(format!(
                    "Worker {} is configured as {configured}, which was another worker's name when it looked: give each its own worker.name.",
                    worker.name
                ));
            }
        }
        if !expired.is_empty() {
            let values: u64 = expired.iter().map(|row| row.expired_total).sum();
            reasons.push(format!("{values} values had expired before anybody looked: {}.", names(&expired)));
        }
        (verdict, reasons)
    }
}

impl FleetView {
    /// What is missing of the workers that there should be, what the tenant service doesn't answer, and in what the workers differ.
    fn redundancy(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let live: Vec<&WorkerRow> =
            self.workers.iter().filter(|worker| worker.live && !worker.draining).collect();
        let expected = self.objectives.workers;
        if live.len() < expected && self.redis_error.is_none() && self.writes_refused.is_none() {
            reasons.push(format!("{} of {expected} workers are alive (worker.expected).", live.len()));
        }
        let failing =
            |worker: &&&WorkerRow| matches!(worker.tenant_service.state.as_str(), "failing" | "breaker_open");
        let unanswered: Vec<&&WorkerRow> = live.iter().filter(failing).collect();
        if let Some(worker) = unanswered.first() {
            let since = worker.tenant_service.last_success_at.as_deref().unwrap_or("its start");
            reasons.push(format!(
                "The tenant service has not answered {} since {since}: tenants that were added, removed or moved meanwhile are not known.",
                listed(unanswered.iter().map(|worker| worker.name.as_str()))
            ));
        }
        let mut values: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
        for worker in &live {
            let version = ("version", worker.version.as_str());
            let settings = worker.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            for (name, value) in settings.chain([version]) {
                values.entry(name).or_default().entry(value).or_default().push(&worker.name);
            }
        }
        for (name, values) in values.into_iter().filter(|(_, values)| values.len() > 1) {
            let each = values
                .into_iter()
                .map(|(value, workers)| format!("{value} on {}", listed(workers.into_iter())));
            reasons.push(format!("Workers differ in {name}: {}.", each.collect::<Vec<_>>().join("; ")));
        }
        reasons
    }

    /// That Redis refuses writes, and what is known all the same.
    fn refusal(&self, error: &ScheduleError) -> String {
        let silent: Vec<_> = self.workers.iter().filter(|worker| !worker.live).collect();
        let heard = silent.iter().map(|worker| worker.seen_at.as_str()).max();
        let known = match (silent.len(), heard) {
            (1, Some(at)) => format!(" 1 worker can't report, and is shown as last heard of at {at}."),
            (many, Some(at)) => {
                format!(" {many} workers can't report, and are shown as last heard of, the latest at {at}.")
            }
            (_, None) => String::new(),
        };
        format!(
            "Redis refuses writes ({}): {}.{known}",
            error.class.as_str(),
            error.message.trim_end_matches('.')
        )
    }
}

/// Whether the reason that is shown of a tenant is that Redis has lost data of it.
fn lost_data(row: &TenantRow) -> bool {
    let known = row.reason.as_ref().and_then(ReportedReason::known);
    known.is_some_and(|reason| REASONS.contains(&reason))
}

/// What Redis has lost, in one sentence; `None` without any.
fn lost_by_redis(reason: Reason, open: &[&VanishedView], rows: &[&TenantRow]) -> Option<String> {
    let first = open.iter().min_by(|a, b| a.since.cmp(&b.since))?;
    let sum = |of: fn(&VanishedView) -> u64| open.iter().map(|one| of(one)).sum::<u64>();
    let (extent, rescheduled, lost) =
        (sum(|one| one.extent), sum(|one| one.rescheduled), sum(|one| one.lost));
    let ahead = match sum(|one| one.rows_ahead) {
        0 => String::new(),
        rows => format!(", {rows} rows are newer than what Redis holds"),
    };
    Some(format!(
        "Redis has lost data of {} ({reason}), since {}: {}. {}: {extent} members are missing, {rescheduled} balances are \
         scheduled again and {lost} listed as lost{ahead}; {}.",
        tenants(rows),
        first.since,
        names(rows),
        first.detail,
        first.phase.trim_end_matches('.')
    ))
}

/// How much a tenant is in trouble; more is worse.
fn severity(row: &TenantRow, objective: f64) -> u8 {
    match row.state {
        StateView::Is(TenantState::Degraded) => 4,
        StateView::Unserved | StateView::Other(_) => 3,
        _ if row.vanished.is_some() => 4,
        _ if row.is_behind(objective) || row.ahead_seconds.is_some() => 2,
        _ if row.losses > 0 => 2,
        _ if row.paused.is_some() || row.quarantined > 0 => 1,
        _ => 0,
    }
}

fn tenants(rows: &[&TenantRow]) -> String {
    if rows.len() == 1 { "1 tenant".to_owned() } else { format!("{} tenants", rows.len()) }
}

fn are(rows: &[&TenantRow]) -> String {
    format!("{} {}", tenants(rows), if rows.len() == 1 { "is" } else { "are" })
}

fn names(rows: &[&TenantRow]) -> String {
    listed(rows.iter().map(|row| row.id.as_str()))
}

/// The first names, and how many more there are.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let named: Vec<&str> = names.take(NAMED).collect();
    if more == 0 { named.join(", ") } else { format!("{} and {more} more", named.join(", ")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use balance_sync_fleet::{
        status::{BUCKETS, Rates},
        tasks::TaskName,
    };

    use crate::{
        reader::Objectives,
        record::{TaskRecord, WorkerRecord},
        rows::PausedBy,
    };

    fn view(tasks: Vec<TaskRecord>) -> FleetView {
        let record = WorkerRecord {
            name: "w1".to_owned(),
            configured_name: None,
            version: "1".to_owned(),
            started_at: 0.0,
            seen_at: 100.0,
            draining: false,
            owned: 0,
            by_state: BTreeMap::new(),
            rates: Rates::default(),
            rss_bytes: 0,
            redis: "ok".to_owned(),
            tenant_service: Default::default(),
            reconcile: Default::default(),
            restarts: 0,
            postgres: Vec::new(),
            due: 0,
            oldest_due_age_ms: 0,
            replicas: None,
            settings: BTreeMap::new(),
            tasks,
        };
        FleetView {
            at: 100.0,
            redis_error: None,
            writes_refused: None,
            listed: true,
            workers: vec![WorkerRow::new(&record, true)],
            rates: Rates::default(),
            tenants: Vec::new(),
            counts: Vec::new(),
            history: Vec::new(),
            objective_seconds: 5.0,
            objectives: Objectives {
                freshness: Duration::from_secs(5),
                pause: Duration::from_secs(3_600),
                workers: 0,
            },
            single: false,
        }
    }

    fn task(name: &str, state: TaskState) -> TaskRecord {
        let state = state.into();
        let last_end = Some("panicked: over something".to_owned());
        TaskRecord { name: name.to_owned(), thread: None, state, restarts: 3, progress_at: 40.0, last_end }
    }

    #[test]
    fn a_stalled_task_is_a_reason_and_an_essential_one_makes_the_fleet_degraded() {
        let well = view(vec![task("sampler", TaskState::Running), task("partition", TaskState::Restarting)]);
        assert_eq!(well.judge(), (Verdict::Healthy, Vec::new()));

        let (verdict, reasons) = view(vec![task("sampler", TaskState::Stalled)]).judge();
        assert_eq!(verdict, Verdict::Healthy, "tenants are served");
        let said = "Background task sampler of worker w1 has made no progress since 1970-01-01T00:00:40";
        assert!(reasons[0].starts_with(said), "{reasons:?}");
        assert!(reasons[0].ends_with(", it panicked: over something."), "{reasons:?}");

        let (verdict, _) = view(vec![task(TaskName::ActionsFollower.name(), TaskState::Stalled)]).judge();
        assert_eq!(verdict, Verdict::Degraded);
        let (verdict, _) = view(vec![task("of_a_later_version", TaskState::Stalled)]).judge();
        assert_eq!(verdict, Verdict::Healthy);
    }

    /// Wrong green is worse than red: a loss is no tenant's state and doesn't mend by itself.
    #[test]
    fn a_fleet_with_an_open_loss_is_not_healthy() {
        let mut fleet = view(Vec::new());
        let mut row =
            TenantRow { state: TenantState::Idle.into(), sampled: true, ..TenantRow::unserved("acme", None) };
        row.quarantined = 3;
        fleet.tenants = vec![row];
        assert_eq!(
            fleet.judge().0,
            Verdict::Attention,
            "what is in quarantine keeps its value, and waits for an operator"
        );
        fleet.tenants[0].losses = 2;
        let (verdict, reasons) = fleet.judge();
        assert_eq!(verdict, Verdict::Degraded);
        assert!(reasons[0].starts_with("2 balances have lost mutations or forked"), "{reasons:?}");
        assert_eq!(fleet.overview().losses, 2);
        fleet.tenants[0] = TenantRow { losses: 0, sampled: false, ..fleet.tenants[0].clone() };
        let (verdict, reasons) = fleet.judge();
        assert_eq!(verdict, Verdict::Unknown, "it is not known whether there are any");
        assert!(reasons[0].contains("have not been read yet"), "{reasons:?}");
    }

    #[test]
    fn a_pause_that_was_forgotten_needs_attention() {
        let mut fleet = view(Vec::new());
        let paused = Some(PausedBy::new("ann".to_owned(), 90.0, Some("moving its database".to_owned())));
        let row = TenantRow {
            state: TenantState::Paused.into(),
            sampled: true,
            ..TenantRow::unserved("acme", paused)
        };
        fleet.tenants = vec![row];
        let (verdict, reasons) = fleet.judge();
        assert_eq!(
            (verdict, reasons.as_slice()),
            (Verdict::Healthy, ["1 tenant is paused by hand: acme.".to_owned()].as_slice())
        );
        assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Healthy);

        fleet.at = 90.0 + 3_601.0;
        let (verdict, reasons) = fleet.judge();
        assert_eq!(verdict, Verdict::Attention);
        let said = "1 tenant is paused for longer than 1h (objectives.pause), the first by ann since 1970-01-01T00:01:30";
        assert!(reasons[0].starts_with(said), "{reasons:?}");
        assert!(reasons[0].ends_with("(moving its database): acme."), "{reasons:?}");
        assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Attention);
    }

    #[test]
    fn a_missing_worker_and_workers_that_differ_need_attention() {
        let mut fleet = view(Vec::new());
        fleet.objectives.workers = 2;
        assert_eq!(
            fleet.judge(),
            (Verdict::Attention, vec!["1 of 2 workers are alive (worker.expected).".to_owned()])
        );
        let mut second = fleet.workers[0].clone();
        second.name = "w2".to_owned();
        fleet.workers.push(second);
        assert_eq!(fleet.judge(), (Verdict::Healthy, Vec::new()));

        // One of an earlier version, which doesn't report its settings.
        fleet.workers[0].settings.insert("claim.mode".to_owned(), "lease".to_owned());
        assert_eq!(fleet.judge(), (Verdict::Healthy, Vec::new()));
        fleet.workers[1].settings.insert("claim.mode".to_owned(), "lock".to_owned());
        fleet.workers[1].version = "2".to_owned();
        let said = [
            "Workers differ in claim.mode: lease on w1; lock on w2.",
            "Workers differ in version: 1 on w1; 2 on w2.",
        ];
        assert_eq!(fleet.judge(), (Verdict::Attention, said.map(str::to_owned).to_vec()));
        fleet.workers[1].draining = true;
        assert_eq!(
            fleet.judge(),
            (Verdict::Attention, vec!["1 of 2 workers are alive (worker.expected).".to_owned()])
        );
    }

    #[test]
    fn a_tenant_service_that_does_not_answer_needs_attention() {
        let mut fleet = view(Vec::new());
        for (state, verdict) in [
            ("ok", Verdict::Healthy),
            ("static", Verdict::Healthy),
            ("failing", Verdict::Attention),
            ("breaker_open", Verdict::Attention),
        ] {
            fleet.workers[0].tenant_service.state = state.to_owned();
            let judged = fleet.judge();
            assert_eq!(judged.0, verdict, "{state}: {judged:?}");
        }
        let (_, reasons) = fleet.judge();
        assert!(
            reasons[0].starts_with("The tenant service has not answered w1 since its start"),
            "{reasons:?}"
        );
    }

    #[test]
    fn mutations_that_took_longer_than_the_objective_are_behind() {
        let mut fleet = view(Vec::new());
        fleet.rates.lags = vec![0; BUCKETS.len() + 1];
        fleet.rates.lags[0] = 1_000;
        assert_eq!(fleet.judge().0, Verdict::Healthy);
        *fleet.rates.lags.last_mut().unwrap() = 100;
        let (verdict, reasons) = fleet.judge();
        assert_eq!(verdict, Verdict::Behind);
        assert!(reasons[0].contains("took") && reasons[0].contains("objective 5 s"), "{reasons:?}");
    }
}
