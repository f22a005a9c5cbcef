//! `check`: hosts that are none, and what `check --connect` prints for people and for programs.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_sandbox::{Isolation, RedisOptions, Sandbox, SandboxOptions};
use balance_sync_tests::command::prepare;
use balance_sync_tests::{options, run, run_within};
use nix::pty::openpty;
use serde_json::Value;

/// What may be found in the place of a host: each with the words for it.
const ODD: [(&str, &str); 6] = [
    ("db.internal:5432", "contains a port: it stands in a field of its own"),
    ("a.internal,b.internal", "contains a comma: one host is allowed"),
    ("[::1]", "contains brackets: an IPv6 address stands without them"),
    ("\"db.internal\"", "contains quotes: the name stands without them"),
    ("db.internal\n", "contains white space"),
    ("https://db.internal", "is a URL: allowed is the host alone"),
];

#[tokio::test]
async fn hosts_that_are_none_are_refused_by_name() -> Result<()> {
    let service = [
        ("BALANCE_SYNC__TENANTS__SERVICE__URL", "https://tenants.example"),
        ("BALANCE_SYNC__TENANTS__SERVICE__API_KEY", "hidden-one"),
    ];
    let master = ("BALANCE_SYNC__REDIS__MASTER_NAME", "m");
    let key = "BALANCE_SYNC__REDIS__URL";
    for (setting, named, words) in [
        ((key, "redis://a,b:6379"), "redis.url", "its host contains a comma"),
        ((key, "redis://:hidden-two@\"db\":6379"), "redis.url", "its host contains quotes"),
        ((key, "redis://'db':6379"), "redis.url", "its host contains quotes"),
        ((key, "redis://db\n.internal:6379"), "redis.url", "contains a line break or a tab"),
        ((key, "redis://[db]:6379"), "redis.url", "allowed: redis://"),
        ((key, "redis://db:6379:6380"), "redis.url", "allowed: redis://"),
        (("REDIS_HOST", "\"db\":6379"), "redis.url", "its host contains quotes"),
        (("REDIS_HOST", "db:6379,'db'"), "redis.cluster_nodes[1]", "its host contains quotes"),
        (("BALANCE_SYNC__REDIS__SENTINELS", "a,\"b\""), "redis.sentinels[1]", "its host contains quotes"),
        (("BALANCE_SYNC__REDIS__SENTINELS", "a,[b]:1"), "redis.sentinels[1]", "allowed: host:port"),
        (("BALANCE_SYNC__REDIS__SENTINELS", "a\nb"), "redis.sentinels[0]", "allowed: host:port"),
        (("BALANCE_SYNC__TENANTS__SERVICE__URL", "https://a,b"), "tenants.service.url", "contains a comma"),
        (("BALANCE_SYNC__TENANTS__SERVICE__URL", "https://'a'"), "tenants.service.url", "contains quotes"),
    ] {
        let mut env = service.to_vec();
        if setting.0.ends_with("SENTINELS") {
            env.push(master);
        }
        env.retain(|(name, _)| *name != setting.0);
        env.push(setting);
        let refused = run(&["check"], &env).await?;
        let text = format!("{}{}", refused.stdout, refused.stderr);
        ensure!(refused.code == Some(2), "{setting:?}: {refused:?}");
        ensure!(text.contains(&format!("{named} = ")) && text.contains(words), "{setting:?}: {text}");
        ensure!(!text.contains("hidden-"), "{text}");
    }
    // The tenants' own, from the configuration.
    for (host, words) in ODD {
        let single = [
            ("BALANCE_SYNC__TENANTS__SOURCE", "single"),
            ("BALANCE_SYNC__TENANTS__SINGLE__HOST", host),
            ("BALANCE_SYNC__TENANTS__SINGLE__DATABASE", "ledger"),
            ("BALANCE_SYNC__TENANTS__SINGLE__USERNAME", "sync"),
        ];
        let refused = run(&["check"], &single).await?;
        ensure!(refused.code == Some(2), "{host:?}: {refused:?}");
        let named = "tenants.single.host";
        ensure!(refused.stderr.contains(named) && refused.stderr.contains(words), "{host:?}: {refused:?}");
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("worker.toml");
        let listed = format!(
            "[tenants]\nsource = \"static\"\n[[tenants.list]]\nid = \"acme\"\nhost = {host:?}\nport = 5432\n\
             database = \"ledger\"\nusername = \"sync\"\n"
        );
        std::fs::write(&file, listed)?;
        let refused = run(&["check", "--config", file.to_str().context("a path of text")?], &[]).await?;
        ensure!(refused.code == Some(2), "{host:?}: {refused:?}");
        let named = "tenants.list[0].host";
        ensure!(refused.stderr.contains(named) && refused.stderr.contains(words), "{host:?}: {refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn each_odd_host_of_the_tenant_service_has_its_line_with_what_helps() -> Result<()> {
    let wanted = SandboxOptions { isolation: Isolation::Database, ..options(ODD.len() + 1, 3) };
    let sandbox = Sandbox::start(wanted).await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    sandbox.producer().mutate_each(DEFAULT_TTL).await?;
    let check = async |form: &[&str]| {
        let args = [&["check", "--config", &config, "--connect"], form].concat();
        run(&args, &[]).await
    };
    // For people: a line for each finding, and how many there are.
    let good = check(&[]).await?;
    assert_eq!(good.code, Some(0), "{good:?}");
    for part in ["ok    redis ", "ok    tenants     7 active\n", "ok    postgres ", " 0 fail\n"] {
        assert!(good.stdout.contains(part), "{part:?} is missing in {}", good.stdout);
    }
    assert!(!good.stdout.contains("FAIL") && !good.stdout.contains('\u{1b}'), "{}", good.stdout);
    assert!(!good.stderr.contains("tenants, "), "no progress bar without a terminal: {}", good.stderr);

    let tenants = sandbox.tenants();
    for (tenant, (host, _)) in tenants.iter().zip(ODD) {
        sandbox.service().update(&tenant.id, |record| host.clone_into(&mut record.host));
    }
    let bad = check(&[]).await?;
    assert_eq!(bad.code, Some(1), "{bad:?}");
    let words: Vec<&str> = bad.stdout.split_whitespace().collect();
    let text = words.join(" ");
    for (tenant, (_, words)) in tenants.iter().zip(ODD).take(4) {
        let line = format!("FAIL postgres {}: no settings: ", tenant.id);
        assert!(text.contains(&line) && text.contains(words), "{line} {words}: {text}");
    }
    assert!(text.contains("→ correct it in the tenant service, or in tenants.list"), "{text}");
    assert!(text.contains("warn, 5 fail"), "{text}");

    let report: Value = serde_json::from_str(&check(&["--json"]).await?.stdout)?;
    assert_eq!(report["level"], "fail");
    let findings = report["findings"].as_array().context("findings")?;
    let failed: Vec<&Value> = findings.iter().filter(|finding| finding["level"] == "fail").collect();
    let of = |finding: &Value| finding["tenants"].as_array().map_or(0, Vec::len);
    // Five lines of a kind at most: the last stands for the rest.
    assert_eq!(failed.iter().map(|finding| of(finding)).collect::<Vec<_>>(), [1, 1, 1, 1, 2], "{failed:?}");
    for finding in &failed {
        assert_eq!((&finding["area"], &finding["kind"]), (&"postgres".into(), &"settings".into()));
        assert!(finding["help"].as_str().is_some_and(|help| !help.is_empty()), "{finding}");
    }
    // The rest is looked at all the same.
    let healthy = findings.iter().find(|finding| finding["area"] == "postgres" && finding["level"] == "ok");
    let healthy = healthy.with_context(|| report.to_string())?;
    assert_eq!(healthy["tenants"], serde_json::json!([tenants[ODD.len()].id]), "{healthy}");
    Ok(())
}

#[tokio::test]
async fn a_thousand_tenants_are_checked_a_few_at_a_time_and_reported_in_a_few_lines() -> Result<()> {
    check_many(1_000).await
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn ten_thousand_tenants_are_checked() -> Result<()> {
    check_many(10_000).await
}

/// They share one database, so that it is their number that is tried and not Postgres.
async fn check_many(count: usize) -> Result<()> {
    const AT_ONCE: i64 = 8;
    /// So many have a wrong password, and one each a database that doesn't exist and an odd host.
    const REFUSED: usize = 100;
    const LIMIT: Duration = Duration::from_secs(900);
    let wanted = SandboxOptions { isolation: Isolation::Database, ..options(1, 20) };
    let sandbox = Sandbox::start(wanted).await?;
    sandbox.producer().mutate_each(DEFAULT_TTL).await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let first = sandbox.tenants().remove(0).id;
    let record = sandbox.service().tenant(&first).context("its record")?;
    for number in 1..count {
        let mut record = record.clone();
        record.id = format!("many-{number:05}");
        match number {
            1 => record.host = "db.internal:5432".into(),
            2 => record.database = "nowhere".into(),
            _ if number < 3 + REFUSED => record.password = "not the one".to_owned().into(),
            _ => {}
        }
        sandbox.service().set_tenant(record);
    }
    let at_once = AT_ONCE.to_string();
    let check = async |timeout: &str| {
        let args = [
            "check",
            "--config",
            &config,
            "--connect",
            "--json",
            "--at-once",
            &at_once,
            "--timeout",
            timeout,
        ];
        let finished = run_within(LIMIT, &args, &[]).await?;
        let report: Value =
            serde_json::from_str(&finished.stdout).with_context(|| format!("{finished:?}"))?;
        anyhow::Ok((finished.code, report))
    };
    let pool = sandbox.postgres().pool("postgres");
    let sessions = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'balance-sync check'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await
    };
    let mut most = 0;
    let all = check("800");
    tokio::pin!(all);
    let (code, report) = loop {
        tokio::select! {
            checked = &mut all => break checked?,
            () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(sessions().await?),
        }
    };
    assert_eq!(code, Some(1), "{report:#}");
    // Those that have just been closed may still be counted.
    assert!((1..3 * AT_ONCE).contains(&most), "{most} sessions at the same time");
    let findings = report["findings"].as_array().context("findings")?;
    let of = |finding: &Value| finding["tenants"].as_array().map_or(0, Vec::len);
    let mut lines: Vec<(&str, &str, usize)> = findings
        .iter()
        .filter(|finding| finding["area"] == "postgres")
        .map(|finding| {
            let text = |name: &str| finding[name].as_str().unwrap_or_default();
            (text("level"), if text("level") == "ok" { "" } else { text("kind") }, of(finding))
        })
        .collect();
    lines.sort_unstable();
    // How a server is reached is not known yet of those that are asked first, where its answer takes long.
    lines.dedup_by(|later, first| {
        let same = later.0 == "ok" && first.0 == "ok";
        first.2 += if same { later.2 } else { 0 };
        same
    });
    let expected = [
        ("fail", "postgres_credentials", REFUSED),
        ("fail", "postgres_database_missing", 1),
        ("fail", "settings", 1),
        ("ok", "", count - REFUSED - 2),
    ];
    assert_eq!(lines, expected, "{findings:?}");
    for text in [
        format!("{count} active"),
        format!("the keys of {count} tenants may be used"),
        format!("20 members in those of {count} tenants"),
    ] {
        let said = |finding: &&Value| finding["found"].as_str().is_some_and(|found| found.contains(&text));
        assert!(findings.iter().any(|finding| said(&finding)), "{text:?} is missing in {report:#}");
    }

    // What there was no time for is counted.
    let (_, report) = check("0.2").await?;
    let findings = report["findings"].as_array().context("findings")?;
    let looked: usize = findings.iter().filter(|finding| finding["area"] == "postgres").map(of).sum();
    let left = format!("{} of {count} tenants were not looked at in time", count - looked);
    let said = |finding: &&Value| finding["level"] == "warn" && finding["found"] == left.as_str();
    assert!(looked < count && findings.iter().any(|finding| said(&finding)), "{left}: {findings:?}");
    pool.close().await;
    Ok(())
}

#[tokio::test]
async fn what_redis_may_lose_or_hides_is_named_with_what_helps() -> Result<()> {
    let wanted = options(3, 10);
    let redis = RedisOptions { settable_clock: true, ..wanted.redis.clone() };
    let sandbox = Sandbox::start(SandboxOptions { redis, ..wanted }).await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let tenants = sandbox.tenants();
    sandbox.producer().mutate_each(DEFAULT_TTL).await?;
    let mut redis = sandbox.redis().connect().await?;
    let keys = &tenants[0].keys;
    let member = keys.member(&tenants[0].balances[0]);
    let value = tenants[0].balances[0].json(3);
    put_raw(&mut redis, &keys.legacy_schedule(), member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL))
        .await?;
    let check = async |key_form: &str| {
        let env = [("BALANCE_SYNC__TENANTS__KEY_FORM", key_form)];
        let finished = run(&["check", "--config", &config, "--connect", "--json"], &env).await?;
        let report: Value =
            serde_json::from_str(&finished.stdout).with_context(|| format!("{finished:?}"))?;
        anyhow::Ok((finished.code, report))
    };
    let has = |report: &Value, level: &str, area: &str, text: &str| {
        let fits = |one: &Value| {
            let found = one["found"].as_str().is_some_and(|found| found.contains(text));
            found && one["level"] == level && one["area"] == area && one["help"] != ""
        };
        ensure!(
            report["findings"].as_array().is_some_and(|all| all.iter().any(fits)),
            "{text:?}: {report:#}"
        );
        Ok(())
    };
    ::redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory-policy", "allkeys-lru"])
        .query_async::<()>(&mut redis)
        .await?;
    sandbox.redis().shift_clock(-5000)?;
    let (code, report) = check("auto").await?;
    assert_eq!(code, Some(0), "warnings alone: {report:#}");
    for (area, text) in [
        ("redis", "maxmemory-policy is allkeys-lru: balances, or a whole schedule, may be evicted"),
        ("redis", "the append-only file is off"),
        ("redis", "its clock and this machine's are "),
        ("schedules", "1 members in legacy schedules of tenant-0001"),
    ] {
        has(&report, "warn", area, text)?;
    }

    // The second tenant's id is a UUID, and its keys have it as listed.
    let (code, report) = check("simple_uuid").await?;
    assert_eq!(code, Some(1), "{report:#}");
    has(
        &report,
        "fail",
        "schedules",
        &format!("10 members under the other form of the tenant id: {}", tenants[1].id),
    )?;

    ::redis::cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).query_async::<()>(&mut redis).await?;
    let (code, report) = check("auto").await?;
    assert_eq!(code, Some(1), "{report:#}");
    has(&report, "fail", "redis", "a replica answers, which takes no writes")?;
    has(&report, "fail", "redis", "writes are refused: ")
}

#[tokio::test]
async fn in_a_terminal_a_bar_shows_how_many_tenants_are_done() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(4, 1).await?;
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let env = BTreeMap::from([("TERM".to_owned(), "xterm-256color".to_owned())]);
    let pty = openpty(None, None)?;
    let mut child = {
        let mut command = prepare(&["check", "--config", &config, "--connect", "--json"], &env)?;
        command.stdout(Stdio::null()).stderr(Stdio::from(pty.slave)).spawn()?
    };
    let mut shown = Vec::new();
    // A terminal without writers ends with an error on Linux.
    let _ = std::fs::File::from(pty.master).read_to_end(&mut shown);
    let shown = String::from_utf8_lossy(&shown);
    assert!(child.wait()?.success(), "{shown}");
    assert!(shown.contains(" of 4 tenants, "), "{shown:?}");
    Ok(())
}
