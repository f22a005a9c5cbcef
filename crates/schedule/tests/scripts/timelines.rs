//! What is kept for a day: entries per tenant, until when workers have recorded them, and the fleet's history.

use std::{
    io::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_schedule::{
    Link, LinkSettings, Timelines,
    timelines::{KEPT_MS, MINUTES, MOST_ENTRIES, MOST_MINUTES, MOST_PERIODS, NewEntry, Run},
};
use redis::{FromRedisValue, aio::MultiplexedConnection};

const HOUR: u64 = 60 * 60 * 1000;

struct Bench {
    _server: RedisServer,
    connection: MultiplexedConnection,
    timelines: Timelines,
    now: u64,
}

impl Bench {
    async fn start() -> Self {
        let server = RedisServer::start(RedisOptions::default()).await.unwrap();
        let link = Link::new(&LinkSettings::for_url(&server.url())).unwrap();
        let connection = server.connect().await.unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        Self { _server: server, connection, timelines: Timelines::new(link, "group"), now }
    }

    async fn record(&self, run: &str, known: bool, entries: &[NewEntry<'_>]) -> bool {
        let run = Run { id: run, known, until: self.now, period: run };
        self.timelines.record(run, entries).await.unwrap()
    }

    async fn texts(&self, tenant: &str) -> Vec<String> {
        let entries = self.timelines.entries(tenant, 0).await.unwrap();
        entries.into_iter().map(|entry| format!("{} {}", entry.id, entry.text)).collect()
    }

    async fn run<T: FromRedisValue>(&self, cmd: &mut redis::Cmd) -> T {
        cmd.query_async(&mut self.connection.clone()).await.unwrap()
    }
}

fn entry<'a>(tenant: &'a str, at: u64, text: &'a str) -> NewEntry<'a> {
    NewEntry { tenant, only_if_known: false, at, text }
}

#[tokio::test]
async fn entries_are_read_in_order_of_time_and_an_entry_is_replaced_by_its_newer_form() {
    let bench = Bench::start().await;
    let now = bench.now;
    assert!(bench.record("a", false, &[entry("t", now - 10, "one"), entry("u", now, "other")]).await);
    assert!(bench.record("b", false, &[entry("t", now - 20, "zero"), entry("t", now - 10, "at once")]).await);
    assert!(bench.record("a", true, &[entry("t", now - 10, "one|newer")]).await);
    // An answer was lost: the same once more.
    assert!(bench.record("a", true, &[entry("t", now - 10, "one|newer")]).await);
    assert_eq!(bench.texts("t").await, ["b zero", "a one|newer", "b at once"]);
    assert_eq!(bench.texts("u").await, ["a other"]);
    let since = bench.timelines.entries("t", now - 10).await.unwrap();
    assert_eq!((since.len(), since[0].at), (2, now - 10));
}

#[tokio::test]
async fn what_matters_only_after_other_entries_is_recorded_only_then() {
    let bench = Bench::start().await;
    let well = |tenant, text| NewEntry { only_if_known: true, ..entry(tenant, bench.now, text) };
    bench.record("a", false, &[well("t", "well"), well("u", "well")]).await;
    assert_eq!(bench.texts("t").await, Vec::<String>::new());
    bench
        .record("a", true, &[entry("t", bench.now - 5, "trouble"), well("t", "well"), well("u", "well")])
        .await;
    assert_eq!(bench.texts("t").await, ["a trouble", "a well"]);
    assert_eq!(bench.texts("u").await, Vec::<String>::new());
    let keys: Vec<String> = bench.run(redis::cmd("KEYS").arg("*")).await;
    assert_eq!(keys.len(), 2, "a tenant without entries has no key: {keys:?}");
}

#[tokio::test]
async fn entries_are_bounded_in_age_and_number_and_all_keys_expire() {
    let bench = Bench::start().await;
    let texts: Vec<String> = (0..MOST_ENTRIES + 40).map(|n| n.to_string()).collect();
    let old = entry("t", bench.now - KEPT_MS - HOUR, "old");
    bench.record("a", false, &[old, entry("t", bench.now - KEPT_MS + HOUR, "young")]).await;
    assert_eq!(bench.texts("t").await, ["a young"]);
    for page in texts.chunks(100) {
        let first: u64 = page[0].parse().unwrap();
        let page: Vec<NewEntry<'_>> =
            page.iter().enumerate().map(|(n, text)| entry("t", bench.now + first + n as u64, text)).collect();
        bench.record("a", true, &page).await;
    }
    let left = bench.texts("t").await;
    assert_eq!((left.len(), left[0].as_str()), (MOST_ENTRIES, "a 40"), "the oldest have gone");
    bench.timelines.record_minute(1, "a", "x").await.unwrap();
    let keys: Vec<String> = bench.run(redis::cmd("KEYS").arg("*")).await;
    assert_eq!(keys.len(), 3);
    for key in keys {
        let ttl: u64 = bench.run(redis::cmd("PTTL").arg(&key)).await;
        assert!((KEPT_MS - HOUR..=KEPT_MS).contains(&ttl), "{key}: {ttl}");
    }
}

#[tokio::test]
async fn a_run_whose_record_redis_has_lost_learns_it_and_nothing_is_recorded_as_if_it_were_whole() {
    let bench = Bench::start().await;
    assert!(bench.record("a", false, &[entry("t", bench.now, "one")]).await);
    let () = bench.run(&mut redis::cmd("FLUSHALL")).await;
    assert!(!bench.record("a", true, &[entry("t", bench.now, "two")]).await);
    assert!(bench.texts("t").await.is_empty() && bench.timelines.periods().await.unwrap().is_empty());
    assert!(bench.record("a2", false, &[entry("t", bench.now, "two")]).await);
    assert_eq!(bench.texts("t").await, ["a2 two"]);
}

#[tokio::test]
async fn periods_are_bounded_in_age_and_number() {
    let bench = Bench::start().await;
    let record = async |id: &str, until| {
        let run = Run { id, known: false, until, period: id };
        assert!(bench.timelines.record(run, &[]).await.unwrap());
    };
    record("old", bench.now - KEPT_MS - HOUR).await;
    record("young", bench.now - KEPT_MS + HOUR).await;
    let periods = bench.timelines.periods().await.unwrap();
    assert_eq!(periods.into_iter().collect::<Vec<_>>(), [("young".to_owned(), "young".to_owned())]);
    for n in 0..MOST_PERIODS as u64 {
        record(&format!("r{n}"), bench.now + n).await;
    }
    let periods = bench.timelines.periods().await.unwrap();
    assert_eq!(periods.len(), MOST_PERIODS);
    assert!(!periods.contains_key("young") && periods.contains_key("r0"));
}

#[tokio::test]
async fn the_history_has_what_each_run_saw_of_a_minute_and_is_bounded() {
    let bench = Bench::start().await;
    let now = bench.now / 60_000;
    let record = async |minute, run: &str, text: &str| {
        bench.timelines.record_minute(minute, run, text).await.unwrap();
    };
    record(now - 1, "a", "early").await;
    record(now - 1, "a", "late").await;
    record(now - 1, "b", "other").await;
    let read = bench.timelines.minutes().await.unwrap();
    assert_eq!(read, [(now - 1, "late".to_owned()), (now - 1, "other".to_owned())]);
    // Those that are too old go when there are many.
    for n in 0..MINUTES {
        record(now - MINUTES - 100 + n, "a", "x").await;
    }
    let read = bench.timelines.minutes().await.unwrap();
    assert!(read[0].0 >= now - MINUTES && read.len() < MINUTES as usize, "{} from {}", read.len(), read[0].0);
    // Many runs in a few minutes, as workers that take turns might write.
    for n in 0..MOST_MINUTES + 50 {
        let run = n.to_string();
        record(now, run.as_str(), "x").await;
    }
    assert_eq!(bench.timelines.minutes().await.unwrap().len(), MOST_MINUTES);
}

/// What ten thousand tenants that all failed once take, and what one takes that failed all day; printed for the documentation.
#[tokio::test]
async fn the_memory_of_ten_thousand_tenants_is_bounded() {
    const TENANTS: usize = 10_000;
    let bench = Bench::start().await;
    let used = async || -> u64 {
        let info: String = bench.run(redis::cmd("INFO").arg("memory")).await;
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
        line.trim().parse().unwrap()
    };
    let text = |n: u64, rest: &str| {
        format!(r#"{{"w":"balance-sync-7f9c6d5b8-x2x4q","a":{},"k":"state","s":{rest}}}"#, bench.now + n)
    };
    let cause = format!(r#""degraded","r":"postgres_connection","d":"{}""#, "x".repeat(100));
    // A failure, its end, and two restarts of the worker.
    let texts = [cause.as_str(), r#""syncing""#, r#""idle""#, r#""idle""#].into_iter().enumerate();
    let texts: Vec<String> = texts.map(|(n, rest)| text(n as u64, rest)).collect();
    let ids: Vec<String> = (0..TENANTS).map(|n| format!("00000000-0000-4000-8000-{n:012}")).collect();
    let before = used().await;
    for (n, page) in ids.chunks(50).enumerate() {
        let mut entries: Vec<NewEntry<'_>> = Vec::new();
        for id in page {
            entries.extend(texts.iter().zip(0..).map(|(text, n)| entry(id, bench.now + n, text)));
        }
        assert!(bench.record("a123456789abcdef", n > 0, &entries).await);
    }
    let four = used().await - before;
    let texts: Vec<String> = (0..MOST_ENTRIES as u64).map(|n| text(n, &cause)).collect();
    let full: Vec<NewEntry<'_>> =
        texts.iter().zip(0..).map(|(text, n)| entry("full", bench.now + n, text)).collect();
    for page in full.chunks(200) {
        bench.record("a123456789abcdef", true, page).await;
    }
    let most: u64 = bench.run(redis::cmd("MEMORY").arg("USAGE").arg(bench.timelines.key("full"))).await;
    let minute = format!(
        r#"{{"n":6,"v":"degraded","w":"{}","r":4321.5,"l":250,"d":123456,"o":65000,"k":4,"s":{{"idle":9000,"syncing":500,"degraded":500}}}}"#,
        "x".repeat(160)
    );
    let before = used().await;
    for n in 0..MINUTES {
        bench.timelines.record_minute(bench.now / 60_000 - n, "a123456789abcdef", &minute).await.unwrap();
    }
    let history = used().await - before;
    let said = format!(
        "10,000 tenants with 4 entries: {four} bytes; a full timeline: {most}; the history: {history}\n"
    );
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    assert_eq!(bench.texts(&ids[0]).await.len(), 4);
    assert!(four < 30_000_000, "{four}");
    assert!(most < 150_000, "{most}");
    assert!(history < 1_500_000, "{history}");
}
