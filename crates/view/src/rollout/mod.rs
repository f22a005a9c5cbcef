//! The rollout as operators change and judge it: which tenants this fleet serves, stage by stage, and whether to take more.
//!
//! A stage is the time since a change. What happened in it is recorded by the worker that records for the report (`stage`).

pub(crate) mod stage;

use std::{collections::HashMap, sync::Arc};

use balance_sync_engine::rollout::{Advice, Change, Figures, Pattern, Selection, Share, Threshold, advise};
use balance_sync_fleet::status::{Condition, lag_quantile};
use balance_sync_schedule::{
    Reports, Rollouts, ScheduleError,
    rollout::{Changed, RolloutChange, StoredRollout},
};
use serde::Serialize;

use self::stage::{RECORD, Stage};
use crate::{
    reader::{FleetRollout, FleetView},
    rows::{StateView, TenantRow, VanishedView, at, listed},
};

/// Stages that are shown.
pub const STAGES: usize = 20;
/// How long after a change a tenant may be without a worker, and behind, in seconds.
const SERVED_WITHIN: f64 = stage::CAUGHT_UP;

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Another selection.
    Change(Change),
    /// That of the configuration.
    Reset,
}

impl Wanted {
    /// The names, for messages.
    pub const NAMES: &'static str = "set, add, remove, exclude, all, none, reset";

    /// Reads what is wanted: a name, a share for `set`, and ids and globs for `add`, `remove` and `exclude`.
    ///
    /// # Errors
    /// What is wrong and allowed.
    pub fn parse(what: &str, share: Option<&str>, tenants: &[String]) -> Result<Self, String> {
        let patterns = || -> Result<Vec<Pattern>, String> {
            if tenants.is_empty() {
                return Err("allowed: at least one tenant id or glob".to_owned());
            }
            tenants.iter().map(|text| Pattern::parse(text)).collect()
        };
        let alone = |wanted: Self| match (share, tenants) {
            (None, []) => Ok(wanted),
            _ => Err(format!("{what} takes neither a share nor tenants")),
        };
        let named = |change: fn(Vec<Pattern>) -> Change| match share {
            None => patterns().map(|patterns| Self::Change(change(patterns))),
            Some(_) => Err(format!("{what} takes no share")),
        };
        match what {
            "set" if tenants.is_empty() => {
                let share = share.ok_or("set needs a share, such as 5%")?;
                Ok(Self::Change(Change::Share(Share::parse(share)?)))
            }
            "set" => Err("set takes no tenants".to_owned()),
            "add" => named(Change::Add),
            "remove" => named(Change::Remove),
            "exclude" => named(Change::Exclude),
            "all" => alone(Self::Change(Change::All)),
            "none" => alone(Self::Change(Change::None)),
            "reset" => alone(Self::Reset),
            _ => Err(format!("allowed: {}", Self::NAMES)),
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        /// Longest text, in characters: it stands in a log.
        const LONGEST: usize = 200;
        match self {
            Self::Change(change) => {
                let text = change.to_string();
                if text.chars().count() <= LONGEST {
                    return f.write_str(&text);
                }
                write!(f, "{}…", text.chars().take(LONGEST).collect::<String>())
            }
            Self::Reset => f.write_str("reset"),
        }
    }
}

/// Why a rollout was not changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotChanged {
    /// It can't be.
    #[error("{0}")]
    Refused(String),
    /// What is stored isn't understood, and the change would build on it.
    #[error(
        "what is stored can't be read, so nothing can be built on it: {0}; `all`, `none` and `reset` replace it"
    )]
    Unreadable(String),
    /// Workers that don't know it would go on with the tenants that it leaves out.
    #[error(
        "workers of an earlier release know no rollout, and would serve the tenants that it leaves out as well: {0}. Upgrade them \
         first, or drain them (`balance-sync workers drain`)"
    )]
    Unaware(String),
    /// Somebody else has changed it at the same time.
    #[error("somebody else has changed it meanwhile, and revision {0} is stored: look at it first")]
    Overtaken(String),
    /// Redis could not be asked; whether it was changed is unknown.
    #[error(transparent)]
    Redis(#[from] ScheduleError),
}

/// A change that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Done {
    /// The action's id.
    pub action_id: String,
    /// What was changed, in words.
    pub change: String,
    /// The revision that is stored now.
    pub revision: u64,
    /// What is selected now, in words.
    pub selection: String,
}

/// A change as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChangeView {
    /// The revision that it made.
    pub revision: u64,
    /// When; `None` = not known.
    pub at: Option<String>,
    /// What was changed.
    pub change: Option<String>,
    /// What was selected then, in words.
    pub selection: String,
    /// Who.
    pub by: Option<String>,
    /// Why.
    pub note: Option<String>,
}

/// A stage as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageView {
    /// Its revision; 0 = that of the configuration, before anything was changed.
    pub revision: u64,
    /// The change with which it began; `None` = it was configured so.
    pub change: Option<String>,
    /// Who changed it.
    pub by: Option<String>,
    /// When it began; `None` = not known.
    pub at: Option<String>,
    /// Why.
    pub note: Option<String>,
    /// What is selected, in words; `None` = not known.
    pub selection: Option<String>,
    /// Tenants in it, of those that there are today; `None` = not known.
    pub tenants: Option<usize>,
    /// For how long it was watched; `None` = not at all, and what follows isn't known.
    pub observed_seconds: Option<f64>,
    /// Mutations written.
    pub written: Option<u64>,
    /// From mutation to row: the median.
    pub lag_p50_seconds: Option<f64>,
    /// What 99 of 100 stayed within.
    pub lag_p99_seconds: Option<f64>,
    /// For how long some tenant was behind.
    pub late_seconds: Option<f64>,
    /// Rows that lack at this moment what should have been written; of the present stage.
    pub drift: Option<u64>,
    /// Balances newly listed as lost.
    pub losses: Option<u64>,
    /// Times a fork was found.
    pub forks: Option<u64>,
    /// Balances that came into quarantine, lost ones aside.
    pub quarantined: Option<u64>,
}

/// The rollout, and what to do with it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RolloutReport {
    /// Widen, wait or stop.
    pub advice: Advice,
    /// Why, in a sentence.
    pub sentence: String,
    /// What is in force.
    #[serde(flatten)]
    pub now: FleetRollout,
    /// The stages, the present one first.
    pub stages: Vec<StageView>,
}

/// Changes the rollout, and reports on it.
#[derive(Debug, Clone)]
pub struct RolloutDesk {
    rollouts: Rollouts,
    reports: Reports,
    configured: Arc<Selection>,
}

impl RolloutDesk {
    /// For a fleet that serves these tenants unless operators have set it otherwise.
    #[must_use]
    pub fn new(rollouts: Rollouts, reports: Reports, configured: Arc<Selection>) -> Self {
        Self { rollouts, reports, configured }
    }

    /// Changes which tenants are served, for the whole fleet.
    ///
    /// # Errors
    /// Why it wasn't changed.
    pub async fn change(
        &self,
        view: &FleetView,
        wanted: &Wanted,
        by: &str,
        note: Option<&str>,
    ) -> Result<Done, NotChanged> {
        let stored = self.rollouts.read().await?;
        let selection = match wanted {
            Wanted::Reset => None,
            Wanted::Change(change) => {
                let before = match stored.as_ref().map(|stored| &stored.selection) {
                    // What a change builds on must be what the workers do.
                    None | Some(Ok(None)) => view.configured_selection(&self.configured).map_err(|why| {
                        NotChanged::Refused(format!(
                            "nothing is stored, and {why}: begin with `none` or `all`"
                        ))
                    }),
                    Some(Ok(Some(selection))) => Ok(selection.clone()),
                    Some(Err(why)) => Err(NotChanged::Unreadable(why.clone())),
                };
                let before = match change {
                    // Nothing of what was before is needed.
                    Change::All | Change::None => before.unwrap_or_default(),
                    _ => before?,
                };
                Some(before.after(change).map_err(NotChanged::Refused)?)
            }
        };
        let unaware = view.unaware_of_rollout();
        let leaves_none_out = match &selection {
            Some(selection) => selection.is_everything(),
            None => view.configured_selection(&self.configured).is_ok_and(|it| it.is_everything()),
        };
        if !unaware.is_empty() && !leaves_none_out {
            return Err(NotChanged::Unaware(listed(unaware.into_iter())));
        }
        let text = wanted.to_string();
        let change = RolloutChange {
            expected: stored.as_ref().map_or("", |stored| &stored.revision),
            selection: selection.as_ref(),
            change: &text,
            by,
            note: note.unwrap_or_default(),
        };
        match self.rollouts.change(&change).await? {
            Changed::Stored { action, revision } => {
                tracing::info!(change = text, by, id = action, revision, "rollout changed by an operator");
                let revision = revision.parse().unwrap_or_default();
                let configured = || view.configured_selection(&self.configured);
                let selection = selection.map_or_else(configured, Ok);
                let selection =
                    selection.map_or_else(|_| "as each worker is configured".to_owned(), |it| it.to_string());
                Ok(Done { action_id: action, change: text, revision, selection })
            }
            Changed::Overtaken(revision) => Err(NotChanged::Overtaken(revision)),
        }
    }

    /// The last changes, the newest first.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn history(&self) -> Result<Vec<ChangeView>, ScheduleError> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let changes = self.rollouts.history().await?.into_iter().map(|stored| ChangeView {
            revision: stored.number(),
            at: Some(stored.at).filter(|at| *at > 0.0).map(at),
            change: some(&stored.change),
            selection: match &stored.selection {
                Ok(Some(selection)) => selection.to_string(),
                Ok(None) => "as configured".to_owned(),
                Err(why) => format!("can't be read: {why}"),
            },
            by: some(&stored.by),
            note: some(&stored.note),
        });
        Ok(changes.collect())
    }

    /// The rollout with its stages, and what to do with it.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn report(&self, view: &FleetView) -> Result<RolloutReport, ScheduleError> {
        let history = self.rollouts.history().await?;
        let recorded = self.reports.read(RECORD).await?;
        Ok(report(view, &history, &recorded))
    }
}

/// What is reported. Pure.
fn report(view: &FleetView, history: &[StoredRollout], recorded: &HashMap<String, String>) -> RolloutReport {
    let present = view.rollout.as_ref().map(|rollout| rollout.revision());
    let figures = figures(view, present.and_then(|revision| Stage::read(recorded, revision)).as_ref());
    let threshold = Threshold {
        observed: view.objectives.rollout_time,
        mutations: view.objectives.rollout_mutations,
        lag: view.objectives.freshness,
    };
    let (advice, why) = match (&view.rollout, &view.redis_error) {
        (Some(rollout), None) => match view.unaware_of_rollout() {
            unaware if unaware.is_empty() || rollout.selection.is_everything() => {
                advise(&figures, &threshold)
            }
            unaware => (
                Advice::Stop,
                format!(
                    "workers of an earlier release serve tenants that are not in it as well: {}",
                    listed(unaware.into_iter())
                ),
            ),
        },
        (_, Some(_)) => (Advice::Wait, "Redis can't be asked".to_owned()),
        (None, None) => (Advice::Wait, "it isn't known which tenants are in it".to_owned()),
    };
    let mut stages: Vec<StageView> =
        history.iter().take(STAGES).map(|stored| stage_view(view, Some(stored), recorded)).collect();
    if stages.len() < STAGES && stages.last().is_none_or(|first| first.revision == 1) {
        stages.push(stage_view(view, None, recorded));
    }
    if let Some(first) = stages.first_mut().filter(|stage| Some(stage.revision) == present) {
        first.drift = figures.drift;
    }
    let name = advice.as_str();
    let sentence = format!("{}{}: {why}.", name[..1].to_uppercase(), &name[1..]);
    RolloutReport { advice, sentence, now: view.fleet_rollout(), stages }
}

fn stage_view(
    view: &FleetView,
    stored: Option<&StoredRollout>,
    recorded: &HashMap<String, String>,
) -> StageView {
    let revision = stored.map_or(0, StoredRollout::number);
    let stage = Stage::read(recorded, revision);
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let selection = match stored.map(|stored| &stored.selection) {
        Some(Ok(Some(selection))) => Some(selection),
        // That of the configuration may have been another one then.
        _ => view
            .rollout
            .as_ref()
            .filter(|rollout| rollout.revision() == revision)
            .map(|rollout| &rollout.selection),
    };
    let known = stage.as_ref();
    StageView {
        revision,
        change: stored.and_then(|stored| some(&stored.change)),
        by: stored.and_then(|stored| some(&stored.by)),
        at: stored.map(|stored| stored.at).or(known.map(|stage| stage.began)).filter(|at| *at > 0.0).map(at),
        note: stored.and_then(|stored| some(&stored.note)),
        selection: selection.map(ToString::to_string),
        tenants: selection
            .map(|selection| view.tenants.iter().filter(|row| selection.selects(&row.id)).count()),
        observed_seconds: known.map(|stage| stage.seconds),
        written: known.map(|stage| stage.written),
        lag_p50_seconds: known.and_then(|stage| lag_quantile(&stage.lags, 0.5)),
        lag_p99_seconds: known.and_then(|stage| lag_quantile(&stage.lags, 0.99)),
        late_seconds: known.map(|stage| stage.late),
        drift: None,
        losses: known.map(|stage| stage.lost),
        forks: known.map(|stage| stage.forked),
        quarantined: known.map(|stage| stage.quarantined),
    }
}

/// What is known of the present stage.
fn figures(view: &FleetView, stage: Option<&Stage>) -> Figures {
    let since = view.rollout.as_ref().and_then(|rollout| Some(rollout.stored.as_ref()?.at)).unwrap_or(0.0);
    let is_new = view.at - since < SERVED_WITHIN;
    let in_it =
        |row: &&TenantRow| view.rollout.as_ref().is_some_and(|rollout| rollout.selection.selects(&row.id));
    let mut figures = Figures {
        total: (view.listed && view.listed_by_workers.is_none() && view.unknown_tenants == 0)
            .then_some(view.tenants.len() as u64),
        drift: Some(0),
        ..Figures::default()
    };
    for row in view.tenants.iter().filter(in_it) {
        figures.tenants += 1;
        let has_lost = row.vanished.as_ref().is_some_and(|open| !VanishedView::is_notice(open));
        let is_unserved = row.state == StateView::Unserved;
        let is_known = row.sampled && row.watched && !matches!(row.state, StateView::Other(_));
        let is_behind = row.is_behind(view.objective_seconds);
        // Workers begin with it, and what they find there was left by another worker.
        if is_new && (is_unserved || is_behind) {
            figures.unknown += 1;
        } else if row.state.condition() == Condition::Failing || has_lost {
            figures.failing += 1;
        } else if !is_known {
            figures.unknown += 1;
        }
        figures.open_losses += row.unacknowledged_losses();
        let behind = if is_behind && !is_new { row.due } else { 0 };
        let found = row.shadow.as_ref().map_or(0, |found| found.left_behind + found.lost);
        figures.drift = figures.drift.map(|sum| sum + behind + found);
    }
    if let Some(stage) = stage {
        figures.observed = Some(std::time::Duration::from_secs_f64(stage.seconds.clamp(0.0, 1e12)));
        figures.mutations = Some(stage.written);
        figures.lag_p99 = lag_quantile(&stage.lags, 0.99);
        figures.losses = Some(stage.lost);
        figures.forks = Some(stage.forked);
        figures.quarantined = Some(stage.quarantined);
    }
    figures
}

#[cfg(test)]
mod tests;
