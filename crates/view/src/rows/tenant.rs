//! A tenant at a glance.

use balance_sync_engine::rollout::Cause;
use balance_sync_engine::vanish::Found;
use balance_sync_fleet::status::{
    Outcome, Rates, ReportedReason, TenantState, display_priority, is_notice, lag_quantile,
};
use balance_sync_schedule::controls::Acknowledgement;
use balance_sync_store::PoolUsage;
use serde::Serialize;

use super::{NeighbourView, QueueView, ShadowView, StateView, at};
use crate::{
    record::{Counts, TenantRecord, VanishedRecord},
    verdict::Verdict,
};

/// Who paused a tenant. Two are equal whatever their ages: a pause that goes on is no change.
#[derive(Debug, Clone, Serialize)]
pub struct PausedBy {
    /// Who.
    pub by: String,
    /// When.
    pub at: String,
    /// Why, if that was said.
    pub note: Option<String>,
    /// For how long, when the view was put together.
    pub age_seconds: f64,
    /// When, in milliseconds since 1970.
    #[serde(skip)]
    pub at_ms: u64,
}

impl PartialEq for PausedBy {
    fn eq(&self, other: &Self) -> bool {
        (&self.by, &self.note, self.at_ms) == (&other.by, &other.note, other.at_ms)
    }
}

impl PausedBy {
    /// A pause that began so many seconds after 1970.
    pub(crate) fn new(by: String, since: f64, note: Option<String>) -> Self {
        Self { by, at: at(since), note, age_seconds: 0.0, at_ms: (since.max(0.0) * 1e3) as u64 }
    }

    /// The same, as it is seen so many seconds after 1970.
    #[must_use]
    pub(crate) fn seen_at(self, now: f64) -> Self {
        Self { age_seconds: self.seconds(now).round(), ..self }
    }

    /// For how long, in seconds.
    #[must_use]
    pub fn seconds(&self, now: f64) -> f64 {
        (now - self.at_ms as f64 / 1e3).max(0.0)
    }
}

/// Who acknowledged the entries in a tenant's quarantine and among its losses.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AcknowledgedView {
    /// Who.
    pub by: String,
    /// When.
    pub at: String,
    /// How long ago.
    pub age_seconds: f64,
    /// Why.
    pub note: Option<String>,
    /// Entries at that moment, losses included.
    pub entries: u64,
    /// Whether nothing has come since. If not, all entries count as unacknowledged.
    pub holds: bool,
}

impl AcknowledgedView {
    /// An acknowledgement, while so many entries are left.
    pub(crate) fn new(record: &Acknowledgement, entries: u64, now: f64) -> Self {
        Self {
            by: record.by.clone(),
            at: at(record.at),
            age_seconds: (now - record.at).max(0.0).round(),
            note: record.note.clone(),
            entries: record.entries,
            // A worker of an earlier release counts no events.
            holds: record.since == 0 && entries <= record.entries,
        }
    }
}

/// An open condition: Redis has lost data of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VanishedView {
    /// Which.
    pub reason: ReportedReason,
    /// Members that are missing for certain.
    pub extent: u64,
    /// Since when.
    pub since: String,
    /// What was noticed, in words.
    pub detail: String,
    /// What is done about it, or why it stays open, in words.
    pub phase: String,
    /// Balances that were scheduled again.
    pub rescheduled: u64,
    /// Balances that were listed as lost.
    pub lost: u64,
    /// Rows that are newer than what Redis holds.
    pub rows_ahead: u64,
}

impl From<&VanishedRecord> for VanishedView {
    fn from(record: &VanishedRecord) -> Self {
        Self {
            reason: record.reason.clone(),
            extent: record.extent,
            since: at(record.since),
            detail: record.detail.clone(),
            phase: record.phase.clone(),
            rescheduled: record.rescheduled,
            lost: record.lost,
            rows_ahead: record.rows_ahead,
        }
    }
}

impl VanishedView {
    /// Whether nothing is known to be lost: Redis had no mark of an earlier worker, and no comparison has found anything.
    #[must_use]
    pub fn is_notice(&self) -> bool {
        let found = Found {
            rescheduled: self.rescheduled,
            lost: self.lost,
            rows_ahead: self.rows_ahead,
            ..Found::default()
        };
        self.reason.known().is_some_and(|reason| is_notice(reason, found))
    }
}

/// A tenant at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TenantRow {
    /// Its id; `single` for a ledger without tenants.
    pub id: String,
    /// What its collector does, `unserved` or `not_in_rollout`. With several owners the one that matters most.
    pub state: StateView,
    /// How it is, in one word; unknown until the whole view is there.
    pub verdict: Verdict,
    /// Why, when degraded.
    pub reason: Option<ReportedReason>,
    /// Why, in words.
    pub detail: Option<String>,
    /// Whether only some of its balances are concerned, and the others are written.
    pub partial: bool,
    /// Since when it is in this state; `None` when no worker serves it.
    pub since: Option<String>,
    /// Why it is in the rollout, or not; `None` = that isn't known.
    pub rollout: Option<Cause>,
    /// Who paused it.
    pub paused: Option<PausedBy>,
    /// Whether its schedules have been sampled: without that, what waits and what is lost is not known.
    pub sampled: bool,
    /// Whether a worker has looked, since it serves it, if Redis has lost data of it.
    pub watched: bool,
    /// How old the numbers are, where the schedules could be read before and can't be now.
    pub numbers_age_seconds: Option<f64>,
    /// Members in the schedule.
    pub scheduled: u64,
    /// Those whose time has come.
    pub due: u64,
    /// Those that a worker holds, or that are put off.
    pub leased: u64,
    /// How long the oldest due one has been due.
    pub oldest_due_age_seconds: f64,
    /// For how long the oldest balance has waited whose last mutation only Redis has, claimed or not.
    pub exposure_age_seconds: f64,
    /// What that exceeded in 36 seconds of the last hour; `None` = not known.
    pub exposure_p99_seconds: Option<f64>,
    /// For how long a worker has waited for a connection to write it on, where that is long.
    pub connection_wait_seconds: Option<f64>,
    /// How far ahead a balance is scheduled, where that is further than a lease or delay explains: Redis's clock has jumped
    /// back.
    pub ahead_seconds: Option<f64>,
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
    /// Who acknowledged the entries in quarantine and the losses last, if there still are any.
    pub acknowledged: Option<AcknowledgedView>,
    /// What is open because Redis has lost data of it.
    pub vanished: Option<VanishedView>,
    /// Values of scheduled balances that are gone from Redis, at least; whether mutations are lost with them is not decided yet.
    pub values_gone: u64,
    /// Since when there are any.
    pub values_gone_since: Option<String>,
    /// The ledger's own queues that hold something, or can't be read; `None` = not known.
    pub queues: Option<Vec<QueueView>>,
    /// What shadows have found; `None` = no shadow looks at it.
    pub shadow: Option<ShadowView>,
    /// What is known of the ledger's own worker; `None` = it was never seen.
    pub neighbour: Option<NeighbourView>,
    /// Values that had expired before they were claimed.
    pub expired_total: u64,
    /// Flushes that failed.
    pub batch_failures_total: u64,
    /// Its connections, over all workers.
    pub pool: Option<PoolUsage>,
    /// The workers that serve it.
    pub owners: Vec<String>,
    /// Those among them that stand by: they claim only when no other worker does.
    pub standby: Vec<String>,
    /// Starts of its collectors after the first.
    pub restarts_total: u64,
}

impl TenantRow {
    /// Whether its balances are late: the oldest due one has waited longer than the objective, and not because an
    /// operator paused it.
    #[must_use]
    pub fn is_behind(&self, objective_seconds: f64) -> bool {
        self.paused.is_none()
            && self.state != StateView::NotInRollout
            && self.state != TenantState::Paused.into()
            && self.oldest_due_age_seconds > objective_seconds
    }

    /// Whether it has missed this objective in the last hour, and not because an operator paused it.
    #[must_use]
    pub fn has_missed_exposure(&self, objective_seconds: f64) -> bool {
        self.paused.is_none() && self.exposure_p99_seconds.is_some_and(|p99| p99 > objective_seconds)
    }

    /// Whether its numbers are known, be it of an earlier time.
    #[must_use]
    pub fn has_numbers(&self) -> bool {
        self.sampled || self.numbers_age_seconds.is_some()
    }

    /// Entries in quarantine that no operator has acknowledged, losses included.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        if self.is_acknowledged() { 0 } else { self.quarantined }
    }

    /// Losses that no operator has acknowledged.
    #[must_use]
    pub fn unacknowledged_losses(&self) -> u64 {
        if self.is_acknowledged() { 0 } else { self.losses }
    }

    fn is_acknowledged(&self) -> bool {
        self.acknowledged.as_ref().is_some_and(|acknowledged| acknowledged.holds)
    }

    /// A tenant that no live worker serves.
    #[must_use]
    pub fn unserved(id: &str, paused: Option<PausedBy>) -> Self {
        Self {
            id: id.to_owned(),
            state: StateView::Unserved,
            verdict: Verdict::Unknown,
            reason: None,
            detail: Some("no live worker serves this tenant".to_owned()),
            partial: false,
            since: None,
            rollout: None,
            paused,
            sampled: false,
            watched: false,
            numbers_age_seconds: None,
            scheduled: 0,
            due: 0,
            leased: 0,
            oldest_due_age_seconds: 0.0,
            exposure_age_seconds: 0.0,
            exposure_p99_seconds: None,
            connection_wait_seconds: None,
            ahead_seconds: None,
            shortest_life_seconds: None,
            lag_p50_seconds: None,
            lag_p99_seconds: None,
            rows_per_second: 0.0,
            updated_total: 0,
            quarantined: 0,
            losses: 0,
            acknowledged: None,
            vanished: None,
            values_gone: 0,
            values_gone_since: None,
            queues: None,
            shadow: None,
            neighbour: None,
            expired_total: 0,
            batch_failures_total: 0,
            pool: None,
            owners: Vec::new(),
            standby: Vec::new(),
            restarts_total: 0,
        }
    }

    /// A tenant that no worker of this fleet serves, as it is not in the rollout.
    #[must_use]
    pub fn not_in_rollout(id: &str, paused: Option<PausedBy>, cause: Cause) -> Self {
        let why = match cause {
            Cause::Excluded => "it is excluded",
            _ => "it is not in the share, and nothing includes it",
        };
        Self {
            state: StateView::NotInRollout,
            detail: Some(format!(
                "not in the rollout, as {why}: the ledger's own worker writes its balances"
            )),
            rollout: Some(cause),
            ..Self::unserved(id, paused)
        }
    }

    /// A tenant that shadows look at and no worker of this fleet writes. `None` without any.
    #[must_use]
    pub fn only_looked_at(
        id: &str,
        shadows: &[(&str, &TenantRecord)],
        paused: Option<PausedBy>,
        now: f64,
    ) -> Option<(Self, Merged)> {
        let (row, merged) = Self::merged(id, shadows, paused, now)?;
        Some((Self { owners: Vec::new(), standby: Vec::new(), ..row }, merged))
    }

    /// What its owners say, put together. `None` without any.
    #[must_use]
    pub fn merged(
        id: &str,
        owners: &[(&str, &TenantRecord)],
        paused: Option<PausedBy>,
        now: f64,
    ) -> Option<(Self, Merged)> {
        // The state that matters most, and where several are in it, the one that is in it longest.
        let (_, main) = owners.iter().min_by(|(_, a), (_, b)| {
            let by_state = display_priority(&a.state).cmp(&display_priority(&b.state));
            by_state.then(a.since.total_cmp(&b.since))
        })?;
        let mut merged = Merged::default();
        let mut pool: Option<PoolUsage> = None;
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
        let sampled = owners.iter().any(|(_, record)| !record.unsampled);
        let most = |of: fn(&TenantRecord) -> u64| {
            // What one could not read lately doesn't count beside what another one has read.
            let read = owners.iter().filter(|(_, record)| !sampled || !record.unsampled);
            read.map(|(_, record)| of(record)).max().unwrap_or_default()
        };
        let last = owners.iter().filter_map(|(_, record)| record.sampled_at).reduce(f64::max);
        let numbers_age_seconds = last.filter(|_| !sampled).map(|at| (now - at).max(0.0).round());
        let row = Self {
            id: id.to_owned(),
            state: StateView::from(&main.state),
            verdict: Verdict::Unknown,
            reason: main.reason.clone(),
            detail: main.detail.clone(),
            partial: main.partial,
            since: Some(at(main.since)),
            rollout: None,
            paused,
            sampled,
            watched: owners.iter().any(|(_, record)| !record.unwatched),
            numbers_age_seconds,
            scheduled: most(|r| r.scheduled.max(r.due + r.leased)),
            due: most(|r| r.due),
            leased: most(|r| r.leased),
            oldest_due_age_seconds: most(|r| r.oldest_due_age_ms) as f64 / 1e3,
            // A worker of an earlier release reports only what is due.
            exposure_age_seconds: most(|r| r.exposure_age_ms.max(r.oldest_due_age_ms)) as f64 / 1e3,
            exposure_p99_seconds: sampled.then(|| most(|r| r.exposure_p99_ms) as f64 / 1e3),
            connection_wait_seconds: owners
                .iter()
                .map(|(_, record)| record.connection_wait_ms)
                .max()
                .filter(|wait| *wait > 0)
                .map(|wait| wait as f64 / 1e3),
            ahead_seconds: Some(most(|r| r.ahead_ms))
                .filter(|ahead| *ahead > 0)
                .map(|ahead| ahead as f64 / 1e3),
            shortest_life_seconds: owners
                .iter()
                .filter_map(|(_, r)| r.shortest_life_ms)
                .min()
                .map(|life| life as f64 / 1e3),
            lag_p50_seconds: lag_quantile(&merged.rates.lags, 0.5),
            lag_p99_seconds: lag_quantile(&merged.rates.lags, 0.99),
            rows_per_second: merged.rates.rows_per_second,
            updated_total: merged.counts.outcomes[Outcome::Updated],
            quarantined: most(|r| r.quarantine_entries),
            losses: most(|r| r.losses),
            acknowledged: None,
            vanished: owners
                .iter()
                .filter_map(|(_, r)| r.vanished.as_ref())
                .max_by(|a, b| a.extent.cmp(&b.extent).then(b.since.total_cmp(&a.since)))
                .map(VanishedView::from),
            values_gone: most(|r| r.values_gone),
            values_gone_since: owners
                .iter()
                .filter_map(|(_, r)| r.values_gone_since)
                .reduce(f64::min)
                .map(at),
            // Only one of them looks; while that changes it may be two.
            queues: owners
                .iter()
                .find_map(|(_, r)| r.queues.as_ref())
                .map(|queues| queues.iter().map(QueueView::from).collect()),
            shadow: None,
            neighbour: NeighbourView::of(owners),
            expired_total: merged.counts.outcomes[Outcome::Expired],
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
