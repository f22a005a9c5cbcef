//! Works off open conditions: compares values with rows, then rows with the ledger's operations (`losses`), and schedules again what
//! is behind.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_engine::vanish::{Found, Next, Phase};
use balance_sync_tenants::Tenant;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    Vanish, is_served,
    losses::{Compared, Since, sink},
};
use crate::{
    backends::comparison::{Failure, WithoutRow, span},
    status::{Outcome, TenantState, TenantStatus, is_notice},
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
            open.note_rescheduled(&status);
            let before = open.episode.phase().clone();
            let collector = status.collector_state();
            if collector.state == TenantState::Degraded && !collector.partial {
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
        if pending.is_empty() {
            return;
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
                        rows_ahead = found.rows_ahead, of_later_format = found.unread,
                        "values that redis still has are compared with their rows"
                    );
                    self.fleet.vanished_rescheduled.fetch_add(found.rescheduled, Relaxed);
                    let found = Found {
                        rescheduled: found.rescheduled,
                        scheduled: (found.behind + found.unread).saturating_sub(found.rescheduled),
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
        let open = self.board.lock().get(tenant).map(|open| (open.episode.since, open.episode.is_loss));
        let Some((noticed, is_loss)) = open else { return };
        let since = Since { operations: from, noticed };
        let comparing = async {
            let mut compared = self.list_lost(tenant, since, progress).await?;
            // Without a loss the ledger has counted on from nothing that is older than what it wrote last.
            if is_loss && compared.unreadable.is_none() {
                self.list_forks(tenant, since, &mut compared, progress).await?;
            }
            Ok::<_, Failure>(compared)
        };
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
        let Compared { listed, first, rescheduled, forked, unreadable } = compared;
        let lost = listed.lost;
        self.fleet.vanished_lost.fetch_add(first, Relaxed);
        self.fleet.vanished_rescheduled.fetch_add(rescheduled, Relaxed);
        let Some(status) = self.fleet.find(tenant) else { return };
        status.outcomes[Outcome::Forked].fetch_add(forked, Relaxed);
        if forked > 0 {
            // Until they are counted again.
            status.losses.fetch_max(forked, Relaxed);
            status.quarantine_entries.fetch_max(forked, Relaxed);
            tracing::warn!(
                tenant_id = %tenant, balances = forked,
                "operations have two states at one version, their balances have forked and are listed"
            );
        }
        if listed.undecided > 0 {
            tracing::warn!(
                tenant_id = %tenant, balances = listed.undecided,
                "postgres could not say in time what is lost of balances that lack operations, they are compared again"
            );
        }
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
