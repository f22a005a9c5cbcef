//! What a collector does while Redis fails.

use std::sync::atomic::Ordering::Relaxed;

use balance_sync_fleet::status::{Outcome, TenantState};
use balance_sync_schedule::ErrorClass as RedisClass;

use super::{away, local};
use crate::common::*;

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
