//! Works off open conditions: compares values with rows, then rows with the ledger's operations, schedules again what is behind and
//! lists what is lost.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::BalanceValue;
use balance_sync_engine::vanish::{Found, Listed, Next, Phase};
use balance_sync_schedule::{Loss, read_values};
use balance_sync_store::{Behind, Fate, LastKnown, Named};
use balance_sync_tenants::Tenant;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Vanish, is_served};
use crate::{
    backends::comparison::{COMPARE_PAUSE, Failure, WithoutRow, span},
    status::{TenantState, TenantStatus, is_notice},
    tasks::Progress,
};

/// How often it is looked whether something is to be done.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause before what failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The tenants of which something is to be done now.
struct Due {
    values: Vec<Tenant>,
    looks: Vec<Tenant>,
    /// Each with the time since which operations are read.
    operations: Vec<(Tenant, f64)>,
}

/// What a comparison with the operations found.
struct Compared {
    listed: Listed,
    /// Balances that were not listed before.
    first: u64,
    rescheduled: u64,
    unreadable: Option<String>,
}

impl Vanish {
    /// Works until it is stopped.
    pub(crate) async fn repair(self, stop: CancellationToken, progress: Progress) {
        let repairing = async {
            loop {
                progress.beat();
                tokio::select! {
                    () = self.board.changed() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
                self.work_off_distant(&progress).await;
                let Due { values, looks, operations } = self.due();
                if !values.is_empty() {
                    self.compare_values(values, &progress).await;
                }
                for tenant in looks {
                    self.look_at_server(&tenant).await;
                    progress.beat();
                }
                for (tenant, from) in operations {
                    self.compare_operations(&tenant, from, &progress).await;
                }
            }
        };
        stop.run_until_cancelled(repairing).await;
    }

    fn due(&self) -> Due {
        let now = Instant::now().into_std();
        let (mut values, mut looks, mut operations) = (Vec::new(), Vec::new(), Vec::new());
        let mut shown = Vec::new();
        let mut board = self.board.lock();
        for (tenant, open) in board.iter_mut() {
            let Some(status) = self.fleet.find(tenant).filter(|status| is_served(status)) else { continue };
            let before = open.episode.phase().clone();
            if status.collector_state().state == TenantState::Degraded {
                // Its rows can't be read, and the ledger can't write operations.
                open.episode.failed(now, RETRY_AFTER);
            }
            match open.episode.next(now) {
                Next::Wait => {}
                Next::Values => values.push(tenant.clone()),
                Next::Look => looks.push(tenant.clone()),
                Next::Operations => operations.push((tenant.clone(), open.from)),
            }
            if *open.episode.phase() != before {
                shown.push(status);
            }
        }
        drop(board);
        shown.iter().for_each(|status| self.show(status));
        Due { values, looks, operations }
    }

    /// Whether the ledger can write operations at present, as far as the tenant's server shows it. Returns whether it could
    /// since the last look.
    async fn look_at_server(&self, tenant: &Tenant) -> bool {
        let looking = async {
            let pool = self.comparison.pool(tenant).await?;
            pool.database.start_if_writable().await.map_err(sink)
        };
        match looking.instrument(span(tenant)).await {
            Ok(started) => {
                let mut board = self.board.lock();
                board
                    .get_mut(tenant)
                    .is_none_or(|open| open.episode.answered(&started, Instant::now().into_std()))
            }
            Err(error) => {
                self.failed(tenant, &error);
                false
            }
        }
    }

    async fn compare_values(&self, tenants: Vec<Tenant>, progress: &Progress) {
        let mut pending = Vec::new();
        for tenant in tenants {
            match self.comparison.pool(&tenant).await {
                Ok(pool) => pending.push((tenant, pool.database.address())),
                Err(error) => self.failed(&tenant, &error.into()),
            }
        }
        let found = match self.comparison.walk(pending.clone(), WithoutRow::Count, progress).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "what redis has lost can't be compared yet");
                tokio::time::sleep(RETRY_AFTER).await;
                return;
            }
        };
        for ((tenant, _), found) in pending.into_iter().zip(found) {
            match found {
                Ok(found) => {
                    tracing::warn!(
                        tenant_id = %tenant,
                        compared = found.compared, behind = found.behind, rescheduled = found.rescheduled,
                        rows_ahead = found.rows_ahead,
                        "values that redis still has are compared with their rows"
                    );
                    self.fleet.vanished_rescheduled.fetch_add(found.rescheduled, Relaxed);
                    let found = Found {
                        rescheduled: found.rescheduled,
                        scheduled: found.behind - found.rescheduled.min(found.behind),
                        lost: 0,
                        rows_ahead: found.rows_ahead,
                    };
                    if let Some(open) = self.board.lock().get_mut(&tenant) {
                        open.episode.compared_values(Instant::now().into_std(), found);
                    }
                    if let Some(status) = self.fleet.find(&tenant) {
                        self.show(&status);
                    }
                }
                Err(error) => self.failed(&tenant, &error),
            }
        }
    }

    fn failed(&self, tenant: &Tenant, error: &Failure) {
        tracing::warn!(tenant_id = %tenant, %error, "what redis has lost of a tenant can't be compared yet");
        if let Some(open) = self.board.lock().get_mut(tenant) {
            open.episode.failed(Instant::now().into_std(), RETRY_AFTER);
        }
    }

    async fn compare_operations(&self, tenant: &Tenant, from: f64, progress: &Progress) {
        let Some(since) = self.board.lock().get(tenant).map(|open| open.episode.since) else { return };
        let comparing = self.list_lost(tenant, from, since, progress);
        let compared = match comparing.instrument(span(tenant)).await {
            Ok(compared) => compared,
            Err(error) => return self.failed(tenant, &error),
        };
        // What was listed stays listed; that nothing else is lost shows only on a server that takes operations.
        self.look_at_server(tenant).await;
        let members = self.board.lock().get(tenant).map(|open| open.members().to_vec()).unwrap_or_default();
        let schedules = self.comparison.schedules(tenant);
        let looking = self.forgotten(tenant, &schedules, &members);
        // What was listed counts all the same; the condition waits for the next comparison.
        let forgotten = looking.instrument(span(tenant)).await.unwrap_or_else(|error| {
            self.failed(tenant, &error);
            Vec::new()
        });
        let forgotten = forgotten.len() as u64;
        let Compared { listed, first, rescheduled, unreadable } = compared;
        let lost = listed.lost;
        self.fleet.vanished_lost.fetch_add(first, Relaxed);
        self.fleet.vanished_rescheduled.fetch_add(rescheduled, Relaxed);
        let Some(status) = self.fleet.find(tenant) else { return };
        let (over, held, notice, since, phase) = {
            let mut board = self.board.lock();
            let Some(open) = board.get_mut(tenant) else { return };
            let written = open.written(&status);
            let over = open.episode.compared_operations(
                Instant::now().into_std(),
                listed,
                written,
                forgotten,
                unreadable,
            );
            let held = matches!(open.episode.phase(), Phase::Held(_));
            let notice = is_notice(open.episode.reason, open.episode.found());
            (over, held, notice, open.episode.since, open.episode.phase().describe().to_owned())
        };
        if over && notice {
            tracing::info!(tenant_id = %tenant, "no operation is missing of a tenant, redis had no mark of an earlier worker");
            self.done(&status, since);
        } else if over {
            tracing::warn!(tenant_id = %tenant, lost, "what redis has lost of a tenant is written again or listed as lost");
            self.done(&status, since);
        } else {
            match held && !notice {
                true => {
                    tracing::error!(tenant_id = %tenant, lost, detail = phase, "what redis has lost of a tenant stays open until it is acknowledged");
                }
                false => {
                    tracing::warn!(tenant_id = %tenant, lost, detail = phase, "what redis has lost of a tenant stays open");
                }
            }
            self.show(&status);
        }
    }

    /// Lists the balances as lost whose newest operation neither the row nor Redis has.
    async fn list_lost(
        &self,
        tenant: &Tenant,
        from: f64,
        since: f64,
        progress: &Progress,
    ) -> Result<Compared, Failure> {
        let mut compared = Compared { listed: Listed::default(), first: 0, rescheduled: 0, unreadable: None };
        let mut after = None;
        loop {
            let pool = self.comparison.pool(tenant).await?;
            let page = pool.database.behind_trail(&pool.table, after, from).await.map_err(sink)?;
            let page = match page {
                Ok(page) => page,
                Err(why) => {
                    compared.unreadable = Some(why);
                    return Ok(compared);
                }
            };
            if !page.behind.is_empty() {
                let names: Vec<Named<'_>> = page.behind.iter().map(named).collect();
                let fates = pool.database.fates(&pool.table, &names).await.map_err(sink)?;
                self.list_page(tenant, &page.behind, fates, since, &mut compared).await?;
            }
            progress.beat();
            after = page.last;
            if after.is_none() {
                return Ok(compared);
            }
            tokio::time::sleep(COMPARE_PAUSE).await;
        }
    }

    async fn list_page(
        &self,
        tenant: &Tenant,
        behind: &[Behind],
        fates: Vec<Fate>,
        since: f64,
        compared: &mut Compared,
    ) -> Result<(), Failure> {
        let schedules = self.comparison.schedules(tenant);
        let lost: Vec<(&Behind, LastKnown)> = behind
            .iter()
            .zip(fates)
            .filter_map(|(balance, fate)| match fate {
                Fate::Lost(known) => Some((balance, known)),
                // Written meanwhile, or deleted; what can't be determined is not behind for certain.
                Fate::Deleted | Fate::Stale { .. } | Fate::Unknown { .. } => None,
            })
            .collect();
        // The newest value of each, in whichever form of its key.
        let mut newest: Vec<(i64, Vec<u8>)> =
            lost.iter().map(|(balance, _)| (-1, key_of(schedules.first().space(), balance))).collect();
        for schedule in schedules.iter() {
            let keys: Vec<Vec<u8>> =
                lost.iter().map(|(balance, _)| key_of(schedule.space(), balance)).collect();
            let values = read_values(&self.comparison.link, &keys).await?;
            for ((newest, key), value) in newest.iter_mut().zip(keys).zip(values) {
                let version =
                    value.and_then(|value| BalanceValue::decode(&value).ok()).map(|value| value.version);
                if let Some(version) = version.filter(|version| *version > newest.0) {
                    *newest = (version, key);
                }
            }
        }
        let mut losses: Vec<(Vec<u8>, Loss)> = Vec::new();
        for ((_, known), (version, key)) in lost.into_iter().zip(newest) {
            if version >= known.version {
                // Redis has it, and it is on its way, or ought to be.
                compared.rescheduled += schedules.schedule_again(&[&key]).await?;
            } else {
                losses.push((key, loss(known, version)));
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
            let Listed { lost, new, left } = &mut compared.listed;
            *lost += done;
            *new += done.saturating_sub(before);
            *left += count - done.min(count);
        }
        Ok(())
    }

    /// Makes members due that are scheduled further ahead than a lease or delay explains: Redis's clock has jumped back.
    async fn work_off_distant(&self, progress: &Progress) {
        let mut distant: Vec<Arc<TenantStatus>> = Vec::new();
        self.fleet.each(|status| {
            if status.ahead_ms.load(Relaxed) > 0 && is_served(status) {
                distant.extend(self.fleet.find(status.tenant()));
            }
        });
        for status in distant {
            let mut made_due = 0;
            for schedule in self.comparison.schedules(status.tenant()).iter() {
                match schedule.reschedule_distant().await {
                    Ok(done) => made_due += done,
                    Err(error) => {
                        tracing::debug!(tenant_id = %status.tenant(), %error, "members that are far ahead stay");
                    }
                }
                progress.beat();
            }
            // The next sample tells whether there are more.
            status.ahead_ms.store(0, Relaxed);
            if made_due > 0 {
                self.fleet.vanished_rescheduled.fetch_add(made_due, Relaxed);
                tracing::warn!(
                    tenant_id = %status.tenant(), members = made_due,
                    "members were scheduled further ahead than a lease or delay explains, redis's clock has jumped back: made due"
                );
            }
        }
    }
}

fn named(balance: &Behind) -> Named<'_> {
    Named {
        organization: balance.organization,
        ledger: balance.ledger,
        alias: &balance.alias,
        key: &balance.key,
    }
}

fn key_of(space: &balance_sync_domain::KeySpace, balance: &Behind) -> Vec<u8> {
    space.balance(balance.organization, balance.ledger, &balance.alias, &balance.key).into_bytes()
}

fn sink(error: balance_sync_store::StoreError) -> Failure {
    Failure::Postgres(error.into())
}

/// `value`: the version that Redis still has; −1 = none.
fn loss(known: LastKnown, value: i64) -> Loss {
    let LastKnown { row_version, version, available, on_hold, overdraft_used, in_doubt } = known;
    let redis = if value < 0 {
        "the value is gone from Redis".to_owned()
    } else {
        format!("Redis fell back to version {value}")
    };
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
