//! The commands around the worker: `check`, `verify`, and `sandbox`, `load` and `demo` of `balance-sync-lab`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::command::prepare_program;
use balance_sync_tests::ledger::comes_in_step;
use balance_sync_tests::worker::password_in;
use balance_sync_tests::{SOON, Worker, balance_sync, balance_sync_lab, connection_mode, run, run_program};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::{AsyncCommands as _, aio::MultiplexedConnection};
use serde_json::Value;
use url::Url;

#[tokio::test]
async fn check_refuses_bad_values_and_hides_secrets() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("worker.toml");
    std::fs::write(
        &file,
        "[redis]\nurl = \"redis://:hidden-one@127.0.0.1:6379\"\n[tenants.service]\nurl = \"https://tenants.example\"\n\
         api_key = \"hidden-two\"\n[collector]\nbatch_size = 0\n[claim]\nttl = \"5s\"\nmod = \"lock\"\n",
    )?;
    let path = file.to_str().context("a path of text")?;
    let flush = [("BALANCE_SYNC__COLLECTOR__FLUSH_TIMEOUT", "an hour")];
    for command in ["check", "run"] {
        let refused = run(&[command, "--config", path], &flush).await?;
        assert_eq!(refused.code, Some(2), "{command}: {}", refused.stderr);
        for part in [
            "collector.batch_size = 0",
            "allowed: 1 to 10000",
            "collector.flush_timeout = \"an hour\"",
            "BALANCE_SYNC__COLLECTOR__FLUSH_TIMEOUT",
            "claim.mod",
            "did you mean claim.mode?",
            path,
        ] {
            assert!(refused.stderr.contains(part), "{command}: {part} is missing in {}", refused.stderr);
        }
        assert!(!format!("{refused:?}").contains("hidden-"), "{refused:?}");
    }

    // A relation between good values, reported with both keys.
    std::fs::write(
        &file,
        "[tenants.service]\nurl = \"https://tenants.example\"\napi_key = \"hidden-two\"\n[claim]\nttl = \"5s\"\n",
    )?;
    let refused = run(&["check", "--config", path], &[]).await?;
    assert_eq!(refused.code, Some(2));
    assert!(
        refused.stderr.contains("claim.ttl = 5s") && refused.stderr.contains("collector.flush_deadline"),
        "{}",
        refused.stderr
    );

    let missing = run(&["check", "--config", "no/such/file.toml"], &[]).await?;
    assert!(missing.code == Some(2) && missing.stderr.contains("no/such/file.toml"), "{missing:?}");

    let good = [
        ("MULTI_TENANT_ENABLED", "true"),
        ("MULTI_TENANT_URL", "https://tenants.example"),
        ("MULTI_TENANT_SERVICE_API_KEY", "hidden-two"),
        ("REDIS_HOST", "127.0.0.1:7001"),
        ("REDIS_PASSWORD", "hidden-one"),
        ("BALANCE_SYNC_BATCH_SIZE", "1000000"),
    ];
    let accepted = run(&["check"], &good).await?;
    assert_eq!(accepted.code, Some(0), "{}", accepted.stderr);
    for part in [
        "[collector]",
        "batch_size = 10000",
        "api_key = \"***\"",
        "ledger variable MULTI_TENANT_SERVICE_API_KEY",
        "7001",
    ] {
        assert!(accepted.stdout.contains(part), "{part} is missing in {}", accepted.stdout);
    }
    assert!(accepted.stderr.contains("is clamped to 10000"), "{}", accepted.stderr);
    assert!(!format!("{accepted:?}").contains("hidden-"), "{accepted:?}");
    Ok(())
}

/// A process that is killed with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn port_in(url: &str) -> Result<u16> {
    Url::parse(url)?.port().context("a port")
}

async fn is_listening(port: u16) -> bool {
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
}

/// Processes that work in this folder, or name it on their command line.
fn processes_in(folder: &Path) -> Result<Vec<String>> {
    let name = folder.to_string_lossy().into_owned();
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Ok(found) };
    for entry in entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit()) {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let works_there =
            std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        if works_there || command.contains(&name) {
            found.push(command);
        }
    }
    Ok(found)
}

#[tokio::test]
async fn a_sandbox_can_be_worked_and_leaves_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // PostgreSQL runs as another user when we are root.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o1777))?;
    let env = BTreeMap::from([("TMPDIR".to_owned(), folder.path().to_string_lossy().into_owned())]);
    let lab = balance_sync_lab()?;
    let args = ["sandbox", "--json", "--tenants", "4", "--balances", "50"];
    let mut sandbox = Running(prepare_program(&lab, &args, &env).process_group(0).spawn()?);
    let output = sandbox.0.stdout.take().context("its output")?;
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).map(|_| line)
    });
    let line = tokio::time::timeout(SOON, line).await.context("no line")???;
    let printed: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    let text = |name: &str| printed[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
    let (redis, service, config) = (text("redis_url")?, text("tenant_service_url")?, text("config")?);
    let tenants = printed["tenants"].as_array().context("no tenants")?;
    assert_eq!(tenants.len(), 4);
    let mut ports = vec![port_in(&redis)?, port_in(&service)?];
    let mut secrets = vec![text("api_key")?];
    for tenant in tenants {
        let url = tenant["database_url"].as_str().context("no database_url")?;
        ports.push(port_in(url)?);
        secrets.extend(password_in(url));
        assert!(tenant["id"].as_str().is_some() && tenant.get("schema").is_some(), "{tenant}");
    }
    assert!(tenants[3]["schema"].is_string() && tenants[0]["schema"].is_null());

    let load = ["load", "--config", &config, "--rate", "400", "--seconds", "1", "--json"];
    let loaded = run_program(&lab, &load, &[]).await?;
    assert_eq!(loaded.code, Some(0), "{}", loaded.stderr);
    let figures: Value = serde_json::from_str(&loaded.stdout)?;
    assert!(figures["mutations"].as_u64().is_some_and(|mutations| mutations >= 300), "{figures}");

    // No worker has run yet: Redis is ahead.
    let behind = run(&["verify", "--config", &config, "--json"], &[]).await?;
    assert_eq!(behind.code, Some(1), "{behind:?}");
    let mut worker = Worker::with_config(Path::new(&config));
    for secret in &secrets {
        worker = worker.secret(secret);
    }
    let mut worker = worker.start().await?;
    let equal = run(&["verify", "--config", &config, "--wait", "30"], &[]).await?;
    assert_eq!(equal.code, Some(0), "{equal:?}");
    assert!(equal.stdout.contains("in 4 tenants, 0 behind, 0 missing"), "{}", equal.stdout);
    assert_eq!(worker.stop().await?.code, Some(0));
    for finished in [&loaded, &behind, &equal] {
        let said = format!("{finished:?}");
        assert!(secrets.iter().all(|secret| !said.contains(secret)), "{said}");
    }

    for port in &ports {
        assert!(is_listening(*port).await, "port {port}");
    }
    assert!(!processes_in(folder.path())?.is_empty());
    kill(Pid::from_raw(i32::try_from(sandbox.0.id())?), Signal::SIGINT)?;
    let mut status = None;
    eventually(SOON, "the sandbox's end", || {
        status = sandbox.0.try_wait().ok().flatten();
        std::future::ready(status.is_some())
    })
    .await?;
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    let left: Vec<_> = std::fs::read_dir(folder.path())?.flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(processes_in(folder.path())?, Vec::<String>::new());
    for port in ports {
        assert!(!is_listening(port).await, "port {port}");
    }
    Ok(())
}

#[tokio::test]
async fn a_sandbox_is_broken_and_mended_for_drills() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o1777))?;
    let env = BTreeMap::from([("TMPDIR".to_owned(), folder.path().to_string_lossy().into_owned())]);
    let lab = balance_sync_lab()?;
    let args = ["sandbox", "--json", "--tenants", "3", "--balances", "5"];
    let mut sandbox = Running(prepare_program(&lab, &args, &env).process_group(0).spawn()?);
    let output = sandbox.0.stdout.take().context("its output")?;
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).map(|_| line)
    });
    let line = tokio::time::timeout(SOON, line).await.context("no line")???;
    let printed: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    let config = printed["config"].as_str().context("no config")?;
    let url = printed["dashboard_url"].as_str().context("no dashboard")?;
    let listen = url.trim_start_matches("http://").trim_end_matches('/');
    assert!(std::fs::read_to_string(config)?.contains(&format!("listen = \"{listen}\"")), "{url}");

    let mut worker = Worker::with_config(Path::new(config)).set("admin.listen", listen).start().await?;
    assert_eq!(worker.get("/livez").await?.0, 200);
    // Something to write, so that a breakage is noticed. It reads the balances before it begins, so it must run before.
    let args = ["load", "--config", config, "--rate", "50", "--seconds", "600"];
    let mut load = prepare_program(&lab, &args, &env);
    let _load = Running(load.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    eventually(SOON, "rows that are written", || async {
        let shown = run(&["tenants", "show", "tenant-0001", "--json", "--config", config], &[]).await?;
        let shown: Value = serde_json::from_str(&shown.stdout)?;
        anyhow::ensure!(shown["updated_total"].as_u64() > Some(0), "{shown}");
        Ok(())
    })
    .await?;
    // The reason, as soon as the tenant is degraded, or no longer.
    let becomes = |degraded: bool| async move {
        eventually(SOON, &format!("degraded: {degraded}"), || async {
            let shown = run(&["tenants", "show", "tenant-0001", "--json", "--config", config], &[]).await?;
            let shown: Value = serde_json::from_str(&shown.stdout)?;
            anyhow::ensure!((shown["state"] == "degraded") == degraded, "{shown}");
            anyhow::Ok(shown["reason"].as_str().unwrap_or_default().to_owned())
        })
        .await
    };
    let ask = |order: Vec<&'static str>| {
        let (lab, args) = (lab.clone(), [vec!["sandbox"], order, vec!["--config", config]].concat());
        async move { run_program(&lab, &args, &[]).await }
    };
    for what in ["password", "postgres", "schema"] {
        let broken = ask(vec!["break", "tenant-0001", what]).await?;
        assert_eq!((broken.code, broken.stdout.as_str()), (Some(0), "tenant-0001 is broken\n"), "{broken:?}");
        let reason = becomes(true).await?;
        assert!(reason.starts_with("postgres_"), "{what}: {reason}");
        let mended = ask(vec!["mend", "tenant-0001"]).await?;
        assert_eq!((mended.code, mended.stdout.as_str()), (Some(0), "tenant-0001 is mended\n"), "{mended:?}");
        // It would be tried again after a while.
        run(&["tenants", "flush", "tenant-0001", "--config", config], &[]).await?;
        becomes(false).await?;
    }
    for (order, part) in [
        (["break", "nobody", "password"], "nobody"),
        (["break", "tenant-0001", "disk"], "must be one of password, postgres, schema"),
    ] {
        let refused = ask(order.to_vec()).await?;
        assert!(refused.code == Some(2) && refused.stderr.contains(part), "{part}: {refused:?}");
    }
    worker.stop().await?;
    kill(Pid::from_raw(i32::try_from(sandbox.0.id())?), Signal::SIGINT)?;
    eventually(SOON, "the sandbox's end", || {
        std::future::ready(sandbox.0.try_wait().ok().flatten().is_some())
    })
    .await?;
    let refused = ask(vec!["mend", "tenant-0001"]).await?;
    assert!(refused.code == Some(2) && refused.stderr.contains("no sandbox runs with"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn every_command_has_a_man_page() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (program, pages) in [
        (balance_sync()?, &["balance-sync.1", "balance-sync-status.1", "balance-sync-quarantine-list.1"]),
        (
            balance_sync_lab()?,
            &["balance-sync-lab.1", "balance-sync-lab-sandbox.1", "balance-sync-lab-sandbox-break.1"],
        ),
    ] {
        let into = folder.path().join("man").display().to_string();
        let done = run_program(&program, &["man", &into], &[]).await?;
        assert_eq!(done.code, Some(0), "{done:?}");
        for page in pages {
            let text = std::fs::read_to_string(folder.path().join("man").join(page)).context(*page)?;
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_demo_says_when_the_product_binary_is_missing() -> Result<()> {
    let lab = balance_sync_lab()?;
    // Next to it, so that it can be a link: the program is large.
    let folder = tempfile::tempdir_in(lab.parent().context("its folder")?)?;
    let alone = folder.path().join("balance-sync-lab");
    std::fs::hard_link(&lab, &alone)?;
    let refused = run_program(&alone, &["demo", "--seconds", "1"], &[]).await?;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let missing = folder.path().join("balance-sync").display().to_string();
    for part in ["balance-sync-lab: ", missing.as_str(), "make build"] {
        assert!(refused.stderr.contains(part), "{part} is missing in {}", refused.stderr);
    }
    assert!(!refused.stderr.contains("starting"), "no servers were started: {}", refused.stderr);
    Ok(())
}

#[tokio::test]
async fn check_connect_tries_everything_and_changes_nothing() -> Result<()> {
    let options = SandboxOptions { isolation: Isolation::Database, ..balance_sync_tests::options(3, 20) };
    let sandbox = Sandbox::start(options).await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    let check = || async {
        let finished = run(&["check", "--config", &config, "--connect", "--json"], &[]).await?;
        let report: Value =
            serde_json::from_str(&finished.stdout).with_context(|| format!("{finished:?}"))?;
        anyhow::Ok((finished.code, report))
    };
    let found = |report: &Value, area: &str, level: &str, text: &str| -> Option<Value> {
        let findings = report["findings"].as_array()?;
        let fits = |one: &&Value| {
            one["area"] == area
                && one["level"] == level
                && one["found"].as_str().is_some_and(|found| found.contains(text))
        };
        findings.iter().find(fits).cloned()
    };
    let mut redis = sandbox.redis().connect().await?;
    // What Redis counts of changes.
    let state = |redis: &MultiplexedConnection| {
        let mut redis = redis.clone();
        async move {
            let info: String = ::redis::cmd("INFO").arg("everything").query_async(&mut redis).await?;
            anyhow::Ok(info.lines().find(|line| line.starts_with("rdb_changes_since")).map(str::to_owned))
        }
    };
    let before = state(&redis).await?;
    let (code, report) = check().await?;
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(state(&redis).await?, before);
    let reached = match connection_mode(&sandbox) {
        "direct" => "reached directly".to_owned(),
        mode => format!("reached through a {mode}"),
    };
    for (area, text) in [
        ("tenants", "3 active"),
        ("redis", "every command and the keys of 3 tenants may be used"),
        ("schedules", "60 members in those of 3 tenants"),
        ("values", "60 read"),
        ("ledger", "holds no claim lock"),
        ("postgres", reached.as_str()),
    ] {
        assert!(found(&report, area, "ok", text).is_some(), "{area}: {text}: {report:#}");
    }

    // What is wrong is named, with its tenant and what helps.
    let tenants = sandbox.tenants();
    // From whoever the tenant's role has it.
    let revoke = "DO $$ DECLARE holder text; BEGIN \
         FOR holder IN SELECT DISTINCT grantee FROM information_schema.column_privileges \
             WHERE table_name = 'balance' AND privilege_type = 'UPDATE' AND grantee <> 'postgres' LOOP \
           EXECUTE format('REVOKE UPDATE ON balance FROM %1$I; REVOKE UPDATE (version) ON balance FROM %1$I; \
             GRANT UPDATE (available, on_hold, overdraft_used, updated_at) ON balance TO %1$I', holder); \
         END LOOP; END $$";
    sandbox.postgres().execute(&tenants[0].database, revoke).await?;
    sandbox.postgres().drop_database(&tenants[1].database).await?;
    let member = format!("{}x", producer.tenants()[0].keys.schedule());
    let lock = format!("lock:{{transactions}}:balance-sync:{member}");
    redis.set::<_, _, ()>(&lock, "1").await?;
    ::redis::cmd("ACL")
        .arg(&["SETUSER", balance_sync_sandbox::WORKER_USER, "-zadd", "-time"])
        .query_async::<()>(&mut redis)
        .await?;
    let (code, report) = check().await?;
    assert_eq!(code, Some(1), "{report:#}");
    let grants = found(&report, "postgres", "fail", "the role lacks UPDATE (version)")
        .with_context(|| format!("grants: {report:#}"))?;
    assert_eq!(grants["tenants"], serde_json::json!([tenants[0].id]), "{grants}");
    assert!(grants["help"].as_str().is_some_and(|help| help.contains("grants.sql")), "{grants}");
    for (area, text) in [
        ("postgres", "postgres_database_missing"),
        ("redis", "no right to +zadd +time"),
        ("ledger", "its own worker runs"),
    ] {
        assert!(found(&report, area, "fail", text).is_some(), "{area}: {text}: {report:#}");
    }

    // The keys of one tenant say nothing of another's, nor does an empty table pass for a good one.
    sandbox.postgres().execute(&tenants[2].database, "TRUNCATE balance").await?;
    let only = format!("~{}*", tenants[2].keys.prefix());
    ::redis::cmd("ACL")
        .arg(&[
            "SETUSER",
            balance_sync_sandbox::WORKER_USER,
            "resetkeys",
            "~{transactions}:balance-sync:*",
            &only,
        ])
        .query_async::<()>(&mut redis)
        .await?;
    let report = check().await?.1;
    let keys =
        found(&report, "redis", "fail", "no right to tenant:").with_context(|| format!("{report:#}"))?;
    let denied = keys["tenants"].as_array().context("its tenants")?;
    assert!(
        denied.contains(&tenants[0].id.as_str().into()) && denied.contains(&tenants[1].id.as_str().into())
    );
    assert!(!denied.contains(&tenants[2].id.as_str().into()), "{keys}");
    let empty = found(&report, "postgres", "warn", "is empty").with_context(|| format!("{report:#}"))?;
    assert_eq!(empty["tenants"], serde_json::json!([tenants[2].id]));
    Ok(())
}

#[tokio::test]
async fn verify_finds_every_kind_of_difference() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 20).await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    let verify = || async {
        let finished = run(&["verify", "--config", &config, "--json"], &[]).await?;
        let result: Value =
            serde_json::from_str(&finished.stdout).with_context(|| format!("{finished:?}"))?;
        anyhow::Ok((finished.code, result))
    };
    assert_eq!(verify().await?.0, Some(0));

    let tenant = sandbox.tenants().remove(0);
    let (other, gone, closed) = (tenant.balances[0].id, tenant.balances[1].id, tenant.balances[5].id);
    let sql = format!(
        "UPDATE balance SET available = available + 0.000000000000000000000000000001 WHERE id = '{other}';
         DELETE FROM balance WHERE id = '{gone}'; UPDATE balance SET deleted_at = now() WHERE id = '{closed}'"
    );
    sandbox.postgres().execute(&tenant.database, &sql).await?;
    producer.mutate(0, &[2, 3], DEFAULT_TTL).await?;
    let (code, result) = verify().await?;
    assert_eq!(code, Some(1));
    let row = result["tenants"]
        .as_array()
        .and_then(|rows| rows.iter().find(|row| row["tenant"] == tenant.id.as_str()));
    let row = row.context("no result for the tenant")?;
    let counts = ["different", "missing", "behind", "deleted", "equal"].map(|name| row[name].as_u64());
    assert_eq!(counts, [Some(1), Some(1), Some(2), Some(1), Some(15)], "{result}");

    // One tenant that can't be asked leaves the others their result, and is not "equal".
    let away = format!("ALTER DATABASE {} RENAME TO elsewhere", tenant.database);
    // A pooler closes its sessions a moment after their last use.
    eventually(SOON, "a database without sessions", || sandbox.postgres().execute("postgres", &away)).await?;
    let (code, result) = verify().await?;
    assert_eq!(code, Some(2), "{result}");
    assert_eq!(result["tenants"].as_array().map(Vec::len), Some(2), "{result}");
    assert_eq!(result["failed"][0]["tenant"], tenant.id.as_str(), "{result}");

    // What can't be asked is not "equal".
    sandbox.postgres().stop_immediate().await?;
    let unknown = run(&["verify", "--config", &config], &[]).await?;
    ensure!(unknown.code == Some(2), "{unknown:?}");
    Ok(())
}
