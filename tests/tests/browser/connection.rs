//! A worker that goes away and comes back, and a Redis that does: what is shown is never taken for what is.

use anyhow::Result;
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{RedisOptions, Sandbox, SandboxOptions, free_port};
use balance_sync_tests::ledger::comes_in_step;

use crate::{browser, worker};

#[tokio::test]
async fn a_lost_worker_is_shown_and_its_return_is_noticed() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(3, 20).await?;
    let listen = format!("127.0.0.1:{}", free_port()?);
    let start = || worker(&sandbox, "first").set("admin.listen", &listen).start();
    let mut first = start().await?;
    browser.open(&first.url("/")).await?;
    browser.shows(".connection", "Live").await?;
    browser.shows("#verdict", "All tenants are on time").await?;

    first.kill().await?;
    browser.shows(".banners", "Connection lost at").await?;
    browser.shows(".banners", "What you see is from").await?;
    browser.shows(".connection", "Not live").await?;
    browser.until("the browser's own tab tells it", "document.title.startsWith('?')").await?;
    // Other pages say so too, and not an empty list.
    browser.press(".tabs", "Tenants").await?;
    browser.shows("main", "gives no answer").await?;
    browser.press(".tabs", "Overview").await?;

    let first = start().await?;
    browser.shows(".connection", "Live").await?;
    browser
        .until(
            "the banner is gone",
            "![...document.querySelectorAll('.banner')].some((banner) => banner.checkVisibility())",
        )
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    browser.press(".tabs", "Tenants").await?;
    browser.shows(".grid", &sandbox.tenants()[0].id).await?;
    assert_eq!(first.get("/livez").await?.0, 200);
    browser.expect_error("ERR_CONNECTION");
    browser.expect_error("ERR_INCOMPLETE_CHUNKED_ENCODING");
    browser.expect_error("ERR_EMPTY_RESPONSE");
    browser.finish().await
}

#[tokio::test]
async fn nine_tabs_share_one_stream() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(4, 10).await?;
    let mut worker = worker(&sandbox, "first").start().await?;
    // Browsers allow six connections to a server.
    let tenants = sandbox.tenants();
    let mut pages: Vec<String> = tenants.iter().map(|tenant| format!("/tenants/{}", tenant.id)).collect();
    pages.extend(["/", "/tenants", "/quarantine", "/actions", "/"].map(str::to_owned));
    browser.open(&worker.url("/")).await?;
    for page in &pages {
        browser.open_tab(&worker.url(page)).await?;
        browser.shows(".connection", "Live").await?;
    }
    // Each of them goes on, also those of tenants, and those behind.
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    for (number, page) in pages.iter().enumerate() {
        browser.tab(number + 1).await?;
        browser.until("it is live", "document.querySelector('.connection').dataset.state === 'open'").await?;
        if page.starts_with("/tenants/") {
            browser.shows("table[aria-label='Last flushes']", "10").await?;
        }
    }
    // They notice together that the worker is gone.
    worker.kill().await?;
    for number in [1, pages.len()] {
        browser.tab(number).await?;
        browser.shows(".banners", "Connection lost at").await?;
    }
    browser.expect_error("ERR_CONNECTION");
    browser.expect_error("ERR_INCOMPLETE_CHUNKED_ENCODING");
    browser.expect_error("ERR_EMPTY_RESPONSE");
    browser.finish().await
}

#[tokio::test]
async fn an_unreachable_redis_is_shown() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    // It comes back empty.
    let worker = worker(&sandbox, "first")
        .expect_error("Redis has lost all")
        .expect_error("redis has lost data")
        .start()
        .await?;
    browser.open(&worker.url("/")).await?;
    browser.shows("#verdict", "All tenants are on time").await?;
    sandbox.redis().kill()?;
    browser.shows(".banners", "Redis can't be reached").await?;
    browser
        .until("not a healthy verdict", "document.querySelector('.verdict').dataset.verdict !== 'healthy'")
        .await?;
    sandbox.redis().start_again().await?;
    browser
        .until(
            "the banner is gone",
            "![...document.querySelectorAll('.banner')].some((banner) => banner.checkVisibility())",
        )
        .await?;
    browser.shows("#verdict", "All tenants are on time").await?;
    browser.expect_error("status of 503");
    browser.finish().await
}

#[tokio::test]
async fn a_wrong_clock_is_named_and_times_are_shown_in_a_zone_that_can_be_chosen() -> Result<()> {
    let mut browser = browser!();
    let wanted = balance_sync_tests::options(2, 5);
    let redis = RedisOptions { settable_clock: true, ..wanted.redis.clone() };
    let sandbox = Sandbox::start(SandboxOptions { redis, ..wanted }).await?;
    let mut worker = worker(&sandbox, "first").start().await?;
    browser.open(&worker.url("/")).await?;
    browser.shows("#verdict", "All tenants are on time").await?;
    sandbox.redis().shift_clock(30_000)?;
    browser.shows(".banners", "The clock of the worker that serves this page is 30 s behind Redis's").await?;
    browser.shows(".verdict", "Clocks differ from Redis's: that of worker first is 30.0 s behind").await?;

    browser.press(".top-end", "Times are in ").await?;
    browser.shows(".zone", "UTC").await?;
    browser.until("it is remembered", "localStorage.getItem('zone') === 'utc'").await?;
    browser.press(".top-end", "Times are in UTC").await?;
    browser.until("the browser's own", "localStorage.getItem('zone') === 'local'").await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    browser.expect_error("ERR_");
    browser.finish().await
}

#[tokio::test]
async fn a_tab_that_the_browser_stops_says_that_it_is_asleep_and_is_up_to_date_when_it_is_seen() -> Result<()>
{
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 3).await?;
    let first = worker(&sandbox, "first").start().await?;
    browser.open(&first.url("/")).await?;
    browser.shows("#verdict", "All tenants are on time").await?;
    let hide = |hidden: bool, event: &str| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ configurable: true, get: () => {hidden} }}), \
             document.dispatchEvent(new Event('{event}'))"
        )
    };
    // Stopped, it can't take back what its title said.
    browser.eval(&hide(true, "freeze")).await?;
    browser.until("the title says so", "document.title.startsWith('asleep')").await?;
    browser.eval(&hide(true, "visibilitychange")).await?;
    browser.until("it still does", "document.title.startsWith('asleep')").await?;
    browser.eval(&hide(false, "visibilitychange")).await?;
    browser.until("the title is the page's again", "document.title.startsWith('Overview')").await?;
    Ok(())
}
