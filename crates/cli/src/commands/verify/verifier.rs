//! Reads both sides of each tenant and compares them, page by page.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use balance_sync_domain::{BalanceRef, BalanceValue, KeySpace};
use balance_sync_fleet::backends::ManagerOptions;
use balance_sync_schedule::{BalanceKeys, Link, ScheduleOptions, Schedules, read_values};
use balance_sync_store::{ConnectionBudget, Database, Row, StoredRow, Table};
use balance_sync_tenants::{Tenant, TenantDirectory};
use futures::StreamExt;

use super::{
    Failed, TenantResult, Verification,
    difference::{Difference, Open},
};
use crate::{commands::chosen_tenants, config::Config, wiring};

/// Balances compared in one go.
const PAGE: usize = 500;
/// Tenants compared at the same time.
const AT_ONCE: usize = 8;
/// Between two looks at what differs.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Without `--wait`: looks in a row by which no row has caught up, after which the rest counts as different …
const IDLE_LOOKS: u32 = 3;
/// … and how long looks go on at most.
const PATIENCE: Duration = Duration::from_secs(15);

/// The two sides of a tenant.
struct Side<'a> {
    schedules: &'a Schedules,
    database: &'a Database,
    table: &'a Table,
}

fn row_of<'a>(balance: &BalanceRef<'_>, value: &'a BalanceValue) -> Row<'a> {
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

/// One tenant, compared.
struct Compared {
    tenant: Tenant,
    result: TenantResult,
    differences: Vec<String>,
    unscheduled: Vec<Vec<u8>>,
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

    /// Compares the tenants of these ids, or all active ones. What differs is looked at again for a moment, or for as long as `wait`.
    ///
    /// # Errors
    /// When tenants or Redis can't be asked.
    pub(crate) async fn compare(
        &self,
        only: &[String],
        show: usize,
        wait: Option<Duration>,
    ) -> anyhow::Result<Verification> {
        let tenants = chosen_tenants(self.directory.as_ref(), only).await?;
        let mut members = self.members(&tenants).await?;
        let deadline = wait.map(|wait| Instant::now() + wait);
        let mut results: Vec<(&Tenant, anyhow::Result<Compared>)> =
            futures::stream::iter(tenants.iter().map(|tenant| {
                let members = members.remove(tenant).unwrap_or_default();
                async move { (tenant, self.compare_tenant(tenant, &members, show, deadline).await) }
            }))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        results.sort_by_key(|(tenant, _)| *tenant);
        let mut verification = Verification::default();
        for (tenant, compared) in results {
            // One that can't be asked leaves the others their result.
            let compared = match compared {
                Ok(compared) => compared,
                Err(error) => {
                    let (tenant, error) = (tenant.label().to_owned(), format!("{error:#}"));
                    verification.failed.push(Failed { tenant, error });
                    continue;
                }
            };
            if compared.result.distant > 0 {
                verification.distant.push(compared.tenant.clone());
            }
            verification.tenants.push(compared.result);
            verification.differences.extend(compared.differences);
            let tenant = compared.tenant;
            verification
                .unscheduled
                .extend(compared.unscheduled.into_iter().map(|member| (tenant.clone(), member)));
        }
        verification.differences.truncate(show);
        Ok(verification)
    }

    /// Schedules again what is behind and not scheduled, and makes due what is scheduled too far ahead. Writes Redis only; a
    /// worker does the rest. Returns how many.
    ///
    /// # Errors
    /// When Redis can't be written.
    pub(crate) async fn repair(&self, found: &Verification) -> anyhow::Result<u64> {
        let mut by_tenant: BTreeMap<&Tenant, Vec<&[u8]>> = BTreeMap::new();
        for (tenant, member) in &found.unscheduled {
            by_tenant.entry(tenant).or_default().push(member);
        }
        let mut repaired = 0;
        for (tenant, members) in by_tenant {
            repaired += self.schedules(tenant).schedule_again(&members).await?;
        }
        for tenant in &found.distant {
            repaired += self.schedules(tenant).reschedule_distant().await?;
        }
        Ok(repaired)
    }

    /// The balance keys of each tenant, from one pass over the keys of Redis.
    async fn members(&self, tenants: &[Tenant]) -> anyhow::Result<BTreeMap<Tenant, Vec<Vec<u8>>>> {
        let (owners, spaces): (Vec<&Tenant>, Vec<KeySpace>) = tenants
            .iter()
            .flat_map(|tenant| tenant.key_spaces(self.key_form).into_iter().map(move |space| (tenant, space)))
            .unzip();
        let mut found: BTreeMap<Tenant, BTreeSet<Vec<u8>>> = BTreeMap::new();
        let mut keys = BalanceKeys::new(self.link.clone(), spaces);
        while let Some(page) = keys.next().await? {
            for (space, key) in page {
                found.entry(owners[space].clone()).or_default().insert(key);
            }
        }
        Ok(found.into_iter().map(|(tenant, keys)| (tenant, keys.into_iter().collect())).collect())
    }

    async fn compare_tenant(
        &self,
        tenant: &Tenant,
        members: &[Vec<u8>],
        show: usize,
        deadline: Option<Instant>,
    ) -> anyhow::Result<Compared> {
        let schedules = self.schedules(tenant);
        let mut result = TenantResult { tenant: tenant.label().to_owned(), ..TenantResult::default() };
        let mut differences = Vec::new();
        let mut unscheduled: Vec<Vec<u8>> = Vec::new();
        if !members.is_empty() {
            let settings = self.directory.database(tenant).await?;
            self.manager.allows(&settings)?;
            let table = match &settings.schema {
                Some(schema) => Table::in_schema(schema)?,
                None => Table::unqualified(),
            };
            let database = Database::open(self.manager.spec(&settings), self.budget.clone())?;
            let side = Side { schedules: &schedules, database: &database, table: &table };
            let mut open = Vec::new();
            for page in members.chunks(PAGE) {
                let fresh = page.iter().map(|member| Open::new(member.clone())).collect();
                open.append(&mut self.look(&side, fresh, &mut result, &mut differences).await?);
                differences.truncate(show);
            }
            let open = self.settle(&side, open, &mut result, &mut differences, deadline).await?;
            let mut behind = Vec::new();
            for Open { member, reached, found, .. } in open {
                differences.push(format!("{}: {}", String::from_utf8_lossy(&member), found.words(reached)));
                match found {
                    Difference::Missing => result.missing += 1,
                    Difference::Behind(_) => result.behind += 1,
                    Difference::Ahead { .. } => result.ahead += 1,
                    Difference::Other => result.different += 1,
                }
                if matches!(found, Difference::Missing | Difference::Behind(_)) {
                    behind.push((member, reached));
                }
            }
            differences.truncate(show);
            for page in behind.chunks(PAGE) {
                unscheduled.append(&mut self.unscheduled(&side, page).await?);
            }
            database.close(Duration::from_secs(1)).await;
        }
        let backlog = schedules.backlog().await?;
        result.scheduled = backlog.due + backlog.leased;
        result.distant = schedules.distant().await?;
        result.quarantined = schedules.quarantine_len().await?;
        // Quarantined members are looked after by hand.
        let mut free = Vec::with_capacity(unscheduled.len());
        for member in unscheduled {
            if result.quarantined == 0 || schedules.quarantine_get(&member).await?.is_none() {
                free.push(member);
            }
        }
        result.unscheduled = free.len() as u64;
        Ok(Compared { tenant: tenant.clone(), result, differences, unscheduled: free })
    }

    /// Looks again at what differs: until the deadline, or else while rows catch up.
    async fn settle(
        &self,
        side: &Side<'_>,
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
                left.append(&mut self.look(side, page, result, differences).await?);
            }
            open = left;
            idle = if open.len() < before { 0 } else { idle + 1 };
        }
        Ok(open)
    }

    /// Looks once at these balances, the values first, counts those that are settled, and gives the others back.
    async fn look(
        &self,
        side: &Side<'_>,
        page: Vec<Open>,
        result: &mut TenantResult,
        differences: &mut Vec<String>,
    ) -> anyhow::Result<Vec<Open>> {
        let members: Vec<&[u8]> = page.iter().map(|open| open.member.as_slice()).collect();
        let values = read_values(&self.link, &members).await?;
        let mut found: Vec<(usize, BalanceRef<'_>, BalanceValue)> = Vec::with_capacity(page.len());
        let mut left = vec![false; page.len()];
        for (n, (open, value)) in page.iter().zip(&values).enumerate() {
            let Some(value) = value else {
                // Gone since the scan: nothing is left to compare; or since the first look, and what it saw may be lost.
                left[n] = open.reached >= 0;
                continue;
            };
            if open.reached < 0 {
                result.balances += 1;
            }
            match (
                BalanceRef::parse(side.schedules.of_member(&open.member).space(), &open.member),
                BalanceValue::decode(value),
            ) {
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
        let rows: Vec<Row<'_>> = found.iter().map(|(_, balance, value)| row_of(balance, value)).collect();
        let stored = side.database.fetch(side.table, &rows).await?;
        let mut seen: Vec<Option<(i64, Option<StoredRow>)>> = vec![None; page.len()];
        for ((n, _, value), stored) in found.iter().zip(stored) {
            seen[*n] = Some((value.version, stored));
        }
        drop(found);
        let mut open = Vec::new();
        for ((mut balance, seen), gone) in page.into_iter().zip(seen).zip(left) {
            let Some((version, stored)) = seen else {
                if gone {
                    open.push(balance);
                }
                continue;
            };
            if stored.as_ref().is_some_and(|row| row.deleted) {
                result.deleted += 1;
                continue;
            }
            match balance.compare(version, stored.as_ref()) {
                None => result.equal += 1,
                Some(Difference::Ahead { row, .. })
                    if self.has_newer_twin(side.schedules, &balance.member, row).await? =>
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
    async fn unscheduled(&self, side: &Side<'_>, behind: &[(Vec<u8>, i64)]) -> anyhow::Result<Vec<Vec<u8>>> {
        let members: Vec<Vec<u8>> = behind.iter().map(|(member, _)| member.clone()).collect();
        let free: BTreeSet<Vec<u8>> = side.schedules.not_scheduled(&members).await?.into_iter().collect();
        let again = behind.iter().filter(|(member, _)| free.contains(member));
        let again = again.map(|(member, reached)| Open { reached: *reached, ..Open::new(member.clone()) });
        // A worker writes the row before it takes the member out of the schedule.
        let (mut ignored, mut words) = (TenantResult::default(), Vec::new());
        let left = self.look(side, again.collect(), &mut ignored, &mut words).await?;
        let is_behind = |open: &Open| matches!(open.found, Difference::Missing | Difference::Behind(_));
        Ok(left.into_iter().filter(is_behind).map(|open| open.member).collect())
    }

    fn schedules(&self, tenant: &Tenant) -> Schedules {
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
