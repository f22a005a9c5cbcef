//! One request with metrics to the receiver, and its answer, which is bounded in length and time, and shown without our headers.

use std::{error::Error, time::Duration};

use anyhow::Context as _;
use balance_sync_domain::printable;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
    metrics_service_client::MetricsServiceClient,
};
use prost::Message;
use reqwest::{
    StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap},
    redirect::Policy,
};
use secrecy::{ExposeSecret, SecretString};
use tonic::{
    Code, Status,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::receiver::{grpc_tls, headers, http_authorities};
use crate::config::{Otlp, OtlpProtocol};

/// Of an answer no more is read.
const LONGEST_ANSWER: usize = 64 * 1024;
/// Of a text no more is shown, in characters.
const LONGEST_TEXT: usize = 300;
/// Parts of a header from this length on are taken out of what the receiver says.
const SHORTEST_SECRET: usize = 4;
/// The media type of OTLP.
const PROTOBUF: &str = "application/x-protobuf";
const USER_AGENT: &str = concat!("balance-sync/", env!("CARGO_PKG_VERSION"));

/// What the receiver did not take of a request, and why.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rejected {
    /// Samples.
    pub(super) samples: u64,
    /// The reason that it gave, in printable characters; may be empty.
    pub(super) reason: String,
}

/// Why a request failed, in printable characters.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The receiver refuses what is in it; it may take others.
    OfRequest(String),
    /// The receiver is away, or takes nothing.
    OfReceiver(String),
}

/// The connection to the receiver.
pub(super) struct Sender {
    way: Way,
    timeout: Duration,
    /// What must not be shown.
    secrets: Vec<SecretString>,
}

enum Way {
    Http { client: reqwest::Client, endpoint: Url },
    Grpc { client: MetricsServiceClient<Channel>, metadata: HeaderMap },
}

impl Sender {
    /// Must be called inside a runtime, which drives the connection. The receiver need not answer yet.
    ///
    /// # Errors
    /// When no connection of that kind can be set up.
    pub(super) fn new(otlp: &Otlp) -> anyhow::Result<Self> {
        let headers = headers(otlp)?;
        let way = match otlp.protocol {
            OtlpProtocol::HttpProtobuf => {
                // Headers are meant for this receiver and no other one.
                let mut client = reqwest::Client::builder()
                    .default_headers(headers)
                    .redirect(Policy::none())
                    .user_agent(USER_AGENT);
                if let Some(authorities) = http_authorities(otlp)? {
                    client = client.tls_certs_only(authorities);
                }
                let client = client.build().context("the HTTP client")?;
                Way::Http { client, endpoint: otlp.endpoint.clone() }
            }
            OtlpProtocol::Grpc => {
                let mut endpoint =
                    Endpoint::from_shared(otlp.endpoint.to_string())?.user_agent(USER_AGENT)?;
                if let Some(tls) = grpc_tls(otlp)? {
                    endpoint = endpoint.tls_config(tls)?;
                }
                let client = MetricsServiceClient::new(endpoint.connect_lazy())
                    .max_decoding_message_size(LONGEST_ANSWER);
                Way::Grpc { client, metadata: headers }
            }
        };
        Ok(Self { way, timeout: otlp.timeout, secrets: secrets(otlp) })
    }

    /// Sends a request, and waits for the answer no longer than is configured.
    pub(super) async fn send(&self, request: ExportMetricsServiceRequest) -> Result<Rejected, Failure> {
        let sending = async {
            match &self.way {
                Way::Http { client, endpoint } => self.http(client, endpoint, request).await,
                Way::Grpc { client, metadata } => self.grpc(client.clone(), metadata, request).await,
            }
        };
        let answer = tokio::time::timeout(self.timeout, sending).await;
        let partial = answer.map_err(|_| Failure::OfReceiver("no answer in time".to_owned()))??;
        Ok(Rejected {
            samples: u64::try_from(partial.rejected_data_points).unwrap_or(0),
            reason: self.shown(&partial.error_message),
        })
    }

    async fn http(
        &self,
        client: &reqwest::Client,
        endpoint: &Url,
        request: ExportMetricsServiceRequest,
    ) -> Result<ExportMetricsPartialSuccess, Failure> {
        let away = |error: reqwest::Error| Failure::OfReceiver(self.shown(&chain(&error.without_url())));
        let sending =
            client.post(endpoint.clone()).header(CONTENT_TYPE, PROTOBUF).body(request.encode_to_vec());
        let mut answer = sending.send().await.map_err(away)?;
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(away)? {
            if body.len() + piece.len() > LONGEST_ANSWER {
                return Err(Failure::OfReceiver("the receiver's answer is too long".to_owned()));
            }
            body.extend_from_slice(&piece);
        }
        let status = answer.status();
        if status.is_success() {
            // Receivers exist that answer in words; what counts is the status.
            let answer = ExportMetricsServiceResponse::decode(body.as_slice()).unwrap_or_default();
            return Ok(answer.partial_success.unwrap_or_default());
        }
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let reason = match kind.split(';').next().unwrap_or_default().trim() {
            PROTOBUF => Refusal::decode(body.as_slice()).unwrap_or_default().message,
            "text/plain" => String::from_utf8_lossy(&body).into_owned(),
            // A page for people, perhaps.
            _ => String::new(),
        };
        Err(self.failure(is_of_request(status), format!("the receiver answered {status}"), &reason))
    }

    async fn grpc(
        &self,
        mut client: MetricsServiceClient<Channel>,
        metadata: &HeaderMap,
        request: ExportMetricsServiceRequest,
    ) -> Result<ExportMetricsPartialSuccess, Failure> {
        let mut call = tonic::Request::new(request);
        *call.metadata_mut() = MetadataMap::from_headers(metadata.clone());
        match client.export(call).await {
            Ok(answer) => Ok(answer.into_inner().partial_success.unwrap_or_default()),
            Err(status) => {
                let text = format!("the receiver answered {:?}", status.code());
                Err(match status.source() {
                    // Not an answer.
                    Some(source) => Failure::OfReceiver(self.shown(&chain(source))),
                    None => self.failure(is_of_call(&status), text, status.message()),
                })
            }
        }
    }

    fn failure(&self, is_of_request: bool, answered: String, reason: &str) -> Failure {
        let reason = self.shown(reason.trim());
        let text = if reason.is_empty() { answered } else { format!("{answered}: {reason}") };
        if is_of_request { Failure::OfRequest(text) } else { Failure::OfReceiver(text) }
    }

    /// Text from outside as it may be logged: no longer than is useful, printable, and without what it repeats of our headers.
    fn shown(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            text = text.replace(secret.expose_secret(), "***");
        }
        printable(&text).chars().take(LONGEST_TEXT).collect()
    }
}

/// The values of the headers and the words in them, the longest first.
fn secrets(otlp: &Otlp) -> Vec<SecretString> {
    let values = otlp.headers.iter().map(|(_, value)| value.expose_secret());
    let mut secrets: Vec<&str> =
        values.flat_map(|value| value.split_whitespace().chain([value])).map(str::trim).collect();
    secrets.retain(|secret| secret.len() >= SHORTEST_SECRET);
    secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into_iter().map(SecretString::from).collect()
}

/// Whether a status is about what was sent.
fn is_of_request(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// The same for gRPC, where `ResourceExhausted` stands for a message that is too long as well as for a receiver that is too busy.
fn is_of_call(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted)
}

/// What came with an HTTP status that says no.
#[derive(Clone, PartialEq, prost::Message)]
struct Refusal {
    #[prost(string, tag = "2")]
    message: String,
}

/// An error with what led to it.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
