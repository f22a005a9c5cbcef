//! `verify`: Redis against Postgres, balance by balance.
//!
//! Redis holds a balance for an hour after its last mutation; what it holds is compared, what it no longer holds can't be.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use balance_sync_domain::{BalanceRef, BalanceValue, KeySpace};
use balance_sync_fleet::backends::ManagerOptions;
use balance_sync_schedule::{BalanceKeys, Link, ScheduleOptions, Schedules, read_values};
use balance_sync_store::{ConnectionBudget, Database, Row, Table};
use balance_sync_tenants::{Tenant, TenantDirectory};
use futures::StreamExt;
use serde::Serialize;

use crate::{
    EXIT_OK,
    args::{VerifyArgs, seconds},
    config::Config,
    wiring,
};

/// Something differs.
const EXIT_DIFFERENT: u8 = 1;
/// Some tenant could not be compared.
const EXIT_UNKNOWN: u8 = 2;
/// Balances compared in one go.
const PAGE: usize = 500;
/// Tenants compared at the same time.
const AT_ONCE: usize = 8;
/// Between two comparisons with `--wait`.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// One tenant's result. Numbers of balances.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct TenantResult {
    /// Its id.
    pub tenant: String,
    /// Balances that Redis holds.
    pub balances: u64,
    /// Same version and same amounts on both sides.
    pub equal: u64,
    /// Postgres has an older version.
    pub behind: u64,
    /// Postgres has no such row.
    pub missing: u64,
    /// The row is deleted: the ledger has closed the balance, and what Redis still holds of it is of no use.
    pub deleted: u64,
    /// Postgres has a newer version: Redis lost something.
    pub ahead: u64,
    /// Same version, other amounts.
    pub different: u64,
    /// Keys or values that can't be read.
    pub unreadable: u64,
    /// Members in quarantine.
    pub quarantined: u64,
    /// Members still scheduled.
    pub scheduled: u64,
    /// Behind or missing in Postgres and not scheduled: nobody would write them. With `--repair --apply` they are
    /// scheduled again.
    pub unscheduled: u64,
    /// Scheduled further ahead than any lease or delay reaches: Redis's clock has jumped back. With `--repair --apply`
    /// they are made due.
    pub distant: u64,
}

impl TenantResult {
    /// Whether everything that can be compared is the same on both sides.
    pub fn is_equal(&self) -> bool {
        self.behind + self.missing + self.ahead + self.different + self.unreadable == 0
    }
}

/// A tenant that could not be compared.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failed {
    /// Its id.
    pub tenant: String,
    /// Why.
    pub error: String,
}

/// The whole result.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Verification {
    /// What [`TenantResult::unscheduled`] counts: tenant and member.
    #[serde(skip)]
    unscheduled: Vec<(Tenant, Vec<u8>)>,
    /// The tenants that [`TenantResult::distant`] counts something of.
    #[serde(skip)]
    distant: Vec<Tenant>,
    /// By tenant, in id order.
    pub tenants: Vec<TenantResult>,
    /// Tenants that could not be compared.
    pub failed: Vec<Failed>,
    /// Some of the balances that differ, with what differs.
    pub differences: Vec<String>,
    /// Members scheduled again, or made due.
    pub repaired: u64,
}

impl Verification {
    /// Whether all tenants are equal.
    pub fn is_equal(&self) -> bool {
        self.failed.is_empty() && self.tenants.iter().all(TenantResult::is_equal)
    }

    /// Sum of one number over all tenants.
    pub fn total(&self, number: fn(&TenantResult) -> u64) -> u64 {
        self.tenants.iter().map(number).sum()
    }
}

/// The command.
///
/// # Errors
/// When tenants, Redis or a Postgres can't be asked: then nothing can be told (exit code 2).
pub(crate) async fn verify(file: Option<&Path>, args: VerifyArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let verifier = Verifier::new(&config)?;
    let deadline = args.wait.map(|wait| Instant::now() + seconds(wait));
    let result = loop {
        let result = verifier.compare(&args.tenant, args.show).await?;
        if result.is_equal() || deadline.is_none_or(|deadline| Instant::now() >= deadline) {
            break result;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    };
    let mut result = result;
    if args.apply {
        result.repaired = verifier.repair(&result).await?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&result)?);
    } else {
        print_table(&result);
        if args.apply {
            println!("repair: {} balances scheduled again", result.repaired);
        } else if args.repair {
            let would = result.total(|row| row.unscheduled + row.distant);
            println!("repair: {would} balances would be scheduled again; --apply does it");
        }
    }
    Ok(if !result.failed.is_empty() {
        EXIT_UNKNOWN
    } else if result.is_equal() {
        EXIT_OK
    } else {
        EXIT_DIFFERENT
    })
}

fn print_table(result: &Verification) {
    println!(
        "{:<38} {:>9} {:>9} {:>8} {:>8} {:>7} {:>9} {:>10} {:>11} {:>9}",
        "tenant",
        "balances",
        "equal",
        "behind",
        "missing",
        "ahead",
        "different",
        "unreadable",
        "quarantined",
        "scheduled"
    );
    for row in &result.tenants {
        println!(
            "{:<38} {:>9} {:>9} {:>8} {:>8} {:>7} {:>9} {:>10} {:>11} {:>9}",
            row.tenant,
            row.balances,
            row.equal,
            row.behind,
            row.missing,
            row.ahead,
            row.different,
            row.unreadable,
            row.quarantined,
            row.scheduled
        );
    }
    for difference in &result.differences {
        println!("{difference}");
    }
    for Failed { tenant, error } in &result.failed {
        println!("tenant {tenant} could not be compared: {error}");
    }
    let distant = result.total(|row| row.distant);
    if distant > 0 {
        println!(
            "{distant} balances are scheduled further ahead than any lease or delay reaches: the clock of Redis has jumped \
             back, and they wait until it has caught up; --repair --apply makes them due"
        );
    }
    println!(
        "verify: {} balances in {} tenants, {} behind, {} missing",
        result.total(|row| row.balances),
        result.tenants.len(),
        result.total(|row| row.behind),
        result.total(|row| row.missing)
    );
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
    pub fn new(config: &Config) -> anyhow::Result<Self> {
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

    /// Compares the tenants of these ids, or all active ones.
    ///
    /// # Errors
    /// When tenants or Redis can't be asked.
    pub async fn compare(&self, only: &[String], show: usize) -> anyhow::Result<Verification> {
        let tenants = super::chosen_tenants(self.directory.as_ref(), only).await?;
        let mut members = self.members(&tenants).await?;
        let mut results: Vec<(&Tenant, anyhow::Result<Compared>)> =
            futures::stream::iter(tenants.iter().map(|tenant| {
                let members = members.remove(tenant).unwrap_or_default();
                async move { (tenant, self.compare_tenant(tenant, &members, show).await) }
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
    pub async fn repair(&self, found: &Verification) -> anyhow::Result<u64> {
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
            for page in members.chunks(PAGE) {
                let behind = self
                    .compare_page(&schedules, page, &database, &table, &mut result, &mut differences)
                    .await?;
                unscheduled.extend(schedules.not_scheduled(&behind).await?);
                differences.truncate(show);
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

    async fn compare_page(
        &self,
        schedules: &Schedules,
        members: &[Vec<u8>],
        database: &Database,
        table: &Table,
        result: &mut TenantResult,
        differences: &mut Vec<String>,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        let values = read_values(&self.link, members).await?;
        let mut note = |member: &[u8], what: String| {
            differences.push(format!("{}: {what}", String::from_utf8_lossy(member)));
        };
        let mut balances: Vec<(&[u8], BalanceRef<'_>, BalanceValue)> = Vec::with_capacity(members.len());
        for (member, value) in members.iter().zip(&values) {
            // Expired since the scan: nothing is left to compare.
            let Some(value) = value else { continue };
            result.balances += 1;
            match (
                BalanceRef::parse(schedules.of_member(member).space(), member),
                BalanceValue::decode(value),
            ) {
                (Ok(balance), Ok(value)) => balances.push((member, balance, value)),
                (Err(error), _) => {
                    result.unreadable += 1;
                    note(member, error.to_string());
                }
                (_, Err(error)) => {
                    result.unreadable += 1;
                    note(member, error.to_string());
                }
            }
        }
        let rows: Vec<Row<'_>> = balances
            .iter()
            .map(|(_, balance, value)| Row {
                id: value.id,
                organization: balance.organization,
                ledger: balance.ledger,
                available: value.available.as_str(),
                on_hold: value.on_hold.as_str(),
                overdraft_used: value.overdraft_used.as_str(),
                version: value.version,
            })
            .collect();
        let stored = database.fetch(table, &rows).await?;
        let mut behind = Vec::new();
        for ((member, _, value), stored) in balances.iter().zip(stored) {
            let version = value.version;
            match stored {
                Some(row) if row.deleted => result.deleted += 1,
                None => {
                    result.missing += 1;
                    behind.push(member.to_vec());
                    note(member, format!("missing in Postgres, version {version} in Redis"));
                }
                Some(row) if row.version < version => {
                    result.behind += 1;
                    behind.push(member.to_vec());
                    note(member, format!("behind: version {} in Postgres, {version} in Redis", row.version));
                }
                Some(row) if row.version > version => {
                    if self.has_newer_twin(schedules, member, row.version).await? {
                        result.equal += 1;
                    } else {
                        result.ahead += 1;
                        note(
                            member,
                            format!("ahead: version {} in Postgres, {version} in Redis", row.version),
                        );
                    }
                }
                Some(row) if !row.same_amounts => {
                    result.different += 1;
                    note(member, format!("other amounts at the same version {version}"));
                }
                Some(_) => result.equal += 1,
            }
        }
        Ok(behind)
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
