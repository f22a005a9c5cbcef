//! Traces on their way out: made here, kept in a bounded queue, and sent by OTLP from a thread of their own.
//!
//! Whoever works never waits for it. A full queue drops spans, a receiver that is away or hangs loses what it was sent;
//! both are counted, and logged once a minute at most. The SDK would log each failed export, hence the two wrappers.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use balance_sync_trace as trace;
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_otlp::{
    WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::{metadata::MetadataMap, transport::ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    resource::TelemetryResourceDetector,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter,
        SpanProcessor,
    },
};
use reqwest::header::HeaderMap;
use secrecy::ExposeSecret;
use tokio::runtime::Runtime;

use crate::config::{self, OtlpProtocol};

/// Losses are logged this often at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The export of traces, until [`finish`](Self::finish).
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    losses: Arc<Losses>,
    deadline: Duration,
    /// Kept until the last export is done.
    _driver: Option<Driver>,
}

/// The thread that drives gRPC. Its own, so that an export needs nothing of the threads that sync, not even while they
/// end.
struct Driver(Option<Runtime>);

impl Drop for Driver {
    fn drop(&mut self) {
        // To wait for its end would block a thread that must not be.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Traces {
    /// Starts to make spans and to send them.
    ///
    /// # Errors
    /// When no connection of that kind can be set up. The receiver need not answer yet.
    pub(super) fn start(traces: &config::Traces, worker: &str) -> anyhow::Result<Self> {
        let losses = Arc::new(Losses { queue_size: traces.queue_size, ..Losses::default() });
        let (exporter, driver) = exporter(traces).context("telemetry")?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(traces.queue_size)
            .with_max_export_batch_size(traces.batch_size)
            .with_scheduled_delay(traces.export_interval)
            .build();
        let watched = Watched { exporter, losses: Arc::clone(&losses) };
        let inner = BatchSpanProcessor::builder(watched).with_batch_config(batches).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Bounded { inner, losses: Arc::clone(&losses) })
            .with_sampler(sampler(traces))
            .with_resource(resource(traces, worker))
            .build();
        global::set_tracer_provider(provider.clone());
        trace::enable(TraceContextPropagator::new());
        tracing::info!(endpoint = %traces.endpoint, protocol = traces.protocol.name(), "traces are sent");
        Ok(Self { provider, losses, deadline: traces.drain_deadline, _driver: driver })
    }

    /// Sends what is left, within the deadline, and says what was lost in all.
    pub(crate) async fn finish(self) {
        let Self { provider, losses, deadline, _driver } = self;
        let ending = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(deadline));
        let in_time = matches!(ending.await, Ok(Ok(())));
        let (failed, dropped, waiting) =
            (losses.failed.load(Relaxed), losses.dropped.load(Relaxed), losses.queued.load(Relaxed));
        if !in_time || failed > 0 || dropped > 0 {
            tracing::warn!(failed, dropped, waiting, "some spans were not sent");
        }
    }
}

fn exporter(traces: &config::Traces) -> anyhow::Result<(opentelemetry_otlp::SpanExporter, Option<Driver>)> {
    let builder = opentelemetry_otlp::SpanExporter::builder();
    let headers = traces.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned()));
    match traces.protocol {
        OtlpProtocol::HttpProtobuf => {
            let exporter = builder
                .with_http()
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_endpoint(traces.endpoint.as_str())
                .with_timeout(traces.timeout)
                .with_headers(headers.collect())
                .build()?;
            Ok((exporter, None))
        }
        OtlpProtocol::Grpc => {
            let metadata = headers
                .map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)))
                .collect::<Option<HeaderMap>>()
                .context("telemetry.headers: can't be sent by gRPC")?;
            let mut builder = builder
                .with_tonic()
                .with_endpoint(traces.endpoint.as_str())
                .with_timeout(traces.timeout)
                .with_metadata(MetadataMap::from_headers(metadata));
            if traces.endpoint.scheme() == "https" {
                builder = builder.with_tls_config(ClientTlsConfig::new().with_native_roots());
            }
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("telemetry")
                .enable_all()
                .build()
                .context("a thread to send from")?;
            let driver = Driver(Some(runtime));
            let _entered = driver.0.as_ref().map(Runtime::enter);
            let exporter = builder.build()?;
            drop(_entered);
            Ok((exporter, Some(driver)))
        }
    }
}

fn sampler(traces: &config::Traces) -> Sampler {
    let ratio = Sampler::TraceIdRatioBased(traces.sample_ratio);
    match traces.sampler {
        config::Sampler::AlwaysOn => Sampler::AlwaysOn,
        config::Sampler::AlwaysOff => Sampler::AlwaysOff,
        config::Sampler::TraceIdRatio => ratio,
        config::Sampler::ParentBasedAlwaysOn => Sampler::ParentBased(Box::new(Sampler::AlwaysOn)),
        config::Sampler::ParentBasedAlwaysOff => Sampler::ParentBased(Box::new(Sampler::AlwaysOff)),
        config::Sampler::ParentBasedTraceIdRatio => Sampler::ParentBased(Box::new(ratio)),
    }
}

fn resource(traces: &config::Traces, worker: &str) -> Resource {
    let own = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", worker.to_owned()),
    ];
    // The later ones count: what was configured goes before what we know by ourselves, but for the name.
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(own)
        .with_attributes(
            traces.attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())),
        )
        .with_service_name(traces.service_name.clone())
        .build()
}

/// What became of spans that did not arrive.
#[derive(Debug, Default)]
struct Losses {
    queue_size: usize,
    /// Ended, and not yet taken for an export.
    queued: AtomicUsize,
    /// Not queued, because the queue was full.
    dropped: AtomicUsize,
    /// Taken for an export that failed.
    failed: AtomicUsize,
    told: Mutex<Option<Instant>>,
}

impl Losses {
    /// Says so, unless that was done not long ago.
    fn tell(&self, error: &str) {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|at| now - at < TELL_EVERY) {
            return;
        }
        *told = Some(now);
        drop(told);
        let (failed, dropped) = (self.failed.load(Relaxed), self.dropped.load(Relaxed));
        tracing::warn!(failed, dropped, error, "spans are lost, syncing goes on without them");
    }
}

/// Lets no more spans into the queue than fit, and counts the others.
#[derive(Debug)]
struct Bounded {
    inner: BatchSpanProcessor,
    losses: Arc<Losses>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        // The queue holds no more than are counted as queued, so that none is dropped behind our back.
        if self.losses.queued.fetch_add(1, Relaxed) < self.losses.queue_size {
            self.inner.on_end(span);
        } else {
            self.losses.queued.fetch_sub(1, Relaxed);
            self.losses.dropped.fetch_add(1, Relaxed);
            self.losses.tell("the queue is full");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Counts what could not be sent.
#[derive(Debug)]
struct Watched<E> {
    exporter: E,
    losses: Arc<Losses>,
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.losses.queued.fetch_sub(spans, Relaxed);
        let result = self.exporter.export(batch).await;
        if let Err(error) = &result {
            self.losses.failed.fetch_add(spans, Relaxed);
            self.losses.tell(&error.to_string());
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
