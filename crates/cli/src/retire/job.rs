//! The steps. Each can be done again: what is interrupted goes on with the same command.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use balance_sync_domain::printable;
use balance_sync_engine::rollout::{Cause, Change, Pattern, Share};
use balance_sync_schedule::{
    Link, Retirement, Rollouts, Schedules, Timelines, read_values,
    retire::{
        Forgotten, OwnKey, RawEntry, Returned, entries, kept_because, own_keys, process_of, timeline_of,
    },
    rollout::StoredRollout,
};
use balance_sync_tenants::Tenant;
use balance_sync_view::{
    actions::{Action, ActionOutcome, Operator},
    reader::FleetReader,
    rollout::{NotChanged, Wanted},
};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use super::{
    entries::{OfTenant, judge_all},
    export::{self, Export},
    fate::Fate,
    leave::{Leaving, done_by},
    plan::{self, AT_ONCE, Plan},
};
use crate::{
    args::{RetireArgs, seconds},
    commands::{
        actions,
        verify::{Repair, TenantResult, Verification, Verifier},
    },
    config::Config,
    terminal::count,
    wiring,
};

/// Scheduled values get so long to live, if less than half of it is left: the ledger's own worker comes to a tenant with its next API call.
const VALUES_LIVE: Duration = Duration::from_hours(24);
/// How often it is looked at who has left.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// How often it is reported who has not.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Times at most that what is left of ours is removed: what a worker had under way may come once more.
const SWEEPS: u32 = 5;
/// Between two of them.
const SWEEP_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long names of processes that have ended are waited for.
const NAMES_LAPSE_WITHIN: Duration = Duration::from_secs(10);
/// Differences that are named.
const SHOWN: usize = 5;
/// Steps that are reported.
const STEPS: u32 = 6;
/// Longest text of an outcome in the log, in characters.
const LONGEST_OUTCOME: usize = 400;

/// Why nothing more is done. What was done stays done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal(pub String);

/// Either it goes on, or it is refused.
type Step<T> = anyhow::Result<Result<T, Refusal>>;

macro_rules! step {
    ($step:expr) => {
        match $step {
            Ok(value) => value,
            Err(refusal) => return Ok(Err(refusal)),
        }
    };
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Nothing was to be changed.
    Planned(Plan),
    /// Something speaks against it, and nothing was changed.
    Objected(Plan),
    /// It was given up at some step.
    Refused(Refusal),
    /// It came to its end.
    Done(Report),
}

/// How it stands with a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It is the ledger's own worker's.
    Retired,
    /// It is, and something is left open.
    Open,
    /// Something could not be determined.
    Unknown,
}

/// What was done with a tenant.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct TenantReport {
    /// Its id.
    pub tenant: String,
    /// Members that dead workers had claimed or put off, and that are due now.
    pub given_back: u64,
    /// Locks of ours that were deleted.
    pub unlocked: u64,
    /// Values that got a day to live.
    pub kept_alive: u64,
    /// Entries of quarantine and losses that were scheduled for the ledger's own worker.
    pub entries_scheduled: u64,
    /// Entries whose rows had all.
    pub entries_settled: u64,
    /// Entries that only the export has.
    pub entries_exported: u64,
    /// Other records that were removed.
    pub records_removed: u64,
    /// Balances that were compared.
    pub balances: u64,
    /// Those whose row is behind, and which the ledger's own worker is going to write.
    pub behind: u64,
    /// Those that were behind and not scheduled, and are scheduled now.
    pub scheduled_again: u64,
    /// Members that were scheduled further ahead than any delay reaches, and are due now: the clock of Redis has jumped back.
    pub made_due: u64,
    /// Those that differ in another way: no row, a newer one, other amounts; or unreadable.
    pub differing: u64,
    /// Members that wait for the ledger's own worker.
    pub scheduled: u64,
    /// Those that the ledger itself has scheduled ahead.
    pub ahead: u64,
    /// Scheduled members without a value: the ledger's own worker drops them unwritten.
    pub without_value: u64,
    /// Which ones.
    #[serde(skip)]
    gone: BTreeSet<Vec<u8>>,
    /// What stays of its records.
    #[serde(skip)]
    spared: Forgotten,
    /// What is left open.
    pub open: Vec<String>,
    /// What could not be determined.
    pub unknown: Vec<String>,
}

impl TenantReport {
    /// How it stands.
    pub(crate) fn state(&self) -> State {
        match (self.unknown.is_empty(), self.open.is_empty()) {
            (false, _) => State::Unknown,
            (true, false) => State::Open,
            (true, true) => State::Retired,
        }
    }
}

/// What is kept, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Kept {
    /// Keys, as a pattern or a name.
    pub keys: String,
    /// Why.
    pub why: String,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// The revision of the rollout by which no worker of ours serves the tenants.
    pub revision: u64,
    /// By tenant, in id order.
    pub tenants: Vec<TenantReport>,
    /// Keys of the fleet that were removed.
    pub fleet_keys_removed: u64,
    /// What stays of ours.
    pub kept: Vec<Kept>,
}

impl Report {
    /// The worst of all tenants.
    pub(crate) fn state(&self) -> State {
        self.tenants.iter().map(TenantReport::state).max().unwrap_or(State::Retired)
    }
}

/// What it is done with.
pub(crate) struct Job<'a> {
    pub(super) args: &'a RetireArgs,
    note: Option<&'a str>,
    config: &'a Config,
    pub(super) tenants: Vec<Tenant>,
    pub(super) schedules: Vec<Schedules>,
    pub(super) link: Link,
    pub(super) verifier: Verifier,
    pub(super) reader: FleetReader,
    done: Cell<u32>,
}

impl<'a> Job<'a> {
    /// For these tenants.
    ///
    /// # Errors
    /// When the configuration can't be used, or the tenants can't be listed.
    pub(crate) async fn new(
        config: &'a Config,
        args: &'a RetireArgs,
        note: Option<&'a str>,
    ) -> anyhow::Result<Self> {
        let directory = wiring::directory(config)?;
        let only: Vec<String> = args.tenant.iter().cloned().collect();
        let tenants = crate::commands::chosen_tenants(directory.as_ref(), &only).await?;
        let link = Link::new(&config.redis.link)?;
        let options = Arc::new(wiring::schedule_options(config));
        let schedules = tenants
            .iter()
            .map(|tenant| Schedules::new(&link, tenant.key_spaces(config.tenants.key_form), &options))
            .collect();
        Ok(Self {
            args,
            note,
            config,
            tenants,
            schedules,
            link,
            verifier: Verifier::new(config)?,
            reader: wiring::reader(config)?,
            done: Cell::new(0),
        })
    }

    /// Does all of it.
    ///
    /// # Errors
    /// When something that all tenants need can't be asked.
    pub(crate) async fn run(&self) -> anyhow::Result<Ended> {
        let plan = plan::plan(self).await?;
        if self.args.plan {
            return Ok(Ended::Planned(plan));
        }
        if !plan.against(self.args.acknowledge).is_empty() {
            return Ok(Ended::Objected(plan));
        }
        let export = self.args.export.as_deref().map(Export::open).transpose()?;
        let operator = wiring::operator(self.config)?;
        let one = if self.args.all { None } else { self.tenants.first() };
        let who = actions::who();
        let action = operator.own(Action::Retire, one, &who, self.note).await?;
        let ended = self.steps(&operator, &who, export).await;
        let (outcome, detail) = match &ended {
            Ok(Ok(report)) => {
                let outcome = match report.state() {
                    State::Retired => ActionOutcome::Done,
                    State::Open | State::Unknown => ActionOutcome::Failed,
                };
                (outcome, summary(report))
            }
            Ok(Err(Refusal(why))) => (ActionOutcome::Refused, why.clone()),
            Err(error) => (ActionOutcome::Failed, format!("{error:#}")),
        };
        let detail: String = detail.chars().take(LONGEST_OUTCOME).collect();
        if let Err(error) = operator.outcome(&action, &who, outcome, &detail).await {
            let error = error.to_string();
            eprintln!("balance-sync: what became of it could not be written down: {}", printable(&error));
        }
        Ok(match ended? {
            Ok(report) => Ended::Done(report),
            Err(refusal) => Ended::Refused(refusal),
        })
    }

    /// Says which step begins.
    fn begin(&self, what: &str) {
        self.done.set(self.done.get() + 1);
        eprintln!("retire: {} of {STEPS}: {what}", self.done.get());
    }

    async fn steps(&self, operator: &Operator, who: &str, mut export: Option<Export>) -> Step<Report> {
        self.begin("stop claiming");
        let revision = step!(self.stop(operator, who).await?);
        let retirement = Retirement::new(self.link.clone(), revision.to_string());
        let mut reports: Vec<TenantReport> = self
            .tenants
            .iter()
            .map(|tenant| TenantReport { tenant: tenant.label().to_owned(), ..TenantReport::default() })
            .collect();

        self.begin("give back what is held");
        step!(self.give_back(&retirement, &mut reports, export.as_mut()).await?);

        self.begin("compare rows");
        let labels: Vec<String> = match self.args.all {
            true => Vec::new(),
            false => self.tenants.iter().map(|tenant| tenant.label().to_owned()).collect(),
        };
        let compared = self.verifier.compare(&labels, SHOWN, None, Repair::WithRows).await?;
        self.take_comparison(&compared, &mut reports);

        self.begin("clear quarantine and losses");
        for ((tenant, schedules), report) in self.tenants.iter().zip(&self.schedules).zip(&mut reports) {
            step!(self.clear_entries(&retirement, tenant, schedules, export.as_mut(), report).await?);
        }

        // What the two steps before have scheduled gets its day too.
        step!(self.give_back(&retirement, &mut reports, export.as_mut()).await?);

        self.begin("remove what only we understand");
        let mut others = Others::default();
        for sweep in 1..=SWEEPS {
            step!(self.sweep(&retirement, &mut reports).await?);
            others =
                step!(self.look_for_rest(&retirement, &mut reports, export.as_mut(), sweep == SWEEPS).await?);
            if others.is_clean {
                break;
            }
            tokio::time::sleep(SWEEP_AGAIN_AFTER).await;
        }

        for report in &mut reports {
            report.open.extend(spared(&report.spared).map(str::to_owned));
            if report.without_value > 0 && !self.args.acknowledge {
                report.open.push(valueless(report.gone.len()));
            }
        }

        self.begin("report");
        let (fleet_keys_removed, kept) = self.end_of_fleet(&retirement, others, &reports).await?;
        Ok(Ok(Report { revision, tenants: reports, fleet_keys_removed, kept }))
    }

    // -- stop claiming -------------------------------------------------------------------------------------------

    /// The rollout without these tenants, and no worker that serves one; returns its revision.
    async fn stop(&self, operator: &Operator, who: &str) -> Step<u64> {
        let rollouts = Rollouts::new(self.link.clone());
        let stored = rollouts.read().await?;
        let mut action = None;
        let revision = match stored.filter(|stored| self.is_out(stored)) {
            Some(stored) => stored.number(),
            None => {
                let view = self.reader.view().await;
                let change = match self.args.all {
                    true => Change::None,
                    false => {
                        let pattern = |tenant: &Tenant| Pattern::parse(tenant.label());
                        let patterns: Result<_, String> = self.tenants.iter().map(pattern).collect();
                        Change::Exclude(patterns.map_err(|why| anyhow::anyhow!("rollout: {why}"))?)
                    }
                };
                let desk = wiring::rollout_desk(self.config)?;
                match desk.change(&view, &Wanted::Change(change), who, self.note).await {
                    Ok(done) => {
                        action = Some(done.action_id);
                        done.revision
                    }
                    Err(NotChanged::Redis(error)) => return Err(error.into()),
                    Err(refused) => {
                        return Ok(Err(Refusal(format!(
                            "the rollout was not changed, nothing was done: {refused}"
                        ))));
                    }
                }
            }
        };
        let staying = self.wait_until_left(operator, revision, action.as_deref()).await?;
        if staying.is_empty() {
            return Ok(Ok(revision));
        }
        Ok(Err(Refusal(format!(
            "these workers have not left within {:.0} s: {}. The rollout (revision {revision}) keeps all others away, nothing else was done; see \
             `balance-sync workers`, and run the command again",
            self.args.drain,
            staying.join(", ")
        ))))
    }

    /// Whether a stored rollout keeps all workers away by what this command would set.
    fn is_out(&self, stored: &StoredRollout) -> bool {
        let Ok(Some(selection)) = &stored.selection else { return false };
        if self.args.all {
            return selection.share() == Share::NONE && selection.include().is_empty();
        }
        self.tenants.iter().all(|tenant| selection.cause(tenant.label()) == Cause::Excluded)
    }

    /// Waits until no worker serves any of them; returns who still may.
    async fn wait_until_left(
        &self,
        operator: &Operator,
        revision: u64,
        action: Option<&str>,
    ) -> anyhow::Result<Vec<String>> {
        const LATEST: usize = 200;
        let tenants: BTreeSet<&str> = self.tenants.iter().map(Tenant::label).collect();
        let (begun, limit) = (Instant::now(), seconds(self.args.drain));
        let mut leaving = Leaving::default();
        let mut reported = begun;
        loop {
            let view = self.reader.view().await;
            let mut done = BTreeSet::new();
            if let Some(action) = action {
                let (_, latest) = operator.actions(None, 1, LATEST).await?;
                let ours = latest.into_iter().find(|one| one.id == action);
                done = ours.map(|ours| done_by(&ours.outcomes)).unwrap_or_default();
            }
            let staying = match &view.redis_error {
                None => leaving.staying(Instant::now(), &view, revision, &tenants, &done),
                Some(error) if begun.elapsed() >= limit => bail!("Redis can't be asked: {error}"),
                Some(_) => vec!["?".to_owned()],
            };
            if staying.is_empty() || begun.elapsed() >= limit {
                return Ok(staying);
            }
            if reported.elapsed() >= REPORT_EVERY {
                eprintln!("retire: waiting for {}", printable(&staying.join(", ")));
                reported = Instant::now();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    // -- Redis ---------------------------------------------------------------------------------------------------

    /// Makes due what is held, and gives scheduled values a day.
    async fn give_back(
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
    fn note_gone(
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

    async fn clear_entries(
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

    /// Removes what is left of ours of the tenants.
    async fn sweep(&self, retirement: &Retirement, reports: &mut [TenantReport]) -> Step<()> {
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
    async fn look_for_rest(
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

    // -- rows ----------------------------------------------------------------------------------------------------

    fn take_comparison(&self, compared: &Verification, reports: &mut [TenantReport]) {
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

    // -- the fleet -----------------------------------------------------------------------------------------------

    /// With --all: removes the records of the fleet, once no process of ours runs and nothing is open.
    async fn end_of_fleet(
        &self,
        retirement: &Retirement,
        others: Others,
        reports: &[TenantReport],
    ) -> anyhow::Result<(u64, Vec<Kept>)> {
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
            return Ok((0, kept));
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
                return Ok((0, kept));
            }
            let live = view.workers.iter().chain(&view.shadows).map(|worker| worker.name.clone());
            let live: BTreeSet<String> =
                live.chain(view.foreign_workers.iter().map(|worker| worker.name.clone())).collect();
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
            return Ok((0, kept));
        }
        let removed = retirement.remove_fleet(&fleet).await.context("removing the fleet's records")?;
        Ok((removed, kept))
    }
}

/// What is left beside the tenants.
#[derive(Debug, Default)]
struct Others {
    /// Nothing of the tenants is.
    is_clean: bool,
    /// Quarantine and losses of tenants that are not among them.
    entries: Vec<String>,
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

/// What is said of records that stay: they have come after what spoke against it was read.
fn spared(spared: &Forgotten) -> impl Iterator<Item = &'static str> + use<> {
    let all = [
        (
            spared.conditions > 0,
            "Redis has lost data of it meanwhile, and what follows is not settled yet: the condition stays",
        ),
        (
            spared.pauses > 0,
            "it was paused meanwhile, and the ledger's own worker knows no pause: the pause stays",
        ),
        (spared.is_recovering, "a recovery is under way: what belongs to it stays"),
    ];
    all.into_iter().filter_map(|(is_so, text)| is_so.then_some(text))
}

/// What is said of members without a value.
pub(super) fn valueless(number: usize) -> String {
    format!(
        "{} scheduled balances have no value in Redis: the ledger's own worker drops them unwritten; see `balance-sync recover`",
        count(number as u64)
    )
}

fn overtaken() -> Refusal {
    Refusal(
        "the rollout was changed meanwhile: see `balance-sync rollout history`, and run the command again if it is still wanted"
            .to_owned(),
    )
}

/// What was done, in a line.
pub(crate) fn summary(report: &Report) -> String {
    let sum = |number: fn(&TenantReport) -> u64| report.tenants.iter().map(number).sum::<u64>();
    let not = report.tenants.iter().filter(|tenant| tenant.state() != State::Retired).count();
    format!(
        "{} tenants, {} of them with something open; {} members given back, {} wait for the ledger's own worker; {} entries scheduled, {} \
         settled, {} exported; {} records removed",
        report.tenants.len(),
        not,
        sum(|one| one.given_back),
        sum(|one| one.scheduled),
        sum(|one| one.entries_scheduled),
        sum(|one| one.entries_settled),
        sum(|one| one.entries_exported),
        sum(|one| one.records_removed) + report.fleet_keys_removed,
    )
}
