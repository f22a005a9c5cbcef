//! A tenant whose settings name another tenant's database: nothing is written there, nothing is quarantined, and it is shown.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions, SandboxTenant, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step, losses_key, quarantine_key, rows, scores};
use balance_sync_tests::{SOON, Worker, run};
use redis::AsyncCommands;
use serde_json::Value;
use uuid::Uuid;

const PUT_OFF: &str = "balances can't be written now";
const REASON: &str = "postgres_no_visible_rows";

/// Makes the tenant service give one tenant the database of another.
fn misdirect(sandbox: &Sandbox, tenant: &SandboxTenant, to: &SandboxTenant) -> Result<()> {
    let other = sandbox.service().tenant(&to.id).context("the other tenant")?;
    sandbox.service().update(&tenant.id, |record| {
        record.database = other.database;
        record.username = other.username;
        record.password = other.password;
    });
    Ok(())
}

/// Whether all of these are scheduled with values that live on, and neither in quarantine nor lost.
async fn waits(sandbox: &Sandbox, tenant: &SandboxTenant, balances: usize) -> Result<()> {
    let scheduled = scores(sandbox, &tenant.keys.schedule()).await?;
    ensure!(scheduled.len() == balances, "{} of {balances} are scheduled", scheduled.len());
    let mut redis = sandbox.redis().connect().await?;
    for key in [quarantine_key(tenant), losses_key(tenant)] {
        let entries: Vec<String> = redis.hkeys(&key).await?;
        ensure!(entries.is_empty(), "{key}: {entries:?}");
    }
    for member in scheduled.keys() {
        let ttl: i64 = redis.ttl(member).await?;
        ensure!(ttl > 600, "{member} has {ttl} s left");
    }
    Ok(())
}

/// A few balances are put off one by one; from ten due ones on the tenant as a whole is stopped.
#[tokio::test]
async fn a_tenant_with_anothers_database_waits_until_its_own_is_named() -> Result<()> {
    let options = SandboxOptions { isolation: Isolation::Database, ..balance_sync_tests::options(2, 20) };
    let sandbox = Sandbox::start(options).await?;
    let tenants = sandbox.tenants();
    let (astray, quiet) = (&tenants[0], &tenants[1]);
    let right = sandbox.service().tenant(&astray.id).context("the tenant's record")?;
    misdirect(&sandbox, astray, quiet)?;
    let before = (rows(&sandbox, astray).await?, rows(&sandbox, quiet).await?);
    let mut worker = Worker::of(&sandbox)
        .set("claim.put_off", "1s")
        .set("postgres.backoff_long", "2s")
        .set("tenants.service.settings_ttl", "300ms")
        .expect_error(PUT_OFF)
        .start()
        .await?;
    let mut producer = sandbox.producer();
    let id = ("tenant_id", astray.id.as_str());
    let config = sandbox.config_path().to_string_lossy().into_owned();
    let nothing_is_written = async |scheduled: usize| -> Result<()> {
        waits(&sandbox, astray, scheduled).await?;
        ensure!((rows(&sandbox, astray).await?, rows(&sandbox, quiet).await?) == before, "rows have changed");
        let page = worker.metrics().await?;
        for outcome in ["updated", "stale", "deleted", "quarantined", "expired"] {
            let count = page.sum("balance_sync_balances_total", &[("outcome", outcome)]);
            ensure!(count == 0.0, "{count} {outcome}");
        }
        // Each way to look at it names the reason.
        ensure!(page.sum("balance_sync_tenant_degraded", &[id, ("reason", REASON)]) == 1.0, "not degraded");
        let overview: Value = serde_json::from_str(&worker.get("/api/v1/overview").await?.1)?;
        ensure!(overview["verdict"] == "degraded", "{overview}");
        let status = run(&["status", "--config", &config], &[]).await?;
        ensure!(status.code == Some(1) && status.stdout.starts_with("DEGRADED"), "{status:?}");
        ensure!(status.stdout.contains(REASON) && status.stdout.contains(&astray.id), "{status:?}");
        Ok(())
    };

    producer.mutate(0, &[0, 1, 2], DEFAULT_TTL).await?;
    // Each is put off again and again.
    let outcome = [id, ("outcome", "unknown_ledger")];
    worker.reaches("balance_sync_balances_total", &outcome, 6.0).await?;
    eventually(SOON, "three balances that wait", || nothing_is_written(3)).await?;

    let failures = worker.metric("balance_sync_batch_failures_total", &[id]).await?;
    producer.mutate(0, &(0..20).collect::<Vec<_>>(), DEFAULT_TTL).await?;
    worker.reaches("balance_sync_batch_failures_total", &[id], failures + 2.0).await?;
    eventually(SOON, "twenty balances that wait", || nothing_is_written(20)).await?;

    // They are not scheduled again.
    sandbox.service().update(&astray.id, |record| *record = right);
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(rows(&sandbox, quiet).await?, before.1, "the quiet tenant's rows");
    eventually(SOON, "a healthy fleet", || async {
        let overview: Value = serde_json::from_str(&worker.get("/api/v1/overview").await?.1)?;
        ensure!(overview["verdict"] == "healthy", "{}: {}", overview["verdict"], overview["reasons"]);
        Ok(())
    })
    .await?;

    // Now the database is known to be the tenant's, because this worker has written to it: what isn't there is missing.
    let balance = &astray.balances[0];
    let (organization, ledger) = (Uuid::new_v4(), Uuid::new_v4());
    let prefix = astray.keys.prefix();
    let stranger = format!("{prefix}balance:{{transactions}}:{organization}:{ledger}:@stranger#default");
    let json = balance.json(3).replace(&balance.id.to_string(), &Uuid::new_v4().to_string());
    let mut redis = sandbox.redis().connect().await?;
    let schedule = astray.keys.schedule();
    put_raw(&mut redis, &schedule, stranger.as_bytes(), json.as_bytes(), Some(DEFAULT_TTL)).await?;
    eventually(SOON, "the stranger in quarantine", || async {
        let mut redis = sandbox.redis().connect().await?;
        let entry: Option<String> = redis.hget(quarantine_key(astray), &stranger).await?;
        let entry: Value = serde_json::from_str(&entry.context("no entry")?)?;
        ensure!(entry["reason"] == "missing_row", "{entry}");
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
