//! Least privilege: all system tests run under `deploy/redis/users.acl` and `deploy/postgres/grants.sql`. Here single rights
//! are taken away from a worker at work: the tenant's state names each, the log has it once, and it ends with the grant.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Producer};
use balance_sync_sandbox::{
    Isolation, Sandbox, SandboxOptions, SandboxTenant, WORKER_USER, balance_table, eventually,
};
use balance_sync_tests::ledger::{all_settled, comes_in_step, quarantine_key};
use balance_sync_tests::{SOON, Worker, WorkerBuilder, options, run};
use serde_json::Value;

use crate::api::json;

fn brisk(sandbox: &Sandbox) -> WorkerBuilder {
    Worker::of(sandbox)
        .set("worker.name", "one")
        .set("postgres.backoff_long", "2s")
        .set("collector.idle_backoff_max", "200ms")
}

pub(crate) async fn acl(sandbox: &Sandbox, rules: &[&str]) -> Result<()> {
    let mut cmd = redis::cmd("ACL");
    cmd.arg("SETUSER").arg(WORKER_USER).arg(rules);
    Ok(cmd.query_async(&mut sandbox.redis().connect().await?).await?)
}

/// Waits until the tenant is degraded for this reason, with these words.
async fn shows(worker: &Worker, tenant: &SandboxTenant, reason: &str, words: &str) -> Result<()> {
    eventually(SOON, &format!("{reason} with {words:?}"), || async {
        let shown = json(worker, &format!("/api/v1/tenants/{}", tenant.id)).await?;
        let text = shown.to_string();
        ensure!(text.contains(reason) && text.replace("\\\"", "\"").contains(words), "{shown}");
        Ok(())
    })
    .await
}

/// Lines of a tenant's degradation that hold these words.
fn reported(worker: &Worker, level: &str, words: &str) -> usize {
    let lines = worker.log().lines();
    lines
        .iter()
        .filter(|line| {
            let error = line.fields["error"].as_str().unwrap_or_default();
            line.level == level && line.message.starts_with("tenant") && error.contains(words)
        })
        .count()
}

async fn works(worker: &Worker, sandbox: &Sandbox, producer: &mut Producer) -> Result<()> {
    comes_in_step(sandbox, producer).await?;
    all_settled(sandbox).await?;
    eventually(SOON, "no degraded tenant", || async {
        let count = worker.metric("balance_sync_tenant_degraded", &[]).await?;
        ensure!(count == 0.0, "there are {count}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_missing_right_in_redis_is_named_once() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 20).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = brisk(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    works(&worker, &sandbox, &mut producer).await?;

    let fleet = "~{transactions}:balance-sync:*";
    let [schedule, balance, quarantine, lock] = ["schedule", "balance", "quarantine", "lock"]
        .map(|part| format!("~tenant:*:{part}:{{transactions}}*"));
    let balances = format!("~{}balance:{{transactions}}:*", tenant.keys.prefix());
    let entries = format!("~{}", quarantine_key(&tenant));
    for (without, with, words) in [
        (vec!["-zrange"], vec!["+zrange"], "missing: +zrange"),
        (vec!["-get", "-mget"], vec!["+get", "+mget"], "missing: +get +mget"),
        // Whole claims are settled by their scores, others by name.
        (
            vec!["-zrem", "-zremrangebyscore"],
            vec!["+zrem", "+zremrangebyscore"],
            "missing: +zrem +zremrangebyscore",
        ),
        (
            vec!["resetkeys", fleet, &schedule, &quarantine, &lock],
            vec![balance.as_str()],
            &format!("missing: {balances}"),
        ),
        (
            vec!["resetkeys", fleet, &schedule, &balance, &lock],
            vec![quarantine.as_str()],
            &format!("missing: {entries} "),
        ),
    ] {
        acl(&sandbox, &without).await.with_context(|| format!("{without:?}"))?;
        producer.mutate_each(DEFAULT_TTL).await?;
        shows(&worker, &tenant, "redis_permission", words).await?;
        // Tried again, and not reported again.
        let debug = reported(&worker, "DEBUG", words);
        eventually(SOON, "another try", || async {
            ensure!(reported(&worker, "DEBUG", words) > debug, "none");
            Ok(())
        })
        .await?;
        let warned = reported(&worker, "WARN", words);
        ensure!(warned == 1, "{words}: {warned} warnings");
        acl(&sandbox, &with).await?;
        works(&worker, &sandbox, &mut producer).await?;
    }
    // Claims in mode `lease` look for locks of the ledger's own worker where they may, and do without where they may not.
    acl(&sandbox, &["resetkeys", fleet, &schedule, &balance, &quarantine]).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    works(&worker, &sandbox, &mut producer).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_missing_right_to_the_channel_of_events_is_named_once() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    acl(&sandbox, &["resetchannels"]).await?;
    let mut worker = brisk(&sandbox)
        .set("tenants.events", "true")
        .set("tenants.environment", "production")
        .start()
        .await?;
    let line = worker.logs("tenant events can't be received, changes are noticed a poll later").await?;
    let error = line.fields["error"].as_str().unwrap_or_default();
    assert!(error.ends_with("missing: &tenant-events:production:"), "{error}");
    worker.logs("tenant events still can't be received").await?;
    let warnings = worker.log().lines().iter().filter(|other| other.message == line.message).count();
    assert_eq!(warnings, 1);
    acl(&sandbox, &["&tenant-events:*"]).await?;
    worker.logs("tenant events are received again").await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_missing_grant_in_postgres_is_named_once() -> Result<()> {
    let wanted = SandboxOptions { isolation: Isolation::Schema, ..options(1, 20) };
    let sandbox = Sandbox::start(wanted).await?;
    let tenant = sandbox.tenants().remove(0);
    let (table, role) = (balance_table(tenant.schema.as_deref()), tenant.role.clone());
    let schema = tenant.schema.clone().context("a schema")?;
    let mut worker = brisk(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    works(&worker, &sandbox, &mut producer).await?;

    for (right, object) in [
        ("UPDATE (version)", format!("\"{schema}\".balance")),
        ("SELECT (deleted_at)", format!("\"{schema}\".balance")),
        ("UPDATE (on_hold, updated_at)", format!("\"{schema}\".balance")),
        ("USAGE", format!("SCHEMA \"{schema}\"")),
    ] {
        let of = if right == "USAGE" { &object } else { &table };
        sandbox
            .postgres()
            .execute(&tenant.database, &format!("REVOKE {right} ON {of} FROM \"{role}\""))
            .await?;
        producer.mutate_each(DEFAULT_TTL).await?;
        let grant = format!("GRANT {right} ON {object} TO \"{role}\"");
        shows(&worker, &tenant, "postgres_permission", &grant).await.context(right)?;
        let debug = reported(&worker, "DEBUG", &grant);
        eventually(SOON, "another try", || async {
            ensure!(reported(&worker, "DEBUG", &grant) > debug, "none");
            Ok(())
        })
        .await?;
        let warned = reported(&worker, "WARN", &grant);
        ensure!(warned == 1, "{grant}: {warned} warnings");
        // What the state advises, word for word.
        sandbox.postgres().execute(&tenant.database, &grant).await?;
        works(&worker, &sandbox, &mut producer).await?;
    }
    // Without the amounts everything is written, and the log says once that they are not checked.
    let amounts = "SELECT (available, on_hold, overdraft_used)";
    sandbox
        .postgres()
        .execute(&tenant.database, &format!("REVOKE {amounts} ON {table} FROM \"{role}\""))
        .await?;
    for _ in 0..2 {
        producer.mutate_each(DEFAULT_TTL).await?;
        works(&worker, &sandbox, &mut producer).await?;
    }
    let lines = worker.log().lines();
    let unchecked =
        lines.iter().filter(|line| line.level == "WARN" && line.message.contains(amounts)).count();
    assert_eq!(unchecked, 1);
    // `verify` can't do without.
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let verify = run(&["verify", "--config", config], &[]).await?;
    assert_ne!(verify.code, Some(0), "{verify:?}");
    let grant = format!("GRANT {amounts} ON \"{schema}\".balance TO \"{role}\"");
    assert!(format!("{}{}", verify.stdout, verify.stderr).contains(&grant), "{verify:?}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// The second user of the file is enough for commands that only look.
#[tokio::test]
async fn commands_that_only_look_need_no_right_to_write() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let tenants = sandbox.tenants();
    let mut worker = brisk(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    works(&worker, &sandbox, &mut producer).await?;
    // One entry to be listed.
    let mut redis = sandbox.redis().connect().await?;
    let member = tenants[0].keys.member(&tenants[0].balances[0]);
    let schedule = tenants[0].keys.schedule();
    balance_sync_sandbox::ledger::put_raw(&mut redis, &schedule, member.as_bytes(), b"{}", Some(DEFAULT_TTL))
        .await?;
    worker.reaches("balance_sync_quarantine_entries", &[], 1.0).await?;

    let config = sandbox.config_path().to_str().context("a path of text")?;
    let (tenant, url) = (tenants[0].id.as_str(), sandbox.redis().reader_url());
    let look = async |args: &[&str]| {
        let args = [args, &["--config", config]].concat();
        run(&args, &[("BALANCE_SYNC__REDIS__URL", &url)]).await
    };
    for args in [
        &["status", "--json"][..],
        &["tenants", "--json"],
        &["workers", "--json"],
        &["quarantine", "list", "--json"],
        &["quarantine", "show", "--tenant", tenant, &member],
        &["verify", "--json"],
        &["why", &member, "--json"],
    ] {
        let answer = look(args).await?;
        let text = format!("{}{}", answer.stdout, answer.stderr);
        ensure!(
            answer.code.is_some() && !text.contains("NOPERM") && !text.contains("can't run"),
            "{args:?}: {answer:?}"
        );
        ensure!(!answer.stdout.is_empty(), "{args:?}: {answer:?}");
        if args.contains(&"--json") {
            serde_json::from_str::<Value>(&answer.stdout).with_context(|| format!("{args:?}: {answer:?}"))?;
        }
    }
    let refused = look(&["quarantine", "drop", "--tenant", tenant, &member]).await?;
    assert_ne!(refused.code, Some(0));
    let text = format!("{}{}", refused.stdout, refused.stderr);
    assert!(text.contains("missing: ") && text.contains("+hdel"), "{refused:?}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
