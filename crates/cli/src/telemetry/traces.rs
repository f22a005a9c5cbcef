//! Traces on their way out: made here, kept in a bounded queue, and sent by OTLP from a thread of their own.
//!
//! The file with the receiver's authorities is read before each export, so that one that was rotated needs no restart.
//! Whoever works never waits for it. A full queue drops spans, a receiver that is away or hangs loses what it was sent;
//! both are counted, and logged once a minute at most. The SDK would log each failed export, hence the two wrappers.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use balance_sync_trace as trace;
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_otlp::{
    WithExportConfig, WithHttpConfig, WithTonicConfig, tonic_types::metadata::MetadataMap,
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
use reqwest::redirect::Policy;
use secrecy::ExposeSecret;
use tokio::runtime::Handle;

use super::receiver::{Driver, attributes, authorities, grpc_tls, headers, http_authorities};
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

impl Traces {
    /// Starts to make spans and to send them.
    ///
    /// # Errors
    /// When no connection of that kind can be set up. The receiver need not answer yet.
    pub(super) fn start(traces: &config::Traces, worker: &str) -> anyhow::Result<Self> {
        let losses = Arc::new(Losses { queue_size: traces.queue_size, ..Losses::default() });
        let driver = match traces.otlp.protocol {
            OtlpProtocol::HttpProtobuf => None,
            OtlpProtocol::Grpc => Some(Driver::start()?),
        };
        let handle = driver.as_ref().map(Driver::handle).transpose()?.cloned();
        let watched = Watched::new(traces.otlp.clone(), handle, Arc::clone(&losses)).context("telemetry")?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(traces.queue_size)
            .with_max_export_batch_size(traces.batch_size)
            .with_scheduled_delay(traces.export_interval)
            .build();
        let inner = BatchSpanProcessor::builder(watched).with_batch_config(batches).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Bounded { inner, losses: Arc::clone(&losses) })
            .with_sampler(sampler(traces))
            .with_resource(resource(&traces.otlp, worker))
            .build();
        global::set_tracer_provider(provider.clone());
        trace::enable(TraceContextPropagator::new());
        tracing::info!(endpoint = %traces.otlp.endpoint, protocol = traces.otlp.protocol.name(), "traces are sent");
        Ok(Self { provider, losses, deadline: traces.otlp.drain_deadline, _driver: driver })
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

/// An exporter; one that speaks gRPC is driven by `driver`.
fn exporter(
    otlp: &config::Otlp,
    driver: Option<&Handle>,
) -> anyhow::Result<opentelemetry_otlp::SpanExporter> {
    let builder = opentelemetry_otlp::SpanExporter::builder();
    match otlp.protocol {
        OtlpProtocol::HttpProtobuf => {
            let headers =
                otlp.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned()));
            let exporter = builder
                .with_http()
                .with_http_client(http_client(otlp)?)
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_endpoint(otlp.endpoint.as_str())
                .with_timeout(otlp.timeout)
                .with_headers(headers.collect())
                .build()?;
            Ok(exporter)
        }
        OtlpProtocol::Grpc => {
            let mut builder = builder
                .with_tonic()
                .with_endpoint(otlp.endpoint.as_str())
                .with_timeout(otlp.timeout)
                .with_metadata(MetadataMap::from_headers(headers(otlp)?));
            if let Some(tls) = grpc_tls(otlp)? {
                builder = builder.with_tls_config(tls);
            }
            let _entered = driver.context("no thread to send from")?.enter();
            Ok(builder.build()?)
        }
    }
}

/// A client for the exporter's thread. Made on a thread of its own, because making it blocks.
fn http_client(otlp: &config::Otlp) -> anyhow::Result<reqwest::blocking::Client> {
    let (authorities, timeout) = (http_authorities(otlp)?, otlp.timeout);
    let build = move || {
        // Headers are meant for this receiver and no other one.
        let mut client = reqwest::blocking::Client::builder().redirect(Policy::none()).timeout(timeout);
        if let Some(authorities) = authorities {
            client = client.tls_certs_only(authorities);
        }
        client.build()
    };
    let building = std::thread::Builder::new().spawn(build).context("a thread for the HTTP client")?;
    building.join().map_err(|_| anyhow!("making the HTTP client panicked"))?.context("the HTTP client")
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

fn resource(otlp: &config::Otlp, worker: &str) -> Resource {
    let attributes = attributes(otlp, worker).into_iter().map(|(key, value)| KeyValue::new(key, value));
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(attributes)
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
    reported: Mutex<Option<Instant>>,
}

impl Losses {
    /// Says so, unless that was done not long ago.
    fn tell(&self, error: &str) {
        let now = Instant::now();
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_some_and(|at| now - at < TELL_EVERY) {
            return;
        }
        *reported = Some(now);
        drop(reported);
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

/// Counts what could not be sent, and makes the exporter anew when the receiver's authorities have changed.
#[derive(Debug)]
struct Watched {
    otlp: config::Otlp,
    /// Drives the connections of gRPC.
    driver: Option<Handle>,
    current: Mutex<Current>,
    losses: Arc<Losses>,
}

#[derive(Debug)]
struct Current {
    exporter: Arc<opentelemetry_otlp::SpanExporter>,
    /// What the file held when it was made.
    authorities: Option<Vec<u8>>,
    resource: Option<Resource>,
}

impl Watched {
    fn new(otlp: config::Otlp, driver: Option<Handle>, losses: Arc<Losses>) -> anyhow::Result<Self> {
        let authorities = authorities(&otlp)?;
        let exporter = Arc::new(exporter(&otlp, driver.as_ref())?);
        let current = Mutex::new(Current { exporter, authorities, resource: None });
        Ok(Self { otlp, driver, current, losses })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The exporter, made anew if the file has changed. Where that can't be done the former one goes on.
    fn exporter(&self) -> Arc<opentelemetry_otlp::SpanExporter> {
        let mut current = self.current();
        let changed = authorities(&self.otlp).ok().filter(|found| *found != current.authorities);
        if let Some(found) = changed
            && let Ok(mut made) = exporter(&self.otlp, self.driver.as_ref())
        {
            if let Some(resource) = &current.resource {
                made.set_resource(resource);
            }
            current.exporter = Arc::new(made);
            current.authorities = found;
            tracing::info!("the authorities of the receiver of traces have changed, they are in force");
        }
        Arc::clone(&current.exporter)
    }
}

impl SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.losses.queued.fetch_sub(spans, Relaxed);
        let result = self.exporter().export(batch).await;
        if let Err(error) = &result {
            self.losses.failed.fetch_add(spans, Relaxed);
            self.losses.tell(&error.to_string());
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.current().exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.current().exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.current().exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        let mut current = self.current();
        current.resource = Some(resource.clone());
        // The only one that has it is this one: nothing was exported yet.
        if let Some(exporter) = Arc::get_mut(&mut current.exporter) {
            exporter.set_resource(resource);
        }
    }
}
