//! What Redis and Postgres lose after they acknowledged it: evicted values and schedules, the last writes before a crash or a
//! failover, and the clock.
//!
//! The world keeps the truth: whatever is lost without a trace in Redis is counted as unseen and no longer asked for; all
//! else must still be written or listed.

use crate::{
    plan::{Fault, SECOND},
    postgres::Tables,
    redis::{self, Schedule},
    truth::{Truth, Unseen},
    values::{Document, Shape, State},
    watch::Kept,
    world::{CLAIM_TTL, What, World},
};

/// Values that live shorter than this may expire before anybody has seen them, in microseconds.
const SHORT_LIFE: u64 = 20 * SECOND / 1000;
/// Values that live shorter than this may expire where workers or Redis were away, in microseconds.
const MIDDLE_LIFE: u64 = 80 * SECOND / 1000;

/// A server as it was when its replica, or its disk, was last up to date.
#[derive(Debug)]
pub(crate) enum Snapshot {
    Redis(Vec<(Schedule, Vec<Truth>)>, Kept),
    Postgres(Tables),
}

impl World {
    /// Snapshots are taken before the faults that need them.
    pub(crate) fn plan_snapshots(&mut self) {
        for at in 0..self.plan.faults.len() {
            let (when, fault) = self.plan.faults[at];
            if let Fault::RedisCrash { lag, .. }
            | Fault::RedisFailover { lag, .. }
            | Fault::PostgresFailover { lag, .. } = fault
            {
                self.push(when.saturating_sub(lag), What::Snapshot(at));
            }
        }
    }

    pub(crate) fn take_snapshot(&mut self, fault: usize) {
        let snapshot = match self.plan.faults[fault].1 {
            Fault::PostgresFailover { tenant, .. } => {
                Snapshot::Postgres(self.tenants[tenant].postgres.tables.clone())
            }
            _ => Snapshot::Redis(
                self.tenants.iter().map(|tenant| (tenant.redis.clone(), tenant.truth.clone())).collect(),
                self.server.kept.clone(),
            ),
        };
        self.snapshots.push((fault, snapshot));
    }

    fn snapshot(&mut self, fault: usize) -> Option<Snapshot> {
        let at = self.snapshots.iter().position(|(of, _)| *of == fault)?;
        Some(self.snapshots.swap_remove(at).1)
    }

    // -- Redis ---------------------------------------------------------------------------------------------------

    /// Redis has lost the value of a balance by itself.
    pub(crate) fn value_lost(&mut self, at: usize, balance: usize, how: &str) {
        let now = self.now;
        let tenant = &mut self.tenants[at];
        tenant.redis.entries[balance].value = None;
        let row = tenant.postgres.version(balance);
        let truth = &mut tenant.truth[balance];
        truth.vanished_at = now;
        if truth.is_owed(row) && truth.newest <= truth.untraced {
            truth.excuse(now);
            self.outcome.unseen[Unseen::PostgresTail as usize] += 1;
        } else if truth.is_owed(row) && truth.gone.is_none() {
            truth.gone = Some(now);
            truth.unwritten.clear();
            self.outcome.values_lost += 1;
        }
        self.note(Some(at), || format!("the value of balance {balance} {how}"));
    }

    /// Values with a short life that no worker has claimed are lost when it is over. One that lived longer must have been
    /// protected, if there was anybody to do it. What is claimed has had its life raised: there is no excuse.
    pub(crate) fn expire_soon(&mut self, at: usize) {
        let (now, clock) = (self.now, self.clock());
        let mut next = u64::MAX;
        for balance in 0..self.plan.balances {
            let tenant = &self.tenants[at];
            let (entry, truth) = (&tenant.redis.entries[balance], &tenant.truth[balance]);
            let Some(value) = entry.value else { continue };
            if entry.score != Some(truth.score) || value.expires > clock + MIDDLE_LIFE {
                continue;
            }
            if value.expires > clock {
                next = next.min(now + (value.expires - clock) * 1000);
            } else if truth.life < SHORT_LIFE
                || truth.life < MIDDLE_LIFE && self.disturbed_until + 80 * SECOND > now
            {
                self.value_lost(at, balance, "expires");
            }
        }
        let planned = self.tenants[at].next_expiry;
        if next < u64::MAX && (planned <= now || next < planned) {
            self.tenants[at].next_expiry = next;
            self.push(next, What::Expiry { tenant: at });
        }
    }

    /// A deletion marker stands where the value was.
    pub(crate) fn value_marked(&mut self, at: usize, balance: usize, life: u64) {
        self.value_lost(at, balance, "is replaced by a deletion marker");
        let expires = self.clock() + life / 1000;
        let mark = self.tenants[at].marks.len() as u64;
        let document = Document { state: State { version: 0, mark }, shape: Shape::Marker };
        let value = crate::redis::Value { document, expires };
        self.tenants[at].redis.entries[balance].value = Some(value);
    }

    /// The schedule of a tenant is gone, and perhaps the open conditions with it.
    pub(crate) fn schedule_evicted(&mut self, at: usize) {
        let now = self.now;
        // Otherwise it has been deleted.
        let evicted = now.is_multiple_of(2);
        self.server.evicted += u64::from(evicted);
        if now.is_multiple_of(8) {
            self.server.kept.open.clear();
        }
        let by_count = !evicted || !self.server.knows_evictions();
        let tenant = &mut self.tenants[at];
        let mut lost = Vec::new();
        for (balance, truth) in tenant.truth.iter_mut().enumerate() {
            let entry = &mut tenant.redis.entries[balance];
            let owed = truth.is_owed(tenant.postgres.version(balance));
            if entry.score.take().is_some() && owed {
                truth.excuse(now);
                lost.push((balance, truth.newest));
            }
        }
        for (balance, version) in lost {
            self.outcome.unseen[Unseen::Schedule as usize] += 1;
            self.lose(at, balance, version, Unseen::Schedule, by_count);
        }
    }

    /// Redis goes on from what it, or its replica, had some time ago; `None` = from nothing.
    pub(crate) fn redis_loses(&mut self, fault: Option<usize>) {
        let now = self.now;
        let (kept, of_watch) = match fault.and_then(|fault| self.snapshot(fault)) {
            Some(Snapshot::Redis(kept, of_watch)) => (kept, of_watch),
            _ => {
                let balances = self.plan.balances;
                let nothing = || (Schedule::new(balances), vec![Truth::default(); balances]);
                (self.tenants.iter().map(|_| nothing()).collect(), Kept::default())
            }
        };
        self.server.kept = of_watch;
        self.server.process += 1;
        self.server.evicted = 0;
        let mut lost = Vec::new();
        self.registry.clear();
        for (at, (tenant, (redis, truths))) in self.tenants.iter_mut().zip(kept).enumerate() {
            let before = std::mem::replace(&mut tenant.redis, redis);
            for (balance, then) in truths.into_iter().enumerate() {
                let (row, entry) = (tenant.postgres.version(balance), &tenant.redis.entries[balance]);
                let truth = &mut tenant.truth[balance];
                if truth.is_owed(row) && truth.newest > then.newest {
                    lost.push((at, balance, truth.newest));
                } else if let Some(version) = before.entries[balance].loss.and_then(|loss| loss.version)
                    && version > row
                    && entry.loss.is_none()
                {
                    // It was listed, and the list is gone.
                    lost.push((at, balance, version));
                }
                let (highest, deleted, locked_until) = (truth.highest, truth.deleted, truth.locked_until);
                let untraced = truth.untraced;
                *truth =
                    Truth { highest, deleted, locked_until, untraced, listed: entry.loss.is_some(), ..then };
                truth.written(row);
                truth.changed_at = now;
                if deleted {
                    truth.vanished_at = now;
                    tenant.redis.entries[balance].value = None;
                } else if entry.score.is_none()
                    && truth.is_owed(row)
                    && !(truth.shape.is_poison() && entry.quarantined)
                    && !(truth.gone.is_some() && entry.loss.is_some())
                {
                    // Postgres has lost it meanwhile.
                    truth.excuse(now);
                    lost.push((at, balance, truth.newest));
                }
            }
            tenant.pod.crash();
        }
        for at in 0..self.tenants.len() {
            self.expire_soon(at);
        }
        for (at, balance, version) in lost {
            self.outcome.unseen[Unseen::RedisTail as usize] += 1;
            self.lose(at, balance, version, Unseen::RedisTail, false);
        }
        self.disturb(now + CLAIM_TTL);
    }

    /// Redis's clock moves.
    pub(crate) fn clock_jumps(&mut self, by: i64) {
        self.skew += by / 1000;
        // What was scheduled, leased or put off comes due later by as much.
        let later = if by < 0 { by.unsigned_abs() } else { 0 };
        self.disturb(self.now + later + CLAIM_TTL);
        for at in 0..self.tenants.len() {
            self.expire_soon(at);
        }
    }

    // -- Postgres ------------------------------------------------------------------------------------------------

    /// The ledger deletes a balance, which it does only when row and value agree.
    pub(crate) fn balance_deleted(&mut self, at: usize, balance: usize) {
        let now = self.now;
        let tenant = &mut self.tenants[at];
        let (row, truth) = (tenant.postgres.version(balance), &mut tenant.truth[balance]);
        if truth.newest == 0 || row != truth.newest || !truth.is_good() || truth.deleted {
            return;
        }
        truth.deleted = true;
        truth.vanished_at = now;
        tenant.postgres.tables.deleted[balance] = true;
        tenant.redis.entries[balance].value = None;
        self.note(Some(at), || format!("the ledger deletes balance {balance}"));
    }

    /// A standby that had not received the last commits is promoted.
    pub(crate) fn postgres_loses(&mut self, fault: usize, at: usize) {
        let now = self.now;
        let Some(Snapshot::Postgres(kept)) = self.snapshot(fault) else { return };
        let (clock, mut unseen_by_schedule) = (self.clock(), Vec::new());
        let tenant = &mut self.tenants[at];
        tenant.postgres.timeline += 1;
        let lost = std::mem::replace(&mut tenant.postgres.tables, kept);
        for (balance, truth) in tenant.truth.iter_mut().enumerate() {
            let (row, before) = (tenant.postgres.version(balance), lost.rows[balance].version);
            let entry = &tenant.redis.entries[balance];
            // Redis still knows of a deletion by the value that is not there.
            tenant.postgres.tables.deleted[balance] = lost.deleted[balance];
            if row == before && tenant.postgres.tables.trail[balance] == lost.trail[balance] {
                continue;
            }
            let trail = lost.trail[balance];
            if tenant.postgres.tables.trail[balance] < trail {
                truth.untraced = trail;
            }
            if !truth.is_owed(row) {
                continue;
            }
            // Its holder may have written it, and settle it however late: only the comparison makes it due.
            let held = row < before && truth.is_good() && entry.score.is_some_and(redis::is_lease);
            let unseen = entry.score.is_none() || held;
            let gone = entry.value.is_none() || truth.gone.is_some();
            if unseen || gone || tenant.pod.has_written(balance) {
                let lives = entry.value.is_some_and(|value| value.expires > clock);
                if lives && truth.is_good() && !gone && !truth.deleted {
                    unseen_by_schedule.push((balance, truth.newest));
                }
                truth.excuse(now);
                self.outcome.unseen[Unseen::PostgresTail as usize] += 1;
            } else if row < before {
                truth.unwritten.clear();
                truth.waits_since(now);
            }
        }
        for (balance, version) in unseen_by_schedule {
            self.lose(at, balance, version, Unseen::PostgresTail, false);
        }
        self.excuse(Some(at), now);
    }
}

/// How long a value that vanished may leave its balance undecided, unless it was put off for something else: the trail is
/// waited for, and again where something failed meanwhile.
pub(crate) const DECIDES: u64 = 180 * SECOND;
