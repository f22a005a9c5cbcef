//! Tenants that go, come, and come back.

use anyhow::Result;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Producer};
use balance_sync_sandbox::{ServiceRoute, TenantIsolation, eventually};
use balance_sync_tests::ledger::{
    comes_in_step, flush_hangs, hold_row, is_settled, row, rows, scores, sessions,
};
use balance_sync_tests::{SOON, Worker};

#[tokio::test]
async fn a_removed_tenant_is_flushed_and_stopped_and_served_again_when_it_returns() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 20).await?;
    let mut worker = Worker::of(&sandbox).set("tenants.poll_interval", "300ms").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;

    // It goes while a flush of it hangs: the flush is finished, not given up.
    let tenant = sandbox.tenants().remove(0);
    let pool = sandbox.pool(&tenant);
    let held = hold_row(&pool, &tenant, 5).await?;
    producer.mutate(0, &[4, 5, 6], DEFAULT_TTL).await?;
    flush_hangs(&sandbox, &tenant).await?;
    sandbox.remove_tenant(&tenant.id)?;
    let line = worker.logs("tenant no longer wanted, collector stops").await?;
    assert_eq!(line.tenant_id.as_deref(), Some(tenant.id.as_str()));
    held.rollback().await?;
    worker.reaches("balance_sync_collector_stops_total", &[], 1.0).await?;
    comes_in_step(&sandbox, &producer).await?;
    is_settled(&sandbox, &tenant).await?;
    eventually(SOON, "the tenant's connections closed", || async {
        anyhow::ensure!(sessions(&sandbox, &tenant).await? == (0, 0));
        anyhow::Ok(())
    })
    .await?;
    assert_eq!(worker.metric("balance_sync_tenants", &[]).await?, 2.0);

    // What comes for it now waits; the others go on.
    producer.mutate_each(DEFAULT_TTL).await?;
    let polls = sandbox.service().calls(ServiceRoute::List);
    eventually(SOON, "the others' balances, two polls later", || async {
        for other in &sandbox.tenants()[1..] {
            is_settled(&sandbox, other).await?;
        }
        anyhow::ensure!(sandbox.service().calls(ServiceRoute::List) >= polls + 2);
        anyhow::Ok(())
    })
    .await?;
    assert_eq!(scores(&sandbox, &tenant.keys.schedule()).await?.len(), 20);
    assert_eq!(row(&sandbox, &tenant, 0).await?.version, 2);
    assert_eq!(sessions(&sandbox, &tenant).await?.0, 0);

    sandbox.restore_tenant(&tenant.id)?;
    comes_in_step(&sandbox, &producer).await?;
    is_settled(&sandbox, &tenant).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_new_tenant_is_served_after_one_poll_and_a_suspended_one_no_longer() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let mut worker = Worker::of(&sandbox)
        .set("tenants.poll_interval", "2s")
        .set("tenants.service.settings_ttl", "200ms")
        .set("collector.idle_backoff_max", "100ms")
        .start()
        .await?;
    for (id, isolation) in [("newcomer", TenantIsolation::Database), ("sharer", TenantIsolation::Schema)] {
        let tenant = sandbox.add_tenant(id, isolation).await?;
        let polls = sandbox.service().calls(ServiceRoute::List);
        let mut producer = Producer::new(&sandbox.redis().url(), vec![tenant.load()]);
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(&sandbox, &producer).await?;
        // One poll may have been under way when it was added.
        let needed = sandbox.service().calls(ServiceRoute::List) - polls;
        assert!(needed <= 2, "{needed} polls until {id} was served");
    }

    // Suspended: not listed any more, and its connections are refused. It is one of four: at once.
    let suspended = sandbox.tenant("newcomer")?;
    assert!(sandbox.service().update("newcomer", |record| {
        record.status = balance_sync_sandbox::TenantStatus::Suspended;
    }));
    worker.reaches("balance_sync_collector_stops_total", &[], 1.0).await?;
    let before = rows(&sandbox, &suspended).await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    for other in sandbox.tenants().iter().filter(|other| other.id != "newcomer") {
        eventually(SOON, "the others' balances", || is_settled(&sandbox, other)).await?;
    }
    assert_eq!(rows(&sandbox, &suspended).await?, before);
    sandbox.service().update("newcomer", |record| {
        record.status = balance_sync_sandbox::TenantStatus::Active;
    });
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
