//! Members whose values are gone: settled, put off or recorded as lost.

use super::*;

fn last_known() -> LastKnown {
    LastKnown {
        row_version: 5,
        version: 7,
        available: Some("70.5".to_owned()),
        on_hold: Some("1".to_owned()),
        overdraft_used: None,
        in_doubt: true,
    }
}

#[tokio::test(start_paused = true)]
async fn members_without_a_value_are_settled_put_off_or_recorded_by_what_postgres_knows() {
    let bench = Bench::new();
    bench.queue.0.mutate(0..2, 1);
    let stale = || Some(Fate::Stale { row_version: 5 });
    let deleted = gone(&bench, 10, 0.0, Some(Fate::Deleted));
    let old = gone(&bench, 11, 900.0, stale());
    let young = gone(&bench, 12, 0.0, stale());
    let lost = gone(&bench, 13, 0.0, Some(Fate::Lost(last_known())));
    let unknown = gone(&bench, 14, 900.0, None);
    // When it was mutated isn't known any more: its claim has lapsed once.
    let lapsed = member(bench.space(), 15);
    bench.queue.0.schedule_at(lapsed.clone(), None, "1795380489.0000005");
    bench.sink.0.fates.borrow_mut().extend(stale().map(|fate| ("@account15".to_owned(), fate)));

    let end = bench.flush(&bench.claim().await).await;
    assert!(end.failure.is_none() && end.answered);
    let redis = &bench.queue.0;
    assert_eq!(redis.dismissed.borrow()[..], [deleted]);
    let put_off = [old, young, lapsed].map(|member| (member, secs(15)));
    assert_eq!(redis.put_off.borrow()[..], put_off, "the age of a mutation proves nothing");
    let recorded = redis.lost.borrow();
    assert_eq!((&recorded[0].0, &recorded[1].0, recorded.len()), (&lost, &unknown, 2));
    let confirmed = &recorded[0].1;
    assert_eq!((confirmed.confirmed, confirmed.version, confirmed.row_version), (true, Some(7), Some(5)));
    assert_eq!((confirmed.available.as_deref(), confirmed.overdraft_used.as_deref()), (Some("70.5"), None));
    assert!(confirmed.in_doubt && confirmed.detail.contains("in doubt"), "{}", confirmed.detail);
    assert!(!recorded[1].1.confirmed && recorded[1].1.detail.contains("not known"));
    assert!(bench.quarantined().is_empty());
    assert_eq!(
        (
            end.outcomes[Outcome::Updated],
            end.outcomes[Outcome::Deleted],
            end.outcomes[Outcome::Stale],
            end.outcomes[Outcome::Released],
            end.outcomes[Outcome::Quarantined],
            end.orphaned
        ),
        (2, 1, 0, 3, 2, 0)
    );
    let status = &bench.status;
    let counts = [
        &status.outcomes[Outcome::Deleted],
        &status.outcomes[Outcome::Stale],
        &status.outcomes[Outcome::Expired],
        &status.outcomes[Outcome::Quarantined],
        &status.outcomes[Outcome::Released],
    ];
    assert_eq!(counts.map(|count| count.load(Relaxed)), [1, 0, 2, 2, 3]);
    assert_eq!(status.lag.count(), 2, "only what was written has a lag");
    assert_eq!(redis.leased() + redis.due(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_row_as_new_as_the_trail_counts_when_nothing_has_changed_for_the_grace() {
    for (failed, restarted, lapsed, settled) in
        [(false, false, false, 1), (true, false, false, 0), (false, true, false, 0), (false, false, true, 0)]
    {
        let bench = Bench::new();
        let redis = &bench.queue.0;
        let member = gone(&bench, 10, 900.0, Some(Fate::Stale { row_version: 5 }));
        for look in 0..4 {
            let end = bench.flush(&bench.claim().await).await;
            assert_eq!(
                (end.outcomes[Outcome::Stale], end.outcomes[Outcome::Released]),
                (0, 1),
                "look {look}"
            );
            let due = redis.now() + 15.0;
            tokio::time::sleep(secs(10)).await;
            if failed && look == 2 {
                bench.trail.borrow_mut().failed(tokio::time::Instant::now().into_std());
            }
            if restarted && look == 2 {
                bench.sink.0.started.replace("one".to_owned());
            }
            tokio::time::sleep(secs(5)).await;
            let former = if lapsed && look == 3 { due + 1.0 } else { due };
            redis.schedule_at(member.clone(), None, &former.to_string());
        }
        let end = bench.flush(&bench.claim().await).await;
        assert_eq!(
            (end.outcomes[Outcome::Stale], end.outcomes[Outcome::Released]),
            (settled, 1 - settled),
            "failed: {failed}, restarted: {restarted}, lapsed: {lapsed}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_leaves_the_schedule_undecided() {
    for mood in [Mood::Fails(SinkError::Deadline(secs(1))), Mood::Silent] {
        for written in [0..0, 0..2] {
            let bench = Bench::new();
            bench.queue.0.mutate(written.clone(), 1);
            gone(&bench, 10, 900.0, Some(Fate::Deleted));
            bench.sink.0.is(mood.clone());
            let end = bench.flush(&bench.claim().await).await;
            assert!(end.failure.is_some(), "{mood:?}");
            let all = written.count() + 1;
            assert_eq!(
                (end.outcomes[Outcome::Released], end.outcomes[Outcome::Quarantined], end.orphaned),
                (all as u64, 0, 0),
                "{mood:?}"
            );
            assert_eq!(bench.queue.0.due(), all, "{mood:?}");
            assert!(bench.queue.0.at() <= secs(5), "{mood:?}: it is bounded");
            assert_eq!(bench.status.batch_failures.load(Relaxed), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_decided_and_could_not_be_done_in_redis_lapses() {
    let bench = Bench::new();
    gone(&bench, 10, 0.0, Some(Fate::Deleted));
    gone(&bench, 11, 0.0, Some(Fate::Stale { row_version: 5 }));
    gone(&bench, 12, 0.0, None);
    bench.queue.0.fail(&["dismiss", "put off", "lose"], ErrorClass::OutOfMemory);
    let end = bench.flush(&bench.claim().await).await;
    assert_eq!(
        (
            end.outcomes[Outcome::Deleted],
            end.outcomes[Outcome::Stale],
            end.outcomes[Outcome::Quarantined],
            end.outcomes[Outcome::Released],
            end.orphaned
        ),
        (0, 0, 0, 0, 3)
    );
    assert_eq!((bench.queue.0.leased(), bench.status.cleanup_failures.load(Relaxed)), (3, 3));
    assert_eq!(
        bench.status.outcomes[Outcome::Deleted].load(Relaxed)
            + bench.status.outcomes[Outcome::Expired].load(Relaxed),
        0
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_missing_value_nothing_is_looked_up() {
    let bench = Bench::new();
    bench.queue.0.mutate(0..2, 1);
    bench.flush(&bench.claim().await).await;
    assert_eq!(bench.sink.0.looked_up.get(), 0);
}
