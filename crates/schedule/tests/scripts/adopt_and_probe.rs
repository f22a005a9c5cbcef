//! Adopting a legacy schedule, probing, counting what waits.

use std::{sync::Arc, time::Duration};

use balance_sync_schedule::probe::{probe, probe_overdue};

use crate::{Tenant, all, names, number, tell};

#[tokio::test]
async fn legacy_scores_in_seconds_and_in_microseconds_become_due() {
    let tenant = Tenant::new("adopt").await;
    let cases = [
        ("seconds", "1700000001", Some(1_700_000_001.0)),
        ("fraction", "1700000002.5", Some(1_700_000_002.5)),
        ("micros", "1700000003466168", Some(1_700_000_003.466_168)),
        ("future", "4000000000", None),
        ("future micros", "4000000000000000", None),
        ("infinite", "inf", None),
        ("zero", "0", Some(0.0)),
    ];
    for (name, score, _) in cases {
        tell!(tenant, "ZADD", tenant.space.legacy_schedule(), score, tenant.member(name));
    }
    let schedule = tenant.lease_mode();
    assert_eq!(schedule.adopt_legacy(4).await.unwrap(), (4, 3), "page by page");
    assert_eq!(schedule.adopt_legacy(4).await.unwrap(), (3, 0));
    assert_eq!(schedule.adopt_legacy(4).await.unwrap(), (0, 0));
    assert_eq!(schedule.scheduled_in(tenant.space.legacy_schedule()).await.unwrap(), 0);
    for (name, _, wanted) in cases {
        let score = number(&tenant.score(&tenant.member(name)).await.unwrap());
        match wanted {
            Some(wanted) => assert!((score - wanted).abs() < 1e-6, "{name}: {score}"),
            None => assert!(score > 1_700_000_003.5, "{name}: {score}"),
        }
    }
    let claim = schedule.claim(100).await.unwrap();
    assert_eq!(claim.entries.len(), cases.len(), "all of them are due");
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, cases.len() as u64);
}

#[tokio::test]
async fn adopting_a_member_that_is_being_flushed_keeps_it_scheduled() {
    let tenant = Tenant::new("adopt-lease").await;
    let (member, _) = tenant.mutate("a", "old").await;
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(1).await.unwrap();
    // An old ledger mutates, and knows only the legacy schedule. It may even write what looks like our lease.
    for score in ["1700000000", &claim.entries[0].lease] {
        tell!(tenant, "ZADD", tenant.space.legacy_schedule(), score, &member);
        assert_eq!(schedule.adopt_legacy(10).await.unwrap(), (1, 0));
        assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 0);
    }
    assert_eq!(names(&schedule.claim(1).await.unwrap().entries), [member]);
}

#[tokio::test]
async fn probing_returns_the_schedules_with_a_due_member() {
    let due = Tenant::new("probe-due").await;
    let leased = Tenant::new("probe-leased").await;
    let wrong = Tenant::new("probe-wrong").await;
    due.mutate("a", "{}").await;
    leased.mutate("a", "{}").await;
    assert_eq!(leased.lease_mode().claim(1).await.unwrap().entries.len(), 1);
    tell!(wrong, "SET", wrong.space.schedule(), "text");
    let keys: Vec<Arc<str>> =
        ["none", leased.space.schedule(), due.space.schedule(), "none", wrong.space.schedule()]
            .map(Arc::from)
            .to_vec();
    assert_eq!(probe(&due.link, &keys).await.unwrap(), [2, 4]);
    assert_eq!(probe(&due.link, &keys[..2]).await.unwrap(), [] as [usize; 0]);
    assert_eq!(probe(&due.link, &[]).await.unwrap(), [] as [usize; 0]);
    let many: Vec<Arc<str>> = std::iter::repeat_n(Arc::from(due.space.schedule()), 10_000).collect();
    assert_eq!(probe(&due.link, &many).await.unwrap().len(), 10_000);
}

#[tokio::test]
async fn probing_for_overdue_members_ignores_fresh_ones() {
    let fresh = Tenant::new("probe-fresh").await;
    let old = Tenant::new("probe-old").await;
    fresh.mutate("a", "{}").await;
    old.mutate("a", "{}").await;
    old.schedule(&old.member("b"), "1700000000").await;
    let keys: Vec<Arc<str>> = [fresh.space.schedule(), old.space.schedule()].map(Arc::from).to_vec();
    let hour = Duration::from_secs(3600);
    assert_eq!(probe_overdue(&old.link, &keys, hour).await.unwrap(), [1]);
    assert_eq!(probe_overdue(&old.link, &keys, Duration::ZERO).await.unwrap(), [0, 1]);
}

#[tokio::test]
async fn the_backlog_counts_due_and_leased_members() {
    let tenant = Tenant::new("backlog").await;
    let schedule = tenant.lease_mode();
    let empty = schedule.backlog().await.unwrap();
    assert_eq!((empty.due, empty.leased, empty.oldest_due_age), (0, 0, 0.0));
    tenant.schedule_many(5).await;
    let claim = schedule.claim(2).await.unwrap();
    let waiting = schedule.backlog().await.unwrap();
    assert_eq!((waiting.due, waiting.leased), (3, 2));
    let age = claim.now - 1_700_000_002.0;
    assert!((waiting.oldest_due_age - age).abs() < 30.0, "{waiting:?}");
    schedule.claim(10).await.unwrap();
    let held = schedule.backlog().await.unwrap();
    assert_eq!((held.due, held.leased, held.oldest_due_age), (0, 5, 0.0));
    assert_eq!(schedule.scheduled_in(tenant.space.schedule()).await.unwrap(), 5);
}
