//! The answer about one balance: the sentence first, then the facts of Redis and Postgres side by side.

use anyhow::{Result, ensure};
use balance_sync_sandbox::eventually;
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_tests::SOON;
use balance_sync_tests::ledger::{comes_in_step, row};

use crate::{break_password, browser, worker};

#[tokio::test]
async fn a_balance_says_where_it_is_and_what_happens_next() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(3, 10).await?;
    let worker = worker(&sandbox, "first").start().await?;
    let tenant = sandbox.tenants().remove(0);
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;

    browser.open(&worker.url("/")).await?;
    browser.press(".tabs", "Why").await?;
    browser.press(".why-form", "Ask").await?;
    browser.shows(".why-form", "Give a member, or a tenant and an alias.").await?;
    browser.fill("#why-member", &tenant.keys.member(&tenant.balances[3])).await?;
    browser.press(".why-form", "Ask").await?;
    browser.shows(".why", "In step").await?;
    let stored = row(&sandbox, &tenant, 3).await?;
    let facts = browser.text(".compare").await?;
    assert_eq!(facts.matches(&stored.amounts.available).count(), 2, "{facts}");
    assert!(!facts.contains("differs"), "{facts}");

    // By name; the row can't follow any more.
    break_password(&sandbox, &tenant, "another-one").await?;
    producer.mutate(0, &[3], DEFAULT_TTL).await?;
    browser.fill("#why-member", "").await?;
    browser.fill("#why-tenant", &tenant.id).await?;
    browser.fill("#why-alias", &tenant.balances[3].alias).await?;
    eventually(SOON, "an answer that tells of the outage", || async {
        browser.press(".why-form", "Ask").await?;
        browser.until("an answer", "document.querySelector('.why .pairs') !== null").await?;
        let text = browser.text(".why").await?;
        ensure!(text.contains("postgres credentials"), "{text}");
        anyhow::Ok(())
    })
    .await?;
    browser
        .until(
            "a sentence about what happens next",
            "document.querySelector('.why .next-text').innerText.length > 20",
        )
        .await?;
    browser.until("a link that can be sent", "location.search.includes('alias=')").await?;
    browser.fill("#why-alias", "@nobody-knows-this").await?;
    browser.press(".why-form", "Ask").await?;
    // Its database refuses the worker, so that nobody can say that there is none.
    browser.shows(".why-answer", "Can't tell").await?;
    browser.shows(".why-answer", "the tenant's Postgres can't be asked: credentials").await?;
    browser.expect_error("status of 404");
    browser.finish().await
}
