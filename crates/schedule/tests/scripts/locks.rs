//! Mode `lock`: side by side with the ledger's own worker.

use std::time::Duration;

use balance_sync_domain::QuarantineReason;
use balance_sync_sandbox::eventually;
use balance_sync_schedule::{ClaimMode, LedgerLock, Schedule};

use crate::{SOON, Tenant, all, ask, names, refusal, tell};

/// The ledger's own worker holds these.
async fn lock_by_ledger(tenant: &Tenant, members: &[String]) {
    for member in members {
        tell!(tenant, "SET", tenant.space.lock(member.as_bytes()), 1, "NX", "EX", 600);
    }
}

async fn unlock(tenant: &Tenant, members: &[String]) {
    for member in members {
        tell!(tenant, "DEL", tenant.space.lock(member.as_bytes()));
    }
}

fn scanning(tenant: &Tenant, scan_limit: usize) -> Schedule {
    tenant.with(|options| {
        options.mode = ClaimMode::Lock;
        options.lock_token = "us".to_owned();
        options.lock_scan_limit = scan_limit;
    })
}

#[tokio::test]
async fn the_lock_is_the_ledgers_with_our_token_and_the_claim_ttl() {
    let tenant = Tenant::new("lock-key").await;
    let (member, _) = tenant.mutate("a", "{}").await;
    let schedule = tenant.lock_mode("token-of-this-process");
    let claim = schedule.claim(1).await.unwrap();
    assert_eq!(names(&claim.entries), [member.as_str()]);
    let lock = "tenant:lock-key:lock:{transactions}:balance-sync:tenant:lock-key:balance:{transactions}:o:l:a#default";
    let held: Option<String> = ask!(tenant, "GET", lock);
    assert_eq!(held.as_deref(), Some("token-of-this-process"));
    let ttl = tenant.ttl(lock).await;
    assert!((20_001..=30_000).contains(&ttl), "{ttl}");
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 1);
    assert_eq!(tenant.ttl(lock).await, -2);
}

#[tokio::test]
async fn mode_lease_sets_no_locks() {
    let tenant = Tenant::new("lock-none").await;
    let (member, _) = tenant.mutate("a", "{}").await;
    assert_eq!(tenant.lease_mode().claim(1).await.unwrap().entries.len(), 1);
    assert_eq!(tenant.lock_of(&member).await, None);
}

#[tokio::test]
async fn foreign_locks_are_skipped() {
    let tenant = Tenant::new("lock-past").await;
    let members = tenant.schedule_many(8).await;
    let foreign = [members[0].clone(), members[1].clone(), members[4].clone()];
    lock_by_ledger(&tenant, &foreign).await;
    let schedule = tenant.lock_mode("us");
    let claim = schedule.claim(4).await.unwrap();
    assert_eq!(names(&claim.entries), [&members[2], &members[3], &members[5], &members[6]]);
    assert_eq!(claim.foreign, 3);
    for member in &foreign {
        assert_eq!(tenant.lock_of(member).await.as_deref(), Some("1"));
        assert!(tenant.score(member).await.unwrap().starts_with("17000000"), "their score is theirs");
    }
    assert_eq!(names(&schedule.claim(4).await.unwrap().entries), [&members[7]]);
    assert!(schedule.claim(4).await.unwrap().entries.is_empty());
    unlock(&tenant, &foreign).await;
    assert_eq!(names(&schedule.claim(4).await.unwrap().entries), foreign);
}

#[tokio::test]
async fn a_head_of_foreign_locks_longer_than_the_scan_hides_nothing() {
    let tenant = Tenant::new("lock-head").await;
    let members = tenant.schedule_many(30).await;
    lock_by_ledger(&tenant, &members[..25]).await;
    let schedule = scanning(&tenant, 10);
    let mut found = Vec::new();
    for _ in 0..4 {
        found.extend(schedule.claim(5).await.unwrap().entries);
    }
    assert_eq!(names(&found), members[25..]);
    unlock(&tenant, &members[..25]).await;
    let mut head = Vec::new();
    for _ in 0..8 {
        head.extend(schedule.claim(5).await.unwrap().entries);
    }
    head.sort_by(|one, two| one.member.cmp(&two.member));
    assert_eq!(names(&head), members[..25], "the head is looked at again");
}

#[tokio::test]
async fn a_head_of_locks_just_shorter_than_the_scan_does_not_limit_the_claim() {
    let tenant = Tenant::new("lock-trickle").await;
    let members = tenant.schedule_many(9 + 60).await;
    lock_by_ledger(&tenant, &members[..9]).await;
    let schedule = scanning(&tenant, 10);
    let mut found = 0;
    for _ in 0..22 {
        found += schedule.claim(5).await.unwrap().entries.len();
    }
    assert_eq!(found, 60, "22 calls for 5 members each, every other of them from the head");
}

#[tokio::test]
async fn an_offset_beyond_the_due_members_restarts_at_the_head() {
    let tenant = Tenant::new("lock-wrap").await;
    let members = tenant.schedule_many(25).await;
    lock_by_ledger(&tenant, &members).await;
    let schedule = scanning(&tenant, 10);
    for _ in 0..2 {
        assert_eq!(schedule.claim(5).await.unwrap().entries.len(), 0);
    }
    // The ledger's worker settles most of them and lets go of the rest: the offset now points behind the end.
    tell!(tenant, "ZREMRANGEBYRANK", tenant.space.schedule(), 5, -1);
    unlock(&tenant, &members).await;
    assert_eq!(names(&schedule.claim(5).await.unwrap().entries), members[..5]);
}

#[tokio::test]
async fn only_locks_with_our_token_are_deleted() {
    let tenant = Tenant::new("lock-own").await;
    let members = tenant.schedule_many(6).await;
    let schedule = tenant.lock_mode("us");
    let claim = schedule.claim(6).await.unwrap();
    // Ours ran out, and the ledger's worker took every other one since.
    for member in members.iter().step_by(2) {
        tell!(tenant, "SET", tenant.space.lock(member.as_bytes()), 1, "EX", 600);
    }
    let entries = all(&claim.entries);
    assert_eq!(schedule.settle(&entries[..2]).await.unwrap().removed, 2);
    assert_eq!(schedule.release(&entries[2..4]).await.unwrap().released, 2);
    let refused = [
        (entries[4], refusal(QuarantineReason::RefusedByPostgres)),
        (entries[5], refusal(QuarantineReason::RefusedByPostgres)),
    ];
    assert_eq!(schedule.quarantine(&refused).await.unwrap().quarantined, 2);
    for (n, member) in members.iter().enumerate() {
        let wanted = (n % 2 == 0).then_some("1");
        assert_eq!(tenant.lock_of(member).await.as_deref(), wanted, "{member}");
    }
}

#[tokio::test]
async fn the_lock_of_a_balance_with_a_newer_mutation_is_deleted_too() {
    let tenant = Tenant::new("lock-newer").await;
    let schedule = tenant.lock_mode("us");
    let other = tenant.lock_mode("them");
    for way in ["settle", "release", "quarantine"] {
        let (member, _) = tenant.mutate(way, "old").await;
        let claim = schedule.claim(1).await.unwrap();
        tenant.mutate(way, "new").await;
        assert!(other.claim(1).await.unwrap().entries.is_empty(), "while we flush, it is ours");
        let kept = match way {
            "settle" => schedule.settle(&all(&claim.entries)).await.unwrap().kept,
            "release" => schedule.release(&all(&claim.entries)).await.unwrap().kept,
            _ => {
                schedule
                    .quarantine(&[(&claim.entries[0], refusal(QuarantineReason::RefusedByPostgres))])
                    .await
                    .unwrap()
                    .kept
            }
        };
        assert_eq!(kept, 1);
        assert_eq!(
            tenant.lock_of(&member).await,
            None,
            "after {way} no other worker may have to wait for our TTL"
        );
        let next = other.claim(1).await.unwrap();
        assert_eq!(names(&next.entries), [member.as_str()]);
        // What the other now holds is not ours to touch.
        schedule.settle(&all(&claim.entries)).await.unwrap();
        assert_eq!(tenant.lock_of(&member).await.as_deref(), Some("them"));
        assert_eq!(other.settle(&all(&next.entries)).await.unwrap().removed, 1);
    }
}

#[tokio::test]
async fn a_later_claim_of_our_own_keeps_its_lock() {
    let tenant = Tenant::new("lock-later").await;
    let (member, _) = tenant.mutate("a", "old").await;
    let schedule = tenant.lock_mode("us");
    let first = schedule.claim(1).await.unwrap();
    tenant.mutate("a", "new").await;
    let second = schedule.claim(1).await.unwrap();
    assert_eq!(second.entries.len(), 1, "our own lock does not keep us away");
    schedule.settle(&all(&first.entries)).await.unwrap();
    schedule.release(&all(&first.entries)).await.unwrap();
    schedule.quarantine(&[(&first.entries[0], refusal(QuarantineReason::RefusedByPostgres))]).await.unwrap();
    assert_eq!(tenant.lock_of(&member).await.as_deref(), Some("us"));
    schedule.settle(&all(&second.entries)).await.unwrap();
    assert_eq!(tenant.lock_of(&member).await, None);
}

#[tokio::test]
async fn an_expired_foreign_lock_does_not_block_a_claim() {
    let tenant = Tenant::new("lock-expired").await;
    let (member, _) = tenant.mutate("a", "{}").await;
    tell!(tenant, "SET", tenant.space.lock(member.as_bytes()), 1, "PX", 200);
    let schedule = tenant.lock_mode("us");
    assert!(schedule.claim(1).await.unwrap().entries.is_empty());
    let claim = eventually(SOON, "the claim", || async {
        let claim = schedule.claim(1).await.unwrap();
        (!claim.entries.is_empty()).then_some(claim)
    })
    .await
    .unwrap();
    assert_eq!(names(&claim.entries), [member]);
}

#[tokio::test]
async fn lock_and_lease_of_a_dead_worker_expire_together() {
    let tenant = Tenant::new("lock-dead").await;
    let (member, _) = tenant.mutate("a", "{}").await;
    let dead = tenant.with(|options| {
        options.mode = ClaimMode::Lock;
        options.lock_token = "dead".to_owned();
        options.claim_ttl = Duration::from_millis(250);
    });
    assert_eq!(dead.claim(1).await.unwrap().entries.len(), 1);
    let alive = tenant.lock_mode("alive");
    eventually(SOON, "the takeover", || async { !alive.claim(1).await.unwrap().entries.is_empty() })
        .await
        .unwrap();
    assert_eq!(tenant.lock_of(&member).await.as_deref(), Some("alive"));
}

#[tokio::test]
async fn a_claim_tells_when_the_first_foreign_lock_ends() {
    let tenant = Tenant::new("lock-end").await;
    let members = tenant.schedule_many(4).await;
    let schedule = tenant.lock_mode("us");
    lock_by_ledger(&tenant, &members[..3]).await;
    tell!(tenant, "EXPIRE", tenant.space.lock(members[1].as_bytes()), 300);
    // Has no end.
    tell!(tenant, "PERSIST", tenant.space.lock(members[2].as_bytes()));
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!((claim.foreign, claim.entries.len()), (3, 1));
    let unlock_in = claim.unlock_in.unwrap();
    assert!((Duration::from_secs(200)..=Duration::from_secs(300)).contains(&unlock_in), "{unlock_in:?}");
    unlock(&tenant, &members[..2]).await;
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!((claim.foreign, claim.entries.len(), claim.unlock_in), (1, 2, None));
}

/// For how long the ledger's own worker has held the newest of its locks, as a claim has found it.
fn held_for(claim: &balance_sync_schedule::Claim) -> Option<f64> {
    match claim.ledger_lock {
        LedgerLock::TakenAt(at) => Some(claim.now - at),
        LedgerLock::Free | LedgerLock::NotLooked => None,
    }
}

#[tokio::test]
async fn either_mode_sees_the_locks_of_the_ledgers_own_worker_and_since_when() {
    for mode in ["lease", "lock"] {
        let tenant = Tenant::new(&format!("lock-seen-{mode}")).await;
        let schedule = || if mode == "lock" { tenant.lock_mode("us") } else { tenant.lease_mode() };
        let claim = schedule().claim(10).await.unwrap();
        assert_eq!(claim.ledger_lock, LedgerLock::NotLooked, "{mode}: nothing was due");
        let members = tenant.schedule_many(4).await;
        // Another worker of the fleet is none of its kind.
        tell!(tenant, "SET", tenant.space.lock(members[0].as_bytes()), "token of ours", "PX", 30_000);
        let claim = schedule().claim(10).await.unwrap();
        assert_eq!(claim.ledger_lock, LedgerLock::Free, "{mode}");
        for schedule in [tenant.lease_mode(), tenant.lock_mode("us")] {
            schedule.release(&all(&claim.entries)).await.unwrap();
        }
        // One that a pod left behind eight minutes ago, and one of now.
        tell!(tenant, "SET", tenant.space.lock(members[1].as_bytes()), 1, "EX", 120);
        let claim = schedule().claim(10).await.unwrap();
        assert!((480.0..485.0).contains(&held_for(&claim).unwrap()), "{mode}: {:?}", claim.ledger_lock);
        for schedule in [tenant.lease_mode(), tenant.lock_mode("us")] {
            schedule.release(&all(&claim.entries)).await.unwrap();
        }
        tell!(tenant, "SET", tenant.space.lock(members[2].as_bytes()), 1, "EX", 600);
        let claim = schedule().claim(10).await.unwrap();
        assert!((0.0..5.0).contains(&held_for(&claim).unwrap()), "{mode}: {:?}", claim.ledger_lock);
        // A lease is taken all the same, a lock is respected.
        assert_eq!((claim.entries.len(), claim.foreign), if mode == "lock" { (1, 3) } else { (4, 0) });
    }
}

#[tokio::test]
async fn mode_lease_looks_for_locks_now_and_then_not_with_each_claim() {
    let tenant = Tenant::new("lock-looks").await;
    tenant.schedule_many(50).await;
    let schedule = tenant.lease_mode();
    assert_eq!(schedule.claim(20).await.unwrap().ledger_lock, LedgerLock::Free);
    assert_eq!(schedule.claim(20).await.unwrap().ledger_lock, LedgerLock::NotLooked);
    eventually(SOON, "another look", || async {
        let claim = schedule.claim(1).await.unwrap();
        schedule.release(&all(&claim.entries)).await.unwrap();
        if claim.ledger_lock == LedgerLock::Free { Ok(()) } else { Err("not yet") }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn mode_auto_changes_between_two_claims_and_leaves_no_lock_behind() {
    let tenant = Tenant::new("lock-auto").await;
    let members = tenant.schedule_many(6).await;
    let schedule = tenant.with(|options| {
        options.mode = ClaimMode::Auto;
        options.lock_token = "us".to_owned();
    });
    let locked = schedule.claim(2).await.unwrap();
    assert!(schedule.takes_locks());
    assert_eq!(tenant.lock_of(&members[0]).await.as_deref(), Some("us"), "nothing is known yet");
    schedule.take_locks(false);
    lock_by_ledger(&tenant, &members[2..3]).await;
    let leased = schedule.claim(2).await.unwrap();
    assert_eq!(names(&leased.entries), members[2..4], "its locks count no more");
    assert_eq!(tenant.lock_of(&members[3]).await, None);
    // What was locked before the change is unlocked, and nothing else.
    schedule.settle(&all(&locked.entries[..1])).await.unwrap();
    schedule.release(&all(&locked.entries[1..])).await.unwrap();
    schedule.settle(&all(&leased.entries)).await.unwrap();
    assert_eq!(tenant.lock_of(&members[0]).await, None);
    assert_eq!(tenant.lock_of(&members[1]).await, None);
    assert_eq!(tenant.lock_of(&members[2]).await.as_deref(), Some("1"));
    schedule.take_locks(true);
    lock_by_ledger(&tenant, &members[4..5]).await;
    let again = schedule.claim(10).await.unwrap();
    assert_eq!(names(&again.entries), [members[1].as_str(), members[5].as_str()]);
    assert_eq!(again.foreign, 1);
}
