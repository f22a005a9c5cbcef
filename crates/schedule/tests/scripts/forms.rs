//! A tenant whose id is a UUID has two schedules: each member goes back where it came from, and neither schedule waits for
//! the other.

use std::sync::Arc;

use balance_sync_domain::QuarantineReason;
use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_schedule::{Link, LinkSettings, Loss, Refusal, ScheduleOptions, Schedules, scripts::MEND};

use crate::{Tenant, all, ask, common::space_of, names, number, tell};

const DASHED: &str = "0190d3a4-5b6c-7d8e-9f00-112233445566";
const SIMPLE: &str = "0190d3a45b6c7d8e9f00112233445566";

/// Both forms on a server of their own.
struct Both {
    listed: Tenant,
    other: Tenant,
    schedules: Schedules,
    server: RedisServer,
}

impl Both {
    async fn new() -> Self {
        let server = RedisServer::start(RedisOptions::default()).await.unwrap();
        let link = Link::new(&LinkSettings::for_url(&server.url())).unwrap();
        let options = Arc::new(ScheduleOptions::default());
        Self {
            listed: Tenant::on(space_of(DASHED), &server.url()).await,
            other: Tenant::on(space_of(SIMPLE), &server.url()).await,
            schedules: Schedules::new(&link, [space_of(DASHED), space_of(SIMPLE)], &options),
            server,
        }
    }

    /// Calls of scripts so far.
    async fn calls(&self) -> u64 {
        let mut connection = self.server.connect().await.unwrap();
        let stats: String =
            redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.unwrap();
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }
}

#[tokio::test]
async fn a_full_schedule_does_not_delay_the_other() {
    let both = Both::new().await;
    let listed = both.listed.schedule_many(10).await;
    let other = both.other.schedule_many(10).await;
    let first = both.schedules.claim(4).await.unwrap();
    let second = both.schedules.claim(4).await.unwrap();
    let mut begun = [names(&first.entries), names(&second.entries)].concat();
    begun.sort();
    let mut expected = [&listed[..4], &other[..4]].concat();
    expected.sort();
    assert_eq!(begun, expected, "each of them is claimed from in turn");
    let third = both.schedules.claim(100).await.unwrap();
    assert_eq!(third.entries.len(), 12, "one claim takes from both");
    assert_eq!(third.scheduled, 20);
    assert_eq!(both.schedules.claim(100).await.unwrap().entries.len(), 0);
}

#[tokio::test]
async fn members_are_released_to_the_schedule_they_came_from() {
    let both = Both::new().await;
    let (mut listed, mut other) = (Vec::new(), Vec::new());
    for name in ["settled", "released", "refused"] {
        listed.push(both.listed.mutate(name, "{}").await);
        other.push(both.other.mutate(name, "{}").await);
    }
    // A member of the other form is not this schedule's own, although it is the same tenant's.
    both.listed.schedule(&both.other.member("astray"), "1700000000").await;
    let claim = both.schedules.claim(100).await.unwrap();
    assert_eq!(claim.entries.len(), 7);
    let named = |name: &str| -> Vec<_> {
        let name = format!(":{name}#");
        claim.entries.iter().filter(|c| String::from_utf8_lossy(&c.member).contains(&name)).collect()
    };
    let astray = named("astray")[0];
    assert_eq!((both.schedules.of(astray).space(), &astray.value), (&both.listed.space, &None));

    let settled = both.schedules.settle(&named("settled")).await.unwrap();
    assert_eq!((settled.removed, settled.kept), (2, 0));
    assert_eq!(both.schedules.release(&named("released")).await.unwrap().released, 2);
    let refusal = || Refusal { reason: QuarantineReason::MissingRow, detail: String::new() };
    let refused: Vec<_> =
        [named("refused"), vec![astray]].concat().into_iter().map(|claimed| (claimed, refusal())).collect();
    assert_eq!(both.schedules.quarantine(&refused).await.unwrap().quarantined, 3);

    for (form, members) in [(&both.listed, &listed), (&both.other, &other)] {
        assert_eq!(form.score(&members[0].0).await, None);
        let back = form.score(&members[1].0).await.unwrap();
        assert_eq!(number(&back), number(&members[1].1), "its former score");
        let entry = form.lease_mode().quarantine_get(members[2].0.as_bytes()).await.unwrap();
        assert_eq!(entry.unwrap().reason, QuarantineReason::MissingRow);
    }
    assert_eq!(both.listed.lease_mode().quarantine_len().await.unwrap(), 2, "what went astray is there too");

    // By hand, without anybody telling the form.
    assert_eq!(both.schedules.quarantine_len().await.unwrap(), 3);
    assert_eq!(both.schedules.quarantine_list().await.unwrap().len(), 3);
    assert!(both.schedules.quarantine_get(&astray.member).await.unwrap().is_some());
    let members: Vec<&[u8]> = refused.iter().map(|(claimed, _)| claimed.member.as_slice()).collect();
    assert_eq!(both.schedules.quarantine_retry(&members[..2]).await.unwrap().done, 2);
    assert_eq!(both.schedules.quarantine_drop(&members[2..]).await.unwrap(), 1);
    let claim = both.schedules.claim(100).await.unwrap();
    let mut again: Vec<_> =
        claim.entries.iter().map(|c| (c.schedule, String::from_utf8_lossy(&c.member).into_owned())).collect();
    again.sort();
    let mut expected: Vec<_> = listed[1..].iter().map(|(member, _)| (0, member.clone())).collect();
    expected.extend(other[1..].iter().map(|(member, _)| (1, member.clone())));
    expected.sort();
    assert_eq!(again, expected);
    assert_eq!(both.schedules.settle(&all(&claim.entries)).await.unwrap().removed, 4);
}

#[tokio::test]
async fn an_unused_form_costs_a_busy_tenant_almost_nothing() {
    const CLAIMS: u64 = 200;
    let both = Both::new().await;
    // What is due comes, and something stays: the schedule is never empty.
    tell!(both.listed, "ZADD", both.listed.space.schedule(), "4000000000", "later");
    both.schedules.claim(1).await.unwrap();
    let before = both.calls().await;
    for _ in 0..CLAIMS {
        both.schedules.claim(1).await.unwrap();
    }
    let calls = both.calls().await - before;
    assert!(calls < CLAIMS + CLAIMS / 2, "{calls} calls for {CLAIMS} claims");

    // It begins to be used: what the probe sees is claimed at once.
    let (member, _) = both.other.mutate("first", "{}").await;
    both.schedules.wake(both.other.space.schedule());
    let claim = both.schedules.claim(1).await.unwrap();
    assert_eq!(names(&claim.entries), [member]);
}

/// A balance value of this version.
fn value(version: i64) -> String {
    format!(
        r#"{{"ID":"0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d99","Available":"{version}","OnHold":"0","Version":{version},"AssetCode":"BRL","Key":"default"}}"#
    )
}

/// Writes a mutation of a balance through the form as listed.
async fn written(both: &Both, name: &str, version: i64) {
    let (member, _) = both.listed.mutate(name, &value(version)).await;
    both.schedules.wake(both.listed.space.schedule());
    let claim = both.schedules.claim(100).await.unwrap();
    let own: Vec<_> = claim.entries.iter().filter(|claimed| claimed.member == member.as_bytes()).collect();
    assert_eq!(both.schedules.settle(&own).await.unwrap().removed, 1);
}

#[tokio::test]
async fn an_entry_goes_when_the_same_balance_is_written_through_the_other_form() {
    let both = Both::new().await;
    let others = both.other.lease_mode();
    for (name, kept) in [("older", 6), ("equal", 7)] {
        both.other.quarantined(name, &value(kept)).await;
        written(&both, name, 7).await;
        assert_eq!(others.quarantine_len().await.unwrap(), 0, "{name}");
    }
    // Nothing shows that these are contained in what was written.
    for (name, kept) in [("newer", value(8)), ("unreadable", "[]".to_owned())] {
        let member = both.other.quarantined(name, &kept).await;
        written(&both, name, 7).await;
        assert!(others.quarantine_get(member.as_bytes()).await.unwrap().is_some(), "{name}");
    }
    // Its retry is under way, and may need the value that the entry keeps.
    let member = both.other.quarantined("retried", &value(6)).await;
    tell!(both.other, "DEL", &member);
    both.schedules.quarantine_retry(&[member.as_bytes()]).await.unwrap();
    both.schedules.wake(both.other.space.schedule());
    let retried = both.schedules.claim(100).await.unwrap();
    assert_eq!(retried.entries[0].value.as_deref(), Some(value(6).as_bytes()));
    written(&both, "retried", 7).await;
    assert!(others.quarantine_get(member.as_bytes()).await.unwrap().is_some());
    both.schedules.settle(&all(&retried.entries)).await.unwrap();
    assert_eq!(others.quarantine_len().await.unwrap(), 2, "its own write clears it");
}

#[tokio::test]
async fn an_obsolete_entry_of_the_other_form_does_not_leave_its_value_without_an_end() {
    let both = Both::new().await;
    let cut = both.other.with(|options| options.quarantine_value_limit = 10);
    let (member, _) = both.other.mutate("a", &value(6)).await;
    let claim = cut.claim(1).await.unwrap();
    let refusal = || Refusal { reason: QuarantineReason::MissingRow, detail: String::new() };
    cut.quarantine(&[(&claim.entries[0], refusal())]).await.unwrap();
    assert_eq!(both.other.ttl(&member).await, -1);
    // Retried with room for its value: the entry holds it as a whole, and its key still has no end.
    cut.quarantine_retry(&[member.as_bytes()]).await.unwrap();
    let whole = both.other.lease_mode();
    let claim = whole.claim(1).await.unwrap();
    whole.quarantine(&[(&claim.entries[0], refusal())]).await.unwrap();
    assert_eq!(both.other.ttl(&member).await, -1);
    written(&both, "a", 7).await;
    assert_eq!(whole.quarantine_len().await.unwrap(), 0);
    assert!((1..=86_400_000).contains(&both.other.ttl(&member).await));
}

#[tokio::test]
async fn a_loss_says_that_its_balance_was_written_through_the_other_form() {
    let both = Both::new().await;
    let others = both.other.lease_mode();
    // The quarantine's key holding something else is no obstacle.
    tell!(both.other, "SET", both.other.space.quarantine(), "text");
    let (earlier, _) = both.listed.mutate("a", &value(7)).await;
    let (member, _) = both.other.mutate("a", &value(8)).await;
    tell!(both.other, "DEL", &member);
    let claim = both.schedules.claim(100).await.unwrap();
    let of = |name: &str| claim.entries.iter().find(|claimed| claimed.member == name.as_bytes()).unwrap();
    let loss = Loss { detail: "gone".to_owned(), ..Loss::default() };
    both.schedules.record_losses(&[(of(&member), loss)]).await.unwrap();
    tell!(both.other, "DEL", both.other.space.quarantine());
    let later = async || {
        let entry = others.quarantine_get(member.as_bytes()).await.unwrap().unwrap();
        entry.loss.unwrap().later_at
    };

    // What was scheduled before says nothing.
    both.schedules.settle(&[of(&earlier)]).await.unwrap();
    assert_eq!(later().await, None);
    tell!(both.other, "SET", both.other.space.quarantine(), "text");
    written(&both, "a", 9).await;
    tell!(both.other, "DEL", both.other.space.quarantine());
    assert!(later().await.is_some());
    assert_eq!(others.losses_len().await.unwrap(), 1, "it stays");
}

#[tokio::test]
async fn an_entry_that_was_renewed_since_it_was_read_is_not_cleared() {
    let both = Both::new().await;
    let (other, space) = (&both.other, &both.other.space);
    let member = other.quarantined("a", &value(6)).await;
    let read: String = ask!(other, "HGET", space.quarantine(), &member);
    let mend = async || {
        let mut cmd = MEND.call(3);
        cmd.arg(space.schedule()).arg(space.quarantine()).arg(space.losses()).arg(&member).arg(&read).arg(0);
        MEND.run(&other.link, &cmd).await.unwrap();
    };
    other.quarantined("a", &value(8)).await;
    mend().await;
    let renewed: Option<String> = ask!(other, "HGET", space.quarantine(), &member);
    assert!(renewed.is_some_and(|entry| entry != read));
    tell!(other, "HSET", space.quarantine(), &member, &read);
    mend().await;
    assert_eq!(other.lease_mode().quarantine_len().await.unwrap(), 0);
}
