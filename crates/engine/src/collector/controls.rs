//! What operators want of a collector: that it pauses, resumes, or writes at once.
//!
//! A paused collector claims nothing. What it has claimed is written as ever, and what waits in the schedule meanwhile is
//! protected as in an outage ([`super::upkeep`]).

use super::{Collector, Command, Controls, Health, Intake, Report, Service, Step, Task};
use crate::state::TenantState;

impl<M> Collector<M> {
    pub(super) fn controls_changed(&mut self, step: &mut Step<M>, controls: Controls) {
        let before = std::mem::replace(&mut self.controls, controls);
        match (before.service, controls.service) {
            (Service::Paused, Service::Paused) => {}
            (_, Service::Paused) => step.command(Command::Report(Report::Paused)),
            (Service::Paused, _) => {
                step.command(Command::Report(Report::Resumed));
                self.hurry(step);
            }
            _ => {}
        }
    }

    pub(super) fn flush_requested(&mut self, step: &mut Step<M>) {
        if self.controls.service != Service::Paused && (self.is_running() || self.is_leaving()) {
            self.claim_for_a_while(step.now);
            self.hurry(step);
            self.buffer.hurry();
        }
    }

    /// Keeps a paused collector from everything but what it has already begun.
    pub(super) fn apply_controls(&mut self, step: &mut Step<M>) {
        if self.controls.service != Service::Paused {
            return;
        }
        // Whether it can be written is found out when it is resumed.
        self.cancel_probe(step);
        self.health = Health::Well;
        self.end_wait(step);
        let claiming = matches!(self.intake, Intake::Claiming { .. });
        if self.buffer.is_empty() && self.flights.is_empty() && !claiming {
            self.enter(step, TenantState::Paused);
        }
    }

    /// Whatever it waits for is over.
    fn hurry(&mut self, step: &mut Step<M>) {
        self.idle_delay = self.options.poll_interval;
        self.end_wait(step);
        self.claim_now(step.now);
        self.end_backoff(step.now);
    }

    /// It may claim again, if it was waiting until something is due.
    pub(super) fn end_wait(&mut self, step: &mut Step<M>) {
        if matches!(self.intake, Intake::Idle | Intake::Watching) {
            step.command(Command::Cancel(Task::Wait));
            self.intake = Intake::Ready { at: step.now };
        }
    }
}
