//! Failure and recovery of a tenant: how it becomes degraded, how it tries its way back.

use std::time::Instant;

use super::{Collector, Command, Health, Report, Step, Task};
use crate::{
    backoff::Backoff,
    failure::{Claims, Failure, NextTry, Obstacle, Pace, Reaction, Side},
    state::TenantState,
};

/// Why a tenant is degraded, and how far it is on its way back.
#[derive(Debug)]
pub(super) struct Degraded {
    side: Side,
    reaction: Reaction,
    backoff: Backoff,
    attempt: Attempt,
}

/// The next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// It comes at this moment.
    Waiting { until: Instant },
    /// Postgres is asked first whether it answers.
    Probing,
    /// The wait is over and nothing spoke against trying: one batch may go.
    Trying,
}

impl<M> Collector<M> {
    /// What fails, if anything does.
    pub(super) fn fails(&self) -> Option<Side> {
        match &self.health {
            Health::Well => None,
            Health::Degraded(degraded) => Some(degraded.side),
        }
    }

    /// Whether it fails because the tenant must not be served.
    pub(super) fn is_skipped(&self) -> bool {
        matches!(&self.health, Health::Degraded(degraded) if degraded.reaction.obstacle == Obstacle::Skipped)
    }

    /// Whether one batch may go although it fails.
    pub(super) fn is_trying(&self) -> bool {
        matches!(&self.health, Health::Degraded(degraded) if degraded.attempt == Attempt::Trying)
    }

    /// Whether members may be claimed as far as failures are concerned: nothing fails, or this is the next try, of which
    /// one batch is claimed.
    pub(super) fn may_try(&self) -> bool {
        let claims_anew = self.renewal.is_some() && self.flights.is_empty() && self.buffer.is_empty();
        matches!(self.health, Health::Well) || self.is_trying() && (!self.is_writing() || claims_anew)
    }

    pub(super) fn degrade(&mut self, step: &mut Step<M>, failure: Failure) {
        // Whatever the answer would be: this failure has its own delay.
        self.cancel_probe(step);
        let Failure { side, reaction, detail } = failure;
        let mut backoff = match std::mem::replace(&mut self.health, Health::Well) {
            Health::Degraded(before) if before.reaction.pace() == reaction.pace() => before.backoff,
            _ => Backoff::new(
                self.options.backoff_min,
                match reaction.pace() {
                    Pace::Short => self.options.backoff_max,
                    Pace::Long => self.options.backoff_long,
                },
            ),
        };
        let delay = backoff.next_delay(&mut self.jitter);
        let failures = backoff.failures();
        let attempt = Attempt::Waiting { until: step.now + delay };
        self.health = Health::Degraded(Box::new(Degraded { side, reaction, backoff, attempt }));
        self.state = TenantState::Degraded;
        step.command(Command::Degrade { reaction, detail, failures, delay });
        if side.claims() == Claims::Released {
            self.release_buffer(step);
        }
    }

    pub(super) fn recovered(&mut self, step: &mut Step<M>) {
        if let Health::Degraded(degraded) = &self.health {
            let reason = degraded.reaction.reason;
            self.cancel_probe(step);
            self.health = Health::Well;
            step.command(Command::Report(Report::Recovered { reason }));
            self.enter(step, TenantState::Syncing);
        }
    }

    pub(super) fn start_probe(&mut self, step: &mut Step<M>) -> Option<Instant> {
        let writing = self.is_writing();
        let Health::Degraded(degraded) = &mut self.health else { return None };
        let Attempt::Waiting { until } = degraded.attempt else { return None };
        // What is on its way shows more than a ping.
        if writing {
            return None;
        }
        if until > step.now {
            return Some(until);
        }
        match degraded.reaction.next_try {
            NextTry::Ping => {
                degraded.attempt = Attempt::Probing;
                step.command(Command::Probe { deadline: self.options.flush_deadline });
            }
            NextTry::Claim => self.start_trying(step),
        }
        None
    }

    fn start_trying(&mut self, step: &mut Step<M>) {
        if let Health::Degraded(degraded) = &mut self.health {
            degraded.attempt = Attempt::Trying;
            self.end_wait(step);
            self.claim_now(step.now);
        }
    }

    pub(super) fn probed(&mut self, step: &mut Step<M>, result: Result<(), Failure>) {
        let Health::Degraded(degraded) = &mut self.health else { return };
        if degraded.attempt != Attempt::Probing {
            return;
        }
        degraded.attempt = Attempt::Waiting { until: step.now };
        match result {
            Ok(()) => self.start_trying(step),
            Err(failure) => self.degrade(step, failure),
        }
    }

    /// Drops a probe that is under way; the wait before it is over.
    pub(super) fn cancel_probe(&mut self, step: &mut Step<M>) {
        if let Health::Degraded(degraded) = &mut self.health
            && degraded.attempt == Attempt::Probing
        {
            degraded.attempt = Attempt::Waiting { until: step.now };
            step.command(Command::Cancel(Task::Probe));
        }
    }

    /// Tries as soon as it can.
    pub(super) fn end_backoff(&mut self, now: Instant) {
        if let Health::Degraded(degraded) = &mut self.health
            && let Attempt::Waiting { until } = &mut degraded.attempt
        {
            *until = now;
        }
    }
}
