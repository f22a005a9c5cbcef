//! `handover`: a signed statement of a tenant's rows, and every way to tamper with rows or file is detected.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, SEED_VERSION, TenantKeys, put_raw};
use balance_sync_sandbox::{Sandbox, SandboxTenant, TenantRecord, balance_table, eventually};
use balance_sync_tests::command::prepare;
use balance_sync_tests::ledger::{comes_in_step, fill, rows, scores};
use balance_sync_tests::{Finished, SOON, Worker, run};
use futures::StreamExt as _;
use redis::AsyncCommands as _;
use tempfile::TempDir;

use crate::audit::{READS, writes};

struct Bench {
    sandbox: Sandbox,
    folder: TempDir,
}

impl Bench {
    async fn new(tenants: usize, balances: usize) -> Result<Self> {
        Self::on(balance_sync_tests::sandbox(tenants, balances).await?).await
    }

    async fn on(sandbox: Sandbox) -> Result<Self> {
        let bench = Self { sandbox, folder: tempfile::tempdir()? };
        let made = run(&["handover", "keygen", &bench.path("key")], &[]).await?;
        ensure!(made.code == Some(0), "{made:?}");
        Ok(bench)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    fn config(&self) -> String {
        self.sandbox.config_path().display().to_string()
    }

    async fn handover(&self, tenant: &SandboxTenant, out: &str, args: &[&str]) -> Result<Finished> {
        let (config, key, out) = (self.config(), self.path("key"), self.path(out));
        let all = ["handover", "--config", &config, "--tenant", &tenant.id, "--key", &key, "--out", &out];
        run(&[&all[..], &["--note", "moves to another server"], args].concat(), &[]).await
    }

    /// Starts a handover that reads a thousand rows per second, and waits until it has paused the tenant. Gives the child, and what
    /// there is to read of its standard error.
    async fn begin(&self, tenant: &SandboxTenant) -> Result<(Child, BufReader<std::process::ChildStderr>)> {
        let (config, key, out) = (self.config(), self.path("key"), self.path("out.json"));
        let args = ["handover", "--config", &config, "--tenant", &tenant.id, "--key", &key, "--out", &out];
        let all = [&args[..], &["--note", "a test", "--postgres-rate", "1000"]].concat();
        let mut command = prepare(&all, &BTreeMap::new())?;
        tokio::task::spawn_blocking(move || {
            let mut child = command.spawn()?;
            let mut errors = BufReader::new(child.stderr.take().context("standard error")?);
            let mut line = String::new();
            while !line.starts_with("paused") {
                line.clear();
                ensure!(errors.read_line(&mut line)? > 0, "it ended before the pause");
            }
            Ok((child, errors))
        })
        .await?
    }

    /// Waits for the end of a handover that is refused; gives its words.
    async fn refused(
        &self,
        mut child: Child,
        mut errors: BufReader<std::process::ChildStderr>,
    ) -> Result<String> {
        let ended = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text)?;
            anyhow::Ok((child.wait()?.code(), text))
        });
        let (code, text) = ended.await??;
        ensure!(code == Some(1) && !self.file("out.json").exists(), "it is signed: {code:?} {text}");
        Ok(text)
    }

    async fn verify(&self, file: &Path, args: &[&str]) -> Result<Finished> {
        let (config, key, file) = (self.config(), self.path("key.pub"), file.display().to_string());
        let all = ["handover", "verify", "--config", &config, &file, "--public-key", &key];
        run(&[&all[..], args].concat(), &[]).await
    }

    async fn sql(&self, tenant: &SandboxTenant, sql: &str) -> Result<()> {
        let sql = sql.replace("{balance}", &balance_table(tenant.schema.as_deref()));
        self.sandbox.postgres().execute(&tenant.database, &sql).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handover_is_signed_and_each_tampering_is_detected() -> Result<()> {
    let bench = Bench::new(2, 300).await?;
    let mode = |name: &str| anyhow::Ok(std::fs::metadata(bench.file(name))?.permissions().mode() & 0o777);
    assert_eq!((mode("key")?, mode("key.pub")?), (0o600, 0o644));
    let private = std::fs::read_to_string(bench.file("key"))?;
    let secret = private.lines().nth(1).context("the key")?;
    let twice = run(&["handover", "keygen", &bench.path("key")], &[]).await?;
    assert_eq!(twice.code, Some(2), "a key is never overwritten: {twice:?}");
    assert_eq!(std::fs::read_to_string(bench.file("key"))?, private);

    let mut worker = Worker::of(&bench.sandbox).start().await?;
    let mut producer = bench.sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    for tenant in bench.sandbox.tenants() {
        let out = format!("{}.json", tenant.id);
        // What is scheduled is written before the pause.
        let done = bench.handover(&tenant, &out, &[]).await?;
        ensure!(done.code == Some(0) && done.stdout.contains("the rows are the truth"), "{done:?}");
        ensure!(!format!("{done:?}").contains(secret), "the key is printed");
        let file = bench.file(&out);
        let statement: serde_json::Value =
            serde_json::from_str(std::fs::read_to_string(&file)?.lines().next().context("a line")?)?;
        assert_eq!((&statement["truth"], &statement["digest"]["rows"]), (&true.into(), &300.into()));
        assert_eq!(statement["digest"]["further"].as_array().map(Vec::len), Some(7), "{statement}");
        assert_eq!((&statement["tenant"], &statement["witnesses"]), (&tenant.id.clone().into(), &3.into()));
        let good = bench.verify(&file, &[]).await?;
        ensure!(good.code == Some(0), "{good:?}");
        // The same database by its URL, as one that it was moved to.
        let schema = tenant.schema.as_deref().map(|schema| vec!["--schema", schema]).unwrap_or_default();
        let key = bench.path("key.pub");
        let of_file = file.display().to_string();
        let args = [&["handover", "verify", &of_file, "--public-key", &key][..], &schema].concat();
        let good = run(&args, &[("HANDOVER_DATABASE_URL", tenant.database_url())]).await?;
        ensure!(good.code == Some(0), "{good:?}");

        let id = tenant.balances[7].id.to_string();
        for (do_it, undo, named) in [
            (
                "UPDATE {balance} SET available = available + 1 WHERE id = '{id}'",
                "UPDATE {balance} SET available = available - 1 WHERE id = '{id}'",
                "changed",
            ),
            (
                "UPDATE {balance} SET version = version + 1 WHERE id = '{id}'",
                "UPDATE {balance} SET version = version - 1 WHERE id = '{id}'",
                "changed",
            ),
            (
                "UPDATE {balance} SET asset_code = 'X' || asset_code WHERE id = '{id}'",
                "UPDATE {balance} SET asset_code = substr(asset_code, 2) WHERE id = '{id}'",
                "changed",
            ),
            (
                "UPDATE {balance} SET settings = '{\"blocked\":true}' WHERE id = '{id}'",
                "UPDATE {balance} SET settings = NULL WHERE id = '{id}'",
                "changed",
            ),
            (
                "UPDATE {balance} SET deleted_at = now() WHERE id = '{id}'",
                "UPDATE {balance} SET deleted_at = NULL WHERE id = '{id}'",
                "changed",
            ),
            (
                "CREATE TABLE public.kept AS SELECT * FROM {balance} WHERE id = '{id}'; DELETE FROM {balance} WHERE id = '{id}'",
                "INSERT INTO {balance} SELECT * FROM public.kept; DROP TABLE public.kept",
                "removed",
            ),
        ] {
            let with_id = |sql: &str| sql.replace("{id}", &id);
            bench.sql(&tenant, &with_id(do_it)).await?;
            let found = bench.verify(&file, &[]).await?;
            let line = format!("{id}  {named}");
            ensure!(found.code == Some(1) && found.stdout.contains(&line), "{do_it}: {found:?}");
            bench.sql(&tenant, &with_id(undo)).await?;
        }
        let added = "11111111-2222-4333-8444-555555555555";
        let copy = "CREATE TABLE public.kept AS SELECT * FROM {balance} LIMIT 1; UPDATE public.kept SET id = '{id}', alias = '@added', account_id = gen_random_uuid();
             INSERT INTO {balance} SELECT * FROM public.kept; DROP TABLE public.kept";
        bench.sql(&tenant, &copy.replace("{id}", added)).await?;
        let found = bench.verify(&file, &[]).await?;
        ensure!(found.code == Some(1) && found.stdout.contains(&format!("{added}  added")), "{found:?}");
        bench.sql(&tenant, &format!("DELETE FROM {{balance}} WHERE id = '{added}'")).await?;
        let good = bench.verify(&file, &[]).await?;
        ensure!(good.code == Some(0), "all is undone: {good:?}");

        // One byte of the file, wherever it is.
        let bytes = std::fs::read(&file)?;
        let touched = bench.file("touched.json");
        let end = bytes.len();
        for at in [0, 25, end / 3, end / 2, end - 95, end - 40, end - 7, end - 3, end - 1] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            std::fs::write(&touched, &other)?;
            let refused = bench.verify(&touched, &["--signature-only"]).await?;
            ensure!(refused.code == Some(2) && refused.stderr.contains("touched.json"), "{at}: {refused:?}");
        }
        std::fs::write(&touched, &bytes[..end - 1])?;
        assert_eq!(bench.verify(&touched, &["--signature-only"]).await?.code, Some(2));
        let other = format!("other-{}", tenant.id);
        run(&["handover", "keygen", &bench.path(&other)], &[]).await?;
        let other_key = bench.path(&format!("{other}.pub"));
        let refused = run(&["handover", "verify", &of_file, "--public-key", &other_key], &[]).await?;
        ensure!(refused.code == Some(2) && refused.stderr.contains("another key"), "{refused:?}");
    }

    // It stays paused until it is resumed.
    producer.mutate_each(DEFAULT_TTL).await?;
    let tenant = bench.sandbox.tenants().remove(0);
    let again = bench.handover(&tenant, "again.json", &[]).await?;
    ensure!(again.code == Some(1) && again.stderr.contains("is paused"), "{again:?}");
    assert!(!bench.file("again.json").exists());
    assert_eq!(scores(&bench.sandbox, &tenant.keys.schedule()).await?.len(), 300);
    let config = bench.config();
    for tenant in bench.sandbox.tenants() {
        let resumed = run(&["tenants", "resume", &tenant.id, "--config", &config], &[]).await?;
        ensure!(resumed.code == Some(0), "{resumed:?}");
    }
    comes_in_step(&bench.sandbox, &producer).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_truth_is_signed_with_open_findings_or_unwritten_mutations() -> Result<()> {
    let bench = Bench::new(1, 50).await?;
    let tenant = bench.sandbox.tenants().remove(0);
    let mut producer = bench.sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    // No worker writes.
    let refused = bench.handover(&tenant, "a.json", &["--drain", "1"]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("50 due"), "{refused:?}");
    let mut worker = Worker::of(&bench.sandbox).start().await?;
    comes_in_step(&bench.sandbox, &producer).await?;
    // Newer in Redis, and not scheduled.
    let behind = &tenant.balances[3];
    let member = tenant.keys.member(behind);
    let mut redis = bench.sandbox.redis().connect().await?;
    redis.set_ex::<_, _, ()>(&member, behind.json(9), 3600).await?;
    eventually(SOON, "settled", || async {
        ensure!(scores(&bench.sandbox, &tenant.keys.schedule()).await?.is_empty(), "some are scheduled");
        Ok(())
    })
    .await?;
    let refused = bench.handover(&tenant, "b.json", &[]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("behind_unscheduled"), "{refused:?}");
    assert!(!bench.file("a.json").exists() && !bench.file("b.json").exists());
    let signed = bench.handover(&tenant, "b.json", &["--with-findings"]).await?;
    ensure!(signed.code == Some(1) && bench.file("b.json").exists(), "{signed:?}");
    let text = std::fs::read_to_string(bench.file("b.json"))?;
    let statement: serde_json::Value = serde_json::from_str(text.lines().next().context("a line")?)?;
    assert_eq!((&statement["truth"], &statement["findings_total"]), (&false.into(), &1.into()));
    assert_eq!(statement["findings"][0]["member"], member);
    let verified = bench.verify(&bench.file("b.json"), &[]).await?;
    ensure!(verified.code == Some(0) && verified.stdout.contains("not stated as the truth"), "{verified:?}");
    // A key that others can read isn't used.
    std::fs::set_permissions(bench.file("key"), std::fs::Permissions::from_mode(0o644))?;
    let refused = bench.handover(&tenant, "c.json", &[]).await?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("0600"), "{refused:?}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// Rows for some seconds, so that something can happen meanwhile.
const SLOW: usize = 3000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_during_the_audit_is_noticed() -> Result<()> {
    let bench = Bench::new(1, SLOW).await?;
    let tenant = bench.sandbox.tenants().remove(0);
    let (child, errors) = bench.begin(&tenant).await?;
    bench.sandbox.producer().mutate(0, &[1], DEFAULT_TTL).await?;
    let why = bench.refused(child, errors).await?;
    ensure!(why.contains("a mutation came"), "{why}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_move_during_the_audit_are_noticed() -> Result<()> {
    let bench = Bench::new(1, SLOW).await?;
    let tenant = bench.sandbox.tenants().remove(0);
    let (child, errors) = bench.begin(&tenant).await?;
    let ended = bench.refused(child, errors);
    tokio::pin!(ended);
    // Another number at every look, whenever it is.
    let why = loop {
        tokio::select! {
            why = &mut ended => break why?,
            moved = bench.sql(&tenant, "UPDATE {balance} SET available = available + 1") => moved?,
        }
    };
    ensure!(why.contains("rows moved"), "{why}");
    Ok(())
}

/// A pause stops the workers, not the ledger's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_written_behind_the_second_reading_is_noticed() -> Result<()> {
    /// When a page of the second reading was asked for, which asks for no operations.
    const READS_AGAIN: &str = "SELECT query_start::text FROM pg_stat_activity WHERE query LIKE '%v.further%' \
         AND query NOT LIKE '%o.version%' AND query NOT LIKE '%pg_stat_activity%'";
    let mut options = balance_sync_tests::options(1, SLOW);
    // Otherwise a statement is cut off before it says what it is.
    options.postgres.extra.push(("track_activity_query_size".to_owned(), "16384".to_owned()));
    let bench = Bench::on(Sandbox::start(options).await?).await?;
    let tenant = bench.sandbox.tenants().remove(0);
    let (child, errors) = bench.begin(&tenant).await?;
    let pool = bench.sandbox.pool(&tenant);
    // Once the second page is asked for, the first one has been read.
    let pages = RefCell::new(BTreeSet::new());
    eventually(SOON, "the second page of the second reading", || async {
        let asked: Vec<String> = sqlx::query_scalar(READS_AGAIN).fetch_all(&pool).await?;
        pages.borrow_mut().extend(asked);
        let pages = pages.borrow().len();
        ensure!(pages > 1, "{pages} pages were asked for");
        Ok(())
    })
    .await?;
    pool.close().await;
    let first = "UPDATE {balance} SET version = version + 1 WHERE id = (SELECT id FROM {balance} ORDER BY id LIMIT 1)";
    bench.sql(&tenant, first).await?;
    let why = bench.refused(child, errors).await?;
    ensure!(why.contains("rows moved"), "{why}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_during_the_audit_is_noticed() -> Result<()> {
    let bench = Bench::new(1, SLOW).await?;
    let tenant = bench.sandbox.tenants().remove(0);
    let (child, errors) = bench.begin(&tenant).await?;
    let config = bench.config();
    for what in ["resume", "pause"] {
        let done = run(&["tenants", what, &tenant.id, "--config", &config, "--wait", "0"], &[]).await?;
        ensure!(done.stdout.contains("is written down"), "{done:?}");
    }
    let why = bench.refused(child, errors).await?;
    ensure!(why.contains("was resumed"), "{why}");
    Ok(())
}

/// The values are no witness while it isn't settled what Redis has lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_has_lost_is_settled_before_a_handover() -> Result<()> {
    let bench = Bench::new(2, 20).await?;
    let tenant = bench.sandbox.tenants().remove(0);
    let mut redis = bench.sandbox.redis().connect().await?;
    let open = "{transactions}:balance-sync:vanished";
    let record = serde_json::json!({"reason": "redis_schedule_vanished", "detail": "20 members fewer"});
    redis.hset::<_, _, _, ()>(open, &tenant.id, record.to_string()).await?;

    let refused = bench.handover(&tenant, "a.json", &[]).await?;
    let why = "Redis has lost data of the tenant (redis_schedule_vanished: 20 members fewer)";
    ensure!(refused.code == Some(1) && refused.stderr.contains(why), "{refused:?}");
    assert!(!bench.file("a.json").exists());
    let signed = bench.handover(&tenant, "a.json", &["--with-findings"]).await?;
    ensure!(signed.code == Some(1), "{signed:?}");
    let text = std::fs::read_to_string(bench.file("a.json"))?;
    let statement: serde_json::Value = serde_json::from_str(text.lines().next().context("a line")?)?;
    ensure!(statement["truth"] == false && statement["notices"].to_string().contains(why), "{statement}");

    // Of another tenant, or settled.
    let other = bench.sandbox.tenants().remove(1);
    ensure!(bench.handover(&other, "b.json", &[]).await?.code == Some(0));
    redis.del::<_, ()>(open).await?;
    let signed = bench.handover(&tenant, "c.json", &[]).await?;
    ensure!(signed.code == Some(0), "{signed:?}");
    Ok(())
}

/// Every command that a Redis is sent until `end` is set, as command and first argument.
async fn commands_until(
    seen: &mut (impl futures::Stream<Item = String> + Unpin),
    end: &str,
) -> Result<BTreeSet<(String, String)>> {
    let mut commands = BTreeSet::new();
    loop {
        let line = seen.next().await.context("the monitor ended")?;
        if line.contains(end) {
            return Ok(commands);
        }
        // Whether Redis takes writes is tested by one that can't change anything (`Snapshots::write_refusal`).
        if line.contains(r#""XX" "0" """#) {
            continue;
        }
        let mut words = line.split('"').skip(1).step_by(2);
        let command = words.next().unwrap_or_default().to_lowercase();
        commands.insert((command, words.next().unwrap_or_default().to_owned()));
    }
}

/// Of a tenant with keys in both forms of its id as well, which is one tenant with one statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handover_writes_nothing_but_its_pause_and_reads_both_key_forms() -> Result<()> {
    /// What it reads beside an audit: schedules, quarantine, incidents, workers and the log of actions.
    const READS_TOO: &[&str] = &[
        "evalsha",
        "script",
        "zcard",
        "zcount",
        "zrange",
        "zrangebyscore",
        "hget",
        "hgetall",
        "hlen",
        "hmget",
        "get",
        "xrange",
        "xrevrange",
    ];
    const PAUSE: [(&str, &str); 2] =
        [("hset", "{transactions}:balance-sync:paused"), ("xadd", "{transactions}:balance-sync:actions")];
    let bench = Bench::new(2, 60).await?;
    let tenant = bench.sandbox.tenants().remove(1);
    let simple = TenantKeys::tenant(&tenant.id.replace('-', ""));
    assert_ne!(simple.prefix(), tenant.keys.prefix(), "{} is no UUID", tenant.id);
    let mut redis = bench.sandbox.redis().connect().await?;
    // In one form, in the other, in both, of which one is older, and in none.
    let put = |keys: &TenantKeys, n: usize, version: i64| {
        let balance = &tenant.balances[n];
        redis::cmd("SET").arg(keys.member(balance)).arg(balance.json(version)).arg("EX").arg(3600).clone()
    };
    for n in 0..40 {
        if n < 20 {
            put(&tenant.keys, n, SEED_VERSION).query_async::<()>(&mut redis).await?;
        }
        if n >= 10 {
            let version = if n < 20 { SEED_VERSION - 1 } else { SEED_VERSION };
            put(&simple, n, version).query_async::<()>(&mut redis).await?;
        }
    }

    // What is open in the form that is not listed is open.
    redis.zadd::<_, _, _, ()>(simple.schedule(), simple.member(&tenant.balances[30]), 1).await?;
    let refused = bench.handover(&tenant, "a.json", &["--drain", "1", "--json"]).await?;
    let said: serde_json::Value =
        serde_json::from_str(&refused.stdout).with_context(|| format!("{refused:?}"))?;
    ensure!(refused.code == Some(1) && said["signed"] == false, "{refused:?}");
    ensure!(said["refused"].as_str().is_some_and(|why| why.contains("1 due")), "{said}");
    redis.del::<_, ()>(simple.schedule()).await?;

    let before = writes(&bench.sandbox, &bench.sandbox.tenants()).await?;
    let monitor = redis::Client::open(bench.sandbox.redis().url())?.get_async_monitor().await?;
    let mut seen = monitor.into_on_message::<String>();
    let done = bench.handover(&tenant, "b.json", &["--json"]).await?;
    redis.set::<_, _, ()>("the end of the handover", 1).await?;
    let commands = commands_until(&mut seen, "the end of the handover").await?;
    ensure!(done.code == Some(0), "{done:?}");
    let written: Vec<_> = commands
        .iter()
        .filter(|(command, _)| !READS.contains(&command.as_str()) && !READS_TOO.contains(&command.as_str()))
        .map(|(command, key)| (command.as_str(), key.as_str()))
        .collect();
    assert_eq!(written, PAUSE, "{commands:?}");
    assert_eq!(writes(&bench.sandbox, &bench.sandbox.tenants()).await?, before, "rows were written");
    let signed: serde_json::Value = serde_json::from_str(&done.stdout)?;
    ensure!(signed["signed"] == true && signed["truth"] == true && signed["rows"] == 60, "{signed}");
    let text = std::fs::read_to_string(bench.file("b.json"))?;
    let statement: serde_json::Value = serde_json::from_str(text.lines().next().context("a line")?)?;
    assert_eq!((&statement["values"], &statement["witnesses"]), (&50.into(), &3.into()), "of both forms");
    assert_eq!(
        (&signed["merkle_root"], &signed["pause_action"]),
        (&statement["digest"]["merkle_root"], &statement["pause_action"])
    );

    // Newer in the form that is not listed.
    put(&simple, 5, SEED_VERSION + 1).query_async::<()>(&mut redis).await?;
    let refused = bench.handover(&tenant, "c.json", &[]).await?;
    let member = simple.member(&tenant.balances[5]);
    ensure!(refused.code == Some(1) && refused.stderr.contains(&member), "{refused:?}");

    // A verification in JSON.
    let same = bench.verify(&bench.file("b.json"), &["--json"]).await?;
    let said: serde_json::Value = serde_json::from_str(&same.stdout)?;
    ensure!(same.code == Some(0) && said["same_rows"] == true && said["different"].is_null(), "{said}");
    let id = tenant.balances[7].id;
    bench.sql(&tenant, &format!("UPDATE {{balance}} SET on_hold = on_hold + 1 WHERE id = '{id}'")).await?;
    let other = bench.verify(&bench.file("b.json"), &["--json"]).await?;
    let said: serde_json::Value = serde_json::from_str(&other.stdout)?;
    ensure!(other.code == Some(1) && said["same_rows"] == false && said["valid_signature"] == true, "{said}");
    assert_eq!(said["different"]["named"], serde_json::json!([{ "id": id, "what": "changed" }]));
    Ok(())
}

/// Listed in upper case with dashes, as a ledger up to 4.0 writes its keys; one from 4.1 on writes lower case without dashes. Either
/// way it is one tenant, and whoever hands it over may write its id in each of these ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_handed_over_by_each_form_of_its_id() -> Result<()> {
    let bench = Bench::new(2, 40).await?;
    let seeded = bench.sandbox.tenants().remove(1);
    let service = bench.sandbox.service();
    let record = service.remove_tenant(&seeded.id).context("it is listed")?;
    let id = seeded.id.to_uppercase();
    service.set_tenant(TenantRecord { id: id.clone(), ..record });
    let keys = TenantKeys::tenant(&id);
    let short = id.replace('-', "").to_lowercase();
    let forms = [keys, TenantKeys::tenant(&short)];
    let mut worker = Worker::of(&bench.sandbox).start().await?;
    let mut redis = bench.sandbox.redis().connect().await?;
    let config = bench.config();
    let names = [id.clone(), short.clone(), id.to_lowercase(), short.to_uppercase()];
    for (round, name) in names.into_iter().enumerate() {
        let version = SEED_VERSION + 1 + i64::try_from(round)?;
        for (number, balance) in seeded.balances.iter().enumerate() {
            let keys = &forms[(number + round) % 2];
            let (member, json) = (keys.member(balance), balance.json(version));
            put_raw(&mut redis, &keys.schedule(), member.as_bytes(), json.as_bytes(), Some(DEFAULT_TTL))
                .await?;
        }
        let mut tenant = seeded.clone();
        tenant.id.clone_from(&name);
        let out = format!("{round}.json");
        let done = bench.handover(&tenant, &out, &["--json"]).await?;
        ensure!(done.code == Some(0), "{name}: {done:?}");
        let text = std::fs::read_to_string(bench.file(&out))?;
        let statement: serde_json::Value = serde_json::from_str(text.lines().next().context("a line")?)?;
        assert_eq!((&statement["tenant"], &statement["truth"]), (&id.clone().into(), &true.into()), "{name}");
        // From the second round on each balance has an older value in the other form.
        let values = if round == 0 { 40 } else { 80 };
        assert_eq!(
            (&statement["values"], &statement["digest"]["rows"]),
            (&values.into(), &40.into()),
            "{name}"
        );
        let rows = rows(&bench.sandbox, &seeded).await?;
        ensure!(
            rows.values().all(|row| row.version == version),
            "{name}: what both forms had is in the rows"
        );
        let good = bench.verify(&bench.file(&out), &[]).await?;
        ensure!(good.code == Some(0), "{name}: {good:?}");
        let resumed = run(&["tenants", "resume", &name, "--config", &config], &[]).await?;
        ensure!(resumed.code == Some(0), "{name}: {resumed:?}");
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// What can't be read is named before the tenant is paused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_grants_tables_or_possible_clocks_nothing_is_paused_or_signed() -> Result<()> {
    let mut options = balance_sync_tests::options(1, 10);
    options.redis.settable_clock = true;
    let bench = Bench::on(Sandbox::start(options).await?).await?;
    let tenant = bench.sandbox.tenants().remove(0);
    let refused = async |code: i32, words: &str| -> Result<()> {
        let done = bench.handover(&tenant, "out.json", &[]).await?;
        ensure!(done.code == Some(code) && done.stderr.contains(words), "{words}: {done:?}");
        ensure!(done.stderr.contains("not paused") && !bench.file("out.json").exists(), "{done:?}");
        let mut redis = bench.sandbox.redis().connect().await?;
        let actions: i64 =
            redis::cmd("XLEN").arg("{transactions}:balance-sync:actions").query_async(&mut redis).await?;
        ensure!(actions == 0, "{words}: {actions} actions");
        Ok(())
    };
    bench.sql(&tenant, "REVOKE SELECT ON operation FROM balance_sync_tenants").await?;
    refused(1, "the grant SELECT on operation is missing").await?;
    bench.sql(&tenant, "DROP TABLE operation").await?;
    refused(1, "there is no table operation").await?;
    bench.sql(&tenant, "REVOKE SELECT (alias) ON {balance} FROM balance_sync_tenants").await?;
    refused(2, "the grant SELECT (alias) on balance is missing").await?;
    bench.sandbox.redis().shift_clock(-3 * 86_400_000)?;
    refused(2, "impossible clock: Redis says").await?;
    let (config, key, out) = (bench.config(), bench.path("key"), bench.path("out.json"));
    let args =
        ["handover", "--config", &config, "--tenant", "nobody", "--key", &key, "--out", &out, "--note", "x"];
    let done = run(&args, &[]).await?;
    ensure!(
        done.code == Some(2) && done.stderr.contains("tenant nobody is not among the active ones"),
        "{done:?}"
    );
    Ok(())
}

/// How long a handover of one tenant and its verification take, and the most memory each had; `--ignored`, with `BALANCE_SYNC_BIN` as
/// built for release and the number of balances in `HANDOVER_BALANCES`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
#[expect(clippy::print_stderr, reason = "a figure for the documents")]
async fn a_million_balances_are_handed_over() -> Result<()> {
    let balances = std::env::var("HANDOVER_BALANCES").map_or(Ok(1_000_000), |text| text.parse())?;
    let bench = Bench::new(1, balances).await?;
    let tenant = bench.sandbox.tenants().remove(0);
    fill(&bench.sandbox, &tenant).await?;
    bench.sandbox.postgres().execute(&tenant.database, "VACUUM ANALYZE").await?;
    let (config, key, public) = (bench.config(), bench.path("key"), bench.path("key.pub"));
    let out = bench.path("million.json");
    let (id, note) = (&*tenant.id, "a figure");
    let make =
        ["handover", "--config", &config, "--tenant", id, "--key", &key, "--out", &out, "--note", note];
    let verify = ["handover", "verify", &out, "--config", &config, "--public-key", &public];
    for args in [&make[..], &verify] {
        let begin = Instant::now();
        let child = prepare(args, &BTreeMap::new())?.spawn()?;
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
        let seconds = begin.elapsed().as_secs_f64();
        ensure!(ended.status.success(), "{ended:?}");
        eprintln!("{balances} balances, {}: {seconds:.1} s, {most}", args[1]);
    }
    eprintln!("the statement has {} bytes", std::fs::metadata(&out)?.len());
    Ok(())
}
