//! Backlog and TTLs of many tenants, sampled in one call.

use std::{collections::HashSet, time::Duration};

use balance_sync_domain::KeySpace;
use balance_sync_schedule::{
    PageEnd, Sample, SampleRequest, sample,
    sample::{SCHEDULES_PER_CALL, TTLS_PER_CALL, sample_with},
};

use crate::{Tenant, common, tell};

/// Samples one tenant.
async fn sample_one(tenant: &Tenant, at: SampleRequest<'_>) -> Sample {
    sample_with(&tenant.link, &[at]).await.unwrap().remove(0)
}

async fn live(tenant: &Tenant, members: &[String], ttl_ms: impl Fn(usize) -> u64) {
    let mut pipe = redis::pipe();
    for (n, member) in members.iter().enumerate() {
        pipe.cmd("SET").arg(member).arg("{}").arg("PX").arg(ttl_ms(n)).ignore();
    }
    pipe.query_async::<()>(&mut tenant.redis.clone()).await.unwrap();
}

fn ttl_of(sample: &Sample) -> Duration {
    sample.shortest.as_ref().unwrap().0
}

fn about(ttl: Duration, millis: u64) -> bool {
    (millis.saturating_sub(10_000)..=millis).contains(&(ttl.as_millis() as u64))
}

#[tokio::test]
async fn a_sample_counts_due_leased_and_quarantined_members() {
    let tenant = Tenant::new("sample-counts").await;
    tenant.quarantined("bad", "{}").await;
    let (held, _) = tenant.mutate("held", "{}").await;
    assert_eq!(tenant.lease_mode().claim(10).await.unwrap().entries.len(), 1);
    tenant.mutate("due", "{}").await;
    let hour_ago: (u64, u64) = crate::ask!(tenant, "TIME");
    tenant.schedule(&tenant.member("old"), &format!("{}.5", hour_ago.0 - 3600)).await;

    let found = sample_one(&tenant, SampleRequest::first_page(&tenant.space)).await;
    assert_eq!((found.scheduled, found.due, found.leased, found.quarantined), (Some(3), 2, 1, Some(1)));
    assert!((3_590..3_700).contains(&found.oldest_due_age.as_secs()), "{:?}", found.oldest_due_age);
    assert_eq!(found.page, PageEnd::Last);
    assert!((20..=30).contains(&found.ahead.as_secs()), "the lease: {:?}", found.ahead);
    let lease = found.lease_ends_in.unwrap();
    assert!(lease <= found.ahead + Duration::from_millis(1) && lease.as_secs() >= 20, "{found:?}");
    // A held one counts as well.
    tell!(tenant, "PEXPIRE", &held, 40_000);
    let found = sample_one(&tenant, SampleRequest::first_page(&tenant.space)).await;
    assert_eq!(found.shortest.as_ref().unwrap().1, held.as_bytes());
    assert!(about(ttl_of(&found), 40_000), "{found:?}");
    assert_eq!(tenant.ttl(&tenant.member("due")).await / 1_000_000, 3, "nothing was touched");

    // What a clock that jumped back left ahead is no lease, though it comes first.
    let (second, _): (u64, u64) = crate::ask!(tenant, "TIME");
    tenant.schedule(&tenant.member("ahead"), &format!("{}", second + 10)).await;
    assert_eq!(sample_one(&tenant, SampleRequest::first_page(&tenant.space)).await.lease_ends_in, None);
    tell!(tenant, "ZREM", tenant.space.schedule(), tenant.member("ahead"), &held);
    assert_eq!(sample_one(&tenant, SampleRequest::first_page(&tenant.space)).await.lease_ends_in, None);
}

#[tokio::test]
async fn members_whose_values_do_not_exist_are_counted_in_the_head_and_in_the_page() {
    let tenant = Tenant::new("sample-gone").await;
    let members = tenant.schedule_many(300).await;
    live(&tenant, &members, |_| 1_000_000).await;
    let head: Vec<Vec<u8>> = crate::ask!(tenant, "ZRANGE", tenant.space.schedule(), 0, 9);
    tell!(tenant, "DEL", &head[0], &head[1]);
    tell!(tenant, "DEL", tenant.member("no such"));
    // A value of another type is one, and one of another tenant is not looked at.
    tell!(tenant, "DEL", &head[2]);
    tell!(tenant, "HSET", &head[2], "a", "b");
    tenant.schedule("tenant:sample-another:balance:x", "1").await;

    let ask = |head, page, again| SampleRequest { space: &tenant.space, head, page, from: None, again };
    let found = sample_one(&tenant, ask(11, 0, None)).await;
    assert_eq!((found.gone, found.gone_in_page), (2, 0));
    let found = sample_one(&tenant, ask(11, 1_000, Some(head[0].as_slice()))).await;
    assert_eq!((found.gone, found.gone_in_page, found.page), (2, 2, PageEnd::Last), "each of them once");
    let found = sample_one(&tenant, ask(1, 0, Some(head[1].as_slice()))).await;
    assert_eq!((found.gone, found.gone_in_page), (1, 0), "the one that is read again");
    let nothing = sample_one(&tenant, ask(1, 0, None)).await;
    assert_eq!((nothing.gone, nothing.gone_in_page), (0, 0));
}

#[tokio::test]
async fn empty_schedules_values_without_ttl_and_keys_of_the_wrong_type() {
    let (empty, immortal, wrong) = (
        Tenant::new("sample-empty").await,
        Tenant::new("sample-immortal").await,
        Tenant::new("sample-wrong").await,
    );
    let (member, _) = immortal.mutate("a", "{}").await;
    tell!(immortal, "PERSIST", &member);
    tell!(wrong, "SET", wrong.space.schedule(), "text");
    tell!(wrong, "SET", wrong.space.quarantine(), "text");
    tell!(wrong, "SET", wrong.space.losses(), "text");
    let spaces = [&empty.space, &wrong.space, &immortal.space];
    let found = sample(&empty.link, &spaces).await.unwrap();
    let nothing = Sample { scheduled: Some(0), quarantined: Some(0), lost: Some(0), ..Sample::default() };
    assert_eq!(found[0], nothing);
    assert_eq!(found[1], Sample::default(), "and the others are looked at all the same");
    assert_eq!((found[2].due, &found[2].shortest), (1, &None));
    assert_eq!(sample(&empty.link, &[]).await.unwrap(), []);
}

#[tokio::test]
async fn extreme_scores_do_no_harm() {
    let tenant = Tenant::new("sample-scores").await;
    for (name, score) in [("a", "-inf"), ("b", "inf"), ("c", "1e300"), ("d", "-5")] {
        tenant.schedule(&tenant.member(name), score).await;
    }
    let found = sample_one(&tenant, SampleRequest::first_page(&tenant.space)).await;
    assert_eq!((found.scheduled, found.due, found.leased), (Some(4), 2, 2));
    assert!(found.oldest_due_age > Duration::from_secs(1_700_000_000), "since 1970 at the most");
    assert_eq!(found.ahead, Duration::from_secs(1_000_000_000), "and as far ahead as that");
}

#[tokio::test]
async fn values_of_another_tenant_are_not_read() {
    let tenant = Tenant::new("sample-own").await;
    let foreign = "tenant:sample-other:balance:x";
    tell!(tenant, "SET", foreign, "{}", "PX", 1_000_000);
    tenant.schedule(foreign, "1700000000").await;
    assert_eq!(sample_one(&tenant, SampleRequest::first_page(&tenant.space)).await.shortest, None);

    let single = Tenant::on(KeySpace::single(), &common::server().await.url()).await;
    single.schedule(foreign, "1700000000").await;
    let (own, _) = single.mutate("a", "{}").await;
    assert_eq!(
        sample_one(&single, SampleRequest::first_page(&single.space)).await.shortest.unwrap().1,
        own.as_bytes()
    );
}

#[tokio::test]
async fn paging_reads_every_ttl_and_the_shortest_is_read_again() {
    let tenant = Tenant::new("sample-pages").await;
    let members = tenant.schedule_many(3_000).await;
    live(&tenant, &members, |n| if n == 2_345 { 100_000 } else { 1_000_000 + n as u64 }).await;
    let (mut from, mut again, mut pages): (Option<Vec<u8>>, Option<Vec<u8>>, _) = (None, None, 0);
    let found = loop {
        let ask = SampleRequest {
            space: &tenant.space,
            head: 5,
            page: 100,
            from: from.as_deref(),
            again: again.as_deref(),
        };
        let found = sample_one(&tenant, ask).await;
        pages += 1;
        again = found.shortest.clone().map(|(_, member)| member);
        match &found.page {
            PageEnd::Next(next) => from = Some(next.clone()),
            PageEnd::Last => break found,
            PageEnd::NotRead => panic!("a page was asked for"),
        }
    };
    assert!(pages > 10, "{pages}");
    let (left, whose) = found.shortest.unwrap();
    assert_eq!(whose, members[2_345].as_bytes());
    assert!(about(left, 100_000), "{left:?}");

    // Written since: what is left is the head's.
    tell!(tenant, "ZREM", tenant.space.schedule(), &members[2_345]);
    let ask = SampleRequest { space: &tenant.space, head: 5, page: 0, from: None, again: Some(&whose) };
    let found = sample_one(&tenant, ask).await;
    assert_eq!(
        (found.shortest.as_ref().unwrap().1.as_slice(), &found.page),
        (members[0].as_bytes(), &PageEnd::NotRead)
    );
}

#[tokio::test]
async fn one_call_reads_a_bounded_number_of_ttls_and_counts_the_rest() {
    let mut tenants = Vec::new();
    for n in 0..4 {
        let tenant = Tenant::new(&format!("sample-bound-{n}")).await;
        let members = tenant.schedule_many(1_000).await;
        live(&tenant, &members, |n| 1_000_000 + n as u64).await;
        tenants.push(tenant);
    }
    let requests: Vec<SampleRequest<'_>> = tenants
        .iter()
        .map(|tenant| SampleRequest {
            head: 10,
            page: TTLS_PER_CALL,
            ..SampleRequest::first_page(&tenant.space)
        })
        .collect();
    let found = sample_with(&tenants[0].link, &requests).await.unwrap();
    assert!(found.iter().all(|sample| sample.due == 1_000 && sample.oldest_due_age.as_secs() > 0));
    assert_eq!(found[0].page, PageEnd::Last);
    assert_eq!((&found[3].page, &found[3].shortest), (&PageEnd::NotRead, &None));
}

#[tokio::test]
async fn more_tenants_than_fit_in_one_call_are_sampled_in_order() {
    let some = Tenant::new("sample-many").await;
    let spaces: Vec<KeySpace> =
        (0..SCHEDULES_PER_CALL + 30).map(|n| common::space_of(&format!("sample-many-{n}"))).collect();
    let busy = HashSet::from([0, SCHEDULES_PER_CALL - 1, SCHEDULES_PER_CALL, SCHEDULES_PER_CALL + 29]);
    for at in &busy {
        tell!(some, "ZADD", spaces[*at].schedule(), 1, "member");
    }
    let found = sample(&some.link, &spaces.iter().collect::<Vec<_>>()).await.unwrap();
    assert_eq!(found.len(), spaces.len());
    let due: HashSet<usize> = (0..found.len()).filter(|at| found[*at].due == 1).collect();
    assert_eq!(due, busy);
}
