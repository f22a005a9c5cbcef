//! What traces and metrics have in common: how their receiver is connected to, what the worker says about itself there, and the
//! thread from which they are sent.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow};
use balance_sync_schedule::certificates_in;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use tokio::runtime::{Builder, Handle, Runtime};
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::config::Otlp;

/// A thread that drives connections. Its own, so that sending needs nothing of the threads that sync, not even while they end.
#[derive(Debug)]
pub(super) struct Driver(Option<Runtime>);

impl Driver {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has none left.
    pub(super) fn start() -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("telemetry")
            .enable_all()
            .build()
            .context("a thread to send from")?;
        Ok(Self(Some(runtime)))
    }

    /// Runs on that thread what is given to it.
    pub(super) fn handle(&self) -> anyhow::Result<&Handle> {
        self.0.as_ref().map(Runtime::handle).context("the thread to send from has ended")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // To wait for its end would block a thread that must not be.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The headers of each request; their values are never shown.
///
/// # Errors
/// When one can't be sent. The text has no value.
pub(super) fn headers(otlp: &Otlp) -> anyhow::Result<HeaderMap> {
    let headers = otlp.headers.iter().map(|(name, value)| {
        let mut value = HeaderValue::from_str(value.expose_secret()).ok()?;
        value.set_sensitive(true);
        Some((name.parse::<HeaderName>().ok()?, value))
    });
    headers.collect::<Option<HeaderMap>>().context("headers: can't be sent")
}

/// The authorities to trust, in PEM, where they aren't the system's. The file is read only where its certificates are needed.
///
/// # Errors
/// When the file can't be read, or holds something else.
pub(super) fn authorities(otlp: &Otlp) -> anyhow::Result<Option<Vec<u8>>> {
    let path = otlp.ca_cert.as_ref().filter(|_| otlp.endpoint.scheme() == "https");
    path.map(|path| certificates_in(path).map_err(|problem| anyhow!("ca_cert: {problem}"))).transpose()
}

/// The same for HTTP.
///
/// # Errors
/// As [`grpc_tls`].
pub(super) fn http_authorities(otlp: &Otlp) -> anyhow::Result<Option<Vec<reqwest::Certificate>>> {
    let pem = authorities(otlp)?;
    pem.map(|pem| reqwest::Certificate::from_pem_bundle(&pem).context("ca_cert")).transpose()
}

/// TLS of gRPC; none where the endpoint has none.
///
/// # Errors
/// When the file with the authorities can't be read.
pub(super) fn grpc_tls(otlp: &Otlp) -> anyhow::Result<Option<ClientTlsConfig>> {
    if otlp.endpoint.scheme() != "https" {
        return Ok(None);
    }
    let tls = ClientTlsConfig::new();
    Ok(Some(match authorities(otlp)? {
        Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
        None => tls.with_native_roots(),
    }))
}

/// What the worker says about itself. What was configured goes before what is known anyway, but for the names of the service and of
/// the worker: with one name for several workers their counters would be mixed up.
pub(super) fn attributes(otlp: &Otlp, worker: &str) -> BTreeMap<String, String> {
    const ENVIRONMENT: &str = "deployment.environment.name";
    /// As the ledger's own telemetry has it.
    const FORMER_ENVIRONMENT: &str = "deployment.environment";
    // Of two with one key the later counts.
    let mut attributes: BTreeMap<_, _> = otlp.attributes.iter().cloned().collect();
    attributes.entry("service.version".to_owned()).or_insert_with(|| env!("CARGO_PKG_VERSION").to_owned());
    if let Some(environment) = attributes.get(ENVIRONMENT).cloned() {
        attributes.entry(FORMER_ENVIRONMENT.to_owned()).or_insert(environment);
    }
    attributes.insert("service.name".to_owned(), otlp.service_name.clone());
    attributes.insert("service.instance.id".to_owned(), worker.to_owned());
    attributes
}
