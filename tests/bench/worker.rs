//! A worker process under measurement: the release binary, as an operator would start it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use balance_sync_sandbox::{Program, eventually, free_port};
use balance_sync_tests::Metrics;

use crate::{Options, variable};

/// Ten thousand tenants take their time on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// For one answer of the admin interface; the metrics of ten thousand tenants are a long page.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Above the worker's own bounds.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// A running worker. Killed when dropped.
pub(crate) struct Worker {
    program: Program,
    admin: String,
    client: reqwest::Client,
}

impl Worker {
    /// Starts a worker with this configuration file, the settings of the command line, and these on top. Does not wait
    /// for anything.
    pub(crate) fn start(options: &Options, config: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut environment =
            vec![(variable("admin.listen"), address.clone()), (variable("log.level"), "warn".to_owned())];
        environment.extend(options.environment()?);
        environment.extend(settings.iter().map(|(key, value)| (variable(key), (*value).to_owned())));
        let environment: Vec<(&str, String)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let arguments = ["run".to_owned(), "--config".to_owned(), config.display().to_string()];
        let binary = balance_sync_tests::balance_sync()?;
        let program = Program::start("bench", &binary, &arguments, &environment)?;
        // The client wants to know which TLS provider there is, although none is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build()?;
        Ok(Self { program, admin: format!("http://{address}"), client })
    }

    /// Waits until it knows the tenants.
    pub(crate) async fn ready(&self) -> Result<()> {
        let ready = eventually(READY_WITHIN, "a ready worker", || async {
            if self.program.ended()?.is_some() {
                return Ok(());
            }
            self.get("/readyz").await.map(|_page| ())
        });
        ready.await.with_context(|| self.program.log_tail())?;
        if let Some(status) = self.program.ended()? {
            bail!("the worker ended ({status}): {}", self.program.log_tail());
        }
        Ok(())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.program.pid().with_context(|| format!("the worker has ended: {}", self.program.log_tail()))
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        self.program.log_tail()
    }

    /// Its numbers.
    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.get("/metrics").await?))
    }

    /// Stops it and waits for its end.
    pub(crate) async fn stop(self) -> Result<()> {
        self.program.terminate()?;
        self.program.wait(ENDS_WITHIN).await?;
        Ok(())
    }

    async fn get(&self, path: &str) -> Result<String> {
        let answer = self.client.get(format!("{}{path}", self.admin)).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }
}
