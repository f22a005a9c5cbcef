//! `check`: hosts that are none, and what `check --connect` prints for people and for programs.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions};
use balance_sync_tests::{options, run};
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
