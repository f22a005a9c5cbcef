//! One flush: decode, aggregate, update, settle. What happens to each claimed member is decided here.

use std::{
    borrow::Cow,
    cell::RefCell,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use balance_sync_domain::{
    BalanceRef, BalanceValue, Candidate, QuarantineReason, aggregate, effective_key, printable_bytes,
    without_numbers,
};
use balance_sync_engine::trail::TrailWatch;
use balance_sync_schedule::{Claimed, ErrorClass, Refusal, ScheduleError, Unsettled};
use balance_sync_store::{Outcome as RowOutcome, Row, RowResult};
use balance_sync_trace as trace;

use super::{
    counting::{self, batch_failed, cleanup_failed, unparseable},
    failure::{SinkError, reaction, redis_reaction},
    forks::{self, Differing},
    gone::{self, Gone, Limits},
    ports::{Queue, Sink},
};
use crate::{
    clock::wall_clock,
    status::{FleetStatus, FlushNote, LedgerKey, Outcome, Outcomes, Reason, Stage, TenantStatus, Trigger},
};

/// A balance whose row another session has locked is tried again after this. Meanwhile it is not claimed, so that it doesn't stand
/// before others in the schedule.
const LOCKED_DELAY: Duration = Duration::from_secs(2);

/// How a flush ended.
#[derive(Debug, Default)]
pub struct FlushEnd {
    /// Claimed members in the flush.
    pub claimed: usize,
    /// The members by what became of them; none is counted as [`Outcome::Kept`] or [`Outcome::Expired`].
    pub outcomes: Outcomes,
    /// What the tenant is to be degraded by for a while, though the others of its balances are written: reason and detail.
    pub notices: Vec<(Reason, String)>,
    /// Members whose claims were neither settled nor given back: they lapse by themselves.
    pub orphaned: usize,
    /// Postgres has taken rows in, whatever became of them: it works.
    pub answered: bool,
    /// Redis has let members be settled or quarantined.
    pub settled: bool,
    /// What Redis said when it refused that.
    pub refused: Option<ScheduleError>,
    /// Members that could be neither written nor set aside. They are put off.
    pub unlisted: Option<Box<Unlisted>>,
    /// Why nothing was written.
    pub failure: Option<SinkError>,
}

/// Members that can't be set aside, because the key for that holds something else.
#[derive(Debug)]
pub struct Unlisted {
    /// How many.
    pub members: usize,
    /// What Redis said.
    pub error: ScheduleError,
}

impl FlushEnd {
    /// Keeps what Redis refused, if it did: what merely broke off shows at the next claim.
    pub(crate) fn note(&mut self, error: ScheduleError) {
        if error.class.is_refusal() {
            self.refused = Some(error);
        }
    }

    /// What is kept of a flush that has just ended.
    pub(crate) fn summary(&self, trigger: Trigger, took: Duration) -> FlushNote {
        FlushNote {
            at: wall_clock(),
            trigger: trigger.into(),
            claimed: u32::try_from(self.claimed).unwrap_or(u32::MAX),
            outcomes: self.outcomes.map(|&n| u32::try_from(n).unwrap_or(u32::MAX)),
            took_ms: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

/// Why a member is put off that nothing is wrong with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delay {
    /// Its value is in a format of a later release.
    UnknownFormat,
    /// Its value is the mark of a deletion under way.
    DeletionMarker,
    /// Its database may be another tenant's.
    UnknownLedger,
}

/// A member that is put off, and why, also in words.
struct Postponed<'a> {
    member: &'a Claimed,
    why: Delay,
    detail: String,
}

struct Decoded<'a> {
    /// Position among the claimed.
    at: usize,
    balance: BalanceRef<'a>,
    value: BalanceValue,
}

/// What is flushed, and how.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The claimed members.
    pub claimed: &'a [Claimed],
    /// Why now.
    pub trigger: Trigger,
    /// How long a permit was waited for.
    pub waited: Duration,
    /// Longest time the write may take.
    pub deadline: Duration,
    /// What is known of values that were gone.
    pub trail: &'a RefCell<TrailWatch<Vec<u8>>>,
}

/// Carries one batch. Never fails as a whole without having tried to give its members back.
pub async fn flush<Q: Queue, S: Sink>(
    queue: &Q,
    sink: &S,
    permit: S::Permit,
    Batch { claimed, trigger, waited, deadline, trail }: Batch<'_>,
    fleet: &FleetStatus,
    status: &TenantStatus,
) -> FlushEnd {
    let begun = Instant::now();
    let mut refused: Vec<(&Claimed, Refusal)> = Vec::new();
    let mut postponed: Vec<Postponed<'_>> = Vec::new();
    let mut gone: Vec<Gone<'_>> = Vec::new();
    let decoded = decode(queue, claimed, &mut refused, &mut postponed, &mut gone);
    let candidates: Vec<Candidate<'_>> = decoded
        .iter()
        .map(|entry| Candidate {
            organization: entry.balance.organization,
            ledger: entry.balance.ledger,
            alias: entry.balance.alias,
            asset: &entry.value.asset_code,
            key: effective_key(&entry.balance, &entry.value),
            version: entry.value.version,
        })
        .collect();
    let newest = aggregate(&candidates);
    let rows: Vec<Row<'_>> = newest
        .winners
        .iter()
        .map(|&at| {
            let entry = &decoded[at];
            Row {
                id: entry.value.id,
                organization: entry.balance.organization,
                ledger: entry.balance.ledger,
                available: entry.value.available.as_str(),
                on_hold: entry.value.on_hold.as_str(),
                overdraft_used: entry.value.overdraft_used.as_str(),
                version: entry.value.version,
            }
        })
        .collect();
    let span = trace::current();
    fleet.observe(Stage::Gather, begun.elapsed());
    span.child_since("gather", begun.elapsed()).count("rows", rows.len());

    let mut end = FlushEnd { claimed: claimed.len(), ..FlushEnd::default() };
    let update_begun = Instant::now();
    let results = if rows.is_empty() {
        drop(permit);
        Ok(Vec::new())
    } else {
        let update = span.store_call("update", "postgresql");
        update.count("rows", rows.len());
        let results = match tokio::time::timeout(deadline, update.around(sink.update(permit, &rows))).await {
            Ok(results) => results,
            Err(_) => Err(SinkError::Deadline(deadline)),
        };
        if let Err(error) = &results {
            update.fail(reaction(error).reason.as_str(), || error.to_string());
        }
        results
    };
    fleet.observe(Stage::Update, waited + update_begun.elapsed());

    let settle_begun = Instant::now();
    let mut written: Vec<&Claimed> = Vec::with_capacity(decoded.len());
    let mut obsolete: Vec<&Claimed> = Vec::new();
    let mut locked: Vec<(&Claimed, String)> = Vec::new();
    let mut differing: Vec<Differing<'_>> = Vec::new();
    match results {
        Ok(results) => {
            end.answered = !results.is_empty();
            let of_ledger = |&at: &usize| LedgerKey::of(&decoded[at].balance);
            counting::written(newest.winners.iter().map(of_ledger).zip(&results), status);
            let mut of_winner: Vec<Option<&RowResult>> = vec![None; decoded.len()];
            for (&winner, result) in newest.winners.iter().zip(&results) {
                of_winner[winner] = Some(result);
            }
            for (index, entry) in decoded.iter().enumerate() {
                let member = &claimed[entry.at];
                let own = newest.winner_of[index] == index;
                match of_winner[newest.winner_of[index]] {
                    Some(RowResult::Ok(RowOutcome::Updated)) if own => {
                        end.outcomes[Outcome::Updated] += 1;
                        written.push(member);
                    }
                    Some(RowResult::Differs) if own => {
                        let (balance, value) = (&entry.balance, &entry.value);
                        differing.push(Differing { member, balance, value });
                    }
                    Some(RowResult::Ok(RowOutcome::Updated | RowOutcome::Stale) | RowResult::Differs) => {
                        end.outcomes[Outcome::Stale] += 1;
                        written.push(member);
                    }
                    Some(RowResult::Ok(RowOutcome::Deleted)) => {
                        end.outcomes[Outcome::Deleted] += 1;
                        obsolete.push(member);
                    }
                    Some(RowResult::Ok(RowOutcome::Missing)) => {
                        refused.push((member, missing(entry)));
                    }
                    Some(RowResult::Refused { sqlstate, message }) => {
                        let detail = if sqlstate.is_empty() {
                            message.clone()
                        } else {
                            format!("SQLSTATE {sqlstate}: {message}")
                        };
                        refused
                            .push((member, Refusal { reason: QuarantineReason::RefusedByPostgres, detail }));
                    }
                    Some(RowResult::UnknownLedger { message }) => {
                        postponed.push(Postponed {
                            member,
                            why: Delay::UnknownLedger,
                            detail: message.clone(),
                        });
                    }
                    Some(RowResult::Locked { message }) => locked.push((member, message.clone())),
                    // One result per row is the sink's contract; without one the member keeps its lease and comes
                    // again.
                    None => {
                        end.orphaned += 1;
                        tracing::error!("a row came back without a result");
                    }
                }
            }
            // Rarely any, and no flush should hold the room for it.
            let limit = deadline.saturating_sub(begun.elapsed());
            let stale = Box::pin(forks::decide(queue, sink, &differing, limit, &mut end, status)).await;
            end.outcomes[Outcome::Stale] += stale.len() as u64;
            written.extend(stale);
            settle(queue, written, &obsolete, &mut end, status).await;
        }
        Err(failure) => {
            let held: Vec<&Claimed> = decoded.iter().map(|entry| &claimed[entry.at]).collect();
            match release(queue, &held, status).await {
                Some(released) => end.outcomes[Outcome::Released] += released,
                None => end.orphaned += held.len(),
            }
            end.failure = Some(failure);
            batch_failed(queue, held.iter().copied(), status);
        }
    }
    isolate(queue, &refused, &mut end, status).await;
    postpone(queue, &postponed, &mut end, status).await;
    wait_for_locks(queue, &locked, &mut end, status).await;
    let last = trigger == Trigger::Drain || status.leaving.load(Relaxed);
    let limits = Limits { deadline: deadline.saturating_sub(begun.elapsed()), trail, last };
    // Rarely any, and no flush should hold the room for it.
    Box::pin(gone::decide(queue, sink, &gone, limits, &mut end, status)).await;
    gone::show(claimed, trail, status);
    fleet.observe(Stage::Settle, settle_begun.elapsed());
    fleet.flushes.observe(begun.elapsed().as_secs_f64());
    let at = Trigger::ALL.iter().position(|known| *known == trigger).unwrap_or_default();
    status.batches[at].fetch_add(1, Relaxed);
    let took = begun.elapsed();
    status.note_flush(end.summary(trigger, took));
    tracing::debug!(
        trigger = trigger.as_str(),
        claimed = end.claimed,
        updated = end.outcomes[Outcome::Updated],
        stale = end.outcomes[Outcome::Stale],
        deleted = end.outcomes[Outcome::Deleted],
        forked = end.outcomes[Outcome::Forked],
        quarantined = end.outcomes[Outcome::Quarantined],
        released = end.outcomes[Outcome::Released],
        took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "flushed"
    );
    end
}

fn decode<'a>(
    queue: &impl Queue,
    claimed: &'a [Claimed],
    refused: &mut Vec<(&'a Claimed, Refusal)>,
    postponed: &mut Vec<Postponed<'a>>,
    gone: &mut Vec<Gone<'a>>,
) -> Vec<Decoded<'a>> {
    let mut decoded = Vec::with_capacity(claimed.len());
    for (at, entry) in claimed.iter().enumerate() {
        let balance = match BalanceRef::parse(queue.space_of(entry), &entry.member) {
            Ok(balance) => balance,
            Err(error) => {
                refused.push((entry, Refusal { reason: error.reason(), detail: error.to_string() }));
                continue;
            }
        };
        if let Some(why) = &entry.unreadable {
            refused.push((entry, Refusal { reason: why.reason(), detail: why.to_string() }));
            continue;
        }
        let Some(value) = &entry.value else {
            gone.push(Gone { member: entry, balance });
            continue;
        };
        match BalanceValue::of_member(&entry.member, value) {
            Ok(value) => decoded.push(Decoded { at, balance, value }),
            Err(error) if error.keeps_scheduled() => {
                let why =
                    if error.is_unknown_format() { Delay::UnknownFormat } else { Delay::DeletionMarker };
                postponed.push(Postponed { member: entry, why, detail: error.to_string() });
            }
            Err(error) => {
                refused.push((entry, Refusal { reason: error.reason(), detail: error.to_string() }))
            }
        }
    }
    decoded
}

/// A member as a log line shows it: escaped, and whole unless it is longer than any that the ledger writes.
pub(crate) fn shown(member: &[u8]) -> Cow<'_, str> {
    const LONGEST: usize = 2_048;
    match member.get(..LONGEST) {
        Some(head) if member.len() > LONGEST => {
            format!("{}… ({} bytes)", printable_bytes(head), member.len()).into()
        }
        _ => printable_bytes(member),
    }
}

fn missing(entry: &Decoded<'_>) -> Refusal {
    Refusal {
        reason: QuarantineReason::MissingRow,
        detail: format!(
            "no row with id {} in organization {} and ledger {}",
            entry.value.id, entry.balance.organization, entry.balance.ledger
        ),
    }
}

/// Removes members from the schedule: those that are written, and those of which nothing is left to write. The latter tell
/// nothing about the lag.
async fn settle<'a, Q: Queue>(
    queue: &Q,
    written: Vec<&'a Claimed>,
    obsolete: &[&'a Claimed],
    end: &mut FlushEnd,
    status: &TenantStatus,
) {
    let count = written.len();
    let mut written = written;
    written.extend(obsolete);
    for outcome in [Outcome::Updated, Outcome::Stale, Outcome::Deleted] {
        status.outcomes[outcome].fetch_add(end.outcomes[outcome], Relaxed);
    }
    if written.is_empty() {
        return;
    }
    let span = trace::current().store_call("settle", "redis");
    span.count("members", written.len());
    match span.around(queue.settle(&written)).await {
        Ok(report) => {
            end.settled = true;
            status.outcomes[Outcome::Kept].fetch_add(report.kept, Relaxed);
            for member in written[..count].iter().filter(|member| report.has_settled(member)) {
                if let Some(scheduled_at) = member.scheduled_at() {
                    status.lag.observe(report.now - scheduled_at);
                }
            }
            let Some(Unsettled { error, .. }) = &report.unsettled else { return };
            let left: Vec<&Claimed> =
                written.iter().copied().filter(|member| !report.has_settled(member)).collect();
            span.fail(redis_reaction(error.class).reason.as_str(), || error.to_string());
            unsettled(queue, &left, error.clone(), end, status);
        }
        Err(error) => {
            span.fail(redis_reaction(error.class).reason.as_str(), || error.to_string());
            unsettled(queue, &written, error, end, status);
        }
    }
}

/// The rows are in Postgres. The leases lapse, and the next write of these members is stale.
fn unsettled<Q: Queue>(
    queue: &Q,
    written: &[&Claimed],
    error: ScheduleError,
    end: &mut FlushEnd,
    status: &TenantStatus,
) {
    end.orphaned += written.len();
    cleanup_failed(queue, written.iter().copied(), status);
    tracing::warn!(members = written.len(), %error, "rows are written but could not be settled in redis");
    end.note(error);
}

async fn isolate<Q: Queue>(
    queue: &Q,
    refused: &[(&Claimed, Refusal)],
    end: &mut FlushEnd,
    status: &TenantStatus,
) {
    if refused.is_empty() {
        return;
    }
    let span = trace::current().store_call("quarantine", "redis");
    span.count("members", refused.len());
    match span.around(queue.quarantine(refused)).await {
        Ok(report) => {
            end.settled = true;
            end.outcomes[Outcome::Quarantined] += report.quarantined;
            status.outcomes[Outcome::Quarantined].fetch_add(report.quarantined, Relaxed);
            // Until they are counted again: no screen may show a healthy tenant meanwhile.
            status.quarantine_entries.fetch_max(report.quarantined, Relaxed);
            if report.full > 0 {
                status.quarantine_full.fetch_add(report.full, Relaxed);
                tracing::error!(
                    members = report.full,
                    quarantined = report.quarantined,
                    "quarantine is full, members are put off and stay scheduled"
                );
            }
            // Which of them are in it is not known otherwise.
            if report.quarantined == refused.len() as u64 {
                unparseable(queue, refused.iter().map(|(member, _)| *member), status);
                log_quarantined(refused);
            } else if report.kept > 0 {
                tracing::info!(
                    members = report.kept,
                    quarantined = report.quarantined,
                    "balances can't be synced, and have changed since: they are looked at again"
                );
            }
        }
        Err(error) => {
            span.fail(redis_reaction(error.class).reason.as_str(), || error.to_string());
            cleanup_failed(queue, refused.iter().map(|(member, _)| *member), status);
            status.exposure.put_off(refused.iter().map(|(member, _)| *member), None);
            tracing::warn!(members = refused.len(), %error, "members could not be quarantined, they stay scheduled");
            if error.class == ErrorClass::WrongType {
                let members: Vec<_> =
                    refused.iter().map(|(member, _)| (*member, member.value.is_some())).collect();
                put_off_unlisted(queue, &members, error, end, status).await;
            } else {
                end.orphaned += refused.len();
                end.note(error);
            }
        }
    }
}

fn log_quarantined(refused: &[(&Claimed, Refusal)]) {
    for (member, refusal) in refused {
        // The entry has the words in full.
        let quotes = refusal.reason.may_quote();
        let detail = if quotes { &without_numbers(&refusal.detail) } else { &refusal.detail };
        tracing::warn!(
            member = %shown(&member.member),
            reason = refusal.reason.as_str(),
            detail,
            "balance can't be synced, quarantined"
        );
    }
}

/// Puts members off that can't be set aside because the key of the quarantine, or of the losses, holds something else. They stay
/// scheduled and alive until an operator removes it; without this they would come back with each lease that lapses.
pub(crate) async fn put_off_unlisted<Q: Queue>(
    queue: &Q,
    members: &[(&Claimed, bool)],
    error: ScheduleError,
    end: &mut FlushEnd,
    status: &TenantStatus,
) {
    let before = end.unlisted.as_ref().map_or(0, |unlisted| unlisted.members);
    end.unlisted = Some(Box::new(Unlisted { members: before + members.len(), error }));
    put_off(queue, members, end, status).await;
}

/// Puts members off whose values nothing is wrong with and that can't be written now.
async fn postpone<Q: Queue>(
    queue: &Q,
    postponed: &[Postponed<'_>],
    end: &mut FlushEnd,
    status: &TenantStatus,
) {
    if postponed.is_empty() {
        return;
    }
    for (delay, outcome, reason) in [
        (Delay::UnknownFormat, Outcome::UnknownFormat, Some(Reason::ValueUnknownFormat)),
        (Delay::UnknownLedger, Outcome::UnknownLedger, Some(Reason::PostgresNoVisibleRows)),
        (Delay::DeletionMarker, Outcome::DeletionMarker, None),
    ] {
        let mut of_these = postponed.iter().filter(|postponed| postponed.why == delay);
        let Some(first) = of_these.next() else { continue };
        let count = 1 + of_these.count() as u64;
        if let Some(reason) = reason {
            let member = shown(&first.member.member);
            let detail = format!("{count} balances put off, the first {member}: {}", first.detail);
            end.notices.push((reason, detail));
        }
        end.outcomes[outcome] += count;
        status.outcomes[outcome].fetch_add(count, Relaxed);
    }
    // A marker has the TTL that the ledger gave it.
    let members: Vec<_> = postponed
        .iter()
        .map(|postponed| (postponed.member, !matches!(postponed.why, Delay::DeletionMarker)))
        .collect();
    put_off(queue, &members, end, status).await;
}

/// Puts members off for a moment whose rows another session has locked.
async fn wait_for_locks<Q: Queue>(
    queue: &Q,
    locked: &[(&Claimed, String)],
    end: &mut FlushEnd,
    status: &TenantStatus,
) {
    let Some((first, message)) = locked.first() else { return };
    let (count, member) = (locked.len(), shown(&first.member));
    end.notices.push((
        Reason::PostgresRowLocked,
        format!("{count} balances wait for locked rows, the first {member}: {message}"),
    ));
    let members: Vec<&Claimed> = locked.iter().map(|(member, _)| *member).collect();
    let reports = gone::put_off(queue, &members, LOCKED_DELAY, end, status).await;
    let due = reports.iter().map(|(_, report)| report.due).reduce(f64::max);
    status.exposure.put_off(members.into_iter(), due);
}

/// Puts members off under their leases; each with whether its value is kept alive.
async fn put_off<Q: Queue>(
    queue: &Q,
    members: &[(&Claimed, bool)],
    end: &mut FlushEnd,
    status: &TenantStatus,
) {
    let Some((first, _)) = members.first() else { return };
    let span = trace::current().store_call("postpone", "redis");
    span.count("members", members.len());
    // What is put off without its value being kept alive is no mutation.
    let exposed = members.iter().filter(|(_, keeps_alive)| *keeps_alive).map(|(member, _)| *member);
    match span.around(queue.postpone(members)).await {
        Ok(report) => {
            status.exposure.put_off(exposed, Some(report.due));
            tracing::debug!(
                members = report.postponed,
                kept = report.kept,
                first = %shown(&first.member),
                "balances put off, they stay scheduled"
            );
        }
        Err(error) => {
            status.exposure.put_off(exposed, None);
            span.fail(redis_reaction(error.class).reason.as_str(), || error.to_string());
            end.orphaned += members.len();
            cleanup_failed(queue, members.iter().map(|(member, _)| *member), status);
            tracing::warn!(members = members.len(), %error, "balances could not be put off, their claims lapse by themselves");
            end.note(error);
        }
    }
}

/// Gives members back; how many were still ours to give. `None` when Redis failed, which is logged: the leases lapse by
/// themselves.
pub async fn release<Q: Queue>(queue: &Q, held: &[&Claimed], status: &TenantStatus) -> Option<u64> {
    if held.is_empty() {
        return Some(0);
    }
    let span = trace::current().store_call("release", "redis");
    span.count("members", held.len());
    match span.around(queue.release(held)).await {
        Ok(report) => {
            status.outcomes[Outcome::Released].fetch_add(report.released, Relaxed);
            // The others have the score of their mutation again.
            let exposed = held.iter().copied().filter(|member| member.scheduled_at().is_none());
            status.exposure.put_off(exposed, Some(0.0));
            Some(report.released)
        }
        Err(error) => {
            status.exposure.put_off(held.iter().copied(), None);
            span.fail(redis_reaction(error.class).reason.as_str(), || error.to_string());
            cleanup_failed(queue, held.iter().copied(), status);
            tracing::warn!(members = held.len(), %error, "claims could not be released, they lapse by themselves");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_shows_a_member_whole_unless_it_is_longer_than_any_real_one() {
        assert_eq!(shown(b"tenant:t:balance:@a#default"), "tenant:t:balance:@a#default");
        assert_eq!(shown(&[b'x'; 2_048]).len(), 2_048);
        assert_eq!(shown(b"tenant:t\nb\x1b[2J"), r"tenant:t\nb\u001b[2J");
        let cut = shown(&[b'x'; 1_000_000]);
        assert!(cut.len() < 2_100 && cut.ends_with("… (1000000 bytes)"), "{}", cut.len());
    }
}
