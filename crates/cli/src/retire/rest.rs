//! The last steps: what only we understand is removed, that of the tenants first, then that of the fleet.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use balance_sync_schedule::{
    Retirement, Timelines, read_values,
    retire::{OwnKey, entries, kept_because, own_keys, process_of, timeline_of},
};

use super::{
    export::Export,
    give_back::walk,
    job::{Job, LOOK_EVERY},
    report::{Kept, State, Step, TenantReport, overtaken},
};
use crate::{terminal::count, wiring};

/// How long names of processes that have ended are waited for.
const NAMES_LAPSE_WITHIN: Duration = Duration::from_secs(10);
/// Keys that are named.
const SHOWN: usize = 5;

/// What is left beside the tenants.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// Nothing of the tenants is.
    pub(super) is_clean: bool,
    /// Quarantine and losses of tenants that are not among them.
    entries: Vec<String>,
}

impl Job<'_> {
    /// Removes what is left of ours of the tenants.
    pub(super) async fn sweep(&self, retirement: &Retirement, reports: &mut [TenantReport]) -> Step<()> {
        let keys = own_keys(&self.link).await?;
        let timelines = self.timelines(&keys);
        let locks = self.locks(&keys);
        for ((tenant, schedules), (n, report)) in
            self.tenants.iter().zip(&self.schedules).zip(reports.iter_mut().enumerate())
        {
            let spaces: Vec<_> = schedules.iter().map(|schedule| schedule.space().clone()).collect();
            let of_tenant = timelines.get(tenant.label()).map_or(&[][..], Vec::as_slice);
            let spares = !self.args.acknowledge;
            let removed = retirement.forget(tenant.label(), &spaces, of_tenant, spares, true).await?;
            let Some(removed) = removed else { return Ok(Err(overtaken())) };
            report.records_removed += removed.records;
            let ours = locks.get(&n).map_or(&[][..], Vec::as_slice);
            let Some(unlocked) = retirement.remove_locks(ours).await? else { return Ok(Err(overtaken())) };
            report.unlocked += unlocked;
        }
        Ok(Ok(()))
    }

    /// Looks whether anything of ours is left of the tenants. What is held is given back. With `is_last` it is reported as open.
    pub(super) async fn look_for_rest(
        &self,
        retirement: &Retirement,
        reports: &mut [TenantReport],
        mut export: Option<&mut Export>,
        is_last: bool,
    ) -> Step<Others> {
        let keys = own_keys(&self.link).await?;
        let (timelines, locks) = (self.timelines(&keys), self.locks(&keys));
        let mut is_clean = true;
        for ((tenant, schedules), (n, report)) in
            self.tenants.iter().zip(&self.schedules).zip(reports.iter_mut().enumerate())
        {
            let Some(mut walked) = walk(retirement, schedules, 0, false).await? else {
                return Ok(Err(overtaken()));
            };
            let held = walked.held;
            if walked.held + walked.unlocked > 0 {
                // What a worker had under way as it left.
                let Some(again) = walk(retirement, schedules, 0, true).await? else {
                    return Ok(Err(overtaken()));
                };
                report.given_back += again.held;
                report.unlocked += again.unlocked;
                walked = again;
            }
            (report.scheduled, report.ahead) = (walked.members, walked.ahead);
            self.note_gone(report, walked.gone, export.as_deref_mut())?;
            let spaces: Vec<_> = schedules.iter().map(|schedule| schedule.space().clone()).collect();
            let of_tenant = timelines.get(tenant.label()).map_or(&[][..], Vec::as_slice);
            let spares = !self.args.acknowledge;
            let rest = retirement.forget(tenant.label(), &spaces, of_tenant, spares, false).await?;
            let Some(rest) = rest else { return Ok(Err(overtaken())) };
            let records = rest.records;
            report.spared = rest;
            let held_locks = self.ours_of(locks.get(&n)).await?;
            is_clean &= held == 0 && records == 0 && held_locks == 0;
            if !is_last {
                continue;
            }
            for (number, what) in [
                (held, "members are claimed again and again by a worker of ours"),
                (records, "records of ours come back: a worker writes them"),
                (held_locks, "locks of ours are left"),
            ] {
                if number > 0 {
                    report.open.push(format!("{number} {what}"));
                }
            }
        }
        let mut others = Others { is_clean, entries: Vec::new() };
        let prefixes = self.prefixes();
        for key in keys {
            match key {
                OwnKey::Entries { prefix, key } if !prefixes.contains_key(&prefix) => {
                    others.entries.push(key)
                }
                OwnKey::Fleet(_) | OwnKey::Entries { .. } | OwnKey::Lock { .. } => {}
            }
        }
        // Entries that could not be cleared are reported where that was tried.
        for (schedules, report) in self.schedules.iter().zip(reports.iter_mut()) {
            let mut left = 0;
            for schedule in schedules.iter() {
                left += entries(schedule).await?.len();
            }
            if (is_clean || is_last) && left > 0 && report.state() == State::Retired {
                report.open.push(format!("{left} entries have come into quarantine or losses meanwhile"));
            }
        }
        Ok(Ok(others))
    }

    /// How many of these locks are ours.
    async fn ours_of(&self, locks: Option<&Vec<Vec<u8>>>) -> anyhow::Result<u64> {
        let mut ours = 0;
        for page in locks.map_or(&[][..], Vec::as_slice).chunks(500) {
            let values = read_values(&self.link, page).await?;
            ours += values.iter().flatten().filter(|value| *value != b"1").count() as u64;
        }
        Ok(ours)
    }

    /// The timelines among these keys, by tenant; and that of this group, which may come.
    fn timelines(&self, keys: &[OwnKey]) -> HashMap<String, Vec<String>> {
        let mut timelines: HashMap<String, Vec<String>> = HashMap::new();
        for key in keys {
            if let OwnKey::Fleet(key) = key
                && let Some(tenant) = timeline_of(key)
            {
                timelines.entry(tenant.to_owned()).or_default().push(key.clone());
            }
        }
        let own = Timelines::new(self.link.clone(), &wiring::group(self.config));
        for tenant in &self.tenants {
            let (own, known) =
                (own.key(tenant.label()), timelines.entry(tenant.label().to_owned()).or_default());
            if !known.contains(&own) {
                known.push(own);
            }
        }
        timelines
    }

    /// The prefixes of the tenants' keys, each with the number of its tenant.
    fn prefixes(&self) -> HashMap<String, usize> {
        let numbered = self.schedules.iter().enumerate();
        numbered
            .flat_map(|(n, schedules)| schedules.iter().map(move |one| (one.space().prefix().to_owned(), n)))
            .collect()
    }

    /// The claim locks among these keys, by the number of their tenant.
    fn locks(&self, keys: &[OwnKey]) -> HashMap<usize, Vec<Vec<u8>>> {
        let prefixes = self.prefixes();
        let mut locks: HashMap<usize, Vec<Vec<u8>>> = HashMap::new();
        for key in keys {
            if let OwnKey::Lock { prefix, key } = key
                && let Some(n) = prefixes.get(prefix)
            {
                locks.entry(*n).or_default().push(key.clone());
            }
        }
        locks
    }

    /// With --all: removes the records of the fleet, once no process of ours runs and nothing is open.
    pub(super) async fn end_of_fleet(
        &self,
        retirement: &Retirement,
        others: Others,
        reports: &[TenantReport],
    ) -> Step<(u64, Vec<Kept>)> {
        let mut kept = Vec::new();
        if !others.entries.is_empty() && self.args.all {
            kept.push(Kept {
                keys: others.entries.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", "),
                why: format!(
                    "{} of tenants that are not active: what is in them can't be judged",
                    count(others.entries.len() as u64)
                ),
            });
        }
        if !self.args.all {
            kept.push(Kept {
                keys: "{transactions}:balance-sync:*".to_owned(),
                why: "they are the fleet's, which serves other tenants".to_owned(),
            });
            return Ok(Ok((0, kept)));
        }
        let mut fleet: Vec<String>;
        let begun = Instant::now();
        let running = loop {
            let keys = own_keys(&self.link).await?;
            fleet = keys
                .into_iter()
                .filter_map(|key| match key {
                    OwnKey::Fleet(key) => Some(key),
                    OwnKey::Entries { .. } | OwnKey::Lock { .. } => None,
                })
                .collect();
            let view = self.reader.view().await;
            if let Some(error) = &view.redis_error {
                kept.push(Kept {
                    keys: "{transactions}:balance-sync:*".to_owned(),
                    why: format!(
                        "which workers run isn't known ({error}): run the command again to remove it"
                    ),
                });
                return Ok(Ok((0, kept)));
            }
            let live = view.workers.iter().chain(&view.shadows).map(|worker| worker.name.clone());
            let live: BTreeSet<String> = live
                .chain(view.foreign_workers.iter().map(|worker| worker.name.clone()))
                .chain(view.unreadable_workers.iter().cloned())
                .collect();
            if !live.is_empty() {
                break live;
            }
            // A name that is still held may be that of a process that starts, or of one that was killed a moment ago.
            let named: BTreeSet<String> =
                fleet.iter().filter_map(|key| process_of(key)).map(str::to_owned).collect();
            if named.is_empty() || begun.elapsed() >= NAMES_LAPSE_WITHIN {
                break named;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        for key in &fleet {
            if let Some(why) = kept_because(key) {
                kept.push(Kept { keys: key.clone(), why: why.to_owned() });
            }
        }
        kept.sort_by(|a, b| a.keys.cmp(&b.keys));
        let is_open = reports.iter().any(|report| report.state() != State::Retired);
        if is_open || !running.is_empty() {
            let names: Vec<String> = running.into_iter().collect();
            let why = match is_open {
                true => "something is open: run the command again".to_owned(),
                false => format!(
                    "{} {}: they write it again as long as they run. End them, and run the command again to remove it",
                    if names.len() == 1 { "a worker runs" } else { "workers run" },
                    names.join(", ")
                ),
            };
            kept.push(Kept { keys: "the rest of {transactions}:balance-sync:*".to_owned(), why });
            return Ok(Ok((0, kept)));
        }
        match retirement.remove_fleet(&fleet).await.context("removing the fleet's records")? {
            Some(removed) => Ok(Ok((removed, kept))),
            None => Ok(Err(overtaken())),
        }
    }
}
