//! Recoveries through the API: planned and applied in the background of a worker, one per tenant, seen from any worker, and stopped.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{SEED_VERSION, SeededBalance, write_operations, write_repayments};
use balance_sync_sandbox::{Sandbox, SandboxTenant, eventually};
use balance_sync_tests::ledger::{fill, rows};
use balance_sync_tests::{SOON, Worker};
use serde_json::{Value, json};

use crate::api::{Answer, ask, post, sharing};

const READ: &str = "read-token-of-these-tests-0123456789";
const OPERATOR: &str = "operator-token-of-these-tests-012345";
/// The version that Redis held.
const LOST: i64 = 3;

async fn call(worker: &Worker, method: &str, path: &str, token: &str, body: Option<Value>) -> Result<Answer> {
    ask(worker, method, path, &[("authorization", &format!("Bearer {token}"))], body.as_ref()).await
}

/// Waits until the recovery with this id has ended, and gives its record.
async fn ended(worker: &Worker, path: &str, id: &Value) -> Result<Value> {
    let record = std::sync::Mutex::new(Value::Null);
    eventually(SOON, "the end of the recovery", || async {
        let shown = call(worker, "GET", path, OPERATOR, None).await?;
        ensure!(shown.status == 200 && shown.body["id"] == *id, "{}", shown.text);
        ensure!(shown.body["state"] != "running", "{}", shown.text);
        if let Ok(mut record) = record.lock() {
            *record = shown.body;
        }
        Ok(())
    })
    .await?;
    Ok(record.into_inner()?)
}

/// Gives the tenant operations that Redis has no values of; those of exactly known balances, and of those in doubt.
async fn lose(
    sandbox: &Sandbox,
    tenant: &SandboxTenant,
    balances: &[SeededBalance],
) -> Result<[BTreeSet<String>; 2]> {
    let pool = sandbox.pool(tenant);
    let (doubtful, exact) = balances.split_at(balances.len() / 5);
    let of_exact: Vec<_> = exact.iter().map(|balance| (balance, LOST)).collect();
    write_operations(&pool, tenant.schema.as_deref(), &of_exact).await?;
    let of_doubtful: Vec<_> = doubtful.iter().map(|balance| (balance, LOST)).collect();
    write_repayments(&pool, tenant.schema.as_deref(), &of_doubtful).await?;
    pool.close().await;
    let members = |balances: &[SeededBalance]| balances.iter().map(|b| tenant.keys.member(b)).collect();
    Ok([members(exact), members(doubtful)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_is_planned_and_applied_by_operators() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 40).await?;
    let tenant = sandbox.tenants().remove(0);
    let [exact, doubtful] = lose(&sandbox, &tenant, &tenant.balances[..30]).await?;
    ensure!(!exact.is_empty() && !doubtful.is_empty(), "{} and {}", exact.len(), doubtful.len());
    let with_tokens = |name: &str| {
        sharing(&sandbox, name).set("admin.read_token", READ).set("admin.operator_token", OPERATOR)
    };
    let (mut one, mut two) = (with_tokens("one").start().await?, with_tokens("two").start().await?);
    let path = format!("/api/v1/tenants/{}/recovery", tenant.id);
    let start = |body: Value| call(&one, "POST", &path, OPERATOR, Some(body));
    let written = async || -> Result<BTreeSet<String>> {
        let found = rows(&sandbox, &tenant).await?;
        let newer =
            tenant.balances.iter().filter(|b| found.get(&b.id).is_some_and(|row| row.version == LOST));
        ensure!(found.values().all(|row| [SEED_VERSION, LOST].contains(&row.version)));
        Ok(newer.map(|balance| tenant.keys.member(balance)).collect())
    };

    // What may not be, or can't.
    assert_eq!(call(&one, "GET", &path, READ, None).await?.status, 204, "there was none yet");
    for (token, body, status, words) in [
        (READ, json!({}), 403, "operator_token"),
        (OPERATOR, json!({"apply": true}), 400, "note"),
        (OPERATOR, json!({"apply": true, "note": " "}), 400, "note"),
        (OPERATOR, json!({"aply": true}), 400, "does not have the form"),
    ] {
        let refused = call(&one, "POST", &path, token, Some(body.clone())).await?;
        assert!(refused.status == status && refused.text.contains(words), "{body}: {}", refused.text);
    }
    let unknown = call(&one, "POST", "/api/v1/tenants/nobody/recovery", OPERATOR, Some(json!({}))).await?;
    assert_eq!(unknown.status, 404, "{}", unknown.text);
    assert_eq!(call(&one, "DELETE", &path, OPERATOR, None).await?.status, 409, "none is at work");

    // The plan: seen from another worker as well, by readers without amounts.
    let begun = start(json!({})).await?;
    ensure!(begun.status == 202 && begun.body["state"] == "running", "{}", begun.text);
    let plan = ended(&two, &path, &begun.body["id"]).await?;
    assert_eq!(
        (&plan["state"], &plan["worker"], &plan["apply"]),
        (&"done".into(), &"one".into(), &false.into())
    );
    assert_eq!(
        (&plan["recoverable"], &plan["left"]),
        (&exact.len().into(), &doubtful.len().into()),
        "{plan}"
    );
    assert_eq!((&plan["rows"], &plan["action_id"]), (&40.into(), &Value::Null));
    let balances = plan["balances"].as_array().context("balances")?;
    assert_eq!(balances.len(), 30);
    for balance in balances {
        let member = balance["member"].as_str().context("a member")?;
        let seeded =
            tenant.balances.iter().find(|b| tenant.keys.member(b) == member).context("one of ours")?;
        assert_eq!(balance["row"]["version"], SEED_VERSION);
        if exact.contains(member) {
            let amounts = seeded.amounts(LOST);
            assert_eq!(
                (&balance["to"]["version"], &balance["witness"]),
                (&LOST.into(), &"newest operation".into())
            );
            assert_eq!(balance["to"]["available"], amounts.available.as_str());
            assert_eq!(balance["to"]["overdraft_used"], amounts.overdraft_used.as_str());
        } else {
            assert!(
                balance["to"].is_null() && balance["detail"].as_str().is_some_and(|advice| advice.len() > 20)
            );
        }
    }
    let read = call(&two, "GET", &path, READ, None).await?;
    assert_eq!(
        (&read.body["amounts_hidden"], &read.body["balances"][0]["row"]["available"]),
        (&true.into(), &Value::Null)
    );
    assert_eq!(read.body["balances"][0]["row"]["version"], SEED_VERSION);
    assert_eq!(written().await?, BTreeSet::new(), "a plan writes nothing");

    // Applied, with an action in the log.
    let begun = start(json!({"apply": true, "note": "redis was evicted"})).await?;
    ensure!(begun.status == 202, "{}", begun.text);
    let applied = ended(&one, &path, &begun.body["id"]).await?;
    assert_eq!(
        (&applied["state"], &applied["outcomes"]),
        (&"done".into(), &json!({"restored": exact.len()})),
        "{applied}"
    );
    assert_eq!(written().await?, exact);
    let log = call(&one, "GET", "/api/v1/actions", OPERATOR, None).await?;
    let action = &log.body["actions"][0];
    assert_eq!((&action["id"], &action["what"]), (&applied["action_id"], &"recover".into()), "{action}");
    assert_eq!((&action["by"], &action["note"]), (&"operator_token".into(), &"redis was evicted".into()));
    let outcome = &action["outcomes"][0];
    assert_eq!((&outcome["worker"], &outcome["outcome"]), (&"one".into(), &"done".into()), "{action}");
    assert_eq!(outcome["detail"], format!("{} restored", exact.len()));
    for worker in [&mut one, &mut two] {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_recovery_per_tenant_is_at_work_and_can_be_stopped() -> Result<()> {
    /// So many that it takes some seconds.
    const MANY: usize = 120_000;
    let sandbox = balance_sync_tests::sandbox(1, MANY).await?;
    let tenant = sandbox.tenants().remove(0);
    fill(&sandbox, &tenant).await?;
    let (mut one, mut two) =
        (sharing(&sandbox, "one").start().await?, sharing(&sandbox, "two").start().await?);
    let path = format!("/api/v1/tenants/{}/recovery", tenant.id);
    let show = || ask(&two, "GET", &path, &[], None);
    let begun = post(&one, &path, &json!({})).await?;
    ensure!(begun.status == 202, "{}", begun.text);
    for worker in [&one, &two] {
        let second = post(worker, &path, &json!({"apply": true, "note": "no"})).await?;
        ensure!(second.status == 409 && second.text.contains("at work already"), "{}", second.text);
    }
    eventually(SOON, "progress", || async {
        let shown = show().await?;
        ensure!(shown.body["rows"].as_u64().is_some_and(|rows| rows > 0), "{}", shown.text);
        Ok(())
    })
    .await?;
    let stopped = ask(&two, "DELETE", &path, &[("x-balance-sync", "1")], None).await?;
    assert_eq!(stopped.status, 204, "{}", stopped.text);
    eventually(SOON, "its end", || async {
        let shown = show().await?;
        ensure!(shown.body["state"] == "stopped", "{}", shown.text);
        ensure!(shown.body["rows"].as_u64().is_some_and(|rows| rows < MANY as u64), "{}", shown.text);
        Ok(())
    })
    .await?;

    // With its worker it stops as well, and another one can begin.
    let begun = post(&one, &path, &json!({})).await?;
    ensure!(begun.status == 202, "{}", begun.text);
    assert_eq!(one.stop().await?.code, Some(0));
    let shown = show().await?;
    assert_eq!(
        (&shown.body["id"], &shown.body["state"]),
        (&begun.body["id"], &"stopped".into()),
        "{}",
        shown.text
    );
    let begun = post(&two, &path, &json!({})).await?;
    ensure!(begun.status == 202, "{}", begun.text);

    // One whose worker is gone is shown as lost.
    let killed = begun.body["id"].clone();
    two.kill().await?;
    let mut redis = sandbox.redis().connect().await?;
    let key = format!("{{transactions}}:balance-sync:recovery-1:{}", tenant.id);
    let record: String = redis::cmd("GET").arg(&key).query_async(&mut redis).await?;
    let mut record: Value = serde_json::from_str(&record)?;
    assert_eq!((&record["id"], &record["state"]), (&killed, &"running".into()));
    record["updated"] = json!(record["updated"].as_f64().context("a time")? - 31.0);
    redis::cmd("SET").arg(&key).arg(record.to_string()).query_async::<()>(&mut redis).await?;
    let mut three = sharing(&sandbox, "three").start().await?;
    let shown = ask(&three, "GET", &path, &[], None).await?;
    ensure!(shown.body["state"] == "lost" && shown.text.contains("worker two"), "{}", shown.text);
    assert_eq!(three.stop().await?.code, Some(0));
    Ok(())
}
