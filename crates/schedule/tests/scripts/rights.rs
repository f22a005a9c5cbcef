//! The rights that `deploy/redis/users.acl` gives: exactly those in use, and each named when it is missing.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use balance_sync_sandbox::{READER_USER, RedisOptions, RedisServer, SHADOW_USER, WORKER_USER};
use balance_sync_schedule::{
    Controls, Endpoint, ErrorClass, Link, LinkSettings, Schedule, ScheduleError, ScheduleOptions,
    Subscription, Workers, scripts,
};
use redis::Value;

use crate::{SOON, Tenant, all, ask, common::space_of, tell};

const USERS: &str = include_str!("../../../../deploy/redis/users.acl");
/// What the client sends by itself, and what belongs to the protocol of scripts.
const OF_CLIENT: [&str; 8] =
    ["client|tracking", "cluster|slots", "evalsha", "hello", "ping", "script|load", "select", "subscribe"];
const PROBE: &str = "{transactions}:balance-sync:rights";

/// The rules of a user, in their order.
fn rules(user: &str) -> Vec<&'static str> {
    let line = USERS.lines().find(|line| line.split(' ').nth(1) == Some(user)).unwrap();
    line.split(' ').skip(2).filter(|rule| !rule.starts_with('#')).collect()
}

fn commands(user: &str) -> BTreeSet<String> {
    rules(user).iter().filter_map(|rule| rule.strip_prefix('+')).map(str::to_owned).collect()
}

/// The upper-case words that stand in quotes behind one of these beginnings.
fn named(text: &str, beginnings: &[&str], quote: char) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for beginning in beginnings {
        for (at, _) in text.match_indices(beginning) {
            let word = text[at + beginning.len()..].split(quote).next().unwrap_or_default();
            if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase()) {
                found.insert(word.to_lowercase());
            }
        }
    }
    found
}

fn of_rust(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            of_rust(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.extend(named(&text, &["cmd(\""], '"'));
            if path.ends_with("schedule/src/inspect.rs") {
                // Two commands of a list.
                found.extend(named(&text, &["(\""], '"').into_iter().filter(|word| word.ends_with("scan")));
            }
        }
    }
}

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Commands of the scripts, without the one that checks rights.
fn of_lua() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root().join("lua")).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("check_rights.lua") {
            let text = fs::read_to_string(&path).unwrap();
            found.extend(named(&text, &["call('", "try('", "count('"], '\''));
        }
    }
    found
}

#[test]
fn the_worker_may_do_what_is_in_use_and_nothing_else() {
    let granted = commands(WORKER_USER);
    let mut used = of_lua();
    for part in ["schedule", "fleet", "view", "admin", "cli"] {
        of_rust(&root().join("crates").join(part).join("src"), &mut used);
    }
    // Of these one subcommand is used, and sentinels are asked as users of their own.
    for word in ["client", "cluster", "script", "sentinel"] {
        used.remove(word);
    }
    used.extend(OF_CLIENT.map(str::to_owned));
    let missing: Vec<_> = used.difference(&granted).collect();
    let superfluous: Vec<_> = granted.difference(&used).collect();
    assert!(missing.is_empty() && superfluous.is_empty(), "missing {missing:?}, superfluous {superfluous:?}");

    // The script that names missing rights tries all that scripts and calls need, on a key.
    let tried = named(scripts::CHECK_RIGHTS.source(), &["{ '"], '\'');
    let untried: Vec<_> = granted.difference(&tried).map(String::as_str).collect();
    assert_eq!(
        untried,
        [
            "client|tracking",
            "cluster|slots",
            "evalsha",
            "hello",
            "info",
            "ping",
            "scan",
            "script|load",
            "select",
            "subscribe"
        ]
    );
    let unknown: Vec<_> = tried.difference(&granted).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// A server with the users of the file, and two links.
async fn with_users() -> (RedisServer, Tenant, Link) {
    let options = RedisOptions { worker_password: Some("pw".into()), ..RedisOptions::default() };
    let server = RedisServer::start(options).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let link = Link::new(&LinkSettings::for_url(&server.worker_url_on(server.port()))).unwrap();
    (server, tenant, link)
}

#[tokio::test]
async fn the_reader_has_no_command_that_writes() {
    let (_server, tenant, _) = with_users().await;
    for command in commands(READER_USER) {
        let name = command.split('|').next().unwrap().to_owned();
        if ["cluster", "evalsha", "script"].contains(&name.as_str()) {
            continue;
        }
        let info: Value = ask!(tenant, "COMMAND", "INFO", &name);
        let text = format!("{info:?}");
        assert!(text.contains("readonly") || !text.contains("\"write\""), "{name}: {text}");
    }
    assert!(commands(READER_USER).is_subset(&commands(WORKER_USER)));
}

#[tokio::test]
async fn a_shadow_writes_the_fleets_own_keys_and_no_others() {
    // What it may do everywhere, and what with the keys of the selector.
    let rules = rules(SHADOW_USER).join(" ");
    let (everywhere, own) = rules.split_once(" (").unwrap();
    let commands_of = |rules: &str| -> BTreeSet<String> {
        rules.split(' ').filter_map(|rule| rule.strip_prefix('+')).map(str::to_owned).collect()
    };
    let (reads, writes) = (commands_of(everywhere), commands_of(own.trim_end_matches(')')));
    assert!(own.starts_with("~{transactions}:balance-sync:* -@all "), "{own}");
    let of_worker: BTreeSet<String> = reads.union(&writes).cloned().collect();
    assert_eq!(of_worker, commands(WORKER_USER), "a shadow runs the code of a worker");
    let beside_reading: Vec<_> = reads.difference(&commands(READER_USER)).cloned().collect();
    assert_eq!(beside_reading, ["client|tracking", "hello", "subscribe"]);

    let (server, tenant, _) = with_users().await;
    if server.version().await.unwrap() < (7, 0) {
        return;
    }
    let link = Link::new(&LinkSettings::for_url(&server.shadow_url())).unwrap();
    let (member, _) = tenant.mutate("a", "{}").await;
    let score = tenant.score(&member).await;
    let (schedule, lock) = (tenant.space.schedule(), tenant.space.lock(member.as_bytes()));
    let refused = async |words: &[&[u8]]| {
        let mut cmd = redis::Cmd::new();
        cmd.arg(words);
        let error = link.send("try", &cmd).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Permission, "{error}");
    };
    refused(&[b"SET", member.as_bytes(), b"x"]).await;
    refused(&[b"DEL", member.as_bytes()]).await;
    refused(&[b"PEXPIRE", member.as_bytes(), b"1"]).await;
    refused(&[b"ZREM", schedule.as_bytes(), member.as_bytes()]).await;
    refused(&[b"ZADD", schedule.as_bytes(), b"1", member.as_bytes()]).await;
    refused(&[b"SET", &lock, b"x"]).await;
    refused(&[b"HSET", tenant.space.quarantine().as_bytes(), member.as_bytes(), b"x"]).await;
    let claims = Schedule::new(link.clone(), tenant.space.clone(), Arc::new(ScheduleOptions::default()));
    assert_eq!(claims.claim(10).await.unwrap_err().class, ErrorClass::Permission, "within a script");
    assert_eq!(tenant.score(&member).await, score);
    let mut own = redis::cmd("HSET");
    own.arg(PROBE).arg("field").arg("x");
    link.send("try", &own).await.unwrap();
}

/// What the check of rights finds.
async fn found(link: &Link, keys: &[&str]) -> (Vec<String>, Vec<String>) {
    let mut cmd = scripts::CHECK_RIGHTS.call(0);
    let (only_read, others): (Vec<&str>, Vec<&str>) =
        keys.iter().copied().partition(|key| key.contains("backup_queue") || key.contains("engine"));
    cmd.arg(PROBE).arg(only_read.len()).arg(only_read).arg(others);
    redis::from_redis_value(scripts::CHECK_RIGHTS.run(link, &cmd).await.unwrap()).unwrap()
}

#[tokio::test]
async fn each_missing_command_and_key_is_found() {
    let (server, tenant, link) = with_users().await;
    let is_old = server.version().await.unwrap() < (7, 0);
    let keys = [
        "tenant:t:backup_queue:{transactions}",
        "tenant:t:backup_queue:{transactions}:attempts",
        "tenant:t:engine:{transactions}:recover",
        "tenant:t:engine:{transactions}:recovery-cleanup",
        "backup_queue:{transactions}",
        "engine:{transactions}:recover:attempts",
        "tenant:t:balance:{transactions}:o:l:@a#default",
        "tenant:t:schedule:{transactions}:balance-sync-v2",
        "tenant:t:schedule:{transactions}:balance-sync",
        "tenant:t:quarantine:{transactions}:balance-sync",
        "tenant:t:quarantine:{transactions}:balance-sync:losses",
        "tenant:t:lock:{transactions}:balance-sync:m",
        "schedule:{transactions}:balance-sync-v2",
        "{transactions}:balance-sync:actions",
    ];
    tell!(tenant, "SET", keys[6], "{}");
    tell!(tenant, "ZADD", keys[7], 1, "m");
    let before: Vec<String> = ask!(tenant, "KEYS", "*");
    assert_eq!(found(&link, &keys).await, (vec![], vec![]));

    let tried = named(scripts::CHECK_RIGHTS.source(), &["{ '"], '\'');
    for command in tried {
        tell!(tenant, "ACL", "SETUSER", WORKER_USER, format!("-{command}"));
        let (commands, refused) = found(&link, &keys).await;
        assert_eq!((commands, refused), (vec![command.to_uppercase()], vec![]), "without {command}");
        tell!(tenant, "ACL", "SETUSER", WORKER_USER, format!("+{command}"));
    }
    let rules: Vec<String> = rules(WORKER_USER)
        .into_iter()
        .map(|rule| if is_old { rule.replace("%R~", "~") } else { rule.to_owned() })
        .collect();
    let patterns: Vec<&str> = rules.iter().map(String::as_str).filter(|rule| rule.contains('~')).collect();
    for pattern in &patterns {
        let mut cmd = redis::cmd("ACL");
        cmd.arg("SETUSER").arg(WORKER_USER).arg("resetkeys");
        cmd.arg(patterns.iter().filter(|other| *other != pattern).collect::<Vec<_>>());
        tenant.run::<()>(&cmd).await;
        let (commands, refused) = found(&link, &keys).await;
        assert!(commands.is_empty(), "{commands:?}");
        let wanted: Vec<&str> = keys
            .iter()
            .copied()
            .filter(|key| {
                let (_, keys) = pattern.split_once('~').unwrap();
                let (begin, end) = keys.split_once('*').unwrap();
                if end.is_empty() {
                    key.starts_with(begin)
                } else {
                    key.starts_with(begin) && key.contains(end.trim_end_matches('*'))
                }
            })
            .collect();
        assert_eq!(refused, wanted, "without {pattern}");
    }
    // It has changed nothing.
    let after: Vec<String> = ask!(tenant, "KEYS", "*");
    assert_eq!(before.len(), after.len(), "{after:?}");
}

fn is_missing(error: &ScheduleError, rights: &str) {
    assert_eq!(error.class, ErrorClass::Permission, "{error}");
    assert!(error.to_string().ends_with(&format!("; missing: {rights}")), "{error}");
}

#[tokio::test]
async fn errors_name_what_is_missing() {
    let (server, tenant, link) = with_users().await;
    tenant.mutate("a", "{}").await;
    let set = async |rules: &[&str]| {
        let mut cmd = redis::cmd("ACL");
        cmd.arg("SETUSER").arg(WORKER_USER).arg(rules);
        tenant.run::<()>(&cmd).await;
    };
    let schedule = Schedule::new(link.clone(), tenant.space.clone(), Arc::new(ScheduleOptions::default()));
    // A command of the script itself, and those that read the values.
    set(&["-zadd"]).await;
    is_missing(&schedule.claim(10).await.unwrap_err(), "+zadd");
    set(&["+zadd", "-get", "-mget"]).await;
    is_missing(&schedule.claim(10).await.unwrap_err(), "+get +mget");
    set(&["+get", "+mget"]).await;
    // One that only keeps values alive.
    set(&["-pexpire"]).await;
    tell!(tenant, "EXPIRE", tenant.member("a"), 10);
    let claim = schedule.claim(10).await.unwrap();
    is_missing(&claim.refused.as_ref().unwrap().error, "+pexpire");
    // One outside scripts, which Redis names as well.
    set(&["+pexpire", "-xrevrange"]).await;
    let error = Controls::new(link.clone()).newest().await.unwrap_err();
    assert!(error.to_string().contains("'xrevrange'"), "{error}");
    is_missing(&error, "+xrevrange");
    // Keys of the fleet, and of the tenant.
    set(&["+xrevrange", "resetkeys", "~tenant:t:*"]).await;
    let error = Workers::new(link.clone(), "g").register("w", SOON).await.unwrap_err();
    is_missing(&error, "~{transactions}:balance-sync:workers-1:g");
    set(&["resetkeys", "~tenant:t:schedule:*", "~{transactions}:*"]).await;
    is_missing(
        &schedule.settle(&all(&claim.entries)).await.unwrap_err(),
        "~tenant:t:quarantine:{transactions}:balance-sync ~tenant:t:quarantine:{transactions}:balance-sync:losses \
         ~tenant:t:balance:{transactions}:*",
    );
    // The channel of tenant events.
    let settings = LinkSettings::for_url(&server.worker_url_on(server.port()));
    let endpoint = Endpoint::new(&settings).unwrap();
    assert!(Subscription::open(&endpoint, "tenant-events:production:").await.is_ok());
    set(&["resetchannels"]).await;
    let error = Subscription::open(&endpoint, "tenant-events:production:").await.unwrap_err();
    is_missing(&error, "&tenant-events:production:");
}

#[tokio::test]
async fn members_that_are_no_keys_of_balances_are_set_aside_without_a_right_to_them() {
    let (_server, tenant, link) = with_users().await;
    let schedule = Schedule::new(link, tenant.space.clone(), Arc::new(ScheduleOptions::default()));
    let stray = "tenant:t:other:{transactions}:x";
    tenant.schedule(stray, "1700000000.000001").await;
    let (good, _) = tenant.mutate("a", "{}").await;
    let claim = schedule.claim(10).await.unwrap();
    assert!(claim.refused.is_none(), "{:?}", claim.refused);
    let found: Vec<_> = claim
        .entries
        .iter()
        .map(|claimed| (claimed.member.as_slice(), claimed.unreadable.is_some()))
        .collect();
    assert_eq!(found, [(stray.as_bytes(), true), (good.as_bytes(), false)]);
}
