//! What stands where it is not expected: keys of the wrong type, members that a cluster keeps elsewhere, a clock that goes
//! back. One such thing must not keep other members from being worked.

use std::sync::Arc;

use balance_sync_domain::QuarantineReason;
use balance_sync_sandbox::{RedisOptions, RedisServer, eventually};
use balance_sync_schedule::{
    ErrorClass, HeadState, RecentFrom, Unreadable, Vanished, heads::read_heads, probe::probe, sample,
};

use crate::{SOON, Tenant, all, ask, common, names, number, refusal, tell};

#[tokio::test]
async fn a_quarantine_key_of_another_type_stops_neither_claims_nor_settling() {
    let tenant = Tenant::new("odd-quarantine").await;
    tell!(tenant, "SET", tenant.space.quarantine(), "text");
    let (good, _) = tenant.mutate("good", "{}").await;
    let (gone, _) = tenant.mutate("gone", "{}").await;
    tell!(tenant, "DEL", &gone);
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!(names(&claim.entries), [good.as_str(), gone.as_str()]);
    assert_eq!(claim.entries[1].value, None);
    assert_eq!(schedule.settle(&all(&claim.entries[..1])).await.unwrap().removed, 1);
    assert_eq!(tenant.score(&good).await, None);
    // What can't be set aside stays scheduled, and it is said why.
    let error = schedule
        .quarantine(&[(&claim.entries[1], refusal(QuarantineReason::ValueExpired))])
        .await
        .unwrap_err();
    assert_eq!(error.class, ErrorClass::WrongType);
    assert!(tenant.score(&gone).await.is_some());
}

#[tokio::test]
async fn a_lock_key_of_another_type_counts_as_foreign() {
    let tenant = Tenant::new("odd-lock").await;
    let (odd, _) = tenant.mutate("a", "{}").await;
    let (good, _) = tenant.mutate("b", "{}").await;
    tell!(tenant, "RPUSH", tenant.space.lock(odd.as_bytes()), "element");
    let schedule = tenant.lock_mode("us");
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!((names(&claim.entries), claim.foreign), (vec![good.as_str()], 1));

    // It came while we held the member.
    for end in ["settle", "release", "quarantine"] {
        let lock = tenant.space.lock(good.as_bytes());
        tell!(tenant, "DEL", &lock);
        tenant.mutate("b", "{}").await;
        let claim = schedule.claim(10).await.unwrap();
        tell!(tenant, "DEL", &lock);
        tell!(tenant, "RPUSH", &lock, "element");
        let held = all(&claim.entries);
        let done = match end {
            "settle" => schedule.settle(&held).await.unwrap().removed,
            "release" => schedule.release(&held).await.unwrap().released,
            _ => {
                schedule
                    .quarantine(&[(held[0], refusal(QuarantineReason::RefusedByPostgres))])
                    .await
                    .unwrap()
                    .quarantined
            }
        };
        assert_eq!(done, 1, "{end}");
    }
}

#[tokio::test]
async fn a_value_of_another_type_is_distinguished_from_an_expired_one() {
    let tenant = Tenant::new("odd-value").await;
    let (odd, _) = tenant.mutate("a", "{}").await;
    let (good, _) = tenant.mutate("b", "{}").await;
    let (gone, _) = tenant.mutate("c", "{}").await;
    let (hash, _) = tenant.mutate("d", "{}").await;
    let (foreign, _) =
        ("tenant:somebody-else:balance:x", tenant.schedule("tenant:somebody-else:balance:x", "1").await);
    tell!(tenant, "DEL", &odd, &gone, &hash, foreign);
    tell!(tenant, "RPUSH", &odd, "element");
    tell!(tenant, "HSET", &hash, "field", "element");
    tell!(tenant, "RPUSH", foreign, "element");
    for schedule in [tenant.lease_mode(), tenant.lock_mode("us")] {
        let claim = schedule.claim(10).await.unwrap();
        assert_eq!(names(&claim.entries), [foreign, &odd, &good, &gone, &hash]);
        let read: Vec<(bool, Option<Unreadable>)> = claim
            .entries
            .iter()
            .map(|claimed| (claimed.value.is_some(), claimed.unreadable.clone()))
            .collect();
        let [list, hash] =
            ["list", "hash"].map(|kind| Some(Unreadable::Refused(format!("its key is of type {kind}"))));
        assert_eq!(read, [(false, None), (false, list), (true, None), (false, None), (false, hash)]);
        assert_eq!(schedule.release(&all(&claim.entries)).await.unwrap().released, 5);
    }
    tell!(tenant, "DEL", foreign);
}

#[tokio::test]
async fn keys_of_unexpected_types_can_be_inspected() {
    let tenant = Tenant::new("odd-inspect").await;
    let schedule = tenant.lock_mode("us");
    let (member, score) = tenant.mutate("a", "{}").await;
    tell!(tenant, "DEL", &member);
    let found = schedule.inspect(member.as_bytes()).await.unwrap();
    assert_eq!((found.value, found.unreadable), (None, None));
    tell!(tenant, "RPUSH", &member, "element");
    tell!(tenant, "RPUSH", tenant.space.lock(member.as_bytes()), "element");
    tell!(tenant, "SET", tenant.space.quarantine(), "text");
    let found = schedule.inspect(member.as_bytes()).await.unwrap();
    assert_eq!(found.unreadable.as_deref(), Some("its key is of type list"));
    assert_eq!((found.score, found.value, found.lock), (Some(number(&score)), None, None));
}

#[tokio::test]
async fn a_kept_copy_replaces_a_value_of_another_type_until_the_next_mutation() {
    let tenant = Tenant::new("odd-kept").await;
    let schedule = tenant.lease_mode();
    let member = tenant.quarantined("a", "version 1").await;
    tell!(tenant, "DEL", &member);
    tell!(tenant, "RPUSH", &member, "element");
    assert_eq!(schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap().done, 1);
    let claim = schedule.claim(10).await.unwrap();
    let [claimed] = claim.entries.as_slice() else { panic!("{claim:?}") };
    assert_eq!((claimed.value.as_deref(), &claimed.unreadable), (Some(&b"version 1"[..]), &None));

    tenant.mutate("a", "version 2").await;
    let claim = schedule.claim(10).await.unwrap();
    let [claimed] = claim.entries.as_slice() else { panic!("{claim:?}") };
    assert_eq!((claimed.value.as_deref(), &claimed.unreadable), (Some(&b"version 2"[..]), &None));
}

/// A node that has all slots but that of one member.
async fn node_without(slot_of: &str) -> RedisServer {
    let extra = vec!["cluster-require-full-coverage no".to_owned()];
    let options = RedisOptions { cluster: true, extra, ..RedisOptions::default() };
    let server = RedisServer::start(options).await.unwrap();
    let mut redis = server.connect().await.unwrap();
    let slot: u16 = redis::cmd("CLUSTER").arg("KEYSLOT").arg(slot_of).query_async(&mut redis).await.unwrap();
    let slots: Vec<u16> = (0..16_384).filter(|other| *other != slot).collect();
    redis::cmd("CLUSTER").arg("ADDSLOTS").arg(&slots).query_async::<()>(&mut redis).await.unwrap();
    eventually(SOON, "a node that serves", async || {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut redis.clone()).await.unwrap();
        info.contains("cluster_state:ok")
    })
    .await
    .unwrap();
    server
}

#[tokio::test]
async fn members_in_another_slot_of_a_cluster_block_no_others() {
    let (foreign, other) = ("tenant:cluster:balance:elsewhere", "tenant:cluster:balance:other");
    let server = node_without(foreign).await;
    let tenant = Tenant::on(common::space_of("cluster"), &server.url()).await;
    tenant.schedule(foreign, "1700000000").await;
    tenant.schedule(other, "1700000001").await;
    tell!(tenant, "SET", other, "{}");
    let (good, _) = tenant.mutate("good", "{}").await;
    let set_ttl = async |millis: u64| tell!(tenant, "PEXPIRE", &good, millis);

    set_ttl(50_000).await;
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!(names(&claim.entries), [foreign, other, good.as_str()]);
    assert_eq!((&claim.entries[0].value, claim.entries[2].value.is_some()), (&None, true));
    let why = claim.entries[0].unreadable.as_ref().unwrap().to_string();
    assert!(why.contains("non local key") || why.contains("slot not served"), "{why}");
    assert!(claim.entries[1..].iter().all(|claimed| claimed.unreadable.is_none()));
    assert!(tenant.ttl(&good).await > 50_000, "protected all the same");
    set_ttl(50_000).await;
    assert_eq!(schedule.release(&all(&claim.entries)).await.unwrap().released, 3);
    assert!(tenant.ttl(&good).await > 50_000);
    set_ttl(50_000).await;
    let page = schedule.protect_page(None).await.unwrap();
    assert_eq!((page.seen, page.raised), (3, 1));
    set_ttl(50_000).await;
    assert_eq!(schedule.protect_recent_page(&RecentFrom::time(1.0)).await.unwrap().raised, 1);
    let found = balance_sync_schedule::sample(&tenant.link, &[&tenant.space]).await.unwrap();
    assert_eq!((found[0].due, found[0].shortest.is_some()), (3, true));

    let claim = schedule.claim(10).await.unwrap();
    let [elsewhere, rest @ ..] = claim.entries.as_slice() else { panic!("nothing claimed") };
    assert_eq!(schedule.settle(&rest.iter().collect::<Vec<_>>()).await.unwrap().removed, 2);
    assert_eq!(
        schedule
            .quarantine(&[(elsewhere, refusal(QuarantineReason::RefusedByPostgres))])
            .await
            .unwrap()
            .quarantined,
        1
    );
    let left: u64 = ask!(tenant, "ZCARD", tenant.space.schedule());
    assert_eq!(left, 0);
}

#[tokio::test]
async fn extreme_scores_are_claimed_or_wait_and_are_restored_exactly() {
    let tenant = Tenant::new("odd-scores").await;
    for (name, score) in [("a", "-inf"), ("b", "-1e300"), ("c", "0"), ("d", "1e15"), ("e", "inf")] {
        tenant.schedule(&tenant.member(name), score).await;
    }
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!(claim.entries.len(), 3, "what lies in the future isn't due");
    assert!(claim.entries.iter().all(|claimed| claimed.scheduled_at().is_none()));
    assert_eq!(schedule.release(&all(&claim.entries)).await.unwrap().released, 3);
    assert_eq!(tenant.score(&tenant.member("a")).await.as_deref(), Some("-inf"));
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 3);
}

#[tokio::test]
async fn the_bytes_of_one_claim_are_bounded() {
    let tenant = Tenant::new("odd-large").await;
    let value = "x".repeat(1024 * 1024);
    let mut members = Vec::new();
    for n in 0..20 {
        members.push(tenant.mutate(&format!("m{n:02}"), if n == 4 { "{}" } else { &value }).await);
    }
    let schedule = tenant.lock_mode("us");
    let mut seen: Vec<String> = Vec::new();
    for calls in 1.. {
        assert!(calls < 10, "no end");
        let claim = schedule.claim(100).await.unwrap();
        if claim.entries.is_empty() {
            break;
        }
        assert!(claim.entries.iter().all(|claimed| claimed.value.is_some()));
        let bytes: usize =
            claim.entries.iter().filter_map(|claimed| claimed.value.as_ref()).map(Vec::len).sum();
        assert!(bytes <= 4 * 1024 * 1024, "{bytes} bytes in one answer");
        seen.extend(names(&claim.entries).iter().map(|name| (*name).to_owned()));
        // What did not come is as it was: due under its own score, and without a lock.
        for (member, score) in members.iter().filter(|(member, _)| !seen.contains(member)) {
            assert_eq!(number(&tenant.score(member).await.unwrap()), number(score));
            assert_eq!(tenant.lock_of(member).await, None);
        }
    }
    assert_eq!(seen, members.iter().map(|(member, _)| member.clone()).collect::<Vec<_>>());
}

/// A server of its own, because it counts bytes and commands.
pub(crate) async fn counting(id: &str) -> (RedisServer, Tenant) {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(common::space_of(id), &server.url()).await;
    (server, tenant)
}

/// The number behind a name in the answer to `INFO`; 0 if it is not there.
pub(crate) async fn counted(tenant: &Tenant, section: &str, name: &str) -> u64 {
    let info: String = ask!(tenant, "INFO", section);
    let found = info.split_once(name).map(|(_, rest)| rest.trim_start_matches([':', '=']));
    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
    found.map_or(0, |rest| digits(rest).parse().unwrap())
}

#[tokio::test]
async fn a_value_that_is_too_large_is_never_read() {
    for mode in ["lease", "lock"] {
        let (_server, tenant) = counting("odd-huge").await;
        let huge = "x".repeat(4 * 1024 * 1024);
        let mut members = Vec::new();
        for n in 0..6 {
            members.push(tenant.mutate(&format!("huge{n}"), &huge).await.0);
        }
        let (edge, _) = tenant.mutate("edge", &"x".repeat(1024 * 1024)).await;
        let (good, _) = tenant.mutate("good", "{}").await;
        let schedule = if mode == "lock" { tenant.lock_mode("us") } else { tenant.lease_mode() };
        let before = counted(&tenant, "stats", "total_net_output_bytes").await;
        let claim = schedule.claim(100).await.unwrap();
        let sent = counted(&tenant, "stats", "total_net_output_bytes").await - before;
        assert!(sent < 1024 * 1024 + 65_536, "{sent} bytes were sent");
        // Neither did the script read them: two values in one call.
        assert_eq!(counted(&tenant, "commandstats", "cmdstat_mget:calls").await, 1);
        assert_eq!(counted(&tenant, "commandstats", "cmdstat_strlen:calls").await, 8);
        assert_eq!(claim.entries.len(), 8);
        let (large, read) = claim.entries.split_at(6);
        let too_large = Some(Unreadable::TooLarge(4 * 1024 * 1024));
        assert!(large.iter().all(|claimed| claimed.value.is_none() && claimed.unreadable == too_large));
        assert_eq!(names(read), [edge.as_str(), good.as_str()]);
        assert!(read.iter().all(|claimed| claimed.value.is_some()));

        // It is kept for a retry, and the other way to it does not read it either.
        let reason = large[0].unreadable.as_ref().unwrap().reason();
        assert_eq!(reason, QuarantineReason::ValueTooLarge);
        let refused: Vec<_> = large.iter().map(|claimed| (claimed, refusal(reason))).collect();
        assert_eq!(schedule.quarantine(&refused).await.unwrap().quarantined, 6);
        assert_eq!(tenant.ttl(&members[0]).await, -1);
        let before = counted(&tenant, "stats", "total_net_output_bytes").await;
        let found = schedule.inspect(members[0].as_bytes()).await.unwrap();
        assert_eq!(found.value, None);
        assert_eq!(
            format!("the value can't be read: {}", found.unreadable.unwrap()),
            "the value can't be read: it has 4194304 bytes; allowed: at most 1048576"
        );
        assert!(
            large[0].unreadable.as_ref().unwrap().to_string().ends_with("bytes; allowed: at most 1048576")
        );
        assert!(counted(&tenant, "stats", "total_net_output_bytes").await - before < 65_536);

        // Once its writer has mended it, it is claimed as any other.
        tenant.mutate("huge0", "{}").await;
        assert_eq!(names(&schedule.claim(10).await.unwrap().entries), [members[0].as_str()]);
    }
}

#[tokio::test]
async fn an_older_copy_does_not_take_the_place_of_a_value_that_is_too_large() {
    let tenant = Tenant::new("odd-huge-kept").await;
    let schedule = tenant.lease_mode();
    let member = tenant.quarantined("a", "version 1").await;
    tell!(tenant, "SET", &member, "x".repeat(1024 * 1024 + 1));
    assert_eq!(schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap().done, 1);
    let claim = schedule.claim(10).await.unwrap();
    let [claimed] = claim.entries.as_slice() else { panic!("{claim:?}") };
    assert_eq!(
        (claimed.value.as_deref(), &claimed.unreadable),
        (None, &Some(Unreadable::TooLarge(1_048_577)))
    );
}

#[tokio::test]
async fn a_member_that_is_too_long_is_set_aside_without_being_returned() {
    for mode in ["lease", "lock"] {
        let (_server, tenant) = counting("odd-long").await;
        let fill = 8192 - tenant.member("").len();
        let (edge, _) = tenant.mutate(&"e".repeat(fill), "{}").await;
        let (long, _) = tenant.mutate(&"x".repeat(1024 * 1024), "{}").await;
        let (other, _) = tenant.mutate(&"x".repeat(1024 * 1024 + 1), "{}").await;
        let (good, _) = tenant.mutate("good", "{}").await;
        let schedule = match mode {
            "lock" => tenant.lock_mode("us"),
            _ => tenant.lease_mode(),
        };
        let before = counted(&tenant, "stats", "total_net_output_bytes").await;
        let claim = schedule.claim(10).await.unwrap();
        let sent = counted(&tenant, "stats", "total_net_output_bytes").await - before;
        assert!(sent < 65_536, "{sent} bytes were sent");
        assert_eq!(names(&claim.entries), [edge.as_str(), good.as_str()]);
        assert_eq!((claim.isolated, claim.unlisted), (2, 0));
        for member in [&long, &other] {
            assert_eq!((tenant.score(member).await, tenant.lock_of(member).await), (None, None));
        }
        let listed = schedule.quarantine_list().await.unwrap();
        assert_eq!(listed.len(), 2, "each under a name of its own");
        let events: u64 =
            ask!(tenant, "HGET", "{transactions}:balance-sync:entry-events", tenant.space.schedule());
        assert_eq!(events, 2, "an acknowledgement doesn't cover them");
        let name = String::from_utf8(listed[0].member.clone()).unwrap();
        let size = long.len();
        assert!(name.starts_with(&long[..200]) && name.contains(&format!("… ({size} bytes, ")), "{name}");
        assert_eq!(listed[0].entry.reason, QuarantineReason::MemberTooLong);
        assert_eq!(listed[0].entry.detail, format!("the member has {size} bytes; allowed: at most 8192"));

        // There is nothing to retry under that name; it is dropped.
        let retried = schedule.quarantine_retry(&[&listed[0].member]).await.unwrap();
        assert_eq!((retried.done, retried.listed), (1, 1));
        assert_eq!(tenant.score(&name).await, None);
        assert_eq!(schedule.quarantine_drop(&[&listed[0].member]).await.unwrap(), 1);
    }
}

/// So many members of two megabytes each, due for long, between others; gives the others.
async fn between_members_of_megabytes(tenant: &Tenant, long: usize, others: usize) -> Vec<String> {
    for n in 0..long {
        let member = tenant.member(&format!("{n:03}{}", "x".repeat(2 * 1024 * 1024)));
        tenant.schedule(&member, &format!("{}.000001", 1_700_000_000 + n)).await;
    }
    let mut members = Vec::new();
    for n in 0..others {
        let member = tenant.member(&format!("good-{n}"));
        tenant.schedule(&member, &format!("{}.000002", 1_700_000_000 + n * long / others)).await;
        tell!(tenant, "SET", &member, "{}", "PX", 60_000);
        members.push(member);
    }
    members
}

#[tokio::test]
async fn members_of_megabytes_are_set_aside_a_few_at_a_time() {
    const LONG: usize = 24;
    const OTHERS: usize = 40;
    for mode in ["lease", "lock"] {
        let (_server, tenant) = counting("odd-megabytes").await;
        let mut others = between_members_of_megabytes(&tenant, LONG, OTHERS).await;
        let schedule = match mode {
            "lock" => tenant.lock_mode("us"),
            _ => tenant.lease_mode(),
        };
        let (mut isolated, mut claimed) = (0, Vec::new());
        while isolated < LONG as u64 || claimed.len() < OTHERS {
            let claim = schedule.claim(100).await.unwrap();
            assert!(claim.isolated <= 4, "{mode}: {} in one call", claim.isolated);
            assert!(claim.isolated > 0 || !claim.entries.is_empty(), "{mode}: a call without progress");
            isolated += claim.isolated;
            claimed.extend(names(&claim.entries).into_iter().map(str::to_owned));
        }
        claimed.sort();
        others.sort();
        assert_eq!((isolated, claimed), (LONG as u64, others), "{mode}");
        assert_eq!(schedule.quarantine_list().await.unwrap().len(), LONG, "{mode}");
    }
}

#[tokio::test]
async fn what_looks_at_schedules_passes_members_of_megabytes_over() {
    const LONG: usize = 24;
    let (_server, tenant) = counting("odd-megabytes-seen").await;
    let others = between_members_of_megabytes(&tenant, LONG, 4).await;
    let schedule = tenant.lease_mode();
    let before = counted(&tenant, "stats", "total_net_output_bytes").await;

    // In pages of some megabytes, which come to an end and reach the others.
    let (mut from, mut pages, mut raised, mut seen) = (None, 0, 0, 0);
    loop {
        let page = schedule.protect_page(from.as_deref()).await.unwrap();
        (pages, raised, seen) = (pages + 1, raised + page.raised, seen + page.seen);
        match page.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    assert!(seen >= 28 && raised == 4 && pages > 1, "{seen} members and {raised} values in {pages} pages");

    let found = sample(&tenant.link, &[&tenant.space]).await.unwrap().remove(0);
    assert_eq!((found.scheduled, found.due), (Some(28), 28));
    let probed = probe(&tenant.link, &[Arc::from(tenant.space.schedule())]).await.unwrap();
    assert_eq!(probed.len(), 1, "due");
    let key: Arc<str> = Arc::from(tenant.space.schedule());
    let look = async |last: Option<&HeadState>| {
        let at = [(&key, last.map(|seen| &seen.head))];
        read_heads(&tenant.link, at.into_iter()).await.unwrap().remove(0).unwrap()
    };
    let first = look(None).await;
    assert!(first.head.member.len() < 1_000);
    assert!(look(Some(&first)).await.unclaimed, "nobody has claimed it");
    let counted_members = Vanished::new(tenant.link.clone(), "x").count(&[&tenant.space]).await.unwrap();
    assert_eq!(counted_members.len(), 1);
    let sent = counted(&tenant, "stats", "total_net_output_bytes").await - before;
    assert!(sent < 65_536, "{sent} bytes were sent");

    // One of them goes out and comes back with each page: where the next one begins.
    let mut from = RecentFrom::time(1_700_000_000.0);
    let mut pages = 1;
    while let Some(next) = schedule.protect_recent_page(&from).await.unwrap().next {
        (from, pages) = (next, pages + 1);
    }
    assert!(pages > 5, "{pages} pages");

    // Scheduled far ahead, all come back in pages.
    let ahead: Vec<String> = ask!(tenant, "ZRANGE", tenant.space.schedule(), 0, -1);
    for member in &ahead {
        tenant.schedule(member, "4000000000").await;
    }
    assert_eq!(schedule.reschedule_distant().await.unwrap(), 28);
    // So does what a legacy schedule holds.
    tell!(tenant, "RENAME", tenant.space.schedule(), tenant.space.legacy_schedule());
    let mut adopted = Vec::new();
    while adopted.iter().sum::<u64>() < 28 {
        adopted.push(schedule.adopt_legacy(1000).await.unwrap().0);
    }
    assert!(adopted.iter().all(|page| (1..=8).contains(page)), "{adopted:?}");
    assert!(others.iter().all(|member| member.len() < 8192));
}

#[tokio::test]
async fn a_member_that_is_too_long_waits_when_it_cant_be_listed() {
    let tenant = Tenant::new("odd-long-full").await;
    let (long, _) = tenant.mutate(&"x".repeat(10_000), "{}").await;
    let (good, _) = tenant.mutate("good", "{}").await;
    let full = tenant.with(|options| options.quarantine_limit = 0);
    let claim = full.claim(10).await.unwrap();
    assert_eq!((names(&claim.entries), claim.isolated, claim.unlisted), (vec![good.as_str()], 0, 1));
    let later = number(&tenant.score(&long).await.unwrap());
    assert!(later > claim.now + 50.0, "put off");

    tenant.schedule(&long, "1").await;
    tell!(tenant, "SET", tenant.space.quarantine(), "text");
    let claim = tenant.lease_mode().claim(10).await.unwrap();
    assert_eq!((claim.isolated, claim.unlisted), (0, 1));
    assert!(tenant.score(&long).await.is_some());
}

#[tokio::test]
async fn without_the_right_to_sizes_values_are_read_and_the_right_is_named() {
    let options = RedisOptions { worker_password: Some("pw".into()), ..RedisOptions::default() };
    let server = RedisServer::start(options).await.unwrap();
    let admin = Tenant::on(common::space_of("odd-sizes"), &server.url()).await;
    tell!(admin, "ACL", "SETUSER", balance_sync_sandbox::WORKER_USER, "-strlen");
    let tenant = Tenant::on(common::space_of("odd-sizes"), &server.worker_url_on(server.port())).await;
    let (good, _) = admin.mutate("good", "{}").await;
    let claim = tenant.lease_mode().claim(10).await.unwrap();
    assert_eq!(names(&claim.entries), [good.as_str()]);
    assert_eq!(claim.entries[0].value.as_deref(), Some(&b"{}"[..]));
    let refused = claim.refused.unwrap();
    assert_eq!((refused.put_off, refused.error.class), (0, ErrorClass::Permission));
    assert!(refused.error.message.ends_with("missing: +strlen"), "{}", refused.error.message);
}

/// As the scripts see it: scores and leases from before lie in the future.
#[tokio::test]
async fn a_clock_set_back_loses_nothing_and_delays_no_newer_mutation() {
    let tenant = Tenant::new("odd-clock").await;
    let (seconds, _): (u64, u64) = ask!(tenant, "TIME");
    let before = |name: &str| (tenant.member(name), format!("{}.000001", seconds + 3_600));
    let (waiting, score) = before("waiting");
    tenant.schedule(&waiting, &score).await;
    let (held, _) = tenant.mutate("held", "{}").await;
    let schedule = tenant.lease_mode();
    let mut claim = schedule.claim(10).await.unwrap();
    // The clock goes back by an hour: this lease was given an hour from now.
    let lease = format!("{}.0000005", seconds + 3_630);
    tell!(tenant, "ZADD", tenant.space.schedule(), &lease, &held);
    claim.entries[0].lease = lease.as_str().into();

    let (newer, _) = tenant.mutate("newer", "{}").await;
    let next = schedule.claim(10).await.unwrap();
    assert_eq!(names(&next.entries), [newer.as_str()], "what was scheduled before waits for its time");
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 1);
    assert_eq!(number(&tenant.score(&waiting).await.unwrap()), number(&score));
    // A newer mutation of it is due at once.
    tenant.mutate("waiting", "{}").await;
    assert_eq!(names(&schedule.claim(10).await.unwrap().entries), [waiting.as_str()]);
}
