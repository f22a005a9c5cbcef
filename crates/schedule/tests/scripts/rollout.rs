//! Which tenants are served: changed by one operator at a time, with an entry in the log, and read with care.

use std::collections::BTreeSet;

use balance_sync_engine::rollout::{Change, Pattern, Selection, Share};
use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_schedule::{
    Controls, Link, LinkSettings, Rollouts,
    rollout::{Changed, HISTORY_ENTRIES, RolloutChange},
};
use redis::AsyncCommands;

const KEY: &str = "{transactions}:balance-sync:rollout";

async fn rollouts() -> (RedisServer, Rollouts, Controls) {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let link = Link::new(&LinkSettings::for_url(&server.url())).unwrap();
    (server, Rollouts::new(link.clone()), Controls::new(link))
}

fn selection(include: &[&str], parts: u16) -> Selection {
    let include = include.iter().map(|text| Pattern::parse(text).unwrap()).collect();
    Selection::new(include, BTreeSet::new(), Share::of_ten_thousand(parts).unwrap()).unwrap()
}

fn change<'a>(expected: &'a str, selection: Option<&'a Selection>, change: &'a str) -> RolloutChange<'a> {
    RolloutChange { expected, selection, change, by: "ann", note: "why \"not\"" }
}

#[tokio::test]
async fn of_two_changes_of_one_revision_one_is_stored() {
    let (_server, rollouts, controls) = rollouts().await;
    assert_eq!(rollouts.read().await.unwrap(), None);
    let five = selection(&["acme"], 500);
    let Changed::Stored { action, revision } =
        rollouts.change(&change("", Some(&five), "set 5%")).await.unwrap()
    else {
        panic!("not stored")
    };
    assert_eq!(revision, "1");
    let late = rollouts.change(&change("", Some(&selection(&[], 10_000)), "all")).await.unwrap();
    assert_eq!(late, Changed::Overtaken("1".to_owned()));
    let stored = rollouts.read().await.unwrap().unwrap();
    assert_eq!(stored.selection, Ok(Some(five)));
    assert_eq!((stored.number(), &*stored.by, &*stored.note), (1, "ann", "why \"not\""));
    assert!(stored.at > 1.7e9, "{}", stored.at);

    // What was refused is in no log.
    let log = controls.log().await.unwrap();
    assert_eq!(log.len(), 1);
    let fields = ["kind", "what", "change", "revision", "by"].map(|name| log[0].field(name));
    assert_eq!(fields, ["action", "rollout", "set 5%", "1", "ann"]);
    assert_eq!(log[0].id, action);

    // Back to the configuration: the revisions go on.
    let reset = rollouts.change(&change("1", None, "reset")).await.unwrap();
    assert!(matches!(reset, Changed::Stored { revision, .. } if revision == "2"));
    let stored = rollouts.read().await.unwrap().unwrap();
    assert_eq!((stored.number(), stored.selection), (2, Ok(None)));
    let history = rollouts.history().await.unwrap();
    let texts: Vec<&str> = history.iter().map(|entry| entry.change.as_str()).collect();
    assert_eq!(texts, ["reset", "set 5%"]);
    assert_eq!(history[1].selection, Ok(Some(selection(&["acme"], 500))));
}

#[tokio::test]
async fn the_history_is_bounded() {
    let (server, rollouts, _) = rollouts().await;
    let none = Selection::default().after(&Change::None).unwrap();
    let mut expected = String::new();
    for n in 0..HISTORY_ENTRIES + 20 {
        let text = format!("change {n}");
        match rollouts.change(&change(&expected, Some(&none), &text)).await.unwrap() {
            Changed::Stored { revision, .. } => expected = revision,
            Changed::Overtaken(by) => panic!("overtaken by {by}"),
        }
    }
    let mut redis = server.connect().await.unwrap();
    let kept: usize = redis.hlen("{transactions}:balance-sync:rollout-history").await.unwrap();
    assert_eq!(kept, HISTORY_ENTRIES);
    let history = rollouts.history().await.unwrap();
    assert_eq!((history.len(), &*history[0].revision), (HISTORY_ENTRIES, "120"));
}

#[tokio::test]
async fn what_was_written_by_hand_is_bounded_and_can_be_replaced() {
    let (server, rollouts, _) = rollouts().await;
    let mut redis = server.connect().await.unwrap();
    for (field, value) in [
        ("selection", "{".to_owned()),
        ("selection", "x".repeat(4 << 20)),
        ("revision", "x".repeat(1 << 20)),
        ("revision", "-7".to_owned()),
        ("revision", "99999999999999999999".to_owned()),
        ("by", "\u{1b}]0;x\u{7}".repeat(10_000)),
        ("at", "nan".to_owned()),
    ] {
        let _: () = redis.del(KEY).await.unwrap();
        let _: () = redis.hset(KEY, field, &value).await.unwrap();
        let stored = rollouts.read().await.unwrap().unwrap();
        assert!(field != "selection" || stored.selection.is_err(), "{field}");
        assert!(stored.by.len() < 10_000 && !stored.by.chars().any(char::is_control), "{}", stored.by);
        assert!(stored.revision.len() <= 64 && stored.at.is_finite());
        let all = Selection::default();
        let replaced = rollouts.change(&change(&stored.revision, Some(&all), "all")).await.unwrap();
        assert!(matches!(replaced, Changed::Stored { .. }), "{field}: {replaced:?}");
        assert_eq!(rollouts.read().await.unwrap().unwrap().selection, Ok(Some(all)));
    }
    // A key of another type is an error, and no rollout.
    let _: () = redis.del(KEY).await.unwrap();
    let _: () = redis.set(KEY, "1").await.unwrap();
    let error = rollouts.read().await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("WRONGTYPE"), "{error}");
}
