//! `audit`: what is planted is found, on a ledger that works, and nothing else; and nothing is written.

mod planting;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{
    DEFAULT_TTL, LoadOptions, LoadTenant, Producer, Progress, SeededBalance, write_operations,
};
use balance_sync_sandbox::{Sandbox, SandboxTenant, WORKER_USER, balance_table, eventually};
use balance_sync_tests::command::prepare;
use balance_sync_tests::ledger::{all_settled, comes_in_step, fill};
use balance_sync_tests::{Finished, SOON, Worker, run};
use futures::StreamExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use planting::{Fifty, Planting, plant_fifty};
use redis::AsyncCommands;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The version that every balance has when faults are planted.
const VERSION: i64 = 2;
/// Longer than a worker needs for any balance here.
const IN_FLIGHT: &str = "5";
/// What an audit may send to Redis.
pub(crate) const READS: &[&str] = &[
    "auth", "hello", "client", "select", "ping", "time", "scan", "mget", "zmscore", "zscan", "hscan",
    "hexists", "acl", "info", "command",
];

/// The lines of an audit: its findings by member, and the summary.
struct Found {
    code: Option<i32>,
    findings: BTreeMap<String, Value>,
    summary: Value,
}

async fn audit(sandbox: &Sandbox, args: &[&str]) -> Result<Found> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let all = [&["audit", "--config", config, "--json", "--in-flight", IN_FLIGHT], args].concat();
    let done = run(&all, &[]).await?;
    found(&done).with_context(|| format!("{done:?}"))
}

fn found(done: &Finished) -> Result<Found> {
    let mut lines = done.stdout.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    let summary = lines.pop().context("a summary")?["summary"].take();
    ensure!(summary.is_object(), "no summary at the end");
    let mut findings = BTreeMap::new();
    for line in lines {
        let member = line["member"].as_str().context("a member")?.to_owned();
        ensure!(findings.insert(member.clone(), line).is_none(), "{member} was reported twice");
    }
    Ok(Found { code: done.code, findings, summary })
}

/// Class by member.
type Planted = BTreeMap<String, &'static str>;

/// Exactly what was planted is found.
fn is_exactly(found: &Found, planted: &Planted) -> Result<()> {
    for (member, class) in planted {
        let line = found.findings.get(member).with_context(|| format!("{class} {member} is not found"))?;
        ensure!(line["class"] == *class, "{class} is found as {line}");
    }
    for (member, line) in &found.findings {
        ensure!(planted.contains_key(member), "nothing was planted there: {line}");
    }
    Ok(())
}

/// The balances that faults were not planted in, with the versions they have.
fn untouched(tenants: &[SandboxTenant], taken: &[usize]) -> Vec<LoadTenant> {
    let load = |(tenant, taken): (&SandboxTenant, &usize)| {
        let balances = tenant.balances[*taken..].to_vec();
        LoadTenant { versions: vec![VERSION; balances.len()], ..LoadTenant::seeded(&tenant.id, balances) }
    };
    tenants.iter().zip(taken).map(load).collect()
}

/// Writes operations as the ledger does, a moment after Redis: of some balances each time, the version that stands there.
async fn write_trail(
    sandbox: &Sandbox,
    tenants: &[SandboxTenant],
    taken: &[usize],
    stop: &CancellationToken,
) -> Result<u64> {
    let mut redis = sandbox.redis().connect().await?;
    let pools: Vec<_> = tenants.iter().map(|tenant| sandbox.pool(tenant)).collect();
    let (mut written, mut round) = (0, 0_usize);
    while !stop.is_cancelled() {
        for ((tenant, taken), pool) in tenants.iter().zip(taken).zip(&pools) {
            let open = &tenant.balances[*taken..];
            let some: Vec<&SeededBalance> =
                (0..40).map(|n| &open[(round * 40 + n) * 7 % open.len()]).collect();
            let keys: Vec<String> = some.iter().map(|balance| tenant.keys.member(balance)).collect();
            let values: Vec<Option<String>> = redis.mget(&keys).await?;
            let version = |value: &Option<String>| -> Option<i64> {
                serde_json::from_str::<Value>(value.as_deref()?).ok()?["Version"].as_i64()
            };
            let operations: Vec<_> = some
                .iter()
                .zip(&values)
                .filter_map(|(balance, value)| version(value).map(|version| (*balance, version)))
                .collect();
            write_operations(pool, tenant.schema.as_deref(), &operations).await?;
            written += operations.len() as u64;
        }
        round += 1;
    }
    for pool in pools {
        pool.close().await;
    }
    Ok(written)
}

/// Rows written so far in the databases of these tenants.
pub(crate) async fn writes(
    sandbox: &Sandbox,
    tenants: &[SandboxTenant],
) -> Result<Vec<(String, i64, i64, i64)>> {
    /// Ends all sessions but this one and those that hold a row.
    const END: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle in transaction'";
    let mut all = Vec::new();
    for tenant in tenants {
        let pool = sandbox.pool(tenant);
        // A session may report what it wrote only when it ends, which is some time after its client has left.
        eventually(SOON, "no other session", || async {
            let others: i64 = sqlx::query_scalar(END).fetch_one(&pool).await?;
            ensure!(others == 0, "there are {others}");
            Ok(())
        })
        .await?;
        let counted = sqlx::query_as(
            "SELECT schemaname || '.' || relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables ORDER BY 1",
        )
        .fetch_all(&pool)
        .await;
        pool.close().await;
        all.append(&mut counted?);
    }
    Ok(all)
}

#[allow(clippy::print_stderr)] // a figure for the documents
async fn fifty_among(balances: usize, rate: f64) -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, balances / 2).await?;
    let tenants = sandbox.tenants();
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;

    let Fifty { planted, taken, held } = plant_fifty(&sandbox, &tenants).await?;
    assert_eq!(planted.len(), 50);
    assert_eq!(planted.values().collect::<BTreeSet<_>>().len(), 8, "each class that is a fault");

    let mut load = Producer::new(&sandbox.redis().url(), untouched(&tenants, &taken));
    let (progress, stop) = (Progress::new(tenants.len()), CancellationToken::new());
    let options = LoadOptions { rate, ..LoadOptions::default() };
    let auditing = async {
        // A whole audit that runs while the load does.
        while progress.mutations() < 1000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let first = audit(&sandbox, &[]).await;
        let second = audit(&sandbox, &["--tenant", &tenants[1].id, "--hide-amounts"]).await;
        stop.cancel();
        anyhow::Ok((first?, second?))
    };
    let (report, operations, audited) = futures::join!(
        load.run(&options, &progress, &stop),
        write_trail(&sandbox, &tenants, &taken, &stop),
        auditing
    );
    let (report, operations, (first, second)) = (report?, operations?, audited?);
    is_exactly(&first, &planted)?;
    assert_eq!((first.code, &first.summary["complete"]), (Some(1), &true.into()), "{}", first.summary);
    assert_eq!((&first.summary["findings"], &first.summary["witnesses"]), (&50.into(), &3.into()));
    for finding in first.findings.values() {
        assert!(finding["advice"].as_str().is_some_and(|advice| advice.ends_with('.')), "{finding}");
    }
    let mut of_second = planted.clone();
    of_second.retain(|member, _| member.starts_with(tenants[1].keys.prefix()));
    is_exactly(&second, &of_second)?;
    let shown = second.findings.values().map(ToString::to_string).collect::<String>();
    assert!(!shown.contains("available"), "amounts are hidden");
    eprintln!(
        "50 faults among {balances} balances, {} mutations and {operations} operations meanwhile: 50 found, 0 false, in {} s",
        report.mutations, first.summary["seconds"]
    );
    assert_eq!(worker.stop().await?.code, Some(0));

    // No worker is there now: what is written would be the audit's.
    let before = writes(&sandbox, &tenants).await?;
    let monitor = redis::Client::open(sandbox.redis().url())?.get_async_monitor().await?;
    let mut seen = monitor.into_on_message::<String>();
    let third = audit(&sandbox, &[]).await?;
    is_exactly(&third, &planted)?;
    let mut redis = sandbox.redis().connect().await?;
    redis.set::<_, _, ()>("the end of the audit", 1).await?;
    let mut commands = BTreeSet::new();
    while let Some(line) = seen.next().await {
        if line.contains("the end of the audit") {
            break;
        }
        let command = line.split('"').nth(1).unwrap_or_default().to_lowercase();
        commands.insert(command);
    }
    let unknown: Vec<&String> =
        commands.iter().filter(|command| !READS.contains(&command.as_str())).collect();
    assert!(unknown.is_empty() && commands.contains("mget"), "{commands:?}");
    assert_eq!(writes(&sandbox, &tenants).await?, before, "rows were written");
    drop(held);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_faults_are_found_under_load_and_nothing_else() -> Result<()> {
    fifty_among(4_000, 1_000.0).await
}

/// The same at the size of a common ledger; `--ignored`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn fifty_faults_are_found_among_a_hundred_thousand() -> Result<()> {
    fifty_among(100_000, 2_000.0).await
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_nothing_else_is_judged_by_it() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 30).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut planting = Planting::begin(&sandbox, &tenant).await?;
    // No worker runs here: scheduled, and nothing else is known of it.
    let SeededBalance { organization, ledger, .. } = &tenant.balances[0];
    let prefix = tenant.keys.prefix();
    let unknown = format!("{prefix}balance:{{transactions}}:{organization}:{ledger}:@nobody#default");
    let strange = format!("{prefix}balance:{{transactions}}:not a balance");
    let unproven = tenant.keys.member(&tenant.balances[20]);
    for member in [&unknown, &strange, &unproven] {
        planting.redis.zadd::<_, _, _, ()>(tenant.keys.schedule(), member, 1_700_000_000).await?;
    }
    planting.sql("UPDATE {balance} SET version = 4 WHERE id = '{id}'", &tenant.balances[20]).await?;
    planting.behind_unscheduled().await?;
    planting.lost().await?;
    let mut planted = planting.planted.clone();
    for (member, class) in [(&unknown, "orphaned"), (&strange, "orphaned"), (&unproven, "lost_from_redis")] {
        planted.insert(member.clone(), class);
    }
    let all = audit(&sandbox, &[]).await?;
    is_exactly(&all, &planted)?;
    assert_eq!((all.code, &all.summary["witnesses"]), (Some(1), &3.into()));

    // Without the trail two witnesses are left, which prove no loss.
    let admin = |sql: &'static str| sandbox.postgres().execute(&tenant.database, sql);
    planted.retain(|_, class| *class != "lost_from_redis");
    planted.insert(unproven, "lost_from_redis");
    admin("REVOKE SELECT ON operation FROM balance_sync_tenants").await?;
    let two = audit(&sandbox, &[]).await?;
    is_exactly(&two, &planted)?;
    assert_eq!((two.code, &two.summary["witnesses"]), (Some(2), &2.into()));
    assert!(
        two.summary["notices"].to_string().contains("the grant SELECT on operation is missing"),
        "{}",
        two.summary
    );
    let meant = audit(&sandbox, &["--without-trail"]).await?;
    is_exactly(&meant, &planted)?;
    assert_eq!((meant.code, &meant.summary["notices"]), (Some(1), &Value::Array(Vec::new())));
    admin("DROP TABLE operation").await?;
    let two = audit(&sandbox, &[]).await?;
    is_exactly(&two, &planted)?;
    assert!(two.summary["notices"].to_string().contains("there is no table operation"), "{}", two.summary);

    admin("REVOKE SELECT (alias) ON balance FROM balance_sync_tenants").await?;
    let none = audit(&sandbox, &[]).await?;
    assert_eq!((none.code, none.findings.len(), &none.summary["complete"]), (Some(2), 0, &false.into()));
    let failed = none.summary["failed"].to_string();
    assert!(failed.contains("the grant SELECT (alias) on balance is missing"), "{failed}");

    let config = sandbox.config_path().to_str().context("a path of text")?;
    for (args, words) in [
        (["--tenant", "nobody"], "tenant nobody is not among the active ones"),
        (["--since", "2126-01-01T00:00:00Z"], "--since is"),
        (["--sample", "0"], "must be a number above 0"),
    ] {
        let done = run(&[&["audit", "--config", config][..], &args].concat(), &[]).await?;
        assert!(done.code == Some(2) && done.stderr.contains(words), "{done:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_impossible_clock_is_refused() -> Result<()> {
    let mut options = balance_sync_tests::options(1, 10);
    options.redis.settable_clock = true;
    let sandbox = Sandbox::start(options).await?;
    let config = sandbox.config_path().to_str().context("a path of text")?;
    sandbox.redis().shift_clock(-3 * 86_400_000)?;
    let done = run(&["audit", "--config", config], &[]).await?;
    assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{done:?}");
    assert!(
        done.stderr.contains("impossible clock: Redis says") && done.stderr.contains("3.0 days"),
        "{done:?}"
    );
    Ok(())
}

/// The ledger's recover records are complete, and newer than its operations for a while.
#[tokio::test]
async fn a_recover_record_is_a_witness() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let (recorded, written) = (&tenant.balances[2], &tenant.balances[4]);
    let record = |balance: &SeededBalance, version: i64| {
        let amounts = balance.amounts(version);
        serde_json::json!({ "record": { "result": { "appliedAtUnixMicro": 1, "final": [{
            "id": balance.id, "available": amounts.available, "onHold": amounts.on_hold,
            "overdraftUsed": amounts.overdraft_used, "version": version.to_string(),
        }] } } })
        .to_string()
    };
    let mut redis = sandbox.redis().connect().await?;
    let key = format!("{}engine:{{transactions}}:recover", tenant.keys.prefix());
    redis.hset::<_, _, _, ()>(&key, "t1", record(recorded, 3)).await?;
    redis.hset::<_, _, _, ()>(&key, "t2", record(written, 1)).await?;
    redis.hset::<_, _, _, ()>(&key, "t3", "no JSON").await?;
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let audit = async |url: &str| {
        let args = ["audit", "--config", config, "--json", "--in-flight", IN_FLIGHT];
        let done = run(&args, &[("BALANCE_SYNC__REDIS__URL", url)]).await?;
        found(&done).with_context(|| format!("{done:?}"))
    };
    let is_witness = |found: &Found| {
        is_exactly(found, &Planted::from([(tenant.keys.member(recorded), "lost_from_redis")]))?;
        let finding = &found.findings[&tenant.keys.member(recorded)];
        ensure!((&finding["version"], &finding["record"]["version"]) == (&3.into(), &3.into()), "{finding}");
        ensure!(finding["record"]["available"] == recorded.amounts(3).available.as_str(), "{finding}");
        ensure!(found.summary["notices"] == Value::Array(Vec::new()), "not all was read: {}", found.summary);
        anyhow::Ok(())
    };
    is_witness(&audit(&sandbox.redis().reader_url()).await?).context("as the reader")?;

    // So is the worker's user, which may only read them; Redis before 7 knows no such right.
    is_witness(&audit(&sandbox.redis_url()).await?).context("as the worker")?;
    if sandbox.redis().version().await? >= (7, 0) {
        let mut worker = redis::Client::open(sandbox.redis_url())?.get_multiplexed_async_connection().await?;
        let refused = worker.hset::<_, _, _, ()>(&key, "t4", "{}").await;
        let code = refused.err().and_then(|error| error.code().map(str::to_owned));
        assert_eq!(code.as_deref(), Some("NOPERM"));
    }

    // With a file of users from before, the audit says that a witness is missing.
    let mut acl = redis::cmd("ACL");
    acl.arg("SETUSER").arg(WORKER_USER).arg("resetkeys").arg("~{transactions}:balance-sync:*");
    for part in ["balance", "schedule", "quarantine", "lock"] {
        acl.arg(format!("~tenant:*:{part}:{{transactions}}:*"));
    }
    acl.query_async::<()>(&mut redis).await?;
    let found = audit(&sandbox.redis_url()).await?;
    is_exactly(&found, &Planted::new())?;
    assert!(
        found.summary["notices"].to_string().contains("recover records are not read"),
        "{}",
        found.summary
    );
    Ok(())
}

/// Each mutation gives it a new score, so at each look it seems to have just become due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balance_that_moves_all_the_time_and_is_never_written_is_found() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut producer = sandbox.producer();
    producer.mutate(0, &[3], DEFAULT_TTL).await?;
    let ended = audit(&sandbox, &[]);
    tokio::pin!(ended);
    let found = loop {
        tokio::select! {
            found = &mut ended => break found?,
            moved = producer.mutate(0, &[3], DEFAULT_TTL) => drop(moved?),
        }
    };
    is_exactly(&found, &Planted::from([(tenant.keys.member(&tenant.balances[3]), "behind_scheduled")]))?;
    assert_eq!(found.code, Some(1));
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_behind_is_recent_however_old_it_is() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let old = format!(
        "UPDATE {} SET updated_at = now() - interval '1 year'",
        balance_table(tenant.schema.as_deref())
    );
    sandbox.postgres().execute(&tenant.database, &old).await?;
    sandbox.producer().mutate(0, &[3], DEFAULT_TTL).await?;
    let member = tenant.keys.member(&tenant.balances[3]);
    sandbox.redis().connect().await?.zrem::<_, _, ()>(tenant.keys.schedule(), &member).await?;
    for more in [&["--since", "2h"][..], &["--since", "2h", "--without-trail"]] {
        let found = audit(&sandbox, more).await?;
        is_exactly(&found, &Planted::from([(member.clone(), "behind_unscheduled")]))
            .with_context(|| format!("{more:?}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn an_interrupted_audit_goes_on_where_it_was() -> Result<()> {
    const BALANCES: usize = 12_000;
    let sandbox = balance_sync_tests::sandbox(1, BALANCES).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut planting = Planting::begin(&sandbox, &tenant).await?;
    for _ in 0..20 {
        planting.lost().await?;
    }
    let folder = tempfile::tempdir()?;
    let cursor = folder.path().join("cursor.json");
    let resume = cursor.to_str().context("a path of text")?;
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let args = ["audit", "--config", config, "--json", "--resume", resume, "--postgres-rate", "1000"];
    let child = prepare(&args, &BTreeMap::new())?.spawn()?;
    eventually(SOON, "a cursor", || {
        let text = std::fs::read_to_string(&cursor).unwrap_or_default();
        std::future::ready(text.contains(&format!("\"{}\":", tenant.id)))
    })
    .await?;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    let first = found(&Finished {
        code: ended.status.code(),
        stdout: String::from_utf8(ended.stdout)?,
        stderr: String::from_utf8(ended.stderr)?,
    })?;
    assert_eq!((first.code, &first.summary["complete"]), (Some(2), &false.into()), "{}", first.summary);
    let rows = first.summary["rows"].as_u64().context("rows")?;
    assert!(rows > 0 && rows < BALANCES as u64, "{}", first.summary);

    let rest = audit(&sandbox, &["--resume", resume]).await?;
    assert_eq!((rest.code, &rest.summary["rows"]), (Some(1), &BALANCES.into()), "{}", rest.summary);
    assert_eq!(rest.summary["findings"], 20, "those of both");
    let mut both = first.findings;
    for (member, line) in rest.findings {
        assert!(both.insert(member.clone(), line).is_none(), "{member} was reported by both");
    }
    let both = Found { findings: both, ..rest };
    is_exactly(&both, &planting.planted)?;
    assert!(!cursor.exists(), "nothing is left to be gone on with");

    // A part is the same part every time.
    let part = audit(&sandbox, &["--sample", "10%"]).await?;
    let rows = part.summary["rows"].as_u64().context("rows")?;
    assert!((1_000..1_400).contains(&rows), "{}", part.summary);
    assert_eq!(audit(&sandbox, &["--sample", "0.1"]).await?.summary["rows"], rows);
    let recent = audit(&sandbox, &["--since", "1h"]).await?;
    assert_eq!(recent.summary["classes"]["lost_from_redis"], 20);
    let sql = "UPDATE {balance} SET updated_at = now() - interval '2 hours'; UPDATE {operation} SET created_at = now() - interval '2 hours'";
    planting.sql(sql, &tenant.balances[0]).await?;
    let recent = audit(&sandbox, &["--since", "1h"]).await?;
    assert_eq!(
        (recent.code, &recent.summary["classes"]),
        (Some(0), &serde_json::json!({})),
        "{}",
        recent.summary
    );
    Ok(())
}

/// Keys that no row leads to are found by their names; only beside such ones are values read a second time.
#[tokio::test]
async fn values_that_no_row_leads_to_are_found_without_reading_all_values_twice() -> Result<()> {
    const BALANCES: usize = 4_000;
    let sandbox = balance_sync_tests::sandbox(1, BALANCES).await?;
    let tenant = sandbox.tenants().remove(0);
    fill(&sandbox, &tenant).await?;
    sandbox.postgres().execute(&tenant.database, "ANALYZE").await?;
    let mut redis = sandbox.redis().connect().await?;
    let member = |n: usize| tenant.keys.member(&tenant.balances[n]);
    // Under the name of a row is the value of another balance, which has a row, or none.
    let foreign =
        tenant.balances[1].json(1).replace(&tenant.balances[1].id.to_string(), &Uuid::new_v4().to_string());
    redis.set::<_, _, ()>(member(1), foreign).await?;
    redis.set::<_, _, ()>(member(2), tenant.balances[3].json(1)).await?;
    // A value without a name that a row could have.
    let stray = member(4).replace(&tenant.balances[4].alias, "@stray");
    redis.set::<_, _, ()>(&stray, "{}").await?;
    let planted = Planted::from([(member(1), "missing_row"), (stray, "orphaned")]);

    let monitor = redis::Client::open(sandbox.redis().url())?.get_async_monitor().await?;
    let mut seen = monitor.into_on_message::<String>();
    let found = audit(&sandbox, &[]).await?;
    is_exactly(&found, &planted)?;
    assert_eq!(
        (&found.summary["rows"], &found.summary["values"]),
        (&BALANCES.into(), &(BALANCES + 1).into())
    );
    redis.set::<_, _, ()>("the end of the audit", 1).await?;
    let mut read = 0;
    while let Some(line) = seen.next().await.filter(|line| !line.contains("the end of the audit")) {
        let mut words = line.split('"').skip(1).step_by(2);
        if words.next().is_some_and(|command| command.eq_ignore_ascii_case("mget")) {
            read += words.count();
        }
    }
    assert!((BALANCES..BALANCES + 500).contains(&read), "{read} values were read");
    Ok(())
}

/// Redis is always a moment ahead there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_passes_on_a_ledger_that_works() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 400).await?;
    let config = sandbox.config_path().to_str().context("a path of text")?;
    // An account that the ledger is closing has a mark in the place of a value.
    let tenant = sandbox.tenants().remove(0);
    let mark = format!("{}:deleted", tenant.keys.member(&tenant.balances[0]));
    sandbox.redis().connect().await?.set_ex::<_, _, ()>(mark, "1", 3600).await?;
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    let (progress, stop) = (Progress::new(2), CancellationToken::new());
    let options = LoadOptions { rate: 1_500.0, hot_key_share: 0.5, ..LoadOptions::default() };
    let verifying = async {
        eventually(SOON, "load", || std::future::ready(progress.mutations() > 2_000)).await?;
        let mut all = Vec::new();
        for _ in 0..5 {
            all.push(run(&["verify", "--config", config, "--json"], &[]).await?);
        }
        anyhow::Ok(all)
    };
    let (report, verified) = futures::join!(producer.run(&options, &progress, &stop), async {
        let verified = verifying.await;
        stop.cancel();
        verified
    });
    assert!(report?.mutations > 2_000);
    for done in verified? {
        assert_eq!(done.code, Some(0), "{done:?}");
        let result: Value = serde_json::from_str(&done.stdout)?;
        let row = &result["tenants"][0];
        assert_eq!(row["equal"], row["balances"], "{done:?}");
    }
    assert_eq!(worker.stop().await?.code, Some(0));

    // No worker writes any more: now they are behind.
    producer.mutate_each(DEFAULT_TTL).await?;
    let done = run(&["verify", "--config", config, "--json"], &[]).await?;
    let result: Value = serde_json::from_str(&done.stdout)?;
    assert_eq!((done.code, &result["tenants"][0]["behind"]), (Some(1), &400.into()), "{done:?}");
    Ok(())
}

/// How long an audit of one tenant takes, and the most memory it had; `--ignored`, with `BALANCE_SYNC_BIN` as built for release and
/// the number of balances in `AUDIT_BALANCES`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
#[allow(clippy::print_stderr)] // a figure for the documents
async fn a_million_balances_of_one_tenant() -> Result<()> {
    let balances = std::env::var("AUDIT_BALANCES").map_or(Ok(1_000_000), |text| text.parse())?;
    let sandbox = balance_sync_tests::sandbox(1, balances).await?;
    let tenant = sandbox.tenants().remove(0);
    fill(&sandbox, &tenant).await?;
    sandbox.postgres().execute(&tenant.database, "VACUUM ANALYZE").await?;
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let child = prepare(&["audit", "--config", config, "--json"], &BTreeMap::new())?.spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
    let mut most = String::new();
    while !ended.is_finished() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        if let Some(line) = text.lines().find(|line| line.starts_with("VmHWM")) {
            line.clone_into(&mut most);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ended = ended.await??;
    let found = found(&Finished {
        code: ended.status.code(),
        stdout: String::from_utf8(ended.stdout)?,
        stderr: String::from_utf8(ended.stderr)?,
    })?;
    assert_eq!(found.summary["classes"]["in_sync"], balances, "{}", found.summary);
    eprintln!("{balances} balances of one tenant: {} s, {most}", found.summary["seconds"]);
    Ok(())
}
