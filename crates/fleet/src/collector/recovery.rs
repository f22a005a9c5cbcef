//! Failure and recovery of a tenant: how it becomes degraded, how it tries its way back.

use std::sync::atomic::Ordering::Relaxed;

use balance_sync_schedule::Refused;
use futures::FutureExt;
use tokio::time::Instant;

use super::{Degraded, Side, Turn};
use crate::{
    backoff::Backoff,
    failure::{Pace, Reaction, SinkError, reaction},
    ports::{Queue, Sink},
    status::TenantState,
};

impl<Q: Queue, S: Sink> Turn<'_, Q, S> {
    pub(super) fn fails(&self, side: Side) -> bool {
        self.degraded.as_ref().is_some_and(|degraded| degraded.side == side)
    }

    pub(super) fn sink_failed(&mut self, error: &SinkError) {
        let reaction = reaction(error);
        if reaction.refetch {
            self.sink.refetch();
        }
        if reaction.skip {
            self.status.skips.fetch_add(1, Relaxed);
        }
        self.degrade(Side::Sink, reaction, &error.to_string());
    }

    pub(super) fn degrade(&mut self, side: Side, reaction: Reaction, detail: &str) {
        let cap = match reaction.pace {
            Pace::Short => self.options.backoff_max,
            Pace::Long => self.options.backoff_long,
        };
        let mut backoff = match self.degraded.take() {
            Some(before) if before.reaction.pace == reaction.pace => before.backoff,
            _ => Backoff::new(self.options.backoff_min, cap),
        };
        let delay = backoff.next_delay();
        let failures = backoff.failures();
        self.degraded =
            Some(Degraded { side, reaction, backoff, until: Instant::now() + delay, trying: false });
        if self.status.degrade(reaction.reason, detail.to_owned()) {
            tracing::warn!(reason = reaction.reason, error = detail, "tenant degraded");
        } else {
            tracing::debug!(
                reason = reaction.reason,
                error = detail,
                failures,
                ?delay,
                "tenant still degraded"
            );
        }
    }

    /// Redis refused some of what a claim asked for: the tenant goes on, and shows it until it has not happened for a while.
    pub(super) fn note_refusal(&self, refused: &Refused) {
        let reason = refused.error.class.name();
        let detail = if refused.put_off == 0 {
            format!("values can't be kept alive: {}", refused.error)
        } else {
            format!("{} balances put off, their values can't be read: {}", refused.put_off, refused.error)
        };
        if self.status.notice(reason, detail.clone(), 2 * self.options.put_off) {
            tracing::warn!(reason, error = detail, "redis refuses some of the tenant's keys");
        }
    }

    pub(super) fn recovered(&mut self) {
        if let Some(degraded) = self.degraded.take() {
            tracing::info!(reason = degraded.reaction.reason, "tenant recovered");
            self.enter(TenantState::Syncing);
        }
    }

    pub(super) fn enter(&self, state: TenantState) {
        if state != TenantState::Stopping && self.status.leaving.load(Relaxed) {
            return;
        }
        if self.status.enter(state) {
            tracing::debug!(state = state.name(), "state");
        }
    }

    pub(super) fn start_probe(&mut self, now: Instant) {
        let writing = self.writing();
        let Some(degraded) = &mut self.degraded else { return };
        if degraded.trying || self.probing.is_some() || now < degraded.until || writing {
            return;
        }
        if degraded.reaction.ping {
            let (sink, deadline) = (self.sink, self.options.flush_deadline);
            self.probing = Some(
                async move {
                    tokio::time::timeout(deadline, sink.ping())
                        .await
                        .unwrap_or(Err(SinkError::Deadline(deadline)))
                }
                .boxed_local(),
            );
        } else {
            degraded.trying = true;
            self.next_claim = now;
            self.idling = None;
        }
    }

    pub(super) fn probed(&mut self, result: Result<(), SinkError>) {
        match result {
            Ok(()) => {
                if let Some(degraded) = &mut self.degraded {
                    degraded.trying = true;
                    self.next_claim = Instant::now();
                    self.idling = None;
                }
            }
            Err(error) => self.sink_failed(&error),
        }
    }
}
