//! `/api/v1/openapi.json` is true: what a running worker answers fits the schemas, in every state that can be provoked.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::eventually;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_tests::{SOON, Worker};
use serde_json::{Value, json};

use crate::api::{Answer, ask, post, sharing};

/// The description of one worker, by which its answers are judged.
pub(crate) struct Description(Value);

impl Description {
    pub(crate) async fn of(worker: &Worker) -> Result<Self> {
        Self::with(worker, &[]).await
    }

    /// Where a token is needed.
    pub(crate) async fn of_bearer(worker: &Worker, token: &str) -> Result<Self> {
        Self::with(worker, &[("authorization", &format!("Bearer {token}"))]).await
    }

    async fn with(worker: &Worker, headers: &[(&str, &str)]) -> Result<Self> {
        let answer = ask(worker, "GET", "/api/v1/openapi.json", headers, None).await?;
        ensure!(answer.status == 200, "{}", answer.text);
        Ok(Self(answer.body))
    }

    /// Checks an answer by what stands about its path, method and status.
    pub(crate) fn fits(&self, method: &str, path: &str, answer: &Answer) -> Result<()> {
        let described = &self.0["paths"][path][method.to_lowercase()]["responses"][answer.status.to_string()];
        if answer.status == 204 {
            ensure!(described.is_object(), "{method} {path} 204 is not described");
            return Ok(());
        }
        let kind = answer.head["content-type"].to_str()?.split(';').next().unwrap_or_default();
        let schema = described["content"][kind]["schema"].clone();
        ensure!(schema.is_object(), "{method} {path} {} {kind} is not described", answer.status);
        self.check(&schema, &answer.body).with_context(|| format!("{method} {path}: {}", answer.text))
    }

    fn named(&self, name: &str, value: &Value) -> Result<()> {
        self.check(&json!({"$ref": format!("#/components/schemas/{name}")}), value)
            .with_context(|| format!("{name}: {value}"))
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<()> {
        let mut whole = schema.clone();
        whole["components"] = self.0["components"].clone();
        let validator = jsonschema::draft202012::new(&whole)?;
        let wrong: Vec<String> =
            validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}

#[tokio::test]
async fn answers_are_as_described() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(4, 5).await?;
    let mut worker = sharing(&sandbox, "one").start().await?;
    let description = Description::of(&worker).await?;
    let tenants = sandbox.tenants();
    let [broken, paused, poisoned, well] = [0, 1, 2, 3].map(|at| tenants[at].clone());
    sandbox.service().update(&broken.id, |record| record.password = "wrong-one".to_owned().into());
    let of = |tenant: &str| format!("/api/v1/tenants/{tenant}/actions");
    let answer = post(&worker, &of(&paused.id), &json!({"action": "pause", "note": "a test"})).await?;
    description.fits("POST", "/api/v1/tenants/{id}/actions", &answer)?;
    let mut redis = sandbox.redis().connect().await?;
    let member = poisoned.keys.member(&poisoned.balances[0]);
    put_raw(&mut redis, &poisoned.keys.schedule(), member.as_bytes(), b"no json", Some(DEFAULT_TTL)).await?;
    let mut producer = sandbox.producer();
    producer.mutate(3, &[0, 1], DEFAULT_TTL).await?;
    producer.mutate(0, &[0], DEFAULT_TTL).await?;
    producer.mutate(1, &[0], DEFAULT_TTL).await?;
    eventually(SOON, "a degraded, a paused and a poisoned tenant", || async {
        let answer = ask(&worker, "GET", "/api/v1/overview", &[], None).await?;
        description.fits("GET", "/api/v1/overview", &answer)?;
        let states = &answer.body["tenants"]["by_state"];
        ensure!(states["degraded"] == 1 && states["paused"] == 1, "{}", answer.text);
        ensure!(
            answer.body["quarantined"] == 1 && answer.body["history"].as_array().is_some_and(|h| h.len() > 1),
            "{}",
            answer.text
        );
        Ok(())
    })
    .await?;
    let encoded: String = url::form_urlencoded::byte_serialize(member.as_bytes()).collect();
    let mut asked = vec![
        ("/api/v1/session", "/api/v1/session".to_owned()),
        ("/api/v1/openapi.json", "/api/v1/openapi.json".to_owned()),
        ("/api/v1/workers", "/api/v1/workers".to_owned()),
        ("/api/v1/tenants", "/api/v1/tenants?sort=state".to_owned()),
        ("/api/v1/tenants", "/api/v1/tenants?sort=nothing".to_owned()),
        ("/api/v1/tenants/{id}", "/api/v1/tenants/nobody".to_owned()),
        ("/api/v1/quarantine", "/api/v1/quarantine".to_owned()),
        (
            "/api/v1/quarantine/entry",
            format!("/api/v1/quarantine/entry?tenant={}&member={encoded}", poisoned.id),
        ),
        ("/api/v1/quarantine/entry", format!("/api/v1/quarantine/entry?tenant={}&member=x", poisoned.id)),
        ("/api/v1/actions", "/api/v1/actions".to_owned()),
        ("/api/v1/why", "/api/v1/why".to_owned()),
        ("/api/v1/why", format!("/api/v1/why?member={encoded}")),
    ];
    for tenant in [&broken, &paused, &poisoned, &well] {
        asked.push(("/api/v1/tenants/{id}", format!("/api/v1/tenants/{}", tenant.id)));
        let alias: String =
            url::form_urlencoded::byte_serialize(tenant.balances[0].alias.as_bytes()).collect();
        asked.push(("/api/v1/why", format!("/api/v1/why?tenant={}&alias={alias}", tenant.id)));
    }
    for (path, asked) in asked {
        let answer = ask(&worker, "GET", &asked, &[], None).await?;
        description.fits("GET", path, &answer).with_context(|| asked.clone())?;
        let nothing = ask(&worker, "PATCH", &asked, &[("x-balance-sync", "1")], None).await?;
        assert_eq!(nothing.status, 405, "{asked}: {}", nothing.text);
        description.named("Problem", &nothing.body)?;
    }
    let path = "/api/v1/tenants/{id}/recovery";
    let of_well = format!("/api/v1/tenants/{}/recovery", well.id);
    let mut recovery = vec![("GET", path, ask(&worker, "GET", &of_well, &[], None).await?)];
    for body in [json!({"apply": true}), json!({}), json!({})] {
        recovery.push(("POST", path, post(&worker, &of_well, &body).await?));
    }
    eventually(SOON, "the end of a recovery", || async {
        let shown = ask(&worker, "GET", &of_well, &[], None).await?;
        description.fits("GET", path, &shown)?;
        ensure!(shown.body["state"] == "done", "{}", shown.text);
        Ok(())
    })
    .await?;
    recovery.push((
        "DELETE",
        path,
        ask(&worker, "DELETE", &of_well, &[("x-balance-sync", "1")], None).await?,
    ));
    let statuses: Vec<u16> = recovery.iter().map(|(_, _, answer)| answer.status).collect();
    ensure!(statuses[..3] == [204, 400, 202] && statuses[4] == 409, "{statuses:?}");
    for (path, asked, body) in [
        ("/api/v1/session", "/api/v1/session", json!({"token": "x"})),
        ("/api/v1/quarantine/retry", "/api/v1/quarantine/retry", json!({"tenant": poisoned.id})),
        ("/api/v1/quarantine/drop", "/api/v1/quarantine/drop", json!({"reason": "value_not_a_json_object"})),
        ("/api/v1/quarantine/drop", "/api/v1/quarantine/drop", json!({})),
        ("/api/v1/workers/{name}/actions", "/api/v1/workers/nobody/actions", json!({"action": "drain"})),
        ("/api/v1/workers/{name}/actions", "/api/v1/workers/one/actions", json!({"action": "drain"})),
    ] {
        let answer = post(&worker, asked, &body).await?;
        description.fits("POST", path, &answer)?;
    }
    for (method, path, answer) in recovery {
        description.fits(method, path, &answer)?;
    }
    assert_eq!(worker.wait().await?.code, Some(0), "the last was its end");
    Ok(())
}

#[tokio::test]
async fn events_tell_what_changes_and_never_hold_a_drain_up() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 5).await?;
    let mut worker = sharing(&sandbox, "one").start().await?;
    let description = Description::of(&worker).await?;
    let tenant = sandbox.tenants()[0].clone();
    let line = worker.log().find("admin interface listens").context("it does not listen")?;
    let address = line.fields["address"].as_str().context("no address")?.to_owned();
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{address}/api/v1/events?tenant={}", tenant.id);
    let mut stream = client.get(&url).send().await?;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut producer = sandbox.producer();
    let begun = std::time::Instant::now();
    let mut acted = false;
    while !["overview", "tenants", "tenant", "action"].iter().all(|name| seen.contains(*name)) {
        ensure!(begun.elapsed() < SOON, "only {seen:?} came: {text}");
        let part = tokio::time::timeout(SOON, stream.chunk()).await??.context("the stream ended")?;
        text.push_str(std::str::from_utf8(&part)?);
        while let Some((event, rest)) = text.split_once("\n\n").map(|(a, b)| (a.to_owned(), b.to_owned())) {
            text = rest;
            let Some((name, data)) =
                event.strip_prefix("event: ").and_then(|event| event.split_once("\ndata: "))
            else {
                ensure!(event.starts_with("retry: ") || event.starts_with(':'), "{event}");
                continue;
            };
            let data: Value = serde_json::from_str(data)?;
            let schema = match name {
                "overview" => "Overview",
                "tenants" => "Changed",
                "tenant" => "TenantDetail",
                "action" => "ActionNews",
                _ => anyhow::bail!("an event {name}"),
            };
            description.named(schema, &data)?;
            if name == "tenants" {
                ensure!(
                    data["tenants"]
                        .as_array()
                        .is_some_and(|rows| rows.iter().all(|row| row["id"].is_string()))
                );
            }
            seen.insert(name.to_owned());
        }
        if seen.contains("tenant") && !acted {
            acted = true;
            producer.mutate_each(DEFAULT_TTL).await?;
            let path = format!("/api/v1/tenants/{}/actions", tenant.id);
            assert_eq!(post(&worker, &path, &json!({"action": "flush"})).await?.status, 202);
        }
    }
    // More than there may be: turned away, and the interface still answers.
    let mut open = vec![stream];
    let url = format!("http://{address}/api/v1/events");
    let turned_away = loop {
        let another = client.get(&url).send().await?;
        if another.status() != 200 {
            break another;
        }
        open.push(another);
        ensure!(open.len() < 100, "as many streams as one likes");
    };
    assert_eq!((turned_away.status().as_u16(), open.len()), (503, 32));
    assert_eq!(worker.get("/livez").await?.0, 200);
    let ended = worker.stop().await?;
    assert_eq!(ended.code, Some(0));
    assert!(ended.took < std::time::Duration::from_secs(25), "streams held the drain up: {:?}", ended.took);
    Ok(())
}
