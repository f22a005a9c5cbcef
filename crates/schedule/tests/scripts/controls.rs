//! The log of actions and the set of paused tenants.

use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_schedule::{Controls, Link, LinkSettings, controls::Order};

const PAUSE: Order<'_> =
    Order { what: "pause", tenant: "acme", key: "tenant:acme:s", worker: "", by: "ann", note: "why not" };

/// A Redis of its own: there is one log per Redis.
async fn controls() -> (RedisServer, Controls) {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let link = Link::new(&LinkSettings::for_url(&server.url())).unwrap();
    (server, Controls::new(link))
}

#[tokio::test]
async fn a_tenant_is_paused_with_a_log_entry_that_names_the_operator() {
    let (_server, controls) = controls().await;
    assert_eq!(controls.newest().await.unwrap(), "0-0");
    let (id, changed) = controls.record(&PAUSE).await.unwrap();
    assert!(changed);
    let paused = controls.paused().await.unwrap();
    let record: serde_json::Value = serde_json::from_str(&paused["tenant:acme:s"]).unwrap();
    assert_eq!(
        (&record["tenant"], &record["by"], &record["note"]),
        (&"acme".into(), &"ann".into(), &"why not".into())
    );
    assert!(record["at"].as_f64().unwrap() > 1.7e9);

    // Who paused it first is who did; the second is in the log all the same.
    let (second, changed) = controls.record(&Order { by: "bob", note: "", ..PAUSE }).await.unwrap();
    assert!(!changed && second != id);
    assert!(controls.paused().await.unwrap()["tenant:acme:s"].contains("ann"));

    let (third, changed) = controls.record(&Order { what: "resume", by: "bob", ..PAUSE }).await.unwrap();
    assert!(changed && controls.paused().await.unwrap().is_empty());
    controls.outcome(&third, "w", "done", "resumed").await.unwrap();

    let log = controls.log().await.unwrap();
    let of = |n: usize, field: &str| log[n].field(field).to_owned();
    assert_eq!(log.len(), 4);
    assert_eq!((of(0, "what"), of(1, "by"), of(2, "what")), ("pause".into(), "bob".into(), "resume".into()));
    assert_eq!((of(3, "kind"), of(3, "of"), of(3, "outcome")), ("outcome".into(), third, "done".into()));
    assert!(log.windows(2).all(|pair| pair[0].at() <= pair[1].at()));
    let after = controls.after(&id).await.unwrap();
    assert_eq!(after.iter().map(|entry| &entry.id).collect::<Vec<_>>()[0], &second);
    assert_eq!((after.len(), controls.newest().await.unwrap()), (3, log[3].id.clone()));
}

#[tokio::test]
async fn the_log_is_read_in_pages_and_trimmed() {
    let (_server, controls) = controls().await;
    for n in 0..2500 {
        let note = n.to_string();
        controls.record(&Order { what: "flush", note: &note, ..PAUSE }).await.unwrap();
    }
    let log = controls.log().await.unwrap();
    assert_eq!(log.len(), 2500);
    assert!(
        log.iter().enumerate().all(|(n, entry)| entry.field("note") == n.to_string()),
        "each once, in order"
    );
    for _ in 0..9000 {
        controls.record(&Order { what: "flush", ..PAUSE }).await.unwrap();
    }
    let left = controls.log().await.unwrap().len();
    assert!((10_000..11_000).contains(&left), "{left} entries left of 11,500");
}
