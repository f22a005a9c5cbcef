//! A Postgres server that sends too much: a fake on a port of 127.0.0.1 which plays one attack with every client.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Sent at most on one connection, whatever happens.
const MOST: usize = 512 * 1024 * 1024;
/// Longest start-up message that is read.
const LONGEST_STARTUP: usize = 10_000;

/// What the fake does once it has read the start-up message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresAttack {
    /// An error of 50 MB.
    LoginError,
    /// An error of 2 GB is announced.
    LoginAnnounced,
    /// Notices without end.
    LoginNotices,
    /// Settings without end.
    LoginSettings,
    /// A notice every 20 ms, and nothing else.
    LoginForEver,
    /// Two billion iterations of SCRAM.
    Iterations,
    /// From here on the login succeeds, and each statement is answered so: a row of 2 GB is announced.
    Announced,
    /// Notices without end.
    Notices,
    /// Settings without end.
    Settings,
    /// Rows of 1 MB without end.
    Rows,
    /// An error of 12 MB.
    LongErrors,
    /// An error with a code of 1 MB.
    LongCode,
}

impl PostgresAttack {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::LoginError,
        Self::LoginAnnounced,
        Self::LoginNotices,
        Self::LoginSettings,
        Self::LoginForEver,
        Self::Iterations,
        Self::Announced,
        Self::Notices,
        Self::Settings,
        Self::Rows,
        Self::LongErrors,
        Self::LongCode,
    ];
}

/// The fake server. Ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct HostilePostgres {
    port: u16,
    counts: Arc<Counts>,
    serving: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    /// What the client took on the connection on which it took the most.
    most: AtomicUsize,
}

impl HostilePostgres {
    /// Starts it on the current tokio runtime.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(attack: PostgresAttack) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let serving = tokio::spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                counted.connections.fetch_add(1, Relaxed);
                // It ends with an error when the client closes the socket.
                clients.spawn(serve(socket, attack, Arc::clone(&counted)));
                while clients.try_join_next().is_some() {}
            }
        });
        Ok(Self { port, counts, serving })
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Relaxed)
    }

    /// Bytes that a client took on one connection, at most.
    #[must_use]
    pub fn most_taken(&self) -> usize {
        self.counts.most.load(Relaxed)
    }
}

impl Drop for HostilePostgres {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

fn announced(kind: u8, length: u32) -> Vec<u8> {
    [&[kind][..], &length.to_be_bytes()].concat()
}

fn notice(kind: u8, severity: &str, code: &str, text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, text) in [(b'S', severity), (b'V', severity), (b'C', code), (b'M', text)] {
        body.push(field);
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    message(kind, &body)
}

/// A connection, which counts what it could send.
struct Client {
    socket: TcpStream,
    sent: usize,
    counts: Arc<Counts>,
    settings: u64,
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sent += bytes.len();
        self.counts.most.fetch_max(self.sent, Relaxed);
        if self.sent > MOST {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.socket.write_all(bytes).await
    }

    /// Sends this for ever.
    async fn repeat(&mut self, bytes: &[u8]) -> io::Result<()> {
        loop {
            self.send(bytes).await?;
        }
    }

    async fn settings(&mut self) -> io::Result<()> {
        loop {
            self.settings += 1;
            let setting = format!("setting{}\0{}\0", self.settings, "v".repeat(1000));
            self.send(&message(b'S', setting.as_bytes())).await?;
        }
    }
}

async fn serve(mut socket: TcpStream, attack: PostgresAttack, counts: Arc<Counts>) -> io::Result<()> {
    let length = socket.read_u32().await? as usize;
    let rest = length.checked_sub(4).filter(|rest| *rest <= LONGEST_STARTUP);
    socket.read_exact(&mut vec![0; rest.ok_or(io::ErrorKind::InvalidData)?]).await?;
    let mut client = Client { socket, sent: 0, counts, settings: 0 };
    let filler = vec![b'x'; 64 * 1024];
    let noticed = notice(b'N', "NOTICE", "00000", &"n".repeat(1000));
    match attack {
        PostgresAttack::LoginError | PostgresAttack::LoginAnnounced => {
            let is_error = attack == PostgresAttack::LoginError;
            client.send(&announced(b'E', if is_error { 50_000_000 } else { 2_000_000_000 })).await?;
            return client.repeat(&filler).await;
        }
        PostgresAttack::LoginNotices => return client.repeat(&noticed).await,
        PostgresAttack::LoginSettings => return client.settings().await,
        PostgresAttack::LoginForEver => loop {
            client.send(&noticed[..1]).await?;
            client.send(&noticed[1..]).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        },
        PostgresAttack::Iterations => {
            client.send(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")).await?;
            // Its nonce isn't looked at before the iterations.
            client.send(&message(b'R', b"\0\0\0\x0br=nonce,s=c2FsdA==,i=2000000000")).await?;
            return std::future::pending().await;
        }
        _ => {
            client.send(&message(b'R', &[0; 4])).await?;
            client.send(&message(b'K', &[0; 8])).await?;
            client.send(&message(b'Z', b"I")).await?;
        }
    }
    let mut request = [0; 4096];
    while client.socket.read(&mut request).await? > 0 {
        match attack {
            PostgresAttack::Announced => {
                client.send(&announced(b'D', 2_000_000_000)).await?;
                return client.repeat(&filler).await;
            }
            PostgresAttack::Notices => return client.repeat(&noticed).await,
            PostgresAttack::Settings => return client.settings().await,
            PostgresAttack::Rows => {
                client.send(&message(b'T', &columns())).await?;
                return client.repeat(&row()).await;
            }
            PostgresAttack::LongErrors => {
                client.send(&notice(b'E', "ERROR", "53100", &"é\u{1b}[2J".repeat(2_000_000))).await?;
                client.send(&message(b'Z', b"I")).await?;
            }
            _ => {
                client.send(&notice(b'E', "ERROR", &"5".repeat(1_000_000), "x")).await?;
                client.send(&message(b'Z', b"I")).await?;
            }
        }
    }
    Ok(())
}

/// One column of text.
fn columns() -> Vec<u8> {
    [b"\0\x01a\0".as_slice(), &[0; 6], &[0, 0, 0, 25], &[0xff, 0xff], &[0xff; 4], &[0; 2]].concat()
}

fn row() -> Vec<u8> {
    message(b'D', &[b"\0\x01".as_slice(), &1_000_000_u32.to_be_bytes(), &vec![b'r'; 1_000_000]].concat())
}
