//! What shows that Redis has lost data, and listing what is lost.

use balance_sync_schedule::{Loss, Vanished};

use crate::{Tenant, tell};

#[tokio::test]
async fn a_look_sets_the_number_and_reads_the_one_before() {
    let tenant = Tenant::new("vanished-look").await;
    let one = Vanished::new(tenant.link.clone(), "vanished-look");
    let first = one.look(1).await.unwrap();
    assert_eq!(first.former, None);
    assert!(first.run_id.is_some_and(|id| id.len() == 40) && first.evicted.is_some());
    assert!(first.replication.is_some_and(|id| id.len() == 40), "of its history");
    assert_eq!(first.former_replication, None, "it was never promoted");
    let (time, asked, answered) = first.time.unwrap();
    assert!(time > 1_700_000_000.0 && answered >= asked, "{time}");
    assert_eq!(one.look(5).await.unwrap().former, Some(1));
    tell!(tenant, "DEL", "{transactions}:balance-sync:acknowledged:vanished-look");
    assert_eq!(one.look(6).await.unwrap().former, None, "it is gone");
}

#[tokio::test]
async fn schedules_are_counted_with_some_members_and_their_values() {
    let (tenant, empty, wrong) = (
        Tenant::new("vanished-count").await,
        Tenant::new("vanished-none").await,
        Tenant::new("vanished-wrong").await,
    );
    for n in 0..40 {
        tenant.mutate(&format!("b{n}"), "{}").await;
    }
    tell!(wrong, "SET", wrong.space.schedule(), "x");
    let spaces = [&tenant.space, &empty.space, &wrong.space];
    let counted = Vanished::new(tenant.link.clone(), "x").count(&spaces).await.unwrap();
    assert_eq!(counted.iter().map(|one| one.members).collect::<Vec<_>>(), [Some(40), Some(0), None]);
    assert_eq!(counted[0].some.len(), 16);
    assert!(counted[0].some.iter().all(|one| one.value == b"{}"));
}

#[tokio::test]
async fn what_is_not_scheduled_can_be_listed_as_lost() {
    let tenant = Tenant::new("vanished-lost").await;
    let (scheduled, score) = tenant.mutate("scheduled", "{}").await;
    let lost = tenant.member("lost");
    let loss = Loss { confirmed: true, version: Some(7), ..Loss::default() };
    let schedule = tenant.lease_mode();
    let both = vec![(lost.clone().into_bytes(), loss.clone()), (scheduled.clone().into_bytes(), loss)];
    assert_eq!(schedule.list_losses(both).await.unwrap(), 1, "the other one is left to its mutation");
    assert_eq!(schedule.losses_len().await.unwrap(), 1);
    let members = [lost.as_bytes(), scheduled.as_bytes()];
    let listed = schedule.listed(&members).await.unwrap();
    let since = listed[0].expect("listed as lost");
    assert!((since - score.parse::<f64>().unwrap()).abs() < 60.0, "a time of Redis: {since}, {score}");
    assert_eq!(listed[1], None);
    let left: f64 = tenant.score(&scheduled).await.unwrap().parse().unwrap();
    assert!((left - score.parse::<f64>().unwrap()).abs() < 1e-6, "nothing was touched");
    let members: Vec<Vec<u8>> = members.iter().map(|member| member.to_vec()).collect();
    assert_eq!(schedule.not_scheduled(&members).await.unwrap(), [lost.into_bytes()]);
}
