//! Carries the bytes between the driver and a server, and ends the connection when the server sends more than `limits.rs` allows.
//!
//! The driver opens its sockets itself and bounds nothing that it reads. So it connects to a socket of this process, and a task
//! beside it passes on what the server sends once that has been looked at (`docs/decisions/0032-bounded-servers.md`).

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::budget::lock;
use crate::classify::{ErrorClass, StoreError};
use crate::limits::{Excess, Watcher};
use crate::names::Addresses;
use crate::scram::{Exchange, Login};
use crate::spec::DatabaseSpec;

/// Bytes that are passed on at once.
const PIECE: usize = 16 * 1024;

/// A connection of the driver, and what carries its bytes. Dropping it closes both sockets.
pub(crate) struct Connection {
    driver: PgConnection,
    relay: Relay,
}

/// The driver's error, and what the relay knows of its cause.
pub(crate) struct Failed {
    pub(crate) error: sqlx::Error,
    cause: Option<StoreError>,
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> StoreError {
        failed.cause.unwrap_or_else(|| failed.error.into())
    }
}

impl Connection {
    /// Connects to the server at one of these addresses, or by the spec's own address or socket, and logs in.
    ///
    /// # Errors
    /// As the driver finds, or what the server sent too much of.
    pub(crate) async fn open(
        spec: &DatabaseSpec,
        options: PgConnectOptions,
        addresses: &Addresses,
        login: Option<&Arc<Login>>,
    ) -> Result<Connection, Failed> {
        let io = |error: io::Error| Failed { error: error.into(), cause: None };
        let server = Server::dial(spec, addresses).await.map_err(io)?;
        let (directory, relay) = Relay::start(server, spec.port, login.cloned()).map_err(io)?;
        match options.socket(directory).connect().await {
            Ok(driver) => {
                relay.shared.logged_in.store(true, Ordering::Relaxed);
                Ok(Connection { driver, relay })
            }
            Err(error) => Err(Failed { cause: relay.cause(), error }),
        }
    }

    pub(crate) fn driver(&mut self) -> &mut PgConnection {
        &mut self.driver
    }

    /// What a failure of the driver comes from.
    pub(crate) fn explain(&self, error: sqlx::Error) -> StoreError {
        let is_broken = matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_));
        self.relay.cause().filter(|_| is_broken).unwrap_or_else(|| error.into())
    }

    /// Says goodbye to the server.
    ///
    /// # Errors
    /// As the driver finds.
    pub(crate) async fn close(self) -> Result<(), sqlx::Error> {
        sqlx::Connection::close(self.driver).await
    }

    /// The same, and waits until the server has closed its end, which it does when it counts the session no longer.
    ///
    /// # Errors
    /// As the driver finds.
    pub(crate) async fn close_and_wait(self) -> Result<(), sqlx::Error> {
        let Connection { driver, mut relay } = self;
        relay.shared.is_leaving.store(true, Ordering::Relaxed);
        sqlx::Connection::close(driver).await?;
        // However it ends, the socket is closed.
        let _ = (&mut relay.task).await;
        Ok(())
    }
}

/// A socket to the server.
enum Server {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Server {
    async fn dial(spec: &DatabaseSpec, addresses: &Addresses) -> io::Result<Server> {
        if spec.host.starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", spec.host, spec.port);
            return Ok(Server::Unix(UnixStream::connect(path).await?));
        }
        let known: Vec<SocketAddr> =
            addresses.iter().map(|address| SocketAddr::new(*address, spec.port)).collect();
        let stream = match known.as_slice() {
            [] => TcpStream::connect((spec.host.as_str(), spec.port)).await?,
            known => TcpStream::connect(known).await?,
        };
        // Requests come in one piece, and what is passed on must not wait for more.
        stream.set_nodelay(true)?;
        Ok(Server::Tcp(stream))
    }
}

/// The task that carries the bytes of one connection.
struct Relay {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// The driver has logged in.
    logged_in: AtomicBool,
    /// The driver says goodbye: what the server does then is waited for.
    is_leaving: AtomicBool,
    /// What the server sent too much of.
    excess: OnceLock<Excess>,
    /// How the socket of the server broke.
    broken: OnceLock<io::Error>,
}

impl Relay {
    /// Listens for the driver; returns the directory of the socket, as the driver wants it.
    fn start(server: Server, port: u16, login: Option<Arc<Login>>) -> io::Result<(PathBuf, Relay)> {
        // A name without a file. It is a secret to nobody, hence the look at who connects.
        let directory = format!("\0balance-sync-{:032x}", rand::random::<u128>());
        let listener = UnixListener::bind(format!("{directory}/.s.PGSQL.{port}"))?;
        let shared = Arc::new(Shared::default());
        let carrying = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let Ok(driver) = accept(listener).await else { return };
            let (from_driver, to_driver) = driver.into_split();
            match server {
                Server::Tcp(server) => {
                    let (from_server, to_server) = server.into_split();
                    carry(&carrying, login, from_driver, to_driver, from_server, to_server).await;
                }
                Server::Unix(server) => {
                    let (from_server, to_server) = server.into_split();
                    carry(&carrying, login, from_driver, to_driver, from_server, to_server).await;
                }
            }
        });
        Ok((directory.into(), Relay { shared, task }))
    }

    /// Why it has ended, if the server is the cause.
    fn cause(&self) -> Option<StoreError> {
        if let Some(excess) = self.shared.excess.get() {
            return Some(StoreError::new(ErrorClass::Excess, format!("connection ended: {excess}")));
        }
        self.shared
            .broken
            .get()
            .map(|error| io::Error::new(error.kind(), error.to_string()).into())
            .map(|error: sqlx::Error| error.into())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It ends by itself when the driver's socket is closed; this ends one whose server takes nothing.
        self.task.abort();
    }
}

/// Waits for the driver; other processes may find the name.
async fn accept(listener: UnixListener) -> io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        if stream.peer_cred()?.pid() == i32::try_from(std::process::id()).ok() {
            return Ok(stream);
        }
    }
}

/// Passes bytes on in both directions until one of the sockets is closed.
async fn carry(
    shared: &Shared,
    login: Option<Arc<Login>>,
    from_driver: impl AsyncRead + Unpin,
    mut to_driver: impl AsyncWrite + Unpin,
    mut from_server: impl AsyncRead + Unpin,
    to_server: impl AsyncWrite + Unpin,
) {
    let watcher = Mutex::new(Watcher::new());
    // The driver waits while the relay answers in its place.
    let to_server = tokio::sync::Mutex::new(to_server);
    let requests = async {
        let passing = pass_requests(from_driver, &to_server, |bytes| lock(&watcher).sends(bytes)).await;
        if passing.is_err() || shared.is_leaving.load(Ordering::Relaxed) {
            // The server takes nothing more, or is to close its end. Why, it may have said before.
            std::future::pending::<()>().await;
        }
    };
    let look = |bytes: &[u8]| {
        let mut watcher = lock(&watcher);
        if shared.logged_in.load(Ordering::Relaxed) {
            watcher.log_in();
        }
        match watcher.receives(bytes) {
            Ok(()) => true,
            Err(excess) => {
                // The first counts.
                let _ = shared.excess.set(excess);
                false
            }
        }
    };
    let answers = async {
        if let Some(login) = login
            && !log_in(login, &mut from_server, &mut to_driver, &to_server, look).await?
        {
            return Ok(());
        }
        pass(from_server, to_driver, &shared.is_leaving, look).await
    };
    tokio::select! {
        // What the server said last is passed on before the driver's end is looked at.
        biased;
        ended = answers => {
            if let Err(error) = ended {
                let _ = shared.broken.set(error);
            }
        }
        () = requests => {}
    }
}

/// Passes requests on until the end.
async fn pass_requests(
    mut from: impl AsyncRead + Unpin,
    to: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    mut look: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        look(&piece[..length]);
        to.lock().await.write_all(&piece[..length]).await?;
    }
}

/// Passes on what the server sends until its login is the driver's, or complete; returns whether it goes on.
async fn log_in(
    login: Arc<Login>,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    back: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    mut look: impl FnMut(&[u8]) -> bool,
) -> io::Result<bool> {
    let mut exchange = Exchange::new(login);
    let mut piece = vec![0; PIECE];
    while !exchange.is_over() {
        let length = from.read(&mut piece).await?;
        if length == 0 || !look(&piece[..length]) {
            return Ok(false);
        }
        let reaction = exchange.receive(&piece[..length]).await;
        let reaction = reaction
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, format!("login broken off: {why}")))?;
        if !reaction.reply.is_empty() {
            back.lock().await.write_all(&reaction.reply).await?;
        }
        if !reaction.pass.is_empty() {
            to.write_all(&reaction.pass).await?;
        }
    }
    Ok(true)
}

/// Passes on what `look` lets through, until the end or a refusal.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    is_leaving: &AtomicBool,
    mut look: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 || !look(&piece[..length]) {
            return Ok(());
        }
        if let Err(error) = to.write_all(&piece[..length]).await
            && !is_leaving.load(Ordering::Relaxed)
        {
            return Err(error);
        }
    }
}
