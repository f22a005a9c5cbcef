//! `[log]`, and `[telemetry]`: where traces go, which, and how. That is looked at only when they are on.

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use url::Url;

use super::problem::{Origin, quoted};
use super::raw;
use super::redis::bracketed;
use super::types::{OtlpProtocol, Traces};
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
    let headers = check.secret("telemetry.headers", &raw.headers);
    if !raw.enabled {
        return None;
    }
    let headers = headers.map_or(Some(Vec::new()), |headers| parse_headers(check, &headers));
    let attributes = parse_attributes(check, &raw.resource_attributes);
    if raw.service_name.is_empty() {
        check.refuse("telemetry.service_name", None, "allowed: any text but none");
    }
    let (protocol, endpoint) = endpoint(check, raw)?;
    Some(Traces {
        protocol,
        endpoint,
        headers: headers?,
        timeout: raw.timeout,
        service_name: raw.service_name.clone(),
        attributes: attributes?,
        sampler: raw.sampler,
        sample_ratio: raw.sample_ratio,
        queue_size: raw.queue_size,
        batch_size: raw.batch_size,
        export_interval: raw.export_interval,
        drain_deadline: raw.drain_deadline,
    })
}

/// The protocol and the whole URL.
fn endpoint(check: &mut Check<'_>, raw: &raw::Telemetry) -> Option<(OtlpProtocol, Url)> {
    let (key, text) = match (raw.traces_endpoint.trim(), raw.endpoint.trim()) {
        ("", "") => ("telemetry.endpoint", DEFAULT_ENDPOINT),
        ("", base) => ("telemetry.endpoint", base),
        (exact, _) => ("telemetry.traces_endpoint", exact),
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
    let protocol = match raw.protocol {
        raw::Protocol::Grpc => OtlpProtocol::Grpc,
        raw::Protocol::HttpProtobuf => OtlpProtocol::HttpProtobuf,
        raw::Protocol::Auto if bare || url.port() == Some(GRPC_PORT) => OtlpProtocol::Grpc,
        raw::Protocol::Auto => OtlpProtocol::HttpProtobuf,
    };
    if protocol == OtlpProtocol::HttpProtobuf && key == "telemetry.endpoint" {
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/v1/traces"));
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
/// it goes on without traces. One that was written for this worker is refused as every wrong value is.
fn unusable(check: &mut Check<'_>, key: &str, text: &str, reason: &str) {
    let origin = check.origin(key);
    if matches!(origin, Origin::Ledger(_) | Origin::Standard(_)) {
        check.note(key, format!("{} ({origin}) can't be used, traces are off: {reason}", quoted(text)));
    } else {
        check.refuse(key, Some(quoted(text)), reason);
    }
}

fn parse_headers(check: &mut Check<'_>, headers: &SecretString) -> Option<Vec<(String, SecretString)>> {
    let name_fits = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let value_fits = |value: &str| value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    let pairs = pairs(headers.expose_secret())
        .filter(|pairs| pairs.iter().all(|(name, value)| name_fits(name) && value_fits(value)));
    let Some(pairs) = pairs else {
        let allowed = "allowed: name=value, separated by commas, of visible ASCII characters once decoded";
        check.refuse("telemetry.headers", None, allowed);
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
