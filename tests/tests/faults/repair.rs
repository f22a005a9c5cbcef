//! `verify --repair`: what is behind and no worker would write is scheduled again, and only that.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::eventually;
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_tests::ledger::{all_settled, comes_in_step, rows, scores};
use balance_sync_tests::{Finished, SOON, run};
use redis::AsyncCommands;
use serde_json::Value;

use crate::{brisk, report};

#[tokio::test]
async fn what_no_worker_would_write_is_scheduled_again_by_repair_alone() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 30).await?;
    let tenants = sandbox.tenants();
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let verify = async |args: &[&str]| -> Result<(Finished, Value)> {
        let all = [&["verify", "--config", &config, "--json"], args].concat();
        let done = run(&all, &[]).await?;
        let value = serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))?;
        Ok((done, value))
    };
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    let mut redis = sandbox.redis().connect().await?;
    // Twelve leave the schedules unwritten: what no code of ours does.
    for (tenant, count) in [(0, 7), (2, 5)] {
        for balance in &tenants[tenant].balances[..count] {
            let member = tenants[tenant].keys.member(balance);
            redis.zrem::<_, _, ()>(tenants[tenant].keys.schedule(), member).await?;
        }
    }
    let schedules = async || {
        let mut all = Vec::new();
        for tenant in &tenants {
            all.push(scores(&sandbox, &tenant.keys.schedule()).await?);
        }
        anyhow::Ok(all)
    };
    let before = schedules().await?;
    let unscheduled = |result: &Value| {
        let rows = result["tenants"].as_array().cloned().unwrap_or_default();
        rows.iter().filter_map(|row| row["unscheduled"].as_u64()).sum::<u64>()
    };
    for dry in [&[][..], &["--repair"]] {
        let (done, result) = verify(dry).await?;
        assert_eq!((done.code, unscheduled(&result), &result["repaired"]), (Some(1), 12, &0.into()));
        assert_eq!(schedules().await?, before, "a dry run changes nothing");
    }
    let (done, result) = verify(&["--repair", "--apply"]).await?;
    assert_eq!((done.code, &result["repaired"]), (Some(1), &12.into()), "{result}");
    let after = schedules().await?;
    assert_eq!(after.iter().map(|schedule| schedule.len()).sum::<usize>(), 90);
    for (before, after) in before.iter().zip(&after) {
        assert!(
            before.iter().all(|(member, score)| after[member] == *score),
            "what was scheduled stays as it was"
        );
    }
    // Postgres was not touched; the workers do that.
    for tenant in &tenants {
        assert!(rows(&sandbox, tenant).await?.values().all(|row| row.version == 1));
    }
    let mut worker = brisk(&sandbox, "w").start().await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    eventually(SOON, "verify without a difference", || async {
        let (done, _) = verify(&[]).await?;
        ensure!(done.code == Some(0), "{}", done.stdout);
        Ok(())
    })
    .await?;
    report(
        "12 of 90 balances taken out of the schedule by hand",
        "dry run: 12 named, nothing changed; --apply: 12 scheduled again, then written",
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
