//! The demonstration's workers: processes of the product binary, as an operator would start them.

use std::{cell::Cell, path::Path, process::ExitStatus, time::Duration};

use anyhow::{Context, bail};
use balance_sync_sandbox::{Program, eventually, free_port};

/// When what a killed worker had claimed comes due again.
pub(super) const CLAIM_TTL: Duration = Duration::from_secs(30);
/// Until the first reconcile; on a busy machine with a thousand tenants that is not a matter of milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Beyond the worker's own grace for its final flushes (`supervisor.stop_deadline`, 30 s) and its closing of connections.
const DRAINED_WITHIN: Duration = Duration::from_secs(45);
/// How often another port is tried when another process was faster.
const PORT_ATTEMPTS: usize = 5;
/// What a worker reports when another process has the port.
const PORT_TAKEN: &str = "can't listen there";
/// For one answer of the admin interface.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A worker process. Killed when dropped, and when this process ends in whatever way.
pub(super) struct Worker {
    /// What it is called in its log and on the screen.
    pub name: String,
    program: Program,
    admin: String,
    client: reqwest::Client,
    /// We have ended it, or ordered it to end.
    dismissed: Cell<bool>,
}

impl Worker {
    /// Starts a worker with this configuration file and waits until it is ready.
    ///
    /// # Errors
    /// When it can't be started or is not ready within a minute; with the end of its log.
    pub(super) async fn start(product: &Path, name: &str, config: &Path) -> anyhow::Result<Self> {
        let client =
            reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build().context("HTTP client")?;
        let arguments = ["run".to_owned(), "--config".to_owned(), config.display().to_string()];
        for _ in 0..PORT_ATTEMPTS {
            let address = format!("127.0.0.1:{}", free_port()?);
            let environment = [
                ("BALANCE_SYNC__ADMIN__LISTEN", address.clone()),
                ("BALANCE_SYNC__CLAIM__TTL", humantime::format_duration(CLAIM_TTL).to_string()),
                ("BALANCE_SYNC__LOG__FORMAT", "text".to_owned()),
                ("BALANCE_SYNC__WORKER__NAME", name.to_owned()),
            ];
            let program = Program::start(name, product, &arguments, &environment)
                .with_context(|| format!("starting {name}"))?;
            let worker = Self {
                name: name.to_owned(),
                program,
                admin: format!("http://{address}"),
                client: client.clone(),
                dismissed: Cell::new(false),
            };
            // Ready or ended: an end is no reason to wait any longer.
            let ready = eventually(READY_WITHIN, "its readiness", || async {
                worker.has_ended() || worker.get("/readyz").await.is_ok()
            });
            ready.await.with_context(|| format!("{name} does not work; {}", worker.log()))?;
            if !worker.has_ended() {
                return Ok(worker);
            }
            if !worker.program.log_tail().contains(PORT_TAKEN) {
                bail!("{name} has ended at its start; {}", worker.log());
            }
        }
        bail!("no free port for {name} after {PORT_ATTEMPTS} attempts")
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub(super) async fn metrics(&self) -> anyhow::Result<String> {
        self.get("/metrics").await
    }

    /// The process id, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.program.pid()
    }

    /// Whether it has neither ended nor been asked to.
    pub(super) fn is_on_duty(&self) -> bool {
        !self.dismissed.get()
    }

    /// Finds out whether it has ended without having been asked to.
    ///
    /// # Errors
    /// When it has; with the end of its log.
    pub(super) fn check_on_duty(&self) -> anyhow::Result<()> {
        if self.is_on_duty() && self.has_ended() {
            bail!("{} has ended by itself; {}", self.name, self.log());
        }
        Ok(())
    }

    /// Ends it without warning.
    ///
    /// # Errors
    /// When it can't be ended.
    pub(super) async fn kill(&self) -> anyhow::Result<()> {
        self.dismissed.set(true);
        self.program.kill().await.with_context(|| format!("killing {}", self.name)).map(|_| ())
    }

    /// Tells it to drain and end (SIGTERM), and waits for that.
    ///
    /// # Errors
    /// When it has not ended in time.
    pub(super) async fn drain(&self) -> anyhow::Result<ExitStatus> {
        self.dismissed.set(true);
        self.program.terminate()?;
        self.program.wait(DRAINED_WITHIN).await.with_context(|| format!("{} was asked to drain", self.name))
    }

    /// The end of its log, introduced.
    pub(super) fn log(&self) -> String {
        format!("the end of its log:\n{}", self.program.log_tail())
    }

    fn has_ended(&self) -> bool {
        !matches!(self.program.ended(), Ok(None))
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.client.get(format!("{}{path}", self.admin)).send().await?.error_for_status()?;
        Ok(answer.text().await?)
    }
}
