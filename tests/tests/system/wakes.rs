//! Idle tenants that Redis wakes, and what happens where it doesn't.

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{Sandbox, SandboxOptions, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{SOON, Worker, options};
use uuid::Uuid;

async fn tracked(workers: &[&Worker], schedules: f64) -> Result<()> {
    eventually(SOON, &format!("{schedules} schedules that Redis watches"), || async {
        let mut found = 0.0;
        for worker in workers {
            found += worker.metric("balance_sync_redis_tracked_schedules", &[]).await?;
        }
        ensure!(found == schedules, "{found}");
        Ok(())
    })
    .await
}

async fn wakes(workers: &[&Worker]) -> Result<f64> {
    let mut found = 0.0;
    for worker in workers {
        found += worker.metric("balance_sync_redis_wakes_total", &[]).await?;
    }
    Ok(found)
}

#[tokio::test]
async fn redis_wakes_idle_tenants_of_two_workers_again_after_its_connections_were_cut() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(6, 20).await?;
    let mut producer = sandbox.producer();
    // Those whose id is a UUID have one for each form of it.
    let schedules: usize =
        sandbox.tenants().iter().map(|tenant| 1 + usize::from(Uuid::parse_str(&tenant.id).is_ok())).sum();
    let watched = 2.0 * schedules as f64;
    let start = |name: &str| Worker::of(&sandbox).set("worker.name", name);
    let (mut one, mut two) = (start("one").start().await?, start("two").start().await?);
    for cut in [false, false, true] {
        // Each is empty, at its first owner and at the one that stands by.
        tracked(&[&one, &two], watched).await?;
        if cut {
            let mut redis = sandbox.redis().connect().await?;
            let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut redis).await?;
            let tracking: Vec<&str> = clients
                .lines()
                .filter(|client| {
                    client.split(' ').any(|field| field.starts_with("flags=") && field.contains('t'))
                })
                .filter_map(|client| client.split(' ').find_map(|field| field.strip_prefix("id=")))
                .collect();
            ensure!(tracking.len() >= 2, "{clients}");
            for id in tracking {
                let () = redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).query_async(&mut redis).await?;
            }
            tracked(&[&one, &two], watched).await?;
        }
        let before = wakes(&[&one, &two]).await?;
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(&sandbox, &producer).await?;
        let woken = wakes(&[&one, &two]).await? - before;
        ensure!(woken >= sandbox.tenants().len() as f64, "{woken} wakes");
        all_settled(&sandbox).await?;
    }
    for worker in [&mut one, &mut two] {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}

#[tokio::test]
async fn where_redis_announces_nothing_idle_tenants_are_asked_for_and_the_log_says_so_once() -> Result<()> {
    let sandbox = Sandbox::start(SandboxOptions { least_privilege: true, ..options(2, 20) }).await?;
    let mut producer = sandbox.producer();
    let mut redis = sandbox.redis().connect().await?;
    let () = redis::cmd("ACL")
        .arg(&["SETUSER", balance_sync_sandbox::WORKER_USER, "-client"])
        .query_async(&mut redis)
        .await?;
    let mut worker = Worker::of(&sandbox).start().await?;
    let line = worker
        .logs("redis doesn't announce changes of idle schedules, they are looked at once in a while")
        .await?;
    ensure!(line.raw.contains("missing: +hello +client|tracking"), "{}", line.raw);
    for _ in 0..2 {
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(&sandbox, &producer).await?;
        all_settled(&sandbox).await?;
    }
    assert_eq!(worker.metric("balance_sync_redis_tracking_threads", &[]).await?, 0.0);
    assert_eq!(worker.metric("balance_sync_redis_tracked_schedules", &[]).await?, 0.0);
    assert_eq!(worker.stop().await?.code, Some(0));

    let mut off = Worker::of(&sandbox).set("redis.tracking", "false").start().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(off.metric("balance_sync_redis_tracking_threads", &[]).await?, 0.0);
    assert_eq!(off.stop().await?.code, Some(0));
    Ok(())
}
