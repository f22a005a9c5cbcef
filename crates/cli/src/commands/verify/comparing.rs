//! One tenant of a verification: keys that come together to pages, and balances that wait for another look. Both are bounded.

use std::time::{Duration, Instant};

use balance_sync_schedule::Schedules;
use balance_sync_tenants::Tenant;

use super::{
    TenantResult,
    difference::{Difference, Open},
    verifier::{PAGE, Repair, Side, Verifier},
};

/// Most balances of a tenant that wait for another look. With as many, no further keys are read until they are settled.
const MAX_OPEN: usize = 20_000;
/// How long connections may take to end.
const CLOSE: Duration = Duration::from_secs(1);

/// What is compared, and how.
pub(super) struct Task<'a> {
    pub(super) verifier: &'a Verifier,
    /// Differences that are named, at most.
    pub(super) show: usize,
    pub(super) deadline: Option<Instant>,
    pub(super) repair: Repair,
}

/// One tenant that is compared. What it keeps is bounded: keys that wait, and [`MAX_OPEN`] balances that differ.
pub(super) struct Comparing<'a> {
    task: &'a Task<'a>,
    pub(super) tenant: &'a Tenant,
    schedules: Schedules,
    side: Option<Side>,
    pub(super) waiting: Vec<Vec<u8>>,
    open: Vec<Open>,
    pub(super) result: TenantResult,
    pub(super) differences: Vec<String>,
    pub(super) failed: Option<anyhow::Error>,
    pub(super) repaired: u64,
}

impl<'a> Comparing<'a> {
    pub(super) fn new(task: &'a Task<'a>, tenant: &'a Tenant) -> Self {
        Self {
            task,
            tenant,
            schedules: task.verifier.schedules(tenant),
            side: None,
            waiting: Vec::new(),
            open: Vec::new(),
            result: TenantResult { tenant: tenant.label().to_owned(), ..TenantResult::default() },
            differences: Vec::new(),
            failed: None,
            repaired: 0,
        }
    }

    /// Compares keys that wait, full pages or all of them; gives how many wait no longer.
    pub(super) async fn look_at_waiting(&mut self, all: bool) -> usize {
        let before = self.waiting.len();
        if self.failed.is_some() {
            self.waiting.clear();
        }
        while self.waiting.len() >= PAGE || (all && !self.waiting.is_empty()) {
            let mut page = self.waiting.split_off(self.waiting.len().saturating_sub(PAGE));
            // A key may come twice.
            page.sort_unstable();
            page.dedup();
            if let Err(error) = self.page(page).await {
                self.failed = Some(error);
                self.waiting.clear();
            }
        }
        before - self.waiting.len()
    }

    async fn page(&mut self, page: Vec<Vec<u8>>) -> anyhow::Result<()> {
        let verifier = self.task.verifier;
        if self.side.is_none() {
            self.side = Some(verifier.open(self.tenant).await?);
        }
        let Some(side) = &self.side else { return Ok(()) };
        let page = page.into_iter().map(Open::new).collect();
        let looked = verifier.look(side, &self.schedules, page, &mut self.result, &mut self.differences);
        let mut open = looked.await?;
        self.differences.truncate(self.task.show);
        self.open.append(&mut open);
        if self.open.len() >= MAX_OPEN { self.settle().await } else { Ok(()) }
    }

    /// The rest of it.
    pub(super) async fn end(&mut self) {
        self.look_at_waiting(true).await;
        if self.failed.is_none()
            && let Err(error) = self.finish().await
        {
            self.failed = Some(error);
        }
        if let Some(side) = self.side.take() {
            side.database.close(CLOSE).await;
        }
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        self.settle().await?;
        let backlog = self.schedules.backlog().await?;
        self.result.scheduled = backlog.due + backlog.leased;
        self.result.distant = self.schedules.distant().await?;
        self.result.quarantined = self.schedules.quarantine_len().await?;
        if self.task.repair != Repair::Nothing && self.result.distant > 0 {
            self.repaired += self.schedules.reschedule_distant().await?;
        }
        Ok(())
    }

    /// Looks again at what differs, until it is settled or counts as different.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let open = std::mem::take(&mut self.open);
        let Some(side) = &self.side else { return Ok(()) };
        let Task { verifier, show, deadline, repair } = *self.task;
        let (result, differences) = (&mut self.result, &mut self.differences);
        let open = verifier.settle(side, &self.schedules, open, result, differences, deadline).await?;
        let mut behind = Vec::new();
        for Open { member, reached, found, .. } in open {
            if differences.len() < show {
                differences.push(format!("{}: {}", String::from_utf8_lossy(&member), found.words(reached)));
            }
            match found {
                Difference::Missing => result.missing += 1,
                Difference::Behind(_) => result.behind += 1,
                Difference::Ahead { .. } => result.ahead += 1,
                Difference::Other => result.different += 1,
            }
            let counts = match repair {
                Repair::WithRows => matches!(found, Difference::Behind(_)),
                Repair::Nothing | Repair::All => matches!(found, Difference::Missing | Difference::Behind(_)),
            };
            if counts {
                behind.push((member, reached));
            }
        }
        let quarantined = if behind.is_empty() { 0 } else { self.schedules.quarantine_len().await? };
        for page in behind.chunks(PAGE) {
            let mut free = verifier.unscheduled(side, &self.schedules, page).await?;
            if quarantined > 0 {
                // Quarantined members are looked after by hand.
                let entries = free.iter().map(|member| self.schedules.quarantine_get(member));
                let mut entries = futures::future::try_join_all(entries).await?.into_iter();
                free.retain(|_| entries.next().is_some_and(|entry| entry.is_none()));
            }
            self.result.unscheduled += free.len() as u64;
            if repair != Repair::Nothing && !free.is_empty() {
                let free: Vec<&[u8]> = free.iter().map(Vec::as_slice).collect();
                self.repaired += self.schedules.schedule_again(&free).await?;
            }
        }
        Ok(())
    }
}
