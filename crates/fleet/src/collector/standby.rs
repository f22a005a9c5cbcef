//! Standing by: another worker comes first, and this collector claims only when nobody else does ([`crate::standby`]).

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use futures::FutureExt;
use tokio::time::Instant;

use super::Turn;
use crate::{
    ports::{Queue, Sink},
    status::TenantState,
};

/// Who joined in stands by again after this. Long against the moment that it takes to find out that nobody works even then;
/// short, because two workers may be slower than one.
const JOINED_FOR: Duration = Duration::from_secs(60);

impl<Q: Queue, S: Sink> Turn<'_, Q, S> {
    /// Follows its rank among the owners; called at each step.
    pub(super) fn take_post(&mut self, now: Instant) {
        let stands_by = self.stands_by(now);
        if stands_by && !self.watching {
            if self.claiming.is_some() {
                // What it brings is written first.
                return;
            }
            self.watching = true;
            self.joined_until = None;
            // Nothing more is to be had for a batch that has its place.
            self.more = false;
            let queue = self.queue;
            self.idling = Some(async move { queue.stand_by().await }.boxed_local());
        } else if !stands_by && self.watching {
            self.watching = false;
            self.idling = None;
            self.idle_delay = self.options.poll_interval;
            self.next_claim = now;
        }
        if self.watching && self.gather.is_empty() && !self.writing() {
            self.enter(TenantState::Standby);
        }
    }

    /// Whether this collector leaves the claiming to another worker's. One that fails goes on trying until it is on its way
    /// again: it keeps the values alive meanwhile.
    fn stands_by(&self, now: Instant) -> bool {
        self.status.standby.load(Relaxed)
            && self.joined_until.is_none_or(|until| until <= now)
            && self.degraded.is_none()
            && !self.halted
            && !self.status.leaving.load(Relaxed)
    }

    /// Works as if it came first, for a while.
    pub(super) fn join(&mut self, now: Instant) {
        self.joined_until = Some(now + JOINED_FOR);
    }

    /// What it waited for is there: something is due, and nobody claims it.
    pub(super) fn unattended(&mut self) {
        tracing::info!("due balances are claimed by nobody, this worker joins in");
        self.fleet.joins.fetch_add(1, Relaxed);
        self.join(Instant::now());
    }
}
