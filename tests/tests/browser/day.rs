//! The last 24 hours on the dashboard: the fleet as a strip and a table, a tenant as a list of what happened.

use anyhow::Result;
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_tests::ledger::comes_in_step;

use crate::{break_password, browser, worker};

#[tokio::test]
async fn the_last_day_is_shown_of_the_fleet_and_of_a_tenant() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let mut first = worker(&sandbox, "first").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    // What is on its way when the password is changed would be written.
    comes_in_step(&sandbox, &producer).await?;
    let tenant = sandbox.tenants().remove(0);
    let page = first.url(&format!("/tenants/{}", tenant.id));
    break_password(&sandbox, &tenant, "another-one").await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let table = "table[aria-label='What happened']";
    browser.open(&page).await?;
    browser.shows(table, "degraded").await?;
    browser.press(".actions", "Pause").await?;
    browser.fill("dialog #note", "moving to another server").await?;
    browser.press("dialog", "Pause").await?;
    browser.shows(table, "moving to another server").await?;
    browser.shows(table, "Pause by anonymous@loopback").await?;
    browser.shows(table, "Worker started, version").await?;
    browser.shows(table, "Not recorded until").await?;
    browser
        .until(
            "the states, the last first",
            "(() => { const text = [...document.querySelectorAll('.day-what')].map((node) => node.innerText);
               const at = (words) => text.findIndex((line) => line.startsWith(words));
               return at('paused') >= 0 && at('paused') < at('degraded') && at('degraded') < at('Worker started'); })()",
        )
        .await?;

    // A minute is recorded soon, and all before the start is unknown.
    browser.open(&first.url("/")).await?;
    browser
        .until(
            "the day in words",
            "/not recorded for 23 h/.test(document.querySelector('.day')?.getAttribute('aria-label'))",
        )
        .await?;
    browser
        .until(
            "a minute",
            "document.querySelectorAll('.day-run:not([data-verdict=\"not recorded\"])').length > 0",
        )
        .await?;
    browser.eval("document.querySelector('.day-table summary').click()").await?;
    browser.shows("table[aria-label='The fleet by the hour']", "not recorded").await?;
    // First the browser: a page that loses its worker looks for the picture of that.
    browser.finish().await?;
    assert_eq!(first.stop().await?.code, Some(0));
    Ok(())
}
