//! Redis and Postgres with different histories of one balance: listed with both sides, never taken for a late write.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{balance_table, eventually};
use balance_sync_tests::ledger::{comes_in_step, row};
use balance_sync_tests::{SOON, Worker, run};
use serde_json::Value;

#[tokio::test]
async fn a_row_ahead_of_redis_or_with_other_amounts_is_listed_until_it_is_dropped() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 6).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = Worker::of(&sandbox).set("supervisor.sample_interval", "1s").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;

    // What a failover of Redis to a lagging replica leaves behind: rows of versions that Redis doesn't know, or counts anew.
    let (ahead, same) = (0, 1);
    let ids = [ahead, same].map(|balance: usize| tenant.balances[balance].id);
    let pool = sandbox.pool(&tenant);
    let table = balance_table(tenant.schema.as_deref());
    for (id, by) in ids.iter().zip([5, 1]) {
        let change = format!(
            "UPDATE {table} SET version = version + {by}, available = available + 7 WHERE id = '{id}'"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(change)).execute(&pool).await?;
    }
    let before = [row(&sandbox, &tenant, ahead).await?, row(&sandbox, &tenant, same).await?];
    producer.mutate_each(DEFAULT_TTL).await?;

    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let ask = async |args: &[&str]| -> Result<(Option<i32>, Value)> {
        let finished = run(&[args, &["--json", "--config", &config]].concat(), &[]).await?;
        Ok((finished.code, serde_json::from_str(&finished.stdout).unwrap_or_default()))
    };
    eventually(SOON, "both forks in the list, and the fleet degraded", || async {
        let (_, listed) = ask(&["quarantine", "list", "--reason", "forked"]).await?;
        ensure!(listed.as_array().is_some_and(|entries| entries.len() == 2), "{listed}");
        let (code, overview) = ask(&["status"]).await?;
        ensure!((code, &overview["losses"]) == (Some(1), &2.into()), "{overview}");
        ensure!(
            overview["reasons"][0].as_str().is_some_and(|reason| reason.contains("forked")),
            "{overview}"
        );
        anyhow::Ok(())
    })
    .await?;
    let (_, listed) = ask(&["quarantine", "list", "--reason", "forked"]).await?;
    for entry in listed.as_array().into_iter().flatten() {
        let loss = &entry["loss"];
        ensure!(loss["forked"] == true, "{entry}");
        let (redis, stored) = (loss["version"].as_i64(), loss["row_version"].as_i64());
        let of_same =
            entry["member"].as_str().is_some_and(|member| member.contains(&tenant.balances[same].alias));
        ensure!(if of_same { redis == stored } else { redis < stored }, "{entry}");
        ensure!(loss["available"].is_string() && loss["row_available"].is_string(), "{entry}");
        ensure!(loss["available"] != loss["row_available"], "{entry}");
    }
    // The rows are as they were: which side is right is not for the worker to say. The others are written.
    assert_eq!(before, [row(&sandbox, &tenant, ahead).await?, row(&sandbox, &tenant, same).await?]);
    assert!(worker.metric("balance_sync_balances_total", &[("outcome", "forked")]).await? >= 2.0);

    // A later mutation leaves the entry, a drop removes it.
    producer.mutate_each(DEFAULT_TTL).await?;
    let (_, overview) = ask(&["status"]).await?;
    assert_eq!(overview["losses"], 2, "{overview}");
    let mend = format!("UPDATE {table} SET version = 0 WHERE id IN ('{}', '{}')", ids[0], ids[1]);
    sqlx::raw_sql(sqlx::AssertSqlSafe(mend)).execute(&pool).await?;
    pool.close().await;
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let (_, listed) = ask(&["quarantine", "list", "--reason", "forked"]).await?;
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    ask(&["quarantine", "drop", "--all", "--reason", "forked"]).await?;
    eventually(SOON, "a healthy fleet", || async {
        let (code, overview) = ask(&["status"]).await?;
        ensure!(code == Some(0), "{overview}");
        anyhow::Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
