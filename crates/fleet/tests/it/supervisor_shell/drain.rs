//! The end of the whole worker.

use super::*;

#[actix::test]
async fn draining_flushes_releases_and_reports() {
    let bench = Bench::new(&["fine", "down", "cut", "idle"]);
    bench.all_idle(&["fine", "down", "cut", "idle"]).await;
    for id in ["fine", "down", "cut"] {
        bench.redis(id).mutate(0..3, 1);
    }
    bench
        .until("all are claimed", || ["fine", "down", "cut"].iter().all(|id| bench.redis(id).leased() == 3))
        .await;
    bench.postgres("down").is(Mood::Silent);
    bench.postgres("cut").is(Mood::Silent);
    bench.redis("cut").fail(&["release"], ErrorClass::Unavailable);
    let begun = Instant::now();
    let report = bench.drain().await;
    assert!(begun.elapsed() < secs(3), "the drain deadline of a collector, not more: {:?}", begun.elapsed());
    assert_eq!((report.stopped, report.flushed, report.released), (4, 3, 3));
    assert_eq!(report.orphaned, BTreeMap::from([(tenant("cut"), 3)]));
    assert!(report.killed.is_empty());
    assert!(!bench.fleet.is_ready());
    assert_eq!((bench.redis("fine").settled.borrow().len(), bench.redis("down").due()), (3, 3));

    // There is no way back: neither list nor hints start anybody.
    let polls = bench.directory.polls();
    bench.lists(&["fine", "another"]);
    bench.supervisor.do_send(Poll);
    tokio::time::sleep(secs(60)).await;
    assert_eq!((bench.world.born.borrow().len(), bench.directory.polls()), (4, polls));
}

#[actix::test]
async fn draining_breaks_off_who_does_not_end_and_says_whom() {
    let bench = Bench::with(&["a", "b", "c"], limits(), endless());
    bench.all_idle(&["a", "b", "c"]).await;
    bench.postgres("b").is(Mood::Silent);
    bench.redis("b").mutate(0..3, 1);
    bench.until("its flush hangs", || bench.postgres("b").in_flight.get() == 1).await;
    let begun = Instant::now();
    let (report, second) = tokio::join!(bench.drain(), bench.drain());
    assert!((secs(30)..secs(31)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!((report.stopped, report.killed.clone()), (2, vec![tenant("b")]));
    assert_eq!(second.killed, report.killed);
    tokio::time::sleep(secs(1)).await;
    assert_eq!(bench.postgres("b").in_flight.get(), 0);
    assert_eq!(bench.drain().await.killed, [tenant("b")], "whoever asks later hears the same");
}

#[actix::test]
async fn draining_hurries_who_empties_a_removed_tenant_s_schedule() {
    let bench = Bench::new(&["a", "b", "c"]);
    bench.all_idle(&["a", "b", "c"]).await;
    // Never empty: what is written can't be settled.
    bench.redis("a").fail(&["settle"], ErrorClass::Unavailable);
    bench.redis("a").mutate([1], 1);
    bench.lists(&["b", "c"]);
    bench.supervisor.do_send(Poll);
    bench.until("it stops", || bench.state("a") == TenantState::Stopping).await;
    tokio::time::sleep(secs(3)).await;
    assert_eq!(bench.state("a"), TenantState::Stopping);
    let begun = Instant::now();
    let report = bench.drain().await;
    assert!(begun.elapsed() < secs(1), "{:?}", begun.elapsed());
    assert_eq!(report.stopped, 3);
}

#[actix::test]
async fn draining_while_a_poll_is_out_or_a_crash_is_waited_for_ends_at_once() {
    let bench = Bench::new(&["a", "b"]);
    bench.all_idle(&["a", "b"]).await;
    bench.postgres("a").is(Mood::Panics);
    bench.redis("a").mutate(0..500, 1);
    bench.until("it has crashed thrice", || bench.fleet.panics.load(Relaxed) == 3).await;
    bench.directory.shut();
    bench.supervisor.send(Poll).await.unwrap();
    let begun = Instant::now();
    let report = bench.drain().await;
    assert!(begun.elapsed() < secs(1), "{:?}", begun.elapsed());
    assert_eq!((report.stopped, report.killed.len()), (1, 0));
    bench.lists(&["a", "b", "c"]);
    bench.directory.open();
    tokio::time::sleep(secs(60)).await;
    assert!(bench.starts("c").is_empty(), "the answer to the poll comes too late");
}

#[actix::test]
async fn draining_before_anything_was_listed_ends_at_once() {
    let bench = Bench::new(&["a"]);
    bench.directory.shut();
    let report = bench.drain().await;
    assert_eq!((report.stopped, report.killed.len()), (0, 0));
    bench.directory.open();
    tokio::time::sleep(secs(60)).await;
    assert!(bench.world.born.borrow().is_empty());
}
