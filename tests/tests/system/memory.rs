//! The memory of commands that look at every balance doesn't grow with the number of balances, nor with what is wrong with them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{SEED_VERSION, write_operations};
use balance_sync_tests::run_measured;
use serde_json::Value;

/// Longest time of one command.
const WITHIN: Duration = Duration::from_secs(300);
const FEW: usize = 3_000;
const MANY: usize = 30_000;
/// Kept in full, a finding takes more than a kilobyte, and a key some 150 bytes: 27,000 of them would show.
const MAY_GROW: u64 = 12 << 20;

/// Peak memory in bytes of each command, for a tenant of which every balance is lost, or not scheduled.
async fn peaks(balances: usize) -> Result<Vec<(&'static str, u64)>> {
    let sandbox = balance_sync_tests::sandbox(1, balances).await?;
    let tenant = sandbox.tenants().remove(0);
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let pool = sandbox.pool(&tenant);
    for page in tenant.balances.chunks(10_000) {
        let operations: Vec<_> = page.iter().map(|balance| (balance, SEED_VERSION + 2)).collect();
        write_operations(&pool, tenant.schema.as_deref(), &operations).await?;
    }
    pool.close().await;
    let mut peaks = Vec::new();
    for command in ["recover", "audit"] {
        let args = [command, "--config", &config, "--json", "--postgres-rate", "1000000"];
        let (done, peak) = run_measured(WITHIN, &args).await?;
        let lost = done.stdout.lines().filter(|line| line.contains("lost_from_redis")).count();
        ensure!(done.code == Some(1) && lost >= balances, "{command}: {lost}, {}", done.stderr);
        peaks.push((command, peak));
    }
    let mut redis = sandbox.redis().connect().await?;
    for page in tenant.balances.chunks(1_000) {
        let newer: Vec<_> = page.iter().map(|b| (tenant.keys.member(b), b.json(SEED_VERSION + 2))).collect();
        redis::cmd("MSET").arg(&newer).query_async::<()>(&mut redis).await?;
    }
    let (done, peak) = run_measured(WITHIN, &["verify", "--config", &config, "--json", "--repair"]).await?;
    let result: Value = serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))?;
    let row = &result["tenants"][0];
    ensure!((&row["behind"], &row["unscheduled"]) == (&balances.into(), &balances.into()), "{row}");
    ensure!(result["differences"].as_array().is_some_and(|shown| shown.len() == 10), "{}", done.stdout);
    peaks.push(("verify", peak));
    Ok(peaks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_audit_recover_and_verify_is_flat() -> Result<()> {
    let (few, many) = (peaks(FEW).await?, peaks(MANY).await?);
    for ((command, few), (_, many)) in few.into_iter().zip(many) {
        assert!(
            few > 0 && many < few + MAY_GROW,
            "{command}: {few} bytes for {FEW} balances, {many} for {MANY}"
        );
    }
    Ok(())
}
