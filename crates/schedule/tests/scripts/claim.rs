//! Claiming: what comes, in which order, under which lease, with which value.

use std::{collections::BTreeSet, time::Duration};

use balance_sync_domain::KeySpace;
use balance_sync_sandbox::eventually;
use balance_sync_schedule::{ErrorClass, Schedule};

use crate::{SOON, Tenant, all, ask, common, names, number, tell};

#[tokio::test]
async fn due_members_are_claimed_in_score_order_with_their_values() {
    let tenant = Tenant::new("claim-order").await;
    for (name, score) in [("c", "1700000003.000003"), ("a", "1700000001.000001"), ("b", "1700000002.000002")]
    {
        let member = tenant.member(name);
        tenant.schedule(&member, score).await;
        tell!(tenant, "SET", &member, format!("value of {name}"));
    }
    let future = tenant.member("future");
    tenant.schedule(&future, "4000000000").await;

    let schedule = tenant.lease_mode();
    let claim = schedule.claim(2).await.unwrap();
    assert_eq!(names(&claim.entries), [tenant.member("a"), tenant.member("b")]);
    assert_eq!(claim.entries[0].value.as_deref(), Some(&b"value of a"[..]));
    assert_eq!(claim.entries[0].former, "1700000001.000001");
    assert_eq!(claim.entries[1].value.as_deref(), Some(&b"value of b"[..]));
    assert_eq!((claim.scheduled, claim.foreign), (4, 0));

    assert_eq!(names(&schedule.claim(10).await.unwrap().entries), [tenant.member("c")]);
    let empty = schedule.claim(10).await.unwrap();
    assert!(empty.entries.is_empty(), "what is claimed, or not due, is not claimed");
    assert_eq!(empty.scheduled, 4);
    assert_eq!(tenant.score(&future).await.unwrap(), "4000000000");
}

#[tokio::test]
async fn an_empty_schedule_returns_nothing() {
    let tenant = Tenant::new("claim-empty").await;
    let claim = tenant.lease_mode().claim(10).await.unwrap();
    assert!(claim.entries.is_empty());
    assert_eq!(claim.scheduled, 0);
    assert!(claim.now > 1_600_000_000.0);
}

#[tokio::test]
async fn a_lease_ends_after_the_ttl_half_way_between_two_microseconds() {
    let tenant = Tenant::new("claim-lease").await;
    // TTLs that carry over into the next second, or don't.
    for ttl in [1, 30_000, 999, 1_001, 600_000] {
        let (member, former) = tenant.mutate("a", "{}").await;
        let schedule = tenant.with(|options| options.claim_ttl = Duration::from_millis(ttl));
        let claim = schedule.claim(1).await.unwrap();
        let claimed = &claim.entries[0];

        let (whole, fraction) = claimed.lease.split_once('.').unwrap();
        assert!(whole.len() == 10 && fraction.len() == 7 && fraction.ends_with('5'), "{}", claimed.lease);
        let ahead = number(&claimed.lease) - claim.now;
        let wanted = Duration::from_millis(ttl).as_secs_f64();
        assert!((ahead - wanted - 0.000_000_5).abs() < 0.000_000_6, "lease {ahead} s ahead, not {wanted}");

        assert_eq!(number(&tenant.score(&member).await.unwrap()), number(&claimed.lease));
        // Neither neighbour that a producer can write is the same number.
        for micros in [number(&format!("{whole}.{}", &fraction[..6])), number(&claimed.lease) + 0.000_000_5] {
            assert_ne!(number(&format!("{micros:.6}")), number(&claimed.lease));
        }
        assert_eq!(claimed.former, tenant_text(&tenant, &former).await);
        assert_eq!(claimed.scheduled_at(), Some(number(&former)));
    }
}

/// A score as this Redis prints it.
async fn tenant_text(tenant: &Tenant, score: &str) -> String {
    tell!(tenant, "ZADD", "scratch", score, "m");
    ask!(tenant, "ZSCORE", "scratch", "m")
}

#[tokio::test]
async fn concurrent_workers_never_claim_the_same_member() {
    let tenant = Tenant::new("claim-two").await;
    let members: BTreeSet<String> = tenant.schedule_many(600).await.into_iter().collect();
    let other = Tenant::on(tenant.space.clone(), &common::server().await.url()).await;
    let drain = |schedule: Schedule| async move {
        let mut mine = Vec::new();
        loop {
            let claim = schedule.claim(7).await.unwrap();
            if claim.entries.is_empty() {
                return mine;
            }
            assert!(claim.entries.len() <= 7);
            mine.extend(names(&claim.entries).into_iter().map(str::to_owned));
        }
    };
    let (one, two) = tokio::join!(drain(tenant.lease_mode()), drain(other.lease_mode()));
    assert!(!one.is_empty() && !two.is_empty(), "both had a share: {} and {}", one.len(), two.len());
    assert_eq!(one.len() + two.len(), members.len(), "something was claimed twice or not at all");
    assert_eq!(one.into_iter().chain(two).collect::<BTreeSet<_>>(), members);
}

#[tokio::test]
async fn values_under_another_tenants_prefix_are_not_read() {
    let tenant = Tenant::new("claim-own").await;
    let own = tenant.member("own");
    // Also one whose id merely begins with ours, and one whose key begins with our key's text.
    let foreign = ["tenant:other:balance:x", "tenant:claim-own2:balance:x", "balance:x", "tenant:claim-own"];
    for member in foreign.into_iter().chain([own.as_str()]) {
        tell!(tenant, "SET", member, "{}", "EX", 60);
        tenant.schedule(member, "1700000000").await;
    }
    let claim = tenant.lease_mode().claim(10).await.unwrap();
    assert_eq!(claim.entries.len(), 5);
    for claimed in &claim.entries {
        assert_eq!(claimed.value.is_some(), claimed.member == own.as_bytes(), "{claimed:?}");
    }
    for member in foreign {
        assert!(tenant.ttl(member).await <= 60_000, "the TTL of {member} was raised");
        tell!(tenant, "DEL", member);
    }
}

#[tokio::test]
async fn in_single_tenant_mode_keys_of_tenants_are_foreign() {
    let url = common::server().await.url().replace("/0", "/1");
    let tenant = Tenant::on(KeySpace::single(), &url).await;
    let own = tenant.member("own");
    for member in ["tenant:other:balance:{transactions}:o:l:a#default", own.as_str()] {
        tell!(tenant, "SET", member, "{}", "EX", 60);
        tenant.schedule(member, "1700000000").await;
    }
    let claim = tenant.lease_mode().claim(10).await.unwrap();
    assert_eq!(claim.entries.len(), 2);
    for claimed in &claim.entries {
        assert_eq!(claimed.value.is_some(), claimed.member == own.as_bytes(), "{claimed:?}");
    }
    assert!(tenant.ttl("tenant:other:balance:{transactions}:o:l:a#default").await <= 60_000);
    let release = tenant.lease_mode().release(&all(&claim.entries)).await.unwrap();
    assert_eq!(release.released, 2);
    assert!(tenant.ttl("tenant:other:balance:{transactions}:o:l:a#default").await <= 60_000);
}

#[tokio::test]
async fn expired_values_and_values_of_another_type_are_none() {
    let tenant = Tenant::new("claim-expired").await;
    let (expired, _) = tenant.mutate("expired", "{}").await;
    tell!(tenant, "DEL", &expired);
    let list = tenant.member("list");
    tell!(tenant, "RPUSH", &list, "x");
    tenant.schedule(&list, "1700000000").await;
    let (good, _) = tenant.mutate("good", "{}").await;
    let claim = tenant.lease_mode().claim(10).await.unwrap();
    assert_eq!(names(&claim.entries), [list, expired, good]);
    let found: Vec<bool> = claim.entries.iter().map(|claimed| claimed.value.is_some()).collect();
    assert_eq!(found, [false, false, true], "a missing value does not end the answer");
}

#[tokio::test]
async fn nine_thousand_members_in_one_call() {
    let tenant = Tenant::new("claim-many").await;
    let members = tenant.schedule_many(9_000).await;
    for page in members.chunks(3_000) {
        let mut cmd = redis::cmd("MSET");
        for member in page {
            cmd.arg(member).arg(format!("value of {member}"));
        }
        tenant.run::<()>(&cmd).await;
    }
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(20_000).await.unwrap();
    assert_eq!(names(&claim.entries), members);
    for claimed in &claim.entries {
        let wanted = [b"value of ", claimed.member.as_slice()].concat();
        assert_eq!(claimed.value.as_ref(), Some(&wanted));
    }
    let release = schedule.release(&all(&claim.entries)).await.unwrap();
    assert_eq!((release.released, release.kept), (9_000, 0));
    let claim = tenant.lock_mode("me").claim(20_000).await.unwrap();
    assert_eq!(names(&claim.entries), members);
    let settled = tenant.lock_mode("me").settle(&all(&claim.entries)).await.unwrap();
    assert_eq!((settled.removed, settled.kept), (9_000, 0));
    assert_eq!(tenant.lease_mode().backlog().await.unwrap().leased, 0);
}

#[tokio::test]
async fn members_and_values_need_not_be_text() {
    let tenant = Tenant::new("claim-bytes").await;
    let member = [tenant.space.balance_prefix().as_bytes(), b"\xff\0\r\n\xc3"].concat();
    let value = b"\x80\0\xfe not json \r\n".to_vec();
    tell!(tenant, "SET", &member, &value);
    tell!(tenant, "ZADD", tenant.space.schedule(), 1, &member);
    tell!(tenant, "ZADD", tenant.space.schedule(), 2, "");
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(5).await.unwrap();
    assert_eq!(claim.entries[0].member, member);
    assert_eq!(claim.entries[0].value.as_ref(), Some(&value));
    assert_eq!((claim.entries[1].member.as_slice(), &claim.entries[1].value), (&b""[..], &None));
    assert_eq!(schedule.release(&all(&claim.entries)).await.unwrap().released, 2);
    let claim = schedule.claim(5).await.unwrap();
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 2);
}

#[tokio::test]
async fn a_schedule_key_of_another_type_is_reported_as_wrong_type() {
    let tenant = Tenant::new("claim-type").await;
    tell!(tenant, "SET", tenant.space.schedule(), "not a sorted set");
    for schedule in [tenant.lease_mode(), tenant.lock_mode("me")] {
        let error = schedule.claim(1).await.unwrap_err();
        assert_eq!((error.class, error.operation), (ErrorClass::WrongType, "claim"), "{error}");
        assert!(!error.is_transient());
    }
    assert_eq!(tenant.lease_mode().backlog().await.unwrap_err().class, ErrorClass::WrongType);
    assert_eq!(tenant.lease_mode().protect_page(None).await.unwrap_err().class, ErrorClass::WrongType);
}

#[tokio::test]
async fn claimed_values_are_kept_alive() {
    let tenant = Tenant::new("claim-protect").await;
    let ttls = [("short", 60_000), ("long", 5_000_000), ("endless", 0)];
    let prepare = || async {
        for (name, ttl) in ttls {
            let (member, _) = tenant.mutate(name, "{}").await;
            if ttl == 0 {
                tell!(tenant, "PERSIST", &member);
            } else {
                tell!(tenant, "PEXPIRE", &member, ttl);
            }
        }
    };
    prepare().await;
    let floor = |floor: u64| tenant.with(move |options| options.protect_floor = Duration::from_secs(floor));
    assert_eq!(floor(900).claim(10).await.unwrap().entries.len(), 3);
    let short = tenant.ttl(&tenant.member("short")).await;
    assert!((60_001..=900_000).contains(&short), "{short}");
    let long = tenant.ttl(&tenant.member("long")).await;
    assert!((900_001..=5_000_000).contains(&long), "{long}");
    assert_eq!(tenant.ttl(&tenant.member("endless")).await, -1);

    prepare().await;
    assert_eq!(floor(0).claim(10).await.unwrap().entries.len(), 3);
    assert!(tenant.ttl(&tenant.member("short")).await <= 60_000, "a floor of zero raises no TTL");
}

#[tokio::test]
async fn an_expired_lease_is_claimed_by_another_worker() {
    let tenant = Tenant::new("claim-lapse").await;
    let (member, _) = tenant.mutate("a", "{}").await;
    let dead = tenant.with(|options| options.claim_ttl = Duration::from_millis(300));
    let first = dead.claim(1).await.unwrap();
    let alive = tenant.lease_mode();
    let second = eventually(SOON, "the second claim", || async {
        let claim = alive.claim(1).await.unwrap();
        (!claim.entries.is_empty()).then_some(claim)
    })
    .await
    .unwrap();
    assert_eq!(names(&second.entries), [member.as_str()]);
    assert!(second.now >= number(&first.entries[0].lease), "not before the lease has ended");
    assert_eq!(number(&second.entries[0].former), number(&first.entries[0].lease));
    assert_eq!(second.entries[0].scheduled_at(), None, "when the mutation came is no longer known");
    // The dead worker wakes up: nothing it does touches the claim of the other.
    assert_eq!(dead.settle(&all(&first.entries)).await.unwrap().removed, 0);
    assert_eq!(dead.release(&all(&first.entries)).await.unwrap().released, 0);
    assert_eq!(alive.settle(&all(&second.entries)).await.unwrap().removed, 1);
}
