//! The guarantees of the design (§2), as far as they can be seen from outside.
//!
//! After every step: G1 (a balance that is not scheduled is in Postgres, or in quarantine for its own sake), G2 (rows never
//! go back, and never ahead of the ledger), G3 (a row has the amounts of the mutation whose version it has), G4 (the score of
//! a newer mutation stays), G7 (and of no other tenant), G9 (what Redis lost is listed, and stays listed). Every second:
//! nothing waits longer than recovery takes (G5, G6, G8), and no value expires before it is written (G1).

use balance_sync_engine::collector::Role;

use crate::{
    calamities::DECIDES,
    faults::NOTICED,
    plan::SECOND,
    postgres::Row,
    producers::TENANTS,
    redis::{Owner, is_lease},
    values::{MIXED, Shape},
    world::{Violation, World},
};

/// Longest time that anything takes once nothing excuses it: a standby takes over after 10 s at most, a degraded collector
/// tries again within 2 s, and a write takes milliseconds. Less than the claim TTL, so that a claim which should have been
/// released counts as late.
const BOUND: u64 = 20 * SECOND;
/// Longest time that a write takes while nothing is wrong with the tenant itself and with what all tenants share, whatever is
/// wrong with others: an idle collector looks at its schedule each second, one that had failed tries again after 2 s.
const ALONE: u64 = 5 * SECOND;
/// Values may expire for this long after a time in which no worker knew of the tenant: the longest life that one is given.
const UNSERVED: u64 = 240 * SECOND;
/// Mode `lock`: longest time that the ledger's own worker may keep a balance locked unwritten while ours are well: two of its
/// locks, and what is left of one at the beginning.
const LOCKED_OUT: u64 = 250 * SECOND;

impl World {
    pub(crate) fn violate(&mut self, guarantee: &'static str, tenant: usize, what: String) {
        if self.outcome.violation.is_none() {
            self.note(Some(tenant), || format!("{guarantee}: {what}"));
            self.outcome.violation = Some(Violation { guarantee, what, at: self.now, tenant });
        }
    }

    /// Writes rows, and checks how they change.
    pub(crate) fn write_rows(&mut self, at: usize, rows: &[Row]) -> usize {
        let changes = self.tenants[at].postgres.write(rows, self.bug);
        self.outcome.written += changes.len() as u64;
        for &(Row { balance, state }, before) in &changes {
            let after = state.version;
            let truth = &mut self.tenants[at].truth[balance];
            truth.written(after);
            let highest = truth.highest;
            if state.mark != MIXED && state.mark % TENANTS != at as u64 {
                let what = format!("row {balance} has the money of tenant {}", state.mark % TENANTS);
                self.violate("G7", at, what);
                break;
            }
            let made = usize::try_from(state.mark / TENANTS).ok().and_then(|n| n.checked_sub(1));
            let made = made.and_then(|n| self.tenants[at].marks.get(n)).copied();
            if after < before.version {
                self.violate(
                    "G2",
                    at,
                    format!("row {balance} went from version {} back to {after}", before.version),
                );
            } else if after > highest {
                self.violate(
                    "G2",
                    at,
                    format!("row {balance} has version {after}, the ledger only {highest}"),
                );
            } else if !made.is_some_and(|made| made.good && made.balance == balance && made.version == after)
            {
                let what = match made {
                    _ if state.mark == MIXED => "amounts that no mutation has written".to_owned(),
                    Some(made) => {
                        format!("the money of version {} of balance {}", made.version, made.balance)
                    }
                    None => "money from nowhere".to_owned(),
                };
                self.violate("G3", at, format!("row {balance} has {what} under version {after}"));
            }
        }
        changes.len()
    }

    /// What was removed from the schedule must be written, whatever else is true of it.
    pub(crate) fn check_removed(&mut self, at: usize, removed: &[usize], written: bool) {
        for &balance in removed {
            let tenant = &self.tenants[at];
            let (row, truth) = (tenant.postgres.version(balance), &tenant.truth[balance]);
            let newest = truth.newest;
            if truth.is_owed(row) {
                let what = format!(
                    "balance {balance} was settled with version {row} written, its newest is {newest}"
                );
                self.violate(if written { "G4" } else { "G9" }, at, what);
            } else if written && tenant.redis.entries[balance].loss.is_some_and(|loss| !loss.later) {
                let what = format!("balance {balance} was lost and then written, and its loss is not marked");
                self.violate("G9", at, what);
            }
        }
    }

    /// Only what is gone is recorded as lost.
    pub(crate) fn check_recorded(&mut self, at: usize, recorded: &[usize]) {
        let clock = self.clock();
        for &balance in recorded {
            let tenant = &mut self.tenants[at];
            tenant.truth[balance].listed = true;
            let certain = tenant.redis.entries[balance].loss.is_some_and(|loss| loss.version.is_some());
            let there = tenant.redis.value(clock, balance).is_some();
            self.outcome.recorded[usize::from(!certain)] += 1;
            if there {
                self.violate("G9", at, format!("balance {balance} is recorded as lost, and has a value"));
            }
        }
    }

    /// What must be true of each balance of a tenant after every step.
    pub(crate) fn check(&mut self, at: usize) {
        let tenant = &self.tenants[at];
        let mut found = None;
        for (balance, truth) in tenant.truth.iter().enumerate() {
            let (entry, row) = (&tenant.redis.entries[balance], tenant.postgres.version(balance));
            let kept = truth.shape.is_poison() && entry.quarantined;
            let listed = truth.gone.is_some() && entry.loss.is_some();
            match entry.score {
                None if truth.is_owed(row) && !kept && !listed => {
                    let (guarantee, place) = match (entry.quarantined, truth.gone) {
                        (true, _) => ("G5", "in quarantine though it can be written"),
                        (false, Some(_)) => ("G9", "lost and not listed"),
                        (false, None) => ("G1", "not scheduled"),
                    };
                    let newest = truth.newest;
                    let what =
                        format!("balance {balance} is {place}, row at version {row}, newest is {newest}");
                    found = Some((guarantee, what));
                }
                // Whatever else our scripts write is half-way between two microseconds.
                Some(score) if score != truth.score && !is_lease(score) => {
                    found =
                        Some(("G4", format!("balance {balance} has the score of an older mutation again")));
                }
                // One that was never certain may go when its balance has been deleted.
                _ if truth.listed && entry.loss.is_none() && !truth.deleted => {
                    found = Some(("G9", format!("the loss of balance {balance} is no longer listed")));
                }
                _ => {}
            }
        }
        if let Some((guarantee, what)) = found {
            self.violate(guarantee, at, what);
        }
    }

    /// What must happen in time.
    pub(crate) fn check_lateness(&mut self) {
        let (now, clock) = (self.now, self.clock());
        if !self.workers.iter().any(|worker| worker.up && !worker.stopping) {
            self.excuse(None, now);
        }
        // What stands behind locked members is found when they have been looked at, a few with each claim.
        let pages = self.plan.lock && self.plan.scan_limit < self.plan.balances;
        let alone = if pages { BOUND } else { ALONE };
        let doubt = self.disturbed_until.max(self.unknown_until) + NOTICED;
        for at in 0..self.tenants.len() {
            let (has_worker, has_first) = self.served(at);
            if !has_worker && doubt > now {
                self.excuse(Some(at), now);
                self.tenants[at].unserved_until = now;
            }
            let tenant = &mut self.tenants[at];
            let unserved = tenant.present && !has_worker && doubt <= now && tenant.excused_until < now;
            tenant.unserved_for = if unserved { tenant.unserved_for + SECOND } else { 0 };
            if tenant.unserved_for > ALONE {
                self.violate("G8", at, "no worker serves the tenant".to_owned());
            }
            let tenant = &mut self.tenants[at];
            let served = tenant.present && !tenant.paused;
            let excused = tenant.excused_until;
            if !has_first {
                // A standby may take a while to take over, and does so from time to time.
                tenant.calm_from = now + 15 * SECOND;
            }
            let (mut found, mut expired) = (None, Vec::new());
            for (balance, truth) in tenant.truth.iter_mut().enumerate() {
                let entry = &tenant.redis.entries[balance];
                let row = tenant.postgres.version(balance);
                if self.plan.lock && entry.locked_by(clock) == Some(Owner::Pod) {
                    // It is the other worker's, and if that one doesn't come back its lock has to end first.
                    truth.locked_until = now;
                }
                let well = served && excused < now && tenant.calm_from < now;
                truth.locked_for = match entry.locked_by(clock) {
                    _ if !well || truth.unwritten.is_empty() => 0,
                    Some(Owner::Pod) => truth.locked_for + SECOND,
                    _ => truth.locked_for,
                };
                let since = excused.max(truth.locked_until);
                let late = |from: u64, bound: u64| served && from.max(since) + bound < now;
                let value = entry.value.filter(|value| value.expires > clock);
                let unwritten = truth.is_owed(row) && !truth.shape.is_poison() && truth.gone.is_none();
                if unwritten && value.is_none() && tenant.unserved_until + UNSERVED > now {
                    expired.push(balance);
                } else if unwritten && value.is_none() {
                    found =
                        Some(("G1", format!("the value of balance {balance} expired before it was written")));
                } else if truth.locked_for > LOCKED_OUT {
                    let what = format!("balance {balance} stays locked by the ledger's worker");
                    found = Some(("G5", what));
                } else if let Some(&(version, waits)) = truth.unwritten.front()
                    && late(waits, BOUND)
                {
                    let waited = (now - waits) / SECOND;
                    let what = format!("version {version} of balance {balance} has waited for {waited} s");
                    found = Some(("G6/G8", what));
                } else if let Some(&(version, waits)) = truth.unwritten.front()
                    && late(waits.max(tenant.calm_from), alone)
                {
                    let what = format!(
                        "version {version} of balance {balance} waits, though nothing is wrong with its tenant"
                    );
                    found = Some(("G7", what));
                } else if entry.score.is_some() && (truth.shape != Shape::Unknown || truth.gone.is_some()) {
                    let done = !truth.is_owed(row) || truth.shape.is_poison();
                    let patient = value.is_none_or(|value| value.document.shape == Shape::Marker);
                    let (from, bound) = match patient {
                        true => (
                            truth.changed_at.max(truth.vanished_at),
                            BOUND + DECIDES + self.plan.put_off * SECOND,
                        ),
                        false => (truth.changed_at, BOUND),
                    };
                    if (done || truth.gone.is_some()) && late(from, bound) {
                        let what = format!("balance {balance} is done with, and doesn't leave the schedule");
                        found = Some(("G6/G8", what));
                    }
                }
            }
            for balance in expired {
                self.value_lost(at, balance, "expires, as no worker knew of the tenant");
            }
            if let Some((guarantee, what)) = found {
                self.violate(guarantee, at, what);
            }
        }
    }

    /// At the end everything has been healed and drained: both sides are equal, or the difference is listed.
    pub(crate) fn check_end(&mut self) {
        for at in 0..self.tenants.len() {
            let tenant = &self.tenants[at];
            let is_shared = tenant.roles.iter().filter(|role| **role == Role::First).count() > 1;
            let left = (0..tenant.truth.len()).find(|&balance| {
                let (truth, entry) = (&tenant.truth[balance], &tenant.redis.entries[balance]);
                let row = tenant.postgres.version(balance);
                if truth.shape == Shape::Unknown && truth.gone.is_none() {
                    return truth.is_owed(row) && entry.score.is_none();
                }
                let listed = truth.gone.is_some() && entry.loss.is_some();
                // Workers that share a tenant look in turn, and one of them must look at it five times in a row.
                let looked_at_in_turn = is_shared && entry.value.is_none() && !truth.is_owed(row);
                entry.score.is_some() && !looked_at_in_turn
                    || truth.is_owed(row) && !truth.shape.is_poison() && !listed
            });
            if let Some(balance) = left {
                self.violate("G1", at, format!("balance {balance} is left behind at the end"));
            }
        }
    }
}
