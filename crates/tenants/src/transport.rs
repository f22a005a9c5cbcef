//! One HTTP request to the tenant service: bounded in time and size, and with failures that say what to do
//! next.

use std::error::Error as _;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use tokio::time::{Instant, timeout_at};
use url::Url;

use balance_sync_engine::breaker;
use balance_sync_trace::{self as trace, Span};

use crate::directory::DirectoryError;
use crate::tenant::Tenant;

/// What a failure says something about.
pub(crate) type Blame = breaker::Blame<Tenant>;

/// What came back, complete.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// How long the service asks us to stay away.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Vec<u8>,
}

/// A request without a useful answer.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The caller's error when this was the last attempt.
    pub(crate) error: DirectoryError,
    /// Whether the breaker counts it, and who may be to blame.
    pub(crate) fault: Fault,
    /// Whether another attempt may help.
    pub(crate) retry: bool,
    /// Not before this time has passed.
    pub(crate) retry_after: Option<Duration>,
}

/// What a failure says about the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is well: it answered properly, if not what we hoped for.
    None,
    /// It is ill, whatever is asked.
    Service,
    /// It is ill, or chokes on what was asked.
    Request,
}

impl Fault {
    /// Who is to blame, when the request was about `subject`.
    pub(crate) fn blame(self, subject: &Blame) -> Option<Blame> {
        match self {
            Self::None => None,
            Self::Service => Some(Blame::Service),
            Self::Request => Some(subject.clone()),
        }
    }
}

impl Failure {
    /// A proper answer that is an error for the caller.
    pub(crate) fn answered(error: DirectoryError) -> Self {
        Self { error, fault: Fault::None, retry: false, retry_after: None }
    }

    /// An answer of an ill service that another attempt wouldn't better.
    pub(crate) fn ill(error: DirectoryError) -> Self {
        Self { error, fault: Fault::Request, retry: false, retry_after: None }
    }

    fn transient(reason: String, fault: Fault) -> Self {
        Self { error: DirectoryError::Unavailable { reason }, fault, retry: true, retry_after: None }
    }

    /// What follows from a status that has no meaning of its own for the call.
    pub(crate) fn of_status(answer: &Answer) -> Self {
        let status = answer.status;
        if status == StatusCode::UNAUTHORIZED {
            return Self::answered(DirectoryError::Unauthorized);
        }
        let error = DirectoryError::unavailable(format!("unexpected HTTP status {}", status.as_u16()));
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Self { error, fault: Fault::Request, retry: true, retry_after: answer.retry_after };
        }
        if status.is_redirection() {
            let reason = format!(
                "HTTP redirect {} not followed, it could carry the API key elsewhere",
                status.as_u16()
            );
            return Self::ill(DirectoryError::Unavailable { reason });
        }
        Self::ill(error)
    }
}

/// Sends a `GET` and reads the whole answer before `deadline`, and no more than `max_body_bytes` of it. The service is
/// sent the context of this span, and may join its trace.
pub(crate) async fn get(
    client: &reqwest::Client,
    url: Url,
    deadline: Instant,
    max_body_bytes: usize,
    span: &Span,
) -> Result<Answer, Failure> {
    if span.is_some() {
        // A URL with credentials was refused when it was configured.
        span.set("url.full", url.to_string());
        span.set("http.request.method", "GET");
        span.set("server.address", url.host_str().unwrap_or_default().to_owned());
        span.set("server.port", i64::from(url.port_or_known_default().unwrap_or_default()));
    }
    let exchange = async {
        let mut response = client.get(url).headers(trace_headers(span)).send().await.map_err(broken)?;
        span.set("http.response.status_code", i64::from(response.status().as_u16()));
        let too_large = |size: &str| {
            let reason = format!("has {size} bytes: allowed are {max_body_bytes}");
            Failure::ill(DirectoryError::malformed("body", reason))
        };
        // The announced length spares us the reading; the real one is counted all the same.
        let announced = response.content_length().unwrap_or(0);
        if announced > max_body_bytes as u64 {
            return Err(too_large(&announced.to_string()));
        }
        let status = response.status();
        let retry_after = retry_after(&response);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if chunk.len() > max_body_bytes - body.len() {
                return Err(too_large(&format!("more than {max_body_bytes}")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, retry_after, body })
    };
    let started = Instant::now();
    timeout_at(deadline, exchange).await.unwrap_or_else(|_| {
        let reason = format!("no complete answer within {} ms", (deadline - started).as_millis());
        Err(Failure::transient(reason, Fault::Request))
    })
}

fn trace_headers(span: &Span) -> HeaderMap {
    let mut headers = HeaderMap::new();
    trace::propagate(span, &mut |name, value| {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    });
    headers
}

/// Seconds; the form with a date is not worth a clock.
fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// A failure below HTTP. All of them may be retried: a `GET` changes nothing.
fn broken(error: reqwest::Error) -> Failure {
    let fault = if error.is_connect() { Fault::Service } else { Fault::Request };
    let error = error.without_url();
    // The outermost text says only "error sending request"; what helps is at the end of the chain.
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    Failure::transient(reason, fault)
}
