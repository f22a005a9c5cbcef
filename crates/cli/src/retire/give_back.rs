//! The steps in the middle: what is held goes back, rows are compared, quarantine and losses are cleared.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use balance_sync_schedule::{
    Retirement, Schedules,
    retire::{RawEntry, Returned},
};
use balance_sync_tenants::Tenant;
use futures::{StreamExt as _, TryStreamExt as _};

use super::{
    entries::{OfTenant, judge_all},
    export::{self, Export},
    fate::Fate,
    job::Job,
    plan::AT_ONCE,
    report::{Step, TenantReport, overtaken},
};
use crate::commands::verify::{TenantResult, Verification};

/// Scheduled values get so long to live, if less than half of it is left: the ledger's own worker comes to a tenant with its next API call.
const VALUES_LIVE: Duration = Duration::from_hours(24);

impl Job<'_> {
    /// Makes due what is held, and gives scheduled values a day.
    pub(super) async fn give_back(
        &self,
        retirement: &Retirement,
        reports: &mut [TenantReport],
        mut export: Option<&mut Export>,
    ) -> Step<()> {
        let ttl = u64::try_from(VALUES_LIVE.as_millis()).unwrap_or(u64::MAX);
        let walked: Vec<Option<Returned>> = futures::stream::iter(&self.schedules)
            .map(|schedules| walk(retirement, schedules, ttl, true))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        for (report, walked) in reports.iter_mut().zip(walked) {
            let Some(walked) = walked else { return Ok(Err(overtaken())) };
            report.given_back += walked.held;
            report.unlocked += walked.unlocked;
            report.kept_alive += walked.raised;
            self.note_gone(report, walked.gone, export.as_deref_mut())?;
        }
        Ok(Ok(()))
    }

    /// Remembers members without a value; with an export they are written down, each once.
    pub(super) fn note_gone(
        &self,
        report: &mut TenantReport,
        gone: BTreeSet<Vec<u8>>,
        export: Option<&mut Export>,
    ) -> anyhow::Result<()> {
        let new: Vec<Vec<u8>> = gone.into_iter().filter(|member| !report.gone.contains(member)).collect();
        if let Some(export) = export {
            for page in new.chunks(100) {
                let lines: Vec<_> =
                    page.iter().map(|member| export::line_of_gone(&report.tenant, member)).collect();
                export.add(&lines)?;
            }
        }
        report.gone.extend(new);
        report.without_value = report.gone.len() as u64;
        Ok(())
    }

    pub(super) async fn clear_entries(
        &self,
        retirement: &Retirement,
        tenant: &Tenant,
        schedules: &Schedules,
        export: Option<&mut Export>,
        report: &mut TenantReport,
    ) -> Step<()> {
        let judged: OfTenant = match judge_all(&self.verifier, &self.link, schedules, tenant).await {
            Ok(judged) => judged,
            Err(error) => {
                report.unknown.push(format!("{error:#}"));
                return Ok(Ok(()));
            }
        };
        let all: usize = judged.iter().map(|(_, entries)| entries.len()).sum();
        if all > 0 && !self.args.acknowledge {
            report.open.push(format!("{all} entries have come into quarantine or losses meanwhile"));
            return Ok(Ok(()));
        }
        let exports = export.is_some();
        if let Some(export) = export {
            for (_, entries) in &judged {
                for page in entries.chunks(100) {
                    let lines: Vec<_> = page
                        .iter()
                        .map(|one| {
                            let fate = match one.fate {
                                Fate::Settled => "settled",
                                Fate::Scheduled => "scheduled",
                                Fate::Kept(why) => why,
                            };
                            export::line(tenant.label(), &one.entry, one.value.as_deref(), one.bytes, fate)
                        })
                        .collect();
                    // Only what is on the disk is removed.
                    export.add(&lines)?;
                }
            }
        }
        let (mut left, mut changed) = (0, 0);
        for (space, entries) in &judged {
            let of = |wanted: fn(&Fate) -> bool, schedules: bool| -> Vec<(&RawEntry, bool)> {
                let of_fate = entries.iter().filter(|one| wanted(&one.fate));
                of_fate.map(|one| (&one.entry, schedules)).collect()
            };
            let mut kept = of(|fate| matches!(fate, Fate::Kept(_)), false);
            if !exports {
                left += kept.len();
                kept.clear();
            }
            for (entries, number) in [
                (of(|fate| matches!(fate, Fate::Settled), false), &mut report.entries_settled),
                (of(|fate| matches!(fate, Fate::Scheduled), true), &mut report.entries_scheduled),
                (kept, &mut report.entries_exported),
            ] {
                let Some(cleared) = retirement.clear(space, &entries).await? else {
                    return Ok(Err(overtaken()));
                };
                *number += cleared.cleared;
                changed += cleared.changed;
            }
        }
        if changed > 0 {
            report.open.push(format!("{changed} entries changed while they were read, or lost their values"));
        }
        if left > 0 {
            report.open.push(format!("{left} entries would be lost: --export FILE writes them down"));
        }
        Ok(Ok(()))
    }

    pub(super) fn take_comparison(&self, compared: &Verification, reports: &mut [TenantReport]) {
        let results: BTreeMap<&str, &TenantResult> =
            compared.tenants.iter().map(|result| (result.tenant.as_str(), result)).collect();
        let failed: BTreeMap<&str, &str> =
            compared.failed.iter().map(|failed| (failed.tenant.as_str(), failed.error.as_str())).collect();
        for report in reports {
            let Some(result) = results.get(report.tenant.as_str()) else {
                let why = failed.get(report.tenant.as_str()).copied().unwrap_or("it is no longer listed");
                report.unknown.push(format!("its rows could not be compared: {why}"));
                continue;
            };
            report.balances = result.balances;
            report.behind = result.behind;
            report.scheduled_again = result.unscheduled;
            report.made_due = result.distant;
            report.differing = result.missing + result.ahead + result.different + result.unreadable;
            if report.differing > 0 && !self.args.acknowledge {
                report.open.push(format!(
                    "{} balances differ from their rows ({} without a row, {} older than it, {} with other amounts, {} unreadable), which no worker \
                     would write: `balance-sync verify --tenant {}` names them",
                    report.differing, result.missing, result.ahead, result.different, result.unreadable, report.tenant
                ));
            }
        }
    }
}

/// Walks over all schedules of a tenant.
pub(super) async fn walk(
    retirement: &Retirement,
    schedules: &Schedules,
    ttl_ms: u64,
    act: bool,
) -> anyhow::Result<Option<Returned>> {
    let mut sum = Returned::default();
    for schedule in schedules.iter() {
        match retirement.give_back(schedule.space(), ttl_ms, act).await? {
            Some(walked) => sum += walked,
            None => return Ok(None),
        }
    }
    Ok(Some(sum))
}
