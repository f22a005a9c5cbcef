//! The report of a month, out of its record.

use std::collections::BTreeMap;

use balance_sync_engine::controls::Action;
use balance_sync_fleet::status::{BUCKETS, lag_quantile};
use serde::Serialize;

use super::{
    month::{DAY, Month},
    record::{ActionEntry, Day, Incident, MonthRecord, Spread, TenantMonth, add},
};
use crate::rows::at;

/// Time without a record that is no gap: the looks are ten seconds apart.
const NO_GAP: f64 = 15.0;

/// A month of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Which.
    pub month: Month,
    /// When this was put together.
    pub generated_at: String,
    /// Whether the month is over.
    pub finished: bool,
    /// How much of it is recorded.
    pub recorded: Recorded,
    /// The whole fleet; `None` = nothing is recorded.
    pub fleet: Option<Figures>,
    /// Each day that has begun.
    pub days: Vec<DayView>,
    /// The tenants with an entry of their own, those with the longest exposure beyond the objective first.
    pub tenants: Vec<TenantView>,
    /// Times in which tenants couldn't be written or Redis had lost data, in order.
    pub incidents: Vec<IncidentView>,
    /// The same by cause, with those that are not listed.
    pub causes: BTreeMap<String, CauseView>,
    /// Recoveries by operators.
    pub recoveries: Vec<ActionView>,
    /// The other actions of operators.
    pub actions: Vec<ActionView>,
    /// What was more than is kept one by one.
    pub omitted: Omitted,
}

/// How much of a month is recorded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recorded {
    /// When the first look was recorded.
    pub began_at: Option<String>,
    /// When the last one was.
    pub last_at: Option<String>,
    /// How long the fleet was watched.
    pub seconds: f64,
    /// How long it wasn't, of the time until now or the end of the month: nothing is known of that.
    pub missing_seconds: f64,
}

/// Figures of the fleet, of a day or of a tenant. Shares are of the recorded time, 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Mutation to row, median.
    pub lag_p50_seconds: Option<f64>,
    /// What 99 of 100 stayed within.
    pub lag_p99_seconds: Option<f64>,
    /// How long some tenant, or this one, was behind.
    pub behind_seconds: f64,
    /// Its share.
    pub behind_share: f64,
    /// The exposure that was exceeded in one hundredth of the time; of the tenant that was exposed longest.
    pub exposure_p99_seconds: Option<f64>,
    /// The longest.
    pub exposure_longest_seconds: f64,
    /// How long it was beyond the objective.
    pub exposed_seconds: f64,
    /// Its share; the error budget is 0.01.
    pub exposed_share: f64,
    /// How long some tenant, or this one, couldn't be written.
    pub degraded_seconds: f64,
    /// Rows written.
    pub rows: u64,
    /// Balances newly listed as lost or forked.
    pub lost: u64,
    /// Times a fork was found.
    pub forks_found: u64,
}

/// A day.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DayView {
    /// Which, in UTC.
    pub day: String,
    /// How long the fleet was watched.
    pub recorded_seconds: f64,
    /// How long it wasn't.
    pub missing_seconds: f64,
    /// Tenants, at most.
    pub tenants: Option<u64>,
    /// The fleet; `None` = nothing is recorded.
    pub figures: Option<Figures>,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TenantView {
    /// Which.
    pub id: String,
    /// Its figures.
    pub figures: Figures,
    /// How long it was paused.
    pub paused_seconds: f64,
    /// How long nothing was known of it though the fleet was watched.
    pub unknown_seconds: f64,
    /// Balances listed as lost or forked at the last look.
    pub open_losses: u64,
    /// How long by cause it couldn't be written.
    pub causes: BTreeMap<String, f64>,
}

/// An incident.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IncidentView {
    /// Why.
    pub cause: String,
    /// When it began; within ten seconds, where the tenants' states don't say it.
    pub from: String,
    /// When it was over, or was last seen.
    pub to: String,
    /// From the one to the other.
    pub seconds: f64,
    /// Tenants, at most at one look; 0 = none by itself.
    pub tenants: u64,
    /// Some of them.
    pub names: Vec<String>,
    /// The longest exposure of these tenants.
    pub exposure_longest_seconds: f64,
    /// Balances that were scheduled again.
    pub rescheduled: u64,
    /// Balances that were listed as lost.
    pub lost: u64,
    /// It had begun before the month.
    pub continued: bool,
    /// It was not over at the last look or at the end of the month.
    pub open: bool,
    /// It may have ended at any time after `to`: nothing was recorded then.
    pub end_unknown: bool,
}

/// Incidents of a cause.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CauseView {
    /// How many.
    pub incidents: u64,
    /// How long, all together.
    pub seconds: f64,
}

/// An action of an operator.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ActionView {
    /// Its id in the log.
    pub id: String,
    /// When.
    pub at: String,
    /// Who.
    pub by: String,
    /// What.
    pub what: String,
    /// With which tenant.
    pub tenant: Option<String>,
    /// With which worker.
    pub worker: Option<String>,
    /// Why.
    pub note: Option<String>,
    /// What became of it.
    pub outcomes: Vec<OutcomeView>,
}

/// What became of an action.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutcomeView {
    /// On which worker.
    pub worker: String,
    /// How it ended.
    pub outcome: String,
    /// In words.
    pub detail: String,
}

/// What was more than is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Omitted {
    /// Tenants with which something was wrong, at most at one look.
    pub troubled_tenants: u64,
    /// Tenants that were merely written, at most at one look.
    pub other_tenants: u64,
    /// Incidents.
    pub incidents: u64,
    /// Actions.
    pub actions: u64,
}

impl Report {
    /// The report as of `now`, in seconds since 1970.
    #[must_use]
    pub fn new(month: Month, record: &MonthRecord, now: f64) -> Self {
        let mut whole = Day::default();
        let mut days = Vec::new();
        let begun = if now < month.start() { 0 } else { month.day(now.min(month.end() - 1.0)) };
        for number in 1..=begun {
            let begin = month.day_start(number);
            let elapsed = (now - begin).clamp(0.0, DAY);
            let day = record.days.get(&number).filter(|day| day.seconds > 0.0);
            if let Some(day) = day {
                sum(&mut whole, day);
            }
            let recorded = day.map_or(0.0, |day| day.seconds).min(elapsed);
            days.push(DayView {
                day: at(begin)[..10].to_owned(),
                recorded_seconds: rounded(recorded),
                missing_seconds: missing(elapsed, recorded),
                tenants: day.map(|day| day.tenants),
                figures: day.map(of_fleet),
            });
        }
        let elapsed = (now.min(month.end()) - month.start()).max(0.0);
        let seconds = whole.seconds.min(elapsed);
        let meta = record.meta.as_ref().filter(|meta| meta.began > 0.0);
        let mut tenants: Vec<TenantView> =
            record.tenants.iter().map(|(id, entry)| of_tenant(id, entry, whole.seconds)).collect();
        tenants.sort_by(|a, b| {
            let worst = |tenant: &TenantView| {
                (
                    tenant.figures.lost + tenant.open_losses,
                    tenant.figures.exposed_seconds,
                    tenant.figures.degraded_seconds,
                )
            };
            let ((la, ea, da), (lb, eb, db)) = (worst(a), worst(b));
            lb.cmp(&la).then(eb.total_cmp(&ea)).then(db.total_cmp(&da)).then(a.id.cmp(&b.id))
        });
        let mut incidents: Vec<&Incident> = record.incidents.values().collect();
        incidents.sort_by(|a, b| a.from.total_cmp(&b.from));
        let (recoveries, actions) = record
            .actions
            .iter()
            .map(|(id, action)| of_action(id, action))
            .partition(|action| action.what == Action::Recover.as_str());
        let mut causes: BTreeMap<String, CauseView> = BTreeMap::new();
        if let Some(meta) = &record.meta {
            for (cause, sum) in &meta.causes {
                causes.insert(cause.clone(), CauseView { incidents: sum.incidents, seconds: sum.seconds });
            }
        }
        // Those that are not over are added to the sum when they end.
        for incident in
            incidents.iter().filter(|incident| incident.end_unknown || incident.open && now < month.end())
        {
            if let Some(cause) = causes.get_mut(&incident.cause) {
                cause.seconds += incident.to - incident.from;
            }
        }
        causes.values_mut().for_each(|cause| cause.seconds = rounded(cause.seconds));
        Self {
            month,
            generated_at: at(now),
            finished: now >= month.end(),
            recorded: Recorded {
                began_at: meta.map(|meta| at(meta.began)),
                last_at: meta.map(|meta| at(meta.last)),
                seconds: rounded(seconds),
                missing_seconds: missing(elapsed, seconds),
            },
            fleet: (whole.seconds > 0.0).then(|| of_fleet(&whole)),
            days,
            tenants,
            incidents: incidents.into_iter().map(of_incident).collect(),
            causes,
            recoveries,
            actions,
            omitted: record
                .meta
                .as_ref()
                .map(|meta| Omitted {
                    troubled_tenants: meta.omitted_troubled,
                    other_tenants: meta.omitted_active,
                    incidents: meta.omitted_incidents,
                    actions: meta.omitted_actions,
                })
                .unwrap_or_default(),
        }
    }

    /// Whether anything is recorded of the month.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.fleet.is_some()
    }
}

fn sum(whole: &mut Day, day: &Day) {
    whole.seconds += day.seconds;
    whole.late += day.late;
    whole.exposed += day.exposed;
    whole.degraded += day.degraded;
    whole.rows += day.rows;
    whole.lost += day.lost;
    whole.forked += day.forked;
    whole.longest = whole.longest.max(day.longest);
    add(&mut whole.lags, &day.lags);
    add(&mut whole.exposure, &day.exposure);
}

fn of_fleet(day: &Day) -> Figures {
    Figures {
        lag_p50_seconds: lag_quantile(&day.lags, 0.5),
        lag_p99_seconds: lag_quantile(&day.lags, 0.99),
        behind_seconds: rounded(day.late),
        behind_share: share(day.late, day.seconds),
        exposure_p99_seconds: exposure_p99(&day.exposure, day.longest),
        exposure_longest_seconds: rounded(day.longest),
        exposed_seconds: rounded(day.exposed),
        exposed_share: share(day.exposed, day.seconds),
        degraded_seconds: rounded(day.degraded),
        rows: day.rows,
        lost: day.lost,
        forks_found: day.forked,
    }
}

fn of_tenant(id: &str, entry: &TenantMonth, recorded: f64) -> TenantView {
    // Before it had an entry nothing was wrong with it, which is known for as long as the fleet was watched.
    let mut exposure: Spread = entry.exposure.clone();
    let judged = recorded - entry.paused - entry.unknown;
    let before = judged * 1e3 - exposure.iter().sum::<u64>() as f64;
    if exposure.is_empty() {
        exposure.push(0);
    }
    exposure[0] += before.max(0.0) as u64;
    let judged = judged.max(0.0);
    TenantView {
        id: id.to_owned(),
        figures: Figures {
            lag_p50_seconds: lag_quantile(&entry.lags, 0.5),
            lag_p99_seconds: lag_quantile(&entry.lags, 0.99),
            behind_seconds: rounded(entry.late),
            behind_share: share(entry.late, judged),
            exposure_p99_seconds: exposure_p99(&exposure, entry.longest),
            exposure_longest_seconds: rounded(entry.longest),
            exposed_seconds: rounded(entry.exposed),
            exposed_share: share(entry.exposed, judged),
            degraded_seconds: rounded(entry.degraded),
            rows: entry.rows,
            lost: entry.lost,
            forks_found: entry.forked,
        },
        paused_seconds: rounded(entry.paused),
        unknown_seconds: rounded(entry.unknown),
        open_losses: entry.open,
        causes: entry.causes.iter().map(|(cause, seconds)| (cause.clone(), rounded(*seconds))).collect(),
    }
}

fn of_incident(incident: &Incident) -> IncidentView {
    IncidentView {
        cause: incident.cause.clone(),
        from: at(incident.from),
        to: at(incident.to),
        seconds: rounded((incident.to - incident.from).max(0.0)),
        tenants: incident.tenants,
        names: incident.names.clone(),
        exposure_longest_seconds: rounded(incident.longest),
        rescheduled: incident.rescheduled,
        lost: incident.lost,
        continued: incident.continued,
        open: incident.open,
        end_unknown: incident.end_unknown,
    }
}

fn of_action(id: &str, action: &ActionEntry) -> ActionView {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ActionView {
        id: id.to_owned(),
        at: at(action.at),
        by: action.by.clone(),
        what: action.what.clone(),
        tenant: some(&action.tenant),
        worker: some(&action.worker),
        note: some(&action.note),
        outcomes: action
            .outcomes
            .iter()
            .map(|(worker, outcome, detail)| OutcomeView {
                worker: worker.clone(),
                outcome: outcome.clone(),
                detail: detail.clone(),
            })
            .collect(),
    }
}

/// Beyond the last bucket only the longest is known.
fn exposure_p99(spread: &[u64], longest: f64) -> Option<f64> {
    let p99 = lag_quantile(spread, 0.99)?;
    let bound = BUCKETS.last().copied().unwrap_or_default();
    Some(if p99 >= bound { longest.max(bound) } else { p99.min(longest) })
}

fn missing(elapsed: f64, recorded: f64) -> f64 {
    let missing = elapsed - recorded;
    if missing <= NO_GAP { 0.0 } else { rounded(missing) }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole <= 0.0 { 0.0 } else { (part / whole * 1e6).round() / 1e6 }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}
