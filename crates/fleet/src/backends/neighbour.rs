//! The ledger's own worker beside this one: what is known of it is shared with the other workers, and what it has dropped is found
//! and scheduled again. What is concluded stands in [`balance_sync_engine::neighbour`].
//!
//! Of tenants at rest there is nothing to be seen, as no worker claims from their schedules: they are passed over in most passes.
//!
//! The signs come from elsewhere: claims look for its locks ([`super::RedisQueue`]), and the watch for vanished data counts members
//! that leave without this worker ([`super::vanish`]). Here, every few seconds, they are merged with what other workers know, two
//! commands for 500 tenants.
//!
//! A worker of a release up to 4.0 removes balances unwritten that writers of 4.1 and later have scheduled. The watch for vanished
//! data sees that only of members that it has remembered. So next to such writers all values of the tenant are compared with
//! their rows, from time to time while it is active, and once when it has fallen silent.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::KeySpace;
use balance_sync_engine::neighbour::{HOW_TO_PARK, Neighbour, Presence};
use balance_sync_schedule::{BalanceKeys, ClaimMode, Neighbours, ScheduleError, Schedules};
use balance_sync_tenants::Tenant;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::comparison::{COMPARE_PAUSE, Comparison, Failure, span};
use crate::{
    status::{FleetStatus, SWEEP_EVERY, TenantState, TenantStatus},
    tasks::{Progress, jittered},
};

/// Longest time between two signs of life.
pub(crate) const INTERVAL: Duration = Duration::from_secs(30);
/// How often what is known is shared.
const SHARE_EVERY: Duration = Duration::from_secs(5);
/// The same where a short quiet time is configured.
const SHARE_EVERY_MIN: Duration = Duration::from_millis(250);
/// How much later it must have been seen to be worth being shared.
const SHARE_SEEN_EVERY: f64 = 5.0;
/// How often it is shared that nothing was seen.
const SHARE_SILENCE_EVERY: f64 = 60.0;
/// How often all values of a tenant are compared while its members may be dropped.
const COMPARE_EVERY: Duration = Duration::from_secs(600);
/// Tenants compared in one walk over the keys of Redis.
const COMPARED_AT_ONCE: usize = 50;
/// Balances compared in one call to Redis and one to Postgres.
const PAGE: usize = 500;
/// Pause after each page of keys: at most some 100,000 keys per second.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two looks at a balance that counts as dropped: one that is merely being written is over then.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);
/// Balances of a tenant that are looked at a second time; the rest waits for the next comparison.
const SUSPECTS: usize = 2000;

/// Watches the ledger's own worker.
#[derive(Clone)]
pub(crate) struct NeighbourWatch {
    pub(crate) comparison: Comparison,
    pub(crate) fleet: Arc<FleetStatus>,
}

/// What is remembered of a tenant between two passes.
#[derive(Default)]
struct Remembered {
    presence: Option<Presence>,
    is_deadly: bool,
    takes_locks: Option<bool>,
    /// The record that stands in Redis, as far as this worker knows.
    stored: Option<Neighbour>,
    /// Values of newer releases were written while it was active, and not all have been compared since.
    uncompared: bool,
    compared: Option<Instant>,
}

/// A tenant under comparison.
struct Subject {
    status: Arc<TenantStatus>,
    schedules: Schedules,
    /// Keys found and not compared yet.
    keys: Vec<Vec<u8>>,
    suspects: Vec<Vec<u8>>,
    failed: bool,
}

impl NeighbourWatch {
    /// Watches until it is stopped.
    pub(crate) async fn run(self, stop: CancellationToken, progress: Progress) {
        let store = Neighbours::new(self.comparison.link.clone());
        let mut memory: BTreeMap<Tenant, Remembered> = BTreeMap::new();
        let mut swept: Option<Instant> = None;
        let watching = async {
            loop {
                let sweeps = swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY);
                let tenants = self.served(sweeps);
                if sweeps {
                    swept = Some(Instant::now());
                    memory.retain(|tenant, _| {
                        tenants.binary_search_by(|status| status.tenant().cmp(tenant)).is_ok()
                    });
                }
                if let Err(error) = self.share(&store, &tenants, &mut memory).await {
                    tracing::debug!(%error, "what is known of the ledger's own worker is not shared yet");
                }
                progress.beat();
                self.report(&tenants, &mut memory);
                let due = self.due(&tenants, &mut memory);
                if !due.is_empty()
                    && let Err(error) = self.compare(due, &mut memory, &progress).await
                {
                    tracing::debug!(%error, "what the ledger's own worker has dropped can't be looked for yet");
                }
                progress.beat();
                tokio::time::sleep(jittered(SHARE_EVERY.min(self.fleet.claim_quiet()).max(SHARE_EVERY_MIN)))
                    .await;
            }
        };
        stop.run_until_cancelled(watching).await;
    }

    /// The tenants whose schedules this worker claims from, in order: all of them, or those that are not at rest.
    fn served(&self, all: bool) -> Vec<Arc<TenantStatus>> {
        let mut tenants = if all { self.fleet.tenants().to_vec() } else { self.fleet.rest.active() };
        if !all {
            tenants.sort_unstable_by(|a, b| a.tenant().cmp(b.tenant()));
        }
        tenants.retain(|status| !status.standby.load(Relaxed));
        tenants
    }

    /// Merges what is known with what stands in Redis, and stores what is new.
    async fn share(
        &self,
        store: &Neighbours,
        tenants: &[Arc<TenantStatus>],
        memory: &mut BTreeMap<Tenant, Remembered>,
    ) -> Result<(), ScheduleError> {
        let is_auto =
            self.fleet.in_force.get().is_some_and(|in_force| in_force.claim_mode == ClaimMode::Auto);
        let labels: Vec<&str> = tenants.iter().map(|status| status.tenant().label()).collect();
        let records = store.get(&labels).await?;
        let now = self.fleet.redis_clock();
        let mut changed: Vec<(&Arc<TenantStatus>, Neighbour)> = Vec::new();
        for (status, record) in tenants.iter().zip(records) {
            // Of a release that knows more: what this one stores in its place is no worse than nothing.
            let record = record.and_then(|record| serde_json::from_str::<Neighbour>(&record).ok());
            if record.is_none() && !is_auto && !status.knows_neighbour() {
                // Of most tenants there is nothing to be remembered.
                continue;
            }
            let collects = matches!(
                status.collector_state().state,
                TenantState::Idle | TenantState::Syncing | TenantState::Degraded
            );
            let known = status.update_neighbour(|neighbour| {
                if let Some(record) = &record {
                    neighbour.merge(record);
                }
                if collects {
                    neighbour.watched(now);
                }
                neighbour.clone()
            });
            let remembered = memory.entry(status.tenant().clone()).or_default();
            remembered.stored = record;
            if (is_auto || known.was_seen()) && is_news(&known, remembered.stored.as_ref()) {
                changed.push((status, known));
            }
        }
        let texts: Vec<(&str, String)> = changed
            .iter()
            .map(|(status, known)| {
                (status.tenant().label(), serde_json::to_string(known).unwrap_or_default())
            })
            .collect();
        store.set(&texts).await
    }

    /// Logs what has changed.
    fn report(&self, tenants: &[Arc<TenantStatus>], memory: &mut BTreeMap<Tenant, Remembered>) {
        let (now, quiet) = (self.fleet.redis_clock(), self.fleet.claim_quiet());
        for status in tenants {
            let Some(known) = status.neighbour() else { continue };
            let remembered = memory.entry(status.tenant().clone()).or_default();
            let tenant = status.tenant();
            let presence = known.presence(now, quiet);
            if remembered.presence != Some(presence) {
                match presence {
                    Presence::Active => tracing::warn!(
                        tenant_id = %tenant, sign = known.sign.map(|sign| sign.as_str()),
                        "the ledger's own worker is active: {HOW_TO_PARK}"
                    ),
                    Presence::Quiet => {
                        tracing::info!(tenant_id = %tenant, "the ledger's own worker is quiet");
                    }
                    Presence::Parked => {
                        tracing::info!(tenant_id = %tenant, "the ledger's own worker is parked");
                    }
                    Presence::Unknown | Presence::NotSeen => {}
                }
                remembered.presence = Some(presence);
                status.rouse();
            }
            let is_deadly = known.is_deadly_mix(now, quiet);
            status.show_neighbour(presence == Presence::Active, is_deadly);
            if is_deadly && !remembered.is_deadly {
                tracing::warn!(
                    tenant_id = %tenant, dropped = known.dropped,
                    "the ledger's own worker is of a release up to 4.0 next to writers of 4.1 or later, and removes their balances unwritten: \
                     {HOW_TO_PARK}"
                );
            }
            remembered.is_deadly = is_deadly;
            let takes_locks = status.takes_locks.load(Relaxed);
            if remembered.takes_locks.is_some_and(|before| before != takes_locks) {
                let mode = if takes_locks { ClaimMode::Lock } else { ClaimMode::Lease };
                tracing::info!(tenant_id = %tenant, claim_mode = mode.as_str(), "claims change their mode");
            }
            remembered.takes_locks = Some(takes_locks);
        }
    }

    /// The tenants whose values are to be compared now.
    fn due(
        &self,
        tenants: &[Arc<TenantStatus>],
        memory: &mut BTreeMap<Tenant, Remembered>,
    ) -> Vec<Arc<TenantStatus>> {
        let (now, quiet) = (self.fleet.redis_clock(), self.fleet.claim_quiet());
        let mut due = Vec::new();
        for status in tenants {
            let Some(known) = status.neighbour() else { continue };
            let remembered = memory.entry(status.tenant().clone()).or_default();
            let may_drop = known.may_drop(now, quiet);
            // A worker that has just started doesn't know what was compared before.
            let had_begun = known.newer_at > 0.0 && known.presence(now, quiet) == Presence::Quiet;
            remembered.uncompared |= may_drop || had_begun && remembered.compared.is_none();
            let is_time = if may_drop {
                remembered.compared.get_or_insert_with(Instant::now).elapsed() >= COMPARE_EVERY
            } else {
                remembered.uncompared
            };
            let can = matches!(status.collector_state().state, TenantState::Idle | TenantState::Syncing);
            if is_time && can && due.len() < COMPARED_AT_ONCE {
                due.push(Arc::clone(status));
            }
        }
        due
    }

    /// Compares all values of these tenants with their rows, and schedules again what was dropped.
    async fn compare(
        &self,
        tenants: Vec<Arc<TenantStatus>>,
        memory: &mut BTreeMap<Tenant, Remembered>,
        progress: &Progress,
    ) -> Result<(), ScheduleError> {
        let mut subjects: Vec<Subject> = tenants
            .into_iter()
            .map(|status| Subject {
                schedules: self.comparison.schedules(status.tenant()),
                status,
                keys: Vec::new(),
                suspects: Vec::new(),
                failed: false,
            })
            .collect();
        let (owners, spaces): (Vec<usize>, Vec<KeySpace>) = subjects
            .iter()
            .enumerate()
            .flat_map(|(n, subject)| subject.schedules.iter().map(move |one| (n, one.space().clone())))
            .unzip();
        let mut keys = BalanceKeys::new(self.comparison.link.clone(), spaces);
        while let Some(page) = keys.next().await? {
            for (space, key) in page {
                let subject = &mut subjects[owners[space]];
                subject.keys.push(key);
                if subject.keys.len() == PAGE {
                    self.suspect(subject).await;
                    progress.beat();
                }
            }
            progress.beat();
            tokio::time::sleep(PAUSE).await;
        }
        for subject in &mut subjects {
            self.suspect(subject).await;
            progress.beat();
        }
        tokio::time::sleep(CONFIRM_AFTER).await;
        for subject in subjects {
            let tenant = subject.status.tenant().clone();
            let is_whole = !subject.failed && subject.suspects.len() < SUSPECTS;
            let done = self.schedule_dropped(&subject).instrument(span(&tenant)).await;
            if let Err(error) = &done {
                tracing::debug!(tenant_id = %tenant, %error, "what was dropped can't be scheduled again yet");
            }
            if is_whole && done.is_ok() {
                let remembered = memory.entry(tenant).or_default();
                remembered.compared = Some(Instant::now());
                remembered.uncompared = false;
            }
            progress.beat();
        }
        Ok(())
    }

    /// Compares the keys that were found; what is behind and not scheduled is suspected.
    async fn suspect(&self, subject: &mut Subject) {
        let keys = std::mem::take(&mut subject.keys);
        if keys.is_empty() || subject.failed || subject.suspects.len() >= SUSPECTS {
            return;
        }
        let tenant = subject.status.tenant();
        match self.unwritten(tenant, &subject.schedules, &keys).instrument(span(tenant)).await {
            Ok(found) => subject.suspects.extend(found.into_iter().take(SUSPECTS - subject.suspects.len())),
            Err(error) => {
                tracing::debug!(tenant_id = %tenant, %error, "values are not compared with rows");
                subject.failed = true;
            }
        }
        tokio::time::sleep(COMPARE_PAUSE).await;
    }

    /// Which of these balances are newer than their rows, although they are not scheduled and no operator knows of them.
    async fn unwritten(
        &self,
        tenant: &Tenant,
        schedules: &Schedules,
        keys: &[Vec<u8>],
    ) -> Result<Vec<Vec<u8>>, Failure> {
        let behind = self.comparison.differences(tenant, schedules, keys).await?.behind;
        let behind: Vec<Vec<u8>> = behind.into_iter().map(|witness| witness.member).collect();
        let mut found = Vec::new();
        for member in schedules.not_scheduled(&behind).await? {
            if schedules.of_member(&member).listed(&[&member]).await? == [None] {
                found.push(member);
            }
        }
        Ok(found)
    }

    /// Looks a second time, and schedules what is still unwritten.
    async fn schedule_dropped(&self, subject: &Subject) -> Result<(), Failure> {
        let status = &subject.status;
        for page in subject.suspects.chunks(PAGE) {
            let dropped = self.unwritten(status.tenant(), &subject.schedules, page).await?;
            if dropped.is_empty() {
                continue;
            }
            let names: Vec<String> =
                dropped.iter().map(|member| String::from_utf8_lossy(member).into_owned()).collect();
            let members: Vec<&[u8]> = dropped.iter().map(Vec::as_slice).collect();
            subject.schedules.schedule_again(&members).await?;
            let now = self.fleet.redis_clock();
            self.fleet.neighbour_dropped.fetch_add(dropped.len() as u64, Relaxed);
            status.update_neighbour(|neighbour| {
                neighbour.dropped(now, names.into_iter(), self.fleet.claim_quiet())
            });
            tracing::warn!(
                tenant_id = %status.tenant(), balances = dropped.len(),
                "balances were out of the schedule unwritten beside the ledger's own worker: scheduled again"
            );
        }
        Ok(())
    }
}

/// Whether what is known is worth being stored in the place of that.
fn is_news(known: &Neighbour, stored: Option<&Neighbour>) -> bool {
    let Some(stored) = stored else { return true };
    let is_like = |a: f64, b: f64| (a - b).abs() < SHARE_SEEN_EVERY;
    let same = is_like(known.seen_at, stored.seen_at)
        && is_like(known.newer_at, stored.newer_at)
        && known.active_from == stored.active_from
        && known.dropped == stored.dropped
        && known.looks == stored.looks;
    !same || known.watched_at - stored.watched_at >= SHARE_SILENCE_EVERY
}
