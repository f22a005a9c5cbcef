//! The judgement on a balance, a pure function of the facts: what became of it, and in one sentence what happens next.

use super::{BalanceReport, QuarantineView, RowState, Scheduled, Verdict};
use crate::rows::StateView;
use balance_sync_domain::QuarantineReason;
use balance_sync_fleet::status::{Pace, ReportedReason, TenantState, pace_of};

/// The verdict, and what happens next. `lease` = how long a claim holds, in seconds.
#[must_use]
pub fn verdict(report: &BalanceReport, now: f64, objective: f64, lease: f64) -> (Verdict, String) {
    let (verdict, mut next) = of_its_row(report, now, objective, lease);
    if let Some(other) = report.postgres.other_balance.as_ref().filter(|_| report.redis.present) {
        next.truncate(next.trim_end_matches('.').len());
        next.push_str(&format!("; the row is that of {other:?}, whose ID the value in Redis carries."));
    }
    (verdict, next)
}

fn of_its_row(report: &BalanceReport, now: f64, objective: f64, lease: f64) -> (Verdict, String) {
    let scheduled = report.schedule.state != Scheduled::NotScheduled;
    if !scheduled {
        return unscheduled(report);
    }
    let age = report.schedule.score.map_or(0.0, |score| now - score);
    let late = report.schedule.state == Scheduled::Due && age > objective;
    let verdict = if late { Verdict::Behind } else { Verdict::OnItsWay };
    (verdict, waiting(report, now, lease))
}

/// What happens with a scheduled member.
fn waiting(report: &BalanceReport, now: f64, lease: f64) -> String {
    let tenant = &report.tenant_state;
    let until = report.schedule.leased_until.as_deref().or(report.schedule.due_at.as_deref()).unwrap_or("");
    if let Some(paused) = &tenant.paused {
        return format!(
            "It waits until the tenant is resumed: {} paused it at {}; its value is kept alive.",
            paused.by, paused.at
        );
    }
    if tenant.state == StateView::NotInRollout {
        return "It waits for the ledger's own worker: this fleet doesn't serve its tenant, as that is not in the rollout.".to_owned();
    }
    if tenant.state == StateView::Unserved {
        return "It waits: no live worker serves this tenant.".to_owned();
    }
    if report.redis.keeps_scheduled {
        let why = report.redis.unreadable.as_deref().unwrap_or_default();
        let again = if report.schedule.state == Scheduled::Leased {
            format!("comes due again at {until}")
        } else {
            "is looked at next".to_owned()
        };
        return format!("It stays scheduled, its value is kept, and it {again}: {why}.");
    }
    let reason = tenant.reason.as_ref();
    if tenant.state == TenantState::Degraded.into() && !tenant.partial {
        let pace = match reason.map_or(Pace::Long, pace_of) {
            Pace::Long => {
                "tried again with long delays until an operator mends it, or at once by the action flush"
            }
            Pace::Short => "tried again every few seconds",
        };
        return format!(
            "It is written when the tenant can be written again: {} since {}; {pace}.",
            reason.map_or("unknown", ReportedReason::as_str),
            tenant.since.as_deref().unwrap_or("unknown")
        );
    }
    if let Some(lock) = report.lock.as_ref().filter(|lock| lock.foreign) {
        let left =
            lock.ttl_seconds.map_or_else(|| "without end".to_owned(), |left| format!("{left:.0} s more"));
        return format!(
            "The ledger's own worker holds its claim lock ({left}); in mode lock it is claimed after that."
        );
    }
    match report.schedule.state {
        Scheduled::Leased
            if !report.redis.present && report.schedule.score.is_some_and(|score| score - now > lease * 1.5) =>
        {
            format!(
                "It was put off until {until}: its value is gone from Redis, and its operation may still be on its way to the ledger's trail."
            )
        }
        Scheduled::Leased if report.schedule.score.is_some_and(|score| score - now > lease * 1.5) => format!(
            "It was put off, because the tenant's quarantine is full or Redis refused to give its value, and comes due again at {until}."
        ),
        Scheduled::Leased | Scheduled::Due
            if let Some(wait) = tenant.connection_wait_seconds
                && report.redis.present
                && report.redis.unreadable.is_none() =>
        {
            format!("It is written with its tenant's turn for a connection to Postgres: a worker has waited {wait:.1} s for it, in a queue that moves.")
        }
        Scheduled::Leased => format!("A worker holds it and writes it now; if that worker dies it comes due again at {until}."),
        Scheduled::Future => format!("Its time comes at {until}; no worker claims it before."),
        _ if report.postgres.state == RowState::Deleted && report.redis.unreadable.is_none() => {
            "It is claimed next and taken off the schedule: its row is deleted.".to_owned()
        }
        _ if !report.redis.present => {
            "It is claimed next: its value is gone from Redis, so it is settled where the row is as new as the ledger's trail, and listed as lost otherwise.".to_owned()
        }
        _ if report.redis.unreadable.is_some() => {
            "It is claimed next, and goes to quarantine: its value can't be read.".to_owned()
        }
        _ if report.postgres.state == RowState::Missing => {
            "It is claimed next, and goes to quarantine: there is no row for it.".to_owned()
        }
        _ if newer(report) == Some(std::cmp::Ordering::Less) => {
            "It is claimed next, and listed as forked: Postgres has a newer version than Redis.".to_owned()
        }
        _ if newer(report) == Some(std::cmp::Ordering::Equal) => {
            "It is claimed next and taken off the schedule if the amounts are equal, or listed as forked: Postgres has this version.".to_owned()
        }
        _ => "It is due, and claimed and written next.".to_owned(),
    }
}

/// What an operator does about an entry. A retry removes a loss only if nothing proves it and nothing was written later.
fn remedy(entry: &QuarantineView) -> String {
    if entry.reason == QuarantineReason::Forked {
        return "Redis and the row have different histories: compare both with the ledger's operations, mend the wrong one, then drop the entry. A retry changes nothing, and a newer mutation goes on from what Redis has.".to_owned();
    }
    match (entry.loss_confirmed, &entry.later_at) {
        (None, _) => {
            "mend the cause and retry it, or drop it. A newer mutation schedules it again.".to_owned()
        }
        (Some(_), Some(later)) => format!(
            "a mutation of {later} was computed without what is lost, so the balance may have forked: compare it with the ledger's operations, mend the row, then drop the entry. A retry changes nothing."
        ),
        (Some(true), None) => {
            "the ledger's trail has a mutation that the row lacks: mend the row from the ledger's operations, then drop the entry. A retry changes nothing, and a newer mutation is computed without what is lost.".to_owned()
        }
        (Some(false), None) => {
            "what was lost is not known: give the missing grant that the detail names and retry it, or compare the row with the ledger's operations and drop the entry.".to_owned()
        }
    }
}

fn unscheduled(report: &BalanceReport) -> (Verdict, String) {
    if let Some(entry) = &report.quarantine {
        return (
            Verdict::Quarantined,
            format!(
                "Nothing happens by itself: it is in quarantine ({}) since {}; {}",
                entry.reason,
                entry.first_at,
                remedy(entry)
            ),
        );
    }
    match (report.redis.present, report.postgres.state, newer(report)) {
        (_, RowState::Unreachable, _) => (
            Verdict::Unknown,
            "Nothing is scheduled for it; whether Postgres has it can't be determined, because its database can't be asked.".to_owned(),
        ),
        (true, RowState::Present, Some(std::cmp::Ordering::Equal)) => (
            Verdict::InSync,
            "Nothing is to be done: Postgres has the version that Redis has; the next mutation schedules it.".to_owned(),
        ),
        (true, RowState::Present, Some(std::cmp::Ordering::Greater)) => (
            Verdict::UnscheduledAndBehind,
            "No worker will write it: Redis is newer and nothing is scheduled; run `balance-sync verify --repair`, or wait for the next mutation.".to_owned(),
        ),
        (true, RowState::Present, Some(std::cmp::Ordering::Less)) => (
            Verdict::Ahead,
            "Postgres is newer than what Redis has: at its next mutation the balance is listed as forked. Compare both with the ledger's operations (`balance-sync audit`).".to_owned(),
        ),
        (false, RowState::Present, _) => (
            Verdict::InSync,
            "Nothing is to be done: Redis holds no value of it any more and nothing is scheduled; the row is what counts.".to_owned(),
        ),
        (_, RowState::Deleted, _) => (
            Verdict::InSync,
            "Nothing is to be done: the ledger has closed this balance, its row is deleted.".to_owned(),
        ),
        (true, RowState::Missing, _) => (
            Verdict::UnscheduledAndBehind,
            "No worker will write it: nothing is scheduled, and there is no row for it; the ledger creates rows.".to_owned(),
        ),
        (false, RowState::Missing, _) => (
            Verdict::Unknown,
            "Nothing is known of it: neither Redis nor Postgres has it.".to_owned(),
        ),
        (true, RowState::Present, None) => (
            Verdict::Unknown,
            "Nothing is scheduled for it, and its value in Redis can't be read; the next mutation replaces it.".to_owned(),
        ),
    }
}

/// Redis's version against Postgres's.
fn newer(report: &BalanceReport) -> Option<std::cmp::Ordering> {
    Some(report.redis.version?.cmp(&report.postgres.version?))
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};
    use balance_sync_fleet::status::Reason;

    const NOW: f64 = 1_795_380_490.0;
    const LEASE: f64 = 30.0;

    /// A balance that is due, on a tenant that is well, newer in Redis than in Postgres.
    fn due() -> BalanceReport {
        BalanceReport {
            tenant: "acme".to_owned(),
            member: "m".to_owned(),
            organization: None,
            ledger: None,
            alias: None,
            key: None,
            schedule: schedule_view(Some(NOW - 1.0), NOW),
            redis: RedisView {
                present: true,
                version: Some(2),
                ttl_seconds: Some(3000.0),
                unreadable: None,
                keeps_scheduled: false,
                available: Some("1".to_owned()),
                on_hold: Some("1".to_owned()),
                overdraft_used: Some("0".to_owned()),
            },
            postgres: PostgresView {
                state: RowState::Present,
                version: Some(1),
                updated_at: None,
                detail: None,
                other_balance: None,
                available: Some("0".to_owned()),
                on_hold: Some("0".to_owned()),
                overdraft_used: Some("0".to_owned()),
            },
            lock: None,
            tenant_state: TenantStateView {
                state: TenantState::Idle.into(),
                reason: None,
                detail: None,
                partial: false,
                since: Some(at(NOW)),
                paused: None,
                connection_wait_seconds: None,
            },
            quarantine: None,
            last_error: None,
            verdict: Verdict::Unknown,
            next: String::new(),
        }
    }

    #[track_caller]
    fn tells(change: impl FnOnce(&mut BalanceReport), expected: Verdict, words: &str) {
        let mut report = due();
        change(&mut report);
        let (found, next) = verdict(&report, NOW, 5.0, LEASE);
        assert!(found == expected && next.contains(words), "{found:?}: {next}");
        assert!(next.ends_with('.') && next.matches(". ").count() <= 1, "a sentence: {next}");
    }

    fn unscheduled(report: &mut BalanceReport) {
        report.schedule = schedule_view(None, NOW);
    }

    fn entry() -> QuarantineView {
        QuarantineView {
            reason: QuarantineReason::MissingRow.into(),
            detail: Some("no row".to_owned()),
            first_at: at(NOW),
            last_at: at(NOW),
            count: 1,
            truncated: false,
            has_value: true,
            loss_confirmed: None,
            later_at: None,
        }
    }

    #[test]
    fn a_scheduled_balance_is_on_its_way_and_says_what_it_waits_for() {
        use Verdict::{Behind, OnItsWay};
        let degraded = |reason: Reason| {
            move |report: &mut BalanceReport| {
                report.tenant_state.state = TenantState::Degraded.into();
                report.tenant_state.reason = Some(reason.into());
                report.tenant_state.partial = reason == Reason::ValueUnknownFormat;
            }
        };
        let score =
            |score: f64| move |report: &mut BalanceReport| report.schedule = schedule_view(Some(score), NOW);
        tells(|_| {}, OnItsWay, "claimed and written next");
        tells(score(NOW - 6.0), Behind, "claimed and written next");
        tells(score(NOW + 20.000_000_5), OnItsWay, "A worker holds it");
        tells(score(NOW + 600.000_000_5), OnItsWay, "quarantine is full");
        let unknown = |report: &mut BalanceReport| {
            degraded(Reason::ValueUnknownFormat)(report);
            report.redis.unreadable = Some("field SchemaVersion is 3".to_owned());
            report.redis.keeps_scheduled = true;
        };
        tells(
            unknown,
            OnItsWay,
            "stays scheduled, its value is kept, and it is looked at next: field SchemaVersion",
        );
        tells(
            |report| {
                unknown(report);
                score(NOW + 20.000_000_5)(report);
            },
            OnItsWay,
            "comes due again at",
        );
        tells(degraded(Reason::ValueUnknownFormat), OnItsWay, "claimed and written next");
        tells(score(NOW + 600.0), OnItsWay, "no worker claims it before");
        tells(
            |report| report.tenant_state.state = StateView::Unserved,
            OnItsWay,
            "no live worker serves this tenant",
        );
        tells(degraded(Reason::PostgresCredentials), OnItsWay, "until an operator mends it");
        tells(degraded(Reason::PostgresConnection), OnItsWay, "every few seconds");
        tells(
            |report| {
                let paused = PausedBy::new("ann".to_owned(), NOW, None);
                report.tenant_state.paused = Some(paused);
                report.tenant_state.state = TenantState::Degraded.into();
            },
            OnItsWay,
            "until the tenant is resumed: ann",
        );
        tells(
            |report| report.lock = Some(LockView { foreign: true, ttl_seconds: Some(60.0) }),
            OnItsWay,
            "ledger's own worker holds its claim lock (60 s more)",
        );
        tells(|report| report.redis.present = false, OnItsWay, "its value is gone");
        tells(
            |report| {
                report.redis.present = false;
                report.schedule = schedule_view(Some(NOW + 60.000_000_5), NOW);
            },
            OnItsWay,
            "It was put off",
        );
        tells(|report| report.redis.unreadable = Some("x".to_owned()), OnItsWay, "can't be read");
        tells(|report| report.postgres.state = RowState::Missing, OnItsWay, "no row for it");
        tells(
            |report| report.postgres.state = RowState::Deleted,
            OnItsWay,
            "off the schedule: its row is deleted",
        );
        tells(|report| report.postgres.version = Some(2), OnItsWay, "Postgres has this version");
        tells(|report| report.postgres.version = Some(3), OnItsWay, "listed as forked");
        // A newer mutation has scheduled it: the entry is history.
        tells(|report| report.quarantine = Some(entry()), OnItsWay, "claimed and written next");
    }

    #[test]
    fn an_unscheduled_balance_is_in_sync_or_says_what_is_to_be_done() {
        let with = |change: fn(&mut BalanceReport)| {
            move |report: &mut BalanceReport| {
                unscheduled(report);
                change(report);
            }
        };
        tells(unscheduled, Verdict::UnscheduledAndBehind, "verify --repair");
        tells(with(|r| r.postgres.version = Some(2)), Verdict::InSync, "the version that Redis has");
        tells(with(|r| r.postgres.version = Some(3)), Verdict::Ahead, "Postgres is newer");
        tells(with(|r| r.redis.present = false), Verdict::InSync, "the row is what counts");
        tells(with(|r| r.quarantine = Some(entry())), Verdict::Quarantined, "in quarantine (missing_row)");
        let lost = |confirmed, later: Option<f64>| {
            move |r: &mut BalanceReport| {
                unscheduled(r);
                let reason = QuarantineReason::ValueLost.into();
                let later_at = later.map(at);
                r.quarantine =
                    Some(QuarantineView { reason, loss_confirmed: Some(confirmed), later_at, ..entry() });
            }
        };
        tells(lost(true, None), Verdict::Quarantined, "then drop the entry. A retry changes nothing");
        tells(lost(true, Some(NOW)), Verdict::Quarantined, "may have forked");
        tells(lost(false, Some(NOW)), Verdict::Quarantined, "A retry changes nothing");
        let forked = |r: &mut BalanceReport| {
            lost(true, None)(r);
            r.quarantine
                .as_mut()
                .into_iter()
                .for_each(|entry| entry.reason = QuarantineReason::Forked.into());
        };
        tells(forked, Verdict::Quarantined, "have different histories");
        tells(lost(false, None), Verdict::Quarantined, "the detail names and retry it");
        tells(with(|r| r.postgres.state = RowState::Deleted), Verdict::InSync, "its row is deleted");
        tells(with(|r| r.postgres.state = RowState::Unreachable), Verdict::Unknown, "can't be asked");
        tells(
            with(|r| {
                r.redis.present = false;
                r.postgres.state = RowState::Missing;
            }),
            Verdict::Unknown,
            "neither Redis nor Postgres",
        );
        tells(with(|r| r.redis.version = None), Verdict::Unknown, "can't be read");
        let other = |r: &mut BalanceReport| r.postgres.other_balance = Some("@b#default".to_owned());
        tells(with(other), Verdict::UnscheduledAndBehind, "; the row is that of \"@b#default\"");
        tells(other, Verdict::OnItsWay, "written next; the row is that of");
    }

    #[test]
    fn hidden_amounts_stand_nowhere() {
        let mut report = due();
        report.redis.available = Some("77123".to_owned());
        report.redis.unreadable = Some("field Available is 77123x".to_owned());
        report.postgres.on_hold = Some("77123".to_owned());
        let detail = Some("field Available is 77123x".to_owned());
        report.quarantine =
            Some(QuarantineView { reason: QuarantineReason::ValueInvalidAmount.into(), detail, ..entry() });
        let mut why = Why { matches: vec![report], amounts_hidden: false, unasked: None, meant: None };
        let shown = serde_json::to_string(&why).unwrap_or_default();
        assert_eq!(shown.matches("77123").count(), 4);
        why.hide_amounts();
        let shown = serde_json::to_string(&why).unwrap_or_default();
        assert!(!shown.contains("77123") && shown.contains("\"amounts_hidden\":true"), "{shown}");
    }
}
