//! What came of the commands, as events for the state machine; and as status, counters and log lines for people.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_domain::QuarantineReason;
use balance_sync_engine::{
    collector::{Claimed as Answer, Event, FlightEnd, Locked, UpkeepEnd},
    failure::{Failure, Side},
    reason::Reason,
};
use balance_sync_schedule::{Claim, Claimed, Refused, ScheduleError};

use super::{ClaimAnswer, Driver, Happened, Landing, PermitSlot, UpkeepAnswer};
use crate::pipeline::{
    counting::batch_failed,
    failure::{SinkError, redis_failure},
    flush::{FlushEnd, Unlisted},
    ports::{Queue, Sink},
};
use crate::status::{Outcome, Stage};

/// How long something is shown that is reported again by each claim, at least.
const SHOWN: Duration = Duration::from_secs(5);

impl<Q: Queue, S: Sink> Driver<'_, Q, S> {
    pub(super) fn event(&mut self, happened: Happened<S::Permit>) -> Event<Claimed> {
        match happened {
            Happened::Landed(Landing::Ended(id, end)) => {
                self.held.landed(id);
                for (reason, detail) in &end.notices {
                    if *reason == Reason::PostgresRowLocked {
                        self.note_locked(detail);
                    } else {
                        self.note_put_off(*reason, detail);
                    }
                }
                if let Some(unlisted) = &end.unlisted {
                    self.note_unlisted(unlisted);
                }
                if let Some(error) = &end.failure
                    && !self.machine.is_running()
                    && !self.machine.is_leaving()
                {
                    tracing::warn!(%error, released = end.outcomes[Outcome::Released], "final flush failed");
                }
                Event::FlightEnded(id, flight_end(&end))
            }
            Happened::Landed(Landing::Abandoned { released, orphaned }) => {
                Event::Abandoned { released, orphaned }
            }
            Happened::Permit(permit) => self.permit_event(permit),
            Happened::Claim(limit, answer) => self.claim_event(limit, answer),
            Happened::Probe(answer) => Event::Probed(answer.map_err(|error| Failure::from(&error))),
            Happened::Upkeep(answer) => Event::UpkeepEnded(self.upkeep_end(answer)),
            Happened::WaitOver(event) => event,
            Happened::Called => Event::Tick,
        }
    }

    fn permit_event(&mut self, answer: Result<S::Permit, SinkError>) -> Event<Claimed> {
        let PermitSlot::Requested { trigger, since, .. } =
            std::mem::replace(&mut self.permit, PermitSlot::None)
        else {
            // It was cancelled when it was there.
            return Event::Tick;
        };
        self.status.show_permit_since(None);
        match answer {
            Ok(permit) => {
                self.permit = PermitSlot::Held(permit);
                Event::PermitGranted
            }
            Err(error) => {
                batch_failed(self.queue, self.machine.waiting(), self.status);
                let end = FlushEnd { claimed: self.machine.buffered(), ..FlushEnd::default() };
                self.status.note_flush(end.summary(trigger, since.elapsed()));
                Event::PermitFailed(Failure::from(&error))
            }
        }
    }

    fn claim_event(&mut self, limit: usize, (took, answer): ClaimAnswer) -> Event<Claimed> {
        let claim = match answer {
            Ok(claim) => claim,
            Err(error) => {
                return Event::ClaimFailed(redis_failure(Side::of_claim(error.class), &error));
            }
        };
        self.fleet.observe(Stage::Claim, took);
        self.status.scheduled.store(claim.scheduled, Relaxed);
        self.status.foreign_locked.store(claim.foreign, Relaxed);
        self.trace_claim(took, limit, &claim);
        self.held.claimed(&claim);
        if let Some(refused) = &claim.refused {
            self.note_refusal(refused);
        }
        self.note_overlong(&claim);
        let Claim { entries, scheduled, now, foreign, unlock_in, .. } = claim;
        // Not simply the first: a lease that lapsed shows no time.
        let head_age = entries
            .iter()
            .find_map(Claimed::scheduled_at)
            .map(|at| Duration::try_from_secs_f64(now - at).unwrap_or_default());
        let locked = (foreign > 0).then_some(Locked { unlock_in });
        Event::Claimed(Answer { members: entries, scheduled, head_age, locked })
    }

    /// Members too long to be claimed are moved to quarantine by the claim itself.
    fn note_overlong(&self, claim: &Claim) {
        let (isolated, unlisted) = (claim.isolated, claim.unlisted);
        if isolated > 0 {
            self.status.outcomes[Outcome::Quarantined].fetch_add(isolated, Relaxed);
            // Until they are counted again: no screen may show a healthy tenant meanwhile.
            self.status.quarantine_entries.fetch_max(isolated, Relaxed);
            let reason = QuarantineReason::MemberTooLong.as_str();
            tracing::warn!(members = isolated, reason, "members are too long to be claimed, quarantined");
        }
        if unlisted > 0 {
            self.status.quarantine_full.fetch_add(unlisted, Relaxed);
            tracing::error!(
                members = unlisted,
                "quarantine is full or can't be written, members that are too long are put off and stay scheduled"
            );
        }
    }

    /// Redis refused some of what a claim asked for: the tenant goes on, and shows it until it has not happened for a while.
    fn note_refusal(&self, refused: &Refused) {
        let reason = refused.error.class.reason();
        let detail = if refused.put_off == 0 {
            refused.error.to_string()
        } else {
            format!("{} balances put off, their values can't be read: {}", refused.put_off, refused.error)
        };
        // What was put off comes back in its time, all else with each claim.
        let lasts = if refused.put_off > 0 {
            2 * self.options.put_off
        } else {
            SHOWN.max(3 * self.options.idle_backoff_max)
        };
        if self.status.notice(reason, detail.clone(), lasts) {
            tracing::warn!(
                reason = reason.as_str(),
                error = detail,
                "redis refuses some of the tenant's keys"
            );
        }
    }

    /// Some balances can't be written now and wait, in the schedule, for what is missing. The others are written.
    fn note_put_off(&self, reason: Reason, detail: &str) {
        if !self.status.notice(reason, detail.to_owned(), 2 * self.options.put_off) {
            return;
        }
        if reason == Reason::ValueUnknownFormat {
            tracing::error!(
                detail,
                "values are in a format that this release doesn't know: they stay scheduled, update balance-sync"
            );
        } else {
            tracing::error!(
                reason = reason.as_str(),
                detail,
                "balances can't be written now: they stay scheduled"
            );
        }
    }

    /// Some balances wait for rows that another session has locked. They come again while this is shown.
    fn note_locked(&self, detail: &str) {
        let reason = Reason::PostgresRowLocked;
        if self.status.notice(reason, detail.to_owned(), SHOWN) {
            tracing::warn!(
                reason = reason.as_str(),
                detail,
                "rows are locked: their balances wait, the others are written"
            );
        }
    }

    /// Some members can be neither written nor set aside. They wait for an operator to remove what is in the way, and the others
    /// are written. The flush has logged it.
    fn note_unlisted(&self, Unlisted { members, error }: &Unlisted) {
        let detail = format!("{members} balances put off, they can't be set aside: {error}");
        self.status.notice(error.class.reason(), detail, 2 * self.options.put_off);
    }

    fn upkeep_end(&self, answer: UpkeepAnswer) -> UpkeepEnd {
        match answer {
            UpkeepAnswer::Sweep(Ok(sweep)) => {
                let shortest =
                    sweep.shortest.map_or(u64::MAX, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
                self.status.shortest_life_ms.store(shortest, Relaxed);
                if sweep.raised > 0 {
                    tracing::info!(raised = sweep.raised, absent = sweep.absent, "waiting values protected");
                }
                UpkeepEnd::Swept
            }
            UpkeepAnswer::Recent(Ok((at, raised))) => {
                if raised > 0 {
                    tracing::debug!(raised, "values scheduled meanwhile protected");
                }
                UpkeepEnd::Protected { at }
            }
            UpkeepAnswer::Survey(Ok(survey)) => {
                if survey.adopted > 0 {
                    tracing::warn!(members = survey.adopted, "members of a legacy schedule adopted");
                }
                if self.status.other_form.swap(survey.other_form, Relaxed) != survey.other_form
                    && survey.other_form > 0
                {
                    tracing::error!(
                        members = survey.other_form,
                        "the ledger schedules this tenant under the other form of its id, which no worker serves; see tenants.key_form"
                    );
                }
                UpkeepEnd::Surveyed { adopted: survey.adopted }
            }
            UpkeepAnswer::Sweep(Err(error))
            | UpkeepAnswer::Recent(Err(error))
            | UpkeepAnswer::Survey(Err(error)) => {
                tracing::debug!(%error, "upkeep of the schedule failed");
                UpkeepEnd::Failed
            }
        }
    }
}

fn flight_end(end: &FlushEnd) -> FlightEnd {
    let count = |outcome| usize::try_from(end.outcomes[outcome]).unwrap_or(usize::MAX);
    let refused = |error: &ScheduleError| redis_failure(Side::Settle, error);
    FlightEnd {
        written: [Outcome::Updated, Outcome::Stale, Outcome::Deleted].map(count).iter().sum(),
        released: count(Outcome::Released),
        orphaned: end.orphaned,
        answered: end.answered,
        settled: end.settled,
        failure: end.failure.as_ref().map(Failure::from).or_else(|| end.refused.as_ref().map(refused)),
    }
}
