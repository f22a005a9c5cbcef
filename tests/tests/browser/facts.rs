//! What the fleet is made of on the dashboard, and since when.

use anyhow::{Context, Result};
use balance_sync_sandbox::free_port;

use crate::{browser, worker};

/// What is shown of all facts, with the moments since when: `name: value since moment`.
const FACTS: &str = "[...document.querySelectorAll('.facts-list > div')].map((item) => \
                     `${item.querySelector('dt').innerText}: ${item.querySelector('strong').innerText} since \
                     ${item.querySelector('time').getAttribute('datetime')}`)";

#[tokio::test]
async fn the_facts_of_the_fleet_keep_their_times_when_the_worker_is_replaced() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let listen = format!("127.0.0.1:{}", free_port()?);
    let start = || worker(&sandbox, "first").set("admin.listen", &listen).start();
    let mut first = start().await?;
    browser.open(&first.url("/")).await?;
    let recorded = format!("{FACTS}.length === 9 && {FACTS}.every((fact) => / since 20/.test(fact))");
    browser.until("all facts with their moments", &recorded).await?;
    let clock = format!("{FACTS}.some((fact) => /^clock offset: first [+-]0.0\\d s since 20/i.test(fact))");
    browser.until("the clock of the worker", &clock).await?;
    browser.shows("table[aria-label='Workers']", " · clock ").await?;
    let times = async |browser: &balance_sync_tests::Browser| -> Result<Vec<String>> {
        let facts = browser.eval(FACTS).await?;
        let facts = facts.as_array().context("no facts")?.iter();
        // The values of measurements change, and a worker that leaves is a change of its own.
        Ok(facts
            .filter_map(|fact| fact.as_str()?.split_once(':'))
            .filter(|(name, _)| !name.eq_ignore_ascii_case("live workers"))
            .map(|(name, text)| format!("{name} {}", text.rsplit(' ').next().unwrap_or_default()))
            .collect())
    };
    let before = times(&browser).await?;

    assert_eq!(first.stop().await?.code, Some(0));
    let first = start().await?;
    browser.open(&first.url("/")).await?;
    browser.until("all facts again", &recorded).await?;
    assert_eq!(times(&browser).await?, before);
    browser.expect_error("ERR_CONNECTION");
    browser.expect_error("ERR_INCOMPLETE_CHUNKED_ENCODING");
    browser.expect_error("ERR_EMPTY_RESPONSE");
    browser.finish().await
}
