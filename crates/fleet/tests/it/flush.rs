//! One flush: what becomes of each member of a batch.

mod missing_values;

use std::{cell::RefCell, rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use crate::common::*;
use balance_sync_domain::KeySpace;
use balance_sync_engine::trail::TrailWatch;
use balance_sync_fleet::{
    pipeline::{Batch, FlushEnd, Queue, Sink, SinkError, flush},
    status::{FleetStatus, LedgerKey, LedgerTotals, Outcome, TenantStatus, Trigger},
};
use balance_sync_schedule::{Claimed, ErrorClass, Unreadable};
use balance_sync_store::{
    ErrorClass as StoreClass, Fate, LastKnown, Outcome as RowOutcome, RowResult, StoreError,
};
use balance_sync_tenants::KeyForm;

struct Bench {
    queue: FakeQueue,
    sink: FakeSink,
    fleet: FleetStatus,
    status: TenantStatus,
    trail: RefCell<TrailWatch<Vec<u8>>>,
}

impl Bench {
    fn new() -> Self {
        let tenant = tenant("acme");
        Self {
            queue: FakeQueue(Rc::new(Redis::new(tenant.key_space(KeyForm::AsListed)))),
            sink: FakeSink(Rc::new(Postgres::new())),
            fleet: FleetStatus::default(),
            status: TenantStatus::new(tenant),
            trail: RefCell::new(TrailWatch::new(secs(60))),
        }
    }

    fn space(&self) -> &KeySpace {
        &self.queue.0.space
    }

    async fn claim(&self) -> Vec<Claimed> {
        self.queue.claim(100).await.unwrap().entries
    }

    async fn flush(&self, claimed: &[Claimed]) -> FlushEnd {
        let permit = self.sink.permit(false, Duration::from_secs(5)).await.unwrap();
        let trigger = Trigger::Size;
        let batch = Batch { claimed, trigger, waited: secs(0), deadline: secs(5), trail: &self.trail };
        flush(&self.queue, &self.sink, permit, batch, &self.fleet, &self.status).await
    }

    fn settled(&self) -> Vec<Vec<u8>> {
        let mut settled = self.queue.0.settled.borrow().clone();
        settled.sort();
        settled
    }

    fn quarantined(&self) -> Vec<(Vec<u8>, &'static str)> {
        let mut quarantined = self.queue.0.quarantined.borrow().clone();
        quarantined.sort();
        quarantined
    }
}

/// The n-th balance, whose value is gone since its mutation so many seconds ago.
fn gone(bench: &Bench, n: u128, age: f64, fate: Option<Fate>) -> Vec<u8> {
    let member = member(bench.space(), n);
    bench.queue.0.schedule(member.clone(), None, age);
    bench.sink.0.fates.borrow_mut().extend(fate.map(|fate| (format!("@account{n}"), fate)));
    member
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cant_be_read_is_set_aside_with_what_its_key_holds_and_is_not_called_expired() {
    let bench = Bench::new();
    let (redis, space) = (&bench.queue.0, bench.space().clone());
    redis.mutate(0..2, 1);
    redis.schedule(member(&space, 7), None, 0.0);
    let mut claimed = bench.claim().await;
    claimed.last_mut().unwrap().unreadable = Some(Unreadable::Refused("its key is of type list".to_owned()));

    let end = bench.flush(&claimed).await;
    assert_eq!((end.outcomes[Outcome::Updated], end.outcomes[Outcome::Quarantined], end.orphaned), (2, 1, 0));
    assert_eq!(bench.quarantined(), [(member(&space, 7), "value_unreadable")]);
    assert_eq!(
        redis.details.borrow()[..],
        ["the value can't be read: its key is of type list; allowed: a string"]
    );
    assert_eq!(bench.status.outcomes[Outcome::Expired].load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn poison_of_every_kind_is_isolated_and_the_others_are_written_in_the_same_flush() {
    let bench = Bench::new();
    let (redis, space) = (&bench.queue.0, bench.space().clone());
    redis.mutate(0..4, 1);
    let foreign = member(&tenant("other").key_space(KeyForm::AsListed), 50);
    let poison = [
        (foreign, None, "member_foreign_tenant"),
        (b"\xff\xfe".to_vec(), None, "member_not_utf8"),
        (
            format!("{}x", space.balance_prefix()).into_bytes(),
            Some(value(51, 1)),
            "member_without_organization",
        ),
        (member(&space, 52), Some(b"not json".to_vec()), "value_not_a_json_object"),
        (member(&space, 53), Some(b"{}".to_vec()), "value_field_missing"),
        (member(&space, 55), Some(value(55, 1)), "missing_row"),
        (member(&space, 56), Some(value(56, 1)), "refused_by_postgres"),
    ];
    for (member, value, _) in &poison {
        redis.schedule(member.clone(), value.clone(), 0.0);
    }
    bench.sink.0.verdicts.borrow_mut().insert(55, RowResult::Ok(RowOutcome::Missing));
    let refused =
        RowResult::Refused { sqlstate: "22003".to_owned(), message: "numeric field overflow".to_owned() };
    bench.sink.0.verdicts.borrow_mut().insert(56, refused);
    bench.status.quarantine_entries.store(0, Relaxed);

    let end = bench.flush(&bench.claim().await).await;
    let shown = bench.status.quarantine_entries.load(Relaxed);
    assert!(shown > 0, "shown at once, not when entries are counted again");
    assert_eq!(bench.settled(), (0..4).map(|n| member(&space, n)).collect::<Vec<_>>());
    let mut expected: Vec<(Vec<u8>, &str)> =
        poison.into_iter().map(|(member, _, reason)| (member, reason)).collect();
    expected.sort();
    assert_eq!(bench.quarantined(), expected);
    assert_eq!(
        (
            end.claimed,
            end.outcomes[Outcome::Updated],
            end.outcomes[Outcome::Quarantined],
            end.outcomes[Outcome::Released],
            end.orphaned
        ),
        (11, 4, 7, 0, 0)
    );
    assert!(end.failure.is_none());
    assert_eq!(redis.leased() + redis.due(), 0);

    let sent = bench.sink.0.updates.borrow()[0].ids.clone();
    assert_eq!(sent, [0, 1, 2, 3, 55, 56], "nothing else reaches Postgres, and no other tenant's");
    assert_eq!(bench.status.outcomes[Outcome::Quarantined].load(Relaxed), 7);
    assert_eq!(bench.status.batch_failures.load(Relaxed), 0, "poison is no failure of the batch");
}

#[tokio::test(start_paused = true)]
async fn a_newer_row_is_a_fork_unless_redis_is_as_new_by_now() {
    let bench = Bench::new();
    let (redis, space) = (&bench.queue.0, bench.space().clone());
    redis.mutate(0..6, 3);
    for n in 0..5 {
        bench.sink.0.verdicts.borrow_mut().insert(n, RowResult::Differs);
        bench.sink.0.rows.borrow_mut().insert(n, 4);
    }
    let claimed = bench.claim().await;
    // Another worker has written what came meanwhile: also where that is newer still, or known under the other form alone.
    let now = |n: u128, values: Vec<Vec<u8>>| redis.current.borrow_mut().insert(member(&space, n), values);
    now(0, vec![value(0, 5)]);
    now(1, vec![value(1, 6)]);
    now(2, vec![value(2, 3), value(2, 5)]);
    // The value is gone, as that of a retried entry may be.
    now(3, vec![]);
    bench.status.losses.store(0, Relaxed);

    let end = bench.flush(&claimed).await;
    assert_eq!(bench.status.losses.load(Relaxed), 1, "shown at once, not when losses are counted again");
    assert_eq!(
        (
            end.outcomes[Outcome::Updated],
            end.outcomes[Outcome::Stale],
            end.outcomes[Outcome::Forked],
            end.outcomes[Outcome::Quarantined],
            end.orphaned
        ),
        (1, 4, 1, 1, 0)
    );
    assert_eq!(bench.settled(), [0, 1, 2, 3, 5].map(|n| member(&space, n)));
    let lost = redis.lost.borrow();
    let (forked, loss) = &lost[0];
    assert_eq!((lost.len(), forked), (1, &member(&space, 4)));
    assert!(loss.forked && loss.confirmed, "{loss:?}");
    assert_eq!((loss.version, loss.row_version), (Some(3), Some(4)));
    assert!(loss.row_available.is_some() && loss.available == loss.row_available);
    assert_eq!(
        (
            bench.status.outcomes[Outcome::Forked].load(Relaxed),
            bench.status.outcomes[Outcome::Expired].load(Relaxed)
        ),
        (1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn while_redis_cant_tell_a_fork_from_a_late_write_the_member_is_given_back() {
    let bench = Bench::new();
    let redis = &bench.queue.0;
    redis.mutate(0..2, 3);
    bench.sink.0.verdicts.borrow_mut().insert(0, RowResult::Differs);
    bench.sink.0.rows.borrow_mut().insert(0, 4);
    let claimed = bench.claim().await;
    redis.faults.borrow_mut().insert("current", Fault::Error(ErrorClass::Unavailable));
    let end = bench.flush(&claimed).await;
    assert_eq!(
        (
            end.outcomes[Outcome::Updated],
            end.outcomes[Outcome::Stale],
            end.outcomes[Outcome::Forked],
            end.outcomes[Outcome::Released]
        ),
        (1, 0, 0, 1)
    );
    assert_eq!((redis.due(), redis.leased(), redis.lost.borrow().len()), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn another_tenants_member_never_reaches_the_sink_even_with_a_value() {
    let bench = Bench::new();
    let other = tenant("other").key_space(KeyForm::AsListed);
    bench.queue.0.schedule(member(&other, 1), Some(value(1, 1)), 0.0);
    bench.queue.0.schedule(member(&KeySpace::single(), 2), Some(value(2, 1)), 0.0);
    bench.flush(&bench.claim().await).await;
    assert!(bench.sink.0.updates.borrow().is_empty());
    let reasons: Vec<_> = bench.quarantined().into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, ["member_without_tenant_prefix", "member_foreign_tenant"]);
}

#[tokio::test(start_paused = true)]
async fn of_two_claims_of_one_balance_the_newest_is_written_once_and_both_are_settled() {
    let bench = Bench::new();
    bench.queue.0.mutate([1], 5);
    let mut claimed = bench.claim().await;
    // A mutation came, and was claimed into the same batch: the first lease is void by now.
    bench.queue.0.mutate([1], 6);
    claimed.extend(bench.claim().await);
    assert_eq!(claimed.len(), 2);
    // In either order.
    for claimed in [claimed.clone(), claimed.into_iter().rev().collect()] {
        let end = bench.flush(&claimed).await;
        assert_eq!(end.outcomes[Outcome::Updated] + end.outcomes[Outcome::Stale], 2);
    }
    let updates = bench.sink.0.updates.borrow();
    assert!(updates.iter().all(|update| update.ids == [1]), "{updates:?}");
    assert_eq!(bench.sink.0.rows.borrow()[&1], 6);
    assert_eq!(bench.settled(), [member(bench.space(), 1)]);
    assert_eq!(bench.status.outcomes[Outcome::Updated].load(Relaxed), 1);
    assert_eq!(
        bench.status.outcomes[Outcome::Kept].load(Relaxed),
        3,
        "the void lease, and both the second time"
    );
}

#[tokio::test(start_paused = true)]
async fn spellings_of_one_balance_share_the_fate_of_the_newest() {
    for (verdict, settled, quarantined) in [
        (None, 3, 0),
        (Some(RowResult::Ok(RowOutcome::Missing)), 0, 3),
        (Some(RowResult::Ok(RowOutcome::Stale)), 3, 0),
        (Some(RowResult::Ok(RowOutcome::Deleted)), 3, 0),
    ] {
        let bench = Bench::new();
        let prefix = bench.space().balance_prefix().to_owned();
        for (key, version) in [("#default", 3), ("#", 7), ("", 5)] {
            let member = format!("{prefix}{ORGANIZATION}:{LEDGER}:@account1{key}").into_bytes();
            bench.queue.0.schedule(member, Some(value(1, version)), 0.0);
        }
        if let Some(verdict) = verdict {
            bench.sink.0.verdicts.borrow_mut().insert(1, verdict);
        }
        bench.flush(&bench.claim().await).await;
        assert_eq!(bench.sink.0.updates.borrow()[0].ids, [1]);
        assert_eq!((bench.settled().len(), bench.quarantined().len()), (settled, quarantined));
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_balance_is_settled_without_quarantine_and_without_a_lag() {
    let bench = Bench::new();
    bench.queue.0.mutate(0..3, 1);
    bench.sink.0.verdicts.borrow_mut().insert(1, RowResult::Ok(RowOutcome::Deleted));
    let end = bench.flush(&bench.claim().await).await;
    assert_eq!(
        (
            end.outcomes[Outcome::Updated],
            end.outcomes[Outcome::Stale],
            end.outcomes[Outcome::Deleted],
            end.outcomes[Outcome::Quarantined]
        ),
        (2, 0, 1, 0)
    );
    assert_eq!((bench.settled().len(), bench.queue.0.leased()), (3, 0));
    assert_eq!(bench.status.outcomes[Outcome::Deleted].load(Relaxed), 1);
    assert_eq!(bench.status.lag.count(), 2, "how late a closed balance comes is of no interest");
}

#[tokio::test(start_paused = true)]
async fn a_mutation_during_the_flush_stays_scheduled() {
    let bench = Bench::new();
    bench.queue.0.mutate([1, 2], 1);
    let claimed = bench.claim().await;
    bench.sink.0.takes.set(ms(100));
    let during = async {
        tokio::time::sleep(ms(50)).await;
        bench.queue.0.mutate([1], 2);
    };
    tokio::join!(bench.flush(&claimed), during);
    assert_eq!(bench.settled(), [member(bench.space(), 2)]);
    assert_eq!(bench.queue.0.due(), 1);
    assert_eq!(bench.status.outcomes[Outcome::Kept].load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn when_postgres_fails_the_good_are_released_and_the_poison_is_isolated() {
    let bench = Bench::new();
    bench.queue.0.mutate(0..3, 1);
    bench.queue.0.schedule(member(bench.space(), 9), Some(b"{}".to_vec()), 0.0);
    bench.sink.0.is(Mood::Fails(SinkError::Deadline(secs(1))));
    let end = bench.flush(&bench.claim().await).await;
    assert!(end.failure.is_some() && !end.answered);
    assert_eq!(
        (end.outcomes[Outcome::Released], end.outcomes[Outcome::Quarantined], end.orphaned),
        (3, 1, 0)
    );
    assert_eq!(bench.queue.0.due(), 3);
    assert_eq!(bench.status.batch_failures.load(Relaxed), 1);
    assert!(bench.settled().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_redis_refuses_after_the_write_is_counted_and_left_to_lapse() {
    let bench = Bench::new();
    bench.queue.0.mutate(0..3, 1);
    bench.queue.0.schedule(member(bench.space(), 9), Some(b"{}".to_vec()), 0.0);
    bench.queue.0.fail(&["settle", "quarantine"], ErrorClass::OutOfMemory);
    let end = bench.flush(&bench.claim().await).await;
    assert_eq!((end.outcomes[Outcome::Updated], end.outcomes[Outcome::Quarantined], end.orphaned), (3, 0, 4));
    assert!(end.failure.is_none() && end.answered);
    assert_eq!(bench.status.cleanup_failures.load(Relaxed), 2);
    assert_eq!(bench.queue.0.leased(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_a_first_call_has_settled_counts_although_a_later_one_fails() {
    let bench = Bench::new();
    bench.queue.0.mutate(0..4, 1);
    let mut claimed = bench.claim().await;
    // One of the first claim has changed meanwhile.
    bench.queue.0.mutate(0..1, 2);
    bench.queue.0.mutate(10..13, 1);
    claimed.extend(
        bench
            .queue
            .claim(100)
            .await
            .unwrap()
            .entries
            .into_iter()
            .filter(|claimed| (10..13).any(|n| claimed.member == member(bench.space(), n))),
    );
    assert_eq!(claimed.len(), 7);
    bench.queue.0.fail(&["settle later"], ErrorClass::Unavailable);
    let end = bench.flush(&claimed).await;
    assert_eq!((end.outcomes[Outcome::Updated], end.orphaned, end.settled), (7, 3, true));
    assert!(end.failure.is_none());
    assert_eq!(bench.status.outcomes[Outcome::Kept].load(Relaxed), 1, "the first call's");
    assert_eq!(bench.status.lag.count(), 4, "the lag of the others is not known yet");
    assert_eq!((bench.settled().len(), bench.status.cleanup_failures.load(Relaxed)), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_look_that_gets_no_connection_among_many_that_wait_is_repeated_and_no_failure() {
    let bench = Bench::new();
    let redis = &bench.queue.0;
    redis.mutate(0..2, 3);
    bench.sink.0.verdicts.borrow_mut().insert(0, RowResult::Differs);
    bench.sink.0.rows.borrow_mut().insert(0, 4);
    gone(&bench, 10, 900.0, Some(Fate::Deleted));
    let waited = StoreError::of_class(StoreClass::ConnectionBudget, "injected");
    bench.sink.0.looks_fail.replace(Some(waited.into()));
    let end = bench.flush(&bench.claim().await).await;
    assert!(end.failure.is_none(), "{:?}", end.failure);
    assert_eq!((end.outcomes[Outcome::Updated], end.outcomes[Outcome::Released], end.orphaned), (1, 2, 0));
    assert_eq!((redis.due(), bench.status.batch_failures.load(Relaxed)), (2, 0));

    bench.sink.0.looks_fail.take();
    let end = bench.flush(&bench.claim().await).await;
    assert_eq!((end.outcomes[Outcome::Deleted], redis.leased()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_nothing_but_poison_does_not_ask_postgres() {
    let bench = Bench::new();
    bench.queue.0.schedule(member(bench.space(), 9), Some(b"{}".to_vec()), 0.0);
    bench.sink.0.is(Mood::Panics);
    let end = bench.flush(&bench.claim().await).await;
    assert_eq!((end.outcomes[Outcome::Quarantined], end.answered), (1, false));
}

#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_is_given_up_and_released() {
    let bench = Bench::new();
    bench.queue.0.mutate(0..3, 1);
    bench.sink.0.is(Mood::Silent);
    let end = bench.flush(&bench.claim().await).await;
    assert!(matches!(end.failure, Some(SinkError::Deadline(after)) if after == secs(5)), "{:?}", end.failure);
    assert_eq!((end.outcomes[Outcome::Released], bench.queue.0.due()), (3, 3));
    assert_eq!(bench.queue.0.at(), secs(5));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_format_and_a_deletion_marker_are_put_off_and_the_others_are_written() {
    let bench = Bench::new();
    let (redis, space) = (&bench.queue.0, bench.space().clone());
    redis.mutate(0..3, 1);
    redis.schedule(member(&space, 7), Some(br#"{"ID":"x","SchemaVersion":3}"#.to_vec()), 0.0);
    let marked = [member(&space, 8), b":deleted".to_vec()].concat();
    redis.schedule(marked.clone(), Some(b"0190b5f2-token".to_vec()), 0.0);
    for write_fails in [false, true] {
        if write_fails {
            bench.sink.0.is(Mood::FailsWrites(SinkError::Deadline(secs(1))));
            redis.mutate(0..3, 2);
            redis.schedule(member(&space, 7), Some(br#"{"ID":"x","SchemaVersion":3}"#.to_vec()), 0.0);
            redis.schedule(marked.clone(), Some(b"0190b5f2-token".to_vec()), 0.0);
            redis.postponed.borrow_mut().clear();
            redis.kept_alive.borrow_mut().clear();
        }
        let end = bench.flush(&bench.claim().await).await;
        assert_eq!(*redis.postponed.borrow(), [member(&space, 7), marked.clone()]);
        assert_eq!(
            *redis.kept_alive.borrow(),
            [member(&space, 7)],
            "a marker has the TTL that the ledger gave it"
        );
        assert_eq!(
            (end.outcomes[Outcome::UnknownFormat], end.outcomes[Outcome::Quarantined], end.orphaned),
            (1, 0, 0)
        );
        assert!(end.notices[0].1.contains("SchemaVersion"));
        assert_eq!(
            if write_fails { end.outcomes[Outcome::Released] } else { end.outcomes[Outcome::Updated] },
            3
        );
    }
    assert!(bench.quarantined().is_empty());
    assert_eq!(bench.status.outcomes[Outcome::UnknownFormat].load(Relaxed), 2);
    assert_eq!(bench.status.outcomes[Outcome::DeletionMarker].load(Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_balance_of_an_unknown_ledger_is_put_off_and_reported_and_not_taken_for_missing() {
    let bench = Bench::new();
    let (redis, space) = (&bench.queue.0, bench.space().clone());
    redis.mutate(0..3, 1);
    let unknown_member = vec![member(&space, 2)];
    let unknown = RowResult::UnknownLedger { message: "other organizations only".to_owned() };
    bench.sink.0.verdicts.borrow_mut().insert(2, unknown);
    let end = bench.flush(&bench.claim().await).await;
    assert_eq!((&*redis.postponed.borrow(), &*redis.kept_alive.borrow()), (&unknown_member, &unknown_member));
    assert_eq!(
        (
            end.outcomes[Outcome::UnknownLedger],
            end.outcomes[Outcome::Updated],
            end.outcomes[Outcome::Quarantined],
            end.orphaned
        ),
        (1, 2, 0, 0)
    );
    let (reason, detail) = &end.notices[0];
    assert_eq!(reason.as_str(), "postgres_no_visible_rows");
    assert!(detail.contains("1 balances put off") && detail.contains("other organizations only"), "{detail}");
    assert_eq!(bench.status.outcomes[Outcome::UnknownLedger].load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_balance_whose_row_is_locked_is_put_off_for_a_moment_and_the_others_are_written() {
    let bench = Bench::new();
    let (redis, space) = (&bench.queue.0, bench.space().clone());
    redis.mutate(0..3, 1);
    let locked = RowResult::Locked { message: "locked by process 7".to_owned() };
    bench.sink.0.verdicts.borrow_mut().insert(2, locked);
    let end = bench.flush(&bench.claim().await).await;
    assert_eq!(redis.put_off.borrow()[..], [(member(&space, 2), secs(2))]);
    assert_eq!(
        (
            end.outcomes[Outcome::Updated],
            end.outcomes[Outcome::Released],
            end.outcomes[Outcome::Quarantined],
            end.orphaned
        ),
        (2, 1, 0, 0)
    );
    assert!(end.failure.is_none());
    let (reason, detail) = &end.notices[0];
    assert_eq!(reason.as_str(), "postgres_row_locked");
    assert!(detail.contains("1 balances wait") && detail.contains("locked by process 7"), "{detail}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_set_aside_is_put_off_and_the_others_are_written() {
    let bench = Bench::new();
    let (redis, space) = (&bench.queue.0, bench.space().clone());
    redis.mutate(0..3, 1);
    redis.schedule(member(&space, 9), Some(b"{}".to_vec()), 0.0);
    gone(&bench, 10, 900.0, None);
    redis.fail(&["quarantine", "lose"], ErrorClass::WrongType);
    let end = bench.flush(&bench.claim().await).await;
    assert_eq!((end.outcomes[Outcome::Updated], end.outcomes[Outcome::Quarantined], end.orphaned), (3, 0, 0));
    assert!(end.failure.is_none() && end.refused.is_none());
    let unlisted = end.unlisted.unwrap();
    assert_eq!((unlisted.members, unlisted.error.class), (2, ErrorClass::WrongType));
    assert_eq!(*redis.postponed.borrow(), [member(&space, 9), member(&space, 10)]);
    assert_eq!(bench.status.cleanup_failures.load(Relaxed), 2);

    redis.fail(&["postpone"], ErrorClass::Permission);
    redis.schedule(member(&space, 9), Some(b"{}".to_vec()), 0.0);
    let end = bench.flush(&bench.claim().await).await;
    assert_eq!((end.orphaned, redis.leased()), (1, 1), "its claim lapses by itself");
    assert_eq!(end.refused.map(|error| error.class), Some(ErrorClass::Permission));
}

#[tokio::test(start_paused = true)]
async fn each_ledger_of_a_batch_is_counted_as_the_ledgers_own_worker_counts() {
    let bench = Bench::new();
    let (redis, space) = (&bench.queue.0, bench.space().clone());
    let second = "22222222-0000-4000-8000-000000000002";
    let of_second = |n: u128| {
        let member = String::from_utf8(member(&space, n)).unwrap();
        member.replacen(LEDGER, second, 1).into_bytes()
    };
    let key = |ledger: &str| {
        let member = format!("{}{ORGANIZATION}:{ledger}:@a#default", space.balance_prefix());
        LedgerKey::of_member(&space, member.as_bytes())
    };
    let (first, second) = (key(LEDGER), key(second));
    let counted = |key: LedgerKey| {
        let counts = bench.status.ledgers.read(usize::MAX);
        let found = counts.own.iter().find(|(own, _)| *own == key);
        found.map_or_else(LedgerTotals::default, |(_, totals)| *totals)
    };

    // Two rows of one ledger, of which one is as new, and one as new of the other.
    redis.mutate(0..2, 1);
    redis.schedule(of_second(9), Some(value(9, 1)), 0.0);
    for stale in [1, 9] {
        bench.sink.0.verdicts.borrow_mut().insert(stale, RowResult::Ok(RowOutcome::Stale));
    }
    // Neither names a ledger that is known, and the value of the last is gone with its row.
    redis.schedule(b"\xff\xfe".to_vec(), None, 0.0);
    redis.schedule(of_second(11), None, 0.0);
    bench.sink.0.fates.borrow_mut().insert("@account11".to_owned(), Fate::Deleted);
    bench.flush(&bench.claim().await).await;
    let synced = |key| (counted(key).synced, counted(key).expired, counted(key).last_success_ms > 0);
    assert_eq!((synced(first), synced(second)), ((1, 0, true), (0, 1, true)));
    let unknown = LedgerTotals { unparseable: 1, ..LedgerTotals::default() };
    assert_eq!(counted(LedgerKey::Unknown), unknown);

    // A write that fails counts once for each of them, and so does a call of Redis after it.
    redis.mutate(0..2, 2);
    redis.schedule(of_second(9), Some(value(9, 2)), 0.0);
    bench.sink.0.is(Mood::FailsWrites(SinkError::Deadline(secs(1))));
    redis.fail(&["release"], ErrorClass::Unavailable);
    bench.flush(&bench.claim().await).await;
    for key in [first, second] {
        assert_eq!((counted(key).batch_failures, counted(key).cleanup_failures), (1, 1), "{key:?}");
    }
    assert_eq!(bench.status.batch_failures.load(Relaxed), 1);
    assert_eq!(bench.status.cleanup_failures.load(Relaxed), 1);
    assert_eq!(counted(LedgerKey::Unknown), unknown);
}
