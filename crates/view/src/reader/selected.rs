//! Which tenants this fleet serves.

use std::collections::BTreeSet;

use balance_sync_engine::rollout::{Pattern, Selection};
use balance_sync_fleet::status::{Rollout, WorkerMode};
use balance_sync_schedule::rollout::decode;
use serde::Serialize;

use super::FleetView;
use crate::rows::{StateView, TenantRow, at};

/// Which tenants are served.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetRollout {
    /// Tenants in it; `None` = not known.
    pub selected: Option<usize>,
    /// All tenants.
    pub total: usize,
    /// The share of the tenants that are on no list, such as `5%`.
    pub share: Option<String>,
    /// Ids and globs that are included whatever the share.
    pub include: Vec<String>,
    /// Ids and globs that are excluded whatever else.
    pub exclude: Vec<String>,
    /// What is stored in Redis; 0 = nothing, the configuration holds.
    pub revision: Option<u64>,
    /// Whether it is the selection of the configuration.
    pub is_configured: bool,
    /// Who changed it last; `None` = nobody.
    pub by: Option<String>,
    /// When.
    pub at: Option<String>,
    /// Why.
    pub note: Option<String>,
    /// Why what is stored isn't in force.
    pub problem: Option<String>,
    /// The longest that a due balance of a tenant outside has waited; `None` = there is none, or it isn't known.
    pub outside_oldest_due_age_seconds: Option<f64>,
}

/// What the configurations of the workers select, each as it is published; `own` where there are no workers. A command may have another
/// configuration than they.
///
/// # Errors
/// In words, where they don't agree or it isn't known.
pub(super) fn agreed<'a>(
    configured: impl Iterator<Item = &'a str>,
    own: &Selection,
) -> Result<Selection, String> {
    let all: BTreeSet<&str> = configured.collect();
    match all.len() {
        0 => Ok(own.clone()),
        1 => match all.first().map(|text| decode(text)) {
            Some(Ok(Some(selection))) => Ok(selection),
            _ => Err("what the configuration of the workers selects isn't known".to_owned()),
        },
        _ => Err("the configurations of the workers differ in tenants.include, exclude and share".to_owned()),
    }
}

impl FleetView {
    /// What the configurations of the workers select; `own` where there are no workers.
    ///
    /// # Errors
    /// In words, where they don't agree or it isn't known.
    pub fn configured_selection(&self, own: &Selection) -> Result<Selection, String> {
        let writers = self.workers.iter().filter(|worker| worker.live && worker.mode != WorkerMode::Shadow);
        agreed(
            writers.filter_map(|worker| worker.rollout.as_ref()).map(|rollout| rollout.configured.as_str()),
            own,
        )
    }

    /// Live workers of an earlier release that know no rollout: they serve every tenant. Those whose reports can't be read may.
    pub(crate) fn unaware_of_rollout(&self) -> Vec<&str> {
        let writers = self.workers.iter().filter(|worker| {
            worker.live && !worker.draining && worker.mode != WorkerMode::Shadow && worker.rollout.is_none()
        });
        writers.map(|worker| &worker.name).chain(&self.unreadable_workers).map(String::as_str).collect()
    }

    /// Tenants in the rollout; `None` = not known.
    #[must_use]
    pub fn selected(&self) -> Option<usize> {
        let rollout = self.rollout.as_ref()?;
        Some(self.tenants.iter().filter(|row| rollout.selection.selects(&row.id)).count())
    }

    /// Which tenants are served.
    #[must_use]
    pub fn fleet_rollout(&self) -> FleetRollout {
        let rollout = self.rollout.as_deref();
        let texts =
            |list: &BTreeSet<Pattern>| list.iter().map(|pattern| pattern.as_str().to_owned()).collect();
        let stored = rollout.and_then(|rollout| rollout.stored.as_ref());
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        FleetRollout {
            selected: self.selected(),
            total: self.tenants.len() + self.unknown_tenants,
            share: rollout.map(|rollout| rollout.selection.share().to_string()),
            include: rollout.map(|rollout| texts(rollout.selection.include())).unwrap_or_default(),
            exclude: rollout.map(|rollout| texts(rollout.selection.exclude())).unwrap_or_default(),
            revision: rollout.map(Rollout::revision),
            is_configured: rollout.is_some_and(Rollout::is_configured),
            by: stored.and_then(|stored| some(&stored.by)),
            at: stored.filter(|stored| stored.at > 0.0).map(|stored| at(stored.at)),
            note: stored.and_then(|stored| some(&stored.note)),
            problem: self.rollout_problem.clone(),
            outside_oldest_due_age_seconds: self
                .outside()
                .filter(|row| row.sampled)
                .map(|row| row.oldest_due_age_seconds)
                .reduce(f64::max),
        }
    }

    fn outside(&self) -> impl Iterator<Item = &TenantRow> {
        self.tenants.iter().filter(|row| row.state == StateView::NotInRollout)
    }
}
