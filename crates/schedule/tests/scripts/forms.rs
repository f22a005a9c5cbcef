//! A tenant whose id is a UUID has two schedules: each member goes back where it came from, and neither schedule waits for
//! the other.

use std::sync::Arc;

use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_schedule::{Link, LinkSettings, Refusal, ScheduleOptions, Schedules};

use crate::{Tenant, all, common::space_of, names, number, tell};

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
async fn a_full_schedule_does_not_keep_the_other_waiting() {
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
async fn members_go_back_where_they_came_from() {
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
    let refusal = || Refusal { reason: "missing_row", detail: String::new() };
    let refused: Vec<_> =
        [named("refused"), vec![astray]].concat().into_iter().map(|claimed| (claimed, refusal())).collect();
    assert_eq!(both.schedules.quarantine(&refused).await.unwrap().quarantined, 3);

    for (form, members) in [(&both.listed, &listed), (&both.other, &other)] {
        assert_eq!(form.score(&members[0].0).await, None);
        let back = form.score(&members[1].0).await.unwrap();
        assert_eq!(number(&back), number(&members[1].1), "its former score");
        let entry = form.lease_mode().quarantine_get(members[2].0.as_bytes()).await.unwrap();
        assert_eq!(entry.unwrap().reason, "missing_row");
    }
    assert_eq!(both.listed.lease_mode().quarantine_len().await.unwrap(), 2, "what went astray is there too");

    // By hand, without anybody telling the form.
    assert_eq!(both.schedules.quarantine_len().await.unwrap(), 3);
    assert_eq!(both.schedules.quarantine_list().await.unwrap().len(), 3);
    assert!(both.schedules.quarantine_get(&astray.member).await.unwrap().is_some());
    let members: Vec<&[u8]> = refused.iter().map(|(claimed, _)| claimed.member.as_slice()).collect();
    assert_eq!(both.schedules.quarantine_retry(&members[..2]).await.unwrap(), 2);
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
async fn a_form_that_holds_nothing_costs_a_busy_tenant_next_to_nothing() {
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
