//! A private Redis server.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, ServerErrorKind};
use secrecy::{ExposeSecret, SecretString};

use crate::clock::Clock;
use crate::find;
use crate::guard::Guarded;
use crate::ports;

/// How long a server may take until it answers; loading a large append-only file is part of it.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at a server that starts.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often another port is tried when another process was faster.
const PORT_ATTEMPTS: usize = 10;
/// What Redis reports when another process has the port.
const PORT_TAKEN: &str = "Address already in use";
/// The users that operators are given.
const USERS: &str = include_str!("../../../deploy/redis/users.acl");
/// The file of users in the server's folder.
const USERS_FILE: &str = "users.acl";
/// The worker's user in that file.
pub const WORKER_USER: &str = "balance-sync";
/// The user in that file for commands that only read.
pub const READER_USER: &str = "balance-sync-reader";
/// The user of shadows in `deploy/redis/users.acl`: Redis 7.0 and later only.
pub const SHADOW_USER: &str = "balance-sync-shadow";

/// Patience of the sandbox's own connections, far above what a loaded machine needs.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How a private Redis is configured. The default keeps everything in memory and evicts nothing.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Password of the ledger's user, `default`; `None` lets everybody in.
    pub password: Option<SecretString>,
    /// Password of the worker's user, and that of the reader's: the server then has the users of `deploy/redis/users.acl`.
    pub worker_password: Option<SecretString>,
    /// Keep an append-only file (`appendfsync everysec`), so that data survives a kill. All of it only
    /// with `appendfsync always` in `extra`: while a slow disk is still at the last second, writing is put off.
    pub appendonly: bool,
    /// `maxmemory` in bytes; `None` is without limit.
    pub maxmemory_bytes: Option<u64>,
    /// Let [`RedisServer::shift_clock`] set its wall clock. Needs a C compiler.
    pub settable_clock: bool,
    /// Run as a sentinel: `extra` says of what. Sentinels rewrite their configuration.
    pub sentinel: bool,
    /// Run as a node of a cluster, without slots. Its bus has the port 10,000 above its own, as before Redis 7 it must.
    pub cluster: bool,
    /// Further lines of `redis.conf`, e.g. `maxmemory-policy allkeys-lru`; they win over the rest.
    pub extra: Vec<String>,
}

/// A running private Redis on 127.0.0.1. Ends and leaves nothing behind when dropped.
pub struct RedisServer {
    guard: Guarded,
    port: u16,
    password: Option<SecretString>,
    worker_password: Option<SecretString>,
    sentinel: bool,
    clock: Option<Clock>,
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer")
            .field("port", &self.port)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl RedisServer {
    /// Starts a server on a free port and waits until it answers.
    ///
    /// # Errors
    /// When `redis-server` is not installed, refuses its configuration, or does not answer within 30 s.
    pub async fn start(options: RedisOptions) -> Result<Self> {
        let program = find::redis_server()?;
        let guard = Guarded::new("redis", None, Signal::SIGTERM)?;
        let clock = options.settable_clock.then(|| Clock::in_folder(guard.folder())).transpose()?;
        let mut server = Self {
            guard,
            port: 0,
            password: options.password.clone(),
            worker_password: options.worker_password.clone(),
            sentinel: options.sentinel,
            clock,
        };
        if let Some(password) = &options.worker_password {
            server.guard.write_private(USERS_FILE, &users(&program, options.password.as_ref(), password)?)?;
        }
        for _ in 0..PORT_ATTEMPTS {
            server.port = if options.cluster { ports::free_port_with_bus()? } else { ports::free_port()? };
            server.guard.write_private("redis.conf", &server.config(&options))?;
            if server.launch(&program).await? {
                return Ok(server);
            }
        }
        bail!("no free port for Redis after {PORT_ATTEMPTS} attempts")
    }

    /// Starts the server again after [`kill`](Self::kill) or [`stop_gracefully`](Self::stop_gracefully), on
    /// the same port and folder. Without `appendonly` it comes back empty.
    ///
    /// # Errors
    /// When it runs already, its port stays taken, or it does not answer within 30 s.
    pub async fn start_again(&self) -> Result<()> {
        let program = find::redis_server()?;
        let deadline = Instant::now() + READY_WITHIN;
        while !self.launch(&program).await? {
            if Instant::now() >= deadline {
                bail!("port {} of the private Redis is taken by another process", self.port);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:<port>/0`, with the password if there is one.
    pub fn url(&self) -> String {
        self.url_on(self.port)
    }

    /// The same URL through another port of 127.0.0.1, e.g. that of a proxy.
    pub fn url_on(&self, port: u16) -> String {
        match &self.password {
            Some(password) => {
                format!("redis://:{}@127.0.0.1:{port}/0", percent_encoded(password.expose_secret()))
            }
            None => format!("redis://127.0.0.1:{port}/0"),
        }
    }

    /// The URL for the worker's user through a port of 127.0.0.1; that of the ledger if the server has no such user.
    pub fn worker_url_on(&self, port: u16) -> String {
        self.user_url_on(port, WORKER_USER)
    }

    /// The same for the user of commands that only read.
    pub fn reader_url(&self) -> String {
        self.user_url_on(self.port, READER_USER)
    }

    /// The same for the user of shadows.
    pub fn shadow_url(&self) -> String {
        self.user_url_on(self.port, SHADOW_USER)
    }

    fn user_url_on(&self, port: u16, user: &str) -> String {
        match &self.worker_password {
            Some(password) => {
                format!("redis://{user}:{}@127.0.0.1:{port}/0", percent_encoded(password.expose_secret()))
            }
            None => self.url_on(port),
        }
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.guard.pid()
    }

    /// The version of the protocol's reference that it implements, e.g. (7, 2): Redis's own, and for Valkey the one that it
    /// reports as compatible.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn version(&self) -> Result<(u32, u32)> {
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("server").query_async(&mut self.connect().await?).await?;
        let text: String = info.get("redis_version").context("no redis_version")?;
        let mut parts = text.split('.').map(str::parse);
        match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
            _ => bail!("redis_version is {text}"),
        }
    }

    /// Leaves the mark that workers leave: what it holds now is known to them.
    pub async fn mark(&self) -> Result<()> {
        let mut connection = self.connect().await?;
        let info: redis::InfoDict = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let run_id: String = info.get("run_id").context("no run_id")?;
        redis::cmd("MSET")
            .arg("{transactions}:balance-sync:data-set")
            .arg("sandbox")
            .arg("{transactions}:balance-sync:data-set:process")
            .arg(format!("{run_id}:0"))
            .query_async::<()>(&mut connection)
            .await
            .context("marking the private Redis")
    }

    /// The folder of the server, gone when it is dropped.
    pub fn folder(&self) -> &Path {
        self.guard.folder()
    }

    /// Writes a file into the server's folder that only its user can read; it goes with the folder.
    pub(crate) fn write_file(&self, name: &str, text: &str) -> Result<std::path::PathBuf> {
        self.guard.write_private(name, text)
    }

    /// A new connection, patient enough for a busy machine (10 s per answer).
    ///
    /// # Errors
    /// When the server does not accept it.
    pub async fn connect(&self) -> Result<MultiplexedConnection> {
        connect(&self.url()).await.context("connecting to the private Redis")
    }

    /// Ends the server without warning (SIGKILL). The folder stays for [`start_again`](Self::start_again).
    ///
    /// # Errors
    /// When the process can't be ended.
    pub fn kill(&self) -> Result<()> {
        self.guard.kill()
    }

    /// Asks the server to end (SIGTERM) and waits. The folder stays.
    ///
    /// # Errors
    /// When the process can't be ended.
    pub async fn stop_gracefully(&self) -> Result<()> {
        self.guard.end(Signal::SIGTERM).await
    }

    /// Freezes the server (SIGSTOP): connections stay open, nothing answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.guard.pause()
    }

    /// Continues a frozen server.
    ///
    /// # Errors
    /// When the process can't be signalled.
    pub fn resume(&self) -> Result<()> {
        self.guard.resume()
    }

    /// Sets the server's wall clock so many milliseconds ahead of the real time, or behind it.
    ///
    /// # Errors
    /// When it was not started with [`RedisOptions::settable_clock`].
    pub fn shift_clock(&self, millis: i64) -> Result<()> {
        self.clock.as_ref().context("the server's clock can't be set")?.shift(millis)
    }

    /// Ends the server and removes its folder, and waits for both. The same as dropping it, without
    /// blocking the runtime.
    ///
    /// # Errors
    /// When the blocking task can't be run.
    pub async fn stop(self) -> Result<()> {
        tokio::task::spawn_blocking(move || drop(self)).await.context("stopping the private Redis")
    }

    fn config(&self, options: &RedisOptions) -> String {
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            format!("port {}", self.port),
            "daemonize no".to_owned(),
            "loglevel warning".to_owned(),
        ];
        if !options.sentinel {
            lines.extend([
                "save \"\"".to_owned(),
                format!("appendonly {}", if options.appendonly { "yes" } else { "no" }),
                "appendfsync everysec".to_owned(),
                "maxmemory-policy noeviction".to_owned(),
            ]);
        }
        if options.cluster {
            lines.push("cluster-enabled yes".to_owned());
        }
        if let Some(bytes) = options.maxmemory_bytes {
            lines.push(format!("maxmemory {bytes}"));
        }
        if options.worker_password.is_some() {
            lines.push(format!("aclfile {}", self.guard.folder().join(USERS_FILE).display()));
        } else if let Some(password) = &options.password {
            let escaped = password.expose_secret().replace('\\', "\\\\").replace('"', "\\\"");
            lines.push(format!("requirepass \"{escaped}\""));
        }
        lines.extend(options.extra.iter().cloned());
        lines.join("\n") + "\n"
    }

    /// Starts the process; `false` when the port is taken.
    async fn launch(&self, program: &Path) -> Result<bool> {
        let mut arguments = vec!["redis.conf".to_owned()];
        arguments.extend(self.sentinel.then(|| "--sentinel".to_owned()));
        let pid = match &self.clock {
            None => self.guard.spawn(program, &arguments)?,
            Some(clock) => {
                let mut all = clock.variables();
                all.push(program.display().to_string());
                all.append(&mut arguments);
                self.guard.spawn(Path::new("env"), &all)?
            }
        };
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.guard.try_reap()? {
                let log = self.guard.log_tail();
                if log.contains(PORT_TAKEN) {
                    return Ok(false);
                }
                bail!("redis-server ended at its start ({status}); its log:\n{log}");
            }
            match self.answering_pid().await {
                Ok(answering) if answering == pid => return Ok(true),
                // Another server has the port; ours is about to notice.
                Ok(_) => {}
                Err(error) if Instant::now() >= deadline => {
                    bail!(
                        "redis-server does not answer after {READY_WITHIN:?}: {error}; its log:\n{}",
                        self.guard.log_tail()
                    )
                }
                Err(error) if is_refusal(&error) => bail!("redis-server refuses us: {error}"),
                Err(_) => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn answering_pid(&self) -> Result<u32, RedisError> {
        let mut connection = connect(&self.url()).await?;
        redis::cmd("PING").query_async::<()>(&mut connection).await?;
        let info: redis::InfoDict = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        Ok(info.get("process_id").unwrap_or_default())
    }
}

/// The shipped file of users, with passwords instead of the hashes that operators put there. Redis before 7 knows no keys that
/// may only be read: as the documentation says, the whole right stands there instead, and the user of shadows is left out.
fn users(program: &Path, ledger: Option<&SecretString>, worker: &SecretString) -> Result<String> {
    let version =
        std::process::Command::new(program).arg("--version").output().context("asking for the version")?;
    let is_old = String::from_utf8_lossy(&version.stdout).contains(" v=6.");
    let mut text = USERS.to_owned();
    if is_old {
        // Nor does it know rights that hold for some keys alone.
        let lines = text.lines().filter(|line| line.split(' ').nth(1) != Some(SHADOW_USER));
        text = lines.map(|line| line.replace("%R~", "~") + "\n").collect();
    }
    let ledger =
        ledger.map_or_else(|| "nopass".to_owned(), |password| format!(">{}", password.expose_secret()));
    let worker = format!(">{}", worker.expose_secret());
    for (placeholder, rule) in [
        ("#SHA256-OF-THE-LEDGERS-PASSWORD", &ledger),
        ("#SHA256-OF-THE-WORKERS-PASSWORD", &worker),
        ("#SHA256-OF-THE-READERS-PASSWORD", &worker),
        ("#SHA256-OF-THE-SHADOWS-PASSWORD", &worker),
    ] {
        ensure!(USERS.contains(placeholder), "deploy/redis/users.acl has no {placeholder}");
        ensure!(!rule.contains(char::is_whitespace), "a file of users can't hold a password with blanks");
        text = text.replace(placeholder, rule);
    }
    Ok(text)
}

/// A connection with the sandbox's patience.
pub(crate) async fn connect(url: &str) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER_WITHIN))
        .set_response_timeout(Some(ANSWER_WITHIN));
    Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

/// A part of a URL, with everything encoded that is not unreserved.
pub(crate) fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Errors that waiting does not mend. (Loading its data is one that it does.)
fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::AuthenticationFailed)
        || (matches!(error.kind(), ErrorKind::Server(kind) if kind != ServerErrorKind::BusyLoading))
}
