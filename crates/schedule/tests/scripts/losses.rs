//! Losses: what is recorded of members without a value, what becomes of it, and who may forget it.

use std::time::Duration;

use balance_sync_domain::QuarantineReason;
use balance_sync_schedule::{Claimed, ForkReport, Loss, Retried, Schedule};

use crate::{Tenant, all, ask, names, number, refusal, tell};

fn loss(version: i64) -> Loss {
    Loss {
        confirmed: true,
        detail: "the row lacks it".to_owned(),
        version: Some(version),
        row_version: Some(version - 1),
        available: Some("1.50".to_owned()),
        ..Loss::default()
    }
}

fn guess() -> Loss {
    Loss { detail: "the grant SELECT on operation is missing".to_owned(), ..Loss::default() }
}

/// Claims all that is due.
async fn claimed(schedule: &Schedule) -> Vec<Claimed> {
    schedule.claim(100).await.unwrap().entries
}

/// A member whose value is gone, claimed.
async fn gone(tenant: &Tenant, schedule: &Schedule, name: &str) -> (String, Vec<Claimed>) {
    let (member, _) = tenant.mutate(name, "{}").await;
    tell!(tenant, "DEL", &member);
    let claimed = claimed(schedule).await;
    assert_eq!(names(&claimed), [member.as_str()]);
    assert_eq!(claimed[0].value, None);
    (member, claimed)
}

#[tokio::test]
async fn a_loss_stays_listed_until_it_is_dropped_whatever_is_written_later() {
    let tenant = Tenant::new("loss-stays").await;
    let schedule = tenant.lease_mode();
    let (member, mine) = gone(&tenant, &schedule, "a").await;
    // A version that no double holds.
    let lost = loss(9_007_199_254_740_993);
    let report = schedule.record_losses(&[(&mine[0], lost.clone())]).await.unwrap();
    assert_eq!((report.quarantined, report.kept, report.full), (1, 0, 0));
    assert_eq!(tenant.score(&member).await, None, "it left the schedule");
    assert_eq!((schedule.losses_len().await.unwrap(), schedule.quarantine_len().await.unwrap()), (1, 0));
    let entry = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
    assert_eq!((entry.reason.as_str(), entry.detail.as_str()), ("value_lost", "the row lacks it"));
    assert_eq!((entry.loss, entry.count, &entry.first_at), (Some(lost), 1, &entry.last_at));

    // A later mutation is written: the entry stays, and says so.
    tenant.mutate("a", "later").await;
    let later = claimed(&schedule).await;
    assert_eq!(schedule.settle(&all(&later)).await.unwrap().removed, 1);
    let listed = schedule.quarantine_list().await.unwrap();
    assert_eq!((listed.len(), listed[0].member.as_slice()), (1, member.as_bytes()));
    let entry = &listed[0].entry;
    assert!(entry.detail.contains("may have forked"), "{}", entry.detail);
    let marked = entry.loss.clone().unwrap();
    assert!(number(marked.later_at.as_deref().unwrap()) >= number(&entry.last_at));
    assert_eq!(marked.version, Some(9_007_199_254_740_993));
    assert_eq!(schedule.inspect(member.as_bytes()).await.unwrap().quarantine.unwrap().loss, entry.loss);

    // Nor does a retry clear it, though nothing else is found: it was certain.
    assert_eq!(
        schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap(),
        Retried { done: 1, listed: 1 }
    );
    tell!(tenant, "DEL", &member);
    let again = claimed(&schedule).await;
    assert_eq!(schedule.dismiss(&all(&again)).await.unwrap().removed, 1);
    assert_eq!(schedule.losses_len().await.unwrap(), 1);
    assert_eq!(schedule.quarantine_drop(&[member.as_bytes(), b"nobody"]).await.unwrap(), 1);
    assert_eq!(schedule.losses_len().await.unwrap(), 0);
    assert!(schedule.quarantine_list().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_unconfirmed_loss_is_removed_when_a_retry_finds_nothing_lost() {
    let tenant = Tenant::new("loss-guess").await;
    let schedule = tenant.lease_mode();
    let (member, mine) = gone(&tenant, &schedule, "a").await;
    schedule.record_losses(&[(&mine[0], guess())]).await.unwrap();

    // No retry was requested: that a later member without a value proves harmless says nothing of this one.
    let (_, later) = gone(&tenant, &schedule, "a").await;
    schedule.dismiss(&all(&later)).await.unwrap();
    assert_eq!(schedule.losses_len().await.unwrap(), 1);

    assert_eq!(
        schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap(),
        Retried { done: 1, listed: 0 }
    );
    let asked = claimed(&schedule).await;
    assert_eq!(names(&asked), [member.as_str()]);
    assert_eq!(schedule.dismiss(&all(&asked)).await.unwrap().removed, 1);
    assert_eq!(schedule.losses_len().await.unwrap(), 0);
    assert_eq!(tenant.score(&member).await, None);

    // One after which something was written does not: it may have forked.
    let (member, mine) = gone(&tenant, &schedule, "b").await;
    schedule.record_losses(&[(&mine[0], guess())]).await.unwrap();
    tenant.mutate("b", "later").await;
    let later = claimed(&schedule).await;
    schedule.settle(&all(&later)).await.unwrap();
    assert_eq!(
        schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap(),
        Retried { done: 1, listed: 1 }
    );
    let asked = claimed(&schedule).await;
    schedule.dismiss(&all(&asked)).await.unwrap();
    assert_eq!(schedule.losses_len().await.unwrap(), 1);
}

#[tokio::test]
async fn a_confirmed_loss_stays_although_a_retry_finds_nothing() {
    let tenant = Tenant::new("loss-certain").await;
    let schedule = tenant.lease_mode();
    let (member, mine) = gone(&tenant, &schedule, "a").await;
    schedule.record_losses(&[(&mine[0], loss(7))]).await.unwrap();
    schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap();
    let asked = claimed(&schedule).await;
    assert_eq!(schedule.dismiss(&all(&asked)).await.unwrap().removed, 1);
    assert_eq!(schedule.losses_len().await.unwrap(), 1);
}

#[tokio::test]
async fn that_a_balance_may_have_forked_stays_when_it_is_lost_again() {
    let tenant = Tenant::new("loss-forked").await;
    let schedule = tenant.lease_mode();
    let (member, mine) = gone(&tenant, &schedule, "a").await;
    schedule.record_losses(&[(&mine[0], loss(7))]).await.unwrap();
    tenant.mutate("a", "later").await;
    schedule.settle(&all(&claimed(&schedule).await)).await.unwrap();
    let later = async || {
        let entry = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
        entry.loss.unwrap().later_at
    };
    let marked = later().await;
    assert!(marked.is_some());
    let (_, mine) = gone(&tenant, &schedule, "a").await;
    schedule.record_losses(&[(&mine[0], loss(9))]).await.unwrap();
    assert_eq!(later().await, marked);
}

#[tokio::test]
async fn recording_a_loss_frees_our_lock_and_no_other() {
    let tenant = Tenant::new("loss-locks").await;
    let schedule = tenant.lock_mode("us");
    for (holder, left) in [(None, None), (Some("them"), Some("them"))] {
        let (member, mine) = gone(&tenant, &schedule, "a").await;
        assert_eq!(tenant.lock_of(&member).await.as_deref(), Some("us"));
        if let Some(holder) = holder {
            tell!(tenant, "SET", tenant.space.lock(member.as_bytes()), holder);
        }
        schedule.record_losses(&[(&mine[0], loss(7))]).await.unwrap();
        assert_eq!(tenant.lock_of(&member).await.as_deref(), left);
    }
}

#[tokio::test]
async fn beyond_the_bound_a_new_loss_is_put_off_and_a_known_one_renewed() {
    let tenant = Tenant::new("loss-full").await;
    let schedule = tenant.with(|options| options.quarantine_limit = 1);
    let (known, mine) = gone(&tenant, &schedule, "a").await;
    schedule.record_losses(&[(&mine[0], loss(7))]).await.unwrap();
    let (new, mine) = gone(&tenant, &schedule, "b").await;
    let report = schedule.record_losses(&[(&mine[0], loss(7))]).await.unwrap();
    assert_eq!((report.quarantined, report.full), (0, 1));
    let now: (f64, u64) = ask!(tenant, "TIME");
    let wait = number(&tenant.score(&new).await.unwrap()) - now.0;
    assert!((580.0..602.0).contains(&wait), "put off by {wait} s");
    let (_, mine) = gone(&tenant, &schedule, "a").await;
    assert_eq!(schedule.record_losses(&[(&mine[0], loss(9))]).await.unwrap().quarantined, 1);
    assert_eq!(schedule.quarantine_get(known.as_bytes()).await.unwrap().unwrap().count, 2);
}

#[tokio::test]
async fn a_confirmed_loss_is_not_replaced_by_an_unconfirmed_one() {
    let tenant = Tenant::new("loss-again").await;
    let schedule = tenant.lease_mode();
    let (member, mine) = gone(&tenant, &schedule, "a").await;
    schedule.record_losses(&[(&mine[0], guess())]).await.unwrap();
    let first = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
    assert!(!first.loss.unwrap().confirmed);
    for (again, version) in [(loss(7), Some(7)), (guess(), Some(7)), (loss(9), Some(9))] {
        let (_, mine) = gone(&tenant, &schedule, "a").await;
        schedule.record_losses(&[(&mine[0], again)]).await.unwrap();
        let entry = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
        assert_eq!(entry.first_at, first.first_at);
        let lost = entry.loss.unwrap();
        assert_eq!((lost.confirmed, lost.version), (true, version));
    }
    let entry = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
    assert_eq!(entry.count, 4);
}

#[tokio::test]
async fn a_balance_may_be_lost_and_in_quarantine_and_is_listed_once() {
    let tenant = Tenant::new("loss-both").await;
    let schedule = tenant.lease_mode();
    let (member, mine) = gone(&tenant, &schedule, "a").await;
    schedule.record_losses(&[(&mine[0], loss(7))]).await.unwrap();
    assert_eq!(tenant.quarantined("a", "refused").await, member);
    let listed = schedule.quarantine_list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].entry.reason.as_str(), listed[0].entry.value.as_deref()),
        ("value_field_missing", Some("refused"))
    );
    assert_eq!(listed[0].entry.loss.as_ref().and_then(|loss| loss.version), Some(7));

    // Retried and written: the quarantine is mended, the loss is not.
    schedule.quarantine_retry(&[member.as_bytes()]).await.unwrap();
    schedule.settle(&all(&claimed(&schedule).await)).await.unwrap();
    let entry = schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
    assert_eq!(entry.reason, QuarantineReason::ValueLost);
    assert!(entry.loss.unwrap().later_at.is_some());

    tenant.quarantined("a", "refused").await;
    assert_eq!(schedule.quarantine_drop(&[member.as_bytes()]).await.unwrap(), 1, "one balance, both entries");
    assert!(schedule.quarantine_list().await.unwrap().is_empty());
}

#[tokio::test]
async fn recording_dismissing_and_postponing_compare_the_lease() {
    let tenant = Tenant::new("loss-lease").await;
    for schedule in [tenant.lease_mode(), tenant.lock_mode("me")] {
        let (member, mine) = gone(&tenant, &schedule, "a").await;
        let (_, score) = tenant.mutate("a", "newer").await;
        assert_eq!(schedule.record_losses(&[(&mine[0], loss(7))]).await.unwrap().kept, 1);
        assert_eq!(schedule.dismiss(&all(&mine)).await.unwrap().kept, 1);
        let report = schedule.put_off(&all(&mine), Duration::from_secs(60)).await.unwrap();
        assert_eq!((report.postponed, report.kept), (0, 1));
        let left = tenant.score(&member).await.map(|score| number(&score));
        assert_eq!(left, Some(number(&score)), "the newer mutation stays due");
        assert_eq!(schedule.losses_len().await.unwrap(), 0);

        let mine = claimed(&schedule).await;
        let report = schedule.put_off(&all(&mine), Duration::from_secs(900)).await.unwrap();
        assert_eq!((report.postponed, report.kept), (1, 0));
        let later = number(&tenant.score(&member).await.unwrap());
        assert_eq!(later, report.due);
        let now: (f64, u64) = ask!(tenant, "TIME");
        assert!((880.0..902.0).contains(&(later - now.0)), "put off by {} s", later - now.0);
        assert!((later * 1e6 - (later * 1e6).round()).abs() > 0.25, "no producer writes {later}");
        assert!(claimed(&schedule).await.is_empty(), "put off means not due");
        let exists: bool = ask!(tenant, "EXISTS", tenant.space.lock(member.as_bytes()));
        assert!(!exists, "whoever comes next may claim it");
        tell!(tenant, "DEL", tenant.space.schedule());
    }
}

#[tokio::test]
async fn many_losses_are_limited_and_listed_once_each() {
    let tenant = Tenant::new("loss-many").await;
    let schedule = tenant.with(|options| options.quarantine_limit = 1_200);
    let members = tenant.schedule_many(1_300).await;
    let mine = schedule.claim(2_000).await.unwrap().entries;
    let lost: Vec<_> = mine.iter().map(|claimed| (claimed, guess())).collect();
    let report = schedule.record_losses(&lost).await.unwrap();
    assert_eq!((report.quarantined, report.full), (1_200, 100));
    let listed = schedule.quarantine_list().await.unwrap();
    assert!(
        listed
            .iter()
            .map(|listed| listed.member.as_slice())
            .eq(members[..1_200].iter().map(String::as_bytes))
    );
    let again: Vec<&[u8]> = members.iter().map(String::as_bytes).collect();
    assert_eq!(schedule.quarantine_retry(&again).await.unwrap().done, 1_200);
    assert_eq!(
        schedule.dismiss(&all(&schedule.claim(2_000).await.unwrap().entries)).await.unwrap().removed,
        1_200
    );
    assert_eq!(schedule.losses_len().await.unwrap(), 0);
}

#[tokio::test]
async fn a_losses_key_of_another_type_does_not_block_settling() {
    let tenant = Tenant::new("loss-alien").await;
    let schedule = tenant.lease_mode();
    let (member, mine) = gone(&tenant, &schedule, "a").await;
    tell!(tenant, "SET", tenant.space.losses(), "mine");
    assert!(schedule.record_losses(&[(&mine[0], loss(7))]).await.is_err());
    assert!(tenant.score(&member).await.is_some(), "it stays scheduled");
    assert_eq!(schedule.settle(&all(&mine)).await.unwrap().removed, 1);
    tell!(tenant, "DEL", tenant.space.losses());
    tell!(tenant, "HSET", tenant.space.losses(), &member, "not json");
    let (_, mine) = gone(&tenant, &schedule, "a").await;
    assert_eq!(schedule.settle(&all(&mine)).await.unwrap().removed, 1);
    assert_eq!(schedule.quarantine_list().await.unwrap()[0].entry.reason, QuarantineReason::UnreadableEntry);
    let (_, mine) = gone(&tenant, &schedule, "a").await;
    assert_eq!(
        schedule
            .quarantine(&[(&mine[0], refusal(QuarantineReason::RefusedByPostgres))])
            .await
            .unwrap()
            .quarantined,
        1
    );
    let (_, mine) = gone(&tenant, &schedule, "a").await;
    schedule.record_losses(&[(&mine[0], loss(8))]).await.unwrap();
    assert_eq!(
        schedule.quarantine_get(member.as_bytes()).await.unwrap().unwrap().reason,
        QuarantineReason::RefusedByPostgres
    );
}

#[tokio::test]
async fn a_fork_is_listed_while_its_balance_is_scheduled_and_stays_so() {
    let tenant = Tenant::new("fork-listed").await;
    let schedule = tenant.with(|options| options.quarantine_limit = 2);
    let (hot, _) = tenant.mutate("hot", "{}").await;
    let score = tenant.score(&hot).await.unwrap();
    let fork = Loss { forked: true, detail: "two histories".to_owned(), ..loss(7) };
    let member = |name: &str| hot.replace("hot", name).into_bytes();
    let report = schedule.list_forks(&[(member("hot"), fork.clone())]).await.unwrap();
    assert_eq!(report, ForkReport { listed: 1, ..ForkReport::default() });
    // What is known of it stays.
    let more = ["hot", "idle", "third"].map(|name| (member(name), loss(9)));
    let report = schedule.list_forks(&more).await.unwrap();
    assert_eq!(report, ForkReport { listed: 1, known: 1, full: 1 });
    let entry = schedule.quarantine_get(hot.as_bytes()).await.unwrap().unwrap();
    assert_eq!(entry.loss, Some(fork));
    assert_eq!(tenant.score(&hot).await, Some(score), "what is pending is written");
    assert_eq!(tenant.score(&hot.replace("hot", "idle")).await, None);
}
