//! Values of balances that wait must not expire before they are written.

use std::time::Duration;

use balance_sync_schedule::{ProtectPage, RecentFrom, Schedule};

use crate::{Tenant, tell};

/// All pages of one sweep.
async fn sweep(schedule: &Schedule) -> Vec<ProtectPage> {
    let mut pages = Vec::new();
    let mut next: Option<Vec<u8>> = None;
    loop {
        let page = schedule.protect_page(next.as_deref()).await.unwrap();
        next = page.next.clone();
        pages.push(page);
        if next.is_none() {
            return pages;
        }
    }
}

#[tokio::test]
async fn a_sweep_over_many_members_misses_none() {
    let tenant = Tenant::new("protect-many").await;
    let members = tenant.schedule_many(5_200).await;
    // By turns: short, long, without end, no value.
    let mut pipe = redis::pipe();
    for (n, member) in members.iter().enumerate() {
        match n % 4 {
            0 => pipe.cmd("SET").arg(member).arg("{}").arg("PX").arg(120_000).ignore(),
            1 => pipe.cmd("SET").arg(member).arg("{}").arg("PX").arg(5_000_000).ignore(),
            2 => pipe.cmd("SET").arg(member).arg("{}").ignore(),
            _ => &mut pipe,
        };
    }
    pipe.query_async::<()>(&mut tenant.redis.clone()).await.unwrap();

    let schedule = tenant.with(|options| options.protect_floor = Duration::from_secs(900));
    let pages = sweep(&schedule).await;
    assert!(pages.len() > 1, "so many members take more than one page");
    assert!(pages.iter().map(|page| page.seen).sum::<u64>() >= 5_200);
    assert!(pages.iter().map(|page| page.absent).sum::<u64>() >= 1_300);
    assert_eq!(pages.iter().map(|page| page.raised).sum::<u64>(), 1_300);
    let shortest = pages.iter().filter_map(|page| page.shortest).min().unwrap();
    assert!((899_000..=900_000).contains(&shortest.as_millis()), "{shortest:?}");

    let mut pipe = redis::pipe();
    for member in &members {
        pipe.cmd("PTTL").arg(member);
    }
    let ttls: Vec<i64> = pipe.query_async(&mut tenant.redis.clone()).await.unwrap();
    for (n, ttl) in ttls.into_iter().enumerate() {
        let right = match n % 4 {
            0 => (600_000..=900_000).contains(&ttl),
            1 => (4_000_000..=5_000_000).contains(&ttl),
            2 => ttl == -1,
            _ => ttl == -2,
        };
        assert!(right, "member {n} has {ttl} ms left");
    }
}

#[tokio::test]
async fn a_floor_of_zero_only_reads() {
    let tenant = Tenant::new("protect-look").await;
    let (member, _) = tenant.mutate("a", "{}").await;
    tell!(tenant, "PEXPIRE", &member, 100_000);
    let schedule = tenant.with(|options| options.protect_floor = Duration::ZERO);
    let pages = sweep(&schedule).await;
    assert_eq!((pages.len(), pages[0].seen, pages[0].raised, pages[0].absent), (1, 1, 0, 0));
    assert!((50_000..=100_000).contains(&pages[0].shortest.unwrap().as_millis()));
}

#[tokio::test]
async fn without_ttls_there_is_no_shortest_ttl() {
    let tenant = Tenant::new("protect-empty").await;
    let schedule = tenant.lease_mode();
    assert_eq!(sweep(&schedule).await, [ProtectPage::default()]);
    let (member, _) = tenant.mutate("a", "{}").await;
    tell!(tenant, "PERSIST", &member);
    assert_eq!(sweep(&schedule).await, [ProtectPage { seen: 1, ..ProtectPage::default() }]);
}

#[tokio::test]
async fn leased_members_are_protected_and_foreign_ones_are_not() {
    let tenant = Tenant::new("protect-own").await;
    let (leased, _) = tenant.mutate("leased", "{}").await;
    let schedule = tenant.lease_mode();
    assert_eq!(schedule.claim(1).await.unwrap().entries.len(), 1);
    let foreign = "tenant:protect-other:balance:x";
    tell!(tenant, "SET", foreign, "{}");
    tenant.schedule(foreign, "1700000000").await;
    for key in [leased.as_str(), foreign] {
        tell!(tenant, "PEXPIRE", key, 50_000);
    }
    let pages = sweep(&schedule).await;
    assert_eq!((pages[0].seen, pages[0].raised, pages[0].absent), (2, 1, 1));
    assert!(tenant.ttl(&leased).await > 50_000);
    assert!(tenant.ttl(foreign).await <= 50_000);

    tell!(tenant, "PEXPIRE", &leased, 50_000);
    assert_eq!(schedule.protect_since(Some(1.0)).await.unwrap().1, 1);
    assert!(tenant.ttl(foreign).await <= 50_000);
}

#[tokio::test]
async fn members_scheduled_between_sweeps_are_protected() {
    let tenant = Tenant::new("protect-since").await;
    let short = || async {
        for name in ["before", "after", "at"] {
            tell!(tenant, "PEXPIRE", tenant.member(name), 50_000);
        }
    };
    tenant.mutate("before", "{}").await;
    let schedule = tenant.lease_mode();
    let (begun, raised) = schedule.protect_since(None).await.unwrap();
    assert_eq!(raised, 0);
    tenant.mutate("after", "{}").await;
    // In the very microsecond of the last look: the look may have come before it.
    let at = tenant.member("at");
    tell!(tenant, "SET", &at, "{}");
    tenant.schedule(&at, &format!("{begun:.6}")).await;
    short().await;
    let (next, raised) = schedule.protect_since(Some(begun)).await.unwrap();
    assert!(next > begun);
    assert_eq!(raised, 2);
    assert!(tenant.ttl(&tenant.member("before")).await <= 50_000);
    assert!(tenant.ttl(&tenant.member("after")).await > 50_000);
    assert!(tenant.ttl(&at).await > 50_000);
    short().await;
    assert_eq!(schedule.protect_since(Some(next)).await.unwrap().1, 0);
}

#[tokio::test]
async fn recently_scheduled_members_are_protected_page_by_page() {
    let tenant = Tenant::new("protect-pages").await;
    let members = tenant.schedule_many(1_700).await;
    let mut pipe = redis::pipe();
    for member in &members {
        pipe.cmd("SET").arg(member).arg("{}").arg("PX").arg(50_000).ignore();
    }
    pipe.query_async::<()>(&mut tenant.redis.clone()).await.unwrap();
    // Members of one claim share one score: the pages must not stumble over that.
    assert_eq!(
        tenant.with(|o| o.protect_floor = Duration::ZERO).claim(900).await.unwrap().entries.len(),
        900
    );
    assert_eq!(tenant.lease_mode().protect_since(Some(1.0)).await.unwrap().1, 1_700);
}

#[tokio::test]
async fn settling_between_two_pages_skips_no_member() {
    let tenant = Tenant::new("protect-moving").await;
    let members = tenant.schedule_many(1_700).await;
    let mut pipe = redis::pipe();
    for member in &members {
        pipe.cmd("SET").arg(member).arg("{}").arg("PX").arg(50_000).ignore();
    }
    pipe.query_async::<()>(&mut tenant.redis.clone()).await.unwrap();
    let schedule = tenant.lease_mode();
    let idle = tenant.with(|options| options.protect_floor = Duration::ZERO);
    // Half of them under one score, as members of one claim are.
    assert_eq!(idle.claim(850).await.unwrap().entries.len(), 850);

    let (mut from, mut gone) = (RecentFrom::time(1.0), Vec::new());
    // Each page is followed by the settling of the last members that it saw, and of some before.
    while let Some(next) = schedule.protect_recent_page(&from).await.unwrap().next {
        from = next;
        let seen: Vec<&String> = {
            let mut pipe = redis::pipe();
            for member in &members {
                pipe.cmd("PTTL").arg(member);
            }
            let ttls: Vec<i64> = pipe.query_async(&mut tenant.redis.clone()).await.unwrap();
            members.iter().zip(ttls).filter(|(_, ttl)| *ttl > 50_000).map(|(member, _)| member).collect()
        };
        let settled: Vec<&String> =
            seen.into_iter().filter(|member| !gone.contains(member)).take(400).collect();
        tell!(tenant, "ZREM", tenant.space.schedule(), &settled);
        gone.extend(settled);
    }
    assert!(gone.len() >= 800, "three pages at the least");
    for member in &members {
        assert!(tenant.ttl(member).await > 50_000, "{member} was passed over");
    }
}

#[tokio::test]
async fn the_next_page_begins_after_a_last_member_that_was_settled() {
    let tenant = Tenant::new("protect-last-gone").await;
    let members = tenant.schedule_many(1_200).await;
    let idle = tenant.with(|options| options.protect_floor = Duration::ZERO);
    assert_eq!(idle.claim(1_200).await.unwrap().entries.len(), 1_200);
    let mut pipe = redis::pipe();
    for member in &members {
        pipe.cmd("SET").arg(member).arg("{}").arg("PX").arg(50_000).ignore();
    }
    pipe.query_async::<()>(&mut tenant.redis.clone()).await.unwrap();
    let schedule = tenant.lease_mode();
    let mut from = RecentFrom::time(1.0);
    let mut pages = 0;
    // All have one score, in the order of their names: the last of each page is settled.
    while let Some(next) = schedule.protect_recent_page(&from).await.unwrap().next {
        pages += 1;
        assert!(pages < 10, "no end");
        from = next;
        let mut last = None;
        for member in &members {
            if tenant.ttl(member).await > 50_000 {
                last = Some(member);
            }
        }
        tell!(tenant, "ZREM", tenant.space.schedule(), last);
    }
    for member in &members {
        assert!(tenant.ttl(member).await > 50_000, "{member} was passed over");
    }
}

/// Older ledgers mark a deletion under `<balance key>:deleted`, and wait for the end of that key. It is put off again and again
/// until then.
#[tokio::test]
async fn a_deletion_marker_keeps_its_ttl_and_the_value_of_a_balance_with_such_a_key_does_not() {
    let tenant = Tenant::new("protect-marker").await;
    let schedule = tenant.with(|options| options.put_off = Duration::from_millis(1));
    let marker = format!("{}:deleted", tenant.member("a"));
    let balance = format!("{}:deleted", tenant.member("b"));
    for (member, value) in [(&marker, "9f86d081884c7d65"), (&balance, " {\"ID\":1}")] {
        tell!(tenant, "SET", member, value, "PX", 60_000);
        tenant.schedule(member, "1795380490.5").await;
    }
    let left = async |member: &str| tenant.ttl(member).await / 1000;

    let claim = schedule.claim(10).await.unwrap().entries;
    assert_eq!(claim.len(), 2);
    assert_eq!((left(&marker).await <= 60, left(&balance).await > 600), (true, true), "by a claim");
    tell!(tenant, "PEXPIRE", &balance, 60_000);
    schedule.release(&claim.iter().collect::<Vec<_>>()).await.unwrap();
    assert_eq!((left(&marker).await <= 60, left(&balance).await > 600), (true, true), "by a release");
    tell!(tenant, "PEXPIRE", &balance, 60_000);
    sweep(&schedule).await;
    assert_eq!((left(&marker).await <= 60, left(&balance).await > 600), (true, true), "by a sweep");
    tell!(tenant, "PEXPIRE", &balance, 60_000);
    schedule.protect_since(Some(0.0)).await.unwrap();
    assert_eq!(
        (left(&marker).await <= 60, left(&balance).await > 600),
        (true, true),
        "by a look at the recent"
    );
}
