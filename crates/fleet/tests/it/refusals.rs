//! What a server refuses: a state of the tenant, from which it comes back by itself, and no balance leaves the schedule for it.

use std::sync::atomic::Ordering::Relaxed;

use crate::common::{Lab, member, secs};
use balance_sync_fleet::status::{Reason, TenantState};
use balance_sync_schedule::{ErrorClass, Refused, ScheduleError};
use tokio::task::LocalSet;

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

#[tokio::test(start_paused = true)]
async fn claims_that_are_refused_keep_the_values_alive_and_come_back_slowly() {
    for (class, reason, most) in [
        (ErrorClass::Permission, "redis_permission", 20),
        (ErrorClass::UndeclaredKeys, "redis_undeclared_keys", 20),
        (ErrorClass::Cluster, "redis_cluster", 200),
        (ErrorClass::NoReplicas, "redis_no_replicas", 200),
        (ErrorClass::Misconf, "redis_misconf", 200),
        (ErrorClass::OutOfMemory, "redis_out_of_memory", 200),
    ] {
        local(async {
            let lab = Lab::new();
            lab.redis.fail(&["claim"], class);
            lab.redis.mutate(0..3, 1);
            lab.start();
            tokio::time::sleep(secs(120)).await;
            assert_eq!(lab.reason(), Some(reason));
            let claims = lab.redis.claims.borrow().len();
            assert!((5..most).contains(&claims), "{reason}: {claims} claims in two minutes");
            assert!(!lab.redis.sweeps.borrow().is_empty(), "{reason}: values are kept alive");
            assert!(lab.redis.quarantined.borrow().is_empty());
            assert_eq!(lab.redis.due(), 3);
            lab.redis.heal();
            lab.until("all are written", |lab| lab.redis.settled.borrow().len() == 3).await;
            assert_eq!(lab.reason(), None);
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn written_rows_that_may_not_be_settled_degrade_the_tenant_until_they_may() {
    local(async {
        let lab = Lab::new();
        lab.redis.fail(&["settle", "quarantine"], ErrorClass::Permission);
        lab.redis.mutate(0..10, 1);
        lab.start();
        lab.until("it is degraded", |lab| lab.reason() == Some("redis_permission")).await;
        // New mutations and lapsed leases all the time: tried ever more rarely, and it is never shown as recovered.
        for round in 0..60 {
            tokio::time::sleep(secs(2)).await;
            lab.redis.lapse();
            lab.redis.mutate([100 + round], 1);
            assert_eq!(lab.reason(), Some("redis_permission"));
        }
        let failures = lab.status.cleanup_failures.load(Relaxed);
        assert!((4..20).contains(&failures), "{failures} tries in two minutes");
        assert!(!lab.redis.sweeps.borrow().is_empty(), "values are kept alive");
        lab.redis.heal();
        lab.redis.lapse();
        lab.until("all are settled", |lab| lab.redis.settled.borrow().len() == 70).await;
        assert_eq!(lab.reason(), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_of_some_balances_is_shown_while_the_others_are_written() {
    local(async {
        let lab = Lab::new();
        let error =
            ScheduleError { operation: "claim", class: ErrorClass::Permission, message: "no".to_owned() };
        *lab.redis.refused.borrow_mut() = Some(Refused { put_off: 2, error });
        lab.redis.mutate(0..10, 1);
        lab.start();
        lab.until("all are written", |lab| lab.redis.settled.borrow().len() == 10).await;
        let shown = lab.status.state();
        assert_eq!((shown.state, shown.reason), (TenantState::Degraded, Some(Reason::RedisPermission)));
        assert!(shown.detail.unwrap().starts_with("2 balances put off"));
        // It ends when it has not happened for two periods.
        *lab.redis.refused.borrow_mut() = None;
        tokio::time::sleep(secs(121)).await;
        assert_eq!(lab.reason(), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_format_is_shown_until_it_has_not_been_seen_for_two_periods() {
    local(async {
        let lab = Lab::new();
        let strange = || {
            lab.redis.schedule(member(&lab.redis.space, 50), Some(br#"{"SchemaVersion":9}"#.to_vec()), 0.0)
        };
        strange();
        lab.redis.mutate(0..10, 1);
        lab.start();
        lab.until("all are written", |lab| lab.redis.settled.borrow().len() == 10).await;
        lab.until("it is shown", |lab| lab.reason() == Some("value_unknown_format")).await;
        for version in 2..5 {
            // Each retry finds it as it was; the others go on.
            tokio::time::sleep(secs(60)).await;
            strange();
            lab.redis.mutate(0..10, version);
            lab.until("they are written", |lab| lab.postgres.rows.borrow()[&3] == version).await;
            assert_eq!(lab.reason(), Some("value_unknown_format"));
        }
        assert!(lab.redis.quarantined.borrow().is_empty());
        tokio::time::sleep(secs(121)).await;
        assert_eq!(lab.reason(), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_put_off_counts_as_exposed_since_its_mutation_until_it_is_written() {
    local(async {
        let lab = Lab::new();
        let (strange, other) = (member(&lab.redis.space, 50), member(&lab.redis.space, 51));
        let unknown = || Some(br#"{"SchemaVersion":9}"#.to_vec());
        let balance = |n| crate::common::value(n, 1);
        lab.redis.schedule(strange.clone(), unknown(), 30.0);
        lab.redis.schedule(other.clone(), unknown(), 10.0);
        lab.start();
        lab.until("both are put off", |lab| lab.redis.postponed.borrow().len() == 2).await;
        let age = || lab.status.exposure_age().as_secs();
        lab.until("they wait", |_| age() == 30).await;
        tokio::time::sleep(secs(60)).await;
        assert_eq!(age(), 90, "no time counts twice, and none is forgotten");

        // They are due again, with the score of a delay, and still can't be written.
        let score = |age: f64| format!("{:.6}5", lab.redis.now() - age);
        lab.redis.schedule_at(strange.clone(), unknown(), &score(0.1));
        lab.redis.schedule_at(other.clone(), unknown(), &score(0.1));
        lab.until("both are put off again", |lab| lab.redis.postponed.borrow().len() == 4).await;
        tokio::time::sleep(secs(10)).await;
        assert_eq!(age(), 100);

        // The older one is written: the other is the oldest now, and then none is.
        lab.redis.schedule_at(strange, Some(balance(50)), &score(0.1));
        lab.until("it is settled", |lab| lab.redis.settled.borrow().len() == 1).await;
        lab.until("the other is the oldest", |_| age() == 80).await;
        lab.redis.schedule(other, Some(balance(51)), 0.0);
        lab.until("nothing is exposed", |lab| lab.status.exposure_age().is_zero()).await;
        assert_eq!(lab.redis.settled.borrow().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_quarantine_that_cannot_be_used_is_shown_and_the_others_are_written() {
    local(async {
        let lab = Lab::new();
        let poison = || lab.redis.schedule(member(&lab.redis.space, 50), Some(b"{}".to_vec()), 0.0);
        lab.redis.fail(&["quarantine"], ErrorClass::WrongType);
        poison();
        lab.redis.mutate(0..10, 1);
        lab.start();
        lab.until("all are written", |lab| lab.redis.settled.borrow().len() == 10).await;
        lab.until("it is shown", |lab| lab.reason() == Some("redis_wrong_type")).await;
        let shown = lab.status.state();
        assert_eq!(shown.state, TenantState::Degraded);
        assert!(shown.detail.unwrap().starts_with("1 balances put off, they can't be set aside: "));
        assert_eq!(*lab.redis.postponed.borrow(), [member(&lab.redis.space, 50)]);
        // It comes due again, and goes where it belongs once what stood there has been removed.
        lab.redis.heal();
        tokio::time::sleep(secs(60)).await;
        assert_eq!(lab.reason(), Some("redis_wrong_type"), "until the next try");
        poison();
        lab.until("it is set aside", |lab| lab.redis.quarantined.borrow().len() == 1).await;
        tokio::time::sleep(secs(121)).await;
        assert_eq!(lab.reason(), None);
    })
    .await;
}
