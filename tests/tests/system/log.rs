//! A worker's log: what it always says, and how much it says at most.

use anyhow::{Result, ensure};
use balance_sync_sandbox::eventually;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_tests::ledger::{comes_in_step, quarantine_key};
use balance_sync_tests::{SOON, Worker};
use redis::AsyncCommands;

#[tokio::test]
async fn a_heartbeat_counts_what_was_done_since_the_last() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let mut worker = Worker::of(&sandbox)
        .set("worker.name", "w-1")
        .set("log.heartbeat", "1s")
        .set("log.level", "info")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let beats = eventually(SOON, "a beat with nothing written, after those with 20 rows", || async {
        let beats: Vec<_> =
            worker.log().lines().into_iter().filter(|line| line.message == "heartbeat").collect();
        let rows: Vec<u64> = beats.iter().filter_map(|beat| beat.fields["rows"].as_u64()).collect();
        ensure!(rows.iter().sum::<u64>() == 20 && rows.last() == Some(&0), "{rows:?}");
        Ok(beats)
    })
    .await?;
    for beat in &beats {
        let fields = &beat.fields;
        assert_eq!((beat.level.as_str(), &fields["worker"]), ("INFO", &"w-1".into()), "{}", beat.raw);
        assert_eq!((&fields["redis"], &fields["failures"]), (&"ok".into(), &0.into()), "{}", beat.raw);
    }
    let last = &beats[beats.len() - 1];
    assert_eq!((&last.fields["tenants"], &last.fields["ready"]), (&2.into(), &true.into()), "{}", last.raw);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_flood_of_poison_is_logged_for_some_and_summed_up() -> Result<()> {
    const POISON: usize = 300;
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut redis = sandbox.redis().connect().await?;
    for number in 0..POISON {
        let member = format!("{}balance:{{transactions}}:nonsense-{number}", tenant.keys.prefix());
        put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), b"{}", Some(DEFAULT_TTL)).await?;
    }
    eventually(SOON, "all of it in quarantine", || async {
        let mut redis = sandbox.redis().connect().await?;
        ensure!(redis.hlen::<_, usize>(quarantine_key(&tenant)).await? == POISON);
        Ok(())
    })
    .await?;
    let log = worker.stop().await?.log;
    let message = "balance can't be synced, quarantined";
    let shown = log.lines().iter().filter(|line| line.message == message).count();
    let summed: Vec<_> = log.lines().into_iter().filter(|line| line.fields["of"] == message).collect();
    let left_out: u64 = summed.iter().filter_map(|line| line.fields["lines"].as_u64()).sum();
    assert_eq!(shown + left_out as usize, POISON, "{}", log.tail());
    // A minute may end meanwhile.
    assert!((20..=60).contains(&shown), "{shown} lines");
    assert!(summed.iter().all(|line| line.fields["tenants"] == 1 && line.level == "WARN"), "{summed:?}");
    Ok(())
}
