//! Every page on a living fleet: numbers that move, charts with lines, on a desk and on a phone, dark and light.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Progress, put_raw};
use balance_sync_sandbox::{Sandbox, eventually};
use balance_sync_tests::ledger::quarantine_key;
use balance_sync_tests::{Browser, SOON, Worker};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::{break_password, browser, worker};

/// Where pictures of the pages go, when they are wanted: `make screenshots`.
const PICTURES: &str = "BALANCE_SYNC_SCREENSHOTS";
/// What a phone has.
const PHONE: (u32, u32) = (390, 844);

/// A picture of what is shown, if pictures are wanted.
async fn picture(browser: &Browser, name: &str) -> Result<()> {
    if let Some(folder) = std::env::var_os(PICTURES).filter(|folder| !folder.is_empty()) {
        let path = PathBuf::from(folder).join(format!("{name}.png"));
        std::fs::write(&path, browser.picture(false).await?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// No page is wider than the view: on a phone nothing is reached by scrolling sideways.
async fn fits(browser: &Browser, name: &str) -> Result<()> {
    let widths = browser.eval("[document.documentElement.scrollWidth, innerWidth]").await?;
    ensure!(widths[0].as_u64() <= widths[1].as_u64(), "{name} is wider than the view: {widths}");
    Ok(())
}

/// Poison for the third tenant, a broken password for the first, and a pause of the fourth.
pub(crate) async fn trouble(sandbox: &Sandbox, worker: &Worker, browser: &mut Browser) -> Result<()> {
    let tenants = sandbox.tenants();
    let mut redis = sandbox.redis().connect().await?;
    let (schedule, balances) = (tenants[2].keys.schedule(), &tenants[2].balances);
    for (number, balance) in balances[..5].iter().enumerate() {
        let mut balance = balance.clone();
        balance.alias = format!("@broken-{number}");
        let value = if number < 2 {
            "{\"ID\":\"cut o".to_owned()
        } else {
            balance.json(7).replace(&balance.id.to_string(), &uuid::Uuid::new_v4().to_string())
        };
        let member = tenants[2].keys.member(&balance);
        put_raw(&mut redis, &schedule, member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL)).await?;
    }
    eventually(SOON, "entries in quarantine", || async {
        let found: Vec<String> = sandbox.redis().connect().await?.hkeys(quarantine_key(&tenants[2])).await?;
        ensure!(found.len() == 5, "{found:?}");
        anyhow::Ok(())
    })
    .await?;
    // Of the ledger's own queues: a record with a time, and one that isn't what the ledger writes.
    let backup = format!("{}backup_queue:{{transactions}}", tenants[3].keys.prefix());
    let _: () = redis.hset(&backup, "t1", r#"{"ttl":"2026-01-02T03:04:05Z"}"#).await?;
    let _: () = redis.hset(&backup, "<b>t2</b>", "<b>no JSON</b>").await?;
    break_password(sandbox, &tenants[0], "another-one").await?;
    browser.open(&worker.url(&format!("/tenants/{}", tenants[3].id))).await?;
    browser.press(".actions", "Pause").await?;
    browser.fill("dialog #note", "moving to another server").await?;
    browser.press("dialog", "Pause").await?;
    browser.shows(".toasts", "done by").await
}

#[tokio::test]
async fn the_overview_lists_the_tenants_that_the_terminal_finds_fault_with() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 3).await?;
    let worker = worker(&sandbox, "first").set("queues.interval", "200ms").start().await?;
    let tenant = sandbox.tenants().remove(0);
    browser.open(&worker.url("/")).await?;
    browser.shows("main", "Nothing needs attention").await?;
    // All its balances are on time, and the ledger does not work off a queue of it.
    let mut redis = sandbox.redis().connect().await?;
    let backup = format!("{}backup_queue:{{transactions}}", tenant.keys.prefix());
    let _: () = redis.hset(&backup, "t1", r#"{"ttl":"2026-01-02T03:04:05Z"}"#).await?;
    let table = "table[aria-label^='Tenants that need']";
    browser.shows(table, &tenant.id).await?;
    browser.shows(table, "queues is stuck").await?;
    browser
        .until(
            "one row",
            "document.querySelectorAll(\"table[aria-label^='Tenants that need'] tbody tr\").length === 1",
        )
        .await?;
    let (_, row) = worker.get(&format!("/api/v1/tenants/{}", tenant.id)).await?;
    let row: serde_json::Value = serde_json::from_str(&row)?;
    ensure!(row["verdict"] == "attention" && row["state"] == "idle", "{row}");
    let _: () = redis.del(&backup).await?;
    browser.shows("main", "Nothing needs attention").await
}

#[tokio::test]
async fn every_page_shows_the_fleet_on_a_desk_and_on_a_phone() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(12, 200).await?;
    let first = worker(&sandbox, "ledger-sync-1").start().await?;
    let _second = worker(&sandbox, "ledger-sync-2").start().await?;
    let mut producer = sandbox.producer();
    let (cancel, progress) = (CancellationToken::new(), Progress::new(12));
    let load = LoadOptions { rate: 400.0, ..LoadOptions::default() };
    let look = async {
        let looked = look(&sandbox, &first, &mut browser).await;
        cancel.cancel();
        looked
    };
    let (report, looked) = tokio::join!(producer.run(&load, &progress, &cancel), look);
    looked?;
    report?;
    browser.finish().await
}

async fn look(sandbox: &Sandbox, worker: &Worker, browser: &mut Browser) -> Result<()> {
    let tenants = sandbox.tenants();
    browser.open(&worker.url("/")).await?;
    browser.shows("#verdict", "All tenants are on time").await?;
    browser.shows(".verdict-foot", "12 tenants on 2 live workers").await?;
    // Numbers move by themselves, and charts have lines.
    let rate = "document.querySelector('.tile .tile-value').innerText";
    browser.until("rows are written", &format!("Number.parseFloat({rate}.replace(',', '')) > 50")).await?;
    let before = browser.eval(rate).await?;
    browser.until("the number moves", &format!("{rate} !== {before}")).await?;
    browser
        .until(
            "lines in the charts",
            "[...document.querySelectorAll('.charts .chart-line[data-series=\"0\"]')].every((line) => (line.getAttribute('d') ?? '').includes('L'))",
        )
        .await?;
    browser
        .until(
            "a chart says itself",
            "document.querySelector('.charts svg').getAttribute('aria-label').includes('highest')",
        )
        .await?;

    trouble(sandbox, worker, browser).await?;
    browser.screen(1280, 860, "light").await?;
    browser.press(".tabs", "Overview").await?;
    browser.shows("#verdict", "can't be written").await?;
    browser.shows(".reasons", &tenants[0].id).await?;
    browser.until("the degraded one first", &format!("document.querySelector('table[aria-label^=\"Tenants that need\"] tbody .id').innerText === '{}'", tenants[0].id)).await?;
    browser.until("toasts are gone", "document.querySelector('.toast') === null").await?;
    picture(browser, "overview").await?;
    browser.screen(1280, 860, "dark").await?;
    let background = browser.eval("getComputedStyle(document.documentElement).backgroundColor").await?;
    picture(browser, "overview-dark").await?;
    // The reader's choice is above the system's, and is remembered.
    browser.press(".top-end", "Theme: as the system").await?;
    browser.press(".top-end", "Theme: dark").await?;
    browser
        .until(
            "light",
            &format!("getComputedStyle(document.documentElement).backgroundColor !== {background}"),
        )
        .await?;
    browser.open(&worker.url("/tenants")).await?;
    browser.until("still light", "document.documentElement.dataset.theme === 'light'").await?;
    browser.press(".top-end", "Theme: light").await?;
    browser.screen(1280, 800, "light").await?;

    browser.until("twelve rows", "document.querySelector('.page-head').innerText.includes('12')").await?;
    browser
        .until(
            "the worst on top",
            &format!(
                "document.querySelector('.grid-row[aria-rowindex=\"2\"] .id').innerText === '{}'",
                tenants[0].id
            ),
        )
        .await?;
    picture(browser, "tenants").await?;
    browser.press(".chips", "paused").await?;
    browser.until("one row", "document.querySelector('.page-head').innerText.includes('1 of 12')").await?;
    browser.press(".grid", &tenants[3].id).await?;
    browser.shows(".tenant-state", "moving to another server").await?;
    browser.shows("table[aria-label=\"The ledger's own queues\"]", "1 unreadable").await?;
    browser.shows("table[aria-label=\"The ledger's own queues\"]", "scanned").await?;
    ensure!(!browser.text("main").await?.contains("no JSON"), "records are never shown");

    browser.open(&worker.url(&format!("/tenants/{}", tenants[0].id))).await?;
    browser.shows("table[aria-label='Last errors']", "postgres credentials").await?;
    // How full the machine is decides which of the two it was.
    browser
        .until(
            "why batches were written",
            "/\\b(calm|timeout)\\b/.test(document.querySelector(\"table[aria-label='Last flushes']\")?.innerText)",
        )
        .await?;
    let page = browser.text("main").await?;
    for text in ["Settings in force", "127.0.0.1", &tenants[0].database, &tenants[0].role, "batch size"] {
        ensure!(page.contains(text), "{text:?} is missing in {page}");
    }
    ensure!(!page.contains("another-one"), "{page}");
    picture(browser, "tenant").await?;
    browser.press(".tabs", "Quarantine").await?;
    browser.shows("table[aria-label=Entries]", "@broken-0").await?;
    picture(browser, "quarantine").await?;
    let member = tenants[0].keys.member(&tenants[0].balances[0]);
    let member: String = url::form_urlencoded::byte_serialize(member.as_bytes()).collect();
    browser.open(&worker.url(&format!("/why?member={member}"))).await?;
    browser.until("an answer", "document.querySelector('.why .compare') !== null").await?;
    picture(browser, "why").await?;
    browser.press(".tabs", "Actions").await?;
    browser.shows("main", "moving to another server").await?;
    picture(browser, "actions").await?;

    for scheme in ["dark", "light"] {
        browser.screen(PHONE.0, PHONE.1, scheme).await?;
        for (name, path, there) in [
            ("overview", "/".to_owned(), ".verdict"),
            ("tenants", "/tenants".to_owned(), ".grid-row .id"),
            ("tenant", format!("/tenants/{}", tenants[0].id), ".figures"),
            ("quarantine", "/quarantine".to_owned(), "table[aria-label=Entries] tbody tr"),
            ("why", format!("/why?member={member}"), ".why"),
            ("actions", "/actions".to_owned(), "main table"),
        ] {
            browser.open(&worker.url(&path)).await?;
            browser
                .until(name, &format!("document.querySelector('{there}')?.checkVisibility() === true"))
                .await?;
            fits(browser, name).await?;
            if scheme == "dark" && (name == "overview" || name == "tenants") {
                picture(browser, &format!("phone-{name}")).await?;
            }
        }
    }
    Ok(())
}
