//! TTLs raised in time, and old schedules surveyed.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_fleet::pipeline::{CollectorOptions, Survey};

use super::{away, local};
use crate::common::*;

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
