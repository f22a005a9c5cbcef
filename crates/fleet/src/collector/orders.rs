//! What operators want of a collector: that it halts, goes on, or writes at once.
//!
//! A halted collector claims nothing. What it has claimed is written as ever, and what waits in the schedule meanwhile is
//! kept alive as in an outage ([`super::chores`]).

use std::sync::atomic::Ordering::Relaxed;

use tokio::time::Instant;

use super::Turn;
use crate::{
    ports::{Queue, Sink},
    status::TenantState,
};

impl<Q: Queue, S: Sink> Turn<'_, Q, S> {
    /// Follows what operators want; called at each step.
    pub(super) fn obey(&mut self, now: Instant) {
        let flush = self.status.orders.take();
        let halt = self.status.paused.load(Relaxed);
        if halt != self.halted {
            self.halted = halt;
            if halt {
                tracing::info!("tenant paused by an operator: nothing is claimed, what waits is kept alive");
            } else {
                tracing::info!("tenant resumed by an operator");
                self.hurry(now);
            }
        }
        if halt {
            // Whether it can be written is found out when it goes on.
            self.degraded = None;
            self.probing = None;
            self.idling = None;
            if self.gather.is_empty() && self.flights.is_empty() && self.claiming.is_none() {
                self.enter(TenantState::Paused);
            }
        } else if flush {
            self.join(now);
            self.hurry(now);
            self.gather.hurry(now);
        }
    }

    /// Whatever it waits for is over.
    fn hurry(&mut self, now: Instant) {
        self.idling = None;
        self.idle_delay = self.options.poll_interval;
        self.next_claim = now;
        if let Some(degraded) = &mut self.degraded {
            degraded.until = now;
        }
    }

    /// Whether it may claim, as far as operators are concerned.
    pub(super) fn may_claim(&self) -> bool {
        !self.halted && !self.fleet.halts.awaited()
    }
}
