//! Every page can be used without a mouse, without good eyes and with a thumb: axe-core finds no violation of WCAG 2.2 AA at
//! any width, and what is pressed is large enough.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_tests::{Browser, Worker};
use serde_json::Value;

use crate::pages::trouble;
use crate::{browser, worker};

/// Where axe-core is; `make test` puts it there.
const AXE: &str = "../crates/admin/ui-check/node_modules/axe-core/axe.min.js";
/// Says that it can't be had.
const VARIABLE: &str = "BALANCE_SYNC_AXE";
/// A desk in both schemes, a window beside another one, a phone.
const SCREENS: [(u32, u32, &str); 4] =
    [(1280, 800, "light"), (1280, 800, "dark"), (640, 800, "light"), (390, 844, "light")];
const TOKEN: &str = "a-token-to-act-with";

/// The source of axe-core; `None`, said loudly, where it was said that there is none.
fn axe() -> Result<Option<String>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(AXE);
    match std::fs::read_to_string(&path) {
        Ok(source) => Ok(Some(source)),
        Err(_) if std::env::var(VARIABLE).is_ok_and(|value| value == "none") => {
            // Past the capture of a test's output.
            let said = format!("\n*** SKIPPED, NO AXE-CORE HERE ({VARIABLE}=none) ***\n\n");
            std::io::stderr().write_all(said.as_bytes())?;
            Ok(None)
        }
        Err(error) => bail!(
            "{}: {error}: `npm ci` in crates/admin/ui-check installs it, which `make test` does; {VARIABLE}=none skips this test",
            path.display()
        ),
    }
}

/// Violations of what is shown, one line each.
async fn violations(browser: &Browser, axe: &str) -> Result<Vec<String>> {
    if browser.eval("typeof axe").await? == "undefined" {
        browser.eval(&format!("(() => {{ {axe}\n; window.axe = axe; return true; }})()")).await?;
    }
    let found = browser
        .settle(
            "axe.run(document, { resultTypes: ['violations'], rules: { 'target-size': { enabled: true } },
               runOnly: { type: 'tag', values: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'] } })
             .then(({ violations, passes }) => ({ passes: passes.length, found: violations.flatMap(({ id, nodes }) =>
               nodes.map((node) => `${id}: ${node.html.slice(0, 200)}: ${node.failureSummary.replaceAll('\\n', ' ')}`)) }))",
        )
        .await?;
    ensure!(found["passes"].as_u64() > Some(5), "axe looked at nothing: {found}");
    let small = browser
        .eval(
            "[...document.querySelectorAll('button, input, select, summary, a')].filter((node) => {
               const box = (node.closest('label.tick') ?? node).getBoundingClientRect();
               const inText = node.tagName === 'A' && getComputedStyle(node).display === 'inline';
               return node.checkVisibility() && box.width > 1 && !inText && (box.width < 24 || box.height < 24);
             }).map((node) => { const { width, height } = node.getBoundingClientRect();
               return `smaller than 24 px: ${Math.round(width)} x ${Math.round(height)}: ${node.outerHTML.slice(0, 200)}`; })",
        )
        .await?;
    let lines = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|line| line.as_str().map(str::to_owned)).collect()
    };
    Ok([lines(&found["found"]), lines(&small)].concat())
}

/// All pages, and the dialogs on them, with what shows that they are there.
async fn look(
    browser: &mut Browser,
    worker: &Worker,
    tenants: &[String],
    axe: &str,
    name: &str,
) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let pages = [
        ("/", "table[aria-label^='Tenants that need']", "in quarantine"),
        ("/tenants", ".grid", &tenants[0]),
        (&format!("/tenants/{}", tenants[0]), "main", "Last errors"),
        (&format!("/tenants/{}", tenants[1]), ".shadow-part", "onlooker"),
        (&format!("/tenants/{}", tenants[3]), "main", "paused"),
        ("/quarantine", "table[aria-label=Entries]", "@broken-0"),
        (&format!("/why?tenant={}&alias=%40broken-0", tenants[2]), ".why", "In quarantine"),
        ("/why", "main", "Ask about one balance"),
        ("/actions", "main", "Pause"),
        ("/tenants/none", "main", "No such tenant"),
    ];
    for (path, part, text) in pages {
        browser.open(&worker.url(path)).await?;
        browser.shows(part, text).await?;
        browser.shows(".connection", "Live").await?;
        let of = |line: String| format!("{name} {path}: {line}");
        found.extend(violations(browser, axe).await?.into_iter().map(of));
    }
    for (path, part, press, dialog) in [
        ("/quarantine", "table[aria-label=Entries]", "@broken-0", "In quarantine"),
        ("/quarantine", ".bulk", "Drop all", "Drop 5 entries?"),
        (&format!("/tenants/{}", tenants[1]), ".actions", "Pause", "Pause "),
        ("/", ".top-end", "Keys", "Keys"),
    ] {
        browser.open(&worker.url(path)).await?;
        browser.press(part, press).await?;
        browser.shows("dialog", dialog).await?;
        let of = |line: String| format!("{name} {path}, dialog {dialog}: {line}");
        found.extend(violations(browser, axe).await?.into_iter().map(of));
    }
    Ok(found)
}

#[tokio::test]
async fn no_page_violates_wcag_at_any_width() -> Result<()> {
    let mut browser = browser!();
    let Some(axe) = axe()? else { return Ok(()) };
    let sandbox = balance_sync_tests::sandbox(4, 20).await?;
    let open = worker(&sandbox, "first").start().await?;
    let closed = worker(&sandbox, "second").set("admin.operator_token", TOKEN).secret(TOKEN).start().await?;
    let tenants: Vec<String> = sandbox.tenants().iter().map(|tenant| tenant.id.clone()).collect();
    trouble(&sandbox, &open, &mut browser).await?;
    let _shadow = worker(&sandbox, "onlooker").set("worker.mode", "shadow").start().await?;
    let mut found = Vec::new();
    for (width, height, scheme) in SCREENS {
        browser.screen(width, height, scheme).await?;
        let name = format!("{width} px, {scheme}");
        found.extend(look(&mut browser, &open, &tenants, &axe, &name).await.with_context(|| name.clone())?);
        browser.open(&closed.url("/")).await?;
        browser.shows(".sign-in", "Sign in").await?;
        let of = |line: String| format!("{name} sign in: {line}");
        found.extend(violations(&browser, &axe).await?.into_iter().map(of));
    }
    ensure!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
    browser.expect_error("status of 404");
    browser.finish().await
}
