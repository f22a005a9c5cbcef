//! A worker as a process of its own, which ends with the test whatever happens to that.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::{RedisServer, Sandbox, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secrecy::ExposeSecret;

use crate::SOON;
use crate::command::{balance_sync, prepare_program};
use crate::log::Log;
use crate::metrics::Metrics;

/// How long a worker may take to end after it was asked to; its own bounds are far below.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// How long an answer of the worker's HTTP interface may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// What is logged unless a test says otherwise: all that our own code says, and what drivers say about their calls.
const LOG_LEVEL: &str = "debug";

/// Ends the worker when we are killed: `$1` is its process id, and our end of the pipe to it closes with us.
const GUARDIAN: &str = "trap '' INT TERM HUP; while read -r _; do :; done; kill -s KILL \"$1\" 2>/dev/null";

/// What a worker is started with.
#[derive(Debug, Clone)]
pub struct WorkerBuilder {
    program: Option<PathBuf>,
    config: Option<PathBuf>,
    env: BTreeMap<String, String>,
    expected_errors: Vec<String>,
    secrets: Vec<String>,
}

impl WorkerBuilder {
    /// Sets a key of the configuration: `collector.batch_size`.
    #[must_use]
    pub fn set(self, key: &str, value: &str) -> Self {
        let name = format!("BALANCE_SYNC__{}", key.to_uppercase().replace('.', "__"));
        self.env(&name, value)
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Runs this program instead of the binary under test: that of another release.
    #[must_use]
    pub fn program(self, program: &Path) -> Self {
        Self { program: Some(program.to_owned()), ..self }
    }

    /// ERROR lines that hold this text don't fail the test.
    #[must_use]
    pub fn expect_error(mut self, text: &str) -> Self {
        self.expected_errors.push(text.to_owned());
        self
    }

    /// A text that must not occur in the log.
    #[must_use]
    pub fn secret(mut self, secret: &str) -> Self {
        self.secrets.push(secret.to_owned());
        self
    }

    /// Starts the worker and waits until it is ready: it knows the tenants.
    ///
    /// # Errors
    /// When it can't be started or ends, or isn't ready in time.
    pub async fn start(self) -> Result<Worker> {
        let worker = self.start_unready().await?;
        eventually(SOON, "a ready worker", || async {
            let (status, body) = worker.get("/readyz").await?;
            if status == 200 { Ok(()) } else { bail!("{status} {body}") }
        })
        .await?;
        Ok(worker)
    }

    /// Starts the worker and waits until its HTTP interface listens.
    ///
    /// # Errors
    /// When it can't be started or ends, or doesn't listen in time.
    pub async fn start_unready(self) -> Result<Worker> {
        let mut args = vec!["run".into()];
        if let Some(config) = &self.config {
            args.extend(["--config".into(), config.clone().into_os_string()]);
        }
        // Away from the test's process group: an interrupt meant for the test is the guardian's business.
        let program = match self.program {
            Some(program) => program,
            None => balance_sync()?,
        };
        let mut command = prepare_program(&program, &args, &self.env);
        let mut child = command.process_group(0).spawn().context("starting the worker")?;
        let guardian = guard(child.id());
        let log = Log::default();
        let readers = [
            child.stdout.take().map(|stream| log.follow(stream)),
            child.stderr.take().map(|stream| log.follow(stream)),
        ];
        // The TLS of the client is never used, but it wants to know by whom.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(ANSWERS_WITHIN).no_proxy().build()?;
        let mut worker = Worker {
            pid: child.id(),
            child,
            guardian: None,
            status: None,
            log,
            readers: readers.into_iter().flatten().collect(),
            address: None,
            http,
            expected_errors: self.expected_errors,
            secrets: Mutex::new(self.secrets),
            checked: false,
        };
        worker.guardian = Some(guardian?);
        let end = Instant::now() + SOON;
        while worker.address.is_none() {
            if let Some(status) = worker.ended()? {
                worker.join_readers();
                worker.checked = true;
                bail!("the worker ended at its start ({status}):\n{}", worker.log.tail());
            }
            if Instant::now() >= end {
                bail!("the worker does not listen after {SOON:?}:\n{}", worker.log.tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            let line = worker.log.find("admin interface listens");
            worker.address =
                line.and_then(|line| line.fields["address"].as_str().and_then(|text| text.parse().ok()));
        }
        Ok(worker)
    }
}

fn guard(pid: u32) -> Result<Child> {
    Command::new("sh")
        .args(["-c", GUARDIAN, "worker-guardian", &pid.to_string()])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the worker's guardian")
}

/// A running worker. Dropped, it is killed, and its log is checked: see [`Log::faults`].
#[derive(Debug)]
pub struct Worker {
    pid: u32,
    child: Child,
    guardian: Option<Child>,
    status: Option<ExitStatus>,
    log: Log,
    readers: Vec<JoinHandle<()>>,
    address: Option<SocketAddr>,
    http: reqwest::Client,
    expected_errors: Vec<String>,
    secrets: Mutex<Vec<String>>,
    checked: bool,
}

/// How a worker ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Time from the signal to the end.
    pub took: Duration,
    /// All that it logged.
    pub log: Log,
}

impl Worker {
    /// A worker for this sandbox, by its configuration file. Everything secret in the sandbox must not show in its log.
    pub fn of(sandbox: &Sandbox) -> WorkerBuilder {
        let mut builder = Self::with_config(sandbox.config_path());
        builder.secrets.extend(secrets_of(sandbox));
        builder
    }

    /// A worker with this configuration file.
    pub fn with_config(path: &Path) -> WorkerBuilder {
        WorkerBuilder { config: Some(path.to_owned()), ..Self::bare() }
    }

    /// A worker without a configuration file. It logs JSON, and listens on a free port.
    pub fn bare() -> WorkerBuilder {
        let builder = WorkerBuilder {
            program: None,
            config: None,
            env: BTreeMap::new(),
            expected_errors: Vec::new(),
            secrets: Vec::new(),
        };
        builder.set("log.format", "json").set("log.level", LOG_LEVEL).set("admin.listen", "127.0.0.1:0")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its HTTP interface listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The address of a page of its HTTP interface.
    pub fn url(&self, path: &str) -> String {
        self.address.map(|address| format!("http://{address}{path}")).unwrap_or_default()
    }

    /// Its log so far.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// One more text that must not occur in the log.
    pub fn hide(&self, secret: &str) {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).push(secret.to_owned());
    }

    /// Status and body of a page of its HTTP interface.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let address = self.address.context("the worker does not listen")?;
        let response = self.http.get(format!("http://{address}{path}")).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// Its numbers.
    ///
    /// # Errors
    /// When it doesn't answer with 200.
    pub async fn metrics(&self) -> Result<Metrics> {
        match self.get("/metrics").await? {
            (200, page) => Ok(Metrics::parse(&page)),
            (status, body) => bail!("/metrics answers {status}: {body}"),
        }
    }

    /// Sum of the samples of this name with these labels.
    ///
    /// # Errors
    /// As [`metrics`](Self::metrics).
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(self.metrics().await?.sum(name, labels))
    }

    /// Waits until the sum of these samples is at least this.
    ///
    /// # Errors
    /// When it isn't in time.
    pub async fn reaches(&self, name: &str, labels: &[(&str, &str)], least: f64) -> Result<()> {
        eventually(SOON, &format!("{name} {labels:?} of {least}"), || async {
            let value = self.metric(name, labels).await?;
            if value >= least { Ok(()) } else { bail!("it is {value}") }
        })
        .await
    }

    /// Waits for a line with this message.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn logs(&self, message: &str) -> Result<crate::Line> {
        eventually(SOON, &format!("the log line {message:?}"), || async { self.log.find(message) }).await
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("the worker has ended ({status}):\n{}", self.log.tail());
        }
        kill(Pid::from_raw(i32::try_from(self.pid)?), signal).context("signalling the worker")
    }

    /// Freezes it (SIGSTOP) until it is continued, and waits until Redis has executed what it had sent. Otherwise a claim on its
    /// way could still take what the test schedules next.
    ///
    /// # Errors
    /// When it has ended or doesn't stop, or Redis doesn't answer.
    pub async fn freeze(&mut self, redis: &RedisServer) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        eventually(SOON, "a stopped worker", || async {
            let states = thread_states(self.pid)?;
            ensure!(states.iter().all(|state| *state == 'T'), "its threads are {states:?}");
            Ok(())
        })
        .await?;
        // Redis answers what comes in later after what has come in before.
        let answer: String = redis::cmd("PING").query_async(&mut redis.connect().await?).await?;
        ensure!(answer == "PONG", "Redis answers {answer} to PING");
        Ok(())
    }

    /// Waits for its end, after it was asked to, and checks its log.
    ///
    /// # Errors
    /// When it doesn't end within a minute, or something is wrong with its log.
    pub async fn wait(&mut self) -> Result<Ended> {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.ended()? {
                break status;
            }
            if begun.elapsed() >= ENDS_WITHIN {
                bail!("the worker did not end within {ENDS_WITHIN:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let took = begun.elapsed();
        self.join_readers();
        self.check()?;
        Ok(Ended { code: status.code(), took, log: self.log.clone() })
    }

    /// Stops it by SIGTERM, waits for its end, and checks its log.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn stop(&mut self) -> Result<Ended> {
        self.signal(Signal::SIGTERM)?;
        self.wait().await
    }

    /// Kills it (SIGKILL), waits until it is gone, and checks its log.
    ///
    /// # Errors
    /// When it has ended before, or something is wrong with its log.
    pub async fn kill(&mut self) -> Result<Ended> {
        self.signal(Signal::SIGKILL)?;
        self.wait().await
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait().context("looking at the worker")?;
            if self.status.is_some() {
                // Its process id may belong to another process from now on.
                self.dismiss_guardian();
            }
        }
        Ok(self.status)
    }

    fn dismiss_guardian(&mut self) {
        if let Some(mut guardian) = self.guardian.take() {
            let _ = guardian.kill();
            let _ = guardian.wait();
        }
    }

    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }

    fn check(&mut self) -> Result<()> {
        self.checked = true;
        let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let faults = self.log.faults(&self.expected_errors, &secrets);
        if faults.is_empty() {
            return Ok(());
        }
        bail!("{} faults in the log of worker {}:\n{}", faults.len(), self.pid, faults.join("\n"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.dismiss_guardian();
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.join_readers();
        // Shown only for a test that fails.
        #[allow(clippy::print_stdout)]
        {
            println!("the last lines of worker {}:\n{}", self.pid, self.log.tail());
        }
        if !self.checked && !std::thread::panicking() {
            let checked = self.check();
            assert!(
                checked.is_ok(),
                "{}",
                checked.err().map(|error| format!("{error:#}")).unwrap_or_default()
            );
        }
    }
}

/// The states of the threads of a process, as in `/proc`: `T` is stopped. Empty on systems without procfs.
fn thread_states(pid: u32) -> Result<Vec<char>> {
    if !Path::new("/proc/self/task").exists() {
        return Ok(Vec::new());
    }
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    // The state comes after the name in brackets, which may itself hold any. A thread may end meanwhile.
    let stats =
        threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    Ok(stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).collect())
}

/// Everything secret that a worker of this sandbox knows.
pub fn secrets_of(sandbox: &Sandbox) -> Vec<String> {
    let mut secrets = vec![
        sandbox.service().api_key().expose_secret().to_owned(),
        sandbox.postgres().password().expose_secret().to_owned(),
    ];
    secrets.extend(password_in(&sandbox.redis().url()));
    secrets.extend(password_in(&sandbox.redis_url()));
    secrets.extend(sandbox.tenants().iter().filter_map(|tenant| password_in(tenant.database_url())));
    secrets
}

/// The password in a URL.
pub fn password_in(url: &str) -> Option<String> {
    url::Url::parse(url).ok()?.password().map(str::to_owned)
}
