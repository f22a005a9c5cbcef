//! What the fleet is made of, fact by fact, each with when it last changed: workers, versions, configuration, tenant service, clocks,
//! Redis.
//!
//! The facts are found anew at each look, by each process that shows them. When each changed is recorded in Redis, by the one worker that records for
//! the report: it survives restarts of all workers, and every page and command shows the same times.

use std::collections::{BTreeMap, BTreeSet};

use balance_sync_schedule::ServerFacts;
use balance_sync_store::ServerUsage;
use serde::Serialize;

use crate::{
    routing::RoutingView,
    rows::{NAMED, WorkerRow},
    verdict::CLOCK_TOLERANCE_SECONDS,
};

/// Redis is short of memory when more than this share of its limit is in use.
const MUCH_MEMORY: f64 = 0.9;
/// Characters of a state that are recorded.
const LONGEST_STATE: usize = 200;

const LIVE_WORKERS: &str = "live workers";
const VERSION: &str = "version";
const CONFIGURATION: &str = "configuration";
const TENANT_SERVICE: &str = "tenant service";
const CLOCKS: &str = "clock offset";
const SERVERS: &str = "redis servers";
const ROLE: &str = "redis role";
const POLICY: &str = "redis eviction policy";
const MEMORY: &str = "redis memory";
const EVICTED: &str = "redis evicted keys";
const CONNECTIONS: &str = "postgres connections";

/// A worker that has been short of the fleet's connections for so many seconds needs help.
const SHORT_SECONDS: u64 = 300;
/// Servers that are named in one line.
const SERVERS_NAMED: usize = 4;

/// All facts of which it is recorded when they changed.
pub(crate) const NAMES: [&str; 11] = [
    LIVE_WORKERS,
    VERSION,
    CONFIGURATION,
    TENANT_SERVICE,
    CLOCKS,
    SERVERS,
    ROLE,
    POLICY,
    MEMORY,
    EVICTED,
    CONNECTIONS,
];

/// One fact.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fact {
    /// What it is about.
    pub name: &'static str,
    /// What is so.
    pub value: String,
    /// Whether that is as it should be.
    pub well: bool,
    /// Since when it is so, in seconds since 1970; `None` = not recorded yet. A measurement counts as changed when it passes its bound.
    pub since: Option<f64>,
    /// What must differ for it to count as changed; `None` = it is not known.
    #[serde(skip)]
    state: Option<String>,
    /// This state is recorded.
    #[serde(skip)]
    recorded: bool,
}

impl Fact {
    fn new(name: &'static str, value: String, well: bool) -> Self {
        let state = Some(value.clone());
        Self { name, value, well, since: None, state, recorded: false }
    }

    /// What is to be recorded of it at this time, if it isn't.
    pub(crate) fn unrecorded(&self, now: f64) -> Option<(&'static str, String)> {
        let state = self.state.as_ref().filter(|_| !self.recorded)?;
        Some((self.name, format!("{now:.3}|{}", cut(state))))
    }
}

/// What is live, and what Redis says of itself.
pub(crate) fn found(
    workers: &[&WorkerRow],
    unreadable: usize,
    expected: usize,
    redis: Option<&ServerFacts>,
    routing: Option<&RoutingView>,
) -> Vec<Fact> {
    let mut found = of_workers(workers, unreadable, expected);
    found.push(of_clocks(workers));
    found.extend(routing.map(of_routing));
    found.extend(of_connections(workers));
    found.extend(redis.map(of_redis).into_iter().flatten());
    found
}

/// Sets since when each is so, out of what is recorded, in the order of [`NAMES`].
pub(crate) fn date(facts: &mut [Fact], recorded: &[Option<String>], now: f64) {
    for fact in facts {
        let Some(at) = NAMES.iter().position(|name| *name == fact.name) else { continue };
        let Some((since, state)) = recorded.get(at).and_then(|text| text.as_deref()?.split_once('|')) else {
            continue;
        };
        let Some(current) = &fact.state else { continue };
        if cut(current) == state {
            fact.recorded = true;
            fact.since = since.parse().ok().filter(|since: &f64| since.is_finite() && *since > 0.0);
        } else {
            // Since the worker that records looked last, which is some seconds ago.
            fact.since = Some(now);
        }
    }
}

fn cut(state: &str) -> String {
    state.chars().take(LONGEST_STATE).collect()
}

fn of_workers(workers: &[&WorkerRow], unreadable: usize, expected: usize) -> Vec<Fact> {
    let draining = workers.iter().filter(|worker| worker.draining).count();
    let count = workers.len() + unreadable;
    let of = if expected > 0 { format!(" of {expected} expected") } else { String::new() };
    let leaving = if draining > 0 { format!(", {draining} draining") } else { String::new() };
    let (shown, live) = (format!("{count}{of}{leaving}"), format!("{count}{leaving}"));
    let enough = count - draining >= expected.max(1);
    let versions: BTreeSet<&str> = workers.iter().map(|worker| worker.version.as_str()).collect();
    let configurations: BTreeSet<String> =
        workers.iter().map(|worker| format!("{:08x}", digest(&worker.settings))).collect();
    let services: BTreeSet<&str> =
        workers.iter().map(|worker| worker.tenant_service.state.as_str()).collect();
    let all = |texts: Vec<&str>| texts.join(" and ");
    let of_each = [
        (VERSION, all(versions.iter().copied().collect()), versions.len() <= 1),
        (CONFIGURATION, all(configurations.iter().map(String::as_str).collect()), configurations.len() <= 1),
        (
            TENANT_SERVICE,
            all(services.iter().copied().collect()),
            services.iter().all(|state| matches!(*state, "ok" | "static")),
        ),
    ];
    let mut facts = vec![Fact { state: Some(live), ..Fact::new(LIVE_WORKERS, shown, enough) }];
    // Without a worker there is nothing that could be so.
    facts.extend(
        of_each
            .into_iter()
            .filter(|_| !workers.is_empty())
            .map(|(name, value, well)| Fact::new(name, value, well)),
    );
    facts
}

/// By how much each worker's clock is ahead of Redis's, those first that are furthest from it.
fn of_clocks(workers: &[&WorkerRow]) -> Fact {
    let mut known: Vec<(&str, f64)> = workers
        .iter()
        .filter_map(|worker| Some((worker.name.as_str(), worker.clock_offset_seconds?)))
        .collect();
    if known.is_empty() {
        return Fact { state: None, ..Fact::new(CLOCKS, "not known".to_owned(), true) };
    }
    known.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(b.0)));
    // Without the sign of what is rounded to nothing.
    let rounded = |seconds: f64| (seconds * 100.0).round() / 100.0 + 0.0;
    let each = |(name, seconds): &(&str, f64)| format!("{name} {:+.2} s", rounded(*seconds));
    let mut value = known.iter().take(NAMED).map(each).collect::<Vec<_>>().join(", ");
    if let Some((_, next)) = known.get(NAMED) {
        value.push_str(&format!(", {} more within {:.2} s", known.len() - NAMED, next.abs()));
    }
    let unknown = workers.len() - known.len();
    if unknown > 0 {
        value.push_str(&format!(", {unknown} not known"));
    }
    let of_all = || known.iter().map(|(_, seconds)| *seconds);
    let spread = of_all().fold(f64::MIN, f64::max) - of_all().fold(f64::MAX, f64::min);
    let mut off: Vec<String> = known
        .iter()
        .filter(|(_, seconds)| seconds.abs() > CLOCK_TOLERANCE_SECONDS)
        .map(|(name, seconds)| format!("{name} {}", if *seconds > 0.0 { "ahead" } else { "behind" }))
        .collect();
    off.sort_unstable();
    if off.is_empty() && spread > CLOCK_TOLERANCE_SECONDS {
        off.push("apart".to_owned());
    }
    let well = off.is_empty();
    Fact { state: Some(off.join(", ")), ..Fact::new(CLOCKS, value, well) }
}

fn of_redis(redis: &ServerFacts) -> Vec<Fact> {
    let said = |text: &str| if text.is_empty() { "not known".to_owned() } else { text.to_owned() };
    let megabytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let memory = match redis.max_bytes {
        0 => format!("{} in use, without a limit", megabytes(redis.used_bytes)),
        limit => format!("{} in use of {}", megabytes(redis.used_bytes), megabytes(limit)),
    };
    let enough = redis.max_bytes == 0 || redis.used_bytes as f64 <= MUCH_MEMORY * redis.max_bytes as f64;
    let level = format!("{} {}", if enough { "within" } else { "nearly" }, redis.max_bytes);
    vec![
        Fact::new(ROLE, said(&redis.role), redis.role != "slave"),
        Fact::new(POLICY, said(&redis.policy), redis.evicting_policy().is_none()),
        Fact { state: Some(level), ..Fact::new(MEMORY, memory, enough) },
        Fact::new(EVICTED, redis.evicted_keys.to_string(), redis.evicted_keys == 0),
    ]
}

/// Which Redis this is of several, and whether the others have workers.
fn of_routing(routing: &RoutingView) -> Fact {
    let (split, look) = (&routing.split, &routing.look);
    let mut is_well = routing.problem.is_none() && split.unrouted.is_empty() && look.left_tenants == 0;
    let mut value = routing.own.clone();
    for entry in &look.entries {
        let is_used = split.tenants.get(&entry.name).is_some_and(|tenants| *tenants > 0);
        let workers = match entry.workers {
            Some(0) => "no worker".to_owned(),
            Some(1) => "1 worker".to_owned(),
            Some(workers) => format!("{workers} workers"),
            None => "not known".to_owned(),
        };
        is_well &= !is_used || entry.workers.is_some_and(|workers| workers > 0);
        value.push_str(&format!("; {}: {workers}", entry.name));
    }
    Fact::new(SERVERS, value, is_well)
}

/// What the fleet uses of its budget of connections, if it has one. How much that is changes all the time: it counts as changed when a
/// worker falls short, or no longer is.
fn of_connections(workers: &[&WorkerRow]) -> Option<Fact> {
    let servers = fleet_connections(workers.iter().flat_map(|worker| &worker.postgres));
    let is_well = servers.iter().all(|server| server.short_seconds <= SHORT_SECONDS);
    let state = if is_well { "enough" } else { "short" };
    Some(Fact { state: Some(state.to_owned()), ..Fact::new(CONNECTIONS, in_one_line(&servers)?, is_well) })
}

/// The connections to one server, where the fleet has one budget for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetConnections {
    /// The server, `host:port`.
    pub server: String,
    /// What all workers together may have: the least that one of them names.
    pub budget: u64,
    /// What they hold of it.
    pub held: u64,
    /// What is open.
    pub open: u64,
    /// For how long a worker has been short of them, in seconds.
    pub short_seconds: u64,
}

/// What workers report of servers with one budget for the fleet, put together; those with the least left first.
#[must_use]
pub fn fleet_connections<'a>(usage: impl IntoIterator<Item = &'a ServerUsage>) -> Vec<FleetConnections> {
    let mut servers: BTreeMap<&str, FleetConnections> = BTreeMap::new();
    for server in usage {
        let Some(fleet) = server.fleet.filter(|fleet| fleet.budget > 0) else { continue };
        let sum = servers.entry(&server.server).or_insert_with(|| FleetConnections {
            server: server.server.clone(),
            budget: fleet.budget,
            held: 0,
            open: 0,
            short_seconds: 0,
        });
        sum.budget = sum.budget.min(fleet.budget);
        sum.held += fleet.held;
        sum.open += server.open;
        sum.short_seconds = sum.short_seconds.max(fleet.short_seconds);
    }
    let mut servers: Vec<FleetConnections> = servers.into_values().collect();
    servers.sort_by_key(|server| server.budget.saturating_sub(server.held));
    servers
}

/// The same for people; `None` where there is no such budget.
#[must_use]
pub fn in_one_line(servers: &[FleetConnections]) -> Option<String> {
    let mut parts: Vec<String> = servers
        .iter()
        .take(SERVERS_NAMED)
        .map(|FleetConnections { server, budget, held, open, short_seconds }| {
            let short = match short_seconds {
                0 => String::new(),
                seconds => format!(", a worker short of them for {seconds} s"),
            };
            format!("{server}: {held} of {budget} held, {open} open{short}")
        })
        .collect();
    if servers.len() > SERVERS_NAMED {
        parts.push(format!("{} more servers", servers.len() - SERVERS_NAMED));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// FNV-1a, 32 bits: tells two configurations apart on a screen, which is all that it is for.
fn digest(settings: &BTreeMap<String, String>) -> u32 {
    let bytes = settings.iter().flat_map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes(), b"\n"]);
    bytes.flatten().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balance_sync_store::FleetUsage;

    use super::*;

    #[test]
    fn connections_of_the_fleet_are_put_together_by_server() {
        let usage = |server: &str, open, fleet| ServerUsage {
            server: server.to_owned(),
            open,
            idle: 0,
            in_use: open,
            waiting: 0,
            limit: 64,
            fleet,
            clock_ahead_ms: None,
            opened: 0,
        };
        let of = |budget, held, short_seconds| {
            Some(FleetUsage { budget, held, all: 0, workers: 2, short_seconds })
        };
        let mut all = vec![
            usage("a:5432", 3, of(40, 10, 0)),
            usage("a:5432", 4, of(30, 5, 0)),
            usage("b:5432", 20, of(30, 25, 0)),
            usage("b:5432", 4, of(30, 5, 20)),
            usage("own:5432", 9, None),
        ];
        let said = |all: &[ServerUsage]| in_one_line(&fleet_connections(all));
        let expected =
            "b:5432: 30 of 30 held, 24 open, a worker short of them for 20 s; a:5432: 15 of 30 held, 7 open";
        assert_eq!(said(&all).as_deref(), Some(expected));
        all.extend((0..10).map(|n| usage(&format!("c{n}:5432"), 1, of(300, 1, 0))));
        assert!(said(&all).is_some_and(|said| said.ends_with("; 8 more servers")), "{:?}", said(&all));
        assert_eq!(said(&all[4..5]), None);
    }

    /// Redis, as far as facts are recorded.
    #[derive(Default)]
    struct Recorded([Option<String>; NAMES.len()]);

    impl Recorded {
        /// Another look, as by a process that was only just started; what is unrecorded is recorded.
        fn look(&mut self, server: &ServerFacts, now: f64) -> Vec<Fact> {
            let mut facts = found(&[], 0, 2, Some(server), None);
            date(&mut facts, &self.0, now);
            for (name, text) in facts.iter().filter_map(|fact| fact.unrecorded(now)) {
                let at = NAMES.iter().position(|known| *known == name);
                self.0[at.unwrap()] = Some(text);
            }
            date(&mut facts, &self.0, now);
            facts
        }
    }

    fn server() -> ServerFacts {
        ServerFacts {
            role: "master".to_owned(),
            policy: "noeviction".to_owned(),
            used_bytes: 1 << 20,
            max_bytes: 2 << 20,
            evicted_keys: 0,
        }
    }

    #[test]
    fn each_fact_keeps_its_time_until_it_changes_whoever_looks() {
        let mut recorded = Recorded::default();
        recorded.look(&server(), 10.0);
        // Another number, and the same in its bound.
        recorded.look(&ServerFacts { used_bytes: 1, ..server() }, 15.0);
        let full = ServerFacts {
            policy: "allkeys-lru".to_owned(),
            used_bytes: (2 << 20) - 1,
            evicted_keys: 7,
            ..server()
        };
        recorded.look(&full, 20.0);
        let facts = recorded.look(&full, 30.0);
        let facts: Vec<_> =
            facts.into_iter().map(|fact| (fact.name, fact.value, fact.well, fact.since)).collect();
        let expected = [
            ("live workers", "0 of 2 expected", false, Some(10.0)),
            ("clock offset", "not known", true, None),
            ("redis role", "master", true, Some(10.0)),
            ("redis eviction policy", "allkeys-lru", false, Some(20.0)),
            ("redis memory", "2.0 MiB in use of 2.0 MiB", false, Some(20.0)),
            ("redis evicted keys", "7", false, Some(20.0)),
        ];
        assert_eq!(facts, expected.map(|(name, value, well, since)| (name, value.to_owned(), well, since)));
        assert!(expected.iter().all(|(name, ..)| NAMES.contains(name)));
    }

    #[test]
    fn what_is_not_recorded_yet_changed_a_moment_ago_and_what_cannot_be_read_has_no_time() {
        let mut facts = found(&[], 0, 0, Some(&server()), None);
        let mut recorded = [const { None }; NAMES.len()];
        let mut set = |name, text: &str| {
            let at = NAMES.iter().position(|known| *known == name);
            recorded[at.unwrap()] = Some(text.to_owned());
        };
        set(ROLE, "5.0|slave");
        set(POLICY, "x|noeviction");
        set(EVICTED, "nonsense");
        date(&mut facts, &recorded, 30.0);
        let since = |name| facts.iter().find(|fact| fact.name == name).map(|fact| fact.since);
        assert_eq!(since(ROLE), Some(Some(30.0)));
        assert_eq!([since(POLICY), since(EVICTED), since(MEMORY)], [Some(None); 3]);
        let long = Fact::new(ROLE, "x".repeat(100_000), true);
        assert!(long.unrecorded(1.0).is_some_and(|(_, text)| text.len() < 300));
    }

    fn worker(name: &str, offset_ms: Option<i64>) -> WorkerRow {
        let record = serde_json::json!({
            "name": name, "version": "1", "started_at": 0.0, "seen_at": 0.0, "draining": false, "owned": 0, "by_state": {},
            "rates": {}, "rss_bytes": 0, "redis": "ok",
            "tenant_service": { "state": "ok", "last_success_at": null, "failures": 0 },
            "reconcile": { "passes": 0, "last_at": null, "last_duration_seconds": 0.0 },
            "restarts": 0, "postgres": [], "due": 0, "oldest_due_age_ms": 0, "replicas": null, "clock_offset_ms": offset_ms,
        });
        WorkerRow::new(&serde_json::from_value(record).unwrap(), false)
    }

    #[test]
    fn the_clock_of_each_worker_is_shown_and_counts_as_changed_when_it_passes_the_bound() {
        let clocks = |offsets: &[(&str, Option<i64>)]| {
            let rows: Vec<WorkerRow> = offsets.iter().map(|(name, offset)| worker(name, *offset)).collect();
            let fact = of_clocks(&rows.iter().collect::<Vec<_>>());
            (fact.value, fact.well, fact.state)
        };
        let within = Some(String::new());
        let (value, well, state) = clocks(&[("a", Some(-4)), ("b", Some(30))]);
        assert_eq!((value.as_str(), well, state), ("b +0.03 s, a +0.00 s", true, within.clone()));
        let (value, well, state) = clocks(&[("a", Some(-990)), ("b", None)]);
        assert_eq!((value.as_str(), well, state), ("a -0.99 s, 1 not known", true, within));
        let five: Vec<_> =
            ["a", "b", "c", "d", "e"].iter().zip(1..).map(|(name, n)| (*name, Some(n * -800))).collect();
        let (value, well, state) = clocks(&five);
        assert_eq!(value, "e -4.00 s, d -3.20 s, c -2.40 s, 2 more within 1.60 s");
        assert_eq!((well, state.as_deref()), (false, Some("b behind, c behind, d behind, e behind")));
        let (_, well, state) = clocks(&[("a", Some(-700)), ("b", Some(700))]);
        assert_eq!((well, state.as_deref()), (false, Some("apart")));
        assert_eq!(clocks(&[("a", None)]), ("not known".to_owned(), true, None));
    }

    #[test]
    fn fewer_workers_than_expected_are_not_well() {
        let (one, mut two) = (worker("one", None), worker("two", None));
        let live = |workers: &[&WorkerRow], unreadable, expected| {
            let facts = found(workers, unreadable, expected, None, None);
            (facts[0].value.clone(), facts[0].well, facts[0].state.clone())
        };
        let state = |text: &str| Some(text.to_owned());
        assert_eq!(live(&[&one, &two], 0, 2), ("2 of 2 expected".to_owned(), true, state("2")));
        assert_eq!(live(&[&one], 0, 2), ("1 of 2 expected".to_owned(), false, state("1")));
        assert_eq!(live(&[&one], 1, 2), ("2 of 2 expected".to_owned(), true, state("2")));
        two.draining = true;
        assert_eq!(
            live(&[&one, &two], 0, 2),
            ("2 of 2 expected, 1 draining".to_owned(), false, state("2, 1 draining"))
        );
        assert_eq!(live(&[&one, &two], 0, 0), ("2, 1 draining".to_owned(), true, state("2, 1 draining")));
    }
}
