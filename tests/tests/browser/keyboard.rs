//! Everything by keys alone.

use anyhow::Result;
use thirtyfour::Key;

use crate::{browser, paused_tenants, worker};

#[tokio::test]
async fn a_tenant_is_found_and_paused_without_a_mouse() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(5, 2).await?;
    let worker = worker(&sandbox, "first").start().await?;
    browser.open(&worker.url("/")).await?;
    browser.shows("#verdict", "All tenants are on time").await?;

    // The first stop of the page, before its name, leads past the navigation.
    browser.eval("document.querySelector('.brand').focus()").await?;
    browser.shifted(Key::Tab).await?;
    browser.until("the skip link", "document.activeElement.classList.contains('skip')").await?;
    browser.keys(Key::Enter).await?;
    browser.until("past the navigation", "document.activeElement.id === 'main'").await?;

    // Pages, the list of keys, and out of it.
    browser.keys("?").await?;
    browser.shows("dialog", "search on this page").await?;
    browser.keys(Key::Escape).await?;
    browser.until("no dialog", "document.querySelector('dialog') === null").await?;
    browser.keys("gt").await?;
    browser.until("the page of tenants", "location.pathname === '/tenants'").await?;
    browser.shows(".grid", "tenant-0001").await?;

    // Search, into the table, down, and open.
    browser.keys("/").await?;
    browser.until("the search has the focus", "document.activeElement.id === 'tenant-search'").await?;
    browser.keys("tenant-000").await?;
    browser
        .until("four of five", "document.querySelector('.page-head').innerText.includes('4 of 5')")
        .await?;
    browser.until("the address keeps it", "location.search.includes('q=tenant-000')").await?;
    browser.keys(Key::Enter).await?;
    browser.until("the table has the focus", "document.activeElement.classList.contains('grid')").await?;
    let marked = "document.querySelector('.grid-row[aria-selected=true] .id')?.innerText";
    let active = "document.getElementById(document.querySelector('.grid').getAttribute('aria-activedescendant'))?.getAttribute('aria-selected')";
    browser
        .until("the first row is marked", &format!("{marked} === 'tenant-0001' && {active} === 'true'"))
        .await?;
    browser.keys(Key::Down + Key::Down).await?;
    browser.until("the third", &format!("{marked} === 'tenant-0004'")).await?;
    browser.keys(Key::Home).await?;
    browser.keys(Key::Down).await?;
    browser.until("the second", &format!("{marked} === 'tenant-0003'")).await?;
    browser.keys(Key::Enter).await?;
    browser.shows("h1", "tenant-0003").await?;
    browser.until("its name has the focus", "document.activeElement.tagName === 'H1'").await?;

    // The first button behind the heading; the dialog takes the focus, Escape gives it back.
    browser.shows(".actions", "Pause").await?;
    browser.keys(Key::Tab).await?;
    browser.until("the button", "document.activeElement.innerText.trim() === 'Pause'").await?;
    browser.keys(Key::Enter).await?;
    browser.until("the note has the focus", "document.activeElement.id === 'note'").await?;
    browser.keys(Key::Escape).await?;
    browser.until("the focus is back", "document.activeElement.innerText.trim() === 'Pause'").await?;
    assert!(paused_tenants(&sandbox).await?.is_empty());
    browser.keys(Key::Enter).await?;
    browser.until("the note has the focus", "document.activeElement.id === 'note'").await?;
    browser.keys("by keys" + Key::Tab).await?;
    browser.keys(Key::Tab).await?;
    browser.until("the last button", "document.activeElement.type === 'submit'").await?;
    browser.keys(Key::Enter).await?;
    browser.shows(".tenant-state .badge", "paused").await?;
    assert_eq!(paused_tenants(&sandbox).await?.len(), 1);

    // And back to the same view of the table.
    browser.eval("history.back()").await?;
    browser
        .until("the same view", "document.querySelector('#tenant-search')?.value === 'tenant-000'")
        .await?;
    browser.finish().await
}
