//! The environment variables of OpenTelemetry, read as settings of `[telemetry]`.
//!
//! They may have been set for other programs, and OpenTelemetry asks of those who can't read one to warn and go on as if
//! it weren't there: none is refused, each that is left out gets a note.

use figment::value::Value;

use super::layers::{Environment, Layer, boolean};
use super::problem::{ConfigNote, Origin, is_secret, quoted};

/// How the text of a variable becomes a value of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As it is.
    Text,
    /// One of these, whatever its case.
    OneOf(&'static [&'static str]),
    /// True switches off, false says nothing.
    Off,
    /// `none` switches off, `otlp` says nothing.
    Exporter,
    /// A whole number above 0.
    Count,
    /// A duration in whole milliseconds above 0.
    Millis,
    /// A number from 0 to 1.
    Ratio,
    /// Not read; says what to do instead.
    NotRead(&'static str),
}

const PROTOCOLS: &[&str] = &["http/protobuf", "grpc"];
const SAMPLERS: &[&str] = &[
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

const UNCOMPRESSED: &[&str] = &["none"];
const ONE_AUTHORITY: &str =
    "telemetry.ca_cert, or OTEL_EXPORTER_OTLP_CERTIFICATE, for traces and metrics alike";
const NO_CLIENT_CERTIFICATE: &str =
    "no certificate of a client, which is not supported; headers can authenticate";

/// Every variable, the key it sets, and how. Of two with the same key the later one counts.
pub(super) const VARIABLES: [(&str, &str, Kind); 35] = [
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "telemetry.traces_endpoint", Kind::Text),
    ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "telemetry.metrics_endpoint", Kind::Text),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "telemetry.protocol", Kind::OneOf(PROTOCOLS)),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "telemetry.traces_protocol", Kind::OneOf(PROTOCOLS)),
    ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "telemetry.metrics_protocol", Kind::OneOf(PROTOCOLS)),
    ("OTEL_EXPORTER_OTLP_HEADERS", "telemetry.headers", Kind::Text),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "telemetry.traces_headers", Kind::Text),
    ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "telemetry.metrics_headers", Kind::Text),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "telemetry.timeout", Kind::Millis),
    ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "telemetry.traces_timeout", Kind::Millis),
    ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "telemetry.metrics_timeout", Kind::Millis),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "telemetry.ca_cert", Kind::Text),
    ("OTEL_SERVICE_NAME", "telemetry.service_name", Kind::Text),
    ("OTEL_RESOURCE_ATTRIBUTES", "telemetry.resource_attributes", Kind::Text),
    ("OTEL_TRACES_SAMPLER", "telemetry.sampler", Kind::OneOf(SAMPLERS)),
    ("OTEL_TRACES_SAMPLER_ARG", "telemetry.sample_ratio", Kind::Ratio),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "telemetry.queue_size", Kind::Count),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "telemetry.batch_size", Kind::Count),
    ("OTEL_BSP_SCHEDULE_DELAY", "telemetry.export_interval", Kind::Millis),
    ("OTEL_METRIC_EXPORT_INTERVAL", "telemetry.metrics_interval", Kind::Millis),
    ("OTEL_TRACES_EXPORTER", "telemetry.traces", Kind::Exporter),
    ("OTEL_METRICS_EXPORTER", "telemetry.metrics", Kind::Exporter),
    ("OTEL_SDK_DISABLED", "telemetry.enabled", Kind::Off),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "", Kind::OneOf(UNCOMPRESSED)),
    ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "", Kind::OneOf(UNCOMPRESSED)),
    ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "", Kind::OneOf(UNCOMPRESSED)),
    ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "", Kind::OneOf(&["cumulative"])),
    (
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
        "",
        Kind::OneOf(&["explicit_bucket_histogram"]),
    ),
    ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "", Kind::NotRead(ONE_AUTHORITY)),
    ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "", Kind::NotRead(ONE_AUTHORITY)),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "", Kind::NotRead(NO_CLIENT_CERTIFICATE)),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "", Kind::NotRead(NO_CLIENT_CERTIFICATE)),
    ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "", Kind::NotRead(NO_CLIENT_CERTIFICATE)),
    ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", "", Kind::NotRead(NO_CLIENT_CERTIFICATE)),
    ("OTEL_METRIC_EXPORT_TIMEOUT", "", Kind::NotRead("telemetry.metrics_timeout bounds each request")),
];

/// Whoever names an endpoint wants traces and metrics sent there, unless something above this layer says otherwise; the ledger's
/// switch, for one, which its operators leave off beside an endpoint.
pub(super) fn implied(environment: &Environment) -> Option<Layer> {
    let named = [
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ]
    .into_iter()
    .find(|name| matches!(environment.get(name), Some(Ok(_))))?;
    Some(Layer::of(Origin::Standard(named.to_owned()), "telemetry.enabled", Value::from(true)))
}

/// One layer per variable that is set and can be read.
pub(super) fn layers(environment: &Environment, notes: &mut Vec<ConfigNote>) -> Vec<Layer> {
    let mut found = Vec::new();
    for (name, key, kind) in VARIABLES {
        let mut note = |shown: String, allowed: &str| {
            let text = format!("{shown} is left out; allowed: {allowed}");
            notes.push(ConfigNote { key: name.to_owned(), text });
        };
        match environment.get(name) {
            None => {}
            Some(Err(problem)) => note(problem.reason, "UTF-8 text"),
            Some(Ok(text)) => match read(kind, key, text) {
                Ok(Some(value)) if !key.is_empty() => {
                    found.push(Layer::of(Origin::Standard(name.to_owned()), key, value));
                }
                Ok(_) => {}
                Err(allowed) => {
                    note(if is_secret(key) { "the value".to_owned() } else { quoted(text) }, &allowed)
                }
            },
        }
    }
    found
}

/// The value that a variable sets; none when it says nothing; else what would be allowed.
fn read(kind: Kind, key: &str, text: &str) -> Result<Option<Value>, String> {
    let trimmed = text.trim();
    Ok(Some(match kind {
        Kind::Text if is_secret(key) => Value::from(text),
        Kind::Text => Value::from(trimmed),
        Kind::OneOf(names) => {
            let lower = trimmed.to_ascii_lowercase();
            match names.iter().find(|name| **name == lower) {
                Some(name) => Value::from(*name),
                None => return Err(names.join(", ")),
            }
        }
        Kind::Off => match boolean(trimmed) {
            Some(true) => Value::from(false),
            Some(false) => return Ok(None),
            None => return Err("true or false".to_owned()),
        },
        Kind::Exporter => match trimmed.to_ascii_lowercase().as_str() {
            "none" => Value::from(false),
            "otlp" => return Ok(None),
            _ => return Err("otlp or none".to_owned()),
        },
        Kind::Count => Value::from(whole(trimmed)?),
        Kind::Millis => Value::from(format!("{}ms", whole(trimmed)?)),
        Kind::NotRead(instead) => return Err(instead.to_owned()),
        Kind::Ratio => match trimmed.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Value::from(ratio),
            _ => return Err("a number from 0 to 1".to_owned()),
        },
    }))
}

/// Numbers beyond 32 bits are cut there: far beyond every limit that is checked later.
fn whole(text: &str) -> Result<u32, String> {
    match text.parse::<u64>() {
        Ok(number) if number > 0 => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        _ => Err("a whole number above 0".to_owned()),
    }
}
