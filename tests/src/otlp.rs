//! A receiver of traces and metrics, as a collector of OpenTelemetry is one: OTLP by HTTP or gRPC, with TLS or without, or one that
//! never answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use balance_sync_sandbox::{TlsAuthority, eventually};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric, metric, number_data_point};
use prost::Message;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::SOON;

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

/// A sample of a metric, as it was received.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// `counter` (a monotonic sum), `gauge` or `histogram`; sums and histograms are cumulative.
    pub kind: &'static str,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value; of a histogram its sum.
    pub value: f64,
    /// Of a histogram: bounds, counts of the buckets, and the count.
    pub buckets: (Vec<f64>, Vec<u64>, u64),
    /// Since when it counts, and when it was read, in nanoseconds since 1970.
    pub start: u64,
    /// When it was read.
    pub time: u64,
    /// What its sender says about itself, as text.
    pub resource: BTreeMap<String, String>,
}

/// One push of metrics.
#[derive(Debug, Clone, Default)]
pub struct Push(pub Vec<Sample>);

impl Push {
    /// The samples of a name that carry these labels.
    pub fn named(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|own| own == value))
        };
        self.0.iter().filter(fits).collect()
    }

    /// The sum of their values.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.named(name, labels).iter().map(|sample| sample.value).sum()
    }
}

#[derive(Debug, Default)]
struct Shared {
    spans: Vec<Received>,
    pushes: Vec<Push>,
    connections: usize,
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
    /// gRPC, but on the first connection nothing, as behind a firewall that has forgotten it.
    GrpcLater,
    /// gRPC, in which it refuses every call and repeats the credentials that came with it.
    GrpcRefuses,
    /// It takes connections and never says a word.
    Nothing,
}

impl Receiver {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn start(speaks: Speaks) -> Result<Self> {
        Self::start_at(speaks, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts one at this address: that of one that has ended.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn start_at(speaks: Speaks, address: SocketAddr) -> Result<Self> {
        Self::listen(speaks, address, None).await
    }

    /// Starts one on a free port that speaks TLS, with the certificate that this authority has signed.
    ///
    /// # Errors
    /// When it can't listen, or the certificate can't be used.
    pub async fn start_with_tls(speaks: Speaks, authority: &TlsAuthority) -> Result<Self> {
        let certificate = CertificateDer::from_pem_slice(authority.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(authority.key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        let protocol: &[u8] = if speaks == Speaks::Http { b"http/1.1" } else { b"h2" };
        config.alpn_protocols = vec![protocol.to_vec()];
        let tls = TlsAcceptor::from(Arc::new(config));
        Self::listen(speaks, SocketAddr::from(([127, 0, 0, 1], 0)), Some(tls)).await
    }

    async fn listen(speaks: Speaks, address: SocketAddr, tls: Option<TlsAcceptor>) -> Result<Self> {
        let listener = TcpListener::bind(address).await.context("a receiver of telemetry")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let task = tokio::spawn(accept(listener, speaks, tls, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// Ends it: when this returns, its address is free.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Waits for a client.
    ///
    /// # Errors
    /// When none comes soon.
    pub async fn is_connected(&self) -> Result<()> {
        eventually(SOON, "a client of the receiver", || async { lock(&self.shared).connections > 0 }).await
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What came so far.
    pub fn spans(&self) -> Vec<Received> {
        lock(&self.shared).spans.clone()
    }

    /// The pushes of metrics that came so far.
    pub fn pushes(&self) -> Vec<Push> {
        lock(&self.shared).pushes.clone()
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
            bail!("the receiver of telemetry: {problem}");
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

async fn accept(listener: TcpListener, speaks: Speaks, tls: Option<TlsAcceptor>, shared: Arc<Mutex<Shared>>) {
    // Connections end with the receiver.
    let (mut silent, mut serving) = (Vec::new(), JoinSet::new());
    while let Ok((stream, _)) = listener.accept().await {
        lock(&shared).connections += 1;
        if speaks == Speaks::Nothing || speaks == Speaks::GrpcLater && silent.is_empty() {
            silent.push(stream);
            continue;
        }
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        serving.spawn(noted(Arc::clone(&shared), async move {
            match tls {
                None => serve(stream, speaks, shared).await,
                // A client that doesn't trust the certificate goes away.
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, speaks, shared).await,
                    Err(_) => Ok(()),
                },
            }
        }));
    }
}

/// What a client is connected by, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

async fn serve(stream: impl Stream, speaks: Speaks, shared: Arc<Mutex<Shared>>) -> Result<()> {
    if speaks == Speaks::Http { http(stream, shared).await } else { grpc(stream, speaks, shared).await }
}

async fn noted(shared: Arc<Mutex<Shared>>, serving: impl Future<Output = Result<()>>) {
    if let Err(error) = serving.await {
        lock(&shared).problems.push(format!("{error:#}"));
    }
}

/// Requests of one connection, one after the other; each has a Content-Length.
async fn http(mut stream: impl Stream, shared: Arc<Mutex<Shared>>) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|found| found == b"\r\n\r\n") {
                break String::from_utf8(buffer.drain(..end + 4).collect())?;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(1..) => {}
                // Between two requests a client may go away in any way.
                Ok(0) | Err(_) if buffer.is_empty() => return Ok(()),
                Ok(0) => bail!("a request was cut off"),
                Err(error) => return Err(error.into()),
            }
        };
        let mut lines = head.lines();
        let request = lines.next().unwrap_or_default();
        let kind = match request.split(' ').nth(1) {
            Some("/v1/traces") if request.starts_with("POST ") => Kind::Traces,
            Some("/v1/metrics") if request.starts_with("POST ") => Kind::Metrics,
            _ => bail!("unexpected request: {request}"),
        };
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
        take(&shared, kind, headers, &body)?;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await?;
    }
}

/// Calls of one connection, one after the other.
async fn grpc(stream: impl Stream, speaks: Speaks, shared: Arc<Mutex<Shared>>) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        // A client that goes away needs no more answers.
        let Ok((request, mut respond)) = call else { return Ok(()) };
        let shared = Arc::clone(&shared);
        tokio::spawn(noted(Arc::clone(&shared), async move {
            let kind = match request.uri().path() {
                "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => Kind::Traces,
                "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" => Kind::Metrics,
                path => bail!("unexpected call: {path}"),
            };
            let (parts, mut body) = request.into_parts();
            if speaks == Speaks::GrpcRefuses {
                let credentials = parts.headers.get("authorization").context("no credentials")?.to_str()?;
                let message = format!("unknown credentials {}", credentials.replace(' ', "%20"));
                let answer = http::Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", "16")
                    .header("grpc-message", message);
                respond.send_response(answer.body(())?, true)?;
                return Ok(());
            }
            let mut message = Vec::new();
            while let Some(piece) = body.data().await {
                let piece = piece?;
                body.flow_control().release_capacity(piece.len())?;
                message.extend_from_slice(&piece);
            }
            let headers = parts.headers.iter();
            let headers = headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("")));
            take(&shared, kind, headers.collect(), message.get(GRPC_PREFIX..).context("no message")?)?;
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

/// What is sent.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Traces,
    Metrics,
}

fn take(shared: &Mutex<Shared>, kind: Kind, headers: Vec<String>, body: &[u8]) -> Result<()> {
    let mut shared = lock(shared);
    for header in &headers {
        shared.raw.extend_from_slice(header.as_bytes());
    }
    shared.raw.extend_from_slice(body);
    shared.headers.extend(headers);
    match kind {
        Kind::Traces => take_spans(&mut shared, body),
        Kind::Metrics => take_metrics(&mut shared, body),
    }
}

fn take_metrics(shared: &mut Shared, body: &[u8]) -> Result<()> {
    let request = ExportMetricsServiceRequest::decode(body).context("a push that can't be read")?;
    let mut push = Push::default();
    for of_resource in request.resource_metrics {
        let resource = of_resource.resource.map(|resource| texts(resource.attributes)).unwrap_or_default();
        for metric in of_resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            push.0.extend(samples(metric, &resource)?);
        }
    }
    shared.pushes.push(push);
    Ok(())
}

fn samples(metric: Metric, resource: &BTreeMap<String, String>) -> Result<Vec<Sample>> {
    let Metric { name, unit, data, .. } = metric;
    let sample = |kind, attributes, value, start, time| Sample {
        name: name.clone(),
        unit: unit.clone(),
        kind,
        labels: texts(attributes),
        value,
        buckets: Default::default(),
        start,
        time,
        resource: resource.clone(),
    };
    let cumulative = AggregationTemporality::Cumulative as i32;
    let (kind, points) = match data {
        Some(metric::Data::Gauge(gauge)) => ("gauge", gauge.data_points),
        Some(metric::Data::Sum(sum)) if sum.is_monotonic && sum.aggregation_temporality == cumulative => {
            ("counter", sum.data_points)
        }
        Some(metric::Data::Histogram(histogram)) if histogram.aggregation_temporality == cumulative => {
            let points = histogram.data_points.into_iter();
            return Ok(points
                .map(|point| Sample {
                    buckets: (point.explicit_bounds, point.bucket_counts, point.count),
                    ..sample(
                        "histogram",
                        point.attributes,
                        point.sum.unwrap_or(f64::NAN),
                        point.start_time_unix_nano,
                        point.time_unix_nano,
                    )
                })
                .collect());
        }
        other => bail!("{name}: unexpected {other:?}"),
    };
    points
        .into_iter()
        .map(|point| {
            let Some(number_data_point::Value::AsDouble(value)) = point.value else {
                bail!("{name}: no number")
            };
            let (start, time) = (point.start_time_unix_nano, point.time_unix_nano);
            Ok(sample(kind, point.attributes, value, start, time))
        })
        .collect()
}

fn take_spans(shared: &mut Shared, body: &[u8]) -> Result<()> {
    let request = ExportTraceServiceRequest::decode(body).context("an export that can't be read")?;
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
