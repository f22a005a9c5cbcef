//! Tokens: nothing is shown without one, a reader sees without amounts and can't act, an operator does both.

use anyhow::{Result, ensure};
use balance_sync_sandbox::eventually;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_tests::SOON;
use balance_sync_tests::ledger::{comes_in_step, quarantine_key};
use redis::AsyncCommands;

use crate::{browser, paused_tenants, worker};

const READER: &str = "a-token-to-read-with";
const OPERATOR: &str = "a-token-to-act-with";

#[tokio::test]
async fn a_reader_looks_and_an_operator_acts() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let worker = worker(&sandbox, "first")
        .set("admin.read_token", READER)
        .set("admin.operator_token", OPERATOR)
        .secret(READER)
        .secret(OPERATOR)
        .start()
        .await?;
    let tenant = sandbox.tenants().remove(0);
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let mut redis = sandbox.redis().connect().await?;
    let member = tenant.keys.member(&tenant.balances[0]);
    let secret = br#"{"ID":"none","Available":"4711.08"}"#;
    put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), secret, Some(DEFAULT_TTL)).await?;
    eventually(SOON, "an entry in quarantine", || async {
        let entries: Vec<String> = sandbox.redis().connect().await?.hkeys(quarantine_key(&tenant)).await?;
        ensure!(entries.len() == 1);
        anyhow::Ok(())
    })
    .await?;

    // Without a token: whatever the path, nothing but the question for a token.
    let page = format!("/tenants/{}", tenant.id);
    browser.open(&worker.url(&page)).await?;
    browser.shows(".sign-in", "Sign in").await?;
    assert_eq!(browser.count(".tabs").await?, 0);
    browser.until("the field has the focus", "document.activeElement.id === 'token'").await?;
    browser.fill("#token", "a-token-nobody-knows").await?;
    browser.press(".sign-in", "Sign in").await?;
    browser.shows(".sign-in", "not known here").await?;

    // The reader: back where they wanted to go, without buttons and amounts.
    browser.fill("#token", READER).await?;
    browser.press(".sign-in", "Sign in").await?;
    browser.shows("h1", &tenant.id).await?;
    browser.shows(".tenant-head", "signed in to read").await?;
    assert_eq!(browser.count(".actions button").await?, 0);
    browser.shows(".who", "reader").await?;
    browser.press(".tabs", "Quarantine").await?;
    browser.press("table[aria-label=Entries]", &tenant.balances[0].alias).await?;
    browser.shows("dialog", "hidden: amounts need").await?;
    browser.press("dialog", "Close").await?;
    assert_eq!(browser.count("main .row-actions button").await?, 0);
    assert_eq!(browser.count(".bulk button").await?, 0);
    browser
        .open(&worker.url(&format!(
            "/why?member={}",
            url::form_urlencoded::byte_serialize(member.as_bytes()).collect::<String>()
        )))
        .await?;
    browser.until("the answer", "document.querySelector('.why .compare') !== null").await?;
    assert!(!browser.text("main").await?.contains("Available"));
    // Not only the buttons are missing.
    let forced = format!(
        "fetch('/api/v1/tenants/{}/actions', {{ method: 'POST', headers: {{ 'content-type': 'application/json', \
         'x-balance-sync': '1' }}, body: JSON.stringify({{ action: 'pause' }}) }}).then((answer) => answer.status)",
        tenant.id
    );
    assert_eq!(browser.settle(&forced).await?, 403);
    ensure!(paused_tenants(&sandbox).await?.is_empty());
    // No script gets at the token.
    assert_eq!(browser.eval("document.cookie").await?, "");

    // The operator.
    browser.press(".top-end", "Sign out").await?;
    browser.shows(".sign-in", "Sign in").await?;
    browser.fill("#token", OPERATOR).await?;
    browser.press(".sign-in", "Sign in").await?;
    browser.shows(".who", "operator").await?;
    browser
        .until(
            "the amounts",
            "(document.querySelector('.why .compare')?.innerText ?? '').includes('Available')",
        )
        .await?;
    // A foreign page's form can't send the header.
    let foreign = forced.replace("'x-balance-sync': '1'", "");
    assert_eq!(browser.settle(&foreign).await?, 403);
    browser.press(".tabs", "Quarantine").await?;
    browser.press("table[aria-label=Entries]", &tenant.balances[0].alias).await?;
    browser.shows("dialog .value", "4711.08").await?;
    browser.press("dialog", "Close").await?;
    browser.press("table[aria-label=Entries]", &tenant.id).await?;
    browser.press(".actions", "Pause").await?;
    browser.press("dialog", "Pause").await?;
    browser.shows(".toasts", "done by first").await?;
    assert_eq!(paused_tenants(&sandbox).await?.len(), 1);
    browser.expect_error("status of 401");
    browser.expect_error("status of 403");
    browser.finish().await
}
