//! A TCP proxy that injects faults between a client and a server.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::ports::{free_port, loopback};

/// Read at once from a socket.
const PIECE: usize = 16 * 1024;
/// Answers held back at most, per connection; then reading waits.
const HELD_BYTES: usize = 4 * 1024 * 1024;
/// Between two attempts to listen again on the port.
const LISTEN_EVERY: Duration = Duration::from_millis(10);
/// How often another port is tried when another process was faster.
const PORT_ATTEMPTS: usize = 10;

/// What happens to connections through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Everything passes.
    #[default]
    Pass,
    /// Every answer arrives this much later.
    Latency(Duration),
    /// Nothing passes in either direction, without a notice: connections freeze, new ones are accepted and
    /// freeze too. When it ends they go on where they stood, as after a network partition.
    BlackHole,
    /// Requests arrive, answers are lost. When it ends, connections that have lost something are cut.
    DropResponses,
    /// Connections are cut and new ones refused.
    Closed,
}

/// A proxy on a port of 127.0.0.1. Ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    cut: watch::Sender<CancellationToken>,
    accepted: Arc<AtomicU64>,
    listener: JoinHandle<()>,
    /// Says whether the listener has followed the last change of the fault.
    listening: watch::Receiver<bool>,
}

impl Proxy {
    /// Starts a proxy to this address; its tasks run on the current tokio runtime.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = listen_somewhere().await?;
        let address = listener.local_addr().context("the proxy's address")?;
        let (fault, fault_seen) = watch::channel(Fault::Pass);
        let (cut, cut_seen) = watch::channel(CancellationToken::new());
        let (listening_tx, listening) = watch::channel(true);
        let accepted = Arc::new(AtomicU64::new(0));
        let task = Listener {
            address,
            upstream,
            fault: fault_seen,
            cut: cut_seen,
            accepted: Arc::clone(&accepted),
            listening: listening_tx,
        };
        Ok(Self { address, fault, cut, accepted, listener: tokio::spawn(task.run(listener)), listening })
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// What happens from now on. Returns when new connections meet it.
    pub async fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
        let mut listening = self.listening.clone();
        // An error means that the listener has ended, with the runtime.
        let _ = listening.wait_for(|listening| *listening == (fault != Fault::Closed)).await;
        if fault == Fault::Closed {
            // Only now: until here new ones could still come in.
            self.cut();
        }
    }

    /// Drops all connections there are; new ones are accepted as before.
    pub fn cut(&self) {
        self.cut.send_replace(CancellationToken::new()).cancel();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

async fn listen_somewhere() -> Result<TcpListener> {
    let mut last = None;
    for _ in 0..PORT_ATTEMPTS {
        match TcpListener::bind(loopback(free_port()?)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into())).context("the proxy can't listen")
}

struct Listener {
    address: SocketAddr,
    upstream: SocketAddr,
    fault: watch::Receiver<Fault>,
    cut: watch::Receiver<CancellationToken>,
    accepted: Arc<AtomicU64>,
    listening: watch::Sender<bool>,
}

impl Listener {
    async fn run(self, first: TcpListener) {
        let mut listener = Some(first);
        let mut fault = self.fault.clone();
        loop {
            if *fault.borrow_and_update() == Fault::Closed {
                // Only a port without listener refuses.
                listener = None;
                self.listening.send_replace(false);
                if fault.changed().await.is_err() {
                    return;
                }
                continue;
            }
            match listener.take() {
                None => match TcpListener::bind(self.address).await {
                    Ok(again) => listener = Some(again),
                    Err(error) => {
                        tracing::debug!(%error, "the proxy can't listen yet");
                        tokio::time::sleep(LISTEN_EVERY).await;
                    }
                },
                Some(open) => {
                    self.listening.send_replace(true);
                    tokio::select! {
                        accepted = open.accept() => {
                            if let Ok((client, _)) = accepted {
                                self.accepted.fetch_add(1, Ordering::Relaxed);
                                tokio::spawn(self.serve(client));
                            }
                        }
                        changed = fault.changed() => if changed.is_err() { return },
                    }
                    listener = Some(open);
                }
            }
        }
    }

    fn serve(&self, client: TcpStream) -> impl Future<Output = ()> + use<> {
        let (upstream, cut, mut fault) = (self.upstream, self.cut.borrow().clone(), self.fault.clone());
        async move {
            let serve = async {
                passes(&mut fault).await?;
                let server = TcpStream::connect(upstream).await?;
                client.set_nodelay(true)?;
                server.set_nodelay(true)?;
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                // Either direction's end is the end of both: neither protocol uses half-closed connections.
                tokio::select! {
                    done = requests(from_client, to_server, fault.clone()) => done,
                    done = answers(from_server, to_client, fault.clone()) => done,
                }
            };
            tokio::select! {
                () = cut.cancelled() => {}
                done = serve => if let Err(error) = done {
                    tracing::trace!(%error, "a proxied connection ended");
                },
            }
        }
    }
}

/// Waits while the fault is a black hole.
async fn passes(fault: &mut watch::Receiver<Fault>) -> io::Result<Fault> {
    let now = fault.wait_for(|fault| *fault != Fault::BlackHole).await;
    now.map(|fault| *fault).map_err(|_| io::ErrorKind::ConnectionAborted.into())
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut fault: watch::Receiver<Fault>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            // The end of a connection is news too.
            passes(&mut fault).await?;
            return Ok(());
        }
        passes(&mut fault).await?;
        to.write_all(&piece[..length]).await?;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut fault: watch::Receiver<Fault>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut held_bytes = 0;
    let mut lost = false;
    let mut ended = false;
    loop {
        let now = *fault.borrow_and_update();
        if lost && now != Fault::DropResponses && now != Fault::BlackHole {
            // What follows would be taken for the answers that were lost.
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let due = held.front().map(|(due, _)| *due);
        tokio::select! {
            changed = fault.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && now != Fault::BlackHole => {
                if let Some((_, bytes)) = held.pop_front() {
                    held_bytes -= bytes.len();
                    if now == Fault::DropResponses {
                        lost = true;
                    } else {
                        to.write_all(&bytes).await?;
                    }
                }
            }
            read = from.read(&mut piece), if !ended && held_bytes < HELD_BYTES && now != Fault::BlackHole => {
                match read? {
                    0 => ended = true,
                    length => {
                        let delay = if let Fault::Latency(delay) = now { delay } else { Duration::ZERO };
                        held_bytes += length;
                        held.push_back((Instant::now() + delay, piece[..length].to_vec()));
                    }
                }
            }
            () = std::future::ready(()), if ended && held.is_empty() && now != Fault::BlackHole => return Ok(()),
        }
    }
}
