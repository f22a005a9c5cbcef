//! Everything that a worker starts beside its actors has an owner that observes its end
//! (`docs/decisions/0017-owned-background-tasks.md`). Whoever adds a spawn uses `Tasks`, or gives the reason here.

use std::{collections::BTreeMap, fs, path::Path};

/// What a worker is made of; the other crates are tests, test servers and load.
const CRATES: [&str; 10] =
    ["admin", "cli", "domain", "engine", "fleet", "schedule", "store", "tenants", "trace", "view"];

/// Files that spawn, how often, and who observes the end.
const ALLOWED: &[(&str, usize, &str)] = &[
    ("fleet/src/tasks/mod.rs", 4, "`Tasks` itself: each run is awaited by a task of the owner"),
    (
        "fleet/src/pipeline/collector_actor.rs",
        2,
        "a collector, and its actor's watch that awaits it; the supervisor restarts it",
    ),
    ("fleet/src/lifecycle/threads.rs", 1, "runs `Tasks::keep` on another thread, which answers when it has"),
    ("fleet/src/lifecycle/supervisor.rs", 1, "an actor's future that awaits `Tasks::once`"),
    ("fleet/src/lifecycle/supervisor/pass.rs", 1, "starts a collector's actor by the trait `Spawner`"),
    ("fleet/src/backends/tenant_manager.rs", 1, "an actor's future that awaits `Tasks::once`"),
    (
        "store/src/budget/chores.rs",
        4,
        "the store's own owner: reports panics to `Tasks`, and starts the sweeper again",
    ),
    (
        "admin/src/server.rs",
        1,
        "the interface's thread; its end or panic is awaited by `Tasks::once`, and so is each connection",
    ),
    ("admin/src/listener.rs", 1, "starts a connection by the function it is given, which is `Tasks::once`"),
    (
        "store/src/relay.rs",
        1,
        "carries the bytes of one connection, whose owner keeps its handle and sees it end by the closed socket",
    ),
    ("store/src/scram.rs", 1, "salts a password with very many rounds, for the login that waits for it"),
    ("store/src/files.rs", 1, "reads files on a thread for blocking calls; awaited at once"),
    ("schedule/src/endpoint.rs", 1, "reads files on a thread for blocking calls; awaited at once"),
    (
        "view/src/routing.rs",
        1,
        "reads the directory of Redis servers on a thread for blocking calls; awaited at once by the task `redis_directory`",
    ),
    ("tenants/src/service.rs", 1, "reads a long answer on a thread for blocking calls; awaited at once"),
    (
        "cli/src/recoveries.rs",
        1,
        "a recovery's thread; the runner keeps its handle and joins it, and its record is shown as lost",
    ),
    (
        "cli/src/telemetry/metrics.rs",
        1,
        "reads and sends the metrics on a thread for blocking calls; awaited at once by the task `metrics_push` of `Tasks`",
    ),
    (
        "cli/src/telemetry/traces.rs",
        2,
        "the last export of traces at the end of the process, and making the HTTP client; each awaited at once",
    ),
];

/// Ways to start a task or a thread.
const SPAWNS: [&str; 5] = ["spawn(", "spawn_local(", "spawn_blocking(", "spawn_fn(", "JoinSet"];

/// How often a source starts something: comments, declarations and the tests at its end don't count.
fn spawns(text: &str) -> usize {
    let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines =
        product.lines().map(str::trim).filter(|line| !line.starts_with("//") && !line.starts_with("fn "));
    lines.map(|line| SPAWNS.iter().map(|call| line.matches(call).count()).sum::<usize>()).sum()
}

/// Counts the spawns of all sources below a folder, by file; files that are tests as a whole are left out.
fn count(folder: &Path, root: &Path, found: &mut BTreeMap<String, usize>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "tests" || name == "tests.rs" {
            continue;
        } else if path.is_dir() {
            count(&path, root, found);
        } else if name.ends_with(".rs") {
            let spawns = spawns(&fs::read_to_string(&path).unwrap());
            if spawns > 0 {
                found.insert(path.strip_prefix(root).unwrap().display().to_string(), spawns);
            }
        }
    }
}

#[test]
fn every_spawn_has_an_owner() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeMap::new();
    for name in CRATES {
        count(&root.join(name).join("src"), &root, &mut found);
    }
    let allowed: BTreeMap<String, usize> =
        ALLOWED.iter().map(|(file, spawns, _)| ((*file).to_owned(), *spawns)).collect();
    assert_eq!(found, allowed, "use `Tasks`, or say in ALLOWED who observes the end");
}

#[test]
fn a_spawn_is_seen_however_it_is_written() {
    for line in [
        "tokio::spawn(run());",
        "let task = actix_rt::spawn(async {});",
        "tokio::task::spawn_local(run());",
        "std::thread::spawn(run);",
        "thread::Builder::new().spawn(run)?;",
        "let mut set = JoinSet::new();",
    ] {
        assert_eq!(spawns(line), 1, "{line}");
    }
    for line in [
        "// tokio::spawn(run());",
        "fn spawn(&mut self);",
        "#[cfg(test)]\nmod tests {\n    tokio::spawn(run());\n}",
    ] {
        assert_eq!(spawns(line), 0, "{line}");
    }
}
