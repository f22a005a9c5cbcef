//! Settling and releasing: only under the lease.

use std::{sync::Arc, time::Duration};

use balance_sync_domain::QuarantineReason;
use balance_sync_schedule::{Schedule, ScheduleOptions};

use crate::{Tenant, all, ask, names, number, refusal, tell};

#[tokio::test]
async fn written_members_leave_the_schedule_and_newer_mutations_stay() {
    let tenant = Tenant::new("settle").await;
    for name in ["a", "b", "c"] {
        tenant.mutate(name, "{}").await;
    }
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(10).await.unwrap();
    let (newer, score) = tenant.mutate("b", "{}").await;
    let report = schedule.settle(&all(&claim.entries)).await.unwrap();
    assert_eq!((report.removed, report.kept), (2, 1));
    assert!(report.now >= claim.now);
    assert_eq!(tenant.score(&tenant.member("a")).await, None);
    assert_eq!(tenant.score(&tenant.member("c")).await, None);
    assert_eq!(number(&tenant.score(&newer).await.unwrap()), number(&score));
    assert_eq!(names(&schedule.claim(10).await.unwrap().entries), [newer]);
    // Twice, or nothing at all, does no harm.
    let again = schedule.settle(&all(&claim.entries)).await.unwrap();
    assert_eq!(again.removed, 0);
    assert_eq!(schedule.settle(&[]).await.unwrap().removed, 0);
}

#[tokio::test]
async fn a_mutation_in_the_microsecond_of_the_former_score_stays() {
    let tenant = Tenant::new("settle-same").await;
    let (member, score) = tenant.mutate("a", "old").await;
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(1).await.unwrap();
    tenant.schedule(&member, &score).await;
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 0);
    assert_eq!(schedule.release(&all(&claim.entries)).await.unwrap().released, 0);
    assert_eq!(number(&tenant.score(&member).await.unwrap()), number(&score));
}

#[tokio::test]
async fn a_mutation_in_the_microsecond_in_which_the_lease_ends_stays() {
    let tenant = Tenant::new("settle-end").await;
    let (member, _) = tenant.mutate("a", "old").await;
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(1).await.unwrap();
    let lease = &claim.entries[0].lease;
    let before = &lease[..lease.len() - 1];
    for score in [before.to_owned(), format!("{:.6}", number(before) + 0.000_001)] {
        tenant.schedule(&member, &score).await;
        assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 0, "{score} is no lease");
        assert_eq!(schedule.release(&all(&claim.entries)).await.unwrap().released, 0, "{score} is no lease");
    }
}

/// As after a failover of Postgres that lost the row: what the holder knows to be written is not.
#[tokio::test]
async fn what_is_scheduled_again_is_due_and_not_settled_by_who_held_it() {
    let tenant = Tenant::new("settle-again").await;
    let schedule = tenant.lease_mode();
    let (held, _) = tenant.mutate("held", "{}").await;
    let claim = schedule.claim(10).await.unwrap();
    let (due, score) = tenant.mutate("due", "{}").await;
    let gone = tenant.member("gone");
    let members = [held.as_bytes(), due.as_bytes(), gone.as_bytes()];
    assert_eq!(schedule.schedule_again(&members).await.unwrap(), 1, "one was not scheduled");
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 0);
    let moved = number(&tenant.score(&due).await.unwrap()) - number(&score);
    assert!((0.000_000_5..0.000_001_5).contains(&moved), "what is due stays as old as it is: {moved}");
    let claim = schedule.claim(10).await.unwrap();
    let mut claimed = names(&claim.entries);
    claimed.sort_unstable();
    let mut expected = [held.as_str(), due.as_str(), gone.as_str()];
    expected.sort_unstable();
    assert_eq!(claimed, expected);
}

/// The ledger's worker locks a member, leaves its score, and removes it only under that score.
#[tokio::test]
async fn what_is_scheduled_again_is_not_removed_by_the_ledgers_worker() {
    let tenant = Tenant::new("settle-again-lock").await;
    let schedule = tenant.lock_mode("one");
    let (member, claimed) = tenant.mutate("a", "{}").await;
    let lock = tenant.space.lock(member.as_bytes());
    tell!(tenant, "SET", &lock, "ledger");
    assert_eq!(schedule.schedule_again(&[member.as_bytes()]).await.unwrap(), 0);
    let score = number(&tenant.score(&member).await.unwrap());
    assert!(score != number(&claimed), "{score}, {claimed}");
    assert_eq!(schedule.claim(10).await.unwrap().foreign, 1, "the lock stands");
    tell!(tenant, "DEL", &lock);
    assert_eq!(names(&schedule.claim(10).await.unwrap().entries), [member.as_str()], "it is due");
}

#[tokio::test]
async fn a_later_claim_is_not_settled_by_the_earlier() {
    let tenant = Tenant::new("settle-later").await;
    let (member, _) = tenant.mutate("a", "old").await;
    let schedule = tenant.lease_mode();
    let first = schedule.claim(1).await.unwrap();
    tenant.mutate("a", "new").await;
    let second = schedule.claim(1).await.unwrap();
    assert_eq!(second.entries[0].value.as_deref(), Some(&b"new"[..]));
    assert_eq!(schedule.settle(&all(&first.entries)).await.unwrap().removed, 0);
    assert_eq!(number(&tenant.score(&member).await.unwrap()), number(&second.entries[0].lease));
    assert_eq!(schedule.settle(&all(&second.entries)).await.unwrap().removed, 1);
    assert_eq!(tenant.score(&member).await, None);
}

#[tokio::test]
async fn settling_deletes_the_quarantine_entries_of_removed_members_only() {
    let tenant = Tenant::new("settle-clear").await;
    let mended = tenant.quarantined("mended", "bad").await;
    let overtaken = tenant.quarantined("overtaken", "bad").await;
    let other = tenant.quarantined("other", "bad").await;
    tenant.mutate("mended", "good").await;
    tenant.mutate("overtaken", "good").await;
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(10).await.unwrap();
    tenant.mutate("overtaken", "better").await;
    let report = schedule.settle(&all(&claim.entries)).await.unwrap();
    assert_eq!((report.removed, report.kept), (1, 1));
    assert!(schedule.quarantine_get(mended.as_bytes()).await.unwrap().is_none());
    assert!(schedule.quarantine_get(overtaken.as_bytes()).await.unwrap().is_some());
    assert!(schedule.quarantine_get(other.as_bytes()).await.unwrap().is_some());
}

#[tokio::test]
async fn released_members_get_their_exact_former_score_and_are_due_at_once() {
    let tenant = Tenant::new("release").await;
    let scores = [
        "-inf",
        "-5.5",
        "0",
        "1e-07",
        "17",
        "1700000000",
        "1700000000.466168",
        "1700000000.4727299",
        "1700000001.0000005",
        "1700000001.9999995",
    ];
    let mut before = Vec::new();
    for (n, score) in scores.into_iter().enumerate() {
        let member = tenant.member(&format!("m{n}"));
        tenant.schedule(&member, score).await;
        before.push((member.clone(), tenant.score(&member).await));
    }
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(100).await.unwrap();
    assert_eq!(claim.entries.len(), scores.len());
    let report = schedule.release(&all(&claim.entries)).await.unwrap();
    assert_eq!((report.released, report.kept), (scores.len() as u64, 0));
    for ((member, score), claimed) in before.iter().zip(&claim.entries) {
        assert_eq!(&tenant.score(member).await, score);
        assert_eq!(Some(&claimed.former), score.as_ref(), "the former score is what Redis printed");
    }
    let other = Tenant::new("release").await.lease_mode();
    assert_eq!(names(&other.claim(100).await.unwrap().entries), names(&claim.entries));
    assert_eq!(schedule.release(&[]).await.unwrap().released, 0);
}

#[tokio::test]
async fn releasing_leaves_newer_mutations_later_claims_and_removed_members_alone() {
    let tenant = Tenant::new("release-newer").await;
    for name in ["newer", "claimed", "removed"] {
        tenant.mutate(name, "old").await;
    }
    let schedule = tenant.lease_mode();
    let first = schedule.claim(10).await.unwrap();
    tenant.mutate("claimed", "new").await;
    let second = schedule.claim(10).await.unwrap();
    let (newer, score) = tenant.mutate("newer", "new").await;
    tell!(tenant, "ZREM", tenant.space.schedule(), tenant.member("removed"));

    let report = schedule.release(&all(&first.entries)).await.unwrap();
    assert_eq!((report.released, report.kept), (0, 3));
    assert_eq!(number(&tenant.score(&newer).await.unwrap()), number(&score));
    let lease = number(&second.entries[0].lease);
    assert_eq!(number(&tenant.score(&tenant.member("claimed")).await.unwrap()), lease);
    assert_eq!(tenant.score(&tenant.member("removed")).await, None, "releasing schedules nothing anew");
}

#[tokio::test]
async fn releasing_raises_the_ttl_of_values() {
    let tenant = Tenant::new("release-protect").await;
    for name in ["ours", "newer", "endless"] {
        tenant.mutate(name, "{}").await;
    }
    let schedule = tenant.with(|options| options.protect_floor = Duration::from_secs(900));
    let claim = schedule.claim(10).await.unwrap();
    tenant.mutate("newer", "{}").await;
    for name in ["ours", "newer"] {
        tell!(tenant, "PEXPIRE", tenant.member(name), 20_000);
    }
    tell!(tenant, "PERSIST", tenant.member("endless"));
    schedule.release(&all(&claim.entries)).await.unwrap();
    for name in ["ours", "newer"] {
        let ttl = tenant.ttl(&tenant.member(name)).await;
        assert!((20_001..=900_000).contains(&ttl), "{name}: {ttl}");
    }
    assert_eq!(tenant.ttl(&tenant.member("endless")).await, -1);
}

#[tokio::test]
async fn quarantining_compares_the_lease_too() {
    let tenant = Tenant::new("finish-quarantine").await;
    let (member, _) = tenant.mutate("a", "old").await;
    let schedule = tenant.lease_mode();
    let first = schedule.claim(1).await.unwrap();
    let (_, score) = tenant.mutate("a", "new").await;
    let report = schedule
        .quarantine(&[(&first.entries[0], refusal(QuarantineReason::RefusedByPostgres))])
        .await
        .unwrap();
    assert_eq!((report.quarantined, report.kept, report.full), (0, 1, 0));
    assert_eq!(number(&tenant.score(&member).await.unwrap()), number(&score));
    assert_eq!(schedule.quarantine_len().await.unwrap(), 0);
}

#[tokio::test]
async fn postponed_members_stay_scheduled_with_their_values_and_become_due_again() {
    let tenant = Tenant::new("postpone").await;
    for name in ["strange", "marker", "newer"] {
        tenant.mutate(name, "{}").await;
    }
    let members = ["strange", "marker", "newer"].map(|name| tenant.member(name));
    for schedule in [tenant.lease_mode(), tenant.lock_mode("us")] {
        let schedule = Schedule::new(
            tenant.link.clone(),
            tenant.space.clone(),
            Arc::new(ScheduleOptions { put_off: Duration::from_secs(400), ..schedule.options().clone() }),
        );
        for member in &members {
            tell!(tenant, "ZADD", tenant.space.schedule(), "1", member);
        }
        let claim = schedule.claim(10).await.unwrap();
        assert_eq!(names(&claim.entries), [&*members[1], &*members[2], &*members[0]]);
        let (newer, score) = tenant.mutate("newer", "{}").await;
        for member in &members {
            tell!(tenant, "PEXPIRE", member, 50_000);
        }
        let held: Vec<_> =
            claim.entries.iter().map(|claimed| (claimed, claimed.member == members[0].as_bytes())).collect();
        let report = schedule.postpone(&held).await.unwrap();
        assert_eq!((report.postponed, report.kept), (2, 1));
        assert_eq!(number(&tenant.score(&newer).await.unwrap()), number(&score));
        let (now, _): (f64, u64) = ask!(tenant, "TIME");
        for member in &members[..2] {
            let wait = number(&tenant.score(member).await.unwrap()) - now;
            assert!((380.0..402.0).contains(&wait), "{wait} s");
            assert_eq!(tenant.lock_of(member).await, None);
        }
        assert!(tenant.ttl(&members[0]).await > 1_100_000, "alive for three tries");
        assert!(tenant.ttl(&members[1]).await <= 50_000, "the TTL of a marker is not raised");
        // It is no lease: neither is it settled by the former, nor does it hide a newer mutation.
        assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 0);
        assert_eq!(schedule.postpone(&[]).await.unwrap().postponed, 0);
        let again = schedule.claim(10).await.unwrap();
        assert_eq!(names(&again.entries), [newer.as_str()]);
        assert_eq!(schedule.release(&all(&again.entries)).await.unwrap().released, 1);
    }
}

#[tokio::test]
async fn putting_off_changes_no_other_life_and_no_other_lock() {
    let tenant = Tenant::new("postpone-others").await;
    let schedule = tenant.lock_mode("us");
    let foreign = "tenant:somebody-else:balance:{transactions}:o:l:@a#default";
    let names = ["endless", "long", "locked"].map(|name| tenant.member(name));
    for member in names.iter().map(String::as_str).chain([foreign]) {
        tell!(tenant, "ZADD", tenant.space.schedule(), "1", member);
        tell!(tenant, "SET", member, "{}");
    }
    tell!(tenant, "PEXPIRE", &names[1], 50_000_000);
    tell!(tenant, "PEXPIRE", foreign, 50_000);
    let claim = schedule.claim(10).await.unwrap();
    let lock = tenant.space.lock(names[2].as_bytes());
    tell!(tenant, "SET", &lock, "them");
    let held: Vec<_> = claim.entries.iter().map(|claimed| (claimed, true)).collect();
    assert_eq!(schedule.postpone(&held).await.unwrap().postponed, 4);
    assert_eq!(tenant.ttl(&names[0]).await, -1, "what has no end gets none");
    assert!(tenant.ttl(&names[1]).await > 40_000_000, "no life is cut short");
    assert!(tenant.ttl(foreign).await <= 50_000, "another tenant's value is not ours to keep");
    assert_eq!(tenant.lock_of(&names[2]).await.as_deref(), Some("them"));
    tell!(tenant, "DEL", foreign);
}

#[tokio::test]
async fn thousands_are_put_off_at_once() {
    let tenant = Tenant::new("postpone-many").await;
    let schedule = tenant.lease_mode();
    let members = tenant.schedule_many(2_500).await;
    let claim = schedule.claim(3_000).await.unwrap();
    let held: Vec<_> = claim.entries.iter().map(|claimed| (claimed, false)).collect();
    assert_eq!(schedule.postpone(&held).await.unwrap().postponed, 2_500);
    let (now, _): (f64, u64) = ask!(tenant, "TIME");
    for member in members {
        let wait = number(&tenant.score(&member).await.unwrap()) - now;
        assert!(wait > 40.0, "{member} is due in {wait} s");
    }
}
