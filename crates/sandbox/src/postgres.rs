//! A private PostgreSQL server: its process, and the statements of an administrator.
//!
//! What belongs to the ledger's tenants, databases, schemas, roles, is in the module `tenancy`.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions, PgSslMode};
use sqlx::{AssertSqlSafe, Connection, PgPool};
use tokio::sync::{Mutex, OnceCell};
use uuid::Uuid;

use crate::find::{self, PostgresPrograms};
use crate::guard::{Guarded, Owner};
use crate::ports;
use crate::redis::percent_encoded;

/// Name of the superuser.
const SUPERUSER: &str = "postgres";
/// `initdb` takes under a second; on a busy machine it may take much longer.
const INITDB_WITHIN: Duration = Duration::from_secs(120);
/// How long a server may take until it accepts connections; recovery after a kill is part of it.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at a server that starts.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often another port is tried when another process was faster.
const PORT_ATTEMPTS: usize = 10;
/// What PostgreSQL reports when another process has the port.
const PORT_TAKEN: &str = "Address already in use";
/// What PostgreSQL says while a backend of its killed predecessor still ends.
const PREDECESSOR_ENDS: &str = "is still in use";
/// Unix socket paths are limited to 107 bytes; the file's own name takes some of them.
const LONGEST_SOCKET_FOLDER: usize = 85;
/// How long the sandbox's own pools wait for a connection.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(30);

/// How a private PostgreSQL is configured.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// `max_connections`. Default 200.
    pub max_connections: u32,
    /// `fsync` and `full_page_writes`. Default off: tests need no protection from power cuts, and a
    /// killed *process* loses nothing. Benchmarks switch it on.
    pub fsync: bool,
    /// Further settings of `postgresql.conf`, name and value; they win over the rest.
    pub extra: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { max_connections: 200, fsync: false, extra: Vec::new() }
    }
}

/// A running private PostgreSQL on 127.0.0.1. Ends and leaves nothing behind when dropped.
pub struct PostgresServer {
    guard: Guarded,
    programs: PostgresPrograms,
    port: u16,
    password: SecretString,
    pub(crate) template: OnceCell<()>,
    /// Grants on one database at the same time fail with "tuple concurrently updated".
    pub(crate) grants: Mutex<()>,
}

impl fmt::Debug for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresServer")
            .field("port", &self.port)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl PostgresServer {
    /// Makes a data folder, starts a server in it on a free port and waits until it accepts connections.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, refuses its configuration, or does not accept within 60 s.
    pub async fn start(options: PostgresOptions) -> Result<Self> {
        let programs = find::postgres_programs()?;
        // SIGQUIT is PostgreSQL's "immediate" end: the folder is thrown away, so no checkpoint is needed.
        let guard = Guarded::new("pg", Owner::unprivileged()?, Signal::SIGQUIT)?;
        let mut server = Self {
            guard,
            programs,
            port: 0,
            password: SecretString::from(Uuid::new_v4().simple().to_string()),
            template: OnceCell::new(),
            grants: Mutex::new(()),
        };
        server.initdb().await?;
        for _ in 0..PORT_ATTEMPTS {
            server.port = ports::free_port()?;
            server.guard.write_private("data/sandbox.conf", &server.config(&options))?;
            if server.launch().await? {
                // A tenant's role must get nowhere but into its own database.
                for database in ["postgres", "template1"] {
                    server.revoke_public(database).await?;
                }
                return Ok(server);
            }
        }
        bail!("no free port for PostgreSQL after {PORT_ATTEMPTS} attempts")
    }

    /// Starts the server again after it was ended, on the same port and data.
    ///
    /// # Errors
    /// When it runs already, its port stays taken, or it does not accept connections within 60 s.
    pub async fn start_again(&self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while !self.launch().await? {
            if Instant::now() >= deadline {
                bail!("PostgreSQL can't start again: {}", self.guard.log_tail());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Name of the superuser.
    pub fn superuser(&self) -> &'static str {
        SUPERUSER
    }

    /// Password of the superuser; new for every server.
    pub fn password(&self) -> &SecretString {
        &self.password
    }

    /// The process id of the postmaster, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.guard.pid()
    }

    /// The folder of the server, gone when it is dropped.
    pub fn folder(&self) -> &Path {
        self.guard.folder()
    }

    /// A URL of this database for the superuser. It holds the password.
    pub fn admin_url(&self, database: &str) -> String {
        self.url_for(database, SUPERUSER, &self.password)
    }

    /// A URL of this database for this role. It holds the password.
    pub fn url_for(&self, database: &str, role: &str, password: &SecretString) -> String {
        self.url_on(self.port, database, role, password)
    }

    /// The same URL through another port of 127.0.0.1, e.g. that of a proxy.
    pub fn url_on(&self, port: u16, database: &str, role: &str, password: &SecretString) -> String {
        // Written out instead of asked of the driver, whose own parameters libpq would refuse.
        let [role, password, database] = [role, password.expose_secret(), database].map(percent_encoded);
        format!("postgres://{role}:{password}@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// Connection options of this database for this role.
    pub fn options_for(&self, database: &str, role: &str, password: &SecretString) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(role)
            .password(password.expose_secret())
            .database(database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// A new small pool of superuser connections to this database, opened on first use.
    pub fn pool(&self, database: &str) -> PgPool {
        PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(ACQUIRE_WITHIN)
            .connect_lazy_with(self.admin_options(database))
    }

    /// A new superuser connection to this database.
    ///
    /// # Errors
    /// When the server does not accept it.
    pub async fn connect(&self, database: &str) -> Result<PgConnection> {
        PgConnection::connect_with(&self.admin_options(database))
            .await
            .with_context(|| format!("connecting to the private PostgreSQL, database {database}"))
    }

    /// Offers TLS with this certificate and key, both PEM, from soon on; new connections may do without as before.
    ///
    /// # Errors
    /// When the files can't be written, and what PostgreSQL answers.
    pub async fn use_tls(&self, certificate: &str, key: &SecretString) -> Result<()> {
        self.guard.write_private("data/server.crt", certificate)?;
        self.guard.write_private("data/server.key", key.expose_secret())?;
        self.execute("postgres", "ALTER SYSTEM SET ssl = on").await?;
        self.execute("postgres", "SELECT pg_reload_conf()").await
    }

    /// Runs SQL, one or more statements, as the superuser. It is taken literally.
    ///
    /// # Errors
    /// What PostgreSQL answers.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<()> {
        let mut connection = self.connect(database).await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }

    /// Creates an empty database that only the superuser may connect to.
    ///
    /// # Errors
    /// What PostgreSQL answers, e.g. that it exists.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        self.execute("postgres", &format!("CREATE DATABASE {}", quote_name(name)))
            .await
            .with_context(|| format!("creating database {name}"))?;
        self.revoke_public(name).await
    }

    /// Drops a database, ending the connections to it.
    ///
    /// # Errors
    /// What PostgreSQL answers.
    pub async fn drop_database(&self, name: &str) -> Result<()> {
        self.execute("postgres", &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_name(name)))
            .await
            .with_context(|| format!("dropping database {name}"))
    }

    /// Creates a role that may log in, or gives an existing one this password.
    ///
    /// # Errors
    /// What PostgreSQL answers.
    pub async fn create_role(&self, name: &str, password: &SecretString) -> Result<()> {
        let mut connection = self.connect("postgres").await?;
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
            .bind(name)
            .fetch_one(&mut connection)
            .await?;
        let verb = if exists { "ALTER" } else { "CREATE" };
        let sql = format!(
            "{verb} ROLE {} LOGIN PASSWORD {}",
            quote_name(name),
            quote_text(password.expose_secret())
        );
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .with_context(|| format!("creating role {name}"))?;
        connection.close().await?;
        Ok(())
    }

    /// Ends the server without warning (SIGKILL of all its processes). The data stay, and it recovers at
    /// [`start_again`](Self::start_again).
    ///
    /// # Errors
    /// When the processes can't be ended.
    pub fn kill(&self) -> Result<()> {
        self.guard.kill()
    }

    /// Ends the server as `pg_ctl stop -m immediate` does (SIGQUIT): sessions get a notice, no checkpoint.
    ///
    /// # Errors
    /// When the process can't be ended.
    pub async fn stop_immediate(&self) -> Result<()> {
        self.guard.end(Signal::SIGQUIT).await
    }

    /// Ends the server as `pg_ctl stop -m fast` does (SIGINT): sessions are ended, then a checkpoint.
    ///
    /// # Errors
    /// When the process can't be ended.
    pub async fn stop_gracefully(&self) -> Result<()> {
        self.guard.end(Signal::SIGINT).await
    }

    /// Makes a replica of the server as it is now, which will receive nothing more; for [`fail_over`](Self::fail_over). The server is
    /// restarted for it.
    ///
    /// # Errors
    /// When it can't be ended, copied or started.
    pub async fn copy_to_replica(&self) -> Result<()> {
        self.stop_gracefully().await?;
        let folder = self.guard.folder();
        let mut copy = tokio::process::Command::new("cp");
        let copied = copy
            .arg("-a")
            .arg(folder.join("data"))
            .arg(folder.join("replica"))
            .status()
            .await
            .context("copying the data")?;
        if !copied.success() {
            bail!("the data can't be copied: cp ended with {copied}");
        }
        self.start_again().await
    }

    /// Ends the server without warning and promotes the replica, which takes its port: whatever was written since
    /// [`copy_to_replica`](Self::copy_to_replica) is lost, as by an asynchronous failover.
    ///
    /// # Errors
    /// When there is no replica, or it can't be started or promoted.
    pub async fn fail_over(&self) -> Result<()> {
        self.kill()?;
        let folder = self.guard.folder();
        std::fs::remove_dir_all(folder.join("data"))?;
        std::fs::rename(folder.join("replica"), folder.join("data")).context("there is no replica")?;
        self.guard.write_private("data/standby.signal", "")?;
        self.start_again().await?;
        self.execute("postgres", "SELECT pg_promote(true, 60)").await
    }

    /// Freezes the server and all its sessions (SIGSTOP): connections stay open, nothing answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.guard.pause()
    }

    /// Continues a frozen server.
    ///
    /// # Errors
    /// When the processes can't be signalled.
    pub fn resume(&self) -> Result<()> {
        self.guard.resume()
    }

    /// Ends the server and removes its folder, and waits for both. The same as dropping it, without
    /// blocking the runtime.
    ///
    /// # Errors
    /// When the blocking task can't be run.
    pub async fn stop(self) -> Result<()> {
        tokio::task::spawn_blocking(move || drop(self)).await.context("stopping the private PostgreSQL")
    }

    pub(crate) async fn revoke_public(&self, database: &str) -> Result<()> {
        self.execute("postgres", &format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", quote_name(database)))
            .await
            .with_context(|| format!("closing database {database} to the public"))
    }

    async fn initdb(&self) -> Result<()> {
        self.guard.write_private("password", self.password.expose_secret())?;
        let args = [
            "--pgdata=data",
            "--username=postgres",
            "--pwfile=password",
            // Real passwords, so that a wrong one is really refused.
            "--auth-host=scram-sha-256",
            // The socket is in a folder that only the server's user and root can enter. It spares the
            // administrator's connections the cost of a password, most of what a connection costs.
            "--auth-local=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ];
        self.guard.spawn(&self.programs.initdb, &args.map(str::to_owned))?;
        let status = self.guard.wait(INITDB_WITHIN).await.context("initdb")?;
        if !status.success() {
            bail!("initdb failed ({status}); its log:\n{}", self.guard.log_tail());
        }
        std::fs::remove_file(self.guard.folder().join("password"))?;
        let main = self.guard.folder().join("data/postgresql.conf");
        let mut text = std::fs::read_to_string(&main)?;
        text.push_str("\ninclude 'sandbox.conf'\n");
        std::fs::write(&main, text).context("writing postgresql.conf")
    }

    /// `None` when the folder for temporary files has too long a name for a socket.
    fn socket_folder(&self) -> Option<&Path> {
        Some(self.guard.folder()).filter(|folder| folder.as_os_str().len() <= LONGEST_SOCKET_FOLDER)
    }

    fn admin_options(&self, database: &str) -> PgConnectOptions {
        let options = self.options_for(database, SUPERUSER, &self.password);
        match self.socket_folder() {
            Some(folder) => options.socket(folder),
            None => options,
        }
    }

    fn config(&self, options: &PostgresOptions) -> String {
        let on_off = |on: bool| if on { "on" } else { "off" }.to_owned();
        let socket_folder =
            self.socket_folder().map(|folder| folder.to_string_lossy().into_owned()).unwrap_or_default();
        let settings = [
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", self.port.to_string()),
            ("unix_socket_directories", socket_folder),
            ("max_connections", options.max_connections.to_string()),
            ("fsync", on_off(options.fsync)),
            ("full_page_writes", on_off(options.fsync)),
            // In the data folder, so that it goes with it even after a kill.
            ("dynamic_shared_memory_type", "mmap".to_owned()),
            ("jit", on_off(false)),
            ("timezone", "UTC".to_owned()),
        ];
        let own = settings.iter().map(|(name, value)| (*name, value.as_str()));
        let extra = options.extra.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        own.chain(extra).map(|(name, value)| format!("{name} = {}\n", quote_text(value))).collect()
    }

    /// Starts the process; `false` when another attempt can succeed: the port is taken, or the
    /// predecessor's last sessions still end.
    async fn launch(&self) -> Result<bool> {
        self.guard.spawn(&self.programs.postgres, &["-D", "data"].map(str::to_owned))?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.guard.try_reap()? {
                let log = self.guard.log_tail();
                if log.contains(PORT_TAKEN) || log.contains(PREDECESSOR_ENDS) {
                    return Ok(false);
                }
                bail!("postgres ended at its start ({status}); its log:\n{log}");
            }
            // The socket and the password are this server's alone: no other server, which may have
            // taken the port, would let us in.
            match self.connect("postgres").await {
                Ok(connection) => {
                    connection.close().await?;
                    return Ok(true);
                }
                Err(error) if Instant::now() >= deadline => {
                    bail!(
                        "postgres does not accept connections after {READY_WITHIN:?}: {error:#}; its log:\n{}",
                        self.guard.log_tail()
                    )
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }
}

/// An SQL identifier in quotes.
pub fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An SQL string literal.
pub fn quote_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
