//! What workers publish: only changes travel, a reader catches up from anywhere, what Redis loses is noticed.

use std::{collections::BTreeMap, time::Duration};

use balance_sync_sandbox::{RedisOptions, RedisServer, eventually};
use balance_sync_schedule::{
    ErrorClass, Link, LinkSettings, Listed, Snapshots,
    snapshots::{PUBLISH_PAGE, Position, Publication},
};

use crate::{SOON, Tenant, ask, common::space_of, tell};

const LIFE: Duration = Duration::from_secs(60);
const INTEREST: Duration = Duration::from_secs(60);

/// The snapshots of a group of its own, on the tests' Redis.
async fn group(name: &str) -> (Tenant, Snapshots) {
    let tenant = Tenant::new(name).await;
    let snapshots = Snapshots::new(tenant.link.clone(), name);
    (tenant, snapshots)
}

fn records(changes: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    changes.iter().map(|(tenant, record)| ((*tenant).to_owned(), record.map(str::to_owned))).collect()
}

/// Publishes one call of incarnation `i`; gives whether it was accepted.
async fn publish(snapshots: &Snapshots, seq: u64, changes: &[(&str, Option<&str>)]) -> bool {
    let page = Publication {
        incarnation: "i",
        seq,
        visible: true,
        worker: "{}",
        tenants: &records(changes),
        ..Publication::default()
    };
    snapshots.publish("w", LIFE, &page).await.unwrap().accepted
}

/// All that a reader learns from its position on, and how many answers that took.
async fn catch_up(
    snapshots: &Snapshots,
    position: &mut Position,
) -> (BTreeMap<String, Option<String>>, usize) {
    let (mut learnt, mut answers) = (BTreeMap::new(), 0);
    loop {
        let changes = snapshots.read("w", position).await.unwrap().unwrap();
        answers += 1;
        *position = changes.position;
        learnt.extend(changes.tenants);
        if !changes.more {
            return (learnt, answers);
        }
    }
}

#[tokio::test]
async fn a_reader_gets_the_changes_since_its_last_call() {
    let (_, snapshots) = group("snapshots-changes").await;
    assert_eq!(snapshots.publishers().await.unwrap(), Listed::default());
    assert!(snapshots.read("w", &Position::default()).await.unwrap().is_none());

    assert!(publish(&snapshots, 1, &[("a", Some("1")), ("b", Some("1"))]).await);
    assert_eq!(snapshots.publishers().await.unwrap().live.into_iter().collect::<Vec<_>>(), ["w"]);
    let mut position = Position::default();
    let (learnt, _) = catch_up(&snapshots, &mut position).await;
    assert_eq!(learnt.len(), 2);

    assert!(publish(&snapshots, 2, &[]).await);
    assert!(catch_up(&snapshots, &mut position).await.0.is_empty(), "nothing has changed");
    assert!(publish(&snapshots, 3, &[("b", Some("2"))]).await);
    assert!(publish(&snapshots, 4, &[("a", None), ("b", Some("3"))]).await);
    let (learnt, _) = catch_up(&snapshots, &mut position).await;
    assert_eq!(learnt, BTreeMap::from([("a".to_owned(), None), ("b".to_owned(), Some("3".to_owned()))]));

    // A worker that begins anew: the reader forgets the incarnation it knew.
    let page = Publication {
        incarnation: "j",
        seq: 1,
        visible: true,
        worker: "{}",
        tenants: &records(&[("c", Some("1"))]),
        ..Publication::default()
    };
    assert!(snapshots.publish("w", LIFE, &page).await.unwrap().accepted);
    let changes = snapshots.read("w", &position).await.unwrap().unwrap();
    assert_eq!((changes.position.incarnation.as_str(), changes.tenants.len()), ("j", 1));

    snapshots.leave("w").await.unwrap();
    assert_eq!(snapshots.publishers().await.unwrap(), Listed::default());
    assert!(snapshots.read("w", &position).await.unwrap().is_none());
}

#[tokio::test]
async fn nothing_is_lost_between_pages() {
    let (_, snapshots) = group("snapshots-pages").await;
    let ids: Vec<String> = (0..13 * PUBLISH_PAGE).map(|n| format!("t{n:05}")).collect();
    for (n, page) in ids.chunks(PUBLISH_PAGE).enumerate() {
        let changes: Vec<_> = page.iter().map(|id| (id.as_str(), Some("x"))).collect();
        assert!(publish(&snapshots, n as u64 + 1, &changes).await);
    }
    let mut position = Position::default();
    let (learnt, answers) = catch_up(&snapshots, &mut position).await;
    assert_eq!(learnt.len(), ids.len());
    assert!(answers > 3, "it was to take several pages");
}

#[tokio::test]
async fn records_lost_by_redis_are_noticed() {
    let (tenant, snapshots) = group("snapshots-lost").await;
    assert!(publish(&snapshots, 1, &[("a", Some("1"))]).await);
    assert!(!publish(&snapshots, 3, &[]).await, "a call in between never arrived");
    assert!(publish(&snapshots, 2, &[]).await);
    let keys: Vec<String> = ask!(tenant, "KEYS", "*worker-1:snapshots-lost*");
    for key in &keys {
        assert!(key.contains("{transactions}"), "{key} is in another slot of a cluster");
        tell!(tenant, "DEL", key);
    }
    assert!(!publish(&snapshots, 3, &[("b", Some("1"))]).await);
    assert!(
        snapshots.read("w", &Position::default()).await.unwrap().is_none(),
        "a refused call does nothing"
    );
    assert!(publish(&snapshots, 1, &[("a", Some("1")), ("b", Some("1"))]).await);
}

#[tokio::test]
async fn facts_are_kept_for_a_long_time_and_what_is_too_long_is_none() {
    let (tenant, snapshots) = group("snapshots-facts").await;
    let read = async || snapshots.facts(&["a", "b"]).await.unwrap();
    assert_eq!(read().await, [None, None]);
    snapshots.record_facts(&[]).await.unwrap();
    snapshots.record_facts(&[("a", "1|x".to_owned()), ("b", "2|y".to_owned())]).await.unwrap();
    snapshots.record_facts(&[("b", "3|z".to_owned())]).await.unwrap();
    assert_eq!(read().await, [Some("1|x".to_owned()), Some("3|z".to_owned())]);
    let keys: Vec<String> = ask!(tenant, "KEYS", "*worker-1:snapshots-facts*");
    let [key] = keys.as_slice() else { panic!("{keys:?}") };
    assert!(key.contains("{transactions}"), "{key} is in another slot of a cluster");
    tell!(tenant, "EXPIRE", key, "10");
    snapshots.record_facts(&[]).await.unwrap();
    assert!(tenant.ttl(key).await > 80 * 86_400_000, "whoever records keeps all of them");
    tell!(tenant, "HSET", key, "a", "x".repeat(2000));
    assert_eq!(read().await, [None, Some("3|z".to_owned())]);
    assert_eq!(snapshots.publishers().await.unwrap(), Listed::default(), "that is no worker");
}

#[tokio::test]
async fn a_silent_worker_is_not_live_and_a_half_published_one_is_hidden() {
    let (tenant, snapshots) = group("snapshots-silent").await;
    let page = Publication { incarnation: "i", seq: 1, worker: "{}", ..Publication::default() };
    let ttl = Duration::from_millis(300);
    assert!(snapshots.publish("w", ttl, &page).await.unwrap().accepted);
    assert_eq!(snapshots.publishers().await.unwrap(), Listed::default(), "more pages are to follow");
    let page = Publication { seq: 2, visible: true, ..page };
    assert!(snapshots.publish("w", ttl, &page).await.unwrap().accepted);
    assert_eq!(snapshots.publishers().await.unwrap().live.len(), 1);
    assert!(snapshots.worker("w").await.unwrap().is_some());
    eventually(SOON, "a silent worker", || async {
        let publishers = snapshots.publishers().await.unwrap();
        publishers.live.is_empty() && publishers.silent.contains("w")
    })
    .await
    .unwrap();
    // What it published last is kept for a while, and not for ever.
    assert!(snapshots.read("w", &Position::default()).await.unwrap().is_some());
    let keys: Vec<String> = ask!(tenant, "KEYS", "*worker-1:snapshots-silent*");
    assert!(keys.len() >= 2, "{keys:?}");
    for key in &keys {
        let left = tenant.ttl(key).await;
        assert!((1..=3_600_000).contains(&left), "{key}: {left} ms");
    }
    // The next publication of another forgets it.
    let page = Publication { seq: 1, ..page };
    assert!(snapshots.publish("v", LIFE, &page).await.unwrap().accepted);
    let publishers = snapshots.publishers().await.unwrap();
    assert_eq!((publishers.live.len(), publishers.silent.len()), (1, 0));
}

#[tokio::test]
async fn a_refusal_of_writes_is_found_without_writing() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let snapshots = Snapshots::new(tenant.link.clone(), "g");
    let changes = async || {
        let info: String = ask!(tenant, "INFO", "persistence");
        info.lines().find(|line| line.starts_with("rdb_changes")).unwrap().to_owned()
    };
    assert!(publish(&snapshots, 1, &[]).await);
    let before = changes().await;
    assert!(snapshots.write_refusal().await.unwrap().is_none());
    assert_eq!(changes().await, before);
    for (begin, end, class) in [
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", ErrorClass::NoReplicas),
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", ErrorClass::OutOfMemory),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", ErrorClass::ReadOnly),
    ] {
        let order = async |command: &str| {
            let mut words = command.split(' ');
            let mut cmd = redis::cmd(words.next().unwrap());
            for word in words {
                cmd.arg(word);
            }
            tenant.run::<()>(&cmd).await;
        };
        order(begin).await;
        assert_eq!(snapshots.write_refusal().await.unwrap().map(|error| error.class), Some(class));
        assert!(!snapshots.publishers().await.unwrap().live.is_empty(), "what was published can be read");
        order(end).await;
        assert!(snapshots.write_refusal().await.unwrap().is_none(), "{end}");
    }
    // A user who may only read says nothing about the server.
    tell!(tenant, "ACL", "SETUSER", "reader", "on", ">word", "~*", "&*", "+@read", "+@connection");
    let url = format!("redis://reader:word@127.0.0.1:{}/0", server.port());
    let reader = Snapshots::new(Link::new(&LinkSettings::for_url(&url)).unwrap(), "g");
    assert!(reader.write_refusal().await.unwrap().is_none());
}

#[tokio::test]
async fn watching_a_tenant_makes_its_workers_publish_details() {
    let (_, snapshots) = group("snapshots-watched").await;
    assert!(publish(&snapshots, 1, &[("a", Some("1"))]).await);
    assert_eq!(snapshots.watch(&["w", "gone"], "a", INTEREST).await.unwrap(), [None, None]);
    let details = [("a".to_owned(), "more".to_owned())];
    let page = Publication {
        incarnation: "i",
        seq: 2,
        visible: true,
        worker: "{}",
        details: &details,
        ..Publication::default()
    };
    let published = snapshots.publish("w", LIFE, &page).await.unwrap();
    assert_eq!(published.watched.into_iter().collect::<Vec<_>>(), ["a"]);
    assert_eq!(
        snapshots.watch(&["w", "gone"], "a", Duration::from_millis(1)).await.unwrap(),
        [Some("more".to_owned()), None]
    );
    eventually(SOON, "the interest to end", || async {
        let page = Publication { incarnation: "i", seq: 1, worker: "{}", ..Publication::default() };
        snapshots.publish("v", LIFE, &page).await.unwrap().watched.is_empty()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_worker_that_stops_without_taking_leave_is_dead_until_it_publishes_again() {
    let (_, snapshots) = group("snapshots-dead").await;
    let publish_as = async |name: &str, life: Duration| {
        let page = Publication {
            incarnation: "i",
            seq: 1,
            visible: true,
            worker: "{}",
            tenants: &records(&[("a", Some("1"))]),
            ..Publication::default()
        };
        assert!(snapshots.publish(name, life, &page).await.unwrap().accepted);
    };
    let short = Duration::from_millis(1);
    let dead = async || snapshots.dead().await.unwrap().into_keys().collect::<Vec<_>>();
    publish_as("drained", short).await;
    snapshots.leave("drained").await.unwrap();
    publish_as("killed", short).await;
    eventually(SOON, "its silence", || async {
        let listed = snapshots.publishers().await.unwrap();
        if listed.silent.contains("killed") { Ok(()) } else { Err(format!("{listed:?}")) }
    })
    .await
    .unwrap();
    assert!(dead().await.is_empty(), "none has looked since");
    publish_as("w", LIFE).await;
    assert_eq!(dead().await, ["killed"]);
    assert!(
        snapshots.read("killed", &Position::default()).await.unwrap().is_some(),
        "what it published stays"
    );
    publish_as("killed", LIFE).await;
    assert!(dead().await.is_empty());
}

#[tokio::test]
async fn groups_with_live_workers_find_each_other() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let link = Link::new(&LinkSettings::for_url(&server.url())).unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|group| Snapshots::new(link.clone(), group));
    assert!(ours.other_groups().await.unwrap().is_empty());
    assert!(publish(&theirs, 1, &[("a", Some("1"))]).await);
    let [found] = &ours.other_groups().await.unwrap()[..] else { panic!("one was expected") };
    assert_eq!(found.group(), "theirs");
    assert!(found.publishers().await.unwrap().live.contains("w"));
    assert!(theirs.other_groups().await.unwrap().is_empty(), "none but itself");
}
