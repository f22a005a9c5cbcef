//! The configuration once it is known to be good: what the rest of the binary works with.
//!
//! Everything here has been checked, ranges and relations included; no caller checks again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use balance_sync_admin::{NamedToken, TrustedProxies};
use balance_sync_engine::rollout::Selection;
use balance_sync_engine::weights::Weights;
use balance_sync_schedule::LinkSettings;
use balance_sync_tenants::{KeyForm, StaticTenant, TenantDatabase};
use secrecy::SecretString;
use url::Url;

use super::directory::RedisDirectory;
use super::print::Effective;
use super::problem::ConfigNote;
pub(crate) use super::raw::{
    Claim, Collector, Log, LogFormat, Objectives, Postgres, Quarantine, Queues, Sampler, Shadow, Supervisor,
    Worker,
};

/// A validated configuration.
#[derive(Debug)]
pub(crate) struct Config {
    /// Redis with the balances.
    pub redis: Redis,
    /// Which tenants there are.
    pub tenants: Tenants,
    /// Gathering and flushing.
    pub collector: Collector,
    /// Claiming, and keeping from expiry.
    pub claim: Claim,
    /// Pools, limits, backoff.
    pub postgres: Postgres,
    /// Limits of the quarantine.
    pub quarantine: Quarantine,
    /// Starting and stopping.
    pub supervisor: Supervisor,
    /// HTTP.
    pub admin: Admin,
    /// What the fleet is judged by.
    pub objectives: Objectives,
    /// The ledger's own queues.
    pub queues: Queues,
    /// How a worker looks that only looks.
    pub shadow: Shadow,
    /// Log.
    pub log: Log,
    /// Where traces go; none when they are off.
    pub traces: Option<Traces>,
    /// Where metrics are pushed; none when they are off.
    pub metrics: Option<Metrics>,
    /// This worker among the others.
    pub worker: Worker,
    /// What the operator should see in the log at start.
    pub notes: Vec<ConfigNote>,
    /// The values in force with their origins, secrets masked.
    pub(super) effective: Effective,
}

/// `[redis]`.
#[derive(Debug, Clone)]
pub(crate) struct Redis {
    /// Server or sentinels, credentials, TLS, timeouts.
    pub link: LinkSettings,
    /// Whether it announces changes of idle schedules.
    pub tracking: bool,
    /// The Redis servers that there are, and which tenants live on which; none where there is one.
    pub directory: Option<RedisDirectory>,
}

/// `[tenants]`.
#[derive(Debug, Clone)]
pub(crate) struct Tenants {
    /// Where the list comes from.
    pub source: TenantSource,
    /// Mean time between two polls; each varies by ±10 %.
    pub poll_interval: Duration,
    /// Share of running tenants, 0 to 1, whose removal at once must be confirmed when it is larger.
    pub max_removed_share: f64,
    /// Polls in a row that must confirm it.
    pub confirm_polls: u32,
    /// How ids stand in keys.
    pub key_form: KeyForm,
    /// Which of them are served, unless operators have set that at run time.
    pub rollout: Selection,
    /// Which of them get more of a server's connections when they are short.
    pub weights: Weights,
    /// Where tenant events are received; none when they are off.
    pub events: Option<Events>,
}

/// `tenants.source` with the section that belongs to it.
#[derive(Debug, Clone)]
pub(crate) enum TenantSource {
    /// Ask the tenant service.
    Service(Service),
    /// These tenants; at least one, ids unlike each other.
    Static(Vec<StaticTenant>),
    /// One tenant without a prefix.
    Single(TenantDatabase),
}

/// `[tenants.service]`.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    /// `https`, or `http` where that is allowed; without credentials, query and fragment.
    pub url: Url,
    /// Sent as `X-API-Key`; never empty, visible ASCII.
    pub api_key: SecretString,
    /// Service whose tenants are asked for.
    pub service: String,
    /// Whether `http` was allowed.
    pub allow_plain_http: bool,
    /// One request.
    pub request_timeout: Duration,
    /// The connection for it.
    pub connect_timeout: Duration,
    /// Largest body, in bytes.
    pub max_body: usize,
    /// Repeats after a passing failure.
    pub retries: u32,
    /// Failures in a row that open the circuit breaker.
    pub breaker_threshold: u32,
    /// How long it stays open.
    pub breaker_timeout: Duration,
    /// How long connection settings are used before they are read again.
    pub settings_ttl: Duration,
}

/// Tenant events on Redis Pub/Sub.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    /// Channel.
    pub channel: String,
    /// The Redis that carries it.
    pub link: LinkSettings,
}

/// `[admin]`.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    /// Whether to listen at all.
    pub enabled: bool,
    /// Where.
    pub listen: SocketAddr,
    /// Its bearer may look.
    pub read_token: Option<SecretString>,
    /// Its bearer may do everything.
    pub operator_token: Option<SecretString>,
    /// Further tokens, with the names of their bearers.
    pub tokens: Vec<NamedToken>,
    /// Proxies that name who asks.
    pub proxies: Option<TrustedProxies>,
    /// A session that isn't used for so long ends.
    pub session_idle: Duration,
    /// A session ends this long after signing in.
    pub session_max: Duration,
    /// Tenants with time series of their own at `/metrics`.
    pub metrics_tenants: usize,
    /// A tenant whose oldest due balance is older counts as behind.
    pub freshness_objective: Duration,
}

/// The receiver of traces or metrics, and what the worker says about itself there.
#[derive(Debug, Clone)]
pub(crate) struct Otlp {
    /// What is spoken.
    pub protocol: OtlpProtocol,
    /// Where it is, path included; without credentials, query and fragment.
    pub endpoint: Url,
    /// Sent with each request; names lower-case.
    pub headers: Vec<(String, SecretString)>,
    /// PEM file with the authorities that may have signed its certificate; none = those of the system.
    pub ca_cert: Option<PathBuf>,
    /// One export of traces, or one request with metrics.
    pub timeout: Duration,
    /// `service.name`; not empty.
    pub service_name: String,
    /// More about where the data come from.
    pub attributes: Vec<(String, String)>,
    /// Bound of the last export.
    pub drain_deadline: Duration,
}

/// `[telemetry]`, with traces switched on.
#[derive(Debug, Clone)]
pub(crate) struct Traces {
    /// Where they are sent.
    pub otlp: Otlp,
    /// Which traces are sent.
    pub sampler: Sampler,
    /// Share of them, where the sampler takes one.
    pub sample_ratio: f64,
    /// Spans that wait for their export at most.
    pub queue_size: usize,
    /// Spans per export at most; not above `queue_size`.
    pub batch_size: usize,
    /// Time between two exports of fewer spans.
    pub export_interval: Duration,
}

/// `[telemetry]`, with metrics switched on.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// Where they are pushed.
    pub otlp: Otlp,
    /// Time between two pushes.
    pub interval: Duration,
    /// How many ledgers of a tenant have series of their own; none where the ledger's series stay at `/metrics`.
    pub ledgers: Option<usize>,
}

/// What is spoken to the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OtlpProtocol {
    /// Protobuf in an HTTP POST.
    HttpProtobuf,
    /// gRPC.
    Grpc,
}

impl OtlpProtocol {
    /// As it is written in the configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HttpProtobuf => "http/protobuf",
            Self::Grpc => "grpc",
        }
    }
}
