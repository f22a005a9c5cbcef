//! Which collectors run, by the list of tenants.

use super::*;

#[actix::test]
async fn the_listed_start_the_added_join_and_the_removed_are_flushed_and_forgotten() {
    let bench = Bench::new(&["a", "b"]);
    assert!(!bench.fleet.is_ready());
    bench.all_idle(&["a", "b"]).await;
    assert!(bench.fleet.is_ready());
    assert_eq!(bench.begun.elapsed().as_millis() / 100, 0, "the first poll is made at once");

    bench.lists(&["a", "b", "c"]);
    bench.all_idle(&["a", "b", "c"]).await;
    assert!(bench.begun.elapsed() <= POLL_EVERY.mul_f64(1.1) + secs(1));

    // The manager knows a database of the one that goes.
    bench.directory.knows(&tenant("a"), database("a", "p"));
    let pool = bench
        .manager
        .send(GetPool { tenant: tenant("a"), last: false, span: Span::NONE })
        .await
        .unwrap()
        .unwrap();
    bench.redis("a").mutate(0..3, 1);
    bench.until("some are claimed", || bench.redis("a").leased() == 3).await;
    bench.lists(&["b", "c"]);
    bench.supervisor.do_send(Poll);
    bench.until("a has gone", || bench.known() == ["b", "c"]).await;
    assert_eq!(bench.redis("a").settled.borrow().len(), 3, "flushed before it went");
    bench.until("its database is closed", || pool.database.is_closed()).await;
    assert!(bench.manager.send(GetUsage(tenant("a"))).await.unwrap().is_none());
    assert_eq!((bench.fleet.started.load(Relaxed), bench.fleet.stopped.load(Relaxed)), (3, 1));
    assert_eq!(bench.phases(), [1, 1, 3, 0]);
    assert_eq!((bench.fleet.wanted.load(Relaxed), bench.fleet.restarts.load(Relaxed)), (2, 0));
    assert_eq!(bench.starts("b").len() + bench.starts("c").len(), 2, "the others were left alone");
}

#[actix::test]
async fn what_a_removed_tenant_still_has_scheduled_is_written_before_it_goes() {
    let bench = Bench::new(&["a", "b"]);
    bench.all_idle(&["a", "b"]).await;
    bench.postgres("a").takes.set(secs(1));
    bench.redis("a").mutate(0..95, 1);
    bench.lists(&["b"]);
    bench.supervisor.do_send(Poll);
    bench.until("a has gone", || bench.known() == ["b"]).await;
    assert_eq!(bench.redis("a").settled.borrow().len(), 95);
}

#[actix::test]
async fn collectors_on_a_stalled_thread_are_given_up_and_start_on_another() {
    let bench = Bench::new(&["a", "b"]);
    bench.all_idle(&["a", "b"]).await;
    let former: Vec<Incarnation> = bench.world.born.borrow().iter().map(|(_, born)| born.clone()).collect();
    assert!(former.iter().all(|born| !born.stop.is_cancelled()));

    bench.world.still.set(Some(0));
    bench.fleet.still_threads.store(1, Relaxed);
    bench.supervisor.do_send(Poll);
    bench.until("both start again", || bench.starts("a").len() == 2 && bench.starts("b").len() == 2).await;
    assert!(
        former.iter().all(|born| born.stop.is_cancelled() && born.kill.is_cancelled()),
        "whoever moves again finds that it is to stop"
    );
    bench.all_idle(&["a", "b"]).await;
    assert_eq!(bench.fleet.reaped.load(Relaxed), 2);
    // A former one has moved again and reports its end.
    bench.says_ended(&former[0]).await;
    bench.polls(3).await;
    assert_eq!(
        (bench.starts("a").len(), bench.starts("b").len()),
        (2, 2),
        "those on other threads are left alone"
    );
}

#[actix::test]
async fn a_manager_that_panics_is_noticed_at_the_next_pass() {
    let bench = Bench::new(&["a"]);
    bench.all_idle(&["a"]).await;
    bench.polls(1).await;
    assert!(!bench.fleet.manager_ended.load(Relaxed));
    assert!(bench.manager.send(PanicNow).await.is_err(), "no answer");
    bench.polls(1).await;
    assert!(bench.fleet.manager_ended.load(Relaxed));
}

#[actix::test]
async fn a_collector_that_never_comes_to_work_is_started_again() {
    let bench = Bench::new(&[]);
    bench.polls(1).await;
    bench.world.mute.set(true);
    bench.lists(&["a"]);
    bench.supervisor.do_send(Poll);
    bench.until("it was started", || bench.starts("a").len() == 1).await;
    bench.polls(3).await;
    assert_eq!((bench.starts("a").len(), bench.state("a")), (1, TenantState::Starting));
    bench.world.mute.set(false);
    bench.all_idle(&["a"]).await;
    let starts = bench.starts("a");
    assert_eq!(starts.len(), 2);
    assert!(
        starts[1] - starts[0] >= STARTS_WITHIN && starts[1] - starts[0] < 2 * STARTS_WITHIN,
        "{starts:?}"
    );
}

#[actix::test]
async fn an_error_is_not_an_empty_list() {
    let bench = Bench::new(&["a", "b"]);
    bench.all_idle(&["a", "b"]).await;
    for reply in [Reply::Answer(Err(DirectoryError::unavailable("500"))), Reply::Panic] {
        let failures = bench.fleet.poll_failures.load(Relaxed);
        bench.directory.list_is(reply);
        bench.polls(20).await;
        assert!(bench.fleet.poll_failures.load(Relaxed) >= failures + 19);
        assert_eq!((bench.known().len(), bench.fleet.started.load(Relaxed)), (2, 2));
        assert_eq!(bench.state("a"), TenantState::Idle);
    }
    // And they work: the supervisor has survived it.
    bench.lists(&["a", "b", "c"]);
    bench.all_idle(&["c"]).await;
}

#[actix::test]
async fn before_the_first_good_list_the_worker_is_not_ready() {
    let bench = Bench::new(&["a"]);
    bench.directory.list_is(Reply::Answer(Err(DirectoryError::Unauthorized)));
    bench.polls(5).await;
    assert!(!bench.fleet.is_ready());
    assert!(bench.fleet.passes.load(Relaxed) >= 4, "it is alive");
    bench.lists(&[]);
    bench.polls(2).await;
    assert!(bench.fleet.is_ready(), "an empty list is a good answer too");
}

#[actix::test]
async fn an_empty_list_after_a_full_one_must_repeat_itself_before_anybody_is_stopped() {
    let bench = Bench::new(&["a", "b", "c"]);
    bench.all_idle(&["a", "b", "c"]).await;
    bench.lists(&[]);
    bench.polls(1).await;
    assert_eq!(bench.fleet.removals_held.load(Relaxed), 3);
    // Hints do not make the same wrong list count more often.
    for _ in 0..50 {
        bench.supervisor.send(Poll).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((bench.known().len(), bench.fleet.removals_held.load(Relaxed)), (3, 3));
    bench.polls(1).await;
    assert_eq!(bench.known().len(), 3, "the second time");
    // It contradicts itself: from the beginning.
    bench.lists(&["a", "b", "c"]);
    bench.polls(1).await;
    assert_eq!(bench.fleet.removals_held.load(Relaxed), 0);
    bench.lists(&[]);
    bench.polls(2).await;
    assert_eq!(bench.known().len(), 3);
    bench.polls(1).await;
    bench.until("all have gone", || bench.known().is_empty()).await;
    assert_eq!(bench.fleet.started.load(Relaxed), 3, "none was restarted meanwhile");
}

#[actix::test]
async fn refused_ids_are_counted_and_refuse_no_other() {
    let bench = Bench::new(&["a"]);
    bench.directory.also_lists_refused(&["../x", "", ""]);
    bench.all_idle(&["a"]).await;
    assert_eq!(bench.fleet.refused_ids.load(Relaxed), 3);
    bench.lists(&["a"]);
    bench.polls(1).await;
    assert_eq!(bench.fleet.refused_ids.load(Relaxed), 0);
}

#[actix::test]
async fn hints_poll_at_once_but_a_stream_of_them_is_no_stream_of_polls() {
    let bench = Bench::new(&["a"]);
    bench.all_idle(&["a"]).await;
    let (polls, at) = (bench.directory.polls(), bench.begun.elapsed());
    bench.lists(&["a", "b"]);
    bench.supervisor.do_send(Poll);
    bench.all_idle(&["b"]).await;
    assert!(bench.begun.elapsed() - at < secs(1));
    assert_eq!(bench.directory.polls(), polls + 1);

    // A slow service under hints.
    bench.directory.shut();
    for _ in 0..20 {
        bench.supervisor.send(Poll).await.unwrap();
    }
    bench.directory.open();
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(bench.directory.polls(), polls + 2, "not on the heels of the one that was under way");
    tokio::time::sleep(secs(4)).await;
    assert_eq!(bench.directory.polls(), polls + 3, "one for all hints meanwhile");
}

#[actix::test]
async fn a_poll_without_an_answer_blocks_nothing_and_is_given_up() {
    let bench = Bench::new(&["a", "b"]);
    bench.all_idle(&["a", "b"]).await;
    bench.directory.shut();
    bench.polls(1).await;
    let passes = bench.fleet.passes.load(Relaxed);
    bench.postgres("a").is(Mood::Panics);
    bench.redis("a").mutate(0..10, 1);
    bench.until("the panic is reaped", || bench.fleet.panics.load(Relaxed) == 1).await;
    bench.postgres("a").is(Mood::Well);
    bench.redis("a").mutate(0..10, 2);
    bench.until("it works again", || bench.redis("a").settled.borrow().len() == 10).await;
    assert!(bench.fleet.passes.load(Relaxed) > passes);
    assert_eq!(bench.fleet.poll_failures.load(Relaxed), 0, "the poll is still out");
    bench.until("it is given up", || bench.fleet.poll_failures.load(Relaxed) == 1).await;
    bench.directory.open();
    bench.lists(&["a", "b", "c"]);
    bench.all_idle(&["c"]).await;
}
