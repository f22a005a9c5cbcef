//! The verdict: how the fleet is in one word, how a tenant is, and why, in sentences.

use std::{collections::BTreeMap, time::Duration};

use balance_sync_engine::vanish::REASONS;
use balance_sync_fleet::{
    status::{Condition, Reason, ReportedReason, TenantState, WorkerMode, lag_quantile},
    tasks::TaskState,
};
use balance_sync_schedule::ScheduleError;

pub(super) use crate::rows::{NAMED, listed};
pub(super) use crate::verdict::{CLOCK_TOLERANCE_SECONDS, Verdict};
use crate::{
    reader::FleetView,
    rows::{AcknowledgedView, NeighbourView, ShadowView, StateView, TaskView, TenantRow, VanishedView},
};

/// A value with less life left than this may be lost before it is written.
const SHORT_LIFE_SECONDS: f64 = 300.0;

impl FleetView {
    /// How one tenant is.
    #[must_use]
    pub fn verdict_of(&self, row: &TenantRow) -> Verdict {
        let notice = row.vanished.as_ref().is_some_and(VanishedView::is_notice);
        let lost = row.unacknowledged_losses() > 0 || row.vanished.is_some() && !notice;
        if row.state.condition() == Condition::Failing || lost {
            Verdict::Degraded
        } else if row.state == StateView::NotInRollout {
            // Another worker's; but what this fleet has put aside is its own to settle.
            match (row.sampled, row.unacknowledged()) {
                (false, _) => Verdict::Unknown,
                (true, 0) => Verdict::Healthy,
                (true, _) => Verdict::Attention,
            }
        } else if !row.sampled || !row.watched || matches!(row.state, StateView::Other(_)) {
            Verdict::Unknown
        } else if row.is_behind(self.objective_seconds) || row.ahead_seconds.is_some() || self.is_exposed(row)
        {
            Verdict::Behind
        } else if notice
            || row.values_gone > 0
            || row.unacknowledged() > 0
            || self.is_forgotten(row)
            || self.stuck_queues(row).next().is_some()
            || row.shadow.as_ref().is_some_and(ShadowView::has_found)
            || row.neighbour.as_ref().is_some_and(NeighbourView::needs_attention)
        {
            Verdict::Attention
        } else {
            Verdict::Healthy
        }
    }

    /// Sets the verdict of every row.
    pub(crate) fn judge_tenants(&mut self) {
        let verdicts: Vec<Verdict> = self.tenants.iter().map(|row| self.verdict_of(row)).collect();
        for (row, verdict) in self.tenants.iter_mut().zip(verdicts) {
            row.verdict = verdict;
        }
    }

    /// How far up a tenant belongs among the worst; more is worse.
    pub(super) fn severity(&self, row: &TenantRow) -> u8 {
        match self.verdict_of(row) {
            Verdict::Degraded => 4,
            Verdict::Unknown => 3,
            Verdict::Behind => 2,
            Verdict::Attention => 1,
            Verdict::Healthy => u8::from(row.paused.is_some()),
        }
    }

    /// Whether a tenant has missed the objective in the last hour and its oldest balance is beyond it at this moment.
    fn is_exposed(&self, row: &TenantRow) -> bool {
        let objective = self.objectives.exposure.as_secs_f64();
        row.has_missed_exposure(objective) && row.exposure_age_seconds > objective
    }

    /// Whether a tenant has been paused for longer than planned.
    pub(super) fn is_forgotten(&self, row: &TenantRow) -> bool {
        row.paused.as_ref().is_some_and(|by| by.seconds(self.at) > self.objectives.pause.as_secs_f64())
    }

    /// The verdict, and why.
    pub(super) fn judge(&self) -> (Verdict, Vec<String>) {
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
                format!(
                    "Redis can't be asked: {error}. What is shown of workers and tenants was known before, with its age."
                ),
            );
        } else if let Some(error) = &self.writes_refused {
            worse(Verdict::Degraded, self.refusal(error));
        } else if self.workers.is_empty() && self.shadows.is_empty() {
            worse(Verdict::Unknown, "No live worker has reported.".to_owned());
        }
        if !self.listed {
            worse(
                Verdict::Unknown,
                "The list of tenants is not known, so it isn't known whether all are served.".to_owned(),
            );
        }

        let exposure = self.objectives.exposure.as_secs_f64();
        let mut degraded: BTreeMap<(&str, bool), Vec<&TenantRow>> = BTreeMap::new();
        let (mut unserved, mut unsampled, mut unwatched, mut foreign) = (vec![], vec![], vec![], vec![]);
        let (mut behind, mut paused, mut short) = (vec![], vec![], vec![]);
        let (mut ahead, mut vanished, mut unmarked, mut missed) = (vec![], vec![], vec![], vec![]);
        let (mut quarantined, mut lost, mut expired) = (vec![], vec![], vec![]);
        let (mut acknowledged, mut gone) = (vec![], vec![]);
        // While Redis is away or refuses writes no look succeeds; that is said already.
        let looks = self.redis_error.is_none() && self.writes_refused.is_none();
        for row in &self.tenants {
            match &row.vanished {
                Some(open) if open.is_notice() => unmarked.push((open, row)),
                Some(open) => vanished.push((open, row)),
                None => {}
            }
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
                StateView::NotInRollout => {}
            }
            if !row.sampled && row.state != StateView::Is(TenantState::Degraded) {
                unsampled.push(row);
            } else if looks
                && !row.watched
                && matches!(&row.state, StateView::Is(state) if *state != TenantState::Degraded)
            {
                unwatched.push(row);
            }
            if row.is_behind(self.objective_seconds) {
                behind.push(row);
            }
            if row.ahead_seconds.is_some() {
                ahead.push(row);
            }
            if row.values_gone > 0 {
                gone.push(row);
            }
            if row.has_missed_exposure(exposure) {
                missed.push(row);
            }
            if row.paused.is_some() {
                paused.push(row);
            }
            let is_ours = row.state != StateView::NotInRollout;
            if is_ours && row.shortest_life_seconds.is_some_and(|life| life < SHORT_LIFE_SECONDS) {
                short.push(row);
            }
            if row.unacknowledged() > 0 {
                quarantined.push(row);
            } else if row.acknowledged.is_some() {
                acknowledged.push(row);
            }
            if row.unacknowledged_losses() > 0 {
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
        if !unwatched.is_empty() {
            let text = format!(
                "It has not been looked at yet, or can't be, whether Redis has lost data of {}: {}.",
                tenants(&unwatched),
                names(&unwatched)
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
                "{losses} balances have lost mutations or forked, or may have, until they are acknowledged or their entries dropped{}: {}.",
                came_since(&lost),
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
                    "Redis's clock has jumped back: balances of {} are scheduled up to {furthest:.0} s ahead, further than a \
                     lease explains, until they are made due: {}.",
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
        for worker in self.workers.iter().chain(&self.shadows) {
            let stalled = |task: &&TaskView| task.state == TaskState::Stalled;
            for task in worker.background_tasks.iter().filter(stalled) {
                let end = task.last_end.as_ref().map_or_else(String::new, |end| format!(", it {end}"));
                let reason = format!(
                    "Background task {} of worker {} has made no progress since {}{end}.",
                    task.name, worker.name, task.last_progress_at
                );
                // Nobody misses a shadow.
                let is_missed = task.is_missed() && worker.mode != WorkerMode::Shadow;
                worse(if is_missed { Verdict::Degraded } else { Verdict::Healthy }, reason);
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
        // The verdict is about this moment: what is over is only reported.
        let (exposed, missed): (Vec<_>, Vec<_>) = missed.into_iter().partition(|row| self.is_exposed(row));
        if let Some(text) = exposed_too_long(exposure, exposed) {
            worse(Verdict::Behind, text);
        }
        for reason in self.redundancy() {
            worse(Verdict::Attention, reason);
        }
        if let Some(text) = without_mark(unmarked) {
            worse(Verdict::Attention, text);
        }
        if let Some(text) = values_gone(gone) {
            worse(Verdict::Attention, text);
        }
        let (forgotten, paused): (Vec<_>, Vec<_>) =
            paused.into_iter().partition(|row| self.is_forgotten(row));
        if let Some(first) = forgotten.iter().filter_map(|row| row.paused.as_ref()).min_by_key(|by| by.at_ms)
        {
            let note = first.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
            worse(
                Verdict::Attention,
                format!(
                    "{} paused for longer than {} (objectives.pause), the first by {} since {}, {} ago{note}: {}.",
                    are(&forgotten),
                    humantime::format_duration(self.objectives.pause),
                    first.by,
                    first.at,
                    humantime::format_duration(Duration::from_secs(first.seconds(self.at) as u64)),
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
                    "{} in quarantine until retried, dropped or acknowledged{}: {}.",
                    if entries == 1 { "1 balance is".to_owned() } else { format!("{entries} balances are") },
                    came_since(&quarantined),
                    names(&quarantined)
                ),
            );
        }
        let others = self.judge_rollout().into_iter().chain(self.judge_neighbours());
        let others = others.chain(self.judge_shadows()).chain(self.judge_queues());
        for (level, reason) in others.chain(self.judge_routing()) {
            worse(level, reason);
        }
        // What is worth knowing and needs no action.
        if let Some(left_out) = self.listed_by_workers {
            let without = match left_out {
                0 => String::new(),
                count => format!(", without the {count} that are not in the rollout"),
            };
            reasons.push(format!(
                "The tenant service doesn't answer this command: tenants are shown as live workers list them{without}."
            ));
        }
        reasons.extend(accepted(acknowledged));
        reasons.extend(missed_exposure(exposure, missed));
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
            reasons
                .push(format!("{values} values had expired before they were claimed: {}.", names(&expired)));
        }
        (verdict, reasons)
    }
    /// That Redis refuses writes, and what is known all the same.
    fn refusal(&self, error: &ScheduleError) -> String {
        let silent: Vec<_> = self.workers.iter().filter(|worker| !worker.live).collect();
        let last_seen = silent.iter().map(|worker| worker.seen_at.as_str()).max();
        let known = match (silent.len(), last_seen) {
            (1, Some(at)) => format!(" 1 worker can't report, and is shown as last reported at {at}."),
            (many, Some(at)) => {
                format!(" {many} workers can't report, and are shown as last reported, the latest at {at}.")
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

/// That there were acknowledged entries before those that need an acknowledgement now.
fn came_since(rows: &[&TenantRow]) -> String {
    let latest = rows.iter().filter_map(|row| row.acknowledged.as_ref()).min_by(|a, b| {
        // The one that was overtaken last.
        a.age_seconds.total_cmp(&b.age_seconds)
    });
    latest.map_or_else(String::new, |one| {
        format!(" (more came since {} acknowledged {} entries at {})", one.by, one.entries, one.at)
    })
}

/// Which entries have been acknowledged and still stand, in one sentence; `None` without any.
fn accepted(mut rows: Vec<&TenantRow>) -> Option<String> {
    rows.sort_by_key(|row| std::cmp::Reverse(row.quarantined));
    let (entries, losses) =
        rows.iter().fold((0, 0), |(entries, losses), row| (entries + row.quarantined, losses + row.losses));
    let age = |one: &&AcknowledgedView| one.age_seconds;
    let oldest =
        rows.iter().filter_map(|row| row.acknowledged.as_ref()).max_by(|a, b| age(a).total_cmp(&age(b)))?;
    let note = oldest.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
    let since = humantime::format_duration(Duration::from_secs(oldest.age_seconds as u64));
    Some(format!(
        "{entries} balances in quarantine, {losses} of them lost, are acknowledged, the first by {} {since} ago, at {}{note}: {}.",
        oldest.by,
        oldest.at,
        names(&rows)
    ))
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

/// Whose values are gone from Redis while their balances are scheduled, in one sentence; `None` without any.
fn values_gone(mut rows: Vec<&TenantRow>) -> Option<String> {
    rows.sort_by_key(|row| std::cmp::Reverse(row.values_gone));
    let count: u64 = rows.iter().map(|row| row.values_gone).sum();
    let since = rows.iter().filter_map(|row| row.values_gone_since.as_deref()).min()?;
    Some(format!(
        "{} gone from Redis, since {since}, and whether mutations are lost is not known before the ledger's operations are looked at: {}.",
        if count == 1 {
            "1 value of a scheduled balance is".to_owned()
        } else {
            format!("{count} values of scheduled balances are")
        },
        names(&rows)
    ))
}

fn p99(row: &TenantRow) -> f64 {
    row.exposure_p99_seconds.unwrap_or_default()
}

/// Which tenants miss the objective for the exposure at this moment, the longest exposed first.
fn exposed_too_long(objective: f64, mut rows: Vec<&TenantRow>) -> Option<String> {
    rows.sort_by(|a, b| b.exposure_age_seconds.total_cmp(&a.exposure_age_seconds));
    let first = rows.first()?;
    Some(format!(
        "{} exposed: the oldest balance that only Redis has has waited {:.1} s, p99 of the last hour {:.1} s (objectives.exposure \
         {objective} s): {}.",
        are(&rows),
        first.exposure_age_seconds,
        rows.iter().map(|row| p99(row)).fold(0.0, f64::max),
        names(&rows)
    ))
}

/// Which tenants have missed the objective in the last hour and no longer do.
fn missed_exposure(objective: f64, mut rows: Vec<&TenantRow>) -> Option<String> {
    rows.sort_by(|a, b| p99(b).total_cmp(&p99(a)));
    let first = rows.first()?;
    Some(format!(
        "{} missed the objective for the exposure in the last hour: p99 {:.1} s (objectives.exposure {objective} s): {}.",
        tenants(&rows),
        p99(first),
        names(&rows)
    ))
}

/// That it is not known whether Redis has lost data before, in one sentence; `None` without such tenants.
fn without_mark(open: Vec<(&VanishedView, &TenantRow)>) -> Option<String> {
    let (open, rows): (Vec<&VanishedView>, Vec<&TenantRow>) = open.into_iter().unzip();
    // One that is held says why.
    let first = open.iter().max_by_key(|one| one.phase.len())?;
    Some(format!(
        "Redis has no mark of an earlier worker ({}): it is new to balance-sync, or has lost all its data while no worker ran. Whether \
         data of {} was lost is not known yet, run `balance-sync audit` if it was in use before: {}; {}.",
        first.reason.as_str(),
        tenants(&rows),
        names(&rows),
        first.phase.trim_end_matches('.')
    ))
}

pub(super) fn tenants(rows: &[&TenantRow]) -> String {
    if rows.len() == 1 { "1 tenant".to_owned() } else { format!("{} tenants", rows.len()) }
}

fn are(rows: &[&TenantRow]) -> String {
    format!("{} {}", tenants(rows), if rows.len() == 1 { "is" } else { "are" })
}

pub(super) fn names(rows: &[&TenantRow]) -> String {
    listed(rows.iter().map(|row| row.id.as_str()))
}
