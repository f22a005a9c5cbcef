//! Compares rows with the ledger's operations, and lists what is lost: operations that neither row nor Redis has, and histories that
//! were overtaken by another one at the same versions.
//!
//! What Postgres can't answer in time is asked of fewer balances at once. If it can't say even of one, the comparison ends there and
//! the condition stays open: what is not decided is not lost, and not written either.

use std::future::Future;

use balance_sync_domain::{BalanceValue, KeySpace};
use balance_sync_engine::vanish::Listed;
use balance_sync_schedule::{Loss, Schedules, read_values};
use balance_sync_store::{Behind, Doubled, Fate, LastKnown, Named, StoreError};
use balance_sync_tenants::Tenant;
use uuid::Uuid;

use super::Vanish;
use crate::{
    backends::{
        comparison::{COMPARE_PAUSE, Failure},
        tenant_manager::TenantPool,
    },
    tasks::Progress,
};

/// Balances in one statement.
const PAGE: u16 = 500;

/// Since when, in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since {
    /// Operations are read that were made since then.
    pub(super) operations: f64,
    /// The condition is open since then.
    pub(super) noticed: f64,
}

/// What a comparison with the operations found.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) listed: Listed,
    /// Balances that were not listed before.
    pub(super) first: u64,
    pub(super) rescheduled: u64,
    /// Balances listed as forked that were not listed before.
    pub(super) forked: u64,
    pub(super) unreadable: Option<String>,
}

/// A balance to be listed.
struct Lost<'b> {
    balance: &'b Behind,
    /// The version that Redis must have for nothing to be lost; `None` = not known.
    version: Option<i64>,
    row_version: Option<i64>,
    fate: Fate,
}

impl Vanish {
    /// Lists the balances as lost whose newest operation neither the row nor Redis has.
    pub(super) async fn list_lost(
        &self,
        tenant: &Tenant,
        since: Since,
        progress: &Progress,
    ) -> Result<Compared, Failure> {
        let mut compared = Compared::default();
        let (mut after, mut size): (Option<Uuid>, u16) = (None, PAGE);
        loop {
            let pool = self.comparison.pool(tenant).await?;
            let page = pool.database.behind_trail(&pool.table, after, size, since.operations).await;
            let Some(page) = in_time(page, &mut size)? else {
                progress.beat();
                if size == 0 {
                    compared.listed.undecided += 1;
                    return Ok(compared);
                }
                continue;
            };
            let page = match page {
                Ok(page) => page,
                Err(why) => {
                    compared.unreadable = Some(why);
                    return Ok(compared);
                }
            };
            let fates = self.fates(&pool, &page.behind, progress).await?;
            let undecided = page.behind.len() - fates.len();
            self.list_page(tenant, &page.behind, fates, since.noticed, &mut compared).await?;
            progress.beat();
            if undecided > 0 {
                compared.listed.undecided += undecided as u64;
                return Ok(compared);
            }
            after = page.last;
            if after.is_none() {
                return Ok(compared);
            }
            tokio::time::sleep(COMPARE_PAUSE).await;
        }
    }

    /// What became of these balances, in their order; those behind the first of which it can't be said in time are left out.
    async fn fates(
        &self,
        pool: &TenantPool,
        behind: &[Behind],
        progress: &Progress,
    ) -> Result<Vec<Fate>, Failure> {
        let names: Vec<Named<'_>> = behind.iter().map(named).collect();
        in_parts(&names, |part| {
            progress.beat();
            async move { pool.database.fates(&pool.table, &part).await.map_err(sink) }
        })
        .await
    }

    async fn list_page(
        &self,
        tenant: &Tenant,
        behind: &[Behind],
        fates: Vec<Fate>,
        since: f64,
        compared: &mut Compared,
    ) -> Result<(), Failure> {
        let lost: Vec<Lost<'_>> =
            behind.iter().zip(fates).filter_map(|(balance, fate)| Lost::of(balance, fate)).collect();
        if lost.is_empty() {
            return Ok(());
        }
        let schedules = self.comparison.schedules(tenant);
        let newest = self.newest(&schedules, &lost).await?;
        let mut losses: Vec<(Vec<u8>, Loss)> = Vec::new();
        for (lost, (version, key)) in lost.into_iter().zip(newest) {
            match (lost.version, lost.row_version) {
                // Redis has it, and it is on its way, or ought to be.
                (Some(needed), _) if version >= needed => {
                    compared.rescheduled += schedules.schedule_again(&[&key]).await?;
                }
                // What is lost of it shows when this is written.
                (None, Some(row)) if version > row => {
                    compared.rescheduled += schedules.schedule_again(&[&key]).await?;
                    compared.listed.left += 1;
                }
                _ => losses.push((key, lost.loss(version))),
            }
        }
        for schedule in schedules.iter() {
            let prefix = schedule.space().balance_prefix();
            let own: Vec<_> = losses.extract_if(.., |(key, _)| key.starts_with(prefix.as_bytes())).collect();
            let count = own.len() as u64;
            let members: Vec<&[u8]> = own.iter().map(|(key, _)| key.as_slice()).collect();
            let listed = schedule.listed(&members).await?;
            // A worker may have listed some of them, and ended before it could store that.
            let before = listed.iter().flatten().filter(|first| **first < since).count() as u64;
            let known = listed.iter().flatten().count() as u64;
            let done = schedule.list_losses(own).await?;
            compared.first += done.saturating_sub(known);
            let Listed { lost, new, left, .. } = &mut compared.listed;
            *lost += done;
            *new += done.saturating_sub(before);
            *left += count - done.min(count);
        }
        Ok(())
    }

    /// The newest version that Redis has of each (−1 = none), in whichever form of its key, and that key.
    async fn newest(&self, schedules: &Schedules, lost: &[Lost<'_>]) -> Result<Vec<(i64, Vec<u8>)>, Failure> {
        let mut newest: Vec<(i64, Vec<u8>)> =
            lost.iter().map(|lost| (-1, key_of(schedules.first().space(), &named(lost.balance)))).collect();
        for schedule in schedules.iter() {
            let keys: Vec<Vec<u8>> =
                lost.iter().map(|lost| key_of(schedule.space(), &named(lost.balance))).collect();
            let values = read_values(&self.comparison.link, &keys).await?;
            for ((newest, key), value) in newest.iter_mut().zip(keys).zip(values) {
                let version =
                    value.and_then(|value| BalanceValue::decode(&value).ok()).map(|value| value.version);
                if let Some(version) = version.filter(|version| *version > newest.0) {
                    *newest = (version, key);
                }
            }
        }
        Ok(newest)
    }

    /// Lists the balances as forked of which operations led to different amounts at one version: the ledger counted on from an older
    /// value, and what it wrote has overtaken the row, so that neither row nor Redis shows it any more.
    pub(super) async fn list_forks(
        &self,
        tenant: &Tenant,
        since: Since,
        compared: &mut Compared,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let schedules = self.comparison.schedules(tenant);
        let (mut after, mut size): (Option<Uuid>, u16) = (None, PAGE);
        loop {
            let pool = self.comparison.pool(tenant).await?;
            let page = pool.database.doubled_versions(&pool.table, after, size, since.operations).await;
            let Some(page) = in_time(page, &mut size)? else {
                progress.beat();
                if size == 0 {
                    compared.listed.undecided += 1;
                    return Ok(());
                }
                continue;
            };
            let page = match page {
                Ok(page) => page,
                Err(why) => {
                    compared.unreadable = Some(why);
                    return Ok(());
                }
            };
            let space = schedules.first().space();
            let forks: Vec<(Vec<u8>, Loss)> =
                page.doubled.iter().map(|one| (key_of(space, &named_doubled(one)), fork(one))).collect();
            let report = schedules.first().list_forks(&forks).await?;
            compared.forked += report.listed;
            compared.listed.left += report.full;
            progress.beat();
            after = page.last;
            if after.is_none() {
                return Ok(());
            }
            tokio::time::sleep(COMPARE_PAUSE).await;
        }
    }
}

impl<'b> Lost<'b> {
    /// `None`: written meanwhile, or deleted.
    fn of(balance: &'b Behind, fate: Fate) -> Option<Self> {
        let (version, row_version) = match &fate {
            Fate::Deleted | Fate::Stale { .. } => return None,
            Fate::Lost(known) => (Some(known.version), Some(known.row_version)),
            Fate::Unknown { row_version, .. } => (None, *row_version),
        };
        Some(Self { balance, version, row_version, fate })
    }

    /// `value`: the version that Redis still has; −1 = none.
    fn loss(self, value: i64) -> Loss {
        let redis = if value < 0 {
            "the value is gone from Redis".to_owned()
        } else {
            format!("Redis fell back to version {value}")
        };
        match self.fate {
            Fate::Lost(known) => confirmed(known, &redis),
            Fate::Unknown { why, .. } => Loss {
                detail: format!(
                    "{redis}; the ledger has an operation that the row lacks, and what is lost can't be determined: {why}"
                ),
                row_version: self.row_version,
                ..Loss::default()
            },
            Fate::Deleted | Fate::Stale { .. } => Loss::default(),
        }
    }
}

fn confirmed(known: LastKnown, redis: &str) -> Loss {
    let LastKnown { row_version, version, available, on_hold, overdraft_used, in_doubt } = known;
    let row = if row_version < 0 { "no version".to_owned() } else { format!("version {row_version}") };
    Loss {
        confirmed: true,
        detail: format!(
            "{redis}; the row has {row}, and the newest operation of the ledger version {version}{}",
            if in_doubt { "; the amounts are in doubt, because an overdraft was repaid" } else { "" }
        ),
        version: Some(version),
        row_version: Some(row_version),
        available,
        on_hold,
        overdraft_used,
        in_doubt,
        ..Loss::default()
    }
}

/// The overtaken side is the one whose operation was written first: the ledger made the other one after Redis had fallen back.
fn fork(doubled: &Doubled) -> Loss {
    let Doubled { version, row_version, first, last, versions, .. } = doubled;
    let more = match versions {
        1 => String::new(),
        versions => format!(", and so {} versions after it", versions - 1),
    };
    Loss {
        confirmed: true,
        forked: true,
        detail: format!(
            "two operations led to version {version}{more}: after the first one available was {} and on hold {}, after the last one \
             {} and {}. Redis had fallen back, and the mutations of one history are missing in the balance",
            first.available, first.on_hold, last.available, last.on_hold
        ),
        version: Some(*version),
        row_version: Some(*row_version),
        available: Some(first.available.clone()),
        on_hold: Some(first.on_hold.clone()),
        row_available: Some(last.available.clone()),
        row_on_hold: Some(last.on_hold.clone()),
        ..Loss::default()
    }
}

/// The answer, or `None` if it took too long: then fewer are to be sought at once, and 0 if even one is too many.
fn in_time<T>(answer: Result<T, StoreError>, size: &mut u16) -> Result<Option<T>, Failure> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_statement_timeout() => {
            *size /= 2;
            Ok(None)
        }
        Err(error) => Err(sink(error)),
    }
}

/// Asks in parts that are halved as often as an answer comes too late. Ends before the first balance of which it can't be said even
/// alone.
async fn in_parts<'n, E, A>(names: &[Named<'n>], ask: impl Fn(Vec<Named<'n>>) -> A) -> Result<Vec<Fate>, E>
where
    A: Future<Output = Result<Vec<Fate>, E>>,
{
    let mut fates: Vec<Fate> = Vec::with_capacity(names.len());
    let mut size = names.len();
    while fates.len() < names.len() {
        let part = &names[fates.len()..names.len().min(fates.len() + size)];
        let found = ask(part.to_vec()).await?;
        if !found.iter().any(Fate::was_given_up) {
            fates.extend(found);
        } else if part.len() > 1 {
            size = part.len() / 2;
        } else {
            break;
        }
    }
    Ok(fates)
}

fn named(balance: &Behind) -> Named<'_> {
    Named {
        organization: balance.organization,
        ledger: balance.ledger,
        alias: &balance.alias,
        key: &balance.key,
    }
}

fn named_doubled(balance: &Doubled) -> Named<'_> {
    Named {
        organization: balance.organization,
        ledger: balance.ledger,
        alias: &balance.alias,
        key: &balance.key,
    }
}

fn key_of(space: &KeySpace, balance: &Named<'_>) -> Vec<u8> {
    space.balance(balance.organization, balance.ledger, balance.alias, balance.key).into_bytes()
}

pub(super) fn sink(error: StoreError) -> Failure {
    Failure::Postgres(error.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{cell::RefCell, convert::Infallible};

    use super::*;

    fn names(count: usize) -> Vec<Named<'static>> {
        let name = Named { organization: Uuid::nil(), ledger: Uuid::nil(), alias: "@a", key: "default" };
        vec![name; count]
    }

    /// A Postgres that is in time for so many at once.
    async fn asked(count: usize, most: usize) -> (usize, Vec<usize>) {
        let sizes = RefCell::new(Vec::new());
        let ask = |part: Vec<Named<'static>>| {
            sizes.borrow_mut().push(part.len());
            let fate = match part.len() <= most {
                true => Fate::Stale { row_version: 1 },
                false => given_up(),
            };
            async move { Ok::<_, Infallible>(vec![fate; part.len()]) }
        };
        let fates = in_parts(&names(count), ask).await.unwrap();
        assert!(!fates.iter().any(Fate::was_given_up));
        (fates.len(), sizes.into_inner())
    }

    fn given_up() -> Fate {
        let why = "the search for the newest operation took longer than 5s".to_owned();
        Fate::Unknown { row_version: Some(5), why }
    }

    #[tokio::test]
    async fn what_takes_too_long_is_asked_of_fewer_at_once() {
        assert_eq!(asked(0, 0).await, (0, vec![]));
        assert_eq!(asked(500, 500).await, (500, vec![500]));
        assert_eq!(asked(500, 200).await, (500, vec![500, 250, 125, 125, 125, 125]));
        assert_eq!(asked(3, 1).await, (3, vec![3, 1, 1, 1]));
        assert_eq!(asked(4, 0).await, (0, vec![4, 2, 1]), "not even one");
    }

    #[test]
    fn what_can_not_be_determined_is_to_be_listed_as_unconfirmed() {
        let balance = Behind {
            organization: Uuid::nil(),
            ledger: Uuid::nil(),
            alias: "@a".to_owned(),
            key: "default".to_owned(),
        };
        let why = "several rows have this alias and key".to_owned();
        let lost = Lost::of(&balance, Fate::Unknown { row_version: None, why }).unwrap();
        let loss = lost.loss(-1);
        assert!(!loss.confirmed && loss.detail.contains("several rows"), "{loss:?}");
        for nothing in [Fate::Deleted, Fate::Stale { row_version: 5 }] {
            assert!(Lost::of(&balance, nothing).is_none());
        }
    }
}
