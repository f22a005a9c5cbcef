//! Prometheus and its checker, from Debian's package: tests run the real ones where they are installed.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::{eventually, free_port};
use serde_json::Value;

use crate::SOON;

/// Where a program of Prometheus' package is; says so loudly when it is nowhere, because a test is then skipped.
pub fn program(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        // Past the capture of the test's output.
        let _ = writeln!(
            std::io::stderr(),
            "\n*** SKIPPED: {name} is not installed (Debian: apt-get install prometheus, or `make setup`) ***\n"
        );
    }
    found
}

/// Runs promtool with these arguments; gives what it said and whether it was content.
///
/// # Errors
/// When it can't be run.
pub fn promtool(program: &Path, args: &[&str], input: Option<&str>) -> Result<(bool, String)> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running promtool")?;
    let mut stdin = child.stdin.take().context("its input")?;
    // Written from a thread of its own: it may answer before it has read everything.
    let input = input.unwrap_or_default().to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// A Prometheus of its own. Dropped, it is killed.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    http: reqwest::Client,
    address: String,
    // Removed with it.
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these addresses each second as the job `balance-sync` and evaluates these rules.
    ///
    /// # Errors
    /// When it can't be started or doesn't become ready.
    pub async fn start(program: &Path, rules: &Path, targets: &[String]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n  - job_name: \
             balance-sync\n    static_configs: [{{targets: {targets:?}}}]\n",
            rules.display()
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config)?;
        Self::run(program, &file, folder).await
    }

    /// Starts one with this configuration.
    ///
    /// # Errors
    /// When it can't be started or doesn't become ready.
    pub async fn with_config(program: &Path, config: &Path) -> Result<Self> {
        Self::run(program, config, tempfile::tempdir()?).await
    }

    async fn run(program: &Path, config: &Path, folder: tempfile::TempDir) -> Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let child = Command::new(program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log"))?)
            .spawn()
            .context("starting prometheus")?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).no_proxy().build()?;
        let prometheus = Self { child, http, address, _folder: folder };
        eventually(SOON, "a ready prometheus", || async {
            let url = format!("http://{}/-/ready", prometheus.address);
            let answer = prometheus.http.get(url).send().await?;
            ensure!(answer.status().is_success(), "{}", answer.status());
            Ok(())
        })
        .await?;
        Ok(prometheus)
    }

    /// The series that a query gives now: their labels and values.
    ///
    /// # Errors
    /// When the query is refused.
    pub async fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>> {
        let mut url = url::Url::parse(&format!("http://{}/api/v1/query", self.address))?;
        url.query_pairs_mut().append_pair("query", expression);
        let answer: Value = serde_json::from_str(&self.http.get(url).send().await?.text().await?)?;
        if answer["status"] != "success" {
            bail!("{expression}: {answer}");
        }
        let series = answer["data"]["result"].as_array().context("a list of series")?;
        series
            .iter()
            .map(|one| {
                let value = one["value"][1].as_str().context("a value")?.parse()?;
                Ok((one["metric"].clone(), value))
            })
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
