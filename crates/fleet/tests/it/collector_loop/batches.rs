//! When batches are claimed and flushed: triggers, permits, idle waits.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use balance_sync_fleet::{
    pipeline::{CollectorOptions, SinkError},
    status::{Outcome, TenantState, Trigger},
};

use super::{batches, local, update_times};
use crate::common::*;

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
        // Half of the time in which a standby takes over.
        let shown = 490 / (options().idle_backoff_max / 2).as_millis() as usize;
        assert_eq!(
            lab.redis.claimed(),
            50 + shown,
            "an eighth of a batch, and one at a time to show that it lives, while nothing can be written"
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
async fn a_permit_that_never_comes_is_given_up_at_the_deadline_and_values_are_protected_from_then_on() {
    local(async {
        let lab = Lab::new();
        lab.postgres.permit_takes.set(secs(3600));
        lab.redis.mutate(0..5, 1);
        lab.start();
        lab.until("it is degraded", |lab| lab.reason().is_some()).await;
        assert!(lab.redis.at() <= lab.options.flush_deadline + ms(60), "{:?}", lab.redis.at());
        let swept = lab.redis.sweeps.borrow().first().copied();
        assert!(swept.is_none_or(|at| at >= lab.options.protect_after), "{swept:?}");
        lab.until("all are protected", |lab| !lab.redis.sweeps.borrow().is_empty()).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_moves_is_waited_for_beyond_the_deadline_and_is_shown() {
    local(async {
        let lab = Lab::new();
        let queue = 6 * lab.options.flush_deadline;
        lab.postgres.permit_queue.set(queue);
        lab.redis.mutate(0..5, 1);
        lab.start();
        lab.until("the wait shows", |lab| lab.status.connection_wait().is_some()).await;
        // A newer one than what was claimed, in the middle of the wait.
        lab.until("it has waited for a deadline", |lab| {
            lab.status.connection_wait().is_some_and(|wait| wait > lab.options.flush_deadline)
        })
        .await;
        lab.redis.mutate(0..1, 2);
        lab.until("all are settled", |lab| lab.redis.due() == 0 && lab.redis.leased() == 0).await;
        assert!(lab.redis.at() >= queue, "{:?}", lab.redis.at());
        assert_eq!((lab.reason(), lab.status.batch_failures.load(Relaxed)), (None, 0));
        assert_eq!(lab.status.connection_wait(), None);
        assert_eq!((lab.postgres.permits.get(), lab.postgres.updates.borrow().len()), (1, 1));
        let polls = lab.redis.claims.borrow().len();
        // As an idle schedule is looked at, and once more for each time that what is held is claimed anew.
        let looks = queue.as_millis() / lab.options.idle_backoff_max.as_millis() + 2 * 12 + 10;
        assert!(polls as u128 <= looks, "{polls} claims, more than {looks}");
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
