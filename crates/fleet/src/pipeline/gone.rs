//! Members whose values are gone: deleted with their balances, written long ago, or lost. Decided here, by what Postgres
//! knows of them.
//!
//! That a row is as new as the newest operation proves nothing while the ledger may still be writing the operation of what
//! is gone: it writes them after Redis. [`TrailWatch`] decides when it does; until then the member is put off, and it is shown
//! that values are gone ([`crate::status::ValuesGone`]).

use std::{cell::RefCell, sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_domain::BalanceRef;
use balance_sync_engine::trail::TrailWatch;
use balance_sync_schedule::{
    Claimed, ErrorClass, Loss, PostponeReport, ScheduleError, SettleReport, Unsettled,
};
use balance_sync_store::{Fate, Fates, LastKnown, Named};
use balance_sync_trace as trace;
use tokio::time::Instant;

use super::{
    counting::{batch_failed, cleanup_failed, expired},
    failure::{SinkError, is_only_a_wait, reaction, redis_reaction},
    flush::{FlushEnd, put_off_unlisted, release, shown},
    ports::{Queue, Sink},
};
use crate::status::{Outcome, TenantStatus};

/// The least that is left of a flush's deadline for finding out what became of values that are gone.
const LEAST: Duration = Duration::from_secs(1);

/// A member without a value.
pub(crate) struct Gone<'a> {
    /// As it was claimed.
    pub(crate) member: &'a Claimed,
    /// What it names.
    pub(crate) balance: BalanceRef<'a>,
}

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits<'a> {
    /// What is left of the flush's deadline.
    pub(crate) deadline: Duration,
    /// What is known of values that were gone at the last look.
    pub(crate) trail: &'a RefCell<TrailWatch<Vec<u8>>>,
    /// The collector is stopping.
    pub(crate) last: bool,
}

/// Finds out what became of these members, and settles, records or puts off each. When Postgres can't be asked all are given
/// back: nothing leaves the schedule undecided.
pub(crate) async fn decide<Q: Queue, S: Sink>(
    queue: &Q,
    sink: &S,
    gone: &[Gone<'_>],
    limits: Limits<'_>,
    end: &mut FlushEnd,
    status: &TenantStatus,
) {
    if gone.is_empty() {
        return;
    }
    let held: Vec<&Claimed> = gone.iter().map(|gone| gone.member).collect();
    let asked = Instant::now().into_std();
    // A write that has failed tells enough about Postgres.
    let fates = match &end.failure {
        Some(_) => None,
        None => match ask(sink, gone, limits).await {
            Ok(fates) => Some(fates),
            Err(failure) if is_only_a_wait(&failure) => None,
            Err(failure) => {
                end.failure = Some(failure);
                batch_failed(queue, held.iter().copied(), status);
                None
            }
        },
    };
    let Some(Fates { fates, started }) = fates else {
        match release(queue, &held, status).await {
            Some(released) => end.outcomes[Outcome::Released] += released,
            None => end.orphaned += held.len(),
        }
        return;
    };
    end.answered = true;
    if let Some(started) = started {
        limits.trail.borrow_mut().answered(&started, asked);
    }

    let (mut obsolete, mut waiting, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    let former = |member: &Claimed| member.former.parse().unwrap_or(f64::NAN);
    let mut outcomes = Vec::new();
    for (gone, fate) in gone.iter().zip(fates) {
        let name = &gone.member.member;
        let mut trail = limits.trail.borrow_mut();
        let early = matches!(fate, Fate::Stale { .. })
            && !trail.is_complete(name.as_slice(), former(gone.member), asked);
        if !early {
            trail.forget(name.as_slice());
        }
        match fate {
            Fate::Deleted => {
                outcomes.push(Outcome::Deleted);
                obsolete.push(gone.member);
            }
            Fate::Stale { .. } if early => waiting.push(gone.member),
            Fate::Stale { .. } => {
                outcomes.push(Outcome::Stale);
                obsolete.push(gone.member);
            }
            Fate::Lost(known) => lost.push((gone.member, confirmed(known))),
            Fate::Unknown { row_version, why } => lost.push((gone.member, unconfirmed(row_version, &why))),
        }
    }
    if let Some(report) = dismiss(queue, &obsolete, end, status).await {
        for (_, outcome) in obsolete.iter().zip(outcomes).filter(|(member, _)| report.has_settled(member)) {
            end.outcomes[outcome] += 1;
            status.outcomes[outcome].fetch_add(1, Relaxed);
        }
    }
    let delay = limits.trail.borrow().delay();
    let reports = put_off(queue, &waiting, delay, end, status).await;
    for member in waiting {
        if let Some((_, report)) = reports.iter().find(|(schedule, _)| *schedule == member.schedule) {
            let name = member.member.clone();
            limits.trail.borrow_mut().put_off(name, former(member), report.due, asked);
        }
    }
    record(queue, &lost, end, status).await;
}

/// Shows how many members wait for their operations now, without those among the claimed that have values again.
pub(crate) fn show(claimed: &[Claimed], trail: &RefCell<TrailWatch<Vec<u8>>>, status: &TenantStatus) {
    let mut trail = trail.borrow_mut();
    // Seldom otherwise.
    if !trail.is_empty() {
        claimed
            .iter()
            .filter(|member| member.value.is_some())
            .for_each(|member| trail.forget(member.member.as_slice()));
    }
    status.values_gone.show_claimed(trail.waiting(Instant::now().into_std()));
}

async fn ask<S: Sink>(sink: &S, gone: &[Gone<'_>], limits: Limits<'_>) -> Result<Fates, SinkError> {
    let names: Vec<Named<'_>> = gone
        .iter()
        .map(|Gone { balance, .. }| Named {
            organization: balance.organization,
            ledger: balance.ledger,
            alias: balance.alias,
            key: balance.key,
        })
        .collect();
    let span = trace::current().store_call("look up", "postgresql");
    span.count("members", names.len());
    let deadline = limits.deadline.max(LEAST);
    let asking = sink.fates(&names, limits.last);
    let fates = match tokio::time::timeout(deadline, span.around(asking)).await {
        Ok(fates) => fates,
        Err(_) => Err(SinkError::Deadline(deadline)),
    };
    if let Err(error) = &fates {
        span.fail(reaction(error).reason.as_str(), || error.to_string());
    }
    fates
}

fn confirmed(known: LastKnown) -> Loss {
    let LastKnown { row_version, version, available, on_hold, overdraft_used, in_doubt } = known;
    let doubt = if in_doubt {
        "; the amounts are in doubt, because an overdraft was repaid: after a cancel the trail can differ from the true state"
    } else {
        ""
    };
    let row = if row_version < 0 { "no version".to_owned() } else { format!("version {row_version}") };
    Loss {
        confirmed: true,
        detail: format!(
            "the value is gone from Redis; the row has {row}, and the newest operation of the ledger version {version}{doubt}"
        ),
        version: Some(version),
        row_version: Some(row_version),
        available,
        on_hold,
        overdraft_used,
        in_doubt,
        ..Loss::default()
    }
}

fn unconfirmed(row_version: Option<i64>, why: &str) -> Loss {
    Loss {
        detail: format!(
            "the value is gone from Redis, and whether a mutation is lost can't be determined: {why}"
        ),
        row_version,
        ..Loss::default()
    }
}

/// What was done, unless it was nothing.
async fn dismiss<Q: Queue>(
    queue: &Q,
    obsolete: &[&Claimed],
    end: &mut FlushEnd,
    status: &TenantStatus,
) -> Option<SettleReport> {
    if obsolete.is_empty() {
        return None;
    }
    let span = trace::current().store_call("dismiss", "redis");
    span.count("members", obsolete.len());
    let mut failed = |left: &[&Claimed], error: ScheduleError| {
        span.fail(redis_reaction(error.class).reason.as_str(), || error.to_string());
        end.orphaned += left.len();
        cleanup_failed(queue, left.iter().copied(), status);
        tracing::warn!(members = left.len(), %error, "members with nothing to write could not be removed");
        end.note(error);
    };
    let report = match span.around(queue.dismiss(obsolete)).await {
        Ok(report) => report,
        Err(error) => {
            failed(obsolete, error);
            return None;
        }
    };
    let (removed, left): (Vec<&Claimed>, Vec<&Claimed>) =
        obsolete.iter().copied().partition(|member| report.has_settled(member));
    if let Some(Unsettled { error, .. }) = &report.unsettled {
        failed(&left, error.clone());
    }
    end.settled = true;
    status.outcomes[Outcome::Kept].fetch_add(report.kept, Relaxed);
    expired(queue, removed, status);
    Some(report)
}

/// Puts members off that can't be worked yet; returns one report for each of their schedules. They count as given back.
pub(crate) async fn put_off<Q: Queue>(
    queue: &Q,
    waiting: &[&Claimed],
    delay: Duration,
    end: &mut FlushEnd,
    status: &TenantStatus,
) -> Vec<(usize, PostponeReport)> {
    if waiting.is_empty() {
        return Vec::new();
    }
    let span = trace::current().store_call("put off", "redis");
    span.count("members", waiting.len());
    match span.around(queue.put_off(waiting, delay)).await {
        Ok(reports) => {
            let postponed = reports.iter().map(|(_, report)| report.postponed).sum();
            end.outcomes[Outcome::Released] += postponed;
            status.outcomes[Outcome::Released].fetch_add(postponed, Relaxed);
            tracing::debug!(members = postponed, ?delay, "members put off, they are looked at again");
            reports
        }
        Err(error) => {
            span.fail(redis_reaction(error.class).reason.as_str(), || error.to_string());
            end.orphaned += waiting.len();
            cleanup_failed(queue, waiting.iter().copied(), status);
            tracing::warn!(members = waiting.len(), %error, "members could not be put off, their claims lapse");
            end.note(error);
            Vec::new()
        }
    }
}

pub(crate) async fn record<Q: Queue>(
    queue: &Q,
    lost: &[(&Claimed, Loss)],
    end: &mut FlushEnd,
    status: &TenantStatus,
) {
    if lost.is_empty() {
        return;
    }
    let span = trace::current().store_call("record losses", "redis");
    span.count("members", lost.len());
    match span.around(queue.record_losses(lost)).await {
        Ok(report) => {
            end.settled = true;
            end.outcomes[Outcome::Quarantined] += report.quarantined;
            status.outcomes[Outcome::Quarantined].fetch_add(report.quarantined, Relaxed);
            // Until they are counted again: no screen may show a healthy tenant meanwhile.
            status.losses.fetch_max(report.quarantined, Relaxed);
            status.quarantine_entries.fetch_max(report.quarantined, Relaxed);
            let forked = lost.iter().all(|(_, loss)| loss.forked);
            let outcome = if forked { Outcome::Forked } else { Outcome::Expired };
            status.outcomes[outcome].fetch_add(report.quarantined, Relaxed);
            if !forked {
                // Which of them were recorded is not known when it isn't all.
                let recorded = usize::try_from(report.quarantined).unwrap_or(usize::MAX);
                expired(queue, lost.iter().map(|(member, _)| *member).take(recorded), status);
            }
            if report.full > 0 {
                status.quarantine_full.fetch_add(report.full, Relaxed);
                tracing::error!(
                    members = report.full,
                    quarantined = report.quarantined,
                    "quarantine is full, members are put off and stay scheduled"
                );
            }
            // Which of them are listed is not known otherwise.
            let listed = report.quarantined == lost.len() as u64;
            for (member, loss) in lost.iter().filter(|_| listed) {
                tracing::warn!(
                    member = %shown(&member.member),
                    confirmed = loss.confirmed,
                    version = loss.version,
                    row_version = loss.row_version,
                    detail = loss.detail,
                    "{}",
                    if loss.forked {
                        "row and value in redis have different histories, the balance has forked"
                    } else {
                        "value expired in redis before it was written, its last mutation is lost unless the ledger still has it"
                    }
                );
            }
        }
        Err(error) => {
            span.fail(redis_reaction(error.class).reason.as_str(), || error.to_string());
            cleanup_failed(queue, lost.iter().map(|(member, _)| *member), status);
            tracing::warn!(members = lost.len(), %error, "losses could not be recorded, members stay scheduled");
            if error.class == ErrorClass::WrongType {
                let members: Vec<_> = lost.iter().map(|(member, _)| (*member, false)).collect();
                put_off_unlisted(queue, &members, error, end, status).await;
            } else {
                end.orphaned += lost.len();
                end.note(error);
            }
        }
    }
}
