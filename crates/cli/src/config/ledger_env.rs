//! The environment variables that the ledger's operators already set (protocol §5), read as settings of ours.
//!
//! They were written for another program, so that a number out of our range isn't refused here or later: it is clamped,
//! and a zero or less, which means "off" or "default" there, leaves our default in force; both with a note. What can't be
//! read at all is refused with the variable's name.
//!
//! Two things in them say nothing about what an operator wants of this worker. The ledger's chart always renders batch size,
//! timeout and poll interval with the ledger's own defaults ([`RENDERED`]). And its own worker, which can't be switched off,
//! is parked by a batch of one and a timeout of days ([`PARKED_FROM`]): obeyed here, those would make a crawl of our work.
//! Kubernetes adds variables of services: `tcp://…` where a port is expected is one of those, and left out.

use figment::value::Value;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::layers::{Environment, Layer, boolean};
use super::problem::{ConfigNote, Origin, Problem, is_secret, quoted};
use super::redis::bracketed;

/// How the text of a variable becomes a value of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As it is.
    Text,
    /// True or false, as Go reads them.
    Flag,
    /// A whole number that is what it says: a port, a database.
    Number,
    /// A whole number that can be clamped; zero is the ledger's word for "default".
    Count,
    /// A duration in whole seconds; zero as in `Count`.
    Seconds,
    /// The same, but zero stands for this many.
    SecondsOr(u32),
    /// A duration in whole milliseconds; zero as in `Count`.
    Millis,
    /// A log level, as the ledger names it.
    Level,
    /// The name of the environment: without blanks around it, in lower case.
    Environment,
    /// `saas` demands TLS everywhere; any other mode says nothing.
    Deployment,
    /// The environment as an attribute of a resource.
    EnvironmentAttribute,
    /// True: ask the tenant service; false: the single tenant.
    MultiTenant,
    /// `host:port`; several are sentinels when a master is named, and a cluster when none is. A single one with a master is a
    /// sentinel too.
    RedisHosts,
}

/// Every variable, the key it sets, and how. Of two with the same key the later one counts.
pub(super) const VARIABLES: [(&str, &str, Kind); 37] = [
    ("MULTI_TENANT_ENABLED", "tenants.source", Kind::MultiTenant),
    ("MULTI_TENANT_URL", "tenants.service.url", Kind::Text),
    ("MULTI_TENANT_SERVICE_API_KEY", "tenants.service.api_key", Kind::Text),
    ("MULTI_TENANT_CIRCUIT_BREAKER_THRESHOLD", "tenants.service.breaker_threshold", Kind::Count),
    ("MULTI_TENANT_CIRCUIT_BREAKER_TIMEOUT_SEC", "tenants.service.breaker_timeout", Kind::Seconds),
    ("MULTI_TENANT_CACHE_TTL_SEC", "tenants.service.settings_ttl", Kind::Seconds),
    ("MULTI_TENANT_CONNECTIONS_CHECK_INTERVAL_SEC", "tenants.service.settings_ttl", Kind::SecondsOr(30)),
    ("MULTI_TENANT_SERVICE_NAME", "tenants.service.service", Kind::Text),
    ("APPLICATION_NAME", "tenants.service.service", Kind::Text),
    ("MULTI_TENANT_REDIS_HOST", "tenants.events_redis.host", Kind::Text),
    ("MULTI_TENANT_REDIS_PORT", "tenants.events_redis.port", Kind::Number),
    ("MULTI_TENANT_REDIS_PASSWORD", "tenants.events_redis.password", Kind::Text),
    ("MULTI_TENANT_REDIS_TLS", "tenants.events_redis.tls", Kind::Flag),
    ("MULTI_TENANT_REDIS_CA_CERT", "tenants.events_redis.ca_cert_base64", Kind::Text),
    ("ENV_NAME", "tenants.environment", Kind::Environment),
    ("ENVIRONMENT_NAME", "tenants.environment", Kind::Environment),
    ("DEPLOYMENT_MODE", "worker.require_tls", Kind::Deployment),
    ("REDIS_HOST", "redis.url", Kind::RedisHosts),
    ("REDIS_PASSWORD", "redis.password", Kind::Text),
    ("REDIS_DB", "redis.db", Kind::Number),
    ("REDIS_TLS", "redis.tls", Kind::Flag),
    ("REDIS_CA_CERT", "redis.ca_cert_base64", Kind::Text),
    ("REDIS_MASTER_NAME", "redis.master_name", Kind::Text),
    ("DB_TRANSACTION_HOST", "tenants.single.host", Kind::Text),
    ("DB_TRANSACTION_PORT", "tenants.single.port", Kind::Number),
    ("DB_TRANSACTION_NAME", "tenants.single.database", Kind::Text),
    ("DB_TRANSACTION_USER", "tenants.single.username", Kind::Text),
    ("DB_TRANSACTION_PASSWORD", "tenants.single.password", Kind::Text),
    ("DB_TRANSACTION_SSLMODE", "tenants.single.sslmode", Kind::Text),
    ("BALANCE_SYNC_BATCH_SIZE", "collector.batch_size", Kind::Count),
    ("BALANCE_SYNC_FLUSH_TIMEOUT_MS", "collector.flush_timeout", Kind::Millis),
    ("BALANCE_SYNC_POLL_INTERVAL_MS", "collector.poll_interval", Kind::Millis),
    ("LOG_LEVEL", "log.level", Kind::Level),
    ("ENABLE_TELEMETRY", "telemetry.enabled", Kind::Flag),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.endpoint", Kind::Text),
    ("OTEL_RESOURCE_SERVICE_NAME", "telemetry.service_name", Kind::Text),
    ("OTEL_RESOURCE_DEPLOYMENT_ENVIRONMENT", "telemetry.resource_attributes", Kind::EnvironmentAttribute),
];

/// What the ledger's chart renders for these whether an operator wants it or not: the ledger's own defaults.
const RENDERED: [(&str, u64); 3] = [
    ("BALANCE_SYNC_BATCH_SIZE", 50),
    ("BALANCE_SYNC_FLUSH_TIMEOUT_MS", 500),
    ("BALANCE_SYNC_POLL_INTERVAL_MS", 50),
];

/// A flush timeout from here on, one hour in milliseconds, is meant to park the ledger's own worker. No operator wants balances to
/// wait that long.
const PARKED_FROM: u64 = 3_600_000;

/// Whether the ledger's operators have its clients authenticate by Google Cloud IAM.
pub(super) fn wants_gcp_iam(environment: &Environment) -> bool {
    matches!(environment.get("REDIS_USE_GCP_IAM"), Some(Ok(text)) if boolean(text.trim()) == Some(true))
}

/// The variables of the worker that say nothing about what is wanted of ours, with one note for each reason.
fn without_meaning(environment: &Environment, notes: &mut Vec<ConfigNote>) -> Vec<&'static str> {
    let number = |name: &str| match environment.get(name) {
        Some(Ok(text)) => text.trim().parse::<u64>().ok(),
        _ => None,
    };
    let (mut parked, mut rendered) = (Vec::new(), Vec::new());
    if number("BALANCE_SYNC_FLUSH_TIMEOUT_MS").is_some_and(|millis| millis >= PARKED_FROM) {
        parked.push("BALANCE_SYNC_FLUSH_TIMEOUT_MS");
        if number("BALANCE_SYNC_BATCH_SIZE") == Some(1) {
            parked.push("BALANCE_SYNC_BATCH_SIZE");
        }
    }
    rendered.extend(
        RENDERED.iter().filter(|(name, default)| number(name) == Some(*default)).map(|(name, _)| *name),
    );
    let mut note = |names: &[&str], why: &str| {
        if !names.is_empty() {
            let text = format!("{} {why}: this worker's own defaults stay in force", names.join(", "));
            notes.push(ConfigNote { key: "collector".to_owned(), text });
        }
    };
    note(&parked, "park the ledger's own worker and are not meant for this one");
    note(&rendered, "have the values that the ledger's chart always renders");
    parked.extend(rendered);
    parked
}

/// One layer per variable that is set, so that each value knows the name it came by.
pub(super) fn layers(
    environment: &Environment,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<ConfigNote>,
) -> Vec<Layer> {
    let mut found = Vec::new();
    let ignored = without_meaning(environment, notes);
    for (name, key, kind) in VARIABLES.into_iter().filter(|(name, ..)| !ignored.contains(name)) {
        let text = match environment.get(name) {
            None => continue,
            Some(Ok(text)) => text,
            Some(Err(problem)) => {
                problems.push(problem);
                continue;
            }
        };
        let origin = Origin::Ledger(name.to_owned());
        match read(kind, key, text, environment) {
            Ok(Some((key, value))) => found.push(Layer::of(origin, key, value)),
            Ok(None) if kind == Kind::Deployment => {}
            Ok(None) => notes.push(ConfigNote {
                key: key.to_owned(),
                text: format!(
                    "{name} is {}, which is no setting here: the default stays in force",
                    quoted(text)
                ),
            }),
            Err(allowed) => problems.push(Problem {
                key: key.to_owned(),
                value: (!is_secret(key)).then(|| quoted(text)),
                origin: Some(origin),
                reason: format!("allowed: {allowed}"),
            }),
        }
    }
    found
}

/// The key and value that a variable sets; none for a zero that means "default"; else what would be allowed.
fn read<'k>(
    kind: Kind,
    key: &'k str,
    text: &str,
    environment: &Environment,
) -> Result<Option<(&'k str, Value)>, &'static str> {
    let trimmed = text.trim();
    let value = match kind {
        // Not trimmed: blanks may belong to a password.
        Kind::Text if is_secret(key) => Value::from(text),
        Kind::Text => Value::from(trimmed),
        Kind::Flag => Value::from(boolean(trimmed).ok_or("true or false")?),
        // Kubernetes' own variable for a service of that name.
        Kind::Number if trimmed.starts_with("tcp://") => return Ok(None),
        Kind::Number => Value::from(whole(trimmed)?),
        Kind::SecondsOr(default) => match whole_or_less(trimmed)? {
            0 => Value::from(format!("{default}s")),
            number => Value::from(format!("{number}s")),
        },
        Kind::Environment => Value::from(trimmed.to_ascii_lowercase()),
        Kind::EnvironmentAttribute => {
            let name = utf8_percent_encode(&trimmed.to_ascii_lowercase(), NON_ALPHANUMERIC).to_string();
            Value::from(format!("deployment.environment.name={name}"))
        }
        Kind::Deployment if trimmed.eq_ignore_ascii_case("saas") => Value::from(true),
        Kind::Deployment => return Ok(None),
        Kind::Count | Kind::Seconds | Kind::Millis => match whole_or_less(trimmed)? {
            0 => return Ok(None),
            number if kind == Kind::Count => Value::from(number),
            number if kind == Kind::Seconds => Value::from(format!("{number}s")),
            number => Value::from(format!("{number}ms")),
        },
        Kind::Level => Value::from(level(trimmed).ok_or("debug, info, warn, error, fatal or panic")?),
        Kind::MultiTenant => {
            Value::from(if boolean(trimmed).ok_or("true or false")? { "service" } else { "single" })
        }
        Kind::RedisHosts => {
            let has_master = environment.get("REDIS_MASTER_NAME").is_some();
            if trimmed.contains(',') || has_master {
                let hosts: Vec<&str> =
                    trimmed.split(',').map(str::trim).filter(|host| !host.is_empty()).collect();
                let key = if has_master { "redis.sentinels" } else { "redis.cluster_nodes" };
                return Ok(Some((key, Value::from(hosts))));
            }
            Value::from(if trimmed.contains("://") {
                trimmed.to_owned()
            } else {
                format!("redis://{}", bracketed(trimmed))
            })
        }
    };
    Ok(Some((key, value)))
}

/// As [`whole`]; what is below zero is zero, which for the ledger means the same.
fn whole_or_less(text: &str) -> Result<u32, &'static str> {
    match text.strip_prefix('-') {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(0),
        _ => whole(text).map_err(|_| "a whole number"),
    }
}

/// Numbers beyond 32 bits are cut there: in range for the types, and far beyond every limit that is checked later.
fn whole(text: &str) -> Result<u32, &'static str> {
    let number: u64 = text.parse().map_err(|_| "a whole number, 0 or more")?;
    Ok(u32::try_from(number).unwrap_or(u32::MAX))
}

fn level(text: &str) -> Option<&'static str> {
    Some(match text.to_ascii_lowercase().as_str() {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "fatal" | "panic" | "dpanic" => "error",
        _ => return None,
    })
}
