//! What a collector does while Postgres fails.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_fleet::{
    pipeline::SinkError,
    status::{Outcome, TenantState},
};
use balance_sync_store::{Outcome as RowOutcome, RowResult};
use balance_sync_tenants::DirectoryError;

use super::{away, local, suspended};
use crate::common::*;

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
async fn what_needs_an_operator_is_tried_less_and_less_often() {
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
