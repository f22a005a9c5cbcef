//! Quarantine: by reason, with its value, retried and dropped one by one and in bulk; and texts that want to be markup.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_sandbox::{Sandbox, SandboxTenant, eventually};
use balance_sync_tests::SOON;
use balance_sync_tests::ledger::quarantine_key;
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::{browser, version, worker};

/// Members in a tenant's quarantine.
async fn entries(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<Vec<String>> {
    Ok(sandbox.redis().connect().await?.hkeys(quarantine_key(tenant)).await?)
}

async fn reaches(sandbox: &Sandbox, tenant: &SandboxTenant, count: usize) -> Result<()> {
    eventually(SOON, "entries in quarantine", || async {
        let found = entries(sandbox, tenant).await?;
        ensure!(found.len() == count, "{found:?}");
        anyhow::Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_set_aside_is_seen_retried_and_dropped() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(3, 20).await?;
    let worker = worker(&sandbox, "first").start().await?;
    let tenant = sandbox.tenants().remove(0);
    // Four rows are not where they should be; three values are no values.
    let gone: Vec<String> = tenant.balances[..4].iter().map(|balance| format!("'{}'", balance.id)).collect();
    let gone = gone.join(",");
    sandbox
        .postgres()
        .execute(
            &tenant.database,
            &format!("UPDATE balance SET ledger_id = organization_id WHERE id IN ({gone})"),
        )
        .await?;
    let mut redis = sandbox.redis().connect().await?;
    for balance in &tenant.balances[4..7] {
        let member = tenant.keys.member(balance);
        put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), b"no json", Some(DEFAULT_TTL))
            .await?;
    }
    let mut producer = sandbox.producer();
    producer.mutate(0, &[0, 1, 2, 3], DEFAULT_TTL).await?;
    reaches(&sandbox, &tenant, 7).await?;

    browser.open(&worker.url("/")).await?;
    browser.shows("table[aria-label^='Tenants that need']", "7 in quarantine").await?;
    browser.press(".tabs", "Quarantine").await?;
    browser.shows(".reason-list", "missing row").await?;
    browser
        .until("all entries", "document.querySelectorAll('table[aria-label=Entries] tbody tr').length === 7")
        .await?;
    browser.press(".reason-list", "missing row").await?;
    browser
        .until(
            "those of the reason",
            "document.querySelectorAll('table[aria-label=Entries] tbody tr').length === 4",
        )
        .await?;
    browser.until("the address keeps it", "location.search === '?reason=missing_row'").await?;
    browser.shows(".meaning", "No row with that id").await?;

    // One entry, with its value.
    browser.press("table[aria-label=Entries]", &tenant.balances[0].alias).await?;
    browser.shows("dialog .value", "Available").await?;
    browser.shows("dialog", &tenant.keys.member(&tenant.balances[0])).await?;
    // The row is back; the entry is tried again.
    let ledger = tenant.balances[0].ledger;
    let back = format!("UPDATE balance SET ledger_id = '{ledger}' WHERE id = '{}'", tenant.balances[0].id);
    sandbox.postgres().execute(&tenant.database, &back).await?;
    browser.press("dialog", "Retry").await?;
    browser.press("dialog:last-of-type", "Retry").await?;
    browser.shows(".toasts", "Scheduled again: 1 entry").await?;
    eventually(SOON, "the row is written", || async {
        ensure!(version(&sandbox, &tenant, 0).await? == 2);
        anyhow::Ok(())
    })
    .await?;
    reaches(&sandbox, &tenant, 6).await?;
    browser
        .until(
            "it is gone here too",
            "document.querySelectorAll('table[aria-label=Entries] tbody tr').length === 3",
        )
        .await?;

    // The rest of the reason in bulk.
    let back = format!("UPDATE balance SET ledger_id = '{ledger}' WHERE id IN ({gone})");
    sandbox.postgres().execute(&tenant.database, &back).await?;
    browser.press(".bulk", "Retry all").await?;
    browser.shows("dialog", "Retry 3 entries?").await?;
    browser.shows("dialog", "reason missing row").await?;
    browser.press("dialog", "Retry").await?;
    browser.shows(".toasts", "Scheduled again: 3 entries").await?;
    reaches(&sandbox, &tenant, 3).await?;
    for balance in 0..4 {
        eventually(SOON, "the row is written", || async {
            ensure!(version(&sandbox, &tenant, balance).await? == 2);
            anyhow::Ok(())
        })
        .await?;
    }

    // One dropped, the others in bulk, for which their number has to be typed.
    browser.press(".reason-list", "All").await?;
    browser
        .until("the rest", "document.querySelectorAll('table[aria-label=Entries] tbody tr').length === 3")
        .await?;
    browser.press("table[aria-label=Entries]", "Drop").await?;
    browser.press("dialog", "Drop").await?;
    browser.shows(".toasts", "Dropped: 1 entry").await?;
    reaches(&sandbox, &tenant, 2).await?;
    browser.press(".bulk", "Drop all").await?;
    browser.shows("dialog", "Everything in quarantine, of all tenants").await?;
    browser
        .until("nothing by accident", "document.querySelector('dialog button[type=submit]').disabled")
        .await?;
    browser.fill("dialog #typed", "2").await?;
    browser.press("dialog", "Drop").await?;
    reaches(&sandbox, &tenant, 0).await?;
    browser.shows("main", "Nothing is in quarantine").await?;
    browser.press(".tabs", "Actions").await?;
    browser.shows("main", "Drop from quarantine").await?;
    browser.shows("main", "Retry from quarantine").await?;
    browser.finish().await
}

#[tokio::test]
async fn hostile_texts_stay_texts() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let worker = worker(&sandbox, "first").start().await?;
    let tenant = sandbox.tenants().remove(0);
    let mut redis = sandbox.redis().connect().await?;
    let hostile = "@<img src=x onerror=window.hit=1><script>window.hit=1</script>\u{202e}\"'&lt;";
    let balance = tenant.keys.member(&tenant.balances[0]);
    let member = balance.replace(&tenant.balances[0].alias, hostile);
    ensure!(member != balance);
    let value = br#"{"ID":"<svg onload=window.hit=1>","Available":"<b>1</b>"}"#;
    put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), value, Some(DEFAULT_TTL)).await?;
    reaches(&sandbox, &tenant, 1).await?;

    browser.open(&worker.url("/quarantine")).await?;
    let shown = hostile.replace('\u{202e}', "\\u{202e}");
    browser.shows("table[aria-label=Entries]", &shown).await?;
    browser.press("table[aria-label=Entries]", "@<img").await?;
    browser.shows("dialog .value", "<svg onload").await?;
    browser.shows("dialog", &shown).await?;
    browser.press("dialog", "Why?").await?;
    browser.until("the answer", "document.querySelector('.why') !== null").await?;
    browser.shows(".why", "<img src=x").await?;
    browser.press(".tabs", "Overview").await?;
    browser.shows("main", "in quarantine").await?;
    // A path that is no tenant.
    browser.open(&worker.url("/tenants/%3Cimg%20src=x%20onerror=window.hit=1%3E")).await?;
    browser.shows("main", "No such tenant").await?;
    browser.until("nothing ran", "window.hit === undefined").await?;
    browser
        .until("no markup came in", "document.querySelectorAll('main img, main script').length === 0")
        .await?;
    let expected = "status of 404";
    browser.expect_error(expected);
    browser.expect_error("status of 400");
    browser.finish().await
}

#[tokio::test]
async fn entries_are_searched_selected_and_retried_in_portions() -> Result<()> {
    const POISON: usize = 450;
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let worker = worker(&sandbox, "first").start().await?;
    let tenant = sandbox.tenants().remove(0);
    let mut redis = sandbox.redis().connect().await?;
    let model = tenant.keys.member(&tenant.balances[0]);
    for number in 0..POISON {
        let member = model.replace(&tenant.balances[0].alias, &format!("@poison-{number}"));
        put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), b"[]", Some(DEFAULT_TTL)).await?;
    }
    let member = model.replace(&tenant.balances[0].alias, "@lonely");
    put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), b"{}", Some(DEFAULT_TTL)).await?;
    reaches(&sandbox, &tenant, POISON + 1).await?;
    let rows = |count: usize| {
        format!("document.querySelectorAll('table[aria-label=Entries] tbody tr').length === {count}")
    };

    browser.open(&worker.url("/quarantine")).await?;
    browser.until("a page", &rows(50)).await?;
    browser.shows("table[aria-label=Entries] thead", "First seen").await?;
    // By alias, by reason, by the words of the detail.
    let field = "input[aria-label^=Alias]";
    for text in ["@LONELY", "value_field_missing", "field"] {
        browser.fill(field, text).await?;
        browser.keys(thirtyfour::Key::Enter).await?;
        browser.until(&format!("the one with {text}"), &rows(1)).await?;
        browser.shows("table[aria-label=Entries]", "@lonely").await?;
    }
    browser.until("the address keeps it", "location.search === '?text=field'").await?;
    browser.fill(field, "poison-1").await?;
    browser.keys(thirtyfour::Key::Enter).await?;
    browser.shows(".bulk", "111 entries, with").await?;

    // Two of them.
    for row in [1, 2] {
        let pick = format!(
            "document.querySelector('table[aria-label=Entries] tbody tr:nth-child({row}) input').click() ?? true"
        );
        browser.eval(&pick).await?;
    }
    browser.shows(".bulk", "2 entries selected").await?;
    browser.press(".bulk", "Drop selected").await?;
    browser.fill("dialog #typed", "2").await?;
    browser.press("dialog", "Drop").await?;
    browser.shows(".toasts", "Dropped: 2 entries").await?;
    reaches(&sandbox, &tenant, POISON - 1).await?;

    // All of the filter, and then the rest in three portions.
    browser.shows(".bulk", "109 entries").await?;
    browser.press(".bulk", "Drop all").await?;
    browser.fill("dialog #typed", "109").await?;
    browser.press("dialog", "Drop").await?;
    browser.shows(".toasts", "Dropped: 109 entries").await?;
    reaches(&sandbox, &tenant, POISON - 110).await?;
    browser.open(&worker.url("/quarantine")).await?;
    browser.press(".bulk", "Drop all").await?;
    browser.fill("dialog #typed", "340").await?;
    browser.press("dialog", "Drop").await?;
    browser.shows(".toasts", "Dropped: 340 entries").await?;
    reaches(&sandbox, &tenant, 0).await?;
    browser.finish().await
}

/// A file that was saved, as soon as all of it is there.
async fn saved(folder: &Path, name: &str) -> Result<String> {
    let path = folder.join(name);
    eventually(SOON, name, || async {
        // It has another name until it is complete.
        let text = std::fs::read_to_string(&path)?;
        ensure!(!text.is_empty(), "{name} is empty");
        anyhow::Ok(text)
    })
    .await
}

/// The rows of RFC 4180, by the titles in the first line. No line end stands in a cell.
fn rows_of(csv: &str) -> Result<Vec<BTreeMap<String, String>>> {
    let mut lines = csv.strip_suffix("\r\n").context("the last line has no end")?.split("\r\n");
    let titles: Vec<&str> = lines.next().context("no titles")?.split(',').collect();
    let row = |line: &str| {
        let (mut cells, mut is_quoted) = (vec![String::new()], false);
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            let cell = cells.last_mut().context("no cell")?;
            match c {
                '"' if is_quoted && chars.next_if_eq(&'"').is_some() => cell.push('"'),
                '"' => is_quoted = !is_quoted,
                ',' if !is_quoted => cells.push(String::new()),
                c => cell.push(c),
            }
        }
        ensure!(!is_quoted && cells.len() == titles.len(), "{line}");
        Ok(titles.iter().map(|title| (*title).to_owned()).zip(cells).collect())
    };
    lines.map(row).collect()
}

#[tokio::test]
async fn an_export_has_all_entries_and_nothing_in_it_is_a_formula() -> Result<()> {
    /// What spreadsheets run as a formula, and what would end a cell or a line.
    const MEMBERS: [&str; 6] =
        ["=HYPERLINK(\"http://x\")", "+1+1", "-1+1", "@SUM(1)", "\t=1", "a\"b,c\r\n=1+1"];
    const DETAIL: &str = "=cmd|' /C calc'!A0";
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let worker = worker(&sandbox, "first").start().await?;
    let tenant = sandbox.tenants().remove(0);
    let entry = |reason: &str, detail: &str| {
        let at = "2026-01-02T03:04:05Z";
        json!({ "reason": reason, "detail": detail, "value": "{}", "first_at": at, "last_at": at, "count": 3 })
            .to_string()
    };
    let mut redis = sandbox.redis().connect().await?;
    let mut entries: Vec<(String, String)> =
        MEMBERS.iter().map(|member| ((*member).to_owned(), entry("missing_row", DETAIL))).collect();
    // More than a page of the list shows.
    entries.extend((0..60).map(|number| (format!("harmless-{number}"), entry("forked", "plain"))));
    let _: () = redis.hset_multiple(quarantine_key(&tenant), &entries).await?;

    let folder = tempfile::tempdir()?;
    browser.save_downloads(folder.path()).await?;
    browser.open(&worker.url("/quarantine")).await?;
    browser
        .until("a page", "document.querySelectorAll('table[aria-label=Entries] tbody tr').length === 50")
        .await?;
    browser.press(".export", "Save quarantine as CSV").await?;
    let csv = saved(folder.path(), "quarantine.csv").await?;
    browser.press(".export", "Save quarantine as JSON").await?;
    let listed: Vec<Value> = serde_json::from_str(&saved(folder.path(), "quarantine.json").await?)?;

    let rows = rows_of(&csv)?;
    assert_eq!((rows.len(), listed.len()), (entries.len(), entries.len()));
    for member in MEMBERS {
        // As it is for programs, and behind a quote and with its control characters escaped for a spreadsheet.
        let found = listed.iter().find(|entry| entry["member"] == member).context(member)?;
        assert_eq!((&found["detail"], &found["count"]), (&json!(DETAIL), &json!(3)), "{found}");
        let shown = member.replace('\t', "\\u{9}").replace('\r', "\\u{d}").replace('\n', "\\u{a}");
        let shown = if member.starts_with('a') { shown } else { format!("'{shown}") };
        let row =
            rows.iter().find(|row| row["member"] == shown).with_context(|| format!("{shown}: {csv}"))?;
        assert_eq!((row["detail"].as_str(), row["reason"].as_str()), ("'=cmd|' /C calc'!A0", "missing_row"));
        assert_eq!((row["tenant"].as_str(), row["count"].as_str()), (tenant.id.as_str(), "3"));
    }
    for cell in rows.iter().flat_map(BTreeMap::values) {
        ensure!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "a formula: {cell}");
    }

    // What is filtered is exported as it is shown.
    std::fs::remove_file(folder.path().join("quarantine.csv"))?;
    browser.open(&worker.url("/quarantine?reason=missing_row")).await?;
    browser
        .until(
            "those of the reason",
            "document.querySelectorAll('table[aria-label=Entries] tbody tr').length === 6",
        )
        .await?;
    browser.press(".export", "Save quarantine as CSV").await?;
    let filtered = saved(folder.path(), "quarantine.csv").await?;
    assert_eq!(rows_of(&filtered)?.len(), MEMBERS.len(), "{filtered}");
    browser.finish().await
}
