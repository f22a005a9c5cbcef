//! Every action on tenants and workers: confirmed after its consequences are shown, followed to its outcome, in the log.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, SEED_VERSION};
use balance_sync_sandbox::{balance_table, eventually};
use balance_sync_tests::SOON;
use balance_sync_tests::ledger::{claimed, comes_in_step, scores};

use crate::{break_password, browser, paused_tenants, version, worker};

#[tokio::test]
async fn a_paused_tenant_waits_until_it_is_resumed() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(3, 20).await?;
    let worker = worker(&sandbox, "first").start().await?;
    let tenants = sandbox.tenants();
    browser.open(&worker.url(&format!("/tenants/{}", tenants[0].id))).await?;
    browser.shows(".tenant-state .badge", "idle").await?;

    // Called off: nothing happens.
    browser.press(".actions", "Pause").await?;
    browser.shows("dialog", "stop claiming").await?;
    browser.press("dialog", "Cancel").await?;
    browser.until("no dialog", "document.querySelector('dialog') === null").await?;
    ensure!(paused_tenants(&sandbox).await?.is_empty());

    browser.press(".actions", "Pause").await?;
    browser.fill("dialog #note", "the schema is being migrated").await?;
    browser.press("dialog", "Pause").await?;
    browser.shows(".toasts", "done by first").await?;
    browser.shows(".tenant-state .badge", "paused").await?;
    browser.shows(".tenant-state", "the schema is being migrated").await?;
    let (key, entry) = paused_tenants(&sandbox).await?.pop().context("nothing is paused")?;
    assert_eq!(key, tenants[0].keys.schedule());
    assert!(entry.contains("the schema is being migrated") && entry.contains(&tenants[0].id), "{entry}");

    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    for tenant in &tenants[1..] {
        eventually(SOON, "the others are written", || async {
            ensure!(version(&sandbox, tenant, 19).await? > SEED_VERSION);
            ensure!(scores(&sandbox, &tenant.keys.schedule()).await?.is_empty());
            anyhow::Ok(())
        })
        .await?;
    }
    // What waits is seen to wait; nothing of it is claimed or written.
    browser.shows(".figures", "20").await?;
    assert_eq!(claimed(&sandbox, &tenants[0]).await?, 0);
    assert_eq!(scores(&sandbox, &tenants[0].keys.schedule()).await?.len(), 20);
    assert_eq!(version(&sandbox, &tenants[0], 0).await?, SEED_VERSION);

    // One click from the overview.
    browser.press(".tabs", "Overview").await?;
    browser.shows("table[aria-label^='Tenants that need']", "the schema is being migrated").await?;
    browser.press(".row-actions", "Resume").await?;
    browser.press("dialog", "Resume").await?;
    browser.shows(".toasts", "Resume").await?;
    comes_in_step(&sandbox, &producer).await?;
    ensure!(paused_tenants(&sandbox).await?.is_empty());
    browser.shows("#verdict", "All tenants are on time").await?;

    browser.press(".tabs", "Actions").await?;
    for text in [
        "Pause",
        "Resume",
        "the schema is being migrated",
        "anonymous@loopback",
        "done by first",
        &tenants[0].id,
    ] {
        browser.shows("main", text).await?;
    }
    browser.finish().await
}

#[tokio::test]
async fn a_wrong_password_is_shown_with_what_helps_and_mended_by_one_action() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(3, 20).await?;
    let worker = worker(&sandbox, "first").start().await?;
    let tenant = sandbox.tenants().remove(0);
    browser.open(&worker.url("/")).await?;
    browser.shows("#verdict", "All tenants are on time").await?;

    break_password(&sandbox, &tenant, "another-one").await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    browser.shows("#verdict", "can't be written").await?;
    browser.shows(".reasons", &tenant.id).await?;
    browser.shows(".reasons", "postgres credentials").await?;
    browser.shows("table[aria-label^='Tenants that need']", "Correct the tenant service's entry").await?;
    browser.until("the browser's own tab tells it", "document.title.startsWith('!')").await?;
    browser
        .until(
            "a screen reader announces it",
            "document.querySelector('#announce').textContent.includes('degraded')",
        )
        .await?;

    // The sentence leads to the tenant.
    browser.press(".reasons", &tenant.id).await?;
    browser.shows(".tenant-state", "Postgres refuses user or password").await?;
    browser.shows("table[aria-label='Last errors']", "postgres credentials").await?;
    browser.until("what happens next", "document.querySelector('.next-text').innerText.length > 20").await?;
    assert_eq!(version(&sandbox, &tenant, 0).await?, 1);

    sandbox.service().update(&tenant.id, |record| record.password = "another-one".to_owned().into());
    browser.press(".actions", "Re-read credentials").await?;
    browser.press("dialog", "Re-read credentials").await?;
    browser.shows(".toasts", "done by first").await?;
    comes_in_step(&sandbox, &producer).await?;
    browser.lacks(".tenant-state .badge", "degraded").await?;
    browser.shows("table[aria-label='Last flushes']", "20").await?;
    browser.shows("table[aria-label='Last errors']", "postgres credentials").await?;
    let page = browser.text("main").await?;
    assert!(!page.contains("another-one"), "{page}");
    browser.finish().await
}

#[tokio::test]
async fn a_flush_can_be_asked_for() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(3, 5).await?;
    // By itself it would look again in half a minute at the earliest.
    let worker = worker(&sandbox, "first")
        .set("postgres.backoff_min", "1m")
        .set("postgres.backoff_max", "10m")
        .set("postgres.backoff_long", "10m")
        .start()
        .await?;
    // One whose rights are its own: the last share a database.
    let tenant = sandbox.tenants().remove(2);
    let table = balance_table(tenant.schema.as_deref());
    let revoke = format!("REVOKE UPDATE ON {table} FROM \"{}\"", tenant.role);
    let grant = format!("GRANT UPDATE ON {table} TO \"{}\"", tenant.role);
    sandbox.postgres().execute(&tenant.database, &revoke).await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    browser.open(&worker.url(&format!("/tenants/{}", tenant.id))).await?;
    browser.shows(".tenant-state", "or update the table").await?;
    sandbox.postgres().execute(&tenant.database, &grant).await?;
    browser.press(".actions", "Flush now").await?;
    browser.shows("dialog", "stops waiting").await?;
    assert_eq!(version(&sandbox, &tenant, 0).await?, SEED_VERSION);
    browser.press("dialog", "Flush now").await?;
    browser.shows(".toasts", "by first").await?;
    comes_in_step(&sandbox, &producer).await?;
    browser.lacks(".tenant-state .badge", "degraded").await?;
    browser.finish().await
}

#[tokio::test]
async fn a_drained_worker_ends_and_the_others_go_on() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(3, 20).await?;
    let first = worker(&sandbox, "first").start().await?;
    let mut second = worker(&sandbox, "second").start().await?;
    browser.open(&first.url("/")).await?;
    browser.shows("table[aria-label='Workers']", "second").await?;
    browser.shows("table[aria-label='Workers']", "first (this one)").await?;
    browser.press("table[aria-label='Workers']", "Drain second").await?;
    browser.shows("dialog", "1 other worker will take over").await?;
    browser.press("dialog", "Drain").await?;
    let ended = second.wait().await?;
    assert_eq!(ended.code, Some(0));
    assert!(ended.log.find("drained").is_some());
    browser.lacks("table[aria-label='Workers']", "second").await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    browser.shows("#verdict", "All tenants are on time").await?;
    browser.press(".tabs", "Actions").await?;
    browser.shows("main", "Drain worker").await?;
    browser.shows("main", "done by second").await?;

    // The last one is another matter.
    browser.press(".tabs", "Overview").await?;
    browser.press("table[aria-label='Workers']", "Drain first").await?;
    browser.shows("dialog", "It is the only one").await?;
    browser.press("dialog", "Cancel").await?;
    browser.finish().await
}
