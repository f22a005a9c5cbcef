//! A removed tenant: its schedule is emptied before its collector ends.

use std::sync::atomic::Ordering::Relaxed;

use balance_sync_fleet::{pipeline::CollectorOptions, status::TenantState};
use balance_sync_schedule::ErrorClass as RedisClass;
use tokio::time::Instant;

use super::{away, local, suspended};
use crate::common::*;

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
            // Another worker holds a member, and never ends.
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
