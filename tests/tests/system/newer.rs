//! Beside a worker of a later release: names that it knows and this release doesn't are shown as they are, and nothing of
//! what it reports is dropped.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::eventually;
use balance_sync_schedule::{Link, LinkSettings, Snapshots, snapshots::Publication};
use balance_sync_tests::ledger::quarantine_key;
use balance_sync_tests::{SOON, Worker, run};
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::api::json;

/// Longer than the test.
const LIFE: Duration = Duration::from_secs(600);
/// Prefix of the list of workers that publish.
const INDEX: &str = "{transactions}:balance-sync:worker-1:";

#[tokio::test]
async fn names_of_a_later_release_are_shown_as_they_are() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 1).await?;
    let tenant = sandbox.tenants().remove(0);
    let worker = Worker::of(&sandbox).set("worker.name", "older").start().await?;
    eventually(SOON, "a healthy fleet", || async {
        let overview = json(&worker, "/api/v1/overview").await?;
        ensure!(overview["verdict"] == "healthy", "{overview}");
        Ok(())
    })
    .await?;

    // The records of the worker itself, with names that it doesn't know.
    let mut redis = sandbox.redis().connect().await?;
    let records: String = redis.keys::<_, Vec<String>>(format!("{INDEX}*:older")).await?.remove(0);
    let group =
        records.strip_prefix(INDEX).and_then(|rest| rest.strip_suffix(":older")).context("a group")?;
    let own: String = redis.hget(&records, "worker").await?;
    let mut own: Value = serde_json::from_str(&own)?;
    own["name"] = json!("newer");
    own["by_state"] = json!({ "idle": 1, "hibernating": 1 });
    own["tasks"][0]["state"] = json!("dreaming");
    let record: String = redis.hget(&records, format!("t:{}", tenant.id)).await?;
    let mut record: Value = serde_json::from_str(&record)?;
    record["state"] = json!("hibernating");
    record["reason"] = json!("postgres_on_the_moon");
    record["quarantine_entries"] = json!(1);
    // It may have been published before the worker's first look.
    record["unsampled"] = json!(false);
    record["unwatched"] = json!(false);
    let tenants = [(tenant.id.to_string(), Some(record.to_string()))];
    let detail = json!({
        "flushes": [{
            "at": 1_795_380_490.0, "trigger": "tide", "claimed": 7, "updated": 7, "stale": 0, "deleted": 0,
            "quarantined": 0, "released": 0, "took_ms": 3,
        }],
        "errors": [],
        "history": [],
        "database": {
            "host": "moon.example", "port": 5432, "database": "d", "username": "u", "schema": null,
            "sslmode": "require", "max_connections": 2, "connection": "wormhole",
        },
    });
    let details = [(tenant.id.to_string(), detail.to_string())];
    let snapshots = Snapshots::new(Link::new(&LinkSettings::for_url(&sandbox.redis().url()))?, group);
    let worker_record = own.to_string();
    let publication = Publication {
        incarnation: "later",
        seq: 1,
        visible: true,
        worker: &worker_record,
        tenants: &tenants,
        details: &details,
    };
    snapshots.publish("newer", LIFE, &publication).await?;
    let member = tenant.keys.member(&tenant.balances[0]);
    let entry = json!({
        "reason": "value_in_klingon", "detail": "Qapla'", "value": "{}",
        "first_at": "1", "last_at": "1", "count": 1,
    });
    let () = redis.hset(quarantine_key(&tenant), &member, entry.to_string()).await?;

    eventually(SOON, "the later worker's records", || async {
        let overview = json(&worker, "/api/v1/overview").await?;
        ensure!(overview["workers"]["live"] == 2, "{overview}");
        ensure!(overview["tenants"]["by_state"]["hibernating"] == 1, "{overview}");
        Ok(())
    })
    .await?;
    let overview = json(&worker, "/api/v1/overview").await?;
    assert_eq!(overview["verdict"], "unknown", "{overview}");
    let reasons = overview["reasons"].to_string();
    assert!(reasons.contains("state of another release (hibernating)"), "{reasons}");
    let workers = json(&worker, "/api/v1/workers").await?.to_string();
    assert!(workers.contains("hibernating") && workers.contains("dreaming"), "{workers}");
    let shown = json(&worker, &format!("/api/v1/tenants/{}", tenant.id)).await?;
    assert_eq!(
        (&shown["state"], &shown["reason"]),
        (&json!("hibernating"), &json!("postgres_on_the_moon")),
        "{shown}"
    );
    assert!(shown["next"].as_str().is_some_and(|next| next.contains("hibernating")), "{shown}");
    let flush = shown["flushes"]
        .as_array()
        .and_then(|flushes| flushes.iter().find(|flush| flush["worker"] == "newer"));
    assert!(flush.is_some_and(|flush| flush["trigger"] == "tide" && flush["claimed"] == 7), "{shown}");
    assert_eq!(shown["settings"]["database"]["connection"], "wormhole", "{shown}");
    let listed = json(&worker, "/api/v1/quarantine?reason=value_in_klingon").await?;
    assert_eq!(
        (&listed["total"], &listed["by_reason"]["value_in_klingon"]),
        (&json!(1), &json!(1)),
        "{listed}"
    );

    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    for (args, words) in [
        (&["status"][..], "hibernating"),
        (&["tenants"], "hibernating: postgres_on_the_moon"),
        (&["tenants", "show", tenant.id.as_str()], "tide"),
        (&["tenants", "show", tenant.id.as_str()], "wormhole"),
        (&["workers"], "newer"),
        (&["quarantine", "list"], "value_in_klingon"),
        (&["quarantine", "list", "--reason", "value_in_klingon", "--json"], "value_in_klingon"),
    ] {
        let finished = run(&[args, &["--config", &config]].concat(), &[]).await?;
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(said.contains(words), "{args:?}: {said}");
    }
    let retry = run(
        &["quarantine", "retry", "--all", "--reason", "value_in_klingon", "--config", &config, "--json"],
        &[],
    )
    .await?;
    assert_eq!(retry.code, Some(0), "{retry:?}");
    Ok(())
}

/// What it serves isn't known: it is reported, and nothing that relies on knowing that is done.
#[tokio::test]
async fn a_live_worker_whose_reports_cannot_be_read_is_reported_and_counted_on_for_nothing() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 1).await?;
    let worker = Worker::of(&sandbox).set("worker.name", "older").start().await?;
    let mut redis = sandbox.redis().connect().await?;
    let records: String = eventually(SOON, "its records", || async {
        let mut redis = redis.clone();
        let keys: Vec<String> = redis.keys(format!("{INDEX}*:older")).await?;
        keys.into_iter().next().context("none yet")
    })
    .await?;
    let group =
        records.strip_prefix(INDEX).and_then(|rest| rest.strip_suffix(":older")).context("a group")?;
    let snapshots = Snapshots::new(Link::new(&LinkSettings::for_url(&sandbox.redis().url()))?, group);
    let publication = Publication {
        incarnation: "stranger",
        seq: 1,
        visible: true,
        worker: r#"{"kind":"a record of another shape"}"#,
        tenants: &[],
        details: &[],
    };
    snapshots.publish("stranger", LIFE, &publication).await?;
    eventually(SOON, "it in the verdict", || async {
        let overview = json(&worker, "/api/v1/overview").await?;
        ensure!(overview["verdict"] == "attention", "{overview}");
        ensure!(overview["reasons"].to_string().contains("can't be read: stranger."), "{overview}");
        Ok(())
    })
    .await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    for (words, code, said) in [
        (&["status"][..], 1, "can't be read: stranger."),
        (&["rollout", "none"], 2, "stranger"),
        (&["retire", "--all", "--plan"], 1, "what worker stranger reports can't be read"),
        (
            &["retire", "--all", "--acknowledge", "--note", "n"],
            1,
            "what worker stranger reports can't be read",
        ),
    ] {
        // Until the worker has published what it has read of the schedules, that is unknown.
        eventually(SOON, "the answer of a command", || async {
            let finished = run(&[words, &["--config", &config]].concat(), &[]).await?;
            let text = format!("{} {}", finished.stdout, finished.stderr);
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(finished.code == Some(code) && text.contains(said), "{words:?}: {finished:?}");
            Ok(())
        })
        .await?;
    }
    ensure!(redis.exists::<_, u64>("{transactions}:balance-sync:rollout").await? == 0, "it was stored");
    Ok(())
}
