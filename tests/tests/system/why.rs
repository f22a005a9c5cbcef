//! `why`: whatever keeps a balance from Postgres is explained, with what happens next.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, SEED_VERSION, put_raw};
use balance_sync_sandbox::{SandboxTenant, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step, row};
use balance_sync_tests::{SOON, Worker};
use serde_json::{Value, json};

use crate::api::{ask, json, post, sharing};

/// The answer about one balance of a tenant, by its member.
async fn why(worker: &Worker, tenant: &SandboxTenant, balance: usize) -> Result<Value> {
    let member = tenant.keys.member(&tenant.balances[balance]);
    let encoded: String = url::form_urlencoded::byte_serialize(member.as_bytes()).collect();
    let answer = json(worker, &format!("/api/v1/why?member={encoded}")).await?;
    let matches = answer["matches"].as_array().context("no matches")?;
    ensure!(matches.len() == 1 && matches[0]["member"] == member.as_str(), "{answer}");
    Ok(matches[0].clone())
}

/// Waits until that is the answer, with these words in what happens next.
async fn tells(
    worker: &Worker,
    tenant: &SandboxTenant,
    balance: usize,
    verdict: &str,
    words: &str,
) -> Result<Value> {
    eventually(SOON, &format!("{verdict}, {words:?}"), || async {
        let answer = why(worker, tenant, balance).await?;
        ensure!(answer["verdict"] == verdict, "{answer}");
        ensure!(answer["next"].as_str().is_some_and(|next| next.contains(words)), "{answer}");
        Ok(answer)
    })
    .await
}

async fn act(worker: &Worker, tenant: &SandboxTenant, action: &str) -> Result<()> {
    let path = format!("/api/v1/tenants/{}/actions", tenant.id);
    let answer = post(worker, &path, &json!({"action": action})).await?;
    ensure!(answer.status == 202, "{}", answer.text);
    eventually(SOON, "the outcome of the action", || async {
        let log = json(worker, "/api/v1/actions").await?;
        let done = log["actions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|done| done["id"] == answer.body["action_id"]);
        ensure!(
            done.is_some_and(|done| done["outcomes"].as_array().is_some_and(|outcomes| outcomes.len() == 1)),
            "{log}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn every_reason_is_shown_with_what_happens_next() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 6).await?;
    // Members are taken from the schedule by hand below.
    let mut worker = sharing(&sandbox, "one").expect_error("redis has lost data").start().await?;
    let [one, other, third] = [0, 1, 2].map(|at| sandbox.tenants()[at].clone());
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;

    let answer = tells(&worker, &one, 0, "in_sync", "has the version that Redis has").await?;
    assert_eq!(answer["redis"]["version"], answer["postgres"]["version"]);
    assert!(
        answer["redis"]["ttl_seconds"].as_f64() > Some(0.0) && answer["postgres"]["updated_at"].is_string()
    );
    assert!(
        answer["redis"]["available"].is_string() && answer["postgres"]["available"].is_string(),
        "{answer}"
    );

    // By what people know: a tenant and an alias.
    let balance = &one.balances[0];
    let encode = |text: &str| -> String { url::form_urlencoded::byte_serialize(text.as_bytes()).collect() };
    let query = format!(
        "/api/v1/why?tenant={}&alias={}&key={}",
        one.id,
        encode(&balance.alias),
        encode(&balance.key)
    );
    let found = json(&worker, &query).await?;
    assert_eq!(found["matches"].as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!(found["matches"][0]["member"], one.keys.member(balance));
    let unknown = json(&worker, &format!("/api/v1/why?tenant={}&alias=%40nobody", one.id)).await?;
    assert_eq!(unknown["matches"], json!([]));

    // Paused: it waits, and says for whom.
    act(&worker, &one, "pause").await?;
    eventually(SOON, "paused", || async {
        let detail = json(&worker, &format!("/api/v1/tenants/{}", one.id)).await?;
        ensure!(detail["state"] == "paused" && detail["paused"].is_object(), "{detail}");
        Ok(())
    })
    .await?;
    producer.mutate(0, &[0, 1, 2], DEFAULT_TTL).await?;
    let answer = tells(&worker, &one, 0, "behind", "until the tenant is resumed").await?;
    assert_eq!(answer["schedule"]["state"], "due");

    // Scheduled later, held by a worker, held by the ledger's own worker.
    let mut redis = sandbox.redis().connect().await?;
    let now = balance_sync_tests::ledger::redis_time(&mut redis).await?;
    let members: Vec<String> = (0..6).map(|at| one.keys.member(&one.balances[at])).collect();
    let schedule = one.keys.schedule();
    let score = |score: String, member: &str| {
        let mut cmd = redis::cmd("ZADD");
        cmd.arg(&schedule).arg(score).arg(member);
        cmd
    };
    score(format!("{:.6}", (now + 3600.0).floor()), &members[1]).exec_async(&mut redis).await?;
    score(format!("{}.0000005", (now + 20.0).floor()), &members[2]).exec_async(&mut redis).await?;
    assert_eq!(why(&worker, &one, 1).await?["schedule"]["state"], "future");
    let held = why(&worker, &one, 2).await?;
    assert!(held["schedule"]["state"] == "leased" && held["schedule"]["leased_until"].is_string(), "{held}");
    redis::cmd("SET")
        .arg(one.keys.lock(&members[0]))
        .arg("1")
        .arg("EX")
        .arg(600)
        .exec_async(&mut redis)
        .await?;
    assert_eq!(why(&worker, &one, 0).await?["lock"]["foreign"], true);
    redis::cmd("DEL").arg(one.keys.lock(&members[0])).exec_async(&mut redis).await?;
    for member in &members[..3] {
        redis::cmd("ZREM").arg(&schedule).arg(member).exec_async(&mut redis).await?;
    }
    // Out of the schedule, and newer than the row: no worker will write it.
    tells(&worker, &one, 0, "unscheduled_and_behind", "verify --repair").await?;
    // And without a value the row is what counts.
    redis::cmd("DEL").arg(&members[1]).exec_async(&mut redis).await?;
    tells(&worker, &one, 1, "in_sync", "holds no value of it any more").await?;
    act(&worker, &one, "resume").await?;

    // Degraded: with its reason. And a poisoned value: with its reason in quarantine.
    sandbox.service().update(&other.id, |record| record.password = "wrong-password-of-why".to_owned().into());
    worker.hide("wrong-password-of-why");
    act(&worker, &other, "refresh_credentials").await?;
    producer.mutate(1, &[0], DEFAULT_TTL).await?;
    let answer = tells(&worker, &other, 0, "behind", "postgres_credentials").await?;
    assert_eq!(answer["last_error"]["reason"], "postgres_credentials", "{answer}");
    let poisoned = third.keys.member(&third.balances[0]);
    put_raw(&mut redis, &third.keys.schedule(), poisoned.as_bytes(), b"{}", Some(DEFAULT_TTL)).await?;
    let answer = tells(&worker, &third, 0, "quarantined", "in quarantine (value_field_missing)").await?;
    assert_eq!(answer["quarantine"]["reason"], "value_field_missing");

    // A key that holds something else: with what it holds, before and after its member is set aside.
    let odd = third.keys.member(&third.balances[1]);
    redis::cmd("DEL").arg(&odd).exec_async(&mut redis).await?;
    redis::cmd("RPUSH").arg(&odd).arg("element").exec_async(&mut redis).await?;
    let answer = tells(&worker, &third, 1, "unknown", "its value in Redis can't be read").await?;
    assert_eq!(answer["redis"]["unreadable"], "its key is of type list", "{answer}");
    redis::cmd("ZADD").arg(third.keys.schedule()).arg(1.5).arg(&odd).exec_async(&mut redis).await?;
    let answer = tells(&worker, &third, 1, "quarantined", "in quarantine (value_unreadable)").await?;
    assert!(
        answer["quarantine"]["detail"].as_str().is_some_and(|words| words.contains("type list")),
        "{answer}"
    );

    for (query, status, field) in [
        ("", 400, "member"),
        ("?tenant=x", 400, "alias"),
        ("?tenant=nobody&alias=a", 404, ""),
        ("?member=nothing", 400, "member"),
        ("?member=a&tenant=b", 400, "member"),
        ("?tenant=x&alias=a&ledger=7", 400, "ledger"),
    ] {
        let answer = ask(&worker, "GET", &format!("/api/v1/why{query}"), &[], None).await?;
        assert_eq!(
            (answer.status, answer.body["field"].as_str().unwrap_or_default()),
            (status, field),
            "{query}: {}",
            answer.text
        );
    }

    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// The ID in the value says which row is written, whatever the member is called.
#[tokio::test]
async fn a_value_with_the_id_of_another_balance_is_written_to_that_row_and_says_so() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 3).await?;
    let tenant = sandbox.tenants()[0].clone();
    let [named, meant] = [0, 1].map(|at| tenant.balances[at].clone());
    let value = named.json(9).replace(&named.id.to_string(), &meant.id.to_string());
    let member = tenant.keys.member(&named);
    let mut redis = sandbox.redis().connect().await?;
    put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL))
        .await?;
    let mut worker = sharing(&sandbox, "one").start().await?;
    all_settled(&sandbox).await?;
    assert_eq!(row(&sandbox, &tenant, 1).await?.version, 9);
    assert_eq!(row(&sandbox, &tenant, 0).await?.version, SEED_VERSION);

    let other = format!("{}#{}", meant.alias, meant.key);
    let answer = tells(&worker, &tenant, 0, "in_sync", "the row is that of").await?;
    assert_eq!(answer["postgres"]["other_balance"], other.as_str(), "{answer}");
    // Also for whoever asks by the alias, which has a row of its own.
    let alias: String = url::form_urlencoded::byte_serialize(named.alias.as_bytes()).collect();
    let found =
        json(&worker, &format!("/api/v1/why?tenant={}&alias={alias}&key={}", tenant.id, named.key)).await?;
    assert_eq!(found["matches"][0]["postgres"]["other_balance"], other.as_str(), "{found}");
    assert_eq!(found["matches"][0]["postgres"]["version"], 9, "{found}");
    // The balance itself, and one that nothing is wrong with.
    for at in [1, 2] {
        assert_eq!(why(&worker, &tenant, at).await?["postgres"]["other_balance"], Value::Null);
    }
    let config = sandbox.config_path().to_str().context("no path")?.to_owned();
    let done = balance_sync_tests::run(&["why", &member, "--config", &config], &[]).await?;
    assert!(done.stdout.contains(&format!("the row of {other:?}")), "{done:?}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
