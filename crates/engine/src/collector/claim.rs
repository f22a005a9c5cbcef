//! Claims: when due members are asked for, and what their answer shows.

use std::time::{Duration, Instant};

use super::{Backlog, Claimed, Collector, Command, Health, Intake, Locked, Permit, Phase, Step, Supply};
use crate::{
    failure::{Failure, Side},
    state::TenantState,
};

/// What is claimed ahead while permits are scarce: one in so many of a batch …
const PREFETCH: usize = 8;
/// … but no less than this, which weighs nothing.
const PREFETCH_MIN: usize = 50;
/// While a prefetch waits for its permit, one more member is claimed so often in the time in which a standby takes over.
const SHOWS: u32 = 2;

/// A lock has ended when this has passed after its remaining TTL.
const UNLOCK_MARGIN: Duration = Duration::from_millis(1);

/// Since when due members have been locked by others.
#[derive(Debug, Default)]
pub(super) struct LockedOut {
    pub(super) since: Option<Instant>,
    /// The last claim found none. Where locks are many every other claim begins behind them, so only two in a row show that
    /// there are none.
    missed: bool,
}

impl LockedOut {
    fn update(&mut self, now: Instant, locked: bool) {
        if locked {
            self.since.get_or_insert(now);
        } else if self.missed {
            self.since = None;
        }
        self.missed = !locked;
    }
}

impl<M> Collector<M> {
    /// How many members may be claimed now.
    pub(super) fn room(&self) -> usize {
        let room = self.buffer.room();
        if self.supply == Supply::Ample || matches!(self.permit, Permit::Held { .. }) {
            return room;
        }
        let prefetch = self.options.batch_size.div_ceil(PREFETCH).max(PREFETCH_MIN);
        room.min(prefetch.saturating_sub(self.buffer.len()))
    }

    pub(super) fn start_claim(&mut self, step: &mut Step<M>) -> Option<Instant> {
        let Intake::Ready { at } = self.intake else { return None };
        let (limit, at) = match self.room() {
            0 if self.shows_itself() => (1, self.show_at(at)),
            room => (room, at),
        };
        if limit == 0 || !self.may_claim() || !self.may_try() || self.is_giving_back() {
            return None;
        }
        if at > step.now {
            return Some(at);
        }
        self.intake = Intake::Claiming { limit };
        step.command(Command::Claim { limit });
        None
    }

    /// Whether it claims one member at a time beside its prefetch while it waits for a permit: the head of the schedule moves then, by
    /// which a standby sees that this worker lives. One that is frozen claims nothing.
    fn shows_itself(&self) -> bool {
        matches!(self.permit, Permit::Requested { .. }) && self.buffer.room() > 0
    }

    /// When it does so next, after an intake that is ready at this time. A standby takes over when the head has stayed for
    /// `collector.idle_backoff_max`.
    fn show_at(&self, ready: Instant) -> Instant {
        match self.backlog {
            Backlog::More => ready + self.options.idle_backoff_max / SHOWS,
            Backlog::Unknown | Backlog::Empty | Backlog::Done => ready,
        }
    }

    /// Claims without waiting for the poll interval.
    pub(super) fn claim_now(&mut self, now: Instant) {
        if let Intake::Ready { at } = &mut self.intake {
            *at = now;
        }
    }

    pub(super) fn claim_failed(&mut self, step: &mut Step<M>, failure: Failure) {
        if let Intake::Claiming { .. } = self.intake {
            self.intake = Intake::Ready { at: step.now };
            self.renewal = None;
            self.backlog = Backlog::Unknown;
            if !self.is_stopping() {
                self.degrade(step, failure);
            }
        }
    }

    pub(super) fn claimed(&mut self, step: &mut Step<M>, claimed: Claimed<M>) {
        let now = step.now;
        let Claimed { members, scheduled, head_age, locked } = claimed;
        let Intake::Claiming { limit } = self.intake else {
            debug_assert!(members.is_empty(), "nothing was claimed");
            self.buffer.add(members, now);
            return;
        };
        self.intake = Intake::Ready { at: now };
        if !self.is_giving_back() {
            self.renewal = None;
        }
        let found = members.len();
        self.buffer.add(members, now);
        if self.is_stopping() {
            return;
        }
        match self.fails() {
            Some(side) if side.ends_with_a_claim() => self.recovered(step),
            Some(_) if !self.is_trying() => {
                // It was under way when a flush failed: what it brought can't be written either, and an empty answer
                // shows nothing about Postgres.
                self.backlog = Backlog::Unknown;
                self.release_buffer(step);
                return;
            }
            _ => {}
        }
        self.backlog = match scheduled {
            _ if found >= limit => Backlog::More,
            0 => Backlog::Empty,
            _ => Backlog::Done,
        };
        let behind = found >= limit && head_age.is_some_and(|age| age > self.options.protect_after);
        self.behind_since = behind.then(|| self.behind_since.unwrap_or(now));
        self.locked_out.update(now, locked.is_some());
        if found > 0 {
            self.idle_delay = self.options.poll_interval;
            if matches!(self.health, Health::Well) {
                self.enter(step, TenantState::Syncing);
            }
        }
        if self.backlog == Backlog::More {
            // Again at once, as far as there is room.
        } else if found > 0 || !self.buffer.is_empty() || !self.flights.is_empty() {
            // Less than asked for: nothing more is due at this moment. In a queue it is looked at as in an idle schedule: so often that no
            // standby takes its members for unclaimed.
            let at = match self.is_queued(now) {
                true => now + self.options.idle_backoff_max,
                false => self.look_at(now),
            };
            self.intake = Intake::Ready { at };
        } else if self.may_claim() {
            self.go_idle(step, locked);
        }
    }

    fn go_idle(&mut self, step: &mut Step<M>, locked: Option<Locked>) {
        // A tenant on its way back has nothing to write, and nothing spoke against trying. Should it still fail, the next
        // mutation shows it. Only members that could not be settled are due again when their leases have lapsed.
        if self.fails() != Some(Side::Settle) || self.backlog == Backlog::Empty {
            self.recovered(step);
            self.enter(step, TenantState::Idle);
        }
        self.supply = Supply::Scarce;
        // The ledger's worker locks a value that it can't read again and again, with its neighbours: only who is there when
        // the lock ends gets it.
        let unlock_in = locked.and_then(|locked| locked.unlock_in).map(|left| left + UNLOCK_MARGIN);
        let delay = unlock_in.map_or(self.idle_delay, |unlock_in| unlock_in.min(self.idle_delay));
        self.idle_delay =
            (self.idle_delay * 2).min(self.options.idle_backoff_max).max(self.options.poll_interval);
        self.intake = Intake::Idle;
        step.command(Command::Idle { delay });
    }

    pub(super) fn idle_over(&mut self, step: &mut Step<M>) {
        if let Intake::Idle = self.intake {
            self.intake = Intake::Ready { at: step.now };
        }
    }

    /// Whether it only brings to an end what it has begun.
    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::Abandoning { .. } | Phase::Ended(_))
    }
}
