//! A collector that is stopped: flushed, released or reported.

use std::time::Duration;

use balance_sync_fleet::{
    pipeline::{CollectorOptions, SinkError},
    status::{TenantState, Trigger},
};
use balance_sync_schedule::ErrorClass as RedisClass;
use tokio::time::Instant;

use super::{away, batches, local, suspended};
use crate::common::*;

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
async fn a_stop_is_noticed_in_the_middle_of_endless_work() {
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
