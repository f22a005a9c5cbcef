//! The audit of balances by three witnesses: Redis, the rows, and the ledger's trail. Read-only, on a ledger that works.
//!
//! Reading order: `finding` (what is reported) · `pace` (how fast the servers are asked) · `look` (one look at some balances, in
//! the order that makes it reliable) · `tenant` (all balances of a tenant, in three passes) · `restore` (writing what is lost) and
//! `recovery` (all of it), for `recover` alone · this file (all tenants).
//!
//! 1. *Rows*: page by page in the order of their ids, each page with the newest operations of its balances, then their values.
//! 2. *Members*: those of the schedule whose value is gone; the rows of most have been seen, but a member may have none.
//! 3. *Values*: the keys of Redis page by page; of interest are those that no row leads to. Their names are compared with those that rows
//!    have led to by a `sketch`, and only where they differ are values and rows read.
//!
//! Each pass only suspects. What is suspected is looked at twice more, some hundred milliseconds apart, and reported if both looks
//! find the same. Memory stays flat: pages, at most [`tenant::MAX_SUSPECTS`] suspects per tenant, and at most [`MAX_KEYS`] keys.

mod finding;
mod look;
mod pace;
mod recovery;
mod restore;
mod sketch;
mod tenant;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use balance_sync_domain::KeySpace;
use balance_sync_engine::audit::Class;
use balance_sync_fleet::backends::ManagerOptions;
use balance_sync_schedule::{BalanceKeys, Link, ScheduleOptions, server_time};
use balance_sync_store::{AuditRow, ConnectionBudget};
use balance_sync_tenants::{KeyForm, Tenant, TenantDirectory};
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{config::Config, wiring};

pub(crate) use finding::{Finding, shown};
pub(crate) use pace::Pace;
pub(crate) use recovery::{Apply, Recovery, RecoveryOutput, recover};
pub(crate) use restore::{RestoreOutcome, Restoring};
pub(crate) use tenant::Audited;

/// Tenants that are audited at the same time.
const AT_ONCE: usize = 4;
/// Most keys that wait for their turn in the pass over values.
const MAX_KEYS: usize = 50_000;
/// Keys of one tenant that are looked at together.
const KEYS: usize = 1000;
/// Clocks that differ by more are an error: no age could be trusted.
const MAX_SKEW: f64 = 24.0 * 3600.0;

/// What is audited, and how fast.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Read the trail.
    pub trail: bool,
    /// What has been scheduled for no longer is in time.
    pub in_flight: f64,
    /// Between two looks at what is suspected.
    pub recheck: Duration,
    /// Only rows that were written, or have an operation, since then; in seconds since 1970.
    pub since: Option<f64>,
    /// The share of balances, above 0 and at most 1.
    pub sample: Option<f64>,
    /// Rows per second.
    pub postgres_rate: u32,
    /// Keys per second.
    pub redis_rate: u32,
}

/// How far an audit has come, to be continued later.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cursor {
    /// The last row that has been looked at, by tenant.
    pub rows_after: BTreeMap<String, Uuid>,
    /// Tenants whose rows and members have all been looked at.
    pub done: Vec<String>,
    /// What was counted.
    pub counted: Counted,
}

/// Numbers of balances.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Counted {
    /// Rows looked at.
    pub rows: u64,
    /// Values looked at in the pass over Redis.
    pub values: u64,
    /// Balances by what was found of them.
    pub classes: BTreeMap<Class, u64>,
    /// Findings.
    pub findings: u64,
}

/// A tenant, and something that is said of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Remark {
    /// Its id.
    pub tenant: String,
    /// What.
    pub text: String,
}

/// How an audit ended.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    /// Tenants looked at.
    pub tenants: usize,
    /// What was counted.
    #[serde(flatten)]
    pub counted: Counted,
    /// 3, or 2 where the trail was not read, of any tenant.
    pub witnesses: u8,
    /// What limits the result.
    pub notices: Vec<Remark>,
    /// Tenants that could not be audited, and why.
    pub failed: Vec<Remark>,
    /// Whether all was looked at that was to be.
    pub complete: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Receives the rows of the first pass in the order of their ids.
pub(crate) type RowObserver = Box<dyn Fn(&[AuditRow], &[&'static str])>;

/// Receives findings as they are confirmed: at most a few hundred at once, and none are kept, whatever their number.
pub(crate) trait Findings {
    /// Some findings of a tenant. The audit of this tenant goes on when it is done with them.
    ///
    /// # Errors
    /// End the audit of this tenant.
    async fn take(&self, tenant: &Audited<'_>, findings: Vec<Finding>) -> anyhow::Result<()>;

    /// The rows and members of a tenant have been audited, or that ended with an error.
    async fn ended(&self, tenant: &Audited<'_>, error: Option<&anyhow::Error>) {
        let _ = (tenant, error);
    }
}

/// Passes each finding on by itself.
impl<F: Fn(Finding)> Findings for F {
    async fn take(&self, _: &Audited<'_>, findings: Vec<Finding>) -> anyhow::Result<()> {
        findings.into_iter().for_each(self);
        Ok(())
    }
}

/// Audits; holds what it needs for that.
pub(crate) struct Auditor {
    directory: Arc<dyn TenantDirectory>,
    link: Link,
    schedule: Arc<ScheduleOptions>,
    manager: ManagerOptions,
    budget: ConnectionBudget,
    key_form: KeyForm,
    options: Options,
    postgres: Pace,
    redis: Pace,
    /// Whether it begins with the first row.
    whole: bool,
    stop: Cell<bool>,
    started: Instant,
    state: RefCell<State>,
    bar: ProgressBar,
    observer: Option<RowObserver>,
}

#[derive(Default)]
struct State {
    cursor: Cursor,
    notices: Vec<Remark>,
    failed: Vec<Remark>,
    blind: bool,
}

impl Auditor {
    /// An auditor for the configured Redis and tenants; `name` is how Postgres knows it.
    ///
    /// # Errors
    /// When the configuration can't be used.
    pub(crate) fn new(config: &Config, name: &str, options: Options, cursor: Cursor) -> anyhow::Result<Self> {
        Ok(Self {
            directory: wiring::directory(config)?,
            link: Link::new(&config.redis.link)?,
            schedule: Arc::new(wiring::schedule_options(config)),
            manager: ManagerOptions {
                application_name: format!("balance-sync {name}"),
                ..wiring::manager_options(config)
            },
            budget: ConnectionBudget::new(config.postgres.connections_per_server),
            key_form: config.tenants.key_form,
            postgres: Pace::new(options.postgres_rate),
            redis: Pace::new(options.redis_rate),
            options,
            whole: cursor == Cursor::default(),
            stop: Cell::new(false),
            started: Instant::now(),
            state: RefCell::new(State { cursor, ..State::default() }),
            bar: progress_bar(),
            observer: None,
        })
    }

    /// Passes each page of rows to `observer` before it is judged, with what is in [`AuditRow::further`]. For one tenant at a time.
    #[must_use]
    pub(crate) fn observed_by(mut self, observer: RowObserver) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Has it end at the next page.
    pub(crate) fn stop(&self) {
        self.stop.set(true);
    }

    /// Whether it has been asked to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.get()
    }

    /// How far it has come.
    pub(crate) fn cursor(&self) -> Cursor {
        self.state.borrow().cursor.clone()
    }

    /// Audits the tenants of these ids, or all active ones, and hands out each finding as it is confirmed.
    ///
    /// # Errors
    /// When tenants or Redis can't be asked at all, or their clocks are impossible. A tenant that can't be audited is in the summary
    /// instead.
    pub(crate) async fn run(&self, only: &[String], report: &impl Findings) -> anyhow::Result<Summary> {
        let tenants = self.tenants(only).await?;
        let audited = self.rows_and_members(&tenants, report).await?;
        if !self.stop.get() {
            self.values(&audited, report).await?;
        }
        Ok(self.end(audited).await)
    }

    /// About how many rows there are, of the tenants that have been opened so far.
    pub(crate) fn estimate(&self) -> u64 {
        self.bar.length().unwrap_or_default()
    }

    /// The tenants of these ids, or all active ones.
    ///
    /// # Errors
    /// When they can't be asked, or one is not among them.
    pub(crate) async fn tenants(&self, only: &[String]) -> anyhow::Result<Vec<Tenant>> {
        crate::commands::chosen_tenants(self.directory.as_ref(), only).await
    }

    /// What stands in the way of reading the trail of this tenant; nothing is audited yet.
    ///
    /// # Errors
    /// When the tenant can't be audited at all, or clocks are impossible.
    pub(crate) async fn preflight(&self, tenant: &Tenant) -> anyhow::Result<Option<String>> {
        let redis_now = self.check_clock().await?;
        let audited = Audited::open(self, tenant, redis_now).await?;
        let why = audited.access().without_trail().map(str::to_owned);
        audited.close().await;
        Ok(why)
    }

    /// The first two passes over these tenants; gives those that could be audited.
    ///
    /// # Errors
    /// As [`Auditor::run`].
    pub(crate) async fn rows_and_members<'a>(
        &'a self,
        tenants: &'a [Tenant],
        report: &impl Findings,
    ) -> anyhow::Result<Vec<Audited<'a>>> {
        let redis_now = self.check_clock().await?;
        let done = &self.state.borrow().cursor.done.clone();
        let mut audited: Vec<Audited<'_>> = Vec::new();
        let mut rows = futures::stream::iter(tenants)
            .map(|tenant| async move {
                let result = Audited::open(self, tenant, redis_now).await;
                let result = match result {
                    Ok(audited) if done.iter().any(|id| id == tenant.label()) => Ok(audited),
                    Ok(audited) => {
                        let ended = audited.rows_and_members(report).await;
                        report.ended(&audited, ended.as_ref().err()).await;
                        match ended {
                            Ok(()) => Ok(audited),
                            Err(error) => {
                                audited.close().await;
                                Err(error)
                            }
                        }
                    }
                    Err(error) => Err(error),
                };
                (tenant, result)
            })
            .buffer_unordered(AT_ONCE);
        while let Some((tenant, result)) = rows.next().await {
            match result {
                Ok(tenant) => audited.push(tenant),
                Err(error) => self.failed(tenant, &error),
            }
        }
        drop(rows);
        Ok(audited)
    }

    /// Ends all connections, and says how it ended.
    pub(crate) async fn end(&self, audited: Vec<Audited<'_>>) -> Summary {
        let tenants = audited.len();
        for tenant in audited {
            tenant.close().await;
        }
        self.bar.finish_and_clear();
        let state = self.state.borrow();
        Summary {
            tenants,
            counted: state.cursor.counted.clone(),
            witnesses: if state.blind { 2 } else { 3 },
            notices: state.notices.clone(),
            failed: state.failed.clone(),
            complete: !self.stop.get() && state.failed.is_empty(),
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }

    /// Redis's clock.
    async fn check_clock(&self) -> anyhow::Result<f64> {
        let redis = server_time(&self.link).await.context("Redis can't be asked")?;
        let here = here()?;
        if let Some(since) = self.options.since
            && since > here
        {
            bail!("--since is {:.0} s in the future by this host's clock", since - here);
        }
        if (redis - here).abs() > MAX_SKEW {
            bail!(
                "impossible clock: Redis says {redis:.0}, this host {here:.0} (seconds since 1970), which is {:.1} days apart: no \
                 age could be determined",
                (redis - here).abs() / 86_400.0
            );
        }
        Ok(redis)
    }

    /// The third pass: values that no row leads to.
    async fn values(&self, audited: &[Audited<'_>], report: &impl Findings) -> anyhow::Result<()> {
        let (owners, spaces): (Vec<usize>, Vec<KeySpace>) = audited
            .iter()
            .enumerate()
            .flat_map(|(n, tenant)| tenant.spaces().into_iter().map(move |space| (n, space)))
            .unzip();
        if spaces.is_empty() {
            return Ok(());
        }
        if self.looks_at_all() && self.compare_names(audited, &owners, spaces.clone()).await? {
            return Ok(());
        }
        let mut waiting: Vec<Vec<Vec<u8>>> = vec![Vec::new(); audited.len()];
        let mut keys = BalanceKeys::new(self.link.clone(), spaces);
        let mut failed = vec![false; audited.len()];
        let mut total = 0;
        loop {
            let page = keys.next().await?;
            let ended = page.is_none();
            for (space, key) in page.into_iter().flatten() {
                let owner = owners[space];
                if !self.is_sampled(&key) || failed[owner] {
                    continue;
                }
                match &audited[owner].reached {
                    // The names have been counted with the comparison.
                    Some(reached) if !reached.borrow().may_differ(&key) => continue,
                    Some(_) => {}
                    None => self.state.borrow_mut().cursor.counted.values += 1,
                }
                waiting[owner].push(key);
                total += 1;
            }
            loop {
                let fullest = (0..waiting.len()).max_by_key(|n| waiting[*n].len()).unwrap_or_default();
                let full = waiting[fullest].len();
                if full == 0 || !(ended || full >= KEYS || total > MAX_KEYS) {
                    break;
                }
                let mut keys = std::mem::take(&mut waiting[fullest]);
                total -= keys.len();
                // A key may come twice.
                keys.sort_unstable();
                keys.dedup();
                if let Err(error) = audited[fullest].values(&keys, report).await {
                    failed[fullest] = true;
                    self.failed(audited[fullest].tenant(), &error);
                }
            }
            if ended || self.stop.get() {
                break;
            }
        }
        for (tenant, _) in audited.iter().zip(failed).filter(|(_, failed)| !failed) {
            if let Err(error) = tenant.confirm_all(report).await {
                self.failed(tenant.tenant(), &error);
            }
        }
        Ok(())
    }

    /// Compares the names of all keys with those that rows have led to; gives whether they are the same.
    async fn compare_names(
        &self,
        audited: &[Audited<'_>],
        owners: &[usize],
        spaces: Vec<KeySpace>,
    ) -> anyhow::Result<bool> {
        let mut keys = BalanceKeys::new(self.link.clone(), spaces);
        while let Some(page) = keys.next().await? {
            self.redis.take(page.len()).await;
            for (space, key) in page {
                if let Some(reached) = &audited[owners[space]].reached {
                    reached.borrow_mut().subtract(&key);
                    self.state.borrow_mut().cursor.counted.values += 1;
                }
            }
            if self.stop.get() {
                return Ok(true);
            }
        }
        let is_even =
            |tenant: &Audited<'_>| tenant.reached.as_ref().is_none_or(|reached| reached.borrow().is_even());
        Ok(audited.iter().all(is_even))
    }

    /// Whether the first pass looks at all rows in one run.
    fn looks_at_all(&self) -> bool {
        self.whole && self.options.since.is_none() && self.options.sample.is_none()
    }

    fn is_sampled(&self, key: &[u8]) -> bool {
        let Some(share) = self.options.sample else { return true };
        // FNV-1a: the same keys every time.
        let hash = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        ((hash >> 20) & 0xFFFF) < u64::from(sample_of(share))
    }

    fn failed(&self, tenant: &Tenant, error: &anyhow::Error) {
        let remark = Remark { tenant: tenant.label().to_owned(), text: format!("{error:#}") };
        self.state.borrow_mut().failed.push(remark);
    }

    fn notice(&self, tenant: &Tenant, text: String) {
        let remark = Remark { tenant: tenant.label().to_owned(), text };
        let mut state = self.state.borrow_mut();
        if !state.notices.contains(&remark) {
            state.notices.push(remark);
        }
    }

    fn count(&self, class: Class) {
        *self.state.borrow_mut().cursor.counted.classes.entry(class).or_default() += 1;
    }
}

/// A share in parts of 65,536, at least one.
fn sample_of(share: f64) -> u16 {
    (share * 65_536.0).clamp(1.0, 65_535.0) as u16
}

/// This host's clock, in seconds since 1970.
fn here() -> anyhow::Result<f64> {
    Ok(SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .context("this host's clock is before 1970")?
        .as_secs_f64())
}

/// Shown on a terminal only.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = "{bar:30} {pos} of about {len} balances, {per_sec:.0}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}
