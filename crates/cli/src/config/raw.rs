//! The configuration as it is written: one serde struct per section of `config/default.toml`.
//!
//! Types say what a value is made of, not yet whether it makes sense: ranges and relations are `validate.rs`'s.
//! There are no defaults here: `config/default.toml` names every key, so that a default stands in one place only.
//! Serializing gives the effective values with every secret masked, never the secret itself.
//!
//! Sections that need no other form once their values are checked go into `Config` as they are.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use balance_sync_domain::TlsMode;
use balance_sync_fleet::{pipeline::Profile, status::WorkerMode};
use balance_sync_schedule::ClaimMode;
use balance_sync_tenants::KeyForm;
use secrecy::{ExposeSecret, SecretString};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

/// What stands in place of a secret wherever values are shown.
pub(crate) const MASK: &str = "***";

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub redis: Redis,
    pub tenants: Tenants,
    pub collector: Collector,
    pub claim: Claim,
    pub postgres: Postgres,
    pub quarantine: Quarantine,
    pub supervisor: Supervisor,
    pub admin: Admin,
    pub objectives: Objectives,
    pub queues: Queues,
    pub shadow: Shadow,
    pub log: Log,
    pub telemetry: Telemetry,
    pub worker: Worker,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Redis {
    pub directory: String,
    pub name: String,
    // A secret as a whole, because a password may stand in it.
    #[serde(serialize_with = "masked_url")]
    pub url: SecretString,
    pub username: String,
    #[serde(serialize_with = "masked")]
    pub password: SecretString,
    pub password_file: String,
    pub db: u32,
    pub tls: bool,
    pub ca_cert: String,
    pub ca_cert_base64: String,
    pub master_name: String,
    pub sentinels: Vec<String>,
    pub sentinel_username: String,
    #[serde(serialize_with = "masked")]
    pub sentinel_password: SecretString,
    pub sentinel_password_file: String,
    pub sentinel_tls: SentinelTls,
    pub sentinel_ca_cert: String,
    pub sentinel_ca_cert_base64: String,
    pub cluster_nodes: Vec<String>,
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
    pub tracking: bool,
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenants {
    pub source: SourceKind,
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    pub max_removed_share: f64,
    pub confirm_polls: u32,
    pub key_form: KeyForm,
    pub events: bool,
    pub environment: String,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub share: String,
    pub weights: Vec<String>,
    pub list: Vec<ListedTenant>,
    pub service: Service,
    pub events_redis: EventsRedis,
    pub single: Single,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub url: String,
    #[serde(serialize_with = "masked")]
    pub api_key: SecretString,
    pub service: String,
    pub allow_plain_http: bool,
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    pub max_body: ByteSize,
    pub retries: u32,
    pub breaker_threshold: u32,
    #[serde(with = "humantime_serde")]
    pub breaker_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub settings_ttl: Duration,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsRedis {
    pub host: String,
    pub port: u32,
    #[serde(serialize_with = "masked")]
    pub password: SecretString,
    pub password_file: String,
    pub tls: bool,
    pub ca_cert: String,
    pub ca_cert_base64: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Single {
    pub host: String,
    pub port: u32,
    pub database: String,
    pub username: String,
    #[serde(serialize_with = "masked")]
    pub password: SecretString,
    pub sslmode: TlsMode,
    pub sslrootcert: String,
}

/// One entry of `tenants.list`. The only struct with defaults, as there is no entry in the embedded file; what must not
/// be missing is empty here and refused in `validate.rs`, together with everything else.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListedTenant {
    #[serde(default)]
    pub id: String,
    #[serde(default)]
    pub host: String,
    #[serde(default = "postgres_port")]
    pub port: u32,
    #[serde(default)]
    pub database: String,
    #[serde(default)]
    pub username: String,
    #[serde(default, serialize_with = "masked")]
    pub password: SecretString,
    #[serde(default)]
    pub schema: String,
    #[serde(default)]
    pub sslmode: TlsMode,
    #[serde(default)]
    pub sslrootcert: String,
    #[serde(default)]
    pub sslcert: String,
    #[serde(default)]
    pub sslkey: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_open_conns: Option<u32>,
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub statement_timeout: Option<Duration>,
}

/// `[collector]`: gathering and flushing.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Collector {
    /// Balances that start a flush.
    pub batch_size: usize,
    /// Age of the oldest gathered balance that starts a flush.
    #[serde(with = "humantime_serde")]
    pub flush_timeout: Duration,
    /// What a flush waits for.
    pub profile: Profile,
    /// Wait between two fetches while some balances are gathered.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// Longest wait between two fetches of an idle tenant.
    #[serde(with = "humantime_serde")]
    pub idle_backoff_max: Duration,
    /// Flushes under way at once.
    pub pipeline_depth: usize,
    /// Longest time one flush may take.
    #[serde(with = "humantime_serde")]
    pub flush_deadline: Duration,
    /// Longest time the final flush may take when a collector stops.
    #[serde(with = "humantime_serde")]
    pub drain_deadline: Duration,
    /// First delay before a collector that ended by itself is started again.
    #[serde(with = "humantime_serde")]
    pub crash_delay_min: Duration,
    /// Longest such delay.
    #[serde(with = "humantime_serde")]
    pub crash_delay_max: Duration,
}

/// `[claim]`: how due balances are claimed and kept from expiring.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claim {
    /// Lease, or lease with the lock keys of the ledger's own worker.
    pub mode: ClaimMode,
    /// For how long the ledger's own worker must be quiet to count as parked.
    #[serde(with = "humantime_serde")]
    pub quiet: Duration,
    /// How long a claim holds.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// Mode `lock`: foreign-locked members one claim reads past.
    pub lock_scan_limit: usize,
    /// A waiting balance's life in Redis is raised to this.
    #[serde(with = "humantime_serde")]
    pub protect_floor: Duration,
    /// Postgres away for this long: protect everything that waits.
    #[serde(with = "humantime_serde")]
    pub protect_after: Duration,
    /// How long a balance is put off that can't be worked at present, though others of its tenant can.
    #[serde(with = "humantime_serde")]
    pub put_off: Duration,
    /// Time between two looks at the legacy schedule.
    #[serde(with = "humantime_serde")]
    pub legacy_interval: Duration,
}

/// `[postgres]`: pools, limits and backoff.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Postgres {
    /// Connections of one tenant's pool; upper limit for the tenant's own setting.
    pub connections_per_tenant: u32,
    /// Connections to one server, over all its tenants.
    pub connections_per_server: u32,
    /// The same for all workers of the fleet together; 0 = each has its own.
    pub fleet_connections_per_server: u32,
    /// Default and upper limit of `statement_timeout`.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// One attempt to connect.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Wait for a free connection.
    #[serde(with = "humantime_serde")]
    pub acquire_timeout: Duration,
    /// An unused connection, or pool, is closed after this.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// A connection is closed at this age at the latest.
    #[serde(with = "humantime_serde")]
    pub connection_max_age: Duration,
    /// Whether hosts may be link-local addresses.
    pub allow_link_local: bool,
    /// First wait after a passing error.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// Longest wait after a passing error.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// Longest wait after an error that doesn't heal by itself.
    #[serde(with = "humantime_serde")]
    pub backoff_long: Duration,
}

/// `[quarantine]`: limits of what is set aside.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Quarantine {
    /// Entries per tenant.
    pub max_entries: usize,
    /// Bytes of the value that are kept.
    pub max_value_bytes: usize,
    /// How long an operation may be on its way to the ledger's trail, after its mutation or after an outage.
    #[serde(with = "humantime_serde")]
    pub trail_grace: Duration,
}

/// `[supervisor]`: starting and stopping collectors.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Supervisor {
    /// Collectors being started at once.
    pub start_concurrency: usize,
    /// Grace for the final flushes.
    #[serde(with = "humantime_serde")]
    pub stop_deadline: Duration,
    /// Collector threads; 0: one per core.
    pub threads: usize,
    /// How often what waits in the schedules is looked at.
    #[serde(with = "humantime_serde")]
    pub sample_interval: Duration,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    pub enabled: bool,
    pub listen: String,
    #[serde(serialize_with = "masked")]
    pub read_token: SecretString,
    #[serde(serialize_with = "masked")]
    pub operator_token: SecretString,
    pub tokens: Vec<AdminToken>,
    pub name_header: String,
    pub trusted_proxies: Vec<String>,
    #[serde(with = "humantime_serde")]
    pub session_idle: Duration,
    #[serde(with = "humantime_serde")]
    pub session_max: Duration,
    pub metrics_tenants: usize,
    #[serde(with = "humantime_serde")]
    pub freshness_objective: Duration,
}

/// One entry of `admin.tokens`; what must not be missing is empty here and refused in `validate.rs`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdminToken {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub role: String,
    #[serde(default, serialize_with = "masked")]
    pub token: SecretString,
}

/// `[objectives]`: what the fleet is judged by.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Objectives {
    #[serde(with = "humantime_serde")]
    pub exposure: Duration,
    #[serde(with = "humantime_serde")]
    pub pause: Duration,
    #[serde(with = "humantime_serde")]
    pub rollout_time: Duration,
    pub rollout_mutations: u64,
}

/// `[log]`: form and filter of the log.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// Filter as `EnvFilter` reads it; known to be readable.
    pub level: String,
    /// Time between two heartbeats.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Lines at INFO and above per minute at most.
    pub lines_per_minute: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Telemetry {
    pub enabled: bool,
    pub traces: bool,
    pub metrics: bool,
    pub endpoint: String,
    pub traces_endpoint: String,
    pub metrics_endpoint: String,
    pub protocol: Protocol,
    pub traces_protocol: Protocol,
    pub metrics_protocol: Protocol,
    #[serde(serialize_with = "masked")]
    pub headers: SecretString,
    #[serde(serialize_with = "masked")]
    pub traces_headers: SecretString,
    #[serde(serialize_with = "masked")]
    pub metrics_headers: SecretString,
    pub ca_cert: String,
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub traces_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub metrics_timeout: Duration,
    pub service_name: String,
    pub resource_attributes: String,
    pub sampler: Sampler,
    pub sample_ratio: f64,
    pub queue_size: usize,
    pub batch_size: usize,
    #[serde(with = "humantime_serde")]
    pub export_interval: Duration,
    #[serde(with = "humantime_serde")]
    pub metrics_interval: Duration,
    pub metrics_ledgers: usize,
    pub ledger_series: LedgerSeries,
    #[serde(with = "humantime_serde")]
    pub drain_deadline: Duration,
}

/// `[queues]`: looking at the ledger's own queues.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Queues {
    /// Whether they are looked at.
    pub enabled: bool,
    /// Time between two looks at their depths.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Records that all workers together look at, at most.
    pub records_per_second: u32,
    /// Time between two looks at what the ledger has given up replaying.
    #[serde(with = "humantime_serde")]
    pub quarantine_interval: Duration,
    /// A record that waits for longer makes the verdict ATTENTION.
    #[serde(with = "humantime_serde")]
    pub oldest: Duration,
}

/// `[shadow]`: how a worker looks that only looks.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shadow {
    /// Balances that each of its looks asks for per second.
    pub balances_per_second: u32,
    /// Between two comparisons of all balances.
    #[serde(with = "humantime_serde")]
    pub compare_interval: Duration,
}

/// `[worker]`: this worker among the others.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Worker {
    /// Name, unlike all others'. Once checked: 1 to 128 letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// Whether it writes, or only looks.
    pub mode: WorkerMode,
    /// Whether tenants are shared out.
    pub partition: bool,
    /// Workers per tenant.
    pub replicas: usize,
    /// Workers that should be alive; 0 = any number will do.
    pub expected: usize,
    /// A worker silent for this long is gone.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// No connection without TLS.
    pub require_tls: bool,
}

/// `tenants.source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SourceKind {
    Service,
    Static,
    Single,
}

/// `redis.sentinel_tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SentinelTls {
    /// As `redis.tls`.
    AsRedis,
    On,
    Off,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `telemetry.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum Protocol {
    #[serde(rename = "auto")]
    Auto,
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
    #[serde(rename = "grpc")]
    Grpc,
}

/// `telemetry.ledger_series`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LedgerSeries {
    /// Pushed where metrics are pushed, otherwise at `/metrics`.
    Pushed,
    /// Always at `/metrics`.
    Page,
}

/// `telemetry.sampler`, under the names of OpenTelemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sampler {
    /// All.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A share of them, each span by its trace's id.
    #[serde(rename = "traceidratio")]
    TraceIdRatio,
    /// What the parent is; all traces that begin here.
    #[serde(rename = "parentbased_always_on")]
    ParentBasedAlwaysOn,
    /// What the parent is; none that begins here.
    #[serde(rename = "parentbased_always_off")]
    ParentBasedAlwaysOff,
    /// What the parent is; a share of those that begin here.
    #[serde(rename = "parentbased_traceidratio")]
    ParentBasedTraceIdRatio,
}

/// A number of bytes, written as a whole number or with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct ByteSize(pub u64);

/// Units from the largest to the smallest, so that showing takes the largest that fits evenly.
const BYTE_UNITS: [(&str, u64); 6] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BYTE_UNITS.iter().find(|(_, size)| self.0 != 0 && self.0.is_multiple_of(*size)) {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for ByteSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "a number of bytes, or a number with one of KB, MB, GB, KiB, MiB, GiB";
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
        let unit = text[digits.len()..].trim_start();
        let factor = if unit.is_empty() {
            1
        } else {
            BYTE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(EXPECTED)?.1
        };
        let number: u64 = digits.parse().map_err(|_| EXPECTED)?;
        number.checked_mul(factor).map(ByteSize).ok_or(EXPECTED)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Bytes(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(ByteSize(bytes)),
            Form::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

fn postgres_port() -> u32 {
    5432
}

fn masked<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if secret.expose_secret().is_empty() { "" } else { MASK })
}

fn masked_url<S: Serializer>(url: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&mask_url(url.expose_secret()))
}

/// A URL, or what was meant to be one, without the password that may stand in it.
pub(super) fn mask_url(text: &str) -> String {
    // What parses may still hide a password that contains "/", "?" or "#" in its path, hence the look at the rest.
    if let Ok(mut url) = Url::parse(text)
        && url.query().is_none()
        && url.fragment().is_none()
        && !url.path().contains('@')
    {
        if url.username().is_empty() && url.password().is_none() {
            return text.to_owned();
        }
        if url.password().is_some() && url.set_password(Some(MASK)).is_ok() {
            return url.to_string();
        }
    }
    // Cut at the last @: none of the user information is left, however it was misspelt; a user without a password
    // goes with it, for it may be a password without its colon.
    let Some(at) = text.rfind('@') else { return text.to_owned() };
    let scheme = text[..at].find("://").map_or("", |end| &text[..end + 3]);
    format!("{scheme}{MASK}{}", &text[at..])
}
