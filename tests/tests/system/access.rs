//! Who may look, who may act, and what is never shown.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_sandbox::{balance_table, eventually};
use balance_sync_tests::{SOON, Worker, run};
use serde_json::json;

use crate::api::{ask, texts};

const READ: &str = "read-token-of-this-test";
const OPERATOR: &str = "operator-token-of-this-test";

async fn with_tokens(sandbox: &balance_sync_sandbox::Sandbox) -> Result<Worker> {
    Worker::of(sandbox)
        .set("worker.name", "one")
        .set("admin.read_token", READ)
        .set("admin.operator_token", OPERATOR)
        .secret(READ)
        .secret(OPERATOR)
        .start()
        .await
}

#[tokio::test]
async fn tokens_decide_who_may_look_and_who_may_act() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let mut worker = with_tokens(&sandbox).await?;
    let tenant = sandbox.tenants()[0].id.clone();
    let bearer = |token: &str| format!("Bearer {token}");
    let (read, operator) = (bearer(READ), bearer(OPERATOR));
    let action = format!("/api/v1/tenants/{tenant}/actions");
    let flush = json!({"action": "flush"});

    // Health is for orchestrators, which have no token.
    for path in ["/livez", "/readyz"] {
        assert_eq!(ask(&worker, "GET", path, &[], None).await?.status, 200);
    }
    for path in [
        "/metrics",
        "/api/v1/overview",
        "/api/v1/tenants",
        "/api/v1/quarantine",
        "/api/v1/events",
        "/api/v1/nowhere",
    ] {
        let answer = ask(&worker, "GET", path, &[], None).await?;
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.head["www-authenticate"], "Bearer realm=\"balance-sync\"");
        assert_eq!(answer.body["title"], "Token needed", "{path}: {}", answer.text);
        let wrong = [("authorization", "Bearer read-token-of-this-tesT")];
        assert_eq!(ask(&worker, "GET", path, &wrong, None).await?.status, 401, "{path}");
        let wanted = if path.ends_with("nowhere") { 404 } else { 200 };
        if !path.ends_with("events") {
            assert_eq!(
                ask(&worker, "GET", path, &[("authorization", &read)], None).await?.status,
                wanted,
                "{path}"
            );
        }
    }
    // A reader looks and doesn't act; no action is taken from a foreign page.
    for (headers, status) in [
        (vec![], 401),
        (vec![("authorization", read.as_str())], 403),
        (vec![("authorization", read.as_str()), ("x-balance-sync", "1")], 403),
        (vec![("authorization", operator.as_str())], 202),
    ] {
        let answer = ask(&worker, "POST", &action, &headers, Some(&flush)).await?;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text);
    }

    // In a browser: the cookie of a session.
    let own = [("x-balance-sync", "1")];
    let answer = ask(&worker, "GET", "/api/v1/session", &[], None).await?;
    assert_eq!((&answer.body["role"], &answer.body["auth_required"]), (&"none".into(), &true.into()));
    let wrong = ask(&worker, "POST", "/api/v1/session", &own, Some(&json!({"token": "wrong"}))).await?;
    assert!(wrong.status == 401 && !wrong.head.contains_key("set-cookie"), "{}", wrong.text);
    let foreign = ask(&worker, "POST", "/api/v1/session", &[], Some(&json!({"token": OPERATOR}))).await?;
    assert_eq!(foreign.status, 403, "{}", foreign.text);
    let session = ask(&worker, "POST", "/api/v1/session", &own, Some(&json!({"token": OPERATOR}))).await?;
    assert_eq!((session.status, &session.body["role"]), (200, &"operator".into()), "{}", session.text);
    let cookie = session.head["set-cookie"].to_str()?;
    assert!(cookie.contains("; HttpOnly; SameSite=Strict") && cookie.contains("Path=/"), "{cookie}");
    let cookie = cookie.split(';').next().context("no cookie")?.to_owned();
    assert_eq!(ask(&worker, "GET", "/api/v1/overview", &[("cookie", &cookie)], None).await?.status, 200);
    let answer = ask(&worker, "POST", &action, &[("cookie", &cookie)], Some(&flush)).await?;
    assert_eq!((answer.status, &answer.body["field"]), (403, &"x-balance-sync".into()), "{}", answer.text);
    let with_cookie = [("cookie", cookie.as_str()), ("x-balance-sync", "1")];
    assert_eq!(ask(&worker, "POST", &action, &with_cookie, Some(&flush)).await?.status, 202);
    let out = ask(&worker, "DELETE", "/api/v1/session", &with_cookie, None).await?;
    assert!(out.head["set-cookie"].to_str()?.contains("Max-Age=0"), "{:?}", out.head);

    // Who did it is in the log, by the name of the token and not by the token.
    let log = ask(&worker, "GET", "/api/v1/actions", &[("authorization", &read)], None).await?;
    assert_eq!(texts(&log.body["actions"], "by"), ["operator_token", "operator_token"]);
    assert!(!log.text.contains(OPERATOR));
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn without_tokens_a_foreign_name_is_not_served() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let mut worker = Worker::of(&sandbox).start().await?;
    let answer = ask(&worker, "GET", "/api/v1/overview", &[("host", "evil.example")], None).await?;
    assert_eq!((answer.status, &answer.body["field"]), (403, &"host".into()), "{}", answer.text);
    assert_eq!(ask(&worker, "GET", "/livez", &[("host", "evil.example")], None).await?.status, 200);
    let path = format!("/api/v1/tenants/{}/actions", sandbox.tenants()[0].id);
    let answer = ask(&worker, "POST", &path, &[], Some(&json!({"action": "pause"}))).await?;
    assert_eq!((answer.status, &answer.body["field"]), (403, &"x-balance-sync".into()), "{}", answer.text);
    let session = ask(&worker, "GET", "/api/v1/session", &[], None).await?;
    assert_eq!((&session.body["role"], &session.body["auth_required"]), (&"operator".into(), &false.into()));
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_reader_sees_no_amounts_and_no_user_a_secret() -> Result<()> {
    const AMOUNT: &str = "77123456789.5x";
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let mut worker = with_tokens(&sandbox).await?;
    let tenant = sandbox.tenants()[0].clone();
    let balance = &tenant.balances[0];
    let member = tenant.keys.member(balance);
    let value = balance.json(9).replace(&balance.amounts(9).available, AMOUNT);
    let mut redis = sandbox.redis().connect().await?;
    put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL))
        .await?;
    let (read, operator) = (format!("Bearer {READ}"), format!("Bearer {OPERATOR}"));
    let list = "/api/v1/quarantine";
    eventually(SOON, "an entry in quarantine", || async {
        let answer = ask(&worker, "GET", list, &[("authorization", &operator)], None).await?;
        ensure!(answer.body["total"] == 1, "{}", answer.text);
        ensure!(answer.body["entries"][0]["has_value"] == true, "{}", answer.text);
        Ok(())
    })
    .await?;
    let encoded: String = url::form_urlencoded::byte_serialize(member.as_bytes()).collect();
    let entry = format!("/api/v1/quarantine/entry?tenant={}&member={encoded}", tenant.id);
    let shown = ask(&worker, "GET", &entry, &[("authorization", &operator)], None).await?;
    assert!(shown.body["value"].as_str().is_some_and(|value| value.contains(AMOUNT)), "{}", shown.text);
    assert_eq!(
        (&shown.body["amounts_hidden"], &shown.body["member"]),
        (&false.into(), &member.as_str().into())
    );
    for path in [
        entry.as_str(),
        list,
        "/api/v1/overview",
        "/api/v1/tenants",
        &format!("/api/v1/tenants/{}", tenant.id),
        "/api/v1/workers",
        "/metrics",
    ] {
        let answer = ask(&worker, "GET", path, &[("authorization", &read)], None).await?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        assert!(!answer.text.contains("77123456789"), "{path} shows an amount: {}", answer.text);
        for token in [&read, &operator] {
            let text = ask(&worker, "GET", path, &[("authorization", token)], None).await?.text;
            let mut secrets = vec![READ.to_owned(), OPERATOR.to_owned()];
            secrets.extend(balance_sync_tests::worker::password_in(&sandbox.redis().url()));
            secrets.extend(
                sandbox
                    .tenants()
                    .iter()
                    .filter_map(|t| balance_sync_tests::worker::password_in(t.database_url())),
            );
            for secret in secrets {
                assert!(!text.contains(&secret), "{path} shows a secret");
            }
        }
    }
    let hidden = ask(&worker, "GET", &entry, &[("authorization", &read)], None).await?;
    assert_eq!(
        (&hidden.body["value"], &hidden.body["amounts_hidden"]),
        (&serde_json::Value::Null, &true.into())
    );

    // Retried, it comes back; dropped, it is gone.
    for (what, words) in [("retry", "scheduled again"), ("drop", "forgotten")] {
        let body = json!({"tenant": tenant.id, "members": [member, "not-there"]});
        let path = format!("/api/v1/quarantine/{what}");
        assert_eq!(ask(&worker, "POST", &path, &[("authorization", &read)], Some(&body)).await?.status, 403);
        let answer = eventually(SOON, what, || async {
            let answer = ask(&worker, "POST", &path, &[("authorization", &operator)], Some(&body)).await?;
            ensure!(answer.status == 200 && answer.body["done"] == 1, "{}", answer.text);
            Ok(answer)
        })
        .await?;
        assert_eq!(answer.body["absent"], 1, "{}", answer.text);
        let log = ask(&worker, "GET", "/api/v1/actions", &[("authorization", &read)], None).await?;
        assert_eq!(log.body["actions"][0]["what"], format!("quarantine_{what}"));
        assert!(texts(&log.body["actions"][0]["outcomes"], "detail")[0].contains(words), "{}", log.text);
        if what == "retry" {
            eventually(SOON, "back in quarantine", || async {
                let answer = ask(&worker, "GET", &entry, &[("authorization", &read)], None).await?;
                ensure!(answer.body["count"] == 2, "{}", answer.text);
                Ok(())
            })
            .await?;
        }
    }
    for (body, field) in [
        (json!({}), "all"),
        (json!({"members": ["x"]}), "tenant"),
        (json!({"tenant": tenant.id, "members": []}), "members"),
        (json!({"tenant": tenant.id, "members": ["x"], "all": true}), "members"),
    ] {
        let answer =
            ask(&worker, "POST", "/api/v1/quarantine/drop", &[("authorization", &operator)], Some(&body))
                .await?;
        assert_eq!((answer.status, &answer.body["field"]), (400, &field.into()), "{body}: {}", answer.text);
    }
    let answer = ask(
        &worker,
        "POST",
        "/api/v1/quarantine/drop",
        &[("authorization", &operator)],
        Some(&json!({"all": true})),
    )
    .await?;
    assert_eq!((answer.status, &answer.body["done"]), (200, &0.into()), "{}", answer.text);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// A trigger may put amounts into what it raises, of one row or of every one.
#[tokio::test]
async fn a_reader_sees_no_amounts_in_what_a_trigger_raises() -> Result<()> {
    const AMOUNT: &str = "77123456789.5";
    let sandbox = balance_sync_tests::sandbox(2, 20).await?;
    let [one, every] = [0, 1].map(|at| sandbox.tenants()[at].clone());
    for (tenant, condition) in [(&one, format!("NEW.available = {AMOUNT}")), (&every, "true".to_owned())] {
        let sql = format!(
            "UPDATE {table} SET available = {AMOUNT} WHERE {all}; \
             CREATE FUNCTION \"{schema}\".judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               RAISE WARNING 'about % and %', OLD.available, NEW.available; \
               IF {condition} THEN RAISE EXCEPTION 'limit of % exceeded by %', OLD.available, NEW.available; END IF; \
               RETURN NEW; END $$; \
             CREATE TRIGGER judge BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION \"{schema}\".judge()",
            table = balance_table(tenant.schema.as_deref()),
            schema = tenant.schema.as_deref().unwrap_or("public"),
            all = tenant.id == every.id,
        );
        sandbox.postgres().execute(&tenant.database, &sql).await?;
    }
    let mut worker = with_tokens(&sandbox).await?;
    // Neither in the log.
    worker.hide("77123456789");
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    let balance = &one.balances[0];
    let member = one.keys.member(balance);
    let value = balance.json(9).replace(&balance.amounts(9).available, AMOUNT);
    let mut redis = sandbox.redis().connect().await?;
    put_raw(&mut redis, &one.keys.schedule(), member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL)).await?;

    let (read, operator) = (format!("Bearer {READ}"), format!("Bearer {OPERATOR}"));
    let as_reader = [("authorization", read.as_str())];
    let encode =
        |member: &str| -> String { url::form_urlencoded::byte_serialize(member.as_bytes()).collect() };
    let entry = format!("/api/v1/quarantine/entry?tenant={}&member={}", one.id, encode(&member));
    eventually(SOON, "a balance in quarantine and a tenant that takes none", || async {
        let answer = ask(&worker, "GET", &entry, &[("authorization", &operator)], None).await?;
        ensure!(
            answer.body["detail"]
                .as_str()
                .is_some_and(|words| words.contains(&format!("exceeded by {AMOUNT}"))),
            "{}",
            answer.text
        );
        let path = format!("/api/v1/tenants/{}", every.id);
        let answer = ask(&worker, "GET", &path, &as_reader, None).await?;
        ensure!(answer.body["reason"] == "postgres_refuses_every_row", "{}", answer.text);
        ensure!(
            answer.body["detail"].as_str().is_some_and(|words| words.contains("limit of … exceeded by …")),
            "{}",
            answer.text
        );
        Ok(())
    })
    .await?;
    let of_every = every.keys.member(&every.balances[0]);
    for path in [
        entry.as_str(),
        "/api/v1/quarantine",
        "/api/v1/overview",
        "/api/v1/tenants",
        &format!("/api/v1/tenants/{}", one.id),
        &format!("/api/v1/tenants/{}", every.id),
        &format!("/api/v1/why?member={}", encode(&member)),
        &format!("/api/v1/why?member={}", encode(&of_every)),
        "/api/v1/workers",
        "/api/v1/actions",
        "/metrics",
    ] {
        let answer = ask(&worker, "GET", path, &as_reader, None).await?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        assert!(!answer.text.contains("77123456789"), "{path} shows an amount: {}", answer.text);
    }
    let config = sandbox.config_path().to_str().context("no path")?.to_owned();
    for command in [
        vec!["why", &member, "--hide-amounts"],
        vec!["why", &of_every, "--hide-amounts"],
        vec!["status"],
        vec!["tenants", "show", &every.id],
    ] {
        let done = run(&[command.as_slice(), &["--config", &config]].concat(), &[]).await?;
        assert!(!format!("{done:?}").contains("77123456789"), "{command:?}: {done:?}");
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn bodies_are_small_json_and_not_quoted_back() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let mut worker = with_tokens(&sandbox).await?;
    let own = [("x-balance-sync", "1")];
    let big = json!({"token": "x".repeat(2 * 1024 * 1024)});
    assert_eq!(ask(&worker, "POST", "/api/v1/session", &own, Some(&big)).await?.status, 413);
    let secret = json!({"token": "a-secret-nobody-may-see", "more": 1});
    let answer = ask(&worker, "POST", "/api/v1/session", &own, Some(&secret)).await?;
    assert!(answer.status == 400 && !answer.text.contains("a-secret"), "{}", answer.text);
    let form = [("x-balance-sync", "1"), ("content-type", "text/plain")];
    let answer = ask(&worker, "POST", "/api/v1/session", &form, None).await?;
    assert_eq!((answer.status, &answer.body["field"]), (400, &"content-type".into()), "{}", answer.text);
    worker.hide("a-secret-nobody-may-see");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_token() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 1).await?;
    let config = sandbox.config_path().to_str().context("no path")?.to_owned();
    let check = async |variables: &[(&str, &str)]| {
        let names: Vec<String> =
            variables.iter().map(|(name, _)| format!("BALANCE_SYNC__ADMIN__{name}")).collect();
        let variables: Vec<(&str, &str)> =
            names.iter().zip(variables).map(|(name, (_, value))| (name.as_str(), *value)).collect();
        run(&["check", "--config", &config], &variables).await
    };
    let refused = check(&[("LISTEN", "0.0.0.0:8090")]).await?;
    assert_ne!(refused.code, Some(0));
    assert!(
        refused.stderr.contains("admin.listen") && refused.stderr.contains("admin.operator_token"),
        "{}",
        refused.stderr
    );
    let taken = check(&[("LISTEN", "0.0.0.0:8090"), ("OPERATOR_TOKEN", OPERATOR)]).await?;
    assert_eq!(taken.code, Some(0), "{}", taken.stderr);
    assert!(!taken.stdout.contains(OPERATOR) && taken.stdout.contains("operator_token"), "{}", taken.stdout);
    for (name, value, words) in [
        ("OPERATOR_TOKEN", "short", "at least 16"),
        ("READ_TOKEN", "with blanks in the token", "visible ASCII"),
    ] {
        let refused = check(&[(name, value)]).await?;
        assert_ne!(refused.code, Some(0));
        assert!(refused.stderr.contains(words) && !refused.stderr.contains(value), "{}", refused.stderr);
    }
    let same = check(&[("READ_TOKEN", OPERATOR), ("OPERATOR_TOKEN", OPERATOR)]).await?;
    assert!(same.code != Some(0) && same.stderr.contains("another one"), "{}", same.stderr);
    Ok(())
}
