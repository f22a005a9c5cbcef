//! A recovery on the page of a tenant: what is lost is shown, then restored after a confirmation that asks for a reason.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{SEED_VERSION, write_operations, write_repayments};

use crate::{browser, version, worker};

/// The version that Redis held.
const LOST: i64 = 3;

#[tokio::test]
async fn lost_balances_are_shown_and_restored_after_a_confirmation() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 20).await?;
    let worker = worker(&sandbox, "first").start().await?;
    let tenant = sandbox.tenants().remove(0);
    let (exact, doubtful) = ([4, 5], 6);
    let lost = exact.map(|n: usize| (&tenant.balances[n], LOST));
    let pool = sandbox.pool(&tenant);
    write_operations(&pool, tenant.schema.as_deref(), &lost).await?;
    write_repayments(&pool, tenant.schema.as_deref(), &[(&tenant.balances[doubtful], LOST)]).await?;
    pool.close().await;

    browser.open(&worker.url(&format!("/tenants/{}", tenant.id))).await?;
    browser.shows(".recovery", "Nothing is written before you say so").await?;
    browser.lacks(".recovery .table", "version").await?;
    browser.press(".recovery", "Look for losses").await?;
    browser.shows(".recovery", "Looking for losses: done").await?;
    browser.shows(".recovery", "2 can be restored · 1 can't").await?;
    let first = &tenant.balances[exact[0]];
    browser.shows("table[aria-label='Lost balances']", &tenant.keys.member(first)).await?;
    browser.shows("table[aria-label='Lost balances']", &format!("version {LOST}: ")).await?;
    browser.shows("table[aria-label='Lost balances']", "newest operation").await?;
    browser.shows("table[aria-label='Lost balances']", "can't be restored: ").await?;
    ensure!(version(&sandbox, &tenant, exact[0]).await? == SEED_VERSION, "a plan writes nothing");

    // Called off, and without a reason: nothing happens.
    browser.press(".recovery", "Restore…").await?;
    browser.shows("dialog", "Restore 2 balances").await?;
    browser.press("dialog", "Cancel").await?;
    browser.until("no dialog", "document.querySelector('dialog') === null").await?;
    browser.press(".recovery", "Restore…").await?;
    browser.press("dialog", "Restore").await?;
    browser.until("a reason is asked for", "document.querySelector('dialog #note:invalid') !== null").await?;
    ensure!(version(&sandbox, &tenant, exact[0]).await? == SEED_VERSION, "not confirmed");

    browser.fill("dialog #note", "redis was evicted").await?;
    browser.press("dialog", "Restore").await?;
    browser.shows(".recovery", "Restoring: done").await?;
    browser.shows(".recovery", "2 restored").await?;
    for n in exact {
        ensure!(version(&sandbox, &tenant, n).await? == LOST, "{n}");
    }
    ensure!(version(&sandbox, &tenant, doubtful).await? == SEED_VERSION, "in doubt");
    browser.shows("main", "redis was evicted").await?;
    browser.shows("main", "Recover lost balances").await?;

    // It is still there for whoever comes later, and finds nothing but what is in doubt.
    browser.open(&worker.url(&format!("/tenants/{}", tenant.id))).await?;
    browser.shows(".recovery", "Restoring: done").await?;
    browser.press(".recovery", "Look for losses").await?;
    browser.shows(".recovery", "0 can be restored · 1 can't").await?;
    let shown = browser.text(".recovery").await.context("the part")?;
    ensure!(!shown.contains("Restore…"), "nothing is left to be restored: {shown}");
    browser.finish().await
}
