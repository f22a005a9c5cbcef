//! Text from outside that would act on a terminal: names, reasons and errors of Redis, of Postgres and of other workers pass
//! through every command and the log, and neither move a cursor nor begin a line.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxTenant, balance_table, eventually};
use balance_sync_tests::ledger::{comes_in_step, is_settled, quarantine_key};
use balance_sync_tests::{SOON, Worker, options, run};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What stands in every name, reason and error. Line ends, escape sequences in both forms, a title, direction, invisible.
const HOSTILE: &str = "x\nFORGED\r\x1b[2J\x1b[31m\x1b]0;t\x07\u{9b}2J\u{85}\u{2028}\u{202e}\u{200b}y";
/// An amount that no log may have.
const AMOUNT: &str = "7341.9926";

/// Fails where a character acts on a terminal or a line is forged.
fn is_harmless(what: &str, text: &str) -> Result<()> {
    let acts = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if let Some(found) = text.chars().find(|c| acts(*c)) {
        bail!("{what} prints {found:?}: {text:?}");
    }
    ensure!(
        !text.lines().any(|line| line.trim_start().starts_with("FORGED")),
        "{what} forges a line: {text}"
    );
    Ok(())
}

/// A worker beside the real one that publishes hostile text wherever its records hold text.
async fn publish_ghost(redis: &mut MultiplexedConnection, tenants: &[SandboxTenant]) -> Result<()> {
    let found: Vec<String> = redis::cmd("KEYS").arg("*worker-1:*:w-1").query_async(redis).await?;
    let [real] = found.as_slice() else { bail!("one worker publishes: {found:?}") };
    let index = real.strip_suffix(":w-1").context("the list of workers")?;
    let mut records: HashMap<String, String> = redis::cmd("HGETALL").arg(real).query_async(redis).await?;
    let mut worker: Value = serde_json::from_str(&records["worker"])?;
    for field in ["name", "version", "configured_name", "address"] {
        if worker.get(field).is_some() || field == "version" {
            worker[field] = json!(HOSTILE);
        }
    }
    for field in worker["tenant_service"].as_object_mut().into_iter().flat_map(|service| service.values_mut())
    {
        if field.is_string() {
            *field = json!(HOSTILE);
        }
    }
    records.insert("worker".to_owned(), worker.to_string());
    for tenant in tenants {
        let record = records.get_mut(&format!("t:{}", tenant.id)).context("the record of a tenant")?;
        let mut changed: Value = serde_json::from_str(record)?;
        changed["state"] = json!(HOSTILE);
        changed["reason"] = json!(HOSTILE);
        changed["detail"] = json!(HOSTILE);
        *record = changed.to_string();
    }
    let ghost = format!("{index}:{}", HOSTILE.replace(':', ""));
    let mut copy = redis::cmd("HSET");
    copy.arg(&ghost);
    for (field, record) in &records {
        copy.arg(field).arg(record);
    }
    copy.query_async::<()>(redis).await?;
    let changes = format!("{ghost}|changes");
    for tenant in tenants {
        redis::cmd("ZADD").arg(&changes).arg(1).arg(&tenant.id).query_async::<()>(redis).await?;
    }
    redis::cmd("ZADD").arg(index).arg("9e9").arg(HOSTILE).query_async::<()>(redis).await?;
    Ok(())
}

/// Whatever may come from elsewhere: members, values, entries, rows, triggers, actions, paused tenants and a worker.
async fn plant(sandbox: &Sandbox, tenants: &[SandboxTenant]) -> Result<String> {
    let mut redis = sandbox.redis().connect().await?;
    let (odd, refusing) = (&tenants[0], &tenants[1]);
    let mut member = String::new();
    for (n, value) in [format!("{HOSTILE} {AMOUNT}"), format!("{{\"ID\":\"{AMOUNT}\"}}")].iter().enumerate() {
        let balance = &odd.balances[n];
        let name = odd.keys.member(balance).replace(&balance.alias, &format!("{HOSTILE}{n}"));
        put_raw(&mut redis, &odd.keys.schedule(), name.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL))
            .await?;
        if n == 0 {
            member = name;
        }
    }
    let entry = json!({
        "reason": HOSTILE, "detail": HOSTILE, "value": HOSTILE, "first_at": HOSTILE, "last_at": HOSTILE, "count": 1,
    });
    redis::cmd("HSET")
        .arg(quarantine_key(odd))
        .arg(HOSTILE)
        .arg(entry.to_string())
        .query_async::<()>(&mut redis)
        .await?;
    let loss = json!({ "tenant": HOSTILE, "by": HOSTILE, "at": 1.0, "note": HOSTILE });
    redis::cmd("HSET")
        .arg("{transactions}:balance-sync:paused")
        .arg(tenants[2].keys.schedule())
        .arg(loss.to_string())
        .query_async::<()>(&mut redis)
        .await?;
    let mut action = redis::cmd("XADD");
    action.arg("{transactions}:balance-sync:actions").arg("*").arg("kind").arg("action");
    for field in ["what", "tenant", "key", "worker", "by", "note"] {
        action.arg(field).arg(HOSTILE);
    }
    let id: String = action.query_async(&mut redis).await?;
    let mut outcome = redis::cmd("XADD");
    outcome
        .arg("{transactions}:balance-sync:actions")
        .arg("*")
        .arg("kind")
        .arg("outcome")
        .arg("action")
        .arg(id);
    for field in ["worker", "outcome", "detail"] {
        outcome.arg(field).arg(HOSTILE);
    }
    outcome.query_async::<()>(&mut redis).await?;

    let table = balance_table(odd.schema.as_deref());
    let pool = sandbox.pool(odd);
    sqlx::query(sqlx::AssertSqlSafe(format!("UPDATE {table} SET alias = $1 WHERE id = $2")))
        .bind(format!("{HOSTILE}0"))
        .bind(odd.balances[0].id)
        .execute(&pool)
        .await?;
    let table = balance_table(refusing.schema.as_deref());
    let pool = sandbox.pool(refusing);
    for statement in [
        format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
             $$BEGIN RAISE NOTICE E'{HOSTILE} {AMOUNT}'; RAISE EXCEPTION E'{HOSTILE} {AMOUNT}'; END$$"
        ),
        format!("CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"),
    ] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&pool).await?;
    }
    Ok(member)
}

#[tokio::test]
async fn text_from_outside_acts_on_no_terminal_and_forges_no_line() -> Result<()> {
    let mut options = options(3, 4);
    options.isolation = Isolation::Database;
    let sandbox = Sandbox::start(options).await?;
    let tenants = sandbox.tenants();
    let member = plant(&sandbox, &tenants).await?;
    let mut worker = Worker::of(&sandbox)
        .set("worker.name", "w-1")
        .set("collector.idle_backoff_max", "100ms")
        .expect_error("")
        .start()
        .await?;
    sandbox.producer().mutate(1, &[0, 1], DEFAULT_TTL).await?;
    let mut redis = sandbox.redis().connect().await?;
    for (tenant, entries) in [(&tenants[0], 3), (&tenants[1], 1)] {
        eventually(SOON, "quarantined balances, or a degraded tenant", async || {
            let mut redis = sandbox.redis().connect().await?;
            let found: usize = redis::cmd("HLEN").arg(quarantine_key(tenant)).query_async(&mut redis).await?;
            let (_, shown) = worker.get(&format!("/api/v1/tenants/{}", tenant.id)).await?;
            ensure!(found >= entries || shown.contains("FORGED"), "{found} entries, {shown}");
            Ok(())
        })
        .await?;
    }
    publish_ghost(&mut redis, &tenants).await?;

    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let (odd, refusing) = (tenants[0].id.as_str(), tenants[1].id.as_str());
    let alias = format!("{HOSTILE}0");
    let month = "2026-11";
    let folder = tempfile::tempdir()?;
    let (key, statement) = (folder.path().join("key"), folder.path().join("statement"));
    let key = key.to_str().context("a path of text")?;
    let statement = statement.to_str().context("a path of text")?;
    ensure!(run(&["handover", "keygen", key], &[]).await?.code == Some(0), "no key");
    let commands: &[&[&str]] = &[
        &["status"],
        &["tenants"],
        &["tenants", "show", odd],
        &["tenants", "show", refusing],
        &["tenants", "show", &tenants[2].id],
        &["tenants", "flush", odd, "--wait", "1"],
        &["why", &member],
        &["why", "--tenant", odd, "--alias", &alias],
        &["why", "--tenant", odd, "--alias", "absent"],
        &["workers"],
        &["actions"],
        &["verify"],
        &["audit", "--without-trail"],
        &["recover"],
        &["report", "--month", month],
        &["check", "--connect"],
        &["quarantine", "list"],
        &["timeline", odd],
        &["history"],
        &["rollout", "status"],
        &["rollout", "history"],
        &["retire", "--all", "--plan"],
        &["sessions", "list"],
        &["handover", "--tenant", odd, "--key", key, "--out", statement, "--note", HOSTILE, "--drain", "1"],
    ];
    let mut printed = 0;
    for &command in commands {
        for json in [false, true] {
            let mut args = [command, &["--config", &config]].concat();
            if json {
                args.push("--json");
            }
            let what = format!("{} {}", command[0], if json { "--json" } else { "" });
            let done = run(&args, &[]).await?;
            ensure!(!done.stderr.contains("unexpected argument"), "{what}: {}", done.stderr);
            is_harmless(&what, &done.stdout)?;
            is_harmless(&format!("{what}, standard error"), &done.stderr)?;
            printed += usize::from(done.stdout.contains("FORGED"));
        }
    }
    for command in [["quarantine", "list", "--csv"].as_slice(), &["tenants", "--csv"]] {
        let done = run(&[command, &["--config", &config]].concat(), &[]).await?;
        ensure!(done.stdout.contains("\r\n"), "{done:?}");
        is_harmless(&command.join(" "), &done.stdout.replace("\r\n", "\n"))?;
    }
    assert!(printed >= 14, "hostile text got as far as {printed} outputs only");

    let listed = run(&["quarantine", "list", "--config", &config, "--tenant", odd, "--json"], &[]).await?;
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout)?;
    ensure!(listed.iter().any(|entry| entry["member"] == member.as_str()), "{listed:?}");
    for entry in &listed {
        let name = entry["member"].as_str().context("a name")?;
        // As JSON has it, and as the list for people shows it.
        let escaped = serde_json::to_string(name)?;
        for name in [name, HOSTILE, escaped.trim_matches('"')] {
            for command in [vec!["show", name], vec!["show", name, "--json"], vec!["retry", name]] {
                let done =
                    run(&[&["quarantine"], &command[..], &["--config", &config]].concat(), &[]).await?;
                is_harmless(&format!("quarantine {}", command[0]), &done.stdout)?;
                is_harmless(&format!("quarantine {}, standard error", command[0]), &done.stderr)?;
            }
        }
    }
    let shown = run(&["quarantine", "show", "no\x1b[2J\nFORGED", "--config", &config], &[]).await?;
    assert_eq!(shown.code, Some(2));
    is_harmless("an error", &shown.stderr)?;

    worker.stop().await?;
    for line in worker.log().raw() {
        is_harmless("the log", &line)?;
        ensure!(!line.contains(AMOUNT), "an amount is in the log: {line}");
    }
    ensure!(worker.log().raw().iter().any(|line| line.contains("FORGED")), "the log has none of it");
    Ok(())
}

/// A server that begins a login and then sends notices for ever; it stops when its listener is dropped with the test.
async fn endless_server() -> Result<u16> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                // Whatever the severity: no level of the log shows it.
                let body = format!("SERROR\0VERROR\0C00000\0M{HOSTILE} {AMOUNT}{}\0\0", "n".repeat(900));
                let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
                let notice = [b"N".as_slice(), &length.to_be_bytes(), body.as_bytes()].concat();
                let mut request = [0; 1024];
                // The start-up message comes in one piece.
                let _ = socket.read(&mut request).await;
                for _ in 0..1_000_000 {
                    if socket.write_all(&notice).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(port)
}

#[tokio::test]
async fn a_tenant_whose_server_sends_notices_for_ever_affects_no_other() -> Result<()> {
    let mut options = options(2, 20);
    options.isolation = Isolation::Database;
    let sandbox = Sandbox::start(options).await?;
    let tenants = sandbox.tenants();
    let (hostile, other) = (&tenants[0], &tenants[1]);
    let right = sandbox.service().tenant(&hostile.id).context("the tenant's record")?;
    let port = endless_server().await?;
    sandbox
        .service()
        .update(&hostile.id, |record| (record.host, record.port) = ("127.0.0.1".to_owned(), port));
    let mut worker = Worker::of(&sandbox)
        // One thread for both.
        .set("supervisor.threads", "1")
        .set("postgres.backoff_max", "200ms")
        .set("postgres.backoff_long", "200ms")
        .set("tenants.service.settings_ttl", "300ms")
        .set("log.level", "trace,sqlx::postgres::notice=trace,h2=off,hyper=off")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    let labels = [("tenant_id", hostile.id.as_str()), ("reason", "postgres_excess")];
    worker.reaches("balance_sync_tenant_degraded", &labels, 1.0).await?;
    // The other is written, again and again, and probes answer.
    for _ in 0..3 {
        producer.mutate(1, &[0, 1, 2], DEFAULT_TTL).await?;
        eventually(SOON, "the other tenant's rows", || is_settled(&sandbox, other)).await?;
        assert_eq!((worker.get("/livez").await?.0, worker.get("/readyz").await?.0), (200, 200));
    }
    let (_, shown) = worker.get(&format!("/api/v1/tenants/{}", hostile.id)).await?;
    ensure!(shown.contains("sent more than 524288 bytes before the login was complete"), "{shown}");
    for line in worker.log().raw() {
        ensure!(!line.contains("FORGED") && !line.contains(AMOUNT), "a notice is in the log: {line}");
    }

    sandbox.service().update(&hostile.id, |record| *record = right);
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
