//! How collectors end: panics, late ends, deadlines, restarts.

use super::*;

#[actix::test]
async fn a_panicking_collector_is_reaped_and_started_with_growing_delay_while_others_go_on() {
    let bench = Bench::new(&["bad", "good"]);
    bench.all_idle(&["bad", "good"]).await;
    bench.postgres("bad").is(Mood::Panics);
    // More than are ever claimed before the end: each incarnation finds ten and dies of them.
    bench.redis("bad").mutate(0..200, 1);
    bench
        .until("it was started six times", || {
            if bench.redis("good").due() + bench.redis("good").leased() == 0 {
                bench.redis("good").mutate([1], bench.begun.elapsed().as_millis() as i64 + 1);
            }
            bench.starts("bad").len() == 6
        })
        .await;
    let starts = bench.starts("bad");
    let delays: Vec<_> = starts.windows(2).skip(1).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(delays, [2, 4, 8, 16], "{starts:?}");
    assert!(bench.fleet.panics.load(Relaxed) >= 5);
    assert_eq!(bench.fleet.panics.load(Relaxed), bench.fleet.reaped.load(Relaxed));
    assert_eq!(bench.starts("good").len(), 1);
    assert!(
        bench.redis("good").settled.borrow().len() > 200,
        "{}",
        bench.redis("good").settled.borrow().len()
    );

    let epochs: Vec<_> = bench.world.born.borrow().iter().map(|(_, born)| born.epoch).collect();
    assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "{epochs:?}");
    let (bad, good) = (bench.fleet.tenant(&tenant("bad")), bench.fleet.tenant(&tenant("good")));
    assert_eq!((bad.starts.load(Relaxed), bad.restarts.load(Relaxed)), (6, 5));
    assert_eq!((good.starts.load(Relaxed), good.restarts.load(Relaxed)), (1, 0));
    assert_eq!(bench.fleet.restarts.load(Relaxed), 5);
}

#[actix::test]
async fn while_it_waits_for_its_next_start_a_crashed_tenant_says_so_and_can_be_removed() {
    let bench = Bench::new(&["a", "b", "c"]);
    bench.all_idle(&["a", "b", "c"]).await;
    bench.postgres("a").is(Mood::Panics);
    bench.redis("a").mutate(0..500, 1);
    bench.until("it has crashed thrice", || bench.fleet.panics.load(Relaxed) == 3).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let info = bench.fleet.tenant(&tenant("a")).state();
    assert_eq!((info.state, info.reason), (TenantState::Degraded, Some(Reason::CollectorCrashed)));
    bench.lists(&["b", "c"]);
    bench.supervisor.do_send(Poll);
    bench.until("it has gone", || bench.known() == ["b", "c"]).await;
    let starts = bench.starts("a").len();
    tokio::time::sleep(secs(60)).await;
    assert_eq!(bench.starts("a").len(), starts, "its delay is void");
}

#[actix::test]
async fn the_late_end_of_a_former_incarnation_is_ignored() {
    let bench = Bench::new(&["a"]);
    bench.all_idle(&["a"]).await;
    bench.postgres("a").is(Mood::Panics);
    bench.redis("a").mutate(0..10, 1);
    bench.until("it crashed and is back", || bench.starts("a").len() == 2).await;
    bench.postgres("a").is(Mood::Well);
    bench.all_idle(&["a"]).await;
    let former = bench.world.born.borrow()[0].1.clone();
    bench.says_ended(&former).await;
    tokio::time::sleep(secs(60)).await;
    assert_eq!((bench.starts("a").len(), bench.fleet.panics.load(Relaxed)), (2, 1));
    assert_eq!(bench.state("a"), TenantState::Idle);
}

#[actix::test]
async fn a_tenant_that_returns_while_it_stops_starts_again_only_after_its_end() {
    let bench = Bench::new(&["a", "b", "c"]);
    bench.all_idle(&["a", "b", "c"]).await;
    bench.postgres("a").takes.set(Duration::from_millis(1500));
    bench.redis("a").mutate(0..3, 1);
    bench.until("they are claimed", || bench.redis("a").leased() == 3).await;
    bench.lists(&["b", "c"]);
    bench.supervisor.send(Poll).await.unwrap();
    bench.until("it stops", || bench.state("a") == TenantState::Stopping).await;
    bench.lists(&["a", "b", "c"]);
    bench.supervisor.send(Poll).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.starts("a").len(), 1);
    bench.until("it is back", || bench.starts("a").len() == 2).await;
    assert_eq!(bench.redis("a").settled.borrow().len(), 3, "the first one has ended its work");
    assert_eq!(bench.postgres("a").in_flight.get(), 0);
    bench.postgres("a").takes.set(Duration::ZERO);
    bench.redis("a").mutate([9], 1);
    bench.until("it works", || bench.redis("a").settled.borrow().len() == 4).await;
    assert!(bench.known().contains(&"a".to_owned()));
}

#[actix::test]
async fn a_collector_that_does_not_stop_in_time_is_aborted_and_not_waited_for() {
    let bench = Bench::with(&["a", "b", "c"], limits(), endless());
    bench.all_idle(&["a", "b", "c"]).await;
    bench.postgres("a").is(Mood::Silent);
    bench.redis("a").mutate(0..3, 1);
    bench.until("its flush hangs", || bench.postgres("a").in_flight.get() == 1).await;
    bench.lists(&["b", "c", "new"]);
    let begun = bench.begun.elapsed();
    bench.supervisor.do_send(Poll);
    bench.all_idle(&["new"]).await;
    assert!(bench.begun.elapsed() - begun < secs(1), "a slow stop delays no start");
    assert_eq!(bench.state("a"), TenantState::Stopping);
    assert_eq!(bench.fleet.awaited.load(Relaxed), 1);

    bench.until("it has gone", || !bench.known().contains(&"a".to_owned())).await;
    let took = bench.begun.elapsed() - begun;
    assert!((secs(30)..secs(31)).contains(&took), "{took:?}");
    assert_eq!(bench.postgres("a").in_flight.get(), 0, "broken off for good");
    assert_eq!((bench.fleet.reaped.load(Relaxed), bench.fleet.panics.load(Relaxed)), (1, 0));
    assert_eq!((bench.phases(), bench.fleet.awaited.load(Relaxed)), ([1, 1, 4, 1], 0));
    assert_eq!(bench.redis("a").leased(), 3, "its claims lapse");
}

#[actix::test]
async fn only_so_many_start_at_once() {
    let limits = Limits { start_concurrency: 3, ..limits() };
    let ids: Vec<String> = (0..20).map(|n| format!("t{n:02}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let bench = Bench::with(&ids, limits, options());
    bench.world.mute.set(true);
    tokio::time::sleep(secs(5)).await;
    assert_eq!(bench.world.born.borrow().len(), 3, "they have not said that they are at work");
    bench.world.mute.set(false);
    let stuck: Vec<_> = bench.world.born.borrow().iter().map(|(_, born)| born.clone()).collect();
    for born in &stuck {
        bench.says_ended(born).await;
    }
    bench.all_idle(&ids).await;
    assert_eq!(bench.world.born.borrow().len(), 23);
}
