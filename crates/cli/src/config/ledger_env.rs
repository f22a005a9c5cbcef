//! The environment variables that the ledger's operators already set (protocol §5), read as settings of ours.
//!
//! They were written for another program, so that a number out of our range isn't refused here or later: it is clamped,
//! and a zero, which means "off" or "default" there, leaves our default in force; both with a note. What can't be
//! read at all is refused with the variable's name.

use figment::value::Value;

use super::layers::{Environment, Layer, boolean};
use super::problem::{ConfigNote, Origin, Problem, is_secret, quoted};

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
    /// A duration in whole milliseconds; zero as in `Count`.
    Millis,
    /// A log level, as the ledger names it.
    Level,
    /// True: ask the tenant service; false: the single tenant.
    MultiTenant,
    /// `host:port`; several are sentinels, and so is a single one when a master is named.
    RedisHosts,
}

/// Every variable, the key it sets, and how. Of two with the same key the later one counts.
pub(super) const VARIABLES: [(&str, &str, Kind); 32] = [
    ("MULTI_TENANT_ENABLED", "tenants.source", Kind::MultiTenant),
    ("MULTI_TENANT_URL", "tenants.service.url", Kind::Text),
    ("MULTI_TENANT_SERVICE_API_KEY", "tenants.service.api_key", Kind::Text),
    ("MULTI_TENANT_CIRCUIT_BREAKER_THRESHOLD", "tenants.service.breaker_threshold", Kind::Count),
    ("MULTI_TENANT_CIRCUIT_BREAKER_TIMEOUT_SEC", "tenants.service.breaker_timeout", Kind::Seconds),
    ("MULTI_TENANT_CACHE_TTL_SEC", "tenants.service.settings_ttl", Kind::Seconds),
    ("MULTI_TENANT_CONNECTIONS_CHECK_INTERVAL_SEC", "tenants.service.settings_ttl", Kind::Seconds),
    ("APPLICATION_NAME", "tenants.service.service", Kind::Text),
    ("MULTI_TENANT_REDIS_HOST", "tenants.events_redis.host", Kind::Text),
    ("MULTI_TENANT_REDIS_PORT", "tenants.events_redis.port", Kind::Number),
    ("MULTI_TENANT_REDIS_PASSWORD", "tenants.events_redis.password", Kind::Text),
    ("MULTI_TENANT_REDIS_TLS", "tenants.events_redis.tls", Kind::Flag),
    ("ENV_NAME", "tenants.environment", Kind::Text),
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
];

/// One layer per variable that is set, so that each value knows the name it came by.
pub(super) fn layers(
    environment: &Environment,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<ConfigNote>,
) -> Vec<Layer> {
    let mut found = Vec::new();
    for (name, key, kind) in VARIABLES {
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
            Ok(None) => notes.push(ConfigNote {
                key: key.to_owned(),
                text: format!("{name} is 0, which is no setting here: the default stays in force"),
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
        Kind::Number => Value::from(whole(trimmed)?),
        Kind::Count | Kind::Seconds | Kind::Millis => match whole(trimmed)? {
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
            if trimmed.contains(',') || environment.get("REDIS_MASTER_NAME").is_some() {
                let hosts: Vec<&str> =
                    trimmed.split(',').map(str::trim).filter(|host| !host.is_empty()).collect();
                return Ok(Some(("redis.sentinels", Value::from(hosts))));
            }
            Value::from(if trimmed.contains("://") {
                trimmed.to_owned()
            } else {
                format!("redis://{trimmed}")
            })
        }
    };
    Ok(Some((key, value)))
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
