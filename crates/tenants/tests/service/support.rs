//! A tenant service that misbehaves on purpose: raw sockets, so that it can break what an HTTP library
//! wouldn't.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use balance_sync_tenants::ServiceSettings;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

pub(crate) const API_KEY: &str = "key-hunter2";
pub(crate) const PASSWORD: &str = "password-hunter2";

/// A request as it came: its target (path and query), and its headers in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub target: String,
    pub headers: String,
}

/// What the server does with a request.
pub(crate) enum Reply {
    /// A proper answer.
    Answer { status: u16, headers: &'static str, body: String },
    /// These bytes, then the connection is closed.
    Raw(Vec<u8>),
    /// These bytes, then nothing, with the connection open.
    Hang(&'static str),
    /// These bytes, then `x` again and again, with a pause after each piece.
    Endless { head: &'static str, piece: usize, pause: Duration },
}

pub(crate) fn answer(status: u16, body: impl Into<String>) -> Reply {
    Reply::Answer { status, headers: "", body: body.into() }
}

/// A good list of these ids.
pub(crate) fn list(ids: &[&str]) -> Reply {
    let entries: Vec<String> =
        ids.iter().map(|id| format!(r#"{{"id":"{id}","name":"N {id}","status":"active"}}"#)).collect();
    answer(200, format!("[{}]", entries.join(",")))
}

/// A good answer about a database, on a host that is named after the tenant in the request.
pub(crate) fn connections(request: &Request) -> Reply {
    let tenant = request.target.split('/').nth(3).unwrap_or_default();
    answer(
        200,
        format!(
            r#"{{"id":"{tenant}","status":"active","isolationMode":"isolated","databases":{{"transaction":{{"postgresql":
            {{"host":"{tenant}.db","port":5432,"database":"d","username":"u","password":"{PASSWORD}"}}}}}}}}"#
        ),
    )
}

type Handler = dyn Fn(&Request, usize) -> futures::future::BoxFuture<'static, Reply> + Send + Sync;

pub(crate) struct Server {
    pub addr: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Answers each request by the handler, which gets the number of those before.
    pub(crate) async fn start(handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_async(move |request, hit| {
            let reply = handler(request, hit);
            Box::pin(async move { reply })
        })
        .await
    }

    pub(crate) async fn start_async(
        handler: impl Fn(&Request, usize) -> futures::future::BoxFuture<'static, Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Arc::new(handler), None).await
    }

    pub(crate) async fn start_tls(
        acceptor: TlsAcceptor,
        handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let handler = move |request: &Request, hit| -> futures::future::BoxFuture<'static, Reply> {
            let reply = handler(request, hit);
            Box::pin(async move { reply })
        };
        Self::listen(Arc::new(handler), Some(acceptor)).await
    }

    async fn listen(handler: Arc<Handler>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, seen, tls) = (Arc::clone(&handler), Arc::clone(&seen), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, &handler, &seen).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &handler, &seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self { addr, requests, task }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn hits(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// Settings for this server: no retries, no breaker, and time enough for a slow machine.
    pub(crate) fn settings(&self) -> ServiceSettings {
        let mut settings =
            ServiceSettings::new(format!("http://{}", self.addr).parse().unwrap(), API_KEY.into());
        settings.allow_plain_http = true;
        settings.retries = 0;
        settings.breaker_threshold = 0;
        settings.connect_timeout = Duration::from_secs(20);
        settings.request_timeout = Duration::from_secs(20);
        settings
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    handler: &Arc<Handler>,
    seen: &Mutex<Vec<Request>>,
) {
    let Some(request) = read_request(&mut stream).await else { return };
    let hit = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.len() - 1
    };
    // The client may hang up at any time; that is its right.
    let _ = reply_with(&mut stream, handler(&request, hit).await).await;
    let _ = stream.shutdown().await;
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let (first, headers) = head.split_once("\r\n").unwrap();
    let target = first.split(' ').nth(1).unwrap().to_owned();
    Some(Request { target, headers: headers.to_lowercase() })
}

async fn reply_with(stream: &mut (impl AsyncWrite + Unpin), reply: Reply) -> std::io::Result<()> {
    match reply {
        Reply::Answer { status, headers, body } => {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n"
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await
        }
        Reply::Raw(bytes) => stream.write_all(&bytes).await,
        Reply::Hang(bytes) => {
            stream.write_all(bytes.as_bytes()).await?;
            stream.flush().await?;
            std::future::pending().await
        }
        Reply::Endless { head, piece, pause } => {
            stream.write_all(head.as_bytes()).await?;
            let piece = vec![b'x'; piece];
            loop {
                stream.write_all(&piece).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
        }
    }
}
