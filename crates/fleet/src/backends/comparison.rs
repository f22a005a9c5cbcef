//! Comparing what Redis holds of tenants with their rows, and scheduling again what is behind.
//!
//! One walk over the keys of Redis for all tenants concerned, in pages with pauses between them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use actix::Addr;
use balance_sync_domain::{BalanceRef, BalanceValue, KeySpace};
use balance_sync_schedule::{BalanceKeys, Link, ScheduleError, ScheduleOptions, Schedules, read_values};
use balance_sync_store::{Row, StoredVersion};
use balance_sync_tenants::{KeyForm, Tenant};
use balance_sync_trace::Span;
use tracing::Instrument as _;
use uuid::Uuid;

use super::tenant_manager::{GetPool, TenantManager, TenantPool};
use crate::{pipeline::SinkError, tasks::Progress};

/// Balances compared in one call to Redis and one to Postgres.
const PAGE: usize = 500;
/// Pause after each page of keys: at most some 100,000 keys per second.
const PAUSE: Duration = Duration::from_millis(20);
/// Pause after a page of balances: at most some 10,000 balances per second.
pub(in crate::backends) const COMPARE_PAUSE: Duration = Duration::from_millis(50);

/// What a comparison needs.
#[derive(Clone)]
pub(crate) struct Comparison {
    pub(crate) link: Link,
    pub(crate) manager: Addr<TenantManager>,
    pub(crate) key_form: KeyForm,
    pub(crate) schedule: Arc<ScheduleOptions>,
}

/// Why a tenant could not be compared.
#[derive(Debug, thiserror::Error)]
pub(in crate::backends) enum Failure {
    #[error(transparent)]
    Redis(#[from] ScheduleError),
    #[error(transparent)]
    Postgres(#[from] SinkError),
    #[error("{0} gave no answer for another tenant")]
    Silent(String),
}

impl Failure {
    /// Whether the server's other tenants would most likely meet it too.
    fn is_of_server(&self) -> bool {
        use balance_sync_store::ErrorClass::{
            Connection, ConnectionBudget, Dns, Timeout, TooManyConnections,
        };
        let Self::Postgres(SinkError::Store(error)) = self else { return false };
        matches!(error.class(), Connection | ConnectionBudget | Dns | Timeout | TooManyConnections)
    }
}

/// What a comparison found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::backends) struct Compared {
    pub(in crate::backends) compared: u64,
    /// Their rows are behind.
    pub(in crate::backends) behind: u64,
    /// Of these, those that were not scheduled.
    pub(in crate::backends) rescheduled: u64,
    /// They have no row. A deleted row is one.
    pub(in crate::backends) without_row: u64,
    /// Their rows are newer than any value of them in Redis.
    pub(in crate::backends) rows_ahead: u64,
    /// Their values are in the format of a later release, so that it is not known whether their rows are behind. Those that were not
    /// scheduled are among the `rescheduled`.
    pub(in crate::backends) unread: u64,
}

/// How the balances of a page differ from their rows.
#[derive(Debug, Default)]
pub(in crate::backends) struct Differences<'k> {
    pub(in crate::backends) compared: u64,
    /// They have no row. A deleted row is one.
    without_row: Vec<&'k [u8]>,
    /// Their rows are older than their values.
    pub(in crate::backends) behind: Vec<Witness>,
    /// Their rows are newer, with their versions.
    ahead: Vec<(&'k [u8], i64)>,
    /// Their values are in the format of a later release.
    unread: Vec<&'k [u8]>,
}

/// What becomes of balances that have no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backends) enum WithoutRow {
    /// They are scheduled again: the collector finds no row either, and puts them in quarantine, where each is listed.
    ScheduleAgain,
    /// They are counted.
    Count,
}

/// A member that is remembered, with the version that its value had.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::backends) struct Witness {
    pub(in crate::backends) member: Vec<u8>,
    pub(in crate::backends) id: Uuid,
    pub(in crate::backends) version: i64,
}

/// A tenant under comparison.
struct Subject {
    tenant: Tenant,
    /// Where its rows are, for tenants that share a server.
    server: String,
    schedules: Schedules,
    /// Keys found and not compared yet.
    keys: Vec<Vec<u8>>,
    found: Result<Compared, Failure>,
}

impl Comparison {
    /// Compares these tenants, each with the server of its rows; one result for each, in order.
    ///
    /// # Errors
    /// When the keys of Redis can't be read.
    pub(in crate::backends) async fn walk(
        &self,
        tenants: Vec<(Tenant, String)>,
        without_row: WithoutRow,
        progress: &Progress,
    ) -> Result<Vec<Result<Compared, Failure>>, ScheduleError> {
        let mut subjects: Vec<Subject> = tenants
            .into_iter()
            .map(|(tenant, server)| Subject {
                schedules: self.schedules(&tenant),
                keys: Vec::new(),
                found: Ok(Compared::default()),
                tenant,
                server,
            })
            .collect();
        let (owners, spaces): (Vec<usize>, Vec<KeySpace>) = subjects
            .iter()
            .enumerate()
            .flat_map(|(n, subject)| subject.schedules.iter().map(move |one| (n, one.space().clone())))
            .unzip();
        // Servers that gave no answer: their other tenants are not tried in this pass.
        let mut silent = BTreeSet::new();
        if spaces.is_empty() {
            return Ok(Vec::new());
        }
        let mut keys = BalanceKeys::new(self.link.clone(), spaces);
        while let Some(page) = keys.next().await? {
            for (space, key) in page {
                let subject = &mut subjects[owners[space]];
                subject.keys.push(key);
                if subject.keys.len() == PAGE {
                    self.compare_page(subject, without_row, &mut silent).await;
                    progress.beat();
                }
            }
            progress.beat();
            tokio::time::sleep(PAUSE).await;
        }
        for subject in &mut subjects {
            self.compare_page(subject, without_row, &mut silent).await;
            progress.beat();
        }
        Ok(subjects.into_iter().map(|subject| subject.found).collect())
    }

    /// Compares the keys that were found, and schedules again what is behind.
    async fn compare_page(
        &self,
        subject: &mut Subject,
        without_row: WithoutRow,
        silent: &mut BTreeSet<String>,
    ) {
        let keys = std::mem::take(&mut subject.keys);
        let Ok(found) = &mut subject.found else { return };
        if keys.is_empty() {
            return;
        }
        if silent.contains(&subject.server) {
            subject.found = Err(Failure::Silent(subject.server.clone()));
            return;
        }
        let looking = self.look(&subject.tenant, &subject.schedules, &keys, without_row);
        match looking.instrument(span(&subject.tenant)).await {
            Ok(page) => {
                found.compared += page.compared;
                found.behind += page.behind;
                found.rescheduled += page.rescheduled;
                found.without_row += page.without_row;
                found.rows_ahead += page.rows_ahead;
                found.unread += page.unread;
            }
            Err(error) => {
                if error.is_of_server() {
                    silent.insert(subject.server.clone());
                }
                subject.found = Err(error);
            }
        }
        tokio::time::sleep(COMPARE_PAUSE).await;
    }

    async fn look(
        &self,
        tenant: &Tenant,
        schedules: &Schedules,
        keys: &[Vec<u8>],
        without_row: WithoutRow,
    ) -> Result<Compared, Failure> {
        let page = self.differences(tenant, schedules, keys).await?;
        let behind: Vec<&[u8]> = page.behind.iter().map(|one| one.member.as_slice()).collect();
        if without_row == WithoutRow::ScheduleAgain {
            schedules.schedule_again(&page.without_row).await?;
        }
        let unread = self.left_behind(schedules, &page.unread).await?;
        let unread: Vec<&[u8]> = unread.iter().map(Vec::as_slice).collect();
        Ok(Compared {
            compared: page.compared,
            unread: page.unread.len() as u64,
            behind: behind.len() as u64,
            rescheduled: schedules.schedule_again(&behind).await? + schedules.schedule_again(&unread).await?,
            without_row: page.without_row.len() as u64,
            rows_ahead: self.still_ahead(schedules, &page.ahead).await?,
        })
    }

    /// How these balances differ from their rows. Nothing is changed.
    pub(in crate::backends) async fn differences<'k>(
        &self,
        tenant: &Tenant,
        schedules: &Schedules,
        keys: &'k [Vec<u8>],
    ) -> Result<Differences<'k>, Failure> {
        // The values first: a row that is written meanwhile is not taken for one that is behind.
        let values = read_values(&self.link, keys).await?;
        let mut unread = Vec::new();
        let balances: Vec<(&[u8], BalanceRef<'_>, BalanceValue)> = keys
            .iter()
            .zip(&values)
            .filter_map(|(key, value)| {
                // What can't be read is the collector's to report.
                let balance = BalanceRef::parse(schedules.of_member(key).space(), key).ok()?;
                match BalanceValue::decode(value.as_ref()?) {
                    Ok(value) => Some((key.as_slice(), balance, value)),
                    Err(error) => {
                        if error.is_unknown_format() {
                            unread.push(key.as_slice());
                        }
                        None
                    }
                }
            })
            .collect();
        let rows: Vec<Row<'_>> = balances.iter().map(|(_, balance, value)| row(balance, value)).collect();
        let pool = self.pool(tenant).await?;
        let stored = pool.database.versions(&pool.table, &rows).await.map_err(SinkError::from)?;
        let mut found = Differences { compared: balances.len() as u64, unread, ..Differences::default() };
        for ((key, _, value), stored) in balances.iter().zip(stored) {
            match stored {
                None => found.without_row.push(*key),
                Some(StoredVersion { deleted: true, .. }) => {}
                Some(StoredVersion { version, .. }) if version < value.version => {
                    let (member, id, version) = (key.to_vec(), value.id, value.version);
                    found.behind.push(Witness { member, id, version });
                }
                Some(StoredVersion { version, .. }) if version > value.version => {
                    found.ahead.push((*key, version));
                }
                Some(_) => {}
            }
        }
        Ok(found)
    }

    /// Those of these members that are neither scheduled nor listed: no worker will look at them.
    pub(in crate::backends) async fn left_behind(
        &self,
        schedules: &Schedules,
        members: &[&[u8]],
    ) -> Result<Vec<Vec<u8>>, ScheduleError> {
        let members: Vec<Vec<u8>> = members.iter().map(|member| member.to_vec()).collect();
        let mut left = Vec::new();
        for member in schedules.not_scheduled(&members).await? {
            let listed = schedules.of_member(&member).listed(&[member.as_slice()]).await?;
            if listed.iter().all(Option::is_none) {
                left.push(member);
            }
        }
        Ok(left)
    }

    /// How many of these rows are newer than the values of their balances, in whichever form of their keys, now that the rows
    /// have been read.
    async fn still_ahead(&self, schedules: &Schedules, ahead: &[(&[u8], i64)]) -> Result<u64, Failure> {
        let mut newest = vec![i64::MIN; ahead.len()];
        for one in schedules.iter() {
            let keys: Vec<Vec<u8>> = ahead
                .iter()
                .map(|(key, _)| {
                    let own = schedules.of_member(key).space().balance_prefix();
                    let name = key.strip_prefix(own.as_bytes()).unwrap_or(key);
                    [one.space().balance_prefix().as_bytes(), name].concat()
                })
                .collect();
            for (newest, value) in newest.iter_mut().zip(read_values(&self.link, &keys).await?) {
                let version =
                    value.and_then(|value| BalanceValue::decode(&value).ok()).map(|value| value.version);
                *newest = version.unwrap_or(i64::MIN).max(*newest);
            }
        }
        // What has no value any more is not held by Redis at all.
        let ahead = ahead.iter().zip(newest).filter(|((_, row), newest)| *newest > i64::MIN && row > newest);
        Ok(ahead.count() as u64)
    }

    /// The schedules of a tenant.
    pub(in crate::backends) fn schedules(&self, tenant: &Tenant) -> Schedules {
        Schedules::new(&self.link, tenant.key_spaces(self.key_form), &self.schedule)
    }

    /// A tenant's database.
    pub(in crate::backends) async fn pool(&self, tenant: &Tenant) -> Result<TenantPool, SinkError> {
        let ask = GetPool { tenant: tenant.clone(), last: false, span: Span::root("comparison") };
        self.manager.send(ask).await.unwrap_or(Err(SinkError::ManagerGone))
    }
}

/// The row of a balance, as it is asked for.
pub(in crate::backends) fn row<'a>(balance: &BalanceRef<'_>, value: &'a BalanceValue) -> Row<'a> {
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

/// The row whose version is asked for; amounts do not matter.
pub(in crate::backends) const fn asked<'a>(balance: &BalanceRef<'_>, id: Uuid, version: i64) -> Row<'a> {
    Row {
        id,
        organization: balance.organization,
        ledger: balance.ledger,
        available: "0",
        on_hold: "0",
        overdraft_used: "0",
        version,
    }
}

/// The span of a tenant.
pub(in crate::backends) fn span(tenant: &Tenant) -> tracing::Span {
    // At the highest level, so that the lines of every `log.level` name the tenant.
    tracing::error_span!("tenant", tenant_id = %tenant)
}
