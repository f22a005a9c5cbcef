//! Upkeep of a schedule beside its claims and flushes: values that wait are protected, legacy schedules looked after.

use std::time::{Duration, Instant};

use super::{Collector, Command, Service, Step, Task, Upkeep, UpkeepEnd};
use crate::failure::Side;

/// While values need protection, what was scheduled since the last look is looked at this often.
const RECENT_EVERY: Duration = Duration::from_secs(1);
/// A backlog that is being worked off is swept only when that takes longer. Every claim protects what it takes, and
/// reading all TTLs costs Redis as much as a good part of the work itself.
const WORKED_OFF_WITHIN: Duration = Duration::from_secs(10);
/// A margin, in seconds, for scores written in the very microsecond of a look.
const RECENT_MARGIN: f64 = 0.001;

/// What is under way, and what comes when.
#[derive(Debug)]
pub(super) struct Plan {
    running: Option<Kind>,
    next_survey: Instant,
    /// `None` = at once, when values need protection.
    next_sweep: Option<Instant>,
    next_recent: Instant,
    /// The server's time at the last look, in seconds.
    recent_from: Option<f64>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Sweep,
    Recent,
    Survey,
}

impl Plan {
    pub(super) fn new(now: Instant) -> Self {
        Self { running: None, next_survey: now, next_sweep: None, next_recent: now, recent_from: None }
    }
}

impl<M> Collector<M> {
    /// From when on values may have to wait: at once where the tenant can't write or is paused; later, where a flush takes
    /// long, or with a backlog the wait for its permit, members stay locked by others, or there is an old backlog that is not worked off soon.
    fn protects_from(&self, now: Instant) -> Option<Instant> {
        // With Redis away nothing could be protected; one that refuses claims may let TTLs be raised.
        let waiting = matches!(self.fails(), Some(Side::Claim | Side::Settle | Side::Sink))
            || self.controls.service == Service::Paused;
        if waiting {
            return Some(now);
        }
        let behind = self.behind_since.map(|since| since + WORKED_OFF_WITHIN);
        let locked_out = self.locked_out.since.map(|since| since + WORKED_OFF_WITHIN);
        let slow = self.writing_since().map(|since| since + self.options.protect_after);
        // As long as there is room what is due is claimed meanwhile, and every claim protects what it takes.
        let queued = self.waiting_since().filter(|_| self.room() == 0);
        let queued = queued.map(|since| since + WORKED_OFF_WITHIN.max(self.options.protect_after));
        behind.into_iter().chain(queued).chain(slow).chain(locked_out).min()
    }

    pub(super) fn start_upkeep(&mut self, step: &mut Step<M>) -> Option<Instant> {
        let now = step.now;
        // Before it is known whether the tenant is to be served, nothing of it may change.
        if self.upkeep.running.is_some() || self.controls.service == Service::Unknown {
            return None;
        }
        let mut next = self.upkeep.next_survey;
        let from = if self.options.protect_floor.is_zero() { None } else { self.protects_from(now) };
        match from {
            Some(from) if from <= now => {
                // Redis's clock is read before the first sweep: a sweep may miss what is scheduled while it goes on, and
                // what comes after that moment is looked at by itself. Both times are kept when the need passes, so that
                // flushes that are slow one by one don't make a sweep each.
                let sweep = self.upkeep.recent_from.map(|_| self.upkeep.next_sweep.unwrap_or(now));
                if sweep.is_some_and(|at| at <= now) {
                    let pause = self.jitter.spread(self.options.protect_floor / 3);
                    self.upkeep.next_sweep = Some(now + pause);
                    self.upkeep.next_recent = now;
                    return self.run_upkeep(step, Upkeep::Sweep);
                }
                if self.upkeep.next_recent <= now {
                    self.upkeep.next_recent = now + RECENT_EVERY;
                    let from = self.upkeep.recent_from;
                    return self.run_upkeep(step, Upkeep::Recent { from });
                }
                next = next.min(self.upkeep.next_recent).min(sweep.unwrap_or(next));
            }
            Some(from) => next = next.min(from),
            None => {}
        }
        if self.upkeep.next_survey <= now {
            self.upkeep.next_survey = now + self.jitter.spread(self.options.survey_interval);
            return self.run_upkeep(step, Upkeep::Survey);
        }
        Some(next)
    }

    fn run_upkeep(&mut self, step: &mut Step<M>, upkeep: Upkeep) -> Option<Instant> {
        self.upkeep.running = Some(match upkeep {
            Upkeep::Sweep => Kind::Sweep,
            Upkeep::Recent { .. } => Kind::Recent,
            Upkeep::Survey => Kind::Survey,
        });
        step.command(Command::Upkeep(upkeep));
        None
    }

    pub(super) fn survey_requested(&mut self, now: Instant) {
        self.upkeep.next_survey = self.upkeep.next_survey.min(now);
    }

    pub(super) fn cancel_upkeep(&mut self, step: &mut Step<M>) {
        if self.upkeep.running.take().is_some() {
            step.command(Command::Cancel(Task::Upkeep));
        }
    }

    pub(super) fn upkeep_ended(&mut self, step: &mut Step<M>, end: UpkeepEnd) {
        let Some(ran) = self.upkeep.running.take() else { return };
        match end {
            UpkeepEnd::Swept => {}
            UpkeepEnd::Protected { at } => self.upkeep.recent_from = Some(at - RECENT_MARGIN),
            UpkeepEnd::Surveyed { adopted } => {
                if adopted > 0 {
                    // They come with the scores of old mutations, which only a sweep finds.
                    self.upkeep.next_sweep = None;
                }
            }
            // Never at once: Redis may refuse in no time for as long as it is away. The claims show its failures as the
            // tenant's state.
            UpkeepEnd::Failed => {
                let delay = match ran {
                    Kind::Sweep | Kind::Recent => self.options.backoff_max,
                    Kind::Survey => self.options.backoff_long,
                };
                let again = step.now + self.jitter.spread(delay);
                match ran {
                    Kind::Sweep => self.upkeep.next_sweep = Some(again),
                    Kind::Recent => self.upkeep.next_recent = again,
                    // One that took longer than the interval before it failed is due already.
                    Kind::Survey if self.upkeep.next_survey <= step.now => self.upkeep.next_survey = again,
                    Kind::Survey => self.upkeep.next_survey = self.upkeep.next_survey.min(again),
                }
            }
        }
    }
}
