//! From the raw configuration to [`Config`]: ranges, relations between values, and what only looks like a value.
//!
//! Relations follow from what the values are for, and each says which keys disagree: a claim must outlive the flush
//! that it covers, or balances are written twice; a stop must give a running flush its time; a flush must give
//! Postgres its. None of them guards correctness, which rests on the claim and the version guard; they guard against a
//! worker that only seems to work.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::time::Duration;

use balance_sync_fleet::status::{MOST_LEDGERS, WorkerMode};
use balance_sync_schedule::LinkSettings;
use secrecy::{ExposeSecret, SecretString};

use super::directory::RedisDirectory;
use super::layers::Layers;
use super::print::Effective;
use super::problem::{ConfigError, ConfigNote, Origin, Problem, quoted};
use super::raw::{self, ByteSize, MASK, Raw, SourceKind};
use super::types::{Config, Worker};
use super::{admin, redis, telemetry, tenants};

/// A claim must outlive its flush by this part of the flush's deadline (1/4): for the clocks of two machines, and for
/// the way to Redis and back.
const LEASE_MARGIN: u32 = 4;

/// A waiting balance must live longer than this many claims: one that lapses, one that repeats it, and one to spare.
const PROTECTED_CLAIMS: u32 = 3;

/// A value with a smallest and a largest.
pub(super) trait Ranged: PartialOrd + Copy {
    /// As it is written in a configuration.
    fn written(self) -> String;
}

impl Ranged for u32 {
    fn written(self) -> String {
        self.to_string()
    }
}

impl Ranged for u64 {
    fn written(self) -> String {
        self.to_string()
    }
}

impl Ranged for usize {
    fn written(self) -> String {
        self.to_string()
    }
}

impl Ranged for f64 {
    fn written(self) -> String {
        self.to_string()
    }
}

impl Ranged for Duration {
    fn written(self) -> String {
        humantime::format_duration(self).to_string()
    }
}

impl Ranged for ByteSize {
    fn written(self) -> String {
        self.to_string()
    }
}

/// Collects what is wrong and what is worth a note while values are checked.
pub(super) struct Check<'a> {
    layers: &'a Layers,
    problems: Vec<Problem>,
    notes: Vec<ConfigNote>,
}

impl Check<'_> {
    /// Whether the ledger's variables ask for authentication by Google Cloud IAM.
    pub(super) fn wants_gcp_iam(&self) -> bool {
        self.layers.wants_gcp_iam()
    }

    pub(super) fn origin(&self, key: &str) -> Origin {
        self.layers.origin(key)
    }

    /// Refuses a key's value; once per key, since what follows from a refused value is no news.
    pub(super) fn refuse(&mut self, key: &str, value: Option<String>, reason: impl Into<String>) {
        if !self.refused(key) {
            let origin = Some(self.origin(key));
            self.problems.push(Problem { key: key.to_owned(), value, origin, reason: reason.into() });
        }
    }

    pub(super) fn refused(&self, key: &str) -> bool {
        self.problems.iter().any(|problem| problem.key == key)
    }

    /// Notes something about a key; once, where two things are made of its value.
    pub(super) fn note(&mut self, key: &str, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.iter().any(|note| note.key == key && note.text == text) {
            self.notes.push(ConfigNote { key: key.to_owned(), text });
        }
    }

    /// A value must be in range. One from the ledger's or OpenTelemetry's variables is clamped, as it was legal where it
    /// was set.
    pub(super) fn within<T: Ranged>(&mut self, key: &str, value: &mut T, allowed: RangeInclusive<T>) {
        if allowed.contains(value) {
            return;
        }
        let origin = self.origin(key);
        if matches!(origin, Origin::Ledger(_) | Origin::Standard(_)) {
            let bound = if *value < *allowed.start() { *allowed.start() } else { *allowed.end() };
            self.note(key, format!("{} ({origin}) is clamped to {}", value.written(), bound.written()));
            *value = bound;
        } else {
            self.outside(key, *value, allowed);
        }
    }

    /// A value must be in range, whoever set it: of a port or a database there is no nearest one.
    pub(super) fn exactly_within<T: Ranged>(&mut self, key: &str, value: T, allowed: RangeInclusive<T>) {
        if !allowed.contains(&value) {
            self.outside(key, value, allowed);
        }
    }

    fn outside<T: Ranged>(&mut self, key: &str, value: T, allowed: RangeInclusive<T>) {
        let reason = format!("allowed: {} to {}", allowed.start().written(), allowed.end().written());
        self.refuse(key, Some(value.written()), reason);
    }

    /// A value must not be below, or above, what follows from others.
    fn relation<T: Ranged>(
        &mut self,
        key: &str,
        value: T,
        must: Must<T>,
        others: &[(&str, String)],
        why: &str,
    ) {
        let (holds, word, limit) = match must {
            Must::AtLeast(limit) => (value >= limit, "at least", limit),
            Must::Above(limit) => (value > limit, "more than", limit),
            Must::AtMost(limit) => (value <= limit, "at most", limit),
        };
        if holds || others.iter().any(|(other, _)| self.refused(other)) {
            return;
        }
        let mut reason = format!("allowed: {word} {}, because of", limit.written());
        for (index, (other, text)) in others.iter().enumerate() {
            let comma = if index == 0 { "" } else { " and" };
            // Writing into a String can't fail.
            let _ = write!(reason, "{comma} {other} = {text} ({})", self.origin(other));
        }
        let _ = write!(reason, "; {why}");
        self.refuse(key, Some(value.written()), reason);
    }

    /// Text that may be empty stands for "not set".
    pub(super) fn secret(&mut self, key: &str, value: &SecretString) -> Option<SecretString> {
        match value.expose_secret() {
            "" => None,
            MASK => {
                self.refuse(
                    key,
                    None,
                    format!("{MASK} stands for a secret where one is printed; allowed: the secret"),
                );
                None
            }
            text => {
                for oddity in oddities(text) {
                    self.note(
                        key,
                        format!("the secret {oddity}, which is sent as it stands: is that meant?"),
                    );
                }
                Some(value.clone())
            }
        }
    }

    /// A secret that goes into an HTTP header.
    pub(super) fn header_secret(&mut self, key: &str, value: &SecretString) -> Option<SecretString> {
        let secret = self.secret(key, value)?;
        if secret.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Some(secret);
        }
        let found = match oddities(secret.expose_secret()).first() {
            Some(oddity) => format!("the secret {oddity}; "),
            None => String::new(),
        };
        self.refuse(
            key,
            None,
            format!("{found}allowed: visible ASCII characters, as it is sent in a header"),
        );
        None
    }
}

/// What is odd about a secret, and usually an accident of how it got into a variable. Never the secret itself.
fn oddities(secret: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let quote = |text: &str, mark: char| text.len() > 1 && text.starts_with(mark) && text.ends_with(mark);
    if secret.ends_with(char::is_whitespace) {
        found.push(if secret.ends_with(['\n', '\r']) {
            "ends in a line break"
        } else {
            "ends in white space"
        });
    }
    if secret.starts_with(char::is_whitespace) {
        found.push("begins with white space");
    }
    if quote(secret.trim(), '"') || quote(secret.trim(), '\'') {
        found.push("stands in quotes");
    }
    found
}

/// What a relation asks of a value.
#[derive(Clone, Copy)]
enum Must<T> {
    AtLeast(T),
    Above(T),
    AtMost(T),
}

/// Checks the range of a field under its own name, so that key and field can't differ.
macro_rules! within {
    ($check:ident, $raw:ident . $($part:ident).+, $allowed:expr) => {
        $check.within(&[$(stringify!($part)),+].join("."), &mut $raw.$($part).+, $allowed)
    };
}

pub(super) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// How the Redis of an entry is reached; what is wrong with it is added to `problems`.
pub(super) fn entry_link(raw: &Raw, layers: &Layers, problems: &mut Vec<Problem>) -> Option<LinkSettings> {
    let check = &mut Check { layers, problems: Vec::new(), notes: Vec::new() };
    check.exactly_within("redis.db", raw.redis.db, 0..=65_535);
    let link = redis::link(check, &raw.redis, raw.worker.mode == WorkerMode::Shadow);
    if raw.worker.require_tls {
        tls_everywhere(check, raw, link.as_ref());
    }
    let is_of_entry = |problem: &Problem| matches!(problem.origin, Some(Origin::Directory(..)));
    problems.extend(std::mem::take(&mut check.problems).into_iter().filter(is_of_entry));
    link
}

/// Checks everything; see the module.
pub(super) fn validate(
    mut raw: Raw,
    layers: &Layers,
    directory: Option<RedisDirectory>,
    problems: Vec<Problem>,
    notes: Vec<ConfigNote>,
) -> Result<Config, ConfigError> {
    let check = &mut Check { layers, problems, notes };
    ranges(check, &mut raw);
    relations(check, &raw);
    let link = redis::link(check, &raw.redis, raw.worker.mode == WorkerMode::Shadow);
    if directory.is_some() && raw.tenants.source == SourceKind::Single {
        check.refuse("redis.directory", None, "stands beside tenants.source = \"single\"; allowed: one of them, as there are no tenants to tell apart");
    }
    let tenants = tenants::tenants(check, &mut raw, link.as_ref());
    let admin = admin::admin(check, &raw.admin);
    telemetry::log(check, &raw.log);
    let traces = telemetry::traces(check, &raw.telemetry);
    let metrics = telemetry::metrics(check, &raw.telemetry);
    let worker = worker(check, &raw.worker);
    if raw.worker.require_tls {
        tls_everywhere(check, &raw, link.as_ref());
    }

    let effective = match Effective::new(&raw, layers) {
        Ok(effective) => Some(effective),
        Err(error) => {
            check.refuse("", None, format!("can't be shown: {}", error));
            None
        }
    };
    let Check { problems, notes, .. } = check;
    let (problems, notes) = (std::mem::take(problems), std::mem::take(notes));
    match (problems.is_empty(), link, tenants, admin, effective) {
        (true, Some(link), Some(tenants), Some(admin), Some(effective)) => Ok(Config {
            redis: super::Redis { link, tracking: raw.redis.tracking, directory },
            tenants,
            collector: raw.collector,
            claim: raw.claim,
            postgres: raw.postgres,
            quarantine: raw.quarantine,
            supervisor: raw.supervisor,
            admin,
            objectives: raw.objectives,
            queues: raw.queues,
            shadow: raw.shadow,
            log: raw.log,
            traces,
            metrics,
            worker,
            notes,
            effective,
        }),
        _ => Err(ConfigError { problems }),
    }
}

/// The ranges, as `config/default.toml` tells them; a test compares the two.
fn ranges(check: &mut Check<'_>, raw: &mut Raw) {
    check.exactly_within("redis.db", raw.redis.db, 0..=65_535);
    within!(check, raw.redis.response_timeout, ms(100)..=minutes(1));
    within!(check, raw.redis.connect_timeout, ms(100)..=minutes(1));

    within!(check, raw.tenants.poll_interval, ms(100)..=minutes(10));
    within!(check, raw.tenants.max_removed_share, 0.0..=1.0);
    within!(check, raw.tenants.confirm_polls, 1..=100);
    within!(check, raw.tenants.service.request_timeout, ms(100)..=minutes(1));
    within!(check, raw.tenants.service.connect_timeout, ms(100)..=minutes(1));
    within!(check, raw.tenants.service.max_body, ByteSize(1_000)..=ByteSize(1_000_000_000));
    within!(check, raw.tenants.service.retries, 0..=10);
    within!(check, raw.tenants.service.breaker_threshold, 1..=1000);
    within!(check, raw.tenants.service.breaker_timeout, ms(100)..=minutes(10));
    within!(check, raw.tenants.service.settings_ttl, ms(100)..=minutes(60));
    check.exactly_within("tenants.events_redis.port", raw.tenants.events_redis.port, 1..=65_535);
    check.exactly_within("tenants.single.port", raw.tenants.single.port, 1..=65_535);

    // The bounds of what the ledger's variables can set are such that no relation below fails by clamping alone.
    within!(check, raw.collector.batch_size, 1..=10_000);
    within!(check, raw.admin.freshness_objective, ms(100)..=minutes(60));
    within!(check, raw.objectives.exposure, ms(100)..=minutes(60));
    within!(check, raw.objectives.pause, secs(1)..=minutes(60 * 24 * 30));
    within!(check, raw.objectives.rollout_time, secs(1)..=minutes(60 * 24 * 30));
    within!(check, raw.objectives.rollout_mutations, 1..=1_000_000_000);
    within!(check, raw.queues.interval, ms(100)..=minutes(10));
    within!(check, raw.queues.records_per_second, 10..=2_000);
    within!(check, raw.queues.quarantine_interval, secs(1)..=minutes(60 * 24));
    within!(check, raw.queues.oldest, secs(1)..=minutes(60 * 24 * 30));

    within!(check, raw.shadow.balances_per_second, 10..=10_000);
    within!(check, raw.shadow.compare_interval, secs(1)..=minutes(60 * 24));
    within!(check, raw.collector.flush_timeout, ms(1)..=secs(5));
    within!(check, raw.collector.poll_interval, ms(1)..=secs(1));
    within!(check, raw.collector.idle_backoff_max, ms(1)..=minutes(1));
    within!(check, raw.collector.pipeline_depth, 1..=16);
    within!(check, raw.collector.flush_deadline, ms(100)..=minutes(10));
    within!(check, raw.collector.drain_deadline, ms(100)..=minutes(10));
    within!(check, raw.collector.crash_delay_min, ms(10)..=minutes(10));
    within!(check, raw.collector.crash_delay_max, ms(10)..=minutes(60));

    within!(check, raw.claim.quiet, secs(1)..=minutes(24 * 60));
    within!(check, raw.claim.ttl, secs(1)..=minutes(60));
    within!(check, raw.claim.lock_scan_limit, 1..=1_000_000);
    within!(check, raw.claim.protect_floor, secs(3)..=minutes(12 * 60));
    within!(check, raw.claim.protect_after, secs(0)..=minutes(10));
    within!(check, raw.claim.put_off, ms(100)..=minutes(60));
    within!(check, raw.claim.legacy_interval, ms(100)..=minutes(60));

    within!(check, raw.postgres.connections_per_tenant, 1..=100);
    within!(check, raw.postgres.connections_per_server, 1..=10_000);
    within!(check, raw.postgres.fleet_connections_per_server, 0..=100_000);
    within!(check, raw.postgres.statement_timeout, ms(100)..=minutes(10));
    within!(check, raw.postgres.connect_timeout, ms(100)..=minutes(1));
    within!(check, raw.postgres.acquire_timeout, ms(100)..=minutes(5));
    within!(check, raw.postgres.idle_timeout, ms(100)..=minutes(60));
    within!(check, raw.postgres.connection_max_age, ms(1000)..=minutes(60));
    within!(check, raw.postgres.backoff_min, ms(1)..=minutes(1));
    within!(check, raw.postgres.backoff_max, ms(1)..=minutes(10));
    within!(check, raw.postgres.backoff_long, ms(10)..=minutes(60));

    within!(check, raw.quarantine.max_entries, 1..=1_000_000);
    within!(check, raw.quarantine.max_value_bytes, 64..=1_048_576);
    within!(check, raw.quarantine.trail_grace, secs(0)..=minutes(60));

    within!(check, raw.supervisor.start_concurrency, 1..=10_000);
    within!(check, raw.supervisor.stop_deadline, ms(100)..=minutes(60));
    within!(check, raw.supervisor.threads, 0..=256);
    within!(check, raw.supervisor.sample_interval, ms(100)..=minutes(10));

    within!(check, raw.admin.session_idle, secs(1)..=minutes(60 * 24 * 30));
    within!(check, raw.admin.session_max, secs(1)..=minutes(60 * 24 * 30));
    within!(check, raw.admin.metrics_tenants, 0..=100_000);

    within!(check, raw.log.heartbeat, secs(1)..=minutes(60));
    within!(check, raw.log.lines_per_minute, 40..=1_000_000);
    within!(check, raw.telemetry.timeout, ms(100)..=minutes(1));
    within!(check, raw.telemetry.traces_timeout, secs(0)..=minutes(1));
    within!(check, raw.telemetry.metrics_timeout, secs(0)..=minutes(1));
    within!(check, raw.telemetry.sample_ratio, 0.0..=1.0);
    within!(check, raw.telemetry.queue_size, 16..=1_000_000);
    within!(check, raw.telemetry.batch_size, 1..=100_000);
    if check.origin("telemetry.batch_size").rank() < Origin::File(Default::default()).rank() {
        // It wasn't chosen for this worker: a shorter queue alone is no contradiction.
        raw.telemetry.batch_size = raw.telemetry.batch_size.min(raw.telemetry.queue_size);
    }
    within!(check, raw.telemetry.export_interval, ms(10)..=minutes(1));
    within!(check, raw.telemetry.metrics_interval, secs(1)..=minutes(60));
    within!(check, raw.telemetry.metrics_ledgers, 0..=MOST_LEDGERS);
    within!(check, raw.telemetry.drain_deadline, secs(0)..=minutes(1));

    within!(check, raw.worker.replicas, 1..=64);
    within!(check, raw.worker.expected, 0..=10_000);
    within!(check, raw.worker.lease, ms(200)..=minutes(10));
}

/// The relations between values.
fn relations(check: &mut Check<'_>, raw: &Raw) {
    use Must::{Above, AtLeast, AtMost};
    let (collector, claim, postgres) = (&raw.collector, &raw.claim, &raw.postgres);
    check.relation(
        "claim.ttl",
        claim.ttl,
        AtLeast(collector.flush_timeout + collector.flush_deadline + collector.flush_deadline / LEASE_MARGIN),
        &[
            ("collector.flush_timeout", collector.flush_timeout.written()),
            ("collector.flush_deadline", collector.flush_deadline.written()),
        ],
        "a claim must outlive gathering and flush by a quarter",
    );
    check.relation(
        "claim.protect_floor",
        claim.protect_floor,
        Above(claim.ttl * PROTECTED_CLAIMS),
        &[("claim.ttl", claim.ttl.written())],
        "a waiting balance must live through three claims",
    );
    check.relation(
        "collector.flush_deadline",
        collector.flush_deadline,
        AtLeast(postgres.acquire_timeout + postgres.statement_timeout),
        &[
            ("postgres.acquire_timeout", postgres.acquire_timeout.written()),
            ("postgres.statement_timeout", postgres.statement_timeout.written()),
        ],
        "a flush waits for a connection and then for the statement",
    );
    check.relation(
        "collector.idle_backoff_max",
        collector.idle_backoff_max,
        AtLeast(collector.poll_interval),
        &[("collector.poll_interval", collector.poll_interval.written())],
        "an idle tenant isn't looked at more often than one with balances",
    );
    check.relation(
        "collector.crash_delay_max",
        collector.crash_delay_max,
        AtLeast(collector.crash_delay_min),
        &[("collector.crash_delay_min", collector.crash_delay_min.written())],
        "the delay grows from one to the other",
    );
    check.relation(
        "supervisor.stop_deadline",
        raw.supervisor.stop_deadline,
        AtLeast(collector.drain_deadline),
        &[("collector.drain_deadline", collector.drain_deadline.written())],
        "a stop must give the final flush its time",
    );
    check.relation(
        "postgres.connections_per_tenant",
        postgres.connections_per_tenant,
        AtMost(postgres.connections_per_server),
        &[("postgres.connections_per_server", postgres.connections_per_server.written())],
        "a tenant's pool is part of its server's",
    );
    if postgres.fleet_connections_per_server > 0 {
        check.relation(
            "postgres.fleet_connections_per_server",
            postgres.fleet_connections_per_server,
            AtLeast(u32::try_from(raw.worker.expected).unwrap_or(u32::MAX)),
            &[("worker.expected", raw.worker.expected.written())],
            "each worker needs a connection to a server whose tenants it serves",
        );
    }
    check.relation(
        "postgres.connect_timeout",
        postgres.connect_timeout,
        AtMost(postgres.acquire_timeout),
        &[("postgres.acquire_timeout", postgres.acquire_timeout.written())],
        "connecting is part of waiting for a connection",
    );
    check.relation(
        "postgres.backoff_max",
        postgres.backoff_max,
        AtLeast(postgres.backoff_min),
        &[("postgres.backoff_min", postgres.backoff_min.written())],
        "the wait grows from one to the other",
    );
    check.relation(
        "postgres.backoff_long",
        postgres.backoff_long,
        AtLeast(postgres.backoff_max),
        &[("postgres.backoff_max", postgres.backoff_max.written())],
        "what doesn't heal by itself isn't asked more often than what does",
    );
    check.relation(
        "telemetry.batch_size",
        raw.telemetry.batch_size,
        AtMost(raw.telemetry.queue_size),
        &[("telemetry.queue_size", raw.telemetry.queue_size.written())],
        "an export is made of spans that wait",
    );
    check.relation(
        "tenants.service.connect_timeout",
        raw.tenants.service.connect_timeout,
        AtMost(raw.tenants.service.request_timeout),
        &[("tenants.service.request_timeout", raw.tenants.service.request_timeout.written())],
        "connecting is part of a request",
    );
}

/// Where TLS is required, what is configured without it is refused. What the tenant service says of its tenants' databases is
/// refused when it comes (`ManagerOptions::require_tls`).
fn tls_everywhere(check: &mut Check<'_>, raw: &Raw, link: Option<&LinkSettings>) {
    let why = format!("TLS is required by worker.require_tls ({})", check.origin("worker.require_tls"));
    let mut refuse = |key: &str, value: String, allowed: &str| {
        check.refuse(key, Some(value), format!("{why}; allowed: {allowed}"));
    };
    if link.is_some_and(|link| !link.url.expose_secret().starts_with("rediss://")) {
        refuse("redis.tls", "false".to_owned(), "true, or a rediss:// URL");
    }
    let sentinel = link.and_then(|link| link.sentinel.as_ref());
    if raw.redis.sentinel_tls == raw::SentinelTls::Off && sentinel.is_some() {
        refuse("redis.sentinel_tls", quoted("off"), "\"on\", or \"as_redis\" with TLS to Redis");
    }
    match raw.tenants.source {
        SourceKind::Service => {
            if raw.tenants.service.url.trim().starts_with("http://") {
                refuse(
                    "tenants.service.url",
                    quoted(raw.tenants.service.url.trim()),
                    "https://host[:port][/path]",
                );
            }
            let events = &raw.tenants.events_redis;
            if raw.tenants.events && !events.host.is_empty() && !events.tls {
                refuse("tenants.events_redis.tls", "false".to_owned(), "true");
            }
        }
        SourceKind::Single => {
            if !raw.tenants.single.sslmode.is_always_encrypted() {
                refuse("tenants.single.sslmode", quoted(raw.tenants.single.sslmode.as_str()), ENCRYPTED);
            }
        }
        SourceKind::Static => {
            for (index, entry) in raw.tenants.list.iter().enumerate() {
                if !entry.sslmode.is_always_encrypted() {
                    let key = format!("tenants.list[{index}].sslmode");
                    refuse(&key, quoted(entry.sslmode.as_str()), ENCRYPTED);
                }
            }
        }
    }
}

/// The modes in which no connection is made without TLS.
const ENCRYPTED: &str = "\"require\", \"verify-ca\" or \"verify-full\"";

fn worker(check: &mut Check<'_>, raw: &raw::Worker) -> Worker {
    /// Longest name: it stands in Redis, and in the name of every connection to Postgres.
    const LONGEST: usize = 128;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name = if raw.name.is_empty() {
        let host =
            nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let host: String = host.chars().map(|c| if fits(c) { c } else { '-' }).take(LONGEST - 16).collect();
        format!("{}-{}", if host.is_empty() { "worker" } else { &host }, std::process::id())
    } else {
        if raw.name.len() > LONGEST || !raw.name.chars().all(fits) {
            let allowed = format!("allowed: 1 to {LONGEST} letters, digits, \"-\", \"_\" and \".\"");
            check.refuse("worker.name", Some(quoted(&raw.name)), allowed);
        }
        raw.name.clone()
    };
    Worker { name, ..raw.clone() }
}
