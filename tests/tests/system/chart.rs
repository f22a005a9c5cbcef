//! What the Helm chart gives a worker is accepted by the worker: the renderings that `make chart` compares, with the variables of a
//! ledger behind their references. And what `helm test` runs, on a fleet.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::{TlsAuthority, eventually, free_port};
use balance_sync_tests::{SOON, Worker, run};
use yaml_rust2::{Yaml, YamlLoader};

const USERS: &str = include_str!("../../../deploy/redis/users.acl");

/// A rendering, its documents by kind.
fn rendered(file: &Path) -> Result<BTreeMap<String, Yaml>> {
    let documents = YamlLoader::load_from_str(&std::fs::read_to_string(file)?)?;
    let kinds = documents.into_iter().filter_map(|one| Some((one["kind"].as_str()?.to_owned(), one)));
    Ok(kinds.collect())
}

/// Variables of a ledger's ConfigMap and Secret, as its chart renders them.
fn of_ledger() -> BTreeMap<String, String> {
    let text = include_str!("../../wire/ledger_env.env");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// The container's environment; where `mounted` stands for the folders that are mounted into it.
fn environment(container: &Yaml, mounted: &Path) -> Result<BTreeMap<String, String>> {
    let mut all = if container["envFrom"].is_badvalue() { BTreeMap::new() } else { of_ledger() };
    for variable in container["env"].as_vec().context("env")? {
        let name = variable["name"].as_str().context("name")?;
        let value = match variable["value"].as_str() {
            Some(value) => in_folder(value, mounted),
            // A reference to a Secret, or to the node's address.
            None => format!("referenced-value-of-{}", name.to_lowercase()),
        };
        // Kubernetes takes the last one as well, but two of a name are a mistake of the chart.
        let before = all.insert(name.to_owned(), value);
        ensure!(before.is_none() || of_ledger().contains_key(name), "{name} stands twice");
    }
    Ok(all)
}

fn in_folder(value: &str, mounted: &Path) -> String {
    let inside = ["/etc/balance-sync", "/run/balance-sync"].iter().any(|folder| value.starts_with(folder));
    if inside { format!("{}{value}", mounted.display()) } else { value.to_owned() }
}

fn write(mounted: &Path, path: &str, content: &str) -> Result<()> {
    let path = mounted.join(path.trim_start_matches('/'));
    std::fs::create_dir_all(path.parent().context("a folder")?)?;
    Ok(std::fs::write(path, content)?)
}

#[tokio::test]
async fn a_worker_accepts_what_the_chart_renders() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("chart/golden");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder)? {
        let file = entry?.path();
        let objects = rendered(&file)?;
        let pod = &objects["Deployment"]["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let mounted = tempfile::tempdir()?;
        write(mounted.path(), "/etc/balance-sync-ca/redis.pem", &TlsAuthority::new("a test")?.ca)?;
        write(mounted.path(), "/run/balance-sync/redis", "a password")?;
        if let Some(text) = objects.get("ConfigMap").and_then(|map| map["data"]["balance-sync.toml"].as_str())
        {
            let text = text
                .replace("\"/run/balance-sync", &format!("\"{}/run/balance-sync", mounted.path().display()));
            write(mounted.path(), "/etc/balance-sync/balance-sync.toml", &text)?;
        }
        if let Some(text) = objects.get("ConfigMap").and_then(|map| map["data"]["directory.toml"].as_str()) {
            write(mounted.path(), "/etc/balance-sync-redis/directory.toml", text)?;
        }
        let mut variables = environment(container, mounted.path())?;
        if variables.get("BALANCE_SYNC__WORKER__REQUIRE_TLS").is_some_and(|value| value == "true") {
            // Whoever demands TLS has a ledger that uses it.
            variables.extend(
                ["REDIS_TLS", "MULTI_TENANT_REDIS_TLS"].map(|name| (name.to_owned(), "true".to_owned())),
            );
        }
        let all: Vec<(&str, &str)> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let checked = run(&["check"], &all).await?;
        assert_eq!(checked.code, Some(0), "{}: {checked:?}", file.display());

        let port = container["ports"][0]["containerPort"].as_i64().context("a port")?;
        assert!(checked.stdout.contains(&format!(":{port}\"  # ")), "{}: port {port}", file.display());
        let is_shadow = variables.get("BALANCE_SYNC__WORKER__MODE").is_some_and(|mode| mode == "shadow");
        assert_eq!(is_shadow, file.ends_with("shadow.yaml"), "{}", file.display());
        if is_shadow {
            let user = &variables["BALANCE_SYNC__REDIS__USERNAME"];
            assert!(USERS.contains(&format!("\nuser {user} ")), "{user} is not in users.acl");
            for taken in ["mode = \"shadow\"", &format!("username = \"{user}\"")] {
                assert!(checked.stdout.contains(taken), "{taken}: {}", checked.stdout);
            }
        }

        let grace = pod["terminationGracePeriodSeconds"].as_i64().context("a grace period")?;
        let deadline =
            variables["BALANCE_SYNC__SUPERVISOR__STOP_DEADLINE"].trim_end_matches('s').parse::<i64>()?;
        assert!(grace > deadline, "{}: killed after {grace} s, draining takes {deadline} s", file.display());
        seen += 1;
    }
    assert_eq!(seen, 6);
    Ok(())
}
