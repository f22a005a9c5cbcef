//! The admin API of running workers: any of them answers for the whole fleet.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::{Fault, Sandbox, eventually, ledger::DEFAULT_TTL};
use balance_sync_tests::ledger::comes_in_step;
use balance_sync_tests::{SOON, Worker, WorkerBuilder};
use serde_json::Value;

/// Workers that share the tenants out one by one, so that each has to ask the others.
pub(crate) fn sharing(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    Worker::of(sandbox)
        .set("worker.name", name)
        .set("worker.replicas", "1")
        .set("worker.lease", "3s")
        .set("collector.idle_backoff_max", "100ms")
}

/// An answer of the interface of a worker.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: reqwest::header::HeaderMap,
    pub(crate) body: Value,
    pub(crate) text: String,
}

/// Asks a worker, with these headers and this body.
pub(crate) async fn ask(
    worker: &Worker,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Result<Answer> {
    let line = worker.log().find("admin interface listens").context("it does not listen")?;
    let address = line.fields["address"].as_str().context("no address")?;
    let client = reqwest::Client::builder().timeout(SOON).no_proxy().build()?;
    let mut request = client.request(method.parse()?, format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    let response = request.send().await?;
    let (status, head) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await?;
    Ok(Answer { status, head, body: serde_json::from_str(&text).unwrap_or_default(), text })
}

/// Does something, as the dashboard would.
pub(crate) async fn post(worker: &Worker, path: &str, body: &Value) -> Result<Answer> {
    ask(worker, "POST", path, &[("x-balance-sync", "1")], Some(body)).await
}

pub(crate) async fn json(worker: &Worker, path: &str) -> Result<Value> {
    let (status, body) = worker.get(path).await?;
    ensure!(status == 200, "{path} answers {status}: {body}");
    serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))
}

pub(crate) fn texts<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    list.as_array().into_iter().flatten().filter_map(|entry| entry[field].as_str()).collect()
}

/// Waits until the worker tells of that many workers, and every tenant has exactly one owner.
pub(crate) async fn settled(worker: &Worker, workers: usize) -> Result<BTreeMap<String, String>> {
    eventually(SOON, &format!("{workers} workers that share the tenants"), || async {
        let overview = json(worker, "/api/v1/overview").await?;
        ensure!(overview["workers"]["live"] == workers, "{overview}");
        let tenants = json(worker, "/api/v1/tenants").await?;
        let mut owners = BTreeMap::new();
        for row in tenants["tenants"].as_array().context("no tenants")? {
            let [owner] = row["owners"].as_array().map(Vec::as_slice).unwrap_or_default() else {
                bail!("{row}");
            };
            let id = row["id"].as_str().context("no id")?;
            owners.insert(id.to_owned(), owner.as_str().unwrap_or_default().to_owned());
        }
        Ok(owners)
    })
    .await
}

#[tokio::test]
async fn each_worker_answers_for_the_whole_fleet() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(8, 10).await?;
    let mut workers = [sharing(&sandbox, "one").start().await?, sharing(&sandbox, "two").start().await?];
    let owners = settled(&workers[0], 2).await?;
    assert_eq!(settled(&workers[1], 2).await?, owners, "both say the same");
    assert_eq!(owners.len(), 8);
    assert!(owners.values().any(|owner| owner == "one") && owners.values().any(|owner| owner == "two"));

    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    for (worker, name) in workers.iter().zip(["one", "two"]) {
        eventually(SOON, "all rows in the sums", || async {
            let tenants = json(worker, "/api/v1/tenants?sort=rows&order=desc").await?;
            let rows = tenants["tenants"].as_array().context("no tenants")?.clone();
            let updated: u64 = rows.iter().filter_map(|row| row["updated_total"].as_u64()).sum();
            ensure!(updated == 80, "{updated} rows");
            let overview = json(worker, "/api/v1/overview").await?;
            ensure!(overview["lag"]["p99_seconds"].as_f64().is_some(), "{overview}");
            ensure!(overview["rates"]["rows_per_second"].as_f64() > Some(0.0), "{overview}");
            ensure!(overview["verdict"] == "healthy", "{overview}");
            ensure!(overview["tenants"]["total"] == 8 && overview["tenants"]["unserved"] == 0, "{overview}");
            Ok(())
        })
        .await?;
        let listed = json(worker, "/api/v1/workers").await?;
        assert_eq!(texts(&listed["workers"], "name"), ["one", "two"]);
        for row in listed["workers"].as_array().context("no workers")? {
            assert_eq!(row["self"], row["name"] == name, "{row}");
            assert_eq!(row["redis"], "ok");
            assert_eq!(row["tenant_service"]["state"], "ok");
            assert!(row["rss_bytes"].as_u64() > Some(1 << 20), "{row}");
            assert!(row["reconcile"]["passes_total"].as_u64() > Some(0), "{row}");
        }
        // Flushes of a tenant that the other one serves are reported as well.
        let foreign = owners.iter().find(|(_, owner)| *owner != name).context("no tenant of the other")?;
        eventually(SOON, "the other worker's flushes", || async {
            let detail = json(worker, &format!("/api/v1/tenants/{}", foreign.0)).await?;
            ensure!(texts(&detail["flushes"], "worker").first() == Some(&foreign.1.as_str()), "{detail}");
            ensure!(detail["outcomes"]["updated"] == 10, "{detail}");
            ensure!(detail["settings"]["database"]["host"].is_string(), "{detail}");
            ensure!(detail["history"].as_array().is_some_and(|points| !points.is_empty()), "{detail}");
            Ok(())
        })
        .await?;
    }

    // A worker that goes is no longer listed, and what it served is the other's.
    assert_eq!(workers[1].stop().await?.code, Some(0));
    let owners = settled(&workers[0], 1).await?;
    assert!(owners.len() == 8 && owners.values().all(|owner| owner == "one"), "{owners:?}");
    assert_eq!(workers[0].stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn tenants_are_filtered_put_in_order_and_paged() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(7, 5).await?;
    let mut worker = sharing(&sandbox, "one").start().await?;
    settled(&worker, 1).await?;
    let mut ids: Vec<String> = sandbox.tenants().iter().map(|tenant| tenant.id.clone()).collect();
    ids.sort();
    let page = json(&worker, "/api/v1/tenants?per_page=3&page=2").await?;
    assert_eq!((&page["total"], &page["page"], &page["per_page"]), (&7.into(), &2.into(), &3.into()));
    assert_eq!(texts(&page["tenants"], "id"), ids[3..6]);
    let last = json(&worker, "/api/v1/tenants?per_page=3&page=1&order=desc").await?;
    assert_eq!(texts(&last["tenants"], "id"), [&ids[6], &ids[5], &ids[4]]);
    let some = json(&worker, &format!("/api/v1/tenants?q={}", ids[2].to_uppercase())).await?;
    assert_eq!(texts(&some["tenants"], "id"), [&ids[2]]);
    assert_eq!(json(&worker, "/api/v1/tenants?state=degraded,unserved").await?["total"], 0);

    for (path, status, field, words) in [
        ("/api/v1/tenants?state=broken", 400, "state", "allowed: starting, idle, standby, syncing"),
        ("/api/v1/tenants?sort=name", 400, "sort", "allowed: id, state, backlog"),
        ("/api/v1/tenants?sort=", 400, "sort", "allowed: id, state, backlog"),
        ("/api/v1/tenants?state=", 400, "state", "several separated by commas"),
        ("/api/v1/tenants?page=0", 400, "page", "a whole number from 1"),
        ("/api/v1/tenants?per_page=5000", 400, "per_page", "from 1 to 1000"),
        ("/api/v1/overview?x=1", 400, "x", "no parameters"),
        ("/api/v1/tenants/nobody", 404, "", "no tenant \"nobody\""),
        ("/api/v1/nowhere", 404, "", "no such path"),
    ] {
        let (answered, body) = worker.get(path).await?;
        let problem: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        assert_eq!(
            (answered, problem["status"].as_u64()),
            (status, Some(u64::from(status))),
            "{path}: {body}"
        );
        assert_eq!(problem["field"].as_str().unwrap_or_default(), field, "{path}: {body}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(words)), "{path}: {body}");
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_tenant_that_cannot_be_written_is_shown_with_reason_and_errors() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 5).await?;
    let mut worker = sharing(&sandbox, "one").set("admin.freshness_objective", "1s").start().await?;
    let broken = sandbox.tenants()[0].clone();
    sandbox
        .service()
        .update(&broken.id, |record| record.password = "wrong-password-of-the-test".to_owned().into());
    worker.hide("wrong-password-of-the-test");
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    let overview = eventually(SOON, "a degraded tenant in the overview", || async {
        let overview = json(&worker, "/api/v1/overview").await?;
        ensure!(overview["verdict"] == "degraded", "{overview}");
        ensure!(overview["tenants"]["by_state"]["degraded"] == 1, "{overview}");
        Ok(overview)
    })
    .await?;
    let reason = overview["reasons"][0].as_str().unwrap_or_default();
    assert!(reason.contains("postgres_credentials") && reason.contains(&broken.id), "{overview}");
    assert_eq!(texts(&overview["worst"], "id")[0], broken.id);
    let detail = json(&worker, &format!("/api/v1/tenants/{}", broken.id)).await?;
    assert_eq!((&detail["state"], &detail["reason"]), (&"degraded".into(), &"postgres_credentials".into()));
    assert_eq!(texts(&detail["errors"], "reason")[0], "postgres_credentials");
    assert!(detail["next"].as_str().is_some_and(|next| next.contains("tried again by itself")), "{detail}");
    for path in ["overview", "workers", "tenants", &format!("tenants/{}", broken.id)] {
        let body = worker.get(&format!("/api/v1/{path}")).await?.1;
        assert!(!body.contains("wrong-password-of-the-test"), "{body}");
        assert!(!body.to_lowercase().contains("\"password\""), "{body}");
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn without_redis_a_worker_tells_what_it_serves_itself() -> Result<()> {
    let mut options = balance_sync_tests::options(3, 5);
    options.proxied = true;
    let sandbox = Sandbox::start(options).await?;
    let mut worker = sharing(&sandbox, "one").set("redis.response_timeout", "500ms").start().await?;
    settled(&worker, 1).await?;
    sandbox.redis_proxy().context("no proxy")?.set(Fault::Closed).await;
    eventually(SOON, "redis unavailable", || async {
        let overview = json(&worker, "/api/v1/overview").await?;
        ensure!(overview["redis"] == "unavailable" && overview["verdict"] == "degraded", "{overview}");
        ensure!(overview["tenants"]["total"] == 3 && overview["tenants"]["unserved"] == 0, "{overview}");
        ensure!(overview["detail"].is_string() && overview["workers"]["live"] == 1, "{overview}");
        let reason = overview["reasons"][0].as_str().unwrap_or_default();
        ensure!(reason.starts_with("Redis can't be asked"), "{overview}");
        Ok(())
    })
    .await?;
    sandbox.redis_proxy().context("no proxy")?.set(Fault::Pass).await;
    settled(&worker, 1).await?;
    eventually(SOON, "a healthy fleet", || async {
        let overview = json(&worker, "/api/v1/overview").await?;
        ensure!(overview["redis"] == "ok" && overview["verdict"] == "healthy", "{overview}");
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
