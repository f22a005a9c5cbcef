//! What the fleet is made of, and since when: the same on every page and in the terminal, also after all workers were restarted.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::{RedisOptions, Sandbox, SandboxOptions, eventually};
use balance_sync_tests::{SOON, Worker, WorkerBuilder, options, run};
use serde_json::Value;

use crate::api::json;

fn named(sandbox: &Sandbox, name: &str) -> WorkerBuilder {
    // The policy that a test sets.
    let expected = "redis may evict balances before they are written";
    Worker::of(sandbox).set("worker.name", name).set("worker.expected", "2").expect_error(expected)
}

/// Facts by their names: value, whether that is well, since when.
type Facts = BTreeMap<String, (String, bool, Option<String>)>;

fn facts_of(overview: &Value) -> Facts {
    let facts = overview["facts"].as_array().into_iter().flatten();
    facts
        .map(|fact| {
            let text = |field: &str| fact[field].as_str().map(str::to_owned);
            let value = (text("value").unwrap_or_default(), fact["well"] == true, text("since"));
            (text("name").unwrap_or_default(), value)
        })
        .collect()
}

/// The facts as soon as they are like this.
async fn until(worker: &Worker, what: &str, fits: impl Fn(&Facts) -> bool) -> Result<Facts> {
    eventually(SOON, what, || async {
        let overview = json(worker, "/api/v1/overview").await?;
        let facts = facts_of(&overview);
        ensure!(fits(&facts), "{facts:#?}");
        Ok(facts)
    })
    .await
}

fn since(facts: &Facts, name: &str) -> Option<String> {
    facts.get(name)?.2.clone()
}

/// As the alphabet has them.
const NAMES: [&str; 9] = [
    "clock offset",
    "configuration",
    "live workers",
    "redis evicted keys",
    "redis eviction policy",
    "redis memory",
    "redis role",
    "tenant service",
    "version",
];

/// All are recorded, and as they should be.
fn are_well(facts: &Facts) -> bool {
    facts.keys().eq(NAMES.iter().copied()) && facts.values().all(|(_, well, since)| *well && since.is_some())
}

#[tokio::test]
async fn each_fact_of_the_fleet_keeps_the_time_of_its_last_change_through_restarts() -> Result<()> {
    let wanted = options(2, 5);
    let redis = RedisOptions { settable_clock: true, ..wanted.redis.clone() };
    let sandbox = Sandbox::start(SandboxOptions { redis, ..wanted }).await?;
    let mut one = named(&sandbox, "one").start().await?;
    let mut two = named(&sandbox, "two").start().await?;
    let before = until(&one, "all facts", |facts| {
        are_well(facts) && facts.get("live workers").is_some_and(|fact| fact.0 == "2 of 2 expected")
    })
    .await?;
    let (clocks, ..) = &before["clock offset"];
    ensure!(clocks.contains("one +0.0") || clocks.contains("one -0.0"), "{clocks}");
    ensure!(clocks.contains("two +0.0") || clocks.contains("two -0.0"), "{clocks}");

    // One changes, and the others keep their times; whichever worker is asked.
    let mut connection = sandbox.redis().connect().await?;
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("maxmemory-policy").arg("allkeys-lru");
    set.query_async::<()>(&mut connection).await?;
    let policy = "redis eviction policy";
    let changed = until(&two, "another policy, recorded", |facts| {
        // Until it is recorded it counts as changed at this moment.
        let is_new = facts.get(policy).is_some_and(|fact| fact.0 == "allkeys-lru" && !fact.1);
        is_new && since(facts, policy) > since(&before, policy)
    })
    .await?;
    for name in NAMES.iter().filter(|name| **name != policy) {
        assert_eq!(since(&changed, name), since(&before, name), "{name}");
    }

    // All workers are replaced. What the same fleet is made of is as old as before.
    assert_eq!(one.stop().await?.code, Some(0));
    assert_eq!(two.stop().await?.code, Some(0));
    let mut one = named(&sandbox, "one").start().await?;
    let mut two = named(&sandbox, "two").start().await?;
    let again = until(&two, "two workers again", |facts| {
        facts.get("live workers").is_some_and(|fact| fact.0 == "2 of 2 expected" && fact.1)
            && NAMES.iter().all(|name| since(facts, name).is_some())
    })
    .await?;
    for name in NAMES.iter().filter(|name| !["live workers", policy].contains(name)) {
        assert_eq!(since(&again, name), since(&before, name), "{name}");
    }
    let of_policy = since(&again, policy);
    ensure!(of_policy.is_some() && of_policy > since(&before, policy), "{again:?}");

    // The terminal has the same.
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    eventually(SOON, "the same facts in the terminal", || async {
        let done = run(&["status", "--json", "--config", &config], &[]).await?;
        let shown = facts_of(&serde_json::from_str(&done.stdout)?);
        let asked = facts_of(&json(&one, "/api/v1/overview").await?);
        for name in NAMES {
            ensure!(since(&shown, name) == since(&asked, name), "{name}: {shown:?}, {asked:?}");
        }
        let done = run(&["status", "--config", &config], &[]).await?;
        for said in ["FLEET", "clock offset", "one ", "allkeys-lru", "redis evicted keys", "CLOCK"] {
            ensure!(done.stdout.contains(said), "{said}: {}", done.stdout);
        }
        Ok(())
    })
    .await?;

    // A clock that differs: by how much, of each worker, and since when.
    sandbox.redis().shift_clock(5_000)?;
    let shifted = until(&one, "clocks that differ", |facts| {
        facts
            .get("clock offset")
            .is_some_and(|(value, well, _)| !well && value.contains("one -5.0") && value.contains("two -5.0"))
            && since(facts, "clock offset") > since(&before, "clock offset")
    })
    .await?;
    assert_eq!(since(&shifted, "version"), since(&before, "version"));
    for worker in [&mut one, &mut two] {
        assert_eq!(worker.stop().await?.code, Some(0));
    }
    Ok(())
}
