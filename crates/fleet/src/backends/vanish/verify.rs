//! Whether what is gone from a schedule has been written.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::{BalanceRef, BalanceValue};
use balance_sync_engine::{
    neighbour::Presence,
    reason::Reason,
    vanish::{Found, Trace, Verdict, judge},
};
use balance_sync_schedule::{ScheduleError, Schedules, read_values};
use balance_sync_store::StoredVersion;
use balance_sync_tenants::Tenant;
use tracing::Instrument as _;

use super::{CONFIRM_AFTER, Count, Vanish, Watched, board::cut};
use crate::{
    backends::comparison::{Failure, Witness, asked, span},
    clock::wall_clock,
    pipeline::SinkError,
    status::{TenantStatus, Vanished},
};

/// Before this worker has served a tenant for so long, another one of the fleet may be the one that removes members.
const SERVED_FOR: Duration = Duration::from_secs(60);

impl Vanish {
    /// A schedule has shrunk by more than this worker has removed: finds out whether what is gone has been written.
    pub(super) async fn verify(&self, watched: &mut Watched, count: Count, shortfall: u64) {
        let status = Arc::clone(&count.status);
        let tenant = status.tenant();
        let shortfall = watched.suspected.map_or(shortfall, |(_, suspected)| shortfall.max(suspected));
        let schedules = self.comparison.schedules(tenant);
        let looking = async {
            let mut forgotten = self.forgotten(tenant, &schedules, watched.schedule.witnesses()).await?;
            // Only a worker that can read them removes them for a good reason.
            if shortfall > 0 && !self.is_neighbour_active(&status) {
                forgotten.append(&mut self.forgotten_unread(&schedules, &watched.unread).await?);
            }
            Ok::<_, Failure>(forgotten)
        };
        let is_open = self.board.lock().contains_key(tenant);
        match looking.instrument(span(tenant)).await {
            // Nothing is remembered that could prove anything: the values were gone before the schedule, as in a Redis that evicts.
            Ok(forgotten)
                if forgotten.is_empty()
                    && shortfall > 0
                    && is_open
                    && watched.schedule.witnesses().is_empty() =>
            {
                let detail =
                    format!("{shortfall} members have left the schedule, and their values were gone before");
                self.open(&status, Reason::RedisScheduleVanished, shortfall, true, detail, watched);
                watched.suspected = None;
                watched.remember(count);
            }
            Ok(forgotten) if forgotten.is_empty() => {
                if shortfall > 0 && status.is_served_for(SERVED_FOR) {
                    let now = self.fleet.redis_clock();
                    status.update_neighbour(|neighbour| neighbour.left(now, self.fleet.claim_quiet()));
                }
                if watched.suspected.take().is_some() && !is_open {
                    status.show_vanished(None);
                }
                watched.remember(count);
            }
            Ok(forgotten) => {
                let shortfall = shortfall.max(forgotten.len() as u64);
                let names = forgotten.iter().map(|member| cut(&String::from_utf8_lossy(member)));
                let now = self.fleet.redis_clock();
                let by_neighbour = status
                    .update_neighbour(|neighbour| neighbour.dropped(now, names, self.fleet.claim_quiet()));
                if by_neighbour {
                    self.fleet.neighbour_dropped.fetch_add(forgotten.len() as u64, Relaxed);
                }
                let by = if by_neighbour { ", while the ledger's own worker is active" } else { "" };
                let detail = format!("{shortfall} members have left the schedule unwritten{by}");
                self.open(&status, Reason::RedisScheduleVanished, shortfall, true, detail, watched);
                watched.suspected = None;
                watched.remember(count);
            }
            // Redis has lost data anyway.
            Err(_) if is_open => {
                let detail = format!("{shortfall} members have left the schedule");
                self.open(&status, Reason::RedisScheduleVanished, shortfall, true, detail, watched);
                watched.remember(count);
            }
            // What is remembered stays: the rows are read as soon as they can be.
            Err(error) => {
                let (since, _) = watched.suspected.unwrap_or((wall_clock(), 0));
                watched.suspected = Some((since, shortfall));
                status.show_vanished(Some(Vanished {
                    reason: Reason::RedisScheduleVanished,
                    extent: shortfall,
                    since,
                    detail: format!("{shortfall} members have left the schedule, perhaps unwritten"),
                    phase: cut(&format!("rows can't be read to find out: {error}")),
                    found: Found::default(),
                }));
            }
        }
    }

    /// Which of these members are neither scheduled nor written nor listed; looked at twice.
    pub(super) async fn forgotten(
        &self,
        tenant: &Tenant,
        schedules: &Schedules,
        witnesses: &[Witness],
    ) -> Result<Vec<Vec<u8>>, Failure> {
        let mut suspects: Vec<&Witness> = witnesses.iter().collect();
        for round in 0..2 {
            if round > 0 {
                // Another worker may have written it a moment after its row was read.
                tokio::time::sleep(CONFIRM_AFTER).await;
            }
            let traces = self.traces(tenant, schedules, &suspects).await?;
            if judge(&traces) == Verdict::Written {
                return Ok(Vec::new());
            }
            let forgotten = suspects.into_iter().zip(traces).filter(|(_, trace)| *trace == Trace::Forgotten);
            suspects = forgotten.map(|(witness, _)| witness).collect();
        }
        Ok(suspects.into_iter().map(|witness| witness.member.clone()).collect())
    }

    /// Whether the ledger's own worker is at work.
    fn is_neighbour_active(&self, status: &TenantStatus) -> bool {
        let (now, quiet) = (self.fleet.redis_clock(), self.fleet.claim_quiet());
        status.neighbour().is_some_and(|known| known.presence(now, quiet) == Presence::Active)
    }

    /// Which of these members, whose values were in the format of a later release, still have such values and are neither
    /// scheduled nor listed; looked at twice. No worker of ours removes them.
    async fn forgotten_unread(
        &self,
        schedules: &Schedules,
        members: &[Vec<u8>],
    ) -> Result<Vec<Vec<u8>>, Failure> {
        let mut suspects = members.to_vec();
        for round in 0..2 {
            if suspects.is_empty() {
                break;
            }
            if round > 0 {
                tokio::time::sleep(CONFIRM_AFTER).await;
            }
            let values = read_values(&self.comparison.link, &suspects).await?;
            let is_unread = |value: &Option<Vec<u8>>| {
                let read = value.as_ref().map(|value| BalanceValue::decode(value));
                matches!(read, Some(Err(error)) if error.is_unknown_format())
            };
            let unread = suspects.iter().zip(&values).filter(|(_, value)| is_unread(value));
            let unread: Vec<&[u8]> = unread.map(|(member, _)| member.as_slice()).collect();
            suspects = self.comparison.left_behind(schedules, &unread).await?;
        }
        Ok(suspects)
    }

    async fn traces(
        &self,
        tenant: &Tenant,
        schedules: &Schedules,
        witnesses: &[&Witness],
    ) -> Result<Vec<Trace>, Failure> {
        let mut traces = vec![Trace::Scheduled; witnesses.len()];
        let gone = self.unscheduled(schedules, witnesses).await?;
        if gone.is_empty() {
            return Ok(traces);
        }
        let pool = self.comparison.pool(tenant).await?;
        let rows: Vec<_> = gone
            .iter()
            .filter_map(|&n| {
                let Witness { member, id, version } = witnesses[n];
                let balance = BalanceRef::parse(schedules.of_member(member).space(), member).ok()?;
                Some((n, asked(&balance, *id, *version)))
            })
            .collect();
        let all: Vec<_> = rows.iter().map(|(_, row)| *row).collect();
        let versions = pool.database.versions(&pool.table, &all).await.map_err(SinkError::from)?;
        let mut open = Vec::new();
        for ((n, row), stored) in rows.iter().zip(versions) {
            let version = stored.and_then(StoredVersion::undeleted);
            // Without a row, or with a deleted one, nothing can be behind.
            if version.is_none_or(|version| version >= row.version) {
                traces[*n] = Trace::Written;
            } else {
                open.push(*n);
            }
        }
        for &n in &open {
            let member = witnesses[n].member.as_slice();
            let listed = schedules.of_member(member).listed(&[member]).await?;
            traces[n] = if listed.iter().any(Option::is_some) { Trace::Listed } else { Trace::Forgotten };
        }
        // Scheduled again meanwhile.
        let suspects: Vec<&Witness> = open.iter().map(|&n| witnesses[n]).collect();
        let gone = self.unscheduled(schedules, &suspects).await?;
        for (at, &n) in open.iter().enumerate() {
            if !gone.contains(&at) {
                traces[n] = Trace::Scheduled;
            }
        }
        Ok(traces)
    }

    /// The positions of those that are not scheduled.
    async fn unscheduled(
        &self,
        schedules: &Schedules,
        witnesses: &[&Witness],
    ) -> Result<Vec<usize>, ScheduleError> {
        let mut gone: BTreeSet<Vec<u8>> = BTreeSet::new();
        for schedule in schedules.iter() {
            let prefix = schedule.space().balance_prefix();
            let own: Vec<Vec<u8>> = witnesses
                .iter()
                .filter(|witness| witness.member.starts_with(prefix.as_bytes()))
                .map(|witness| witness.member.clone())
                .collect();
            gone.extend(schedule.not_scheduled(&own).await?);
        }
        Ok((0..witnesses.len()).filter(|&n| gone.contains(&witnesses[n].member)).collect())
    }
}
