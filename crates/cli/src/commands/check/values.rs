//! What the keys of Redis tell about the ledgers: which releases write, and whether the ledger's own worker runs.

use std::collections::BTreeMap;

use balance_sync_domain::{BalanceValue, KeySpace, QuarantineReason};
use balance_sync_schedule::{BalanceKeys, ClaimMode, Link, read_values};
use balance_sync_tenants::Tenant;
use redis::Value;

use super::findings::Findings;
use crate::{config::Config, wiring};

const AREA: &str = "values";
/// Pages of keys that are looked at.
const PAGES: usize = 50;
/// Values that are read.
const VALUES: usize = 2000;
/// Claim locks that are read.
const LOCKS: usize = 500;

pub(super) async fn look(link: &Link, config: &Config, tenants: &[Tenant], findings: &mut Findings) {
    if let Err(error) = releases(link, config, tenants, findings).await {
        findings.warn(AREA, error.to_string(), "the right to SCAN and to read balances");
    }
    if let Err(error) = locks(link, config, findings).await {
        findings.warn(AREA, error.to_string(), "the right to SCAN and to read locks");
    }
}

/// The formats of some values.
async fn releases(
    link: &Link,
    config: &Config,
    tenants: &[Tenant],
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let spaces: Vec<KeySpace> =
        tenants.iter().flat_map(|tenant| tenant.key_spaces(config.tenants.key_form)).collect();
    let (mut pages, mut sample) = (0, Vec::new());
    let mut keys = BalanceKeys::new(link.clone(), spaces);
    while let Some(page) = keys.next().await? {
        sample.extend(page.into_iter().map(|(_, key)| key));
        pages += 1;
        if pages == PAGES || sample.len() >= VALUES {
            break;
        }
    }
    sample.truncate(VALUES);
    let (mut formats, mut refused): (BTreeMap<&str, u64>, BTreeMap<QuarantineReason, u64>) =
        Default::default();
    for page in sample.chunks(500) {
        for (key, value) in page.iter().zip(read_values(link, page).await?) {
            let Some(value) = value else { continue };
            match BalanceValue::of_member(key, &value) {
                Ok(_) => *formats.entry(format_of(&value)).or_default() += 1,
                Err(error) => *refused.entry(error.reason()).or_default() += 1,
            }
        }
    }
    let read: u64 = formats.values().sum();
    if read == 0 && refused.is_empty() {
        findings.ok(AREA, "Redis holds no balances of these tenants now");
        return Ok(());
    }
    let said: Vec<String> = formats.iter().map(|(format, n)| format!("{n} of {format}")).collect();
    if !said.is_empty() {
        findings.ok(AREA, format!("{read} read: {}", said.join(", ")));
    }
    let total = read + refused.values().sum::<u64>();
    for (kind, n) in refused {
        let help = match kind {
            QuarantineReason::ValueUnknownFormat => "a newer balance-sync; until then they stay scheduled",
            _ => "its row in docs/operations.md, Quarantine",
        };
        findings.warn(AREA, format!("{n} of {total} can't be read: {kind}"), help);
    }
    Ok(())
}

/// Which releases write a value like this one.
fn format_of(value: &[u8]) -> &'static str {
    let names: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(value).unwrap_or_default();
    match (names.contains_key("ID"), names.contains_key("SchemaVersion")) {
        (true, false) => "ledgers up to 4.0",
        (true, true) => "ledgers from 4.1 on (both spellings)",
        (false, true) => "ledgers that write lowerCamel alone",
        (false, false) => "the oldest ledgers",
    }
}

/// Claim locks of the ledger's own worker, which all hold the same.
async fn locks(link: &Link, config: &Config, findings: &mut Findings) -> anyhow::Result<()> {
    let (mut cursor, mut found) = (b"0".to_vec(), Vec::new());
    for _ in 0..PAGES {
        let mut scan = redis::cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg("*lock:{transactions}:balance-sync:*").arg("COUNT").arg(2000);
        let Value::Array(parts) = link.send("scan locks", &scan).await? else { break };
        let [Value::BulkString(next), Value::Array(keys)] = parts.as_slice() else { break };
        found.extend(keys.iter().filter_map(|key| match key {
            Value::BulkString(key) => Some(key.clone()),
            _ => None,
        }));
        cursor.clone_from(next);
        if cursor == b"0" || found.len() >= LOCKS {
            break;
        }
    }
    found.truncate(LOCKS);
    let held = read_values(link, &found).await?.into_iter().flatten().filter(|value| value == b"1").count();
    if held == 0 {
        findings.ok("ledger", "its own worker holds no claim lock now");
    } else if wiring::schedule_options(config).mode != ClaimMode::Lease {
        findings
            .ok("ledger", format!("its own worker runs: it holds {held} claim locks, which are respected"));
    } else {
        findings.fail(
            "ledger",
            format!("its own worker runs: it holds {held} claim locks, which mode \"lease\" doesn't respect"),
            "claim.mode = \"auto\", or \"lock\" as long as it runs; docs/operations.md, \"The ledger's own worker\", says how it is parked",
        );
    }
    Ok(())
}
