//! What a shadow looks at: it claims, writes and removes nothing, and reports what becomes of what others are to write. What it
//! concludes stands in [`balance_sync_engine::shadow`].
//!
//! Two looks run side by side in one task, and fill the same memory:
//!
//! - here, what is *scheduled*: every [`SAMPLE_EVERY`] some members of each schedule with their values, by one call for 250
//!   schedules. Their rows, and those of everything that is open, are looked at until it is known what became of them.
//! - `walk`: now and then all balances that Redis holds, scheduled or not, are compared with their rows.
//!
//! Each asks for [`ShadowOptions::balances_per_second`] at most, over all tenants.

mod walk;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::{BalanceRef, BalanceValue};
use balance_sync_engine::shadow::{Finding, Look, ShadowReport, ShadowWatch};
use balance_sync_schedule::{
    ScheduleError, Scheduled, Schedules, Vanished as Store, inspect::is_lease, read_values, server_time,
};
use balance_sync_store::StoredVersion;
use balance_sync_tenants::Tenant;
use futures::StreamExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use super::comparison::{Comparison, Failure, asked, span};
use crate::{
    pipeline::SinkError,
    status::{FleetStatus, TenantState, TenantStatus},
    tasks::Progress,
};

/// Longest time between two signs of life: a statement that the server doesn't answer is given up before.
pub(crate) const INTERVAL: Duration = Duration::from_secs(30);
/// Between two looks at what is open, so that a lag is known to within it.
const STEP: Duration = Duration::from_secs(1);
/// Between two looks at the schedules.
const SAMPLE_EVERY: Duration = Duration::from_secs(4);
/// Tenants whose rows are looked at at the same time: one whose server gives no answer keeps no other waiting.
const AT_ONCE: usize = 8;
/// A tenant whose rows could not be read is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Longest look at one tenant.
const LONGEST_LOOK: Duration = Duration::from_secs(15);

/// Open balances over all tenants at most: some 30 MB.
const MOST_IN_ALL: usize = 100_000;

/// How a shadow looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShadowOptions {
    /// Balances that each of the two looks asks for per second, over all tenants.
    pub balances_per_second: u32,
    /// Between the beginnings of two comparisons of all balances that Redis holds.
    pub compare_interval: Duration,
}

/// A balance: its member, and the id of its row.
type Key = (Vec<u8>, Uuid);

/// A balance, the version of its value, and when it was mutated by Redis's clock, if that is known.
type Seen = (Key, i64, Option<f64>);

/// What is remembered of one tenant.
#[derive(Default)]
struct Watched {
    watch: ShadowWatch<Key>,
    /// The last comparison of all its balances that reached the end: how many there were, and when that was.
    compared: Option<(u64, f64)>,
    /// Why its rows could not be read, and when that was.
    failed: Option<(String, Instant)>,
}

/// What both looks remember.
#[derive(Default)]
struct Memory {
    tenants: BTreeMap<Tenant, Watched>,
    sampled: Option<Instant>,
    /// Tenants whose turn has come: it is another one's first each time.
    turn: usize,
}

impl Memory {
    /// Takes in values of a tenant that may be newer than their rows, as far as there is room.
    fn see(&mut self, tenant: &Tenant, seen: impl IntoIterator<Item = Seen>) {
        let now = Instant::now().into_std();
        let mut room = MOST_IN_ALL.saturating_sub(self.tenants.values().map(|one| one.watch.open()).sum());
        let watch = &mut self.tenants.entry(tenant.clone()).or_default().watch;
        for (key, version, mutated_at) in seen {
            // One that is open already takes no room.
            if room == 0 && watch.version(&key).is_none() {
                watch.overflow();
                continue;
            }
            let before = watch.open();
            watch.see(key, version, mutated_at, now);
            room -= watch.open() - before;
        }
    }

    /// What is to be looked at now, the fresh ones first: so many at most.
    fn wanted(&self, mut room: usize, now: Instant) -> BTreeMap<Tenant, Vec<(Key, i64)>> {
        let is_tried = |one: &Watched| one.failed.as_ref().is_none_or(|(_, at)| now - *at >= RETRY_AFTER);
        let mut tenants: Vec<_> = self.tenants.iter().filter(|(_, one)| is_tried(one)).collect();
        if !tenants.is_empty() {
            let first = self.turn % tenants.len();
            tenants.rotate_left(first);
        }
        let mut wanted: BTreeMap<Tenant, Vec<(Key, i64)>> = BTreeMap::new();
        for is_fresh in [true, false] {
            for (tenant, Watched { watch, .. }) in &tenants {
                let keys: Vec<&Key> = match is_fresh {
                    true => watch.fresh(now.into_std()).take(room).collect(),
                    false => watch.due(now.into_std()).take(room).collect(),
                };
                if keys.is_empty() {
                    continue;
                }
                room -= keys.len();
                let keys = keys.into_iter().filter_map(|key| Some((key.clone(), watch.version(key)?)));
                wanted.entry((*tenant).clone()).or_default().extend(keys);
            }
        }
        wanted
    }
}

/// The shadow's looks, with what they need.
#[derive(Clone)]
pub(crate) struct Shadow {
    comparison: Comparison,
    fleet: Arc<FleetStatus>,
    options: ShadowOptions,
}

impl Shadow {
    pub(crate) fn new(comparison: Comparison, fleet: Arc<FleetStatus>, options: ShadowOptions) -> Self {
        Self { comparison, fleet, options }
    }

    /// Looks until it is stopped.
    pub(crate) async fn run(self, stop: CancellationToken, progress: Progress) {
        let memory = RefCell::new(Memory::default());
        let looking = async {
            futures::join!(self.follow(&memory, &progress), self.walk_again_and_again(&memory, &progress))
        };
        // A look holds nothing that is lost when it is dropped.
        let _ = stop.run_until_cancelled(Box::pin(looking)).await;
    }

    /// The tenants that are only looked at.
    fn tenants(&self) -> Vec<Arc<TenantStatus>> {
        let mut all = self.fleet.tenants().to_vec();
        all.retain(|status| status.collector_state().state == TenantState::Shadow);
        all
    }

    async fn follow(&self, memory: &RefCell<Memory>, progress: &Progress) {
        loop {
            let begun = Instant::now();
            let tenants = self.tenants();
            let present: BTreeSet<&Tenant> = tenants.iter().map(|status| status.tenant()).collect();
            memory.borrow_mut().tenants.retain(|tenant, _| present.contains(tenant));
            if let Err(error) = self.sample(memory, &tenants).await {
                tracing::debug!(%error, "the schedules could not be looked at");
            }
            progress.beat();
            self.look_at_open(memory, &tenants, progress).await;
            progress.beat();
            tokio::time::sleep_until(begun + STEP).await;
        }
    }

    /// Takes in some members of each schedule, as far as there is room for more rows to look at.
    async fn sample(
        &self,
        memory: &RefCell<Memory>,
        tenants: &[Arc<TenantStatus>],
    ) -> Result<(), ScheduleError> {
        let now = Instant::now();
        if memory.borrow().sampled.is_some_and(|at| now - at < SAMPLE_EVERY) || tenants.is_empty() {
            return Ok(());
        }
        memory.borrow_mut().sampled = Some(now);
        let spaces: Vec<_> =
            tenants.iter().map(|status| status.tenant().key_spaces(self.comparison.key_form)).collect();
        let flat: Vec<_> = spaces.iter().flatten().collect();
        let store = Store::new(self.comparison.link.clone(), "");
        let mut counted = store.count(&flat).await?.into_iter();
        let now = Instant::now().into_std();
        let mut memory = memory.borrow_mut();
        let fresh: usize = memory.tenants.values().map(|one| one.watch.fresh(now).count()).sum();
        let mut room = (self.options.balances_per_second as usize).saturating_sub(fresh);
        let mut found: Vec<(&Arc<TenantStatus>, Vec<Seen>)> = Vec::new();
        for (status, spaces) in tenants.iter().zip(&spaces) {
            let mut seen = Vec::new();
            let mut is_readable = true;
            for (space, one) in spaces.iter().zip(counted.by_ref()) {
                is_readable &= one.members.is_some();
                seen.extend(one.some.into_iter().filter_map(|Scheduled { member, score, value }| {
                    BalanceRef::parse(space, &member).ok()?;
                    let BalanceValue { id, version, .. } = BalanceValue::of_member(&member, &value).ok()?;
                    // A worker of this fleet has claimed it: its score is not that of the mutation.
                    Some(((member, id), version, Some(score).filter(|score| !is_lease(*score))))
                }));
            }
            status.show_watched(is_readable);
            found.push((status, seen));
        }
        memory.turn += 1;
        let first = memory.turn % found.len();
        found.rotate_left(first);
        for (status, seen) in found.into_iter().filter(|(_, seen)| !seen.is_empty()) {
            if room == 0 {
                break;
            }
            room = room.saturating_sub(seen.len());
            memory.see(status.tenant(), seen);
        }
        Ok(())
    }

    /// Looks at what is open, the fresh ones first, as many as may be looked at in one step.
    async fn look_at_open(
        &self,
        memory: &RefCell<Memory>,
        tenants: &[Arc<TenantStatus>],
        progress: &Progress,
    ) {
        let mut wanted = memory.borrow().wanted(self.options.balances_per_second as usize, Instant::now());
        let wanted: Vec<_> = tenants
            .iter()
            .map(|status| (status, wanted.remove(status.tenant()).unwrap_or_default()))
            .collect();
        let looking =
            wanted.into_iter().filter(|(_, keys)| !keys.is_empty()).map(|(status, keys)| async move {
                let looked = self.look(status.tenant(), &keys).instrument(span(status.tenant()));
                let looked = tokio::time::timeout(LONGEST_LOOK, looked).await;
                progress.beat();
                match looked {
                    Ok(Ok((looks, redis_now))) => {
                        let looks = keys.into_iter().map(|(key, _)| key).zip(looks);
                        self.conclude(memory, status, looks, redis_now);
                    }
                    Ok(Err(error)) => failed(memory, status.tenant(), error.to_string()),
                    Err(_) => failed(memory, status.tenant(), format!("no answer within {LONGEST_LOOK:?}")),
                }
            });
        futures::stream::iter(looking).for_each_concurrent(AT_ONCE, |look| look).await;
        tenants.iter().for_each(|status| show(memory, status));
    }

    fn conclude(
        &self,
        memory: &RefCell<Memory>,
        status: &TenantStatus,
        looks: impl Iterator<Item = (Key, Look)>,
        redis_now: f64,
    ) {
        let mut memory = memory.borrow_mut();
        let Some(watched) = memory.tenants.get_mut(status.tenant()) else { return };
        watched.failed = None;
        let now = Instant::now().into_std();
        let (mut left_behind, mut lost) = (0_u64, 0_u64);
        for (key, look) in looks {
            match watched.watch.looked(&key, look, now, redis_now) {
                Some(Finding::LeftBehind) => left_behind += 1,
                Some(Finding::Lost) => lost += 1,
                None => {}
            }
        }
        if left_behind + lost > 0 {
            self.fleet.shadow_left_behind.fetch_add(left_behind, Relaxed);
            self.fleet.shadow_lost.fetch_add(lost, Relaxed);
            tracing::warn!(
                tenant_id = %status.tenant(),
                left_behind,
                lost,
                "whoever writes today has taken balances out of the schedule without writing them"
            );
        }
    }

    /// Looks at these balances of a tenant; what was found, in order, and Redis's clock after their rows were read.
    async fn look(&self, tenant: &Tenant, keys: &[(Key, i64)]) -> Result<(Vec<Look>, f64), Failure> {
        let schedules = self.comparison.schedules(tenant);
        let members: Vec<Vec<u8>> = keys.iter().map(|((member, _), _)| member.clone()).collect();
        // A worker writes the row before it takes the member out of the schedule: in this order none is missed.
        let gone: BTreeSet<Vec<u8>> = schedules.not_scheduled(&members).await?.into_iter().collect();
        let mut looks: Vec<Look> = members
            .iter()
            .map(|member| Look { row: None, scheduled: !gone.contains(member), listed: false, held: None })
            .collect();
        let pool = self.comparison.pool(tenant).await?;
        let (mut at, mut rows) = (Vec::new(), Vec::new());
        for (n, ((member, id), version)) in keys.iter().enumerate() {
            if let Ok(balance) = BalanceRef::parse(schedules.of_member(member).space(), member) {
                at.push(n);
                rows.push(asked(&balance, *id, *version));
            }
        }
        let versions = pool.database.versions(&pool.table, &rows).await.map_err(SinkError::from)?;
        for (n, version) in at.into_iter().zip(versions) {
            looks[n].row = version.and_then(StoredVersion::undeleted);
        }
        let redis_now = server_time(&self.comparison.link).await?;
        let is_suspect =
            |n: &usize| !looks[*n].scheduled && looks[*n].row.is_some_and(|row| row < keys[*n].1);
        let suspects: Vec<usize> = (0..keys.len()).filter(is_suspect).collect();
        self.examine(&schedules, &members, &suspects, &mut looks).await?;
        Ok((looks, redis_now))
    }

    /// What else there is to know of balances that are out of the schedule and behind.
    async fn examine(
        &self,
        schedules: &Schedules,
        members: &[Vec<u8>],
        suspects: &[usize],
        looks: &mut [Look],
    ) -> Result<(), Failure> {
        if suspects.is_empty() {
            return Ok(());
        }
        let suspected: Vec<Vec<u8>> = suspects.iter().map(|n| members[*n].clone()).collect();
        let values = read_values(&self.comparison.link, &suspected).await?;
        for (n, value) in suspects.iter().zip(values) {
            looks[*n].held = value.and_then(|value| Some(BalanceValue::decode(&value).ok()?.version));
            let member = members[*n].as_slice();
            let listed = schedules.of_member(member).listed(&[member]).await?;
            looks[*n].listed = listed.iter().any(Option::is_some);
        }
        // Scheduled again meanwhile.
        let gone: BTreeSet<Vec<u8>> = schedules.not_scheduled(&suspected).await?.into_iter().collect();
        for n in suspects {
            looks[*n].scheduled = !gone.contains(&members[*n]);
        }
        Ok(())
    }
}

fn failed(memory: &RefCell<Memory>, tenant: &Tenant, error: String) {
    tracing::debug!(tenant_id = %tenant, %error, "rows could not be looked at");
    if let Some(watched) = memory.borrow_mut().tenants.get_mut(tenant) {
        watched.failed = Some((error, Instant::now()));
    }
}

/// Shows what is known of a tenant.
fn show(memory: &RefCell<Memory>, status: &TenantStatus) {
    let memory = memory.borrow();
    let report = match memory.tenants.get(status.tenant()) {
        None => ShadowReport::default(),
        Some(watched) => ShadowReport {
            compared: watched.compared.map_or(0, |(balances, _)| balances),
            compared_at: watched.compared.map(|(_, at)| at),
            error: watched.failed.as_ref().map(|(error, _)| error.clone()),
            ..watched.watch.report(|(member, _)| String::from_utf8_lossy(member).into_owned())
        },
    };
    status.show_shadow(Some(report));
}
