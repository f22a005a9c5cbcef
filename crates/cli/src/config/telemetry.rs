//! `[log]`, and `[telemetry]`: where traces and metrics go, which, and how. That is looked at only when they are on.

use std::path::PathBuf;
use std::time::Duration;

use balance_sync_schedule::certificates_in;
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use url::Url;

use super::problem::{Origin, quoted};
use super::raw;
use super::redis::bracketed;
use super::types::{Metrics, Otlp, OtlpProtocol, Traces};
use super::validate::Check;

/// Where OpenTelemetry's collectors listen by default.
const DEFAULT_ENDPOINT: &str = "http://localhost:4318";
/// The port that by convention means gRPC.
const GRPC_PORT: u16 = 4317;
const ENDPOINT_FORM: &str = "allowed: http:// or https://host[:port][/path], or host:port";

/// `EnvFilter` takes any single word for the name of a module, so that a misspelt level would mean "trace this module".
pub(super) fn log(check: &mut Check<'_>, log: &raw::Log) {
    let words = log.level.split(',').map(str::trim);
    let misspelt = |word: &str| !word.contains(['=', '[']) && word.parse::<LevelFilter>().is_err();
    if words.clone().any(misspelt) || EnvFilter::builder().parse(&log.level).is_err() {
        let allowed = "allowed: error, warn, info, debug, trace, off, or module=level, separated by commas";
        check.refuse("log.level", Some(quoted(&log.level)), allowed);
    }
}

/// Checks the section; none when traces are off, or something was refused.
pub(super) fn traces(check: &mut Check<'_>, raw: &raw::Telemetry) -> Option<Traces> {
    Some(Traces {
        otlp: otlp(check, raw, &Signal::traces(raw))?,
        sampler: raw.sampler,
        sample_ratio: raw.sample_ratio,
        queue_size: raw.queue_size,
        batch_size: raw.batch_size,
        export_interval: raw.export_interval,
    })
}

/// The same for metrics.
pub(super) fn metrics(check: &mut Check<'_>, raw: &raw::Telemetry) -> Option<Metrics> {
    Some(Metrics {
        otlp: otlp(check, raw, &Signal::metrics(raw))?,
        interval: raw.metrics_interval,
        ledgers: (raw.ledger_series == raw::LedgerSeries::Pushed).then_some(raw.metrics_ledgers),
    })
}

/// Traces or metrics, with the keys that are for them alone.
struct Signal<'a> {
    /// The last part of the path of its endpoint.
    name: &'static str,
    enabled: bool,
    endpoint: (&'static str, &'a str),
    /// The same of the other signal.
    other_endpoint: &'a str,
    protocol: raw::Protocol,
    headers: (&'static str, &'a SecretString),
    timeout: Duration,
}

impl<'a> Signal<'a> {
    fn traces(raw: &'a raw::Telemetry) -> Self {
        Self {
            name: "traces",
            enabled: raw.traces,
            endpoint: ("telemetry.traces_endpoint", raw.traces_endpoint.trim()),
            other_endpoint: raw.metrics_endpoint.trim(),
            protocol: raw.traces_protocol,
            headers: ("telemetry.traces_headers", &raw.traces_headers),
            timeout: raw.traces_timeout,
        }
    }

    fn metrics(raw: &'a raw::Telemetry) -> Self {
        Self {
            name: "metrics",
            enabled: raw.metrics,
            endpoint: ("telemetry.metrics_endpoint", raw.metrics_endpoint.trim()),
            other_endpoint: raw.traces_endpoint.trim(),
            protocol: raw.metrics_protocol,
            headers: ("telemetry.metrics_headers", &raw.metrics_headers),
            timeout: raw.metrics_timeout,
        }
    }
}

/// Where a signal is sent; none when it is off, or something was refused.
fn otlp(check: &mut Check<'_>, raw: &raw::Telemetry, signal: &Signal<'_>) -> Option<Otlp> {
    let general = check.secret("telemetry.headers", &raw.headers);
    let own = check.secret(signal.headers.0, signal.headers.1);
    if !raw.enabled || !signal.enabled {
        return None;
    }
    if signal.endpoint.1.is_empty() && raw.endpoint.trim().is_empty() && !signal.other_endpoint.is_empty() {
        // The only endpoint there is, is for the other signal alone.
        return None;
    }
    let (key, headers) = match own {
        Some(own) => (signal.headers.0, Some(own)),
        None => ("telemetry.headers", general),
    };
    let headers = headers.map_or(Some(Vec::new()), |headers| parse_headers(check, key, &headers));
    let attributes = parse_attributes(check, &raw.resource_attributes);
    if raw.service_name.is_empty() {
        check.refuse("telemetry.service_name", None, "allowed: any text but none");
    }
    let ca_cert = authority(check, raw.ca_cert.trim());
    let (protocol, endpoint) = endpoint(check, raw, signal)?;
    Some(Otlp {
        protocol,
        endpoint,
        headers: headers?,
        ca_cert,
        timeout: if signal.timeout.is_zero() { raw.timeout } else { signal.timeout },
        service_name: raw.service_name.clone(),
        attributes: attributes?,
        drain_deadline: raw.drain_deadline,
    })
}

/// The file with the authorities to trust. It is read again later: one that a variable names which was set for other programs need
/// not be readable now. In its place the system's authorities are never trusted.
fn authority(check: &mut Check<'_>, file: &str) -> Option<PathBuf> {
    const KEY: &str = "telemetry.ca_cert";
    if file.is_empty() {
        return None;
    }
    let path = PathBuf::from(file);
    if let Err(problem) = certificates_in(&path) {
        let origin = check.origin(KEY);
        if matches!(origin, Origin::Standard(_)) {
            check.note(KEY, format!("({origin}) can't be used, nothing is sent by TLS: {problem}"));
        } else {
            check.refuse(KEY, Some(quoted(file)), format!("allowed: a readable PEM file; {problem}"));
        }
    }
    Some(path)
}

/// The protocol and the whole URL.
fn endpoint(check: &mut Check<'_>, raw: &raw::Telemetry, signal: &Signal<'_>) -> Option<(OtlpProtocol, Url)> {
    let (key, text) = match (signal.endpoint.1, raw.endpoint.trim()) {
        ("", "") => ("telemetry.endpoint", DEFAULT_ENDPOINT),
        ("", base) => ("telemetry.endpoint", base),
        (exact, _) => (signal.endpoint.0, exact),
    };
    let bare = !text.contains("://");
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let Ok(mut url) = Url::parse(&format!("{scheme}://{}{path}", bracketed(authority))) else {
        unusable(check, key, text, ENDPOINT_FORM);
        return None;
    };
    let fits = matches!(url.scheme(), "http" | "https")
        && url.host_str().is_some_and(is_host)
        && (!bare || (url.port().is_some() && url.path() == "/"))
        && url.query().is_none()
        && url.fragment().is_none();
    if !fits {
        unusable(check, key, text, ENDPOINT_FORM);
        return None;
    }
    if !url.username().is_empty() || url.password().is_some() {
        let reason = format!("holds credentials, which belong in telemetry.headers; {ENDPOINT_FORM}");
        unusable(check, key, text, &reason);
        return None;
    }
    let chosen = if signal.protocol == raw::Protocol::Auto { raw.protocol } else { signal.protocol };
    let protocol = match chosen {
        raw::Protocol::Grpc => OtlpProtocol::Grpc,
        raw::Protocol::HttpProtobuf => OtlpProtocol::HttpProtobuf,
        raw::Protocol::Auto if bare || url.port() == Some(GRPC_PORT) => OtlpProtocol::Grpc,
        raw::Protocol::Auto => OtlpProtocol::HttpProtobuf,
    };
    if protocol == OtlpProtocol::HttpProtobuf && key == "telemetry.endpoint" {
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/v1/{}", signal.name));
    }
    Some((protocol, url))
}

/// Whether a URL's host can be one: `$(HOST_IP)`, which Kubernetes leaves where it knows no such variable, can't.
fn is_host(host: &str) -> bool {
    let address = host.starts_with('[') && host.ends_with(']');
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    address || (!host.is_empty() && host.bytes().all(named))
}

/// An endpoint that can't be used. One from a variable that was set for other programs must not keep the worker from starting:
/// it goes on without them. One that was written for this worker is refused as every wrong value is.
fn unusable(check: &mut Check<'_>, key: &str, text: &str, reason: &str) {
    let origin = check.origin(key);
    if matches!(origin, Origin::Ledger(_) | Origin::Standard(_)) {
        let text = quoted(text);
        check.note(key, format!("{text} ({origin}) can't be used, nothing is sent there: {reason}"));
    } else {
        check.refuse(key, Some(quoted(text)), reason);
    }
}

fn parse_headers(
    check: &mut Check<'_>,
    key: &str,
    headers: &SecretString,
) -> Option<Vec<(String, SecretString)>> {
    let name_fits = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let value_fits = |value: &str| value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    let pairs = pairs(headers.expose_secret())
        .filter(|pairs| pairs.iter().all(|(name, value)| name_fits(name) && value_fits(value)));
    let Some(pairs) = pairs else {
        let allowed = "allowed: name=value, separated by commas, of visible ASCII characters once decoded";
        check.refuse(key, None, allowed);
        return None;
    };
    Some(pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.into())).collect())
}

fn parse_attributes(check: &mut Check<'_>, text: &str) -> Option<Vec<(String, String)>> {
    let found = pairs(text).filter(|pairs| pairs.iter().all(|(key, _)| !key.is_empty()));
    if found.is_none() {
        let allowed = "allowed: key=value, separated by commas";
        check.refuse("telemetry.resource_attributes", Some(quoted(text)), allowed);
    }
    found
}

/// `a=b,c=d`, as OpenTelemetry writes lists of pairs in a variable; values percent-encoded.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| {
            let (name, value) = item.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((name.trim().to_owned(), value.into_owned()))
        })
        .collect()
}
