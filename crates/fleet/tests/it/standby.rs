//! A collector for whose tenant another worker comes first, on paused time: it claims only when no other worker does.

use std::{future::Future, sync::atomic::Ordering::Relaxed, time::Duration};

use crate::common::*;
use balance_sync_fleet::{pipeline::SinkError, status::TenantState};
use tokio::{task::LocalSet, time::Instant};

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

fn rank(lab: &Lab, standby: bool) {
    lab.status.standby.store(standby, Relaxed);
    lab.status.requests.recheck();
}

/// One that stands by.
async fn second() -> Lab {
    let lab = Lab::new();
    rank(&lab, true);
    lab.start();
    lab.until("it stands by", |lab| lab.state().state == TenantState::Standby).await;
    lab
}

fn settled(lab: &Lab) -> usize {
    lab.redis.settled.borrow().len()
}

#[tokio::test(start_paused = true)]
async fn a_second_owner_claims_nothing_and_does_not_spin() {
    local(async {
        let lab = second().await;
        lab.redis.mutate(0..30, 1);
        let polls = lab.polls.get();
        tokio::time::sleep(secs(3600)).await;
        assert_eq!((lab.redis.claims.borrow().len(), lab.redis.due()), (0, 30));
        assert_eq!(lab.redis.standbys.get(), 1, "one wait");
        assert!(lab.postgres.permits.get() == 0 && lab.redis.sweeps.borrow().is_empty());
        assert!(lab.polls.get() - polls < 300, "{} polls in an hour", lab.polls.get() - polls);
        // Legacy schedules and the other key form are looked after as ever.
        let surveys = lab.redis.surveys.borrow().len();
        assert!((40..=120).contains(&surveys), "{surveys} surveys, one a minute");
        lab.stop.cancel();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn it_joins_in_for_a_minute_when_no_worker_claims() {
    local(async {
        let lab = second().await;
        lab.redis.mutate(0..25, 1);
        lab.redis.unattended.notify_one();
        let begun = Instant::now();
        lab.until("all are settled", |lab| settled(lab) == 25).await;
        assert!(begun.elapsed() < ms(100), "{:?}", begun.elapsed());
        assert_eq!(lab.fleet.joins.load(Relaxed), 1);
        tokio::time::sleep(secs(50)).await;
        assert_eq!(lab.state().state, TenantState::Idle);
        lab.redis.mutate(25..30, 1);
        lab.until("these as well", |lab| settled(lab) == 30).await;
        lab.until("it stands by again", |lab| lab.state().state == TenantState::Standby).await;
        let took = begun.elapsed();
        assert!(secs(60) <= took && took <= secs(61), "{took:?}");
        lab.redis.mutate(30..35, 1);
        tokio::time::sleep(secs(3600)).await;
        assert_eq!((settled(&lab), lab.redis.due()), (30, 5));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_has_joined_in_a_busy_tenant_stands_by_again_as_well() {
    local(async {
        let lab = second().await;
        lab.redis.unattended.notify_one();
        let begun = Instant::now();
        for n in 0..20_000 {
            lab.redis.mutate([n], 1);
            tokio::time::sleep(ms(5)).await;
            if n > 100 && lab.state().state == TenantState::Standby {
                break;
            }
        }
        let took = begun.elapsed();
        assert!(secs(60) <= took && took <= secs(61), "{took:?}");
        assert_eq!(lab.redis.leased(), 0, "what it held was written first");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_becomes_the_first_claims_at_once_and_who_is_no_longer_writes_what_it_holds() {
    local(async {
        let lab = second().await;
        lab.redis.mutate(0..10, 1);
        tokio::time::sleep(secs(60)).await;
        let before = lab.redis.at();
        rank(&lab, false);
        lab.until("all are settled", |lab| settled(lab) == 10).await;
        assert!(lab.redis.at() - before <= ms(5), "{:?}", lab.redis.at() - before);
        lab.until("idle", |lab| lab.state().state == TenantState::Idle).await;

        // Whole batches are on their way, some wait behind them, and there are more.
        lab.postgres.takes.set(ms(300));
        lab.redis.mutate(100..160, 1);
        lab.until("two flushes are in flight", |lab| lab.postgres.in_flight.get() == 2).await;
        rank(&lab, true);
        tokio::time::sleep(ms(20)).await;
        let held = lab.redis.leased();
        assert!(held >= 20);
        lab.until("it stands by", |lab| lab.state().state == TenantState::Standby).await;
        assert_eq!((settled(&lab), lab.redis.leased()), (10 + held, 0), "all that it held, and no more");
        assert_eq!(lab.redis.due(), 60 - held);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_comes_after_it_has_stood_back_is_used_for_what_is_there() {
    local(async {
        let lab = Lab::with(balance_sync_fleet::pipeline::CollectorOptions { batch_size: 400, ..options() });
        lab.postgres.permit_takes.set(ms(500));
        lab.redis.mutate(0..1000, 1);
        lab.start();
        lab.until("a prefetch is claimed", |lab| lab.redis.leased() == 50).await;
        rank(&lab, true);
        lab.until("it stands by", |lab| lab.state().state == TenantState::Standby).await;
        assert_eq!((settled(&lab), lab.redis.leased(), lab.redis.due()), (50, 0, 950));
        assert!(lab.redis.at() <= ms(520), "nothing is waited for: {:?}", lab.redis.at());

        // The claim that brings them may be under way as well.
        let lab = Lab::with(balance_sync_fleet::pipeline::CollectorOptions { batch_size: 400, ..options() });
        lab.redis.delay("claim", ms(100));
        lab.redis.mutate(0..1000, 1);
        lab.start();
        lab.until("a claim is under way", |lab| lab.redis.leased() == 50).await;
        rank(&lab, true);
        lab.until("it stands by", |lab| lab.state().state == TenantState::Standby).await;
        assert_eq!((settled(&lab), lab.redis.leased(), lab.redis.due()), (50, 0, 950));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_goes_on_trying_and_keeps_values_alive_until_it_is_well() {
    local(async {
        let lab = second().await;
        lab.postgres.is(Mood::Fails(SinkError::Deadline(secs(5))));
        lab.redis.mutate(0..5, 1);
        lab.redis.unattended.notify_one();
        lab.until("degraded", |lab| lab.reason().is_some()).await;
        tokio::time::sleep(secs(300)).await;
        assert_eq!(lab.state().state, TenantState::Degraded);
        assert!(!lab.redis.sweeps.borrow().is_empty() && lab.postgres.pings.borrow().len() > 100);
        lab.postgres.is(Mood::Well);
        lab.until("all are settled", |lab| settled(lab) == 5).await;
        lab.until("it stands by again", |lab| lab.state().state == TenantState::Standby).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn operators_are_obeyed_by_who_stands_by_as_well() {
    local(async {
        let lab = second().await;
        lab.redis.mutate(0..5, 1);
        lab.status.requests.flush();
        let before = lab.redis.at();
        lab.until("all are settled", |lab| settled(lab) == 5).await;
        assert!(lab.redis.at() - before < ms(100), "{:?}", lab.redis.at() - before);
        tokio::time::sleep(secs(120)).await;
        assert_eq!(lab.state().state, TenantState::Standby);
        assert_eq!(lab.fleet.joins.load(Relaxed), 0, "no worker left them alone");

        lab.status.paused.store(true, Relaxed);
        lab.status.requests.recheck();
        lab.until("paused", |lab| lab.state().state == TenantState::Paused).await;
        lab.redis.mutate(5..10, 1);
        tokio::time::sleep(secs(60)).await;
        assert!(!lab.redis.sweeps.borrow().is_empty(), "what waits is kept alive");
        lab.status.paused.store(false, Relaxed);
        lab.status.requests.recheck();
        lab.until("it stands by again", |lab| lab.state().state == TenantState::Standby).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((settled(&lab), lab.redis.due()), (5, 5), "the first owner's to claim");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_a_removed_tenant_both_owners_empty_the_schedule() {
    local(async {
        let lab = Lab::new();
        rank(&lab, true);
        let ended = lab.start();
        lab.until("it stands by", |lab| lab.state().state == TenantState::Standby).await;
        lab.redis.mutate(0..25, 1);
        lab.status.leaving.store(true, Relaxed);
        lab.stop.cancel();
        ended.await.unwrap();
        assert_eq!((settled(&lab), lab.redis.due(), lab.redis.leased()), (25, 0, 0));

        // One that has joined in doesn't stand back in the middle of it.
        let lab = Lab::new();
        rank(&lab, true);
        let ended = lab.start();
        lab.until("it stands by", |lab| lab.state().state == TenantState::Standby).await;
        lab.redis.unattended.notify_one();
        lab.until("it has joined in", |lab| lab.state().state == TenantState::Idle).await;
        tokio::time::sleep(secs(59)).await;
        lab.postgres.takes.set(secs(2));
        lab.redis.mutate(0..60, 1);
        lab.status.leaving.store(true, Relaxed);
        lab.stop.cancel();
        ended.await.unwrap();
        assert_eq!((settled(&lab), lab.redis.due(), lab.redis.leased()), (60, 0, 0));
    })
    .await;
}
