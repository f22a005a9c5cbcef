//! Upkeep of a schedule beside its claims and flushes: values that wait are protected, legacy schedules looked after.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_schedule::ScheduleError;
use futures::FutureExt;
use tokio::time::Instant;

use super::{Side, Turn};
use crate::{
    backoff::jittered,
    ports::{Queue, Sink, Survey, Sweep},
};

/// While values need protection, what was scheduled since the last look is looked at this often.
const PROTECT_RECENT_EVERY: Duration = Duration::from_secs(1);
/// A backlog that is being worked off is swept only when that takes longer. Every claim protects what it takes, and
/// reading all lives costs Redis as much as a good part of the work itself.
const WORKED_OFF_WITHIN: Duration = Duration::from_secs(10);

/// Time-consuming work beside claim and flush.
pub(super) enum Chore {
    Sweep(Result<Sweep, ScheduleError>),
    Recent(Result<(f64, u64), ScheduleError>),
    Survey(Result<Survey, ScheduleError>),
}

impl<Q: Queue, S: Sink> Turn<'_, Q, S> {
    /// Whether values may have to wait: the tenant can't write or is halted, a flush takes long, or there is an old backlog
    /// that is not worked off soon.
    pub(super) fn must_protect(&self, now: Instant) -> bool {
        // With Redis away nothing could be protected; one that refuses claims may let lives be raised.
        self.degraded.as_ref().is_some_and(|degraded| degraded.side != Side::Queue)
            || self.halted
            || self.behind_since.is_some_and(|since| now - since > WORKED_OFF_WITHIN)
            || self.held_since().is_some_and(|since| now - since > self.options.protect_after)
    }

    /// Since when the oldest batch is on its way to Postgres.
    pub(super) fn held_since(&self) -> Option<Instant> {
        let placing = self.placing.as_ref().map(|placing| placing.since);
        let placed = self.placed.as_ref().map(|placed| placed.since);
        let flights = self.in_flight.values().map(|flight| flight.since);
        flights.chain(placing).chain(placed).min()
    }

    pub(super) fn start_chore(&mut self, now: Instant) {
        if self.chore.is_some() {
            return;
        }
        let queue = self.queue;
        if !self.options.protect_floor.is_zero() && self.must_protect(now) {
            // Redis's clock is read before the first sweep: a sweep may miss what is scheduled while it goes on, and
            // what comes after that moment is looked at by itself. Both times are kept when the need passes, so that
            // flushes that are slow one by one don't make a sweep each.
            if self.recent_from.is_some() && self.next_sweep.is_none_or(|at| at <= now) {
                self.next_sweep = Some(now + jittered(self.options.protect_floor / 3));
                self.next_recent = now;
                self.chore = Some(async move { Chore::Sweep(queue.sweep().await) }.boxed_local());
                return;
            }
            if self.next_recent <= now {
                self.next_recent = now + PROTECT_RECENT_EVERY;
                let from = self.recent_from;
                self.chore =
                    Some(async move { Chore::Recent(queue.protect_since(from).await) }.boxed_local());
                return;
            }
        }
        if self.next_survey <= now {
            self.next_survey = now + jittered(self.options.survey_interval);
            self.chore = Some(async move { Chore::Survey(queue.survey().await) }.boxed_local());
        }
    }

    pub(super) fn chore_done(&mut self, end: Chore) {
        match end {
            Chore::Sweep(Ok(sweep)) => {
                let life = sweep
                    .shortest
                    .map_or(u64::MAX, |life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
                self.status.shortest_life_ms.store(life, Relaxed);
                if sweep.raised > 0 {
                    tracing::info!(raised = sweep.raised, absent = sweep.absent, "waiting values protected");
                }
            }
            Chore::Recent(Ok((now, raised))) => {
                // A margin for scores written in the very microsecond of the look.
                self.recent_from = Some(now - 0.001);
                if raised > 0 {
                    tracing::debug!(raised, "values scheduled meanwhile protected");
                }
            }
            Chore::Survey(Ok(survey)) => {
                if survey.adopted > 0 {
                    // They come with the scores of old mutations, which only a sweep finds.
                    self.next_sweep = None;
                    tracing::warn!(members = survey.adopted, "members of a legacy schedule adopted");
                }
                if self.status.other_form.swap(survey.other_form, Relaxed) != survey.other_form
                    && survey.other_form > 0
                {
                    tracing::error!(
                        members = survey.other_form,
                        "the ledger schedules this tenant under the other form of its id, which nobody works; see tenants.key_form"
                    );
                }
            }
            // Never at once: Redis may refuse in no time for as long as it is away.
            Chore::Sweep(Err(error)) => {
                self.next_sweep = Some(self.chore_failed(&error, self.options.backoff_max))
            }
            Chore::Recent(Err(error)) => {
                self.next_recent = self.chore_failed(&error, self.options.backoff_max)
            }
            Chore::Survey(Err(error)) => {
                let again = self.chore_failed(&error, self.options.backoff_long);
                self.next_survey = self.next_survey.min(again);
            }
        }
    }

    /// The claim loop reports Redis failures as the tenant's state; here they only mean: later again.
    fn chore_failed(&self, error: &ScheduleError, delay: Duration) -> Instant {
        tracing::debug!(%error, "upkeep of the schedule failed");
        Instant::now() + jittered(delay)
    }
}
