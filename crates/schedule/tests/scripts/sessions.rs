//! Sessions of the admin interface: found until they lapse or are ended, and only so many of them.

use std::time::Duration;

use balance_sync_sandbox::{RedisOptions, RedisServer, eventually};
use balance_sync_schedule::{
    Link, LinkSettings, Sessions,
    sessions::{MOST, MOST_OF_A_NAME, SessionRecord},
};
use redis::AsyncCommands;

use super::SOON;

const HASH: &str = "{transactions}:balance-sync:sessions-1:group";
const USES: &str = "{transactions}:balance-sync:sessions-1:group:uses";
const HOUR: Duration = Duration::from_secs(3_600);

async fn redis_and_link() -> (RedisServer, Link) {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let link = Link::new(&LinkSettings::for_url(&server.url())).unwrap();
    (server, link)
}

fn of(name: &str) -> SessionRecord {
    SessionRecord { name: name.to_owned(), role: "operator".to_owned(), fingerprint: "f".repeat(64) }
}

fn keys(list: &[balance_sync_schedule::StoredSession]) -> Vec<&str> {
    list.iter().map(|one| one.key.as_str()).collect()
}

#[tokio::test]
async fn a_session_is_found_listed_and_ended_in_its_group_alone() {
    let (_server, link) = redis_and_link().await;
    let sessions = Sessions::new(link.clone(), "group", HOUR, HOUR * 12);
    let other = Sessions::new(link, "other", HOUR, HOUR * 12);
    assert_eq!(sessions.find("a", true).await.unwrap(), None);
    assert!(sessions.list().await.unwrap().is_empty());
    assert_eq!(sessions.open("a", &of("ann \"b\" ä")).await.unwrap(), 0);
    assert_eq!(sessions.open("b", &of("bob")).await.unwrap(), 0);
    let found = sessions.find("a", true).await.unwrap().unwrap();
    assert_eq!((found.record.clone(), found.key.as_str()), (of("ann \"b\" ä"), "a"));
    assert!(found.created > 1.7e9 && found.used >= found.created, "{found:?}");
    assert_eq!(other.find("a", true).await.unwrap(), None);
    assert_eq!(keys(&sessions.list().await.unwrap()), ["a", "b"]);
    assert_eq!(other.end(&["a".to_owned()]).await.unwrap(), 0);
    assert_eq!(sessions.end(&["a".to_owned(), "c".to_owned()]).await.unwrap(), 1);
    assert_eq!(sessions.find("a", true).await.unwrap(), None);
    assert_eq!(keys(&sessions.list().await.unwrap()), ["b"]);
}

#[tokio::test]
async fn a_session_lapses_without_use_and_at_its_greatest_age() {
    let (server, link) = redis_and_link().await;
    let mut redis = server.connect().await.unwrap();
    let sessions = Sessions::new(link.clone(), "group", HOUR, HOUR * 12);
    let strict = Sessions::new(link.clone(), "group", Duration::from_millis(1), HOUR * 12);
    let short = Sessions::new(link, "group", HOUR, Duration::from_millis(1));
    for lapsing in [&strict, &short] {
        sessions.open("a", &of("ann")).await.unwrap();
        assert!(sessions.find("a", false).await.unwrap().is_some());
        eventually(SOON, "it lapses", async || {
            let listed = lapsing.list().await.unwrap();
            if listed.is_empty() { Ok(()) } else { Err("listed") }
        })
        .await
        .unwrap();
        assert_eq!(lapsing.find("a", true).await.unwrap(), None);
        let left: (u64, u64) = (redis.hlen(HASH).await.unwrap(), redis.zcard(USES).await.unwrap());
        assert_eq!(left, (0, 0), "what has lapsed is gone");
    }
    // A use puts the end off; a look doesn't. The last use is set back instead of waiting.
    sessions.open("a", &of("ann")).await.unwrap();
    let created = sessions.find("a", false).await.unwrap().unwrap().created;
    let () = redis.zadd(USES, "a", created - 1_800.0).await.unwrap();
    assert!(sessions.find("a", false).await.unwrap().unwrap().used < created - 1_000.0);
    assert!(sessions.find("a", true).await.unwrap().unwrap().used >= created);
    assert!(sessions.find("a", false).await.unwrap().unwrap().used >= created);
    // Opening another drops those that have lapsed.
    let () = redis.zadd(USES, "a", created - 3_700.0).await.unwrap();
    sessions.open("b", &of("ann")).await.unwrap();
    let left: Vec<String> = redis.hkeys(HASH).await.unwrap();
    assert_eq!(left, ["b"]);
    let ttl: i64 = redis.ttl(HASH).await.unwrap();
    assert!((43_000..=43_200).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn beyond_the_limits_the_session_unused_for_longest_ends() {
    let (server, link) = redis_and_link().await;
    let sessions = Sessions::new(link, "group", HOUR, HOUR * 12);
    for n in 0..MOST_OF_A_NAME {
        assert_eq!(sessions.open(&format!("a{n}"), &of("ann")).await.unwrap(), 0);
    }
    let mut redis = server.connect().await.unwrap();
    let now = sessions.find("a0", false).await.unwrap().unwrap().created;
    let () = redis.zadd(USES, "a0", now + 100.0).await.unwrap();
    assert_eq!(sessions.open("a", &of("ann")).await.unwrap(), 1);
    assert_eq!(sessions.find("a1", true).await.unwrap(), None);
    assert!(sessions.find("a0", true).await.unwrap().is_some());
    for n in MOST_OF_A_NAME..MOST {
        assert_eq!(sessions.open(&format!("b{n}"), &of(&format!("bob-{n}"))).await.unwrap(), 0);
    }
    assert_eq!(sessions.open("c", &of("carl")).await.unwrap(), 1);
    assert_eq!(sessions.find("a2", true).await.unwrap(), None);
    assert_eq!(sessions.list().await.unwrap().len(), MOST);
}

#[tokio::test]
async fn foreign_data_in_the_place_of_sessions_are_not_taken_for_sessions() {
    let (server, link) = redis_and_link().await;
    let sessions = Sessions::new(link, "group", HOUR, HOUR * 12);
    sessions.open("a", &of("ann")).await.unwrap();
    let mut redis = server.connect().await.unwrap();
    let now = sessions.find("a", false).await.unwrap().unwrap().created;
    let long = format!("{now:.6} {}", "x".repeat(2_000));
    for (key, value) in [("long", long.as_str()), ("none", "{}"), ("no-json", "1795380490.000000 x")] {
        let () = redis.hset(HASH, key, value).await.unwrap();
        let () = redis.zadd(USES, key, now).await.unwrap();
        assert!(!matches!(sessions.find(key, true).await, Ok(Some(_))), "{key}");
    }
    assert_eq!(keys(&sessions.list().await.unwrap()), ["a"]);
    // Uses were evicted: who signed in has to do it again.
    let () = redis.del(USES).await.unwrap();
    assert_eq!(sessions.find("a", true).await.unwrap(), None);
    sessions.open("a", &of("ann")).await.unwrap();
    assert!(sessions.find("a", true).await.unwrap().is_some());
    // Far more than there may be.
    for n in 0..=MOST {
        let () = redis.hset(HASH, format!("f{n}"), "x").await.unwrap();
    }
    sessions.open("b", &of("bob")).await.unwrap();
    assert_eq!(keys(&sessions.list().await.unwrap()), ["b"]);
}

#[tokio::test]
async fn a_redis_that_refuses_writes_still_says_who_is_signed_in() {
    let (server, link) = redis_and_link().await;
    let sessions = Sessions::new(link, "group", HOUR, HOUR * 12);
    sessions.open("a", &of("ann")).await.unwrap();
    let mut redis = server.connect().await.unwrap();
    let created = sessions.find("a", false).await.unwrap().unwrap().created;
    let () = redis.zadd(USES, "a", created - 600.0).await.unwrap();
    let () = redis::cmd("CONFIG")
        .arg(&["SET", "min-replicas-to-write", "1"])
        .query_async(&mut redis)
        .await
        .unwrap();
    assert!(sessions.open("b", &of("bob")).await.is_err());
    let found = sessions.find("a", true).await.unwrap().unwrap();
    assert!(found.used < created, "{found:?}");
}
