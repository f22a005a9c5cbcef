//! The record of the monthly report: who writes it, and for how long it is kept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use balance_sync_sandbox::{RedisOptions, RedisServer, eventually};
use balance_sync_schedule::{Link, LinkSettings, Reports, reports::Duty};

use super::SOON;

const LEASE: Duration = Duration::from_secs(60);

async fn reports() -> (RedisServer, Reports) {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let link = Link::new(&LinkSettings::for_url(&server.url())).unwrap();
    (server, Reports::new(link, "group"))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn fields(value: &str) -> [(String, String); 1] {
    [("d:01".to_owned(), value.to_owned())]
}

#[tokio::test]
async fn one_worker_records_and_one_that_has_lost_the_duty_overwrites_nothing() {
    let (server, reports) = reports().await;
    let expires = now() + Duration::from_secs(3_600);
    let record = async |who: &str, lease, value: &str| {
        reports.record(who, lease, "2026-11", expires, &fields(value)).await.unwrap().0
    };
    let recorded = async || reports.read("2026-11").await.unwrap().get("d:01").cloned();

    assert_eq!(record("a", LEASE, "early").await, Duty::Taken);
    assert_eq!(recorded().await, None, "what is recorded has to be read before it is written on");
    assert_eq!(record("a", LEASE, "a1").await, Duty::Held);
    assert_eq!(record("b", LEASE, "b1").await, Duty::Other);
    assert_eq!(recorded().await.as_deref(), Some("a1"));

    reports.leave("b").await.unwrap();
    assert_eq!(record("a", Duration::from_millis(1), "a2").await, Duty::Held);
    eventually(SOON, "the lease runs out", async || {
        (record("b", LEASE, "b2").await == Duty::Taken).then_some(()).ok_or("it holds")
    })
    .await
    .unwrap();
    assert_eq!(record("a", LEASE, "a3").await, Duty::Other);
    assert_eq!(recorded().await.as_deref(), Some("a2"));
    assert_eq!(record("b", LEASE, "b3").await, Duty::Held);
    assert_eq!(recorded().await.as_deref(), Some("b3"));

    reports.leave("b").await.unwrap();
    assert_eq!(record("a", LEASE, "a4").await, Duty::Taken);
    // Redis has lost everything: the one with the duty learns it.
    let mut connection = server.connect().await.unwrap();
    let () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    assert_eq!(record("a", LEASE, "a5").await, Duty::Taken);
}

#[tokio::test]
async fn a_record_is_gone_when_its_time_is_over_and_not_before() {
    let (server, reports) = reports().await;
    let hour = Duration::from_secs(3_600);
    for (month, expires) in [("none", now()), ("past", now() - hour), ("kept", now() + hour)] {
        reports.record("a", LEASE, month, expires, &fields("x")).await.unwrap();
    }
    assert!(reports.read("past").await.unwrap().is_empty());
    assert_eq!(reports.read("kept").await.unwrap().len(), 1);
    let mut connection = server.connect().await.unwrap();
    let key = "{transactions}:balance-sync:report-1:group:kept";
    let left: i64 = redis::cmd("TTL").arg(key).query_async(&mut connection).await.unwrap();
    assert!((3_500..=3_600).contains(&left), "{left}");
    // Writing on doesn't put it off.
    reports.record("a", LEASE, "kept", now() - hour, &fields("y")).await.unwrap();
    assert!(reports.read("kept").await.unwrap().is_empty());
}
