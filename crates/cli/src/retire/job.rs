//! The steps. Each can be done again: what is interrupted goes on with the same command.

use std::{cell::Cell, sync::Arc, time::Duration};

use balance_sync_domain::printable;
use balance_sync_schedule::{Link, Retirement, Schedules};
use balance_sync_tenants::Tenant;
use balance_sync_view::{
    actions::{Action, ActionOutcome, Operator},
    reader::FleetReader,
};

use super::{
    export::Export,
    plan::{self, Plan},
    report::{Refusal, Report, State, Step, TenantReport, spared, summary, valueless},
    rest::Others,
};
use crate::{
    args::RetireArgs,
    commands::{
        actions,
        verify::{Repair, Verifier},
    },
    config::Config,
    wiring,
};

/// How often it is looked at who has left.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Times at most that what is left of ours is removed: what a worker had under way may come once more.
const SWEEPS: u32 = 5;
/// Between two of them.
const SWEEP_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Differences that are named.
const SHOWN: usize = 5;
/// Steps that are reported.
const STEPS: u32 = 6;
/// Longest text of an outcome in the log, in characters.
const LONGEST_OUTCOME: usize = 400;

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

/// What it is done with.
pub(crate) struct Job<'a> {
    pub(super) args: &'a RetireArgs,
    pub(super) note: Option<&'a str>,
    pub(super) config: &'a Config,
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
        let (fleet_keys_removed, kept) = step!(self.end_of_fleet(&retirement, others, &reports).await?);
        Ok(Ok(Report { revision, tenants: reports, fleet_keys_removed, kept }))
    }
}
