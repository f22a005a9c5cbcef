//! A private PgBouncer in front of a private PostgreSQL.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use crate::find;
use crate::guard::{Guarded, Owner};
use crate::ports;
use crate::postgres::PostgresServer;

/// How long it may take until it accepts connections.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at one that starts.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often another port is tried when another process was faster.
const PORT_ATTEMPTS: usize = 10;
/// What it reports when another process has the port.
const PORT_TAKEN: &str = "Address already in use";
/// The user that may look at it.
const ADMIN: &str = "sandbox_admin";

/// When a session goes back to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client leaves.
    Session,
    /// When a transaction ends.
    Transaction,
    /// When a statement ends; transactions of several messages are refused.
    Statement,
}

/// How a private PgBouncer is configured.
#[derive(Debug, Clone)]
pub struct PgBouncerOptions {
    /// `pool_mode`.
    pub mode: PoolMode,
    /// `default_pool_size`: sessions per database and user.
    pub pool_size: u32,
    /// Databases by the names that clients use. A name that is not among them leads to the database of that name.
    pub databases: Vec<(String, String)>,
    /// Further settings of its section `[pgbouncer]`, name and value.
    pub extra: Vec<(String, String)>,
}

impl PgBouncerOptions {
    /// A pooler in this mode, with so many sessions per database and user.
    #[must_use]
    pub fn new(mode: PoolMode, pool_size: u32) -> Self {
        Self { mode, pool_size, databases: Vec::new(), extra: Vec::new() }
    }

    /// The same with one more setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.extra.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Whether the installed PgBouncer knows `max_prepared_statements`, with which it renames prepared statements: from 1.21 on.
///
/// # Errors
/// When PgBouncer is not installed, or its answer to `--version` holds no version.
pub fn can_rename_statements() -> Result<bool> {
    let output = std::process::Command::new(find::pgbouncer()?).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().and_then(|line| line.strip_prefix("PgBouncer "));
    let mut parts = version.unwrap_or_default().split('.').map(|part| part.trim().parse::<u32>());
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor) >= (1, 21)),
        _ => bail!("pgbouncer --version prints {text:?}"),
    }
}

/// A running private PgBouncer on 127.0.0.1. Ends and leaves nothing behind when dropped.
pub struct PgBouncer {
    guard: Guarded,
    port: u16,
    server: u16,
    admin: SecretString,
}

impl fmt::Debug for PgBouncer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgBouncer").field("port", &self.port).finish_non_exhaustive()
    }
}

impl PgBouncer {
    /// Starts one before the server on this port of 127.0.0.1, for these users, and waits until it accepts connections.
    ///
    /// # Errors
    /// When PgBouncer is not installed, refuses its configuration, or does not accept within 30 s.
    pub async fn start(
        server: u16,
        users: &[(&str, &SecretString)],
        options: &PgBouncerOptions,
    ) -> Result<Self> {
        let program = find::pgbouncer()?;
        // It refuses to be root, as PostgreSQL does. SIGQUIT ends every version of it at once.
        let guard = Guarded::new("pgb", Owner::unprivileged()?, Signal::SIGQUIT)?;
        let admin = SecretString::from(Uuid::new_v4().simple().to_string());
        let mut pooler = Self { guard, port: 0, server, admin };
        let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let list: String = users
            .iter()
            .chain(&[(ADMIN, &pooler.admin)])
            .map(|(user, password)| format!("{} {}\n", quote(user), quote(password.expose_secret())))
            .collect();
        pooler.guard.write_private("userlist.txt", &list)?;
        for _ in 0..PORT_ATTEMPTS {
            pooler.port = ports::free_port()?;
            pooler.configure(options)?;
            pooler.guard.spawn(&program, &["pgbouncer.ini".to_owned()])?;
            if pooler.ready().await? {
                return Ok(pooler);
            }
        }
        bail!("no free port for PgBouncer after {PORT_ATTEMPTS} attempts")
    }

    /// Starts one before this server that lets in every role, those that are made later as well: it looks passwords up.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn for_all_roles(server: &PostgresServer, options: &PgBouncerOptions) -> Result<Self> {
        let superuser = server.superuser();
        let options = options.clone().with("auth_user", superuser);
        Self::start(server.port(), &[(superuser, server.password())], &options).await
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Takes other settings without ending the connections of clients, as `RELOAD` does.
    ///
    /// # Errors
    /// When they can't be written or the process can't be signalled.
    pub fn reload(&self, options: &PgBouncerOptions) -> Result<()> {
        self.configure(options)?;
        self.guard.ask_to_end(Signal::SIGHUP)
    }

    /// Its log so far, the last lines of it.
    pub fn log_tail(&self) -> String {
        self.guard.log_tail()
    }

    fn configure(&self, options: &PgBouncerOptions) -> Result<()> {
        let mode = match options.mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
            PoolMode::Statement => "statement",
        };
        let server = format!("host=127.0.0.1 port={}", self.server);
        let mut text = "[databases]\n".to_owned();
        for (name, database) in &options.databases {
            text += &format!("{name} = {server} dbname={database}\n");
        }
        text += &format!(
            "* = {server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = userlist.txt\nadmin_users = {ADMIN}\npool_mode = {mode}\n\
             default_pool_size = {}\nmax_client_conn = 1000\nserver_login_retry = 1\n",
            self.port, options.pool_size
        );
        for (name, value) in &options.extra {
            text += &format!("{name} = {value}\n");
        }
        self.guard.write_private("pgbouncer.ini", &text).map(drop)
    }

    /// Waits until it answers; `false` when the port is taken.
    async fn ready(&self) -> Result<bool> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.guard.try_reap()? {
                let log = self.guard.log_tail();
                if log.contains(PORT_TAKEN) {
                    return Ok(false);
                }
                bail!("pgbouncer ended at its start ({status}); its log:\n{log}");
            }
            match self.connect_admin().await {
                Ok(connection) => {
                    let _ = connection.close().await;
                    return Ok(true);
                }
                Err(error) if Instant::now() >= deadline => {
                    bail!("pgbouncer does not accept: {error:#}; its log:\n{}", self.guard.log_tail())
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    async fn connect_admin(&self) -> Result<PgConnection> {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(ADMIN)
            .password(self.admin.expose_secret())
            .database("pgbouncer")
            .ssl_mode(PgSslMode::Disable)
            .extra_float_digits(None)
            .connect()
            .await
            .context("connecting to the private PgBouncer")
    }
}
