//! `deploy/compose.yaml`, as far as it can be checked without Docker: all that is mounted is there, workers and Prometheus take what they
//! are given, Prometheus gets the workers' metrics, and Grafana finds its data and the dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::eventually;
use balance_sync_tests::prometheus::{Prometheus, program, promtool};
use balance_sync_tests::{SOON, Worker, run};
use yaml_rust2::Yaml;

use crate::dashboard::DASHBOARD;
use crate::rules::{RULES, rules, yaml};
use crate::{file, text};

const COMPOSE: &str = "deploy/compose.yaml";
const TOKEN: &str = "BALANCE_SYNC__ADMIN__READ_TOKEN";

fn strings(list: &Yaml) -> Vec<&str> {
    list.as_vec().into_iter().flatten().filter_map(Yaml::as_str).collect()
}

fn services(compose: &Yaml) -> Result<BTreeMap<&str, &Yaml>> {
    let services = compose["services"].as_hash().context("services")?;
    Ok(services.iter().filter_map(|(name, service)| Some((name.as_str()?, service))).collect())
}

/// A value of a service, its own or of what is merged into it.
fn value<'y>(service: &'y Yaml, key: &str) -> &'y Yaml {
    match &service[key] {
        Yaml::BadValue => &service["<<"][key],
        own => own,
    }
}

/// What is mounted into a service: files and folders of the repository, or volumes, by where it sees them.
fn mounts(service: &Yaml) -> Result<BTreeMap<&str, &str>> {
    let mounts = strings(value(service, "volumes")).into_iter().map(|mount| {
        let (source, rest) = mount.split_once(':').context("a mount without a place")?;
        Ok((rest.strip_suffix(":ro").unwrap_or(rest), source))
    });
    mounts.collect()
}

/// Where a source of a mount is; `None` for a volume.
fn source(source: &str) -> Option<PathBuf> {
    source.starts_with("./").then(|| file("deploy").join(source))
}

fn environment(service: &Yaml) -> BTreeMap<String, String> {
    let pairs = value(service, "environment").as_hash().into_iter().flatten();
    pairs.filter_map(|(name, value)| Some((name.as_str()?.to_owned(), value.as_str()?.to_owned()))).collect()
}

/// Copies what is mounted into a service below this folder, as the service sees it.
fn lay_out(service: &Yaml, root: &Path) -> Result<()> {
    for (place, from) in mounts(service)? {
        let Some(from) = source(from) else { continue };
        let place = root.join(place.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().context("a folder")?)?;
        std::fs::copy(&from, &place).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

#[test]
fn all_that_is_named_is_there() -> Result<()> {
    let compose = yaml(&text(COMPOSE)?)?;
    let services = services(&compose)?;
    let (mut volumes, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for (name, service) in &services {
        for (place, from) in mounts(service)? {
            match source(from) {
                Some(path) => ensure!(path.exists(), "{name}: {from} is missing"),
                None => ensure!(volumes.insert(from.to_owned()), "{name}: {from} is another one's volume"),
            }
            ensure!(place.starts_with('/'), "{name}: {place}");
        }
        match value(service, "image").as_str() {
            Some(image) => ensure!(
                image.rsplit_once(':').is_some_and(|(_, tag)| tag.contains(|c: char| c.is_ascii_digit())),
                "{name}: {image} isn't a version"
            ),
            None => {
                let build = value(service, "build");
                let context = file("deploy").join(build["context"].as_str().context("build.context")?);
                let dockerfile = context.join(build["dockerfile"].as_str().context("build.dockerfile")?);
                ensure!(dockerfile.is_file(), "{name}: {}", dockerfile.display());
            }
        }
        let needs = value(service, "depends_on");
        let needs = needs.as_hash().into_iter().flatten().filter_map(|(name, _)| name.as_str());
        for needed in needs.chain(strings(value(service, "depends_on"))) {
            ensure!(services.contains_key(needed), "{name} depends on {needed}");
        }
        for port in strings(value(service, "ports")) {
            let published = port.rsplit_once(':').context("a port")?.0;
            ensure!(published.starts_with("127.0.0.1:"), "{name}: {port} can be reached from outside");
            ensure!(ports.insert(published.to_owned()), "{name}: {published} is another one's");
        }
    }
    let declared = compose["volumes"].as_hash().context("volumes")?;
    let declared: BTreeSet<String> = declared.keys().filter_map(Yaml::as_str).map(str::to_owned).collect();
    assert_eq!(volumes, declared, "volumes that are used, and those that are declared");
    // Who would lose something with its container.
    let keeps = |place: &str, name: &str| -> Result<bool> {
        Ok(mounts(services[name])?.get(place).is_some_and(|from| declared.contains(*from)))
    };
    for (name, place) in [
        ("redis", "/data"),
        ("postgres", "/var/lib/postgresql/data"),
        ("prometheus", "/prometheus"),
        ("grafana", "/var/lib/grafana"),
    ] {
        ensure!(keeps(place, name)?, "{name} keeps nothing: {place}");
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_accepts_its_environment() -> Result<()> {
    let compose = yaml(&text(COMPOSE)?)?;
    let mut seen = 0;
    for (name, service) in services(&compose)?.into_iter().filter(|(name, _)| name.starts_with("worker-")) {
        let environment = environment(service);
        let all: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let checked = run(&["check"], &all).await?;
        assert_eq!(checked.code, Some(0), "{name}: {checked:?}");
        seen += 1;
    }
    assert_eq!(seen, 2);
    Ok(())
}

#[test]
fn prometheus_accepts_what_it_is_given() -> Result<()> {
    let compose = yaml(&text(COMPOSE)?)?;
    let services = services(&compose)?;
    let prometheus = services["prometheus"];
    let mounted = mounts(prometheus)?;
    let command = strings(&prometheus["command"]);
    let config = command.iter().find_map(|word| word.strip_prefix("--config.file=")).context("a file")?;
    ensure!(mounted.contains_key(config), "{config} isn't mounted");
    let root = tempfile::tempdir()?;
    lay_out(prometheus, root.path())?;
    let config = root.path().join(config.trim_start_matches('/'));
    let document = yaml(&std::fs::read_to_string(&config)?)?;
    for name in strings(&document["rule_files"]) {
        let mounted = config.parent().context("a folder")?.join(name);
        assert_eq!(std::fs::read_to_string(mounted)?, text(RULES)?, "the rules");
    }
    let job = &document["scrape_configs"][0];
    // BalanceSyncWorkerDown knows the workers by it.
    assert_eq!(job["job_name"].as_str(), Some("balance-sync"));
    let targets: BTreeSet<&str> = strings(&job["static_configs"][0]["targets"]).into_iter().collect();
    let workers: BTreeSet<String> = services
        .keys()
        .filter(|name| name.starts_with("worker-"))
        .map(|name| format!("{name}:8090"))
        .collect();
    assert_eq!(targets, workers.iter().map(String::as_str).collect(), "whom it asks, and who there is");
    let Some(promtool_path) = program("promtool") else { return Ok(()) };
    let (content, said) = promtool(&promtool_path, &["check", "config", &config.to_string_lossy()], None)?;
    ensure!(content, "{said}");
    ensure!(said.contains(&format!("{} rules found", rules()?.len())), "{said}");
    Ok(())
}

#[tokio::test]
async fn prometheus_gets_the_metrics_of_workers_with_these_tokens() -> Result<()> {
    let Some(prometheus_path) = program("prometheus") else { return Ok(()) };
    let compose = yaml(&text(COMPOSE)?)?;
    let services = services(&compose)?;
    let environment = environment(services["worker-1"]);
    let token = environment.get(TOKEN).context("no token to read with")?;
    let sandbox = balance_sync_tests::sandbox(1, 1).await?;
    let mut worker = Worker::of(&sandbox);
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("BALANCE_SYNC__ADMIN__")) {
        worker = worker.env(name, value);
    }
    let mut worker = worker.start().await?;
    // Who has no token gets nothing; who has one may use any name for the worker's host.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let ask = |token: Option<&str>| {
        let request = http.get(worker.url("/metrics")).header("host", "worker-1:8090");
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    };
    assert_eq!(ask(None).send().await?.status(), 401);
    assert_eq!(ask(Some(token)).send().await?.status(), 200);

    let root = tempfile::tempdir()?;
    lay_out(services["prometheus"], root.path())?;
    let config = root.path().join("etc/prometheus/prometheus.yml");
    let address = worker.address().context("an address")?.to_string();
    // Nothing but the addresses differs; the second worker isn't there.
    let content = std::fs::read_to_string(&config)?;
    let content = content.replace("worker-1:8090", &address).replace("worker-2:8090", "127.0.0.1:1");
    std::fs::write(&config, content)?;
    let prometheus = Prometheus::with_config(&prometheus_path, &config).await?;
    eventually(SOON, "the worker's metrics in Prometheus", || async {
        let up = prometheus.query(&format!("up{{job=\"balance-sync\", instance=\"{address}\"}}")).await?;
        ensure!(up.first().is_some_and(|(_, value)| *value == 1.0), "{up:?}");
        let ready = prometheus.query("balance_sync_ready{job=\"balance-sync\"}").await?;
        ensure!(ready.first().is_some_and(|(_, value)| *value == 1.0), "{ready:?}");
        Ok(())
    })
    .await?;
    worker.stop().await?;
    Ok(())
}

#[test]
fn grafana_finds_its_data_and_the_dashboard() -> Result<()> {
    let compose = yaml(&text(COMPOSE)?)?;
    let services = services(&compose)?;
    let grafana = services["grafana"];
    let mounted = mounts(grafana)?;
    let provisioned = |kind: &str| -> Result<Yaml> {
        let folder = format!("/etc/grafana/provisioning/{kind}/");
        let (_, from) =
            mounted.iter().find(|(place, _)| place.starts_with(&folder)).with_context(|| folder.clone())?;
        yaml(&std::fs::read_to_string(source(from).context("a file")?)?)
    };
    let sources = provisioned("datasources")?;
    let [data] = sources["datasources"].as_vec().context("datasources")?.as_slice() else {
        anyhow::bail!("one source of data")
    };
    let url = url::Url::parse(data["url"].as_str().context("url")?)?;
    ensure!(url.host_str().is_some_and(|host| services.contains_key(host)), "{url}");
    ensure!(url.port() == Some(9090), "{url}");

    let (place, _) = mounted
        .iter()
        .find(|(_, from)| {
            source(from)
                .is_some_and(|path| path == file("deploy").join("./observability/grafana-dashboard.json"))
        })
        .context("the dashboard isn't mounted")?;
    let folder = Path::new(place).parent().and_then(Path::to_str).context("a folder")?;
    let dashboards = provisioned("dashboards")?;
    let provider = &dashboards["providers"][0];
    assert_eq!(
        (provider["type"].as_str(), provider["options"]["path"].as_str()),
        (Some("file"), Some(folder))
    );
    let home = environment(grafana);
    assert_eq!(home.get("GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH").map(String::as_str), Some(*place));

    // What the dashboard asks for: of the sources of this kind, the default one.
    let dashboard: serde_json::Value = serde_json::from_str(&text(DASHBOARD)?)?;
    let wanted = &dashboard["templating"]["list"][0];
    assert_eq!((wanted["name"].as_str(), wanted["type"].as_str()), (Some("datasource"), Some("datasource")));
    assert_eq!(data["type"].as_str(), wanted["query"].as_str());
    assert_eq!(data["isDefault"].as_bool(), Some(true));
    Ok(())
}
