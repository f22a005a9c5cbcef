//! All balances that Redis holds, compared with their rows: what is behind is open from then on, and whether it is merely being
//! written is found out as for every other ([`super`]).

use std::{cell::RefCell, sync::Arc, time::Duration};

use balance_sync_domain::KeySpace;
use balance_sync_schedule::{BalanceKeys, ScheduleError, Schedules};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{LONGEST_LOOK, Memory, RETRY_AFTER, STEP, Shadow, failed};
use crate::{
    clock::wall_clock,
    status::TenantStatus,
    tasks::{Progress, jittered},
};

/// Balances compared in one call to Redis and one to Postgres, at most.
const PAGE: usize = 500;
/// Pause after each page of keys: at most some 100,000 keys per second.
const PAUSE: Duration = Duration::from_millis(20);

/// A tenant under comparison.
struct Subject {
    status: Arc<TenantStatus>,
    schedules: Schedules,
    /// Keys found and not compared yet.
    keys: Vec<Vec<u8>>,
    compared: u64,
    failed: bool,
}

impl Shadow {
    pub(super) async fn walk_again_and_again(&self, memory: &RefCell<Memory>, progress: &Progress) {
        let mut next = Instant::now();
        loop {
            let tenants = self.tenants();
            if tenants.is_empty() || Instant::now() < next {
                progress.beat();
                tokio::time::sleep(STEP).await;
                continue;
            }
            next = Instant::now() + jittered(self.options.compare_interval);
            if let Err(error) = self.walk(memory, tenants, progress).await {
                tracing::debug!(%error, "the balances in redis could not be compared with their rows");
                next = next.min(Instant::now() + RETRY_AFTER);
            }
        }
    }

    async fn walk(
        &self,
        memory: &RefCell<Memory>,
        tenants: Vec<Arc<TenantStatus>>,
        progress: &Progress,
    ) -> Result<(), ScheduleError> {
        let mut subjects: Vec<Subject> = tenants
            .into_iter()
            .map(|status| Subject {
                schedules: self.comparison.schedules(status.tenant()),
                status,
                keys: Vec::new(),
                compared: 0,
                failed: false,
            })
            .collect();
        let (owners, spaces): (Vec<usize>, Vec<KeySpace>) = subjects
            .iter()
            .enumerate()
            .flat_map(|(n, subject)| subject.schedules.iter().map(move |one| (n, one.space().clone())))
            .unzip();
        let page_size = PAGE.min(self.options.balances_per_second as usize);
        let mut keys = BalanceKeys::new(self.comparison.link.clone(), spaces);
        while let Some(page) = keys.next().await? {
            for (space, key) in page {
                let subject = &mut subjects[owners[space]];
                subject.keys.push(key);
                if subject.keys.len() == page_size {
                    self.compare(memory, subject, progress).await;
                }
            }
            progress.beat();
            tokio::time::sleep(PAUSE).await;
        }
        let at = wall_clock();
        for subject in &mut subjects {
            self.compare(memory, subject, progress).await;
            if !subject.failed {
                let mut memory = memory.borrow_mut();
                let watched = memory.tenants.entry(subject.status.tenant().clone()).or_default();
                watched.compared = Some((subject.compared, at));
            }
        }
        Ok(())
    }

    /// Compares the keys that were found of a tenant, and waits for as long as they count.
    async fn compare(&self, memory: &RefCell<Memory>, subject: &mut Subject, progress: &Progress) {
        let keys = std::mem::take(&mut subject.keys);
        if keys.is_empty() || subject.failed {
            return;
        }
        let begun = Instant::now();
        let tenant = subject.status.tenant();
        let comparing =
            self.comparison.differences(tenant, &subject.schedules, &keys).instrument(super::span(tenant));
        let error = match tokio::time::timeout(LONGEST_LOOK, comparing).await {
            Ok(Ok(found)) => {
                subject.compared += found.compared;
                let behind = found.behind.into_iter().map(|one| ((one.member, one.id), one.version, None));
                memory.borrow_mut().see(tenant, behind);
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {LONGEST_LOOK:?}")),
        };
        if let Some(error) = error {
            subject.failed = true;
            memory.borrow_mut().tenants.entry(tenant.clone()).or_default();
            failed(memory, tenant, error);
        }
        progress.beat();
        let counts =
            Duration::from_secs_f64(keys.len() as f64 / f64::from(self.options.balances_per_second.max(1)));
        tokio::time::sleep_until(begun + counts).await;
    }
}
