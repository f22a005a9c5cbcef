//! Two thousand tenants in the table: it stays fluid, and finds the few that matter.

use anyhow::Result;
use balance_sync_sandbox::TenantRecord;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, TenantKeys, put_raw};

use crate::{browser, worker};

/// Tenants.
const MANY: usize = 2_000;

#[tokio::test]
async fn two_thousand_tenants_stay_fluid() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let model = sandbox.tenants().remove(0);
    let record = sandbox.service().tenant(&model.id).unwrap_or_else(|| unreachable!("the sandbox made it"));
    // They share one database: those with nothing to write never connect to it.
    for number in 0..MANY - 1 {
        let id = format!("many-{number:04}");
        sandbox.service().set_tenant(TenantRecord {
            id: id.clone(),
            name: id.clone(),
            slug: id,
            ..record.clone()
        });
    }
    let worker = worker(&sandbox, "first").start().await?;
    browser.open(&worker.url("/tenants")).await?;
    browser.until("all of them", "document.querySelector('.page-head').innerText.includes('2,000')").await?;
    let rows = "document.querySelectorAll('.grid-body .grid-row').length";
    let count = browser.eval(rows).await?.as_u64().unwrap_or_default();
    assert!((10..80).contains(&count), "{count} rows in the document");

    // Down to the end; each step shows rows where the view is, and no others are ever drawn: that keeps it fluid.
    let scroll = "(async () => {
        const grid = document.querySelector('.grid');
        for (let step = 1; step <= 40; step += 1) {
          grid.scrollTop = (grid.scrollHeight / 40) * step;
          await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          const box = grid.getBoundingClientRect();
          const there = document.elementFromPoint(box.left + 60, box.top + box.height / 2);
          if (!there?.closest('.grid-row')) return { hole: step };
        }
        return { last: grid.querySelector('.grid-row[aria-rowindex=\"2001\"]')?.checkVisibility() };
      })()";
    let scrolled = browser.settle(scroll).await?;
    assert!(scrolled.get("hole").is_none(), "a hole: {scrolled}");
    assert_eq!(scrolled["last"], true, "{scrolled}");
    assert_eq!(browser.eval(rows).await?.as_u64(), Some(count));

    // One of them is filtered, by text and by state, with what it waits for.
    browser.fill("#tenant-search", "many-1234").await?;
    browser.until("one row", "document.querySelector('.page-head').innerText.includes('1 of 2,000')").await?;
    let mut redis = sandbox.redis().connect().await?;
    let keys = TenantKeys::tenant("many-1234");
    let member = keys.member(&model.balances[0]);
    put_raw(&mut redis, &keys.schedule(), member.as_bytes(), b"poison", Some(DEFAULT_TTL)).await?;
    browser.shows(".grid-body .grid-row [data-column=quarantined]", "1").await?;
    browser.fill("#tenant-search", "no such tenant").await?;
    browser.shows("main", "No tenant matches").await?;
    browser.press("main", "Clear the filter").await?;
    browser
        .until("all of them again", "document.querySelector('.page-head').innerText.includes('2,000')")
        .await?;

    // The worst are on top when asked for.
    browser.press(".grid-head", "Quarant.").await?;
    browser.until("sorted", "document.querySelector('.grid-head [data-column=quarantined]').getAttribute('aria-sort') === 'descending'").await?;
    browser.until("the one on top", "document.querySelector('.grid-body .grid-row[aria-rowindex=\"2\"] .id').innerText === 'many-1234'").await?;
    browser.until("the address keeps it", "location.search === '?sort=quarantined&order=desc'").await?;
    browser.press(".grid-head", "Tenant").await?;
    browser.until("the names", "document.querySelector('.grid-body .grid-row[aria-rowindex=\"2\"] .id').innerText === 'many-0000'").await?;

    // Each has its cell in the strip of the overview, and the legend counts all of them.
    browser.press(".tabs", "Overview").await?;
    browser
        .until("the strip", "document.querySelector('.heat')?.getAttribute('aria-label')?.startsWith('Lag of 2,000 tenants') === true")
        .await?;
    let painted = browser
        .eval("(() => { const heat = document.querySelector('.heat'); const { data } = heat.getContext('2d').getImageData(0, 0, heat.width, heat.height);
                 return data.filter((value, at) => at % 4 === 3 && value > 0).length / (heat.width * heat.height); })()")
        .await?;
    assert!(painted.as_f64() > Some(0.5), "{painted} of it is painted");
    let counted = "[...document.querySelector('.heat').closest('section').querySelectorAll('.heat-legend .num')].reduce((sum, node) => sum + Number(node.innerText.replaceAll(',', '')), 0)";
    assert_eq!(browser.eval(counted).await?, 2_000);
    browser
        .eval(
            "(() => { const heat = document.querySelector('.heat'); const { left, top } = heat.getBoundingClientRect();
                 return heat.dispatchEvent(new MouseEvent('click', { bubbles: true, clientX: left + 2, clientY: top + 2 })); })()",
        )
        .await?;
    browser.until("a tenant's page", "location.pathname.startsWith('/tenants/')").await?;
    browser.finish().await
}
