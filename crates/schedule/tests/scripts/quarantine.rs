//! Quarantine: what is kept about a member that can't be synced, and what can be done with it by hand.

use std::time::Duration;

use balance_sync_domain::QuarantineReason;
use balance_sync_sandbox::{RedisOptions, RedisServer, eventually};
use balance_sync_schedule::{ScheduleOptions, sample};

use crate::{SOON, Tenant, all, ask, common::space_of, names, number, refusal, tell};

#[tokio::test]
async fn an_entry_has_reason_times_count_and_value() {
    let tenant = Tenant::new("quarantine-entry").await;
    let value = "{\"Alias\":\"@joão/\u{1F600}\\n\",\"q\":\"\\\"\",\"c\":\"\u{7f}\t\"}";
    let (member, _) = tenant.mutate("a", value).await;
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(1).await.unwrap();
    let mut why = refusal(QuarantineReason::MissingRow);
    why.detail = "no row, \"deleted\",\nor foreign: ção".to_owned();
    let report = schedule.quarantine(&[(&claim.entries[0], why.clone())]).await.unwrap();
    assert_eq!((report.quarantined, report.kept, report.full), (1, 0, 0));
    assert_eq!(tenant.score(&member).await, None, "it left the schedule");

    let entry = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
    assert_eq!((entry.reason.as_str(), &entry.detail), ("missing_row", &why.detail));
    assert_eq!(entry.value.as_deref(), Some(value));
    assert_eq!((entry.truncated, entry.count), (false, 1));
    assert_eq!(entry.first_at, entry.last_at);
    assert!(number(&entry.first_at) >= claim.now);
    assert_eq!(schedule.quarantine_len().await.unwrap(), 1);
}

#[tokio::test]
async fn a_second_refusal_increments_the_count_and_keeps_the_first_time() {
    let tenant = Tenant::new("quarantine-again").await;
    let member = tenant.quarantined("a", "one").await;
    let schedule = tenant.lease_mode();
    let first = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
    tenant.mutate("a", "two").await;
    let claim = schedule.claim(1).await.unwrap();
    schedule.quarantine(&[(&claim.entries[0], refusal(QuarantineReason::ValueFieldNull))]).await.unwrap();
    let second = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
    assert_eq!((second.reason.as_str(), second.value.as_deref()), ("value_field_null", Some("two")));
    assert_eq!((second.count, &second.first_at), (2, &first.first_at));
    assert!(number(&second.last_at) > number(&first.last_at));

    // A value that expired since does not push out the copy.
    tenant.mutate("a", "three").await;
    tell!(tenant, "DEL", &member);
    let claim = schedule.claim(1).await.unwrap();
    schedule.quarantine(&[(&claim.entries[0], refusal(QuarantineReason::ValueExpired))]).await.unwrap();
    let third = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
    assert_eq!(
        (third.reason.as_str(), third.value.as_deref(), third.count),
        ("value_expired", Some("two"), 3)
    );
    assert_eq!(schedule.quarantine_len().await.unwrap(), 1);
}

#[tokio::test]
async fn values_that_are_too_long_or_not_text_are_kept_in_part() {
    let tenant = Tenant::new("quarantine-cut").await;
    let schedule = tenant.with(|options| options.quarantine_value_limit = 10);
    let cases: [(&str, &[u8], &str, bool); 4] = [
        ("exact", b"0123456789", "0123456789", false),
        ("long", b"0123456789a", "0123456789", true),
        ("within a character", "012345678é".as_bytes(), "012345678\u{fffd}", true),
        ("bytes", b"a\xffb", "a\u{fffd}b", true),
    ];
    for (name, value, kept, truncated) in cases {
        let member = tenant.member(name);
        tell!(tenant, "SET", &member, value);
        tenant.schedule(&member, "1700000000").await;
        let claim = schedule.claim(1).await.unwrap();
        schedule
            .quarantine(&[(&claim.entries[0], refusal(QuarantineReason::RefusedByPostgres))])
            .await
            .unwrap();
        let entry = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
        assert_eq!((entry.value.as_deref(), entry.truncated), (Some(kept), truncated), "{name}");
    }
    let nothing = tenant.member("nothing");
    tenant.schedule(&nothing, "1700000000").await;
    let claim = schedule.claim(1).await.unwrap();
    schedule.quarantine(&[(&claim.entries[0], refusal(QuarantineReason::RefusedByPostgres))]).await.unwrap();
    let entry = schedule.quarantine_get(nothing.as_bytes()).await.unwrap().unwrap();
    assert_eq!((entry.value, entry.truncated), (None, false));
}

#[tokio::test]
async fn a_full_quarantine_postpones_new_members_and_renews_old_ones() {
    let tenant = Tenant::new("quarantine-full").await;
    let schedule = tenant.with(|options| {
        options.quarantine_limit = 2;
        options.quarantine_put_off = Duration::from_secs(600);
    });
    let members = tenant.schedule_many(3).await;
    let claim = schedule.claim(3).await.unwrap();
    let refused: Vec<_> =
        claim.entries.iter().map(|claimed| (claimed, refusal(QuarantineReason::RefusedByPostgres))).collect();
    let report = schedule.quarantine(&refused).await.unwrap();
    assert_eq!((report.quarantined, report.kept, report.full), (2, 0, 1));
    assert_eq!(schedule.quarantine_len().await.unwrap(), 2);
    let later = tenant.score(&members[2]).await.unwrap();
    assert!((number(&later) - claim.now - 600.0).abs() < 30.0, "put off until {later}");
    assert!(schedule.claim(3).await.unwrap().entries.is_empty(), "put off means not due");
    assert!(schedule.quarantine_get(members[2].as_bytes()).await.unwrap().is_none());
    // The put-off score is no score of a producer, nor the lease.
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 0);
    let micros = number(&later) * 1e6;
    assert!((micros - micros.round()).abs() > 0.25, "{later}");

    // One that is in already needs no room.
    tenant.schedule(&members[0], "1700000000").await;
    let claim = schedule.claim(1).await.unwrap();
    let report = schedule
        .quarantine(&[(&claim.entries[0], refusal(QuarantineReason::RefusedByPostgres))])
        .await
        .unwrap();
    assert_eq!((report.quarantined, report.full), (1, 0));
}

#[tokio::test]
async fn retry_schedules_and_the_entry_stays_until_a_write_settles_it() {
    let tenant = Tenant::new("quarantine-retry").await;
    let member = tenant.quarantined("a", "value").await;
    let other = tenant.quarantined("b", "value").await;
    let schedule = tenant.lease_mode();
    assert!(schedule.claim(10).await.unwrap().entries.is_empty());
    assert_eq!(schedule.quarantine_retry(&[member.as_bytes(), b"no such member"]).await.unwrap().done, 1);
    assert_eq!(tenant.score("no such member").await, None);
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!(names(&claim.entries), [member.as_str()]);
    assert_eq!(claim.entries[0].value.as_deref(), Some(&b"value"[..]));
    assert!(schedule.quarantine_get(member.as_bytes()).await.unwrap().is_some());
    // While it is being worked, another retry changes nothing.
    let lease = tenant.score(&member).await;
    assert_eq!(schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap().done, 1);
    assert_eq!(tenant.score(&member).await, lease);
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 1);
    assert!(schedule.quarantine_get(member.as_bytes()).await.unwrap().is_none());
    assert!(schedule.quarantine_get(other.as_bytes()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_retried_member_whose_value_has_expired_is_written_from_the_kept_copy() {
    let tenant = Tenant::new("quarantine-kept").await;
    let value = "{\"Alias\":\"@joão\",\"a/b\":\"\\u0041\u{1F600}\"}";
    let member = tenant.quarantined("a", value).await;
    tell!(tenant, "DEL", &member);
    let schedule = tenant.lease_mode();
    schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap();
    // However often it is claimed and given back.
    for _ in 0..3 {
        let claim = schedule.claim(1).await.unwrap();
        assert_eq!(claim.entries[0].value.as_deref(), Some(value.as_bytes()));
        assert_eq!(schedule.release(&all(&claim.entries)).await.unwrap().released, 1);
    }
    // A claim that lapsed, too.
    let claim = tenant.with(|options| options.claim_ttl = Duration::from_millis(1)).claim(1).await.unwrap();
    assert_eq!(claim.entries[0].value.as_deref(), Some(value.as_bytes()));
    let claim = balance_sync_sandbox::eventually(crate::SOON, "the lapse", || async {
        let claim = schedule.claim(1).await.unwrap();
        (!claim.entries.is_empty()).then_some(claim)
    })
    .await
    .unwrap();
    assert_eq!(claim.entries[0].value.as_deref(), Some(value.as_bytes()));
    let entry = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
    assert_eq!(
        (entry.reason.as_str(), entry.count, entry.value.as_deref()),
        ("value_field_missing", 1, Some(value))
    );
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 1);
    assert_eq!(schedule.quarantine_len().await.unwrap(), 0);
}

#[tokio::test]
async fn what_a_clock_that_jumped_back_left_ahead_is_made_due_and_a_kept_copy_stays_usable() {
    let server =
        RedisServer::start(RedisOptions { settable_clock: true, ..RedisOptions::default() }).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let schedule = tenant.lease_mode();
    let retried = tenant.quarantined("retried", "kept").await;
    tell!(tenant, "DEL", &retried);
    schedule.quarantine_retry(&[retried.as_bytes()]).await.unwrap();
    let (ahead, ahead_at) = tenant.mutate("ahead", "value").await;
    server.shift_clock(-3_600_000).unwrap();
    // Some servers read their clock once per round of their event loop.
    eventually(SOON, "a clock that has jumped", || async {
        let script = "local time = redis.call('TIME') return time[1]";
        let now: String = ask!(tenant, "EVAL", script, 0);
        let behind = number(&ahead_at) - number(&now);
        (behind > 1_800.0).then_some(()).ok_or(behind)
    })
    .await
    .unwrap();
    assert!(schedule.claim(10).await.unwrap().entries.is_empty());
    // Due, and held as long as anything can be.
    let (newer, score) = tenant.mutate("newer", "value").await;
    let (held, _) = tenant.mutate("held", "value").await;
    let longest = number(&score) + ScheduleOptions::default().quarantine_put_off.as_secs_f64();
    let longest = format!("{longest:.6}5");
    tenant.schedule(&held, &longest).await;
    // Nearer than a lease may be, with the score of a mutation.
    let (near, _) = tenant.mutate("near", "value").await;
    tenant.schedule(&near, &format!("{:.6}", number(&score) + 60.0)).await;

    let sample = async || sample(&tenant.link, &[&tenant.space]).await.unwrap().remove(0);
    let seen = sample().await;
    assert!(seen.unexplained > Duration::from_secs(3_000), "{seen:?}");
    assert_eq!(schedule.distant().await.unwrap(), 3);
    assert_eq!(schedule.reschedule_distant().await.unwrap(), 3);
    assert_eq!(schedule.distant().await.unwrap(), 0);
    let seen = sample().await;
    assert_eq!((seen.unexplained, seen.ahead > Duration::from_secs(500)), (Duration::ZERO, true), "{seen:?}");
    assert_eq!(number(&tenant.score(&newer).await.unwrap()), number(&score));
    assert_eq!(number(&tenant.score(&held).await.unwrap()), number(&longest));
    let claim = schedule.claim(10).await.unwrap();
    let mut found: Vec<(&str, Option<&[u8]>)> = names(&claim.entries)
        .into_iter()
        .zip(claim.entries.iter().map(|entry| entry.value.as_deref()))
        .collect();
    found.sort_unstable();
    let mut expected = [
        (ahead.as_str(), Some(b"value".as_slice())),
        (near.as_str(), Some(b"value".as_slice())),
        (newer.as_str(), Some(b"value".as_slice())),
        (retried.as_str(), Some(b"kept".as_slice())),
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_kept_copy_never_replaces_a_newer_mutation_that_expired() {
    let tenant = Tenant::new("quarantine-stale").await;
    let member = tenant.quarantined("a", "version 1").await;
    tenant.mutate("a", "version 2").await;
    tell!(tenant, "DEL", &member);
    let schedule = tenant.lease_mode();
    // By hand it changes nothing either: the mutation is what stands in the schedule.
    schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap();
    for _ in 0..2 {
        let claim = schedule.claim(1).await.unwrap();
        assert_eq!(names(&claim.entries), [member.as_str()]);
        assert_eq!(claim.entries[0].value, None, "version 2 is lost, and must be seen to be");
        schedule.release(&all(&claim.entries)).await.unwrap();
    }
    let claim = schedule.claim(1).await.unwrap();
    assert_eq!(
        schedule
            .quarantine(&[(&claim.entries[0], refusal(QuarantineReason::ValueExpired))])
            .await
            .unwrap()
            .quarantined,
        1
    );
    // Also when the mutation comes after a retry.
    let other = tenant.quarantined("b", "version 1").await;
    schedule.quarantine_retry(&[other.as_bytes()]).await.unwrap();
    tenant.mutate("b", "version 2").await;
    tell!(tenant, "DEL", &other);
    let claim = schedule.claim(10).await.unwrap();
    assert!(claim.entries.iter().all(|claimed| claimed.value.is_none()), "{claim:?}");
}

#[tokio::test]
async fn a_truncated_copy_is_never_written() {
    let tenant = Tenant::new("quarantine-short").await;
    let schedule = tenant.with(|options| options.quarantine_value_limit = 4);
    let (member, _) = tenant.mutate("a", "too long").await;
    let claim = schedule.claim(1).await.unwrap();
    schedule.quarantine(&[(&claim.entries[0], refusal(QuarantineReason::RefusedByPostgres))]).await.unwrap();
    tell!(tenant, "DEL", &member);
    schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap();
    assert_eq!(schedule.claim(1).await.unwrap().entries[0].value, None);
}

/// What the entry doesn't hold as a whole stays in Redis for as long as the entry does, however long that is.
#[tokio::test]
async fn the_value_of_a_truncated_entry_is_kept_alive_until_the_entry_is_removed() {
    let tenant = Tenant::new("quarantine-alive").await;
    let schedule = tenant.with(|options| options.quarantine_value_limit = 4);
    let ttl = async |member: &str| -> i64 { crate::ask!(tenant, "TTL", member) };
    for finish in ["settle", "drop", "mutate"] {
        let (member, _) = tenant.mutate("a", "too long").await;
        let claim = schedule.claim(1).await.unwrap();
        schedule
            .quarantine(&[(&claim.entries[0], refusal(QuarantineReason::RefusedByPostgres))])
            .await
            .unwrap();
        assert_eq!(ttl(&member).await, -1, "it has no end");
        schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap();
        let claim = schedule.claim(1).await.unwrap();
        assert_eq!(claim.entries[0].value.as_deref(), Some(&b"too long"[..]));
        // Refused again, it is still the entry that keeps it.
        schedule
            .quarantine(&[(&claim.entries[0], refusal(QuarantineReason::RefusedByPostgres))])
            .await
            .unwrap();
        schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap();
        let claim = schedule.claim(1).await.unwrap();
        match finish {
            "settle" => assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 1),
            "drop" => assert_eq!(schedule.quarantine_drop(&[member.as_bytes()]).await.unwrap(), 1),
            _ => {
                tenant.mutate("a", "newer").await;
                let claim = schedule.claim(1).await.unwrap();
                assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 1);
            }
        }
        let left = ttl(&member).await;
        let most = if finish == "mutate" { 3_600 } else { 86_400 };
        assert!((most - 60..=most).contains(&left), "{finish}: {left}");
        tell!(tenant, "DEL", tenant.space.schedule());
    }
    // What the entry holds, and what belongs to another tenant, is left alone.
    let (member, _) = tenant.mutate("a", "fits").await;
    let foreign = "tenant:other:balance:{transactions}:o:l:a#default";
    tell!(tenant, "SET", foreign, "too long", "EX", 3_600);
    tenant.schedule(foreign, "1700000000").await;
    let claim = schedule.claim(2).await.unwrap();
    let refused: Vec<_> =
        claim.entries.iter().map(|claimed| (claimed, refusal(QuarantineReason::RefusedByPostgres))).collect();
    assert_eq!(schedule.quarantine(&refused).await.unwrap().quarantined, 2);
    assert!(ttl(&member).await > 0 && ttl(foreign).await > 0);
}

#[tokio::test]
async fn entries_of_another_format_block_nothing() {
    let tenant = Tenant::new("quarantine-alien").await;
    let schedule = tenant.lease_mode();
    let aliens =
        ["not json", "[1]", "7", "{\"reason\":\"x\",\"value\":null}", "{\"value\":5,\"count\":\"x\"}"];
    for (n, alien) in aliens.into_iter().enumerate() {
        let member = tenant.member(&format!("a{n}"));
        tell!(tenant, "HSET", tenant.space.quarantine(), &member, alien);
    }
    let listed = schedule.quarantine_list().await.unwrap();
    assert_eq!(listed.len(), aliens.len());
    assert!(listed.iter().all(|listed| listed.entry.reason == QuarantineReason::UnreadableEntry));
    let members: Vec<&[u8]> = listed.iter().map(|listed| listed.member.as_slice()).collect();
    assert_eq!(schedule.quarantine_retry(&members).await.unwrap().done, aliens.len() as u64);
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!(claim.entries.len(), aliens.len());
    assert!(claim.entries.iter().all(|claimed| claimed.value.is_none()));
    let refused: Vec<_> =
        claim.entries.iter().map(|claimed| (claimed, refusal(QuarantineReason::RefusedByPostgres))).collect();
    assert_eq!(schedule.quarantine(&refused).await.unwrap().quarantined, aliens.len() as u64);
    for listed in schedule.quarantine_list().await.unwrap() {
        assert_eq!(listed.entry.reason, QuarantineReason::RefusedByPostgres, "{listed:?}");
    }
}

#[tokio::test]
async fn drop_deletes_entries_and_nothing_else() {
    let tenant = Tenant::new("quarantine-drop").await;
    let gone = tenant.quarantined("gone", "{}").await;
    let stays = tenant.quarantined("stays", "{}").await;
    tenant.mutate("gone", "{}").await;
    let schedule = tenant.lease_mode();
    assert_eq!(schedule.quarantine_drop(&[gone.as_bytes(), b"nobody"]).await.unwrap(), 1);
    let left = schedule.quarantine_list().await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].member, stays.as_bytes());
    assert!(tenant.score(&gone).await.is_some(), "a mutation that came since is not dropped");
    assert!(tenant.score(&stays).await.is_none());
}

#[tokio::test]
async fn many_entries_are_listed_once_each() {
    let tenant = Tenant::new("quarantine-many").await;
    let members = tenant.schedule_many(1_300).await;
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(2_000).await.unwrap();
    let refused: Vec<_> =
        claim.entries.iter().map(|claimed| (claimed, refusal(QuarantineReason::RefusedByPostgres))).collect();
    assert_eq!(schedule.quarantine(&refused).await.unwrap().quarantined, 1_300);
    let listed = schedule.quarantine_list().await.unwrap();
    assert!(listed.iter().map(|listed| listed.member.as_slice()).eq(members.iter().map(String::as_bytes)));
    let members: Vec<&[u8]> = members.iter().map(String::as_bytes).collect();
    assert_eq!(schedule.quarantine_retry(&members).await.unwrap().done, 1_300);
    assert_eq!(schedule.backlog().await.unwrap().due, 1_300);
    assert_eq!(schedule.quarantine_drop(&members).await.unwrap(), 1_300);
    assert!(schedule.quarantine_list().await.unwrap().is_empty());
}
