//! The guarantees of the design (§2), as far as they can be seen from outside.
//!
//! After every step: G1 (a balance that is not scheduled is in Postgres, or in quarantine for its own sake), G2 (rows never
//! go back, and never ahead of Redis), G4 (the score of a newer mutation stays). Every second: nothing waits longer than
//! recovery takes (G5, G6, G8), and no value expires before it is written (G1).

use crate::{
    plan::SECOND,
    redis::{self, Held, is_lease},
    world::{Violation, World},
};

/// Longest time that anything takes once nothing excuses it: a standby takes over after 10 s at most, a degraded collector
/// tries again within 2 s, and a write takes milliseconds. Less than the claim TTL, so that a claim which should have been
/// released counts as late.
const BOUND: u64 = 20 * SECOND;

impl World {
    fn violate(&mut self, guarantee: &'static str, tenant: usize, what: String) {
        if self.outcome.violation.is_none() {
            self.note(Some(tenant), || format!("{guarantee}: {what}"));
            self.outcome.violation = Some(Violation { guarantee, what, at: self.now, tenant });
        }
    }

    /// Writes rows, and checks how they change.
    pub(crate) fn write_rows(&mut self, at: usize, rows: &[Held]) -> usize {
        let changes = self.tenants[at].postgres.write(rows, self.bug);
        self.outcome.written += changes.len() as u64;
        for &(row, before, after) in &changes {
            let truth = &mut self.tenants[at].truth[row];
            while truth.unwritten.front().is_some_and(|(version, _)| *version <= after) {
                truth.unwritten.pop_front();
            }
            let newest = truth.newest;
            if after < before {
                self.violate("G2", at, format!("row {row} went from version {before} back to {after}"));
            }
            if after > newest {
                self.violate("G2", at, format!("row {row} has version {after}, Redis only {newest}"));
            }
        }
        changes.len()
    }

    /// What a settlement removed must be written, whatever else is true of it.
    pub(crate) fn check_removed(&mut self, at: usize, removed: &[usize]) {
        for &balance in removed {
            let tenant = &self.tenants[at];
            let (row, newest) = (tenant.postgres.rows[balance], tenant.truth[balance].newest);
            if row < newest {
                let what = format!(
                    "balance {balance} was settled with version {row} written, its newest is {newest}"
                );
                self.violate("G4", at, what);
            }
        }
    }

    /// What must be true of each balance of a tenant after every step.
    pub(crate) fn check(&mut self, at: usize) {
        let tenant = &self.tenants[at];
        let mut found = None;
        for (balance, truth) in tenant.truth.iter().enumerate() {
            let (entry, row) = (&tenant.redis.entries[balance], tenant.postgres.rows[balance]);
            match entry.score {
                None if row < truth.newest && !(truth.poison && entry.quarantined) => {
                    let place = if entry.quarantined {
                        "in quarantine though it can be read"
                    } else {
                        "not scheduled"
                    };
                    let what = format!(
                        "balance {balance} is {place}, row at version {row}, newest is {}",
                        truth.newest
                    );
                    found = Some((if entry.quarantined { "G5" } else { "G1" }, what));
                }
                Some(score) if score < truth.score && !is_lease(score) => {
                    found =
                        Some(("G4", format!("balance {balance} has the score of an older mutation again")));
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
        if !self.workers.iter().any(|worker| worker.up && !worker.stopping) {
            self.excuse(None, self.now);
        }
        for at in 0..self.tenants.len() {
            let clock = redis::clock(self.now);
            let tenant = &self.tenants[at];
            let served = tenant.present && !tenant.paused;
            let late = |since: u64| served && since.max(tenant.excused_until) + BOUND < self.now;
            let mut found = None;
            for (balance, truth) in tenant.truth.iter().enumerate() {
                let entry = &tenant.redis.entries[balance];
                let written = tenant.postgres.rows[balance] >= truth.newest;
                if !written && !truth.poison && entry.value.is_none_or(|value| value.expires <= clock) {
                    found =
                        Some(("G1", format!("the value of balance {balance} expired before it was written")));
                } else if let Some(&(version, since)) = truth.unwritten.front()
                    && late(since)
                {
                    let waits = (self.now - since) / SECOND;
                    let what = format!("version {version} of balance {balance} has waited for {waits} s");
                    found = Some(("G6/G8", what));
                } else if entry.score.is_some() && (written || truth.poison) && late(truth.changed_at) {
                    let what = format!("balance {balance} is done with, and doesn't leave the schedule");
                    found = Some(("G6/G8", what));
                }
            }
            if let Some((guarantee, what)) = found {
                self.violate(guarantee, at, what);
            }
        }
    }

    /// At the end everything has been healed and drained: both sides are equal.
    pub(crate) fn check_end(&mut self) {
        for at in 0..self.tenants.len() {
            let tenant = &self.tenants[at];
            let left = (0..tenant.truth.len()).find(|&balance| {
                let (truth, entry) = (&tenant.truth[balance], &tenant.redis.entries[balance]);
                entry.score.is_some() || tenant.postgres.rows[balance] < truth.newest && !truth.poison
            });
            if let Some(balance) = left {
                self.violate("G1", at, format!("balance {balance} is left behind at the end"));
            }
        }
    }
}
