//! What would be done, and what speaks against it. Changes nothing.

use std::collections::BTreeMap;

use balance_sync_engine::rollout::Cause;
use balance_sync_fleet::status::WorkerMode;
use balance_sync_schedule::{Controls, Recoveries, Retirement, Rollouts, Vanished, retire::entries};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use super::{
    entries::{OfTenant, judge_all},
    fate::Fate,
    give_back::walk,
    job::Job,
    report::valueless,
};

/// Tenants read at the same time.
pub(super) const AT_ONCE: usize = 8;

/// What speaks against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Objection {
    /// Which tenant; `None` = the fleet.
    pub tenant: Option<String>,
    /// A short name of it.
    pub what: &'static str,
    /// In words.
    pub text: String,
    /// Whether --acknowledge overrules it.
    pub can_be_acknowledged: bool,
}

/// Entries by what becomes of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Fates {
    pub scheduled: u64,
    pub settled: u64,
    pub kept: u64,
}

impl Fates {
    pub(super) fn of(entries: &OfTenant) -> Self {
        let mut sum = Self::default();
        for one in entries.iter().flat_map(|(_, entries)| entries) {
            match one.fate {
                Fate::Scheduled => sum.scheduled += 1,
                Fate::Settled => sum.settled += 1,
                Fate::Kept(_) => sum.kept += 1,
            }
        }
        sum
    }

    pub(crate) fn total(self) -> u64 {
        self.scheduled + self.settled + self.kept
    }
}

/// One tenant of a plan.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PlannedTenant {
    pub tenant: String,
    /// Members that are due.
    pub due: u64,
    /// Members that are claimed or put off.
    pub leased: u64,
    /// Entries of quarantine and losses; `None` = they can't be judged.
    pub entries: Option<Fates>,
}

/// What would be done.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    pub tenants: Vec<PlannedTenant>,
    /// Live workers that have to leave.
    pub workers: Vec<String>,
    /// What speaks against it.
    pub objections: Vec<Objection>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// Something could not be determined; a note says what.
    pub unknown: bool,
}

impl Plan {
    /// What keeps it from being done, acknowledged or not.
    pub(crate) fn against(&self, acknowledged: bool) -> Vec<&Objection> {
        self.objections.iter().filter(|one| !(acknowledged && one.can_be_acknowledged)).collect()
    }
}

/// Reads all that a plan needs.
///
/// # Errors
/// When Redis can't be asked.
pub(super) async fn plan(job: &Job<'_>) -> anyhow::Result<Plan> {
    let view = job.reader.view().await;
    if let Some(error) = &view.redis_error {
        anyhow::bail!("Redis can't be asked: {error}");
    }
    let paused = Controls::new(job.link.clone()).paused().await?;
    let open: BTreeMap<String, String> =
        Vanished::new(job.link.clone(), "retire").open().await?.into_iter().collect();
    let recoveries = Recoveries::new(job.link.clone());
    // Only counts, under whatever rollout there is.
    let counts = Retirement::new(job.link.clone(), String::new());
    let (mut objections, mut notes) = (Vec::new(), Vec::new());
    let writers = || view.workers.iter().filter(|worker| worker.mode != WorkerMode::Shadow);
    let workers: Vec<String> = writers()
        .map(|worker| worker.name.clone())
        .chain(view.foreign_workers.iter().map(|worker| worker.name.clone()))
        .collect();
    for worker in writers().filter(|worker| worker.rollout.is_none()) {
        objections.push(Objection {
            tenant: None,
            what: "earlier_release",
            text: format!(
                "worker {} is of a release ({}) that serves all tenants whatever the rollout says: end it first",
                worker.name, worker.version
            ),
            can_be_acknowledged: false,
        });
    }
    for name in &view.unreadable_workers {
        objections.push(Objection {
            tenant: None,
            what: "unreadable_worker",
            text: format!(
                "what worker {name} reports can't be read, so it isn't known what it serves: end it first"
            ),
            can_be_acknowledged: false,
        });
    }
    if workers.is_empty() && view.unreadable_workers.is_empty() {
        notes.push(
            "no worker is live: what dead ones have claimed is made due, and one that starts later serves none of these tenants"
                .to_owned(),
        );
    }
    for shadow in &view.shadows {
        notes.push(format!("shadow {} goes on looking, and claims nothing", shadow.name));
    }
    let stored = Rollouts::new(job.link.clone()).read().await?;
    let planned: Vec<(PlannedTenant, Vec<Objection>, Option<String>)> =
        futures::stream::iter(job.tenants.iter().zip(&job.schedules))
            .map(|(tenant, schedules)| {
                let (paused, open, recoveries, view, stored) = (&paused, &open, &recoveries, &view, &stored);
                let counts = &counts;
                async move {
                    let label = tenant.label();
                    let (mut against, mut note) = (Vec::new(), None);
                    let mut object = |what, can_be_acknowledged, text: String| {
                        against.push(Objection { tenant: Some(label.to_owned()), what, text, can_be_acknowledged });
                    };
                    let backlog = schedules.backlog().await?;
                    let judged = match judge_all(&job.verifier, &job.link, schedules, tenant).await {
                        Ok(entries) => Some(Fates::of(&entries)),
                        Err(error) => {
                            note = Some(format!("tenant {label}: {error:#}"));
                            let mut number = 0;
                            for schedule in schedules.iter() {
                                number += entries(schedule).await?.len();
                            }
                            if number > 0 {
                                object("entries", true, format!(
                                    "{number} balances are in quarantine, lost or forked, and what becomes of them can't be judged without its Postgres"
                                ));
                            }
                            None
                        }
                    };
                    if let Some(fates) = judged.filter(|fates| fates.total() > 0) {
                        object("entries", true, format!(
                            "{} balances are in quarantine, lost or forked, which the ledger's own worker doesn't know: {} would be \
                             scheduled for it, {} are settled, {} would be written by no worker",
                            fates.total(), fates.scheduled, fates.settled, fates.kept
                        ));
                        if fates.kept > 0 && job.args.export.is_none() {
                            object("export_needed", false, format!(
                                "{} entries would be lost: --export FILE writes them down",
                                fates.kept
                            ));
                        }
                    }
                    let gone = match walk(counts, schedules, 0, false).await? {
                        Some(walked) => walked.gone.len(),
                        None => 0,
                    };
                    if gone > 0 {
                        object("valueless", true, valueless(gone));
                    }
                    if let Some(condition) = open.get(label) {
                        let record: serde_json::Value = serde_json::from_str(condition).unwrap_or_default();
                        let field = |name: &str| crate::audit::shown(record[name].as_str().unwrap_or("unknown"));
                        object("open_condition", true, format!(
                            "Redis has lost data of it ({}: {}), and what follows is not settled yet",
                            field("reason"), field("detail")
                        ));
                    }
                    if schedules.iter().any(|schedule| paused.contains_key(schedule.space().schedule())) {
                        object("paused", true, "it is paused, and the ledger's own worker knows no pause".to_owned());
                    }
                    let row = view.find(label).map(|(row, _)| row);
                    if row.and_then(|row| row.neighbour.as_ref()).is_some_and(|neighbour| neighbour.deadly_mix) {
                        object("deadly_mix", true, "the ledger's own worker is of a release up to 4.0 next to writers of 4.1 or later: it \
                             removes their balances from the schedule unwritten".to_owned());
                    }
                    if recoveries.is_leased(label).await? {
                        object("recovery", false, "a recovery is under way: wait for its end, or stop it".to_owned());
                    }
                    let is_out = stored.as_ref().is_some_and(|stored| {
                        matches!(&stored.selection, Ok(Some(selection)) if selection.cause(label) == Cause::Excluded)
                    });
                    if is_out && note.is_none() && !job.args.all {
                        note = Some(format!("tenant {label} is excluded already: goes on from there"));
                    }
                    let tenant = PlannedTenant { tenant: label.to_owned(), due: backlog.due, leased: backlog.leased, entries: judged };
                    anyhow::Ok((tenant, against, note))
                }
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
    let mut tenants = Vec::with_capacity(planned.len());
    for (tenant, against, note) in planned {
        tenants.push(tenant);
        objections.extend(against);
        notes.extend(note);
    }
    let unknown = tenants.iter().any(|tenant| tenant.entries.is_none());
    Ok(Plan { tenants, workers, objections, notes, unknown })
}
