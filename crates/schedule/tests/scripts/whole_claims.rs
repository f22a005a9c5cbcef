//! Claims that are settled as a whole, without the names of their members, and fresh values whose TTLs are looked at by sample.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use balance_sync_domain::QuarantineReason;
use balance_sync_sandbox::{RedisOptions, RedisServer, WORKER_USER};
use balance_sync_schedule::{Claim, ErrorClass, Link, LinkSettings, Loss, Schedule, ScheduleOptions};

use crate::{
    Tenant, all, ask,
    common::space_of,
    hostile::{counted, counting},
    names, refusal, tell,
};

/// The helpers of the scripts.
const PRELUDE: &str = include_str!("../../../../lua/prelude.lua");

/// Mutates so many members and claims them.
async fn claimed(tenant: &Tenant, schedule: &Schedule, count: usize) -> Claim {
    for n in 0..count {
        tenant.mutate(&format!("m{n:02}"), "{}").await;
    }
    let claim = schedule.claim(100).await.unwrap();
    assert_eq!(claim.entries.len(), count);
    claim
}

/// How often Redis has run a command, in scripts as well.
async fn calls(tenant: &Tenant, command: &str) -> u64 {
    counted(tenant, "commandstats", &format!("cmdstat_{command}:calls")).await
}

async fn left(tenant: &Tenant) -> Vec<String> {
    ask!(tenant, "ZRANGE", tenant.space.schedule(), 0, -1)
}

#[tokio::test]
async fn an_unchanged_claim_is_settled_without_naming_its_members() {
    let (_server, tenant) = counting("whole").await;
    let schedule = tenant.lease_mode();
    // Redis learns the scripts.
    let first = claimed(&tenant, &schedule, 4).await;
    schedule.settle(&all(&first.entries)).await.unwrap();
    let (one, two) = (claimed(&tenant, &schedule, 20).await, {
        let (other, _) = tenant.mutate("other", "{}").await;
        (schedule.claim(1).await.unwrap(), other)
    });
    let (later, _) = tenant.mutate("later", "{}").await;
    let before = counted(&tenant, "stats", "total_net_input_bytes").await;
    let mut written = all(&one.entries);
    written.reverse();
    let report = schedule.settle(&written).await.unwrap();
    let sent = counted(&tenant, "stats", "total_net_input_bytes").await - before;
    let long: usize = one.entries.iter().map(|claimed| claimed.member.len()).sum();
    assert!((sent as usize) < long, "{sent} bytes were sent for names of {long}");
    assert_eq!((report.removed, report.kept), (20, 0));
    assert_eq!(calls(&tenant, "zmscore").await, 0, "no score is read");
    assert_eq!(left(&tenant).await, [later, two.1]);
    // Together with a claim of one, which is named; and both twice.
    for removed in [1, 0] {
        let all: Vec<_> = one.entries.iter().chain(&two.0.entries).collect();
        assert_eq!(schedule.settle(&all).await.unwrap().removed, removed);
    }
}

#[tokio::test]
async fn newer_mutations_of_a_whole_claim_stay_wherever_they_stand() {
    for changed in [&[0][..], &[4], &[9], &[0, 9], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]] {
        let tenant = Tenant::new("whole-newer").await;
        let schedule = tenant.lease_mode();
        // The second claim is settled by name, the third as a whole again.
        for round in 0..3 {
            let claim = claimed(&tenant, &schedule, 10).await;
            let changed = if round < 2 { changed } else { &[] };
            for n in changed {
                tenant.mutate(&format!("m{n:02}"), "newer").await;
            }
            let report = schedule.settle(&all(&claim.entries)).await.unwrap();
            assert_eq!((report.removed, report.kept), (10 - changed.len() as u64, changed.len() as u64));
            let mut stay: Vec<_> = changed.iter().map(|n| tenant.member(&format!("m{n:02}"))).collect();
            let mut found = left(&tenant).await;
            stay.sort();
            found.sort();
            assert_eq!(found, stay);
        }
    }
}

#[tokio::test]
async fn the_rest_of_a_claim_and_other_claims_stay() {
    let tenant = Tenant::new("whole-rest").await;
    let schedule = tenant.lease_mode();
    let one = claimed(&tenant, &schedule, 10).await;
    tenant.mutate("other", "{}").await;
    let two = schedule.claim(10).await.unwrap();
    let report = schedule.settle(&all(&one.entries[1..9])).await.unwrap();
    assert_eq!((report.removed, report.kept), (8, 0));
    let mut stay: Vec<_> =
        [&one.entries[0], &one.entries[9], &two.entries[0]].map(|c| c.member.clone()).into();
    let mut found: Vec<Vec<u8>> = left(&tenant).await.into_iter().map(String::into_bytes).collect();
    stay.sort();
    found.sort();
    assert_eq!(found, stay);
    // Nor is a claim whole because its members were named twice.
    let mut twice = all(&one.entries[..5]);
    twice.extend(all(&one.entries[..5]));
    assert_eq!(schedule.settle(&twice).await.unwrap().removed, 1);
}

/// No script gives one member the lease of another claim, but should it happen, the names decide.
#[tokio::test]
async fn a_stranger_under_the_lease_of_a_claim_stays() {
    for name in ["m005", "a", "z"] {
        let tenant = Tenant::new("whole-stranger").await;
        let schedule = tenant.lease_mode();
        let claim = claimed(&tenant, &schedule, 10).await;
        let stranger = tenant.member(name);
        tenant.schedule(&stranger, &claim.entries[0].lease).await;
        if name != "m005" {
            // As many as were claimed.
            tenant.mutate("m05", "newer").await;
        }
        let report = schedule.settle(&all(&claim.entries)).await.unwrap();
        assert_eq!(report.removed + report.kept, 10);
        assert!(tenant.score(&stranger).await.is_some(), "{name} was removed");
    }
}

/// A claim that puts a member off for as long as a lease lasts gives it a score of its own.
#[tokio::test]
async fn what_a_claim_puts_off_is_none_of_its_members() {
    let options = RedisOptions { worker_password: Some("pw".into()), ..RedisOptions::default() };
    let server = RedisServer::start(options).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    // The one in the middle may not be read.
    let mut rules = redis::cmd("ACL");
    rules.arg("SETUSER").arg(WORKER_USER).arg("resetkeys").arg("~{transactions}:*");
    rules.arg("~tenant:t:schedule:*").arg("~tenant:t:quarantine:*");
    for name in ["m0", "m1", "m3", "m4"] {
        rules.arg(format!("~{}", tenant.member(name)));
        tenant.mutate(name, "{}").await;
    }
    tenant.run::<()>(&rules).await;
    let (denied, _) = tenant.mutate("m2", "{}").await;
    let mut options = ScheduleOptions::default();
    options.put_off = options.claim_ttl;
    let link = Link::new(&LinkSettings::for_url(&server.worker_url_on(server.port()))).unwrap();
    let schedule = Schedule::new(link, tenant.space.clone(), Arc::new(options));
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!((claim.entries.len(), claim.refused.is_some()), (4, true));
    // As many have the lease again, and they begin and end alike.
    let (changed, _) = tenant.mutate("m1", "{}").await;
    let report = schedule.settle(&all(&claim.entries)).await.unwrap();
    assert_eq!((report.removed, report.kept), (3, 1));
    let left: BTreeSet<String> = left(&tenant).await.into_iter().collect();
    assert_eq!(left, [changed, denied].into());
}

#[tokio::test]
async fn what_is_settled_as_a_whole_counts_although_the_named_fail() {
    let (_server, tenant) = counting("whole-partly").await;
    let schedule = tenant.lease_mode();
    let (one, two) = (claimed(&tenant, &schedule, 10).await, {
        for n in 0..10 {
            tenant.mutate(&format!("n{n}"), "{}").await;
        }
        schedule.claim(100).await.unwrap()
    });
    assert_eq!(two.entries.len(), 10);
    tenant.mutate("n3", "{}").await;
    // Members are removed by name with this, and whole claims without.
    tell!(tenant, "ACL", "SETUSER", "default", "-zrem");
    let written: Vec<_> = one.entries.iter().chain(&two.entries).collect();
    let report = schedule.settle(&written).await.unwrap();
    assert_eq!(report.removed, 10);
    assert_eq!(report.unsettled.as_ref().unwrap().error.class, ErrorClass::Permission);
    let settled = |claim: &Claim| claim.entries.iter().filter(|claimed| report.has_settled(claimed)).count();
    assert_eq!((settled(&one), settled(&two)), (10, 0));
    // Alone it is an error.
    let error = schedule.settle(&all(&two.entries[..3])).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Permission);
    tell!(tenant, "ACL", "SETUSER", "default", "+zrem");
    let report = schedule.settle(&all(&two.entries)).await.unwrap();
    assert_eq!((report.removed, report.kept, report.unsettled), (9, 1, None));
}

#[tokio::test]
async fn no_score_that_a_member_has_is_given_again() {
    let tenant = Tenant::new("whole-unused").await;
    let script = format!(
        "{PRELUDE}\nreturn unused_score(KEYS[1], {{ seconds = 1700000000, micros = 999998 }}, tonumber(ARGV[1]))"
    );
    let unused = async || -> String { ask!(tenant, "EVAL", &script, 1, tenant.space.schedule(), 1000) };
    for (n, score) in
        ["1700000001.9999985", "1700000001.9999995", "1700000002.0000005"].into_iter().enumerate()
    {
        assert_eq!(unused().await, score);
        tenant.schedule(&tenant.member(&n.to_string()), score).await;
    }
    tell!(tenant, "ZREM", tenant.space.schedule(), tenant.member("1"));
    assert_eq!(unused().await, "1700000001.9999995");
}

#[tokio::test]
async fn entries_of_a_whole_claim_are_cleared_and_losses_marked() {
    let tenant = Tenant::new("whole-entries").await;
    let schedule = tenant.lease_mode();
    let mended = tenant.quarantined("m01", "bad").await;
    let other = tenant.quarantined("other", "bad").await;
    tenant.mutate("m02", "{}").await;
    let lost = schedule.claim(10).await.unwrap();
    let loss = Loss { confirmed: true, version: Some(7), ..Loss::default() };
    assert_eq!(schedule.record_losses(&[(&lost.entries[0], loss)]).await.unwrap().quarantined, 1);

    let claim = claimed(&tenant, &schedule, 10).await;
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 10);
    assert!(schedule.quarantine_get(mended.as_bytes()).await.unwrap().is_none());
    assert!(schedule.quarantine_get(other.as_bytes()).await.unwrap().is_some());
    let entry = schedule.quarantine_get(tenant.member("m02").as_bytes()).await.unwrap().unwrap();
    assert!(entry.loss.unwrap().later_at.is_some(), "a later mutation was written");
    assert!(left(&tenant).await.is_empty());
}

/// A lock is under the name of its member, so every member is named.
#[tokio::test]
async fn mode_lock_unlocks_every_member() {
    let tenant = Tenant::new("whole-lock").await;
    let schedule = tenant.lock_mode("us");
    let claim = claimed(&tenant, &schedule, 10).await;
    let (newer, _) = tenant.mutate("m03", "newer").await;
    let report = schedule.settle(&all(&claim.entries)).await.unwrap();
    assert_eq!((report.removed, report.kept), (9, 1));
    for member in names(&claim.entries) {
        assert_eq!(tenant.lock_of(member).await, None, "{member}");
    }
    assert_eq!(names(&schedule.claim(10).await.unwrap().entries), [newer]);
}

#[tokio::test]
async fn of_fresh_values_a_sample_is_looked_at_and_all_when_one_is_short_lived() {
    for (short, raised) in [(0, true), (15, true), (31, true), (16, false), (32, false)] {
        let (_server, tenant) = counting("fresh").await;
        for n in 0..40 {
            tenant.mutate(&format!("m{n:02}"), "{}").await;
        }
        let schedule = tenant.lease_mode();
        let also = tenant.member("m20");
        for member in [&also, &tenant.member(&format!("m{short:02}"))] {
            tell!(tenant, "PEXPIRE", member, 60_000);
        }
        assert_eq!(schedule.claim(100).await.unwrap().entries.len(), 40);
        let looked_at = calls(&tenant, "pttl").await;
        assert_eq!(looked_at, if raised { 40 } else { 17 }, "{short}");
        assert_eq!(tenant.ttl(&also).await > 60_000, raised, "{short}");
    }
}

#[tokio::test]
async fn values_that_may_be_old_are_all_looked_at() {
    let fresh = Duration::from_secs(900);
    for (age, floor, looks) in [
        (500.0, fresh, 17),
        (700.0, fresh, 40),
        // A lease that has lapsed says nothing of the age.
        (500.000_000_5, fresh, 40),
        // The floor is nearly as long as what the shortest-lived values get.
        (500.0, Duration::from_secs(3_001), 40),
    ] {
        let (_server, tenant) = counting("old").await;
        let (seconds, _): (u64, u64) = ask!(tenant, "TIME");
        for n in 0..40 {
            let (member, _) = tenant.mutate(&format!("m{n:02}"), "{}").await;
            tenant.schedule(&member, &format!("{:.7}", seconds as f64 - age)).await;
        }
        let schedule = tenant.with(|options| options.protect_floor = floor);
        assert_eq!(schedule.claim(100).await.unwrap().entries.len(), 40);
        assert_eq!(calls(&tenant, "pttl").await, looks, "{age} s, {floor:?}");
    }
}

/// What Postgres refuses of a whole claim leaves a part, which is named.
#[tokio::test]
async fn a_claim_of_which_one_is_quarantined_is_settled_by_name() {
    let tenant = Tenant::new("whole-part").await;
    let schedule = tenant.lease_mode();
    let claim = claimed(&tenant, &schedule, 10).await;
    let bad = (&claim.entries[3], refusal(QuarantineReason::RefusedByPostgres));
    assert_eq!(schedule.quarantine(&[bad]).await.unwrap().quarantined, 1);
    let good: Vec<_> =
        claim.entries.iter().enumerate().filter(|(n, _)| *n != 3).map(|(_, one)| one).collect();
    let report = schedule.settle(&good).await.unwrap();
    assert_eq!((report.removed, report.kept), (9, 0));
    assert!(left(&tenant).await.is_empty());
}
