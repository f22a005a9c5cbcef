//! The end of our service to a tenant: only under the rollout that keeps all workers away, and nothing of the ledger's is touched.

use std::time::Duration;

use balance_sync_domain::QuarantineReason;
use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_schedule::{
    Controls, Loss, Neighbours, Recoveries, Retirement,
    controls::Order,
    retire::{Cleared, Forgotten, OwnKey, entries, own_keys},
};

use crate::{Tenant, all, ask, common::space_of, names, number, refusal, tell};

const ROLLOUT: &str = "{transactions}:balance-sync:rollout";

/// A tenant on a server of its own, with revision 3 of a rollout.
async fn tenant(id: &str) -> (RedisServer, Tenant) {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of(id), server.url().as_str()).await;
    tell!(tenant, "HSET", ROLLOUT, "revision", "3");
    (server, tenant)
}

fn under(tenant: &Tenant, revision: &str) -> Retirement {
    Retirement::new(tenant.link.clone(), revision.to_owned())
}

fn is_lease(score: &str) -> bool {
    let micros = number(score) * 1e6;
    (micros - micros.round()).abs() > 0.25
}

#[tokio::test]
async fn what_a_dead_worker_holds_is_due_again_and_a_late_one_settles_nothing() {
    let (_server, tenant) = tenant("back").await;
    for n in 0..600 {
        tenant.mutate(&format!("m{n}"), "{}").await;
    }
    let dead = tenant.lock_mode("dead:1");
    let claim = dead.claim(450).await.unwrap();
    assert_eq!(claim.entries.len(), 450);
    // One that the ledger's own worker holds, one that the ledger has scheduled ahead, and one whose claim has lapsed.
    let theirs = tenant.member("m599");
    tell!(tenant, "SET", tenant.space.lock(theirs.as_bytes()), "1");
    let ahead = tenant.member("ahead");
    tenant.schedule(&ahead, "99999999999.000001").await;
    let lapsed = tenant.member("lapsed");
    tenant.schedule(&lapsed, "1700000000.0000005").await;
    let before = tenant.score(&theirs).await;

    let counted = under(&tenant, "3").give_back(&tenant.space, 0, false).await.unwrap().unwrap();
    assert_eq!((counted.members, counted.held, counted.unlocked), (602, 451, 450));
    assert_eq!((counted.locked, counted.ahead, counted.raised), (1, 1, 0));
    assert_eq!(tenant.lock_of(names(&claim.entries)[0]).await.as_deref(), Some("dead:1"), "only counted");

    let day = u64::try_from(Duration::from_hours(24).as_millis()).unwrap();
    let given = under(&tenant, "3").give_back(&tenant.space, day, true).await.unwrap().unwrap();
    assert_eq!((given.held, given.unlocked, given.raised), (451, 450, 600));
    let now: Vec<String> = ask!(tenant, "TIME");
    for member in names(&claim.entries).into_iter().chain([lapsed.as_str()]) {
        let score = tenant.score(member).await.unwrap();
        assert!(!is_lease(&score) && number(&score) <= number(&now[0]) + 1.0, "{score}");
        assert_eq!(tenant.lock_of(member).await, None);
    }
    assert!(tenant.ttl(names(&claim.entries)[0]).await > 86_000_000);
    assert_eq!((tenant.score(&theirs).await, tenant.lock_of(&theirs).await.as_deref()), (before, Some("1")));
    assert_eq!(number(&tenant.score(&ahead).await.unwrap()), 99_999_999_999.000_001);
    // The worker wasn't dead.
    let settled = dead.settle(&all(&claim.entries)).await.unwrap();
    assert_eq!((settled.removed, settled.kept), (0, 450));
    let scheduled: u64 = ask!(tenant, "ZCARD", tenant.space.schedule());
    assert_eq!(scheduled, 602);
    let again = under(&tenant, "3").give_back(&tenant.space, day, true).await.unwrap().unwrap();
    assert_eq!((again.held, again.unlocked, again.raised), (0, 0, 0));
}

#[tokio::test]
async fn members_without_a_value_are_named_also_when_they_are_only_counted() {
    let (_server, tenant) = tenant("gone").await;
    let (kept, _) = tenant.mutate("kept", "{}").await;
    let (held, _) = tenant.mutate("held", "{}").await;
    tenant.lock_mode("dead:1").claim(2).await.unwrap();
    let (due, _) = tenant.mutate("due", "{}").await;
    tell!(tenant, "DEL", &held, &due);
    // Another tenant's, which may be elsewhere.
    tenant.schedule("tenant:other:balance:{transactions}:o:l:@a#default", "1").await;
    let expected: std::collections::BTreeSet<Vec<u8>> =
        [held.clone(), due.clone()].map(String::into_bytes).into();
    for (revision, act) in [("3", false), ("", false), ("3", true)] {
        let found = under(&tenant, revision).give_back(&tenant.space, 1, act).await.unwrap().unwrap();
        assert_eq!((found.gone, found.members), (expected.clone(), 4), "{revision:?} {act}");
    }
    for member in [&kept, &held, &due] {
        assert!(!is_lease(&tenant.score(member).await.unwrap()), "none is removed");
    }
}

#[tokio::test]
async fn under_another_rollout_nothing_is_done() {
    let (_server, tenant) = tenant("other").await;
    let member = tenant.quarantined("a", "{}").await;
    tenant.mutate("b", "{}").await;
    tenant.lock_mode("one:1").claim(1).await.unwrap();
    let held = tenant.score(&tenant.member("b")).await;
    let listed = entries(&tenant.lease_mode()).await.unwrap();
    for revision in ["2", "4", ""] {
        let retirement = under(&tenant, revision);
        assert_eq!(retirement.give_back(&tenant.space, 1, true).await.unwrap(), None);
        assert_eq!(retirement.clear(&tenant.space, &[(&listed[0], true)]).await.unwrap(), None);
        assert_eq!(
            retirement.forget("other", std::slice::from_ref(&tenant.space), &[], false, true).await.unwrap(),
            None
        );
        let locks = [tenant.space.lock(tenant.member("b").as_bytes())];
        assert_eq!(retirement.remove_locks(&locks).await.unwrap(), None);
    }
    assert_eq!(tenant.score(&tenant.member("b")).await, held);
    assert_eq!(tenant.lock_of(&tenant.member("b")).await.as_deref(), Some("one:1"));
    assert_eq!(tenant.score(&member).await, None);
    assert_eq!(tenant.lease_mode().quarantine_len().await.unwrap(), 1);
}

#[tokio::test]
async fn entries_are_cleared_only_as_they_were_read() {
    let (_server, tenant) = tenant("entries").await;
    let (a, b) = (tenant.quarantined("a", "{}").await, tenant.quarantined("b", "{}").await);
    let schedule = tenant.lease_mode();
    let (c, _) = tenant.mutate("c", "{}").await;
    let claim = schedule.claim(1).await.unwrap();
    schedule.record_losses(&[(&claim.entries[0], Loss::default())]).await.unwrap();
    let listed = entries(&schedule).await.unwrap();
    assert_eq!(listed.len(), 3);
    assert!(listed[0].quarantined.is_some() && listed[2].lost.is_some());
    assert_eq!(listed[2].read().unwrap().reason, QuarantineReason::ValueLost);
    // One is renewed meanwhile.
    tenant.mutate("b", "{}").await;
    let claim = schedule.claim(1).await.unwrap();
    schedule.quarantine(&[(&claim.entries[0], refusal(QuarantineReason::MissingRow))]).await.unwrap();
    tell!(tenant, "PERSIST", &a);
    let mut entry: serde_json::Value =
        serde_json::from_slice(listed[0].quarantined.as_ref().unwrap()).unwrap();
    entry["kept_alive"] = true.into();
    tell!(tenant, "HSET", tenant.space.quarantine(), &a, entry.to_string());
    let listed: Vec<_> =
        entries(&schedule).await.unwrap().into_iter().take(1).chain(listed.into_iter().skip(1)).collect();

    let wanted: Vec<_> = listed.iter().map(|entry| (entry, entry.member == a.as_bytes())).collect();
    let cleared = under(&tenant, "3").clear(&tenant.space, &wanted).await.unwrap().unwrap();
    assert_eq!(cleared, Cleared { cleared: 2, scheduled: 1, changed: 1 });
    assert!(!is_lease(&tenant.score(&a).await.unwrap()), "as a producer would have scheduled it");
    assert!(tenant.ttl(&a).await > 86_000_000, "it was kept alive for its entry");
    assert_eq!((tenant.score(&b).await, tenant.score(&c).await), (None, None));
    let left = entries(&schedule).await.unwrap();
    assert_eq!(left.iter().map(|entry| entry.member.as_slice()).collect::<Vec<_>>(), [b.as_bytes()]);
}

#[tokio::test]
async fn what_is_scheduled_for_its_entry_gets_a_day_and_without_a_value_the_entry_stays() {
    let (_server, tenant) = tenant("day").await;
    let (a, b) = (tenant.quarantined("a", "{}").await, tenant.quarantined("b", "{}").await);
    tell!(tenant, "EXPIRE", &a, 600);
    tell!(tenant, "DEL", &b);
    let listed = entries(&tenant.lease_mode()).await.unwrap();
    let wanted: Vec<_> = listed.iter().map(|entry| (entry, true)).collect();
    let cleared = under(&tenant, "3").clear(&tenant.space, &wanted).await.unwrap().unwrap();
    assert_eq!(cleared, Cleared { cleared: 1, scheduled: 1, changed: 1 });
    assert!(tenant.ttl(&a).await > 86_000_000);
    assert_eq!(tenant.score(&b).await, None, "it would be dropped unwritten");
    let left = entries(&tenant.lease_mode()).await.unwrap();
    assert_eq!(left.iter().map(|entry| entry.member.as_slice()).collect::<Vec<_>>(), [b.as_bytes()]);
}

#[tokio::test]
async fn what_nobody_has_acknowledged_and_a_recovery_under_way_stay() {
    const OPEN: &str = "{transactions}:balance-sync:vanished";
    let (_server, tenant) = tenant("acme").await;
    let controls = Controls::new(tenant.link.clone());
    let schedule = tenant.space.schedule();
    let order = Order { what: "pause", tenant: "acme", key: schedule, by: "ann", ..Order::default() };
    controls.record(&order).await.unwrap();
    tell!(tenant, "HSET", OPEN, "acme", "{}");
    let recoveries = Recoveries::new(tenant.link.clone());
    assert!(recoveries.lease("acme", "r1", Duration::from_secs(60)).await.unwrap());
    recoveries.write("acme", "{}").await.unwrap();
    recoveries.stop("acme", "r1").await.unwrap();
    let retirement = under(&tenant, "3");
    let forget = async |spares, act| {
        let spaces = std::slice::from_ref(&tenant.space);
        retirement.forget("acme", spaces, &[], spares, act).await.unwrap().unwrap()
    };
    let spared = Forgotten { records: 0, conditions: 1, pauses: 1, is_recovering: true };
    assert_eq!((forget(true, false).await, forget(true, true).await), (spared, spared));
    assert_eq!(controls.paused().await.unwrap().len(), 1);
    let open: bool = ask!(tenant, "HEXISTS", OPEN, "acme");
    assert!(open && recoveries.is_leased("acme").await.unwrap());
    assert!(
        recoveries.is_to_stop("acme", "r1").await.unwrap()
            && recoveries.read("acme").await.unwrap().is_some()
    );
    // Acknowledged; and the recovery has ended.
    let rest = Forgotten { records: 2, is_recovering: true, ..Forgotten::default() };
    assert_eq!(forget(false, true).await, rest);
    recoveries.release("acme", "r1").await.unwrap();
    assert_eq!(forget(false, true).await, Forgotten { records: 2, ..Forgotten::default() });
    assert!(recoveries.read("acme").await.unwrap().is_none());
}

#[tokio::test]
async fn a_tenant_is_forgotten_and_its_neighbour_is_not() {
    let (server, tenant) = tenant("acme").await;
    let other = Tenant::on(space_of("acme-2"), server.url().as_str()).await;
    let controls = Controls::new(tenant.link.clone());
    let neighbours = Neighbours::new(tenant.link.clone());
    for (one, label) in [(&tenant, "acme"), (&other, "acme-2")] {
        let order =
            Order { what: "pause", tenant: label, key: one.space.schedule(), by: "ann", ..Order::default() };
        controls.record(&order).await.unwrap();
        neighbours.set(&[(label, "{}".to_owned())]).await.unwrap();
        one.quarantined("a", "{}").await;
        let timeline = format!("{{transactions}}:balance-sync:timeline-1:g:t:{label}");
        tell!(one, "SET", timeline, "x");
        tell!(one, "SET", one.space.lock(b"stray"), "one:1");
        tell!(one, "SET", one.space.lock(b"theirs"), "1");
    }
    let spaces = std::slice::from_ref(&tenant.space);
    let timelines = ["{transactions}:balance-sync:timeline-1:g:t:acme".to_owned()];
    let retirement = under(&tenant, "3");
    // Pause, event, neighbour, timeline.
    let records = |records| Some(Forgotten { records, ..Forgotten::default() });
    let forget =
        async |spares, act| retirement.forget("acme", spaces, &timelines, spares, act).await.unwrap();
    assert_eq!(forget(false, false).await, records(4));
    assert_eq!(forget(false, true).await, records(4));
    assert_eq!(forget(false, true).await, records(0));
    let locks = [tenant.space.lock(b"stray"), tenant.space.lock(b"theirs"), tenant.space.lock(b"none")];
    assert_eq!(retirement.remove_locks(&locks).await.unwrap(), Some(1));
    let keys = own_keys(&tenant.link).await.unwrap();
    let of = |prefix: &str| {
        keys.iter()
            .filter(|key| match key {
                OwnKey::Entries { prefix: own, .. } | OwnKey::Lock { prefix: own, .. } => own == prefix,
                OwnKey::Fleet(_) => false,
            })
            .count()
    };
    assert_eq!((of("tenant:acme:"), of("tenant:acme-2:")), (2, 3));
    assert_eq!(controls.paused().await.unwrap().len(), 1);
    assert_eq!(neighbours.get(&["acme", "acme-2"]).await.unwrap(), [None, Some("{}".to_owned())]);

    // The fleet's own keys, but those that a later worker needs.
    let fleet: Vec<String> = keys
        .iter()
        .filter_map(|key| match key {
            OwnKey::Fleet(key) => Some(key.clone()),
            OwnKey::Entries { .. } | OwnKey::Lock { .. } => None,
        })
        .collect();
    assert_eq!(under(&tenant, "2").remove_fleet(&fleet).await.unwrap(), None, "of an earlier revision");
    assert!(
        own_keys(&tenant.link)
            .await
            .unwrap()
            .iter()
            .any(|key| matches!(key, OwnKey::Fleet(key) if key.ends_with("neighbours")))
    );
    assert!(retirement.remove_fleet(&fleet).await.unwrap().is_some_and(|removed| removed > 0));
    let left = own_keys(&tenant.link).await.unwrap();
    let left: std::collections::BTreeSet<&str> = left
        .iter()
        .filter_map(|key| match key {
            OwnKey::Fleet(key) => key.strip_prefix("{transactions}:balance-sync:"),
            OwnKey::Entries { .. } | OwnKey::Lock { .. } => None,
        })
        .collect();
    // Of the neighbour, which is not forgotten: its pause, and the event of its quarantine.
    assert_eq!(left, ["actions", "rollout", "paused", "entry-events"].into());
}
