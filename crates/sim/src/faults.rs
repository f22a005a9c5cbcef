//! What goes wrong: carries out the faults of a plan.

use balance_sync_engine::collector::{Event, Role};

use crate::{
    plan::{Fault, SECOND},
    redis::Held,
    world::{CLAIM_TTL, LATE, Tenant, What, World},
};

/// A stopped worker drains within 8 s, and releases what is left within 2 s.
const DRAINS: u64 = 12 * SECOND;

/// A change of the list of tenants is noticed within this.
pub(crate) const NOTICED: u64 = 15 * SECOND;
/// A list without tenants is not believed for this long: three polls must agree, and two of them are at least five seconds apart.
const DOUBTED: u64 = 10 * SECOND;

impl World {
    pub(crate) fn fault(&mut self, at: usize, fault: Fault) {
        self.note(None, || format!("fault: {fault:?}"));
        let (now, end) = (self.now, self.end);
        // Everything is over when producers stop.
        let until = |lasts: u64| (now + lasts).min(end);
        match fault {
            Fault::Crash { worker, down } => {
                if !self.workers[worker].up {
                    return;
                }
                for tenant in 0..self.plan.tenants {
                    let held = self.in_flight(worker, tenant);
                    if held > 0 {
                        self.note(Some(tenant), || format!("worker {worker} dies with {held} members"));
                    }
                }
                let at = &mut self.workers[worker];
                at.up = false;
                at.incarnation += 1;
                at.actors.clear();
                at.watcher = None;
                at.restarts_at = until(down);
                self.disturb(now + CLAIM_TTL);
                self.push(until(down), What::Start { worker });
            }
            Fault::Stop { worker, down } => {
                let at = &mut self.workers[worker];
                if !at.up || at.stopping || at.frozen_until > now {
                    return;
                }
                at.stopping = true;
                self.deregister(worker);
                let at = &mut self.workers[worker];
                at.restarts_at = until(down);
                // No excuse for lateness: what it holds is written or released at once.
                self.disturbed_until = self.disturbed_until.max(until(down));
                for tenant in 0..self.plan.tenants {
                    self.handle(worker, tenant, Event::Stop);
                }
                self.collector_ended(worker);
            }
            Fault::Freeze { worker, lasts } => self.freeze(worker, until(lasts)),
            Fault::RedisDown { lasts } => {
                self.redis_down_until = self.redis_down_until.max(until(lasts));
                self.disturb(until(lasts) + CLAIM_TTL);
            }
            Fault::RedisCut { worker, lasts } => {
                let at = &mut self.workers[worker];
                at.cut_until = at.cut_until.max(until(lasts));
                self.disturb(until(lasts) + CLAIM_TTL);
            }
            Fault::Flaky { worker, lasts } => {
                let at = &mut self.workers[worker];
                at.flaky_until = at.flaky_until.max(until(lasts));
                self.disturb(until(lasts) + LATE + CLAIM_TTL);
            }
            Fault::PostgresDown { tenant, lasts } => {
                let postgres = &mut self.tenants[tenant].postgres;
                postgres.down_until = postgres.down_until.max(until(lasts));
                // It was restarted, or the network to it was cut.
                if (lasts / (SECOND / 1000)).is_multiple_of(2) {
                    postgres.started = now;
                }
                self.excuse(Some(tenant), until(lasts));
            }
            Fault::PostgresHangs { tenant, lasts } => {
                let postgres = &mut self.tenants[tenant].postgres;
                postgres.hangs_until = postgres.hangs_until.max(until(lasts));
                self.excuse(Some(tenant), until(lasts));
            }
            Fault::PostgresReadOnly { tenant, lasts } => {
                let postgres = &mut self.tenants[tenant].postgres;
                postgres.read_only_until = postgres.read_only_until.max(until(lasts));
                self.excuse(Some(tenant), until(lasts));
            }
            Fault::RowLocked { tenant, balance, lasts } => {
                // The other balances have no excuse.
                let tenant = &mut self.tenants[tenant];
                for locked in
                    [&mut tenant.postgres.locked_until[balance], &mut tenant.truth[balance].locked_until]
                {
                    *locked = (*locked).max(until(lasts));
                }
            }
            Fault::Pause { tenant, lasts } => {
                if !self.tenants[tenant].paused {
                    self.tenants[tenant].paused = true;
                    self.excuse(Some(tenant), until(lasts));
                    self.apply_controls(tenant);
                    self.push(until(lasts), What::Resume { tenant });
                }
            }
            Fault::Remove { tenant, lasts } => {
                if self.tenants[tenant].present {
                    self.tenants[tenant].present = false;
                    let noticed = if self.plan.supervised { NOTICED } else { 0 };
                    self.excuse(Some(tenant), until(lasts) + DRAINS + noticed);
                    self.disturbed_until = self.disturbed_until.max(until(lasts) + DRAINS + noticed);
                    if !self.plan.supervised {
                        for worker in 0..self.workers.len() {
                            self.handle(worker, tenant, Event::Leave);
                        }
                    }
                    self.push(until(lasts), What::Return { tenant });
                }
            }
            Fault::Roles { tenant, first } => {
                if self.plan.supervised {
                    self.lapse(first);
                }
                for (worker, role) in self.tenants[tenant].roles.iter_mut().enumerate() {
                    *role = if first >> worker & 1 == 1 { Role::First } else { Role::Standby };
                }
                self.apply_controls(tenant);
                self.tenants[tenant].calm_from = now + 15 * SECOND;
                self.disturbed_until = self.disturbed_until.max(now + 15 * SECOND);
            }
            Fault::ServiceIll { lasts } => {
                self.service_ill_until = self.service_ill_until.max(until(lasts));
                self.service_fails();
                // What was missing from its last list isn't known either.
                if self.service_empty_from > 0 && self.service_empty_until + NOTICED > now {
                    self.unknown_until = self.unknown_until.max(self.service_ill_until);
                }
            }
            Fault::ServiceEmpty { lasts } => {
                if self.service_empty_from == 0 || self.service_empty_until + NOTICED < now {
                    self.service_empty_from = now;
                }
                self.service_empty_until = self.service_empty_until.max(until(lasts));
                self.service_fails();
                if self.service_empty_until - self.service_empty_from > DOUBTED {
                    self.disturb(self.service_empty_until + DRAINS + NOTICED);
                }
            }
            Fault::Burst { tenant } => {
                if self.tenants[tenant].present {
                    for balance in 0..self.plan.balances {
                        self.change(tenant, balance);
                    }
                }
            }
            Fault::ChangeAtLeaseEnd { tenant, after } => self.tenants[tenant].armed = Some(after),
            Fault::LedgerCrash { tenant } => self.tenants[tenant].pod.crash(),
            Fault::Evict { tenant, balance } => {
                // Otherwise it has been deleted.
                self.server.evicted += u64::from(now.is_multiple_of(4));
                self.value_lost(tenant, balance, "is evicted");
            }
            Fault::EvictSchedule { tenant } => self.schedule_evicted(tenant),
            Fault::ShortLife { tenant, lasts, life } => {
                self.tenants[tenant].short_until = until(lasts);
                self.tenants[tenant].short_life = life / 1000;
            }
            Fault::Marker { tenant, balance, life } => self.value_marked(tenant, balance, life),
            Fault::Delete { tenant, balance } => self.balance_deleted(tenant, balance),
            Fault::RedisCrash { down, .. } | Fault::RedisEmpty { down } => {
                // No worker may be left that remembers what there was.
                if matches!(fault, Fault::RedisEmpty { .. }) && (down / (SECOND / 1000)).is_multiple_of(3) {
                    for worker in 0..self.plan.workers {
                        self.fault(at, Fault::Crash { worker, down });
                    }
                }
                self.redis_down_until = self.redis_down_until.max(until(down));
                self.redis_lost_until = self.redis_lost_until.max(until(down));
                self.redis_loses(Some(at));
                self.disturb(until(down) + CLAIM_TTL);
            }
            Fault::RedisFailover { skew, .. } => {
                self.redis_loses(Some(at));
                self.clock_jumps(skew);
            }
            Fault::ClockJump { by } => self.clock_jumps(by),
            Fault::TrailLags { tenant, lasts } => self.tenants[tenant].trail_lags_until = until(lasts),
            Fault::RetryLosses { tenant } => {
                let clock = self.clock();
                if self.redis_lost_until <= now {
                    let Tenant { redis, truth, .. } = &mut self.tenants[tenant];
                    redis.retry_losses(clock);
                    for (truth, entry) in truth.iter_mut().zip(&redis.entries) {
                        if entry.loss.is_some() {
                            truth.changed_at = now;
                        }
                    }
                }
            }
            Fault::PostgresFailover { tenant, down, .. } => {
                let postgres = &mut self.tenants[tenant].postgres;
                postgres.down_until = postgres.down_until.max(until(down));
                postgres.started = now;
                self.postgres_loses(at, tenant);
                self.excuse(Some(tenant), until(down));
            }
            Fault::FlushRequest { tenant } => {
                for worker in 0..self.workers.len() {
                    self.handle(worker, tenant, Event::FlushRequested);
                }
            }
        }
    }

    fn freeze(&mut self, worker: usize, until: u64) {
        let at = &mut self.workers[worker];
        at.frozen_until = at.frozen_until.max(until);
        // What it claims in the first moment lapses after that, or is settled when it goes on.
        let lapsed = (self.now + SECOND).max(until) + CLAIM_TTL;
        self.disturb(lapsed);
    }

    /// The balance of a write that has just been executed changes in the microsecond in which its lease ends. The worker
    /// doesn't learn before that its write succeeded.
    pub(crate) fn change_at_lease_end(&mut self, worker: usize, tenant: usize, held: Held, after: u64) {
        let ends = self.now + ((held.lease * 2e6).round() as u64 / 2).saturating_sub(self.clock()) * 1000;
        if ends > self.now && ends + after < self.end && self.tenants[tenant].present {
            self.note(Some(tenant), || format!("worker {worker} is suspended until its lease has ended"));
            self.push(ends, What::Change { tenant, balance: held.balance });
            self.freeze(worker, ends + 2000 + after);
        }
    }

    /// A collector has ended, or a worker without collectors stops: starts the next process of the worker in time.
    pub(crate) fn collector_ended(&mut self, worker: usize) {
        let at = &mut self.workers[worker];
        if at.up && at.stopping && at.actors.iter().all(Option::is_none) {
            at.up = false;
            at.incarnation += 1;
            let restarts = at.restarts_at;
            self.note(None, || format!("worker {worker} has stopped"));
            self.push(restarts, What::Start { worker });
        }
    }

    /// A removed tenant comes back. A collector that is still leaving ends first.
    pub(crate) fn return_tenant(&mut self, tenant: usize) {
        self.tenants[tenant].present = true;
        self.tenants[tenant].returned_at = self.now;
        if self.plan.supervised {
            return self.service_fails();
        }
        let mut leaving = false;
        for worker in 0..self.workers.len() {
            let at = &self.workers[worker];
            if !at.up || at.stopping {
                continue;
            }
            if at.actors[tenant].is_none() {
                self.start_collector(worker, tenant);
            } else if self.leaves(worker, tenant) {
                leaving = true;
            }
        }
        if leaving {
            self.push(self.now + SECOND, What::Return { tenant });
        }
    }
}
