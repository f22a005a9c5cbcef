//! What the fleet is made of, fact by fact, each with when it last changed: workers, versions, configuration, tenant service,
//! Redis.

use std::collections::{BTreeMap, BTreeSet};

use balance_sync_fleet::status::Routing;
use balance_sync_schedule::ServerFacts;
use serde::Serialize;

use crate::record::WorkerRecord;

/// Redis is short of memory when more than this share of its limit is in use.
const MUCH_MEMORY: f64 = 0.9;

/// The fact that is compared with the number of workers expected.
pub(crate) const LIVE_WORKERS: &str = "live workers";

/// One fact.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fact {
    /// What it is about.
    pub name: &'static str,
    /// What is so.
    pub value: String,
    /// Whether that is as it should be.
    pub well: bool,
    /// Since when it is so, in seconds since 1970, as this worker has seen it; `None` for what changes all the time.
    pub since: Option<f64>,
}

/// The facts as they were last looked at.
#[derive(Debug, Default)]
pub(crate) struct Facts(Vec<Fact>);

impl Facts {
    /// Takes in what all live workers report, and what Redis says of itself.
    pub(crate) fn look(
        &mut self,
        workers: &[WorkerRecord],
        redis: Option<&ServerFacts>,
        routing: Option<&Routing>,
        now: f64,
    ) {
        let mut found = of_workers(workers);
        found.extend(routing.map(of_routing));
        found.extend(redis.map(of_redis).into_iter().flatten());
        for fact in found.iter_mut().filter(|fact| fact.since.is_some()) {
            let before = self.0.iter().find(|before| before.name == fact.name && before.value == fact.value);
            fact.since = before.map_or(Some(now), |before| before.since);
        }
        self.0 = found;
    }

    pub(crate) fn all(&self) -> Vec<Fact> {
        self.0.clone()
    }
}

/// A fact of which it will be known since when it is so.
fn fact(name: &'static str, value: String, well: bool) -> Fact {
    Fact { name, value, well, since: Some(0.0) }
}

fn of_workers(workers: &[WorkerRecord]) -> Vec<Fact> {
    let draining = workers.iter().filter(|worker| worker.draining).count();
    let live = match draining {
        0 => workers.len().to_string(),
        draining => format!("{}, {draining} of them draining", workers.len()),
    };
    let versions: BTreeSet<&str> = workers.iter().map(|worker| worker.version.as_str()).collect();
    let configurations: BTreeSet<String> =
        workers.iter().map(|worker| format!("{:08x}", digest(&worker.settings))).collect();
    let services: BTreeSet<&str> =
        workers.iter().map(|worker| worker.tenant_service.state.as_str()).collect();
    let all = |texts: Vec<&str>| texts.join(" and ");
    vec![
        fact(LIVE_WORKERS, live, !workers.is_empty()),
        fact("version", all(versions.iter().copied().collect()), versions.len() <= 1),
        fact(
            "configuration",
            all(configurations.iter().map(String::as_str).collect()),
            configurations.len() <= 1,
        ),
        fact(
            "tenant service",
            all(services.iter().copied().collect()),
            services.iter().all(|state| matches!(*state, "ok" | "static")),
        ),
    ]
}

fn of_redis(redis: &ServerFacts) -> Vec<Fact> {
    let said = |text: &str| if text.is_empty() { "not known".to_owned() } else { text.to_owned() };
    let megabytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let memory = match redis.max_bytes {
        0 => format!("{} in use, without a limit", megabytes(redis.used_bytes)),
        limit => format!("{} in use of {}", megabytes(redis.used_bytes), megabytes(limit)),
    };
    let enough = redis.max_bytes == 0 || redis.used_bytes as f64 <= MUCH_MEMORY * redis.max_bytes as f64;
    vec![
        fact("redis role", said(&redis.role), redis.role != "slave"),
        fact("redis eviction policy", said(&redis.policy), redis.evicting_policy().is_none()),
        Fact { name: "redis memory", value: memory, well: enough, since: None },
        fact("redis evicted keys", redis.evicted_keys.to_string(), redis.evicted_keys == 0),
    ]
}

/// Which Redis this is of several, and whether the others have workers.
fn of_routing(routing: &Routing) -> Fact {
    let (split, look) = (routing.split(), routing.look());
    let mut is_well = routing.problem().is_none() && split.unrouted.is_empty() && look.left_tenants == 0;
    let mut value = routing.own().to_owned();
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
    fact("redis servers", value, is_well)
}

/// FNV-1a, 32 bits: tells two configurations apart on a screen, which is all that it is for.
fn digest(settings: &BTreeMap<String, String>) -> u32 {
    let bytes = settings.iter().flat_map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes(), b"\n"]);
    bytes.flatten().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fact_keeps_its_time_until_it_changes() {
        let server = ServerFacts {
            role: "master".to_owned(),
            policy: "noeviction".to_owned(),
            used_bytes: 1 << 20,
            max_bytes: 2 << 20,
            evicted_keys: 0,
        };
        let mut facts = Facts::default();
        facts.look(&[], Some(&server), None, 10.0);
        let full = ServerFacts {
            policy: "allkeys-lru".to_owned(),
            used_bytes: (2 << 20) - 1,
            evicted_keys: 7,
            ..server
        };
        facts.look(&[], Some(&full), None, 20.0);
        let found: Vec<_> =
            facts.all().into_iter().map(|fact| (fact.name, fact.value, fact.well, fact.since)).collect();
        let expected = [
            ("live workers", "0", false, Some(10.0)),
            ("version", "", true, Some(10.0)),
            ("configuration", "", true, Some(10.0)),
            ("tenant service", "", true, Some(10.0)),
            ("redis role", "master", true, Some(10.0)),
            ("redis eviction policy", "allkeys-lru", false, Some(20.0)),
            ("redis memory", "2.0 MiB in use of 2.0 MiB", false, None),
            ("redis evicted keys", "7", false, Some(20.0)),
        ];
        assert_eq!(found, expected.map(|(name, value, well, since)| (name, value.to_owned(), well, since)));
    }
}
