//! The log of actions and the set of paused tenants.

use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_schedule::{
    Controls, Link, LinkSettings, Loss,
    controls::{Acknowledgement, Order},
};

use crate::{Tenant, common::space_of};

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

async fn only(controls: &Controls) -> Acknowledgement {
    let mut all = controls.acknowledged().await.unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[tokio::test]
async fn an_acknowledgement_of_entries_holds_until_one_more_comes_whatever_went_meanwhile() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("acknowledged"), &server.url()).await;
    let controls = Controls::new(tenant.link.clone());
    // The other form of a tenant's id is read with its own.
    let spaces = [tenant.space.clone(), space_of("other-form")];
    let schedule = tenant.lease_mode();
    let key = tenant.space.schedule().to_owned();
    let order = Order { what: "acknowledge", key: &key, ..PAUSE };

    let (_, any) = controls.acknowledge(&order, &spaces).await.unwrap();
    assert!(!any && controls.acknowledged().await.unwrap().is_empty(), "nothing stands there");

    let [a, b] = [tenant.quarantined("a", "one").await, tenant.quarantined("b", "two").await];
    let (id, any) = controls.acknowledge(&order, &spaces).await.unwrap();
    let found = only(&controls).await;
    assert!(any && found.at > 1.7e9);
    assert_eq!(
        (found.tenant.as_str(), found.by.as_str(), found.note.as_deref()),
        ("acme", "ann", Some("why not"))
    );
    assert_eq!((found.entries, found.losses, found.since), (2, 0, 0));
    let entry = controls.log().await.unwrap().into_iter().find(|entry| entry.id == id).unwrap();
    assert_eq!((entry.field("what"), entry.field("entries")), ("acknowledge", "2"));

    // The same balance is refused again: known. One goes and another one comes: as many as before, and not known.
    tenant.quarantined("a", "three").await;
    assert_eq!(only(&controls).await.since, 0);
    schedule.quarantine_drop(&[b.as_bytes()]).await.unwrap();
    assert_eq!(only(&controls).await.since, 0);
    tenant.quarantined("c", "four").await;
    assert_eq!((only(&controls).await.since, schedule.quarantine_len().await.unwrap()), (1, 2));

    // A loss counts whenever it is recorded: each time another mutation is gone.
    controls.acknowledge(&Order { by: "bob", ..order }, &spaces).await.unwrap();
    assert_eq!((only(&controls).await.by.as_str(), only(&controls).await.since), ("bob", 0));
    let loss = Loss { confirmed: true, detail: "the row lacks it".to_owned(), ..Loss::default() };
    for times in 1..3 {
        tenant.mutate("d", "five").await;
        let claim = schedule.claim(1).await.unwrap();
        schedule.record_losses(&[(&claim.entries[0], loss.clone())]).await.unwrap();
        assert_eq!(only(&controls).await.since, times);
    }
    controls.acknowledge(&order, &spaces).await.unwrap();
    assert_eq!((only(&controls).await.entries, only(&controls).await.losses), (3, 1));

    // Redis has lost how many there were: what was acknowledged is not known any more.
    crate::tell!(tenant, "DEL", "{transactions}:balance-sync:entry-events");
    assert_eq!(only(&controls).await.since, u64::MAX);

    schedule
        .quarantine_drop(&[a.as_bytes(), tenant.member("c").as_bytes(), tenant.member("d").as_bytes()])
        .await
        .unwrap();
    controls.acknowledge(&order, &spaces).await.unwrap();
    assert!(controls.acknowledged().await.unwrap().is_empty(), "nothing is left to acknowledge");
}
