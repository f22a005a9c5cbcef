//! `handover`: a signed statement of a tenant's rows, and every way to tamper with rows or file is detected.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table, eventually};
use balance_sync_tests::command::prepare;
use balance_sync_tests::ledger::{comes_in_step, fill, scores};
use balance_sync_tests::{Finished, SOON, Worker, run};
use redis::AsyncCommands as _;
use tempfile::TempDir;

struct Bench {
    sandbox: Sandbox,
    folder: TempDir,
}

impl Bench {
    async fn new(tenants: usize, balances: usize) -> Result<Self> {
        let sandbox = balance_sync_tests::sandbox(tenants, balances).await?;
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
