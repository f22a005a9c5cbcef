//! Standby: another worker comes first, and this collector claims only when no other worker does.

use std::time::{Duration, Instant};

use super::{Backlog, Collector, Command, Health, Intake, Report, Role, Service, Step};
use crate::state::TenantState;

/// A standby that has taken over stands by again after this. Long against the moment that it takes to find out that no worker
/// claims even then; short, because two workers may be slower than one.
const TAKES_OVER_FOR: Duration = Duration::from_secs(60);

impl<M> Collector<M> {
    /// Follows its rank among the owners.
    pub(super) fn update_role(&mut self, step: &mut Step<M>) -> Option<Instant> {
        let stands_by = self.stands_by(step.now);
        match self.intake {
            Intake::Watching if !stands_by => {
                self.end_wait(step);
                self.idle_delay = self.options.poll_interval;
            }
            // What a claim brings is written first.
            Intake::Ready { .. } | Intake::Idle if stands_by => {
                self.end_wait(step);
                self.taken_over_until = None;
                // Nothing more is to be had for a batch that has its permit.
                if self.backlog == Backlog::More {
                    self.backlog = Backlog::Unknown;
                }
                self.intake = Intake::Watching;
                step.command(Command::Watch);
            }
            _ => {}
        }
        if matches!(self.intake, Intake::Watching) && self.buffer.is_empty() {
            // What was given back while a permit was waited for is the other worker's now.
            self.cancel_permit(step);
            if !self.is_writing() {
                self.enter(step, TenantState::Standby);
            }
        }
        self.taken_over_until.filter(|until| *until > step.now && self.would_stand_by())
    }

    /// Whether this collector leaves the claiming to another worker's.
    fn stands_by(&self, now: Instant) -> bool {
        self.would_stand_by() && self.taken_over_until.is_none_or(|until| until <= now)
    }

    /// The same, unless it has taken over. One that fails goes on trying until it is well again: it protects the values
    /// meanwhile.
    fn would_stand_by(&self) -> bool {
        self.controls.role == Role::Standby
            && self.controls.service != Service::Paused
            && matches!(self.health, Health::Well)
            && self.is_running()
    }

    /// Claims as if it came first, for a while.
    pub(super) fn claim_for_a_while(&mut self, now: Instant) {
        self.taken_over_until = Some(now + TAKES_OVER_FOR);
    }

    /// Something is due, and no worker claims it.
    pub(super) fn take_over(&mut self, step: &mut Step<M>) {
        if matches!(self.intake, Intake::Watching) {
            step.command(Command::Report(Report::TookOver));
            self.claim_for_a_while(step.now);
            self.intake = Intake::Ready { at: step.now };
            self.idle_delay = self.options.poll_interval;
        }
    }
}
