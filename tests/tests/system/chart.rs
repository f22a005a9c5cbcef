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
    assert_eq!(seen, 7);
    Ok(())
}

/// The commands of `helm test` in this rendering, in order, with another address of the workers.
fn test_commands(file: &Path, workers: &str) -> Result<Vec<Vec<String>>> {
    let objects = rendered(file)?;
    let (pod, service) = (&objects["Pod"]["spec"], &objects["Service"]);
    let address = format!(
        "{}:{}",
        service["metadata"]["name"].as_str().context("name")?,
        service["spec"]["ports"][0]["port"].as_i64().context("port")?
    );
    let containers = [&pod["initContainers"], &pod["containers"]]
        .into_iter()
        .flat_map(|list| list.as_vec().into_iter().flatten());
    let commands = containers.map(|container| {
        let args = container["args"].as_vec().context("args")?;
        Ok(args.iter().filter_map(Yaml::as_str).map(|arg| arg.replace(&address, workers)).collect())
    });
    commands.collect()
}

#[tokio::test]
async fn what_helm_test_runs_passes_where_a_fleet_works_and_needs_attention() -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("chart/golden/smallest.yaml");
    let address = format!("127.0.0.1:{}", free_port()?);
    let commands = test_commands(&file, &address)?;
    let [check, probe, status] = commands.as_slice() else { anyhow::bail!("{commands:?}") };
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let config = sandbox.config_path().display().to_string();
    // As in the pod, the fleet is one of two workers.
    let fleet = [("BALANCE_SYNC__WORKER__EXPECTED", "2"), ("BALANCE_SYNC_CONFIG", config.as_str())];
    let run_args = async |args: &[String]| run(args, &fleet).await;
    let without_waiting = |args: &[String]| {
        let waits = args.iter().position(|arg| arg == "--wait").unwrap_or(args.len());
        args[..waits].to_vec()
    };

    let checked = run_args(check).await?;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    // Before there is a worker neither is right.
    let asked = run_args(&without_waiting(probe)).await?;
    assert_eq!(asked.code, Some(1), "{asked:?}");
    let looked = run(&["status", "--accept", "degraded"], &fleet).await?;
    assert_eq!(looked.code, Some(2), "nothing is known: {looked:?}");
    assert!(looked.stdout.contains("No live worker has reported"), "{looked:?}");
    // All at the same time: the test may begin before the workers have.
    let worker = Worker::of(&sandbox).set("worker.expected", "2").set("admin.listen", &address).start();
    let (worker, asked, looked) = tokio::join!(worker, run_args(probe), run_args(status));
    let (mut worker, asked, looked) = (worker?, asked?, looked?);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    assert!(asked.stdout.starts_with("200 OK"), "{asked:?}");
    assert_eq!(looked.code, Some(0), "{looked:?}");
    for shown in ["ATTENTION", "1 of 2 workers are alive"] {
        assert!(looked.stdout.contains(shown), "{shown}: {}", looked.stdout);
    }
    let looked = run(&["status"], &fleet).await?;
    assert_eq!(looked.code, Some(1), "an operator is told: {looked:?}");

    // A fleet that can't write doesn't pass.
    let mut redis = sandbox.redis().connect().await?;
    for (replicas, verdict, code) in [("1", "DEGRADED", 1), ("0", "ATTENTION", 0)] {
        let mut set = redis::cmd("CONFIG");
        let () = set.arg("SET").arg("min-replicas-to-write").arg(replicas).query_async(&mut redis).await?;
        eventually(SOON, "the verdict on a Redis that refuses writes, and then takes them", || async {
            let looked = run_args(&without_waiting(status)).await?;
            ensure!(looked.code == Some(code) && looked.stdout.contains(verdict), "{looked:?}");
            Ok(())
        })
        .await?;
    }
    worker.stop().await?;
    Ok(())
}
