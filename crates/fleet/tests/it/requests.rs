//! What operators want of a collector, on paused time: it pauses, what waits is kept alive, it goes on, it writes at once.

use std::{collections::HashSet, future::Future, sync::atomic::Ordering::Relaxed, time::Duration};

use crate::common::*;
use balance_sync_fleet::{
    pipeline::{CollectorOptions, SinkError},
    status::TenantState,
};
use balance_sync_tenants::{DirectoryError, KeyForm};
use tokio::task::LocalSet;

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

fn pause(lab: &Lab, paused: bool) {
    lab.status.paused.store(paused, Relaxed);
    lab.status.requests.recheck();
}

#[tokio::test(start_paused = true)]
async fn a_paused_collector_finishes_what_it_has_and_claims_nothing() {
    local(async {
        let lab = Lab::new();
        lab.redis.mutate(0..10, 1);
        lab.postgres.takes.set(ms(300));
        lab.start();
        lab.until("a flush is in flight", |lab| lab.postgres.in_flight.get() == 1).await;
        pause(&lab, true);
        lab.redis.mutate(100..103, 1);
        lab.until("paused", |lab| lab.state().state == TenantState::Paused).await;
        assert_eq!(lab.redis.settled.borrow().len(), 10, "what was in flight was written and settled first");
        assert_eq!(lab.redis.leased(), 0);

        let claims = lab.redis.claims.borrow().len();
        tokio::time::sleep(secs(3600)).await;
        assert_eq!(lab.redis.claims.borrow().len(), claims, "nothing was claimed for an hour");
        assert_eq!((lab.redis.due(), lab.state().state), (3, TenantState::Paused));
        // As in an outage: all values in sweeps, and those that came meanwhile by themselves.
        let sweeps = lab.redis.sweeps.borrow().len();
        assert!(
            (300..=720).contains(&sweeps),
            "{sweeps} sweeps in an hour, one per third of the floor of 30 s"
        );
        assert!(
            lab.redis.recents.borrow().len() > 3000,
            "what is scheduled meanwhile is looked at each second"
        );

        pause(&lab, false);
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 13).await;
        lab.until("idle again", |lab| lab.state().state == TenantState::Idle).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_idle_or_degraded_hears_of_it_at_once() {
    local(async {
        let lab = Lab::new();
        lab.start();
        lab.until("idle", |lab| lab.state().state == TenantState::Idle).await;
        tokio::time::sleep(secs(60)).await;
        let before = lab.redis.at();
        pause(&lab, true);
        lab.until("paused", |lab| lab.state().state == TenantState::Paused).await;
        pause(&lab, false);
        lab.until("resumed", |lab| lab.state().state == TenantState::Idle).await;
        assert!(lab.redis.at() - before < ms(50), "{:?}", lab.redis.at() - before);

        // Degraded, and then paused: nothing is pinged; resumed, it finds out again.
        lab.postgres.is(Mood::Fails(SinkError::Directory(DirectoryError::Suspended)));
        lab.redis.mutate(0..3, 1);
        lab.until("degraded", |lab| lab.state().state == TenantState::Degraded).await;
        pause(&lab, true);
        lab.until("paused", |lab| lab.state().state == TenantState::Paused).await;
        let asked = lab.postgres.updates.borrow().len();
        tokio::time::sleep(secs(600)).await;
        assert_eq!((lab.postgres.updates.borrow().len(), lab.redis.due()), (asked, 3));
        lab.postgres.is(Mood::Well);
        pause(&lab, false);
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 3).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_order_to_flush_ends_every_wait() {
    local(async {
        // Out of a long backoff.
        let lab = Lab::new();
        lab.postgres.is(Mood::Fails(SinkError::Directory(DirectoryError::Suspended)));
        lab.redis.mutate(0..3, 1);
        lab.start();
        lab.until("degraded", |lab| lab.state().state == TenantState::Degraded).await;
        tokio::time::sleep(secs(300)).await;
        lab.postgres.is(Mood::Well);
        let before = lab.redis.at();
        lab.status.requests.flush();
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 3).await;
        assert!(lab.redis.at() - before < ms(200), "{:?}", lab.redis.at() - before);

        // Out of the wait for more.
        let lab = Lab::with(CollectorOptions { flush_timeout: secs(5), ..options() });
        lab.redis.mutate(0..3, 1);
        lab.start();
        lab.until("some are gathered", |lab| lab.redis.leased() == 3).await;
        lab.status.requests.flush();
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 3).await;
        assert!(lab.redis.at() < secs(1), "{:?}", lab.redis.at());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_claimed_before_it_is_known_who_is_paused() {
    local(async {
        let lab = Lab::new();
        lab.fleet.paused.expect(KeyForm::AsListed);
        lab.redis.mutate(0..3, 1);
        lab.start();
        tokio::time::sleep(secs(30)).await;
        assert_eq!(lab.redis.claims.borrow().len(), 0);
        assert_eq!(lab.state().state, TenantState::Starting);
        lab.fleet.paused.replace(HashSet::new());
        lab.status.requests.recheck();
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 3).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_tenant_that_is_removed_is_left_as_it_is() {
    local(async {
        let lab = Lab::new();
        pause(&lab, true);
        lab.redis.mutate(0..3, 1);
        let running = lab.start();
        lab.until("paused", |lab| lab.state().state == TenantState::Paused).await;
        lab.status.leaving.store(true, Relaxed);
        lab.stop.cancel();
        let drained = tokio::time::timeout(Duration::from_secs(5), running).await.unwrap().unwrap();
        assert_eq!((drained.flushed, lab.redis.due()), (0, 3));
    })
    .await;
}
