//! What workers publish: only changes travel, a reader catches up from anywhere, what Redis loses is noticed.

use std::{collections::BTreeMap, time::Duration};

use balance_sync_sandbox::eventually;
use balance_sync_schedule::{
    Snapshots,
    snapshots::{PUBLISH_PAGE, Position, Publication},
};

use crate::{SOON, Tenant, ask, tell};

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
    assert!(snapshots.names().await.unwrap().is_empty());
    assert!(snapshots.read("w", &Position::default()).await.unwrap().is_none());

    assert!(publish(&snapshots, 1, &[("a", Some("1")), ("b", Some("1"))]).await);
    assert_eq!(snapshots.names().await.unwrap().into_iter().collect::<Vec<_>>(), ["w"]);
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
    assert!(snapshots.names().await.unwrap().is_empty());
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
async fn a_silent_worker_expires_and_a_half_published_one_is_hidden() {
    let (tenant, snapshots) = group("snapshots-silent").await;
    let page = Publication { incarnation: "i", seq: 1, worker: "{}", ..Publication::default() };
    let ttl = Duration::from_millis(300);
    assert!(snapshots.publish("w", ttl, &page).await.unwrap().accepted);
    assert!(snapshots.names().await.unwrap().is_empty(), "more pages are to follow");
    let page = Publication { seq: 2, visible: true, ..page };
    assert!(snapshots.publish("w", ttl, &page).await.unwrap().accepted);
    assert_eq!(snapshots.names().await.unwrap().len(), 1);
    assert!(snapshots.worker("w").await.unwrap().is_some());
    eventually(SOON, "nothing left in Redis", || async {
        let left: Vec<String> = ask!(tenant, "KEYS", "*worker-1:snapshots-silent*");
        left.is_empty()
    })
    .await
    .unwrap();
    assert!(snapshots.worker("w").await.unwrap().is_none());
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
