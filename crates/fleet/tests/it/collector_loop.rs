//! The collector's loop on paused time, with Redis and Postgres in memory: triggers, modes, failures, protection, drain.

use std::{future::Future, sync::atomic::Ordering::Relaxed, time::Duration};

use crate::common::*;
use balance_sync_fleet::{
    pipeline::{CollectorOptions, SinkError, Survey},
    status::{Outcome, TenantState, TenantStatus, Trigger},
};
use balance_sync_schedule::ErrorClass as RedisClass;
use balance_sync_store::{Outcome as RowOutcome, RowResult};
use balance_sync_tenants::DirectoryError;
use tokio::{task::LocalSet, time::Instant};

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

/// A failure of Postgres that may be over at any moment, found out by a ping.
fn away() -> Mood {
    Mood::Fails(SinkError::Deadline(secs(5)))
}

fn suspended() -> SinkError {
    SinkError::Directory(DirectoryError::Suspended)
}

fn batches(status: &TenantStatus, trigger: Trigger) -> u64 {
    let at = Trigger::ALL.iter().position(|known| *known == trigger).unwrap();
    status.batches[at].load(Relaxed)
}

fn update_times(lab: &Lab) -> Vec<Duration> {
    lab.postgres.updates.borrow().iter().map(|update| update.at).collect()
}

// -- triggers and modes ------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_full_batch_is_flushed_at_once() {
    local(async {
        let lab = Lab::new();
        lab.redis.mutate(0..10, 1);
        lab.start();
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 10).await;
        assert_eq!(update_times(&lab), [Duration::ZERO]);
        assert_eq!(batches(&lab.status, Trigger::Size), 1);
        assert_eq!(lab.status.outcomes[Outcome::Updated].load(Relaxed), 10);
        assert_eq!(lab.status.lag.count(), 10);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_few_are_flushed_when_the_timeout_has_passed() {
    local(async {
        let lab = Lab::new();
        lab.redis.mutate(0..3, 1);
        lab.start();
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 3).await;
        let times = update_times(&lab);
        assert_eq!(times.len(), 1);
        assert!((ms(50)..=ms(52)).contains(&times[0]), "{times:?}");
        assert_eq!(batches(&lab.status, Trigger::Timeout), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_steady_trickle_does_not_postpone_the_timeout() {
    local(async {
        let lab = Lab::with(CollectorOptions { batch_size: 1000, ..options() });
        lab.redis.mutate([0], 1);
        lab.start();
        for n in 1..60 {
            tokio::time::sleep(ms(5)).await;
            lab.redis.mutate([n], 1);
        }
        let times = update_times(&lab);
        assert!((ms(50)..=ms(52)).contains(&times[0]), "{times:?}");
        assert!(times.len() >= 4, "one about every 50 ms in 300 ms: {times:?}");
        for pair in times.windows(2) {
            // The timeout, and at most the poll interval before the first one was claimed.
            assert!(pair[1] - pair[0] <= ms(50 + 10 + 4), "{times:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn claiming_goes_on_while_flushes_are_in_flight_as_deep_as_allowed() {
    local(async {
        let lab = Lab::new();
        lab.postgres.takes.set(ms(500));
        lab.redis.mutate(0..65, 1);
        lab.start();
        tokio::time::sleep(ms(250)).await;
        assert_eq!(lab.postgres.updates.borrow().len(), 2, "two flushes in flight");
        assert_eq!(lab.redis.claimed(), 30, "and one batch waits behind them, no more");
        assert!(
            lab.polls.get() < 100,
            "a full buffer behind full flights must not spin: {} polls",
            lab.polls.get()
        );
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 65).await;
        assert_eq!(lab.postgres.most_in_flight.get(), 2);
        assert!(lab.redis.at() < ms(2200), "four times two at once: {:?}", lab.redis.at());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn where_permits_are_waited_for_no_more_than_two_flushes_are_in_flight() {
    local(async {
        for (waits, most) in [(ms(0), 3), (ms(100), 2)] {
            let lab = Lab::with(CollectorOptions { pipeline_depth: 3, ..options() });
            lab.postgres.permit_takes.set(waits);
            lab.postgres.takes.set(ms(500));
            lab.redis.mutate(0..200, 1);
            lab.start();
            lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 200).await;
            assert_eq!(lab.postgres.most_in_flight.get(), most, "permits that take {waits:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn while_a_permit_is_waited_for_only_a_prefetch_is_held_and_the_batch_is_completed_when_it_comes() {
    local(async {
        let lab = Lab::with(CollectorOptions { batch_size: 400, ..options() });
        lab.postgres.permit_takes.set(ms(500));
        lab.redis.mutate(0..1000, 1);
        lab.start();
        tokio::time::sleep(ms(490)).await;
        assert_eq!(
            lab.redis.claimed(),
            50,
            "an eighth of a batch, and no more, while nothing can be written"
        );
        assert!(lab.polls.get() < 100, "waiting must not spin: {} polls", lab.polls.get());
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 1000).await;
        let sizes: Vec<_> = lab.postgres.updates.borrow().iter().map(|update| update.ids.len()).collect();
        assert_eq!(sizes, [400, 400, 200], "permits are used for whole batches");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_trickle_gathers_while_its_permit_is_waited_for() {
    local(async {
        let lab = Lab::with(CollectorOptions { batch_size: 400, ..options() });
        lab.postgres.permit_takes.set(ms(500));
        lab.start();
        for n in 0..20 {
            lab.redis.mutate([n], 1);
            tokio::time::sleep(ms(20)).await;
        }
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 20).await;
        assert_eq!(lab.postgres.updates.borrow().len(), 1, "one turn carries all that came meanwhile");
        assert_eq!(lab.postgres.permits.get(), 1);
        assert!(lab.redis.at() < ms(600), "counted from the first: {:?}", lab.redis.at());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_permit_that_does_not_come_is_given_back_and_counted() {
    local(async {
        let lab = Lab::new();
        lab.postgres.permit_fails.replace(Some(SinkError::Deadline(secs(1))));
        lab.redis.mutate(0..15, 1);
        lab.start();
        lab.until("it is degraded", |lab| lab.reason().is_some()).await;
        lab.until("all are given back", |lab| lab.redis.due() == 15 && lab.redis.leased() == 0).await;
        assert_eq!(lab.status.batch_failures.load(Relaxed), 1);
        assert!(lab.postgres.updates.borrow().is_empty());
        lab.postgres.permit_fails.replace(None);
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 15).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_never_comes_is_given_up_at_the_deadline_and_values_are_protected_before() {
    local(async {
        let lab = Lab::new();
        lab.postgres.permit_takes.set(secs(3600));
        lab.redis.mutate(0..5, 1);
        lab.start();
        lab.until("it is degraded", |lab| lab.reason().is_some()).await;
        assert!(lab.redis.at() <= lab.options.flush_deadline + ms(60), "{:?}", lab.redis.at());
        let swept = lab.redis.sweeps.borrow().first().copied();
        assert!(swept.is_some_and(|at| at <= lab.options.protect_after + ms(100)), "{swept:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn it_asks_only_for_what_still_fits() {
    local(async {
        let lab = Lab::new();
        lab.redis.mutate(0..4, 1);
        lab.start();
        tokio::time::sleep(ms(5)).await;
        lab.redis.mutate(4..25, 1);
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 25).await;
        let calls: Vec<_> =
            lab.redis.claims.borrow().iter().map(|call| (call.limit, call.found)).take(3).collect();
        assert_eq!(calls, [(10, 4), (6, 6), (10, 10)]);
        assert!(lab.postgres.updates.borrow().iter().all(|update| update.ids.len() <= 10));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_waits_grow_to_their_bound_and_begin_anew_with_work() {
    local(async {
        let lab = Lab::new();
        lab.start();
        tokio::time::sleep(secs(1)).await;
        let grown = [ms(10), ms(20), ms(40), ms(80), ms(160), ms(160), ms(160)];
        assert_eq!(lab.redis.idles.borrow()[..7], grown);
        assert_eq!(lab.state().state, TenantState::Idle);

        let before = lab.redis.idles.borrow().len();
        lab.redis.mutate([1], 1);
        tokio::time::sleep(secs(2)).await;
        assert_eq!(lab.redis.settled.borrow().len(), 1);
        assert_eq!(lab.redis.idles.borrow()[before..before + 7], grown);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn while_it_gathers_it_looks_again_after_the_poll_interval() {
    local(async {
        let lab = Lab::new();
        lab.redis.mutate([1], 1);
        lab.start();
        tokio::time::sleep(ms(45)).await;
        let times: Vec<_> = lab.redis.claims.borrow().iter().map(|call| call.at).collect();
        assert!((4..=5).contains(&times.len()), "{times:?}");
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= ms(10)), "{times:?}");
        assert_eq!(lab.state().state, TenantState::Syncing);
        assert!(lab.redis.idles.borrow().is_empty(), "who has something buffered is not idle");
    })
    .await;
}

// -- Postgres fails ----------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn postgres_away_means_degraded_released_no_claims_then_ping_and_recovery() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(away());
        // Between two looks at the schedule, so that none is under way when the flush fails.
        lab.postgres.takes.set(ms(25));
        lab.redis.mutate(0..15, 1);
        lab.start();
        lab.until("it is degraded", |lab| lab.reason() == Some("postgres_timeout")).await;
        lab.until("all are given back", |lab| lab.redis.due() == 15 && lab.redis.leased() == 0).await;
        assert!(lab.redis.at() < ms(30), "the buffered ones too, at once: {:?}", lab.redis.at());
        assert_eq!(lab.status.outcomes[Outcome::Released].load(Relaxed), 15);

        let (claims, updates) = (lab.redis.claims.borrow().len(), lab.postgres.updates.borrow().len());
        let polls = lab.polls.get();
        tokio::time::sleep(secs(30)).await;
        assert_eq!(lab.redis.claims.borrow().len(), claims, "nothing is claimed that can't be written");
        assert_eq!(lab.postgres.updates.borrow().len(), updates);
        let pings = lab.postgres.pings.borrow().clone();
        assert!((15..=40).contains(&pings.len()), "growing to 1–2 s each: {} pings", pings.len());
        assert!(pings.windows(2).all(|pair| pair[1] - pair[0] <= ms(2010)), "{pings:?}");
        assert!(lab.polls.get() - polls < 400, "{} polls in 30 s", lab.polls.get() - polls);
        assert_eq!(lab.status.batch_failures.load(Relaxed), 1, "a ping is no batch");

        lab.postgres.is(Mood::Well);
        let back = lab.redis.at();
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 15).await;
        assert!(lab.redis.at() - back <= ms(2100), "{:?} after Postgres was back", lab.redis.at() - back);
        lab.until("it is idle", |lab| lab.state().state == TenantState::Idle).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_under_way_when_postgres_fails_is_given_back_unwritten() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(away());
        lab.postgres.takes.set(ms(20));
        lab.redis.mutate(0..10, 1);
        lab.start();
        lab.until("a flush is in flight", |lab| lab.postgres.in_flight.get() == 1).await;
        tokio::time::sleep(ms(5)).await;
        lab.redis.delay("claim", ms(40));
        lab.redis.mutate(10..14, 1);
        lab.until("it is degraded", |lab| lab.reason().is_some()).await;
        assert_eq!(lab.redis.leased(), 4, "their claim is not answered yet");
        lab.until("all are given back", |lab| lab.redis.leased() == 0).await;
        assert!(lab.redis.at() < ms(100), "{:?}", lab.redis.at());
        assert_eq!(lab.postgres.updates.borrow().len(), 1, "no flush while it is known to fail");
        assert_eq!(lab.redis.due(), 14);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_claim_from_before_the_failure_clears_nothing() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(away());
        lab.postgres.takes.set(ms(20));
        lab.redis.mutate(0..10, 1);
        lab.start();
        lab.until("a flush is in flight", |lab| lab.postgres.in_flight.get() == 1).await;
        lab.redis.delay("claim", ms(40));
        lab.until("it is degraded", |lab| lab.reason().is_some()).await;
        let claims = lab.redis.claims.borrow().len();
        tokio::time::sleep(ms(45)).await;
        assert_eq!(lab.reason(), Some("postgres_timeout"));
        assert_eq!(lab.redis.claims.borrow().len(), claims);
        assert!(lab.redis.idles.borrow().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn where_a_ping_proves_nothing_one_batch_is_tried() {
    local(async {
        let lab = Lab::new();
        let closed = Box::pin(closed_database()).await;
        lab.postgres.is(Mood::FailsWrites(closed));
        lab.redis.mutate(0..35, 1);
        lab.start();
        lab.until("it is degraded", |lab| lab.reason() == Some("postgres_connection")).await;
        lab.until("flights have landed", |lab| lab.redis.leased() == 0).await;
        let before = lab.postgres.updates.borrow().len();
        tokio::time::sleep(secs(20)).await;
        let tries = lab.postgres.updates.borrow().len() - before;
        assert!((10..=30).contains(&tries), "{tries} tries in 20 s");
        assert!(lab.postgres.pings.borrow().is_empty());
        lab.postgres.most_in_flight.set(0);
        tokio::time::sleep(secs(5)).await;
        assert_eq!(lab.postgres.most_in_flight.get(), 1, "one at a time");
        lab.postgres.is(Mood::Well);
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 35).await;
        assert_eq!(lab.reason(), None);
    })
    .await;
}

/// An error of the store that is not made up: its class is `Closed`.
async fn closed_database() -> SinkError {
    use balance_sync_store::{ConnectionBudget, Database, DatabaseSpec};
    let spec = DatabaseSpec::new("localhost", 5432, "d", "u", String::new().into());
    let database = Database::open(spec, ConnectionBudget::new(1)).unwrap();
    database.close(Duration::ZERO).await;
    database.ping().await.unwrap_err().into()
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_a_row_to_write_ends_the_degradation_when_postgres_answered() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(away());
        lab.redis.mutate(0..10, 1);
        lab.start();
        lab.until("it is degraded", |lab| lab.reason().is_some()).await;
        for n in 0..10 {
            lab.postgres.verdicts.borrow_mut().insert(n, RowResult::Ok(RowOutcome::Missing));
        }
        lab.postgres.is(Mood::Well);
        // A claim that finds nothing would end it too: that one is not answered yet when the flush is over.
        lab.redis.delay("claim", ms(20));
        lab.until("they are isolated", |lab| lab.redis.quarantined.borrow().len() == 10).await;
        tokio::time::sleep(ms(1)).await;
        assert_eq!(lab.reason(), None, "Postgres has looked for the rows, so it works");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn poison_alone_does_not_hold_a_tenant_on_its_way_back() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(away());
        lab.redis.mutate(0..3, 1);
        lab.start();
        lab.until("it is degraded", |lab| lab.reason().is_some()).await;
        for n in 0..25 {
            let member = member(&lab.redis.space, n);
            lab.redis.schedule(member, Some(b"{}".to_vec()), 0.0);
        }
        lab.postgres.is(Mood::Well);
        lab.until("all are isolated", |lab| lab.redis.quarantined.borrow().len() == 25).await;
        lab.redis.mutate([100], 1);
        lab.until("it is written", |lab| lab.redis.settled.borrow().len() == 1).await;
        lab.until("it is idle", |lab| lab.state().state == TenantState::Idle).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_needs_somebody_is_tried_less_and_less_often() {
    local(async {
        // (failure, reason, fewest and most tries in ten minutes)
        let rows = [
            (SinkError::Deadline(secs(1)), "postgres_timeout", 290..=620, false),
            (suspended(), "tenant_suspended", 20..=55, true),
            (SinkError::Directory(DirectoryError::NotFound), "tenant_not_found", 20..=55, true),
            (
                SinkError::Directory(DirectoryError::unavailable("x")),
                "tenant_service_unavailable",
                290..=620,
                true,
            ),
        ];
        for (failure, reason, tries, skips) in rows {
            let lab = Lab::new();
            lab.postgres.is(Mood::Fails(failure));
            lab.redis.mutate(0..3, 1);
            let collector = lab.start();
            tokio::time::sleep(secs(600)).await;
            assert_eq!(lab.reason(), Some(reason));
            let asked = lab.postgres.pings.borrow().len();
            assert!(tries.contains(&asked), "{reason}: {asked} tries in ten minutes");
            assert_eq!(lab.redis.leased(), 0, "{reason}: nothing is held meanwhile");
            let failures = asked as u64 + 1;
            assert_eq!(lab.status.skips.load(Relaxed), if skips { failures } else { 0 }, "{reason}");
            assert_eq!(lab.postgres.refetches.get() as u64, if skips { failures } else { 0 }, "{reason}");
            lab.stop.cancel();
            collector.await.unwrap();
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_hangs_is_given_up_at_its_deadline() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(Mood::Silent);
        lab.redis.mutate(0..10, 1);
        lab.start();
        tokio::time::sleep(ms(4990)).await;
        assert_eq!((lab.redis.leased(), lab.reason()), (10, None));
        tokio::time::sleep(ms(20)).await;
        assert_eq!((lab.redis.leased(), lab.reason()), (0, Some("postgres_timeout")));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_being_written_counts_as_exposed_since_it_was_due_until_it_is_settled_or_released() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(Mood::Silent);
        lab.redis.mutate(0..10, 1);
        tokio::time::sleep(secs(3)).await;
        lab.start();
        tokio::time::sleep(ms(4000)).await;
        assert_eq!(lab.redis.leased(), 10);
        assert_eq!(lab.status.exposure_age().as_secs(), 7, "three before the claim, four since");
        lab.until("all are released", |lab| lab.redis.leased() == 0).await;
        lab.until("nothing is held", |lab| lab.status.exposure_age().is_zero()).await;

        lab.postgres.is(Mood::Well);
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 10).await;
        lab.until("nothing is held", |lab| lab.status.exposure_age().is_zero()).await;
    })
    .await;
}

// -- Redis fails -------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn redis_away_means_degraded_without_a_hot_loop_and_recovery_by_an_empty_claim() {
    local(async {
        let lab = Lab::new();
        let all = ["claim", "settle", "release", "quarantine", "sweep", "protect", "survey"];
        lab.redis.fail(&all, RedisClass::Unavailable);
        lab.start();
        tokio::time::sleep(secs(600)).await;
        assert_eq!(lab.reason(), Some("redis_unavailable"));
        let claims = lab.redis.claims.borrow().len();
        assert!((290..=620).contains(&claims), "{claims} claims in ten minutes");
        let chores = lab.redis.surveys.borrow().len()
            + lab.redis.sweeps.borrow().len()
            + lab.redis.recents.borrow().len();
        assert!(chores < 60, "{chores} chores in ten minutes");
        assert!(lab.polls.get() < 4000, "{} polls in ten minutes", lab.polls.get());

        lab.redis.heal();
        tokio::time::sleep(ms(2010)).await;
        assert_eq!(lab.state().state, TenantState::Idle);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn upkeep_that_fails_while_postgres_is_away_too_is_not_repeated_at_once() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(away());
        lab.redis.fail(&["sweep", "protect", "survey"], RedisClass::OutOfMemory);
        lab.redis.mutate(0..3, 1);
        lab.start();
        tokio::time::sleep(secs(60)).await;
        assert_eq!(lab.reason(), Some("postgres_timeout"));
        let chores = lab.redis.sweeps.borrow().len() + lab.redis.recents.borrow().len();
        assert!((20..150).contains(&chores), "{chores} tries in a minute");
        assert!(lab.polls.get() < 1000, "{} polls in a minute", lab.polls.get());

        lab.redis.heal();
        let healed = lab.redis.at();
        lab.until("a sweep has begun", |lab| lab.redis.sweeps.borrow().last().is_some_and(|at| *at > healed))
            .await;
        assert!(lab.redis.at() - healed <= ms(2010), "{:?}", lab.redis.at() - healed);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_fails_is_repeated_soon_but_not_at_once() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(away());
        lab.redis.fail(&["sweep"], RedisClass::Loading);
        lab.redis.mutate(0..3, 1);
        lab.start();
        tokio::time::sleep(secs(60)).await;
        let sweeps = lab.redis.sweeps.borrow().len();
        assert!((25..=70).contains(&sweeps), "every 1–2 s: {sweeps} in a minute");
        assert!(lab.polls.get() < 1000, "{} polls in a minute", lab.polls.get());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_held_when_redis_goes_away_is_written_all_the_same() {
    local(async {
        let lab = Lab::new();
        lab.redis.mutate(0..3, 1);
        lab.start();
        lab.until("they are claimed", |lab| lab.redis.leased() == 3).await;
        lab.redis.fail(&["claim"], RedisClass::ReadOnly);
        lab.until("it is degraded", |lab| lab.reason() == Some("redis_read_only")).await;
        lab.until("they are written", |lab| lab.postgres.rows.borrow().len() == 3).await;
        assert!(lab.redis.at() < ms(55), "{:?}", lab.redis.at());
        tokio::time::sleep(ms(1)).await;
        assert_eq!(lab.reason(), Some("redis_read_only"));
        assert_eq!(
            lab.redis.claims.borrow().len(),
            2,
            "a written row says nothing about Redis: the backoff goes on"
        );
        lab.redis.heal();
        lab.redis.mutate([7], 1);
        lab.until("claims go on", |lab| lab.redis.settled.borrow().len() == 4).await;
        assert_eq!(lab.reason(), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_write_while_redis_is_away_does_not_spin() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(Mood::Silent);
        lab.redis.mutate(0..10, 1);
        lab.start();
        lab.until("a flush is in flight", |lab| lab.postgres.in_flight.get() == 1).await;
        lab.redis.mutate(10..13, 1);
        lab.until("some are buffered", |lab| lab.redis.leased() == 13).await;
        // Degraded now allows one flight, and the buffer's own time is over behind it.
        lab.redis.fail(&["claim"], RedisClass::Unavailable);
        lab.until("it is degraded", |lab| lab.reason() == Some("redis_unavailable")).await;
        let polls = lab.polls.get();
        tokio::time::sleep(secs(4)).await;
        assert!(lab.polls.get() - polls < 100, "{} polls in 4 s", lab.polls.get() - polls);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_for_a_permit_while_redis_is_away_does_not_spin() {
    local(async {
        let lab = Lab::new();
        lab.postgres.permit_takes.set(secs(4));
        lab.redis.mutate(0..3, 1);
        lab.start();
        lab.until("some are buffered", |lab| lab.redis.leased() == 3).await;
        // The permit is requested when the buffer's time is over; Redis fails behind it.
        tokio::time::sleep(ms(60)).await;
        lab.redis.fail(&["claim"], RedisClass::Unavailable);
        lab.until("it is degraded", |lab| lab.reason() == Some("redis_unavailable")).await;
        let polls = lab.polls.get();
        tokio::time::sleep(ms(3500)).await;
        assert!(lab.polls.get() - polls < 100, "{} polls in 3.5 s", lab.polls.get() - polls);
        lab.until("they are written", |lab| lab.postgres.rows.borrow().len() == 3).await;
        assert_eq!(lab.reason(), Some("redis_unavailable"));
        // The wait for Redis is over by then: a claim is tried at once.
        lab.redis.heal();
        lab.until("claims go on", |lab| lab.reason().is_none()).await;
        assert!(lab.redis.at() <= secs(5), "{:?}", lab.redis.at());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_can_not_be_settled_is_a_cleanup_failure_and_no_more() {
    local(async {
        let lab = Lab::new();
        lab.redis.fail(&["settle"], RedisClass::Unavailable);
        lab.redis.mutate(0..10, 1);
        lab.start();
        tokio::time::sleep(ms(100)).await;
        assert_eq!(lab.status.cleanup_failures.load(Relaxed), 1);
        assert_eq!(lab.status.batch_failures.load(Relaxed), 0);
        assert_eq!(lab.status.outcomes[Outcome::Updated].load(Relaxed), 10, "the rows are in Postgres");
        assert_eq!(lab.redis.leased(), 10, "the claims lapse by themselves");
        assert_eq!(lab.reason(), None);
    })
    .await;
}

// -- protection and survey ---------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn values_are_protected_once_a_flush_takes_long() {
    local(async {
        let lab = Lab::new();
        lab.postgres.takes.set(ms(4900));
        lab.redis.delay("sweep", ms(5));
        lab.redis.mutate(0..10, 1);
        lab.start();
        tokio::time::sleep(ms(950)).await;
        assert!(lab.redis.sweeps.borrow().is_empty() && lab.redis.recents.borrow().is_empty());
        tokio::time::sleep(ms(100)).await;
        let (sweeps, recents) = (lab.redis.sweeps.borrow().clone(), lab.redis.recents.borrow().clone());
        assert_eq!(sweeps.len(), 1);
        assert_eq!(recents[0].1, None, "the clock is read before the sweep");
        assert!(recents[0].0 <= sweeps[0] && sweeps[0] <= ms(1010), "{recents:?} {sweeps:?}");
        lab.until("it is settled", |lab| lab.redis.settled.borrow().len() == 10).await;
        let recents = lab.redis.recents.borrow().len();
        assert!((4..=7).contains(&recents), "about one a second: {recents}");
        tokio::time::sleep(secs(20)).await;
        assert_eq!(lab.redis.recents.borrow().len(), recents, "no more when the need has passed");
        assert_eq!(lab.redis.sweeps.borrow().len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn values_are_protected_for_as_long_as_postgres_is_away() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(away());
        lab.redis.mutate(0..10, 1);
        lab.start();
        tokio::time::sleep(secs(300)).await;
        let sweeps = lab.redis.sweeps.borrow().clone();
        assert!((30..=60).contains(&sweeps.len()), "every 5–10 s, a third of the floor: {}", sweeps.len());
        assert!(sweeps.windows(2).all(|pair| pair[1] - pair[0] <= ms(10_010)), "{sweeps:?}");
        let recents = lab.redis.recents.borrow().clone();
        assert!(recents.len() >= 290, "{}", recents.len());
        assert!(recents.iter().skip(1).all(|(_, from)| from.is_some()));
        assert_eq!(lab.status.shortest_life_ms.load(Relaxed), 900_000);
        // Each look begins where the one before it was made, so that none falls in between.
        for pair in recents.windows(2) {
            let looked = pair[0].0.as_secs_f64();
            let from = pair[1].1.unwrap() - 1_795_380_490.0;
            assert!(from <= looked && from >= looked - 0.01, "{from} after {looked}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn flushes_that_are_slow_one_by_one_do_not_make_a_sweep_each() {
    local(async {
        let lab = Lab::new();
        lab.postgres.takes.set(ms(1500));
        lab.redis.mutate(0..600, 1);
        lab.start();
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 600).await;
        let (sweeps, updates) = (lab.redis.sweeps.borrow().len(), lab.postgres.updates.borrow().len());
        assert!(
            (5..=10).contains(&sweeps),
            "{sweeps} sweeps for {updates} slow flushes in {:?}",
            lab.redis.at()
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_old_backlog_is_protected_when_it_is_not_worked_off_soon_though_flushes_are_quick() {
    local(async {
        let lab = Lab::new();
        lab.postgres.takes.set(ms(500));
        for n in 0..1000 {
            let member = member(&lab.redis.space, n);
            if n % 10 < 2 {
                // Lapsed leases, at the head of each claim, tell no time.
                lab.redis.schedule_at(member, Some(value(n, 1)), "1795380430.1234565");
            } else {
                lab.redis.schedule(member, Some(value(n, 1)), 60.0);
            }
        }
        lab.start();
        tokio::time::sleep(secs(9)).await;
        assert!(lab.redis.sweeps.borrow().is_empty(), "most backlogs are gone by then");
        tokio::time::sleep(secs(2)).await;
        assert_eq!(lab.redis.sweeps.borrow().len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn protection_can_be_switched_off() {
    local(async {
        let lab = Lab::with(CollectorOptions { protect_floor: Duration::ZERO, ..options() });
        lab.postgres.is(away());
        lab.redis.mutate(0..10, 1);
        lab.start();
        tokio::time::sleep(secs(60)).await;
        assert!(lab.redis.sweeps.borrow().is_empty() && lab.redis.recents.borrow().is_empty());
        assert!(lab.polls.get() < 1000, "{} polls in a minute", lab.polls.get());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn old_schedules_are_surveyed_at_the_start_and_then_on_their_interval() {
    local(async {
        let lab = Lab::new();
        lab.redis.survey.set(Survey { adopted: 0, other_form: 7 });
        lab.start();
        tokio::time::sleep(ms(5)).await;
        assert_eq!(*lab.redis.surveys.borrow(), [Duration::ZERO]);
        assert_eq!(lab.status.other_form.load(Relaxed), 7);
        lab.redis.survey.set(Survey::default());
        tokio::time::sleep(secs(600)).await;
        let surveys = lab.redis.surveys.borrow().clone();
        assert!((10..=21).contains(&surveys.len()), "{surveys:?}");
        assert_eq!(lab.status.other_form.load(Relaxed), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn members_adopted_during_an_outage_are_swept_at_once() {
    local(async {
        let lab = Lab::with(CollectorOptions { protect_floor: secs(3000), ..options() });
        lab.postgres.is(away());
        lab.redis.mutate(0..3, 1);
        lab.start();
        tokio::time::sleep(secs(5)).await;
        assert_eq!(lab.redis.sweeps.borrow().len(), 1);
        lab.redis.survey.set(Survey { adopted: 5, other_form: 0 });
        tokio::time::sleep(secs(61)).await;
        let (surveys, sweeps) = (lab.redis.surveys.borrow().clone(), lab.redis.sweeps.borrow().clone());
        assert_eq!(sweeps[1], surveys[1], "{sweeps:?} {surveys:?}");
    })
    .await;
}

// -- stop --------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_stop_flushes_what_is_buffered() {
    local(async {
        let lab = Lab::new();
        lab.redis.mutate(0..3, 1);
        let collector = lab.start();
        lab.until("they are claimed", |lab| lab.redis.leased() == 3).await;
        let begun = Instant::now();
        lab.stop.cancel();
        let drained = collector.await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO, "nothing is waited for");
        assert_eq!((drained.flushed, drained.released, drained.orphaned), (3, 0, 0));
        assert!(lab.postgres.updates.borrow()[0].last);
        assert_eq!(batches(&lab.status, Trigger::Drain), 1);
        assert_eq!(lab.redis.settled.borrow().len(), 3);
        assert_eq!(lab.state().state, TenantState::Stopping);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_an_idle_collector_at_once() {
    local(async {
        let lab = Lab::with(CollectorOptions { idle_backoff_max: secs(3600), ..options() });
        let collector = lab.start();
        tokio::time::sleep(secs(7200)).await;
        let (begun, claims) = (Instant::now(), lab.redis.claims.borrow().len());
        lab.stop.cancel();
        collector.await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(lab.redis.claims.borrow().len(), claims, "it stops claiming first");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_heard_in_the_middle_of_endless_work() {
    local(async {
        let lab = Lab::new();
        lab.redis.mutate(0..2000, 1);
        lab.postgres.takes.set(ms(1));
        let collector = lab.start();
        tokio::time::sleep(ms(20)).await;
        let claims = lab.redis.claims.borrow().len();
        lab.stop.cancel();
        collector.await.unwrap();
        assert!(lab.redis.claims.borrow().len() <= claims + 1);
        assert_eq!(lab.redis.leased(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_final_flush_without_an_answer_is_released_and_reported() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(Mood::Silent);
        lab.redis.mutate(0..13, 1);
        let collector = lab.start();
        lab.until("all are claimed", |lab| lab.redis.leased() == 13).await;
        let begun = Instant::now();
        lab.stop.cancel();
        let drained = collector.await.unwrap();
        assert!((secs(2)..secs(2) + ms(10)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert_eq!((drained.flushed, drained.released, drained.orphaned), (0, 13, 0));
        assert_eq!((lab.redis.due(), lab.redis.leased()), (13, 0), "others can go on at once");
        assert_eq!(lab.postgres.in_flight.get(), 0, "and no write is left behind");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn claims_that_can_not_be_given_back_are_reported_as_orphaned() {
    local(async {
        for fault in [Fault::Error(RedisClass::Unavailable), Fault::Silence] {
            let lab = Lab::new();
            lab.postgres.is(Mood::Silent);
            lab.redis.mutate(0..13, 1);
            let collector = lab.start();
            lab.until("all are claimed", |lab| lab.redis.leased() == 13).await;
            lab.redis.faults.borrow_mut().insert("release", fault);
            let begun = Instant::now();
            lab.stop.cancel();
            let drained = collector.await.unwrap();
            assert!(begun.elapsed() <= secs(4) + ms(10), "{fault:?}: {:?}", begun.elapsed());
            assert_eq!((drained.flushed, drained.released, drained.orphaned), (0, 0, 13), "{fault:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_final_flush_that_fails_is_released() {
    local(async {
        for (release_fails, expected) in [(false, (0, 3, 0)), (true, (0, 0, 3))] {
            let lab = Lab::new();
            lab.redis.mutate(0..3, 1);
            let collector = lab.start();
            lab.until("all are claimed", |lab| lab.redis.leased() == 3).await;
            lab.postgres.is(away());
            if release_fails {
                lab.redis.fail(&["release"], RedisClass::Unavailable);
            }
            lab.stop.cancel();
            let drained = collector.await.unwrap();
            assert_eq!((drained.flushed, drained.released, drained.orphaned), expected);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn members_with_a_newer_mutation_are_not_orphaned() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(Mood::Silent);
        lab.redis.mutate(0..10, 1);
        let collector = lab.start();
        lab.until("all are claimed", |lab| lab.redis.leased() == 10).await;
        lab.stop.cancel();
        tokio::time::sleep(ms(10)).await;
        lab.redis.mutate(0..4, 2);
        let drained = collector.await.unwrap();
        assert_eq!((drained.released, drained.orphaned), (6, 0));
        assert_eq!(lab.redis.due(), 10);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_under_way_at_the_stop_is_flushed() {
    local(async {
        let lab = Lab::new();
        lab.redis.delay("claim", ms(500));
        lab.redis.mutate(0..3, 1);
        let collector = lab.start();
        lab.until("the claim is under way", |lab| lab.redis.leased() == 3).await;
        lab.stop.cancel();
        let drained = collector.await.unwrap();
        assert_eq!((drained.flushed, drained.released, drained.orphaned), (3, 0, 0));
        assert_eq!((lab.redis.settled.borrow().len(), lab.redis.leased()), (3, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn flushes_do_not_wait_for_a_claim_that_is_not_answered() {
    local(async {
        let lab = Lab::new();
        lab.postgres.takes.set(ms(100));
        lab.redis.mutate(0..13, 1);
        let collector = lab.start();
        lab.until("all are claimed", |lab| lab.redis.claimed() == 13).await;
        lab.redis.faults.borrow_mut().insert("claim", Fault::Silence);
        lab.until("a claim is under way", |lab| lab.redis.claims.borrow().len() >= 3).await;
        let begun = Instant::now();
        lab.stop.cancel();
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 13).await;
        assert!(begun.elapsed() <= ms(110), "{:?}", begun.elapsed());
        let drained = collector.await.unwrap();
        assert_eq!(drained.orphaned + drained.released, 0);
        assert!(drained.flushed >= 3, "{drained:?}");
        assert!(begun.elapsed() <= secs(2) + ms(10), "{:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_under_way_at_the_stop_is_given_back_when_postgres_is_away() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(away());
        lab.redis.mutate(0..3, 1);
        let collector = lab.start();
        lab.until("it is degraded", |lab| lab.reason().is_some()).await;
        lab.postgres.is(Mood::FailsWrites(SinkError::Deadline(secs(5))));
        lab.redis.delay("claim", ms(500));
        lab.until("it tries its way back", |lab| lab.redis.leased() == 3).await;
        let updates = lab.postgres.updates.borrow().len();
        lab.stop.cancel();
        let drained = collector.await.unwrap();
        assert_eq!((drained.flushed, drained.released, drained.orphaned), (0, 3, 0));
        assert_eq!(
            lab.postgres.updates.borrow().len(),
            updates,
            "no write is begun against a database that is away"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_suspended_tenant_gets_a_last_flush_as_far_as_its_database_lets_it() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(Mood::FailsUnlessLast(suspended()));
        lab.redis.mutate(0..3, 1);
        let collector = lab.start();
        lab.until("it is degraded", |lab| lab.reason() == Some("tenant_suspended")).await;
        lab.postgres.is(Mood::FailsWrites(suspended()));
        lab.redis.delay("claim", ms(500));
        lab.until("it tries its way back", |lab| lab.redis.leased() == 3).await;
        lab.postgres.is(Mood::FailsUnlessLast(suspended()));
        lab.stop.cancel();
        let drained = collector.await.unwrap();
        assert_eq!((drained.flushed, drained.released), (3, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_held_when_redis_is_away_is_written_at_the_stop() {
    local(async {
        let lab = Lab::new();
        lab.redis.mutate(0..3, 1);
        let collector = lab.start();
        lab.until("they are claimed", |lab| lab.redis.leased() == 3).await;
        lab.redis.fail(&["claim", "settle", "release"], RedisClass::Unavailable);
        lab.until("it is degraded", |lab| lab.reason().is_some()).await;
        lab.stop.cancel();
        let drained = collector.await.unwrap();
        assert_eq!(lab.postgres.rows.borrow().len(), 3);
        assert_eq!((drained.flushed, drained.released, drained.orphaned), (3, 0, 3));
    })
    .await;
}

// -- leave -------------------------------------------------------------------------------------------------------

fn leave(lab: &Lab) {
    lab.status.leaving.store(true, Relaxed);
    lab.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_removed_tenant_s_schedule_is_emptied_before_the_end() {
    local(async {
        let lab = Lab::with(CollectorOptions { idle_backoff_max: secs(3600), ..options() });
        let collector = lab.start();
        tokio::time::sleep(secs(7200)).await;
        lab.redis.mutate(0..73, 1);
        lab.postgres.takes.set(ms(100));
        let begun = Instant::now();
        leave(&lab);
        tokio::time::sleep(ms(50)).await;
        assert_eq!(lab.state().state, TenantState::Stopping);
        collector.await.unwrap();
        assert!(begun.elapsed() < secs(1), "{:?}", begun.elapsed());
        assert_eq!((lab.redis.settled.borrow().len(), lab.redis.leased()), (73, 0));
        assert!(lab.postgres.updates.borrow().iter().all(|update| update.last));
        assert_eq!(lab.state().state, TenantState::Stopping);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_removed_tenant_whose_directory_refuses_it_already_is_emptied_all_the_same() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(Mood::FailsUnlessLast(suspended()));
        lab.redis.mutate(0..25, 1);
        let collector = lab.start();
        tokio::time::sleep(secs(120)).await;
        assert_eq!(lab.reason(), Some("tenant_suspended"));
        leave(&lab);
        collector.await.unwrap();
        assert_eq!((lab.redis.settled.borrow().len(), lab.redis.leased()), (25, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_removed_tenant_is_emptied_though_redis_is_away_for_a_moment() {
    local(async {
        let lab = Lab::new();
        let collector = lab.start();
        tokio::time::sleep(secs(1)).await;
        lab.redis.fail(&["claim"], RedisClass::Unavailable);
        lab.redis.mutate(0..25, 1);
        leave(&lab);
        tokio::time::sleep(secs(3)).await;
        assert!(!collector.is_finished());
        lab.redis.heal();
        collector.await.unwrap();
        assert_eq!((lab.redis.settled.borrow().len(), lab.redis.leased()), (25, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_removed_tenant_without_a_working_database_is_given_back_and_ended() {
    local(async {
        let lab = Lab::new();
        lab.postgres.is(away());
        lab.redis.mutate(0..25, 1);
        let collector = lab.start();
        lab.until("it is degraded", |lab| lab.reason().is_some()).await;
        let begun = Instant::now();
        leave(&lab);
        collector.await.unwrap();
        assert!(begun.elapsed() < ms(300), "{:?}", begun.elapsed());
        assert_eq!((lab.redis.due(), lab.redis.leased()), (25, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn emptying_ends_at_its_deadline_and_at_once_when_the_worker_drains() {
    local(async {
        for drains in [false, true] {
            let lab = Lab::new();
            lab.redis.mutate([1], 1);
            let collector = lab.start();
            // Somebody else holds a member, and never ends.
            lab.until("it is claimed", |lab| lab.redis.leased() == 1).await;
            lab.redis.fail(&["settle"], RedisClass::Unavailable);
            tokio::time::sleep(secs(1)).await;
            let begun = Instant::now();
            leave(&lab);
            if drains {
                tokio::time::sleep(secs(3)).await;
                lab.status.leaving.store(false, Relaxed);
            }
            collector.await.unwrap();
            let expected = if drains { secs(3)..=ms(3300) } else { secs(20)..=ms(20_010) };
            assert!(expected.contains(&begun.elapsed()), "{:?}", begun.elapsed());
        }
    })
    .await;
}
