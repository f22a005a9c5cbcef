//! Reads both sides of each tenant and compares them, page by page.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use balance_sync_domain::{BalanceRef, BalanceValue, KeySpace, ValueError};
use balance_sync_fleet::backends::ManagerOptions;
use balance_sync_schedule::{BalanceKeys, Link, ScheduleOptions, Schedules, read_values};
use balance_sync_store::{ConnectionBudget, Database, Row, StoredRow, Table};
use balance_sync_tenants::{Tenant, TenantDirectory};
use futures::StreamExt;
use uuid::Uuid;

use super::{
    Failed, TenantResult, Verification,
    comparing::{Comparing, Task},
    difference::{Difference, Open},
};
use crate::{commands::chosen_tenants, config::Config, wiring};

/// Balances compared in one go.
pub(super) const PAGE: usize = 500;
/// Tenants compared at the same time.
const AT_ONCE: usize = 8;
/// Most keys of all tenants that wait until there is a page of one.
const MAX_KEYS: usize = 50_000;
/// Between two looks at what differs.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Without `--wait`: looks in a row by which no row has caught up, after which the rest counts as different …
const IDLE_LOOKS: u32 = 3;
/// … and how long looks go on at most.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is done about balances that no worker would write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repair {
    /// They are counted.
    Nothing,
    /// Those that have a row are scheduled again, and what is scheduled too far ahead is made due.
    WithRows,
    /// All are, and so is that.
    All,
}

/// The rows of a tenant.
pub(crate) struct Side {
    pub(crate) database: Database,
    pub(crate) table: Table,
}

pub(crate) fn row_of<'a>(balance: &BalanceRef<'_>, value: &'a BalanceValue) -> Row<'a> {
    Row {
        id: value.id,
        organization: balance.organization,
        ledger: balance.ledger,
        available: value.available.as_str(),
        on_hold: value.on_hold.as_str(),
        overdraft_used: value.overdraft_used.as_str(),
        version: value.version,
    }
}

/// The id and version of the value, if there is one, and the row.
type Look = (Option<(Uuid, i64)>, Option<StoredRow>);

/// The row of a balance whose value has gone: only what names it is sent.
fn row_without_value(balance: &BalanceRef<'_>, id: Uuid) -> Row<'static> {
    Row {
        id,
        organization: balance.organization,
        ledger: balance.ledger,
        available: "0",
        on_hold: "0",
        overdraft_used: "0",
        version: 0,
    }
}

/// Compares; holds what it needs for that.
pub(crate) struct Verifier {
    directory: Arc<dyn TenantDirectory>,
    link: Link,
    options: Arc<ScheduleOptions>,
    manager: ManagerOptions,
    budget: ConnectionBudget,
    key_form: balance_sync_tenants::KeyForm,
}

impl Verifier {
    /// A verifier for the configured Redis and tenants.
    ///
    /// # Errors
    /// When the configuration can't be used.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            directory: wiring::directory(config)?,
            link: Link::new(&config.redis.link)?,
            options: Arc::new(wiring::schedule_options(config)),
            manager: ManagerOptions {
                application_name: "balance-sync verify".to_owned(),
                ..wiring::manager_options(config)
            },
            budget: ConnectionBudget::new(config.postgres.connections_per_server),
            key_form: config.tenants.key_form,
        })
    }

    /// Compares the tenants of these ids, or all active ones. What differs is looked at again for a moment, or for as long as `wait`. What is
    /// behind and not scheduled is treated as `repair` says: Redis alone is written, a worker does the rest.
    ///
    /// # Errors
    /// When tenants or Redis can't be asked.
    pub(crate) async fn compare(
        &self,
        only: &[String],
        show: usize,
        wait: Option<Duration>,
        repair: Repair,
    ) -> anyhow::Result<Verification> {
        let tenants = chosen_tenants(self.directory.as_ref(), only).await?;
        let deadline = wait.map(|wait| Instant::now() + wait);
        let task = Task { verifier: self, show, deadline, repair };
        let mut comparing: Vec<Comparing<'_>> =
            tenants.iter().map(|tenant| Comparing::new(&task, tenant)).collect();
        self.read_keys(&mut comparing).await?;
        let ended: Vec<Comparing<'_>> = futures::stream::iter(comparing)
            .map(|mut tenant| async move {
                tenant.end().await;
                tenant
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
        let mut verification = Verification::default();
        for Comparing { tenant, result, differences, failed, repaired, .. } in ended {
            verification.repaired += repaired;
            // One that can't be asked leaves the others their result.
            match failed {
                Some(error) => {
                    let (tenant, error) = (tenant.label().to_owned(), format!("{error:#}"));
                    verification.failed.push(Failed { tenant, error });
                }
                None => {
                    verification.tenants.push(result);
                    verification.differences.extend(differences);
                }
            }
        }
        verification.differences.truncate(show);
        Ok(verification)
    }

    /// One pass over the keys of Redis, page by page; each tenant compares those that have come together for it.
    async fn read_keys(&self, comparing: &mut [Comparing<'_>]) -> anyhow::Result<()> {
        let (owners, spaces): (Vec<usize>, Vec<KeySpace>) = comparing
            .iter()
            .enumerate()
            .flat_map(|(n, own)| {
                own.tenant.key_spaces(self.key_form).into_iter().map(move |space| (n, space))
            })
            .unzip();
        let mut keys = BalanceKeys::new(self.link.clone(), spaces);
        let mut waiting = 0;
        while let Some(page) = keys.next().await? {
            for (space, key) in page {
                comparing[owners[space]].waiting.push(key);
                waiting += 1;
            }
            let all = waiting >= MAX_KEYS;
            let full = comparing.iter_mut().filter(|own| all || own.waiting.len() >= PAGE);
            let looking = futures::stream::iter(full)
                .map(|own| async move { own.look_at_waiting(all).await })
                .buffer_unordered(AT_ONCE);
            waiting -= looking.fold(0, |sum, looked| std::future::ready(sum + looked)).await;
        }
        Ok(())
    }

    /// Looks again at what differs: until the deadline, or else while rows catch up.
    pub(super) async fn settle(
        &self,
        side: &Side,
        schedules: &Schedules,
        mut open: Vec<Open>,
        result: &mut TenantResult,
        differences: &mut Vec<String>,
        deadline: Option<Instant>,
    ) -> anyhow::Result<Vec<Open>> {
        let patience = Instant::now() + PATIENCE;
        let mut idle = 0;
        while !open.is_empty() {
            let over = match deadline {
                Some(deadline) => Instant::now() >= deadline,
                None => idle >= IDLE_LOOKS || Instant::now() >= patience,
            };
            if over {
                break;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
            let before = open.len();
            let mut left = Vec::with_capacity(before);
            while !open.is_empty() {
                let page = open.split_off(open.len().saturating_sub(PAGE));
                left.append(&mut self.look(side, schedules, page, result, differences).await?);
            }
            open = left;
            idle = if open.len() < before { 0 } else { idle + 1 };
        }
        Ok(open)
    }

    /// Looks once at these balances, the values first, counts those that are settled, and gives the others back.
    pub(super) async fn look(
        &self,
        side: &Side,
        schedules: &Schedules,
        page: Vec<Open>,
        result: &mut TenantResult,
        differences: &mut Vec<String>,
    ) -> anyhow::Result<Vec<Open>> {
        let members: Vec<&[u8]> = page.iter().map(|open| open.member.as_slice()).collect();
        let values = read_values(&self.link, &members).await?;
        let mut found: Vec<(usize, BalanceRef<'_>, BalanceValue)> = Vec::with_capacity(page.len());
        let (mut gone, mut nameless) = (Vec::new(), vec![false; page.len()]);
        for (n, (open, value)) in page.iter().zip(&values).enumerate() {
            let name = BalanceRef::parse(schedules.of_member(&open.member).space(), &open.member);
            let value = match value.as_ref().map(|value| BalanceValue::of_member(&open.member, value)) {
                None | Some(Err(ValueError::DeletionMarker { .. })) => {
                    // Gone since the scan: nothing is left to compare; or since the first look, and what it saw may be lost.
                    match (&name, open.id) {
                        _ if open.reached < 0 => {}
                        (Ok(name), Some(id)) => gone.push((n, row_without_value(name, id))),
                        _ => nameless[n] = true,
                    }
                    continue;
                }
                Some(value) => value,
            };
            if open.reached < 0 {
                result.balances += 1;
            }
            match (name, value) {
                (Ok(balance), Ok(value)) => found.push((n, balance, value)),
                (balance, value) => {
                    let error = balance.err().map(|error| error.to_string());
                    let error = error.or_else(|| value.err().map(|error| error.to_string()));
                    result.unreadable += 1;
                    differences.push(format!(
                        "{}: {}",
                        String::from_utf8_lossy(&open.member),
                        error.unwrap_or_default()
                    ));
                }
            }
        }
        let mut rows: Vec<Row<'_>> = found.iter().map(|(_, balance, value)| row_of(balance, value)).collect();
        rows.extend(gone.iter().map(|(_, row)| *row));
        let mut stored = side.database.fetch(&side.table, &rows).await?.into_iter();
        let mut seen: Vec<Option<Look>> = vec![None; page.len()];
        for ((n, _, value), stored) in found.iter().zip(stored.by_ref()) {
            seen[*n] = Some((Some((value.id, value.version)), stored));
        }
        for ((n, _), stored) in gone.iter().zip(stored) {
            seen[*n] = Some((None, stored));
        }
        drop(rows);
        drop((found, gone));
        let mut open = Vec::new();
        for ((mut balance, seen), nameless) in page.into_iter().zip(seen).zip(nameless) {
            let Some((value, stored)) = seen else {
                if nameless {
                    open.push(balance);
                }
                continue;
            };
            if stored.as_ref().is_some_and(|row| row.deleted) {
                result.deleted += 1;
                continue;
            }
            let difference = match value {
                Some((id, version)) => {
                    balance.id = Some(id);
                    balance.compare(version, stored.as_ref())
                }
                None => balance.compare_without_value(stored.as_ref()),
            };
            match difference {
                None => result.equal += 1,
                Some(Difference::Ahead { row, .. })
                    if self.has_newer_twin(schedules, &balance.member, row).await? =>
                {
                    result.equal += 1;
                }
                Some(difference) => {
                    balance.found = difference;
                    open.push(balance);
                }
            }
        }
        Ok(open)
    }

    /// Those that are in no schedule and have not got their rows since.
    pub(super) async fn unscheduled(
        &self,
        side: &Side,
        schedules: &Schedules,
        behind: &[(Vec<u8>, i64)],
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        let members: Vec<Vec<u8>> = behind.iter().map(|(member, _)| member.clone()).collect();
        let free: BTreeSet<Vec<u8>> = schedules.not_scheduled(&members).await?.into_iter().collect();
        let again = behind.iter().filter(|(member, _)| free.contains(member));
        let again = again.map(|(member, reached)| Open { reached: *reached, ..Open::new(member.clone()) });
        // A worker writes the row before it takes the member out of the schedule.
        let (mut ignored, mut words) = (TenantResult::default(), Vec::new());
        let left = self.look(side, schedules, again.collect(), &mut ignored, &mut words).await?;
        let is_behind = |open: &Open| matches!(open.found, Difference::Missing | Difference::Behind(_));
        Ok(left.into_iter().filter(is_behind).map(|open| open.member).collect())
    }

    /// The rows of a tenant.
    pub(crate) async fn open(&self, tenant: &Tenant) -> anyhow::Result<Side> {
        let settings = self.directory.database(tenant).await?;
        self.manager.allows(&settings)?;
        let table = match &settings.schema {
            Some(schema) => Table::in_schema(schema)?,
            None => Table::unqualified(),
        };
        Ok(Side { database: Database::open(self.manager.spec(&settings), self.budget.clone())?, table })
    }

    pub(super) fn schedules(&self, tenant: &Tenant) -> Schedules {
        Schedules::new(&self.link, tenant.key_spaces(self.key_form), &self.options)
    }

    /// Whether the same balance stands under the other form of the tenant's id with at least this version: the row came
    /// from there, and what stands here is older and was left by a ledger of another release.
    async fn has_newer_twin(
        &self,
        schedules: &Schedules,
        member: &[u8],
        version: i64,
    ) -> anyhow::Result<bool> {
        let own = schedules.of_member(member).space();
        let Some(rest) = member.strip_prefix(own.balance_prefix().as_bytes()) else { return Ok(false) };
        for schedule in schedules.iter().filter(|schedule| schedule.space() != own) {
            let twin = [schedule.space().balance_prefix().as_bytes(), rest].concat();
            if let Some(value) = read_values(&self.link, &[twin]).await?.swap_remove(0)
                && BalanceValue::decode(&value).is_ok_and(|value| value.version >= version)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
