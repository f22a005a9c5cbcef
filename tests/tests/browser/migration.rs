//! What helps on the way from the ledger's own worker to this fleet: the panel of the rollout, and what a shadow sees of a tenant.

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Format};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions};
use balance_sync_tests::{LedgerWorker, options, run};

use crate::{browser, worker};

#[tokio::test]
async fn the_panel_of_the_rollout_shows_its_sentence_and_who_set_it_and_why() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(4, 5).await?;
    let mut first = worker(&sandbox, "first")
        .set("tenants.poll_interval", "1s")
        .set("worker.lease", "2s")
        .start()
        .await?;
    browser.open(&first.url("/")).await?;
    browser.shows(".connection", "Live").await?;
    browser
        .until(
            "no panel where all are served as configured",
            "!document.querySelector('.rollout-sentence')?.checkVisibility()",
        )
        .await?;
    let config = sandbox.config_path().display().to_string();
    let chosen = &sandbox.tenants()[0].id;
    for words in
        [vec!["set", "0%", "--note", "begin with none"], vec!["add", chosen, "--note", "the first one"]]
    {
        let all: Vec<&str> =
            ["rollout"].into_iter().chain(words).chain(["--wait", "60", "--config", &config]).collect();
        let done = run(&all, &[]).await?;
        ensure!(done.code == Some(0), "{done:?}");
    }
    let panel = "section:has(.rollout-sentence)";
    browser.shows(panel, "1 of 4 tenants").await?;
    browser.shows(panel, &format!("included: {chosen}")).await?;
    browser.shows(panel, "Set by ").await?;
    browser.shows(panel, "(the first one)").await?;
    browser.shows(".rollout-sentence", "Wait: ").await?;
    // Both stages, the last first.
    let stages = "table[aria-label='Stages of the rollout']";
    browser.shows(stages, "the first one").await?;
    browser.shows(stages, "begin with none").await?;
    browser.finish().await?;
    assert_eq!(first.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn the_page_of_a_tenant_shows_what_a_shadow_sees_of_it() -> Result<()> {
    let mut browser = browser!();
    let sandbox = Sandbox::start(SandboxOptions { isolation: Isolation::Database, ..options(2, 10) }).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut ledger = LedgerWorker::new(&tenant, sandbox.redis().connect().await?, sandbox.pool(&tenant));
    // A release up to 4.0 next to writers of 4.1: it drops what it can't read.
    ledger.reads_dual = false;
    let mut onlooker = worker(&sandbox, "onlooker")
        .set("worker.mode", "shadow")
        .set("shadow.compare_interval", "1s")
        .set("supervisor.sample_interval", "200ms")
        .start()
        .await?;
    let mut producer = sandbox.producer().in_format(Format::Dual);
    producer.mutate(0, &[5, 6, 7], DEFAULT_TTL).await?;
    ensure!(ledger.round().await?.dropped == 3);
    producer.mutate(0, &[0, 1], DEFAULT_TTL).await?;
    browser.open(&onlooker.url(&format!("/tenants/{}", tenant.id))).await?;
    let part = ".shadow-part";
    for line in ["Looks at it, and changes nothing", "onlooker", "Eviction by Redis", "keys evicted"] {
        browser.shows(part, line).await?;
    }
    let row = |name: &str, text: &str| {
        format!(
            "[...document.querySelectorAll('.shadow-part dl div')].some((row) => \
               row.querySelector('dt').innerText === '{name}' && row.querySelector('dd').innerText === '{text}')"
        )
    };
    browser.until("what would be written", &row("Would be written now", "2")).await?;
    browser.until("what was left behind", &row("Left behind by whoever writes today", "3")).await?;
    browser.shows("table[aria-label='Left behind or lost']", "left behind").await?;
    browser.finish().await?;
    assert_eq!(onlooker.stop().await?.code, Some(0));

    // A tenant that no shadow looks at has no such part.
    let mut browser = browser!();
    let mut first = worker(&sandbox, "first").start().await?;
    browser.open(&first.url(&format!("/tenants/{}", tenant.id))).await?;
    browser.shows("main", "Last errors").await?;
    browser
        .until("no such part", "document.querySelector('.shadow-part')?.checkVisibility() === false")
        .await?;
    browser.finish().await?;
    assert_eq!(first.stop().await?.code, Some(0));
    Ok(())
}
