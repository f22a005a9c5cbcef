//! `recover`: what Redis has lost and the trail has is restored exactly, and the rest is listed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{
    DEFAULT_TTL, SEED_VERSION, SeededBalance, TenantKeys, write_operations, write_repayments,
};
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table, eventually};
use balance_sync_tests::ledger::{losses_key, row, rows, scores};
use balance_sync_tests::{Finished, SOON, Worker, run, run_within};
use redis::AsyncCommands;
use serde_json::Value;

/// The version that Redis held when it was killed.
const LOST: i64 = 3;

/// Longest time of one recovery: of 100,000 balances with an unoptimised build, beside other tests.
const RECOVERS_WITHIN: Duration = Duration::from_secs(600);

/// The balances that a recovery would write, those it leaves, and its summary.
struct Recovery {
    code: Option<i32>,
    planned: BTreeSet<String>,
    left: BTreeSet<String>,
    summary: Value,
}

async fn recover(sandbox: &Sandbox, args: &[&str]) -> Result<Recovery> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let args = [&["recover", "--config", config, "--json"], args].concat();
    let done = run_within(RECOVERS_WITHIN, &args, &[]).await?;
    read(&done).with_context(|| format!("{done:?}"))
}

fn read(done: &Finished) -> Result<Recovery> {
    let mut recovery =
        Recovery { code: done.code, planned: BTreeSet::new(), left: BTreeSet::new(), summary: Value::Null };
    for line in done.stdout.lines() {
        let mut line: Value = serde_json::from_str(line)?;
        let member = |finding: &Value| finding["member"].as_str().unwrap_or_default().to_owned();
        if line["plan"].is_object() {
            recovery.planned.insert(member(&line["plan"]["finding"]));
        } else if line["left"].is_object() {
            ensure!(line["left"]["advice"].as_str().is_some_and(|advice| !advice.is_empty()), "{line}");
            recovery.left.insert(member(&line["left"]));
        } else if line["summary"].is_object() {
            recovery.summary = line["summary"].take();
        }
    }
    ensure!(recovery.summary.is_object(), "no summary");
    Ok(recovery)
}

async fn operations(
    sandbox: &Sandbox,
    tenant: &SandboxTenant,
    operations: &[(&SeededBalance, i64)],
) -> Result<()> {
    let pool = sandbox.pool(tenant);
    let written = write_operations(&pool, tenant.schema.as_deref(), operations).await;
    pool.close().await;
    written
}

#[expect(clippy::print_stderr, reason = "a figure for the documents")]
async fn killed_with(balances: usize) -> Result<()> {
    /// Of each tenant so many have no operation in Postgres.
    const WITHOUT: usize = 10;
    /// The newest operation of so many of the others repaid an overdraft.
    const REPAID: usize = 100;
    let sandbox = balance_sync_tests::sandbox(2, balances / 2).await?;
    let tenants = sandbox.tenants();
    // No worker runs, so all is dirty.
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let (mut exact, mut doubtful) = (BTreeSet::new(), BTreeSet::new());
    for tenant in &tenants {
        let (repaid, known) = tenant.balances[WITHOUT..].split_at(REPAID);
        for page in known.chunks(20_000) {
            let both =
                page.iter().flat_map(|balance| [(balance, LOST - 1), (balance, LOST)]).collect::<Vec<_>>();
            operations(&sandbox, tenant, &both).await?;
        }
        let pool = sandbox.pool(tenant);
        let last: Vec<_> = repaid.iter().map(|balance| (balance, LOST)).collect();
        write_repayments(&pool, tenant.schema.as_deref(), &last).await?;
        pool.close().await;
        exact.extend(known.iter().map(|balance| tenant.keys.member(balance)));
        doubtful.extend(repaid.iter().map(|balance| tenant.keys.member(balance)));
    }
    sandbox.redis().kill()?;
    sandbox.redis().start_again().await?;
    let nothing_written = async || -> Result<()> {
        for tenant in &tenants {
            let rows = rows(&sandbox, tenant).await?;
            ensure!(rows.values().all(|row| row.version == SEED_VERSION), "rows were written");
        }
        Ok(())
    };

    let plan = recover(&sandbox, &[]).await?;
    assert_eq!((plan.code, &plan.planned, &plan.left), (Some(1), &exact, &doubtful), "{}", plan.summary);
    assert_eq!(plan.summary["applied"], false);
    nothing_written().await?;
    let config = sandbox.config_path().to_str().context("a path of text")?;
    for without in [&["--apply"][..], &["--apply", "--note", " "]] {
        let refused = run(&[&["recover", "--config", config], without].concat(), &[]).await?;
        assert!(refused.code == Some(2) && refused.stderr.contains("--note"), "{refused:?}");
    }
    nothing_written().await?;

    // One has become newer meanwhile, by whatever means.
    let newer = tenants[0].balances.last().context("one")?;
    let sql = format!(
        "UPDATE {} SET version = 9 WHERE id = '{}'",
        balance_table(tenants[0].schema.as_deref()),
        newer.id
    );
    sandbox.postgres().execute(&tenants[0].database, &sql).await?;
    exact.remove(&tenants[0].keys.member(newer));
    let before = rows(&sandbox, &tenants[0]).await?.remove(&newer.id);
    let applied = recover(&sandbox, &["--apply", "--note", "redis was killed"]).await?;
    assert_eq!((applied.code, &applied.left), (Some(1), &doubtful), "{}", applied.summary);
    assert_eq!(applied.summary["outcomes"], serde_json::json!({ "restored": exact.len() }));
    for tenant in &tenants {
        let found = rows(&sandbox, tenant).await?;
        for balance in tenant.balances.iter() {
            let row = found.get(&balance.id).context("a row")?;
            if balance.id == newer.id {
                assert_eq!(Some(row), before.as_ref(), "never over a newer row");
                continue;
            }
            let version = if exact.contains(&tenant.keys.member(balance)) { LOST } else { SEED_VERSION };
            assert_eq!(
                (row.version, &row.amounts),
                (version, &balance.amounts(version)),
                "{}",
                balance.alias
            );
        }
    }
    let log = run(&["actions", "--config", config, "--json"], &[]).await?;
    let log: Value = serde_json::from_str(&log.stdout)?;
    let written: Vec<&Value> = log["actions"].as_array().context("actions")?.iter().collect();
    assert_eq!(written.len(), 2, "one for each tenant: {log}");
    for action in written {
        assert_eq!((&action["what"], &action["note"]), (&"recover".into(), &"redis was killed".into()));
        assert!(action["by"].as_str().is_some_and(|by| by.starts_with("cli:")), "{action}");
        let outcome = &action["outcomes"][0];
        assert_eq!(outcome["outcome"], "done", "{action}");
        assert!(outcome["detail"].as_str().is_some_and(|detail| detail.ends_with("restored")), "{action}");
    }
    let again = recover(&sandbox, &[]).await?;
    assert_eq!((again.code, again.planned.len(), &again.left), (Some(1), 0, &doubtful));
    let seconds = |value: &Value| value.as_f64().unwrap_or_default();
    eprintln!(
        "{balances} dirty balances when Redis was killed: {} restored exactly, {} in doubt and listed; plan {:.1} s, apply {:.1} s \
         (of which writing {:.1} s)",
        exact.len(),
        doubtful.len(),
        seconds(&plan.summary["audit"]["seconds"]),
        seconds(&applied.summary["audit"]["seconds"]),
        seconds(&applied.summary["writing_seconds"]),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_redis_had_is_restored_from_the_trail_and_the_rest_is_listed() -> Result<()> {
    killed_with(2_000).await
}

/// The same at the size of a common ledger; `--ignored`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn a_hundred_thousand_dirty_balances_are_restored() -> Result<()> {
    killed_with(100_000).await
}

#[tokio::test]
async fn a_listed_loss_leaves_the_list_when_it_is_restored() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = Worker::of(&sandbox).set("quarantine.trail_grace", "3s").start().await?;
    let lost = [0, 1];
    let mut redis = sandbox.redis().connect().await?;
    for number in lost {
        let balance = &tenant.balances[number];
        operations(&sandbox, &tenant, &[(balance, LOST)]).await?;
        redis.zadd::<_, _, _, ()>(tenant.keys.schedule(), tenant.keys.member(balance), 1_700_000_000).await?;
    }
    eventually(SOON, "both in the list", || async {
        let listed: i64 = sandbox.redis().connect().await?.hlen(losses_key(&tenant)).await?;
        ensure!(listed == 2, "{listed}");
        Ok(())
    })
    .await?;
    // The ledger goes on with one of them, from the row: that is left to people.
    let gone_on = &tenant.balances[lost[1]];
    redis.set_ex::<_, _, ()>(tenant.keys.member(gone_on), gone_on.json(SEED_VERSION), 3600).await?;
    let applied = recover(&sandbox, &["--apply", "--note", "evicted"]).await?;
    assert_eq!(
        (applied.code, applied.planned.len(), applied.left.len()),
        (Some(1), 1, 1),
        "{}",
        applied.summary
    );
    let restored = row(&sandbox, &tenant, lost[0]).await?;
    assert_eq!((restored.version, restored.amounts), (LOST, tenant.balances[lost[0]].amounts(LOST)));
    assert_eq!(row(&sandbox, &tenant, lost[1]).await?.version, SEED_VERSION);
    let listed: Vec<String> = redis.hkeys(losses_key(&tenant)).await?;
    assert_eq!(listed, [tenant.keys.member(gone_on)]);
    assert!(scores(&sandbox, &tenant.keys.schedule()).await?.is_empty());
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// One tenant has two names in Redis; a loss stands in the list of the name under which it was scheduled.
#[tokio::test]
async fn a_loss_that_is_listed_under_the_other_form_of_the_id_leaves_that_list() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let tenant = sandbox.tenants().remove(1);
    let keys = TenantKeys::tenant(&tenant.id.replace('-', ""));
    let mut worker = Worker::of(&sandbox).set("quarantine.trail_grace", "3s").start().await?;
    let mut redis = sandbox.redis().connect().await?;
    let balance = &tenant.balances[0];
    operations(&sandbox, &tenant, &[(balance, LOST)]).await?;
    redis.zadd::<_, _, _, ()>(keys.schedule(), keys.member(balance), 1_700_000_000).await?;
    let list = format!("{}quarantine:{{transactions}}:balance-sync:losses", keys.prefix());
    eventually(SOON, "it is in the list", || async {
        let listed: Vec<String> = sandbox.redis().connect().await?.hkeys(&list).await?;
        ensure!(listed == [keys.member(balance)], "{listed:?}");
        Ok(())
    })
    .await?;
    let applied = recover(&sandbox, &["--apply", "--note", "evicted"]).await?;
    assert_eq!((applied.code, applied.planned.len()), (Some(0), 1), "{}", applied.summary);
    assert_eq!(row(&sandbox, &tenant, 0).await?.version, LOST);
    let listed: Vec<String> = redis.hkeys(&list).await?;
    assert!(listed.is_empty(), "{listed:?}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// What can't be read or written is named, and no row is written.
#[tokio::test]
async fn without_grants_tables_or_possible_clocks_nothing_is_restored() -> Result<()> {
    let mut options = balance_sync_tests::options(1, 10);
    options.redis.settable_clock = true;
    let sandbox = Sandbox::start(options).await?;
    let tenant = sandbox.tenants().remove(0);
    operations(&sandbox, &tenant, &[(&tenant.balances[0], LOST)]).await?;
    let admin = |sql: &'static str| sandbox.postgres().execute(&tenant.database, sql);
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let refused = async |words: &str, actions: i64| -> Result<()> {
        let args = ["recover", "--config", config, "--json", "--apply", "--note", "a test"];
        let done = run(&args, &[]).await?;
        ensure!(done.code == Some(2), "{words}: {done:?}");
        ensure!(done.stderr.contains(words) || done.stdout.contains(words), "{words}: {done:?}");
        ensure!(rows(&sandbox, &tenant).await?.values().all(|row| row.version == SEED_VERSION), "{words}");
        let mut redis = sandbox.redis().connect().await?;
        let recorded: i64 =
            redis::cmd("XLEN").arg("{transactions}:balance-sync:actions").query_async(&mut redis).await?;
        ensure!(recorded == actions, "{words}: {recorded} entries in the log");
        Ok(())
    };
    // The attempt is in the log, and how it ended.
    admin("REVOKE UPDATE ON balance FROM balance_sync_tenants").await?;
    refused("permission denied for table balance", 2).await?;
    let log = run(&["actions", "--config", config, "--json"], &[]).await?;
    let log: Value = serde_json::from_str(&log.stdout)?;
    let outcome = &log["actions"][0]["outcomes"][0];
    assert_eq!(outcome["outcome"], "failed", "{log}");
    assert!(outcome["detail"].as_str().is_some_and(|why| why.contains("permission denied")), "{log}");
    admin("REVOKE SELECT ON operation FROM balance_sync_tenants").await?;
    refused("the grant SELECT on operation is missing", 2).await?;
    admin("DROP TABLE operation").await?;
    refused("there is no table operation", 2).await?;
    admin("REVOKE SELECT (alias) ON balance FROM balance_sync_tenants").await?;
    refused("the grant SELECT (alias) on balance is missing", 2).await?;
    sandbox.redis().shift_clock(-3 * 86_400_000)?;
    refused("impossible clock: Redis says", 2).await?;
    let done = run(&["recover", "--config", config, "--tenant", "nobody"], &[]).await?;
    ensure!(
        done.code == Some(2) && done.stderr.contains("tenant nobody is not among the active ones"),
        "{done:?}"
    );
    Ok(())
}
