//! A receiver of traces, as a collector of OpenTelemetry is one: OTLP by HTTP or gRPC, or one that never answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What stands before a message of gRPC: whether it is compressed, and its length.
const GRPC_PREFIX: usize = 5;

/// A span, as it was received.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its name.
    pub name: String,
    /// Its trace, in hex.
    pub trace: String,
    /// Its own id, in hex.
    pub id: String,
    /// The id of the span that it is a part of; none for the first of a trace.
    pub parent: Option<String>,
    /// Whether it is a call of another system.
    pub client: bool,
    /// Whether it failed.
    pub failed: bool,
    /// What it says about itself, as text.
    pub attributes: BTreeMap<String, String>,
    /// What its sender says about itself, as text.
    pub resource: BTreeMap<String, String>,
    /// How long it took, in nanoseconds.
    pub nanos: u64,
}

impl Received {
    /// An attribute, or nothing.
    pub fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }

    /// As a `traceparent` header names it.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.id)
    }
}

#[derive(Debug, Default)]
struct Shared {
    spans: Vec<Received>,
    /// Whole requests: headers and body.
    raw: Vec<u8>,
    headers: Vec<String>,
    problems: Vec<String>,
}

/// A running receiver on 127.0.0.1. Ends when dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

/// What a receiver speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Protobuf by HTTP/1.1.
    Http,
    /// gRPC.
    Grpc,
    /// It takes connections and never says a word.
    Nothing,
}

impl Receiver {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn start(speaks: Speaks) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("a receiver of traces")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let task = tokio::spawn(accept(listener, speaks, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What came so far.
    pub fn spans(&self) -> Vec<Received> {
        lock(&self.shared).spans.clone()
    }

    /// Those of a name.
    pub fn named(&self, name: &str) -> Vec<Received> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }

    /// Whether all came as it should; and nothing of what came, in any form, holds one of these texts.
    ///
    /// # Errors
    /// When not.
    pub fn check(&self, secrets: &[String]) -> Result<()> {
        let shared = lock(&self.shared);
        if let Some(problem) = shared.problems.first() {
            bail!("the receiver of traces: {problem}");
        }
        for secret in secrets {
            if shared.raw.windows(secret.len()).any(|found| found == secret.as_bytes()) {
                bail!("a secret was exported");
            }
        }
        Ok(())
    }

    /// The headers of all requests, `name: value`, names in lower case.
    pub fn headers(&self) -> Vec<String> {
        lock(&self.shared).headers.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, speaks: Speaks, shared: Arc<Mutex<Shared>>) {
    let mut silent = Vec::new();
    while let Ok((stream, _)) = listener.accept().await {
        match speaks {
            Speaks::Nothing => silent.push(stream),
            Speaks::Http => {
                tokio::spawn(noted(Arc::clone(&shared), http(stream, Arc::clone(&shared))));
            }
            Speaks::Grpc => {
                tokio::spawn(noted(Arc::clone(&shared), grpc(stream, Arc::clone(&shared))));
            }
        }
    }
}

async fn noted(shared: Arc<Mutex<Shared>>, serving: impl Future<Output = Result<()>>) {
    if let Err(error) = serving.await {
        lock(&shared).problems.push(format!("{error:#}"));
    }
}

/// Requests of one connection, one after the other; each has a Content-Length.
async fn http(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|found| found == b"\r\n\r\n") {
                break String::from_utf8(buffer.drain(..end + 4).collect())?;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let mut lines = head.lines();
        let request = lines.next().unwrap_or_default();
        if !request.starts_with("POST /v1/traces ") {
            bail!("unexpected request: {request}");
        }
        let headers: Vec<String> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| format!("{}: {}", name.to_ascii_lowercase(), value.trim()))
            .collect();
        let length = headers.iter().find_map(|header| header.strip_prefix("content-length: "));
        let length: usize = length.context("no content-length")?.parse()?;
        while buffer.len() < length {
            if stream.read_buf(&mut buffer).await? == 0 {
                bail!("a request was cut off");
            }
        }
        let body: Vec<u8> = buffer.drain(..length).collect();
        take(&shared, headers, &body)?;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await?;
    }
}

/// Calls of one connection, one after the other.
async fn grpc(stream: TcpStream, shared: Arc<Mutex<Shared>>) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        // A client that goes away needs no more answers.
        let Ok((request, mut respond)) = call else { return Ok(()) };
        let shared = Arc::clone(&shared);
        tokio::spawn(noted(Arc::clone(&shared), async move {
            let path = request.uri().path().to_owned();
            if path != "/opentelemetry.proto.collector.trace.v1.TraceService/Export" {
                bail!("unexpected call: {path}");
            }
            let (parts, mut body) = request.into_parts();
            let mut message = Vec::new();
            while let Some(piece) = body.data().await {
                let piece = piece?;
                body.flow_control().release_capacity(piece.len())?;
                message.extend_from_slice(&piece);
            }
            let headers = parts.headers.iter();
            let headers = headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("")));
            take(&shared, headers.collect(), message.get(GRPC_PREFIX..).context("no message")?)?;
            let response = http::Response::builder().header("content-type", "application/grpc").body(())?;
            let mut sending = respond.send_response(response, false)?;
            sending.send_data(vec![0; GRPC_PREFIX].into(), false)?;
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            sending.send_trailers(trailers)?;
            Ok(())
        }));
    }
    Ok(())
}

fn take(shared: &Mutex<Shared>, headers: Vec<String>, body: &[u8]) -> Result<()> {
    let request = ExportTraceServiceRequest::decode(body).context("an export that can't be read")?;
    let mut shared = lock(shared);
    for header in &headers {
        shared.raw.extend_from_slice(header.as_bytes());
    }
    shared.raw.extend_from_slice(body);
    shared.headers.extend(headers);
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.map(|resource| texts(resource.attributes)).unwrap_or_default();
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            shared.spans.push(Received {
                name: span.name.clone(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
                client: span.kind() == opentelemetry_proto::tonic::trace::v1::span::SpanKind::Client,
                failed: span.status.as_ref().is_some_and(|status| status.code == 2),
                nanos: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
                attributes: texts(span.attributes),
                resource: resource.clone(),
            });
        }
    }
    Ok(())
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
