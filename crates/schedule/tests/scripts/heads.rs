//! Whether anybody claims, as who stands by sees it.

use std::sync::Arc;

use balance_sync_schedule::{Head, HeadState, heads::read_heads};

use crate::{Tenant, all, tell};

/// A look at one schedule after the last one.
async fn look(tenant: &Tenant, last: Option<&HeadState>) -> Option<HeadState> {
    let key: Arc<str> = Arc::from(tenant.space.schedule());
    let at = [(&key, last.map(|seen| &seen.head))];
    read_heads(&tenant.link, at.into_iter()).await.unwrap().remove(0)
}

/// A balance that was mutated now. Redis prints the double that its score became, not the digits that were written.
async fn mutated(tenant: &Tenant) -> Head {
    let (member, _) = tenant.mutate("a", "{}").await;
    let score = tenant.score(&member).await.unwrap();
    Head { member: member.into_bytes(), score }
}

#[tokio::test]
async fn an_unclaimed_head_is_reported_as_unclaimed() {
    let tenant = Tenant::new("heads-waits").await;
    assert_eq!(look(&tenant, None).await, None);
    let head = mutated(&tenant).await;
    tenant.mutate("b", "{}").await;
    let first = look(&tenant, None).await.unwrap();
    assert_eq!(first, HeadState { head: head.clone(), unclaimed: false }, "nothing was at the head before");
    assert_eq!(look(&tenant, Some(&first)).await, Some(HeadState { head, unclaimed: true }));
    // Another mutation moves it behind the other one, and it waits all the same.
    tenant.mutate("a", "{}").await;
    let second = look(&tenant, Some(&first)).await.unwrap();
    assert_eq!((second.head.member, second.unclaimed), (tenant.member("b").into_bytes(), true));
}

#[tokio::test]
async fn a_claimed_or_settled_head_is_not_unclaimed() {
    let tenant = Tenant::new("heads-claimed").await;
    let schedule = tenant.lease_mode();
    tenant.mutate("a", "{}").await;
    tenant.mutate("b", "{}").await;
    let before = look(&tenant, None).await.unwrap();
    let claim = schedule.claim(1).await.unwrap();
    let held = look(&tenant, Some(&before)).await.unwrap();
    assert_eq!((&held.head.member, held.unclaimed), (&tenant.member("b").into_bytes(), false), "held");
    schedule.settle(&all(&claim.entries)).await.unwrap();
    let gone = look(&tenant, Some(&before)).await.unwrap();
    assert_eq!((&gone.head.member, gone.unclaimed), (&tenant.member("b").into_bytes(), false), "written");
    schedule.claim(1).await.unwrap();
    assert_eq!(look(&tenant, Some(&gone)).await, None, "nothing is due");
}

#[tokio::test]
async fn many_heads_are_read_in_one_call_and_a_key_of_the_wrong_type_is_skipped() {
    let (due, wrong) = (Tenant::new("heads-many").await, Tenant::new("heads-wrong").await);
    let head = mutated(&due).await;
    tell!(wrong, "SET", wrong.space.schedule(), "text");
    let keys: Vec<Arc<str>> = (0..10_000)
        .map(|n| Arc::from(if n == 7 { wrong.space.schedule() } else { due.space.schedule() }))
        .collect();
    let seen = read_heads(&due.link, keys.iter().map(|key| (key, Some(&head)))).await.unwrap();
    assert_eq!(seen.len(), 10_000);
    for (n, seen) in seen.into_iter().enumerate() {
        assert_eq!(seen, (n != 7).then(|| HeadState { head: head.clone(), unclaimed: true }), "{n}");
    }
    let none: [(&Arc<str>, Option<&Head>); 0] = [];
    assert_eq!(read_heads(&due.link, none.into_iter()).await.unwrap(), []);
}
