//! Sessions of the dashboard: valid at every worker, over restarts, and ended everywhere at once.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::{Fault, Sandbox, eventually};
use balance_sync_tests::{SOON, Worker, WorkerBuilder, run};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::api::{Answer, ask, texts};

const READ: &str = "read-token-of-this-test";
const OPERATOR: &str = "operator-token-of-this-test";
const OVERVIEW: &str = "/api/v1/overview";
const SESSION: &str = "/api/v1/session";

fn builder(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    Worker::of(sandbox)
        .set("worker.name", name)
        .set("admin.read_token", READ)
        .set("admin.operator_token", OPERATOR)
        .secret(READ)
        .secret(OPERATOR)
}

/// Signs in; gives the cookie.
async fn sign_in(worker: &Worker, token: &str) -> Result<String> {
    let own = [("x-balance-sync", "1")];
    let answer = ask(worker, "POST", SESSION, &own, Some(&json!({"token": token}))).await?;
    ensure!(answer.status == 200, "{}", answer.text);
    let cookie = answer.head["set-cookie"].to_str()?.split(';').next().context("no cookie")?.to_owned();
    // What makes the session must not be in any log.
    worker.hide(cookie.split('=').nth(1).context("no id")?);
    Ok(cookie)
}

async fn with(
    worker: &Worker,
    cookie: &str,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Answer> {
    ask(worker, method, path, &[("cookie", cookie), ("x-balance-sync", "1")], body).await
}

async fn status(worker: &Worker, cookie: &str) -> Result<u16> {
    Ok(with(worker, cookie, "GET", OVERVIEW, None).await?.status)
}

async fn refused(worker: &Worker, cookie: &str) -> Result<()> {
    eventually(SOON, "the session is refused", || async {
        let status = status(worker, cookie).await?;
        ensure!(status == 401, "{status}");
        Ok(())
    })
    .await
}

async fn stream(worker: &Worker, cookie: &str) -> Result<reqwest::Response> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let stream = client.get(worker.url("/api/v1/events")).header("cookie", cookie).send().await?;
    ensure!(stream.status() == 200, "{}", stream.status());
    Ok(stream)
}

/// Reads a stream of events to its end.
async fn ends(mut stream: reqwest::Response) -> Result<()> {
    let read = async {
        while stream.chunk().await?.is_some() {}
        anyhow::Ok(())
    };
    tokio::time::timeout(SOON, read).await.context("the stream goes on")?
}

/// All that Redis holds about sessions.
async fn stored(sandbox: &Sandbox) -> Result<String> {
    let mut redis = sandbox.redis().connect().await?;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await?;
    let mut text = String::new();
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut redis).await?;
        let value: redis::Value = match kind.as_str() {
            "string" => redis::cmd("GET").arg(&key).query_async(&mut redis).await?,
            "hash" => redis::cmd("HGETALL").arg(&key).query_async(&mut redis).await?,
            "zset" => redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).query_async(&mut redis).await?,
            "stream" => redis::cmd("XRANGE").arg(&key).arg("-").arg("+").query_async(&mut redis).await?,
            other => anyhow::bail!("{key} is a {other}"),
        };
        text.push_str(&format!("{key} {value:?}\n"));
    }
    Ok(text)
}

#[tokio::test]
async fn a_session_is_valid_at_every_worker_and_ends_at_all_of_them() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let mut workers = [builder(&sandbox, "one").start().await?, builder(&sandbox, "two").start().await?];
    let [one, two] = &workers;
    let cookie = sign_in(one, OPERATOR).await?;
    let answer = with(two, &cookie, "GET", SESSION, None).await?;
    assert_eq!((&answer.body["role"], &answer.body["name"]), (&"operator".into(), &"operator_token".into()));
    let path = format!("/api/v1/tenants/{}/actions", sandbox.tenants()[0].id);
    let flush = json!({"action": "flush"});
    assert_eq!(with(two, &cookie, "POST", &path, Some(&flush)).await?.status, 202);
    let foreign = ask(two, "POST", &path, &[("cookie", &cookie)], Some(&flush)).await?;
    assert_eq!(foreign.status, 403, "{}", foreign.text);

    // What Redis holds leads to neither.
    let text = stored(&sandbox).await?;
    let id = cookie.split('=').nth(1).context("no id")?;
    assert!(text.contains("sessions-1:") && text.contains("operator_token"), "{text}");
    for secret in [READ, OPERATOR, id] {
        assert!(!text.contains(secret), "Redis holds a secret: {text}");
    }

    // Another one of a reader goes on when this one ends.
    let reader = sign_in(two, READ).await?;
    assert_eq!(with(one, &reader, "POST", &path, Some(&flush)).await?.status, 403);
    let streams = [stream(one, &cookie).await?, stream(two, &cookie).await?];
    let out = with(one, &cookie, "DELETE", SESSION, None).await?;
    assert!(out.head["set-cookie"].to_str()?.contains("Max-Age=0"), "{:?}", out.head);
    assert_eq!(status(one, &cookie).await?, 401, "at once where it was ended");
    refused(two, &cookie).await?;
    for stream in streams {
        ends(stream).await?;
    }
    assert_eq!([status(one, &reader).await?, status(two, &reader).await?], [200, 200]);

    // Who signs in anew has no use for the session before.
    let first = sign_in(one, OPERATOR).await?;
    let token = json!({"token": OPERATOR});
    let again = with(one, &first, "POST", SESSION, Some(&token)).await?;
    let second = again.head["set-cookie"].to_str()?.split(';').next().context("no cookie")?.to_owned();
    assert_ne!(first, second);
    assert_eq!([status(one, &first).await?, status(one, &second).await?], [401, 200]);

    // Wrong ones are refused, whatever they look like.
    for wrong in [
        "balance_sync_session=",
        &format!("balance_sync_session={}", "0".repeat(64)),
        "balance_sync_session=x",
    ] {
        assert_eq!(status(two, wrong).await?, 401, "{wrong}");
    }

    // A worker that starts again knows them.
    assert_eq!(workers[0].stop().await?.code, Some(0));
    workers[0] = builder(&sandbox, "one").start().await?;
    assert_eq!([status(&workers[0], &second).await?, status(&workers[0], &reader).await?], [200, 200]);
    for worker in &mut workers {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}

#[tokio::test]
async fn operators_see_and_end_sessions() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let mut worker = builder(&sandbox, "one").start().await?;
    let description = crate::openapi::Description::of_bearer(&worker, OPERATOR).await?;
    let (reader, operator) = (sign_in(&worker, READ).await?, sign_in(&worker, OPERATOR).await?);
    let list = "/api/v1/sessions";
    let end = "/api/v1/sessions/end";
    let shown = with(&worker, &operator, "GET", list, None).await?;
    description.fits("GET", list, &shown)?;
    assert_eq!(texts(&shown.body["sessions"], "name"), ["operator_token", "read_token"], "{}", shown.text);
    assert_eq!(
        (&shown.body["sessions"][0]["current"], &shown.body["sessions"][1]["current"]),
        (&true.into(), &false.into())
    );
    for (method, path) in [("GET", list), ("POST", end)] {
        let answer = with(&worker, &reader, method, path, Some(&json!({"all": true}))).await?;
        assert_eq!(answer.status, 403, "{}", answer.text);
        description.fits(method, path, &answer)?;
    }
    for wrong in [json!({}), json!({"all": true, "name": "read_token"}), json!({"all": false})] {
        assert_eq!(with(&worker, &operator, "POST", end, Some(&wrong)).await?.status, 400, "{wrong}");
    }
    let by_name = with(&worker, &operator, "POST", end, Some(&json!({"name": "read_token"}))).await?;
    description.fits("POST", end, &by_name)?;
    assert_eq!(by_name.body["ended"], 1, "{}", by_name.text);
    assert_eq!([status(&worker, &reader).await?, status(&worker, &operator).await?], [401, 200]);

    // At a terminal.
    let config = sandbox.config_path().to_str().context("no path")?.to_owned();
    let command = async |args: &[&str]| run(&[args, &["--config", &config]].concat(), &[]).await;
    let listed = command(&["sessions", "list", "--json"]).await?;
    let rows: Value = serde_json::from_str(&listed.stdout)?;
    let id = rows["sessions"][0]["id"].as_str().context("no session")?.to_owned();
    assert_eq!(rows["sessions"].as_array().map(Vec::len), Some(1), "{listed:?}");
    let table = command(&["sessions", "list"]).await?.stdout;
    assert!(table.contains(&id) && table.contains("operator_token"), "{table}");
    assert_eq!(command(&["sessions", "end", &id[1..]]).await?.code, Some(2), "a part of an id");
    assert_eq!(command(&["sessions", "end", "0000000000000000"]).await?.code, Some(1));
    let ended = command(&["sessions", "end", &id]).await?;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "1 sessions ended.\n"));
    refused(&worker, &operator).await?;
    let both = [sign_in(&worker, READ).await?, sign_in(&worker, OPERATOR).await?];
    assert_eq!(command(&["sessions", "end", "--all"]).await?.stdout, "2 sessions ended.\n");
    for cookie in &both {
        refused(&worker, cookie).await?;
    }
    assert_eq!(command(&["sessions", "list"]).await?.stdout, "Nobody is signed in.\n");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn an_unused_session_ends_by_itself() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let mut worker = builder(&sandbox, "one").set("admin.session_idle", "1s").start().await?;
    let cookie = sign_in(&worker, OPERATOR).await?;
    // Looking on is no use.
    let open = stream(&worker, &cookie).await?;
    ends(open).await?;
    assert_eq!(status(&worker, &cookie).await?, 401);
    let bearer = format!("Bearer {OPERATOR}");
    let list = ask(&worker, "GET", "/api/v1/sessions", &[("authorization", &bearer)], None).await?;
    assert_eq!(list.body["sessions"], json!([]), "{}", list.text);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_taken_away_ends_its_sessions() -> Result<()> {
    const ANN: &str = "the-token-of-ann-in-this-test";
    const BOB: &str = "the-token-of-bob-in-this-test";
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("config.toml");
    let text = std::fs::read_to_string(sandbox.config_path())?;
    let configure = |tokens: &[(&str, &str, &str)]| {
        let tables = tokens.iter().map(|(name, role, token)| {
            format!("\n[[admin.tokens]]\nname = \"{name}\"\nrole = \"{role}\"\ntoken = \"{token}\"\n")
        });
        std::fs::write(&path, format!("{text}{}", tables.collect::<String>()))
    };
    configure(&[("ann", "operator", ANN), ("bob", "operator", BOB)])?;
    let mut worker = Worker::with_config(&path)
        .expect_error("the former tokens of the admin interface stay in force")
        .secret(ANN)
        .secret(BOB)
        .start()
        .await?;
    let (ann, bob) = (sign_in(&worker, ANN).await?, sign_in(&worker, BOB).await?);
    let open = [stream(&worker, &ann).await?, stream(&worker, &bob).await?];

    // Ann gets another token, Bob may only read from now on. Streams end: who may still look connects again.
    configure(&[("ann", "operator", "another-token-of-ann"), ("bob", "reader", BOB)])?;
    worker.signal(Signal::SIGHUP)?;
    for stream in open {
        ends(stream).await?;
    }
    assert_eq!(status(&worker, &ann).await?, 401);
    let answer = with(&worker, &bob, "GET", SESSION, None).await?;
    assert_eq!((&answer.body["role"], &answer.body["name"]), (&"reader".into(), &"bob".into()));
    let bearer = [("authorization", format!("Bearer {ANN}"))].map(|(name, value)| (name, value));
    let bearer: Vec<(&str, &str)> = bearer.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(ask(&worker, "GET", OVERVIEW, &bearer, None).await?.status, 401);

    // It doesn't come back with its token.
    configure(&[("ann", "operator", ANN), ("bob", "reader", BOB)])?;
    worker.signal(Signal::SIGHUP)?;
    eventually(SOON, "the token", || async {
        let answer = ask(&worker, "GET", OVERVIEW, &bearer, None).await?;
        ensure!(answer.status == 200, "{}", answer.text);
        Ok(())
    })
    .await?;
    assert_eq!(status(&worker, &ann).await?, 401);

    // Without tokens the interface would be open: that isn't taken.
    configure(&[])?;
    worker.signal(Signal::SIGHUP)?;
    worker.logs("the former tokens of the admin interface stay in force").await?;
    assert_eq!(ask(&worker, "GET", OVERVIEW, &[], None).await?.status, 401);
    assert_eq!(ask(&worker, "GET", OVERVIEW, &bearer, None).await?.status, 200);

    // Nor does a worker that starts with other tokens take it.
    assert_eq!(worker.stop().await?.code, Some(0));
    configure(&[("ann", "operator", "another-token-of-ann")])?;
    let mut worker = Worker::with_config(&path).start().await?;
    assert_eq!(status(&worker, &bob).await?, 401);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn without_redis_who_is_signed_in_may_look_and_tokens_go_on_working() -> Result<()> {
    let mut options = balance_sync_tests::options(1, 5);
    options.proxied = true;
    let sandbox = Sandbox::start(options).await?;
    let mut worker = builder(&sandbox, "one").set("redis.response_timeout", "500ms").start().await?;
    let description = crate::openapi::Description::of_bearer(&worker, OPERATOR).await?;
    let (cookie, other) = (sign_in(&worker, OPERATOR).await?, sign_in(&worker, OPERATOR).await?);
    assert_eq!(status(&worker, &cookie).await?, 200);
    sandbox.redis_proxy().context("no proxy")?.set(Fault::Closed).await;

    // The one was seen a moment ago, the other never.
    let path = format!("/api/v1/tenants/{}/actions", sandbox.tenants()[0].id);
    let flush = json!({"action": "flush"});
    eventually(SOON, "an action is refused", || async {
        let answer = with(&worker, &cookie, "POST", &path, Some(&flush)).await?;
        ensure!(
            answer.status == 503 && answer.text.contains("sessions are kept in Redis"),
            "{}",
            answer.text
        );
        description.fits("POST", "/api/v1/tenants/{id}/actions", &answer)
    })
    .await?;
    assert_eq!(status(&worker, &cookie).await?, 200);
    let own = [("x-balance-sync", "1")];
    let token = json!({"token": OPERATOR});
    for answer in [
        with(&worker, &other, "GET", OVERVIEW, None).await?,
        with(&worker, &cookie, "DELETE", SESSION, None).await?,
        ask(&worker, "POST", SESSION, &own, Some(&token)).await?,
    ] {
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(answer.text.contains("Redis") && answer.text.contains("Bearer"), "{}", answer.text);
        assert!(!answer.head.contains_key("set-cookie"), "{:?}", answer.head);
    }
    // A wrong token is wrong with and without Redis.
    assert_eq!(ask(&worker, "POST", SESSION, &own, Some(&json!({"token": "x"}))).await?.status, 401);
    let bearer = format!("Bearer {OPERATOR}");
    assert_eq!(ask(&worker, "GET", OVERVIEW, &[("authorization", &bearer)], None).await?.status, 200);
    assert_eq!(ask(&worker, "GET", SESSION, &[], None).await?.body["role"], "none");

    sandbox.redis_proxy().context("no proxy")?.set(Fault::Pass).await;
    eventually(SOON, "both are valid again", || async {
        ensure!(status(&worker, &other).await? == 200);
        let answer = with(&worker, &cookie, "POST", &path, Some(&flush)).await?;
        ensure!(answer.status == 202, "{}", answer.text);
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
