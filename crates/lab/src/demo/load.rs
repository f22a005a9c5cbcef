//! Who produces for whom: one producer for the tenants that stay, one for the tenant that leaves, one for the newcomer.
//!
//! Each tenant gets the same share of the mutations per second as long as it has load, chosen so that over the whole run
//! it is the rate that was asked for.

use std::time::Duration;

use balance_sync_sandbox::ledger::{Format, LoadOptions, LoadTenant, Producer, Progress};
use tokio::time::Instant;

use crate::args::DemoArgs;

/// Parts of the load's duration at which things happen.
pub(super) const ADD_AT: f64 = 1.0 / 4.0;
pub(super) const KILL_AT: f64 = 1.0 / 2.0;
pub(super) const REMOVE_AT: f64 = 2.0 / 3.0;

/// Share of the mutations that goes to 1 % of the balances: ledgers have a few accounts that are in everything.
const HOT_KEY_SHARE: f64 = 0.2;

/// When the load began, and how long it goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeline {
    began: Instant,
    length: Duration,
}

impl Timeline {
    pub(super) fn begin(length: Duration) -> Self {
        Self { began: Instant::now(), length }
    }

    /// The moment when this part of it is over.
    pub(super) async fn reached(&self, part: f64) {
        tokio::time::sleep_until(self.began + self.length.mul_f64(part)).await;
    }

    /// What is left of it.
    pub(super) fn left(&self) -> Duration {
        self.length.saturating_sub(self.began.elapsed())
    }
}

/// Tenants of one producer, with its counters.
pub(super) struct Group {
    pub ids: Vec<String>,
    pub progress: Progress,
}

impl Group {
    fn new(ids: Vec<String>) -> Self {
        Self { progress: Progress::new(ids.len()), ids }
    }
}

/// All tenants, in the three parts they play.
pub(super) struct Cast {
    pub stayers: Group,
    pub leaver: Group,
    pub newcomer: Group,
    rate_per_tenant: f64,
    /// How the values are spelled.
    pub format: Format,
}

impl Cast {
    /// The first tenant leaves, the others stay; the newcomer has the next number.
    pub(super) fn new(ids: &[String], args: &DemoArgs) -> Self {
        let (leaver, stayers) = ids.split_at(ids.len().min(1));
        // The newcomer has no load in the first part, the leaver none in the last.
        let shares = stayers.len() as f64 + (1.0 - ADD_AT) + REMOVE_AT;
        Self {
            stayers: Group::new(stayers.to_vec()),
            leaver: Group::new(leaver.to_vec()),
            newcomer: Group::new(vec![format!("tenant-{:04}", ids.len() + 1)]),
            rate_per_tenant: args.rate / shares,
            format: args.format,
        }
    }

    /// How a group's producer writes, for so long.
    pub(super) fn options(&self, group: &Group, duration: Duration, seed: u64) -> LoadOptions {
        LoadOptions {
            rate: self.rate_per_tenant * group.ids.len() as f64,
            duration: Some(duration),
            hot_key_share: HOT_KEY_SHARE,
            seed,
            ..LoadOptions::default()
        }
    }

    fn groups(&self) -> [&Group; 3] {
        [&self.stayers, &self.leaver, &self.newcomer]
    }

    /// Mutations so far.
    pub(super) fn mutations(&self) -> u64 {
        self.groups().iter().map(|group| group.progress.mutations()).sum()
    }

    /// Mutations that failed or of which nothing is known.
    pub(super) fn errors(&self) -> u64 {
        self.groups().iter().map(|group| group.progress.errors()).sum()
    }

    /// Mutations of one tenant.
    pub(super) fn mutations_of(&self, id: &str) -> u64 {
        let tenants =
            self.groups().into_iter().flat_map(|group| group.ids.iter().zip(&group.progress.tenants));
        tenants
            .filter(|(known, _)| known.as_str() == id)
            .map(|(_, progress)| progress.mutations.load(std::sync::atomic::Ordering::Relaxed))
            .sum()
    }
}

/// What the producers know at the end: each tenant's balances with the version last written.
pub(super) fn written<'a>(producers: &'a [&'a Producer]) -> Vec<&'a LoadTenant> {
    let mut tenants: Vec<&LoadTenant> = producers.iter().flat_map(|producer| producer.tenants()).collect();
    tenants.sort_by(|a, b| a.id.cmp(&b.id));
    tenants
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_make_the_rate_that_was_asked_for() {
        let args = DemoArgs {
            tenants: 5,
            balances: 1,
            rate: 700.0,
            seconds: 12.0,
            format: Format::Mixed,
            json: false,
        };
        let ids: Vec<String> = (1..=5).map(|number| format!("tenant-{number:04}")).collect();
        let cast = Cast::new(&ids, &args);
        assert_eq!(cast.leaver.ids, ["tenant-0001"]);
        assert_eq!((cast.stayers.ids.len(), cast.newcomer.ids[0].as_str()), (4, "tenant-0006"));
        let rate = |group: &Group| cast.options(group, Duration::ZERO, 1).rate;
        let mutations = 12.0 * rate(&cast.stayers) + 8.0 * rate(&cast.leaver) + 9.0 * rate(&cast.newcomer);
        assert!((mutations - 12.0 * 700.0).abs() < 1e-6, "{mutations}");
    }
}
